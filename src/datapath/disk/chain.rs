//! Opening an image and its parents by their names.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

use super::super::Source;
use super::super::patient::Patient;
use crate::error::{Error, Result};
use crate::image::disk::Served;
use crate::image::name::ImageName;
use crate::image::storage::FileStorage;
use crate::image::volume::VolumeName;
use crate::image::{qcow2, vhd};
use crate::types::{Format, Mode};

pub(in crate::datapath) fn open(source: &Source) -> Result<Box<dyn Served>> {
    let mode = if source.read_only { Mode::ReadOnly } else { Mode::ReadWrite };
    let place = |path: &Path, mode: Mode| -> Result<Arc<Patient>> {
        Ok(Arc::new(Patient(FileStorage::new(open_image(path, mode)?, path)?)))
    };
    let is_raw = |name: &str| ImageName::format_of(name).or_else(|| VolumeName::format_of(name)) == Some(Format::Raw);
    let leaf = place(&source.path, mode)?;
    match source.format {
        Format::Vhd => {
            let chain = vhd::Chain::open(leaf, mode, |link| {
                let parent = place(&parent_path(&source.path, link.file_name(), &link.name)?, Mode::ReadOnly)?;
                // The name decides, as it does in the SR; whether the header agrees, the chain finds out.
                Ok(if is_raw(&link.name) { vhd::Parent::Raw(parent) } else { vhd::Parent::Vhd(parent) })
            })?;
            Ok(Box::new(chain))
        }
        Format::Qcow2 => {
            let chain = qcow2::Chain::open(qcow2::Parent::Qcow2(leaf), mode, |name| {
                let parent = place(&parent_path(&source.path, Some(name), name)?, Mode::ReadOnly)?;
                // The name decides, as it does in the SR.
                Ok(if is_raw(name) { qcow2::Parent::Raw(parent) } else { qcow2::Parent::Qcow2(parent) })
            })?;
            Ok(Box::new(chain))
        }
        Format::Raw => Err(Error::Unsupported { op: "serving it", why: "a raw image needs no server".to_owned() }),
    }
}

/// Images of one tree lie in one directory: of the path in a header only the last name counts.
fn parent_path(leaf: &Path, name: Option<&str>, said: &str) -> Result<PathBuf> {
    match name {
        Some(name) if !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']) => {
            Ok(leaf.with_file_name(name))
        }
        _ => Err(Error::Damaged { path: leaf.to_owned(), what: format!("its parent's name is {said:?}") }),
    }
}

/// Opens an image: a regular file, itself and not through a link, or a block device below /dev, where device-mapper names
/// them by links. A device or a link to one in the directory of an SR was put there by somebody who wants to read this
/// host's disks through a guest's.
pub(super) fn open_image(path: &Path, mode: Mode) -> Result<File> {
    let is_block = |meta: std::fs::Metadata| meta.file_type().is_block_device();
    let is_device = path.starts_with("/dev") && std::fs::metadata(path).is_ok_and(is_block);
    // O_NONBLOCK: a FIFO in the place of an image is an error, not a wait.
    let flags = libc::O_NONBLOCK | if is_device { 0 } else { libc::O_NOFOLLOW };
    let mut options = OpenOptions::new();
    options.read(true).write(mode == Mode::ReadWrite).custom_flags(flags);
    let file = options.open(path).map_err(Error::io("open", path))?;
    if !is_device && !file.metadata().map_err(Error::io("examine", path))?.is_file() {
        return Err(Error::Damaged { path: path.to_owned(), what: "is not a regular file".to_owned() });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_in_the_directory_of_an_sr_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let is_block = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_block_device());
        let (link, pipe) = (dir.path().join("parent.raw"), dir.path().join("pipe.raw"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(open_image(&pipe, Mode::ReadOnly).is_err(), "a pipe");
        // A container may have no block device.
        if let Some(device) = std::fs::read_dir("/dev").unwrap().flatten().find(is_block) {
            std::os::unix::fs::symlink(device.path(), &link).unwrap();
            assert!(open_image(&link, Mode::ReadOnly).is_err(), "a link to {}", device.path().display());
        }
    }
}
