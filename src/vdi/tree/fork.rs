//! Snapshot and clone: the image of a disk becomes a base, and the disk and its copy are empty children of it. The copy of a
//! disk that is an empty child already is one more child of its base.

use crate::context::{Context, PausedElsewhere};
use crate::error::{Error, Result};
use crate::types::{Mode, Params, VdiInfo, VdiUuid};
use crate::vdi::cbt::{self, Writer};
use crate::vdi::disk::{describe, made};
use crate::vdi::formats::layout;
use crate::vdi::place::Place;
use crate::vdi::served::{pause_here, prepare};
use crate::vdi::tree::chain::{LONGEST_CHAIN, depth, look, parent_of};
use crate::vdi::tree::forest::{Forest, Fork};
use crate::vdi::tree::nodes::Node;
use crate::vdi::tree::reset::refuse_copy;

/// Makes the image of a disk a base with two children: one is the disk, the other `dest`. A disk that holds nothing of its own
/// gets a sibling instead, so that any number of copies of a template have one base. A snapshot takes over the blocks that are
/// logged as changed. `is_fine`: the disk is to take the writes of a guest above a parent that it gets later, see
/// [`crate::vdi::Layout::fine_child_of`].
///
/// # Errors
/// [`Error::Damaged`] for an image whose tables cannot be used; [`Error::IsBase`], [`Error::ChainTooLong`], [`Error::VdiExists`], [`Error::NoSpace`]; [`Error::VdiInUse`] while a server
/// on whatever host does not let go of the image.
pub fn fork(
    forest: &dyn Forest,
    place: &dyn Place,
    dest: VdiUuid,
    params: &Params,
    is_fine: bool,
    context: &Context,
) -> Result<VdiInfo> {
    // Before the lock, which all trees of the SR want: this may wait for the server and its storage.
    prepare(place, context.deadline)?;
    let _lock = forest.lock(context.deadline)?;
    let node = look(forest, place)?;
    if node.hidden {
        return Err(Error::IsBase { op: "vdi_clone and vdi_snapshot", vdi: place.vdi() });
    }
    let _elsewhere = PausedElsewhere::begin(context)?;
    let here = pause_here(place)?;
    let _alone = forest.alone(&[place.vdi()], place.vdi())?;
    // A new image is one that is fine, whatever the present one is.
    let twin = if is_fine { None } else { twin(forest, place)? };
    let base = match twin {
        Some(base) => {
            forest.spawn(base, dest, params)?;
            base
        }
        None => {
            refuse_copy(place, "vdi_clone and vdi_snapshot")?;
            let depth = depth(forest, place, &node)?;
            if depth >= LONGEST_CHAIN {
                return Err(Error::ChainTooLong { vdi: place.vdi(), sr: place.sr(), depth, longest: LONGEST_CHAIN });
            }
            if here.is_none() {
                // A server has looked at it when it was attached.
                let image = place.open(Mode::ReadOnly)?;
                layout(node.format).refuse_damaged(&image)?;
            }
            let base = VdiUuid::random();
            forest.fork(&Fork { vdi: place.vdi(), base, dest: Some((dest, params)), is_fine })?;
            base
        }
    };
    let is_tracked = match forest.change_logs().filter(|_| params.snapshot_of.is_some()) {
        Some(logs) if logs.header(place.vdi()).is_ok_and(|log| log.is_some()) => {
            cbt::split(logs, place.vdi(), dest, Writer::of(here.as_ref(), context));
            logs.header(dest).is_ok_and(|log| log.is_some())
        }
        _ => false,
    };
    // The copy that was just made is known: an empty child of the base, with these params, that no process uses.
    let child = Node { parent: Some(base), ..Node::alone(node.format, node.virtual_size) };
    let copy = forest.place(dest).and_then(|copy| {
        let allocated = copy.usage()?.allocated;
        Ok(VdiInfo { cbt_enabled: is_tracked, ..describe(&*copy, &child, allocated, params.clone()) })
    });
    copy.map_err(|cause| cause.after(made(dest)))
}

/// The base whose empty child shows what this disk shows: its parent, if the disk holds nothing of its own and has the size
/// of the parent. The caller holds the lock of the trees, and no process writes into the image.
///
/// # Errors
/// [`Error::Damaged`] if the parent is another image than the disk names, or cannot be used; [`Error::Io`].
pub fn twin(forest: &dyn Forest, place: &dyn Place) -> Result<Option<VdiUuid>> {
    let node = look(forest, place)?;
    let layout = layout(node.format);
    let image = place.open(Mode::ReadOnly)?;
    let Some(base) = node.parent.filter(|base| *base != place.vdi()) else { return Ok(None) };
    if !layout.is_blank(&image)? {
        return Ok(None);
    }
    match parent_of(forest, &node)? {
        Ok(parent) if parent.hidden && parent.format == node.format && parent.virtual_size == node.virtual_size => {}
        _ => return Ok(None),
    }
    layout.check_parent(&**image, &forest.parent_image(base, Mode::ReadOnly)?)?;
    Ok(Some(base))
}
