//! `XFSSR`: disks as files in an xfs filesystem on block devices, an SR as in [`mod@crate::sr::on_volume`].
//!
//! `docs/ext.md` gives the reasons.

use crate::sr::config::PREFERRED_FORMATS;
use crate::sr::driver::{About, Driver, Substrate};
use crate::sr::ext;
use crate::sr::file;
use crate::sr::on_volume::{self, Filesystem};
use crate::types::DeviceConfig;

pub const DRIVER: Driver = Driver {
    sr_type: "xfs",
    executable: "XFSSR",
    description: "disks as files in an xfs filesystem on block devices",
    dconf_form: "/dev/sdb,/dev/sdc",
    parse_dconf: |dconf| Ok(DeviceConfig::from([("device", dconf)])),
    open: |sr, config, deadline| XFS.open(sr, config, deadline),
    probe: |config, deadline| XFS.probe(config, deadline),
    discover: || XFS.discover(),
    about: About {
        name: "Local xfs",
        capabilities: file::ON_OWN_DEVICES,
        configuration: &[("device", "block devices, separated by commas (required)"), PREFERRED_FORMATS],
        substrate: Substrate::BlockDevices,
        ..file::DRIVER.about
    },
    ..file::DRIVER
};

/// The kernel replays the log when it mounts; `xfs_repair` is for a filesystem that cannot be mounted. `nouuid`: a filesystem with
/// the same identity is a copy that a disk array made, and LVM refuses that before.
static XFS: Filesystem = Filesystem {
    sr_type: "xfs",
    fs_type: "xfs",
    options: "",
    look_only: "norecovery,nouuid",
    make: &["mkfs.xfs", "-f", "-q"],
    check: None,
    by_hand: "xfs_repair",
    naming: &ext::NAMING,
    in_small_sectors: false,
    tag: Some(on_volume::XFS),
};
