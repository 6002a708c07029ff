//! A file that appears whole or not at all; the order of steps is in [`super`].

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use fs2::FileExt;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::linkat;
use uuid::Uuid;

use super::{Dir, MOST, Stat, TEMPORARY};
use crate::error::{Error, Result};

impl Dir {
    /// Makes a file that has no name yet. Mode 0600.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory takes no new file: the filesystem is full or read-only, or the caller may not
    /// write there.
    pub fn new_file(&self) -> Result<NewFile<'_>> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        match openat(&self.fd, ".", OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC, mode) {
            Ok(fd) => {
                return Ok(NewFile {
                    dir: self,
                    file: fd.into(),
                    name: None,
                    durable: false,
                    marked: false.into(),
                    held: false.into(),
                });
            }
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(Error::sys("create a file in", &self.path)(errno)),
        }
        loop {
            let name = temporary_name();
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file: File =
                openat(&self.fd, name.as_str(), flags, mode).map_err(Error::sys("create", self.join(&name)))?.into();
            let new =
                NewFile { dir: self, file, name: Some(name), durable: false, marked: false.into(), held: false.into() };
            new.mark_as_in_use()?;
            // Before it was marked, a sweep could take it for abandoned.
            if self.lookup(new.name.as_deref().expect("it was just given one"))?.is_some() {
                return Ok(new);
            }
        }
    }

    /// Publishes `bytes` under `name`, durably. `false`: the name exists and nothing was changed.
    ///
    /// # Errors
    /// [`Error::TooBig`] for more than 1 MiB; [`Error::Io`] if the file cannot be made or made durable: then `name`
    /// does not exist, or the error says that it could not be removed.
    pub fn create(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        self.new_record(bytes)?.publish(name)
    }

    /// Makes a small file that has no name yet, of `bytes`.
    ///
    /// # Errors
    /// [`Error::TooBig`] for more than 1 MiB; [`Error::Io`] if the file cannot be made or written.
    pub fn new_record(&self, bytes: &[u8]) -> Result<NewFile<'_>> {
        if bytes.len() as u64 > MOST {
            // No reader accepts a longer record.
            let limit = format!("{MOST} bytes are the limit");
            return Err(Error::TooBig { what: "a record", bytes: bytes.len() as u64, limit });
        }
        let mut new = self.new_file()?;
        new.write(bytes)?;
        Ok(new)
    }

    /// Replaces `name`, or creates it, with `bytes`: readers and a crash see the old or the new file.
    ///
    /// # Errors
    /// [`Error::Io`] if the new file cannot be made, renamed or made durable. If only the last step failed, readers see
    /// the new file already.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut new = self.new_file()?;
        new.write(bytes)?;
        new.publish_over(name)
    }

    /// A temporary second name of `name`, whose file is open as `file`, which keeps it from being swept.
    ///
    /// # Errors
    /// The errors of [`Dir::link`]; [`Error::Io`] if the file cannot be locked.
    pub fn passing_link(&self, name: &str, file: &File) -> Result<NewFile<'_>> {
        let file = file.try_clone().map_err(Error::io("duplicate", self.join(name)))?;
        let temporary = temporary_name();
        let mut new = NewFile { dir: self, file, name: None, durable: true, marked: false.into(), held: false.into() };
        new.mark_as_in_use()?;
        self.link(name, &temporary)?;
        new.name = Some(temporary);
        Ok(new)
    }
}

/// A file in the making. Dropped unpublished, it leaves nothing.
#[derive(Debug)]
pub struct NewFile<'a> {
    dir: &'a Dir,
    file: File,
    /// The temporary name, where the filesystem can't do without.
    name: Option<String>,
    /// The contents of the file are on stable storage.
    durable: bool,
    /// It is locked, which says that it is in the making.
    marked: Cell<bool>,
    /// It stays so after it is published.
    held: Cell<bool>,
}

impl NewFile<'_> {
    pub fn file(&self) -> &File {
        &self.file
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write a file in", &self.dir.path))
    }

    /// Marks the file as in the making until the answer is dropped, whatever names it has:
    /// [`is_abandoned`](super::is_abandoned) is false.
    ///
    /// # Errors
    /// [`Error::Io`] if the filesystem cannot lock the file.
    pub fn hold(&self) -> Result<File> {
        self.mark_as_in_use()?;
        self.held.set(true);
        self.file.try_clone().map_err(Error::io("duplicate a file in", &self.dir.path))
    }

    /// Makes durable what was written. To publish it then waits for the name alone.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage fails.
    pub fn sync(&mut self) -> Result<()> {
        if !self.durable {
            self.file.sync_all().map_err(Error::io("make durable a file in", &self.dir.path))?;
            self.durable = true;
        }
        Ok(())
    }

    /// Says that whoever wrote the file made it durable.
    pub fn is_durable(&mut self) {
        self.durable = true;
    }

    /// Makes the file durable and gives it `name`. `false`: the name exists and nothing was changed.
    ///
    /// # Errors
    /// [`Error::Io`] if a step fails; then `name` does not exist, or [`Error::Undo`] says that it could not be removed.
    pub fn publish(self, name: &str) -> Result<bool> {
        let dir = self.dir;
        if !self.publish_soon(name)? {
            return Ok(false);
        }
        if let Err(e) = dir.sync() {
            // Its maker is told that it failed, so nobody may find it.
            return Err(e.undone(dir.remove(name).map(drop)));
        }
        Ok(true)
    }

    /// Makes the file durable and gives it `name`, which is not durable before [`Dir::sync`]. `false`: the name exists
    /// and nothing was changed.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be made durable or named.
    pub fn publish_soon(mut self, name: &str) -> Result<bool> {
        self.sync()?;
        if self.name.is_some() && self.dir.replaces_in_steps() {
            return self.rename_to_new(name);
        }
        match self.link(name) {
            Ok(()) => {}
            Err(Errno::EEXIST) if self.is(name)? => {}
            Err(Errno::EEXIST) => return Ok(false),
            Err(errno) => return Err(self.not_linked("create", name, errno)),
        }
        // Closed first: NFS would rename an open file instead of removing its name.
        let (dir, temporary) = (self.dir, self.name.take());
        drop(self);
        if let Some(temporary) = temporary {
            // It is published; what stays of the other name is swept.
            let _ = dir.remove(&temporary);
        }
        Ok(true)
    }

    /// Gives the file `name` instead of its temporary name. On SMB, the removal of one of two names of a file keeps the other
    /// from being opened until everybody has closed the file.
    fn rename_to_new(mut self, name: &str) -> Result<bool> {
        let temporary = self.name.as_deref().expect("the caller looked");
        if !self.held.get() {
            self.unmark()?;
        }
        match self.dir.rename_new(temporary, name) {
            Ok(()) => {}
            Err(Errno::EEXIST | Errno::ENOENT) if self.is(name)? => {}
            Err(Errno::EEXIST) => return Ok(false),
            Err(errno) => return Err(Error::sys("create", self.dir.join(name))(errno)),
        }
        self.name = None;
        Ok(true)
    }

    /// Whether `name` is this very file.
    fn is(&self, name: &str) -> Result<bool> {
        let ours = fstat(&self.file).map_err(Error::sys("examine a file in", &self.dir.path))?;
        Ok(self.dir.lookup(name)?.is_some_and(|it| it.id == Stat::from(ours).id))
    }

    /// Makes the file durable and puts it in the place of `name`.
    ///
    /// # Errors
    /// [`Error::Io`] if a step fails. If that was the last one, the sync of the directory, readers see the new file
    /// already.
    pub fn publish_over(mut self, name: &str) -> Result<()> {
        self.sync()?;
        let fail = |errno| Error::sys("replace", self.dir.join(name))(errno);
        if self.name.is_none() {
            self.mark_as_in_use()?;
            let temporary = temporary_name();
            self.link(&temporary).map_err(|errno| self.not_linked("replace", name, errno))?;
            self.name = Some(temporary);
        }
        let temporary = self.name.as_deref().expect("it was just given one");
        if self.dir.replaces_in_steps() {
            self.unmark()?;
            self.dir.replace_in_steps(temporary, name).map_err(|errno| match errno {
                Errno::EBUSY => Error::DeviceInUse {
                    device: self.dir.join(name).display().to_string(),
                    holder: "a process of this or another host has it open".to_owned(),
                },
                _ => fail(errno),
            })?;
            self.name = None;
            return self.dir.sync();
        }
        match nix::fcntl::renameat(&self.dir.fd, temporary, &self.dir.fd, name) {
            Err(Errno::ENOENT) if self.is(name)? => {}
            other => other.map_err(fail)?,
        }
        self.name = None;
        self.dir.sync()
    }

    /// Until the file is closed, [`is_abandoned`](super::is_abandoned) is false.
    fn mark_as_in_use(&self) -> Result<()> {
        // On SMB, a file that locks itself twice waits for itself.
        if !self.marked.replace(true) {
            self.file.lock_exclusive().map_err(Error::io("mark as in use a file in", &self.dir.path))?;
        }
        Ok(())
    }

    /// Ends the mark before others find the file: on SMB, nobody can read what another has locked.
    fn unmark(&self) -> Result<()> {
        self.marked.set(false);
        FileExt::unlock(&self.file).map_err(Error::io("unlock a file in", &self.dir.path))
    }

    fn link(&self, name: &str) -> Result<(), Errno> {
        match &self.name {
            Some(temporary) => linkat(&self.dir.fd, temporary.as_str(), &self.dir.fd, name, AtFlags::empty()),
            None => {
                let by_fd = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                match linkat(nix::fcntl::AT_FDCWD, by_fd.as_str(), &self.dir.fd, name, AtFlags::AT_SYMLINK_FOLLOW) {
                    // Without /proc. This way needs CAP_DAC_READ_SEARCH.
                    Err(Errno::ENOENT) => linkat(&self.file, "", &self.dir.fd, name, AtFlags::AT_EMPTY_PATH),
                    other => other,
                }
            }
        }
    }

    /// Why [`NewFile::link`] failed. The ENOENT of a host without /proc is not about the directory.
    fn not_linked(&self, op: &'static str, name: &str, errno: Errno) -> Error {
        if errno == Errno::ENOENT && !Path::new("/proc/self/fd").exists() {
            let why = "/proc is not mounted, and without it only root can name a new file";
            return Error::io(op, self.dir.join(name))(io::Error::new(io::ErrorKind::NotFound, why));
        }
        Error::sys(op, self.dir.join(name))(errno)
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = self.dir.remove(name);
        }
    }
}

pub(super) fn temporary_name() -> String {
    format!("{TEMPORARY}{}", Uuid::new_v4())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_never_replaces_and_replace_always_does() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = Dir::open(scratch.path()).unwrap();
        assert!(dir.create("a", b"one").unwrap());
        assert!(matches!(dir.create("b", &[b' '; (1 << 20) + 1]), Err(Error::TooBig { .. })));
        assert!(!dir.create("a", b"two").unwrap());
        assert_eq!(dir.read("a").unwrap().unwrap(), b"one");
        dir.replace("a", b"three").unwrap();
        assert_eq!(dir.read("a").unwrap().unwrap(), b"three");
        assert_eq!(dir.names().unwrap(), ["a"]);
    }
}
