//! Signatures of filesystems, partition tables, RAID and LVM on a device, by `wipefs`.

use crate::error::Result;
use crate::sys::tool::Tool;

/// Reads `wipefs --parsable`: the signatures on a device, as `ext4 "root"`.
pub fn parse_signatures(text: &str) -> Vec<String> {
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|line| {
        let mut fields = line.split(',').map(str::trim);
        let (_offset, _uuid, label, kind) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(if label.is_empty() { kind.to_owned() } else { format!("{kind} \"{label}\"") })
    })
    // ZFS and others write theirs many times over.
    .fold(Vec::new(), |mut named, signature| {
        if !named.contains(&signature) {
            named.push(signature);
        }
        named
    })
}

/// The signatures of filesystems, partition tables, RAID and LVM that a device carries.
///
/// # Errors
/// [`crate::Error::Tool`] if `wipefs` cannot read the device.
pub fn signatures(device: &str) -> Result<Vec<String>> {
    Tool::new("wipefs").args(["--no-act", "--parsable", "--", device]).run().map(|out| parse_signatures(&out.stdout))
}

/// Removes all signatures from a device.
///
/// # Errors
/// [`crate::Error::Tool`] if `wipefs` cannot write to the device.
pub fn wipe(device: &str) -> Result<()> {
    Tool::new("wipefs").args(["--all", "--force", "--quiet", "--", device]).run().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_named_with_their_labels() {
        let text = "# offset,uuid,label,type\n0x438,8a0b,ro\\x6ft,ext4\n0x1fe,,,dos\n";
        assert_eq!(parse_signatures(text), ["ext4 \"ro\\x6ft\"", "dos"]);
        assert!(parse_signatures("").is_empty());
        let zfs = "0x3f000,,,zfs_member\n".repeat(29) + "0x1fe,,,dos\n";
        assert_eq!(parse_signatures(&zfs), ["zfs_member", "dos"]);
    }
}
