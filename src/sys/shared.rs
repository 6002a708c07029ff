//! How much of a file other files share with it, as the filesystem's map of its extents tells.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, TMPFS_MAGIC, fstatfs};

use crate::error::{Error, Result};
use crate::sys::durable::is_unsupported;

/// Extents that one call asks for.
const MOST: usize = 128;

/// `struct fiemap_extent` of `linux/fiemap.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// `struct fiemap` of `linux/fiemap.h`, with room for extents behind it.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; MOST],
}

/// Bytes of `struct fiemap` without the extents, which the number of the request has in it.
const HEADER: usize = 32;
/// "Last extent in file."
const LAST: u32 = 0x1;
/// "Space shared with other files."
const SHARED: u32 = 0x2000;

nix::ioctl_readwrite_bad!(fiemap, nix::request_code_readwrite!(b'f', 11, HEADER), Map);

/// Bytes of a file that are shared with other files. `None`: the filesystem does not tell.
///
/// # Errors
/// [`Error::Io`] from the filesystem.
pub fn shared_bytes(file: &File, path: &Path) -> Result<Option<u64>> {
    let (mut shared, mut start) = (0, 0);
    loop {
        let extents = [Extent::default(); MOST];
        let mut map =
            Map { start, length: u64::MAX - start, flags: 0, mapped: 0, count: MOST as u32, reserved: 0, extents };
        // SAFETY: `map` has room for as many extents as its `count` says, and lives until the call returns.
        match unsafe { fiemap(file.as_raw_fd(), &raw mut map) } {
            Ok(_) => {}
            Err(errno) if is_unsupported(&errno.into()) => return Ok(None),
            Err(errno) => return Err(Error::sys("ask for the extents of", path)(errno)),
        }
        let found = &map.extents[..(map.mapped as usize).min(MOST)];
        shared += found.iter().filter(|extent| extent.flags & SHARED != 0).map(|extent| extent.length).sum::<u64>();
        match found.last() {
            Some(last) if last.flags & LAST == 0 && last.logical + last.length > start => {
                start = last.logical + last.length;
            }
            _ => return Ok(Some(shared)),
        }
    }
}

/// Whether the filesystem of a directory may have files that share extents. Those of which it is known that they have none
/// need not be asked file by file.
pub fn may_share(dir: impl AsFd) -> bool {
    const NONE: [FsType; 2] = [EXT4_SUPER_MAGIC, TMPFS_MAGIC];
    fstatfs(dir).map_or(true, |fs| !NONE.contains(&fs.filesystem_type()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_that_of_the_kernels_header() {
        assert_eq!(nix::request_code_readwrite!(b'f', 11, HEADER), 0xc020_660b);
        assert_eq!((size_of::<Extent>(), std::mem::offset_of!(Map, extents)), (56, HEADER));
    }

    #[test]
    fn a_file_of_its_own_shares_nothing() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(matches!(shared_bytes(&file, Path::new("x")).unwrap(), None | Some(0)));
    }
}
