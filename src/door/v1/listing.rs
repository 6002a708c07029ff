//! `sm sr_list`: every SR of this host, those of the table and those that drivers discover.
//!
//! Each driver and each SR is asked by a thread of its own. An SR that has not answered in time is listed with that
//! state. A driver that has not answered in time is told of by a warning. The end of the process ends the threads that
//! still wait: one SR that hangs keeps no other from the list.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::address::place_of;
use crate::call::Session;
use crate::context::Context;
use crate::door::smapiv3;
use crate::door::xapi::{ApiError, Record, Xapi, text};
use crate::door::xmlrpc::Value;
use crate::error::{Error, Result, one_line};
use crate::registry::agent::{Agent, Connection, Kept};
use crate::registry::{self, Entry};
use crate::sr::{DRIVERS, Driver, Found};
use crate::types::{DeviceConfig, Space, SrUuid, shown};

/// How long an SR may take to answer, unless `--wait` says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A line of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The name on this host; empty for an SR without.
    pub name: String,
    /// `None` for an entry of the table that cannot be read.
    pub uuid: Option<SrUuid>,
    pub sr_type: String,
    /// One of [`STATES`].
    pub state: &'static str,
    /// Why the SR is not available; empty if it is.
    pub reason: String,
    /// How much there is, and how much of it is free. `None` unless the SR is available.
    pub space: Option<Space>,
    /// Where the SR is, without passwords.
    pub location: String,
}

/// The states: it answers; it is not attached, or its server is silent; there is none; it did not answer in time; anything
/// else is wrong.
pub const STATES: [&str; 5] = ["available", "unavailable", "missing", "no answer", "failed"];

/// An SR to be asked.
pub(super) struct Known {
    pub name: String,
    pub sr: SrUuid,
    pub driver: &'static Driver,
    pub config: DeviceConfig,
}

/// An SR that an agent knows.
pub struct Told {
    pub name: String,
    pub sr: SrUuid,
    pub sr_type: String,
    pub config: DeviceConfig,
}

/// The SRs that this host's xapi has a PBD for on this host.
///
/// # Errors
/// [`Error::NoDevice`] on a host without xapi, or if xapi refuses.
pub fn of_xapi() -> Result<Vec<Told>> {
    told_by_xapi().map_err(|e| Error::NoDevice { device: "xapi".to_owned(), why: e.to_string() })
}

fn told_by_xapi() -> Result<Vec<Told>, ApiError> {
    let mut xapi = Xapi::log_in()?;
    let told = xapi.this_host().and_then(|host| {
        let srs = xapi.records("SR.get_all_records")?;
        let pbds = xapi.records("PBD.get_all_records")?;
        let here = pbds.values().filter(|pbd| text(pbd, "host") == host);
        Ok(here.filter_map(|pbd| told(pbd, srs.get(text(pbd, "SR"))?)).collect())
    });
    xapi.log_out();
    told
}

/// What xapi's database says of this host: its SRs with a PBD here, and those without any PBD.
///
/// # Errors
/// What xapi says.
pub fn agent() -> Result<Agent, ApiError> {
    let mut xapi = Xapi::log_in()?;
    let told = xapi.this_host().and_then(|host| {
        let uuid = text(&xapi.record("host.get_record", &host)?, "uuid").to_owned();
        let srs = xapi.records("SR.get_all_records")?;
        let pbds = xapi.records("PBD.get_all_records")?;
        let mut srs: Vec<Kept> = srs.iter().filter_map(|(of, sr)| kept(of, sr, &host, &pbds)).collect();
        srs.sort_by_key(|kept| kept.sr);
        Ok(Agent { host: uuid, srs })
    });
    xapi.log_out();
    told
}

/// An SR that concerns a host. `of`: its reference.
fn kept(of: &str, sr: &Record, host: &str, pbds: &BTreeMap<String, Record>) -> Option<Kept> {
    let mut of_sr = pbds.values().filter(|pbd| text(pbd, "SR") == of).peekable();
    let connection = match of_sr.peek() {
        None => Connection::None,
        Some(_) => {
            let pbd = of_sr.find(|pbd| text(pbd, "host") == host)?;
            let is_plugged = matches!(pbd.get("currently_attached"), Some(Value::Boolean(true)));
            Connection::Pbd { uuid: text(pbd, "uuid").to_owned(), is_plugged, config: config_of(pbd)? }
        }
    };
    let (sr_type, name) = (text(sr, "type").to_owned(), text(sr, "name_label").to_owned());
    Some(Kept { sr: text(sr, "uuid").parse().ok()?, name, sr_type, connection })
}

fn config_of(pbd: &Record) -> Option<DeviceConfig> {
    let config = pbd.get("device_config")?.as_struct()?;
    let config = config.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    Some(DeviceConfig(config.collect()))
}

fn told(pbd: &Record, sr: &Record) -> Option<Told> {
    Some(Told {
        name: text(sr, "name_label").to_owned(),
        sr: text(sr, "uuid").parse().ok()?,
        sr_type: text(sr, "type").to_owned(),
        config: config_of(pbd)?,
    })
}

/// The list, in the order of names; SRs without a name come last. `told`: SRs that an agent knows.
///
/// `warn` is told what could not be discovered.
///
/// # Errors
/// Those of [`registry::all`].
pub fn list(patience: Duration, told: Vec<Told>, warn: &dyn Fn(&str)) -> Result<Vec<Listed>> {
    let mut lines = Vec::new();
    let mut known = Vec::new();
    for (name, entry) in registry::all()? {
        let placed = match entry {
            Ok(entry) => placed(&entry).map_err(|e| (e, Some(entry.sr), entry.sr_type)),
            Err(e) => Err((e, None, String::new())),
        };
        match placed {
            Ok(sr) => known.push(sr),
            Err((e, uuid, sr_type)) => {
                lines.push(Listed { name, uuid, sr_type, state: "failed", reason: one_line(&e), ..Listed::default() });
            }
        }
    }
    for Told { name, sr, sr_type, config } in told {
        let driver = DRIVERS.iter().copied().find(|driver| driver.sr_type == sr_type);
        match driver.or_else(|| smapiv3::driver_of(&sr_type)) {
            _ if known.iter().any(|it: &Known| it.sr == sr) => {}
            Some(driver) => known.push(Known { name, sr, driver, config }),
            None => lines.push(Listed {
                name,
                uuid: Some(sr),
                location: location(&config),
                reason: format!("no driver of this package serves the type {sr_type}"),
                sr_type,
                state: "failed",
                ..Listed::default()
            }),
        }
    }
    Ok(answers(lines, known, DRIVERS, patience, warn))
}

/// The states of SRs that the caller knows, in the order of their names. Each is asked at the same time.
pub fn of(told: Vec<Told>, patience: Duration) -> Vec<Listed> {
    let known = told.into_iter().filter_map(|Told { name, sr, sr_type, config }| {
        let driver = DRIVERS.iter().find(|driver| driver.sr_type == sr_type)?;
        Some(Known { name, sr, driver, config })
    });
    answers(Vec::new(), known.collect(), &[], patience, &|_| {})
}

/// Asks every SR and every driver at the same time, and waits no longer than `patience` for all of them.
fn answers(
    mut lines: Vec<Listed>,
    known: Vec<Known>,
    drivers: &[&'static Driver],
    patience: Duration,
    warn: &dyn Fn(&str),
) -> Vec<Listed> {
    let deadline = Instant::now() + patience;
    let discovered: Vec<(&Driver, Receiver<Result<Vec<Found>>>)> =
        drivers.iter().map(|driver| (*driver, ask(driver.discover))).collect();
    let mut asked: Vec<_> = known.into_iter().map(|sr| question(sr, deadline)).collect();
    for (driver, answer) in discovered {
        // The SRs that are found have to be asked as well, so the drivers get only half of the time.
        match answer.recv_timeout((deadline - patience / 2).saturating_duration_since(Instant::now())) {
            Ok(Ok(found)) => {
                for Found { sr, config, .. } in found {
                    let is_known = asked.iter().any(|(line, _): &(Listed, _)| line.uuid == Some(sr));
                    if !is_known && !lines.iter().any(|line| line.uuid == Some(sr)) {
                        asked.push(question(Known { name: String::new(), sr, driver, config }, deadline));
                    }
                }
            }
            Ok(Err(e)) => {
                warn(&format!("SRs of type {} without a name are not listed: {}", driver.sr_type, one_line(&e)))
            }
            Err(_) => warn(&format!("SRs of type {} without a name are not listed: no answer in time", driver.sr_type)),
        }
    }
    for (line, answer) in asked {
        lines.push(match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(space) => judged(line, space),
            Err(_) => {
                let reason = format!("no answer for {} s", patience.as_secs());
                Listed { state: "no answer", reason, ..line }
            }
        });
    }
    lines.sort_by(|a, b| (a.name.is_empty(), &a.name, a.uuid).cmp(&(b.name.is_empty(), &b.name, b.uuid)));
    lines
}

/// The SR of an entry of the table.
///
/// # Errors
/// Those of [`place_of`].
pub(super) fn placed(entry: &Entry) -> Result<Known> {
    let (driver, config) = place_of(entry)?;
    Ok(Known { name: entry.name.clone(), sr: entry.sr, driver, config })
}

/// Does the work on a thread of its own. Where the system gives no more threads, nobody answers.
pub(super) fn ask<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (tell, told) = mpsc::channel();
    let _ = thread::Builder::new().spawn(move || tell.send(work()));
    told
}

fn question(known: Known, deadline: Instant) -> (Listed, Receiver<Result<Space>>) {
    let Known { name, sr, driver, config } = known;
    // A file of the timer is called by the UUID, which is no name.
    let name = if name == sr.to_string() { String::new() } else { name };
    let (uuid, sr_type) = (Some(sr), driver.sr_type.to_owned());
    let line = Listed { name, uuid, sr_type, location: location(&config), ..Listed::default() };
    let answer = ask(move || {
        let context = Context { deadline, progress: &|_, _| {}, others: None };
        Session::open(driver, sr, config)?.sr_get_space(&context)
    });
    (line, answer)
}

fn judged(line: Listed, space: Result<Space>) -> Listed {
    let state = match &space {
        Ok(_) => "available",
        Err(Error::SrUnavailable { .. }) => "unavailable",
        Err(Error::NoSr { .. }) => "missing",
        Err(_) => "failed",
    };
    let reason = space.as_ref().err().map(one_line).unwrap_or_default();
    Listed { state, reason, space: space.ok(), ..line }
}

/// A device_config in one word or a few, without passwords.
fn location(config: &DeviceConfig) -> String {
    let shown: BTreeMap<&str, String> = config.0.iter().map(|(key, value)| (key.as_str(), shown(key, value))).collect();
    match (shown.get("location"), shown.get("device"), shown.get("server"), shown.get("serverpath")) {
        (Some(one), ..) | (None, Some(one), ..) => one.clone(),
        (None, None, Some(server), Some(path)) => format!("{server}:{path}"),
        _ => shown.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::file;

    #[test]
    fn a_location_is_short_and_holds_no_password() {
        for (keys, text) in [
            (DeviceConfig::from([("location", "/srv/sr0"), ("preferred-image-formats", "vhd")]), "/srv/sr0"),
            (DeviceConfig::from([("device", "/dev/sdb,/dev/sdc"), ("allocation", "thin")]), "/dev/sdb,/dev/sdc"),
            (DeviceConfig::from([("server", "filer"), ("serverpath", "/e"), ("mountpoint", "/m")]), "filer:/e"),
            (DeviceConfig::from([("location", "//u:pw@server/share"), ("cifspassword", "pw")]), "//u:***@server/share"),
            (DeviceConfig::from([("cifspassword", "pw"), ("x", "y")]), "cifspassword=*** x=y"),
        ] {
            assert_eq!(location(&keys), text);
        }
    }

    fn hang<T>() -> T {
        loop {
            thread::park();
        }
    }

    static HANGS: Driver = Driver { open: |_, _, _| hang(), discover: hang, sr_type: "hangs", ..file::DRIVER };

    #[test]
    fn what_does_not_answer_is_listed_and_keeps_nothing_from_the_list() {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().display().to_string();
        let known = |driver, name: &str| {
            let config = DeviceConfig::from([("location", place.as_str())]);
            Known { name: name.to_owned(), sr: SrUuid::random(), driver, config }
        };
        let warned = std::cell::RefCell::new(Vec::new());
        let warn = |text: &str| warned.borrow_mut().push(text.to_owned());
        let asked = vec![known(&HANGS, "a"), known(&file::DRIVER, "b"), known(&HANGS, "c")];
        let began = Instant::now();
        let lines = answers(Vec::new(), asked, &[&HANGS], Duration::from_millis(300), &warn);
        assert!(began.elapsed() < Duration::from_secs(20));
        let states: Vec<(&str, &str)> = lines.iter().map(|line| (line.name.as_str(), line.state)).collect();
        assert_eq!(states, [("a", "no answer"), ("b", "missing"), ("c", "no answer")]);
        assert_eq!(warned.take(), ["SRs of type hangs without a name are not listed: no answer in time"]);
    }

    #[test]
    fn the_state_of_an_sr_follows_from_its_answer() {
        let sr = SrUuid::random();
        for (answer, state) in [
            (Ok(Space { size: 2, free: 1 }), "available"),
            (Err(Error::SrUnavailable { sr, why: "x".to_owned() }), "unavailable"),
            (Err(Error::NoSr { sr, looked: "x".to_owned() }), "missing"),
            (Err(Error::Usage("x".to_owned())), "failed"),
        ] {
            let is_well = answer.is_ok();
            let line = judged(Listed::default(), answer);
            assert_eq!((line.state, line.space.is_some(), line.reason.is_empty()), (state, is_well, is_well));
            assert!(STATES.contains(&line.state));
        }
    }
}
