//! qcow2 disks: for what a VHD is too small for. Images and their children with backing files, as qemu and the
//! other storage managers read them.
//!
//! A backing file is named by its plain name, `<vdi>.qcow2`, which is looked for in the same SR and nowhere else.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::disk::Served;
use crate::image::place::FilePlace;
use crate::image::qcow2::{self, Chain, Header, Image, Parent};
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
        let like = Header::read(&place(parent, parent_path)?)?;
        let (size, name) = (like.virtual_size, name_of(parent_path));
        qcow2::create_child(&place(file, path)?, size, Some(&like), name, &Format::Qcow2.to_string())
    },
    query: |file, path| {
        let header = Header::read(&FilePlace::new(file, path)?)?;
        let parent = header.backing.as_ref().map(|name| parent(path, name)).transpose()?;
        Ok(Node { hidden: header.hidden, parent, ..Node::alone(header.virtual_size) })
    },
    named_parent: |file, path| {
        let name = qcow2::named_parent(&FilePlace::new(file, path).ok()?)?;
        parent_of_name(&name)
    },
    disk: |file, place| Ok(Box::new(chain(&file, place, Mode::ReadOnly)?)),
    set_hidden: |file, path, hidden| qcow2::set_hidden(&place(file, path)?, hidden),
    coalesce: |child, path, parent, parent_place, progress| {
        (KIND.check_parent)(&child, path, &parent, parent_place)?;
        let child = Image::open(Arc::new(place(&child, path)?), Mode::ReadOnly)?;
        let target = chain(&parent, parent_place, Mode::ReadWrite)?;
        qcow2::coalesce(&child, &target, progress)?;
        Box::new(target).close()
    },
    check_parent: |file, path, parent, parent_place| {
        let (image, is) = (place(file, path)?, place(parent, &parent_place.path())?);
        let (named, name) = (Header::read(&image)?.backing.unwrap_or_default(), parent_place.path());
        if named != name_of(&name) || (&image as &dyn qcow2::Place).is_same(&is)? {
            let what = format!("its parent is {named:?}, and {:?} was taken for it", name_of(&name));
            return Err(Error::Damaged { path: path.to_owned(), what });
        }
        Ok(())
    },
    set_parent: |file, path, _, parent_place| {
        let name = parent_place.path();
        qcow2::set_parent(&place(file, path)?, name_of(&name), &parent_place.format().to_string())
    },
    resize: |file, path, size| {
        let place: Arc<dyn qcow2::Place> = Arc::new(place(&file, path)?);
        qcow2::resize(&place, size).map(drop)
    },
    open: |place| Cow::open(place, &KIND),
};

fn place(file: &File, path: &Path) -> Result<FilePlace> {
    FilePlace::new(file.try_clone().map_err(Error::io("duplicate", path))?, path)
}

/// The disk of an image, which is open in `mode`, and its parents, which are looked for in its SR.
fn chain(file: &File, at: &dyn Place, mode: Mode) -> Result<Chain> {
    let path = at.path();
    let tree = at.tree()?;
    let leaf = Arc::new(place(file, &path)?);
    let leaf = if at.format() == Format::Raw { Parent::Raw(leaf) } else { Parent::Qcow2(leaf) };
    Chain::open(leaf, mode, |name| {
        let parent = tree.sibling(parent(&path, name)?)?;
        let image = Arc::new(FilePlace::new(parent.image(Mode::ReadOnly)?, parent.path())?);
        match parent.format() {
            Format::Raw => Ok(Parent::Raw(image)),
            Format::Qcow2 => Ok(Parent::Qcow2(image)),
            other => Err(Error::Damaged { path: path.clone(), what: format!("its parent {name:?} is a {other}") }),
        }
    })
}

/// The VDI that an image names as its parent. It must be one of the same SR, by its plain name.
fn parent(path: &Path, name: &str) -> Result<VdiUuid> {
    parent_of_name(name).ok_or_else(|| Error::Damaged {
        path: path.to_owned(),
        what: format!("names {name:?} as its parent, which is no VDI of this SR"),
    })
}

fn parent_of_name(name: &str) -> Option<VdiUuid> {
    name.strip_suffix(".qcow2").or_else(|| name.strip_suffix(".raw")).and_then(|stem| stem.parse().ok())
}
