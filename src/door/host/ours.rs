//! The SRs of xapi that this package serves on this host, behind either door.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::door::smapiv3;
use crate::door::xapi::{ApiError, Record, Xapi, text};
use crate::door::xmlrpc::Value;
use crate::sr::{DRIVERS, Driver};

/// The driver of an SR by its record, if what xapi calls for the SR's type is this executable.
///
/// # Errors
/// Those of [`Xapi::call`].
pub fn driver_of(xapi: &mut Xapi, sr: &Record) -> Result<Option<&'static Driver>, ApiError> {
    let id = |path: &str| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let is_ours = |file: &str| id(file).is_some_and(|file| Some(file) == id("/proc/self/exe"));
    if let Some(driver) = smapiv3::driver_of(text(sr, "type")) {
        let file = smapiv3::installed(text(sr, "type"));
        return Ok(Some(driver).filter(|_| is_ours(&file.to_string_lossy())));
    }
    let known = DRIVERS.iter().copied().find(|driver| driver.sr_type == text(sr, "type"));
    let Some(driver) = known else { return Ok(None) };
    let sm = first_where(xapi, "SM", "type", driver.sr_type)?;
    let file = sm.as_ref().map_or("", |sm| text(sm, "driver_filename"));
    Ok(Some(driver).filter(|_| is_ours(file)))
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
