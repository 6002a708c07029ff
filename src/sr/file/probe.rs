//! Which SRs a directory holds.

use std::path::Path;

use nix::errno::Errno;

use super::directory::FileSr;
use super::records::read_marker;
use crate::context::Deadline;
use crate::error::{Error, Result};
use crate::sr::driver::Found;
use crate::sys::durable::Dir;
use crate::sys::mount;
use crate::types::{DeviceConfig, SrInfo};

/// The SRs of this type in the roots of local filesystems. Filesystems of servers, and those that a process serves, may not
/// answer and are not looked at.
pub fn discover(sr_type: &'static str) -> Result<Vec<Found>> {
    const LOCAL: &[&str] = &["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs", "overlay"];
    let mut found: Vec<Found> = Vec::new();
    for mount in mount::all()?.iter().filter(|mount| LOCAL.contains(&mount.fs_type.as_str())) {
        let marker = Dir::open(&mount.path).and_then(|dir| read_marker(&dir));
        let (Ok(Some(marker)), Some(path)) = (marker, mount.path.to_str()) else { continue };
        // A filesystem may be mounted at several places.
        if marker.sr_type == sr_type && !marker.deleting && !found.iter().any(|other| other.sr == marker.uuid) {
            let config = DeviceConfig::from([("location", path)]);
            found.push(Found { sr: marker.uuid, config, slot: marker.slot() });
        }
    }
    Ok(found)
}

/// Which SRs a directory holds: itself, or those one level below it. Waits for changes of their trees until `deadline`.
///
/// # Errors
/// [`Error::NoDevice`] if `path` is no directory; [`Error::Busy`] at the deadline; [`Error::Io`] if it cannot be read.
pub fn probe(path: &Path, sr_type: &'static str, deadline: Deadline) -> Result<Vec<SrInfo>> {
    let dir = Dir::open(path).map_err(|e| match e.errno().map(Errno::from_raw) {
        Some(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {
            Error::NoDevice { device: path.display().to_string(), why: errno.desc().to_owned() }
        }
        _ => e,
    })?;
    let mut found = Vec::new();
    if let Some(marker) = read_marker(&dir)?.filter(|m| !m.deleting) {
        let info = FileSr::new(marker.uuid, sr_type, path.to_owned(), deadline.clone()).stat_now()?;
        found.push(SrInfo { slot: marker.slot(), ..info });
    }
    for name in dir.names()? {
        let Ok(Some(below)) = dir.sub_dir(&name) else { continue };
        if let Ok(Some(marker)) = read_marker(&below)
            && !marker.deleting
        {
            let info = FileSr::new(marker.uuid, sr_type, path.join(name), deadline.clone()).stat_now()?;
            found.push(SrInfo { slot: marker.slot(), ..info });
        }
    }
    Ok(found)
}
