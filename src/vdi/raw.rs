//! Raw disks: the place's bytes are the disk's bytes.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::sys::copy::Progress;
use crate::types::{Done, Format, Mode, Params, VdiInfo, VdiUuid};
use crate::vdi::{Kind, Place, Vdi, refuse_if_attached, refuse_if_locked, refuse_if_used};

/// Bytes of a sector; a disk is a whole number of them.
pub const SECTOR: u64 = 512;

pub const KIND: Kind = Kind {
    format: Format::Raw,
    // The kernel's loff_t, a sector short of its end.
    largest: i64::MAX as u64 / SECTOR * SECTOR,
    create: |file, virtual_size| file.set_len(virtual_size),
    open: |place| Box::new(Raw { place }),
};

struct Raw<'a> {
    place: Box<dyn Place + 'a>,
}

impl Vdi for Raw<'_> {
    fn place(&self) -> &dyn Place {
        &*self.place
    }

    fn info(&self) -> Result<VdiInfo> {
        let (extent, params, holders) = (self.place.stat()?, self.place.params()?, self.place.holders()?);
        let attached = self.place.device()?.is_some();
        Ok(info(&*self.place, extent.length, extent.allocated, params, holders.users, attached))
    }

    fn attach(&self, mode: Mode) -> Result<PathBuf> {
        let mode = if self.place.params()?.read_only { Mode::ReadOnly } else { mode };
        self.place.attach(mode)
    }

    fn detach(&self) -> Result<Done> {
        self.place.detach()
    }

    fn delete(&self) -> Result<()> {
        refuse_if_used(&*self.place)?;
        self.place.remove()
    }

    fn clone_to(&self, dest: VdiUuid, progress: Progress) -> Result<VdiInfo> {
        refuse_if_used(&*self.place)?;
        let params = Params { read_only: false, shareable: false, ..self.place.params()? };
        self.place.copy_to(dest, &params, progress)
    }

    fn snapshot(&self, dest: VdiUuid, progress: Progress) -> Result<VdiInfo> {
        let params = Params { read_only: true, shareable: false, ..self.place.params()? };
        self.place.copy_to(dest, &params, progress)
    }

    fn resize(&self, size: u64, allow_shrink: bool) -> Result<Done> {
        let now = self.place.stat()?.length;
        if size == now {
            return Ok(Done::Already);
        }
        if size < now {
            if !allow_shrink {
                return Err(Error::Invalid {
                    what: "size",
                    value: size.to_string(),
                    expected: format!(
                        "VDI {} has {now} bytes; making it smaller destroys data and wants --allow-shrink",
                        self.place.vdi()
                    ),
                });
            }
            refuse_if_attached(&*self.place)?;
            refuse_if_locked(&*self.place)?;
        }
        self.place.resize(size)?;
        Ok(Done::Changed)
    }
}

/// What is known of a raw disk, from what its SR knows. For SRs that list many in one pass.
pub fn info(
    place: &dyn Place,
    virtual_size: u64,
    allocated: u64,
    params: Params,
    users: Vec<String>,
    attached: bool,
) -> VdiInfo {
    VdiInfo {
        uuid: place.vdi(),
        label: params.label,
        description: params.description,
        sr: place.sr(),
        lock: u8::from(!users.is_empty()),
        vbds: users,
        virtual_size,
        physical_utilisation: allocated,
        sector_size: SECTOR as u32,
        format: Format::Raw,
        parent: None,
        children: Vec::new(),
        shareable: params.shareable,
        attached,
        read_only: u8::from(params.read_only),
    }
}
