//! Merges that were killed, and merges of trees that changed since they were read.

use super::*;
use crate::vdi::tree::forest::{Ending, Forest};
use crate::vdi::tree::nodes::{Node, Nodes};
use crate::vdi::tree::run::{Taken, Watcher};

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
    dir.create(CHANGE, &encode(&Change::Relink { vdi: base, base: root, format: Format::Vhd, between: Vec::new() }))
        .unwrap();
    sr.attach().unwrap();
    assert!(read_change(&dir).unwrap().is_none(), "one image keeps all trees from changing");
    fs::write(dir.join(&name), good).unwrap();
    for vdi in [disk, snap] {
        assert_eq!(sr.vdi(vdi).unwrap().info().unwrap().parent, Some(base));
        assert_eq!(read(&sr, vdi, 0, 512).unwrap(), [8; 512]);
    }
}

/// A link that leads nowhere may stand in the place of an image. The trees of this image stay as they are, and all
/// others change.
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
    dir.create(CHANGE, &encode(&Change::Relink { vdi: base, base: root, format: Format::Vhd, between: Vec::new() }))
        .unwrap();
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
    let refused = sr.collect(
        &Collecting::default(),
        &Context { deadline: Instant::now(), progress: &|_, _| merged.set(true), others: None },
    );
    assert!(matches!(refused, Err(Error::Busy { .. })) && !merged.get(), "{refused:?}");
    drop(held);
    assert_eq!(sr.collect(&Collecting::default(), &ctx()).unwrap(), Done::Changed);
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
    assert_eq!(
        merge(
            &forest,
            &mut before.clone(),
            larger,
            (&ctx(), &Run::begin(sr.sr, &Collecting::default(), std::time::Duration::from_secs(20)))
        )
        .unwrap(),
        Done::Changed
    );
    assert_eq!(
        merge(
            &forest,
            &mut before,
            copied,
            (&ctx(), &Run::begin(sr.sr, &Collecting::default(), std::time::Duration::from_secs(20)))
        )
        .unwrap(),
        Done::Already
    );
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
    assert_eq!(
        merge(
            &forest,
            &mut nodes,
            base,
            (
                &Context { progress: &meanwhile, ..ctx() },
                &Run::begin(sr.sr, &Collecting::default(), std::time::Duration::from_secs(20))
            )
        )
        .unwrap(),
        Done::Changed
    );
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
    assert_eq!(
        merge(
            &forest,
            &mut nodes,
            disk,
            (&ctx(), &Run::begin(sr.sr, &Collecting::default(), std::time::Duration::from_secs(20)))
        )
        .unwrap(),
        Done::Already
    );
    assert_eq!((read(&sr, copy, 0, 512).unwrap(), read(&sr, disk, 0, 512).unwrap()), (vec![7; 512], vec![9; 512]));
}

/// sr_detach comes while the data of a disk is written into its base: some of it is there, and the disk is what it was.
#[test]
fn a_merge_that_a_call_ended_in_its_middle_is_done_by_the_next_run() {
    const BLOCKS: u64 = 32;
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let disk = an_only_child(&sr);
    sr.vdi(disk).unwrap().resize(BLOCKS << 21, false, &ctx()).unwrap();
    (1..BLOCKS).for_each(|block| write(&sr, disk, block << 21, &[8; 4096]));
    let base = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    let forest = sr.forest(sr.dir().unwrap());
    let allocated = |vdi| forest.place(vdi).unwrap().usage().unwrap().allocated;
    // The base grows before any data is written into it.
    layout(Format::Vhd).resize(&forest.place(base).unwrap().open(Mode::ReadWrite).unwrap(), BLOCKS << 21).unwrap();
    let (mut nodes, before) = (forest.nodes().unwrap(), allocated(base));

    let collector = lock::take(&sr.sr.to_string(), stop::ACTIVE, lock::Kind::Exclusive, Instant::now()).unwrap();
    let (asked, uuid) = (Run::begin(sr.sr, &Collecting::default(), std::time::Duration::from_secs(20)), sr.sr);
    std::thread::scope(|scope| {
        let call = scope.spawn(move || stop::end_collector(uuid, Instant::now() + std::time::Duration::from_secs(60)));
        while !asked.stop.is_asked() {
            std::thread::yield_now();
        }
        let ended = merge(&forest, &mut nodes, disk, (&ctx(), &asked));
        assert!(matches!(ended, Err(Error::SrUnavailable { .. })), "{ended:?}");
        drop(collector);
        drop(call.join().unwrap().unwrap());
    });
    let part = allocated(base) - before;
    assert!(part > 0 && part < BLOCKS * 4096, "{part} bytes of the disk are in its base");
    assert!(read_change(&sr.dir().unwrap()).unwrap().is_none());
    let is_whole = || (1..BLOCKS).all(|block| read(&sr, disk, block << 21, 4096).unwrap() == [8; 4096]);
    assert!(is_whole());

    assert_eq!(sr.collect(&Collecting::default(), &ctx()).unwrap(), Done::Changed);
    assert_eq!(forest.nodes().unwrap().iter().count(), 1);
    assert!(is_whole());
}

/// Deletes a snapshot when the first image is merged, as another call does.
struct Deletes {
    sr: SrUuid,
    path: std::path::PathBuf,
    snapshot: VdiUuid,
    steps: sync::Mutex<Vec<Taken>>,
}

impl Watcher for Deletes {
    fn taken(&self, step: &Taken) {
        self.steps.lock().unwrap().push(step.clone());
        if matches!(step, Taken::Merged { .. }) {
            let sr = FileSr::new(self.sr, "file", self.path.clone(), deadline());
            match sr.vdi(self.snapshot).map(|vdi| vdi.delete(&ctx()).unwrap()) {
                Ok(()) | Err(Error::NoVdi { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_snapshot_that_is_deleted_while_the_collector_works_is_merged_as_well() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let (first, second, snapshot) = (an_only_child(&sr), an_only_child(&sr), VdiUuid::random());
    assert_eq!(sr.collect(&Collecting::default(), &ctx()).unwrap(), Done::Changed);
    sr.vdi(first).unwrap().snapshot(VdiUuid::random(), &ParamsChange::default(), &ctx()).unwrap();
    let other = sr.scan().unwrap().vdi_uuids.into_iter().find(|vdi| ![first, second].contains(vdi)).unwrap();
    sr.vdi(other).unwrap().delete(&ctx()).unwrap();
    sr.vdi(second).unwrap().snapshot(snapshot, &ParamsChange::default(), &ctx()).unwrap();
    let (path, steps) = (scratch.path().join("sr"), sync::Mutex::default());
    let watcher = sync::Arc::new(Deletes { sr: sr.sr, path, snapshot, steps });
    let collecting = Collecting { watcher: Some(watcher.clone()), rate: None, pool: None };
    assert_eq!(sr.collect(&collecting, &ctx()).unwrap(), Done::Changed);
    assert_eq!(sr.forest(sr.dir().unwrap()).nodes().unwrap().iter().map(|(vdi, _)| vdi).collect::<Vec<_>>(), {
        let mut disks = [first, second];
        disks.sort_unstable();
        disks
    });
    let steps = watcher.steps.lock().unwrap();
    let kinds: Vec<&str> = steps
        .iter()
        .map(|step| match step {
            Taken::Begun { images: 1, .. } => "begun",
            Taken::Merging { .. } => "merging",
            Taken::Merged { .. } => "merged",
            _ => "another",
        })
        .collect();
    assert_eq!(kinds, ["begun", "merging", "merged", "merging", "merged"]);
}

/// Waits at its first merge for another one to begin.
#[derive(Default)]
struct Meets {
    begun: sync::Mutex<Vec<VdiUuid>>,
    more: sync::Condvar,
}

impl Watcher for Meets {
    fn taken(&self, step: &Taken) {
        if let Taken::Merging { image, .. } = step {
            let mut begun = self.begun.lock().unwrap();
            begun.push(*image);
            self.more.notify_all();
            let wait = std::time::Duration::from_secs(60);
            let (_begun, waited) = self.more.wait_timeout_while(begun, wait, |begun| begun.len() < 2).unwrap();
            assert!(!waited.timed_out(), "no other tree is merged at the same time");
        }
    }
}

#[test]
fn independent_trees_are_merged_at_the_same_time() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let mut disks: Vec<VdiUuid> = (0..5).map(|_| an_only_child(&sr)).collect();
    for disk in &disks[..2] {
        // A tree of three.
        write(&sr, *disk, 8192, &[8; 4096]);
        let snap = VdiUuid::random();
        sr.vdi(*disk).unwrap().snapshot(snap, &ParamsChange::default(), &ctx()).unwrap();
        sr.vdi(snap).unwrap().delete(&ctx()).unwrap();
    }
    // One that fails keeps no other from being merged: its base lost its tables.
    let broken = an_only_child(&sr);
    write(&sr, broken, 8192, &[9; 4096]);
    let base = sr.vdi(broken).unwrap().info().unwrap().parent.unwrap();
    let image = open(&sr, base, Format::Vhd, Mode::ReadWrite);
    crate::image::storage::Storage::write_at(&image, &[0xee; 64], 1536).unwrap();
    let watcher = sync::Arc::new(Meets::default());
    let collecting = Collecting { watcher: Some(watcher.clone()), rate: None, pool: None };
    let refused = sr.collect(&collecting, &ctx()).unwrap_err();
    let Error::NotMerged { failures, .. } = &refused else { panic!("{refused}") };
    assert_eq!(failures.iter().map(|(vdi, _)| *vdi).collect::<Vec<_>>(), [broken], "{refused}");
    assert_eq!(watcher.begun.lock().unwrap().len(), 8);
    let left: Vec<VdiUuid> = sr.forest(sr.dir().unwrap()).nodes().unwrap().iter().map(|(vdi, _)| vdi).collect();
    for disk in &disks {
        assert_eq!(read(&sr, *disk, 0, 4096).unwrap(), [7; 4096]);
    }
    assert!(disks[..2].iter().all(|disk| read(&sr, *disk, 8192, 4096).unwrap() == [8; 4096]));
    disks.extend([broken, base]);
    disks.sort_unstable();
    assert_eq!(left, disks);
}

fn open(sr: &FileSr, vdi: VdiUuid, format: Format, mode: Mode) -> FileStorage {
    FileStorage::open(sr.dir().unwrap().join(&image_name(vdi, format)), mode).unwrap()
}

fn relink(forest: &dyn Forest, nodes: &Nodes, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
    let ending = Ending { vdi, is_disk: false, format: Format::Vhd, between: Vec::new(), base };
    forest.end(nodes, &[ending]).remove(0)
}

/// A base whose own parent is a raw image goes: its children become those of the raw image, and keep their format.
#[test]
fn the_children_of_a_base_become_children_of_a_raw_image() {
    use crate::image::vhd::{NewImage, ParentLink, create_child};
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let [root, base, disk] = [(); 3].map(|()| VdiUuid::random());
    sr.create_vdi(&NewVdi { format: Some(Format::Raw), ..vhd(root) }).unwrap();
    let raw = open(&sr, root, Format::Raw, Mode::ReadWrite);
    crate::image::storage::Storage::write_at(&raw, &[7; 4096], 0).unwrap();
    sr.create_vdi(&vhd(base)).unwrap();
    let link = ParentLink::beside(&image_name(root, Format::Raw), None, 0);
    create_child(&open(&sr, base, Format::Vhd, Mode::ReadWrite), &NewImage::new(4 << 20), &link).unwrap();
    sr.vdi(base).unwrap().clone_to(disk, &ParamsChange::default(), &ctx()).unwrap();
    let forest = sr.forest(sr.dir().unwrap());
    layout(Format::Vhd).set_hidden(&open(&sr, base, Format::Vhd, Mode::ReadWrite), true).unwrap();
    layout(Format::Vhd)
        .set_parent(&open(&sr, disk, Format::Vhd, Mode::ReadWrite), &forest.parent_image(base, Mode::ReadOnly).unwrap())
        .unwrap();
    let nodes = forest.nodes().unwrap();
    assert_eq!((nodes.get(root), nodes.get(disk).unwrap().parent), (None, Some(base)));
    relink(&forest, &nodes, base, root).unwrap();
    assert!(forest.place(base).is_err());
    assert_eq!(sr.vdi(disk).unwrap().info().unwrap().parent, Some(root));
    assert_eq!(read(&sr, disk, 0, 4096).unwrap(), [7; 4096]);
}

/// An image of another format that names the base is no child of it, and is not taken for one that is gone: the base stays.
#[test]
fn a_relink_is_given_up_for_a_child_of_another_format() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let (disk, other) = (an_only_child(&sr), VdiUuid::random());
    // Its parent has the same data, as after the merge: a child whose parent was exchanged already reads the same.
    let contents = read(&sr, disk, 0, 4096).unwrap();
    write(&sr, disk, 0, &contents);
    sr.vdi(disk).unwrap().snapshot(VdiUuid::random(), &ParamsChange::default(), &ctx()).unwrap();
    let base = sr.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    sr.create_vdi(&NewVdi { format: Some(Format::Qcow2), ..vhd(other) }).unwrap();
    let (dir, forest) = (sr.dir().unwrap(), sr.forest(sr.dir().unwrap()));
    let nodes = forest.nodes().unwrap();
    let root = nodes.get(base).unwrap().parent.unwrap();
    let with_other = |(vdi, node): (VdiUuid, &Node)| match vdi == other {
        true => (vdi, Node { parent: Some(base), ..node.clone() }),
        false => (vdi, node.clone()),
    };
    let nodes: Nodes = nodes.iter().map(with_other).collect();
    let before = fs::read(dir.join(&image_name(other, Format::Qcow2))).unwrap();
    let why = relink(&forest, &nodes, base, root).expect_err("it is given up");
    assert!(read_change(&dir).unwrap().is_none());
    assert!(why.to_string().contains(&image_name(other, Format::Qcow2)), "{why}");
    assert!(forest.place(base).is_ok());
    assert!(fs::read(dir.join(&image_name(other, Format::Qcow2))).unwrap() == before);
    assert!(read(&sr, disk, 0, 4096).unwrap() == contents);
}
