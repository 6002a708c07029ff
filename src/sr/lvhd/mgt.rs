//! The volume `MGT`: the names and the origin of each VDI, as the Python drivers keep them (`srmetadata.py`, version 1.2).
//!
//! Text in sectors of 512 bytes, padded with spaces; a sector that was never written may hold zeroes.
//!
//! | sector | content |
//! |---|---|
//! | 0 | `XSSM:<bytes in use>:1:2`, the number in 10 characters |
//! | 1 | `<uuid>` of the SR, `<allocation>` |
//! | 2, 3 | `<name_label>`, `<name_description>` of the SR |
//! | 4 + 2k, 5 + 2k | `<vdi>` … `</vdi>`, one VDI: names, `<uuid>`, `<is_a_snapshot>`, `<snapshot_of>`, `<snapshot_time>`, `<deleted>`, … |
//!
//! A record is two sectors that no checksum guards, so one may be torn. It is left out then, and counted; the others are read.
//! The text is read here and not by an XML parser: a writer cuts names at a number of bytes, also within `&amp;`, and what is
//! left is still of use. There are no attributes, no declarations of types and no elements within the elements of a record.

pub mod write;

use std::collections::HashMap;

use crate::types::{Format, Kept, Names, Params, Utc, VdiUuid};

/// The kind of a disk that an agent has for nothing in particular.
const USER: &str = "user";
/// Bytes.
pub const SECTOR: usize = 512;
/// Bytes before the first record of a VDI.
const FIRST_RECORD: usize = 4 * SECTOR;
/// Bytes of a record.
const RECORD: usize = 2 * SECTOR;
/// Bytes that are read at most: a volume of 4 MiB, as the Python drivers make it, is not the most that it may be made by hand.
pub const LONGEST: u64 = 64 << 20;

/// How many bytes are in use, as the first sector says. `None`: it is no such sector, or of another version.
pub fn in_use(first: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(first.get(..SECTOR)?).ok()?;
    let mut fields = text.trim_matches(['\0', ' ']).split(':');
    let mut next = || fields.next().map(str::trim);
    let (magic, length, major, minor) = (next()?, next()?, next()?, next()?);
    ((magic, major, minor) == ("XSSM", "1", "2")).then_some(())?;
    length.parse().ok()
}

/// The word that the Python drivers have for a format.
pub fn vdi_type(format: Format) -> &'static str {
    if format == Format::Raw { "aio" } else { format.word() }
}

/// The records of an SR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// `thin` or `thick`.
    pub allocation: String,
    pub label: String,
    pub description: String,
    pub vdis: HashMap<VdiUuid, Record>,
    /// Records of which nothing can be told.
    pub unreadable: usize,
}

/// The facts that are kept of a VDI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub params: Params,
    /// `vhd`, `qcow2`, or `aio` for a raw volume.
    pub vdi_type: String,
}

impl Records {
    /// Reads the bytes that are in use.
    pub fn parse(bytes: &[u8]) -> Records {
        let sector =
            |n: usize| elements(&text(bytes.get(n * SECTOR..).unwrap_or_default().get(..SECTOR).unwrap_or(&[])));
        let (own, names, descriptions) = (sector(1), sector(2), sector(3));
        let mut records = Records {
            allocation: value(&own, "allocation"),
            label: value(&names, "name_label"),
            description: value(&descriptions, "name_description"),
            ..Records::default()
        };
        for record in bytes.get(FIRST_RECORD..).unwrap_or_default().chunks(RECORD) {
            let elements = elements(&text(record));
            if value(&elements, "deleted") == "1" {
                continue;
            }
            match value(&elements, "uuid").parse() {
                Ok(vdi) => drop(records.vdis.insert(vdi, Record::of(&elements))),
                Err(_) => records.unreadable += 1,
            }
        }
        records
    }

    /// What the SR says of itself.
    pub fn kept(&self) -> Kept {
        let names = Names { label: self.label.clone(), description: self.description.clone() };
        Kept { names, is_thin: self.allocation == "thin" }
    }
}

impl Record {
    fn of(elements: &[(String, String)]) -> Record {
        let is = |name: &str| value(elements, name) == "1";
        let is_snapshot = is("is_a_snapshot");
        let params = Params {
            label: value(elements, "name_label"),
            description: value(elements, "name_description"),
            shareable: false,
            // A snapshot stays what it is; the Python drivers let an agent decide who writes to one.
            read_only: is("read_only") || is_snapshot,
            snapshot_of: Some(value(elements, "snapshot_of"))
                .filter(|_| is_snapshot)
                .and_then(|uuid| uuid.parse().ok()),
            created: Some(value(elements, "snapshot_time")).filter(|_| is_snapshot).and_then(|time| seconds(&time)),
            kind: Some(value(elements, "type")).filter(|kind| kind != USER).unwrap_or_default(),
            ..Params::default()
        };
        Record { params, vdi_type: value(elements, "vdi_type") }
    }
}

/// The text of sectors: what is not UTF-8 shows as U+FFFD, so that one damaged name costs no more than itself.
fn text(bytes: &[u8]) -> String {
    let bytes: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The elements that hold text alone, in their order.
fn elements(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('<') {
        let Some((name, content)) = after.split_once('>') else { break };
        rest = content;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let Some((inner, after)) = content.split_once('<').filter(|_| is_name) else { continue };
        if after.strip_prefix('/').and_then(|end| end.strip_prefix(name)).is_some_and(|end| end.starts_with('>')) {
            found.push((name.to_owned(), unescape(inner)));
            rest = after;
        }
    }
    found
}

fn value(elements: &[(String, String)], name: &str) -> String {
    elements.iter().find(|(found, _)| found == name).map(|(_, text)| text.clone()).unwrap_or_default()
}

/// The characters that XML predefines; anything else after `&` is what it is.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let known = [("amp;", '&'), ("lt;", '<'), ("gt;", '>'), ("quot;", '"'), ("apos;", '\'')];
        let found = known.into_iter().find_map(|(name, c)| Some((c, after.strip_prefix(name)?)));
        out.push(found.map_or('&', |(c, _)| c));
        rest = found.map_or(after, |(_, rest)| rest);
    }
    out + rest
}

/// `20200101T00:00:00Z` in seconds since 1970-01-01 UTC.
fn seconds(time: &str) -> Option<u64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let number = |text: Option<&str>, least: u64, most: u64| {
        text?.parse::<u64>().ok().filter(|number| (least..=most).contains(number))
    };
    let (year, month, day) =
        (number(date.get(..4), 1970, 9999)?, number(date.get(4..6), 1, 12)?, number(date.get(6..), 1, 31)?);
    let mut parts = clock.split(':');
    let (hour, minute, second) =
        (number(parts.next(), 0, 23)?, number(parts.next(), 0, 59)?, number(parts.next(), 0, 60)?);
    Some(Utc::of_date(year, month, day).0 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VDI: &str = "98de866e-b035-4b1a-a571-613bff542b89";
    const DISK: &str = "7e57ab1e-0000-4000-8000-00000000000a";

    fn padded(text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(SECTOR), b' ');
        bytes
    }

    /// An SR with these records, two sectors each.
    fn sr(records: &[[&str; 2]]) -> Vec<u8> {
        let length = FIRST_RECORD + records.len() * RECORD;
        let mut bytes = padded(&format!("XSSM:{length:<10}:1:2"));
        bytes.extend(padded("<?xml version=\"1.0\" ?><uuid>u</uuid><allocation>thin</allocation>"));
        bytes.extend(padded("<name_label>the &lt;SR&gt;</name_label>"));
        bytes.extend(padded("<name_description></name_description>"));
        for sectors in records {
            sectors.iter().for_each(|sector| bytes.extend(padded(sector)));
        }
        bytes
    }

    fn second(uuid: &str, more: &str) -> String {
        format!("<uuid>{uuid}</uuid><type>user</type><vdi_type>vhd</vdi_type>{more}</vdi>")
    }

    #[test]
    fn the_records_of_an_sr_are_read() {
        let first = "<vdi><name_label>a &amp; b é</name_label><name_description>d</name_description>";
        let more = format!(
            "<is_a_snapshot>1</is_a_snapshot><snapshot_of>{DISK}</snapshot_of><snapshot_time>20200101T00:00:01Z</snapshot_time>\
             <read_only>0</read_only><metadata_of_pool></metadata_of_pool><unknown>x</unknown><deleted>0</deleted>"
        );
        let bytes = sr(&[[first, &second(VDI, &more)]]);
        assert_eq!(in_use(&bytes), Some(bytes.len() as u64));
        let records = Records::parse(&bytes);
        assert_eq!((records.allocation.as_str(), records.label.as_str(), records.unreadable), ("thin", "the <SR>", 0));
        let record = &records.vdis[&VDI.parse().unwrap()];
        assert_eq!((record.params.kind.as_str(), record.vdi_type.as_str()), ("", "vhd"));
        let wanted = Params {
            label: "a & b é".to_owned(),
            description: "d".to_owned(),
            shareable: false,
            read_only: true,
            snapshot_of: Some(DISK.parse().unwrap()),
            created: Some(1_577_836_801),
            ..Params::default()
        };
        assert_eq!(record.params, wanted);
    }

    #[test]
    fn a_fresh_snapshot_has_no_time_and_a_disk_is_no_snapshot() {
        let first = "<vdi><name_label></name_label><name_description></name_description>";
        let more =
            format!("<is_a_snapshot>0</is_a_snapshot><snapshot_of>{DISK}</snapshot_of><snapshot_time></snapshot_time>");
        let records = Records::parse(&sr(&[[first, &second(VDI, &more)]]));
        assert_eq!(records.vdis[&VDI.parse().unwrap()].params, Params::default());
    }

    #[test]
    fn deleted_records_are_left_out_and_damaged_ones_are_counted() {
        let first = "<vdi><name_label>x</name_label><name_description></name_description>";
        let gone = second(DISK, "<deleted>1</deleted><offset>2048</offset>");
        let bytes = sr(&[[first, &gone], [first, "torn"], [first, &second("no-uuid", "")], [first, &second(VDI, "")]]);
        let records = Records::parse(&bytes);
        assert_eq!((records.vdis.len(), records.unreadable), (1, 2));
        assert!(records.vdis.contains_key(&VDI.parse().unwrap()));
    }

    #[test]
    fn a_name_that_was_cut_within_a_character_is_kept() {
        for (written, read) in [("a &am", "a &am"), ("&", "&"), ("&amp;&", "&&"), ("&#65;&bomb;", "&#65;&bomb;")] {
            let first = format!("<vdi><name_label>{written}</name_label><name_description>d</name_description>");
            let records = Records::parse(&sr(&[[&first, &second(VDI, "")]]));
            let params = &records.vdis[&VDI.parse().unwrap()].params;
            assert_eq!((params.label.as_str(), params.description.as_str()), (read, "d"), "{written}");
        }
    }

    #[test]
    fn what_is_not_utf8_costs_no_more_than_itself() {
        let first = "<vdi><name_label>aXb</name_label><name_description>d</name_description>";
        let mut bytes = sr(&[[first, &second(VDI, "")]]);
        let at = FIRST_RECORD + first.find('X').unwrap();
        bytes[at] = 0xff;
        let records = Records::parse(&bytes);
        assert_eq!(records.vdis[&VDI.parse().unwrap()].params.label, "a\u{fffd}b");
    }

    #[test]
    fn declarations_and_nesting_expand_to_nothing() {
        let bomb = "<!DOCTYPE l [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><vdi><name_label>&b;</name_label>";
        let records = Records::parse(&sr(&[[bomb, &second(VDI, "")]]));
        assert_eq!(records.vdis[&VDI.parse().unwrap()].params.label, "&b;");
        let deep = "<a>".repeat(150);
        let records = Records::parse(&sr(&[[&deep, &second(VDI, "")]]));
        assert_eq!(records.vdis.len(), 1);
    }

    #[test]
    fn a_header_of_another_kind_is_refused() {
        for text in [
            "",
            "XSSM",
            "XSSM:2048",
            "XSSM:2048      :1:3",
            "XSSM:2048      :2:2",
            "YSSM:2048      :1:2",
            "XSSM:-1        :1:2",
            "XSSM:99999999999999999999999:1:2",
        ] {
            assert_eq!(in_use(&padded(&format!("{text} "))), None, "{text}");
        }
        assert_eq!(in_use(b"XSSM:2048      :1:2"), None, "it is cut off");
        assert_eq!(in_use(&padded("XSSM:9999999999:1:2")), Some(9_999_999_999));
        assert_eq!(in_use(&[0xff; SECTOR]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_left_out(
            at in 0..4096usize,
            noise in prop::collection::vec(any::<u8>(), 0..64),
            cut in 0..5000usize,
            tags in "(<|>|/|&|vdi|uuid|;|[0-9a-f]{4}){0,80}",
        ) {
            let first = "<vdi><name_label>x</name_label><name_description></name_description>";
            let good = second(VDI, "");
            let mut bytes = sr(&[[first, &good], [first, &good]]);
            let end = (at + noise.len()).min(bytes.len());
            bytes.splice(at.min(end)..end, noise);
            bytes.extend(tags.as_bytes());
            let _ = (in_use(&bytes), Records::parse(&bytes), Records::parse(&bytes[..cut.min(bytes.len())]));
            let _ = seconds(&tags);
        }
    }
}
