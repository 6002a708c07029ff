//! What differs between two disks of a thin pool, and what one of them has.

use super::place::LvmPlace;
use super::{POOL, RAW};
use crate::error::{Error, Result, one_line};
use crate::sys::{lvm, syslog};
use crate::types::VdiUuid;
use crate::vdi::Changed;

impl LvmPlace<'_> {
    /// Whether the pool of the disk, and a program of this host, tell what differs from another disk.
    pub(super) fn has_delta(&self) -> bool {
        self.lv.borrow().is_thin() && lvm::can_tell()
    }

    /// The stretches in which the disk, which is active, differs from the disk `base`. `None`: that cannot be told, and the reason
    /// is in the system's log.
    pub(super) fn delta_since(&self, base: VdiUuid) -> Result<Changed> {
        if !self.has_delta() {
            return Ok(None);
        }
        let (older, newer) = (format!("{RAW}{base}"), self.name());
        let found = lvm::differences(&self.vg.name, POOL, [&older, &newer], self.sr.group.deadline.end());
        self.or_all(found.map(Some))
    }

    /// The stretches of the disk, which is active, that its pool has given it. `None`: as of [`LvmPlace::delta_since`].
    pub(super) fn mapped_now(&self) -> Result<Changed> {
        if !self.has_delta() {
            return Ok(None);
        }
        self.or_all(lvm::mapped(&self.vg.name, POOL, &self.name(), self.sr.group.deadline.end()))
    }

    /// Where the pool does not tell, all of the disk is read.
    fn or_all(&self, told: Result<Changed>) -> Result<Changed> {
        match told {
            Err(error) if !matches!(error, Error::Locked { .. }) => {
                syslog::write(&format!("all of VDI {} is read: {}", self.vdi, one_line(&error)));
                Ok(None)
            }
            told => told,
        }
    }
}
