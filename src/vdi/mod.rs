//! WHAT a disk is: one file per format, each written once for every SR.
//!
//! An SR hands a disk its [`Place`], a file or a logical volume; the format does the rest. Adding a format:
//! one file here, its line in [`format`], its `Format` variant.

pub mod raw;

use std::fs::File;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::sys::copy::Progress;
use crate::types::{Done, Format, Mode, Params, SrUuid, VdiInfo, VdiUuid};

/// Where one disk lives, as its SR sees it. Formats work on this and know no SR.
pub trait Place {
    fn sr(&self) -> SrUuid;
    fn vdi(&self) -> VdiUuid;

    /// What the SR knows of the place now.
    fn stat(&self) -> Result<Extent>;

    fn params(&self) -> Result<Params>;

    /// Who holds the persistent lock.
    fn holders(&self) -> Result<Holders>;

    /// Replaces the holders that were `seen`, durably. `false`: somebody was faster, nothing changed.
    fn set_holders(&self, seen: &Holders, users: Vec<String>) -> Result<bool>;

    /// The block device over the place's bytes on this host, asked from the kernel.
    fn device(&self) -> Result<Option<PathBuf>>;

    /// Makes that block device. Idempotent: the same path again.
    fn attach(&self, mode: Mode) -> Result<PathBuf>;

    /// Removes it. Idempotent.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while something on the host holds it open, with who.
    fn detach(&self) -> Result<Done>;

    /// Makes the place exactly `bytes` long, or longer where the substrate allocates in extents; a device
    /// over it follows.
    fn resize(&self, bytes: u64) -> Result<()>;

    /// Makes the VDI `dest` with the same bytes and format.
    ///
    /// # Errors
    /// [`Error::VdiExists`], [`Error::NoSpace`]; [`Error::VdiInUse`] when the place is in use and the
    /// substrate has no instant copy; [`Error::Unsupported`].
    fn copy_to(&self, dest: VdiUuid, params: &Params, progress: Progress) -> Result<VdiInfo>;

    /// Removes the disk and all that is stored beside it. The caller has checked that it is unused.
    fn remove(&self) -> Result<()>;
}

/// Bytes of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// From the first to the last addressable byte.
    pub length: u64,
    /// Allocated on the substrate.
    pub allocated: u64,
}

/// The users that hold a VDI's persistent lock, and which state of the record said so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    pub state: u64,
    pub users: Vec<String>,
}

/// A virtual disk. The caller holds the locks that [`crate::call::run`] takes.
pub trait Vdi {
    fn place(&self) -> &dyn Place;

    fn info(&self) -> Result<VdiInfo>;

    /// A block device that outlives the call; the same path when called again.
    fn attach(&self, mode: Mode) -> Result<PathBuf>;

    /// # Errors
    /// [`Error::VdiInUse`] while something on the host holds the device open, with who.
    fn detach(&self) -> Result<Done>;

    /// # Errors
    /// [`Error::VdiInUse`] while attached or locked.
    fn delete(&self) -> Result<()>;

    /// A new writable VDI with this one's contents.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while this one is attached or locked; [`Error::VdiExists`]; [`Error::NoSpace`].
    fn clone_to(&self, _dest: VdiUuid, _progress: Progress) -> Result<VdiInfo> {
        Err(Error::Unsupported { op: "vdi_clone", why: "this format has none".to_owned() })
    }

    /// A new read-only VDI with the contents that this one has now.
    ///
    /// # Errors
    /// [`Error::VdiExists`]; [`Error::NoSpace`]; [`Error::VdiInUse`] when it is attached and the substrate
    /// can't take all its bytes at one instant.
    fn snapshot(&self, _dest: VdiUuid, _progress: Progress) -> Result<VdiInfo> {
        Err(Error::Unsupported { op: "vdi_snapshot", why: "this format has none".to_owned() })
    }

    /// Makes the disk `size` bytes. Idempotent.
    ///
    /// # Errors
    /// Below the current size [`Error::Invalid`] unless `allow_shrink`, which wants the disk unused.
    fn resize(&self, size: u64, allow_shrink: bool) -> Result<Done>;

    /// Takes the persistent lock for `user`, who may already share it with others only if the VDI is
    /// shareable; `force` breaks another's.
    ///
    /// # Errors
    /// [`Error::LockRefused`].
    fn lock(&self, user: &str, force: bool) -> Result<()> {
        let place = self.place();
        let seen = place.holders()?;
        let shareable = place.params()?.shareable;
        let mut users = seen.users.clone();
        if users.iter().any(|u| u == user) {
            return Err(refused(place, format!("it is locked by {user:?} already")));
        }
        if !users.is_empty() && !shareable {
            if !force {
                return Err(refused(place, format!("it is locked by {}; FORCE TRUE breaks the lock", named(&users))));
            }
            users.clear();
        }
        users.push(user.to_owned());
        change(place, &seen, users)
    }

    /// Gives `user`'s lock back; `force` takes the lock from whoever has it.
    ///
    /// # Errors
    /// [`Error::LockRefused`].
    fn unlock(&self, user: &str, force: bool) -> Result<()> {
        let place = self.place();
        let seen = place.holders()?;
        let mut users = seen.users.clone();
        if users.is_empty() {
            return Err(refused(place, "it is not locked".to_owned()));
        }
        if users.iter().any(|u| u == user) {
            users.retain(|u| u != user);
        } else if force {
            users.clear();
        } else {
            return Err(refused(place, format!("{user:?} does not hold its lock, {} does", named(&users))));
        }
        change(place, &seen, users)
    }
}

fn change(place: &dyn Place, seen: &Holders, users: Vec<String>) -> Result<()> {
    if place.set_holders(seen, users)? {
        return Ok(());
    }
    let now = place.holders()?;
    Err(refused(place, format!("another call was faster; it is now locked by {}", named(&now.users))))
}

fn refused(place: &dyn Place, why: String) -> Error {
    Error::LockRefused { vdi: place.vdi(), sr: place.sr(), why }
}

fn named(users: &[String]) -> String {
    match users {
        [] => "nobody".to_owned(),
        users => users.iter().map(|u| format!("{u:?}")).collect::<Vec<_>>().join(", "),
    }
}

/// Refuses what wants the disk to itself, on this host or any.
///
/// # Errors
/// [`Error::VdiInUse`] while attached here or locked anywhere.
pub fn refuse_if_used(place: &dyn Place) -> Result<()> {
    refuse_if_attached(place)?;
    refuse_if_locked(place)
}

/// # Errors
/// [`Error::VdiInUse`] while attached on this host.
pub fn refuse_if_attached(place: &dyn Place) -> Result<()> {
    match place.device()? {
        None => Ok(()),
        Some(device) => Err(in_use(place, format!("this host, which has it attached as {}", device.display()))),
    }
}

/// # Errors
/// [`Error::VdiInUse`] while anybody holds its persistent lock.
pub fn refuse_if_locked(place: &dyn Place) -> Result<()> {
    match place.holders()?.users {
        users if users.is_empty() => Ok(()),
        users => Err(in_use(place, format!("{}, who locked it (vdi_unlock gives it back)", named(&users)))),
    }
}

fn in_use(place: &dyn Place, holder: String) -> Error {
    Error::VdiInUse { vdi: place.vdi(), sr: place.sr(), holder }
}

/// What the package can do with a format.
pub struct Kind {
    pub format: Format,
    /// The largest virtual size, bytes.
    pub largest: u64,
    /// Writes an image of `virtual_size` zeroes into an empty file or a device that is large enough.
    pub create: fn(&File, virtual_size: u64) -> std::io::Result<()>,
    /// A disk of this format in the place.
    pub open: for<'a> fn(Box<dyn Place + 'a>) -> Box<dyn Vdi + 'a>,
}

/// The module of a format.
///
/// # Errors
/// [`Error::Unsupported`] for a format that this build does not serve.
pub fn kind(format: Format) -> Result<&'static Kind> {
    match format {
        Format::Raw => Ok(&raw::KIND),
        Format::Vhd | Format::Qcow2 => Err(Error::Unsupported {
            op: "the type",
            why: format!("{format} disks are not served by this release; raw is"),
        }),
    }
}
