//! `NFSSR`: a mount around [`FileSr`]. `FileSr` does all that is done to disks; this module only says where the disks
//! are.
//!
//! The SR is the directory `<export>/<sr>`. It has a mount of its own, `server:/export/<sr>` at
//! `<mountpoint>/<sr>`, so that SRs of one export come and go independently and the kernel's mount table is
//! the record of what is attached. sr_create, sr_delete and sr_probe want the directory above: they mount
//! the export where nobody else sees it and a kill unmounts it ([`privately`](crate::sys::mount::privately)).
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**, **sr_delete**: as in [`mod@file`], within the private mount; sr_delete then
//!   unmounts the SR. After a kill between the two it is mounted and gone: sr_delete and sr_detach unmount it.
//! - **sr_attach**: 1. make the mountpoint; 2. mount; 3. as in `file`. After 1: an empty directory, which
//!   sr_attach takes and sr_detach removes. After 2: attached.
//! - **sr_detach**: 1. unmount; 2. remove the mountpoint. After 1: as above.
//!
//! Which mount options and why, and what is true with several hosts: `docs/nfs.md`.

pub mod export;
mod options;

use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::context::{Context, Deadline};
use crate::error::{Error, Result, ServerFault};
use crate::sr::config::PREFERRED_FORMATS;
use crate::sr::driver::{About, Driver, Found, Sr, Substrate, vdi_by_uuid};
use crate::sr::file::{self, FileSr};
use crate::sr::mountpoint::Mountpoint;
use crate::sys::copy::Progress;
use crate::sys::durable::Dir;
use crate::sys::mount::{self, Mount};
use crate::sys::server::is_ipv6;
use crate::sys::watch;
use crate::sys::watch::Pulse;
use crate::types::{
    DeviceConfig, Done, Finding, NewSr, NewVdi, Space, SpaceUse, SrInfo, SrUuid, VdiInfo, VdiName, VdiUuid,
};
use crate::vdi::Vdi;
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::collect::CollectPlan;
use crate::vdi::tree::run::Collecting;

use export::{Export, FS_TYPES, Holds, SILENCE};

pub const DRIVER: Driver = Driver {
    sr_type: SR_TYPE,
    executable: "NFSSR",
    description: "disks as files on an NFS export",
    dconf_form: "nfs@<server>:/remote/directory@/local/mountpoint",
    formats: file::DRIVER.formats,
    parse_dconf,
    open: |sr, config, deadline| Ok(Box::new(NfsSr::new(sr, config, deadline)?)),
    probe,
    discover,
    keeps_disks: false,
    about: About {
        name: "NFS",
        capabilities: file::CAPABILITIES,
        configuration: &[
            ("server", "host name or address of the server (required)"),
            ("serverpath", "the exported directory (required)"),
            ("nfsversion", "3, 4, 4.0, 4.1 or 4.2; the newest that works if not given"),
            ("options", "further mount options, separated by commas"),
            ("mountpoint", "the directory below which SRs are mounted"),
            PREFERRED_FORMATS,
        ],
        vdi_at: vdi_by_uuid,
        keeps_names: true,
        sm_config: file::sm_config,
        substrate: Substrate::NfsExport,
        images: file::images,
        looks_at_every_disk: true,
        protocol_versions: |config| Export::new(config, Holds::Disks)?.spoken(),
    },
};

const SR_TYPE: &str = "nfs";

/// `nfs@<server>:/remote/directory@/local/mountpoint`; an IPv6 address stands in brackets.
///
/// # Errors
/// [`Error::Invalid`] with the form that it must have.
pub fn parse_dconf(dconf: &str) -> Result<DeviceConfig> {
    let bad = || Error::Invalid {
        what: "dconf",
        value: dconf.to_owned(),
        expected: format!("expected {}", DRIVER.dconf_form),
    };
    let rest = dconf.strip_prefix("nfs@").ok_or_else(bad)?;
    let (server, paths) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").filter(|(address, _)| is_ipv6(address)),
        None => rest.split_once(':'),
    }
    .ok_or_else(bad)?;
    let (remote, local) = paths.rfind("@/").map(|at| (&paths[..at], &paths[at + 1..])).ok_or_else(bad)?;
    if !remote.starts_with('/') {
        return Err(bad());
    }
    Ok(DeviceConfig::from([("server", server), ("serverpath", remote), ("mountpoint", local)]))
}

/// The SRs that are mounted: an SR's directory of an export, at a directory of the same name. No server is asked.
fn discover() -> Result<Vec<Found>> {
    let mounts = mount::all()?.into_iter().filter(|mount| FS_TYPES.contains(&mount.fs_type.as_str()));
    Ok(mounts.filter_map(|mount| mounted_sr(&mount)).collect())
}

fn mounted_sr(mount: &Mount) -> Option<Found> {
    let name = mount.path.file_name()?.to_str()?;
    let (server, path) = mount.source.rsplit_once(":/")?;
    let path = match path.strip_suffix(name)? {
        "" => "/".to_owned(),
        above => format!("/{}", above.strip_suffix('/')?),
    };
    let server = server.trim_matches(['[', ']']);
    let base = mount.path.parent()?.to_str()?;
    let config = DeviceConfig::from([("server", server), ("serverpath", &path), ("mountpoint", base)]);
    // The marker is on the server, which may not answer.
    Some(Found { sr: name.parse().ok()?, config, slot: None })
}

/// The SRs of an export: those with a marker, and the directories that are named like one, which other storage
/// managers made.
///
/// # Errors
/// [`Error::ExportNotChosen`] with what there is to choose from, if `serverpath` is missing.
fn probe(config: &DeviceConfig, deadline: Deadline) -> Result<Vec<SrInfo>> {
    let export = match Export::new(config, Holds::Disks) {
        Err(Error::MissingKey { key: "serverpath", .. }) => {
            let server = config.require("server")?.to_owned();
            return Err(Error::ExportNotChosen { exports: Export::all_of(config)?, server });
        }
        other => other?,
    };
    let pulse = export.pulse();
    let look = move |_: Progress| {
        let mut found = export.in_root(|root| {
            let mut found = file::probe(root, SR_TYPE, deadline.clone())?;
            for name in fs::read_dir(root).map_err(Error::io("list", root))?.flatten().map(|entry| entry.file_name()) {
                let Some(sr) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
                if !found.iter().any(|info| info.uuid == sr) {
                    found.extend(FileSr::new(sr, SR_TYPE, root.join(name), deadline.clone()).unmarked()?);
                }
            }
            Ok(found)
        })?;
        for info in &mut found {
            info.location = export.source(&info.uuid.to_string());
        }
        Ok(found)
    };
    watch::over(&pulse, SILENCE, &|_, _| (), look).unwrap_or_else(|silent| Err(silent.last))
}

/// An SR on an export: a [`FileSr`] and where it has to be mounted.
struct NfsSr {
    sr: SrUuid,
    export: Export,
    point: Mountpoint,
    file: FileSr,
}

impl NfsSr {
    fn new(sr: SrUuid, config: &DeviceConfig, deadline: Deadline) -> Result<NfsSr> {
        let export = Export::new(config, Holds::Disks)?;
        let source = export.source(&sr.to_string());
        let point = Mountpoint::new(sr, &export.base, move |it| it.is(&source, FS_TYPES));
        let file = FileSr::new(sr, SR_TYPE, point.path().to_owned(), deadline).shared();
        Ok(NfsSr { sr, export, point, file })
    }

    fn source(&self) -> String {
        self.export.source(&self.sr.to_string())
    }

    /// The files, if the SR is attached: what every call but the few that end or begin it goes through.
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
        let mount = |path: &_| self.export.mount(&self.sr.to_string(), path, "");
        self.point.mount(mount).map_err(|e| match e {
            Error::Server { fault: ServerFault::NoExport, why, .. } => Error::NoSr { sr: self.sr, looked: why },
            other => other,
        })
    }

    /// Mounts the SR if need be, and begins with it.
    fn enter(&self, begin: fn(&FileSr) -> Result<Done>) -> Result<Done> {
        if self.point.is_mounted()? {
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
            Err(cause) => Err(cause.undone(self.point.unmount())),
        }
    }
}

impl Sr for NfsSr {
    fn create(&self, new: &NewSr) -> Result<()> {
        self.export.in_root(|root| {
            FileSr::new(self.sr, SR_TYPE, root.join(self.sr.to_string()), self.file.deadline()).create(new)
        })
    }

    fn delete(&self) -> Result<Done> {
        let mounted = self.point.is_mounted()?;
        if mounted {
            self.point.refuse_if_attached()?;
        }
        let done = self.export.in_root(|root| {
            let path = root.join(self.sr.to_string());
            let done = FileSr::new(self.sr, SR_TYPE, path.clone(), self.file.deadline()).delete()?;
            // Files that were open when the directory was put aside may be closed now.
            if let Ok(dir) = Dir::open(&path)
                && let Ok(names) = dir.names()
                && names.iter().all(|name| name.starts_with(".tmp-"))
            {
                names.iter().for_each(|name| drop(dir.sweep_temporary(name)));
            }
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
        if !self.point.is_mounted()? {
            self.point.sweep();
            return Ok(Done::Already);
        }
        self.point.refuse_if_attached()?;
        if (self.export.pulse())().is_ok() {
            self.point.unmount()?;
        } else {
            self.point.abandon()?;
        }
        Ok(Done::Changed)
    }

    fn stat(&self) -> Result<SrInfo> {
        self.files()?.stat().map(|info| self.located(info)).map_err(|e| self.explain(e))
    }

    fn space(&self) -> Result<Space> {
        self.files()?.space().map_err(|e| self.explain(e))
    }

    fn scan(&self) -> Result<SrInfo> {
        self.files()?.scan().map(|info| self.located(info)).map_err(|e| self.explain(e))
    }

    fn local_path(&self) -> Option<PathBuf> {
        Some(self.point.path().to_owned())
    }

    fn space_use(&self, each: bool) -> Result<SpaceUse> {
        let found = self.files()?.space_use(each).map_err(|e| self.explain(e))?;
        Ok(SpaceUse { sr: self.located(found.sr), ..found })
    }

    fn names(&self, word: &str) -> Result<Vec<VdiName>> {
        self.files()?.names(word).map_err(|e| self.explain(e))
    }

    fn shorten(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        self.files()?.shorten(vdi, context).map_err(|e| self.explain(e))
    }

    fn plan_collect(&self, context: &Context) -> Result<CollectPlan> {
        self.files()?.plan_collect(context).map_err(|e| self.explain(e))
    }

    fn check(&self, thorough: bool, repair: bool, context: &Context) -> Result<Vec<Finding>> {
        self.files()?.check(thorough, repair, context).map_err(|e| self.explain(e))
    }

    fn collect(&self, collecting: &Collecting, context: &Context) -> Result<Done> {
        self.files()?.collect(collecting, context).map_err(|e| self.explain(e))
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

    fn delete_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.files()?.delete_broken(vdi, context).map_err(|e| self.explain(e))
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        self.files()?.forget_vdi(vdi).map_err(|e| self.explain(e))
    }

    fn content_type(&self) -> &'static str {
        self.file.content_type()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn pulse(&self) -> Option<Pulse> {
        Some(self.export.pulse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_an_sr_tells_where_its_export_is() {
        let sr = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
        let found = |source: &str, path: &str| {
            let text = |text: &str| text.replace("SR", sr);
            let mount = Mount {
                path: text(path).into(),
                device: 0,
                fs_type: "nfs4".to_owned(),
                source: text(source),
                options: String::new(),
            };
            mounted_sr(&mount).map(|found| {
                assert_eq!(found.sr.to_string(), sr);
                ["server", "serverpath", "mountpoint"].map(|key| found.config.get(key).unwrap().to_owned()).join(" ")
            })
        };
        for (source, path, config) in [
            ("filer:/export/a/SR", "/run/sr-mount/SR", Some("filer /export/a /run/sr-mount")),
            ("[fe80::1]:/export/SR", "/mnt/SR", Some("fe80::1 /export /mnt")),
            ("filer:/SR", "/mnt/SR", Some("filer / /mnt")),
            ("filer:/export/SR", "/mnt/other", None),
            ("filer:/export", "/mnt/SR", None),
            ("filer:/export/xSR", "/mnt/SR", None),
        ] {
            assert_eq!(found(source, path).as_deref(), config, "{source} {path}");
        }
    }
}
