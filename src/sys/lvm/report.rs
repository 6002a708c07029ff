//! Reading what LVM says of groups and volumes.
//!
//! `lvm fullreport` (LVM 2.02.158) is one process and one scan of the devices for volume groups, physical and logical
//! volumes, however many; the columns are named, never counted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::{CONFIG, DEADLINE, Lv, Pv, Segment, Unmapped, Vg, hidden::tool};
use crate::error::{Error, Result, needs_root};
use crate::sys::tool::Tool;

/// The [`Lv::health`] of a volume whose row in a report makes no sense.
pub const UNREADABLE: &str = "unreadable";

const LV_COLUMNS: &str = "lv_name,lv_size,lv_tags,lv_attr,lv_layout,lv_health_status,data_percent,\
                          metadata_percent,lv_metadata_size,lv_time";

/// A report of groups would read their copies in /etc/lvm/backup as well, only to see whether these are current: a quarter
/// of its time with 500 volumes.
const UNCHECKED: &str = "backup{backup=0}";

/// The settings by which LVM writes its report as we read it, whatever lvm.conf says.
const PARSED: &str = "report{binary_values_as_numeric=0 compact_output=0 prefixes=0 time_format=\"%s\"}";

/// The facts that LVM knows of one volume group, or of all of them, those of other hosts included. Physical volumes
/// that belong to no group come in a group without a name.
///
/// The segments of volumes are told only of a group that has none of the tags `unmapped`: of 500 volumes they make the report
/// longer by a half.
///
/// # Errors
/// [`Error::Io`] if the caller is not root; [`Error::Tool`] if there is no such group, or LVM fails
/// or takes longer than 120 s; [`Error::Damaged`] if its report cannot be read.
pub fn report(vg: Option<&str>, unmapped: Unmapped) -> Result<Vec<Vg>> {
    needs_root("ask LVM through", "/dev/mapper/control")?;
    // A kind of report can't be left out, but it can be made to have no rows.
    let segments = match unmapped {
        Unmapped::Tagged(tags) => tags.iter().map(|tag| format!(" && vg_tags!={{\"{tag}\"}}")).collect(),
        Unmapped::All => " && seg_size=0".to_owned(),
    };
    let mut tool = tool("lvm")?
        .deadline(DEADLINE)
        .arg("fullreport")
        .usual_args([
            "--config",
            &format!("{CONFIG} {UNCHECKED} {PARSED}"),
            "--reportformat",
            "json",
            "--units",
            "b",
            "--nosuffix",
        ])
        .usual_args([
            "--configreport",
            "vg",
            "-o",
            "vg_name,vg_size,vg_free,vg_extent_size,vg_tags,vg_systemid,vg_seqno",
        ])
        .usual_args(["--configreport", "pv", "-o", "pv_name,pv_uuid,pv_size,pv_missing,pe_start"])
        .usual_args(["--configreport", "lv", "-o", LV_COLUMNS])
        .usual_args(["--configreport", "pvseg", "-o", "pvseg_start", "-S", "pvseg_size=0"])
        .usual_args(["--configreport", "seg", "-o", "lv_name,segtype,seg_start_pe,seg_size_pe,seg_pe_ranges"])
        .usual_args(["-S", &format!("seg_size>0{segments}")]);
    tool = match vg {
        Some(name) => tool.usual_args(["--"]).arg(name),
        None => tool.arg("--foreign"),
    };
    let out = tool.run()?;
    let mut groups = parse_report(&out.stdout)?;
    mark_duplicates(&mut groups, &out.stderr);
    Ok(groups)
}

/// LVM works on with one of two devices that claim to be the same physical volume, refuses to change the group, and tells
/// of the other one only in words.
fn mark_duplicates(groups: &mut [Vg], stderr: &str) {
    let unused = stderr.lines().filter_map(|line| {
        let (device, uuid) = line.trim().strip_prefix("WARNING: Not using device ")?.split_once(" for PV ")?;
        Some((device, uuid.trim_end_matches('.')))
    });
    for (device, uuid) in unused {
        let pvs = groups.iter_mut().flat_map(|vg| &mut vg.pvs);
        pvs.filter(|pv| pv.uuid == uuid).for_each(|pv| pv.duplicate = Some(device.to_owned()));
    }
}

/// LVM says into the middle of its JSON that it reads a damaged device again. Every line of the JSON itself begins with a
/// sign of its own.
fn only_json(out: &str) -> Cow<'_, str> {
    let is_json = |line: &&str| line.trim_start().starts_with(['{', '}', '[', ']', ',', '"']) || line.trim().is_empty();
    match out.lines().all(|line| is_json(&line)) {
        true => Cow::Borrowed(out),
        false => Cow::Owned(out.lines().filter(is_json).flat_map(|line| [line, "\n"]).collect()),
    }
}

/// Reads what `lvm fullreport` writes for [`report`], words between the lines of its JSON included.
///
/// # Errors
/// [`Error::Damaged`] if it is not such a report.
pub fn parse_report(out: &str) -> Result<Vec<Vg>> {
    let json = &*only_json(out);
    #[derive(Deserialize)]
    struct Document<'a> {
        #[serde(borrow)]
        report: Vec<Group<'a>>,
    }
    #[derive(Deserialize)]
    struct Group<'a> {
        #[serde(borrow, default)]
        vg: Vec<VgRow<'a>>,
        #[serde(borrow, default)]
        pv: Vec<PvRow<'a>>,
        #[serde(borrow, default)]
        lv: Vec<LvRow<'a>>,
        #[serde(borrow, default)]
        seg: Vec<SegRow<'a>>,
    }
    #[derive(Deserialize)]
    struct VgRow<'a> {
        vg_name: &'a str,
        vg_size: &'a str,
        vg_free: &'a str,
        vg_extent_size: &'a str,
        vg_tags: &'a str,
        vg_systemid: Cow<'a, str>,
        #[serde(default)]
        vg_seqno: &'a str,
    }
    #[derive(Deserialize)]
    struct PvRow<'a> {
        pv_name: Cow<'a, str>,
        pv_uuid: &'a str,
        pv_size: &'a str,
        pv_missing: &'a str,
        #[serde(default)]
        pe_start: &'a str,
    }
    #[derive(Deserialize)]
    struct LvRow<'a> {
        lv_name: &'a str,
        lv_size: &'a str,
        lv_tags: &'a str,
        lv_attr: &'a str,
        lv_layout: &'a str,
        lv_health_status: &'a str,
        data_percent: &'a str,
        metadata_percent: &'a str,
        lv_metadata_size: &'a str,
        #[serde(default)]
        lv_time: &'a str,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct SegRow<'a> {
        lv_name: &'a str,
        segtype: &'a str,
        seg_start_pe: &'a str,
        seg_size_pe: &'a str,
        seg_pe_ranges: Cow<'a, str>,
    }
    let damaged = |what: String| Error::Damaged { path: PathBuf::from("lvm fullreport"), what };
    let document: Document =
        serde_json::from_str(json).map_err(|e| damaged(format!("its JSON can't be read: {e}; it is {json:.200?}")))?;
    let number =
        |value: &str| value.parse::<u64>().map_err(|_| damaged(format!("it says {value:?} for a number of bytes")));
    let list = |text: &str| text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let mut groups = Vec::with_capacity(document.report.len());
    for group in &document.report {
        let mut vg = Vg::default();
        if let Some(row) = group.vg.first() {
            vg.name = row.vg_name.to_owned();
            vg.size = number(row.vg_size)?;
            vg.free = number(row.vg_free)?;
            vg.extent_size = number(row.vg_extent_size)?.max(1);
            vg.tags = list(row.vg_tags);
            vg.system_id = row.vg_systemid.clone().into_owned();
            vg.version = row.vg_seqno.parse().ok();
        }
        for row in &group.pv {
            vg.pvs.push(Pv {
                name: PathBuf::from(row.pv_name.as_ref()),
                uuid: row.pv_uuid.to_owned(),
                size: number(row.pv_size)?,
                missing: !row.pv_missing.is_empty(),
                duplicate: None,
                first_extent: row.pe_start.parse().unwrap_or(0),
            });
        }
        for row in &group.lv {
            // Characters 2, 5 and 6 of lv_attr: lvs(8), "Lv Attributes".
            let attribute = |n: usize| row.lv_attr.as_bytes().get(n).copied().unwrap_or(b'-');
            // One volume of which LVM tells no size does not hide the others.
            let size = number(row.lv_size);
            vg.lvs.push(Lv {
                name: row.lv_name.to_owned(),
                size: *size.as_ref().unwrap_or(&0),
                tags: list(row.lv_tags),
                active: !matches!(attribute(4), b'-' | b'h' | b'X'),
                stuck: matches!(attribute(4), b's' | b'S' | b'M' | b'C' | b'd' | b'i'),
                // `R` is a writable volume whose device is read-only just now: what it is attached as, not what it is.
                read_only: attribute(1) == b'r',
                open: attribute(5) == b'o',
                layout: list(row.lv_layout),
                health: if size.is_ok() { row.lv_health_status } else { UNREADABLE }.to_owned(),
                data_used: parse_percent(row.data_percent),
                metadata_used: parse_percent(row.metadata_percent),
                metadata_size: number(row.lv_metadata_size).unwrap_or(0),
                created: row.lv_time.parse().ok().filter(|seconds| *seconds > 0),
                segments: Vec::new(),
            });
        }
        let at: HashMap<String, usize> = vg.lvs.iter().enumerate().map(|(n, lv)| (lv.name.clone(), n)).collect();
        for row in &group.seg {
            let (Some(lv), Ok(start), Ok(count)) =
                (at.get(row.lv_name), row.seg_start_pe.parse(), row.seg_size_pe.parse())
            else {
                continue;
            };
            let on = (row.segtype == "linear").then(|| one_range(&row.seg_pe_ranges, count)).flatten();
            vg.lvs[*lv].segments.push(Segment { kind: row.segtype.to_owned(), start, count, on });
        }
        vg.lvs.iter_mut().for_each(|lv| lv.segments.sort_unstable_by_key(|segment| segment.start));
        groups.push(vg);
    }
    Ok(groups)
}

/// `/dev/sdb:3-5`, a range of `count` extents, as the device and its first extent.
fn one_range(words: &str, count: u64) -> Option<(PathBuf, u64)> {
    let (device, range) = words.rsplit_once(':')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    (last.checked_sub(first)?.checked_add(1)? == count).then(|| (PathBuf::from(device), first))
}

/// `4.28` as 428. Nothing for what is not active.
fn parse_percent(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.')?;
    let hundredths = part.get(..2)?.parse::<u64>().ok()?;
    Some(whole.parse::<u64>().ok()?.checked_mul(100)? + hundredths)
}

/// The extents of a volume, in the words that `lvextend` takes: `/dev/sdb:0-2`.
///
/// # Errors
/// [`Error::Tool`] if there is no such volume, or LVM fails; [`Error::Damaged`] if its report cannot be read.
pub fn extents(vg: &str, lv: &str) -> Result<Vec<String>> {
    let out =
        parsed("lvs")?.args(["--reportformat", "json", "-o", "seg_pe_ranges", "--", &format!("{vg}/{lv}")]).run()?;
    parse_extents(&out.stdout)
}

/// How a thin pool gives out its space and takes it back.
pub struct Chunks {
    /// Bytes of each.
    pub size: u64,
    /// Whether those that are discarded are taken back.
    pub discards: bool,
}

/// How the thin pool `pool` of the group `vg` gives out its space.
///
/// # Errors
/// [`Error::Tool`] if there is no such pool, or LVM fails; [`Error::Damaged`] if its answer cannot be read.
pub fn chunks(vg: &str, pool: &str) -> Result<Chunks> {
    let options = ["--noheadings", "--units", "b", "--nosuffix", "-o", "chunk_size,discards", "--"];
    let out = parsed("lvs")?.args(options).arg(format!("{vg}/{pool}")).run()?;
    let mut words = out.stdout.split_whitespace();
    match (words.next().and_then(|size| size.parse().ok()), words.next()) {
        (Some(size), Some(discards)) if size > 0 => Ok(Chunks { size, discards: discards != "ignore" }),
        _ => Err(Error::Damaged {
            path: PathBuf::from("lvs"),
            what: format!("it says of the chunks of {vg}/{pool}: {:?}", out.stdout.trim()),
        }),
    }
}

/// The UUID of each physical volume of the group `vg`, and the size of the device that it is on, bytes; 0 where LVM does not
/// see the device.
///
/// # Errors
/// [`Error::Tool`] if there is no such group, or LVM fails.
pub fn device_sizes(vg: &str) -> Result<Vec<(String, u64)>> {
    let options = ["--noheadings", "--units", "b", "--nosuffix", "-o", "pv_uuid,dev_size", "--"];
    let out = parsed("vgs")?.args(options).arg(vg).run()?;
    let row = |line: &str| {
        let (uuid, size) = line.trim().split_once(char::is_whitespace)?;
        Some((uuid.to_owned(), size.trim().parse().ok()?))
    };
    Ok(out.stdout.lines().filter_map(row).collect())
}

/// Whether the kernel marked the metadata of a thin pool as in need of a check.
///
/// # Errors
/// [`Error::Tool`] if there is no such pool, or LVM fails.
pub fn needs_check(vg: &str, pool: &str) -> Result<bool> {
    let options = ["--noheadings", "-o", "lv_check_needed", "--"];
    let out = parsed("lvs")?.args(options).arg(format!("{vg}/{pool}")).run()?;
    Ok(out.stdout.trim() == "check needed")
}

/// Reads what `lvs` writes for [`extents`], words between the lines of its JSON included.
///
/// # Errors
/// [`Error::Damaged`] if it is not such a report.
pub fn parse_extents(out: &str) -> Result<Vec<String>> {
    let json = &*only_json(out);
    #[derive(Deserialize)]
    struct Document {
        report: Vec<Rows>,
    }
    #[derive(Deserialize)]
    struct Rows {
        seg: Option<Vec<Row>>,
        lv: Option<Vec<Row>>,
    }
    #[derive(Deserialize)]
    struct Row {
        seg_pe_ranges: String,
    }
    let document: Document = serde_json::from_str(json).map_err(|e| Error::Damaged {
        path: PathBuf::from("lvs"),
        what: format!("its JSON can't be read: {e}; it is {json:.200?}"),
    })?;
    let rows = document.report.into_iter().flat_map(|r| r.seg.into_iter().chain(r.lv)).flatten();
    // A colon in the device's own name would end it.
    let range = |words: &str| match words.rsplit_once(':') {
        Some((device, extents)) => format!("{}:{extents}", device.replace(':', "\\:")),
        None => words.to_owned(),
    };
    Ok(rows.flat_map(|r| r.seg_pe_ranges.split_whitespace().map(range).collect::<Vec<_>>()).collect())
}

/// One whose words are read.
pub(super) fn parsed(program: &str) -> Result<Tool> {
    Ok(tool(program)?.usual_args(["--config", &format!("{CONFIG} {PARSED}")]).deadline(DEADLINE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lvm::{parse_signatures, unescape};
    use proptest::prelude::*;

    /// LVM 2.03.16, a thin SR on two devices with an active volume and one that is not.
    const THIN: &str = include_str!("../../../tests/data/lvm/fullreport-thin.json");
    /// LVM 2.03.16, all groups: an empty one, one with a missing device, one without a group.
    const ALL: &str = include_str!("../../../tests/data/lvm/fullreport-all.json");

    #[test]
    fn what_lvm_says_in_the_middle_of_its_json_is_left_out() {
        let json = "  {\n      \"report\": [\n          {\"vg\": []}\n      ]\n  }\n";
        assert!(matches!(only_json(json), Cow::Borrowed(_)));
        let spoiled = json.replace("[\n   ", "[\n  Retrying metadata scan.\n   ");
        assert_ne!(spoiled, json);
        assert_eq!(only_json(&spoiled), json);
    }

    #[test]
    fn a_colon_in_a_devices_name_does_not_end_it() {
        let rows = r#"{"report": [{"seg": [{"seg_pe_ranges": "/dev/mapper/a:1:2-4 /dev/sdb:0-2"}]}]}"#;
        assert_eq!(parse_extents(rows).unwrap(), [r"/dev/mapper/a\:1:2-4", "/dev/sdb:0-2"]);
    }

    #[test]
    fn a_report_is_read_by_column_names() {
        let groups = parse_report(THIN).unwrap();
        let [vg] = groups.as_slice() else { panic!("{groups:?}") };
        assert_eq!(vg.name, "VG_XenStorage-87b8646b-b800-9500-cb7b-af3b74e02f5c");
        assert_eq!((vg.size, vg.extent_size), (1_233_125_376, 4 << 20));
        assert_eq!((vg.tags.as_slice(), vg.version), (&["xcp.allocation=thin".to_owned()][..], Some(12)));
        assert_eq!(vg.pvs.iter().map(|pv| pv.name.to_str().unwrap()).collect::<Vec<_>>(), ["/dev/ubda", "/dev/ubdb"]);
        let pool = vg.lv("POOL").unwrap();
        assert!(pool.is_thin_pool() && pool.active);
        assert_eq!((pool.data_used, pool.metadata_used, pool.metadata_size), (Some(428), Some(1143), 4 << 20));
        let active = vg.lv("LV-a").unwrap();
        assert!(active.active && active.is_thin() && !active.is_thin_pool() && !active.read_only);
        let idle = vg.lv("LV-b").unwrap();
        assert!(!idle.active);
        assert_eq!(idle.data_used, None);
        assert_eq!(idle.tags, ["xcp.label.0=root&20disk", "xcp.read_only"]);
    }

    #[test]
    fn a_report_of_all_groups_has_the_empty_the_broken_and_the_groupless() {
        let groups = parse_report(ALL).unwrap();
        let named = |name: &str| groups.iter().find(|vg| vg.name == name).unwrap();
        assert!(named("empty").lvs.is_empty());
        let broken = named("broken");
        assert_eq!(broken.pvs.iter().map(|pv| pv.missing).collect::<Vec<_>>(), [false, true]);
        assert_eq!(broken.lv("on-missing").unwrap().health, "partial");
        assert_eq!(named("").pvs.len(), 1, "the physical volume without a group");
    }

    #[test]
    fn a_device_that_is_there_twice_is_noticed() {
        let mut groups = parse_report(THIN).unwrap();
        let uuid = groups[0].pvs[1].uuid.clone();
        let words = format!(
            "  WARNING: Not using device /dev/loop0 for PV {uuid}.\n  WARNING: PV {uuid} prefers device /dev/ubdb\n"
        );
        mark_duplicates(&mut groups, &words);
        let found: Vec<_> = groups[0].pvs.iter().map(|pv| pv.duplicate.as_deref()).collect();
        assert_eq!(found, [None, Some("/dev/loop0")]);
    }

    #[test]
    fn an_odd_volume_does_not_hide_the_others() {
        let odd = THIN.replacen("\"lv_size\":\"", "\"lv_size\":\"?", 1);
        assert_ne!(odd, THIN);
        let (groups, whole) = (parse_report(&odd).unwrap(), parse_report(THIN).unwrap());
        assert_eq!(groups[0].lvs.len(), whole[0].lvs.len());
        assert_eq!(groups[0].lvs.iter().filter(|lv| lv.health == UNREADABLE).count(), 1);
    }

    #[test]
    fn a_volume_that_a_killed_command_left_is_seen() {
        for (attributes, stuck) in
            [("Vwi-s-tz-k", true), ("Vwi-d-tz-k", true), ("twi-aotz--", false), ("Vwi---tz-k", false)]
        {
            let row = format!(
                r#"{{"report":[{{"lv":[{{"lv_name":"a","lv_size":"1","lv_tags":"","lv_attr":"{attributes}",
                "lv_layout":"thin","lv_health_status":"","data_percent":"","metadata_percent":"","lv_metadata_size":""}}]}}]}}"#
            );
            assert_eq!(parse_report(&row).unwrap()[0].lvs[0].stuck, stuck, "{attributes}");
        }
    }

    #[test]
    fn the_segments_of_volumes_are_put_in_order() {
        let lv = |name: &str| {
            format!(
                r#"{{"lv_name":"{name}","lv_size":"1","lv_tags":"","lv_attr":"-wi-------","lv_layout":"linear",
                "lv_health_status":"","data_percent":"","metadata_percent":"","lv_metadata_size":""}}"#
            )
        };
        let seg = |name: &str, kind: &str, start: u64, count: u64, on: &str| {
            format!(
                r#"{{"lv_name":"{name}","segtype":"{kind}","seg_start_pe":"{start}","seg_size_pe":"{count}","seg_pe_ranges":"{on}"}}"#
            )
        };
        let segs = [
            seg("a", "linear", 2, 3, "/dev/mapper/b:1:7-9"),
            seg("a", "linear", 0, 2, "/dev/sda:0-1"),
            seg("b", "raid1", 0, 2, "b_rimage_0:0-1 b_rimage_1:0-1"),
            seg("c", "linear", 0, 2, "/dev/sda:5-5"),
            seg("gone", "linear", 0, 1, "/dev/sda:5-5"),
        ];
        let report = format!(
            r#"{{"report":[{{"pv":[{{"pv_name":"/dev/sda","pv_uuid":"u","pv_size":"9","pv_missing":"","pe_start":"1048576"}}],
            "lv":[{},{},{}],"seg":[{}]}}]}}"#,
            lv("a"),
            lv("b"),
            lv("c"),
            segs.join(",")
        );
        let groups = parse_report(&report).unwrap();
        assert_eq!(groups[0].pvs[0].first_extent, 1 << 20);
        let segments = |name: &str| {
            let lv = groups[0].lv(name).unwrap();
            lv.segments.iter().map(|s| (s.start, s.count, s.on.clone())).collect::<Vec<_>>()
        };
        let on = |device: &str, first| Some((PathBuf::from(device), first));
        assert_eq!(segments("a"), [(0, 2, on("/dev/sda", 0)), (2, 3, on("/dev/mapper/b:1", 7))]);
        assert_eq!(
            (segments("b"), groups[0].lv("b").unwrap().segments[0].kind.as_str()),
            (vec![(0, 2, None)], "raid1")
        );
        assert_eq!(segments("c"), [(0, 2, None)], "two extents are not one");
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        for bad in ["", "{", "{}", "[]", r#"{"report":[{"vg":[{"vg_name":"x","vg_size":"1.5g"}]}]}"#] {
            assert!(parse_report(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn extents_are_given_in_the_words_of_lvextend() {
        let json = r#"{"report":[{"seg":[{"seg_pe_ranges":"/dev/ubda:3-5"},{"seg_pe_ranges":"/dev/ubdb:0-0"}]}]}"#;
        assert_eq!(parse_extents(json).unwrap(), ["/dev/ubda:3-5", "/dev/ubdb:0-0"]);
    }

    proptest! {
        #[test]
        fn any_report_is_read_or_refused(at in 0..THIN.len(), bytes in prop::collection::vec(any::<u8>(), 0..8), cut in 0..THIN.len()) {
            let mut report = THIN.as_bytes().to_vec();
            let end = (at + bytes.len()).min(report.len());
            report.splice(at..end, bytes);
            for report in [&report[..], &report[..cut.min(report.len())]] {
                let text = String::from_utf8_lossy(report);
                if let Ok(groups) = parse_report(&only_json(&text)) {
                    for lv in groups.iter().flat_map(|vg| &vg.lvs) {
                        let _ = (lv.is_thin_pool(), unescape(&lv.name));
                    }
                }
                let _ = (parse_extents(&text), parse_signatures(&text));
            }
        }
    }
}
