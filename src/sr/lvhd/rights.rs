//! Which host may change a group: the SR's master alone.

use std::path::Path;

use crate::error::{Error, Result};
use crate::types::{DeviceConfig, SrUuid};

/// The file of a host that xapi manages.
const XAPI: &str = "/etc/xensource/pool.conf";

/// The part of this host in an SR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    Master,
    /// xapi says that another host is the master.
    Slave,
    /// xapi manages this host, and the call is not from it: another host may be the master, or use the disks.
    OfXapi,
}

impl Rights {
    /// The part that `device_config` gives to this host. Without the key `SRmaster` a host that xapi does not manage is the master.
    pub fn of(config: &DeviceConfig) -> Rights {
        Rights::with(config, Path::new(XAPI).exists())
    }

    fn with(config: &DeviceConfig, has_xapi: bool) -> Rights {
        match config.get("SRmaster") {
            Some("true") => Rights::Master,
            Some(_) => Rights::Slave,
            None if has_xapi => Rights::OfXapi,
            None => Rights::Master,
        }
    }

    /// Refuses a change on another host than the master.
    ///
    /// # Errors
    /// [`Error::NotMaster`]; [`Error::Unsupported`] where only xapi knows.
    pub fn refuse(self, op: &'static str, sr: SrUuid) -> Result<()> {
        match self {
            Rights::Master => Ok(()),
            Rights::Slave => Err(Error::NotMaster { op }),
            Rights::OfXapi => Err(Error::Unsupported {
                op,
                why: format!(
                    "SR {sr} is LVHD, and xapi of this host decides who changes it: use xe, or give SRmaster=true in \
                     device_config on the SR's master"
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_master_changes_a_group() {
        let of = |said: Option<&str>, has_xapi| {
            let config = said.map_or_else(DeviceConfig::default, |said| DeviceConfig::from([("SRmaster", said)]));
            Rights::with(&config, has_xapi)
        };
        for has_xapi in [false, true] {
            assert_eq!(of(Some("true"), has_xapi), Rights::Master);
            assert_eq!(of(Some("false"), has_xapi), Rights::Slave);
            assert_eq!(of(Some("yes"), has_xapi), Rights::Slave);
        }
        assert_eq!((of(None, false), of(None, true)), (Rights::Master, Rights::OfXapi));
        let sr = SrUuid::random();
        Rights::Master.refuse("vdi_set", sr).unwrap();
        assert!(matches!(Rights::Slave.refuse("vdi_set", sr), Err(Error::NotMaster { .. })));
        assert!(Rights::OfXapi.refuse("vdi_set", sr).unwrap_err().to_string().contains("xapi"));
    }
}
