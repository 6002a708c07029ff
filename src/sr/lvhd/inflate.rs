//! The volume of a VHD or a qcow2 is made larger, so that its disk can be written to, or smaller, so that it takes what it holds.
//!
//! Larger: 1. make the journal `inflate` with the size now, and extend; 2. write the footer to the new end; 3. remove the journal.
//! After 1, the footer at the end is missing, or is that of an image that was deleted long ago: the recovery makes the volume as
//! small as it was. The footer at the start of a VHD counts here; the Python drivers read that at the end first.
//!
//! Smaller: 1. write the footer to what is to be the end; 2. reduce. After 1, the footer at the end is still valid.
//!
//! A qcow2 has no footer.

use std::sync::Arc;

use super::journal::{Change, Journal};
use super::live::Live;
use super::sizes;
use super::step::Step;
use crate::error::Result;
use crate::image::qcow2;
use crate::image::storage::Storage;
use crate::image::vhd::{Image, SECTOR};
use crate::sys::lvm::Lv;
use crate::types::{Format, Mode, VdiUuid};
use crate::vdi::layout;

impl Live<'_> {
    /// Makes the volume of an image so large that there is room for so many bytes. The answer is the step that ends it, which the
    /// caller takes together with others. The caller holds the lock.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`]; [`crate::Error::Tool`], [`crate::Error::Io`]: then the journal is there.
    pub fn inflate(&self, vdi: VdiUuid, bytes: u64) -> Result<Vec<Step>> {
        let group = self.now();
        let volume = group.volume(vdi)?.clone();
        let (lv, size) = (volume.lv, group.round(bytes));
        if size <= lv.size {
            return Ok(Vec::new());
        }
        self.refuse_full(&[size - lv.size, 1])?;
        let journal = Journal { vdi, change: Change::Inflate(lv.size) }.name();
        self.take(&[Step::journal(&journal), Step::Extend { name: lv.name, size }])?;
        let group = self.now();
        let grown = &group.volume(vdi)?.lv;
        self.end_at(volume.format, grown, grown.size)?;
        Ok(vec![Step::remove(journal)])
    }

    /// The steps that make the volume of an image as small as what it holds, prepared: the footer is where its end will be. The caller
    /// holds the lock, and no process has the image open.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`] for an image that cannot be used; [`crate::Error::Io`].
    pub fn deflate(&self, vdi: VdiUuid) -> Result<Vec<Step>> {
        let group = self.now();
        let volume = group.volume(vdi)?;
        self.deflate_volume(volume.format, &volume.lv)
    }

    /// Makes a volume that is to be a disk as small as the image in it.
    ///
    /// # Errors
    /// Those of [`Live::deflate`]; [`crate::Error::Tool`].
    pub fn deflate_unborn(&self, name: &str, format: Format) -> Result<()> {
        let steps = self.now().vg().lv(name).map_or(Ok(Vec::new()), |lv| self.deflate_volume(format, lv))?;
        self.take(&steps)
    }

    fn deflate_volume(&self, format: Format, lv: &Lv) -> Result<Vec<Step>> {
        let size = self.deflated(format, lv)?;
        if size >= lv.size {
            return Ok(Vec::new());
        }
        self.end_at(format, lv, size)?;
        Ok(vec![Step::Reduce { name: lv.name.clone(), size }])
    }

    /// The size of the volume of an image that holds what it holds now, and no more. A raw disk is what its volume is.
    ///
    /// # Errors
    /// Those of [`Image::open`] and [`qcow2::room`].
    pub fn deflated(&self, format: Format, lv: &Lv) -> Result<u64> {
        let group = self.now();
        let storage: Arc<dyn Storage> = Arc::new(group.storage(lv)?);
        Ok(match format {
            Format::Raw => lv.size,
            Format::Vhd => {
                let image = Image::open(storage, Mode::ReadOnly)?;
                group.round(image.physical_size().max(sizes::least(format, image.virtual_size())))
            }
            Format::Qcow2 => group.round(qcow2::room(&storage)?.end),
        })
    }

    /// The bytes that the volume of an image has to have while its disk can be written to.
    ///
    /// # Errors
    /// Those of [`crate::vdi::Layout::query`] and [`qcow2::room`].
    pub fn wanted(&self, vdi: VdiUuid) -> Result<u64> {
        let group = self.now();
        let volume = group.volume(vdi)?;
        let storage: Arc<dyn Storage> = Arc::new(group.image(volume)?);
        match volume.format {
            Format::Raw => Ok(volume.lv.size),
            Format::Vhd => Ok(sizes::full(volume.format, layout(volume.format).query(&*storage)?.virtual_size)),
            Format::Qcow2 => Ok(qcow2::room(&storage)?.full),
        }
    }

    /// Writes a footer of a VHD where the end of its volume is to be, durably: a copy of that at its start, which counts.
    /// `bytes`: the size of the volume that has its end there, no more than it has now.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::Damaged`].
    pub fn end_at(&self, format: Format, lv: &Lv, bytes: u64) -> Result<()> {
        if format != Format::Vhd {
            return Ok(());
        }
        let storage: &dyn Storage = &self.now().storage_for_writing(lv)?;
        let mut footer = [0; SECTOR as usize];
        storage.get_exact(&mut footer, 0, "its first footer")?;
        storage.put(&footer, bytes - SECTOR)?;
        storage.flush()
    }

    /// The size of the volume of a new image: that of one that is written to, or the least.
    pub fn size_of_new(&self, format: Format, virtual_size: u64, is_full: bool) -> u64 {
        if is_full { sizes::full(format, virtual_size) } else { sizes::least(format, virtual_size) }
    }
}
