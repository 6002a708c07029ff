//! `NFSSR`: disks as files on an NFS export, an SR as in [`mod@served`].
//!
//! Which mount options and why, and what is true with several hosts: `docs/nfs.md`.

pub mod export;
mod options;

use crate::context::Deadline;
use crate::error::{Error, Result};
use crate::sr::config::PREFERRED_FORMATS;
use crate::sr::driver::{About, Driver, Substrate};
use crate::sr::file;
use crate::sr::served::{self, Holds, Kind, ServedSr};
use crate::sys::server::is_ipv6;
use crate::types::{DeviceConfig, SrInfo};

use export::{Export, FS_TYPES};

pub const DRIVER: Driver = Driver {
    sr_type: KIND.sr_type,
    executable: "NFSSR",
    description: "disks as files on an NFS export",
    dconf_form: "nfs@<server>:/remote/directory[@/local/mountpoint]",
    parse_dconf,
    open: |sr, config, deadline| {
        let export = Export::new(config, Holds::Disks)?;
        let base = export.base.clone();
        Ok(Box::new(ServedSr::new(&KIND, sr, export, &base, deadline)))
    },
    probe,
    discover: || served::discover(&KIND),
    about: About {
        name: "NFS",
        configuration: &[
            ("server", "host name or address of the server (required)"),
            ("serverpath", "the exported directory (required)"),
            ("nfsversion", "3, 4, 4.0, 4.1 or 4.2; the newest that works if not given"),
            ("options", "further mount options, separated by commas"),
            ("mountpoint", "the directory below which SRs are mounted"),
            PREFERRED_FORMATS,
        ],
        substrate: Substrate::NfsExport,
        protocol_versions: |config| Export::new(config, Holds::Disks)?.spoken(),
        ..file::DRIVER.about
    },
    ..file::DRIVER
};

pub const KIND: Kind = Kind { sr_type: "nfs", fs_types: FS_TYPES, keys };

/// `nfs@<server>:/remote/directory@/local/mountpoint`; an IPv6 address stands in brackets. Without a mountpoint, the default
/// counts, and `nfs@` may be left out then, as mount(8) has it.
///
/// # Errors
/// [`Error::Invalid`] with the form that it must have.
pub fn parse_dconf(dconf: &str) -> Result<DeviceConfig> {
    let bad = || Error::Invalid {
        what: "dconf",
        value: dconf.to_owned(),
        expected: format!("expected {}", DRIVER.dconf_form),
    };
    let (rest, is_v1) = match dconf.strip_prefix("nfs@") {
        Some(rest) => (rest, true),
        None => (dconf, false),
    };
    let (server, paths) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").filter(|(address, _)| is_ipv6(address)),
        None => rest.split_once(':'),
    }
    .ok_or_else(bad)?;
    let (remote, local) = match paths.rfind("@/").filter(|_| is_v1) {
        Some(at) => (&paths[..at], Some(&paths[at + 1..])),
        // One that was meant lacks its slash.
        None if is_v1 && paths.contains('@') => return Err(bad()),
        None => (paths, None),
    };
    if !remote.starts_with('/') || server.is_empty() {
        return Err(bad());
    }
    let mut config = DeviceConfig::from([("server", server), ("serverpath", remote)]);
    config.0.extend(local.map(|local| ("mountpoint".to_owned(), local.to_owned())));
    Ok(config)
}

/// The keys of `server:/path`.
fn keys(source: &str) -> Option<DeviceConfig> {
    let (server, path) = source.split_once(":/").or_else(|| Some((source.strip_suffix(':')?, "")))?;
    let path = format!("/{path}");
    Some(DeviceConfig::from([("server", server.trim_matches(['[', ']'])), ("serverpath", &path)]))
}

/// The SRs of an export.
///
/// # Errors
/// [`Error::ExportNotChosen`] with what there is to choose from, if `serverpath` is missing; those of [`served::probe`].
fn probe(config: &DeviceConfig, deadline: Deadline) -> Result<Vec<SrInfo>> {
    match Export::new(config, Holds::Disks) {
        Err(Error::MissingKey { key: "serverpath", .. }) => {
            let server = config.require("server")?.to_owned();
            Err(Error::ExportNotChosen { exports: Export::all_of(config)?, server })
        }
        other => served::probe(&KIND, other?, deadline),
    }
}
