//! The request that carries a command; SMAPIv1, "Request parameter struct".

use std::collections::BTreeMap;

use super::code::Code;
use super::command::Command;
use super::faults::Failure;
use crate::door::xmlrpc::{self, Value};
use crate::types::{self, DeviceConfig};

/// One `methodCall` of xapi.
#[derive(Debug)]
pub struct Request {
    pub command: Command,
    pub device_config: DeviceConfig,
    members: BTreeMap<String, Value>,
}

/// More than the kernel lets a single argument have (128 KiB).
const LONGEST: usize = 1 << 20;

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Code::BadRequest`], with what is wrong with it and never with what is in it.
    pub fn read(document: &str) -> Result<Request, Failure> {
        let bad = |why: String| Failure::new(Code::BadRequest, why);
        if document.len() > LONGEST {
            return Err(bad(format!("it has {} bytes; {LONGEST} are allowed", document.len())));
        }
        let (method, params) = xmlrpc::read_call(document).map_err(|e| bad(e.to_string()))?;
        let command = Command::ALL
            .iter()
            .copied()
            .find(|c| c.name() == method)
            .ok_or_else(|| bad(format!("no such command {:?}", method.chars().take(64).collect::<String>())))?;
        let Ok([Value::Struct(mut members)]) = <[Value; 1]>::try_from(params) else {
            return Err(bad("expected one parameter, a struct".to_owned()));
        };
        let device_config = match members.remove("device_config") {
            Some(Value::Struct(keys)) => DeviceConfig(strings("device_config", keys)?),
            Some(other) => return Err(bad(format!("device_config is {}, not a struct", other.kind()))),
            None => return Err(bad("device_config is missing".to_owned())),
        };
        Ok(Request { command, device_config, members })
    }

    /// A member that this command can't do without.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the member is missing or no string.
    pub fn text(&self, name: &'static str) -> Result<&str, Failure> {
        self.optional(name)?.ok_or_else(|| Failure::new(Code::BadRequest, format!("{name} is missing")))
    }

    /// A member that may be missing.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the member is there and no string.
    pub fn optional(&self, name: &'static str) -> Result<Option<&str>, Failure> {
        match self.members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Failure::new(Code::BadRequest, format!("{name} is {}, not a string", other.kind()))),
        }
    }

    /// A struct of strings; empty if it is not there.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the member is there and no struct of strings.
    pub fn map(&self, name: &'static str) -> Result<BTreeMap<String, String>, Failure> {
        match self.members.get(name) {
            None => Ok(BTreeMap::new()),
            Some(Value::Struct(members)) => strings(name, members.clone()),
            Some(other) => Err(Failure::new(Code::BadRequest, format!("{name} is {}, not a struct", other.kind()))),
        }
    }

    /// A positional argument.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if there is no such argument, or it is no string.
    pub fn arg(&self, index: usize) -> Result<&str, Failure> {
        let bad = |why: String| Failure::new(Code::BadRequest, why);
        match self.members.get("args") {
            Some(Value::Array(args)) => match args.get(index) {
                Some(Value::String(text)) => Ok(text),
                Some(other) => Err(bad(format!("argument {index} is {}, not a string", other.kind()))),
                None => Err(bad(format!("argument {index} is missing"))),
            },
            Some(other) => Err(bad(format!("args is {}, not an array", other.kind()))),
            None => Err(bad("args is missing".to_owned())),
        }
    }

    /// A positional argument that is `true` or `false`.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if it is missing or anything else.
    pub fn flag(&self, index: usize) -> Result<bool, Failure> {
        match self.arg(index)? {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(Failure::new(Code::BadRequest, format!("argument {index} is neither true nor false"))),
        }
    }

    /// A size in bytes.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the argument is missing; [`Code::VDISize`] if it is no number.
    pub fn size(&self, index: usize) -> Result<u64, Failure> {
        let text = self.arg(index)?;
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Failure::new(Code::VDISize, format!("{shown:?} is not a number of bytes"))
        })
    }

    /// The request for the log: no session, no passwords. It is written before anything is checked, so of device_config it
    /// shows the values of `known` keys only.
    pub fn shown(&self, known: &[(&str, &str)]) -> String {
        let mut text = format!("{} {{", self.command.name());
        let is_known = |key: &str| key == "SRmaster" || known.iter().any(|(name, _)| *name == key);
        for (key, value) in &self.device_config.0 {
            match is_known(key) {
                true => text.push_str(&format!("{key}: {:?}, ", types::shown(key, value))),
                false => text.push_str(&format!("{key}: ?, ")),
            }
        }
        for (name, value) in &self.members {
            match value {
                _ if name == "session_ref" => text.push_str(&format!("{name}: ***, ")),
                Value::String(value) => text.push_str(&format!("{name}: {:?}, ", types::shown(name, value))),
                Value::Array(values) => {
                    let words: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
                    text.push_str(&format!("{name}: {words:?}, "));
                }
                Value::Struct(members) => {
                    let shown = members.iter().map(|(k, v)| match v.as_str() {
                        Some(value) => format!("{k}: {:?}", types::shown(k, value)),
                        None => format!("{k}: ?"),
                    });
                    text.push_str(&format!("{name}: {{{}}}, ", shown.collect::<Vec<_>>().join(", ")));
                }
                _ => {}
            }
        }
        text.push('}');
        text
    }

    /// Every value that must not be seen.
    pub fn secrets(&self) -> Vec<&str> {
        let of_config = self.device_config.0.iter().filter_map(|(key, value)| types::secret_part(key, value));
        let session = self.members.get("session_ref").and_then(Value::as_str);
        of_config.chain(session).filter(|secret| !secret.is_empty()).collect()
    }
}

fn strings(name: &str, members: BTreeMap<String, Value>) -> Result<BTreeMap<String, String>, Failure> {
    let one = |(key, value)| match value {
        Value::String(text) => Ok((key, text)),
        other => Err(Failure::new(Code::BadRequest, format!("{name}:{key} is {}, not a string", other.kind()))),
    };
    members.into_iter().map(one).collect()
}
