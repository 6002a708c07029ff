//! The commands of changed block tracking; SMAPIv1, "Changed-block tracking".

use std::sync::Arc;

use base64ct::{Base64, Encoding};

use super::{Answer, Service, deadline, now, until};
use crate::door::smapiv1::code::Code;
use crate::door::smapiv1::faults::Failure;
use crate::door::smapiv1::hosts::Hosts;
use crate::door::smapiv1::sync;
use crate::door::xapi::{Record, text};
use crate::door::xmlrpc::Value;
use crate::sys::lock::Kind;
use crate::sys::syslog;
use crate::types::{Format, VdiUuid};

/// Messages of xapi about a disk that is not tracked any more, as the Python drivers call them.
#[derive(Clone, Copy)]
pub(super) enum Alert {
    Inconsistent,
    Snapshot,
    Resize,
}

impl Alert {
    fn name(self) -> &'static str {
        match self {
            Alert::Inconsistent => "VDI_CBT_METADATA_INCONSISTENT",
            Alert::Snapshot => "VDI_CBT_SNAPSHOT_FAILED",
            Alert::Resize => "VDI_CBT_RESIZE_FAILED",
        }
    }

    fn words(self, vdi: &str) -> String {
        match self {
            Alert::Inconsistent => format!("Changed Block Tracking metadata is inconsistent for disk {vdi}."),
            Alert::Snapshot => format!("Creating CBT metadata log for disk {vdi} failed."),
            Alert::Resize => format!("Resizing of CBT metadata for disk {vdi} failed."),
        }
    }
}

impl Service<'_> {
    /// vdi_enable_cbt and vdi_disable_cbt.
    pub(super) fn vdi_configure_cbt(&mut self, enable: bool) -> Answer {
        self.assert_attached()?;
        self.refuse_without_cbt()?;
        let reference = self.request.text("vdi_ref")?;
        let record = self.xapi()?.record("VDI.get_record", reference)?;
        if record.get("is_a_snapshot") == Some(&Value::Boolean(true)) || self.info()?.format == Format::Raw {
            return Err(Failure::new(Code::VDIType, "Raw VDI or snapshot not permitted"));
        }
        let (vdi, context) = (self.vdi()?, until(deadline(), self.hosts_of_vdi()?));
        let _shared = self.agent_lock(Kind::Shared)?;
        match enable {
            true => self.session()?.vdi_enable_cbt(vdi, &context)?,
            false => self.session()?.vdi_disable_cbt(vdi, &context)?,
        };
        Ok(Value::Nil)
    }

    pub(super) fn vdi_data_destroy(&mut self) -> Answer {
        self.assert_attached()?;
        self.refuse_without_cbt()?;
        let reference = self.request.text("vdi_ref")?;
        let record = self.xapi()?.record("VDI.get_record", reference)?;
        if record.get("is_a_snapshot") != Some(&Value::Boolean(true)) {
            return Err(Failure::new(Code::VDIType, "Only allowed for snapshot VDIs"));
        }
        let vdi = self.vdi()?;
        self.refuse_if_elsewhere()?;
        let _shared = self.agent_lock(Kind::Shared)?;
        let has_base = self.info().is_ok_and(|info| info.parent.is_some());
        self.session()?.vdi_data_destroy(vdi, &now())?;
        self.leaves_work = has_base;
        Ok(Value::Nil)
    }

    /// The blocks that changed from the VDI of the request to that of the argument.
    pub(super) fn vdi_list_changed_blocks(&mut self) -> Answer {
        self.assert_attached()?;
        self.refuse_without_cbt()?;
        let (sr_ref, reference) = (self.request.text("sr_ref")?, self.request.arg(0)?);
        let record = self.xapi()?.record("VDI.get_record", reference)?;
        if text(&record, "SR") != sr_ref {
            return Err(Failure::new(Code::CBTChangedBlocksError, "Source and target VDI are unrelated"));
        }
        let from = self.vdi()?;
        let to = self.session()?.vdi_at(text(&record, "location"))?;
        let hosts = self.hosts(to, text(&record, "uuid"), reference)?;
        let bitmap = self.session()?.vdi_list_changed_blocks(from, to, &until(deadline(), hosts))?;
        Ok(Value::text(Base64::encode_string(&bitmap)))
    }

    /// A driver that announces no tracking has none of these commands.
    fn refuse_without_cbt(&self) -> Result<(), Failure> {
        match self.driver.about.capabilities.contains(&"VDI_CONFIG_CBT") {
            true => Ok(()),
            false => Err(Failure::new(Code::Unimplemented, self.request.command.name())),
        }
    }

    /// The hosts that have the VDI whose log gets the changed blocks of this one, when this one is deleted.
    pub(super) fn hosts_of_log_after(&mut self, vdi: VdiUuid) -> Result<Option<Arc<Hosts>>, Failure> {
        let session = self.session()?;
        if !session.is_shared() {
            return Ok(None);
        }
        let Some(after) = session.vdi_log_after(vdi, &now())? else { return Ok(None) };
        let uuid = after.to_string();
        match self.xapi()?.by_uuid("VDI", &uuid)? {
            Some(reference) => self.hosts(after, &uuid, &reference),
            // No host has attached what xapi does not know.
            None => Ok(None),
        }
    }

    /// Whether a VDI is tracked, before something that may end that.
    pub(super) fn is_tracked(&self, vdi: VdiUuid) -> bool {
        self.session().is_ok_and(|session| session.vdi_has_log(vdi, &now()).unwrap_or(false))
    }

    /// Tells xapi that a VDI that was tracked is tracked no longer, if so. What xapi is not told, the next scan tells but for the
    /// message.
    pub(super) fn tell_if_untracked(&mut self, was: bool, vdi: VdiUuid, alert: Alert) {
        if !was || self.is_tracked(vdi) {
            return;
        }
        let told = (|| -> Result<(), Failure> {
            let (reference, uuid) = (self.request.text("vdi_ref")?, self.vdi_name()?.to_owned());
            let xapi = self.xapi()?;
            sync::refresh_cbt(
                xapi,
                reference,
                &Record::from([("cbt_enabled".to_owned(), Value::Boolean(true))]),
                false,
            )?;
            let message = [alert.name(), "3", "VDI", &uuid, &alert.words(&uuid)].map(Value::text);
            xapi.call("message.create", &message)?;
            Ok(())
        })();
        if let Err(failure) = told {
            let why = self.reason(&failure, self.request.command);
            syslog::write(&format!("xapi was not told that VDI {vdi} is tracked no longer: {why}"));
        }
    }
}
