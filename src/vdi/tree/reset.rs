//! Disks that go back at each start of their VMs: XenAPI, `VDI.on_boot`; XCP-ng 8.3, "Reset on boot".
//!
//! The point that a disk goes back to is its parent. The disk is marked in what is stored beside it ([`Params::resets`]), so that no
//! collector merges it with that parent, and so that no copy moves the point ([`fork`](super::fork::fork)). Bases below the parent
//! are merged as usual.
//!
//! An agent says that a disk is one of these before each use of it. The first time:
//!
//! 1. a disk that holds data of its own becomes an empty child of it ([`Forest::fork`]); 2. the mark is stored.
//!
//! A kill in between leaves a base with one child, which is merged as any, and the next call begins again. The collector may have
//! written a part of the disk into its parent: what the disk shows is the same, and it is what the new parent keeps.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::types::{Done, Params, VdiUuid};
use crate::vdi::place::Place;
use crate::vdi::served::{pause_here, prepare};
use crate::vdi::tree::chain::{LONGEST_CHAIN, depth, look};
use crate::vdi::tree::forest::{Forest, Fork};
use crate::vdi::tree::fork::twin;

const OP: &str = "reset on boot";

/// Makes what a disk holds now the point that it goes back to, unless it has one already. Idempotent.
///
/// # Errors
/// [`Error::IsBase`]; [`Error::ChainTooLong`]; [`Error::VdiInUse`] while another host has the disk open, or the server of the disk
/// does not let go of the image; [`Error::Damaged`], [`Error::NoSpace`], [`Error::Io`].
pub fn mark(forest: &dyn Forest, place: &dyn Place, context: &Context) -> Result<Done> {
    if place.params()?.resets {
        place.settle_records()?;
        return Ok(Done::Already);
    }
    prepare(place, context.deadline)?;
    let _lock = forest.lock(context.deadline)?;
    let params = place.params()?;
    let node = look(forest, place)?;
    if node.hidden {
        return Err(Error::IsBase { op: OP, vdi: place.vdi() });
    }
    let _pause = pause_here(place)?;
    let _alone = forest.alone(&[place.vdi()], place.vdi())?;
    if twin(forest, place)?.is_none() {
        let depth = depth(forest, place, &node)?;
        if depth >= LONGEST_CHAIN {
            return Err(Error::ChainTooLong { vdi: place.vdi(), sr: place.sr(), depth, longest: LONGEST_CHAIN });
        }
        forest.fork(&Fork { vdi: place.vdi(), base: VdiUuid::random(), dest: None, is_fine: false })?;
    }
    place.set_params(&Params { resets: true, ..params })?;
    Ok(Done::Changed)
}

/// Makes a disk one that keeps what is written to it. What it holds stays. Idempotent.
///
/// # Errors
/// [`Error::Damaged`] if what is stored beside the disk cannot be read; [`Error::Io`].
pub fn unmark(forest: &dyn Forest, place: &dyn Place, context: &Context) -> Result<Done> {
    if !place.params()?.resets {
        return Ok(Done::Already);
    }
    let _lock = forest.lock(context.deadline)?;
    place.set_params(&Params { resets: false, ..place.params()? })?;
    Ok(Done::Changed)
}

/// Takes a disk that no process has back to its point, by one rename; it keeps its size. A disk without a mark is marked. Idempotent.
///
/// # Errors
/// Those of [`mark`]; [`Error::Damaged`] for a disk that is marked and has no parent.
pub fn reset(forest: &dyn Forest, place: &dyn Place, context: &Context) -> Result<Done> {
    if !place.params()?.resets {
        return mark(forest, place, context);
    }
    // The server of a disk whose device is gone may not have ended.
    prepare(place, context.deadline)?;
    let _lock = forest.lock(context.deadline)?;
    let node = look(forest, place)?;
    let Some(base) = node.parent else {
        let what = "goes back at each start of its VM, and has no parent to go back to any more; \
                    its VDI's on_boot has to be set to persist, and to reset again";
        return Err(Error::Damaged { path: place.path(), what: what.to_owned() });
    };
    let _alone = forest.alone(&[place.vdi()], place.vdi())?;
    if twin(forest, place)?.is_some() {
        place.settle()?;
        return Ok(Done::Already);
    }
    forest.replace(place.vdi(), base, node.virtual_size)?;
    Ok(Done::Changed)
}

/// Refuses a copy of a disk that holds data and goes back: it would move the point that the disk goes back to. `op`: the copy.
///
/// # Errors
/// [`Error::Unsupported`].
pub fn refuse_copy(place: &dyn Place, op: &'static str) -> Result<()> {
    match place.params()?.resets {
        false => Ok(()),
        true => Err(Error::Unsupported {
            op,
            why: format!(
                "VDI {} goes back at the next start of its VM, and a copy would keep what it holds now for good; \
                 vdi_copy copies it",
                place.vdi()
            ),
        }),
    }
}
