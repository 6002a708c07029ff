//! `LVMoHBASR`: a volume group on a LUN of a host bus adapter (fibre channel, SAS, RAID), an SR as in [`mod@lun`].
//!
//! There is nothing to log in to: the kernel finds the LUN when it looks. The way to it is always open, so the SR is there when its
//! LUN is. `docs/iscsi.md` tells what sr_probe lists.

use std::fs;
use std::path::{Path, PathBuf};

use crate::context::Deadline;
use crate::error::{Error, NotChosen, Offered, OfferedAdapter, Result};
use crate::sr::driver::{About, Driver, Substrate};
use crate::sr::lun::{self, Lun, LunSr, MULTIPATHING, SCSI_ID, SHARED, Transport, is_scsi_id};
use crate::sr::lvm;
use crate::sr::lvmoiscsi::offered;
use crate::sys::blockdev;
use crate::sys::multipath;
use crate::sys::scsidisk::{self, Disk};
use crate::sys::watch::Pulse;
use crate::types::{DeviceConfig, Done, SrInfo, SrUuid};

/// The short form of device_config begins so; the identifier follows.
const FORM: &str = "hba@";

pub const DRIVER: Driver = Driver {
    sr_type: "lvmohba",
    executable: "LVMoHBASR",
    description: "disks as logical volumes on a LUN of a host bus adapter",
    dconf_form: "hba@SCSIid",
    parse_dconf,
    open: |sr, config, deadline| {
        let lun = Lun::new(config)?;
        Ok(Box::new(LunSr::new(&DRIVER, sr, (lun.clone(), Adapters(lun)), config, deadline)?))
    },
    probe,
    // A group on a local disk looks the same: those are SRs of type lvm.
    discover: || Ok(Vec::new()),
    about: About {
        name: "LVM over a host bus adapter",
        configuration: &[SCSI_ID, MULTIPATHING, lvm::ALLOCATION, SHARED, lvm::LVHD],
        substrate: Substrate::Lun,
        ..lvm::DRIVER.about
    },
    ..lvm::DRIVER
};

/// `hba@SCSIid`, or `hba@` for sr_probe.
///
/// # Errors
/// [`Error::Invalid`] with the form that it must have.
fn parse_dconf(dconf: &str) -> Result<DeviceConfig> {
    match dconf.strip_prefix(FORM) {
        Some("") => Ok(DeviceConfig::default()),
        Some(id) if is_scsi_id(id) => Ok(DeviceConfig::from([("SCSIid", id)])),
        _ => Err(Error::Invalid {
            what: "dconf",
            value: dconf.to_owned(),
            expected: format!("expected {}", DRIVER.dconf_form),
        }),
    }
}

/// Which SRs lie on the LUN; without an identifier, a failure with the LUNs of all adapters.
fn probe(config: &DeviceConfig, deadline: Deadline) -> Result<Vec<SrInfo>> {
    if config.get("SCSIid").unwrap_or("").is_empty() {
        scan();
        return Err(not_there(None));
    }
    let lun = Lun::new(config)?;
    lun::probe(&DRIVER, &lun, &Adapters(lun.clone()), config, deadline)
}

/// Drivers of hosts that are no adapters of a SAN: those of local disks, of iSCSI, and of USB sticks.
const OTHERS: [&str; 6] = ["sata", "ahci", "pata", "pdc_adma", "iscsi_tcp", "usb-storage"];

fn is_adapter(host: u32) -> bool {
    let driver = scsidisk::driver_of(host);
    // `ata_piix`, `sata_nv` and their like are local disks as well.
    !OTHERS.iter().any(|other| driver.starts_with(other)) && !driver.starts_with("ata_")
}

fn scan() {
    let hosts: Vec<u32> = scsidisk::hosts().into_iter().filter(|host| is_adapter(*host)).collect();
    scsidisk::scan_hosts(&hosts);
    scsidisk::settle(&hosts);
}

/// The disks of the adapters.
fn disks() -> Vec<Disk> {
    scsidisk::all().into_iter().filter(|disk| disk.session.is_none() && is_adapter(disk.address.host)).collect()
}

/// The failure of a LUN that is not there, with those that are.
fn not_there(wrong: Option<&str>) -> Error {
    let hosts = scsidisk::hosts().into_iter().filter(|host| is_adapter(*host));
    Error::NotChosen(Box::new(NotChosen {
        key: "SCSIid",
        wrong: wrong.map(str::to_owned),
        offered: Offered::Disks { luns: offered(&disks()), adapters: hosts.map(adapter).collect() },
    }))
}

/// What clients of sr_probe are told of an adapter, under the names that they expect.
fn adapter(host: u32) -> OfferedAdapter {
    let read = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default().trim().to_owned();
    let driver = scsidisk::driver_of(host);
    let fc = PathBuf::from(format!("/sys/class/fc_host/host{host}"));
    let of_fc = ["node_name", "port_name", "port_state", "speed", "supported_speeds"];
    let manufacturer = crate::sys::tool::Tool::new("modinfo").args(["-d", &driver]).run();
    let manufacturer = manufacturer.map(|said| said.stdout.trim().to_owned()).unwrap_or_default();
    OfferedAdapter {
        members: vec![
            ("host", format!("host{host}")),
            ("name", driver),
            ("manufacturer", if manufacturer.is_empty() { "Unknown".to_owned() } else { manufacturer }),
            ("id", host.to_string()),
        ],
        fc: if fc.is_dir() { of_fc.map(|file| (file, read(&fc, file))).to_vec() } else { Vec::new() },
    }
}

/// The way to a LUN by the adapters of this host.
struct Adapters(Lun);

impl Adapters {
    fn id(&self) -> &str {
        &self.0.scsi_id
    }

    fn find(&self) -> Result<()> {
        let is_there = || !scsidisk::of_id(self.id()).is_empty();
        if is_there() {
            return Ok(());
        }
        scan();
        if is_there() { Ok(()) } else { Err(not_there(Some(self.id()))) }
    }
}

impl Transport for Adapters {
    fn location(&self) -> String {
        format!("{FORM}{}", self.id())
    }

    fn is_open(&self, _sr: SrUuid) -> Result<bool> {
        Ok(true)
    }

    fn open(&self, _sr: SrUuid) -> Result<Done> {
        self.find().map(|()| Done::Already)
    }

    /// A map that was asked for goes; one that the host makes by itself stays.
    fn close(&self, _sr: SrUuid) -> Result<Done> {
        match self.0.multipathing && multipath::map_of(self.id()).is_some() {
            true => multipath::flush(self.id(), true).map(|()| Done::Changed),
            false => Ok(Done::Already),
        }
    }

    fn while_open(&self, work: &dyn Fn() -> Result<Vec<SrInfo>>) -> Result<Vec<SrInfo>> {
        self.find()?;
        work()
    }

    fn trouble(&self) -> Option<String> {
        let paths = scsidisk::of_id(self.id());
        match paths.first() {
            None => Some(format!("this host has no LUN {}; sr_attach looks for it", self.id())),
            Some(path) if !paths.iter().any(Disk::is_running) => {
                Some(format!("the disk {} of its LUN is {}", path.name, path.state))
            }
            Some(_) => None,
        }
    }

    fn pulse(&self) -> Option<Pulse> {
        None
    }

    /// The array may take the LUN away, so the kernel forgets its disks; another scan brings them back. Disks that something
    /// uses stay.
    fn abandon(&self) {
        let paths = scsidisk::of_id(self.id());
        let is_used = |disk: &Disk| scsidisk::carries_root(disk) || blockdev::loser(&disk.node()).is_some();
        // A map that the host makes by itself is over them still.
        if multipath::flush(self.id(), true).is_err() || paths.iter().any(is_used) {
            return;
        }
        paths.iter().filter(|disk| disk.session.is_none()).for_each(scsidisk::remove);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_is_an_identifier() {
        assert_eq!(parse_dconf("hba@3600").unwrap().get("SCSIid"), Some("3600"));
        assert_eq!(parse_dconf("hba@").unwrap(), DeviceConfig::default());
        for bad in ["", "3600", "hba@a/b", "hba@-x", "/dev/sda"] {
            assert!(parse_dconf(bad).is_err(), "{bad}");
        }
    }
}
