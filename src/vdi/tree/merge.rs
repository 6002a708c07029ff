//! The merge of one image with its parent.
//!
//! A base with one child is there for that child alone. The child's data is written into the base, where no process reads
//! it as long as the child is there; then, in one step, the base takes the child's place. This goes on under a running guest
//! as well, see [`Merge::in_use`].
//!
//! The data is written without a lock of the tree: it may take hours. That is safe because a base gets a child by a merge,
//! of which there is one at a time in a tree, or as the copy, or by the revert, of an empty disk that is its child already, under the
//! lock of that disk. The merge of an only child holds that lock, so trees that were read under it know all children of the
//! base. Then the lock of the tree is taken and the trees are read again: the last step is taken only if the image is still
//! what was merged.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::context::{Context, PausedElsewhere};
use crate::datapath;
use crate::error::{Error, Result};
use crate::sys::lock::{self, Lock};
use crate::types::{Done, Mode, VdiUuid};
use crate::vdi::format::{Layout, Work};
use crate::vdi::formats::layout;
use crate::vdi::place::{Place, in_use};
use crate::vdi::served::{self, pause, prepare};
use crate::vdi::tree::chain::{Ancestors, look};
use crate::vdi::tree::forest::{Forest, Fork};
use crate::vdi::tree::nodes::{Node, Nodes};
use crate::vdi::tree::run::Run;

/// Bytes that a disk in use may hold to be merged while its I/O waits: half a second of a slow disk's time.
const MERGED_AT_ONCE: u64 = 32 << 20;

/// How long a merge waits for the server of one disk: what it leaves is merged the next time, and others wait meanwhile.
const SOON: Duration = Duration::from_secs(5);

/// Merges the image of `vdi` with its parent, if it is the parent's only child and the parent is no disk. The caller holds
/// the locks of the VDI and of its parent. Long work; the tree is locked for its last step only. `nodes` are the trees as
/// the caller read them under their lock, and afterwards as this left them.
///
/// A disk in use goes on. If it holds too much to wait for, that is set aside in a base of its own, to be merged
/// first, and the answer is `Changed` as well. `Already`: it is not to be merged, or not now because of who uses it.
///
/// # Errors
/// [`Error::Damaged`] if the parent is another image than the one that the child names; [`Error::SrUnavailable`] if a call ends
/// the collector; [`Error::Io`].
pub fn merge(forest: &dyn Forest, nodes: &mut Nodes, vdi: VdiUuid, (context, run): (&Context, &Run)) -> Result<Done> {
    let place = forest.place(vdi)?;
    // Copied, or made larger, since the trees were read; from now on the lock of the VDI prevents it. A copy of an empty disk
    // leaves the disk as it is, so only the trees tell. An image that other hosts may have open is merged under the
    // lock of the trees.
    let node = look(forest, &*place)?;
    if nodes.get(vdi) != Some(&node) || !node.hidden && !forest.is_shared() {
        let _lock = forest.lock(context.deadline)?;
        *nodes = forest.nodes()?;
    }
    let Some((base, node)) = nodes.base_of_only_child(vdi).zip(nodes.get(vdi).cloned()) else {
        return Ok(Done::Already);
    };
    if !nodes.can_merge(vdi, base) {
        return Ok(Done::Already);
    }
    let merge = Merge { forest, context, run, base, place, layout: layout(node.format), node };
    match merge.run(nodes) {
        // Left for the next time.
        Err(Error::VdiInUse { .. } | Error::NotPaused { .. }) => Ok(Done::Already),
        other => other,
    }
}

struct Merge<'f> {
    forest: &'f dyn Forest,
    context: &'f Context<'f>,
    run: &'f Run,
    place: Box<dyn Place + 'f>,
    layout: &'static dyn Layout,
    /// The image as it was when the merge began.
    node: Node,
    base: VdiUuid,
}

impl Merge<'_> {
    fn vdi(&self) -> VdiUuid {
        self.place.vdi()
    }

    fn run(&self, nodes: &mut Nodes) -> Result<Done> {
        self.refuse_if_held()?;
        // Growing the parent comes before the merge, which asks this by itself.
        let parent = self.forest.parent_image(self.base, Mode::ReadOnly)?;
        self.layout.check_parent(&**self.place.open(Mode::ReadOnly)?, &parent)?;
        // A parent that takes the disk's place has to be of its format.
        if !self.node.hidden && parent.format != self.node.format {
            return Ok(Done::Already);
        }
        drop(parent);
        // A disk that another host has open is seen only when it comes to the last step, and the other host may open it
        // at any moment.
        let may_be_elsewhere = self.place.is_shared() || self.run.pool().is_some();
        if !self.node.hidden && (may_be_elsewhere || served::device(&*self.place)?.is_some()) {
            return self.in_use(nodes);
        }
        if self.is_larger(nodes) || self.forest.has_fixed_places() {
            let _locks = self.lock_above(nodes)?;
            if !self.is_still(nodes) {
                return Ok(Done::Already);
            }
            self.grow_parent(nodes)?;
            self.forest.make_room_to_merge(self.vdi(), self.base)?;
        }
        self.write_into_parent(&|bytes| self.run.copied(bytes))?;

        // That may have taken hours, in which disks above were made and deleted.
        for above in self.forest.nodes()?.descendants(self.vdi()) {
            match self.forest.place(above) {
                Ok(place) => prepare(&*place, self.soon())?,
                Err(Error::NoVdi { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let _locks = self.lock_above(nodes)?;
        // Deleted or copied meanwhile: what was merged does no harm, as no process reads it from the parent.
        if !self.is_still(nodes) {
            return Ok(Done::Already);
        }
        // Another host may have locked one of them.
        self.refuse_if_held()?;
        if self.node.hidden {
            let _pauses = self.pause_above(nodes)?;
            let _alone = self.forest.alone(&[self.vdi()], self.vdi())?;
            self.forest.relink(nodes, self.vdi(), self.base)?;
            nodes.relinked(self.vdi());
        } else {
            self.forest.collapse(self.vdi(), self.base)?;
            nodes.collapsed(self.vdi(), self.base);
        }
        Ok(Done::Changed)
    }

    /// Refuses to write into a parent that a user reads as a disk, and to remove such an image. The caller has the locks of
    /// both, so no user of this host begins now.
    ///
    /// # Errors
    /// [`Error::VdiInUse`].
    fn refuse_if_held(&self) -> Result<()> {
        served::refuse_if_held(&*self.forest.place(self.base)?)?;
        match self.node.hidden {
            true => served::refuse_if_held(&*self.place),
            false => Ok(()),
        }
    }

    /// Merges a disk in use with its parent. Its I/O waits meanwhile, so it must not hold much: else its image is set
    /// aside as a base, which is merged while the disk goes on in an empty one.
    fn in_use(&self, nodes: &mut Nodes) -> Result<Done> {
        prepare(&*self.place, self.soon())?;
        let _lock = self.forest.lock(self.context.deadline)?;
        *nodes = self.forest.nodes()?;
        if !self.is_still(nodes) {
            return Ok(Done::Already);
        }
        self.grow_parent(nodes)?;
        let _elsewhere = PausedElsewhere::begin_of(self.run.pool(), self.vdi())?;
        let _pause = pause(&*self.place)?;
        let _alone = self.forest.alone(&[self.vdi()], self.vdi())?;
        if self.place.held()? > MERGED_AT_ONCE {
            self.forest.fork(&Fork { vdi: self.vdi(), base: VdiUuid::random(), dest: None, is_fine: false })?;
            *nodes = self.forest.nodes()?;
        } else {
            self.forest.make_room_to_merge(self.vdi(), self.base)?;
            // Its I/O waits, so this is not slowed down.
            self.write_into_parent(&|_| self.run.stop.goes_on())?;
            self.forest.collapse(self.vdi(), self.base)?;
            nodes.collapsed(self.vdi(), self.base);
        }
        Ok(Done::Changed)
    }

    /// Whether the image and its place in the tree are what they were when the merge began.
    fn is_still(&self, nodes: &Nodes) -> bool {
        nodes.can_merge(self.vdi(), self.base) && nodes.get(self.vdi()) == Some(&self.node)
    }

    /// The deadline of a wait for the server of one disk, see [`SOON`].
    fn soon(&self) -> Instant {
        self.context.deadline.min(Instant::now() + SOON)
    }

    /// Locks the tree, reads it into `nodes`, and keeps all other calls from what is above this image: a call that opens a
    /// chain while one of its images goes or grows, or writes a header that gets another parent meanwhile, would bring back
    /// what was before.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while another call works on one of them. That call may wait for the tree, so it is not waited for.
    fn lock_above(&self, nodes: &mut Nodes) -> Result<Vec<Lock>> {
        let mut locks = vec![self.forest.lock(self.context.deadline)?];
        *nodes = self.forest.nodes()?;
        for vdi in nodes.descendants(self.vdi()) {
            let lock = lock::take(&vdi.to_string(), "vdi", lock::Kind::Exclusive, Instant::now());
            let busy = |who: &str| in_use(&*self.place, format!("{who}, which works on a disk above it"));
            locks.push(lock.map_err(|refused| refused.or_timed_out(busy))?);
        }
        Ok(locks)
    }

    /// Makes the servers of all disks that have this image in their chains close it, on all hosts.
    fn pause_above(&self, nodes: &Nodes) -> Result<Vec<(PausedElsewhere, Option<datapath::Paused>)>> {
        let above = nodes.descendants(self.vdi()).into_iter();
        let is_disk = |vdi: &VdiUuid| nodes.get(*vdi).is_some_and(|node| !node.hidden);
        let pause_all = |vdi: VdiUuid| {
            let pool = self.run.pool().filter(|_| is_disk(&vdi));
            let elsewhere = PausedElsewhere::begin_of(pool, vdi)?;
            Ok((elsewhere, pause(&*self.forest.place(vdi)?)?))
        };
        above.map(pause_all).collect()
    }

    fn is_larger(&self, nodes: &Nodes) -> bool {
        nodes.get(self.base).is_some_and(|parent| parent.virtual_size < self.node.virtual_size)
    }

    /// Makes the parent as large as this image. The caller holds the lock of the tree, under which `nodes` were read.
    fn grow_parent(&self, nodes: &mut Nodes) -> Result<()> {
        if !self.is_larger(nodes) {
            return Ok(());
        }
        let parent = self.forest.place(self.base)?;
        // Growing moves blocks, so whatever reads the parent has to let go of it: the servers above this image, and its own.
        let own = self.run.pool().filter(|_| !self.node.hidden);
        let _elsewhere = PausedElsewhere::begin_of(own, self.vdi())?;
        let _pause = pause(&*self.place)?;
        let _pauses = self.pause_above(nodes)?;
        let _alone = self.forest.alone(&[self.base], self.vdi())?;
        layout(parent.format()).resize(&*parent.open(Mode::ReadWrite)?, self.node.virtual_size)?;
        nodes.grown(self.base, self.node.virtual_size);
        Ok(())
    }

    /// Writes all that this image holds into its parent. `copied` is told bytes, and says whether the work goes on.
    ///
    /// # Errors
    /// [`Error::SrUnavailable`] if a call ends the collector meanwhile: the parent then holds a part, as after a kill.
    fn write_into_parent(&self, copied: &(dyn Fn(u64) -> ControlFlow<()> + Sync)) -> Result<()> {
        let (image, parent) = (self.place.open(Mode::ReadOnly)?, self.forest.parent_image(self.base, Mode::ReadWrite)?);
        let ancestors = Ancestors::of(self.forest, parent.image.path().to_owned(), parent.format);
        let progress = |bytes| {
            self.run.is_copied(self.vdi(), bytes);
            self.run.tell(self.context.progress);
        };
        let work = Work { progress: &progress, copied };
        let outcome = self.layout.coalesce(&image, &parent, &|name| ancestors.find(name), work);
        if outcome.is_err() {
            self.run.stop.check()?;
        }
        outcome
    }
}
