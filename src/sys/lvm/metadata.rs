//! The metadata of a volume group as LVM writes it on its physical volumes (`lib/format_text/export.c`), as [`report`](super::report())
//! tells it.
//!
//! Only what is understood to its last word is read: a group of this host alone, nothing of which is missing, whose volumes
//! are linear or striped, and visible. Of another one LVM itself has to be asked: a newer LVM may mean something by a word that is
//! unknown here, or by its lack.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::config::{Section, Value};
use super::{Lv, Pv, Segment, Vg};

/// Bytes in which sizes of devices and the first extent are counted.
const SECTOR: u64 = 512;

/// A group in its metadata. The kernel knows which of its volumes are active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub vg: Vg,
    /// The UUID of the group, and those of the volumes of `vg` in their order, as device-mapper has them: without hyphens.
    pub id: String,
    pub ids: Vec<String>,
}

/// Reads a text. `device`: the device on which a physical volume is, by the UUID of that and the least size that the device must have,
/// bytes. `None`: LVM has to be asked.
pub fn parse(text: &str, device: impl Fn(&str, u64) -> Option<PathBuf>) -> Option<Text> {
    let all = Section::parse(text.strip_suffix('\0')?)?;
    let [(name, group)] = all.sections.as_slice() else { return None };
    let is_whole = all.has_only(&["contents", "version", "description", "creation_host", "creation_time"], &[name])
        && all.text("contents")? == "Text Format Volume Group"
        && all.number("version")? == 1;
    const VALUES: &[&str] =
        &["id", "seqno", "format", "status", "flags", "tags", "extent_size", "max_lv", "max_pv", "metadata_copies"];
    let is_plain = group.has_only(VALUES, &["physical_volumes", "logical_volumes"])
        && group.text("format")? == "lvm2"
        && is_set(group, "status", &["RESIZEABLE", "READ", "WRITE"], &[])
        && is_set(group, "flags", &[], &[]);
    if !is_whole || !is_plain {
        return None;
    }
    let extent_size = bytes(group, "extent_size")?;
    if extent_size == 0 {
        return None;
    }
    let found = group.section("physical_volumes")?;
    let mut pvs = BTreeMap::new();
    for (key, pv) in found.sections.iter().filter(|_| found.values.is_empty()) {
        pvs.insert(*key, physical(pv, extent_size, &device)?);
    }
    let mut taken = Vec::new();
    let (mut lvs, mut ids) = (Vec::new(), Vec::new());
    if let Some(found) = group.section("logical_volumes") {
        let mut all: Vec<&(&str, Section)> = found.sections.iter().filter(|_| found.values.is_empty()).collect();
        if all.len() != found.sections.len() {
            return None;
        }
        all.sort_unstable_by_key(|(name, _)| *name);
        for (name, lv) in all {
            ids.push(id(lv)?);
            lvs.push(logical(name, lv, extent_size, &pvs, &mut taken)?);
        }
    }
    let all: u64 = pvs.values().map(|pv| pv.size / extent_size).try_fold(0, u64::checked_add)?;
    let free = all.checked_sub(used(taken, &pvs, extent_size)?)?;
    let mut pvs: Vec<Pv> = pvs.into_values().collect();
    pvs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if pvs.is_empty() || pvs.windows(2).any(|pair| pair[0].name == pair[1].name) {
        return None;
    }
    let vg = Vg {
        name: (*name).to_owned(),
        size: all.checked_mul(extent_size)?,
        free: free * extent_size,
        extent_size,
        tags: tags(group)?,
        system_id: String::new(),
        version: Some(group.number("seqno")?),
        pvs,
        lvs,
    };
    Some(Text { vg, id: id(group)?, ids })
}

/// Stretches of physical volumes that volumes have: whose, the first extent, and how many.
type Taken<'t> = Vec<(&'t str, u64, u64)>;

fn physical(pv: &Section, extent_size: u64, device: impl Fn(&str, u64) -> Option<PathBuf>) -> Option<Pv> {
    const VALUES: &[&str] =
        &["id", "device", "device_id", "device_id_type", "status", "flags", "tags", "dev_size", "pe_start", "pe_count"];
    let is_plain =
        pv.has_only(VALUES, &[]) && is_set(pv, "status", &["ALLOCATABLE"], &[]) && is_set(pv, "flags", &[], &[]);
    id(pv).filter(|_| is_plain)?;
    let uuid = pv.text("id")?;
    let (size, first_extent) = (pv.number("pe_count")?.checked_mul(extent_size)?, bytes(pv, "pe_start")?);
    let least = bytes(pv, "dev_size")?.max(first_extent.checked_add(size)?);
    let name = device(uuid, least)?;
    Some(Pv { name, uuid: uuid.to_owned(), size, missing: false, duplicate: None, first_extent })
}

fn logical<'t>(
    name: &str,
    lv: &Section<'t>,
    extent_size: u64,
    pvs: &BTreeMap<&str, Pv>,
    taken: &mut Taken<'t>,
) -> Option<Lv> {
    const VALUES: &[&str] = &[
        "id",
        "status",
        "flags",
        "tags",
        "creation_time",
        "creation_host",
        "allocation_policy",
        "read_ahead",
        "segment_count",
    ];
    let is_plain = lv.values.iter().all(|(name, _)| VALUES.contains(name))
        && is_set(lv, "status", &["READ", "VISIBLE"], &["WRITE"])
        && is_set(lv, "flags", &[], &[])
        && lv.number("segment_count")? == lv.sections.len() as u64;
    if !is_plain || lv.sections.is_empty() {
        return None;
    }
    let mut segments = Vec::with_capacity(lv.sections.len());
    let mut next = 0u64;
    for (n, (key, section)) in lv.sections.iter().enumerate() {
        let is_next = key.strip_prefix("segment").is_some_and(|number| number == (n + 1).to_string());
        let segment = stretch(section, pvs, taken)?;
        if !is_next || segment.start != next || segment.count == 0 {
            return None;
        }
        next = next.checked_add(segment.count)?;
        segments.push(segment);
    }
    let kind = segments[0].kind.clone();
    if segments.iter().any(|segment| segment.kind != kind) {
        return None;
    }
    Some(Lv {
        name: name.to_owned(),
        size: next.checked_mul(extent_size)?,
        tags: tags(lv)?,
        read_only: !lv.texts("status")?.contains(&"WRITE"),
        layout: vec![kind],
        created: match lv.value("creation_time") {
            None => None,
            Some(_) => Some(lv.number("creation_time")?).filter(|seconds| *seconds > 0),
        },
        segments,
        ..Lv::default()
    })
}

/// A segment, on physical volumes only.
fn stretch<'t>(segment: &Section<'t>, pvs: &BTreeMap<&str, Pv>, taken: &mut Taken<'t>) -> Option<Segment> {
    const VALUES: &[&str] = &["start_extent", "extent_count", "type", "stripe_count", "stripe_size", "stripes"];
    let (start, count) = (segment.number("start_extent")?, segment.number("extent_count")?);
    let stripes = segment.number("stripe_count")?;
    let Value::List(places) = segment.value("stripes")? else { return None };
    let is_plain = segment.has_only(VALUES, &[])
        && segment.text("type")? == "striped"
        && stripes > 0
        && Some(places.len() as u64) == stripes.checked_mul(2)
        && count.is_multiple_of(stripes);
    if !is_plain {
        return None;
    }
    let mut on = None;
    for place in places.chunks_exact(2) {
        let [Value::Text(key), Value::Number(first)] = place else { return None };
        taken.push((key, *first, count / stripes));
        on = Some((pvs.get(key)?.name.clone(), *first));
    }
    let kind = if stripes == 1 { "linear" } else { "striped" };
    Some(Segment { kind: kind.to_owned(), start, count, on: on.filter(|_| stripes == 1) })
}

/// How many extents are taken. `None`: some twice, or some that there are not.
fn used(mut taken: Taken, pvs: &BTreeMap<&str, Pv>, extent_size: u64) -> Option<u64> {
    taken.sort_unstable();
    let is_apart = |pair: &[(&str, u64, u64)]| {
        pair[0].0 != pair[1].0 || pair[0].1.checked_add(pair[0].2).is_some_and(|end| end <= pair[1].1)
    };
    let is_within = |(key, first, count): &(&str, u64, u64)| {
        pvs.get(key).is_some_and(|pv| first.checked_add(*count).is_some_and(|end| end <= pv.size / extent_size))
    };
    (taken.windows(2).all(is_apart) && taken.iter().all(is_within))
        .then(|| taken.iter().map(|(_, _, count)| count).sum())
}

/// A UUID as device-mapper has it.
fn id(section: &Section) -> Option<String> {
    const GROUPS: [usize; 7] = [6, 4, 4, 4, 4, 4, 6];
    let id = section.text("id")?;
    let is_plain = id.split('-').map(str::len).eq(GROUPS) && id.bytes().all(|b| b == b'-' || b.is_ascii_alphanumeric());
    is_plain.then(|| id.replace('-', ""))
}

/// A number of sectors, as bytes.
fn bytes(section: &Section, name: &str) -> Option<u64> {
    section.number(name)?.checked_mul(SECTOR)
}

/// Tags, in the order of a report.
fn tags(section: &Section) -> Option<Vec<String>> {
    if section.value("tags").is_none() {
        return Some(Vec::new());
    }
    let mut tags: Vec<String> = section.texts("tags")?.into_iter().map(str::to_owned).collect();
    tags.sort_unstable();
    Some(tags)
}

/// Whether a list has all words `needed`, and besides these only `allowed` ones.
fn is_set(section: &Section, name: &str, needed: &[&str], allowed: &[&str]) -> bool {
    section.texts(name).is_some_and(|words| {
        needed.iter().all(|word| words.contains(word))
            && words.iter().all(|word| needed.contains(word) || allowed.contains(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lvm::parse_report;
    use proptest::prelude::*;

    /// What LVM 2.03.16 wrote, and its report of the same group: on two devices, with tags, and a volume of three stretches.
    const LINEAR: (&str, &str) =
        (include_str!("../../../tests/data/lvm/linear.text"), include_str!("../../../tests/data/lvm/linear.json"));
    /// The same with a striped volume.
    const STRIPED: (&str, &str) =
        (include_str!("../../../tests/data/lvm/striped.text"), include_str!("../../../tests/data/lvm/striped.json"));
    const EMPTY: (&str, &str) =
        (include_str!("../../../tests/data/lvm/empty.text"), include_str!("../../../tests/data/lvm/empty.json"));
    /// The same with a mirror, and with a thin pool.
    const OTHERS: [&str; 2] =
        [include_str!("../../../tests/data/lvm/raid.text"), include_str!("../../../tests/data/lvm/thin.text")];

    fn named(uuid: &str, _size: u64) -> Option<PathBuf> {
        match uuid {
            "HwwvZn-0owV-Sl8S-D8i6-0Cev-dDxN-cNdgwl" => Some(PathBuf::from("/dev/ubda")),
            "J7EkVy-WWol-sZPK-WEw4-PwaT-5n20-G76RIY" => Some(PathBuf::from("/dev/ubdb")),
            _ => None,
        }
    }

    #[test]
    fn a_group_is_what_the_report_says() {
        for (text, report) in [LINEAR, STRIPED] {
            let read = parse(text, named).unwrap();
            assert_eq!(vec![read.vg], parse_report(report).unwrap());
        }
        let read = parse(EMPTY.0, |_, _| Some(PathBuf::from("/dev/ubda"))).unwrap();
        assert_eq!(vec![read.vg], parse_report(EMPTY.1).unwrap());
    }

    #[test]
    fn volumes_are_known_to_the_kernel_by_their_uuids() {
        let read = parse(LINEAR.0, named).unwrap();
        assert_eq!(read.id, "MKldweFYHsx6H1n0TUkF33VsI9g1FTVf");
        assert_eq!(read.ids[0], "58UNNp4wn2J3AeAamQWZdu2a7WMFJUTy");
        assert_eq!(read.ids.len(), read.vg.lvs.len());
    }

    #[test]
    fn a_device_has_to_be_there_and_large_enough() {
        assert_eq!(parse(LINEAR.0, |_, _| None), None);
        let sizes = std::cell::RefCell::new(Vec::new());
        let _ = parse(LINEAR.0, |uuid, size| {
            sizes.borrow_mut().push(size);
            named(uuid, size)
        });
        assert_eq!(sizes.into_inner(), [300 << 20; 2]);
        assert_eq!(parse(LINEAR.0, |_, _| Some(PathBuf::from("/dev/ubda"))), None, "two on one device");
    }

    #[test]
    fn what_is_not_understood_is_left_to_lvm() {
        for text in OTHERS {
            assert!(parse(text, named).is_none());
        }
        let text = LINEAR.0;
        for (from, to) in [
            ("\"RESIZEABLE\", ", ""),
            ("\"RESIZEABLE\"", "\"RESIZEABLE\", \"EXPORTED\""),
            ("\"ALLOCATABLE\"", ""),
            ("flags = []", "flags = [\"MISSING\"]"),
            ("max_lv = 0", "max_lv = 0\nlock_type = \"sanlock\""),
            ("max_lv = 0", "max_lv = 0\nsystem_id = \"host\""),
            ("max_lv = 0", "max_lv = 0\nseqno = 8"),
            ("lvm2", "lvm3"),
            ("version = 1", "version = 2"),
            ("extent_size = 8192", "extent_size = 0"),
            ("\"WRITE\", \"VISIBLE\"", "\"WRITE\""),
            ("\"WRITE\", \"VISIBLE\"", "\"WRITE\", \"VISIBLE\", \"PVMOVE\""),
            ("segment_count = 3", "segment_count = 2"),
            ("type = \"striped\"", "type = \"vdo\""),
            ("stripe_count = 1", "stripe_count = 0"),
            ("\"pv0\", 3\n", "\"pv2\", 3\n"),
            ("\"pv0\", 3\n", "\"MGT\", 3\n"),
            // Twice, or behind the end.
            ("\"pv0\", 3\n", "\"pv0\", 2\n"),
            ("\"pv0\", 3\n", "\"pv0\", 71\n"),
            ("\"pv0\", 3\n", "\"pv0\", 18446744073709551615\n"),
            ("extent_count = 3", "extent_count = 2"),
            ("pe_count = 72", "pe_count = 18446744073709551615"),
            ("MKldwe-", "MKldwe"),
            ("\n}\n# Gen", "\nhistorical_logical_volumes {\n}\n}\n# Gen"),
            ("\0", ""),
        ] {
            assert!(text.contains(from), "{from}");
            assert_eq!(parse(&text.replacen(from, to, 1), named), None, "{from} → {to}");
        }
    }

    proptest! {
        #[test]
        fn any_damage_is_read_to_its_end(at in 0..LINEAR.0.len(), len in 0usize..40, with in "[0-9a-z\"{}\\[\\]=, \n]{0,40}") {
            let text = LINEAR.0;
            let rest = text.get((at + len).min(text.len())..).unwrap_or_default();
            let changed = format!("{}{with}{rest}", text.get(..at).unwrap_or_default());
            if let Some(read) = parse(&changed, named) {
                let vg = read.vg;
                let held: u64 = vg.lvs.iter().map(|lv| lv.size).sum();
                prop_assert_eq!(held + vg.free, vg.size);
            }
        }
    }
}
