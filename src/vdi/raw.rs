//! Raw disks: the place's bytes are the disk's bytes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use crate::context::Context;
use crate::error::{Error, Result, ended};
use crate::image::disk::{Disk, DiskWriter, RawImage, RawWriter};
use crate::image::fault::{Fault, Look};
use crate::image::name::NamedParent;
use crate::image::storage::Storage;
use crate::image::{Reading, SECTOR};
use crate::sys::limits;
use crate::sys::lock::Lock;
use crate::types::{Done, Format, Mode, Params, ParamsChange, SmConfig, VdiInfo, VdiUuid};
use crate::vdi::disk::{
    SinceReader, SnapshotSaid, Vdi, describe, of_clone, of_snapshot, refuse_if_elsewhere, refuse_if_read_only,
    refuse_if_used, refuse_snapshot_of_another,
};
use crate::vdi::format::{ImageInfo, Layout, Resolve};
use crate::vdi::place::Place;
use crate::vdi::tree::extents::Extents;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::nodes::Node;

/// The [`Layout`] of raw images.
pub struct RawLayout;

impl Layout for RawLayout {
    fn format(&self) -> Format {
        Format::Raw
    }

    /// The kernel's loff_t, a sector short of its end.
    fn largest(&self) -> u64 {
        i64::MAX as u64 / SECTOR * SECTOR
    }

    fn granule(&self) -> u64 {
        SECTOR
    }

    fn is_by_length(&self) -> bool {
        true
    }

    /// `type` is for readers that know no `image-format`.
    fn sm_config(&self) -> SmConfig {
        vec![("type", Some(Format::Raw.to_string()))]
    }

    fn create(&self, image: &dyn Storage, virtual_size: u64) -> Result<()> {
        self.begin(image, virtual_size)?;
        image.flush()
    }

    fn begin(&self, image: &dyn Storage, virtual_size: u64) -> Result<()> {
        image.set_size(virtual_size).map_err(|source| not_so_long(source, image.path(), virtual_size))
    }

    fn query(&self, image: &dyn Storage) -> Result<ImageInfo> {
        Ok(ImageInfo::alone(image.len()?))
    }

    fn named_parent(&self, _image: &dyn Storage) -> NamedParent {
        NamedParent { name: None, is_certain: true }
    }

    fn resize(&self, image: &Arc<dyn Storage>, virtual_size: u64) -> Result<()> {
        self.create(&**image, virtual_size)
    }

    /// Every length is a disk's.
    fn check(&self, _image: &Arc<dyn Storage>, _look: Look) -> Result<Vec<Fault>> {
        Ok(Vec::new())
    }

    fn repair(&self, _image: &Arc<dyn Storage>) -> Result<()> {
        Ok(())
    }

    fn is_blank(&self, _image: &Arc<dyn Storage>) -> Result<bool> {
        Ok(false)
    }

    fn held(&self, image: &Arc<dyn Storage>) -> Result<Extents> {
        Ok(std::iter::once(0..image.len()?).collect())
    }

    fn disk(&self, image: &Arc<dyn Storage>, _reading: Reading, _resolve: Resolve) -> Result<Box<dyn Disk>> {
        Ok(Box::new(RawImage::new(image.clone())?))
    }

    fn writer(&self, image: Arc<dyn Storage>) -> Result<Box<dyn DiskWriter>> {
        Ok(Box::new(RawWriter::new(image)))
    }
}

/// Makes a file `bytes` long, not yet durably.
///
/// # Errors
/// [`Error::TooBig`] beyond what the filesystem holds; [`Error::Io`], also beyond the limit of this process. Nothing was
/// changed.
pub fn set_length(file: &File, path: &Path, bytes: u64) -> Result<()> {
    file.set_len(bytes).map_err(|source| not_so_long(source, path, bytes))
}

fn not_so_long(source: std::io::Error, path: &Path, bytes: u64) -> Error {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EFBIG) if limits::file_size().is_none_or(|most| bytes <= most) => {
            Error::TooBig { what: "a disk", bytes, limit: "the filesystem holds no file of this size".to_owned() }
        }
        _ => Error::io("write", path)(source),
    }
}

/// The raw disk in a place. `forest`: the trees of its SR, if the SR keeps any; a raw image may be a parent there.
pub fn open<'a>(place: impl Place + 'a, forest: Option<Box<dyn Forest + 'a>>) -> Box<dyn Vdi + 'a> {
    Box::new(Raw { place, forest })
}

struct Raw<'a, P> {
    place: P,
    forest: Option<Box<dyn Forest + 'a>>,
}

impl<P: Place> Vdi for Raw<'_, P> {
    fn place(&self) -> &dyn Place {
        &self.place
    }

    fn info(&self) -> Result<VdiInfo> {
        let (brief, users) = (self.brief()?, self.place.holders()?.users);
        Ok(brief.with_users(users).with_device(self.device()?))
    }

    fn brief(&self) -> Result<VdiInfo> {
        let (usage, params) = (self.place.usage()?, self.place.params()?);
        let node = Node { state: self.place.state(), ..Node::alone(Format::Raw, usage.length) };
        Ok(describe(&self.place, &node, usage.allocated, params))
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
        if let Some(forest) = &self.forest {
            forest.nodes()?.refuse_if_parent(&self.place)?;
        }
        self.place.remove()
    }

    fn clone_to(&self, dest: VdiUuid, changes: &ParamsChange, context: &Context) -> Result<VdiInfo> {
        refuse_if_used(self)?;
        let params = of_clone(self.place.params()?, changes);
        self.place.copy_to(dest, &params, context.progress)
    }

    fn snapshot(&self, dest: VdiUuid, changes: &ParamsChange, context: &Context) -> Result<VdiInfo> {
        if context.others.is_none() {
            refuse_if_elsewhere(self)?;
        }
        let params = of_snapshot(self.place.vdi(), self.place.params()?, changes);
        self.place.copy_to(dest, &params, context.progress)
    }

    /// A raw disk shares nothing with its snapshot that would show whose it is, so the record alone is believed, or the agent.
    fn revert_to(&self, snapshot: VdiUuid, said: SnapshotSaid, context: &Context) -> Result<()> {
        refuse_if_read_only(self, "vdi_revert")?;
        refuse_if_used(self)?;
        if let Some(forest) = &self.forest {
            forest.nodes()?.refuse_if_parent(&self.place)?;
        }
        let vdi = self.place.vdi();
        let accept = |format: Format, params: &Params| {
            let is_known = refuse_snapshot_of_another(vdi, snapshot, params, said)?;
            let why = match (format, is_known) {
                (Format::Raw, true) => return Ok(()),
                (Format::Raw, false) => format!(
                    "the SR does not know of which disk VDI {snapshot} is a snapshot, because an earlier release made it"
                ),
                (format, _) => format!("VDI {snapshot} is {format}, and VDI {vdi} is raw"),
            };
            Err(Error::Unsupported { op: "vdi_revert", why: format!("{why}. vdi_clone of it makes a disk") })
        };
        self.place.take_over(snapshot, &accept, context.progress)
    }

    fn read(&self, _reading: Reading, reader: &mut dyn FnMut(&dyn Disk) -> Result<()>) -> Result<()> {
        let image = self.place.open(Mode::ReadOnly)?;
        let disk = self.place.mapped().and_then(|mapped| RawImage::with_data(image.clone(), mapped));
        ended(disk.and_then(|disk| reader(&disk)), image.close())
    }

    fn tells_changes(&self) -> bool {
        self.place.tells_changes()
    }

    fn read_since(&self, base: VdiUuid, reader: SinceReader) -> Result<()> {
        let image = self.place.open(Mode::ReadOnly)?;
        let done = self.place.changed_since(base).and_then(|changed| {
            let mapped = if changed.is_none() { self.place.mapped()? } else { None };
            let disk = RawImage::with_data(image.clone(), mapped)?;
            reader(&disk, changed.as_deref())
        });
        ended(done, image.close())
    }

    fn resize(&self, size: u64, allow_shrink: bool, _context: &Context) -> Result<Done> {
        let now = self.place.usage()?.length;
        let layout: &dyn Layout = &RawLayout;
        let size = self.place.round_up(layout.round(size)?);
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
