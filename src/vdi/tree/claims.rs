//! Which images may be needed by one that is not among their children. Such an image is neither removed nor merged.

use std::fmt;

use crate::types::{Format, VdiUuid};
use crate::vdi::tree::nodes::{Node, Nodes};

/// Why an image may be needed by one that is not among its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// This image cannot be read, see [`Node::unread`].
    Unread(VdiUuid),
    /// This image was made from it, and names another one.
    ByIdentity(VdiUuid),
    /// The parent that this image names is not there, or is no base. Files that were renamed by hand look so.
    Astray(VdiUuid),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Unread(vdi) => {
                write!(
                    f,
                    "{vdi} cannot be read and may need this image or its parent: make it readable, restore it, or delete it"
                )
            }
            Claim::ByIdentity(vdi) => {
                write!(
                    f,
                    "{vdi} was made from this image, and names another: give the images their names back, or delete {vdi}"
                )
            }
            Claim::Astray(vdi) => write!(
                f,
                "the parent that {vdi} names is missing, is a disk or its own ancestor, so this image may be its base under \
                 another name: give the images their names back, or delete {vdi}"
            ),
        }
    }
}

impl Nodes {
    /// An image that may need this one although it does not name it: not one of its children. As long as there is one, the
    /// image is neither removed nor merged.
    ///
    /// A name leads to the wrong image if files were renamed by hand. An image with an identity is then known by that. One
    /// without is held for the missing parent of another if it has no child itself, which no base has for long.
    pub fn claim(&self, vdi: VdiUuid) -> Option<Claim> {
        let node = self.get(vdi)?;
        let others = || self.iter().filter(|(other, image)| *other != vdi && image.format == node.format);
        let is_made_from_it = |image: &Node| {
            let is_led_there =
                image.parent.and_then(|parent| self.get(parent)).is_some_and(|parent| parent.id == image.parent_id);
            node.id.is_some() && image.parent_id == node.id && !is_led_there
        };
        let is_alone = self.childless_base(vdi).is_some();
        let is_astray = |other, image: &Node| {
            (node.id.is_none() || image.parent_id.is_none())
                && (self.is_own_ancestor(other) || is_alone && self.is_astray(image))
        };
        self.unread(node.format)
            .map(Claim::Unread)
            .or_else(|| others().find(|(_, image)| is_made_from_it(image)).map(|(other, _)| Claim::ByIdentity(other)))
            .or_else(|| others().find(|(other, image)| is_astray(*other, image)).map(|(other, _)| Claim::Astray(other)))
    }

    /// An image that cannot be read and may be the child of any base of this format, see [`Node::unread`].
    pub(super) fn unread(&self, format: Format) -> Option<VdiUuid> {
        self.iter().find(|(_, node)| node.unread.contains(&format)).map(|(unread, _)| unread)
    }

    /// Whether an image names a parent that is not there, or is no base. A healthy image whose parent is not among these has
    /// a raw one; of a damaged parent it is not known whether it is a base.
    fn is_astray(&self, image: &Node) -> bool {
        image.parent.is_some_and(|parent| match self.get(parent) {
            Some(parent) => !parent.hidden && parent.state.is_healthy(),
            None => !image.state.is_healthy(),
        })
    }

    fn is_own_ancestor(&self, vdi: VdiUuid) -> bool {
        let chain = self.chain(vdi);
        chain
            .last()
            .and_then(|last| self.get(*last))
            .and_then(|last| last.parent)
            .is_some_and(|above| chain.contains(&above))
    }

    /// Whether nothing needs a base: it has no child left, and none that is not known.
    pub fn is_garbage(&self, base: VdiUuid) -> bool {
        self.childless_base(base).is_some() && self.claim(base).is_none()
    }

    /// The bases without a child, in the order of their UUIDs, each with the reason why it may be needed all the same.
    pub fn childless_bases(&self) -> impl Iterator<Item = (VdiUuid, Option<Claim>)> {
        self.iter().filter(|(base, _)| self.childless_base(*base).is_some()).map(|(base, _)| (base, self.claim(base)))
    }

    /// The bases that nothing needs any more, in the order of their UUIDs.
    pub fn garbage(&self) -> impl Iterator<Item = VdiUuid> {
        self.childless_bases().filter(|(_, claim)| claim.is_none()).map(|(base, _)| base)
    }

    /// The bases without a child that another image may need all the same; in the order of their UUIDs.
    pub fn withheld(&self) -> impl Iterator<Item = (VdiUuid, Claim)> {
        self.childless_bases().filter_map(|(base, claim)| Some((base, claim?)))
    }

    fn childless_base(&self, base: VdiUuid) -> Option<&Node> {
        self.get(base).filter(|node| node.hidden && self.children(base).len() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    use crate::types::State;
    use crate::vdi::tree::nodes::tests::{nodes, vdi};

    #[test]
    fn an_image_that_cannot_be_read_may_be_the_child_of_every_base_of_its_format() {
        // 1 ← 2 and the childless 3, with an unread 9.
        let of = |unread: &[Format]| -> Nodes {
            let mut all = nodes(&[(1, 0, true), (2, 1, false), (3, 0, true), (9, 0, false)]);
            let node = all.get(vdi(9)).unwrap().clone();
            all.put(vdi(9), Node { unread: unread.to_vec(), ..node });
            all
        };
        for unread in [&[Format::Vhd][..], &[Format::Qcow2, Format::Vhd]] {
            let mut nodes = of(unread);
            assert!(!nodes.is_garbage(vdi(3)) && nodes.garbage().count() == 0);
            assert_eq!(nodes.withheld().collect::<Vec<_>>(), [(vdi(3), Claim::Unread(vdi(9)))]);
            assert!(!nodes.can_merge(vdi(2), vdi(1)));
            nodes.remove(vdi(9));
            assert!(nodes.is_garbage(vdi(3)) && nodes.withheld().count() == 0 && nodes.can_merge(vdi(2), vdi(1)));
        }
        for read in [&[][..], &[Format::Qcow2]] {
            let nodes = of(read);
            assert!(nodes.is_garbage(vdi(3)) && nodes.withheld().count() == 0 && nodes.can_merge(vdi(2), vdi(1)));
        }
    }

    #[test]
    fn an_image_with_another_name_is_known_by_what_was_made_from_it() {
        let id = |n: u32| Some(Uuid::from_u128(n.into()));
        let of = |of: &[(u32, u32, u32, bool)]| -> Nodes {
            of.iter()
                .map(|(name, parent, is, hidden)| {
                    let parent_id = id(*parent).filter(|_| *parent != 0);
                    let parent = (*parent != 0).then(|| vdi(*parent));
                    let node =
                        Node { hidden: *hidden, parent, id: id(*is), parent_id, ..Node::alone(Format::Vhd, 1 << 20) };
                    (vdi(*name), node)
                })
                .collect()
        };
        // 1 ← 2, and the files of both changed their names; then a base has the name 7, and its child is not judged.
        for nodes in [of(&[(2, 0, 1, true), (1, 1, 2, false)]), of(&[(7, 0, 1, true), (2, 1, 2, false)])] {
            let base = nodes.iter().find(|(_, node)| node.id == id(1)).unwrap().0;
            let child = nodes.iter().find(|(_, node)| node.id == id(2)).unwrap().0;
            assert_eq!(nodes.claim(base), Some(Claim::ByIdentity(child)));
            assert!(!nodes.is_garbage(base));
        }
        // A copy of a base is no parent of what the base is the parent of.
        assert_eq!(of(&[(1, 0, 1, true), (3, 0, 1, true), (2, 1, 2, false)]).claim(vdi(3)), None);
    }

    #[test]
    fn an_image_without_an_identity_and_child_may_be_the_parent_that_is_not_there() {
        let missing = |parent| Node {
            parent: Some(vdi(parent)),
            state: State::ParentMissing("x".to_owned()),
            ..Node::alone(Format::Vhd, 1 << 20)
        };
        // 1 and 5 ← 6 are whole.
        let whole = nodes(&[(1, 0, true), (5, 0, true), (6, 5, false)]);
        for (astray, nodes_of) in [
            (2, vec![(vdi(2), missing(9))]),
            // 3 has the name of a base of 4, and is a disk.
            (4, nodes(&[(3, 0, false), (4, 3, false)]).iter().map(|(vdi, node)| (vdi, node.clone())).collect()),
            (8, nodes(&[(8, 8, true)]).iter().map(|(vdi, node)| (vdi, node.clone())).collect()),
        ] {
            let mut all = whole.clone();
            nodes_of.into_iter().for_each(|(vdi, node)| all.put(vdi, node));
            assert_eq!(all.withheld().collect::<Vec<_>>(), [(vdi(1), Claim::Astray(vdi(astray)))]);
            assert_eq!(all.garbage().count(), 0);
            // Names in a circle are not believed at all.
            assert_eq!(all.can_merge(vdi(6), vdi(5)), astray != 8);
        }
        assert!(whole.is_garbage(vdi(1)) && whole.can_merge(vdi(6), vdi(5)));
    }
}
