//! The claims of hosts on a VDI; SMAPIv1, "Attach / activate / deactivate / detach" and "Attach tags".
//!
//! vdi_attach looks whether the VDI is there and names the device; it changes nothing, so two hosts may have
//! a VDI attached while it moves from one to the other. vdi_activate makes the device, in this order:
//!
//! 1. `host_<this host> = RW|RO` is added to the VDI's sm_config, which fails if it is there: of two hosts
//!    that want a VDI for writing one gets it;
//! 2. the driver makes the block device;
//! 3. the device gets the names by which the host finds it, see [`device`](crate::door::host::device).
//!
//! vdi_deactivate undoes 3, 2, 1. After a kill between any two, vdi_activate and vdi_deactivate do what is
//! left; sr_attach removes the keys of a host that was rebooted.

use std::path::Path;
use std::time::Duration;

use super::code::Code;
use super::faults::Failure;
use crate::door::host;
use crate::door::xapi::{CLAIM, PAUSED, Record, Xapi};
use crate::door::xmlrpc::Value;
use crate::types::Mode;

/// How long activate and deactivate wait for the end of a pause of the VDI.
pub fn patience() -> Duration {
    host::patience(Duration::from_secs(120))
}

/// The time between two looks whether the VDI is still paused.
pub const PAUSE: Duration = Duration::from_secs(1);

/// This host's claim on a VDI, in xapi's database.
pub struct Tag<'a> {
    /// xapi's reference of the VDI.
    pub vdi_ref: &'a str,
    /// xapi's reference of this host.
    pub host_ref: &'a str,
}

impl Tag<'_> {
    fn key(&self) -> String {
        format!("{CLAIM}{}", self.host_ref)
    }

    /// Claims the VDI. `false`: the VDI is paused, and nothing was changed.
    ///
    /// # Errors
    /// [`Code::VDIUnavailable`] with the other host that has the VDI, and for an encrypted VDI; what xapi refuses.
    pub fn claim(&self, xapi: &mut Xapi, mode: Mode) -> Result<bool, Failure> {
        let wanted = if mode == Mode::ReadWrite { "RW" } else { "RO" };
        let before = xapi.record("VDI.get_sm_config", self.vdi_ref)?;
        if is_paused(&before) {
            return Ok(false);
        }
        refuse_encrypted(before.get(KEY_HASH).and_then(Value::as_str), Code::VDIUnavailable)?;
        self.yield_to_others(xapi, &before, mode)?;
        let mut added = false;
        match before.get(&self.key()).and_then(Value::as_str) {
            Some(there) if there == wanted => {}
            there => {
                added = true;
                if there.is_some() {
                    self.give_up(xapi)?;
                }
                match xapi.add_key("VDI.add_to_sm_config", self.vdi_ref, &self.key(), wanted) {
                    Err(e) if !e.is("MAP_DUPLICATE_KEY") => return Err(e.into()),
                    _ => {}
                }
            }
        }
        // Somebody may have paused it, or claimed it as well, between our reading and our writing.
        let after = xapi.record("VDI.get_sm_config", self.vdi_ref)?;
        if is_paused(&after) {
            // A claim that was there is of a device that is there.
            if added {
                self.give_up(xapi)?;
            }
            return Ok(false);
        }
        self.yield_to_others(xapi, &after, mode).inspect_err(|_| drop(self.give_up(xapi)))?;
        Ok(true)
    }

    /// Gives the claim up. Idempotent.
    ///
    /// # Errors
    /// [`Failure::Api`] if xapi refuses, or does not answer.
    pub fn give_up(&self, xapi: &mut Xapi) -> Result<(), Failure> {
        Ok(xapi.set("VDI.remove_from_sm_config", self.vdi_ref, Value::text(self.key()))?)
    }

    /// Whether the VDI is paused.
    ///
    /// # Errors
    /// [`Failure::Api`] if xapi refuses, or does not answer.
    pub fn is_paused(&self, xapi: &mut Xapi) -> Result<bool, Failure> {
        Ok(is_paused(&xapi.record("VDI.get_sm_config", self.vdi_ref)?))
    }

    /// Refuses a VDI that another host writes, or reads while we want to write.
    fn yield_to_others(&self, xapi: &mut Xapi, sm_config: &Record, mode: Mode) -> Result<(), Failure> {
        if Path::new("/etc/xensource/allow_multiple_vdi_attach").exists() {
            return Ok(());
        }
        for (key, value) in sm_config {
            let Some(host) = key.strip_prefix(CLAIM).filter(|host| *host != self.host_ref) else { continue };
            if mode == Mode::ReadOnly && value.as_str() == Some("RO") {
                continue;
            }
            match xapi.record("host.get_record", host) {
                // A host that left the pool holds nothing.
                Err(e) if e.is_gone() => {
                    xapi.set("VDI.remove_from_sm_config", self.vdi_ref, Value::text(key.as_str()))?;
                }
                Err(e) => return Err(e.into()),
                Ok(record) => {
                    let name = record.get("name_label").and_then(Value::as_str).unwrap_or(host);
                    let how = value.as_str().unwrap_or("?");
                    let why = format!("VDI {} is in use by host {name} ({how})", self.vdi_ref);
                    return Err(Failure::new(Code::VDIUnavailable, why));
                }
            }
        }
        Ok(())
    }
}

/// The key of a VDI's sm_config that says under which key its data is encrypted; xcp-ng, "VDI sm_config".
pub const KEY_HASH: &str = "key_hash";

/// Refuses a VDI whose `key_hash` in sm_config, if it has one, says that its data is encrypted. No driver has keys: the
/// data of such a VDI would be written as plain text, or read as it was encrypted.
///
/// # Errors
/// A failure with `code`.
pub fn refuse_encrypted(key_hash: Option<&str>, code: Code) -> Result<(), Failure> {
    match key_hash {
        Some(hash) if !hash.is_empty() => Err(Failure::new(
            code,
            "encrypted VDIs (key_hash in sm_config) are not served; \
             if its data is not encrypted, remove that key from sm_config",
        )),
        _ => Ok(()),
    }
}

fn is_paused(sm_config: &Record) -> bool {
    sm_config.contains_key(PAUSED) || sm_config.contains_key("relinking")
}
