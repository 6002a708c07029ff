//! The life of an LVHD SR: how it is made, attached, detached and deleted.
//!
//! - **sr_create**: 1. make the group with the tag `xcp.creating`; 2. make `MGT`; 3. write that it has no VDIs; 4. remove the tag. Until
//!   4 there is no such SR, and sr_create begins anew.
//! - **sr_delete** goes as that of a group of this package: see [`lvm`](crate::sr::lvm).

use std::collections::BTreeMap;

use super::group::Volume;
use super::map::Devices;
use super::place::LvhdPlace;
use super::{Lvhd, MGT, Rights, activation, mgt};
use crate::error::{Error, Result, one_line};
use crate::image::storage::Storage;
use crate::sr::Trim;
use crate::sr::volume_group::{CREATING, VolumeGroup};
use crate::sys::copy::Progress;
use crate::sys::lvm::{self, Vg};
use crate::sys::{blockdev, syslog};
use crate::types::{Done, Names, SrUuid, VdiUuid};
use crate::vdi;

/// Makes an LVHD SR of a group that was made with the tag [`CREATING`] and is empty.
///
/// # Errors
/// [`Error::Tool`], [`Error::Io`]: then there is no SR.
pub fn furnish(own: &VolumeGroup, is_thin: bool) -> Result<()> {
    let vg = own.name();
    lvm::change("lvcreate", &["-y", "-an", "-Zn", "-Wn", "-l", "1", "-n", MGT], &[&vg])?;
    let made = lvm::report(Some(&vg), lvm::Unmapped::Tagged(&[]))?.into_iter().find(|found| found.name == vg);
    let lost = |what: &str| Error::Damaged { path: lvm::node(&vg, MGT), what: what.to_owned() };
    let made = made.ok_or_else(|| lost("LVM said that it made its group, and does not show it"))?;
    let lv = made.lv(MGT).ok_or_else(|| lost("LVM said that it made the volume, and there is none"))?;
    let volume: &dyn Storage = &Devices::for_writing(&made).volume(&made, lv)?;
    volume.put(&mgt::write::empty(own.sr, is_thin), 0)?;
    volume.flush()?;
    own.change(&made, "vgchange", &["--deltag", CREATING], &[&vg])
}

/// Forgets who used the volumes of an SR that is gone, or is attached nowhere on this host.
///
/// # Errors
/// [`Error::Io`].
pub fn forget_users(sr: SrUuid) -> Result<()> {
    activation::forget_all(sr)
}

/// Bytes by which the devices of a group have to be larger than the group before it takes them at sr_attach, as with the Python drivers.
const WORTH_GROWING: u64 = 100 << 20;

/// The bytes that the devices of a group have beyond what it uses.
fn more_room(vg: &Vg) -> u64 {
    let room = |pv: &lvm::Pv| blockdev::size(&pv.name).unwrap_or(0).saturating_sub(pv.first_extent + pv.size);
    vg.pvs.iter().map(room).sum()
}

impl Lvhd<'_> {
    /// Looks whether the SR is there. What a change has left is ended by the next one. On the SR's master, the group takes what its
    /// devices have become larger by; a failure of that is only noted.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if no image is whole because a device is missing.
    pub fn attach(&self) -> Result<Done> {
        let (own, group) = (self.live.own(), self.live.now());
        let vg = group.vg();
        let incomplete = own.refuse_incomplete(vg).err();
        let is_gone = |volume: &Volume| volume.lv.health == "partial";
        match incomplete {
            Some(missing) if group.volumes().values().all(is_gone) => return Err(missing),
            Some(missing) => {
                syslog::write(&format!("SR {}: only some of its VDIs: {}", own.sr, one_line(&missing)));
            }
            None => {}
        }
        own.note_strangers(vg);
        if group.rights() == Rights::Master && own.refuse_incomplete(vg).is_ok() && more_room(vg) >= WORTH_GROWING {
            match self.grow() {
                Ok(done) => return Ok(done),
                Err(error) => syslog::write(&format!("SR {} does not grow: {}", own.sr, one_line(&error))),
            }
        }
        Ok(Done::Already)
    }

    /// Gives the SR itself names, on its master. Idempotent.
    ///
    /// # Errors
    /// Those of [`super::live::Live::set_params`].
    pub fn name(&self, names: &Names) -> Result<()> {
        self.live.name_sr(names)
    }

    /// Lets the group use all of its devices. Idempotent.
    ///
    /// # Errors
    /// [`Error::NotMaster`]; what LVM says.
    pub fn grow(&self) -> Result<Done> {
        let (own, before) = (self.live.own(), self.live.now());
        let _trees = self.live.lock("sr_grow", own.deadline.end())?;
        own.use_all_of_devices(before.vg())?;
        self.live.look_again()?;
        Ok(if self.live.now().vg().size > before.vg().size { Done::Changed } else { Done::Already })
    }

    /// See [`crate::sr::Sr::trim`]. What killed calls left is ended first. `op` is what it is called.
    ///
    /// # Errors
    /// [`Error::NotMaster`]; those of [`VolumeGroup::trim`].
    pub fn trim(&self, op: &'static str, so_far: Trim, progress: Progress) -> Result<Trim> {
        let own = self.live.own();
        let _trees = self.live.lock_recovered(op, own.deadline.end())?;
        own.trim(self.live.now().vg(), &[], so_far, progress)
    }

    /// Looks whether this host uses a disk of the SR. What other storage managers have activated is left to them.
    ///
    /// # Errors
    /// [`Error::VdiInUse`].
    pub fn detach(&self) -> Result<Done> {
        let group = self.live.now();
        let vg = group.vg();
        match group.volumes().iter().find(|(_, volume)| volume.lv.open) {
            None => Ok(Done::Already),
            Some((vdi, volume)) => Err(Error::VdiInUse {
                vdi: *vdi,
                sr: self.live.own().sr,
                holder: format!(
                    "this host, which has its volume {} open",
                    lvm::node(&vg.name, &volume.lv.name).display()
                ),
            }),
        }
    }

    /// Refuses to delete the SR where another host is its master, and while a disk is attached here or locked.
    ///
    /// # Errors
    /// [`Error::NotMaster`]; [`Error::VdiInUse`].
    pub fn refuse_delete(&self) -> Result<()> {
        let group = self.live.now();
        group.rights().refuse("sr_delete", self.live.own().sr)?;
        self.detach()?;
        let volumes: &BTreeMap<VdiUuid, Volume> = group.volumes();
        for vdi in volumes.keys() {
            if group.is_counted(*vdi)? {
                let holder = "this host, which has it attached".to_owned();
                return Err(Error::VdiInUse { vdi: *vdi, sr: self.live.own().sr, holder });
            }
            vdi::refuse_if_locked(&LvhdPlace::of(self.live.clone(), *vdi)?)?;
        }
        Ok(())
    }

    /// Refuses to change the group where another host is the SR's master.
    ///
    /// # Errors
    /// [`Error::NotMaster`].
    pub fn refuse_elsewhere(&self, op: &'static str) -> Result<()> {
        self.live.now().rights().refuse(op, self.live.own().sr)
    }
}
