//! The commands of SMAPIv1: which calls of the driver each makes, and what xapi has to be told of them.
//!
//! The substrate is changed first and xapi told after, so what a kill or a dead xapi leaves between the two
//! is what the next sr_scan finds and repairs: a disk without a record is introduced, a record without a disk
//! is forgotten, old figures are corrected. Only what makes a disk (vdi_create, vdi_clone, vdi_snapshot) undoes its
//! work when xapi can't be told: its caller is told that there is no such disk.
//!
//! The lock `<sr>/agent` keeps a scan from seeing a disk between its making and its introduction: who changes
//! disks and records shares it, a scan has it alone. xapi answers none of the calls made under it by calling
//! a driver.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::attached;
use super::claim::{self, KEY_HASH, Tag};
use super::command::Command;
use super::faults::{self, Attempt, Code, Failure, general_fault};
use super::format;
use super::hosts::Hosts;
use super::request::Request;
use super::sync::{self, Introduced};
use crate::call::{self, Call, Reply};
use crate::context::{Context, OtherHosts};
use crate::door::host;
use crate::door::host::device;
use crate::door::xapi::{Record, Xapi, text};
use crate::door::xmlrpc::{self, Value};
use crate::error::Error;
use crate::sr::{Driver, Sr};
use crate::sys::lock::{self, Kind, Lock, Refused};
use crate::sys::{bind, run_dir, syslog};
use crate::types::{
    DeviceConfig, Format, Mode, NewVdi, Overwrite, Params, Space, SrInfo, SrUuid, Tagged, VdiInfo, VdiUuid,
};

/// The end of the waits of what begins now.
fn deadline() -> Instant {
    Instant::now() + patience()
}

/// xapi has no time limit; whoever holds a lock this long has died in the kernel.
fn patience() -> Duration {
    host::patience(Duration::from_secs(600))
}

type Answer = Result<Value, Failure>;

/// The lock of who changes figures by adding to them.
const FIGURES: &str = "figures";

/// One request on one SR.
pub struct Service<'a> {
    driver: &'static Driver,
    request: &'a Request,
    /// The request's, with the secrets that it names by reference.
    config: DeviceConfig,
    /// There is none to probe.
    sr: Option<SrUuid>,
    xapi: Option<Xapi>,
}

impl<'a> Service<'a> {
    pub fn new(driver: &'static Driver, request: &'a Request) -> Result<Service<'a>, Failure> {
        let sr = match request.optional("sr_uuid")? {
            Some(text) => Some(text.parse::<SrUuid>()?),
            None => None,
        };
        let task = request.optional("subtask_of")?;
        let xapi = request.optional("session_ref")?.map(|session| Xapi::new(session, task));
        Ok(Service { driver, request, config: request.device_config.clone(), sr, xapi })
    }

    pub fn run(&mut self) -> Answer {
        let command = self.request.command;
        if command.wants_master() && self.request.device_config.get("SRmaster") == Some("false") {
            return Err(Failure::new(Code::LVMMaster, format!("{} on this host", command.name())));
        }
        match command {
            Command::SrGetDriverInfo => unreachable!("it is answered before"),
            Command::SrProbe => self.sr_probe(),
            Command::SrCreate => self.sr_create(),
            Command::SrDelete => self.sr_delete(),
            Command::SrAttach => self.sr_attach(),
            Command::SrDetach => self.sr_detach(),
            Command::SrScan => self.sr_scan(),
            Command::SrUpdate => self.sr_update(),
            Command::SrContentType => self.sr_content_type(),
            Command::VdiCreate => self.vdi_create(),
            Command::VdiIntroduce => self.vdi_introduce(),
            Command::VdiUpdate => self.vdi_update(),
            Command::VdiDelete => self.vdi_delete(),
            Command::VdiSnapshot | Command::VdiClone => self.vdi_copy(),
            Command::VdiResize | Command::VdiResizeOnline => self.vdi_resize(),
            Command::VdiAttach => self.vdi_attach(),
            Command::VdiActivate => self.vdi_activate(),
            Command::VdiDeactivate => self.vdi_deactivate(),
            Command::VdiDetach => self.vdi_detach(),
            Command::VdiGenerateConfig => self.vdi_generate_config(),
            Command::VdiAttachFromConfig => self.vdi_attach_from_config(),
            Command::VdiDetachFromConfig => self.vdi_detach_from_config(),
            // xapi asks this of every disk at the start of its VM.
            Command::VdiEpochBegin if self.request.optional("vdi_on_boot")? != Some("reset") => Ok(Value::Nil),
            Command::VdiEpochEnd => Ok(Value::Nil),
            Command::VdiEpochBegin
            | Command::VdiRevert
            | Command::VdiCompose
            | Command::VdiEnableCbt
            | Command::VdiDisableCbt
            | Command::VdiDataDestroy
            | Command::VdiListChangedBlocks => Err(Failure::new(Code::Unimplemented, command.name())),
        }
    }

    // SR commands

    fn sr_probe(&self) -> Answer {
        let config = &self.request.device_config;
        let found = (self.driver.probe)(config, deadline().into())?;
        let mut list = String::from("<?xml version=\"1.0\" ?>\n<SRlist>\n");
        for sr in found {
            list.push_str(&format!("\t<SR>\n\t\t<UUID>{}</UUID>\n\t\t<size>{}</size>\n\t</SR>\n", sr.uuid, sr.size));
        }
        if config.get("probeversion").is_some() {
            let versions = (self.driver.about.protocol_versions)(config)?;
            let versions = versions.iter().rev().map(|version| format!("\t\t<Version>{version}</Version>\n"));
            list.push_str(&format!("\t<SupportedVersions>\n{}\t</SupportedVersions>\n", versions.collect::<String>()));
        }
        list.push_str("</SRlist>\n");
        Ok(Value::text(list))
    }

    fn sr_create(&mut self) -> Answer {
        // Often 0: whatever there is.
        let size = self.request.size(0)?;
        self.fetch_secrets()?;
        self.call(Call::SrCreate { size: (size > 0).then_some(size), over: Overwrite::default() })
            .map_err(|e| self.choices(e))?;
        for (key, value) in self.storage()?.sr_sm_config() {
            let (sr_ref, value) = (self.request.text("sr_ref")?, value.unwrap_or_default());
            match self.xapi()?.add_key("SR.add_to_sm_config", sr_ref, key, &value) {
                Err(e) if !e.is("MAP_DUPLICATE_KEY") => return Err(e.into()),
                _ => {}
            }
        }
        Ok(Value::Nil)
    }

    /// Of a key that is missing, what a client may choose for it.
    fn choices(&self, error: Error) -> Error {
        if !matches!(error, Error::MissingKey { .. }) {
            return error;
        }
        match (self.driver.probe)(&self.config, deadline().into()) {
            Err(more @ Error::ExportNotChosen { .. }) => more,
            _ => error,
        }
    }

    /// Puts the value of each secret into device_config, `x` for the UUID that `x_secret` has, if the driver
    /// knows that key. For the calls that log in somewhere; all others need none.
    fn fetch_secrets(&mut self) -> Result<(), Failure> {
        for (key, uuid) in &self.request.device_config.0 {
            let Some(name) = key.strip_suffix("_secret") else { continue };
            if !self.driver.about.configuration.iter().any(|(known, _)| known == key) {
                continue;
            }
            let xapi = self.xapi()?;
            let reference = xapi.call("secret.get_by_uuid", &[Value::text(uuid.as_str())]);
            let value = reference.and_then(|reference| xapi.call("secret.get_value", &[reference]));
            let value = value.map_err(|e| match e.is_gone() {
                true => Failure::new(Code::InvalidSecret, format!("xapi has no secret with the UUID that {key} gives")),
                false => e.into(),
            })?;
            let value =
                value.as_str().ok_or_else(|| Failure::new(Code::InvalidSecret, "the value of a secret is not text"))?;
            self.config.0.insert(name.to_owned(), value.to_owned());
        }
        Ok(())
    }

    /// What [`Service::fetch_secrets`] found; nobody may see it.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let known = &self.request.device_config.0;
        self.config.0.iter().filter(|(key, _)| !known.contains_key(*key)).map(|(_, value)| value.as_str())
    }

    /// The SR API deletes an SR with its disks; xapi wants it refused while there are any that it could delete.
    fn sr_delete(&self) -> Answer {
        let deletes = self.driver.about.capabilities.contains(&"VDI_DELETE") && !self.driver.keeps_disks;
        let found = match self.call(Call::SrGetParams) {
            // Where the disks are seen only while it is attached, it is attached to see them.
            Err(Error::SrUnavailable { .. }) if deletes => {
                self.call(Call::SrAttach).and_then(|_| self.call(Call::SrGetParams))
            }
            other => other,
        };
        match found {
            Ok(Reply::Sr(sr)) if deletes && !sr.vdi_uuids.is_empty() => {
                return Err(Failure::new(Code::SRNotEmpty, format!("{} VDIs are in it", sr.vdi_uuids.len())));
            }
            Ok(_) | Err(Error::NoSr { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        self.leave_local_path()?;
        self.call(Call::SrDelete)?;
        for name in ["agent", FIGURES] {
            lock::forget(&self.sr()?.to_string(), name);
        }
        Ok(Value::Nil)
    }

    /// 1. the driver attaches; 2. the SR appears below the mount base; 3. what this host left behind in the
    ///    records is removed; 4. the master scans, which changes nothing about the success.
    fn sr_attach(&mut self) -> Answer {
        let sr_ref = self.request.text("sr_ref")?;
        let host = format!("host_{}", self.request.text("host_ref")?);
        self.fetch_secrets()?;
        // Before anything else: without xapi's word an empty directory is not taken for an empty SR.
        let records = self.xapi()?.vdi_records(sr_ref)?;
        match self.call(Call::SrAttach) {
            Err(Error::NoSr { .. }) if records.is_empty() => match self.call(Call::SrAdopt) {
                Err(Error::Unsupported { .. }) => self.call(Call::SrAttach)?,
                other => other?,
            },
            other => other?,
        };
        self.enter_local_path()?;
        let master = self.request.device_config.get("SRmaster") == Some("true");
        let shared = (self.driver.open)(self.sr()?, &self.config, deadline().into())?.is_shared();
        let records = self.clear_tags(records, &host, master && !shared)?;
        if master {
            let _ = self.xapi()?.add_key("SR.add_to_other_config", sr_ref, "dirty", "");
            // The figures as well: xapi admits disks by them from now on.
            self.end_pauses(&records);
            let told = self.scan(sr_ref, Some(records)).and_then(|_| self.sr_update());
            if let Err(failure) = told {
                let why = self.reason(&failure, Command::SrScan);
                syslog::write(&format!("the scan after sr_attach failed: {why}"));
                let sr = self.sr()?.to_string();
                let message = ["POST_ATTACH_SCAN_FAILED", "2", "SR", &sr, &why].map(Value::text);
                let _ = self.xapi()?.call("message.create", &message);
            }
        }
        Ok(Value::Nil)
    }

    /// Removes this host's claims on VDIs that it does not have attached, and every pause of an SR that only this
    /// host has.
    fn clear_tags(
        &mut self,
        mut records: Vec<(String, Record)>,
        host: &str,
        pauses: bool,
    ) -> Result<Vec<(String, Record)>, Failure> {
        for (reference, record) in &mut records {
            let location = text(record, "location").to_owned();
            let Some(Value::Struct(sm_config)) = record.get_mut("sm_config") else { continue };
            let mut keys = Vec::new();
            if sm_config.contains_key(host) && !self.is_attached(&location) {
                keys.push(host);
            }
            if pauses && sm_config.contains_key("paused") {
                keys.push("paused");
            }
            for key in keys {
                sm_config.remove(key);
                let xapi = self.xapi.as_mut().expect("it gave us the records");
                xapi.set("VDI.remove_from_sm_config", reference, Value::text(key))?;
            }
        }
        Ok(records)
    }

    fn is_attached(&self, location: &str) -> bool {
        let info = self.vdi_at(location).and_then(|vdi| Ok(self.call(Call::VdiGetParams { vdi })?));
        matches!(info, Ok(Reply::Vdi(info)) if info.attached)
    }

    fn sr_detach(&self) -> Answer {
        match self.call(Call::SrDetach) {
            // What is not there is not attached.
            Ok(_) | Err(Error::NoSr { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        self.leave_local_path()?;
        Ok(Value::Nil)
    }

    fn sr_scan(&mut self) -> Answer {
        self.assert_attached()?;
        let sr_ref = self.request.text("sr_ref")?;
        let records = self.scan(sr_ref, None)?;
        self.end_pauses(&records);
        Ok(Value::Nil)
    }

    /// Ends the pauses that killed calls left. Not while the agent's lock is held: another host may have to answer.
    fn end_pauses(&mut self, records: &[(String, Record)]) {
        for (reference, record) in records {
            if record.get("sm_config").and_then(|keys| keys.get("paused")).is_none() {
                continue;
            }
            let ended = self.vdi_at(text(record, "location")).and_then(|vdi| {
                if let hosts @ Some(_) = self.hosts(vdi, text(record, "uuid"), reference)? {
                    // Of one that is still being changed nobody waits for the lock.
                    self.call_with(Call::VdiUnpause { vdi }, hosts, Instant::now())?;
                }
                Ok(())
            });
            if let Err(failure) = ended {
                let why = self.reason(&failure, Command::SrScan);
                syslog::write(&format!("VDI {} stays paused: {why}", text(record, "uuid")));
            }
        }
    }

    /// `records`: those that were read a moment ago, before the substrate is.
    fn scan(&mut self, sr_ref: &str, records: Option<Vec<(String, Record)>>) -> Result<Vec<(String, Record)>, Failure> {
        let sm_config = self.driver.about.sm_config;
        let _alone = self.agent_lock(Kind::Exclusive)?;
        let records = match records {
            Some(records) => records,
            None => self.xapi()?.vdi_records(sr_ref)?,
        };
        let Reply::Sr(sr) = self.call(Call::SrScan)? else { unreachable!("sr_scan answers an SR") };
        let found: Vec<&VdiInfo> = sr.vdis.iter().filter_map(as_vdi).collect();
        let changes = sync::synchronise(self.xapi()?, sr_ref, &records, &found, sm_config)?;
        // xapi asks for sr_update after every scan; with nothing new there is nothing to add.
        if changes != sync::Changes::default() {
            sync::figures(self.xapi()?, sr_ref, &sr)?;
        }
        Ok(records)
    }

    fn sr_update(&mut self) -> Answer {
        self.assert_attached()?;
        // Nobody may have made a disk whose size he is about to add.
        let _alone = self.agent_lock(Kind::Exclusive)?;
        let sr = self.sr_info()?;
        let sr_ref = self.request.text("sr_ref")?;
        sync::figures(self.xapi()?, sr_ref, &sr)?;
        Ok(Value::Nil)
    }

    fn sr_content_type(&self) -> Answer {
        match self.call(Call::SrContentType)? {
            Reply::Text(text) => Ok(Value::text(text)),
            _ => unreachable!("sr_content_type answers a text"),
        }
    }

    // VDI commands that change records

    fn vdi_create(&mut self) -> Answer {
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
        let params = Params { read_only: request.flag(7)?, ..Params::default() };
        let (metadata_of_pool, is_a_snapshot) = (request.arg(3)?, request.flag(4)?);
        let (snapshot_time, snapshot_of) = (request.arg(5)?, request.arg(6)?);
        let vdi_type = request.text("vdi_type")?;
        let new = NewVdi { vdi, virtual_size, format, params };

        let _shared = self.agent_lock(Kind::Shared)?;
        let info = self.created(Call::VdiCreate(new))?;
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
        self.tell_figures(sr_ref, self.grown(|| Some(info.virtual_size.into())));
        Ok(identity(&info.uuid.to_string(), &info.location()))
    }

    fn vdi_introduce(&mut self) -> Answer {
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
    fn vdi_update(&mut self) -> Answer {
        self.assert_attached()?;
        let reference = self.request.text("vdi_ref")?;
        let _shared = self.agent_lock(Kind::Shared)?;
        let info = self.info()?;
        let sm_config = (self.driver.about.sm_config)(&info);
        let record = self.xapi()?.record("VDI.get_record", reference)?;
        let (label, description) = (text(&record, "name_label"), text(&record, "name_description"));
        assert_legal(label, description)?;
        self.store_names(&info, label, description)?;
        sync::refresh(self.xapi()?, reference, &record, &info, &sm_config)?;
        Ok(Value::Nil)
    }

    /// Stores a VDI's names with the disk, so that they come back with a scan after xapi forgot the SR. Where the SR can't
    /// hold them, and on a host that must not change the SR, xapi's record is all there is.
    fn store_names(&self, info: &VdiInfo, label: &str, description: &str) -> Result<(), Failure> {
        let is_master = self.request.device_config.get("SRmaster") != Some("false");
        if info.hidden || !is_master || (info.label == label && info.description == description) {
            return Ok(());
        }
        let (label, description) = (label.to_owned(), description.to_owned());
        match self.call(Call::VdiSetNames { vdi: info.uuid, label, description }) {
            Ok(_) | Err(Error::Unsupported { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn vdi_delete(&mut self) -> Answer {
        self.assert_attached()?;
        let sr_ref = self.request.text("sr_ref")?;
        let vdi = self.vdi()?;
        self.refuse_if_elsewhere()?;
        let _shared = self.agent_lock(Kind::Shared)?;
        let size =
            self.grown(|| Some(self.info().map_or(0, |info| if info.hidden { 0 } else { info.virtual_size }).into()));
        self.call(Call::VdiDelete { vdi, broken: true })?;
        device::forget_activation(vdi);
        device::disconnect(self.sr()?, self.vdi_name()?)?;
        // xapi drops the record itself as well, if this is lost.
        if let (Some(reference), Some(xapi)) = (self.request.optional("vdi_ref")?, self.xapi.as_mut()) {
            let _ = xapi.call("VDI.db_forget", &[Value::text(reference)]);
        }
        self.tell_figures(sr_ref, size.map(|size| -size));
        Ok(Value::Nil)
    }

    fn vdi_copy(&mut self) -> Answer {
        self.assert_attached()?;
        if self.request.map("driver_params")?.contains_key("mirror") {
            return Err(Failure::new(Code::Unimplemented, "a snapshot with a mirror"));
        }
        let sr_ref = self.request.text("sr_ref")?;
        let reference = self.request.text("vdi_ref")?;
        let (source, dest) = (self.vdi()?, VdiUuid::random());
        self.refuse_encrypted()?;
        let hosts = self.hosts_of_vdi()?;
        let call = match self.request.command {
            Command::VdiSnapshot => Call::VdiSnapshot { source, dest },
            _ => Call::VdiClone { source, dest },
        };
        if let Some(hosts) = &hosts {
            // As on this host: a clone wants the disk unused, and a raw disk can't be paused.
            let is_clone = self.request.command == Command::VdiClone;
            if is_clone || self.info()?.format == Format::Raw {
                hosts.refuse_if_attached(is_clone)?;
            }
        }
        let _shared = self.agent_lock(Kind::Shared)?;
        let info = match self.call_with(call, hosts, deadline())? {
            Reply::Vdi(info) => info,
            _ => unreachable!("what makes a VDI answers it"),
        };
        // Its name is xapi's to choose.
        let row = Introduced { label: "", description: "", sm_config: self.sm_config(&info), ..Introduced::of(&info) };
        self.introduce_or_undo(sr_ref, &row, info.uuid)?;
        if let Some(base) = info.parent
            && let Err(failure) = self.introduce_base(sr_ref, reference, base)
        {
            // The disk is made and xapi knows it. The next scan tells the rest.
            let why = self.reason(&failure, self.request.command);
            syslog::write(&format!("xapi was not told of base {base}: {why}"));
        }
        self.tell_figures(sr_ref, self.grown(|| Some(info.virtual_size.into())));
        Ok(identity(&info.uuid.to_string(), &info.location()))
    }

    /// Tells xapi of the base that a disk was copied with, and that it is the disk's parent now.
    fn introduce_base(&mut self, sr_ref: &str, disk: &str, base: VdiUuid) -> Result<(), Failure> {
        let info = self.created(Call::VdiGetBrief { vdi: base })?;
        let row = Introduced { sm_config: self.sm_config(&info), ..Introduced::of(&info) };
        match sync::introduce(self.xapi()?, sr_ref, &row) {
            // Somebody told it already.
            Err(e) if e.is("LOCATION_NOT_UNIQUE") => {}
            other => drop(other?),
        }
        let info = self.info()?;
        let (wanted, xapi) = ((self.driver.about.sm_config)(&info), self.xapi()?);
        let record = xapi.record("VDI.get_record", disk)?;
        sync::refresh(xapi, disk, &record, &info, &wanted)?;
        Ok(())
    }

    fn vdi_resize(&mut self) -> Answer {
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
        let before = self.grown(|| Some(info.virtual_size.into()));
        self.call(Call::VdiResize { vdi, size, allow_shrink: false })?;
        let info = self.info()?;
        let xapi = self.xapi()?;
        xapi.set_number("VDI.set_virtual_size", reference, info.virtual_size)?;
        xapi.set_number("VDI.set_physical_utilisation", reference, info.physical_utilisation)?;
        self.tell_figures(sr_ref, before.map(|before| i128::from(info.virtual_size) - before));
        Ok(identity(self.vdi_name()?, &info.location()))
    }

    /// Tells xapi of a disk just made, or unmakes it.
    fn introduce_or_undo(&mut self, sr_ref: &str, row: &Introduced, vdi: VdiUuid) -> Result<(), Failure> {
        let Err(error) = sync::introduce(self.xapi()?, sr_ref, row) else { return Ok(()) };
        if let Err(undo) = self.call(Call::VdiDelete { vdi, broken: false }) {
            syslog::write(&format!("VDI {vdi} was not removed again: {}", crate::error::one_line(&undo)));
        }
        Err(error.into())
    }

    /// What has changed of the SR's figures: by how many bytes the virtual sizes of its disks have grown, if the sum is
    /// not to be had for less. sr_update sets it right, so a failure is no news.
    fn tell_figures(&mut self, sr_ref: &str, grown: Option<i128>) {
        let told = match grown {
            Some(by) => self.add_to_figures(sr_ref, by),
            None => self.recompute_figures(sr_ref),
        };
        if let Err(failure) = told {
            let why = self.reason(&failure, self.request.command);
            syslog::write(&format!("xapi was not told of the SR's figures: {why}"));
        }
    }

    /// `by`, where it is worth to be known; see [`Service::tell_figures`].
    fn grown(&self, by: impl FnOnce() -> Option<i128>) -> Option<i128> {
        if self.driver.about.looks_at_every_disk { by() } else { None }
    }

    fn recompute_figures(&mut self, sr_ref: &str) -> Result<(), Failure> {
        // Who reads later tells later.
        let _alone = self.lock(FIGURES, Kind::Exclusive)?;
        let sr = self.sr_info()?;
        self.set_figures(sr_ref, sr.virtual_allocation, sr.space())
    }

    fn add_to_figures(&mut self, sr_ref: &str, by: i128) -> Result<(), Failure> {
        let Reply::Space(space) = self.call(Call::SrGetSpace)? else { unreachable!("sr_get_space answers that") };
        // Two that read the same would lose what one of them adds.
        let _alone = self.lock(FIGURES, Kind::Exclusive)?;
        let had = self.xapi()?.call("SR.get_virtual_allocation", &[Value::text(sr_ref)])?;
        let Some(had) = had.as_str().and_then(|text| text.parse::<u64>().ok()) else {
            let sr = self.sr_info()?;
            return self.set_figures(sr_ref, sr.virtual_allocation, sr.space());
        };
        self.set_figures(sr_ref, (i128::from(had) + by).max(0) as u64, space)
    }

    fn set_figures(&mut self, sr_ref: &str, allocation: u64, space: Space) -> Result<(), Failure> {
        let xapi = self.xapi()?;
        xapi.set_number("SR.set_virtual_allocation", sr_ref, allocation)?;
        Ok(xapi.set_number("SR.set_physical_utilisation", sr_ref, space.used())?)
    }

    // VDI commands of the data path

    fn vdi_attach(&mut self) -> Answer {
        self.assert_attached()?;
        self.request.flag(0)?;
        self.call(Call::VdiGetParams { vdi: self.vdi()? }).map_err(|e| self.missing(e))?;
        Ok(attached::attached(self.sr()?, self.vdi_name()?, true))
    }

    fn vdi_activate(&mut self) -> Answer {
        self.assert_attached()?;
        let mode = if self.request.flag(0)? { Mode::ReadWrite } else { Mode::ReadOnly };
        let vdi = self.vdi()?;
        let tag = Tag { vdi_ref: self.request.text("vdi_ref")?, host_ref: self.request.text("host_ref")? };
        self.while_not_paused(vdi, |service| {
            if !tag.claim(service.xapi()?, mode)? {
                return Ok(false);
            }
            if let Err(failure) = service.connect(vdi, mode) {
                let _ = tag.give_up(service.xapi()?);
                return Err(failure);
            }
            Ok(true)
        })
    }

    /// Does `attempt` with the VDI's activation lock, again and again while it says that the VDI is paused. Without the
    /// lock in between: who ends the pause may need it.
    fn while_not_paused(
        &mut self,
        vdi: VdiUuid,
        mut attempt: impl FnMut(&mut Self) -> Result<bool, Failure>,
    ) -> Answer {
        let until = Instant::now() + claim::patience();
        loop {
            let lock = device::activation(vdi, until)?;
            if attempt(self)? {
                return Ok(Value::Nil);
            }
            drop(lock);
            if Instant::now() >= until {
                let why = format!("VDI {vdi} is locked: it was paused for {} s", claim::patience().as_secs());
                return Err(Failure::new(Code::VDIUnavailable, why));
            }
            std::thread::sleep(claim::PAUSE);
        }
    }

    fn vdi_deactivate(&mut self) -> Answer {
        let vdi = self.vdi()?;
        let tag = Tag { vdi_ref: self.request.text("vdi_ref")?, host_ref: self.request.text("host_ref")? };
        self.while_not_paused(vdi, |service| {
            if tag.is_paused(service.xapi()?)? {
                return Ok(false);
            }
            service.disconnect(vdi)?;
            tag.give_up(service.xapi()?)?;
            Ok(true)
        })
    }

    fn vdi_detach(&mut self) -> Answer {
        let vdi = self.vdi()?;
        self.disconnect(vdi)?;
        Ok(Value::Nil)
    }

    fn connect(&self, vdi: VdiUuid, mode: Mode) -> Result<(), Failure> {
        let Reply::Device(device) = self.call(Call::VdiAttach { vdi, mode }).map_err(|e| self.missing(e))? else {
            unreachable!("vdi_attach answers a device")
        };
        let connected = device::connect(self.sr()?, self.vdi_name()?, &device, mode);
        // Refused while anything uses it.
        Ok(connected.inspect_err(|_| drop(self.call(Call::VdiDetach { vdi })))?)
    }

    /// A file that its owner took away is an error of its own in xapi; a disk of ours can only be unavailable.
    fn missing(&self, error: Error) -> Failure {
        match (&error, self.location()) {
            (Error::NoVdi { .. }, Ok(name)) if name.parse::<VdiUuid>().is_err() => Failure::new(Code::VDIMissing, name),
            _ => error.into(),
        }
    }

    fn disconnect(&self, vdi: VdiUuid) -> Result<(), Failure> {
        device::disconnect(self.sr()?, self.vdi_name()?)?;
        self.call(Call::VdiDetach { vdi })?;
        Ok(())
    }

    // For a host whose xapi is not up yet

    fn vdi_generate_config(&mut self) -> Answer {
        self.assert_attached()?;
        self.call(Call::VdiGetParams { vdi: self.vdi()? })?;
        let request = self.request;
        // The call that this is for asks no xapi.
        if self.xapi.is_some() && request.optional("vdi_ref")?.is_some() {
            self.refuse_encrypted()?;
        }
        let config = request.device_config.0.clone();
        let command = Command::VdiAttachFromConfig.name();
        let members = [
            ("command", Value::text(command)),
            ("device_config", Value::map(config)),
            ("sr_uuid", Value::text(request.text("sr_uuid")?)),
            ("vdi_uuid", Value::text(self.vdi_name()?)),
            ("vdi_location", Value::text(self.location()?)),
        ];
        let members = members.map(|(name, value)| (name.to_owned(), value));
        Ok(Value::text(xmlrpc::write_call(command, &[Value::Struct(members.into())])))
    }

    fn vdi_attach_from_config(&self) -> Answer {
        self.call(Call::SrAttach)?;
        self.enter_local_path()?;
        self.connect(self.vdi()?, Mode::ReadWrite)?;
        Ok(attached::attached(self.sr()?, self.vdi_name()?, false))
    }

    fn vdi_detach_from_config(&self) -> Answer {
        self.disconnect(self.vdi()?)?;
        Ok(Value::Nil)
    }

    // What the commands share

    fn reason(&self, failure: &Failure, command: Command) -> String {
        faults::fault(failure, Attempt::new(self.driver.about.substrate, Some(command))).1
    }

    fn sr(&self) -> Result<SrUuid, Failure> {
        self.sr.ok_or_else(|| Failure::new(Code::BadRequest, "sr_uuid is missing"))
    }

    fn storage(&self) -> Result<Box<dyn Sr>, Failure> {
        Ok((self.driver.open)(self.sr()?, &self.config, deadline().into())?)
    }

    fn xapi(&mut self) -> Result<&mut Xapi, Failure> {
        self.xapi.as_mut().ok_or_else(|| Failure::new(Code::BadRequest, "session_ref is missing"))
    }

    fn location(&self) -> Result<&str, Failure> {
        match self.request.optional("vdi_location")?.filter(|location| !location.is_empty()) {
            Some(location) => Ok(location),
            None => self.request.text("vdi_uuid"),
        }
    }

    fn vdi_at(&self, location: &str) -> Result<VdiUuid, Failure> {
        Ok((self.driver.about.vdi_at)(self.sr()?, location)?)
    }

    fn vdi(&self) -> Result<VdiUuid, Failure> {
        self.vdi_at(self.location()?)
    }

    /// The UUID by which xapi knows the VDI: part of the device's name, so it is checked to be one.
    fn vdi_name(&self) -> Result<&str, Failure> {
        let uuid = self.request.text("vdi_uuid")?;
        uuid.parse::<VdiUuid>()?;
        Ok(uuid)
    }

    fn call(&self, call: Call) -> Result<Reply, Error> {
        let sr = self.sr.ok_or_else(|| Error::Usage("sr_uuid is missing".to_owned()))?;
        let context = Context { deadline: deadline(), progress: &|_, _| {}, others: None };
        call::run(self.driver, sr, &self.config, &call, &context)
    }

    /// The same for a call that other hosts may have to hear of.
    fn call_with(&self, call: Call, others: Option<Arc<Hosts>>, deadline: Instant) -> Result<Reply, Error> {
        let sr = self.sr.ok_or_else(|| Error::Usage("sr_uuid is missing".to_owned()))?;
        let others = others.map(|hosts| hosts as Arc<dyn OtherHosts>);
        let context = Context { deadline, progress: &|_, _| {}, others };
        call::run(self.driver, sr, &self.config, &call, &context)
    }

    /// The other hosts that may have a VDI attached; on an SR that several have.
    fn hosts(&self, vdi: VdiUuid, vdi_uuid: &str, vdi_ref: &str) -> Result<Option<Arc<Hosts>>, Failure> {
        let (sr, request) = (self.sr()?, self.request);
        if !(self.driver.open)(sr, &self.config, deadline().into())?.is_shared() {
            return Ok(None);
        }
        let xapi = Mutex::new(Xapi::new(request.text("session_ref")?, request.optional("subtask_of")?));
        let host_ref = request.text("host_ref")?.to_owned();
        let (vdi_uuid, vdi_ref) = (vdi_uuid.to_owned(), vdi_ref.to_owned());
        Ok(Some(Arc::new(Hosts { xapi, driver: self.driver, sr, vdi, vdi_uuid, vdi_ref, host_ref })))
    }

    /// The same for the VDI of this request.
    fn hosts_of_vdi(&self) -> Result<Option<Arc<Hosts>>, Failure> {
        self.hosts(self.vdi()?, self.vdi_name()?, self.request.text("vdi_ref")?)
    }

    /// Refuses a VDI whose record says that its data is encrypted.
    fn refuse_encrypted(&mut self) -> Result<(), Failure> {
        let (reference, code) = (self.request.text("vdi_ref")?, general_fault(self.request.command));
        let sm_config = self.xapi()?.record("VDI.get_sm_config", reference)?;
        claim::refuse_encrypted(sm_config.get(KEY_HASH).and_then(Value::as_str), code)
    }

    /// Refuses what can't be done while another host has the VDI attached.
    fn refuse_if_elsewhere(&self) -> Result<(), Failure> {
        match self.hosts_of_vdi()? {
            Some(hosts) => Ok(hosts.refuse_if_attached(true)?),
            None => Ok(()),
        }
    }

    fn created(&self, call: Call) -> Result<VdiInfo, Failure> {
        match self.call(call)? {
            Reply::Vdi(info) => Ok(info),
            _ => unreachable!("what makes a VDI answers it"),
        }
    }

    fn info(&self) -> Result<VdiInfo, Failure> {
        self.created(Call::VdiGetBrief { vdi: self.vdi()? })
    }

    fn sr_info(&self) -> Result<SrInfo, Failure> {
        match self.call(Call::SrGetParams)? {
            Reply::Sr(sr) => Ok(sr),
            _ => unreachable!("sr_get_params answers an SR"),
        }
    }

    fn sm_config(&self, info: &VdiInfo) -> BTreeMap<String, String> {
        let keys = (self.driver.about.sm_config)(info).into_iter();
        keys.filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }

    fn agent_lock(&self, kind: Kind) -> Result<Lock, Failure> {
        self.lock("agent", kind)
    }

    fn lock(&self, name: &str, kind: Kind) -> Result<Lock, Failure> {
        let sr = self.sr()?;
        lock::take(&sr.to_string(), name, kind, deadline()).map_err(|refused| match refused {
            Refused::Failed(error) => error.into(),
            Refused::TimedOut { holder } => {
                let who = holder.as_deref().unwrap_or("another call");
                let why = format!("SR {sr}: {who} works on it; this call has waited {} s", patience().as_secs());
                Failure::new(Code::LockErr, why)
            }
        })
    }

    // The place where the host's other programs expect the SR

    /// Where the SR lives and where it has to appear, if these are two places.
    fn local_path(&self) -> Result<Option<(PathBuf, PathBuf)>, Failure> {
        let sr = self.sr()?;
        let storage = self.storage()?;
        let place = run_dir::mounts().join(sr.to_string());
        Ok(storage.local_path().filter(|path| *path != place).map(|path| (path, place)))
    }

    fn enter_local_path(&self) -> Result<(), Failure> {
        if let Some((path, place)) = self.local_path()? {
            bind::bind(&path, &place)?;
        }
        Ok(())
    }

    fn leave_local_path(&self) -> Result<(), Failure> {
        if let Some((_, place)) = self.local_path()? {
            bind::unbind(&place)?;
        }
        Ok(())
    }

    /// An SR is attached on this host if it appears where it has to: no record of ours says so.
    fn assert_attached(&self) -> Result<(), Failure> {
        match self.local_path()? {
            Some((path, place)) if !bind::is_bound(&path, &place) => {
                let why = format!("{} does not show {}: sr_attach was not called", place.display(), path.display());
                Err(Failure::new(Code::SRUnavailable, why))
            }
            _ => Ok(()),
        }
    }
}

fn as_vdi(tagged: &Tagged) -> Option<&VdiInfo> {
    match tagged {
        Tagged::Vdi(info) => Some(info),
        Tagged::Sr(_) => None,
    }
}

fn identity(uuid: &str, location: &str) -> Value {
    Value::map([("uuid", uuid), ("location", location)])
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
