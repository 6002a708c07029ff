//! What the settings of LVM (lvm.conf(5)) say of the devices that its commands see and of their locks, for who reads devices without them.
//!
//! Settings that are not known to mean nothing here leave the group to LVM. One filter is understood: names that are rejected by how
//! they begin, as a dom0 has it (`r|/dev/nbd|`).

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use super::config::{Section, Value};
use crate::sys::blockdev;

/// Where LVM looks for its settings, unless this variable of the environment names another directory.
const DIR: &str = "/etc/lvm";
const VARIABLE: &str = "LVM_SYSTEM_DIR";

/// Where LVM commands have their locks.
pub const LOCKS: &str = "/run/lock/lvm";

/// The devices that a filter keeps from LVM, by their numbers. `None`: LVM has to be asked what it sees.
pub fn unseen() -> Option<Vec<u64>> {
    let dir = env::var_os(VARIABLE).map_or_else(|| PathBuf::from(DIR), PathBuf::from);
    // The list of devices of an LVM that keeps one.
    if [&dir, Path::new(DIR)].iter().any(|dir| dir.join("devices/system.devices").exists()) {
        return None;
    }
    let mut rejected = Vec::new();
    let mut has_filter = false;
    for name in ["lvm.conf", "lvmlocal.conf"] {
        let text = match fs::read_to_string(dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read.ok()?,
        };
        let beginnings = rejected_by(&text)?;
        // The one replaces that of the other.
        if has_filter && !beginnings.is_empty() {
            return None;
        }
        has_filter = !beginnings.is_empty();
        rejected.extend(beginnings);
    }
    if rejected.is_empty() { Some(Vec::new()) } else { numbers(Path::new("/dev"), &rejected) }
}

/// The block devices in a directory whose names begin so. `None`: a directory does.
fn numbers(dir: &Path, beginnings: &[String]) -> Option<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let is_meant = |beginning: &String| name.to_str().is_none_or(|name| name.starts_with(beginning));
        if beginnings.iter().any(is_meant) {
            if entry.path().is_dir() {
                return None;
            }
            found.extend(blockdev::number(&entry.path()));
        }
    }
    Some(found)
}

/// The beginnings of the names in /dev that settings reject. `None`: they say what is not understood.
fn rejected_by(text: &str) -> Option<Vec<String>> {
    let all = Section::parse_settings(text)?;
    let none = Section::default();
    let section = |name: &str| all.section(name).unwrap_or(&none);
    let is =
        |section: &Section, name: &str, usual: &[Value]| section.value(name).is_none_or(|value| usual.contains(value));
    let (devices, global) = (section("devices"), section("global"));
    let is_plain = is(devices, "dir", &[Value::Text("/dev")])
        && is(devices, "scan", &[Value::Text("/dev"), Value::List(vec![Value::Text("/dev")])])
        && is(devices, "scan_lvs", &[Value::Number(0)])
        && is(devices, "multipath_component_detection", &[Value::Number(1)])
        && devices.value("devicesfile").is_none()
        && is(global, "locking_dir", &[Value::Text(LOCKS), Value::Text("/var/lock/lvm")])
        && is(global, "locking_type", &[Value::Number(1)])
        && is(global, "use_lvmlockd", &[Value::Number(0)])
        // Settings of host tags are in further files.
        && section("tags").sections.is_empty()
        && section("tags").values.iter().all(|value| *value == ("hosttags", Value::Number(0)));
    if !is_plain {
        return None;
    }
    let mut rejected = Vec::new();
    for name in ["filter", "global_filter"] {
        if let Some(value) = devices.value(name) {
            rejected.extend(beginnings(value)?);
        }
    }
    Some(rejected)
}

/// Of a filter that accepts all names but some.
fn beginnings(filter: &Value) -> Option<Vec<String>> {
    let patterns: Vec<&str> = match filter {
        Value::Text(text) => vec![text],
        Value::List(list) => list
            .iter()
            .map(|value| if let Value::Text(text) = value { Some(*text) } else { None })
            .collect::<Option<_>>()?,
        Value::Number(_) | Value::Other(_) => return None,
    };
    if let ["a|.*|" | "a/.*/" | "a|.*/|" | "a|^/dev/.*|"] = patterns[..] {
        return Some(Vec::new());
    }
    patterns.into_iter().map(beginning).collect()
}

/// `nbd` of `r|^/dev/nbd.*|`.
fn beginning(pattern: &str) -> Option<String> {
    let rest =
        pattern.strip_prefix("r|")?.strip_suffix('|').or_else(|| pattern.strip_prefix("r/")?.strip_suffix('/'))?;
    let name = rest.strip_prefix('^').unwrap_or(rest).strip_prefix("/dev/")?;
    let name = name.strip_suffix(".*").unwrap_or(name);
    let is_plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    is_plain.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_mean_nothing_here_are_plain() {
        for text in [
            "",
            "# filter = [ \"a|x|\" ]\ndevices {\n\t# scan_lvs = 1\n}\n",
            "activation { reserved_memory=64 reserved_stack=16 process_priority = -18 }",
            "devices { dir = \"/dev\" scan = [ \"/dev\" ] scan_lvs = 0 filter = [ \"a|.*|\" ] use_devicesfile = 1 }",
            "global { locking_type = 1 locking_dir = \"/run/lock/lvm\" use_lvmlockd = 0 umask = 077 x = 1.5 }",
            "tags { hosttags = 0 }",
        ] {
            assert_eq!(rejected_by(text), Some(Vec::new()), "{text}");
        }
    }

    #[test]
    fn names_that_are_rejected_by_their_beginning_are_known() {
        for (filter, wanted) in [
            ("[ \"r|/dev/nbd|\" ]", &["nbd"][..]),
            ("[ \"r|^/dev/nbd.*|\", \"r|/dev/xvd|\" ]", &["nbd", "xvd"]),
            ("\"r|/dev/nbd|\"", &["nbd"]),
        ] {
            for name in ["filter", "global_filter"] {
                let text = format!("devices {{\n{name} = {filter}\n}}");
                assert_eq!(rejected_by(&text).unwrap(), wanted, "{text}");
            }
        }
        let both = "devices { filter = \"r|/dev/a|\" global_filter = \"r|/dev/b|\" }";
        assert_eq!(rejected_by(both).unwrap(), ["a", "b"]);
    }

    #[test]
    fn what_is_not_understood_is_left_to_lvm() {
        for text in [
            "devices { filter = [ \"a|^/dev/sda$|\", \"r|.*|\" ] }",
            "devices { filter = [ \"r|/dev/nbd|\", \"a|.*|\" ] }",
            "devices { filter = [ \"r|/dev/disk/by-id|\" ] }",
            "devices { filter = [ \"r|/dev/sd[bc]|\" ] }",
            "devices { filter = [ \"r|nbd|\" ] }",
            "devices { filter = [ \"r|/dev/|\" ] }",
            "devices { filter = [ \"r|/dev/nbd$|\" ] }",
            "devices { filter = [ 1 ] }",
            "devices { filter = 1 }",
            "devices { global_filter = [ \"r|.*|\" ] }",
            "devices/filter = [ \"r|.*|\" ]",
            "devices { scan_lvs = 1 }",
            "devices { dir = \"/dev/mapper\" }",
            "devices { scan = [ \"/dev\", \"/srv\" ] }",
            "devices { multipath_component_detection = 0 }",
            "devices { devicesfile = \"mine.devices\" }",
            "devices { scan_lvs = 0 } devices { scan_lvs = 1 }",
            "global { locking_dir = \"/tmp\" }",
            "global { locking_type = 0 }",
            "global { locking_type = 3 }",
            "global { use_lvmlockd = 1 }",
            "tags { hosttags = 1 }",
            "tags { mine { } }",
            "devices {",
        ] {
            assert_eq!(rejected_by(text), None, "{text}");
        }
    }

    #[test]
    fn a_directory_that_is_rejected_is_left_to_lvm() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("nbd0"), "").unwrap();
        fs::create_dir(dir.path().join("disk")).unwrap();
        assert_eq!(numbers(dir.path(), &["nbd".to_owned(), "none".to_owned()]), Some(Vec::new()));
        assert_eq!(numbers(dir.path(), &["di".to_owned()]), None);
    }
}
