//! Trees of images in a directory: how they change, and what a crash leaves of a change.

use super::place::Unnamed;
use super::*;
use crate::error::{ended, one_line};
use crate::sys::syslog;

/// How often in one run the data of a disk in use is set aside, at most.
const MOST_ROUNDS: u32 = 8;

impl FileSr {
    /// [`Tree::lock`].
    pub(super) fn lock_trees(&self, dir: &Dir, deadline: Instant) -> Result<Lock> {
        let mut lock = lock::take(&self.sr.to_string(), "tree", lock::Kind::Exclusive, deadline);
        if self.shared {
            let file = dir.lock_file(TREE_LOCK)?;
            lock = lock.and_then(|lock| lock.among_hosts(file, &dir.join(TREE_LOCK), deadline));
        }
        let lock = lock.map_err(|refused| {
            refused.or_timed_out(|holder| Error::Busy {
                sr: self.sr,
                holder: holder.to_owned(),
                what: "a tree of its images".to_owned(),
            })
        })?;
        if let Some(unfinished) = self.recover_change(dir)? {
            syslog::write(&format!("a merge that was killed is left undone: {}", one_line(&unfinished)));
        }
        Ok(lock)
    }

    /// [`Tree::alone`]; `vdi` is the one that is told to be in use, by `whom`.
    pub(super) fn alone(&self, dir: &Dir, vdis: &[VdiUuid], vdi: VdiUuid, whom: &str) -> Result<Option<Uses>> {
        if !self.shared {
            return Ok(None);
        }
        let names: Vec<String> = vdis.iter().map(VdiUuid::to_string).collect();
        match uses::alone(dir.lock_file(USES)?, &dir.join(USES), names.iter().map(String::as_str))? {
            Some(alone) => Ok(Some(alone)),
            None => Err(Error::VdiInUse { vdi, sr: self.sr, holder: format!("{whom} ({USES} is locked)") }),
        }
    }

    /// Completes or undoes what a crash left of a change. The caller holds the tree's lock.
    ///
    /// The answer says why a relink was given up, if it was: one image that cannot be changed must not keep all trees of
    /// the SR from changing for ever.
    pub(super) fn recover_change(&self, dir: &Dir) -> Result<Option<Error>> {
        let Some(record) = read_change(dir)? else { return Ok(None) };
        let mut unfinished = None;
        // Whoever was at it may live on without his lock, on a host that was away from the server for long: what he
        // would still rename must be gone before anything is undone.
        if self.shared {
            for name in dir.names()? {
                dir.sweep_temporary(&name)?;
            }
            dir.sync()?;
        }
        match record {
            Record::Fork { vdi, base, dest, format } => self.recover_fork(dir, vdi, base, dest, format)?,
            Record::Relink { vdi, base, format } => unfinished = self.finish_relink(dir, vdi, base, format)?,
            Record::Collapse { vdi, base, format } => {
                let (name, leaf) = (image_name(base, format), image_name(vdi, format));
                let hide =
                    |hidden| (vdi::kind(format).set_hidden)(&dir.open_file(&name, true)?, &dir.join(&name), hidden);
                match (dir.lookup(&leaf)?, dir.lookup(&name)?) {
                    (_, None) => {}
                    // It has happened.
                    (Some(disk), Some(found)) if disk.id == found.id => drop(dir.remove(&name)?),
                    // Until the base has the leaf's name, the leaf is all there and the base is what it was.
                    (Some(_), Some(_)) => hide(true)?,
                    // NFS renames a leaf that a reader has open before it renames over it. The base holds all of it.
                    (None, Some(_)) => {
                        hide(false)?;
                        dir.rename(&name, &leaf)?;
                    }
                }
            }
            _ => return Err(damaged_record(dir, CHANGE)),
        }
        dir.sync()?;
        dir.remove(CHANGE)?;
        dir.sync()?;
        Ok(unfinished)
    }

    fn recover_fork(
        &self,
        dir: &Dir,
        vdi: VdiUuid,
        base: VdiUuid,
        dest: Option<VdiUuid>,
        format: Format,
    ) -> Result<()> {
        let name = image_name(base, format);
        let unmake = |dest: VdiUuid| -> Result<()> {
            if is_child(dir, dest, base, format)? {
                dir.remove(&image_name(dest, format))?;
                dir.sync()?;
            }
            remove_leftovers(dir, dest).map(drop)
        };
        match (dir.lookup(&image_name(vdi, format))?, dir.lookup(&name)?) {
            // No filesystem has to keep the order of two names that were synced together.
            (_, None) => dest.map_or(Ok(()), unmake)?,
            // Still one file: the disk was not changed yet.
            (Some(disk), Some(found)) if disk.id == found.id => {
                dest.map_or(Ok(()), unmake)?;
                dir.remove(&name)?;
            }
            (Some(_), Some(_)) => (vdi::kind(format).set_hidden)(&dir.open_file(&name, true)?, &dir.join(&name), true)?,
            // NFS renames an image that a reader has open before it renames another one over it.
            (None, Some(_)) => {
                dest.map_or(Ok(()), unmake)?;
                dir.rename(&name, &image_name(vdi, format))?;
            }
        }
        Ok(())
    }

    /// Gives every child of `vdi` to `base`, then removes `vdi`. Can be done again from any point of it.
    ///
    /// The answer says why a child could not be given away; `vdi` then stays. As `base` holds all that `vdi` does, a child
    /// shows the same with either of them as its parent, so this is no half-done change.
    fn finish_relink(&self, dir: &Dir, vdi: VdiUuid, base: VdiUuid, format: Format) -> Result<Option<Error>> {
        let kind = vdi::kind(format);
        let Some(base_format) = format_of(dir, base)? else {
            return Err(Error::Damaged {
                path: dir.join(CHANGE),
                what: format!("names {base} as the parent to be, and there is no such image"),
            });
        };
        let shared = Rc::new(Dir::open(dir.path())?);
        let parent = self.place(shared.clone(), base, base_format);
        let parent_image = parent.image(Mode::ReadOnly)?;
        let listing = self.list(dir)?;
        let old = dir.lookup(&image_name(vdi, format))?.map(|_| self.place(shared, vdi, format));
        let nodes = self.trees(dir, &listing)?;
        if let Some(unread) = vdi::cow::unread(&nodes, format) {
            let path = dir.join(&image_name(vdi, format));
            return Ok(Some(Error::Damaged { path, what: may_be_needed(unread) }));
        }
        for child in vdi::cow::children_of(&nodes, vdi) {
            let name = image_name(child, listing.images[&child]);
            let give = || -> Result<()> {
                // What names another image by this one's name has lost its parent: given to the base, it would show bytes
                // that were never its own.
                if let Some(old) = &old {
                    let file = dir.open_file(&name, false)?;
                    (kind.check_parent)(&file, &dir.join(&name), &old.image(Mode::ReadOnly)?, old)?;
                }
                (kind.set_parent)(&dir.open_file(&name, true)?, &dir.join(&name), &parent_image, &parent)
            };
            if let Err(error) = give() {
                return Ok(Some(error));
            }
        }
        dir.remove(&image_name(vdi, format))?;
        dir.sync()?;
        remove_leftovers(dir, vdi)?;
        Ok(None)
    }

    /// Removes bases that have no children left, but for those that `failures` names; adds to these what cannot be
    /// removed. The caller has the SR, or its tree's lock.
    pub(super) fn remove_garbage(&self, dir: &Rc<Dir>, listing: &Listing, failures: &mut Failures) -> Result<()> {
        let nodes = self.trees(dir, listing)?;
        let mut children = vdi::cow::by_parent(&nodes);
        let mut unneeded: Vec<VdiUuid> = garbage(&nodes, &children, failures).collect();
        while let Some(base) = unneeded.pop() {
            let format = listing.images[&base];
            if let Some(unread) = vdi::cow::unread(&nodes, format) {
                let path = dir.join(&image_name(base, format));
                failures.insert(base, Error::Damaged { path, what: may_be_needed(unread) });
                continue;
            }
            let remove = || {
                vdi::refuse_if_attached(&*self.disk(dir.clone(), base, format)?)?;
                self.place(dir.clone(), base, format).remove()
            };
            if let Err(error) = remove() {
                failures.insert(base, error);
                continue;
            }
            if let Some(parent) = nodes[&base].parent {
                children.entry(parent).or_default().retain(|child| *child != base);
                unneeded.extend(Some(parent).filter(|parent| is_garbage(&nodes, &children, failures, parent)));
            }
        }
        Ok(())
    }

    /// [`Sr::collect`].
    pub(super) fn merge_bases(&self, context: &Context) -> Result<Done> {
        let dir = self.dir()?;
        // The Python collector holds these while it works; whoever has them is the only one.
        let busy = |refused: lock::Refused| {
            refused.or_timed_out(|who| Error::SrUnavailable { sr: self.sr, why: format!("{who} collects it already") })
        };
        let mut alone = lock::take(&self.sr.to_string(), "gc_active", lock::Kind::Exclusive, Instant::now());
        if self.shared {
            // Two that write into one base at the same time would put different blocks in one place.
            let file = dir.lock_file(COLLECT_LOCK)?;
            alone = alone.and_then(|lock| lock.among_hosts(file, &dir.join(COLLECT_LOCK), Instant::now()));
        }
        let _alone = alone.map_err(busy)?;
        let _running =
            lock::take(&self.sr.to_string(), "running", lock::Kind::Exclusive, Instant::now()).map_err(busy)?;
        let (mut done, mut left, mut failures) = (Done::Already, HashSet::new(), Failures::new());
        // What disks held when their data was last set aside, because they are in use, and how often that was.
        let mut rounds: HashMap<VdiUuid, (u64, u32)> = HashMap::new();
        if read_change(&dir)?.is_some() {
            drop(self.lock_trees(&dir, context.deadline)?);
        }
        loop {
            let listing = self.list(&dir)?;
            if listing.journals {
                return Err(Error::SrUnavailable {
                    sr: self.sr,
                    why: "the collector of another storage manager left a journal in it and has to finish first"
                        .to_owned(),
                });
            }
            let nodes = self.trees(&dir, &listing)?;
            let children = vdi::cow::by_parent(&nodes);
            if garbage(&nodes, &children, &failures).next().is_some() {
                let _lock = self.lock_trees(&dir, context.deadline)?;
                self.remove_garbage(&dir, &self.list(&dir)?, &mut failures)?;
                done = Done::Changed;
                continue;
            }
            let only_child = |v: &VdiUuid| {
                let parent = nodes[v].parent;
                !left.contains(v)
                    && parent.is_some_and(|p| nodes.get(&p).is_some_and(|n| n.hidden) && children[&p].len() == 1)
            };
            // Bases first: a disk in use is merged with what was set aside of it only when that was.
            let (bases, disks): (Vec<VdiUuid>, Vec<VdiUuid>) = nodes.keys().partition(|v| nodes[v].hidden);
            let Some(next) = bases.into_iter().chain(disks).find(only_child) else { break };
            let unread = vdi::cow::unread(&nodes, listing.images[&next]);
            if let Some(what) = unmergeable(&nodes, &children, next).or(unread.map(may_be_needed)) {
                let path = dir.join(&image_name(next, listing.images[&next]));
                failures.insert(next, Error::Damaged { path, what: format!("it is not merged: {what}") });
                left.insert(next);
                continue;
            }
            if !nodes[&next].hidden {
                let holds = self.place(dir.clone(), next, listing.images[&next]).stat()?.allocated;
                let (before, times) = rounds.get(&next).copied().unwrap_or((u64::MAX, 0));
                if holds >= before || times == MOST_ROUNDS {
                    // Written to as fast as it is merged.
                    left.insert(next);
                    continue;
                }
                rounds.insert(next, (holds, times + 1));
            }
            // A disk in use is left for the next time.
            let merged = match lock::take(&next.to_string(), "vdi", lock::Kind::Exclusive, Instant::now()) {
                Ok(_lock) => match self.disk(dir.clone(), next, listing.images[&next])?.coalesce(context) {
                    Ok(merged) => merged,
                    // Deleted since the directory was read.
                    Err(Error::NoVdi { .. }) => Done::Already,
                    // Not this image's fault, and the next would wait as long.
                    Err(error @ (Error::SrUnavailable { .. } | Error::Busy { .. })) => return Err(error),
                    // One image keeps no other from being merged.
                    Err(error) => {
                        failures.insert(next, error);
                        Done::Already
                    }
                },
                Err(lock::Refused::TimedOut { .. }) => Done::Already,
                Err(lock::Refused::Failed(error)) => return Err(error),
            };
            match merged {
                Done::Changed => done = Done::Changed,
                Done::Already => drop(left.insert(next)),
            }
        }
        for (vdi, failure) in &failures {
            syslog::write(&format!("SR {}: {vdi} is not merged: {}", self.sr, one_line(failure)));
        }
        match failures.is_empty() {
            true => Ok(done),
            false => Err(Error::NotMerged { sr: self.sr, failures: failures.into_iter().collect() }),
        }
    }
}

/// Why images could not be merged or removed.
pub(super) type Failures = BTreeMap<VdiUuid, Error>;

type Children = BTreeMap<VdiUuid, Vec<VdiUuid>>;

/// The bases that nobody needs any more and whose removal has not failed yet.
fn garbage<'a>(
    nodes: &'a BTreeMap<VdiUuid, Node>,
    children: &'a Children,
    failures: &'a Failures,
) -> impl Iterator<Item = VdiUuid> + 'a {
    nodes.keys().copied().filter(|base| is_garbage(nodes, children, failures, base))
}

fn is_garbage(nodes: &BTreeMap<VdiUuid, Node>, children: &Children, failures: &Failures, base: &VdiUuid) -> bool {
    nodes.get(base).is_some_and(|node| node.hidden)
        && children.get(base).is_none_or(Vec::is_empty)
        && !failures.contains_key(base)
}

/// Why nothing is merged or removed among the bases that may be the parent of an image that cannot be read.
fn may_be_needed(unread: VdiUuid) -> String {
    format!("{unread} cannot be read and may need this image or its parent: make it readable, restore it, or delete it")
}

/// Why an image that is its parent's only child must not be merged with it: it, its parents or one of its children
/// cannot be used, or is not what the names say.
fn unmergeable(nodes: &BTreeMap<VdiUuid, Node>, children: &Children, vdi: VdiUuid) -> Option<String> {
    let concerned = std::iter::once(&vdi).chain(children.get(&vdi).into_iter().flatten());
    concerned.map(|vdi| (vdi, &nodes[vdi].state)).find(|(_, state)| !state.is_healthy()).map(|(is, state)| match *is {
        is if is == vdi => state.to_string(),
        child => format!("its child {child} cannot be used: {state}"),
    })
}

impl FilePlace<'_> {
    fn parent(&self) -> Result<Option<VdiUuid>> {
        Ok((vdi::kind(self.format).query)(self.image(Mode::ReadOnly)?, &self.path())?.parent)
    }
}

impl Tree for FilePlace<'_> {
    fn lock(&self, deadline: Instant) -> Result<Lock> {
        self.sr.lock_trees(&self.dir, deadline)
    }

    fn nodes(&self) -> Result<BTreeMap<VdiUuid, Node>> {
        self.sr.trees(&self.dir, &self.sr.list(&self.dir)?)
    }

    fn sibling(&self, vdi: VdiUuid) -> Result<Box<dyn Place + '_>> {
        match format_of(&self.dir, vdi)? {
            Some(format) => Ok(Box::new(self.sr.place(self.dir.clone(), vdi, format))),
            None => Err(Error::NoVdi { vdi, sr: self.sr.sr, looked: self.dir.path().display().to_string() }),
        }
    }

    fn alone(&self, vdis: &[VdiUuid]) -> Result<Option<Uses>> {
        self.sr.alone(&self.dir, vdis, self.vdi, "another host, which has it or a disk above it attached")
    }

    fn lend(&self, read_only: bool) -> Result<Option<[Uses; 2]>> {
        if !self.sr.shared {
            return Ok(None);
        }
        let chain = || -> Result<Vec<VdiUuid>> {
            let (mut chain, mut next) = (vec![self.vdi], self.parent()?);
            while let Some(parent) = next {
                if chain.contains(&parent) {
                    return Err(Error::Damaged {
                        path: self.path(),
                        what: format!("its chain of parents meets itself at {parent}"),
                    });
                }
                chain.push(parent);
                let format = format_of(&self.dir, parent)?.ok_or_else(|| self.gone())?;
                next = self.sr.place(self.dir.clone(), parent, format).parent()?;
            }
            Ok(chain)
        };
        let names = |chain: &[VdiUuid]| chain.iter().map(VdiUuid::to_string).collect::<Vec<_>>();
        let deadline = self.sr.deadline.end();
        loop {
            let before = chain()?;
            let path = self.dir.join(USES);
            let hold = |names: &[String]| {
                uses::hold(self.dir.lock_file(USES)?, &path, names.iter().map(String::as_str), deadline)
            };
            let held = match read_only {
                true => [hold(&names(&before[..1]))?, hold(&names(&before[1..]))?],
                false => [self.alone(&before[..1])?.expect("it is shared"), hold(&names(&before[1..]))?],
            };
            if chain()? == before {
                return Ok(Some(held));
            }
        }
    }

    fn fork(&self, fork: &Fork) -> Result<()> {
        let (dir, kind) = (&*self.dir, fork.kind);
        let base = self.sr.place(self.dir.clone(), fork.base, self.format);
        let dest = fork.dest.map(|(dest, params)| (self.sr.place(self.dir.clone(), dest, self.format), params));
        if let Some((dest, _)) = &dest
            && (dest.vdi == self.vdi || has_image(dir, dest.vdi)?)
        {
            return Err(dest.exists_already());
        }
        let image = self.image(Mode::ReadOnly)?;
        let mut own = self.unnamed(&Params::default())?;
        let mut new = dest.as_ref().map(|(dest, params)| dest.unnamed(params)).transpose()?;
        let (own_path, new_path) = (self.path(), dest.as_ref().map(|(dest, _)| dest.path()).unwrap_or_default());
        let base_path = base.path();
        let write = |child: &mut Unnamed, path: &Path| -> Result<()> {
            (kind.create_child)(child.image.file(), path, &image, &base_path)?;
            child.sync_beside_image()
        };
        let record =
            Record::Fork { vdi: self.vdi, base: fork.base, dest: fork.dest.map(|(d, _)| d), format: self.format };
        // None of these needs another, so they wait for the disk, or write large tables, at the same time.
        let (new_written, (own_written, begun)) = threads::both(
            || new.as_mut().map_or(Ok(()), |new| write(new, &new_path)),
            || {
                let written = write(&mut own, &own_path);
                let begun = written.is_ok().then(|| dir.create(CHANGE, &encode(&record)));
                (written, begun)
            },
        );
        // NFS would rename a file that is open here out of the way, and for a moment nothing had its name.
        drop(image);
        match begun.transpose()? {
            Some(true) | None => {}
            Some(false) => return Err(damaged_record(dir, CHANGE)),
        }
        let done = own_written
            .and(new_written)
            .and_then(|()| dir.link(&self.name(), &base.name()))
            .and_then(|()| dest.as_ref().zip(new).map_or(Ok(()), |((dest, _), new)| dest.publish_soon(new)))
            .and_then(|()| dir.sync())
            .and_then(|()| own.image.publish_over(&self.name()))
            .and_then(|()| (kind.set_hidden)(&dir.open_file(&base.name(), true)?, &base_path, true));
        match done {
            // A record of what is complete is completed again, so it matters neither that this is durable nor
            // that it works.
            Ok(()) => {
                let _ = dir.remove(CHANGE);
                Ok(())
            }
            Err(cause) => {
                let recovered = self.sr.recover_change(dir).map(drop);
                let is_made = |dest: VdiUuid| {
                    Ok::<_, Error>(is_child(dir, dest, fork.base, self.format)? && !is_unborn(dir, dest)?)
                };
                match fork.dest {
                    Some((dest, _)) if is_made(dest).unwrap_or(false) => Err(cause.after(vdi::made(dest))),
                    _ => Err(cause.undone(recovered)),
                }
            }
        }
    }

    fn relink(&self, parent: VdiUuid, _kind: &'static Kind) -> Result<()> {
        let record = Record::Relink { vdi: self.vdi, base: parent, format: self.format };
        if !self.dir.create(CHANGE, &encode(&record))? {
            return Err(damaged_record(&self.dir, CHANGE));
        }
        self.sr.recover_change(&self.dir)?.map_or(Ok(()), Err)
    }

    fn collapse(&self, parent: VdiUuid, kind: &'static Kind) -> Result<()> {
        let base = self.sr.place(self.dir.clone(), parent, self.format);
        let record = Record::Collapse { vdi: self.vdi, base: parent, format: self.format };
        if !self.dir.create(CHANGE, &encode(&record))? {
            return Err(damaged_record(&self.dir, CHANGE));
        }
        let done = (|| {
            let image = base.image(Mode::ReadWrite)?;
            (kind.set_hidden)(&image, &base.path(), false)?;
            // A temporary name: whoever repairs removes it first, see `recover_change`.
            let passing = self.dir.passing_link(&base.name(), &image)?;
            passing.publish_over(&self.name())?;
            drop(image);
            self.dir.remove(&base.name())?;
            self.dir.sync()
        })();
        ended(done, self.sr.recover_change(&self.dir).map(drop))
    }
}

/// Whether a VDI has an image that names `base` as its parent. Somebody else may have made a disk of that name.
fn is_child(dir: &Dir, vdi: VdiUuid, base: VdiUuid, format: Format) -> Result<bool> {
    let name = image_name(vdi, format);
    let Some(file) = dir.try_open_record(&name)? else { return Ok(false) };
    match (vdi::kind(format).query)(file, &dir.join(&name)) {
        Ok(node) => Ok(node.parent == Some(base)),
        // A change writes its children durably before it names them, so this is none of its.
        Err(Error::Damaged { .. } | Error::Unsupported { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The VDI of a fork that has not happened yet: its image has a name, but until the disk that is forked has its
/// new image nobody may see it, because whoever repairs the tree removes it.
pub(super) fn unborn(dir: &Dir, change: &Record) -> Result<Option<VdiUuid>> {
    let Record::Fork { vdi, base, dest: Some(dest), format } = change else { return Ok(None) };
    let (disk, found) = (dir.lookup(&image_name(*vdi, *format))?, dir.lookup(&image_name(*base, *format))?);
    let happened = match (disk, found) {
        (_, None) => false,
        (disk, Some(found)) => disk.is_none_or(|disk| disk.id != found.id),
    };
    Ok(if !happened && is_child(dir, *dest, *base, *format)? { Some(*dest) } else { None })
}

/// The disk whose image a change replaces.
pub(super) fn changed_disk(change: &Record) -> Option<VdiUuid> {
    match change {
        Record::Fork { vdi, .. } | Record::Collapse { vdi, .. } => Some(*vdi),
        _ => None,
    }
}

/// Whether `vdi` is a disk whose image is being replaced: on NFS its name may be missing for a moment.
pub(super) fn is_being_changed(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    Ok(read_change(dir)?.and_then(|change| changed_disk(&change)) == Some(vdi))
}

pub(super) fn is_unborn(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    match read_change(dir)? {
        Some(change) => Ok(unborn(dir, &change)? == Some(vdi)),
        None => Ok(false),
    }
}

/// Removes the image of a fork that was killed; waits for one of another host that is under way.
pub(super) fn remove_unborn(sr: &FileSr, dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    if !is_unborn(dir, vdi)? {
        return Ok(false);
    }
    drop(sr.lock_trees(dir, sr.deadline.end())?);
    Ok(!has_image(dir, vdi)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::types::SrUuid;

    fn deadline() -> Deadline {
        (Instant::now() + std::time::Duration::from_secs(60)).into()
    }

    fn vhd(vdi: VdiUuid) -> NewVdi {
        NewVdi { vdi, virtual_size: 4 << 20, format: Some(Format::Vhd), params: Params::default() }
    }

    /// The disk of a new SR, and the base and the copy of a fork of it that does not go on.
    struct Forking {
        sr: FileSr,
        dir: Rc<Dir>,
        places: [VdiUuid; 3],
    }

    impl Forking {
        fn begin(sr: FileSr) -> Forking {
            sr.create(None).unwrap();
            let [disk, base, dest] = [(); 3].map(|()| VdiUuid::random());
            sr.create_vdi(&vhd(disk)).unwrap();
            let dir = sr.dir().unwrap();
            let record = Record::Fork { vdi: disk, base, dest: Some(dest), format: Format::Vhd };
            dir.create(CHANGE, &encode(&record)).unwrap();
            Forking { sr, dir, places: [disk, base, dest] }
        }

        /// The lock of the trees as another host has it, whose locks in its own kernel are of another name here.
        fn lock_elsewhere(&self) -> (String, Lock) {
            let namespace = SrUuid::random().to_string();
            let lock = lock::take(&namespace, "tree", lock::Kind::Exclusive, Instant::now()).unwrap();
            let file = self.dir.lock_file(TREE_LOCK).unwrap();
            let lock = lock.among_hosts(file, &self.dir.join(TREE_LOCK), Instant::now()).unwrap();
            (namespace, lock)
        }

        fn places(&self) -> [FilePlace<'_>; 3] {
            self.places.map(|vdi| self.sr.place(self.dir.clone(), vdi, Format::Vhd))
        }

        fn child(&self, image: &NewFile, of: &FilePlace) {
            let [disk, base, _] = self.places();
            let create = vdi::kind(Format::Vhd).create_child;
            create(image.file(), &of.path(), &disk.image(Mode::ReadOnly).unwrap(), &base.path()).unwrap();
        }

        /// All but the last step. The new image of the disk.
        fn before_the_rename(&self) -> NewFile<'_> {
            let [disk, base, _] = self.places();
            let own = self.dir.new_file().unwrap();
            self.child(&own, &disk);
            self.dir.link(&disk.name(), &base.name()).unwrap();
            self.publish_dest();
            own
        }

        fn publish_dest(&self) {
            let [_, _, dest] = self.places();
            let new = dest.unnamed(&Params { read_only: true, ..Params::default() }).unwrap();
            self.child(&new.image, &dest);
            dest.publish(new).unwrap();
        }
    }

    /// What a power cut leaves of a fork where the child's name became durable and the base's did not.
    #[test]
    fn a_child_whose_base_has_no_name_is_unmade() {
        let scratch = tempfile::tempdir().unwrap();
        let fork = Forking::begin(FileSr::new(SrUuid::random(), "file", scratch.path().join("sr"), deadline()));
        let (sr, dir, [disk, _, dest]) = (&fork.sr, &fork.dir, fork.places);
        let sorted = |mut names: Vec<String>| {
            names.retain(|name| name != CHANGE);
            names.sort();
            names
        };
        let before = dir.names().unwrap();
        fork.publish_dest();
        assert_eq!(sr.scan().unwrap().vdi_uuids, [disk]);
        assert!(matches!(sr.vdi(dest), Err(Error::NoVdi { .. })));
        drop(sr.lock_trees(dir, Instant::now()).unwrap());
        assert_eq!(sorted(dir.names().unwrap()), sorted(before));
        assert_eq!(read_change(dir).unwrap().map(|_| ()), None);
        sr.delete().unwrap();
    }

    #[test]
    fn a_disk_that_somebody_made_after_a_killed_fork_is_his() {
        for format in [Format::Vhd, Format::Raw] {
            for linked in [false, true] {
                let scratch = tempfile::tempdir().unwrap();
                let fork = Forking::begin(FileSr::new(SrUuid::random(), "file", scratch.path().join("sr"), deadline()));
                let (sr, [disk, base, dest]) = (&fork.sr, fork.places());
                if linked {
                    fork.dir.link(&disk.name(), &base.name()).unwrap();
                }
                let new = NewVdi { format: Some(format), ..vhd(dest.vdi) };
                sr.create_vdi(&new).unwrap();
                let mut all = [disk.vdi, dest.vdi];
                all.sort_unstable();
                for _ in 0..2 {
                    assert_eq!(sr.scan().unwrap().vdi_uuids, all);
                    assert!(matches!(sr.create_vdi(&new), Err(Error::VdiExists { .. })));
                    assert_eq!(sr.vdi(dest.vdi).unwrap().info().unwrap().parent, None);
                    drop(sr.lock_trees(&fork.dir, Instant::now()).unwrap());
                }
            }
        }
    }

    #[test]
    fn a_host_that_attaches_the_sr_leaves_the_fork_of_another_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("sr");
        let fork = Forking::begin(FileSr::new(SrUuid::random(), "nfs", path.clone(), deadline()).shared());
        let (namespace, lock) = fork.lock_elsewhere();
        let [disk, base, _] = fork.places();
        let mut own = fork.before_the_rename();

        let here = FileSr::new(fork.sr.sr, "nfs", path, deadline()).shared();
        assert_eq!(here.attach().unwrap(), Done::Already);
        own.is_durable();
        own.publish_over(&disk.name()).unwrap();
        drop(lock);
        assert_eq!(here.attach().unwrap(), Done::Already);
        assert_eq!(here.scan().unwrap().vdi_uuids.len(), 2);
        assert_eq!(here.vdi(disk.vdi).unwrap().info().unwrap().parent, Some(base.vdi));
        assert!(here.vdi(base.vdi).unwrap().info().unwrap().hidden);
        lock::forget(&namespace, "tree");
        here.delete().unwrap();
    }

    #[test]
    fn a_wait_for_the_tree_ends_when_the_call_does() {
        const WAIT: std::time::Duration = std::time::Duration::from_millis(200);
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("sr");
        let fork = Forking::begin(FileSr::new(SrUuid::random(), "nfs", path.clone(), deadline()).shared());
        let (namespace, lock) = fork.lock_elsewhere();
        let [disk, base, dest] = fork.places();
        drop(fork.before_the_rename());
        let here = |wait| FileSr::new(fork.sr.sr, "nfs", path.clone(), (Instant::now() + wait).into()).shared();
        let in_time = |result: Result<()>| {
            assert!(matches!(result, Err(Error::Busy { .. })), "{result:?}");
        };
        let begun = Instant::now();
        in_time(here(WAIT).create_vdi(&vhd(dest.vdi)).map(drop));
        in_time(here(WAIT).forget_vdi(dest.vdi).map(drop));
        // As NFS leaves a disk for a moment when it renames another image over one that is open.
        fork.dir.rename(&disk.name(), ".nfs0001").unwrap();
        in_time(here(WAIT).vdi(disk.vdi).map(drop));
        in_time(here(WAIT).scan().map(drop));
        in_time(here(WAIT).stat().map(drop));
        assert!(begun.elapsed() < 20 * WAIT, "{:?}", begun.elapsed());
        drop(lock);
        assert_eq!(here(WAIT).vdi(disk.vdi).unwrap().info().unwrap().virtual_size, 4 << 20);
        assert!(matches!(here(WAIT).vdi(base.vdi), Err(Error::NoVdi { .. })));
        lock::forget(&namespace, "tree");
        fork.dir.remove(".nfs0001").unwrap();
        here(WAIT).delete().unwrap();
    }

    #[test]
    fn who_scans_during_forks_sees_every_disk_and_no_base() {
        const DISKS: usize = 10;
        let scratch = tempfile::tempdir().unwrap();
        let sr = FileSr::new(SrUuid::random(), "file", scratch.path().join("sr"), deadline());
        sr.create(None).unwrap();
        let disks: Vec<VdiUuid> = (0..DISKS).map(|_| sr.create_vdi(&vhd(VdiUuid::random())).unwrap().uuid).collect();
        let (begun, born) = (Mutex::new(HashSet::from_iter(disks.clone())), Mutex::new(disks.clone()));
        let fork_all = || {
            let deadline = Instant::now() + std::time::Duration::from_secs(60);
            let context = Context { deadline, progress: &|_, _| {}, others: None };
            for _ in 0..6 {
                for disk in &disks {
                    let dest = VdiUuid::random();
                    begun.lock().unwrap().insert(dest);
                    sr.vdi(*disk).unwrap().snapshot(dest, &context).unwrap();
                    born.lock().unwrap().push(dest);
                }
            }
        };
        std::thread::scope(|scope| {
            let forking = scope.spawn(fork_all);
            while !forking.is_finished() {
                let there = born.lock().unwrap().clone();
                let seen: HashSet<VdiUuid> = sr.scan().unwrap().vdi_uuids.into_iter().collect();
                assert!(there.iter().all(|vdi| seen.contains(vdi)), "a disk is missing");
                assert!(seen.is_subset(&begun.lock().unwrap()), "a base is shown");
            }
            forking.join().unwrap();
        });
    }

    #[test]
    fn one_host_at_a_time_collects() {
        let scratch = tempfile::tempdir().unwrap();
        let sr = FileSr::new(SrUuid::random(), "nfs", scratch.path().join("sr"), deadline()).shared();
        sr.create(None).unwrap();
        let context = Context { deadline: Instant::now(), progress: &|_, _| {}, others: None };
        let namespace = SrUuid::random().to_string();
        let other = || {
            let file = sr.dir().unwrap().lock_file(COLLECT_LOCK).unwrap();
            let lock = lock::take(&namespace, "gc_active", lock::Kind::Exclusive, Instant::now()).unwrap();
            lock.among_hosts(file, &scratch.path().join("sr").join(COLLECT_LOCK), Instant::now()).unwrap()
        };
        let held = other();
        let refused = sr.collect(&context).unwrap_err();
        assert!(refused.to_string().contains("another host collects it already"), "{refused}");
        drop(held);
        assert_eq!(sr.collect(&context).unwrap(), Done::Already);
        lock::forget(&namespace, "gc_active");
        sr.delete().unwrap();
        assert!(!scratch.path().join("sr").exists());
    }

    // Several hosts.

    fn ctx() -> Context<'static> {
        let deadline = Instant::now() + std::time::Duration::from_secs(20);
        Context { deadline, progress: &|_, _| {}, others: None }
    }

    fn write(sr: &FileSr, vdi: VdiUuid, at: u64, bytes: &[u8]) {
        use crate::image::vhd::{self, Chain};
        let dir = sr.dir().unwrap();
        let path = dir.join(&image_name(vdi, Format::Vhd));
        let open = |path: &Path, rw: bool| -> std::sync::Arc<dyn vhd::Storage> {
            let file = fs::OpenOptions::new().read(true).write(rw).open(path).unwrap();
            std::sync::Arc::new(vhd::FileStorage::new(file, path).unwrap())
        };
        let chain = Chain::open(open(&path, true), Mode::ReadWrite, |link| {
            Ok(vhd::Parent::Vhd(open(&path.with_file_name(link.file_name().unwrap()), false)))
        })
        .unwrap();
        chain.write_at(bytes, at).unwrap();
        chain.close().unwrap();
    }

    fn read(sr: &FileSr, vdi: VdiUuid, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        sr.vdi(vdi)?.read(&mut |disk| disk.read_at(&mut buf, at))?;
        Ok(buf)
    }

    fn two_hosts(path: &Path) -> (FileSr, FileSr) {
        let a = FileSr::new(SrUuid::random(), "nfs", path.to_owned(), deadline()).shared();
        a.create(None).unwrap();
        let b = FileSr::new(a.sr, "nfs", path.to_owned(), deadline()).shared();
        (a, b)
    }

    /// A disk of sevens whose base is there for it alone.
    fn an_only_child(sr: &FileSr) -> VdiUuid {
        let [disk, snap] = [(); 2].map(|()| VdiUuid::random());
        sr.create_vdi(&vhd(disk)).unwrap();
        write(sr, disk, 0, &[7; 4096]);
        sr.vdi(disk).unwrap().snapshot(snap, &ctx()).unwrap();
        sr.vdi(snap).unwrap().delete(&ctx()).unwrap();
        disk
    }

    /// A collapse up to its rename: merged, recorded, the base visible. The name of the base.
    fn begin_collapse(sr: &FileSr, disk: VdiUuid) -> (Rc<Dir>, String) {
        let base = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
        let dir = sr.dir().unwrap();
        dir.create(CHANGE, &encode(&Record::Collapse { vdi: disk, base, format: Format::Vhd })).unwrap();
        let name = image_name(base, Format::Vhd);
        (vdi::kind(Format::Vhd).set_hidden)(&dir.open_file(&name, true).unwrap(), &dir.join(&name), false).unwrap();
        (dir, name)
    }

    /// Host A loses the tree's lock (lease over, or a server restart without reclaim) in the middle of a fork, after
    /// steps 1-4; host B attaches the SR and repairs; A goes on with step 5, the rename.
    #[test]
    fn a_host_that_lost_the_trees_lock_in_a_fork_takes_nothing_away() {
        let scratch = tempfile::tempdir().unwrap();
        let (a, b) = two_hosts(&scratch.path().join("sr"));
        let [disk, base, dest] = [(); 3].map(|()| VdiUuid::random());
        a.create_vdi(&vhd(disk)).unwrap();
        write(&a, disk, 0, &[7; 4096]);
        // As on NFS: the new image of the disk has a temporary name, flocked (lost as well).
        let dir = a.dir().unwrap();
        let place = |v| a.place(dir.clone(), v, Format::Vhd);
        let tmp = format!(".tmp-{}", uuid::Uuid::new_v4());
        let own = dir.lock_file(&tmp).unwrap();
        (vdi::kind(Format::Vhd).create_child)(
            &own,
            &place(disk).path(),
            &place(disk).image(Mode::ReadOnly).unwrap(),
            &place(base).path(),
        )
        .unwrap();
        let record = Record::Fork { vdi: disk, base, dest: Some(dest), format: Format::Vhd };
        dir.create(CHANGE, &encode(&record)).unwrap();
        dir.link(&image_name(disk, Format::Vhd), &image_name(base, Format::Vhd)).unwrap();
        drop(own);
        // B changes some tree, which first recovers
        let other = b.create_vdi(&vhd(VdiUuid::random())).unwrap().uuid;
        b.vdi(other).unwrap().snapshot(VdiUuid::random(), &ctx()).unwrap();
        // A goes on
        let _ = dir.rename(&tmp, &image_name(disk, Format::Vhd));
        assert_eq!(read(&b, disk, 0, 4096).map(|b| b[0]).map_err(|e| e.to_string()), Ok(7));
    }

    /// The same in a collapse: A loses the lock before its rename, B repairs, attaches and writes, A renames.
    #[test]
    fn a_host_that_lost_the_trees_lock_in_a_collapse_takes_nothing_away() {
        let scratch = tempfile::tempdir().unwrap();
        let (a, b) = two_hosts(&scratch.path().join("sr"));
        let disk = an_only_child(&a);
        let (dir, name) = begin_collapse(&a, disk);
        let passing = format!(".tmp-{}", uuid::Uuid::new_v4());
        dir.link(&name, &passing).unwrap();
        b.attach().unwrap();
        write(&b, disk, 8192, &[9; 4096]);
        let _ = dir.rename(&passing, &image_name(disk, Format::Vhd));
        assert_eq!(read(&b, disk, 8192, 4096).map(|b| b[0]).map_err(|e| e.to_string()), Ok(9));
    }

    /// B exports a disk (VdiExport: its locks are B's own); meanwhile A collects, then attaches and writes.
    #[test]
    fn an_export_is_of_one_moment_whatever_another_host_does() {
        let scratch = tempfile::tempdir().unwrap();
        let (a, b) = two_hosts(&scratch.path().join("sr"));
        let disk = an_only_child(&a);
        let mut seen = vec![0; 8192];
        b.vdi(disk)
            .unwrap()
            .read(&mut |bytes| {
                bytes.read_at(&mut seen[4096..], 4096)?;
                let _ = a.collect(&ctx());
                write(&a, disk, 0, &[9; 8192]);
                bytes.read_at(&mut seen[..4096], 0)
            })
            .unwrap();
        let before = (seen[0], seen[4096]) == (7, 0);
        let after = (seen[0], seen[4096]) == (9, 9);
        assert!(before || after, "torn export");
    }

    /// B exports a disk that A has open for writing: refused?
    #[test]
    fn a_disk_that_another_host_has_open_is_not_exported() {
        let scratch = tempfile::tempdir().unwrap();
        let (a, b) = two_hosts(&scratch.path().join("sr"));
        let disk = VdiUuid::random();
        a.create_vdi(&vhd(disk)).unwrap();
        let dir = a.dir().unwrap();
        let _server =
            uses::hold(dir.lock_file(USES).unwrap(), &dir.join(USES), [disk.to_string().as_str()], Instant::now())
                .unwrap();
        // What dispatch of VdiExport checks:
        let there = b.vdi(disk).unwrap();
        let refused = if !there.info().unwrap().read_only { vdi::refuse_if_attached(&*there) } else { Ok(()) };
        let refused = refused.and_then(|()| there.read(&mut |_| Ok(())));
        assert!(refused.is_err(), "the export of a disk in use elsewhere is not refused");
    }

    /// A clones a raw disk (no reflink); meanwhile B locks it, as who attaches does, and writes.
    #[test]
    fn a_copy_is_not_made_of_a_disk_that_another_host_locked_meanwhile() {
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = scratch.path().join("sr");
        let (a, b) = two_hosts(&path);
        let [disk, dest] = [(); 2].map(|()| VdiUuid::random());
        a.create_vdi(&NewVdi { format: Some(Format::Raw), virtual_size: 160 << 20, ..vhd(disk) }).unwrap();
        let image = path.join(image_name(disk, Format::Raw));
        fs::write(&image, vec![7u8; 160 << 20]).unwrap();
        let done = std::cell::Cell::new(false);
        let meanwhile = |at: u64, total: u64| {
            if at < total && !done.replace(true) {
                b.vdi(disk).unwrap().lock("vm", false).unwrap();
                use std::os::unix::fs::FileExt;
                let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
                file.write_all_at(&[9; 4096], 0).unwrap();
                file.write_all_at(&[9; 4096], (160 << 20) - 4096).unwrap();
            }
        };
        let context = Context { progress: &meanwhile, ..ctx() };
        let made = a.vdi(disk).unwrap().clone_to(dest, &context);
        assert!(done.get() && matches!(made, Err(Error::VdiInUse { .. })), "torn clone: {made:?}");
        assert!(matches!(a.vdi(dest), Err(Error::NoVdi { .. })));
    }

    /// B deletes the SR while A's server has a disk of it open.
    #[test]
    fn an_sr_with_a_disk_open_on_another_host_is_not_deleted() {
        let scratch = tempfile::tempdir().unwrap();
        let (a, b) = two_hosts(&scratch.path().join("sr"));
        let disk = VdiUuid::random();
        a.create_vdi(&vhd(disk)).unwrap();
        let dir = a.dir().unwrap();
        let _server =
            uses::hold(dir.lock_file(USES).unwrap(), &dir.join(USES), [disk.to_string().as_str()], Instant::now())
                .unwrap();
        assert!(b.vdi(disk).unwrap().delete(&ctx()).is_err(), "vdi_delete is refused");
        assert!(b.delete().is_err(), "sr_delete is not refused");
    }

    /// A forks; B is asked for vdi_delete, then vdi_create, of the copy's name: under locks of B only.
    #[test]
    fn the_copy_of_a_living_fork_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("sr");
        let fork = Forking::begin(FileSr::new(SrUuid::random(), "nfs", path.clone(), deadline()).shared());
        let (namespace, lock) = fork.lock_elsewhere();
        let [disk, _, dest] = fork.places();
        let mut own = fork.before_the_rename();
        let here = FileSr::new(fork.sr.sr, "nfs", path, deadline()).shared();
        let copy = dest.vdi;
        std::thread::scope(|scope| {
            let forgetting = scope.spawn(|| here.forget_vdi(copy));
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert!(!forgetting.is_finished(), "it does not wait for the fork");
            own.is_durable();
            own.publish_over(&disk.name()).unwrap();
            drop(lock);
            assert_eq!(forgetting.join().unwrap().unwrap(), Done::Already);
        });
        lock::forget(&namespace, "tree");
        assert!(here.vdi(dest.vdi).is_ok(), "the copy of a fork under way was removed");
    }

    /// A's client renames an open U to .nfs… before it renames the new image over it; power cut between the two.
    #[test]
    fn a_fork_cut_while_the_disk_has_no_name_is_undone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("sr");
        let fork = Forking::begin(FileSr::new(SrUuid::random(), "nfs", path.clone(), deadline()).shared());
        let [disk, base, dest] = fork.places();
        fork.dir.link(&disk.name(), &base.name()).unwrap();
        fork.publish_dest();
        fork.dir.rename(&disk.name(), ".nfs000000000000000f00000002").unwrap();
        fork.dir.remove(".nfs000000000000000f00000002").unwrap();
        let b = FileSr::new(fork.sr.sr, "nfs", path, deadline()).shared();
        b.attach().unwrap();
        let other = b.create_vdi(&vhd(VdiUuid::random())).unwrap().uuid;
        let snapshot = b.vdi(other).unwrap().snapshot(VdiUuid::random(), &ctx()).map(drop).map_err(|e| e.to_string());
        assert!(b.vdi(disk.vdi).is_ok(), "the disk is gone");
        assert!(b.vdi(dest.vdi).is_err());
        snapshot.unwrap();
    }

    #[test]
    fn a_collapse_cut_while_the_disk_has_no_name_is_completed() {
        let scratch = tempfile::tempdir().unwrap();
        let (a, b) = two_hosts(&scratch.path().join("sr"));
        let disk = an_only_child(&a);
        // Its client renames the open leaf away; power cut.
        let (dir, _) = begin_collapse(&a, disk);
        dir.rename(&image_name(disk, Format::Vhd), ".nfs000000000000000f00000002").unwrap();
        b.attach().unwrap();
        assert_eq!(read(&b, disk, 0, 4096).map(|b| b[0]).map_err(|e| e.to_string()), Ok(7));
    }

    /// While A's fork has renamed the open U away, B unlocks or deletes it.
    #[test]
    fn a_disk_without_a_name_for_a_moment_keeps_its_lock() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("sr");
        let fork = Forking::begin(FileSr::new(SrUuid::random(), "nfs", path.clone(), deadline()).shared());
        let b = FileSr::new(fork.sr.sr, "nfs", path, deadline()).shared();
        let [disk, base, _] = fork.places();
        b.vdi(disk.vdi).unwrap().lock("vm", false).unwrap();
        fork.dir.link(&disk.name(), &base.name()).unwrap();
        fork.publish_dest();
        fork.dir.rename(&disk.name(), ".nfs000000000000000f00000002").unwrap();
        // Who needs the disk waits for the lock of the trees, and here finds a fork that was killed.
        assert!(b.vdi(disk.vdi).is_ok());
        assert_eq!(b.scan().unwrap().vdi_uuids, [disk.vdi]);
        assert!(b.vdi(disk.vdi).unwrap().info().unwrap().locked, "the persistent lock is gone");
    }
}
