//! Removing what killed calls left, and directories in which a process still has a file open.

use std::fs::File;

use fs2::FileExt;
use nix::errno::Errno;
use uuid::Uuid;

use super::new_file::temporary_name;
use super::{Dir, TEMPORARY};
use crate::error::Result;

impl Dir {
    /// Removes what killed makers left, if `name` is such a file and no living process has it locked, or a directory
    /// that [`Dir::discard`] put aside. `false`: `name` is neither, or cannot be removed yet.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`] if `name` has the form of a temporary name and is not a file or directory that this
    /// package makes; [`crate::Error::Io`] if it cannot be examined or removed.
    pub fn sweep_temporary(&self, name: &str) -> Result<bool> {
        if !name.starts_with(TEMPORARY) {
            return Ok(false);
        }
        let Some(stat) = self.lookup(name)? else { return Ok(false) };
        if stat.is_directory() && name[TEMPORARY.len()..].parse::<Uuid>().is_ok() {
            return self.empty_and_remove(name);
        }
        // Closed before it is removed: NFS would only rename an open file.
        let abandoned = self.try_open_record(name)?.is_some_and(|file| is_abandoned(&file));
        if abandoned { self.remove(name) } else { Ok(false) }
    }

    /// Removes a temporary file or directory, whether or not its maker lives. `false`: there was none, or a process has a
    /// file of the directory open. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// [`crate::Error::Io`] if it cannot be examined or removed.
    pub fn remove_temporary(&self, name: &str) -> Result<bool> {
        match self.lookup(name)? {
            Some(stat) if stat.is_directory() => self.empty_and_remove(name),
            _ => self.remove(name),
        }
    }

    /// Removes a directory and the files in it. `false`: there was none.
    ///
    /// On NFS a file that a process of this host has open cannot be removed: its client calls it `.nfs…` until it is
    /// closed, and the directory stays as long. A directory in it with files of another program stays, too. Then the
    /// directory gets a temporary name, under which [`Dir::sweep_temporary`] removes it later. So the name is free in
    /// any case, and a new directory of that name starts empty. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the directory can neither be removed nor renamed.
    pub fn discard(&self, name: &str) -> Result<bool> {
        let aside = match self.empty_and_remove(name) {
            Ok(true) => return Ok(true),
            Ok(false) if self.lookup(name)?.is_none() => return Ok(false),
            Ok(false) => temporary_name(),
            Err(e) => return Err(e),
        };
        match self.rename(name, &aside) {
            // Another host was faster, or our first request was carried out and its answer lost.
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => return Ok(false),
            other => other?,
        }
        // Files that are still open stay for a sweep.
        let _ = self.empty_and_remove(&aside);
        Ok(true)
    }

    /// Removes the files and empty directories of a directory, then the directory. `false`: there is no such directory, or
    /// one that cannot be emptied: a process has a file of it open or adds one, or there is a directory with files in it,
    /// which no program of this package makes.
    fn empty_and_remove(&self, name: &str) -> Result<bool> {
        let Some(dir) = self.sub_dir(name)? else { return Ok(false) };
        let emptied = dir.names().and_then(|files| {
            files.iter().try_for_each(|file| match dir.remove(file) {
                // A file that is open; the directory will tell.
                Err(e) if e.errno() == Some(Errno::EBUSY as i32) => Ok(()),
                Err(e) if e.errno() == Some(Errno::EISDIR as i32) => match dir.remove_dir(file) {
                    Err(e) if matches!(e.errno().map(Errno::from_raw), Some(Errno::ENOTEMPTY | Errno::EEXIST)) => {
                        Ok(())
                    }
                    other => other.map(drop),
                },
                other => other.map(drop),
            })
        });
        match emptied {
            // NFS answers so for a directory that another host removed after we opened it.
            Err(e) if e.errno() == Some(Errno::ESTALE as i32) => {}
            other => other?,
        }
        match self.remove_dir(name) {
            Err(e)
                if matches!(e.errno().map(Errno::from_raw), Some(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EBUSY)) =>
            {
                Ok(false)
            }
            other => other,
        }
    }
}

/// Whether no living process keeps `file` marked with a `flock`. Where locks don't work, none is abandoned.
pub fn is_abandoned(file: &File) -> bool {
    // Shared is enough to meet the maker's exclusive one; NFS grants an exclusive one to writers only.
    FileExt::try_lock_shared(file).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_abandoned_temporary_is_swept() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = Dir::open(scratch.path()).unwrap();
        let name = format!("{TEMPORARY}x");
        let maker = File::create(scratch.path().join(&name)).unwrap();
        FileExt::lock_exclusive(&maker).unwrap();
        assert!(!dir.sweep_temporary(&name).unwrap());
        drop(maker);
        assert!(dir.sweep_temporary(&name).unwrap());
    }

    #[test]
    fn a_discarded_directory_goes_with_its_files() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = Dir::open(scratch.path()).unwrap();
        assert!(!dir.discard("d").unwrap());
        dir.make_dir("d").unwrap();
        assert!(dir.sub_dir("d").unwrap().unwrap().create("1", b"a").unwrap());
        assert!(dir.discard("d").unwrap());
        assert_eq!(dir.names().unwrap(), [""; 0]);

        // A directory that could not be emptied is put aside under such a name.
        let aside = temporary_name();
        dir.make_dir(&aside).unwrap();
        assert!(dir.sub_dir(&aside).unwrap().unwrap().create("1", b"a").unwrap());
        assert!(dir.sweep_temporary(&aside).unwrap());
        dir.make_dir(".tmp-mine").unwrap();
        assert!(dir.sweep_temporary(".tmp-mine").is_err());
        assert_eq!(dir.names().unwrap(), [".tmp-mine"]);
    }
}
