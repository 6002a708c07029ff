//! Serves an image as a block device: what a CoW disk is attached by. Knows no SR and no protocol.
//!
//! A server process, this executable started again, reads and writes the image; the kernel's part is a loop
//! device over a FUSE file. It outlives its caller, owns nothing that can't be rebuilt
//! from the disk, and ends when the device is detached, by whomever. The kernel is asked what is attached.
//!
//! The caller holds the lock of the disk, as for everything else done to it.

mod cbt;
mod control;
mod disk;
mod fuse;
mod kept;
mod patient;
mod pause;
mod pool;
mod record;
mod server;
mod serving;
mod tapped;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::sys::lock::Lock;
use crate::sys::loopdev::{self, Detached};
use crate::sys::tapdisk::Tapdisk;
use crate::sys::{process, run_dir};
use crate::types::{Done, Format};
use control::Client;
#[cfg(test)]
pub(crate) use disk::Disk;
pub use kept::{attach_for_guest, image_of, is_read_only, mirror, revive_all, sweep_starts};
pub use pause::{Paused, pause, prepare};
use server::Arguments;
pub use server::main;

/// An image to serve. Its parents lie in the same directory, under the last name that the headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub format: Format,
    /// The leaf. After a pause whatever has this name is opened, which is how a snapshot changes the leaf.
    pub path: PathBuf,
    pub read_only: bool,
    /// Other hosts may change the tree of the image: they see in [`USES`] which images the server has open.
    pub shared: bool,
}

/// The file beside images that several hosts share in which servers say which of them they have open.
pub const USES: &str = ".sm-in-use";

/// The word of a server for a disk whose writes it logs.
const TRACKED: &str = "tracked";

/// The name of an image in [`USES`].
pub fn use_of(image: &Path) -> &str {
    image.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
}

/// A served image, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The leaf, as [`attach`] was given it.
    pub image: PathBuf,
    pub device: PathBuf,
    pub read_only: bool,
    pub server: u32,
    /// The server lives. If not, I/O on the device fails until it is detached; that of a tapdisk goes on.
    pub healthy: bool,
    /// The tapdisk that has the image open itself. The device is its socket, and the server its keeper.
    pub tapdisk: Option<Tapdisk>,
}

impl Attached {
    /// All I/O fails.
    pub fn is_dead(&self) -> bool {
        !self.healthy && self.tapdisk.is_none()
    }
}

/// Everything that is served on this host. One pass over sysfs, and over the records of tapdisks.
///
/// # Errors
/// [`Error::Io`] if the loop devices of this host cannot be listed.
pub fn all() -> Result<Vec<Attached>> {
    Ok(all_among(&loopdev::attached()?))
}

/// Everything that is served on this host, by loop devices that [`loopdev::attached`] listed, or by tapdisks.
pub fn all_among(devices: &HashMap<PathBuf, Vec<String>>) -> Vec<Attached> {
    let mut found = kept::all();
    for (backing, names) in devices {
        let Some((server, image)) = fuse::parse_backing_file(backing) else { continue };
        let healthy = Arguments::of(server).is_some_and(|a| a.source.path == image);
        for name in names {
            let device = Path::new("/dev").join(name);
            let read_only = blockdev::is_read_only(&device);
            found.push(Attached { image: image.clone(), device, read_only, server, healthy, tapdisk: None });
        }
    }
    found
}

/// The image servers of this host, each with its image, whether it has a device or not; of those that keep a tapdisk, those whose
/// records are looked for.
pub fn running() -> Vec<(u32, PathBuf)> {
    let dir = directory();
    let of = |pid: u32| Some((pid, Arguments::of(pid).filter(|it| !it.by_tapdisk || it.dir == dir)?.source.path));
    process::all().into_iter().filter_map(of).collect()
}

/// The served image at `path`, by whatever path its directory was reached, as the kernel knows it now. Waits for nothing.
///
/// `None` does not say that no server writes to it: one whose device is gone may not have ended yet, see [`find_settled`].
///
/// # Errors
/// [`Error::Io`] if the loop devices of this host cannot be listed.
pub fn find(path: &Path) -> Result<Option<Attached>> {
    Ok(find_in(&all()?, path).cloned())
}

/// The served image at `path`. `None` says that no server has it open; one whose device is gone and that is still writing
/// is waited for. A tapdisk whose keeper was killed gets another one.
///
/// # Errors
/// [`Error::DeviceInUse`] when that has not ended at the deadline.
pub fn find_settled(path: &Path, deadline: Instant) -> Result<Option<Attached>> {
    let list = loop {
        let list = all()?;
        match find_in(&list, path) {
            Some(tapped) if !kept::is_ready(tapped) => kept::make_ready(tapped, deadline)?,
            Some(found) => return Ok(Some(found.clone())),
            None => break list,
        }
    };
    let dir = directory();
    let without_device = |pid: &u32| list.iter().all(|attached| attached.server != *pid);
    let mut waited = false;
    for pid in servers(&dir).into_iter().filter(without_device) {
        if Arguments::of(pid).is_some_and(|a| is_same(&a.source.path, path)) {
            waited = true;
            // A failure of the server's last writes is told to the call that detached the device, if that call waits.
            let until = patience(deadline);
            let end = Client::connect(&dir, pid, until).and_then(|mut client| client.say("stop").map(|()| client));
            let ended = end.and_then(Client::wait_for_end);
            await_end(pid, path, until).map_err(|still| ended.err().unwrap_or(still))?;
        } else if is_dying(pid, path) {
            waited = true;
            await_end(pid, path, patience(deadline))?;
        }
    }
    // One that had just been started may have a device by now.
    if waited { find(path) } else { Ok(None) }
}

/// The end of a wait for a server: that of the call. An answer that needs no wait comes within this in any case.
fn patience(deadline: Instant) -> Instant {
    const LEAST: Duration = Duration::from_secs(2);
    deadline.max(Instant::now() + LEAST)
}

/// Whether the process was a server of the image, was killed, and has not gone: one of its threads is in the kernel,
/// perhaps in the middle of a write to the image.
fn is_dying(pid: u32, path: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    if !fs::read(process.join("comm")).is_ok_and(|name| name == server::COMM)
        || !fs::read(process.join("cmdline")).is_ok_and(|line| line.is_empty())
    {
        return false;
    }
    // The thread that is left has the files. Names are compared: to look at a file could take for ever.
    let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    let mut files = threads.flat_map(|thread| fs::read_dir(thread.path().join("fd")).into_iter().flatten().flatten());
    files.any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file.file_name() == path.file_name()))
}

/// Waits until the process is no server of the image any more.
///
/// # Errors
/// [`Error::DeviceInUse`]: a second server would write beside the first, and both would destroy the image.
fn await_end(pid: u32, path: &Path, until: Instant) -> Result<()> {
    let begun = Instant::now();
    while Arguments::of(pid).is_some_and(|a| is_same(&a.source.path, path)) || is_dying(pid, path) {
        if Instant::now() >= until {
            let why = control::why_silent(pid).map(|why| format!(" ({why})")).unwrap_or_default();
            let seconds = begun.elapsed().as_secs_f32().round();
            let holder = format!("its image server, process {pid}, which has not ended for {seconds} s{why}");
            return Err(Error::DeviceInUse { device: path.display().to_string(), holder });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether an image server may run on this host, or a tapdisk that has an image open.
pub fn may_serve() -> bool {
    let dir = directory();
    !servers(&dir).is_empty() || !record::all(&dir).is_empty()
}

/// The processes that have, or had, a socket here.
fn servers(dir: &Path) -> Vec<u32> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.strip_suffix(".sock")?.parse().ok()).collect()
}

fn is_same(image: &Path, path: &Path) -> bool {
    let directory = |path: &Path| fs::metadata(path.parent()?).ok().map(|meta| (meta.dev(), meta.ino()));
    image == path
        || (image.file_name() == path.file_name() && directory(path).is_some_and(|d| directory(image) == Some(d)))
}

/// The served image at `path`, in a list that [`all`] gave.
pub fn find_in<'a>(list: &'a [Attached], path: &Path) -> Option<&'a Attached> {
    let same_name = || list.iter().filter(|a| a.image.file_name() == path.file_name());
    let by_path = same_name().find(|a| a.image == path).or_else(|| same_name().find(|a| is_same(&a.image, path)));
    // Its directory may have another name by now.
    let process = |a: &Attached| a.tapdisk.map_or(a.server, Tapdisk::pid);
    by_path.or_else(|| same_name().find(|a| !a.is_dead() && has_open(process(a), path)))
}

fn has_open(process: u32, path: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let mut open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    id(path).is_some_and(|wanted| open.any(|fd| id(&fd.path()) == Some(wanted)))
}

/// A block device over the image, which outlives this process. Idempotent: the same path again. The remains of a server
/// that was killed are cleaned up first. `lock`: the lock of the disk that the caller holds. A server that starts
/// shares it until the device is there, so that no call comes between if the caller is killed.
///
/// # Errors
/// [`Error::DeviceInUse`] when it is attached read-only and wanted writable, when its server was killed and
/// something holds the dead device open, or when an earlier server has not ended at the deadline; [`Error::ImageServer`]
/// with the words of a server that did not start; [`Error::Tool`] for one that was not ready at the deadline and was killed.
pub fn attach(source: &Source, lock: Option<&Lock>, deadline: Instant) -> Result<PathBuf> {
    /// The time that a start may take on a busy machine when its caller waits for nothing.
    const LEAST: Duration = Duration::from_secs(5);
    let source = Source { path: absolute(&source.path)?, ..source.clone() };
    if let Some(found) = find_settled(&source.path, deadline)? {
        let refused = |holder: String| Err(kept::in_use(&found, &holder));
        if let Some(tapdisk) = found.tapdisk {
            return refused(format!("tapdisk {tapdisk} has it open for a guest"));
        }
        if found.healthy {
            return match found.read_only && !source.read_only {
                true => refused("it is attached read-only; detach it first".to_owned()),
                false => Ok(found.device),
            };
        }
        if let Detached::Busy(who) = detach(&source.path, deadline)? {
            return refused(format!("its server died, and {who} still holds the device"));
        }
    }
    // A server has only words for what it finds; that a filesystem is read-only has a status of its own.
    let mut options = fs::File::options();
    options.read(true).write(!source.read_only).open(&source.path).map_err(Error::io("open", &source.path))?;
    let dir = directory();
    sweep(&dir);
    let arguments = Arguments { source, dir: dir.clone(), by_tapdisk: false };
    let started = server::start(&arguments, lock, deadline.max(Instant::now() + LEAST));
    started.inspect_err(|_| sweep(&dir))
}

/// The user that has the device open, in words: a part of the kernel, or processes.
fn holder(device: &Path) -> Option<String> {
    blockdev::claimed(device).or_else(|| blockdev::openers(device))
}

/// Removes the device and ends the server; what was written is durable. Idempotent.
///
/// # Errors
/// That the server could not make everything durable, or has not done so at the deadline: the device is gone all the same,
/// and the next call waits for the server. [`Error::DeviceInUse`] when the server does not answer; then nothing was
/// changed.
pub fn detach(path: &Path, deadline: Instant) -> Result<Detached> {
    let Some(found) = find_settled(path, deadline)? else { return Ok(Detached::Done(Done::Already)) };
    if let Some(tapdisk) = found.tapdisk {
        return kept::detach(&found, tapdisk, deadline);
    }
    let backing = fuse::backing_file(found.server, &found.image);
    let backing = loopdev::Backing::Path(&backing);
    let until = patience(deadline);
    let conversation = conversation(&found, until).and_then(|mut client| client.ask("stop").map(|_| client));
    let client = match conversation {
        Ok(client) => Some(client),
        Err(silent @ Error::DeviceInUse { .. }) => return Err(silent),
        // It died.
        Err(_) => None,
    };
    if client.is_none() {
        await_end(found.server, path, until)?;
        // A loop device whose server is dead can't take a deferred detach back.
        if let Some(who) = holder(&found.device) {
            return Ok(Detached::Busy(who));
        }
    }
    let detached = loopdev::detach(&found.device, backing)?;
    if matches!(detached, Detached::Busy(_)) {
        return Ok(detached);
    }
    if let Some(mut client) = client {
        client.hear()?;
        client.wait_for_end()?;
    }
    sweep(&directory());
    Ok(detached)
}

/// Makes the device as large as its server says that the disk is, in bytes. Idempotent. A server that goes on says so.
fn fit(attached: &Attached, said: &str) -> Result<()> {
    match said.parse::<u64>() {
        _ if attached.tapdisk.is_some() => Ok(()),
        Ok(size) if blockdev::known_size(&attached.device) != Some(size) => {
            let backing = fuse::backing_file(attached.server, &attached.image);
            loopdev::update_size(&attached.device, loopdev::Backing::Path(&backing))
        }
        _ => Ok(()),
    }
}

/// Makes the device as large as its disk is by now, if a call that made it larger was killed before. Does nothing if it is
/// not attached.
///
/// # Errors
/// As [`prepare`].
pub fn follow_size(path: &Path, deadline: Instant) -> Result<()> {
    let Some(found) = find(path)?.filter(|found| found.healthy) else { return Ok(()) };
    let status = conversation(&found, patience(deadline))?.ask("status")?;
    fit(&found, size_in(&status))
}

/// The bytes of a disk in what its server says of itself; empty if it does not go on.
fn size_in(status: &str) -> &str {
    status.strip_prefix("serving ").and_then(|rest| rest.split(' ').next()).unwrap_or_default()
}

/// Whether a server has the image open that logs all that is written to the disk. A server of an earlier version does not.
pub fn tracks(path: &Path) -> bool {
    let Ok(Some(found)) = find(path) else { return false };
    let said = conversation(&found, patience(Instant::now())).and_then(|mut client| client.ask("tracks"));
    said.is_ok_and(|said| said == TRACKED)
}

/// Makes everything durable, closes the image and lets I/O wait until [`release`], even if the caller dies: for another
/// host, which changes the tree of a disk in use here. Idempotent.
///
/// # Errors
/// That the server is dead, does not answer until the deadline, or could not make everything durable; then the disk is
/// not held.
pub fn hold(path: &Path, deadline: Instant) -> Result<Done> {
    tell(path, "hold", deadline)
}

/// Ends it: what has the image's name now is opened and I/O goes on. Idempotent.
///
/// # Errors
/// When it can't be opened: then I/O fails, until another release.
pub fn release(path: &Path, deadline: Instant) -> Result<Done> {
    tell(path, "release", deadline)
}

/// `Already`: it is not attached.
fn tell(path: &Path, word: &str, deadline: Instant) -> Result<Done> {
    let Some(found) = find_settled(path, deadline)? else { return Ok(Done::Already) };
    let said = conversation(&found, patience(deadline))?.ask(word)?;
    fit(&found, &said).map(|()| Done::Changed)
}

/// The server's answer about itself: `serving BYTES DEPTH`, `paused` or `failed WHY`, and its last I/O error.
///
/// # Errors
/// [`Error::NoDevice`] if the server is dead; [`Error::ImageServer`] if it does not answer within 2 s.
pub fn status(attached: &Attached) -> Result<String> {
    conversation(attached, patience(Instant::now()))?.ask("status")
}

fn conversation(attached: &Attached, until: Instant) -> Result<Client> {
    match Arguments::of(attached.server).filter(|a| a.source.path == attached.image) {
        Some(arguments) => Client::connect(&arguments.dir, attached.server, until),
        None => Err(Error::NoDevice {
            device: attached.device.display().to_string(),
            why: format!("its server, process {}, is dead; detach it", attached.server),
        }),
    }
}

fn directory() -> PathBuf {
    run_dir::state().join("datapath")
}

/// Removes what killed servers left in the directory of the sockets.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((pid, kind)) = name.to_str().and_then(|n| n.split_once('.')) else { continue };
        let Ok(pid) = pid.parse() else { continue };
        if Arguments::of(pid).is_none_or(|a| a.dir != dir) {
            match kind {
                "sock" => drop(fs::remove_file(entry.path())),
                "tap" => record::sweep(dir, pid),
                "mnt" => fuse::sweep_mount(&entry.path()),
                _ => {}
            }
        }
    }
}

/// The path by which the server and the kernel know the image. The path's last name may be a link (device-mapper's are)
/// or be missing.
fn absolute(path: &Path) -> Result<PathBuf> {
    let invalid = || Error::io("find", path)(io::ErrorKind::InvalidInput.into());
    let name = path.file_name().ok_or_else(invalid)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(fs::canonicalize(parent).map_err(Error::io("find the directory", parent))?.join(name))
}
