//! One image, opened: L1 table and the L2 tables in use in memory, data on the place.
//!
//! All methods take `&self` and may be called from several threads. Reads and overwrites take a short lock on one
//! L2 table; allocating writes to the same L2 table (512 MiB of disk) wait for each other, because what a cluster
//! held before is copied.
//!
//! # State that is in memory only
//! New L2 entries, new L2 tables and reference counts stay in memory until [`Image::flush`] (see there for the
//! order). A crash forgets them and with them the writes since the last flush, as the write cache of a disk would.
//!
//! # When an fsync fails
//! Data that was written is lost, and nobody knows which part of it. The image refuses everything but reads from then
//! on; the owner opens it anew.

mod flush;
mod look;
mod table;
mod write;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::compressed::Compressed;
use super::header::{Header, field};
use super::refcounts::Refcounts;
use super::{Storage, read_table};
use crate::error::{Error, Result};
use crate::image::Reading;
use crate::types::{Mode, Size};
pub(crate) use look::What;
pub(super) use table::Table;

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
    /// A write that allocates holds the lock of its L2 table.
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
    /// Where L2 tables lie by the L1 table and cannot, or where several lie: of an image that is open to be rescued.
    lost: HashSet<u64>,
}

#[derive(Debug, Default)]
struct Shard {
    tables: HashMap<usize, Table>,
    /// Regions that were written to.
    touched: HashSet<usize>,
    /// Clusters that an entry on disk leads to, and in memory none does.
    released: Vec<u64>,
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
        Self::open_as(place, mode, Reading::Whole)
    }

    /// [`Image::open`]; with [`Reading::Rescue`], for reading.
    pub(super) fn open_as(place: Arc<dyn Storage>, mode: Mode, reading: Reading) -> Result<Self> {
        let p = &*place;
        let refuse = reading == Reading::Whole;
        let mut header = Header::read(p)?;
        if mode == Mode::ReadWrite {
            header.refuse_unwritable(p)?;
        }
        let l1 = read_table(p, header.l1_offset, header.l1_size as usize, "the L1 table")?;
        let (size, cluster) = (p.len()?, header.cluster());
        let mut tables = vec![0];
        let l1_at = header.l1_offset / cluster;
        tables.extend(l1_at..l1_at + (u64::from(header.l1_size) * 8).div_ceil(cluster));
        let mut lost = HashSet::new();
        for entry in l1.iter().map(|entry| entry & OFFSET).filter(|entry| *entry != 0) {
            let is_possible = entry.is_multiple_of(cluster) && entry + cluster <= size.next_multiple_of(cluster);
            match is_possible {
                true => tables.push(entry / cluster),
                false if refuse => return Err(p.damaged(format!("an L2 table cannot lie at {entry}"))),
                false => drop(lost.insert(entry)),
            }
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
        for twice in tables.windows(2).filter(|pair| pair[0] == pair[1]) {
            if refuse {
                return Err(p.damaged(format!("two of its tables lie at {}", twice[0] * cluster)));
            }
            lost.insert(twice[0] * cluster);
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
            lost,
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
}
