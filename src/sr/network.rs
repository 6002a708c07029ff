//! `CephFSSR`, `GlusterFSSR`, `MooseFSSR`: disks as files in a network filesystem that mount(8) mounts, SRs as in
//! [`mod@crate::sr::served`]. One row each.
//!
//! `docs/network.md` has their keys, and what was tested.

use std::path::Path;
use std::time::Duration;

use crate::context::Deadline;
use crate::error::{Error, Protocol, Result, ServerFault, one_line};
use crate::sr::config::{PREFERRED_FORMATS, absolute_path, mountpoint};
use crate::sr::driver::{About, Driver, Sr, Substrate};
use crate::sr::file;
use crate::sr::nfs::export;
use crate::sr::served::{self, Kind, Purpose, Remote, ServedSr};
use crate::sys::server::{self, fault, is_ipv6};
use crate::sys::tool::Tool;
use crate::sys::watch::Pulse;
use crate::types::{DeviceConfig, SrInfo, SrUuid};

/// How long mount(8) may take.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);

/// Options that say nothing of a filesystem's own, and those that ours take the place of.
const OURS: [&str; 14] = [
    "nosuid", "nodev", "noexec", "rw", "defaults", "auto", "noauto", "nofail", "nouser", "_netdev", "suid", "dev",
    "exec", "users",
];

/// A network filesystem.
struct Row {
    kind: Kind,
    protocol: Protocol,
    /// The type that mount(8) is given.
    mounts_as: &'static str,
    /// The options in which a password would stand, which everyone on a host could read.
    passwords: &'static [&'static str],
    /// How a password is given instead.
    instead: &'static str,
    place: fn(&DeviceConfig) -> Result<Place>,
    /// What the mount table shows of a place and a directory in it; what mount(8) is given, if that is the same.
    shown: Option<fn(&Place) -> String>,
}

/// A directory of a network filesystem, as device_config names it.
struct Place {
    /// Servers, any of which answers for all.
    servers: Vec<String>,
    port: u16,
    /// What comes before the directory: `host:`, `host:9421:`.
    before: String,
    /// The directory, with a slash in front.
    path: String,
    /// Options that follow from keys, each with a comma behind it.
    options: String,
}

pub const CEPHFS: Driver = Driver {
    sr_type: CEPH.kind.sr_type,
    executable: "CephFSSR",
    description: "disks as files in a Ceph filesystem",
    dconf_form: "<monitor>[,<monitor>]:[<port>:]/directory",
    parse_dconf: |dconf| keys_of_ceph(dconf).ok_or_else(|| bad_dconf(&CEPHFS, dconf)),
    open: |sr, config, deadline| open(&CEPH, sr, config, deadline),
    probe: |config, deadline| probe(&CEPH, config, deadline),
    discover: || served::discover(&CEPH.kind),
    about: About {
        name: "CephFS",
        configuration: &[
            ("server", "the monitors, separated by commas (required)"),
            ("serverpath", "a directory of the filesystem (required)"),
            ("serverport", "the monitors' port; 6789 if not given"),
            ("options", "mount options, separated by commas, such as name=admin,secretfile=/etc/ceph/admin.secret"),
            MOUNTPOINT,
            PREFERRED_FORMATS,
        ],
        substrate: Substrate::Share,
        ..file::DRIVER.about
    },
    ..file::DRIVER
};

pub const GLUSTERFS: Driver = Driver {
    sr_type: GLUSTER.kind.sr_type,
    executable: "GlusterFSSR",
    description: "disks as files in a GlusterFS volume",
    dconf_form: "<server>:/volume",
    parse_dconf: |dconf| keys_of_gluster(dconf).ok_or_else(|| bad_dconf(&GLUSTERFS, dconf)),
    open: |sr, config, deadline| open(&GLUSTER, sr, config, deadline),
    probe: |config, deadline| probe(&GLUSTER, config, deadline),
    discover: || served::discover(&GLUSTER.kind),
    about: About {
        name: "GlusterFS",
        configuration: &[
            ("server", "server:/volume (required)"),
            ("backupservers", "further servers that know the volume, separated by colons"),
            ("fetchattempts", "how often the client asks for the volume's description"),
            ("options", "further mount options, separated by commas"),
            MOUNTPOINT,
            PREFERRED_FORMATS,
        ],
        substrate: Substrate::Share,
        ..file::DRIVER.about
    },
    ..file::DRIVER
};

pub const MOOSEFS: Driver = Driver {
    sr_type: MOOSE.kind.sr_type,
    executable: "MooseFSSR",
    description: "disks as files in a MooseFS",
    dconf_form: "<master>:[<port>:]/directory",
    parse_dconf: |dconf| keys_of_moose(dconf).ok_or_else(|| bad_dconf(&MOOSEFS, dconf)),
    open: |sr, config, deadline| open(&MOOSE, sr, config, deadline),
    probe: |config, deadline| probe(&MOOSE, config, deadline),
    discover: || served::discover(&MOOSE.kind),
    about: About {
        name: "MooseFS",
        configuration: &[
            ("masterhost", "host name or address of the master (required)"),
            ("rootpath", "a directory of the filesystem (required)"),
            ("masterport", "the master's port; 9421 if not given"),
            ("options", "mount options, separated by commas"),
            MOUNTPOINT,
            PREFERRED_FORMATS,
        ],
        substrate: Substrate::Share,
        ..file::DRIVER.about
    },
    ..file::DRIVER
};

const MOUNTPOINT: (&str, &str) = ("mountpoint", "the directory below which SRs are mounted");

static CEPH: Row = Row {
    kind: Kind { sr_type: "cephfs", fs_types: &["ceph"], keys: keys_of_ceph },
    protocol: Protocol::Ceph,
    mounts_as: "ceph",
    passwords: &["secret"],
    instead: "secretfile=/path",
    place: |config| {
        let servers = config.require("server")?.split(',').map(str::trim).filter(|it| !it.is_empty());
        let servers = servers.map(export::server).collect::<Result<Vec<String>>>()?;
        if servers.is_empty() {
            return Err(refused("server", "", "expected host names or addresses, separated by commas"));
        }
        let port = port(config, "serverport", 6789)?;
        let shown = servers.iter().map(|server| bracketed(server)).collect::<Vec<_>>().join(",");
        let path = directory(config, "serverpath")?;
        Ok(Place { servers, port, before: format!("{shown}:{port}:"), path, options: String::new() })
    },
    shown: None,
};

static GLUSTER: Row = Row {
    kind: Kind { sr_type: "glusterfs", fs_types: &["fuse.glusterfs"], keys: keys_of_gluster },
    protocol: Protocol::Gluster,
    mounts_as: "glusterfs",
    passwords: &[],
    instead: "",
    place: |config| {
        let given = config.require("server")?;
        let (host, volume) = split_gluster(given).ok_or_else(|| refused("server", given, "expected server:/volume"))?;
        let server = export::server(host)?;
        let path = absolute_path("server", volume)?.display().to_string();
        plain("server", &path)?;
        let mut options = String::new();
        if let Some(backups) = config.get("backupservers").filter(|value| !value.is_empty()) {
            let backups = backups.split(':').map(export::server).collect::<Result<Vec<String>>>()?;
            options += &format!("backup-volfile-servers={},", backups.join(":"));
        }
        if let Some(attempts) = config.get("fetchattempts").filter(|value| !value.is_empty()) {
            let attempts: u32 =
                attempts.parse().map_err(|_| refused("fetchattempts", attempts, "expected a number"))?;
            options += &format!("fetch-attempts={attempts},");
        }
        Ok(Place { before: format!("{}:", bracketed(&server)), servers: vec![server], port: 24007, path, options })
    },
    shown: None,
};

static MOOSE: Row = Row {
    kind: Kind { sr_type: "moosefs", fs_types: &["fuse"], keys: |_| None },
    protocol: Protocol::Moose,
    mounts_as: "moosefs",
    passwords: &["mfspassword", "mfsmd5pass"],
    instead: "mfscfgfile=/path",
    place: |config| {
        let server = export::server(config.require("masterhost")?)?;
        let port = port(config, "masterport", 9421)?;
        let path = directory(config, "rootpath")?;
        let before = format!("{}:{port}:", bracketed(&server));
        Ok(Place { servers: vec![server], port, before, path, options: String::new() })
    },
    // It shows no directory: the marker in it says which SR it is.
    shown: Some(|place| format!("mfs#{}", place.before.trim_end_matches(':'))),
};

fn refused(what: &'static str, value: &str, expected: &str) -> Error {
    Error::Invalid { what, value: value.to_owned(), expected: expected.to_owned() }
}

fn bad_dconf(driver: &Driver, dconf: &str) -> Error {
    refused("dconf", dconf, &format!("expected {}", driver.dconf_form))
}

fn bracketed(server: &str) -> String {
    if is_ipv6(server) { format!("[{server}]") } else { server.to_owned() }
}

fn port(config: &DeviceConfig, key: &'static str, usual: u16) -> Result<u16> {
    match config.get(key).map(str::trim).filter(|value| !value.is_empty()) {
        None => Ok(usual),
        Some(value) => value.parse().map_err(|_| refused(key, value, "expected a port")),
    }
}

/// A directory of a filesystem, which may be its root.
fn directory(config: &DeviceConfig, key: &'static str) -> Result<String> {
    let value = config.require(key)?;
    let path = if value == "/" { String::new() } else { absolute_path(key, value)?.display().to_string() };
    plain(key, &path)?;
    Ok(path)
}

/// Refuses a path that mount(8) or a helper of it would take for more.
fn plain(key: &'static str, path: &str) -> Result<()> {
    match path.contains([',', ':']) {
        true => Err(refused(key, path, "expected a path without commas and colons")),
        false => Ok(()),
    }
}

/// `host` and `/volume` of `host:/volume`.
fn split_gluster(source: &str) -> Option<(&str, &str)> {
    let at = source.find(":/")?;
    Some((&source[..at], &source[at + 1..]))
}

fn keys_of_gluster(source: &str) -> Option<DeviceConfig> {
    let (host, volume) = split_gluster(source)?;
    (!host.is_empty() && volume.len() > 1).then(|| DeviceConfig::from([("server", source)]))
}

/// `host:port:/path`, `host:/path` or either without a path; the keys by these names.
fn keys_of(source: &str, keys: [&'static str; 3]) -> Option<DeviceConfig> {
    let (servers, path) = match source.find(":/") {
        Some(at) => (&source[..at], &source[at + 1..]),
        None => (source.strip_suffix(':')?, "/"),
    };
    let (host, port) = match servers.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (servers, None),
    };
    if host.is_empty() {
        return None;
    }
    let mut config = DeviceConfig::from([(keys[0], host), (keys[1], path)]);
    if let Some(port) = port {
        config.0.insert(keys[2].to_owned(), port.to_owned());
    }
    Some(config)
}

fn keys_of_ceph(source: &str) -> Option<DeviceConfig> {
    keys_of(source, ["server", "serverpath", "serverport"])
}

fn keys_of_moose(source: &str) -> Option<DeviceConfig> {
    keys_of(source, ["masterhost", "rootpath", "masterport"])
}

/// A directory of a network filesystem that can be mounted.
struct Network {
    row: &'static Row,
    place: Place,
    /// The caller's mount options, judged when something is mounted.
    given: String,
}

impl Network {
    fn new(row: &'static Row, config: &DeviceConfig) -> Result<Network> {
        Ok(Network { row, place: (row.place)(config)?, given: config.get("options").unwrap_or("").to_owned() })
    }

    /// What stands behind `-o`.
    ///
    /// # Errors
    /// [`Error::Invalid`], without the value if that may be a password.
    fn options(&self) -> Result<String> {
        let mut options = self.place.options.clone();
        let plain = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
        for option in self.given.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if self.row.passwords.contains(&name) {
                let expected = format!("a password is not taken there, but from a file: {}", self.row.instead);
                return Err(refused("options", &format!("{name}=***"), &expected));
            }
            if OURS.contains(&name) || name.starts_with("x-") {
                continue;
            }
            let is_new = !["remount", "bind", "rbind", "move"].contains(&name);
            if name.starts_with('-') || !is_new || !plain(name, "_-.") || !plain(value, "_.:/@-") {
                return Err(refused("options", "***", "one of them is no mount option"));
            }
            options += &format!("{option},");
        }
        Ok(options + "nosuid,nodev,noexec")
    }
}

impl Remote for Network {
    fn source(&self, below: &str) -> String {
        let Place { before, path, .. } = &self.place;
        match (path.as_str(), below) {
            ("", "") => format!("{before}/"),
            (path, "") => format!("{before}{path}"),
            (path, below) => format!("{before}{path}/{below}"),
        }
    }

    fn shown(&self, below: &str) -> String {
        self.row.shown.map_or_else(|| self.source(below), |shown| shown(&self.place))
    }

    fn mount(&self, below: &str, at: &Path, _purpose: Purpose) -> Result<()> {
        let options = self.options()?;
        (self.pulse())()?;
        let source = self.source(below);
        let at = at.display().to_string();
        // The source begins with the name of a server, the place with a slash.
        let args = ["-t", self.row.mounts_as, "-o", &options, &source, &at];
        let mounted = Tool::new("mount").args(args).deadline(MOUNT_DEADLINE).run();
        mounted.map(drop).map_err(|e| {
            let says = |words: &[&str]| {
                matches!(&e, Error::Tool { stderr, .. } if words.iter().any(|word| stderr.contains(word)))
            };
            let what = if says(&["No such file", "not found", "does not exist"]) {
                ServerFault::NoExport
            } else if says(&["ermission denied", "not permitted"]) {
                ServerFault::Denied
            } else {
                ServerFault::Mount
            };
            // mount.ceph says the same of both.
            let hint = match says(&["no mds server is up"]) {
                true => "; or it does not take its key: the kernel's log tells which",
                false => "",
            };
            self.failed(what, format!("{source}: {}{hint}", one_line(&e)))
        })
    }

    fn failed(&self, what: ServerFault, why: String) -> Error {
        fault(self.row.protocol, &self.place.servers.join(","), what, why)
    }

    /// Whether one of the servers takes connections.
    fn pulse(&self) -> Pulse {
        let (protocol, servers, port) = (self.row.protocol, self.place.servers.clone(), self.place.port);
        Box::new(move || {
            let mut last = Ok(());
            for host in &servers {
                last = server::listens(protocol, host, port);
                if last.is_ok() {
                    break;
                }
            }
            last
        })
    }
}

fn open(row: &'static Row, sr: SrUuid, config: &DeviceConfig, deadline: Deadline) -> Result<Box<dyn Sr>> {
    let network = Network::new(row, config)?;
    Ok(Box::new(ServedSr::new(&row.kind, sr, network, &mountpoint(config)?, deadline)))
}

fn probe(row: &'static Row, config: &DeviceConfig, deadline: Deadline) -> Result<Vec<SrInfo>> {
    served::probe(&row.kind, Network::new(row, config)?, deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(row: &'static Row, keys: &[(&str, &str)]) -> Result<Network> {
        Network::new(row, &DeviceConfig(keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()))
    }

    #[test]
    fn the_keys_of_the_python_drivers_make_their_sources_and_options() {
        let ceph =
            network(&CEPH, &[("server", "m1, fe80::1"), ("serverpath", "/xcp"), ("options", "name=a,secretfile=/s")]);
        let ceph = ceph.unwrap();
        assert_eq!(ceph.source("sr"), "m1,[fe80::1]:6789:/xcp/sr");
        assert_eq!(ceph.options().unwrap(), "name=a,secretfile=/s,nosuid,nodev,noexec");
        let root = network(&CEPH, &[("server", "m1"), ("serverpath", "/"), ("serverport", "3300")]).unwrap();
        assert_eq!([root.source(""), root.source("sr")], ["m1:3300:/", "m1:3300:/sr"]);
        let keys = [("server", "g1:/gv0"), ("backupservers", "g2:g3"), ("fetchattempts", "4")];
        let gluster = network(&GLUSTER, &keys).unwrap();
        assert_eq!([gluster.source(""), gluster.source("sr")], ["g1:/gv0", "g1:/gv0/sr"]);
        assert_eq!(gluster.options().unwrap(), "backup-volfile-servers=g2:g3,fetch-attempts=4,nosuid,nodev,noexec");
        let moose = network(&MOOSE, &[("masterhost", "m"), ("rootpath", "/xcp")]).unwrap();
        assert_eq!([moose.source("sr"), moose.shown("sr")], ["m:9421:/xcp/sr", "mfs#m:9421"]);
    }

    #[test]
    fn what_could_be_an_option_or_a_password_is_refused() {
        for (row, keys) in [
            (&CEPH, &[("server", "-o"), ("serverpath", "/x")][..]),
            (&CEPH, &[("server", ","), ("serverpath", "/x")]),
            (&CEPH, &[("server", "m"), ("serverpath", "x")]),
            (&CEPH, &[("server", "m"), ("serverpath", "/a,b")]),
            (&CEPH, &[("server", "m"), ("serverpath", "/a"), ("serverport", "x")]),
            (&CEPH, &[("server", "m")]),
            (&GLUSTER, &[("server", "g1")]),
            (&GLUSTER, &[("server", "g1:/")]),
            (&GLUSTER, &[("server", "g1:/a/../b")]),
            (&GLUSTER, &[("server", "g1:/v"), ("backupservers", "-x")]),
            (&GLUSTER, &[("server", "g1:/v"), ("fetchattempts", "x")]),
            (&MOOSE, &[("masterhost", "m")]),
            (&MOOSE, &[("masterhost", "a b"), ("rootpath", "/")]),
        ] {
            assert!(network(row, keys).is_err(), "{keys:?}");
        }
        for (row, options) in [
            (&CEPH, "name=a,secret=hunter2"),
            (&MOOSE, "mfspassword=hunter2"),
            (&CEPH, "x=\"hunter2"),
            (&MOOSE, "bind"),
        ] {
            let keys =
                [("server", "m"), ("masterhost", "m"), ("serverpath", "/x"), ("rootpath", "/x"), ("options", options)];
            let refused = network(row, &keys).unwrap().options().unwrap_err().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn the_short_form_and_the_mount_table_name_the_same_keys() {
        for (driver, short, keys) in [
            (&CEPHFS, "m1,m2:6789:/xcp", [("server", "m1,m2"), ("serverpath", "/xcp"), ("serverport", "6789")]),
            (&MOOSEFS, "m:9421:/xcp", [("masterhost", "m"), ("rootpath", "/xcp"), ("masterport", "9421")]),
        ] {
            assert_eq!((driver.parse_dconf)(short).unwrap(), DeviceConfig::from(keys));
        }
        assert_eq!(keys_of_moose("m:9421:").unwrap().get("rootpath"), Some("/"));
        assert_eq!(keys_of_ceph("[fe80::1]:/x").unwrap().get("server"), Some("[fe80::1]"));
        assert_eq!((GLUSTERFS.parse_dconf)("g1:/gv0").unwrap(), DeviceConfig::from([("server", "g1:/gv0")]));
        for (driver, bad) in [(&CEPHFS, "m1"), (&GLUSTERFS, "g1:gv0"), (&GLUSTERFS, ":/v"), (&MOOSEFS, ":/x")] {
            assert!((driver.parse_dconf)(bad).is_err(), "{bad}");
        }
    }
}
