//! The host plug-in `tapdisk-pause`, by which other hosts of a pool make this one let go of an image for a moment;
//! SMAPIv1, "Host plug-ins". It takes the place of the Python plug-in of that name, which is kept beside it as [`STOCK`]
//! and gets every call for an SR of another driver.
//!
//! xapi runs it with one argument, a methodCall of a session and a struct of strings, and wants a methodResponse with
//! `Status` and `Value` (or `ErrorDescription`).
//!
//! | function | what |
//! |---|---|
//! | `pause` | the VDI's image and its parents are closed, I/O waits. Nothing to do where it is not attached |
//! | `unpause` | what has the image's name now is opened, I/O goes on |
//! | `refresh` | both |
//! | `serves` | nothing: whether the SR is served by this package here. The Python plug-in knows no such function, so a host that has not this one is never taken for one that has |
//!
//! arguments: `sr_uuid`, `vdi_uuid`, `vdi_location` (where it is not the UUID), `failfast` (`True`: waits for nobody).
//!
//! A pause is kept by the server of the disk ([`hold`]), so it needs no process of ours. After it was made, the
//! VDI's sm_config must have the key `paused`: a request that comes so late that nobody waits for its answer is undone.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::host::device::activation;
use super::host::pause::{NAME, PAUSE, REFRESH, SERVES, UNPAUSE, hold, release};
use super::xapi::{Record, Xapi, text};
use super::xmlrpc::{self, Value};
use super::{Answer, guarded, said};
use crate::error::one_line;
use crate::sr::{DRIVERS, Driver};
use crate::sys::{syslog, tool};
use crate::types::{Misread, SrUuid, VdiUuid};

/// The name that the Python plug-in gets. In the same directory, where it finds its library.
pub const STOCK: &str = "tapdisk-pause.stock";

/// How long to wait for a vdi_activate of the VDI that is under way. xapi's patience is longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process was called by the plug-in's name.
pub fn is_meant(args: &[OsString]) -> bool {
    args.first().is_some_and(|name| Path::new(name).file_name() == Some(NAME.as_ref()))
}

/// Serves one call; returns not at all if it is for the stock plug-in.
pub fn serve(args: &[OsString]) -> Answer {
    guarded(NAME, || said(answer(args)), |text| said(failure(&["XENAPI_PLUGIN_FAILURE", NAME, "panic", text])))
}

/// A call of the plug-in: the function, the SR, the VDI and the options.
struct Request {
    function: String,
    sr: SrUuid,
    /// The VDI in xapi, and on the substrate.
    vdi_uuid: VdiUuid,
    vdi: VdiUuid,
    /// Waits for nobody.
    failfast: bool,
    /// A key that asks for what is not done here.
    strange: Option<&'static str>,
    xapi: Xapi,
}

/// Why a call failed: words of a XenAPI error.
type Failure = Vec<String>;

fn answer(args: &[OsString]) -> String {
    let done = read(args).and_then(|mut request| {
        let Some(driver) = our_driver(&mut request)? else {
            return Err(hand_over(args, &request.function));
        };
        let shown = format!("{NAME} {} of VDI {} on SR {}", request.function, request.vdi, request.sr);
        syslog::write(&shown);
        run(driver, &mut request).inspect_err(|words| syslog::write(&format!("{shown} failed: {}", words.join(", "))))
    });
    match done {
        Ok(word) => envelope([("Status", Value::text("Success")), ("Value", Value::text(word))]),
        Err(words) => failure(&words.iter().map(String::as_str).collect::<Vec<_>>()),
    }
}

fn envelope(members: [(&str, Value); 2]) -> String {
    xmlrpc::write_response(&Value::Struct(members.map(|(name, value)| (name.to_owned(), value)).into()))
}

fn failure(words: &[&str]) -> String {
    let words = words.iter().map(|word| Value::text(*word)).collect();
    envelope([("Status", Value::text("Failure")), ("ErrorDescription", Value::Array(words))])
}

/// The words that xapi shows of a plug-in that failed.
fn failed(function: &str, why: impl Into<String>) -> Failure {
    vec!["XENAPI_PLUGIN_FAILURE".to_owned(), function.to_owned(), "VDIUnavailable".to_owned(), why.into()]
}

fn read(args: &[OsString]) -> Result<Request, Failure> {
    let bad = |why: &str| failed(NAME, format!("the call is not understood: {why}"));
    let [_, document] = args else { return Err(bad("expected one argument")) };
    let document = document.to_str().ok_or_else(|| bad("it is not UTF-8"))?;
    let (function, params) = xmlrpc::read_call(document).map_err(|e| bad(&e.to_string()))?;
    let Ok([Value::String(session), Value::Struct(members)]) = <[Value; 2]>::try_from(params) else {
        return Err(bad("its parameters are a session and a struct"));
    };
    let uuid = |name: &str| members.get(name).and_then(Value::as_str).ok_or_else(|| bad(&format!("{name} is missing")));
    let parse = |text: &str| text.parse::<VdiUuid>().map_err(|e| bad(&one_line(&e.into())));
    let vdi_uuid = match function.as_str() {
        // Of an SR as a whole.
        SERVES => members.get("vdi_uuid").and_then(Value::as_str).map_or_else(|| Ok(VdiUuid::random()), parse)?,
        _ => parse(uuid("vdi_uuid")?)?,
    };
    Ok(Request {
        sr: uuid("sr_uuid")?.parse().map_err(|e: Misread| bad(&one_line(&e.into())))?,
        vdi: members.get("vdi_location").and_then(Value::as_str).map_or(Ok(vdi_uuid), parse)?,
        vdi_uuid,
        failfast: members.get("failfast").and_then(Value::as_str) == Some("True"),
        strange: ["secondary", "activate_parents"].into_iter().find(|key| members.contains_key(*key)),
        function,
        xapi: Xapi::new(&session, None),
    })
}

/// The driver of the SR's type, if the one that xapi has for that type is this executable.
fn our_driver(request: &mut Request) -> Result<Option<&'static Driver>, Failure> {
    let (function, sr) = (request.function.clone(), request.sr);
    let unknown = |why: String| failed(&function, format!("cannot learn the type of SR {sr} from xapi: {why}"));
    let mut one = |table: &str, field: &str, value: &str| -> Result<Option<Record>, Failure> {
        let expression = Value::text(format!("field \"{field}\" = \"{value}\""));
        match request.xapi.call(&format!("{table}.get_all_records_where"), &[expression]) {
            Ok(Value::Struct(rows)) => Ok(rows.into_values().find_map(|row| match row {
                Value::Struct(record) => Some(record),
                _ => None,
            })),
            Ok(other) => Err(unknown(format!("{table}.get_all_records_where answered {}", other.kind()))),
            Err(e) => Err(unknown(e.to_string())),
        }
    };
    let record = one("SR", "uuid", &sr.to_string())?.ok_or_else(|| unknown("xapi has no such SR".to_owned()))?;
    let known = DRIVERS.iter().copied().find(|driver| driver.sr_type == text(&record, "type"));
    let Some(driver) = known else { return Ok(None) };
    let sm = one("SM", "type", driver.sr_type)?;
    let file = sm.as_ref().map_or("", |sm| text(sm, "driver_filename"));
    let id = |path: &str| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    Ok(Some(driver).filter(|_| id(file).is_some_and(|driver| Some(driver) == id("/proc/self/exe"))))
}

/// Becomes the Python plug-in, which answers. Returns only if there is none.
fn hand_over(args: &[OsString], function: &str) -> Failure {
    let beside = |path: PathBuf| Some(path.parent()?.join(STOCK));
    let stock = args.first().map(PathBuf::from).and_then(beside).unwrap_or_else(|| STOCK.into());
    let error = tool::become_another(&stock, &args[1..]);
    failed(
        function,
        format!("SR belongs to another driver, and the plug-in for that cannot be started: {}", one_line(&error)),
    )
}

fn run(driver: &Driver, request: &mut Request) -> Result<&'static str, Failure> {
    const DONE: &str = "True";
    let function = request.function.clone();
    if let Some(key) = request.strange {
        return Err(failed(&function, format!("{key} is not supported for SR {}", request.sr)));
    }
    let words = |why: String| failed(&function, why);
    if function == SERVES {
        return Ok(DONE);
    }
    let patience = if request.failfast { Duration::ZERO } else { PATIENCE };
    // From the claim of a vdi_activate to its device nothing may come between.
    let _lock = activation(request.vdi, Instant::now() + patience).map_err(|e| words(one_line(&e)))?;
    let (sr, vdi, vdi_uuid) = (request.sr, request.vdi, request.vdi_uuid);
    let pause = || hold(driver, sr, vdi, vdi_uuid).map_err(|e| words(one_line(&e)));
    match function.as_str() {
        PAUSE => {
            pause()?;
            if let Err(why) = is_wanted(request) {
                let undone = release(driver, request.sr, request.vdi);
                let undo = undone.err().map(|e| format!("; undoing it failed as well: {}", one_line(&e)));
                return Err(words(why + undo.as_deref().unwrap_or("")));
            }
        }
        UNPAUSE => drop(release(driver, request.sr, request.vdi).map_err(|e| words(one_line(&e)))?),
        REFRESH => {
            pause()?;
            release(driver, request.sr, request.vdi).map_err(|e| words(one_line(&e)))?;
        }
        _ => return Err(vec!["UNKNOWN_XENAPI_PLUGIN_FUNCTION".to_owned(), function]),
    }
    Ok(DONE)
}

/// Whether whoever wanted the pause is still there.
fn is_wanted(request: &mut Request) -> Result<(), String> {
    let uuid = Value::text(request.vdi_uuid.to_string());
    let xapi = &mut request.xapi;
    let sm_config = match xapi.call("VDI.get_by_uuid", &[uuid]) {
        Ok(Value::String(reference)) => xapi.record("VDI.get_sm_config", &reference),
        Ok(other) => return Err(format!("VDI.get_by_uuid answered {}", other.kind())),
        Err(e) => Err(e),
    };
    match sm_config {
        Ok(sm_config) if sm_config.contains_key("paused") => Ok(()),
        Ok(_) => Err("the call that wanted the pause has ended: the VDI's sm_config has no key 'paused'".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::xmlrpc::Response;

    fn said(args: &[&str]) -> Vec<String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let Ok(Response::Value(answer)) = xmlrpc::read_response(&answer(&args)) else { panic!() };
        assert_eq!(answer.get("Status").and_then(Value::as_str), Some("Failure"));
        let Some(Value::Array(words)) = answer.get("ErrorDescription") else { panic!("{answer:?}") };
        words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_is_no_call_is_a_failure_in_an_envelope() {
        let session = Value::text("OpaqueRef:secret");
        let bad = Value::map([("sr_uuid", "../x"), ("vdi_uuid", "98de866e-b035-4b1a-a571-000000000001")]);
        for args in [
            vec![NAME],
            vec![NAME, "<"],
            vec![NAME, &xmlrpc::write_call(PAUSE, &[])],
            vec![NAME, &xmlrpc::write_call(PAUSE, &[session.clone(), Value::map([("sr_uuid", "x")])])],
            vec![NAME, &xmlrpc::write_call(PAUSE, &[session.clone(), bad])],
        ] {
            let words = said(&args);
            assert_eq!(words[0], "XENAPI_PLUGIN_FAILURE", "{words:?}");
            assert!(!words.join(" ").contains("secret"), "{words:?}");
        }
    }
}
