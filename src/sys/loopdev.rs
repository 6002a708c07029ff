//! Loop devices: a file as a block device. The kernel is the only record of what is attached.
//!
//! ABI: Linux `include/uapi/linux/loop.h`. `LOOP_CONFIGURE` (5.8) sets a device up in one step; where the
//! kernel lacks it, `LOOP_SET_FD` then `LOOP_SET_STATUS64` do, and a kill between the two leaves a device
//! that works, without direct I/O: found by its backing file like any other.
//!
//! A number is no identity: as soon as a device is freed, another process may take its number for another file. So every
//! step that changes a device goes through one descriptor, which is compared with the file that the device is expected to
//! have ([`Backing`]). The kernel keeps that file as long as the descriptor is open: a detach, by whomever, is put off
//! until the last close.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::types::Done;

const CONTROL: &str = "/dev/loop-control";
const SYSFS: &str = "/sys/block";
/// The filesystem of an image server of this package: its first directory, as the kernel shows it in the path of a backing file.
pub const SERVED: &str = "sm-datapath";

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

nix::ioctl_write_int_bad!(loop_set_fd, 0x4C00);
nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
nix::ioctl_write_ptr_bad!(loop_set_status64, 0x4C04, LoopInfo64);
nix::ioctl_read_bad!(loop_get_status64, 0x4C05, LoopInfo64);
nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);
nix::ioctl_write_int_bad!(loop_set_direct_io, 0x4C08);
nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);
nix::ioctl_write_int_bad!(loop_ctl_add, 0x4C80);
nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);

/// A file's identity, whatever path leads to it.
pub type FileId = (u64, u64);

/// The mark that tells the file of a loop device from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing<'a> {
    /// The file's identity, whatever its name is by now.
    File(FileId),
    /// Its path as the kernel shows it. For files of a FUSE filesystem, whose server would be asked for an identity and
    /// may not answer.
    Path(&'a Path),
}

impl Backing<'_> {
    /// Whether the open device has this file. If so, it has as long as it stays open.
    fn is_of(self, device: &File, name: &str) -> bool {
        match self {
            Backing::File(id) => status_of(device).is_ok_and(|info| info.file_id() == id),
            Backing::Path(path) => backing_of(name).is_ok_and(|found| found == path),
        }
    }
}

/// Device and inode of an open file. `path` is for the error.
///
/// # Errors
/// [`Error::Io`] if the file cannot be examined.
pub fn id(file: &File, path: &Path) -> Result<FileId> {
    let meta = file.metadata().map_err(Error::io("examine", path))?;
    Ok((meta.dev(), meta.ino()))
}

/// Device and inode of the file that a loop device shows.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened or has no file.
pub fn file_of(device: &Path) -> Result<FileId> {
    status(device).map(|info| info.file_id()).map_err(Error::io("ask for the file of", device))
}

/// The loop devices of this host that have a backing file, keyed by that file's path as the kernel
/// shows it. One pass over sysfs; needs no privilege.
///
/// # Errors
/// [`Error::Io`] if sysfs cannot be listed, or a device's backing file cannot be read for another reason than that the
/// device has none.
pub fn attached() -> Result<HashMap<PathBuf, Vec<String>>> {
    let mut found: HashMap<PathBuf, Vec<String>> = HashMap::new();
    let entries = match fs::read_dir(SYSFS) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other.map_err(Error::io("list", SYSFS))?,
    };
    for entry in entries {
        let name = entry.map_err(Error::io("list", SYSFS))?.file_name();
        let Some(name) = name.to_str().filter(|n| n.starts_with("loop")) else { continue };
        match backing_of(name) {
            Ok(path) => found.entry(path).or_default().push(name.to_owned()),
            // It has none, or lost it just now.
            Err(e)
                if matches!(
                    e.raw_os_error().map(Errno::from_raw),
                    Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO)
                ) => {}
            // A device whose backing file can't be read may be attached all the same.
            Err(e) => return Err(Error::io("read", backing_file(name))(e)),
        }
    }
    Ok(found)
}

/// Whether this is the backing file of a device over a disk that an image server of this package shows.
pub fn is_served(backing: &Path) -> bool {
    backing.starts_with(Path::new("/").join(SERVED))
}

/// The loop devices over disks that image servers of this package show. I/O on one of them may wait for the end of a change.
///
/// # Errors
/// Those of [`attached`].
pub fn served() -> Result<Vec<PathBuf>> {
    let of_server = attached()?.into_iter().filter(|(backing, _)| is_served(backing));
    Ok(of_server.flat_map(|(_, names)| names).map(|name| Path::new("/dev").join(name)).collect())
}

/// Whether one of the loop devices may be over the file at `path`, by the names of their backing files. If not, the file
/// need not be examined for [`find`], which on a network filesystem costs a request to the server.
pub fn may_hold(devices: &HashMap<PathBuf, Vec<String>>, path: &Path) -> bool {
    devices.keys().any(|backing| backing.file_name() == path.file_name())
}

/// The loop device over the file `wanted`, among the ones whose backing file has the name of `path`.
/// Where this user may open the device, the file's identity decides; else its path.
pub fn find(devices: &HashMap<PathBuf, Vec<String>>, path: &Path, wanted: FileId) -> Option<PathBuf> {
    devices.iter().filter(|(backing, _)| backing.file_name() == path.file_name()).find_map(|(backing, names)| {
        names.iter().map(|name| Path::new("/dev").join(name)).find(|device| match status(device) {
            Ok(info) => info.file_id() == wanted,
            Err(_) => backing == path,
        })
    })
}

/// Makes a loop device over `file`, with direct I/O where the filesystem allows it.
///
/// # Errors
/// [`Error::DeviceInUse`] when other processes take or hold every free device that is tried.
pub fn attach(file: &File, path: &Path, read_only: bool) -> Result<PathBuf> {
    attach_with(file, path, LO_FLAGS_DIRECT_IO | if read_only { LO_FLAGS_READ_ONLY } else { 0 })
}

/// Makes a loop device with sectors of 512 bytes over a block device with larger ones. A part of a sector is written by the page
/// cache: a write is on the device below after a flush.
///
/// # Errors
/// As [`attach`].
pub fn attach_in_small_sectors(device: &File, path: &Path) -> Result<PathBuf> {
    attach_with(device, path, 0)
}

fn attach_with(file: &File, path: &Path, flags: u32) -> Result<PathBuf> {
    /// Devices that are tried before it is an error.
    const ATTEMPTS: usize = 64;
    let control = open(Path::new(CONTROL), true)?;
    let mut refused = Vec::new();
    while refused.len() < ATTEMPTS {
        let number = free(&control, &refused)?;
        let device = node(number);
        let loop_file = open(&device, true)?;
        match set_up(loop_file.as_raw_fd(), file.as_raw_fd(), path, flags) {
            Ok(()) => return Ok(device),
            // Another process took it between the two calls, or has it open exclusively without a file.
            Err(Errno::EBUSY) => refused.push(number),
            Err(errno) => return Err(Error::sys("set up a loop device over", path)(errno)),
        }
    }
    let (device, tried) = (node(refused[0]), format!("so are {} other free loop devices", ATTEMPTS - 1));
    let holder = blockdev::openers(&device).unwrap_or_else(|| "a process that the system does not name".to_owned());
    Err(Error::DeviceInUse {
        device: device.display().to_string(),
        holder: format!("{holder} has it open, and {tried}"),
    })
}

/// The number of a device without a file, other than those that were `refused`: the kernel names the lowest, whoever has
/// it open.
fn free(control: &File, refused: &[i32]) -> Result<i32> {
    // SAFETY: the ioctl takes no argument and returns a number.
    let found = unsafe { loop_ctl_get_free(control.as_raw_fd()) };
    let found = found.map_err(Error::sys("find a free loop device with", CONTROL))?;
    if !refused.contains(&found) {
        return Ok(found);
    }
    let is_free = |number: &i32| !refused.contains(number) && !backing_file(&format!("loop{number}")).exists();
    let number = (0..).find(is_free).expect("there are more numbers than devices");
    if !Path::new(SYSFS).join(format!("loop{number}")).exists() {
        // SAFETY: the ioctl takes a number.
        match unsafe { loop_ctl_add(control.as_raw_fd(), number) } {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Error::sys("make another loop device with", CONTROL)(errno)),
        }
    }
    Ok(number)
}

fn node(number: i32) -> PathBuf {
    format!("/dev/loop{number}").into()
}

fn set_up(device: RawFd, file: RawFd, path: &Path, flags: u32) -> Result<(), Errno> {
    let mut info = LoopInfo64::empty();
    info.flags = flags;
    let name = path.as_os_str().as_encoded_bytes();
    let kept = name.len().min(info.file_name.len() - 1);
    info.file_name[..kept].copy_from_slice(&name[..kept]);
    let config = LoopConfig { fd: file as u32, block_size: 512, info, reserved: [0; 8] };
    // SAFETY: `config` is the structure the ioctl reads and lives until it returns.
    match unsafe { loop_configure(device, &config) } {
        Err(Errno::EINVAL | Errno::ENOTTY | Errno::ENOSYS) => {}
        other => return other.map(drop),
    }
    // SAFETY: both descriptors are open.
    unsafe { loop_set_fd(device, file) }?;
    // Read-only follows from how the file was opened; the flag can't be set here.
    let before = LoopInfo64 { flags: 0, ..config.info };
    // SAFETY: `before` is the structure the ioctl reads and lives until it returns.
    if let Err(errno) = unsafe { loop_set_status64(device, &before) } {
        // SAFETY: the ioctl takes no argument.
        let _ = unsafe { loop_clr_fd(device) };
        return Err(errno);
    }
    if flags & LO_FLAGS_DIRECT_IO != 0 {
        // Not every filesystem has direct I/O; without it the device works all the same.
        // SAFETY: the ioctl takes a number.
        let _ = unsafe { loop_set_direct_io(device, 1) };
    }
    Ok(())
}

/// Makes the device as large as its file is now. Does nothing if the device has another file by now, or none. Idempotent.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened or the kernel refuses.
pub fn update_size(device: &Path, backing: Backing) -> Result<()> {
    let Some(file) = held(device, backing)? else { return Ok(()) };
    // SAFETY: the ioctl takes no argument.
    unsafe { loop_set_capacity(file.as_raw_fd()) }.map_err(Error::sys("update the size of", device)).map(drop)
}

/// The device, open, if it has this file; then it has as long as the answer lives.
fn held(device: &Path, backing: Backing) -> Result<Option<File>> {
    let gone = [Errno::ENOENT, Errno::ENXIO, Errno::ENODEV].map(|errno| errno as i32);
    let file = match open(device, false) {
        Err(e) if e.errno().is_some_and(|errno| gone.contains(&errno)) => return Ok(None),
        other => other?,
    };
    let is_device = file.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
    Ok(Some(file).filter(|file| is_device && backing.is_of(file, base(device))))
}

/// The outcome of [`detach`].
pub enum Detached {
    Done(Done),
    /// Still in use, by these.
    Busy(String),
}

/// Frees a loop device, if it has this file. Idempotent; a device that another process uses for another file by now is
/// left alone.
///
/// The kernel puts the request off while anybody else has the device open: then the request is taken back and the holders
/// are named. Programs that look for filesystems (udev, blkid, mount) open every device for a moment, so they are waited
/// for.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened, or the kernel refuses to free it. A device in use is no error but
/// [`Detached::Busy`].
pub fn detach(device: &Path, backing: Backing) -> Result<Detached> {
    const PATIENCE: Duration = Duration::from_secs(2);
    /// The errors with which a FUSE filesystem answers if its server is dead.
    const DEAD: [Errno; 2] = [Errno::ENOTCONN, Errno::ECONNABORTED];
    let until = Instant::now() + PATIENCE;
    let Some(file) = held(device, backing)? else { return Ok(Detached::Done(Done::Already)) };
    if let Some(user) = blockdev::claimed(device) {
        return Ok(Detached::Busy(user));
    }
    let mut pause = Duration::from_millis(1);
    loop {
        // SAFETY: the ioctl takes no argument.
        match unsafe { loop_clr_fd(file.as_raw_fd()) } {
            // ENXIO: the kernel freed it, or does when we close it.
            Ok(_) | Err(Errno::ENXIO) => {}
            Err(errno) => return Err(Error::sys("free", device)(errno)),
        }
        if matches!(status_of(&file), Err(e) if e.raw_os_error() == Some(Errno::ENXIO as i32)) {
            break;
        }
        let holder = blockdev::claimed(device).or_else(|| blockdev::openers(device));
        if !blockdev::is_passing(holder.as_deref()) || Instant::now() >= until {
            match keep(&file, device) {
                // A device whose server is dead goes with its last holder.
                Err(e) if e.errno().is_some_and(|errno| DEAD.contains(&Errno::from_raw(errno))) => {}
                other => other?,
            }
            let unnamed = || "a process that the system does not name".to_owned();
            return Ok(Detached::Busy(holder.unwrap_or_else(unnamed)));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    drop(file);
    // Linux 5.14 to 5.17 free it a moment after the last close.
    while Instant::now() < until && held(device, backing)?.is_some() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Detached::Done(Done::Changed))
}

/// Takes a detach back that was put off.
fn keep(file: &File, device: &Path) -> Result<()> {
    let mut info = status_of(file).map_err(Error::io("examine", device))?;
    info.flags &= !LO_FLAGS_AUTOCLEAR;
    // SAFETY: `info` is the structure the ioctl reads and lives until it returns.
    unsafe { loop_set_status64(file.as_raw_fd(), &info) }.map_err(Error::sys("keep", device)).map(drop)
}

fn status(device: &Path) -> io::Result<LoopInfo64> {
    status_of(&OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(device)?)
}

/// ENXIO: it has no file. The filesystem of the file is asked, so this waits for the server of a FUSE filesystem.
fn status_of(device: &File) -> io::Result<LoopInfo64> {
    let mut info = LoopInfo64::empty();
    // SAFETY: `info` is the structure the ioctl fills and lives until it returns.
    unsafe { loop_get_status64(device.as_raw_fd(), &mut info) }?;
    Ok(info)
}

/// `lo_device` is the kernel's `huge_encode_dev`, which for minors below 2^20 is what stat(2) reports.
fn kernel_to_stat_dev(device: u64) -> u64 {
    nix::sys::stat::makedev((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00))
}

fn open(path: &Path, write: bool) -> Result<File> {
    OpenOptions::new().read(true).write(write).open(path).map_err(Error::io("open", path))
}

fn base(device: &Path) -> &str {
    device.file_name().and_then(|n| n.to_str()).unwrap_or("")
}

/// The path of the device's file, as the kernel shows it.
fn backing_of(name: &str) -> io::Result<PathBuf> {
    let text = fs::read(backing_file(name))?;
    Ok(PathBuf::from(OsStr::from_bytes(text.strip_suffix(b"\n").unwrap_or(&text))))
}

fn backing_file(name: &str) -> PathBuf {
    Path::new(SYSFS).join(name).join("loop/backing_file")
}

impl LoopInfo64 {
    fn file_id(&self) -> FileId {
        (kernel_to_stat_dev(self.device), self.inode)
    }

    fn empty() -> Self {
        LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}
