//! The collector of an SR: bases without children are removed and bases with one child are merged with it, until nothing is
//! left to do. [`next()`] chooses what is done next.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::context::Context;
use crate::error::{Error, Result, one_line};
use crate::sys::lock;
use crate::sys::syslog;
use crate::types::{Done, Gain, VdiUuid};
use crate::vdi::served::refuse_if_held;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::gain::{Tables, of_steps};
use crate::vdi::tree::merge::merge;
use crate::vdi::tree::next::{Failures, Seen, Step, garbage, next};
use crate::vdi::tree::nodes::Nodes;

/// How often in one run the data of a disk in use is set aside, at most.
const MOST_ROUNDS: u32 = 8;

/// Gives back the space that nothing needs. One image that cannot be merged keeps no other from being merged.
///
/// # Errors
/// [`Error::NotMerged`] at the end, with every failure; [`Error::SrUnavailable`] while another process collects the SR;
/// [`Error::Busy`] if the lock of the trees cannot be had.
pub fn collect(forest: &dyn Forest, context: &Context) -> Result<Done> {
    let _alone = forest.collecting(context.deadline)?;
    let (mut done, mut seen) = (Done::Already, Seen::default());
    // The bytes that disks held when their data was last set aside, because they are in use, and how often that was.
    let mut rounds: BTreeMap<VdiUuid, (u64, u32)> = BTreeMap::new();
    let mut nodes = read_locked(forest, context)?;
    loop {
        let vdi = match next(&nodes, &seen) {
            Step::End => break,
            Step::RemoveGarbage => {
                let _lock = forest.lock(context.deadline)?;
                nodes = read(forest)?;
                remove_garbage(forest, &mut nodes, &mut seen.failures);
                done = Done::Changed;
                continue;
            }
            Step::Refuse(vdi, what) => {
                match forest.place(vdi) {
                    Ok(place) => drop(seen.failures.insert(vdi, Error::Damaged { path: place.path(), what })),
                    // An image that is gone since has nothing to tell.
                    Err(Error::NoVdi { .. }) => {}
                    Err(error) => drop(seen.failures.insert(vdi, error)),
                }
                seen.left.insert(vdi);
                continue;
            }
            Step::Merge(vdi) => vdi,
        };
        if nodes.get(vdi).is_some_and(|node| !node.hidden) {
            let Some(holds) =
                forest.place(vdi).and_then(|place| place.usage()).map(|usage| usage.allocated).into_found()?
            else {
                seen.left.insert(vdi);
                continue;
            };
            let (before, times) = rounds.get(&vdi).copied().unwrap_or((u64::MAX, 0));
            if holds >= before || times == MOST_ROUNDS {
                // Written to as fast as it is merged.
                seen.left.insert(vdi);
                continue;
            }
            rounds.insert(vdi, (holds, times + 1));
        }
        match merge_locked(forest, &mut nodes, vdi, context) {
            Ok(Done::Changed) => done = Done::Changed,
            Ok(Done::Already) => drop(seen.left.insert(vdi)),
            // Not this image's fault, and the next would wait as long.
            Err(error @ (Error::SrUnavailable { .. } | Error::Busy { .. })) => return Err(error),
            Err(error) => {
                seen.failures.insert(vdi, error);
                seen.left.insert(vdi);
                // It may have failed halfway.
                nodes = read_locked(forest, context)?;
            }
        }
    }
    for (vdi, failure) in &seen.failures {
        syslog::write(&format!("SR {}: {vdi} is left as it is: {}", forest.sr(), one_line(failure)));
    }
    match seen.failures.is_empty() {
        true => Ok(done),
        false => Err(Error::NotMerged { sr: forest.sr(), failures: seen.failures.into_iter().collect() }),
    }
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
    let size = |vdi: VdiUuid| forest.place(vdi).and_then(|place| place.usage()).map_or(0, |usage| usage.allocated);
    let sizes: BTreeMap<VdiUuid, u64> = images.map(|vdi| (vdi, size(vdi))).collect();
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
        match next(&nodes, &seen) {
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
fn read_locked(forest: &dyn Forest, context: &Context) -> Result<Nodes> {
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

/// Merges one image under its lock and that of its parent, which a call that attaches or locks a base waits for. Images that
/// another call works on are left for the next time, as are those that were deleted since the trees were read.
fn merge_locked(forest: &dyn Forest, nodes: &mut Nodes, vdi: VdiUuid, context: &Context) -> Result<Done> {
    let mut held = Vec::new();
    for image in [Some(vdi), nodes.base_of_only_child(vdi)].into_iter().flatten() {
        match lock::take(&image.to_string(), "vdi", lock::Kind::Exclusive, Instant::now()) {
            Ok(lock) => held.push((image, lock)),
            Err(lock::Refused::TimedOut { .. }) => return Ok(Done::Already),
            Err(lock::Refused::Failed(error)) => return Err(error),
        }
    }
    let done = merge(forest, nodes, vdi, context).into_found()?.unwrap_or(Done::Already);
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
