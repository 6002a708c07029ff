//! The host plug-in `lvhd-thin`, by which another host asks the SR's master for room in the volume of a disk that it attaches, and gives it
//! back; LVHD, "Master and slaves". The Python drivers (`lvhd-thin`) and this package call it alike.
//!
//! | function | what |
//! |---|---|
//! | `attach` | the volume gets room for all of the disk |
//! | `detach` | the volume becomes as small as it should be, if no host has the disk attached. The key `paused` in the VDI's sm_config keeps hosts from attaching it meanwhile; a kill leaves the key to the next sr_scan |
//!
//! arguments: `srUuid`, `vdiUuid`, `vdiType`, which is not needed here. The answer is `True`, or `False` if it was not done.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::{Called, Failure, failed, hand_over, not_understood, open_attached};
use crate::context::Context;
use crate::door::xapi::{ApiError, CLAIM, PAUSED, Xapi};
use crate::door::xmlrpc::Value;
use crate::error::one_line;
use crate::sys::syslog;
use crate::types::{SrUuid, VdiUuid};

pub const NAME: &str = "lvhd-thin";

/// Function: a host attaches a disk.
pub const ATTACH: &str = "attach";
/// Function: a host has detached a disk.
pub const DETACH: &str = "detach";

/// How long a change waits for other calls. xapi's patience is longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The arguments of either function.
pub fn arguments(sr: SrUuid, vdi: VdiUuid, vdi_type: &str) -> Value {
    Value::map([("srUuid", sr.to_string()), ("vdiUuid", vdi.to_string()), ("vdiType", vdi_type.to_owned())])
}

/// Carries one call out; returns not at all if it is for the Python plug-in.
pub(super) fn answer(args: &[OsString]) -> Result<String, Failure> {
    let called = Called::read(NAME, args)?;
    let function = called.function.as_str();
    let bad = |why: &str| not_understood(NAME, why);
    let sr: SrUuid = called.text("srUuid").and_then(|sr| sr.parse().ok()).ok_or_else(|| bad("srUuid is no UUID"))?;
    let vdi: VdiUuid =
        called.text("vdiUuid").and_then(|vdi| vdi.parse().ok()).ok_or_else(|| bad("vdiUuid is no UUID"))?;
    let Some(session) = open_attached(&called, sr).map_err(|why| failed(function, why))? else {
        return Err(hand_over(NAME, args, function));
    };
    let is_attached = match function {
        ATTACH => true,
        DETACH => false,
        other => return Err(vec!["UNKNOWN_XENAPI_PLUGIN_FUNCTION".to_owned(), other.to_owned()]),
    };
    let shown = format!("{NAME} {function} of VDI {vdi} on SR {sr}");
    syslog::write(&shown);
    let mut xapi = Xapi::new(&called.session, None);
    let kept = match is_attached {
        true => None,
        false => match keep(&mut xapi, vdi)
            .map_err(|e| failed(function, format!("xapi does not say who has VDI {vdi}: {e}")))?
        {
            None => return Ok("True".to_owned()),
            kept => kept,
        },
    };
    let context = Context { deadline: Instant::now() + PATIENCE, progress: &|_, _| {}, others: None };
    let seen = kept.clone().map(|reference| (Xapi::new(&called.session, None), reference));
    // The wait for the VDI's lock may have been long: sr_scan may have let hosts attach it meanwhile.
    let is_wanted = move || seen.is_none_or(|(mut xapi, reference)| is_kept(&mut xapi, &reference).unwrap_or(false));
    let fitted = session.vdi_fit(vdi, is_attached, is_wanted, &context);
    if let Some(reference) = kept
        && let Err(e) = xapi.set("VDI.remove_from_sm_config", &reference, Value::text(PAUSED))
    {
        syslog::write(&format!("VDI {vdi} stays paused until the next sr_scan: {e}"));
    }
    match fitted {
        Ok(_) => Ok("True".to_owned()),
        Err(error) => {
            syslog::write(&format!("{shown} failed: {}", one_line(&error)));
            Ok("False".to_owned())
        }
    }
}

/// Keeps all hosts from attaching a VDI that none has. The reference of the VDI; `None`: a host has it, or it is paused.
fn keep(xapi: &mut Xapi, vdi: VdiUuid) -> Result<Option<String>, ApiError> {
    let reference = xapi.call("VDI.get_by_uuid", &[Value::text(vdi.to_string())])?;
    let reference = reference.as_str().unwrap_or_default().to_owned();
    match xapi.add_key("VDI.add_to_sm_config", &reference, PAUSED, "true") {
        Err(e) if e.is("MAP_DUPLICATE_KEY") => return Ok(None),
        other => other?,
    }
    let kept = is_kept(xapi, &reference);
    if matches!(kept, Ok(true)) {
        return Ok(Some(reference));
    }
    xapi.set("VDI.remove_from_sm_config", &reference, Value::text(PAUSED))?;
    kept.map(|_| None)
}

/// Whether no host has a VDI attached, and none may attach it.
fn is_kept(xapi: &mut Xapi, reference: &str) -> Result<bool, ApiError> {
    let keys = xapi.record("VDI.get_sm_config", reference)?;
    Ok(keys.contains_key(PAUSED) && !keys.keys().any(|key| key.starts_with(CLAIM)))
}
