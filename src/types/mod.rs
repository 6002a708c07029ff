//! The words that every layer shares: UUIDs, device_config, and what is known of an SR and a VDI.
//!
//! Every size is in bytes. The words of callers are parsed once, here, into types that cannot hold a path
//! or an option.

mod finding;
mod format;
mod ids;
mod info;
mod lost;
mod nearest;
mod params;
mod shown;
mod slot;
mod space_use;
mod state;
mod time;

use std::collections::BTreeMap;

pub use self::finding::{Finding, Outcome};
pub use self::format::Format;
pub use self::ids::{LayoutUuid, SrUuid, VdiUuid};
pub use self::info::{Kept, LogAlone, PoolUse, Space, SrInfo, VdiInfo, VdiName};
pub use self::lost::LostRange;
pub use self::nearest::nearest;
pub use self::params::{Names, Params, ParamsChange, seconds_now};
pub use self::shown::{Size, acts_on_terminal, printable, secret_part, shell, shown};
pub use self::slot::{Class, SlotMark};
pub use self::space_use::{Gain, ImageUse, SpaceUse};
pub use self::state::State;
pub use self::time::Utc;

/// A word of a caller that is not what it has to be; the crate's error has a variant with the same fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {expected}")]
pub struct Misread {
    /// The argument that the word stands for: `SR-UUID`.
    pub what: &'static str,
    /// The word.
    pub value: String,
    /// A clause that says what is valid: `expected raw, vhd or qcow2`.
    pub expected: String,
}

/// How a VDI is to be opened. A read-only VDI is attached read-only whatever was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    ReadOnly,
    ReadWrite,
}

/// Whether an idempotent operation had anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Changed,
    Already,
}

/// The `device_config` of a PBD: flat keys and values, under the keys of SMAPIv1 (`location`, `device`,
/// `server`, `serverpath`, …).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceConfig(pub BTreeMap<String, String>);

impl DeviceConfig {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`MissingKey`] for a key that is not there or has no value.
    pub fn require(&self, key: &'static str) -> Result<&str, MissingKey> {
        self.get(key)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| MissingKey { key, given: self.0.keys().cloned().collect::<Vec<_>>().join(" ") })
    }
}

/// A key of device_config that is not there or has no value. The crate's error has a variant with the same fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingKey {
    /// The key that is missing.
    pub key: &'static str,
    /// The keys that are there, with spaces between.
    pub given: String,
}

impl<const N: usize> From<[(&str, &str); N]> for DeviceConfig {
    fn from(pairs: [(&str, &str); N]) -> Self {
        DeviceConfig(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }
}

/// The contents that sr_create may destroy on the devices that it takes. By default sr_create may destroy nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overwrite {
    /// Signatures of filesystems and partition tables, SRs without disks, foreign volume groups without volumes.
    pub contents: bool,
    /// These SRs with every disk in them.
    pub srs: Vec<SrUuid>,
}

impl Overwrite {
    /// Whether nothing may be destroyed.
    pub fn is_nothing(&self) -> bool {
        *self == Overwrite::default()
    }
}

/// A new SR as a caller wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewSr {
    /// Bytes that the SR must have at least. `None`: whatever there is.
    pub size: Option<u64>,
    /// The slot of a layout that the SR is made for, to be written beside its UUID. No word of an agent leads here.
    pub slot: Option<SlotMark>,
}

/// A new VDI as a caller wants it.
#[derive(Clone, Debug)]
pub struct NewVdi {
    pub vdi: VdiUuid,
    /// Bytes; a driver may round it up to what its substrate allocates.
    pub virtual_size: u64,
    /// `None`: the driver's default.
    pub format: Option<Format>,
    pub params: Params,
}

/// Keys of a VDI's `sm_config` that its SR decides: a value to set, `None` to remove.
pub type SmConfig = Vec<(&'static str, Option<String>)>;
