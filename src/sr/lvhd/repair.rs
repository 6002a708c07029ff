//! The repair of an LVHD SR: what its master can mend.
//!
//! First, what killed calls left is ended, see [`recover`](super::recover). Then records of `MGT` that cannot be read are marked as deleted, those of
//! VDIs that are gone are removed, and the format that a record says is made that of the volume. Then images are mended as their formats do it,
//! each under the locks of its VDI and of the disks above it. What was found before and is not found afterwards is mended.

use std::sync::Arc;
use std::time::Instant;

use super::Lvhd;
use crate::error::{Error, Result, one_line};
use crate::image::fault::{Look, Weight};
use crate::image::storage::Storage;
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::syslog;
use crate::types::{Finding, Outcome, VdiUuid};
use crate::vdi::layout;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::nodes::Nodes;

const OP: &str = "sr_check --repair";

impl Lvhd<'_> {
    /// Mends what can be mended, and says what there was and what is left, as [`Lvhd::check`] does.
    ///
    /// # Errors
    /// [`Error::NotMaster`]; [`Error::Busy`] at the deadline.
    pub fn repair(&self, thorough: bool) -> Result<Vec<Finding>> {
        self.refuse_elsewhere(OP)?;
        let before = self.check(thorough)?;
        let deadline = self.live.own().deadline.end();
        {
            let _trees = self.live.lock_recovered(OP, deadline)?;
            self.live.mend_records(OP)?;
            self.live.remove_strays()?;
            let group = self.live.now();
            for (vdi, volume) in group.volumes().iter().filter(|(vdi, _)| group.begun(**vdi).is_none()) {
                self.live.retype(OP, *vdi, volume.format)?;
            }
        }
        let is_mendable = |finding: &&Finding| finding.outcome == Outcome::Mendable;
        for vdi in before.iter().filter(is_mendable).filter_map(|finding| finding.vdi) {
            if let Err(error) = self.mend(vdi, deadline) {
                syslog::write(&format!("VDI {vdi} is not mended: {}", one_line(&error)));
            }
        }
        let after = self.check(thorough)?;
        let is_left = |finding: &Finding| after.contains(finding);
        let mended = before.into_iter().filter(|finding| !is_left(finding));
        let mended: Vec<Finding> = mended.map(|finding| Finding { outcome: Outcome::Mended, ..finding }).collect();
        Ok(mended.into_iter().chain(after).collect())
    }

    /// Mends the image of a VDI that no process has open, nor a disk above it.
    fn mend(&self, vdi: VdiUuid, deadline: Instant) -> Result<()> {
        let _locks = self.lock_above(vdi, &self.live.now().trees())?;
        let _trees = self.live.lock_recovered(OP, deadline)?;
        let group = self.live.now();
        let volume = group.volume(vdi)?;
        let above = group.trees().descendants(vdi);
        let all: Vec<VdiUuid> = [vdi].into_iter().chain(above).collect();
        let forest = self.forest();
        let _alone = forest.alone(&all, vdi)?;
        let image: Arc<dyn Storage> = Arc::new(group.storage_for_writing(&volume.lv)?);
        let layout = layout(volume.format);
        let faults = layout.check(&image, Look { in_use: false, deep: false })?;
        match faults.iter().any(|fault| fault.weight == Weight::Mendable) {
            true => layout.repair(&image),
            false => Ok(()),
        }
    }

    /// The locks of a VDI and of all disks above it.
    ///
    /// # Errors
    /// [`Error::Busy`] while another call has one of them.
    fn lock_above(&self, vdi: VdiUuid, nodes: &Nodes) -> Result<Vec<Lock>> {
        let sr = self.live.own().sr;
        let take = |vdi: VdiUuid| {
            lock::take(&vdi.to_string(), "vdi", Kind::Exclusive, Instant::now()).map_err(|refused| {
                refused.or_timed_out(|who| Error::Busy { sr, holder: who.to_owned(), what: format!("VDI {vdi}") })
            })
        };
        [vdi].into_iter().chain(nodes.descendants(vdi)).map(take).collect()
    }
}
