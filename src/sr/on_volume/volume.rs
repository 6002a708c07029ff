//! The volume of an SR and the filesystem on it: made, activated, checked, mounted and deactivated.
//!
//! Nothing here knows the files of the SR, nor whether it is attached. The order of the steps is in [`super`].

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::Filesystem;
use crate::error::{Error, Result};
use crate::sr::volume_group::{CREATING, VolumeGroup};
use crate::sys::lvm::{self, Deactivated, Unmapped, Vg};
use crate::sys::tool::Tool;
use crate::sys::{blockdev, loopdev, mount};
use crate::types::Done;

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
    pub(super) filesystem: &'static Filesystem,
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

    /// The device to be mounted, of the active volume.
    fn shown(&self, device: &Path) -> Result<PathBuf> {
        if !self.filesystem.in_small_sectors {
            return Ok(device.to_owned());
        }
        // The kernel knows it without links.
        let device = &fs::canonicalize(device).map_err(Error::io("examine", device))?;
        let file = blockdev::open(device, true)?;
        match loopdev::find(&loopdev::attached()?, device, loopdev::id(&file, device)?) {
            Some(found) => Ok(found),
            None => loopdev::attach_in_small_sectors(&file, device),
        }
    }

    /// Ends what [`Volume::shown`] made over the device. Idempotent.
    fn hide(&self, device: &Path) -> Result<()> {
        if !self.filesystem.in_small_sectors {
            return Ok(());
        }
        let Ok(device) = &fs::canonicalize(device) else { return Ok(()) };
        let Some(id) = blockdev::open(device, false).ok().and_then(|file| loopdev::id(&file, device).ok()) else {
            return Ok(());
        };
        let Some(shown) = loopdev::find(&loopdev::attached()?, device, id) else { return Ok(()) };
        match loopdev::detach(&shown, loopdev::Backing::File(id))? {
            loopdev::Detached::Busy(holder) => Err(Error::DeviceInUse { device: shown.display().to_string(), holder }),
            _ => Ok(()),
        }
    }

    /// The active volume's device, with its filesystem checked as far as that asks for it.
    pub(super) fn prepare(&self) -> Result<PathBuf> {
        let device = self.activate()?;
        self.refuse_claimed(&device)?;
        if blockdev::is_read_only(&device) {
            // A killed sr_probe leaves it so.
            blockdev::set_read_only(&device, false)?;
        }
        self.refuse_other_filesystem(&device)?;
        let device = self.shown(&device)?;
        let Some(check) = self.filesystem.check else { return Ok(device) };
        let check = Tool::new(check[0]).args(&check[1..]).arg(device.display().to_string()).or_status(1);
        match check.deadline(CHECK_DEADLINE).run() {
            Ok(_) => Ok(device),
            Err(Error::Tool { argv, how, stderr }) => {
                let stderr = format!("{}\nto repair it {}", stderr.trim_end(), self.by_hand());
                Err(Error::Tool { argv, how, stderr })
            }
            Err(other) => Err(other),
        }
    }

    /// The commands by which a person repairs the filesystem.
    fn by_hand(&self) -> String {
        let (group, volume, node, repair) = (self.group.name(), self.name(), self.node(), self.filesystem.by_hand);
        format!("by hand: lvchange -ay {group}/{volume} && {repair} {}", node.display())
    }

    /// Refuses a volume with a filesystem that an SR of another type has. One with none that is known is left to the kernel.
    ///
    /// # Errors
    /// [`Error::NoSr`]; [`Error::Io`] if the device cannot be read.
    pub(super) fn refuse_other_filesystem(&self, device: &Path) -> Result<()> {
        let mut head = [0; 2048];
        let read = |e| Error::io("read", device)(e);
        blockdev::open(device, false)?.read_exact_at(&mut head, 0).map_err(read)?;
        match filesystem_in(&head) {
            Some(found) if found != self.filesystem.fs_type => Err(self.group.no_sr(format!(
                "its volume has an {found} filesystem; the type of the SR is {}",
                if found == "xfs" { "xfs" } else { "ext" }
            ))),
            _ => Ok(()),
        }
    }

    /// Tags the group with its filesystem, if other storage managers made it. Idempotent.
    pub(super) fn tag(&self, vg: &Vg) -> Result<()> {
        match self.filesystem.tag {
            Some(tag) if !vg.tags.iter().any(|it| it == tag) => {
                self.group.change(vg, "vgchange", &["--addtag", tag], &[&vg.name])
            }
            _ => Ok(()),
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
        let fs_type = self.filesystem.fs_type;
        let mounted = mount::block_device(device, at, fs_type, read_only, options);
        mounted.map_err(|e| match e.errno().map(Errno::from_raw) {
            // xfs says EBADMSG of a wrong checksum and ENOSYS of a superblock without a sector size.
            Some(errno @ (Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG | Errno::ENOSYS)) => Error::Damaged {
                path: self.node(),
                what: format!(
                    "it has no filesystem that can be mounted as {fs_type} ({}; the kernel's log says why); {}",
                    errno.desc(),
                    match self.filesystem.check {
                        Some(_) => "sr_attach tries to repair it".to_owned(),
                        None => format!("to repair it {}", self.by_hand()),
                    }
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
        let Some(device) = lvm::kernel_device(&group, &volume) else { return Ok(Done::Already) };
        self.hide(&device)?;
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
        let make = self.filesystem.make;
        Tool::new(make[0]).args(&make[1..]).arg(device.display().to_string()).deadline(MKFS_DEADLINE).run()?;
        blockdev::flush(&device)?;
        self.group.deactivate(&vg, &volume)?;
        self.group.change(&vg, "vgchange", &["--deltag", CREATING], &[&group])
    }
}

/// The filesystem that begins with these bytes, of those that SRs have: the superblock of xfs is the first of its sectors, that of
/// ext2, ext3 and ext4 has its magic number at byte 1080.
fn filesystem_in(head: &[u8; 2048]) -> Option<&'static str> {
    if head.starts_with(b"XFSB") {
        Some("xfs")
    } else if head[1080..1082] == [0x53, 0xef] {
        Some("ext4")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{filesystem_in, striped};

    #[test]
    fn a_filesystem_is_told_by_its_superblock() {
        let mut head = [0; 2048];
        assert_eq!(filesystem_in(&head), None);
        head[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(filesystem_in(&head), Some("ext4"));
        head[..4].copy_from_slice(b"XFSB");
        assert_eq!(filesystem_in(&head), Some("xfs"));
    }

    #[test]
    fn a_striped_volume_has_of_each_device_as_much_as_of_the_smallest() {
        assert_eq!(striped(&[7]), 7);
        assert_eq!(striped(&[7, 5, 9]), 15);
        assert_eq!(striped(&[]), 0);
    }
}
