//! qcow2 disks: for what a VHD is too small for. Images and their children with backing files, as qemu and the
//! other storage managers read them.
//!
//! A backing file is named by its plain name, `<vdi>.qcow2`, which is looked for in the same SR and nowhere else.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::qcow2::{self, Chain, Header, Image, Parent};
use crate::image::storage::FileStorage;
use crate::sys::durable::name_of;
use crate::types::{Format, Mode, VdiUuid};
use crate::vdi::cow::Cow;
use crate::vdi::{Kind, Node, Place};

pub static KIND: Kind = Kind {
    format: Format::Qcow2,
    largest: qcow2::MAX_SIZE,
    granule: qcow2::CLUSTER,
    by_length: false,
    create: |file, path, virtual_size| qcow2::create(&place(file, path)?, virtual_size),
    create_child: |file, path, parent, parent_path| {
        let parent = place(parent, parent_path)?;
        let like = Header::read(&parent)?;
        // A child of it could never be merged into it.
        like.refuse_unwritable(&parent)?;
        let (size, name) = (like.virtual_size, name_of(parent_path));
        qcow2::create_child(&place(file, path)?, size, Some(&like), name, &Format::Qcow2.to_string())
    },
    query: |file, path| {
        let image = FileStorage::new(file, path)?;
        let header = Header::read(&image)?;
        let parent = header.parent(&image)?.map(|name| parent(path, name)).transpose()?;
        Ok(Node { hidden: header.hidden, parent, ..Node::alone(header.virtual_size) })
    },
    named_parent: |file, path| {
        let name = qcow2::named_parent(&FileStorage::new(file, path).ok()?)?;
        Some(name.and_then(|name| parent_of_name(&name)))
    },
    disk: |file, place| Ok(Box::new(chain(&file, place, Mode::ReadOnly)?)),
    set_hidden: |file, path, hidden| qcow2::set_hidden(&place(file, path)?, hidden),
    coalesce: |child, path, parent, parent_place, progress| {
        (KIND.check_parent)(&child, path, &parent, parent_place)?;
        let child = Image::open(Arc::new(place(&child, path)?), Mode::ReadOnly)?;
        let target = chain(&parent, parent_place, Mode::ReadWrite)?;
        // Ends with a flush. What it replaced keeps its space: the disk's server may still read it there.
        qcow2::coalesce(&child, &target, progress)
    },
    check_parent: |file, path, parent, parent_place| {
        let (image, is) = (place(file, path)?, place(parent, &parent_place.path())?);
        let (header, path_of) = (Header::read(&image)?, parent_place.path());
        let (named, name) = (header.parent(&image)?.unwrap_or_default(), name_of(&path_of));
        if named != name || (&image as &dyn qcow2::Storage).is_same(&is)? {
            let what = format!("its parent is {named:?}, and {name:?} was taken for it");
            return Err(Error::Damaged { path: path.to_owned(), what });
        }
        header.refuse_parent(&image, name, &parent_place.format().to_string())?;
        Ok(())
    },
    set_parent: |file, path, _, parent_place| {
        let name = parent_place.path();
        qcow2::set_parent(&place(file, path)?, name_of(&name), &parent_place.format().to_string())
    },
    resize: |file, path, size| {
        let place: Arc<dyn qcow2::Storage> = Arc::new(place(&file, path)?);
        qcow2::resize(&place, size).map(drop)
    },
    open: |place| Cow::open(place, &KIND),
};

fn place(file: &File, path: &Path) -> Result<FileStorage> {
    FileStorage::new(file.try_clone().map_err(Error::io("duplicate", path))?, path)
}

/// The disk of an image, which is open in `mode`, and its parents, which are looked for in its SR.
fn chain(file: &File, at: &dyn Place, mode: Mode) -> Result<Chain> {
    let path = at.path();
    let tree = at.tree()?;
    let leaf = Arc::new(place(file, &path)?);
    let leaf = if at.format() == Format::Raw { Parent::Raw(leaf) } else { Parent::Qcow2(leaf) };
    Chain::open(leaf, mode, |name| {
        let parent = tree.sibling(parent(&path, name)?)?;
        if name_of(&parent.path()) != name {
            let what = format!("its parent is {name:?}, and the SR has {:?}", name_of(&parent.path()));
            return Err(Error::Damaged { path: path.clone(), what });
        }
        let image = Arc::new(FileStorage::new(parent.image(Mode::ReadOnly)?, parent.path())?);
        // The name ends in the one or the other.
        Ok(if parent.format() == Format::Raw { Parent::Raw(image) } else { Parent::Qcow2(image) })
    })
}

/// The VDI that an image names as its parent. It must be one of the same SR, by its plain name.
fn parent(path: &Path, name: &str) -> Result<VdiUuid> {
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    let uuid = parent_of_name(name)
        .ok_or_else(|| damaged(format!("names {name:?} as its parent, which is no VDI of this SR")))?;
    if path.file_stem().and_then(|own| own.to_str()).is_some_and(|own| own == uuid.to_string()) {
        return Err(damaged(format!("names {name:?} as its parent, which has its own UUID")));
    }
    Ok(uuid)
}

fn parent_of_name(name: &str) -> Option<VdiUuid> {
    name.strip_suffix(".qcow2").or_else(|| name.strip_suffix(".raw")).and_then(|stem| stem.parse().ok())
}
