//! The form that the name of an SR may have.

use std::fmt;
use std::str::FromStr;

use crate::types::{Misread, SrUuid};

/// The name of an SR on this host. It is the name of a file, a word of a command line and the instance of a systemd unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SrName(String);

impl SrName {
    /// Characters of the longest name.
    pub const LONGEST: usize = 64;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Refuses a new name that a command takes for something else: `sm backup import --sr auto` chooses an SR.
    ///
    /// # Errors
    /// [`Misread`].
    pub fn refuse_reserved(&self) -> Result<(), Misread> {
        match self.as_str() {
            "auto" => Err(Misread {
                what: "SR",
                value: self.0.clone(),
                expected: "--sr auto of sm backup chooses an SR: expected another name".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for SrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SrName {
    type Err = Misread;

    /// Accepts a letter, then letters, digits and `._-`; no UUID, which would stand for another SR.
    fn from_str(text: &str) -> Result<Self, Misread> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let is_name = text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.len() <= SrName::LONGEST
            && text.chars().all(plain)
            && text.parse::<SrUuid>().is_err();
        match is_name {
            true => Ok(SrName(text.to_owned())),
            false => Err(Misread {
                what: "SR",
                value: text.to_owned(),
                expected: format!(
                    "expected a UUID, or a name: a letter, then letters, digits, '.', '_' and '-', {} at most",
                    SrName::LONGEST
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_a_command_takes_for_something_else_is_no_new_name() {
        assert!("auto".parse::<SrName>().unwrap().refuse_reserved().is_err());
        assert!("automatic".parse::<SrName>().unwrap().refuse_reserved().is_ok());
    }

    #[test]
    fn a_name_is_a_plain_word_and_no_uuid() {
        for good in ["fast", "a", "Fast-2.old_x", &"n".repeat(64)] {
            assert_eq!(good.parse::<SrName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "2fast",
            "-t",
            ".",
            "..",
            "a/b",
            "../x",
            "a b",
            "ü",
            "a\n",
            "a\0",
            &"n".repeat(65),
            "a7b8646b-b800-9500-cb7b-af3b74e02f5c",
        ] {
            assert!(bad.parse::<SrName>().is_err(), "{bad:?}");
        }
    }
}
