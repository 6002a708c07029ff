//! Reads and writes of block devices past the page cache (`O_DIRECT`), of any bytes: what the cache holds of a device does not follow
//! what other hosts, or this one through another device, have written.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

/// What reads past the page cache are a multiple of, at their offset, length and address: no device has larger sectors.
pub const PAGE: u64 = 4096;

/// Bytes of the smallest sector of a device.
const SECTOR: usize = 512;

/// Bytes that are copied for one write, at most.
pub const STEP: usize = 1 << 20;

/// Bytes at such an address: [`read`] copies nothing into them.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Zeroes.
    pub fn new(len: usize) -> Buffer {
        let bytes = vec![0; len + PAGE as usize];
        Buffer { start: bytes.as_ptr().align_offset(PAGE as usize), bytes, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Opens a device for reads past the page cache, and for such writes as well.
///
/// # Errors
/// What the kernel says.
pub fn open(device: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_DIRECT).open(device)
}

/// Fills `buf` from a byte of a device that is open for reads past the page cache.
///
/// # Errors
/// What the device says; `UnexpectedEof` if it ends before.
pub fn read(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let before = (offset % PAGE) as usize;
    let wanted = before + buf.len();
    if before == 0 && wanted.is_multiple_of(PAGE as usize) && buf.as_ptr().align_offset(PAGE as usize) == 0 {
        return fill(file, buf, wanted, offset);
    }
    let mut bytes = Buffer::new(wanted.next_multiple_of(PAGE as usize));
    fill(file, &mut bytes, wanted, offset - before as u64)?;
    buf.copy_from_slice(&bytes[before..wanted]);
    Ok(())
}

/// Fills the first `wanted` bytes of what is aligned.
fn fill(file: &File, aligned: &mut [u8], wanted: usize, offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < wanted {
        match file.read_at(&mut aligned[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // A device may give less; what follows a whole sector only can be asked for again.
            Ok(n) => done += if done + n < wanted { n / SECTOR * SECTOR } else { n },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes bytes to a device that is open for writes past the page cache. Whole sectors are written by one call of the system.
///
/// # Errors
/// What the device says. Some of the bytes may be written then.
pub fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    match write_grains(file, bytes, offset, SECTOR as u64) {
        // Its sectors are larger.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => write_grains(file, bytes, offset, PAGE),
        other => other,
    }
}

fn write_grains(file: &File, bytes: &[u8], offset: u64, grain: u64) -> io::Result<()> {
    let before = (offset % grain) as usize;
    let len = (before + bytes.len()).next_multiple_of(grain as usize);
    let mut aligned = Buffer::new(len);
    let first = offset - before as u64;
    if len != bytes.len() {
        read(file, &mut aligned, first)?;
    }
    aligned[before..before + bytes.len()].copy_from_slice(bytes);
    file.write_all_at(&aligned, first)
}
