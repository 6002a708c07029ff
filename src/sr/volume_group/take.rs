//! The devices that a new SR takes: what may be on them, and what has to be named before it is destroyed.
//!
//! | on a device | without options | `contents` | `srs` has it |
//! |---|---|---|---|
//! | something that the kernel uses: a mount, swap, an active volume | refused | refused | refused |
//! | another SR with volumes, also damaged or with a device missing | refused | refused | destroyed |
//! | a filesystem with a file SR that has disks | refused | refused | destroyed |
//! | a filesystem with images of VDIs that no SR claims, or whose SRs cannot be told | refused | refused | refused |
//! | any other volume group with volumes, or that LVM does not show | refused | refused | refused |
//! | any other volume group without volumes | refused | overwritten | |
//! | signatures of filesystems, partition tables, RAID | refused | overwritten | |
//! | what a killed sr_create or sr_delete left | taken | taken | |
//!
//! The partitions of a device count as the device. An SR is told by its group's name, which ends with its UUID. A device
//! that LVM does not show is read by [`pvlabel`].

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::filesystem::refuse_srs;
use super::{EXTENT, VolumeGroup};
use crate::error::{Error, HeldSr, Lost, Result};
use crate::sr::config::device_list;
use crate::sys::blockdev;
use crate::sys::lvm::{self, Unmapped, Vg};
use crate::sys::pvlabel::{self, Metadata};
use crate::types::{Overwrite, Size, SrUuid};

/// LVM keeps two copies of the metadata in this area, and a volume takes 1 KiB and its texts.
const METADATA_AREA: &str = "10m";
/// Bytes; where LVM begins data behind [`METADATA_AREA`]: at the next MiB.
const DATA_BEGINS: u64 = 11 << 20;

/// The groups of SRs on block devices, as XCP's storage managers name them; the SR's UUID follows.
const PREFIXES: [&str; 4] = ["VG_XenStorage-", "XSLocalEXT-", "XSLocalXFS-", "XSLocalLargeBlock-"];
/// The volumes of a LINSTOR SR, whose group may have any name.
const LINSTOR: [&str; 2] = ["xcp-volume-", "xcp-persistent-"];
/// Volumes that a refusal names one by one.
const NAMED: usize = 5;

/// The SR that a group of this name is.
fn sr_of(group: &str) -> Option<SrUuid> {
    const UUID: usize = 36;
    let start = group.len().checked_sub(UUID).filter(|start| *start > 0)?;
    group.get(start..)?.parse().ok()
}

/// The SR in a group, if there can be disks in it.
fn sr_in(vg: &Vg) -> Option<SrUuid> {
    sr_of(&vg.name).filter(|_| !is_begun(vg) && !vg.lvs.is_empty())
}

/// Whether a killed sr_create or sr_delete left the group: no disk in it is counted on.
fn is_begun(vg: &Vg) -> bool {
    sr_of(&vg.name).is_some() && super::is_begun(&vg.tags)
}

fn owner(groups: &[Vg], number: u64) -> Option<&Vg> {
    groups.iter().find(|vg| vg.pvs.iter().any(|pv| blockdev::number(&pv.name) == Some(number)))
}

/// Refuses a group that `over` does not allow to destroy.
fn refuse_group(device: &str, vg: &Vg, over: &Overwrite) -> Result<()> {
    let in_use = |holder: String| Err(Error::DeviceInUse { device: device.to_owned(), holder });
    if let Some(held) = sr_in(vg) {
        if !over.srs.contains(&held) {
            let on = vg.pvs.iter().filter(|pv| !pv.missing).map(|pv| pv.name.clone()).collect();
            return Err(holds_sr(device, held, format!("volume group {}", vg.name), on));
        }
        return match vg.lvs.iter().find(|lv| lv.active) {
            Some(lv) => in_use(format!("the volume {} of SR {held} is active; detach the SR first", lv.name)),
            None => Ok(()),
        };
    }
    if vg.lvs.iter().any(|lv| LINSTOR.iter().any(|prefix| lv.name.starts_with(prefix))) {
        return in_use(format!("its volume group {} has the disks of a LINSTOR SR", vg.name));
    }
    if over.contents && (vg.lvs.is_empty() || is_begun(vg)) {
        return Ok(());
    }
    if vg.lvs.is_empty() {
        return Err(Error::Occupied {
            device: device.to_owned(),
            holds: format!("it belongs to the volume group {}", vg.name),
        });
    }
    let named: Vec<String> = vg.lvs.iter().take(NAMED).map(|lv| format!("{} {}", lv.name, Size(lv.size))).collect();
    let rest = vg.lvs.len().saturating_sub(NAMED);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    in_use(format!(
        "it belongs to the volume group {name}, which has volumes ({}{more}); remove the group first if they can be lost: \
         vgremove {name}",
        named.join(", "),
        name = vg.name
    ))
}

/// Refuses a device that belongs to a group of which LVM says nothing, unless `over` allows it. Whether it does.
fn refuse_unseen(device: &str, node: &Path, over: &Overwrite) -> Result<bool> {
    let (groups, how) = match pvlabel::read(node, &PREFIXES)? {
        None | Some(Metadata::None) => return Ok(false),
        Some(Metadata::Of { group, .. }) => (vec![group], "which LVM does not show"),
        Some(Metadata::Damaged(groups)) => (groups, "whose metadata is damaged"),
    };
    for group in &groups {
        match sr_of(group) {
            Some(held) if over.srs.contains(&held) => {}
            Some(held) => {
                return Err(holds_sr(device, held, format!("volume group {group}, {how}"), vec![node.to_owned()]));
            }
            None => {
                let holds = format!(
                    "it belongs to the volume group {group}, {how}; if that can be lost, remove its label first: wipefs -a {}",
                    node.display()
                );
                return Err(Error::DeviceInUse { device: device.to_owned(), holder: holds });
            }
        }
    }
    if groups.is_empty() && !over.contents {
        let holder = format!("it belongs to a volume group {how}");
        return Err(Error::DeviceInUse { device: device.to_owned(), holder });
    }
    Ok(true)
}

pub(super) fn holds_sr(device: &str, held: SrUuid, group: String, on: Vec<PathBuf>) -> Error {
    let held = Box::new(HeldSr { sr: held, group, on, lost: Lost::NotListed });
    Error::HoldsSr { device: device.to_owned(), held }
}

impl VolumeGroup {
    /// Refuses devices that something has, and contents that `over` does not allow to destroy.
    fn refuse_used_devices(&self, groups: &[Vg], over: &Overwrite) -> Result<()> {
        let mut seen = HashSet::new();
        for device in &self.devices {
            let name = device.display().to_string();
            let in_use = |holder: String| Error::DeviceInUse { device: name.clone(), holder };
            if !blockdev::number(device).is_some_and(|number| seen.insert(number)) {
                return Err(in_use("it is named twice".to_owned()));
            }
            // Whether its LVM label is of no account.
            let mut is_known = false;
            let nodes = blockdev::with_partitions(device);
            for (number, node) in &nodes {
                match owner(groups, *number) {
                    Some(vg) if !vg.name.is_empty() => {
                        refuse_group(&name, vg, over)?;
                        is_known = true;
                    }
                    // A killed sr_create or sr_delete leaves such a device: one with a label and nothing behind it.
                    Some(_) => is_known |= !refuse_unseen(&name, node, over)?,
                    None => is_known |= refuse_unseen(&name, node, over)?,
                }
            }
            if let Some(who) = blockdev::exclusive_holder(device)? {
                return Err(in_use(format!("{who} has it")));
            }
            let mut found = lvm::signatures(&name)?;
            for (_, node) in &nodes {
                let inside = if node == device { found.clone() } else { lvm::signatures(&node.display().to_string())? };
                if refuse_srs(&name, node, &inside, over, &self.deadline)? && node == device {
                    found.clear();
                }
            }
            if over.contents {
                continue;
            }
            if is_known {
                found.retain(|signature| !signature.starts_with("LVM2"));
            }
            if !found.is_empty() {
                return Err(Error::Occupied { device: name, holds: format!("it holds {}", found.join(", ")) });
            }
        }
        Ok(())
    }

    /// Refuses what [`VolumeGroup::make`] would refuse. Changes nothing.
    ///
    /// # Errors
    /// Those of [`VolumeGroup::make`].
    pub fn check(&self, size: Option<u64>, over: &Overwrite, room: fn(&[u64]) -> u64) -> Result<()> {
        if let Some(missing) = self.missing_device() {
            return Err(missing);
        }
        let groups = lvm::report(None, Unmapped::All)?;
        if let Some(vg) = groups.iter().find(|vg| vg.name == self.name() && !self.is_unfinished(vg)) {
            return Err(self.exists(vg));
        }
        self.refuse_used_devices(&groups, over)?;
        self.refuse_too_small(size, room)?;
        lvm::refuse_without_device_mapper()
    }

    fn exists(&self, vg: &Vg) -> Error {
        let found = format!("on {}", device_list(vg.pvs.iter().map(|pv| pv.name.as_path())));
        Error::SrExists { sr: self.sr, found }
    }

    fn refuse_too_small(&self, size: Option<u64>, room: fn(&[u64]) -> u64) -> Result<()> {
        let Some(wanted) = size else { return Ok(()) };
        let each =
            self.devices.iter().map(|device| Ok(blockdev::size(device)?.saturating_sub(DATA_BEGINS) / EXTENT * EXTENT));
        let size = room(&each.collect::<Result<Vec<u64>>>()?);
        if wanted > size { Err(Error::PlaceTooSmall { sr: self.sr, size, wanted }) } else { Ok(()) }
    }

    /// Makes the group with tags. One that was not finished is removed first.
    ///
    /// `room` says how many bytes an SR on devices with so many can hold, which `size` must not exceed. `over` says
    /// what may be destroyed; what the kernel uses never is.
    ///
    /// # Errors
    /// [`Error::SrExists`], [`Error::DeviceInUse`], [`Error::Occupied`], [`Error::HoldsSr`], [`Error::NoDevice`],
    /// [`Error::NoSpace`]; then nothing was changed.
    pub fn make(&self, size: Option<u64>, over: &Overwrite, tags: &[&str], room: fn(&[u64]) -> u64) -> Result<()> {
        if let Some(missing) = self.missing_device() {
            return Err(missing);
        }
        let mut groups = lvm::report(None, Unmapped::All)?;
        if let Some(vg) = groups.iter().find(|vg| vg.name == self.name()) {
            if !self.is_unfinished(vg) {
                self.flush(vg)?;
                return Err(self.exists(vg));
            }
            self.remove(vg)?;
            groups = lvm::report(None, Unmapped::All)?;
        }
        self.refuse_used_devices(&groups, over)?;
        self.refuse_too_small(size, room)?;
        lvm::refuse_without_device_mapper()?;
        let names: Vec<String> =
            self.devices.iter().map(|d| d.canonicalize().unwrap_or_else(|_| d.clone()).display().to_string()).collect();
        if !over.is_nothing() {
            self.destroy_srs(&groups, over)?;
            names.iter().try_for_each(|name| lvm::wipe(name))?;
        }
        let group = self.name();
        let mut all = vec![group.as_str()];
        all.extend(names.iter().map(String::as_str));
        let mut options = vec!["-y", "--metadatasize", METADATA_AREA, "-s", "4m"];
        options.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        lvm::change("vgcreate", &options, &all)
    }

    /// Removes the groups of the SRs that `over` allows to destroy, so that no half of one stays on a device that the new SR does not
    /// take. A group that LVM can't change as a whole is overwritten where the new SR is, and stays elsewhere.
    fn destroy_srs(&self, groups: &[Vg], over: &Overwrite) -> Result<()> {
        let ours: HashSet<u64> = self.devices.iter().filter_map(|device| blockdev::number(device)).collect();
        let is_ours = |vg: &&Vg| vg.pvs.iter().any(|pv| blockdev::number(&pv.name).is_some_and(|n| ours.contains(&n)));
        let goes = |vg: &&Vg| match sr_in(vg) {
            Some(held) => over.srs.contains(&held),
            None => over.contents && sr_of(&vg.name).is_some(),
        };
        for vg in groups.iter().filter(goes).filter(is_ours) {
            if vg.system_id.is_empty() && self.refuse_incomplete(vg).is_ok() {
                self.remove(vg)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::volume_group::{CREATING, DELETING};
    use crate::sys::lvm::Lv;

    const UUID: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";

    fn group(name: &str, tags: &[&str], lvs: &[&str]) -> Vg {
        Vg {
            name: name.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            lvs: lvs.iter().map(|name| Lv { name: (*name).to_owned(), size: EXTENT, ..Lv::default() }).collect(),
            ..Vg::default()
        }
    }

    fn force() -> Overwrite {
        Overwrite { contents: true, srs: Vec::new() }
    }

    #[test]
    fn an_sr_is_told_by_the_uuid_at_the_end_of_its_groups_name() {
        for prefix in PREFIXES {
            assert_eq!(sr_of(&format!("{prefix}{UUID}")), Some(UUID.parse().unwrap()), "{prefix}");
        }
        for other in ["", "vg0", UUID, "ü7b8646b-b800-9500-cb7b-af3b74e02f5c", "VG_XenStorage-"] {
            assert_eq!(sr_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_sr_goes_only_if_it_is_named_and_nothing_of_it_is_active() {
        let sr = group(&format!("XSLocalEXT-{UUID}"), &[], &[UUID]);
        let named = Overwrite { contents: false, srs: vec![UUID.parse().unwrap()] };
        for over in [Overwrite::default(), force(), Overwrite { contents: true, srs: vec![SrUuid::random()] }] {
            assert!(matches!(refuse_group("/dev/sdb", &sr, &over), Err(Error::HoldsSr { .. })), "{over:?}");
        }
        refuse_group("/dev/sdb", &sr, &named).unwrap();
        let mut active = sr.clone();
        active.lvs[0].active = true;
        assert!(matches!(refuse_group("/dev/sdb", &active, &named), Err(Error::DeviceInUse { .. })));
        // Its deletion or creation was begun: there are no disks that anybody counts on.
        for tag in [DELETING, CREATING] {
            refuse_group("/dev/sdb", &group(&sr.name, &[tag], &[UUID]), &force()).unwrap();
        }
    }

    #[test]
    fn nobody_is_told_to_force_the_loss_of_volumes() {
        let with_volumes = refuse_group("/dev/sdb", &group("vg0", &[], &["data"]), &Overwrite::default()).unwrap_err();
        assert!(matches!(with_volumes, Error::DeviceInUse { .. }), "{with_volumes}");
        let forced = refuse_group("/dev/sdb", &group("vg0", &[], &["data"]), &force()).unwrap_err();
        assert!(forced.to_string().contains("vgremove vg0"), "{forced}");
        refuse_group("/dev/sdb", &group("vg0", &[], &[]), &force()).unwrap();
        let empty = refuse_group("/dev/sdb", &group("vg0", &[], &[]), &Overwrite::default()).unwrap_err();
        assert!(matches!(empty, Error::Occupied { .. }), "{empty}");
        let linstor = group("linstor_group", &[], &["xcp-volume-1_00000"]);
        assert!(matches!(refuse_group("/dev/sdb", &linstor, &force()), Err(Error::DeviceInUse { .. })));
    }
}
