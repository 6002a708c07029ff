//! The facts about an SR and about a VDI, read from their substrate now.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Format, Names, Params, SlotMark, SrUuid, State, VdiUuid};

/// The facts about an SR, read from its substrate now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrInfo {
    pub uuid: SrUuid,
    /// The disks that are there for their own sake, without bases.
    pub vdi_uuids: Vec<VdiUuid>,
    /// Bytes that the VDIs consume.
    pub physical_utilisation: u64,
    /// Sum of the VDIs' virtual sizes, bytes.
    pub virtual_allocation: u64,
    /// Bytes that the SR has.
    pub size: u64,
    /// Bytes that nothing uses yet. Not part of the SR API v1.0.
    pub free: u64,
    pub sr_type: String,
    pub location: String,
    /// The slot of a layout that it was made for, as its medium says. Filled by `sr_probe` only.
    pub slot: Option<SlotMark>,
    /// The thin pool that the VDIs share, if the SR has one and it is active.
    pub pool: Option<PoolUse>,
    /// Filled by `sr_scan` only.
    pub vdis: Vec<VdiInfo>,
    /// The logs that are there without their disks. Filled by `sr_scan` only, and `None` where the driver keeps no such logs.
    pub logs: Option<Vec<LogAlone>>,
    /// What an LVHD SR says of itself. Filled by its driver where the SR is looked at as a whole.
    pub kept: Option<Kept>,
}

/// What an LVHD SR says of itself, as the Python drivers keep it for agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub names: Names,
    /// Whether the volume of a disk has room for all of it only while the disk is attached.
    pub is_thin: bool,
}

impl SrInfo {
    /// How much the SR has and how much of it is free.
    pub fn space(&self) -> Space {
        Space { size: self.size, free: self.free }
    }
}

/// How much an SR has and how much of it nothing uses yet, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    pub data_size: u64,
    pub data_used: u64,
    pub metadata_size: u64,
    pub metadata_used: u64,
}

/// The names by which a person may call a VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdiName {
    pub uuid: VdiUuid,
    /// Empty if it has none, or if what is stored beside the disk cannot be read.
    pub label: String,
    /// As [`VdiInfo::location`].
    pub location: Option<String>,
}

impl From<&VdiInfo> for VdiName {
    fn from(info: &VdiInfo) -> VdiName {
        VdiName { uuid: info.uuid, label: info.label.clone(), location: info.location.clone() }
    }
}

/// The facts about a VDI, read from its SR now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdiInfo {
    pub uuid: VdiUuid,
    pub label: String,
    pub description: String,
    pub sr: SrUuid,
    /// The user strings of the current locks.
    pub vbds: Vec<String>,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes allocated on the substrate.
    pub physical_utilisation: u64,
    /// Bytes of a logical sector.
    pub sector_size: u32,
    pub format: Format,
    pub parent: Option<VdiUuid>,
    pub children: Vec<VdiUuid>,
    pub shareable: bool,
    /// Whether this host has it attached.
    pub attached: bool,
    /// The block device that it is attached as.
    pub device: Option<PathBuf>,
    /// What has that block device open, in words. Filled only where a door looks for it.
    pub opened_by: Option<String>,
    /// Whether it can be used.
    pub state: State,
    /// Whether a user has the persistent lock.
    pub locked: bool,
    /// Whether it can only be attached read-only.
    pub read_only: bool,
    /// It is there for its children only.
    pub hidden: bool,
    /// The name by which an agent calls the VDI, where that is not the UUID: the name of an ISO file.
    pub location: Option<String>,
    /// As [`Params::snapshot_of`](super::Params::snapshot_of).
    pub snapshot_of: Option<VdiUuid>,
    /// As [`Params::created`](super::Params::created).
    pub created: Option<u64>,
    /// Whether it is logged which blocks are written; of a snapshot, whether its log is there.
    pub cbt_enabled: bool,
    /// As [`Params::keys`](super::Params::keys).
    pub keys: BTreeMap<String, String>,
    /// As [`Params::resets`](super::Params::resets).
    pub resets: bool,
    /// As [`Params::kind`](super::Params::kind).
    pub kind: String,
}

/// A log of changed blocks that is there without its disk: the data of a snapshot was destroyed, and what changed up to it
/// is still asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogAlone {
    pub vdi: VdiUuid,
    /// Bytes of the log.
    pub bytes: u64,
    /// Those that its disk had; defaults if none are stored.
    pub params: Params,
}

#[cfg(test)]
impl VdiInfo {
    /// A healthy VHD disk of 1 MiB that holds nothing and that no process uses, for tests.
    pub fn sample(uuid: VdiUuid) -> VdiInfo {
        VdiInfo {
            uuid,
            label: String::new(),
            description: String::new(),
            sr: SrUuid::random(),
            vbds: Vec::new(),
            virtual_size: 1 << 20,
            physical_utilisation: 0,
            sector_size: 512,
            format: Format::Vhd,
            parent: None,
            children: Vec::new(),
            shareable: false,
            attached: false,
            device: None,
            opened_by: None,
            state: State::Healthy,
            locked: false,
            read_only: false,
            hidden: false,
            location: None,
            snapshot_of: None,
            created: None,
            cbt_enabled: false,
            keys: BTreeMap::new(),
            resets: false,
            kind: String::new(),
        }
    }
}

impl VdiInfo {
    /// The disk with the block device that this host has of it.
    pub fn with_device(self, device: Option<PathBuf>) -> VdiInfo {
        VdiInfo { attached: device.is_some(), device, ..self }
    }

    /// The disk with these users of its persistent lock.
    pub fn with_users(self, users: Vec<String>) -> VdiInfo {
        VdiInfo { locked: !users.is_empty(), vbds: users, ..self }
    }

    /// The disk with these children. A disk that others read through is never written.
    pub fn with_children(self, children: Vec<VdiUuid>) -> VdiInfo {
        VdiInfo { read_only: self.read_only || !children.is_empty(), children, ..self }
    }

    /// The name by which an agent calls the VDI within its SR.
    pub fn location(&self) -> String {
        self.location.clone().unwrap_or_else(|| self.uuid.to_string())
    }
}
