//! What a running call has begun: `/var/lib/sm/backup/RUN.json`, made durable before the first change.
//!
//! A call holds the lock of its set on this host as long as it runs. So a record whose set can be locked was left by a kill, and
//! whoever finds it undoes what it tells of.

use std::time::Instant;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::hooks::{self, Point, Variables};
use super::name::{RunId, SetName, StoreName};
use super::set::Member;
use super::shelf::Shelf;
use super::{Call, bases, store};
use crate::call::Unreadable;
use crate::error::{Error, Result, one_line};
use crate::sys::durable::{self, Dir};
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::{run_dir, syslog};

const EXTENSION: &str = ".json";

/// The changes that a call may have made, and that have to be undone if it is killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub run: RunId,
    pub set: SetName,
    /// Where it writes.
    pub store: Option<StoreName>,
    /// The disks that it locks.
    pub locks: Vec<Member>,
    /// What uses the disks is paused, or may be: the variables of the hooks that resume it.
    #[serde(default)]
    pub paused: Option<Variables>,
    /// The disks that it attaches for a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<Member>,
    /// The export is there, and the disks of `locks` are deleted. That is completed, not undone.
    #[serde(default)]
    pub deletes: bool,
    /// The disks and snapshots that it makes.
    pub made: Vec<Member>,
    /// Of an import whose disks get UUIDs that it did not choose, in the order of `made`: the labels of the disks once all of them
    /// are there. Until then each has the label [`Record::mark`], by which it is told from another disk of its UUID. Else empty.
    #[serde(default)]
    pub labels: Vec<String>,
    /// All disks of such an import are there. It is completed, not undone.
    #[serde(default)]
    pub complete: bool,
}

impl Record {
    /// The user of the persistent locks of a run.
    pub fn user(&self) -> String {
        format!("backup:{}:{}", store::host_name(), self.run)
    }

    /// The label of the disks of an import that is not complete.
    pub fn mark(&self) -> String {
        format!("import:{}:{}", self.set, self.run)
    }

    /// Deletes what the run made, and no other disk. Idempotent.
    ///
    /// # Errors
    /// Those of the SR, the first of several.
    pub fn delete_made(&self, call: &Call) -> Result<()> {
        let delete = |disk: &Member| match bases::is_kept(&self.set, disk)? {
            true => Ok(()),
            false if self.labels.is_empty() => delete(call, disk),
            // Another disk can have the UUID: one that was made after the run was killed, or a moment before the run made its own.
            false => call.host.open(disk.sr)?.vdi_delete_labelled(disk.vdi, &self.mark(), &call.context()),
        };
        self.made.iter().map(delete).fold(Ok(()), Result::and)
    }

    /// Gives the disks of a complete import their labels. Idempotent.
    ///
    /// # Errors
    /// Those of the SR, the first of several.
    pub fn label_made(&self, call: &Call) -> Result<()> {
        let label = |(disk, label): (&Member, &String)| {
            call.host.open(disk.sr)?.vdi_relabel(disk.vdi, &self.mark(), label, &call.context())
        };
        self.made.iter().zip(&self.labels).map(label).fold(Ok(()), Result::and)
    }
}

/// A record on disk. [`Begun::end`] removes it.
#[derive(Debug)]
pub struct Begun(Record);

impl Begun {
    /// Makes a record durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin(record: Record) -> Result<Begun> {
        durable::make_dirs(&run_dir::backup())?;
        write(&record)?;
        Ok(Begun(record))
    }

    pub fn record(&self) -> &Record {
        &self.0
    }

    /// Notes durably that what uses the disks is about to be paused, or that it goes on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn note_paused(&mut self, paused: Option<Variables>) -> Result<()> {
        self.0.paused = paused;
        write(&self.0)
    }

    /// Notes durably that disks are about to be attached.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn note_attached(&mut self, attached: Vec<Member>) -> Result<()> {
        self.0.attached = attached;
        write(&self.0)
    }

    /// Notes durably that a disk is detached again: whoever attaches it from now on keeps it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn note_detached(&mut self, disk: &Member) -> Result<()> {
        self.0.attached.retain(|it| it != disk);
        write(&self.0)
    }

    /// Notes durably that the export is there and that its disks are about to be deleted. What used them does not go on.
    ///
    /// # Errors
    /// [`Error::Io`]. Then nothing is to be deleted.
    pub fn note_deletes(&mut self) -> Result<()> {
        let next = Record { deletes: true, paused: None, ..self.0.clone() };
        if let Err(error) = write(&next) {
            // It may have the name of the record without being durable.
            return Err(error.undone(write(&self.0)));
        }
        self.0 = next;
        Ok(())
    }

    /// Notes durably that the disks that are still there stay: the caller is about to be told so.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn note_not_deleted(&mut self) -> Result<()> {
        self.0.deletes = false;
        write(&self.0)
    }

    /// Whether nothing is left that the next call has to undo, as far as the record itself tells.
    pub fn is_undone(&self) -> bool {
        self.0.paused.is_none() && self.0.attached.is_empty()
    }

    /// Notes durably that all disks of an import are there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn note_complete(&mut self) -> Result<()> {
        self.0.complete = true;
        write(&self.0)
    }

    /// Removes the record: all that it tells of is done or undone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn end(self) -> Result<()> {
        forget(&self.0.run)
    }
}

fn file_of(run: &RunId) -> String {
    format!("{run}{EXTENSION}")
}

fn write(record: &Record) -> Result<()> {
    let dir = Dir::open(&run_dir::backup())?;
    dir.replace(&file_of(&record.run), &serde_json::to_vec(record).expect("a record is plain data"))
}

fn forget(run: &RunId) -> Result<()> {
    let dir = Dir::open(&run_dir::backup())?;
    dir.remove(&file_of(run))?;
    dir.sync()
}

/// Takes the lock of a set on this host.
///
/// # Errors
/// [`Error::Locked`] if another call has it until the deadline.
pub fn lock(set: &SetName, deadline: Instant) -> Result<Lock> {
    lock::take("backup", set.as_str(), Kind::Exclusive, deadline).map_err(|refused| {
        refused.or_timed_out(|holder| Error::Locked {
            what: format!("set {set}"),
            holder: holder.to_owned(),
            remedy: "; --lock-timeout gives it longer".to_owned(),
        })
    })
}

/// Undoes what killed calls left. `held`: the set whose lock the caller has. Answers warnings: what cannot be undone yet is tried
/// again by the next call.
///
/// # Errors
/// [`Error::Io`] if the records cannot be read.
pub fn recover(call: &Call, held: Option<&SetName>) -> Result<Vec<String>> {
    let dir = match Dir::open(&run_dir::backup()) {
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => return Ok(Vec::new()),
        other => other?,
    };
    let mut warnings = Vec::new();
    let mut names = dir.names()?;
    names.sort();
    for name in names {
        dir.sweep_temporary(&name)?;
        let Some(run) = name.strip_suffix(EXTENSION).and_then(|run| run.parse::<RunId>().ok()) else { continue };
        let Some(found) = read(&dir, &name)? else { continue };
        let Ok(Record { set, .. }) = found else {
            warnings.push(format!(
                "{} is no record of a run; look what it tells of, and remove it",
                dir.join(&name).display()
            ));
            continue;
        };
        let _lock = match held == Some(&set) {
            true => None,
            false => match lock(&set, Instant::now()) {
                Ok(lock) => Some(lock),
                // The call still runs.
                Err(Error::Locked { .. }) => continue,
                Err(error) => return Err(error),
            },
        };
        // Before it was locked, the call may have ended, or gone on until it was killed.
        let Some(Ok(record)) = read(&dir, &name)? else { continue };
        let is_completed = record.complete || record.deletes;
        match undo(call, &mut Begun(record)) {
            Ok(()) => {
                forget(&run)?;
                syslog::write(&format!(
                    "sm backup: run {run} of set {set} was killed; it is {}",
                    if is_completed { "completed" } else { "undone" }
                ));
            }
            Err(error) => {
                let way_out = match error {
                    Error::UnknownSr { .. } => {
                        format!("; if the SR is gone for good, remove {}", dir.join(&name).display())
                    }
                    _ => String::new(),
                };
                let why = one_line(&error);
                warnings.push(format!("run {run} of set {set} was killed and is not undone: {why}{way_out}"));
            }
        }
    }
    Ok(warnings)
}

/// The record in a file. `None`: there is none.
fn read(dir: &Dir, name: &str) -> Result<Option<serde_json::Result<Record>>> {
    Ok(dir.read(name)?.map(|text| serde_json::from_slice(&text)))
}

fn undo(call: &Call, begun: &mut Begun) -> Result<()> {
    let mut first = None;
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            first.get_or_insert(error);
        }
    };
    hooks::end_those_of(&begun.0.run);
    // Before what is paused goes on: it may attach them again.
    for disk in begun.0.attached.clone() {
        note(detach(call, &disk).and_then(|()| begun.note_detached(&disk)));
    }
    let record = &begun.0;
    if let Some(variables) = &record.paused {
        if hooks::stops(variables) {
            record.locks.iter().for_each(|disk| note(unlock(call, disk, &record.user())));
        }
        note(hooks::run(Point::Resume, variables, hooks::PATIENCE));
    }
    for disk in record.locks.iter().filter(|_| record.deletes) {
        note(delete_locked(call, disk, &record.user()));
    }
    for disk in &record.locks {
        note(unlock(call, disk, &record.user()));
    }
    note(if record.complete { record.label_made(call) } else { record.delete_made(call) });
    if let Some(open) = record.store.as_ref().and_then(|name| store::find(name).ok()?.open().ok())
        && let Ok(_taken) = open.lock(&record.set, &record.run, Instant::now())
    {
        note(Shelf::new(&open, record.set.clone()).repair());
        note(Shelf::new(&open, record.set.clone()).abandon(&record.run));
    }
    first.map_or(Ok(()), Err)
}

/// Gives the persistent lock of a run back. Idempotent.
///
/// # Errors
/// Those of the SR; [`Error::UnknownSr`] for one that has no name on this host now: it may get one again.
pub fn unlock(call: &Call, disk: &Member, user: &str) -> Result<()> {
    match call.host.open(disk.sr)?.vdi_unlock(disk.vdi, user, false, &call.context()) {
        Ok(()) | Err(Error::LockRefused { .. } | Error::NoVdi { .. } | Error::Unsupported { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes a disk that `user` locked. Idempotent: a disk that is not locked is another.
fn delete_locked(call: &Call, disk: &Member, user: &str) -> Result<()> {
    call.host.open(disk.sr)?.vdi_delete_locked(disk.vdi, user, &[], &call.context()).map(drop)
}

/// Detaches a disk that a run attached. Idempotent.
///
/// # Errors
/// Those of the SR.
fn detach(call: &Call, disk: &Member) -> Result<()> {
    match call.host.open(disk.sr)?.vdi_detach(disk.vdi, &call.context()) {
        Ok(_) | Err(Error::NoVdi { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes a disk that a run made. Idempotent.
///
/// # Errors
/// Those of the SR.
pub fn delete(call: &Call, disk: &Member) -> Result<()> {
    call.host.open(disk.sr)?.vdi_delete(disk.vdi, Unreadable::Refused, &call.context())
}
