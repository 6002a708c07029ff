//! The contents of an image at a place of the disk, as its L2 tables tell.

use std::sync::atomic::Ordering::*;

use super::super::compressed::Compressed;
use super::table::Table;
use super::{COMPRESSED, COPIED, Image, OFFSET, SUBCLUSTERS, ZERO};
use crate::error::Result;

/// The kinds of stretch that a disk has in one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The parent has it; the place that is set aside for it, if any.
    Absent(Option<u64>),
    /// Reads as zeroes; the place that is set aside for it, if any.
    Zero(Option<u64>),
    /// Data, from this byte of the file; and whether it may be overwritten there.
    Data(u64, bool),
    /// Compressed data: the L2 entry. The stretch does not leave the cluster.
    Compressed(u64),
}

impl What {
    /// The stretch that continues this one `bytes` further on.
    fn on(self, bytes: u64) -> What {
        match self {
            What::Absent(host) => What::Absent(host.map(|host| host + bytes)),
            What::Zero(host) => What::Zero(host.map(|host| host + bytes)),
            What::Data(host, own) => What::Data(host + bytes, own),
            What::Compressed(entry) => What::Compressed(entry),
        }
    }
}

impl Image {
    /// The stretch of the disk at `offset`, and its length in bytes, at most `len`. Offset and length lie in the disk.
    pub(crate) fn look(&self, offset: u64, len: u64) -> Result<(What, u64)> {
        let region = (offset / self.region()) as usize;
        if self.l1[region].load(Acquire) == 0 {
            let none = self.l1[region..].iter().take_while(|entry| entry.load(Relaxed) == 0).count();
            let until = (region + none) as u64 * self.region();
            return Ok((What::Absent(None), len.min(until - offset)));
        }
        let at = self.l1[region].load(Acquire) & OFFSET;
        if self.lost.contains(&at) {
            return Err(self.place.damaged(format!("an L2 table cannot lie at {at}")));
        }
        let mut shard = self.shard(region);
        let table = self.table(&mut shard, region)?;
        let (cluster, unit) = (self.header.cluster(), self.unit());
        let within = offset % self.region();
        let what = self.what(table, within)?;
        let mut run = unit - offset % unit;
        while run < len && within + run < self.region() {
            let at = within + run;
            // A cluster that is not this image's own is not joined with its neighbours: it gets another place as a
            // whole.
            if at.is_multiple_of(cluster) && unit < cluster {
                let n = (at >> self.bits()) as usize;
                if is_foreign(table.entries[n - 1]) || is_foreign(table.entries[n]) {
                    break;
                }
            }
            if matches!(what, What::Compressed(_)) {
                run = (cluster - within % cluster).min(len);
                break;
            }
            if self.what(table, at)? != what.on(run) {
                break;
            }
            run += unit;
        }
        Ok((what, run.min(len)))
    }

    /// Whether the file has space for the stretch of the disk at `offset`, and its length in bytes, at most `len`. Offset and
    /// length lie in the disk.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`] for tables that contradict themselves; [`crate::Error::Io`].
    pub fn takes_space(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let (what, run) = self.look(offset, len)?;
        let takes_space = match what {
            What::Absent(host) | What::Zero(host) => host.is_some(),
            What::Data(..) | What::Compressed(_) => true,
        };
        Ok((takes_space, run))
    }

    /// Bytes from `offset` on that one entry leads to: of the L1 table if that is wrong.
    pub(crate) fn told_by_one_entry(&self, offset: u64) -> u64 {
        let region = (offset / self.region()) as usize;
        let is_lost = self.lost.contains(&(self.l1[region].load(Relaxed) & OFFSET));
        let step = if is_lost { self.region() } else { self.unit() };
        step - offset % step
    }

    /// The kind of stretch that a byte of a table's region lies in, from that byte on.
    fn what(&self, table: &Table, at: u64) -> Result<What> {
        let n = (at >> self.bits()) as usize;
        let (entry, within) = (table.entries[n], at % self.header.cluster());
        if entry & COMPRESSED != 0 {
            return Ok(What::Compressed(entry));
        }
        let (host, own) = (entry & OFFSET, entry & COPIED != 0);
        if !host.is_multiple_of(self.header.cluster()) {
            return Err(self.place.damaged(format!("a cluster cannot lie at {host}")));
        }
        let (is_zero, has_data) = match self.header.is_extended() {
            false => (entry & ZERO != 0, true),
            true => {
                let bits = table.map(n) >> (within / self.unit());
                (bits >> SUBCLUSTERS & 1 == 1, bits & 1 == 1)
            }
        };
        let aside = (host != 0 && own).then_some(host + within);
        match (host, is_zero, has_data) {
            _ if is_zero && self.header.version < 3 => Err(self
                .place
                .damaged("an image of version 2 has no clusters that read as zeroes, and an entry says so")),
            _ if self.header.is_extended() && has_data && (is_zero || host == 0) => {
                Err(self.place.damaged(format!("the map of an L2 entry contradicts itself ({:#x})", table.map(n))))
            }
            (_, true, _) => Ok(What::Zero(aside)),
            (0, ..) | (_, false, false) => Ok(What::Absent(aside)),
            (_, false, true) => Ok(What::Data(host + within, own)),
        }
    }

    /// All of the cluster that a compressed entry leads to.
    pub(crate) fn inflate(&self, entry: u64) -> Result<Vec<u8>> {
        Compressed::of(entry, self.bits()).unpack(&*self.place, self.header.cluster(), self.header.compression())
    }
}

/// Whether an L2 entry leads to data that is compressed, or may be another's as well.
pub(super) fn is_foreign(entry: u64) -> bool {
    entry & COMPRESSED != 0 || (entry & OFFSET != 0 && entry & COPIED == 0)
}
