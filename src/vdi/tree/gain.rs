//! The space that deleting a disk would free, and the space that the collector would free. Removals are counted exactly; the
//! gain of a merge is estimated by the tables of its images, and no data is read.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::types::{Gain, ImageUse, Mode, State, VdiInfo, VdiUuid};
use crate::vdi::formats::layout;
use crate::vdi::tree::collect::Planned;
use crate::vdi::tree::extents::Extents;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::nodes::Nodes;

/// The size of each image by itself, in bytes of the SR.
pub type Sizes<'a> = &'a dyn Fn(VdiUuid) -> u64;

/// The stretches of its disk that an image holds; `None` for an image whose tables cannot be read.
pub type HeldBy<'a> = &'a dyn Fn(VdiUuid) -> Option<Extents>;

/// The tables of the images of a forest, and which of them turned out to be damaged.
pub struct Tables<'f> {
    forest: &'f dyn Forest,
    damaged: RefCell<BTreeMap<VdiUuid, State>>,
}

impl<'f> Tables<'f> {
    pub fn of(forest: &'f dyn Forest) -> Tables<'f> {
        Tables { forest, damaged: RefCell::default() }
    }

    /// The stretches of its disk that an image holds; `None` for an image whose tables cannot be read.
    pub fn held(&self, vdi: VdiUuid) -> Option<Extents> {
        // A server may be writing them: what is damaged is so at a second look as well.
        match self.read(vdi).or_else(|_| self.read(vdi)) {
            Ok(held) => Some(held),
            Err(error @ Error::Damaged { .. }) => {
                self.damaged.borrow_mut().insert(vdi, State::of(&error));
                None
            }
            Err(_) => None,
        }
    }

    fn read(&self, vdi: VdiUuid) -> Result<Extents> {
        let place = self.forest.place(vdi)?;
        let image = place.open(Mode::ReadOnly)?;
        layout(place.format()).held(&image)
    }

    /// The images whose tables were read and are damaged.
    pub fn damaged(self) -> BTreeMap<VdiUuid, State> {
        self.damaged.into_inner()
    }
}

/// The space that the deletion of a disk frees besides the disk's own image. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// The bases that go with the disk, because nothing else needs them.
    pub bases: u64,
    /// About what a merge frees that sr_collect can do only after the deletion.
    pub merge: u64,
}

/// The space that deleting each disk would free. An image that others have as their parent is not in the answer.
pub fn of_deletions(nodes: &Nodes, size: Sizes, held: HeldBy) -> BTreeMap<VdiUuid, Freed> {
    let mut freed: BTreeMap<VdiUuid, Freed> = BTreeMap::new();
    // The disks whose deletion makes a merge possible, by the base and the image that goes into it.
    let mut merges: BTreeMap<(VdiUuid, VdiUuid), Vec<VdiUuid>> = BTreeMap::new();
    let mut left = nodes.clone();
    for (disk, _) in nodes.iter().filter(|(vdi, node)| !node.hidden && nodes.children(*vdi).len() == 0) {
        let (mut gone, mut bases) = (Vec::new(), 0);
        let mut next = Some(disk);
        while let Some(vdi) = next.filter(|vdi| *vdi == disk || left.is_garbage(*vdi)) {
            let Some(node) = left.remove(vdi) else { break };
            bases += if vdi == disk { 0 } else { size(vdi) };
            next = node.parent;
            gone.push((vdi, node));
        }
        if let Some(base) = next {
            let mut children = left.children(base);
            if let (Some(only), None) = (children.next(), children.next())
                && left.can_merge(only, base)
            {
                merges.entry((base, only)).or_default().push(disk);
            }
        }
        gone.into_iter().for_each(|(vdi, node)| left.put(vdi, node));
        freed.insert(disk, Freed { bases, merge: 0 });
    }
    let mut last: Option<(VdiUuid, Option<Extents>)> = None;
    for ((base, image), disks) in merges {
        let below = match last.take() {
            Some((vdi, held)) if vdi == base => held,
            _ => held(base),
        };
        let merge = of_merge((size(image), held(image).as_ref()), (size(base), below.as_ref()));
        for disk in disks {
            freed.entry(disk).and_modify(|of| of.merge = merge);
        }
        last = Some((base, below));
    }
    freed
}

/// The space of one image. `holds`: bytes that it shares with none. `freed`: what its deletion frees besides; `None` for an image that
/// cannot be deleted by itself. `is_exact`: see [`ImageUse::is_exact`].
pub fn use_of(info: VdiInfo, nodes: &Nodes, freed: Option<Freed>, holds: u64, is_exact: bool) -> ImageUse {
    let is_base = nodes.get(info.uuid).is_some_and(|node| node.hidden);
    let above = if is_base { nodes.descendants(info.uuid) } else { Vec::new() };
    ImageUse {
        holds,
        frees: freed.map(|freed| holds + freed.bases),
        is_exact,
        merge_frees: freed.map_or(0, |freed| freed.merge),
        disks: above.iter().filter(|vdi| nodes.get(**vdi).is_some_and(|node| !node.hidden)).count(),
        info,
    }
}

/// The gain of the collector, if it did all of these steps.
pub fn of_steps(steps: &[Planned], size: Sizes, held: HeldBy) -> Gain {
    let mut gain = Gain::default();
    let mut parents: BTreeMap<VdiUuid, VdiUuid> = BTreeMap::new();
    for step in steps {
        match step {
            Planned::Remove(base) => {
                gain.removed += 1;
                gain.bytes += size(*base);
            }
            Planned::Merge { image, into } => {
                gain.merged += 1;
                parents.insert(*image, *into);
            }
            Planned::Leave(..) => {}
        }
    }
    // The images that end in the same one. The order of their merges makes no difference to the sum.
    let mut groups: BTreeMap<VdiUuid, Vec<VdiUuid>> = BTreeMap::new();
    for image in parents.keys() {
        let up = std::iter::successors(Some(*image), |at| parents.get(at).copied());
        // Steps of a plan make no circle; no more are followed than there are.
        let root = up.take(parents.len() + 1).last().unwrap_or(*image);
        groups.entry(root).or_default().push(*image);
    }
    for (root, images) in groups {
        let (mut below, mut size_below) = (held(root), size(root));
        for image in images {
            let above = held(image);
            let freed = of_merge((size(image), above.as_ref()), (size_below, below.as_ref()));
            gain.bytes += freed;
            size_below += size(image) - freed;
            below = below.zip(above).map(|(below, above)| below.union(&above));
        }
    }
    gain
}

/// About how many bytes the merge of an image with one below it frees: what both hold, and the tables of the image. Of each,
/// its size, and what it holds.
fn of_merge((size, held): (u64, Option<&Extents>), (size_below, below): (u64, Option<&Extents>)) -> u64 {
    match held.zip(below) {
        // Stretches are whole blocks, of which a file may have space for a part.
        Some((held, below)) => size.min(held.overlap(below) + size.saturating_sub(held.total())),
        None => size.min(size_below),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdi::tree::nodes::tests::{nodes, vdi};

    /// Image n holds the units that `of` lists of it, 100 bytes each, and has 7 bytes of tables.
    fn with<T>(of: &[(u32, &[u64])], work: impl FnOnce(Sizes, HeldBy) -> T) -> T {
        let held = |wanted: VdiUuid| {
            let (_, units) = of.iter().find(|(n, _)| vdi(*n) == wanted)?;
            Some(units.iter().map(|unit| unit * 100..unit * 100 + 100).collect::<Extents>())
        };
        work(&|vdi| held(vdi).map_or(1000, |held| held.total() + 7), &held)
    }

    fn freed(of: &BTreeMap<VdiUuid, Freed>, n: u32) -> (u64, u64) {
        let Freed { bases, merge } = of[&vdi(n)];
        (bases, merge)
    }

    #[test]
    fn a_base_goes_with_its_last_disk_and_is_merged_with_its_last_but_one() {
        // 1 ← 2, 3; 4 ← 5 ← 6; 7 ← 8, 9, 10.
        let forest = nodes(&[
            (1, 0, true),
            (2, 1, false),
            (3, 1, false),
            (4, 0, true),
            (5, 4, true),
            (6, 5, false),
            (7, 0, true),
            (8, 7, false),
            (9, 7, false),
            (10, 7, false),
        ]);
        let held: [(u32, &[u64]); 10] = [
            (1, &[0, 1, 2]),
            (2, &[1, 2, 3]),
            (3, &[9]),
            (4, &[0, 1]),
            (5, &[2]),
            (6, &[]),
            (7, &[0]),
            (8, &[]),
            (9, &[]),
            (10, &[]),
        ];
        let found = with(&held, |size, held| of_deletions(&forest, size, held));
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [2, 3, 6, 8, 9, 10].map(vdi));
        // Without 2, 3 goes into 1, which holds nothing of it; without 3, 2 goes into 1.
        assert_eq!((freed(&found, 2), freed(&found, 3)), ((0, 7), (0, 207)));
        assert_eq!(freed(&found, 6), (207 + 107, 0));
        assert_eq!(freed(&found, 8), (0, 0));
    }

    #[test]
    fn the_base_that_is_left_with_one_child_may_lie_deeper() {
        // 1 ← 2 ← 3; 1 ← 4 ← 5, 6: with 3 goes 2, and then 4 is the only child of 1.
        let forest = nodes(&[(1, 0, true), (2, 1, true), (3, 2, false), (4, 1, true), (5, 4, false), (6, 4, false)]);
        let held: [(u32, &[u64]); 6] = [(1, &[0, 1]), (2, &[1]), (3, &[]), (4, &[1, 2]), (5, &[]), (6, &[])];
        let found = with(&held, |size, held| of_deletions(&forest, size, held));
        assert_eq!(freed(&found, 3), (107, 107));
        assert_eq!(freed(&found, 5), (0, 7));
    }

    #[test]
    fn an_image_that_cannot_be_read_keeps_its_base_and_has_an_estimate() {
        use crate::types::{Format, State};
        use crate::vdi::tree::nodes::Node;
        let mut forest = nodes(&[(1, 0, true), (2, 1, false), (3, 1, false), (9, 0, false)]);
        let found = with(&[(1, &[0]), (2, &[0])], |size, held| of_deletions(&forest, size, held));
        // The tables of 3 cannot be read: it frees no more than it has, and no more than its base has.
        assert_eq!((freed(&found, 2), freed(&found, 3)), ((0, 107), (0, 107)));
        let node = forest.get(vdi(9)).unwrap().clone();
        let state = State::Broken("torn".to_owned());
        forest.put(vdi(9), Node { state, unread: vec![Format::Vhd], ..node });
        let found = with(&[(1, &[0]), (2, &[0])], |size, held| of_deletions(&forest, size, held));
        assert_eq!((freed(&found, 2), freed(&found, 9)), ((0, 0), (0, 0)));
    }

    #[test]
    fn the_gain_of_a_chain_counts_each_stretch_once() {
        let steps = [
            Planned::Remove(vdi(8)),
            Planned::Merge { image: vdi(4), into: vdi(5) },
            Planned::Merge { image: vdi(5), into: vdi(6) },
            Planned::Merge { image: vdi(1), into: vdi(4) },
            Planned::Leave(vdi(9), "x".to_owned()),
        ];
        let held: [(u32, &[u64]); 5] = [(1, &[0, 3]), (4, &[0, 1]), (5, &[1, 2]), (6, &[0]), (8, &[5, 6])];
        // 6 units in the chain, of which 0 to 3 stay; three images lose their tables.
        let gain = with(&held, |size, held| of_steps(&steps, size, held));
        assert_eq!(gain, Gain { bytes: 207 + 300 + 21, removed: 1, merged: 3 });
    }
}
