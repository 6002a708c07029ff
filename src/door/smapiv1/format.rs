//! Which format a new disk gets under xapi, and how large a disk of each may be; XCP-ng 8.3, "Image formats".

use std::collections::BTreeMap;

use super::code::Code;
use super::faults::Failure;
use crate::sr::{Driver, PREFERRED_FORMATS};
use crate::types::{DeviceConfig, Format};
use crate::vdi;

/// The list where a PBD has none, or none that the driver has.
const USUAL: &[Format] = &[Format::Vhd, Format::Qcow2];

/// The format of a new disk of `size` bytes. `None`: the driver has one of its own.
///
/// `sm_config` says it (`image-format`, else `type`); otherwise the first of [`PREFERRED_FORMATS`] that can hold the disk is taken.
///
/// # Errors
/// 66 for a format that does not exist; 79 for a size that the format, or the last of the list, cannot hold.
pub fn choose(
    driver: &Driver,
    config: &DeviceConfig,
    sm_config: &BTreeMap<String, String>,
    size: u64,
) -> Result<Option<Format>, Failure> {
    let said = ["image-format", "type"].iter().find_map(|key| sm_config.get(*key).filter(|name| !name.is_empty()));
    if let Some(name) = said {
        let format = name.parse()?;
        // The driver refuses a format that it does not have, with words of its own.
        if driver.image_formats.contains(&format) {
            check(format, size)?;
        }
        return Ok(Some(format));
    }
    let mut last = None;
    for format in preferred(driver, config) {
        match check(format, size) {
            Ok(()) => return Ok(Some(format)),
            Err(failure) => last = Some(failure),
        }
    }
    last.map_or(Ok(None), Err)
}

/// Names that no format has, and formats that the driver does not have, are passed over.
fn preferred(driver: &Driver, config: &DeviceConfig) -> Vec<Format> {
    let listed = config.get(PREFERRED_FORMATS.0).unwrap_or("").split(',').filter_map(|name| name.trim().parse().ok());
    let listed: Vec<Format> = listed.filter(|format| driver.image_formats.contains(format)).collect();
    // What not every SR of the type takes is for the SR to choose.
    let usual = USUAL.iter().copied().filter(|format| driver.formats.contains(format));
    if listed.is_empty() { usual.collect() } else { listed }
}

/// Refuses a disk of `size` bytes that is larger than a disk of the format can be.
///
/// # Errors
/// 79, with the words of the Python drivers.
pub fn check(format: Format, size: u64) -> Result<(), Failure> {
    let largest = vdi::layout(format).largest();
    if size <= largest {
        return Ok(());
    }
    Err(Failure::new(Code::VDISize, format!("VDI size must be between 1 MB and {} MB", largest >> 20)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::{file, iso, lvm};

    const TIB: u64 = 1 << 40;
    const LARGEST_QCOW2: u64 = 17_589_500_641_280;

    fn chosen(
        driver: &Driver,
        preferred: &str,
        sm_config: &[(&str, &str)],
        size: u64,
    ) -> Result<Option<Format>, String> {
        let config = DeviceConfig::from([(PREFERRED_FORMATS.0, preferred)]);
        let sm_config = sm_config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        choose(driver, &config, &sm_config, size).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn the_first_listed_format_that_holds_the_disk_is_taken() {
        use Format::*;
        for (preferred, size, expected) in [
            ("", 2040 << 30, Vhd),
            ("", (2040 << 30) + 1, Qcow2),
            ("vhd", TIB, Vhd),
            ("qcow2", TIB, Qcow2),
            ("qcow2, vhd", TIB, Qcow2),
            ("vhd, qcow2", 3 * TIB, Qcow2),
            (" raw ,vhd", 20 * TIB, Raw),
            ("VHD,vmdk,,qcow2", TIB, Qcow2),
            ("vmdk", TIB, Vhd),
            ("vmdk", 3 * TIB, Qcow2),
        ] {
            assert_eq!(chosen(&file::DRIVER, preferred, &[], size), Ok(Some(expected)), "{preferred:?} {size}");
        }
        assert_eq!(chosen(&lvm::DRIVER, "", &[], 3 * TIB), Ok(None));
        assert_eq!(chosen(&lvm::DRIVER, "raw", &[], 3 * TIB), Ok(Some(Raw)));
        assert_eq!(chosen(&iso::DRIVER, "vhd", &[], TIB), Ok(None));
    }

    #[test]
    fn what_sm_config_says_counts_and_has_its_own_limit() {
        for (keys, expected) in [
            (&[("image-format", "qcow2"), ("type", "vhd")][..], Format::Qcow2),
            (&[("image-format", ""), ("type", "raw")][..], Format::Raw),
            (&[("type", "vhd")][..], Format::Vhd),
        ] {
            assert_eq!(chosen(&file::DRIVER, "qcow2", keys, TIB), Ok(Some(expected)), "{keys:?}");
        }
        let vhd = chosen(&file::DRIVER, "", &[("type", "vhd")], 3 * TIB).unwrap_err();
        assert!(vhd.contains("VDI size must be between 1 MB and 2088960 MB"), "{vhd}");
        assert_eq!(chosen(&file::DRIVER, "", &[], LARGEST_QCOW2), Ok(Some(Format::Qcow2)));
        for (preferred, keys, limit) in [
            ("", &[][..], "16774655 MB"),
            ("qcow2,vhd", &[][..], "2088960 MB"),
            ("", &[("image-format", "qcow2")][..], "16774655 MB"),
        ] {
            let refused = chosen(&file::DRIVER, preferred, keys, LARGEST_QCOW2 + 1).unwrap_err();
            assert!(refused.contains("VDISize") && refused.contains(limit), "{refused}");
        }
        assert!(chosen(&file::DRIVER, "", &[("type", "vmdk")], TIB).unwrap_err().contains("vmdk"));
    }
}
