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

/// `20261127T010735Z-1f2e3d4c`: a time that a calendar shows, and a number of 8 digits.
fn is_run(text: &str) -> bool {
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    text.split_once('-').is_some_and(|(time, number)| {
        time.len() == TIME && Utc::parse(time).is_some() && number.len() == 8 && number.chars().all(is_digit)
    })
}

/// Characters of the time in the name of a run.
const TIME: usize = "20261127T010735Z".len();

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
    /// The last second that a name can tell of: that of the year 9999.
    const LAST: u64 = 253_402_300_799;

    /// The name of a run that begins now. `seconds`: since 1970-01-01 UTC.
    pub fn new(seconds: u64) -> RunId {
        let random = Uuid::new_v4().simple().to_string();
        RunId(format!("{}-{}", Utc(seconds.min(RunId::LAST)).to_basic(), &random[..8]))
    }

    /// The name of a run that begins now and sorts after `last`, also in the same second and if the clock was set back. `None`: no
    /// name sorts after `last`.
    pub fn after(seconds: u64, last: Option<&RunId>) -> Option<RunId> {
        let run = RunId::new(seconds);
        let Some(last) = last.filter(|last| **last >= run) else { return Some(run) };
        let number = u32::from_str_radix(&last.0[TIME + 1..], 16).ok()?;
        let (time, number) = match number.checked_add(1) {
            Some(number) => (last.seconds(), number),
            None => (last.seconds() + 1, 0),
        };
        (time <= RunId::LAST).then(|| RunId(format!("{}-{number:08x}", Utc(time).to_basic())))
    }

    /// The time in the name, in seconds since 1970-01-01 UTC. It is that at which the run began, or a later one: a run is never named
    /// before one that was there.
    pub fn seconds(&self) -> u64 {
        Utc::parse(&self.0[..TIME]).map_or(0, |utc| utc.0)
    }

    /// Whether the run is named more than a day after `now`, in seconds since 1970-01-01 UTC: one of two clocks is wrong.
    pub fn is_ahead(&self, now: u64) -> bool {
        self.seconds() > now.saturating_add(86_400)
    }

    /// The name of the directory of the run while it is written.
    pub fn unfinished(&self) -> String {
        format!("{self}{UNFINISHED}")
    }

    /// The name of the directory of what stays of the run if it failed.
    pub fn partial(&self) -> String {
        format!("{self}{PARTIAL}")
    }

    /// The run of which a part is in a directory of this name.
    pub fn of_partial(name: &str) -> Option<RunId> {
        name.strip_suffix(PARTIAL)?.parse().ok()
    }

    /// The run that is written in a directory of this name.
    pub fn of_unfinished(name: &str) -> Option<RunId> {
        name.strip_suffix(UNFINISHED)?.parse().ok()
    }
}

/// The end of the name of a directory that is not yet an export.
const UNFINISHED: &str = ".new";
/// The end of the name of a directory that is no export, and stays.
const PARTIAL: &str = ".partial";

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
        assert_eq!((early.seconds(), late.seconds()), (0, 1_795_741_655));
        for bad in [
            "",
            "20261127T010735Z",
            "20261127T010735Z-1F2E3D4C",
            "current",
            "20261127T010735Z-1f2e3d4c.new",
            "2026-11-27T01:07:35Z-1f2e3d4c",
            "20261127T010735Z-1f2e3d4",
            "99999999T999999Z-1f2e3d4c",
            "20260230T010735Z-1f2e3d4c",
        ] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_run_sorts_after_any_other_as_long_as_there_are_names() {
        let run = |text: &str| text.parse::<RunId>().unwrap();
        let now = 1_795_741_655;
        for (last, next) in [
            ("20261127T010735Z-00000009", Some("20261127T010735Z-0000000a")),
            ("20991231T235959Z-ffffffff", Some("21000101T000000Z-00000000")),
            ("99991231T235959Z-fffffffe", Some("99991231T235959Z-ffffffff")),
            ("99991231T235959Z-ffffffff", None),
        ] {
            let (last, next) = (run(last), next.map(run));
            assert_eq!(RunId::after(0, Some(&last)), next, "{last}");
            assert!(next.is_none_or(|next| next > last));
        }
        let before = run("20261126T235959Z-ffffffff");
        assert_eq!(RunId::after(now, Some(&before)).unwrap().seconds(), now);
        assert_eq!(RunId::after(now, None).unwrap().seconds(), now);
        run(RunId::new(u64::MAX).as_str());
    }
}
