//! Raw disks: the place's bytes are the disk's bytes.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::SECTOR;
use crate::image::disk::{Disk, RawFile};
use crate::sys::limits;
use crate::sys::lock::Lock;
use crate::types::{Done, Format, Mode, Params, VdiInfo, VdiUuid};
use crate::vdi::{Kind, Node, Place, Vdi, cow, describe, refuse_if_elsewhere, refuse_if_used};

pub static KIND: Kind = Kind {
    format: Format::Raw,
    // The kernel's loff_t, a sector short of its end.
    largest: i64::MAX as u64 / SECTOR * SECTOR,
    granule: SECTOR,
    by_length: true,
    create: |file, path, virtual_size| {
        set_length(file, path, virtual_size)?;
        file.sync_all().map_err(Error::io("make durable", path))
    },
    create_child: |_, _, _, _| Err(no_tree("a child")),
    query: |file, path| {
        let length = file.metadata().map_err(Error::io("examine", path))?.len();
        Ok(Node::alone(length))
    },
    named_parent: |_, _| Some(None),
    disk: |file, place| Ok(Box::new(RawFile::new(file, &place.path())?)),
    set_hidden: |_, _, _| Err(no_tree("hiding")),
    coalesce: |_, _, _, _, _| Err(no_tree("coalescing")),
    check_parent: |_, _, _, _| Err(no_tree("looking for the parent")),
    set_parent: |_, _, _, _| Err(no_tree("changing the parent")),
    resize: |file, path, size| (KIND.create)(&file, path, size),
    open: |place| Box::new(Raw { place }),
};

/// Makes a file `bytes` long, not yet durably.
///
/// # Errors
/// [`Error::TooBig`] beyond what the filesystem holds; [`Error::Io`], also beyond the limit of this process. Nothing was
/// changed.
pub fn set_length(file: &File, path: &Path, bytes: u64) -> Result<()> {
    file.set_len(bytes).map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EFBIG) if limits::file_size().is_none_or(|most| bytes <= most) => {
            Error::TooBig { what: "a disk", bytes, limit: "the filesystem holds no file of this size".to_owned() }
        }
        _ => Error::io("write", path)(e),
    })
}

fn no_tree(op: &'static str) -> Error {
    Error::Unsupported { op, why: "a raw disk has no parent and no mark".to_owned() }
}

struct Raw<'a> {
    place: Box<dyn Place + 'a>,
}

impl Vdi for Raw<'_> {
    fn place(&self) -> &dyn Place {
        &*self.place
    }

    fn info(&self) -> Result<VdiInfo> {
        let (extent, params, holders) = (self.place.stat()?, self.place.params()?, self.place.holders()?);
        let node = Node::alone(extent.length);
        let attached = self.device()?.is_some();
        Ok(describe(&*self.place, &node, extent.allocated, params, holders.users, attached, Vec::new()))
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        self.place.device()
    }

    fn attach(&self, mode: Mode, _lock: Option<&Lock>) -> Result<PathBuf> {
        self.place.attach(mode)
    }

    fn detach(&self) -> Result<Done> {
        self.place.detach()
    }

    fn delete(&self, _context: &Context) -> Result<()> {
        refuse_if_used(self)?;
        // We make no image above a raw one; vhd-util does.
        if let Ok(tree) = self.place.tree() {
            cow::refuse_if_parent(&*self.place, &tree.nodes()?)?;
        }
        self.place.remove()
    }

    fn clone_to(&self, dest: VdiUuid, context: &Context) -> Result<VdiInfo> {
        refuse_if_used(self)?;
        let params = Params { read_only: false, shareable: false, ..self.place.params()? };
        self.place.copy_to(dest, &params, context.progress)
    }

    fn snapshot(&self, dest: VdiUuid, context: &Context) -> Result<VdiInfo> {
        if context.others.is_none() {
            refuse_if_elsewhere(self)?;
        }
        let params = Params { read_only: true, shareable: false, ..self.place.params()? };
        self.place.copy_to(dest, &params, context.progress)
    }

    fn read(&self, reader: &mut dyn FnMut(&dyn Disk) -> Result<()>) -> Result<()> {
        self.place.read(&mut |image| reader(&*(KIND.disk)(image, &*self.place)?))
    }

    fn resize(&self, size: u64, allow_shrink: bool, _context: &Context) -> Result<Done> {
        let now = self.place.stat()?.length;
        let size = self.place.round_up(KIND.round(size)?);
        if size == now {
            self.place.settle()?;
            return Ok(Done::Already);
        }
        if size < now && !allow_shrink {
            return Err(Error::WouldShrink { vdi: self.place.vdi(), now, wanted: size });
        }
        if size < now {
            refuse_if_used(self)?;
        }
        self.place.resize(size)?;
        Ok(Done::Changed)
    }
}
