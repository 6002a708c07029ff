//! A disk into the image of an export: one thread reads blocks, the others digest, pack and write them.
//!
//! Only what the disk has allocated is read. Blocks are written in the order of the disk where they are packed, so that the image
//! is a stream, and wherever they belong where they are not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, available_parallelism, scope};

use sha2::{Digest as _, Sha256};

use super::BLOCK;
use super::codec::{Compression, Packer};
use super::map::{Digest, Entry, Map, Stored, digest, length_of};
use crate::error::{Error, Result};
use crate::image::disk::{Disk, is_zero, without_zeroes};
use crate::sys::copy::Progress;

/// Threads that pack blocks, at most.
const MOST_THREADS: usize = 8;

/// What was written of a disk.
#[derive(Debug)]
pub struct Written {
    /// Bytes of the disk.
    pub size: u64,
    pub map: Map,
    /// Of the image as it stands in its file; of packed images only.
    pub image: Option<Digest>,
}

/// Writes a disk into the empty file `to`, not durably. `path`: the name of the file in errors. `total`: bytes that the disk has
/// allocated, for `progress`.
///
/// # Errors
/// Those of reading the disk; [`Error::Io`] of the file.
pub fn write(
    disk: &dyn Disk,
    compression: Compression,
    to: &File,
    path: &Path,
    total: u64,
    progress: Progress,
) -> Result<Written> {
    let size = disk.size();
    let out = Out::new(to, path, compression, size)?;
    let threads = available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    // Blocks that are read and not yet written; each holds 4 MiB.
    let most = threads * 2 + 2;
    let (give, taken) = sync_channel::<Job>(most);
    let taken = Mutex::new(taken);
    let (begin, end) = sync_channel::<()>(most);
    let shared = Shared { to, path, out: Mutex::new(out), end: Mutex::new(end), failed: AtomicBool::new(false) };
    let done = scope(|scope| {
        let work = || shared.work(&taken, compression);
        let started = (0..threads).filter(|_| Builder::new().spawn_scoped(scope, work).is_ok()).count();
        let give = Giver { shared: &shared, give, begin, inline: started == 0, compression };
        read(disk, total, progress, &give)
    });
    let out = shared.out.into_inner().unwrap_or_else(PoisonError::into_inner);
    out.finish(done)
}

/// A block on its way.
struct Job {
    /// Its place in the order in which blocks were read.
    number: u64,
    index: u64,
    block: Vec<u8>,
}

struct Shared<'a> {
    to: &'a File,
    path: &'a Path,
    out: Mutex<Out<'a>>,
    /// Taken from for each block that is through.
    end: Mutex<Receiver<()>>,
    failed: AtomicBool,
}

impl Shared<'_> {
    /// Works on blocks until there are no more.
    fn work(&self, taken: &Mutex<Receiver<Job>>, compression: Compression) {
        let mut packer = None;
        loop {
            let job = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            self.one(job, compression, &mut packer);
        }
    }

    fn one(&self, job: Job, compression: Compression, packer: &mut Option<Packer>) {
        let made = match self.failed.load(Relaxed) {
            true => Ok(Made::Zero),
            false => make(&job, compression, packer, self.to, self.path),
        };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let through = out.take(job.number, job.index, made);
        if out.error.is_some() {
            self.failed.store(true, Relaxed);
        }
        drop(out);
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..through {
            let _ = end.recv();
        }
    }
}

/// Hands blocks over, and waits while too many are on their way.
struct Giver<'s, 'a> {
    shared: &'s Shared<'a>,
    give: SyncSender<Job>,
    begin: SyncSender<()>,
    /// No thread could be started.
    inline: bool,
    compression: Compression,
}

impl Giver<'_, '_> {
    /// `false`: an earlier block failed.
    fn hand_over(&self, job: Job) -> bool {
        let _ = self.begin.send(());
        if self.inline {
            self.shared.one(job, self.compression, &mut None);
        } else if self.give.send(job).is_err() {
            return false;
        }
        !self.shared.failed.load(Relaxed)
    }
}

/// Reads all blocks of which the disk has something allocated.
fn read(disk: &dyn Disk, total: u64, progress: Progress, to: &Giver) -> Result<()> {
    let (size, mut done, mut number) = (disk.size(), 0, 0);
    let mut extent = disk.next_data(0)?;
    while let Some((start, _)) = extent {
        let index = start / BLOCK;
        let (from, length) = (index * BLOCK, length_of(index, size));
        let end = from + length as u64;
        // Zeroes of the allocator: what no extent covers need not be cleared.
        let mut block = vec![0; length];
        while let Some((start, stop)) = extent.filter(|(start, _)| *start < end) {
            let (first, last) = (start.max(from) / 512 * 512, stop.next_multiple_of(512).min(end));
            disk.read_at(&mut block[(first - from) as usize..(last - from) as usize], first)?;
            done += last - first;
            extent = if stop > end { Some((end, stop)) } else { disk.next_data(stop)? };
        }
        if !to.hand_over(Job { number, index, block }) {
            return Ok(());
        }
        number += 1;
        progress(done, total.max(done));
    }
    Ok(())
}

/// What was made of a block.
enum Made {
    Zero,
    /// Its bytes are in the image.
    Written(Digest),
    /// Its bytes are to follow those of the blocks before.
    Packed(Digest, Vec<u8>),
}

fn make(job: &Job, compression: Compression, packer: &mut Option<Packer>, to: &File, path: &Path) -> Result<Made> {
    if is_zero(&job.block) {
        return Ok(Made::Zero);
    }
    let digest = digest(&job.block);
    let failed = || Error::io("write", path);
    if compression == Compression::None {
        without_zeroes(&job.block, job.index * BLOCK, &mut |offset, bytes| {
            to.write_all_at(bytes, offset).map_err(failed())
        })?;
        return Ok(Made::Written(digest));
    }
    if packer.is_none() {
        *packer = Some(Packer::new(compression).map_err(failed())?);
    }
    let packer = packer.as_mut().expect("it was just made");
    Ok(Made::Packed(digest, packer.pack(&job.block).map_err(failed())?))
}

/// The image, and what is known of it.
struct Out<'a> {
    to: &'a File,
    path: PathBuf,
    size: u64,
    compression: Compression,
    map: Map,
    /// Of the bytes of a packed image.
    image: Sha256,
    /// Bytes of a packed image so far.
    offset: u64,
    /// The block that comes next in the image.
    next_index: u64,
    /// The block that is next in the order of reading.
    next_number: u64,
    waiting: BTreeMap<u64, (u64, Result<Made>)>,
    /// A packed block of zeroes.
    zeroes: Vec<u8>,
    error: Option<Error>,
}

impl<'a> Out<'a> {
    fn new(to: &'a File, path: &Path, compression: Compression, size: u64) -> Result<Out<'a>> {
        let mut out = Out {
            to,
            path: path.to_owned(),
            size,
            compression,
            map: Map::default(),
            image: Sha256::new(),
            offset: 0,
            next_index: 0,
            next_number: 0,
            waiting: BTreeMap::new(),
            zeroes: Vec::new(),
            error: None,
        };
        if compression != Compression::None {
            out.zeroes = out.packed_zeroes(BLOCK as usize)?;
        }
        Ok(out)
    }

    fn packed_zeroes(&self, length: usize) -> Result<Vec<u8>> {
        let packed = Packer::new(self.compression).and_then(|mut packer| packer.pack(&vec![0; length]));
        packed.map_err(Error::io("write", &self.path))
    }

    /// Takes what was made of a block, and puts down all that is next. Answers how many blocks are through.
    fn take(&mut self, number: u64, index: u64, made: Result<Made>) -> usize {
        self.waiting.insert(number, (index, made));
        let mut through = 0;
        while let Some((index, made)) = self.waiting.remove(&self.next_number) {
            self.next_number += 1;
            through += 1;
            if self.error.is_none() {
                self.error = made.and_then(|made| self.put(index, made)).err();
            }
        }
        through
    }

    fn put(&mut self, index: u64, made: Made) -> Result<()> {
        if matches!(made, Made::Zero) {
            return Ok(());
        }
        self.zeroes_until(index)?;
        let stored = match made {
            Made::Zero => return Ok(()),
            Made::Written(digest) => {
                Stored { index, offset: index * BLOCK, length: length_of(index, self.size) as u64, digest }
            }
            Made::Packed(digest, bytes) => {
                let offset = self.offset;
                self.append(&bytes)?;
                Stored { index, offset, length: bytes.len() as u64, digest }
            }
        };
        self.map.push(Entry::Stored(stored));
        self.next_index = index + 1;
        Ok(())
    }

    /// Says that all blocks before `index` that are not there are zeroes.
    fn zeroes_until(&mut self, index: u64) -> Result<()> {
        if self.next_index == index {
            return Ok(());
        }
        self.map.push(Entry::Zero(self.next_index, index - 1));
        if self.compression != Compression::None {
            let cut = length_of(index - 1, self.size);
            let whole = index - self.next_index - u64::from(cut < BLOCK as usize);
            const AT_ONCE: u64 = 4096;
            let many = self.zeroes.repeat(whole.min(AT_ONCE) as usize);
            let mut left = whole;
            while left > 0 {
                let now = left.min(AT_ONCE);
                self.append(&many[..now as usize * self.zeroes.len()])?;
                left -= now;
            }
            if cut < BLOCK as usize {
                self.append(&self.packed_zeroes(cut)?)?;
            }
        }
        self.next_index = index;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let mut to = self.to;
        to.write_all(bytes).map_err(Error::io("write", &self.path))?;
        self.image.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn finish(mut self, read: Result<()>) -> Result<Written> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        read?;
        self.zeroes_until(self.size.div_ceil(BLOCK))?;
        let image = match self.compression {
            Compression::None => {
                self.to.set_len(self.size).map_err(Error::io("write", &self.path))?;
                None
            }
            Compression::Zstd => Some(self.image.finalize().into()),
        };
        Ok(Written { size: self.size, map: self.map, image })
    }
}
