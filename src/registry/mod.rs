//! The things that people name on this host: the SRs that have a name, and the media with their owners.
//!
//! | file | what |
//! |---|---|
//! | [`entry`] | one file of the table of names: its keys, how values are quoted |
//! | [`name`] | what a name may look like |
//! | here | the directory of names: which files are trusted, how an entry is found, added and removed |
//! | [`identity`] | the stable name of a medium |
//! | [`sysfs`], [`signature`] | what the kernel and the device itself say of a block device |
//! | [`facts`] | what follows: the state of a device, test by test |
//! | [`claims`], [`ledger`] | whose each medium is: the values, and the file of them |
//! | [`reserve`] | claims around sr_create and sr_delete |
//! | [`rebuild`] | the claims made anew from what the devices hold |
//! | [`backend`], [`candidate`], [`line`](mod@line) | where media come from, and the form of an inventory |
//! | [`agent`] | the SRs that the database of xapi has on this host |
//! | [`view`] | the list of media, with state and owner |
//! | [`settings`] | `/etc/sm/sm.conf` |
//!
//! `docs/devices.md` tells of media, their states and claims. The rest of this page is about names: `/etc/sm/sr.d/NAME.conf`, for
//! people. Drivers and agents never read that table.
//!
//! The table also has the files of `/etc/sm-collect`, an older place: the name of each is the UUID of its SR. They are read and
//! never written.
//!
//! An entry may lead a program of root to any device or server, and may hold a password. So the directory and the file have to
//! belong to root or to the caller, nobody else may be able to write to them, and a file with a password may be readable
//! by its owner alone. Any other is refused with the reason. `XCP_SM_RUN_DIR` moves the table as it moves all paths of the host;
//! [`run_dir::trusted`] says which directory it may name.
//!
//! An entry appears complete and durable, or not at all; it disappears by one unlink. sr_create adds it before it makes the SR,
//! so that a killed sr_create leaves a name by which the same command is repeated. sr_delete removes it after the SR is gone.

pub mod agent;
pub mod backend;
pub mod candidate;
pub mod claims;
pub mod entry;
pub mod facts;
pub mod identity;
pub mod ledger;
pub mod line;
pub mod name;
pub mod rebuild;
pub mod reserve;
pub mod settings;
pub mod signature;
pub mod sysfs;
pub mod view;

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::sys::durable::{self, Dir, NewFile};
use crate::sys::run_dir;
use crate::types::SrUuid;

pub use self::entry::{Entry, Place};
pub use self::name::SrName;

const EXTENSION: &str = ".conf";
/// Bytes of the longest file that is read.
const LONGEST: u64 = 64 << 10;

/// One of the two directories of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Named,
    /// The files of the timer of earlier releases. Their readers were not restricted, so their mode is not judged.
    Collected,
}

impl Kind {
    fn path(self) -> PathBuf {
        match self {
            Kind::Named => run_dir::names(),
            Kind::Collected => run_dir::collected(),
        }
    }

    /// The directory, if it is there.
    fn open(self) -> Result<Option<Dir>> {
        run_dir::trusted()?;
        let dir = match Dir::open(&self.path()) {
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => return Ok(None),
            other => other?,
        };
        let stat = dir.stat()?;
        refuse_untrusted(dir.path(), stat.st_uid, stat.st_mode)?;
        Ok(Some(dir))
    }
}

/// The entry of a name; `None` if no SR has it.
///
/// # Errors
/// [`Error::Damaged`] for a file that is no entry; [`Error::Io`], permission denied, for one that is not trusted.
pub fn find(name: &SrName) -> Result<Option<Entry>> {
    match Kind::Named.open()? {
        Some(dir) => read(&dir, Kind::Named, name.as_str()),
        None => Ok(None),
    }
}

/// The entry of an SR; the first by name if it has several.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be read or is not trusted. A file that cannot be read is none of the SR's.
pub fn of_sr(sr: SrUuid) -> Result<Option<Entry>> {
    if let Some(dir) = Kind::Collected.open()?
        && let Some(entry) = read(&dir, Kind::Collected, &sr.to_string())?
    {
        let named = entries(Kind::Named)?.into_iter().filter_map(|(_, entry)| entry.ok()).find(|entry| entry.sr == sr);
        return Ok(named.or(Some(entry)));
    }
    Ok(entries(Kind::Named)?.into_iter().filter_map(|(_, entry)| entry.ok()).find(|entry| entry.sr == sr))
}

/// All of the table, by name: each entry, or why it cannot be used.
///
/// # Errors
/// [`Error::Io`] if a directory of it cannot be read or is not trusted.
pub fn all() -> Result<Vec<(String, Result<Entry>)>> {
    let mut found = entries(Kind::Named)?;
    for (name, entry) in entries(Kind::Collected)? {
        let known = |it: &(String, Result<Entry>)| matches!((&it.1, &entry), (Ok(a), Ok(b)) if a.sr == b.sr);
        if !found.iter().any(known) {
            found.push((name, entry));
        }
    }
    Ok(found)
}

/// The names of the table, for completion: no file is opened.
///
/// # Errors
/// As [`all`].
pub fn names() -> Result<Vec<String>> {
    let Some(dir) = Kind::Named.open()? else { return Ok(Vec::new()) };
    let mut names: Vec<String> = dir.names()?.iter().filter_map(|file| stem(Kind::Named, file)).collect();
    names.sort();
    Ok(names)
}

fn entries(kind: Kind) -> Result<Vec<(String, Result<Entry>)>> {
    let Some(dir) = kind.open()? else { return Ok(Vec::new()) };
    let mut names: Vec<String> = dir.names()?.iter().filter_map(|file| stem(kind, file)).collect();
    names.sort();
    let read = |name: String| match read(&dir, kind, &name) {
        Ok(Some(entry)) => Some((name, Ok(entry))),
        // It was removed just now.
        Ok(None) => None,
        Err(e) => Some((name, Err(e))),
    };
    Ok(names.into_iter().filter_map(read).collect())
}

/// The name that a file of the table gives; `None` for a file that is not of the table, such as an editor's copy.
fn stem(kind: Kind, file: &str) -> Option<String> {
    let stem = file.strip_suffix(EXTENSION)?;
    let is_name = match kind {
        Kind::Named => stem.parse::<SrName>().is_ok(),
        Kind::Collected => stem.parse::<SrUuid>().is_ok(),
    };
    is_name.then(|| stem.to_owned())
}

fn read(dir: &Dir, kind: Kind, name: &str) -> Result<Option<Entry>> {
    let file_name = format!("{name}{EXTENSION}");
    let path = dir.join(&file_name);
    let Some(file) = dir.try_open_record(&file_name)? else { return Ok(None) };
    let meta = file.metadata().map_err(Error::io("examine", &path))?;
    refuse_untrusted(&path, meta.uid(), meta.mode())?;
    let text = text_of(file, &path)?;
    let sr = (kind == Kind::Collected).then(|| name.parse()).transpose()?;
    let entry = Entry::parse(name, sr, &text).map_err(|what| Error::Damaged { path: path.clone(), what })?;
    if kind == Kind::Named && entry.place.may_hold_password() && meta.mode() & 0o077 != 0 {
        return Err(not_trusted(&path, "it may hold a password and others can read it; chmod 600 mends that"));
    }
    Ok(Some(entry))
}

fn text_of(file: File, path: &Path) -> Result<String> {
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(Error::io("read", path))?;
    match text.len() as u64 > LONGEST {
        true => Err(Error::Damaged { path: path.to_owned(), what: "it is longer than any entry".to_owned() }),
        false => Ok(text),
    }
}

/// Refuses a file or directory that another user than root and the caller may have written.
fn refuse_untrusted(path: &Path, uid: u32, mode: u32) -> Result<()> {
    if !run_dir::is_trusted(uid) {
        return Err(not_trusted(path, &format!("it belongs to uid {uid}; chown root mends that")));
    }
    match mode & 0o022 {
        0 => Ok(()),
        _ => Err(not_trusted(path, "others can write to it; chmod go-w mends that")),
    }
}

fn not_trusted(path: &Path, why: &str) -> Error {
    Error::io("trust", path)(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()))
}

/// Adds an entry, durably. `false`: the name has an entry already, and nothing was changed.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be made or written to.
pub fn add(name: &SrName, sr: SrUuid, sr_type: &str, place: &Place) -> Result<bool> {
    let dir = made()?;
    in_the_making(&dir, sr, sr_type, place)?.publish(&format!("{name}{EXTENSION}"))
}

/// Writes an entry, durably, in the place of the one that the name has. An entry that says the same stays.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be made or written to.
pub fn put(name: &SrName, sr: SrUuid, sr_type: &str, place: &Place) -> Result<()> {
    let entry = Entry { name: name.to_string(), sr, sr_type: sr_type.to_owned(), place: place.clone() };
    let dir = made()?;
    if let Ok(Some(known)) = read(&dir, Kind::Named, name.as_str())
        && known == entry
    {
        // The call that wrote it may have been killed before it was durable.
        return dir.sync();
    }
    in_the_making(&dir, sr, sr_type, place)?.publish_over(&format!("{name}{EXTENSION}"))
}

fn in_the_making<'d>(dir: &'d Dir, sr: SrUuid, sr_type: &str, place: &Place) -> Result<NewFile<'d>> {
    let new = dir.new_record(entry::text(sr, sr_type, place).as_bytes())?;
    if !place.may_hold_password() {
        let permissions = Permissions::from_mode(0o644);
        new.file().set_permissions(permissions).map_err(Error::io("set the mode of a file in", dir.path()))?;
    }
    Ok(new)
}

/// Removes the entry of a name, durably, if it is one of this SR. Idempotent.
///
/// # Errors
/// [`Error::Io`]; [`Error::Damaged`] for a file that is no entry.
pub fn remove_name(name: &SrName, sr: SrUuid) -> Result<()> {
    let Some(dir) = Kind::Named.open()? else { return Ok(()) };
    if read(&dir, Kind::Named, name.as_str())?.is_some_and(|entry| entry.sr == sr) {
        dir.remove(&format!("{name}{EXTENSION}"))?;
    }
    dir.sync()
}

/// Removes every entry of an SR, durably, and says which. Idempotent. The files of `/etc/sm-collect` stay: the administrator
/// wrote them.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(sr: SrUuid) -> Result<Vec<String>> {
    let Some(dir) = Kind::Named.open()? else { return Ok(Vec::new()) };
    let of_sr = |(name, entry): (String, Result<Entry>)| entry.is_ok_and(|entry| entry.sr == sr).then_some(name);
    let names: Vec<String> = entries(Kind::Named)?.into_iter().filter_map(of_sr).collect();
    for name in &names {
        dir.remove(&format!("{name}{EXTENSION}"))?;
    }
    if !names.is_empty() {
        dir.sync()?;
    }
    Ok(names)
}

/// Gives the SR of a name another name, durably: `false` if no SR has the old name. A kill leaves the old name, both, or the
/// new one; repeated, the call ends with the new one alone.
///
/// # Errors
/// [`Error::NameTaken`] if another SR has the new name; [`Error::Damaged`] and [`Error::Io`] of [`find`].
pub fn rename(old: &SrName, new: &SrName) -> Result<bool> {
    let Some(entry) = find(old)? else { return Ok(false) };
    let Some(dir) = Kind::Named.open()? else { return Ok(false) };
    if old == new {
        return Ok(true);
    }
    let (from, to) = (format!("{old}{EXTENSION}"), format!("{new}{EXTENSION}"));
    let linked = match dir.link(&from, &to) {
        Ok(()) => true,
        Err(e) if e.errno() == Some(Errno::EEXIST as i32) => {
            let has = find(new)?.ok_or(e)?;
            if (has.sr, &has.sr_type, &has.place) != (entry.sr, &entry.sr_type, &entry.place) {
                return Err(has.taken());
            }
            false
        }
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => return Ok(false),
        Err(e) => return Err(e),
    };
    dir.sync()?;
    let renamed = dir.remove(&from)?;
    if !renamed && linked {
        // Another call was faster, and gave or took a name.
        dir.remove(&to)?;
    }
    dir.sync()?;
    Ok(renamed)
}

/// Takes a name away, durably: `false` if no SR has it. The file is not read, so a damaged one can be removed as well.
///
/// # Errors
/// [`Error::Io`].
pub fn forget(name: &SrName) -> Result<bool> {
    let Some(dir) = Kind::Named.open()? else { return Ok(false) };
    let removed = dir.remove(&format!("{name}{EXTENSION}"))?;
    dir.sync()?;
    Ok(removed)
}

/// The directory of names, made if need be.
fn made() -> Result<Dir> {
    if let Some(dir) = Kind::Named.open()? {
        return Ok(dir);
    }
    let path = Kind::Named.path();
    durable::make_dirs(&path)?;
    let gone = || Error::sys("open the directory", &path)(Errno::ENOENT);
    Kind::Named.open()?.ok_or_else(gone)
}
