//! The contract of a format: what the package can do with an image, whatever SR it lies in.
//!
//! A layout works on opened storage and on the names that the SR gives its images. It knows no path and no directory.

use std::ops::ControlFlow;
use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::Reading;
use crate::image::disk::{Disk, DiskWriter};
use crate::image::fault::{Fault, Look};
use crate::image::name::NamedParent;
use crate::image::storage::Storage;
use crate::types::{Format, SmConfig};
use crate::vdi::place::Opened;
use crate::vdi::tree::extents::Extents;

/// The facts that an image tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// It is there for its children only.
    pub hidden: bool,
    /// The name of its parent, as the header has it.
    pub parent: Option<String>,
    /// The identity that the image has towards its children, where its format has such an identity: a VHD's unique id.
    pub id: Option<Uuid>,
    /// The [`ImageInfo::id`] of the parent that the image was made from.
    pub parent_id: Option<Uuid>,
}

impl ImageInfo {
    /// An image of `virtual_size` bytes that is in no tree.
    pub fn alone(virtual_size: u64) -> ImageInfo {
        ImageInfo { virtual_size, hidden: false, parent: None, id: None, parent_id: None }
    }
}

/// An open image that is, or is to be, the parent of others.
pub struct ParentImage<'a> {
    /// The name that its children call it by.
    pub name: String,
    pub format: Format,
    pub image: Opened<'a>,
}

/// Finds the image that a child's header names: its format and its bytes, open for reading.
pub type Resolve<'a> = &'a dyn Fn(&str) -> Result<(Format, Arc<dyn Storage>)>;

/// Writes a new image into empty storage, durably.
pub type WriteImage = Box<dyn Fn(&dyn Storage) -> Result<()> + Send + Sync>;

/// A format of images. The methods with a default are for formats whose images have parents.
pub trait Layout: Sync {
    fn format(&self) -> Format;

    /// The largest virtual size, bytes.
    fn largest(&self) -> u64;

    /// Virtual sizes are rounded up to a multiple of this, bytes.
    fn granule(&self) -> u64;

    /// Whether the length of the image is the virtual size and there is nothing else to know: no need to read it.
    fn is_by_length(&self) -> bool;

    /// Keys of the `sm_config` of a disk that is a file of this format, besides the keys that all formats have.
    fn sm_config(&self) -> SmConfig;

    /// Writes an image of `virtual_size` zeroes into an empty file, or a device that is large enough; durably.
    ///
    /// # Errors
    /// [`Error::TooBig`], [`Error::Invalid`] size, [`Error::Io`].
    fn create(&self, image: &dyn Storage, virtual_size: u64) -> Result<()>;

    /// As [`Layout::create`], not durably: for an image that [`Layout::writer`] fills and the caller flushes then. Each flush waits for
    /// all that others have written to the filesystem.
    ///
    /// # Errors
    /// Those of [`Layout::create`].
    fn begin(&self, image: &dyn Storage, virtual_size: u64) -> Result<()> {
        self.create(image, virtual_size)
    }

    /// Reads the facts that an image tells of itself, with one read.
    ///
    /// # Errors
    /// [`Error::Damaged`]; [`Error::Unsupported`] for what can't be used; [`Error::Io`].
    fn query(&self, image: &dyn Storage) -> Result<ImageInfo>;

    /// The parent that an image names, as far as that can be read of an image that [`Layout::query`] refuses.
    fn named_parent(&self, image: &dyn Storage) -> NamedParent;

    /// Makes an image that no process has open larger, durably.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::TooBig`], [`Error::Io`].
    fn resize(&self, image: &Arc<dyn Storage>, virtual_size: u64) -> Result<()>;

    /// Says what is wrong with an image by itself; an empty list means nothing is.
    ///
    /// # Errors
    /// [`Error::Io`] alone: what is wrong with the image is in the list.
    fn check(&self, image: &Arc<dyn Storage>, look: Look) -> Result<Vec<Fault>>;

    /// Mends the faults of an image that [`Layout::check`] calls mendable, durably. No process has the image open. The data
    /// that its disk shows stays as it is, whenever a crash comes. Idempotent.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`] for an image with other faults; [`Error::Io`].
    fn repair(&self, image: &Arc<dyn Storage>) -> Result<()>;

    /// The disk of an image and its parents. `reading`: whether a damaged chain is refused, or read as far as it can be.
    ///
    /// # Errors
    /// Those of `resolve`; [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    fn disk(&self, image: &Arc<dyn Storage>, reading: Reading, resolve: Resolve) -> Result<Box<dyn Disk>>;

    /// Opens a new, empty image to be filled.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    fn writer(&self, image: Arc<dyn Storage>) -> Result<Box<dyn DiskWriter>>;

    /// Prepares images without data of their own that have `parent`; the header of the parent is read here, once.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the parent can have no child; [`Error::Damaged`], [`Error::Io`].
    fn child_of(&self, _parent: &ParentImage) -> Result<WriteImage> {
        Err(no_tree(self.format(), "a child"))
    }

    /// As [`Layout::child_of`], for an image into which single sectors can be written without those around them: what is not
    /// written shows the parent that the image has by then.
    ///
    /// # Errors
    /// Those of [`Layout::child_of`].
    fn fine_child_of(&self, parent: &ParentImage) -> Result<WriteImage> {
        self.child_of(parent)
    }

    /// Refuses an image whose tables cannot be used, as far as one read of the first of them tells: a copy would be as damaged.
    /// No process writes into the image.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    fn refuse_damaged(&self, _image: &Arc<dyn Storage>) -> Result<()> {
        Ok(())
    }

    /// Whether an image holds nothing of its own, so that its disk shows what its parent shows, as far as its length goes.
    /// Data that a process has not flushed yet is not seen.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    fn is_blank(&self, image: &Arc<dyn Storage>) -> Result<bool>;

    /// The stretches of the disk that an image holds itself, as its tables tell; no data is read. Stretches that read as
    /// zeroes and take no space are not among them. Data that a process has not flushed yet is not seen.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    fn held(&self, image: &Arc<dyn Storage>) -> Result<Extents>;

    /// The stretches in which an image hides what its parents hold: what it holds itself, and zeroes that take no space.
    ///
    /// # Errors
    /// As [`Layout::held`].
    fn hides(&self, image: &Arc<dyn Storage>) -> Result<Extents> {
        self.held(image)
    }

    /// Marks an image as there for its children only, or no longer so, durably. Idempotent.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    fn set_hidden(&self, _image: &dyn Storage, _hidden: bool) -> Result<()> {
        Err(no_tree(self.format(), "hiding"))
    }

    /// Writes into the parent, which is open for writing, all that the children hold; any number of times. None is changed
    /// otherwise. The first one is the child of the parent, each other one that of the one before: for these the caller has asked
    /// [`Layout::check_parent`]. `resolve` finds the parents of the parent.
    ///
    /// # Errors
    /// Those of [`Layout::check_parent`] of the first, which this asks first, and [`Error::Io`], with `ECANCELED` if the work does not
    /// go on.
    fn coalesce(
        &self,
        _children: &[Arc<dyn Storage>],
        _parent: &ParentImage,
        _resolve: Resolve,
        _work: Work,
    ) -> Result<()> {
        Err(no_tree(self.format(), "coalescing"))
    }

    /// Refuses a parent that is not the image that the child names, whatever its name. To be asked before a parent is
    /// changed for a child, or a child for its parent.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    fn check_parent(&self, _child: &dyn Storage, _parent: &ParentImage) -> Result<()> {
        Err(no_tree(self.format(), "looking for the parent"))
    }

    /// Names another image as the parent, which holds all that the present one shows; durably. Idempotent.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    fn set_parent(&self, _child: &dyn Storage, _parent: &ParentImage) -> Result<()> {
        Err(no_tree(self.format(), "changing the parent"))
    }
}

impl dyn Layout + '_ {
    /// The size a disk gets when `bytes` are asked for.
    ///
    /// # Errors
    /// [`Error::DiskTooBig`].
    pub fn round(&self, bytes: u64) -> Result<u64> {
        match bytes.max(1).checked_next_multiple_of(self.granule()) {
            Some(size) if size <= self.largest() => Ok(size),
            _ => Err(Error::DiskTooBig { format: self.format(), bytes, largest: self.largest() }),
        }
    }
}

/// The caller's view of long work.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// Told of the bytes copied so far, on the caller's thread.
    pub progress: &'a dyn Fn(u64),
    /// Told of the bytes that the last step copied, from several threads, and asked whether the work goes on.
    pub copied: &'a (dyn Fn(u64) -> ControlFlow<()> + Sync),
}

fn no_tree(format: Format, op: &'static str) -> Error {
    Error::Unsupported { op, why: format!("a {format} disk has no parent and no mark") }
}
