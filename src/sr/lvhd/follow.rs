//! What a host does with volumes that the SR's master has changed: the plug-in `on-slave` of the Python drivers (`on_slave.py`,
//! `lvmcache.py`). The group is not changed.

use super::Lvhd;
use super::activation::Counted;
use super::place::LvhdPlace;
use super::step::{Step, plan};
use crate::error::{Error, Result};
use crate::sr::driver::{VolumeChange, VolumeOf};
use crate::sys::lvm::{self, Deactivated, Vg, script};
use crate::sys::syslog;
use crate::types::{Done, Format, VdiUuid};
use crate::vdi::tree::chain::chain;
use crate::vdi::tree::forest::Forest as _;

impl Lvhd<'_> {
    /// See [`crate::sr::Sr::volumes`].
    ///
    /// # Errors
    /// [`Error::NoVdi`]; what the images say.
    pub fn volumes(&self, vdi: VdiUuid) -> Result<Vec<VolumeOf>> {
        let (forest, group) = (self.forest(), self.live.now());
        let place = LvhdPlace::of(self.live.clone(), vdi)?;
        let chain = match group.volume(vdi)?.format {
            Format::Raw => vec![vdi],
            _ => chain(&forest, &place)?,
        };
        chain.into_iter().map(|vdi| Ok(VolumeOf { vdi, name: group.volume(vdi)?.lv.name.clone() })).collect()
    }

    /// See [`crate::sr::Sr::follow`].
    ///
    /// # Errors
    /// What LVM says; [`Error::NoVdi`] for a volume that is not there.
    pub fn follow(&self, change: VolumeChange, name: &str, vdi: Option<VdiUuid>) -> Result<()> {
        let group = self.live.now();
        let of_vdi = || {
            vdi.ok_or_else(|| Error::Invalid {
                what: "uuid",
                value: String::new(),
                expected: "expected the UUID of the VDI whose volume is counted".to_owned(),
            })
        };
        match change {
            VolumeChange::Use => {
                let vdi = of_vdi()?;
                group.count(vdi, Counted::More)?;
                self.refresh(name).map_err(|cause| cause.undone(group.count(vdi, Counted::Less).map(drop)))
            }
            VolumeChange::Leave => match group.count(of_vdi()?, Counted::Less)? {
                true => Ok(()),
                false => deactivate(group.vg(), name),
            },
            VolumeChange::Deactivate => deactivate(group.vg(), name),
            VolumeChange::Refresh => self.refresh(name),
            VolumeChange::Forget => group.uncount(of_vdi()?),
        }
    }

    /// Activates a volume; one that is active gets the extents that the group says now.
    fn refresh(&self, name: &str) -> Result<()> {
        let group = self.live.now();
        if group.vg().lv(name).is_none() {
            let device = lvm::node(&group.vg().name, name).display().to_string();
            return Err(Error::NoDevice { device, why: "there is no such volume".to_owned() });
        }
        let names = vec![name.to_owned()];
        let steps = [Step::Activate { names: names.clone() }, Step::Refresh { names }];
        let (commands, ..) = plan(group.vg(), &steps);
        script::run(&commands)
    }

    /// See [`crate::sr::Sr::fit`].
    ///
    /// # Errors
    /// Those of [`super::Live::lock`] and [`super::Live::inflate`].
    pub fn fit(&self, vdi: VdiUuid, attached: bool) -> Result<Done> {
        let live = &self.live;
        let _trees = live.lock_recovered("giving a disk of another host room", live.own().deadline.end())?;
        live.refuse_begun(vdi)?;
        let steps = match attached {
            true => live.inflate(vdi, live.wanted(vdi)?)?,
            false => self.steps_to_shrink(vdi)?,
        };
        live.take_last(&steps)?;
        Ok(if steps.is_empty() { Done::Already } else { Done::Changed })
    }

    /// Those that make the volume of a disk that no host has attached as small as it should be.
    fn steps_to_shrink(&self, vdi: VdiUuid) -> Result<Vec<Step>> {
        let group = self.live.now();
        let is_small = group.is_thin() || group.params(vdi).snapshot_of.is_some();
        if !is_small || group.is_counted(vdi)? {
            return Ok(Vec::new());
        }
        let _alone = self.forest().alone(&[vdi], vdi)?;
        self.live.deflate(vdi)
    }
}

/// Also of a volume that the master has renamed or removed since it was activated here: LVM does not know its device by this name any more.
fn deactivate(group: &Vg, name: &str) -> Result<()> {
    let vg = &group.name;
    if lvm::kernel_device(vg, name).is_none() {
        return Ok(());
    }
    let deactivated = match group.lv(name) {
        Some(_) => lvm::deactivate(vg, name)?,
        None => lvm::remove_lost_device(vg, name)?,
    };
    if let Deactivated::Busy(holder) = deactivated {
        syslog::write(&format!("{} stays active: {holder} has it open", lvm::node(vg, name).display()));
        return Err(Error::DeviceInUse { device: lvm::node(vg, name).display().to_string(), holder });
    }
    Ok(())
}
