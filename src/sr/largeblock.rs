//! `LargeBlockSR`: disks as files in an ext4 filesystem on a block device with sectors of 4,096 bytes, an SR as in
//! [`mod@crate::sr::on_volume`].
//!
//! Programs that read and write images in pieces of 512 bytes, as tapdisk does, fail on such a device. So the filesystem is mounted from
//! a loop device with sectors of 512 bytes over the SR's volume. The Python storage managers put the loop device below LVM, which then
//! sees each physical volume twice; what is on the disk is the same.
//!
//! `docs/ext.md` gives the reasons.

use crate::sr::config::PREFERRED_FORMATS;
use crate::sr::driver::{About, Driver, Substrate};
use crate::sr::ext;
use crate::sr::file;
use crate::sr::on_volume::Filesystem;
use crate::sr::volume_group::Naming;
use crate::types::DeviceConfig;

pub const DRIVER: Driver = Driver {
    sr_type: "largeblock",
    executable: "LargeBlockSR",
    description: "disks as files in an ext4 filesystem on a block device with 4,096-byte sectors",
    dconf_form: "/dev/sdb",
    parse_dconf: |dconf| Ok(DeviceConfig::from([("device", dconf)])),
    open: |sr, config, deadline| LARGE.open(sr, config, deadline),
    probe: |config, deadline| LARGE.probe(config, deadline),
    discover: || LARGE.discover(),
    about: About {
        name: "Large block",
        capabilities: file::ON_OWN_DEVICES,
        configuration: &[("device", "a block device with sectors of 4,096 bytes (required)"), PREFERRED_FORMATS],
        substrate: Substrate::BlockDevices,
        ..file::DRIVER.about
    },
    ..file::DRIVER
};

static LARGE: Filesystem = Filesystem {
    sr_type: "largeblock",
    naming: &Naming { prefix: "XSLocalLargeBlock-", ..ext::NAMING },
    in_small_sectors: true,
    ..ext::EXT4
};
