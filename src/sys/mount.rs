//! The mount table, mounting and unmounting.
//!
//! Nothing here looks at a mounted filesystem: one whose server is dead would not answer. The mounts are read from the
//! kernel's table, which asks nobody.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::makedev;

use crate::error::{Error, Result};
use crate::sys::process;
use crate::sys::tool::Tool;

/// Of this thread, whose mount namespace may be its own.
const TABLE: &str = "/proc/thread-self/mountinfo";

/// The range of bytes of a filesystem that a call is about, and then how many of them it was done for; `struct fstrim_range` of
/// `linux/fs.h`.
#[repr(C)]
pub struct Range {
    start: u64,
    length: u64,
    least: u64,
}

nix::ioctl_readwrite!(fitrim, b'X', 121, Range);

/// Lets a mounted filesystem tell its device which blocks it does not use. The answer is the number of bytes that the device was told
/// of: 0 if it takes no discards.
///
/// # Errors
/// [`Error::Io`] if the filesystem cannot do that, or the device fails at it.
pub fn trim(directory: &Path) -> Result<u64> {
    let file = fs::File::open(directory).map_err(Error::io("open", directory))?;
    let mut range = Range { start: 0, length: u64::MAX, least: 0 };
    // SAFETY: `range` is what the ioctl reads and fills, and lives until it returns.
    match unsafe { fitrim(file.as_raw_fd(), &mut range) } {
        Ok(_) => Ok(range.length),
        Err(Errno::EOPNOTSUPP) => Ok(0),
        Err(errno) => Err(Error::sys("discard what is free in", directory)(errno)),
    }
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub path: PathBuf,
    /// The number of the device that is mounted; of a filesystem without one, a number of the kernel's own.
    pub device: u64,
    /// `nfs`, `nfs4`, `ext4`, …
    pub fs_type: String,
    /// `server:/path`, `/dev/sdb1`, …
    pub source: String,
    /// Of the filesystem: `rw,vers=4.2,…`.
    pub options: String,
}

impl Mount {
    /// Whether this is `source`, by one of these types of filesystem.
    pub fn is(&self, source: &str, fs_types: &[&str]) -> bool {
        self.source == source && fs_types.contains(&self.fs_type.as_str())
    }
}

/// Everything that is mounted.
///
/// # Errors
/// [`Error::Io`] if the table cannot be read.
pub fn all() -> Result<Vec<Mount>> {
    let table = fs::read(TABLE).map_err(Error::io("read", TABLE))?;
    Ok(parse(&String::from_utf8_lossy(&table)))
}

/// The filesystem that is mounted at `path`; the last one if several are. The path's symbolic links are the caller's.
///
/// # Errors
/// [`Error::Io`] if the mount table cannot be read.
pub fn at(path: &Path) -> Result<Option<Mount>> {
    Ok(all()?.into_iter().rfind(|mount| mount.path == path))
}

/// Reads `mountinfo`, proc(5): `36 35 98:0 /root /path rw,noatime shared:1 - ext3 /dev/root rw,errors=continue`.
fn parse(table: &str) -> Vec<Mount> {
    table
        .lines()
        .filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut words = filesystem.split(' ');
            let mut place = mount.split(' ').skip(2);
            let (major, minor) = place.next()?.split_once(':')?;
            Some(Mount {
                device: makedev(major.parse().ok()?, minor.parse().ok()?),
                path: unescape(place.nth(1)?).into(),
                fs_type: words.next()?.to_owned(),
                source: unescape(words.next()?),
                options: words.next()?.to_owned(),
            })
        })
        .collect()
}

/// The table writes blanks and backslashes as `\040`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or("").to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

/// Mounts an NFS export at an existing directory.
///
/// # Errors
/// [`Error::Tool`] with what `mount.nfs` said, or when it took longer than the deadline.
pub fn nfs(source: &str, path: &Path, options: &str, deadline: Duration) -> Result<()> {
    // The two come first and begin with neither a dash nor anything else that is an option.
    Tool::new("/sbin/mount.nfs")
        .args([source, &path.display().to_string(), "-o", options])
        .deadline(deadline)
        .run()
        .map(drop)
}

/// Mounts a filesystem on a block device at an existing directory. Nothing on it is run, is a device, or gives
/// its user more rights.
///
/// # Errors
/// [`Error::Io`] with the kernel's errno: `EINVAL` if there is no such filesystem on the device.
pub fn block_device(device: &Path, path: &Path, fs_type: &str, read_only: bool, options: &str) -> Result<()> {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    flags.set(MsFlags::MS_RDONLY, read_only);
    nix::mount::mount(Some(device), path, Some(fs_type), flags, Some(options)).map_err(Error::sys("mount", device))
}

/// Mounts a directory at a second, existing one, without the mounts below it. Nothing there is run, is a device, or gives its user
/// more rights.
///
/// # Errors
/// [`Error::Io`] with the kernel's errno.
pub fn bind(directory: &Path, at: &Path) -> Result<()> {
    let none = None::<&str>;
    nix::mount::mount(Some(directory), at, none, MsFlags::MS_BIND, none).map_err(Error::sys("mount", directory))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(none, at, none, flags, none).map_err(Error::sys("mount", directory)).inspect_err(|_| {
        let _ = umount2(at, MntFlags::UMOUNT_NOFOLLOW);
    })
}

/// The outcome of an unmounting.
#[derive(Debug, PartialEq, Eq)]
pub enum Unmounted {
    Done,
    /// In use by these.
    Busy(String),
}

/// Unmounts what is at `path`. Whatever was closed a moment ago gets that moment.
///
/// # Errors
/// [`Error::Io`] if the caller may not unmount, or the filesystem fails at it. A mount in use is no error but
/// [`Unmounted::Busy`].
pub fn unmount(path: &Path) -> Result<Unmounted> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let until = Instant::now() + PATIENCE;
    loop {
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            // Nothing is mounted there; there is not even a directory.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(Unmounted::Done),
            Err(Errno::EBUSY) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::EBUSY) => return Ok(Unmounted::Busy(users(path))),
            Err(errno) => return Err(Error::sys("unmount", path)(errno)),
        }
    }
}

/// Takes a mount of a server that does not answer out of the table. Data that was not written to the server is lost,
/// and a process that waits for the server is told of an error.
///
/// # Errors
/// [`Error::Io`] if the caller may not unmount; with `ETIMEDOUT` if the mount is still in the table after 10 s.
pub fn abandon(path: &Path) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const EVERY: Duration = Duration::from_millis(10);
    let (tell, told) = mpsc::channel();
    let owned = path.to_owned();
    // Out of the table it is at once; then the kernel takes leave of the server, which may take minutes. The end
    // of the process ends that.
    std::thread::spawn(move || {
        let flags = MntFlags::MNT_FORCE | MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        let _ = tell.send(umount2(&owned, flags));
    });
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Ok(Err(errno)) = told.recv_timeout(EVERY) {
            return Err(Error::sys("unmount", path)(errno));
        }
        if at(path)?.is_none() {
            return Ok(());
        }
    }
    Err(Error::sys("unmount", path)(Errno::ETIMEDOUT))
}

/// The processes with something open below `path`, from the names that the kernel has for it.
fn users(path: &Path) -> String {
    let mut found = Vec::new();
    for pid in process::all() {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let below = |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(path));
        let fds = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
        if ["cwd", "root"].iter().map(|l| dir.join(l)).chain(fds).any(below) {
            found.push(process::shown(pid));
        }
    }
    if found.is_empty() { "something on this host".to_owned() } else { found.join(", ") }
}

/// Runs `work` on a thread of its own, whose mounts no other process sees. When the thread ends or the process is
/// killed, the kernel unmounts them. `work` gets a place to mount at, below `dir`, which is made if need be. Nothing can be written
/// to that place itself: a mount that goes away, because the process that serves it ends, leaves no directory that would pass for it.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be made, or the caller may not have a mount namespace of its own (it is not
/// root); otherwise those of `work`.
pub fn privately<T: Send>(dir: &Path, work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create the directory", dir))?;
    let dir = fs::canonicalize(dir).map_err(Error::io("examine", dir))?;
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).map_err(Error::sys("get a mount namespace for", &dir))?;
        // A filesystem that others unmount meanwhile goes away here too. A filesystem that is mounted here is seen
        // nowhere else.
        let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)
            .map_err(Error::sys("detach the mount namespace of", "/"))?;
        let place = dir.join("at");
        nix::mount::mount(Some("none"), &dir, Some("tmpfs"), MsFlags::empty(), Some("size=4k,mode=0700"))
            .map_err(Error::sys("mount a filesystem on", &dir))?;
        fs::create_dir(&place).map_err(Error::io("create the directory", &place))?;
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        nix::mount::mount(None::<&str>, &dir, None::<&str>, read_only, None::<&str>)
            .map_err(Error::sys("write-protect", &dir))?;
        work(&place)
    };
    std::thread::scope(|scope| scope.spawn(run).join().expect("it does not panic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_with_its_escapes_and_its_optional_fields() {
        let table = "\
36 35 98:0 / / rw,noatime shared:1 - ext3 /dev/root rw,errors=continue
61 36 0:52 / /run/sr-mount/a\\040b rw,nosuid,nodev - nfs4 [fe80::1]:/srv/n\\134x rw,vers=4.2,hard
62 36 0:53 / /m rw shared:2 master:1 - nfs 10.0.0.1:/e rw,vers=3
";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1].path, Path::new("/run/sr-mount/a b"));
        assert_eq!(mounts[1].source, "[fe80::1]:/srv/n\\x");
        assert_eq!(mounts[0].device, makedev(98, 0));
        assert_eq!(mounts[2].fs_type, "nfs");
        assert_eq!(mounts[2].options, "rw,vers=3");
    }

    #[test]
    fn proc_is_mounted_and_a_plain_directory_is_not() {
        assert_eq!(at(Path::new("/proc")).unwrap().unwrap().fs_type, "proc");
        assert_eq!(at(Path::new("/proc/self")).unwrap(), None);
    }
}
