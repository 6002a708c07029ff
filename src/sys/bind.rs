//! A directory at a second place: a bind mount, or a symbolic link for who may not mount.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Error, Result};
use crate::types::Done;

/// Makes `directory` appear at `place`. Idempotent.
///
/// 1. make the mount point, mode 0700; 2. mount. After 1: an empty directory, which the next call takes.
///
/// # Errors
/// [`Error::Io`] if the mount point or the link in its stead cannot be made, or the mount fails for another reason than
/// a missing privilege.
pub fn bind(directory: &Path, place: &Path) -> Result<Done> {
    if is_bound(directory, place) {
        return Ok(Done::Already);
    }
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(place) {
        Ok(()) => {}
        // A dangling link of ours, whose directory has another number now.
        Err(_) if place.is_symlink() => fs::remove_file(place).map_err(Error::io("remove", place))?,
        Err(e) => return Err(Error::io("create the mount point", place)(e)),
    }
    match mount(Some(directory), place, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
        Ok(()) => Ok(Done::Changed),
        Err(Errno::EPERM | Errno::ENOENT) => {
            let _ = fs::remove_dir(place);
            symlink(directory, place).map_err(Error::io("link", place)).map(|()| Done::Changed)
        }
        Err(errno) => Err(Error::sys("mount a directory on", place)(errno)),
    }
}

/// Whether `place` shows `directory`, by whatever means.
pub fn is_bound(directory: &Path, place: &Path) -> bool {
    match (fs::metadata(directory), fs::metadata(place)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Ends what [`bind`] made. Idempotent.
///
/// # Errors
/// [`Error::DeviceInUse`] while a process works in the mounted directory; [`Error::Io`] if the mount point cannot be
/// examined, unmounted or removed.
pub fn unbind(place: &Path) -> Result<Done> {
    let done = match fs::symlink_metadata(place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Done::Already),
        Err(e) => return Err(Error::io("examine", place)(e)),
        Ok(meta) if meta.is_symlink() => {
            return fs::remove_file(place).map_err(Error::io("remove", place)).map(|()| Done::Changed);
        }
        Ok(_) => match umount2(place, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Done::Changed,
            // Not mounted: only the mount point is there.
            Err(Errno::EINVAL | Errno::EPERM) => Done::Already,
            Err(Errno::EBUSY) => {
                return Err(Error::DeviceInUse {
                    device: place.display().to_string(),
                    holder: "a process works in it".to_owned(),
                });
            }
            Err(errno) => return Err(Error::sys("unmount", place)(errno)),
        },
    };
    match fs::remove_dir(place) {
        Ok(()) => Ok(done),
        Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOTEMPTY | Errno::ENOENT)) => Ok(done),
        Err(e) => Err(Error::io("remove", place)(e)),
    }
}
