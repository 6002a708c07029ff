//! Reference counts, of 16 bits. Every cluster in use has 1; those of new clusters are written by a flush.

use super::header::Header;
use super::{Place, REFCOUNT_ORDER, read_table, table_bytes};
use crate::error::{Error, Result};

/// Bits of an entry of the table of reference counts that are an offset.
const OFFSET: u64 = !0x1ff;

/// The table of an image that is open for writing.
#[derive(Debug)]
pub(crate) struct Refcounts {
    bits: u32,
    /// Where the table is in the file.
    at: u64,
    /// Offset of each block of counts; 0: there is none.
    blocks: Vec<u64>,
    /// Clusters below this are counted on disk.
    counted: u64,
    /// Blocks that the table on disk does not name yet.
    fresh: Vec<usize>,
}

impl Refcounts {
    pub fn open(place: &dyn Place, header: &Header) -> Result<Refcounts> {
        if header.refcount_order != REFCOUNT_ORDER {
            return Err(Error::Unsupported {
                op: "writing this qcow2",
                why: format!("{}: its reference counts are not of 16 bits", place.path().display()),
            });
        }
        let bits = header.cluster_bits;
        let entries = (header.refcounts_clusters as usize) << bits >> 3;
        let blocks = read_table(place, header.refcounts_offset, entries, "the table of reference counts")?;
        if blocks.iter().any(|block| !(block & OFFSET).is_multiple_of(1 << bits) || *block >= 1 << 56) {
            return Err(place.damaged("a block of reference counts lies at an impossible place"));
        }
        let mut counts = Refcounts { bits, at: header.refcounts_offset, blocks, counted: 0, fresh: Vec::new() };
        if let Some(last) = counts.blocks.iter().rposition(|block| *block != 0) {
            let mut bytes = vec![0; 1 << bits];
            place.get(&mut bytes, counts.blocks[last])?;
            let used = bytes.as_chunks::<2>().0.iter().rposition(|count| *count != [0, 0]).map_or(0, |n| n as u64 + 1);
            counts.counted = last as u64 * counts.per_block() + used;
        }
        Ok(counts)
    }

    fn per_block(&self) -> u64 {
        1 << (self.bits - 1)
    }

    /// The first cluster that no count on disk says to be in use, nor any behind it.
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// Clusters that can be counted.
    pub fn limit(&self) -> u64 {
        self.blocks.len() as u64 * self.per_block()
    }

    /// Leaves clusters below `cluster` as they are.
    pub fn skip_to(&mut self, cluster: u64) {
        self.counted = self.counted.max(cluster);
    }

    /// Writes a count of 1 for all clusters from those that are counted up to what `end` says, blocks that `allocate`
    /// gives included. Returns up to where, for [`Refcounts::done`]. Does not sync; nothing leads to new blocks yet.
    pub fn count(
        &mut self,
        place: &dyn Place,
        end: &dyn Fn() -> u64,
        allocate: &dyn Fn() -> Result<u64>,
    ) -> Result<u64> {
        // A block may be needed for a block.
        loop {
            let until = end();
            let wanted = self.counted / self.per_block()..until.div_ceil(self.per_block());
            let missing: Vec<usize> =
                wanted.map(|n| n as usize).filter(|n| self.blocks.get(*n).is_none_or(|block| *block == 0)).collect();
            if missing.is_empty() || self.counted == until {
                break;
            }
            for block in missing {
                let cluster = allocate()?;
                let entry = self.blocks.get_mut(block).ok_or_else(|| place.damaged("its reference counts are full"))?;
                *entry = cluster << self.bits;
                self.fresh.push(block);
            }
        }
        let until = end();
        let mut at = self.counted;
        while at < until {
            let block = (at / self.per_block()) as usize;
            let first = block as u64 * self.per_block();
            let stop = until.min(first + self.per_block());
            // A new block is written whole: a device holds anything.
            let is_fresh = self.fresh.contains(&block);
            let start = if is_fresh { first } else { at };
            let upto = if is_fresh { first + self.per_block() } else { stop };
            let bytes: Vec<u8> = (start..upto).flat_map(|n| [0, u8::from((at..stop).contains(&n))]).collect();
            place.put(&bytes, self.blocks[block] + (start - first) * 2)?;
            at = stop;
        }
        Ok(until)
    }

    /// After a sync: names new blocks in the table. Whether another sync has to follow before anything refers to
    /// what they count.
    pub fn publish(&mut self, place: &dyn Place) -> Result<bool> {
        for block in &self.fresh {
            place.put(&table_bytes(&self.blocks[*block..*block + 1]), self.at + *block as u64 * 8)?;
        }
        Ok(!self.fresh.is_empty())
    }

    /// All of that is on disk.
    pub fn done(&mut self, until: u64) {
        self.counted = until;
        self.fresh.clear();
    }

    /// Gives clusters back that nothing leads to any more.
    pub fn free(&self, place: &dyn Place, clusters: std::ops::Range<u64>) -> Result<()> {
        for cluster in clusters {
            let (block, n) = (cluster / self.per_block(), cluster % self.per_block());
            if let Some(block) = self.blocks.get(block as usize).filter(|block| **block != 0) {
                place.put(&[0, 0], block + n * 2)?;
            }
        }
        Ok(())
    }
}
