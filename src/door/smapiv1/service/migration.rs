//! What storage migration asks of a driver; XCP-ng 8.3, "What the driver must do".
//!
//! At the source, a snapshot that is made while the VDI's tapdisk begins to send what is written to the destination as well. At the
//! destination, a snapshot by which an empty disk becomes the child of an empty base, to take what is sent; and `vdi_compose`,
//! which gives that disk, at the end, the one with the copied snapshot as its parent.

use super::{Answer, Service, deadline, now};
use crate::door::host::device;
use crate::door::smapiv1::code::Code;
use crate::door::smapiv1::command::Command;
use crate::door::smapiv1::faults::Failure;
use crate::door::smapiv1::hosts::Hosts;
use crate::door::smapiv1::sync;
use crate::door::xapi::{Record, text};
use crate::door::xmlrpc::Value;
use crate::sys::lock::Kind;
use crate::sys::syslog;
use crate::sys::tapdisk::{NO_MIRROR, is_secondary};
use crate::types::{Format, VdiUuid};

/// What a copy of a VDI is made for.
pub(super) enum Purpose {
    Itself,
    /// What is written to the VDI is sent to this place as well, from before the snapshot on; or is no more, by [`NO_MIRROR`].
    Source(String),
    /// The VDI is to take what is sent from elsewhere.
    Destination,
}

impl Service<'_> {
    /// What the copy of this request is made for.
    ///
    /// # Errors
    /// [`Code::Unimplemented`] for a raw VDI, and on an SR that cannot take part in a migration.
    pub(super) fn purpose(&self) -> Result<Purpose, Failure> {
        let driver_params = self.request.map("driver_params")?;
        let mirror = driver_params.get("mirror");
        if self.request.command != Command::VdiSnapshot
            || (mirror.is_none() && !driver_params.contains_key("base_mirror"))
        {
            return Ok(Purpose::Itself);
        }
        self.refuse_immovable()?;
        match mirror {
            None => Ok(Purpose::Destination),
            Some(place) if is_secondary(place) => Ok(Purpose::Source(place.clone())),
            Some(place) => Err(Failure::new(Code::BadRequest, format!("{place:?} is no place to send to"))),
        }
    }

    /// Refuses what cannot take part in a migration.
    fn refuse_immovable(&self) -> Result<(), Failure> {
        let unimplemented = |why: &str| Err(Failure::new(Code::Unimplemented, format!("storage migration: {why}")));
        if !self.driver.about.capabilities.contains(&device::MIRROR) {
            return unimplemented("SRs of this type have none");
        }
        match self.info()?.format {
            Format::Raw => unimplemented("a raw disk can have no parent"),
            _ => Ok(()),
        }
    }

    /// Makes the tapdisk of the VDI send what is written to `place` as well, on whatever host it is.
    ///
    /// Before the snapshot: what is written in between is in the snapshot, and is sent too, which does no harm. So no I/O has to
    /// wait for the snapshot, and no pause of tapdisk outlives a kill for long.
    ///
    /// # Errors
    /// [`Code::VDIUnavailable`] if no host writes to it.
    pub(super) fn mirror_to(&self, vdi: VdiUuid, hosts: Option<&Hosts>, place: &str) -> Result<(), Failure> {
        let (elsewhere, here) = hosts.map_or(Ok((false, true)), |hosts| hosts.mirror(place))?;
        let is_mirrored = elsewhere
            || here && {
                let _lock = device::activation(vdi, deadline())?;
                device::mirror(self.sr()?, self.vdi_name()?, place)?
            };
        match is_mirrored || place == NO_MIRROR {
            true => Ok(()),
            false => {
                Err(Failure::new(Code::VDIUnavailable, "no tapdisk has it open for writing, so nothing can be sent"))
            }
        }
    }

    /// Ends what [`Service::mirror_to`] began for a snapshot that failed.
    pub(super) fn unmirror(&self, vdi: VdiUuid, hosts: Option<&Hosts>) {
        if let Err(failure) = self.mirror_to(vdi, hosts, NO_MIRROR) {
            let why = self.reason(&failure, self.request.command);
            syslog::write(&format!("what is written to VDI {vdi} is still sent elsewhere: {why}"));
        }
    }

    /// Makes the VDI whose reference is the argument the parent of the VDI of the request; xapi has no disk in it then.
    pub(super) fn vdi_compose(&mut self) -> Answer {
        self.assert_attached()?;
        let (sr_ref, child_ref) = (self.request.text("sr_ref")?, self.request.text("vdi_ref")?);
        let (disk, parent_ref) = (self.vdi()?, self.request.arg(0)?);
        self.refuse_immovable()?;
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
