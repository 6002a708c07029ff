//! The SRs of xapi that this package serves on this host, behind either door.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::door::smapiv3;
use crate::door::xapi::{ApiError, Record, Xapi, text};
use crate::door::xmlrpc::Value;
use crate::sr::{DRIVERS, Driver};
use crate::types::{DeviceConfig, SrUuid};

/// The driver of an SR by its record, if what xapi calls for the SR's type is this executable.
///
/// # Errors
/// Those of [`Xapi::call`].
pub fn driver_of(xapi: &mut Xapi, sr: &Record) -> Result<Option<&'static Driver>, ApiError> {
    if let Some(driver) = smapiv3::driver_of(text(sr, "type")) {
        let file = smapiv3::installed(text(sr, "type"));
        return Ok(Some(driver).filter(|_| is_this(&file)));
    }
    let known = DRIVERS.iter().copied().find(|driver| driver.sr_type == text(sr, "type"));
    let Some(driver) = known else { return Ok(None) };
    let sm = first_where(xapi, "SM", "type", driver.sr_type)?;
    let file = sm.as_ref().map_or("", |sm| text(sm, "driver_filename"));
    Ok(Some(driver).filter(|_| is_this(file.as_ref())))
}

/// Whether a path leads to this executable.
pub fn is_this(path: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    id(path).is_some_and(|it| Some(it) == id("/proc/self/exe".as_ref()))
}

/// The driver of an SR, if it is ours, and device_config as xapi gives it to the driver on this host; `None` for an SR that xapi does not
/// have.
type Attached = Option<(Option<&'static Driver>, Option<DeviceConfig>)>;

/// How an SR is attached on this host.
///
/// # Errors
/// Those of [`Xapi::call`].
pub fn attached_here(xapi: &mut Xapi, sr: SrUuid) -> Result<Attached, ApiError> {
    let Some(reference) = xapi.by_uuid("SR", &sr.to_string())? else { return Ok(None) };
    let record = xapi.record("SR.get_record", &reference)?;
    let driver = driver_of(xapi, &record)?;
    let host = xapi.this_host()?;
    let is_master = record.get("shared") != Some(&Value::Boolean(true)) || master(xapi)? == host;
    let here = pbd(xapi, &reference, &host)?;
    Ok(Some((driver, here.map(|(_, pbd)| config(&pbd, is_master)))))
}

/// The PBD by which a host has an SR, attached or not, with its reference.
///
/// # Errors
/// Those of [`Xapi::call`].
pub fn pbd(xapi: &mut Xapi, sr_ref: &str, host: &str) -> Result<Option<(String, Record)>, ApiError> {
    let pbds = xapi.records("PBD.get_all_records")?;
    Ok(pbds.into_iter().find(|(_, pbd)| text(pbd, "SR") == sr_ref && text(pbd, "host") == host))
}

/// The reference of the pool's master.
///
/// # Errors
/// Those of [`Xapi::call`].
pub fn master(xapi: &mut Xapi) -> Result<String, ApiError> {
    let pools = xapi.call("pool.get_all", &[])?;
    let pool = match pools {
        Value::Array(mut pools) if !pools.is_empty() => pools.swap_remove(0),
        other => return Err(ApiError::Malformed(format!("pool.get_all answered {}", other.kind()))),
    };
    Ok(xapi.call("pool.get_master", &[pool])?.as_str().unwrap_or_default().to_owned())
}

/// device_config of a PBD as xapi gives it to the driver.
pub fn config(pbd: &Record, is_master: bool) -> DeviceConfig {
    let keys = pbd.get("device_config").and_then(Value::as_struct).cloned().unwrap_or_default();
    let keys = keys.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
    DeviceConfig(keys.chain([("SRmaster".to_owned(), is_master.to_string())]).collect())
}

/// A record of a class whose field has a value. The caller knows that both are words.
///
/// # Errors
/// Those of [`Xapi::call`].
pub fn first_where(xapi: &mut Xapi, class: &str, field: &str, value: &str) -> Result<Option<Record>, ApiError> {
    let expression = Value::text(format!("field \"{field}\" = \"{value}\""));
    match xapi.call(&format!("{class}.get_all_records_where"), &[expression])? {
        Value::Struct(rows) => Ok(rows.into_values().find_map(|row| match row {
            Value::Struct(record) => Some(record),
            _ => None,
        })),
        other => Err(ApiError::Malformed(format!("{class}.get_all_records_where answered {}", other.kind()))),
    }
}
