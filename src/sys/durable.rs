//! Writing so that it survives: a directory held open, files that appear whole or not at all.
//!
//! A new file is made in three steps, and only the last one can be seen:
//!
//! 1. *make*: an unnamed file (`O_TMPFILE`), or where the filesystem has none (NFS) one named
//!    `.tmp-<uuid>`, `flock`ed while its maker lives;
//! 2. *make durable*: fsync of the file;
//! 3. *publish*: `link` under its name, which fails if the name exists, or `rename` over the old file;
//!    then fsync of the directory.
//!
//! A kill before 3 leaves nothing, or a `.tmp-` file that nobody has locked: [`Dir::sweep_temporary`].
//!
//! A server that lost its answer (NFS, over a reconnection) is asked again and may then say that `link`
//! found the name taken or `rename` found nothing to rename, though it was our own first request that did
//! it. So what has the name is compared with our file before a refusal is believed.

mod aside;
mod leftovers;
mod new_file;

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::sys::statvfs::{Statvfs, fstatvfs};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::error::{Error, Result};
pub use aside::replaced;
pub use leftovers::is_abandoned;
pub use new_file::NewFile;

const TEMPORARY: &str = ".tmp-";
/// Bytes of a small file.
const MOST: u64 = 1 << 20;

/// The facts about a file that are known without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Type and permissions.
    pub mode: u32,
    /// Bytes.
    pub length: u64,
    /// Bytes on the disk.
    pub allocated: u64,
    /// Device and inode: two names with the same are one file.
    pub id: (u64, u64),
}

impl Stat {
    pub fn is_regular(&self) -> bool {
        self.mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
    }

    pub fn is_directory(&self) -> bool {
        self.mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
    }
}

impl From<FileStat> for Stat {
    fn from(of: FileStat) -> Stat {
        Stat {
            mode: of.st_mode,
            length: of.st_size as u64,
            allocated: of.st_blocks as u64 * 512,
            id: (of.st_dev, of.st_ino),
        }
    }
}

impl From<rustix::fs::Statx> for Stat {
    fn from(of: rustix::fs::Statx) -> Stat {
        let device = nix::sys::stat::makedev(of.stx_dev_major.into(), of.stx_dev_minor.into());
        Stat { mode: of.stx_mode.into(), length: of.stx_size, allocated: of.stx_blocks * 512, id: (device, of.stx_ino) }
    }
}

/// An open directory. Names are looked up in it, so it cannot be exchanged under a running call.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens `path`, which must be a directory itself and not a symbolic link to one.
    ///
    /// # Errors
    /// [`Error::Io`], with `ELOOP` if `path` is a symbolic link.
    pub fn open(path: &Path) -> Result<Dir> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| {
            let is_link = errno == Errno::ENOTDIR && path.is_symlink();
            Error::sys("open the directory", path)(if is_link { Errno::ELOOP } else { errno })
        })?;
        Ok(Dir { fd, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Device, inode, owner and times of the directory.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage fails, or another host removed the directory (`ESTALE` on NFS).
    pub fn stat(&self) -> Result<FileStat> {
        fstat(&self.fd).map_err(Error::sys("examine", &self.path))
    }

    /// Size and free space of the filesystem.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage fails.
    pub fn statvfs(&self) -> Result<Statvfs> {
        fstatvfs(&self.fd).map_err(Error::sys("examine the filesystem of", &self.path))
    }

    /// The names in the directory, without `.` and `..`; a name that is not UTF-8 is none of ours. A directory that was removed
    /// has none.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read to its end.
    pub fn names(&self) -> Result<Vec<String>> {
        let fail = Error::sys("list", &self.path);
        let again = openat(&self.fd, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let mut names = Vec::new();
        match again.and_then(dir::Dir::from_fd) {
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(fail(errno)),
            Ok(mut entries) => {
                for entry in entries.iter() {
                    match entry {
                        Err(Errno::ENOENT) => break,
                        Err(errno) => return Err(fail(errno)),
                        Ok(entry) => {
                            if let Ok(name) = entry.file_name().to_str()
                                && name != "."
                                && name != ".."
                            {
                                names.push(name.to_owned());
                            }
                        }
                    }
                }
            }
        }
        Ok(names)
    }

    /// The facts about the file at `name`, the file itself and not what a link points to; `None` if there is nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage fails, or the caller may not search the directory.
    pub fn lookup(&self, name: &str) -> Result<Option<Stat>> {
        // Attributes of a file that another host changed may be seconds old on NFS; elsewhere this asks nobody.
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW | rustix::fs::AtFlags::STATX_FORCE_SYNC;
        let found = || match rustix::fs::statx(&self.fd, name, flags, rustix::fs::StatxFlags::BASIC_STATS) {
            Ok(stat) => Ok(Stat::from(stat)),
            // Linux before 4.11, or a sandbox that was made for it.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
                fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(Stat::from)
            }
            Err(errno) => Err(Errno::from_raw(errno.raw_os_error())),
        };
        self.unless_stale(|| match found() {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Error::sys("examine", self.join(name))(errno)),
        })
    }

    /// Does it again if another host removed the file between its name was found and it was looked at, which
    /// NFS calls stale. In a directory that is stale itself nothing is ever found again.
    fn unless_stale<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        const ATTEMPTS: u32 = 20;
        for _ in 0..ATTEMPTS {
            match work() {
                Err(e) if e.errno() == Some(Errno::ESTALE as i32) && self.stat().is_ok() => {}
                other => return other,
            }
        }
        work()
    }

    /// Opens an existing file, for writing too if `write`. Never waits, as the open of a pipe of that name would.
    ///
    /// # Errors
    /// [`Error::Io`], with `ENOENT` if there is no such name and `ELOOP` if it is a symbolic link; [`Error::Damaged`]
    /// if it is not a regular file.
    pub fn open_file(&self, name: &str, write: bool) -> Result<File> {
        self.try_open_file(name, write)?.ok_or_else(|| Error::sys("open", self.join(name))(Errno::ENOENT))
    }

    /// Opens a file, for writing too if `write`; `None` if there is no such name. Never waits, as the open of a pipe of
    /// that name would.
    ///
    /// # Errors
    /// [`Error::Io`], with `ELOOP` if it is a symbolic link; [`Error::Damaged`] if it is not a regular file.
    pub fn try_open_file(&self, name: &str, write: bool) -> Result<Option<File>> {
        let access = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        let flags = access | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file: File = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::sys("open", self.join(name))(errno)),
        };
        let meta = file.metadata().map_err(Error::io("examine", self.join(name)))?;
        if meta.is_file() { Ok(Some(file)) } else { Err(self.not_regular(name)) }
    }

    fn not_regular(&self, name: &str) -> Error {
        Error::Damaged { path: self.join(name), what: "is not a regular file".to_owned() }
    }

    /// Opens a file of this program's own for reading; `None` if there is no such name. Never waits, as the
    /// open of a pipe of that name would.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not a regular file.
    pub fn try_open_record(&self, name: &str) -> Result<Option<File>> {
        Ok(self.try_open_and_stat(name)?.map(|(file, _)| file))
    }

    /// Opens a file of this program's own for reading, as [`Dir::try_open_record`] does, and tells what is known of it.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not a regular file; [`Error::Io`] if it cannot be opened.
    pub fn try_open_and_stat(&self, name: &str) -> Result<Option<(File, Stat)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let not_regular = || self.not_regular(name);
        let file: File = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::ENOENT) => return Ok(None),
            // A symbolic link; a socket.
            Err(Errno::ELOOP | Errno::ENXIO) => return Err(not_regular()),
            Err(errno) => return Err(Error::sys("open", self.join(name))(errno)),
        };
        let stat = fstat(&file).map_err(Error::sys("examine", self.join(name)))?;
        let regular = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFREG;
        if regular { Ok(Some((file, stat.into()))) } else { Err(not_regular()) }
    }

    /// Opens a file for reading and writing, and makes it if need be, with mode 0600.
    ///
    /// # Errors
    /// [`Error::Io`], with `ELOOP` if the name is that of a symbolic link; [`Error::Damaged`] if it is not a regular file.
    pub fn make_file(&self, name: &str) -> Result<File> {
        drop(self.lock_file(name)?);
        self.open_file(name, true)
    }

    /// Opens an empty file that is there to be locked, and makes it if need be.
    ///
    /// # Errors
    /// [`Error::Io`], with `ELOOP` if the name is that of a symbolic link.
    pub fn lock_file(&self, name: &str) -> Result<File> {
        let flags = OFlag::O_CREAT | OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let opened = openat(&self.fd, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        opened.map(File::from).map_err(Error::sys("open the lock file", self.join(name)))
    }

    /// The contents of a small file of this program's own; `None` if there is no such name.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it has more than 1 MiB or is not a regular file; [`Error::Io`] if it cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let contents = self.unless_stale(|| {
            let Some((file, stat)) = self.try_open_and_stat(name)? else { return Ok(None) };
            // A record never grows in place, so as many bytes as it has are all of it, and no read need find the end.
            let mut bytes = Vec::with_capacity(stat.length.min(MOST + 1) as usize);
            file.take(stat.length.min(MOST + 1)).read_to_end(&mut bytes).map_err(Error::io("read", self.join(name)))?;
            Ok(Some(bytes))
        })?;
        let Some(bytes) = contents else { return Ok(None) };
        if bytes.len() as u64 > MOST {
            return Err(Error::Damaged { path: self.join(name), what: "larger than 1 MiB".to_owned() });
        }
        Ok(Some(bytes))
    }

    /// Makes the names in the directory durable. On SMB before Linux 5.13 a directory cannot be synced, and the server makes
    /// its names durable as it sees fit.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage fails.
    pub fn sync(&self) -> Result<()> {
        match nix::unistd::fsync(&self.fd) {
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if self.replaces_in_steps() => Ok(()),
            other => other.map_err(Error::sys("make durable", &self.path)),
        }
    }

    /// Removes a name. `false`: there was none. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// [`Error::Io`], with `EISDIR` if `name` is a directory.
    pub fn remove(&self, name: &str) -> Result<bool> {
        self.unlink(name, UnlinkatFlags::NoRemoveDir)
    }

    /// Renames within the directory, over what has the new name. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// [`Error::Io`], with `ENOENT` if there is no `from`.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        nix::fcntl::renameat(&self.fd, from, &self.fd, to).map_err(Error::sys("rename", self.join(from)))
    }

    /// Removes an empty directory. `false`: there was none. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// [`Error::Io`], with `ENOTEMPTY` or `EEXIST` if something is in it.
    pub fn remove_dir(&self, name: &str) -> Result<bool> {
        self.unlink(name, UnlinkatFlags::RemoveDir)
    }

    fn unlink(&self, name: &str, flags: UnlinkatFlags) -> Result<bool> {
        match unlinkat(&self.fd, name, flags) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(Error::sys("remove", self.join(name))(errno)),
        }
    }

    /// Gives a file a second name. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// [`Error::Io`] with `EEXIST` if there is such a name; [`Error::Unsupported`] where there are no hard links.
    pub fn link(&self, name: &str, second: &str) -> Result<()> {
        match linkat(&self.fd, name, &self.fd, second, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => Err(Error::Unsupported {
                op: "copy-on-write",
                why: format!("the filesystem of {} has no hard links", self.path.display()),
            }),
            Err(errno) => Err(Error::sys("link", self.join(name))(errno)),
        }
    }

    /// Makes a subdirectory, mode 0700. `false`: the name exists. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// [`Error::Io`] if the filesystem is full or read-only, or the caller may not write to the directory.
    pub fn make_dir(&self, name: &str) -> Result<bool> {
        match nix::sys::stat::mkdirat(&self.fd, name, Mode::S_IRWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(Error::sys("create the directory", self.join(name))(errno)),
        }
    }

    /// Makes the symbolic link `name` to `to`, or replaces it, durably: readers and a crash see the old or the new link.
    ///
    /// # Errors
    /// [`Error::Io`] if the filesystem has no such links, is full or fails.
    pub fn replace_link(&self, name: &str, to: &str) -> Result<()> {
        let passing = passing_name(name);
        self.sweep_link(name)?;
        nix::unistd::symlinkat(to, &self.fd, passing.as_str()).map_err(Error::sys("link", self.join(name)))?;
        self.rename(&passing, name)?;
        self.sync()
    }

    /// Removes what a killed [`Dir::replace_link`] of `name` left. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sweep_link(&self, name: &str) -> Result<bool> {
        self.remove(&passing_name(name))
    }

    /// Where the symbolic link `name` leads; `None` if there is no such name.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is no link, or leads to what is no UTF-8; [`Error::Io`].
    pub fn read_link(&self, name: &str) -> Result<Option<String>> {
        let no_link = || Error::Damaged { path: self.join(name), what: "is no symbolic link of a store".to_owned() };
        match nix::fcntl::readlinkat(&self.fd, name) {
            Ok(to) => to.into_string().map(Some).map_err(|_| no_link()),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::EINVAL) => Err(no_link()),
            Err(errno) => Err(Error::sys("read", self.join(name))(errno)),
        }
    }

    /// Opens a subdirectory; `None` if there is no such name.
    ///
    /// # Errors
    /// [`Error::Io`], with `ENOTDIR` or `ELOOP` if the name is that of a file or a symbolic link.
    pub fn sub_dir(&self, name: &str) -> Result<Option<Dir>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Dir { fd, path: self.join(name) })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Error::sys("open the directory", self.join(name))(errno)),
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes the directory that holds `path` durable, so that a name just made in it is.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be opened or the storage fails.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io("make durable", parent))
}

/// Makes a directory and those above it that are missing, mode 0755, each durable. Idempotent.
///
/// # Errors
/// [`Error::Io`] with the directory that cannot be made.
pub fn make_dirs(path: &Path) -> Result<()> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|part| !part.exists()).collect();
    while let Some(part) = missing.pop() {
        match DirBuilder::new().mode(0o755).create(part) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("make the directory", part)(e)),
            _ => sync_parent(part)?,
        }
    }
    Ok(())
}

/// Whether `error` says that the filesystem has no such operation, so that a slower way is worth a try.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EXDEV | Errno::ENOTTY)
    )
}

/// The name that a new symbolic link has before it takes the place of `name`.
fn passing_name(name: &str) -> String {
    format!(".link-{name}")
}

/// The file name of a path as text.
pub fn name_of(path: &Path) -> &str {
    path.file_name().map(OsStr::as_bytes).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbolic_link_is_neither_a_directory_nor_a_file() {
        let scratch = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", scratch.path().join("d")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("f")).unwrap();
        assert_eq!(Dir::open(&scratch.path().join("d")).unwrap_err().errno(), Some(Errno::ELOOP as i32));
        let dir = Dir::open(scratch.path()).unwrap();
        assert!(dir.open_file("f", false).is_err());
        nix::unistd::mkfifo(&scratch.path().join("p"), Mode::S_IRUSR).unwrap();
        assert!(matches!(dir.open_file("p", false), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_directory_that_was_removed_has_no_names() {
        let scratch = tempfile::tempdir().unwrap();
        let removed = scratch.path().join("removed");
        std::fs::create_dir(&removed).unwrap();
        let dir = Dir::open(&removed).unwrap();
        std::fs::remove_dir(&removed).unwrap();
        assert_eq!(dir.names().unwrap(), Vec::<String>::new());
    }
}
