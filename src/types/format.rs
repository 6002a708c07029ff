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
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Vhd => "vhd",
            Format::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = Misread;

    fn from_str(text: &str) -> Result<Self, Misread> {
        match text {
            "raw" => Ok(Format::Raw),
            "vhd" => Ok(Format::Vhd),
            "qcow2" => Ok(Format::Qcow2),
            _ => {
                let lower = text.to_ascii_lowercase();
                let expected = match lower.as_str() {
                    "raw" | "vhd" | "qcow2" => format!("write {lower}, in lower case"),
                    _ => "expected raw, vhd or qcow2".to_owned(),
                };
                Err(Misread { what: "type", value: text.to_owned(), expected })
            }
        }
    }
}
