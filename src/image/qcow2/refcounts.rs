//! Reference counts, of 1 to 64 bits. A cluster that is new has 1; a flush writes that. A cluster that one reference
//! less leads to is counted down afterwards.
//!
//! The table of blocks of counts is in memory. When the file outgrows it, a longer one is written behind everything
//! else, and one write of the header leads to it.

use std::ops::Range;

use super::header::{Header, field};
use super::{MAX_REFCOUNT_TABLE, Storage, read_table, table_bytes};
use crate::error::Result;

/// Bits of an entry of the table of reference counts that are an offset.
const OFFSET: u64 = !0x1ff;

/// The table of an image that is open for writing.
#[derive(Debug)]
pub(crate) struct Refcounts {
    /// A cluster has 1 << this bytes.
    bits: u32,
    /// A count has 1 << this bits.
    order: u32,
    /// Where the table is in the file, or will be when the header leads there.
    at: u64,
    /// Offset of each block of counts; 0: there is none.
    blocks: Vec<u64>,
    /// Clusters below this are counted on disk.
    counted: u64,
    /// Blocks that the table on disk does not name yet.
    fresh: Vec<usize>,
    /// Clusters of tables that the one at `at` replaces. Not empty: the header on disk does not lead to `at` yet.
    outgrown: Vec<u64>,
}

impl Refcounts {
    pub fn open(place: &dyn Storage, header: &Header) -> Result<Refcounts> {
        let bits = header.cluster_bits;
        let entries = (header.refcounts_clusters as usize) << bits >> 3;
        let blocks = read_table(place, header.refcounts_offset, entries, "the table of reference counts")?;
        if blocks.iter().any(|block| !(block & OFFSET).is_multiple_of(1 << bits) || *block >= 1 << 56) {
            return Err(place.damaged("a block of reference counts lies at an impossible place"));
        }
        let blocks: Vec<u64> = blocks.into_iter().map(|block| block & OFFSET).collect();
        let order = header.refcount_order;
        let (at, fresh, outgrown) = (header.refcounts_offset, Vec::new(), Vec::new());
        let mut counts = Refcounts { bits, order, at, blocks, counted: 0, fresh, outgrown };
        if let Some(last) = counts.blocks.iter().rposition(|block| *block != 0) {
            let mut bytes = vec![0; 1 << bits];
            place.get(&mut bytes, counts.blocks[last])?;
            let used = (0..counts.per_block()).rfind(|n| get(&bytes, order, *n) != 0).map_or(0, |n| n + 1);
            counts.counted = last as u64 * counts.per_block() + used;
        }
        Ok(counts)
    }

    /// Counts in a block of them.
    fn per_block(&self) -> u64 {
        1 << (self.bits + 3 - self.order)
    }

    /// The first cluster that no count on disk says to be in use, nor any behind it.
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// Clusters that can be counted, when the table has become as long as it may.
    pub fn limit(&self) -> u64 {
        (MAX_REFCOUNT_TABLE / 8) * self.per_block()
    }

    /// Leaves clusters below `cluster` as they are.
    pub fn skip_to(&mut self, cluster: u64) {
        self.counted = self.counted.max(cluster);
    }

    /// The clusters that the counts themselves are in.
    pub fn clusters(&self) -> impl Iterator<Item = u64> {
        let table = self.table(self.at, self.blocks.len());
        table.chain(self.blocks.iter().filter(|block| **block != 0).map(|block| block >> self.bits))
    }

    fn table(&self, at: u64, blocks: usize) -> Range<u64> {
        let first = at >> self.bits;
        first..first + (blocks as u64 * 8).div_ceil(1 << self.bits)
    }

    /// Writes a count of 1 for all clusters from those that are counted up to what `end` says. A longer table, and blocks,
    /// are put where `allocate` says and counted as well. Returns up to where, for [`Refcounts::done`]. Does not sync;
    /// nothing leads to what is new yet. After a failure it can be called again.
    pub fn count(
        &mut self,
        place: &dyn Storage,
        end: &dyn Fn() -> u64,
        allocate: &dyn Fn(u64) -> Result<u64>,
    ) -> Result<u64> {
        // A block may be needed for a block, or for the table.
        loop {
            let until = end();
            if self.counted >= until {
                break;
            }
            let wanted = self.counted / self.per_block()..until.div_ceil(self.per_block());
            if wanted.end > self.blocks.len() as u64 {
                self.grow(wanted.end, allocate)?;
                continue;
            }
            let missing: Vec<usize> = wanted.map(|n| n as usize).filter(|n| self.blocks[*n] == 0).collect();
            if missing.is_empty() {
                break;
            }
            for block in missing {
                self.blocks[block] = allocate(1)? << self.bits;
                self.fresh.push(block);
            }
        }
        let until = end();
        let mut at = self.counted;
        while at < until {
            let block = (at / self.per_block()) as usize;
            let first = block as u64 * self.per_block();
            let stop = until.min(first + self.per_block());
            self.put_ones(place, block, at - first..stop - first)?;
            at = stop;
        }
        if !self.outgrown.is_empty() {
            place.put(&table_bytes(&self.blocks), self.at)?;
        }
        Ok(until)
    }

    /// Makes the table so long that it names `blocks` and some more.
    fn grow(&mut self, blocks: u64, allocate: &dyn Fn(u64) -> Result<u64>) -> Result<()> {
        let cluster = 1u64 << self.bits;
        let wanted = (blocks + blocks / 2 + 1).min(MAX_REFCOUNT_TABLE / 8).max(blocks);
        let clusters = (wanted * 8).div_ceil(cluster);
        let at = allocate(clusters)? << self.bits;
        let old = self.table(self.at, self.blocks.len());
        self.outgrown.extend(old);
        self.at = at;
        self.blocks.resize((clusters * cluster / 8) as usize, 0);
        Ok(())
    }

    fn put_ones(&self, place: &dyn Storage, block: usize, ones: Range<u64>) -> Result<()> {
        // A new block is written whole: a device holds anything.
        let is_fresh = self.fresh.contains(&block);
        let span = if is_fresh { 0..self.per_block() } else { ones.clone() };
        let (from, until) = ((span.start << self.order) / 8, (span.end << self.order).div_ceil(8));
        let mut bytes = vec![0; (until - from) as usize];
        // Counts of less than a byte share theirs with what is counted already.
        if !is_fresh && self.order < 3 {
            place.get(&mut bytes, self.blocks[block] + from)?;
        }
        let before = (from * 8) >> self.order;
        for n in ones {
            set(&mut bytes, self.order, n - before, 1);
        }
        place.put(&bytes, self.blocks[block] + from)
    }

    /// After a sync: leads to new blocks from their table, or to a new table from the header. Whether another sync has to
    /// follow before anything refers to what they count.
    pub fn publish(&mut self, place: &dyn Storage) -> Result<bool> {
        if !self.outgrown.is_empty() {
            let clusters = self.table(self.at, self.blocks.len());
            let clusters = (clusters.end - clusters.start) as u32;
            let fields: [(usize, &[u8]); 2] = [
                (field::REFCOUNTS_OFFSET, &self.at.to_be_bytes()),
                (field::REFCOUNTS_CLUSTERS, &clusters.to_be_bytes()),
            ];
            Header::patch(place, &fields)?;
            return Ok(true);
        }
        for block in &self.fresh {
            place.put(&table_bytes(&self.blocks[*block..*block + 1]), self.at + *block as u64 * 8)?;
        }
        Ok(!self.fresh.is_empty())
    }

    /// All of that is on disk. Answers the clusters that nothing leads to any more.
    pub fn done(&mut self, until: u64) -> Vec<u64> {
        self.counted = until;
        self.fresh.clear();
        std::mem::take(&mut self.outgrown)
    }

    /// Shows `each` the count of every cluster up to `clusters`, and of those behind that are counted; what it answers
    /// becomes the count. Does not sync.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); what `each` says.
    pub fn revise(
        &self,
        place: &dyn Storage,
        clusters: u64,
        each: &mut dyn FnMut(u64, u64) -> Result<Option<u64>>,
    ) -> Result<()> {
        let per_block = self.per_block();
        let blocks = clusters.div_ceil(per_block).max(self.blocks.len() as u64);
        let mut bytes = vec![0; 1 << self.bits];
        for block in 0..blocks {
            let at = self.blocks.get(block as usize).copied().unwrap_or(0);
            match at {
                // Most of a table names no block.
                0 if block * per_block >= clusters => continue,
                0 => bytes.fill(0),
                at => place.get(&mut bytes, at)?,
            }
            let mut changed = false;
            for n in 0..per_block {
                let cluster = block * per_block + n;
                let count = get(&bytes, self.order, n);
                if cluster >= clusters && count == 0 {
                    continue;
                }
                if let Some(now) = each(cluster, count)? {
                    set(&mut bytes, self.order, n, now);
                    changed = true;
                }
            }
            if changed && at != 0 {
                place.put(&bytes, at)?;
            }
        }
        Ok(())
    }

    /// Counts each cluster down by one: on disk, something leads to it no more. Answers those that nothing leads to now.
    /// Does not sync: what a crash forgets is counted in vain.
    pub fn release(&mut self, place: &dyn Storage, mut clusters: Vec<u64>) -> Result<Vec<u64>> {
        clusters.sort_unstable();
        let (per_block, order) = (self.per_block(), self.order);
        let mut unused = Vec::new();
        for part in clusters.chunk_by(|a, b| a / per_block == b / per_block) {
            let block = self.blocks.get((part[0] / per_block) as usize).copied().unwrap_or(0);
            if block == 0 {
                continue;
            }
            let (first, last) = (part[0] % per_block, part[part.len() - 1] % per_block);
            let (from, until) = ((first << order) / 8, ((last + 1) << order).div_ceil(8));
            let mut bytes = vec![0; (until - from) as usize];
            place.get(&mut bytes, block + from)?;
            let before = (from * 8) >> order;
            for cluster in part {
                let n = cluster % per_block - before;
                // 0: its counts were wrong before.
                let Some(less) = get(&bytes, order, n).checked_sub(1) else { continue };
                set(&mut bytes, order, n, less);
                if less == 0 {
                    unused.push(*cluster);
                }
            }
            place.put(&bytes, block + from)?;
        }
        Ok(unused)
    }
}

/// Count `n` of a block: "if refcount_bits is less than 8, the bits are in the byte from the least significant on".
fn get(bytes: &[u8], order: u32, n: u64) -> u64 {
    let n = n as usize;
    match order {
        0..=2 => {
            let (width, per_byte) = (1 << order, 8 >> order);
            u64::from(bytes[n / per_byte] >> (n % per_byte * width)) & ((1 << width) - 1)
        }
        _ => {
            let width = 1 << (order - 3);
            bytes[n * width..][..width].iter().fold(0, |count, byte| count << 8 | u64::from(*byte))
        }
    }
}

fn set(bytes: &mut [u8], order: u32, n: u64, count: u64) {
    let n = n as usize;
    match order {
        0..=2 => {
            let (width, per_byte) = (1 << order, 8 >> order);
            let (mask, shift) = ((1u8 << width) - 1, n % per_byte * width);
            bytes[n / per_byte] = bytes[n / per_byte] & !(mask << shift) | (count as u8 & mask) << shift;
        }
        _ => {
            let width = 1 << (order - 3);
            bytes[n * width..][..width].copy_from_slice(&count.to_be_bytes()[8 - width..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_are_kept_apart() {
        for order in 0..=6u32 {
            let most = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            let mut bytes = [0; 64];
            let counts = 512 >> order;
            for n in (0..counts).step_by(3) {
                set(&mut bytes, order, n, most - n % 2);
            }
            for n in 0..counts {
                let wanted = if n % 3 == 0 { most - n % 2 } else { 0 };
                assert_eq!(get(&bytes, order, n), wanted, "2^{order} bits, count {n}");
            }
        }
        // The order within a byte is the one qemu has.
        let mut bytes = [0; 1];
        set(&mut bytes, 1, 1, 3);
        assert_eq!(bytes, [0b1100]);
    }
}
