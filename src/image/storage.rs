//! The storage of an image: a file or a block device, read and written at offsets.
//!
//! [`Storage`] is a trait and not a `File`, so that the crash tests can stand a disk in its place that loses what was not
//! synced. Nothing here knows a format.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::unistd::{Whence, lseek64};

use crate::error::{Error, Result};
use crate::sys::writeback;
use crate::types::Mode;

/// A file or a block device that holds one image. Offsets and lengths are bytes.
pub trait Storage: Send + Sync + fmt::Debug {
    /// The path that errors name.
    fn path(&self) -> &Path;
    /// Length of the file, or size of the device.
    ///
    /// # Errors
    /// The system's error, such as that the server is gone.
    fn size(&self) -> io::Result<u64>;
    /// Whether there are `bytes` bytes at least, or were when the storage was opened.
    ///
    /// # Errors
    /// As [`Storage::size`].
    fn had(&self, bytes: u64) -> io::Result<bool> {
        Ok(self.size()? >= bytes)
    }
    /// A device has a fixed size, and what was never written is not zero.
    fn is_device(&self) -> bool;
    /// Fills `buf` up to the end of the storage; returns how much that was.
    ///
    /// # Errors
    /// The system's error. The end of the storage is none.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes`. A file grows as needed.
    ///
    /// # Errors
    /// The system's error, such as a full filesystem. A part of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Sets the length of a file. A device is left alone.
    ///
    /// # Errors
    /// The system's error, such as a full filesystem.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Puts all earlier writes on stable storage before it returns `Ok`.
    ///
    /// # Errors
    /// The system's error. Earlier writes may be lost then, also if a later sync succeeds.
    fn sync(&self) -> io::Result<()>;
    /// Has the system begin to put a stretch on stable storage, so that there is less to wait for in [`Storage::sync`].
    ///
    /// # Errors
    /// The system's error. Earlier writes may be lost then, also if a later sync succeeds.
    fn begin_sync(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    /// Makes the range read as zeros and gives its space back. `false`: not possible here, nothing happened.
    /// Does not change the length of a file.
    ///
    /// # Errors
    /// The system's error, unless it says that holes are not supported.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool>;
    /// Where the first data at or after `offset` starts, `None` if only holes follow up to `end`. Storage
    /// that knows of no holes says `offset`.
    ///
    /// # Errors
    /// The system's error, unless it says that holes are not supported.
    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<u64>> {
        Ok((offset < end).then_some(offset))
    }
    /// Where the data that starts at `offset` ends, at most `end`.
    ///
    /// # Errors
    /// The system's error, unless it says that holes are not supported.
    fn next_hole(&self, _offset: u64, end: u64) -> io::Result<u64> {
        Ok(end)
    }
    /// The file below, for copies that stay in the kernel.
    fn file(&self) -> Option<&File> {
        None
    }
}

/// The [`Storage`] in a regular file or on a block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    path: PathBuf,
    device_size: Option<u64>,
    /// Length when it was opened, 0 if nobody looked. A file may have another length now.
    length_then: u64,
    no_punch: AtomicBool,
}

impl FileStorage {
    /// Takes an open file, which may have no name yet (`O_TMPFILE`); `path` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] if it is neither a regular file nor a block device.
    pub fn new(file: File, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let kind = file.metadata().map_err(Error::io("stat", &path))?.file_type();
        let device_size = if kind.is_block_device() {
            Some((&file).seek(SeekFrom::End(0)).map_err(Error::io("find the size of", &path))?)
        } else if kind.is_file() {
            None
        } else {
            return Err(Error::Invalid {
                what: "image",
                value: path.display().to_string(),
                expected: "expected a regular file or a block device".to_owned(),
            });
        };
        Ok(FileStorage { device_size, ..FileStorage::of_regular(file, path) })
    }

    /// Takes a file that the caller knows to be a regular one: it is not examined again.
    pub fn of_regular(file: File, path: impl Into<PathBuf>) -> Self {
        let no_punch = AtomicBool::new(false);
        FileStorage { file, path: path.into(), device_size: None, length_then: 0, no_punch }
    }

    /// Takes a regular file of this length, as the caller found it when it opened the file.
    pub fn of_length(file: File, path: impl Into<PathBuf>, length: u64) -> Self {
        FileStorage { length_then: length, ..FileStorage::of_regular(file, path) }
    }

    /// Opens what exists; never creates, never truncates.
    ///
    /// # Errors
    /// As [`FileStorage::new`].
    pub fn open(path: impl Into<PathBuf>, mode: Mode) -> Result<Self> {
        let path = path.into();
        let file = OpenOptions::new().read(true).write(mode == Mode::ReadWrite).open(&path);
        Self::new(file.map_err(Error::io("open", &path))?, path)
    }
}

impl Storage for FileStorage {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> io::Result<u64> {
        match self.device_size {
            Some(size) => Ok(size),
            None => Ok(self.file.metadata()?.len()),
        }
    }

    fn had(&self, bytes: u64) -> io::Result<bool> {
        Ok(self.length_then >= bytes || self.size()? >= bytes)
    }

    fn is_device(&self) -> bool {
        self.device_size.is_some()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        if self.is_device() { Ok(()) } else { self.file.set_len(size) }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn begin_sync(&self, offset: u64, len: u64) -> io::Result<()> {
        writeback::begin(&self.file, offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        if self.no_punch.load(Relaxed) {
            return Ok(false);
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, flags, to_off(offset)?, to_off(len)?) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::EINVAL) => {
                self.no_punch.store(true, Relaxed);
                Ok(false)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<u64>> {
        if self.is_device() || offset >= end {
            return Ok((offset < end).then_some(offset));
        }
        match lseek64(&self.file, to_off(offset)?, Whence::SeekData) {
            Ok(found) => Ok(u64::try_from(found).ok().filter(|found| *found < end)),
            Err(Errno::ENXIO) => Ok(None),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(offset)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn next_hole(&self, offset: u64, end: u64) -> io::Result<u64> {
        if self.is_device() {
            return Ok(end);
        }
        match lseek64(&self.file, to_off(offset)?, Whence::SeekHole) {
            Ok(found) => Ok(u64::try_from(found).unwrap_or(end).clamp(offset, end)),
            Err(Errno::ENXIO | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(end),
            Err(errno) => Err(errno.into()),
        }
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

fn to_off(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The operations of [`Storage`] with errors that name it.
impl dyn Storage + '_ {
    pub(crate) fn fail(&self, op: &'static str) -> impl FnOnce(io::Error) -> Error + use<'_> {
        move |source| Error::io(op, self.path())(source)
    }

    pub(crate) fn damaged(&self, what: impl Into<String>) -> Error {
        Error::Damaged { path: self.path().to_owned(), what: what.into() }
    }

    /// Whether both are one file or one device, by whatever names they were opened.
    pub(crate) fn is_same(&self, other: &dyn Storage) -> Result<bool> {
        let (Some(mine), Some(theirs)) = (self.file(), other.file()) else {
            return Ok(std::ptr::addr_eq(std::ptr::from_ref(self), std::ptr::from_ref(other)));
        };
        let mine = mine.metadata().map_err(self.fail("examine"))?;
        let theirs = theirs.metadata().map_err(other.fail("examine"))?;
        let id = |meta: &std::fs::Metadata| match meta.file_type().is_block_device() {
            true => (true, meta.rdev(), 0),
            false => (false, meta.dev(), meta.ino()),
        };
        Ok(id(&mine) == id(&theirs))
    }

    pub(crate) fn len(&self) -> Result<u64> {
        self.size().map_err(self.fail("find the size of"))
    }

    /// Reads what there is and zeros past the end: what a crash left unwritten at the end of a file is zero.
    pub(crate) fn get(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let got = self.read_at(buf, offset).map_err(self.fail("read"))?;
        buf[got..].fill(0);
        Ok(())
    }

    /// Reads `buf.len()` bytes, which must be there.
    pub(crate) fn get_exact(&self, buf: &mut [u8], offset: u64, what: &str) -> Result<()> {
        let got = self.read_at(buf, offset).map_err(self.fail("read"))?;
        if got == buf.len() { Ok(()) } else { Err(self.damaged(format!("{what} at {offset} is cut off"))) }
    }

    pub(crate) fn put(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.write_at(bytes, offset).map_err(self.fail("write"))
    }

    pub(crate) fn resize_to(&self, size: u64) -> Result<()> {
        self.set_size(size).map_err(self.fail("truncate"))
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.sync().map_err(self.fail("sync"))
    }

    /// Makes the range zero, by a hole where possible.
    pub(crate) fn zero(&self, offset: u64, len: u64) -> Result<()> {
        const ZEROS: &[u8] = &[0; 1 << 16];
        if len == 0 || self.punch(offset, len).map_err(self.fail("discard in"))? {
            return Ok(());
        }
        let mut done = 0;
        while done < len {
            let step = (len - done).min(ZEROS.len() as u64);
            self.put(&ZEROS[..step as usize], offset + done)?;
            done += step;
        }
        Ok(())
    }

    /// Copies `len` bytes to other storage, inside the kernel where that works: file systems that can then
    /// share the extents instead of copying. `buf` is scratch. Past the end of this storage there are zeros.
    pub(crate) fn copy_to(&self, offset: u64, len: u64, to: &dyn Storage, at: u64, buf: &mut Vec<u8>) -> Result<()> {
        let mut done = 0;
        if let (Some(source), Some(target)) = (self.file(), to.file())
            && !self.is_device()
            && !to.is_device()
        {
            let overflow = || self.damaged(format!("offset {offset} is out of range"));
            let mut from = i64::try_from(offset).map_err(|_| overflow())?;
            let mut into = i64::try_from(at).map_err(|_| overflow())?;
            while done < len {
                match copy_file_range(source, Some(&mut from), target, Some(&mut into), (len - done) as usize) {
                    Ok(0) => break,
                    Ok(n) => done += n as u64,
                    Err(Errno::EINTR) => {}
                    // Across file systems (before 5.3), on file systems without it, and on seccomp's word.
                    Err(Errno::EXDEV | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EPERM) => break,
                    Err(errno) => return Err(to.fail("copy into")(errno.into())),
                }
            }
        }
        while done < len {
            let step = (len - done).min(1 << 20);
            buf.resize(step as usize, 0);
            self.get(buf, offset + done)?;
            to.put(buf, at + done)?;
            done += step;
        }
        Ok(())
    }
}
