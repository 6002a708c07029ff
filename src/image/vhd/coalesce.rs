//! Coalescing: the sectors of a child are copied into its parent, which afterwards holds all that the child shows.
//!
//! Works block by block, several at a time; the parent's bitmaps are merged in memory and written once.
//!
//! 1. Copy the child's sectors into the parent's blocks, new ones being allocated.
//! 2. Publish new blocks and bits by [`Image::flush`]; from time to time, and at the end.
//!
//! Children of each other go into the parent together, the lowest first, and are published once.
//!
//! As long as the child is the parent's only child, no disk shows those bytes of the parent that the child holds as well.
//! So a crash leaves every disk as it was, and doing it again completes it. The child is not changed. Relinking the children of the
//! child, or renaming the parent into its place, is the caller's next step, never before this returned `Ok`.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::bitmap::Bitmap;
use super::chain::pieces;
use super::image::{Image, Lookup};
use super::opening::{check_link, fixed_size};
use super::query::query;
use super::{Kind, SECTOR, Storage};
use crate::error::{Error, Result};
use crate::types::Size;

/// Where a child is coalesced to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// Opened for writing.
    Vhd(&'a Image),
    /// A fixed VHD: its data is where that of a raw image is, and its footer is left alone.
    Fixed(&'a dyn Storage),
    Raw(&'a dyn Storage),
}

impl Target<'_> {
    fn place(&self) -> &dyn Storage {
        match self {
            Target::Vhd(image) => &**image.place(),
            Target::Fixed(place) | Target::Raw(place) => *place,
        }
    }

    /// Bytes of the disk that it holds.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not the parent that `child` names, or larger than it: what lies past the end of the
    /// child would come to light when the parent takes its place.
    fn checked(&self, child: &Image) -> Result<u64> {
        let (info, size) = match self {
            Target::Vhd(image) => (Some(image.info()), image.virtual_size()),
            Target::Fixed(place) => {
                let info = query(*place)?;
                if info.kind != Kind::Fixed {
                    return Err(place.damaged("it is no fixed VHD"));
                }
                let size = fixed_size(*place, &info)?;
                (Some(info), size)
            }
            Target::Raw(place) => (None, place.len()?),
        };
        check_link(&**child.place(), &child.info(), self.place(), info.as_ref())?;
        // A volume has whole extents.
        let rounded = matches!(self, Target::Raw(place) if place.is_device());
        if size > child.virtual_size() && !rounded {
            let (small, parent) = (child.virtual_size(), self.place().path().display());
            return Err(child.place().damaged(format!(
                "it has {small} bytes and its parent {parent} has {size}: merged, the disk would show more than it has"
            )));
        }
        Ok(size)
    }
}

/// From this length on a run is copied inside the kernel, which may share it instead.
const KERNEL_COPY: u64 = 64 << 10;

/// Copies what `child` holds into `parent`. `progress` is told the bytes that the last step copied and all so far,
/// from several threads, and ends the work by [`ControlFlow::Break`]. Returns the sectors of the child.
///
/// # Errors
/// Before anything was written: [`Error::Damaged`] if the parent is not the image that the child names
/// ([`super::check_parent`]) or is larger than it; [`Error::TooBig`] if the child holds sectors past the end of the
/// parent: grow it first. [`Error::Io`] with `ECANCELED` if `progress` said so. [`Error::Io`], [`Error::Damaged`].
pub fn coalesce(child: &Image, parent: Target, progress: &(dyn Fn(u64, u64) -> ControlFlow<()> + Sync)) -> Result<u64> {
    coalesce_all(std::slice::from_ref(child), parent, progress)
}

/// As [`coalesce`], of several images, which are published together: the parent's child, the child of that, and so on. The caller
/// knows that each is the parent of the next.
///
/// # Errors
/// As [`coalesce`]; the first image alone is compared with the parent.
pub fn coalesce_all(
    children: &[Image],
    parent: Target,
    progress: &(dyn Fn(u64, u64) -> ControlFlow<()> + Sync),
) -> Result<u64> {
    let Some(lowest) = children.first() else { return Ok(0) };
    let limit = parent.checked(lowest)?;
    let blocks = |child: &Image| -> Vec<u32> { child.allocated().map(|(block, _)| block).collect() };
    let all: Vec<(&Image, Vec<u32>)> = children.iter().map(|child| (child, blocks(child))).collect();
    all.iter().try_for_each(|(child, todo)| check_size(child, parent, limit, todo))?;
    let sectors = AtomicU64::new(0);
    all.iter().try_for_each(|(child, todo)| copy(child, parent, todo, &sectors, progress))?;
    match parent {
        Target::Vhd(image) => image.flush()?,
        Target::Fixed(place) | Target::Raw(place) => place.flush()?,
    }
    Ok(sectors.into_inner())
}

/// Copies these blocks of a child, several at a time, and adds what it copied to `sectors`. Nothing is published.
fn copy(
    child: &Image,
    parent: Target,
    todo: &[u32],
    sectors: &AtomicU64,
    progress: &(dyn Fn(u64, u64) -> ControlFlow<()> + Sync),
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let work = || -> Result<()> {
        let mut copier = Copier { child, parent, buf: Vec::new() };
        while !stop.load(Relaxed) {
            let Some(block) = todo.get(next.fetch_add(1, Relaxed)) else { break };
            let step = copier.block(*block)?;
            let all = sectors.fetch_add(step, Relaxed) + step;
            if progress(step * SECTOR, all * SECTOR).is_break() {
                return Err(parent.place().fail("coalesce into")(io::Error::from_raw_os_error(nix::libc::ECANCELED)));
            }
        }
        Ok(())
    };
    let guarded = || {
        if let Err(error) = work() {
            stop.store(true, Relaxed);
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4).min(todo.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Fewer do as well.
            let _ = std::thread::Builder::new().spawn_scoped(scope, guarded);
        }
        guarded();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn check_size(child: &Image, parent: Target, limit: u64, todo: &[u32]) -> Result<()> {
    for block in todo.iter().filter(|block| (u64::from(**block) + 1) * child.block_size() > limit) {
        let last = match child.lookup(*block)? {
            Lookup::Absent => continue,
            Lookup::Full(_) => child.sectors(),
            Lookup::Mixed(_, map) => {
                map.runs(0..child.sectors()).filter(|(_, here)| *here).last().map_or(0, |(run, _)| run.end)
            }
        };
        // A full block may reach past the end of the disk.
        let end = (u64::from(*block) * child.block_size() + u64::from(last) * SECTOR).min(child.virtual_size());
        if end > limit {
            return Err(Error::TooBig {
                what: "the data of a child image",
                bytes: end,
                limit: format!("{} holds {}; grow it first", parent.place().path().display(), Size(limit)),
            });
        }
    }
    Ok(())
}

struct Copier<'a> {
    child: &'a Image,
    parent: Target<'a>,
    buf: Vec<u8>,
}

impl Copier<'_> {
    /// Copies one block and returns the sectors that the child has of it.
    fn block(&mut self, block: u32) -> Result<u64> {
        let (from, map) = match self.child.lookup(block)? {
            Lookup::Absent => return Ok(0),
            Lookup::Full(data) => (data, Box::new(Bitmap::FULL)),
            Lookup::Mixed(data, map) => (data, map),
        };
        let start = u64::from(block) * self.child.block_size();
        let inside = ((self.child.virtual_size() - start).div_ceil(SECTOR)).min(u64::from(self.child.sectors())) as u32;
        let runs: Vec<Range<u32>> = map.runs(0..inside).filter(|(_, here)| *here).map(|(run, _)| run).collect();
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(0) };
        let span = first.start..last.end;
        let count: u64 = runs.iter().map(|run| u64::from(run.end - run.start)).sum();

        if let Target::Vhd(image) = self.parent
            && image.block_size() != self.child.block_size()
        {
            self.across(image, start, from, &runs)?;
            return Ok(count);
        }
        if self.is_hole(from, &span)? {
            self.zeros(block, &map, &runs)?;
            return Ok(count);
        }
        let (to, new) = match self.parent {
            Target::Fixed(_) | Target::Raw(_) => (start, false),
            Target::Vhd(image) => {
                let new = image.entry(block).is_none();
                (image.data_for_write(block)?, new)
            }
        };
        let (source, target) = (&**self.child.place(), self.parent.place());
        let bytes = |sectors: u32| u64::from(sectors) * SECTOR;
        if runs.len() <= 8 {
            for run in &runs {
                let (at, len) = (bytes(run.start), bytes(run.end - run.start));
                if len >= KERNEL_COPY {
                    source.copy_to(from + at, len, target, to + at, &mut self.buf)?;
                } else {
                    self.buf.resize(len as usize, 0);
                    source.get(&mut self.buf, from + at)?;
                    target.put(&self.buf, to + at)?;
                }
            }
        } else {
            let len = bytes(span.end - span.start);
            self.buf.resize(len as usize, 0);
            source.get(&mut self.buf, from + bytes(span.start))?;
            let part = |run: &Range<u32>| bytes(run.start - span.start) as usize..bytes(run.end - span.start) as usize;
            if new && count * 4 >= u64::from(span.end - span.start) {
                // One write; between the runs zeros, which no bit leads to.
                for pair in runs.windows(2) {
                    self.buf[part(&(pair[0].end..pair[1].start))].fill(0);
                }
                target.put(&self.buf, to + bytes(span.start))?;
            } else {
                for run in &runs {
                    target.put(&self.buf[part(run)], to + bytes(run.start))?;
                }
            }
        }
        if let Target::Vhd(image) = self.parent {
            image.mark(block, |bits| merge(bits, &map, &runs, image.sectors()))?;
            image.bound_dirty()?;
        }
        Ok(count)
    }

    /// Copies runs of a block that starts at byte `start` of the disk, and whose data is at `from`, into blocks of
    /// another size.
    fn across(&mut self, into: &Image, start: u64, from: u64, runs: &[Range<u32>]) -> Result<()> {
        for run in runs {
            let (at, len) = (u64::from(run.start) * SECTOR, u64::from(run.end - run.start) * SECTOR);
            let hole = self.is_hole(from, run)?;
            for (block, sectors, part) in pieces(start + at, len, into.block_size()) {
                if !hole {
                    self.buf.resize(part.len(), 0);
                    self.child.place().get(&mut self.buf, from + at + part.start as u64)?;
                    into.write_block(block, sectors.start, &self.buf)?;
                } else if into.entry(block).is_some() || into.info().kind != Kind::Dynamic {
                    into.zero_block(block, sectors)?;
                }
            }
        }
        Ok(())
    }

    /// True if the file of the child has a hole for all of the span: it was discarded.
    fn is_hole(&self, from: u64, span: &Range<u32>) -> Result<bool> {
        let place = &**self.child.place();
        let (start, end) = (from + u64::from(span.start) * SECTOR, from + u64::from(span.end) * SECTOR);
        Ok(place.next_data(start, end).map_err(place.fail("look for data in"))?.is_none())
    }

    fn zeros(&self, block: u32, map: &Bitmap, runs: &[Range<u32>]) -> Result<()> {
        let bytes = |sectors: u32| u64::from(sectors) * SECTOR;
        match self.parent {
            Target::Fixed(place) | Target::Raw(place) => runs.iter().try_for_each(|run| {
                place.zero(u64::from(block) * self.child.block_size() + bytes(run.start), bytes(run.end - run.start))
            }),
            // Absent from an image without parent is zero already.
            Target::Vhd(image) if image.entry(block).is_none() && image.info().kind == Kind::Dynamic => Ok(()),
            Target::Vhd(image) => {
                let to = image.data_for_write(block)?;
                for run in runs {
                    image.place().zero(to + bytes(run.start), bytes(run.end - run.start))?;
                }
                image.mark(block, |bits| merge(bits, map, runs, image.sectors()))?;
                image.bound_dirty()
            }
        }
    }
}

/// The child's bits into the parent's: all of a full block, or those of the runs.
fn merge(bits: &mut Bitmap, map: &Bitmap, runs: &[Range<u32>], sectors: u32) -> bool {
    if map.is_full(sectors) {
        return bits.merge(map);
    }
    let mut changed = false;
    for run in runs {
        changed |= bits.set(run.clone());
    }
    changed
}
