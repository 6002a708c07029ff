//! The snapshots that the next increment of a set is made on: `/var/lib/sm/backup/bases/NAME.json`. There is one a disk, that of
//! the newest run that was asked for an increment.
//!
//! The file names the new snapshots before the old ones are deleted, and the old ones until they are. So a kill leaves no snapshot
//! that nobody knows.

use std::path::PathBuf;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::Call;
use super::name::SetName;
use super::record;
use super::set::Member;
use crate::error::{Error, Result, one_line};
use crate::sys::durable::{self, Dir};
use crate::sys::run_dir;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bases {
    /// In use for the next increment.
    kept: Vec<Member>,
    /// To be deleted.
    old: Vec<Member>,
}

fn path() -> PathBuf {
    run_dir::backup().join("bases")
}

fn file_of(set: &SetName) -> String {
    format!("{set}.json")
}

fn read(set: &SetName) -> Result<Bases> {
    let dir = match Dir::open(&path()) {
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => return Ok(Bases::default()),
        other => other?,
    };
    let Some(text) = dir.read(&file_of(set))? else { return Ok(Bases::default()) };
    serde_json::from_slice(&text)
        .map_err(|e| Error::Damaged { path: dir.join(&file_of(set)), what: format!("it is no list of snapshots: {e}") })
}

fn write(set: &SetName, bases: &Bases) -> Result<()> {
    durable::make_dirs(&path())?;
    let dir = Dir::open(&path())?;
    match *bases == Bases::default() {
        true => {
            dir.remove(&file_of(set))?;
            dir.sync()
        }
        false => dir.replace(&file_of(set), &serde_json::to_vec(bases).expect("a list of snapshots is plain data")),
    }
}

/// Whether a snapshot is kept for the next increment.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Io`].
pub fn is_kept(set: &SetName, snapshot: &Member) -> Result<bool> {
    Ok(read(set)?.kept.contains(snapshot))
}

/// Keeps the snapshots of a run in the place of those before, durably.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Io`].
pub fn keep(set: &SetName, snapshots: Vec<Member>) -> Result<()> {
    let before = read(set)?;
    let old = before.old.into_iter().chain(before.kept).filter(|it| !snapshots.contains(it)).collect();
    write(set, &Bases { kept: snapshots, old })
}

/// Deletes the snapshots that no increment needs any more. Answers warnings for those that stay; the next call tries again.
pub fn sweep(call: &Call, set: &SetName) -> Vec<String> {
    let swept = || -> Result<Vec<String>> {
        let mut bases = read(set)?;
        if bases.old.is_empty() {
            return Ok(Vec::new());
        }
        let (mut left, mut warnings) = (Vec::new(), Vec::new());
        for snapshot in std::mem::take(&mut bases.old) {
            if let Err(error) = record::delete(call, &snapshot) {
                warnings.push(format!("snapshot {} stays: {}", snapshot.vdi, one_line(&error)));
                left.push(snapshot);
            }
        }
        bases.old = left;
        write(set, &bases)?;
        Ok(warnings)
    };
    swept().unwrap_or_else(|error| vec![format!("snapshots of set {set} stay: {}", one_line(&error))])
}
