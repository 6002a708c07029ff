//! What differs between two disks of one tree: what the images hold that are above the first image that both have in common.

use crate::error::{Error, Result};
use crate::types::{Mode, VdiUuid};
use crate::vdi::formats::layout;
use crate::vdi::place::Place;
use crate::vdi::tree::chain::chain;
use crate::vdi::tree::extents::Extents;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::lend::lend;

/// The stretches of a disk, from a byte to before another and in order, that may differ from what the VDI `base` holds. `None`
/// if the images do not tell: `base` is gone, or they have no image in common. The caller has the locks of both, and keeps the
/// images of the disk as they are.
///
/// A disk that was taken back to an older snapshot is told of as well: what `base` holds above the common image is lost then.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Io`] for an image that cannot be read.
pub fn changed_since(forest: &dyn Forest, place: &dyn Place, base: VdiUuid) -> Result<Option<Vec<(u64, u64)>>> {
    let other = match forest.place(base) {
        Err(Error::NoVdi { .. }) => return Ok(None),
        other => other?,
    };
    let _lent = lend(forest, &*other, true)?;
    let (ours, theirs) = (chain(forest, place)?, chain(forest, &*other)?);
    let Some(common) = ours.iter().find(|image| theirs.contains(image)) else { return Ok(None) };
    let mut found = Extents::default();
    let above = |images: &'_ [VdiUuid]| images.iter().take_while(|image| *image != common).copied().collect::<Vec<_>>();
    for image in above(&ours).into_iter().chain(above(&theirs)) {
        let place = forest.place(image)?;
        let opened = place.open(Mode::ReadOnly)?;
        found = found.union(&layout(place.format()).hides(&opened)?);
        opened.close()?;
    }
    Ok(Some(found.stretches().iter().map(|stretch| (stretch.start, stretch.end)).collect()))
}
