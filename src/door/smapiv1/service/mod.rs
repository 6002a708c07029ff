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
//!
//! | file | what |
//! |---|---|
//! | `sr` | the commands of an SR |
//! | `vdi` | the commands of a VDI that change records |
//! | `data` | attach, activate and what undoes them |
//! | `cbt` | changed block tracking |
//! | `migration` | storage migration, at the source and at the destination |
//! | `figures` | the totals of an SR in xapi |

mod cbt;
mod data;
mod figures;
mod migration;
mod sr;
mod vdi;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::code::Code;
use super::collector;
use super::command::Command;
use super::faults::{self, Attempt, Failure};
use super::hosts::Hosts;
use super::request::Request;
use super::secret;
use crate::call::{Session, policy};
use crate::context::{Context, OtherHosts};
use crate::door::host::{self, local_path};
use crate::door::xapi::Xapi;
use crate::door::xmlrpc::Value;
use crate::sr::{Driver, Substrate};
use crate::sys::lock::{self, Kind, Lock, Refused};
use crate::types::{DeviceConfig, SrUuid, VdiInfo, VdiUuid};

/// The end of the waits of what begins now.
fn deadline() -> Instant {
    Instant::now() + patience()
}

/// xapi has no time limit; a process that holds a lock this long has died in the kernel.
fn patience() -> Duration {
    host::patience(Duration::from_secs(600))
}

/// The circumstances of an operation that begins now and that no other host has to hear of.
fn now() -> Context<'static> {
    until(deadline(), None)
}

/// The circumstances of an operation that other hosts may have to hear of.
fn until(deadline: Instant, others: Option<Arc<Hosts>>) -> Context<'static> {
    Context { deadline, progress: &|_, _| {}, others: others.map(|hosts| hosts as Arc<dyn OtherHosts>) }
}

type Answer = Result<Value, Failure>;

/// The lock that a scan holds alone, and every other call that changes disks and records shares.
pub const AGENT: &str = "agent";

/// One request on one SR.
pub struct Service<'a> {
    driver: &'static Driver,
    request: &'a Request,
    /// That of the request, with the secrets that it names by reference.
    config: DeviceConfig,
    /// sr_probe names none.
    sr: Option<SrUuid>,
    xapi: Option<Xapi>,
    /// Opened at the first use, when `config` is complete.
    session: OnceCell<Session>,
    /// Something was left that the collector would merge.
    leaves_work: bool,
}

impl<'a> Service<'a> {
    /// Takes a request up. Touches nothing.
    ///
    /// # Errors
    /// [`Code::BadRequest`] for members of the request that are not what they have to be.
    pub fn new(driver: &'static Driver, request: &'a Request) -> Result<Service<'a>, Failure> {
        let sr = match request.optional("sr_uuid")? {
            Some(text) => Some(text.parse::<SrUuid>()?),
            None => None,
        };
        let task = request.optional("subtask_of")?;
        let xapi = request.optional("session_ref")?.map(|session| Xapi::new(session, task));
        let session = OnceCell::new();
        Ok(Service { driver, request, config: request.device_config.clone(), sr, xapi, session, leaves_work: false })
    }

    /// Carries the command out.
    ///
    /// # Errors
    /// Those of the driver, those of xapi, and the refusals of this door itself.
    pub fn run(&mut self) -> Answer {
        let answer = self.carry_out();
        if let (true, Some(sr)) = (self.leaves_work && answer.is_ok(), self.sr) {
            collector::start(sr);
        }
        answer
    }

    fn carry_out(&mut self) -> Answer {
        let command = self.request.command;
        policy::refuse_on_slave(&self.request.device_config, command.name())?;
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
            Command::VdiRevert => self.vdi_revert(),
            Command::VdiResize | Command::VdiResizeOnline => self.vdi_resize(),
            Command::VdiAttach => self.vdi_attach(),
            Command::VdiActivate => self.vdi_activate(),
            Command::VdiDeactivate => self.vdi_deactivate(),
            Command::VdiDetach => self.vdi_detach(),
            Command::VdiGenerateConfig => self.vdi_generate_config(),
            Command::VdiAttachFromConfig => self.vdi_attach_from_config(),
            Command::VdiDetachFromConfig => self.vdi_detach_from_config(),
            Command::VdiEpochBegin => self.vdi_epoch_begin(),
            Command::VdiEpochEnd => Ok(Value::Nil),
            Command::VdiEnableCbt => self.vdi_configure_cbt(true),
            Command::VdiDisableCbt => self.vdi_configure_cbt(false),
            Command::VdiDataDestroy => self.vdi_data_destroy(),
            Command::VdiListChangedBlocks => self.vdi_list_changed_blocks(),
            Command::VdiCompose => self.vdi_compose(),
        }
    }

    /// Puts the secrets of xapi that device_config names into it. For the commands that log in somewhere, before the SR is
    /// opened; all others need none.
    fn fetch_secrets(&mut self) -> Result<(), Failure> {
        let (driver, known) = (self.driver, &self.request.device_config);
        let mut xapi = self.xapi.as_mut();
        self.config = policy::with_secrets(driver, known, |key, uuid| {
            let xapi = xapi.as_mut().ok_or_else(no_session)?;
            secret(xapi, key, uuid)
        })?;
        self.fetch_settings_of_host()
    }

    /// Puts what xapi knows of the host and of all its LUNs into device_config, for a driver that connects LUNs. What
    /// device_config has itself counts.
    fn fetch_settings_of_host(&mut self) -> Result<(), Failure> {
        const SETTINGS: [(&str, &str); 2] = [("multipathing", "multipathing"), ("iscsi_iqn", "localIQN")];
        if self.driver.about.substrate != Substrate::Lun {
            return Ok(());
        }
        let host = Value::text(self.request.text("host_ref")?);
        let answer = self.xapi()?.call("host.get_other_config", &[host])?;
        let known = answer.as_struct().cloned().unwrap_or_default();
        for (name, key) in SETTINGS {
            let Some(value) = known.get(name).and_then(Value::as_str).filter(|value| !value.is_empty()) else {
                continue;
            };
            // The Python drivers take anything but true for false.
            let value = if name == "multipathing" && value != "true" { "false" } else { value };
            if self.driver.keys().any(|it| it == key) {
                self.config.0.entry(key.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
        Ok(())
    }

    /// The secrets that [`Service::fetch_secrets`] found. No message and no log may show them.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let known = &self.request.device_config.0;
        let is_secret = |key: &str| !known.contains_key(key) && known.contains_key(&format!("{key}_secret"));
        self.config.0.iter().filter(move |(key, _)| is_secret(key)).map(|(_, value)| value.as_str())
    }

    fn reason(&self, failure: &Failure, command: Command) -> String {
        faults::fault(failure, Attempt::of(self.driver, Some(command))).1
    }

    fn sr(&self) -> Result<SrUuid, Failure> {
        self.sr.ok_or_else(|| Failure::new(Code::BadRequest, "sr_uuid is missing"))
    }

    /// The SR of this request, open.
    fn session(&self) -> Result<&Session, Failure> {
        if let Some(session) = self.session.get() {
            return Ok(session);
        }
        let session = Session::open(self.driver, self.sr()?, self.config.clone())?;
        Ok(self.session.get_or_init(|| session))
    }

    fn xapi(&mut self) -> Result<&mut Xapi, Failure> {
        self.xapi.as_mut().ok_or_else(no_session)
    }

    fn location(&self) -> Result<&str, Failure> {
        match self.request.optional("vdi_location")?.filter(|location| !location.is_empty()) {
            Some(location) => Ok(location),
            None => self.request.text("vdi_uuid"),
        }
    }

    fn vdi(&self) -> Result<VdiUuid, Failure> {
        Ok(self.session()?.vdi_at(self.location()?)?)
    }

    /// The UUID by which xapi knows the VDI: part of the device's name, so it is checked to be one.
    fn vdi_name(&self) -> Result<&str, Failure> {
        let uuid = self.request.text("vdi_uuid")?;
        uuid.parse::<VdiUuid>()?;
        Ok(uuid)
    }

    /// The other hosts that may have a VDI attached; on an SR that several have.
    fn hosts(&self, vdi: VdiUuid, vdi_uuid: &str, vdi_ref: &str) -> Result<Option<Arc<Hosts>>, Failure> {
        let (sr, request) = (self.sr()?, self.request);
        if !self.session()?.is_shared() {
            return Ok(None);
        }
        let xapi = Mutex::new(Xapi::new(request.text("session_ref")?, request.optional("subtask_of")?));
        let host_ref = request.text("host_ref")?.to_owned();
        let (vdi_uuid, vdi_ref) = (vdi_uuid.to_owned(), vdi_ref.to_owned());
        let (driver, config, before) = (self.driver, self.config.clone(), Mutex::default());
        Ok(Some(Arc::new(Hosts { xapi, driver, sr, vdi, vdi_uuid, vdi_ref, host_ref, config, before })))
    }

    /// The other hosts that may have the VDI of this request attached; on an SR that several hosts have.
    fn hosts_of_vdi(&self) -> Result<Option<Arc<Hosts>>, Failure> {
        self.hosts(self.vdi()?, self.vdi_name()?, self.request.text("vdi_ref")?)
    }

    /// Refuses what can't be done while another host has the VDI attached.
    fn refuse_if_elsewhere(&self) -> Result<(), Failure> {
        match self.hosts_of_vdi()? {
            Some(hosts) => Ok(hosts.refuse_if_attached(true)?),
            None => Ok(()),
        }
    }

    /// The facts about the VDI of this request, without its children, its locks and its attachment.
    fn info(&self) -> Result<VdiInfo, Failure> {
        Ok(self.session()?.vdi_get_brief(self.vdi()?, &now())?)
    }

    /// The keys of a VDI's `sm_config` that its SR sets.
    fn sm_config(&self, info: &VdiInfo) -> BTreeMap<String, String> {
        let keys = (self.driver.about.sm_config)(info).into_iter();
        keys.filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }

    fn agent_lock(&self, kind: Kind) -> Result<Lock, Failure> {
        self.lock(AGENT, kind)
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

    /// Refuses an SR that is not attached on this host.
    fn assert_attached(&self) -> Result<(), Failure> {
        Ok(local_path::assert_entered(self.session()?)?)
    }
}

fn no_session() -> Failure {
    Failure::new(Code::BadRequest, "session_ref is missing")
}

fn identity(uuid: &str, location: &str) -> Value {
    Value::map([("uuid", uuid), ("location", location)])
}
