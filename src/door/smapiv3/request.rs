//! The request: the parameters of a method, from a JSON object or from the words of a command line; SMAPIv3, "Invocation protocol" and
//! "static-vdis".

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};

use serde_json::{Map, Value};

use super::method::{Kind, Method};
use crate::door::smapiv1::code::Code;
use crate::door::smapiv1::faults::Failure;
use crate::types;

/// Bytes of the longest request that is read. The keys of a volume are well below this.
const LONGEST: u64 = 4 << 20;

/// The parameters of one call.
#[derive(Debug)]
pub struct Request {
    members: Map<String, Value>,
}

fn bad(why: String) -> Failure {
    Failure::new(Code::BadRequest, why)
}

impl Request {
    /// Reads a request from `input` to its end, also if it is refused: the caller must not find a closed pipe.
    ///
    /// # Errors
    /// [`Code::BadRequest`], with what is wrong with the request and never with what is in it.
    pub fn read(method: Method, mut input: impl Read) -> Result<Request, Failure> {
        let mut bytes = Vec::new();
        let read = (&mut input).take(LONGEST + 1).read_to_end(&mut bytes);
        let drained = io::copy(&mut input, &mut io::sink());
        read.and(drained).map_err(|e| bad(format!("standard input cannot be read: {e}")))?;
        if bytes.len() as u64 > LONGEST {
            return Err(bad(format!("it has more than {LONGEST} bytes")));
        }
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(members)) => Request { members }.checked(method),
            Ok(_) => Err(bad("it is no JSON object".to_owned())),
            Err(e) => Err(bad(format!("it is not JSON: line {}, column {}", e.line(), e.column()))),
        }
    }

    /// Reads the words of a command line: the parameters in their order, but for objects, whose pairs are given by
    /// `--NAME KEY VALUE`.
    ///
    /// # Errors
    /// [`Code::BadRequest`].
    pub fn of_words(method: Method, words: &[OsString]) -> Result<Request, Failure> {
        let mut members = Map::new();
        let parameters = method.parameters();
        for (name, _) in parameters.iter().filter(|(_, kind)| *kind == Kind::Map) {
            members.insert((*name).to_owned(), Value::Object(Map::new()));
        }
        let mut plain = parameters.iter().filter(|(_, kind)| *kind != Kind::Map);
        let text =
            |word: &OsString| word.to_str().map(str::to_owned).ok_or_else(|| bad("a word is not UTF-8".to_owned()));
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let word = text(word)?;
            if let Some(Value::Object(pairs)) = word.strip_prefix("--").and_then(|name| members.get_mut(name)) {
                let (Some(key), Some(value)) = (words.next(), words.next()) else {
                    return Err(bad(format!("{word} wants a key and a value")));
                };
                pairs.insert(text(key)?, Value::String(text(value)?));
                continue;
            }
            let Some((name, kind)) = plain.next() else { return Err(bad("there are too many words".to_owned())) };
            let value = match (kind, word.as_str()) {
                (Kind::Text | Kind::Map, _) => Value::String(word),
                (Kind::Flag, "true" | "false") => Value::Bool(word == "true"),
                (Kind::Flag, _) => return Err(bad(format!("{name} is neither true nor false"))),
                (Kind::Number, _) => {
                    word.parse::<i64>().map_err(|_| bad(format!("{name} is no integer of 64 bits")))?.into()
                }
            };
            members.insert((*name).to_owned(), value);
        }
        Request { members }.checked(method)
    }

    /// Every parameter is there and has its type. Members that the method does not know count for nothing.
    fn checked(self, method: Method) -> Result<Request, Failure> {
        for (name, kind) in method.parameters() {
            let (fits, expected) = match (kind, self.members.get(*name)) {
                (_, None) => return Err(bad(format!("{name} is missing"))),
                (Kind::Text, Some(value)) => (value.is_string(), "a string"),
                (Kind::Flag, Some(value)) => (value.is_boolean(), "true or false"),
                (Kind::Number, Some(value)) => (value.is_i64(), "an integer of 64 bits"),
                (Kind::Map, Some(Value::Object(pairs))) => {
                    (pairs.values().all(Value::is_string), "an object with strings as values")
                }
                (Kind::Map, Some(_)) => (false, "an object with strings as values"),
            };
            if !fits {
                return Err(bad(format!("{name} is not {expected}")));
            }
        }
        Ok(self)
    }

    /// A string. The method has this parameter.
    pub fn text(&self, name: &str) -> &str {
        self.members.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// An integer. The method has this parameter.
    pub fn number(&self, name: &str) -> i64 {
        self.members.get(name).and_then(Value::as_i64).unwrap_or_default()
    }

    /// `true` or `false`. The method has this parameter.
    pub fn flag(&self, name: &str) -> bool {
        self.members.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    /// The pairs of an object. The method has this parameter.
    pub fn map(&self, name: &str) -> BTreeMap<String, String> {
        let pairs = self.members.get(name).and_then(Value::as_object).into_iter().flatten();
        pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// Every value that must not be seen.
    pub fn secrets(&self, method: Method) -> Vec<String> {
        let maps = method.parameters().iter().filter(|(_, kind)| *kind == Kind::Map);
        let pairs = maps.flat_map(|(name, _)| self.map(name));
        pairs.filter_map(|(key, value)| types::secret_part(&key, &value).map(str::to_owned)).collect()
    }

    /// The request for the log, without passwords. Of the string that correlates logs, which may have lines of a trace, only the
    /// first line is shown.
    pub fn shown(&self, method: Method) -> String {
        let mut text = format!("{} {{", method.name());
        for (name, kind) in method.parameters() {
            match kind {
                Kind::Text if *name == "dbg" => {
                    text.push_str(&format!("{:?}, ", self.text(name).lines().next().unwrap_or_default()));
                }
                Kind::Text => text.push_str(&format!("{name}: {:?}, ", self.text(name))),
                Kind::Number => text.push_str(&format!("{name}: {}, ", self.number(name))),
                Kind::Flag => text.push_str(&format!("{name}: {}, ", self.flag(name))),
                Kind::Map => {
                    for (key, value) in self.map(name) {
                        text.push_str(&format!("{key}: {:?}, ", types::shown(&key, &value)));
                    }
                }
            }
        }
        text.push('}');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: Method, text: &str) -> Result<Request, String> {
        Request::read(method, text.as_bytes()).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn a_request_has_every_parameter_with_its_type_and_may_have_more() {
        let good =
            r#"{"dbg":"x","sr":"s","name":"é\u0000","description":"","size":-1,"sharable":true,"else":[1.5,null]}"#;
        let request = read(Method::VolumeCreate, good).unwrap();
        assert_eq!((request.text("name"), request.number("size"), request.flag("sharable")), ("é\0", -1, true));
        for (from, to, why) in [
            (r#""sr":"s","#, "", "sr is missing"),
            (r#""sr":"s""#, r#""sr":null"#, "sr is not a string"),
            (r#""size":-1"#, r#""size":1.0"#, "size is not an integer"),
            (r#""size":-1"#, r#""size":"1""#, "size is not an integer"),
            (r#""size":-1"#, r#""size":9223372036854775808"#, "size is not an integer"),
            (r#""sharable":true"#, r#""sharable":1"#, "sharable is not true or false"),
            (r#"{"dbg""#, r#"[{"dbg""#, "not JSON"),
            (r#"null]}"#, r#"null]} {}"#, "not JSON"),
            (r#"null]}"#, r#"null"#, "not JSON"),
        ] {
            let refused = read(Method::VolumeCreate, &good.replacen(from, to, 1)).unwrap_err();
            assert!(refused.contains("BadRequest") && refused.contains(why), "{to}: {refused}");
        }
        for bad in ["", "[]", "\"x\"", "{", "{\"dbg\":\"\\ud800\"}"] {
            assert!(read(Method::PluginQuery, bad).is_err(), "{bad}");
        }
        for bad in [r#"{"dbg":"x","configuration":[]}"#, r#"{"dbg":"x","configuration":{"a":1}}"#] {
            assert!(read(Method::SrAttach, bad).unwrap_err().contains("object"), "{bad}");
        }
        assert!(read(Method::SrAttach, &"[".repeat(100_000)).is_err());
        assert!(Request::read(Method::SrAttach, io::repeat(b' ').take(LONGEST + 10)).is_err());
    }

    #[test]
    fn words_of_a_command_line_are_parameters_in_their_order() {
        let words = |method, words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            Request::of_words(method, &words).map_err(|failure| format!("{failure:?}"))
        };
        let request =
            words(Method::SrAttach, &["static-vdis", "--configuration", "a", "1", "--configuration", "b", ""]);
        assert_eq!(request.unwrap().map("configuration").len(), 2);
        let request = words(Method::VolumeCreate, &["d", "s", "--n", "", "-5", "false"]).unwrap();
        assert_eq!((request.text("name"), request.number("size"), request.flag("sharable")), ("--n", -5, false));
        for (method, line) in [
            (Method::VolumeStat, &["d", "s"][..]),
            (Method::VolumeStat, &["d", "s", "k", "more"][..]),
            (Method::SrAttach, &["d", "--configuration", "a"][..]),
            (Method::VolumeCreate, &["d", "s", "n", "", "1.0", "true"][..]),
            (Method::VolumeCreate, &["d", "s", "n", "", "1", "yes"][..]),
        ] {
            assert!(words(method, line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn the_log_shows_no_password_and_no_line_of_a_trace() {
        let text = r#"{"dbg":"OpaqueRef:1\n00-trace","configuration":{"server":"//a/b","cifspassword":"hunter2"}}"#;
        let shown = read(Method::SrAttach, text).unwrap().shown(Method::SrAttach);
        assert!(shown.contains("OpaqueRef:1") && shown.contains("//a/b"), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("trace"), "{shown}");
    }
}
