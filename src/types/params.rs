//! The values that are stored of a VDI besides its data.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::VdiUuid;

/// The values that are stored beside a VDI's data, in whichever way the SR keeps them. A default is stored as nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Params {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(skip_serializing_if = "is_false")]
    pub shareable: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// The disk whose contents this one has as a snapshot. `None`: it is no snapshot, or an earlier release made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_of: Option<VdiUuid>,
    /// When the VDI was made, in seconds since 1970-01-01 UTC. `None`: that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<u64>,
    /// What an agent wants to find again with the VDI, under names of its own. It means nothing to this package.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
    /// The disk goes back to what its parent holds each time that its VM starts, so the two are not merged; see
    /// [`crate::vdi::tree::reset`].
    #[serde(skip_serializing_if = "is_false")]
    pub resets: bool,
    /// What an agent has the disk for, in a word of its own, as `suspend` or `metadata`. Empty: a disk of a user.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
}

impl Params {
    /// Bytes of the longest label that is stored with a disk.
    pub const LONGEST_LABEL: usize = 4096;
    /// Bytes of the longest description that is stored with a disk.
    pub const LONGEST_DESCRIPTION: usize = 65536;
    /// The most that [`Params::size_of_keys`] may be. The record has to stay below 1 MiB, also with each byte escaped.
    pub const LONGEST_KEYS: usize = 128 << 10;

    /// Bytes of all keys of an agent and their values together, and 16 for each key.
    pub fn size_of_keys(&self) -> usize {
        self.keys.iter().map(|(key, value)| key.len() + value.len() + 16).sum()
    }

    /// Whether there is more to tell than the time.
    pub fn say_more_than_the_time(&self) -> bool {
        Params { created: None, ..self.clone() } != Params::default()
    }
}

/// The names that an agent's user gave an SR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Names {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// The changes to be made to a VDI's [`Params`]. `None` leaves a value as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParamsChange {
    pub label: Option<String>,
    pub description: Option<String>,
    pub shareable: Option<bool>,
    pub read_only: Option<bool>,
    /// Keys of an agent: a value to set, `None` to remove the key.
    pub keys: BTreeMap<String, Option<String>>,
}

impl ParamsChange {
    /// The params after the change. A snapshot that may be written to is a snapshot no more.
    pub fn of(&self, params: Params) -> Params {
        let Params { label, description, shareable, read_only, snapshot_of, created, mut keys, resets, kind } = params;
        let read_only = self.read_only.unwrap_or(read_only);
        for (key, value) in &self.keys {
            match value {
                Some(value) => drop(keys.insert(key.clone(), value.clone())),
                None => drop(keys.remove(key)),
            }
        }
        Params {
            label: self.label.clone().unwrap_or(label),
            description: self.description.clone().unwrap_or(description),
            shareable: self.shareable.unwrap_or(shareable),
            snapshot_of: snapshot_of.filter(|_| read_only),
            read_only,
            created,
            keys,
            resets,
            kind,
        }
    }
}

/// The time now, in seconds since 1970-01-01 UTC. `None` on a host whose clock stands before that.
pub fn seconds_now() -> Option<u64> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_what_it_does_not_name_and_a_writable_disk_is_no_snapshot() {
        let disk = VdiUuid::random();
        let params = Params {
            label: "a".to_owned(),
            description: "b".to_owned(),
            shareable: true,
            read_only: true,
            snapshot_of: Some(disk),
            created: Some(7),
            keys: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
            resets: true,
            kind: "suspend".to_owned(),
        };
        assert_eq!(ParamsChange::default().of(params.clone()), params);
        let label = ParamsChange { label: Some(String::new()), ..ParamsChange::default() };
        assert_eq!(label.of(params.clone()), Params { label: String::new(), ..params.clone() });
        let writable = ParamsChange { read_only: Some(false), ..ParamsChange::default() };
        let changed = writable.of(params.clone());
        assert_eq!(changed, Params { read_only: false, snapshot_of: None, ..params });
        let again = ParamsChange { read_only: Some(true), ..ParamsChange::default() }.of(changed);
        assert_eq!(again.snapshot_of, None);
    }

    #[test]
    fn keys_are_set_and_removed_one_by_one() {
        let change = |key: &str, value: Option<&str>| ParamsChange {
            keys: BTreeMap::from([(key.to_owned(), value.map(str::to_owned))]),
            ..ParamsChange::default()
        };
        let both = change("b", Some("2")).of(change("a", Some("1")).of(Params::default()));
        assert_eq!(both.keys.len(), 2);
        assert_eq!(change("c", None).of(both.clone()), both);
        let one = change("a", None).of(both);
        assert_eq!(one.keys, BTreeMap::from([("b".to_owned(), "2".to_owned())]));
        assert!(one.say_more_than_the_time());
    }

    #[test]
    fn the_time_alone_is_worth_no_record() {
        let only_time = Params { created: seconds_now(), ..Params::default() };
        assert!(!only_time.say_more_than_the_time() && only_time.created > Some(1_700_000_000));
        assert!(Params { read_only: true, ..only_time }.say_more_than_the_time());
    }
}
