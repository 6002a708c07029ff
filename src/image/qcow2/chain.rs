//! A disk as its guest sees it: an image on top of its parents.

use std::path::PathBuf;
use std::sync::Arc;

use super::image::{Image, What};
use super::{SECTOR, Storage};
use crate::error::{Error, Result};
use crate::image::MAX_DEPTH;
use crate::image::disk::{Disk, DiskWriter, Served};
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
}

#[derive(Debug)]
enum Layer {
    Image(Box<Image>),
    /// Of so many bytes.
    Raw(Arc<dyn Storage>, u64),
}

impl Layer {
    fn size(&self) -> u64 {
        match self {
            Layer::Image(image) => image.virtual_size(),
            Layer::Raw(_, size) => *size,
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
        }
    }

    fn place(&self) -> &dyn Storage {
        match self {
            Layer::Image(image) => &**image.place(),
            Layer::Raw(place, _) => &**place,
        }
    }
}

impl Chain {
    /// Opens `leaf` in `mode` and its ancestors read-only. `resolve` finds the parent: it is given the name of a file,
    /// without directories, and must return a file of the same SR, whatever that name is.
    ///
    /// # Errors
    /// Those of `resolve`, [`Header::parent`](super::Header::parent) and [`Image::open`]; [`Error::Damaged`] if the chain
    /// meets itself or is too long, or if a child says that its parent is of another format.
    pub fn open(leaf: Parent, mode: Mode, mut resolve: impl FnMut(&str) -> Result<Parent>) -> Result<Self> {
        let mut layers: Vec<Layer> = Vec::new();
        let mut names: Vec<String> = Vec::new();
        let mut next = Some(leaf);
        let mut mode = mode;
        while let Some(parent) = next.take() {
            let place = match &parent {
                Parent::Raw(place) | Parent::Qcow2(place) => place,
            };
            for layer in &layers {
                if Layer::place(layer).is_same(&**place)? {
                    return Err(place.damaged("its chain of parents meets itself"));
                }
            }
            match parent {
                Parent::Raw(place) => {
                    let size = place.len()?;
                    layers.push(Layer::Raw(place, size));
                }
                Parent::Qcow2(place) => {
                    let image = Image::open(place, mode)?;
                    let place = &**image.place();
                    if let Some(name) = image.header().parent(place)? {
                        if names.iter().any(|before| before == name) || names.len() >= MAX_DEPTH {
                            return Err(place.damaged("its chain of parents meets itself or is too long"));
                        }
                        let found = resolve(name)?;
                        image.header().refuse_parent(place, name, found.format())?;
                        names.push(name.to_owned());
                        next = Some(found);
                    }
                    layers.push(Layer::Image(Box::new(image)));
                }
            }
            mode = Mode::ReadOnly;
        }
        let size = layers.first().map_or(0, Layer::size);
        Ok(Chain { layers, size })
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
            Layer::Raw(..) => {}
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
                    Layer::Raw(..) => this.place().get(part, host)?,
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
        let (what, run) = this.look(offset, len)?;
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
                Layer::Image(image) => image.zero(at, run, &|buf, at| self.read_from(1, buf, at))?,
            }
            at += run;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        match &self.layers[0] {
            Layer::Raw(place, _) => place.flush(),
            Layer::Image(image) => image.flush(),
        }
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.flush()?;
        match &self.layers[0] {
            Layer::Image(image) => image.reclaim(),
            Layer::Raw(..) => Ok(()),
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
}

impl DiskWriter for Chain {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        Served::write_at(self, bytes, offset)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.close()
    }
}
