//! The sets of this host: `/var/lib/sm/backup/sets/NAME.json`.

use std::path::PathBuf;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::manifest::MOST_DISKS;
use super::name::SetName;
use crate::error::{Error, Result};
use crate::sys::durable::{self, Dir};
use crate::sys::run_dir;
use crate::types::{Done, SrUuid, VdiUuid};

const EXTENSION: &str = ".json";
const VERSION: u32 = 1;

/// A disk of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    pub sr: SrUuid,
    pub vdi: VdiUuid,
}

/// The disks that belong together, in the order in which they are exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    version: u32,
    pub disks: Vec<Member>,
    /// A file of an agent that every export takes along unread.
    pub metadata: Option<PathBuf>,
    /// The file of those that its exports are encrypted for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<PathBuf>,
    /// The file of the keys that its encrypted exports are read with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
}

impl Set {
    /// # Errors
    /// [`Error::Invalid`] if a disk is there twice, or too many are.
    pub fn new(disks: Vec<Member>, metadata: Option<PathBuf>) -> Result<Set> {
        let mut sorted = disks.clone();
        sorted.sort();
        let invalid =
            |value: String, expected: &str| Error::Invalid { what: "--disk", value, expected: expected.to_owned() };
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(invalid(pair[0].vdi.to_string(), "the disk is named twice"));
        }
        if disks.is_empty() || disks.len() > MOST_DISKS {
            return Err(invalid(disks.len().to_string(), &format!("a set has 1 to {MOST_DISKS} disks")));
        }
        Ok(Set { version: VERSION, disks, metadata, recipient: None, identity: None })
    }
}

fn path() -> PathBuf {
    run_dir::backup().join("sets")
}

fn open() -> Result<Option<Dir>> {
    match Dir::open(&path()) {
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => Ok(None),
        other => other.map(Some),
    }
}

fn file_of(name: &SetName) -> String {
    format!("{name}{EXTENSION}")
}

/// The set of a name; `None` if there is none.
///
/// # Errors
/// [`Error::Damaged`] for a file that is no set; [`Error::Io`].
pub fn find(name: &SetName) -> Result<Option<Set>> {
    let Some(dir) = open()? else { return Ok(None) };
    let file = file_of(name);
    let Some(text) = dir.read(&file)? else { return Ok(None) };
    let damaged = |what: String| Error::Damaged { path: dir.join(&file), what };
    let set: Set = serde_json::from_slice(&text).map_err(|e| damaged(format!("it is no set of disks: {e}")))?;
    match set.version {
        VERSION => Ok(Some(set)),
        other => Err(damaged(format!("it is of version {other}, and only version {VERSION} can be read"))),
    }
}

/// The names of all sets.
///
/// # Errors
/// [`Error::Io`].
pub fn names() -> Result<Vec<SetName>> {
    let Some(dir) = open()? else { return Ok(Vec::new()) };
    let mut names: Vec<SetName> =
        dir.names()?.iter().filter_map(|file| file.strip_suffix(EXTENSION)?.parse().ok()).collect();
    names.sort();
    Ok(names)
}

/// Makes or replaces a set, durably.
///
/// # Errors
/// [`Error::Io`].
pub fn define(name: &SetName, set: &Set) -> Result<()> {
    durable::make_dirs(&path())?;
    let dir = Dir::open(&path())?;
    dir.replace(&file_of(name), &serde_json::to_vec_pretty(set).expect("a set is plain data"))
}

/// Removes a set, durably. Its exports stay. Idempotent.
///
/// # Errors
/// [`Error::Io`].
pub fn undefine(name: &SetName) -> Result<Done> {
    let Some(dir) = open()? else { return Ok(Done::Already) };
    let removed = dir.remove(&file_of(name))?;
    dir.sync()?;
    Ok(if removed { Done::Changed } else { Done::Already })
}
