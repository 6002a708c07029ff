//! SRs in a filesystem of their own on a logical volume, around [`FileSr`]. `FileSr` does all that is done to disks; this module
//! only says where the disks are.
//!
//! The SR is the filesystem on the volume `<sr>` of a volume group that has the SR's UUID in its name, striped over all devices
//! of the group, mounted at `/run/sr-mount/<sr>`. So it is with the Python storage managers, and an SR that
//! one made is served by the other: the group's name says which SR it is, there is no marker in it. The tags of a
//! group that is half made or half deleted are ours alone.
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**: 1. `vgcreate` with the tag `xcp.creating`; 2. `lvcreate`; 3. `mkfs`; 4. deactivate the volume;
//!   5. remove the tag. Before 5 there is no such SR; sr_create and sr_delete remove the group first.
//! - **sr_delete**: 1. look for disks in use, through a mount that nobody else sees if the SR is not attached; 2. unmount it;
//!   3. deactivate; 4. tag the group `xcp.deleting`: from here on there is no such SR; 5. `vgremove`; 6. `pvremove`.
//!   After 1 to 3: an SR that is not attached. After 4: sr_delete and sr_create finish. After 5: devices with an empty LVM
//!   label, which sr_create takes.
//! - **sr_attach**: 1. activate the volume; 2. check the filesystem as far as it asks for that (`e2fsck -p` replays the journal);
//!   3. make the mountpoint; 4. mount; 5. as in [`mod@crate::sr::file`]. Before 4: an active volume and an empty directory,
//!   which sr_attach takes and sr_detach removes. After 4: attached.
//! - **sr_detach**: 1. unmount; 2. remove the mountpoint; 3. deactivate. After 1 or 2: as above.
//!
//! A type of SR is a [`Filesystem`]. The volume and what is done to the filesystem on it are in `on_volume/volume.rs`.
//! `docs/ext.md` gives the reasons.

mod volume;

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use self::volume::{Volume, striped};
use crate::context::Deadline;
use crate::error::{Error, Result, ended};
use crate::sr::config::device_list;
use crate::sr::driver::{Found, SECTORS, Sr, refuse_slot};
use crate::sr::file::FileSr;
use crate::sr::mounted::Mounted;
use crate::sr::mountpoint::Mountpoint;
use crate::sr::volume_group::{self, CREATING, DELETING, Naming, VolumeGroup};
use crate::sys::lock::{self, Kind};
use crate::sys::lvm::{self, Vg};
use crate::sys::mount::{self, Mount};
use crate::sys::{blockdev, run_dir};
use crate::types::{DeviceConfig, Done, NewSr, Overwrite, SrInfo, SrUuid, VdiInfo};

/// A type of filesystem that SRs on a volume may have.
pub struct Filesystem {
    /// The SR type: `ext`, `xfs`.
    pub sr_type: &'static str,
    /// The type by which the kernel mounts it.
    pub fs_type: &'static str,
    /// Options of the mount of an SR.
    pub options: &'static str,
    /// Options of a mount by which nothing is written, not even the journal replayed: another host may have it mounted.
    pub look_only: &'static str,
    /// The program that makes one on a device, with its options. The device follows.
    pub make: &'static [&'static str],
    /// The program that checks one, with its options. It writes no more than a journal's replay would, unless it finds errors.
    /// Status 1: it had errors and they are corrected. `None`: the kernel does all that is needed when it mounts it.
    pub check: Option<&'static [&'static str]>,
    /// The program by which a person repairs one, with its options.
    pub by_hand: &'static str,
    pub naming: &'static Naming,
    /// It is on one device with larger sectors than 512 bytes, and shown in such of 512.
    pub in_small_sectors: bool,
    /// A tag of the groups with this filesystem, if another type names its groups the same.
    pub tag: Option<&'static str>,
}

impl Filesystem {
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::Invalid`] for the key `device`.
    pub fn open(&'static self, sr: SrUuid, config: &DeviceConfig, deadline: Deadline) -> Result<Box<dyn Sr>> {
        Ok(Box::new(VolumeSr::new(self, VolumeGroup::new(sr, config, self.naming, deadline)?)))
    }

    /// Which SRs lie on the devices of a device_config.
    ///
    /// # Errors
    /// Those of [`volume_group::probe`].
    pub fn probe(&'static self, config: &DeviceConfig, deadline: Deadline) -> Result<Vec<SrInfo>> {
        volume_group::probe(config, self.naming, deadline, |group, vg| match self.may_have(vg) {
            true => VolumeSr::new(self, group).look_inside(vg),
            false => Ok(None),
        })
    }

    /// The SRs that LVM sees. Of a group that other storage managers made and no SR of ours began with, the filesystem is not
    /// known: it is taken for the usual one.
    ///
    /// # Errors
    /// Those of [`volume_group::discover`].
    pub fn discover(&'static self) -> Result<Vec<Found>> {
        volume_group::discover(self.naming, |vg| match self.tag {
            Some(tag) => vg.tags.iter().any(|it| it == tag),
            None => self.may_have(vg),
        })
    }

    /// Whether the tags of a group do not say that it has another filesystem.
    fn may_have(&self, vg: &Vg) -> bool {
        !vg.tags.iter().any(|tag| TAGS.contains(&tag.as_str()) && Some(tag.as_str()) != self.tag)
    }
}

/// Every [`Filesystem::tag`] that there is.
const TAGS: [&str; 1] = [XFS];
/// The tag of a group whose volume has xfs. The Python storage managers call the groups of `ext` and `xfs` the same, and tag none.
pub const XFS: &str = "xcp.xfs";

/// sr_create removes the tag when all is there. The volume comes first of all in a group without the tag.
pub fn is_half_made(vg: &Vg) -> bool {
    vg.tags.iter().any(|t| t == CREATING) || vg.lvs.is_empty()
}

/// An SR in a filesystem: a [`FileSr`], the volume below it and where that has to be mounted.
struct VolumeSr {
    volume: Volume,
    point: Mountpoint,
    file: FileSr,
}

impl VolumeSr {
    fn new(filesystem: &'static Filesystem, group: VolumeGroup) -> VolumeSr {
        let name = lvm::dm_name(&group.name(), &group.sr.to_string());
        let is_ours = move |mount: &Mount| {
            blockdev::mapped(mount.device).and_then(blockdev::dm_name).is_some_and(|found| found == name)
        };
        let point = Mountpoint::new(group.sr, &run_dir::mounts(), is_ours);
        let volume = Volume { group, filesystem };
        VolumeSr { file: files(&volume, point.path()), point, volume }
    }

    /// Refuses devices of which the filesystem makes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    fn refuse_sectors(&self) -> Result<()> {
        if !self.volume.filesystem.in_small_sectors {
            return Ok(());
        }
        match self.volume.group.devices.as_slice() {
            [device] => match blockdev::sector_size(device) {
                Some(size @ 0..=512) => Err(Error::Invalid {
                    what: SECTORS,
                    value: device.display().to_string(),
                    expected: format!(
                        "expected a device with sectors of 4,096 bytes; this one has {size}, which the type ext serves"
                    ),
                }),
                // What is not there is told by who looks for it.
                _ => Ok(()),
            },
            several => Err(Error::Invalid {
                what: "device",
                value: device_list(several.iter().map(PathBuf::as_path)),
                expected: "expected one device".to_owned(),
            }),
        }
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
            work(&files(&self.volume, dir))
        })
    }

    /// The answer of sr_probe for this SR. An SR that is not attached is looked at without a write to it.
    /// `None`: it has another filesystem.
    fn look_inside(&self, vg: &Vg) -> Result<Option<SrInfo>> {
        if self.point.is_mounted()? {
            return self.stat().map(Some);
        }
        let sr = self.volume.group.sr;
        let busy = |who: &str| Error::SrUnavailable { sr, why: format!("{who} works on it") };
        let _alone = lock::take(&sr.to_string(), "sr", Kind::Exclusive, self.volume.group.deadline.end())
            .map_err(|refused| refused.or_timed_out(busy))?;
        match self.unattached(vg, FileSr::stat) {
            Err(Error::NoSr { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Looks at an SR that is not attached, without a write to it. The caller has the SR's lock.
    fn unattached(&self, vg: &Vg, look: fn(&FileSr) -> Result<SrInfo>) -> Result<SrInfo> {
        self.volume.group.refuse_incomplete(vg)?;
        let device = self.volume.activate()?;
        self.volume.refuse_claimed(&device)?;
        self.volume.refuse_other_filesystem(&device).inspect_err(|_| drop(self.volume.deactivate()))?;
        // The kernel removes orphaned inodes from a filesystem mounted read-only, journal or not, unless its device takes
        // no writes.
        let found = blockdev::set_read_only(&device, true)
            .and_then(|()| self.privately(&device, self.volume.filesystem.look_only, look))
            .map(|info| self.located(info));
        let writable = blockdev::set_read_only(&device, false);
        let _ = self.volume.deactivate();
        ended(found, writable)
    }
}

/// The files of the SR, where they are mounted.
fn files(volume: &Volume, path: &Path) -> FileSr {
    let Volume { group, filesystem } = volume;
    let name = lvm::dm_name(&group.name(), &group.sr.to_string());
    FileSr::new(group.sr, filesystem.sr_type, path.to_owned(), group.deadline.clone()).on_volume(name)
}

impl Mounted for VolumeSr {
    /// The mounted files, on a volume whose I/O goes on. LVM is asked only if it does not: a killed LVM command left the
    /// volume suspended.
    ///
    fn files(&self) -> Result<&FileSr> {
        if let Some(mount) = self.point.mounted()? {
            blockdev::mapped(mount.device).map_or(Ok(()), |device| self.volume.resume(device))?;
        }
        // One that is not mounted says so itself.
        Ok(&self.file)
    }

    fn shared(&self) -> bool {
        self.file.is_shared()
    }

    fn point(&self) -> &Mountpoint {
        &self.point
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
        let mounted = self.point.mounted().ok().flatten().and_then(|mount| blockdev::mapped(mount.device));
        let is_on = mounted.or_else(active).map(blockdev::below);
        SrInfo { location: self.volume.group.location_among(&is_on.unwrap_or_default()), ..info }
    }

    fn make(&self, new: &NewSr, over: &Overwrite) -> Result<()> {
        refuse_slot(new)?;
        self.refuse_sectors()?;
        let tags: Vec<&str> = [CREATING].into_iter().chain(self.volume.filesystem.tag).collect();
        self.volume.group.make(new.size, over, &tags, striped)?;
        self.volume.make_filesystem().map_err(|cause| self.volume.group.unmake(cause))
    }

    fn check_make(&self, size: Option<u64>, over: &Overwrite) -> Result<()> {
        self.refuse_sectors()?;
        self.volume.group.check(size, over, striped)
    }

    fn at_rest(&self) -> Result<Vec<VdiInfo>> {
        let found = if self.point.is_mounted()? {
            self.scan()
        } else {
            self.unattached(&self.volume.group.whole()?, FileSr::scan)
        };
        Ok(found?.vdis)
    }

    /// The filesystem knows what is free in it, and goes on meanwhile.
    fn discard_free(&self) -> Result<u64> {
        // Refuses another filesystem than the SR's.
        self.files()?.space().map_err(|e| self.explain(e))?;
        mount::trim(self.point.path()).map_err(|e| self.explain(e))
    }

    fn unmake(&self) -> Result<Done> {
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

    fn enter(&self, _begin: fn(&FileSr) -> Result<Done>) -> Result<Done> {
        if self.point.is_mounted()? {
            let files = self.files()?;
            let repaired = files.refuse_read_only().and_then(|()| files.repair());
            return repaired.map(|()| Done::Already).map_err(|e| self.explain(e));
        }
        let vg = self.volume.group.whole()?;
        self.volume.group.note_strangers(&vg);
        self.volume
            .prepare()
            .and_then(|device| {
                self.volume.tag(&vg)?;
                self.point.make()?;
                self.volume.mount(&device, self.point.path(), false, self.volume.filesystem.options)?;
                self.file.repair()
            })
            .map(|()| Done::Changed)
            .map_err(|cause| self.undo(cause))
    }

    fn leave(&self) -> Result<Done> {
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
