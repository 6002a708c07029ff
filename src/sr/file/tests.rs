//! Tests of an SR's trees, with calls that stop half-way and hosts that lose their lock.

mod cbt;
mod chains;
mod merges;
mod two_hosts;

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Instant;
use std::{fs, sync};

use tempfile::TempDir;

use super::files::FilePlace;
use super::layout::{CHANGE, COLLECT_LOCK, TREE_LOCK, image_name};
use super::records::{encode, read_change};
use super::*;
use crate::context::Deadline;
use crate::datapath::USES;
use crate::error::Error;
use crate::image::Reading;
use crate::image::storage::FileStorage;
use crate::sys::durable::{Dir, NewFile};
use crate::sys::lock::{self, Lock};
use crate::sys::uses;
use crate::types::{Mode, Params, ParamsChange, SrUuid};
use crate::vdi::format::ParentImage;
use crate::vdi::tree::change::Change;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::merge::merge;
use crate::vdi::tree::run::{Collecting, Run};
use crate::vdi::tree::stop;
use crate::vdi::{self, layout};

fn deadline() -> Deadline {
    (Instant::now() + std::time::Duration::from_secs(60)).into()
}

/// An SR that is still to be created, of this host alone.
fn new_sr_in(scratch: &TempDir) -> FileSr {
    FileSr::new(SrUuid::random(), "file", scratch.path().join("sr"), deadline())
}

fn sr_in(scratch: &TempDir) -> FileSr {
    let sr = new_sr_in(scratch);
    sr.create(&NewSr::default()).unwrap();
    sr
}

fn vhd(vdi: VdiUuid) -> NewVdi {
    NewVdi { vdi, virtual_size: 4 << 20, format: Some(Format::Vhd), params: Params::default() }
}

/// Writes the image of a child of `disk`, which is to be called `base`.
fn create_child(image: &fs::File, child: &FilePlace, disk: &FilePlace, base: &FilePlace) {
    let parent =
        ParentImage { name: base.name(), format: disk.format, image: disk.open_image(Mode::ReadOnly).unwrap() };
    let write = layout(disk.format).child_of(&parent).unwrap();
    write(&FileStorage::new(image.try_clone().unwrap(), child.path()).unwrap()).unwrap();
}

/// The disk of a new SR, and the base and the copy of a fork of it that does not go on.
struct Forking {
    sr: FileSr,
    dir: Rc<Dir>,
    places: [VdiUuid; 3],
}

impl Forking {
    fn begin(sr: FileSr) -> Forking {
        sr.create(&NewSr::default()).unwrap();
        let [disk, base, dest] = [(); 3].map(|()| VdiUuid::random());
        sr.create_vdi(&vhd(disk)).unwrap();
        let dir = sr.dir().unwrap();
        let record = Change::Fork { vdi: disk, base, dest: Some(dest), format: Format::Vhd };
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
        create_child(image.file(), of, &disk, &base);
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

/// A power cut may leave a fork where the child's name became durable and the base's did not.
#[test]
fn a_child_whose_base_has_no_name_is_unmade() {
    let scratch = tempfile::tempdir().unwrap();
    let fork = Forking::begin(new_sr_in(&scratch));
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
            let fork = Forking::begin(new_sr_in(&scratch));
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
    let (_scratch, fork, here) = forking();
    let (namespace, lock) = fork.lock_elsewhere();
    let [disk, base, _] = fork.places();
    let mut own = fork.before_the_rename();

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
    let (scratch, fork, _) = forking();
    let (namespace, lock) = fork.lock_elsewhere();
    let [disk, base, dest] = fork.places();
    drop(fork.before_the_rename());
    let path = scratch.path().join("sr");
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
    let sr = sr_in(&scratch);
    let disks: Vec<VdiUuid> = (0..DISKS).map(|_| sr.create_vdi(&vhd(VdiUuid::random())).unwrap().uuid).collect();
    let (begun, born) = (Mutex::new(HashSet::from_iter(disks.clone())), Mutex::new(disks.clone()));
    let fork_all = || {
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        let context = Context { deadline, progress: &|_, _| {}, others: None };
        for _ in 0..6 {
            for disk in &disks {
                let dest = VdiUuid::random();
                begun.lock().unwrap().insert(dest);
                sr.vdi(*disk).unwrap().snapshot(dest, &ParamsChange::default(), &context).unwrap();
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
    sr.create(&NewSr::default()).unwrap();
    let context = Context { deadline: Instant::now(), progress: &|_, _| {}, others: None };
    let namespace = SrUuid::random().to_string();
    let other = || {
        let file = sr.dir().unwrap().lock_file(COLLECT_LOCK).unwrap();
        let lock = lock::take(&namespace, "gc_active", lock::Kind::Exclusive, Instant::now()).unwrap();
        lock.among_hosts(file, &scratch.path().join("sr").join(COLLECT_LOCK), Instant::now()).unwrap()
    };
    let held = other();
    let refused = sr.collect(&Collecting::default(), &context).unwrap_err();
    assert!(refused.to_string().contains("another host collects it already"), "{refused}");
    drop(held);
    assert_eq!(sr.collect(&Collecting::default(), &context).unwrap(), Done::Already);
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
    let open = |path: &Path, rw: bool| -> sync::Arc<dyn vhd::Storage> {
        let file = fs::OpenOptions::new().read(true).write(rw).open(path).unwrap();
        sync::Arc::new(vhd::FileStorage::new(file, path).unwrap())
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
    sr.vdi(vdi)?.read(Reading::Whole, &mut |disk| disk.read_at(&mut buf, at))?;
    Ok(buf)
}

/// The SR in a directory, as a host has it that shares it with others.
fn shared_sr(sr: SrUuid, path: &Path) -> FileSr {
    FileSr::new(sr, "nfs", path.to_owned(), deadline()).shared()
}

fn two_hosts_in(path: &Path) -> (FileSr, FileSr) {
    let a = shared_sr(SrUuid::random(), path);
    a.create(&NewSr::default()).unwrap();
    let b = shared_sr(a.sr, path);
    (a, b)
}

/// A new SR as two hosts have it, and the directory that it lasts as long as.
fn two_hosts() -> (TempDir, FileSr, FileSr) {
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = two_hosts_in(&scratch.path().join("sr"));
    (scratch, a, b)
}

/// A fork of one host that does not go on, and the SR as another host has it.
fn forking() -> (TempDir, Forking, FileSr) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("sr");
    let fork = Forking::begin(shared_sr(SrUuid::random(), &path));
    let there = shared_sr(fork.sr.sr, &path);
    (scratch, fork, there)
}

/// The host has the disk open, as its server has it.
fn open_on(sr: &FileSr, disk: VdiUuid) -> uses::Uses {
    let dir = sr.dir().unwrap();
    uses::hold(dir.lock_file(USES).unwrap(), &dir.join(USES), [disk.to_string().as_str()], Instant::now()).unwrap()
}

/// A disk of sevens whose base is there for it alone.
fn an_only_child(sr: &FileSr) -> VdiUuid {
    let [disk, snap] = [(); 2].map(|()| VdiUuid::random());
    sr.create_vdi(&vhd(disk)).unwrap();
    write(sr, disk, 0, &[7; 4096]);
    sr.vdi(disk).unwrap().snapshot(snap, &ParamsChange::default(), &ctx()).unwrap();
    sr.vdi(snap).unwrap().delete(&ctx()).unwrap();
    disk
}

/// A collapse up to its rename: merged, recorded, the base visible. The name of the base.
fn begin_collapse(sr: &FileSr, disk: VdiUuid) -> (Rc<Dir>, String) {
    let base = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    let dir = sr.dir().unwrap();
    dir.create(CHANGE, &encode(&Change::Collapse { vdi: disk, base, format: Format::Vhd, between: Vec::new() }))
        .unwrap();
    let name = image_name(base, Format::Vhd);
    let image = FileStorage::open(dir.join(&name), Mode::ReadWrite).unwrap();
    layout(Format::Vhd).set_hidden(&image, false).unwrap();
    (dir, name)
}
