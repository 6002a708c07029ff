//! What device-mapper says of the device of a volume (`linux/dm-ioctl.h`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::kernel::CONTROL;

/// The beginning of the UUIDs of LVM's volumes; those of the group and of the volume follow, without hyphens.
pub const LVM: &str = "LVM-";

/// The device of a volume on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none.
    None,
    /// It has no table yet, or its I/O waits.
    Stuck,
    /// `open`: a process or the kernel has it open.
    Active { open: bool },
}

/// `struct dm_ioctl`.
#[repr(C)]
struct Request {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

// DM_DEV_STATUS
nix::ioctl_readwrite!(dev_status, 0xfd, 7, Request);

const SUSPENDED: u32 = 1 << 1;
const HAS_TABLE: u32 = 1 << 5;

/// The state of the device with a UUID.
///
/// # Errors
/// What the kernel says; a UUID that is too long.
pub fn state(uuid: &str) -> io::Result<State> {
    let control = File::options().read(true).write(true).open(CONTROL)?;
    let size = size_of::<Request>() as u32;
    let mut request = Request {
        version: [4, 0, 0],
        data_size: size,
        data_start: size,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
    };
    // A NUL ends it.
    let place = request.uuid[..128].get_mut(..uuid.len()).ok_or(io::ErrorKind::InvalidInput)?;
    place.copy_from_slice(uuid.as_bytes());
    // SAFETY: `request` is the structure that the ioctl reads and fills, has the size that it says, and lives until it returns.
    match unsafe { dev_status(control.as_raw_fd(), &mut request) } {
        Ok(_) if request.flags & SUSPENDED != 0 || request.flags & HAS_TABLE == 0 => Ok(State::Stuck),
        Ok(_) => Ok(State::Active { open: request.open_count > 0 }),
        Err(Errno::ENXIO) => Ok(State::None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_the_kernels() {
        assert_eq!(size_of::<Request>(), 312);
        assert_eq!(std::mem::offset_of!(Request, dev), 40);
        assert_eq!(std::mem::offset_of!(Request, uuid), 176);
    }
}
