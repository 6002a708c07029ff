//! The names of sets, stores and runs. A name is a word of a command line and the name of a file, and cannot hold a path.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::types::{Misread, Utc};

/// Characters of the longest name.
const LONGEST: usize = 63;

fn is_name(text: &str) -> bool {
    text.len() <= LONGEST
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// `20261127T010735Z-1f2e3d4c`, by its form.
fn is_run(text: &str) -> bool {
    let form = "00000000T000000Z-00000000";
    text.len() == form.len()
        && text.chars().zip(form.chars()).enumerate().all(|(at, (c, of))| match of {
            '0' if at < 16 => c.is_ascii_digit(),
            '0' => c.is_ascii_digit() || ('a'..='f').contains(&c),
            of => c == of,
        })
}

macro_rules! name_type {
    ($name:ident, $what:literal, $is:ident, $expected:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Misread;

            fn from_str(text: &str) -> Result<Self, Misread> {
                let misread =
                    || Misread { what: $what, value: text.to_owned(), expected: format!("expected {}", $expected) };
                if $is(text) { Ok($name(text.to_owned())) } else { Err(misread()) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

name_type!(
    SetName,
    "NAME",
    is_name,
    "a letter or digit, then letters, digits, '.', '_' and '-', 63 at most",
    "The name of a set of disks."
);
name_type!(
    StoreName,
    "STORE",
    is_name,
    "a letter or digit, then letters, digits, '.', '_' and '-', 63 at most",
    "The name of a store on this host."
);
name_type!(
    RunId,
    "RUN",
    is_run,
    "the name of a run as `sm backup list` shows it, such as 20261127T010735Z-1f2e3d4c",
    "One export of a set: the time at which it began, and a random number. Later runs sort after earlier ones."
);

impl RunId {
    /// The name of a run that begins now. `seconds`: since 1970-01-01 UTC.
    pub fn new(seconds: u64) -> RunId {
        let random = Uuid::new_v4().simple().to_string();
        RunId(format!("{}-{}", Utc(seconds).to_basic(), &random[..8]))
    }

    /// The name of a run that begins now and sorts after `last`, also in the same second and if the clock was set back.
    pub fn after(seconds: u64, last: Option<&RunId>) -> RunId {
        let run = RunId::new(seconds);
        match last {
            Some(last) if *last >= run => {
                let (time, number) = last.0.split_at(last.0.len() - 8);
                let number = u32::from_str_radix(number, 16).unwrap_or(0).saturating_add(1);
                RunId(format!("{time}{number:08x}"))
            }
            _ => run,
        }
    }

    /// The day of the run, counted from 1970-01-01.
    pub fn day(&self) -> u64 {
        let number = |at: std::ops::Range<usize>| self.0[at].parse().unwrap_or(1);
        Utc::of_date(number(0..4), number(4..6), number(6..8)).0 / 86_400
    }

    /// The week of the run, counted from Monday, 1969-12-29.
    pub fn week(&self) -> u64 {
        // 1970-01-01 was a Thursday.
        (self.day() + 3) / 7
    }

    /// The name of the directory of the run while it is written.
    pub fn unfinished(&self) -> String {
        format!("{self}{UNFINISHED}")
    }
}

/// The end of the name of a directory that is not yet an export.
pub const UNFINISHED: &str = ".new";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_plain_word_and_no_path() {
        for good in ["web", "7", "a.b_c-d", &"n".repeat(63)] {
            good.parse::<SetName>().unwrap();
        }
        for bad in ["", ".", "..", ".web", "-web", "a/b", "../x", "a b", "a\n", "wéb", &"n".repeat(64)] {
            assert!(bad.parse::<SetName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_run_has_one_form_and_sorts_by_time() {
        let (early, late) = (RunId::new(0), RunId::new(1_795_741_655));
        assert!(early < late && late.as_str().starts_with("20261127T010735Z-"), "{late}");
        assert_eq!(late.as_str().parse::<RunId>().unwrap(), late);
        assert!(RunId::after(0, Some(&late)) > late && RunId::after(1_795_741_656, Some(&late)) > late);
        assert!(RunId::after(0, Some(&late)).as_str().parse::<RunId>().is_ok());
        for bad in ["", "20261127T010735Z", "20261127T010735Z-1F2E3D4C", "current", "20261127T010735Z-1f2e3d4c.new"] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
    }
}
