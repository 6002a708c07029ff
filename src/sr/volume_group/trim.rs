//! The devices of a group are told that nobody needs what is free in it, part by part.
//!
//! 1. Make the volume `<sr>_trim_lv` of a part of what is free, on one device; 2. discard it, for some seconds; 3. remove it. After 1 or
//!    2: the volume.
//!
//! The next call that changes the group removes it ([`lvm`](crate::sr::lvm), [`lvhd`](crate::sr::lvhd)). LVM gives the volume only
//! extents that no other volume has. The caller has the SR to itself for one part, so no call of this host finds the group full, and
//! others get their turn between two parts.

use std::time::{Duration, Instant};

use super::VolumeGroup;
use crate::error::{Error, Result, ended};
use crate::sr::Trim;
use crate::sys::blockdev;
use crate::sys::copy::Progress;
use crate::sys::lvm::{self, Free, Unmapped, Vg};
use crate::types::SrUuid;

/// The least that is worth it, bytes (`trim_util.py` of the Python storage managers).
const LEAST: u64 = 4 << 20;

/// For how long one part is discarded. A step that was begun is ended.
const LONGEST: Duration = Duration::from_secs(2);

/// Bytes of a step.
const STEP: u64 = 256 << 20;

/// Stretches of extents of one part, at most: each makes the command line longer.
const STRETCHES: usize = 64;

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

    /// Discards the next part of what is free in a group without the volume. `tags` of the volume.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if hardly anything is free; [`Error::Tool`]. A device that fails at it is noted, and let be.
    pub fn trim(&self, vg: &Vg, tags: &[&str], mut trim: Trim, progress: Progress) -> Result<Trim> {
        let least = LEAST.max(vg.extent_size);
        if !trim.has_begun() && vg.free < least {
            return Err(Error::NoSpace { sr: self.sr, free: vg.free, wanted: least });
        }
        let free = lvm::free(&vg.name)?;
        if !trim.has_begun() {
            trim.begin(free.clone());
        }
        let part = trim.next(&free, STRETCHES);
        if let Some(Free { pv, device, .. }) = part.first().cloned() {
            let extents = part.iter().map(|free| free.count).sum();
            match self.trim_part(vg, tags, &part, &trim, progress) {
                Ok(Some((told, rest))) => {
                    trim.told += told;
                    trim.put_back(rest);
                }
                Ok(None) => trim.is_deaf(&pv, &device, extents, vg.extent_size),
                Err(error @ Error::Io { .. }) => trim.has_failed(&pv, error),
                Err(error) => return Err(error),
            }
        }
        Ok(trim)
    }
    /// Makes the volume of extents of one device, discards it, and removes it. The answer is the number of bytes that the device was told
    /// of, and the extents for which there was no time. `None`: the device takes no discards.
    fn trim_part(
        &self,
        vg: &Vg,
        tags: &[&str],
        part: &[Free],
        trim: &Trim,
        progress: Progress,
    ) -> Result<Option<(u64, Vec<Free>)>> {
        let (name, extents) = (volume(self.sr), part.iter().map(|free| free.count).sum::<u64>());
        let count = extents.to_string();
        let mut options = vec!["-y", "-ay", "-Zn", "-Wn", "--alloc", "normal", "-l", &count];
        options.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        options.extend(["-n", &name]);
        let made = self.change(vg, "lvcreate", &options, &[&vg.name, &lvm::ranges(&part[0].device, part)]);
        let done = made.and_then(|()| {
            let (size, left) = (extents * vg.extent_size, trim.extents_left() * vg.extent_size);
            let step = STEP.next_multiple_of(vg.extent_size);
            let progress = |done, _| progress(trim.told + done, trim.told + size + left);
            let node = lvm::node(&vg.name, &name);
            match blockdev::discard_until(&node, step, Instant::now() + LONGEST, &progress)? {
                None => Ok(None),
                Some(told) if told >= size => Ok(Some((told, Vec::new()))),
                Some(told) => Ok(Some((told, self.behind(vg, &name, told / vg.extent_size, &part[0])?))),
            }
        });
        ended(done, self.end_trim(vg))
    }

    /// The extents of the volume behind the first `done`: LVM has them in an order of its own. All are on the device of `like`.
    fn behind(&self, vg: &Vg, name: &str, done: u64, like: &Free) -> Result<Vec<Free>> {
        let groups = lvm::report(Some(&vg.name), Unmapped::Tagged(&[]))?;
        let segments = groups.iter().find_map(|vg| vg.lv(name)).map(|lv| lv.segments.as_slice());
        let behind = |segment: &lvm::Segment| {
            let (_, first) = segment.on.as_ref()?;
            let skipped = done.saturating_sub(segment.start);
            let count = segment.count.checked_sub(skipped).filter(|count| *count > 0)?;
            Some(Free { first: first + skipped, count, ..like.clone() })
        };
        Ok(segments.unwrap_or_default().iter().filter_map(behind).collect())
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
