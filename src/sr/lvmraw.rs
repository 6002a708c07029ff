//! `LVMRawSR`: raw disks as logical volumes, thick or in a thin pool. [`LvmSr`] serves them; this module gives them an SR type of their
//! own, by which xapi knows what they can do, and nobody takes them for LVHD.
//!
//! An SR is a volume group with the tag `xcp.allocation=thick` or `=thin`. Type `lvm` serves these groups as well: SRs that were made or
//! introduced by that type stay what they are.

use crate::sr::driver::{About, Driver, no_images};
use crate::sr::lvm::{self, ALLOCATION, DEVICE, LvmSr, SHARED_KEY};
use crate::sr::volume_group::Naming;
use crate::types::Format;

pub const DRIVER: Driver = Driver {
    sr_type: "lvmraw",
    executable: "LVMRawSR",
    description: "raw disks as logical volumes, thick or in a thin pool",
    image_formats: &[Format::Raw],
    open: |sr, config, deadline| Ok(Box::new(LvmSr::new(&DRIVER, &NAMING, sr, config, deadline)?)),
    probe: |config, deadline| lvm::probe(&DRIVER, &NAMING, config, deadline),
    discover: || lvm::discover(&NAMING, |_| true),
    about: About {
        name: "LVM raw volumes",
        configuration: &[DEVICE, ALLOCATION, SHARED_KEY],
        images: no_images,
        ..lvm::DRIVER.about
    },
    ..lvm::DRIVER
};

/// The groups that say of themselves that they have raw volumes.
const NAMING: Naming = Naming {
    refuses: |vg| {
        let why = || {
            format!(
                "volume group {} has no tag xcp.allocation, so it is no SR of type {}; type {} ({}) serves LVHD and such groups",
                vg.name,
                DRIVER.sr_type,
                lvm::DRIVER.sr_type,
                lvm::DRIVER.executable
            )
        };
        (!lvm::is_own(vg)).then(why)
    },
    ..lvm::NAMING
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lvm::Vg;

    #[test]
    fn a_group_without_a_tag_of_ours_is_refused_with_the_driver_that_serves_it() {
        let group = |tags: &[&str]| Vg { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), ..Vg::default() };
        for own in [["xcp.allocation=thin"], ["xcp.allocation=thick"]] {
            assert_eq!((NAMING.refuses)(&group(&own)), None);
        }
        for other in [&[][..], &["xcp.shared"], &["xcp.allocation=fat"]] {
            assert!((NAMING.refuses)(&group(other)).unwrap().contains("type lvm (LVMSR)"), "{other:?}");
        }
    }
}
