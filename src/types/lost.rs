//! What cannot be read of a damaged disk.

use serde::Serialize;

/// A stretch of a disk that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostRange {
    /// Bytes of the disk: where it starts and ends.
    pub start: u64,
    pub end: u64,
    /// Why the first of these bytes cannot be read.
    pub why: String,
}

impl LostRange {
    /// Bytes of several stretches.
    pub fn total(lost: &[LostRange]) -> u64 {
        lost.iter().map(|lost| lost.end - lost.start).sum()
    }
}
