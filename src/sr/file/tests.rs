//! Tests of an SR's trees, with calls that stop half-way and hosts that lose their lock.

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Instant;
use std::{fs, sync};

use super::files::FilePlace;
use super::layout::{CHANGE, COLLECT_LOCK, TREE_LOCK, image_name};
use super::records::{encode, read_change};
use super::*;
use crate::context::Deadline;
use crate::datapath::USES;
use crate::error::Error;
use crate::image::storage::FileStorage;
use crate::sys::durable::{Dir, NewFile};
use crate::sys::lock::{self, Lock};
use crate::sys::uses;
use crate::types::{Mode, Params, ParamsChange, SrUuid};
use crate::vdi::format::ParentImage;
use crate::vdi::tree::change::Change;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::merge::merge;
use crate::vdi::{self, layout};

fn deadline() -> Deadline {
    (Instant::now() + std::time::Duration::from_secs(60)).into()
}

/// An SR that is still to be created, of this host alone.
fn new_sr_in(scratch: &tempfile::TempDir) -> FileSr {
    FileSr::new(SrUuid::random(), "file", scratch.path().join("sr"), deadline())
}

fn sr_in(scratch: &tempfile::TempDir) -> FileSr {
    let sr = new_sr_in(scratch);
    sr.create(None).unwrap();
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
        sr.create(None).unwrap();
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

/// What a power cut leaves of a fork where the child's name became durable and the base's did not.
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
    sr.vdi(disk).unwrap().snapshot(snap, &ParamsChange::default(), &ctx()).unwrap();
    sr.vdi(snap).unwrap().delete(&ctx()).unwrap();
    disk
}

/// A collapse up to its rename: merged, recorded, the base visible. The name of the base.
fn begin_collapse(sr: &FileSr, disk: VdiUuid) -> (Rc<Dir>, String) {
    let base = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    let dir = sr.dir().unwrap();
    dir.create(CHANGE, &encode(&Change::Collapse { vdi: disk, base, format: Format::Vhd })).unwrap();
    let name = image_name(base, Format::Vhd);
    let image = FileStorage::open(dir.join(&name), Mode::ReadWrite).unwrap();
    layout(Format::Vhd).set_hidden(&image, false).unwrap();
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
    create_child(&own, &place(disk), &place(disk), &place(base));
    let record = Change::Fork { vdi: disk, base, dest: Some(dest), format: Format::Vhd };
    dir.create(CHANGE, &encode(&record)).unwrap();
    dir.link(&image_name(disk, Format::Vhd), &image_name(base, Format::Vhd)).unwrap();
    drop(own);
    // B changes some tree, which first recovers
    let other = b.create_vdi(&vhd(VdiUuid::random())).unwrap().uuid;
    b.vdi(other).unwrap().snapshot(VdiUuid::random(), &ParamsChange::default(), &ctx()).unwrap();
    // A goes on
    let _ = dir.rename(&tmp, &image_name(disk, Format::Vhd));
    assert_eq!(read(&b, disk, 0, 4096).map(|b| b[0]).map_err(|e| e.to_string()), Ok(7));
}

/// A collapse on host A: A loses the lock before its rename, B repairs, attaches and writes, A renames.
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
        uses::hold(dir.lock_file(USES).unwrap(), &dir.join(USES), [disk.to_string().as_str()], Instant::now()).unwrap();
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
    let made = a.vdi(disk).unwrap().clone_to(dest, &ParamsChange::default(), &context);
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
        uses::hold(dir.lock_file(USES).unwrap(), &dir.join(USES), [disk.to_string().as_str()], Instant::now()).unwrap();
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
    let snapshot = b
        .vdi(other)
        .unwrap()
        .snapshot(VdiUuid::random(), &ParamsChange::default(), &ctx())
        .map(drop)
        .map_err(|e| e.to_string());
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

/// A merge was killed before its base was removed, and meanwhile a child of the base lost its header.
#[test]
fn a_killed_merge_of_a_base_is_not_completed_while_a_child_may_be_unread() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let (disk, snap) = (an_only_child(&sr), VdiUuid::random());
    let root = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    write(&sr, disk, 0, &[8; 4096]);
    sr.vdi(disk).unwrap().snapshot(snap, &ParamsChange::default(), &ctx()).unwrap();
    let base = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    let (dir, name) = (sr.dir().unwrap(), image_name(snap, Format::Vhd));
    let good = fs::read(dir.join(&name)).unwrap();
    fs::write(dir.join(&name), b"").unwrap();
    dir.create(CHANGE, &encode(&Change::Relink { vdi: base, base: root, format: Format::Vhd })).unwrap();
    sr.attach().unwrap();
    assert!(read_change(&dir).unwrap().is_none(), "one image keeps all trees from changing");
    fs::write(dir.join(&name), good).unwrap();
    for vdi in [disk, snap] {
        assert_eq!(sr.vdi(vdi).unwrap().info().unwrap().parent, Some(base));
        assert_eq!(read(&sr, vdi, 0, 512).unwrap(), [8; 512]);
    }
}

/// What is there instead of an image may lead nowhere. Its trees stay as they are, and all others change.
#[test]
fn a_killed_merge_of_a_base_that_cannot_be_opened_is_left_undone() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let disk = an_only_child(&sr);
    let root = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    write(&sr, disk, 0, &[7; 512]);
    sr.vdi(disk).unwrap().snapshot(VdiUuid::random(), &ParamsChange::default(), &ctx()).unwrap();
    let base = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    let (dir, name) = (sr.dir().unwrap(), image_name(base, Format::Vhd));
    let good = fs::read(dir.join(&name)).unwrap();
    dir.create(CHANGE, &encode(&Change::Relink { vdi: base, base: root, format: Format::Vhd })).unwrap();
    fs::remove_file(dir.join(&name)).unwrap();
    std::os::unix::fs::symlink("/nonexistent", dir.join(&name)).unwrap();
    let other = sr.create_vdi(&vhd(VdiUuid::random())).unwrap().uuid;
    sr.vdi(other).unwrap().snapshot(VdiUuid::random(), &ParamsChange::default(), &ctx()).unwrap();
    fs::remove_file(dir.join(&name)).unwrap();
    fs::write(dir.join(&name), good).unwrap();
    assert_eq!(sr.vdi(disk).unwrap().info().unwrap().parent, Some(base));
    assert_eq!(read(&sr, disk, 0, 512).unwrap(), [7; 512]);
}

/// Trees that are read while they change may show a base with one of its two children.
#[test]
fn the_collector_waits_for_a_change_before_it_reads_the_trees() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let disk = an_only_child(&sr);
    let held = lock::take(&sr.sr.to_string(), "tree", lock::Kind::Exclusive, Instant::now()).unwrap();
    let merged = std::cell::Cell::new(false);
    let refused = sr.collect(&Context { deadline: Instant::now(), progress: &|_, _| merged.set(true), others: None });
    assert!(matches!(refused, Err(Error::Busy { .. })) && !merged.get(), "{refused:?}");
    drop(held);
    assert_eq!(sr.collect(&ctx()).unwrap(), Done::Changed);
    assert_eq!(read(&sr, disk, 0, 4096).unwrap(), [7; 4096]);
    lock::forget(&sr.sr.to_string(), "tree");
}

/// Between the look at the trees and the lock of a disk, other calls have the disk.
#[test]
fn a_disk_that_was_changed_since_the_trees_were_read_is_looked_at_again() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let forest = sr.forest(sr.dir().unwrap());
    let (larger, copied) = (an_only_child(&sr), an_only_child(&sr));
    let mut before = forest.nodes().unwrap();
    sr.vdi(larger).unwrap().resize(8 << 20, false, &ctx()).unwrap();
    write(&sr, larger, 6 << 20, &[9; 4096]);
    sr.vdi(copied).unwrap().snapshot(VdiUuid::random(), &ParamsChange::default(), &ctx()).unwrap();
    assert_eq!(merge(&forest, &mut before.clone(), larger, &ctx()).unwrap(), Done::Changed);
    assert_eq!(merge(&forest, &mut before, copied, &ctx()).unwrap(), Done::Already);
    assert_eq!(before, forest.nodes().unwrap());
    let info = sr.vdi(larger).unwrap().info().unwrap();
    assert_eq!((info.parent, info.virtual_size), (None, 8 << 20));
    for (vdi, at, with) in [(larger, 0, 7), (larger, 6 << 20, 9), (copied, 0, 7)] {
        assert_eq!(read(&sr, vdi, at, 4096).unwrap(), [with; 4096]);
    }
}

/// The copy takes hours, in which snapshots come and go.
#[test]
fn a_base_is_merged_though_disks_above_it_are_made_and_deleted_meanwhile() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let (disk, snap, later) = (an_only_child(&sr), VdiUuid::random(), VdiUuid::random());
    write(&sr, disk, 4096, &[8; 4096]);
    sr.vdi(disk).unwrap().snapshot(snap, &ParamsChange::default(), &ctx()).unwrap();
    let base = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    let forest = sr.forest(sr.dir().unwrap());
    let mut nodes = forest.nodes().unwrap();
    let root = nodes.base_of_only_child(base).unwrap();
    let done = std::cell::Cell::new(false);
    let meanwhile = |_, _| {
        if !done.replace(true) {
            sr.vdi(snap).unwrap().delete(&ctx()).unwrap();
            sr.vdi(disk).unwrap().snapshot(later, &ParamsChange::default(), &ctx()).unwrap();
        }
    };
    assert_eq!(merge(&forest, &mut nodes, base, &Context { progress: &meanwhile, ..ctx() }).unwrap(), Done::Changed);
    assert!(done.get() && forest.place(base).is_err());
    assert!(nodes.iter().eq(forest.nodes().unwrap().iter()));
    for vdi in [disk, later] {
        assert_eq!(nodes.chain(vdi).last(), Some(&root));
        assert_eq!(read(&sr, vdi, 0, 4096).unwrap(), [7; 4096]);
        assert_eq!(read(&sr, vdi, 4096, 4096).unwrap(), [8; 4096]);
    }
}

/// A collector that has read the trees, and then a copy of an empty only child: the child is what it was, and its base has
/// another one, whose data a merge would change.
#[test]
fn an_only_child_that_was_copied_since_the_trees_were_read_is_not_merged() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let (disk, copy) = (an_only_child(&sr), VdiUuid::random());
    let forest = sr.forest(sr.dir().unwrap());
    let mut nodes = forest.nodes().unwrap();
    sr.vdi(disk).unwrap().clone_to(copy, &ParamsChange::default(), &ctx()).unwrap();
    assert_eq!(sr.vdi(copy).unwrap().info().unwrap().parent, sr.vdi(disk).unwrap().info().unwrap().parent);
    write(&sr, disk, 0, &[9; 4096]);
    assert_eq!(merge(&forest, &mut nodes, disk, &ctx()).unwrap(), Done::Already);
    assert_eq!((read(&sr, copy, 0, 512).unwrap(), read(&sr, disk, 0, 512).unwrap()), (vec![7; 512], vec![9; 512]));
}

/// A host that lost its lock while it made a copy, and another one that removed the base with its last child meanwhile.
#[test]
fn a_copy_below_which_the_base_is_gone_is_not_there() {
    let scratch = tempfile::tempdir().unwrap();
    let (a, _) = two_hosts(&scratch.path().join("sr"));
    let (disk, copy) = (an_only_child(&a), VdiUuid::random());
    let base = a.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    let forest = a.forest(a.dir().unwrap());
    a.vdi(disk).unwrap().delete(&ctx()).unwrap();
    assert!(matches!(forest.spawn(base, copy, &Params::default()), Err(Error::NoVdi { .. })));
    assert!(matches!(a.vdi(copy), Err(Error::NoVdi { .. })));
}
