//! The meaning of a change of a tree for those who look at the SR while the change is under way, or after it was
//! killed.

use super::layout::image_name;
use super::records::read_change;
use crate::error::{Error, Result};
use crate::image::name::ImageName;
use crate::image::storage::FileStorage;
use crate::sys::durable::Dir;
use crate::types::{Format, VdiUuid};
use crate::vdi::layout;
use crate::vdi::tree::change::Change;

/// Whether a VDI has an image that names `base` as its parent. Somebody else may have made a disk of that name.
pub(super) fn is_child(dir: &Dir, vdi: VdiUuid, base: VdiUuid, format: Format) -> Result<bool> {
    let name = image_name(vdi, format);
    let Some(file) = dir.try_open_record(&name)? else { return Ok(false) };
    let image = FileStorage::of_regular(file, dir.join(&name));
    match layout(format).query(&image) {
        Ok(info) => Ok(info.parent.as_deref().and_then(ImageName::parse).is_some_and(|parent| parent.vdi == base)),
        // A change writes its children durably before it names them, so this is none of its.
        Err(Error::Damaged { .. } | Error::Unsupported { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The VDI of a fork that has not happened yet: its image has a name, but until the disk that is forked has its
/// new image nobody may see it, because whoever repairs the tree removes it.
pub(super) fn unborn(dir: &Dir, change: &Change) -> Result<Option<VdiUuid>> {
    let (vdi, base, dest, format) = match change {
        Change::Fork { vdi, base, dest: Some(dest), format } => (vdi, base, dest, format),
        Change::Fork { dest: None, .. }
        | Change::Relink { .. }
        | Change::Collapse { .. }
        | Change::Compose { .. }
        | Change::Merges { .. } => return Ok(None),
    };
    let (disk, found) = (dir.lookup(&image_name(*vdi, *format))?, dir.lookup(&image_name(*base, *format))?);
    let happened = match (disk, found) {
        (_, None) => false,
        (disk, Some(found)) => disk.is_none_or(|disk| disk.id != found.id),
    };
    Ok(if !happened && is_child(dir, *dest, *base, *format)? { Some(*dest) } else { None })
}

/// Whether `vdi` is a disk whose image is being replaced: on NFS its name may be missing for a moment.
pub(super) fn is_being_changed(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    Ok(read_change(dir)?.is_some_and(|change| change.replaced().contains(&vdi)))
}

/// Whether `vdi` is the VDI of a fork that has not happened yet, see [`unborn`].
pub(super) fn is_unborn(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    match read_change(dir)? {
        Some(change) => Ok(unborn(dir, &change)? == Some(vdi)),
        None => Ok(false),
    }
}
