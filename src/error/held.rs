//! An SR that stands in the way, and what would be lost with it.

use std::fmt;
use std::path::PathBuf;

use crate::types::SrUuid;

/// An SR that is found on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldSr {
    pub sr: SrUuid,
    /// The volume group that it is, in words.
    pub group: String,
    /// The devices of the SR that are here.
    pub on: Vec<PathBuf>,
    pub lost: Lost,
}

impl fmt::Display for HeldSr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SR {} ({}){}", self.sr, self.group, self.lost)
    }
}

/// The disks that would be lost with an SR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The disks were not listed yet.
    NotListed,
    /// It has no disks.
    Nothing,
    /// Its disks, in words.
    Disks(String),
    /// Its disks cannot be listed, and why.
    Unknown(String),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::NotListed => Ok(()),
            Lost::Nothing => f.write_str(", which has no disks"),
            Lost::Disks(words) => write!(f, " with {words}, which would be lost"),
            Lost::Unknown(why) => write!(f, ", and its disks cannot be listed: {why}"),
        }
    }
}
