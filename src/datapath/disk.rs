//! The image behind a server. It can be closed and opened again by path while I/O waits.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{UsageWho, getrusage};

use super::patient::{self, Patient};
use super::{Source, USES, use_of};
use crate::error::{Error, Result, one_line};
use crate::image::disk::Served;
use crate::image::name::ImageName;
use crate::image::storage::FileStorage;
use crate::image::{qcow2, vhd};
use crate::sys::uses::{self, Uses};
use crate::types::{Format, Mode};

/// What needs the page cache only takes microseconds. What took so long has waited for the storage,
const SLOW: Duration = Duration::from_micros(500);
/// and so many requests after it may wait as well.
const SLOW_FOR: u32 = 256;

/// How long the locks on the images count after they were asked for: no lease of an NFS server is shorter.
const COUNTS_FOR: Duration = Duration::from_secs(10);

/// Any number of threads read and write; one at a time pauses and resumes.
pub struct Disk {
    source: Source,
    gate: RwLock<Gate>,
    /// What other hosts see of the images that are open.
    uses: Mutex<Option<Used>>,
    paused: Mutex<bool>,
    resumed: Condvar,
    born: Instant,
    /// Milliseconds after `born`, up to which the locks of `uses` are known to count, see [`Disk::stay_in_use`].
    counts_until: AtomicU64,
    /// How many requests are not to be tried at once.
    slow: AtomicU32,
    /// The words of the last I/O error, for `status`.
    complaint: Mutex<Option<String>>,
}

enum Gate {
    Open(Box<dyn Served>),
    /// Closed for a while: requests wait.
    Paused,
    /// It could not be opened again: requests fail, until somebody pauses and resumes with success.
    Failed(String),
}

/// Images that other hosts see in use, and what they were when that began.
struct Used {
    _locks: Uses,
    images: Vec<Identity>,
}

/// What changes when another image takes an image's name, or an image grows.
#[derive(Clone, PartialEq, Eq)]
struct Identity {
    path: PathBuf,
    file: (u64, u64),
    virtual_size: u64,
}

/// What a disk is doing.
pub enum State {
    Serving { size: u64, depth: usize },
    Paused,
    Failed(String),
}

impl Disk {
    pub fn open(source: &Source) -> Result<Disk> {
        let born = Instant::now();
        let (chain, uses) = open_used(source)?;
        let disk = Disk {
            gate: RwLock::new(Gate::Open(chain)),
            uses: Mutex::new(None),
            born,
            counts_until: AtomicU64::new(u64::MAX),
            source: source.clone(),
            paused: Mutex::new(false),
            resumed: Condvar::new(),
            slow: AtomicU32::new(0),
            complaint: Mutex::new(None),
        };
        disk.have_taken(uses, born);
        Ok(disk)
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Bytes of the disk; what it was when it was last open, while it is not.
    pub fn size(&self) -> Option<u64> {
        match &*read(&self.gate) {
            Gate::Open(chain) => Some(chain.virtual_size()),
            _ => None,
        }
    }

    pub fn state(&self) -> State {
        match &*read(&self.gate) {
            Gate::Open(chain) => State::Serving { size: chain.virtual_size(), depth: chain.images().len() },
            Gate::Paused => State::Paused,
            Gate::Failed(why) => State::Failed(why.clone()),
        }
    }

    pub fn complaint(&self) -> Option<String> {
        lock(&self.complaint).clone()
    }

    /// Reads `len` bytes and hands them to `then`, or the errno.
    pub fn read<T>(&self, offset: u64, len: usize, then: impl FnOnce(Result<&[u8], Errno>) -> T) -> T {
        with_buffer(len, |buffer| match self.with(|chain| chain.read_at(buffer, offset)) {
            Ok(()) => then(Ok(buffer)),
            Err(errno) => then(Err(errno)),
        })
    }

    /// The same if it can be done at once: the disk is not paused, the bytes are in the page cache, or likely to
    /// be where the filesystem can't tell (NFS, tmpfs). Else gives `then` back.
    pub fn try_read<T, F: FnOnce(Result<&[u8], Errno>) -> T>(&self, offset: u64, len: usize, then: F) -> Result<T, F> {
        with_buffer(len, |buffer| {
            match self.at_once(!patient::can_tell(), |chain| patient::without_waiting(|| chain.read_at(buffer, offset)))
            {
                None => Err(then),
                Some(Ok(())) => Ok(then(Ok(buffer))),
                Some(Err(e)) if e.errno() == Some(Errno::EAGAIN as i32) => Err(then),
                Some(Err(e)) => Ok(then(Err(self.complain(&e)))),
            }
        })
    }

    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Errno> {
        self.with(|chain| chain.write_at(bytes, offset))
    }

    /// The same if it is likely to be done at once: the disk is not paused, and requests lately did not wait.
    pub fn try_write(&self, bytes: &[u8], offset: u64) -> Option<Result<(), Errno>> {
        let result = self.at_once(true, |chain| chain.write_at(bytes, offset))?;
        Some(result.map_err(|e| self.complain(&e)))
    }

    fn at_once<T>(&self, may_wait: bool, io: impl FnOnce(&dyn Served) -> Result<T>) -> Option<Result<T>> {
        if self.may_have_lost_uses() {
            return None;
        }
        let gate = self.gate.try_read().ok()?;
        let Gate::Open(chain) = &*gate else { return None };
        if !may_wait {
            return Some(io(&**chain));
        }
        let slow = self.slow.load(Relaxed);
        if slow > 0 {
            // Only the thread that takes the requests counts.
            self.slow.store(slow - 1, Relaxed);
            return None;
        }
        let (start, waits) = (Instant::now(), waits());
        let result = io(&**chain);
        if start.elapsed() > SLOW && self::waits() != waits {
            self.slow.store(SLOW_FOR, Relaxed);
        }
        Some(result)
    }

    /// What was written before is durable when this says so.
    pub fn flush(&self) -> Result<(), Errno> {
        self.with(|chain| chain.flush())
    }

    /// The range reads as zeros afterwards, and takes no more space than it must.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.with(|chain| chain.write_zeroes(offset, len))
    }

    fn with<T>(&self, mut io: impl FnMut(&dyn Served) -> Result<T>) -> Result<T, Errno> {
        loop {
            if self.may_have_lost_uses() {
                self.renew_uses().map_err(|error| self.complain(&error))?;
            }
            match &*read(&self.gate) {
                Gate::Open(chain) => return io(&**chain).map_err(|error| self.complain(&error)),
                Gate::Failed(_) => return Err(Errno::EIO),
                Gate::Paused => {}
            }
            let mut paused = lock(&self.paused);
            while *paused {
                paused = self.resumed.wait(paused).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn complain(&self, error: &Error) -> Errno {
        *lock(&self.complaint) = Some(one_line(error));
        errno_of(error).unwrap_or(Errno::EIO)
    }

    /// Lets the requests under way end, makes everything durable and closes the image and its parents.
    /// Requests wait from now on. If it fails the disk goes on serving.
    pub fn pause(&self) -> Result<()> {
        *lock(&self.paused) = true;
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let result = match std::mem::replace(&mut *gate, Gate::Paused) {
            Gate::Open(chain) => match chain.flush() {
                Ok(()) => close(chain, self.source.read_only),
                Err(error) => {
                    *gate = Gate::Open(chain);
                    drop(gate);
                    self.go_on();
                    return Err(error);
                }
            },
            Gate::Paused | Gate::Failed(_) => Ok(()),
        };
        *lock(&self.uses) = None;
        drop(gate);
        // What is on the disk after a failed close is what a crash after a flush leaves: nothing is lost.
        if let Err(error) = result {
            self.resume()?;
            return Err(error);
        }
        Ok(())
    }

    /// Opens what the path leads to now and lets the requests go on. Answers the disk's size.
    /// If it can't be opened they fail, until another pause and resume.
    pub fn resume(&self) -> Result<u64> {
        // Somebody else has ended the pause. A second chain would not know what this one has not written yet.
        if let Gate::Open(chain) = &*read(&self.gate) {
            return Ok(chain.virtual_size());
        }
        let asked = Instant::now();
        let opened = open_used(&self.source);
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let result = match opened {
            Ok((chain, uses)) => {
                let size = chain.virtual_size();
                *gate = Gate::Open(chain);
                self.have_taken(uses, asked);
                Ok(size)
            }
            Err(error) => {
                *gate = Gate::Failed(one_line(&error));
                Err(error)
            }
        };
        drop(gate);
        self.go_on();
        result
    }

    /// Takes the locks again from time to time by which other hosts see which images are open, as long as the disk lives: an
    /// NFS client that was away from its server for longer than the lease loses them, and nobody tells. If an image was
    /// changed meanwhile, requests fail from then on instead of being written into what may be another disk's base by now.
    ///
    /// Nothing is read or written either once the locks were not taken for [`COUNTS_FOR`]: the request takes them first.
    /// What the kernel had in its cache before an outage is out of reach; it writes that when the server is back.
    pub fn stay_in_use(self: &Arc<Self>) {
        if !self.source.shared {
            return;
        }
        let disk = Arc::downgrade(self);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(COUNTS_FOR / 2);
                match disk.upgrade() {
                    // It is asked again, and so does a request.
                    Some(disk) => drop(disk.renew_uses().map_err(|error| disk.complain(&error))),
                    None => break,
                }
            }
        });
    }

    /// Keeps locks that were asked for at this time.
    fn have_taken(&self, uses: Option<Used>, asked: Instant) {
        let until = (asked + COUNTS_FOR).saturating_duration_since(self.born).as_millis() as u64;
        self.counts_until.store(if uses.is_some() { until } else { u64::MAX }, Relaxed);
        *lock(&self.uses) = uses;
    }

    fn may_have_lost_uses(&self) -> bool {
        match self.counts_until.load(Relaxed) {
            u64::MAX => false,
            until => self.born.elapsed().as_millis() as u64 > until,
        }
    }

    /// Takes the locks again. If it answers, no other host can have changed the images, or all requests fail.
    ///
    /// # Errors
    /// [`Error::Io`]: the server answers with an error, so it is not known.
    fn renew_uses(&self) -> Result<()> {
        {
            // A pause, after which the images may be changed, waits for the end of this.
            let gate = read(&self.gate);
            let Gate::Open(chain) = &*gate else { return Ok(()) };
            let Some(images) = lock(&self.uses).as_ref().map(|used| used.images.clone()) else { return Ok(()) };
            let asked = Instant::now();
            match used_images(&self.source, &chain.images(), asked) {
                Ok(Some(now)) if now.images == images => {
                    self.have_taken(Some(now), asked);
                    return Ok(());
                }
                // Another host has an image alone, which it could not have if our lock still counted; or has had it.
                Err(e) if matches!(e.errno().map(Errno::from_raw), Some(Errno::ETIMEDOUT | Errno::ENOENT)) => {}
                Ok(_) => {}
                Err(other) => return Err(other),
            }
        }
        // Requests wait until it is known what became of the images.
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let Gate::Open(chain) = &*gate else { return Ok(()) };
        let Some(images) = lock(&self.uses).as_ref().map(|used| used.images.clone()) else { return Ok(()) };
        let asked = Instant::now();
        let why = match used_images(&self.source, &chain.images(), asked + PATIENCE) {
            Ok(Some(now)) if now.images == images => {
                self.have_taken(Some(now), asked);
                return Ok(());
            }
            Ok(_) => "another host changed the images of the disk while this one had lost its lock on them".to_owned(),
            Err(error) => format!("the lock on the images of the disk was lost: {}", one_line(&error)),
        };
        *lock(&self.complaint) = Some(why.clone());
        // Not closed: that would write into the images.
        *gate = Gate::Failed(format!("{why}; detach it"));
        self.have_taken(None, asked);
        Ok(())
    }

    fn go_on(&self) {
        *lock(&self.paused) = false;
        self.resumed.notify_all();
    }

    /// Makes everything durable and closes the image. Requests fail from now on.
    pub fn close(&self) -> Result<()> {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let was = std::mem::replace(&mut *gate, Gate::Failed("it was detached".to_owned()));
        drop(gate);
        self.go_on();
        let closed = match was {
            Gate::Open(chain) => close(chain, self.source.read_only),
            _ => Ok(()),
        };
        *lock(&self.uses) = None;
        closed
    }
}

/// The number that says what failed to those who hear no words.
pub fn errno_of(error: &Error) -> Option<Errno> {
    match error {
        Error::Invalid { .. } => Some(Errno::EINVAL),
        // The disk is larger than its format has room for.
        Error::TooBig { .. } | Error::NoSpace { .. } => Some(Errno::ENOSPC),
        _ => error.errno().map(Errno::from_raw),
    }
}

/// How often this thread has waited for something; that others had the processor does not count.
fn waits() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

/// A buffer of this thread.
fn with_buffer<T>(len: usize, then: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        then(&mut buffer[..len])
    })
}

fn close(chain: Box<dyn Served>, read_only: bool) -> Result<()> {
    if read_only { Ok(()) } else { chain.close() }
}

/// How long a change of a tree by another host is waited for. It takes milliseconds, on a slow server more.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the chain, and says so where other hosts may change it: once they see it, they leave it alone.
fn open_used(source: &Source) -> Result<(Box<dyn Served>, Option<Used>)> {
    let mut chain = open(source)?;
    if !source.shared {
        return Ok((chain, None));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let images = chain.images();
        let Some(used) = used_images(source, &images, deadline)? else { return Ok((chain, None)) };
        // The tree may have been changed before it was seen that we use it.
        chain = open(source)?;
        if chain.images() == images {
            return Ok((chain, Some(used)));
        }
    }
}

/// Shows other hosts that these images are in use. `None`: they can't be changed here, and no host has changed one yet.
fn used_images(source: &Source, images: &[PathBuf], deadline: Instant) -> Result<Option<Used>> {
    let path = source.path.with_file_name(USES);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
            match options.write(false).create(false).open(&path) {
                // Who can write here has not changed a tree yet.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                file => file,
            }
        }
        file => file,
    };
    let file = file.map_err(Error::io("open", &path))?;
    let locks = uses::hold(file, &path, images.iter().map(|image| use_of(image)), deadline)?;
    let images = images.iter().map(|image| identity(image)).collect::<Result<_>>()?;
    Ok(Some(Used { _locks: locks, images }))
}

/// Opens the image by its name, so that an NFS server is asked what has it now.
fn identity(path: &Path) -> Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    let file = open_image(path, Mode::ReadOnly)?;
    let meta = file.metadata().map_err(Error::io("examine", path))?;
    let place = FileStorage::new(file, path)?;
    let virtual_size = match ImageName::format_of(path) {
        Some(Format::Vhd) => vhd::query(&place)?.virtual_size,
        Some(Format::Qcow2) => qcow2::Header::read(&place)?.virtual_size,
        Some(Format::Raw) | None => meta.len(),
    };
    Ok(Identity { path: path.to_owned(), file: (meta.dev(), meta.ino()), virtual_size })
}

fn open(source: &Source) -> Result<Box<dyn Served>> {
    let mode = if source.read_only { Mode::ReadOnly } else { Mode::ReadWrite };
    let place = |path: &Path, mode: Mode| -> Result<Arc<Patient>> {
        Ok(Arc::new(Patient(FileStorage::new(open_image(path, mode)?, path)?)))
    };
    let is_raw = |name: &str| ImageName::format_of(name) == Some(Format::Raw);
    let leaf = place(&source.path, mode)?;
    match source.format {
        Format::Vhd => {
            let chain = vhd::Chain::open(leaf, mode, |link| {
                let parent = place(&parent_path(&source.path, link.file_name(), &link.name)?, Mode::ReadOnly)?;
                // The name decides, as it does in the SR; whether the header agrees, the chain finds out.
                Ok(if is_raw(&link.name) { vhd::Parent::Raw(parent) } else { vhd::Parent::Vhd(parent) })
            })?;
            Ok(Box::new(chain))
        }
        Format::Qcow2 => {
            let chain = qcow2::Chain::open(qcow2::Parent::Qcow2(leaf), mode, |name| {
                let parent = place(&parent_path(&source.path, Some(name), name)?, Mode::ReadOnly)?;
                // The name decides, as it does in the SR.
                Ok(if is_raw(name) { qcow2::Parent::Raw(parent) } else { qcow2::Parent::Qcow2(parent) })
            })?;
            Ok(Box::new(chain))
        }
        Format::Raw => Err(Error::Unsupported { op: "serving it", why: "a raw image needs no server".to_owned() }),
    }
}

/// Images of one tree lie in one directory: of the path in a header only the last name counts.
fn parent_path(leaf: &Path, name: Option<&str>, said: &str) -> Result<PathBuf> {
    match name {
        Some(name) if !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']) => {
            Ok(leaf.with_file_name(name))
        }
        _ => Err(Error::Damaged { path: leaf.to_owned(), what: format!("its parent's name is {said:?}") }),
    }
}

/// Opens an image: a regular file, itself and not through a link, or a block device below /dev, where device-mapper names
/// them by links. A device or a link to one in the directory of an SR was put there by somebody who wants to read this
/// host's disks through a guest's.
fn open_image(path: &Path, mode: Mode) -> Result<File> {
    let is_block = |meta: std::fs::Metadata| meta.file_type().is_block_device();
    let is_device = path.starts_with("/dev") && std::fs::metadata(path).is_ok_and(is_block);
    // O_NONBLOCK: a FIFO in the place of an image is an error, not a wait.
    let flags = libc::O_NONBLOCK | if is_device { 0 } else { libc::O_NOFOLLOW };
    let mut options = OpenOptions::new();
    options.read(true).write(mode == Mode::ReadWrite).custom_flags(flags);
    let file = options.open(path).map_err(Error::io("open", path))?;
    if !is_device && !file.metadata().map_err(Error::io("examine", path))?.is_file() {
        return Err(Error::Damaged { path: path.to_owned(), what: "is not a regular file".to_owned() });
    }
    Ok(file)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(gate: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    gate.read().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4 << 20;

    #[test]
    fn a_device_in_the_directory_of_an_sr_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let is_block = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_block_device());
        let (link, pipe) = (dir.path().join("parent.raw"), dir.path().join("pipe.raw"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(open_image(&pipe, Mode::ReadOnly).is_err(), "a pipe");
        // A container may have no block device.
        if let Some(device) = std::fs::read_dir("/dev").unwrap().flatten().find(is_block) {
            std::os::unix::fs::symlink(device.path(), &link).unwrap();
            assert!(open_image(&link, Mode::ReadOnly).is_err(), "a link to {}", device.path().display());
        }
    }

    fn image(path: &Path, parent: Option<&Path>) {
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        let place = FileStorage::new(file, path).unwrap();
        let Some(parent) = parent else { return drop(vhd::create(&place, &vhd::NewImage::new(SIZE)).unwrap()) };
        let info = vhd::query(&FileStorage::open(parent, Mode::ReadOnly).unwrap()).unwrap();
        let link = vhd::ParentLink::beside(
            parent.file_name().unwrap().to_str().unwrap(),
            Some(info.uuid),
            vhd::timestamp(std::time::SystemTime::now()),
        );
        vhd::create_child(&place, &vhd::NewImage::new(SIZE), &link).unwrap();
    }

    /// A disk of an SR that hosts share, with data in it.
    fn disk(dir: &Path) -> Disk {
        let path = dir.join("leaf.vhd");
        image(&path, None);
        let disk = Disk::open(&Source { format: Format::Vhd, path, read_only: false, shared: true }).unwrap();
        disk.write(&[7; 4096], 0).unwrap();
        disk.flush().unwrap();
        disk
    }

    /// What an outage that is longer than the lease does.
    fn lose_lock(disk: &Disk) {
        let elsewhere = tempfile::tempfile().unwrap();
        let nothing = uses::hold(elsewhere, Path::new("nothing"), [], Instant::now()).unwrap();
        lock(&disk.uses).as_mut().unwrap()._locks = nothing;
    }

    /// Another host wants the leaf to itself.
    fn alone(dir: &Path) -> Option<Uses> {
        let path = dir.join(USES);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        uses::alone(file, &path, ["leaf"]).unwrap()
    }

    #[test]
    fn a_lost_lock_on_the_images_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        assert!(alone(dir.path()).is_none());
        lose_lock(&disk);
        drop(alone(dir.path()).expect("it is lost"));
        disk.renew_uses().unwrap();
        assert!(alone(dir.path()).is_none(), "it was not taken again");
        disk.write(&[8; 4096], 0).unwrap();
        disk.pause().unwrap();
        assert!(alone(dir.path()).is_some(), "a paused disk is nobody's");
        disk.renew_uses().unwrap();
        assert!(alone(dir.path()).is_some(), "a paused disk is nobody's");
        disk.resume().unwrap();
        disk.close().unwrap();
    }

    #[test]
    fn requests_wait_for_another_host_that_has_the_images_alone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        lose_lock(&disk);
        let other = alone(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let renewal = scope.spawn(|| disk.renew_uses().unwrap());
            std::thread::sleep(Duration::from_millis(200));
            assert!(!renewal.is_finished());
            drop(other);
        });
        disk.write(&[8; 4096], 0).unwrap();
        assert!(alone(dir.path()).is_none());
        disk.close().unwrap();
    }

    #[test]
    fn nothing_is_written_into_an_image_that_became_a_base_while_the_lock_was_lost() {
        for renew in [|disk: &Disk| drop(disk.renew_uses()), |disk: &Disk| disk.counts_until.store(0, Relaxed)] {
            nothing_is_written_after(renew);
        }
    }

    fn nothing_is_written_after(renew: impl Fn(&Disk)) {
        let dir = tempfile::tempdir().unwrap();
        let (leaf, base) = (dir.path().join("leaf.vhd"), dir.path().join("base.vhd"));
        let disk = disk(dir.path());
        lose_lock(&disk);
        let other = alone(dir.path()).unwrap();
        let new = dir.path().join("new.vhd");
        image(&new, Some(&leaf));
        std::fs::rename(&leaf, &base).unwrap();
        std::fs::rename(&new, &leaf).unwrap();
        drop(other);
        let before = std::fs::read(&base).unwrap();
        renew(&disk);
        assert_eq!(disk.write(&[9; 4096], 0), Err(Errno::EIO));
        assert_eq!(disk.flush(), Err(Errno::EIO));
        assert!(disk.complaint().unwrap().contains("another host changed the images"));
        assert!(alone(dir.path()).is_some(), "it holds the lock of what it does not serve");
        disk.close().unwrap();
        assert!(std::fs::read(&base).unwrap() == before, "the base was written to");
    }

    #[test]
    fn an_image_that_another_host_made_larger_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        lose_lock(&disk);
        let place: Arc<dyn vhd::Storage> =
            Arc::new(FileStorage::open(dir.path().join("leaf.vhd"), Mode::ReadWrite).unwrap());
        vhd::resize(&place, 2 * SIZE).unwrap();
        disk.renew_uses().unwrap();
        assert_eq!(disk.write(&[9; 4096], 0), Err(Errno::EIO));
    }
}
