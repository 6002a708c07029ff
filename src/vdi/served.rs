//! The server of an attached disk, seen from its place: what [`crate::datapath`] says of a device is said of the VDI.

use std::path::PathBuf;
use std::time::Instant;

use crate::datapath;
use crate::error::{Error, Result};
use crate::sys::lock::Lock;
use crate::sys::loopdev::Detached;
use crate::types::{Done, Mode};
use crate::vdi::formats::layout;
use crate::vdi::holders::refuse_if_locked;
use crate::vdi::place::{Place, in_use, refuse_device};

/// Makes the server of a disk close its chain, if it has one. The device that a killed server left is for the disk's
/// user to see, and to detach.
///
/// # Errors
/// [`Error::VdiInUse`] if the server was killed, or does not close in time.
pub fn pause(disk: &dyn Place) -> Result<Option<datapath::Paused>> {
    match datapath::find(&disk.path())? {
        Some(dead) if dead.is_dead() => {
            Err(in_use(disk, format!("{}, whose server was killed", dead.device.display())))
        }
        _ => pause_here(disk),
    }
}

/// Makes the server of a disk close its chain, if it has one that lives.
///
/// # Errors
/// [`Error::VdiInUse`] if the server does not close in time.
pub fn pause_here(disk: &dyn Place) -> Result<Option<datapath::Paused>> {
    named(disk, datapath::pause(&disk.path(), disk.deadline()))
}

/// Does before the tree's lock is taken what may take long of a pause that follows.
///
/// # Errors
/// [`Error::VdiInUse`] if the server is not ready in time.
pub fn prepare(disk: &dyn Place, deadline: Instant) -> Result<()> {
    named(disk, datapath::prepare(&disk.path(), deadline))
}

/// The block device of an attached disk, once it is neither being made nor being removed.
///
/// # Errors
/// [`Error::VdiInUse`] if that takes longer than the call may wait.
pub fn device(disk: &dyn Place) -> Result<Option<PathBuf>> {
    let found = named(disk, datapath::find_settled(&disk.path(), disk.deadline()))?;
    Ok(found.map(|attached| attached.device))
}

/// Refuses what no user of an image may see, be it a base: its removal, or other data in it.
///
/// # Errors
/// [`Error::VdiInUse`] while it is attached on this host, or while a user holds its persistent lock.
pub fn refuse_if_held(image: &dyn Place) -> Result<()> {
    let device = if layout(image.format()).is_by_length() { image.device()? } else { device(image)? };
    refuse_device(image, device)?;
    refuse_if_locked(image)
}

/// Starts a server of the disk and makes its block device. Idempotent. `lock`: see [`crate::vdi::Vdi::attach`].
///
/// # Errors
/// The error of the image server if the image cannot be served; [`Error::Io`].
pub fn attach(disk: &dyn Place, mode: Mode, lock: Option<&Lock>) -> Result<PathBuf> {
    named(disk, datapath::attach(&source(disk, mode), lock, disk.deadline()))
}

fn source(disk: &dyn Place, mode: Mode) -> datapath::Source {
    datapath::Source {
        format: disk.format(),
        path: disk.path(),
        read_only: mode == Mode::ReadOnly,
        shared: disk.is_shared(),
    }
}

/// As [`attach`], for a user that can do without a block device: see [`datapath::attach_for_guest`].
///
/// # Errors
/// Those of [`attach`].
pub fn attach_for_guest(disk: &dyn Place, mode: Mode, lock: Option<&Lock>, by_tapdisk: bool) -> Result<PathBuf> {
    named(disk, datapath::attach_for_guest(&source(disk, mode), lock, disk.deadline(), by_tapdisk))
}

/// Refuses to make a disk larger that a tapdisk has open: tapdisk does not open it again then, and its user waits for ever.
///
/// # Errors
/// [`Error::VdiInUse`].
pub fn refuse_to_grow(disk: &dyn Place) -> Result<()> {
    match datapath::find(&disk.path())?.and_then(|found| found.tapdisk) {
        Some(tapdisk) => Err(in_use(disk, format!("tapdisk {tapdisk}, which does not follow a disk that grows"))),
        None => Ok(()),
    }
}

/// Ends the server of a disk and removes its block device. Idempotent.
///
/// # Errors
/// [`Error::VdiInUse`] while something on the host holds the device open, with who.
pub fn detach(disk: &dyn Place) -> Result<Done> {
    match named(disk, datapath::detach(&disk.path(), disk.deadline()))? {
        Detached::Done(done) => Ok(done),
        Detached::Busy(who) => Err(in_use(disk, who)),
    }
}

/// Makes the block device as large as the disk.
///
/// # Errors
/// [`Error::VdiInUse`] if the server does not answer in time.
pub fn follow_size(disk: &dyn Place, deadline: Instant) -> Result<()> {
    named(disk, datapath::follow_size(&disk.path(), deadline))
}

/// Turns the error that a device is in use into one that names the disk. Any other result stays as it is.
fn named<T>(disk: &dyn Place, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::DeviceInUse { holder, .. } => in_use(disk, holder),
        other => other,
    })
}
