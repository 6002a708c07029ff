//! Locks between processes of one host, with a deadline on every wait.
//!
//! Locks are open-file-description record locks (`F_OFD_SETLK`). The Python storage managers take POSIX
//! record locks on the same files; the two kinds exclude each other, `flock` would not (SMAPIv1, "Locks").
//! A lock dies with its process, so none is ever stale.

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::{Error, Result};
use crate::sys::durable::Dir;
use crate::sys::{process, run_dir};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Shared,
    Exclusive,
}

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    /// Dropped before the lock is released.
    _ends: Option<Box<dyn Any + Send + Sync>>,
    file: File,
    /// The locked file that other hosts see, if the lock is held among hosts as well.
    _shared: Option<File>,
}

impl Lock {
    /// This lock, and something that ends before it is released.
    #[must_use]
    pub fn ending(self, what: impl Any + Send + Sync) -> Lock {
        Lock { _ends: Some(Box::new(what)), ..self }
    }

    /// A part in the lock on this host. The lock is free when this is closed as well, which another process may do.
    ///
    /// # Errors
    /// [`Error::Io`] if the process has no descriptor left.
    pub fn share(&self) -> Result<File> {
        self.file.try_clone().map_err(Error::io("share the lock", run_dir::locks()))
    }

    /// A part in the lock on this host that is a lock itself, for a call within what the caller does.
    ///
    /// # Errors
    /// Those of [`Lock::share`].
    pub fn part(&self) -> Result<Lock> {
        Ok(Lock { _ends: None, file: self.share()?, _shared: None })
    }

    /// This lock, held among hosts as well: on a file that all of them see, on a filesystem that tells them (NFS, which
    /// frees the lock some time after its holder's host died). One call at a time gets this far on a host.
    ///
    /// # Errors
    /// [`Refused::TimedOut`] if another host has the file locked until the deadline; [`Refused::Failed`] if the
    /// filesystem cannot lock files.
    pub fn among_hosts(self, file: File, path: &Path, deadline: Instant) -> Result<Lock, Refused> {
        if !wait(&file, Kind::Exclusive, deadline, path).map_err(Refused::Failed)? {
            return Err(Refused::TimedOut { holder: Some("another host".to_owned()) });
        }
        Ok(Lock { _shared: Some(file), ..self })
    }
}

/// Why a lock could not be had.
#[derive(Debug)]
pub enum Refused {
    /// Another process held it until the deadline; who, as far as the kernel tells.
    TimedOut {
        holder: Option<String>,
    },
    Failed(Error),
}

impl Refused {
    /// The error to report; `timed_out` makes it from who held the lock.
    pub fn or_timed_out(self, timed_out: impl FnOnce(&str) -> Error) -> Error {
        match self {
            Refused::Failed(error) => error,
            Refused::TimedOut { holder } => timed_out(holder.as_deref().unwrap_or("another call")),
        }
    }
}

/// Directories of locks, opened and examined once for all locks of a process.
///
/// Every directory is looked at by the descriptor through which the file of a lock is then opened: /var/lock is writable
/// for all, and a user could have made our directory in it first, or hand out our locks from one that he can write to.
/// The descriptor keeps the directory that was examined, whatever gets its name. In one that was removed no file can be
/// made.
#[derive(Debug)]
struct Examined {
    /// The directory of all locks.
    root: Dir,
    /// The directory of the last lock in it, and its name: most calls take several locks of one SR.
    namespace: Option<(String, Dir)>,
}

static EXAMINED: Mutex<Option<Examined>> = Mutex::new(None);

/// Takes the lock `<lock directory>/<namespace>/<name>`, waiting until `deadline`.
///
/// The file is never unlinked by us; Python drivers unlink lock files, so after locking the path is
/// checked to be still the file we hold.
///
/// # Errors
/// [`Refused::TimedOut`] while another process holds it, [`Refused::Failed`] with access denied if somebody else could
/// exchange its file.
pub fn take(namespace: &str, name: &str, kind: Kind, deadline: Instant) -> Result<Lock, Refused> {
    let path = run_dir::locks().join(namespace).join(name);
    loop {
        let file = open(namespace, name).map_err(Refused::Failed)?;
        if !wait(&file, kind, deadline, &path).map_err(Refused::Failed)? {
            return Err(Refused::TimedOut { holder: holder(namespace, name) });
        }
        if is_still(&path, &file) {
            return Ok(Lock { _ends: None, file, _shared: None });
        }
        // Perhaps the directory is another by now.
        forget_examined();
    }
}

/// Opens the file of a lock, and makes it and its directories if need be.
fn open(namespace: &str, name: &str) -> Result<File> {
    // A call that deletes a VDI removes the VDI's lock directory, perhaps just after it was made here.
    const ATTEMPTS: u32 = 100;
    for _ in 0..ATTEMPTS {
        if let Some(file) = try_open(namespace, name)? {
            return Ok(file);
        }
        forget_examined();
        let dir = run_dir::locks().join(namespace);
        match fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(cannot_create(&dir, e));
            }
            _ => {}
        }
    }
    let missing = || Error::sys("open the lock file", run_dir::locks().join(namespace).join(name))(Errno::ENOENT);
    try_open(namespace, name)?.ok_or_else(missing)
}

fn try_open(namespace: &str, name: &str) -> Result<Option<File>> {
    let mut examined = EXAMINED.lock().unwrap_or_else(PoisonError::into_inner);
    if examined.is_none() {
        run_dir::trusted()?;
        let Some(root) = found(Dir::open(&run_dir::locks()))? else { return Ok(None) };
        refuse_if_of_others(&root)?;
        *examined = Some(Examined { root, namespace: None });
    }
    let Some(Examined { root, namespace: last }) = &mut *examined else { return Ok(None) };
    if last.as_ref().is_none_or(|(name, _)| name != namespace) {
        let Some(dir) = root.sub_dir(namespace)? else { return Ok(None) };
        refuse_if_of_others(&dir)?;
        *last = Some((namespace.to_owned(), dir));
    }
    let Some((_, dir)) = last else { return Ok(None) };
    found(dir.lock_file(name))
}

/// Makes the next lock open and examine its directories again.
fn forget_examined() {
    *EXAMINED.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// A dangling link above the directory is named: the system's "File exists" names nothing.
fn cannot_create(dir: &Path, e: io::Error) -> Error {
    let dangling = dir.ancestors().find(|above| above.is_symlink() && !above.exists());
    let Some((link, to)) = dangling.and_then(|link| Some((link, fs::read_link(link).ok()?))) else {
        return Error::io("create the lock directory", dir)(e);
    };
    let why = format!("{} is a link to {}, which does not exist; create that directory", link.display(), to.display());
    Error::io("create the lock directory", dir)(io::Error::new(io::ErrorKind::NotFound, why))
}

fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The directories of locks that no call would take a lock in, because another user could exchange one: the refusal of each.
pub fn untrusted() -> Vec<Error> {
    let root = match found(Dir::open(&run_dir::locks())) {
        Ok(Some(root)) => root,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![error],
    };
    let names = root.names().unwrap_or_default();
    let below = names.iter().filter_map(|name| match root.lookup(name) {
        Ok(Some(it)) if it.is_directory() => root.sub_dir(name).transpose(),
        _ => None,
    });
    let refusal = |dir: Result<Dir>| dir.and_then(|dir| refuse_if_of_others(&dir)).err();
    refuse_if_of_others(&root).err().into_iter().chain(below.filter_map(refusal)).collect()
}

/// # Errors
/// [`Error::Io`], access denied, for a directory that another user than this one and root owns or can write to.
fn refuse_if_of_others(dir: &Dir) -> Result<()> {
    let stat = dir.stat()?;
    let why = if stat.st_uid != run_dir::user().as_raw() && stat.st_uid != 0 {
        format!("it belongs to uid {}", stat.st_uid)
    } else if stat.st_mode & 0o002 != 0 {
        "every user can write to it".to_owned()
    } else if stat.st_mode & 0o020 != 0 && stat.st_gid != 0 && stat.st_gid != nix::unistd::getegid().as_raw() {
        format!("gid {} can write to it", stat.st_gid)
    } else {
        return Ok(());
    };
    Err(Error::Io {
        op: "trust the lock directory",
        path: dir.path().to_owned(),
        source: io::Error::new(io::ErrorKind::PermissionDenied, format!("{why}; remove it, or chown and chmod it")),
    })
}

/// `false`: the deadline passed.
fn wait(file: &File, kind: Kind, deadline: Instant, path: &Path) -> Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&request(kind))) {
        Ok(_) => return Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => {}
        Err(errno) => return Err(Error::sys("lock", path)(errno)),
    }
    if deadline <= Instant::now() {
        return Ok(false);
    }
    // The kernel's own wait has no time-out: a thread waits and tells us. If it is late, the process is
    // about to end with an error and takes the thread along.
    let (tell, told) = mpsc::channel();
    let waiter = file.try_clone().map_err(Error::io("duplicate", path))?;
    std::thread::spawn(move || {
        let outcome = loop {
            match fcntl(&waiter, FcntlArg::F_OFD_SETLKW(&request(kind))) {
                Err(Errno::EINTR) => continue,
                other => break other.map(drop),
            }
        };
        let _ = tell.send(outcome);
    });
    match told.recv_timeout(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))) {
        Ok(outcome) => outcome.map(|()| true).map_err(Error::sys("lock", path)),
        Err(_) => Ok(false),
    }
}

fn request(kind: Kind) -> libc::flock {
    libc::flock {
        l_type: match kind {
            Kind::Shared => libc::F_RDLCK as i16,
            Kind::Exclusive => libc::F_WRLCK as i16,
        },
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn is_still(path: &Path, file: &File) -> bool {
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(named), Ok(held)) => named.dev() == held.dev() && named.ino() == held.ino(),
        _ => false,
    }
}

/// Removes the file of a lock that the caller holds, for a thing that is gone. A call that waits for the lock finds out
/// in [`take`].
pub fn forget(namespace: &str, name: &str) {
    let dir = run_dir::locks().join(namespace);
    let _ = fs::remove_file(dir.join(name));
    let _ = fs::remove_dir(dir);
}

/// The process that holds a lock now, in words, as far as the kernel tells. `None`: nobody holds it.
pub fn held_by(namespace: &str, name: &str) -> Option<String> {
    let file = File::open(run_dir::locks().join(namespace).join(name)).ok()?;
    let mut asked = request(Kind::Exclusive);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut asked)).ok()?;
    let is_held = i32::from(asked.l_type) != i32::from(libc::F_UNLCK as i16);
    is_held.then(|| holder(namespace, name).unwrap_or_else(|| "another process".to_owned()))
}

/// The holder of a lock in words, as far as the kernel tells.
fn holder(namespace: &str, name: &str) -> Option<String> {
    let path = run_dir::locks().join(namespace).join(name);
    let inode = fs::metadata(&path).ok()?.ino();
    let table = fs::read_to_string("/proc/locks").ok()?;
    // 1: OFDLCK ADVISORY WRITE -1 00:1a:1234 0 EOF; waiters have "->" in the second column.
    let pid = table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let of_file = words.get(5).is_some_and(|w| w.ends_with(&format!(":{inode}")));
        if of_file { words.get(4)?.parse::<u32>().ok() } else { None }
    });
    let pid = pid.or_else(|| opener(&path))?;
    Some(process::shown(pid))
}

/// The kernel names no process for an open-file-description lock; another process that has the file open
/// is the best answer there is. The names are compared: to look at what others have open could take for ever,
/// on the mount of a dead server.
fn opener(path: &Path) -> Option<u32> {
    let path = fs::canonicalize(path).ok()?;
    process::all().into_iter().find(|pid| {
        let mut fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        *pid != std::process::id() && fds.any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_removed_and_made_again_is_opened_again() {
        let (first, second) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
        drop(take(&first, "vdi", Kind::Exclusive, Instant::now()).unwrap());
        // An open directory is stale like this after its name was given to another.
        let elsewhere = tempfile::tempdir().unwrap();
        let stale = |name: &str| {
            let path = elsewhere.path().join(name);
            fs::create_dir(&path).unwrap();
            let dir = Dir::open(&path).unwrap();
            fs::remove_dir(path).unwrap();
            dir
        };
        let namespace = Some((second.clone(), stale("namespace")));
        *EXAMINED.lock().unwrap() = Some(Examined { root: stale("root"), namespace });
        let lock = take(&second, "vdi", Kind::Exclusive, Instant::now()).unwrap();
        let other = take(&second, "vdi", Kind::Exclusive, Instant::now());
        assert!(matches!(other, Err(Refused::TimedOut { .. })), "the lock is in no directory: {other:?}");
        drop(lock);
        forget(&first, "vdi");
        forget(&second, "vdi");
    }

    #[test]
    fn a_shared_lock_is_held_until_every_part_is_closed() {
        let namespace = uuid::Uuid::new_v4().to_string();
        let lock = take(&namespace, "vdi", Kind::Exclusive, Instant::now()).unwrap();
        let part = lock.share().unwrap();
        drop(lock);
        assert!(take(&namespace, "vdi", Kind::Exclusive, Instant::now()).is_err());
        drop(part);
        assert!(take(&namespace, "vdi", Kind::Exclusive, Instant::now()).is_ok());
        forget(&namespace, "vdi");
    }
}
