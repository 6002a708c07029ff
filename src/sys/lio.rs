//! The kernel's SCSI target (LIO), which is a tree of directories in configfs.
//!
//! Facts of Linux 6.1, seen with the real modules: a directory of a fabric or a storage object loads its module; names of a
//! removed object are free at once; an object with a LUN, a LUN with a link and an ACL with a mapped LUN are not removed (EBUSY,
//! ENOTEMPTY); a storage object is enabled once and for all; its `control` would still change its size afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::makedev;

use crate::error::{Error, Result};
use crate::sys::configfs::{self, dirs, get};

/// The root of the tree.
pub const ROOT: &str = "/sys/kernel/config/target";
/// The kernel keeps persistent reservations here. It does not make the directory.
const RESERVATIONS: &str = "/etc/target";

/// Makes the tree available: loads the modules `modules`, which nothing else loads, and mounts configfs.
///
/// # Errors
/// [`Error::NoTarget`] if this kernel has no target; [`Error::Io`] if configfs cannot be mounted.
pub fn prepare(modules: &[&'static str]) -> Result<()> {
    if !Path::new(ROOT).is_dir() {
        configfs::prepare()?;
        fs::create_dir_all(RESERVATIONS).map_err(Error::io("create the directory", RESERVATIONS))?;
        configfs::load("target_core_mod")?;
        if !Path::new(ROOT).is_dir() {
            return Err(Error::NoTarget {
                why: "the module target_core_mod is loaded, and makes no target".to_owned(),
            });
        }
    }
    modules.iter().try_for_each(|module| configfs::load(module))
}

/// Makes the directory of a fabric, such as `iscsi`. `false`: it was there.
///
/// # Errors
/// [`Error::NoTarget`] for a fabric that this kernel lacks; [`Error::Io`].
pub fn make_fabric(name: &str) -> Result<bool> {
    match configfs::make(&Path::new(ROOT).join(name)) {
        Err(e) if e.errno() == Some(Errno::EINVAL as i32) => {
            Err(Error::NoTarget { why: format!("the kernel has no module for {name}") })
        }
        other => other,
    }
}

/// A storage object: what a LUN shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// `…/core/iblock_0/NAME`.
    pub path: PathBuf,
}

impl Object {
    /// The name within its backstore.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The number of its backstore: 0 of `iblock_0`.
    pub fn number(&self) -> Option<u32> {
        let backstore = self.path.parent()?.file_name()?.to_str()?;
        backstore.rsplit_once('_')?.1.parse().ok()
    }

    /// Whether its backstore is of a plugin.
    pub fn is_of(&self, plugin: &str) -> bool {
        let backstore = self.path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        backstore.and_then(|name| name.rsplit_once('_')).is_some_and(|(of, _)| of == plugin)
    }

    /// The word by which its maker knows it again; empty if there is none.
    pub fn alias(&self) -> String {
        get(&self.path.join("alias"))
    }

    /// Whether it has been configured.
    pub fn is_enabled(&self) -> bool {
        get(&self.path.join("enable")) == "1"
    }

    /// The number of the block device that it has opened.
    pub fn device(&self) -> Option<u64> {
        device_of(&get(&self.path.join("info")))
    }

    /// As the kernel's users call it: `iblock_0/NAME`.
    pub fn shown(&self) -> String {
        let below = self.path.strip_prefix(Path::new(ROOT).join("core")).unwrap_or(&self.path);
        below.display().to_string()
    }
}

/// The device in the text of `info`: `Major: 7 Minor: 0  CLAIMED: IBLOCK`.
fn device_of(info: &str) -> Option<u64> {
    let after = |word: &str| {
        let (_, rest) = info.split_once(word)?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let number = makedev(after("Major: ")?, after("Minor: ")?);
    (number != 0).then_some(number)
}

/// Every storage object of this host; none where there is no target.
///
/// # Errors
/// [`Error::Io`].
pub fn objects() -> Result<Vec<Object>> {
    let mut found = Vec::new();
    for backstore in dirs(&Path::new(ROOT).join("core"))? {
        if backstore.file_name().is_some_and(|name| name != "alua") {
            found.extend(dirs(&backstore)?.into_iter().map(|path| Object { path }));
        }
    }
    Ok(found)
}

/// The object that has opened a block device to itself.
pub fn user_of(device: u64) -> Option<String> {
    let using = objects().ok()?.into_iter().find(|object| object.device() == Some(device))?;
    Some(format!("the SCSI target, as its object {}", using.shown()))
}

/// The directory of a backstore, whether it is there or not.
pub fn backstore(plugin: &str, number: u32) -> PathBuf {
    Path::new(ROOT).join("core").join(format!("{plugin}_{number}"))
}

/// The lowest number that no backstore of a plugin has, and `is_kept` does not keep for another.
///
/// # Errors
/// [`Error::NoTarget`] if all are taken.
pub fn free_number(plugin: &str, is_kept: impl Fn(u32) -> bool) -> Result<u32> {
    const MOST: u32 = 65_536;
    let free = (0..MOST).find(|number| !backstore(plugin, *number).exists() && !is_kept(*number));
    free.ok_or_else(|| Error::NoTarget { why: format!("all {MOST} numbers of {plugin} are taken") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_an_object_is_read_from_its_text() {
        let enabled = "Status: DEACTIVATED  Max Queue Depth: 0  SectorSize: 512  HwMaxSectors: 2560\n        iBlock device: \
                       loop0  UDEV PATH: /dev/loop0  readonly: 0\n        Major: 7 Minor: 3  CLAIMED: IBLOCK\n";
        assert_eq!(device_of(enabled), Some(makedev(7, 3)));
        assert_eq!(device_of("        Major: 0 Minor: 0"), None);
        assert_eq!(device_of("TCM FILEIO ID: 0        File: /x  Size: 5"), None);
    }
}
