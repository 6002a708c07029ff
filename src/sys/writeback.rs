//! Large files that are written once: the kernel begins to put them on storage while they are still written, and forgets them
//! afterwards.
//!
//! Without this, a file stays in memory until the sync at its end: it takes the memory of everything else on the host, and
//! the storage idles until the kernel runs short or the sync begins.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

/// Bytes that are on their way to storage before a writer waits. A disk array of 2 GB/s has done these in 16 ms.
const MOST: u64 = 32 << 20;

/// Puts a file on storage while it is written. Any number of threads may use it. What was written is durable after a sync of the
/// file, not before.
#[derive(Debug)]
pub struct Writeback<'a> {
    file: &'a File,
    begun: Mutex<Begun>,
}

/// The stretches, each with its length, whose way to storage has begun, the oldest first.
#[derive(Debug, Default)]
struct Begun {
    stretches: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl<'a> Writeback<'a> {
    pub fn new(file: &'a File) -> Writeback<'a> {
        Writeback { file, begun: Mutex::new(Begun::default()) }
    }

    /// Says that a stretch was written. Waits for earlier ones while too much is on its way.
    ///
    /// # Errors
    /// The system's error if the storage fails. The kernel may tell it only once: a later sync of the file may succeed although
    /// bytes are lost.
    pub fn wrote(&self, offset: u64, length: u64) -> io::Result<()> {
        begin(self.file, offset, length)?;
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.stretches.push_back((offset, length));
        begun.bytes += length;
        let mut old = Vec::new();
        while begun.bytes > MOST
            && let Some((offset, length)) = begun.stretches.pop_front()
        {
            begun.bytes -= length;
            old.push((offset, length));
        }
        drop(begun);
        for (offset, length) in old {
            wait(self.file, offset, length)?;
            // A file system that keeps the pages does no harm.
            let _ = posix_fadvise(self.file, offset as i64, length as i64, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        Ok(())
    }
}

/// Makes the kernel begin to put a stretch on storage. What was written is durable after a sync of the file, not before.
///
/// # Errors
/// The system's error if the storage fails. The kernel may tell it only once: a later sync of the file may succeed although
/// bytes are lost.
pub fn begin(file: &File, offset: u64, length: u64) -> io::Result<()> {
    range(file, offset, length, libc::SYNC_FILE_RANGE_WRITE)
}

fn wait(file: &File, offset: u64, length: u64) -> io::Result<()> {
    const WAIT: libc::c_uint =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    range(file, offset, length, WAIT)
}

fn range(file: &File, offset: u64, length: u64, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes a descriptor, which is open, and numbers.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), offset as i64, length as i64, flags) };
    match Errno::result(done) {
        Ok(_) => Ok(()),
        // The sync at the end does it all, where the kernel or a filter of system calls has no such call.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL | Errno::ESPIPE | Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;

    /// Whether a byte of a file is in memory.
    fn is_cached(file: &File, offset: u64) -> bool {
        let mut byte = [0];
        preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT).is_ok()
    }

    #[test]
    fn what_was_written_is_there_and_no_longer_in_memory() {
        const STEP: u64 = 4 << 20;
        let file = tempfile::tempfile().unwrap();
        let writeback = Writeback::new(&file);
        let bytes = |step: u64| vec![step as u8 + 1; STEP as usize];
        for step in 0..12 {
            file.write_all_at(&bytes(step), step * STEP).unwrap();
            writeback.wrote(step * STEP, STEP).unwrap();
        }
        assert_eq!(writeback.begun.lock().unwrap().bytes, MOST, "the first were waited for");
        if fstatfs(&file).unwrap().filesystem_type() != TMPFS_MAGIC {
            assert!(!is_cached(&file, STEP / 2) && is_cached(&file, 11 * STEP + STEP / 2));
        }
        for step in 0..12 {
            let mut read = vec![0; STEP as usize];
            file.read_exact_at(&mut read, step * STEP).unwrap();
            assert!(read == bytes(step), "{step}");
        }
    }
}
