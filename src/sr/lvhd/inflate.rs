//! The volume of a VHD is made larger, so that its disk can be written to, or smaller, so that it takes what it holds.
//!
//! Larger: 1. make the journal `inflate` with the size now, and extend; 2. write the footer to the new end; 3. remove the journal.
//! After 1, the footer at the end is missing, or is that of an image that was deleted long ago: the recovery makes the volume as
//! small as it was. The footer at the start of a VHD counts here; the Python drivers read that at the end first.
//!
//! Smaller: 1. write the footer to what is to be the end; 2. reduce. After 1, the footer at the end is still valid.

use std::sync::Arc;

use super::journal::{Change, Journal};
use super::live::Live;
use super::sizes;
use super::step::Step;
use crate::error::Result;
use crate::image::storage::Storage;
use crate::image::vhd::{Image, SECTOR};
use crate::sys::lvm::Lv;
use crate::types::{Format, Mode, VdiUuid};

impl Live<'_> {
    /// Makes the volume of a VHD so large that there is room for so many bytes. The answer is the step that ends it, which the
    /// caller takes together with others. The caller holds the lock.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`]; [`crate::Error::Tool`], [`crate::Error::Io`]: then the journal is there.
    pub fn inflate(&self, vdi: VdiUuid, bytes: u64) -> Result<Vec<Step>> {
        let group = self.now();
        let (lv, size) = (group.volume(vdi)?.lv.clone(), group.round(bytes));
        if size <= lv.size {
            return Ok(Vec::new());
        }
        self.refuse_full(&[size - lv.size, 1])?;
        let journal = Journal { vdi, change: Change::Inflate(lv.size) }.name();
        self.take(&[Step::journal(&journal), Step::Extend { name: lv.name, size }])?;
        let group = self.now();
        let grown = &group.volume(vdi)?.lv;
        self.end_at(grown, grown.size)?;
        Ok(vec![Step::remove(journal)])
    }

    /// The steps that make the volume of a VHD as small as what it holds, prepared: the footer is where its end will be. The caller
    /// holds the lock, and no process has the image open.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`] for an image that cannot be used; [`crate::Error::Io`].
    pub fn deflate(&self, vdi: VdiUuid) -> Result<Vec<Step>> {
        let group = self.now();
        let volume = group.volume(vdi)?;
        match volume.format {
            Format::Vhd => self.deflate_volume(&volume.lv),
            // A qcow2 does not tell where its data ends, and a raw disk is what its volume is.
            Format::Raw | Format::Qcow2 => Ok(Vec::new()),
        }
    }

    /// Makes a volume that is to be a disk as small as the VHD in it.
    ///
    /// # Errors
    /// Those of [`Live::deflate`]; [`crate::Error::Tool`].
    pub fn deflate_unborn(&self, name: &str) -> Result<()> {
        let steps = self.now().vg().lv(name).map_or(Ok(Vec::new()), |lv| self.deflate_volume(lv))?;
        self.take(&steps)
    }

    fn deflate_volume(&self, lv: &Lv) -> Result<Vec<Step>> {
        let size = self.deflated(lv)?;
        if size >= lv.size {
            return Ok(Vec::new());
        }
        self.end_at(lv, size)?;
        Ok(vec![Step::Reduce { name: lv.name.clone(), size }])
    }

    /// The size of the volume of a VHD that holds what it holds now, and no more.
    ///
    /// # Errors
    /// Those of [`Image::open`].
    pub fn deflated(&self, lv: &Lv) -> Result<u64> {
        let group = self.now();
        let image = Image::open(Arc::new(group.storage(lv)?), Mode::ReadOnly)?;
        Ok(group.round(image.physical_size().max(sizes::least())))
    }

    /// Writes a footer of a VHD where the end of its volume is to be, durably: a copy of that at its start, which counts.
    /// `bytes`: the size of the volume that has its end there, no more than it has now.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::Damaged`].
    pub fn end_at(&self, lv: &Lv, bytes: u64) -> Result<()> {
        let storage: &dyn Storage = &self.now().storage_for_writing(lv)?;
        let mut footer = [0; SECTOR as usize];
        storage.get_exact(&mut footer, 0, "its first footer")?;
        storage.put(&footer, bytes - SECTOR)?;
        storage.flush()
    }

    /// The size of the volume of a new VHD: that of one that is written to, or the least.
    pub fn size_of_new(&self, virtual_size: u64, is_full: bool) -> u64 {
        if is_full { sizes::full(virtual_size) } else { sizes::least() }
    }
}
