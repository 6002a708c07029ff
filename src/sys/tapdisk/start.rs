//! Tapdisks that are being started, and the end of those whose starter was killed.
//!
//! 1. A note is made and locked: a file in `/run/sm/starting`, of a name that is used once.
//! 2. A minor number is allocated and written into the note.
//! 3. The process is started, with the path of the note in its environment.
//! 4. It gets the number, and something to open.
//! 5. Something leads to it: a link ([`Tapdisk::published`]) or a record of the caller.
//! 6. The note is removed.
//!
//! A kill leaves a note that nobody has locked; after 2 it leaves a number, after 3 a process as well. [`sweep`] ends that process,
//! unless something leads to it by then, and gives the number back. A kill within 2 leaves a number that nothing tells of. A process is
//! known by the path in its environment, so no process of anybody else is ended, whatever its number was before.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Tapdisk, tap_ctl_within};
use crate::error::{Error, Result};
use crate::sys::{process, run_dir};

/// The variable that has the path of the note.
pub(super) const VARIABLE: &str = "XCP_SM_STARTING";
/// How long a process that is killed may take to go.
const PATIENCE: Duration = Duration::from_secs(5);
const BEAT: Duration = Duration::from_millis(10);
/// How long tap-ctl may take for what does not wait for storage.
const DEADLINE: Duration = Duration::from_secs(10);

/// A tapdisk to which nothing leads yet. It is ended with this value, unless [`Starting::is_found`] is told before.
#[derive(Debug)]
pub struct Starting {
    path: PathBuf,
    /// `None`: nothing is to be undone.
    file: Option<Flock<File>>,
}

impl Starting {
    /// Step 1.
    pub(super) fn begin() -> Result<Starting> {
        let dir = directory();
        fs::create_dir_all(&dir).map_err(Error::io("create the directory", &dir))?;
        loop {
            let path = dir.join(uuid::Uuid::new_v4().to_string());
            let file = File::create_new(&path).map_err(Error::io("make", &path))?;
            // A sweep may come between the two.
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) if file.metadata().is_ok_and(|meta| meta.nlink() > 0) => {
                    return Ok(Starting { path, file: Some(file) });
                }
                Ok(_) | Err((_, Errno::EWOULDBLOCK)) => {}
                Err((_, errno)) => {
                    let _ = fs::remove_file(&path);
                    return Err(Error::io("lock", &path)(errno.into()));
                }
            }
        }
    }

    /// The end of step 2.
    pub(super) fn has_number(&mut self, minor: u32) -> Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(minor.to_string().as_bytes()).map_err(Error::io("write", &self.path)),
            None => Ok(()),
        }
    }

    /// What step 3 puts into the environment.
    pub(super) fn note(&self) -> &Path {
        &self.path
    }

    /// Step 6: something leads to the tapdisk, or it has ended.
    pub fn is_found(mut self) {
        let _ = fs::remove_file(&self.path);
        self.file = None;
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.file.is_some() {
            undo(&self.path, &|_| false);
        }
    }
}

fn directory() -> PathBuf {
    run_dir::state().join("starting")
}

/// Ends what killed processes have begun to start. `is_known`: whether something other than a link leads to a tapdisk.
pub fn sweep(is_known: impl Fn(Tapdisk) -> bool) {
    for entry in fs::read_dir(directory()).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(file) = File::options().read(true).write(true).open(&path) else { continue };
        if let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            undo(&path, &is_known);
        }
    }
}

/// Undoes steps 4 to 1. The caller has the lock of the note.
fn undo(note: &Path, is_known: &dyn Fn(Tapdisk) -> bool) {
    let minor: Option<u32> = fs::read_to_string(note).ok().and_then(|text| text.parse().ok());
    let leads = |tapdisk: Tapdisk| is_known(tapdisk) || tapdisk.published().is_some();
    let mut is_in_use = false;
    let until = Instant::now() + PATIENCE;
    // tap-ctl may be about to start it, and a process has no environment for a moment when a program becomes another.
    let mut empty = 0;
    while empty < 2 && Instant::now() < until {
        let found: Vec<u32> = process::all().into_iter().filter(|pid| has(*pid, note)).collect();
        empty = if found.is_empty() { empty + 1 } else { 0 };
        for pid in found {
            if let Some(tapdisk) = minor.map(|minor| Tapdisk { pid, minor }) {
                if leads(tapdisk) {
                    is_in_use = true;
                    empty = 2;
                    break;
                }
                // It removes its sockets then. Refused as long as it has something open.
                let _ = tapdisk.tell_within(DEADLINE, "detach", &[]);
            }
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        std::thread::sleep(BEAT);
    }
    if let Some(minor) = minor.filter(|_| !is_in_use) {
        let _ = tap_ctl_within(DEADLINE, &["free", "-m", &minor.to_string()]);
    }
    let _ = fs::remove_file(note);
}

/// Whether a process was started with this note.
fn has(pid: u32, note: &Path) -> bool {
    pid != std::process::id() && note_of(pid).is_some_and(|of| of == note.as_os_str().as_bytes())
}

fn note_of(pid: u32) -> Option<Vec<u8>> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |it: &[u8]| Some(it.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"=")?.to_vec());
    environment.split(|byte| *byte == 0).find_map(value)
}

/// Whether this package started the process.
pub(super) fn is_ours(pid: u32) -> bool {
    note_of(pid).is_some()
}
