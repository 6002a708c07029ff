//! What is known of an SR and of a VDI, read from their substrate now.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Format, SrUuid, State, VdiUuid, is_false};

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
