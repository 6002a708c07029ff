//! Images as they come through a pipe: dynamic ones, written and read from front to back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::batmap::BatmapHeader;
use super::footer::{Footer, Kind};
use super::header::{HEADER, Header};
use super::image::{headers_end, refuse_overlap};
use super::query::{Meta, footer_at_end, refuse_encrypted};
use super::{BLOCK, FileStorage, NewImage, SECTOR, create};
use crate::error::{Error, Result};
use crate::image::disk::{Disk, Sink, without_zeroes};
use crate::sys::copy::Progress;

/// Data of a block begins at a multiple of this, as [`create()`] and its kin lay it out.
const ALIGN: u64 = 4096;

/// Writes a disk as one dynamic image without a parent: headers, then each block that holds something, then the
/// footer. The bytes that a chain shows are written, not its layers.
///
/// # Errors
/// [`Error::TooBig`] above 2,040 GiB; [`Error::Io`] if `out` takes no more; the errors of reading `disk`.
pub fn write_stream(disk: &dyn Disk, out: &mut dyn Write, name: &Path, progress: Progress) -> Result<()> {
    let fail = |e| Error::io("write", name)(e);
    let mut metadata = metadata(disk.size(), name)?;
    let footer = metadata.split_off(metadata.len() - SECTOR as usize);
    let header = Header::parse(&metadata[SECTOR as usize..][..HEADER as usize])
        .map_err(|what| Error::Damaged { path: name.to_owned(), what: what.to_owned() })?;

    let mut blocks: Vec<u32> = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = disk.next_data(at)? {
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            if blocks.last() != Some(&(block as u32)) {
                blocks.push(block as u32);
            }
        }
        at = end;
    }
    let mut position = metadata.len() as u64;
    let bitmap_at = |position: u64| (position + SECTOR).next_multiple_of(ALIGN) - SECTOR;
    for block in &blocks {
        position = bitmap_at(position);
        let entry = header.table_offset() as usize + *block as usize * 4;
        metadata[entry..entry + 4].copy_from_slice(&((position / SECTOR) as u32).to_be_bytes());
        position += SECTOR + BLOCK;
    }

    out.write_all(&metadata).map_err(fail)?;
    let mut position = metadata.len() as u64;
    let mut buf = vec![0; (SECTOR + BLOCK) as usize];
    for (n, block) in blocks.iter().enumerate() {
        let gap = (bitmap_at(position) - position) as usize;
        out.write_all(&[0; ALIGN as usize][..gap]).map_err(fail)?;
        let (bitmap, data) = buf.split_at_mut(SECTOR as usize);
        let start = u64::from(*block) * BLOCK;
        let len = (disk.size() - start).min(BLOCK) as usize;
        bitmap.fill(0xff);
        data[len..].fill(0);
        disk.read_at(&mut data[..len], start)?;
        out.write_all(&buf).map_err(fail)?;
        position = position + gap as u64 + SECTOR + BLOCK;
        progress((n as u64 + 1) * BLOCK, blocks.len() as u64 * BLOCK);
    }
    out.write_all(&footer).map_err(fail)
}

/// The bytes that [`create()`] writes for an empty disk.
fn metadata(size: u64, name: &Path) -> Result<Vec<u8>> {
    let memory =
        memfd_create("vhd", MFdFlags::MFD_CLOEXEC).map(File::from).map_err(Error::sys("get memory for", name))?;
    let copy = memory.try_clone().map_err(Error::io("duplicate", name))?;
    create(&FileStorage::new(copy, name)?, &NewImage::new(size))?;
    let mut bytes = vec![0; memory.metadata().map_err(Error::io("examine", name))?.len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, 0).map_err(Error::io("read", name))?;
    Ok(bytes)
}

/// An image that arrives front to back, its headers read.
pub struct Incoming<'a> {
    input: &'a mut dyn Read,
    name: &'a Path,
    size: u64,
    block_size: u64,
    /// Sector of each block in the stream, and which block of the disk it is, in the order of arrival.
    blocks: Vec<(u32, u32)>,
    position: u64,
    /// The last bytes that came, up to a sector of them: of a whole image they are its footer.
    tail: Vec<u8>,
}

impl<'a> Incoming<'a> {
    /// Bytes that [`Incoming::can_read`] looks at.
    pub const FRONT: u64 = SECTOR + HEADER;

    /// Whether an image that begins with these bytes is one whose tables come first. Others have to be put down in a
    /// file: a fixed one, whose only footer is at its end, or one with a damaged first footer.
    pub fn can_read(front: &[u8]) -> bool {
        Footer::parse(front).is_some_and(|footer| match footer.kind() {
            Some(Kind::Dynamic) => footer.data_offset() == SECTOR,
            // To be refused.
            Some(Kind::Differencing) => true,
            _ => false,
        })
    }

    /// Reads the headers, and refuses what would be refused of a file.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what [`Incoming::can_read`] does not take, and for tables that are wrong;
    /// [`Error::Unsupported`] for a differencing image, whose parent does not come along, and for what [`super::Image`]
    /// does not open.
    pub fn open(input: &'a mut dyn Read, name: &'a Path) -> Result<Incoming<'a>> {
        let damaged = |what: &str| Error::Damaged { path: name.to_owned(), what: what.to_owned() };
        let mut incoming =
            Incoming { input, name, size: 0, block_size: BLOCK, blocks: Vec::new(), position: 0, tail: Vec::new() };
        let mut front = [0; Self::FRONT as usize];
        incoming.fill(&mut front)?;
        let footer = Footer::parse(&front).filter(|_| Self::can_read(&front));
        let footer = footer.ok_or_else(|| damaged("does not begin with the headers of a dynamic VHD"))?;
        if footer.kind() == Some(Kind::Differencing) {
            return Err(Error::Unsupported {
                op: "importing a differencing VHD",
                why: "its parent holds a part of the disk and does not come along".to_owned(),
            });
        }
        let header = Header::parse(&front[SECTOR as usize..]).map_err(damaged)?;
        let meta = Meta { footer, kind: Kind::Dynamic, header: Some(header), torn: false };
        meta.check(name)?;
        let (footer, header) = (&meta.footer, meta.header.as_ref().expect("just put there"));
        incoming.size = footer.size();
        incoming.block_size = u64::from(header.block_size());
        if incoming.size == 0 {
            return Err(damaged("its disk has no bytes"));
        }
        incoming.skip_to(header.table_offset())?;
        let mut table = vec![0; incoming.size.div_ceil(incoming.block_size) as usize * 4];
        incoming.fill(&mut table)?;
        let entries = table.as_chunks::<4>().0.iter().map(|bytes| u32::from_be_bytes(*bytes));
        incoming.blocks = entries.zip(0..).filter(|(sector, _)| *sector != u32::MAX).collect();
        incoming.blocks.sort_unstable();
        refuse_overlap(&incoming.blocks, incoming.block_size, name)?;

        let first = incoming.blocks.first().map_or(u64::MAX, |(sector, _)| u64::from(*sector) * SECTOR);
        let mut batmap = None;
        if footer.may_have_batmap() && first >= header.bat_end() + SECTOR {
            incoming.skip_to(header.bat_end())?;
            let mut bytes = [0; SECTOR as usize];
            incoming.fill(&mut bytes)?;
            batmap = BatmapHeader::parse(bytes);
            refuse_encrypted(batmap.as_ref(), name)?;
        }
        if first < headers_end(name, footer, header, batmap.as_ref())? {
            return Err(damaged(&format!("a block lies at byte {first}, outside the data")));
        }
        Ok(incoming)
    }

    /// Bytes the guest sees.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Hands what the disk holds to `sink`, in the order of arrival.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the image ends too early, or without its footer: it was cut off.
    pub fn read(mut self, sink: Sink, progress: Progress) -> Result<()> {
        let total = self.blocks.len() as u64 * self.block_size;
        let mut buf = vec![0; (SECTOR + self.block_size) as usize];
        for (n, (sector, block)) in std::mem::take(&mut self.blocks).into_iter().enumerate() {
            self.skip_to(u64::from(sector) * SECTOR)?;
            let start = u64::from(block) * self.block_size;
            let len = (self.size - start).min(self.block_size) as usize;
            // The last block may be cut where the disk ends.
            self.fill(&mut buf[..SECTOR as usize + len])?;
            let (bitmap, data) = buf.split_at_mut(SECTOR as usize);
            for s in 0..len / SECTOR as usize {
                if bitmap[s / 8] & (0x80 >> (s % 8)) == 0 {
                    data[s * SECTOR as usize..][..SECTOR as usize].fill(0);
                }
            }
            without_zeroes(&data[..len], start, sink)?;
            progress((n as u64 + 1) * self.block_size, total);
        }
        // A writer that is still at it should not die of a closed pipe.
        self.skip(u64::MAX)?;
        let damaged = |what: &str| Error::Damaged { path: self.name.to_owned(), what: what.to_owned() };
        let last = footer_at_end(&self.tail).map_err(damaged)?;
        if last.kind() == Some(Kind::Fixed) {
            return Err(damaged("its first footer says dynamic and its last one fixed"));
        }
        Ok(())
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        self.input.read_exact(buf).map_err(Error::io("read the image from", self.name))?;
        self.passed(buf);
        Ok(())
    }

    fn passed(&mut self, bytes: &[u8]) {
        const LEN: usize = SECTOR as usize;
        self.position += bytes.len() as u64;
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(LEN)..]);
        self.tail.drain(..self.tail.len().saturating_sub(LEN));
    }

    /// Passes over so many bytes, or less if there are no more; answers how many.
    fn skip(&mut self, len: u64) -> Result<u64> {
        let mut buf = vec![0; len.min(64 << 10) as usize];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(buf.len() as u64) as usize;
            match self.input.read(&mut buf[..part]) {
                Ok(0) => break,
                Ok(n) => {
                    self.passed(&buf[..n]);
                    done += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", self.name)(e)),
            }
        }
        Ok(done)
    }

    fn skip_to(&mut self, position: u64) -> Result<()> {
        let gap = position.checked_sub(self.position).ok_or_else(|| Error::Damaged {
            path: self.name.to_owned(),
            what: "two of its parts overlap".to_owned(),
        })?;
        if self.skip(gap)? < gap {
            return Err(Error::Damaged { path: self.name.to_owned(), what: "ends too early".to_owned() });
        }
        Ok(())
    }
}
