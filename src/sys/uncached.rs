//! Reads and writes of block devices past the page cache (`O_DIRECT`), of any bytes: what the cache holds of a device does not follow
//! what other hosts, or this one through another device, have written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

/// What reads past the page cache are a multiple of, at their offset, length and address: no device has larger sectors.
const PAGE: u64 = 4096;

/// Bytes of the smallest sector of a device.
const SECTOR: usize = 512;

/// Bytes that are copied for one write, at most.
pub const STEP: usize = 1 << 20;

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
    let len = (before + buf.len()).next_multiple_of(PAGE as usize);
    let mut bytes = vec![0; len + PAGE as usize];
    let start = bytes.as_ptr().align_offset(PAGE as usize);
    let aligned = &mut bytes[start..start + len];
    let (mut done, wanted) = (0, before + buf.len());
    while done < wanted {
        match file.read_at(&mut aligned[done..], offset - before as u64 + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // A device may give less; what follows a whole sector only can be asked for again.
            Ok(n) => done += if done + n < wanted { n / SECTOR * SECTOR } else { n },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buf.copy_from_slice(&aligned[before..wanted]);
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
    let mut buffer = vec![0; len + PAGE as usize];
    let start = buffer.as_ptr().align_offset(PAGE as usize);
    let aligned = &mut buffer[start..start + len];
    let first = offset - before as u64;
    if len != bytes.len() {
        read(file, aligned, first)?;
    }
    aligned[before..before + bytes.len()].copy_from_slice(bytes);
    file.write_all_at(aligned, first)
}
