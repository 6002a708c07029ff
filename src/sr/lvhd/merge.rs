//! The last steps of a merge in an LVHD group, with the journals of the Python drivers (`cleanup.py`).
//!
//! Relink: the children of `V` become those of `P`, which holds all that `V` does. 1. Make the journal `relink_<V>_1`; 2. name `P`
//! in each child; 3. remove `V`, make `P` as small as what it holds, and remove the journal. A child shows the same with either
//! parent, so a kill leaves nothing that has to be undone; the recovery goes on.
//!
//! Collapse: `P` takes the place of its child, the leaf `U`. 1. Make `NEW_<P>_1` and write the record; 2. give it the name
//! `leaf_<U>_1`; 3. show `P`; 4. rename `VHD-<U>` to `VHD-OLD_<U>`, and `VHD-<P>` to `VHD-<U>`, make that writable, remove
//! `VHD-OLD_<U>`, and remove the journal. Until `VHD-OLD_<U>` is removed, the recovery of either side undoes it: the leaf is all
//! there. Afterwards it is complete.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::forest::LvhdForest;
use super::fork::vhd;
use super::group::Group;
use super::journal::{Change, Journal, unwritten};
use super::sizes;
use super::step::Step;
use crate::error::{Error, Result};
use crate::image::storage::Storage;
use crate::image::vhd::Image;
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
        self.refuse_other_formats(&group, &[vdi, base])?;
        live.refuse_begun(base)?;
        let (child, parent) = (open(&group, vdi)?, open(&group, base)?);
        let blocks = |image: &Image| image.allocated().map(|(block, _)| block).collect::<BTreeSet<u32>>();
        let more = blocks(&child).difference(&blocks(&parent)).count() as u64;
        let needed = parent.physical_size() + (more + 1) * sizes::OF_BLOCK;
        // The base of a leaf takes its place, and may be written to then.
        let is_leaf = !child.info().hidden;
        let is_full = is_leaf && (!group.is_thin() || group.is_counted(vdi)?);
        let full = if is_full { sizes::full(child.virtual_size()) } else { 0 };
        let ending = live.inflate(base, needed.max(full))?;
        live.take(&ending)
    }

    fn refuse_other_formats(&self, group: &Group, vdis: &[VdiUuid]) -> Result<()> {
        for vdi in vdis {
            let format = group.volume(*vdi)?.format;
            if format != Format::Vhd {
                let why = format!("VDI {vdi} is {format}: in an LVHD SR, only VHDs are merged");
                return Err(Error::Unsupported { op: OP, why });
            }
        }
        Ok(())
    }

    /// See [`Forest::relink`].
    pub(super) fn give_children(&self, nodes: &Nodes, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
        let live = &self.live;
        let group = live.now();
        self.refuse_other_formats(&group, &[vdi, base])?;
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
            let image = place.open(Mode::ReadWrite)?;
            layout.check_parent(&**image, &old)?;
            layout.set_parent(&**image, &new)?;
            image.close()?;
        }
        Ok(())
    }

    /// See [`Forest::collapse`].
    pub(super) fn take_place(&self, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
        let live = &self.live;
        let group = live.now();
        self.refuse_other_formats(&group, &[vdi, base])?;
        live.refuse_begun(vdi)?;
        let (leaf, parent) = (group.volume(vdi)?.lv.clone(), group.volume(base)?.lv.clone());
        let (record, journal) = (unwritten(base), Journal { vdi, change: Change::Leaf(Some(base)) });
        let make = Step::Create { name: record.clone(), size: 1, journal: true, active: false };
        live.take(&[make])
            .and_then(|()| live.write_journal(&record, &journal))
            .and_then(|()| live.take(&[Step::rename(&record, journal.name())]))
            .map_err(|cause| cause.undone(live.remove_unborn([&record])))?;
        let show = || {
            let group = live.now();
            layout(Format::Vhd).set_hidden(&group.storage_for_writing(&parent)?, false)
        };
        let old = format!("VHD-OLD_{vdi}");
        let mut steps = vec![Step::rename(&leaf.name, &old), Step::rename(&parent.name, vhd(vdi))];
        if parent.read_only {
            steps.push(Step::SetWritable { name: vhd(vdi), writable: true });
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

fn open(group: &Group, vdi: VdiUuid) -> Result<Image> {
    let image: Arc<dyn Storage> = Arc::new(group.image(group.volume(vdi)?)?);
    Image::open(image, Mode::ReadOnly)
}
