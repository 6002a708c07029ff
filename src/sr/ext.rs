//! `EXTSR`: a filesystem of its own around [`FileSr`]. `FileSr` does all that is done to disks; this module only says
//! where the disks are.
//!
//! The SR is the ext4 filesystem on the volume `<sr>` of the volume group `XSLocalEXT-<sr>`, striped over all devices
//! of the group, mounted at `/run/sr-mount/<sr>`. So it is with the Python storage managers, and an SR that
//! one made is served by the other: the group's name says which SR it is, there is no marker in it. The tags of a
//! group that is half made or half deleted are ours alone.
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**: 1. `vgcreate` with the tag `xcp.creating`; 2. `lvcreate`; 3. `mkfs.ext4`; 4. deactivate the volume;
//!   5. remove the tag. Before 5 there is no such SR; sr_create and sr_delete remove the group first.
//! - **sr_delete**: 1. look for disks in use, through a mount that nobody else sees if the SR is not attached; 2. unmount it;
//!   3. deactivate; 4. tag the group `xcp.deleting`: from here on there is no such SR; 5. `vgremove`; 6. `pvremove`.
//!   After 1 to 3: an SR that is not attached. After 4: sr_delete and sr_create finish. After 5: devices with an empty LVM
//!   label, which sr_create takes.
//! - **sr_attach**: 1. activate the volume; 2. `e2fsck -p`, which replays the journal and checks what the filesystem says
//!   needs it; 3. make the mountpoint; 4. mount; 5. as in [`mod@file`]. Before 4: an active volume and an empty directory,
//!   which sr_attach takes and sr_detach removes. After 4: attached.
//! - **sr_detach**: 1. unmount; 2. remove the mountpoint; 3. deactivate. After 1 or 2: as above.
//!
//! The volume and its filesystem are in `ext/volume.rs`. `docs/ext.md` gives the reasons.

mod volume;

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use self::volume::{Volume, striped};
use crate::context::Context;
use crate::error::{Error, Result, ended};
use crate::sr::config::PREFERRED_FORMATS;
use crate::sr::driver::{About, Driver, Sr, Substrate, no_server, refuse_slot, vdi_by_uuid};
use crate::sr::file::{self, FileSr};
use crate::sr::mountpoint::Mountpoint;
use crate::sr::volume_group::{self, CREATING, DELETING, Naming, VolumeGroup};
use crate::sys::copy::Progress;
use crate::sys::lock::{self, Kind};
use crate::sys::lvm::{self, Unmapped, Vg};
use crate::sys::mount::{self, Mount};
use crate::sys::{blockdev, run_dir};
use crate::types::{
    DeviceConfig, Done, Finding, NewSr, NewVdi, Overwrite, Space, SpaceUse, SrInfo, VdiInfo, VdiName, VdiUuid,
};
use crate::vdi::Vdi;
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::collect::CollectPlan;
use crate::vdi::tree::run::Collecting;

pub const DRIVER: Driver = Driver {
    sr_type: "ext",
    executable: "EXTSR",
    description: "disks as files in an ext4 filesystem on block devices",
    dconf_form: "/dev/sdb,/dev/sdc",
    formats: file::DRIVER.formats,
    parse_dconf: |dconf| Ok(DeviceConfig::from([("device", dconf)])),
    open: |sr, config, deadline| Ok(Box::new(ExtSr::new(VolumeGroup::new(sr, config, &NAMING, deadline)?))),
    probe: |config, deadline| {
        volume_group::probe(config, &NAMING, deadline, |group, vg| ExtSr::new(group).look_inside(vg))
    },
    discover: || volume_group::discover(&NAMING),
    keeps_disks: false,
    about: About {
        name: "Local ext4",
        capabilities: file::CAPABILITIES,
        configuration: &[("device", "block devices, separated by commas (required)"), PREFERRED_FORMATS],
        vdi_at: vdi_by_uuid,
        keeps_names: true,
        sm_config: file::sm_config,
        substrate: Substrate::BlockDevices,
        images: file::images,
        looks_at_every_disk: true,
        protocol_versions: no_server,
    },
};

const NAMING: Naming = Naming { prefix: "XSLocalEXT-", is_half_made, unmapped: Unmapped::All };

/// A filesystem that finds an error in itself takes no more writes, which could make it worse.
const OPTIONS: &str = "errors=remount-ro";
/// Nothing is written, not even the journal replayed: another host may have it mounted.
const LOOK_ONLY: &str = "noload";

/// sr_create removes the tag when all is there. The volume comes first of all in a group without the tag.
fn is_half_made(vg: &Vg) -> bool {
    vg.tags.iter().any(|t| t == CREATING) || vg.lvs.is_empty()
}

/// An SR in a filesystem: a [`FileSr`], the volume below it and where that has to be mounted.
struct ExtSr {
    volume: Volume,
    point: Mountpoint,
    file: FileSr,
}

impl ExtSr {
    fn new(group: VolumeGroup) -> ExtSr {
        let name = lvm::dm_name(&group.name(), &group.sr.to_string());
        let is_ours = move |mount: &Mount| blockdev::dm_name(mount.device).is_some_and(|found| found == name);
        let point = Mountpoint::new(group.sr, &run_dir::mounts(), is_ours);
        let file = files(&group, point.path());
        ExtSr { file, point, volume: Volume { group } }
    }

    /// The mounted files, on a volume whose I/O goes on. LVM is asked only if it does not: a killed LVM command left the
    /// volume suspended.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`] if something else is mounted there.
    fn files(&self) -> Result<&FileSr> {
        if let Some(mount) = self.point.mounted()? {
            self.volume.resume(mount.device)?;
        }
        // One that is not mounted says so itself.
        Ok(&self.file)
    }

    /// Explains a failure of the filesystem: its meaning, and what to do.
    fn explain(&self, e: Error) -> Error {
        let failed = |found: &str| Error::Damaged {
            path: self.volume.node(),
            what: format!("{found}; detach its VDIs: then sr_detach and sr_attach check and repair it"),
        };
        match e.errno().map(Errno::from_raw) {
            Some(Errno::EROFS) => failed("the filesystem takes no writes since it found errors"),
            Some(Errno::EUCLEAN) => failed("the filesystem has errors"),
            Some(Errno::EIO) => self.volume.group.missing_device().unwrap_or(e),
            _ => e,
        }
    }

    /// Says where the SR lives instead of where it is mounted.
    fn located(&self, info: SrInfo) -> SrInfo {
        let active = || blockdev::number(&lvm::kernel_device(&self.volume.group.name(), &self.volume.name())?);
        let mounted = self.point.mounted().ok().flatten().map(|mount| mount.device);
        let is_on = mounted.or_else(active).map(blockdev::below);
        SrInfo { location: self.volume.group.location_among(&is_on.unwrap_or_default()), ..info }
    }

    /// `cause`, after ending what came before it.
    fn undo(&self, cause: Error) -> Error {
        if let Err(undo) = self.point.unmount() {
            return Error::Undo { cause: Box::new(cause), undo: Box::new(undo) };
        }
        // In use by somebody else it stays active, which harms nobody.
        let _ = self.volume.deactivate();
        cause
    }

    /// Does something with the files of an SR that is not attached, through a mount that nobody else sees and
    /// that ends with it.
    fn privately<T: Send>(&self, device: &Path, options: &str, work: fn(&FileSr) -> Result<T>) -> Result<T> {
        mount::privately(&run_dir::state().join("ext"), |dir| {
            self.volume.mount(device, dir, true, options)?;
            work(&files(&self.volume.group, dir))
        })
    }

    /// The answer of sr_probe for this SR. An SR that is not attached is looked at without a write to it.
    fn look_inside(&self, vg: &Vg) -> Result<SrInfo> {
        if self.point.is_mounted()? {
            return self.stat();
        }
        let sr = self.volume.group.sr;
        let busy = |who: &str| Error::SrUnavailable { sr, why: format!("{who} works on it") };
        let _alone = lock::take(&sr.to_string(), "sr", Kind::Exclusive, self.volume.group.deadline.end())
            .map_err(|refused| refused.or_timed_out(busy))?;
        self.unattached(vg, FileSr::stat)
    }

    /// Looks at an SR that is not attached, without a write to it. The caller has the SR's lock.
    fn unattached(&self, vg: &Vg, look: fn(&FileSr) -> Result<SrInfo>) -> Result<SrInfo> {
        self.volume.group.refuse_incomplete(vg)?;
        let device = self.volume.activate()?;
        self.volume.refuse_claimed(&device)?;
        // The kernel removes orphaned inodes from a filesystem mounted read-only, journal or not, unless its device takes
        // no writes.
        let found = blockdev::set_read_only(&device, true)
            .and_then(|()| self.privately(&device, LOOK_ONLY, look))
            .map(|info| self.located(info));
        let writable = blockdev::set_read_only(&device, false);
        let _ = self.volume.deactivate();
        ended(found, writable)
    }

    fn make(&self, new: &NewSr, over: &Overwrite) -> Result<()> {
        refuse_slot(new)?;
        self.volume.group.make(new.size, over, &[CREATING], striped)?;
        self.volume.make_filesystem().map_err(|cause| self.volume.group.unmake(cause))
    }
}

/// The files of the SR, where they are mounted.
fn files(group: &VolumeGroup, path: &Path) -> FileSr {
    let volume = lvm::dm_name(&group.name(), &group.sr.to_string());
    FileSr::new(group.sr, DRIVER.sr_type, path.to_owned(), group.deadline.clone()).on_volume(volume)
}

impl Sr for ExtSr {
    fn create(&self, new: &NewSr) -> Result<()> {
        self.make(new, &Overwrite::default())
    }

    fn create_over(&self, new: &NewSr, over: &Overwrite) -> Result<()> {
        self.make(new, over)
    }

    fn check_create(&self, size: Option<u64>, over: &Overwrite) -> Result<()> {
        self.volume.group.check(size, over, striped)
    }

    fn disks_at_rest(&self) -> Result<Vec<VdiInfo>> {
        let found = if self.point.is_mounted()? {
            self.scan()
        } else {
            self.unattached(&self.volume.group.whole()?, FileSr::scan)
        };
        Ok(found?.vdis)
    }

    fn delete(&self) -> Result<Done> {
        let Some(vg) = self.volume.group.look_for_any()? else {
            self.point.sweep();
            return self.volume.group.flush_devices().map(|()| Done::Already);
        };
        self.volume.group.refuse_incomplete(&vg)?;
        if !self.volume.group.is_unfinished(&vg) {
            if self.point.is_mounted()? {
                self.point.refuse_if_attached()?;
                self.files()?.refuse_if_used().map_err(|e| self.explain(e))?;
                self.point.unmount()?;
            } else {
                let unused =
                    self.volume.prepare().and_then(|device| self.privately(&device, "", FileSr::refuse_if_used));
                unused.map_err(|e| self.undo(e))?;
            }
            self.volume.deactivate()?;
            self.volume.group.change(&vg, "vgchange", &["--addtag", DELETING], &[&vg.name])?;
        }
        self.volume.group.remove(&vg)?;
        self.point.sweep();
        Ok(Done::Changed)
    }

    fn attach(&self) -> Result<Done> {
        if self.point.is_mounted()? {
            let files = self.files()?;
            let repaired = files.refuse_read_only().and_then(|()| files.repair());
            return repaired.map(|()| Done::Already).map_err(|e| self.explain(e));
        }
        self.volume.group.note_strangers(&self.volume.group.whole()?);
        self.volume
            .prepare()
            .and_then(|device| {
                self.point.make()?;
                self.volume.mount(&device, self.point.path(), false, OPTIONS)?;
                self.file.repair()
            })
            .map(|()| Done::Changed)
            .map_err(|cause| self.undo(cause))
    }

    fn local_path(&self) -> Option<PathBuf> {
        Some(self.point.path().to_owned())
    }

    fn detach(&self) -> Result<Done> {
        let mounted = self.point.is_mounted()?;
        if mounted {
            self.point.refuse_if_attached()?;
            self.files()?;
            self.point.unmount()?;
        } else {
            self.point.sweep();
        }
        let deactivated = self.volume.deactivate()?;
        Ok(if mounted { Done::Changed } else { deactivated })
    }

    fn stat(&self) -> Result<SrInfo> {
        self.files()?.stat().map(|info| self.located(info)).map_err(|e| self.explain(e))
    }

    fn space(&self) -> Result<Space> {
        self.files()?.space().map_err(|e| self.explain(e))
    }

    fn scan(&self) -> Result<SrInfo> {
        self.files()?.scan().map(|info| self.located(info)).map_err(|e| self.explain(e))
    }

    fn space_use(&self, each: bool) -> Result<SpaceUse> {
        let found = self.files()?.space_use(each).map_err(|e| self.explain(e))?;
        Ok(SpaceUse { sr: self.located(found.sr), ..found })
    }

    fn names(&self, word: &str) -> Result<Vec<VdiName>> {
        self.files()?.names(word).map_err(|e| self.explain(e))
    }

    fn shorten(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        self.files()?.shorten(vdi, context).map_err(|e| self.explain(e))
    }

    fn plan_collect(&self, context: &Context) -> Result<CollectPlan> {
        self.files()?.plan_collect(context).map_err(|e| self.explain(e))
    }

    fn check(&self, thorough: bool, repair: bool, context: &Context) -> Result<Vec<Finding>> {
        self.files()?.check(thorough, repair, context).map_err(|e| self.explain(e))
    }

    fn collect(&self, collecting: &Collecting, context: &Context) -> Result<Done> {
        self.files()?.collect(collecting, context).map_err(|e| self.explain(e))
    }

    /// Also on devices that went away: a disk can still be detached.
    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        self.files()?.vdi(vdi).map_err(|e| self.explain(e))
    }

    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        self.files()?.create_vdi(new).map_err(|e| self.explain(e))
    }

    fn import_vdi(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        self.files()?.import_vdi(new, incoming, progress).map_err(|e| self.explain(e))
    }

    fn delete_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.files()?.delete_broken(vdi, context).map_err(|e| self.explain(e))
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        self.files()?.forget_vdi(vdi).map_err(|e| self.explain(e))
    }

    fn is_shared(&self) -> bool {
        self.file.is_shared()
    }

    fn content_type(&self) -> &'static str {
        self.file.content_type()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lvm::Lv;

    #[test]
    fn a_group_of_the_python_driver_is_whole_and_one_without_its_volume_is_not() {
        let python = Vg { lvs: vec![Lv::default()], ..Vg::default() };
        assert!(!is_half_made(&python));
        assert!(is_half_made(&Vg::default()));
        assert!(is_half_made(&Vg { tags: vec![CREATING.to_owned()], ..python }));
    }
}
