//! `sm backup receive --sr`: the disks of a stream into an SR, without a store between.
//!
//! The stream has one run with every block, as `sm backup send --whole` makes it of any run. The blocks come in the order in which
//! the disks are made, and each is compared with its map before it is written. All disks are made or none, as by an import: a
//! stream that is cut leaves none, and is sent again from its beginning.

use std::cell::RefCell;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::codec::{Compression, unpack};
use super::super::import::{self, From, Imported, Places, Ready};
use super::super::manifest::Manifest;
use super::super::map::{Map, Stored, digest, hex, length_of};
use super::super::name::RunId;
use super::super::sign;
use super::super::verify::longest_map;
use super::super::{BLOCK, Call, record};
use super::incoming::Stream;
use super::{LONGEST_PART, Part, parts};
use crate::error::{Error, Result};
use crate::image::disk::Disk;
use crate::types::seconds_now;

/// Bytes of the longest map: that of a disk with 40 TiB of data.
const LONGEST_MAP: u64 = 1 << 30;

/// Makes VDIs of the disks of a stream, all or none. `name`: of `from`, in errors. Answers the disks, and warnings.
///
/// # Errors
/// [`Error::NotVerified`] for a stream that is none, or whose bytes are not what it says; [`Error::Unsupported`] for an increment or
/// an encrypted run; [`Error::Io`] if the stream ends too early; those of [`import::import`]. No VDI is left then.
pub fn receive(
    call: &Call,
    places: &Places,
    from: Box<dyn Read + Send>,
    name: &str,
) -> Result<(Vec<Imported>, Vec<String>)> {
    let mut stream = Stream::new(from, name);
    let set = stream.set()?;
    let _set = record::lock(&set, call.deadline())?;
    let mut warnings = record::recover(call, Some(&set))?;
    let Some(head) = stream.run()? else { return Err(stream.wrong("has no run")) };
    let mut blocks = Blocks { stream, left: head.bytes };
    if head.from != 0 {
        return Err(blocks.stream.wrong("does not begin with the first block of a run, as disks of an SR need it"));
    }
    let text = blocks.part(LONGEST_PART)?;
    let manifest = Manifest::parse(&text, Path::new(name))?;
    if digest(&text) != head.sha256 || manifest.name != set || manifest.run != head.run {
        return Err(blocks.stream.wrong("has a manifest that is not of the run that it names"));
    }
    sign::compare(&text, &manifest, Path::new(name))?;
    refuse_part(&manifest)?;
    let maps = blocks.maps(&manifest)?;
    let images = Images::of(blocks, manifest.compression, maps.clone());
    let images = Arc::new(Mutex::new(images));
    let ready = |(index, (size, stored)): (usize, Mapped)| {
        let data = stored.len() as u64 * BLOCK;
        let disk = Coming { index, size, stored, images: Arc::clone(&images), block: RefCell::new(None) };
        Ready { disk: Box::new(disk), data }
    };
    let disks = maps.into_iter().enumerate().map(ready).collect();
    let from = From { set: &set, store: None, run: &head.run, this: RunId::new(seconds_now().unwrap_or(0)) };
    let (made, said) = import::carry_out(call, &from, places, &manifest, disks, &mut || lock(&images).end())?;
    warnings.extend(said);
    Ok((made, warnings))
}

/// Refuses a run that is not a disk by itself, before anything is made.
fn refuse_part(manifest: &Manifest) -> Result<()> {
    let why = match (&manifest.parent, &manifest.encryption) {
        (Some(parent), _) => {
            format!("run {} is an increment on run {}; send it with --whole", manifest.run, parent.run)
        }
        (None, Some(_)) => {
            format!("run {} is encrypted; receive it into a store, and import it from there", manifest.run)
        }
        (None, None) => return Ok(()),
    };
    Err(Error::Unsupported { op: "receiving this run into an SR", why })
}

/// The bytes of a disk, and the blocks of it that come.
type Mapped = (u64, Arc<[Stored]>);

/// The blocks of a run.
struct Blocks {
    stream: Stream,
    /// Bytes that the line of the run promised, and that did not come yet.
    left: u64,
}

impl Blocks {
    /// Takes a block. Answers its length; [`Stream::taken`] has it.
    fn next(&mut self) -> Result<usize> {
        match self.stream.block(self.left)?.map(<[u8]>::len) {
            Some(length) => {
                self.left -= length as u64;
                Ok(length)
            }
            None => Err(self.stream.wrong("ends a run before its last block")),
        }
    }

    /// A part of `most` bytes at most: its last block is shorter than others.
    fn part(&mut self, most: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let length = self.next()?;
            bytes.extend_from_slice(self.stream.taken(length));
            if bytes.len() as u64 > most {
                return Err(self.stream.wrong("has more bytes of a file than there can be"));
            }
            if (length as u64) < BLOCK {
                return Ok(bytes);
            }
        }
    }

    /// The maps, compared with the manifest. All other parts before the images are passed over: the manifest tells the digests of the
    /// maps, and they those of all blocks.
    fn maps(&mut self, manifest: &Manifest) -> Result<Vec<Mapped>> {
        let mut maps = Vec::new();
        for part in parts(manifest) {
            match part {
                // The caller has it.
                Part::Manifest => {}
                Part::Map(index) => {
                    let disk = &manifest.disks[index];
                    let text = self.part(longest_map(disk.virtual_size).min(LONGEST_MAP))?;
                    if hex(&digest(&text)) != disk.map_sha256 {
                        return Err(self
                            .stream
                            .wrong(&format!("has a map of disk {index} that is not the manifest's")));
                    }
                    let map = Map::parse(text.as_slice(), disk.virtual_size, true);
                    let map =
                        map.map_err(|what| self.stream.wrong(&format!("has a bad map of disk {index}: {what}")))?;
                    maps.push((disk.virtual_size, map.stored().cloned().collect()));
                }
                Part::Sums | Part::Metadata | Part::DigestKey => drop(self.part(LONGEST_PART)?),
                Part::Image(_) => break,
            }
        }
        Ok(maps)
    }
}

/// The images of a run, one after the other.
struct Images {
    blocks: Blocks,
    compression: Compression,
    maps: Vec<Mapped>,
    /// The disk whose image comes, and the place in its map of the block that is next.
    disk: usize,
    next: usize,
    /// Bytes of a packed image that were used so far.
    used: u64,
    /// What is not yet used of the piece of a packed image that came last.
    rest: Range<usize>,
    /// That piece is the last one of the image.
    is_last: bool,
}

impl Images {
    fn of(blocks: Blocks, compression: Compression, maps: Vec<Mapped>) -> Images {
        Images { blocks, compression, maps, disk: 0, next: 0, used: 0, rest: 0..0, is_last: false }
    }

    fn wrong(&self, what: &str) -> Error {
        self.blocks.stream.wrong(what)
    }

    /// A block of a disk, by its place in the map. What comes before it is passed over.
    fn block(&mut self, disk: usize, at: usize) -> Result<Vec<u8>> {
        while self.disk < disk {
            self.end_image()?;
        }
        // A disk is made from its begin to its end.
        while self.disk == disk && self.next < at {
            self.take()?;
        }
        match (self.disk, self.next) == (disk, at) {
            true => self.take(),
            false => Err(self.wrong("has passed a block that is asked for")),
        }
    }

    /// The next block, compared with its digest.
    fn take(&mut self) -> Result<Vec<u8>> {
        let (size, stored) = &self.maps[self.disk];
        let (it, length) = (stored[self.next].clone(), length_of(stored[self.next].index, *size));
        let (bytes, has) = match self.compression {
            Compression::None => {
                let length = self.blocks.next()?;
                (self.blocks.stream.taken(length).to_vec(), *self.blocks.stream.digest())
            }
            compression => {
                let gap = it.offset.checked_sub(self.used);
                let gap = gap.ok_or_else(|| self.wrong("has a map whose blocks lie on each other"))?;
                self.bytes(gap, &mut |_| {})?;
                let mut packed = Vec::with_capacity(it.length as usize);
                self.bytes(it.length, &mut |bytes| packed.extend_from_slice(bytes))?;
                let bytes = unpack(compression, packed, length);
                let bytes = bytes.map_err(|what| self.wrong(&format!("cannot be unpacked: {what}")))?;
                let has = digest(&bytes);
                (bytes, has)
            }
        };
        self.next += 1;
        match bytes.len() == length && has == it.digest {
            true => Ok(bytes),
            false => Err(self.wrong(&format!("has a block {} that is not the one of the map", it.index))),
        }
    }

    /// Uses the next bytes of a packed image.
    fn bytes(&mut self, count: u64, use_them: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut left = count;
        while left > 0 {
            if self.rest.is_empty() {
                self.piece()?;
                continue;
            }
            let now = (self.rest.len() as u64).min(left);
            let end = self.rest.start + now as usize;
            use_them(&self.blocks.stream.taken(self.rest.end)[self.rest.start..end]);
            (self.rest.start, left, self.used) = (end, left - now, self.used + now);
        }
        Ok(())
    }

    /// Takes the next piece of a packed image.
    fn piece(&mut self) -> Result<()> {
        if self.is_last {
            return Err(self.wrong("has an image that ends before its last block"));
        }
        let length = self.blocks.next()?;
        (self.rest, self.is_last) = (0..length, (length as u64) < BLOCK);
        Ok(())
    }

    /// Goes to the image of the next disk.
    fn end_image(&mut self) -> Result<()> {
        while self.next < self.maps[self.disk].1.len() {
            self.take()?;
        }
        while self.compression.is_packed() && !self.is_last {
            self.piece()?;
        }
        (self.disk, self.next, self.used, self.rest, self.is_last) = (self.disk + 1, 0, 0, 0..0, false);
        Ok(())
    }

    /// Makes sure that the stream ends after the last image: a later run would be what the disks should have been.
    fn end(&mut self) -> Result<()> {
        while self.disk < self.maps.len() {
            self.end_image()?;
        }
        if self.blocks.stream.block(self.blocks.left)?.is_some() {
            return Err(self.wrong("has more blocks than the run"));
        }
        match self.blocks.stream.run()? {
            None => Ok(()),
            Some(head) => Err(Error::Unsupported {
                op: "receiving increments into an SR",
                why: format!("run {} comes after the one that has every block; send it with --whole", head.run),
            }),
        }
    }
}

fn lock(images: &Mutex<Images>) -> MutexGuard<'_, Images> {
    images.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk of the stream, which is read from its begin to its end.
struct Coming {
    index: usize,
    size: u64,
    stored: Arc<[Stored]>,
    images: Arc<Mutex<Images>>,
    /// The block that came last, and its place in the map.
    block: RefCell<Option<(usize, Vec<u8>)>>,
}

impl Coming {
    /// The place in the map of the first block that is `index` or later.
    fn place(&self, index: u64) -> usize {
        self.stored.partition_point(|stored| stored.index < index)
    }
}

impl Disk for Coming {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        let later = &self.stored[self.place(from / BLOCK)..];
        let Some(first) = later.first() else { return Ok(None) };
        let run = later.iter().zip(first.index..).take_while(|(stored, index)| stored.index == *index).count() as u64;
        let end = ((first.index + run) * BLOCK).min(self.size);
        Ok(Some(((first.index * BLOCK).max(from), end)).filter(|(start, end)| start < end))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (index, within) = (at / BLOCK, (at % BLOCK) as usize);
            let length = (buf.len() - done).min(BLOCK as usize - within);
            let part = &mut buf[done..done + length];
            done += length;
            let place = self.place(index);
            if self.stored.get(place).is_none_or(|stored| stored.index != index) {
                part.fill(0);
                continue;
            }
            let mut block = self.block.borrow_mut();
            if block.as_ref().is_none_or(|(has, _)| *has != place) {
                *block = Some((place, lock(&self.images).block(self.index, place)?));
            }
            let (_, bytes) = block.as_ref().expect("it was just taken");
            part.copy_from_slice(&bytes[within..within + length]);
        }
        Ok(())
    }
}
