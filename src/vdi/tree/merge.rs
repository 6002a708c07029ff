//! The merge of an image with its parent, or of several that are each the only child of the one before, with the parent of the
//! lowest.
//!
//! A base with one child is there for that child alone. The child's data is written into the base, where no process reads
//! it as long as the child is there; then, in one step, the base takes the child's place. This goes on under a running guest
//! as well, see [`Merge::in_use`].
//!
//! The data of several images goes into one base together: each block that is in the base by then is hidden by an image that is
//! still above it. So a kill leaves every disk as it was, as of one image.
//!
//! The data is written without a lock of the tree: it may take hours. That is safe because a base gets a child by a merge,
//! of which there is one at a time in a tree, or as the copy, or by the revert, of an empty disk that is its child already, under the
//! lock of that disk. The merge of an only child holds that lock, so trees that were read under it know all children of the
//! base. Then the lock of the tree is taken and the trees are read again: the last step is taken only if the image is still
//! what was merged.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::context::{Context, PausedElsewhere};
use crate::datapath;
use crate::error::{Error, Result};
use crate::image::storage::Storage;
use crate::sys::lock::{self, Lock};
use crate::types::{Done, Mode, VdiUuid};
use crate::vdi::format::{Layout, ParentImage, Work};
use crate::vdi::formats::layout;
use crate::vdi::place::{Opened, Place, in_use};
use crate::vdi::served::{self, pause, prepare};
use crate::vdi::tree::chain::{Ancestors, look};
use crate::vdi::tree::forest::{self, Ending, Forest, Fork};
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
pub fn merge(forest: &dyn Forest, nodes: &mut Nodes, vdi: VdiUuid, of: (&Context, &Run)) -> Result<Done> {
    merge_all(forest, nodes, &[vdi], of)
}

/// As [`merge`], of several images at once: all but the last are bases, and each is the only child of the one before. The caller
/// holds the locks of all, and of the parent of the first. `Already` also if they can only be merged one by one.
///
/// # Errors
/// As [`merge`].
pub fn merge_all(
    forest: &dyn Forest,
    nodes: &mut Nodes,
    images: &[VdiUuid],
    (context, run): (&Context, &Run),
) -> Result<Done> {
    // Copied, or made larger, since the trees were read; from now on the lock of the VDI prevents it. A copy of an empty disk
    // leaves the disk as it is, so only the trees tell. An image that other hosts may have open is merged under the
    // lock of the trees.
    let mut is_read = true;
    for vdi in images {
        let node = look(forest, &*forest.place(*vdi)?)?;
        is_read &= nodes.get(*vdi) == Some(&node) && (node.hidden || forest.is_shared());
    }
    if !is_read {
        let _lock = forest.lock(context.deadline)?;
        *nodes = forest.nodes()?;
    }
    let Some(subject) = Subject::of(nodes, images) else { return Ok(Done::Already) };
    match Merge::of(forest, context, run, &subject)?.run(nodes) {
        // Left for the next time.
        Err(Error::VdiInUse { .. } | Error::NotPaused { .. }) => Ok(Done::Already),
        other => other,
    }
}

/// The images that one merge is about.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The uppermost image as it was when the merge began.
    top: (VdiUuid, Node),
    /// Those between it and the base, likewise, from the base upwards.
    between: Vec<(VdiUuid, Node)>,
    base: VdiUuid,
}

impl Subject {
    /// `None`: they are not to be merged, or not at once.
    fn of(nodes: &Nodes, images: &[VdiUuid]) -> Option<Subject> {
        let base = nodes.base_of_only_child(*images.first()?)?;
        let known = |vdi: &VdiUuid| Some((*vdi, nodes.get(*vdi)?.clone()));
        let mut between: Vec<(VdiUuid, Node)> = images.iter().map(known).collect::<Option<_>>()?;
        let subject = Subject { top: between.pop()?, between, base };
        let is_like = |(_, node): &(VdiUuid, Node)| node.hidden && node.format == subject.top.1.format;
        // The base of one image grows before; see `Merge::grow_parent`.
        let size = subject.top.1.virtual_size;
        let is_of_size = |vdi: VdiUuid| nodes.get(vdi).is_some_and(|node| node.virtual_size == size);
        let are_at_once = subject.between.is_empty()
            || subject.between.iter().all(is_like) && subject.all().chain([base]).all(is_of_size);
        (are_at_once && subject.is_still(nodes)).then_some(subject)
    }

    pub(super) fn vdi(&self) -> VdiUuid {
        self.top.0
    }

    /// The images from the base upwards, without the base.
    fn all(&self) -> impl Iterator<Item = VdiUuid> {
        self.between.iter().chain([&self.top]).map(|(vdi, _)| *vdi)
    }

    /// Whether the images and their places in the tree are what they were when the merge began, and they can be merged.
    fn is_still(&self, nodes: &Nodes) -> bool {
        let mut below = self.base;
        self.between.iter().chain([&self.top]).all(|(vdi, node)| {
            let parent = std::mem::replace(&mut below, *vdi);
            nodes.can_merge(*vdi, parent) && nodes.get(*vdi) == Some(node)
        })
    }

    fn ending(&self) -> Ending {
        let (vdi, node) = &self.top;
        let between = self.between.iter().map(|(vdi, _)| *vdi).collect();
        Ending { vdi: *vdi, is_disk: !node.hidden, format: node.format, between, base: self.base }
    }
}

struct Merge<'f> {
    forest: &'f dyn Forest,
    context: &'f Context<'f>,
    run: &'f Run,
    /// That of the uppermost image.
    place: Box<dyn Place + 'f>,
    layout: &'static dyn Layout,
    subject: &'f Subject,
    /// The uppermost image as it was when the merge began.
    node: &'f Node,
    base: VdiUuid,
}

/// What keeps others from the images of a merge while its last steps are taken.
struct Kept {
    _locks: Vec<Lock>,
    pauses: Vec<(PausedElsewhere, Option<datapath::Paused>)>,
    _alone: Option<forest::Kept>,
}

impl Kept {
    /// Whether a guest waits meanwhile.
    fn is_felt(&self, run: &Run) -> bool {
        run.pool().is_some() || self.pauses.iter().any(|(_, here)| here.is_some())
    }
}

impl<'f> Merge<'f> {
    fn of(forest: &'f dyn Forest, context: &'f Context<'f>, run: &'f Run, subject: &'f Subject) -> Result<Merge<'f>> {
        let (vdi, node) = &subject.top;
        let place = forest.place(*vdi)?;
        Ok(Merge { forest, context, run, place, layout: layout(node.format), subject, node, base: subject.base })
    }

    fn vdi(&self) -> VdiUuid {
        self.subject.vdi()
    }

    fn run(&self, nodes: &mut Nodes) -> Result<Done> {
        self.refuse_if_held()?;
        // Growing the parent comes before the merge, which asks this by itself.
        let parent = self.forest.parent_image(self.base, Mode::ReadOnly)?;
        self.check_links(&parent)?;
        // A parent that takes the disk's place has to be of its format.
        if !self.node.hidden && parent.format != self.node.format {
            return Ok(Done::Already);
        }
        drop(parent);
        // A disk that another host has open is seen only when it comes to the last step, and the other host may open it
        // at any moment.
        let may_be_elsewhere = self.place.is_shared() || self.run.pool().is_some();
        if !self.node.hidden && (may_be_elsewhere || served::device(&*self.place)?.is_some()) {
            return if self.subject.between.is_empty() { self.in_use(nodes) } else { Ok(Done::Already) };
        }
        if self.is_larger(nodes) || self.forest.has_fixed_places() {
            let _lock = self.lock_trees(nodes)?;
            let _locks = self.lock_above(nodes)?;
            if !self.subject.is_still(nodes) {
                return Ok(Done::Already);
            }
            self.grow_parent(nodes)?;
            self.forest.make_room_to_merge(self.vdi(), self.base)?;
        }
        self.write_into_parent(&|bytes| self.run.copied(bytes))?;

        // That may have taken hours, in which disks above were made and deleted.
        let above = if datapath::may_serve() { self.forest.nodes()?.descendants(self.vdi()) } else { Vec::new() };
        for above in above {
            match self.forest.place(above) {
                Ok(place) => prepare(&*place, self.soon())?,
                Err(Error::NoVdi { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let begin = || {
            let lock = self.forest.lock(self.context.deadline)?;
            Ok((lock, self.forest.nodes()?))
        };
        let end = |(_lock, mut nodes): (Lock, Nodes), subjects: &[Subject]| (self.end_all(subjects, &mut nodes), nodes);
        let (done, now) = self.run.together.end(self.subject, begin, end)?;
        *nodes = now;
        done
    }

    /// Takes the last steps of these merges. The caller holds the lock of the trees, under which `nodes` were read.
    fn end_all(&self, subjects: &[Subject], nodes: &mut Nodes) -> Vec<Result<Done>> {
        let (mut results, mut together, mut keeping) = (Vec::new(), Vec::new(), Vec::new());
        for (n, subject) in subjects.iter().enumerate() {
            let kept = Merge::of(self.forest, self.context, self.run, subject).and_then(|merge| merge.keep(nodes));
            results.push(match kept {
                Ok(None) => Ok(Done::Already),
                // The I/O of its disks waits, and not for other trees.
                Ok(Some(kept)) if kept.is_felt(self.run) => self.end(&[subject], nodes).remove(0),
                Ok(Some(kept)) => {
                    keeping.push(kept);
                    together.push((n, subject));
                    Ok(Done::Already)
                }
                Err(error) => Err(error),
            });
        }
        let subjects: Vec<&Subject> = together.iter().map(|(_, subject)| *subject).collect();
        let ended = self.end(&subjects, nodes);
        together.iter().zip(ended).for_each(|((n, _), result)| results[*n] = result);
        results
    }

    fn end(&self, subjects: &[&Subject], nodes: &mut Nodes) -> Vec<Result<Done>> {
        if subjects.is_empty() {
            return Vec::new();
        }
        let endings: Vec<Ending> = subjects.iter().map(|subject| subject.ending()).collect();
        let ended = self.forest.end(nodes, &endings);
        let follow = |(subject, result): (&&Subject, Result<()>)| {
            result?;
            subject.between.iter().for_each(|(vdi, _)| nodes.relinked(*vdi));
            match subject.top.1.hidden {
                true => nodes.relinked(subject.vdi()),
                false => nodes.collapsed(subject.vdi(), subject.base),
            }
            Ok(Done::Changed)
        };
        subjects.iter().zip(ended).map(follow).collect()
    }

    /// Keeps others from the images for the last steps. `None`: they were deleted or copied meanwhile. What was merged does no harm,
    /// as no process reads it from the parent. The caller holds the lock of the trees, under which `nodes` were read.
    fn keep(&self, nodes: &Nodes) -> Result<Option<Kept>> {
        let locks = self.lock_above(nodes)?;
        if !self.subject.is_still(nodes) {
            return Ok(None);
        }
        // Another host may have locked one of them.
        self.refuse_if_held()?;
        if !self.node.hidden {
            return Ok(Some(Kept { _locks: locks, pauses: Vec::new(), _alone: None }));
        }
        let pauses = self.pause_above(nodes)?;
        let gone: Vec<VdiUuid> = self.subject.all().collect();
        let alone = self.forest.alone(&gone, self.vdi())?;
        Ok(Some(Kept { _locks: locks, pauses, _alone: Some(alone) }))
    }

    /// Refuses images that are not those that the images above them name. `parent`: that of the lowest.
    ///
    /// # Errors
    /// Those of [`Layout::check_parent`].
    fn check_links(&self, parent: &ParentImage) -> Result<()> {
        let check =
            |image: &Opened, below: Option<&ParentImage>| self.layout.check_parent(&***image, below.unwrap_or(parent));
        let mut below: Option<ParentImage> = None;
        for (vdi, _) in &self.subject.between {
            let image = self.forest.parent_image(*vdi, Mode::ReadOnly)?;
            check(&image.image, below.as_ref())?;
            below = Some(image);
        }
        check(&self.place.open(Mode::ReadOnly)?, below.as_ref())
    }

    /// Refuses to write into a parent that a user reads as a disk, and to remove such an image. The caller has the locks of
    /// both, so no user of this host begins now.
    ///
    /// # Errors
    /// [`Error::VdiInUse`].
    fn refuse_if_held(&self) -> Result<()> {
        let between = self.subject.between.iter().map(|(vdi, _)| *vdi);
        let hidden = between.chain(Some(self.vdi()).filter(|_| self.node.hidden));
        [self.base].into_iter().chain(hidden).try_for_each(|vdi| served::refuse_if_held(&*self.forest.place(vdi)?))
    }

    /// Merges a disk in use with its parent. Its I/O waits meanwhile, so it must not hold much: else its image is set
    /// aside as a base, which is merged while the disk goes on in an empty one.
    fn in_use(&self, nodes: &mut Nodes) -> Result<Done> {
        prepare(&*self.place, self.soon())?;
        let _lock = self.forest.lock(self.context.deadline)?;
        *nodes = self.forest.nodes()?;
        if !self.subject.is_still(nodes) {
            return Ok(Done::Already);
        }
        self.grow_parent(nodes)?;
        let _elsewhere = PausedElsewhere::begin_of(self.run.pool(), self.vdi())?;
        let _pause = pause(&*self.place)?;
        let _alone = self.forest.alone(&[self.vdi()], self.vdi())?;
        if self.place.held()? > MERGED_AT_ONCE {
            self.forest.fork(&Fork { vdi: self.vdi(), base: VdiUuid::random(), dest: None, is_fine: false })?;
            *nodes = self.forest.nodes()?;
            return Ok(Done::Changed);
        }
        self.forest.make_room_to_merge(self.vdi(), self.base)?;
        // Its I/O waits, so this is not slowed down.
        self.write_into_parent(&|_| self.run.stop.goes_on())?;
        self.end(&[self.subject], nodes).remove(0)
    }

    /// The deadline of a wait for the server of one disk, see [`SOON`].
    fn soon(&self) -> Instant {
        self.context.deadline.min(Instant::now() + SOON)
    }

    /// Locks the trees and reads them into `nodes`.
    fn lock_trees(&self, nodes: &mut Nodes) -> Result<Lock> {
        let lock = self.forest.lock(self.context.deadline)?;
        *nodes = self.forest.nodes()?;
        Ok(lock)
    }

    /// Keeps all other calls from what is above this image: a call that opens a chain while one of its images goes or grows, or
    /// writes a header that gets another parent meanwhile, would bring back what was before. The caller holds the lock of the
    /// trees, under which `nodes` were read.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while another call works on one of them. That call may wait for the tree, so it is not waited for.
    fn lock_above(&self, nodes: &Nodes) -> Result<Vec<Lock>> {
        let mut locks = Vec::new();
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
        let places: Vec<Box<dyn Place>> =
            self.subject.all().map(|vdi| self.forest.place(vdi)).collect::<Result<_>>()?;
        let opened: Vec<Opened> = places.iter().map(|place| place.open(Mode::ReadOnly)).collect::<Result<_>>()?;
        // Dropped before these.
        let images: Vec<Arc<dyn Storage>> = opened.iter().map(|image| (**image).clone()).collect();
        let parent = self.forest.parent_image(self.base, Mode::ReadWrite)?;
        let ancestors = Ancestors::of(self.forest, parent.image.path().to_owned(), parent.format);
        let progress = |bytes| {
            self.run.is_copied(self.subject.all(), bytes);
            self.run.tell(self.context.progress);
        };
        let work = Work { progress: &progress, copied };
        let outcome = self.layout.coalesce(&images, &parent, &|name| ancestors.find(name), work);
        if outcome.is_err() {
            self.run.stop.check()?;
        }
        outcome
    }
}
