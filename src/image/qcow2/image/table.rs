//! An L2 table in memory.

use std::ops::Range;

use super::super::{Storage, read_table};
use crate::error::Result;

#[derive(Debug)]
pub(crate) struct Table {
    pub entries: Box<[u64]>,
    /// Of extended entries, what each subcluster is: bits 0 to 31 that it has data, 32 to 63 that it reads as zeroes.
    pub(super) maps: Box<[u64]>,
    /// Entries that differ from the disk.
    pub(super) changed: Option<Range<usize>>,
    /// The L1 table on disk does not lead here.
    pub(super) fresh: bool,
    /// A flush is writing an earlier state of it.
    pub(super) writing: bool,
}

impl Table {
    pub fn read(place: &dyn Storage, offset: u64, entries: usize, is_extended: bool) -> Result<Table> {
        let words = read_table(place, offset, if is_extended { 2 * entries } else { entries }, "an L2 table")?;
        let (entries, maps) = match is_extended {
            false => (words.into(), Box::default()),
            true => {
                let pairs = words.as_chunks::<2>().0;
                (pairs.iter().map(|pair| pair[0]).collect(), pairs.iter().map(|pair| pair[1]).collect())
            }
        };
        Ok(Table { entries, maps, changed: None, fresh: false, writing: false })
    }

    pub(super) fn map(&self, n: usize) -> u64 {
        self.maps.get(n).copied().unwrap_or(0)
    }

    pub(super) fn bytes(&self, span: Range<usize>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(span.len() * if self.maps.is_empty() { 8 } else { 16 });
        for n in span {
            bytes.extend_from_slice(&self.entries[n].to_be_bytes());
            if let Some(map) = self.maps.get(n) {
                bytes.extend_from_slice(&map.to_be_bytes());
            }
        }
        bytes
    }

    /// Notes a change of entries, and whether it is the first since the last flush.
    pub(super) fn change(&mut self, span: Range<usize>) -> bool {
        let was = self.changed.take();
        let is_first = was.is_none();
        self.changed = Some(was.map_or(span.clone(), |was| was.start.min(span.start)..was.end.max(span.end)));
        is_first
    }
}
