//! What the fabrics of the SCSI target have in common: the storage object that shows a block device, and the LUN.
//!
//! A storage object is made in this order: directory, alias, device, `enable`, serial. The LUN has number 1: the kernel answers
//! for LUN 0 from an empty disk of its own once LUN 0 is removed, so a reader of it would get zeroes.

use std::path::{Path, PathBuf};

use super::fabric::Parts;
use super::physical::{Hba, no_host};
use super::record::{self, Fabric, Record};
use super::settings::Place;
use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::sys::configfs::{dirs, get, link, links, make, remove, remove_if_empty, set, unlink_all};
use crate::sys::lio::{self, Object, ROOT};
use crate::sys::scsidev::{self, Address};
use crate::types::VdiUuid;

pub const LUN: &str = "lun_1";
pub const GROUP: &str = "tpgt_1";
/// Opens a block device to itself, unlike `fileio`, and so keeps every other user out.
const BLOCK: &str = "iblock";
/// Passes the commands of SCSI on.
pub const PASS_THROUGH: &str = "pscsi";

/// The sort of backstore that a publication has.
fn plugin_of(record: &Record) -> &'static str {
    if record.physical.is_some() { PASS_THROUGH } else { BLOCK }
}

fn backstore_of(record: &Record) -> PathBuf {
    lio::backstore(plugin_of(record), record.backstore)
}

/// The word by which this product knows its storage objects again.
fn alias_of(vdi: VdiUuid) -> String {
    format!("sm:{vdi}")
}

/// Every storage object of this product.
///
/// # Errors
/// [`Error::Io`].
pub fn objects_of_ours() -> Result<Vec<(VdiUuid, String)>> {
    let vdi_of = |object: &Object| object.alias().strip_prefix("sm:")?.parse().ok();
    Ok(lio::objects()?.iter().filter_map(|object| Some((vdi_of(object)?, object.shown()))).collect())
}

/// The storage object of a VDI, whoever made it.
///
/// # Errors
/// [`Error::Io`].
pub fn object_of(vdi: VdiUuid) -> Result<Option<Object>> {
    let name = vdi.to_string();
    let found: Vec<Object> = lio::objects()?.into_iter().filter(|object| object.name() == name).collect();
    let ours = found.iter().find(|object| object.alias() == alias_of(vdi)).cloned();
    Ok(ours.or_else(|| found.into_iter().find(is_bare)))
}

/// The storage object of a VDI that this product made.
///
/// # Errors
/// [`Error::Io`].
pub fn own_object(vdi: VdiUuid) -> Result<Option<Object>> {
    Ok(lio::objects()?.into_iter().find(|object| object.name() == vdi.to_string() && object.alias() == alias_of(vdi)))
}

/// Whether a fabric has a target of a name.
pub fn is_there(fabric: Fabric, target: &str) -> bool {
    Path::new(ROOT).join(fabric.word()).join(target).is_dir()
}

/// Whether a killed call has made the object and nothing else.
fn is_bare(object: &Object) -> bool {
    object.alias().is_empty() && !object.is_enabled() && object.device().is_none()
}

/// The directory of the target of a publication.
pub fn target_dir(record: &Record) -> PathBuf {
    Path::new(ROOT).join(record.fabric.word()).join(&record.target)
}

/// The directory below it that has everything else.
pub fn group_dir(record: &Record) -> PathBuf {
    target_dir(record).join(GROUP)
}

/// The number of a new backstore: that of the SCSI host for a physical HBA, else the lowest that is free.
///
/// # Errors
/// Those of [`lio::free_number`].
pub fn free_number(record: &Record) -> Result<u32> {
    match &record.physical {
        None => lio::free_number(BLOCK, |_| false),
        Some(device) => match (device.hba, device.index) {
            (Hba::Physical, _) => Ok(device.address.host),
            (Hba::Virtual, Some(index)) => Ok(index),
            // The numbers of hosts are left for backstores that are those hosts.
            (Hba::Virtual, None) => lio::free_number(PASS_THROUGH, scsidev::has_host),
        },
    }
}

/// Makes the storage object, and the directories of the target. Answers the object and the directory of the group.
///
/// # Errors
/// [`Error::ForeignTarget`]; [`Error::Io`]; those of [`record::put`].
pub fn publish(record: &mut Record, parts: &Parts) -> Result<(Object, PathBuf)> {
    make_backstore(record, parts.inherited)?;
    let object = storage_object(record, parts.device)?;
    lio::make_fabric(record.fabric.word())?;
    refuse_foreign_lun(record, &object)?;
    let group = group_dir(record);
    make(&target_dir(record))?;
    make(&group)?;
    Ok((object, group))
}

/// Makes the backstore of a publication that has no storage object yet.
fn make_backstore(record: &mut Record, inherited: bool) -> Result<()> {
    if object_of(record.vdi)?.is_some() {
        return Ok(());
    }
    let mut is_own = inherited;
    if let Some(device) = &record.physical
        && device.hba == Hba::Physical
    {
        // The host may have another number since the last start.
        let host = device.find()?.address.host;
        if record.backstore != host {
            record.backstore = host;
            record::put(record)?;
        }
        return physical_backstore(record.backstore).map(drop);
    }
    loop {
        let dir = backstore_of(record);
        if make(&dir)? || is_own && dirs(&dir)?.is_empty() {
            return Ok(());
        }
        if record.physical.as_ref().is_some_and(|device| device.index.is_some()) {
            return Err(Error::TargetExists { object: format!("{PASS_THROUGH}_{}", record.backstore) });
        }
        record.backstore = free_number(record)?;
        record::put(record)?;
        is_own = false;
    }
}

/// Makes the backstore that is a SCSI host, unless there is one. Whether it was made.
///
/// # Errors
/// [`Error::NoDevice`] if there is no such host; [`Error::ForeignTarget`] if the backstore has objects in the other mode.
pub fn physical_backstore(host: u32) -> Result<bool> {
    if !scsidev::has_host(host) {
        return Err(no_host(host));
    }
    let dir = lio::backstore(PASS_THROUGH, host);
    let is_fresh = make(&dir)?;
    if get(&dir.join("hba_mode")) == "1" {
        return Ok(is_fresh);
    }
    match set(&dir.join("hba_mode"), "1") {
        Ok(()) => Ok(is_fresh),
        Err(error) if is_fresh => Err(error.undone(remove(&dir))),
        Err(_) => Err(Error::ForeignTarget {
            object: format!("{PASS_THROUGH}_{host}"),
            why: "it has objects of a virtual HBA".to_owned(),
        }),
    }
}

/// The text by which a device that is passed through is named before it is enabled.
pub fn control_of(address: Address, hba: Hba) -> String {
    let Address { host, channel, target, lun } = address;
    let below = format!("scsi_channel_id={channel},scsi_target_id={target},scsi_lun_id={lun}");
    match hba {
        Hba::Virtual => format!("scsi_host_id={host},{below}"),
        // The backstore is the host, and the kernel refuses to be told it once more.
        Hba::Physical => below,
    }
}

/// Whether an object shows the device at an address.
pub fn shows(object: &Object, address: Address) -> bool {
    passed(&get(&object.path.join("info")), address.host) == Some(address)
}

/// The device that an object of pass-through shows; `None` if it shows none yet.
pub fn device_of(object: &Object) -> Option<Address> {
    passed(&get(&object.path.join("info")), object.number()?)
}

/// The device in the text of `info`: `Channel ID: 0 Target ID: 0 LUN: 1 Host ID: 2`. `host`: the number in place of the word of a
/// backstore that is the SCSI host itself.
fn passed(info: &str, host: u32) -> Option<Address> {
    let after = |word: &str| info.split_once(word)?.1.split_whitespace().next();
    let host = match after("Host ID: ")? {
        "PHBA" => host,
        number => number.parse().ok()?,
    };
    let number = |word: &str| after(word)?.parse().ok();
    Some(Address {
        host,
        channel: number("Channel ID: ")?,
        target: number("Target ID: ")?,
        lun: after("LUN: ")?.parse().ok()?,
    })
}

fn storage_object(record: &Record, device: &Path) -> Result<Object> {
    let address = record.physical.as_ref().map(|it| it.find()).transpose()?.map(|it| it.address);
    let is_right = |object: &Object| match address {
        Some(address) => shows(object, address),
        None => object.device() == blockdev::number(device),
    };
    let object = match object_of(record.vdi)? {
        Some(object) => object,
        None => {
            let path = backstore_of(record).join(record.vdi.to_string());
            make(&path)?;
            Object { path }
        }
    };
    let at = |name: &str| object.path.join(name);
    if object.is_enabled() {
        if !is_right(&object) {
            return Err(Error::ForeignTarget {
                object: object.shown(),
                why: format!(
                    "it shows another device than {}; sm target unpublish --force removes it",
                    device.display()
                ),
            });
        }
        finish_object(record, &object)?;
        return Ok(object);
    }
    set(&at("alias"), &alias_of(record.vdi))?;
    let control = match (address, &record.physical) {
        (Some(address), Some(physical)) => control_of(address, physical.hba),
        _ => format!("udev_path={},readonly={}", device.display(), u8::from(record.read_only)),
    };
    set(&at("control"), &control)?;
    set(&at("udev_path"), &device.display().to_string())?;
    set(&at("enable"), "1")?;
    if !is_right(&object) {
        let why = format!("it shows {}, not {}", get(&at("info")), device.display());
        return Err(Error::ForeignTarget { object: object.shown(), why });
    }
    finish_object(record, &object)?;
    Ok(object)
}

/// Gives an enabled object the serial number by which initiators name the disk, unless it has it. The kernel takes it before
/// the first LUN only. Without it, all disks of a host have one name.
fn finish_object(record: &Record, object: &Object) -> Result<()> {
    // A device that is passed through has a number of its own.
    if record.physical.is_some() {
        return Ok(());
    }
    let (serial, number) = (object.path.join("wwn/vpd_unit_serial"), record.vdi.to_string());
    if !get(&serial).ends_with(&number) {
        set(&serial, &number)?;
        // Space that the consumer frees is given back. A device that cannot do that refuses the attribute.
        let _ = set(&object.path.join("attrib/emulate_tpu"), "1");
    }
    Ok(())
}

/// Refuses to take over a target of our name whose LUN is another object.
fn refuse_foreign_lun(record: &Record, object: &Object) -> Result<()> {
    let lun = group_dir(record).join("lun").join(LUN);
    let foreign = links(&lun).into_iter().find(|to| *to != object.path);
    foreign.map_or(Ok(()), |to| {
        let why = format!("its {LUN} shows {}, which is not this VDI", to.display());
        Err(Error::ForeignTarget { object: format!("{}/{}", record.fabric.word(), record.target), why })
    })
}

/// Makes the LUN.
///
/// # Errors
/// [`Error::Io`].
pub fn make_lun(record: &Record, object: &Object, group: &Path) -> Result<()> {
    let lun = group.join("lun").join(LUN);
    make(&lun)?;
    if links(&lun).is_empty() {
        link(&object.path, &lun.join(record.vdi.to_string()))?;
    }
    Ok(())
}

/// Where the kernel has the attributes of the storage object.
///
/// # Errors
/// [`Error::Io`].
pub fn attributes(record: &Record) -> Result<Place> {
    let dir = object_of(record.vdi)?.map(|object| object.path.join("attrib")).unwrap_or_default();
    Ok(Place { dir, prefix: "", ours: &[] })
}

/// Whether the LUN shows the VDI.
pub fn has_lun(record: &Record) -> bool {
    let object = object_of(record.vdi).ok().flatten().filter(Object::is_enabled);
    object.is_some_and(|object| links(&group_dir(record).join("lun").join(LUN)).contains(&object.path))
}

/// Removes a publication. `fabric`: removes what the fabric has below the group's directory, and calls `lun` for the LUN.
///
/// # Errors
/// [`Error::Io`] with what the kernel refused.
pub fn remove_all(record: &Record, fabric: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let object = object_of(record.vdi)?;
    let (target, group) = (target_dir(record), group_dir(record));
    let is_ours = |to: &PathBuf| object.as_ref().is_some_and(|object| object.path == *to);
    if links(&group.join("lun").join(LUN)).iter().all(is_ours) && target.is_dir() {
        fabric(&group)?;
        remove(&group)?;
        remove(&target)?;
    }
    if let Some(object) = &object {
        remove(&object.path)?;
    }
    remove_if_empty(&backstore_of(record))
}

/// Removes the LUN.
///
/// # Errors
/// [`Error::Io`] while an initiator has it mapped.
pub fn remove_lun(group: &Path) -> Result<()> {
    let lun = group.join("lun").join(LUN);
    unlink_all(&lun)?;
    remove(&lun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_an_object_of_pass_through_is_read_from_its_text() {
        let text = |host: &str| {
            format!(
                "Status: ACTIVATED  Max Queue Depth: 0\n        SCSI Device Bus Location: Channel ID: 1 Target ID: 20 LUN: 3 Host ID: {host}\n        \
                 Vendor: Linux    Model: scsi_debug\n"
            )
        };
        let at = |address: &str| Some(address.parse().unwrap());
        assert_eq!(passed(&text("2"), 7), at("2:1:20:3"));
        assert_eq!(passed(&text("PHBA"), 7), at("7:1:20:3"));
        for bad in ["", "Status: DEACTIVATED", &text(""), &text("x")] {
            assert_eq!(passed(bad, 7), None, "{bad}");
        }
    }
}
