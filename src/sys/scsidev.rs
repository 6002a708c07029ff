//! SCSI devices of this host, in sysfs: what they are and where they are.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::sysfs::text;
use crate::types::Misread;

const DEVICES: &str = "/sys/bus/scsi/devices";

/// The address of a device: host, channel, target and LUN. That of a host may change with each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    pub host: u32,
    pub channel: u32,
    pub target: u32,
    pub lun: u64,
}

impl FromStr for Address {
    type Err = Misread;

    fn from_str(text: &str) -> Result<Address, Misread> {
        let is_number = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
        let parts: Vec<u64> = text.split(':').filter(is_number).filter_map(|part| part.parse().ok()).collect();
        let small = |number: u64| u32::try_from(number).ok();
        let read = || match (parts.as_slice(), text.matches(':').count()) {
            (&[host, channel, target, lun], 3) => {
                Some(Address { host: small(host)?, channel: small(channel)?, target: small(target)?, lun })
            }
            _ => None,
        };
        read().ok_or_else(|| Misread {
            what: "SCSI address",
            value: text.to_owned(),
            expected: "expected HOST:CHANNEL:TARGET:LUN, as 2:0:0:0".to_owned(),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.host, self.channel, self.target, self.lun)
    }
}

impl TryFrom<String> for Address {
    type Error = Misread;

    fn try_from(text: String) -> Result<Address, Misread> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

/// A SCSI device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub address: Address,
    /// The identifier that the device gives its medium; empty if it gives none.
    pub wwid: String,
    /// The node by which the kernel's target knows it: of a disk that of the disk, of others that of the generic driver.
    pub node: PathBuf,
    pub is_disk: bool,
}

/// The device at an address.
///
/// # Errors
/// [`Error::NoDevice`] if there is none, or no driver has it.
pub fn at(address: Address) -> Result<Device> {
    let dir = Path::new(DEVICES).join(address.to_string());
    let missing = |why: &str| Error::NoDevice { device: address.to_string(), why: why.to_owned() };
    if !dir.is_dir() {
        return Err(missing("this host has no such SCSI device"));
    }
    // Types of SPC-4, 6.6.2: 0 is a disk, 14 a simple one, 20 one with zones.
    let is_disk = ["0", "14", "20"].contains(&text(&dir, "type").as_str());
    let (driver, module) = if is_disk { ("block", "sd_mod") } else { ("scsi_generic", "sg") };
    let node = fs::read_dir(dir.join(driver)).ok().and_then(|mut entries| entries.next()?.ok());
    let node = node.ok_or_else(|| missing(&format!("no driver has it; modprobe {module} may help")))?;
    Ok(Device { address, wwid: text(&dir, "wwid"), node: Path::new("/dev").join(node.file_name()), is_disk })
}

/// The device that a node is of: a disk, a tape, or a generic one.
///
/// # Errors
/// [`Error::NoDevice`]; [`Error::Invalid`] for a partition and for what is no SCSI device.
pub fn of_path(path: &Path) -> Result<Device> {
    let bad =
        |why: &str| Error::Invalid { what: "device", value: path.display().to_string(), expected: why.to_owned() };
    let meta =
        fs::metadata(path).map_err(|e| Error::NoDevice { device: path.display().to_string(), why: e.to_string() })?;
    let class = match meta.file_type() {
        it if it.is_block_device() => "block",
        it if it.is_char_device() => "char",
        _ => return Err(bad("it is no device")),
    };
    let dir = PathBuf::from(format!("/sys/dev/{class}/{}:{}", major(meta.rdev()), minor(meta.rdev())));
    if dir.join("partition").exists() {
        return Err(bad("it is a partition, and a device is passed through as a whole"));
    }
    let device = fs::canonicalize(dir.join("device")).ok();
    let name = device.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let address = name.and_then(|name| name.parse().ok());
    at(address.ok_or_else(|| bad("it is no SCSI device"))?)
}

/// The device with a wwid: that at `address` if it has the wwid, or the only one that has it. Without a wwid, that at the address.
///
/// # Errors
/// [`Error::NoDevice`] if there is none, or if several devices have it.
pub fn find(wwid: &str, address: Address) -> Result<Device> {
    let there = at(address);
    if wwid.is_empty() || there.as_ref().is_ok_and(|device| device.wwid == wwid) {
        return there;
    }
    let names = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let addresses = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<Device> = addresses.filter_map(|it| at(it).ok()).filter(|device| device.wwid == wwid).collect();
    match (found.pop(), found.is_empty()) {
        (Some(device), true) => Ok(device),
        (None, _) => {
            Err(Error::NoDevice { device: wwid.to_owned(), why: "no SCSI device of this host has it".to_owned() })
        }
        (Some(_), false) => {
            Err(Error::NoDevice { device: wwid.to_owned(), why: "several SCSI devices have it".to_owned() })
        }
    }
}

/// Whether there is a SCSI host of this number.
pub fn has_host(number: u32) -> bool {
    Path::new("/sys/class/scsi_host").join(format!("host{number}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_four_numbers() {
        let address: Address = "2:0:1:16384".parse().unwrap();
        assert_eq!(address, Address { host: 2, channel: 0, target: 1, lun: 16384 });
        assert_eq!(address.to_string(), "2:0:1:16384");
        for bad in
            ["", "2:0:1", "2:0:1:0:0", "2::0:1", "2:0:1:", "+2:0:1:0", "2:0:1:../0", "4294967296:0:0:0", "a:0:0:0"]
        {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_scsi_device_is_refused() {
        assert!(matches!(of_path(Path::new("/dev/null")), Err(Error::Invalid { .. })));
        assert!(matches!(of_path(Path::new("/etc/passwd")), Err(Error::Invalid { .. })));
        assert!(matches!(of_path(Path::new("/dev/nothing")), Err(Error::NoDevice { .. })));
        assert!(matches!(at("4000000000:0:0:0".parse().unwrap()), Err(Error::NoDevice { .. })));
    }
}
