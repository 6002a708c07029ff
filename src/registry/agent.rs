//! The SRs that an agent's database has on this host. On a host with xapi, that database owns them, also while their media hold
//! nothing that would say so.

use std::path::Path;

use super::claims::{BY_AGENT, BY_HAND, Claim, Claims};
use super::{identity, view};
use crate::types::{Class, DeviceConfig, SrUuid};

/// An SR that the agent has attached to this host, or may attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub sr: SrUuid,
    /// The label.
    pub name: String,
    pub sr_type: String,
    pub connection: Connection,
}

/// What connects an SR to this host: a PBD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// The SR has none, on this host or any other.
    None,
    Pbd {
        uuid: String,
        is_plugged: bool,
        config: DeviceConfig,
    },
}

impl Kept {
    /// A value of device_config; empty if there is none.
    pub fn get(&self, key: &str) -> &str {
        match &self.connection {
            Connection::Pbd { config, .. } => config.get(key).unwrap_or_default(),
            Connection::None => "",
        }
    }

    /// The paths of the block devices that it stands on, as device_config names them.
    pub fn devices(&self) -> Vec<String> {
        let listed = self.get("device").split(',').map(str::trim).filter(|dev| dev.starts_with('/')).map(str::to_owned);
        // The name of a LUN in the device_config of the types lvmohba and lvmoiscsi.
        let lun = Some(self.get("SCSIid")).filter(|id| !id.is_empty() && !id.contains('/'));
        listed.chain(lun.map(|id| format!("/dev/disk/by-id/scsi-{id}"))).collect()
    }
}

/// What the agent's database says of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// The UUID that the agent has for this host.
    pub host: String,
    /// In the order of their UUIDs.
    pub srs: Vec<Kept>,
}

impl Agent {
    /// Adds a claim of each medium of each SR. A claim that a layout or a person made stays.
    pub fn claim(&self, claims: &mut Claims) {
        for kept in &self.srs {
            for dev in kept.devices() {
                let Some(identity) = identity::of_path(Path::new(&dev)) else { continue };
                let is_weaker = |known: &Claim| known.layout == BY_HAND && known.sr_uuid == Some(kept.sr);
                if claims.of(&identity).is_none_or(is_weaker) {
                    claims.put(Claim {
                        identity,
                        host: view::host_name(),
                        dev,
                        layout: BY_AGENT.to_owned(),
                        class: Class::word_of(&kept.sr_type).to_owned(),
                        index: None,
                        sr_uuid: Some(kept.sr),
                        since: 0,
                    });
                }
            }
        }
    }
}
