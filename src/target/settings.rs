//! Attributes of a published disk, and parameters of its target, that the kernel lets one change. The record keeps what was
//! changed, so that it comes back after a reboot.
//!
//! A name is one that the kernel lists: no word of a caller becomes a path.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;

use super::record::{self, Record};
use crate::error::{Error, Result, needs_root};
use crate::sys::configfs::{self, entries, get, set};

/// The longest value that the kernel takes.
const LONGEST: usize = 255;

/// The two sorts of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Of the disk, as its consumers see it.
    Attribute,
    /// Of the protocol; RFC 3720, 12.
    Parameter,
}

impl Sort {
    pub fn word(self) -> &'static str {
        match self {
            Sort::Attribute => "attribute",
            Sort::Parameter => "parameter",
        }
    }
}

/// Where the kernel has the settings of a publication.
#[derive(Debug)]
pub struct Place {
    pub dir: PathBuf,
    /// What the names of the files begin with.
    pub prefix: &'static str,
    /// Those that this product sets itself.
    pub ours: &'static [&'static str],
}

/// A setting, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    /// Empty if the kernel does not show it.
    pub value: String,
    /// Whether [`change`] takes it.
    pub writable: bool,
}

/// The settings of a publication, in order of their names.
///
/// # Errors
/// [`Error::Unsupported`] for a sort that its fabric does not have; [`Error::Io`].
pub fn list(record: &Record, sort: Sort) -> Result<Vec<Setting>> {
    Ok(found(record, sort)?.into_iter().map(|(setting, _)| setting).collect())
}

fn found(record: &Record, sort: Sort) -> Result<Vec<(Setting, PathBuf)>> {
    let place = record.fabric.kind().settings(record, sort)?.ok_or_else(|| Error::Unsupported {
        op: "target param",
        why: format!("the fabric {} has no {}s", record.fabric.word(), sort.word()),
    })?;
    let one = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix(place.prefix)?.to_owned();
        let meta = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let writable = meta.permissions().mode() & 0o200 != 0 && !place.ours.contains(&name.as_str());
        Some((Setting { value: get(&path), name, writable }, path))
    };
    Ok(entries(&place.dir)?.into_iter().filter_map(one).collect())
}

/// One setting of a publication.
///
/// # Errors
/// [`Error::Invalid`] for a name that the kernel does not list; those of [`list`].
pub fn one(record: &Record, sort: Sort, name: &str) -> Result<Setting> {
    named(record, sort, name).map(|(setting, _)| setting)
}

fn named(record: &Record, sort: Sort, name: &str) -> Result<(Setting, PathBuf)> {
    let mut all = found(record, sort)?;
    match all.iter().position(|(setting, _)| setting.name == name) {
        Some(at) => Ok(all.swap_remove(at)),
        None => {
            let names: Vec<String> = all.into_iter().map(|(setting, _)| setting.name).collect();
            let expected = match names.is_empty() {
                true => "the kernel does not publish the disk; sm target restore brings it back".to_owned(),
                false => format!("the kernel has {}", names.join(", ")),
            };
            Err(Error::Invalid { what: sort.word(), value: name.to_owned(), expected })
        }
    }
}

/// Changes a setting in the kernel, and then in the record. Idempotent.
///
/// # Errors
/// [`Error::Invalid`] for a name that the kernel does not list and for a value that it refuses; [`Error::Io`] with `EACCES` for
/// a setting that is not writable.
pub fn change(of: &Record, sort: Sort, name: &str, value: &str, deadline: Instant) -> Result<()> {
    needs_root("set", configfs::ROOT)?;
    let _lock = record::lock(of.vdi, deadline, |holder| of.in_use(holder))?;
    let Some(mut record) = record::of(of.vdi)?.filter(|record| record.sr == of.sr) else {
        return Err(Error::Usage(format!("{} is not published any more", of.vdi)));
    };
    let (setting, path) = named(&record, sort, name)?;
    if !setting.writable {
        return Err(Error::sys("set", &path)(Errno::EACCES));
    }
    if value.is_empty() || value.len() > LONGEST || value.chars().any(|c| !c.is_ascii_graphic() && c != ' ') {
        let expected = format!("expected 1 to {LONGEST} ASCII characters");
        return Err(Error::Invalid { what: "value", value: value.to_owned(), expected });
    }
    set(&path, value).map_err(|error| match error.errno().map(Errno::from_raw) {
        Some(errno @ (Errno::EINVAL | Errno::ERANGE | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EEXIST)) => {
            let expected = format!("the kernel refuses it for {name}: {}", errno.desc());
            Error::Invalid { what: "value", value: value.to_owned(), expected }
        }
        _ => error,
    })?;
    let kept = match sort {
        Sort::Attribute => &mut record.attributes,
        Sort::Parameter => &mut record.parameters,
    };
    if kept.insert(name.to_owned(), value.to_owned()).as_deref() != Some(value) {
        record::put(&record)?;
    }
    Ok(())
}

/// Gives the kernel what the record keeps. The disk is published already, so a setting that this kernel refuses keeps no disk away.
///
/// # Errors
/// As [`change`], for the first of them.
pub fn apply(record: &Record) -> Result<()> {
    for (sort, kept) in [(Sort::Attribute, &record.attributes), (Sort::Parameter, &record.parameters)] {
        for (name, value) in kept {
            let (setting, path) = named(record, sort, name)?;
            if setting.value != *value {
                set(&path, value)?;
            }
        }
    }
    Ok(())
}
