//! A disk goes back: an empty child of the base of its snapshot takes the place of its image.
//!
//! 1. Make `NEW_<U>_1`, which is to be the journal, and `NEW-<U>`; 2. write the record and the image; 3. rename `NEW_<U>_1` to `leaf_<U>_1`,
//!    which names the parent that `U` has now, `VHD-<U>` to `VHD-OLD_<U>`, and `NEW-<U>` to `VHD-<U>`; remove `VHD-OLD_<U>`, and the journal.
//!
//! 1 and 3 are one LVM process each. The journal is that of a merge of `U` into its parent, which both sides undo as long as the parent is
//! there, as it is here: until `NEW-<U>` has the name of `U`, the recovery of either side gives `VHD-OLD_<U>` its name back. Afterwards the
//! disk has gone back; what is left of the old image is removed by the next call of this package.

use super::forest::LvhdForest;
use super::fork::unborn;
use super::journal::{Change, Journal, unwritten};
use super::place::lock_tags;
use super::step::Step;
use crate::error::{Error, Result};
use crate::image::volume::{image, old_image};
use crate::types::{Mode, VdiUuid};
use crate::vdi::tree::forest::Forest;
use crate::vdi::{self, layout};

impl LvhdForest<'_> {
    /// See [`Forest::replace`].
    pub(super) fn go_back(&self, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
        let live = &self.live;
        live.make_way([vdi])?;
        live.refuse_begun(vdi)?;
        let group = live.now();
        let volume = group.volume(vdi)?.clone();
        let parent = group.trees().get(vdi).and_then(|node| node.parent).ok_or_else(|| Error::Unsupported {
            op: "vdi_revert",
            why: format!("VDI {vdi} has no parent, so it shares no image with its snapshot"),
        })?;
        let of_base = self.parent_image(base, Mode::ReadOnly)?;
        let format = volume.format;
        let virtual_size = layout(of_base.format).query(&**of_base.image)?.virtual_size;
        let child = layout(format).child_of(&of_base)?;
        let size = live.size_of_new(format, virtual_size, !group.is_thin());
        live.refuse_full(&[size, 1])?;
        let (record, new, old) = (unwritten(vdi), unborn(vdi), old_image(vdi, format));
        let journal = Journal { vdi, change: Change::Leaf(Some(parent)) };
        let make = [
            Step::journal(&record),
            Step::Create { name: new.clone(), size, tags: lock_tags(&volume.lv), active: false },
        ];
        live.take(&make)
            .and_then(|()| live.write_journal(&record, &journal))
            .and_then(|()| live.write_image(&new, &child))
            .map_err(|cause| cause.undone(live.remove_unborn([&record, &new])))?;
        let publish = [
            Step::rename(&record, journal.name()),
            Step::rename(&volume.lv.name, &old),
            Step::rename(&new, image(vdi, format)),
            Step::remove(&old),
            Step::remove(journal.name()),
        ];
        live.take_last(&publish).map_err(|cause| {
            let recovered = live.recover();
            match live.now().trees().get(vdi).and_then(|node| node.parent) {
                Some(now) if now == base && now != parent => cause.after(vdi::reverted(vdi)),
                _ => cause.undone(recovered),
            }
        })
    }
}
