//! Compose: an image that is there already becomes the parent of a disk; SMAPIv1, `vdi_compose`.
//!
//! It ends a storage migration to the SR. The disk holds what the guest wrote meanwhile, and the other image all that was there
//! before. The parent that the disk has until then is a base without data, which only made the disk a child.
//!
//! The change is recorded before its first step, see [`Forest::compose`].

use crate::context::Context;
use crate::error::{Error, Result};
use crate::types::{Done, Mode, Size, VdiUuid};
use crate::vdi::formats::layout;
use crate::vdi::place::Place;
use crate::vdi::served::{prepare, refuse_if_held};
use crate::vdi::tree::chain::{LONGEST_CHAIN, depth};
use crate::vdi::tree::collect::remove_unneeded;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::nodes::{Node, Nodes};

const OP: &str = "vdi_compose";

/// Makes `base`, a disk of the same SR, the parent of the disk in `place`. The disk shows then what it holds itself, and what `base`
/// holds elsewhere. `base` is a hidden base then, and no disk any more. Idempotent. The caller has the locks of both.
///
/// # Errors
/// [`Error::Unsupported`] for images that do not go together, and for a disk that would lose what its present parents hold;
/// [`Error::VdiInUse`] while either is attached or locked; [`Error::ChainTooLong`]; [`Error::IsBase`]; [`Error::NoVdi`];
/// [`Error::Damaged`]; [`Error::Io`].
pub fn compose(forest: &dyn Forest, place: &dyn Place, base: VdiUuid, context: &Context) -> Result<Done> {
    let below = forest.place(base)?;
    // The server of a disk whose device is gone may not have ended.
    prepare(place, context.deadline)?;
    prepare(&*below, context.deadline)?;
    let _lock = forest.lock(context.deadline)?;
    let nodes = forest.nodes()?;
    let former = former_parent(&nodes, place, &*below)?;
    if former == base {
        place.settle()?;
        below.settle()?;
        return Ok(Done::Already);
    }
    for disk in [place, &*below] {
        refuse_if_held(disk)?;
        refuse_if_followed(forest, disk)?;
    }
    let depth = depth(forest, &*below, node_of(&nodes, &*below)?)?;
    if depth >= LONGEST_CHAIN {
        return Err(Error::ChainTooLong { vdi: base, sr: place.sr(), depth, longest: LONGEST_CHAIN });
    }
    refuse_if_lost(forest, &nodes, place, former)?;
    let alone = forest.alone(&[place.vdi(), base], place.vdi())?;
    forest.compose(place.vdi(), base)?;
    drop(alone);
    // It is done, and that is all that was asked for: sr_collect removes what is left.
    if let Ok(mut nodes) = forest.nodes() {
        remove_unneeded(forest, &mut nodes, former);
    }
    Ok(Done::Changed)
}

fn refused(why: String) -> Error {
    Error::Unsupported { op: OP, why }
}

fn node_of<'n>(nodes: &'n Nodes, place: &dyn Place) -> Result<&'n Node> {
    let node = nodes.get(place.vdi()).ok_or_else(|| refused(format!("VDI {} is raw", place.vdi())))?;
    match node.state.is_healthy() {
        true => Ok(node),
        false => Err(Error::Damaged { path: place.path(), what: node.state.to_string() }),
    }
}

/// The present parent of a disk, whose parent `below` can be, or is already.
fn former_parent(nodes: &Nodes, place: &dyn Place, below: &dyn Place) -> Result<VdiUuid> {
    let (vdi, base) = (place.vdi(), below.vdi());
    let (disk, parent) = (node_of(nodes, place)?, node_of(nodes, below)?);
    if disk.format != parent.format {
        return Err(refused(format!("VDI {vdi} is a {}, and VDI {base} a {}", disk.format, parent.format)));
    }
    if disk.hidden {
        return Err(Error::IsBase { op: OP, vdi });
    }
    let Some(former) = disk.parent else {
        return Err(refused(format!("VDI {vdi} has no parent that VDI {base} could take the place of")));
    };
    if former == base && parent.hidden {
        return Ok(former);
    }
    if nodes.chain(base).contains(&vdi) || nodes.chain(vdi).contains(&base) {
        return Err(refused(format!("VDI {base} and VDI {vdi} are in one chain of images already")));
    }
    if parent.hidden {
        return Err(Error::IsBase { op: OP, vdi: base });
    }
    nodes.refuse_if_parent(below)?;
    nodes.refuse_if_parent(place)?;
    if parent.virtual_size > disk.virtual_size {
        let (ours, theirs) = (Size(disk.virtual_size), Size(parent.virtual_size));
        return Err(refused(format!(
            "VDI {vdi} has {ours}, and VDI {base} has {theirs}: a disk is not smaller than its parent"
        )));
    }
    Ok(former)
}

/// Refuses a disk that others follow by what it holds now: the changed blocks since a snapshot, the point that it goes back to.
fn refuse_if_followed(forest: &dyn Forest, place: &dyn Place) -> Result<()> {
    let vdi = place.vdi();
    if place.params()?.resets {
        return Err(refused(format!("VDI {vdi} goes back at the next start of its VM")));
    }
    match forest.change_logs().map(|logs| logs.header(vdi)).transpose()?.flatten() {
        Some(_) => Err(refused(format!("the changed blocks of VDI {vdi} are tracked; vdi_disable_cbt ends that"))),
        None => Ok(()),
    }
}

/// Refuses a disk whose present parents hold data: it would show that no more.
fn refuse_if_lost(forest: &dyn Forest, nodes: &Nodes, place: &dyn Place, former: VdiUuid) -> Result<()> {
    for image in nodes.chain(former) {
        let parent = forest.place(image)?;
        let opened = parent.open(Mode::ReadOnly)?;
        if !layout(parent.format()).is_blank(&opened)? {
            return Err(refused(format!("VDI {} would lose what its parent {image} holds", place.vdi())));
        }
        opened.close()?;
    }
    Ok(())
}
