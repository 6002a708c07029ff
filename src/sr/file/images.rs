//! The images of a directory: what each says of itself, and whether it can be used.
//!
//! A look at many images never fails because of one of them. An image that cannot be read is listed with its
//! [`State`]; it stays the child of the parent that its header names, so that this parent is neither merged nor
//! removed. If not even that can be read (an I/O error, no permission, a lost header), it may be the child of any base of
//! its format, and none of these is merged or removed until it can be read or is deleted ([`Node::unread`]).

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::directory::FileSr;
use super::layout::{image_name, must_be, two_images, usage};
use super::listing::Listing;
use super::records::{read_change, read_params};
use super::unborn::unborn;
use crate::error::{Error, Result};
use crate::image::name::ImageName;
use crate::image::storage::FileStorage;
use crate::sys::durable::{Dir, Stat};
use crate::sys::{loopdev, threads};
use crate::types::{Format, State, VdiUuid};
use crate::vdi::tree::change::Change;
use crate::vdi::tree::nodes::{Node, Nodes, judge};
use crate::vdi::{Usage, layout};

/// An image of the SR and what it says of itself.
pub(super) struct Image {
    pub(super) vdi: VdiUuid,
    pub(super) format: Format,
    pub(super) id: loopdev::FileId,
    pub(super) usage: Usage,
    /// Size 0, no parent but the one that can be told, and a state, of an image that cannot be read.
    pub(super) node: Node,
}

impl Image {
    /// Looks at one image. `None`: it was deleted since the directory was read, so it was not there.
    ///
    /// # Errors
    /// Only of this process or the whole directory. An image that cannot be read is an answer.
    pub(super) fn read(dir: &Dir, vdi: VdiUuid, format: Format) -> Result<Option<Image>> {
        let name = image_name(vdi, format);
        let (stat, node) = match look(dir, vdi, format) {
            Ok(None) => return Ok(None),
            Ok(Some(found)) => found,
            Err(error) if is_of_this_process(&error) => return Err(error),
            Err(error) => {
                let Some(stat) = dir.lookup(&name)? else { return Ok(None) };
                let named = named_parent(dir, &name, format);
                let unread = Vec::from_iter(named.is_none().then_some(format));
                (stat, Node { state: State::of(&error), parent: named.flatten(), unread, ..Node::alone(format, 0) })
            }
        };
        Ok(Some(Image { vdi, format, id: stat.id, usage: usage(&stat), node }))
    }
}

fn look(dir: &Dir, vdi: VdiUuid, format: Format) -> Result<Option<(Stat, Node)>> {
    let (layout, name) = (layout(format), &image_name(vdi, format));
    if layout.is_by_length() {
        return Ok(must_be(dir, name, SFlag::S_IFREG)?.map(|stat| (stat, Node::alone(format, stat.length))));
    }
    loop {
        let Some((file, stat)) = dir.try_open_and_stat(name)? else { return Ok(None) };
        let path = dir.join(name);
        let info = layout.query(&FileStorage::of_length(file, &path, stat.length))?;
        let node = Node::of(vdi, format, info, &path, |name| possible_parent(name, format))?;
        // A fork may have made a base of the file between the open and the read: hidden, and no longer what has the name.
        if !node.hidden || dir.lookup(name)?.is_none_or(|now| now.id == stat.id) {
            return Ok(Some((stat, node)));
        }
    }
}

/// The parent that a damaged image names, as far as that can still be read. `Some(None)`: it is a child of no image of this
/// SR, for sure. `None`: that cannot be told.
fn named_parent(dir: &Dir, name: &str, format: Format) -> Option<Option<VdiUuid>> {
    if layout(format).is_by_length() {
        return Some(None);
    }
    let file = dir.try_open_record(name).ok()??;
    let named = layout(format).named_parent(&FileStorage::of_regular(file, dir.join(name)));
    match named.name.and_then(|parent| possible_parent(&parent, format)) {
        Some(parent) => Some(Some(parent)),
        None => named.is_certain.then_some(None),
    }
}

/// The VDI that an image of this format calls by a name. `None`: such an image is no parent of this one.
pub(super) fn possible_parent(name: &str, child: Format) -> Option<VdiUuid> {
    ImageName::parse(name).filter(|parent| parent.may_be_parent_of(child)).map(|parent| parent.vdi)
}

/// How many threads at most look at the files of so many disks. For few, to start a thread costs more than it saves.
pub(super) fn readers(disks: usize) -> usize {
    if disks < 64 { 1 } else { 8 }
}

/// Whether an error says nothing about the image that was looked at: this process may have no more files or memory.
fn is_of_this_process(error: &Error) -> bool {
    matches!(error.errno().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}

impl FileSr {
    /// Looks at every image once: one stat for a raw one; one open and one read for the others.
    ///
    /// A base that sr_scan has not to show yet, because `.sm-tree` names it, is told as hidden.
    ///
    /// # Errors
    /// None because of a single image, see [`Image::read`].
    pub(super) fn images(&self, dir: &Dir, listing: &Listing) -> Result<Vec<Image>> {
        self.images_of(dir, listing, |_| true)
    }

    /// The images that have a place in a tree. Raw ones are left out: there may be a hundred times as many, and each
    /// would be looked at several times a merge.
    ///
    /// # Errors
    /// None because of a single image, see [`Image::read`].
    pub(super) fn trees(&self, dir: &Dir, listing: &Listing) -> Result<Nodes> {
        let images = self.images_of(dir, listing, |format| !layout(format).is_by_length())?;
        let nodes: Nodes = images.into_iter().map(|image| (image.vdi, image.node)).collect();
        // Of a record that cannot be read, nobody can say that it has no mark.
        let resets = |vdi| read_params(dir, vdi).map_or(true, |params| params.resets);
        Ok(nodes.with_foreign_work(listing.journals).with_points(resets))
    }

    fn images_of(&self, dir: &Dir, listing: &Listing, which: impl Fn(Format) -> bool) -> Result<Vec<Image>> {
        let mut wanted: Vec<(VdiUuid, Format)> =
            listing.images.iter().map(|(v, f)| (*v, *f)).filter(|(_, format)| which(*format)).collect();
        wanted.sort_unstable();
        let with_trees = wanted.iter().any(|(_, format)| !layout(*format).is_by_length());
        let changing = || if with_trees { read_change(dir) } else { Ok(None) };
        // A change may end while the images are read.
        let before = changing()?;
        let parts: Vec<Result<Vec<Image>>> = threads::in_parts(&wanted, readers(wanted.len()), |part| {
            part.iter().filter_map(|(v, f)| Image::read(dir, *v, *f).transpose()).collect()
        });
        let mut images = Vec::with_capacity(wanted.len());
        for part in parts {
            images.append(&mut part?);
        }
        let after = changing()?;
        for base in [&before, &after].into_iter().flatten().flat_map(Change::hides) {
            images.iter_mut().filter(|image| image.vdi == base).for_each(|image| image.node.hidden = true);
        }
        if let Some(change) = &after
            && let Some(unborn) = unborn(dir, change)?
        {
            images.retain(|image| image.vdi != unborn);
        }
        for image in &mut images {
            for (first, second) in listing.doubled(image.vdi) {
                image.node.state = State::Broken(two_images(first, second));
                // The second image was not looked at.
                image.node.unread.extend(Some(second).filter(|format| !layout(*format).is_by_length()));
            }
        }
        // While a tree changes, a child may have been read before its parent's name moved.
        if before.is_none() && after.is_none() {
            let mut nodes: Vec<(VdiUuid, &mut Node)> =
                images.iter_mut().map(|image| (image.vdi, &mut image.node)).collect();
            judge(&mut nodes, &|vdi| listing.images.get(&vdi).copied());
        }
        Ok(images)
    }
}
