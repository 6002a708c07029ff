//! The devices of volumes as the kernel has them, whether or not LVM can read the group's metadata.

use std::fs;
use std::path::{Path, PathBuf};

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
    fn dm_names_double_their_hyphens() {
        assert_eq!(dm_name("VG_XenStorage-87b8", "LV-98de"), "VG_XenStorage--87b8-LV--98de");
    }
}
