//! Writing and zeroing: overwrites in place, new clusters and their L2 entries in memory.

use std::sync::atomic::Ordering::*;

use super::super::compressed::Compressed;
use super::look::{What, is_foreign};
use super::table::Table;
use super::{COMPRESSED, COPIED, DIRTY_LIMIT, Image, OFFSET, SHARDS, SUBCLUSTERS, ZERO, lock};
use crate::error::Result;

/// Reads what the parents show: the whole buffer, from a byte of the disk on.
pub(crate) type Below<'a> = &'a dyn Fn(&mut [u8], u64) -> Result<()>;

impl Image {
    /// Writes `bytes`, a whole number of sectors. `below` reads what the parents have where the image has nothing.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64, below: Below) -> Result<()> {
        self.check_writable()?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            // Not further than one L2 table.
            let len = (bytes.len() - done).min((self.region() - at % self.region()) as usize);
            let (what, run) = self.look(at, len as u64)?;
            let run = run as usize;
            if let What::Data(host, true) = what {
                self.check_host(host, run as u64)?;
                self.place.put(&bytes[done..done + run], host)?;
                done += run;
                continue;
            }
            let region = (at / self.region()) as usize;
            let _one = lock(&self.regions[region % SHARDS]);
            if self.take_over(at)? {
                continue;
            }
            let (what, run) = self.look(at, len as u64)?;
            if !matches!(what, What::Data(..)) {
                self.write_new(what, &bytes[done..done + run as usize], at, below)?;
                done += run as usize;
            }
        }
        if self.dirty.load(Relaxed) << self.bits() > DIRTY_LIMIT { self.flush() } else { Ok(()) }
    }

    /// Refuses what an entry must not lead to: a guest would write over the tables.
    fn check_host(&self, host: u64, len: u64) -> Result<()> {
        let mut clusters = host >> self.bits()..(host + len).div_ceil(self.header.cluster());
        match clusters.find(|cluster| self.tables.contains(cluster)) {
            None => Ok(()),
            Some(table) => {
                Err(self.place.damaged(format!("no data can lie at {}: a table is there", table << self.bits())))
            }
        }
    }

    /// Gives the cluster at `at` a place of its own, if its data is compressed or may be another's as well: all of it is
    /// copied there. Whether that was so. The caller holds the region's lock.
    fn take_over(&self, at: u64) -> Result<bool> {
        let (region, cluster) = ((at / self.region()) as usize, self.header.cluster());
        if self.l1[region].load(Acquire) == 0 {
            return Ok(false);
        }
        let (entry, map) = {
            let mut shard = self.shard(region);
            let table = self.table(&mut shard, region)?;
            let n = ((at % self.region()) >> self.bits()) as usize;
            (table.entries[n], table.map(n))
        };
        let (start, old) = (at - at % cluster, entry & OFFSET);
        let is_data = self.header.is_extended() || entry & ZERO == 0;
        if !is_foreign(entry) || (entry & COMPRESSED == 0 && !is_data) {
            return Ok(false);
        }
        let bytes = if entry & COMPRESSED != 0 {
            self.inflate(entry)?
        } else {
            // Refuses impossible places.
            self.look(at, 1)?;
            let mut bytes = vec![0; cluster as usize];
            if self.header.is_extended() {
                // Of the last cluster of a file there is only as much as has data.
                self.place.get(&mut bytes, old)?;
            } else {
                self.place.get_exact(&mut bytes, old, "a cluster")?;
            }
            bytes
        };
        let host = self.allocate(1)? << self.bits();
        self.place.put(&bytes, host)?;
        let map = if entry & COMPRESSED != 0 { u64::from(u32::MAX) } else { map };
        self.publish(start, 1, |_| (host | COPIED, map))?;
        Ok(true)
    }

    /// Writes to what has no data of this image yet; what it shows around `bytes` stays. The caller holds the region's
    /// lock.
    fn write_new(&self, what: What, bytes: &[u8], at: u64, below: Below) -> Result<()> {
        let (cluster, unit) = (self.header.cluster(), self.unit());
        let stop = at + bytes.len() as u64;
        let (start, end) = (at - at % unit, stop.next_multiple_of(unit));
        let (host, is_blank) = match what {
            What::Zero(Some(host)) | What::Absent(Some(host)) => {
                self.check_host(host, bytes.len() as u64)?;
                (host - at % cluster, false)
            }
            _ => {
                let count = end.div_ceil(cluster) - start / cluster;
                (self.allocate(count)? << self.bits(), !self.place.is_device())
            }
        };
        // Of the first byte of the first cluster.
        let host_of = |disk: u64| host + (disk - (start - start % cluster));
        let around = |from: u64, until: u64| -> Result<()> {
            let mut buf = vec![0; (until - from) as usize];
            if matches!(what, What::Absent(_)) {
                let inside = (self.virtual_size().saturating_sub(from)).min(buf.len() as u64) as usize;
                below(&mut buf[..inside], from)?;
            }
            if is_blank && buf.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            self.place.put(&buf, host_of(from))
        };
        if start < at {
            around(start, at)?;
        }
        if stop < end {
            around(stop, end)?;
        }
        self.place.put(bytes, host_of(at))?;
        self.set(start, end, Some(host))
    }

    /// Makes a stretch read as zeroes whatever the parents have. Allocates only for parts of clusters.
    pub(crate) fn zero(&self, offset: u64, len: u64, below: Below) -> Result<()> {
        self.check_writable()?;
        let (cluster, unit) = (self.header.cluster(), self.unit());
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let part = (end - at).min(self.region() - at % self.region());
            let (what, run) = self.look(at, part)?;
            let until = at + run;
            match what {
                What::Data(host, true) => {
                    self.check_host(host, run)?;
                    self.place.zero(host, run)?;
                    at = until;
                    continue;
                }
                What::Zero(_) => {
                    at = until;
                    continue;
                }
                _ => {}
            }
            // Whole units of it, or to the end of the disk.
            let whole = if until == self.virtual_size() { until } else { until - until % unit };
            let is_whole = at.is_multiple_of(unit) && whole > at;
            if !is_whole {
                let run = run.min(unit - at % unit);
                self.write(&vec![0; run as usize], at, below)?;
                at += run;
                continue;
            }
            let _one = lock(&self.regions[(at / self.region()) as usize % SHARDS]);
            if self.look(at, part)? != (what, run) {
                continue;
            }
            // A compressed cluster, and one that is not this image's own, is replaced as a whole.
            let is_all = at.is_multiple_of(cluster) && (whole.is_multiple_of(cluster) || whole == self.virtual_size());
            if self.header.is_extended() && !is_all && self.take_over(at)? {
                continue;
            }
            self.set_zero(at, whole)?;
            at = whole;
        }
        if self.dirty.load(Relaxed) << self.bits() > DIRTY_LIMIT { self.flush() } else { Ok(()) }
    }

    /// Whole units become zeroes. Nothing in version 2 says so of a cluster without a place, so it gets one.
    fn set_zero(&self, start: u64, end: u64) -> Result<()> {
        if self.header.version > 2 {
            return self.set(start, end, None);
        }
        let count = end.div_ceil(self.header.cluster()) - start / self.header.cluster();
        let host = self.allocate(count)? << self.bits();
        if self.place.is_device() {
            self.place.zero(host, count << self.bits())?;
        }
        self.set(start, end, Some(host))
    }

    /// Sets whole units from `start` to `end`, which lie in one region and may end with the disk, in memory: to data in
    /// the clusters from `host` on, the first of which is for that of `start`; or to zeroes. A cluster that is not this
    /// image's own must be covered as a whole, or be zeroes.
    fn set(&self, start: u64, end: u64, host: Option<u64>) -> Result<()> {
        let (cluster, unit) = (self.header.cluster(), self.unit());
        let first = start - start % cluster;
        let count = end.div_ceil(cluster) - start / cluster;
        if !self.header.is_extended() {
            return self.publish(first, count, |old| (host.map_or(ZERO, |host| (host + old.n * cluster) | COPIED), 0));
        }
        self.publish(first, count, |old| {
            let at = first + old.n * cluster;
            let (from, until) = (start.max(at) - at, end.min(at + cluster) - at);
            let data = (from / unit..until.div_ceil(unit)).fold(0u64, |bits, n| bits | 1 << n);
            let zero = data << SUBCLUSTERS;
            match host {
                Some(host) => ((host + old.n * cluster) | COPIED, (old.map | data) & !zero),
                // The place set aside stays.
                None if !is_foreign(old.entry) => (old.entry, (old.map | zero) & !data),
                None => (0, u64::from(u32::MAX) << SUBCLUSTERS),
            }
        })
    }

    /// Sets the L2 entries of `count` clusters from byte `start` of the disk, all of one L2 table, in memory. Clusters
    /// that the entries led to before, and lead to no more, are counted down when the new entries are on disk.
    fn publish(&self, start: u64, count: u64, new: impl Fn(Old) -> (u64, u64)) -> Result<()> {
        let region = (start / self.region()) as usize;
        let mut shard = self.shard(region);
        let (was, all) = (self.l1[region].load(Acquire), self.entries());
        if was == 0 {
            let offset = self.allocate(1)? << self.bits();
            let maps = if self.header.is_extended() { vec![0; all] } else { Vec::new() };
            let (entries, maps) = (vec![0; all].into(), maps.into());
            shard.tables.insert(region, Table { entries, maps, changed: None, fresh: true, writing: false });
            self.l1[region].store(offset | COPIED, Release);
        } else if was & COPIED == 0 {
            // The table may be another's as well.
            self.table(&mut shard, region)?;
            let offset = self.allocate(1)? << self.bits();
            let table = self.table(&mut shard, region)?;
            table.fresh = true;
            if table.change(0..all) {
                self.dirty.fetch_add(1, Relaxed);
            }
            shard.released.push((was & OFFSET) >> self.bits());
            self.l1[region].store(offset | COPIED, Release);
        }
        shard.touched.insert(region);
        let bits = self.bits();
        let table = self.table(&mut shard, region)?;
        let first = ((start % self.region()) >> bits) as usize;
        let mut released = Vec::new();
        for n in 0..count {
            let at = first + n as usize;
            let old = Old { n, entry: table.entries[at], map: table.map(at) };
            let (entry, map) = new(old);
            if old.entry & COMPRESSED != 0 {
                released.extend(Compressed::of(old.entry, bits).clusters(bits));
            } else if old.entry & OFFSET != 0 && old.entry & OFFSET != entry & OFFSET {
                released.push((old.entry & OFFSET) >> bits);
            }
            table.entries[at] = entry;
            if let Some(place) = table.maps.get_mut(at) {
                *place = map;
            }
        }
        if table.change(first..first + count as usize) {
            self.dirty.fetch_add(1, Relaxed);
        }
        shard.released.extend(released);
        Ok(())
    }
}

/// An L2 entry before a change: the how manieth of the change it is, the entry, and its map.
#[derive(Clone, Copy)]
struct Old {
    n: u64,
    entry: u64,
    map: u64,
}
