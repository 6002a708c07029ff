//! A disk whose group LVM does not see any more.

use std::path::PathBuf;
use std::time::Instant;

use super::{LvmSr, RAW};
use crate::error::{Error, Result};
use crate::sys::copy::Progress;
use crate::sys::lvm::{self, Deactivated};
use crate::types::{Done, Format, Mode, Params, SrUuid, State, VdiInfo, VdiUuid};
use crate::vdi::{Holders, Opened, Place, Usage};

/// A disk that is attached while LVM does not see its group any more: all that can be done is to detach it.
pub struct Lost<'a> {
    pub sr: &'a LvmSr,
    pub vdi: VdiUuid,
    pub why: String,
}

impl Lost<'_> {
    fn name(&self) -> String {
        format!("{RAW}{}", self.vdi)
    }

    fn unseen<T>(&self) -> Result<T> {
        Err(Error::SrUnavailable {
            sr: self.sr.group.sr,
            why: format!("{}; its VDI {} is attached and can only be detached", self.why, self.vdi),
        })
    }
}

impl Place for Lost<'_> {
    fn sr(&self) -> SrUuid {
        self.sr.group.sr
    }

    fn vdi(&self) -> VdiUuid {
        self.vdi
    }

    fn format(&self) -> Format {
        Format::Raw
    }

    fn deadline(&self) -> Instant {
        self.sr.group.deadline.end()
    }

    fn path(&self) -> PathBuf {
        lvm::node(&self.sr.group.name(), &self.name())
    }

    fn open(&self, _mode: Mode) -> Result<Opened<'_>> {
        self.unseen()
    }

    fn usage(&self) -> Result<Usage> {
        self.unseen()
    }

    fn state(&self) -> State {
        State::Broken(self.why.clone())
    }

    fn settle(&self) -> Result<()> {
        self.unseen()
    }

    fn settle_records(&self) -> Result<()> {
        self.unseen()
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn params(&self) -> Result<Params> {
        self.unseen()
    }

    fn holders(&self) -> Result<Holders> {
        self.unseen()
    }

    fn set_holders(&self, _seen: &Holders, _users: Vec<String>) -> Result<bool> {
        self.unseen()
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        Ok(lvm::kernel_device(&self.sr.group.name(), &self.name()))
    }

    fn attach(&self, _mode: Mode) -> Result<PathBuf> {
        self.unseen()
    }

    fn detach(&self) -> Result<Done> {
        match lvm::remove_lost_device(&self.sr.group.name(), &self.name())? {
            Deactivated::Done => Ok(Done::Changed),
            Deactivated::Busy(holder) => Err(Error::VdiInUse { vdi: self.vdi, sr: self.sr.group.sr, holder }),
        }
    }

    fn round_up(&self, bytes: u64) -> u64 {
        bytes
    }

    fn resize(&self, _bytes: u64) -> Result<()> {
        self.unseen()
    }

    fn copy_to(&self, _dest: VdiUuid, _params: &Params, _progress: Progress) -> Result<VdiInfo> {
        self.unseen()
    }

    fn remove(&self) -> Result<()> {
        self.unseen()
    }
}
