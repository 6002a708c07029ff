//! The volume group that an SR has to itself, and the block devices below it: found, checked, made, removed.
//!
//! What is in the group is its driver's business ([`lvm`](super::lvm), [`ext`](super::ext)). No LVM command
//! changes a group without all its devices, and after every change the physical volumes' write caches are
//! flushed: LVM itself does not.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::sr::absolute_path;
use crate::sys::blockdev;
use crate::sys::lvm::{self, Deactivated, Vg};
use crate::types::{DeviceConfig, SrInfo, SrUuid};

/// The tag of a group whose deletion was begun: there is no such SR any more.
pub const DELETING: &str = "xcp.deleting";

/// LVM keeps two copies of the metadata in this area, and a volume takes 1 KiB and its texts.
const METADATA_AREA: &str = "10m";
/// Bytes; where LVM begins data behind [`METADATA_AREA`]: at the next MiB.
const DATA_BEGINS: u64 = 11 << 20;
pub const EXTENT: u64 = 4 << 20;

/// What a driver's groups look like.
pub struct Naming {
    /// Of the group's name; the SR's UUID follows.
    pub prefix: &'static str,
    /// Whether sr_create was killed before it had made everything that the SR needs.
    pub is_half_made: fn(&Vg) -> bool,
}

/// The group of an SR, and the devices on which device_config says it is.
pub struct VolumeGroup {
    pub sr: SrUuid,
    pub devices: Vec<PathBuf>,
    naming: &'static Naming,
    /// The end of every wait for other calls.
    pub deadline: Instant,
}

impl VolumeGroup {
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::Invalid`] for the key `device`.
    pub fn new(sr: SrUuid, config: &DeviceConfig, naming: &'static Naming, deadline: Instant) -> Result<VolumeGroup> {
        Ok(VolumeGroup { sr, devices: devices(config)?, naming, deadline })
    }

    pub fn name(&self) -> String {
        format!("{}{}", self.naming.prefix, self.sr)
    }

    /// The devices, as the short form of dconf has them.
    pub fn location(&self) -> String {
        listed(self.devices.iter().map(PathBuf::as_path))
    }

    pub fn no_sr(&self, looked: String) -> Error {
        Error::NoSr { sr: self.sr, looked }
    }

    /// The group as it is now: one LVM command.
    pub fn look(&self) -> Result<Vg> {
        self.find()?.map_or_else(|| Err(self.why_unseen(None)), |vg| self.finished(vg))
    }

    /// The same, finished or not. `None`: there is none on these devices, which were read.
    pub fn look_for_any(&self) -> Result<Option<Vg>> {
        match self.find() {
            Ok(None) => match self.why_unseen(None) {
                Error::NoSr { .. } => Ok(None),
                other => Err(other),
            },
            Err(Error::NoSr { .. }) => Ok(None),
            other => other,
        }
    }

    fn find(&self) -> Result<Option<Vg>> {
        match lvm::report(Some(&self.name())) {
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
        Ok(vg)
    }

    /// Why LVM does not show the group. Says "no such SR" only of devices that were read.
    fn why_unseen(&self, failed: Option<Error>) -> Error {
        if let Some(missing) = self.missing_device() {
            return missing;
        }
        let groups = match lvm::report(None) {
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
        self.no_sr(format!("no volume group {} on {}", self.name(), self.location()))
    }

    /// The first device of device_config that is not there, as an error.
    pub fn missing_device(&self) -> Option<Error> {
        self.devices.iter().find_map(|device| {
            let why = blockdev::missing(device)?;
            Some(Error::NoDevice { device: device.display().to_string(), why })
        })
    }

    /// The group, after checking that all its devices are here and that device_config's are among them.
    pub fn whole(&self) -> Result<Vg> {
        let vg = self.look()?;
        self.refuse_broken(&vg)?;
        Ok(vg)
    }

    /// Refuses to touch a group without all its devices: LVM would let some commands through, and then take
    /// the absent device for outdated when it is back.
    pub fn refuse_incomplete(&self, vg: &Vg) -> Result<()> {
        if let Some(pv) = vg.pvs.iter().find(|pv| pv.missing) {
            return Err(Error::NoDevice {
                device: self.missing_device_name(vg).unwrap_or_else(|| pv.name.display().to_string()),
                why: format!("SR {} misses its physical volume {}; connect the device again", self.sr, pv.uuid),
            });
        }
        if let Some((pv, other)) = vg.pvs.iter().find_map(|pv| Some((pv, pv.duplicate.as_deref()?))) {
            return Err(Error::DeviceInUse {
                device: pv.name.display().to_string(),
                holder: format!(
                    "its physical volume {} is seen on {other} as well; disconnect the copy or hide it with LVM's \
                     global_filter",
                    pv.uuid
                ),
            });
        }
        Ok(())
    }

    pub fn refuse_broken(&self, vg: &Vg) -> Result<()> {
        self.refuse_incomplete(vg)?;
        let here: Vec<(u64, String)> =
            vg.pvs.iter().filter_map(|pv| Some((blockdev::number(&pv.name)?, pv.name.display().to_string()))).collect();
        self.refuse_others(&here)
    }

    /// Refuses a device_config that names other devices than these, on which the SR is: numbers and names.
    pub fn refuse_others(&self, is_on: &[(u64, String)]) -> Result<()> {
        for device in &self.devices {
            let why = match blockdev::number(device) {
                None => blockdev::missing(device).unwrap_or_default(),
                Some(number) if !is_on.iter().any(|(here, _)| *here == number) => {
                    "it holds no part of the SR".to_owned()
                }
                Some(_) => continue,
            };
            let names: Vec<&str> = is_on.iter().map(|(_, name)| name.as_str()).collect();
            return Err(Error::NoDevice {
                device: device.display().to_string(),
                why: format!("{why}; SR {} is on {}", self.sr, names.join(",")),
            });
        }
        Ok(())
    }

    fn missing_device_name(&self, vg: &Vg) -> Option<String> {
        let here: HashSet<u64> = vg.pvs.iter().filter_map(|pv| blockdev::number(&pv.name)).collect();
        let absent = self.devices.iter().find(|d| blockdev::number(d).is_none_or(|n| !here.contains(&n)))?;
        Some(absent.display().to_string())
    }

    /// One LVM command on the group, made to survive a power cut.
    pub fn change<S: AsRef<str>>(&self, vg: &Vg, program: &str, options: &[S], names: &[&str]) -> Result<()> {
        self.refuse_incomplete(vg)?;
        lvm::change(program, options, names)?;
        vg.pvs.iter().filter(|pv| !pv.missing).try_for_each(|pv| blockdev::flush(&pv.name))
    }

    /// The same for a group that was made a moment ago on the devices of device_config.
    pub fn flush_devices(&self) -> Result<()> {
        self.devices.iter().try_for_each(|device| blockdev::flush(device))
    }

    /// Refuses what device-mapper would not survive: devices that something has, and, unless `over`, contents.
    fn refuse_used_devices(&self, groups: &[Vg], over: bool) -> Result<()> {
        let mut seen = HashSet::new();
        for device in &self.devices {
            let name = device.display().to_string();
            let in_use = |holder: String| Error::DeviceInUse { device: name.clone(), holder };
            if !blockdev::number(device).is_some_and(|number| seen.insert(number)) {
                return Err(in_use("it is named twice".to_owned()));
            }
            let number = blockdev::number(device);
            let owner = groups.iter().find(|vg| vg.pvs.iter().any(|pv| blockdev::number(&pv.name) == number));
            let owner = owner.map(|vg| vg.name.as_str());
            if let Some(group) = owner.filter(|name| !name.is_empty() && !over) {
                return Err(in_use(format!("it belongs to the volume group {group}; --force overwrites it")));
            }
            if let Some(who) = blockdev::exclusive_holder(device)? {
                return Err(in_use(format!("{who} has it")));
            }
            if over {
                continue;
            }
            let mut found = lvm::signatures(&name)?;
            if owner.is_some() {
                // What a killed sr_create or sr_delete leaves: a label and nothing behind it.
                found.retain(|signature| !signature.starts_with("LVM2"));
            }
            if !found.is_empty() {
                return Err(in_use(format!("it holds {}; --force overwrites it", found.join(", "))));
            }
        }
        Ok(())
    }

    /// Makes the group with a tag. One that was not finished is removed first.
    ///
    /// `room` says how many bytes an SR on devices with so many can hold, which `size` must not exceed; `over`
    /// overwrites what is on the devices, unless something has it.
    ///
    /// # Errors
    /// [`Error::SrExists`], [`Error::DeviceInUse`], [`Error::NoDevice`], [`Error::NoSpace`]; then nothing was changed.
    pub fn make(&self, size: Option<u64>, over: bool, tag: &str, room: fn(&[u64]) -> u64) -> Result<()> {
        if let Some(missing) = self.missing_device() {
            return Err(missing);
        }
        let mut groups = lvm::report(None)?;
        if let Some(vg) = groups.iter().find(|vg| vg.name == self.name()) {
            if !self.is_unfinished(vg) {
                let found = format!("on {}", listed(vg.pvs.iter().map(|pv| pv.name.as_path())));
                return Err(Error::SrExists { sr: self.sr, found });
            }
            self.remove(vg)?;
            groups = lvm::report(None)?;
        }
        self.refuse_used_devices(&groups, over)?;
        if let Some(wanted) = size {
            let each = self
                .devices
                .iter()
                .map(|device| Ok(blockdev::size(device)?.saturating_sub(DATA_BEGINS) / EXTENT * EXTENT));
            let free = room(&each.collect::<Result<Vec<u64>>>()?);
            if wanted > free {
                return Err(Error::NoSpace { sr: self.sr, free, wanted });
            }
        }
        let names: Vec<String> =
            self.devices.iter().map(|d| d.canonicalize().unwrap_or_else(|_| d.clone()).display().to_string()).collect();
        if over {
            names.iter().try_for_each(|name| lvm::wipe(name))?;
        }
        let group = self.name();
        let mut all = vec![group.as_str()];
        all.extend(names.iter().map(String::as_str));
        lvm::change("vgcreate", &["-y", "--metadatasize", METADATA_AREA, "-s", "4m", "--addtag", tag], &all)
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

/// Which SRs lie on the devices of a device_config, each told by `describe`.
///
/// # Errors
/// [`Error::NoDevice`], [`Error::DeviceInUse`] for what is no SR, and what reading a device says.
pub fn probe(
    config: &DeviceConfig,
    naming: &'static Naming,
    deadline: Instant,
    describe: impl Fn(VolumeGroup, &Vg) -> Result<SrInfo>,
) -> Result<Vec<SrInfo>> {
    let devices = devices(config)?;
    for device in &devices {
        if let Some(why) = blockdev::missing(device) {
            return Err(Error::NoDevice { device: device.display().to_string(), why });
        }
        blockdev::first_bytes(device)?;
    }
    let groups = lvm::report(None)?;
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
                let group = VolumeGroup { sr, devices, naming, deadline };
                if found.iter().any(|info| info.uuid == sr) || group.is_unfinished(vg) {
                    continue;
                }
                if let Some(pv) = vg.pvs.iter().find(|pv| pv.missing) {
                    let why = format!("it is part of SR {sr}, whose physical volume {} is missing", pv.uuid);
                    return Err(Error::NoDevice { device: device.display().to_string(), why });
                }
                found.push(describe(group, vg)?);
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

fn listed<'a>(devices: impl Iterator<Item = &'a Path>) -> String {
    devices.map(|device| device.display().to_string()).collect::<Vec<_>>().join(",")
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
