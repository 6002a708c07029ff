//! The name of an image that is a logical volume of another storage manager (LVHD), `<prefix>-<vdi>`: so the volume is called
//! in the volume group of its SR, and so the images above it name it in their headers.
//!
//! This is the only place that reads such names. The prefixes are those of `lvhdutil.py` and `lvmcowutil.py` of the Python
//! storage managers.

use std::fmt;

use crate::types::{Format, VdiUuid};

/// The beginning of the name of a volume group with an SR; the SR's UUID follows.
pub const GROUP: &str = "VG_XenStorage-";

/// In the order in which the Python drivers compare them.
const PREFIXES: [(&str, Format); 3] = [("LV-", Format::Raw), ("VHD-", Format::Vhd), ("QCOW2-", Format::Qcow2)];

/// The mark of a leaf whose place its parent takes: `VHD-OLD_<vdi>`.
const OLD: &str = "OLD_";

/// The name of a volume with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeName {
    pub vdi: VdiUuid,
    pub format: Format,
    /// Its parent is being put in its place, or was.
    pub old: bool,
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let prefix = PREFIXES.iter().find(|(_, format)| *format == self.format).map_or("", |(prefix, _)| prefix);
        write!(f, "{prefix}{}{}", if self.old { OLD } else { "" }, self.vdi)
    }
}

/// The name of the volume with the image of a VDI.
pub fn image(vdi: VdiUuid, format: Format) -> String {
    VolumeName { vdi, format, old: false }.to_string()
}

/// The name of the volume of an image whose place another one takes.
pub fn old_image(vdi: VdiUuid, format: Format) -> String {
    VolumeName { vdi, format, old: true }.to_string()
}

impl VolumeName {
    /// Reads the name of a volume. `None`: it is no image of a VDI.
    pub fn parse(name: &str) -> Option<VolumeName> {
        let (rest, format) =
            PREFIXES.into_iter().find_map(|(prefix, format)| Some((name.strip_prefix(prefix)?, format)))?;
        let (uuid, old) = rest.strip_prefix(OLD).map_or((rest, false), |uuid| (uuid, true));
        Some(VolumeName { vdi: uuid.parse().ok()?, format, old })
    }

    /// Reads what a header says of a parent: the name of a volume, or that of its device, which has the name of the group
    /// before it and each `-` of both doubled; with a path or without. `None`: it is no image of a VDI.
    pub fn of_path(path: &str) -> Option<VolumeName> {
        let name = path.rsplit('/').next()?;
        if !name.starts_with(GROUP.trim_end_matches('-')) {
            return VolumeName::parse(name);
        }
        let (_, volume) = split_device(name)?;
        VolumeName::parse(&volume)
    }

    /// The format that a name of a parent says, whether it is the name of a volume or that of its device.
    pub fn format_of(path: &str) -> Option<Format> {
        VolumeName::of_path(path).map(|name| name.format)
    }
}

/// The group and the volume of a device of device-mapper: a single `-` parts them, and two stand for one.
fn split_device(name: &str) -> Option<(String, String)> {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'-', Some(b'-')) => at += 2,
            (b'-', _) => return Some((name[..at].replace("--", "-"), name[at + 1..].replace("--", "-"))),
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::lvm::dm_name;

    const VDI: &str = "98de866e-b035-4b1a-a571-613bff542b89";
    const VG: &str = "VG_XenStorage-87b8646b-b800-9500-cb7b-af3b74e02f5c";

    #[test]
    fn a_volume_is_known_by_its_name_its_path_and_its_device() {
        let vdi: VdiUuid = VDI.parse().unwrap();
        for (prefix, format) in PREFIXES {
            for (mark, old) in [("", false), (OLD, true)] {
                let (name, wanted) = (format!("{prefix}{mark}{VDI}"), Some(VolumeName { vdi, format, old }));
                assert_eq!(VolumeName::parse(&name), wanted, "{name}");
                for path in [
                    name.clone(),
                    dm_name(VG, &name),
                    format!("/dev/{VG}/{name}"),
                    format!("/dev/mapper/{}", dm_name(VG, &name)),
                    format!("./{}", dm_name(VG, &name)),
                ] {
                    assert_eq!(VolumeName::of_path(&path), wanted, "{path}");
                }
            }
        }
    }

    #[test]
    fn other_names_are_no_images() {
        for other in [
            "",
            "MGT",
            "VHD-",
            "VHD-x",
            "vhd-98de866e-b035-4b1a-a571-613bff542b89",
            &format!("OLD_VHD-{VDI}"),
            &format!("VHD-OLD_OLD_{VDI}"),
            &format!("VHD-{VDI}x"),
            &format!("jvhd_{VDI}"),
            &format!("{VDI}.vhd"),
            VG,
            &format!("{VG}-VHD-{VDI}"),
            &VG.replace('-', "--"),
            &format!("/dev/{VG}/VHD-{VDI}/"),
            "..",
        ] {
            assert_eq!(VolumeName::of_path(other), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(VG_XenStorage|VHD|LV|OLD_|-|--|[0-9a-f]{8}|/|\\PC){0,24}") {
            let _ = VolumeName::of_path(&text);
        }

        #[test]
        fn the_name_of_a_device_is_taken_apart_as_it_was_put_together(vg in "[a-z][a-z-]{0,8}[a-z]", lv in "[a-z][a-z-]{0,8}[a-z]") {
            prop_assert_eq!(split_device(&dm_name(&vg, &lv)), Some((vg, lv)));
        }
    }
}
