//! Trees of images in a directory: how they change, and what a crash leaves of a change.

use super::place::Unnamed;
use super::*;
use crate::error::ended;

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
            refused.or_timed_out(|holder| Error::SrUnavailable {
                sr: self.sr,
                why: format!("{holder} changes a tree of it; --wait gives it longer"),
            })
        })?;
        self.recover_change(dir)?;
        Ok(lock)
    }

    /// Completes or undoes what a crash left of a fork. The caller holds the tree's lock.
    pub(super) fn recover_change(&self, dir: &Dir) -> Result<()> {
        let Some(record) = read_change(dir)? else { return Ok(()) };
        match record {
            Record::Fork { vdi, base, dest, format } => self.recover_fork(dir, vdi, base, dest, format)?,
            Record::Relink { vdi, base, format } => self.finish_relink(dir, vdi, base, format)?,
            Record::Collapse { base, format, .. } => {
                // Until the base has the leaf's name, the leaf is all there and the base is what it was.
                let name = image_name(base, format);
                if dir.lookup(&name)?.is_some() {
                    (vdi::kind(format).set_hidden)(&dir.open_file(&name, true)?, &dir.join(&name), true)?;
                }
            }
            _ => return Err(damaged_record(dir, CHANGE)),
        }
        dir.sync()?;
        dir.remove(CHANGE)?;
        dir.sync()
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
            (None, Some(_)) => {
                return Err(Error::Damaged {
                    path: dir.join(&image_name(vdi, format)),
                    what: format!("is missing, and {CHANGE} says that it was being cloned; its data is in {name}"),
                });
            }
        }
        Ok(())
    }

    /// Gives every child of `vdi` to `base`, then removes `vdi`. Can be done again from any point of it.
    fn finish_relink(&self, dir: &Dir, vdi: VdiUuid, base: VdiUuid, format: Format) -> Result<()> {
        let kind = vdi::kind(format);
        let Some(base_format) = format_of(dir, base)? else {
            return Err(Error::Damaged {
                path: dir.join(CHANGE),
                what: format!("names {base} as the parent to be, and there is no such image"),
            });
        };
        let shared = Rc::new(Dir::open(dir.path())?);
        let parent = self.place(shared, base, base_format);
        let parent_image = parent.image(Mode::ReadOnly)?;
        let listing = self.list(dir)?;
        for child in vdi::cow::children_of(&self.trees(dir, &listing)?, vdi) {
            let name = image_name(child, listing.images[&child]);
            (kind.set_parent)(&dir.open_file(&name, true)?, &dir.join(&name), &parent_image, &parent)?;
        }
        dir.remove(&image_name(vdi, format))?;
        dir.sync()?;
        remove_leftovers(dir, vdi).map(drop)
    }

    /// Removes bases that have no children left. The caller has the SR, or its tree's lock.
    pub(super) fn remove_garbage(&self, dir: &Rc<Dir>, listing: &Listing) -> Result<()> {
        let nodes = self.trees(dir, listing)?;
        let mut children = vdi::cow::by_parent(&nodes);
        let garbage = |children: &BTreeMap<VdiUuid, Vec<VdiUuid>>, base: &VdiUuid| {
            nodes.get(base).is_some_and(|node| node.hidden) && children.get(base).is_none_or(Vec::is_empty)
        };
        let mut unneeded: Vec<VdiUuid> = nodes.keys().copied().filter(|base| garbage(&children, base)).collect();
        while let Some(base) = unneeded.pop() {
            let format = listing.images[&base];
            let place = self.place(dir.clone(), base, format);
            vdi::refuse_if_attached(&*self.disk(dir.clone(), base, format)?)?;
            place.remove()?;
            if let Some(parent) = nodes[&base].parent {
                children.entry(parent).or_default().retain(|child| *child != base);
                unneeded.extend(Some(parent).filter(|parent| garbage(&children, parent)));
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
        let (mut done, mut left) = (Done::Already, HashSet::new());
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
            if nodes.iter().any(|(v, node)| node.hidden && !children.contains_key(v)) {
                let _lock = self.lock_trees(&dir, context.deadline)?;
                self.remove_garbage(&dir, &self.list(&dir)?)?;
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
            let Some(next) = bases.into_iter().chain(disks).find(only_child) else { return Ok(done) };
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
                    // Deleted since the directory was read.
                    Err(Error::NoVdi { .. }) => Done::Already,
                    merged => merged?,
                },
                Err(lock::Refused::TimedOut { .. }) => Done::Already,
                Err(lock::Refused::Failed(error)) => return Err(error),
            };
            match merged {
                Done::Changed => done = Done::Changed,
                Done::Already => drop(left.insert(next)),
            }
        }
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
        for (extension, format) in IMAGES {
            if self.dir.lookup(&beside(vdi, extension))?.is_some() {
                return Ok(Box::new(self.sr.place(self.dir.clone(), vdi, format)));
            }
        }
        Err(Error::NoVdi { vdi, sr: self.sr.sr, looked: self.dir.path().display().to_string() })
    }

    fn alone(&self, vdis: &[VdiUuid]) -> Result<Option<Uses>> {
        if !self.sr.shared {
            return Ok(None);
        }
        let names: Vec<String> = vdis.iter().map(VdiUuid::to_string).collect();
        let (file, path) = (self.dir.lock_file(USES)?, self.dir.join(USES));
        match uses::alone(file, &path, names.iter().map(String::as_str))? {
            Some(alone) => Ok(Some(alone)),
            None => {
                let holder = format!("another host, which has it or a disk above it attached ({USES} is locked)");
                Err(Error::VdiInUse { vdi: self.vdi, sr: self.sr.sr, holder })
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
            Err(cause) => Err(cause.undone(self.sr.recover_change(dir))),
        }
    }

    fn relink(&self, parent: VdiUuid, _kind: &'static Kind) -> Result<()> {
        let record = Record::Relink { vdi: self.vdi, base: parent, format: self.format };
        if !self.dir.create(CHANGE, &encode(&record))? {
            return Err(damaged_record(&self.dir, CHANGE));
        }
        self.sr.recover_change(&self.dir)
    }

    fn collapse(&self, parent: VdiUuid, kind: &'static Kind) -> Result<()> {
        let base = self.sr.place(self.dir.clone(), parent, self.format);
        let record = Record::Collapse { vdi: self.vdi, base: parent, format: self.format };
        if !self.dir.create(CHANGE, &encode(&record))? {
            return Err(damaged_record(&self.dir, CHANGE));
        }
        let done = (kind.set_hidden)(&base.image(Mode::ReadWrite)?, &base.path(), false)
            .and_then(|()| self.dir.rename(&base.name(), &self.name()))
            .and_then(|()| self.dir.sync());
        ended(done, self.sr.recover_change(&self.dir))
    }
}

/// Whether a VDI has an image that names `base` as its parent. Somebody else may have made a disk of that name.
fn is_child(dir: &Dir, vdi: VdiUuid, base: VdiUuid, format: Format) -> Result<bool> {
    let name = image_name(vdi, format);
    let Some(file) = dir.try_open_record(&name)? else { return Ok(false) };
    Ok((vdi::kind(format).query)(file, &dir.join(&name))?.parent == Some(base))
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

pub(super) fn is_unborn(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    match read_change(dir)? {
        Some(change) => Ok(unborn(dir, &change)? == Some(vdi)),
        None => Ok(false),
    }
}

/// Removes the image of a fork that was killed. The caller holds the VDI, so the fork is not under way.
pub(super) fn remove_unborn(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    let mut removed = false;
    if is_unborn(dir, vdi)? {
        for (extension, _) in IMAGES {
            removed |= dir.remove(&beside(vdi, extension))?;
        }
        dir.sync()?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::types::SrUuid;

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

        fn places(&self) -> [FilePlace<'_>; 3] {
            self.places.map(|vdi| self.sr.place(self.dir.clone(), vdi, Format::Vhd))
        }

        fn child(&self, image: &NewFile, of: &FilePlace) {
            let [disk, base, _] = self.places();
            let create = vdi::kind(Format::Vhd).create_child;
            create(image.file(), &of.path(), &disk.image(Mode::ReadOnly).unwrap(), &base.path()).unwrap();
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
        let fork = Forking::begin(FileSr::new(SrUuid::random(), "file", scratch.path().join("sr")));
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
                let fork = Forking::begin(FileSr::new(SrUuid::random(), "file", scratch.path().join("sr")));
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
        let fork = Forking::begin(FileSr::new(SrUuid::random(), "nfs", path.clone()).shared());
        // The other host's locks in its own kernel are of another name here.
        let namespace = SrUuid::random().to_string();
        let file = fork.dir.lock_file(TREE_LOCK).unwrap();
        let lock = lock::take(&namespace, "tree", lock::Kind::Exclusive, Instant::now()).unwrap();
        let lock = lock.among_hosts(file, &path.join(TREE_LOCK), Instant::now()).unwrap();
        let [disk, base, _] = fork.places();
        let mut own = fork.dir.new_file().unwrap();
        fork.child(&own, &disk);
        fork.dir.link(&disk.name(), &base.name()).unwrap();
        fork.publish_dest();

        let here = FileSr::new(fork.sr.sr, "nfs", path).shared();
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
    fn who_scans_during_forks_sees_every_disk_and_no_base() {
        const DISKS: usize = 10;
        let scratch = tempfile::tempdir().unwrap();
        let sr = FileSr::new(SrUuid::random(), "file", scratch.path().join("sr"));
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
        let sr = FileSr::new(SrUuid::random(), "nfs", scratch.path().join("sr")).shared();
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
}
