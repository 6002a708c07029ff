//! The last steps of a merge in an LVHD group, with the journals of the Python drivers (`cleanup.py`).
//!
//! Relink: the children of `V` become those of `P`, which holds all that `V` does. 1. Make the journal `relink_<V>_1`; 2. name `P`
//! in each child; 3. remove `V`, make `P` as small as what it holds, and remove the journal. A child shows the same with either
//! parent, so a kill leaves nothing that has to be undone; the recovery goes on.
//!
//! Collapse: `P` takes the place of its child, the leaf `U`. 1. Make `NEW_<P>_1` and write the record; 2. make `P` writable, and give
//! the record the name `leaf_<U>_1`: the recovery of a Python driver writes to `P`, and fails where it cannot; 3. show `P`; 4. rename
//! `VHD-<U>` to `VHD-OLD_<U>`, and `VHD-<P>` to `VHD-<U>`, remove `VHD-OLD_<U>`, and remove the journal. Until `VHD-OLD_<U>` is removed,
//! the recovery of either side undoes it: the leaf is all there. Afterwards it is complete.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::forest::LvhdForest;
use super::group::{Group, Volume};
use super::journal::{Change, Journal, unwritten};
use super::place::lock_tags;
use super::sizes;
use super::step::Step;
use crate::error::{Error, Result};
use crate::image::qcow2;
use crate::image::storage::Storage;
use crate::image::vhd::Image;
use crate::image::volume::{image, old_image};
use crate::sys::syslog;
use crate::types::{Format, Mode, VdiUuid};
use crate::vdi::layout;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::nodes::Nodes;

const OP: &str = "sr_collect";

impl LvhdForest<'_> {
    /// See [`Forest::make_room_to_merge`].
    pub(super) fn make_room(&self, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
        let live = &self.live;
        let group = live.now();
        live.refuse_begun(base)?;
        let (child, parent) = (group.volume(vdi)?, group.volume(base)?);
        let info = layout(child.format).query(&group.image(child)?)?;
        let needed = match (child.format, parent.format) {
            (Format::Vhd, Format::Vhd) => room_for_blocks(&group, child, parent)?,
            (Format::Qcow2, Format::Qcow2) => room_for_clusters(&group, child, parent)?,
            (_, Format::Raw) if parent.lv.size >= info.virtual_size => return Ok(()),
            (above, below) => {
                let why =
                    format!("VDI {vdi} is {above}, and its base {base} is {below} and smaller, or of another kind");
                return Err(Error::Unsupported { op: OP, why });
            }
        };
        // The base of a leaf takes its place, and may be written to then, also by another host: it got room for that.
        let is_inflated = child.lv.size >= group.round(live.wanted(vdi)?);
        let is_full = !info.hidden && (!group.is_thin() || is_inflated || group.is_counted(vdi)?);
        let full = if is_full { sizes::full(parent.format, info.virtual_size) } else { 0 };
        let ending = live.inflate(base, needed.max(full))?;
        live.take(&ending)
    }

    /// See [`Forest::end`]: of a base.
    pub(super) fn give_children(&self, nodes: &Nodes, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
        let live = &self.live;
        let group = live.now();
        if let Some(claim) = nodes.claim(vdi) {
            return Err(Error::Damaged { path: self.place(vdi)?.path(), what: claim.to_string() });
        }
        let journal = Journal { vdi, change: Change::Relink }.name();
        live.take(&[Step::journal(&journal)])?;
        if let Err(cause) = self.name_parent(nodes, vdi, base) {
            return Err(cause.undone(live.take(&[Step::remove(&journal)])));
        }
        let mut steps = vec![Step::remove(group.volume(vdi)?.lv.name.clone())];
        steps.extend(live.deflate(base)?);
        steps.push(Step::remove(&journal));
        live.take(&steps)?;
        self.forget(vdi);
        Ok(())
    }

    /// Names `base` as the parent in each child of `vdi`.
    pub(super) fn name_parent(&self, nodes: &Nodes, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
        let (old, new) = (self.parent_image(vdi, Mode::ReadOnly)?, self.parent_image(base, Mode::ReadOnly)?);
        for child in nodes.children(vdi) {
            let place = self.place(child)?;
            let layout = layout(place.format());
            let opened = place.open(Mode::ReadWrite)?;
            layout.check_parent(&**opened, &old)?;
            layout.set_parent(&**opened, &new)?;
            opened.close()?;
        }
        Ok(())
    }

    /// See [`Forest::end`]: of a disk.
    pub(super) fn take_place(&self, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
        let live = &self.live;
        let group = live.now();
        live.refuse_begun(vdi)?;
        let (leaf, parent) = (group.volume(vdi)?.clone(), group.volume(base)?.clone());
        let format = leaf.format;
        if parent.format != format {
            let why =
                format!("VDI {vdi} is {format}, and its base {base}, which is to take its place, is {}", parent.format);
            return Err(Error::Unsupported { op: OP, why });
        }
        let (leaf, parent) = (leaf.lv, parent.lv);
        let (record, journal) = (unwritten(base), Journal { vdi, change: Change::Leaf(Some(base)) });
        let mut begin = vec![Step::rename(&record, journal.name())];
        if parent.read_only {
            begin.insert(0, Step::SetWritable { name: parent.name.clone(), writable: true });
        }
        live.take(&[Step::journal(&record)])
            .and_then(|()| live.write_journal(&record, &journal))
            .and_then(|()| live.take(&begin))
            .map_err(|cause| cause.undone(live.remove_unborn([&record])))?;
        let show = || {
            let group = live.now();
            layout(format).set_hidden(&group.storage_for_writing(&parent)?, false)
        };
        let (own, old) = (image(vdi, format), old_image(vdi, format));
        let mut steps = vec![Step::rename(&leaf.name, &old), Step::rename(&parent.name, &own)];
        let locks = lock_tags(&leaf);
        if !locks.is_empty() {
            steps.push(Step::tag(&own, locks));
        }
        steps.extend([Step::remove(&old), Step::remove(journal.name())]);
        if let Err(cause) = show().and_then(|()| live.take(&steps)) {
            return Err(cause.undone(live.recover()));
        }
        self.forget(base);
        Ok(())
    }

    /// Removes what is known of an image that is gone, besides the image. What is left says nothing.
    pub(super) fn forget(&self, vdi: VdiUuid) {
        let forgotten = self.live.now().uncount(vdi).and_then(|()| self.live.remove_record(OP, vdi));
        if let Err(error) = forgotten {
            syslog::write(&format!("the record of {vdi}, which is gone, stays: {}", crate::error::one_line(&error)));
        }
    }
}

/// The bytes that a VHD takes at most when its child was merged into it.
fn room_for_blocks(group: &Group, child: &Volume, parent: &Volume) -> Result<u64> {
    let open = |volume: &Volume| {
        let storage: Arc<dyn Storage> = Arc::new(group.image(volume)?);
        Image::open(storage, Mode::ReadOnly)
    };
    let (child, parent) = (open(child)?, open(parent)?);
    let blocks = |opened: &Image| opened.allocated().map(|(block, _)| block).collect::<BTreeSet<u32>>();
    let more = blocks(&child).difference(&blocks(&parent)).count() as u64;
    Ok(parent.physical_size() + (more + 1) * sizes::OF_BLOCK)
}

/// The bytes that a qcow2 takes at most when its child was merged into it: each cluster of the child a new one, and tables for all.
fn room_for_clusters(group: &Group, child: &Volume, parent: &Volume) -> Result<u64> {
    let storage = |volume: &Volume| Ok::<Arc<dyn Storage>, Error>(Arc::new(group.image(volume)?));
    let (child, parent) = (storage(child)?, storage(parent)?);
    let layout = layout(Format::Qcow2);
    let (room, info) = (qcow2::room(&parent)?, layout.query(&*child)?);
    let grain = qcow2::Header::read(&*parent)?.cluster();
    let clusters = |run: &std::ops::Range<u64>| run.end.div_ceil(grain) - run.start / grain;
    let new: u64 = layout.hides(&child)?.stretches().iter().map(|run| clusters(run) * grain).sum();
    let tables = qcow2::overhead(info.virtual_size) * (grain / qcow2::CLUSTER).max(1);
    // A disk in which each cluster has data takes no more.
    let all = room.full + info.virtual_size.saturating_sub(layout.query(&*parent)?.virtual_size) * 2;
    Ok((room.end + new + tables).min(all.max(room.end)))
}
