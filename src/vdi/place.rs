//! The contract of a place: where one disk lives, as its SR sees it.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result, one_line};
use crate::image::storage::Storage;
use crate::sys::copy::Progress;
use crate::sys::syslog;
use crate::types::{Done, Format, Mode, Params, SrUuid, State, VdiInfo, VdiUuid};

/// Where one disk lives, as its SR sees it. Formats work on this and know no SR.
pub trait Place {
    fn sr(&self) -> SrUuid;
    fn vdi(&self) -> VdiUuid;
    fn format(&self) -> Format;

    /// The end of every wait of the call: for other calls, and for the server of an attached disk.
    fn deadline(&self) -> Instant;

    /// The path of the image; for messages, and for servers that open it themselves.
    fn path(&self) -> PathBuf;

    /// Opens the image. Where its bytes exist only while a device is active (a logical volume), the device is activated and
    /// stays so until the answer is dropped. This does not count as attaching.
    ///
    /// # Errors
    /// [`Error::NoVdi`] if the image is gone, [`Error::Io`], and what activating a device says.
    fn open(&self, mode: Mode) -> Result<Opened<'_>>;

    /// How many bytes the place has now.
    ///
    /// # Errors
    /// [`Error::NoVdi`] if the image is gone, [`Error::Io`].
    fn usage(&self) -> Result<Usage>;

    /// The state of the disk as far as the SR knows it: something about the place, such as a device that is missing,
    /// may keep the disk from being used. The format knows the rest.
    fn state(&self) -> State;

    /// The params that the SR stores of the disk besides its bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the record cannot be read.
    fn params(&self) -> Result<Params>;

    /// The users that hold the persistent lock.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the record cannot be read.
    fn holders(&self) -> Result<Holders>;

    /// Replaces the holders that were `seen`, durably. `false`: another call was faster, nothing changed.
    ///
    /// # Errors
    /// [`Error::NoVdi`] if another host deleted the disk meanwhile; [`Error::Unsupported`] on an SR without locks.
    fn set_holders(&self, seen: &Holders, users: Vec<String>) -> Result<bool>;

    /// The bytes of the place that an image takes, where that is less than what is allocated: about as much as a merge copies.
    ///
    /// # Errors
    /// Those of [`Place::usage`], and what the image says.
    fn held(&self) -> Result<u64> {
        Ok(self.usage()?.allocated)
    }

    /// Replaces what is stored beside the disk, durably and by one atomic step.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an SR that stores nothing, or not this.
    fn set_params(&self, _params: &Params) -> Result<()> {
        Err(Error::Unsupported { op: "vdi_set", why: "this SR keeps nothing beside its disks".to_owned() })
    }

    /// Makes the place's bytes and length durable, which an earlier call may have changed without being able to say so: it
    /// was killed before its last flush. A device over the place becomes as large as the place is. Called before a call
    /// answers that the size it asks for is there already. Idempotent.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage does not take it.
    fn settle(&self) -> Result<()>;

    /// Makes the names and the holders durable, as [`Place::settle`] does for the bytes. Called before a call answers that
    /// the name or the lock it asks for is there already. Idempotent.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage does not take it.
    fn settle_records(&self) -> Result<()>;

    /// Whether other hosts may have it attached, which this one's kernel can't see.
    fn is_shared(&self) -> bool;

    /// The block device over the place's bytes on this host, asked from the kernel.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel's list cannot be read.
    fn device(&self) -> Result<Option<PathBuf>>;

    /// Makes that block device. Idempotent: the same path again.
    ///
    /// # Errors
    /// [`Error::Io`] from the kernel.
    fn attach(&self, mode: Mode) -> Result<PathBuf>;

    /// Removes the block device. Idempotent.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while something on the host holds it open, with who.
    fn detach(&self) -> Result<Done>;

    /// The length that the place gets when it is to hold `bytes`: more where the substrate allocates in extents.
    fn round_up(&self, bytes: u64) -> u64;

    /// Makes the place exactly `bytes` long, or longer where the substrate allocates in extents; a device
    /// over it follows.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::TooBig`], [`Error::Io`].
    fn resize(&self, bytes: u64) -> Result<()>;

    /// Makes the VDI `dest` with the same bytes and format.
    ///
    /// # Errors
    /// [`Error::VdiExists`], [`Error::NoSpace`]; [`Error::VdiInUse`] when the place is in use and the
    /// substrate has no instant copy; [`Error::Unsupported`].
    fn copy_to(&self, dest: VdiUuid, params: &Params, progress: Progress) -> Result<VdiInfo>;

    /// Whether [`Place::changed_since`] has an answer, as far as can be seen without asking.
    fn tells_changes(&self) -> bool {
        false
    }

    /// The stretches in which the bytes of the place, which is open, differ from those of the VDI `base` of the SR.
    ///
    /// # Errors
    /// [`Error::Locked`] while another call asks the same of what both are on.
    fn changed_since(&self, _base: VdiUuid) -> Result<Changed> {
        Ok(None)
    }

    /// The stretches of the place, which is open, that its substrate has given it, if the storage itself does not tell its holes:
    /// all else reads as zeroes. The caller has seen that nothing writes to it.
    ///
    /// # Errors
    /// Those of [`Place::changed_since`].
    fn mapped(&self) -> Result<Changed> {
        Ok(None)
    }

    /// Gives the place the bytes and the length of the VDI `source` of the SR, by one step that a kill cannot halve; what is
    /// stored beside the disk stays. `accept` is told the format and the params of the source before anything changes.
    /// The caller has checked that the disk is unused. Idempotent.
    ///
    /// # Errors
    /// The error of `accept`; [`Error::NoVdi`], [`Error::NoSpace`]; [`Error::VdiInUse`] if another host locked the disk
    /// meanwhile; [`Error::Unsupported`] on an SR without snapshots.
    fn take_over(&self, _source: VdiUuid, _accept: Accept, _progress: Progress) -> Result<()> {
        Err(Error::Unsupported { op: "vdi_revert", why: "this SR makes no snapshots".to_owned() })
    }

    /// Removes the disk and all that is stored beside it. The caller has checked that it is unused.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] if another host locked it meanwhile; [`Error::Io`].
    fn remove(&self) -> Result<()>;
}

/// Stretches from a byte to before another, in order; `None` where the substrate does not tell.
pub type Changed = Option<Vec<(u64, u64)>>;

/// Whether the bytes of a VDI of this format and with these params may be taken, see [`Place::take_over`].
pub type Accept<'a> = &'a dyn Fn(Format, &Params) -> Result<()>;

/// Bytes of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// From the first to the last addressable byte.
    pub length: u64,
    /// Allocated on the substrate.
    pub allocated: u64,
}

/// The users that hold a VDI's persistent lock, and which state of the record said so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    pub state: u64,
    pub users: Vec<String>,
}

/// Says that a disk is used, by the `holder`.
pub fn in_use(place: &dyn Place, holder: String) -> Error {
    Error::VdiInUse { vdi: place.vdi(), sr: place.sr(), holder }
}

/// Refuses what a user of a disk on this host must not see. `device`: the block device of the disk, if it is attached.
///
/// # Errors
/// [`Error::VdiInUse`].
pub fn refuse_device(place: &dyn Place, device: Option<PathBuf>) -> Result<()> {
    match device {
        None => Ok(()),
        Some(device) => Err(in_use(place, format!("this host, which has it attached as {}", device.display()))),
    }
}

/// The storage of an image, open. Dropping it releases what had to be activated for it; [`Opened::close`] also says whether
/// that worked.
pub struct Opened<'a> {
    /// `Some` until it is dropped: a device can be released only when nothing has it open.
    storage: Option<Arc<dyn Storage>>,
    release: Option<Box<dyn FnOnce() -> Result<()> + 'a>>,
}

impl<'a> Opened<'a> {
    /// Storage that needs no release.
    pub fn of(storage: impl Storage + 'static) -> Opened<'a> {
        Opened { storage: Some(Arc::new(storage)), release: None }
    }

    /// Storage that somebody else has open as well, and that needs no release.
    pub fn of_shared(storage: Arc<dyn Storage>) -> Opened<'a> {
        Opened { storage: Some(storage), release: None }
    }

    /// Storage for which `release` has to be done when nobody needs it any more.
    pub fn until(storage: impl Storage + 'static, release: impl FnOnce() -> Result<()> + 'a) -> Opened<'a> {
        Opened { storage: Some(Arc::new(storage)), release: Some(Box::new(release)) }
    }

    /// Closes the storage and releases it.
    ///
    /// # Errors
    /// Those of the release.
    pub fn close(mut self) -> Result<()> {
        drop(self.storage.take());
        self.release.take().map_or(Ok(()), |release| release())
    }
}

impl Deref for Opened<'_> {
    type Target = Arc<dyn Storage>;

    fn deref(&self) -> &Arc<dyn Storage> {
        self.storage.as_ref().expect("it is open until it is dropped")
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        // The next call that needs the disk releases it again, so a failure is only noted.
        let path = self.storage.take().map(|storage| storage.path().to_owned());
        if let (Some(path), Some(Err(error))) = (path, self.release.take().map(|release| release())) {
            syslog::write(&format!("{} stays active: {}", path.display(), one_line(&error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::image::storage::FileStorage;

    #[test]
    fn storage_is_released_once_and_after_it_was_closed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("image");
        std::fs::write(&path, b"x").unwrap();
        let released = Cell::new(0);
        let open_files =
            || std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fd.unwrap().path().read_link().ok());
        let is_open = || open_files().any(|file| file == path);
        let storage = || FileStorage::open(&path, Mode::ReadOnly).unwrap();
        let release = || {
            assert!(!is_open(), "the image is still open when it is released");
            released.set(released.get() + 1);
            Ok(())
        };
        let opened = Opened::until(storage(), release);
        assert!(is_open() && opened.size().unwrap() == 1);
        drop(opened);
        assert_eq!(released.get(), 1);
        Opened::until(storage(), release).close().unwrap();
        assert_eq!(released.get(), 2);
        let failing = Opened::until(storage(), || Err(Error::Usage("no".to_owned())));
        assert!(failing.close().is_err());
        Opened::of(storage()).close().unwrap();
    }
}
