//! The flush that makes the writes to an image survive: the order in which data, reference counts, L2 tables and L1
//! table reach the disk. Then clusters that nothing leads to any more are counted down and their space is given back.

use std::ops::Range;
use std::sync::atomic::Ordering::*;

use super::super::refcounts::Refcounts;
use super::{COPIED, Image, lock};
use crate::error::Result;
use crate::types::Mode;

impl Image {
    /// Makes everything written before survive a crash.
    ///
    /// 1. Write the reference counts of new clusters, new blocks of them, and new L2 tables. Nothing leads there.
    /// 2. Sync: all data written before is on disk.
    /// 3. If there are new blocks of reference counts, name them in their table; sync.
    /// 4. Write changed L2 entries, and L1 entries of new L2 tables.
    /// 5. Sync.
    /// 6. Count down the clusters that nothing leads to any more.
    ///
    /// If the table of reference counts has become too short, step 1 writes a longer one, and step 3 the header, which
    /// leads there.
    ///
    /// A crash before 4 leaves every sector as the last flush left it, and clusters that are counted in vain. Within 4
    /// to 5, any subset of the entries may have reached the disk, and each is true by itself. Without new clusters,
    /// one sync is all.
    ///
    /// # Errors
    /// [`crate::Error::Io`]. After a failed write (no space) it may be called again; after a failed sync the image is
    /// read-only.
    pub fn flush(&self) -> Result<()> {
        if self.mode == Mode::ReadOnly {
            return Ok(());
        }
        let mut refcounts = lock(&self.refcounts);
        self.check_writable()?;
        let (mut changed, mut released) = (Vec::new(), Vec::new());
        if self.dirty.load(Acquire) > 0 {
            for shard in &self.shards {
                let mut shard = lock(shard);
                for (region, table) in &mut shard.tables {
                    if let Some(span) = table.changed.take() {
                        table.writing = true;
                        let bytes = table.bytes(if table.fresh { 0..table.entries.len() } else { span.clone() });
                        changed.push(Changed { region: *region, fresh: table.fresh, bytes, span });
                    }
                }
                released.append(&mut shard.released);
            }
            self.dirty.fetch_sub(changed.len(), AcqRel);
            changed.sort_unstable_by_key(|table| table.region);
        }
        let refcounts = refcounts.as_mut().expect("it is open for writing");
        let outcome = self.put_all(refcounts, &changed);
        for done in &changed {
            let mut shard = self.shard(done.region);
            let Some(table) = shard.tables.get_mut(&done.region) else { continue };
            table.writing = false;
            if outcome.is_ok() {
                table.fresh = false;
            } else if table.change(done.span.clone()) {
                self.dirty.fetch_add(1, AcqRel);
            }
        }
        match outcome {
            Ok(outgrown) => released.extend(outgrown),
            Err(error) => {
                lock(&self.shards[0]).released.append(&mut released);
                return Err(error);
            }
        }
        if !released.is_empty() {
            // If it fails, they are counted in vain: to count them down once more would be worse.
            let unused = refcounts.release(&*self.place, released)?;
            lock(&self.unused).extend(unused);
        }
        Ok(())
    }

    /// Answers clusters that nothing leads to any more.
    fn put_all(&self, refcounts: &mut Refcounts, changed: &[Changed]) -> Result<Vec<u64>> {
        let place = &*self.place;
        let sync = || place.flush().inspect_err(|_| self.failed.store(true, Release));
        let until = refcounts.count(place, &|| self.end(), &|count| self.allocate(count))?;
        for table in changed.iter().filter(|table| table.fresh) {
            place.put(&table.bytes, self.l2(table.region))?;
        }
        sync()?;
        if refcounts.publish(place)? {
            sync()?;
        }
        let outgrown = refcounts.done(until);
        if changed.is_empty() {
            return Ok(outgrown);
        }
        let width = if self.header.is_extended() { 16 } else { 8 };
        for table in changed {
            if table.fresh {
                place.put(
                    &(self.l2(table.region) | COPIED).to_be_bytes(),
                    self.header.l1_offset + table.region as u64 * 8,
                )?;
            } else {
                place.put(&table.bytes, self.l2(table.region) + table.span.start as u64 * width)?;
            }
        }
        sync()?;
        Ok(outgrown)
    }

    /// The L1 table as it is on disk after a flush.
    pub(crate) fn l1_bytes(&self) -> Vec<u8> {
        self.l1.iter().flat_map(|entry| entry.load(Acquire).to_be_bytes()).collect()
    }

    /// Counts clusters down that nothing on disk leads to any more, durably.
    pub(crate) fn free(&self, clusters: Range<u64>) -> Result<()> {
        if let Some(refcounts) = &mut *lock(&self.refcounts) {
            let unused = refcounts.release(&*self.place, clusters.collect())?;
            lock(&self.unused).extend(unused);
        }
        self.place.flush()
    }

    /// Gives the space back of clusters that nothing leads to any more. The image must not be open anywhere else: a
    /// reader may have read an entry before it was changed. If the place cannot give space back, nothing happens.
    pub(crate) fn reclaim(&self) -> Result<()> {
        let mut unused = std::mem::take(&mut *lock(&self.unused));
        unused.sort_unstable();
        for run in unused.chunk_by(|a, b| a + 1 == *b) {
            let (at, len) = (run[0] << self.bits(), (run.len() as u64) << self.bits());
            if !self.place.punch(at, len).map_err(self.place.fail("discard in"))? {
                break;
            }
        }
        Ok(())
    }
}

/// An L2 table as a flush found it.
struct Changed {
    region: usize,
    fresh: bool,
    /// The table if it is new, else the changed entries.
    bytes: Vec<u8>,
    span: Range<usize>,
}
