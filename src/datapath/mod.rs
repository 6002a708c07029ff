//! Serves an image as a block device: what a CoW disk is attached by. Knows no SR and no protocol.
//!
//! A server process, this executable started again, reads and writes the image; the kernel's part is a loop
//! device over a FUSE file. It outlives its caller, owns nothing that can't be rebuilt
//! from the disk, and ends when the device is detached, by whomever. What is attached is asked from the kernel.
//!
//! The caller holds the lock of the disk, as for everything else done to it.

mod control;
mod disk;
mod fuse;
mod place;
mod pool;
mod server;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, one_line};
use crate::sys::blockdev;
use crate::sys::loopdev::{self, Detached};
use crate::sys::run_dir;
use crate::types::{Done, Format};
use control::Client;
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

/// What an image is called in [`USES`].
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
    /// The server lives. If not, I/O on the device fails until it is detached.
    pub healthy: bool,
}

/// Everything that is served on this host. One pass over sysfs; needs no privilege.
pub fn all() -> Result<Vec<Attached>> {
    Ok(all_among(&loopdev::attached()?))
}

/// The same, among loop devices that were listed already.
pub fn all_among(devices: &HashMap<PathBuf, Vec<String>>) -> Vec<Attached> {
    let mut found = Vec::new();
    for (backing, names) in devices {
        let Some((server, image)) = fuse::parse_backing_file(backing) else { continue };
        let healthy = Arguments::of(server).is_some_and(|a| a.source.path == image);
        for name in names {
            let device = Path::new("/dev").join(name);
            let read_only = blockdev::is_read_only(&device);
            found.push(Attached { image: image.clone(), device, read_only, server, healthy });
        }
    }
    found
}

/// The served image at `path`, by whatever path its directory was reached. A server whose device is gone may still
/// be writing: `None` says that it has ended as well.
pub fn find(path: &Path) -> Result<Option<Attached>> {
    let list = all()?;
    if let Some(found) = find_in(&list, path) {
        return Ok(Some(found.clone()));
    }
    let dir = directory();
    let without_device = |pid: &u32| list.iter().all(|attached| attached.server != *pid);
    let starting: Vec<u32> = servers(&dir).into_iter().filter(without_device).collect();
    if starting.is_empty() {
        return Ok(None);
    }
    for pid in starting {
        let serves = || Arguments::of(pid).is_some_and(|a| is_same(&a.source.path, path));
        if serves() {
            // What it could not write is told to whoever detached it, if he waits.
            let end = Client::connect(&dir, pid).and_then(|mut client| client.say("stop").map(|()| client));
            let ended = end.and_then(Client::wait_for_end);
            if let Err(why) = ended.and_then(|()| await_end(serves))
                && serves()
            {
                return Err(still_writing(pid, path, &why));
            }
        }
    }
    // One that had just been started may have a device by now.
    Ok(find_in(&all()?, path).cloned())
}

/// Waits a moment for a process that has closed its end of a conversation.
fn await_end(lives: impl Fn() -> bool) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let until = Instant::now() + PATIENCE;
    while lives() {
        if Instant::now() >= until {
            return Err(Error::Usage("it said that it ends, and lives on".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A second server of the image would write beside the first, and both would destroy it.
fn still_writing(server: u32, path: &Path, why: &Error) -> Error {
    let holder = format!("its server, process {server}, which has not ended: {}", one_line(why));
    Error::DeviceInUse { device: path.display().to_string(), holder }
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

/// The same, in a list that [`all`] gave.
pub fn find_in<'a>(list: &'a [Attached], path: &Path) -> Option<&'a Attached> {
    let same_name = || list.iter().filter(|a| a.image.file_name() == path.file_name());
    let by_path = same_name().find(|a| a.image == path).or_else(|| same_name().find(|a| is_same(&a.image, path)));
    // Its directory may have another name by now.
    by_path.or_else(|| same_name().find(|a| a.healthy && has_open(a.server, path)))
}

fn has_open(process: u32, path: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let mut open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    id(path).is_some_and(|wanted| open.any(|fd| id(&fd.path()) == Some(wanted)))
}

/// A block device over the image, which outlives this process. Idempotent: the same path again. What a server
/// that was killed left is cleaned up first.
///
/// # Errors
/// [`Error::DeviceInUse`] when it is attached read-only and wanted writable, or when its server was killed and
/// something holds the dead device open; [`Error::Tool`] with the words of a server that did not start.
pub fn attach(source: &Source) -> Result<PathBuf> {
    let source = Source { path: absolute(&source.path)?, ..source.clone() };
    if let Some(found) = find(&source.path)? {
        let refused = |holder: String| Err(Error::DeviceInUse { device: found.device.display().to_string(), holder });
        if found.healthy {
            return match found.read_only && !source.read_only {
                true => refused("it is attached read-only; detach it first".to_owned()),
                false => Ok(found.device),
            };
        }
        if let Detached::Busy(who) = detach(&source.path)? {
            return refused(format!("its server died, and {who} still holds the device"));
        }
    }
    // A server has only words for what it finds; that a filesystem is read-only has a status of its own.
    let mut options = fs::File::options();
    options.read(true).write(!source.read_only).open(&source.path).map_err(Error::io("open", &source.path))?;
    let dir = directory();
    sweep(&dir);
    server::start(&Arguments { source, dir })
}

/// Who has the device open, in the kernel or as a process.
fn holder(device: &Path) -> Option<String> {
    blockdev::claimed(device).or_else(|| blockdev::openers(device))
}

/// Removes the device and ends the server; what was written is durable. Idempotent.
///
/// # Errors
/// That the server could not make everything durable; the device is gone all the same.
pub fn detach(path: &Path) -> Result<Detached> {
    let Some(found) = find(path)? else { return Ok(Detached::Done(Done::Already)) };
    let mut client = match conversation(&found) {
        Ok(mut client) => client.ask("stop").ok().map(|_| client),
        Err(_) => None,
    };
    if !found.healthy
        && let Some(who) = holder(&found.device)
    {
        // A loop device whose server is dead can't take a deferred detach back.
        return Ok(Detached::Busy(who));
    }
    let detached = loopdev::detach(&found.device)?;
    if matches!(detached, Detached::Busy(_)) {
        return Ok(detached);
    }
    match client.take() {
        Some(mut client) => {
            client.hear()?;
            client.wait_for_end()?;
        }
        // It did not answer, and may still be writing: without its device it is one that `find` waits for.
        None => drop(find(path)?),
    }
    sweep(&directory());
    Ok(detached)
}

/// A disk whose I/O waits and whose images are closed. When it is dropped, the disk is opened again by its name
/// and goes on; what fails then fails for its user, and [`status`] says why.
pub struct Paused {
    client: Client,
    resumed: bool,
}

/// Lets the requests under way end, makes everything durable, and closes the image and its parents, so that
/// they may be renamed, replaced, resized and merged. I/O waits, and goes on when the caller dies.
///
/// `None`: it is not attached.
pub fn pause(path: &Path) -> Result<Option<Paused>> {
    let Some(found) = find(path)? else { return Ok(None) };
    if !is_same(&found.image, path) {
        return Err(Error::DeviceInUse {
            device: found.device.display().to_string(),
            holder: format!("its server opened {}, which was moved since; detach it first", found.image.display()),
        });
    }
    let mut client = conversation(&found)?;
    client.ask("pause")?;
    Ok(Some(Paused { client, resumed: false }))
}

impl Paused {
    /// Opens what has the image's name now, and gives the device its size. Answers the size in bytes.
    ///
    /// # Errors
    /// When it can't be opened: then I/O fails, and may be mended by another pause and resume.
    pub fn resume(mut self) -> Result<u64> {
        self.resumed = true;
        let size = self.client.ask("resume")?;
        size.parse().map_err(|_| Error::Invalid { what: "size", value: size, expected: "expected a number".to_owned() })
    }

    /// Ends the conversation without a word, as a process that dies does. For tests.
    #[doc(hidden)]
    pub fn abandon(mut self) {
        self.resumed = true;
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if !self.resumed {
            let _ = self.client.ask("resume");
        }
    }
}

/// The same until [`release`], even if the caller dies: for a host that changes the tree of a disk in use here. Idempotent.
///
/// # Errors
/// That the server is dead or could not make everything durable; then the disk is not held.
pub fn hold(path: &Path) -> Result<Done> {
    tell(path, "hold")
}

/// Ends it: what has the image's name now is opened and I/O goes on. Idempotent.
///
/// # Errors
/// When it can't be opened: then I/O fails, until another release.
pub fn release(path: &Path) -> Result<Done> {
    tell(path, "release")
}

/// `Already`: it is not attached.
fn tell(path: &Path, word: &str) -> Result<Done> {
    let Some(found) = find(path)? else { return Ok(Done::Already) };
    conversation(&found)?.ask(word).map(|_| Done::Changed)
}

/// Makes what was written to the device durable, without closing anything.
pub fn flush(attached: &Attached) -> Result<()> {
    blockdev::flush(&attached.device)?;
    conversation(attached)?.ask("flush").map(drop)
}

/// What the server says of itself: `serving BYTES DEPTH`, `paused` or `failed WHY`, and its last I/O error.
pub fn status(attached: &Attached) -> Result<String> {
    conversation(attached)?.ask("status")
}

fn conversation(attached: &Attached) -> Result<Client> {
    match Arguments::of(attached.server).filter(|a| a.source.path == attached.image) {
        Some(arguments) => Client::connect(&arguments.dir, attached.server),
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
                "mnt" => fuse::sweep_mount(&entry.path()),
                _ => {}
            }
        }
    }
}

/// What the server and the kernel call the image. Its last name may be a link (device-mapper's are) or be missing.
fn absolute(path: &Path) -> Result<PathBuf> {
    let invalid = || Error::io("find", path)(io::ErrorKind::InvalidInput.into());
    let name = path.file_name().ok_or_else(invalid)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(fs::canonicalize(parent).map_err(Error::io("find the directory", parent))?.join(name))
}
