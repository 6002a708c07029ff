//! The bytes of a disk, whatever its image looks like: to be read in any order, or as they come.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SECTOR;
use super::storage::Storage;
use crate::error::{Error, Result};
use crate::sys::copy;

/// A disk to be read. Offsets and lengths are bytes.
pub trait Disk {
    /// Bytes the guest sees.
    fn size(&self) -> u64;

    /// The first stretch at or after `from` that may hold something else than zeroes: where it starts and ends.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Damaged`] if a table of the image cannot be read.
    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>>;

    /// Fills `buf`, which lies within the disk and is a whole number of sectors.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage cannot be read; [`Error::Damaged`] if the image contradicts itself there.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Bytes from `offset` on, at most `len`, of which the tables of a damaged image say that all of them are lost. 0: reading them
    /// tells.
    fn lost_at(&self, _offset: u64, _len: u64) -> u64 {
        0
    }

    /// The disk, if its bytes are those of its storage.
    fn as_raw(&self) -> Option<&RawImage> {
        None
    }
}

impl<D: Disk + ?Sized> Disk for &D {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        (**self).next_data(from)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        (**self).read_at(buf, offset)
    }

    fn lost_at(&self, offset: u64, len: u64) -> u64 {
        (**self).lost_at(offset, len)
    }

    fn as_raw(&self) -> Option<&RawImage> {
        (**self).as_raw()
    }
}

/// A disk to be filled. Bytes that are not written read as zeroes.
pub trait DiskWriter {
    /// Writes `bytes` at a byte of the disk. Offsets do not go back. Not durable.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage is full or fails.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Writes what is still held back. Not durable yet.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage is full or fails.
    fn finish(self: Box<Self>) -> Result<()>;

    /// The storage, if its bytes are those of the disk.
    fn as_raw(&self) -> Option<&dyn Storage> {
        None
    }
}

/// An image and its parents, open for a server; any number of threads use it. Offsets and lengths are bytes and
/// multiples of 512.
pub trait Served: Send + Sync {
    /// Bytes the guest sees.
    fn virtual_size(&self) -> u64;

    /// The images of the chain, the leaf first.
    fn images(&self) -> Vec<PathBuf>;

    /// Fills `buf` with the disk from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::Io`] if an image of the chain cannot be read; [`Error::Damaged`] if one contradicts itself there.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Survives a crash after the next [`Served::flush`].
    ///
    /// # Errors
    /// [`Error::Io`] if the storage is full or fails, or an earlier sync failed; [`Error::Damaged`] if the image
    /// contradicts itself there.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Makes a range read as zeroes; allocates no more than it must.
    ///
    /// # Errors
    /// The errors of [`Served::write_at`].
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes everything written before survive a crash.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage is full or fails. After a failed sync every later write and flush fails, too.
    fn flush(&self) -> Result<()>;

    /// Flushes, and leaves the image as a closed one is.
    ///
    /// # Errors
    /// The errors of [`Served::flush`].
    fn close(self: Box<Self>) -> Result<()>;
}

/// A raw image: the bytes of its storage are those of the disk.
pub struct RawImage {
    storage: Arc<dyn Storage>,
    size: u64,
    data: Option<Vec<(u64, u64)>>,
}

impl RawImage {
    /// The length is rounded up to a whole sector.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(storage: Arc<dyn Storage>) -> Result<RawImage> {
        RawImage::with_data(storage, None)
    }

    /// `data`: the stretches outside of which the storage reads as zeroes, in order; `None`: the storage tells its holes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn with_data(storage: Arc<dyn Storage>, data: Option<Vec<(u64, u64)>>) -> Result<RawImage> {
        let size = storage.len()?.next_multiple_of(SECTOR);
        Ok(RawImage { storage, size, data })
    }
}

impl Disk for RawImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        if let Some(data) = &self.data {
            let found = data.get(data.partition_point(|(_, end)| *end <= from));
            let found = found.map(|(start, end)| (*(start.max(&from)), *(end.min(&self.size))));
            return Ok(found.filter(|(start, end)| start < end));
        }
        let fail = || self.storage.fail("find the data of");
        let Some(start) = self.storage.next_data(from, self.size).map_err(fail())? else {
            // Else what was cut off would be holes.
            return match self.storage.len()?.next_multiple_of(SECTOR) < self.size {
                true => Err(self.storage.damaged("became shorter while it was read")),
                false => Ok(None),
            };
        };
        let end = self.storage.next_hole(start, self.size).map_err(fail())?;
        Ok(Some((start, end)))
    }

    /// The last sector of a file that is not a whole number of them ends in zeroes.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.storage.get(buf, offset)
    }

    fn as_raw(&self) -> Option<&RawImage> {
        Some(self)
    }
}

impl RawImage {
    /// Makes the file `to`, which is as long or longer, share all extents of this one, where both are files of a filesystem that can
    /// do that. `false`: nothing happened.
    ///
    /// # Errors
    /// Those of [`copy::reflink`].
    pub fn reflink(&self, to: &dyn Storage) -> Result<bool> {
        match (self.storage.file(), to.file()) {
            (Some(from), Some(into)) if !self.storage.is_device() && !to.is_device() => {
                copy::reflink(from, into, to.path())
            }
            _ => Ok(false),
        }
    }
}

/// Fills a raw image. Its bytes go to stable storage while the next ones come.
pub struct RawWriter {
    storage: Arc<dyn Storage>,
    /// The stretch that was written last, from a byte to before another, and that the system does not put there yet.
    from: u64,
    end: u64,
}

impl RawWriter {
    /// Bytes after which the system is told: larger than what storage takes at once, and a small part of a disk.
    const STEP: u64 = 8 << 20;

    pub fn new(storage: Arc<dyn Storage>) -> RawWriter {
        RawWriter { storage, from: 0, end: 0 }
    }

    fn begin_sync(&mut self) -> Result<()> {
        let (from, end) = (self.from, self.end);
        self.from = end;
        if from == end { Ok(()) } else { self.storage.begin_sync(from, end - from).map_err(self.storage.fail("write")) }
    }
}

impl DiskWriter for RawWriter {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.storage.put(bytes, offset)?;
        if offset > self.end + RawWriter::STEP {
            self.begin_sync()?;
            self.from = offset;
        }
        self.end = offset + bytes.len() as u64;
        if self.end - self.from >= RawWriter::STEP { self.begin_sync() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.begin_sync()
    }

    fn as_raw(&self) -> Option<&dyn Storage> {
        Some(&*self.storage)
    }
}

/// Takes pieces of a disk: the offset and the bytes.
pub type Sink<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<()>;

/// Bytes that are read at once.
pub const PIECE: usize = 1 << 20;

/// Hands all of a disk that is not zero to `sink`, in order.
///
/// # Errors
/// The errors of [`Disk::next_data`], [`Disk::read_at`] and `sink`.
pub fn pieces(disk: &dyn Disk, sink: Sink) -> Result<()> {
    let mut buf = vec![0; PIECE];
    let mut at = 0;
    while let Some((start, end)) = disk.next_data(at)? {
        at = start - start % 512;
        while at < end {
            let len = PIECE.min((end.next_multiple_of(512).min(disk.size()) - at) as usize);
            disk.read_at(&mut buf[..len], at)?;
            without_zeroes(&buf[..len], at, sink)?;
            at += len as u64;
        }
    }
    Ok(())
}

/// Hands what comes from a pipe to `sink`, zeroes left out. Returns how many bytes came.
///
/// # Errors
/// [`Error::Io`] with `name` if reading fails; the errors of `sink`.
pub fn stream(input: &mut dyn Read, name: &Path, sink: Sink) -> Result<u64> {
    let mut buf = vec![0; PIECE];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < buf.len() {
            match input.read(&mut buf[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", name)(e)),
            }
        }
        if filled == 0 {
            return Ok(at);
        }
        let whole = filled.next_multiple_of(512);
        buf[filled..whole].fill(0);
        without_zeroes(&buf[..whole], at, sink)?;
        at += filled as u64;
    }
}

/// Passes on the parts of `bytes` that hold something.
///
/// # Errors
/// The errors of `sink`.
pub fn without_zeroes(bytes: &[u8], offset: u64, sink: Sink) -> Result<()> {
    const GRAIN: usize = 64 << 10;
    let mut start = None;
    for (n, grain) in bytes.chunks(GRAIN).enumerate() {
        let at = n * GRAIN;
        match (is_zero(grain), start) {
            (true, Some(from)) => {
                sink(offset + from as u64, &bytes[from..at])?;
                start = None;
            }
            (false, None) => start = Some(at),
            _ => {}
        }
    }
    match start {
        Some(from) => sink(offset + from as u64, &bytes[from..]),
        None => Ok(()),
    }
}

/// Whether all bytes are zeroes.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Compared with itself one byte on, which the library does a vector at a time.
    bytes.first().is_none_or(|first| *first == 0)
        && bytes[1.min(bytes.len())..] == bytes[..bytes.len().saturating_sub(1)]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn the_data_of_storage_that_tells_no_holes_is_what_was_told() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1000 << 10).unwrap();
        let storage = Arc::new(crate::image::storage::FileStorage::new(file, "x").unwrap());
        let told = vec![(0, 10 << 10), (64 << 10, 128 << 10), (960 << 10, 1024 << 10), (2048 << 10, 2049 << 10)];
        let disk = RawImage::with_data(storage, Some(told)).unwrap();
        let (mut at, mut found) = (0, Vec::new());
        while let Some((start, end)) = disk.next_data(at).unwrap() {
            found.push((start >> 10, end >> 10));
            at = end;
        }
        assert_eq!(found, [(0, 10), (64, 128), (960, 1000)]);
        assert_eq!(disk.next_data(100 << 10).unwrap(), Some((100 << 10, 128 << 10)));
    }

    #[test]
    fn an_image_that_was_cut_while_it_is_read_has_no_hole_there() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 64 << 10], 0).unwrap();
        file.set_len((1 << 20) + 7).unwrap();
        let storage = Arc::new(crate::image::storage::FileStorage::new(file.try_clone().unwrap(), "x").unwrap());
        let disk = RawImage::new(storage).unwrap();
        assert_eq!(disk.next_data(0).unwrap(), Some((0, 64 << 10)));
        assert_eq!(disk.next_data(64 << 10).unwrap(), None);
        file.set_len(512 << 10).unwrap();
        assert!(matches!(disk.next_data(64 << 10), Err(Error::Damaged { .. })));
    }

    /// Storage that takes so many bytes.
    fn file_of(bytes: &[u8]) -> Arc<crate::image::storage::FileStorage> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Arc::new(crate::image::storage::FileStorage::new(file, "x").unwrap())
    }

    #[test]
    fn what_a_raw_writer_was_given_is_there() {
        let to = file_of(&[]);
        let mut writer: Box<dyn DiskWriter> = Box::new(RawWriter::new(to.clone()));
        let mut expected = vec![0; 70 << 20];
        for (at, length) in
            [(0, 1 << 20), (1 << 20, 9 << 20), (40 << 20, 512), (41 << 20, 20 << 20), (69 << 20, 1 << 20)]
        {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            writer.write_at(&bytes, at as u64).unwrap();
            expected[at..at + length].copy_from_slice(&bytes);
        }
        writer.finish().unwrap();
        let mut found = vec![1; 70 << 20];
        assert_eq!(to.read_at(&mut found, 0).unwrap(), found.len());
        assert!(found == expected);
    }

    #[test]
    fn zeroes_are_left_out_and_nothing_else() {
        let mut bytes = vec![0; 300 << 10];
        bytes[70 << 10] = 1;
        bytes[299 << 10] = 2;
        let mut got = vec![0; bytes.len()];
        let mut passed = 0;
        without_zeroes(&bytes, 4096, &mut |offset, piece| {
            let at = offset as usize - 4096;
            got[at..at + piece.len()].copy_from_slice(piece);
            passed += piece.len();
            Ok(())
        })
        .unwrap();
        assert!(got == bytes);
        assert_eq!(passed, (64 + 44) << 10);
    }
}
