//! The other hosts of the pool that have a VDI attached; SMAPIv1, "Attach tags", "Pause" and "Host plug-ins".
//!
//! The SR's master changes the tree of a VDI that several hosts may have attached in this order, under the tree's
//! lock:
//!
//! 1. `paused = true` is added to the VDI's sm_config: from here on no host activates it;
//! 2. every other host that has its `host_…` key there is asked, through the plug-in `tapdisk-pause` ([`plugin`]),
//!    whether it serves the SR by this package, and to hold the VDI: its images are closed, I/O waits;
//! 3. the tree is changed; 4. the hosts let go, and open what has the VDI's name now; 5. the key is removed.
//!
//! After a kill at any point the key is there, and whoever finds it and gets the tree's lock does 4 and 5: the next
//! vdi_snapshot, sr_scan or sr_attach on the master. A host whose answer to 2 is lost is let go before the key is removed
//! and once more after it, and finds no key if the request reaches it later still: so none is left that holds a disk for
//! nobody.
//!
//! Where an SR has volumes that each host activates for itself (LVHD), the hosts follow the change through the plug-in `on-slave`, in the order
//! of the Python drivers (`LVHDSR.py`): after 2 they deactivate the volume of the VDI, and in 4, before they let go, they activate the one that
//! has its name now, and those of its bases. Hosts with the Python plug-ins do that as well as ours, so they are asked all the same.
//!
//! [`plugin`]: crate::door::plugin

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::call::Session;
use crate::context::OtherHosts;
use crate::door::host::pause;
use crate::door::plugin::on_slave;
use crate::door::xapi::{CLAIM, PAUSED, Record, Xapi};
use crate::door::xmlrpc::Value;
use crate::error::{Error, Result};
use crate::sr::{Driver, VolumeChange, VolumeOf};
use crate::sys::syslog;
use crate::types::{DeviceConfig, SrUuid, VdiUuid};

/// The answer of a plug-in that did what it was asked. Any other answer is a no.
const DONE: &str = "True";

/// How long a look at the SR may wait for other calls.
const PATIENCE: Duration = Duration::from_secs(60);

/// The hosts of one VDI, as xapi knows them.
pub struct Hosts {
    pub xapi: Mutex<Xapi>,
    pub driver: &'static Driver,
    pub sr: SrUuid,
    /// The VDI on the substrate, and in xapi.
    pub vdi: VdiUuid,
    pub vdi_uuid: String,
    pub vdi_ref: String,
    /// This one.
    pub host_ref: String,
    /// device_config of the SR on this host.
    pub config: DeviceConfig,
    /// The volumes of the VDI when it was paused.
    pub before: Mutex<Vec<VolumeOf>>,
}

/// The outcome of a request to a host.
enum Asked {
    Done,
    /// The host has left the pool, and its claim is removed.
    Gone,
    No(String),
    /// The plug-in there is not this package's.
    Unknown(String),
}

impl Hosts {
    fn xapi(&self) -> MutexGuard<'_, Xapi> {
        self.xapi.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_paused(&self, why: impl Into<String>) -> Error {
        Error::NotPaused { vdi: self.vdi, sr: self.sr, why: why.into() }
    }

    /// The hosts that claim the VDI, each with `RW` or `RO`.
    fn claims(&self) -> Result<Vec<(String, String)>> {
        let sm_config = self.xapi().record("VDI.get_sm_config", &self.vdi_ref);
        let sm_config = sm_config.map_err(|e| self.not_paused(format!("xapi does not say on which: {e}")))?;
        let of_host = |(key, value): (&String, &Value)| {
            Some((key.strip_prefix(CLAIM)?.to_owned(), value.as_str().unwrap_or("?").to_owned()))
        };
        Ok(sm_config.iter().filter_map(of_host).collect())
    }

    /// Refuses what can't be done while another host has the VDI attached. `read_only`: even if it only reads.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] with the host; [`Error::NotPaused`] when xapi does not say.
    pub fn refuse_if_attached(&self, read_only: bool) -> Result<()> {
        for (host, how) in
            self.claims()?.iter().filter(|(host, how)| *host != self.host_ref && (read_only || how != "RO"))
        {
            let record = self.xapi().record("host.get_record", host);
            match record {
                Err(e) if e.is_gone() => self.drop_claim(host),
                other => {
                    let name = other.as_ref().ok().and_then(name_of).unwrap_or(host);
                    let holder = format!("host {name} ({how}), and cannot be paused for this");
                    return Err(Error::VdiInUse { vdi: self.vdi, sr: self.sr, holder });
                }
            }
        }
        Ok(())
    }

    /// Makes the tapdisk of each host that has the VDI attached for writing, but this one, send what is written to `secondary` as
    /// well. Whether there is such a host, and whether this one is such a host.
    ///
    /// # Errors
    /// [`Error::NotPaused`] with the host that did not, or when xapi does not say.
    pub fn mirror(&self, secondary: &str) -> Result<(bool, bool)> {
        let writers: Vec<String> =
            self.claims()?.into_iter().filter(|(_, how)| how != "RO").map(|(host, _)| host).collect();
        let mut others = false;
        for host in writers.iter().filter(|host| **host != self.host_ref) {
            let args = [
                ("sr_uuid", self.sr.to_string()),
                ("vdi_uuid", self.vdi_uuid.clone()),
                ("vdi_location", self.vdi.to_string()),
                (pause::SECONDARY, secondary.to_owned()),
            ];
            match self.ask_plugin(host, pause::NAME, pause::REFRESH, Value::map(args)) {
                Asked::Done => others = true,
                Asked::Gone => {}
                Asked::No(why) | Asked::Unknown(why) => {
                    return Err(self.not_paused(format!("{} does not mirror it: {why}", self.shown(host))));
                }
            }
        }
        Ok((others, writers.contains(&self.host_ref)))
    }

    /// A host that left the pool holds nothing.
    fn drop_claim(&self, host: &str) {
        let _ = self.xapi().set("VDI.remove_from_sm_config", &self.vdi_ref, Value::text(format!("{CLAIM}{host}")));
    }

    fn ask(&self, host: &str, function: &str) -> Asked {
        let args = [
            ("sr_uuid", self.sr.to_string()),
            ("vdi_uuid", self.vdi_uuid.clone()),
            ("vdi_location", self.vdi.to_string()),
        ];
        self.ask_plugin(host, pause::NAME, function, Value::map(args))
    }

    fn ask_plugin(&self, host: &str, plugin: &str, function: &str, args: Value) -> Asked {
        let words = [Value::text(host), Value::text(plugin), Value::text(function), args];
        let answer = self.xapi().call("host.call_plugin", &words);
        match answer {
            Ok(Value::String(word)) if word == DONE => Asked::Done,
            Ok(Value::String(word)) => Asked::No(format!("answered {word:?} to {function}")),
            Ok(other) => Asked::No(format!("answered {} to {function}", other.kind())),
            // The handle may be one of others', too.
            Err(e) if e.is_gone() && self.xapi().record("host.get_record", host).is_err_and(|e| e.is_gone()) => {
                self.drop_claim(host);
                Asked::Gone
            }
            Err(e) if e.is("UNKNOWN_XENAPI_PLUGIN_FUNCTION") => {
                Asked::Unknown(format!("has no function {function}: {e}"))
            }
            Err(e) => Asked::No(format!("did not carry out {function}: {e}")),
        }
    }

    /// The volumes of a VDI now; none on an SR of another kind.
    fn volumes(&self, vdi: VdiUuid) -> Result<Vec<VolumeOf>> {
        let session = Session::open(self.driver, self.sr, self.config.clone())?;
        Ok(session.vdi_volumes(vdi, Instant::now() + PATIENCE)?.unwrap_or_default())
    }

    /// The volumes of the VDI when it was paused, without bases that it has no more but that are there for others, and those that it has now.
    /// A disk that is gone has none.
    fn before_and_now(&self) -> Result<(Vec<VolumeOf>, Vec<VolumeOf>)> {
        let now = match self.volumes(self.vdi) {
            Err(Error::NoVdi { .. }) => Vec::new(),
            other => other?,
        };
        let mut before = self.before().clone();
        let is_left = |volume: &VolumeOf| now.iter().any(|of| of.vdi == volume.vdi);
        let is_gone = |volume: &VolumeOf| matches!(self.volumes(volume.vdi), Err(Error::NoVdi { .. }));
        before.retain(|volume| volume.vdi == self.vdi || is_left(volume) || is_gone(volume));
        Ok((before, now))
    }

    fn before(&self) -> MutexGuard<'_, Vec<VolumeOf>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a host follow a change of volumes.
    fn follow(&self, host: &str, changes: &[(VolumeChange, &VolumeOf)]) -> std::result::Result<(), String> {
        if changes.is_empty() {
            return Ok(());
        }
        match self.ask_plugin(host, on_slave::NAME, on_slave::MULTI, on_slave::arguments(self.sr, changes)) {
            Asked::Done | Asked::Gone => Ok(()),
            Asked::No(why) | Asked::Unknown(why) => Err(why),
        }
    }

    /// What other hosts have to do when the volumes of the VDI are `now`.
    fn changes<'v>(before: &'v [VolumeOf], now: &'v [VolumeOf]) -> Vec<(VolumeChange, &'v VolumeOf)> {
        let (own, bases) = now.split_at(now.len().min(1));
        let is_in = |all: &[VolumeOf], volume: &VolumeOf| all.iter().skip(1).any(|of| of.vdi == volume.vdi);
        let mut changes = Vec::new();
        for gone in before.iter().skip(1).filter(|volume| !is_in(now, volume)) {
            changes.extend([(VolumeChange::Deactivate, gone), (VolumeChange::Forget, gone)]);
        }
        // Bases first: the device of one that was the VDI's gets its name.
        for base in bases.iter().rev() {
            let is_new = !before.is_empty() && !is_in(before, base);
            changes.push((if is_new { VolumeChange::Use } else { VolumeChange::Refresh }, base));
        }
        changes.extend(own.iter().map(|own| (VolumeChange::Refresh, own)));
        changes
    }

    fn shown(&self, host: &str) -> String {
        let record = self.xapi().record("host.get_record", host);
        format!("host {}", record.as_ref().ok().and_then(name_of).unwrap_or(host))
    }

    /// `asked`: those that may be paused now.
    fn pause_all(&self, others: &[String], asked: &mut Vec<String>) -> Result<()> {
        for host in others {
            for function in [pause::SERVES, pause::PAUSE] {
                if function == pause::PAUSE {
                    asked.push(host.clone());
                }
                match self.ask(host, function) {
                    Asked::Done => {}
                    Asked::Gone => break,
                    // The Python drivers serve the same volumes.
                    Asked::Unknown(_) if function == pause::SERVES && !self.before().is_empty() => {}
                    Asked::No(why) | Asked::Unknown(why) => {
                        let advice = match function {
                            pause::SERVES => "; is this package's tapdisk-pause installed there?",
                            _ => "",
                        };
                        return Err(self.not_paused(format!("{} {why}{advice}", self.shown(host))));
                    }
                }
            }
        }
        for host in others {
            let before = self.before();
            let own: Vec<_> = before.first().map(|own| (VolumeChange::Deactivate, own)).into_iter().collect();
            self.follow(host, &own).map_err(|why| self.not_paused(format!("{} {why}", self.shown(host))))?;
        }
        Ok(())
    }

    fn release(&self, hosts: &[String]) -> Result<()> {
        let (mut failed, mut behind) = (Vec::new(), Vec::new());
        let is_other = |host: &&String| **host != self.host_ref;
        if hosts.iter().any(|host| is_other(&host)) {
            // Hosts that were not told what to follow, or did not, stay paused, to be told later.
            let (before, now) = self.before_and_now()?;
            for host in hosts.iter().filter(is_other) {
                if let Err(why) = self.follow(host, &Hosts::changes(&before, &now)) {
                    failed.push(format!("{} {why}", self.shown(host)));
                    behind.push(host);
                }
            }
            // A base is counted once.
            *self.before() = now;
        }
        for host in hosts.iter().filter(|host| !behind.contains(host)) {
            if *host == self.host_ref {
                if let Err(error) = pause::release(self.driver, self.sr, self.vdi) {
                    failed.push(format!("this host did not go on: {}", crate::error::one_line(&error)));
                }
            } else if let Asked::No(why) | Asked::Unknown(why) = self.ask(host, pause::UNPAUSE) {
                failed.push(format!("{} {why}", self.shown(host)));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(self.not_paused(failed.join("; "))) }
    }

    fn remove_key(&self) -> Result<()> {
        let removed = self.xapi().set("VDI.remove_from_sm_config", &self.vdi_ref, Value::text(PAUSED));
        removed.map_err(|e| self.not_paused(format!("its key 'paused' was not removed: {e}")))
    }

    /// Says so where administrators look, and makes xapi scan the SR, which tries again.
    fn report(&self, error: &Error) {
        syslog::write(&format!("{}; the next sr_scan tries again", crate::error::one_line(error)));
        let mut xapi = self.xapi();
        if let Ok(Some(sr_ref)) = xapi.by_uuid("SR", &self.sr.to_string()) {
            let _ = xapi.add_key("SR.add_to_other_config", &sr_ref, "dirty", "");
        }
    }
}

impl OtherHosts for Hosts {
    fn has_writer(&self) -> bool {
        let writes = |(host, how): &(String, String)| *host != self.host_ref && how != "RO";
        self.claims().map_or(true, |claims| claims.iter().any(writes))
    }

    fn tracks(&self) -> bool {
        let claims = self.claims().unwrap_or_default();
        let others = claims.iter().filter(|(host, how)| *host != self.host_ref && how != "RO");
        others.map(|(host, _)| self.ask(host, pause::TRACKS)).any(|asked| matches!(asked, Asked::Done))
    }

    fn pause(&self) -> Result<()> {
        let added = self.xapi().add_key("VDI.add_to_sm_config", &self.vdi_ref, PAUSED, "true");
        let stale = match added {
            // Left by a call that was killed: what it had paused is paused once more, and goes on with the rest.
            Err(e) if e.is("MAP_DUPLICATE_KEY") => true,
            Err(e) => return Err(self.not_paused(format!("xapi was not told of the pause: {e}"))),
            Ok(()) => false,
        };
        let others: Vec<String> = match self.claims() {
            Ok(claims) => claims.into_iter().map(|(host, _)| host).filter(|host| *host != self.host_ref).collect(),
            Err(error) if stale => return Err(error),
            Err(error) => return self.remove_key().and(Err(error)),
        };
        if !others.is_empty() {
            match self.volumes(self.vdi) {
                Ok(volumes) => *self.before() = volumes,
                Err(error) if stale => return Err(error),
                Err(error) => return self.remove_key().and(Err(error)),
            }
        }
        let mut asked: Vec<String> = if stale { Vec::clone(&others) } else { Vec::new() };
        self.pause_all(&others, &mut asked).inspect_err(|_| {
            let undone = self.release(&asked).and_then(|()| self.remove_key());
            match undone {
                // One that was late.
                Ok(()) => drop(self.release(&asked)),
                Err(error) => self.report(&error),
            }
        })
    }

    fn resume(&self) -> Result<()> {
        let all: Vec<String> = self.claims()?.into_iter().map(|(host, _)| host).collect();
        self.release(&all).and_then(|()| self.remove_key()).inspect_err(|error| self.report(error))
    }
}

fn name_of(host: &Record) -> Option<&str> {
    host.get("name_label").and_then(Value::as_str)
}
