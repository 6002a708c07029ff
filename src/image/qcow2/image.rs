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

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::header::{COMPRESSION, CORRUPT, DIRTY, Header};
use super::refcounts::Refcounts;
use super::{Place, read_table, table_bytes};
use crate::error::{Error, Result};
use crate::types::Mode;

/// "Refcount is exactly one", in L1 and L2 entries.
pub(crate) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// "The cluster reads as all zeros."
const ZERO: u64 = 1;
/// Bits of an L1 or L2 entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const SHARDS: usize = 16;
/// Bytes of L2 tables kept: of clusters of 64 KiB, for 64 GiB of disk.
const TABLES: usize = 8 << 20;
/// So many bytes of changed L2 tables make a writer flush.
const DIRTY_LIMIT: usize = 16 << 20;

/// An opened image; see the module.
#[derive(Debug)]
pub struct Image {
    place: Arc<dyn Place>,
    mode: Mode,
    header: Header,
    /// Offset of each L2 table; 0: there is none.
    l1: Box<[AtomicU64]>,
    shards: [Mutex<Shard>; SHARDS],
    /// Held by who allocates, by L2 table.
    regions: [Mutex<()>; SHARDS],
    /// Changed L2 tables.
    dirty: AtomicUsize,
    /// The first cluster that nothing was ever allocated at.
    end: Mutex<u64>,
    /// `None` if it is open for reading.
    refcounts: Mutex<Option<Refcounts>>,
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Shard(HashMap<usize, Table>);

#[derive(Debug)]
struct Table {
    entries: Box<[u64]>,
    /// Entries that differ from the disk.
    changed: Option<Range<usize>>,
    /// The L1 table on disk does not lead here.
    fresh: bool,
    /// A flush is writing an earlier state of it.
    writing: bool,
}

/// What a stretch of the disk is in one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The parent has it.
    Absent,
    /// Reads as zeroes; the clusters set aside for it, if any.
    Zero(Option<u64>),
    /// Data, from this byte of the file; and whether it may be overwritten there.
    Data(u64, bool),
    /// Compressed data: the L2 entry. The stretch does not leave the cluster.
    Compressed(u64),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Image {
    /// Opens an image. For writing, it must be one that [`Image`] can write; see [`super`].
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    pub fn open(place: Arc<dyn Place>, mode: Mode) -> Result<Self> {
        let p = &*place;
        let mut header = Header::read(p)?;
        let l1 = read_table(p, header.l1_offset, header.l1_size as usize, "the L1 table")?;
        let size = p.len()?;
        let cluster = header.cluster();
        for entry in l1.iter().map(|entry| entry & OFFSET).filter(|entry| *entry != 0) {
            if !entry.is_multiple_of(cluster) || entry + cluster > size.next_multiple_of(cluster) {
                return Err(p.damaged(format!("an L2 table cannot lie at {entry}")));
            }
        }
        let (mut refcounts, mut end) = (None, 0);
        if mode == Mode::ReadWrite {
            let unsupported = |why: &str| {
                Err(Error::Unsupported { op: "writing this qcow2", why: format!("{}: {why}", p.path().display()) })
            };
            if header.incompatible & (DIRTY | CORRUPT) != 0 {
                return unsupported("its last writer did not finish; qemu-img check -r all mends it");
            }
            if header.version != 3 {
                return unsupported("it is of version 2; qemu-img amend -o compat=1.1 makes it version 3");
            }
            if header.snapshots.0 != 0 || l1.iter().any(|entry| entry & OFFSET != 0 && entry & COPIED == 0) {
                return unsupported("it has internal snapshots");
            }
            let mut counts = Refcounts::open(p, &header)?;
            if !p.is_device() {
                // Behind the last count may lie what a crash left: neither used again nor counted.
                counts.skip_to(size.div_ceil(cluster));
            }
            end = counts.counted();
            refcounts = Some(counts);
            if header.autoclear != 0 {
                // Bitmaps and the like, which are wrong as soon as something is written.
                header.autoclear = 0;
                header.put(p)?;
            }
        }
        Ok(Image {
            mode,
            l1: l1.into_iter().map(|entry| AtomicU64::new(entry & OFFSET)).collect(),
            shards: Default::default(),
            regions: Default::default(),
            dirty: AtomicUsize::new(0),
            end: Mutex::new(end),
            refcounts: Mutex::new(refcounts),
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

    pub fn place(&self) -> &Arc<dyn Place> {
        &self.place
    }

    fn bits(&self) -> u32 {
        self.header.cluster_bits
    }

    /// Bytes of disk that one L2 table is for.
    pub(crate) fn region(&self) -> u64 {
        1 << (2 * self.bits() - 3)
    }

    fn entries(&self) -> usize {
        1 << (self.bits() - 3)
    }

    /// The L2 table of a region, read if it is not known; the L1 entry is not 0.
    fn table<'a>(&self, shard: &'a mut Shard, region: usize) -> Result<&'a mut Table> {
        if !shard.0.contains_key(&region) {
            if shard.0.len() >= ((TABLES / SHARDS) >> self.bits()).max(1) {
                shard.0.retain(|_, table| table.changed.is_some() || table.writing);
            }
            let offset = self.l1[region].load(Acquire);
            let entries = read_table(&*self.place, offset, self.entries(), "an L2 table")?.into();
            shard.0.insert(region, Table { entries, changed: None, fresh: false, writing: false });
        }
        Ok(shard.0.get_mut(&region).expect("just put there"))
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
            return Ok((What::Absent, len.min(until - offset)));
        }
        let mut shard = self.shard(region);
        let table = self.table(&mut shard, region)?;
        let first = ((offset % self.region()) >> self.bits()) as usize;
        let within = offset % self.header.cluster();
        let what = self.entry(table.entries[first], within)?;
        let mut run = self.header.cluster() - within;
        for entry in &table.entries[first + 1..] {
            if run >= len || matches!(what, What::Compressed(_)) {
                break;
            }
            let next = match what {
                What::Data(host, writable) => What::Data(host + run, writable),
                What::Zero(Some(host)) => What::Zero(Some(host + run)),
                what => what,
            };
            if self.entry(*entry, 0)? != next {
                break;
            }
            run += self.header.cluster();
        }
        Ok((what, run.min(len)))
    }

    /// What an L2 entry says of byte `within` of its cluster.
    fn entry(&self, entry: u64, within: u64) -> Result<What> {
        if entry & COMPRESSED != 0 {
            return Ok(What::Compressed(entry));
        }
        let host = entry & OFFSET;
        // Standard entries of version 2 have no zero flag.
        let zero = self.header.version > 2 && entry & ZERO != 0;
        let own = entry & COPIED != 0;
        if host == 0 {
            return Ok(if zero { What::Zero(None) } else { What::Absent });
        }
        if !host.is_multiple_of(self.header.cluster()) {
            return Err(self.place.damaged(format!("a cluster cannot lie at {host}")));
        }
        Ok(match zero {
            true => What::Zero(own.then_some(host + within)),
            false => What::Data(host + within, own),
        })
    }

    /// All of the cluster that a compressed entry leads to.
    pub(crate) fn inflate(&self, entry: u64) -> Result<Vec<u8>> {
        use miniz_oxide::inflate::TINFLStatus;
        use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
        if self.header.incompatible & COMPRESSION != 0 {
            return Err(Error::Unsupported {
                op: "reading this qcow2",
                why: format!("{}: it is compressed by zstd; qemu-img convert unpacks it", self.place.path().display()),
            });
        }
        // "Bits 0 - x-1: host cluster offset; x - 61: number of additional 512-byte sectors", x = 62 - (bits - 8).
        let x = 62 - (self.bits() - 8);
        let offset = entry & ((1 << x) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> x;
        let mut packed = vec![0; ((sectors + 1) * 512 - offset % 512) as usize];
        self.place.get(&mut packed, offset)?;
        let mut bytes = vec![0; self.header.cluster() as usize];
        let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, _, got) = decompress(&mut Box::<DecompressorOxide>::default(), &packed, &mut bytes, 0, flags);
        let whole = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput) && got == bytes.len();
        if whole { Ok(bytes) } else { Err(self.place.damaged("a compressed cluster does not unpack")) }
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
                self.check_host(host)?;
                self.place.put(&bytes[done..done + run], host)?;
                done += run;
                continue;
            }
            let region = (at / self.region()) as usize;
            let _one = lock(&self.regions[region % SHARDS]);
            let (what, run) = self.look(at, len as u64)?;
            if !matches!(what, What::Data(_, true)) {
                self.write_new(what, &bytes[done..done + run as usize], at, below)?;
                done += run as usize;
            }
        }
        if self.dirty.load(Relaxed) << self.bits() > DIRTY_LIMIT { self.flush() } else { Ok(()) }
    }

    /// Refuses what an entry must not lead to: a guest would write over the tables.
    fn check_host(&self, host: u64) -> Result<()> {
        let cluster = host >> self.bits();
        let l1 = self.header.l1_offset >> self.bits();
        let l1_clusters = (u64::from(self.header.l1_size) * 8).div_ceil(self.header.cluster());
        if cluster == 0 || (l1..l1 + l1_clusters).contains(&cluster) || cluster >= self.end() {
            return Err(self.place.damaged(format!("no data can lie at {host}")));
        }
        Ok(())
    }

    /// Writes to clusters that are not this image's own yet; what they show around `bytes` stays. The caller holds
    /// the region's lock.
    fn write_new(&self, what: What, bytes: &[u8], at: u64, below: Below) -> Result<()> {
        let cluster = self.header.cluster();
        let (start, stop) = (at - at % cluster, at + bytes.len() as u64);
        let count = stop.div_ceil(cluster) - start / cluster;
        let host = match what {
            What::Zero(Some(host)) => host - at % cluster,
            _ => self.allocate(count)? << self.bits(),
        };
        let is_blank = !self.place.is_device() && !matches!(what, What::Zero(Some(_)));
        let around = |from: u64, until: u64| -> Result<()> {
            let mut buf = vec![0; (until - from) as usize];
            let inside = (self.virtual_size().saturating_sub(from)).min(buf.len() as u64) as usize;
            match what {
                What::Zero(_) => {}
                What::Absent => below(&mut buf[..inside], from)?,
                What::Data(shared, _) => self.place.get(&mut buf, shared + from - at)?,
                What::Compressed(entry) => {
                    buf.copy_from_slice(&self.inflate(entry)?[(from - start) as usize..(until - start) as usize])
                }
            }
            if is_blank && buf.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            self.place.put(&buf, host + (from - start))
        };
        if start < at {
            around(start, at)?;
        }
        if stop < start + count * cluster {
            around(stop, start + count * cluster)?;
        }
        self.place.put(bytes, host + (at - start))?;
        self.publish(start, count, |n| (host + n * cluster) | COPIED)
    }

    /// Makes a stretch read as zeroes whatever the parents have. Allocates only for parts of clusters.
    pub(crate) fn zero(&self, offset: u64, len: u64, below: Below) -> Result<()> {
        self.check_writable()?;
        let cluster = self.header.cluster();
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let part = (end - at).min(self.region() - at % self.region());
            let (what, run) = self.look(at, part)?;
            match what {
                What::Data(host, true) => {
                    self.check_host(host)?;
                    self.place.zero(host, run)?;
                }
                What::Zero(_) => {}
                _ if !at.is_multiple_of(cluster) || (run < cluster && at + run < self.virtual_size()) => {
                    let run = run.min(cluster - at % cluster);
                    self.write(&vec![0; run as usize], at, below)?;
                    at += run;
                    continue;
                }
                _ => {
                    let whole = if at + run == self.virtual_size() { run } else { run - run % cluster };
                    let _one = lock(&self.regions[(at / self.region()) as usize % SHARDS]);
                    if self.look(at, part)? == (what, run) {
                        self.publish(at, whole.div_ceil(cluster), |_| ZERO)?;
                        at += whole;
                    }
                    continue;
                }
            }
            at += run;
        }
        if self.dirty.load(Relaxed) << self.bits() > DIRTY_LIMIT { self.flush() } else { Ok(()) }
    }

    /// Gives back the space of what is in this image; it reads as zeroes afterwards. Where the place cannot do that,
    /// nothing happens: a discard is a wish.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        let mut at = offset;
        while at < offset + len {
            let (what, run) = self.look(at, offset + len - at)?;
            if let What::Data(host, true) = what {
                self.check_host(host)?;
                self.place.punch(host, run).map_err(self.place.fail("discard in"))?;
            }
            at += run;
        }
        Ok(())
    }

    /// Sets the L2 entries of `count` clusters from byte `start` of the disk, all of one L2 table, in memory.
    fn publish(&self, start: u64, count: u64, entry: impl Fn(u64) -> u64) -> Result<()> {
        let region = (start / self.region()) as usize;
        let mut shard = self.shard(region);
        if self.l1[region].load(Acquire) == 0 {
            let offset = self.allocate(1)? << self.bits();
            let entries = vec![0; self.entries()].into();
            shard.0.insert(region, Table { entries, changed: None, fresh: true, writing: false });
            self.l1[region].store(offset, Release);
        }
        let table = self.table(&mut shard, region)?;
        let first = ((start % self.region()) >> self.bits()) as usize;
        for n in 0..count {
            table.entries[first + n as usize] = entry(n);
        }
        let last = first + count as usize;
        table.changed = Some(match table.changed.take() {
            Some(changed) => changed.start.min(first)..changed.end.max(last),
            None => {
                self.dirty.fetch_add(1, Relaxed);
                first..last
            }
        });
        Ok(())
    }

    /// Makes everything written before survive a crash.
    ///
    /// 1. Write the reference counts of new clusters, new blocks of them, and new L2 tables. Nothing leads there.
    /// 2. Sync: all data written before is on disk.
    /// 3. If there are new blocks of reference counts, name them in their table; sync.
    /// 4. Write changed L2 entries, and L1 entries of new L2 tables.
    /// 5. Sync.
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
        let mut changed = Vec::new();
        if self.dirty.load(Acquire) > 0 {
            for shard in &self.shards {
                for (region, table) in &mut lock(shard).0 {
                    if let Some(span) = table.changed.take() {
                        table.writing = true;
                        changed.push(Changed {
                            region: *region,
                            fresh: table.fresh,
                            bytes: table_bytes(if table.fresh { &table.entries } else { &table.entries[span.clone()] }),
                            span,
                        });
                    }
                }
            }
            self.dirty.fetch_sub(changed.len(), AcqRel);
            changed.sort_unstable_by_key(|table| table.region);
        }
        let outcome = self.put_all(refcounts.as_mut().expect("it is open for writing"), &changed);
        for done in &changed {
            let mut shard = self.shard(done.region);
            let Some(table) = shard.0.get_mut(&done.region) else { continue };
            table.writing = false;
            if outcome.is_ok() {
                table.fresh = false;
            } else {
                let (start, end) = (done.span.start, done.span.end);
                table.changed = Some(match table.changed.take() {
                    Some(changed) => changed.start.min(start)..changed.end.max(end),
                    None => {
                        self.dirty.fetch_add(1, AcqRel);
                        start..end
                    }
                });
            }
        }
        outcome
    }

    fn put_all(&self, refcounts: &mut Refcounts, changed: &[Changed]) -> Result<()> {
        let place = &*self.place;
        let sync = || place.flush().inspect_err(|_| self.failed.store(true, Release));
        let l2 = |region: usize| self.l1[region].load(Acquire);
        if self.end() > refcounts.limit() {
            return Err(Error::TooBig {
                what: "a qcow2",
                bytes: self.end() << self.bits(),
                limit: format!("{} has reference counts for {} clusters", place.path().display(), refcounts.limit()),
            });
        }
        let until = refcounts.count(place, &|| self.end(), &|| self.allocate(1))?;
        for table in changed.iter().filter(|table| table.fresh) {
            place.put(&table.bytes, l2(table.region))?;
        }
        sync()?;
        if refcounts.publish(place)? {
            sync()?;
        }
        refcounts.done(until);
        if changed.is_empty() {
            return Ok(());
        }
        for table in changed {
            if table.fresh {
                place
                    .put(&(l2(table.region) | COPIED).to_be_bytes(), self.header.l1_offset + table.region as u64 * 8)?;
            } else {
                place.put(&table.bytes, l2(table.region) + table.span.start as u64 * 8)?;
            }
        }
        sync()
    }

    /// The L1 table as it is on disk after a flush.
    pub(crate) fn l1_bytes(&self) -> Vec<u8> {
        let entries: Vec<u64> =
            self.l1.iter().map(|l2| l2.load(Acquire)).map(|l2| if l2 == 0 { 0 } else { l2 | COPIED }).collect();
        table_bytes(&entries)
    }

    /// Gives clusters back that nothing leads to any more, durably.
    pub(crate) fn free(&self, clusters: Range<u64>) -> Result<()> {
        if let Some(refcounts) = &*lock(&self.refcounts) {
            refcounts.free(&*self.place, clusters)?;
        }
        self.place.flush()
    }
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
