//! The words every layer shares: UUIDs, device_config, and what is known of an SR and a VDI.
//!
//! Every size is in bytes. What callers wrote is parsed once, here, into types that cannot hold a path
//! or an option: a UUID is 16 bytes, so it has no `../` and no leading dash.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::error::{self, Error, Result};

macro_rules! uuid_type {
    ($name:ident, $what:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// A new random (version 4) UUID.
            pub fn random() -> Self {
                $name(Uuid::new_v4())
            }
        }

        impl FromStr for $name {
            type Err = Error;

            /// Accepts the hyphenated form of 36 characters only; upper case is folded.
            fn from_str(text: &str) -> Result<Self> {
                let parsed = if text.len() == 36 { Uuid::try_parse(text).ok() } else { None };
                parsed.map($name).ok_or_else(|| Error::Invalid {
                    what: $what,
                    value: text.to_owned(),
                    expected: "expected a UUID such as 87b8646b-b800-9500-cb7b-af3b74e02f5c".to_owned(),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

uuid_type!(SrUuid, "SR-UUID", "The UUID of a storage repository.");
uuid_type!(VdiUuid, "VDI-UUID", "The UUID of a virtual disk; unique within its SR.");

impl VdiUuid {
    /// The UUID of a disk that has a name and no UUID: always the same (version 5) for the same SR and name.
    pub fn of_name(sr: SrUuid, name: &str) -> Self {
        VdiUuid(Uuid::new_v5(&sr.0, name.as_bytes()))
    }
}

/// Bytes in the words of a message: as a SIZE is typed, `20GiB`, where a unit says it exactly; else `1.5GiB (1610612737
/// bytes)`.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        let exact = units.into_iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        let rough = units.into_iter().find(|(_, unit)| self.0 >= *unit);
        match (exact, rough) {
            // 20481MiB says more than 20.0GiB, and 99999999KiB nothing.
            (Some((name, unit)), _) if self.0 / unit < 100_000 => write!(f, "{}{name}", self.0 / unit),
            (_, Some((name, unit))) => write!(f, "{:.1}{name} ({} bytes)", self.0 as f64 / unit as f64, self.0),
            (_, None) => write!(f, "{} bytes", self.0),
        }
    }
}

/// How the bytes of a virtual disk are laid out in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    Raw,
    Vhd,
    Qcow2,
}

// A string, not the symbol that serde-lexpr would make of a variant.
impl Serialize for Format {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Vhd => "vhd",
            Format::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "raw" => Ok(Format::Raw),
            "vhd" => Ok(Format::Vhd),
            "qcow2" => Ok(Format::Qcow2),
            _ => Err(Error::Invalid {
                what: "type",
                value: text.to_owned(),
                expected: "expected raw, vhd or qcow2".to_owned(),
            }),
        }
    }
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

    /// The value of `key`, or an error that names it.
    pub fn require(&self, key: &'static str) -> Result<&str> {
        self.get(key)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Error::MissingKey { key, given: self.0.keys().cloned().collect::<Vec<_>>().join(" ") })
    }
}

/// The part of a device_config value that no message and no log may show, if it has one.
///
/// All of it where the key says so, in whatever case: `password`, `cifspassword`, `chapPassword`, `x_secret`. All mount
/// options if a password may be among them. What follows `%` in a user name, and what stands between `//user:` and `@`,
/// which mount.cifs takes for a password.
pub fn secret_part<'v>(key: &str, value: &'v str) -> Option<&'v str> {
    let (key, lower) = (key.to_ascii_lowercase(), value.to_ascii_lowercase());
    let whole = key.contains("passw") || key.contains("secret");
    let part = if whole || key == "options" && (lower.contains("pass") || lower.contains('%')) {
        Some(value)
    } else if key.contains("user") {
        value.split_once('%').map(|(_, password)| password)
    } else {
        let authority = value.split_once("//").and_then(|(_, rest)| rest.split('/').next());
        authority
            .and_then(|authority| authority.rsplit_once('@'))
            .and_then(|(user, _)| user.split_once(':'))
            .map(|(_, p)| p)
    };
    part.filter(|part| !part.is_empty())
}

/// A device_config value as messages and logs show it: asterisks stand where [`secret_part`] is.
pub fn shown(key: &str, value: &str) -> String {
    match secret_part(key, value) {
        None => value.to_owned(),
        Some(secret) => {
            // It is a slice of the value.
            let at = secret.as_ptr() as usize - value.as_ptr() as usize;
            format!("{}***{}", &value[..at], &value[at + secret.len()..])
        }
    }
}

impl<const N: usize> From<[(&str, &str); N]> for DeviceConfig {
    fn from(pairs: [(&str, &str); N]) -> Self {
        DeviceConfig(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }
}

/// What sr_create may destroy on the devices that it takes. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overwrite {
    /// Everything but an SR with disks: signatures of filesystems and partition tables, foreign volume groups.
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

/// What a caller wants of a new VDI.
#[derive(Clone, Debug)]
pub struct NewVdi {
    pub vdi: VdiUuid,
    /// Bytes; a driver may round it up to what its substrate allocates.
    pub virtual_size: u64,
    /// `None`: the driver's default.
    pub format: Option<Format>,
    pub params: Params,
}

/// What is stored beside a VDI's data, in whichever way the SR keeps it. The default is stored as nothing.
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
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What is known of an SR, read from its substrate now. Written as `(sr (uuid . "…") …)`; SR Driver API
/// v1.0, "Results".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SrInfo {
    pub uuid: SrUuid,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(rename = "VDIs")]
    pub vdi_uuids: Vec<VdiUuid>,
    /// Bytes that the VDIs consume.
    pub physical_utilisation: u64,
    /// Sum of the VDIs' virtual sizes, bytes.
    pub virtual_allocation: u64,
    /// Bytes that the SR has.
    pub size: u64,
    /// Bytes that nothing uses yet. Not part of the SR API v1.0.
    #[serde(skip)]
    pub free: u64,
    #[serde(rename = "type")]
    pub sr_type: String,
    pub location: String,
    /// The thin pool that the VDIs share, if the SR has one and it is active.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bare")]
    pub pool: Option<PoolUse>,
    /// Filled by `sr_scan` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vdis: Vec<Tagged>,
}

impl SrInfo {
    /// The disks that `sr_scan` found.
    pub fn disks(self) -> Vec<VdiInfo> {
        let vdis = self.vdis.into_iter();
        vdis.filter_map(|tagged| if let Tagged::Vdi(info) = tagged { Some(info) } else { None }).collect()
    }

    pub fn space(&self) -> Space {
        Space { size: self.size, free: self.free }
    }
}

/// How much an SR has and how much of it nothing uses yet, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub size: u64,
    pub free: u64,
}

impl Space {
    /// All that is not free, whoever uses it: what xapi calls the physical utilisation of an SR.
    pub fn used(&self) -> u64 {
        self.size.saturating_sub(self.free)
    }
}

/// How full a thin pool is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUse {
    pub data_size: u64,
    pub data_used: u64,
    pub metadata_size: u64,
    pub metadata_used: u64,
}

/// An SR or a VDI inside another datum, tagged as it is at top level: `(vdi (uuid . "…") …)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tagged {
    Sr(SrInfo),
    Vdi(VdiInfo),
}

/// Keys of a VDI's `sm_config` that its SR decides: a value to set, `None` to remove.
pub type SmConfig = Vec<(&'static str, Option<String>)>;

/// What is known of a VDI, read from its SR now. Written as `(vdi (uuid . "…") …)`; SR Driver API v1.0,
/// "Results".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdiInfo {
    pub uuid: VdiUuid,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(rename = "SR")]
    pub sr: SrUuid,
    /// The user strings of the current locks.
    #[serde(rename = "VBDs")]
    pub vbds: Vec<String>,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes allocated on the substrate.
    pub physical_utilisation: u64,
    /// Bytes of a logical sector.
    pub sector_size: u32,
    #[serde(rename = "type")]
    pub format: Format,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bare")]
    pub parent: Option<VdiUuid>,
    #[serde(default)]
    pub children: Vec<VdiUuid>,
    #[serde(default)]
    pub shareable: bool,
    pub attached: bool,
    /// Whether it can be used. Left out of an answer while it can.
    #[serde(default, skip_serializing_if = "State::is_healthy")]
    pub state: State,
    /// 1 locked, 0 not.
    #[serde(default)]
    pub lock: u8,
    /// 1 read-only, 0 writable.
    #[serde(default)]
    pub read_only: u8,
    /// It is there for its children only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hidden: bool,
    /// What an agent calls it by, where that is not the UUID: the name of an ISO file.
    #[serde(skip)]
    pub location: Option<String>,
}

impl VdiInfo {
    /// What an agent calls it by within its SR.
    pub fn location(&self) -> String {
        self.location.clone().unwrap_or_else(|| self.uuid.to_string())
    }
}

/// Whether a VDI can be used, as far as its headers and those of its parents tell.
///
/// In answers it is one text: the words of [`fmt::Display`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum State {
    #[default]
    Healthy,
    /// The image, or what is stored beside it, cannot be read; the text says why.
    Broken(String),
    /// The parent is not in the SR, or is another image than the child names; the text says which.
    ParentMissing(String),
    /// The image has a feature that this program does not serve; the text names it.
    Unsupported(String),
    /// The VDI is attached, and the process that served its image has ended: I/O on its device fails until it is
    /// detached and attached again.
    ServerDied,
}

impl State {
    pub fn is_healthy(&self) -> bool {
        *self == State::Healthy
    }

    /// The state of a VDI whose image, or what is stored beside it, could not be read.
    pub fn of(error: &Error) -> State {
        match error {
            Error::Unsupported { why, .. } => State::Unsupported(why.clone()),
            other => State::Broken(error::one_line(other)),
        }
    }

    /// The state without its reason, for a column of a table.
    pub fn word(&self) -> &'static str {
        match self {
            State::Healthy => "",
            State::Broken(_) => "broken",
            State::ParentMissing(_) => "parent missing",
            State::Unsupported(_) => "unsupported",
            State::ServerDied => SERVER_DIED,
        }
    }
}

const BROKEN: &str = "broken: ";
const PARENT_MISSING: &str = "parent missing: ";
const UNSUPPORTED: &str = "unsupported: ";
const SERVER_DIED: &str = "server died";

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Healthy => Ok(()),
            State::Broken(why) => write!(f, "{BROKEN}{why}"),
            State::ParentMissing(which) => write!(f, "{PARENT_MISSING}{which}"),
            State::Unsupported(feature) => write!(f, "{UNSUPPORTED}{feature}"),
            State::ServerDied => f.write_str(SERVER_DIED),
        }
    }
}

impl From<State> for String {
    fn from(state: State) -> String {
        state.to_string()
    }
}

impl From<String> for State {
    /// The state that has these words. A text of another program is one more reason not to use the VDI.
    fn from(text: String) -> State {
        let after = |prefix: &str| text.strip_prefix(prefix).map(str::to_owned);
        match text.as_str() {
            "" => State::Healthy,
            SERVER_DIED => State::ServerDied,
            _ => after(BROKEN)
                .map(State::Broken)
                .or_else(|| after(PARENT_MISSING).map(State::ParentMissing))
                .or_else(|| after(UNSUPPORTED).map(State::Unsupported))
                .unwrap_or(State::Broken(text)),
        }
    }
}

/// Writes `Some(x)` as `x`: serde-lexpr alone would write the list `(x)`.
mod bare {
    use super::*;

    pub fn serialize<T: Serialize, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => value.serialize(to),
            None => to.serialize_unit(),
        }
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        T::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_vdi_is_read_back_from_its_words() {
        for state in [
            State::Healthy,
            State::Broken("x.vhd: it is empty".to_owned()),
            State::ParentMissing("y".to_owned()),
            State::Unsupported("encryption".to_owned()),
            State::ServerDied,
        ] {
            assert_eq!(State::from(state.to_string()), state);
        }
    }

    #[test]
    fn a_secret_is_masked_where_it_stands_and_nowhere_else() {
        for (key, value, seen) in [
            ("password", "x", "***"),
            ("PASSWORD", "x", "***"),
            ("chapPassword", "hunter2", "***"),
            ("incoming_chappassword", "p", "***"),
            ("cifspassword_secret", "uuid", "***"),
            ("username", "x", "x"),
            ("username", "dom\\u%x", "dom\\u%***"),
            ("options", "vers=3.0,PASSWORD=x", "***"),
            ("options", "username=u%x", "***"),
            ("options", "hard,vers=4.1", "hard,vers=4.1"),
            ("location", "//u:x@server/share", "//u:***@server/share"),
            ("location", "//server/share:x@y", "//server/share:x@y"),
            ("server", "[fe80::1%eth0]", "[fe80::1%eth0]"),
            ("password", "", ""),
        ] {
            assert_eq!(shown(key, value), seen, "{key}");
        }
    }

    #[test]
    fn a_uuid_is_36_characters_of_hex_or_nothing() {
        let good = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
        assert_eq!(good.parse::<SrUuid>().unwrap().to_string(), good);
        assert_eq!(good.to_uppercase().parse::<SrUuid>().unwrap().to_string(), good);
        for bad in [
            "",
            "x",
            "../../../../etc/passwd",
            "-7b8646b-b800-9500-cb7b-af3b74e02f5c",
            "87b8646bb8009500cb7baf3b74e02f5c",
            "{87b8646b-b800-9500-cb7b-af3b74e02f5c}",
            "urn:uuid:87b8646b-b800-9500-cb7b-af3b74e02f5c",
            "87b8646b-b800-9500-cb7b-af3b74e02f5c\n",
            " 87b8646b-b800-9500-cb7b-af3b74e02f5c",
            "87b8646b-b800-9500-cb7b-af3b74e02f5g",
        ] {
            assert!(bad.parse::<VdiUuid>().is_err(), "{bad:?} was taken for a UUID");
        }
    }
}
