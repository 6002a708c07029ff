//! `vdi_compose`, by which a storage migration to the SR ends; XCP-ng 8.3, "What the driver must do".

use super::{Answer, Service, now};
use crate::door::smapiv1::code::Code;
use crate::door::smapiv1::faults::Failure;
use crate::door::smapiv1::sync;
use crate::door::xapi::{Record, text};
use crate::door::xmlrpc::Value;
use crate::sys::lock::Kind;
use crate::sys::syslog;
use crate::types::{Format, VdiUuid};

impl Service<'_> {
    /// Makes the VDI whose reference is the argument the parent of the VDI of the request; xapi has no disk in it then.
    pub(super) fn vdi_compose(&mut self) -> Answer {
        self.assert_attached()?;
        let (sr_ref, child_ref) = (self.request.text("sr_ref")?, self.request.text("vdi_ref")?);
        let (disk, parent_ref) = (self.vdi()?, self.request.arg(0)?);
        if self.info()?.format == Format::Raw {
            return Err(Failure::new(Code::Unimplemented, "a raw disk has no parent"));
        }
        let parent = self.xapi()?.record("VDI.get_record", parent_ref)?;
        if text(&parent, "SR") != sr_ref {
            return Err(Failure::new(Code::BadRequest, "the VDI that is to be the parent is on another SR"));
        }
        let base = self.session()?.vdi_at(text(&parent, "location"))?;
        self.refuse_if_elsewhere()?;
        if let Some(hosts) = self.hosts(base, text(&parent, "uuid"), parent_ref)? {
            hosts.refuse_if_attached(true)?;
        }
        let _shared = self.agent_lock(Kind::Shared)?;
        self.session()?.vdi_compose(disk, base, &now())?;
        if let Err(failure) = self.tell_composed((child_ref, disk), (parent_ref, &parent, base)) {
            // It is done. The next scan tells the rest.
            let why = self.reason(&failure, self.request.command);
            syslog::write(&format!("xapi was not told that VDI {base} is the base of VDI {disk}: {why}"));
        }
        let was_disk = parent.get("managed") != Some(&Value::Boolean(false));
        let size: i128 = text(&parent, "virtual_size").parse().unwrap_or_default();
        self.tell_figures(sr_ref, (self.summed() && was_disk).then_some(-size));
        Ok(Value::Nil)
    }

    /// Tells xapi what a disk and its new base are: each by its reference, the base with its record before.
    fn tell_composed(&mut self, child: (&str, VdiUuid), parent: (&str, &Record, VdiUuid)) -> Result<(), Failure> {
        let (disk, base) =
            (self.session()?.vdi_get_brief(child.1, &now())?, self.session()?.vdi_get_brief(parent.2, &now())?);
        let sm_config = self.driver.about.sm_config;
        let xapi = self.xapi()?;
        if parent.1.get("managed") != Some(&Value::Boolean(false)) {
            xapi.set("VDI.set_managed", parent.0, Value::Boolean(false))?;
        }
        sync::refresh(xapi, parent.0, parent.1, &base, &sm_config(&base))?;
        let record = xapi.record("VDI.get_record", child.0)?;
        sync::refresh(xapi, child.0, &record, &disk, &sm_config(&disk))?;
        Ok(())
    }
}
