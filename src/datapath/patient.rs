//! Images as the server reads them: where asked, without waiting for the storage.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::libc;

use crate::image::vhd::{FileStorage, Storage};

thread_local! {
    static NO_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// A filesystem of an image can't tell what is in the page cache.
static CANNOT_TELL: AtomicBool = AtomicBool::new(false);

/// Reads of this thread fail with EAGAIN, as long as `io` runs, where they would wait and the filesystem can tell.
pub fn without_waiting<T>(io: impl FnOnce() -> T) -> T {
    NO_WAIT.set(true);
    let result = io();
    NO_WAIT.set(false);
    result
}

/// Whether [`without_waiting`] is heeded.
pub fn can_tell() -> bool {
    !CANNOT_TELL.load(Relaxed)
}

/// A place whose reads heed [`without_waiting`].
#[derive(Debug)]
pub struct Patient(pub FileStorage);

impl Storage for Patient {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.0.file() {
            Some(file) if NO_WAIT.get() && can_tell() => read_cached(file, buf, offset),
            _ => self.0.read_at(buf, offset),
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn is_device(&self) -> bool {
        self.0.is_device()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_size(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.0.punch(offset, len)
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<u64>> {
        self.0.next_data(offset, end)
    }

    fn next_hole(&self, offset: u64, end: u64) -> io::Result<u64> {
        self.0.next_hole(offset, end)
    }

    fn file(&self) -> Option<&File> {
        self.0.file()
    }
}

/// Reads the bytes that are in the page cache, up to the end of the file. `RWF_NOWAIT` is of Linux 4.14.
fn read_cached(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        let part = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let at = i64::try_from(offset + done as u64).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `part` is one buffer that lives, and is ours alone, until the call returns.
        match unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, at, libc::RWF_NOWAIT) } {
            // The end of the file; or, on Linux 5.9 and 5.10, a read that would have to wait. A read that may wait
            // finds out which.
            0 => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            got if got > 0 => done += got as usize,
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) => {
                    CANNOT_TELL.store(true, Relaxed);
                    return Err(io::Error::from_raw_os_error(libc::EAGAIN));
                }
                e => return Err(e),
            },
        }
    }
    Ok(done)
}
