//! One image, opened: L1 table and the L2 tables in use in memory, data on the place.
//!
//! All methods take `&self` and may be called from several threads. Reads and overwrites take a short lock on one
//! L2 table; allocating writes to the same L2 table (512 MiB of disk) wait for each other, because what a cluster
//! held before is copied.
//!
//! # What is in memory only
//! New L2 entries, new L2 tables and reference counts stay in memory until [`Image::flush`] (see there for the
//! order). A crash forgets them and with them the writes since the last flush, as the write cache of a disk would.
//!
//! # When an fsync fails
//! What was written is lost and nobody knows which part. The image refuses everything but reads from then on; the
//! owner opens it anew.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::compressed::Compressed;
use super::header::{Header, field};
use super::refcounts::Refcounts;
use super::{Storage, read_table};
use crate::error::{Error, Result};
use crate::types::{Mode, Size};

/// "Refcount is exactly one", in L1 and L2 entries.
pub(crate) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
/// "The cluster reads as all zeros."
const ZERO: u64 = 1;
/// Bits of an L1 or L2 entry that are an offset.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Subclusters of a cluster, where an entry has a map of them.
const SUBCLUSTERS: u64 = 32;
const SHARDS: usize = 16;
/// Bytes of L2 tables kept: of clusters of 64 KiB, for 64 GiB of disk.
const TABLES: usize = 8 << 20;
/// So many bytes of changed L2 tables make a writer flush.
const DIRTY_LIMIT: usize = 16 << 20;

/// An opened image; see the module.
#[derive(Debug)]
pub struct Image {
    place: Arc<dyn Storage>,
    mode: Mode,
    header: Header,
    /// Where each L2 table is, with [`COPIED`] if nothing else leads there; 0: there is none.
    l1: Box<[AtomicU64]>,
    shards: [Mutex<Shard>; SHARDS],
    /// Held by who allocates, by L2 table.
    regions: [Mutex<()>; SHARDS],
    /// Changed L2 tables.
    dirty: AtomicUsize,
    /// The first cluster that nothing was ever allocated at,
    end: Mutex<u64>,
    /// what it was when the image was opened,
    first_end: u64,
    /// and what it can be at most.
    limit: u64,
    /// `None` if it is open for reading.
    refcounts: Mutex<Option<Refcounts>>,
    /// The clusters of header and tables when the image was opened for writing: no data can lie there.
    tables: HashSet<u64>,
    /// Clusters that nothing leads to any more.
    unused: Mutex<Vec<u64>>,
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Shard {
    tables: HashMap<usize, Table>,
    /// Regions that were written to.
    touched: HashSet<usize>,
    /// Clusters that an entry on disk leads to, and in memory none does.
    released: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Table {
    pub entries: Box<[u64]>,
    /// Of extended entries, what each subcluster is: bits 0 to 31 that it has data, 32 to 63 that it reads as zeroes.
    maps: Box<[u64]>,
    /// Entries that differ from the disk.
    changed: Option<Range<usize>>,
    /// The L1 table on disk does not lead here.
    fresh: bool,
    /// A flush is writing an earlier state of it.
    writing: bool,
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

    fn map(&self, n: usize) -> u64 {
        self.maps.get(n).copied().unwrap_or(0)
    }

    fn bytes(&self, span: Range<usize>) -> Vec<u8> {
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
    fn change(&mut self, span: Range<usize>) -> bool {
        let was = self.changed.take();
        let is_first = was.is_none();
        self.changed = Some(was.map_or(span.clone(), |was| was.start.min(span.start)..was.end.max(span.end)));
        is_first
    }
}

/// What a stretch of the disk is in one image.
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
    /// What `bytes` further on continues this.
    fn on(self, bytes: u64) -> What {
        match self {
            What::Absent(host) => What::Absent(host.map(|host| host + bytes)),
            What::Zero(host) => What::Zero(host.map(|host| host + bytes)),
            What::Data(host, own) => What::Data(host + bytes, own),
            What::Compressed(entry) => What::Compressed(entry),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Image {
    /// Opens an image. For writing, it must be one that [`Image`] can write; see [`super`].
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    pub fn open(place: Arc<dyn Storage>, mode: Mode) -> Result<Self> {
        let p = &*place;
        let mut header = Header::read(p)?;
        if mode == Mode::ReadWrite {
            header.refuse_unwritable(p)?;
        }
        let l1 = read_table(p, header.l1_offset, header.l1_size as usize, "the L1 table")?;
        let (size, cluster) = (p.len()?, header.cluster());
        let mut tables = vec![0];
        let l1_at = header.l1_offset / cluster;
        tables.extend(l1_at..l1_at + (u64::from(header.l1_size) * 8).div_ceil(cluster));
        for entry in l1.iter().map(|entry| entry & OFFSET).filter(|entry| *entry != 0) {
            if !entry.is_multiple_of(cluster) || entry + cluster > size.next_multiple_of(cluster) {
                return Err(p.damaged(format!("an L2 table cannot lie at {entry}")));
            }
            tables.push(entry / cluster);
        }
        let (mut refcounts, mut end, mut limit) = (None, 0, 0);
        if mode == Mode::ReadWrite {
            let mut counts = Refcounts::open(p, &header)?;
            if !p.is_device() {
                // Behind the last count may lie what a crash left: neither used again nor counted.
                counts.skip_to(size.div_ceil(cluster));
            }
            (end, limit) = (counts.counted(), counts.limit());
            tables.extend(counts.clusters());
            refcounts = Some(counts);
        }
        tables.sort_unstable();
        if let Some(twice) = tables.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(p.damaged(format!("two of its tables lie at {}", twice[0] * cluster)));
        }
        if mode == Mode::ReadWrite && header.autoclear != 0 {
            // Bitmaps and the like, which are wrong as soon as something is written.
            header.autoclear = 0;
            Header::patch(p, &[(field::AUTOCLEAR, &[0; 8])])?;
            p.flush()?;
        }
        Ok(Image {
            mode,
            l1: l1.into_iter().map(|entry| AtomicU64::new(entry & (OFFSET | COPIED))).collect(),
            shards: Default::default(),
            regions: Default::default(),
            dirty: AtomicUsize::new(0),
            end: Mutex::new(end),
            first_end: end,
            limit,
            tables: if refcounts.is_some() { tables.into_iter().collect() } else { HashSet::new() },
            refcounts: Mutex::new(refcounts),
            unused: Mutex::default(),
            failed: AtomicBool::new(false),
            header,
            place,
        })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes the guest sees.
    pub fn virtual_size(&self) -> u64 {
        self.header.virtual_size
    }

    pub fn place(&self) -> &Arc<dyn Storage> {
        &self.place
    }

    fn bits(&self) -> u32 {
        self.header.cluster_bits
    }

    /// Bytes of disk that one L2 table is for.
    pub(crate) fn region(&self) -> u64 {
        1 << self.header.region_bits()
    }

    pub(super) fn entries(&self) -> usize {
        1 << (self.header.region_bits() - self.bits())
    }

    /// Bytes that are data, zeroes or absent as a whole: a cluster, or part of one.
    fn unit(&self) -> u64 {
        if self.header.is_extended() { self.header.cluster() / SUBCLUSTERS } else { self.header.cluster() }
    }

    /// Where the L2 tables are.
    pub(super) fn l2_tables(&self) -> impl Iterator<Item = u64> {
        self.l1.iter().map(|entry| entry.load(Acquire) & OFFSET).filter(|offset| *offset != 0)
    }

    /// Whether no cluster of the disk has an entry.
    pub fn is_blank(&self) -> bool {
        self.l2_tables().next().is_none()
    }

    fn l2(&self, region: usize) -> u64 {
        self.l1[region].load(Acquire) & OFFSET
    }

    /// The L2 table of a region, read if it is not known; the L1 entry is not 0.
    fn table<'a>(&self, shard: &'a mut Shard, region: usize) -> Result<&'a mut Table> {
        if !shard.tables.contains_key(&region) {
            if shard.tables.len() >= ((TABLES / SHARDS) >> self.bits()).max(1) {
                shard.tables.retain(|_, table| table.changed.is_some() || table.writing);
            }
            let table = Table::read(&*self.place, self.l2(region), self.entries(), self.header.is_extended())?;
            if self.mode == Mode::ReadWrite && !shard.touched.contains(&region) {
                self.refuse_beyond(&table)?;
            }
            shard.tables.insert(region, table);
        }
        Ok(shard.tables.get_mut(&region).expect("just put there"))
    }

    /// Refuses entries that lead to where something new is allocated.
    fn refuse_beyond(&self, table: &Table) -> Result<()> {
        let is_beyond = |entry: u64| match entry & COMPRESSED {
            0 => (entry & OFFSET) >> self.bits() >= self.first_end,
            _ => Compressed::of(entry, self.bits()).clusters(self.bits()).end > self.first_end,
        };
        match table.entries.iter().find(|entry| is_beyond(**entry)) {
            None => Ok(()),
            Some(entry) => Err(self.place.damaged(format!("it ends before what an L2 entry leads to ({entry:#x})"))),
        }
    }

    fn shard(&self, region: usize) -> MutexGuard<'_, Shard> {
        lock(&self.shards[region % SHARDS])
    }

    /// What the disk is at `offset`, and for how many bytes, at most `len`. Offset and length lie in the disk.
    pub(crate) fn look(&self, offset: u64, len: u64) -> Result<(What, u64)> {
        let region = (offset / self.region()) as usize;
        if self.l1[region].load(Acquire) == 0 {
            let none = self.l1[region..].iter().take_while(|entry| entry.load(Relaxed) == 0).count();
            let until = (region + none) as u64 * self.region();
            return Ok((What::Absent(None), len.min(until - offset)));
        }
        let mut shard = self.shard(region);
        let table = self.table(&mut shard, region)?;
        let (cluster, unit) = (self.header.cluster(), self.unit());
        let within = offset % self.region();
        let what = self.what(table, within)?;
        let mut run = unit - offset % unit;
        while run < len && within + run < self.region() {
            let at = within + run;
            // What is not this image's own is not one with its neighbours: it gets another place as a whole.
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

    /// What a table says of a byte of its region.
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

    fn check_writable(&self) -> Result<()> {
        if self.mode == Mode::ReadOnly {
            return Err(self.place.fail("write")(io::Error::from_raw_os_error(nix::libc::EROFS)));
        }
        if self.failed.load(Acquire) {
            return Err(self.place.fail("write after a failed sync to")(io::Error::from_raw_os_error(nix::libc::EIO)));
        }
        Ok(())
    }

    /// The first of `count` new clusters. In a file they read as zeroes.
    pub(crate) fn allocate(&self, count: u64) -> Result<u64> {
        let mut end = lock(&self.end);
        let first = *end;
        if first + count > self.limit {
            return Err(Error::TooBig {
                what: "a qcow2",
                bytes: (first + count) << self.bits(),
                limit: format!(
                    "{} has clusters of {} and can be {} at most",
                    self.place.path().display(),
                    Size(self.header.cluster()),
                    Size(self.limit << self.bits())
                ),
            });
        }
        let bytes = (first + count) << self.bits();
        if !self.place.is_device() {
            // Never shorter: all that is written lies below the end.
            self.place.resize_to(bytes)?;
        } else if bytes > self.place.len()? {
            return Err(self.place.fail("allocate a cluster in")(io::Error::from_raw_os_error(nix::libc::ENOSPC)));
        }
        *end += count;
        Ok(first)
    }

    fn end(&self) -> u64 {
        *lock(&self.end)
    }

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

    /// Gives back the space of what is in this image; it reads as zeroes afterwards. Where the place cannot do that,
    /// nothing happens: a discard is a wish.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        let mut at = offset;
        while at < offset + len {
            let (what, run) = self.look(at, offset + len - at)?;
            if let What::Data(host, true) = what {
                self.check_host(host, run)?;
                self.place.punch(host, run).map_err(self.place.fail("discard in"))?;
            }
            at += run;
        }
        Ok(())
    }

    /// Sets whole units from `start` to `end`, which lie in one region and may end with the disk, in memory: to data in
    /// the clusters from `host` on, the first of which is for that of `start`; or to zeroes. What is not this image's own
    /// must be covered as a whole, or be zeroes.
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

    /// Sets the L2 entries of `count` clusters from byte `start` of the disk, all of one L2 table, in memory. What they
    /// led to before, and lead to no more, is counted down when that is on disk.
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
    /// [`Error::Io`]. After a failed write (no space) it may be called again; after a failed sync the image is
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

    /// Gives the space back of clusters that nothing leads to any more. Nobody else may have the image open: a reader may
    /// have read an entry before it was changed. Where the place cannot do that, nothing happens.
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

/// Whether an L2 entry leads to data that is compressed, or may be another's as well.
fn is_foreign(entry: u64) -> bool {
    entry & COMPRESSED != 0 || (entry & OFFSET != 0 && entry & COPIED == 0)
}

/// An L2 entry before a change: the how manieth of the change it is, the entry, and its map.
#[derive(Clone, Copy)]
struct Old {
    n: u64,
    entry: u64,
    map: u64,
}

/// Reads what the parents show: the whole buffer, from a byte of the disk on.
pub(crate) type Below<'a> = &'a dyn Fn(&mut [u8], u64) -> Result<()>;

/// An L2 table as a flush found it.
struct Changed {
    region: usize,
    fresh: bool,
    /// The table if it is new, else the changed entries.
    bytes: Vec<u8>,
    span: Range<usize>,
}
