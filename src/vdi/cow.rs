//! Copy-on-write disks: trees of images in one SR, the same for every format that has parents.
//!
//! A VDI is a leaf. To clone or snapshot it, its image becomes a hidden base that is never written again, and
//! two empty children take its place: one under the VDI's own name, one under the new VDI's. So both cost the
//! same whatever the disk holds. A base that lost its last child is garbage and goes with it.
//!
//! A base with one child is merged with it by [`Vdi::coalesce`]: the child's data is written into the base, where
//! nobody reads it as long as the child is there; then, in one step, the base takes the child's place. This goes on under a
//! running guest as well, see [`Cow::coalesce_in_use`].
//!
//! What is written in which order is the SR's business, see [`Tree::fork`]. While the tree is changed, its lock
//! is held; the server of an attached disk has its image closed and lets I/O wait.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::context::{Context, PausedElsewhere};
use crate::datapath;
use crate::error::{Error, Result, one_line};
use crate::image::disk::Disk;
use crate::sys::lock::{self, Lock};
use crate::sys::loopdev::Detached;
use crate::sys::syslog;
use crate::types::{Done, Format, Mode, Params, Size, State, VdiInfo, VdiUuid};
use crate::vdi::{
    Fork, Kind, Node, Place, Tree, Vdi, another_image, describe, has_now, in_use, made, refuse_if_used, with_server,
};

/// Images from the root to a leaf, at most; the other storage managers stop here as well (copy-on-write
/// trees, "Snapshot and clone").
const LONGEST_CHAIN: usize = 30;

/// Bytes that a disk in use may hold to be merged while its I/O waits: half a second of a slow disk's time.
const MERGED_AT_ONCE: u64 = 32 << 20;

/// A disk of a format that has parents.
pub struct Cow<'a> {
    place: Box<dyn Place + 'a>,
    kind: &'static Kind,
}

impl<'a> Cow<'a> {
    pub fn open(place: Box<dyn Place + 'a>, kind: &'static Kind) -> Box<dyn Vdi + 'a> {
        Box::new(Cow { place, kind })
    }

    fn node(&self) -> Result<Node> {
        (self.kind.query)(self.place.image(Mode::ReadOnly)?, &self.place.path())
    }

    /// Copies the tree at this disk: the image becomes a base, `dest` and the disk its children.
    fn fork(&self, dest: VdiUuid, params: &Params, context: &Context) -> Result<VdiInfo> {
        let tree = self.place.tree()?;
        // Before the lock, which all trees of the SR want: this may wait for the server and its storage.
        prepare(&*self.place, context.deadline)?;
        let _lock = tree.lock(context.deadline)?;
        let node = self.node()?;
        if node.hidden {
            return Err(self.is_hidden("vdi_clone and vdi_snapshot"));
        }
        let depth = self.depth(tree, &node)?;
        if depth >= LONGEST_CHAIN {
            return Err(Error::ChainTooLong {
                vdi: self.place.vdi(),
                sr: self.place.sr(),
                depth,
                longest: LONGEST_CHAIN,
            });
        }
        let _elsewhere = PausedElsewhere::begin(context)?;
        let _here = pause_here(&*self.place)?;
        let _alone = tree.alone(&[self.place.vdi()])?;
        tree.fork(&Fork { base: VdiUuid::random(), dest: Some((dest, params)), kind: self.kind })?;
        tree.sibling(dest).and_then(|place| (self.kind.open)(place).info()).map_err(|cause| cause.after(made(dest)))
    }

    /// Images in the chain below and with this one.
    ///
    /// # Errors
    /// [`Error::Damaged`] if one of them is missing, or is another image than the one above it names.
    fn depth(&self, tree: &dyn Tree, node: &Node) -> Result<usize> {
        let mut depth = 1;
        let (mut child, mut format) = (node.clone(), self.kind.format);
        while let Some(name) = child.parent {
            depth += 1;
            if depth > LONGEST_CHAIN {
                break;
            }
            let (parent, parent_format) = self.parent_of(tree, &child, format)?.map_err(|state| Error::Damaged {
                path: self.place.path(),
                what: format!("image {name} in its chain: {state}"),
            })?;
            (child, format) = (parent, parent_format);
        }
        Ok(depth)
    }

    /// The parent of an image of `format` in this disk's chain, or the state that the lack of it is.
    fn parent_of(&self, tree: &dyn Tree, child: &Node, format: Format) -> Result<Result<(Node, Format), State>> {
        let Some(name) = child.parent else { return Ok(Err(State::Healthy)) };
        let place = match tree.sibling(name) {
            Ok(place) => place,
            Err(Error::NoVdi { .. }) => return Ok(Err(State::ParentMissing(name.to_string()))),
            Err(error) => return Err(error),
        };
        let parent = match (crate::vdi::kind(place.format()).query)(place.image(Mode::ReadOnly)?, &place.path()) {
            Ok(parent) => parent,
            Err(error @ (Error::Damaged { .. } | Error::Unsupported { .. })) => return Ok(Err(State::of(&error))),
            Err(error) => return Err(error),
        };
        Ok(match child.is_child_of(format, &parent, place.format()) {
            true => Ok((parent, place.format())),
            false => Err(State::ParentMissing(another_image(name))),
        })
    }

    /// Keeps all other calls from what is above this image, and from the tree: whoever opens a chain while one of its
    /// images goes or grows, or writes a header that gets another parent meanwhile, would bring back what was before.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while another call works on one of them. It may wait for the tree, so it is not waited for.
    fn lock_above(&self, tree: &dyn Tree, context: &Context) -> Result<Vec<Lock>> {
        let above = descendants(&tree.nodes()?, self.place.vdi());
        let busy = |who: &str| in_use(&*self.place, format!("{who}, which works on a disk above it"));
        let mut locks = Vec::new();
        for vdi in &above {
            let lock = lock::take(&vdi.to_string(), "vdi", lock::Kind::Exclusive, Instant::now());
            locks.push(lock.map_err(|refused| refused.or_timed_out(busy))?);
        }
        locks.push(tree.lock(context.deadline)?);
        // Copied or deleted before its lock was ours.
        if descendants(&tree.nodes()?, self.place.vdi()) != above {
            return Err(busy("another call"));
        }
        Ok(locks)
    }

    /// Makes the servers of all disks that have this image in their chains close it.
    fn pause_above(&self, tree: &dyn Tree) -> Result<Vec<datapath::Paused>> {
        let above = descendants(&tree.nodes()?, self.place.vdi());
        let paused: Result<Vec<_>> = above.into_iter().map(|vdi| pause(&*tree.sibling(vdi)?)).collect();
        Ok(paused?.into_iter().flatten().collect())
    }

    /// [`Vdi::coalesce`]; [`Error::VdiInUse`] where it can't be done because of who uses the images.
    fn merge(&self, context: &Context) -> Result<Done> {
        let tree = self.place.tree()?;
        let node = self.node()?;
        let Some(base) = node.parent else { return Ok(Done::Already) };
        if !is_only_child(tree, (self.place.vdi(), self.kind.format), base)? {
            return Ok(Done::Already);
        }
        let parent = tree.sibling(base)?;
        // Growing it comes before the merge, which asks this by itself.
        let images = (self.place.image(Mode::ReadOnly)?, parent.image(Mode::ReadOnly)?);
        (self.kind.check_parent)(&images.0, &self.place.path(), &images.1, &*parent)?;
        drop(images);
        // A parent that takes the disk's place has to be of its format.
        if !node.hidden && parent.format() != self.kind.format {
            return Ok(Done::Already);
        }
        // What another host has open is seen only when it comes to the last step, and it may begin at any moment.
        if !node.hidden && (self.place.is_shared() || self.device()?.is_some()) {
            return self.coalesce_in_use(tree, &node, &*parent, context);
        }
        if self.is_larger(&node, &*parent)? {
            let _locks = self.lock_above(tree, context)?;
            self.grow_parent(tree, &node, &*parent)?;
        }
        self.merge_into(&*parent, context)?;

        for vdi in descendants(&tree.nodes()?, self.place.vdi()) {
            prepare(&*tree.sibling(vdi)?, Self::soon(context))?;
        }
        let _locks = self.lock_above(tree, context)?;
        // Deleted or copied meanwhile: what was merged does no harm, as nobody reads it from the parent.
        if !is_only_child(tree, (self.place.vdi(), self.kind.format), base)? || self.node()? != node {
            return Ok(Done::Already);
        }
        if node.hidden {
            let _pauses = self.pause_above(tree)?;
            let _alone = tree.alone(&[self.place.vdi()])?;
            tree.relink(base, self.kind)?;
        } else {
            tree.collapse(base, self.kind)?;
        }
        Ok(Done::Changed)
    }

    /// How long sr_collect waits for a server of one disk: what it leaves is merged the next time, and others wait meanwhile.
    fn soon(context: &Context) -> Instant {
        context.deadline.min(Instant::now() + Duration::from_secs(5))
    }

    fn is_larger(&self, node: &Node, parent: &dyn Place) -> Result<bool> {
        let kind = crate::vdi::kind(parent.format());
        Ok((kind.query)(parent.image(Mode::ReadOnly)?, &parent.path())?.virtual_size < node.virtual_size)
    }

    /// Makes the parent as large as this image.
    fn grow_parent(&self, tree: &dyn Tree, node: &Node, parent: &dyn Place) -> Result<()> {
        if !self.is_larger(node, parent)? {
            return Ok(());
        }
        let kind = crate::vdi::kind(parent.format());
        // Growing moves blocks, so whoever reads the parent has to let go of it: those above this image, and its own server.
        let _pause = pause(&*self.place)?;
        let _pauses = self.pause_above(tree)?;
        let _alone = tree.alone(&[parent.vdi()])?;
        (kind.resize)(parent.image(Mode::ReadWrite)?, &parent.path(), node.virtual_size).map(drop)
    }

    /// Writes all that this image holds into its parent.
    fn merge_into(&self, parent: &dyn Place, context: &Context) -> Result<()> {
        let (image, into) = (self.place.image(Mode::ReadOnly)?, parent.image(Mode::ReadWrite)?);
        (self.kind.coalesce)(image, &self.place.path(), into, parent, context.progress)
    }

    /// Merges a disk in use with its parent. Its I/O waits meanwhile, so it must not hold much: else its image is set
    /// aside as a base, which is merged while the disk goes on in an empty one.
    fn coalesce_in_use(&self, tree: &dyn Tree, node: &Node, parent: &dyn Place, context: &Context) -> Result<Done> {
        prepare(&*self.place, Self::soon(context))?;
        let _lock = tree.lock(context.deadline)?;
        if !is_only_child(tree, (self.place.vdi(), self.kind.format), parent.vdi())? || self.node()? != *node {
            return Ok(Done::Already);
        }
        self.grow_parent(tree, node, parent)?;
        let _pause = pause(&*self.place)?;
        let _alone = tree.alone(&[self.place.vdi()])?;
        if self.place.stat()?.allocated > MERGED_AT_ONCE {
            tree.fork(&Fork { base: VdiUuid::random(), dest: None, kind: self.kind })?;
        } else {
            self.merge_into(parent, context)?;
            tree.collapse(parent.vdi(), self.kind)?;
        }
        Ok(Done::Changed)
    }

    fn describe(&self, node: &Node) -> Result<VdiInfo> {
        let users = self.place.holders()?.users;
        let allocated = self.place.stat()?.allocated;
        let found = datapath::find(&self.place.path())?;
        let died = found.as_ref().is_some_and(|attached| !attached.healthy);
        let params = self.place.params()?;
        let info = describe(&*self.place, node, allocated, params, users, found.is_some(), Vec::new());
        Ok(with_server(info, died))
    }

    fn is_hidden(&self, op: &'static str) -> Error {
        Error::IsBase { op, vdi: self.place.vdi() }
    }
}

impl Vdi for Cow<'_> {
    fn place(&self) -> &dyn Place {
        &*self.place
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        let found = busy(&*self.place, datapath::find_settled(&self.place.path(), self.place.deadline()))?;
        Ok(found.map(|attached| attached.device))
    }

    /// Children are looked for only if the image is a base: a visible one has none, and to make sure would
    /// mean to read every image of the SR. sr_scan does.
    fn info(&self) -> Result<VdiInfo> {
        let node = self.node()?;
        let brief = self.describe(&node)?;
        let tree = self.place.tree()?;
        let children = if brief.hidden { children_of(&tree.nodes()?, self.place.vdi()) } else { Vec::new() };
        let state = match self.parent_of(tree, &node, self.kind.format)? {
            Err(unusable) if brief.state.is_healthy() => unusable,
            _ => brief.state.clone(),
        };
        Ok(VdiInfo { children, state, ..brief })
    }

    fn brief(&self) -> Result<VdiInfo> {
        self.describe(&self.node()?)
    }

    fn attach(&self, mode: Mode, lock: Option<&Lock>) -> Result<PathBuf> {
        let source = datapath::Source {
            format: self.kind.format,
            path: self.place.path(),
            read_only: mode == Mode::ReadOnly,
            shared: self.place.is_shared(),
        };
        busy(&*self.place, datapath::attach(&source, lock, self.place.deadline()))
    }

    fn is_read_only(&self) -> Result<bool> {
        Ok(self.place.params()?.read_only || self.node()?.hidden)
    }

    fn detach(&self) -> Result<Done> {
        match busy(&*self.place, datapath::detach(&self.place.path(), self.place.deadline()))? {
            Detached::Done(done) => Ok(done),
            Detached::Busy(who) => Err(in_use(&*self.place, who)),
        }
    }

    fn delete(&self, context: &Context) -> Result<()> {
        let tree = self.place.tree()?;
        let _lock = tree.lock(context.deadline)?;
        refuse_if_used(self)?;
        let nodes = tree.nodes()?;
        refuse_if_parent(&*self.place, &nodes)?;
        let mut parent = self.node()?.parent;
        let _alone = tree.alone(&[self.place.vdi()])?;
        self.place.remove()?;
        // From the leaf up: a base that still has a child is never touched.
        let mut nodes = nodes;
        nodes.remove(&self.place.vdi());
        while let Some(base) = parent.filter(|base| is_garbage(&nodes, *base, self.kind.format)) {
            parent = nodes.remove(&base).and_then(|node| node.parent);
            // The disk is deleted, and that is all that was asked for: sr_collect removes what is left.
            if let Err(error) = tree.sibling(base).and_then(|place| place.remove()) {
                syslog::write(&format!("base {base} is left to sr_collect: {}", one_line(&error)));
                break;
            }
        }
        Ok(())
    }

    fn clone_to(&self, dest: VdiUuid, context: &Context) -> Result<VdiInfo> {
        refuse_if_used(self)?;
        let params = Params { read_only: false, shareable: false, ..self.place.params()? };
        self.fork(dest, &params, context)
    }

    fn snapshot(&self, dest: VdiUuid, context: &Context) -> Result<VdiInfo> {
        let params = Params { read_only: true, shareable: false, ..self.place.params()? };
        self.fork(dest, &params, context)
    }

    fn coalesce(&self, context: &Context) -> Result<Done> {
        match self.merge(context) {
            // Left for the next time.
            Err(Error::VdiInUse { .. }) => Ok(Done::Already),
            other => other,
        }
    }

    fn unpause(&self, context: &Context) -> Result<()> {
        let _lock = self.place.tree()?.lock(context.deadline)?;
        context.others.as_ref().map_or(Ok(()), |others| others.resume())
    }

    fn read(&self, reader: &mut dyn FnMut(&dyn Disk) -> Result<()>) -> Result<()> {
        let tree = self.place.tree()?;
        let _lent = tree.lend(self.is_read_only()?)?;
        self.place.read(&mut |image| reader(&*(self.kind.disk)(image, &*self.place)?))
    }

    fn resize(&self, size: u64, _allow_shrink: bool, context: &Context) -> Result<Done> {
        prepare(&*self.place, context.deadline)?;
        // It may write the whole header, with the parent in it, which another host's sr_collect may be changing.
        let _lock = self.place.tree()?.lock(context.deadline)?;
        let node = self.node()?;
        if node.hidden {
            return Err(self.is_hidden("vdi_resize"));
        }
        let size = self.kind.round(size)?;
        if size < node.virtual_size {
            return Err(Error::Unsupported {
                op: "making it smaller",
                why: format!(
                    "a {} disk can only grow; VDI {} has {}",
                    self.kind.format,
                    self.place.vdi(),
                    Size(node.virtual_size)
                ),
            });
        }
        if size == node.virtual_size {
            // Of a call that was killed in between.
            self.place.settle()?;
            busy(&*self.place, datapath::follow_size(&self.place.path(), context.deadline))?;
            return Ok(Done::Already);
        }
        let _pause = pause_here(&*self.place)?;
        let _alone = self.place.tree()?.alone(&[self.place.vdi()])?;
        let resized = (self.kind.resize)(self.place.image(Mode::ReadWrite)?, &self.place.path(), size);
        resized.map_err(|cause| match self.node() {
            Ok(now) if now.virtual_size == size => cause.after(has_now(&*self.place, size)),
            _ => cause,
        })?;
        Ok(Done::Changed)
    }
}

/// Makes the server of a disk close its chain, if it has one. What a killed server left is for its user to see, and to
/// detach.
fn pause(disk: &dyn Place) -> Result<Option<datapath::Paused>> {
    match datapath::find(&disk.path())? {
        Some(dead) if !dead.healthy => Err(in_use(disk, format!("{}, whose server was killed", dead.device.display()))),
        _ => pause_here(disk),
    }
}

/// Makes the server of a disk close its chain, if it has one.
fn pause_here(disk: &dyn Place) -> Result<Option<datapath::Paused>> {
    busy(disk, datapath::pause(&disk.path(), disk.deadline()))
}

/// Does before the tree's lock is taken what may take long of a pause that follows.
fn prepare(disk: &dyn Place, deadline: Instant) -> Result<()> {
    busy(disk, datapath::prepare(&disk.path(), deadline))
}

/// What a device or its server says of its use, said of the disk.
fn busy<T>(disk: &dyn Place, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::DeviceInUse { holder, .. } => in_use(disk, holder),
        other => other,
    })
}

/// The images whose parent is `base`, in the order of their UUIDs.
pub fn children_of(nodes: &BTreeMap<VdiUuid, Node>, base: VdiUuid) -> Vec<VdiUuid> {
    nodes.iter().filter(|(_, node)| node.parent == Some(base)).map(|(vdi, _)| *vdi).collect()
}

/// # Errors
/// [`Error::VdiInUse`] while others of the `nodes` have the place's image as their parent.
pub fn refuse_if_parent(place: &dyn Place, nodes: &BTreeMap<VdiUuid, Node>) -> Result<()> {
    let children = children_of(nodes, place.vdi());
    match children.first() {
        None => Ok(()),
        Some(child) => {
            Err(in_use(place, format!("{} VDIs that have it as their parent, such as {child}", children.len())))
        }
    }
}

/// The children of each image that has some, for who asks for many: [`children_of`] looks at every image.
pub fn by_parent(nodes: &BTreeMap<VdiUuid, Node>) -> BTreeMap<VdiUuid, Vec<VdiUuid>> {
    let mut children = BTreeMap::<VdiUuid, Vec<VdiUuid>>::new();
    for (vdi, node) in nodes {
        if let Some(parent) = node.parent {
            children.entry(parent).or_default().push(*vdi);
        }
    }
    children
}

/// An image that cannot be read and so may be the child of any base of this format.
pub fn unread(nodes: &BTreeMap<VdiUuid, Node>, format: Format) -> Option<VdiUuid> {
    nodes.iter().find(|(_, node)| node.unread == Some(format)).map(|(vdi, _)| *vdi)
}

/// Whether `vdi`, of this format, is all that `base`, which is nobody's disk, is there for.
fn is_only_child(tree: &dyn Tree, (vdi, format): (VdiUuid, Format), base: VdiUuid) -> Result<bool> {
    let nodes = tree.nodes()?;
    if unread(&nodes, format).is_some() {
        return Ok(false);
    }
    let usable = [vdi, base].iter().all(|image| nodes.get(image).is_some_and(|node| node.state.is_healthy()));
    Ok(usable && nodes[&base].hidden && children_of(&nodes, base) == [vdi])
}

/// All images above `base`, which have it in their chains.
fn descendants(nodes: &BTreeMap<VdiUuid, Node>, base: VdiUuid) -> Vec<VdiUuid> {
    let children = by_parent(nodes);
    let mut found = children.get(&base).cloned().unwrap_or_default();
    let mut next = 0;
    while let Some(vdi) = found.get(next) {
        // Images that name each other as parents are no tree, and no reason to go round for ever.
        let more: Vec<VdiUuid> = children
            .get(vdi)
            .into_iter()
            .flatten()
            .filter(|vdi| **vdi != base && !found.contains(vdi))
            .copied()
            .collect();
        found.extend(more);
        next += 1;
    }
    found
}

/// Whether a base of this format has nobody left who needs it.
fn is_garbage(nodes: &BTreeMap<VdiUuid, Node>, base: VdiUuid, format: Format) -> bool {
    nodes.get(&base).is_some_and(|node| node.hidden)
        && children_of(nodes, base).is_empty()
        && unread(nodes, format).is_none()
}
