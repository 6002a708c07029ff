//! Copying a file's contents: shared extents where the filesystem has them, else only what is allocated.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

use crate::error::{Error, Result};
use crate::sys::durable::is_unsupported;

nix::ioctl_write_int!(ficlone, 0x94, 9);

/// Called with bytes done and bytes to do, now and then.
pub type Progress<'a> = &'a dyn Fn(u64, u64);

/// Makes `to` share all extents of `from`, in constant time. `false`: this filesystem can't.
///
/// # Errors
/// [`Error::Io`] if the filesystem can share extents and fails: it is full, read-only or damaged.
pub fn reflink(from: &File, to: &File, path: &Path) -> Result<bool> {
    // SAFETY: the ioctl takes a descriptor as its argument; both are open.
    match unsafe { ficlone(to.as_raw_fd(), from.as_raw_fd() as u64) } {
        Ok(_) => Ok(true),
        Err(errno) if is_unsupported(&errno.into()) => Ok(false),
        Err(errno) => Err(Error::sys("clone", path)(errno)),
    }
}

/// Copies what `from` has allocated into the empty file `to` and gives it the same length; holes stay holes.
///
/// # Errors
/// [`Error::Io`] if `from` cannot be read or `to` cannot be written; [`Error::Damaged`] if `from` becomes shorter
/// meanwhile. `to` then holds a part.
pub fn sparse(from: &File, to: &File, path: &Path, progress: Progress) -> Result<()> {
    const STEP: u64 = 64 << 20;
    let meta = from.metadata().map_err(Error::io("examine", path))?;
    let total = (meta.blocks() * 512).min(meta.len());
    to.set_len(meta.len()).map_err(Error::io("copy", path))?;
    let (mut at, mut done) = (0, 0);
    // Holes that the filesystem can't show (NFS before 4.2) come as one range; the kernel would write their
    // zeroes, which we find and leave out.
    let shows_holes =
        next_data(from, 0, meta.len()).map_err(Error::io("find the data of", path))? != Some((0, meta.len()));
    let mut in_kernel = shows_holes || total == meta.len();
    while let Some((start, end)) = next_data(from, at, meta.len()).map_err(Error::io("find the data of", path))? {
        let mut here = start;
        while here < end {
            let wanted = (end - here).min(STEP);
            let copied = copy_some(from, to, here, wanted, &mut in_kernel).map_err(Error::io("copy", path))?;
            if copied == 0 {
                return Err(Error::Damaged {
                    path: path.to_owned(),
                    what: "became shorter while it was copied".to_owned(),
                });
            }
            here += copied;
            done += copied;
            progress(done.min(total), total);
        }
        at = end;
    }
    Ok(())
}

/// The next allocated range at or after `at`; a filesystem that knows no holes reports one range.
///
/// # Errors
/// The error of `lseek`. A filesystem that knows no holes is none.
pub fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match lseek64(file, at as i64, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL) => return Ok(Some((at, len))),
        Err(errno) => return Err(errno.into()),
    };
    let end = lseek64(file, start as i64, Whence::SeekHole)? as u64;
    Ok(Some((start, end.min(len))))
}

fn copy_some(from: &File, to: &File, at: u64, wanted: u64, in_kernel: &mut bool) -> io::Result<u64> {
    if *in_kernel {
        let (mut from_at, mut to_at) = (at as i64, at as i64);
        match nix::fcntl::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), wanted as usize) {
            Ok(copied) => return Ok(copied as u64),
            Err(Errno::EINTR) => return Err(Errno::EINTR.into()),
            Err(errno) if is_unsupported(&errno.into()) => *in_kernel = false,
            Err(errno) => return Err(errno.into()),
        }
    }
    let mut buffer = vec![0; wanted.min(1 << 20) as usize];
    let got = from.read_at(&mut buffer, at)?;
    write_data(to, &buffer[..got], at)?;
    Ok(got as u64)
}

/// Writes what is not zero into a file of zeroes.
fn write_data(to: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    const GRAIN: usize = 64 << 10;
    static ZEROES: [u8; GRAIN] = [0; GRAIN];
    for (i, grain) in bytes.chunks(GRAIN).enumerate() {
        if *grain != ZEROES[..grain.len()] {
            to.write_all_at(grain, at + (i * GRAIN) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_not_written() {
        let to = tempfile::tempfile().unwrap();
        to.set_len(1 << 20).unwrap();
        let mut bytes = vec![0; 1 << 20];
        bytes[300_000] = 7;
        write_data(&to, &bytes, 0).unwrap();
        let mut read = vec![1; 1 << 20];
        to.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
        assert!(to.metadata().unwrap().blocks() * 512 <= 64 << 10);
    }

    #[test]
    fn a_sparse_copy_has_the_bytes_and_the_holes() {
        let scratch = tempfile::tempdir().unwrap();
        let from = File::create_new(scratch.path().join("from")).unwrap();
        let from_path = scratch.path().join("from");
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(b"end", (50 << 20) + 7).unwrap();
        let from = File::open(&from_path).unwrap();
        let to = File::options().read(true).write(true).create_new(true).open(scratch.path().join("to")).unwrap();
        sparse(&from, &to, &from_path, &|_, _| {}).unwrap();
        let (a, b) = (std::fs::read(&from_path).unwrap(), std::fs::read(scratch.path().join("to")).unwrap());
        assert!(a == b, "contents differ");
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "holes were written");
    }
}
