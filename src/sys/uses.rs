//! Which of many things are in use, as all hosts see it that share a directory.
//!
//! A thing is a byte of one file, and its user holds a shared record lock on that byte ([`hold`]); who wants it to himself
//! takes an exclusive one ([`alone`]). A lock dies with its process, and on NFS with its host: at the end of its lease
//! (version 4), or when the host starts again (version 3). Nothing is written, so nothing has to be repaired.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use uuid::Uuid;

use crate::error::{Error, Result};

/// Locks that are held until it is dropped.
#[derive(Debug)]
pub struct Uses {
    _file: File,
}

/// Takes part in the use of the things of these names. `file` is opened for this alone; `path` is what errors call it.
///
/// # Errors
/// [`Error::Io`]: ENOLCK of a server without locks; ETIMEDOUT while somebody has one of them alone until `deadline`.
pub fn hold<'a>(file: File, path: &Path, names: impl IntoIterator<Item = &'a str>, deadline: Instant) -> Result<Uses> {
    const PAUSE: Duration = Duration::from_millis(20);
    for name in names {
        while !lock(&file, path, name, libc::F_RDLCK)? {
            if Instant::now() >= deadline {
                return Err(Error::sys("wait for who changes what is named in", path)(Errno::ETIMEDOUT));
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(Uses { _file: file })
}

/// Keeps everybody else from the things of these names. `None`: somebody uses one of them.
///
/// # Errors
/// As [`hold`].
pub fn alone<'a>(file: File, path: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<Option<Uses>> {
    for name in names {
        if !lock(&file, path, name, libc::F_WRLCK)? {
            return Ok(None);
        }
    }
    Ok(Some(Uses { _file: file }))
}

/// `false`: somebody has a lock that excludes this one.
fn lock(file: &File, path: &Path, name: &str, kind: libc::c_int) -> Result<bool> {
    let request =
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: offset(name), l_len: 1, l_pid: 0 };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&request)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(Error::sys("lock a byte of", path)(errno)),
    }
}

/// The byte of a name, the same on every host: 62 bits of a digest, so two names that meet are not to be feared.
fn offset(name: &str) -> libc::off_t {
    (Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).as_u64_pair().0 >> 2) as libc::off_t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_keep_out_who_wants_a_thing_alone_and_no_one_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uses");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let now = Instant::now();
        let first = hold(open(), &path, ["a", "b"], now).unwrap();
        let second = hold(open(), &path, ["b"], now).unwrap();
        assert!(alone(open(), &path, ["c", "a"]).unwrap().is_none());
        drop(first);
        assert!(alone(open(), &path, ["b"]).unwrap().is_none());
        drop(second);
        let alone = alone(open(), &path, ["a", "b"]).unwrap().unwrap();
        assert_eq!(hold(open(), &path, ["b"], now).unwrap_err().errno(), Some(Errno::ETIMEDOUT as i32));
        drop(hold(open(), &path, ["c"], now).unwrap());
        drop(alone);
        drop(hold(open(), &path, ["b"], now).unwrap());
    }
}
