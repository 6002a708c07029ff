//! A publication in the kernel: made so that each step may have been done already, and removed in the only order that the
//! kernel takes.
//!
//! Order in which a disk is published: storage object, its alias, its device, `enable`, serial; then the fabric's target, its
//! LUN, initiators with their secrets, portals, and at last the target's `enable`. A kill between any two leaves objects that
//! nobody can reach. The LUN has number 1: the kernel answers for LUN 0 from an empty disk of its own once LUN 0 is removed,
//! so a reader of it would get zeroes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::name::loopback_name;
use super::record::{Fabric, Initiator, Record, Secrets};
use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::sys::lio::{self, Object, ROOT};
use crate::types::VdiUuid;

const LUN: &str = "lun_1";
const GROUP: &str = "tpgt_1";
/// Opens a block device to itself, unlike `fileio`, and so keeps every other user out.
const PLUGIN: &str = "iblock";

/// The word by which this product knows its storage objects again.
fn alias_of(vdi: VdiUuid) -> String {
    format!("sm:{vdi}")
}

/// The VDI of a storage object of this product.
pub fn published_by_us(object: &Object) -> Option<VdiUuid> {
    object.alias().strip_prefix("sm:")?.parse().ok()
}

/// Loads what a fabric needs.
///
/// # Errors
/// [`Error::NoTarget`] if the kernel lacks it.
pub fn prepare(fabric: Fabric) -> Result<()> {
    match fabric {
        Fabric::Iscsi => lio::prepare(&["iscsi_target_mod"]),
        Fabric::Loopback => lio::prepare(&["tcm_loop", "sd_mod"]),
    }
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

/// Whether a killed call has made the object and nothing else.
fn is_bare(object: &Object) -> bool {
    object.alias().is_empty() && !object.is_enabled() && object.device().is_none()
}

/// The directory of the target of a publication.
fn target_dir(record: &Record) -> PathBuf {
    Path::new(ROOT).join(record.fabric.word()).join(&record.target)
}

/// Makes the backstore of a publication that has no storage object yet. If the record's number is taken, `keep` stores the record
/// with another before that is made. `inherited`: a killed call may have made it already.
///
/// # Errors
/// [`Error::Io`]; that of `keep`.
pub fn make_backstore(record: &mut Record, inherited: bool, keep: impl Fn(&Record) -> Result<()>) -> Result<()> {
    if object_of(record.vdi)?.is_some() {
        return Ok(());
    }
    let mut is_own = inherited;
    loop {
        let dir = lio::backstore(PLUGIN, record.backstore);
        if lio::make(&dir)? || is_own && lio::dirs(&dir)?.is_empty() {
            return Ok(());
        }
        record.backstore = lio::free_number(PLUGIN)?;
        keep(record)?;
        is_own = false;
    }
}

/// The number that a new publication begins with.
///
/// # Errors
/// Those of [`lio::free_number`].
pub fn free_backstore() -> Result<u32> {
    lio::free_number(PLUGIN)
}

/// Publishes the block device of a VDI as the record says. Idempotent. Answers the SCSI disk of the loopback fabric.
///
/// # Errors
/// [`Error::ForeignTarget`] if an object with a name of ours is somebody else's; [`Error::Io`] with what the kernel refused.
pub fn publish(record: &Record, secrets: &Secrets, device: &Path) -> Result<Option<PathBuf>> {
    let object = storage_object(record, device)?;
    lio::make(&Path::new(ROOT).join(record.fabric.word()))?;
    let (target, group) = (target_dir(record), target_dir(record).join(GROUP));
    refuse_foreign_lun(record, &object)?;
    lio::make(&target)?;
    lio::make(&group)?;
    match record.fabric {
        Fabric::Iscsi => {
            iscsi(record, secrets, &object, &group)?;
            Ok(None)
        }
        Fabric::Loopback => {
            if lio::get(&group.join("nexus")).is_empty() {
                lio::set(&group.join("nexus"), &loopback_name(record.vdi, "initiator"))?;
            }
            lun(record, &object, &group)?;
            scsi_disk(&group, Duration::from_secs(10)).map(Some)
        }
    }
}

fn storage_object(record: &Record, device: &Path) -> Result<Object> {
    let number = blockdev::number(device);
    let object = match object_of(record.vdi)? {
        Some(object) => object,
        None => {
            let path = lio::backstore(PLUGIN, record.backstore).join(record.vdi.to_string());
            lio::make(&path)?;
            Object { path }
        }
    };
    let at = |name: &str| object.path.join(name);
    if object.is_enabled() {
        if object.device() != number {
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
    lio::set(&at("alias"), &alias_of(record.vdi))?;
    let read_only = u8::from(record.read_only);
    lio::set(&at("control"), &format!("udev_path={},readonly={read_only}", device.display()))?;
    lio::set(&at("udev_path"), &device.display().to_string())?;
    lio::set(&at("enable"), "1")?;
    if object.device() != number {
        let why = format!("it shows {}, not {}", lio::get(&at("info")), device.display());
        return Err(Error::ForeignTarget { object: object.shown(), why });
    }
    finish_object(record, &object)?;
    Ok(object)
}

/// Gives an enabled object the serial number by which initiators name the disk, unless it has it. The kernel takes it before
/// the first LUN only. Without it, all disks of a host have one name.
fn finish_object(record: &Record, object: &Object) -> Result<()> {
    let (serial, number) = (object.path.join("wwn/vpd_unit_serial"), record.vdi.to_string());
    if !lio::get(&serial).ends_with(&number) {
        lio::set(&serial, &number)?;
        // Space that the consumer frees is given back. A device that cannot do that refuses the attribute.
        let _ = lio::set(&object.path.join("attrib/emulate_tpu"), "1");
    }
    Ok(())
}

/// Refuses to take over a target of our name whose LUN is another object.
fn refuse_foreign_lun(record: &Record, object: &Object) -> Result<()> {
    let lun = target_dir(record).join(GROUP).join("lun").join(LUN);
    let foreign = lio::links(&lun).into_iter().find(|to| *to != object.path);
    foreign.map_or(Ok(()), |to| {
        let why = format!("its {LUN} shows {}, which is not this VDI", to.display());
        Err(Error::ForeignTarget { object: format!("{}/{}", record.fabric.word(), record.target), why })
    })
}

fn lun(record: &Record, object: &Object, group: &Path) -> Result<()> {
    let lun = group.join("lun").join(LUN);
    lio::make(&lun)?;
    if lio::links(&lun).is_empty() {
        lio::link(&object.path, &lun.join(record.vdi.to_string()))?;
    }
    Ok(())
}

fn iscsi(record: &Record, secrets: &Secrets, object: &Object, group: &Path) -> Result<()> {
    // With the first, every initiator would see the LUN; with the second, strangers would see the target's name.
    lio::set(&group.join("attrib/generate_node_acls"), "0")?;
    lio::set(&group.join("attrib/demo_mode_discovery"), "0")?;
    lio::set(&group.join("attrib/authentication"), if record.authenticated { "1" } else { "0" })?;
    lun(record, object, group)?;
    let meant = |path: &Path| record.initiators.iter().any(|it| path.ends_with(it.name.as_str()));
    for acl in lio::dirs(&group.join("acls"))?.iter().filter(|path| !meant(path)) {
        remove_acl(acl)?;
    }
    for initiator in &record.initiators {
        acl(record, secrets, initiator, group)?;
    }
    for portal in &record.portals {
        lio::make(&group.join("np").join(portal.to_string()))?;
    }
    if lio::get(&group.join("enable")) != "1" {
        lio::set(&group.join("enable"), "1")?;
    }
    Ok(())
}

fn acl(record: &Record, secrets: &Secrets, initiator: &Initiator, group: &Path) -> Result<()> {
    let acl = group.join("acls").join(initiator.name.as_str());
    lio::make(&acl)?;
    if let Some(chap) = secrets.get(&initiator.name) {
        let auth = acl.join("auth");
        lio::set(&auth.join("userid"), &chap.userid)?;
        lio::set(&auth.join("password"), &chap.password)?;
        let (name, secret) = chap.mutual.as_ref().map_or(("NULL", "NULL"), |(name, secret)| (name, secret));
        lio::set(&auth.join("userid_mutual"), name)?;
        lio::set(&auth.join("password_mutual"), secret)?;
    }
    let mapped = acl.join(LUN);
    lio::make(&mapped)?;
    if lio::links(&mapped).is_empty() {
        lio::link(&group.join("lun").join(LUN), &mapped.join(record.vdi.to_string()))?;
    }
    lio::set(&mapped.join("write_protect"), if initiator.read_only { "1" } else { "0" })
}

fn remove_acl(acl: &Path) -> Result<()> {
    for mapped in lio::dirs(acl)?.iter().filter(|dir| dir.file_name().is_some_and(is_lun)) {
        lio::unlink_all(mapped)?;
        lio::remove(mapped)?;
    }
    lio::remove(acl)
}

fn is_lun(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with("lun_")
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
    let address = lio::get(&group.join("address"));
    let number = LUN.strip_prefix("lun_")?;
    let blocks = Path::new("/sys/bus/scsi/devices").join(format!("{address}:{number}")).join("block");
    let name = fs::read_dir(blocks).ok()?.flatten().next()?.file_name();
    let disk = Path::new("/dev").join(name);
    // The node comes after the entry in sysfs.
    disk.exists().then_some(disk)
}

/// What the kernel shows of a publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The disk can be reached.
    pub is_published: bool,
    /// The SCSI disk of the loopback fabric.
    pub device: Option<PathBuf>,
    /// The initiators that are logged in.
    pub sessions: Vec<String>,
}

/// Looks at a publication. A part that is missing is no error.
pub fn look(record: &Record) -> Shown {
    let group = target_dir(record).join(GROUP);
    let object = object_of(record.vdi).ok().flatten().filter(Object::is_enabled);
    let shows = |dir: PathBuf| object.as_ref().is_some_and(|object| lio::links(&dir).contains(&object.path));
    let has_lun = shows(group.join("lun").join(LUN));
    let device = (record.fabric == Fabric::Loopback).then(|| scsi_disk_now(&group)).flatten();
    let is_open = match record.fabric {
        Fabric::Iscsi => {
            let mapped = |it: &Initiator| !lio::links(&group.join("acls").join(it.name.as_str()).join(LUN)).is_empty();
            lio::get(&group.join("enable")) == "1"
                && record.initiators.iter().all(mapped)
                && record.portals.iter().all(|portal| group.join("np").join(portal.to_string()).is_dir())
        }
        Fabric::Loopback => device.is_some(),
    };
    let sessions = record.initiators.iter().filter(|it| has_session(&group, it.name.as_str()));
    Shown { is_published: has_lun && is_open, device, sessions: sessions.map(|it| it.name.to_string()).collect() }
}

fn has_session(group: &Path, initiator: &str) -> bool {
    let info = lio::get(&group.join("acls").join(initiator).join("info"));
    !info.is_empty() && !info.starts_with("No active")
}

/// The consumer that would lose the disk, if it were unpublished now.
pub fn consumer(record: &Record) -> Option<String> {
    let shown = look(record);
    if let Some(device) = &shown.device {
        let disk = device.display();
        let user = blockdev::exclusive_holder(device).unwrap_or_else(|e| Some(e.to_string()));
        return user.or_else(|| blockdev::openers(device)).map(|user| format!("{user}, by {disk}"));
    }
    (!shown.sessions.is_empty()).then(|| format!("{}, who are logged in", shown.sessions.join(", ")))
}

/// The session of one initiator, if it is logged in.
pub fn is_logged_in(record: &Record, initiator: &str) -> bool {
    has_session(&target_dir(record).join(GROUP), initiator)
}

/// Removes a publication from the kernel. Idempotent; objects that are not of this VDI stay.
///
/// # Errors
/// [`Error::Io`] with what the kernel refused.
pub fn remove(record: &Record) -> Result<()> {
    let object = object_of(record.vdi)?;
    let (target, group) = (target_dir(record), target_dir(record).join(GROUP));
    let lun = group.join("lun").join(LUN);
    let is_ours = |to: &PathBuf| object.as_ref().is_some_and(|object| object.path == *to);
    if lio::links(&lun).iter().all(is_ours) && target.is_dir() {
        match record.fabric {
            Fabric::Iscsi => {
                // No reader gets another disk, or zeroes: the way to the LUN goes first, then the sessions.
                for acl in lio::dirs(&group.join("acls"))? {
                    for mapped in lio::dirs(&acl)?.iter().filter(|dir| dir.file_name().is_some_and(is_lun)) {
                        lio::unlink_all(mapped)?;
                        lio::remove(mapped)?;
                    }
                }
                if lio::get(&group.join("enable")) == "1" {
                    lio::set(&group.join("enable"), "0")?;
                }
                for acl in lio::dirs(&group.join("acls"))? {
                    remove_acl(&acl)?;
                }
                remove_lun(&lun)?;
                for portal in lio::dirs(&group.join("np"))? {
                    lio::remove(&portal)?;
                }
            }
            Fabric::Loopback => {
                remove_lun(&lun)?;
                if !lio::get(&group.join("nexus")).is_empty() {
                    lio::set(&group.join("nexus"), "NULL")?;
                }
            }
        }
        lio::remove(&group)?;
        lio::remove(&target)?;
    }
    if let Some(object) = &object {
        lio::remove(&object.path)?;
    }
    lio::remove_if_empty(&lio::backstore(PLUGIN, record.backstore))
}

fn remove_lun(lun: &Path) -> Result<()> {
    lio::unlink_all(lun)?;
    lio::remove(lun)
}
