//! The methods of the data path; SMAPIv3, "Datapath interface".
//!
//! Datapath.attach looks whether the volume is there and names the device; it changes nothing, so two hosts may have a volume
//! attached while it moves from one to the other. Datapath.activate makes the device, under the volume's lock of activation, in
//! this order:
//!
//! 1. the domain is recorded; 2. on an SR that several hosts have, this host claims a volume that is to be written
//!    ([`claim`]); 3. the driver makes the block device; 4. the device gets the names by which the host finds it
//!    ([`device`]).
//!
//! Datapath.deactivate of the last domain undoes 4, 3, 2, 1. After a kill between any two, the domain is recorded: activate does what
//! is left, and deactivate undoes what is there. A domain that is not recorded has nothing, so its deactivate does nothing.

use serde_json::{Value, json};

use super::call::{self, deadline, now};
use super::claim;
use super::fault::Fault;
use super::state::{self, Domains, Held};
use super::uri::Uri;
use crate::call::Session;
use crate::door::host::device::{self, device_link, tapdisk_link};
use crate::door::smapiv1::attached::pages;
use crate::door::smapiv1::code::Code;
use crate::door::smapiv1::faults::Failure;
use crate::error::{Error, Result, one_line};
use crate::sys::lock::Kind;
use crate::sys::syslog;
use crate::sys::tapdisk::{self, Blktap};
use crate::types::{Mode, VdiUuid};

/// Bytes of the longest name of a domain.
const LONGEST: usize = 4096;

/// Names the device that the volume will have.
///
/// # Errors
/// [`Error::NoVdi`]; [`Error::SrUnavailable`] if the SR is not attached.
pub fn attach(uri: Uri) -> Result<Value, Fault> {
    call::attached(uri.handle)?.vdi_get_brief(uri.vdi, &now())?;
    let (sr, name) = (uri.handle.sr, uri.vdi.to_string());
    let link = device_link(sr, &name).display().to_string();
    let nbd = || format!("nbd:unix:{}:exportname={name}", tapdisk_link(sr, &name).display());
    let disk = |backend: &str, params: &str| {
        let extra: serde_json::Map<String, Value> =
            pages(&name).into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
        json!(["XenDisk", { "backend_type": backend, "params": params, "extra": extra }])
    };
    let device = json!(["BlockDevice", { "path": link }]);
    let implementations = match tapdisk::present() {
        Blktap::Absent => json!([disk("vbd", &link), device]),
        Blktap::Device => json!([disk("vbd3", &link), device, ["Nbd", { "uri": nbd() }]]),
        // A tapdisk without a block device: ours would be no back end for a guest.
        Blktap::Socket => json!([disk("vbd3", &nbd()), ["Nbd", { "uri": nbd() }]]),
    };
    Ok(json!({ "implementations": implementations }))
}

/// Makes the device of a volume for a domain. Idempotent.
///
/// # Errors
/// [`Code::InvalidArg`] for a name of a domain that is too long; [`Error::VdiInUse`] if another host writes to it, or if it is here in the other mode; those of [`Session::vdi_attach`].
pub fn activate(uri: Uri, domain: &str, mode: Mode) -> Result<Value, Fault> {
    if domain.len() > LONGEST {
        let why = format!("domain has {} bytes, and {LONGEST} are allowed", domain.len());
        return Err(Failure::new(Code::InvalidArg, why).into());
    }
    let (sr, vdi) = (uri.handle.sr, uri.vdi);
    // The SR stays attached meanwhile.
    let _shared = state::lock(sr, Kind::Shared, deadline())?;
    let session = call::attached(uri.handle)?;
    let mode = if session.vdi_get_brief(vdi, &now())?.read_only { Mode::ReadOnly } else { mode };
    let _alone = device::activation(vdi, deadline())?;
    let before = state::domains(sr, vdi)?;
    let mut domains = before.clone();
    domains.insert(domain.to_owned(), if mode == Mode::ReadWrite { Held::Rw } else { Held::Ro });
    state::set_domains(sr, vdi, &domains)?;
    if let Err(error) = connect(&session, vdi, mode) {
        // Of a device that others have, nothing is undone but the claim to write, which none of them has.
        let has = |what| before.values().any(|held| *held == what);
        let undone = match (has(Held::Rw), has(Held::Ro)) {
            (false, false) => disconnect(&session, vdi),
            (false, true) if mode == Mode::ReadWrite => claim::give_up(&session, vdi, &now()),
            _ => Ok(()),
        };
        let undone = undone.and_then(|()| state::set_domains(sr, vdi, &before));
        return Err(error.undone(undone).into());
    }
    Ok(Value::Null)
}

fn connect(session: &Session, vdi: VdiUuid, mode: Mode) -> Result<()> {
    if mode == Mode::ReadWrite {
        claim::take(session, vdi, &now())?;
    }
    let made = session.vdi_attach(vdi, mode, &now())?;
    device::connect(session.sr(), &vdi.to_string(), &made, mode)
}

fn disconnect(session: &Session, vdi: VdiUuid) -> Result<()> {
    device::disconnect(session.sr(), &vdi.to_string())?;
    session.vdi_detach(vdi, &now())?;
    claim::give_up(session, vdi, &now())
}

/// Removes the device of a volume with its last domain. Idempotent.
///
/// # Errors
/// Those of [`Session::vdi_detach`]. Then the domain still has the volume.
pub fn deactivate(uri: Uri, domain: &str) -> Result<Value, Fault> {
    // A look that needs no lock: most calls come twice.
    if state::domains(uri.handle.sr, uri.vdi)?.is_empty() {
        return Ok(Value::Null);
    }
    let session = call::open(uri.handle, false)?;
    let _alone = device::activation(uri.vdi, deadline())?;
    let mut domains = state::domains(uri.handle.sr, uri.vdi)?;
    if domains.remove(domain).is_some() {
        release(&session, uri.vdi, domains)?;
    }
    Ok(Value::Null)
}

/// Leaves a volume to `domains`, if any of them still has it. The caller holds the lock of activation.
fn release(session: &Session, vdi: VdiUuid, domains: Domains) -> Result<()> {
    if domains.values().any(|held| *held != Held::Gone) {
        return state::set_domains(session.sr(), vdi, &domains);
    }
    disconnect(session, vdi)?;
    state::set_domains(session.sr(), vdi, &Domains::new())
}

/// Ends what a domain has of a volume. It never fails: its callers would ignore that, and nobody would come back. A device that cannot
/// be removed now is removed by the next domain that leaves the volume, or with the SR.
pub fn detach(uri: Uri, domain: &str) -> Value {
    let gone = || -> Result<()> {
        let _alone = device::activation(uri.vdi, deadline())?;
        let mut domains = state::domains(uri.handle.sr, uri.vdi)?;
        match domains.get_mut(domain) {
            Some(held) => {
                *held = Held::Gone;
                state::set_domains(uri.handle.sr, uri.vdi, &domains)
            }
            None => Ok(()),
        }
    };
    if let Err(fault) = deactivate(uri, domain) {
        let kept = gone().err().map(|error| format!("; {}", one_line(&error))).unwrap_or_default();
        syslog::write(&format!("VDI {} stays attached on this host: {fault:?}{kept}", uri.vdi));
    }
    Value::Null
}

/// Removes the device of a volume whose domains have all gone. Does nothing to one that a domain has.
///
/// # Errors
/// Those of [`Session::vdi_detach`].
pub fn finish(session: &Session, vdi: VdiUuid) -> Result<(), Fault> {
    let _alone = device::activation(vdi, deadline())?;
    let domains = state::domains(session.sr(), vdi)?;
    match domains.values().all(|held| *held == Held::Gone) {
        true => Ok(release(session, vdi, domains)?),
        false => Err(Error::VdiInUse {
            vdi,
            sr: session.sr(),
            holder: format!(
                "domain {}, which has not deactivated it",
                domains.keys().cloned().collect::<Vec<_>>().join(", ")
            ),
        }
        .into()),
    }
}
