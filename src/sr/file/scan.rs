//! The present state of an SR and its disks, read in one pass over its directory.

use std::collections::HashMap;
use std::rc::Rc;

use super::directory::{FileSr, Found};
use super::images::{Image, readers};
use super::labels::{Directory, Labels, WORTH_AN_INDEX};
use super::layout::beside as beside_image;
use super::listing::Listing;
use super::records::{read_change, read_holders, read_params, read_params_with};
use crate::error::Result;
use crate::image::cbtlog::EXTENSION;
use crate::sys::durable::Dir;
use crate::sys::{run_dir, threads};
use crate::types::{LogAlone, Params, Space, SrInfo, State, VdiInfo, VdiName, VdiUuid};
use crate::vdi::tree::change::Change;
use crate::vdi::{self, Attachments, Holders, layout};

/// The entries of an index that may be meant by `word`. `None` if there are none, or if one no longer agrees with the
/// record beside the disk: a record that somebody edited in its place changes no time of the directory.
fn still_named(dir: &Dir, all: Vec<VdiName>, word: &str) -> Option<Vec<VdiName>> {
    let prefix = word.to_ascii_lowercase();
    let may_be_meant = |disk: &VdiName| disk.label == word || disk.uuid.to_string().starts_with(&prefix);
    let found: Vec<VdiName> = all.into_iter().filter(may_be_meant).collect();
    let is_so = |disk: &VdiName| read_params(dir, disk.uuid).is_ok_and(|params| params.label == disk.label);
    (!found.is_empty() && found.iter().all(is_so)).then_some(found)
}

impl FileSr {
    /// The SR in a directory without a marker, which sr_attach would take over; `None` if it has one.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the directory cannot be read; [`crate::Error::Busy`] if a change of a tree goes on past
    /// the deadline.
    pub fn unmarked(&self) -> Result<Option<SrInfo>> {
        match self.look()? {
            Found::Nothing if self.path.is_dir() => Ok(Some(self.stat_of(&Dir::open(&self.path)?)?)),
            Found::Strange(dir) => Ok(Some(self.stat_of(&dir)?)),
            Found::Nothing | Found::Sr(..) => Ok(None),
        }
    }

    /// The SR, without the details of its disks.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Busy`] if a change of a tree goes on past the deadline.
    pub(super) fn stat_of(&self, dir: &Dir) -> Result<SrInfo> {
        let (_, images) = self.settled(dir)?;
        let visible = || images.iter().filter(|image| !image.node.hidden);
        let used = images.iter().map(|image| image.usage.allocated).sum();
        let allocation = visible().map(|image| image.node.virtual_size).sum();
        self.summary(dir, visible().map(|image| image.vdi).collect(), used, allocation)
    }

    fn summary(&self, dir: &Dir, mut vdis: Vec<VdiUuid>, used: u64, allocation: u64) -> Result<SrInfo> {
        vdis.sort_unstable();
        let space = space_of(dir)?;
        Ok(SrInfo {
            uuid: self.sr,
            vdi_uuids: vdis,
            physical_utilisation: used,
            virtual_allocation: allocation,
            size: space.size,
            free: space.free,
            sr_type: self.sr_type.to_owned(),
            location: self.named.as_ref().unwrap_or(&self.path).display().to_string(),
            vdis: Vec::new(),
            slot: None,
            pool: None,
            logs: None,
            kept: None,
        })
    }

    /// All that is there. NFS may take away the name of a disk for a moment while its image is replaced: then the change is
    /// waited for, for a disk that a scan leaves out is forgotten.
    pub(super) fn settled(&self, dir: &Dir) -> Result<(Listing, Vec<Image>)> {
        loop {
            let before = if self.shared { read_change(dir)? } else { None };
            let listing = Listing::read(dir)?;
            let images = self.images(dir, &listing)?;
            let after = if self.shared { read_change(dir)? } else { None };
            let is_missing = |vdi: VdiUuid| !images.iter().any(|image| image.vdi == vdi);
            if ![before, after].iter().flatten().flat_map(Change::replaced).any(is_missing) {
                return Ok((listing, images));
            }
            drop(self.lock_trees(dir, self.deadline.end())?);
        }
    }

    /// The SR now, without the details of its disks.
    ///
    /// # Errors
    /// [`crate::Error::NoSr`], [`crate::Error::Io`]; [`crate::Error::Busy`] if a change of a tree goes on past the deadline.
    pub(super) fn stat_now(&self) -> Result<SrInfo> {
        self.stat_of(&*self.dir()?)
    }

    /// The names that people call the images by: the names in the directory, and the labels beside them. No image is
    /// opened, and a record that does not have `word` in it is not parsed. An SR of many labels has an index of them on
    /// this host, see [`Labels`].
    ///
    /// # Errors
    /// [`crate::Error::NoSr`], [`crate::Error::Io`].
    pub(super) fn names_now(&self, word: &str) -> Result<Vec<VdiName>> {
        let dir = self.dir()?;
        let dir: &Dir = &dir;
        let labels = Labels::of(&run_dir::state(), self.sr);
        let directory = if self.shared { None } else { Some(Directory::of(&dir.stat()?)) };
        if let Some(directory) = directory
            && !word.is_empty()
            && let Some(found) = labels.read(directory).and_then(|all| still_named(dir, all, word))
        {
            return Ok(found);
        }
        let listing = Listing::read(dir)?;
        let images: Vec<VdiUuid> = listing.images.keys().copied().collect();
        let indexed =
            directory.filter(|directory| listing.params.len() >= WORTH_AN_INDEX && Labels::may_be_of(*directory));
        let prefix = word.to_ascii_lowercase();
        let named = |vdi: &VdiUuid| {
            let is_prefix = vdi.to_string().starts_with(&prefix);
            let has_params = listing.params.contains(vdi);
            let wanted = if is_prefix || indexed.is_some() { "" } else { word };
            let params = has_params.then(|| read_params_with(dir, *vdi, wanted).ok());
            match params.flatten().flatten() {
                Some(params) => Some(VdiName { uuid: *vdi, label: params.label, location: None }),
                None => {
                    let unnamed = || VdiName { uuid: *vdi, label: String::new(), location: None };
                    (is_prefix || indexed.is_some()).then(unnamed)
                }
            }
        };
        let most = readers(listing.params.len());
        let parts = threads::in_parts(&images, most, |part| part.iter().filter_map(named).collect::<Vec<_>>());
        let names: Vec<VdiName> = parts.into_iter().flatten().collect();
        if let Some(directory) = indexed {
            labels.write(directory, &names);
        }
        Ok(names)
    }

    /// The SR with every disk's details.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Busy`] if a change of a tree goes on past the deadline.
    pub(super) fn scan_all(&self) -> Result<SrInfo> {
        let dir = self.dir()?;
        let (listing, images) = self.settled(&dir)?;
        self.described(&dir, &listing, &images)
    }

    /// The SR with the details of the disks and bases among its images.
    pub(super) fn described(&self, dir: &Rc<Dir>, listing: &Listing, images: &[Image]) -> Result<SrInfo> {
        let attachments = Attachments::now()?;
        let mut children: HashMap<VdiUuid, Vec<VdiUuid>> = HashMap::new();
        for image in images {
            if let Some(parent) = image.node.parent {
                children.entry(parent).or_default().push(image.vdi);
            }
        }
        let mut infos = Vec::with_capacity(images.len());
        let (mut used, mut allocation, mut visible) = (0, 0, Vec::with_capacity(images.len()));
        let beside = beside(dir, listing, images);
        for (image, (params, holders)) in images.iter().zip(beside) {
            used += image.usage.allocated;
            let children = children.remove(&image.vdi).unwrap_or_default();
            if image.node.hidden && children.is_empty() {
                // Garbage: nobody's base any more.
                continue;
            }
            if !image.node.hidden {
                allocation += image.node.virtual_size;
                visible.push(image.vdi);
            }
            let place = self.place(dir.clone(), image.vdi, image.format);
            let mut node = image.node.clone();
            let damage = params.as_ref().err().or(holders.as_ref().err());
            if let Some(damage) = damage.filter(|_| node.state.is_healthy()) {
                node.state = State::of(damage);
            }
            let path = place.path();
            let device = attachments.find(image.format, &path, image.id);
            let (params, users) = (params.unwrap_or_default(), holders.unwrap_or_default().users);
            let died = attachments.server_died(image.format, &path);
            let info = vdi::describe(&place, &node, image.usage.allocated, params);
            let info = info.with_users(users).with_children(children).with_device(device);
            // A raw disk is never tracked.
            let cbt_enabled = listing.logs.contains(&image.vdi) && !layout(image.format).is_by_length();
            infos.push(VdiInfo { cbt_enabled, ..vdi::with_server(info, died) });
        }
        listing.sweep(dir);
        let logs = Some(logs_alone(dir, listing)?);
        Ok(SrInfo { vdis: infos, logs, ..self.summary(dir, visible, used, allocation)? })
    }
}

/// The logs of changed blocks that are there without an image.
fn logs_alone(dir: &Dir, listing: &Listing) -> Result<Vec<LogAlone>> {
    let mut alone = Vec::new();
    for vdi in listing.logs.iter().filter(|vdi| !listing.images.contains_key(vdi)) {
        if let Some(stat) = dir.lookup(&beside_image(*vdi, EXTENSION))? {
            let params = if listing.params.contains(vdi) { read_params(dir, *vdi) } else { Ok(Params::default()) };
            alone.push(LogAlone { vdi: *vdi, bytes: stat.length, params: params.unwrap_or_default() });
        }
    }
    alone.sort_unstable_by_key(|log| log.vdi);
    Ok(alone)
}

/// The records beside each image, in the order of `images`: the params, and the holders of the persistent lock.
fn beside(dir: &Dir, listing: &Listing, images: &[Image]) -> Vec<(Result<Params>, Result<Holders>)> {
    let read = |image: &Image| {
        let params =
            if listing.params.contains(&image.vdi) { read_params(dir, image.vdi) } else { Ok(Params::default()) };
        let locked = listing.locks.contains(&image.vdi);
        (params, if locked { read_holders(dir, image.vdi) } else { Ok(Holders::default()) })
    };
    threads::in_parts(images, readers(images.len()), |part| part.iter().map(read).collect::<Vec<_>>())
        .into_iter()
        .flatten()
        .collect()
}

/// The size and the free space of the filesystem of a directory.
pub(super) fn space_of(dir: &Dir) -> Result<Space> {
    let fs = dir.statvfs()?;
    Ok(Space { size: fs.blocks() * fs.fragment_size(), free: fs.blocks_free() * fs.fragment_size() })
}
