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
//! log, not to write, and to send elsewhere (blktap, `tapdisk_vbd_open_vdi`: `vbd->flags = 0`), so these are looked at as well.

mod begin;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Source;
use super::cbt::ChangeLog;
use super::control::{Control, why_silent};
use super::disk::{self, State};
use super::record::Record;
use super::server::{self, Arguments, Caller};
use super::serving::Serving;
use crate::error::{Error, Result, one_line};
use crate::sys::process::{has_mapped, open_files};
use crate::sys::syslog;
use crate::sys::tapdisk::{NO_MIRROR, NOWHERE, Tapdisk};

/// How often it is looked at whether tapdisk lives.
const BEAT: Duration = Duration::from_millis(500);
/// So often, a tapdisk that stays paused because it could not open its image again is asked to do so.
const BEATS_BETWEEN_TRIALS: u32 = 10;
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
    /// Where tapdisk sends what is written, besides.
    mirror: Mutex<Option<String>>,
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
    let mut beats = 0_u32;
    let result = loop {
        match ended.recv_timeout(BEAT) {
            Ok(()) => match tapped.finish() {
                Err(refused) if tapped.record.lives() => control.tell(&Err(refused)),
                other => break other,
            },
            Err(RecvTimeoutError::Timeout) if tapped.record.lives() => {
                beats += 1;
                if beats.is_multiple_of(BEATS_BETWEEN_TRIALS) {
                    control.mend(&*tapped);
                }
            }
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
            mirror: Mutex::new(None),
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
        match self.check(&chain).and_then(|()| self.check_mirror(&chain, secondary)) {
            Ok(()) => Ok(chain.len()),
            Err(wrong) => Err(wrong.undone(self.tapdisk().pause())),
        }
    }

    /// Looks whether what is written is sent where it was to be sent. If that was forgotten, what was written since is missing there:
    /// the beginning of it fails, and later tapdisk is made to say that it failed, which whoever reads the copy asks for.
    ///
    /// # Errors
    /// Of the beginning.
    fn check_mirror(&self, chain: &Chain, secondary: Option<&str>) -> Result<()> {
        let mut mirror = lock(&self.mirror);
        let expected = secondary.map(str::to_owned).or_else(|| mirror.clone()).filter(|it| it != NO_MIRROR);
        let Some(to) = &expected else {
            *mirror = None;
            return Ok(());
        };
        let stats = self.tapdisk().stats()?;
        if !stats.sends_to(to) {
            *mirror = None;
            if secondary.is_some() {
                let device = format!("tapdisk {}", self.tapdisk());
                return Err(Error::NoDevice { device, why: format!("it does not send to {to} what is written") });
            }
            syslog::write(&format!("tapdisk {} has ceased to send to {to} what is written", self.tapdisk()));
            self.tapdisk().pause()?;
            self.tapdisk().unpause(self.logged().as_deref(), Some(NOWHERE))?;
            return self.check(chain);
        }
        *mirror = expected;
        Ok(())
    }

    /// The depth of the chain, if tapdisk is not paused and has it open.
    ///
    /// # Errors
    /// That it is not so.
    fn goes_on(&self) -> Result<usize> {
        match self.tapdisk().shown()? {
            Some(shown) if !shown.is_pausing() && !shown.driver.is_empty() => {
                let (chain, _) = chain_of(&self.source)?;
                self.check(&chain).map(|()| chain.len())
            }
            _ => Err(silent(self.tapdisk())),
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
            Some(_) => Ok(()),
            None => Err(silent(self.tapdisk())),
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
        // What does not answer may have the image open.
        let is_closed = || self.tapdisk().shown().is_ok_and(|it| it.is_some_and(|it| it.driver.is_empty()));
        if stopped.is_err() && self.record.lives() && !is_closed() {
            return why_silent(self.tapdisk().pid()).map_or(stopped, |_| Err(silent(self.tapdisk())));
        }
        kill_and_await(&self.record);
        if self.record.lives() {
            return Err(silent(self.tapdisk()));
        }
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
            // tapdisk may go on all the same after a failure.
            Now::Open { .. } | Now::Failed(_) => self.close_or_undo(&mut now),
            Now::Paused => Ok(()),
        }
    }

    fn resume(&self) -> Result<u64> {
        let mut now = lock(&self.now);
        if matches!(*now, Now::Open { .. }) {
            return Ok(self.size);
        }
        match self.open_again(None).or_else(|refused| self.goes_on().map_err(|_| refused)) {
            Ok(depth) => {
                *now = Now::Open { depth };
                Ok(self.size)
            }
            Err(error) => {
                let why = one_line(&error);
                if lock(&self.complaint).replace(why.clone()).as_ref() != Some(&why) {
                    syslog::write(&format!("tapdisk {} stays paused: {why}", self.tapdisk()));
                }
                *now = Now::Failed(why);
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

/// It does not answer tap-ctl, which leaves such a one out.
fn silent(tapdisk: Tapdisk) -> Error {
    let why = why_silent(tapdisk.pid()).map(|why| format!(" ({why})")).unwrap_or_default();
    let holder = format!("tapdisk {tapdisk}, which does not answer{why}");
    Error::DeviceInUse { device: "the disk".to_owned(), holder }
}

/// Ends a process that has no image open, if it does not end by itself.
fn kill_and_await(record: &Record) {
    let ends = || {
        let until = Instant::now() + LAST_STEPS;
        while record.lives() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        !record.lives()
    };
    if !ends() {
        record.tapdisk.kill(record.began);
        ends();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
