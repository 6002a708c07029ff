//! A disk into the image of an export: one thread reads blocks, the others digest, pack and write them.
//!
//! An increment leaves out the blocks whose digests its parent has. Where the images tell what may have changed, nothing else is read.
//!
//! Only what the disk has allocated is read. Blocks are written in the order of the disk where they are packed, so that the image
//! is a stream, and wherever they belong where they are not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, available_parallelism, scope};
use std::time::{Duration, Instant};

use super::BLOCK;
use super::chain::Placed;
use super::codec::{Packer, Packing};
use super::map::{Digest, Entry, Map, length_of};
use super::out::{Made, Out};
use crate::error::{Error, Result};
use crate::image::disk::{Disk, is_zero, without_zeroes};
use crate::sys::copy::Progress;
use crate::sys::writeback::Writeback;
use crate::types::VdiUuid;

/// Cores that pack blocks, at most.
const MOST_CORES: usize = 8;

/// What was written of a disk.
#[derive(Debug)]
pub struct Written {
    /// Bytes of the disk.
    pub size: u64,
    pub map: Map,
    /// Of the image as it stands in its file; of packed images only.
    pub image: Option<Digest>,
}

/// What is known of a disk from an earlier export.
#[derive(Clone, Debug)]
pub struct Since {
    /// What each block was, in order.
    pub blocks: Vec<Placed>,
    /// Bytes that the disk had.
    pub size: u64,
}

impl Since {
    /// What a block was; `None` if the disk did not have it, or not all of it.
    pub(super) fn block(&self, index: u64, size: u64) -> Option<&Entry> {
        let at = self.blocks.partition_point(|(_, entry)| entry.last() < index);
        let known = self.blocks.get(at).map(|(_, entry)| entry)?;
        let same = index < self.size.div_ceil(BLOCK) && length_of(index, self.size) == length_of(index, size);
        same.then_some(known)
    }
}

/// The source of an image.
pub struct From<'a> {
    pub disk: &'a dyn Disk,
    /// Of the disk that is exported, also where its snapshot is read.
    pub uuid: VdiUuid,
    /// Of an increment.
    pub since: Option<&'a Since>,
    /// The stretches outside of which the disk is what it was at [`Since`], in order. `None`: that is not known.
    pub changed: Option<&'a [(u64, u64)]>,
    /// Bytes that the disk has allocated, for `progress`.
    pub total: u64,
    /// Bytes a second that are read at most.
    pub rate: Option<u64>,
}

/// Writes a disk into the empty file `to`, not durably. `path`: the name of the file in errors.
///
/// # Errors
/// Those of reading the disk; [`Error::Io`] of the file.
pub fn write(from: &From, packing: &Packing, to: &File, path: &Path, progress: Progress) -> Result<Written> {
    let size = from.disk.size();
    let writeback = Writeback::new(to);
    let out = Out::new(to, &writeback, path, packing, size, from)?;
    // One more than there are cores, as one waits for the storage.
    let threads = available_parallelism().map_or(1, usize::from).min(MOST_CORES) + 1;
    // Blocks that are read and not yet written; each holds 4 MiB.
    let most = threads * 2 + 2;
    let (give, taken) = sync_channel::<Job>(most);
    let taken = Mutex::new(taken);
    let (begin, end) = sync_channel::<()>(most);
    let shared = Shared {
        to,
        writeback: &writeback,
        path,
        size,
        packing,
        uuid: from.uuid,
        since: from.since,
        out: Mutex::new(out),
        writing: Mutex::new(()),
        end: Mutex::new(end),
        failed: AtomicBool::new(false),
        spare: Mutex::new(Vec::new()),
    };
    let done = scope(|scope| {
        let work = || shared.work(&taken);
        let started = (0..threads).filter(|_| Builder::new().spawn_scoped(scope, work).is_ok()).count();
        let give = Giver { shared: &shared, give, begin, inline: started == 0 };
        match (from.since, from.changed) {
            (Some(since), Some(changed)) => read_changed(from, since, changed, progress, &give),
            _ => read(from, 0, size, progress, &give, &mut Counts::now()).map(drop),
        }
    });
    let out = shared.out.into_inner().unwrap_or_else(PoisonError::into_inner);
    out.finish(done)
}

/// A block on its way.
struct Job {
    /// Its place in the order in which blocks were read.
    number: u64,
    index: u64,
    /// Empty for a block of which nothing is allocated.
    block: Vec<u8>,
}

struct Shared<'a> {
    to: &'a File,
    writeback: &'a Writeback<'a>,
    path: &'a Path,
    size: u64,
    packing: &'a Packing,
    uuid: VdiUuid,
    since: Option<&'a Since>,
    out: Mutex<Out<'a>>,
    /// Held by the thread that writes: the kernel lets one at a time write into a file, and others burn a core while they wait.
    writing: Mutex<()>,
    /// Taken from for each block that is through.
    end: Mutex<Receiver<()>>,
    failed: AtomicBool,
    /// Buffers of whole blocks that were used: memory that the kernel has given already.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Shared<'_> {
    /// A buffer for a block, and whether it holds an earlier one instead of zeroes.
    fn buffer(&self, length: usize) -> (Vec<u8>, bool) {
        let spare = if length == BLOCK as usize { self.spare().pop() } else { None };
        spare.map_or_else(|| (vec![0; length], false), |buffer| (buffer, true))
    }

    fn give_back(&self, buffer: Vec<u8>) {
        if buffer.len() == BLOCK as usize {
            self.spare().push(buffer);
        }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on blocks until there are no more.
    fn work(&self, taken: &Mutex<Receiver<Job>>) {
        let mut packer = None;
        loop {
            let job = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            self.one(job, &mut packer);
        }
    }

    fn one(&self, job: Job, packer: &mut Option<Packer>) {
        let made = match self.failed.load(Relaxed) {
            true => Ok(Made::Zero),
            false => self.make(&job, packer),
        };
        self.give_back(job.block);
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
}

impl Giver<'_, '_> {
    /// `false`: an earlier block failed.
    fn hand_over(&self, job: Job) -> bool {
        let _ = self.begin.send(());
        if self.inline {
            self.shared.one(job, &mut None);
        } else if self.give.send(job).is_err() {
            return false;
        }
        !self.shared.failed.load(Relaxed)
    }
}

/// How far reading has come.
struct Counts {
    begun: Instant,
    number: u64,
    done: u64,
}

impl Counts {
    fn now() -> Counts {
        Counts { begun: Instant::now(), number: 0, done: 0 }
    }
}

/// Reads all blocks from a byte to before another of which the disk has something allocated; the first byte is that of a block.
/// `false`: a block failed.
fn read(from: &From, first: u64, stop: u64, progress: Progress, to: &Giver, counts: &mut Counts) -> Result<bool> {
    let (disk, size) = (from.disk, from.disk.size());
    let next = |at: u64| -> Result<Option<(u64, u64)>> {
        if at >= stop {
            return Ok(None);
        }
        Ok(disk.next_data(at)?.map(|(start, end)| (start, end.min(stop))).filter(|(start, _)| *start < stop))
    };
    let mut extent = next(first)?;
    while let Some((start, _)) = extent {
        let index = start / BLOCK;
        let (begin, length) = (index * BLOCK, length_of(index, size));
        let end = begin + length as u64;
        let (mut block, used) = to.shared.buffer(length);
        // A buffer of the allocator is zeroes: what no extent covers need not be cleared.
        let mut filled = begin;
        while let Some((start, until)) = extent.filter(|(start, _)| *start < end) {
            let (low, high) = (start.max(begin) / 512 * 512, until.next_multiple_of(512).min(end));
            if used && low > filled {
                block[(filled - begin) as usize..(low - begin) as usize].fill(0);
            }
            disk.read_at(&mut block[(low - begin) as usize..(high - begin) as usize], low)?;
            filled = high;
            counts.done += high - low;
            extent = if until > end { Some((end, until)) } else { next(until)? };
        }
        if used {
            block[(filled - begin) as usize..].fill(0);
        }
        if !to.hand_over(Job { number: counts.number, index, block }) {
            return Ok(false);
        }
        counts.number += 1;
        progress(counts.done, from.total.max(counts.done));
        if let Some(rate) = from.rate {
            let due = Duration::from_secs_f64(counts.done as f64 / rate.max(1) as f64);
            std::thread::sleep(due.saturating_sub(counts.begun.elapsed()));
        }
    }
    Ok(true)
}

/// Reads the blocks that may have changed, those that the disk did not have before among them.
fn read_changed(from: &From, since: &Since, changed: &[(u64, u64)], progress: Progress, to: &Giver) -> Result<()> {
    let size = from.disk.size();
    let count = size.div_ceil(BLOCK);
    // The last block of a disk that has another size now, and all behind it.
    let resized = (since.size != size).then_some((since.size.min(size) / BLOCK, count));
    let mut runs: Vec<(u64, u64)> =
        changed.iter().map(|(low, high)| (low / BLOCK, high.div_ceil(BLOCK))).chain(resized).collect();
    runs.sort_unstable();
    let (mut counts, mut next) = (Counts::now(), 0);
    for (first, last) in runs {
        let (first, last) = (first.max(next), last.min(count));
        next = next.max(last);
        let mut index = first;
        while index < last {
            // A block with nothing in it is told of as well: it may have had something.
            let data = from.disk.next_data(index * BLOCK)?.map_or(last, |(start, _)| (start / BLOCK).min(last));
            for empty in index..data {
                if !to.hand_over(Job { number: counts.number, index: empty, block: Vec::new() }) {
                    return Ok(());
                }
                counts.number += 1;
            }
            if data == last {
                break;
            }
            let end = ((data + 1) * BLOCK).min(size);
            if !read(from, data * BLOCK, end, progress, to, &mut counts)? {
                return Ok(());
            }
            index = data + 1;
        }
    }
    Ok(())
}

impl Shared<'_> {
    fn make(&self, job: &Job, packer: &mut Option<Packer>) -> Result<Made> {
        if is_zero(&job.block) {
            return Ok(Made::Zero);
        }
        let (digest, compression) = (self.packing.digest(self.uuid, job.index, &job.block), self.packing.compression);
        if let Some(Entry::Stored(stored)) = self.since.and_then(|since| since.block(job.index, self.size))
            && stored.digest == digest
        {
            return Ok(Made::Same);
        }
        let failed = || Error::io("write", self.path);
        if !compression.is_packed() {
            let begin = job.index * BLOCK;
            let one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            without_zeroes(&job.block, begin, &mut |offset, bytes| {
                self.to.write_all_at(bytes, offset).map_err(failed())
            })?;
            drop(one);
            self.writeback.wrote(begin, job.block.len() as u64).map_err(failed())?;
            return Ok(Made::Written(digest));
        }
        if packer.is_none() {
            *packer = Some(Packer::new(compression).map_err(failed())?);
        }
        let packer = packer.as_mut().expect("it was just made");
        Ok(Made::Packed(digest, packer.pack(&job.block).map_err(failed())?))
    }
}
