//! The check of an SR and its images, and the repair of the faults that can be mended.
//!
//! A look takes no locks. Only faults that a second look under the locks finds again are told. An image is mended only
//! if no process has it open. The repair then holds the lock of its VDI, of every disk above it, and of the trees.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Instant;

use super::directory::FileSr;
use super::images::Image;
use super::layout::{CHANGE, LOCK, PARAMS, beside, remove_leftovers};
use super::listing::Listing;
use super::records::{read_change, read_holders, read_params};
use crate::context::Context;
use crate::error::{Error, Result, one_line};
use crate::image::cbtlog::EXTENSION;
use crate::image::fault::{Fault, Look, Weight};
use crate::sr::driver::finding_of_state;
use crate::sys::durable::{self, Dir};
use crate::sys::lock::{self, Lock};
use crate::sys::uses::Uses;
use crate::types::{Finding, Mode, Outcome, State, VdiUuid};
use crate::vdi::cbt::{self, ChangeLogs};
use crate::vdi::tree::nodes::Nodes;
use crate::vdi::{Attachments, layout};

/// One run of sr_check.
struct Check<'a> {
    sr: &'a FileSr,
    dir: Rc<Dir>,
    thorough: bool,
    repair: bool,
    context: &'a Context<'a>,
    found: Vec<Finding>,
    /// The images with faults that cannot be mended, which their headers do not tell.
    damaged: BTreeSet<VdiUuid>,
}

impl FileSr {
    /// Looks at the records, the images and the trees, see [`crate::sr::Sr::check`].
    ///
    /// # Errors
    /// [`Error::NoSr`]; [`Error::Io`] of the directory; [`Error::Busy`] if the lock of the trees cannot be had.
    pub(super) fn check_all(&self, thorough: bool, repair: bool, context: &Context) -> Result<Vec<Finding>> {
        let (found, damaged) = (Vec::new(), BTreeSet::new());
        let mut check = Check { sr: self, dir: self.dir()?, thorough, repair, context, found, damaged };
        check.changes()?;
        let listing = Listing::read(&check.dir)?;
        check.names(&listing)?;
        let images = self.images(&check.dir, &listing)?;
        let nodes: Nodes = images.iter().map(|image| (image.vdi, image.node.clone())).collect();
        let in_use = check.in_use(&nodes, &images)?;
        for image in &images {
            check.image(image, &nodes, in_use.contains(&image.vdi))?;
        }
        check.logs(&listing, &images, &in_use)?;
        check.disks_above(&nodes, &images);
        check.trees(&nodes, &images);
        if repair {
            check.dir.sync()?;
        }
        check.found.sort_by(|a, b| a.object.cmp(&b.object));
        Ok(check.found)
    }
}

impl Check<'_> {
    fn say(&mut self, vdi: Option<VdiUuid>, object: impl Into<String>, what: impl Into<String>, outcome: Outcome) {
        self.found.push(Finding { vdi, object: object.into(), label: String::new(), what: what.into(), outcome });
    }

    /// Checks the logs of changed blocks of the disks that no process has.
    fn logs(&mut self, listing: &Listing, images: &[Image], in_use: &BTreeSet<VdiUuid>) -> Result<()> {
        let sizes: BTreeMap<VdiUuid, u64> = images.iter().map(|image| (image.vdi, image.node.virtual_size)).collect();
        let logs: BTreeSet<VdiUuid> = listing.logs.difference(&in_use.iter().copied().collect()).copied().collect();
        for vdi in logs {
            let fault = |check: &Self| match check.sr.forest(check.dir.clone()).read(vdi) {
                Err(Error::Damaged { what, .. }) => Ok(Some(what)),
                Ok(Some(log)) if sizes.get(&vdi).is_some_and(|size| *size > log.header.size) => {
                    Ok(Some("is the log of a smaller disk".to_owned()))
                }
                other => other.map(|_| None),
            };
            let name = beside(vdi, EXTENSION);
            if let Some(what) = fault(self)? {
                self.say_mendable(Some(vdi), &name, what, |check| {
                    let _lock = check.sr.lock_trees(&check.dir, check.context.deadline)?;
                    if fault(check)?.is_some() {
                        cbt::forget(&check.sr.forest(check.dir.clone()), vdi)?;
                    }
                    Ok(true)
                })?;
            } else if self.sr.forest(self.dir.clone()).header(vdi)?.is_some_and(|log| !log.consistent) {
                let what = "may lack blocks that were written: the tracking ends when the disk is attached";
                self.say(Some(vdi), name, what, Outcome::Note);
            }
        }
        Ok(())
    }

    /// Something that the repair removes or completes by `mend`, which answers whether it did.
    fn say_mendable(
        &mut self,
        vdi: Option<VdiUuid>,
        object: &str,
        what: impl Into<String>,
        mend: impl FnOnce(&Self) -> Result<bool>,
    ) -> Result<()> {
        let mended = self.repair && mend(self)?;
        self.say(vdi, object, what, if mended { Outcome::Mended } else { Outcome::Mendable });
        Ok(())
    }

    /// A change of the trees whose call was killed.
    fn changes(&mut self) -> Result<()> {
        let sr = self.sr;
        match read_change(&self.dir) {
            Ok(None) => return Ok(()),
            Err(Error::Damaged { what, .. }) => {
                self.say(None, CHANGE, what, Outcome::Lasting);
                return Ok(());
            }
            Err(error) => return Err(error),
            Ok(Some(_)) => {}
        }
        // A call of this host that is still changing the trees has this lock.
        match lock::take(&sr.sr.to_string(), "tree", lock::Kind::Exclusive, Instant::now()) {
            Err(lock::Refused::TimedOut { .. }) => return Ok(()),
            Err(lock::Refused::Failed(error)) => return Err(error),
            Ok(_lock) => {}
        }
        if !self.repair && sr.shared {
            let what = "a change of the trees is under way on another host, or its call was killed";
            self.say(None, CHANGE, what, Outcome::Note);
            return Ok(());
        }
        self.say_mendable(None, CHANGE, "a call that changed the trees was killed", |check| {
            drop(sr.lock_trees(&check.dir, check.context.deadline)?);
            Ok(read_change(&check.dir)?.is_none())
        })
    }

    /// Checks the names in the directory that are not those of images.
    fn names(&mut self, listing: &Listing) -> Result<()> {
        for name in &listing.temporaries {
            let of_directory = self.dir.lookup(name)?.is_some_and(|stat| stat.is_directory());
            if of_directory || self.dir.try_open_record(name)?.is_some_and(|file| durable::is_abandoned(&file)) {
                self.say_mendable(None, name, "a call that was killed left it", |check| {
                    check.dir.sweep_temporary(name)
                })?;
            }
        }
        let images: BTreeSet<VdiUuid> = listing.all_images().map(|(vdi, _)| vdi).collect();
        let beside_nothing: BTreeSet<VdiUuid> =
            listing.params.union(&listing.locks).copied().filter(|vdi| !images.contains(vdi)).collect();
        for vdi in beside_nothing {
            let name = beside(vdi, if listing.params.contains(&vdi) { PARAMS } else { LOCK });
            let params = self.dir.try_open_record(&beside(vdi, PARAMS));
            // A call that makes the disk has it locked.
            if let Ok(Some(file)) = &params
                && !durable::is_abandoned(file)
            {
                continue;
            }
            drop(params);
            let what = "it was stored beside a disk that is gone";
            self.say_mendable(Some(vdi), &name, what, |check| Ok(remove_leftovers(&check.dir, vdi).unwrap_or(false)))?;
        }
        if listing.journals {
            let what = "the collector of another storage manager left a journal, and has to finish first";
            self.say(None, self.dir.path().display().to_string(), what, Outcome::Note);
        }
        Ok(())
    }

    /// The images that a process of this host has open.
    fn in_use(&self, nodes: &Nodes, images: &[Image]) -> Result<BTreeSet<VdiUuid>> {
        let attachments = Attachments::now()?;
        let attached = images.iter().filter(|image| {
            let path = self.sr.place(self.dir.clone(), image.vdi, image.format).path();
            attachments.find(image.format, &path, image.id).is_some()
        });
        Ok(attached.flat_map(|image| nodes.chain(image.vdi)).collect())
    }

    /// An image, what is stored beside it, and whether its parent is the one that it was made from.
    fn image(&mut self, image: &Image, nodes: &Nodes, in_use: bool) -> Result<()> {
        let place = self.sr.place(self.dir.clone(), image.vdi, image.format);
        let (vdi, name) = (Some(image.vdi), place.name());
        for (extension, record) in [
            (PARAMS, read_params(&self.dir, image.vdi).map(drop)),
            (LOCK, read_holders(&self.dir, image.vdi).map(drop)),
        ] {
            if let Err(error) = record {
                self.say(vdi, beside(image.vdi, extension), words(error), Outcome::Lasting);
            }
        }
        if !image.node.state.is_healthy() {
            self.found.push(finding_of_state(image.vdi, name.clone(), &image.node.state));
        }
        if matches!(image.node.state, State::Broken(_) | State::Unsupported(_)) {
            return Ok(());
        }
        let mut faults = self.faults(image, in_use)?;
        if faults.is_empty() {
            return Ok(());
        }
        let locks = self.lock(image.vdi, nodes);
        let Some(_locks) = locks? else {
            self.say(vdi, name, "another call works on it or on a disk above it; look again", Outcome::Note);
            return Ok(());
        };
        let alone = self.alone(image, nodes)?;
        let in_use = alone.is_none();
        faults = self.faults(image, in_use)?;
        let is_mendable = |fault: &Fault| fault.weight == Weight::Mendable;
        let mut mended = Vec::new();
        if self.repair && !in_use && faults.iter().any(is_mendable) {
            let _trees = self.sr.lock_trees(&self.dir, self.context.deadline)?;
            let storage = place.open_image(Mode::ReadWrite)?;
            let repaired = layout(image.format).repair(&storage);
            let still = self.faults(image, false)?;
            (mended, faults) = faults.into_iter().partition(|fault| is_mendable(fault) && !still.contains(fault));
            if let Err(error) = repaired {
                self.say(vdi, name.clone(), words(error), Outcome::Lasting);
            }
        }
        for fault in mended {
            self.say(vdi, name.clone(), fault.what, Outcome::Mended);
        }
        if faults.iter().any(|fault| fault.weight == Weight::Lasting) {
            self.damaged.insert(image.vdi);
        }
        for Fault { weight, what } in faults {
            let (what, outcome) = match weight {
                Weight::Note => (what, Outcome::Note),
                Weight::Mendable if in_use => {
                    (format!("{what}; detach it and the disks above it first"), Outcome::Mendable)
                }
                Weight::Mendable => (what, Outcome::Mendable),
                Weight::Lasting => (what, Outcome::Lasting),
            };
            self.say(vdi, name.clone(), what, outcome);
        }
        Ok(())
    }

    /// The faults that the format finds in an image, and in its link to the parent.
    fn faults(&self, image: &Image, in_use: bool) -> Result<Vec<Fault>> {
        let place = self.sr.place(self.dir.clone(), image.vdi, image.format);
        let layout = layout(image.format);
        let storage = match place.open_image(Mode::ReadOnly) {
            // It was deleted since.
            Err(Error::NoVdi { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        let mut faults = match layout.check(&storage, Look { in_use, deep: self.thorough }) {
            Ok(faults) => faults,
            Err(error) => return Ok(vec![Fault::lasting(words(error))]),
        };
        if let (Some(parent), State::Healthy) = (image.node.parent, &image.node.state) {
            let format = super::layout::format_of(&self.dir, parent);
            if let Ok(Some(format)) = format
                && let Ok(parent) = self.sr.place(self.dir.clone(), parent, format).as_parent(Mode::ReadOnly)
                && let Err(error) = layout.check_parent(&**storage, &parent)
            {
                faults.push(Fault::lasting(words(error)));
            }
        }
        Ok(faults)
    }

    /// The locks of a VDI and of all disks above it. `None`: another call has one of them.
    fn lock(&self, vdi: VdiUuid, nodes: &Nodes) -> Result<Option<Vec<Lock>>> {
        let mut locks = Vec::new();
        for vdi in [vdi].into_iter().chain(nodes.descendants(vdi)) {
            match lock::take(&vdi.to_string(), "vdi", lock::Kind::Exclusive, Instant::now()) {
                Ok(lock) => locks.push(lock),
                Err(lock::Refused::TimedOut { .. }) => return Ok(None),
                Err(lock::Refused::Failed(error)) => return Err(error),
            }
        }
        Ok(Some(locks))
    }

    /// Keeps all hosts from opening the image as long as the answer lives; `None`: a process has it open. The caller holds the
    /// locks of the disks above it.
    fn alone(&self, image: &Image, nodes: &Nodes) -> Result<Option<Option<Uses>>> {
        let attachments = Attachments::now()?;
        let is_attached = |vdi: VdiUuid| {
            let format = nodes.get(vdi).map_or(image.format, |node| node.format);
            let path = self.sr.place(self.dir.clone(), vdi, format).path();
            // Only the path decides: these formats are served by a process of their own.
            attachments.find(format, &path, image.id).is_some()
        };
        if [image.vdi].into_iter().chain(nodes.descendants(image.vdi)).any(is_attached) {
            return Ok(None);
        }
        match self.sr.alone(&self.dir, &[image.vdi], image.vdi, "another host") {
            Ok(alone) => Ok(Some(alone)),
            Err(Error::VdiInUse { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names the disks that read through a damaged image. Where a header tells the damage, the state of the disks above does too.
    fn disks_above(&mut self, nodes: &Nodes, images: &[Image]) {
        for image in images.iter().filter(|image| !image.node.hidden && image.node.state.is_healthy()) {
            let below = nodes.chain(image.vdi).into_iter().skip(1).filter(|vdi| self.damaged.contains(vdi));
            let below: Vec<String> = below.map(|vdi| vdi.to_string()).collect();
            if !below.is_empty() {
                let what =
                    format!("it reads through {}, which is damaged, and may have lost data", below.join(" and "));
                self.say(Some(image.vdi), super::layout::image_name(image.vdi, image.format), what, Outcome::Lasting);
            }
        }
    }

    /// Notes what the trees say of images that are whole.
    fn trees(&mut self, nodes: &Nodes, images: &[Image]) {
        let name = |vdi: VdiUuid| {
            let format = images.iter().find(|image| image.vdi == vdi).map(|image| image.format);
            format.map_or_else(|| vdi.to_string(), |format| super::layout::image_name(vdi, format))
        };
        for base in nodes.garbage() {
            self.say(Some(base), name(base), "nothing needs it any more; sr_collect removes it", Outcome::Note);
        }
        for (base, claim) in nodes.withheld() {
            self.say(Some(base), name(base), format!("no image names it, but it is kept: {claim}"), Outcome::Note);
        }
        for (vdi, node) in nodes.iter() {
            let children = nodes.children(vdi).len();
            // Of an image that cannot be read it is not known whether it is a disk.
            if !node.hidden && children > 0 && node.state.is_healthy() {
                let what = format!("it is a disk, and {children} images read through it: nothing may write to it");
                self.say(Some(vdi), name(vdi), what, Outcome::Note);
            }
        }
    }
}

/// The words of an error about an object that is named beside it.
fn words(error: Error) -> String {
    match error {
        Error::Damaged { what, .. } => what,
        Error::Unsupported { why, .. } => why,
        other => one_line(&other),
    }
}
