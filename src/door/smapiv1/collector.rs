//! The collector of an SR of xapi. Commands that leave something to merge start it as a unit of systemd, and it tells xapi of
//! what it has done as it goes.
//!
//! Its unit runs `sm sr_collect --from-xapi SR`: where the SR is, xapi says. What was merged is told as a scan tells it, under the
//! lock of a scan, so nothing that xapi is told depends on who merged.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::faults::{self, Attempt, Failure};
use super::hosts::Hosts;
use super::service::AGENT;
use super::sync;
use crate::call::Session;
use crate::context::{Context, OtherHosts, Pool};
use crate::door::host::{self, local_path, ours};
use crate::door::smapiv3;
use crate::door::xapi::{ApiError, Record, Xapi, text};
use crate::door::xmlrpc::Value;
use crate::error::{Error, Result};
use crate::sr::Driver;
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::tool::Tool;
use crate::sys::{run_dir, syslog};
use crate::types::{DeviceConfig, Done, SrUuid, VdiInfo, VdiUuid};
use crate::vdi::tree::run::{Collecting, Taken, Watcher};

/// How often xapi is told while a run goes on.
const EVERY: Duration = Duration::from_secs(1);

/// The bytes of a merge that may take longer than that: what was not told yet is told before it begins.
const LONG: u64 = 64 << 20;

/// How long a run waits for a call that changes disks and records before it tells xapi: the next step tells as well, and so does
/// the next scan.
const SOON: Duration = Duration::from_secs(2);

/// How long xapi may take from the end of sr_attach until it notes that the SR is attached, and how often it is asked.
const ATTACHING: Duration = Duration::from_secs(18);
const AGAIN: Duration = Duration::from_millis(500);

/// How long the end of a run waits for such a call.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether there is something to merge or to remove among the images of an SR, as far as a scan tells: a base with fewer children
/// than two, unless its one child goes back to what the base holds.
pub fn has_work(vdis: &[VdiInfo]) -> bool {
    let points: BTreeSet<VdiUuid> = vdis.iter().filter(|vdi| vdi.resets).filter_map(|vdi| vdi.parent).collect();
    vdis.iter().any(|vdi| match vdi.children.len() {
        _ if !vdi.hidden => false,
        0 => true,
        1 => !points.contains(&vdi.uuid),
        _ => false,
    })
}

/// Starts the collector of an SR on a host that has systemd, and does not wait for it. A start while it runs does nothing. What
/// cannot be started is logged: the next call that leaves something to merge starts it again.
pub fn start(sr: SrUuid) {
    if !run_dir::systemd().exists() {
        return;
    }
    let unit = format!("sm-collect-xapi@{sr}.service");
    let started = Tool::new("systemctl").args(["--quiet", "--no-block", "start", &unit]).deadline(PATIENCE).run();
    if let Err(error) = started {
        syslog::write(&format!("the collector of SR {sr} was not started: {}", crate::error::one_line(&error)));
    }
}

/// An SR of this host's xapi that this host may collect.
struct Known {
    xapi: Xapi,
    reference: String,
    driver: &'static Driver,
    config: DeviceConfig,
    /// xapi knows its volumes and nothing of bases, so it is told nothing.
    behind_smapiv3: bool,
}

/// Collects an SR of this host's xapi, and tells xapi of what was done.
///
/// # Errors
/// [`Error::NoDevice`] on a host without xapi, or if xapi refuses; [`Error::NoSr`] if xapi has no such SR on this host;
/// [`Error::SrUnavailable`] if this host is not to collect the SR, with the reason; those of [`Session::sr_collect`].
pub fn collect(sr: SrUuid, collecting: &Collecting, context: &Context) -> Result<Done> {
    let mut xapi = Xapi::log_in().map_err(unreachable)?;
    match find(&mut xapi, sr) {
        Ok((reference, driver, config, behind_smapiv3)) => {
            let known = Known { xapi, reference, driver, config, behind_smapiv3 };
            collect_known(sr, known, collecting, context)
        }
        Err(error) => {
            xapi.log_out();
            Err(error)
        }
    }
}

fn collect_known(sr: SrUuid, known: Known, collecting: &Collecting, context: &Context) -> Result<Done> {
    let Known { mut xapi, reference, driver, config, behind_smapiv3 } = known;
    let session = Session::open(driver, sr, config.clone())?;
    local_path::assert_entered(&session)?;
    if behind_smapiv3 {
        xapi.log_out();
        return session.sr_collect(collecting, context);
    }
    let (xapi, told) = (Mutex::new(xapi), Mutex::new(Told { at: Instant::now(), all: true }));
    let next = collecting.watcher.clone();
    let teller = Arc::new(Teller { sr, driver, config, reference, xapi, told, next });
    // Hosts that share files see each other's leases there.
    let of_pool = driver.about.substrate.is_of_volumes() && session.is_shared();
    let pool = of_pool.then(|| Arc::new(OfPool(teller.clone())) as Arc<dyn Pool>);
    let watched = Collecting { rate: collecting.rate, watcher: Some(teller.clone()), pool };
    let collected = session.sr_collect(&watched, context);
    if !matches!(collected, Ok(Done::Already)) {
        // After sr_detach there is no SR that could be seen, and nothing is told.
        teller.tell(PATIENCE);
    }
    teller.xapi.lock().unwrap_or_else(PoisonError::into_inner).log_out();
    collected
}

fn unreachable(error: ApiError) -> Error {
    Error::NoDevice { device: "xapi".to_owned(), why: error.to_string() }
}

/// The SR's reference, its driver, its device_config on this host, and whether it is served behind SMAPIv3.
fn find(xapi: &mut Xapi, sr: SrUuid) -> Result<(String, &'static Driver, DeviceConfig, bool)> {
    let not_here = |why: String| Error::SrUnavailable { sr, why };
    let host = xapi.this_host().map_err(unreachable)?;
    let reference = xapi.by_uuid("SR", &sr.to_string()).map_err(unreachable)?;
    let reference = reference.ok_or_else(|| Error::NoSr { sr, looked: "asked xapi".to_owned() })?;
    let record = xapi.record("SR.get_record", &reference).map_err(unreachable)?;
    let pbd = attached_pbd(xapi, &reference, &host).map_err(unreachable)?;
    let pbd = pbd.ok_or_else(|| not_here("xapi has not attached it on this host".to_owned()))?;
    if record.get("shared") == Some(&Value::Boolean(true)) && ours::master(xapi).map_err(unreachable)? != host {
        return Err(not_here("the master of the pool collects it".to_owned()));
    }
    for key in ["gc", "coalesce"] {
        let of_key = record.get("other_config").and_then(|keys| keys.get(key)).and_then(Value::as_str);
        if of_key == Some("false") {
            return Err(not_here(format!("its other_config has {key}=false")));
        }
    }
    let driver = ours::driver_of(xapi, &record).map_err(unreachable)?;
    let driver = driver.ok_or_else(|| not_here("xapi serves it by the driver of another package".to_owned()))?;
    Ok((reference, driver, ours::config(&pbd, true), smapiv3::driver_of(text(&record, "type")).is_some()))
}

/// The PBD by which this host has an SR attached. xapi notes that an SR is attached only after the sr_attach that starts the
/// collector.
fn attached_pbd(xapi: &mut Xapi, sr_ref: &str, host: &str) -> std::result::Result<Option<Record>, ApiError> {
    let until = Instant::now() + host::patience(ATTACHING);
    loop {
        let here = ours::pbd(xapi, sr_ref, host)?.map(|(_, pbd)| pbd);
        let is_attached = |pbd: &Record| pbd.get("currently_attached") == Some(&Value::Boolean(true));
        if here.as_ref().is_none_or(is_attached) || Instant::now() >= until {
            return Ok(here.filter(is_attached));
        }
        thread::sleep(AGAIN);
    }
}

/// The one who tells xapi.
struct Teller {
    sr: SrUuid,
    driver: &'static Driver,
    config: DeviceConfig,
    /// xapi's reference of the SR.
    reference: String,
    xapi: Mutex<Xapi>,
    told: Mutex<Told>,
    /// Told of each step as well.
    next: Option<Arc<dyn Watcher>>,
}

/// When xapi was told last of the whole SR, and whether that was all that is to tell.
struct Told {
    at: Instant,
    all: bool,
}

impl Watcher for Teller {
    fn taken(&self, step: &Taken) {
        if let Some(next) = &self.next {
            next.taken(step);
        }
        if let Taken::Merged { image, .. } = step {
            self.report(self.try_to_tell_of(*image));
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.all &= !matches!(step, Taken::Merged { .. } | Taken::SetAside { .. } | Taken::Removed);
        let is_long = matches!(step, Taken::Merging { bytes, .. } if *bytes >= LONG);
        if !told.all && (is_long || told.at.elapsed() >= EVERY) {
            self.tell(SOON);
            *told = Told { at: Instant::now(), all: true };
        }
    }
}

/// The hosts of the SR, as xapi knows them.
struct OfPool(Arc<Teller>);

impl Pool for OfPool {
    fn hosts_of(&self, vdi: VdiUuid) -> Result<Option<Arc<dyn OtherHosts>>> {
        let teller = &self.0;
        let why =
            |e: ApiError| Error::NotPaused { vdi, sr: teller.sr, why: format!("xapi does not say who has it: {e}") };
        let mut xapi = teller.xapi.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(vdi_ref) = xapi.by_uuid("VDI", &vdi.to_string()).map_err(why)? else { return Ok(None) };
        let host_ref = xapi.this_host().map_err(why)?;
        Ok(Some(Arc::new(Hosts {
            xapi: Mutex::new(xapi.another()),
            driver: teller.driver,
            sr: teller.sr,
            vdi,
            vdi_uuid: vdi.to_string(),
            vdi_ref,
            host_ref,
            config: teller.config.clone(),
            before: Mutex::default(),
        })))
    }
}

impl Teller {
    /// Makes the records of xapi say what the SR holds now. What fails is logged.
    fn tell(&self, patience: Duration) {
        self.report(self.try_to_tell(Instant::now() + patience));
    }

    fn report(&self, told: std::result::Result<(), Failure>) {
        if let Err(failure) = told {
            let (_, why) = faults::fault(&failure, Attempt::of(self.driver, None));
            syslog::write(&format!("SR {}: xapi was not told what was merged: {why}", self.sr));
        }
    }

    fn try_to_tell(&self, deadline: Instant) -> std::result::Result<(), Failure> {
        let _alone = self.alone(deadline)?;
        let mut xapi = self.xapi.lock().unwrap_or_else(PoisonError::into_inner);
        let records = xapi.vdi_records(&self.reference)?;
        let session = Session::open(self.driver, self.sr, self.config.clone())?;
        let context = Context { deadline, progress: &|_, _| {}, others: None };
        sync::scan(&mut xapi, &self.reference, &records, &session, &context)?;
        Ok(())
    }

    /// Makes the record of a disk that was merged say what it is now, whatever else was done since xapi was told last: clients walk
    /// the chain of a disk by its record. Of an image that is no disk, or is gone, nothing is told.
    fn try_to_tell_of(&self, image: VdiUuid) -> std::result::Result<(), Failure> {
        let deadline = Instant::now() + SOON;
        let _alone = self.alone(deadline)?;
        let session = Session::open(self.driver, self.sr, self.config.clone())?;
        let context = Context { deadline, progress: &|_, _| {}, others: None };
        let disk = match session.vdi_get_brief(image, &context) {
            Ok(disk) if !disk.hidden => disk,
            Ok(_) | Err(Error::NoVdi { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut xapi = self.xapi.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reference) = xapi.by_uuid("VDI", &image.to_string())? else { return Ok(()) };
        let record = xapi.record("VDI.get_record", &reference)?;
        sync::refresh(&mut xapi, &reference, &record, &disk, &session.vdi_sm_config(&disk))?;
        Ok(())
    }

    /// Keeps calls that change disks and records, and scans, out until the answer is dropped.
    fn alone(&self, deadline: Instant) -> std::result::Result<Lock, Failure> {
        let busy = |who: &str| Error::Busy { sr: self.sr, holder: who.to_owned(), what: "it".to_owned() };
        let alone = lock::take(&self.sr.to_string(), AGENT, Kind::Exclusive, deadline);
        Ok(alone.map_err(|refused| refused.or_timed_out(busy))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_with_fewer_children_than_two_is_work() {
        let base = |children: usize| VdiInfo {
            hidden: true,
            children: (0..children).map(|_| VdiUuid::random()).collect(),
            ..VdiInfo::sample(VdiUuid::random())
        };
        let disk = VdiInfo { hidden: false, children: Vec::new(), ..VdiInfo::sample(VdiUuid::random()) };
        assert!(!has_work(&[]) && !has_work(&[disk.clone(), base(2), base(3)]));
        assert!(has_work(&[disk.clone(), base(1)]) && has_work(&[base(0), disk.clone()]));
        let (first, second, other) = (base(1), base(1), base(1));
        let of =
            |base: &VdiInfo| VdiInfo { resets: true, parent: Some(base.uuid), ..VdiInfo::sample(base.children[0]) };
        assert!(!has_work(&[of(&first), of(&second), second.clone(), first.clone()]));
        assert!(has_work(&[of(&first), first, second, other]));
    }
}
