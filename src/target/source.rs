//! What a publication shows: a VDI, or a SCSI device of this host that is passed through.

use std::path::PathBuf;

use super::name::wwn_part;
use super::physical::{self, Hba, Physical};
use super::record::{self, Record};
use crate::call::Session;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::types::{Mode, SrUuid, VdiInfo, VdiUuid};

/// What a publication shows.
pub enum Source<'a> {
    /// A VDI of the SR of a session.
    Vdi(&'a Session, VdiUuid),
    Device(&'a Physical),
}

impl Source<'_> {
    /// The UUID by which the publication is known: that of the VDI, or one made of the device's identity.
    pub fn id(&self) -> VdiUuid {
        match self {
            Source::Vdi(_, vdi) => *vdi,
            Source::Device(device) => device.id(),
        }
    }

    /// The SR of the VDI.
    pub fn sr(&self) -> Option<SrUuid> {
        match self {
            Source::Vdi(session, _) => Some(session.sr()),
            Source::Device(_) => None,
        }
    }

    /// Whether the disk of a record is this one.
    pub fn is_of(&self, record: &Record) -> bool {
        record.vdi == self.id() && record.sr == self.sr()
    }

    /// That it is in use.
    pub fn in_use(&self, holder: String) -> Error {
        match self {
            Source::Vdi(session, vdi) => Error::VdiInUse { vdi: *vdi, sr: session.sr(), holder },
            Source::Device(device) => Error::DeviceInUse { device: device.address.to_string(), holder },
        }
    }

    /// That this host does not publish it.
    pub fn not_published(&self) -> Error {
        match self {
            Source::Vdi(session, vdi) => not_published(session.sr(), *vdi),
            Source::Device(device) => {
                Error::Usage(format!("the SCSI device {} is not published by this host", device.address))
            }
        }
    }

    /// Whether it is read-only. Refuses what cannot be published. `is_new`: nothing of the publication is there yet. `force`: a
    /// device is published whatever it holds.
    ///
    /// # Errors
    /// [`Error::VdiInUse`], [`Error::DeviceInUse`]; [`Error::WwnClash`]; [`Error::NoVdi`], [`Error::NoDevice`].
    pub fn examine(&self, is_new: bool, force: bool, context: &Context) -> Result<bool> {
        match self {
            Source::Vdi(session, vdi) => {
                let info = session.vdi_get_params(*vdi, context)?;
                if is_new {
                    refuse_in_use(&info)?;
                    refuse_clash(info.sr, info.uuid)?;
                }
                Ok(info.read_only)
            }
            Source::Device(device) => {
                if is_new {
                    physical::refuse_in_use(&device.find()?, force)?;
                }
                Ok(false)
            }
        }
    }

    /// That it exists.
    ///
    /// # Errors
    /// [`Error::NoVdi`]. A device that is gone is no error: it has no publication either.
    pub fn exists(&self, context: &Context) -> Result<()> {
        match self {
            Source::Vdi(session, vdi) => session.vdi_get_brief(*vdi, context).map(drop),
            Source::Device(_) => Ok(()),
        }
    }

    /// The mode in which a device is passed through.
    pub fn hba(&self) -> Option<Hba> {
        match self {
            Source::Vdi(..) => None,
            Source::Device(device) => Some(device.hba),
        }
    }

    /// Marks it as in use, for other hosts and other commands. Idempotent.
    ///
    /// # Errors
    /// [`Error::LockRefused`], [`Error::DeviceInUse`] if others have it.
    pub fn take(&self, context: &Context) -> Result<()> {
        match self {
            Source::Vdi(session, vdi) => lock_vdi(session, *vdi, context),
            Source::Device(device) => device.claim(context.deadline),
        }
    }

    /// The node that the kernel's target shows. Idempotent.
    ///
    /// # Errors
    /// Those of attaching a VDI.
    pub fn open(&self, record: &Record, context: &Context) -> Result<PathBuf> {
        let mode = if record.read_only { Mode::ReadOnly } else { Mode::ReadWrite };
        match self {
            Source::Vdi(session, vdi) => session.vdi_attach(*vdi, mode, context),
            Source::Device(device) => Ok(device.find()?.node),
        }
    }

    /// Whether a publication of this host has marked it as in use: by its lock, or as `device`, the block device that the kernel shows,
    /// is the VDI's.
    ///
    /// # Errors
    /// Those of the SR.
    pub fn is_marked(&self, device: Option<u64>, context: &Context) -> Result<bool> {
        let Source::Vdi(session, vdi) = self else { return Ok(false) };
        let info = session.vdi_get_params(*vdi, context)?;
        let attached = info.device.as_deref().and_then(blockdev::number);
        Ok(info.vbds.contains(&lock_user(*vdi)) || attached.is_some() && attached == device)
    }

    /// Gives the persistent lock back, if a publication of this host has it. Idempotent.
    ///
    /// # Errors
    /// Those of the SR.
    pub fn give_lock_back(&self, context: &Context) -> Result<()> {
        match self {
            Source::Vdi(session, vdi) => unlock_vdi(session, *vdi, context),
            Source::Device(_) => Ok(()),
        }
    }

    /// Gives back what [`Source::open`] and [`Source::take`] took. Idempotent.
    ///
    /// # Errors
    /// Those of detaching a VDI.
    pub fn give_back(&self, context: &Context) -> Result<()> {
        match self {
            Source::Vdi(session, vdi) => {
                match session.vdi_detach(*vdi, context) {
                    Ok(_) | Err(Error::NoVdi { .. }) => {}
                    Err(error) => return Err(error),
                }
                unlock_vdi(session, *vdi, context)
            }
            Source::Device(device) => device.release(context.deadline),
        }
    }
}

/// That this host does not publish a VDI.
pub fn not_published(sr: SrUuid, vdi: VdiUuid) -> Error {
    Error::Usage(format!("VDI {vdi} on SR {sr} is not published by this host"))
}

/// The user name under which a publication holds the persistent lock of its VDI. Other hosts see it.
fn lock_user(vdi: VdiUuid) -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("target:{}:{vdi}", host.to_string_lossy())
}

/// Refuses a VDI that somebody uses. What this host's publication of it left after a kill is no use.
fn refuse_in_use(info: &VdiInfo) -> Result<()> {
    let in_use = |holder: String| Err(Error::VdiInUse { vdi: info.uuid, sr: info.sr, holder });
    if info.hidden {
        return Err(Error::IsBase { op: "target publish", vdi: info.uuid });
    }
    match &info.device {
        Some(device) => in_use(format!("this host, which has it attached as {}; detach it first", device.display())),
        None if info.attached => in_use("this host, which has it attached; detach it first".to_owned()),
        None => Ok(()),
    }
}

/// Refuses a VDI that an initiator would take for another that this host publishes.
fn refuse_clash(sr: SrUuid, vdi: VdiUuid) -> Result<()> {
    let part = wwn_part(vdi);
    for (other, _) in record::all()? {
        if other != vdi && wwn_part(other) == part {
            return Err(Error::WwnClash { vdi, sr, other });
        }
    }
    Ok(())
}

/// Takes the persistent lock of the VDI, which is how other hosts see the publication. An SR without such locks has none.
fn lock_vdi(session: &Session, vdi: VdiUuid, context: &Context) -> Result<()> {
    let user = lock_user(vdi);
    match session.vdi_lock(vdi, &user, false, context) {
        Err(Error::Unsupported { .. }) => Ok(()),
        Err(Error::LockRefused { .. }) if session.vdi_get_params(vdi, context)?.vbds.contains(&user) => Ok(()),
        other => other,
    }
}

fn unlock_vdi(session: &Session, vdi: VdiUuid, context: &Context) -> Result<()> {
    match session.vdi_unlock(vdi, &lock_user(vdi), false, context) {
        // Not locked, or by others: then there is nothing of ours to give back.
        Ok(()) | Err(Error::Unsupported { .. } | Error::LockRefused { .. } | Error::NoVdi { .. }) => Ok(()),
        other => other,
    }
}
