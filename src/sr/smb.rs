//! `SMBSR`: disks as files on an SMB share, an SR as in [`mod@served`].
//!
//! Which mount options and why, and what is true with several hosts: `docs/smb.md`.

pub mod share;

use crate::error::{Error, Result};
use crate::sr::config::{PREFERRED_FORMATS, mountpoint};
use crate::sr::driver::{About, Driver, Substrate};
use crate::sr::file;
use crate::sr::served::{self, Kind, ServedSr};
use crate::types::DeviceConfig;

use share::{FS_TYPES, OF_DISKS, Share};

pub const DRIVER: Driver = Driver {
    sr_type: KIND.sr_type,
    executable: "SMBSR",
    description: "disks as files on an SMB share",
    dconf_form: "//<server>/<share> or smb@//<server>/<share>@/local/mountpoint",
    parse_dconf,
    open: |sr, config, deadline| {
        let share = Share::new(&OF_DISKS, config)?;
        Ok(Box::new(ServedSr::new(&KIND, sr, share, &mountpoint(config)?, deadline)))
    },
    probe: |config, deadline| served::probe(&KIND, Share::new(&OF_DISKS, config)?, deadline),
    discover: || served::discover(&KIND),
    about: About {
        name: "SMB",
        configuration: &[
            ("server", "//server/share, or a directory in it (required)"),
            ("username", "name, or domain\\name, of a user of the server; guest if not given"),
            ("password", "that user's password"),
            ("password_secret", "the UUID of xapi's secret with that password"),
            ("credentials", "the path of a file with the user, the password and the domain; mount.cifs(8)"),
            ("vers", "2.1, 3.0, 3.02 or 3.1.1; the newest that works if not given"),
            ("options", "further mount options, separated by commas"),
            ("mountpoint", "the directory below which SRs are mounted"),
            PREFERRED_FORMATS,
        ],
        substrate: Substrate::Share,
        ..file::DRIVER.about
    },
    ..file::DRIVER
};

pub const KIND: Kind = Kind { sr_type: "smb", fs_types: FS_TYPES, keys };

/// `//<server>/<share>`, or `smb@//<server>/<share>@/local/mountpoint`.
///
/// # Errors
/// [`Error::Invalid`] with the form that it must have.
pub fn parse_dconf(dconf: &str) -> Result<DeviceConfig> {
    if dconf.starts_with("//") || dconf.starts_with("\\\\") {
        return Ok(DeviceConfig::from([("server", dconf)]));
    }
    let split = |rest: &str| rest.rfind("@/").map(|at| (rest[..at].to_owned(), rest[at + 1..].to_owned()));
    let (share, mountpoint) =
        dconf.strip_prefix("smb@").filter(|rest| rest.starts_with("//")).and_then(split).ok_or_else(|| {
            Error::Invalid {
                what: "dconf",
                value: dconf.to_owned(),
                expected: format!("expected {}", DRIVER.dconf_form),
            }
        })?;
    Ok(DeviceConfig::from([("server", share.as_str()), ("mountpoint", &mountpoint)]))
}

/// The keys of `//server/share`.
fn keys(source: &str) -> Option<DeviceConfig> {
    let is_share = source
        .strip_prefix("//")?
        .split_once('/')
        .is_some_and(|(server, share)| !server.is_empty() && !share.is_empty());
    is_share.then(|| DeviceConfig::from([("server", source)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_is_a_share_with_or_without_a_mountpoint() {
        let words = |dconf| {
            let config = parse_dconf(dconf).unwrap();
            ["server", "mountpoint"].map(|key| config.get(key).unwrap_or_default().to_owned())
        };
        assert_eq!(words("//filer/disks"), ["//filer/disks", ""]);
        assert_eq!(words(r"\\filer\disks"), [r"\\filer\disks", ""]);
        assert_eq!(words("smb@//filer/a@b/c@/mnt/smb"), ["//filer/a@b/c", "/mnt/smb"]);
        for bad in
            ["", "smb@", "smb@//filer/disks", "smb@filer/disks@/mnt", "filer/disks", "/srv/disks", "SMB@//f/d@/m"]
        {
            assert!(parse_dconf(bad).is_err(), "{bad:?}");
        }
        for bad in ["//filer", "//filer/", "//-o/x", "//filer/a,b", "//filer/../x", "//u:hunter2@filer/x"] {
            let refused = Share::new(&OF_DISKS, &parse_dconf(bad).unwrap()).err().unwrap().to_string();
            assert!(refused.contains("server") && !refused.contains("hunter2"), "{refused}");
        }
    }
}
