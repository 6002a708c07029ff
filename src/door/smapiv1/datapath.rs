//! Attach, activate, deactivate, detach; SMAPIv1, "Attach / activate / deactivate / detach" and "Attach tags".
//!
//! vdi_attach looks whether the VDI is there and names the device; it changes nothing, so two hosts may have
//! a VDI attached while it moves from one to the other. vdi_activate makes the device, in this order:
//!
//! 1. `host_<this host> = RW|RO` is added to the VDI's sm_config, which fails if it is there: of two hosts
//!    that want a VDI for writing one gets it;
//! 2. the driver makes the block device;
//! 3. on a host that has tap-ctl, a tapdisk is put over it and `/run/blktap-control/nbd/<sr>/<vdi>` pointed at
//!    it: a guest's disk is a tapdisk there, whatever is below;
//! 4. `/dev/sm/backend/<sr>/<vdi>` is pointed at the block device, tapdisk's if it has one.
//!
//! vdi_deactivate undoes 4, 3, 2, 1. After a kill between any two, vdi_activate and vdi_deactivate do what is
//! left; sr_attach removes the keys of a host that was rebooted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::faults::{Code, Failure};
use super::xapi::{Record, Xapi};
use crate::door::xmlrpc::Value;
use crate::error::{Error, Result};
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::tapdisk::{self, Blktap, Tapdisk};
use crate::sys::{blockdev, run_dir};
use crate::types::{Mode, SrUuid, VdiUuid};

/// How long activate and deactivate wait for whoever paused the VDI.
pub fn patience() -> Duration {
    super::patience(Duration::from_secs(120))
}

/// Between two looks whether it is paused still.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Held from before the claim until the device is there, and by who pauses the VDI on this host: a host that has claimed a
/// VDI and not opened it yet has nothing to pause, and would open it while its tree is changed.
///
/// # Errors
/// [`Error::DeviceInUse`] with who held it until the deadline.
pub fn activation(vdi: VdiUuid, deadline: Instant) -> Result<Lock> {
    lock::take(&vdi.to_string(), ACTIVATION, Kind::Exclusive, deadline).map_err(|refused| {
        let device = format!("VDI {vdi}");
        refused.or_timed_out(|who| Error::DeviceInUse { device, holder: format!("{who} activates or pauses it") })
    })
}

/// Removes the lock file of a VDI that is gone.
pub fn forget_activation(vdi: VdiUuid) {
    lock::forget(&vdi.to_string(), ACTIVATION);
}

const ACTIVATION: &str = "activation";

/// The name of a VDI's block device, the same from attach to detach.
pub fn device_link(sr: SrUuid, vdi: &str) -> PathBuf {
    run_dir::devices().join("backend").join(sr.to_string()).join(vdi)
}

/// The name of a VDI's tapdisk, likewise.
fn tapdisk_link(sr: SrUuid, vdi: &str) -> PathBuf {
    run_dir::tapdisks().join("nbd").join(sr.to_string()).join(vdi)
}

/// Steps 3 and 4. Idempotent.
pub fn connect(sr: SrUuid, vdi: &str, device: &Path, mode: Mode) -> Result<()> {
    let link = tapdisk_link(sr, vdi);
    let own = match Tapdisk::at(&link) {
        Some(_) => return Ok(()),
        None if tapdisk::present() == Blktap::Absent => None,
        None => {
            let (started, own) = Tapdisk::start(device, mode == Mode::ReadOnly || blockdev::is_read_only(device))?;
            started.publish(&link).inspect_err(|_| drop(started.stop()))?;
            own
        }
    };
    publish(&device_link(sr, vdi), own.as_deref().unwrap_or(device))
}

/// Undoes them. Idempotent.
pub fn disconnect(sr: SrUuid, vdi: &str) -> Result<()> {
    withdraw(&device_link(sr, vdi))?;
    let link = tapdisk_link(sr, vdi);
    if let Some(running) = Tapdisk::at(&link)
        && let Err(error) = running.stop()
        && running.lives()
    {
        return Err(error);
    }
    withdraw(&link)
}

/// Whether a VDI that is in use can grow: tapdisk does not open a disk again whose size has changed
/// (EMEDIUMTYPE), and stays paused then.
pub fn can_grow(sr: SrUuid, vdi: &str) -> bool {
    Tapdisk::at(&tapdisk_link(sr, vdi)).is_none()
}

/// The capabilities that this host's data path can't keep.
pub fn missing(capability: &str) -> bool {
    capability == "VDI_RESIZE_ONLINE" && tapdisk::present() != Blktap::Absent
}

/// Points the VDI's name at its block device, in one step.
fn publish(link: &Path, device: &Path) -> Result<()> {
    let dir = link.parent().expect("a link has a directory");
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let temporary = link.with_extension("new");
    let _ = fs::remove_file(&temporary);
    symlink(device, &temporary).map_err(Error::io("link", &temporary))?;
    fs::rename(&temporary, link).map_err(Error::io("link", link))
}

fn withdraw(link: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Ok(()) => {
            // The SR's directory, once it is empty.
            let _ = link.parent().map(fs::remove_dir);
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", link)(e)),
    }
}

/// The answer of vdi_attach. `always`: whether the caller wants a word on NBD where there is none.
pub fn attached(sr: SrUuid, vdi: &str, always: bool) -> Value {
    let blktap = tapdisk::present();
    let mut members = vec![
        // The loop device and the logical volume are opened for direct I/O: no page cache in between.
        ("o_direct", Value::Boolean(true)),
        ("o_direct_reason", Value::text("SR_NOT_SUPPORTED")),
        ("xenstore_data", xenstore_data(vdi)),
    ];
    // Where a tapdisk has no block device, ours would be no back end for a guest.
    if blktap != Blktap::Socket {
        members.push(("params", Value::text(device_link(sr, vdi).display().to_string())));
    }
    if blktap != Blktap::Absent {
        let uri = format!("nbd:unix:{}:exportname={vdi}", tapdisk_link(sr, vdi).display());
        members.push(("params_nbd", Value::text(uri)));
    } else if always {
        members.push(("params_nbd", Value::text("")));
    }
    Value::Struct(members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

/// The SCSI pages by which a guest tells its disks apart.
fn xenstore_data(vdi: &str) -> Value {
    let mut serial = vec![0, 0x80, 0, 0x12];
    serial.extend(vdi.bytes().chain(std::iter::repeat(b' ')).take(16));
    serial.extend(b"  ");
    let mut identity = vec![0, 0x83, 0, 0x31, 2, 1, 0, 0x2d];
    identity.extend(b"XENSRC  ");
    identity.extend(vdi.bytes().chain(std::iter::repeat(b' ')).take(36));
    identity.push(b' ');
    Value::map([
        ("vdi-uuid", vdi.to_owned()),
        ("scsi/0x12/0x80", base64(&serial)),
        ("scsi/0x12/0x83", base64(&identity)),
    ])
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = three.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            let shown = digit <= three.len();
            text.push(if shown { DIGITS[(number >> (18 - 6 * digit) & 63) as usize] as char } else { '=' });
        }
    }
    text
}

/// This host's claim on a VDI, in xapi's database.
pub struct Tag<'a> {
    pub vdi_ref: &'a str,
    pub host_ref: &'a str,
}

impl Tag<'_> {
    fn key(&self) -> String {
        format!("host_{}", self.host_ref)
    }

    /// Claims the VDI. `false`: somebody has it paused, and nothing was changed.
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
    pub fn give_up(&self, xapi: &mut Xapi) -> Result<(), Failure> {
        Ok(xapi.set("VDI.remove_from_sm_config", self.vdi_ref, Value::text(self.key()))?)
    }

    /// Whether somebody has the VDI paused.
    pub fn is_paused(&self, xapi: &mut Xapi) -> Result<bool, Failure> {
        Ok(is_paused(&xapi.record("VDI.get_sm_config", self.vdi_ref)?))
    }

    /// Refuses a VDI that another host writes, or reads while we want to write.
    fn yield_to_others(&self, xapi: &mut Xapi, sm_config: &Record, mode: Mode) -> Result<(), Failure> {
        if Path::new("/etc/xensource/allow_multiple_vdi_attach").exists() {
            return Ok(());
        }
        for (key, value) in sm_config {
            let Some(host) = key.strip_prefix("host_").filter(|host| *host != self.host_ref) else { continue };
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
    sm_config.contains_key("paused") || sm_config.contains_key("relinking")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scsi_pages_are_those_of_the_specification() {
        let Value::Struct(data) = xenstore_data("0f8d7a52-61c3-4b0e-9a77-5e2c1d3b4a96") else { panic!() };
        assert_eq!(data["scsi/0x12/0x80"].as_str(), Some("AIAAEjBmOGQ3YTUyLTYxYzMtNGIgIA=="));
        let page = "AIMAMQIBAC1YRU5TUkMgIDBmOGQ3YTUyLTYxYzMtNGIwZS05YTc3LTVlMmMxZDNiNGE5NiA=";
        assert_eq!(data["scsi/0x12/0x83"].as_str(), Some(page));
    }
}
