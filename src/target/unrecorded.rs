//! Publications that the kernel has and no record tells of: `/var/lib/sm` was lost or came back from a backup, or the record is damaged.
//!
//! The names of the kernel's objects hold the UUID of the VDI, so what is needed to remove them is read from there.

use std::path::Path;

use super::name::{Name, loopback_name};
use super::nvme;
use super::physical::{Hba, Physical};
use super::record::{Fabric, Initiator, Record, Stage};
use super::scsi;
use super::source::Source;
use crate::context::Context;
use crate::error::Result;
use crate::sys::configfs::{dirs, entries, get};
use crate::sys::lio::{self, ROOT};
use crate::sys::nvmet;
use crate::sys::scsidev::{self, Address};
use crate::types::{VdiUuid, seconds_now};

/// What the kernel publishes of a VDI, as a record that is good for its removal alone; `None` if it publishes nothing of it.
///
/// # Errors
/// [`crate::error::Error::VdiInUse`] if the kernel shows a disk of this UUID that is another one: that of another SR; [`crate::error::Error::Io`]; those of the SR.
pub fn of(source: &Source, context: &Context) -> Result<Option<Record>> {
    if let Source::Device(device) = source {
        // It is its alias that says that it is ours: no disk of an SR has the name.
        return Ok(of_scsi(source)?.map(|(record, _)| record).filter(|_| device.known_as.is_some()));
    }
    let found = match of_nvme(source)? {
        Some(found) => Some(found),
        None => of_scsi(source)?,
    };
    let Some((record, device)) = found else { return Ok(None) };
    match source.is_marked(device, context)? {
        true => Ok(Some(record)),
        false => Err(source.in_use(format!(
            "a disk of its UUID that this host publishes as {}, and that may be of another SR",
            record.target
        ))),
    }
}

/// The device that the kernel passes through under a UUID, if this product made that; `None` if it passes none.
///
/// # Errors
/// [`crate::error::Error::Io`].
pub fn device(id: VdiUuid) -> Result<Option<Physical>> {
    let Some(object) = scsi::own_object(id)? else { return Ok(None) };
    if !object.is_of(scsi::PASS_THROUGH) {
        return Ok(None);
    }
    // A killed call has made an object that shows no device yet.
    let address = scsi::device_of(&object).unwrap_or(Address { host: 0, channel: 0, target: 0, lun: 0 });
    let wwid = scsidev::at(address).map(|device| device.wwid).unwrap_or_default();
    Ok(Some(Physical { address, wwid, hba: Hba::Virtual, index: None, known_as: Some(id) }))
}

fn begun(source: &Source, fabric: Fabric, target: String) -> Record {
    let mut record = Record::new(source, fabric, target, seconds_now().unwrap_or_default());
    record.stage = Stage::Removing;
    record
}

fn of_scsi(source: &Source) -> Result<Option<(Record, Option<u64>)>> {
    let vdi = source.id();
    let object = scsi::own_object(vdi)?;
    let iscsi = named(&Path::new(ROOT).join(Fabric::Iscsi.word()), vdi)?;
    let loopback = loopback_name(vdi, "target");
    let mut record = match iscsi {
        Some(target) => begun(source, Fabric::Iscsi, target),
        None if object.is_some() || scsi::is_there(Fabric::Loopback, &loopback) => {
            begun(source, Fabric::Loopback, loopback)
        }
        None => return Ok(None),
    };
    if let Some(number) = object.as_ref().and_then(lio::Object::number) {
        record.backstore = number;
    }
    if record.fabric == Fabric::Iscsi {
        let names = dirs(&scsi::group_dir(&record).join("acls"))?;
        record.initiators = names.iter().filter_map(|path| initiator(path, Name::iscsi)).collect();
    }
    Ok(Some((record, object.and_then(|object| object.device()))))
}

fn of_nvme(source: &Source) -> Result<Option<(Record, Option<u64>)>> {
    let Some((subsystem, device)) = nvme::own_subsystem(source.id())? else { return Ok(None) };
    let Some(target) = name_of(&subsystem) else { return Ok(None) };
    let mut record = begun(source, Fabric::NvmeTcp, target);
    let hosts = entries(&subsystem.join("allowed_hosts"))?;
    record.initiators = hosts.iter().filter_map(|path| initiator(path, Name::nvme)).collect();
    for host in &mut record.initiators {
        // No record tells who made it. One of this product holds nothing; a key is somebody's.
        host.foreign = !get(&nvmet::host(host.name.as_str()).join("dhchap_key")).is_empty();
    }
    Ok(Some((record, device)))
}

/// The target of this product for a VDI in the directory of a fabric.
fn named(fabric: &Path, vdi: VdiUuid) -> Result<Option<String>> {
    let end = format!(":{vdi}");
    Ok(dirs(fabric)?.iter().filter_map(|path| name_of(path)).find(|name| name.ends_with(&end)))
}

fn name_of(path: &Path) -> Option<String> {
    path.file_name().and_then(|name| name.to_str()).map(str::to_owned)
}

fn initiator<E>(path: &Path, parse: impl Fn(&str) -> Result<Name, E>) -> Option<Initiator> {
    let name = parse(&name_of(path)?).ok()?;
    Some(Initiator { name, read_only: false, foreign: false })
}
