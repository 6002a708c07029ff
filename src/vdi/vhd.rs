//! VHD disks: dynamic images and their differencing children, as XCP pools hold them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::vhd::{self, Chain, FilePlace, NewImage, ParentLink};
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
        let parent_info = vhd::query(&place(parent, parent_path)?)?;
        let link = ParentLink {
            path: vhd::relative_path(path, parent_path)?,
            uuid: Some(parent_info.uuid),
            timestamp: vhd::timestamp(std::time::SystemTime::now()),
        };
        vhd::create_child(&place(file, path)?, &NewImage::new(parent_info.virtual_size), &link).map(drop)
    },
    query: |file, path| {
        let info = vhd::query(&place(file, path)?)?;
        if info.poisoned {
            return Err(Error::Damaged {
                path: path.to_owned(),
                what: "a resize was interrupted; vhd-util revert undoes it".to_owned(),
            });
        }
        let parent = info.parent.as_ref().map(|link| parent(path, link)).transpose()?;
        Ok(Node { virtual_size: info.virtual_size, hidden: info.hidden, parent })
    },
    disk: |file, place| {
        let path = place.path();
        let tree = place.tree()?;
        let chain = Chain::open(Arc::new(self::place(&file, &path)?), Mode::ReadOnly, |link| {
            let parent = tree.sibling(parent(&path, link)?)?;
            let image: Arc<dyn vhd::Place> = Arc::new(FilePlace::new(parent.image(Mode::ReadOnly)?, parent.path())?);
            Ok(if parent.format() == Format::Raw { vhd::Parent::Raw(image) } else { vhd::Parent::Vhd(image) })
        })?;
        Ok(Box::new(VhdDisk(chain)))
    },
    hide: |file, path| vhd::set_hidden(&place(file, path)?, true).map(drop),
    resize: |file, path, size| {
        let place: Arc<dyn vhd::Place> = Arc::new(place(&file, path)?);
        vhd::resize(&place, size).map(drop)
    },
    open: |place| Cow::open(place, &KIND),
};

fn place(file: &File, path: &Path) -> Result<FilePlace> {
    FilePlace::new(file.try_clone().map_err(Error::io("duplicate", path))?, path)
}

/// The VDI that an image names as its parent. It must be one of the same SR, by its plain name.
fn parent(path: &Path, link: &vhd::ParentInfo) -> Result<VdiUuid> {
    let name = link.file_name().unwrap_or("");
    let uuid = name.strip_suffix(".vhd").or_else(|| name.strip_suffix(".raw")).and_then(|stem| stem.parse().ok());
    uuid.ok_or_else(|| Error::Damaged {
        path: path.to_owned(),
        what: format!("names {:?} as its parent, which is no VDI of this SR", link.name),
    })
}
