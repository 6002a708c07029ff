//! The part that a directory adds to trees of images: see [`Forest`].

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::directory::FileSr;
use super::files::{FilePlace, Unnamed};
use super::images::possible_parent;
use super::layout::{CHANGE, COLLECT_LOCK, format_of, is_taken};
use super::listing::Listing;
use super::records::{damaged_record, encode, read_change};
use super::recover::{begin_change, end_change};
use super::unborn::{is_child, is_unborn};
use crate::datapath::USES;
use crate::error::{Error, Result};
use crate::image::storage::Storage;
use crate::sys::durable::Dir;
use crate::sys::lock::{self, Lock};
use crate::sys::threads;
use crate::sys::uses::{self, Uses};
use crate::types::{Format, Mode, Params, SrUuid, VdiUuid};
use crate::vdi::cbt::ChangeLogs;
use crate::vdi::format::{ParentImage, WriteImage};
use crate::vdi::tree::change::Change;
use crate::vdi::tree::forest::{Again, Ending, Forest, Fork, Kept};
use crate::vdi::tree::nodes::Nodes;
use crate::vdi::tree::stop;
use crate::vdi::{self, Place, layout};

/// The trees of a [`FileSr`].
pub(super) struct FileForest<'a> {
    pub(super) sr: &'a FileSr,
    pub(super) dir: Rc<Dir>,
}

impl FileSr {
    /// The trees of the SR.
    pub(super) fn forest(&self, dir: Rc<Dir>) -> FileForest<'_> {
        FileForest { sr: self, dir }
    }

    /// Keeps all hosts from opening these images, see [`Forest::alone`]; `vdi` is the one that is told to be in use, by
    /// `whom`. `None`: only this host has the SR.
    ///
    /// # Errors
    /// [`Error::VdiInUse`].
    pub(super) fn alone(&self, dir: &Dir, vdis: &[VdiUuid], vdi: VdiUuid, whom: &str) -> Result<Option<Uses>> {
        if !self.shared {
            return Ok(None);
        }
        let names: Vec<String> = vdis.iter().map(VdiUuid::to_string).collect();
        match uses::alone(dir.lock_file(USES)?, &dir.join(USES), names.iter().map(String::as_str))? {
            Some(alone) => Ok(Some(alone)),
            None => Err(Error::VdiInUse { vdi, sr: self.sr, holder: format!("{whom} ({USES} is locked)") }),
        }
    }
}

impl FileForest<'_> {
    /// The image of a VDI, of whatever format.
    fn found(&self, vdi: VdiUuid) -> Result<FilePlace<'_>> {
        match format_of(&self.dir, vdi)? {
            Some(format) => Ok(self.sr.place(self.dir.clone(), vdi, format)),
            None => Err(self.sr.no_vdi(vdi)),
        }
    }
}

impl Forest for FileForest<'_> {
    fn sr(&self) -> SrUuid {
        self.sr.sr
    }

    fn change_logs(&self) -> Option<&dyn ChangeLogs> {
        Some(self)
    }

    fn lock(&self, deadline: Instant) -> Result<Lock> {
        self.sr.lock_trees(&self.dir, deadline)
    }

    fn collecting(&self, deadline: Instant) -> Result<Kept> {
        let (sr, dir) = (self.sr, &self.dir);
        // The Python collector holds these while it works, so only one process collects.
        let busy = |refused: lock::Refused| {
            refused.or_timed_out(|who| Error::SrUnavailable { sr: sr.sr, why: format!("{who} collects it already") })
        };
        let mut alone = lock::take(&sr.sr.to_string(), stop::ACTIVE, lock::Kind::Exclusive, Instant::now());
        if sr.shared {
            // Two that write into one base at the same time would put different blocks in one place.
            let file = dir.lock_file(COLLECT_LOCK)?;
            alone = alone.and_then(|lock| lock.among_hosts(file, &dir.join(COLLECT_LOCK), Instant::now()));
        }
        let alone = alone.map_err(busy)?;
        let running =
            lock::take(&sr.sr.to_string(), stop::RUNNING, lock::Kind::Exclusive, Instant::now()).map_err(busy)?;
        if read_change(dir)?.is_some() {
            drop(sr.lock_trees(dir, deadline)?);
        }
        Ok(Kept::by([running, alone]))
    }

    fn again(&self) -> Option<Again> {
        let FileSr { sr, sr_type, path, named, shared, volume, deadline } = self.sr;
        let (sr, sr_type, shared, deadline) = (*sr, *sr_type, *shared, deadline.clone());
        let (path, named, volume) = (path.clone(), named.clone(), volume.clone());
        Some(Box::new(move |work| {
            let (path, named, volume) = (path.clone(), named.clone(), volume.clone());
            let sr = FileSr { sr, sr_type, path, named, shared, volume, deadline: deadline.clone() };
            work(&sr.forest(sr.dir()?))
        }))
    }

    fn nodes(&self) -> Result<Nodes> {
        self.sr.trees(&self.dir, &Listing::read(&self.dir)?)
    }

    fn place(&self, vdi: VdiUuid) -> Result<Box<dyn Place + '_>> {
        Ok(Box::new(self.found(vdi)?))
    }

    fn parent_image(&self, vdi: VdiUuid, mode: Mode) -> Result<ParentImage<'_>> {
        self.found(vdi)?.as_parent(mode)
    }

    fn named(&self, name: &str, child: Format) -> Option<VdiUuid> {
        possible_parent(name, child)
    }

    fn alone(&self, vdis: &[VdiUuid], vdi: VdiUuid) -> Result<Kept> {
        let alone = self.sr.alone(&self.dir, vdis, vdi, "another host, which has it or a disk above it attached")?;
        Ok(alone.map_or_else(Kept::by_nature, Kept::by))
    }

    fn hold(&self, vdis: &[VdiUuid]) -> Result<Kept> {
        if !self.sr.shared {
            return Ok(Kept::by_nature());
        }
        let names: Vec<String> = vdis.iter().map(VdiUuid::to_string).collect();
        let (file, path) = (self.dir.lock_file(USES)?, self.dir.join(USES));
        uses::hold(file, &path, names.iter().map(String::as_str), self.sr.deadline.end()).map(Kept::by)
    }

    fn deadline(&self) -> Instant {
        self.sr.deadline.end()
    }

    fn is_shared(&self) -> bool {
        self.sr.shared
    }

    fn fork(&self, fork: &Fork) -> Result<()> {
        let dir = &*self.dir;
        let disk = self.found(fork.vdi)?;
        let layout = layout(disk.format);
        let place = |vdi| self.sr.place(self.dir.clone(), vdi, disk.format);
        let base = place(fork.base);
        let dest = fork.dest.map(|(dest, params)| (place(dest), params));
        if let Some((dest, _)) = &dest
            && (dest.vdi == disk.vdi || is_taken(dir, dest.vdi)?)
        {
            return Err(dest.exists_already());
        }
        // The image as it will be called.
        let image = ParentImage { name: base.name(), format: disk.format, image: disk.open_image(Mode::ReadOnly)? };
        let child = layout.child_of(&image)?;
        let own_child = if fork.is_fine { &layout.fine_child_of(&image)? } else { &child };
        let mut own = disk.unnamed(&Params::default())?;
        let mut new = dest.as_ref().map(|(dest, params)| dest.unnamed(params)).transpose()?;
        let write = |unnamed: &mut Unnamed, path, child: &WriteImage| -> Result<()> {
            child(&unnamed.storage(path)?)?;
            unnamed.sync_beside_image()
        };
        let (own_path, new_path) = (disk.path(), dest.as_ref().map(|(dest, _)| dest.path()).unwrap_or_default());
        let dest_vdi = fork.dest.map(|(dest, _)| dest);
        let change = Change::Fork { vdi: disk.vdi, base: fork.base, dest: dest_vdi, format: disk.format };
        // None of these needs another, so they wait for the disk, or write large tables, at the same time.
        let (new_written, (own_written, begun)) = threads::both(
            || new.as_mut().map_or(Ok(()), |new| write(new, new_path, &child)),
            || {
                let written = write(&mut own, own_path, own_child);
                let begun = written.is_ok().then(|| dir.create(CHANGE, &encode(&change)));
                (written, begun)
            },
        );
        // NFS would rename a file that is open here out of the way, and for a moment nothing had its name.
        drop(image);
        match begun.transpose()? {
            Some(true) | None => {}
            Some(false) => return Err(damaged_record(dir, CHANGE)),
        }
        let done = own_written
            .and(new_written)
            .and_then(|()| dir.link(&disk.name(), &base.name()))
            .and_then(|()| dest.as_ref().zip(new).map_or(Ok(()), |((dest, _), new)| dest.publish_soon(new)))
            .and_then(|()| dir.sync())
            .and_then(|()| own.image.publish_over(&disk.name()))
            .and_then(|()| layout.set_hidden(&**base.open_image(Mode::ReadWrite)?, true));
        match done {
            // A record of what is complete is completed again, so it matters neither that this is durable nor
            // that it works.
            Ok(()) => {
                let _ = dir.remove(CHANGE);
                Ok(())
            }
            Err(cause) => {
                let recovered = self.sr.recover_change(dir).map(drop);
                let is_made = |dest: VdiUuid| {
                    Ok::<_, Error>(is_child(dir, dest, fork.base, disk.format)? && !is_unborn(dir, dest)?)
                };
                match dest_vdi {
                    Some(dest) if is_made(dest).unwrap_or(false) => Err(cause.after(vdi::made(dest))),
                    _ => Err(cause.undone(recovered)),
                }
            }
        }
    }

    fn spawn(&self, base: VdiUuid, dest: VdiUuid, params: &Params) -> Result<()> {
        let parent = self.found(base)?.as_parent(Mode::ReadOnly)?;
        let place = self.sr.place(self.dir.clone(), dest, parent.format);
        if is_taken(&self.dir, dest)? {
            return Err(place.exists_already());
        }
        let mut new = place.unnamed(params)?;
        layout(parent.format).child_of(&parent)?(&new.storage(place.path())?)?;
        drop(parent);
        new.sync_beside_image()?;
        // One name that a durable image gets is one step, as in vdi_create: nothing has to be recorded before.
        place.publish(new)?;
        // Another host that took this one for dead may have removed the base with the last child that it saw.
        if self.sr.shared
            && let Err(gone) = self.found(base)
        {
            return Err(gone.undone(place.remove()));
        }
        Ok(())
    }

    fn replace(&self, vdi: VdiUuid, base: VdiUuid, least: u64) -> Result<()> {
        let (disk, parent) = (self.found(vdi)?, self.found(base)?.as_parent(Mode::ReadOnly)?);
        let new = disk.unnamed(&Params::default())?;
        let layout = layout(disk.format);
        layout.child_of(&parent)?(&new.storage(disk.path())?)?;
        // A raw base has no header to ask for its size.
        if least > crate::vdi::layout(parent.format).query(&**parent.image)?.virtual_size {
            let image: Arc<dyn Storage> = Arc::new(new.storage(disk.path())?);
            layout.resize(&image, least)?;
        }
        // NFS renames what is open here instead of removing it.
        drop(parent);
        let before = disk.file_stat()?.id;
        new.image.publish_over(&disk.name()).map_err(|cause| match disk.file_stat() {
            Ok(now) if now.id != before => cause.after(vdi::reverted(vdi)),
            _ => cause,
        })
    }

    fn compose(&self, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
        let format = self.found(vdi)?.format;
        begin_change(&self.dir, &Change::Compose { vdi, base, format })?;
        let unfinished = self.sr.finish_compose(&self.dir, vdi, base, format)?;
        end_change(&self.dir)?;
        unfinished.map_or(Ok(()), Err)
    }

    fn ends_chains(&self) -> bool {
        true
    }

    fn end(&self, nodes: &Nodes, endings: &[Ending]) -> Vec<Result<()>> {
        self.sr.end_merges(&self.dir, nodes, endings)
    }
}
