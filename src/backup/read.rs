//! The image of an export as a disk. Every block is compared with its digest before anybody gets it.
//!
//! An export may come from anywhere: no more is read or unpacked than its map allows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::BLOCK;
use super::age::header;
use super::age::payload::NONCE;
use super::chain::{Placed, blocks};
use super::codec::{Compression, unpack};
use super::manifest::Encryption;
use super::map::{Digest, Entry, Map, Stored, digest, length_of};
use super::seal::{DigestKey, Keys, Sealed};
use crate::error::{Error, Result};
use crate::image::disk::Disk;
use crate::sys::copy::next_data;
use crate::sys::threads::in_parts;
use crate::types::VdiUuid;

/// Blocks that are unpacked at once, on as many threads as there are.
const AHEAD: usize = 8;

/// The image of one disk, open, with its map.
#[derive(Debug)]
pub struct Image {
    pub file: File,
    /// The name of the file in errors.
    pub path: PathBuf,
    pub compression: Compression,
    /// Of an encrypted image.
    pub sealed: Option<Sealed>,
    pub map: Map,
    /// Bytes of the disk.
    pub size: u64,
    /// The disk that was exported.
    pub uuid: VdiUuid,
}

/// The fault of a file, or of what it holds.
enum Fault {
    Io(io::Error),
    Contents(String),
}

impl From<String> for Fault {
    fn from(what: String) -> Fault {
        Fault::Contents(what)
    }
}

/// The first bytes of a file: more than the longest header that is read.
///
/// # Errors
/// The system's error.
pub fn beginning(file: &File) -> io::Result<Vec<u8>> {
    let mut begin = vec![0; header::LONGEST + NONCE];
    let mut length = 0;
    while length < begin.len() {
        match file.read_at(&mut begin[length..], length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    begin.truncate(length);
    Ok(begin)
}

impl Image {
    /// Opens the image if it is encrypted.
    ///
    /// # Errors
    /// [`Error::Encrypted`] if none of the keys is for it; [`Error::NotVerified`]; [`Error::Io`].
    pub fn unlock(&mut self, keys: &Keys, digests: &DigestKey, of: &Encryption) -> Result<()> {
        let Some(sealed) = &mut self.sealed else { return Ok(()) };
        let begin = beginning(&self.file).map_err(Error::io("read", &self.path))?;
        let length = self.file.metadata().map_err(Error::io("examine", &self.path))?.len();
        sealed.unlock((&begin, length), &self.path, (keys, digests, of))
    }

    /// Bytes as they were before the image was encrypted.
    fn bytes(&self, buf: &mut [u8], offset: u64) -> Result<(), Fault> {
        let Some(sealed) = &self.sealed else { return self.file.read_exact_at(buf, offset).map_err(Fault::Io) };
        let (opener, _) = sealed.open().ok_or_else(|| "it is encrypted, and was not opened".to_owned())?;
        opener.read_at(buf, offset, |part, at| self.file.read_exact_at(part, opener.start() + at).map_err(Fault::Io))
    }

    fn digest(&self, index: u64, block: &[u8]) -> Digest {
        match self.sealed.as_ref().and_then(Sealed::open) {
            Some((_, digests)) => digests.digest(self.uuid, index, block),
            None => digest(block),
        }
    }

    /// A block of the image, unpacked and compared with its digest.
    ///
    /// # Errors
    /// [`Error::NotVerified`] if it is not the block that the map tells of; [`Error::Io`].
    pub fn block(&self, stored: &Stored) -> Result<Vec<u8>> {
        let wrong = |what: String| Error::NotVerified { path: self.path.clone(), what };
        let mut bytes = vec![0; stored.length as usize];
        self.bytes(&mut bytes, stored.offset).map_err(|fault| match fault {
            Fault::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                wrong(format!("it ends before block {} is complete", stored.index))
            }
            Fault::Io(e) => Error::io("read", &self.path)(e),
            Fault::Contents(what) => wrong(format!("block {} cannot be decrypted: {what}", stored.index)),
        })?;
        let block = unpack(self.compression, bytes, length_of(stored.index, self.size)).map_err(wrong)?;
        match self.digest(stored.index, &block) == stored.digest {
            true => Ok(block),
            false => Err(wrong(format!("block {} is not what its digest says", stored.index))),
        }
    }

    /// Reads every block and compares it with its digest; of an image that is not packed, also that all else is zeroes, which a
    /// plain copy of the file would take for data. `told`: bytes of the disk so far.
    ///
    /// # Errors
    /// Those of [`Image::block`], of the first block that is wrong.
    pub fn verify(&self, told: &dyn Fn(u64)) -> Result<()> {
        if self.sealed.is_some() {
            // The last chunk, which says that none is missing, may hold no block that is stored.
            self.bytes(&mut [], 0).map_err(|fault| match fault {
                Fault::Io(e) => Error::io("read", &self.path)(e),
                Fault::Contents(what) => Error::NotVerified { path: self.path.clone(), what },
            })?;
        }
        let stored: Vec<&Stored> = self.map.stored().collect();
        for part in stored.chunks(AHEAD) {
            let checked = in_parts(part, AHEAD, |part| part.iter().try_for_each(|stored| self.block(stored).map(drop)));
            checked.into_iter().collect::<Result<()>>()?;
            told(part.len() as u64 * BLOCK);
        }
        if self.compression.is_packed() || self.sealed.is_some() {
            return Ok(());
        }
        let ends = self.map.stored().map(|stored| (stored.offset, stored.offset + stored.length));
        let mut from = 0;
        for (begin, end) in ends.chain([(self.size, self.size)]) {
            self.refuse_data(from, begin)?;
            from = end;
        }
        Ok(())
    }

    /// Refuses anything but zeroes from a byte to before another. Holes are not read.
    fn refuse_data(&self, from: u64, end: u64) -> Result<()> {
        let mut buffer = vec![0; BLOCK as usize];
        let mut at = from;
        while at < end {
            let Some((start, stop)) = next_data(&self.file, at, end).map_err(Error::io("read", &self.path))? else {
                return Ok(());
            };
            at = stop;
            let mut offset = start;
            while offset < stop {
                let part = &mut buffer[..(stop - offset).min(BLOCK) as usize];
                self.file.read_exact_at(part, offset).map_err(Error::io("read", &self.path))?;
                if let Some(found) = part.iter().position(|byte| *byte != 0) {
                    let index = (offset + found as u64) / BLOCK;
                    let what = format!("block {index} has data, and its map says that it has none");
                    return Err(Error::NotVerified { path: self.path.clone(), what });
                }
                offset += part.len() as u64;
            }
        }
        Ok(())
    }
}

/// The disk that the images of a chain are.
pub struct Restored {
    /// The newest first.
    images: Vec<Image>,
    /// Every block of the disk, with the image that has it.
    blocks: Vec<Placed>,
    size: u64,
    /// Blocks that were unpacked and not yet asked for.
    ready: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl Restored {
    /// The disk of these images, the newest first.
    ///
    /// # Errors
    /// [`Error::NotVerified`] for a block that none of them has.
    pub fn new(images: Vec<Image>) -> Result<Restored> {
        let blocks = blocks(&images)?;
        let size = images.first().map_or(0, |image| image.size);
        Ok(Restored { images, blocks, size, ready: RefCell::new(BTreeMap::new()) })
    }

    /// Bytes of the blocks that are not zeroes.
    pub fn data(&self) -> u64 {
        self.blocks.iter().filter(|(_, entry)| matches!(entry, Entry::Stored(_))).count() as u64 * BLOCK
    }

    /// The lines that are about `index` and later blocks.
    fn from(&self, index: u64) -> &[Placed] {
        &self.blocks[self.blocks.partition_point(|(_, entry)| entry.last() < index)..]
    }

    /// Unpacks `index` and some of the blocks that follow it.
    fn fetch(&self, index: u64) -> Result<()> {
        let next: Vec<(usize, &Stored)> = self
            .from(index)
            .iter()
            .filter_map(|(at, entry)| match entry {
                Entry::Stored(stored) => Some((*at, stored)),
                Entry::Zero(..) => None,
            })
            .take(AHEAD)
            .collect();
        let images = &self.images;
        let parts = in_parts(&next, AHEAD, |part| {
            let block = |(at, stored): &(usize, &Stored)| Ok((stored.index, images[*at].block(stored)?));
            part.iter().map(block).collect::<Result<Vec<_>>>()
        });
        let mut ready = self.ready.borrow_mut();
        ready.clear();
        for part in parts {
            ready.extend(part?);
        }
        Ok(())
    }
}

impl Disk for Restored {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        let mut found: Option<(u64, u64)> = None;
        for (_, entry) in self.from(from / BLOCK) {
            let Entry::Stored(stored) = entry else { continue };
            let start = stored.index * BLOCK;
            let end = start + length_of(stored.index, self.size) as u64;
            match &mut found {
                Some((_, last)) if *last == start => *last = end,
                Some(_) => break,
                None => found = Some((start.max(from), end)),
            }
        }
        Ok(found.filter(|(start, end)| start < end))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (index, within) = (at / BLOCK, (at % BLOCK) as usize);
            let part = (buf.len() - done).min(BLOCK as usize - within);
            let part = &mut buf[done..done + part];
            done += part.len();
            match self.from(index).first() {
                Some((_, Entry::Stored(stored))) if stored.index == index => {
                    if !self.ready.borrow().contains_key(&index) {
                        self.fetch(index)?;
                    }
                    let ready = self.ready.borrow();
                    let block = ready.get(&index).expect("it was just fetched");
                    part.copy_from_slice(&block[within..within + part.len()]);
                }
                _ => part.fill(0),
            }
        }
        Ok(())
    }
}
