//! The next step of the collector: a pure function of the trees and of what happened so far in this run ([`next()`]).

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;
use crate::types::VdiUuid;
use crate::vdi::tree::nodes::Nodes;

/// Why images could not be merged or removed.
pub type Failures = BTreeMap<VdiUuid, Error>;

/// The results so far in one run of the collector.
#[derive(Debug, Default)]
pub struct Seen {
    /// Images that are not merged in this run (any more).
    pub left: BTreeSet<VdiUuid>,
    /// Images that failed. Such a base is not removed in this run.
    pub failures: Failures,
}

/// The next step of the collector.
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

/// Chooses what is done next. Of images for which `is_meant` says no, nothing is merged or refused.
pub fn next(nodes: &Nodes, seen: &Seen, is_meant: &dyn Fn(VdiUuid) -> bool) -> Step {
    let mut withheld = None;
    for (base, claim) in nodes.childless_bases().filter(|(base, _)| !seen.failures.contains_key(base)) {
        match claim {
            None => return Step::RemoveGarbage,
            Some(claim) if withheld.is_none() && !seen.left.contains(&base) && is_meant(base) => {
                withheld = Some((base, claim));
            }
            Some(_) => {}
        }
    }
    if let Some((base, claim)) = withheld {
        return Step::Refuse(base, format!("it is not removed: {claim}"));
    }
    // Bases first: a disk in use is merged with what was set aside of it only when that was.
    let (bases, disks): (Vec<_>, Vec<_>) = nodes.iter().partition(|(_, node)| node.hidden);
    let mut mergeable = bases.into_iter().chain(disks).map(|(vdi, _)| vdi).filter(|vdi| !seen.left.contains(vdi));
    match mergeable.find(|vdi| nodes.base_of_only_child(*vdi).is_some() && is_meant(*vdi)) {
        None => Step::End,
        Some(vdi) => match unmergeable(nodes, vdi) {
            Some(why) => Step::Refuse(vdi, format!("it is not merged: {why}")),
            None => Step::Merge(vdi),
        },
    }
}

/// The bases that nothing needs any more and whose removal has not failed yet.
pub(super) fn garbage(nodes: &Nodes, failures: &Failures) -> impl Iterator<Item = VdiUuid> {
    nodes.garbage().filter(|base| !failures.contains_key(base))
}

/// Why an image that is its parent's only known child must not be merged with it: it, its parents or one of its children
/// cannot be used, or is not what the names say; or another image may be a child of either.
pub(super) fn unmergeable(nodes: &Nodes, vdi: VdiUuid) -> Option<String> {
    let state = |vdi| nodes.get(vdi).map(|node| &node.state).filter(|state| !state.is_healthy());
    let of_child = |child| state(child).map(|state| format!("its child {child} cannot be used: {state}"));
    let of_base = || nodes.claim(nodes.base_of_only_child(vdi)?);
    state(vdi)
        .map(|state| state.to_string())
        .or_else(|| nodes.children(vdi).find_map(of_child))
        .or_else(|| nodes.claim(vdi).or_else(of_base).map(|claim| claim.to_string()))
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
        assert!(matches!(next(&forest, &seen, &|_| true), Step::Refuse(base, _) if base == vdi(1)));
        seen.left.insert(vdi(1));
        assert_eq!(next(&forest, &seen, &|_| true), Step::End);
    }

    #[test]
    fn garbage_goes_before_anything_is_merged() {
        let forest = nodes(&[(1, 0, true), (2, 1, false), (3, 0, true)]);
        let mut seen = Seen::default();
        assert_eq!(next(&forest, &seen, &|_| true), Step::RemoveGarbage);
        seen.failures.insert(vdi(3), Error::Usage("in use".to_owned()));
        assert_eq!(next(&forest, &seen, &|_| true), Step::Merge(vdi(2)));
    }

    #[test]
    fn bases_are_merged_before_disks() {
        // 5 ← 4 ← 1: the disk has the smallest UUID.
        let forest = nodes(&[(5, 0, true), (4, 5, true), (1, 4, false)]);
        let mut seen = Seen::default();
        assert_eq!(next(&forest, &seen, &|_| true), Step::Merge(vdi(4)));
        seen.left.insert(vdi(4));
        assert_eq!(next(&forest, &seen, &|_| true), Step::Merge(vdi(1)));
        seen.left.insert(vdi(1));
        assert_eq!(next(&forest, &seen, &|_| true), Step::End);
    }

    #[test]
    fn a_base_of_two_and_a_disk_that_is_a_parent_are_left_alone() {
        let forest = nodes(&[(1, 0, true), (2, 1, false), (3, 1, false), (4, 0, false), (5, 4, false)]);
        assert_eq!(next(&forest, &Seen::default(), &|_| true), Step::End);
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
            next(&broken(2), &Seen::default(), &|_| true),
            Step::Refuse(vdi(2), format!("it is not merged: {}", broken(2).get(vdi(2)).unwrap().state))
        );
        match next(&broken(3), &Seen::default(), &|_| true) {
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
            match next(&now, &seen, &|_| true) {
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
            match next(&now, &seen, &|_| true) {
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
