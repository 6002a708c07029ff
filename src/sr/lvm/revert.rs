//! A thin disk goes back to a snapshot of it.
//!
//! - First `REV-<vdi>` is made, a thin snapshot of the snapshot, with all that the disk's tags say.
//! - Then `LV-<vdi>` is removed.
//! - Then `REV-<vdi>` gets its name.
//!
//! The name `REV-<vdi>` is the record of the intent. Beside `LV-<vdi>` such a volume means nothing yet, and the next call for the
//! VDI removes it. Without `LV-<vdi>` it is the VDI, and the next call that needs the VDI gives it its name. Earlier releases know
//! no such volume, and leave it alone.

use super::place::LvmPlace;
use super::{LvmSr, RAW, REVERTED, tags};
use crate::error::{Error, Result};
use crate::sys::lvm::Vg;
use crate::types::{Format, VdiUuid};
use crate::vdi::{self, Accept};

/// The VDI that a volume is to become, by its name.
pub(super) fn reverted(name: &str) -> Option<VdiUuid> {
    name.strip_prefix(REVERTED)?.parse().ok()
}

impl LvmSr {
    /// Ends what killed calls left of going back to a snapshot, of every VDI.
    pub(super) fn end_reverts(&self, vg: &Vg) -> Result<()> {
        for lv in &vg.lvs {
            let Some(vdi) = reverted(&lv.name) else { continue };
            match vg.lv(&format!("{RAW}{vdi}")) {
                Some(_) => self.remove_unfinished(vg, &lv.name)?,
                None => self.name_reverted(vg, vdi)?,
            }
        }
        Ok(())
    }

    fn name_reverted(&self, vg: &Vg, vdi: VdiUuid) -> Result<()> {
        let (old, new) = (format!("{REVERTED}{vdi}"), format!("{RAW}{vdi}"));
        self.group.change::<&str>(vg, "lvrename", &[], &[&vg.name, &old, &new])
    }
}

impl LvmPlace<'_> {
    /// Ends what a killed call left of going back to a snapshot.
    pub(super) fn end_revert(&self) -> Result<()> {
        if reverted(&self.name()).is_some() {
            self.sr.name_reverted(&self.vg, self.vdi)?;
            self.lv.borrow_mut().name = format!("{RAW}{}", self.vdi);
        } else if self.has_reverted.get() {
            self.sr.remove_unfinished(&self.vg, &format!("{REVERTED}{}", self.vdi))?;
            self.has_reverted.set(false);
        }
        Ok(())
    }

    /// See [`vdi::Place::take_over`].
    pub(super) fn go_back(&self, source: VdiUuid, accept: Accept) -> Result<()> {
        let refused = |why: String| Err(Error::Unsupported { op: "vdi_revert", why });
        if !self.lv.borrow().is_thin() {
            return refused(format!("SR {} is thick: it has no snapshots", self.sr.group.sr));
        }
        self.sweep(true)?;
        let vg = self.sr.group.whole()?;
        let found = self.sr.volumes(&vg).find(|(found, format, _)| *found == source && *format == Format::Raw);
        let (.., lv) = found.ok_or_else(|| self.sr.no_vdi(source, &vg))?;
        let from = LvmPlace::new(self.sr, &vg, source, lv);
        accept(Format::Raw, &from.params_now())?;
        from.sweep(true)?;
        from.refuse_unhealthy()?;
        if !from.lv.borrow().is_thin() {
            return refused(format!("VDI {source} is not in the pool"));
        }
        self.sr.room_in_pool(&vg)?;
        let name = format!("{REVERTED}{}", self.vdi);
        let mut options: Vec<String> = ["-y", "-s", "-an", "-ky", "-n", &name].map(str::to_owned).to_vec();
        for tag in self.tags_to_keep() {
            options.extend(["--addtag".to_owned(), tag]);
        }
        self.change("lvcreate", &options, &[&from.full_name()]).map_err(|e| self.sr.explain(e, None, 0))?;
        if let Err(cause) = self.change("lvremove", &["-y"], &[&self.full_name()]) {
            // The disk may be gone, so that what was made is all there is of it.
            return match self.sr.group.look() {
                Ok(now) if now.lv(&self.name()).is_some() => {
                    Err(cause.undone(self.sr.remove_unfinished(&self.vg, &name)))
                }
                _ => Err(cause.after(vdi::reverted(self.vdi))),
            };
        }
        self.sr.name_reverted(&self.vg, self.vdi).map_err(|cause| cause.after(vdi::reverted(self.vdi)))
    }

    /// The tags of the disk, and one for the time when the disk was made, if no tag has it: the disk's next volume
    /// would not tell that time.
    fn tags_to_keep(&self) -> Vec<String> {
        let mut kept = self.lv.borrow().tags.clone();
        let is_told = self.record().params.created.is_some();
        kept.extend(self.params_now().created.filter(|_| !is_told).map(tags::of_time));
        kept
    }
}
