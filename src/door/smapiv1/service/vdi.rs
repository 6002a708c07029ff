//! The commands of a VDI that change records.

use std::sync::Arc;

use super::cbt::Alert;
use super::migration::Purpose;
use super::{Answer, Service, deadline, identity, now, until};
use crate::call::Unreadable;
use crate::door::host::device;
use crate::door::smapiv1::claim::{self, KEY_HASH};
use crate::door::smapiv1::code::Code;
use crate::door::smapiv1::command::Command;
use crate::door::smapiv1::faults::{Failure, general_fault};
use crate::door::smapiv1::format;
use crate::door::smapiv1::hosts::Hosts;
use crate::door::smapiv1::sync::{self, Introduced};
use crate::door::xapi::{Record, text};
use crate::door::xmlrpc::{self, Value};
use crate::error::{Error, one_line};
use crate::sys::lock::Kind;
use crate::sys::syslog;
use crate::types::{Format, NewVdi, Params, ParamsChange, VdiInfo, VdiUuid};
use crate::vdi::SnapshotSaid;

impl Service<'_> {
    pub(super) fn vdi_create(&mut self) -> Answer {
        self.assert_attached()?;
        let request = self.request;
        let sr_ref = request.text("sr_ref")?;
        let (label, description) = (request.arg(1)?, request.arg(2)?);
        assert_legal(label, description)?;
        let kept = request.map("vdi_sm_config")?;
        claim::refuse_encrypted(kept.get(KEY_HASH).map(String::as_str), general_fault(request.command))?;
        let virtual_size = positive(request.size(0)?)?;
        let format = format::choose(self.driver, &self.config, &kept, virtual_size)?;
        let vdi = match request.optional("vdi_uuid")? {
            Some(uuid) => uuid.parse()?,
            None => VdiUuid::random(),
        };
        let read_only = request.flag(7)?;
        let (metadata_of_pool, is_a_snapshot) = (request.arg(3)?, request.flag(4)?);
        let (snapshot_time, snapshot_of) = (request.arg(5)?, request.arg(6)?);
        let vdi_type = request.text("vdi_type")?;
        let kind = if vdi_type == sync::OF_USER { String::new() } else { vdi_type.to_owned() };
        let params = self.session()?.named(Params { read_only, kind, ..Params::default() }, label, description);
        let new = NewVdi { vdi, virtual_size, format, params };

        let _shared = self.agent_lock(Kind::Shared)?;
        let info = self.session()?.vdi_create(new, &now())?;
        let mut sm_config = self.sm_config(&info);
        sm_config.extend(kept.into_iter().filter(|(key, _)| key == "base_mirror"));
        let row = Introduced {
            label,
            description,
            vdi_type,
            metadata_of_pool,
            is_a_snapshot,
            snapshot_time,
            snapshot_of,
            sm_config,
            ..Introduced::of(&info)
        };
        self.introduce_or_undo(sr_ref, &row, info.uuid)?;
        self.tell_figures(sr_ref, self.summed().then(|| info.virtual_size.into()));
        Ok(identity(&info.uuid.to_string(), &info.location()))
    }

    pub(super) fn vdi_introduce(&mut self) -> Answer {
        self.assert_attached()?;
        let (sr_ref, uuid) = (self.request.text("sr_ref")?, self.request.text("new_uuid")?);
        let uuid: VdiUuid = uuid.parse()?;
        // The disk may have been counted or not, so they all are, as by sr_update.
        let _alone = self.agent_lock(Kind::Exclusive)?;
        let info = self.info()?;
        let mut sm_config = self.request.map("vdi_sm_config")?;
        sm_config.extend(self.sm_config(&info));
        let row = Introduced { uuid: uuid.to_string(), sm_config, ..Introduced::of(&info) };
        sync::introduce(self.xapi()?, sr_ref, &row)?;
        self.tell_figures(sr_ref, None);
        Ok(identity(&uuid.to_string(), &info.location()))
    }

    /// Also asked after every snapshot and clone, whatever a driver announced.
    pub(super) fn vdi_update(&mut self) -> Answer {
        self.assert_attached()?;
        let reference = self.request.text("vdi_ref")?;
        let _shared = self.agent_lock(Kind::Shared)?;
        let info = match self.info() {
            // Of a snapshot whose data was destroyed its log is left.
            Err(Failure::Driver(gone @ Error::NoVdi { .. })) => {
                let log = self.session()?.vdi_log_alone(self.vdi()?, &now()).map_err(|_| gone)?;
                let record = self.xapi()?.record("VDI.get_record", reference)?;
                sync::refresh_log(self.xapi()?, reference, &record, &log)?;
                return Ok(Value::Nil);
            }
            info => info?,
        };
        let sm_config = (self.driver.about.sm_config)(&info);
        let record = self.xapi()?.record("VDI.get_record", reference)?;
        let (label, description) = (text(&record, "name_label"), text(&record, "name_description"));
        assert_legal(label, description)?;
        self.session()?.keep_names(&info, label, description, &now())?;
        sync::refresh(self.xapi()?, reference, &record, &info, &sm_config)?;
        Ok(Value::Nil)
    }

    pub(super) fn vdi_delete(&mut self) -> Answer {
        self.assert_attached()?;
        let sr_ref = self.request.text("sr_ref")?;
        let vdi = self.vdi()?;
        self.refuse_if_elsewhere()?;
        let _shared = self.agent_lock(Kind::Shared)?;
        let info = self.info();
        let size =
            self.summed().then(|| info.as_ref().map_or(0, |info| if info.hidden { 0 } else { info.virtual_size }));
        let hosts = self.hosts_of_log_after(vdi)?;
        self.session()?.vdi_delete(vdi, Unreadable::Deleted, &until(deadline(), hosts))?;
        // Its base may have one child left now.
        self.leaves_work = info.is_ok_and(|info| info.parent.is_some());
        device::forget_activation(vdi);
        device::disconnect(self.sr()?, self.vdi_name()?)?;
        // xapi drops the record itself as well, if this is lost.
        if let (Some(reference), Some(xapi)) = (self.request.optional("vdi_ref")?, self.xapi.as_mut()) {
            let _ = xapi.call("VDI.db_forget", &[Value::text(reference)]);
        }
        self.tell_figures(sr_ref, size.map(|size| -i128::from(size)));
        Ok(Value::Nil)
    }

    pub(super) fn vdi_copy(&mut self) -> Answer {
        self.assert_attached()?;
        let purpose = self.purpose()?;
        let reference = self.request.text("vdi_ref")?;
        let (source, dest) = (self.vdi()?, VdiUuid::random());
        // Read once: whether it may be copied, and what has to be changed in it after.
        let record = self.xapi()?.record("VDI.get_record", reference)?;
        let key_hash = record.get("sm_config").and_then(|map| map.get(KEY_HASH)).and_then(Value::as_str);
        claim::refuse_encrypted(key_hash, general_fault(self.request.command))?;
        let hosts = self.hosts_of_vdi()?;
        let is_clone = self.request.command == Command::VdiClone;
        if let Some(hosts) = &hosts {
            // As on this host: a clone wants the disk unused, and a raw disk can't be paused.
            if is_clone || self.info()?.format == Format::Raw {
                hosts.refuse_if_attached(is_clone)?;
            }
        }
        let Purpose::Source(place) = &purpose else {
            return self.make_copy((reference, &record), (source, dest), hosts, &purpose);
        };
        self.mirror_to(source, hosts.as_deref(), place)?;
        let made = self.make_copy((reference, &record), (source, dest), hosts.clone(), &purpose);
        made.inspect_err(|_| self.unmirror(source, hosts.as_deref()))
    }

    /// Makes the copy `dest` of a VDI and tells xapi. `record`: the reference of the VDI, and its record before.
    fn make_copy(
        &mut self,
        record: (&str, &Record),
        (source, dest): (VdiUuid, VdiUuid),
        hosts: Option<Arc<Hosts>>,
        purpose: &Purpose,
    ) -> Answer {
        let (sr_ref, is_clone) = (self.request.text("sr_ref")?, self.request.command == Command::VdiClone);
        let _shared = self.agent_lock(Kind::Shared)?;
        self.follow_on_boot(source)?;
        let was_tracked = !is_clone && self.is_tracked(source);
        let (session, context) = (self.session()?, until(deadline(), hosts));
        let info = match (is_clone, purpose) {
            (true, _) => session.vdi_clone(source, dest, ParamsChange::default(), &context)?,
            (false, Purpose::Destination) => session.vdi_snapshot_to_receive(source, dest, &context)?,
            (false, _) => session.vdi_snapshot(source, dest, ParamsChange::default(), &context)?,
        };
        self.tell_if_untracked(was_tracked, source, Alert::Snapshot);
        // Its name is xapi's to choose.
        let row = Introduced { label: "", description: "", sm_config: self.sm_config(&info), ..Introduced::of(&info) };
        self.introduce_or_undo(sr_ref, &row, info.uuid)?;
        if let Some(base) = info.parent
            && let Err(failure) = self.info().and_then(|disk| self.introduce_base(sr_ref, record, &disk, base))
        {
            // The disk is made and xapi knows it. The next scan tells the rest.
            let why = self.reason(&failure, self.request.command);
            syslog::write(&format!("xapi was not told of base {base}: {why}"));
        }
        self.tell_figures(sr_ref, self.summed().then(|| info.virtual_size.into()));
        Ok(identity(&info.uuid.to_string(), &info.location()))
    }

    /// Tells xapi of the base that a disk was copied with or taken back to, and that it is the disk's parent now. `record`: the
    /// reference of the disk, and its record before; `disk`: what it is now.
    fn introduce_base(
        &mut self,
        sr_ref: &str,
        record: (&str, &Record),
        disk: &VdiInfo,
        base: VdiUuid,
    ) -> Result<(), Failure> {
        let info = self.session()?.vdi_get_brief(base, &now())?;
        let row = Introduced { sm_config: self.sm_config(&info), ..Introduced::of(&info) };
        match sync::introduce(self.xapi()?, sr_ref, &row) {
            // Another call told xapi already.
            Err(e) if e.is("LOCATION_NOT_UNIQUE") => {}
            other => drop(other?),
        }
        let wanted = (self.driver.about.sm_config)(disk);
        sync::refresh(self.xapi()?, record.0, record.1, disk, &wanted)?;
        Ok(())
    }

    /// Takes the VDI whose reference is the argument back to the VDI of the request, which is a snapshot of it. xapi leaves
    /// the record as it was, so all of it that changes is told here; xcp-ng, "VDI.revert".
    pub(super) fn vdi_revert(&mut self) -> Answer {
        self.assert_attached()?;
        let (sr_ref, reference) = (self.request.text("sr_ref")?, self.request.arg(0)?);
        let snapshot = self.vdi()?;
        let record = self.xapi()?.record("VDI.get_record", reference)?;
        if text(&record, "SR") != sr_ref {
            return Err(Failure::new(Code::BadRequest, "the VDI to be taken back is on another SR"));
        }
        let key_hash = record.get("sm_config").and_then(|map| map.get(KEY_HASH)).and_then(Value::as_str);
        claim::refuse_encrypted(key_hash, general_fault(self.request.command))?;
        let disk = self.session()?.vdi_at(text(&record, "location"))?;
        if let Some(hosts) = self.hosts(disk, text(&record, "uuid"), reference)? {
            hosts.refuse_if_attached(true)?;
        }
        let _shared = self.agent_lock(Kind::Shared)?;
        let session = self.session()?;
        // xapi names the disk that its record has as the origin of the snapshot.
        session.vdi_revert(disk, snapshot, SnapshotSaid::ByAgent, &now())?;
        let info = session.vdi_get_brief(disk, &now())?;
        match info.parent {
            Some(base) => self.introduce_base(sr_ref, (reference, &record), &info, base)?,
            None => {
                let wanted = (self.driver.about.sm_config)(&info);
                sync::refresh(self.xapi()?, reference, &record, &info, &wanted)?;
            }
        }
        let before: i128 = text(&record, "virtual_size").parse().unwrap_or_default();
        self.tell_figures(sr_ref, self.summed().then(|| i128::from(info.virtual_size) - before));
        Ok(Value::Nil)
    }

    pub(super) fn vdi_resize(&mut self) -> Answer {
        self.assert_attached()?;
        let (sr_ref, reference) = (self.request.text("sr_ref")?, self.request.text("vdi_ref")?);
        let (vdi, size) = (self.vdi()?, positive(self.request.size(0)?)?);
        if !device::can_grow(self.sr()?, self.vdi_name()?) {
            return Err(Failure::new(
                Code::VDIInUse,
                "a tapdisk has it open, and does not follow a disk that grows; detach it first",
            ));
        }
        self.refuse_if_elsewhere()?;
        let _shared = self.agent_lock(Kind::Shared)?;
        let info = self.info()?;
        format::check(info.format, size)?;
        let (before, was_tracked) = (info.virtual_size, info.cbt_enabled);
        self.session()?.vdi_resize(vdi, size, false, &now())?;
        self.tell_if_untracked(was_tracked, vdi, Alert::Resize);
        let info = self.info()?;
        let xapi = self.xapi()?;
        xapi.set_number("VDI.set_virtual_size", reference, info.virtual_size)?;
        xapi.set_number("VDI.set_physical_utilisation", reference, info.physical_utilisation)?;
        self.tell_figures(sr_ref, self.summed().then(|| i128::from(info.virtual_size) - i128::from(before)));
        Ok(identity(self.vdi_name()?, &info.location()))
    }

    /// Tells xapi of a disk just made, or unmakes it.
    fn introduce_or_undo(&mut self, sr_ref: &str, row: &Introduced, vdi: VdiUuid) -> Result<(), Failure> {
        let Err(error) = sync::introduce(self.xapi()?, sr_ref, row) else { return Ok(()) };
        if let Err(undo) = self.session()?.vdi_delete(vdi, Unreadable::ImageRefused, &now()) {
            syslog::write(&format!("VDI {vdi} was not removed again: {}", one_line(&undo)));
        }
        Err(error.into())
    }
}

fn positive(size: u64) -> Result<u64, Failure> {
    if size == 0 { Err(Failure::new(Code::VDISize, "a disk has at least one byte")) } else { Ok(size) }
}

/// The names of VDIs go into XML documents of other storage managers, so all refuse the same characters.
fn assert_legal(label: &str, description: &str) -> Result<(), Failure> {
    let illegal = |c: char| {
        let discouraged = matches!(u32::from(c), 0x7f..=0x84 | 0x86..=0x9f | 0xfdd0..=0xfddf);
        !xmlrpc::is_legal(c) || discouraged || u32::from(c) & 0xfffe == 0xfffe
    };
    if label.chars().chain(description.chars()).any(illegal) {
        return Err(Failure::new(
            Code::IllegalXMLChar,
            "the name or the description has a character that XML cannot carry",
        ));
    }
    Ok(())
}
