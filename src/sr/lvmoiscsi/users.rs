//! Who needs the sessions with a target, and which sessions this package opened.
//!
//! `/run/sr-ref/<IQN>` has the UUIDs of the SRs that are attached by the target, a line each. The Python storage managers keep
//! the same file, so either leaves a session to the other's SRs. `/run/sm/iscsi/<IQN>` has the portals at which this package
//! logged in: only such sessions are ended. A portal is written there before the login, so that a session of a killed call is known.
//! The file is there as long as an SR of this package has the target, even if it uses only sessions of somebody else.
//! Both are gone after a restart of the host, as the sessions are.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, LunFault, Result, one_line};
use crate::sys::durable::{self, Dir};
use crate::sys::initiator::Portal;
use crate::sys::run_dir;
use crate::types::SrUuid;

fn opened() -> PathBuf {
    run_dir::state().join("iscsi")
}

/// The first line of a file of portals, which may have no other.
const HEAD: &str = "# portals";

/// The lines of a file. A file that is not there has none.
fn lines(path: &Path) -> Result<Vec<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(path, &Error::io("read", path)(e))),
    }
}

fn failed(path: &Path, why: &Error) -> Error {
    Error::Lun { lun: durable::name_of(path).to_owned(), fault: LunFault::Users, why: one_line(why) }
}

/// Removes what a killed call left.
fn sweep(open: &Dir) -> Result<()> {
    open.names()?
        .iter()
        .filter(|name| name.starts_with(".tmp-"))
        .try_for_each(|name| open.sweep_temporary(name).map(drop))
}

/// Writes the lines; without any, removes the file.
fn write(dir: &Path, iqn: &str, lines: &[String]) -> Result<()> {
    let path = dir.join(iqn);
    let work = || {
        durable::make_dirs(dir)?;
        let open = Dir::open(dir)?;
        sweep(&open)?;
        match lines {
            [] => open.remove(iqn).map(drop),
            some => open.replace(iqn, (some.join("\n") + "\n").as_bytes()),
        }
    };
    work().map_err(|e| failed(&path, &e))
}

/// The targets by which an SR is attached.
///
/// # Errors
/// [`LunFault::Users`].
pub fn targets_of(sr: SrUuid) -> Result<Vec<String>> {
    let dir = run_dir::session_users();
    let names = match fs::read_dir(&dir) {
        Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(&dir, &Error::io("list", &dir)(e))),
    };
    let mut found = Vec::new();
    for iqn in names.filter(|name| !name.starts_with('.')) {
        if lines(&dir.join(&iqn))?.contains(&sr.to_string()) {
            found.push(iqn);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The SRs that are attached by targets of this host, each with its target.
pub fn all() -> Vec<(SrUuid, String)> {
    let dir = run_dir::session_users();
    let names = fs::read_dir(&dir).into_iter().flatten().flatten().filter_map(|it| it.file_name().into_string().ok());
    let of = |iqn: String| {
        let lines = lines(&dir.join(&iqn)).unwrap_or_default();
        lines.into_iter().filter_map(move |line| Some((line.parse().ok()?, iqn.clone())))
    };
    names.filter(|name| !name.starts_with('.')).flat_map(of).collect()
}

/// Counts an SR as a user. Whether it was none before. The caller has the lock of the target.
///
/// # Errors
/// [`LunFault::Users`].
pub fn add(iqn: &str, sr: SrUuid) -> Result<bool> {
    let dir = run_dir::session_users();
    let mut users = lines(&dir.join(iqn))?;
    if users.contains(&sr.to_string()) {
        return Ok(false);
    }
    users.push(sr.to_string());
    write(&dir, iqn, &users).map(|()| true)
}

/// Counts an SR as a user no more. Whether it was one. The caller has the lock of the target.
///
/// # Errors
/// [`LunFault::Users`].
pub fn remove(iqn: &str, sr: SrUuid) -> Result<bool> {
    let dir = run_dir::session_users();
    let before = lines(&dir.join(iqn))?;
    let after: Vec<String> = before.iter().filter(|line| **line != sr.to_string()).cloned().collect();
    if after.len() == before.len() {
        let swept = if dir.is_dir() { Dir::open(&dir).and_then(|open| sweep(&open)) } else { Ok(()) };
        return swept.map(|()| false).map_err(|e| failed(&dir, &e));
    }
    write(&dir, iqn, &after).map(|()| true)
}

/// Whether any SR needs the target's sessions. The caller has the lock of the target.
///
/// # Errors
/// [`LunFault::Users`].
pub fn has_any(iqn: &str) -> Result<bool> {
    lines(&run_dir::session_users().join(iqn)).map(|lines| !lines.is_empty())
}

/// The targets at which this package logged in.
pub fn opened_targets() -> Vec<String> {
    let names =
        fs::read_dir(opened()).into_iter().flatten().flatten().filter_map(|it| it.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// The portals at which this package logged in.
///
/// # Errors
/// [`LunFault::Users`].
pub fn portals(iqn: &str) -> Result<Vec<Portal>> {
    Ok(lines(&opened().join(iqn))?.iter().filter_map(|line| Portal::read(line)).collect())
}

/// Whether this package has written down anything of the target, be it that it logged in nowhere.
///
/// # Errors
/// [`LunFault::Users`].
pub fn is_known(iqn: &str) -> Result<bool> {
    let path = opened().join(iqn);
    path.try_exists().map_err(|e| failed(&path, &Error::io("find", &path)(e)))
}

/// Writes down the portals at which this package logs in, or has logged in: none, too.
///
/// # Errors
/// [`LunFault::Users`].
pub fn write_portals(iqn: &str, portals: &[Portal]) -> Result<()> {
    let lines: Vec<String> = [HEAD.to_owned()].into_iter().chain(portals.iter().map(Portal::to_string)).collect();
    write(&opened(), iqn, &lines)
}

/// Removes what [`write_portals`] wrote.
///
/// # Errors
/// [`LunFault::Users`].
pub fn forget(iqn: &str) -> Result<()> {
    write(&opened(), iqn, &[])
}
