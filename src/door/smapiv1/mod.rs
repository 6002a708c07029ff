//! SMAPIv1: one XML-RPC methodCall of xapi in argv, one methodResponse on stdout, always exit status 0.
//!
//! | file | what |
//! |---|---|
//! | [`command`] | the commands |
//! | [`request`] | the request: which command, of which SR and VDI |
//! | [`service`] | each command: calls of the driver, and what xapi has to be told of them |
//! | [`mod@format`] | the format of a new disk, and how large a disk of each may be |
//! | [`claim`] | the claims of hosts on a VDI |
//! | [`attached`] | the answer of vdi_attach |
//! | [`hosts`] | the other hosts that have a VDI attached |
//! | [`mod@compare`] | how the records of xapi differ from what a scan found |
//! | [`sync`] | making xapi's database say what the substrate says |
//! | [`collector`] | merging by itself, and telling xapi of it |
//! | [`code`] | the codes of failures |
//! | [`faults`] | what xapi is told when a command fails |
//! | [`choice`] | what its client may choose from then |

pub mod attached;
pub mod choice;
pub mod claim;
pub mod code;
pub mod collector;
pub mod command;
pub mod compare;
pub mod faults;
pub mod format;
pub mod hosts;
pub mod request;
pub mod service;
pub mod sync;

use std::ffi::OsString;

use self::code::Code;
use self::command::Command;
use self::faults::{Attempt, Failure};
use self::request::Request;
use self::service::Service;
use super::host::device;
use super::xapi::Xapi;
use super::xmlrpc::{self, Value};
use super::{Answer, guarded, said};
use crate::sr::Driver;
use crate::sys::syslog;

/// The version that a driver announces. Any below 2.0 is SMAPIv1 to xapi. XCP-ng's `sr_health_check` loads the driver of
/// every SM with exactly 1.0 as Python source; an ELF file ends its run, and it checks no SR after that.
const API_VERSION: &str = "1.1";

/// The vendor that every driver of this package names.
pub const VENDOR: &str = "XCP storage managers";
pub const COPYRIGHT: &str = "the authors of xcp-storage-managers";

/// Whether these are the words of an agent that speaks XML-RPC. No word of the SR API begins like this.
pub fn is_meant(args: &[OsString]) -> bool {
    args.get(1).is_some_and(|first| first.as_encoded_bytes().trim_ascii_start().starts_with(b"<"))
}

/// Serves one call.
pub fn serve(driver: &'static Driver, args: &[OsString]) -> Answer {
    let of_panic = |text: &str| said(xmlrpc::write_fault(Code::GenericException as u16, text));
    guarded(driver.executable, || answer(driver, args), of_panic)
}

fn answer(driver: &'static Driver, args: &[OsString]) -> Answer {
    let request = match args {
        [_, only] => match only.to_str() {
            Some(text) => Request::read(text),
            None => Err(Failure::new(Code::BadRequest, "it is not UTF-8")),
        },
        _ => Err(Failure::new(Code::BadRequest, format!("expected one argument, there are {}", args.len() - 1))),
    };
    let request = match request {
        Ok(request) => request,
        Err(refused) => return refuse(driver, "a request", &refused, None, &[]),
    };
    if request.command == Command::SrGetDriverInfo {
        return said(xmlrpc::write_response(&driver_info(driver)));
    }
    syslog::write(&request.shown(driver.about.configuration));
    let (name, mut secrets) = (request.command.name(), request.secrets());
    let mut service = match Service::new(driver, &request) {
        Ok(service) => service,
        Err(failure) => return refuse(driver, name, &failure, Some(request.command), &secrets),
    };
    match service.run() {
        Ok(value) => said(xmlrpc::write_response(&value)),
        Err(failure) => {
            secrets.extend(service.secrets().filter(|secret| !secret.is_empty()));
            refuse(driver, name, &failure, Some(request.command), &secrets)
        }
    }
}

fn refuse(driver: &Driver, what: &str, failure: &Failure, command: Option<Command>, secrets: &[&str]) -> Answer {
    let (code, detail) = faults::fault(failure, Attempt::of(driver, command));
    let text = masked(faults::text(driver.about.name, code, &detail), secrets);
    let more = faults::unsaid(failure, code);
    let logged = more.map_or_else(|| text.clone(), |more| masked(format!("{text}: {more}"), secrets));
    syslog::write(&format!("{} {what} failed: {} {logged}", driver.executable, code as u16));
    // xapi hands what is on stderr to the client that asked, as the fault's third parameter.
    Answer { stderr: choice::document(failure).unwrap_or_default(), ..said(xmlrpc::write_fault(code as u16, &text)) }
}

/// Masks secrets in a text. No message of ours holds one; a tool's own words might.
pub(super) fn masked(text: String, secrets: &[&str]) -> String {
    secrets.iter().fold(text, |text, secret| without(&text, secret))
}

/// Masks a secret where it is a word of its own: of a short one, every other word would be full.
fn without(text: &str, secret: &str) -> String {
    let is_end = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
    let (mut masked, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(secret) {
        let (before, after) = (&rest[..at], &rest[at + secret.len()..]);
        let alone = is_end(before.chars().next_back().or(masked.chars().next_back())) && is_end(after.chars().next());
        masked.push_str(before);
        masked.push_str(if alone { "***" } else { secret });
        rest = after;
    }
    masked + rest
}

/// A secret that a key of device_config names by its UUID in xapi.
///
/// # Errors
/// [`Code::InvalidSecret`] if xapi has no such secret; what xapi says.
pub(super) fn secret(xapi: &mut Xapi, key: &str, uuid: &str) -> Result<String, Failure> {
    let no_secret = || Failure::new(Code::InvalidSecret, format!("xapi has no secret with the UUID that {key} gives"));
    let reference = xapi.by_uuid("secret", uuid)?.ok_or_else(no_secret)?;
    match xapi.call("secret.get_value", &[Value::text(reference)]) {
        Ok(Value::String(secret)) => Ok(secret),
        Ok(_) => Err(Failure::new(Code::InvalidSecret, "the value of a secret is not text")),
        Err(e) if e.is_gone() => Err(no_secret()),
        Err(e) => Err(e.into()),
    }
}

/// The capabilities that a driver announces on this host: those that its data path can keep.
pub fn announced(driver: &Driver) -> impl Iterator<Item = &'static str> + use<> {
    driver.about.capabilities.iter().copied().filter(|capability| !device::missing(capability))
}

/// The description of a driver and of what the driver can do. At each start xapi asks every driver for the description,
/// so nothing is touched for it.
fn driver_info(driver: &Driver) -> Value {
    let texts = |texts: &[&str]| Value::Array(texts.iter().map(|text| Value::text(*text)).collect());
    let kept: Vec<&str> = announced(driver).collect();
    let keys = driver.about.configuration.iter();
    let configuration = keys.map(|(key, means)| Value::map([("key", *key), ("description", *means)])).collect();
    let formats: Vec<String> = driver.image_formats.iter().map(|format| format.to_string()).collect();
    let members = [
        ("name", Value::text(driver.about.name)),
        ("description", Value::text(driver.description)),
        ("vendor", Value::text(VENDOR)),
        ("copyright", Value::text(COPYRIGHT)),
        ("driver_version", Value::text(env!("CARGO_PKG_VERSION"))),
        ("required_api_version", Value::text(API_VERSION)),
        ("capabilities", texts(&kept)),
        ("configuration", Value::Array(configuration)),
        ("supported_image_formats", texts(&formats.iter().map(String::as_str).collect::<Vec<_>>())),
    ];
    Value::Struct(members.map(|(name, value)| (name.to_owned(), value)).into())
}

#[cfg(test)]
mod tests {
    use std::panic;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_secret_is_masked_as_a_word_and_other_words_keep_their_letters() {
        for (text, secret, masked) in [
            ("expected x, exactly x", "x", "expected ***, exactly ***"),
            ("\"x\"xy", "x", "\"***\"xy"),
            ("mount -o pass=a.b,c", "a.b", "mount -o pass=***,c"),
            ("xx x", "x", "xx ***"),
            ("", "x", ""),
        ] {
            assert_eq!(without(text, secret), masked, "{text}");
        }
    }

    use crate::door::xmlrpc::Response;
    use crate::sr::file;
    use crate::types::{DeviceConfig, NewSr, SrUuid};

    static BROKEN: Driver = Driver { open: |_, _, _| panic!("boom <&>"), ..file::DRIVER };

    fn call(command: &str, location: &str, sr: &str) -> Vec<OsString> {
        let members = [("device_config", Value::map([("location", location)])), ("sr_uuid", Value::text(sr))];
        let members = members.map(|(k, v)| (k.to_owned(), v));
        vec!["FileSR".into(), xmlrpc::write_call(command, &[Value::Struct(members.into())]).into()]
    }

    static OPENED: AtomicUsize = AtomicUsize::new(0);
    static COUNTING: Driver = Driver {
        open: |sr, config, deadline| {
            OPENED.fetch_add(1, Ordering::Relaxed);
            (file::DRIVER.open)(sr, config, deadline)
        },
        ..file::DRIVER
    };

    #[test]
    fn a_command_of_several_operations_opens_the_driver_once() {
        let (scratch, sr) = (tempfile::tempdir().unwrap(), SrUuid::random());
        let location = scratch.path().join("sr").display().to_string();
        let config = DeviceConfig::from([("location", location.as_str())]);
        (file::DRIVER.open)(sr, &config, Instant::now().into()).unwrap().create(&NewSr::default()).unwrap();
        let answer = serve(&COUNTING, &call("sr_delete", &location, &sr.to_string()));
        let document = String::from_utf8(answer.stdout).unwrap();
        assert_eq!(xmlrpc::read_response(&document), Ok(Response::Value(Value::Nil)));
        assert_eq!(OPENED.load(Ordering::Relaxed), 1);
        assert!(!scratch.path().join("sr").exists());
    }

    fn scan() -> Vec<OsString> {
        call("sr_content_type", "/nowhere", "87b8646b-b800-9500-cb7b-af3b74e02f5c")
    }

    #[test]
    fn a_panic_is_a_fault_like_any_other() {
        let answer = serve(&BROKEN, &scan());
        let document = String::from_utf8(answer.stdout).unwrap();
        let Response::Fault { code, message } = xmlrpc::read_response(&document).unwrap() else { panic!() };
        assert_eq!((code, answer.status, answer.stderr.as_str()), (1200, 0, ""));
        assert!(message.contains("boom <&>"), "{message}");
        let _ = panic::take_hook();
    }

    #[test]
    fn only_what_begins_like_xml_is_meant() {
        assert!(is_meant(&scan()));
        assert!(is_meant(&["x".into(), " \n<".into(), "y".into()]));
        for word in ["", "sr_scan", "-d", "(("] {
            assert!(!is_meant(&["x".into(), word.into()]), "{word}");
        }
        assert!(!is_meant(&["x".into()]));
    }
}
