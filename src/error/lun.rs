//! Failures on the way to a LUN, and what device_config may choose from.

use std::fmt;

/// What failed on this host's side of iSCSI or of dm-multipath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LunFault {
    /// The daemon runs under another name of the initiator than the one that is wanted.
    OtherInitiator,
    /// This host has no name as an initiator.
    NoInitiator,
    /// iscsid does not run.
    NoDaemon,
    /// The session is there and its disks do not come.
    NoDisk,
    /// The session stays.
    Logout,
    /// The file that counts the users of a session.
    Users,
    /// multipathd does not answer.
    NoMultipathd,
    /// No map comes of several paths.
    NoMap,
}

impl fmt::Display for LunFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LunFault::OtherInitiator => "this host is logged in under another name of its initiator",
            LunFault::NoInitiator => "this host has no name as an initiator",
            LunFault::NoDaemon => "iscsid does not run",
            LunFault::NoDisk => "its disks do not appear",
            LunFault::Logout => "the session does not end",
            LunFault::Users => "the users of the session cannot be counted",
            LunFault::NoMultipathd => "multipathd does not answer",
            LunFault::NoMap => "there is no multipath map",
        })
    }
}

/// A key of device_config that names nothing that is there, and what it may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotChosen {
    pub key: &'static str,
    /// The value that is not offered. `None`: the key is missing.
    pub wrong: Option<String>,
    pub offered: Offered,
}

/// What a key may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offered {
    /// Targets, and the portals that were asked.
    Targets { found: Vec<OfferedTarget>, asked: String, port: u16 },
    /// LUNs of a target.
    Luns(Vec<OfferedLun>),
    /// LUNs of the adapters of this host.
    Disks { luns: Vec<OfferedLun>, adapters: Vec<OfferedAdapter> },
}

/// A target at one of its portals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedTarget {
    pub address: String,
    pub port: u16,
    pub iqn: String,
}

/// A LUN that an SR may be on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfferedLun {
    pub scsi_id: String,
    pub vendor: String,
    pub serial: String,
    pub lun: u64,
    /// Bytes.
    pub size: u64,
    /// The devices by which this host has it: `/dev/sda`.
    pub paths: Vec<String>,
    /// Host, channel and target of the first of them.
    pub at: (u32, u32, u32),
    /// The driver of that host.
    pub driver: String,
}

/// An adapter of this host: names of members and their values, as clients of sr_probe expect them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfferedAdapter {
    pub members: Vec<(&'static str, String)>,
    /// What sysfs says of a fibre channel host.
    pub fc: Vec<(&'static str, String)>,
}

impl fmt::Display for NotChosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.wrong {
            None => write!(f, "device_config lacks the key {}; ", self.key)?,
            Some(wrong) => write!(f, "there is no {} {wrong:?}; ", self.key)?,
        }
        let (who, mut words): (&str, Vec<String>) = match &self.offered {
            Offered::Targets { found, asked, .. } => {
                (asked, found.iter().map(|it| format!("{} ({})", it.iqn, it.address)).collect())
            }
            Offered::Luns(luns) => ("the target", luns.iter().map(OfferedLun::shown).collect()),
            Offered::Disks { luns, .. } => ("this host", luns.iter().map(OfferedLun::shown).collect()),
        };
        words.dedup();
        match words.is_empty() {
            true if matches!(self.offered, Offered::Disks { .. }) => {
                write!(f, "this host has no LUN at a host bus adapter")
            }
            true => write!(f, "{who} has none"),
            false => write!(f, "{who} has {}", words.join(", ")),
        }
    }
}

impl OfferedLun {
    fn shown(&self) -> String {
        let id = if self.scsi_id.is_empty() { "a LUN without an identifier" } else { &self.scsi_id };
        format!("{id} (LUN {}, {})", self.lun, crate::types::Size(self.size))
    }
}
