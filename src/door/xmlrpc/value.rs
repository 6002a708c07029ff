//! The values of XML-RPC.

use std::collections::BTreeMap;
use std::fmt;

/// One XML-RPC value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Nil,
    Boolean(bool),
    Int(i64),
    Double(f64),
    String(String),
    /// As written: `19700101T00:00:00Z`.
    DateTime(String),
    /// As written.
    Base64(String),
    Array(Vec<Value>),
    Struct(BTreeMap<String, Value>),
}

impl Value {
    pub fn text(text: impl Into<String>) -> Value {
        Value::String(text.into())
    }

    /// A struct of strings.
    pub fn map<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Value {
        Value::Struct(pairs.into_iter().map(|(k, v)| (k.into(), Value::String(v.into()))).collect())
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_struct(&self) -> Option<&BTreeMap<String, Value>> {
        match self {
            Value::Struct(members) => Some(members),
            _ => None,
        }
    }

    /// A member of a struct.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.as_struct()?.get(name)
    }

    /// The kind of the value, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "nil",
            Value::Boolean(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Double(_) => "a double",
            Value::String(_) => "a string",
            Value::DateTime(_) => "a date",
            Value::Base64(_) => "base64",
            Value::Array(_) => "an array",
            Value::Struct(_) => "a struct",
        }
    }
}

/// A `methodResponse`.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    Value(Value),
    Fault { code: i64, message: String },
}

/// Why a document is none, and where: never what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub(super) why: String,
    pub(super) at: u64,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {})", self.why, self.at)
    }
}

/// XML 1.0, production 2 (Char).
pub fn is_legal(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}
