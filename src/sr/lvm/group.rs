//! The group of an SR as a report shows it: which volumes are VDIs, and what has to be refused or cleaned up before a change.

use super::revert::reverted;
use super::space::pool_use;
use super::{LvmSr, POOL, RAW, SHARED, UNFINISHED, VHD, tags};
use crate::error::{Error, Result};
use crate::sr::volume_group::trim;
use crate::sys::blockdev;
use crate::sys::lvm::{self, Lv, Vg};
use crate::types::{Done, Format, SlotMark, SrInfo, VdiUuid};

impl LvmSr {
    /// Says that no volume of the group is the VDI.
    pub(super) fn no_vdi(&self, vdi: VdiUuid, vg: &Vg) -> Error {
        Error::NoVdi { vdi, sr: self.group.sr, looked: vg.name.clone() }
    }

    /// The VDIs of the group: which, and in which volume. A volume that a killed vdi_revert left is a VDI if the disk
    /// is gone already.
    pub(super) fn volumes<'a>(&self, vg: &'a Vg) -> impl Iterator<Item = (VdiUuid, Format, &'a Lv)> {
        vg.lvs.iter().filter_map(|lv| match reverted(&lv.name) {
            Some(vdi) => vg.lv(&format!("{RAW}{vdi}")).is_none().then_some((vdi, Format::Raw, lv)),
            None => vdi_of(&lv.name).map(|(vdi, format)| (vdi, format, lv)),
        })
    }

    pub(super) fn summary(&self, vg: &Vg) -> SrInfo {
        let mut vdis: Vec<VdiUuid> = self.volumes(vg).map(|(vdi, ..)| vdi).collect();
        vdis.sort_unstable();
        let virtual_allocation = self.volumes(vg).map(|(.., lv)| lv.size).sum();
        let pool = vg.lv(POOL).filter(|pool| pool.is_thin_pool());
        let pool_use = pool.and_then(pool_use);
        SrInfo {
            uuid: self.group.sr,
            vdi_uuids: vdis,
            physical_utilisation: match (pool, pool_use) {
                (None, _) => virtual_allocation,
                (Some(_), Some(used)) => used.data_used,
                (Some(pool), None) => pool.size.min(virtual_allocation),
            },
            virtual_allocation,
            size: pool.map_or(vg.size, |pool| pool.size),
            sr_type: self.driver.sr_type.to_owned(),
            location: self.group.location(vg),
            slot: SlotMark::of_tags(&vg.tags),
            free: match (pool, pool_use) {
                (None, _) => self.group.free(vg),
                (Some(_), Some(used)) => used.data_size - used.data_used,
                (Some(_), None) => 0,
            },
            pool: pool_use,
            vdis: Vec::new(),
            logs: None,
            kept: None,
        }
    }

    /// The group, to be looked at: a device may be missing. Nothing may be changed then.
    pub(super) fn listed(&self) -> Result<Vg> {
        let vg = self.group.look()?;
        self.group.refuse_duplicates(&vg)?;
        Ok(vg)
    }

    pub(super) fn refuse_attached(&self, vg: &Vg) -> Result<()> {
        match self.volumes(vg).find(|(.., lv)| lv.active && !tags::read(&lv.tags).is_private()) {
            None => Ok(()),
            Some((vdi, _, lv)) => Err(Error::VdiInUse {
                vdi,
                sr: self.group.sr,
                holder: format!("this host, which has it attached as {}", lvm::node(&vg.name, &lv.name).display()),
            }),
        }
    }

    /// Lets volumes go on that a killed LVM command left suspended, before anything opens or changes them. LVM's lock keeps
    /// the commands that are at work out of what a report shows.
    pub(super) fn resume<'l>(&self, vg: &Vg, volumes: impl IntoIterator<Item = &'l Lv>) -> Result<()> {
        let stuck = volumes.into_iter().filter(|lv| lv.stuck);
        stuck.into_iter().try_for_each(|lv| lvm::refresh(&vg.name, &lv.name))
    }

    /// Removes what killed calls left on this host, where the caller has the SR to itself. A volume that another host
    /// left stays: that host may be filling it. If the extents were given to another volume, that host's data would be
    /// destroyed.
    pub(super) fn sweep(&self, vg: &Vg) -> Result<()> {
        let of_vdi = |lv: &&Lv| lv.name.strip_prefix(UNFINISHED).is_some_and(|u| u.parse::<VdiUuid>().is_ok());
        let left = vg.lvs.iter().filter(of_vdi).filter(|lv| !tags::is_elsewhere(&lv.tags));
        left.into_iter().try_for_each(|lv| self.remove_unfinished(vg, &lv.name))?;
        self.end_trim_left(vg)?;
        self.end_reverts(vg)
    }

    /// Removes the volume with all that was free that a killed sr_trim of this host, or of another storage manager, left. Another host
    /// may still be discarding its own, which stays. The caller has the SR's lock, so no call of this host is at work on it.
    pub(super) fn end_trim_left(&self, vg: &Vg) -> Result<Done> {
        match vg.lv(&trim::volume(self.group.sr)).is_some_and(|lv| !tags::is_elsewhere(&lv.tags)) {
            true => self.group.end_trim(vg).map(|()| Done::Changed),
            false => Ok(Done::Already),
        }
    }

    /// The group that is to be changed, without what a killed sr_trim left.
    pub(super) fn without_trim(&self, vg: Vg) -> Result<Vg> {
        match self.end_trim_left(&vg)? {
            Done::Changed => self.group.whole(),
            Done::Already => Ok(vg),
        }
    }

    pub(super) fn remove_unfinished(&self, vg: &Vg, name: &str) -> Result<()> {
        self.group.deactivate(vg, name)?;
        // vdi_resize gives a disk the extents that it zeroed in here; discarded, they might show something else again.
        self.group.changed(vg, || lvm::remove_kept(&vg.name, name))
    }

    /// A failed command's reason in the API's words, from what is there now: the VDI that it was to make, or the
    /// `wanted` bytes that are not there.
    pub(super) fn explain(&self, failed: Error, vdi: Option<VdiUuid>, wanted: u64) -> Error {
        // The error of a later step, such as a flush, says by itself what failed.
        let (Error::Tool { .. }, Ok(vg)) = (&failed, self.group.whole()) else { return failed };
        let pooled = vg.lv(POOL).is_some();
        match vdi {
            Some(vdi) if self.volumes(&vg).any(|(found, ..)| found == vdi) => {
                Error::VdiExists { vdi, sr: self.group.sr }
            }
            _ if !pooled && wanted > vg.free => Error::NoSpace { sr: self.group.sr, free: vg.free, wanted },
            _ => failed,
        }
    }

    /// Whether a new disk is zeroed at once. It is where that takes long, so that no vdi_attach waits, and where other hosts
    /// have the group: the end of zeroing changes the group, which a host that attaches a disk may not do.
    pub(super) fn zeroes_early(&self, vg: &Vg) -> bool {
        vg.tags.iter().any(|tag| tag == SHARED) || !vg.pvs.iter().all(|pv| blockdev::zeroes_by_itself(&pv.name))
    }
}

/// Which VDI a volume is, by its name.
pub(super) fn vdi_of(name: &str) -> Option<(VdiUuid, Format)> {
    let (uuid, format) =
        name.strip_prefix(RAW).map(|u| (u, Format::Raw)).or_else(|| Some((name.strip_prefix(VHD)?, Format::Vhd)))?;
    Some((uuid.parse().ok()?, format))
}

/// Whether some of its extents are on a device that is missing.
pub(super) fn is_gone(lv: &Lv) -> bool {
    lv.health == "partial"
}

/// Other storage managers keep VHD images in volumes; a driver that took them for raw disks would destroy them.
pub(super) fn refuse_foreign(vdi: VdiUuid, format: Format) -> Result<()> {
    match format {
        Format::Raw => Ok(()),
        _ => Err(Error::Foreign {
            why: format!("VDI {vdi} is a {format} image in a volume (LVHD); this driver serves raw volumes"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volumes_name_says_which_vdi_it_is() {
        let vdi = "98de866e-b035-4b1a-a571-613bff542b89";
        assert_eq!(vdi_of(&format!("LV-{vdi}")), Some((vdi.parse().unwrap(), Format::Raw)));
        assert_eq!(vdi_of(&format!("VHD-{vdi}")), Some((vdi.parse().unwrap(), Format::Vhd)));
        for other in
            ["POOL", "MGT", "LV-", "LV-x", &format!("NEW-{vdi}"), &format!("REV-{vdi}"), &format!("OLD_LV-{vdi}")]
        {
            assert_eq!(vdi_of(other), None, "{other}");
        }
    }
}
