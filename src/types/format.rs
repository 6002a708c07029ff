//! The formats of disk images.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Misread;

/// How the bytes of a virtual disk are laid out in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    Raw,
    Vhd,
    Qcow2,
}

impl Format {
    /// Every format, in the order in which images of a VDI are looked for.
    pub const ALL: [Format; 3] = [Format::Raw, Format::Vhd, Format::Qcow2];

    /// The word for the format: in commands, in answers, and as the extension of files.
    pub fn word(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Vhd => "vhd",
            Format::Qcow2 => "qcow2",
        }
    }
}

// A string, not the symbol that serde-lexpr would make of a variant.
impl Serialize for Format {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Format {
    type Err = Misread;

    fn from_str(text: &str) -> Result<Self, Misread> {
        let named = |word: &str| Format::ALL.into_iter().find(|format| format.word() == word);
        named(text).ok_or_else(|| {
            let expected = match named(&text.to_ascii_lowercase()) {
                Some(format) => format!("write {format}, in lower case"),
                None => {
                    let [others @ .., last] = Format::ALL.map(Format::word);
                    format!("expected {} or {last}", others.join(", "))
                }
            };
            Misread { what: "type", value: text.to_owned(), expected }
        })
    }
}
