//! The keys that concern a layout as a whole: the type of each value, and what its change means.

use std::collections::BTreeMap;

use crate::registry::candidate::Class;
use crate::registry::line;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// A whole number, also in hexadecimal digits after `0x`.
    Number,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An absolute path, in which the [`VARIABLES`] may stand.
    Path,
    /// `k=v k=v`, keys of device_config that count when an SR is made.
    Fields,
}

/// The words that stand for something in a path, after a `$`.
pub const VARIABLES: [&str; 5] = ["layout", "class", "index", "uuid", "host"];

/// What the change of a value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing but that the layout says it.
    Copy,
    /// The SRs that a host attaches are detached and attached again.
    Reattach,
    /// The SRs of the class go down and come up.
    Restart(Class),
    /// The SRs of the class would have to be made again.
    Reformat(Class),
    /// A property that is stored with the SRs of the class changes; of all classes if there is none.
    Retune(Option<Class>),
}

/// A key of a layout.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub effect: Effect,
}

const fn key(name: &'static str, kind: Kind, effect: Effect) -> Key {
    Key { name, kind, effect }
}

/// How LVM chooses where volumes go; lvm(8), "--alloc".
const ALLOC: Kind = Kind::Choice(&["contiguous", "cling", "cling_by_tags", "normal", "anywhere", "inherit"]);

pub const DESCRIPTION: &str = "description";
pub const ATTACH_PATH: &str = "attach_path";
pub const ATTACH_OPTIONS: &str = "attach_options";
pub const SUBDIR: &str = "subdir";

/// Every key of a layout, in the order in which they are written.
pub const KEYS: [Key; 21] = [
    key(DESCRIPTION, Kind::Text, Effect::Copy),
    key(ATTACH_PATH, Kind::Path, Effect::Reattach),
    key(ATTACH_OPTIONS, Kind::Text, Effect::Reattach),
    key(SUBDIR, Kind::Text, Effect::Reattach),
    key("lvm_attach_path", Kind::Path, Effect::Restart(Class::Lvm)),
    key("file_attach_path", Kind::Path, Effect::Restart(Class::File)),
    key("nfs_attach_path", Kind::Path, Effect::Restart(Class::Nfs)),
    key("lvm_attach_options", Kind::Text, Effect::Restart(Class::Lvm)),
    key("file_attach_options", Kind::Text, Effect::Restart(Class::File)),
    key("nfs_attach_options", Kind::Text, Effect::Restart(Class::Nfs)),
    key("lvm_format", Kind::Fields, Effect::Reformat(Class::Lvm)),
    key("file_format", Kind::Fields, Effect::Reformat(Class::File)),
    key("nfs_format", Kind::Fields, Effect::Reformat(Class::Nfs)),
    key("lvm_format_args", Kind::Text, Effect::Reformat(Class::Lvm)),
    key("file_format_args", Kind::Text, Effect::Reformat(Class::File)),
    key("nfs_format_args", Kind::Text, Effect::Reformat(Class::Nfs)),
    key("lvm_alloc", ALLOC, Effect::Retune(Some(Class::Lvm))),
    key("lvm_tags", Kind::Text, Effect::Retune(Some(Class::Lvm))),
    key("file_reserve", Kind::Number, Effect::Retune(Some(Class::File))),
    key("limit", Kind::Number, Effect::Retune(None)),
    key("limit_warn", Kind::Number, Effect::Retune(None)),
];

/// The key with this name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Kind {
    /// The value in the form in which two can be compared.
    ///
    /// # Errors
    /// A clause that says what is wrong.
    pub fn normal(self, value: &str) -> Result<String, String> {
        if value.is_empty() {
            return Err("it has no value".to_owned());
        }
        match self {
            Kind::Text => Ok(value.to_owned()),
            Kind::Number => number(value).map(|number| number.to_string()),
            Kind::Choice(words) if words.contains(&value) => Ok(value.to_owned()),
            Kind::Choice(words) => Err(format!("{value:?} is none of {}", words.join(", "))),
            Kind::Path => path(value),
            Kind::Fields => {
                let mut fields = line::fields(value)?;
                if let Some(field) = fields.iter().find(|field| field.relation != line::Relation::Is) {
                    return Err(format!("expected {}=, not {}{}", field.key, field.key, field.relation));
                }
                fields.sort_by(|a, b| a.key.cmp(&b.key));
                Ok(line::written(&fields))
            }
        }
    }
}

/// A whole number.
///
/// # Errors
/// A clause that says what is wrong.
pub fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None if text.starts_with('+') => None,
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| format!("{text:?} is no whole number"))
}

/// A boolean.
///
/// # Errors
/// A clause that says what is wrong.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" | "1" => Ok(true),
        "no" | "false" | "0" => Ok(false),
        _ => Err(format!("{text:?} is none of yes, true, 1, no, false, 0")),
    }
}

/// An absolute path without `..`, empty parts and a `/` at its end.
///
/// # Errors
/// A clause that says what is wrong.
pub fn path(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if !text.starts_with('/') || parts.is_empty() {
        return Err(format!("{text:?} is no absolute path of a directory of its own"));
    }
    if parts.contains(&"..") {
        return Err(format!("'..' is not allowed in {text:?}"));
    }
    for (at, _) in text.match_indices('$') {
        let end = text[at + 1..].find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len() - at - 1);
        let word = &text[at + 1..at + 1 + end];
        if !VARIABLES.contains(&word) {
            return Err(format!("${word} stands for nothing; there are ${}", VARIABLES.join(" $")));
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// The values of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<&'static str, String>);

impl Options {
    /// The value of a key; `None` if the model says none.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Sets a value that [`Kind::normal`] gave. Whether the key had none before.
    pub fn put(&mut self, key: &'static Key, value: String) -> bool {
        self.0.insert(key.name, value).is_none()
    }

    /// The keys that have a value, in the order of [`KEYS`].
    pub fn given(&self) -> impl Iterator<Item = (&'static Key, &str)> {
        KEYS.iter().filter_map(|key| Some((key, self.get(key.name)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_of_their_types() {
        for (kind, value, normal) in [
            (Kind::Number, "0x10", Some("16")),
            (Kind::Number, "12", Some("12")),
            (Kind::Number, "-1", None),
            (Kind::Number, "+1", None),
            (Kind::Number, "0x+1", None),
            (Kind::Text, "test rack", Some("test rack")),
            (Kind::Text, "", None),
            (ALLOC, "cling", Some("cling")),
            (ALLOC, "Cling", None),
            (Kind::Path, "/mnt//$layout/./$index/", Some("/mnt/$layout/$index")),
            (Kind::Path, "/", None),
            (Kind::Path, "mnt", None),
            (Kind::Path, "/mnt/../etc", None),
            (Kind::Path, "/mnt/$colour", None),
            (Kind::Path, "/mnt/$", None),
            (Kind::Fields, "b=2  a=\"x y\"", Some("a=\"x y\" b=2")),
            (Kind::Fields, "a>=2", None),
            (Kind::Fields, "a", None),
        ] {
            assert_eq!(kind.normal(value).ok().as_deref(), normal, "{kind:?} {value}");
        }
        assert_eq!((boolean("yes"), boolean("0")), (Ok(true), Ok(false)));
        assert!(boolean("on").is_err());
    }

    #[test]
    fn a_key_has_one_value_and_they_come_in_one_order() {
        let mut options = Options::default();
        assert!(options.put(find("limit").unwrap(), "1".to_owned()));
        assert!(options.put(find("description").unwrap(), "x".to_owned()));
        assert!(!options.put(find("limit").unwrap(), "2".to_owned()));
        let given: Vec<_> = options.given().map(|(key, value)| (key.name, value)).collect();
        assert_eq!(given, [("description", "x"), ("limit", "2")]);
        assert!(find("colour").is_none());
    }
}
