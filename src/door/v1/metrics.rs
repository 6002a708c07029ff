//! `sm sr_metrics`: the SRs of this host as OpenMetrics text, for the textfile collector of node_exporter.
//!
//! The form is that of OpenMetrics 1.0, "Text format"; a reader of the older Prometheus text format reads it as well. Each SR
//! is asked by a thread of its own, as for [`listing`](super::listing). An SR that cannot be read has `sm_sr_up 0` and nothing
//! else.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use std::{fs, path};

use super::address::{self, Target};
use super::grammar::{SrArg, Verb};
use super::listing::{Known, ask, placed};
use crate::call::Session;
use crate::context::Context;
use crate::error::{Error, Result, one_line};
use crate::registry;
use crate::sys::durable::{Dir, name_of};
use crate::types::{PoolUse, SpaceUse, SrUuid};

/// How long the SRs may take to answer, unless `--wait` says otherwise: each of their headers is read.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The words of one call.
pub struct Asked<'a> {
    /// Names and UUIDs; all SRs of the table if there are none.
    pub srs: &'a [String],
    pub sr_type: Option<&'a str>,
    pub dconf: Option<&'a str>,
    pub patience: Duration,
}

/// An SR, and what was found of it.
struct Metered {
    name: String,
    /// `None` for an entry of the table that cannot be read.
    sr: Option<SrUuid>,
    sr_type: String,
    /// `None` for an SR that cannot be read.
    found: Option<SpaceUse>,
}

/// A family of metrics: its name, its unit, its help, and the value that an SR has, if it has one.
struct Family {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    value: fn(&SpaceUse) -> Option<u64>,
}

const fn family(
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    value: fn(&SpaceUse) -> Option<u64>,
) -> Family {
    Family { name, unit, help, value }
}

fn of_pool(of: &SpaceUse, value: fn(&PoolUse) -> u64) -> Option<u64> {
    of.sr.pool.as_ref().map(value)
}

const UP: (&str, &str) = ("sm_sr_up", "Whether the SR could be read: 1 or 0.");

const FAMILIES: &[Family] = &[
    family("sm_sr_size_bytes", "bytes", "Size of the SR.", |of| Some(of.sr.size)),
    family("sm_sr_free_bytes", "bytes", "Space of the SR that nothing uses.", |of| Some(of.sr.free)),
    family("sm_sr_used_bytes", "bytes", "Space that the VDIs and their bases take.", |of| {
        Some(of.sr.physical_utilisation)
    }),
    family("sm_sr_virtual_size_bytes", "bytes", "Sum of the virtual sizes of the VDIs.", |of| {
        Some(of.sr.virtual_allocation)
    }),
    family("sm_sr_collectable_bytes", "bytes", "Space that sr_collect would free, about.", |of| {
        Some(of.collectable.bytes)
    }),
    family("sm_sr_longest_chain", "", "Images in the longest chain.", |of| Some(of.longest_chain() as u64)),
    family("sm_sr_vdis", "", "VDIs in the SR, without bases.", |of| Some(of.sr.vdi_uuids.len() as u64)),
    family("sm_sr_vdis_attached", "", "VDIs that this host has attached.", |of| {
        Some(of.sr.vdis.iter().filter(|vdi| vdi.attached).count() as u64)
    }),
    family("sm_sr_vdis_broken", "", "VDIs and bases that cannot be used.", |of| {
        Some(of.sr.vdis.iter().filter(|vdi| !vdi.state.is_healthy()).count() as u64)
    }),
    family("sm_sr_pool_data_size_bytes", "bytes", "Data of the thin pool.", |of| of_pool(of, |pool| pool.data_size)),
    family("sm_sr_pool_data_used_bytes", "bytes", "Data of the thin pool in use.", |of| {
        of_pool(of, |pool| pool.data_used)
    }),
    family("sm_sr_pool_metadata_size_bytes", "bytes", "Metadata of the thin pool.", |of| {
        of_pool(of, |pool| pool.metadata_size)
    }),
    family("sm_sr_pool_metadata_used_bytes", "bytes", "Metadata of the thin pool in use.", |of| {
        of_pool(of, |pool| pool.metadata_used)
    }),
];

/// The text. `warn` is told of each SR that cannot be read.
///
/// # Errors
/// Those of [`registry::all`] and [`address::target`]: for words that stand for no SR. An SR that cannot be read is none.
pub fn metrics(asked: &Asked, warn: &dyn Fn(&str)) -> Result<String> {
    let deadline = Instant::now() + asked.patience;
    let (mut known, mut metered) = (Vec::new(), Vec::new());
    if asked.srs.is_empty() {
        for (name, entry) in registry::all()? {
            let (sr, sr_type) = entry.as_ref().map_or((None, String::new()), |it| (Some(it.sr), it.sr_type.clone()));
            match entry.and_then(|entry| placed(&entry)) {
                Ok(sr) => known.push(sr),
                Err(e) => {
                    warn(&format!("{name}: {}", one_line(&e)));
                    metered.push(Metered { name, sr, sr_type, found: None });
                }
            }
        }
    }
    for word in asked.srs {
        let mut verb = Verb::SrSpace(SrArg { sr: word.clone() });
        let Target { driver, config, entry } = address::target(&mut verb, asked.sr_type, asked.dconf, deadline)?;
        let sr = verb.sr_word().map(|word| word.clone()).unwrap_or_default().parse()?;
        known.push(Known { name: entry.map(|entry| entry.name).unwrap_or_default(), sr, driver, config });
    }
    // A file of the timer is called by the UUID, which is no name.
    known.iter_mut().filter(|it| it.name == it.sr.to_string()).for_each(|it| it.name.clear());
    known.sort_by(|a, b| (&a.name, a.sr).cmp(&(&b.name, b.sr)));
    known.dedup_by(|a, b| (&a.name, a.sr) == (&b.name, b.sr));
    let asked: Vec<(Metered, Receiver<Result<SpaceUse>>)> =
        known.into_iter().map(|known| question(known, deadline)).collect();
    for (of, answer) in asked {
        let found = match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(found)) => Some(found),
            Ok(Err(e)) => {
                warn(&format!("{}: {}", called(&of), one_line(&e)));
                None
            }
            Err(_) => {
                warn(&format!("{}: no answer in time", called(&of)));
                None
            }
        };
        metered.push(Metered { found, ..of });
    }
    Ok(written(&metered))
}

fn called(of: &Metered) -> String {
    of.sr.filter(|_| of.name.is_empty()).map_or_else(|| of.name.clone(), |sr| format!("SR {sr}"))
}

fn question(known: Known, deadline: Instant) -> (Metered, Receiver<Result<SpaceUse>>) {
    let Known { name, sr, driver, config } = known;
    let answer = ask(move || {
        let context = Context { deadline, progress: &|_, _| {}, others: None };
        Session::open(driver, sr, config)?.sr_figures(&context)
    });
    (Metered { name, sr: Some(sr), sr_type: driver.sr_type.to_owned(), found: None }, answer)
}

fn written(srs: &[Metered]) -> String {
    let up = srs.iter().map(|sr| (sr, u64::from(sr.found.is_some())));
    let mut text = String::new();
    write_family(&mut text, UP.0, "", UP.1, up);
    for family in FAMILIES {
        let values = srs.iter().filter_map(|sr| Some((sr, (family.value)(sr.found.as_ref()?)?)));
        write_family(&mut text, family.name, family.unit, family.help, values);
    }
    text.push_str("# EOF\n");
    text
}

/// Writes one family, with a line for each SR. A family without a value is left out.
fn write_family<'a>(
    text: &mut String,
    name: &str,
    unit: &str,
    help: &str,
    values: impl Iterator<Item = (&'a Metered, u64)>,
) {
    let mut values = values.peekable();
    if values.peek().is_none() {
        return;
    }
    // Writing to a String does not fail.
    let _ = writeln!(text, "# TYPE {name} gauge");
    if !unit.is_empty() {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
    let _ = writeln!(text, "# HELP {name} {help}");
    for (sr, value) in values {
        let uuid = sr.sr.map(|sr| sr.to_string()).unwrap_or_default();
        let [uuid, label, sr_type] = [&uuid, &sr.name, &sr.sr_type].map(|text| escaped(text));
        let _ = writeln!(text, "{name}{{sr=\"{uuid}\",name=\"{label}\",type=\"{sr_type}\"}} {value}");
    }
}

/// The value of a label as it stands between quotes: "Label values may be any sequence of UTF-8 characters", with escapes for
/// line feed, quote and backslash (OpenMetrics 1.0, "Escaping").
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Puts the text into a file that every user may read. A reader, and a crash, finds the old file or the new one.
///
/// # Errors
/// [`Error::Invalid`] for a name that is that of no regular file; [`Error::Io`].
pub fn put(file: &str, text: &str) -> Result<()> {
    let path = Path::new(file);
    let bad = |expected: &str| Error::Invalid { what: "FILE", value: file.to_owned(), expected: expected.to_owned() };
    let name = name_of(path);
    if name.is_empty() || file.ends_with(path::MAIN_SEPARATOR) {
        return Err(bad("expected the name of a file"));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = fs::canonicalize(parent).map_err(Error::io("find the directory", parent))?;
    let dir = Dir::open(&parent)?;
    if dir.lookup(name)?.is_some_and(|stat| !stat.is_regular()) {
        return Err(bad("it is there and is no regular file"));
    }
    let new = dir.new_file()?;
    let written = new.file().write_all(text.as_bytes());
    written.map_err(Error::io("write", path))?;
    new.file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(Error::io("make readable", path))?;
    new.publish_over(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VdiInfo;

    fn sr() -> SrUuid {
        "87b8646b-b800-9500-cb7b-af3b74e02f5c".parse().unwrap()
    }

    fn metered(name: &str, found: Option<SpaceUse>) -> Metered {
        Metered { name: name.to_owned(), sr: Some(sr()), sr_type: "lvm".to_owned(), found }
    }

    #[test]
    fn each_family_is_whole_and_named_by_its_unit() {
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        for family in FAMILIES {
            assert!(family.unit.is_empty() || family.name.ends_with(&format!("_{}", family.unit)), "{}", family.name);
            assert_eq!(names.iter().filter(|name| **name == family.name).count(), 1);
            assert!(!family.help.contains(['\\', '\n', '"']), "{}", family.help);
        }
    }

    #[test]
    fn an_sr_that_cannot_be_read_has_one_line_and_its_name_is_escaped() {
        let text = written(&[metered("a\"b\\c\nd", None)]);
        let sr = sr();
        let line = format!("sm_sr_up{{sr=\"{sr}\",name=\"a\\\"b\\\\c\\nd\",type=\"lvm\"}} 0");
        assert_eq!(text, format!("# TYPE sm_sr_up gauge\n# HELP sm_sr_up {}\n{line}\n# EOF\n", UP.1));
        assert_eq!(written(&[]), "# EOF\n");
    }

    #[test]
    fn the_values_are_those_of_the_sr() {
        let vdi = VdiInfo { attached: true, ..VdiInfo::sample(crate::types::VdiUuid::random()) };
        let sr = crate::types::SrInfo {
            uuid: sr(),
            vdi_uuids: vec![vdi.uuid],
            physical_utilisation: 5,
            virtual_allocation: 1 << 60,
            size: 100,
            free: 60,
            sr_type: "lvm".to_owned(),
            location: String::new(),
            pool: Some(PoolUse { data_size: 4, data_used: 3, metadata_size: 2, metadata_used: 1 }),
            slot: None,
            vdis: vec![vdi],
            logs: None,
            kept: None,
        };
        let text = written(&[metered("thin", Some(SpaceUse::of_disks(sr.clone(), true, true)))]);
        for (name, value) in [
            ("sm_sr_up", 1),
            ("sm_sr_size_bytes", 100),
            ("sm_sr_virtual_size_bytes", 1u64 << 60),
            ("sm_sr_longest_chain", 1),
            ("sm_sr_vdis_attached", 1),
            ("sm_sr_vdis_broken", 0),
            ("sm_sr_pool_data_used_bytes", 3),
            ("sm_sr_pool_metadata_used_bytes", 1),
        ] {
            let found = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
            assert!(found.ends_with(&format!("}} {value}")), "{found}");
        }
        let thick = SpaceUse::of_disks(crate::types::SrInfo { pool: None, ..sr }, true, true);
        assert!(!written(&[metered("thick", Some(thick))]).contains("pool"));
    }

    #[test]
    fn a_file_is_replaced_and_what_is_no_file_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("sm.prom");
        let file = path.to_str().unwrap();
        for text in ["one", "two"] {
            put(file, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        }
        assert_eq!(scratch.path().read_dir().unwrap().count(), 1);
        fs::create_dir(scratch.path().join("d")).unwrap();
        std::os::unix::fs::symlink(&path, scratch.path().join("l")).unwrap();
        for name in ["d", "d/", "l", "", "..", "none/x"] {
            let refused = put(scratch.path().join(name).to_str().unwrap(), "x");
            assert!(refused.is_err(), "{name}");
        }
        assert!(matches!(put("/dev/null", "x"), Err(Error::Invalid { .. })));
    }
}
