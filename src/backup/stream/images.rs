//! The images of a run as they come through a pipe, opened, unpacked and compared with their maps.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::BLOCK;
use super::super::age::payload::Unsealer;
use super::super::codec::{Compression, unpack};
use super::super::manifest::{Encryption, Manifest};
use super::super::map::{Map, Stored, digest, hex, length_of};
use super::super::seal::{DigestKey, Keys};
use super::super::verify::longest_map;
use super::incoming::Stream;
use super::{LONGEST_PART, Part, parts};
use crate::error::{Error, Result};
use crate::types::VdiUuid;

/// Bytes of the longest map: that of a disk with 40 TiB of data.
const LONGEST_MAP: u64 = 1 << 30;

/// A disk that comes.
#[derive(Clone)]
pub(super) struct Mapped {
    /// Bytes of it.
    pub size: u64,
    /// The disk that was exported.
    pub uuid: VdiUuid,
    /// The blocks of it that come.
    pub stored: Arc<[Stored]>,
}

/// The blocks of a run.
pub(super) struct Blocks {
    pub stream: Stream,
    /// Bytes that the line of the run promised, and that did not come yet.
    pub left: u64,
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
    pub(super) fn part(&mut self, most: u64) -> Result<Vec<u8>> {
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

    /// The maps, compared with the manifest, and of an encrypted run the key of its digests as it comes. All other parts before the
    /// images are passed over: the manifest tells the digests of the maps, and they those of all blocks.
    pub(super) fn maps(&mut self, manifest: &Manifest) -> Result<(Vec<Mapped>, Vec<u8>)> {
        let (mut maps, mut key) = (Vec::new(), Vec::new());
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
                    let stored = map.stored().cloned().collect();
                    maps.push(Mapped { size: disk.virtual_size, uuid: disk.uuid, stored });
                }
                Part::DigestKey => key = self.part(LONGEST_PART)?,
                Part::Sums | Part::Metadata => drop(self.part(LONGEST_PART)?),
                Part::Image(_) => break,
            }
        }
        Ok((maps, key))
    }
}

/// The images of a run, one after the other.
pub(super) struct Images {
    blocks: Blocks,
    compression: Compression,
    /// Of an encrypted run.
    opening: Option<Opening>,
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
    /// Of an encrypted image that has begun.
    unsealed: Option<Unsealed>,
}

/// The keys of an encrypted run.
pub(super) struct Opening {
    pub keys: Keys,
    pub digests: DigestKey,
    pub of: Encryption,
}

/// An encrypted image that is opened as it comes.
struct Unsealed {
    unsealer: Unsealer,
    /// What came and was not opened yet: whether a chunk is the last is known once more of the image comes, or nothing.
    held: Vec<u8>,
    /// What is not yet used of the chunk that was opened last.
    clear: Vec<u8>,
    used: usize,
    is_ended: bool,
}

impl Images {
    pub(super) fn of(blocks: Blocks, compression: Compression, opening: Option<Opening>, maps: Vec<Mapped>) -> Images {
        let (disk, next, used, rest, is_last) = (0, 0, 0, 0..0, false);
        Images { blocks, compression, opening, maps, disk, next, used, rest, is_last, unsealed: None }
    }

    fn wrong(&self, what: &str) -> Error {
        self.blocks.stream.wrong(what)
    }

    /// A block of a disk, by its place in the map. What comes before it is passed over.
    pub(super) fn block(&mut self, disk: usize, at: usize) -> Result<Vec<u8>> {
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
        let Mapped { size, uuid, stored } = &self.maps[self.disk];
        let (it, length, uuid) = (stored[self.next].clone(), length_of(stored[self.next].index, *size), *uuid);
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
                let has = match &self.opening {
                    Some(opening) => opening.digests.digest(uuid, it.index, &bytes),
                    None => digest(&bytes),
                };
                (bytes, has)
            }
        };
        self.next += 1;
        match bytes.len() == length && has == it.digest {
            true => Ok(bytes),
            false => Err(self.wrong(&format!("has a block {} that is not the one of the map", it.index))),
        }
    }

    /// Uses the next bytes of a packed image, as they were before it was encrypted.
    fn bytes(&mut self, count: u64, use_them: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut left = count;
        while left > 0 {
            if self.opening.is_some() {
                let has = self.unsealed.as_ref().map_or(&[][..], |it| &it.clear[it.used..]);
                if has.is_empty() {
                    self.unseal()?;
                    continue;
                }
                let now = (has.len() as u64).min(left);
                use_them(&has[..now as usize]);
                (left, self.used) = (left - now, self.used + now);
                self.unsealed.as_mut().expect("it has bytes").used += now as usize;
                continue;
            }
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

    /// Opens the next chunk of an encrypted image.
    fn unseal(&mut self) -> Result<()> {
        let name = PathBuf::from(self.blocks.stream.name());
        if self.unsealed.is_none() {
            // A piece is longer than a header.
            self.piece()?;
            let opening = self.opening.as_ref().expect("the run is encrypted");
            let begin = self.blocks.stream.taken(self.rest.end);
            let (unsealer, used) = opening.keys.unsealer(begin, &name, &opening.of)?;
            self.rest.start = used;
            let (held, clear) = (Vec::with_capacity(2 * Unsealer::PIECE), Vec::new());
            self.unsealed = Some(Unsealed { unsealer, held, clear, used: 0, is_ended: false });
        }
        loop {
            let unsealed = self.unsealed.as_mut().expect("it has begun");
            if unsealed.is_ended {
                return Err(self.wrong("has an image that ends before its last block"));
            }
            if unsealed.held.len() > Unsealer::PIECE || self.rest.is_empty() && self.is_last {
                break;
            }
            if self.rest.is_empty() {
                self.piece()?;
                continue;
            }
            let now = self.rest.len().min(2 * Unsealer::PIECE - unsealed.held.len());
            let end = self.rest.start + now;
            unsealed.held.extend_from_slice(&self.blocks.stream.taken(self.rest.end)[self.rest.start..end]);
            self.rest.start = end;
        }
        let unsealed = self.unsealed.as_mut().expect("it has begun");
        let now = unsealed.held.len().min(Unsealer::PIECE);
        unsealed.clear.clear();
        unsealed.clear.extend(unsealed.held.drain(..now));
        (unsealed.used, unsealed.is_ended) = (0, unsealed.held.is_empty());
        let opened = unsealed.unsealer.open(&mut unsealed.clear, unsealed.is_ended);
        opened.map_err(|what| self.wrong(&format!("has an image that cannot be decrypted: {what}")))
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
        while self.next < self.maps[self.disk].stored.len() {
            self.take()?;
        }
        // The last chunk of an encrypted image says that none is missing.
        while self.opening.is_some() && self.unsealed.as_ref().is_none_or(|unsealed| !unsealed.is_ended) {
            self.unseal()?;
        }
        while self.compression.is_packed() && !self.is_last {
            self.piece()?;
        }
        self.unsealed = None;
        (self.disk, self.next, self.used, self.rest, self.is_last) = (self.disk + 1, 0, 0, 0..0, false);
        Ok(())
    }

    /// Makes sure that the stream ends after the last image: a later run would be what the disks should have been.
    pub(super) fn end(&mut self) -> Result<()> {
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
