//! What a killed call left of a change, of ours or of a Python driver, is undone or completed: by the first call that changes the
//! SR afterwards, under the lock of its trees.
//!
//! | left | what is there | what is done |
//! |---|---|---|
//! | `NEW_<id>_1` | | removed |
//! | `NEW-<vdi>` | no call works on the VDI | removed |
//! | `<sr>_trim_lv` | | removed |
//! | `inflate_<U>_<bytes>` | what `U` holds fits so many bytes, and no process has it open | `U` ends there again |
//! | | else | `U` ends where its volume does |
//! | `clone_<U>`, base B, copy D | no B; or the record cannot be read | nothing was done |
//! | | U, and D if there is to be one, are images with the parent B | completed: B is hidden, and both have records |
//! | | else, if U and D hold no data, and B has no other child | undone: B has the name of U again |
//! | `leaf_<U>`, parent P | P and `OLD_<U>`, and U | completed: U went back to a snapshot, and `OLD_<U>` is what it was |
//! | | else P or `OLD_<U>` | undone: the leaf is all there |
//! | | else | completed |
//! | `relink_<V>` | V has children, and no process has one of the disks above it open | they are given to its parent |
//! | `zero_<R>_<bytes>` | | the rest is zeroed |
//! | `coalesce_<V>` | | removed: it does nothing but tell that the work goes on |
//! | `jvhd_<U>` | | left to `vhd-util revert`: the image is not served meanwhile |
//!
//! The journals `relink`, `zero` and `coalesce` are those of a collector, and stay while one of either side is at work.
//!
//! A change that cannot be ended stays, and the log says why: the other disks of the SR are served all the same.

use std::time::Instant;

use super::HIDDEN;
use super::forest::LvhdForest;
use super::journal::{Change, Cloned, Journal, is_unwritten};
use super::live::Live;
use super::place::lock_tags;
use super::step::Step;
use crate::error::{Error, Result, one_line};
use crate::image::storage::Storage;
use crate::image::volume::{VolumeName, image};
use crate::sr::volume_group::trim;
use crate::sys::blockdev;
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::lvm::{self, Lv};
use crate::sys::syslog;
use crate::types::{Format, VdiUuid};
use crate::vdi::layout;
use crate::vdi::tree::nodes::Node;
use crate::vdi::tree::stop;

/// What the log calls it.
const ENDING: &str = "ending a change";

impl<'a> Live<'a> {
    /// [`Live::lock`], and ends what killed calls left.
    ///
    /// # Errors
    /// Those of [`Live::lock`].
    pub fn lock_recovered(self: &std::rc::Rc<Self>, op: &'static str, deadline: Instant) -> Result<Lock> {
        let lock = self.lock(op, deadline)?;
        if let Err(error) = self.recover() {
            syslog::write(&format!("SR {}: {}", self.own().sr, one_line(&error)));
        }
        Ok(lock)
    }

    /// Whether a change of a tree was begun, and could not be ended.
    pub fn is_begun(&self) -> bool {
        self.now().journals().iter().any(|(_, journal)| !matches!(journal.change, Change::Resize | Change::Inflate(_)))
    }

    /// Ends what killed calls left. The caller holds the lock.
    ///
    /// # Errors
    /// The first that there was, after all else was done.
    pub fn recover(self: &std::rc::Rc<Self>) -> Result<()> {
        let mut outcome = self.remove_all_unborn();
        let order = |change: &Change| match change {
            Change::Inflate(_) => 0,
            Change::Clone(_) => 1,
            Change::Leaf(_) => 2,
            _ => 3,
        };
        let mut journals: Vec<(String, Journal)> = self.now().journals().to_vec();
        journals.sort_by_key(|(_, journal)| order(&journal.change));
        // A collector of either side may be at work, which has the SR's lock for some of its steps only.
        let idle = lock::take(&self.own().sr.to_string(), stop::ACTIVE, Kind::Exclusive, Instant::now()).ok();
        let is_left = |journal: &Journal| match journal.change {
            Change::Coalesce | Change::Relink | Change::Zero(_) => idle.is_some(),
            _ => true,
        };
        for (name, journal) in journals.into_iter().filter(|(_, journal)| is_left(journal)) {
            let ended = self.end(&name, &journal).map_err(|cause| {
                let what = format!("the journal {name} says of VDI {} that {}", journal.vdi, journal.what());
                cause.after(what)
            });
            outcome = outcome.and(ended);
        }
        outcome.and(self.remove_old())
    }

    fn remove_all_unborn(&self) -> Result<()> {
        let group = self.now();
        let mut steps = Vec::new();
        for lv in &group.vg().lvs {
            let vdi = lv.name.strip_prefix("NEW-").and_then(|vdi| vdi.parse::<VdiUuid>().ok());
            // A call that fills it has the lock of the VDI.
            let is_left = |vdi: VdiUuid| lock::take(&vdi.to_string(), "vdi", Kind::Exclusive, Instant::now()).is_ok();
            // One that is still discarded has the SR to itself, on the SR's master.
            let is_trim = lv.name == trim::volume(self.own().sr);
            if is_trim || is_unwritten(&lv.name) || vdi.is_some_and(is_left) {
                steps.push(Step::remove(&lv.name));
            }
        }
        if steps.is_empty() {
            return Ok(());
        }
        self.take(&steps)?;
        self.remove_strays()
    }

    /// Removes leaves whose place was taken.
    fn remove_old(&self) -> Result<()> {
        let group = self.now();
        let is_old = |name: &&String| {
            let vdi = VolumeName::parse(name).filter(|name| name.old).map(|name| name.vdi);
            vdi.is_some_and(|vdi| group.begun(vdi).is_none()) && !is_open(&group.vg().name, name)
        };
        let steps: Vec<Step> = group.left().iter().filter(is_old).map(Step::remove).collect();
        self.take(&steps)
    }

    fn end(self: &std::rc::Rc<Self>, name: &str, journal: &Journal) -> Result<()> {
        let vdi = journal.vdi;
        match journal.change {
            Change::Inflate(bytes) => self.end_inflate(name, vdi, bytes),
            Change::Clone(Some(cloned)) => self.end_clone(name, journal, cloned),
            Change::Leaf(Some(parent)) => self.end_leaf(name, vdi, parent),
            // Its record was not written, so nothing was done.
            Change::Clone(None) | Change::Leaf(None) | Change::Coalesce => self.take(&[Step::remove(name)]),
            Change::Zero(from) => self.end_zero(name, vdi, from),
            Change::Relink => self.end_relink(name, vdi),
            Change::Resize => Ok(()),
        }
    }

    fn end_inflate(&self, name: &str, vdi: VdiUuid, bytes: u64) -> Result<()> {
        let group = self.now();
        let Some(volume) = group.volumes().get(&vdi).filter(|volume| volume.format != Format::Raw) else {
            return self.take(&[Step::remove(name)]);
        };
        let lv = &volume.lv;
        let mut steps = Vec::new();
        let fits =
            bytes < lv.size && self.deflated(volume.format, lv)? <= bytes && !is_open(&group.vg().name, &lv.name);
        if fits {
            self.end_at(volume.format, lv, bytes)?;
            steps.push(Step::Reduce { name: lv.name.clone(), size: bytes });
        } else {
            self.end_at(volume.format, lv, lv.size)?;
        }
        steps.push(Step::remove(name));
        self.take(&steps)
    }

    /// The volume that is named as the image of a VDI, whatever a change makes of it; `old`: as its old image.
    fn named(&self, vdi: VdiUuid, old: bool) -> Option<(Format, Lv)> {
        let of = |lv: &&Lv| VolumeName::parse(&lv.name).filter(|name| (name.vdi, name.old) == (vdi, old));
        let group = self.now();
        let lv = group.vg().lvs.iter().find(|lv| of(lv).is_some())?;
        Some((of(&lv)?.format, lv.clone()))
    }

    /// The image in a volume, as it says itself. `None`: there is no image in it.
    fn image_in(&self, (format, lv): &(Format, Lv), vdi: VdiUuid) -> Result<Option<Node>> {
        let image = self.now().storage_for_writing(lv)?;
        match layout(*format).query(&image) {
            Ok(info) => {
                let named = |name: &str| super::group::possible_parent(name, *format);
                Node::of(vdi, *format, info, image.path(), named).map(Some)
            }
            Err(Error::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an image one that is there for its children only, or no longer so. The answer is what is still to be done.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`].
    pub(super) fn set_hidden(&self, (format, lv): &(Format, Lv), hidden: bool) -> Result<Vec<Step>> {
        if *format != Format::Raw {
            layout(*format).set_hidden(&self.now().storage_for_writing(lv)?, hidden)?;
            return Ok(Vec::new());
        }
        let tag = vec![HIDDEN.to_owned()];
        Ok(match (lv.tags.iter().any(|tag| tag == HIDDEN), hidden) {
            (false, true) => vec![Step::tag(&lv.name, tag)],
            (true, false) => vec![Step::untag(&lv.name, tag)],
            _ => Vec::new(),
        })
    }

    fn end_clone(self: &std::rc::Rc<Self>, name: &str, journal: &Journal, cloned: Cloned) -> Result<()> {
        let Cloned { base, copy } = cloned;
        let below = self.named(base, false);
        let node = below.as_ref().map_or(Ok(None), |below| self.image_in(below, base))?;
        let Some((below, parent)) = below.zip(node) else { return self.take(&[Step::remove(name)]) };
        let children: Vec<VdiUuid> = [Some(journal.vdi), copy].into_iter().flatten().collect();
        // The children of a base that holds nothing get its parent.
        let is_child = |vdi: &VdiUuid| -> Result<bool> {
            let Some(found) = self.named(*vdi, false) else { return Ok(false) };
            let named = self.image_in(&found, *vdi)?.and_then(|node| node.parent);
            Ok(named.is_some() && (named == Some(base) || named == parent.parent))
        };
        let are_children = children.iter().map(is_child).collect::<Result<Vec<bool>>>()?;
        if are_children.iter().all(|is| *is) {
            if let Err(error) = self.record_unrecorded(journal.vdi, base, below.0, copy) {
                let sr = self.own().sr;
                syslog::write(&format!(
                    "SR {sr}: base {base} and its children may have no names: {}",
                    one_line(&error)
                ));
            }
            return self.end_fork(base, journal);
        }
        self.refuse_data(base, &children)?;
        let mut steps = self.set_hidden(&below, false)?;
        steps
            .extend(children.iter().filter_map(|child| self.named(*child, false)).map(|(_, lv)| Step::remove(lv.name)));
        let own = image(journal.vdi, below.0);
        steps.push(Step::rename(&below.1.name, &own));
        if below.1.read_only {
            steps.push(Step::SetWritable { name: own, writable: true });
        }
        steps.push(Step::remove(name));
        self.take(&steps)?;
        let now = self.now();
        for gone in [Some(base), copy].into_iter().flatten() {
            now.uncount(gone)?;
            self.remove_record(ENDING, gone)?;
        }
        self.retype(ENDING, journal.vdi, below.0)
    }

    /// Refuses to undo a clone whose children were written to: the journal is of another time then, or somebody went on without
    /// ending it.
    fn refuse_data(&self, base: VdiUuid, children: &[VdiUuid]) -> Result<()> {
        let group = self.now();
        let path = group.volume(base).or_else(|_| group.volume(children[0])).map(|volume| &volume.lv.name);
        let path = lvm::node(&group.vg().name, path.map_or("", String::as_str));
        for child in children {
            let Some(found) = self.named(*child, false) else { continue };
            if self.image_in(&found, *child)?.is_some() {
                let (format, lv) = found;
                let image: std::sync::Arc<dyn Storage> = std::sync::Arc::new(group.storage_for_writing(&lv)?);
                if !layout(format).is_blank(&image)? || is_open(&group.vg().name, &lv.name) {
                    let what = format!("its child {child}, which is to be removed, holds data or is in use");
                    return Err(Error::Damaged { path, what });
                }
            }
        }
        match group.trees().children(base).find(|child| !children.contains(child)) {
            Some(child) => Err(Error::Damaged { path, what: format!("{child} is a child of it as well") }),
            None => Ok(()),
        }
    }

    fn end_leaf(&self, name: &str, vdi: VdiUuid, parent: VdiUuid) -> Result<()> {
        let (own, below, old) = (self.named(vdi, false), self.named(parent, false), self.named(vdi, true));
        let Some(leaf) = old.as_ref().or(own.as_ref()) else { return self.take(&[Step::remove(name)]) };
        if below.is_none() && old.is_none() {
            return self.complete_leaf(name, leaf, parent);
        }
        if own.is_some() && below.is_some() && old.is_some() {
            return self.take(&[Step::remove(&leaf.1.name), Step::remove(name)]);
        }
        // A journal that was left when there was no such merge names no child of this parent.
        if self.image_in(leaf, vdi)?.is_none_or(|node| node.parent != Some(parent)) {
            return self.take(&[Step::remove(name)]);
        }
        let mut back = Vec::new();
        if below.is_none() {
            back.extend(own.as_ref().map(|(format, lv)| Step::rename(&lv.name, image(parent, *format))));
        }
        back.extend(old.as_ref().map(|(format, lv)| Step::rename(&lv.name, image(vdi, *format))));
        self.take(&back)?;
        let mut steps = Vec::new();
        if let Some(leaf) = self.named(vdi, false) {
            steps.extend(self.set_hidden(&leaf, false)?);
        }
        if let Some(below) = self.named(parent, false) {
            steps.extend(self.set_hidden(&below, true)?);
            let locks = lock_tags(&below.1);
            if !locks.is_empty() {
                steps.push(Step::untag(&below.1.name, locks));
            }
            if !below.1.read_only {
                steps.push(Step::SetWritable { name: below.1.name, writable: false });
            }
        }
        steps.push(Step::remove(name));
        self.take(&steps)
    }

    /// The parent has taken the place of the leaf.
    fn complete_leaf(&self, name: &str, leaf: &(Format, Lv), parent: VdiUuid) -> Result<()> {
        let mut steps = self.set_hidden(leaf, false)?;
        if leaf.1.read_only {
            steps.push(Step::SetWritable { name: leaf.1.name.clone(), writable: true });
        }
        steps.push(Step::remove(name));
        self.take(&steps)?;
        self.now().uncount(parent)?;
        self.remove_record(ENDING, parent)?;
        match VolumeName::parse(&leaf.1.name) {
            Some(leaf) => self.retype(ENDING, leaf.vdi, leaf.format),
            None => Ok(()),
        }
    }

    fn end_zero(&self, name: &str, vdi: VdiUuid, from: u64) -> Result<()> {
        let group = self.now();
        if let Some(lv) = group.vg().lv(&format!("LV-{vdi}")) {
            let storage = group.storage_for_writing(lv)?;
            storage.zero_extents(from, lv.size)?;
            (&storage as &dyn Storage).flush()?;
        }
        self.take(&[Step::remove(name)])
    }

    fn end_relink(self: &std::rc::Rc<Self>, name: &str, vdi: VdiUuid) -> Result<()> {
        let (group, forest) = (self.now(), LvhdForest { live: self.clone() });
        let nodes = group.trees();
        let Some(base) = nodes.get(vdi).and_then(|node| node.parent) else {
            return self.take(&[Step::remove(name)]);
        };
        // A server that has an image open may write the header that it knows.
        let in_use = nodes
            .descendants(vdi)
            .into_iter()
            .find(|above| group.volumes().get(above).is_some_and(|volume| is_open(&group.vg().name, &volume.lv.name)));
        if let Some(above) = in_use {
            let why = format!("{above}, a disk above it, is in use; it is ended when that is detached");
            return Err(Error::SrUnavailable { sr: self.own().sr, why });
        }
        forest.name_parent(&nodes, vdi, base)?;
        self.take(&[Step::remove(name)])
    }
}

/// Whether something on this host has the device of a volume open.
fn is_open(vg: &str, volume: &str) -> bool {
    let device = lvm::kernel_device(vg, volume);
    device.and_then(|device| blockdev::user(&device)).is_some_and(|who| !blockdev::is_passing(Some(&who)))
}
