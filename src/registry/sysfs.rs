//! The facts that the kernel tells of the block devices of this host. No process is started, and no device is opened
//! but to see whether it can be had alone.
//!
//! Kernel ABI: `Documentation/ABI/stable/sysfs-block`, `Documentation/ABI/testing/sysfs-block-dm`,
//! `sysfs-bus-scsi` (`device/wwid`), `drivers/nvme/host/core.c` (`wwid`, `nguid`, `eui`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::facts::{Facts, Holder, Signature};
use super::identity;
use crate::error::{Error, Result};
use crate::sys::sysfs::text;
use crate::sys::{blockdev, loopdev, mount};
use crate::types::VdiUuid;

/// Bytes of a sector, in which sysfs counts whatever the device's block is.
const SECTOR: u64 = 512;
/// Devices that no SR is made on: memory, floppies, CD drives, and what the kernel made for itself.
const NEVER: &[&str] = &["ram", "zram", "fd", "sr", "mtd"];

/// The devices that are mounted or in use as swap, by device number.
pub struct Uses {
    by_number: BTreeMap<u64, String>,
    /// The devices below the running system.
    system: BTreeSet<u64>,
}

impl Uses {
    /// As the kernel has them now.
    ///
    /// # Errors
    /// [`Error::Io`] if the mount table cannot be read.
    pub fn now() -> Result<Uses> {
        const SYSTEM: [&str; 6] = ["/", "/boot", "/boot/efi", "/usr", "/var", "/opt"];
        let mut by_number = BTreeMap::new();
        let mut roots = BTreeSet::new();
        for mount in mount::all()? {
            // btrfs has numbers of its own in the table; the source leads to the device.
            let source = mount.source.starts_with("/dev/").then(|| blockdev::number(Path::new(&mount.source)));
            for number in [Some(mount.device), source.flatten()].into_iter().flatten() {
                if SYSTEM.iter().any(|path| mount.path == Path::new(path)) {
                    roots.insert(number);
                }
                by_number.entry(number).or_insert_with(|| format!("the mount on {}", mount.path.display()));
            }
        }
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        for path in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
            if let Some(number) = blockdev::number(Path::new(path)) {
                by_number.insert(number, "swap".to_owned());
            }
        }
        let mut system = BTreeSet::new();
        let mut todo: Vec<u64> = roots.into_iter().collect();
        while let Some(number) = todo.pop() {
            if system.insert(number) {
                todo.extend(blockdev::below(number).into_iter().map(|(number, _)| number));
            }
        }
        Ok(Uses { by_number, system })
    }
}

/// The whole block devices below `sys`, which is `/sys`, by the kernel's names. Logical volumes and what has no medium are
/// left out. `dev`: `/dev`.
///
/// # Errors
/// [`Error::Io`] if the directory of block devices cannot be listed.
pub fn devices(sys: &Path, dev: &Path, uses: &Uses) -> Result<Vec<Facts>> {
    let dir = sys.join("block");
    let entries = fs::read_dir(&dir).map_err(Error::io("list", &dir))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names.iter().filter_map(|name| device(&dir.join(name), name, dev, Some(uses))).collect())
}

/// As much of a device as its identity needs.
pub fn identified(dir: &Path, name: &str, dev: &Path) -> Option<Facts> {
    device(dir, name, dev, None)
}

/// `uses`: `None` if nobody asks what the device is used for, so it is not opened.
fn device(dir: &Path, name: &str, dev: &Path, uses: Option<&Uses>) -> Option<Facts> {
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if NEVER.contains(&kind) {
        return None;
    }
    if !has_medium(dir) {
        return None;
    }
    let size = text(dir, "size").parse::<u64>().ok()? * SECTOR;
    let number = blockdev::number_in(dir)?;
    let dm_uuid = text(dir, "dm/uuid");
    if dm_uuid.starts_with("LVM-") || name.starts_with("dm-") && text(dir, "dm/name").is_empty() {
        return None;
    }
    let partitions = partitions(dir, name);
    let all = || std::iter::once(dir.to_owned()).chain(partitions.iter().map(|part| dir.join(part)));
    let numbers: Vec<u64> = all().filter_map(|dir| blockdev::number_in(&dir)).collect();
    let serves = backing(dir).filter(|file| is_disk_of_guest(file)).map(|file| format!("the VDI {}", file.display()));
    let node = dev.join(name);
    let used_as = uses.and_then(|uses| numbers.iter().find_map(|number| uses.by_number.get(number).cloned()));
    let is_system = uses.is_some_and(|uses| numbers.iter().any(|number| uses.system.contains(number)));
    let holders: Vec<Holder> = all().flat_map(|dir| holders(&dir)).collect();
    let is_idle = uses.is_some() && used_as.is_none() && serves.is_none() && holders.is_empty() && !is_system;
    let mut facts = Facts {
        name: name.to_owned(),
        number,
        size,
        block: text(dir, "queue/logical_block_size").parse().unwrap_or(512),
        read_only: text(dir, "ro") == "1",
        rotational: text(dir, "queue/rotational") == "1",
        identity: None,
        wwid: wwid(dir),
        serial: Some(first(dir, &["device/serial", "serial"])).filter(|serial| is_serial(serial)).unwrap_or_default(),
        model: first(dir, &["device/model"]),
        partitions,
        holders,
        used_as,
        is_system,
        serves,
        not_opened: if is_idle { not_opened(&node) } else { None },
        signature: Signature::NotRead,
    };
    facts.identity = identity::of(dir, &node, &facts, &dm_uuid);
    Some(facts)
}

fn not_opened(node: &Path) -> Option<String> {
    match blockdev::refuses_to_share(node) {
        Ok(holder) => holder.map(|who| format!("{who} has it")),
        Err(e) => Some(crate::error::one_line(&e)),
    }
}

/// Whether a text is the serial number of one device: a driver may print that it has none, or the zeroes of an empty field.
fn is_serial(text: &str) -> bool {
    text != "(null)" && !text.bytes().all(|byte| byte == b'0')
}

/// The first of these files that has a text, without what surrounds it.
fn first(dir: &Path, files: &[&str]) -> String {
    files.iter().map(|file| text(dir, file)).find(|text| !text.is_empty()).unwrap_or_default()
}

/// The directory of the disk that a device is or is a partition of, and the number of the partition, empty for a disk.
pub fn disk_of(number: u64) -> Option<(PathBuf, String)> {
    let dir = fs::canonicalize(blockdev::sysfs(number)).ok()?;
    let part = text(&dir, "partition");
    Some(if part.is_empty() { (dir, part) } else { (dir.parent()?.to_owned(), part) })
}

fn partitions(dir: &Path, name: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<String> =
        names.filter(|it| it.starts_with(name) && dir.join(it).join("partition").exists()).collect();
    found.sort();
    found
}

/// Whether a device has a medium, and is not a path that the kernel joins itself, as NVMe's.
pub fn has_medium(dir: &Path) -> bool {
    text(dir, "size").parse::<u64>().is_ok_and(|sectors| sectors > 0) && text(dir, "hidden") != "1"
}

/// The identifier that a SCSI or NVMe device gives its medium; empty if there is none.
pub fn wwid(dir: &Path) -> String {
    first(dir, &["device/wwid", "wwid"])
}

/// The devices that use a device.
pub fn holders(dir: &Path) -> Vec<Holder> {
    let entries = fs::read_dir(dir.join("holders")).into_iter().flatten().flatten();
    let mut found: Vec<Holder> = entries
        .map(|entry| {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let called = text(&path, "dm/name");
            let is_multipath = text(&path, "dm/uuid").starts_with("mpath-");
            Holder { shown: if called.is_empty() { name.clone() } else { called }, name, is_multipath }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The file of a loop device.
pub fn backing(dir: &Path) -> Option<PathBuf> {
    Some(text(dir, "loop/backing_file")).filter(|text| !text.is_empty()).map(PathBuf::from)
}

/// Whether a loop device shows the disk of a guest: the file is called by the UUID of a VDI, or an image server shows it. I/O on the
/// latter may wait for the end of a change.
fn is_disk_of_guest(file: &Path) -> bool {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.parse::<VdiUuid>().is_ok() || loopdev::is_served(file)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use nix::sys::stat::makedev;

    /// Files below a directory.
    pub fn tree(root: &Path, files: &[(&str, &str)]) {
        for (path, contents) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
    }

    /// Nothing is mounted but these numbers.
    fn mounted(numbers: &[(u64, &str)], system: &[u64]) -> Uses {
        let by_number = numbers.iter().map(|(number, text)| (*number, (*text).to_owned())).collect();
        Uses { by_number, system: system.iter().copied().collect() }
    }

    #[test]
    fn what_sysfs_says_of_disks_is_read_in_the_order_of_names() {
        let sys = tempfile::tempdir().unwrap();
        tree(
            sys.path(),
            &[
                ("block/sdb/size", "2097152\n"),
                ("block/sdb/dev", "8:16\n"),
                ("block/sdb/device/wwid", "naa.333333300000ab88\n"),
                ("block/sdb/device/model", "scsi_debug      \n"),
                ("block/sdb/queue/logical_block_size", "4096\n"),
                ("block/sdb/holders/dm-0/dm/name", "mpatha\n"),
                ("block/sdb/holders/dm-0/dm/uuid", "mpath-3333333300000ab88\n"),
                ("block/sda/size", "2048\n"),
                ("block/sda/dev", "8:0\n"),
                ("block/sda/ro", "1\n"),
                ("block/sda/sda1/partition", "1\n"),
                ("block/sda/sda1/dev", "8:1\n"),
                ("block/sda/queue/rotational", "1\n"),
                ("block/nvme0n1/size", "8\n"),
                ("block/nvme0n1/dev", "259:0\n"),
                ("block/nvme0n1/wwid", "eui.0025385b71b00d4a\n"),
                ("block/nvme0n1/device/serial", "S5P2 \n"),
                ("block/loop0/size", "0\n"),
                ("block/loop0/dev", "7:0\n"),
                ("block/loop1/size", "8\n"),
                ("block/loop1/dev", "7:1\n"),
                ("block/loop1/loop/backing_file", "/srv/sr/98de866e-b035-4b1a-a571-613bff542b89.raw\n"),
                ("block/nvme0c0n1/size", "8\n"),
                ("block/nvme0c0n1/dev", "259:1\n"),
                ("block/nvme0c0n1/hidden", "1\n"),
                ("block/ram0/size", "8\n"),
                ("block/ram0/dev", "1:0\n"),
                ("block/dm-7/size", "8\n"),
                ("block/dm-7/dev", "253:7\n"),
                ("block/dm-7/dm/name", "vg-lv\n"),
                ("block/dm-7/dm/uuid", "LVM-abc\n"),
            ],
        );
        let uses = mounted(&[(makedev(8, 1), "the mount on /")], &[makedev(8, 1)]);
        let found = devices(sys.path(), Path::new("/nowhere"), &uses).unwrap();
        let names: Vec<&str> = found.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["loop1", "nvme0n1", "sda", "sdb"]);
        let [guest, nvme, sda, sdb] = found.as_slice() else { panic!("{found:?}") };
        assert!(guest.serves.is_some() && guest.not_opened.is_none());
        assert_eq!(nvme.identity.as_deref(), Some("wwid:eui.0025385b71b00d4a"));
        assert_eq!((nvme.serial.as_str(), nvme.size), ("S5P2", 4096));
        for (text, is_one) in [("S5P2", true), ("10", true), ("(null)", false), ("0000", false), ("", false)] {
            assert_eq!(is_serial(text), is_one, "{text}");
        }
        assert!(sda.read_only && sda.rotational && sda.is_system);
        assert_eq!(sda.used_as.as_deref(), Some("the mount on /"));
        assert_eq!((sda.partitions.as_slice(), &sda.identity), (&["sda1".to_owned()][..], &None));
        assert_eq!((sdb.block, sdb.size, sdb.model.as_str()), (4096, 1 << 30, "scsi_debug"));
        assert!(sdb.holders[0].is_multipath && sdb.holders[0].shown == "mpatha");
        assert_eq!(sdb.identity.as_deref(), Some("wwid:naa.333333300000ab88"));
    }

    #[test]
    fn a_file_of_a_guest_is_told_from_any_other() {
        assert!(is_disk_of_guest(Path::new("/srv/98de866e-b035-4b1a-a571-613bff542b89.vhd")));
        assert!(is_disk_of_guest(Path::new(
            "/sm-datapath/77/dev/VG_XenStorage-x/VHD-98de866e-b035-4b1a-a571-613bff542b89"
        )));
        assert!(!is_disk_of_guest(Path::new("/srv/disk.img")));
    }
}
