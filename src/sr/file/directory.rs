//! The directory of an SR: which SR it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;

use super::layout::{MARKER, is_orphan};
use super::records::{Marker, SrRecord, encode, read_marker};
use crate::context::Deadline;
use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::sys::durable::Dir;
use crate::types::{SlotMark, SrUuid, VdiUuid};

/// The path without symbolic links, as the kernel names what is attached: of one SR that is reached by two names, both
/// must find the same disks attached. A directory that does not exist yet is looked for in the one above it. A path that
/// leads nowhere stays as it is; what uses it says what is wrong.
pub(super) fn without_links(path: &Path) -> PathBuf {
    let above = || Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    match fs::canonicalize(path) {
        Ok(real) => real,
        Err(_) if path.is_symlink() => path.to_owned(),
        Err(_) => above().unwrap_or_else(|| path.to_owned()),
    }
}

/// An SR in a directory that is there already.
pub struct FileSr {
    pub(super) sr: SrUuid,
    pub(super) sr_type: &'static str,
    pub(super) path: PathBuf,
    /// The path as the caller gave it, where that is another.
    pub(super) named: Option<PathBuf>,
    /// Other hosts use it too, where the locks of this one mean nothing.
    pub(super) shared: bool,
    /// The device-mapper name of the volume that has to be mounted there. The name says by itself which SR it is: a
    /// marker is not needed.
    pub(super) volume: Option<String>,
    /// The end of every wait for other calls.
    pub(super) deadline: Deadline,
}

/// The kinds of directory that an SR's place may turn out to be.
pub(super) enum Found {
    /// Nothing, or an empty directory.
    Nothing,
    Sr(Dir, Marker),
    /// Files, but no marker.
    Strange(Dir),
}

impl FileSr {
    /// `deadline`: the end of every wait for other calls.
    pub fn new(sr: SrUuid, sr_type: &'static str, path: PathBuf, deadline: Deadline) -> Self {
        FileSr { sr, sr_type, path, named: None, shared: false, volume: None, deadline }
    }

    /// An SR of a local directory, to which `location` may lead by symbolic links.
    pub(super) fn at(sr: SrUuid, location: PathBuf, deadline: Deadline) -> Self {
        let path = without_links(&location);
        let named = Some(location).filter(|named| *named != path);
        FileSr { named, ..FileSr::new(sr, "file", path, deadline) }
    }

    /// An SR whose directory several hosts have.
    pub fn shared(self) -> Self {
        FileSr { shared: true, ..self }
    }

    /// An SR in the filesystem of a volume that is the SR's own, by device-mapper's name of it.
    pub fn on_volume(self, name: String) -> Self {
        FileSr { volume: Some(name), ..self }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The end of every wait for other calls.
    pub fn deadline(&self) -> Deadline {
        self.deadline.clone()
    }

    pub(super) fn look(&self) -> Result<Found> {
        let dir = match Dir::open(&self.path) {
            Ok(dir) => dir,
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => return Ok(Found::Nothing),
            Err(e) if e.errno() == Some(Errno::ENAMETOOLONG as i32) => {
                return Err(Error::NoDevice {
                    device: self.path.display().to_string(),
                    why: Errno::ENAMETOOLONG.desc().to_owned(),
                });
            }
            Err(e) if matches!(e.errno(), Some(n) if n == Errno::ENOTDIR as i32 || n == Errno::ELOOP as i32) => {
                let kind = if self.path.is_symlink() {
                    "it is a symbolic link that leads nowhere"
                } else {
                    "it is not a directory"
                };
                return Err(Error::NoDevice { device: self.path.display().to_string(), why: kind.to_owned() });
            }
            Err(e) => return Err(e),
        };
        if let Some(marker) = read_marker(&dir)? {
            return Ok(Found::Sr(dir, marker));
        }
        let used =
            dir.names()?.iter().any(|name| name != "lost+found" && !name.starts_with(".tmp-") && !is_orphan(name));
        Ok(if used { Found::Strange(dir) } else { Found::Nothing })
    }

    /// The SR's directory, after checking that it is the SR's. Every call but sr_create and sr_delete
    /// begins here, so a directory that lost its mount is an error and never an empty SR.
    pub(super) fn dir(&self) -> Result<Rc<Dir>> {
        if let Some(volume) = &self.volume {
            return self.root_of(volume);
        }
        match self.look()? {
            Found::Sr(dir, marker) if marker.uuid == self.sr && !marker.deleting => Ok(Rc::new(dir)),
            Found::Sr(_, marker) if marker.uuid == self.sr => {
                Err(self.no_sr("its deletion was begun; sr_delete finishes it".to_owned()))
            }
            Found::Sr(_, marker) => Err(self.no_sr(format!("{} holds SR {}", self.path.display(), marker.uuid))),
            Found::Strange(_) => Err(self.no_sr(format!(
                "{} has files but no {MARKER}; if other storage managers made it, sr_attach takes it over",
                self.path.display()
            ))),
            Found::Nothing => Err(self.no_sr(format!("looked in {}", self.path.display()))),
        }
    }

    /// The directory that was opened is asked what it lies on, not its name: another call may unmount it meanwhile.
    fn root_of(&self, volume: &str) -> Result<Rc<Dir>> {
        let dir = match Dir::open(&self.path) {
            Ok(dir) => Some(dir),
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => None,
            Err(e) => return Err(e),
        };
        if let Some(dir) = dir {
            let stat = nix::sys::stat::fstat(&dir).map_err(Error::sys("examine", &self.path))?;
            if blockdev::mapped(stat.st_dev).and_then(blockdev::dm_name).as_deref() == Some(volume) {
                return Ok(Rc::new(dir));
            }
        }
        Err(Error::SrUnavailable {
            sr: self.sr,
            why: format!("/dev/mapper/{volume} is not mounted at {}; sr_attach does it", self.path.display()),
        })
    }

    pub(super) fn no_sr(&self, looked: String) -> Error {
        Error::NoSr { sr: self.sr, looked }
    }

    /// Says that the SR has no such disk.
    pub(super) fn no_vdi(&self, vdi: VdiUuid) -> Error {
        Error::NoVdi { vdi, sr: self.sr, looked: self.path.display().to_string() }
    }

    pub(super) fn write_marker(&self, dir: &Dir, made_directory: bool, slot: Option<SlotMark>) -> Result<bool> {
        let slot = slot.map(|slot| slot.to_string()).unwrap_or_default();
        let marker = Marker { uuid: self.sr, sr_type: self.sr_type.to_owned(), made_directory, slot, deleting: false };
        let made = dir.create(MARKER, &encode(&SrRecord::Sr(marker)))?;
        if !made {
            // Another call was faster, and may have been killed before its marker was durable.
            dir.sync()?;
        }
        Ok(made)
    }
}
