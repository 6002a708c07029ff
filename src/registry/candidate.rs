//! Media that a backend offers, as an inventory names them: `lvm: host=node1 dev=/dev/disk/by-id/wwn-0x5[0-3] size=500G`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::line::{self, Misfit, Relation};
use crate::error::Result;
pub use crate::types::Class;

/// A medium of an inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    pub class: Class,
    pub host: String,
    /// The name of the device on the host, or the path of the directory or export.
    pub dev: String,
    /// Bytes, if the inventory says so.
    #[serde(default)]
    pub size: Option<u64>,
    /// All else that the inventory says, by key.
    #[serde(default)]
    pub rest: BTreeMap<String, String>,
}

/// Keys of a candidate beside class, host, dev and size.
const REST: [&str; 9] = ["tag", "ha_host", "jdev", "jsize", "identity", "wwid", "serial", "model", "rotational"];

impl Candidate {
    /// The value of a key, as a pattern is compared with it.
    pub fn get(&self, key: &str) -> Option<&str> {
        match key {
            "host" => Some(&self.host),
            "dev" => Some(&self.dev),
            key => self.rest.get(key).map(String::as_str),
        }
    }
}

/// Reads an inventory. `size`: reads a size in bytes.
///
/// # Errors
/// The line, and what is wrong with it.
pub fn parse(text: &str, size: fn(&str) -> Result<u64>) -> Result<Vec<Candidate>, Misfit> {
    let mut found = Vec::new();
    for line in line::lines(text)? {
        let bad = |what: String| Misfit::at(line.number, what);
        let class: Class = line.key.parse().map_err(bad)?;
        for value in line::expanded(&line.value).map_err(bad)? {
            found.push(candidate(class, &value, size).map_err(bad)?);
        }
    }
    Ok(found)
}

fn candidate(class: Class, value: &str, size: fn(&str) -> Result<u64>) -> Result<Candidate, String> {
    let mut candidate = Candidate { class, host: String::new(), dev: String::new(), size: None, rest: BTreeMap::new() };
    for field in line::fields(value)? {
        if field.relation != Relation::Is {
            return Err(format!("an inventory says what is: {}=, not {}{}", field.key, field.key, field.relation));
        }
        match field.key.as_str() {
            "host" => candidate.host = field.value,
            "dev" => candidate.dev = field.value,
            "size" => candidate.size = Some(size(&field.value).map_err(|e| e.to_string())?),
            key if REST.contains(&key) => drop(candidate.rest.insert(field.key, field.value)),
            key => return Err(format!("there is no key {key:?} of a device")),
        }
    }
    match (candidate.host.is_empty(), candidate.dev.starts_with('/')) {
        (true, _) => Err("host= is missing".to_owned()),
        (_, false) => Err("dev= is missing, or no absolute path".to_owned()),
        _ => Ok(candidate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn read(text: &str) -> Result<Vec<Candidate>, Misfit> {
        parse(text, |text| text.parse().map_err(|_| Error::Usage("no size".to_owned())))
    }

    #[test]
    fn an_inventory_is_read_and_its_ranges_are_expanded() {
        let found = read("# rack\nlvm: tag=a0 host=node1 dev=/dev/disk/by-id/x[2-3] size=500\nnfs: host=f dev=/e\n");
        let found = found.unwrap();
        let shown: Vec<_> = found.iter().map(|it| (it.class, it.host.as_str(), it.dev.as_str(), it.size)).collect();
        assert_eq!(
            shown,
            [
                (Class::Lvm, "node1", "/dev/disk/by-id/x2", Some(500)),
                (Class::Lvm, "node1", "/dev/disk/by-id/x3", Some(500)),
                (Class::Nfs, "f", "/e", None)
            ]
        );
        assert_eq!(found[0].get("tag"), Some("a0"));
        assert_eq!((found[0].get("host"), found[0].get("jdev")), (Some("node1"), None));
    }

    #[test]
    fn a_line_that_is_no_device_is_named() {
        for bad in [
            "tape: host=a dev=/b",
            "lvm: dev=/b",
            "lvm: host=a",
            "lvm: host=a dev=b",
            "lvm: host=a dev=/b colour=red",
            "lvm: host=a dev=/b size=big",
            "lvm: host=a dev=/b size>=1",
            "lvm: host=a[0-1] dev=/b[0-2]",
        ] {
            assert_eq!(read(&format!("\n{bad}\n")).unwrap_err().line, 2, "{bad}");
        }
    }
}
