//! A volume being filled with a disk that comes in.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{LvmSr, POOL};
use crate::error::{Error, Result};
use crate::image::disk::DiskWriter;
use crate::sys::blockdev;
use crate::sys::lvm::{self, Vg};

/// An active volume that is being filled. When it is finished, the bytes that were not written read as zeroes.
pub struct Fill<'a> {
    sr: &'a LvmSr,
    node: PathBuf,
    file: File,
    size: u64,
    space: Space,
}

enum Space {
    /// All of it is there, with what was on the disks before. Up to here it is this disk's own.
    Thick { own: u64 },
    /// A pool's, which takes all writes until it is full and then fails everybody's. It gives out `chunk` bytes at once;
    /// so many more may be given out before it is looked at again. Up to `last` they were.
    Thin { budget: u64, chunk: u64, last: u64 },
}

impl<'a> Fill<'a> {
    /// Activates the volume `name` of `size` bytes.
    pub fn begin(sr: &'a LvmSr, vg: &Vg, name: &str, size: u64) -> Result<Fill<'a>> {
        let space = match sr.room_in_pool(vg)? {
            Some(room) => Space::Thin { budget: budget(room), chunk: lvm::chunks(&vg.name, POOL)?.size, last: 0 },
            None => Space::Thick { own: 0 },
        };
        lvm::activate(&vg.name, name)?;
        let node = lvm::node(&vg.name, name);
        Ok(Fill { sr, file: blockdev::open(&node, true)?, node, size, space })
    }

    fn make_own(&mut self, until: u64) -> Result<()> {
        if let Space::Thick { own } = &mut self.space
            && *own < until
        {
            blockdev::zero_range(&self.file, &self.node, *own, until)?;
            *own = until;
        }
        Ok(())
    }
}

fn budget(room: u64) -> u64 {
    const LEAST: u64 = 4 << 20;
    (room / 16).max(LEAST)
}

impl DiskWriter for Fill<'_> {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.make_own(offset)?;
        self.file.write_all_at(bytes, offset).map_err(Error::io("write", &self.node))?;
        let len = bytes.len() as u64;
        match &mut self.space {
            Space::Thick { own } => *own = (*own).max(offset + len),
            Space::Thin { budget: left, chunk, last } => {
                // Pieces come in the order of the disk.
                let end = (offset + len).next_multiple_of(*chunk);
                let new = end.saturating_sub((*last).max(offset / *chunk * *chunk));
                *last = end;
                if *left > new {
                    *left -= new;
                } else {
                    self.file.sync_data().map_err(Error::io("write", &self.node))?;
                    *left = self.sr.room_in_pool(&self.sr.group.whole()?)?.map_or(0, budget);
                }
            }
        }
        Ok(())
    }

    /// Durable when this returns.
    fn finish(mut self: Box<Self>) -> Result<()> {
        self.make_own(self.size)?;
        self.file.sync_all().map_err(Error::io("flush", &self.node))
    }
}
