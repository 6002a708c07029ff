//! The life of an SR in a directory: how it is made, taken over, repaired, and deleted. `super` tells the order of steps.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::directory::{FileSr, Found};
use super::labels::Labels;
use super::layout::{
    CHANGE, COLLECT_LOCK, DELETING, LOCK, MARKER, NAMES, PARAMS, Role, TREE_LOCK, beside, classify, image_name,
    is_orphan, must_be,
};
use super::listing::Listing;
use super::records::{NamesRecord, encode, read_marker, read_names};
use crate::datapath::USES;
use crate::error::{Error, Result};
use crate::image::cbtlog::EXTENSION;
use crate::sys::durable::{self, Dir};
use crate::sys::uses::Uses;
use crate::sys::{register, run_dir};
use crate::types::{Done, Names, NewSr, VdiUuid};
use crate::vdi::tree::collect::remove_garbage;
use crate::vdi::tree::next::Failures;
use crate::vdi::{self, Attachments, layout};

impl FileSr {
    /// Refuses a place where [`FileSr::make`] would make no SR. Changes nothing.
    ///
    /// # Errors
    /// Those of [`FileSr::make`].
    pub(super) fn check_make(&self) -> Result<()> {
        match self.look()? {
            Found::Sr(_, marker) if marker.deleting => {}
            found => self.refuse_taken(found)?,
        }
        self.refuse_inside_another()
    }

    fn refuse_taken(&self, found: Found) -> Result<()> {
        match found {
            Found::Sr(_, marker) if marker.uuid == self.sr => {
                Err(Error::SrExists { sr: self.sr, found: format!("in {}", self.path.display()) })
            }
            Found::Sr(_, marker) => Err(Error::DeviceInUse {
                device: self.path.display().to_string(),
                holder: format!("it holds SR {}, which sr_attach makes available", marker.uuid),
            }),
            Found::Strange(_) => Err(Error::NotEmpty { path: self.path.clone() }),
            Found::Nothing => Ok(()),
        }
    }

    /// Makes the SR, see [`crate::sr::Sr::create`].
    ///
    /// # Errors
    /// [`Error::SrExists`], [`Error::DeviceInUse`], [`Error::NotEmpty`], [`Error::NoSpace`], [`Error::Io`].
    pub(super) fn make(&self, new: &NewSr) -> Result<()> {
        let mut made_directory = false;
        match self.look()? {
            Found::Sr(dir, marker) if marker.deleting => {
                self.remove_contents(&dir, false)?;
                made_directory = marker.made_directory;
            }
            Found::Sr(dir, marker) if marker.uuid == self.sr => {
                // The call that made the SR may have been killed before the SR was durable.
                dir.sync()?;
                durable::sync_parent(&self.path)?;
                self.refuse_taken(Found::Sr(dir, marker))?;
            }
            found => self.refuse_taken(found)?,
        }
        self.refuse_inside_another()?;
        let dir = match Dir::open(&self.path) {
            Ok(dir) => dir,
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => {
                match fs::DirBuilder::new().mode(0o700).create(&self.path) {
                    Ok(()) => made_directory = true,
                    Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                        // Another sr_create was faster; the marker decides between the two.
                        Some(Errno::EEXIST) => {}
                        Some(Errno::ENOENT) => {
                            return Err(Error::NoDevice {
                                device: self.path.display().to_string(),
                                why: "the directory above it does not exist".to_owned(),
                            });
                        }
                        _ => return Err(Error::io("create the directory", &self.path)(e)),
                    },
                }
                Dir::open(&self.path)?
            }
            Err(e) => return Err(e),
        };
        let undo = |cause: Error| {
            if made_directory {
                let _ = fs::remove_dir(&self.path);
            }
            Err(cause)
        };
        let fs = dir.statvfs()?;
        let has = fs.blocks() * fs.fragment_size();
        if let Some(wanted) = new.size.filter(|wanted| *wanted > has) {
            return undo(Error::PlaceTooSmall { sr: self.sr, size: has, wanted });
        }
        match self.write_marker(&dir, made_directory, new.slot) {
            // After the marker: a journal that holds the one holds the other as well, and this costs nothing more.
            Ok(true) if made_directory => durable::sync_parent(&self.path).or_else(|cause| {
                let _ = dir.remove(MARKER);
                undo(cause)
            }),
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::DeviceInUse {
                device: self.path.display().to_string(),
                holder: "another sr_create was faster".to_owned(),
            }),
            Err(cause) => undo(cause),
        }
    }

    /// Refuses a local directory that lies inside the directory of another SR: an SR has its directory to itself, and its
    /// administrator deletes or moves it as a whole. A mount has what is above it on another filesystem, by chance.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`] with the other SR.
    fn refuse_inside_another(&self) -> Result<()> {
        if self.shared || self.volume.is_some() {
            return Ok(());
        }
        for above in self.path.ancestors().skip(1) {
            // A directory that this user cannot look into keeps no marker from him that he could obey.
            let Ok(dir) = Dir::open(above) else { continue };
            let holds = match read_marker(&dir) {
                Ok(None) => continue,
                Ok(Some(marker)) => format!("SR {}", marker.uuid),
                Err(Error::Damaged { .. }) => format!("an SR whose {MARKER} is damaged"),
                Err(_) => continue,
            };
            return Err(Error::DeviceInUse {
                device: self.path.display().to_string(),
                holder: format!(
                    "it lies inside {}, which holds {holds}; choose a directory outside of it",
                    above.display()
                ),
            });
        }
        Ok(())
    }

    /// Deletes the SR and its contents, see [`crate::sr::Sr::delete`].
    ///
    /// # Errors
    /// [`Error::VdiInUse`]; then nothing was changed.
    pub(super) fn destroy(&self) -> Result<Done> {
        match self.look()? {
            Found::Sr(dir, marker) if marker.uuid == self.sr => {
                if !marker.deleting {
                    let listing = Listing::read(&dir)?;
                    let checked = self.dir()?;
                    self.refuse_if_attached(&checked, &listing)?;
                    for (vdi, format) in listing.all_images() {
                        must_be(&dir, &image_name(vdi, format), SFlag::S_IFREG)?;
                    }
                    for vdi in &listing.params {
                        must_be(&dir, &beside(*vdi, PARAMS), SFlag::S_IFREG)?;
                    }
                    for vdi in &listing.locks {
                        must_be(&dir, &beside(*vdi, LOCK), SFlag::S_IFDIR)?;
                    }
                    self.refuse_if_locked(&checked, &listing)?;
                    let _alone = self.refuse_if_served(&dir, &listing)?;
                    dir.rename(MARKER, DELETING)?;
                }
                // Also of a rename that was killed before it was durable.
                match dir.sync() {
                    Err(cause) if !marker.deleting => return Err(cause.undone(dir.rename(DELETING, MARKER))),
                    other => other?,
                }
                let removed = self.remove_contents(&dir, marker.made_directory);
                removed.map_err(|cause| cause.after(format!("the deletion of SR {} was begun", self.sr)))?;
                Ok(Done::Changed)
            }
            Found::Strange(dir) if !Listing::read(&dir)?.images.is_empty() => Err(Error::SrUnavailable {
                sr: self.sr,
                why: format!("{} has disks but no {MARKER}; sr_attach takes it over", self.path.display()),
            }),
            // The last removal of a killed sr_delete may not be durable.
            Found::Nothing => {
                match Dir::open(&self.path) {
                    Ok(dir) => dir.sync()?,
                    Err(e) if e.errno() == Some(Errno::ENOENT as i32) => match durable::sync_parent(&self.path) {
                        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => {}
                        other => other?,
                    },
                    Err(e) => return Err(e),
                }
                Ok(Done::Already)
            }
            _ => Ok(Done::Already),
        }
    }

    /// Makes the SR available and repairs what a crash left, see [`crate::sr::Sr::attach`].
    ///
    /// # Errors
    /// [`Error::NoSr`] if the directory is none.
    pub(super) fn begin(&self) -> Result<Done> {
        let mut done = Done::Already;
        let found = self.look()?;
        // The marker of an SR that a killed call took over may not be durable.
        if let Found::Sr(dir, _) = &found {
            dir.sync()?;
        }
        if let Found::Strange(dir) = found {
            if Listing::read(&dir)?.images.is_empty() {
                let path = self.path.display();
                return Err(self.no_sr(format!(
                    "{path} has files, but neither {MARKER} nor disks that are named by UUIDs: <uuid>.vhd, .raw or .qcow2"
                )));
            }
            self.write_marker(&dir, false, None)?;
            done = Done::Changed;
        }
        match self.repair() {
            Err(cause) if done == Done::Changed => Err(cause.after(format!("SR {} was taken over", self.sr))),
            other => other.map(|()| done),
        }
    }

    /// Makes a directory without disks one of ours, see [`crate::sr::Sr::adopt`].
    ///
    /// # Errors
    /// [`Error::NoSr`] if there is no directory.
    pub(super) fn take_over(&self) -> Result<Done> {
        let dir = match self.look()? {
            Found::Strange(dir) if Listing::read(&dir)?.images.is_empty() => dir,
            Found::Nothing => match Dir::open(&self.path) {
                Ok(dir) => dir,
                Err(_) => return Err(self.no_sr(format!("there is no directory {}", self.path.display()))),
            },
            _ => return self.begin(),
        };
        Ok(if self.write_marker(&dir, false, None)? { Done::Changed } else { Done::Already })
    }

    /// Refuses to end the availability of an SR whose disks are attached, see [`crate::sr::Sr::detach`].
    ///
    /// # Errors
    /// [`Error::VdiInUse`].
    pub(super) fn end(&self) -> Result<Done> {
        if let Found::Sr(dir, marker) = self.look()?
            && marker.uuid == self.sr
            && !marker.deleting
        {
            let listing = Listing::read(&dir)?;
            self.refuse_if_attached(&Rc::new(dir), &listing)?;
        }
        // A local directory is there or not: nothing holds it attached.
        Ok(Done::Already)
    }

    /// The names of the SR, see [`crate::sr::Sr::names_of_sr`].
    ///
    /// # Errors
    /// [`Error::Damaged`] if what is stored cannot be read.
    pub(super) fn own_names(&self) -> Result<Names> {
        read_names(&*self.dir()?)
    }

    /// Stores the names of the SR, see [`crate::sr::Sr::name_sr`]. One file is replaced.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn set_own_names(&self, names: &Names) -> Result<()> {
        self.dir()?.replace(NAMES, &encode(&NamesRecord::Names(names.clone())))
    }

    fn remove_contents(&self, dir: &Dir, made_directory: bool) -> Result<()> {
        Labels::of(&run_dir::state(), self.sr).remove();
        let listing = Listing::read(dir)?;
        let mut removed = false;
        for (vdi, format) in listing.all_images() {
            removed |= dir.remove(&image_name(vdi, format))?;
        }
        for vdi in listing.images.keys().chain(&listing.params).chain(&listing.locks) {
            removed |= dir.remove(&beside(*vdi, PARAMS))?;
            register::remove(dir, &beside(*vdi, LOCK))?;
        }
        for vdi in &listing.logs {
            removed |= dir.remove(&beside(*vdi, EXTENSION))?;
        }
        for name in &listing.temporaries {
            removed |= dir.remove_temporary(name)?;
        }
        for name in &listing.replaced {
            removed |= dir.remove(name)?;
        }
        for name in dir.names()?.iter().filter(|name| is_orphan(name)) {
            // Refused while somebody here has it open; then the directory stays, and sr_create takes it.
            let _ = dir.remove(name);
        }
        removed |= dir.remove(CHANGE)? | dir.remove(NAMES)?;
        removed |= dir.remove(TREE_LOCK)? | dir.remove(USES)? | dir.remove(COLLECT_LOCK)?;
        // The marker must not be gone before what it stands for. Of an empty SR there is nothing to wait for.
        if removed || !listing.locks.is_empty() {
            dir.sync()?;
        }
        dir.remove(DELETING)?;
        if made_directory {
            match fs::remove_dir(&self.path) {
                // With the directory goes what was in it.
                Ok(()) => return durable::sync_parent(&self.path),
                // Somebody's own files, or a mount: not ours to remove.
                Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOTEMPTY | Errno::EBUSY)) => {}
                Err(e) => return Err(Error::io("remove", &self.path)(e)),
            }
        }
        dir.sync()
    }

    /// Refuses a filesystem that takes no changes any more. Since Linux 6.12 its mount options do not tell.
    ///
    /// # Errors
    /// [`Error::Io`] with `EROFS`.
    pub fn refuse_read_only(&self) -> Result<()> {
        match self.dir()?.new_file() {
            Err(e) if e.errno() == Some(Errno::EROFS as i32) => Err(e),
            _ => Ok(()),
        }
    }

    /// Completes or undoes what killed calls left. The caller has the SR of this host to itself.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read; the errors of completing a change of a tree that a killed call
    /// began.
    pub fn repair(&self) -> Result<()> {
        let dir = self.dir()?;
        // A change that another host makes now was not left by a killed call.
        let _lock = match self.shared.then(|| self.lock_trees(&dir, Instant::now())) {
            Some(Err(Error::Busy { .. })) => return Ok(()),
            // Nor is anything repaired by who can't lock it.
            Some(Err(e))
                if matches!(e.errno().map(Errno::from_raw), Some(Errno::EROFS | Errno::EACCES | Errno::ENOLCK)) =>
            {
                return Ok(());
            }
            Some(lock) => Some(lock?),
            None => self.recover_change(&dir).map(|_| None)?,
        };
        let listing = Listing::read(&dir)?;
        listing.sweep_all(&dir);
        if !listing.journals {
            // Garbage that can't be collected now, on a read-only mount or while it is in use, is collected later.
            if let Ok(mut nodes) = self.trees(&dir, &listing) {
                remove_garbage(&self.forest(dir), &mut nodes, &mut Failures::new());
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::VdiInUse`] while any VDI is attached or locked: sr_delete would pull it from under its user.
    pub fn refuse_if_used(&self) -> Result<()> {
        let dir = self.dir()?;
        let listing = Listing::read(&dir)?;
        self.refuse_if_attached(&dir, &listing)?;
        self.refuse_if_locked(&dir, &listing)
    }

    /// Keeps all hosts from opening any disk that has a server; see [`crate::vdi::tree::forest::Forest::alone`].
    fn refuse_if_served(&self, dir: &Dir, listing: &Listing) -> Result<Option<Uses>> {
        const WHOM: &str = "another host, which has it attached";
        let served = listing.images.iter().filter(|(_, format)| !layout(**format).is_by_length());
        let served: Vec<VdiUuid> = served.map(|(vdi, _)| *vdi).collect();
        let Some(first) = served.first() else { return Ok(None) };
        // One by one, to say which it is.
        served.iter().try_for_each(|vdi| self.alone(dir, &[*vdi], *vdi, WHOM).map(drop))?;
        self.alone(dir, &served, *first, WHOM)
    }

    fn refuse_if_locked(&self, dir: &Rc<Dir>, listing: &Listing) -> Result<()> {
        let locked = listing.images.iter().filter(|(vdi, _)| listing.locks.contains(vdi));
        locked.into_iter().try_for_each(|(vdi, format)| vdi::refuse_if_locked(&self.place(dir.clone(), *vdi, *format)))
    }

    fn refuse_if_attached(&self, dir: &Rc<Dir>, listing: &Listing) -> Result<()> {
        for image in Attachments::now()?.images() {
            if let Some((vdi, Role::Image(format))) = classify(durable::name_of(image))
                && listing.all_images().any(|found| found == (vdi, format))
            {
                vdi::refuse_if_attached(&*self.disk(dir.clone(), vdi, format))?;
            }
        }
        Ok(())
    }
}
