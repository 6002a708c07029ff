//! The images of a directory: what each says of itself, and whether it can be used.
//!
//! A look at many images never fails because of one of them. An image that cannot be read is listed with its
//! [`State`]; it stays the child of the parent that its header names, so that this parent is neither merged nor
//! removed. If not even that can be read (an I/O error, no permission, a lost header), it may be the child of any base of
//! its format, and none of these is merged or removed until it can be read or is deleted ([`Node::unread`]).

use super::*;

/// An image of the SR and what it says of itself.
pub(super) struct Image {
    pub(super) vdi: VdiUuid,
    pub(super) format: Format,
    pub(super) id: loopdev::FileId,
    pub(super) extent: Extent,
    /// Size 0, no parent but the one that can be told, and a state, of an image that cannot be read.
    pub(super) node: Node,
}

impl Image {
    /// Looks at one image. `None`: it was deleted since the directory was read, so it was not there.
    ///
    /// # Errors
    /// Only of this process or the whole directory. An image that cannot be read is an answer.
    pub(super) fn read(dir: &Dir, vdi: VdiUuid, format: Format) -> Result<Option<Image>> {
        let name = image_name(vdi, format);
        let (stat, node) = match look(dir, &name, format) {
            Ok(None) => return Ok(None),
            Ok(Some(found)) => found,
            Err(error) if is_of_this_process(&error) => return Err(error),
            Err(error) => {
                let Some(stat) = dir.lookup(&name)? else { return Ok(None) };
                let named = named_parent(dir, &name, format);
                let unread = named.is_none().then_some(format);
                (stat, Node { state: State::of(&error), parent: named.flatten(), unread, ..Node::alone(0) })
            }
        };
        Ok(Some(Image { vdi, format, id: stat.id, extent: extent(&stat), node }))
    }
}

fn look(dir: &Dir, name: &str, format: Format) -> Result<Option<(Stat, Node)>> {
    let kind = vdi::kind(format);
    if kind.by_length {
        return Ok(must_be(dir, name, SFlag::S_IFREG)?.map(|stat| (stat, Node::alone(stat.length))));
    }
    loop {
        let Some((file, stat)) = dir.try_open_and_stat(name)? else { return Ok(None) };
        let node = (kind.query)(file, &dir.join(name))?;
        // A fork may have made a base of the file between the open and the read: hidden, and no longer what has the name.
        if !node.hidden || dir.lookup(name)?.is_none_or(|now| now.id == stat.id) {
            return Ok(Some((stat, node)));
        }
    }
}

/// The parent that a damaged image names, or that it names none, as far as that can still be read.
fn named_parent(dir: &Dir, name: &str, format: Format) -> Option<Option<VdiUuid>> {
    if vdi::kind(format).by_length {
        return Some(None);
    }
    let file = dir.try_open_record(name).ok()??;
    (vdi::kind(format).named_parent)(file, &dir.join(name))
}

/// Whether an error says nothing about the image that was looked at: this process may have no more files or memory.
fn is_of_this_process(error: &Error) -> bool {
    matches!(error.errno().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}

impl FileSr {
    /// Looks at every image once: one stat for a raw one; one open and one read for the others.
    ///
    /// A base that sr_scan has not to show yet, because `.sm-tree` names it, is told as hidden.
    ///
    /// # Errors
    /// None because of a single image, see [`Image::read`].
    pub(super) fn images(&self, dir: &Dir, listing: &Listing) -> Result<Vec<Image>> {
        self.images_of(dir, listing, |_| true)
    }

    /// The images that have a place in a tree. Raw ones are left out: there may be a hundred times as many, and each
    /// would be looked at several times a merge.
    pub(super) fn trees(&self, dir: &Dir, listing: &Listing) -> Result<BTreeMap<VdiUuid, Node>> {
        let images = self.images_of(dir, listing, |format| !vdi::kind(format).by_length)?;
        Ok(images.into_iter().map(|image| (image.vdi, image.node)).collect())
    }

    fn images_of(&self, dir: &Dir, listing: &Listing, which: impl Fn(Format) -> bool) -> Result<Vec<Image>> {
        let mut wanted: Vec<(VdiUuid, Format)> =
            listing.images.iter().map(|(v, f)| (*v, *f)).filter(|(_, format)| which(*format)).collect();
        wanted.sort_unstable();
        let with_trees = wanted.iter().any(|(_, format)| !vdi::kind(*format).by_length);
        let changing = || if with_trees { read_change(dir) } else { Ok(None) };
        // A change may end while the images are read.
        let before = changing()?;
        let most = if wanted.len() < 64 { 1 } else { 8 };
        let parts: Vec<Result<Vec<Image>>> = threads::in_parts(&wanted, most, |part| {
            part.iter().filter_map(|(v, f)| Image::read(dir, *v, *f).transpose()).collect()
        });
        let mut images = Vec::with_capacity(wanted.len());
        for part in parts {
            images.append(&mut part?);
        }
        let after = changing()?;
        for record in [&before, &after].into_iter().flatten() {
            if let Record::Fork { base, .. } | Record::Collapse { base, .. } = record
                && let Some(image) = images.iter_mut().find(|image| image.vdi == *base)
            {
                image.node.hidden = true;
            }
        }
        if let Some(record) = &after
            && let Some(unborn) = unborn(dir, record)?
        {
            images.retain(|image| image.vdi != unborn);
        }
        for image in &mut images {
            if let Some((first, second)) = listing.doubled(image.vdi) {
                image.node.state = State::Broken(two_images(first, second));
                image.node.unread = Some(second).filter(|format| !vdi::kind(*format).by_length);
            }
        }
        // While a tree changes, a child may have been read before its parent's name moved.
        if before.is_none() && after.is_none() {
            judge(&mut images, &listing.images);
        }
        Ok(images)
    }
}

/// What is wrong with a VDI that has images of two formats.
pub(super) fn two_images(first: Format, second: Format) -> String {
    format!("the VDI has two images, {first} and {second}; move one of them away")
}

/// Gives a state to each image whose parents cannot be used: the parent is not `there`, or is another image than the
/// child was made from, or is not healthy itself, or the chain has no end.
fn judge(images: &mut [Image], there: &HashMap<VdiUuid, Format>) {
    if images.iter().all(|image| image.node.parent.is_none()) {
        return;
    }
    let by_vdi: HashMap<VdiUuid, usize> = images.iter().enumerate().map(|(n, image)| (image.vdi, n)).collect();
    let parent_of = |image: &Image| image.node.parent.and_then(|parent| by_vdi.get(&parent).copied());
    for n in 0..images.len() {
        if let Some(parent) = images[n].node.parent
            && images[n].node.state.is_healthy()
            && let Some(state) = with_parent(&images[n], parent, parent_of(&images[n]).map(|p| &images[p]), there)
        {
            images[n].node.state = state;
        }
    }
    let mut judged: Vec<bool> = images.iter().map(|image| image.node.parent.is_none()).collect();
    for n in 0..images.len() {
        // Up to an image that is judged already or has no parent here, then down again.
        let (mut chain, mut next) = (Vec::new(), Some(n));
        while let Some(at) = next.filter(|at| !judged[*at]) {
            judged[at] = true;
            chain.push(at);
            next = parent_of(&images[at]);
        }
        if let Some(at) = next.filter(|at| chain.contains(at)) {
            images[at].node.state = State::Broken("the image is its own ancestor".to_owned());
        }
        for at in chain.into_iter().rev() {
            let Some(parent) = parent_of(&images[at]).map(|p| &images[p]) else { continue };
            if images[at].node.state.is_healthy() && !parent.node.state.is_healthy() {
                let state = format!("the parent {} cannot be used: {}", parent.vdi, parent.node.state);
                images[at].node.state = State::Broken(state);
            }
        }
    }
}

/// What is wrong between an image and the one that its parent's name leads to.
fn with_parent(image: &Image, name: VdiUuid, found: Option<&Image>, there: &HashMap<VdiUuid, Format>) -> Option<State> {
    let Some(format) = there.get(&name) else { return Some(State::ParentMissing(name.to_string())) };
    // A raw image is not looked at where only trees are; it has no identity anyway.
    let raw = Node::alone(0);
    let parent = found.map_or(&raw, |parent| &parent.node);
    let is = image.node.is_child_of(image.format, parent, *format);
    (!is).then(|| State::ParentMissing(vdi::another_image(name)))
}
