//! Writes documents, plainly.

use std::fmt::Write;

use super::value::{Value, is_legal};

/// Writes a `methodCall` on one line.
pub fn write_call(method: &str, params: &[Value]) -> String {
    let mut out = String::from("<?xml version=\"1.0\"?><methodCall><methodName>");
    escape(&mut out, method);
    out.push_str("</methodName><params>");
    for value in params {
        out.push_str("<param>");
        write(&mut out, value);
        out.push_str("</param>");
    }
    out.push_str("</params></methodCall>");
    out
}

/// Writes a `methodResponse` that holds `value`.
pub fn write_response(value: &Value) -> String {
    let mut out = String::from("<?xml version=\"1.0\"?><methodResponse><params><param>");
    write(&mut out, value);
    out.push_str("</param></params></methodResponse>\n");
    out
}

/// Writes a `methodResponse` that is a fault.
pub fn write_fault(code: u16, message: &str) -> String {
    let mut out = String::from("<?xml version=\"1.0\"?><methodResponse><fault>");
    let members = [("faultCode", Value::Int(code.into())), ("faultString", Value::text(message))];
    write(&mut out, &Value::Struct(members.map(|(k, v)| (k.to_owned(), v)).into()));
    out.push_str("</fault></methodResponse>\n");
    out
}

fn write(out: &mut String, value: &Value) {
    if let Value::String(text) = value {
        return typed(out, "value", text);
    }
    out.push_str("<value>");
    match value {
        Value::String(_) => unreachable!("it was written above"),
        Value::Nil => out.push_str("<nil/>"),
        Value::Boolean(yes) => typed(out, "boolean", if *yes { "1" } else { "0" }),
        Value::Int(number) => typed(out, "int", &number.to_string()),
        Value::Double(number) => typed(out, "double", &number.to_string()),
        Value::DateTime(text) => typed(out, "dateTime.iso8601", text),
        Value::Base64(text) => typed(out, "base64", text),
        Value::Array(elements) => {
            out.push_str("<array><data>");
            elements.iter().for_each(|element| write(out, element));
            out.push_str("</data></array>");
        }
        Value::Struct(members) => {
            out.push_str("<struct>");
            for (name, value) in members {
                out.push_str("<member>");
                typed(out, "name", name);
                write(out, value);
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
}

fn typed(out: &mut String, element: &str, text: &str) {
    let _ = write!(out, "<{element}>");
    escape(out, text);
    let _ = write!(out, "</{element}>");
}

/// Whether XML has a way to write `text`, so that its reader gets what was written.
pub fn can_carry(text: &str) -> bool {
    text.chars().all(is_legal)
}

/// [`escape`], as a value.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    escape(&mut out, text);
    out
}

/// Appends text as character data. A character that XML has no way to write becomes U+FFFD.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\r' => out.push_str("&#13;"),
            c if is_legal(c) => out.push(c),
            _ => out.push('\u{fffd}'),
        }
    }
}
