//! The SRs that are there: on the devices of a device_config, and on all that LVM sees.

use super::{DRIVER, LvmSr, OWN};
use crate::context::Deadline;
use crate::error::Result;
use crate::sr::driver::{Driver, Found, Sr};
use crate::sr::volume_group::{self, Naming};
use crate::sr::{lvhd, lvmoiscsi, lvmraw};
use crate::sys::lvm::Vg;
use crate::types::{DeviceConfig, SrInfo};

/// Which SRs lie on the devices, each with its own type: a group of ours is of type `lvmraw`, although LVMSR serves it as well.
///
/// # Errors
/// Those of [`volume_group::probe`].
pub fn probe(
    driver: &'static Driver,
    naming: &'static Naming,
    config: &DeviceConfig,
    deadline: Deadline,
) -> Result<Vec<SrInfo>> {
    volume_group::probe(config, naming, deadline, |group, vg| {
        let rights = lvhd::Rights::of(config);
        let sr = LvmSr {
            driver,
            group,
            allocation: None,
            marks_shared: false,
            is_lvhd: false,
            is_slave: false,
            is_of_pool: false,
            rights,
        };
        // The report of all groups does not say where the volumes are.
        let info = if lvhd::is_lvhd(vg, OWN) { sr.stat()? } else { sr.summary(vg) };
        let of = if is_own(vg) { &lvmraw::DRIVER } else { &DRIVER };
        Ok(Some(SrInfo { sr_type: of.sr_type.to_owned(), ..info }))
    })
}

/// The SRs that LVM sees, as far as `is_one` takes a group for one. Those that another driver of this package has attached are its own.
///
/// # Errors
/// Those of [`volume_group::discover`].
pub fn discover(naming: &'static Naming, is_one: fn(&Vg) -> bool) -> Result<Vec<Found>> {
    let found = volume_group::discover(naming, is_one)?;
    Ok(found.into_iter().filter(|found| !lvmoiscsi::is_attached(found.sr)).collect())
}

/// Whether this package made the group, for raw volumes: the group says so itself.
pub fn is_own(vg: &Vg) -> bool {
    vg.tags.iter().any(|tag| OWN.contains(&tag.as_str()))
}
