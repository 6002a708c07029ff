//! One image of an ISO SR: what formats and callers do with it.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Instant;

use nix::libc;

use super::images::{Iso, leads_out, made, uuid_of};
use super::{IsoSr, sync};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::Reading;
use crate::image::disk::Disk;
use crate::image::storage::FileStorage;
use crate::sys::copy::Progress;
use crate::sys::lock::Lock;
use crate::sys::loopdev::{self, Backing};
use crate::types::{Done, Format, Mode, Params, ParamsChange, SrUuid, State, VdiInfo, VdiUuid};
use crate::vdi::tree::nodes::Node;
use crate::vdi::{self, Holders, Opened, Place, Usage, Vdi};

/// A CD: a raw disk that says its file's name, and can only be read unless vdi_create made it.
pub(super) struct IsoVdi<'a>(pub(super) IsoPlace<'a>);

impl Vdi for IsoVdi<'_> {
    fn place(&self) -> &dyn Place {
        &self.0
    }

    fn info(&self) -> Result<VdiInfo> {
        Ok(self.0.info(self.device()?))
    }

    fn brief(&self) -> Result<VdiInfo> {
        Ok(self.0.info(None))
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        self.0.device()
    }

    fn attach(&self, mode: Mode, _lock: Option<&Lock>) -> Result<PathBuf> {
        self.0.attach(mode)
    }

    fn detach(&self) -> Result<Done> {
        self.0.detach()
    }

    fn delete(&self, _context: &Context) -> Result<()> {
        vdi::refuse_if_attached(self)?;
        self.0.remove()
    }

    fn read(&self, _reading: Reading, _reader: &mut dyn FnMut(&dyn Disk) -> Result<()>) -> Result<()> {
        self.0.sr.refuse("vdi_export")
    }

    fn resize(&self, _size: u64, _allow_shrink: bool, _context: &Context) -> Result<Done> {
        self.0.sr.refuse("vdi_resize")
    }

    fn clone_to(&self, _dest: VdiUuid, _changes: &ParamsChange, _context: &Context) -> Result<VdiInfo> {
        self.0.sr.refuse("vdi_clone")
    }

    fn snapshot(&self, _dest: VdiUuid, _changes: &ParamsChange, _context: &Context) -> Result<VdiInfo> {
        self.0.sr.refuse("vdi_snapshot")
    }
}

pub(super) struct IsoPlace<'a> {
    pub(super) sr: &'a IsoSr,
    pub(super) path: PathBuf,
    /// The directory of the SR, by a path without links.
    pub(super) library: PathBuf,
    pub(super) iso: Iso,
}

impl IsoPlace<'_> {
    pub(super) fn info(&self, device: Option<PathBuf>) -> VdiInfo {
        let node = Node { state: self.iso.state.clone(), ..Node::alone(Format::Raw, self.iso.usage.length) };
        let params = self.params_now();
        let info = vdi::describe(self, &node, self.iso.usage.allocated, params);
        VdiInfo { location: Some(self.iso.name.clone()), ..info.with_device(device) }
    }

    fn file(&self, mode: Mode) -> Result<File> {
        let write = mode == Mode::ReadWrite;
        // Never waits, as the open of a pipe in the place of the file would.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).write(write).custom_flags(flags).open(&self.path);
        let file = opened.map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => leads_out(&self.path, &self.library),
            _ => Error::io("open", &self.path)(e),
        })?;
        // Between the listing and now a directory above, or the file, may have become something else.
        let (meta, opened) = file
            .metadata()
            .and_then(|meta| Ok((meta, fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?)))
            .map_err(Error::io("examine", &self.path))?;
        if !meta.is_file() {
            return Err(Error::Damaged { path: self.path.clone(), what: "it is no regular file".to_owned() });
        }
        if opened.starts_with(&self.library) { Ok(file) } else { Err(leads_out(&self.path, &self.library)) }
    }

    fn params_now(&self) -> Params {
        let read_only = made(&self.iso.name).is_none();
        Params { label: self.iso.name.clone(), read_only, ..Params::default() }
    }
}

impl Place for IsoPlace<'_> {
    fn sr(&self) -> SrUuid {
        self.sr.sr
    }

    fn vdi(&self) -> VdiUuid {
        uuid_of(self.sr.sr, &self.iso.name)
    }

    fn format(&self) -> Format {
        Format::Raw
    }

    fn deadline(&self) -> Instant {
        self.sr.deadline.end()
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn open(&self, mode: Mode) -> Result<Opened<'_>> {
        Ok(Opened::of(FileStorage::new(self.file(mode)?, &self.path)?))
    }

    fn usage(&self) -> Result<Usage> {
        Ok(self.iso.usage)
    }

    fn state(&self) -> State {
        self.iso.state.clone()
    }

    fn settle(&self) -> Result<()> {
        self.file(Mode::ReadOnly)?.sync_all().map_err(Error::io("flush", &self.path))
    }

    /// Nothing is stored beside an image: its name is its label, and no user locks it.
    fn settle_records(&self) -> Result<()> {
        Ok(())
    }

    /// The kernel of another host that has an image attached is not asked: images are read, and a `<vdi>.img` is xapi's to
    /// attach to one host at a time.
    fn is_shared(&self) -> bool {
        false
    }

    fn params(&self) -> Result<Params> {
        Ok(self.params_now())
    }

    fn holders(&self) -> Result<Holders> {
        Ok(Holders::default())
    }

    fn set_holders(&self, _seen: &Holders, _users: Vec<String>) -> Result<bool> {
        self.sr.refuse("vdi_lock")
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        Ok(self.sr.device(&loopdev::attached()?, &self.path, self.iso.id))
    }

    fn attach(&self, mode: Mode) -> Result<PathBuf> {
        match self.device()? {
            Some(device) => Ok(device),
            None => loopdev::attach(&self.file(mode)?, &self.path, mode == Mode::ReadOnly),
        }
    }

    fn detach(&self) -> Result<Done> {
        let loops = loopdev::attached()?;
        let Some(device) = self.sr.device(&loops, &self.path, self.iso.id) else { return Ok(Done::Already) };
        // As it was found.
        let backing = match self.sr.library.is_remote() && loops.contains_key(&self.path) {
            true => Backing::Path(&self.path),
            false => Backing::File(self.iso.id),
        };
        match loopdev::detach(&device, backing)? {
            loopdev::Detached::Done(done) => Ok(done),
            loopdev::Detached::Busy(who) => Err(vdi::in_use(self, format!("{who}, through {}", device.display()))),
        }
    }

    fn round_up(&self, bytes: u64) -> u64 {
        bytes
    }

    fn resize(&self, _bytes: u64) -> Result<()> {
        self.sr.refuse("vdi_resize")
    }

    fn copy_to(&self, _dest: VdiUuid, _params: &Params, _progress: Progress) -> Result<VdiInfo> {
        self.sr.refuse("vdi_clone")
    }

    fn remove(&self) -> Result<()> {
        let dir = self.sr.library.dir()?;
        dir.remove(&self.iso.name)?;
        sync(&dir).map_err(|cause| cause.after(vdi::deleted(self.vdi())))
    }
}
