//! Runs from one store into another, or into an SR, by a pipe: `sm backup send … | ssh host sm backup receive …`.
//!
//! | file | what |
//! |---|---|
//! | [`send`](mod@send) | runs of a store as a stream |
//! | [`receive`](mod@receive) | a stream into a store |
//! | [`disks`], `images` | a stream into an SR |
//!
//! # The stream, version 1
//!
//! ```text
//! sm-backup-stream 1
//! set NAME
//! run RUN MANIFEST-SHA256 FROM BYTES
//! block LENGTH SHA256
//! …                                      LENGTH bytes
//! end
//! ```
//!
//! A stream has any number of runs, a parent before its increments. The last line is `done`. The blocks of a run are numbered from 0.
//! The first one of the stream is block FROM, and those from there on have BYTES in all. No name of a file is in a stream: the parts
//! of a run have one order, [`parts`], and a part is cut into blocks of 4 MiB, the last of them shorter or empty. Of an image that is
//! not packed, each block is one that its map tells of, and there is no other.

pub mod disks;
mod images;
mod incoming;
pub mod receive;
pub mod send;

use std::fmt;
use std::str::FromStr;

use super::manifest::{self, Manifest, image_name, map_name};
use super::name::RunId;
use crate::types::Misread;

/// The first line.
const VERSION: &str = "sm-backup-stream 1";
/// Bytes of the longest small part.
const LONGEST_PART: u64 = 17 << 20;
/// Bytes of the longest line.
const LONGEST_LINE: usize = 256;

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Manifest,
    Sums,
    Map(usize),
    Metadata,
    DigestKey,
    Image(usize),
}

impl Part {
    /// The name of its file.
    pub fn name(self, of: &Manifest) -> String {
        match self {
            Part::Manifest => manifest::FILE.to_owned(),
            Part::Sums => manifest::SUMS.to_owned(),
            Part::Map(index) => map_name(index),
            Part::Metadata => of.metadata_name().to_owned(),
            Part::DigestKey => manifest::DIGEST_KEY.to_owned(),
            Part::Image(index) => image_name(index, of.compression, of.encryption.is_some()),
        }
    }

    /// Whether its blocks are those of a map.
    pub fn is_mapped(self, of: &Manifest) -> bool {
        matches!(self, Part::Image(_)) && !of.compression.is_packed()
    }
}

/// The parts of a run, in the order in which they are sent.
pub fn parts(of: &Manifest) -> Vec<Part> {
    let mut parts = vec![Part::Manifest, Part::Sums];
    parts.extend((0..of.disks.len()).map(Part::Map));
    parts.extend(of.metadata.is_some().then_some(Part::Metadata));
    parts.extend(of.encryption.is_some().then_some(Part::DigestKey));
    parts.extend((0..of.disks.len()).map(Part::Image));
    parts
}

/// What a receiver has of a set: a word that `receive --resume` prints and `send --from` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Have {
    Nothing,
    /// The run and all that it is an increment on.
    Run(RunId),
    /// The blocks of a run before this one.
    Blocks(RunId, u64),
}

impl fmt::Display for Have {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Have::Nothing => f.write_str("nothing"),
            Have::Run(run) => run.fmt(f),
            Have::Blocks(run, block) => write!(f, "{run}:{block}"),
        }
    }
}

impl FromStr for Have {
    type Err = Misread;

    fn from_str(text: &str) -> Result<Have, Misread> {
        let misread = || {
            Misread {
            what: "--from",
            value: text.to_owned(),
            expected: "expected the word that `sm backup receive --to STORE --resume NAME` prints on the other host; --store says \
                       the store that has the run"
                .to_owned(),
        }
        };
        match text.split_once(':') {
            None if text == "nothing" => Ok(Have::Nothing),
            None => Ok(Have::Run(text.parse().map_err(|_| misread())?)),
            Some((run, block)) => {
                let block = number(block).ok_or_else(misread)?;
                Ok(Have::Blocks(run.parse().map_err(|_| misread())?, block))
            }
        }
    }
}

/// A number in its one spelling.
fn number(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().filter(|number| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_receiver_is_read_by_a_sender() {
        let run = RunId::new(0);
        for have in [Have::Nothing, Have::Run(run.clone()), Have::Blocks(run.clone(), 0), Have::Blocks(run.clone(), 77)]
        {
            assert_eq!(have.to_string().parse::<Have>().unwrap(), have);
        }
        for bad in ["", "web", &format!("{run}:"), &format!("{run}:x"), &format!("{run}:+1"), &format!("{run}:1:2")] {
            assert!(bad.parse::<Have>().is_err(), "{bad}");
        }
    }
}
