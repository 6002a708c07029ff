//! A disk as its guest sees it: an image on top of its parents.

use std::path::PathBuf;
use std::sync::Arc;

use super::image::{Image, What};
use super::{CLUSTER, SECTOR, Storage};
use crate::error::{Error, Result, one_line};
use crate::image::disk::{Disk, DiskWriter, Served};
use crate::image::{MAX_DEPTH, Reading};
use crate::types::Mode;

/// A parent, as a caller's resolver finds it.
#[derive(Debug)]
pub enum Parent {
    Qcow2(Arc<dyn Storage>),
    /// Bytes as they are.
    Raw(Arc<dyn Storage>),
}

impl Parent {
    /// As headers call it.
    fn format(&self) -> &'static str {
        match self {
            Parent::Qcow2(_) => "qcow2",
            Parent::Raw(_) => "raw",
        }
    }
}

/// A leaf and its ancestors. Offsets and lengths are bytes and multiples of 512. Any number of threads may use it.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
    size: u64,
    reading: Reading,
}

#[derive(Debug)]
enum Layer {
    Image(Box<Image>),
    /// Of so many bytes.
    Raw(Arc<dyn Storage>, u64),
    /// A parent that cannot be opened, and why: its child stands for it. Of a chain that is open to be rescued.
    Lost(Arc<dyn Storage>, String),
}

impl Layer {
    fn size(&self) -> u64 {
        match self {
            Layer::Image(image) => image.virtual_size(),
            Layer::Raw(_, size) => *size,
            Layer::Lost(..) => u64::MAX / SECTOR * SECTOR,
        }
    }

    /// The first `len` bytes from `offset` on that are all of one kind.
    fn look(&self, offset: u64, len: u64) -> Result<(What, u64)> {
        let here = self.size().saturating_sub(offset).min(len);
        match self {
            // Past the end of a parent, a disk reads as zeroes.
            _ if here == 0 => Ok((What::Zero(None), len)),
            Layer::Image(image) => image.look(offset, here),
            Layer::Raw(..) => Ok((What::Data(offset, true), here)),
            Layer::Lost(child, why) => Err(lost(child, why)),
        }
    }

    fn place(&self) -> &dyn Storage {
        match self {
            Layer::Image(image) => &**image.place(),
            Layer::Raw(place, _) | Layer::Lost(place, _) => &**place,
        }
    }
}

/// The refusal to read what only a parent that cannot be opened may hold.
fn lost(child: &Arc<dyn Storage>, why: &str) -> Error {
    child.damaged(format!("its parent is lost: {why}"))
}

/// A chain that is being opened.
struct Opening {
    layers: Vec<Layer>,
    names: Vec<String>,
    reading: Reading,
}

impl Opening {
    /// Adds an image, and finds the parent that it names.
    fn add(
        &mut self,
        found: Parent,
        mode: Mode,
        resolve: &mut dyn FnMut(&str) -> Result<Parent>,
    ) -> Result<Option<Parent>> {
        let place = match &found {
            Parent::Raw(place) | Parent::Qcow2(place) => place,
        };
        for layer in &self.layers {
            if Layer::place(layer).is_same(&**place)? {
                return Err(place.damaged("its chain of parents meets itself"));
            }
        }
        let place = match found {
            Parent::Raw(place) => {
                let size = place.len()?;
                self.layers.push(Layer::Raw(place, size));
                return Ok(None);
            }
            Parent::Qcow2(place) => place,
        };
        let image = Image::open_as(place, mode, self.reading)?;
        let parent = self.parent_of(&image, resolve);
        // What an image holds is there also if its parent is not.
        let parent = if self.reading == Reading::Whole { Ok(parent?) } else { parent };
        self.layers.push(Layer::Image(Box::new(image)));
        parent
    }

    fn parent_of(&mut self, image: &Image, resolve: &mut dyn FnMut(&str) -> Result<Parent>) -> Result<Option<Parent>> {
        let place = &**image.place();
        let Some(name) = image.header().parent(place)? else { return Ok(None) };
        if self.names.iter().any(|before| before == name) || self.names.len() >= MAX_DEPTH {
            return Err(place.damaged("its chain of parents meets itself or is too long"));
        }
        let found = resolve(name)?;
        image.header().refuse_parent(place, name, found.format())?;
        self.names.push(name.to_owned());
        Ok(Some(found))
    }
}

impl Chain {
    /// Opens `leaf` in `mode` and its ancestors read-only. `resolve` finds the parent: it is given the name of a file,
    /// without directories, and must return a file of the same SR, whatever that name is.
    ///
    /// # Errors
    /// Those of `resolve`, [`Header::parent`](super::Header::parent) and [`Image::open`]; [`Error::Damaged`] if the chain
    /// meets itself or is too long, or if a child says that its parent is of another format.
    pub fn open(leaf: Parent, mode: Mode, resolve: impl FnMut(&str) -> Result<Parent>) -> Result<Self> {
        Self::open_as(leaf, mode, Reading::Whole, resolve)
    }

    /// Opens a chain for reading, whatever can be read of it: see [`Reading::Rescue`].
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`] and [`Error::Io`] of the leaf's header and L1 table.
    pub fn rescue(leaf: Parent, resolve: impl FnMut(&str) -> Result<Parent>) -> Result<Self> {
        Self::open_as(leaf, Mode::ReadOnly, Reading::Rescue, resolve)
    }

    fn open_as(
        leaf: Parent,
        mode: Mode,
        reading: Reading,
        mut resolve: impl FnMut(&str) -> Result<Parent>,
    ) -> Result<Self> {
        let mut opening = Opening { layers: Vec::new(), names: Vec::new(), reading };
        let mut next = Some(leaf);
        let mut mode = mode;
        while let Some(found) = next.take() {
            next = match (opening.add(found, mode, &mut resolve), opening.layers.last()) {
                (Err(why), Some(Layer::Image(child))) if reading == Reading::Rescue => {
                    let child = child.place().clone();
                    opening.layers.push(Layer::Lost(child, one_line(&why)));
                    None
                }
                (parent, _) => parent?,
            };
            mode = Mode::ReadOnly;
        }
        let size = opening.layers.first().map_or(0, Layer::size);
        Ok(Chain { layers: opening.layers, size, reading })
    }

    /// Opens an image that has no parent.
    ///
    /// # Errors
    /// As [`Chain::open`]; [`Error::Unsupported`] for one that has.
    pub fn open_single(place: Arc<dyn Storage>, mode: Mode) -> Result<Self> {
        Self::open(Parent::Qcow2(place), mode, |name| {
            Err(Error::Unsupported {
                op: "opening a qcow2 alone",
                why: format!("its parent is {name:?}; qemu-img convert makes one image of both"),
            })
        })
    }

    /// Opens an image that has no parent, to be read and taken in: it must not contradict itself.
    ///
    /// # Errors
    /// As [`Chain::open_single`] and [`Image::refuse_overlaps`].
    pub fn open_to_import(place: Arc<dyn Storage>) -> Result<Self> {
        let chain = Self::open_single(place, Mode::ReadOnly)?;
        match &chain.layers[0] {
            Layer::Image(image) => image.refuse_overlaps()?,
            Layer::Raw(..) | Layer::Lost(..) => {}
        }
        Ok(chain)
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

    fn read_from(&self, layer: usize, buf: &mut [u8], offset: u64) -> Result<()> {
        let Some(this) = self.layers.get(layer) else {
            buf.fill(0);
            return Ok(());
        };
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (what, run) = this.look(at, (buf.len() - done) as u64)?;
            let part = &mut buf[done..done + run as usize];
            match what {
                What::Absent(_) => self.read_from(layer + 1, part, at)?,
                What::Zero(_) => part.fill(0),
                What::Data(host, _) => match this {
                    // No entry leads to a cluster before the file is so long: it was cut off.
                    Layer::Image(_) => this.place().get_exact(part, host, "a cluster")?,
                    Layer::Raw(..) | Layer::Lost(..) => this.place().get(part, host)?,
                },
                What::Compressed(entry) => {
                    let Layer::Image(image) = this else { unreachable!("a raw layer has no entries") };
                    let within = (at % image.header().cluster()) as usize;
                    part.copy_from_slice(&image.inflate(entry)?[within..][..part.len()]);
                }
            }
            done += run as usize;
        }
        Ok(())
    }

    /// Whether any layer from `layer` on holds data at `offset`, and for how many bytes that is so, at most `len`.
    fn has_data(&self, layer: usize, offset: u64, len: u64) -> Result<(bool, u64)> {
        let Some(this) = self.layers.get(layer) else { return Ok((false, len)) };
        let (what, run) = match this.look(offset, len) {
            // One that cannot be read is data, which reading then refuses. Its neighbours are not.
            Err(_) if self.reading == Reading::Rescue => {
                let step = (CLUSTER - offset % CLUSTER).min(len);
                match this.look(offset, step) {
                    Ok(found) => found,
                    Err(_) => return Ok((true, step)),
                }
            }
            found => found?,
        };
        match (what, this) {
            (What::Absent(_), _) => self.has_data(layer + 1, offset, run),
            (What::Zero(_), _) => Ok((false, run)),
            (_, Layer::Raw(place, _)) => {
                let end = offset + run;
                match place.next_data(offset, end).map_err(place.fail("look for data in"))? {
                    Some(data) if data <= offset => {
                        let hole = place.next_hole(offset, end).map_err(place.fail("look for holes in"))?;
                        Ok((true, (hole.next_multiple_of(SECTOR)).min(end) - offset))
                    }
                    data => match data.unwrap_or(end) / SECTOR * SECTOR - offset {
                        0 => Ok((true, SECTOR.min(run))),
                        hole => Ok((false, hole)),
                    },
                }
            }
            _ => Ok((true, run)),
        }
    }
}

impl Served for Chain {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn images(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| layer.place().path().to_owned()).collect()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.read_from(0, buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        match &self.layers[0] {
            Layer::Raw(place, _) => place.put(bytes, offset),
            Layer::Lost(child, why) => Err(lost(child, why)),
            Layer::Image(image) => image.write(bytes, offset, &|buf, at| self.read_from(1, buf, at)),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        let mut at = offset;
        while at < offset + len {
            let (data, run) = self.has_data(0, at, offset + len - at)?;
            match &self.layers[0] {
                _ if !data => {}
                Layer::Raw(place, _) => place.zero(at, run)?,
                Layer::Lost(child, why) => return Err(lost(child, why)),
                Layer::Image(image) => image.zero(at, run, &|buf, at| self.read_from(1, buf, at))?,
            }
            at += run;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        match &self.layers[0] {
            Layer::Raw(place, _) => place.flush(),
            Layer::Lost(child, why) => Err(lost(child, why)),
            Layer::Image(image) => image.flush(),
        }
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.flush()?;
        match &self.layers[0] {
            Layer::Image(image) => image.reclaim(),
            Layer::Raw(..) | Layer::Lost(..) => Ok(()),
        }
    }
}

impl Disk for Chain {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        let mut at = from;
        while at < self.size {
            let (data, run) = self.has_data(0, at, self.size - at)?;
            if data {
                return Ok(Some((at, at + run)));
            }
            at += run;
        }
        Ok(None)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Served::read_at(self, buf, offset)
    }

    fn lost_at(&self, offset: u64, len: u64) -> u64 {
        let mut len = len;
        for layer in &self.layers {
            let image = match layer {
                Layer::Lost(..) => return len,
                Layer::Image(image) if offset < image.virtual_size() => image,
                _ => return 0,
            };
            len = len.min(image.told_by_one_entry(offset));
            match image.look(offset, len) {
                Err(_) => return len,
                Ok((What::Absent(_), run)) => len = len.min(run),
                Ok(_) => return 0,
            }
        }
        0
    }
}

impl DiskWriter for Chain {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        Served::write_at(self, bytes, offset)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.close()
    }
}
