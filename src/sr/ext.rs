//! `EXTSR`: disks as files in an ext4 filesystem on block devices, an SR as in [`mod@on_volume`].
//!
//! `docs/ext.md` gives the reasons.

use crate::sr::config::PREFERRED_FORMATS;
use crate::sr::driver::{About, Driver, Substrate};
use crate::sr::file;
use crate::sr::on_volume::{self, Filesystem};
use crate::sr::volume_group::Naming;
use crate::sys::lvm::Unmapped;
use crate::types::DeviceConfig;

pub const DRIVER: Driver = Driver {
    sr_type: EXT.sr_type,
    executable: "EXTSR",
    description: "disks as files in an ext4 filesystem on block devices",
    dconf_form: "/dev/sdb,/dev/sdc",
    parse_dconf: |dconf| Ok(DeviceConfig::from([("device", dconf)])),
    open: |sr, config, deadline| EXT.open(sr, config, deadline),
    probe: |config, deadline| EXT.probe(config, deadline),
    discover: || EXT.discover(),
    about: About {
        name: "Local ext4",
        capabilities: file::ON_OWN_DEVICES,
        configuration: &[("device", "block devices, separated by commas (required)"), PREFERRED_FORMATS],
        substrate: Substrate::BlockDevices,
        ..file::DRIVER.about
    },
    ..file::DRIVER
};

static EXT: Filesystem = EXT4;

/// An ext4 filesystem, in a group of the type `ext`. Serves ext3, which Python storage managers before 2013 made, as well. A
/// filesystem that finds an error in itself takes no more writes, which could make it worse.
pub const EXT4: Filesystem = Filesystem {
    sr_type: "ext",
    fs_type: "ext4",
    options: "errors=remount-ro",
    look_only: "noload",
    make: &["mkfs.ext4", "-F", "-q", "--"],
    check: Some(&["e2fsck", "-p", "--"]),
    by_hand: "e2fsck -f",
    naming: &NAMING,
    in_small_sectors: false,
    tag: None,
};

pub static NAMING: Naming =
    Naming { prefix: "XSLocalEXT-", is_half_made: on_volume::is_half_made, unmapped: Unmapped::All, refuses: |_| None };
