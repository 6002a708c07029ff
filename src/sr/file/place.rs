//! One disk of a file SR, as the formats see it.

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::files::FilePlace;
use super::layout::{LOCK, PARAMS, beside, format_of, is_taken, must_be, remove_leftovers, usage};
use super::records::{LockRecord, VdiRecord, encode, read_holders, read_params};
use super::unborn::is_being_changed;
use crate::error::{Error, Result};
use crate::image::SECTOR;
use crate::sys::copy::{self, Progress};
use crate::sys::loopdev::{self, Backing};
use crate::sys::{blockdev, register};
use crate::types::{Done, Format, Mode, Params, SrUuid, State, VdiInfo, VdiUuid};
use crate::vdi::{self, Accept, Holders, Opened, Place, Usage, raw};

/// How an image was copied.
#[derive(PartialEq, Eq)]
enum Copied {
    /// It shares all extents with its copy.
    AtOnce,
    /// A writer in between would have torn it.
    InSteps,
}

impl FilePlace<'_> {
    /// Makes a block device over the image as large as it is.
    fn follow_length(&self) -> Result<()> {
        let Some(device) = self.device()? else { return Ok(()) };
        let wanted = self.file_stat()?.length;
        match blockdev::size(&device)? == wanted / SECTOR * SECTOR {
            true => Ok(()),
            false => loopdev::update_size(&device, Backing::File(self.file_stat()?.id)),
        }
    }

    /// Copies the image, which is open as `from`, into an empty file. `before_steps` may refuse a copy that takes several.
    fn copy_image(
        &self,
        from: &File,
        to: &File,
        before_steps: impl FnOnce() -> Result<()>,
        progress: Progress,
    ) -> Result<Copied> {
        let path = self.path();
        if copy::reflink(from, to, &path)? {
            return Ok(Copied::AtOnce);
        }
        before_steps()?;
        let fs = self.dir.statvfs()?;
        let (free, wanted) = (fs.blocks_available() * fs.fragment_size(), self.usage()?.allocated);
        if wanted > free {
            return Err(Error::NoSpace { sr: self.sr.sr, free, wanted });
        }
        copy::sparse(from, to, &path, progress)?;
        Ok(Copied::InSteps)
    }

    /// Refuses a disk whose lock changed since it was in the state `unlocked`. Our lock is of this host; who attaches the disk
    /// on another locks it there.
    fn refuse_locked_since(&self, unlocked: u64) -> Result<()> {
        if !self.sr.shared || self.holders()?.state == unlocked {
            return Ok(());
        }
        let holder = "another host, which locked it while it was copied".to_owned();
        Err(Error::VdiInUse { vdi: self.vdi, sr: self.sr.sr, holder })
    }

    /// Takes the persistent lock in the name of vdi_delete: whoever locks the VDI at the same moment on
    /// another host is refused, or was first and is found here.
    pub(super) fn lock_for_deletion(&self) -> Result<()> {
        let seen = self.holders()?;
        if seen.users.iter().all(|user| user.starts_with(vdi::DELETING)) {
            let host = nix::unistd::gethostname().unwrap_or_default();
            if self.set_holders(&seen, vec![format!("{}{}", vdi::DELETING, host.display())])? {
                return Ok(());
            }
        }
        Err(Error::VdiInUse { vdi: self.vdi, sr: self.sr.sr, holder: "another call, which locked it first".to_owned() })
    }
}

impl Place for FilePlace<'_> {
    fn sr(&self) -> SrUuid {
        self.sr.sr
    }

    fn vdi(&self) -> VdiUuid {
        self.vdi
    }

    fn format(&self) -> Format {
        self.format
    }

    fn deadline(&self) -> Instant {
        self.sr.deadline.end()
    }

    fn path(&self) -> PathBuf {
        FilePlace::path(self)
    }

    fn open(&self, mode: Mode) -> Result<Opened<'_>> {
        self.open_image(mode)
    }

    fn usage(&self) -> Result<Usage> {
        Ok(usage(&self.file_stat()?))
    }

    /// All that may keep the disk from being used stands in its image.
    fn state(&self) -> State {
        State::Healthy
    }

    fn params(&self) -> Result<Params> {
        read_params(&self.dir, self.vdi)
    }

    fn holders(&self) -> Result<Holders> {
        read_holders(&self.dir, self.vdi)
    }

    fn set_holders(&self, seen: &Holders, users: Vec<String>) -> Result<bool> {
        let state = register::State { number: seen.state, bytes: Vec::new() };
        let name = beside(self.vdi, LOCK);
        let done = register::advance(&self.dir, &name, &state, &encode(&LockRecord::Lock { users }));
        // Deleted on another host since it was looked up: the lock is of nothing.
        if self.sr.shared
            && self.dir.lookup(&self.name())?.is_none()
            && !is_being_changed(&self.dir, self.vdi)?
            && self.dir.lookup(&self.name())?.is_none()
        {
            register::remove(&self.dir, &name)?;
            return Err(self.gone());
        }
        done
    }

    fn set_params(&self, params: &Params) -> Result<()> {
        let name = beside(self.vdi, PARAMS);
        match *params == Params::default() {
            true => {
                if self.sr.shared {
                    self.dir.forget_old(&name)?;
                }
                self.dir.remove(&name).and_then(|_| self.dir.sync())
            }
            false => self.dir.replace(&name, &encode(&VdiRecord::Vdi(params.clone()))),
        }
    }

    fn is_shared(&self) -> bool {
        self.sr.shared
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        let (loops, path) = (loopdev::attached()?, self.path());
        match loopdev::may_hold(&loops, &path) {
            true => Ok(loopdev::find(&loops, &path, self.file_stat()?.id)),
            false => Ok(None),
        }
    }

    fn attach(&self, mode: Mode) -> Result<PathBuf> {
        if let Some(device) = self.device()? {
            return Ok(device);
        }
        let read_only = mode == Mode::ReadOnly;
        let file = self.dir.open_file(&self.name(), !read_only)?;
        loopdev::attach(&file, &self.path(), read_only)
    }

    fn detach(&self) -> Result<Done> {
        let Some(device) = self.device()? else { return Ok(Done::Already) };
        match loopdev::detach(&device, Backing::File(self.file_stat()?.id))? {
            loopdev::Detached::Done(done) => Ok(done),
            loopdev::Detached::Busy(who) => Err(Error::VdiInUse {
                vdi: self.vdi,
                sr: self.sr.sr,
                holder: format!("{who}, through {}", device.display()),
            }),
        }
    }

    fn round_up(&self, bytes: u64) -> u64 {
        bytes
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        let path = self.path();
        let file = self.dir.open_file(&self.name(), true)?;
        raw::set_length(&file, &path, bytes)?;
        let followed = file.sync_all().map_err(Error::io("make durable", &path)).and_then(|()| self.follow_length());
        followed.map_err(|cause| cause.after(vdi::has_now(self, bytes)))
    }

    fn settle(&self) -> Result<()> {
        self.dir.open_file(&self.name(), false)?.sync_all().map_err(Error::io("make durable", self.path()))?;
        self.follow_length()
    }

    fn settle_records(&self) -> Result<()> {
        // The params were durable before they got their name.
        register::settle(&self.dir, &beside(self.vdi, LOCK))
    }

    fn copy_to(&self, dest: VdiUuid, params: &Params, progress: Progress) -> Result<VdiInfo> {
        let device = self.device()?;
        if let Some(device) = &device {
            blockdev::flush(device)?;
        }
        let target = self.sr.place(self.dir.clone(), dest, self.format);
        self.sr.remove_unborn(&self.dir, dest)?;
        if dest == self.vdi || is_taken(&self.dir, dest)? {
            return Err(target.exists_already());
        }
        let from = self.dir.open_file(&self.name(), false)?;
        let unlocked = self.holders()?.state;
        let new = target.unnamed(params)?;
        let image = new.image.file();
        let attached = || match &device {
            Some(device) if !blockdev::is_read_only(device) => Err(Error::VdiInUse {
                vdi: self.vdi,
                sr: self.sr.sr,
                holder: format!(
                    "this host, which has it attached as {}, and the filesystem of {} can't copy a file at one \
                     instant (xfs and btrfs can): detach it first",
                    device.display(),
                    self.dir.path().display()
                ),
            }),
            _ => Ok(()),
        };
        if self.copy_image(&from, image, attached, progress)? == Copied::InSteps {
            self.refuse_locked_since(unlocked)?;
        }
        target.publish(new)?;
        raw::open(target, None).info().map_err(|cause| cause.after(vdi::made(dest)))
    }

    fn take_over(&self, source: VdiUuid, accept: Accept, progress: Progress) -> Result<()> {
        let format = format_of(&self.dir, source)?.ok_or_else(|| self.sr.no_vdi(source))?;
        let source = self.sr.place(self.dir.clone(), source, format);
        accept(format, &source.params()?)?;
        let from = self.dir.open_file(&source.name(), false)?;
        let unlocked = self.holders()?.state;
        let new = self.unnamed(&Params::default())?;
        source.copy_image(&from, new.image.file(), || Ok(()), progress)?;
        self.refuse_locked_since(unlocked)?;
        let before = self.file_stat()?.id;
        new.image.publish_over(&self.name()).map_err(|cause| match self.file_stat() {
            Ok(now) if now.id != before => cause.after(vdi::reverted(self.vdi)),
            _ => cause,
        })
    }

    fn remove(&self) -> Result<()> {
        must_be(&self.dir, &beside(self.vdi, PARAMS), SFlag::S_IFREG)?;
        if self.sr.shared {
            match self.lock_for_deletion() {
                Ok(()) | Err(Error::NoVdi { .. }) => {}
                // On a full disk nobody can lock it now, and to delete it is how there will be room.
                Err(e) if matches!(e.errno().map(Errno::from_raw), Some(Errno::ENOSPC | Errno::EDQUOT)) => {
                    vdi::refuse_if_locked(self)?;
                }
                Err(other) => return Err(other),
            }
        }
        if self.sr.shared {
            self.dir.forget_old(&self.name())?;
            self.dir.forget_old(&beside(self.vdi, PARAMS))?;
        }
        // Gone already: another host was faster, or our first request was carried out and its answer lost.
        self.dir.remove(&self.name())?;
        let followed = self.dir.sync().and_then(|()| remove_leftovers(&self.dir, self.vdi));
        followed.map(drop).map_err(|cause| cause.after(vdi::deleted(self.vdi)))
    }
}
