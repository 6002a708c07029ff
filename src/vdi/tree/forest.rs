//! The contract of a forest: what an SR adds to trees of images. All that is policy stands beside it in this directory.

use std::any::Any;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::sys::lock::Lock;
use crate::types::{Format, Mode, Params, SrUuid, VdiUuid};
use crate::vdi::cbt::ChangeLogs;
use crate::vdi::format::ParentImage;
use crate::vdi::place::Place;
use crate::vdi::tree::nodes::Nodes;

/// The services of an SR for formats whose images have parents: its lock, its names, the proof that a host is alone
/// with an image, and the changes that it publishes.
pub trait Forest {
    fn sr(&self) -> SrUuid;

    /// The end of every wait of the call.
    fn deadline(&self) -> Instant;

    /// The logs of changed blocks of its disks; `None` where none is kept.
    fn change_logs(&self) -> Option<&dyn ChangeLogs> {
        None
    }

    /// Waits for other calls that change a tree of this SR, then completes or undoes what a crash left of a change.
    ///
    /// # Errors
    /// [`crate::Error::Busy`] at the deadline; what completing says.
    fn lock(&self, deadline: Instant) -> Result<Lock>;

    /// Becomes the only collector of the SR, on all hosts, and completes what a crash left of a change.
    ///
    /// # Errors
    /// [`crate::Error::SrUnavailable`] while another process collects the SR.
    fn collecting(&self, deadline: Instant) -> Result<Kept>;

    /// Opens the SR once more and hands its forest out, for another thread of the collector. `None`: that cannot be done.
    fn again(&self) -> Option<Again> {
        None
    }

    /// Every image of the SR that may be another's child or base, read once each. An image that cannot be read is listed
    /// with its state.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the SR cannot be read as a whole.
    fn nodes(&self) -> Result<Nodes>;

    /// The place of an image.
    ///
    /// # Errors
    /// [`crate::Error::NoVdi`]; [`crate::Error::Damaged`] if it has two images.
    fn place(&self, vdi: VdiUuid) -> Result<Box<dyn Place + '_>>;

    /// Opens an image that is, or is to be, the parent of others.
    ///
    /// # Errors
    /// Those of [`Forest::place`] and [`Place::open`].
    fn parent_image(&self, vdi: VdiUuid, mode: Mode) -> Result<ParentImage<'_>>;

    /// The VDI that an image of format `child` names as its parent. `None`: it is no name of a possible parent in this SR.
    fn named(&self, name: &str, child: Format) -> Option<VdiUuid>;

    /// Whether a child that names its parent so means this one, which [`Forest::named`] and [`Forest::parent_image`] found by
    /// that name.
    fn is_called(&self, parent: &ParentImage, name: &str) -> bool {
        parent.name == name
    }

    /// Keeps all hosts from opening these images as long as the answer lives.
    ///
    /// # Errors
    /// [`crate::Error::VdiInUse`], which names `vdi`, while a server, on whatever host, has one of them open.
    fn alone(&self, vdis: &[VdiUuid], vdi: VdiUuid) -> Result<Kept>;

    /// Keeps these images as they are on all hosts as long as the answer lives, and waits for a change of one of them.
    ///
    /// # Errors
    /// [`crate::Error::Io`] at the deadline.
    fn hold(&self, vdis: &[VdiUuid]) -> Result<Kept>;

    /// Whether other hosts may have disks of this SR open, which this one's kernel can't see.
    fn is_shared(&self) -> bool;

    /// Makes the image of a disk the hidden base of empty children: one under the disk's own name, and one as the VDI `dest`
    /// if that is given. All or nothing, whatever happens meanwhile. The caller holds the lock, and no process has the image
    /// open.
    ///
    /// # Errors
    /// [`crate::Error::VdiExists`]; [`crate::Error::Unsupported`] on a filesystem without hard links.
    fn fork(&self, fork: &Fork) -> Result<()>;

    /// Makes the VDI `dest`, an empty child of `base`. All or nothing. The caller holds the lock.
    ///
    /// # Errors
    /// [`crate::Error::VdiExists`]; those of [`crate::vdi::Layout::child_of`].
    fn spawn(&self, base: VdiUuid, dest: VdiUuid, params: &Params) -> Result<()>;

    /// Puts an empty child of `base` in the place of the image of the disk `vdi`, by one atomic step; what is stored beside
    /// the disk stays. The child has the size of the base, and `least` bytes at least. The caller holds the lock, and no process has the image open.
    ///
    /// # Errors
    /// Those of [`crate::vdi::Layout::child_of`]; [`crate::Error::Io`].
    fn replace(&self, vdi: VdiUuid, base: VdiUuid, least: u64) -> Result<()>;

    /// Makes the place of an image large enough for a disk of so many bytes, where a place does not grow with what is written. The
    /// caller holds the lock.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`].
    fn make_room_for(&self, _vdi: VdiUuid, _virtual_size: u64) -> Result<()> {
        Ok(())
    }

    /// Whether a base has to be made larger before it can take what its child holds, see [`Forest::make_room_to_merge`].
    fn has_fixed_places(&self) -> bool {
        false
    }

    /// Makes the place of `base` large enough for all that `vdi`, its only child, holds besides what is in it. The caller holds
    /// the lock.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`]; [`crate::Error::Unsupported`] for a base that cannot take it.
    fn make_room_to_merge(&self, _vdi: VdiUuid, _base: VdiUuid) -> Result<()> {
        Ok(())
    }

    /// Makes `base`, a disk without children, the hidden parent of the disk `vdi`, a child of another image of its format. A crash
    /// leaves what the next [`Forest::lock`] completes. The caller holds the lock, and no process has either image open.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] on an SR that cannot do it; [`crate::Error::Damaged`], [`crate::Error::Io`].
    fn compose(&self, _vdi: VdiUuid, _base: VdiUuid) -> Result<()> {
        Err(no_compose())
    }

    /// Whether a merge may end with more than one image gone, see [`Ending::between`].
    fn ends_chains(&self) -> bool {
        false
    }

    /// Ends merges of different trees. A crash leaves what the next [`Forest::lock`] undoes or completes. The caller holds the lock,
    /// under which `nodes` were read, and no process has an open image that goes.
    ///
    /// # Errors
    /// Of each: why a child could not be given away, or the base could not take the place of the disk. Then all images stay; or
    /// [`Error::Io`], and the change is undone or completed.
    fn end(&self, nodes: &Nodes, endings: &[Ending]) -> Vec<Result<()>>;
}

/// The end of a merge: the base holds all that the images above it hold.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The uppermost image. If it is a base, its children become those of `base`, and it is removed. If it is a disk, `base` takes
    /// its place.
    pub vdi: VdiUuid,
    pub is_disk: bool,
    pub format: Format,
    /// Bases between the two, from `base` upwards, each the only child of the one before. They are removed.
    pub between: Vec<VdiUuid>,
    pub base: VdiUuid,
}

/// The refusal of an SR whose disks get no other parents.
pub fn no_compose() -> Error {
    Error::Unsupported { op: "vdi_compose", why: "disks of this SR cannot be given another parent".to_owned() }
}

/// Opens an SR once more, and does something with its forest.
pub type Again = Box<dyn Fn(&mut dyn FnMut(&dyn Forest) -> Result<()>) -> Result<()> + Send + Sync>;

/// The task of one [`Forest::fork`].
pub struct Fork<'a> {
    /// The disk whose image becomes a base.
    pub vdi: VdiUuid,
    /// The name that the present image gets.
    pub base: VdiUuid,
    /// The copy and its params.
    pub dest: Option<(VdiUuid, &'a Params)>,
    /// Whether the disk's own new image is to be one of [`crate::vdi::Layout::fine_child_of`].
    pub is_fine: bool,
}

/// A guard that keeps others out until it is dropped: locks of whatever kind the SR has.
#[must_use = "dropped, it keeps nothing"]
pub struct Kept {
    _by: Option<Box<dyn Any>>,
}

impl Kept {
    /// Kept by a value that is dropped with it.
    pub fn by(guard: impl Any) -> Kept {
        Kept { _by: Some(Box::new(guard)) }
    }

    /// Nothing to keep: only this host has the SR.
    pub fn by_nature() -> Kept {
        Kept { _by: None }
    }
}
