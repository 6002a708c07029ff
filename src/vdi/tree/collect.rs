//! The collector of an SR: bases without children are removed and bases with one child are merged with it, until nothing is
//! left to do. [`next()`] chooses what is done next.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::context::Context;
use crate::datapath;
use crate::error::{Error, Result, one_line};
use crate::sys::lock;
use crate::sys::syslog;
use crate::types::{Done, Gain, VdiUuid};
use crate::vdi::served::refuse_if_held;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::gain::{Tables, of_steps};
use crate::vdi::tree::merge::merge_all;
use crate::vdi::tree::next::{Failures, Seen, Step, garbage, next, unmergeable};
use crate::vdi::tree::nodes::Nodes;
use crate::vdi::tree::parallel;
use crate::vdi::tree::run::{Collecting, Run, Taken};

/// Bytes that images may hold that are merged together.
const MOST_AT_ONCE: u64 = 64 << 20;

/// How often in one run the data of a disk in use is set aside, at most.
const MOST_ROUNDS: u32 = 8;

/// Gives back the space that nothing needs. One image that cannot be merged keeps no other from being merged. A call that asks
/// for the end of the collector is heard between two steps and within a merge. Independent trees are merged at the same time.
///
/// # Errors
/// [`Error::NotMerged`] at the end, with every failure; [`Error::SrUnavailable`] while another process collects the SR, and
/// after a call ended it; [`Error::Busy`] if the lock of the trees cannot be had.
pub fn collect(forest: &dyn Forest, collecting: &Collecting, context: &Context) -> Result<Done> {
    let wait = context.deadline.saturating_duration_since(Instant::now());
    let _alone = forest.collecting(context.deadline)?;
    let run = Run::begin(forest.sr(), collecting, wait);
    let nodes = read_locked(forest, context)?;
    let planned = steps(nodes.clone());
    let merges = planned.iter().filter_map(|step| match step {
        Planned::Merge { image, .. } => Some((*image, size_of(forest, *image))),
        _ => None,
    });
    let merges: Vec<(VdiUuid, u64)> = merges.collect();
    run.begun(merges.len(), merges.iter().map(|(_, bytes)| bytes).sum());
    let mut collector = Collector::new(forest, &run, context, nodes);
    if parallel::merge_trees(&mut collector, &merges)? {
        collector.nodes = read_locked(forest, &collector.context())?;
    }
    collector.go_on(None)?;
    let Collector { done, seen, .. } = collector;
    for (vdi, failure) in &seen.failures {
        syslog::write(&format!("SR {}: {vdi} is left as it is: {}", forest.sr(), one_line(failure)));
    }
    match seen.failures.is_empty() {
        true => Ok(done),
        false => Err(Error::NotMerged { sr: forest.sr(), failures: seen.failures.into_iter().collect() }),
    }
}

/// The bytes of the SR that an image takes; of one that is gone none.
fn size_of(forest: &dyn Forest, vdi: VdiUuid) -> u64 {
    forest.place(vdi).and_then(|place| place.held()).unwrap_or(0)
}

/// The work of one thread of a run, and what it has seen.
pub(super) struct Collector<'c> {
    pub forest: &'c dyn Forest,
    pub run: &'c Run,
    /// That of the call. Its deadline is not used: see [`Collector::context`].
    pub of_call: &'c Context<'c>,
    pub nodes: Nodes,
    pub seen: Seen,
    pub done: Done,
    /// The bytes that disks held when their data was last set aside, because they are in use, and how often that was.
    rounds: BTreeMap<VdiUuid, (u64, u32)>,
}

impl<'c> Collector<'c> {
    /// `nodes`: the trees, read under their lock.
    pub fn new(forest: &'c dyn Forest, run: &'c Run, of_call: &'c Context<'c>, nodes: Nodes) -> Collector<'c> {
        let (seen, rounds) = (Seen::default(), BTreeMap::new());
        Collector { forest, run, of_call, nodes, seen, done: Done::Already, rounds }
    }

    /// The context of one step. A run takes hours, and each of its waits as long as a wait of the call may.
    pub fn context(&self) -> Context<'c> {
        let deadline = Instant::now() + self.run.wait;
        Context { deadline, progress: self.of_call.progress, others: self.of_call.others.clone() }
    }

    /// Merges and removes until nothing is left to do; with a `root`, until nothing is left to merge in its tree.
    ///
    /// # Errors
    /// [`Error::SrUnavailable`] if a call ended the run; [`Error::Busy`] if the lock of the trees cannot be had.
    pub fn go_on(&mut self, root: Option<VdiUuid>) -> Result<()> {
        // Whether nothing was done since the trees were read as a whole.
        let mut is_looked_at = true;
        loop {
            self.run.stop.check()?;
            let nodes = &self.nodes;
            let is_meant = |vdi| root.is_none_or(|root| nodes.chain(vdi).last() == Some(&root));
            match next(nodes, &self.seen, &is_meant) {
                Step::End if is_looked_at || root.is_some() => return Ok(()),
                // Calls of the last hours may have left more to do.
                Step::End => {
                    self.nodes = read_locked(self.forest, &self.context())?;
                    is_looked_at = true;
                }
                Step::RemoveGarbage => {
                    self.remove_garbage()?;
                    is_looked_at = false;
                }
                Step::Refuse(vdi, what) => self.refuse(vdi, what),
                Step::Merge(vdi) => is_looked_at &= self.merge(vdi)? == Done::Already,
            }
        }
    }

    fn remove_garbage(&mut self) -> Result<()> {
        let lock = self.forest.lock(self.context().deadline)?;
        self.nodes = read(self.forest)?;
        remove_garbage(self.forest, &mut self.nodes, &mut self.seen.failures);
        drop(lock);
        self.done = Done::Changed;
        self.run.taken(&Taken::Removed);
        Ok(())
    }

    fn refuse(&mut self, vdi: VdiUuid, what: String) {
        match self.forest.place(vdi) {
            Ok(place) => drop(self.seen.failures.insert(vdi, Error::Damaged { path: place.path(), what })),
            // An image that is gone since has nothing to tell.
            Err(Error::NoVdi { .. }) => {}
            Err(error) => drop(self.seen.failures.insert(vdi, error)),
        }
        self.seen.left.insert(vdi);
    }

    /// Merges one image. `Already`: it is left, or has failed.
    fn merge(&mut self, vdi: VdiUuid) -> Result<Done> {
        if self.nodes.get(vdi).is_some_and(|node| !node.hidden) {
            let holds = self.forest.place(vdi).and_then(|place| place.held());
            let Some(holds) = holds.into_found()? else {
                self.seen.left.insert(vdi);
                return Ok(Done::Already);
            };
            let (before, times) = self.rounds.get(&vdi).copied().unwrap_or((u64::MAX, 0));
            if holds >= before || times == MOST_ROUNDS {
                // Written to as fast as it is merged.
                self.seen.left.insert(vdi);
                return Ok(Done::Already);
            }
            self.rounds.insert(vdi, (holds, times + 1));
        }
        let images = at_once(self.forest, &self.nodes, &self.seen, (vdi, self.run));
        if images.len() > 1 {
            match self.merge_all(&images) {
                Ok(Done::Changed) => return Ok(Done::Changed),
                Err(error) if ends_run(&error) => return Err(error),
                // One by one it is seen which of them it is.
                Ok(Done::Already) | Err(_) => self.nodes = read_locked(self.forest, &self.context())?,
            }
        }
        match self.merge_all(&[vdi]) {
            Ok(Done::Changed) => return Ok(Done::Changed),
            Ok(Done::Already) => drop(self.seen.left.insert(vdi)),
            Err(error) if ends_run(&error) => return Err(error),
            Err(error) => {
                self.seen.failures.insert(vdi, error);
                self.seen.left.insert(vdi);
                // It may have failed halfway.
                self.nodes = read_locked(self.forest, &self.context())?;
            }
        }
        Ok(Done::Already)
    }

    /// Merges images, each the only child of the one before, with the parent of the first.
    fn merge_all(&mut self, images: &[VdiUuid]) -> Result<Done> {
        let [lowest, ..] = images else { return Ok(Done::Already) };
        let into = self.nodes.base_of_only_child(*lowest).unwrap_or(*lowest);
        let sizes: Vec<(VdiUuid, u64)> = images.iter().map(|vdi| (*vdi, size_of(self.forest, *vdi))).collect();
        self.run.merging(&sizes, into);
        let context = self.context();
        let merged = merge_locked(self.forest, &mut self.nodes, images, (&context, self.run));
        let done = merged.as_ref().is_ok_and(|done| *done == Done::Changed);
        self.run.merged(&sizes, done || images.len() == 1);
        if done {
            self.done = Done::Changed;
            for image in images {
                let are_both = self.nodes.get(*image).and(self.nodes.get(into)).is_some();
                let merged = Taken::Merged { image: *image, into };
                self.run.taken(&if are_both { Taken::SetAside { disk: *image } } else { merged });
            }
        }
        merged
    }
}

/// Whether a failure is not that of an image, and the next one would wait as long.
fn ends_run(error: &Error) -> bool {
    matches!(error, Error::SrUnavailable { .. } | Error::Busy { .. })
}

/// The images that are merged together with one: those below and above it that are each the only child of the one before, from the
/// lowest upwards. The syncs of one merge are then enough for all. Until its end, what they hold is there twice, so they do not
/// hold much.
fn at_once(forest: &dyn Forest, nodes: &Nodes, seen: &Seen, (vdi, run): (VdiUuid, &Run)) -> Vec<VdiUuid> {
    let mut images = VecDeque::from([vdi]);
    let Some(mut room) = MOST_AT_ONCE.checked_sub(size_of(forest, vdi)).filter(|_| forest.ends_chains()) else {
        return images.into();
    };
    let mut fits = |vdi| {
        let is_meant = !seen.left.contains(&vdi) && nodes.base_of_only_child(vdi).is_some();
        let left = room.checked_sub(size_of(forest, vdi)).filter(|_| is_meant && unmergeable(nodes, vdi).is_none());
        room = left.unwrap_or(room);
        left.is_some()
    };
    let is_hidden = |vdi| nodes.get(vdi).is_some_and(|node| node.hidden);
    while let Some(below) = nodes.base_of_only_child(images[0]).filter(|below| fits(*below)) {
        images.push_front(below);
    }
    // A disk in use is merged in its own way.
    let is_idle = |disk| {
        let may_be_elsewhere = forest.is_shared() || run.pool().is_some();
        !may_be_elsewhere && forest.place(disk).is_ok_and(|place| matches!(datapath::find(&place.path()), Ok(None)))
    };
    while let Some(last) = images.back().filter(|last| is_hidden(**last)) {
        let mut children = nodes.children(*last);
        match (children.next(), children.next()) {
            (Some(above), None) if (is_hidden(above) || is_idle(above)) && fits(above) => images.push_back(above),
            _ => break,
        }
    }
    images.into()
}

/// The decision that the collector would make now about one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// Nothing needs the base.
    Remove(VdiUuid),
    /// The image is the only child of its parent and would become one with it.
    Merge { image: VdiUuid, into: VdiUuid },
    /// The image stays as it is; says why.
    Leave(VdiUuid, String),
}

/// The decisions of the collector, and what they would free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectPlan {
    /// In the collector's order.
    pub steps: Vec<Planned>,
    /// The size of each image that would be removed or merged, in bytes of the SR.
    pub sizes: BTreeMap<VdiUuid, u64>,
    pub gain: Gain,
}

/// The decisions that [`collect`] would make now, as far as the trees tell. [`collect`] leaves out an image that another call
/// uses by then. Changes nothing.
///
/// # Errors
/// [`Error::SrUnavailable`] as [`collect`]; [`Error::Busy`] if the lock of the trees cannot be had; [`Error::Io`].
pub fn plan(forest: &dyn Forest, context: &Context) -> Result<CollectPlan> {
    let steps = steps(read_locked(forest, context)?);
    let images = steps.iter().flat_map(|step| match step {
        Planned::Remove(base) => vec![*base],
        Planned::Merge { image, into } => vec![*image, *into],
        Planned::Leave(..) => Vec::new(),
    });
    // An image that is gone since takes nothing.
    let sizes: BTreeMap<VdiUuid, u64> = images.map(|vdi| (vdi, size_of(forest, vdi))).collect();
    let tables = Tables::of(forest);
    let gain = of_steps(&steps, &|vdi| sizes.get(&vdi).copied().unwrap_or(0), &|vdi| tables.held(vdi));
    Ok(CollectPlan { steps, sizes, gain })
}

/// The decisions of the collector, in its order, if it began with these trees: none while another storage manager changes them.
pub fn steps(mut nodes: Nodes) -> Vec<Planned> {
    let (mut planned, mut seen) = (Vec::new(), Seen::default());
    if nodes.is_foreign_work {
        return planned;
    }
    loop {
        match next(&nodes, &seen, &|_| true) {
            Step::End => return planned,
            Step::RemoveGarbage => {
                let bases: Vec<VdiUuid> = garbage(&nodes, &seen.failures).collect();
                for base in bases {
                    planned.push(Planned::Remove(base));
                    nodes.remove(base);
                }
            }
            Step::Refuse(vdi, why) => {
                planned.push(Planned::Leave(vdi, why));
                seen.left.insert(vdi);
            }
            Step::Merge(image) => {
                planned.extend(nodes.base_of_only_child(image).map(|into| Planned::Merge { image, into }));
                seen.left.insert(image);
            }
        }
    }
}

/// The trees while no call changes one. A merge begins with what they say: read during a snapshot, they may show the new
/// base with one of its two children only, and the data of that one must not go into the base.
pub(super) fn read_locked(forest: &dyn Forest, context: &Context) -> Result<Nodes> {
    let _lock = forest.lock(context.deadline)?;
    read(forest)
}

/// The trees, if no other storage manager is at work on them: a base that looks like garbage may be the disk then.
fn read(forest: &dyn Forest) -> Result<Nodes> {
    let nodes = forest.nodes()?;
    match nodes.is_foreign_work {
        false => Ok(nodes),
        true => Err(Error::SrUnavailable {
            sr: forest.sr(),
            why: "the collector of another storage manager left a journal in it and has to finish first".to_owned(),
        }),
    }
}

/// Merges images, see [`merge_all`], under their locks and that of the parent of the first, which a call that attaches or locks a
/// base waits for. Images that another call works on are left for the next time, as are those that were deleted since the trees
/// were read.
pub(super) fn merge_locked(
    forest: &dyn Forest,
    nodes: &mut Nodes,
    images: &[VdiUuid],
    of: (&Context, &Run),
) -> Result<Done> {
    let base = images.first().and_then(|lowest| nodes.base_of_only_child(*lowest));
    let mut held = Vec::new();
    for image in images.iter().copied().chain(base) {
        match lock::take(&image.to_string(), "vdi", lock::Kind::Exclusive, Instant::now()) {
            Ok(lock) => held.push((image, lock)),
            Err(lock::Refused::TimedOut { .. }) => return Ok(Done::Already),
            Err(lock::Refused::Failed(error)) => return Err(error),
        }
    }
    let done = merge_all(forest, nodes, images, of).into_found()?.unwrap_or(Done::Already);
    for (image, _lock) in held {
        if nodes.get(image).is_none() {
            lock::forget(&image.to_string(), "vdi");
        }
    }
    Ok(done)
}

/// Removes the bases that nothing needs, and those that nothing needs then, but for those that `failures` names; adds to
/// these what cannot be removed. The caller has the SR, or the lock of its trees, under which `nodes` were read.
pub fn remove_garbage(forest: &dyn Forest, nodes: &mut Nodes, failures: &mut Failures) {
    while let Some(base) = { garbage(nodes, failures).next() } {
        match remove_base(forest, base) {
            Ok(()) => drop(nodes.remove(base)),
            Err(error) => drop(failures.insert(base, error)),
        }
    }
}

/// Removes a base and those below it, from there to the root, as long as nothing needs them: a base that still has a child is
/// never touched. The caller holds the lock of the trees, under which `nodes` were read. A base that cannot be removed
/// is left to sr_collect, and the log says so.
pub fn remove_unneeded(forest: &dyn Forest, nodes: &mut Nodes, base: VdiUuid) {
    let mut next = Some(base);
    while let Some(base) = next.filter(|base| nodes.is_garbage(*base)) {
        next = nodes.remove(base).and_then(|node| node.parent);
        if let Err(error) = remove_base(forest, base) {
            syslog::write(&format!("base {base} is left to sr_collect: {}", one_line(&error)));
            break;
        }
    }
}

/// Removes a base that no image needs.
///
/// # Errors
/// [`Error::VdiInUse`] while it is attached on this host, or locked: a base can be read like any disk.
fn remove_base(forest: &dyn Forest, base: VdiUuid) -> Result<()> {
    let place = forest.place(base)?;
    refuse_if_held(&*place)?;
    place.remove()
}

trait Found<T> {
    /// `None`: the VDI is gone.
    fn into_found(self) -> Result<Option<T>>;
}

impl<T> Found<T> for Result<T> {
    fn into_found(self) -> Result<Option<T>> {
        match self {
            Ok(found) => Ok(Some(found)),
            Err(Error::NoVdi { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }
}
