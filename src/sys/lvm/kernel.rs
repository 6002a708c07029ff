//! The devices of volumes as the kernel has them, whether or not LVM can read the group's metadata.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};

/// Where programs talk to device-mapper. To open it loads the module dm_mod, where the kernel has that.
pub(super) const CONTROL: &str = "/dev/mapper/control";

/// Refuses a kernel that can serve no volume. LVM writes a group all the same, and fails at the first volume.
///
/// # Errors
/// [`Error::NoDevice`] with the module to load. An error of another kind is left for LVM to tell.
pub fn refuse_without_device_mapper() -> Result<()> {
    let misc = || fs::read_to_string("/proc/misc").unwrap_or_default();
    has_device_mapper(File::open(CONTROL).map(drop), misc)
}

/// `opened`: what came of opening the control node. `misc`: the kernel's list of such devices, for a host without the node.
fn has_device_mapper(opened: io::Result<()>, misc: impl Fn() -> String) -> Result<()> {
    let Err(error) = opened else { return Ok(()) };
    let is_absent =
        matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO));
    let is_listed = || misc().lines().any(|line| line.split_whitespace().nth(1) == Some("device-mapper"));
    match is_absent && !is_listed() {
        true => Err(Error::NoDevice {
            device: CONTROL.to_owned(),
            why: "this kernel has no device-mapper, which serves volumes; load the module dm_mod".to_owned(),
        }),
        false => Ok(()),
    }
}

/// The path of an active volume.
pub fn node(vg: &str, lv: &str) -> PathBuf {
    Path::new("/dev").join(vg).join(lv)
}

/// The name that device-mapper knows a volume by: `-` within the parts is doubled.
pub fn dm_name(vg: &str, lv: &str) -> String {
    format!("{}-{}", vg.replace('-', "--"), lv.replace('-', "--"))
}

/// The kernel's device of a volume, whether or not LVM can read the group's metadata.
pub fn kernel_device(vg: &str, lv: &str) -> Option<PathBuf> {
    let wanted = dm_name(vg, lv);
    dm_devices().find_map(|(name, device)| (name == wanted).then_some(device))
}

/// Device-mapper names of the group's volumes that the kernel has.
pub fn kernel_names(vg: &str) -> Vec<String> {
    let prefix = dm_name(vg, "");
    dm_devices().map(|(name, _)| name).filter(|name| name.starts_with(&prefix)).collect()
}

pub(super) fn dm_devices() -> impl Iterator<Item = (String, PathBuf)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = fs::read_to_string(entry.path().join("dm/name")).ok()?;
        let mapped = Path::new("/dev/mapper").join(name.trim());
        // Without udev there is no /dev/dm-0.
        let plain = Path::new("/dev").join(entry.file_name());
        Some((name.trim().to_owned(), if mapped.exists() { mapped } else { plain }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_device_mapper_is_refused_and_an_unknown_error_is_not() {
        let error = |errno: Errno| Err(io::Error::from(errno));
        let none = || " 10 232 kvm\n236 x-device-mapper\n".to_owned();
        let some = || " 10 232 kvm\n236 device-mapper\n".to_owned();
        assert!(has_device_mapper(Ok(()), none).is_ok());
        for errno in [Errno::ENOENT, Errno::ENODEV, Errno::ENXIO] {
            let refused = has_device_mapper(error(errno), none).unwrap_err().to_string();
            assert!(refused.contains("load the module dm_mod"), "{refused}");
            assert!(has_device_mapper(error(errno), some).is_ok(), "LVM makes the node");
        }
        assert!(has_device_mapper(error(Errno::EACCES), none).is_ok());
    }

    #[test]
    fn dm_names_double_their_hyphens() {
        assert_eq!(dm_name("VG_XenStorage-87b8", "LV-98de"), "VG_XenStorage--87b8-LV--98de");
    }
}
