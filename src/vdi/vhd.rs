//! VHD disks: dynamic images and their differencing children, as XCP pools hold them.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::vhd::{self, Chain, FileStorage, Image, NewImage, ParentLink};
use crate::types::{Format, Mode, VdiUuid};
use crate::vdi::cow::Cow;
use crate::vdi::transfer::VhdDisk;
use crate::vdi::{Kind, Node};

pub static KIND: Kind = Kind {
    format: Format::Vhd,
    largest: vhd::MAX_SIZE,
    granule: vhd::BLOCK,
    by_length: false,
    create: |file, path, virtual_size| vhd::create(&place(file, path)?, &NewImage::new(virtual_size)).map(drop),
    create_child: |file, path, parent, parent_path| {
        let parent_info = vhd::query_for_child(&place(parent, parent_path)?)?;
        let link = link(path, parent_path, Some(parent_info.uuid))?;
        vhd::create_child(&place(file, path)?, &NewImage::new(parent_info.virtual_size), &link).map(drop)
    },
    query: |file, path| {
        let info = vhd::query_usable(&FileStorage::new(file, path)?)?;
        let parent = info.parent.as_ref().map(|link| parent(path, link)).transpose()?;
        Ok(Node {
            hidden: info.hidden,
            parent,
            id: Some(info.uuid),
            parent_id: info.parent.and_then(|link| link.uuid),
            ..Node::alone(info.virtual_size)
        })
    },
    named_parent: |file, path| {
        let name = vhd::named_parent(&FileStorage::new(file, path).ok()?)?;
        Some(name.and_then(|name| parent_of_name(&name)))
    },
    disk: |file, place| {
        let path = place.path();
        let tree = place.tree()?;
        let chain = Chain::open(Arc::new(self::place(&file, &path)?), Mode::ReadOnly, |link| {
            let parent = tree.sibling(parent(&path, link)?)?;
            let image: Arc<dyn vhd::Storage> =
                Arc::new(FileStorage::new(parent.image(Mode::ReadOnly)?, parent.path())?);
            Ok(vhd_parent(parent.format(), image))
        })?;
        Ok(Box::new(VhdDisk(chain)))
    },
    set_hidden: |file, path, hidden| vhd::set_hidden(&place(file, path)?, hidden).map(drop),
    coalesce: |child, path, parent, parent_place, progress| {
        let child: Arc<dyn vhd::Storage> = Arc::new(place(&child, path)?);
        let child = Image::open(child, Mode::ReadOnly)?;
        let target: Arc<dyn vhd::Storage> = Arc::new(place(&parent, &parent_place.path())?);
        // Several threads tell how far they are, and `progress` wants one.
        let blocks = AtomicU64::new(0);
        let step = |done: u64, _: u64| {
            blocks.fetch_max(done, Ordering::Relaxed);
            ControlFlow::Continue(())
        };
        let result = match parent_place.format() {
            Format::Raw => vhd::coalesce(&child, vhd::Target::Raw(&*target), &step).map(drop),
            _ if vhd::query(&*target)?.kind == vhd::Kind::Fixed => {
                vhd::coalesce(&child, vhd::Target::Fixed(&*target), &step).map(drop)
            }
            _ => {
                let image = Image::open(target, Mode::ReadWrite)?;
                vhd::coalesce(&child, vhd::Target::Vhd(&image), &step).and_then(|_| image.close())
            }
        };
        let copied = blocks.into_inner() * child.block_size();
        progress(copied, copied);
        result
    },
    check_parent: |file, path, parent, parent_place| {
        let parent = place(parent, &parent_place.path())?;
        vhd::check_parent(&place(file, path)?, &vhd_parent(parent_place.format(), Arc::new(parent)))
    },
    set_parent: |file, path, parent, parent_place| {
        let uuid = match parent_place.format() {
            Format::Raw => None,
            _ => Some(vhd::query(&place(parent, &parent_place.path())?)?.uuid),
        };
        vhd::set_parent(&place(file, path)?, &link(path, &parent_place.path(), uuid)?).map(drop)
    },
    resize: |file, path, size| {
        let place: Arc<dyn vhd::Storage> = Arc::new(place(&file, path)?);
        vhd::resize(&place, size).map(drop)
    },
    open: |place| Cow::open(place, &KIND),
};

fn place(file: &File, path: &Path) -> Result<FileStorage> {
    FileStorage::new(file.try_clone().map_err(Error::io("duplicate", path))?, path)
}

fn vhd_parent(format: Format, image: Arc<dyn vhd::Storage>) -> vhd::Parent {
    if format == Format::Raw { vhd::Parent::Raw(image) } else { vhd::Parent::Vhd(image) }
}

fn link(child: &Path, parent: &Path, uuid: Option<Uuid>) -> Result<ParentLink> {
    let path = vhd::relative_path(child, parent)?;
    Ok(ParentLink { path, uuid, timestamp: vhd::timestamp(std::time::SystemTime::now()) })
}

/// The VDI that an image names as its parent. It must be one of the same SR, by its plain name.
fn parent(path: &Path, link: &vhd::ParentInfo) -> Result<VdiUuid> {
    link.file_name().and_then(parent_of_name).ok_or_else(|| Error::Damaged {
        path: path.to_owned(),
        what: format!("names {:?} as its parent, which is no VDI of this SR", link.name),
    })
}

fn parent_of_name(name: &str) -> Option<VdiUuid> {
    name.strip_suffix(".vhd").or_else(|| name.strip_suffix(".raw")).and_then(|stem| stem.parse().ok())
}
