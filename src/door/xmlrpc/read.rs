//! Reads documents, strictly.

use std::collections::BTreeMap;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::value::{Malformed, Response, Value, is_legal};

/// Arrays and structs within each other. XenAPI's records need four.
const DEEPEST: u32 = 32;
/// The depth of a record in XenAPI's tables: in the struct of all records, in the envelope.
const RECORD: u32 = 2;

/// Reads a `methodCall`: the method's name and its parameters.
///
/// # Errors
/// [`Malformed`] if the document is no such call, or nests deeper than 32 values.
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
///
/// # Errors
/// [`Malformed`] if the document is neither a response nor a fault, or nests deeper than 32 values.
pub fn read_response(document: &str) -> Result<Response, Malformed> {
    response(Source::new(document))
}

/// Reads a `methodResponse` whose value is an envelope with a table of records. Of each record only the members
/// named in `wanted` are kept: of the others nothing is checked but that they are well-formed.
///
/// # Errors
/// As [`read_response`].
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

/// The token that the reader sees next, with comments and processing instructions left out and text put together.
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

    /// Reads the contents of a `<value>` that was just opened, and its closing tag.
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

    /// Skips the contents of an element that was just opened, and its closing tag.
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
