//! The names in the SR's directory, and what each is.

use nix::sys::stat::SFlag;

use crate::error::{Error, Result};
use crate::image::cbtlog::EXTENSION;
use crate::image::name::ImageName;
use crate::sys::durable::{self, Dir, Stat};
use crate::sys::register;
use crate::types::{Format, VdiUuid};
use crate::vdi::Usage;

/// The file that says which SR a directory is.
pub const MARKER: &str = ".sm-sr";
/// The marker of an SR whose deletion was begun.
pub(super) const DELETING: &str = ".sm-sr-deleting";
/// Extension of the params of a disk.
pub(super) const PARAMS: &str = "params";
/// Extension of the persistent lock of a disk.
pub(super) const LOCK: &str = "lock";
/// Says which tree is being changed.
pub(super) const CHANGE: &str = ".sm-tree";
/// Locked by the host that changes a tree.
pub(super) const TREE_LOCK: &str = ".sm-tree-lock";
/// Locked by the host that collects.
pub(super) const COLLECT_LOCK: &str = ".sm-collect-lock";
/// The names that an agent's user gave the SR; only once there are any.
pub(super) const NAMES: &str = ".sm-names";
/// Names that the collector of the Python storage managers begins its journals with.
pub(super) const JOURNALS: [&str; 3] = ["coalesce_", "relink_", "leaf_"];
/// The format of the image that a VDI has, if it has one.
///
/// # Errors
/// [`Error::Damaged`] if it has two: nothing tells which of them is the disk.
pub(super) fn format_of(dir: &Dir, vdi: VdiUuid) -> Result<Option<Format>> {
    image_of(dir, vdi).map(|found| found.map(|(format, _)| format))
}

/// The image that a VDI has, if it has one: its format, and what is at its name, which may be no regular file.
///
/// # Errors
/// [`Error::Damaged`] if it has two: nothing tells which of them is the disk.
pub(super) fn image_of(dir: &Dir, vdi: VdiUuid) -> Result<Option<(Format, Stat)>> {
    let mut found = None;
    for format in Format::ALL {
        if let Some(stat) = dir.lookup(&image_name(vdi, format))?
            && let Some((first, _)) = found.replace((format, stat))
        {
            let what = two_images(first, format);
            return Err(Error::Damaged { path: dir.join(&image_name(vdi, first)), what });
        }
    }
    Ok(found)
}

/// The kinds of files of a VDI, as their names in the directory tell.
pub(super) enum Role {
    Image(Format),
    Params,
    Lock,
    Log,
}

/// The VDI that a name in the directory belongs to, and as what.
pub(super) fn classify(name: &str) -> Option<(VdiUuid, Role)> {
    let (stem, extension) = name.split_once('.')?;
    let role = match extension {
        PARAMS => Role::Params,
        LOCK => Role::Lock,
        EXTENSION => Role::Log,
        _ => return ImageName::parse(name).map(|image| (image.vdi, Role::Image(image.format))),
    };
    Some((stem.parse().ok()?, role))
}

/// Whether NFS gave this name to a file that was removed while it was open on the same host. The host removes the file
/// when it is closed. A host that crashed leaves the file.
pub(super) fn is_orphan(name: &str) -> bool {
    name.starts_with(".nfs")
}

/// The name of a VDI's image.
pub(super) fn image_name(vdi: VdiUuid, format: Format) -> String {
    ImageName::new(vdi, format).to_string()
}

/// The name of what is stored beside the image of a VDI.
pub(super) fn beside(vdi: VdiUuid, extension: &str) -> String {
    format!("{vdi}.{extension}")
}

/// Removes what is beside an image that does not exist, unless its maker is alive. The params of a disk of which the log of changed
/// blocks is left stay.
pub(super) fn remove_leftovers(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    let name = beside(vdi, PARAMS);
    let mut removed = false;
    let opened = dir.try_open_record(&name).map_err(|error| match error {
        Error::Damaged { path, what } => Error::Damaged { path, what: format!("{what}; move it away") },
        other => other,
    });
    if let Some(file) = opened?
        && durable::is_abandoned(&file)
        && !is_taken(dir, vdi)?
    {
        removed |= dir.remove(&name)?;
    }
    let lock = beside(vdi, LOCK);
    // Most disks were never locked, and to look for one name is less than to look for an image.
    if dir.lookup(&lock)?.is_some() && !has_image(dir, vdi)? {
        removed |= register::remove(dir, &lock)?;
    }
    Ok(removed)
}

/// Whether a VDI has an image, of whatever format.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn has_image(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    for format in Format::ALL {
        if dir.lookup(&image_name(vdi, format))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a UUID is that of a VDI: of one with an image, or of one of which only the log of changed blocks is left. A disk of
/// that UUID would be taken for tracked.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn is_taken(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    Ok(has_image(dir, vdi)? || dir.lookup(&beside(vdi, EXTENSION))?.is_some())
}

/// The bytes of an image, from what is known of its file.
pub(super) fn usage(stat: &Stat) -> Usage {
    Usage { length: stat.length, allocated: stat.allocated }
}

/// The file at `name`, if there is one. The file must be of this kind: a link or a pipe named like a disk is neither
/// taken for one nor left out of a list.
pub(super) fn must_be(dir: &Dir, name: &str, kind: SFlag) -> Result<Option<Stat>> {
    let found = dir.lookup(name)?;
    if let Some(stat) = &found {
        is_one(dir, name, stat, kind)?;
    }
    Ok(found)
}

/// Refuses what is at `name` if it is not of this kind, by what `dir` told of it.
///
/// # Errors
/// [`Error::Damaged`].
pub(super) fn is_one(dir: &Dir, name: &str, stat: &Stat, kind: SFlag) -> Result<()> {
    if stat.mode & SFlag::S_IFMT.bits() == kind.bits() {
        return Ok(());
    }
    let what = if kind == SFlag::S_IFDIR { "is not a directory" } else { "is not a regular file" };
    Err(Error::Damaged { path: dir.join(name), what: format!("{what}; move it away") })
}

/// Says of a VDI that it has images of two formats.
pub(super) fn two_images(first: Format, second: Format) -> String {
    format!("the VDI has two images, {first} and {second}; move one of them away")
}

/// Refuses what [`remove_whatever`] cannot remove: a directory with files in it.
///
/// # Errors
/// [`Error::Damaged`]; [`Error::Io`].
pub(super) fn refuse_unremovable(dir: &Dir, name: &str) -> Result<()> {
    if dir.lookup(name)?.is_some_and(|stat| stat.is_directory())
        && let Some(inner) = dir.sub_dir(name)?
        && !inner.names()?.is_empty()
    {
        let what = "is a directory with files in it; move it away".to_owned();
        return Err(Error::Damaged { path: dir.join(name), what });
    }
    Ok(())
}

/// Removes what has a name, be it a directory, which must be empty.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn remove_whatever(dir: &Dir, name: &str) -> Result<bool> {
    match dir.lookup(name)? {
        Some(stat) if stat.is_directory() => dir.remove_dir(name),
        _ => dir.remove(name),
    }
}
