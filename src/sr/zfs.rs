//! `ZFSSR`: disks as files in a dataset of ZFS, a bind mount around [`FileSr`]. `FileSr` does all that is done to disks.
//!
//! The SR is the root of the dataset that is mounted at `location`. sr_attach mounts it once more at `/run/sr-mount/<sr>`, so that
//! disks in use do not depend on the first mount. A dataset that is not mounted leaves an empty directory, which is no SR: each call
//! asks the mount table whether `location` is a mount of ZFS, and the same one as at `/run/sr-mount/<sr>`; then comes the marker of a
//! file SR. Datasets and their properties are the administrator's: none is made or destroyed.
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**, **sr_delete**: as in [`mod@file`], at `location`; sr_delete then unmounts the SR. After a kill between the two it is
//!   mounted and gone: sr_delete and sr_detach unmount it.
//! - **sr_attach**: 1. make the mountpoint; 2. mount; 3. as in `file`. After 1: an empty directory, which sr_attach takes and
//!   sr_detach removes. After 2: attached.
//! - **sr_detach**: 1. unmount; 2. remove the mountpoint. After 1: as above.

use std::path::{Path, PathBuf};

use crate::context::Deadline;
use crate::error::{Error, Result};
use crate::sr::config::{PREFERRED_FORMATS, absolute_path};
use crate::sr::driver::{About, Driver, Found, Sr, Substrate, overwrites_nothing};
use crate::sr::file::{self, FileSr};
use crate::sr::mounted::Mounted;
use crate::sr::mountpoint::Mountpoint;
use crate::sys::mount::{self, Mount};
use crate::sys::run_dir;
use crate::types::{DeviceConfig, Done, NewSr, Overwrite, SrInfo, SrUuid};

pub const DRIVER: Driver = Driver {
    sr_type: "zfs",
    executable: "ZFSSR",
    description: "disks as files in a dataset of ZFS",
    dconf_form: "/mountpoint/of/the/dataset",
    parse_dconf: |dconf| Ok(DeviceConfig::from([("location", dconf)])),
    open: |sr, config, deadline| Ok(Box::new(ZfsSr::new(sr, location(config)?, deadline))),
    probe: |config, deadline| {
        let location = location(config)?;
        let looked = |sr| Error::NoSr { sr, looked: not_zfs(&location) };
        dataset(&mount::all()?, &location).ok_or_else(|| looked(SrUuid::random()))?;
        file::probe(&location, "zfs", deadline)
    },
    discover,
    about: About {
        name: "ZFS",
        configuration: &[("location", "the mountpoint of a dataset (required)"), PREFERRED_FORMATS],
        substrate: Substrate::Directory,
        ..file::DRIVER.about
    },
    ..file::DRIVER
};

/// What the mount table calls it: the kernel's, and that of zfs-fuse.
fn is_zfs(mount: &Mount) -> bool {
    ["zfs", "fuse.zfs"].contains(&mount.fs_type.as_str())
}

fn location(config: &DeviceConfig) -> Result<PathBuf> {
    absolute_path("location", config.require("location")?)
}

fn not_zfs(location: &Path) -> String {
    format!("{} is no mount of ZFS; is its dataset mounted (zfs mount)?", location.display())
}

/// The mount of the dataset at `location`.
fn dataset<'a>(mounts: &'a [Mount], location: &Path) -> Option<&'a Mount> {
    mounts.iter().rfind(|mount| mount.path == location).filter(|mount| is_zfs(mount))
}

/// The SRs that are attached: a dataset at a mountpoint of an SR, and where else it is mounted.
fn discover() -> Result<Vec<Found>> {
    Ok(attached(&mount::all()?, &run_dir::mounts()))
}

fn attached(mounts: &[Mount], base: &Path) -> Vec<Found> {
    let one = |mount: &Mount| {
        let sr = mount.path.strip_prefix(base).ok()?.to_str()?.parse().ok()?;
        let first = mounts.iter().find(|it| it.device == mount.device && it.path != mount.path)?;
        Some(Found { sr, config: DeviceConfig::from([("location", first.path.to_str()?)]), slot: None })
    };
    mounts.iter().filter(|mount| is_zfs(mount)).filter_map(one).collect()
}

struct ZfsSr {
    sr: SrUuid,
    location: PathBuf,
    point: Mountpoint,
    file: FileSr,
}

impl ZfsSr {
    fn new(sr: SrUuid, location: PathBuf, deadline: Deadline) -> ZfsSr {
        let point = Mountpoint::new(sr, &run_dir::mounts(), is_zfs);
        let file = FileSr::new(sr, DRIVER.sr_type, point.path().to_owned(), deadline);
        ZfsSr { sr, location, point, file }
    }

    fn unavailable(&self, why: String) -> Error {
        Error::SrUnavailable { sr: self.sr, why }
    }

    /// The mount at `location`.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if nothing is there at all; [`Error::SrUnavailable`] if it is no mount of ZFS.
    fn dataset(&self) -> Result<Mount> {
        if let Err(e) = std::fs::symlink_metadata(&self.location)
            && e.kind() == std::io::ErrorKind::NotFound
        {
            return Err(Error::NoDevice { device: self.location.display().to_string(), why: e.to_string() });
        }
        dataset(&mount::all()?, &self.location).cloned().ok_or_else(|| self.unavailable(not_zfs(&self.location)))
    }

    /// The SR's files, where the dataset is mounted by its own name.
    fn at_location(&self) -> Result<FileSr> {
        self.dataset()?;
        Ok(FileSr::new(self.sr, DRIVER.sr_type, self.location.clone(), self.file.deadline()))
    }

    /// Refuses a mount of another dataset than the one at `location` is now.
    fn refuse_another(&self, mounted: &Mount) -> Result<()> {
        let now = self.dataset()?;
        if now.device == mounted.device {
            return Ok(());
        }
        Err(self.unavailable(format!(
            "{} is mounted at {}, and {} at {} now; sr_detach, then sr_attach",
            mounted.source,
            self.point.path().display(),
            now.source,
            self.location.display()
        )))
    }
}

impl Mounted for ZfsSr {
    fn files(&self) -> Result<&FileSr> {
        match self.point.mounted()? {
            Some(mounted) => self.refuse_another(&mounted).map(|()| &self.file),
            None => Err(self.unavailable(format!(
                "{} is not mounted at {}; sr_attach does it",
                self.location.display(),
                self.point.path().display()
            ))),
        }
    }

    fn shared(&self) -> bool {
        false
    }

    fn point(&self) -> &Mountpoint {
        &self.point
    }

    fn explain(&self, e: Error) -> Error {
        e
    }

    fn located(&self, info: SrInfo) -> SrInfo {
        SrInfo { location: self.location.display().to_string(), ..info }
    }

    fn make(&self, new: &NewSr, over: &Overwrite) -> Result<()> {
        overwrites_nothing(over)?;
        self.at_location()?.create(new)
    }

    fn unmake(&self) -> Result<Done> {
        let mounted = self.point.is_mounted()?;
        if mounted {
            self.point.refuse_if_attached()?;
        }
        let done = self.at_location()?.delete()?;
        if mounted {
            self.point.unmount()?;
        }
        Ok(done)
    }

    fn enter(&self, begin: fn(&FileSr) -> Result<Done>) -> Result<Done> {
        if let Some(mounted) = self.point.mounted()? {
            self.refuse_another(&mounted)?;
            return begin(&self.file);
        }
        self.dataset()?;
        self.point.mount(|at| mount::bind(&self.location, at))?;
        // The dataset may have been unmounted in between: then this is the directory below it.
        let begun = self.files().and_then(begin);
        match begun {
            Ok(_) => Ok(Done::Changed),
            Err(cause) => Err(cause.undone(mount::unmount(self.point.path()).map(drop))),
        }
    }

    fn leave(&self) -> Result<Done> {
        if !self.point.is_mounted()? {
            self.point.sweep();
            return Ok(Done::Already);
        }
        self.point.refuse_if_attached()?;
        self.point.unmount()?;
        Ok(Done::Changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(lines: &[(&str, &str, u64)]) -> Vec<Mount> {
        let one = |(path, fs_type, device): &(&str, &str, u64)| Mount {
            path: path.into(),
            device: *device,
            fs_type: (*fs_type).to_owned(),
            source: format!("pool/{device}"),
            options: String::new(),
        };
        lines.iter().map(one).collect()
    }

    #[test]
    fn only_a_mount_of_zfs_is_a_dataset() {
        let table = mounts(&[
            ("/", "ext4", 1),
            ("/pool", "zfs", 2),
            ("/pool/a", "fuse.zfs", 3),
            ("/tank", "zfs", 4),
            ("/tank", "tmpfs", 5),
        ]);
        let device = |path: &str| dataset(&table, Path::new(path)).map(|mount| mount.device);
        assert_eq!([device("/pool"), device("/pool/a")], [Some(2), Some(3)]);
        // A directory in a dataset, one of another filesystem, and a dataset that another mount hides.
        assert_eq!([device("/pool/b"), device("/"), device("/tank")], [None; 3]);
    }

    #[test]
    fn an_attached_dataset_tells_its_location() {
        let sr = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
        let at = format!("/run/sr-mount/{sr}");
        let table = mounts(&[("/pool", "zfs", 2), (&at, "zfs", 2), ("/run/sr-mount/other", "zfs", 2)]);
        let found = attached(&table, Path::new("/run/sr-mount"));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].sr.to_string().as_str(), found[0].config.get("location")), (sr, Some("/pool")));
        // Its own mount is gone.
        assert_eq!(attached(&table[1..2], Path::new("/run/sr-mount")), []);
    }
}
