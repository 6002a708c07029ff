//! The stable name of a medium. Names of devices are none: the kernel gives `/dev/sda` to whatever it finds first.
//!
//! The first of these that a medium has:
//!
//! | identity | is |
//! |---|---|
//! | `wwid:…` | what a SCSI or NVMe device says of itself; of a multipath map, what its paths say |
//! | `serial:MODEL/SERIAL` | of a device with a serial number and no more; `serial:SERIAL` where it names no model |
//! | `dm:UUID` | of a device-mapper device |
//! | `gpt:GUID` | of a disk with a GPT |
//! | `loop:DEVICE:INODE` | the file of a loop device |
//!
//! A partition has the identity of its disk with `-partN` after it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use uuid::Uuid;

use super::facts::Facts;
use super::sysfs::wwid;
use crate::sys::{blockdev, loopdev};

/// The identity of the device whose directory in sysfs is `dir` and whose node is `node`; `None` if its medium has none.
pub fn of(dir: &Path, node: &Path, facts: &Facts, dm_uuid: &str) -> Option<String> {
    if !facts.wwid.is_empty() {
        return Some(of_wwid(&facts.wwid));
    }
    if dm_uuid.starts_with("mpath-")
        && let Some(wwid) = below(dir)
    {
        return Some(of_wwid(&wwid));
    }
    if !facts.serial.is_empty() {
        let model = if facts.model.is_empty() { String::new() } else { format!("{}/", facts.model) };
        return Some(word("serial:", &format!("{model}{}", facts.serial)));
    }
    if !dm_uuid.is_empty() {
        return Some(word("dm:", dm_uuid));
    }
    // A guest writes on its disk what it likes, and the file of a dead server does not answer.
    if facts.serves.is_some() {
        return None;
    }
    if facts.name.starts_with("loop") {
        let (device, inode) = loopdev::file_of(node).ok()?;
        return Some(format!("loop:{device:x}:{inode}"));
    }
    gpt(node, facts.block).map(|guid| format!("gpt:{guid}"))
}

/// The identity of a medium that says this of itself.
pub fn of_wwid(wwid: &str) -> String {
    word("wwid:", wwid)
}

/// An identity is one word, in lower and upper case as the device has it.
fn word(kind: &str, text: &str) -> String {
    let plain = |c: char| if c.is_whitespace() || c.is_control() { '_' } else { c };
    let words: Vec<&str> = text.split_whitespace().collect();
    format!("{kind}{}", words.join("_").chars().map(plain).collect::<String>())
}

/// The WWID of the first path of a map that has one.
fn below(dir: &Path) -> Option<String> {
    let slaves = fs::read_dir(dir.join("slaves")).ok()?.flatten();
    slaves.map(|entry| wwid(&entry.path())).find(|wwid| !wwid.is_empty())
}

/// The GUID of a disk; UEFI Specification 2.10, "GPT Header": the second block begins with `EFI PART`, the GUID is at byte 56.
fn gpt(node: &Path, block: u32) -> Option<Uuid> {
    guid_in(&File::open(node).ok()?, u64::from(block))
}

fn guid_in(file: &File, block: u64) -> Option<Uuid> {
    let mut header = [0; 72];
    file.read_exact_at(&mut header, block).ok()?;
    let guid = Uuid::from_bytes_le(header[56..72].try_into().ok()?);
    (&header[..8] == b"EFI PART" && !guid.is_nil()).then_some(guid)
}

/// The identity of a device by any name that leads to it, also of a partition; `None` if it has none, or is no block device.
pub fn of_path(device: &Path) -> Option<String> {
    let number = blockdev::number(device)?;
    let (disk, part) = super::sysfs::disk_of(number)?;
    let name = disk.file_name()?.to_str()?;
    let facts = super::sysfs::identified(&disk, name, Path::new("/dev"))?;
    let identity = facts.identity?;
    Some(if part.is_empty() { identity } else { format!("{identity}-part{part}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::facts::tests_of::disk;
    use crate::registry::sysfs::tests::tree;

    #[test]
    fn the_first_name_that_a_medium_has_is_its_identity() {
        let sys = tempfile::tempdir().unwrap();
        tree(sys.path(), &[("map/slaves/sda/device/wwid", "naa.5000\n")]);
        let (map, nowhere) = (sys.path().join("map"), Path::new("/nowhere"));
        let plain = Facts { wwid: String::new(), ..disk("sda") };
        let named = |facts: &Facts, dm_uuid: &str| of(&map, nowhere, facts, dm_uuid);
        let serial = Facts { model: "QEMU HARDDISK".to_owned(), serial: "QM 1".to_owned(), ..plain.clone() };
        let wwid = Facts { wwid: "t10.ATA     QEMU  1".to_owned(), ..serial.clone() };
        assert_eq!(named(&wwid, "").unwrap(), "wwid:t10.ATA_QEMU_1");
        assert_eq!(named(&plain, "mpath-35000").unwrap(), "wwid:naa.5000");
        // A map over NVMe: the path itself has the attribute, not its controller.
        tree(sys.path(), &[("nvme-map/slaves/nvme0n1/wwid", "eui.0025385b71b00d4a\n")]);
        let over_nvme = of(&sys.path().join("nvme-map"), nowhere, &plain, "mpath-eui.0025385b71b00d4a");
        assert_eq!(over_nvme.unwrap(), "wwid:eui.0025385b71b00d4a");
        assert_eq!(named(&serial, "").unwrap(), "serial:QEMU_HARDDISK/QM_1");
        assert_eq!(named(&Facts { model: String::new(), ..serial }, "").unwrap(), "serial:QM_1");
        assert_eq!(named(&plain, "CRYPT-LUKS2-x").unwrap(), "dm:CRYPT-LUKS2-x");
        assert_eq!(named(&plain, ""), None);
        assert_eq!(named(&Facts { name: "loop0".to_owned(), ..plain }, ""), None);
    }

    #[test]
    fn a_gpt_is_read_at_the_second_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        for block in [512, 4096] {
            let mut bytes = vec![0; 8192];
            bytes[block..block + 8].copy_from_slice(b"EFI PART");
            bytes[block + 56..block + 72].copy_from_slice(&[1; 16]);
            fs::write(&path, &bytes).unwrap();
            let file = File::open(&path).unwrap();
            assert_eq!(guid_in(&file, block as u64).unwrap().to_string(), "01010101-0101-0101-0101-010101010101");
            assert_eq!(guid_in(&file, 512 + 4096 - block as u64), None);
        }
    }
}
