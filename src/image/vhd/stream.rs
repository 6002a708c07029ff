//! Images as they come through a pipe: dynamic ones, written and read from front to back.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::footer::{Footer, Kind};
use super::header::{HEADER, Header};
use super::{BLOCK, FilePlace, NewImage, SECTOR, SECTORS, create};
use crate::error::{Error, Result};
use crate::image::disk::{Disk, Sink, without_zeroes};
use crate::sys::copy::Progress;

/// Data of a block begins at a multiple of this, as [`create()`] and its kin lay it out.
const ALIGN: u64 = 4096;

/// Writes a disk as one dynamic image without a parent: headers, then each block that holds something, then the
/// footer. What a chain shows is written, not its layers.
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

/// What [`create()`] writes for an empty disk.
fn metadata(size: u64, name: &Path) -> Result<Vec<u8>> {
    let memory =
        memfd_create("vhd", MFdFlags::MFD_CLOEXEC).map(File::from).map_err(Error::sys("get memory for", name))?;
    let copy = memory.try_clone().map_err(Error::io("duplicate", name))?;
    create(&FilePlace::new(copy, name)?, &NewImage::new(size))?;
    let mut bytes = vec![0; memory.metadata().map_err(Error::io("examine", name))?.len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, 0).map_err(Error::io("read", name))?;
    Ok(bytes)
}

/// An image that arrives front to back, its headers read.
pub struct Incoming<'a> {
    input: &'a mut dyn Read,
    name: &'a Path,
    size: u64,
    /// Sector of each block in the stream, and which block of the disk it is, in the order of arrival.
    blocks: Vec<(u32, u32)>,
    position: u64,
}

impl<'a> Incoming<'a> {
    /// Reads the headers.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what is no VHD; [`Error::Unsupported`] for a fixed one, which has no headers in
    /// front, for a differencing one, whose parent does not come along, and for blocks of another size than ours.
    pub fn open(input: &'a mut dyn Read, name: &'a Path) -> Result<Incoming<'a>> {
        let damaged = |what: &str| Error::Damaged { path: name.to_owned(), what: what.to_owned() };
        let mut incoming = Incoming { input, name, size: 0, blocks: Vec::new(), position: 0 };
        let mut front = [0; (SECTOR + HEADER) as usize];
        incoming.fill(&mut front)?;
        let footer = Footer::parse(&front[..SECTOR as usize])
            .ok_or_else(|| damaged("does not begin with the footer of a VHD"))?;
        match footer.kind() {
            Some(Kind::Dynamic) if footer.data_offset() == SECTOR => {}
            Some(Kind::Differencing) => {
                return Err(Error::Unsupported {
                    op: "importing a differencing VHD",
                    why: "its parent holds a part of the disk and does not come along".to_owned(),
                });
            }
            _ => {
                return Err(Error::Unsupported {
                    op: "importing this kind of VHD from a pipe",
                    why: "its headers are not in front; import it from a file".to_owned(),
                });
            }
        }
        let header = Header::parse(&front[SECTOR as usize..]).map_err(damaged)?;
        if u64::from(header.block_size()) != BLOCK {
            return Err(Error::Unsupported {
                op: "importing a VHD",
                why: format!("the blocks of what comes from {} are not of 2 MiB", name.display()),
            });
        }
        incoming.size = super::create::check_size("virtual size", footer.size()).map(|()| footer.size())?;
        let used = incoming.size.div_ceil(BLOCK) as usize;
        if (header.max_bat_size() as usize) < used || header.table_offset() < incoming.position {
            return Err(damaged("its table does not fit its size"));
        }
        incoming.skip_to(header.table_offset())?;
        let mut table = vec![0; used * 4];
        incoming.fill(&mut table)?;
        let entries = table.as_chunks::<4>().0.iter().map(|bytes| u32::from_be_bytes(*bytes));
        incoming.blocks = entries.zip(0..).filter(|(sector, _)| *sector != u32::MAX).collect();
        incoming.blocks.sort_unstable();
        Ok(incoming)
    }

    /// Bytes the guest sees.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Hands what the disk holds to `sink`, in the order of arrival.
    pub fn read(mut self, sink: Sink, progress: Progress) -> Result<()> {
        let total = self.blocks.len() as u64 * BLOCK;
        let mut buf = vec![0; (SECTOR + BLOCK) as usize];
        for (n, (sector, block)) in std::mem::take(&mut self.blocks).into_iter().enumerate() {
            self.skip_to(u64::from(sector) * SECTOR)?;
            let start = u64::from(block) * BLOCK;
            let len = (self.size - start).min(BLOCK) as usize;
            // The last block may be cut where the disk ends.
            self.fill(&mut buf[..SECTOR as usize + len])?;
            let (bitmap, data) = buf.split_at_mut(SECTOR as usize);
            for s in 0..SECTORS as usize {
                if bitmap[s / 8] & (0x80 >> (s % 8)) == 0 {
                    data[s * SECTOR as usize..][..SECTOR as usize].fill(0);
                }
            }
            without_zeroes(&data[..len], start, sink)?;
            progress((n as u64 + 1) * BLOCK, total);
        }
        // A writer that is still at it should not die of a closed pipe.
        std::io::copy(&mut self.input, &mut std::io::sink()).map_err(Error::io("read", self.name)).map(drop)
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        self.input.read_exact(buf).map_err(Error::io("read the image from", self.name))?;
        self.position += buf.len() as u64;
        Ok(())
    }

    fn skip_to(&mut self, position: u64) -> Result<()> {
        let gap = position.checked_sub(self.position).ok_or_else(|| Error::Damaged {
            path: self.name.to_owned(),
            what: "two of its parts overlap".to_owned(),
        })?;
        let skipped = std::io::copy(&mut (&mut *self.input).take(gap), &mut std::io::sink())
            .map_err(Error::io("read", self.name))?;
        if skipped < gap {
            return Err(Error::Damaged { path: self.name.to_owned(), what: "ends too early".to_owned() });
        }
        self.position = position;
        Ok(())
    }
}
