//! One disk of an LVHD SR: the volume with its image.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use super::{Group, refused};
use crate::error::{Error, Result};
use crate::sys::copy::Progress;
use crate::sys::lvm;
use crate::types::{Done, Format, Mode, Params, SrUuid, State, VdiInfo, VdiUuid};
use crate::vdi::{Holders, Opened, Place, Usage};

/// The volume of a VDI, as one report showed it.
pub struct LvhdPlace<'a> {
    group: Rc<Group<'a>>,
    vdi: VdiUuid,
    name: String,
    format: Format,
    size: u64,
}

impl<'a> LvhdPlace<'a> {
    /// The place of a VDI.
    ///
    /// # Errors
    /// [`Error::NoVdi`].
    pub fn of(group: Rc<Group<'a>>, vdi: VdiUuid) -> Result<LvhdPlace<'a>> {
        let volume = group.volume(vdi)?;
        let (name, format, size) = (volume.lv.name.clone(), volume.format, volume.lv.size);
        Ok(LvhdPlace { group, vdi, name, format, size })
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn refused<T>(&self, op: &'static str) -> Result<T> {
        Err(refused(op, self.sr()))
    }
}

impl Place for LvhdPlace<'_> {
    fn sr(&self) -> SrUuid {
        self.group.own().sr
    }

    fn vdi(&self) -> VdiUuid {
        self.vdi
    }

    fn format(&self) -> Format {
        self.format
    }

    fn deadline(&self) -> Instant {
        self.group.own().deadline.end()
    }

    fn path(&self) -> PathBuf {
        lvm::node(&self.group.vg().name, &self.name)
    }

    /// The bytes are read by the group's map, and nothing is activated.
    fn open(&self, mode: Mode) -> Result<Opened<'_>> {
        if mode == Mode::ReadWrite {
            return self.refused("writing to a disk");
        }
        self.group.image(self.group.volume(self.vdi)?).map(Opened::of)
    }

    fn usage(&self) -> Result<Usage> {
        Ok(Usage { length: self.size, allocated: self.size })
    }

    fn state(&self) -> State {
        match self.group.image_state(self.vdi) {
            Ok(()) => State::Healthy,
            Err(error) => State::of(&error),
        }
    }

    fn params(&self) -> Result<Params> {
        Ok(self.group.params(self.vdi))
    }

    /// An LVHD SR keeps no persistent locks.
    fn holders(&self) -> Result<Holders> {
        Ok(Holders::default())
    }

    fn set_holders(&self, _seen: &Holders, _users: Vec<String>) -> Result<bool> {
        self.refused("vdi_lock")
    }

    fn set_params(&self, _params: &Params) -> Result<()> {
        self.refused("vdi_set")
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn settle_records(&self) -> Result<()> {
        Ok(())
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    fn attach(&self, _mode: Mode) -> Result<PathBuf> {
        self.refused("vdi_attach")
    }

    fn detach(&self) -> Result<Done> {
        Ok(Done::Already)
    }

    fn round_up(&self, bytes: u64) -> u64 {
        bytes.checked_next_multiple_of(self.group.vg().extent_size).unwrap_or(u64::MAX)
    }

    fn resize(&self, _bytes: u64) -> Result<()> {
        self.refused("vdi_resize")
    }

    fn copy_to(&self, _dest: VdiUuid, _params: &Params, _progress: Progress) -> Result<VdiInfo> {
        self.refused("vdi_clone or vdi_snapshot")
    }

    fn remove(&self) -> Result<()> {
        self.refused("vdi_delete")
    }
}

impl Group<'_> {
    /// Whether the image of a VDI can be read at all.
    ///
    /// # Errors
    /// Why it cannot.
    fn image_state(&self, vdi: VdiUuid) -> Result<(), Error> {
        self.image(self.volume(vdi)?).map(drop)
    }
}
