//! The disks of an SR: found, made, and removed when they cannot be read.

use std::rc::Rc;
use std::sync::Arc;

use nix::sys::stat::SFlag;

use super::directory::FileSr;
use super::layout::{
    LOCK, PARAMS, beside, format_of, image_name, image_of, is_one, is_taken, must_be, refuse_unremovable,
    remove_leftovers, remove_whatever,
};
use super::listing::Listing;
use super::unborn::{is_being_changed, is_unborn};
use crate::context::Context;
use crate::error::Result;
use crate::image::storage::Storage;
use crate::sys::copy::Progress;
use crate::sys::durable::Dir;
use crate::sys::register;
use crate::sys::uses::Uses;
use crate::types::{Done, Format, NewVdi, State, VdiInfo, VdiUuid};
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::nodes::{Node, Nodes};
use crate::vdi::{self, Attachments, Layout, Place, Vdi, layout};

/// The format of a disk when none is asked for.
const DEFAULT_FORMAT: Format = Format::Vhd;

/// Writes an image of a format into empty storage, durably.
type Write<'a> = &'a mut dyn FnMut(&dyn Layout, Arc<dyn Storage>) -> Result<()>;

impl FileSr {
    /// A disk of the SR, of a format that is known.
    pub(super) fn disk(&self, dir: Rc<Dir>, vdi: VdiUuid, format: Format) -> Box<dyn Vdi + '_> {
        vdi::open(self.place(dir.clone(), vdi, format), Box::new(self.forest(dir)))
    }

    /// Finds a disk, see [`crate::sr::Sr::vdi`].
    ///
    /// # Errors
    /// [`crate::Error::NoVdi`]; [`crate::Error::Damaged`] if it has two images.
    pub(super) fn find(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        let dir = self.dir()?;
        match image_of(&dir, vdi)? {
            Some((format, stat)) if format == Format::Raw || !is_unborn(&dir, vdi)? => {
                is_one(&dir, &image_name(vdi, format), &stat, SFlag::S_IFREG)?;
                return Ok(self.disk(dir, vdi, format));
            }
            _ => {}
        }
        if self.shared
            && let Some(format) = Listing::read(&dir)?.images.get(&vdi)
            && !is_unborn(&dir, vdi)?
        {
            // It was just being replaced, where a file is replaced in steps.
            return Ok(self.disk(dir, vdi, *format));
        }
        if self.shared && is_being_changed(&dir, vdi)? {
            drop(self.lock_trees(&dir, self.deadline.end())?);
            if let Some(format) = format_of(&dir, vdi)? {
                return Ok(self.disk(dir, vdi, format));
            }
        }
        Err(self.no_vdi(vdi))
    }

    /// Makes a disk of zeroes, see [`crate::sr::Sr::create_vdi`].
    ///
    /// # Errors
    /// [`crate::Error::VdiExists`], [`crate::Error::DiskTooBig`], [`crate::Error::Io`].
    pub(super) fn make_empty(&self, new: &NewVdi) -> Result<VdiInfo> {
        self.make_vdi(new, &mut |layout, image| layout.create(&*image, layout.round(new.virtual_size)?))
    }

    /// Makes a disk of what comes, see [`crate::sr::Sr::import_vdi`].
    ///
    /// # Errors
    /// Those of [`FileSr::make_empty`], and what reading says.
    pub(super) fn make_of(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        let (dir, mut incoming) = (self.dir()?, Some(incoming));
        self.make_vdi(new, &mut |layout, image| {
            let mut make = |size: u64| {
                layout.begin(&*image, layout.round(size.max(new.virtual_size))?)?;
                layout.writer(image.clone())
            };
            incoming.take().expect("an image is made once").fill(&mut make, &|| dir.new_file(), progress)?;
            image.flush()
        })
    }

    /// Makes an image nobody sees by `write`, which makes it durable, then publishes it.
    fn make_vdi(&self, new: &NewVdi, write: Write) -> Result<VdiInfo> {
        let format = new.format.unwrap_or(DEFAULT_FORMAT);
        let layout = layout(format);
        let dir = self.dir()?;
        self.remove_unborn(&dir, new.vdi)?;
        let place = self.place(dir.clone(), new.vdi, format);
        if is_taken(&dir, new.vdi)? {
            return Err(place.exists_already());
        }
        let mut unnamed = place.unnamed(&new.params)?;
        let image: Arc<dyn Storage> = Arc::new(unnamed.storage(place.path())?);
        write(layout, image.clone())?;
        let virtual_size = layout.query(&*image)?.virtual_size;
        unnamed.sync_beside_image()?;
        place.publish(unnamed)?;
        // The disk that was just made is known: it has these params, and no process uses it.
        let node = Node::alone(format, virtual_size);
        let usage = place.usage().map_err(|cause| cause.after(vdi::made(new.vdi)))?;
        Ok(vdi::describe(&place, &node, usage.allocated, new.params.clone()))
    }

    /// Whether a disk that cannot be read can be deleted, see [`crate::sr::Sr::can_delete_broken`].
    ///
    /// # Errors
    /// Those of [`FileSr::remove_broken`].
    pub(super) fn can_remove_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        let dir = self.dir()?;
        let _lock = self.lock_trees(&dir, context.deadline)?;
        self.check_broken(&dir, vdi, &Listing::read(&dir)?).map(|alone| alone.is_some())
    }

    /// Deletes a disk that cannot be read, see [`crate::sr::Sr::delete_broken`].
    ///
    /// # Errors
    /// [`crate::Error::VdiInUse`]; [`crate::Error::NoVdi`]; [`crate::Error::Damaged`] for a directory with files in it.
    pub(super) fn remove_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        let dir = self.dir()?;
        let _lock = self.lock_trees(&dir, context.deadline)?;
        let listing = Listing::read(&dir)?;
        let Some(_alone) = self.check_broken(&dir, vdi, &listing)? else { return Ok(false) };
        for format in listing.formats_of(vdi) {
            remove_whatever(&dir, &image_name(vdi, format))?;
        }
        dir.sync().map_err(|cause| cause.after(vdi::deleted(vdi)))?;
        remove_whatever(&dir, &beside(vdi, PARAMS))?;
        match dir.lookup(&beside(vdi, LOCK))? {
            Some(stat) if stat.is_directory() => {
                register::remove(&dir, &beside(vdi, LOCK))?;
            }
            Some(_) => drop(dir.remove(&beside(vdi, LOCK))?),
            None => {}
        }
        Ok(true)
    }

    /// Refuses what forbids to delete a disk that cannot be read, before anything is removed. `None`: the disk can be read.
    /// Else what keeps other hosts from opening it. The caller holds the lock of the trees.
    fn check_broken(&self, dir: &Rc<Dir>, vdi: VdiUuid, listing: &Listing) -> Result<Option<Option<Uses>>> {
        refuse_unremovable(dir, &beside(vdi, PARAMS))?;
        let images = self.images(dir, listing)?;
        let Some(image) = images.iter().find(|image| image.vdi == vdi) else {
            // No disk; what stands in the place of its params or its lock may keep it from being made.
            let beside =
                [must_be(dir, &beside(vdi, PARAMS), SFlag::S_IFREG), must_be(dir, &beside(vdi, LOCK), SFlag::S_IFDIR)];
            return if beside.iter().any(Result::is_err) { Ok(Some(None)) } else { Err(self.no_vdi(vdi)) };
        };
        let place = self.place(dir.clone(), vdi, image.format);
        let readable = matches!(image.node.state, State::Healthy | State::ParentMissing(_));
        if readable && place.params().is_ok() && place.holders().is_ok() {
            return Ok(None);
        }
        let attachments = Attachments::now()?;
        for format in listing.formats_of(vdi) {
            let name = image_name(vdi, format);
            let Some(stat) = dir.lookup(&name)? else { continue };
            vdi::refuse_device(&place, attachments.find(format, &dir.join(&name), stat.id))?;
            refuse_unremovable(dir, &name)?;
        }
        // A lock that cannot be read is deleted with what it was of.
        if place.holders().is_ok() {
            vdi::refuse_if_locked(&place)?;
        }
        let nodes: Nodes = images.iter().map(|image| (image.vdi, image.node.clone())).collect();
        nodes.refuse_if_parent(&place)?;
        self.alone(dir, &[vdi], vdi, "another host, which has it attached").map(Some)
    }

    /// Removes what a killed call left of a disk that is not there, see [`crate::sr::Sr::forget_vdi`].
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub(super) fn forget(&self, vdi: VdiUuid) -> Result<Done> {
        let dir = self.dir()?;
        let unborn = self.remove_unborn(&dir, vdi)?;
        let removed = remove_leftovers(&dir, vdi)?;
        // A vdi_delete that was killed may have removed the image not durably, and this answers that it is gone.
        dir.sync()?;
        Ok(if removed || unborn { Done::Changed } else { Done::Already })
    }
}
