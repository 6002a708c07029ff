//! The records of tapdisks that have an image open: `<pid>.tap` beside the sockets of servers, of the keeper `pid`.
//!
//! tapdisk is no child of its keeper and may outlive it. The record is written before tapdisk opens the image, and removed when
//! tapdisk has ended, so an image that a tapdisk has open has a record, whatever was killed. It counts as long as the process lives
//! that it names. Another keeper takes it over by one rename.
//!
//! One line, `PID MINOR BEGAN ro|rw FORMAT`, then the path of the image.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::server::Arguments;
use crate::error::{Error, Result};
use crate::sys::tapdisk::Tapdisk;
use crate::types::Format;

const EXTENSION: &str = "tap";

/// A tapdisk that may have an image open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The process that keeps it, or did.
    pub keeper: u32,
    pub tapdisk: Tapdisk,
    /// When the process of the tapdisk began.
    pub began: u64,
    pub read_only: bool,
    pub format: Format,
    pub image: PathBuf,
}

fn file(dir: &Path, keeper: u32) -> PathBuf {
    dir.join(format!("{keeper}.{EXTENSION}"))
}

/// The tapdisks that live.
pub(super) fn all(dir: &Path) -> Vec<Record> {
    loop {
        let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let keepers = names.filter_map(|name| name.to_str()?.strip_suffix(EXTENSION)?.strip_suffix('.')?.parse().ok());
        let keepers: Vec<u32> = keepers.collect();
        let records: Vec<Record> = keepers.iter().filter_map(|keeper| read(dir, *keeper)).collect();
        // One that was taken over meanwhile has another name, and must not be missed: its image would count as free.
        if keepers.iter().all(|keeper| file(dir, *keeper).exists()) {
            return records.into_iter().filter(Record::lives).collect();
        }
    }
}

fn read(dir: &Path, keeper: u32) -> Option<Record> {
    let text = fs::read(file(dir, keeper)).ok()?;
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let words: Vec<&str> = std::str::from_utf8(&text[..end]).ok()?.split(' ').collect();
    let [pid, minor, began, mode, format] = words[..] else { return None };
    Some(Record {
        keeper,
        tapdisk: Tapdisk::new(pid.parse().ok()?, minor.parse().ok()?),
        began: began.parse().ok()?,
        read_only: mode == "ro",
        format: format.parse().ok()?,
        image: std::ffi::OsString::from_vec(text[end + 1..].to_vec()).into(),
    })
}

/// Removes a record whose tapdisk is gone.
pub(super) fn sweep(dir: &Path, keeper: u32) {
    if read(dir, keeper).is_none_or(|record| !record.lives()) {
        let _ = fs::remove_file(file(dir, keeper));
    }
}

impl Record {
    /// Writes down that this process keeps a tapdisk which is about to open an image.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NoDevice`] if it has ended.
    pub fn write(dir: &Path, tapdisk: Tapdisk, read_only: bool, format: Format, image: &Path) -> Result<Record> {
        let Some(began) = tapdisk.began() else {
            return Err(Error::NoDevice { device: format!("tapdisk {tapdisk}"), why: "it has ended".to_owned() });
        };
        let keeper = std::process::id();
        let mode = if read_only { "ro" } else { "rw" };
        let mut text = format!("{} {} {began} {mode} {format}\n", tapdisk.pid(), tapdisk.minor()).into_bytes();
        text.extend(image.as_os_str().as_bytes());
        let (path, new) = (file(dir, keeper), dir.join(format!("{keeper}.new")));
        fs::create_dir_all(dir).map_err(Error::io("create the directory", dir))?;
        fs::write(&new, text).map_err(Error::io("write", &new))?;
        fs::rename(&new, &path).map_err(Error::io("write", &path))?;
        Ok(Record { keeper, tapdisk, began, read_only, format, image: image.to_owned() })
    }

    /// Makes this process the keeper. The record of one that lives must not be taken.
    ///
    /// # Errors
    /// [`Error::Io`], ENOENT, if another process was faster.
    pub fn take_over(self, dir: &Path) -> Result<Record> {
        let (from, keeper) = (file(dir, self.keeper), std::process::id());
        fs::rename(&from, file(dir, keeper)).map_err(Error::io("take over", &from))?;
        Ok(Record { keeper, ..self })
    }

    /// The tapdisk has ended.
    pub fn remove(&self, dir: &Path) {
        let _ = fs::remove_file(file(dir, self.keeper));
    }

    /// Whether its keeper lives.
    pub fn is_kept(&self, dir: &Path) -> bool {
        let is_its = |of: Arguments| of.by_tapdisk && of.dir == dir && of.source.path == self.image;
        self.keeper != std::process::id() && Arguments::of(self.keeper).is_some_and(is_its)
    }

    /// Whether its process does, and has not left its number to another.
    pub fn lives(&self) -> bool {
        self.tapdisk.lives() && self.tapdisk.began() == Some(self.began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_written_and_counts_while_its_process_lives() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let image = Path::new("/sr/a b\nc.vhd");
        let us = Tapdisk::new(std::process::id(), 3);
        let written = Record::write(dir, us, true, Format::Vhd, image).unwrap();
        assert_eq!(all(dir), std::slice::from_ref(&written));
        sweep(dir, written.keeper);
        assert_eq!(written.clone().take_over(dir).unwrap(), written);
        // Its number went to another process.
        let text = fs::read_to_string(file(dir, written.keeper)).unwrap();
        fs::write(file(dir, written.keeper), text.replacen(&format!(" {} ", written.began), " 1 ", 1)).unwrap();
        assert_eq!(all(dir), []);
        sweep(dir, written.keeper);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        assert_eq!(written.take_over(dir).unwrap_err().errno(), Some(nix::libc::ENOENT));
    }
}
