//! Disks for this host, as SCSI disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::fabric::{Facts, Kind, Parts, Shown};
use super::name::{Name, loopback_name};
use super::record::Record;
use super::scsi::{self, LUN};
use super::settings::{Place, Sort};
use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::sys::configfs::{get, set};
use crate::sys::lio;
use crate::types::{Misread, VdiUuid};

pub struct Loopback;

static FACTS: Facts = Facts { help: "This host, as a SCSI disk", network: None, writable_only: None };

impl Kind for Loopback {
    fn facts(&self) -> &'static Facts {
        &FACTS
    }

    fn consumer_name(&self, text: &str) -> Result<Name, Misread> {
        let expected = "this host alone uses a loopback disk".to_owned();
        Err(Misread { what: "consumer", value: text.to_owned(), expected })
    }

    fn target_name(&self, _prefix: &str, vdi: VdiUuid) -> Result<String> {
        Ok(loopback_name(vdi, "target"))
    }

    fn prepare(&self) -> Result<()> {
        lio::prepare(&["tcm_loop", "sd_mod"])
    }

    fn number(&self, record: &Record) -> Result<u32> {
        scsi::free_number(record)
    }

    fn has_foreign(&self, _consumer: &Name) -> Result<bool> {
        Ok(false)
    }

    fn publish(&self, record: &mut Record, parts: &Parts) -> Result<Option<PathBuf>> {
        let (object, group) = scsi::publish(record, parts)?;
        // Without it, the LUN makes no disk.
        if get(&group.join("nexus")).is_empty() {
            set(&group.join("nexus"), &loopback_name(record.vdi, "initiator"))?;
        }
        scsi::make_lun(record, &object, &group)?;
        scsi_disk(&group, Duration::from_secs(10)).map(Some)
    }

    fn settings(&self, record: &Record, sort: Sort) -> Result<Option<Place>> {
        (sort == Sort::Attribute).then(|| scsi::attributes(record)).transpose()
    }

    fn look(&self, record: &Record) -> Shown {
        let device = scsi_disk_now(&scsi::group_dir(record));
        Shown { is_published: device.is_some() && scsi::has_lun(record), device, sessions: Vec::new() }
    }

    fn consumer(&self, record: &Record, _only: Option<&Name>) -> Option<String> {
        let device = scsi_disk_now(&scsi::group_dir(record))?;
        let user = blockdev::exclusive_holder(&device).unwrap_or_else(|e| Some(e.to_string()));
        user.or_else(|| blockdev::openers(&device)).map(|user| format!("{user}, by {}", device.display()))
    }

    fn tell_size(&self, record: &Record) -> Result<()> {
        let disk = scsi_disk_now(&scsi::group_dir(record));
        let Some(name) = disk.as_deref().and_then(Path::file_name) else { return Ok(()) };
        set(&Path::new("/sys/block").join(name).join("device/rescan"), "1")
    }

    fn remove(&self, record: &Record, _deadline: Instant) -> Result<()> {
        scsi::remove_all(record, |group| {
            scsi::remove_lun(group)?;
            if get(&group.join("nexus")).is_empty() { Ok(()) } else { set(&group.join("nexus"), "NULL") }
        })
    }
}

/// Waits for the SCSI disk of a loopback target.
fn scsi_disk(group: &Path, patience: Duration) -> Result<PathBuf> {
    let until = Instant::now() + patience;
    loop {
        if let Some(disk) = scsi_disk_now(group) {
            return Ok(disk);
        }
        if Instant::now() >= until {
            let why = format!("no disk appeared within {} s", patience.as_secs());
            return Err(Error::NoDevice { device: group.display().to_string(), why });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The SCSI disk of a loopback target: `address` is its host, channel and target.
fn scsi_disk_now(group: &Path) -> Option<PathBuf> {
    let address = get(&group.join("address"));
    let number = LUN.strip_prefix("lun_")?;
    let blocks = Path::new("/sys/bus/scsi/devices").join(format!("{address}:{number}")).join("block");
    let name = fs::read_dir(blocks).ok()?.flatten().next()?.file_name();
    let disk = Path::new("/dev").join(name);
    // The node comes after the entry in sysfs.
    disk.exists().then_some(disk)
}
