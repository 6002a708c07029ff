//! The kernel's SCSI target (LIO), which is a tree of directories in configfs: making a directory makes an object.
//!
//! Facts of Linux 6.1, seen with the real modules: a directory of a fabric or a storage object loads its module; names of a
//! removed object are free at once; an object with a LUN, a LUN with a link and an ACL with a mapped LUN are not removed (EBUSY,
//! ENOTEMPTY); a storage object is enabled once and for all; its `control` would still change its size afterwards.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::stat::makedev;

use crate::error::{Error, Result};
use crate::sys::tool::Tool;

const CONFIGFS: &str = "/sys/kernel/config";
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
        load("configfs")?;
        if !Path::new(CONFIGFS).is_dir() {
            return Err(Error::NoTarget { why: "the kernel has no configfs".to_owned() });
        }
        if fs::read_dir(CONFIGFS).is_ok_and(|mut entries| entries.next().is_none()) {
            match nix::mount::mount(Some("configfs"), CONFIGFS, Some("configfs"), MsFlags::empty(), None::<&str>) {
                Ok(()) | Err(Errno::EBUSY) => {}
                Err(errno) => return Err(Error::sys("mount configfs at", CONFIGFS)(errno)),
            }
        }
        fs::create_dir_all(RESERVATIONS).map_err(Error::io("create the directory", RESERVATIONS))?;
        load("target_core_mod")?;
        if !Path::new(ROOT).is_dir() {
            return Err(Error::NoTarget {
                why: "the module target_core_mod is loaded, and makes no target".to_owned(),
            });
        }
    }
    modules.iter().try_for_each(|module| load(module))
}

/// Loads a module; one that is part of the kernel counts as loaded.
fn load(module: &'static str) -> Result<()> {
    if Path::new("/sys/module").join(module).is_dir() {
        return Ok(());
    }
    Tool::new("modprobe").args(["-q", "--", module]).run().map(drop).map_err(|_| Error::NoTarget {
        why: format!("the kernel has no module {module}; a storage server's kernel has it, that of a dom0 may not"),
    })
}

/// Makes a directory. `false`: it was there. A fabric that this kernel lacks is [`Error::NoTarget`].
///
/// # Errors
/// [`Error::NoTarget`]; [`Error::Io`].
pub fn make(dir: &Path) -> Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) && dir.parent() == Some(Path::new(ROOT)) => {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Err(Error::NoTarget { why: format!("the kernel has no module for {name}") })
        }
        Err(e) => Err(Error::io("create the directory", dir)(e)),
    }
}

/// Removes a directory. One that is gone is no error.
///
/// # Errors
/// [`Error::Io`], with `EBUSY` or `ENOTEMPTY` if something depends on it.
pub fn remove(dir: &Path) -> Result<()> {
    gone_is_fine(fs::remove_dir(dir)).map_err(Error::io("remove", dir))
}

/// Removes a directory unless something is in it.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_if_empty(dir: &Path) -> Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if [Errno::ENOTEMPTY, Errno::EBUSY].iter().any(|errno| e.raw_os_error() == Some(*errno as i32)) => {
            Ok(())
        }
        other => gone_is_fine(other).map_err(Error::io("remove", dir)),
    }
}

fn gone_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Links `at` to another object of the tree. `false`: `at` is a link already, to whatever.
///
/// # Errors
/// [`Error::Io`].
pub fn link(to: &Path, at: &Path) -> Result<bool> {
    match std::os::unix::fs::symlink(to, at) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("link", at)(e)),
    }
}

/// Removes every link in a directory. A directory that is gone has none.
///
/// # Errors
/// [`Error::Io`].
pub fn unlink_all(dir: &Path) -> Result<()> {
    for entry in entries(dir)? {
        if fs::symlink_metadata(&entry).is_ok_and(|meta| meta.is_symlink()) {
            gone_is_fine(fs::remove_file(&entry)).map_err(Error::io("remove", &entry))?;
        }
    }
    Ok(())
}

/// The objects that the links of a directory lead to, as paths below [`ROOT`].
pub fn links(dir: &Path) -> Vec<PathBuf> {
    let all = entries(dir).unwrap_or_default();
    all.iter().filter(|entry| entry.is_symlink()).filter_map(|entry| fs::canonicalize(entry).ok()).collect()
}

/// The paths of what is in a directory, in order; nothing if it is gone.
///
/// # Errors
/// [`Error::Io`].
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", dir))?,
    };
    let mut found: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    found.sort_unstable();
    Ok(found)
}

/// The directories in a directory, in order.
///
/// # Errors
/// [`Error::Io`].
pub fn dirs(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries(dir)?;
    found.retain(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()));
    Ok(found)
}

/// Writes an attribute, in one write and without a newline: the kernel would take it for a part of a name.
///
/// # Errors
/// [`Error::Io`] with the kernel's refusal, and [`Error::Invalid`] for an attribute that is not there.
pub fn set(attribute: &Path, value: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).open(attribute);
    let written = file.and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(Error::io("set", attribute))
}

/// Reads an attribute, without the space around it; empty if it cannot be read.
pub fn get(attribute: &Path) -> String {
    fs::read_to_string(attribute).map(|text| text.trim().to_owned()).unwrap_or_default()
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

/// The lowest number that no backstore of a plugin has.
///
/// # Errors
/// [`Error::NoTarget`] if all are taken.
pub fn free_number(plugin: &str) -> Result<u32> {
    const MOST: u32 = 65_536;
    let free = (0..MOST).find(|number| !backstore(plugin, *number).exists());
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

    #[test]
    fn a_directory_that_is_gone_is_empty_and_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let gone = scratch.path().join("gone");
        assert!(entries(&gone).unwrap().is_empty());
        remove(&gone).unwrap();
        unlink_all(&gone).unwrap();
        assert!(make(&gone).unwrap());
        assert!(!make(&gone).unwrap());
        assert!(link(scratch.path(), &gone.join("l")).unwrap());
        assert!(!link(scratch.path(), &gone.join("l")).unwrap());
        assert_eq!(links(&gone), [fs::canonicalize(scratch.path()).unwrap()]);
        assert!(remove(&gone).is_err());
        remove_if_empty(&gone).unwrap();
        assert!(gone.exists());
        unlink_all(&gone).unwrap();
        remove(&gone).unwrap();
    }
}
