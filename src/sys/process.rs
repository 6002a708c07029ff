//! Processes of this host, as proc(5) shows them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;

use crate::error::{Error, Result};

/// The numbers of the processes that are there.
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process for a person to read: `process 12 (bash)`.
pub fn shown(pid: u32) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({})", command.trim())
}

/// Field `number` of `/proc/PID/stat`, counted from 1 as the manual does; 3 or more. `None`: there is no such process. The second
/// field is a name in parentheses, which may have any character.
pub fn stat(pid: u32, number: usize) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(')')?.1.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// A file that a process has open.
pub struct OpenFile {
    /// Device and inode.
    pub id: (u64, u64),
    pub is_writable: bool,
}

/// The files that a process has open; proc(5).
///
/// # Errors
/// [`Error::Io`] if there is no such process.
pub fn open_files(pid: u32) -> Result<Vec<OpenFile>> {
    let (files, infos) = (format!("/proc/{pid}/fd"), format!("/proc/{pid}/fdinfo"));
    let entries = fs::read_dir(&files).map_err(Error::io("list", &files))?;
    let look = |entry: fs::DirEntry| {
        let meta = fs::metadata(entry.path()).ok()?;
        let info = fs::read_to_string(Path::new(&infos).join(entry.file_name())).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = libc::c_int::from_str_radix(flags.trim(), 8).ok()?;
        Some(OpenFile { id: (meta.dev(), meta.ino()), is_writable: flags & libc::O_ACCMODE != libc::O_RDONLY })
    };
    Ok(entries.flatten().filter_map(look).collect())
}

/// Whether a process has a file mapped; proc(5). Device numbers of some filesystems differ there.
pub fn has_mapped(pid: u32, path: &Path) -> bool {
    let (Ok(maps), Ok(meta)) = (fs::read_to_string(format!("/proc/{pid}/maps")), fs::metadata(path)) else {
        return false;
    };
    let (inode, name) = (meta.ino().to_string(), path.file_name().unwrap_or_default().to_string_lossy());
    maps.lines().any(|line| line.split_whitespace().nth(4) == Some(&inode) && line.ends_with(&*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_one_of_all_and_has_a_parent() {
        let pid = std::process::id();
        assert!(all().contains(&pid));
        assert!(shown(pid).starts_with(&format!("process {pid} (")));
        assert_eq!(stat(pid, 4), Some(u64::from(std::os::unix::process::parent_id())));
        assert_eq!(stat(u32::MAX, 4), None);
    }

    #[test]
    fn files_that_are_open_or_mapped_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b");
        std::fs::write(&path, b"x").unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        let modes = || -> Vec<bool> {
            let open = open_files(std::process::id()).unwrap();
            open.iter().filter(|file| file.id == (meta.dev(), meta.ino())).map(|file| file.is_writable).collect()
        };
        assert!(modes().is_empty());
        let file = std::fs::File::open(&path).unwrap();
        assert_eq!(modes(), [false]);
        drop(file);
        let file = std::fs::File::options().append(true).open(&path).unwrap();
        assert_eq!(modes(), [true]);
        drop(file);
        assert!(!has_mapped(std::process::id(), &path));
        // The executable is.
        assert!(has_mapped(std::process::id(), &std::fs::read_link("/proc/self/exe").unwrap()));
        assert!(open_files(u32::MAX).is_err());
    }
}
