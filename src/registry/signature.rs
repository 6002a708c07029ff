//! The signatures on devices that nothing uses. The kernel does not tell whether a device holds something: a physical
//! volume whose group has no active volume opens exclusively.
//!
//! A device that is blank where signatures are, and one with an LVM label, are read here. A process, `wipefs` (util-linux), is
//! started only for a device that holds something else.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::facts::Signature;
use crate::error::{Error, Result, one_line};
use crate::sr::volume_group;
use crate::sys::pvlabel::{self, Metadata};
use crate::sys::{blockdev, lvm, threads};
use crate::types::SlotMark;

/// Where libblkid looks for signatures: the beginning with all labels of ZFS and the block of btrfs, that of VMFS, and the end
/// with those of md and of controllers. Bytes.
const BEGINNING: u64 = 256 << 10;
const VMFS: (u64, u64) = (1 << 20, 64 << 10);
const END: u64 = 512 << 10;
/// Devices that are read at the same time.
const THREADS: usize = 8;

/// The signatures of devices, in their order.
pub fn of_all(nodes: &[PathBuf]) -> Vec<Signature> {
    threads::while_waiting(nodes, THREADS, |node| of(node).unwrap_or_else(|e| Signature::Unreadable(one_line(&e))))
}

/// What a device holds, as a clause; none if it holds nothing.
pub fn holds(node: &Path) -> Option<String> {
    words(&of(node).unwrap_or_else(|e| Signature::Unreadable(one_line(&e))))
}

fn words(signature: &Signature) -> Option<String> {
    match signature {
        Signature::None | Signature::NotRead => None,
        Signature::Found { group: Some(group), .. } => Some(format!("it belongs to the volume group {group}")),
        Signature::Found { kind, .. } => Some(format!("it holds {kind}")),
        Signature::Unreadable(why) => Some(format!("it cannot be told what it holds ({why})")),
    }
}

fn of(node: &Path) -> Result<Signature> {
    let file = blockdev::open(node, false)?;
    if is_blank(&file, blockdev::size(node)?).map_err(Error::io("read", node))? {
        return Ok(Signature::None);
    }
    let found = |kind: &str, group, slot| Signature::Found { kind: kind.to_owned(), group, slot };
    match pvlabel::read(node, &[])? {
        Some(Metadata::Of { group, tags }) => {
            let slot = SlotMark::of_tags(&tags).filter(|_| !volume_group::is_begun(&tags));
            return Ok(found("LVM2_member", Some(group), slot));
        }
        Some(_) => return Ok(found("LVM2_member", None, None)),
        None => {}
    }
    let kinds = lvm::signatures(&node.display().to_string())?;
    // The label of a filesystem follows its type.
    let kind = kinds.first().map(|kind| kind.split(' ').next().unwrap_or_default());
    Ok(kind.map_or(Signature::None, |kind| found(kind, None, None)))
}

/// Whether a device of `size` bytes has nothing but zeroes where signatures are.
fn is_blank(file: &File, size: u64) -> std::io::Result<bool> {
    let mut bytes = vec![0; END as usize];
    for (from, length) in [(0, BEGINNING), VMFS, (size.saturating_sub(END), END)] {
        let length = length.min(size.saturating_sub(from)) as usize;
        file.read_exact_at(&mut bytes[..length], from)?;
        if bytes[..length].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_blank_only_if_every_place_of_a_signature_is() {
        let dir = tempfile::tempdir().unwrap();
        for size in [4 << 20, 1 << 20, 64 << 10] {
            let path = dir.path().join("disk");
            let file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            let file = File::options().read(true).write(true).open(&path).unwrap();
            assert!(is_blank(&file, size).unwrap());
            // ext4, btrfs, VMFS, md 1.0, the last byte of a backup GPT
            for at in [0x438, 0x10040, 1 << 20, size - 8192, size - 1] {
                if at >= size {
                    continue;
                }
                file.write_all_at(&[1], at).unwrap();
                assert!(!is_blank(&file, size).unwrap(), "{at} of {size}");
                file.write_all_at(&[0], at).unwrap();
            }
        }
    }

    #[test]
    fn what_a_device_holds_is_a_clause_and_one_that_cannot_be_read_is_not_empty() {
        let found = |group: Option<&str>| {
            let group = group.map(str::to_owned);
            words(&Signature::Found { kind: "LVM2_member".to_owned(), group, slot: None })
        };
        assert_eq!(found(Some("VG_XenStorage-x")).unwrap(), "it belongs to the volume group VG_XenStorage-x");
        assert_eq!(found(None).unwrap(), "it holds LVM2_member");
        assert_eq!(words(&Signature::None), None);
        assert!(holds(Path::new("/nowhere/a")).unwrap().starts_with("it cannot be told"));
    }

    #[test]
    fn a_device_that_cannot_be_read_is_said_to_be_so() {
        let found = of_all(&["/nowhere/a".into(), "/nowhere/b".into()]);
        assert!(found.iter().all(|it| matches!(it, Signature::Unreadable(_))), "{found:?}");
        assert_eq!(of_all(&[]), []);
    }
}
