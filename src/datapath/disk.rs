//! The image behind a server. It can be closed and opened again by path while I/O waits.

mod chain;
mod uses;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};

use super::cbt::{ChangeLog, Tracked};
use super::{Source, patient};
use crate::error::{Error, Result, one_line};
use crate::image::disk::Served;
pub(super) use chain::open as open_chain;
use uses::{Used, open_used};

/// A request that took this long has waited for the storage. A request that needs the page cache only takes
/// microseconds.
const SLOW: Duration = Duration::from_micros(500);
/// The number of requests that may wait as well, after one that has waited for the storage.
const SLOW_FOR: u32 = 256;

/// Any number of threads read and write; one at a time pauses and resumes.
pub struct Disk {
    source: Source,
    gate: RwLock<Gate>,
    /// The locks by which other hosts see which images are open.
    uses: Mutex<Option<Used>>,
    /// The log of what is written, or was until a pause.
    log: Mutex<Option<Arc<ChangeLog>>>,
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

/// The states that a disk may be in.
pub enum State {
    Serving { size: u64, depth: usize },
    Paused,
    Failed(String),
}

impl Disk {
    pub fn open(source: &Source) -> Result<Disk> {
        let born = Instant::now();
        let (chain, uses) = open_used(source)?;
        let (chain, log) = tracked(source, chain, None)?;
        let disk = Disk {
            gate: RwLock::new(Gate::Open(chain)),
            uses: Mutex::new(None),
            log: Mutex::new(log),
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

    /// Reads as [`Disk::read`] does if that needs no wait: the disk is not paused, and the bytes are in the page cache, or
    /// likely to be where the filesystem can't tell (NFS, tmpfs). Else gives `then` back.
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

    /// Writes as [`Disk::write`] does if that is likely to need no wait: the disk is not paused, and the last requests did not
    /// wait. `None`: nothing was written.
    pub fn try_write(&self, bytes: &[u8], offset: u64) -> Option<Result<(), Errno>> {
        let result = self.at_once(true, |chain| chain.write_at(bytes, offset))?;
        Some(result.map_err(|e| self.complain(&e)))
    }

    /// Whether all that is written to the disk is logged, or was until it was paused.
    pub fn is_tracked(&self) -> bool {
        lock(&self.log).as_ref().is_some_and(|log| !log.is_lost())
    }

    /// Makes the log of what was written durable.
    pub fn sync_log(&self) {
        // A write that waits for the log must not wait for its sync.
        let log = lock(&self.log).clone();
        if let Some(log) = log {
            log.sync();
        }
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

    /// Makes earlier writes durable before it returns `Ok`.
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
        self.sync_log();
        drop(gate);
        // A failed close leaves the image as a crash after a flush does: nothing is lost.
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
        let opened = open_used(&self.source).and_then(|(chain, uses)| {
            let mut log = lock(&self.log);
            let (chain, now) = tracked(&self.source, chain, Some(log.as_deref()))?;
            *log = now;
            Ok((chain, uses))
        });
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
        if let Some(log) = lock(&self.log).take().filter(|_| closed.is_ok()) {
            log.finish();
        }
        *lock(&self.uses) = None;
        closed
    }
}

/// A chain, and the log of what is written to it.
type Logged = (Box<dyn Served>, Option<Arc<ChangeLog>>);

/// The chain with the log of what is written to it, if the disk has one. `before`: see [`ChangeLog::open`].
fn tracked(source: &Source, chain: Box<dyn Served>, before: Option<Option<&ChangeLog>>) -> Result<Logged> {
    let log = match source.read_only {
        true => None,
        false => ChangeLog::open(&source.path, chain.virtual_size(), before)?,
    };
    match log {
        Some(log) => Ok((Box::new(Tracked { chain, log: log.clone() }), Some(log))),
        None => Ok((chain, None)),
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(gate: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    gate.read().unwrap_or_else(PoisonError::into_inner)
}
