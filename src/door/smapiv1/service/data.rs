//! The commands that make and remove the device of a VDI, also for a host whose xapi is not up yet.

use std::time::Instant;

use super::cbt::Alert;
use super::{Answer, Service, deadline, now};
use crate::door::host::{device, local_path, ours};
use crate::door::plugin::lvhd_thin;
use crate::door::smapiv1::claim::{self, KEY_HASH, Tag};
use crate::door::smapiv1::code::Code;
use crate::door::smapiv1::command::Command;
use crate::door::smapiv1::faults::{Failure, general_fault};
use crate::door::smapiv1::{self, attached};
use crate::door::xapi::Xapi;
use crate::door::xmlrpc::{self, Value};
use crate::error::Error;
use crate::sys::lock::Kind;
use crate::sys::syslog;
use crate::types::{Format, Mode, VdiUuid};

/// The capability of a driver whose disks can go back at each start of a VM, by vdi_epoch_begin.
const RESET_ON_BOOT: &str = "VDI_RESET_ON_BOOT/2";

impl Service<'_> {
    pub(super) fn vdi_attach(&mut self) -> Answer {
        self.assert_attached()?;
        self.request.flag(0)?;
        self.session()?.vdi_get_brief(self.vdi()?, &now()).map_err(|e| self.missing(e))?;
        Ok(attached::attached(self.sr()?, self.vdi_name()?, true))
    }

    pub(super) fn vdi_activate(&mut self) -> Answer {
        self.assert_attached()?;
        let mode = if self.request.flag(0)? { Mode::ReadWrite } else { Mode::ReadOnly };
        let vdi = self.vdi()?;
        let tag = Tag { vdi_ref: self.request.text("vdi_ref")?, host_ref: self.request.text("host_ref")? };
        self.while_not_paused(vdi, |service| {
            if !tag.claim(service.xapi()?, mode)? {
                return Ok(false);
            }
            let was_tracked = mode == Mode::ReadWrite && service.is_tracked(vdi);
            let followed = if mode == Mode::ReadWrite { service.follow_on_boot(vdi) } else { Ok(()) };
            if let Err(failure) = followed.and_then(|()| service.connect(vdi, mode)) {
                let _ = tag.give_up(service.xapi()?);
                return Err(failure);
            }
            service.tell_if_untracked(was_tracked, vdi, Alert::Inconsistent);
            Ok(true)
        })
    }

    /// Whether xapi has the VDI go back at each start of its VM, and the driver can do that.
    fn resets(&self) -> Result<Option<bool>, Failure> {
        let can = smapiv1::announced(self.driver).any(|capability| capability == RESET_ON_BOOT);
        Ok(match self.request.optional("vdi_on_boot")? {
            Some("reset") if can => Some(true),
            Some("persist") if can => Some(false),
            _ => None,
        })
    }

    /// Makes the mark of a VDI say what its record in xapi says of it, before anything is written to it or made of it. xapi sets the
    /// record without a word to the driver. Raw disks have no such mark; `vdi_epoch_begin` refuses them.
    pub(super) fn follow_on_boot(&self, vdi: VdiUuid) -> Result<(), Failure> {
        if let Some(resets) = self.resets()?
            && self.info()?.format != Format::Raw
        {
            self.session()?.vdi_set_resets(vdi, resets, &now())?;
        }
        Ok(())
    }

    /// At the start of a VM, for each disk of it, before the disk is attached.
    pub(super) fn vdi_epoch_begin(&mut self) -> Answer {
        if self.request.optional("vdi_on_boot")? != Some("reset") {
            return Ok(Value::Nil);
        }
        let unimplemented = |why: &str| Err(Failure::new(Code::Unimplemented, format!("reset on boot: {why}")));
        match self.resets()? {
            Some(true) => {}
            _ => return unimplemented("SRs of this type have none"),
        }
        self.assert_attached()?;
        let vdi = self.vdi()?;
        if self.info()?.format == Format::Raw {
            return unimplemented("a raw disk has none");
        }
        let _shared = self.agent_lock(Kind::Shared)?;
        self.session()?.vdi_reset(vdi, &now())?;
        Ok(Value::Nil)
    }

    /// Does `attempt` with the VDI's activation lock, again and again while `attempt` says that the VDI is paused. The lock is
    /// free in between: the call that ends the pause may need it.
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

    pub(super) fn vdi_deactivate(&mut self) -> Answer {
        let vdi = self.vdi()?;
        let tag = Tag { vdi_ref: self.request.text("vdi_ref")?, host_ref: self.request.text("host_ref")? };
        self.while_not_paused(vdi, |service| {
            if tag.is_paused(service.xapi()?)? {
                return Ok(false);
            }
            service.disconnect(vdi)?;
            tag.give_up(service.xapi()?)?;
            service.give_room_back(vdi);
            Ok(true)
        })
    }

    /// On another host than the SR's master. What fails costs room, and is noted.
    fn give_room_back(&self, vdi: VdiUuid) {
        let has_volumes = || self.session()?.vdi_volumes(vdi, deadline()).map_err(Failure::from);
        if self.request.device_config.get("SRmaster") != Some("false") || !matches!(has_volumes(), Ok(Some(_))) {
            return;
        }
        if let Err(failure) = self.ask_master(lvhd_thin::DETACH, vdi) {
            syslog::write(&self.reason(&failure, self.request.command));
        }
    }

    pub(super) fn vdi_detach(&mut self) -> Answer {
        let vdi = self.vdi()?;
        self.disconnect(vdi)?;
        Ok(Value::Nil)
    }

    fn connect(&self, vdi: VdiUuid, mode: Mode) -> Result<(), Failure> {
        let session = self.session()?;
        let attach = || session.vdi_attach_for_guest(vdi, mode, device::opened_by_tapdisk(), &now());
        let device = match attach() {
            // Its volume has to be made larger, which the SR's master alone may do.
            Err(Error::NotMaster { .. }) => {
                self.ask_master(lvhd_thin::ATTACH, vdi)?;
                attach()
            }
            other => other,
        };
        let device = device.map_err(|e| self.missing(e))?;
        let connected = device::connect(self.sr()?, self.vdi_name()?, &device, mode);
        // Refused while anything uses it.
        Ok(connected.inspect_err(|_| drop(session.vdi_detach(vdi, &now())))?)
    }

    /// Asks the SR's master for room in the volume of a VDI, or gives it back.
    fn ask_master(&self, function: &str, vdi: VdiUuid) -> Result<(), Failure> {
        let refused =
            |why: String| Failure::new(Code::LVMMaster, format!("the SR's master gives VDI {vdi} no room: {why}"));
        let mut xapi = Xapi::new(self.request.text("session_ref")?, self.request.optional("subtask_of")?);
        let master = ours::master(&mut xapi)?;
        let args = lvhd_thin::arguments(self.sr()?, vdi, "");
        let words = [Value::text(master), Value::text(lvhd_thin::NAME), Value::text(function), args];
        match xapi.call("host.call_plugin", &words) {
            Ok(Value::String(word)) if word == "True" => Ok(()),
            Ok(other) => Err(refused(format!("its plug-in {} answered {other:?} to {function}", lvhd_thin::NAME))),
            Err(e) => Err(refused(e.to_string())),
        }
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
        self.session()?.vdi_detach(vdi, &now())?;
        Ok(())
    }

    pub(super) fn vdi_generate_config(&mut self) -> Answer {
        self.assert_attached()?;
        self.info()?;
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

    /// Refuses a VDI whose record says that its data is encrypted.
    fn refuse_encrypted(&mut self) -> Result<(), Failure> {
        let (reference, code) = (self.request.text("vdi_ref")?, general_fault(self.request.command));
        let sm_config = self.xapi()?.record("VDI.get_sm_config", reference)?;
        claim::refuse_encrypted(sm_config.get(KEY_HASH).and_then(Value::as_str), code)
    }

    pub(super) fn vdi_attach_from_config(&self) -> Answer {
        let session = self.session()?;
        session.sr_attach(&now())?;
        local_path::enter(session)?;
        self.connect(self.vdi()?, Mode::ReadWrite)?;
        Ok(attached::attached(self.sr()?, self.vdi_name()?, false))
    }

    pub(super) fn vdi_detach_from_config(&self) -> Answer {
        self.disconnect(self.vdi()?)?;
        Ok(Value::Nil)
    }
}
