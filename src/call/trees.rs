//! The verbs that give a disk another place in its tree: it goes back, or gets another parent.

use super::Session;
use super::locks::Locks;
use crate::context::Context;
use crate::error::Result;
use crate::types::{Done, VdiInfo, VdiUuid};
use crate::vdi::SnapshotSaid;

impl Session {
    /// Says whether a VDI goes back at each start of its VM to what it holds now. Idempotent.
    ///
    /// # Errors
    /// Those of [`crate::vdi::Vdi::set_resets`].
    pub fn vdi_set_resets(&self, vdi: VdiUuid, resets: bool, context: &Context) -> Result<Done> {
        self.with_room(vdi, context, &|context| {
            self.with_vdi(vdi, context, move |disk, context| disk.set_resets(resets, context))
        })
    }

    /// Takes a VDI back to the point that [`Session::vdi_set_resets`] made, or makes it. Idempotent.
    ///
    /// # Errors
    /// Those of [`crate::vdi::Vdi::reset`].
    pub fn vdi_reset(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        self.with_room(vdi, context, &|context| self.with_vdi(vdi, context, |disk, context| disk.reset(context)))
    }

    /// Gives a VDI the contents of one of its snapshots. The VDI's own contents are lost; its UUID, names and snapshots
    /// stay. Idempotent.
    ///
    /// # Errors
    /// Those of [`crate::vdi::Vdi::revert_to`].
    pub fn vdi_revert(&self, vdi: VdiUuid, snapshot: VdiUuid, said: SnapshotSaid, context: &Context) -> Result<()> {
        let locks = Locks::of_vdis(&[vdi, snapshot]);
        self.carry_out(locks, context, move |storage, context| storage.vdi(vdi)?.revert_to(snapshot, said, context))
    }

    /// Makes a snapshot of a VDI that is to receive the writes of a guest, see [`crate::vdi::Vdi::snapshot_to_receive`].
    ///
    /// # Errors
    /// Those of [`Session::vdi_snapshot`]; [`crate::Error::Unsupported`] for a raw VDI.
    pub fn vdi_snapshot_to_receive(&self, source: VdiUuid, dest: VdiUuid, context: &Context) -> Result<VdiInfo> {
        self.with_room(source, context, &|context| {
            self.carry_out(Locks::of_vdis(&[source, dest]), context, move |storage, context| {
                storage.vdi(source)?.snapshot_to_receive(dest, context)
            })
        })
    }

    /// Makes the VDI `base` the parent of a VDI; it is no disk then. Idempotent.
    ///
    /// # Errors
    /// Those of [`crate::vdi::Vdi::compose`].
    pub fn vdi_compose(&self, vdi: VdiUuid, base: VdiUuid, context: &Context) -> Result<Done> {
        let locks = Locks::of_vdis(&[vdi, base]);
        self.carry_out(locks, context, move |storage, context| storage.vdi(vdi)?.compose(base, context))
    }
}
