//! The small files of an SR's directory: what stands in them.
//!
//! Each is one s-expression, `(sr (uuid . "…") …)`; its first word says which record it is.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::layout::{CHANGE, DELETING, LOCK, MARKER, NAMES, PARAMS, beside};
use crate::error::{Error, Result};
use crate::sys::durable::Dir;
use crate::sys::register;
use crate::types::{Names, Params, SlotMark, SrUuid, VdiUuid};
use crate::vdi::Holders;
use crate::vdi::tree::change::Change;

/// Says which SR a directory is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename = "sr")]
pub(super) struct Marker {
    pub(super) uuid: SrUuid,
    #[serde(rename = "type")]
    pub(super) sr_type: String,
    /// sr_create made the directory, so sr_delete removes it.
    #[serde(default)]
    pub(super) made_directory: bool,
    /// The slot of a layout that sr_create made the SR for, as [`SlotMark`] writes it; empty if there is none. A slot of a form that
    /// this release does not know makes no marker unreadable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) slot: String,
    /// It was found under [`DELETING`].
    #[serde(skip)]
    pub(super) deleting: bool,
}

impl Marker {
    pub(super) fn slot(&self) -> Option<SlotMark> {
        self.slot.parse().ok()
    }
}

/// The record of [`MARKER`] and [`DELETING`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SrRecord {
    Sr(Marker),
}

/// The record beside a disk: its params.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum VdiRecord {
    Vdi(Params),
}

/// The record of [`NAMES`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NamesRecord {
    Names(Names),
}

/// The record in the register of a persistent lock: its holders.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LockRecord {
    Lock { users: Vec<String> },
}

/// The marker of a directory, if it has one.
///
/// # Errors
/// [`Error::Damaged`] if it cannot be read.
pub(super) fn read_marker(dir: &Dir) -> Result<Option<Marker>> {
    for (name, deleting) in [(MARKER, false), (DELETING, true)] {
        if let Some(bytes) = dir.read(name)? {
            let SrRecord::Sr(marker) = decode(&bytes).ok_or_else(|| damaged_record(dir, name))?;
            return Ok(Some(Marker { deleting, ..marker }));
        }
    }
    Ok(None)
}

/// The names of the SR, or none if none are stored.
///
/// # Errors
/// [`Error::Damaged`] if the record cannot be read; [`Error::Io`].
pub(super) fn read_names(dir: &Dir) -> Result<Names> {
    let Some(bytes) = dir.read(NAMES)? else { return Ok(Names::default()) };
    let NamesRecord::Names(names) = decode(&bytes).ok_or_else(|| damaged_record(dir, NAMES))?;
    Ok(names)
}

/// The params that are stored beside the image of a disk, or the defaults if none are stored.
///
/// # Errors
/// [`Error::Damaged`] if the record cannot be read; [`Error::Io`].
pub(super) fn read_params(dir: &Dir, vdi: VdiUuid) -> Result<Params> {
    let name = beside(vdi, PARAMS);
    let Some(bytes) = dir.read(&name)? else { return Ok(Params::default()) };
    let VdiRecord::Vdi(params) = decode(&bytes).ok_or_else(|| damaged_record(dir, &name))?;
    Ok(params)
}

/// The params that are stored beside the image of a disk, if a text of them may have `word` in it. `None`: no text has,
/// or nothing is stored.
///
/// # Errors
/// As [`read_params`].
pub(super) fn read_params_with(dir: &Dir, vdi: VdiUuid, word: &str) -> Result<Option<Params>> {
    let name = beside(vdi, PARAMS);
    let Some(bytes) = dir.read(&name)? else { return Ok(None) };
    // Such a word stands in a record as it is.
    let is_plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    if is_plain && !bytes.windows(word.len()).any(|part| part == word.as_bytes()) {
        return Ok(None);
    }
    let VdiRecord::Vdi(params) = decode(&bytes).ok_or_else(|| damaged_record(dir, &name))?;
    Ok(Some(params))
}

/// The holders of the persistent lock of a disk.
///
/// # Errors
/// [`Error::Damaged`] if the record cannot be read; [`Error::Io`].
pub(super) fn read_holders(dir: &Dir, vdi: VdiUuid) -> Result<Holders> {
    let name = beside(vdi, LOCK);
    let state = register::read(dir, &name)?;
    if state.number == 0 {
        return Ok(Holders::default());
    }
    let LockRecord::Lock { users } = decode(&state.bytes).ok_or_else(|| damaged_record(dir, &name))?;
    Ok(Holders { state: state.number, users })
}

/// The change of a tree that is under way, or was when its call was killed.
///
/// # Errors
/// [`Error::Damaged`] if the record cannot be read.
pub(super) fn read_change(dir: &Dir) -> Result<Option<Change>> {
    let Some(bytes) = dir.read(CHANGE)? else { return Ok(None) };
    decode(&bytes).ok_or_else(|| damaged_record(dir, CHANGE)).map(Some)
}

/// Says that a record cannot be read, or is where none should be.
pub(super) fn damaged_record(dir: &Dir, name: &str) -> Error {
    Error::Damaged {
        path: dir.join(name),
        what: "is not a record of this program; restore it or move it away".to_owned(),
    }
}

/// The bytes of a record.
pub(super) fn encode(record: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_lexpr::to_vec(record).expect("a record is plain data");
    bytes.push(b'\n');
    bytes
}

/// Reads a record. `None`: it is not one of this kind.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    // The parser recurses once per quote sign. The records that we write have strings, words and pairs.
    let mut quoted = false;
    let mut escaped = false;
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted || byte.is_ascii_alphanumeric() || b"()#._- \t\r\n".contains(byte) => {}
            _ => return None,
        }
    }
    serde_lexpr::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Format, VdiUuid};

    /// The records of earlier releases stay readable: the bytes are part of the format of an SR.
    #[test]
    fn a_marker_says_the_slot_of_its_sr_and_those_of_other_releases_are_read() {
        let marker = |text: &str| match decode(text.as_bytes()) {
            Some(SrRecord::Sr(marker)) => marker,
            None => panic!("{text}"),
        };
        let sr = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
        let earlier = format!("(sr (uuid . \"{sr}\") (type . \"file\") (made_directory . #t))\n");
        assert_eq!(marker(&earlier).slot(), None);
        assert_eq!(String::from_utf8(encode(&SrRecord::Sr(marker(&earlier)))).unwrap(), earlier);
        let later = earlier.replace("(made", "(colour (shade . 3)) (made");
        assert!(marker(&later).made_directory);
        let slot: SlotMark = "6ba7b810-9dad-11d1-80b4-00c04fd430c8/file/3".parse().unwrap();
        let marked =
            String::from_utf8(encode(&SrRecord::Sr(Marker { slot: slot.to_string(), ..marker(&earlier) }))).unwrap();
        let written = "(slot . \"6ba7b810-9dad-11d1-80b4-00c04fd430c8/file/3\")";
        assert_eq!(marked, earlier.replace("#t)", &format!("#t) {written}")));
        assert_eq!(marker(&marked).slot(), Some(slot));
        assert_eq!(marker(&marked.replace("/file/", "/tape/")).slot(), None);
    }

    #[test]
    fn a_record_is_read_as_it_is_written_and_is_no_other() {
        let vdi: VdiUuid = "98de866e-b035-4b1a-a571-613bff542b89".parse().unwrap();
        let change = Change::Fork { vdi, base: vdi, dest: Some(vdi), format: Format::Vhd };
        let bytes = encode(&change);
        let u = vdi.to_string();
        let written = format!("(fork (vdi . \"{u}\") (base . \"{u}\") (dest \"{u}\") (format . \"vhd\"))\n");
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), written);
        assert_eq!(decode::<Change>(&bytes), Some(change));
        for change in [
            Change::Fork { vdi, base: vdi, dest: None, format: Format::Qcow2 },
            Change::Relink { vdi, base: vdi, format: Format::Vhd, between: vec![vdi, vdi] },
            Change::Collapse { vdi, base: vdi, format: Format::Vhd, between: Vec::new() },
            Change::Merges {
                of: vec![
                    Change::Relink { vdi, base: vdi, format: Format::Vhd, between: vec![vdi] },
                    Change::Collapse { vdi, base: vdi, format: Format::Qcow2, between: Vec::new() },
                ],
            },
            Change::Compose { vdi, base: vdi, format: Format::Qcow2 },
        ] {
            assert_eq!(decode::<Change>(&encode(&change)), Some(change));
        }
        // As earlier releases wrote it.
        let relink = format!("(relink (vdi . \"{u}\") (base . \"{u}\") (format . \"vhd\"))\n");
        let same = Change::Relink { vdi, base: vdi, format: Format::Vhd, between: Vec::new() };
        assert_eq!(decode::<Change>(relink.as_bytes()), Some(same.clone()));
        assert_eq!(String::from_utf8(encode(&same)).unwrap(), relink);
        assert!(decode::<VdiRecord>(&bytes).is_none() && decode::<SrRecord>(&bytes).is_none());
        let users = vec!["vm \"1\"".to_owned()];
        let lock = encode(&LockRecord::Lock { users: users.clone() });
        assert!(matches!(decode(&lock), Some(LockRecord::Lock { users: read }) if read == users));
        assert!(decode::<Change>(&lock).is_none());
        assert!(decode::<Change>(&b"'".repeat(100_000)).is_none());
    }
}
