//! The claim of this host on a volume of an SR that several hosts have: the persistent lock of the volume, on the storage itself, in
//! the name of the host. A host that was rebooted drops its own.

use std::fs;
use std::time::Instant;

use super::call::now;
use super::fault::Fault;
use crate::call::Session;
use crate::context::Context;
use crate::door::host::device;
use crate::error::{Error, Result, one_line};
use crate::sys::lock::Lock;
use crate::sys::{run_dir, syslog};
use crate::types::{VdiInfo, VdiUuid};

/// The beginning of the user name under which a host holds the persistent lock; the UUID of the host follows.
const HOST: &str = "host ";

/// The UUID of this host, as xapi knows it; on a host without xapi, the identity of its installation (machine-id(5)).
pub fn this_host() -> String {
    let inventory = fs::read_to_string(run_dir::host_inventory()).unwrap_or_default();
    let of_inventory = inventory.lines().find_map(|line| line.strip_prefix("INSTALLATION_UUID="));
    match of_inventory.map(|value| value.trim().trim_matches('\'').trim_matches('"').to_owned()) {
        Some(uuid) if !uuid.is_empty() => uuid,
        _ => fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned(),
    }
}

fn own() -> String {
    format!("{HOST}{}", this_host())
}

/// Claims a volume for this host, which wants to write to it. Idempotent. Does nothing on an SR that only this host has.
///
/// # Errors
/// [`Error::VdiInUse`] with the other host that has it.
pub fn take(session: &Session, vdi: VdiUuid, context: &Context) -> Result<()> {
    claim(session, vdi, context).map(drop)
}

/// What [`take`] does. Answers whether the claim was not there before.
fn claim(session: &Session, vdi: VdiUuid, context: &Context) -> Result<bool> {
    let own = own();
    if !session.is_shared() || session.vdi_get_params(vdi, context)?.vbds.contains(&own) {
        return Ok(false);
    }
    let locked = session.vdi_lock(vdi, &own, false, context).map_err(|error| match error {
        Error::LockRefused { vdi, sr, why } => Error::VdiInUse { vdi, sr, holder: format!("another host: {why}") },
        other => other,
    });
    locked.map(|()| true)
}

/// Gives the claim of this host back. Idempotent.
///
/// # Errors
/// Those of [`Session::vdi_unlock`].
pub fn give_up(session: &Session, vdi: VdiUuid, context: &Context) -> Result<()> {
    if !session.is_shared() {
        return Ok(());
    }
    let own = own();
    match session.vdi_get_params(vdi, context)?.vbds.contains(&own) {
        true => session.vdi_unlock(vdi, &own, false, context),
        false => Ok(()),
    }
}

/// Keeps other hosts from writing to a volume until it is dropped.
pub struct Hold<'a> {
    session: &'a Session,
    vdi: VdiUuid,
    /// The claim was not there before.
    taken: bool,
    _alone: Option<Lock>,
}

/// Claims a volume for the time of a call that changes what belongs to its writer: its size, its log of changed blocks. Of a call that
/// is killed the claim is left, which the next SR.ls or SR.attach of this host drops.
///
/// # Errors
/// Those of [`take`].
pub fn hold<'a>(session: &'a Session, vdi: VdiUuid, context: &Context) -> Result<Hold<'a>> {
    if !session.is_shared() {
        return Ok(Hold { session, vdi, taken: false, _alone: None });
    }
    // No activation of this host may take the claim for its own.
    let alone = Some(device::activation(vdi, context.deadline)?);
    let taken = claim(session, vdi, context)?;
    Ok(Hold { session, vdi, taken, _alone: alone })
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.taken
            && let Err(error) = give_up(self.session, self.vdi, &now())
        {
            syslog::write(&format!("VDI {} stays claimed by this host: {}", self.vdi, one_line(&error)));
        }
    }
}

/// Refuses what another host that writes to a volume would make wrong.
///
/// # Errors
/// [`Error::VdiInUse`] with that host.
pub fn refuse_elsewhere(session: &Session, vdi: VdiUuid, context: &Context) -> Result<()> {
    if !session.is_shared() {
        return Ok(());
    }
    let (own, users) = (own(), session.vdi_get_params(vdi, context)?.vbds);
    match users.into_iter().find(|user| user.starts_with(HOST) && *user != own) {
        Some(other) => Err(Error::VdiInUse { vdi, sr: session.sr(), holder: format!("{other}, which writes to it") }),
        None => Ok(()),
    }
}

/// Gives back the claims of this host on volumes that it does not have: those that it had before a reboot, and those of killed calls.
/// `found`: what a scan found. What fails is logged, and keeps no other volume from being used.
pub fn drop_stale(session: &Session, found: &[VdiInfo]) {
    let own = own();
    let is_stale = |vdi: &VdiInfo| !vdi.attached && vdi.vbds.contains(&own);
    for vdi in found.iter().filter(|vdi| session.is_shared() && is_stale(vdi)).map(|vdi| vdi.uuid) {
        // A call that has claimed the volume and not made its device yet holds this.
        let Ok(_alone) = device::activation(vdi, Instant::now()) else { continue };
        let dropped = session.vdi_get_params(vdi, &now()).and_then(|info| match is_stale(&info) {
            true => session.vdi_unlock(vdi, &own, false, &now()),
            false => Ok(()),
        });
        if let Err(error) = dropped {
            syslog::write(&format!("VDI {vdi} stays claimed by this host: {}", one_line(&error)));
        }
    }
}

/// The fault of a volume that is in use: if another host has it, the fault says which, and xapi goes there.
pub fn or_elsewhere(session: &Session, vdi: VdiUuid, error: Error, context: &Context) -> Fault {
    if matches!(error, Error::VdiInUse { .. }) && session.is_shared() {
        let users = session.vdi_get_params(vdi, context).map(|info| info.vbds).unwrap_or_default();
        let hosts: Vec<&str> = users.iter().filter_map(|user| user.strip_prefix(HOST)).collect();
        let this = this_host();
        if let Some(host) = hosts.first().filter(|_| hosts.iter().all(|host| *host != this)) {
            return Fault::Elsewhere { host: (*host).to_owned() };
        }
    }
    error.into()
}
