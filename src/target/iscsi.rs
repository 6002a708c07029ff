//! Disks for other hosts by iSCSI.
//!
//! After the storage object come the target, its LUN, initiators with their secrets, portals, and at last the target's `enable`. A
//! kill between any two leaves objects that nobody can reach.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::fabric::{Facts, Kind, Network, Parts, Shown};
use super::name::{Name, iqn_of};
use super::record::{Initiator, Record, Secrets};
use super::scsi::{self, LUN};
use super::settings::{Place, Sort};
use crate::error::Result;
use crate::sys::configfs::{dirs, get, link, links, make, remove, set, unlink_all};
use crate::sys::lio::{self, Object};
use crate::types::{Misread, VdiUuid};

pub struct Iscsi;

static FACTS: Facts = Facts {
    help: "Other hosts, as a SCSI disk by TCP",
    network: Some(Network { consumer: "initiator", port: 3260, has_secrets: true, tells_sessions: true }),
    writable_only: None,
};

impl Kind for Iscsi {
    fn facts(&self) -> &'static Facts {
        &FACTS
    }

    fn consumer_name(&self, text: &str) -> Result<Name, Misread> {
        Name::iscsi(text)
    }

    fn target_name(&self, prefix: &str, vdi: VdiUuid) -> Result<String> {
        Ok(iqn_of(prefix, vdi)?.to_string())
    }

    fn prepare(&self) -> Result<()> {
        lio::prepare(&["iscsi_target_mod"])
    }

    fn number(&self, record: &Record) -> Result<u32> {
        scsi::free_number(record)
    }

    fn has_foreign(&self, _consumer: &Name) -> Result<bool> {
        // An initiator's object is below the target of the VDI.
        Ok(false)
    }

    fn publish(&self, record: &mut Record, parts: &Parts) -> Result<Option<PathBuf>> {
        let (object, group) = scsi::publish(record, parts)?;
        open(record, parts.secrets, &object, &group).map(|()| None)
    }

    fn settings(&self, record: &Record, sort: Sort) -> Result<Option<Place>> {
        Ok(Some(match sort {
            Sort::Attribute => scsi::attributes(record)?,
            Sort::Parameter => Place { dir: scsi::group_dir(record).join("param"), prefix: "", ours: &["AuthMethod"] },
        }))
    }

    fn look(&self, record: &Record) -> Shown {
        let group = scsi::group_dir(record);
        let mapped = |it: &Initiator| !links(&group.join("acls").join(it.name.as_str()).join(LUN)).is_empty();
        let is_open = get(&group.join("enable")) == "1"
            && record.initiators.iter().all(mapped)
            && record.portals.iter().all(|portal| group.join("np").join(portal.to_string()).is_dir());
        let sessions = record.initiators.iter().filter(|it| has_session(&group, &it.name));
        Shown {
            is_published: is_open && scsi::has_lun(record),
            device: None,
            sessions: sessions.map(|it| it.name.to_string()).collect(),
        }
    }

    fn consumer(&self, record: &Record, only: Option<&Name>) -> Option<String> {
        let group = scsi::group_dir(record);
        if let Some(name) = only {
            return has_session(&group, name).then(|| format!("initiator {name}, who is logged in"));
        }
        let names = record.initiators.iter().filter(|it| has_session(&group, &it.name));
        let names: Vec<&str> = names.map(|it| it.name.as_str()).collect();
        (!names.is_empty()).then(|| format!("{}, who are logged in", names.join(", ")))
    }

    fn tell_size(&self, _record: &Record) -> Result<()> {
        // The kernel shows the device's size at any time, and an initiator asks when it rescans.
        Ok(())
    }

    fn remove(&self, record: &Record, _deadline: Instant) -> Result<()> {
        scsi::remove_all(record, |group| {
            let acls = dirs(&group.join("acls"))?;
            // No reader gets another disk, or zeroes: the way to the LUN goes first, then the sessions.
            acls.iter().try_for_each(|acl| unmap(acl))?;
            if get(&group.join("enable")) == "1" {
                set(&group.join("enable"), "0")?;
            }
            acls.iter().try_for_each(|acl| remove(acl))?;
            scsi::remove_lun(group)?;
            dirs(&group.join("np"))?.iter().try_for_each(|portal| remove(portal))
        })
    }
}

fn open(record: &Record, secrets: &Secrets, object: &Object, group: &Path) -> Result<()> {
    // With the first, every initiator would see the LUN; with the second, strangers would see the target's name.
    set(&group.join("attrib/generate_node_acls"), "0")?;
    set(&group.join("attrib/demo_mode_discovery"), "0")?;
    set(&group.join("attrib/authentication"), if record.authenticated { "1" } else { "0" })?;
    scsi::make_lun(record, object, group)?;
    let meant = |path: &Path| record.initiators.iter().any(|it| path.ends_with(it.name.as_str()));
    for acl in dirs(&group.join("acls"))?.iter().filter(|path| !meant(path)) {
        unmap(acl)?;
        remove(acl)?;
    }
    for initiator in &record.initiators {
        let acl = group.join("acls").join(initiator.name.as_str());
        make(&acl)?;
        set_secrets(secrets, &initiator.name, &acl)?;
        let mapped = acl.join(LUN);
        make(&mapped)?;
        if links(&mapped).is_empty() {
            link(&group.join("lun").join(LUN), &mapped.join(record.vdi.to_string()))?;
        }
        set(&mapped.join("write_protect"), if initiator.read_only { "1" } else { "0" })?;
    }
    for portal in &record.portals {
        make(&group.join("np").join(portal.to_string()))?;
    }
    if get(&group.join("enable")) != "1" {
        set(&group.join("enable"), "1")?;
    }
    Ok(())
}

fn set_secrets(secrets: &Secrets, initiator: &Name, acl: &Path) -> Result<()> {
    let Some(chap) = secrets.get(initiator) else { return Ok(()) };
    let auth = acl.join("auth");
    set(&auth.join("userid"), &chap.userid)?;
    set(&auth.join("password"), &chap.password)?;
    let (name, secret) = chap.mutual.as_ref().map_or(("NULL", "NULL"), |(name, secret)| (name, secret));
    set(&auth.join("userid_mutual"), name)?;
    set(&auth.join("password_mutual"), secret)
}

/// Takes the LUN from an initiator.
fn unmap(acl: &Path) -> Result<()> {
    let is_lun = |dir: &&PathBuf| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lun_"));
    for mapped in dirs(acl)?.iter().filter(is_lun) {
        unlink_all(mapped)?;
        remove(mapped)?;
    }
    Ok(())
}

fn has_session(group: &Path, initiator: &Name) -> bool {
    let info = get(&group.join("acls").join(initiator.as_str()).join("info"));
    !info.is_empty() && !info.starts_with("No active")
}
