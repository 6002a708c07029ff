//! Host plug-ins of xapi that this package has a part in; SMAPIv1, "Host plug-ins". Each takes the place of the Python plug-in of
//! its name, which is kept beside it as `NAME.stock` and gets every call for an SR of another driver.
//!
//! xapi runs a plug-in with one argument, a methodCall of a session and a struct of strings, and wants a methodResponse with
//! `Status` and `Value` (or `ErrorDescription`).
//!
//! | file | plug-in |
//! |---|---|
//! | [`pause`] | `tapdisk-pause`: other hosts of a pool make this one let go of an image |
//! | [`coalesce`] | `coalesce-leaf`: the images of a VM's disks are merged now |
//! | [`on_slave`] | `on-slave`: this host follows what the SR's master changed of its volumes |
//! | [`trim`] | `trim`: the devices of an SR are told what is free in it |
//! | [`lvhd_thin`] | `lvhd-thin`: the SR's master gives a volume room for another host |

pub mod coalesce;
pub mod lvhd_thin;
pub mod on_slave;
pub mod pause;
pub mod trim;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::host::ours;
use super::xapi::{ApiError, Xapi};
use super::xmlrpc::{self, Value};
use super::{Answer, guarded, said};
use crate::call::Session;
use crate::error::one_line;
use crate::sys::tool;
use crate::types::SrUuid;

/// A plug-in: its name, and what answers a call.
type Plugin = (&'static str, fn(&[OsString]) -> Result<String, Failure>);

const PLUGINS: [Plugin; 5] = [
    (pause::NAME, pause::answer),
    (coalesce::NAME, coalesce::answer),
    (on_slave::NAME, on_slave::answer),
    (lvhd_thin::NAME, lvhd_thin::answer),
    (trim::NAME, trim::answer),
];

/// Why a call failed: words of a XenAPI error.
type Failure = Vec<String>;

fn meant(args: &[OsString]) -> Option<Plugin> {
    let called = Path::new(args.first()?).file_name()?;
    PLUGINS.into_iter().find(|(name, _)| called == *name)
}

/// Serves one call, if this process was called by the name of a plug-in; returns not at all if the call is for the stock plug-in.
pub fn serve(args: &[OsString]) -> Option<Answer> {
    let (name, answer) = meant(args)?;
    let of_panic = |text: &str| said(failure(&["XENAPI_PLUGIN_FAILURE", name, "panic", text]));
    Some(guarded(name, || said(document(answer(args))), of_panic))
}

fn document(done: Result<String, Failure>) -> String {
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

/// A function of a plug-in that is called, the session of the caller, and the arguments.
struct Called {
    function: String,
    session: String,
    members: BTreeMap<String, Value>,
}

impl Called {
    fn read(name: &'static str, args: &[OsString]) -> Result<Called, Failure> {
        let bad = |why: &str| not_understood(name, why);
        let [_, document] = args else { return Err(bad("expected one argument")) };
        let document = document.to_str().ok_or_else(|| bad("it is not UTF-8"))?;
        let (function, params) = xmlrpc::read_call(document).map_err(|e| bad(&e.to_string()))?;
        let Ok([Value::String(session), Value::Struct(members)]) = <[Value; 2]>::try_from(params) else {
            return Err(bad("its parameters are a session and a struct"));
        };
        Ok(Called { function, session, members })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.members.get(name).and_then(Value::as_str)
    }
}

fn not_understood(name: &str, why: &str) -> Failure {
    failed(name, format!("the call is not understood: {why}"))
}

/// An SR, open as this host has it attached. `None`: it is served by another package.
///
/// # Errors
/// Why that cannot be learned, as a clause.
fn open_attached(called: &Called, sr: SrUuid) -> Result<Option<Session>, String> {
    let mut xapi = Xapi::new(&called.session, None);
    let unknown = |e: ApiError| format!("cannot learn from xapi how SR {sr} is attached: {e}");
    let (driver, config) = match ours::attached_here(&mut xapi, sr).map_err(unknown)? {
        Some((Some(driver), Some(config))) => (driver, config),
        Some((Some(_), None)) => return Err(format!("SR {sr} is not attached on this host")),
        Some((None, _)) => return Ok(None),
        None => return Err(format!("xapi has no SR {sr}")),
    };
    Session::open(driver, sr, config).map(Some).map_err(|error| one_line(&error))
}

/// Becomes the Python plug-in, which answers. Returns only if there is none. The Python plug-in is in the same directory, where it
/// finds its library.
fn hand_over(name: &str, args: &[OsString], function: &str) -> Failure {
    let stock = format!("{name}.stock");
    let beside = |path: PathBuf| Some(path.parent()?.join(&stock));
    let stock = args.first().map(PathBuf::from).and_then(beside).unwrap_or_else(|| (&stock).into());
    let error = tool::become_another(&stock, &args[1..]);
    failed(
        function,
        format!("SR belongs to another driver, and the plug-in for that cannot be started: {}", one_line(&error)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::xmlrpc::Response;

    fn said(args: &[&str]) -> Vec<String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let (_, answer) = meant(&args).unwrap();
        let Ok(Response::Value(answer)) = xmlrpc::read_response(&document(answer(&args))) else { panic!() };
        assert_eq!(answer.get("Status").and_then(Value::as_str), Some("Failure"));
        let Some(Value::Array(words)) = answer.get("ErrorDescription") else { panic!("{answer:?}") };
        words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_is_no_call_is_a_failure_in_an_envelope() {
        let session = Value::text("OpaqueRef:secret");
        let bad = Value::map([
            ("sr_uuid", "../x"),
            ("vdi_uuid", "98de866e-b035-4b1a-a571-000000000001"),
            ("vm_uuid", "../x"),
        ]);
        for (name, function) in [(pause::NAME, "pause"), (coalesce::NAME, "leaf-coalesce"), (trim::NAME, "do_trim")] {
            for args in [
                vec![name],
                vec![name, "<"],
                vec![name, &xmlrpc::write_call(function, &[])],
                vec![name, &xmlrpc::write_call(function, &[session.clone(), Value::map([("sr_uuid", "x")])])],
                vec![name, &xmlrpc::write_call(function, &[session.clone(), bad.clone()])],
            ] {
                let words = said(&args);
                assert_eq!(words[0], "XENAPI_PLUGIN_FAILURE", "{words:?}");
                assert!(!words.join(" ").contains("secret"), "{words:?}");
            }
        }
        assert!(meant(&["/usr/sbin/sm".into()]).is_none() && meant(&[]).is_none());
    }
}
