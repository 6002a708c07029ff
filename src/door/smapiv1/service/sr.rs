//! The commands of an SR.

use std::time::Instant;

use super::figures::FIGURES;
use super::{AGENT, Answer, Service, deadline, no_session, now, until};
use crate::call::Disks;
use crate::door::host::{device, local_path, ours};
use crate::door::smapiv1::collector;
use crate::door::smapiv1::command::Command;
use crate::door::smapiv1::faults::Failure;
use crate::door::smapiv1::sync;
use crate::door::xapi::{CLAIM, PAUSED, Record, text};
use crate::door::xmlrpc::Value;
use crate::error::Error;
use crate::sr::Substrate;
use crate::sys::lock::{self, Kind};
use crate::sys::syslog;
use crate::types::{Kept, Names, NewSr, Overwrite};

impl Service<'_> {
    pub(super) fn sr_probe(&mut self) -> Answer {
        self.fetch_secrets()?;
        let config = &self.config;
        let found = self.driver.probe_own(config, deadline().into())?;
        let mut list = String::from("<?xml version=\"1.0\" ?>\n<SRlist>\n");
        // Clients expect the link that the Python drivers look at.
        let device = config.get("SCSIid").filter(|_| self.driver.about.substrate == Substrate::Lun);
        let device = device.map(|id| format!("\t\t<Devlist>/dev/disk/by-id/scsi-{id}</Devlist>\n")).unwrap_or_default();
        if found.is_empty() && !device.is_empty() {
            return Ok(Value::text("<?xml version=\"1.0\" ?>\n<SRlist/>\n"));
        }
        for sr in found {
            let (uuid, size) = (sr.uuid, sr.size);
            list.push_str(&format!("\t<SR>\n\t\t<UUID>{uuid}</UUID>\n{device}\t\t<size>{size}</size>\n\t</SR>\n"));
        }
        if config.get("probeversion").is_some() {
            let versions = (self.driver.about.protocol_versions)(config)?;
            let versions = versions.iter().rev().map(|version| format!("\t\t<Version>{version}</Version>\n"));
            list.push_str(&format!("\t<SupportedVersions>\n{}\t</SupportedVersions>\n", versions.collect::<String>()));
        }
        list.push_str("</SRlist>\n");
        Ok(Value::text(list))
    }

    pub(super) fn sr_create(&mut self) -> Answer {
        // Often 0: whatever there is.
        let size = self.request.size(0)?;
        self.fetch_secrets()?;
        let created = self.session().and_then(|session| {
            Ok(session.sr_create(
                &NewSr { size: (size > 0).then_some(size), slot: None },
                &Overwrite::default(),
                &now(),
            )?)
        });
        created.map_err(|failure| self.choices(failure))?;
        for (key, value) in self.session()?.sr_sm_config() {
            let (sr_ref, value) = (self.request.text("sr_ref")?, value.unwrap_or_default());
            match self.xapi()?.add_key("SR.add_to_sm_config", sr_ref, key, &value) {
                Err(e) if !e.is("MAP_DUPLICATE_KEY") => return Err(e.into()),
                _ => {}
            }
        }
        Ok(Value::Nil)
    }

    /// The failure of a key that is missing, with what a client may choose for the key.
    fn choices(&self, failure: Failure) -> Failure {
        if !matches!(failure, Failure::Driver(Error::MissingKey { .. })) {
            return failure;
        }
        match (self.driver.probe)(&self.config, deadline().into()) {
            Err(more @ (Error::ExportNotChosen { .. } | Error::NotChosen(_))) => more.into(),
            _ => failure,
        }
    }

    /// The SR API deletes an SR with its disks; xapi wants it refused while there are any that xapi could delete.
    pub(super) fn sr_delete(&mut self) -> Answer {
        self.fetch_secrets()?;
        let (session, context) = (self.session()?, now());
        let disks = if self.driver.about.capabilities.contains(&"VDI_DELETE") { Disks::NONE } else { Disks::All };
        if disks == Disks::NONE {
            session.refuse_disks(&context)?;
        }
        local_path::leave(session)?;
        // Disks may have come meanwhile: then it stays where it was.
        let deleted = session.sr_delete(disks, &context);
        deleted.map_err(|error| error.undone(local_path::enter(session)))?;
        for name in [AGENT, FIGURES] {
            lock::forget(&session.sr().to_string(), name);
        }
        Ok(Value::Nil)
    }

    /// 1. the driver attaches; 2. the SR appears below the mount base; 3. what this host left behind in the
    ///    records is removed; 4. the master scans, which changes nothing about the success.
    pub(super) fn sr_attach(&mut self) -> Answer {
        let sr_ref = self.request.text("sr_ref")?;
        let host = format!("{CLAIM}{}", self.request.text("host_ref")?);
        self.fetch_secrets()?;
        // Before anything else: without xapi's word an empty directory is not taken for an empty SR.
        let records = self.xapi()?.vdi_records(sr_ref)?;
        let session = self.session()?;
        session.sr_attach_or_adopt(records.is_empty(), &now())?;
        local_path::enter(session)?;
        self.tell_attachment(sr_ref, true);
        let master = self.request.device_config.get("SRmaster") == Some("true");
        let shared = self.session()?.is_shared();
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
            if pauses && sm_config.contains_key(PAUSED) {
                keys.push(PAUSED);
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
        let info = self.session().and_then(|session| {
            let vdi = session.vdi_at(location)?;
            Ok(session.vdi_get_params(vdi, &now())?)
        });
        info.is_ok_and(|info| info.attached)
    }

    pub(super) fn sr_detach(&mut self) -> Answer {
        self.fetch_settings_of_host()?;
        let session = self.session()?;
        match session.sr_detach(&now()) {
            // An SR that is not there is not attached.
            Ok(_) | Err(Error::NoSr { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        local_path::leave(session)?;
        if let Ok(sr_ref) = self.request.text("sr_ref") {
            self.tell_attachment(sr_ref, false);
        }
        Ok(Value::Nil)
    }

    /// Makes this host's PBD say what there is to say of the attachment. What xapi does not take is logged: the call did its work.
    fn tell_attachment(&mut self, sr_ref: &str, attached: bool) {
        if let Err(failure) = self.write_attachment(sr_ref, attached) {
            let why = self.reason(&failure, if attached { Command::SrAttach } else { Command::SrDetach });
            syslog::write(&format!("the keys of the PBD stay as they are: {why}"));
        }
    }

    fn write_attachment(&mut self, sr_ref: &str, attached: bool) -> Result<(), Failure> {
        let keys = self.session()?.attachment_keys();
        if keys.is_empty() {
            return Ok(());
        }
        let host = self.request.text("host_ref")?;
        let xapi = self.xapi()?;
        let Some((pbd, record)) = ours::pbd(xapi, sr_ref, host)? else { return Ok(()) };
        for (key, value) in keys {
            let there = record.get("other_config").and_then(|keys| keys.get(&key)).and_then(Value::as_str);
            let wanted = if attached { value.as_deref().or(there) } else { None };
            if there == wanted {
                continue;
            }
            if there.is_some() {
                xapi.set("PBD.remove_from_other_config", &pbd, Value::text(key.as_str()))?;
            }
            if let Some(value) = wanted {
                xapi.add_key("PBD.add_to_other_config", &pbd, &key, value)?;
            }
        }
        Ok(())
    }

    pub(super) fn sr_scan(&mut self) -> Answer {
        self.assert_attached()?;
        let sr_ref = self.request.text("sr_ref")?;
        let records = self.scan(sr_ref, None)?;
        self.end_pauses(&records);
        Ok(Value::Nil)
    }

    /// Ends the pauses that killed calls left. Not while the agent's lock is held: another host may have to answer.
    fn end_pauses(&mut self, records: &[(String, Record)]) {
        if let Some(sr) = self.sr {
            device::go_on(sr);
        }
        for (reference, record) in records {
            if record.get("sm_config").and_then(|keys| keys.get(PAUSED)).is_none() {
                continue;
            }
            let ended = self.session().and_then(|session| {
                let vdi = session.vdi_at(text(record, "location"))?;
                if let hosts @ Some(_) = self.hosts(vdi, text(record, "uuid"), reference)? {
                    // A VDI that is still being changed is not waited for.
                    session.vdi_unpause(vdi, &until(Instant::now(), hosts))?;
                }
                Ok(())
            });
            if let Err(failure) = ended {
                let why = self.reason(&failure, Command::SrScan);
                syslog::write(&format!("VDI {} stays paused: {why}", text(record, "uuid")));
            }
        }
    }

    /// Tells xapi what is on the substrate. `records`: those of xapi, if they were read a moment ago. Returns the records.
    fn scan(&mut self, sr_ref: &str, records: Option<Vec<(String, Record)>>) -> Result<Vec<(String, Record)>, Failure> {
        let _alone = self.agent_lock(Kind::Exclusive)?;
        let records = match records {
            Some(records) => records,
            None => self.xapi()?.vdi_records(sr_ref)?,
        };
        self.session()?;
        let (Some(session), Some(xapi)) = (self.session.get(), self.xapi.as_mut()) else { return Err(no_session()) };
        let found = sync::scan(xapi, sr_ref, &records, session, &now())?;
        self.leaves_work |= collector::has_work(&found.vdis);
        Ok(records)
    }

    pub(super) fn sr_update(&mut self) -> Answer {
        self.assert_attached()?;
        // No other call may have made a disk whose size it is about to add.
        let _alone = self.agent_lock(Kind::Exclusive)?;
        let sr = self.session()?.sr_get_params(&now())?;
        let sr_ref = self.request.text("sr_ref")?;
        sync::figures(self.xapi()?, sr_ref, &sr)?;
        if let Some(kept) = sr.kept.filter(|_| self.request.device_config.get("SRmaster") == Some("true")) {
            self.exchange(sr_ref, kept)?;
        }
        Ok(Value::Nil)
    }

    /// An LVHD SR keeps the names that xapi has of it, and xapi how the SR allocates: for the Python drivers, which read both.
    fn exchange(&mut self, sr_ref: &str, kept: Kept) -> Result<(), Failure> {
        let record = self.xapi()?.record("SR.get_record", sr_ref)?;
        let owned = |name: &str| text(&record, name).to_owned();
        let names = Names { label: owned("name_label"), description: owned("name_description") };
        if names != kept.names {
            self.session()?.sr_set_names(move |_| names, &now())?;
        }
        let Some(Value::Struct(mut sm_config)) = record.get("sm_config").cloned() else { return Ok(()) };
        let had = sm_config.clone();
        let allocation = if kept.is_thin { "thin" } else { "thick" };
        sm_config
            .extend([("allocation", allocation), ("use_vhd", "true")].map(|(k, v)| (k.to_owned(), Value::text(v))));
        if sm_config != had {
            self.xapi()?.call("SR.set_sm_config", &[Value::text(sr_ref), Value::Struct(sm_config)])?;
        }
        Ok(())
    }

    pub(super) fn sr_content_type(&self) -> Answer {
        Ok(Value::text(self.session()?.content_type()))
    }
}
