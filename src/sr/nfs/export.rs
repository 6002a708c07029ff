//! A directory that an NFS server exports: what names it, and mounting it. Which options and why: `docs/nfs.md`.

use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Exported, Protocol, Result, ServerFault, one_line};
use crate::sr::{Pulse, absolute_path};
use crate::sys::server::fault;
use crate::sys::{mount, run_dir, sunrpc};
use crate::types::DeviceConfig;

/// How long mount.nfs may take: two of its own ten-second waits for a server.
const MOUNT_DEADLINE: Duration = Duration::from_secs(25);

/// How long a server may be silent before a call without a `--wait` gives it up.
pub const SILENCE: Duration = Duration::from_secs(60);

/// What the mount table calls such mounts.
pub const FS_TYPES: &[&str] = &["nfs", "nfs4"];

/// What every mount has: what one host changes, another sees with its next call.
const OPTIONS: &str = "proto=tcp,retry=0,acdirmin=0,acdirmax=0,lookupcache=none,nosuid,nodev,noexec";

/// What is kept on the export, which decides what becomes of I/O while the server is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It waits: a soft mount forgets writes and says so once, to whoever syncs first.
    Disks,
    /// It fails after a minute: who reads a CD is told each time, and can be shut down meanwhile.
    Images,
}

impl Holds {
    fn options(self) -> &'static str {
        match self {
            Holds::Disks => "hard",
            Holds::Images => "soft,timeo=100,retrans=2",
        }
    }
}

/// Versions in the order they are tried, by what `nfsversion` asks for; the major one is what a server can be
/// asked about without mounting.
const VERSIONS: [(u32, &str); 4] = [(4, "4.2"), (4, "4.1"), (4, "4.0"), (3, "3")];

/// What I/O does while the server is gone. Where it is ours to choose, the others lose data.
const WAITING: [&str; 3] = ["soft", "softerr", "hard"];

/// Options that are ours to choose, because the others lose locks or time.
const REFUSED: [&str; 13] = [
    "bg",
    "nolock",
    "local_lock",
    "vers",
    "nfsvers",
    "v3",
    "v4",
    "v4.0",
    "v4.1",
    "v4.2",
    "minorversion",
    "udp",
    "proto",
];

/// A directory that a server exports, as device_config names it.
pub struct Export {
    server: String,
    port: u16,
    path: PathBuf,
    holds: Holds,
    /// Those that may be used, in the order they are tried.
    versions: Vec<(u32, &'static str)>,
    /// The caller's, each with a comma behind it.
    options: String,
    /// Where SRs are mounted.
    pub base: PathBuf,
}

impl Export {
    /// Parses the keys `server`, `serverpath`, `nfsversion`, `options` and `mountpoint`; touches nothing.
    pub fn new(config: &DeviceConfig, holds: Holds) -> Result<Export> {
        let (options, port) = options(config.get("options").unwrap_or(""), holds)?;
        if config.get("useUDP").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(Error::Invalid {
                what: "useUDP",
                value: "true".to_owned(),
                expected: "NFS over UDP can mix up fragments of different packets and is not offered".to_owned(),
            });
        }
        Ok(Export {
            server: server(config.require("server")?)?,
            port,
            path: server_path(config.require("serverpath")?)?,
            holds,
            versions: versions(config.get("nfsversion"))?,
            options,
            base: match config.get("mountpoint") {
                Some(path) => absolute_path("mountpoint", path)?,
                None => run_dir::mounts(),
            },
        })
    }

    /// `server:/export/below`, as mount.nfs takes it and the mount table shows it.
    pub fn source(&self, below: &str) -> String {
        let host = if self.server.contains(':') { format!("[{}]", self.server) } else { self.server.clone() };
        format!("{host}:{}", self.path.join(below).components().collect::<PathBuf>().display())
    }

    /// Asks the server before anything waits for it, then mounts with the newest version both have.
    ///
    /// # Errors
    /// [`Error::Server`], with what mount.nfs said.
    pub fn mount(&self, below: &str, at: &Path, more: &str) -> Result<()> {
        let spoken = sunrpc::nfs_versions(&self.server, self.port)?;
        let source = self.source(below);
        let mut first = None;
        for (_, version) in self.versions.iter().filter(|(major, _)| spoken.contains(major)) {
            // Without locks a version 3 mount needs no rpc.statd, which would outlive us in our namespace.
            let more = if *version == "3" { more } else { "" };
            // Of two that contradict each other the last one counts: ours.
            let options = format!("{}{},{OPTIONS},vers={version}{more}", self.options, self.holds.options());
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
                let wanted = self.versions[0].1;
                let why = format!("it speaks version {spoken}, and nfsversion asks for {wanted}");
                fault(Protocol::Nfs, &self.server, ServerFault::Version, why)
            }
        })
    }

    /// What mount.nfs said, as what it means. It has one exit status for all, so its words decide.
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
    pub fn spoken(&self) -> Result<Vec<u32>> {
        sunrpc::nfs_versions(&self.server, self.port)
    }

    /// What the server exports: its mount daemon's list, or the directories in the root of version 4.
    pub fn all_of(config: &DeviceConfig) -> Result<Vec<Exported>> {
        let mut root = config.clone();
        root.0.insert("serverpath".to_owned(), "/".to_owned());
        let root = Export::new(&root, Holds::Images)?;
        root.spoken()?;
        sunrpc::exports(&root.server).or_else(|_| {
            root.in_root(|dir| {
                let names = fs::read_dir(dir).map_err(Error::io("list", dir))?.flatten();
                let directories = names.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                let path = |entry: fs::DirEntry| format!("/{}", entry.file_name().to_string_lossy());
                let mut found: Vec<String> = directories.map(path).collect();
                found.sort_unstable();
                Ok(found.into_iter().map(|path| Exported { path, access: "*".to_owned() }).collect())
            })
        })
    }

    /// Does something in the export's own directory, through a mount that ends with it.
    pub fn in_root<T: Send>(&self, work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
        mount::privately(&run_dir::state().join("nfs"), |dir| {
            self.mount("", dir, ",nolock")?;
            work(dir)
        })
    }

    /// Whether the server still answers.
    pub fn pulse(&self) -> Pulse {
        let (server, port) = (self.server.clone(), self.port);
        Box::new(move || sunrpc::nfs_versions(&server, port).map(drop))
    }
}

/// A host name or an address; brackets around an address are taken off.
pub fn server(value: &str) -> Result<String> {
    let inner = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(value);
    let is_name = value.len() <= 253
        && value.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    if inner.parse::<Ipv6Addr>().is_ok() {
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

fn versions(wanted: Option<&str>) -> Result<Vec<(u32, &'static str)>> {
    let fits = |version: &str| match wanted {
        None => true,
        Some("4") => version.starts_with('4'),
        Some(wanted) => version == wanted,
    };
    let found: Vec<_> = VERSIONS.into_iter().filter(|(_, version)| fits(version)).collect();
    if found.is_empty() {
        return Err(Error::Invalid {
            what: "nfsversion",
            value: wanted.unwrap_or_default().to_owned(),
            expected: "expected 3, 4, 4.0, 4.1 or 4.2".to_owned(),
        });
    }
    Ok(found)
}

/// The caller's mount options with a comma behind each, and the port if they name one.
fn options(value: &str, holds: Holds) -> Result<(String, u16)> {
    let bad = |expected: String| Error::Invalid { what: "options", value: value.to_owned(), expected };
    let (mut checked, mut port) = (String::new(), sunrpc::NFS_PORT);
    for option in value.split(',').filter(|option| !option.is_empty()) {
        let (name, argument) = option.split_once('=').unwrap_or((option, ""));
        let plain = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
        if name.is_empty() || !plain(name, "_.") || !plain(argument, "_.:/-") {
            return Err(bad(format!("{option:?} is no mount option")));
        }
        if REFUSED.contains(&name) || holds == Holds::Disks && WAITING.contains(&name) {
            return Err(bad(format!("{name} is not the caller's to choose; nfsversion chooses the version")));
        }
        if name == "port" {
            port = argument.parse().map_err(|_| bad("port is a number".to_owned()))?;
        }
        checked.push_str(option);
        checked.push(',');
    }
    Ok((checked, port))
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
    }

    #[test]
    fn what_is_no_dconf_or_could_be_an_option_is_refused() {
        for bad in [
            "",
            "nfs@",
            "/srv/sr",
            "nfs@host",
            "nfs@host:/e",
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
        let names = |wanted| versions(wanted).map(|v| v.into_iter().map(|(_, name)| name).collect::<Vec<_>>());
        assert_eq!(names(None).unwrap(), ["4.2", "4.1", "4.0", "3"]);
        assert_eq!(names(Some("4")).unwrap(), ["4.2", "4.1", "4.0"]);
        assert_eq!(names(Some("3")).unwrap(), ["3"]);
        for bad in ["", "2", "4.3", "3,soft", "4.1 ", "34"] {
            assert!(names(Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn options_are_words_and_none_that_loses_data() {
        assert_eq!(options("", Holds::Disks).unwrap(), (String::new(), 2049));
        assert_eq!(options("port=2050,sec=krb5,", Holds::Disks).unwrap(), ("port=2050,sec=krb5,".to_owned(), 2050));
        for bad in ["soft", "timeo=10,soft", "nolock", "vers=3", "a b", "=x", "-o", "x=\"y\"", "port=x", "proto=udp"] {
            assert!(options(bad, Holds::Disks).is_err(), "{bad:?}");
        }
        assert_eq!(options("ro,soft", Holds::Images).unwrap().0, "ro,soft,");
        assert!(options("nolock", Holds::Images).is_err());
    }
}
