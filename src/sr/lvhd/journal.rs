//! Journals: volumes by which the Python drivers record a change before they begin it, so that the SR's master can end it.
//!
//! The name is `<type>_<vdi>_<value>`. A value that would make the name of the device too long is in the volume's first
//! sector, after its length in decimal digits and a space, and the name ends in `_1`: always so of `clone` and `leaf`, never of the
//! other types (`journaler.py`, `lvutil.py` of the Python storage managers). The journal of a VHD that changes its size is a volume
//! `jvhd_<vdi>`.

use crate::types::VdiUuid;

/// A change that was begun, and not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    pub vdi: VdiUuid,
    pub change: Change,
}

/// What was begun of a VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its volume is made larger; it had so many bytes.
    Inflate(u64),
    /// Its raw volume was made larger, and holds zeroes up to this byte only.
    Zero(u64),
    /// Its image becomes the base of two: itself, and another VDI if there is one. `None`: the record cannot be read.
    Clone(Option<Cloned>),
    /// It gets its parent's place. `None`: the record cannot be read.
    Leaf(Option<VdiUuid>),
    /// Its data is written into its parent.
    Coalesce,
    /// Its children are given to its parent.
    Relink,
    /// The size of its VHD changes.
    Resize,
}

/// The VDIs of a [`Change::Clone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cloned {
    pub base: VdiUuid,
    pub copy: Option<VdiUuid>,
}

/// Bytes of a record.
pub const RECORD: usize = 512;

/// The type of a journal that has no record yet: it means nothing to anybody.
const UNWRITTEN: &str = "NEW";

/// The name of a journal whose record is being written. The Python drivers take it for one of a type that they do not know.
pub fn unwritten(vdi: VdiUuid) -> String {
    format!("{UNWRITTEN}_{vdi}_1")
}

/// Whether a volume is a journal whose record was not written.
pub fn is_unwritten(name: &str) -> bool {
    let parts = name.strip_prefix(UNWRITTEN).and_then(|rest| rest.strip_prefix('_')?.strip_suffix("_1"));
    parts.is_some_and(|vdi| vdi.parse::<VdiUuid>().is_ok())
}

impl Journal {
    /// Reads the name of a volume. `record`: the first bytes of the volume, which are asked for if the value stands there.
    /// `None`: it is no journal.
    pub fn parse(name: &str, record: impl FnOnce() -> Option<[u8; RECORD]>) -> Option<Journal> {
        let (kind, rest) = name.split_once('_')?;
        let (vdi, value) = rest.split_once('_').map_or((rest, None), |(vdi, value)| (vdi, Some(value)));
        let vdi = vdi.parse().ok()?;
        let bytes = || value?.parse().ok();
        let change = match (kind, value) {
            ("jvhd", None) => Change::Resize,
            ("inflate", Some(_)) => Change::Inflate(bytes()?),
            ("zero", Some(_)) => Change::Zero(bytes()?),
            ("coalesce", Some(_)) => Change::Coalesce,
            ("relink", Some(_)) => Change::Relink,
            // VDIs that are one and the same are those of no change: to end it would remove the disk.
            ("clone", Some(_)) => {
                let told = record().as_ref().and_then(value_of).and_then(cloned);
                let is_one = |of: &Cloned| of.base != vdi && of.copy.is_none_or(|copy| copy != of.base && copy != vdi);
                Change::Clone(told.filter(is_one))
            }
            ("leaf", Some(_)) => {
                let told = record().as_ref().and_then(value_of).and_then(|uuid| uuid.parse().ok());
                Change::Leaf(told.filter(|parent| *parent != vdi))
            }
            _ => return None,
        };
        Some(Journal { vdi, change })
    }

    /// The name of its volume.
    pub fn name(&self) -> String {
        let vdi = self.vdi;
        match &self.change {
            Change::Inflate(bytes) => format!("inflate_{vdi}_{bytes}"),
            Change::Zero(from) => format!("zero_{vdi}_{from}"),
            Change::Clone(_) => format!("clone_{vdi}_1"),
            Change::Leaf(_) => format!("leaf_{vdi}_1"),
            Change::Coalesce => format!("coalesce_{vdi}_1"),
            Change::Relink => format!("relink_{vdi}_1"),
            Change::Resize => format!("jvhd_{vdi}"),
        }
    }

    /// The record in its volume. `None`: its name says all.
    pub fn record(&self) -> Option<[u8; RECORD]> {
        let value = match &self.change {
            Change::Clone(Some(Cloned { base, copy })) => {
                format!("{base}_{}", copy.map(|copy| copy.to_string()).unwrap_or_default())
            }
            Change::Leaf(Some(parent)) => parent.to_string(),
            _ => return None,
        };
        let (mut record, text) = ([b' '; RECORD], format!("{} {value}", value.len()));
        record[..text.len()].copy_from_slice(text.as_bytes());
        Some(record)
    }

    /// The change in words: a clause about the VDI.
    pub fn what(&self) -> String {
        match &self.change {
            Change::Inflate(bytes) => format!("its volume of {bytes} bytes is being made larger"),
            Change::Zero(from) => format!("its volume was made larger, and is to be zeroed from byte {from} on"),
            Change::Clone(Some(Cloned { base, copy: Some(copy) })) => {
                format!("it is being cloned as VDI {copy}, with the base {base}")
            }
            Change::Clone(Some(Cloned { base, copy: None })) => format!("its image becomes the base {base}"),
            Change::Clone(None) => "it is being cloned, and the record of that cannot be read".to_owned(),
            Change::Leaf(Some(parent)) => format!("it is being merged into its parent {parent}"),
            Change::Leaf(None) => {
                "it is being merged into its parent, and the record of that cannot be read".to_owned()
            }
            Change::Coalesce => "its data is being written into its parent".to_owned(),
            Change::Relink => "its children are being given to its parent".to_owned(),
            Change::Resize => "the size of its VHD is being changed".to_owned(),
        }
    }
}

/// The value in a record: so many characters after the number and the space.
fn value_of(record: &[u8; RECORD]) -> Option<&str> {
    let space = record.iter().position(|byte| *byte == b' ')?;
    let (length, rest) = (std::str::from_utf8(&record[..space]).ok()?, &record[space + 1..]);
    std::str::from_utf8(rest.get(..length.parse().ok()?)?).ok()
}

fn cloned(value: &str) -> Option<Cloned> {
    let (base, copy) = value.split_once('_')?;
    let copy = if copy.is_empty() { None } else { Some(copy.parse().ok()?) };
    Some(Cloned { base: base.parse().ok()?, copy })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VDI: &str = "98de866e-b035-4b1a-a571-613bff542b89";
    const BASE: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";

    fn record(text: &str) -> [u8; RECORD] {
        let mut bytes = [b' '; RECORD];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        bytes
    }

    fn read(name: &str, text: &str) -> Option<Change> {
        let journal = Journal::parse(name, || Some(record(text)))?;
        assert_eq!(journal.vdi.to_string(), VDI);
        Some(journal.change)
    }

    #[test]
    fn every_type_of_journal_is_read() {
        let (vdi, base) = (VDI.parse().unwrap(), BASE.parse().unwrap());
        const COPY: &str = "5d3e1a56-0b53-4b5a-9a0c-2f6f6a3c7e11";
        let both = format!("73 {BASE}_{COPY}");
        for (name, text, wanted) in [
            (format!("inflate_{VDI}_8388608"), "", Change::Inflate(8 << 20)),
            (format!("zero_{VDI}_4194304"), "", Change::Zero(4 << 20)),
            (format!("coalesce_{VDI}_1"), "", Change::Coalesce),
            (format!("relink_{VDI}_1"), "", Change::Relink),
            (format!("jvhd_{VDI}"), "", Change::Resize),
            (format!("clone_{VDI}_1"), both.as_str(), Change::Clone(Some(Cloned { base, copy: COPY.parse().ok() }))),
            (format!("clone_{VDI}_1"), &format!("37 {BASE}_"), Change::Clone(Some(Cloned { base, copy: None }))),
            (format!("leaf_{VDI}_1"), &format!("36 {BASE}"), Change::Leaf(Some(base))),
        ] {
            assert_eq!(read(&name, text), Some(wanted.clone()), "{name} {text}");
            let journal = Journal { vdi, change: wanted };
            assert_eq!(journal.name(), name);
            assert_eq!(journal.record().unwrap_or_else(|| record("")), record(text), "{name} {text}");
        }
    }

    #[test]
    fn a_journal_that_was_not_written_is_no_journal() {
        let name = unwritten(VDI.parse().unwrap());
        assert!(is_unwritten(&name) && Journal::parse(&name, || None).is_none());
        for other in ["NEW", "NEW_x_1", &format!("NEW-{VDI}"), &format!("clone_{VDI}_1"), &format!("NEW_{VDI}")] {
            assert!(!is_unwritten(other), "{other}");
        }
    }

    #[test]
    fn a_record_that_makes_no_sense_is_a_journal_all_the_same() {
        for text in ["", "x", "36", "36 ", "-1 x", "99999999999999999999 x", "600 x", &format!("35 {BASE}"), "0 "] {
            assert_eq!(read(&format!("leaf_{VDI}_1"), text), Some(Change::Leaf(None)), "{text:?}");
            assert_eq!(read(&format!("clone_{VDI}_1"), text), Some(Change::Clone(None)), "{text:?}");
        }
        assert_eq!(Journal::parse(&format!("leaf_{VDI}_1"), || None).unwrap().change, Change::Leaf(None));
        for (base, copy) in [(VDI, VDI), (VDI, ""), (VDI, BASE), (BASE, VDI), (BASE, BASE)] {
            let value = format!("{base}_{copy}");
            let change = read(&format!("clone_{VDI}_1"), &format!("{} {value}", value.len()));
            assert_eq!(change, Some(Change::Clone(None)), "{value}");
        }
        assert_eq!(read(&format!("leaf_{VDI}_1"), &format!("36 {VDI}")), Some(Change::Leaf(None)));
        let mut odd = record(&format!("36 {BASE}"));
        odd[5] = 0xff;
        assert_eq!(Journal::parse(&format!("leaf_{VDI}_1"), || Some(odd)).unwrap().change, Change::Leaf(None));
    }

    #[test]
    fn other_volumes_are_no_journals() {
        for other in [
            "",
            "_",
            "MGT",
            &format!("VHD-{VDI}"),
            &format!("inflate_{VDI}"),
            &format!("inflate_{VDI}_x"),
            &format!("inflate_{VDI}_-1"),
            "inflate_x_1",
            &format!("jvhd_{VDI}_1"),
            &format!("other_{VDI}_1"),
            &format!("{VDI}_trim_lv"),
        ] {
            assert_eq!(Journal::parse(other, || None), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_record_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), RECORD), length in "[0-9]{0,4}") {
            let mut record: [u8; RECORD] = bytes.try_into().unwrap();
            let _ = value_of(&record).and_then(cloned);
            record[..length.len()].copy_from_slice(length.as_bytes());
            record[length.len()] = b' ';
            let _ = value_of(&record).and_then(cloned);
        }
    }
}
