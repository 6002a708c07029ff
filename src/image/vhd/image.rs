//! One dynamic or differencing image, opened: BAT and what is known of the bitmaps in memory, data on the place.
//!
//! All methods take `&self` and may be called from several threads. Reads and overwrites take no lock beyond a
//! short one on the bitmap of their block; allocation is serialised.
//!
//! # State that is in memory only
//! New BAT entries and new bitmap bits stay in memory until [`Image::flush`] (see there for the order), so that a
//! flush costs two syncs at most, however many blocks were allocated. A crash forgets them and with them the
//! writes since the last flush, as the write cache of a disk would: the sectors read as they did before.
//!
//! # When a write fails
//! A block that no data could be written to is left out of the flush, and its room is used when it is written to
//! again. A flush goes on with what it can write, and answers with the first error.
//!
//! # When an fsync fails
//! Data that was written is lost, and nobody knows which part of it. The image refuses everything but reads from then
//! on; the owner opens it anew.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bat::{Bat, UNUSED};
use super::batmap::BatmapHeader;
use super::bitmap::Bitmap;
use super::footer::{Footer, Kind};
use super::header::{HEADER, Header};
use super::query::{Info, Meta, blocks, last_footer, refuse_encrypted};
use super::{BLOCK, SECTOR, Storage};
use crate::error::{Error, Result};
use crate::image::Reading;
use crate::types::Mode;

const SHARDS: usize = 16;
/// Bitmaps kept per shard: 8 MiB in all, for 32 GiB of disk.
const SHARD_BITMAPS: usize = 1024;
/// So many changed bitmaps, 16 MiB, make a writer flush.
const DIRTY_LIMIT: usize = 32 << 10;

/// An opened image; see the module.
#[derive(Debug)]
pub struct Image {
    pub(super) place: Arc<dyn Storage>,
    pub(super) mode: Mode,
    pub(super) meta: Meta,
    pub(super) header: Header,
    /// First byte that may hold a block.
    headers_end: u64,
    /// Bytes of a block.
    block_size: u64,
    pub(super) batmap: Option<BatmapHeader>,
    /// The batmap on disk was damaged or is to be written for another reason.
    pub(super) batmap_stale: AtomicBool,
    /// Sector of each block's bitmap.
    pub(super) bat: Bat,
    /// One bit per block: every sector is here.
    full: Box<[AtomicU64]>,
    pub(super) shards: [Mutex<Shard>; SHARDS],
    pub(super) dirty: AtomicUsize,
    pub(super) alloc: Mutex<Alloc>,
    pub(super) flushing: Mutex<()>,
    pub(super) written: AtomicBool,
    /// Something was written that no sync has followed; of an opened image, perhaps by the process before.
    pub(super) unsynced: AtomicBool,
    pub(super) failed: AtomicBool,
    /// Blocks whose entries are wrong, of an image that is open to be rescued.
    lost: BTreeSet<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Shard(pub(super) HashMap<u32, Entry>);

pub(super) struct Entry {
    pub(super) map: Bitmap,
    /// Differs from the disk.
    pub(super) dirty: bool,
    /// A flush is writing an earlier state of it.
    pub(super) writing: bool,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sectors{}", self.map.count(), if self.dirty { ", dirty" } else { "" })
    }
}

#[derive(Debug)]
pub(super) struct Alloc {
    /// End of data, sectors.
    pub(super) end: u64,
    /// Allocated, but not in the BAT on disk.
    pub(super) fresh: BTreeSet<u32>,
    /// Perhaps in the BAT on disk: their entries were written, and no sync has followed that succeeded.
    pub(super) unsure: BTreeSet<u32>,
    /// A file's tail past end of data and footer was dropped.
    trimmed: bool,
}

/// Where the sectors of a block are.
pub(crate) enum Lookup {
    Absent,
    /// All of them in this image, from this byte.
    Full(u64),
    /// Those with a 1 in this image, sector 0 being at this byte.
    Mixed(u64, Box<Bitmap>),
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Image {
    /// Opens a dynamic or differencing image.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what cannot be trusted: tables outside the file, BAT entries into the headers or,
    /// for writing, past the end, two blocks in one place; [`Error::Unsupported`] for fixed, encrypted and poisoned images,
    /// blocks of more than 2 MiB and versions newer than we know; [`Error::Io`].
    pub fn open(place: Arc<dyn Storage>, mode: Mode) -> Result<Self> {
        let meta = Meta::read(&*place)?;
        Self::with(place, mode, Reading::Whole, meta)
    }

    /// [`Image::open`] of an image whose headers were read.
    pub(super) fn with(place: Arc<dyn Storage>, mode: Mode, reading: Reading, meta: Meta) -> Result<Self> {
        let p = &*place;
        meta.check(p.path())?;
        let Some(header) = meta.header.clone() else {
            let why = format!("{}: it is a fixed image", p.path().display());
            return Err(Error::Unsupported { op: "opening a VHD", why });
        };
        let footer = &meta.footer;
        let block_size = u64::from(header.block_size());
        let count = blocks(footer.size(), block_size).expect("checked");
        if let Some(last) = last_footer(p)?
            && last.kind() == Some(Kind::Fixed)
        {
            return Err(p.damaged("its first footer says dynamic and its last one fixed"));
        }

        let size = p.len()?;
        let bat_offset = header.table_offset();
        let refuse = reading == Reading::Whole;
        if refuse && bat_offset + u64::from(header.max_bat_size()) * 4 > size {
            return Err(p.damaged("the BAT is cut off"));
        }
        // An entry that is not there reads as 0, where no block can lie.
        let bat = Bat::read(count, |raw, at| match refuse {
            true => p.get_exact(raw, bat_offset + at, "the BAT"),
            false => p.get(raw, bat_offset + at),
        })?;

        let batmap = read_batmap_header(p, footer, &header)?;
        refuse_encrypted(batmap.as_ref(), p.path())?;
        let headers_end = headers_end(p.path(), footer, &header, batmap.as_ref())?;
        // libvhd, whose invention it is, counts blocks of 2 MiB in it.
        let batmap = batmap.filter(|_| block_size == BLOCK);
        let map = match &batmap {
            Some(b) => b.read_map(p, footer.size())?,
            None => None,
        };
        let stale = batmap.is_some() && map.is_none();
        if refuse && headers_end > size {
            return Err(p.damaged("the headers are cut off"));
        }

        let full: Box<[AtomicU64]> = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let mut end = headers_end / SECTOR;
        // Data of a block that a crash of another tool cut off reads as zeros; the block's bitmap must be there.
        let limit = if mode == Mode::ReadWrite && p.is_device() { size } else { size.saturating_add(block_size) };
        let (mut in_order, mut free) = (true, 0);
        let mut lost = BTreeSet::new();
        for (block, entry) in bat.used() {
            let first = u64::from(entry) * SECTOR;
            let last = first + SECTOR + block_size;
            if first < headers_end || last > limit || first + SECTOR > size {
                if refuse {
                    return Err(p.damaged(format!("block {block} lies at byte {first}, outside the data")));
                }
                lost.insert(block);
                continue;
            }
            end = end.max(last / SECTOR);
            in_order &= first >= free;
            free = last;
            let bit = map.as_ref().and_then(|m| m.get(block as usize / 8)).map_or(0, |b| b >> (7 - block % 8) & 1);
            full[block as usize / 64].fetch_or(u64::from(bit) << (block % 64), Relaxed);
        }
        if !in_order {
            let inside = bat.used().filter(|(block, _)| !lost.contains(block));
            let mut entries: Vec<(u32, u32)> = inside.map(|(block, entry)| (entry, block)).collect();
            entries.sort_unstable();
            match refuse {
                true => refuse_overlap(&entries, block_size, p.path())?,
                // One of the two is right, and nothing says which.
                false => lost.extend(overlapping(&entries, block_size).flat_map(|(one, other)| [one, other])),
            }
        }
        if meta.torn && mode == Mode::ReadWrite {
            p.put(&header.0, footer.data_offset())?;
            p.flush()?;
        }
        Ok(Image {
            mode,
            header,
            headers_end,
            block_size,
            batmap,
            batmap_stale: AtomicBool::new(stale),
            bat,
            full,
            shards: Default::default(),
            dirty: AtomicUsize::new(0),
            alloc: Mutex::new(Alloc { end, fresh: BTreeSet::new(), unsure: BTreeSet::new(), trimmed: false }),
            flushing: Mutex::new(()),
            written: AtomicBool::new(false),
            unsynced: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            lost,
            meta,
            place,
        })
    }

    pub fn info(&self) -> Info {
        self.meta.info()
    }

    /// Bytes the guest sees.
    pub fn virtual_size(&self) -> u64 {
        self.meta.footer.size()
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Sectors of a block, and bits of its bitmap.
    pub(super) fn sectors(&self) -> u32 {
        (self.block_size / SECTOR) as u32
    }

    /// Blocks the disk has.
    pub fn blocks(&self) -> u32 {
        self.bat.len()
    }

    /// Bytes up to the end of the last block, and the footer: what the image needs of a device.
    pub fn physical_size(&self) -> u64 {
        (lock(&self.alloc).end + 1) * SECTOR
    }

    pub fn place(&self) -> &Arc<dyn Storage> {
        &self.place
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn footer(&self) -> &Footer {
        &self.meta.footer
    }

    pub(crate) fn batmap(&self) -> Option<&BatmapHeader> {
        self.batmap.as_ref()
    }

    /// Bytes from the start to the end of tables and locators.
    pub(crate) fn headers_end(&self) -> u64 {
        self.headers_end
    }

    /// True if the batmap on disk has a wrong checksum.
    pub(crate) fn batmap_is_stale(&self) -> bool {
        self.batmap_stale.load(Relaxed)
    }

    /// Sector of the block's bitmap.
    pub(crate) fn entry(&self, block: u32) -> Option<u32> {
        Some(self.bat.get(block)).filter(|entry| *entry != UNUSED)
    }

    /// The blocks that have room in the image, in ascending order, each with the sector of its bitmap.
    pub(crate) fn allocated(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.bat.used()
    }

    pub(super) fn is_full(&self, block: u32) -> bool {
        self.full[block as usize / 64].load(Acquire) >> (block % 64) & 1 == 1
    }

    pub(super) fn shard(&self, block: u32) -> MutexGuard<'_, Shard> {
        lock(&self.shards[block as usize % SHARDS])
    }

    /// The bitmap of an allocated block, read if it is not known.
    fn bitmap<'a>(&self, shard: &'a mut Shard, block: u32, entry: u32) -> Result<&'a mut Entry> {
        if !shard.0.contains_key(&block) {
            if shard.0.len() >= SHARD_BITMAPS {
                shard.0.retain(|_, e| e.dirty || e.writing);
            }
            let mut bytes = [0; 512];
            self.place.get_exact(&mut bytes, u64::from(entry) * SECTOR, "a sector bitmap")?;
            shard.0.insert(block, Entry { map: Bitmap::from_bytes(&bytes), dirty: false, writing: false });
        }
        Ok(shard.0.get_mut(&block).expect("just put there"))
    }

    pub(crate) fn lookup(&self, block: u32) -> Result<Lookup> {
        let Some(entry) = self.entry(block) else { return Ok(Lookup::Absent) };
        if self.lost.contains(&block) {
            let first = u64::from(entry) * SECTOR;
            return Err(self.place.damaged(format!("block {block} cannot lie at byte {first}")));
        }
        let data = data_offset(entry);
        if self.is_full(block) {
            return Ok(Lookup::Full(data));
        }
        let mut shard = self.shard(block);
        let map = self.bitmap(&mut shard, block, entry)?.map.clone();
        if map.is_full(self.sectors()) {
            self.full[block as usize / 64].fetch_or(1 << (block % 64), AcqRel);
            return Ok(Lookup::Full(data));
        }
        Ok(if map.is_empty() { Lookup::Absent } else { Lookup::Mixed(data, Box::new(map)) })
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        if self.mode == Mode::ReadOnly {
            return Err(self.place.fail("write")(io::Error::from_raw_os_error(nix::libc::EROFS)));
        }
        if self.failed.load(Acquire) {
            return Err(self.place.fail("write after a failed sync to")(io::Error::from_raw_os_error(nix::libc::EIO)));
        }
        Ok(())
    }

    /// The byte where the data of a block is, which is allocated if it was not.
    pub(crate) fn data_for_write(&self, block: u32) -> Result<u64> {
        self.check_writable()?;
        if let Some(entry) = self.entry(block) {
            return Ok(data_offset(entry));
        }
        let mut shard = self.shard(block);
        if let Some(entry) = self.entry(block) {
            return Ok(data_offset(entry));
        }
        let mut alloc = lock(&self.alloc);
        let end = alloc.end;
        let entry = self.allocate(&mut alloc, 0)?;
        if !self.place.is_device() {
            // A block that has no space is to be refused by the write, not by the flush, which others need too.
            self.place.put(&[0; SECTOR as usize], u64::from(entry) * SECTOR).inspect_err(|_| alloc.end = end)?;
        }
        alloc.fresh.insert(block);
        shard.0.insert(block, Entry { map: Bitmap::EMPTY, dirty: true, writing: false });
        self.dirty.fetch_add(1, Relaxed);
        self.written.store(true, Relaxed);
        self.bat.set(block, entry);
        Ok(data_offset(entry))
    }

    /// Sets a block's room aside behind the end of data, and behind byte `room`; returns the sector of its bitmap.
    pub(super) fn allocate(&self, alloc: &mut Alloc, room: u64) -> Result<u32> {
        let place = &*self.place;
        // The data, one sector behind the bitmap, starts at a multiple of 4 KiB.
        let bitmap = (alloc.end.max(room.div_ceil(SECTOR)) + 1).next_multiple_of(8) - 1;
        let end = bitmap + 1 + u64::from(self.sectors());
        let entry = u32::try_from(bitmap).ok().filter(|e| *e != UNUSED).ok_or_else(|| Error::TooBig {
            what: "a VHD",
            bytes: end * SECTOR,
            limit: "a block starts below 2 TiB in its file".to_owned(),
        })?;
        if place.is_device() {
            if (end + 1) * SECTOR > place.len()? {
                return Err(place.fail("allocate a block in")(io::Error::from_raw_os_error(nix::libc::ENOSPC)));
            }
        } else if !alloc.trimmed {
            // Bytes that a crash left behind the end of data must not show up inside a new block.
            let keep = (alloc.end + 1) * SECTOR;
            if place.len()? > keep {
                place.resize_to(keep)?;
            }
            alloc.trimmed = true;
        }
        alloc.end = end;
        Ok(entry)
    }

    /// Notes that sectors were written to a block that [`Image::data_for_write`] gave.
    pub(crate) fn mark(&self, block: u32, change: impl FnOnce(&mut Bitmap) -> bool) -> Result<()> {
        self.unsynced.store(true, Release);
        if self.is_full(block) {
            return Ok(());
        }
        let entry = self.entry(block).ok_or_else(|| self.place.damaged("a block vanished"))?;
        let mut shard = self.shard(block);
        let bitmap = self.bitmap(&mut shard, block, entry)?;
        if change(&mut bitmap.map) {
            if !bitmap.dirty {
                bitmap.dirty = true;
                self.dirty.fetch_add(1, Relaxed);
            }
            self.written.store(true, Relaxed);
            if bitmap.map.is_full(self.sectors()) {
                self.full[block as usize / 64].fetch_or(1 << (block % 64), AcqRel);
            }
        }
        Ok(())
    }

    /// Writes whole sectors of one block, from sector `first` of it.
    pub(crate) fn write_block(&self, block: u32, first: u32, bytes: &[u8]) -> Result<()> {
        let data = self.data_for_write(block)?;
        self.place.put(bytes, data + u64::from(first) * SECTOR)?;
        let last = first + (bytes.len() as u64 / SECTOR) as u32;
        self.mark(block, |map| map.set(first..last))?;
        self.bound_dirty()
    }

    /// Makes sectors of one block read as zeros, whatever the parent has.
    pub(crate) fn zero_block(&self, block: u32, sectors: Range<u32>) -> Result<()> {
        let data = self.data_for_write(block)?;
        let (first, last) = (u64::from(sectors.start) * SECTOR, u64::from(sectors.end) * SECTOR);
        self.place.zero(data + first, last - first)?;
        self.mark(block, |map| map.set(sectors))?;
        self.bound_dirty()
    }

    pub(crate) fn bound_dirty(&self) -> Result<()> {
        if self.dirty.load(Relaxed) > DIRTY_LIMIT { self.flush() } else { Ok(()) }
    }
}

/// Byte of a block's first data sector: the one behind its bitmap.
pub(crate) fn data_offset(entry: u32) -> u64 {
    (u64::from(entry) + 1) * SECTOR
}

/// Refuses blocks that lie in one place, at least in part: what is written to one of them shows up in the other.
/// `entries`: the sector of each bitmap and which block it is, in ascending order.
///
/// # Errors
/// [`Error::Damaged`].
pub(super) fn refuse_overlap(entries: &[(u32, u32)], block_size: u64, path: &Path) -> Result<()> {
    match overlapping(entries, block_size).next() {
        Some((one, other)) => {
            Err(Error::Damaged { path: path.to_owned(), what: format!("blocks {one} and {other} overlap") })
        }
        None => Ok(()),
    }
}

/// The pairs of blocks that [`refuse_overlap`] finds.
fn overlapping(entries: &[(u32, u32)], block_size: u64) -> impl Iterator<Item = (u32, u32)> {
    let step = 1 + (block_size / SECTOR) as u32;
    entries.windows(2).filter(move |pair| pair[1].0 - pair[0].0 < step).map(|pair| (pair[0].1, pair[1].1))
}

/// The batmap header, `None` where there is none or it is not sound.
pub(crate) fn read_batmap_header(
    place: &dyn Storage,
    footer: &Footer,
    header: &Header,
) -> Result<Option<BatmapHeader>> {
    if !footer.may_have_batmap() {
        return Ok(None);
    }
    let mut bytes = [0; 512];
    place.get(&mut bytes, header.bat_end())?;
    Ok(BatmapHeader::parse(bytes))
}

/// Where blocks may start: the end of header, BAT, batmap and locators, bytes.
pub(crate) fn headers_end(path: &Path, footer: &Footer, header: &Header, batmap: Option<&BatmapHeader>) -> Result<u64> {
    let mut end = (footer.data_offset() + HEADER).max(header.bat_end());
    if let Some(batmap) = batmap {
        end = end.max(header.bat_end() + SECTOR).max(batmap.end());
    }
    for (_, locator) in header.locators() {
        let space = locator.space().filter(|_| locator.offset < 1 << 42);
        let space = space.ok_or_else(|| Error::Damaged {
            path: path.to_owned(),
            what: "a parent locator has an impossible place".to_owned(),
        })?;
        end = end.max(locator.offset + space);
    }
    Ok(end.next_multiple_of(SECTOR))
}
