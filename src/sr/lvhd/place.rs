//! One disk of an LVHD SR: the volume with its image.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use super::{Group, refused};
use crate::error::{Error, Result};
use crate::sys::copy::Progress;
use crate::sys::loopdev::{self, Backing, Detached};
use crate::sys::{blockdev, lvm};
use crate::types::{Done, Format, Mode, Params, SrUuid, State, VdiInfo, VdiUuid};
use crate::vdi::{Holders, Opened, Place, Usage, in_use};

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

    /// A VHD names the device of its parent, so the server of a VHD opens it by that name as well.
    fn path(&self) -> PathBuf {
        let vg = &self.group.vg().name;
        match self.format {
            Format::Vhd => Path::new("/dev/mapper").join(lvm::dm_name(vg, &self.name)),
            _ => lvm::node(vg, &self.name),
        }
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

    fn set_params(&self, params: &Params) -> Result<()> {
        self.group.set_params(self.vdi, self.format, params)
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn settle_records(&self) -> Result<()> {
        self.group.own().flush(self.group.vg())
    }

    fn is_shared(&self) -> bool {
        false
    }

    /// Of a raw disk: a loop device over its volume, so that it is told from a volume that another program has activated.
    fn device(&self) -> Result<Option<PathBuf>> {
        let Ok(volume) = self.path().canonicalize() else { return Ok(None) };
        let loops = loopdev::attached()?;
        let names = loops.get(&volume).into_iter().flatten();
        Ok(names.map(|name| Path::new("/dev").join(name)).find(|device| blockdev::is_read_only(device)))
    }

    fn attach(&self, mode: Mode) -> Result<PathBuf> {
        if mode == Mode::ReadWrite {
            return self.refused("vdi_attach of a disk that could be written to");
        }
        match self.device()? {
            Some(device) => Ok(device),
            None => {
                let path = self.path().canonicalize().map_err(Error::io("find", self.path()))?;
                loopdev::attach(&blockdev::open(&path, false)?, &path, true)
            }
        }
    }

    fn detach(&self) -> Result<Done> {
        let Some(device) = self.device()? else { return Ok(Done::Already) };
        let path = self.path().canonicalize().map_err(Error::io("find", self.path()))?;
        match loopdev::detach(&device, Backing::Path(&path))? {
            Detached::Done(done) => Ok(done),
            Detached::Busy(who) => Err(in_use(self, format!("{who}, through {}", device.display()))),
        }
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
