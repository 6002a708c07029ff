//! The values that are stored of a VDI besides its data.

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
}

impl Params {
    /// Bytes of the longest label that is stored with a disk.
    pub const LONGEST_LABEL: usize = 4096;
    /// Bytes of the longest description that is stored with a disk.
    pub const LONGEST_DESCRIPTION: usize = 65536;

    /// Whether there is more to tell than the time.
    pub fn say_more_than_the_time(&self) -> bool {
        Params { created: None, ..self.clone() } != Params::default()
    }
}

/// The changes to be made to a VDI's [`Params`]. `None` leaves a value as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParamsChange {
    pub label: Option<String>,
    pub description: Option<String>,
    pub shareable: Option<bool>,
    pub read_only: Option<bool>,
}

impl ParamsChange {
    /// The params after the change. A snapshot that may be written to is a snapshot no more.
    pub fn of(&self, params: Params) -> Params {
        let Params { label, description, shareable, read_only, snapshot_of, created } = params;
        let read_only = self.read_only.unwrap_or(read_only);
        Params {
            label: self.label.clone().unwrap_or(label),
            description: self.description.clone().unwrap_or(description),
            shareable: self.shareable.unwrap_or(shareable),
            snapshot_of: snapshot_of.filter(|_| read_only),
            read_only,
            created,
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
    fn the_time_alone_is_worth_no_record() {
        let only_time = Params { created: seconds_now(), ..Params::default() };
        assert!(!only_time.say_more_than_the_time() && only_time.created > Some(1_700_000_000));
        assert!(Params { read_only: true, ..only_time }.say_more_than_the_time());
    }
}
