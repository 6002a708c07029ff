//! Block devices: who holds one, how large it is, its write cache, zeroes on it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

use crate::error::{Error, Result};
use crate::sys::copy::Progress;
use crate::sys::{lio, nvmet, process};

nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
nix::ioctl_none_bad!(blkflsbuf, 0x1261);
nix::ioctl_write_ptr_bad!(blkroset, 0x125d, i32);
nix::ioctl_write_ptr_bad!(blkdiscard, 0x1277, [u64; 2]);

/// The device number of a block device, whatever name leads to it. `None`: there is no block device.
pub fn number(device: &Path) -> Option<u64> {
    fs::metadata(device).ok().filter(|meta| meta.file_type().is_block_device()).map(|meta| meta.rdev())
}

/// The device's directory in sysfs, a link.
pub fn sysfs(rdev: u64) -> PathBuf {
    format!("/sys/dev/block/{}:{}", nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev)).into()
}

/// The device number that a directory of sysfs tells.
pub fn number_in(dir: &Path) -> Option<u64> {
    let text = fs::read_to_string(dir.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The size of a block device, bytes.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened, or is no block device.
pub fn size(device: &Path) -> Result<u64> {
    let file = open(device, false)?;
    let mut bytes = 0;
    // SAFETY: `bytes` is the number that the ioctl fills and lives until it returns.
    unsafe { blkgetsize64(file.as_raw_fd(), &mut bytes) }.map_err(Error::sys("find the size of", device))?;
    Ok(bytes)
}

/// Bytes, as sysfs has them: the device is not opened. `None`: there is no block device.
pub fn known_size(device: &Path) -> Option<u64> {
    let sectors = fs::read_to_string(sysfs(number(device)?).join("size")).ok()?;
    Some(sectors.trim().parse::<u64>().ok()? * 512)
}

/// Whether the device refuses writes.
pub fn is_read_only(device: &Path) -> bool {
    let flag = number(device).and_then(|rdev| fs::read_to_string(sysfs(rdev).join("ro")).ok());
    flag.is_some_and(|text| text.trim() == "1")
}

/// Makes the device refuse writes, or take them again, until it is removed.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened, or the caller may not change the flag.
pub fn set_read_only(device: &Path, read_only: bool) -> Result<()> {
    let file = open(device, false)?;
    let flag = i32::from(read_only);
    // SAFETY: `flag` is the number that the ioctl reads and lives until it returns.
    unsafe { blkroset(file.as_raw_fd(), &flag) }.map_err(Error::sys("change the read-only flag of", device)).map(drop)
}

/// Writes the device's cached blocks, and those of its disk's own cache, to where a power cut spares them.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened, or reports that a write before this failed.
pub fn flush(device: &Path) -> Result<()> {
    open(device, false)?.sync_all().map_err(Error::io("flush", device))
}

/// A device and its partitions: numbers and paths.
pub fn with_partitions(device: &Path) -> Vec<(u64, PathBuf)> {
    let Some(rdev) = number(device) else { return Vec::new() };
    let mut found = vec![(rdev, device.to_owned())];
    for entry in fs::read_dir(sysfs(rdev)).into_iter().flatten().flatten() {
        let node = Path::new("/dev").join(entry.file_name());
        if entry.path().join("partition").exists()
            && let Some(rdev) = number(&node)
        {
            found.push((rdev, node));
        }
    }
    found
}

/// Drops what the page cache holds of a device, whose bytes were changed below it. Data that was written to the device is
/// written out first.
///
/// # Errors
/// [`Error::Io`].
pub fn forget_cached(device: &Path) -> Result<()> {
    let file = open(device, false)?;
    // SAFETY: the ioctl takes no argument.
    unsafe { blkflsbuf(file.as_raw_fd()) }.map_err(Error::sys("drop the cache of", device)).map(drop)
}

/// The part of the kernel that holds the device or a partition of it: a mount, swap, another device on top, or a target.
pub fn claimed(device: &Path) -> Option<String> {
    let rdev = number(device)?;
    claimed_itself(rdev).or_else(|| {
        let parts = fs::read_dir(sysfs(rdev)).ok()?.flatten().filter(|e| e.path().join("partition").exists());
        parts.into_iter().find_map(|part| {
            let who = claimed_itself(number_in(&part.path())?)?;
            Some(format!("{who} (its partition {})", part.file_name().to_string_lossy()))
        })
    })
}

fn claimed_itself(rdev: u64) -> Option<String> {
    let number_text = format!("{}:{}", nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        (words.nth(2) == Some(&number_text)).then(|| words.nth(1).unwrap_or("?").to_owned())
    });
    if let Some(on) = mounted {
        return Some(format!("the mount on {on}"));
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().filter_map(|line| line.split_whitespace().next()).any(|p| number(Path::new(p)) == Some(rdev)) {
        return Some("swap".to_owned());
    }
    if let Some(target) = lio::user_of(rdev).or_else(|| nvmet::user_of(rdev)) {
        return Some(target);
    }
    let above = fs::read_dir(sysfs(rdev).join("holders")).ok()?;
    let mut names: Vec<String> = above
        .flatten()
        .map(|entry| {
            let name = fs::read_to_string(entry.path().join("dm/name")).ok();
            name.map_or_else(|| entry.file_name().to_string_lossy().into_owned(), |name| name.trim().to_owned())
        })
        .collect();
    names.sort_unstable();
    let rest = names.len().saturating_sub(3);
    names.truncate(3);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    (!names.is_empty()).then(|| format!("the device {}{more}", names.join(", ")))
}

/// The name that device-mapper has for the device. `None`: the device is not one of device-mapper's.
pub fn dm_name(rdev: u64) -> Option<String> {
    Some(fs::read_to_string(sysfs(rdev).join("dm/name")).ok()?.trim().to_owned())
}

/// The device-mapper device that a device is, or that a loop device is over.
pub fn mapped(rdev: u64) -> Option<u64> {
    if dm_name(rdev).is_some() {
        return Some(rdev);
    }
    let backing = fs::read_to_string(sysfs(rdev).join("loop/backing_file")).ok()?;
    number(Path::new(backing.trim_end())).filter(|below| dm_name(*below).is_some())
}

/// The size of the smallest piece that a device reads and writes, in bytes.
pub fn sector_size(device: &Path) -> Option<u64> {
    let sysfs = sysfs(number(device)?);
    // A partition has the sectors of its disk.
    let text =
        ["queue/logical_block_size", "../queue/logical_block_size"].map(|name| fs::read_to_string(sysfs.join(name)));
    text.into_iter().find_map(|text| text.ok()?.trim().parse().ok())
}

/// Whether a device-mapper device lets its I/O wait.
pub fn is_suspended(rdev: u64) -> bool {
    fs::read_to_string(sysfs(rdev).join("dm/suspended")).is_ok_and(|flag| flag.trim() == "1")
}

/// The devices that a device-mapper device lies on: number and name.
pub fn below(rdev: u64) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(sysfs(rdev).join("slaves")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let number = number_in(&entry.path())?;
            let name = dm_name(number)
                .map_or_else(|| Path::new("/dev").join(entry.file_name()), |name| Path::new("/dev/mapper").join(name));
            Some((number, name))
        })
        .collect()
}

/// The processes but this one that have the device open, as far as /proc shows them to this user.
pub fn openers(device: &Path) -> Option<String> {
    let found = each_opener(device);
    (!found.is_empty()).then(|| found.join(", "))
}

fn each_opener(device: &Path) -> Vec<String> {
    let Some(rdev) = number(device) else { return Vec::new() };
    let mut found = Vec::new();
    for pid in process::all().into_iter().filter(|pid| *pid != std::process::id()) {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let has_it = fds
            .flatten()
            .map(|fd| fd.path())
            // Only what is a device by its name is looked at: a file on a dead server's mount would not answer.
            .filter(|fd| fs::read_link(fd).is_ok_and(|target| target.starts_with("/dev")))
            .any(|fd| fs::metadata(fd).is_ok_and(|m| m.file_type().is_block_device() && m.rdev() == rdev));
        if has_it {
            found.push(process::shown(pid));
        }
    }
    found
}

/// What has an attached device open, the kernel or processes, as a clause for an error: `, which process 12 (qemu) has open`. Empty
/// if nothing is seen. Looks at every process.
pub fn open_by(device: &Path) -> String {
    user(device).map(|who| format!(", which {who} has open")).unwrap_or_default()
}

/// What has the device open: a part of the kernel, or the processes that /proc shows to this user.
pub fn user(device: &Path) -> Option<String> {
    claimed(device).or_else(|| openers(device))
}

/// What would lose the disk if it were taken away: as [`user`], without those that pass ([`is_passing`]), and without multipathd,
/// which has each path open and lets go of one that goes. A process has a moment to close it.
pub fn loser(disk: &Path) -> Option<String> {
    let is_lasting = |who: &String| !is_passing(Some(who)) && !who.contains("(multipathd)");
    if let Some(who) = claimed(disk) {
        return Some(who);
    }
    let until = Instant::now() + Duration::from_secs(1);
    while let Some(who) = each_opener(disk).into_iter().find(is_lasting) {
        if Instant::now() >= until {
            return Some(who);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

/// Whether this holder goes away by itself: nobody we can see, udev's probes of a new or closed device, or a
/// program that looks at every device for a moment.
pub fn is_passing(holder: Option<&str>) -> bool {
    const SEEKERS: [&str; 7] = ["udev", "blkid", "(mount)", "(losetup)", "lsblk", "(lvm)", "(pvs)"];
    // Other calls of ours look which file a device has.
    const OURS: [&str; 2] = ["(sm)", "SR)"];
    holder.is_none_or(|who| SEEKERS.iter().chain(&OURS).any(|name| who.contains(name)))
}

/// Whether something in the kernel has the device to itself, and what.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened for another reason than that it is in use.
pub fn exclusive_holder(device: &Path) -> Result<Option<String>> {
    match claimed(device) {
        Some(who) => Ok(Some(who)),
        None => refuses_to_share(device),
    }
}

/// As [`exclusive_holder`], for a device of which the caller knows that neither a mount, swap nor another device has it.
///
/// # Errors
/// As [`exclusive_holder`].
pub fn refuses_to_share(device: &Path) -> Result<Option<String>> {
    match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device) {
        Ok(_) => Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(Some("something in the kernel".to_owned())),
        Err(e) => Err(Error::io("open", device)(e)),
    }
}

/// Whether the device makes zeroes by itself, so that [`zero`] moves no data.
pub fn zeroes_by_itself(device: &Path) -> bool {
    let Some(rdev) = number(device) else { return false };
    let limit = |dir: PathBuf| fs::read_to_string(dir.join("queue/write_zeroes_max_bytes")).ok();
    // A partition has its disk's queue.
    let text = limit(sysfs(rdev)).or_else(|| limit(fs::canonicalize(sysfs(rdev)).ok()?.parent()?.to_owned()));
    text.is_some_and(|text| text.trim() != "0")
}

/// Makes the whole device read as zeroes, durably: by the device's own command where it has one, else by
/// writing them.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened or written. The part before the failed block may be zeroes by then.
pub fn zero(device: &Path, progress: Progress) -> Result<()> {
    let file = open(device, true)?;
    zero_blocks(&file, device, 0, size(device)?, progress)?;
    file.sync_all().map_err(Error::io("flush", device))
}

/// Makes a range of bytes, of whatever alignment, read as zeroes. Not durable yet.
///
/// # Errors
/// [`Error::Io`] if the device refuses a write.
pub fn zero_range(file: &File, device: &Path, from: u64, to: u64) -> Result<()> {
    /// A multiple of every device's block.
    const BLOCK: u64 = 4096;
    const SMALL: u64 = 1 << 20;
    let write = |from: u64, to: u64| {
        let zeroes = vec![0; (to - from) as usize];
        file.write_all_at(&zeroes, from).map_err(Error::io("write zeroes to", device))
    };
    if to - from <= SMALL {
        return write(from, to);
    }
    let (first, last) = (from.next_multiple_of(BLOCK), to - to % BLOCK);
    write(from, first)?;
    zero_blocks(file, device, first, last, &|_, _| {})?;
    write(last, to)
}

fn zero_blocks(file: &File, device: &Path, from: u64, end: u64, progress: Progress) -> Result<()> {
    const STEP: u64 = 1 << 30;
    const WRITE_STEP: u64 = 64 << 20;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut offloaded = true;
    let mut at = from;
    while at < end {
        // PUNCH_HOLE is the kernel's "zeroes, but never by writing them"; ZERO_RANGE writes if it must.
        let (flags, step) = if offloaded {
            (punch, STEP)
        } else {
            (FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE, WRITE_STEP)
        };
        let length = (end - at).min(step);
        match fallocate(file, flags, at as i64, length as i64) {
            Ok(()) => at += length,
            Err(Errno::EINTR) => {}
            // EREMOTEIO: the array refused, and a multipath map below a volume learns it for itself only.
            Err(Errno::EOPNOTSUPP | Errno::EREMOTEIO) if offloaded => offloaded = false,
            Err(errno) => return Err(Error::sys("write zeroes to", device)(errno)),
        }
        progress(at, end);
    }
    Ok(())
}

/// Tells the device that nobody needs what is from byte `from` on. Best effort: not every device listens.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened, or takes discards and fails at this one.
pub fn discard(device: &Path, from: u64) -> Result<()> {
    let file = open(device, true)?;
    match size(device)?.saturating_sub(from) {
        0 => Ok(()),
        length => discard_range(&file, from, length).map(drop).map_err(Error::sys("discard the end of", device)),
    }
}

/// Tells the device that nobody needs anything on it, from its beginning, in steps of so many bytes and until an instant; one step at
/// least. The answer is the number of bytes that it was told of. `None`: it takes no discards.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened, or takes discards and fails at one.
pub fn discard_until(device: &Path, step: u64, until: Instant, progress: Progress) -> Result<Option<u64>> {
    let (file, size) = (open(device, true)?, size(device)?);
    let mut told = 0;
    while told < size && (told == 0 || Instant::now() < until) {
        let length = step.min(size - told);
        match discard_range(&file, told, length) {
            Ok(true) => {}
            // EREMOTEIO: the array refused, see [`zero_blocks`].
            Ok(false) | Err(Errno::EREMOTEIO) => return Ok(None),
            Err(errno) => return Err(Error::sys("discard what is on", device)(errno)),
        }
        told += length;
        progress(told, size);
    }
    Ok(Some(told))
}

/// Whether the device takes discards.
fn discard_range(file: &File, from: u64, length: u64) -> nix::Result<bool> {
    let range = [from, length];
    // SAFETY: `range` is what the ioctl reads and lives until it returns.
    match unsafe { blkdiscard(file.as_raw_fd(), &range) } {
        Ok(_) => Ok(true),
        Err(Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens a device or file of this path for reading, and for writing if `write`.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn open(path: &Path, write: bool) -> Result<File> {
    OpenOptions::new().read(true).write(write).open(path).map_err(Error::io("open", path))
}

/// Reads the device's beginning past the page cache's copy of it: a device that can't be read says so.
///
/// # Errors
/// [`Error::Io`] if the device cannot be opened or its first 4 KiB cannot be read.
pub fn first_bytes(device: &Path) -> Result<()> {
    #[repr(align(4096))]
    struct Block([u8; 4096]);
    let mut block = Block([0; 4096]);
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(device).map_err(Error::io("open", device))?;
    file.read_exact_at(&mut block.0, 0).map_err(Error::io("read", device))
}

/// Why a path that a caller named is no block device.
pub fn missing(device: &Path) -> Option<String> {
    match fs::metadata(device) {
        Ok(meta) if meta.file_type().is_block_device() => None,
        Ok(_) => Some("it is not a block device".to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some("there is nothing of that name".to_owned()),
        Err(e) => Some(e.to_string()),
    }
}
