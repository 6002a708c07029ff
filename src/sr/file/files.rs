//! The files of one disk: its image and what is stored beside it.

use std::path::PathBuf;
use std::rc::Rc;

use super::directory::FileSr;
use super::layout::{PARAMS, beside, image_name, is_taken, remove_leftovers};
use super::records::{VdiRecord, encode};
use crate::error::{Error, Result};
use crate::image::storage::FileStorage;
use crate::sys::durable::{Dir, NewFile, Stat};
use crate::types::{Format, Mode, Params, VdiUuid};
use crate::vdi::format::ParentImage;
use crate::vdi::place::Opened;

/// The files that become a disk when the image gets its name. If they are dropped before, they leave nothing.
pub(super) struct Unnamed<'a> {
    pub(super) image: NewFile<'a>,
    params: Option<NewFile<'a>>,
}

impl Unnamed<'_> {
    /// The image as the formats write it; `path`: where it will be.
    ///
    /// # Errors
    /// [`Error::Io`] if the process has no more descriptors.
    pub(super) fn storage(&self, path: PathBuf) -> Result<FileStorage> {
        let file = self.image.file().try_clone().map_err(Error::io("duplicate", &path))?;
        Ok(FileStorage::of_regular(file, path))
    }

    /// Makes the disk durable but for its image, which its writer made so.
    pub(super) fn sync_beside_image(&mut self) -> Result<()> {
        self.image.is_durable();
        self.params.as_mut().map_or(Ok(()), NewFile::sync)
    }
}

/// One disk of a [`FileSr`].
pub(super) struct FilePlace<'a> {
    pub(super) sr: &'a FileSr,
    pub(super) dir: Rc<Dir>,
    pub(super) vdi: VdiUuid,
    pub(super) format: Format,
}

impl FilePlace<'_> {
    /// The path of the image.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(&self.name())
    }

    /// The name of the image in the directory.
    pub(super) fn name(&self) -> String {
        image_name(self.vdi, self.format)
    }

    /// The refusal to make a disk that is there. The call that made the disk may have been killed before it was
    /// durable. The disk is therefore made durable first: a caller takes this answer for one that the disk will stay.
    pub(super) fn exists_already(&self) -> Error {
        match self.dir.sync() {
            Ok(()) => Error::VdiExists { vdi: self.vdi, sr: self.sr.sr },
            Err(error) => error,
        }
    }

    /// A disk that has no name yet, with an empty image. The time alone is worth no record: its file would double what
    /// has to be made durable.
    pub(super) fn unnamed(&self, params: &Params) -> Result<Unnamed<'_>> {
        let params = match params.say_more_than_the_time() {
            false => None,
            true => Some(self.dir.new_record(&encode(&VdiRecord::Vdi(params.clone())))?),
        };
        Ok(Unnamed { image: self.dir.new_file()?, params })
    }

    /// Gives a finished disk its name, its params first. See the module's order of steps.
    pub(super) fn publish(&self, new: Unnamed) -> Result<()> {
        self.publish_by(NewFile::publish, new)
    }

    /// Gives a finished disk its name, its params first; nothing of it is durable before the directory is synced, nor before what else happens in it.
    pub(super) fn publish_soon(&self, new: Unnamed) -> Result<()> {
        self.publish_by(NewFile::publish_soon, new)
    }

    fn publish_by<'n>(&self, publish: fn(NewFile<'n>, &str) -> Result<bool>, new: Unnamed<'n>) -> Result<()> {
        if is_taken(&self.dir, self.vdi)? {
            return Err(self.exists_already());
        }
        remove_leftovers(&self.dir, self.vdi)?;
        let name = beside(self.vdi, PARAMS);
        // Held until the image is published: an unlocked one without an image is a leftover.
        let in_the_making = match new.params {
            None => None,
            Some(params) => {
                let held = params.hold()?;
                // The sync of the directory that makes the image durable makes this name durable.
                if !params.publish_soon(&name)? {
                    return Err(self.exists_already());
                }
                Some(held)
            }
        };
        let published = publish(new.image, &self.name());
        if !matches!(published, Ok(true)) && in_the_making.is_some() {
            let _ = self.dir.remove(&name);
        }
        if published? { Ok(()) } else { Err(self.exists_already()) }
    }

    pub(super) fn file_stat(&self) -> Result<Stat> {
        self.dir.lookup(&self.name())?.ok_or_else(|| self.gone())
    }

    /// Says that the disk is not there.
    pub(super) fn gone(&self) -> Error {
        self.sr.no_vdi(self.vdi)
    }

    /// Opens the image.
    ///
    /// # Errors
    /// [`Error::NoVdi`] if it is gone; [`Error::Io`].
    pub(super) fn open_image<'o>(&self, mode: Mode) -> Result<Opened<'o>> {
        let name = self.name();
        let file = self.dir.try_open_file(&name, mode == Mode::ReadWrite)?.ok_or_else(|| self.gone())?;
        Ok(Opened::of(FileStorage::of_regular(file, self.dir.join(&name))))
    }

    /// Opens the image as the parent of others.
    ///
    /// # Errors
    /// [`Error::NoVdi`] if it is gone; [`Error::Io`].
    pub(super) fn as_parent<'o>(&self, mode: Mode) -> Result<ParentImage<'o>> {
        Ok(ParentImage { name: self.name(), format: self.format, image: self.open_image(mode)? })
    }
}

impl FileSr {
    /// The disk `vdi` of the SR, there or not.
    pub(super) fn place(&self, dir: Rc<Dir>, vdi: VdiUuid, format: Format) -> FilePlace<'_> {
        FilePlace { sr: self, dir, vdi, format }
    }
}
