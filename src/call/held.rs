//! VDIs that a caller keeps to itself for longer than one verb takes.

use std::path::PathBuf;

use super::Session;
use super::locks::Locks;
use crate::context::Context;
use crate::error::Result;
use crate::sys::blockdev;
use crate::sys::lock::Lock;
use crate::types::{Done, Format, Mode, VdiUuid};
use crate::vdi::{self, Vdi};

/// A VDI that no other call of this host attaches, changes or deletes until it is dropped.
#[derive(Debug)]
pub struct Held {
    vdi: VdiUuid,
    /// What uses it was paused.
    is_paused: bool,
    /// That of the VDI is the last.
    locks: Vec<Lock>,
}

impl Held {
    pub fn vdi(&self) -> VdiUuid {
        self.vdi
    }

    /// Whether it is this VDI, and what uses it was paused.
    pub(super) fn is_paused(&self, vdi: VdiUuid) -> bool {
        self.vdi == vdi && self.is_paused
    }

    /// The VDIs that a caller does not hold.
    pub(super) fn not_in(held: &[Held], vdis: impl Iterator<Item = VdiUuid>) -> Vec<VdiUuid> {
        vdis.filter(|vdi| held.iter().all(|held| held.vdi != *vdi)).collect()
    }
}

impl Session {
    /// Keeps every other call of this host from attaching, changing or deleting a VDI until the answer is dropped. Readers are not
    /// kept from anything. [`Session::vdi_read`] reads a VDI that is held; every other verb of this process waits in vain.
    ///
    /// # Errors
    /// [`crate::error::Error::Busy`] while another call has it until the deadline.
    pub fn vdi_hold(&self, vdi: VdiUuid, context: &Context) -> Result<Held> {
        let locks = Locks::of_vdis(&[vdi]).take(self.sr, context.deadline)?;
        Ok(Held { vdi, is_paused: false, locks })
    }

    /// Makes a block device of a VDI that the caller holds. Idempotent.
    ///
    /// # Errors
    /// Those of [`Session::vdi_attach`].
    pub fn vdi_attach_held(&self, held: &Held, mode: Mode, context: &Context) -> Result<PathBuf> {
        let (vdi, lock) = (held.vdi, held.locks.last().map(Lock::part).transpose()?);
        self.carry_out(Locks::none(), context, move |storage, _| vdi::attach(&*storage.vdi(vdi)?, mode, lock.as_ref()))
    }

    /// Removes the block device of a VDI that the caller holds. Idempotent.
    ///
    /// # Errors
    /// Those of [`Session::vdi_detach`].
    pub fn vdi_detach_held(&self, held: &Held, context: &Context) -> Result<Done> {
        let vdi = held.vdi;
        self.carry_out(Locks::none(), context, move |storage, _| storage.vdi(vdi)?.detach())
    }

    /// As [`Session::vdi_hold`], of a VDI whose user the caller has paused: it is read although it is attached.
    ///
    /// # Errors
    /// Those of [`Session::vdi_hold`]; [`crate::error::Error::VdiInUse`] for a VDI that is attached and whose bytes its server has, in part.
    pub fn vdi_hold_paused(&self, vdi: VdiUuid, context: &Context) -> Result<Held> {
        let held = self.vdi_hold(vdi, context)?;
        self.carry_out(Locks::none(), context, move |storage, _| written_out(&*storage.vdi(vdi)?))?;
        Ok(Held { is_paused: true, ..held })
    }
}

/// Puts into the image of a disk whose user is paused what was written to its device. The process that serves an image has a part
/// of it that nothing puts there, so the image of such a disk is not read.
pub(super) fn written_out(disk: &dyn Vdi) -> Result<()> {
    match disk.device()? {
        Some(device) if disk.place().format() == Format::Raw => blockdev::forget_cached(&device),
        _ => vdi::refuse_if_attached(disk),
    }
}
