//! A LUN and the one device by which it is used: its multipath map, else its only path.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::multipath::{self, Map};
use crate::sys::scsidisk::{self, Disk};
use crate::types::DeviceConfig;

/// A LUN, as device_config names it, and whether its map is asked for.
#[derive(Clone, Debug)]
pub struct Lun {
    pub scsi_id: String,
    pub multipathing: bool,
}

impl Lun {
    /// Reads the keys of a LUN. Touches nothing.
    ///
    /// # Errors
    /// [`Error::MissingKey`], [`Error::Invalid`].
    pub fn new(config: &DeviceConfig) -> Result<Lun> {
        let value = config.require("SCSIid")?;
        let bad = |what, value: &str, expected: &str| Error::Invalid {
            what,
            value: value.to_owned(),
            expected: expected.to_owned(),
        };
        if !is_scsi_id(value) {
            return Err(bad("SCSIid", value, "expected letters, digits and ._:=+@- as scsi_id prints them"));
        }
        Ok(Lun { scsi_id: value.to_owned(), multipathing: flag(config, "multipathing")?.unwrap_or(false) })
    }

    /// The disks that are paths to it.
    pub fn paths(&self) -> Vec<Disk> {
        scsidisk::of_id(&self.scsi_id)
    }

    /// The device by which it is used now: its map, else a path.
    pub fn device(&self) -> Option<PathBuf> {
        if let Some(map) = multipath::map_of(&self.scsi_id) {
            return Some(map.node());
        }
        let paths = self.paths();
        paths.iter().find(|path| path.is_running()).or(paths.first()).map(Disk::node)
    }

    /// The device by which it would be used if it were there.
    pub fn name(&self) -> PathBuf {
        Path::new("/dev/disk/by-id").join(format!("scsi-{}", self.scsi_id))
    }

    /// Sees to it that there is one device, of the size that the LUN has now.
    ///
    /// # Errors
    /// Those of [`multipath::make`]; [`Error::DeviceInUse`] for several paths without a map.
    pub fn prepare(&self) -> Result<()> {
        let paths = self.paths();
        self.measure(&paths);
        if let Some(map) = self.map(&paths)? {
            multipath::mark_in_use(&self.scsi_id, &map);
            let largest = self.paths().iter().map(|path| path.size).max().unwrap_or(0);
            if map.size() < largest {
                multipath::resize(&map)?;
            }
        }
        paths.iter().for_each(scsidisk::schedule_nothing);
        Ok(())
    }

    fn measure(&self, paths: &[Disk]) {
        std::thread::scope(|scope| {
            for path in paths.iter().filter(|path| path.is_running()) {
                scope.spawn(|| scsidisk::rescan(path));
            }
        });
    }

    fn map(&self, paths: &[Disk]) -> Result<Option<Map>> {
        match multipath::map_of(&self.scsi_id) {
            Some(map) => Ok(Some(map)),
            None if self.multipathing => multipath::make(&self.scsi_id, paths).map(Some),
            None if paths.len() > 1 => {
                let names: Vec<&str> = paths.iter().map(|path| path.name.as_str()).collect();
                Err(Error::DeviceInUse {
                    device: format!("LUN {}", self.scsi_id),
                    holder: format!(
                        "it has {} paths ({}) and no multipath map; start multipathd, or log in by one portal",
                        paths.len(),
                        names.join(", ")
                    ),
                })
            }
            None => Ok(None),
        }
    }
}

/// `true`, `false`, or nothing.
///
/// # Errors
/// [`Error::Invalid`].
pub fn flag(config: &DeviceConfig, key: &'static str) -> Result<Option<bool>> {
    match config.get(key).unwrap_or("") {
        "" => Ok(None),
        "true" => Ok(Some(true)),
        "false" => Ok(Some(false)),
        other => {
            Err(Error::Invalid { what: key, value: other.to_owned(), expected: "expected true or false".to_owned() })
        }
    }
}

/// Whether a text is an identifier that may be an argument and a part of a path.
pub fn is_scsi_id(text: &str) -> bool {
    const LONGEST: usize = 255;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:=+@-".contains(c);
    !text.is_empty() && text.len() <= LONGEST && text.chars().all(plain) && !text.starts_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_no_path_and_no_option() {
        for good in ["360014051a1ab1e000004000800000000", "SQEMU_HARDDISK_12", "1ATA_a.b-c:d=e+f@g"] {
            assert!(is_scsi_id(good), "{good}");
        }
        for bad in ["", "-f", "../x", "a/b", "a b", "a\n", "a\"", "ä", "*", &"a".repeat(256)] {
            assert!(!is_scsi_id(bad), "{bad}");
        }
        let config = |id, multipathing| DeviceConfig::from([("SCSIid", id), ("multipathing", multipathing)]);
        assert!(Lun::new(&config("3600", "true")).unwrap().multipathing);
        assert!(!Lun::new(&config("3600", "")).unwrap().multipathing);
        assert!(matches!(Lun::new(&config("", "")), Err(Error::MissingKey { key: "SCSIid", .. })));
        assert!(matches!(Lun::new(&config("3600", "yes")), Err(Error::Invalid { what: "multipathing", .. })));
        assert!(matches!(Lun::new(&config("a/b", "")), Err(Error::Invalid { what: "SCSIid", .. })));
    }
}
