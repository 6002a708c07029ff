//! The opening of a chain, and the question whether a parent is the image that its child names.

use std::sync::Arc;

use uuid::Uuid;

use super::chain::{Layer, Parent};
use super::image::Image;
use super::query::{Info, Meta, ParentInfo, query};
use super::{Kind, SECTOR, Storage};
use crate::error::{Error, Result, one_line};
use crate::image::{MAX_DEPTH, Reading};
use crate::types::Mode;

/// A chain that is being opened.
pub(super) struct Opening {
    pub(super) layers: Vec<Layer>,
    seen: Vec<Uuid>,
    /// The image that named the next one, and what its headers say.
    child: Option<(Arc<dyn Storage>, Info)>,
    reading: Reading,
}

impl Opening {
    pub(super) fn new(reading: Reading) -> Opening {
        Opening { layers: Vec::new(), seen: Vec::new(), child: None, reading }
    }

    /// Adds an image, and finds the parent that it names.
    pub(super) fn add(
        &mut self,
        found: Parent,
        mode: Mode,
        resolve: &mut dyn FnMut(&ParentInfo) -> Result<Parent>,
    ) -> Result<Option<Parent>> {
        let place = match found {
            Parent::Raw(place) => {
                if let Some((child, info)) = &self.child {
                    check_link(&**child, info, &*place, None)?;
                }
                for layer in &self.layers {
                    if layer.place().is_same(&*place)? {
                        return Err(place.damaged("its chain of parents meets itself"));
                    }
                }
                let size = place.len()?;
                self.layers.push(Layer::Flat(place, size));
                return Ok(None);
            }
            Parent::Vhd(place) => place,
        };
        let meta = Meta::read_as(&*place, self.reading)?;
        let info = meta.info();
        if let Some((child, link)) = &self.child {
            check_link(&**child, link, &*place, Some(&info))?;
        }
        if self.seen.contains(&info.uuid) || self.layers.len() >= MAX_DEPTH {
            return Err(place.damaged("its chain of parents meets itself or is too long"));
        }
        self.seen.push(info.uuid);
        let parent = info.parent.as_ref().map(resolve).transpose();
        // What an image holds is there also if its parent is not.
        let parent = if self.reading == Reading::Whole { Ok(parent?) } else { parent };
        self.layers.push(match info.kind {
            Kind::Fixed => {
                meta.check(place.path())?;
                Layer::Flat(place.clone(), fixed_size(&*place, &info)?)
            }
            _ => Layer::Sparse(Box::new(Image::with(place.clone(), mode, self.reading, meta)?)),
        });
        self.child = Some((place, info));
        parent
    }

    /// Notes that the next image cannot be opened.
    pub(super) fn lose(&mut self, why: &Error) {
        if let Some((child, _)) = &self.child {
            self.layers.push(Layer::Lost(child.clone(), one_line(why)));
        }
    }
}

/// Bytes of the disk that a fixed image holds from its first byte on.
///
/// # Errors
/// [`Error::Damaged`] if its footer says more than there is.
pub(super) fn fixed_size(place: &dyn Storage, info: &Info) -> Result<u64> {
    match place.len()?.saturating_sub(SECTOR - 1) {
        room if info.virtual_size > room => Err(place.damaged("it is shorter than its virtual size")),
        _ => Ok(info.virtual_size),
    }
}

/// Refuses a parent that is not the image that `child` names. Any code that reads or writes a parent for a child asks
/// this first: a file of the right name may hold another image, and merging a child into that one destroys both.
///
/// A differencing image names the UUID in its parent's footer, or none if the parent is raw. The parent's modification
/// time, which it holds as well, is nobody's business: a copy changes it, and other tools do not look at it either.
///
/// # Errors
/// [`Error::Damaged`] if the UUID is another one, a raw file was found for a VHD or a VHD for a raw file, the child is
/// its own parent, or it has none; [`Error::Io`].
pub fn check_parent(child: &dyn Storage, parent: &Parent) -> Result<()> {
    let info = query(child)?;
    match parent {
        Parent::Vhd(place) => check_link(child, &info, &**place, Some(&query(&**place)?)),
        Parent::Raw(place) => check_link(child, &info, &**place, None),
    }
}

/// [`check_parent`] of images whose headers were read: `is` is what a parent that is a VHD says of itself.
pub(super) fn check_link(child: &dyn Storage, info: &Info, parent: &dyn Storage, is: Option<&Info>) -> Result<()> {
    let Some(link) = &info.parent else {
        return Err(child.damaged(format!("it names no parent, and {} was taken for it", parent.path().display())));
    };
    let itself = || Err(child.damaged("it names itself as its parent: its chain meets itself"));
    let found = parent.path().display();
    match (link.uuid, is) {
        (Some(uuid), _) if uuid == info.uuid => itself(),
        (Some(uuid), Some(is)) if uuid == is.uuid => Ok(()),
        (Some(uuid), Some(is)) => Err(child
            .damaged(format!("it names the VHD of UUID {uuid} as its parent, and {found} has the UUID {}", is.uuid))),
        (Some(_), None) => Err(child.damaged(format!("it names a VHD as its parent, and {found} is a raw disk"))),
        (None, Some(_)) => Err(child.damaged(format!("it names a raw disk as its parent, and {found} is a VHD"))),
        (None, None) if child.is_same(parent)? => itself(),
        (None, None) => Ok(()),
    }
}
