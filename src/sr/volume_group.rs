//! The volume group that an SR has to itself, and the block devices below it: found, checked, made, removed.
//!
//! The contents of the group are its driver's business ([`lvm`](super::lvm), [`ext`](super::ext)); `take` has what a
//! new group may be made on, `filesystem` which SRs lie there without a group, and `trim` how its devices are told what is free. No LVM command changes a group
//! without all its devices, and after every change the physical volumes' write caches are flushed: LVM itself does not.

mod filesystem;
mod take;
pub mod trim;

use std::path::{Path, PathBuf};

use crate::context::Deadline;
use crate::error::{Error, Result};
use crate::sr::config::{absolute_path, device_list};
use crate::sr::driver::Found;
use crate::sys::lvm::{self, Deactivated, Unmapped, Vg};
use crate::sys::{blockdev, scsidisk, syslog};
use crate::types::{DeviceConfig, SlotMark, SrInfo, SrUuid};

/// The tag of a group whose deletion was begun: there is no such SR any more.
pub const DELETING: &str = "xcp.deleting";

/// The tag of a group in which sr_create has not made everything yet: there is no such SR.
pub const CREATING: &str = "xcp.creating";

pub const EXTENT: u64 = 4 << 20;

/// Whether the tags say that the creation or the deletion of an SR was begun and not finished.
pub fn is_begun(tags: &[String]) -> bool {
    tags.iter().any(|tag| tag == DELETING || tag == CREATING)
}

/// The name that a driver's groups have, and the test for one that is half made.
pub struct Naming {
    /// Of the group's name; the SR's UUID follows.
    pub prefix: &'static str,
    /// Whether sr_create was killed before it had made everything that the SR needs.
    pub is_half_made: fn(&Vg) -> bool,
    /// The groups of whose volumes the driver need not know where they are.
    pub unmapped: Unmapped,
    /// Why a group with such a name, which is not half made, is none of the driver's.
    pub refuses: fn(&Vg) -> Option<String>,
}

/// The group of an SR, and the devices on which device_config says it is. The group is found by its name, which LVM reads
/// from every device there is: device_config only leads there.
pub struct VolumeGroup {
    pub sr: SrUuid,
    pub devices: Vec<PathBuf>,
    naming: &'static Naming,
    /// The end of every wait for other calls.
    pub deadline: Deadline,
}

impl VolumeGroup {
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::Invalid`] for the key `device`.
    pub fn new(sr: SrUuid, config: &DeviceConfig, naming: &'static Naming, deadline: Deadline) -> Result<VolumeGroup> {
        let devices = devices(config)?;
        lvm::show(&devices);
        Ok(VolumeGroup { sr, devices, naming, deadline })
    }

    pub fn name(&self) -> String {
        format!("{}{}", self.naming.prefix, self.sr)
    }

    pub fn no_sr(&self, looked: String) -> Error {
        Error::NoSr { sr: self.sr, looked }
    }

    /// The group as it is now: one LVM command, or none.
    ///
    /// # Errors
    /// [`Error::NoSr`], [`Error::NoDevice`]; [`Error::Foreign`] for a group of another type of SRs.
    pub fn look(&self) -> Result<Vg> {
        self.find()?.map_or_else(|| Err(self.why_unseen(None)), |vg| self.finished(vg))
    }

    /// The group as it is now, also one that sr_create did not finish. `None`: the devices were read, and no group is on
    /// them.
    pub fn look_for_any(&self) -> Result<Option<Vg>> {
        match self.find() {
            Ok(None) => match self.why_unseen(None) {
                Error::NoSr { .. } => Ok(None),
                other => Err(other),
            },
            Err(Error::NoSr { .. }) => Ok(None),
            Ok(Some(vg)) if !self.is_unfinished(&vg) => self.of_this_type(vg).map(Some),
            other => other,
        }
    }

    fn find(&self) -> Result<Option<Vg>> {
        if let Some(vg) = lvm::group(&self.name(), &self.devices, self.naming.unmapped) {
            return Ok(Some(vg));
        }
        match lvm::report(Some(&self.name()), self.naming.unmapped) {
            Ok(groups) => Ok(groups.into_iter().find(|vg| vg.name == self.name())),
            Err(failed) => Err(self.why_unseen(Some(failed))),
        }
    }

    /// Whether the group's creation or deletion was killed.
    pub fn is_unfinished(&self, vg: &Vg) -> bool {
        vg.tags.iter().any(|t| t == DELETING) || (self.naming.is_half_made)(vg)
    }

    /// A group whose creation or deletion was not finished is no SR.
    fn finished(&self, vg: Vg) -> Result<Vg> {
        if vg.tags.iter().any(|t| t == DELETING) {
            return Err(self.no_sr("its deletion was begun; sr_delete finishes it".to_owned()));
        }
        if self.is_unfinished(&vg) {
            return Err(self.no_sr("its creation was not finished; sr_create begins anew".to_owned()));
        }
        self.of_this_type(vg)
    }

    fn of_this_type(&self, vg: Vg) -> Result<Vg> {
        match (self.naming.refuses)(&vg) {
            None => Ok(vg),
            Some(why) => Err(Error::Foreign { why }),
        }
    }

    /// Why LVM does not show the group. Says "no such SR" only of devices that were read.
    fn why_unseen(&self, failed: Option<Error>) -> Error {
        if let Some(missing) = self.missing_device() {
            return missing;
        }
        let groups = match lvm::report(None, Unmapped::All) {
            Ok(groups) => groups,
            Err(error) => return failed.unwrap_or(error),
        };
        if let Some(vg) = groups.iter().find(|vg| vg.name == self.name()) {
            return match failed {
                _ if !vg.system_id.is_empty() => Error::SrUnavailable {
                    sr: self.sr,
                    why: format!("its volume group belongs to the host {:?} (LVM system ID)", vg.system_id),
                },
                Some(failed) => failed,
                None => Error::SrUnavailable { sr: self.sr, why: "its volume group appeared just now".to_owned() },
            };
        }
        // A device that can't be read is not an empty one.
        for device in &self.devices {
            if let Err(error) = blockdev::first_bytes(device) {
                return error;
            }
        }
        self.no_sr(format!(
            "no volume group {} on {}",
            self.name(),
            device_list(self.devices.iter().map(PathBuf::as_path))
        ))
    }

    /// The first device of device_config that is not there, or that the kernel has lost, as an error: to read it would take minutes.
    pub fn missing_device(&self) -> Option<Error> {
        self.devices.iter().find_map(|device| {
            let why = blockdev::missing(device).or_else(|| scsidisk::lost(device))?;
            Some(Error::NoDevice { device: device.display().to_string(), why })
        })
    }

    /// The group, after checking that all its devices are here.
    ///
    /// # Errors
    /// As [`VolumeGroup::look`] and [`VolumeGroup::refuse_incomplete`].
    pub fn whole(&self) -> Result<Vg> {
        let vg = self.look()?;
        self.refuse_incomplete(&vg)?;
        Ok(vg)
    }

    /// Refuses to touch a group without all its devices: LVM would let some commands through, and then take
    /// the absent device for outdated when it is back.
    ///
    /// # Errors
    /// [`Error::NoDevice`] with the physical volume that is missing, and what [`VolumeGroup::refuse_duplicates`] says.
    pub fn refuse_incomplete(&self, vg: &Vg) -> Result<()> {
        if let Some(pv) = vg.pvs.iter().find(|pv| pv.missing) {
            let absent = self.devices.iter().find(|device| blockdev::number(device).is_none());
            return Err(Error::NoDevice {
                device: absent.map_or_else(|| format!("SR {}", self.sr), |device| device.display().to_string()),
                why: format!("physical volume {} of SR {} is missing; connect the device again", pv.uuid, self.sr),
            });
        }
        self.refuse_duplicates(vg)
    }

    /// Refuses a group of which two devices claim to be the same physical volume, as a copy that a disk array makes does:
    /// which of them has the SR's data, nobody here can know.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`] with both devices.
    pub fn refuse_duplicates(&self, vg: &Vg) -> Result<()> {
        match vg.pvs.iter().find_map(|pv| Some((pv, pv.duplicate.as_deref()?))) {
            None => Ok(()),
            Some((pv, other)) => Err(Error::DeviceInUse {
                device: pv.name.display().to_string(),
                holder: format!(
                    "its physical volume {} is seen on {other} as well; disconnect the copy or hide it with LVM's \
                     global_filter",
                    pv.uuid
                ),
            }),
        }
    }

    /// Where the SR is, in the form of device_config: its devices by the names that the caller has for them, or, if one
    /// of these leads elsewhere by now, by those that `is_on` has. Numbers and names.
    pub fn location_among(&self, is_on: &[(u64, PathBuf)]) -> String {
        match is_on.is_empty() || self.strangers(is_on).is_empty() {
            true => device_list(self.devices.iter().map(PathBuf::as_path)),
            false => device_list(is_on.iter().map(|(_, name)| name.as_path())),
        }
    }

    /// The devices of a group that LVM shows, as [`VolumeGroup::location_among`] names them.
    pub fn location(&self, vg: &Vg) -> String {
        self.location_among(&present(vg))
    }

    /// Writes to the log which devices of device_config hold no part of the SR any more. The SR was found by what its
    /// disks say; a kernel gives names in the order in which it finds disks.
    pub fn note_strangers(&self, vg: &Vg) {
        let is_on = present(vg);
        let strangers = self.strangers(&is_on);
        if strangers.is_empty() {
            return;
        }
        let strangers: Vec<String> = strangers
            .into_iter()
            .map(|device| match blockdev::missing(device) {
                Some(why) => format!("{}: {why}", device.display()),
                None => format!("{} holds no part of it", device.display()),
            })
            .collect();
        let names = device_list(is_on.iter().map(|(_, name)| name.as_path()));
        syslog::write(&format!(
            "SR {} is on {names}, where its disks say so; of its device_config {}",
            self.sr,
            strangers.join(", ")
        ));
    }

    fn strangers(&self, is_on: &[(u64, PathBuf)]) -> Vec<&Path> {
        let is_part =
            |device: &Path| blockdev::number(device).is_some_and(|n| is_on.iter().any(|(here, _)| *here == n));
        self.devices.iter().map(PathBuf::as_path).filter(|device| !is_part(device)).collect()
    }

    /// One LVM command on the group, made to survive a power cut.
    pub fn change<S: AsRef<str>>(&self, vg: &Vg, program: &str, options: &[S], names: &[&str]) -> Result<()> {
        self.changed(vg, || lvm::change(program, options, names))
    }

    /// Does `work`, an LVM command on the group, and makes it survive a power cut.
    pub fn changed(&self, vg: &Vg, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.refuse_incomplete(vg)?;
        work()?;
        self.flush(vg).map_err(|cause| cause.after("the change was made, perhaps not durably".to_owned()))
    }

    /// Lets the group use all of its devices.
    ///
    /// # Errors
    /// Those of [`VolumeGroup::change`].
    pub fn use_all_of_devices(&self, vg: &Vg) -> Result<()> {
        vg.pvs.iter().try_for_each(|pv| self.change(vg, "pvresize", &["-y"], &[&pv.name.display().to_string()]))
    }

    /// Makes every change of the group durable: LVM leaves them in the disks' write caches. A call that finds done what
    /// it was asked for does the same before it answers, because an earlier one may have been killed before it could.
    ///
    /// # Errors
    /// [`Error::Io`] with the device that fails.
    pub fn flush(&self, vg: &Vg) -> Result<()> {
        vg.pvs.iter().filter(|pv| !pv.missing).try_for_each(|pv| blockdev::flush(&pv.name))
    }

    /// Makes what was written to the devices of device_config durable, for a group that was made on them a moment ago.
    pub fn flush_devices(&self) -> Result<()> {
        self.devices.iter().try_for_each(|device| blockdev::flush(device))
    }

    /// `cause`, after removing the group that was made before it.
    pub fn unmake(&self, cause: Error) -> Error {
        cause.undone(lvm::change("vgremove", &["-ff", "-y"], &[&self.name()]))
    }

    /// Removes the group and everything in it; the devices are blank again.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`] if somebody has a volume open.
    pub fn remove(&self, vg: &Vg) -> Result<()> {
        for lv in vg.lvs.iter().filter(|lv| lv.active && !lv.is_thin_pool()) {
            self.deactivate(vg, &lv.name)?;
        }
        self.change(vg, "vgremove", &["-ff", "-y"], &[&vg.name])?;
        let devices: Vec<String> = vg.pvs.iter().map(|pv| pv.name.display().to_string()).collect();
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        self.change(vg, "pvremove", &["-y"], &devices)
    }

    /// Deactivates a volume.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`] with who has it open.
    pub fn deactivate(&self, vg: &Vg, lv: &str) -> Result<()> {
        match lvm::deactivate(&vg.name, lv)? {
            Deactivated::Done => Ok(()),
            Deactivated::Busy(holder) => {
                Err(Error::DeviceInUse { device: lvm::node(&vg.name, lv).display().to_string(), holder })
            }
        }
    }
}

/// Which SRs lie on the devices of a device_config, each told by `describe`, which answers `None` for one of another type.
///
/// # Errors
/// [`Error::NoDevice`], [`Error::DeviceInUse`] for what is no SR, and what reading a device says.
pub fn probe(
    config: &DeviceConfig,
    naming: &'static Naming,
    deadline: Deadline,
    describe: impl Fn(VolumeGroup, &Vg) -> Result<Option<SrInfo>>,
) -> Result<Vec<SrInfo>> {
    let devices = devices(config)?;
    lvm::show(&devices);
    for device in &devices {
        if let Some(why) = blockdev::missing(device) {
            return Err(Error::NoDevice { device: device.display().to_string(), why });
        }
        blockdev::first_bytes(device)?;
    }
    let groups = lvm::report(None, Unmapped::All)?;
    let mut found: Vec<SrInfo> = Vec::new();
    for device in &devices {
        let number = blockdev::number(device);
        let owner = groups.iter().find(|vg| vg.pvs.iter().any(|pv| blockdev::number(&pv.name) == number));
        let in_use = |holder: String| Error::DeviceInUse { device: device.display().to_string(), holder };
        match owner {
            Some(vg) if !vg.name.is_empty() => {
                let Some(sr) = vg.name.strip_prefix(naming.prefix).and_then(|uuid| uuid.parse::<SrUuid>().ok()) else {
                    return Err(in_use(format!(
                        "it belongs to the volume group {}, which is no SR of this type",
                        vg.name
                    )));
                };
                let devices = vg.pvs.iter().map(|pv| pv.name.clone()).collect();
                let group = VolumeGroup { sr, devices, naming, deadline: deadline.clone() };
                if found.iter().any(|info| info.uuid == sr) || group.is_unfinished(vg) || (naming.refuses)(vg).is_some()
                {
                    continue;
                }
                if let Some(pv) = vg.pvs.iter().find(|pv| pv.missing) {
                    let why = format!("it is part of SR {sr}, whose physical volume {} is missing", pv.uuid);
                    return Err(Error::NoDevice { device: device.display().to_string(), why });
                }
                found.extend(describe(group, vg)?);
            }
            _ => {
                let others: Vec<String> = lvm::signatures(&device.display().to_string())?
                    .into_iter()
                    .filter(|s| !s.starts_with("LVM2"))
                    .collect();
                if !others.is_empty() {
                    return Err(in_use(format!("it holds {}, no SR", others.join(", "))));
                }
            }
        }
    }
    Ok(found)
}

/// The SRs of this naming that LVM sees, with their devices, as far as `is_one` takes a group for one.
///
/// # Errors
/// The error that LVM reports.
pub fn discover(naming: &'static Naming, is_one: impl Fn(&Vg) -> bool) -> Result<Vec<Found>> {
    let is_unfinished = |vg: &Vg| vg.tags.iter().any(|t| t == DELETING) || (naming.is_half_made)(vg);
    let is_one = |vg: &Vg| !is_unfinished(vg) && (naming.refuses)(vg).is_none() && is_one(vg);
    let found = lvm::report(None, Unmapped::All)?.into_iter().filter(|vg| is_one(vg)).filter_map(|vg| {
        let sr = vg.name.strip_prefix(naming.prefix)?.parse().ok()?;
        let devices = device_list(vg.pvs.iter().filter(|pv| !pv.missing).map(|pv| pv.name.as_path()));
        Some(Found {
            sr,
            config: DeviceConfig::from([("device", devices.as_str())]),
            slot: SlotMark::of_tags(&vg.tags),
        })
    });
    Ok(found.collect())
}

/// The devices of a group that are here.
fn present(vg: &Vg) -> Vec<(u64, PathBuf)> {
    vg.pvs.iter().filter_map(|pv| Some((blockdev::number(&pv.name)?, pv.name.clone()))).collect()
}

/// The devices of a device_config: absolute paths, of characters that neither LVM nor a list takes for more.
fn devices(config: &DeviceConfig) -> Result<Vec<PathBuf>> {
    let value = config.require("device")?;
    let mut devices = Vec::new();
    for name in value.split(',') {
        let path = absolute_path("device", name)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@#".contains(c);
        if !name.chars().all(plain) || devices.contains(&path) {
            return Err(Error::Invalid {
                what: "device",
                value: value.to_owned(),
                expected: "expected different block devices such as /dev/sdb,/dev/disk/by-id/scsi-36001405".to_owned(),
            });
        }
        devices.push(path);
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(list: &str) -> Result<Vec<PathBuf>> {
        devices(&DeviceConfig::from([("device", list)]))
    }

    #[test]
    fn devices_are_different_absolute_paths_of_plain_characters() {
        let two = on("/dev/sdb,/dev/disk/by-id/scsi-3600:1").unwrap();
        assert_eq!(two, [Path::new("/dev/sdb"), Path::new("/dev/disk/by-id/scsi-3600:1")]);
        for bad in [
            "",
            "sdb",
            "/dev/sdb,",
            ",/dev/sdb",
            "/dev/sdb,/dev/sdb",
            "/dev/sdb,/dev//sdb",
            "/dev/../sdb",
            "-y",
            "/dev/a b",
            "/dev/\"",
            "/dev/sdb;reboot",
            "/",
        ] {
            assert!(on(bad).is_err(), "{bad:?}");
        }
    }
}
