//! A disk as its guest sees it: an image on top of its parents.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::image::{Image, Lookup};
use super::opening::Opening;
use super::query::{Info, Meta, ParentInfo};
use super::{BLOCK, SECTOR, Storage};
use crate::error::{Error, Result};
use crate::image::Reading;
use crate::image::disk::Served;
use crate::types::Mode;

/// A parent, as a caller's resolver finds it.
#[derive(Debug)]
pub enum Parent {
    /// A VHD, whose UUID must be the one the child names.
    Vhd(Arc<dyn Storage>),
    /// Bytes as they are.
    Raw(Arc<dyn Storage>),
}

/// A leaf and its ancestors. Offsets and lengths are bytes and multiples of 512. Any number of threads may use it.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
    size: u64,
    reading: Reading,
}

#[derive(Debug)]
pub(super) enum Layer {
    Sparse(Box<Image>),
    /// A raw image, or the data of a fixed one, of so many bytes.
    Flat(Arc<dyn Storage>, u64),
    /// A parent that cannot be opened, and why: its child stands for it. Of a chain that is open to be rescued.
    Lost(Arc<dyn Storage>, String),
}

impl Layer {
    fn size(&self) -> u64 {
        match self {
            Layer::Sparse(image) => image.virtual_size(),
            Layer::Flat(_, size) => *size,
            Layer::Lost(..) => u64::MAX / SECTOR * SECTOR,
        }
    }

    pub(super) fn place(&self) -> &dyn Storage {
        match self {
            Layer::Sparse(image) => &**image.place(),
            Layer::Flat(place, _) | Layer::Lost(place, _) => &**place,
        }
    }
}

/// A stretch of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub len: u64,
    /// `true`: some layer holds it. `false`: it reads as zeros.
    pub data: bool,
}

impl Chain {
    /// Opens `leaf` in `mode` and its ancestors read-only. `resolve` finds the parent: it is given what the child's
    /// header says, and must return a file of the same SR, whatever name stands in that header.
    ///
    /// # Errors
    /// Those of `resolve` and [`Image::open`]; [`Error::Damaged`] if a parent is not the image that its child
    /// names, or the chain meets itself or is longer than [`MAX_DEPTH`](crate::image::MAX_DEPTH).
    pub fn open(
        leaf: Arc<dyn Storage>,
        mode: Mode,
        resolve: impl FnMut(&ParentInfo) -> Result<Parent>,
    ) -> Result<Self> {
        Self::open_as(leaf, mode, Reading::Whole, resolve)
    }

    /// Opens a chain for reading, whatever can be read of it: see [`Reading::Rescue`].
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`] and [`Error::Io`] of the leaf's headers.
    pub fn rescue(leaf: Arc<dyn Storage>, resolve: impl FnMut(&ParentInfo) -> Result<Parent>) -> Result<Self> {
        Self::open_as(leaf, Mode::ReadOnly, Reading::Rescue, resolve)
    }

    fn open_as(
        leaf: Arc<dyn Storage>,
        mode: Mode,
        reading: Reading,
        mut resolve: impl FnMut(&ParentInfo) -> Result<Parent>,
    ) -> Result<Self> {
        let mut opening = Opening::new(reading);
        let mut next = Some(Parent::Vhd(leaf));
        let mut mode = mode;
        while let Some(found) = next.take() {
            next = match opening.add(found, mode, &mut resolve) {
                Err(why) if reading == Reading::Rescue && !opening.layers.is_empty() => {
                    opening.lose(&why);
                    None
                }
                parent => parent?,
            };
            mode = Mode::ReadOnly;
        }
        let size = opening.layers.first().map_or(0, Layer::size);
        Ok(Chain { layers: opening.layers, size, reading })
    }

    /// Opens an image that has no parent, or whose parent does not matter.
    ///
    /// # Errors
    /// As [`Chain::open`]; [`Error::Unsupported`] for a differencing image.
    pub fn open_single(place: Arc<dyn Storage>, mode: Mode) -> Result<Self> {
        Self::open(place, mode, |link| {
            Err(Error::Unsupported { op: "opening a VHD alone", why: format!("its parent is {:?}", link.name) })
        })
    }

    /// Bytes the guest sees.
    pub fn virtual_size(&self) -> u64 {
        self.size
    }

    /// Images in the chain; a raw parent counts.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The image of the leaf, `None` if it is a fixed one.
    pub fn leaf(&self) -> Option<&Image> {
        match self.layers.first() {
            Some(Layer::Sparse(image)) => Some(image),
            _ => None,
        }
    }

    /// The facts in the leaf's headers.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Damaged`], of a fixed image only.
    pub fn info(&self) -> Result<Info> {
        match &self.layers[0] {
            Layer::Sparse(image) => Ok(image.info()),
            Layer::Flat(place, _) => Meta::read(&**place).map(|meta| meta.info()),
            Layer::Lost(child, why) => Err(lost(child, why)),
        }
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        let aligned = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        if aligned && offset.checked_add(len).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        Err(Error::Invalid {
            what: "range",
            value: format!("{offset}+{len}"),
            expected: format!("expected multiples of 512 within {} bytes", self.size),
        })
    }

    /// Reads `buf.len()` bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a range that is not in the disk; [`Error::Io`], [`Error::Damaged`].
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.read_layer(0, offset, buf)
    }

    fn read_layer(&self, depth: usize, at: u64, buf: &mut [u8]) -> Result<()> {
        let Some(layer) = self.layers.get(depth) else {
            buf.fill(0);
            return Ok(());
        };
        let here = (layer.size().saturating_sub(at)).min(buf.len() as u64) as usize;
        let (buf, beyond) = buf.split_at_mut(here);
        beyond.fill(0);
        let image = match layer {
            _ if buf.is_empty() => return Ok(()),
            Layer::Flat(place, _) => return place.get(buf, at),
            Layer::Lost(child, why) => return Err(lost(child, why)),
            Layer::Sparse(image) => image,
        };
        for (block, sectors, part) in pieces(at, here as u64, image.block_size()) {
            let (buf, at) = (&mut buf[part.clone()], at + part.start as u64);
            match image.lookup(block)? {
                Lookup::Absent => self.read_layer(depth + 1, at, buf)?,
                Lookup::Full(data) => image.place().get(buf, data + u64::from(sectors.start) * SECTOR)?,
                Lookup::Mixed(data, map) => {
                    let first = sectors.start;
                    for (run, present) in map.runs(sectors) {
                        let from = (run.start - first) as usize * SECTOR as usize;
                        let part = &mut buf[from..(run.end - first) as usize * SECTOR as usize];
                        if present {
                            image.place().get(part, data + u64::from(run.start) * SECTOR)?;
                        } else {
                            self.read_layer(depth + 1, at + from as u64, part)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes from `offset` on, at most `len`, of which the tables of the chain say that they are lost.
    pub fn lost_at(&self, offset: u64, len: u64) -> u64 {
        let mut len = len;
        for layer in &self.layers {
            let image = match layer {
                Layer::Lost(..) => return len,
                Layer::Sparse(image) if offset < image.virtual_size() => image,
                _ => return 0,
            };
            let (block, start) = ((offset / image.block_size()) as u32, offset % image.block_size());
            len = len.min(image.block_size() - start);
            match image.lookup(block) {
                Err(_) => return len,
                Ok(Lookup::Full(_)) => return 0,
                Ok(Lookup::Absent) => {}
                Ok(Lookup::Mixed(_, map)) => {
                    let first = (start / SECTOR) as u32;
                    match map.runs(first..first + len.div_ceil(SECTOR) as u32).next() {
                        Some((run, false)) => len = len.min(u64::from(run.end - run.start) * SECTOR),
                        _ => return 0,
                    }
                }
            }
        }
        0
    }

    /// Writes to the leaf. The data survives a crash after the next [`Chain::flush`].
    ///
    /// # Errors
    /// As [`Chain::read_at`]; [`Error::TooBig`] if the image would outgrow the format.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        match &self.layers[0] {
            Layer::Flat(place, _) => place.put(bytes, offset),
            Layer::Lost(child, why) => Err(lost(child, why)),
            Layer::Sparse(image) => {
                for (block, sectors, part) in pieces(offset, bytes.len() as u64, image.block_size()) {
                    image.write_block(block, sectors.start, &bytes[part])?;
                }
                Ok(())
            }
        }
    }

    /// Makes a range read as zeros; allocates no more than it must.
    ///
    /// # Errors
    /// As [`Chain::write_at`].
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        let mut at = offset;
        while at < offset + len {
            let extent = self.extent_at(at, offset + len, self.depth())?;
            if extent.data {
                match &self.layers[0] {
                    Layer::Flat(place, _) => place.zero(extent.offset, extent.len)?,
                    Layer::Lost(child, why) => return Err(lost(child, why)),
                    Layer::Sparse(image) => {
                        for (block, sectors, _) in pieces(extent.offset, extent.len, image.block_size()) {
                            image.zero_block(block, sectors)?;
                        }
                    }
                }
            }
            at += extent.len;
        }
        Ok(())
    }

    /// Makes everything written before survive a crash; [`Image::flush`] tells how. A write with FUA is a write
    /// and a flush.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&self) -> Result<()> {
        match &self.layers[0] {
            Layer::Flat(place, _) => place.flush(),
            Layer::Lost(child, why) => Err(lost(child, why)),
            Layer::Sparse(image) => image.flush(),
        }
    }

    /// Flushes and leaves the leaf as a closed image is; see [`Image::close`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn close(mut self) -> Result<()> {
        match self.layers.swap_remove(0) {
            Layer::Flat(place, _) => place.flush(),
            Layer::Lost(child, why) => Err(lost(&child, &why)),
            Layer::Sparse(image) => image.close(),
        }
    }

    /// The longest stretch from `offset`, at most to `end`, that is all data or all zeros, looking at the first
    /// `depth` layers only: with 1, what the leaf itself holds; with [`Chain::depth`], what the disk holds.
    ///
    /// # Errors
    /// As [`Chain::read_at`].
    pub fn extent_at(&self, offset: u64, end: u64, depth: usize) -> Result<Extent> {
        self.check(offset, end.saturating_sub(offset))?;
        let mut extent = Extent { offset, len: 0, data: false };
        let mut runs = Vec::new();
        // A piece at a time: it may end soon.
        for (_, _, part) in pieces(offset, end - offset, BLOCK) {
            runs.clear();
            let at = offset + part.start as u64;
            self.runs(0, depth, at..at + part.len() as u64, &mut runs)?;
            for (len, data) in &runs {
                if extent.len == 0 {
                    extent.data = *data;
                } else if extent.data != *data {
                    return Ok(extent);
                }
                extent.len += len;
            }
        }
        Ok(extent)
    }

    /// The stretches of a range in order; see [`Chain::extent_at`].
    pub fn extents(&self, offset: u64, end: u64, depth: usize) -> impl Iterator<Item = Result<Extent>> + '_ {
        let mut at = offset;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let extent = self.extent_at(at, end, depth);
                at = extent.as_ref().map_or(end, |e| e.offset + e.len);
                extent
            })
        })
    }

    /// Where a block is, as far as its stretches are concerned: one that cannot be read is data, which reading then refuses.
    fn found(&self, image: &Image, block: u32) -> Result<Lookup> {
        image.lookup(block).or_else(|e| if self.reading == Reading::Rescue { Ok(Lookup::Full(0)) } else { Err(e) })
    }

    /// Lengths of the stretches of a range in order, bytes, and whether they are data.
    fn runs(&self, layer: usize, depth: usize, range: Range<u64>, out: &mut Vec<(u64, bool)>) -> Result<()> {
        let Some(this) = self.layers.get(layer).filter(|_| layer < depth) else {
            out.push((range.end - range.start, false));
            return Ok(());
        };
        let stop = range.end.min(this.size().next_multiple_of(SECTOR)).max(range.start);
        match this {
            Layer::Flat(place, size) => flat_runs(&**place, *size, range.start..stop, out)?,
            Layer::Lost(..) => out.push((stop - range.start, true)),
            Layer::Sparse(image) => {
                for (block, sectors, part) in pieces(range.start, stop - range.start, image.block_size()) {
                    let at = range.start + part.start as u64;
                    let first = sectors.start;
                    match self.found(image, block)? {
                        Lookup::Absent => self.runs(layer + 1, depth, at..at + part.len() as u64, out)?,
                        Lookup::Full(_) => out.push((part.len() as u64, true)),
                        Lookup::Mixed(_, map) => {
                            for (run, present) in map.runs(sectors) {
                                let len = u64::from(run.end - run.start) * SECTOR;
                                let from = at + u64::from(run.start - first) * SECTOR;
                                if present {
                                    out.push((len, true));
                                } else {
                                    self.runs(layer + 1, depth, from..from + len, out)?;
                                }
                            }
                        }
                    }
                }
            }
        }
        if stop < range.end {
            out.push((range.end - stop, false));
        }
        Ok(())
    }
}

/// The refusal to read what only a parent that cannot be opened may hold.
fn lost(child: &Arc<dyn Storage>, why: &str) -> Error {
    child.damaged(format!("its parent is lost: {why}"))
}

impl Served for Chain {
    fn virtual_size(&self) -> u64 {
        self.virtual_size()
    }

    fn images(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| layer.place().path().to_owned()).collect()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.write_at(bytes, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.flush()
    }

    fn close(self: Box<Self>) -> Result<()> {
        (*self).close()
    }
}

/// Data and holes of a raw file, by whole sectors.
fn flat_runs(place: &dyn Storage, size: u64, range: Range<u64>, out: &mut Vec<(u64, bool)>) -> Result<()> {
    let mut at = range.start;
    let end = range.end.min(size);
    while at < range.end {
        let data = place.next_data(at, end).map_err(place.fail("look for data in"))?;
        let from = data.map_or(range.end, |data| (data / SECTOR * SECTOR).max(at));
        if from > at {
            out.push((from - at, false));
        }
        at = from;
        if let Some(data) = data {
            let hole = place.next_hole(data, end).map_err(place.fail("look for holes in"))?;
            let to = hole.next_multiple_of(SECTOR).clamp(from + SECTOR, range.end);
            out.push((to - from, true));
            at = to;
        }
    }
    Ok(())
}

/// A range cut at the blocks, of `size` bytes: block, sectors in it, and where that is in the buffer.
pub(crate) fn pieces(offset: u64, len: u64, size: u64) -> impl Iterator<Item = (u32, Range<u32>, Range<usize>)> {
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < offset + len).then(|| {
            let block = at / size;
            let stop = ((block + 1) * size).min(offset + len);
            let sectors = (at % size / SECTOR) as u32..((stop - block * size) / SECTOR) as u32;
            let part = (at - offset) as usize..(stop - offset) as usize;
            at = stop;
            (block as u32, sectors, part)
        })
    })
}
