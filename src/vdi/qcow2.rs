//! qcow2 images: for what a VHD is too small for. Images and their children with backing files, as qemu and the
//! other storage managers read them.
//!
//! A backing file is named by its plain name, which is looked for in the same SR and nowhere else.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::Reading;
use crate::image::disk::{Disk, DiskWriter};
use crate::image::fault::{Fault, Look};
use crate::image::name::NamedParent;
use crate::image::qcow2::{self, Chain, Header, Image, Parent};
use crate::image::storage::Storage;
use crate::types::{Format, Mode, SmConfig};
use crate::vdi::format::{ImageInfo, Layout, ParentImage, Resolve, Work, WriteImage};
use crate::vdi::tree::extents::Extents;

/// The [`Layout`] of qcow2 images.
pub struct Qcow2Layout;

impl Layout for Qcow2Layout {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn largest(&self) -> u64 {
        qcow2::MAX_SIZE
    }

    fn granule(&self) -> u64 {
        qcow2::CLUSTER
    }

    fn is_by_length(&self) -> bool {
        false
    }

    fn sm_config(&self) -> SmConfig {
        // Earlier releases wrote it, and nothing reads it.
        vec![("type", None)]
    }

    fn create(&self, image: &dyn Storage, virtual_size: u64) -> Result<()> {
        qcow2::create(image, virtual_size)
    }

    fn query(&self, image: &dyn Storage) -> Result<ImageInfo> {
        let header = Header::read(image)?;
        let parent = header.parent(image)?.map(str::to_owned);
        Ok(ImageInfo { hidden: header.hidden, parent, ..ImageInfo::alone(header.virtual_size) })
    }

    fn named_parent(&self, image: &dyn Storage) -> NamedParent {
        qcow2::named_parent(image)
    }

    fn resize(&self, image: &Arc<dyn Storage>, virtual_size: u64) -> Result<()> {
        qcow2::resize(image, virtual_size).map(drop)
    }

    fn check(&self, image: &Arc<dyn Storage>, look: Look) -> Result<Vec<Fault>> {
        qcow2::check(image, look)
    }

    fn repair(&self, image: &Arc<dyn Storage>) -> Result<()> {
        qcow2::repair(image)
    }

    fn disk(&self, image: &Arc<dyn Storage>, reading: Reading, resolve: Resolve) -> Result<Box<dyn Disk>> {
        Ok(Box::new(match reading {
            Reading::Whole => chain(Format::Qcow2, image, Mode::ReadOnly, resolve)?,
            Reading::Rescue => Chain::rescue(Parent::Qcow2(image.clone()), |name| {
                let (format, image) = resolve(name)?;
                Ok(layer(format, image))
            })?,
        }))
    }

    fn writer(&self, image: Arc<dyn Storage>) -> Result<Box<dyn DiskWriter>> {
        Ok(Box::new(Chain::open_single(image, Mode::ReadWrite)?))
    }

    fn child_of(&self, parent: &ParentImage) -> Result<WriteImage> {
        let name = parent.name.clone();
        if parent.format == Format::Raw {
            let (virtual_size, format) = (parent.image.len()?, parent.format.to_string());
            return Ok(Box::new(move |image| qcow2::create_child(image, virtual_size, None, &name, &format)));
        }
        let like = Header::read(&**parent.image)?;
        // A child of it could never be merged into it.
        like.refuse_unwritable(&**parent.image)?;
        Ok(Box::new(move |image| {
            qcow2::create_child(image, like.virtual_size, Some(&like), &name, &Format::Qcow2.to_string())
        }))
    }

    fn fine_child_of(&self, parent: &ParentImage) -> Result<WriteImage> {
        let (name, format) = (parent.name.clone(), parent.format.to_string());
        let virtual_size = match parent.format {
            Format::Raw => parent.image.len()?,
            _ => {
                let like = Header::read(&**parent.image)?;
                like.refuse_unwritable(&**parent.image)?;
                like.virtual_size
            }
        };
        Ok(Box::new(move |image| qcow2::create_fine_child(image, virtual_size, &name, &format)))
    }

    fn is_blank(&self, image: &Arc<dyn Storage>) -> Result<bool> {
        Ok(Image::open(image.clone(), Mode::ReadOnly)?.is_blank())
    }

    fn held(&self, image: &Arc<dyn Storage>) -> Result<Extents> {
        let image = Image::open(image.clone(), Mode::ReadOnly)?;
        let (mut held, mut at) = (Extents::default(), 0);
        while at < image.virtual_size() {
            let (takes_space, len) = image.takes_space(at, image.virtual_size() - at)?;
            if takes_space {
                held.push(at..at + len);
            }
            at += len;
        }
        Ok(held)
    }

    fn hides(&self, image: &Arc<dyn Storage>) -> Result<Extents> {
        let (image, mut hidden) = (Image::open(image.clone(), Mode::ReadOnly)?, Extents::default());
        qcow2::own(&image, &mut |from, to| hidden.push(from..to))?;
        Ok(hidden)
    }

    fn set_hidden(&self, image: &dyn Storage, hidden: bool) -> Result<()> {
        qcow2::set_hidden(image, hidden)
    }

    fn coalesce(
        &self,
        children: &[Arc<dyn Storage>],
        parent: &ParentImage,
        resolve: Resolve,
        work: Work,
    ) -> Result<()> {
        children.first().map_or(Ok(()), |lowest| self.check_parent(&**lowest, parent))?;
        let open = |child: &Arc<dyn Storage>| Image::open(child.clone(), Mode::ReadOnly);
        let children: Vec<Image> = children.iter().map(open).collect::<Result<_>>()?;
        let target = chain(parent.format, &parent.image, Mode::ReadWrite, resolve)?;
        // Ends with a flush. The data that was replaced keeps its space: the disk's server may still read it there.
        qcow2::coalesce_all(&children, &target, &|step, done| {
            (work.progress)(done);
            (work.copied)(step)
        })
    }

    fn check_parent(&self, child: &dyn Storage, parent: &ParentImage) -> Result<()> {
        let header = Header::read(child)?;
        // A volume is named with its path, which leads to the same SR.
        let name = parent.name.rsplit('/').next().unwrap_or_default();
        let named = header.parent(child)?.unwrap_or_default();
        if named != name || child.is_same(&**parent.image)? {
            let what = format!("its parent is {named:?}, and {name:?} was taken for it");
            return Err(Error::Damaged { path: child.path().to_owned(), what });
        }
        header.refuse_parent(child, name, &parent.format.to_string())
    }

    fn set_parent(&self, child: &dyn Storage, parent: &ParentImage) -> Result<()> {
        qcow2::set_parent(child, &parent.name, &parent.format.to_string())
    }
}

fn layer(format: Format, image: Arc<dyn Storage>) -> Parent {
    if format == Format::Raw { Parent::Raw(image) } else { Parent::Qcow2(image) }
}

/// The disk of an image of `format` and its parents; the image itself is open in `mode`.
fn chain(format: Format, image: &Arc<dyn Storage>, mode: Mode, resolve: Resolve) -> Result<Chain> {
    Chain::open(layer(format, image.clone()), mode, |name| {
        let (format, image) = resolve(name)?;
        Ok(layer(format, image))
    })
}
