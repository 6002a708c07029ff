//! The programs, and the devices of the kernel, that SRs need.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Area, Trouble};
use crate::door::v1::listing::Listed;
use crate::sys::tool;

/// A program, the types of SRs that run it, and the packages that have it.
struct Need {
    program: &'static str,
    types: &'static [&'static str],
    /// What it is for.
    what: &'static str,
    debian: &'static str,
    rpm: &'static str,
}

/// The types of SRs on block devices.
const ON_DEVICES: &[&str] = &["ext", "xfs", "largeblock", "lvm", "lvmraw", "lvmoiscsi", "lvmohba"];
/// The types whose disks are logical volumes.
const ON_VOLUMES: &[&str] = &["lvm", "lvmraw", "lvmoiscsi", "lvmohba"];
/// The types on LUNs.
const ON_LUNS: &[&str] = &["lvmoiscsi", "lvmohba"];
/// The types whose disks may be images, which are attached through FUSE and a loop device.
const WITH_IMAGES: &[&str] = &[
    "file",
    "nfs",
    "smb",
    "ext",
    "xfs",
    "largeblock",
    "cephfs",
    "glusterfs",
    "moosefs",
    "zfs",
    "lvm",
    "lvmoiscsi",
    "lvmohba",
];

#[rustfmt::skip]
const NEEDS: &[Need] = &[
    Need { program: "lvm", types: ON_DEVICES, what: "nothing works", debian: "lvm2", rpm: "lvm2" },
    Need { program: "dmsetup", types: ON_VOLUMES, what: "snapshots, and disks in use, are not seen", debian: "dmsetup", rpm: "device-mapper" },
    Need { program: "wipefs", types: ON_DEVICES, what: "sr_create does not work", debian: "util-linux", rpm: "util-linux" },
    Need { program: "iscsiadm", types: &["lvmoiscsi"], what: "nothing works", debian: "open-iscsi", rpm: "iscsi-initiator-utils" },
    Need { program: "multipath", types: ON_LUNS, what: "a LUN is used by one path alone", debian: "multipath-tools", rpm: "device-mapper-multipath" },
    Need { program: "mkfs.ext4", types: &["ext", "largeblock"], what: "sr_create does not work", debian: "e2fsprogs", rpm: "e2fsprogs" },
    Need { program: "e2fsck", types: &["ext", "largeblock"], what: "sr_attach does not work", debian: "e2fsprogs", rpm: "e2fsprogs" },
    Need { program: "mkfs.xfs", types: &["xfs"], what: "sr_create does not work", debian: "xfsprogs", rpm: "xfsprogs" },
    Need { program: "mount.nfs", types: &["nfs", "iso on nfs"], what: "nothing works", debian: "nfs-common", rpm: "nfs-utils" },
    Need { program: "mount.cifs", types: &["smb", "iso on smb"], what: "nothing works", debian: "cifs-utils", rpm: "cifs-utils" },
    Need { program: "mount.ceph", types: &["cephfs"], what: "nothing works", debian: "ceph-common", rpm: "ceph-common" },
    Need { program: "mount.glusterfs", types: &["glusterfs"], what: "nothing works", debian: "glusterfs-client", rpm: "glusterfs-fuse" },
    Need { program: "mfsmount", types: &["moosefs"], what: "nothing works", debian: "moosefs-client", rpm: "moosefs-client" },
    Need { program: "zfs", types: &["zfs"], what: "nothing works", debian: "zfsutils-linux", rpm: "zfs" },
    Need { program: "getent", types: &["nfs", "smb", "iso on nfs", "iso on smb", "cephfs", "glusterfs", "moosefs"], what: "names of servers are not found", debian: "libc-bin", rpm: "glibc-common" },
];

/// The devices of the kernel through which disks are attached, and the module of each.
const KERNEL: &[(&str, &str)] = &[("/dev/loop-control", "loop"), ("/dev/fuse", "fuse")];

/// Looks for what the types of these SRs need.
pub fn look(srs: &[Listed]) -> Vec<Trouble> {
    let types = srs.iter().map(type_of).collect();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut found = missing(&types, is_of_rpm(&release), tool::is_there);
    for (device, module) in KERNEL.iter().filter(|(device, _)| !Path::new(device).exists()) {
        if WITH_IMAGES.iter().any(|sr_type| types.contains(sr_type)) {
            let what = "there is no such device: VHD and qcow2 disks cannot be attached";
            found.push(Trouble::wrong(Area::Tools, *device, what, format!("modprobe {module}")));
        }
    }
    found
}

/// The type of an SR. What an ISO SR needs follows from where its library is.
fn type_of(sr: &Listed) -> &str {
    match sr.sr_type.as_str() {
        "iso" if sr.location.starts_with("//") || sr.location.starts_with("\\\\") => "iso on smb",
        "iso" if !sr.location.starts_with('/') => "iso on nfs",
        other => other,
    }
}

/// Whether the distribution of an os-release(5) has packages of rpm.
fn is_of_rpm(release: &str) -> bool {
    let words = release.lines().filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")));
    let mut words = words.flat_map(|value| value.trim_matches('"').split(' '));
    words.any(|word| ["rhel", "fedora", "centos", "suse", "opensuse", "xenenterprise", "xcp-ng"].contains(&word))
}

fn missing(types: &BTreeSet<&str>, of_rpm: bool, is_there: impl Fn(&str) -> bool) -> Vec<Trouble> {
    let wanted = |need: &&Need| need.types.iter().any(|sr_type| types.contains(sr_type)) && !is_there(need.program);
    let told = |need: &Need| {
        let users: Vec<&str> = need.types.iter().copied().filter(|sr_type| types.contains(sr_type)).collect();
        let what = format!("the program is missing, and SRs of type {} need it: {}", users.join(", "), need.what);
        let remedy = match of_rpm {
            true => format!("yum install {}", need.rpm),
            false => format!("apt-get install {}", need.debian),
        };
        Trouble::wrong(Area::Tools, need.program, what, remedy)
    };
    NEEDS.iter().filter(wanted).map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::DRIVERS;

    #[test]
    fn a_missing_program_is_told_with_its_package_if_an_sr_needs_it() {
        let types = BTreeSet::from(["file", "smb", "iso on nfs"]);
        let found = missing(&types, false, |program| program == "getent");
        let told: Vec<(&str, &str)> = found.iter().map(|it| (it.object.as_str(), it.remedy.as_str())).collect();
        assert_eq!(told, [("mount.nfs", "apt-get install nfs-common"), ("mount.cifs", "apt-get install cifs-utils")]);
        assert_eq!(missing(&types, true, |_| false)[0].remedy, "yum install nfs-utils");
        assert_eq!(missing(&types, true, |_| true), []);
        assert_eq!(missing(&BTreeSet::from(["file"]), true, |_| false), []);
    }

    #[test]
    fn every_type_of_the_table_is_one() {
        let is_type = |sr_type: &str| {
            let name = sr_type.split(' ').next().unwrap();
            DRIVERS.iter().any(|driver| driver.sr_type == name)
        };
        assert!(NEEDS.iter().flat_map(|need| need.types).chain(WITH_IMAGES).all(|sr_type| is_type(sr_type)));
    }

    #[test]
    fn the_distribution_says_which_package() {
        assert!(is_of_rpm("NAME=\"XCP-ng\"\nID=\"xenenterprise\"\nID_LIKE=\"centos rhel fedora\"\n"));
        assert!(!is_of_rpm("ID=debian\nVERSION_ID=\"12\"\n"));
        assert!(!is_of_rpm(""));
        let iso =
            |location: &str| Listed { sr_type: "iso".to_owned(), location: location.to_owned(), ..Listed::default() };
        for (location, sr_type) in
            [("//a/b", "iso on smb"), ("\\\\a\\b", "iso on smb"), ("a:/b", "iso on nfs"), ("/srv/isos", "iso")]
        {
            assert_eq!(type_of(&iso(location)), sr_type);
        }
    }
}
