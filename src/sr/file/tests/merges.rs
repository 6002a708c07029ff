//! Merges that were killed, and merges of trees that changed since they were read.

use super::*;
use crate::vdi::tree::nodes::{Node, Nodes};

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

fn open(sr: &FileSr, vdi: VdiUuid, format: Format, mode: Mode) -> FileStorage {
    FileStorage::open(sr.dir().unwrap().join(&image_name(vdi, format)), mode).unwrap()
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
    let (dir, forest) = (sr.dir().unwrap(), sr.forest(sr.dir().unwrap()));
    layout(Format::Vhd).set_hidden(&open(&sr, base, Format::Vhd, Mode::ReadWrite), true).unwrap();
    layout(Format::Vhd)
        .set_parent(&open(&sr, disk, Format::Vhd, Mode::ReadWrite), &forest.parent_image(base, Mode::ReadOnly).unwrap())
        .unwrap();
    let nodes = forest.nodes().unwrap();
    assert_eq!((nodes.get(root), nodes.get(disk).unwrap().parent), (None, Some(base)));
    assert!(sr.finish_relink(&dir, &nodes, base, root, Format::Vhd).unwrap().is_none());
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
    let why = sr.finish_relink(&dir, &nodes, base, root, Format::Vhd).unwrap().expect("it is given up");
    assert!(why.to_string().contains(&image_name(other, Format::Qcow2)), "{why}");
    assert!(forest.place(base).is_ok());
    assert!(fs::read(dir.join(&image_name(other, Format::Qcow2))).unwrap() == before);
    assert!(read(&sr, disk, 0, 4096).unwrap() == contents);
}
