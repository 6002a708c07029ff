//! The claims on disk: `/var/lib/sm/registry/claims.json`, of root alone.
//!
//! No file means that nothing is claimed. A file that cannot be read is an error and never means that. Each change is made
//! under a lock of the host and replaces the file durably, so a kill leaves the claims of before or after the change.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;

use super::claims::Claims;
use crate::error::{Error, Result};
use crate::sys::durable::{self, Dir};
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::run_dir;

const FILE: &str = "claims.json";

/// The file, for messages.
pub fn path() -> PathBuf {
    run_dir::registry().join(FILE)
}

/// The claims as they are now.
///
/// # Errors
/// [`Error::Damaged`] for a file that is not whole, with the remedy; [`Error::Io`] for one that cannot be read.
pub fn read() -> Result<Claims> {
    match open()? {
        Some(dir) => read_from(&dir),
        None => Ok(Claims::default()),
    }
}

/// Whether there may be claims: a host without the directory has none.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be opened.
pub fn is_kept() -> Result<bool> {
    open().map(|dir| dir.is_some())
}

fn open() -> Result<Option<Dir>> {
    match Dir::open(&run_dir::registry()) {
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => Ok(None),
        other => other.map(Some),
    }
}

fn read_from(dir: &Dir) -> Result<Claims> {
    let Some(text) = dir.read(FILE)? else { return Ok(Claims::default()) };
    let damaged = |what| Error::Damaged {
        path: dir.join(FILE),
        what: format!("{what}; run `sm devices rebuild`, which makes it anew from what the devices hold"),
    };
    Claims::parse(&text).map_err(damaged)
}

/// Makes one change of the claims, which `change` says is one by `true`. Waits for other changes until `deadline`.
///
/// # Errors
/// Those of [`read`] and of `change`; then nothing was changed. [`Error::DeviceInUse`] if another process has the claims
/// until the deadline. [`Error::Io`] if the file cannot be written.
pub fn change<T>(deadline: Instant, change: impl FnOnce(&mut Claims) -> Result<(bool, T)>) -> Result<T> {
    let _lock = lock(deadline)?;
    let mut claims = read()?;
    let (is_changed, answer) = change(&mut claims)?;
    if is_changed {
        write(&mut claims)?;
    }
    Ok(answer)
}

/// Replaces the claims by those that `make` gives. `make` is told the claims of the file, or why they cannot be read.
///
/// # Errors
/// That of `make`; those of [`change`] but for the file's contents.
pub fn rebuild<T>(deadline: Instant, make: impl FnOnce(Result<Claims>) -> Result<(Claims, T)>) -> Result<T> {
    let _lock = lock(deadline)?;
    let before = read();
    let (generation, known) = before.as_ref().map_or((0, None), |claims| (claims.generation, Some(claims.clone())));
    let (mut claims, answer) = make(before)?;
    claims.generation = generation;
    if known.as_ref() != Some(&claims) {
        write(&mut claims)?;
    }
    Ok(answer)
}

fn lock(deadline: Instant) -> Result<Lock> {
    lock::take("registry", "claims", Kind::Exclusive, deadline).map_err(|refused| {
        refused.or_timed_out(|holder| Error::DeviceInUse {
            device: path().display().to_string(),
            holder: format!("{holder} changes it; repeat the call"),
        })
    })
}

fn write(claims: &mut Claims) -> Result<()> {
    claims.generation += 1;
    let dir = made()?;
    let mut new = dir.new_record(claims.text().as_bytes())?;
    let mode = Permissions::from_mode(0o640);
    new.file().set_permissions(mode).map_err(Error::io("set the mode of a file in", dir.path()))?;
    new.sync()?;
    new.publish_over(FILE)
}

/// The directory, made if need be.
fn made() -> Result<Dir> {
    if let Some(dir) = open()? {
        return Ok(dir);
    }
    let path = run_dir::registry();
    durable::make_dirs(&path)?;
    open()?.ok_or_else(|| Error::sys("open the directory", &path)(Errno::ENOENT))
}
