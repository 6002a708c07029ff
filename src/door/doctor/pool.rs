//! What the database of xapi says of the pool: the features of SR types, the drivers of other hosts, and the claims of hosts on
//! VDIs. Other hosts are asked through the plug-in `tapdisk-pause`, function [`ANNOUNCES`]; nothing is changed there or in the
//! database.

use std::collections::BTreeMap;

use super::drivers::{Described, Features, Installed, served_here};
use super::{Area, Trouble};
use crate::door::cli::agent;
use crate::door::host::device::device_link;
use crate::door::host::pause::{ANNOUNCES, NAME};
use crate::door::smapiv1;
use crate::door::v1::listing::Told;
use crate::door::xapi::{ApiError, CLAIM, PAUSED, Record, Xapi, text};
use crate::door::xmlrpc::Value;
use crate::error::one_line;
use crate::registry::agent::{Agent, Connection, Kept};
use crate::sys::lock;
use crate::types::SrUuid;

/// The driver of another host for a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Theirs {
    pub host: String,
    /// `None`: it is not of this package.
    pub described: Option<Described>,
}

/// Another host, by its label, and what its drivers of this package announce: by type.
type OtherHost = (String, BTreeMap<String, Described>);

/// The pool of this host.
pub struct Pool {
    xapi: Xapi,
    agent: Agent,
    this_host: String,
    hosts: BTreeMap<String, Record>,
    /// By reference.
    srs: BTreeMap<String, Record>,
    features: BTreeMap<String, Features>,
    others: Vec<OtherHost>,
    /// The types that this package serves on this host.
    types: Vec<&'static str>,
}

/// Asks xapi and the other hosts. `None` on a host without xapi, and if it does not answer.
pub fn ask(installed: &[Installed], found: &mut Vec<Trouble>) -> Option<Pool> {
    let wrong = |what: String| Trouble::wrong(Area::Drivers, "xapi", what, "systemctl status xapi");
    let agent = match agent::of_host() {
        Ok(agent) => agent?,
        Err(error) => {
            found.push(wrong(one_line(&error)));
            return None;
        }
    };
    let types = installed.iter().filter(|it| it.is_ours).map(|it| it.driver.sr_type).collect();
    match Pool::read(agent, types) {
        Ok(mut pool) => {
            pool.ask_hosts(found);
            Some(pool)
        }
        Err(error) => {
            found.push(wrong(error.to_string()));
            None
        }
    }
}

impl Pool {
    fn read(agent: Agent, types: Vec<&'static str>) -> Result<Pool, ApiError> {
        let mut xapi = Xapi::log_in()?;
        let this_host = xapi.this_host()?;
        let hosts = xapi.records("host.get_all_records")?;
        let srs = xapi.records("SR.get_all_records")?;
        let sms = xapi.records("SM.get_all_records")?;
        let features = sms.values().map(|sm| (text(sm, "type").to_owned(), features_of(sm))).collect();
        Ok(Pool { xapi, agent, this_host, hosts, srs, features, others: Vec::new(), types })
    }

    fn ask_hosts(&mut self, found: &mut Vec<Trouble>) {
        let others: Vec<(String, String)> = self
            .hosts
            .iter()
            .filter(|(reference, _)| **reference != self.this_host)
            .map(|(reference, record)| (reference.clone(), text(record, "name_label").to_owned()))
            .collect();
        for (reference, name) in others {
            let none = BTreeMap::<String, String>::new();
            let words = [Value::text(reference), Value::text(NAME), Value::text(ANNOUNCES), Value::map(none)];
            match self.xapi.call("host.call_plugin", &words) {
                Ok(Value::String(told)) => self.others.push((name, read_announced(&told))),
                // The stock plug-in, or none, or one of an earlier release.
                Err(ApiError::Refused(words)) if !is_absent(&words) => self.others.push((name, BTreeMap::new())),
                Ok(_) => self.others.push((name, BTreeMap::new())),
                Err(error) => {
                    let what = format!("not asked for its drivers: {error}");
                    found.push(Trouble::unseen(Area::Drivers, format!("host {name}"), what));
                }
            }
        }
    }

    /// Ends the session.
    pub fn log_out(&mut self) {
        self.xapi.log_out();
    }

    fn kept(&self, sr: SrUuid) -> Option<&Kept> {
        self.agent.srs.iter().find(|kept| kept.sr == sr)
    }

    fn is_served(&self, sr_type: &str) -> bool {
        self.types.contains(&sr_type)
    }

    /// Whether xapi has the SR, and serves it by another driver.
    pub fn is_of_others(&self, sr: SrUuid) -> bool {
        self.kept(sr).is_some_and(|kept| !self.is_served(&kept.sr_type))
    }

    pub fn is_plugged(&self, sr: SrUuid) -> bool {
        self.kept(sr).is_some_and(|kept| matches!(kept.connection, Connection::Pbd { is_plugged: true, .. }))
    }

    /// The SRs that xapi has on this host by a driver of ours.
    pub fn told(&self) -> Vec<Told> {
        let of = |kept: &Kept| match &kept.connection {
            Connection::Pbd { config, .. } if self.is_served(&kept.sr_type) => {
                let (name, sr_type) = (kept.name.clone(), kept.sr_type.clone());
                Some(Told { name, sr: kept.sr, sr_type, config: config.clone() })
            }
            _ => None,
        };
        self.agent.srs.iter().filter_map(of).collect()
    }

    /// The features that the pool has for a type.
    pub fn features(&self, sr_type: &str) -> Option<&Features> {
        self.features.get(sr_type)
    }

    /// The drivers of the other hosts that could be asked.
    pub fn theirs(&self, sr_type: &str) -> Vec<Theirs> {
        let of = |(host, types): &OtherHost| Theirs { host: host.clone(), described: types.get(sr_type).cloned() };
        self.others.iter().map(of).collect()
    }

    /// The claims on VDIs, and pauses, of hosts and calls that are gone.
    pub fn claims(&mut self) -> Vec<Trouble> {
        let mut found = Vec::new();
        let plugged: Vec<SrUuid> = self.told().iter().map(|told| told.sr).filter(|sr| self.is_plugged(*sr)).collect();
        for sr in plugged {
            let uuid = sr.to_string();
            let reference = self.srs.iter().find(|(_, record)| text(record, "uuid") == uuid).map(|(it, _)| it.clone());
            let Some(reference) = reference else { continue };
            match self.xapi.vdi_records(&reference) {
                Ok(vdis) => vdis.iter().for_each(|(_, vdi)| found.extend(self.claims_on(sr, vdi))),
                Err(error) => {
                    let what = format!("its VDIs were not looked at: {error}");
                    found.push(Trouble::unseen(Area::Claims, format!("SR {sr}"), what));
                }
            }
        }
        found
    }

    fn claims_on(&self, sr: SrUuid, vdi: &Record) -> Vec<Trouble> {
        let uuid = text(vdi, "uuid");
        let Some(sm_config) = vdi.get("sm_config").and_then(Value::as_struct) else { return Vec::new() };
        let mut found = Vec::new();
        let mut wrong = |what: String, key: &str, then: &str| {
            let remedy = format!("{then}xe vdi-param-remove uuid={uuid} param-name=sm-config param-key={key}");
            found.push(Trouble::wrong(Area::Claims, format!("VDI {uuid}"), what, remedy));
        };
        for key in sm_config.keys() {
            let Some(host) = key.strip_prefix(CLAIM) else { continue };
            match self.hosts.get(host) {
                None => wrong("claimed by a host that has left the pool".to_owned(), key, ""),
                Some(_) if host == self.this_host && device_link(sr, uuid).symlink_metadata().is_err() => {
                    let what = "claimed by this host, which has not attached it: no other host can";
                    wrong(what.to_owned(), key, "if no VM has it here: ");
                }
                Some(record) if record.get("enabled") == Some(&Value::Boolean(false)) => {
                    let what = format!("claimed by host {}, which is disabled or down", text(record, "name_label"));
                    wrong(what, key, "only if that host is certainly dead: ");
                }
                Some(_) => {}
            }
        }
        // A call that pauses a VDI holds the lock of the trees of its SR, on the SR's master.
        let is_changing = lock::held_by(&sr.to_string(), "tree").is_some();
        if sm_config.contains_key(PAUSED) && !is_changing {
            let what = "paused, and no call of this host is about to end that: its VM waits, or cannot start";
            wrong(
                what.to_owned(),
                PAUSED,
                "xe sr-scan ends what this package left; otherwise unpause it by the plug-in, then ",
            );
        }
        found
    }
}

/// Whether a plug-in was not run at all.
fn is_absent(words: &[String]) -> bool {
    let names = ["HOST_OFFLINE", "CANNOT_CONTACT_HOST", "HOST_NOT_LIVE", "HOST_STILL_BOOTING", "HANDLE_INVALID"];
    words.first().is_some_and(|word| names.contains(&word.as_str()))
}

fn features_of(sm: &Record) -> Features {
    let Some(members) = sm.get("features").and_then(Value::as_struct) else { return Features::default() };
    let version = |value: &Value| match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        other => other.as_str()?.parse().ok(),
    };
    Features(members.iter().map(|(name, value)| (name.clone(), version(value).unwrap_or(1))).collect())
}

/// The answer of [`ANNOUNCES`] for this host: a line for each type that this package serves here, the type, the release, and the
/// capabilities.
pub fn announced() -> String {
    let line = |driver: &crate::sr::Driver| {
        let mut words = vec![driver.sr_type, env!("CARGO_PKG_VERSION")];
        words.extend(smapiv1::announced(driver));
        words.join(" ") + "\n"
    };
    served_here().map(line).collect()
}

fn read_announced(text: &str) -> BTreeMap<String, Described> {
    let of_line = |line: &str| {
        let mut words = line.split(' ');
        let (sr_type, version) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some((sr_type, Described { vendor: smapiv1::VENDOR.to_owned(), version, features: Features::of(words) }))
    };
    text.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_another_host_is_read_as_it_is_written() {
        let read = read_announced("file 0.9 VDI_CLONE VDI_RESET_ON_BOOT/2\nnfs 0.9\n\nx\n");
        assert_eq!(read.keys().collect::<Vec<_>>(), ["file", "nfs"]);
        assert_eq!(read["file"].features, Features::of(["VDI_RESET_ON_BOOT/2", "VDI_CLONE"]));
        assert_eq!(read["nfs"].version, "0.9");
    }
}
