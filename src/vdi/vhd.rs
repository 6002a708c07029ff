//! VHD images: dynamic images and their differencing children, as XCP pools hold them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Result;
use crate::image::Reading;
use crate::image::disk::{Disk, DiskWriter};
use crate::image::fault::{Fault, Look};
use crate::image::name::NamedParent;
use crate::image::storage::Storage;
use crate::image::vhd::{self, Chain, CheckOptions, Image, NewImage, ParentInfo, ParentLink};
use crate::sys::threads;
use crate::types::{Format, Mode, SmConfig};
use crate::vdi::format::{ImageInfo, Layout, ParentImage, Resolve, Work, WriteImage};
use crate::vdi::tree::extents::Extents;

/// How often the caller of a merge is told how far it is.
const PROGRESS: Duration = Duration::from_millis(200);

/// Bytes of disk that the tables of a VHD on a device have entries for (`MSIZE` in `lvhdutil.py`).
const RESERVE: u64 = 1 << 41;

/// The [`Layout`] of VHDs.
pub struct VhdLayout;

impl Layout for VhdLayout {
    fn format(&self) -> Format {
        Format::Vhd
    }

    fn largest(&self) -> u64 {
        vhd::MAX_SIZE
    }

    fn granule(&self) -> u64 {
        vhd::BLOCK
    }

    fn is_by_length(&self) -> bool {
        false
    }

    fn sm_config(&self) -> SmConfig {
        SmConfig::new()
    }

    fn create(&self, image: &dyn Storage, virtual_size: u64) -> Result<()> {
        vhd::create(image, &new_image(image, virtual_size)).map(drop)
    }

    fn query(&self, image: &dyn Storage) -> Result<ImageInfo> {
        let info = vhd::query_usable(image)?;
        Ok(ImageInfo {
            hidden: info.hidden,
            id: Some(info.uuid),
            parent_id: info.parent.as_ref().and_then(|link| link.uuid),
            parent: info.parent.map(|link| link.name),
            ..ImageInfo::alone(info.virtual_size)
        })
    }

    fn named_parent(&self, image: &dyn Storage) -> NamedParent {
        vhd::named_parent(image)
    }

    fn resize(&self, image: &Arc<dyn Storage>, virtual_size: u64) -> Result<()> {
        vhd::resize(image, virtual_size).map(drop)
    }

    fn check(&self, image: &Arc<dyn Storage>, look: Look) -> Result<Vec<Fault>> {
        vhd::check(image, CheckOptions { in_use: look.in_use, bitmaps: look.deep && !look.in_use, parent: None })
    }

    fn repair(&self, image: &Arc<dyn Storage>) -> Result<()> {
        vhd::repair(image)
    }

    fn disk(&self, image: &Arc<dyn Storage>, reading: Reading, resolve: Resolve) -> Result<Box<dyn Disk>> {
        let found = |link: &ParentInfo| {
            let (format, image) = resolve(&link.name)?;
            Ok(parent_of(format, image))
        };
        let chain = match reading {
            Reading::Whole => Chain::open(image.clone(), Mode::ReadOnly, found),
            Reading::Rescue => Chain::rescue(image.clone(), found),
        };
        Ok(Box::new(VhdDisk(chain?)))
    }

    fn writer(&self, image: Arc<dyn Storage>) -> Result<Box<dyn DiskWriter>> {
        Ok(Box::new(VhdDisk(Chain::open_single(image, Mode::ReadWrite)?)))
    }

    fn child_of(&self, parent: &ParentImage) -> Result<WriteImage> {
        let (virtual_size, uuid) = match parent.format {
            Format::Raw => (parent.image.len()?, None),
            _ => {
                let info = vhd::query_for_child(&**parent.image)?;
                (info.virtual_size, Some(info.uuid))
            }
        };
        let link = ParentLink { uuid, ..link(&parent.name) };
        Ok(Box::new(move |image| vhd::create_child(image, &new_image(image, virtual_size), &link).map(drop)))
    }

    fn refuse_damaged(&self, image: &Arc<dyn Storage>) -> Result<()> {
        if vhd::query(&**image)?.kind == vhd::Kind::Fixed {
            return Ok(());
        }
        Image::open(image.clone(), Mode::ReadOnly).map(drop)
    }

    fn is_blank(&self, image: &Arc<dyn Storage>) -> Result<bool> {
        vhd::is_blank(image)
    }

    fn held(&self, image: &Arc<dyn Storage>) -> Result<Extents> {
        let info = vhd::query(&**image)?;
        if info.kind == vhd::Kind::Fixed {
            return Ok(std::iter::once(0..info.virtual_size).collect());
        }
        let image = Image::open(image.clone(), Mode::ReadOnly)?;
        let size = image.block_size();
        let stretch = |block: u32| u64::from(block) * size..((u64::from(block) + 1) * size).min(info.virtual_size);
        Ok(image.allocated().map(|(block, _)| stretch(block)).collect())
    }

    fn set_hidden(&self, image: &dyn Storage, hidden: bool) -> Result<()> {
        vhd::set_hidden(image, hidden).map(drop)
    }

    fn coalesce(
        &self,
        children: &[Arc<dyn Storage>],
        parent: &ParentImage,
        _resolve: Resolve,
        work: Work,
    ) -> Result<()> {
        let open = |child: &Arc<dyn Storage>| Image::open(child.clone(), Mode::ReadOnly);
        let children: Vec<Image> = children.iter().map(open).collect::<Result<_>>()?;
        let (all, copied) = (AtomicU64::new(0), work.copied);
        let step = |step: u64, so_far: u64| {
            all.fetch_max(so_far, Ordering::Relaxed);
            copied(step)
        };
        let (target, format): (&Arc<dyn Storage>, _) = (&parent.image, parent.format);
        let merge = || match format {
            Format::Raw => vhd::coalesce_all(&children, vhd::Target::Raw(&**target), &step).map(drop),
            _ if vhd::query(&**target)?.kind == vhd::Kind::Fixed => {
                vhd::coalesce_all(&children, vhd::Target::Fixed(&**target), &step).map(drop)
            }
            _ => {
                let image = Image::open(target.clone(), Mode::ReadWrite)?;
                vhd::coalesce_all(&children, vhd::Target::Vhd(&image), &step).and_then(|_| image.close())
            }
        };
        let told = || (work.progress)(all.load(Ordering::Relaxed));
        let result = threads::followed(merge, PROGRESS, &told);
        told();
        result
    }

    fn check_parent(&self, child: &dyn Storage, parent: &ParentImage) -> Result<()> {
        vhd::check_parent(child, &parent_of(parent.format, parent.image.clone()))
    }

    fn set_parent(&self, child: &dyn Storage, parent: &ParentImage) -> Result<()> {
        let uuid = match parent.format {
            Format::Raw => None,
            _ => Some(vhd::query(&**parent.image)?.uuid),
        };
        vhd::set_parent(child, &ParentLink { uuid, ..link(&parent.name) }).map(drop)
    }
}

fn parent_of(format: Format, image: Arc<dyn Storage>) -> vhd::Parent {
    if format == Format::Raw { vhd::Parent::Raw(image) } else { vhd::Parent::Vhd(image) }
}

/// A new image. On a device it gets tables for the largest disk, as the Python drivers make it in a logical volume (LVHD): the
/// disk can then grow without moving anything.
fn new_image(place: &dyn Storage, virtual_size: u64) -> NewImage {
    NewImage { reserve: if place.is_device() { RESERVE } else { 0 }, ..NewImage::new(virtual_size) }
}

/// The link to an image of this name beside the child. It names no UUID yet.
fn link(name: &str) -> ParentLink {
    ParentLink::beside(name, None, vhd::timestamp(std::time::SystemTime::now()))
}

/// A chain of VHDs as one disk.
pub struct VhdDisk(pub Chain);

impl Disk for VhdDisk {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        let size = self.size();
        let mut at = from;
        while at < size {
            let extent = self.0.extent_at(at, size, usize::MAX)?;
            at = extent.offset + extent.len;
            if extent.data {
                return Ok(Some((extent.offset, at)));
            }
        }
        Ok(None)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn lost_at(&self, offset: u64, len: u64) -> u64 {
        self.0.lost_at(offset, len)
    }
}

impl DiskWriter for VhdDisk {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.0.close()
    }
}
