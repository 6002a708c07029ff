//! The devices of a group are told that nobody needs what is free in it.
//!
//! 1. Make the volume `<sr>_trim_lv` of all that is free; 2. discard it; 3. remove it. After 1 or 2: the volume.
//!
//! The next call that changes the group removes it ([`lvm`](crate::sr::lvm), [`lvhd`](crate::sr::lvhd)). LVM gives the volume only
//! extents that no other volume has. The caller has the SR to itself, so no call of this host finds the group full meanwhile.

use super::VolumeGroup;
use crate::error::{Error, Result, ended};
use crate::sys::blockdev;
use crate::sys::copy::Progress;
use crate::sys::lvm::{self, Vg};
use crate::types::SrUuid;

/// The least that is worth it, bytes (`trim_util.py` of the Python storage managers).
const LEAST: u64 = 4 << 20;

/// The end of the volume's name, after the SR's UUID (`trim_util.py`).
const END: &str = "_trim_lv";

/// The name of the volume.
pub fn volume(sr: SrUuid) -> String {
    format!("{sr}{END}")
}

/// Whether a name is that of the volume.
pub fn is_volume(name: &str) -> bool {
    name.strip_suffix(END).is_some_and(|sr| sr.parse::<SrUuid>().is_ok())
}

impl VolumeGroup {
    /// Free bytes, also while they are discarded, or if a killed call left the volume.
    pub fn free(&self, vg: &Vg) -> u64 {
        vg.free + vg.lv(&volume(self.sr)).map_or(0, |lv| lv.size)
    }

    /// Discards what is free in a group without the volume. `tags` of the volume. The answer is the number of bytes that the devices
    /// were told of: 0 if a device takes no discards.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if hardly anything is free; [`Error::Tool`]; [`Error::Io`] if a device fails at it.
    pub fn trim(&self, vg: &Vg, tags: &[&str], progress: Progress) -> Result<u64> {
        let (name, least) = (volume(self.sr), LEAST.max(vg.extent_size));
        if vg.free < least {
            return Err(Error::NoSpace { sr: self.sr, free: vg.free, wanted: least });
        }
        let mut options = vec!["-y", "-ay", "-Zn", "-Wn", "-l", "100%FREE"];
        options.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        options.extend(["-n", &name]);
        let made = self.change(vg, "lvcreate", &options, &[&vg.name]);
        let done = made.and_then(|()| blockdev::discard_all(&lvm::node(&vg.name, &name), progress));
        ended(done, self.end_trim(vg))
    }

    /// Removes the volume. Idempotent.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`], [`Error::Tool`].
    pub fn end_trim(&self, vg: &Vg) -> Result<()> {
        let name = volume(self.sr);
        self.deactivate(vg, &name)?;
        let removed = self.changed(vg, || lvm::remove_kept(&vg.name, &name));
        match removed {
            // It was not made, or another call was faster.
            Err(_) if self.whole().is_ok_and(|now| now.lv(&name).is_none()) => Ok(()),
            other => other,
        }
    }
}
