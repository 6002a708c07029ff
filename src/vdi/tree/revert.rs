//! Going back: a disk gets the contents of a snapshot, and keeps its UUID and its names.
//!
//! The disk becomes an empty child of the snapshot's base, by one rename over its present image. A snapshot that holds data
//! itself, as sr_collect leaves it when it is the last of its tree, becomes such a base first. A kill in between leaves a base
//! with one child, as a deleted snapshot does. So no intent of its own has to be recorded, and the same call again goes on.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::types::VdiUuid;
use crate::vdi::cbt::Reverting;
use crate::vdi::disk::{SnapshotSaid, refuse_snapshot_of_another};
use crate::vdi::place::Place;
use crate::vdi::served::{pause, prepare};
use crate::vdi::tree::chain::{LONGEST_CHAIN, chain, depth, look};
use crate::vdi::tree::collect::remove_unneeded;
use crate::vdi::tree::forest::{Forest, Fork};
use crate::vdi::tree::fork::twin;

/// Gives a disk the contents and the size of `snapshot`. The data that the disk held is lost. Idempotent. The caller
/// has the locks of both, and has seen that no process has the disk.
///
/// # Errors
/// [`Error::Unsupported`] for a source that can be written to, that is known to be a snapshot of another disk, or that shares
/// no image with the disk; [`Error::IsBase`];
/// [`Error::ChainTooLong`]; [`Error::VdiInUse`] while another host has the disk open; [`Error::NoVdi`]; [`Error::NoSpace`].
pub fn revert(
    forest: &dyn Forest,
    place: &dyn Place,
    snapshot: VdiUuid,
    said: SnapshotSaid,
    context: &Context,
) -> Result<()> {
    const OP: &str = "vdi_revert";
    let refused = |why: String| Err(Error::Unsupported { op: OP, why });
    let source = forest.place(snapshot)?;
    // A server of the snapshot may have to let go of it; see `fork`.
    prepare(&*source, context.deadline)?;
    let _lock = forest.lock(context.deadline)?;
    let (node, from) = (look(forest, place)?, look(forest, &*source)?);
    if let Some(base) = [(&node, place.vdi()), (&from, snapshot)].iter().find(|(node, _)| node.hidden) {
        return Err(Error::IsBase { op: OP, vdi: base.1 });
    }
    refuse_snapshot_of_another(place.vdi(), snapshot, &source.params()?, said)?;
    if node.format != from.format || chain(forest, place)?.last() != chain(forest, &*source)?.last() {
        return refused(format!(
            "VDI {snapshot} is no snapshot of VDI {}: they share no image. vdi_clone makes a disk of it",
            place.vdi()
        ));
    }
    let _alone = forest.alone(&[place.vdi()], place.vdi())?;
    let base = match twin(forest, &*source)? {
        Some(base) => base,
        None => {
            let depth = depth(forest, &*source, &from)?;
            if depth >= LONGEST_CHAIN {
                return Err(Error::ChainTooLong { vdi: snapshot, sr: place.sr(), depth, longest: LONGEST_CHAIN });
            }
            let _pause = pause(&*source)?;
            let _alone = forest.alone(&[snapshot], snapshot)?;
            let base = VdiUuid::random();
            forest.fork(&Fork { vdi: snapshot, base, dest: None, is_fine: false })?;
            base
        }
    };
    let logs = forest.change_logs();
    let tracking = logs.map(|logs| Reverting::begin(logs, place.vdi(), snapshot)).transpose()?;
    forest.replace(place.vdi(), base, 0)?;
    if let (Some(logs), Some(tracking)) = (logs, tracking) {
        tracking.end(logs, from.virtual_size);
    }
    // It is done, and that is all that was asked for: sr_collect removes what is left.
    if let Some(parent) = node.parent.filter(|parent| *parent != base)
        && let Ok(mut nodes) = forest.nodes()
    {
        remove_unneeded(forest, &mut nodes, parent);
    }
    Ok(())
}
