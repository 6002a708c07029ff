//! XML-RPC documents: values, calls and responses, read strictly and written plainly.
//!
//! Only what XML-RPC needs of XML is accepted: UTF-8, the five predefined entities and numeric ones, no
//! document type, no attributes, no namespaces. So there is no entity to expand, and a document of *n*
//! bytes becomes a value of no more than *n* times a constant; depth and size are bounded on top.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// Arrays and structs within each other. XenAPI's records need four.
const DEEPEST: u32 = 32;
/// The depth of a record in XenAPI's tables: in the struct of all records, in the envelope.
const RECORD: u32 = 2;

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

    /// What kind of value it is, for messages.
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
    why: String,
    at: u64,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {})", self.why, self.at)
    }
}

/// Reads a `methodCall`: the method's name and its parameters.
pub fn read_call(document: &str) -> Result<(String, Vec<Value>), Malformed> {
    let mut from = Source::new(document);
    from.open("methodCall")?;
    from.open("methodName")?;
    let method = from.text_to_close()?;
    let mut params = Vec::new();
    if from.open_if("params")? {
        while from.open_if("param")? {
            from.open("value")?;
            params.push(from.value(0)?);
            from.close()?;
        }
        from.close()?;
    }
    from.close()?;
    from.end()?;
    Ok((method, params))
}

/// Reads a `methodResponse`.
pub fn read_response(document: &str) -> Result<Response, Malformed> {
    response(Source::new(document))
}

/// Reads a `methodResponse` whose value is an envelope with a table of records. Of each record only the members
/// named in `wanted` are kept: of the others nothing is checked but that they are well-formed.
pub fn read_records(document: &str, wanted: &[&str]) -> Result<Response, Malformed> {
    response(Source { wanted: Some(wanted), ..Source::new(document) })
}

fn response(mut from: Source) -> Result<Response, Malformed> {
    from.open("methodResponse")?;
    let response = match from.open_any(&["params", "fault"])? {
        "params" => {
            from.open("param")?;
            from.open("value")?;
            let value = from.value(0)?;
            from.close()?;
            Response::Value(value)
        }
        _ => {
            from.open("value")?;
            let fault = from.value(0)?;
            match (fault.get("faultCode"), fault.get("faultString").and_then(Value::as_str)) {
                (Some(Value::Int(code)), Some(message)) => Response::Fault { code: *code, message: message.to_owned() },
                _ => return Err(from.malformed("a fault has an integer faultCode and a string faultString")),
            }
        }
    };
    from.close()?;
    from.close()?;
    from.end()?;
    Ok(response)
}

/// What the reader sees next, with comments and processing instructions left out and text put together.
enum Token<'a> {
    Open(BytesStart<'a>),
    Close,
    Text(String),
    End,
}

struct Source<'a> {
    reader: Reader<&'a [u8]>,
    /// An element that was seen and not yet taken.
    ahead: Option<Token<'a>>,
    /// The text before it.
    text: String,
    /// Of the structs [`RECORD`] deep.
    wanted: Option<&'a [&'a str]>,
}

impl<'a> Source<'a> {
    fn new(document: &'a str) -> Self {
        let mut reader = Reader::from_str(document);
        let config = reader.config_mut();
        config.check_comments = true;
        config.expand_empty_elements = true;
        Source { reader, ahead: None, text: String::new(), wanted: None }
    }

    fn malformed(&self, why: impl Into<String>) -> Malformed {
        Malformed { why: why.into(), at: self.reader.buffer_position() }
    }

    fn event(&mut self) -> Result<Event<'a>, Malformed> {
        self.reader.read_event().map_err(|e| match e {
            quick_xml::Error::Syntax(e) => self.malformed(format!("not well-formed XML: {e}")),
            // Its words quote the tags, and what stands in one of these may be half a password.
            _ => self.malformed("not well-formed XML: tags that do not match, or a reference without its end"),
        })
    }

    /// The next piece as the parser cuts it.
    fn piece(&mut self) -> Result<Token<'a>, Malformed> {
        loop {
            let at_start = self.reader.buffer_position() == 0;
            return Ok(match self.event()? {
                Event::Start(start) if !start.attributes_raw().trim().is_empty() => {
                    return Err(self.malformed("an element has attributes"));
                }
                Event::Start(start) => Token::Open(start),
                Event::End(_) => Token::Close,
                Event::Empty(_) => unreachable!("empty elements are expanded"),
                // Nearly all text is such: nothing to decode, nothing to normalise, nothing that is not allowed.
                Event::Text(text) if is_plain(&text) => {
                    self.text.push_str(&text);
                    continue;
                }
                Event::Text(text) => Token::Text(self.legal(&text.xml10_content())?),
                Event::CData(text) => Token::Text(self.legal(&text.xml10_content())?),
                Event::GeneralRef(reference) => {
                    let named = |name: &str| Some(Token::Text(predefined(name)?.to_owned()));
                    match reference.resolve_char_ref() {
                        Ok(Some(c)) if is_legal(c) => Token::Text(c.to_string()),
                        Ok(None) => named(&reference.into_inner())
                            .ok_or_else(|| self.malformed("an entity that XML does not predefine"))?,
                        _ => return Err(self.malformed("a reference to a character that XML does not allow")),
                    }
                }
                Event::Comment(_) => continue,
                Event::PI(pi) if !pi.target().eq_ignore_ascii_case("xml") => continue,
                Event::Decl(decl) if at_start => match decl.encoding() {
                    None => continue,
                    Some(Ok(name)) if name.eq_ignore_ascii_case("utf-8") => continue,
                    _ => return Err(self.malformed("the encoding is not UTF-8")),
                },
                Event::Decl(_) | Event::PI(_) => return Err(self.malformed("an XML declaration not at the start")),
                Event::DocType(_) => return Err(self.malformed("a document type is not accepted")),
                Event::Eof => Token::End,
            });
        }
    }

    fn legal(&self, text: &str) -> Result<String, Malformed> {
        match text.chars().all(is_legal) {
            true => Ok(text.to_owned()),
            false => Err(self.malformed("a character that XML does not allow")),
        }
    }

    /// Collects text up to the next tag, which stays ahead.
    fn look(&mut self) -> Result<&Token<'a>, Malformed> {
        while self.ahead.is_none() {
            match self.piece()? {
                Token::Text(text) => self.text.push_str(&text),
                tag => self.ahead = Some(tag),
            }
        }
        Ok(self.ahead.as_ref().expect("the loop ended because there is one"))
    }

    /// The next tag; only white space may stand before it.
    fn tag(&mut self) -> Result<Token<'a>, Malformed> {
        self.look()?;
        if !self.text.bytes().all(|b| is_white(b.into())) {
            return Err(self.malformed("text where only an element may stand"));
        }
        self.text.clear();
        Ok(self.ahead.take().expect("look() leaves one"))
    }

    fn open(&mut self, name: &'static str) -> Result<(), Malformed> {
        self.open_any(&[name]).map(drop)
    }

    fn open_any(&mut self, names: &[&'static str]) -> Result<&'static str, Malformed> {
        let expected = || format!("expected <{}>", names.join("> or <"));
        match self.tag()? {
            Token::Open(start) => {
                let found = start.name();
                names.iter().find(|n| found.as_ref() == **n).copied().ok_or_else(|| self.malformed(expected()))
            }
            _ => Err(self.malformed(expected())),
        }
    }

    /// Opens `name` if it is next; anything else but a closing tag is an error.
    fn open_if(&mut self, name: &'static str) -> Result<bool, Malformed> {
        match self.look()? {
            Token::Open(_) => self.open(name).map(|()| true),
            _ => Ok(false),
        }
    }

    fn close(&mut self) -> Result<(), Malformed> {
        match self.tag()? {
            Token::Close => Ok(()),
            _ => Err(self.malformed("expected a closing tag")),
        }
    }

    fn end(&mut self) -> Result<(), Malformed> {
        match self.tag()? {
            Token::End => Ok(()),
            _ => Err(self.malformed("something follows the document")),
        }
    }

    /// The text of an element that holds nothing else, and its closing tag.
    fn text_to_close(&mut self) -> Result<String, Malformed> {
        match self.look()? {
            Token::Close => {
                self.ahead = None;
                Ok(std::mem::take(&mut self.text))
            }
            _ => Err(self.malformed("an element where only text may stand")),
        }
    }

    /// What stands in a `<value>` that was just opened, and its closing tag.
    fn value(&mut self, depth: u32) -> Result<Value, Malformed> {
        if depth > DEEPEST {
            return Err(self.malformed(format!("values are nested more than {DEEPEST} deep")));
        }
        // Text and no type is a string.
        if matches!(self.look()?, Token::Close) {
            return self.text_to_close().map(Value::String);
        }
        const TYPES: [&str; 11] =
            ["string", "struct", "array", "boolean", "int", "i4", "i8", "nil", "double", "dateTime.iso8601", "base64"];
        let value = match self.open_any(&TYPES)? {
            "string" => Value::String(self.text_to_close()?),
            "struct" => self.members(depth)?,
            "array" => self.elements(depth)?,
            "boolean" => match self.text_to_close()?.as_str() {
                "0" => Value::Boolean(false),
                "1" => Value::Boolean(true),
                _ => return Err(self.malformed("a boolean is 0 or 1")),
            },
            "nil" => match self.text_to_close()?.as_str() {
                "" => Value::Nil,
                _ => return Err(self.malformed("nil is empty")),
            },
            "double" => Value::Double(self.number()?),
            "dateTime.iso8601" => Value::DateTime(self.text_to_close()?),
            "base64" => Value::Base64(self.text_to_close()?),
            _ => Value::Int(self.number()?),
        };
        self.close()?;
        Ok(value)
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T, Malformed> {
        let text = self.text_to_close()?;
        text.trim_matches(is_white).parse().map_err(|_| self.malformed("a number is expected"))
    }

    fn members(&mut self, depth: u32) -> Result<Value, Malformed> {
        let mut members = BTreeMap::new();
        while self.open_if("member")? {
            self.open("name")?;
            let Some(name) = self.wanted_name(depth)? else {
                self.open("value")?;
                self.skip_to_close()?;
                self.close()?;
                continue;
            };
            self.open("value")?;
            let value = self.value(depth + 1)?;
            self.close()?;
            if members.insert(name, value).is_some() {
                return Err(self.malformed("a member is there twice"));
            }
        }
        self.close()?;
        Ok(Value::Struct(members))
    }

    /// The name of a member, which was just opened, and its closing tag; `None` if nobody wants to know it.
    fn wanted_name(&mut self, depth: u32) -> Result<Option<String>, Malformed> {
        if let Some(wanted) = self.wanted.filter(|_| depth == RECORD)
            && matches!(self.look()?, Token::Close)
            && !wanted.contains(&self.text.as_str())
        {
            self.ahead = None;
            self.text.clear();
            return Ok(None);
        }
        self.text_to_close().map(Some)
    }

    /// What stands in an element that was just opened, and its closing tag.
    fn skip_to_close(&mut self) -> Result<(), Malformed> {
        let mut open = 1;
        while open > 0 {
            match self.event()? {
                Event::Start(_) => open += 1,
                Event::End(_) => open -= 1,
                Event::Eof => return Err(self.malformed("the document ends within a value")),
                Event::DocType(_) => return Err(self.malformed("a document type is not accepted")),
                _ => {}
            }
        }
        Ok(())
    }

    fn elements(&mut self, depth: u32) -> Result<Value, Malformed> {
        let mut elements = Vec::new();
        self.open("data")?;
        while self.open_if("value")? {
            elements.push(self.value(depth + 1)?);
        }
        self.close()?;
        self.close()?;
        Ok(Value::Array(elements))
    }
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'\t' | b'\n' | b' '..=b'~'))
}

fn is_white(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn predefined(entity: &str) -> Option<&'static str> {
    Some(match entity {
        "lt" => "<",
        "gt" => ">",
        "amp" => "&",
        "quot" => "\"",
        "apos" => "'",
        _ => return None,
    })
}

/// XML 1.0, production 2 (Char).
pub fn is_legal(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

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

/// Text as character data. What XML has no way to write becomes U+FFFD.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CALL: &str =
        "<methodCall><methodName>m</methodName><params><param><value>V</value></param></params></methodCall>";

    fn read_value(inner: &str) -> Result<Value, Malformed> {
        read_call(&CALL.replace('V', inner)).map(|(_, mut params)| params.remove(0))
    }

    #[test]
    fn what_xapi_and_the_python_library_write_is_read() {
        for (inner, value) in [
            ("", Value::text("")),
            ("<string/>", Value::text("")),
            (" x ", Value::text(" x ")),
            ("<string>a&lt;b&amp;&#233;&#x1F600;<![CDATA[<&]]></string>", Value::text("a<b&é😀<&")),
            ("<struct/>", Value::Struct(BTreeMap::new())),
            ("<array><data/></array>", Value::Array(vec![])),
            ("\n<array>\n<data>\n<value>1</value>\n</data></array>\n", Value::Array(vec![Value::text("1")])),
            ("<struct><member><name>a</name><value>b</value></member></struct>", Value::map([("a", "b")])),
            ("<boolean>1</boolean>", Value::Boolean(true)),
            ("<i4>-3</i4>", Value::Int(-3)),
            ("<nil/>", Value::Nil),
            ("a<!-- no -->b<?pi?>c", Value::text("abc")),
        ] {
            assert_eq!(read_value(inner).as_ref(), Ok(&value), "{inner}");
        }
        let declared = format!("<?xml version='1.0' encoding='UTF-8'?>\n{CALL}\n");
        assert!(read_call(&declared).is_ok());
        assert!(read_call("<methodCall><methodName>m</methodName></methodCall>").is_ok());
    }

    #[test]
    fn what_is_no_xml_rpc_is_refused_with_its_place() {
        for bad in [
            "<string>a",
            "<string>a</int>",
            "<string a='1'>x</string>",
            "<int>1</int><int>2</int>",
            "x<int>1</int>",
            "<int>x</int>",
            "<int>99999999999999999999</int>",
            "<boolean>true</boolean>",
            "<float>1</float>",
            "<array><value>1</value></array>",
            "<array><data><member/></data></array>",
            "<struct><member><value>1</value><name>a</name></member></struct>",
            "<struct><member><name>a</name></member></struct>",
            "<struct><member><name>a</name><value/></member><member><name>a</name><value/></member></struct>",
            "&nbsp;",
            "&#0;",
            "&#xD800;",
            "&",
            "\u{1}",
            "<x:string xmlns:x='y'/>",
        ] {
            assert!(read_value(bad).is_err(), "{bad}");
        }
        for bad in ["", " ", "x", "<a/>", "<methodCall/>", &format!("{CALL}{CALL}"), &format!("{CALL}x"), "<!-- -- -->"]
        {
            assert!(read_call(bad).is_err(), "{bad}");
        }
        let latin = format!("<?xml version='1.0' encoding='ISO-8859-1'?>{CALL}");
        assert!(read_call(&latin).is_err());
    }

    #[test]
    fn what_is_said_of_a_broken_document_is_nothing_that_it_holds() {
        for bad in
            ["a</s3cret>", "<s3cret>", "</s3cret>", "&s3cret;", "&s3cret", "<!-- s3cret -- -->", "<?xml s3cret?>"]
        {
            let said = read_value(bad).unwrap_err().to_string();
            assert!(!said.contains("s3cret"), "{bad}: {said}");
        }
        let said = read_call("<methodCall><methodName>s3cret").unwrap_err().to_string();
        assert!(!said.contains("s3cret"), "{said}");
    }

    #[test]
    fn a_billion_laughs_and_a_deep_document_are_refused_at_once() {
        let mut laughs = String::from("<?xml version='1.0'?><!DOCTYPE lolz [<!ENTITY lol0 'lol'>");
        for i in 1..10 {
            let _ = write!(laughs, "<!ENTITY lol{i} '{}'>", format!("&lol{};", i - 1).repeat(10));
        }
        laughs += "]><methodCall><methodName>&lol9;</methodName></methodCall>";
        assert!(read_call(&laughs).unwrap_err().to_string().contains("document type"));
        let deep = "<array><data><value>".repeat(1_000_000);
        assert!(read_value(&deep).unwrap_err().to_string().contains("nested"));
        let elements = "<a>".repeat(1_000_000);
        assert!(read_call(&elements).is_err());
        let long = "x".repeat(10 << 20);
        assert_eq!(read_value(&long).unwrap().as_str().unwrap().len(), 10 << 20);
    }

    #[test]
    fn a_fault_has_an_int_and_is_read_back() {
        let text = write_fault(46, "The VDI is not available [opterr=a <b> & \u{1}]");
        assert!(text.contains("<name>faultCode</name><value><int>46</int></value>"), "{text}");
        let message = "The VDI is not available [opterr=a <b> & \u{fffd}]".to_owned();
        assert_eq!(read_response(&text).unwrap(), Response::Fault { code: 46, message });
    }

    #[test]
    fn of_records_only_what_is_wanted_is_kept() {
        let record = |extra: bool| {
            let mut members = BTreeMap::from([("a".to_owned(), Value::map([("b", "<1>"), ("c", "2")]))]);
            if extra {
                members.insert("b".to_owned(), Value::Array(vec![Value::text("&"), Value::map([("a", "")])]));
                members.insert(String::new(), Value::text(""));
            }
            Value::Struct(members)
        };
        let answer = |extra| {
            let records = ["x", "b"].map(|name| (name.to_owned(), record(extra)));
            let members = [("Status", Value::text("Success")), ("Value", Value::Struct(records.into()))];
            Value::Struct(members.map(|(name, value)| (name.to_owned(), value)).into())
        };
        let document = write_response(&answer(true));
        assert_eq!(read_records(&document, &["a"]), Ok(Response::Value(answer(false))));
        assert_eq!(read_records(&document, &["a", "b", ""]), Ok(Response::Value(answer(true))));
        for (from, to) in [("<value>&amp;</value>", "<value>&amp;</valu>"), ("&amp;", "<!DOCTYPE x>"), ("</array>", "")]
        {
            assert!(read_records(&document.replace(from, to), &["a"]).is_err(), "{from} {to}");
        }
        for cut in 0..document.trim_end().len() {
            assert!(read_records(&document[..cut], &["a"]).is_err(), "{cut}");
        }
        let deep = "<array><data><value>".repeat(1_000_000);
        assert!(read_records(&document.replace("&amp;", &deep), &["a"]).is_err());
    }

    fn values() -> impl Strategy<Value = Value> {
        let text = "[\\PC\t\r\n<>&\"']*";
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::Boolean),
            any::<i64>().prop_map(Value::Int),
            text.prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
                prop::collection::btree_map(text, inner, 0..8).prop_map(Value::Struct),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in values()) {
            prop_assert_eq!(read_response(&write_response(&value)).unwrap(), Response::Value(value.clone()));
            let (method, params) = read_call(&write_call("a.b", std::slice::from_ref(&value))).unwrap();
            prop_assert_eq!((method.as_str(), params.as_slice()), ("a.b", std::slice::from_ref(&value)));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = (read_call(&text), read_response(&text), read_records(&text, &["a"]));
        }

        /// A document with pieces cut out, doubled and exchanged reaches deeper than noise does.
        #[test]
        fn no_mutilated_document_makes_the_reader_panic(
            value in values(), cuts in prop::collection::vec((any::<prop::sample::Index>(), 0usize..40, 0..4u8), 1..6)
        ) {
            let mut text = write_call("m", &[value]);
            for (at, length, how) in cuts {
                let bounds: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
                let Some(start) = (!bounds.is_empty()).then(|| at.index(bounds.len())) else { continue };
                let end = bounds.get(start + length).copied().unwrap_or(text.len());
                let piece = text[bounds[start]..end].to_owned();
                match how {
                    0 => text.replace_range(bounds[start]..end, ""),
                    1 => text.insert_str(bounds[start], &piece),
                    2 => text.insert_str(bounds[start], "<value><struct>"),
                    _ => text.insert_str(bounds[start], "&<!DOCTYPE]]>--\0"),
                }
            }
            let _ = (read_call(&text), read_response(&text), read_records(&text, &["a"]));
        }
    }
}
