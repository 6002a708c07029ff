//! Replacing a file on a filesystem that does not rename over one that a process has open: SMB.
//!
//! A server refuses such a rename. The kernel's client then removes the open file and asks again, is refused again, and says so:
//! the file is gone once it is closed, with nothing in its place. So a file is replaced in steps there:
//!
//! 1. link it as `.sm-old-<name>`; 2. remove its name: of a file that somebody has open, the server keeps the name until it is
//!    closed; 3. rename the new file to the name, which fails while the name is there, again and again; 4. remove `.sm-old-<name>`.
//!
//! After a kill before 3, [`Dir::settle`] gives the old file its name back. After it, the old file goes with the next replacement
//! or removal of the name. A caller that removes a name for good removes `.sm-old-<name>` as well: [`Dir::forget_old`].

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, renameat2};
use nix::sys::statfs::fstatfs;
use nix::unistd::linkat;

use super::Dir;
use super::new_file::temporary_name;
use crate::error::{Error, Result};

const OLD: &str = ".sm-old-";
/// The filesystems: `CIFS_SUPER_MAGIC` and `SMB2_SUPER_MAGIC` of `linux/magic.h`.
const MAGIC: [u32; 2] = [0xff53_4d42, 0xfe53_4d42];
/// How long a replacement waits for readers, who look at a header and close the file.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a reader leaves a replacement to whoever makes it.
const GRACE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// The name of the file whose old contents have this one.
pub fn replaced(name: &str) -> Option<&str> {
    name.strip_prefix(OLD)
}

fn old(name: &str) -> String {
    format!("{OLD}{name}")
}

impl Dir {
    /// Whether files are replaced in steps here.
    pub(super) fn replaces_in_steps(&self) -> bool {
        // The kernel has the number as a long.
        fstatfs(&self.fd).is_ok_and(|fs| MAGIC.contains(&(fs.filesystem_type().0 as u32)))
    }

    /// Renames, unless there is such a name.
    pub(super) fn rename_new(&self, from: &str, to: &str) -> Result<(), Errno> {
        renameat2(&self.fd, from, &self.fd, to, RenameFlags::RENAME_NOREPLACE)
    }

    /// Puts `from` in the place of `to`, in steps. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// `EBUSY` if somebody has the old file open for long: then [`Dir::settle`] gives it its name back.
    pub(super) fn replace_in_steps(&self, from: &str, to: &str) -> Result<(), Errno> {
        let kept = old(to);
        loop {
            match linkat(&self.fd, to, &self.fd, kept.as_str(), AtFlags::empty()) {
                Ok(()) => break,
                // Nothing is replaced.
                Err(Errno::ENOENT) if self.is_free(&kept) => return self.rename_new(from, to),
                // A killed replacement left it.
                Err(Errno::EEXIST | Errno::ENOENT) => self.settle_soon(&kept)?,
                Err(errno) => return Err(errno),
            }
        }
        let until = Instant::now() + PATIENCE;
        self.unlinked(to)?;
        loop {
            match self.rename_new(from, to) {
                Ok(()) => break,
                Err(Errno::EEXIST | Errno::EACCES | Errno::EBUSY) if Instant::now() < until => {
                    std::thread::sleep(PAUSE)
                }
                Err(errno) => {
                    // It has its name back at once if that is free.
                    let _ = self.rename_new(&kept, to);
                    return Err(if errno == Errno::EEXIST { Errno::EBUSY } else { errno });
                }
            }
        }
        let _ = self.unlinked(&kept);
        Ok(())
    }

    fn is_free(&self, name: &str) -> bool {
        matches!(self.lookup(name), Ok(None))
    }

    fn unlinked(&self, name: &str) -> Result<(), Errno> {
        match self.remove(name) {
            Ok(_) => Ok(()),
            Err(e) => Err(e.errno().map_or(Errno::EIO, Errno::from_raw)),
        }
    }

    /// Completes or undoes a replacement that left `kept`; the caller is about to replace the file, so no other call does.
    fn settle_soon(&self, kept: &str) -> Result<(), Errno> {
        let Some(name) = replaced(kept) else { return Ok(()) };
        let until = Instant::now() + PATIENCE;
        loop {
            let (now, before) = match (self.lookup(name), self.lookup(kept)) {
                (Ok(now), Ok(before)) => (now, before),
                (Err(e), _) | (_, Err(e)) => return Err(e.errno().map_or(Errno::EIO, Errno::from_raw)),
            };
            match (now, before) {
                (_, None) => return Ok(()),
                (None, Some(_)) => match self.rename_new(kept, name) {
                    Err(Errno::EEXIST) => {}
                    other => return other,
                },
                (Some(now), Some(before)) if now.id != before.id => return self.unlinked(kept),
                (Some(_), Some(_)) if !self.is_kept_by_readers(name) => return self.unlinked(kept),
                _ if Instant::now() > until => return Err(Errno::EBUSY),
                _ => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Whether `name` was removed and goes when it is closed: it cannot be linked any more.
    fn is_kept_by_readers(&self, name: &str) -> bool {
        let passing = temporary_name();
        let linked = linkat(&self.fd, name, &self.fd, passing.as_str(), AtFlags::empty());
        let _ = self.remove(&passing);
        linked.is_err()
    }

    /// Gives the file back its name that has only the name `kept` any more, if whoever replaces it does not soon. `kept`: a
    /// name that [`replaced`] knows. Any process may do so at any time.
    ///
    /// # Errors
    /// [`Error::Io`] if the names cannot be listed, or the file cannot be renamed: then it has still no other name.
    pub fn settle(&self, kept: &str) -> Result<()> {
        let Some(name) = replaced(kept) else { return Ok(()) };
        let begun = Instant::now();
        loop {
            // A client may believe for a while that a name is there that another one removed; it lists what there is.
            let names = self.names()?;
            if names.iter().any(|it| it == name) || !names.iter().any(|it| it == kept) {
                return Ok(());
            }
            if begun.elapsed() > GRACE {
                match self.rename_new(kept, name) {
                    Ok(()) => return self.sync(),
                    Err(Errno::EEXIST | Errno::ENOENT) if begun.elapsed() < 2 * GRACE => {}
                    Err(errno) => return Err(Error::sys("rename", self.join(kept))(errno)),
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Removes what a killed replacement of `name` may have left, before `name` is removed for good. Nothing on a filesystem
    /// that replaces open files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget_old(&self, name: &str) -> Result<()> {
        if self.replaces_in_steps() {
            self.remove(&old(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_of(files: &[(&str, &str)]) -> (tempfile::TempDir, Dir) {
        let scratch = tempfile::tempdir().unwrap();
        let dir = Dir::open(scratch.path()).unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(dir.join(name), bytes).unwrap());
        (scratch, dir)
    }

    fn contents(dir: &Dir) -> Vec<(String, String)> {
        let mut names = dir.names().unwrap();
        names.sort();
        names.into_iter().map(|name| (name.clone(), std::fs::read_to_string(dir.join(&name)).unwrap())).collect()
    }

    #[test]
    fn a_file_is_replaced_in_steps_whatever_a_killed_replacement_left() {
        let expected = [("a".to_owned(), "new".to_owned())];
        for left in [&[("a", "old")][..], &[], &[(".sm-old-a", "old")], &[("a", "old"), (".sm-old-a", "older")]] {
            let (_scratch, dir) = dir_of(left);
            std::fs::write(dir.join(".tmp-n"), "new").unwrap();
            dir.replace_in_steps(".tmp-n", "a").unwrap();
            assert_eq!(contents(&dir), expected, "{left:?}");
        }
        let (_scratch, dir) = dir_of(&[("a", "old"), (".tmp-n", "new")]);
        dir.link("a", ".sm-old-a").unwrap();
        dir.replace_in_steps(".tmp-n", "a").unwrap();
        assert_eq!(contents(&dir), expected);
    }

    #[test]
    fn a_file_that_lost_its_name_gets_it_back_and_one_that_was_replaced_stays() {
        let (_scratch, dir) = dir_of(&[(".sm-old-a", "old"), (".sm-old-b", "old"), ("b", "new")]);
        for name in dir.names().unwrap().iter().filter(|name| replaced(name).is_some()) {
            dir.settle(name).unwrap();
        }
        assert_eq!(dir.read("a").unwrap().unwrap(), b"old");
        assert_eq!(dir.read("b").unwrap().unwrap(), b"new");
    }
}
