//! WHERE disks live: storage repositories, one file per driver.
//!
//! Adding a driver: one file here that declares a [`Driver`], its line in [`DRIVERS`], its executable in `src/bin` and
//! `Cargo.toml`, one row in the compliance suite. `docs/drivers.md` walks through it.

mod answers;
mod config;
mod driver;
pub mod ext;
pub mod file;
pub mod iso;
pub mod largeblock;
pub mod loss;
pub mod lun;
mod lvhd;
pub mod lvm;
pub mod lvmohba;
pub mod lvmoiscsi;
pub mod lvmraw;
mod mounted;
mod mountpoint;
pub mod network;
pub mod nfs;
mod on_volume;
mod served;
pub mod smb;
mod trim;
pub(crate) mod volume_group;
pub mod xfs;
pub mod zfs;

use crate::error::{Error, Result};

pub use config::PREFERRED_FORMATS;
pub use driver::{About, Driver, Found, SECTORS, Sr, Substrate, VolumeChange, VolumeOf};
pub use trim::{Trim, after as trim_failed};

/// Every driver of this package.
pub const DRIVERS: &[&Driver] = &[
    &network::CEPHFS,
    &ext::DRIVER,
    &file::DRIVER,
    &network::GLUSTERFS,
    &iso::DRIVER,
    &largeblock::DRIVER,
    &lvm::DRIVER,
    &lvmohba::DRIVER,
    &lvmoiscsi::DRIVER,
    &lvmraw::DRIVER,
    &network::MOOSEFS,
    &nfs::DRIVER,
    &smb::DRIVER,
    &xfs::DRIVER,
    &zfs::DRIVER,
];

/// The driver of an SR type.
///
/// # Errors
/// [`Error::Invalid`] with the types that there are.
pub fn driver(sr_type: &str) -> Result<&'static Driver> {
    DRIVERS.iter().copied().find(|d| d.sr_type == sr_type).ok_or_else(|| Error::Invalid {
        what: "type",
        value: sr_type.to_owned(),
        expected: format!("expected one of {}", DRIVERS.iter().map(|d| d.sr_type).collect::<Vec<_>>().join(", ")),
    })
}
