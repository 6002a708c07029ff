//! Telling xapi what is on the substrate; SMAPIv1, "Scan-synchronise algorithm".
//!
//! The records are read *before* the substrate. A VDI that another call makes or deletes between the two is
//! then seen as new or gone by a comparison whose outcome xapi has already: the introduction is refused as a
//! duplicate, the record to forget does not exist. The other way round, a VDI made between the two would
//! look gone, and its record would be dropped.

use std::collections::{BTreeMap, HashMap};

use super::compare::{Difference, compare};
use super::faults::Failure;
use crate::call::Session;
use crate::context::Context;
use crate::door::xapi::{ApiError, Record, Xapi, text};
use crate::door::xmlrpc::Value;
use crate::sys::syslog;
use crate::types::{LogAlone, SmConfig, SrInfo, Utc, VdiInfo, VdiUuid};

pub const NULL_REF: &str = "OpaqueRef:NULL";
/// xapi's type of a VDI of which only the log of changed blocks is left.
pub const LOG_TYPE: &str = "cbt_metadata";
const EPOCH: &str = "19700101T00:00:00Z";

/// The numbers of records that a scan made, removed and changed in xapi's database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub new: usize,
    pub gone: usize,
    pub changed: usize,
}

/// Looks at an SR, and makes its records and those of its VDIs say what is there. `records`: those of its VDIs, read before. The
/// caller holds the lock of a scan.
///
/// # Errors
/// Those of [`Session::sr_scan`], before anything was told; the first [`ApiError`] of a call to xapi.
pub fn scan(
    xapi: &mut Xapi,
    sr_ref: &str,
    records: &[(String, Record)],
    session: &Session,
    context: &Context,
) -> Result<SrInfo, Failure> {
    let found = session.sr_scan(context)?;
    let changes = synchronise(xapi, sr_ref, records, &found, |vdi| session.vdi_sm_config(vdi))?;
    // xapi asks for sr_update after every scan; with nothing new there is nothing to add.
    if changes != Changes::default() {
        figures(xapi, sr_ref, &found)?;
    }
    Ok(found)
}

/// Makes the records of an SR's VDIs say what `found` says, but for VDIs that cannot be used: those keep the record that
/// they have, and get none.
///
/// # Errors
/// The first [`ApiError`] of a call to xapi. The records before it are written; the next call completes the work.
pub fn synchronise(
    xapi: &mut Xapi,
    sr_ref: &str,
    records: &[(String, Record)],
    found: &SrInfo,
    sm_config: impl Fn(&VdiInfo) -> SmConfig,
) -> Result<Changes, ApiError> {
    let mut changes = Changes::default();
    // The references of the records that this call makes: xapi calls the disk of a snapshot by its reference.
    let mut made: HashMap<VdiUuid, String> = HashMap::new();
    for difference in compare(records, &found.vdis, found.logs.as_deref()) {
        match difference {
            Difference::Left(words) => syslog::write(&words),
            Difference::Known { reference, record, vdi } => {
                if refresh(xapi, reference, record, vdi, &sm_config(vdi))? {
                    changes.changed += 1;
                }
            }
            Difference::New(vdi) => {
                if let Some(reference) = introduce_found(xapi, sr_ref, vdi, sm_config(vdi), None)? {
                    changes.new += 1;
                    made.insert(vdi.uuid, reference);
                }
            }
            Difference::KnownLog { reference, record, log } => {
                if refresh_log(xapi, reference, record, log)? {
                    changes.changed += 1;
                }
            }
            Difference::NewLog(log) => {
                syslog::write(&format!("new log of changed blocks on SR {}: {}", found.uuid, log.vdi));
                if introduced(introduce(xapi, sr_ref, &Introduced::of_log(log)))?.is_some() {
                    changes.new += 1;
                }
            }
            Difference::NewSnapshot { vdi, disk, known } => {
                let reference = made.get(&disk).map(String::as_str).or(known).unwrap_or(NULL_REF);
                if introduce_found(xapi, sr_ref, vdi, sm_config(vdi), Some(reference))?.is_some() {
                    changes.new += 1;
                }
            }
            Difference::Gone { reference, record } => {
                syslog::write(&format!("VDI {} is gone: {}", text(record, "uuid"), text(record, "location")));
                match xapi.call("VDI.db_forget", &[Value::text(reference)]) {
                    Ok(_) => changes.gone += 1,
                    Err(e) if e.is_gone() => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Ok(changes)
}

/// Tells xapi of a VDI that a scan found. `snapshot_of`: of a snapshot, the reference of its disk. The reference of the new
/// record; `None`: another call was faster.
fn introduce_found(
    xapi: &mut Xapi,
    sr_ref: &str,
    vdi: &VdiInfo,
    sm_config: SmConfig,
    snapshot_of: Option<&str>,
) -> Result<Option<String>, ApiError> {
    syslog::write(&format!("new VDI on SR {}: {}", vdi.sr, vdi.location()));
    let kept = sm_config.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect();
    let time = vdi.created.map_or_else(String::new, |seconds| Utc(seconds).to_xmlrpc());
    let mut row = Introduced { sm_config: kept, ..Introduced::of(vdi) };
    if let Some(snapshot_of) = snapshot_of {
        (row.is_a_snapshot, row.snapshot_of, row.snapshot_time) = (true, snapshot_of, &time);
    }
    introduced(introduce(xapi, sr_ref, &row))
}

/// The reference of a new record; `None`: another call was faster.
fn introduced(answer: Result<Value, ApiError>) -> Result<Option<String>, ApiError> {
    match answer {
        Ok(reference) => Ok(Some(reference.as_str().unwrap_or(NULL_REF).to_owned())),
        Err(e) if e.is("LOCATION_NOT_UNIQUE") => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes the record of a VDI of which only its log of changed blocks is left say so, as the Python drivers do; only what differs
/// is written. `false`: nothing did.
///
/// # Errors
/// The first [`ApiError`] of a call to xapi. The fields before it are written.
pub fn refresh_log(xapi: &mut Xapi, reference: &str, record: &Record, log: &LogAlone) -> Result<bool, ApiError> {
    let changed = refresh_figures(xapi, reference, record, [log.bytes, log.bytes])?;
    Ok(refresh_cbt(xapi, reference, record, true)? || changed)
}

/// Tells xapi the virtual size of a VDI and its physical utilisation, as far as its record says something else.
fn refresh_figures(
    xapi: &mut Xapi,
    reference: &str,
    record: &Record,
    [virtual_size, physical_utilisation]: [u64; 2],
) -> Result<bool, ApiError> {
    let mut changed = false;
    for (field, setter, now) in [
        ("virtual_size", "VDI.set_virtual_size", virtual_size),
        ("physical_utilisation", "VDI.set_physical_utilisation", physical_utilisation),
    ] {
        if text(record, field) != now.to_string() {
            xapi.set_number(setter, reference, now)?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Tells xapi whether the changed blocks of a VDI are tracked, if its record says something else.
///
/// # Errors
/// That of [`Xapi::set`].
pub fn refresh_cbt(xapi: &mut Xapi, reference: &str, record: &Record, is: bool) -> Result<bool, ApiError> {
    if record.get("cbt_enabled") == Some(&Value::Boolean(is)) || (!is && !record.contains_key("cbt_enabled")) {
        return Ok(false);
    }
    xapi.set("VDI.set_cbt_enabled", reference, Value::Boolean(is)).map(|()| true)
}

/// Makes one record say what `vdi` says; only what differs is written. `false`: nothing did.
///
/// # Errors
/// The first [`ApiError`] of a call to xapi. The fields before it are written.
pub fn refresh(
    xapi: &mut Xapi,
    reference: &str,
    record: &Record,
    vdi: &VdiInfo,
    sm_config: &SmConfig,
) -> Result<bool, ApiError> {
    let mut changed = refresh_figures(xapi, reference, record, [vdi.virtual_size, vdi.physical_utilisation])?;
    changed |= refresh_cbt(xapi, reference, record, vdi.cbt_enabled)?;
    let read_only = vdi.read_only;
    if record.get("read_only") != Some(&Value::Boolean(read_only)) {
        xapi.set("VDI.set_read_only", reference, Value::Boolean(read_only))?;
        changed = true;
    }
    // Key by key: what others keep there (host_…, paused, read-caching-…) is theirs.
    let old = record.get("sm_config");
    for (key, wanted) in sm_config {
        let there = old.and_then(|map| map.get(key)).and_then(Value::as_str);
        if there == wanted.as_deref() {
            continue;
        }
        changed = true;
        let remove = |xapi: &mut Xapi| xapi.set("VDI.remove_from_sm_config", reference, Value::text(*key));
        let add = |xapi: &mut Xapi, value| xapi.add_key("VDI.add_to_sm_config", reference, key, value);
        if there.is_some() {
            remove(xapi)?;
        }
        let Some(value) = wanted else { continue };
        match add(xapi, value) {
            // Another call set it since the record was read.
            Err(e) if e.is("MAP_DUPLICATE_KEY") => {
                remove(xapi)?;
                match add(xapi, value) {
                    Err(e) if !e.is("MAP_DUPLICATE_KEY") => return Err(e),
                    _ => {}
                }
            }
            other => drop(other?),
        }
    }
    Ok(changed)
}

/// xapi's type of a disk that is there for nothing in particular.
pub const OF_USER: &str = "user";

/// A row for xapi's table of VDIs.
pub struct Introduced<'a> {
    pub uuid: String,
    pub label: &'a str,
    pub description: &'a str,
    pub vdi_type: &'a str,
    pub read_only: bool,
    /// Not there for its own sake: xapi shows it to nobody.
    pub hidden: bool,
    pub location: String,
    pub sm_config: BTreeMap<String, String>,
    pub virtual_size: u64,
    pub physical_utilisation: u64,
    pub metadata_of_pool: &'a str,
    pub is_a_snapshot: bool,
    pub snapshot_time: &'a str,
    pub snapshot_of: &'a str,
    pub cbt_enabled: bool,
}

impl<'a> Introduced<'a> {
    /// A VDI that nobody told xapi of.
    pub fn of(vdi: &'a VdiInfo) -> Introduced<'a> {
        Introduced {
            uuid: vdi.uuid.to_string(),
            label: if vdi.hidden { "base copy" } else { &vdi.label },
            description: &vdi.description,
            vdi_type: if vdi.kind.is_empty() { OF_USER } else { &vdi.kind },
            read_only: vdi.read_only,
            hidden: vdi.hidden,
            location: vdi.location(),
            sm_config: BTreeMap::new(),
            virtual_size: vdi.virtual_size,
            physical_utilisation: vdi.physical_utilisation,
            metadata_of_pool: NULL_REF,
            is_a_snapshot: false,
            snapshot_time: EPOCH,
            snapshot_of: NULL_REF,
            cbt_enabled: vdi.cbt_enabled,
        }
    }

    /// A VDI of which only its log of changed blocks is there, as the Python drivers show it.
    fn of_log(log: &LogAlone) -> Introduced<'static> {
        let location = log.vdi.to_string();
        Introduced {
            uuid: location.clone(),
            label: "",
            description: "",
            vdi_type: LOG_TYPE,
            read_only: false,
            hidden: false,
            location,
            sm_config: BTreeMap::new(),
            virtual_size: log.bytes,
            physical_utilisation: log.bytes,
            metadata_of_pool: NULL_REF,
            is_a_snapshot: false,
            snapshot_time: EPOCH,
            snapshot_of: NULL_REF,
            cbt_enabled: true,
        }
    }
}

/// `VDI.db_introduce`, with its 19 arguments in order.
///
/// # Errors
/// As [`Xapi::call`]; xapi refuses a UUID that another record has.
pub fn introduce(xapi: &mut Xapi, sr_ref: &str, new: &Introduced) -> Result<Value, ApiError> {
    let or_null = |reference: &str| Value::text(if reference.is_empty() { NULL_REF } else { reference });
    let empty = || Value::Struct(BTreeMap::new());
    let time = if new.snapshot_time.is_empty() { EPOCH } else { new.snapshot_time };
    xapi.call(
        "VDI.db_introduce",
        &[
            Value::text(new.uuid.as_str()),
            Value::text(new.label),
            Value::text(new.description),
            Value::text(sr_ref),
            Value::text(new.vdi_type),
            Value::Boolean(false),
            Value::Boolean(new.read_only),
            empty(),
            Value::text(new.location.as_str()),
            empty(),
            Value::map(new.sm_config.clone()),
            Value::Boolean(!new.hidden),
            Value::text(new.virtual_size.to_string()),
            Value::text(new.physical_utilisation.to_string()),
            or_null(new.metadata_of_pool),
            Value::Boolean(new.is_a_snapshot),
            Value::DateTime(time.to_owned()),
            or_null(new.snapshot_of),
            Value::Boolean(new.cbt_enabled),
        ],
    )
}

/// Makes the SR's three figures say what `sr` says; only what differs is written.
///
/// # Errors
/// The first [`ApiError`] of a call to xapi. The figures before it are written.
pub fn figures(xapi: &mut Xapi, sr_ref: &str, sr: &SrInfo) -> Result<(), ApiError> {
    let record = xapi.record("SR.get_record", sr_ref)?;
    for (field, setter, now) in [
        ("virtual_allocation", "SR.set_virtual_allocation", sr.virtual_allocation),
        ("physical_size", "SR.set_physical_size", sr.size),
        ("physical_utilisation", "SR.set_physical_utilisation", sr.space().used()),
    ] {
        if text(&record, field) != now.to_string() {
            xapi.set_number(setter, sr_ref, now)?;
        }
    }
    Ok(())
}
