//! The lock of an SR's trees, and what a crash left of a change of one: it is completed or undone.

use std::rc::Rc;
use std::time::Instant;

use super::directory::FileSr;
use super::ending::remove_gone;
use super::layout::{CHANGE, LOCK, PARAMS, TREE_LOCK, beside, format_of, has_image, image_name, remove_leftovers};
use super::listing::Listing;
use super::records::{damaged_record, encode, read_change};
use super::unborn::{is_child, is_unborn};
use crate::error::{Error, Result, one_line};
use crate::image::storage::FileStorage;
use crate::sys::durable::Dir;
use crate::sys::lock::{self, Lock};
use crate::sys::register;
use crate::sys::syslog;
use crate::types::{Format, Mode, VdiUuid};
use crate::vdi::layout;
use crate::vdi::tree::change::Change;
use crate::vdi::tree::claims::Claim;
use crate::vdi::tree::nodes::Nodes;

impl FileSr {
    /// Locks the trees of the SR, see [`crate::vdi::tree::forest::Forest::lock`].
    ///
    /// # Errors
    /// [`Error::Busy`] at the deadline; what completing a change says.
    pub(super) fn lock_trees(&self, dir: &Dir, deadline: Instant) -> Result<Lock> {
        let mut lock = lock::take(&self.sr.to_string(), "tree", lock::Kind::Exclusive, deadline);
        if self.shared {
            let file = dir.lock_file(TREE_LOCK)?;
            lock = lock.and_then(|lock| lock.among_hosts(file, &dir.join(TREE_LOCK), deadline));
        }
        let lock = lock.map_err(|refused| {
            refused.or_timed_out(|holder| Error::Busy {
                sr: self.sr,
                holder: holder.to_owned(),
                what: "a tree of its images".to_owned(),
            })
        })?;
        if let Some(unfinished) = self.recover_change(dir)? {
            syslog::write(&format!("a change of a tree that was killed is left undone: {}", one_line(&unfinished)));
        }
        Ok(lock)
    }

    /// Completes or undoes what a crash left of a change. The caller holds the tree's lock.
    ///
    /// The answer says why a relink was given up, if it was: one image that cannot be changed must not keep all trees of
    /// the SR from changing for ever.
    pub(super) fn recover_change(&self, dir: &Dir) -> Result<Option<Error>> {
        let Some(change) = read_change(dir)? else { return Ok(None) };
        let mut unfinished = None;
        // The call that began the change may live on without its lock, on a host that was away from the server for
        // long. The files that it would still rename must be gone before anything is undone.
        if self.shared {
            for name in dir.names()? {
                dir.sweep_temporary(&name)?;
            }
            dir.sync()?;
        }
        let changes = if let Change::Merges { of } = change { of } else { vec![change] };
        for change in &changes {
            match *change {
                Change::Fork { vdi, base, dest, format } => recover_fork(dir, vdi, base, dest, format)?,
                Change::Relink { .. } => {
                    let nodes = self.trees(dir, &Listing::read(dir)?)?;
                    match self.give_children(dir, &nodes, change)? {
                        None => remove_gone(dir, std::slice::from_ref(change))?,
                        Some(error) => unfinished = Some(error),
                    }
                }
                Change::Collapse { .. } => {
                    if recover_collapse(dir, change)? {
                        remove_gone(dir, std::slice::from_ref(change))?;
                    }
                }
                Change::Compose { vdi, base, format } => unfinished = self.finish_compose(dir, vdi, base, format)?,
                // None has others in it.
                Change::Merges { .. } => return Err(damaged_record(dir, CHANGE)),
            }
        }
        end_change(dir)?;
        Ok(unfinished)
    }

    /// Gives every child of an image to the base of a relink, durably. Can be done again from any point of it.
    ///
    /// The answer says why a child could not be given away, or which image may be another child of one that goes;
    /// these images then stay. As the base holds all that they do, a child shows the same with either as its parent, so
    /// this is no half-done change.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is no such base; [`Error::Io`].
    pub(super) fn give_children(&self, dir: &Dir, nodes: &Nodes, relink: &Change) -> Result<Option<Error>> {
        let Change::Relink { vdi, base, format, ref between } = *relink else { return Ok(None) };
        let Some(base_format) = format_of(dir, base)? else {
            return Err(Error::Damaged {
                path: dir.join(CHANGE),
                what: format!("names {base} as the parent to be, and there is no such image"),
            });
        };
        let own = Rc::new(Dir::open(dir.path())?);
        let parent = self.place(own.clone(), base, base_format).as_parent(Mode::ReadOnly)?;
        if let Some((vdi, claim)) = claimed(nodes, vdi, between) {
            let path = dir.join(&image_name(vdi, format));
            return Ok(Some(Error::Damaged { path, what: claim.to_string() }));
        }
        let old = match self.place(own.clone(), vdi, format).as_parent(Mode::ReadOnly) {
            Ok(old) => Some(old),
            Err(Error::NoVdi { .. }) => None,
            Err(error) => return Ok(Some(error)),
        };
        for child in nodes.children(vdi) {
            let give = || -> Result<()> {
                // Its own format: looked for in another, it would be taken for gone.
                let format = nodes.get(child).map_or(format, |node| node.format);
                let image = self.place(own.clone(), child, format).open_image(Mode::ReadWrite)?;
                // A child that names another image by this one's name has lost its parent. If such a child were given
                // to the base, it would show bytes that were never its own.
                if let Some(old) = &old {
                    layout(format).check_parent(&**image, old)?;
                }
                layout(format).set_parent(&**image, &parent)
            };
            if let Err(error) = give() {
                return Ok(Some(error));
            }
        }
        Ok(None)
    }

    /// Makes `base` the parent of `vdi` and hides it. Can be done again from any point of it.
    ///
    /// The parent is named first: for readers that know nothing of this change, an image that is hidden and that no child names
    /// is one that nothing needs. What is stored beside `base` as a disk goes. The answer says why the parent could not be named; `base` then stays the disk that it was.
    ///
    /// # Errors
    /// [`Error::Io`] if `base` cannot be hidden.
    pub(super) fn finish_compose(
        &self,
        dir: &Dir,
        vdi: VdiUuid,
        base: VdiUuid,
        format: Format,
    ) -> Result<Option<Error>> {
        let own = Rc::new(Dir::open(dir.path())?);
        let name = || -> Result<()> {
            let parent = self.place(own.clone(), base, format).as_parent(Mode::ReadOnly)?;
            let child = self.place(own.clone(), vdi, format).open_image(Mode::ReadWrite)?;
            layout(format).set_parent(&**child, &parent)
        };
        let named = name();
        // The step that names the parent may have been taken although it says that it failed.
        if named.is_ok() || is_child(dir, vdi, base, format)? {
            set_hidden(dir, base, format, true)?;
            // A base has no names, no keys and no users.
            dir.remove(&beside(base, PARAMS))?;
            register::remove(dir, &beside(base, LOCK))?;
        }
        Ok(named.err())
    }

    /// Removes the image of a fork that was killed; waits for one of another host that is under way.
    ///
    /// # Errors
    /// Those of [`FileSr::lock_trees`].
    pub(super) fn remove_unborn(&self, dir: &Dir, vdi: VdiUuid) -> Result<bool> {
        if !is_unborn(dir, vdi)? {
            return Ok(false);
        }
        drop(self.lock_trees(dir, self.deadline.end())?);
        Ok(!has_image(dir, vdi)?)
    }
}

/// An image other than their own children that may need one of these. Those of them that are gone after a crash are no reason.
fn claimed(nodes: &Nodes, vdi: VdiUuid, between: &[VdiUuid]) -> Option<(VdiUuid, Claim)> {
    let own: Vec<VdiUuid> = between.iter().copied().chain([vdi]).collect();
    let claim_of = |image: &VdiUuid| {
        let others = own.iter().filter(|other| *other != image);
        let mut nodes = nodes.clone();
        others.for_each(|other| drop(nodes.remove(*other)));
        Some((*image, nodes.claim(*image)?))
    };
    if between.is_empty() { Some((vdi, nodes.claim(vdi)?)) } else { own.iter().find_map(claim_of) }
}

/// Records a change before its first step. The caller holds the lock of the trees, so no other is recorded.
///
/// # Errors
/// [`Error::Damaged`] if one is recorded; [`Error::Io`].
pub(super) fn begin_change(dir: &Dir, change: &Change) -> Result<()> {
    match dir.create(CHANGE, &encode(change))? {
        true => Ok(()),
        false => Err(damaged_record(dir, CHANGE)),
    }
}

/// Removes the record of a change that is complete or undone, once that is durable.
pub(super) fn end_change(dir: &Dir) -> Result<()> {
    dir.sync()?;
    forget_change(dir)
}

/// Removes the record of a change that is durable, or that was given up.
pub(super) fn forget_change(dir: &Dir) -> Result<()> {
    dir.remove(CHANGE)?;
    dir.sync()
}

fn set_hidden(dir: &Dir, vdi: VdiUuid, format: Format, hidden: bool) -> Result<()> {
    let name = image_name(vdi, format);
    let image = FileStorage::of_regular(dir.open_file(&name, true)?, dir.join(&name));
    layout(format).set_hidden(&image, hidden)
}

fn recover_fork(dir: &Dir, vdi: VdiUuid, base: VdiUuid, dest: Option<VdiUuid>, format: Format) -> Result<()> {
    let name = image_name(base, format);
    let unmake = |dest: VdiUuid| -> Result<()> {
        if is_child(dir, dest, base, format)? {
            dir.remove(&image_name(dest, format))?;
            dir.sync()?;
        }
        remove_leftovers(dir, dest).map(drop)
    };
    match (dir.lookup(&image_name(vdi, format))?, dir.lookup(&name)?) {
        // No filesystem has to keep the order of two names that were synced together.
        (_, None) => dest.map_or(Ok(()), unmake)?,
        // Still one file: the disk was not changed yet.
        (Some(disk), Some(found)) if disk.id == found.id => {
            dest.map_or(Ok(()), unmake)?;
            dir.remove(&name)?;
        }
        (Some(_), Some(_)) => set_hidden(dir, base, format, true)?,
        // NFS renames an image that a reader has open before it renames another one over it.
        (None, Some(_)) => {
            dest.map_or(Ok(()), unmake)?;
            dir.rename(&name, &image_name(vdi, format))?;
        }
    }
    Ok(())
}

/// Undoes a collapse, or completes it up to the removal of its images, which is what is left to do if the answer is true.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn recover_collapse(dir: &Dir, collapse: &Change) -> Result<bool> {
    let Change::Collapse { vdi, base, format, ref between } = *collapse else { return Ok(false) };
    let (name, leaf) = (image_name(base, format), image_name(vdi, format));
    match (dir.lookup(&leaf)?, dir.lookup(&name)?) {
        (None, None) => Ok(false),
        // Of a base that somebody took away, the leaf still needs the images between the two.
        (Some(_), None) => is_child(dir, vdi, between.last().copied().unwrap_or(base), format).map(|is| !is),
        // It has happened.
        (Some(disk), Some(found)) if disk.id == found.id => Ok(true),
        // Until the base has the leaf's name, the leaf is all there and the base is what it was.
        (Some(_), Some(_)) => set_hidden(dir, base, format, true).map(|()| false),
        // NFS renames a leaf that a reader has open before it renames over it. The base holds all of it.
        (None, Some(_)) => {
            set_hidden(dir, base, format, false)?;
            dir.rename(&name, &leaf)?;
            // The images that had it as a parent are there until it has the name for good.
            dir.sync().map(|()| true)
        }
    }
}
