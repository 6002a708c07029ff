//! Changes of `MGT`, as the Python drivers make them: a record is replaced where it is, by one write of its two sectors.
//!
//! | change | writes, in this order |
//! |---|---|
//! | a record is replaced | its two sectors |
//! | a record is added | its two sectors, in the place of the first record that is marked as deleted, else behind the last; then the length |
//! | a record is removed | its two sectors, which mark it as deleted; then, if it was the last, the length |
//!
//! A kill between the two writes leaves a record that the length leaves out, or one that is marked.

use super::{FIRST_RECORD, RECORD, SECTOR, USER, elements, text, value, vdi_type};
use crate::types::{Format, Names, Params, SrUuid, Utc, VdiUuid};

/// Bytes of both names of a VDI that a record has room for, escaped; and of each, if both together are longer.
const LONGEST_NAMES: usize = 445;
const LONGEST_NAME: usize = 222;

/// Bytes that are to be written at once, and where.
pub type Write = (u64, Vec<u8>);

/// The facts of a record that is new.
#[derive(Clone, Copy, Debug)]
pub struct New<'p> {
    pub vdi: VdiUuid,
    pub format: Format,
    pub params: &'p Params,
    /// It is there for its children only.
    pub is_base: bool,
}

/// The bytes of `MGT` that are in use.
pub struct Table<'b> {
    bytes: &'b [u8],
    /// Bytes that there is room for.
    room: u64,
}

/// Why a record cannot be written, as a clause.
pub type Refused = String;

/// The text of an SR without VDIs and without names.
pub fn empty(sr: SrUuid, is_thin: bool) -> Vec<u8> {
    let allocation = if is_thin { "thin" } else { "thick" };
    let own = padded(&format!("<?xml version=\"1.0\" ?><uuid>{sr}</uuid><allocation>{allocation}</allocation>"));
    [Table::header(FIRST_RECORD), own, sectors_of(&Names::default())].concat()
}

/// The two sectors with the names of the SR. A name that is too long for its sector is cut.
fn sectors_of(names: &Names) -> Vec<u8> {
    let element = |tag: &str, name: &str| {
        let most = SECTOR - 2 * tag.len() - "<></>".len();
        padded(&format!("<{tag}>{}</{tag}>", cut_to(&escape(name), most)))
    };
    [element("name_label", &names.label), element("name_description", &names.description)].concat()
}

/// The first sector of a text whose first sector is damaged, by the records that follow. `None`: there are not even the names of the SR.
pub fn counted(bytes: &[u8]) -> Option<Vec<u8>> {
    let names = elements(&text(bytes.get(2 * SECTOR..3 * SECTOR)?));
    names.iter().find(|(name, _)| name == "name_label")?;
    let is_record = |record: &&[u8]| text(record).trim_start().starts_with("<vdi>");
    let records = bytes.get(FIRST_RECORD..)?.chunks_exact(RECORD).take_while(is_record).count();
    Some(Table::header(FIRST_RECORD + records * RECORD))
}

impl<'b> Table<'b> {
    pub fn new(bytes: &'b [u8], room: u64) -> Table<'b> {
        Table { bytes, room }
    }

    /// Each record with its place.
    fn records(&self) -> impl Iterator<Item = (usize, Vec<(String, String)>)> + '_ {
        let all = self.bytes.get(FIRST_RECORD..).unwrap_or_default().chunks_exact(RECORD);
        all.enumerate().map(|(n, bytes)| (FIRST_RECORD + n * RECORD, elements(&text(bytes))))
    }

    fn find(&self, vdi: VdiUuid) -> Option<(usize, Vec<(String, String)>)> {
        self.records().find(|(_, record)| value(record, "uuid").parse() == Ok(vdi) && value(record, "deleted") != "1")
    }

    fn header(length: usize) -> Vec<u8> {
        padded(&format!("XSSM:{length:<10}:1:2"))
    }

    /// Gives the SR itself names, by one write.
    pub fn name(&self, names: &Names) -> Vec<Write> {
        let (at, sectors) = (2 * SECTOR, sectors_of(names));
        if self.bytes.get(at..at + sectors.len()) == Some(&sectors) { Vec::new() } else { vec![(at as u64, sectors)] }
    }

    /// Gives a VDI the names in `params`. A VDI without a record gets one.
    ///
    /// # Errors
    /// Says why there is no room.
    pub fn set(&self, vdi: VdiUuid, format: Format, params: &Params) -> Result<Vec<Write>, Refused> {
        let Some((at, mut record)) = self.find(vdi) else {
            return self.put(&New { vdi, format, params, is_base: false });
        };
        let mut put = |name: &str, value: &str| match record.iter_mut().find(|(found, _)| found == name) {
            Some((_, old)) => value.clone_into(old),
            None => record.push((name.to_owned(), value.to_owned())),
        };
        put("name_label", &params.label);
        put("name_description", &params.description);
        Ok(vec![(at as u64, encode(&record)?)])
    }

    /// Says of a VDI that has a record which format its volume has.
    ///
    /// # Errors
    /// Says why there is no room.
    pub fn retype(&self, vdi: VdiUuid, format: Format) -> Result<Vec<Write>, Refused> {
        let Some((at, mut record)) = self.find(vdi) else { return Ok(Vec::new()) };
        match record.iter_mut().find(|(name, _)| name == "vdi_type") {
            Some((_, said)) => vdi_type(format).clone_into(said),
            None => record.push(("vdi_type".to_owned(), vdi_type(format).to_owned())),
        }
        Ok(vec![(at as u64, encode(&record)?)])
    }

    /// Adds a record, or replaces that of the same VDI.
    ///
    /// # Errors
    /// Says why there is no room.
    pub fn put(&self, new: &New) -> Result<Vec<Write>, Refused> {
        let record = encode(&new.elements())?;
        let reused = self.find(new.vdi).or_else(|| self.records().find(|(_, record)| value(record, "deleted") == "1"));
        if let Some((at, _)) = reused {
            return Ok(vec![(at as u64, record)]);
        }
        let at = self.end();
        let length = at + RECORD;
        if length as u64 > self.room {
            return Err(format!("it has room for {} bytes, and all are in use", self.room));
        }
        Ok(vec![(at as u64, record), (0, Table::header(length))])
    }

    /// Removes the record of a VDI, if there is one.
    ///
    /// # Errors
    /// Says why there is no room for the mark.
    pub fn remove(&self, vdi: VdiUuid) -> Result<Vec<Write>, Refused> {
        let Some((at, mut record)) = self.find(vdi) else { return Ok(Vec::new()) };
        record.retain(|(name, _)| name != "deleted" && name != "offset");
        record.extend([("deleted".to_owned(), "1".to_owned()), ("offset".to_owned(), at.to_string())]);
        let mut writes = vec![(at as u64, encode(&record)?)];
        if at + RECORD == self.end() {
            writes.push((0, Table::header(at)));
        }
        Ok(writes)
    }

    /// Marks each record of which nothing can be told as deleted.
    ///
    /// # Errors
    /// Says why there is no room for the mark.
    pub fn remove_unreadable(&self) -> Result<Vec<Write>, Refused> {
        let is_unreadable = |record: &[(String, String)]| {
            value(record, "deleted") != "1" && value(record, "uuid").parse::<VdiUuid>().is_err()
        };
        let unreadable = self.records().filter(|(_, record)| is_unreadable(record));
        let deleted = |at: usize| {
            let params = Params::default();
            let mut record =
                New { vdi: VdiUuid::random(), format: Format::Vhd, params: &params, is_base: false }.elements();
            record.retain(|(name, _)| name != "deleted");
            record.extend([("deleted".to_owned(), "1".to_owned()), ("offset".to_owned(), at.to_string())]);
            Ok((at as u64, encode(&record)?))
        };
        unreadable.map(|(at, _)| deleted(at)).collect()
    }

    /// The byte behind the last record.
    fn end(&self) -> usize {
        FIRST_RECORD + self.bytes.len().saturating_sub(FIRST_RECORD).div_ceil(RECORD) * RECORD
    }
}

impl New<'_> {
    /// The elements in the order in which the Python drivers write them.
    fn elements(&self) -> Vec<(String, String)> {
        let flag = |is: bool| if is { "1" } else { "0" }.to_owned();
        let snapshot_of = self.params.snapshot_of;
        let time = self.params.created.filter(|_| snapshot_of.is_some());
        let read_only = self.is_base || (self.params.read_only && snapshot_of.is_none());
        [
            ("name_label", self.params.label.clone()),
            ("name_description", self.params.description.clone()),
            ("uuid", self.vdi.to_string()),
            ("is_a_snapshot", flag(snapshot_of.is_some())),
            ("snapshot_of", snapshot_of.map(|vdi| vdi.to_string()).unwrap_or_default()),
            ("snapshot_time", time.map(|time| Utc(time).to_xmlrpc()).unwrap_or_default()),
            ("type", if self.params.kind.is_empty() { USER.to_owned() } else { self.params.kind.clone() }),
            ("vdi_type", vdi_type(self.format).to_owned()),
            ("read_only", flag(read_only)),
            ("managed", flag(!self.is_base)),
            ("metadata_of_pool", String::new()),
            ("deleted", flag(false)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

/// The two sectors of a record.
fn encode(record: &[(String, String)]) -> Result<Vec<u8>, Refused> {
    let (label, description) = (escape(&value(record, "name_label")), escape(&value(record, "name_description")));
    let is_long = label.len() + description.len() > LONGEST_NAMES;
    let cut = |name: &str| if is_long { cut_to(name, LONGEST_NAME).to_owned() } else { name.to_owned() };
    let names = format!(
        "<vdi><name_label>{}</name_label><name_description>{}</name_description>",
        cut(&label),
        cut(&description)
    );
    let is_name = |name: &str| matches!(name, "name_label" | "name_description");
    let rest = record.iter().filter(|(name, _)| !is_name(name));
    let rest: String = rest.map(|(name, value)| format!("<{name}>{}</{name}>", escape(value))).collect();
    let rest = rest + "</vdi>";
    if rest.len() > SECTOR {
        return Err(format!("a record has {SECTOR} bytes for all but names, and {} are needed", rest.len()));
    }
    let mut sectors = padded(&names);
    sectors.extend(padded(&rest));
    Ok(sectors)
}

/// A text that fits a sector, filled up with spaces.
fn padded(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(SECTOR, b' ');
    bytes
}

/// Text as it stands in an element. What XML has no way to write would keep its readers from all records.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\t' | '\n' | '\r' => out.push(c),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// The beginning of an escaped text, of so many bytes at most, that ends with a whole character.
fn cut_to(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    match text[..end].rfind('&') {
        Some(at) if end < text.len() && !text[at..end].contains(';') => &text[..at],
        _ => &text[..end],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Records, in_use};
    use super::*;

    const A: &str = "98de866e-b035-4b1a-a571-613bff542b89";
    const B: &str = "7e57ab1e-0000-4000-8000-00000000000a";
    const ROOM: u64 = 8192;

    fn uuid(text: &str) -> VdiUuid {
        text.parse().unwrap()
    }

    /// An SR without disks.
    fn empty() -> Vec<u8> {
        let mut bytes = Table::header(FIRST_RECORD);
        bytes.extend(padded("<?xml version=\"1.0\" ?><uuid>u</uuid><allocation>thin</allocation>"));
        bytes.extend(padded("<name_label></name_label>"));
        bytes.extend(padded("<name_description></name_description>"));
        bytes.resize(ROOM as usize, 0);
        bytes
    }

    fn used(bytes: &[u8]) -> &[u8] {
        &bytes[..in_use(bytes).unwrap() as usize]
    }

    fn write(bytes: &mut [u8], writes: Vec<Write>) {
        for (at, new) in writes {
            assert!(new.len() == SECTOR || new.len() == RECORD, "whole sectors");
            bytes[at as usize..at as usize + new.len()].copy_from_slice(&new);
        }
    }

    fn put(bytes: &mut [u8], vdi: &str, label: &str) {
        let params = Params { label: label.to_owned(), ..Params::default() };
        let new = New { vdi: uuid(vdi), format: Format::Vhd, params: &params, is_base: false };
        let writes = Table::new(used(bytes), ROOM).put(&new).unwrap();
        write(bytes, writes);
    }

    fn labels(bytes: &[u8]) -> Vec<(String, String)> {
        let records = Records::parse(used(bytes));
        assert_eq!(records.unreadable, 0);
        let mut labels: Vec<_> =
            records.vdis.iter().map(|(vdi, record)| (vdi.to_string(), record.params.label.clone())).collect();
        labels.sort();
        labels
    }

    #[test]
    fn a_new_record_has_the_bytes_of_the_python_drivers() {
        let params = Params {
            label: "a & <b>".to_owned(),
            description: "é".to_owned(),
            read_only: true,
            snapshot_of: Some(uuid(B)),
            created: Some(1_577_836_801),
            shareable: false,
            ..Params::default()
        };
        let new = New { vdi: uuid(A), format: Format::Vhd, params: &params, is_base: false };
        let bytes = empty();
        let writes = Table::new(used(&bytes), ROOM).put(&new).unwrap();
        let [(at, record), (header_at, header)] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!((*at, *header_at), (2048, 0));
        assert_eq!(header, &padded("XSSM:3072      :1:2"));
        let (names, rest) = record.split_at(SECTOR);
        let wanted = "<vdi><name_label>a &amp; &lt;b&gt;</name_label><name_description>é</name_description>";
        assert_eq!(names, padded(wanted));
        let wanted = format!(
            "<uuid>{A}</uuid><is_a_snapshot>1</is_a_snapshot><snapshot_of>{B}</snapshot_of>\
             <snapshot_time>20200101T00:00:01Z</snapshot_time><type>user</type><vdi_type>vhd</vdi_type>\
             <read_only>0</read_only><managed>1</managed><metadata_of_pool></metadata_of_pool><deleted>0</deleted></vdi>"
        );
        assert_eq!(rest, padded(&wanted));
    }

    #[test]
    fn the_sr_has_names_in_the_sectors_of_the_python_drivers_and_the_same_ones_write_nothing() {
        let mut bytes = empty();
        let named = |label: &str| Names { label: label.to_owned(), description: "d & e".to_owned() };
        let writes = Table::new(used(&bytes), ROOM).name(&named("the <SR>"));
        let wanted = ["<name_label>the &lt;SR&gt;</name_label>", "<name_description>d &amp; e</name_description>"];
        assert_eq!(writes, [(1024, wanted.map(padded).concat())]);
        write(&mut bytes, writes);
        assert_eq!(Records::parse(used(&bytes)).kept().names, named("the <SR>"));
        assert_eq!(Table::new(used(&bytes), ROOM).name(&named("the <SR>")), []);
        let writes = Table::new(used(&bytes), ROOM).name(&named(&"&é".repeat(300)));
        assert_eq!(writes[0].1.len(), 2 * SECTOR);
        write(&mut bytes, writes);
        let read = Records::parse(used(&bytes)).kept().names;
        assert_eq!(read, named(&"&é".repeat(69)), "cut to whole characters");
    }

    #[test]
    fn what_an_agent_has_a_disk_for_is_kept() {
        for kind in ["", "suspend"] {
            let params = Params { kind: kind.to_owned(), ..Params::default() };
            let new = New { vdi: uuid(A), format: Format::Vhd, params: &params, is_base: false };
            let mut bytes = empty();
            let writes = Table::new(used(&bytes), ROOM).put(&new).unwrap();
            write(&mut bytes, writes);
            assert_eq!(Records::parse(used(&bytes)).vdis[&uuid(A)].params, params);
        }
    }

    #[test]
    fn records_are_added_and_changed_where_the_python_drivers_do_it() {
        let mut bytes = empty();
        put(&mut bytes, A, "a");
        put(&mut bytes, B, "b");
        assert_eq!(in_use(&bytes), Some(4096));
        let named = |label: &str| Params { label: label.to_owned(), ..Params::default() };
        let writes = Table::new(used(&bytes), ROOM).set(uuid(A), Format::Vhd, &named("new")).unwrap();
        assert_eq!(writes.len(), 1);
        write(&mut bytes, writes);
        assert_eq!(labels(&bytes), [(B.to_owned(), "b".to_owned()), (A.to_owned(), "new".to_owned())]);
        // The place of one that is marked as deleted is used again.
        let mut record = elements(&text(&bytes[2048..3072]));
        record.iter_mut().filter(|(name, _)| name == "deleted").for_each(|(_, is)| "1".clone_into(is));
        bytes[2048..3072].copy_from_slice(&encode(&record).unwrap());
        assert_eq!(labels(&bytes), [(B.to_owned(), "b".to_owned())]);
        put(&mut bytes, A, "again");
        assert_eq!((in_use(&bytes), labels(&bytes).len()), (Some(4096), 2));
        // A call that was killed before the length was written is made again.
        let mut bytes = empty();
        let mut writes = Table::new(used(&bytes), ROOM).set(uuid(B), Format::Vhd, &named("b")).unwrap();
        writes.truncate(1);
        write(&mut bytes, writes);
        assert_eq!(labels(&bytes), []);
        put(&mut bytes, B, "b");
        assert_eq!((in_use(&bytes), labels(&bytes)), (Some(3072), vec![(B.to_owned(), "b".to_owned())]));
        let full = Table::new(used(&bytes), 3072).set(uuid(A), Format::Vhd, &named("a"));
        assert!(full.unwrap_err().contains("room"));
    }

    #[test]
    fn damaged_records_and_a_damaged_first_sector_are_mended() {
        let mut bytes = empty();
        [A, B].iter().for_each(|vdi| put(&mut bytes, vdi, "x"));
        bytes[FIRST_RECORD + SECTOR..FIRST_RECORD + RECORD].fill(0xff);
        assert_eq!(Records::parse(used(&bytes)).unreadable, 1);
        let writes = Table::new(used(&bytes), ROOM).remove_unreadable().unwrap();
        write(&mut bytes, writes);
        assert_eq!(Records::parse(used(&bytes)).unreadable, 0);
        assert_eq!(labels(&bytes), [(B.to_owned(), "x".to_owned())]);
        let good = bytes[..SECTOR].to_vec();
        bytes[..SECTOR].fill(0);
        assert_eq!(counted(&bytes), Some(good));
        bytes[2 * SECTOR..3 * SECTOR].fill(0);
        assert_eq!(counted(&bytes), None);
    }

    #[test]
    fn the_format_in_a_record_follows_the_volume() {
        let mut bytes = empty();
        put(&mut bytes, A, "a");
        let writes = Table::new(used(&bytes), ROOM).retype(uuid(A), Format::Raw).unwrap();
        write(&mut bytes, writes);
        let records = Records::parse(used(&bytes));
        assert_eq!(
            (records.vdis[&uuid(A)].vdi_type.as_str(), records.vdis[&uuid(A)].params.label.as_str()),
            ("aio", "a")
        );
        assert!(Table::new(used(&bytes), ROOM).retype(uuid(B), Format::Raw).unwrap().is_empty());
    }

    #[test]
    fn an_sr_begins_as_the_python_drivers_begin_it() {
        let bytes = super::empty(SrUuid::random(), true);
        assert_eq!((bytes.len(), in_use(&bytes)), (2048, Some(2048)));
        let records = Records::parse(&bytes);
        assert_eq!((records.allocation.as_str(), records.vdis.len(), records.unreadable), ("thin", 0, 0));
        assert!(bytes.starts_with(b"XSSM:2048      :1:2 ") && bytes[1024..].starts_with(b"<name_label></name_label>"));
    }

    #[test]
    fn a_record_is_removed_by_its_mark_and_the_last_one_by_the_length_too() {
        let mut bytes = empty();
        for vdi in [A, B] {
            put(&mut bytes, vdi, "x");
        }
        let remove = |bytes: &mut Vec<u8>, vdi: &str| {
            let writes = Table::new(used(bytes), ROOM).remove(uuid(vdi)).unwrap();
            let count = writes.len();
            write(bytes, writes);
            count
        };
        assert_eq!(remove(&mut bytes, A), 1);
        assert_eq!((in_use(&bytes), labels(&bytes)), (Some(4096), vec![(B.to_owned(), "x".to_owned())]));
        assert!(text(&bytes[2048..3072]).contains("<deleted>1</deleted><offset>2048</offset></vdi>"));
        assert_eq!(remove(&mut bytes, A), 0);
        assert_eq!(remove(&mut bytes, B), 2);
        assert_eq!((in_use(&bytes), labels(&bytes)), (Some(3072), Vec::new()));
        put(&mut bytes, B, "again");
        assert_eq!(labels(&bytes), [(B.to_owned(), "again".to_owned())]);
        assert_eq!(in_use(&bytes), Some(3072), "the place of A");
    }

    #[test]
    fn a_change_of_names_keeps_all_else() {
        let mut bytes = empty();
        put(&mut bytes, A, "a");
        let second = format!(
            "<uuid>{A}</uuid><is_a_snapshot>1</is_a_snapshot><snapshot_of></snapshot_of><unknown>&amp;x</unknown><deleted>0</deleted></vdi>"
        );
        bytes[2048 + SECTOR..2048 + RECORD].copy_from_slice(&padded(&second));
        let set = |bytes: &mut Vec<u8>, params: &Params| {
            let writes = Table::new(used(bytes), ROOM).set(uuid(A), Format::Vhd, params).unwrap();
            write(bytes, writes);
        };
        set(&mut bytes, &Params { label: "n".to_owned(), ..Params::default() });
        assert_eq!(bytes[2048 + SECTOR..2048 + RECORD], padded(&second));
        assert_eq!(labels(&bytes), [(A.to_owned(), "n".to_owned())]);
    }

    #[test]
    fn long_names_are_cut_at_whole_characters() {
        for (label, wanted) in [
            ("x".repeat(445), "x".repeat(445)),
            ("x".repeat(446), "x".repeat(222)),
            ("&".repeat(100), "&".repeat(44)),
            ("é".repeat(300), "é".repeat(111)),
            (format!("{}\u{fffd}", "é".repeat(300)), "é".repeat(111)),
        ] {
            let mut bytes = empty();
            put(&mut bytes, A, &label);
            assert_eq!(labels(&bytes), [(A.to_owned(), wanted)], "{label}");
        }
        let mut bytes = empty();
        put(&mut bytes, A, "a\0b\x1bc\n");
        assert_eq!(labels(&bytes), [(A.to_owned(), "a\u{fffd}b\u{fffd}c\n".to_owned())]);
    }

    proptest! {
        #[test]
        fn any_names_come_back_as_far_as_there_is_room(label in "\\PC{0,40}", description in "\\PC{0,40}") {
            let params = Params { label: label.clone(), description: description.clone(), ..Params::default() };
            let mut bytes = empty();
            let new = New { vdi: uuid(A), format: Format::Qcow2, params: &params, is_base: false };
            let writes = Table::new(used(&bytes), ROOM).put(&new).unwrap();
            write(&mut bytes, writes);
            let records = Records::parse(used(&bytes));
            let record = &records.vdis[&uuid(A)];
            let is_short = escape(&label).len() + escape(&description).len() <= LONGEST_NAMES;
            prop_assert!(!is_short || record.params == params);
            prop_assert_eq!(&record.vdi_type, "qcow2");
        }
    }
}
