//! The kernel's NVMe target (nvmet), which is a tree of directories in configfs.
//!
//! Facts of Linux 6.1, seen with the real modules: a namespace opens its device for writing, and not to itself; one that is
//! disabled is gone at its hosts at once, and their reads fail; a subsystem that leaves a port loses its connections there; a
//! subsystem in a port, a host that is allowed and a port with a subsystem are not removed (EBUSY, ENOTEMPTY); the serial is
//! not taken once a host has connected (EINVAL); no file tells which hosts are connected.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::sys::configfs::{self, dirs, get, set};

/// The root of the tree.
pub const ROOT: &str = "/sys/kernel/config/nvmet";

/// Makes the tree available.
///
/// # Errors
/// [`Error::NoTarget`] if this kernel has no such target; [`Error::Io`] if configfs cannot be mounted.
pub fn prepare() -> Result<()> {
    if !Path::new(ROOT).is_dir() {
        configfs::prepare()?;
        configfs::load("nvmet")?;
        if !Path::new(ROOT).is_dir() {
            return Err(Error::NoTarget { why: "the module nvmet is loaded, and makes no target".to_owned() });
        }
    }
    configfs::load("nvmet_tcp")
}

/// The directory of a subsystem.
pub fn subsystem(nqn: &str) -> PathBuf {
    Path::new(ROOT).join("subsystems").join(nqn)
}

/// The directory of a host.
pub fn host(nqn: &str) -> PathBuf {
    Path::new(ROOT).join("hosts").join(nqn)
}

/// Every subsystem of this host; none where there is no target.
///
/// # Errors
/// [`Error::Io`].
pub fn subsystems() -> Result<Vec<PathBuf>> {
    dirs(&Path::new(ROOT).join("subsystems"))
}

/// Every port of this host.
///
/// # Errors
/// [`Error::Io`].
pub fn ports() -> Result<Vec<PathBuf>> {
    dirs(&Path::new(ROOT).join("ports"))
}

/// The device that an enabled namespace shows.
pub fn device_of(namespace: &Path) -> Option<u64> {
    (get(&namespace.join("enable")) == "1")
        .then(|| blockdev::number(Path::new(&get(&namespace.join("device_path")))))?
}

/// The subsystem that shows a block device.
pub fn user_of(device: u64) -> Option<String> {
    let shows = |subsystem: &PathBuf| {
        let namespaces = dirs(&subsystem.join("namespaces")).unwrap_or_default();
        namespaces.iter().any(|namespace| device_of(namespace) == Some(device))
    };
    let using = subsystems().ok()?.into_iter().find(shows)?;
    Some(format!("the NVMe target, as its subsystem {}", using.file_name()?.to_string_lossy()))
}

/// Whether a host may have connected to a subsystem since it was made. The kernel takes a serial number until then, so the
/// one that the subsystem has is set once more. Kernels before 5.14 always take it, and so tell nothing.
pub fn may_have_been_used(subsystem: &Path) -> bool {
    const FIRST: (u32, u32) = (5, 14);
    let serial = subsystem.join("attr_serial");
    let refused = match set(&serial, &get(&serial)) {
        Ok(()) => false,
        Err(e) => e.errno() != Some(Errno::ENOENT as i32),
    };
    refused || subsystem.is_dir() && release().is_none_or(|release| release < FIRST)
}

fn release() -> Option<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut parts = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_a_release() {
        assert!(release().unwrap() > (2, 6));
    }
}
