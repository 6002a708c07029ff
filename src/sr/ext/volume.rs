//! The volume of an `EXTSR` and the filesystem on it: made, activated, checked, mounted and deactivated.
//!
//! Nothing here knows the files of the SR, nor whether it is attached. The order of the steps is in [`super`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::sr::volume_group::{CREATING, VolumeGroup};
use crate::sys::lvm::{self, Deactivated, Unmapped};
use crate::sys::tool::Tool;
use crate::sys::{blockdev, mount};
use crate::types::Done;

/// Serves ext3, which Python storage managers before 2013 made, as well.
const FILESYSTEM: &str = "ext4";

/// Of each device in turn, KiB; as the Python storage managers stripe.
const STRIPE: &str = "2048";
/// Large devices without a fast discard.
const MKFS_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// A full check reads all metadata.
const CHECK_DEADLINE: Duration = Duration::from_secs(12 * 60 * 60);

/// A volume with a stripe on each device has as much of each as of the smallest.
pub(super) fn striped(devices: &[u64]) -> u64 {
    devices.iter().min().map_or(0, |least| least * devices.len() as u64)
}

/// The only volume of the group, named like the SR, with one filesystem on it.
pub(super) struct Volume {
    pub(super) group: VolumeGroup,
}

impl Volume {
    /// The name of the volume.
    pub(super) fn name(&self) -> String {
        self.group.sr.to_string()
    }

    /// The volume as LVM's commands and people name it.
    pub(super) fn node(&self) -> PathBuf {
        lvm::node(&self.group.name(), &self.name())
    }

    pub(super) fn resume(&self, device: u64) -> Result<()> {
        if blockdev::is_suspended(device) { lvm::refresh(&self.group.name(), &self.name()) } else { Ok(()) }
    }

    /// The active volume's device, with its filesystem checked as far as that asks for it.
    pub(super) fn prepare(&self) -> Result<PathBuf> {
        let device = self.activate()?;
        self.refuse_claimed(&device)?;
        if blockdev::is_read_only(&device) {
            // A killed sr_probe leaves it so.
            blockdev::set_read_only(&device, false)?;
        }
        // Status 1: it had errors and they are corrected.
        let check = Tool::new("e2fsck").args(["-p", "--", &device.display().to_string()]).or_status(1);
        match check.deadline(CHECK_DEADLINE).run() {
            Ok(_) => Ok(device),
            Err(Error::Tool { argv, how, stderr }) => {
                let (group, volume, node) = (self.group.name(), self.name(), self.node());
                let by_hand = format!("by hand: lvchange -ay {group}/{volume} && e2fsck -f {}", node.display());
                Err(Error::Tool { argv, how, stderr: format!("{}\nto repair it {by_hand}", stderr.trim_end()) })
            }
            Err(other) => Err(other),
        }
    }

    pub(super) fn refuse_claimed(&self, device: &Path) -> Result<()> {
        match blockdev::claimed(device) {
            None => Ok(()),
            Some(who) => {
                Err(Error::DeviceInUse { device: self.node().display().to_string(), holder: format!("{who} has it") })
            }
        }
    }

    pub(super) fn mount(&self, device: &Path, at: &Path, read_only: bool, options: &str) -> Result<()> {
        let mounted = mount::block_device(device, at, FILESYSTEM, read_only, options);
        mounted.map_err(|e| match e.errno().map(Errno::from_raw) {
            Some(errno @ (Errno::EINVAL | Errno::EUCLEAN)) => Error::Damaged {
                path: self.node(),
                what: format!(
                    "it has no filesystem that can be mounted as {FILESYSTEM} ({}; the kernel's log says why); sr_attach \
                     tries to repair it",
                    errno.desc()
                ),
            },
            _ => e,
        })
    }

    pub(super) fn activate(&self) -> Result<PathBuf> {
        let (group, volume) = (self.group.name(), self.name());
        match lvm::kernel_device(&group, &volume).and_then(|device| blockdev::number(&device)) {
            None => lvm::activate(&group, &volume)?,
            Some(device) => self.resume(device)?,
        }
        lvm::kernel_device(&group, &volume).ok_or_else(|| Error::NoDevice {
            device: self.node().display().to_string(),
            why: "LVM activated it, but the kernel has no such device".to_owned(),
        })
    }

    /// Ends what [`Volume::activate`] began. Idempotent.
    pub(super) fn deactivate(&self) -> Result<Done> {
        let (group, volume) = (self.group.name(), self.name());
        if lvm::kernel_device(&group, &volume).is_none() {
            return Ok(Done::Already);
        }
        match self.group.look() {
            Ok(vg) => self.group.deactivate(&vg, &volume)?,
            // Its devices went away under it.
            Err(_) => match lvm::remove_lost_device(&group, &volume)? {
                Deactivated::Done => {}
                Deactivated::Busy(holder) => {
                    return Err(Error::DeviceInUse { device: self.node().display().to_string(), holder });
                }
            },
        }
        Ok(Done::Changed)
    }

    pub(super) fn make_filesystem(&self) -> Result<()> {
        let (group, volume) = (self.group.name(), self.name());
        let vg = lvm::report(Some(&group), Unmapped::All)?.into_iter().find(|vg| vg.name == group);
        let vg = vg.ok_or_else(|| self.group.no_sr("its volume group is gone".to_owned()))?;
        let each: Vec<u64> = vg.pvs.iter().map(|pv| pv.size / vg.extent_size).collect();
        let (extents, stripes) = (striped(&each).to_string(), each.len().to_string());
        let mut options = vec!["-y", "-Zy", "-Wy", "-n", &volume, "-l", &extents];
        if each.len() > 1 {
            options.extend(["-i", &stripes, "-I", STRIPE]);
        }
        lvm::change("lvcreate", &options, &[&group])?;
        let device = self.activate()?;
        Tool::new("mkfs.ext4").args(["-F", "-q", "--", &device.display().to_string()]).deadline(MKFS_DEADLINE).run()?;
        blockdev::flush(&device)?;
        self.group.deactivate(&vg, &volume)?;
        self.group.change(&vg, "vgchange", &["--deltag", CREATING], &[&group])
    }
}

#[cfg(test)]
mod tests {
    use super::striped;

    #[test]
    fn a_striped_volume_has_of_each_device_as_much_as_of_the_smallest() {
        assert_eq!(striped(&[7]), 7);
        assert_eq!(striped(&[7, 5, 9]), 15);
        assert_eq!(striped(&[]), 0);
    }
}
