//! Where CD images are: a directory of this host, or one that a server has and that is mounted here.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Protocol, Result, ServerFault};
use crate::sr::config::{absolute_path, mountpoint};
use crate::sr::file::MARKER;
use crate::sr::mountpoint::Mountpoint;
use crate::sr::nfs;
use crate::sr::nfs::export::{self, Export};
use crate::sr::served::{Holds, Purpose, Remote as _};
use crate::sr::smb::share::{self, Share};
use crate::sys::durable::Dir;
use crate::sys::mount;
use crate::sys::watch::Pulse;
use crate::sys::{run_dir, server};
use crate::types::{DeviceConfig, Done, SrUuid};

/// A directory of CD images.
pub struct Library {
    sr: SrUuid,
    /// As the caller named it.
    pub location: String,
    /// Where the images are on this host.
    pub path: PathBuf,
    below: PathBuf,
    remote: Option<(Remote, Mountpoint)>,
}

enum Remote {
    Nfs(Export),
    Smb(Share),
}

impl Remote {
    fn mount(&self, at: &Path) -> Result<()> {
        match self {
            // CDs need no locks, so a version 3 mount needs no rpc.statd.
            Remote::Nfs(export) => export.mount("", at, Purpose::Look),
            Remote::Smb(share) => share.mount("", at, Purpose::Use),
        }
    }

    fn pulse(&self) -> Pulse {
        match self {
            Remote::Nfs(export) => export.pulse(),
            Remote::Smb(share) => share.pulse(),
        }
    }
}

/// `/path`, `nfs@server:/export@/mountpoint` or `smb@//server/share@/mountpoint`.
pub fn parse_dconf(dconf: &str) -> Result<DeviceConfig> {
    if let Some(rest) = dconf.strip_prefix("smb@") {
        let (share, mountpoint) = match rest.rfind("@/") {
            Some(at) if rest.starts_with("//") => (&rest[..at], &rest[at + 1..]),
            _ => {
                let expected = format!("expected {}", super::DRIVER.dconf_form);
                return Err(Error::Invalid { what: "dconf", value: dconf.to_owned(), expected });
            }
        };
        return Ok(DeviceConfig::from([("location", share), ("type", "cifs"), ("mountpoint", mountpoint)]));
    }
    if dconf.starts_with("nfs@") {
        let export = nfs::parse_dconf(dconf)?;
        let (server, path) = (export.require("server")?, export.require("serverpath")?);
        let server = if server.contains(':') { format!("[{server}]") } else { server.to_owned() };
        let location = format!("{server}:{path}");
        let mountpoint = export.require("mountpoint")?;
        return Ok(DeviceConfig::from([("location", &*location), ("type", "nfs_iso"), ("mountpoint", mountpoint)]));
    }
    Ok(DeviceConfig::from([("location", dconf), ("legacy_mode", "true")]))
}

impl Library {
    /// Parses device_config; touches nothing.
    pub fn new(sr: SrUuid, config: &DeviceConfig) -> Result<Library> {
        let location = config.require("location")?.to_owned();
        let below = below(config.get("iso_path").unwrap_or(""))?;
        if config.get("legacy_mode").is_some() {
            let path = absolute_path("location", &location)?.join(&below).components().collect();
            return Ok(Library { sr, location, path, below, remote: None });
        }
        let base = mountpoint(config)?;
        let (remote, source, fs_types) = match is_nfs(&location, config)? {
            true => {
                let export = Export::new(&export_keys(&location, config)?, Holds::Images)?;
                let source = export.source("");
                (Remote::Nfs(export), source, export::FS_TYPES)
            }
            false => {
                let share = Share::new(&share::OF_CDS, &with_options(config))?;
                let source = share.source("");
                (Remote::Smb(share), source, share::FS_TYPES)
            }
        };
        let mountpoint = Mountpoint::new(sr, &base, move |it| it.is(&source, fs_types));
        let path = mountpoint.path().join(&below).components().collect();
        Ok(Library { sr, location, path, below, remote: Some((remote, mountpoint)) })
    }

    /// The directory, after a check that it is there. For a server's directory, the check is that it is mounted: the
    /// mountpoint of a missing mount is never taken for an empty SR.
    ///
    /// # Errors
    /// [`Error::NoSr`]; [`Error::SrUnavailable`] while a server's directory is not mounted.
    pub fn dir(&self) -> Result<Dir> {
        let Some((_, mountpoint)) = &self.remote else { return self.open(&self.path) };
        let missing = || {
            let why = format!("{} is not mounted at {}; sr_attach does it", self.location, mountpoint.path().display());
            Error::SrUnavailable { sr: self.sr, why }
        };
        if !mountpoint.is_mounted()? {
            return Err(missing());
        }
        let dir = self.open(&self.path)?;
        // A directory that was opened a moment after an unmounting is of the same filesystem as the directory above it.
        let above = mountpoint.path().parent().expect("it ends with the SR");
        let above = fs::metadata(above).map_err(Error::io("examine", above))?;
        if dir.stat()?.st_dev == above.dev() { Err(missing()) } else { Ok(dir) }
    }

    fn open(&self, path: &Path) -> Result<Dir> {
        // A link to a directory will do.
        let found = fs::canonicalize(path).map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                Error::NoSr { sr: self.sr, looked: format!("{}: {e}", path.display()) }
            }
            Some(Errno::ESTALE) => Error::SrUnavailable {
                sr: self.sr,
                why: format!(
                    "the server no longer has what is mounted at {}; sr_detach and sr_attach look for it anew",
                    path.display()
                ),
            },
            _ => Error::io("examine", path)(e),
        })?;
        // A directory of the share may be a link, and it is this host that follows it.
        let share = path.ancestors().nth(self.below.components().count()).unwrap_or(path);
        match self.below.as_os_str().is_empty() || found.starts_with(fs::canonicalize(share).unwrap_or_default()) {
            true => Dir::open(&found),
            false => Err(Error::Invalid {
                what: "iso_path",
                value: self.below.display().to_string(),
                expected: format!("expected a directory in {}, and it leads out of that", self.location),
            }),
        }
    }

    /// Refuses the directory of an SR with disks: without ISO files it would pass for an empty library.
    ///
    /// # Errors
    /// [`Error::NoSr`].
    pub fn refuse_another_sr(&self, dir: &Dir) -> Result<()> {
        match dir.lookup(MARKER)? {
            None => Ok(()),
            Some(_) => {
                let path = dir.path().display();
                let looked =
                    format!("{path} holds an SR with disks, as {MARKER} says, and no ISO images; give its type");
                Err(Error::NoSr { sr: self.sr, looked })
            }
        }
    }

    fn open_library(&self, path: &Path) -> Result<()> {
        self.open(path).and_then(|dir| self.refuse_another_sr(&dir))
    }

    /// Mounts it where nobody else sees it and looks whether it is there.
    pub fn check(&self) -> Result<()> {
        match &self.remote {
            None => self.open_library(&self.path),
            Some((remote, _)) => mount::privately(&run_dir::state().join("iso"), |at| {
                remote.mount(at)?;
                self.open_library(&at.join(&self.below)).map_err(|e| self.no_such_path(e))
            }),
        }
    }

    /// Mounts it if need be. Idempotent.
    pub fn mount(&self) -> Result<Done> {
        let Some((remote, mountpoint)) = &self.remote else {
            return self.open_library(&self.path).map(|()| Done::Already);
        };
        if mountpoint.is_mounted()? {
            return self.dir().map(|_| Done::Already).map_err(|e| self.no_such_path(e));
        }
        mountpoint.mount(|path| remote.mount(path))?;
        match self.dir() {
            Ok(_) => Ok(Done::Changed),
            Err(e) => Err(self.no_such_path(e).undone(mountpoint.unmount())),
        }
    }

    /// A server that has the share but not the directory in it.
    fn no_such_path(&self, e: Error) -> Error {
        let (protocol, Error::NoSr { looked, .. }) = (
            match &self.remote {
                Some((Remote::Smb(_), _)) => Protocol::Smb,
                _ => Protocol::Nfs,
            },
            &e,
        ) else {
            return e;
        };
        server::fault(protocol, &self.location, ServerFault::NoExport, looked.clone())
    }

    /// Unmounts what [`Library::mount`] mounted. Idempotent; the caller knows that no image is attached.
    pub fn unmount(&self) -> Result<Done> {
        let Some((remote, mountpoint)) = &self.remote else { return Ok(Done::Already) };
        if !mountpoint.is_mounted()? {
            mountpoint.sweep();
            return Ok(Done::Already);
        }
        match remote.pulse()() {
            Ok(()) => mountpoint.unmount()?,
            Err(_) => mountpoint.abandon()?,
        }
        Ok(Done::Changed)
    }

    /// Whether the directory is one that a server has, which may be gone.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// Which kind of server it is, in xapi's words.
    pub fn iso_type(&self) -> Option<&'static str> {
        match self.remote.as_ref()?.0 {
            Remote::Nfs(_) => Some("nfs_iso"),
            Remote::Smb(_) => Some("cifs"),
        }
    }

    pub fn pulse(&self) -> Option<Pulse> {
        self.remote.as_ref().map(|(remote, _)| remote.pulse())
    }
}

/// `type` says it, or the form of the location.
fn is_nfs(location: &str, config: &DeviceConfig) -> Result<bool> {
    match config.get("type").filter(|kind| !kind.is_empty()) {
        Some("nfs_iso") => Ok(true),
        Some("cifs") => Ok(false),
        Some(other) => Err(Error::Invalid {
            what: "type of an ISO SR",
            value: other.to_owned(),
            expected: "expected nfs_iso or cifs".to_owned(),
        }),
        None if location.starts_with("//") || location.starts_with('\\') => Ok(false),
        None if location.contains(":/") => Ok(true),
        None => Err(Error::Invalid {
            what: "location",
            value: location.to_owned(),
            expected: "expected server:/path, //server/share, or a local directory and legacy_mode=true".to_owned(),
        }),
    }
}

/// `server:/path` as the keys of an NFS SR.
fn export_keys(location: &str, config: &DeviceConfig) -> Result<DeviceConfig> {
    let split = match location.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => location.split_once(':'),
    };
    let (server, path) = split.filter(|(_, path)| path.starts_with('/')).ok_or_else(|| Error::Invalid {
        what: "location",
        value: location.to_owned(),
        expected: "expected server:/path".to_owned(),
    })?;
    let mut keys = with_options(config);
    for (key, value) in [("server", server), ("serverpath", path)] {
        keys.0.insert(key.to_owned(), value.to_owned());
    }
    Ok(keys)
}

/// The options of ISO SRs are said as on a command line, `-o ro -o soft`; a bare list is understood as well.
fn with_options(config: &DeviceConfig) -> DeviceConfig {
    let mut config = config.clone();
    if let Some(options) = config.0.get_mut("options") {
        let words = options.split_whitespace().map(|word| word.strip_prefix("-o").unwrap_or(word));
        *options = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(",");
    }
    config
}

/// A path within the share; it may begin with a slash.
fn below(iso_path: &str) -> Result<PathBuf> {
    let path = Path::new(iso_path.trim_start_matches('/'));
    if iso_path.chars().any(char::is_control) || path.components().any(|c| !matches!(c, Component::Normal(_))) {
        let expected = "expected a path within the share, without '..'".to_owned();
        return Err(Error::Invalid { what: "iso_path", value: iso_path.to_owned(), expected });
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";

    fn library(config: &DeviceConfig) -> Result<Library> {
        Library::new(SR.parse().unwrap(), config)
    }

    fn sources<const N: usize>(keys: [(&str, &str); N]) -> Result<(Option<&'static str>, String)> {
        library(&DeviceConfig::from(keys)).map(|it| (it.iso_type(), it.path.display().to_string()))
    }

    #[test]
    fn the_short_form_is_a_directory_an_export_or_a_share() {
        let short = |dconf| library(&parse_dconf(dconf).unwrap()).unwrap();
        assert_eq!(short("/srv/isos").iso_type(), None);
        let nfs = short("nfs@[fe80::1]:/export/isos@/mnt");
        assert_eq!((nfs.iso_type(), nfs.location.as_str()), (Some("nfs_iso"), "[fe80::1]:/export/isos"));
        assert_eq!(nfs.path, Path::new("/mnt").join(SR));
        assert_eq!(short("smb@//filer/is@os@/mnt").location, "//filer/is@os");
        for bad in ["", "isos", "nfs@filer:/x", "smb@//filer/isos", "smb@filer/isos@/mnt", "smb@//filer@/mnt", "//../x"]
        {
            assert!(parse_dconf(bad).and_then(|config| library(&config)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_location_says_what_it_is_unless_type_does() {
        let mounted = run_dir::mounts().join(SR).display().to_string();
        let nfs = (Some("nfs_iso"), mounted.clone());
        assert_eq!(sources([("location", "filer:/isos")]).unwrap(), nfs);
        assert_eq!(
            sources([("location", "filer:/isos"), ("type", "nfs_iso"), ("options", "-o ro,soft")]).unwrap(),
            nfs
        );
        let below = (Some("cifs"), mounted + "/linux/debian");
        assert_eq!(sources([("location", r"\\filer\isos"), ("iso_path", "/linux/debian")]).unwrap(), below);
        for bad in [
            [("location", "/srv/isos"), ("type", "nfs_iso")],
            [("location", "filer:/isos"), ("type", "cifs")],
            [("location", "filer:/isos"), ("type", "nfs")],
            [("location", "filer:/isos"), ("iso_path", "../x")],
            [("location", "filer:isos"), ("type", "nfs_iso")],
            [("location", "/srv/isos"), ("iso_path", "x")],
        ] {
            assert!(sources(bad).is_err(), "{bad:?}");
        }
    }
}
