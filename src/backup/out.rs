//! The image of a disk while it is written: blocks are made on several threads, and put down in the order of the disk where they
//! are packed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::BLOCK;
use super::age::header::seal;
use super::age::payload::Sealer;
use super::codec::{Packer, Packing};
use super::map::{Digest, Entry, Map, Stored, length_of};
use super::write::{From, Since, Written};
use crate::error::{Error, Result};
use crate::sys::writeback::Writeback;

/// What was made of a block.
pub(super) enum Made {
    Zero,
    /// The parent has it.
    Same,
    /// Its bytes are in the image.
    Written(Digest),
    /// Its bytes are to follow those of the blocks before.
    Packed(Digest, Vec<u8>),
}

/// The image, and what is known of it.
pub(super) struct Out<'a> {
    to: &'a File,
    writeback: &'a Writeback<'a>,
    /// Bytes of a packed image that are in the file, and how many of them `writeback` knows of.
    written: u64,
    told: u64,
    path: PathBuf,
    size: u64,
    packing: &'a Packing,
    since: Option<&'a Since>,
    /// Blocks that were not read are zeroes; else they are what they were.
    gaps_are_zeroes: bool,
    map: Map,
    /// Of the bytes of a packed image.
    image: Sha256,
    /// Bytes of a packed image so far, before they are encrypted.
    offset: u64,
    /// The block that comes next in the image.
    next_index: u64,
    /// The block that is next in the order of reading.
    next_number: u64,
    waiting: BTreeMap<u64, (u64, Result<Made>)>,
    /// A packed block of zeroes.
    zeroes: Vec<u8>,
    /// Of an encrypted image.
    sealer: Option<Sealer>,
    pub(super) error: Option<Error>,
}

impl<'a> Out<'a> {
    pub(super) fn new(
        to: &'a File,
        writeback: &'a Writeback<'a>,
        path: &Path,
        packing: &'a Packing,
        size: u64,
        from: &From<'a>,
    ) -> Result<Out<'a>> {
        let mut out = Out {
            to,
            writeback,
            written: 0,
            told: 0,
            path: path.to_owned(),
            size,
            packing,
            since: from.since,
            gaps_are_zeroes: from.since.is_none() || from.changed.is_none(),
            map: Map::default(),
            image: Sha256::new(),
            offset: 0,
            next_index: 0,
            next_number: 0,
            waiting: BTreeMap::new(),
            zeroes: Vec::new(),
            sealer: None,
            error: None,
        };
        if let Some(with) = &packing.seal {
            let failed = || Error::io("encrypt", path);
            let (mut begin, key) = seal(&with.recipients).map_err(failed())?;
            out.sealer = Some(Sealer::begin(&key, &mut begin).map_err(failed())?);
            out.put_down(&begin)?;
        }
        if packing.compression.is_packed() && from.since.is_none() {
            out.zeroes = out.packed_zeroes(BLOCK as usize)?;
        }
        Ok(out)
    }

    fn packed_zeroes(&self, length: usize) -> Result<Vec<u8>> {
        let packed = Packer::new(self.packing.compression).and_then(|mut packer| packer.pack(&vec![0; length]));
        packed.map_err(Error::io("write", &self.path))
    }

    /// Takes what was made of a block, and puts down all that is next. Answers how many blocks are through.
    pub(super) fn take(&mut self, number: u64, index: u64, made: Result<Made>) -> usize {
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
        match (self.gaps_are_zeroes, &made) {
            // It is one of the gap that ends with the next block that is something.
            (true, Made::Zero) => return Ok(()),
            (true, _) => self.zeroes_until(index)?,
            (false, _) => self.next_index = index,
        }
        let stored = match made {
            Made::Zero => return self.zeroes_until(index + 1),
            Made::Same => None,
            Made::Written(digest) => {
                Some(Stored { index, offset: index * BLOCK, length: length_of(index, self.size) as u64, digest })
            }
            Made::Packed(digest, bytes) => {
                let offset = self.offset;
                self.append(&bytes)?;
                Some(Stored { index, offset, length: bytes.len() as u64, digest })
            }
        };
        if let Some(stored) = stored {
            self.map.push(Entry::Stored(stored));
        }
        self.next_index = index + 1;
        Ok(())
    }

    /// Says that the blocks from the next to before `index` are zeroes.
    fn zeroes_until(&mut self, index: u64) -> Result<()> {
        let first = std::mem::replace(&mut self.next_index, index);
        match self.since {
            _ if first == index => Ok(()),
            Some(since) => {
                self.zeroes_since(since, first, index);
                Ok(())
            }
            None => self.zeroes_of_all(first, index),
        }
    }

    /// Tells of the blocks of zeroes that were something else, or were not there.
    fn zeroes_since(&mut self, since: &Since, first: u64, end: u64) {
        let mut index = first;
        while index < end {
            match since.block(index, self.size) {
                Some(Entry::Zero(_, last)) => index = last + 1,
                _ => {
                    self.map.push(Entry::Zero(index, index));
                    index += 1;
                }
            }
        }
    }

    fn zeroes_of_all(&mut self, first: u64, index: u64) -> Result<()> {
        self.map.push(Entry::Zero(first, index - 1));
        if !self.packing.compression.is_packed() {
            return Ok(());
        }
        let cut = length_of(index - 1, self.size);
        let whole = index - first - u64::from(cut < BLOCK as usize);
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
        Ok(())
    }

    /// Adds packed bytes, encrypted if need be.
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.offset += bytes.len() as u64;
        let Some(sealer) = &mut self.sealer else { return self.put_down(bytes) };
        let mut sealed = Vec::with_capacity(bytes.len() + bytes.len() / 1024 + 128);
        sealer.push(bytes, &mut sealed);
        self.put_down(&sealed)
    }

    /// Adds bytes to the file.
    fn put_down(&mut self, bytes: &[u8]) -> Result<()> {
        let (mut to, failed) = (self.to, || Error::io("write", &self.path));
        to.write_all(bytes).map_err(failed())?;
        self.image.update(bytes);
        self.written += bytes.len() as u64;
        if self.written - self.told >= BLOCK {
            self.writeback.wrote(self.told, self.written - self.told).map_err(failed())?;
            self.told = self.written;
        }
        Ok(())
    }

    pub(super) fn finish(mut self, read: Result<()>) -> Result<Written> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        read?;
        if self.gaps_are_zeroes {
            self.zeroes_until(self.size.div_ceil(BLOCK))?;
        }
        if let Some(sealer) = self.sealer.take() {
            let mut sealed = Vec::new();
            sealer.finish(&mut sealed);
            self.put_down(&sealed)?;
        }
        let image = match self.packing.compression.is_packed() {
            false => {
                self.to.set_len(self.size).map_err(Error::io("write", &self.path))?;
                None
            }
            true => Some(self.image.finalize().into()),
        };
        Ok(Written { size: self.size, map: self.map, image })
    }
}
