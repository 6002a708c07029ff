//! The host plug-in `trim`, by which a user has the devices of an SR told what is free in it (`SR_TRIM`; XCP-ng 8.3, "Trim"). It runs
//! on the SR's master.
//!
//! The function `do_trim` has the argument `sr_uuid`. The answer is `True`, also if the devices take no discards, or a document with a
//! code and a text that clients show. Each attempt leaves its time in the SR's `other_config`.

use std::ffi::OsString;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Called, Failure, hand_over, not_understood, open_attached};
use crate::context::Context;
use crate::door::host;
use crate::door::xapi::{ApiError, Xapi};
use crate::door::xmlrpc::{Value, escaped};
use crate::error::{Error, one_line};
use crate::sys::syslog;
use crate::types::SrUuid;

/// The name of the plug-in.
pub const NAME: &str = "trim";

const FUNCTION: &str = "do_trim";

/// The key of an SR's `other_config`: seconds since 1970.
const LAST: &str = "trim_last_triggered";

/// How long other calls on the SR are waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Carries one call out; returns not at all if it is for the Python plug-in.
pub(super) fn answer(args: &[OsString]) -> Result<String, Failure> {
    let called = Called::read(NAME, args)?;
    if called.function != FUNCTION {
        return Err(hand_over(NAME, args, &called.function));
    }
    let sr = called.text("sr_uuid").and_then(|sr| sr.parse::<SrUuid>().ok());
    let sr = sr.ok_or_else(|| not_understood(NAME, "sr_uuid is no UUID"))?;
    let session = match open_attached(&called, sr) {
        Ok(Some(session)) => session,
        Ok(None) => return Err(hand_over(NAME, args, FUNCTION)),
        Err(why) => return Ok(document("SRUnavailable", &why)),
    };
    let shown = format!("{NAME} of SR {sr}");
    syslog::write(&shown);
    let deadline = Instant::now() + host::patience(PATIENCE);
    let outcome = session.sr_trim(&Context { deadline, progress: &|_, _| {}, others: None });
    let was_tried = outcome.as_ref().err().is_none_or(|error| !is_refusal(error));
    // The attempt was made, whatever xapi takes.
    if was_tried && let Err(e) = note(&mut Xapi::new(&called.session, None), sr) {
        syslog::write(&format!("{shown}: xapi does not take its time: {e}"));
    }
    match outcome {
        Ok(trim) => {
            syslog::write(&format!("{shown}: {}", trim.words()));
            Ok("True".to_owned())
        }
        Err(error) => {
            let why = one_line(&error);
            syslog::write(&format!("{shown} failed: {why}"));
            Ok(document(code(&error), &why))
        }
    }
}

/// Whether nothing was tried.
fn is_refusal(error: &Error) -> bool {
    matches!(code(error), "UnsupportedSRForTrim" | "SRUnavailable")
}

/// The word by which clients know an error (`trim_util.py`).
fn code(error: &Error) -> &'static str {
    match error {
        Error::Unsupported { .. } => "UnsupportedSRForTrim",
        Error::NoSpace { .. } => "Trim failed on full SR",
        Error::Busy { .. } | Error::SrUnavailable { .. } | Error::NoSr { .. } => "SRUnavailable",
        _ => "TrimException",
    }
}

/// Leaves the time in the SR's `other_config`.
fn note(xapi: &mut Xapi, sr: SrUuid) -> Result<(), ApiError> {
    let Some(reference) = xapi.by_uuid("SR", &sr.to_string())? else { return Ok(()) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    xapi.set("SR.remove_from_other_config", &reference, Value::text(LAST))?;
    xapi.add_key("SR.add_to_other_config", &reference, LAST, &format!("{:.2}", now.as_secs_f64()))
}

/// A code and a text as clients read them (`trim_util.py`).
fn document(code: &str, text: &str) -> String {
    let pair = |(key, value): (&str, &str)| {
        format!("<key_value_pair><key>{key}</key><value>{}</value></key_value_pair>", escaped(value))
    };
    let pairs: String = [("errcode", code), ("errmsg", text)].into_iter().map(pair).collect();
    format!("<?xml version=\"1.0\" ?><trim_response>{pairs}</trim_response>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_document_of_its_code_and_text() {
        let full = Error::NoSpace { sr: SrUuid::random(), free: 0, wanted: 4 << 20 };
        let text = document(code(&full), "a < b");
        let expected = "<?xml version=\"1.0\" ?><trim_response><key_value_pair><key>errcode</key><value>Trim failed on full SR\
                        </value></key_value_pair><key_value_pair><key>errmsg</key><value>a &lt; b</value></key_value_pair>\
                        </trim_response>";
        assert_eq!(text, expected);
        assert!(!is_refusal(&full));
        assert!(is_refusal(&Error::Unsupported { op: "sr_trim", why: String::new() }));
    }
}
