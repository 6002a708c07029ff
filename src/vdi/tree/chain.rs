//! The chain of one disk, read header by header: cheaper than to read every image of the SR.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::storage::Storage;
use crate::types::{Format, Mode, State, VdiUuid};
use crate::vdi::format::ParentImage;
use crate::vdi::formats::layout;
use crate::vdi::place::Place;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::nodes::{Node, another_image};

/// Images from the root to a leaf, at most; the other storage managers stop here as well (copy-on-write
/// trees, "Snapshot and clone").
pub const LONGEST_CHAIN: usize = 30;

/// The node of the image in a place, as the image itself tells: one open, one read.
///
/// # Errors
/// [`Error::NoVdi`], [`Error::Damaged`]; [`Error::Unsupported`] for what can't be used; [`Error::Io`].
pub fn look(forest: &dyn Forest, place: &dyn Place) -> Result<Node> {
    let image = place.open(Mode::ReadOnly)?;
    let info = layout(place.format()).query(&**image)?;
    Node::of(place.vdi(), place.format(), info, image.path(), |name| forest.named(name, place.format()))
}

/// The parent of an image, or the state that the lack of it is: healthy if the image names none.
///
/// # Errors
/// [`Error::Io`], and whatever does not concern the parent alone.
pub fn parent_of(forest: &dyn Forest, child: &Node) -> Result<Result<Node, State>> {
    let Some(name) = child.parent else { return Ok(Err(State::Healthy)) };
    let place = match forest.place(name) {
        Ok(place) => place,
        Err(Error::NoVdi { .. }) => return Ok(Err(State::ParentMissing(name.to_string()))),
        Err(error) => return Err(error),
    };
    let parent = match look(forest, &*place) {
        Ok(parent) => parent,
        Err(error @ (Error::Damaged { .. } | Error::Unsupported { .. })) => return Ok(Err(State::of(&error))),
        Err(error) => return Err(error),
    };
    Ok(match child.is_child_of(&parent) {
        true => Ok(parent),
        false => Err(State::ParentMissing(another_image(name))),
    })
}

/// Images in the chain of a disk, itself included; no more than one above [`LONGEST_CHAIN`] are looked at.
///
/// # Errors
/// [`Error::Damaged`] if one of them is missing, or is another image than the one above it names.
pub fn depth(forest: &dyn Forest, place: &dyn Place, node: &Node) -> Result<usize> {
    let mut depth = 1;
    let mut child = node.clone();
    while let Some(name) = child.parent {
        depth += 1;
        if depth > LONGEST_CHAIN {
            break;
        }
        child = parent_of(forest, &child)?.map_err(|state| Error::Damaged {
            path: place.path(),
            what: format!("image {name} in its chain: {state}"),
        })?;
    }
    Ok(depth)
}

/// The images of a disk's chain, from its own to the root.
///
/// # Errors
/// [`Error::Damaged`] if the chain meets itself; [`Error::NoVdi`] if an image of it is missing.
pub fn chain(forest: &dyn Forest, place: &dyn Place) -> Result<Vec<VdiUuid>> {
    let (mut chain, mut next) = (vec![place.vdi()], look(forest, place)?.parent);
    while let Some(parent) = next {
        if chain.contains(&parent) {
            let what = format!("its chain of parents meets itself at {parent}");
            return Err(Error::Damaged { path: place.path(), what });
        }
        chain.push(parent);
        next = look(forest, &*forest.place(parent)?)?.parent;
    }
    Ok(chain)
}

/// Opens the parents that headers name, and keeps them open as long as it lives.
pub struct Ancestors<'f> {
    forest: &'f dyn Forest,
    /// The image whose chain it is.
    path: PathBuf,
    format: Format,
    open: RefCell<Vec<ParentImage<'f>>>,
}

impl<'f> Ancestors<'f> {
    /// Of an image of this format; `path` is what errors call it.
    pub fn of(forest: &'f dyn Forest, path: PathBuf, format: Format) -> Ancestors<'f> {
        Ancestors { forest, path, format, open: RefCell::default() }
    }

    /// The image of a name: its format and its bytes, open for reading.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the name is that of no image of this SR; what opening it says.
    pub fn find(&self, name: &str) -> Result<(Format, Arc<dyn Storage>)> {
        let damaged = |what: String| Error::Damaged { path: self.path.clone(), what };
        let vdi = self.forest.named(name, self.format);
        let vdi = vdi.ok_or_else(|| damaged(format!("names {name:?} as its parent, which is no VDI of this SR")))?;
        let parent = self.forest.parent_image(vdi, Mode::ReadOnly)?;
        if !self.forest.is_called(&parent, name) {
            return Err(damaged(format!("its parent is {name:?}, and the SR has {:?}", parent.name)));
        }
        let found = (parent.format, parent.image.clone());
        self.open.borrow_mut().push(parent);
        Ok(found)
    }
}
