//! The flush that makes the writes to an image survive: the order in which bitmaps, BAT entries, footer and batmap
//! reach the disk.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering::*;

use super::SECTOR;
use super::batmap::map_bytes;
use super::bitmap::Bitmap;
use super::image::{Image, lock};
use crate::error::Result;
use crate::types::Mode;

impl Image {
    /// Makes everything written before survive a crash.
    ///
    /// 1. Write the bitmaps of blocks that are new, and (files) a footer behind the last of them. No BAT entry
    ///    leads there yet.
    /// 2. Sync: all data written before is on disk.
    /// 3. Write the BAT entries of the new blocks, each within one sector, and the changed bitmaps of the others.
    /// 4. Sync.
    ///
    /// A crash before 3 leaves the image as the last flush left it. Within 3 to 4, any subset of the sectors may
    /// have reached the disk, and each is true by itself: an entry leads to a bitmap that is on disk, a bit to
    /// data that is. Without new bits or blocks, one sync is all, and none if nothing was written since the last flush.
    ///
    /// A block without a single sector of data is left out: nothing was written to it yet, or the write failed. One
    /// whose entry was written by a flush that failed afterwards may be in the BAT on disk: its bitmap is written in 3,
    /// and so is its entry once more.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io): the first one, after everything else was done. After a failed write (no space)
    /// it may be called again; after a failed sync the image is read-only.
    pub fn flush(&self) -> Result<()> {
        if self.mode == Mode::ReadOnly {
            return Ok(());
        }
        let _one = lock(&self.flushing);
        self.check_writable()?;
        // Before the sync: what is written from now on is for the next flush.
        let unsynced = self.unsynced.swap(false, AcqRel);
        let (mut fresh, end) = {
            let alloc = lock(&self.alloc);
            (alloc.fresh.clone(), alloc.end)
        };
        let mut changed = Vec::new();
        if self.dirty.load(Acquire) > 0 {
            for shard in &self.shards {
                for (block, entry) in &mut lock(shard).0 {
                    if entry.dirty && entry.map.is_empty() {
                        fresh.remove(block);
                    } else if entry.dirty {
                        (entry.dirty, entry.writing) = (false, true);
                        changed.push((*block, entry.map.clone()));
                    }
                }
            }
            self.dirty.fetch_sub(changed.len(), AcqRel);
            changed.sort_unstable_by_key(|(block, _)| *block);
        }
        if !unsynced && fresh.is_empty() && changed.is_empty() && lock(&self.alloc).unsure.is_empty() {
            return Ok(());
        }
        let outcome = self.publish(fresh, end, &changed);
        for (block, _) in &changed {
            if let Some(entry) = self.shard(*block).0.get_mut(block) {
                entry.writing = false;
                if outcome.is_err() && !entry.dirty {
                    entry.dirty = true;
                    self.dirty.fetch_add(1, AcqRel);
                }
            }
        }
        outcome
    }

    /// Copies a block behind the end of data, and behind `room`. The new place is not in the BAT on disk until
    /// [`Image::publish_bat`], to be called after a sync. The image must not be in use anywhere else.
    pub(crate) fn relocate(&self, block: u32, room: u64) -> Result<()> {
        let Some(old) = self.entry(block) else { return Ok(()) };
        let new = self.allocate(&mut lock(&self.alloc), room)?;
        let from = u64::from(old) * SECTOR;
        self.place.copy_to(from, SECTOR + self.block_size(), &*self.place, u64::from(new) * SECTOR, &mut Vec::new())?;
        self.bat.set(block, new);
        Ok(())
    }

    /// Writes the BAT entries of `blocks`, in ascending order; sync.
    pub(crate) fn publish_bat(&self, blocks: &[u32]) -> Result<()> {
        self.put_entries(blocks.iter().copied())?;
        self.place.flush()
    }

    /// Writes BAT entries, runs of them together but each write within one sector.
    fn put_entries(&self, blocks: impl Iterator<Item = u32>) -> Result<()> {
        let mut rest = blocks.peekable();
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|next| *next == last + 1 && next / 128 == first / 128) {
                last = next;
            }
            let entries: Vec<u8> = (first..=last).flat_map(|b| self.bat.get(b).to_be_bytes()).collect();
            self.place.put(&entries, self.header.table_offset() + u64::from(first) * 4)?;
        }
        Ok(())
    }

    fn publish(&self, mut fresh: BTreeSet<u32>, end: u64, changed: &[(u32, Bitmap)]) -> Result<()> {
        let place = &*self.place;
        let sync = || place.flush().inspect_err(|_| self.failed.store(true, Release));
        let put = |block: &u32, map: &Bitmap| match self.entry(*block) {
            Some(entry) => place.put(&map.to_bytes(), u64::from(entry) * SECTOR),
            None => Ok(()),
        };
        let mut outcome = Ok(());
        let (new, old): (Vec<_>, Vec<_>) = changed.iter().partition(|(block, _)| fresh.contains(block));
        for (block, map) in &new {
            if let Err(error) = put(block, map) {
                fresh.remove(block);
                outcome = outcome.and(Err(error));
            }
        }
        if !fresh.is_empty() && !place.is_device() {
            outcome = outcome.and(self.put_last_footer(end * SECTOR));
        }
        sync()?;
        for (block, map) in &old {
            outcome = outcome.and(put(block, map));
        }
        let unsure = {
            let mut alloc = lock(&self.alloc);
            alloc.fresh.retain(|block| !fresh.contains(block));
            alloc.unsure.append(&mut fresh);
            alloc.unsure.clone()
        };
        if old.is_empty() && unsure.is_empty() {
            return outcome;
        }
        let entries = self.put_entries(unsure.iter().copied());
        sync()?;
        if entries.is_ok() {
            // This flush is the only one, so there are no others.
            lock(&self.alloc).unsure.clear();
        }
        outcome.and(entries)
    }

    /// Writes the footer behind the last block of a file, at byte `end`. It is a copy, so that without space for it the
    /// file is only made long enough for its last block.
    fn put_last_footer(&self, end: u64) -> Result<()> {
        let place = &*self.place;
        match place.write_at(&self.meta.footer.0, end) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull && place.len()? < end + SECTOR => {
                place.resize_to(end + SECTOR)
            }
            Err(e) if e.kind() == io::ErrorKind::StorageFull => Ok(()),
            other => other.map_err(place.fail("write")),
        }
    }

    /// Where the data of a file ends, sectors: behind the last block that the BAT on disk leads to.
    fn end_of_data(&self) -> u64 {
        let alloc = lock(&self.alloc);
        if alloc.fresh.is_empty() {
            return alloc.end;
        }
        let blocks = (0..self.blocks()).filter(|block| !alloc.fresh.contains(block));
        let ends = blocks.filter_map(|block| Some(u64::from(self.entry(block)?) + 1 + u64::from(self.sectors())));
        ends.max().unwrap_or(0).max(self.headers_end() / SECTOR)
    }

    /// Flushes, and writes what only a closed image has on disk:
    ///
    /// 1. [`Image::flush`].
    /// 2. The footer behind the last block, where a file then ends, unless it is there (libvhd reads zeros for the
    ///    last sector of a file that has lost it); the batmap, then its header with the checksum;
    ///    sync.
    ///
    /// A crash before 2 leaves an older batmap, which is right as far as it goes; within 2, perhaps a batmap of
    /// wrong checksum: it counts as empty here and is written anew by the next close, while libvhd refuses to
    /// write to such an image. An image that is dropped without this is as after a crash.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn close(self) -> Result<()> {
        if self.mode == Mode::ReadOnly {
            return Ok(());
        }
        self.flush()?;
        let place = &*self.place;
        let end = if place.is_device() { place.len()? - SECTOR } else { self.end_of_data() * SECTOR };
        let mut last = [0; SECTOR as usize];
        place.get(&mut last, end)?;
        let footer_is_there = last == self.meta.footer.0 && place.len()? == end + SECTOR;
        if footer_is_there && !self.written.load(Acquire) && !self.batmap_stale.load(Acquire) {
            return Ok(());
        }
        if !footer_is_there {
            if place.is_device() {
                place.put(&self.meta.footer.0, end)?;
            } else {
                self.put_last_footer(end)?;
                place.resize_to(end + SECTOR)?;
            }
        }
        if let Some(header) = &self.batmap {
            let map = self.full_map();
            let mut new = header.clone();
            new.seal(&map);
            if map.len() as u64 <= u64::from(header.sectors()) * SECTOR
                && (new != *header || self.batmap_stale.load(Acquire))
            {
                place.put(&map, header.map_offset())?;
                place.put(&new.0, self.header.bat_end())?;
            }
        }
        place.flush()
    }

    /// The batmap as it should be: a bit for each block known to be full, within the bytes that are summed.
    fn full_map(&self) -> Vec<u8> {
        let mut map = vec![0; map_bytes(self.virtual_size())];
        for (block, _) in self.allocated().filter(|(block, _)| self.is_full(*block)) {
            if let Some(byte) = map.get_mut(block as usize / 8) {
                *byte |= 0x80 >> (block % 8);
            }
        }
        map
    }
}
