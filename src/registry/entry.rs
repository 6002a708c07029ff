//! One file of the table: lines `KEY=VALUE`, quoted as in an EnvironmentFile of systemd (systemd.exec(5)).
//!
//! `UUID` and `TYPE` say which SR it is. `DCONF` says where it lives, as `-d` does; instead of it, every other key is one of
//! device_config. Blank lines and lines that begin with `#` or `;` count for nothing.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::types::{DeviceConfig, SrUuid, secret_part};

/// An SR with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub sr: SrUuid,
    pub sr_type: String,
    pub place: Place,
}

/// Where an SR lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The words of `-d`.
    Dconf(String),
    Keys(DeviceConfig),
}

impl Place {
    /// Whether others must not read it. Of the words of `-d`, no driver is asked, so that a word that hints at a password
    /// counts as one.
    pub fn may_hold_password(&self) -> bool {
        match self {
            Place::Keys(config) => config.0.iter().any(|(key, value)| secret_part(key, value).is_some()),
            Place::Dconf(text) => {
                let lower = text.to_ascii_lowercase();
                let hints = ["pass", "secret"].iter().any(|hint| lower.contains(hint));
                hints || secret_part("", text).is_some() || text.contains('(') && text.contains('%')
            }
        }
    }
}

impl Entry {
    /// Reads a file. `sr`: the SR, where the name of the file says which.
    ///
    /// # Errors
    /// A clause that says what is wrong, without values.
    pub fn parse(name: &str, sr: Option<SrUuid>, text: &str) -> Result<Entry, String> {
        let mut values = values(text)?;
        let said = values.remove("UUID").map(|uuid| uuid.parse::<SrUuid>().map_err(|e| e.to_string())).transpose()?;
        let sr = match (sr, said) {
            (Some(sr), Some(said)) if sr != said => return Err(format!("it has UUID={said}, its name says {sr}")),
            (sr, said) => sr.or(said).ok_or("it has no UUID=")?,
        };
        let sr_type = values.remove("TYPE").ok_or("it has no TYPE=")?;
        let place = match values.remove("DCONF") {
            Some(_) if !values.is_empty() => {
                let keys: Vec<&str> = values.keys().map(String::as_str).collect();
                return Err(format!(
                    "it has DCONF= and the keys {}: one of them says where the SR lives",
                    keys.join(" ")
                ));
            }
            Some(dconf) => Place::Dconf(dconf),
            None if values.is_empty() => return Err("it has neither DCONF= nor keys of device_config".to_owned()),
            None => Place::Keys(DeviceConfig(values)),
        };
        Ok(Entry { name: name.to_owned(), sr, sr_type, place })
    }

    /// The refusal to give this name to another SR.
    pub fn taken(&self) -> Error {
        let place = format!("of type {} at {}", self.sr_type, self.shown_place());
        Error::NameTaken { name: self.name.clone(), sr: self.sr, place }
    }

    /// The place for a person to read, without values that may be secret.
    pub fn shown_place(&self) -> String {
        match &self.place {
            Place::Dconf(_) if self.place.may_hold_password() => "…".to_owned(),
            Place::Dconf(dconf) => dconf.clone(),
            Place::Keys(config) => config.0.keys().cloned().collect::<Vec<_>>().join(" "),
        }
    }
}

/// The file of an entry.
pub fn text(sr: SrUuid, sr_type: &str, place: &Place) -> String {
    let mut lines = vec![("UUID", sr.to_string()), ("TYPE", sr_type.to_owned())];
    match place {
        Place::Dconf(dconf) => lines.push(("DCONF", dconf.clone())),
        Place::Keys(config) => lines.extend(config.0.iter().map(|(key, value)| (key.as_str(), value.clone()))),
    }
    lines.into_iter().map(|(key, value)| format!("{key}={}\n", quoted(&value))).collect()
}

/// The value as it is where it is a plain word, else in double quotes.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:=@,#%".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let mut text = String::from("\"");
    for c in value.chars() {
        if "\"\\`$".contains(c) {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    text
}

fn values(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    let mut chars = text.chars().peekable();
    let mut number = 0;
    while chars.peek().is_some() {
        number += 1;
        let line: String = key_part(&mut chars);
        let key = line.trim();
        if key.is_empty() || key.starts_with(['#', ';']) {
            continue;
        }
        let bad = |what: &str| format!("line {number}: {what}");
        let Some(key) = key.strip_suffix('=').map(str::trim_end) else { return Err(bad("expected KEY=VALUE")) };
        let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        if !is_key {
            return Err(bad("a key has letters, digits, '_' and '-'"));
        }
        let value = value(&mut chars).ok_or_else(|| bad("a quote is not closed"))?;
        if value.chars().any(char::is_control) {
            return Err(bad("control characters are not allowed in a value"));
        }
        if found.insert(key.to_owned(), value).is_some() {
            return Err(bad(&format!("{key} is there twice")));
        }
    }
    Ok(found)
}

/// The text up to the `=` of a line, with it; all of a line without, or of a comment.
fn key_part(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut line = String::new();
    for c in chars.by_ref() {
        if c == '\n' {
            break;
        }
        line.push(c);
        if c == '=' && !line.trim_start().starts_with(['#', ';']) {
            break;
        }
    }
    line
}

/// The value at the start of `chars`, to the end of its line. `None`: a quote is not closed.
fn value(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let mut value = String::new();
    // Blanks at the end of what is not quoted do not count.
    let mut kept = 0;
    let mut at_start = true;
    while let Some(c) = chars.next() {
        match c {
            '\n' => break,
            '"' | '\'' if at_start => {
                loop {
                    match (chars.next()?, c) {
                        (end, quote) if end == quote => break,
                        ('\\', '"') => match chars.next()? {
                            '\n' => {}
                            escaped if "\"\\`$".contains(escaped) => value.push(escaped),
                            other => value.extend(['\\', other]),
                        },
                        (inner, _) => value.push(inner),
                    }
                }
                kept = value.len();
            }
            '\\' => {
                match chars.next() {
                    None | Some('\n') => {}
                    Some(escaped) => value.push(escaped),
                }
                kept = value.len();
                at_start = false;
            }
            _ if c.is_whitespace() && (at_start || value.is_empty()) => {}
            _ => {
                value.push(c);
                at_start = false;
                if !c.is_whitespace() {
                    kept = value.len();
                }
            }
        }
    }
    value.truncate(kept);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";

    fn read(text: &str) -> Result<Entry, String> {
        Entry::parse("fast", None, text)
    }

    #[test]
    fn an_entry_is_read_back_as_it_was_written() {
        for dconf in ["/srv/sr0", "((server . \"a b\") (x . \"$`\\\\\"))", "it's", " x ", "\"", "a#b", "", "ü"] {
            let place = Place::Dconf(dconf.to_owned());
            let text = text(UUID.parse().unwrap(), "nfs", &place);
            let read = read(&text).unwrap();
            assert_eq!(
                (read.sr.to_string().as_str(), read.sr_type.as_str(), read.place),
                (UUID, "nfs", place),
                "{text}"
            );
        }
        let place = Place::Keys(DeviceConfig::from([("server", "10.0.0.5"), ("preferred-image-formats", "qcow2,vhd")]));
        assert_eq!(read(&text(UUID.parse().unwrap(), "nfs", &place)).unwrap().place, place);
    }

    #[test]
    fn a_value_is_quoted_as_in_an_environment_file() {
        for (written, value) in [
            ("/srv/sr0  ", "/srv/sr0"),
            ("  'a \\ \" b' ", "a \\ \" b"),
            ("\"a \\\" \\$ \\n b\"", "a \" $ \\n b"),
            ("((server . \"x\"))", "((server . \"x\"))"),
            ("a\\ b\\\\", "a b\\"),
            ("'a'\"b\"", "ab"),
            ("a=b", "a=b"),
            ("a # b", "a # b"),
            ("a\\\nb", "ab"),
        ] {
            let text = format!("# c=d\n\n ; e\nUUID={UUID}\n TYPE = file\nDCONF={written}\n");
            assert_eq!(read(&text).unwrap().place, Place::Dconf(value.to_owned()), "{written}");
        }
    }

    #[test]
    fn what_is_no_entry_is_refused_and_no_value_is_shown() {
        let head = format!("UUID={UUID}\nTYPE=file\n");
        for (text, why) in [
            ("", "no UUID="),
            ("UUID=x\nTYPE=file\nDCONF=/a\n", "not valid"),
            (&format!("UUID={UUID}\nDCONF=/a\n"), "no TYPE="),
            (&head, "neither DCONF= nor"),
            (&format!("{head}DCONF=/a\nserver=b\n"), "DCONF= and the keys server"),
            (&format!("{head}DCONF=/a\nDCONF=/b\n"), "DCONF is there twice"),
            (&format!("{head}DCONF='/hunter2\n"), "line 3: a quote is not closed"),
            (&format!("{head}hunter2\n"), "line 3: expected KEY=VALUE"),
            (&format!("{head}a b=hunter2\n"), "line 3: a key has"),
            (&format!("{head}DCONF=\"hunter2\nx\"\n"), "control characters"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(why) && !refused.contains("hunter2"), "{text}: {refused}");
        }
        let other =
            Entry::parse(UUID, Some(UUID.parse().unwrap()), "UUID=87b8646b-b800-9500-cb7b-af3b74e02f5d\nTYPE=x\n");
        assert!(other.unwrap_err().contains("its name says"));
    }

    #[test]
    fn what_may_be_a_password_is_seen() {
        for dconf in
            ["smb@//u:p@server/share@/mnt", "((cifspassword . x))", "((username . \"u%p\"))", "((x_Secret . y))"]
        {
            assert!(Place::Dconf(dconf.to_owned()).may_hold_password(), "{dconf}");
        }
        for dconf in ["/srv/sr0", "nfs@[fe80::1%eth0]:/export@/mnt", "((server . \"10.0.0.5\"))"] {
            assert!(!Place::Dconf(dconf.to_owned()).may_hold_password(), "{dconf}");
        }
    }
}
