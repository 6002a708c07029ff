//! `LVMoISCSISR`: a volume group on a LUN of an iSCSI target, an SR as in [`mod@lun`]. The tool is open-iscsi.
//!
//! | file | what |
//! |---|---|
//! | [`target`] | a target, as device_config names it |
//! | [`way`], [`portals`] | discovery, login, the LUN among the disks that come, logout |
//! | [`users`] | which SRs need a session, and which sessions are ours to end |
//!
//! sr_probe goes by stages: each key that is missing is a failure that has what the key may be. What is served, and what
//! happens when a target goes away: `docs/iscsi.md`.

mod portals;
pub mod target;
mod users;
mod way;

use std::path::Path;

use crate::context::Deadline;
use crate::error::Result;
use crate::sr::driver::{About, Driver, Found, Substrate};
use crate::sr::lun::{self, Lun, LunSr, MULTIPATHING, SCSI_ID, SHARED};
use crate::sr::{lvm, volume_group};
use crate::sys::{blockdev, initiator, scsidisk};
use crate::types::{DeviceConfig, SrInfo, SrUuid};

pub use portals::offered;
use target::Target;
use way::Way;

pub const DRIVER: Driver = Driver {
    sr_type: "lvmoiscsi",
    executable: "LVMoISCSISR",
    description: "disks as logical volumes on a LUN of an iSCSI target",
    dconf_form: "iscsi@portal[,portal]/iqn/SCSIid",
    parse_dconf: |dconf| target::parse_dconf(dconf, DRIVER.dconf_form),
    open: |sr, config, deadline| {
        let target = Target::new(config)?;
        target.required_iqn(config)?;
        let lun = Lun::new(config)?;
        let way = Way { target, lun: Some(lun.clone()), deadline: deadline.clone() };
        Ok(Box::new(LunSr::new(&DRIVER, sr, (lun, way), config, deadline)?))
    },
    probe,
    discover,
    about: About {
        name: "LVM over iSCSI",
        configuration: &[
            ("target", "host names or addresses of the target, separated by commas (required)"),
            ("targetIQN", "the name of the target, or * for all that it has (required but for sr_probe)"),
            SCSI_ID,
            ("port", "the port of the target; default 3260"),
            ("chapuser", "the user by which the target knows this host"),
            ("chappassword", "that user's password"),
            ("chappassword_secret", "the UUID of xapi's secret with that password"),
            ("incoming_chapuser", "the user by which this host knows the target; counts beside chapuser"),
            ("incoming_chappassword", "that user's password"),
            ("incoming_chappassword_secret", "the UUID of xapi's secret with that password"),
            (
                "chapfile",
                "a file of mode 0600 with the secrets, as sm target publish --auth reads it; instead of these six",
            ),
            ("multihomed", "true: by every portal of the target; default: as multipathing"),
            MULTIPATHING,
            ("localIQN", "the name that this host's initiator has to have; default: the one it has"),
            lvm::ALLOCATION,
            SHARED,
            lvm::LVHD,
        ],
        substrate: Substrate::Lun,
        ..lvm::DRIVER.about
    },
    ..lvm::DRIVER
};

/// Which SRs lie on the LUN; without a name of the target or an identifier of the LUN, a failure with those that there are.
fn probe(config: &DeviceConfig, deadline: Deadline) -> Result<Vec<SrInfo>> {
    let target = Target::new(config)?;
    // What is there is read before anything of this host is started.
    let lun = config.get("SCSIid").filter(|id| !id.is_empty()).map(|_| Lun::new(config)).transpose()?;
    // With no LUN, or no name, the way itself says what there is.
    let Some(lun) = lun.filter(|_| target.iqn.is_some()) else {
        return Way { target, lun: None, deadline }.luns();
    };
    let way = Way { target, lun: Some(lun.clone()), deadline: deadline.clone() };
    lun::probe(&DRIVER, &lun, &way, config, deadline)
}

/// The SRs that are attached by targets of this host. Nothing on their disks says by which, so others are not found.
fn discover() -> Result<Vec<Found>> {
    let (users, sessions, disks) = (users::all(), initiator::sessions(), scsidisk::all());
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let found = volume_group::discover(&lvm::NAMING, |_| true)?.into_iter().filter_map(|found| {
        let iqn = users.iter().find(|(sr, _)| *sr == found.sr).map(|(_, iqn)| iqn)?;
        let portal = sessions.iter().find(|session| session.iqn == *iqn)?.portal.clone()?;
        let device = blockdev::number(Path::new(found.config.get("device")?))?;
        // Of a map, one of its paths.
        let number = blockdev::below(device).first().map_or(device, |(below, _)| *below);
        let disk = disks.iter().find(|disk| blockdev::number(&disk.node()) == Some(number))?;
        let (address, port) = (portal.address.to_string(), portal.port.to_string());
        let keys = [("target", address.as_str()), ("port", &port), ("targetIQN", iqn), ("SCSIid", &disk.scsi_id)];
        Some(Found { config: DeviceConfig::from(keys), ..found })
    });
    Ok(found.collect())
}

/// Whether an SR is attached by a target of this host.
pub fn is_attached(sr: SrUuid) -> bool {
    users::all().iter().any(|(user, _)| *user == sr)
}
