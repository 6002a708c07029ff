//! The place where an SR is mounted, for drivers that have their files on a device or a server.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::sys::mount::{self, Mount, Unmounted};
use crate::sys::run_dir;
use crate::sys::syslog;
use crate::types::SrUuid;
use crate::vdi::Attachments;

/// `<base>/<sr>`: an empty directory of the SR's own, there only while something is mounted on it. The record of that is
/// the kernel's mount table; neither server nor device is asked.
pub struct Mountpoint {
    sr: SrUuid,
    path: PathBuf,
    is_ours: Box<dyn Fn(&Mount) -> bool + Send + Sync>,
}

impl Mountpoint {
    /// `is_ours` tells the SR's mount from others.
    pub fn new(sr: SrUuid, base: &Path, is_ours: impl Fn(&Mount) -> bool + Send + Sync + 'static) -> Mountpoint {
        // The mount table shows paths without symbolic links; /var/run is one.
        let base = fs::canonicalize(base).unwrap_or_else(|_| base.to_owned());
        Mountpoint { sr, path: base.join(sr.to_string()), is_ours: Box::new(is_ours) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// [`Error::DeviceInUse`] if something else is mounted here.
    pub fn is_mounted(&self) -> Result<bool> {
        self.mounted().map(|mount| mount.is_some())
    }

    /// The SR's mount, if it is there.
    ///
    /// # Errors
    /// As [`Mountpoint::is_mounted`].
    pub fn mounted(&self) -> Result<Option<Mount>> {
        match mount::at(&self.path)? {
            None => Ok(None),
            Some(it) if (self.is_ours)(&it) => Ok(Some(it)),
            Some(it) => Err(Error::DeviceInUse {
                device: self.path.display().to_string(),
                holder: format!("{} is mounted there", it.source),
            }),
        }
    }

    /// # Errors
    /// [`Error::VdiInUse`] while a disk of the mount is attached, by the names that the kernel has for what is
    /// below block devices. The filesystem is not asked.
    pub fn refuse_if_attached(&self) -> Result<()> {
        for name in Attachments::now()?.below(&self.path) {
            let stem: String = name.to_string_lossy().chars().take(36).collect();
            if let Ok(vdi) = stem.parse() {
                let holder = "this host, which has it attached (vdi_detach ends that)".to_owned();
                return Err(Error::VdiInUse { vdi, sr: self.sr, holder });
            }
        }
        Ok(())
    }

    /// Makes the directory and mounts there by `how`. If that fails, no directory is left that was made for it, except the
    /// directory in which all SRs have their mountpoints.
    pub fn mount(&self, how: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let missing: Vec<&Path> = self.path.ancestors().skip(1).take_while(|dir| !dir.exists()).collect();
        self.make()?;
        how(&self.path).inspect_err(|_| {
            self.sweep();
            let common = fs::canonicalize(run_dir::mounts()).ok();
            let is_common = |dir: &&Path| common.is_some() && fs::canonicalize(dir).ok() == common;
            // A directory that another call uses meanwhile is not empty.
            let _ = missing.into_iter().take_while(|dir| !is_common(dir)).try_for_each(fs::remove_dir);
        })
    }

    /// Mode 0700. Idempotent.
    pub fn make(&self) -> Result<()> {
        let make = || fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        // A call whose mount failed removes the directory above, which it had made.
        let made = make().or_else(|e| if e.kind() == io::ErrorKind::NotFound { make() } else { Err(e) });
        made.map_err(Error::io("create the mountpoint", &self.path))
    }

    /// Removes the directory after unmounting. The caller's request is done by then, so a failure (somebody put files
    /// below the mountpoint before it was mounted, or works in it) only goes to the log; sr_attach takes the directory.
    fn remove(&self) {
        if let Err(e) = fs::remove_dir(&self.path)
            && e.raw_os_error() != Some(Errno::ENOENT as i32)
        {
            syslog::write(&format!("SR {} is unmounted; its mountpoint {} stays: {e}", self.sr, self.path.display()));
        }
    }

    /// Removes the directory that a killed call left. Somebody's own stays.
    pub fn sweep(&self) {
        let _ = fs::remove_dir(&self.path);
    }

    /// Ends the mount, if there is one, and removes the directory if that can be done.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`] with the processes that work in it.
    pub fn unmount(&self) -> Result<()> {
        match mount::unmount(&self.path)? {
            Unmounted::Done => {
                self.remove();
                Ok(())
            }
            Unmounted::Busy(holder) => Err(Error::DeviceInUse { device: self.path.display().to_string(), holder }),
        }
    }

    /// Ends the mount of a server that is gone for good, without waiting for it, and removes the directory. The caller knows
    /// that no disk is attached, so nothing unwritten is lost.
    pub fn abandon(&self) -> Result<()> {
        mount::abandon(&self.path)?;
        self.remove();
        Ok(())
    }
}
