//! A directory that an NFS server exports: what names it, and mounting it. Which options and why: `docs/nfs.md`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::options::{Chosen, options, port, versions, waits};
use crate::error::{Error, Exported, Protocol, Result, ServerFault, one_line};
use crate::sr::config::{absolute_path, mountpoint};
use crate::sr::nfs;
use crate::sr::served::{self, Holds, Purpose, Remote};
use crate::sys::server::{fault, is_ipv6};
use crate::sys::watch::Pulse;
use crate::sys::{mount, sunrpc, syslog};
use crate::types::DeviceConfig;

/// How long mount.nfs may take: two of its own ten-second waits for a server.
const MOUNT_DEADLINE: Duration = Duration::from_secs(25);

/// The filesystem types that the mount table has for such mounts.
pub const FS_TYPES: &[&str] = &["nfs", "nfs4"];

/// The options of every mount. With them, a host sees with its next call what another host has changed.
const OPTIONS: &str = "retry=0,acdirmin=0,acdirmax=0,lookupcache=none,nosuid,nodev,noexec";

/// A directory that a server exports, as device_config names it.
pub struct Export {
    server: String,
    port: u16,
    path: PathBuf,
    holds: Holds,
    nfsversion: Option<String>,
    /// The caller's; [`Export::chosen`] reads them.
    options: String,
    udp: bool,
    /// Where SRs are mounted.
    pub base: PathBuf,
}

impl Export {
    /// Parses the keys `server`, `serverpath` and `mountpoint`; touches nothing. `nfsversion`, `options` and `useUDP` say
    /// how to mount and are judged by [`Export::mount`], so that what is mounted can be unmounted whatever they say.
    ///
    /// # Errors
    /// [`Error::MissingKey`], [`Error::Invalid`].
    pub fn new(config: &DeviceConfig, holds: Holds) -> Result<Export> {
        let given = |key| config.get(key).map(str::trim).filter(|value| !value.is_empty());
        let options = given("options").unwrap_or("").to_owned();
        Ok(Export {
            server: server(config.require("server")?)?,
            port: port(&options),
            path: server_path(config.require("serverpath")?)?,
            holds,
            nfsversion: given("nfsversion").map(str::to_owned),
            options,
            udp: given("useUDP").is_some_and(|value| value.eq_ignore_ascii_case("true")),
            base: mountpoint(config)?,
        })
    }

    /// # Errors
    /// [`Error::Invalid`].
    fn chosen(&self) -> Result<Chosen> {
        let mut chosen = options(&self.options, self.holds)?;
        if self.udp {
            chosen.replaced.push("useUDP".to_owned());
        }
        chosen.versions = match (&chosen.version, &self.nfsversion) {
            (Some(version), _) => versions("options", Some(version))?,
            (None, wanted) => versions("nfsversion", wanted.as_deref())?,
        };
        Ok(chosen)
    }

    /// Asks the server before anything waits for it, then mounts with the newest version both have, at the kind of address
    /// that answered. The log says which of the caller's options were replaced.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options that cannot be understood; [`Error::Server`], with what mount.nfs said.
    pub fn mount_with(&self, below: &str, at: &Path, more: &str) -> Result<()> {
        let chosen = self.chosen()?;
        let (address, spoken) = sunrpc::nfs(&self.server, self.port)?;
        let source = self.source(below);
        let ours = format!("{},{},{OPTIONS}", waits(self.holds), proto(address));
        if !chosen.replaced.is_empty() {
            let replaced = chosen.replaced.join(", ");
            syslog::write(&format!("mounting {source}: {replaced} of device_config is not used, but {ours}"));
        }
        let mut first = None;
        for (_, version) in chosen.versions.iter().filter(|(major, _)| spoken.contains(major)) {
            // Without locks a version 3 mount needs no rpc.statd, which would outlive us in our namespace.
            let more = if *version == "3" { more } else { "" };
            // Of two that contradict each other the last one counts: ours.
            let options = format!("{}{ours},vers={version}{more}", chosen.kept);
            match mount::nfs(&source, at, &options, MOUNT_DEADLINE) {
                Ok(()) => return Ok(()),
                Err(e @ Error::Tool { .. }) => {
                    let next = may_differ_by_version(&e);
                    first.get_or_insert(e);
                    if !next {
                        break;
                    }
                }
                Err(other) => return Err(other),
            }
        }
        Err(match first {
            Some(e) => self.why_not_mounted(&e, &source),
            None => {
                let spoken = spoken.iter().map(u32::to_string).collect::<Vec<_>>().join(" and ");
                let wanted = chosen.versions[0].1;
                let why = format!("it speaks version {spoken}, and device_config asks for {wanted}");
                fault(Protocol::Nfs, &self.server, ServerFault::Version, why)
            }
        })
    }

    /// The error for a mount that mount.nfs refused. mount.nfs has one exit status for all failures, so its words
    /// decide.
    fn why_not_mounted(&self, e: &Error, source: &str) -> Error {
        let Error::Tool { stderr, .. } = e else { return self.fault(ServerFault::Mount, e) };
        let says = |words: &[&str]| words.iter().any(|words| stderr.contains(words));
        if says(&["No such file"]) {
            let why = format!("{source}: {}", one_line(e));
            fault(Protocol::Nfs, &self.server, ServerFault::NoExport, why)
        } else if says(&["access denied", "Operation not permitted", "Permission denied"]) {
            self.fault(ServerFault::Denied, e)
        } else if says(&["timed out", "Connection refused", "No route to host", "Network is unreachable"]) {
            self.fault(ServerFault::NoAnswer, e)
        } else if says(&["not supported"]) {
            self.fault(ServerFault::Version, e)
        } else {
            self.fault(ServerFault::Mount, e)
        }
    }

    fn fault(&self, what: ServerFault, e: &Error) -> Error {
        fault(Protocol::Nfs, &self.server, what, one_line(e))
    }

    /// The major versions that the server speaks.
    ///
    /// # Errors
    /// [`Error::Server`]: the name is not known, or no NFS server answers.
    pub fn spoken(&self) -> Result<Vec<u32>> {
        sunrpc::nfs_versions(&self.server, self.port)
    }

    /// The exports of the server: its mount daemon's list, or the directories in the root of version 4.
    ///
    /// # Errors
    /// [`Error::Server`] if no NFS server answers; that of [`served::in_root`] if the server has no mount daemon.
    pub fn all_of(config: &DeviceConfig) -> Result<Vec<Exported>> {
        let mut root = config.clone();
        root.0.insert("serverpath".to_owned(), "/".to_owned());
        let root = Export::new(&root, Holds::Images)?;
        root.spoken()?;
        sunrpc::exports(&root.server).or_else(|_| {
            served::in_root(&nfs::KIND, &root, |dir| {
                let names = fs::read_dir(dir).map_err(Error::io("list", dir))?.flatten();
                let directories = names.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                let path = |entry: fs::DirEntry| format!("/{}", entry.file_name().to_string_lossy());
                let mut found: Vec<String> = directories.map(path).collect();
                found.sort_unstable();
                Ok(found.into_iter().map(|path| Exported { path, access: "*".to_owned() }).collect())
            })
        })
    }
}

impl Remote for Export {
    /// `server:/export/below`, as mount.nfs takes it and the mount table shows it.
    fn source(&self, below: &str) -> String {
        let host = if self.server.contains(':') { format!("[{}]", self.server) } else { self.server.clone() };
        format!("{host}:{}", self.path.join(below).components().collect::<PathBuf>().display())
    }

    fn mount(&self, below: &str, at: &Path, purpose: Purpose) -> Result<()> {
        self.mount_with(below, at, if purpose == Purpose::Look { ",nolock" } else { "" })
    }

    fn pulse(&self) -> Pulse {
        let (server, port) = (self.server.clone(), self.port);
        Box::new(move || sunrpc::nfs_versions(&server, port).map(drop))
    }

    fn failed(&self, what: ServerFault, why: String) -> Error {
        fault(Protocol::Nfs, &self.server, what, why)
    }
}

/// How mount.nfs calls TCP for this kind of address; it looks for no address of another kind.
fn proto(address: SocketAddr) -> &'static str {
    if address.is_ipv6() { "proto=tcp6" } else { "proto=tcp" }
}

/// A host name or an address; brackets around an address are taken off.
///
/// # Errors
/// [`Error::Invalid`] if it can be neither.
pub fn server(value: &str) -> Result<String> {
    let inner = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(value);
    let is_name = value.len() <= 253
        && value.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    if is_ipv6(inner) {
        Ok(inner.to_owned())
    } else if is_name {
        Ok(value.to_owned())
    } else {
        Err(Error::Invalid {
            what: "server",
            value: value.to_owned(),
            expected: "expected a host name or an address".to_owned(),
        })
    }
}

/// The root is a path here: it is what many version 4 servers export.
fn server_path(value: &str) -> Result<PathBuf> {
    if value == "/" { Ok(value.into()) } else { absolute_path("serverpath", value) }
}

/// Whether another version is worth a try: this one is not spoken, or has the path under another name (the
/// root of version 4 may be an export that version 3 knows by its path).
fn may_differ_by_version(e: &Error) -> bool {
    match e {
        Error::Tool { stderr, .. } => ["not supported", "No such file", "incorrect mount option", "Invalid argument"]
            .iter()
            .any(|words| stderr.contains(words)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::nfs::parse_dconf;
    use crate::sys::run_dir;

    fn export(dconf: &str) -> Export {
        Export::new(&parse_dconf(dconf).unwrap(), Holds::Disks).unwrap()
    }

    #[test]
    fn the_short_form_is_server_path_and_mountpoint() {
        let it = export("nfs@10.0.0.5:/export/a@b@/mnt/nfs");
        assert_eq!(it.source("x"), "10.0.0.5:/export/a@b/x");
        assert_eq!(it.base, Path::new("/mnt/nfs"));
        assert_eq!(export("nfs@[fe80::1]:/e/@/m").source(""), "[fe80::1]:/e");
        assert_eq!(export("nfs@filer-1.example.org:/@/m").source("x"), "filer-1.example.org:/x");
        for form in ["nfs@filer:/e", "filer:/e"] {
            assert_eq!((export(form).source("x").as_str(), export(form).base), ("filer:/e/x", run_dir::mounts()));
        }
        assert_eq!(export("filer:/e@/m").source("x"), "filer:/e@/m/x");
    }

    #[test]
    fn what_is_no_dconf_or_could_be_an_option_is_refused() {
        for bad in [
            "",
            "nfs@",
            "/srv/sr",
            "nfs@host",
            "nfs@host:e",
            "host:e",
            "host",
            "host:/e@/m/../n\n",
            "-o:/e",
            ":/e",
            "fe80::1:/e",
            "nfs@host:/e@m",
            "nfs@host:e@/m",
            "nfs@:/e@/m",
            "nfs@-o:/e@/m",
            "nfs@a b:/e@/m",
            "nfs@a,b:/e@/m",
            "nfs@a/b:/e@/m",
            "nfs@fe80::1:/e@/m",
            "nfs@[fe80::1:/e@/m",
            "nfs@[host]:/e@/m",
            "nfs@host:/e/../f@/m",
            "nfs@host:/e@/m/../n",
            "nfs@host:/e@/",
            "nfs@host:/e\n@/m",
            "NFS@host:/e@/m",
        ] {
            assert!(parse_dconf(bad).and_then(|config| Export::new(&config, Holds::Disks)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn without_a_mountpoint_an_sr_is_where_xapi_looks_for_it() {
        let config = DeviceConfig::from([("server", "fe80::1"), ("serverpath", "/e")]);
        let it = Export::new(&config, Holds::Disks).unwrap();
        assert_eq!((it.base.clone(), it.source("x").as_str()), (run_dir::mounts(), "[fe80::1]:/e/x"));
        assert_eq!(server("[fe80::1]").unwrap(), "fe80::1");
    }

    #[test]
    fn a_version_is_one_that_exists() {
        let names =
            |wanted| versions("nfsversion", wanted).map(|v| v.into_iter().map(|(_, name)| name).collect::<Vec<_>>());
        assert_eq!(names(None).unwrap(), ["4.2", "4.1", "4.0", "3"]);
        assert_eq!(names(Some("4")).unwrap(), ["4.2", "4.1", "4.0"]);
        assert_eq!(names(Some("3")).unwrap(), ["3"]);
        for bad in ["", "2", "4.3", "3,soft", "4.1 ", "34"] {
            assert!(names(Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn options_are_kept_replaced_or_no_options() {
        let sorted = |value: &str, holds| options(value, holds).map(|it| (it.kept, it.version, it.replaced));
        let disks = |value: &str| sorted(value, Holds::Disks).unwrap();
        let kept = |kept: &str| (kept.to_owned(), None, Vec::<String>::new());
        assert_eq!(disks(""), kept(""));
        assert_eq!(disks("hard,proto=tcp,_netdev,x-systemd.automount, rw,,"), kept(""));
        assert_eq!(disks("port=2050,sec=krb5,timeo=600,retrans=2"), kept("port=2050,sec=krb5,timeo=600,retrans=2,"));
        assert_eq!((port("ro,port=2050"), port(""), port("port=x")), (2050, 2049, 2049));
        for (option, version) in
            [("vers=4.1", "4.1"), ("nfsvers=3", "3"), ("v4.2", "4.2"), ("vers=4,minorversion=1", "4.1"), ("v3", "3")]
        {
            assert_eq!(disks(option), (String::new(), Some(version.to_owned()), vec![]), "{option}");
        }
        for option in
            ["soft", "bg", "nolock", "local_lock=all", "udp", "proto=udp", "retry=5", "lookupcache=all", "suid"]
        {
            let found = sorted(&format!("{option},nconnect=2"), Holds::Disks).unwrap();
            assert_eq!(found, ("nconnect=2,".to_owned(), None, vec![option.to_owned()]));
        }
        assert_eq!(sorted("ro,hard", Holds::Images).unwrap(), ("ro,".to_owned(), None, vec!["hard".to_owned()]));
        assert_eq!(sorted("soft", Holds::Images).unwrap(), kept(""));
        for bad in ["a b", "=x", "-o", "x=\"y\"", "x=hunter2 y", "port=x", "remount", "hunter2\ny"] {
            let refused = options(bad, Holds::Disks).unwrap_err().to_string();
            assert!(!refused.contains("hunter2"), "{bad:?} {refused}");
        }
    }

    #[test]
    fn what_says_how_to_mount_is_judged_when_it_is_mounted() {
        let config = |keys: &[(&str, &str)]| {
            let mut config = DeviceConfig::from([("server", "[fe80::1%eth0]"), ("serverpath", "/e")]);
            config.0.extend(keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
            Export::new(&config, Holds::Disks).unwrap()
        };
        let versions = |keys: &[(&str, &str)]| {
            config(keys).chosen().map(|it| it.versions.into_iter().map(|(_, name)| name).collect::<Vec<_>>())
        };
        assert_eq!(config(&[]).source("x"), "[fe80::1%eth0]:/e/x");
        // The Python driver appends the options, so the last word is theirs.
        assert_eq!(versions(&[("nfsversion", "3"), ("options", "vers=4.1")]).unwrap(), ["4.1"]);
        assert_eq!(versions(&[("nfsversion", ""), ("options", "vers=4")]).unwrap(), ["4.2", "4.1", "4.0"]);
        assert_eq!(config(&[("useUDP", "true")]).chosen().unwrap().replaced, ["useUDP"]);
        assert!(versions(&[("nfsversion", "5")]).is_err());
        assert!(versions(&[("options", "vers=2")]).is_err());
    }
}
