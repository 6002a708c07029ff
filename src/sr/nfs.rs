//! `NFSSR`: a mount around [`FileSr`]. What is done to disks is done there; here is only where they are.
//!
//! The SR is the directory `<export>/<sr>`. It has a mount of its own, `server:/export/<sr>` at
//! `<mountpoint>/<sr>`, so that SRs of one export come and go independently and the kernel's mount table is
//! the record of what is attached. sr_create, sr_delete and sr_probe want the directory above: they mount
//! the export where nobody else sees it and a kill unmounts it ([`mount::privately`]).
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**, **sr_delete**: as in [`file`](super::file), within the private mount; sr_delete then
//!   unmounts the SR. After a kill between the two it is mounted and gone: sr_delete and sr_detach unmount it.
//! - **sr_attach**: 1. make the mountpoint; 2. mount; 3. as in `file`. After 1: an empty directory, which
//!   sr_attach takes and sr_detach removes. After 2: attached.
//! - **sr_detach**: 1. unmount; 2. remove the mountpoint. After 1: as above.
//!
//! Which mount options and why, and what is true with several hosts: `docs/nfs.md`.

use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use crate::call::Context;
use crate::error::{Error, Result};
use crate::sr::file::{self, FileSr};
use crate::sr::mountpoint::Mountpoint;
use crate::sr::{About, Driver, Pulse, Sr, absolute_path, vdi_by_uuid};
use crate::sys::copy::Progress;
use crate::sys::{mount, run_dir, sunrpc, watch};
use crate::types::{DeviceConfig, Done, NewVdi, SrInfo, SrUuid, VdiInfo, VdiUuid};
use crate::vdi::Vdi;
use crate::vdi::transfer::Incoming;

pub const DRIVER: Driver = Driver {
    sr_type: SR_TYPE,
    executable: "NFSSR",
    description: "disks as files on an NFS export",
    dconf_form: "nfs@<server>:/remote/directory@/local/mountpoint",
    formats: file::DRIVER.formats,
    parse_dconf,
    open: |sr, config| Ok(Box::new(NfsSr::new(sr, config)?)),
    probe: |config| Export::new(config)?.probe(),
    about: About {
        name: "NFS",
        capabilities: file::CAPABILITIES,
        configuration: &[
            ("server", "host name or address of the server (required)"),
            ("serverpath", "the exported directory (required)"),
            ("nfsversion", "3, 4, 4.0, 4.1 or 4.2; the newest that works if not given"),
            ("options", "further mount options, separated by commas"),
            ("mountpoint", "the directory below which SRs are mounted"),
        ],
        vdi_at: vdi_by_uuid,
        sm_config: file::sm_config,
    },
};

const SR_TYPE: &str = "nfs";

/// How long mount.nfs may take: two of its own ten-second waits for a server.
const MOUNT_DEADLINE: Duration = Duration::from_secs(25);

/// How long a server may be silent before sr_probe gives it up.
const SILENCE: Duration = Duration::from_secs(60);

/// What every mount has. `hard`: a soft mount forgets writes and says so once, to whoever syncs first. The
/// others: what one host changes, another sees with its next call.
const OPTIONS: &str = "hard,proto=tcp,retry=0,acdirmin=0,acdirmax=0,lookupcache=none,nosuid,nodev,noexec";

/// Versions in the order they are tried, by what `nfsversion` asks for; the major one is what a server can be
/// asked about without mounting.
const VERSIONS: [(u32, &str); 4] = [(4, "4.2"), (4, "4.1"), (4, "4.0"), (3, "3")];

/// Options that are ours to choose, because the others lose data or locks.
const REFUSED: [&str; 16] = [
    "soft",
    "softerr",
    "hard",
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

/// `nfs@<server>:/remote/directory@/local/mountpoint`; an IPv6 address stands in brackets.
fn parse_dconf(dconf: &str) -> Result<DeviceConfig> {
    let bad = || Error::Invalid {
        what: "dconf",
        value: dconf.to_owned(),
        expected: format!("expected {}", DRIVER.dconf_form),
    };
    let rest = dconf.strip_prefix("nfs@").ok_or_else(bad)?;
    let (server, paths) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").filter(|(address, _)| address.parse::<Ipv6Addr>().is_ok()),
        None => rest.split_once(':'),
    }
    .ok_or_else(bad)?;
    let (remote, local) = paths.rfind("@/").map(|at| (&paths[..at], &paths[at + 1..])).ok_or_else(bad)?;
    if !remote.starts_with('/') {
        return Err(bad());
    }
    Ok(DeviceConfig::from([("server", server), ("serverpath", remote), ("mountpoint", local)]))
}

/// A directory that a server exports, as device_config names it.
struct Export {
    server: String,
    port: u16,
    path: PathBuf,
    /// Those that may be used, in the order they are tried.
    versions: Vec<(u32, &'static str)>,
    /// The caller's, each with a comma behind it.
    options: String,
    /// Where SRs are mounted.
    base: PathBuf,
}

impl Export {
    fn new(config: &DeviceConfig) -> Result<Export> {
        let (options, port) = options(config.get("options").unwrap_or(""))?;
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
            versions: versions(config.get("nfsversion"))?,
            options,
            base: match config.get("mountpoint") {
                Some(path) => absolute_path("mountpoint", path)?,
                None => run_dir::mounts(),
            },
        })
    }

    /// `server:/export/below`, as mount.nfs takes it and the mount table shows it.
    fn source(&self, below: &str) -> String {
        let host = if self.server.contains(':') { format!("[{}]", self.server) } else { self.server.clone() };
        format!("{host}:{}", self.path.join(below).components().collect::<PathBuf>().display())
    }

    /// Asks the server before anything waits for it, then mounts with the newest version both have.
    fn mount(&self, below: &str, at: &Path, more: &str) -> Result<()> {
        let spoken = sunrpc::nfs_versions(&self.server, self.port)?;
        let source = self.source(below);
        let mut first = None;
        for (_, version) in self.versions.iter().filter(|(major, _)| spoken.contains(major)) {
            // Without locks a version 3 mount needs no rpc.statd, which would outlive us in our namespace.
            let more = if *version == "3" { more } else { "" };
            // Of two that contradict each other the last one counts: ours.
            let options = format!("{}{OPTIONS},vers={version}{more}", self.options);
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
            Some(e) => why_not_mounted(e, &source),
            None => Error::NoDevice {
                device: format!("NFS server {}", self.server),
                why: format!(
                    "it speaks version {}, and nfsversion asks for {}",
                    spoken.iter().map(u32::to_string).collect::<Vec<_>>().join(" and "),
                    self.versions[0].1
                ),
            },
        })
    }

    /// Does something in the export's own directory, through a mount that ends with it.
    fn in_root<T: Send>(&self, work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
        mount::privately(&run_dir::state().join("nfs"), |dir| {
            self.mount("", dir, ",nolock")?;
            work(dir)
        })
    }

    fn probe(self) -> Result<Vec<SrInfo>> {
        let pulse = self.pulse();
        let look = move |_: Progress| {
            let mut found = self.in_root(|root| file::probe(root, SR_TYPE))?;
            for info in &mut found {
                info.location = self.source(&info.uuid.to_string());
            }
            Ok(found)
        };
        watch::over(&pulse, SILENCE, &|_, _| (), look).unwrap_or_else(|silent| Err(silent.last))
    }

    fn pulse(&self) -> Pulse {
        let (server, port) = (self.server.clone(), self.port);
        Box::new(move || sunrpc::nfs_versions(&server, port).map(drop))
    }
}

/// A host name or an address; brackets around an address are taken off.
fn server(value: &str) -> Result<String> {
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
fn options(value: &str) -> Result<(String, u16)> {
    let bad = |expected: String| Error::Invalid { what: "options", value: value.to_owned(), expected };
    let (mut checked, mut port) = (String::new(), sunrpc::NFS_PORT);
    for option in value.split(',').filter(|option| !option.is_empty()) {
        let (name, argument) = option.split_once('=').unwrap_or((option, ""));
        let plain = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
        if name.is_empty() || !plain(name, "_.") || !plain(argument, "_.:/-") {
            return Err(bad(format!("{option:?} is no mount option")));
        }
        if REFUSED.contains(&name) {
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

/// What mount.nfs said, as what it means.
fn why_not_mounted(e: Error, source: &str) -> Error {
    let Error::Tool { stderr, .. } = &e else { return e };
    if stderr.contains("No such file") {
        Error::NoDevice { device: source.to_owned(), why: "the server has no such path, or does not export it".into() }
    } else if stderr.contains("access denied") || stderr.contains("Operation not permitted") {
        Error::Io {
            op: "mount (the server does not export it to this host)",
            path: source.into(),
            source: Errno::EACCES.into(),
        }
    } else {
        e
    }
}

/// An SR on an export: a [`FileSr`] and where it has to be mounted.
struct NfsSr {
    sr: SrUuid,
    export: Export,
    point: Mountpoint,
    file: FileSr,
}

impl NfsSr {
    fn new(sr: SrUuid, config: &DeviceConfig) -> Result<NfsSr> {
        let export = Export::new(config)?;
        let point = Mountpoint::new(sr, &export.base);
        Ok(NfsSr { sr, file: FileSr::new(sr, SR_TYPE, point.path().to_owned()).shared(), point, export })
    }

    fn source(&self) -> String {
        self.export.source(&self.sr.to_string())
    }

    /// Whether the SR is mounted, according to the mount table.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`] if something else is mounted there.
    fn is_mounted(&self) -> Result<bool> {
        self.point.holds(|it| it.fs_type.starts_with("nfs") && it.source == self.source())
    }

    /// The files, if the SR is attached: what every call but the few that end or begin it goes through.
    fn files(&self) -> Result<&FileSr> {
        if self.is_mounted()? {
            return Ok(&self.file);
        }
        Err(self.unavailable(format!(
            "{} is not mounted at {}; sr_attach does it",
            self.source(),
            self.point.path().display()
        )))
    }

    fn unavailable(&self, why: String) -> Error {
        Error::SrUnavailable { sr: self.sr, why }
    }

    /// A directory that was removed on the server under a mount answers ESTALE for ever.
    fn explain(&self, e: Error) -> Error {
        if e.errno() == Some(Errno::ESTALE as i32) {
            return self.unavailable(format!(
                "the server no longer has what is mounted at {}; sr_detach and sr_attach look for it anew",
                self.point.path().display()
            ));
        }
        e
    }

    /// Says where the SR lives instead of where it is mounted.
    fn located(&self, info: SrInfo) -> SrInfo {
        SrInfo { location: self.source(), ..info }
    }

    fn mount(&self) -> Result<()> {
        self.point.make()?;
        self.export.mount(&self.sr.to_string(), self.point.path(), "").map_err(|e| {
            self.point.sweep();
            match e {
                Error::NoDevice { device, .. } if device == self.source() => {
                    Error::NoSr { sr: self.sr, looked: format!("the server has no {device}, or does not export it") }
                }
                other => other,
            }
        })
    }

    /// Mounts the SR if need be, and begins with it.
    fn enter(&self, begin: fn(&FileSr) -> Result<Done>) -> Result<Done> {
        if self.is_mounted()? {
            match begin(&self.file) {
                Err(e) if e.errno() == Some(Errno::ESTALE as i32) => {
                    self.point.refuse_if_attached()?;
                    self.point.abandon()?;
                }
                other => return other,
            }
        }
        self.mount()?;
        match begin(&self.file) {
            Ok(_) => Ok(Done::Changed),
            Err(cause) => match self.point.unmount() {
                Ok(()) => Err(cause),
                Err(undo) => Err(Error::Undo { cause: Box::new(cause), undo: Box::new(undo) }),
            },
        }
    }
}

impl Sr for NfsSr {
    fn create(&self, size: Option<u64>) -> Result<()> {
        self.export.in_root(|root| FileSr::new(self.sr, SR_TYPE, root.join(self.sr.to_string())).create(size))
    }

    fn delete(&self) -> Result<Done> {
        let mounted = self.is_mounted()?;
        if mounted {
            self.point.refuse_if_attached()?;
        }
        let done = self.export.in_root(|root| {
            let path = root.join(self.sr.to_string());
            let done = FileSr::new(self.sr, SR_TYPE, path.clone()).delete()?;
            // Empty, and named like the SR: it is what a killed sr_create or sr_delete left.
            let _ = fs::remove_dir(&path);
            Ok(done)
        })?;
        if mounted {
            self.point.unmount()?;
        }
        Ok(done)
    }

    fn attach(&self) -> Result<Done> {
        self.enter(FileSr::attach)
    }

    fn adopt(&self) -> Result<Done> {
        self.enter(FileSr::adopt)
    }

    fn detach(&self) -> Result<Done> {
        if !self.is_mounted()? {
            self.point.sweep();
            return Ok(Done::Already);
        }
        self.point.refuse_if_attached()?;
        if (self.export.pulse())().is_ok() {
            self.point.unmount()?
        } else {
            self.point.abandon()?
        }
        Ok(Done::Changed)
    }

    fn stat(&self) -> Result<SrInfo> {
        self.files()?.stat().map(|info| self.located(info)).map_err(|e| self.explain(e))
    }

    fn scan(&self) -> Result<SrInfo> {
        self.files()?.scan().map(|info| self.located(info)).map_err(|e| self.explain(e))
    }

    fn local_path(&self) -> Option<PathBuf> {
        Some(self.point.path().to_owned())
    }

    fn collect(&self, context: &Context) -> Result<Done> {
        self.files()?.collect(context).map_err(|e| self.explain(e))
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        self.files()?.vdi(vdi).map_err(|e| self.explain(e))
    }

    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        self.files()?.create_vdi(new).map_err(|e| self.explain(e))
    }

    fn import_vdi(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        self.files()?.import_vdi(new, incoming, progress).map_err(|e| self.explain(e))
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        self.files()?.forget_vdi(vdi).map_err(|e| self.explain(e))
    }

    fn content_type(&self) -> &'static str {
        self.file.content_type()
    }

    fn pulse(&self) -> Option<Pulse> {
        Some(self.export.pulse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(dconf: &str) -> Export {
        Export::new(&parse_dconf(dconf).unwrap()).unwrap()
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
            assert!(parse_dconf(bad).and_then(|config| Export::new(&config)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn without_a_mountpoint_an_sr_is_where_xapi_looks_for_it() {
        let config = DeviceConfig::from([("server", "fe80::1"), ("serverpath", "/e")]);
        let it = Export::new(&config).unwrap();
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
        assert_eq!(options("").unwrap(), (String::new(), 2049));
        assert_eq!(options("port=2050,sec=krb5,").unwrap(), ("port=2050,sec=krb5,".to_owned(), 2050));
        for bad in ["soft", "timeo=10,soft", "nolock", "vers=3", "a b", "=x", "-o", "x=\"y\"", "port=x", "proto=udp"] {
            assert!(options(bad).is_err(), "{bad:?}");
        }
    }
}
