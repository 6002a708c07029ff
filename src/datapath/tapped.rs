//! The keeper of a tapdisk that has the image open itself: a server process that reads and writes nothing.
//!
//! The keeper answers the words of [`super::control`] as any server does, so whoever changes an image need not know that a tapdisk
//! has it open. It gives tapdisk the image, pauses it and lets it go on by tap-ctl, keeps its log of changed blocks honest, and ends it.
//!
//! # The order of steps, and what a kill of the keeper leaves
//!
//! 1. A tapdisk is started. It has no image open.
//! 2. The record is written, see [`super::record`].
//! 3. The log says that it is not consistent.
//! 4. tapdisk opens the image.
//!
//! The end: tapdisk closes the image; the image's file is made durable; the log says that it is consistent; the record goes.
//!
//! From 2 on a kill leaves a tapdisk with a record, which may be paused. The next call that asks for the disk, and every sr_scan and
//! sr_attach, starts another keeper, which takes the record over, ends the pause, and gives up a log whose mark was taken away. When
//! tapdisk is killed, its keeper notices this within half a second, removes the record and ends; the log stays inconsistent.
//!
//! # What is not left to tapdisk
//!
//! tapdisk finds the parents of an image by the paths in its header, which other programs write. After each opening the files that it
//! has open are compared with the images that we find. A tapdisk that opens an image again forgets after a first failure that it was to
//! log and not to write (blktap, `tapdisk_vbd_open_vdi`: `vbd->flags = 0`), so both are looked at as well.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cbt::ChangeLog;
use super::control::Control;
use super::disk::{self, State};
use super::record::{self, Record};
use super::server::{self, Arguments, Caller};
use super::serving::Serving;
use super::{Source, is_same};
use crate::error::{Error, Result, one_line};
use crate::sys::process::{has_mapped, open_files};
use crate::sys::syslog;
use crate::sys::tapdisk::{NO_MIRROR, Tapdisk};

/// How often it is looked at whether tapdisk lives.
const BEAT: Duration = Duration::from_millis(500);
/// How long a process that has closed its image may take to end.
const LAST_STEPS: Duration = Duration::from_secs(5);
/// The longest name that tapdisk takes, with its zero; blktap, `TAPDISK_MESSAGE_MAX_PATH_LENGTH`.
const LONGEST_NAME: usize = 256;

/// An image that a tapdisk has open.
pub(super) struct Tapped {
    source: Source,
    record: Record,
    /// Bytes. tapdisk keeps the size that the disk had first.
    size: u64,
    /// The log that tapdisk writes, or did until a pause.
    log: Mutex<Option<Arc<ChangeLog>>>,
    now: Mutex<Now>,
    complaint: Mutex<Option<String>>,
    end: Mutex<Sender<()>>,
}

enum Now {
    Open {
        depth: usize,
    },
    Paused,
    /// tapdisk is paused and could not open the image again.
    Failed(String),
}

/// The images of a chain: files by which they are known, the leaf first.
type Chain = Vec<(u64, u64)>;

/// Keeps a tapdisk until its end is asked for, or it died. Answers `caller` when the disk can be used.
pub(super) fn serve(arguments: &Arguments, caller: &Caller) -> Result<()> {
    let (end, ended) = mpsc::channel();
    let tapped = Arc::new(Tapped::begin(arguments, end)?);
    let (control, listener) = match Control::bind(&arguments.dir) {
        Ok(bound) => bound,
        Err(cause) => return Err(cause.undone(tapped.finish())),
    };
    control.serve(listener, tapped.clone(), Box::new(|_| Ok(false)));
    caller.say(&format!("tapdisk {} {}", tapped.tapdisk().pid(), tapped.tapdisk().minor()));
    caller.has_attached();
    server::give_lock_up();
    let result = loop {
        match ended.recv_timeout(BEAT) {
            Ok(()) => match tapped.finish() {
                Err(refused) if tapped.record.lives() => control.tell(&Err(refused)),
                other => break other,
            },
            Err(RecvTimeoutError::Timeout) if tapped.record.lives() => {}
            Err(_) => {
                let died = tapped.died();
                tapped.tapdisk().free();
                syslog::write(&one_line(&died));
                break Err(died);
            }
        }
    };
    tapped.record.remove(&arguments.dir);
    control.end(&result);
    result
}

impl Tapped {
    fn begin(arguments: &Arguments, end: Sender<()>) -> Result<Tapped> {
        let (source, dir) = (&arguments.source, &arguments.dir);
        let orphan = record::all(dir).into_iter().find(|record| is_same(&record.image, &source.path));
        match orphan {
            Some(record) if record.is_kept(dir) => Err(Error::DeviceInUse {
                device: source.path.display().to_string(),
                holder: format!("tapdisk {}", record.tapdisk),
            }),
            Some(record) => Tapped::take_over(source, dir, record.take_over(dir)?, end),
            None => Tapped::open(source, dir, end),
        }
    }

    fn open(source: &Source, dir: &Path, end: Sender<()>) -> Result<Tapped> {
        let longest = source.path.as_os_str().len().max(log_path(source).map_or(0, |log| log.as_os_str().len()));
        if source.format.to_string().len() + 1 + longest >= LONGEST_NAME {
            return Err(Error::Unsupported { op: "opening it by tapdisk", why: "its path is too long".to_owned() });
        }
        if !source.read_only {
            // tapdisk does not mend what one that was killed has left of the footer at the end.
            disk::open_chain(source)?.close()?;
        }
        let (chain, size) = chain_of(source)?;
        let tapdisk = Tapdisk::spawn()?;
        let record = match Record::write(dir, tapdisk, source.read_only, source.format, &source.path) {
            Ok(record) => record,
            Err(cause) => {
                tapdisk.abandon();
                kill_and_await(tapdisk);
                return Err(cause);
            }
        };
        let opened = Tapped::open_recorded(source, &record, (&chain, size), end);
        opened.inspect_err(|_| {
            kill_and_await(tapdisk);
            if !record.lives() {
                record.remove(dir);
            }
        })
    }

    /// Steps 3 and 4. If it fails, tapdisk has closed the image or is about to be killed.
    fn open_recorded(
        source: &Source,
        record: &Record,
        (chain, size): (&Chain, u64),
        end: Sender<()>,
    ) -> Result<Tapped> {
        let tapdisk = record.tapdisk;
        let log = match source.read_only {
            true => Ok(None),
            false => ChangeLog::open(&source.path, size, None),
        };
        let log = log.inspect_err(|_| tapdisk.abandon())?;
        let tapped = Tapped::new(source, record.clone(), size, log, Now::Open { depth: chain.len() }, end);
        let driver = source.format.to_string();
        let opened = match tapdisk.open(&driver, &source.path, source.read_only, tapped.logged().as_deref()) {
            Ok(()) => tapped.check(chain).inspect_err(|_| drop(tapdisk.stop())),
            Err(refused) => {
                tapdisk.abandon();
                Err(refused)
            }
        };
        if opened.is_err() {
            kill_and_await(tapdisk);
            // Nobody has written through it.
            if let Some(log) = lock(&tapped.log).take().filter(|_| !record.lives()) {
                log.finish();
            }
        }
        opened.map(|()| tapped)
    }

    /// Goes on where a keeper was killed.
    fn take_over(source: &Source, dir: &Path, record: Record, end: Sender<()>) -> Result<Tapped> {
        let (chain, size) = chain_of(source)?;
        // Without the mark, which the other keeper took away, it is lost.
        let log = match source.read_only {
            true => None,
            false => ChangeLog::open(&source.path, size, None)?,
        };
        let tapdisk = record.tapdisk;
        let shown = tapdisk.shown()?;
        let Some(shown) = shown.filter(|shown| !shown.driver.is_empty()) else {
            // It had not opened the image yet, or had closed it.
            tapdisk.abandon();
            kill_and_await(tapdisk);
            record.remove(dir);
            return Err(Error::NoDevice {
                device: format!("tapdisk {tapdisk}"),
                why: "it had no image open and was ended".to_owned(),
            });
        };
        let now = if shown.is_pausing() { Now::Paused } else { Now::Open { depth: chain.len() } };
        let tapped = Tapped::new(source, record, size, log, now, end);
        if shown.is_pausing() {
            if !shown.is_paused() {
                tapdisk.pause()?;
            }
            tapped.resume()?;
        } else {
            tapped.check(&chain)?;
        }
        syslog::write(&format!(
            "the keeper of tapdisk {tapdisk} was killed; another one keeps {}",
            source.path.display()
        ));
        Ok(tapped)
    }

    fn new(
        source: &Source,
        record: Record,
        size: u64,
        log: Option<Arc<ChangeLog>>,
        now: Now,
        end: Sender<()>,
    ) -> Tapped {
        Tapped {
            source: source.clone(),
            record,
            size,
            log: Mutex::new(log),
            now: Mutex::new(now),
            complaint: Mutex::new(None),
            end: Mutex::new(end),
        }
    }

    fn tapdisk(&self) -> Tapdisk {
        self.record.tapdisk
    }

    /// The log that tapdisk is to write.
    fn logged(&self) -> Option<PathBuf> {
        lock(&self.log).as_ref().filter(|log| !log.is_lost()).and_then(|_| log_path(&self.source))
    }

    fn died(&self) -> Error {
        Error::NoDevice {
            device: format!("tapdisk {}", self.tapdisk()),
            why: format!("it died, and all I/O on {} fails", self.source.path.display()),
        }
    }

    /// Compares what tapdisk has open with what it should have. A log that is not written is given up.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it reads other images, or could write to a read-only disk.
    fn check(&self, chain: &Chain) -> Result<()> {
        let damaged = |what: &str| Err(Error::Damaged { path: self.source.path.clone(), what: what.to_owned() });
        let pid = self.tapdisk().pid();
        let open = open_files(pid)?;
        // An image has one parent: if it is another one, the one that we find is not open.
        if !chain.iter().all(|image| open.iter().any(|file| file.id == *image)) {
            return damaged("has other parents by the paths in its images than by their names");
        }
        if self.source.read_only && open.iter().any(|file| chain.first() == Some(&file.id) && file.is_writable) {
            return damaged("was opened for writing by tapdisk, and is read-only");
        }
        if let (Some(log), Some(path)) = (lock(&self.log).as_ref().filter(|log| !log.is_lost()), log_path(&self.source))
            && !has_mapped(pid, &path)
        {
            log.lose("tapdisk does not write it");
        }
        Ok(())
    }

    /// Lets tapdisk open what has the image's name now. It is paused.
    fn open_again(&self, secondary: Option<&str>) -> Result<usize> {
        let (chain, size) = chain_of(&self.source)?;
        if size != self.size {
            return Err(Error::Unsupported {
                op: "opening it again",
                why: format!("its size has changed from {} to {size} bytes, which tapdisk does not follow", self.size),
            });
        }
        if !self.source.read_only {
            let mut log = lock(&self.log);
            let now = ChangeLog::open(&self.source.path, size, Some(log.as_deref()))?;
            *log = now;
        }
        self.tapdisk().unpause(self.logged().as_deref(), secondary)?;
        match self.check(&chain) {
            Ok(()) => Ok(chain.len()),
            Err(wrong) => Err(wrong.undone(self.tapdisk().pause())),
        }
    }

    /// Lets it go on after a pause that tapdisk refused, which may have begun all the same.
    fn undo_pause(&self) -> Result<()> {
        match self.tapdisk().shown()? {
            Some(shown) if shown.is_pausing() => {
                if !shown.is_paused() {
                    self.tapdisk().pause()?;
                }
                self.open_again(None).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn close(&self) -> Result<()> {
        self.tapdisk().pause()?;
        self.settle()
    }

    /// Pauses tapdisk. If that fails, the disk goes on.
    fn close_or_undo(&self, now: &mut Now) -> Result<()> {
        match self.close() {
            Ok(()) => {
                *now = Now::Paused;
                Ok(())
            }
            Err(cause) => match self.undo_pause() {
                Ok(()) => Err(cause),
                Err(undo) => {
                    *now = Now::Failed(one_line(&undo));
                    Err(cause.undone(Err(undo)))
                }
            },
        }
    }

    /// Makes what tapdisk has written durable, which has closed the image.
    fn settle(&self) -> Result<()> {
        let path = &self.source.path;
        if !self.source.read_only {
            File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("make durable", path))?;
        }
        self.sync_log();
        Ok(())
    }

    /// Ends tapdisk. The log is good from then on if all went well.
    fn finish(&self) -> Result<()> {
        let stopped = self.tapdisk().stop();
        if stopped.is_err()
            && self.record.lives()
            && self.tapdisk().shown().is_ok_and(|it| it.is_some_and(|it| !it.driver.is_empty()))
        {
            return stopped;
        }
        kill_and_await(self.tapdisk());
        stopped?;
        self.settle()?;
        if let Some(log) = lock(&self.log).take() {
            log.finish();
        }
        Ok(())
    }
}

impl Serving for Tapped {
    fn state(&self) -> State {
        match &*lock(&self.now) {
            Now::Open { depth } => State::Serving { size: self.size, depth: *depth },
            Now::Paused => State::Paused,
            Now::Failed(why) => State::Failed(why.clone()),
        }
    }

    fn complaint(&self) -> Option<String> {
        lock(&self.complaint).clone()
    }

    fn is_tracked(&self) -> bool {
        lock(&self.log).as_ref().is_some_and(|log| !log.is_lost())
    }

    fn sync_log(&self) {
        let log = lock(&self.log).clone();
        if let Some(log) = log {
            // tapdisk writes it through a mapping.
            log.sync_all();
        }
    }

    /// tapdisk answers a request when it has written to the storage.
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        let mut now = lock(&self.now);
        match *now {
            Now::Open { .. } => self.close_or_undo(&mut now),
            Now::Paused | Now::Failed(_) => {
                *now = Now::Paused;
                Ok(())
            }
        }
    }

    fn resume(&self) -> Result<u64> {
        let mut now = lock(&self.now);
        if matches!(*now, Now::Open { .. }) {
            return Ok(self.size);
        }
        match self.open_again(None) {
            Ok(depth) => {
                *now = Now::Open { depth };
                Ok(self.size)
            }
            Err(error) => {
                let why = one_line(&error);
                syslog::write(&format!("tapdisk {} stays paused: {why}", self.tapdisk()));
                *now = Now::Failed(why.clone());
                *lock(&self.complaint) = Some(why);
                Err(error)
            }
        }
    }

    fn mirror(&self, secondary: &str) -> Result<()> {
        let mut now = lock(&self.now);
        if !matches!(*now, Now::Open { .. }) {
            return Err(Error::Unsupported { op: "sending what is written", why: "the disk is paused".to_owned() });
        }
        self.close_or_undo(&mut now)?;
        let sent = self.open_again(Some(secondary));
        let (depth, result) = match sent {
            Ok(depth) => (Ok(depth), Ok(())),
            Err(refused) => (self.open_again(Some(NO_MIRROR)), Err(refused)),
        };
        match depth {
            Ok(depth) => *now = Now::Open { depth },
            Err(undo) => {
                *now = Now::Failed(one_line(&undo));
                return result.map_err(|cause: Error| cause.undone(Err(undo)));
            }
        }
        result
    }

    fn end(&self) -> bool {
        lock(&self.end).send(()).is_ok()
    }
}

/// The images of a disk as we find them, and its bytes.
fn chain_of(source: &Source) -> Result<(Chain, u64)> {
    let chain = disk::open_chain(&Source { read_only: true, ..source.clone() })?;
    let id = |path: &PathBuf| {
        let meta = fs::metadata(path).map_err(Error::io("examine", path))?;
        Ok((meta.dev(), meta.ino()))
    };
    Ok((chain.images().iter().map(id).collect::<Result<_>>()?, chain.virtual_size()))
}

fn log_path(source: &Source) -> Option<PathBuf> {
    ChangeLog::beside(&source.path)
}

/// Ends a process that has no image open, if it does not end by itself.
fn kill_and_await(tapdisk: Tapdisk) {
    let ends = || {
        let until = Instant::now() + LAST_STEPS;
        while tapdisk.lives() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        !tapdisk.lives()
    };
    if !ends() {
        let _ = kill(Pid::from_raw(tapdisk.pid() as i32), Signal::SIGKILL);
        ends();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
