//! SRs whose disks are files of a server: a mount around [`FileSr`]. `FileSr` does all that is done to disks; this module only
//! says where the disks are.
//!
//! The SR is the directory `<sr>` of what the server shares. It has a mount of its own, of that directory, at
//! `<mountpoint>/<sr>`, so that SRs of one share come and go independently and the kernel's mount table is
//! the record of what is attached. sr_create, sr_delete and sr_probe want the directory above: they mount
//! the share where nobody else sees it and a kill unmounts it ([`privately`](crate::sys::mount::privately)).
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**, **sr_delete**: as in [`mod@file`], within the private mount; sr_delete then
//!   unmounts the SR. After a kill between the two it is mounted and gone: sr_delete and sr_detach unmount it.
//! - **sr_attach**: 1. make the mountpoint; 2. mount; 3. as in `file`. After 1: an empty directory, which
//!   sr_attach takes and sr_detach removes. After 2: attached.
//! - **sr_detach**: 1. unmount; 2. remove the mountpoint. After 1: as above.
//!
//! A type of server is a [`Kind`] and a [`Remote`].

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use crate::context::Deadline;
use crate::error::{Error, Result, ServerFault};
use crate::sr::driver::{Found, Sr, overwrites_nothing};
use crate::sr::file::{self, FileSr};
use crate::sr::mounted::Mounted;
use crate::sr::mountpoint::Mountpoint;
use crate::sys::copy::Progress;
use crate::sys::durable::Dir;
use crate::sys::mount::{self, Mount};
use crate::sys::run_dir;
use crate::sys::watch::{self, Pulse};
use crate::types::{DeviceConfig, Done, NewSr, Overwrite, SrInfo, SrUuid};

/// How long a server may be silent before a call without a `--wait` gives it up.
pub const SILENCE: Duration = Duration::from_secs(60);

/// What tells the mounts of a type of server from others.
pub struct Kind {
    /// The SR type: `nfs`, `smb`.
    pub sr_type: &'static str,
    /// The filesystem types that the mount table has for such mounts.
    pub fs_types: &'static [&'static str],
    /// The keys of device_config of the share that the mount table calls so. `None`: it is no such share.
    pub keys: fn(&str) -> Option<DeviceConfig>,
}

/// The kinds of files that a shared directory may keep. The kind decides what becomes of I/O while the server is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It waits: a soft mount forgets writes and says so once, to whoever syncs first.
    Disks,
    /// It fails after a minute: who reads a CD is told each time, and can be shut down meanwhile.
    Images,
}

/// The purpose of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its files are used until sr_detach.
    Use,
    /// One call looks into it, in a mount namespace of its own.
    Look,
}

/// A directory that a server shares, as device_config names it.
pub trait Remote: Send + Sync {
    /// A directory in it, as people name it; the shared directory itself if `below` is empty.
    fn source(&self, below: &str) -> String;

    /// The same as the mount table shows a mount of it.
    fn shown(&self, below: &str) -> String {
        self.source(below)
    }

    /// Mounts a directory in it at an existing directory. Asks whether the server is there first.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::MissingKey`] for keys that cannot be used; [`Error::Server`], with
    /// [`ServerFault::NoExport`] if there is no such directory.
    fn mount(&self, below: &str, at: &Path, purpose: Purpose) -> Result<()>;

    /// Whether the server still answers.
    fn pulse(&self) -> Pulse;

    /// The failure of this server.
    fn failed(&self, what: ServerFault, why: String) -> Error;
}

/// Mounts a directory of a server, and believes it when the mount table shows it and its root can be examined: the program that
/// mounts may leave a process behind that finds no such directory and unmounts again.
fn mount_at(kind: &Kind, remote: &dyn Remote, below: &str, at: &Path, purpose: Purpose) -> Result<()> {
    remote.mount(below, at, purpose)?;
    let source = remote.source(below);
    // Of two names of one server, NFS may show the first.
    let is_there = || Ok::<_, Error>(mount::at(at)?.is_some_and(|it| kind.fs_types.contains(&it.fs_type.as_str())));
    if !is_there()? {
        return Err(
            remote.failed(ServerFault::NoExport, format!("{source} was mounted, and is not in the mount table"))
        );
    }
    let examined = fs::metadata(at);
    if examined.is_ok() && is_there()? {
        return Ok(());
    }
    let why = examined.err().map_or_else(|| "it is gone".to_owned(), |e| e.to_string());
    let _ = mount::abandon(at);
    Err(remote.failed(ServerFault::NoExport, format!("{source} was mounted, and went away: {why}")))
}

/// Does something in the shared directory itself, through a mount that ends with it.
///
/// # Errors
/// [`Error::Server`] if the server refuses the mount; [`Error::Io`] if the caller is not root; the errors of `work`.
pub fn in_root<T: Send>(kind: &Kind, remote: &dyn Remote, work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    mount::privately(&run_dir::state().join(kind.sr_type), |dir| {
        mount_at(kind, remote, "", dir, Purpose::Look)?;
        work(dir)
    })
}

/// The SRs of a share: those with a marker, and the directories that are named like one, which other storage managers made.
///
/// # Errors
/// Those of [`in_root`]; those of its pulse when the server is silent for long.
pub fn probe(kind: &'static Kind, remote: impl Remote + 'static, deadline: Deadline) -> Result<Vec<SrInfo>> {
    let (pulse, device) = (remote.pulse(), remote.source(""));
    let look = move |_: Progress| {
        let mut found = in_root(kind, &remote, |root| {
            let mut found = file::probe(root, kind.sr_type, deadline.clone())?;
            for name in fs::read_dir(root).map_err(Error::io("list", root))?.flatten().map(|entry| entry.file_name()) {
                let Some(sr) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
                if !found.iter().any(|info| info.uuid == sr) {
                    found.extend(FileSr::new(sr, kind.sr_type, root.join(name), deadline.clone()).unmarked()?);
                }
            }
            Ok(found)
        })?;
        for info in &mut found {
            info.location = remote.source(&info.uuid.to_string());
        }
        Ok(found)
    };
    watch::over(&pulse, SILENCE, &|_, _| (), look).unwrap_or_else(|silent| {
        let stuck = || {
            let why = format!("it takes connections, but nothing has come of a request for {} s", silent.seconds);
            Error::NoDevice { device, why }
        };
        Err(silent.last.unwrap_or_else(stuck))
    })
}

/// The SRs that are mounted: an SR's directory of a share, at a directory of the same name. No server is asked.
///
/// # Errors
/// [`Error::Io`] if the mount table cannot be read.
pub fn discover(kind: &Kind) -> Result<Vec<Found>> {
    let mounts = mount::all()?.into_iter().filter(|mount| kind.fs_types.contains(&mount.fs_type.as_str()));
    Ok(mounts.filter_map(|mount| mounted_sr(kind, &mount)).collect())
}

fn mounted_sr(kind: &Kind, mount: &Mount) -> Option<Found> {
    let name = mount.path.file_name()?.to_str()?;
    let mut config = (kind.keys)(mount.source.strip_suffix(name)?.strip_suffix('/')?)?;
    config.0.insert("mountpoint".to_owned(), mount.path.parent()?.to_str()?.to_owned());
    // The marker is on the server, which may not answer.
    Some(Found { sr: name.parse().ok()?, config, slot: None })
}

/// An SR on a server: a [`FileSr`] and where it has to be mounted.
pub struct ServedSr {
    kind: &'static Kind,
    sr: SrUuid,
    remote: Box<dyn Remote>,
    point: Mountpoint,
    file: FileSr,
}

impl ServedSr {
    /// `base`: the directory below which SRs are mounted.
    pub fn new(
        kind: &'static Kind,
        sr: SrUuid,
        remote: impl Remote + 'static,
        base: &Path,
        deadline: Deadline,
    ) -> ServedSr {
        let shown = remote.shown(&sr.to_string());
        let point = Mountpoint::new(sr, base, move |it| it.is(&shown, kind.fs_types));
        let file = FileSr::new(sr, kind.sr_type, point.path().to_owned(), deadline).shared();
        ServedSr { kind, sr, remote: Box::new(remote), point, file }
    }

    fn source(&self) -> String {
        self.remote.source(&self.sr.to_string())
    }

    /// The SR's files where the share is mounted at `root`.
    fn below(&self, root: &Path) -> FileSr {
        FileSr::new(self.sr, self.kind.sr_type, root.join(self.sr.to_string()), self.file.deadline())
    }

    fn in_root<T: Send>(&self, work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
        in_root(self.kind, &*self.remote, work)
    }

    fn unavailable(&self, why: String) -> Error {
        Error::SrUnavailable { sr: self.sr, why }
    }

    fn mount(&self) -> Result<()> {
        let mount = |path: &_| mount_at(self.kind, &*self.remote, &self.sr.to_string(), path, Purpose::Use);
        self.point.mount(mount).map_err(|e| match e {
            Error::Server { fault: ServerFault::NoExport, why, .. } => Error::NoSr { sr: self.sr, looked: why },
            other => other,
        })
    }
}

/// Whether the mounted directory is gone: removed on the server, or its client process ended.
fn is_lost(e: &Error) -> bool {
    matches!(e.errno().map(Errno::from_raw), Some(Errno::ESTALE | Errno::ENOTCONN))
}

impl Mounted for ServedSr {
    fn files(&self) -> Result<&FileSr> {
        if self.point.is_mounted()? {
            return Ok(&self.file);
        }
        Err(self.unavailable(format!(
            "{} is not mounted at {}; sr_attach does it",
            self.source(),
            self.point.path().display()
        )))
    }

    fn shared(&self) -> bool {
        true
    }

    fn point(&self) -> &Mountpoint {
        &self.point
    }

    /// A directory that was removed on the server under a mount answers ESTALE for ever, and so does ENOTCONN a mount whose
    /// client was a process that ended.
    fn explain(&self, e: Error) -> Error {
        if is_lost(&e) {
            return self.unavailable(format!(
                "the server no longer has what is mounted at {}; sr_detach and sr_attach look for it anew",
                self.point.path().display()
            ));
        }
        e
    }

    fn located(&self, info: SrInfo) -> SrInfo {
        SrInfo { location: self.source(), ..info }
    }

    fn make(&self, new: &NewSr, over: &Overwrite) -> Result<()> {
        overwrites_nothing(over)?;
        self.in_root(|root| self.below(root).create(new))
    }

    fn unmake(&self) -> Result<Done> {
        let mounted = self.point.is_mounted()?;
        if mounted {
            self.point.refuse_if_attached()?;
        }
        let done = self.in_root(|root| {
            let files = self.below(root);
            let done = files.delete()?;
            // Files that were open when the directory was put aside may be closed now.
            if let Ok(dir) = Dir::open(files.path())
                && let Ok(names) = dir.names()
                && names.iter().all(|name| name.starts_with(".tmp-"))
            {
                names.iter().for_each(|name| drop(dir.sweep_temporary(name)));
            }
            // Empty, and named like the SR: it is what a killed sr_create or sr_delete left.
            let _ = fs::remove_dir(files.path());
            Ok(done)
        })?;
        if mounted {
            self.point.unmount()?;
        }
        Ok(done)
    }

    fn enter(&self, begin: fn(&FileSr) -> Result<Done>) -> Result<Done> {
        if self.point.is_mounted()? {
            match begin(&self.file) {
                Err(e) if is_lost(&e) => {
                    self.point.refuse_if_attached()?;
                    self.point.abandon()?;
                }
                other => return other,
            }
        }
        self.mount()?;
        match begin(&self.file) {
            Ok(_) => Ok(Done::Changed),
            Err(cause) => Err(cause.undone(self.point.unmount())),
        }
    }

    fn leave(&self) -> Result<Done> {
        if !self.point.is_mounted()? {
            self.point.sweep();
            return Ok(Done::Already);
        }
        self.point.refuse_if_attached()?;
        if (self.remote.pulse())().is_ok() {
            self.point.unmount()?;
        } else {
            self.point.abandon()?;
        }
        Ok(Done::Changed)
    }

    fn pulse_of_server(&self) -> Option<Pulse> {
        Some(self.remote.pulse())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::sr::{nfs, smb};

    #[test]
    fn a_mount_of_an_sr_tells_where_its_share_is() {
        let sr = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
        let found = |kind: &Kind, source: &str, path: &str| {
            let text = |text: &str| text.replace("SR", sr);
            let mount = Mount {
                path: PathBuf::from(text(path)),
                device: 0,
                fs_type: kind.fs_types[0].to_owned(),
                source: text(source),
                options: String::new(),
            };
            mounted_sr(kind, &mount).map(|found| {
                assert_eq!(found.sr.to_string(), sr);
                let keys = ["server", "serverpath", "mountpoint"].into_iter();
                keys.filter_map(|key| found.config.get(key)).collect::<Vec<_>>().join(" ")
            })
        };
        for (kind, source, path, config) in [
            (&nfs::KIND, "filer:/export/a/SR", "/run/sr-mount/SR", Some("filer /export/a /run/sr-mount")),
            (&nfs::KIND, "[fe80::1]:/export/SR", "/mnt/SR", Some("fe80::1 /export /mnt")),
            (&nfs::KIND, "filer:/SR", "/mnt/SR", Some("filer / /mnt")),
            (&nfs::KIND, "filer:/export/SR", "/mnt/other", None),
            (&nfs::KIND, "filer:/export", "/mnt/SR", None),
            (&nfs::KIND, "filer:/export/xSR", "/mnt/SR", None),
            (&smb::KIND, "//filer/disks/SR", "/run/sr-mount/SR", Some("//filer/disks /run/sr-mount")),
            (&smb::KIND, "//filer/disks/a/SR", "/mnt/SR", Some("//filer/disks/a /mnt")),
            (&smb::KIND, "//filer/SR", "/mnt/SR", None),
            (&smb::KIND, "//filer/disks", "/mnt/SR", None),
        ] {
            assert_eq!(found(kind, source, path).as_deref(), config, "{source} {path}");
        }
    }
}
