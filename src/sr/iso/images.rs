//! The images of an ISO SR: their names, their UUIDs, and the files that they lead to.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::sys::durable::{self, Dir};
use crate::sys::loopdev;
use crate::types::{SrUuid, State, VdiUuid};
use crate::vdi::Usage;

/// A CD image.
pub(super) struct Iso {
    pub(super) name: String,
    /// Where the file is. For a link: where that leads.
    pub(super) path: PathBuf,
    pub(super) usage: Usage,
    pub(super) id: loopdev::FileId,
    /// Whether it can be read, as far as its attributes tell.
    pub(super) state: State,
}

/// The disk that vdi_create made under this name, if it has such a name.
pub(super) fn made(name: &str) -> Option<VdiUuid> {
    name.strip_suffix(".img")?.parse().ok().filter(|vdi| name_of(*vdi) == name)
}

pub(super) fn name_of(vdi: VdiUuid) -> String {
    format!("{vdi}.img")
}

pub(super) fn uuid_of(sr: SrUuid, name: &str) -> VdiUuid {
    made(name).unwrap_or_else(|| VdiUuid::of_name(sr, name))
}

/// The images in a directory, ordered by their names.
pub(super) fn list(dir: &Dir) -> Result<Vec<Iso>> {
    let mut found = Vec::new();
    for name in dir.names()?.into_iter().filter(|name| is_image(name)) {
        let named = dir.join(&name);
        let unusable = |name: String, state| {
            let nothing = Usage { length: 0, allocated: 0 };
            Iso { name, path: named.clone(), usage: nothing, id: (0, 0), state }
        };
        match followed(&named) {
            Ok((path, meta)) if meta.is_file() && !path.starts_with(dir.path()) => {
                let state = State::of(&leads_out(&named, dir.path()));
                found.push(unusable(name, state));
            }
            Ok((path, meta)) if meta.is_file() => found.push(Iso {
                name,
                path,
                usage: Usage { length: meta.len(), allocated: meta.blocks() * 512 },
                id: (meta.dev(), meta.ino()),
                state: State::Healthy,
            }),
            Ok(_) => {}
            // Where a link leads may be missing or be no file: then it is no image.
            Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                // It is there, so nobody may take it for one that is gone. The others are listed if the directory
                // still answers: then it is this name's own trouble.
                _ => {
                    dir.lookup(".")?;
                    found.push(unusable(name, State::Broken(e.to_string())));
                }
            },
        }
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Where a name leads, without links, and what is there.
pub(super) fn followed(named: &Path) -> std::io::Result<(PathBuf, Metadata)> {
    let meta = fs::symlink_metadata(named)?;
    if !meta.is_symlink() {
        return Ok((named.to_owned(), meta));
    }
    let path = fs::canonicalize(named)?;
    let meta = fs::symlink_metadata(&path)?;
    Ok((path, meta))
}

pub(super) fn leads_out(named: &Path, library: &Path) -> Error {
    let (name, library) = (durable::name_of(named), library.display());
    let why = format!("{name} is a link that leads out of {library}; put there the file itself, or a hard link to it");
    Error::Unsupported { op: "a file outside of the directory of an ISO SR", why }
}

pub(super) fn is_image(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or("");
    extension.eq_ignore_ascii_case("iso") || extension.eq_ignore_ascii_case("img")
}

/// `.tmp-<uuid>`: the directory belongs to somebody else, so nothing else in it is touched.
pub(super) fn is_ours_in_the_making(name: &str) -> bool {
    name.strip_prefix(".tmp-").is_some_and(|rest| rest.parse::<VdiUuid>().is_ok())
}
