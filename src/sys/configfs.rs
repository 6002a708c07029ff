//! The kernel's configfs: making a directory makes an object of the kernel, writing a file sets one of its attributes, a link
//! makes one object part of another.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;

use crate::error::{Error, Result};
use crate::sys::tool::Tool;

/// Where configfs is mounted.
pub const ROOT: &str = "/sys/kernel/config";

/// Makes configfs available: loads its module, and mounts it.
///
/// # Errors
/// [`Error::NoTarget`] if this kernel has no configfs; [`Error::Io`] if it cannot be mounted.
pub fn prepare() -> Result<()> {
    load("configfs")?;
    if !Path::new(ROOT).is_dir() {
        return Err(Error::NoTarget { why: "the kernel has no configfs".to_owned() });
    }
    if fs::read_dir(ROOT).is_ok_and(|mut entries| entries.next().is_none()) {
        match nix::mount::mount(Some("configfs"), ROOT, Some("configfs"), MsFlags::empty(), None::<&str>) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(errno) => return Err(Error::sys("mount configfs at", ROOT)(errno)),
        }
    }
    Ok(())
}

/// Loads a module; one that is part of the kernel counts as loaded.
///
/// # Errors
/// [`Error::NoTarget`] if this kernel lacks it.
pub fn load(module: &'static str) -> Result<()> {
    if Path::new("/sys/module").join(module).is_dir() {
        return Ok(());
    }
    Tool::new("modprobe").args(["-q", "--", module]).run().map(drop).map_err(|_| Error::NoTarget {
        why: format!("the kernel has no module {module}; a storage server's kernel has it, that of a dom0 may not"),
    })
}

/// Makes a directory. `false`: it was there.
///
/// # Errors
/// [`Error::Io`].
pub fn make(dir: &Path) -> Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
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

#[cfg(test)]
mod tests {
    use super::*;

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
