//! The trees of an SR as a value: its images, what each says of itself, and how they hang together.
//!
//! It is read once, under the lock of the trees where it is to be relied on, and asked any number of times. Nothing here
//! looks at a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::types::{Format, State, VdiUuid};
use crate::vdi::format::ImageInfo;
use crate::vdi::place::{Place, in_use};
use crate::vdi::tree::claims::Claim;

/// An image of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub format: Format,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// It is there for its children only.
    pub hidden: bool,
    pub parent: Option<VdiUuid>,
    /// The identity that the image has towards its children, where its format has such an identity: a VHD's unique id.
    pub id: Option<Uuid>,
    /// The [`Node::id`] of the parent that the image was made from.
    pub parent_id: Option<Uuid>,
    /// Whether the image can be used. A look at one image alone finds it healthy or fails.
    pub state: State,
    /// Formats whose bases may each be the parent of this image, because not even the name of its parent can be read. More
    /// than its own format if the VDI has images of several. Empty if the parent is known, or that there is none.
    pub unread: Vec<Format>,
    /// It goes back to what its parent holds, see [`mod@crate::vdi::tree::reset`], so the two are never merged.
    pub resets: bool,
}

impl Node {
    /// An image of `virtual_size` bytes that is in no tree.
    pub fn alone(format: Format, virtual_size: u64) -> Node {
        Node {
            format,
            virtual_size,
            hidden: false,
            parent: None,
            id: None,
            parent_id: None,
            state: State::Healthy,
            unread: Vec::new(),
            resets: false,
        }
    }

    /// The image of `vdi`, from what it says of itself. `named` finds the VDI that an image of this format calls by a name.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it names a parent that is no VDI of this SR, or itself.
    pub fn of(
        vdi: VdiUuid,
        format: Format,
        info: ImageInfo,
        path: &Path,
        named: impl FnOnce(&str) -> Option<VdiUuid>,
    ) -> Result<Node> {
        let parent = info.parent.as_deref().map(|name| named(name).ok_or(name)).transpose();
        let damaged = |name: &str, why: &str| Error::Damaged {
            path: path.to_owned(),
            what: format!("names {name:?} as its parent, which {why}"),
        };
        let parent = parent.map_err(|name| damaged(name, "is no VDI of this SR"))?;
        // An image with an identity is told from itself by that, see `Nodes::judge`.
        if parent == Some(vdi) && info.id.is_none() {
            return Err(damaged(info.parent.as_deref().unwrap_or_default(), "has its own UUID"));
        }
        Ok(Node {
            hidden: info.hidden,
            parent,
            id: info.id,
            parent_id: info.parent_id,
            ..Node::alone(format, info.virtual_size)
        })
    }

    /// Whether `parent`, to which the parent's name in this image leads, is the image that this one was made from. An image
    /// that has no identity, or cannot be read, is not told from another.
    pub fn is_child_of(&self, parent: &Node) -> bool {
        match (parent.id, self.parent_id) {
            _ if parent.format != Format::Raw && parent.format != self.format => false,
            (Some(is), wanted) => wanted == Some(is),
            (None, wanted) => wanted.is_none() || parent.format != Format::Raw,
        }
    }
}

/// Says of an image that the name of its parent leads to an image that it was not made from.
pub fn another_image(parent: VdiUuid) -> String {
    format!("{parent} is another image than the one that this was made from")
}

/// Every image of an SR that may be another's child or base: all but raw disks, of which there may be a hundred times as
/// many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    by_vdi: BTreeMap<VdiUuid, Node>,
    /// The children of each image that has some, in the order of their UUIDs.
    children: BTreeMap<VdiUuid, BTreeSet<VdiUuid>>,
    /// Another storage manager left a change of its own unfinished: what looks like garbage may not be.
    pub is_foreign_work: bool,
}

impl FromIterator<(VdiUuid, Node)> for Nodes {
    fn from_iter<I: IntoIterator<Item = (VdiUuid, Node)>>(nodes: I) -> Nodes {
        let mut all = Nodes::default();
        nodes.into_iter().for_each(|(vdi, node)| all.put(vdi, node));
        all
    }
}

impl Nodes {
    /// Says whether another storage manager left a change of its own unfinished.
    pub fn with_foreign_work(self, is_foreign_work: bool) -> Nodes {
        Nodes { is_foreign_work, ..self }
    }

    pub fn get(&self, vdi: VdiUuid) -> Option<&Node> {
        self.by_vdi.get(&vdi)
    }

    /// All images in the order of their UUIDs.
    pub fn iter(&self) -> impl Iterator<Item = (VdiUuid, &Node)> {
        self.by_vdi.iter().map(|(vdi, node)| (*vdi, node))
    }

    /// The images whose parent is `base`, in the order of their UUIDs.
    pub fn children(&self, base: VdiUuid) -> impl ExactSizeIterator<Item = VdiUuid> {
        static NONE: BTreeSet<VdiUuid> = BTreeSet::new();
        self.children.get(&base).unwrap_or(&NONE).iter().copied()
    }

    /// An image and the images below it, from itself to the root. Images that name each other as parents end where they
    /// meet; a parent that is not here is the last.
    pub fn chain(&self, vdi: VdiUuid) -> Vec<VdiUuid> {
        let mut chain = vec![vdi];
        while let Some(parent) = chain.last().and_then(|last| self.get(*last)).and_then(|node| node.parent) {
            if chain.contains(&parent) {
                break;
            }
            chain.push(parent);
        }
        chain
    }

    /// All images above `base`, which have it in their chains.
    pub fn descendants(&self, base: VdiUuid) -> Vec<VdiUuid> {
        let mut found: Vec<VdiUuid> = self.children(base).collect();
        let mut next = 0;
        while let Some(vdi) = found.get(next) {
            // Images that name each other as parents are no tree, and no reason to go round for ever.
            let more: Vec<VdiUuid> = self.children(*vdi).filter(|vdi| *vdi != base && !found.contains(vdi)).collect();
            found.extend(more);
            next += 1;
        }
        found
    }

    /// The base of which `vdi` is the only known child, and which is not there for `vdi` to go back to. A parent that is a disk itself
    /// is no base.
    pub fn base_of_only_child(&self, vdi: VdiUuid) -> Option<VdiUuid> {
        let base = self.get(vdi).filter(|node| !node.resets)?.parent?;
        (self.get(base)?.hidden && self.children(base).len() == 1).then_some(base)
    }

    /// Whether `vdi` can be merged with `base`: the base is there for it alone, both can be used, and no image that is not
    /// a child of either may be one.
    pub fn can_merge(&self, vdi: VdiUuid, base: VdiUuid) -> bool {
        let is_usable = |vdi| self.get(vdi).is_some_and(|node| node.state.is_healthy());
        self.base_of_only_child(vdi) == Some(base)
            && [vdi, base].into_iter().all(|vdi| is_usable(vdi) && self.claim(vdi).is_none())
    }

    /// Refuses to take away the image of a place while other images have it as their parent.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] with one of them.
    pub fn refuse_if_parent(&self, place: &dyn Place) -> Result<()> {
        let mut children = self.children(place.vdi());
        if let (count, Some(child)) = (children.len(), children.next()) {
            return Err(in_use(place, format!("{count} VDIs that have it as their parent, such as {child}")));
        }
        let is_base = self.get(place.vdi()).is_some_and(|node| node.hidden);
        let holder = match self.claim(place.vdi()) {
            Some(Claim::ByIdentity(child)) => format!("{child}, which was made from it and names another image"),
            Some(Claim::Astray(child)) if is_base => {
                format!("{child}, it may be: the parent that this one names is missing or is a disk")
            }
            // An image whose name is given is not one that was forgotten.
            _ => return Ok(()),
        };
        Err(in_use(place, format!("{holder}; if files were renamed, give them their names back")))
    }

    /// Marks the disks that go back to what their parents hold. `resets` is asked of the few alone that would be merged otherwise.
    #[must_use]
    pub fn with_points(mut self, resets: impl Fn(VdiUuid) -> bool) -> Nodes {
        let is_leaf = |vdi: &VdiUuid| self.get(*vdi).is_some_and(|node| !node.hidden);
        let only_children = self.by_vdi.keys().copied().filter(|vdi| self.base_of_only_child(*vdi).is_some());
        let found: Vec<VdiUuid> = only_children.filter(is_leaf).filter(|vdi| resets(*vdi)).collect();
        for vdi in found {
            self.by_vdi.entry(vdi).and_modify(|node| node.resets = true);
        }
        self
    }

    /// Adds an image, or replaces it.
    pub(super) fn put(&mut self, vdi: VdiUuid, node: Node) {
        self.remove(vdi);
        if let Some(parent) = node.parent {
            self.children.entry(parent).or_default().insert(vdi);
        }
        self.by_vdi.insert(vdi, node);
    }

    /// Takes an image out. Its children stay the children of its name.
    pub fn remove(&mut self, vdi: VdiUuid) -> Option<Node> {
        let node = self.by_vdi.remove(&vdi)?;
        if let Some(parent) = node.parent
            && let Some(children) = self.children.get_mut(&parent)
        {
            children.remove(&vdi);
        }
        Some(node)
    }

    /// Follows the growth of an image.
    pub fn grown(&mut self, vdi: VdiUuid, virtual_size: u64) {
        if let Some(node) = self.by_vdi.get_mut(&vdi) {
            node.virtual_size = virtual_size;
        }
    }

    /// Follows a relink: the children of `vdi` are those of its parent, and `vdi` is gone.
    pub fn relinked(&mut self, vdi: VdiUuid) {
        let children: Vec<VdiUuid> = self.children(vdi).collect();
        let base = self.remove(vdi).and_then(|node| node.parent);
        let id = base.and_then(|base| self.get(base)).and_then(|node| node.id);
        for child in children {
            if let Some(node) = self.by_vdi.get(&child) {
                self.put(child, Node { parent: base, parent_id: id, ..node.clone() });
            }
        }
    }

    /// Follows a collapse: the image of `base` has the name of `vdi`, its only child, and is a disk.
    pub fn collapsed(&mut self, vdi: VdiUuid, base: VdiUuid) {
        if let Some(node) = self.remove(base) {
            self.put(vdi, Node { hidden: false, ..node });
        }
    }
}

/// Gives a state to each healthy image whose parents cannot be used: the parent is not there, or is another image than the
/// child was made from, or is not healthy itself, or the chain has no end. `there`: the format of an image that is there
/// although it is not among the `nodes`, such as a raw one.
pub fn judge(nodes: &mut [(VdiUuid, &mut Node)], there: &dyn Fn(VdiUuid) -> Option<Format>) {
    if nodes.iter().all(|(_, node)| node.parent.is_none()) {
        return;
    }
    let at: BTreeMap<VdiUuid, usize> = nodes.iter().enumerate().map(|(n, (vdi, _))| (*vdi, n)).collect();
    let parents: Vec<Option<usize>> =
        nodes.iter().map(|(_, node)| node.parent.and_then(|parent| at.get(&parent).copied())).collect();
    for n in 0..nodes.len() {
        let child = &nodes[n].1;
        let Some(name) = child.parent.filter(|_| child.state.is_healthy()) else { continue };
        // A raw image is not looked at where only trees are; it has no identity anyway.
        let unseen = there(name).map(|format| Node::alone(format, 0));
        let parent = parents[n].map(|parent| &*nodes[parent].1).or(unseen.as_ref());
        let state = match parent {
            None => State::ParentMissing(name.to_string()),
            Some(parent) if !child.is_child_of(parent) => State::ParentMissing(another_image(name)),
            Some(_) => continue,
        };
        nodes[n].1.state = state;
    }
    let mut judged: Vec<bool> = nodes.iter().map(|(_, node)| node.parent.is_none()).collect();
    for n in 0..nodes.len() {
        // Up to an image that is judged already or has no parent here, then down again.
        let (mut chain, mut next) = (Vec::new(), Some(n));
        while let Some(at) = next.filter(|at| !judged[*at]) {
            judged[at] = true;
            chain.push(at);
            next = parents[at];
        }
        if let Some(at) = next.filter(|at| chain.contains(at)) {
            nodes[at].1.state = State::Broken("the image is its own ancestor".to_owned());
        }
        for at in chain.into_iter().rev() {
            let Some((name, parent)) = parents[at].map(|parent| &nodes[parent]) else { continue };
            if nodes[at].1.state.is_healthy() && !parent.state.is_healthy() {
                let state = format!("the parent {name} cannot be used: {}", parent.state);
                nodes[at].1.state = State::Broken(state);
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn vdi(n: u32) -> VdiUuid {
        format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
    }

    /// An image by number: (number, parent or 0, hidden).
    pub fn nodes(of: &[(u32, u32, bool)]) -> Nodes {
        of.iter()
            .map(|(n, parent, hidden)| {
                let parent = (*parent != 0).then(|| vdi(*parent));
                (vdi(*n), Node { hidden: *hidden, parent, ..Node::alone(Format::Vhd, 1 << 20) })
            })
            .collect()
    }

    fn vdis(of: &[u32]) -> Vec<VdiUuid> {
        of.iter().map(|n| vdi(*n)).collect()
    }

    /// 1 ← 2 ← {3, 4 ← 5}; 9 alone and hidden.
    fn forest() -> Nodes {
        nodes(&[(1, 0, true), (2, 1, true), (3, 2, false), (4, 2, true), (5, 4, false), (9, 0, true)])
    }

    #[test]
    fn a_tree_is_asked_up_and_down() {
        let nodes = forest();
        assert_eq!(nodes.children(vdi(2)).collect::<Vec<_>>(), vdis(&[3, 4]));
        assert_eq!(nodes.chain(vdi(5)), vdis(&[5, 4, 2, 1]));
        assert_eq!(nodes.descendants(vdi(1)), vdis(&[2, 3, 4, 5]));
        assert_eq!(nodes.descendants(vdi(5)), vdis(&[]));
        assert_eq!(nodes.garbage().collect::<Vec<_>>(), vdis(&[9]));
    }

    #[test]
    fn the_base_of_one_child_is_found_and_the_base_of_two_is_not() {
        let nodes = forest();
        assert_eq!(nodes.base_of_only_child(vdi(2)), Some(vdi(1)));
        assert_eq!(nodes.base_of_only_child(vdi(5)), Some(vdi(4)));
        assert_eq!(nodes.base_of_only_child(vdi(3)), None);
        assert_eq!(nodes.base_of_only_child(vdi(1)), None);
        // A parent that is a disk, as vhd-util makes them.
        let visible = super::tests::nodes(&[(1, 0, false), (2, 1, false)]);
        assert_eq!(visible.base_of_only_child(vdi(2)), None);
    }

    #[test]
    fn a_disk_that_goes_back_keeps_its_parent_and_bases_below_that_are_merged() {
        // 1 ← 2 ← 3, and 4 ← 5.
        let of = [(1, 0, true), (2, 1, true), (3, 2, false), (4, 0, true), (5, 4, false)];
        let asked = std::cell::RefCell::new(Vec::new());
        let nodes = super::tests::nodes(&of).with_points(|disk| {
            asked.borrow_mut().push(disk);
            disk == vdi(3)
        });
        assert_eq!(asked.take(), vdis(&[3, 5]));
        assert_eq!(nodes.base_of_only_child(vdi(3)), None);
        assert!(!nodes.can_merge(vdi(3), vdi(2)));
        assert_eq!(nodes.base_of_only_child(vdi(2)), Some(vdi(1)));
        assert_eq!(nodes.base_of_only_child(vdi(5)), Some(vdi(4)));
    }

    #[test]
    fn what_cannot_be_used_is_not_merged() {
        for broken in [1, 2] {
            let mut nodes = nodes(&[(1, 0, true), (2, 1, false)]);
            assert!(nodes.can_merge(vdi(2), vdi(1)));
            let node = nodes.remove(vdi(broken)).unwrap();
            nodes.put(vdi(broken), Node { state: State::Broken("x".to_owned()), ..node });
            assert!(!nodes.can_merge(vdi(2), vdi(1)));
        }
    }

    #[test]
    fn images_that_name_each_other_end_every_walk() {
        let nodes = nodes(&[(1, 2, true), (2, 1, true), (3, 3, true)]);
        assert_eq!(nodes.chain(vdi(1)), vdis(&[1, 2]));
        assert_eq!(nodes.descendants(vdi(1)), vdis(&[2]));
        assert_eq!(nodes.chain(vdi(3)), vdis(&[3]));
        assert_eq!(nodes.garbage().count(), 0);
    }

    #[test]
    fn a_relink_and_a_collapse_are_followed() {
        let mut after = forest();
        after.relinked(vdi(4));
        assert_eq!(
            after,
            nodes(&[(1, 0, true), (2, 1, true), (3, 2, false), (5, 2, false), (9, 0, true)]).without_empty(&after)
        );
        let mut after = nodes(&[(1, 0, true), (2, 1, true), (3, 2, false)]);
        after.collapsed(vdi(3), vdi(2));
        assert_eq!(after.chain(vdi(3)), vdis(&[3, 1]));
        assert_eq!(after.children(vdi(1)).collect::<Vec<_>>(), vdis(&[3]));
        assert!(!after.get(vdi(3)).unwrap().hidden && after.get(vdi(2)).is_none());
    }

    impl Nodes {
        /// With the empty sets of children that `other` has.
        fn without_empty(mut self, other: &Nodes) -> Nodes {
            for (base, children) in &other.children {
                if children.is_empty() {
                    self.children.entry(*base).or_default();
                }
            }
            self
        }
    }

    #[test]
    fn an_image_is_no_better_than_its_parents() {
        let judged = |of: &[(u32, u32)], raw: &[u32]| -> Vec<State> {
            let mut all: Vec<(VdiUuid, Node)> = nodes(&of.iter().map(|(n, p)| (*n, *p, false)).collect::<Vec<_>>())
                .iter()
                .map(|(vdi, node)| (vdi, node.clone()))
                .collect();
            let mut refs: Vec<(VdiUuid, &mut Node)> = all.iter_mut().map(|(vdi, node)| (*vdi, node)).collect();
            judge(&mut refs, &|name| raw.iter().any(|n| vdi(*n) == name).then_some(Format::Raw));
            all.into_iter().map(|(_, node)| node.state).collect()
        };
        let healthy = State::Healthy;
        assert_eq!(judged(&[(1, 0), (2, 1), (3, 2)], &[]), [healthy.clone(), healthy.clone(), healthy.clone()]);
        assert_eq!(judged(&[(2, 7)], &[7]), [healthy]);
        let [missing, above] = judged(&[(2, 7), (3, 2)], &[]).try_into().unwrap();
        assert_eq!(missing, State::ParentMissing(vdi(7).to_string()));
        assert!(matches!(above, State::Broken(why) if why.contains("cannot be used")));
        for state in judged(&[(1, 2), (2, 1), (3, 1)], &[]) {
            assert!(matches!(state, State::Broken(_)), "{state:?}");
        }
    }

    #[test]
    fn a_child_is_told_by_identity_where_there_is_one() {
        let [is, other] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let child = |format, parent_id| Node { parent_id, ..Node::alone(format, 1) };
        let parent = |format, id| Node { id, ..Node::alone(format, 1) };
        use Format::{Qcow2, Raw, Vhd};
        for (child, parent, wanted) in [
            (child(Vhd, Some(is)), parent(Vhd, Some(is)), true),
            (child(Vhd, Some(other)), parent(Vhd, Some(is)), false),
            (child(Vhd, None), parent(Vhd, Some(is)), false),
            (child(Vhd, None), parent(Raw, None), true),
            (child(Vhd, Some(is)), parent(Raw, None), false),
            (child(Vhd, Some(is)), parent(Vhd, None), true),
            (child(Qcow2, None), parent(Qcow2, None), true),
            (child(Qcow2, None), parent(Vhd, Some(is)), false),
        ] {
            assert_eq!(child.is_child_of(&parent), wanted, "{child:?} {parent:?}");
        }
    }
}
