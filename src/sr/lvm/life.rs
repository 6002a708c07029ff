//! The life of an SR: how it is made, attached, detached and deleted. `super` tells the order of steps.

use super::group::{is_gone, vdi_of};
use super::place::{Group, LvmPlace};
use super::{Allocation, DRIVER, Kind, LVHD, LvmSr, POOL, SHARED, THICK, THIN, tags};
use crate::error::{Error, Result, one_line};
use crate::sr::volume_group::{CREATING, DELETING};
use crate::sr::{Trim, lvhd, lvmraw};
use crate::sys::copy::Progress;
use crate::sys::lvm::{self, Lv, Vg};
use crate::sys::{blockdev, syslog};
use crate::types::{Done, NewSr, Overwrite, Size};
use crate::vdi;

/// The bytes that an SR on devices with so many has.
pub(super) fn room(devices: &[u64]) -> u64 {
    devices.iter().sum()
}

impl LvmSr {
    /// Refuses to make a group of raw volumes as an SR that xapi takes for an LVHD SR: its type says so, and what xapi does with the type.
    pub(super) fn refuse_raw_of_xapi(&self) -> Result<()> {
        if self.is_lvhd || !self.is_of_pool || self.driver.sr_type != DRIVER.sr_type {
            return Ok(());
        }
        let expected = format!(
            "an SR of raw volumes under xapi is of type {raw}: xe sr-create type={raw}, with the same keys but lvhd",
            raw = lvmraw::DRIVER.sr_type
        );
        Err(Error::Invalid { what: LVHD.0, value: "false".to_owned(), expected })
    }

    pub(super) fn make(&self, new: &NewSr, over: &Overwrite) -> Result<()> {
        self.refuse_raw_of_xapi()?;
        let thin = self.allocation == Some(Allocation::Thin);
        let mut tags = match (self.is_lvhd, thin) {
            (true, _) => vec![CREATING],
            (false, true) => vec![THIN],
            (false, false) => vec![THICK],
        };
        // Of an LVHD group, its agent alone knows.
        tags.extend((self.marks_shared && !self.is_lvhd).then_some(SHARED));
        let slot = new.slot.map(|slot| slot.tag());
        tags.extend(slot.as_deref());
        self.group.make(new.size, over, &tags, room)?;
        if self.is_lvhd {
            lvhd::life::furnish(&self.group, thin).map_err(|cause| self.group.unmake(cause))?;
        } else if thin {
            let options =
                ["-y", "--type", "thin-pool", "-n", POOL, "-l", "100%FREE", "--poolmetadataspare", "y", "-Zy"];
            lvm::change("lvcreate", &options, &[&self.group.name()]).map_err(|cause| self.group.unmake(cause))?;
        }
        self.group.flush_devices()
    }

    pub(super) fn remove(&self) -> Result<Done> {
        let Some(vg) = self.group.look_for_any()? else {
            return self.group.flush_devices().map(|()| Done::Already);
        };
        self.group.refuse_incomplete(&vg)?;
        let is_begun = vg.tags.iter().any(|t| t == DELETING);
        let vg = match self.kind(vg) {
            Kind::Own(vg) if is_begun => vg,
            Kind::Own(vg) => {
                self.refuse_attached(&vg)?;
                let group = Group::of(&vg);
                for (vdi, _, lv) in self.volumes(&vg) {
                    vdi::refuse_if_locked(&LvmPlace::listed(self, &group, vdi, lv))?;
                }
                vg
            }
            Kind::Lvhd(theirs) => {
                theirs.refuse_delete()?;
                theirs.vg()
            }
        };
        if !is_begun {
            self.group.change(&vg, "vgchange", &["--addtag", DELETING], &[&vg.name])?;
        }
        self.group.remove(&vg)?;
        lvhd::life::forget_users(self.group.sr)?;
        Ok(Done::Changed)
    }

    /// With a device missing, the disks that are whole are served, if there is one. Nothing is changed then.
    pub(super) fn make_available(&self) -> Result<Done> {
        let vg = match self.kind(self.listed()?) {
            Kind::Own(vg) => vg,
            Kind::Lvhd(theirs) => return theirs.attach(),
        };
        let incomplete = self.group.refuse_incomplete(&vg).err();
        let pool = vg.lv(POOL).filter(|pool| pool.is_thin_pool());
        if pool.is_none() && vg.tags.iter().any(|t| t == THIN) {
            let why = format!("it was created thin, and its group {} has no pool {POOL}", vg.name);
            return Err(Error::SrUnavailable { sr: self.group.sr, why });
        }
        match (self.allocation, pool) {
            (Some(Allocation::Thin), None) | (Some(Allocation::Thick), Some(_)) => {
                let is = if pool.is_some() { "thin" } else { "thick" };
                return Err(Error::Invalid {
                    what: "allocation",
                    value: if pool.is_some() { "thick" } else { "thin" }.to_owned(),
                    expected: format!("SR {} was created {is}", self.group.sr),
                });
            }
            _ => {}
        }
        self.group.note_strangers(&vg);
        match incomplete {
            None => {
                self.resume(&vg, &vg.lvs)?;
                self.sweep(&vg)?;
            }
            Some(missing) if pool.into_iter().chain(self.volumes(&vg).map(|(.., lv)| lv)).all(is_gone) => {
                return Err(missing);
            }
            Some(missing) => {
                syslog::write(&format!("SR {}: only some of its VDIs: {}", self.group.sr, one_line(&missing)))
            }
        }
        match pool {
            Some(pool) if !pool.active => lvm::activate(&vg.name, POOL).map(|()| Done::Changed),
            _ => Ok(Done::Already),
        }
    }

    /// Refuses a group that is larger than its device, and lets one use what its device has become larger by, where this host may
    /// change it.
    ///
    /// # Errors
    /// [`Error::SrUnavailable`] for a device that is too small; nothing was written then.
    pub fn fit_device(&self) -> Result<()> {
        let vg = self.listed()?;
        let mut has_more = false;
        for pv in vg.pvs.iter().filter(|pv| !pv.missing) {
            let Some(size) = blockdev::known_size(&pv.name) else { continue };
            let needed = pv.first_extent + pv.size / vg.extent_size.max(1) * vg.extent_size;
            if size < needed {
                let device = pv.name.display();
                let why = format!(
                    "{device} has {}, and the volume group on it is as large as {}; make the LUN larger again",
                    Size(size),
                    Size(needed)
                );
                return Err(Error::SrUnavailable { sr: self.group.sr, why });
            }
            has_more |= size - needed >= 2 * vg.extent_size.max(1);
        }
        if !has_more || self.is_slave {
            return Ok(());
        }
        match self.use_all_of_devices() {
            Ok(_) | Err(Error::ReadOnlySr { .. } | Error::Unsupported { .. }) => Ok(()),
            Err(e) => {
                syslog::write(&format!("SR {} does not use all of its LUN: {}", self.group.sr, one_line(&e)));
                Ok(())
            }
        }
    }

    /// See [`crate::sr::Sr::grow`]. The spare of the pool's metadata keeps its extents.
    pub(super) fn use_all_of_devices(&self) -> Result<Done> {
        let before = match self.kind(self.group.whole()?) {
            Kind::Own(vg) => vg,
            Kind::Lvhd(theirs) => return theirs.grow(),
        };
        self.resume(&before, &before.lvs)?;
        self.group.use_all_of_devices(&before)?;
        let after = self.group.whole()?;
        if after.lv(POOL).is_some_and(Lv::is_thin_pool) && after.free >= after.extent_size {
            let pool = format!("{}/{POOL}", after.name);
            self.group.change(&after, "lvextend", &["-y", "-l", "+100%FREE"], &[&pool])?;
            return Ok(Done::Changed);
        }
        Ok(if after.size > before.size { Done::Changed } else { Done::Already })
    }

    /// See [`crate::sr::Sr::trim`].
    pub(super) fn discard_free(&self, so_far: Trim, progress: Progress) -> Result<Trim> {
        const OP: &str = "sr_trim";
        let vg = match self.kind(self.group.whole()?) {
            Kind::Own(vg) => vg,
            Kind::Lvhd(theirs) => return theirs.trim(OP, so_far, progress),
        };
        if self.is_slave {
            return Err(Error::NotMaster { op: OP });
        }
        if vg.lv(POOL).is_some() {
            let why =
                format!("SR {} is thin: what is free is in its pool, and the pool has all of the group", self.group.sr);
            return Err(Error::Unsupported { op: OP, why });
        }
        let vg = self.without_trim(vg)?;
        self.group.trim(&vg, &[&tags::of_maker()], so_far, progress)
    }

    pub(super) fn end_availability(&self) -> Result<Done> {
        let vg = match self.group.look() {
            Ok(vg) => vg,
            Err(unseen) => return self.detach_unseen(unseen),
        };
        let vg = match self.kind(vg) {
            Kind::Own(vg) => vg,
            Kind::Lvhd(theirs) => return theirs.detach(),
        };
        self.resume(&vg, &vg.lvs)?;
        self.refuse_attached(&vg)?;
        let mut done = Done::Already;
        for lv in vg.lvs.iter().filter(|lv| lv.active) {
            self.group.deactivate(&vg, &lv.name)?;
            done = Done::Changed;
        }
        Ok(done)
    }

    /// Ends what is left of an SR whose devices went away while it was attached.
    pub(super) fn detach_unseen(&self, unseen: Error) -> Result<Done> {
        let group = self.group.name();
        let names = lvm::kernel_names(&group);
        if names.is_empty() {
            // Nothing of it is here, whatever the reason.
            return Ok(Done::Already);
        }
        if matches!(unseen, Error::Foreign { .. }) {
            return Err(unseen);
        }
        let pool: Vec<String> = ["", "-tpool", "_tdata", "_tmeta"]
            .iter()
            .map(|end| format!("{}{end}", lvm::dm_name(&group, POOL)))
            .collect();
        if names.iter().any(|name| !pool.contains(name)) {
            return Err(Error::SrUnavailable {
                sr: self.group.sr,
                why: format!("{unseen}; {} of its volumes are active: vdi_detach them first", names.len()),
            });
        }
        for name in pool.iter().filter(|name| names.contains(name)) {
            lvm::remove_device(name)?;
        }
        Ok(Done::Changed)
    }
}

/// A group that was to be thin and has no pool, or in which LVHD was not furnished, and no disk that could have lost it.
pub(super) fn is_half_made(vg: &Vg) -> bool {
    let has_no_disk = || !vg.lvs.iter().any(|lv| vdi_of(&lv.name).is_some());
    let has = |tag: &str| vg.tags.iter().any(|t| t == tag);
    (has(CREATING) || (has(THIN) && vg.lv(POOL).is_none())) && has_no_disk()
}
