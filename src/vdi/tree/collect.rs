//! The collector of an SR: bases without children are removed and bases with one child are merged with it, until nothing is
//! left to do. What is done next is a pure function of the trees and of what happened so far ([`next`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::context::Context;
use crate::error::{Error, Result, one_line};
use crate::sys::lock;
use crate::sys::syslog;
use crate::types::{Done, VdiUuid};
use crate::vdi::served::refuse_if_held;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::merge::merge;
use crate::vdi::tree::nodes::Nodes;

/// How often in one run the data of a disk in use is set aside, at most.
const MOST_ROUNDS: u32 = 8;

/// Why images could not be merged or removed.
pub type Failures = BTreeMap<VdiUuid, Error>;

/// What happened so far in one run of the collector.
#[derive(Debug, Default)]
pub struct Seen {
    /// Images that are not merged in this run (any more).
    pub left: BTreeSet<VdiUuid>,
    /// Images that failed. Such a base is not removed in this run.
    pub failures: Failures,
}

/// What is done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// There are bases that nothing needs any more.
    RemoveGarbage,
    /// The image goes into its parent, whose only child it is.
    Merge(VdiUuid),
    /// The image would be merged or removed but for another image: says which, and why.
    Refuse(VdiUuid, String),
    /// Nothing is left to do.
    End,
}

/// Chooses what is done next.
pub fn next(nodes: &Nodes, seen: &Seen) -> Step {
    if garbage(nodes, &seen.failures).next().is_some() {
        return Step::RemoveGarbage;
    }
    let is_told = |base: &VdiUuid| seen.failures.contains_key(base) || seen.left.contains(base);
    if let Some((base, claim)) = nodes.withheld().find(|(base, _)| !is_told(base)) {
        return Step::Refuse(base, format!("it is not removed: {claim}"));
    }
    // Bases first: a disk in use is merged with what was set aside of it only when that was.
    let (bases, disks): (Vec<_>, Vec<_>) = nodes.iter().partition(|(_, node)| node.hidden);
    let mut mergeable = bases.into_iter().chain(disks).map(|(vdi, _)| vdi).filter(|vdi| !seen.left.contains(vdi));
    match mergeable.find(|vdi| nodes.base_of_only_child(*vdi).is_some()) {
        None => Step::End,
        Some(vdi) => match unmergeable(nodes, vdi) {
            Some(why) => Step::Refuse(vdi, format!("it is not merged: {why}")),
            None => Step::Merge(vdi),
        },
    }
}

/// The bases that nothing needs any more and whose removal has not failed yet.
fn garbage(nodes: &Nodes, failures: &Failures) -> impl Iterator<Item = VdiUuid> {
    nodes.garbage().filter(|base| !failures.contains_key(base))
}

/// Why an image that is its parent's only known child must not be merged with it: it, its parents or one of its children
/// cannot be used, or is not what the names say; or another image may be a child of either.
fn unmergeable(nodes: &Nodes, vdi: VdiUuid) -> Option<String> {
    let state = |vdi| nodes.get(vdi).map(|node| &node.state).filter(|state| !state.is_healthy());
    let of_child = |child| state(child).map(|state| format!("its child {child} cannot be used: {state}"));
    let of_base = || nodes.claim(nodes.base_of_only_child(vdi)?);
    state(vdi)
        .map(|state| state.to_string())
        .or_else(|| nodes.children(vdi).find_map(of_child))
        .or_else(|| nodes.claim(vdi).or_else(of_base).map(|claim| claim.to_string()))
}

/// Gives back the space that nothing needs. One image that cannot be merged keeps no other from being merged.
///
/// # Errors
/// [`Error::NotMerged`] at the end, with every failure; [`Error::SrUnavailable`] while another process collects the SR;
/// [`Error::Busy`] if the lock of the trees cannot be had.
pub fn collect(forest: &dyn Forest, context: &Context) -> Result<Done> {
    let _alone = forest.collecting(context.deadline)?;
    let (mut done, mut seen) = (Done::Already, Seen::default());
    // What disks held when their data was last set aside, because they are in use, and how often that was.
    let mut rounds: BTreeMap<VdiUuid, (u64, u32)> = BTreeMap::new();
    let mut nodes = read_locked(forest, context)?;
    loop {
        if nodes.is_foreign_work {
            return Err(Error::SrUnavailable {
                sr: forest.sr(),
                why: "the collector of another storage manager left a journal in it and has to finish first".to_owned(),
            });
        }
        let vdi = match next(&nodes, &seen) {
            Step::End => break,
            Step::RemoveGarbage => {
                let _lock = forest.lock(context.deadline)?;
                nodes = forest.nodes()?;
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

/// What the collector would do with one image now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// Nothing needs the base.
    Remove(VdiUuid),
    /// The image is the only child of its parent and would become one with it.
    Merge { image: VdiUuid, into: VdiUuid },
    /// The image stays as it is; says why.
    Leave(VdiUuid, String),
}

/// What [`collect`] would do now, in its order, as far as the trees tell: an image that another call uses by then is left out.
/// Changes nothing.
///
/// # Errors
/// [`Error::Busy`] if the lock of the trees cannot be had; [`Error::Io`].
pub fn plan(forest: &dyn Forest, context: &Context) -> Result<Vec<Planned>> {
    let (mut nodes, mut seen) = (read_locked(forest, context)?, Seen::default());
    let mut planned = Vec::new();
    loop {
        match next(&nodes, &seen) {
            Step::End => return Ok(planned),
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
    forest.nodes()
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
/// never touched. The caller holds the lock of the trees, under which `nodes` were read. What cannot be removed is left to
/// sr_collect, and the log says so.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Format, State};
    use crate::vdi::tree::nodes::tests::{nodes, vdi};
    use crate::vdi::tree::nodes::{Node, judge};

    /// The place of a refused base may not be found: it is gone since, or has two images. Nothing is then told of it.
    #[test]
    fn a_base_is_refused_once() {
        let unread = |node: &Node| Node { unread: vec![Format::Vhd], ..node.clone() };
        let forest = nodes(&[(1, 0, true), (2, 0, false)]);
        let forest =
            forest.iter().map(|(at, node)| (at, if at == vdi(2) { unread(node) } else { node.clone() })).collect();
        let mut seen = Seen::default();
        assert!(matches!(next(&forest, &seen), Step::Refuse(base, _) if base == vdi(1)));
        seen.left.insert(vdi(1));
        assert_eq!(next(&forest, &seen), Step::End);
    }

    #[test]
    fn garbage_goes_before_anything_is_merged() {
        let forest = nodes(&[(1, 0, true), (2, 1, false), (3, 0, true)]);
        let mut seen = Seen::default();
        assert_eq!(next(&forest, &seen), Step::RemoveGarbage);
        seen.failures.insert(vdi(3), Error::Usage("in use".to_owned()));
        assert_eq!(next(&forest, &seen), Step::Merge(vdi(2)));
    }

    #[test]
    fn bases_are_merged_before_disks() {
        // 5 ← 4 ← 1: the disk has the smallest UUID.
        let forest = nodes(&[(5, 0, true), (4, 5, true), (1, 4, false)]);
        let mut seen = Seen::default();
        assert_eq!(next(&forest, &seen), Step::Merge(vdi(4)));
        seen.left.insert(vdi(4));
        assert_eq!(next(&forest, &seen), Step::Merge(vdi(1)));
        seen.left.insert(vdi(1));
        assert_eq!(next(&forest, &seen), Step::End);
    }

    #[test]
    fn a_base_of_two_and_a_disk_that_is_a_parent_are_left_alone() {
        let forest = nodes(&[(1, 0, true), (2, 1, false), (3, 1, false), (4, 0, false), (5, 4, false)]);
        assert_eq!(next(&forest, &Seen::default()), Step::End);
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_says_why() {
        let broken = |which: u32| -> Nodes {
            nodes(&[(1, 0, true), (2, 1, true), (3, 2, false), (4, 2, false)])
                .iter()
                .map(|(at, node)| match at == vdi(which) {
                    true => (at, Node { state: State::Broken("torn".to_owned()), ..node.clone() }),
                    false => (at, node.clone()),
                })
                .collect()
        };
        assert_eq!(
            next(&broken(2), &Seen::default()),
            Step::Refuse(vdi(2), format!("it is not merged: {}", broken(2).get(vdi(2)).unwrap().state))
        );
        match next(&broken(3), &Seen::default()) {
            Step::Refuse(at, why) => assert!(at == vdi(2) && why.contains(&vdi(3).to_string()), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    const FORMATS: [Format; 2] = [Format::Vhd, Format::Qcow2];

    /// Trees of up to 24 images of two formats: the parent of each is one of its format before it, or none. A leaf is hidden
    /// now and then. `unread`: now and then a leaf cannot be read. Then its parent is not known, and with the trees come the
    /// parents that such leaves have in truth.
    fn forests(unread: bool) -> impl Strategy<Value = (Nodes, Vec<VdiUuid>)> {
        let images = proptest::collection::vec((any::<u8>(), 0..4u8, 0..6u8, 0..2usize), 1..24);
        images.prop_map(move |of| {
            let mut parents: Vec<u32> = Vec::new();
            for (n, (parent, _, _, format)) in of.iter().enumerate() {
                let parent = *parent as usize % (n + 1);
                let fits = parent > 0 && of[parent - 1].3 == *format;
                parents.push(if fits { parent as u32 } else { 0 });
            }
            let (mut all, mut lost) = (Vec::new(), Vec::new());
            for (n, (_, hidden, read, format)) in (1..).zip(&of) {
                let (is_parent, parent) = (parents.contains(&n), parents[n as usize - 1]);
                let format = FORMATS[*format];
                let parent = (parent != 0).then(|| vdi(parent));
                let node = Node { hidden: is_parent || *hidden == 0, parent, ..Node::alone(format, 1 << 20) };
                if unread && !is_parent && *read == 0 {
                    lost.extend(parent);
                    let state = State::Broken("torn".to_owned());
                    all.push((vdi(n), Node { state, unread: vec![format], hidden: false, parent: None, ..node }));
                } else {
                    all.push((vdi(n), node));
                }
            }
            (all.into_iter().collect(), lost)
        })
    }

    /// Does to the trees what the collector would, with every merge and removal that it tries, until it ends. The answer is
    /// what it leaves.
    fn collected(mut now: Nodes) -> std::result::Result<Nodes, TestCaseError> {
        let mut seen = Seen::default();
        let steps = 2 * now.iter().count();
        for step in 0.. {
            prop_assert!(step <= steps, "it goes on for ever");
            match next(&now, &seen) {
                Step::End => break,
                Step::RemoveGarbage => {
                    while let Some(base) = { garbage(&now, &seen.failures).next() } {
                        now.remove(base);
                    }
                }
                Step::Merge(vdi) => {
                    let base = now.base_of_only_child(vdi).unwrap();
                    prop_assert!(now.can_merge(vdi, base));
                    match now.get(vdi).unwrap().hidden {
                        true => now.relinked(vdi),
                        false => now.collapsed(vdi, base),
                    }
                }
                Step::Refuse(vdi, why) => {
                    prop_assert!(seen.left.insert(vdi), "{vdi} is refused again");
                    seen.failures.insert(vdi, Error::Usage(why));
                }
            }
            let all = judged(now.iter().map(|(vdi, node)| (vdi, node.clone())).collect());
            let is_whole = |node: &Node| node.state.is_healthy() || !node.unread.is_empty();
            prop_assert!(all.iter().all(|(_, node)| is_whole(node)), "a parent is missing");
        }
        Ok(now)
    }

    /// The trees with names of files changed by hand: each pair of names is swapped, where the second may be a new one.
    fn renamed(nodes: &Nodes, pairs: &[(VdiUuid, VdiUuid)]) -> Nodes {
        let mut all: BTreeMap<VdiUuid, Node> = nodes.iter().map(|(vdi, node)| (vdi, node.clone())).collect();
        for (one, other) in pairs {
            let (first, second) = (all.remove(one), all.remove(other));
            all.extend(first.map(|node| (*other, node)).into_iter().chain(second.map(|node| (*one, node))));
        }
        judged(all.into_iter().collect())
    }

    fn judged(mut all: Vec<(VdiUuid, Node)>) -> Nodes {
        let mut refs: Vec<(VdiUuid, &mut Node)> = all.iter_mut().map(|(vdi, node)| (*vdi, node)).collect();
        judge(&mut refs, &|_| None);
        all.into_iter().collect()
    }

    /// Checks each step of the collector against what the images are in truth, whatever their names: `parents` has the true
    /// parent of each image, and [`Node::virtual_size`] tells which image it is.
    fn nothing_is_lost(
        mut now: Nodes,
        mut parents: BTreeMap<u64, Option<u64>>,
    ) -> std::result::Result<(), TestCaseError> {
        let mut seen = Seen::default();
        loop {
            let is = |vdi: VdiUuid| now.get(vdi).unwrap().virtual_size;
            let needs = |parents: &BTreeMap<u64, Option<u64>>, base: u64| -> Vec<u64> {
                parents.iter().filter(|(_, parent)| **parent == Some(base)).map(|(image, _)| *image).collect()
            };
            match next(&now, &seen) {
                Step::End => return Ok(()),
                Step::Refuse(vdi, why) => {
                    prop_assert!(seen.left.insert(vdi), "{vdi} is refused again");
                    seen.failures.insert(vdi, Error::Usage(why));
                }
                Step::RemoveGarbage => {
                    let base = garbage(&now, &seen.failures).next().unwrap();
                    prop_assert!(needs(&parents, is(base)).is_empty(), "{base} is removed");
                    parents.remove(&is(base));
                    now.remove(base);
                }
                Step::Merge(vdi) => {
                    let base = now.base_of_only_child(vdi).unwrap();
                    let (image, parent, hidden) = (is(vdi), is(base), now.get(vdi).unwrap().hidden);
                    prop_assert_eq!(needs(&parents, parent), vec![image], "{} is merged with {}", vdi, base);
                    parents.remove(&image);
                    parents.values_mut().filter(|above| **above == Some(image)).for_each(|above| *above = Some(parent));
                    match hidden {
                        true => now.relinked(vdi),
                        false => now.collapsed(vdi, base),
                    }
                }
            }
            now = judged(now.iter().map(|(vdi, node)| (vdi, node.clone())).collect());
        }
    }

    fn disks(nodes: &Nodes) -> Vec<VdiUuid> {
        nodes.iter().filter(|(_, node)| !node.hidden).map(|(vdi, _)| vdi).collect()
    }

    fn bases(nodes: &Nodes, format: Format) -> Vec<(VdiUuid, &Node)> {
        nodes.iter().filter(|(_, node)| node.hidden && node.format == format).collect()
    }

    proptest! {
        /// Whatever the trees look like, the collector ends, keeps every disk, and leaves no base that is garbage or is there
        /// for one child.
        #[test]
        fn the_collector_ends_with_the_least_that_the_disks_need((before, _) in forests(false)) {
            let after = collected(before.clone())?;
            prop_assert_eq!(disks(&after), disks(&before));
            for (vdi, node) in after.iter().filter(|(_, node)| node.hidden) {
                prop_assert!(after.children(vdi).len() > 1, "{vdi} {node:?}");
            }
        }

        /// All the data of a disk may be in its base, and a copy of its leaf may make it readable again.
        #[test]
        fn an_image_that_cannot_be_read_keeps_every_base_that_may_be_its_parent((before, lost) in forests(true)) {
            let after = collected(before.clone())?;
            prop_assert_eq!(disks(&after), disks(&before));
            for parent in lost {
                prop_assert_eq!(after.get(parent), before.get(parent), "the parent of an unread image");
            }
            for format in FORMATS {
                match before.unread(format) {
                    Some(_) => prop_assert_eq!(bases(&after, format), bases(&before, format)),
                    None => {
                        let all_needed = bases(&after, format).iter().all(|(base, _)| after.children(*base).len() > 1);
                        prop_assert!(all_needed, "the other format is collected all the same");
                    }
                }
            }
        }

        /// Files that were renamed by hand get their names back once that is seen, and then every disk must be whole. Where
        /// images have no identity, two bases that changed their names cannot be told apart, so that is not tried; nor are
        /// two changes, with which a base can have the name of another.
        #[test]
        fn images_with_wrong_names_are_kept_with_all_that_they_need(
            (before, _) in forests(false),
            with_identity in any::<bool>(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4),
        ) {
            let number = |vdi: VdiUuid| before.iter().position(|(at, _)| at == vdi).unwrap() as u64;
            let id = |vdi| with_identity.then(|| uuid::Uuid::from_u128(number(vdi).into()));
            let all: Nodes = before
                .iter()
                .map(|(vdi, node)| {
                    let parent_id = node.parent.and_then(id);
                    (vdi, Node { virtual_size: number(vdi), id: id(vdi), parent_id, ..node.clone() })
                })
                .collect();
            let parents = before.iter().map(|(vdi, node)| (number(vdi), node.parent.map(number))).collect();
            let names: Vec<VdiUuid> = before.iter().map(|(vdi, _)| vdi).chain([vdi(99)]).collect();
            let is_base = |vdi| before.get(vdi).is_some_and(|node| node.hidden);
            let changes: Vec<(VdiUuid, VdiUuid)> = changes
                .iter()
                .map(|(one, other)| (*one.get(&names), *other.get(&names)))
                .filter(|(one, other)| with_identity || !(is_base(*one) && is_base(*other)))
                .take(if with_identity { 3 } else { 1 })
                .collect();
            nothing_is_lost(renamed(&all, &changes), parents)?;
        }
    }
}
