//! Calls of one host while another one changes the same trees, after one of them lost its lock, or where a power cut
//! came between.

use super::*;

/// Host A loses the tree's lock (lease over, or a server restart without reclaim) in the middle of a fork, after
/// steps 1-4; host B attaches the SR and repairs; A goes on with step 5, the rename.
#[test]
fn a_host_that_lost_the_trees_lock_in_a_fork_takes_nothing_away() {
    let (_scratch, a, b) = two_hosts();
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
    assert_eq!(read(&b, disk, 0, 512).unwrap(), [7; 512]);
}

/// A collapse on host A: A loses the lock before its rename, B repairs, attaches and writes, A renames.
#[test]
fn a_host_that_lost_the_trees_lock_in_a_collapse_takes_nothing_away() {
    let (_scratch, a, b) = two_hosts();
    let disk = an_only_child(&a);
    let (dir, name) = begin_collapse(&a, disk);
    let passing = format!(".tmp-{}", uuid::Uuid::new_v4());
    dir.link(&name, &passing).unwrap();
    b.attach().unwrap();
    write(&b, disk, 8192, &[9; 4096]);
    let _ = dir.rename(&passing, &image_name(disk, Format::Vhd));
    assert_eq!(read(&b, disk, 8192, 512).unwrap(), [9; 512]);
}

/// B exports a disk (VdiExport: its locks are B's own); meanwhile A collects, then attaches and writes.
#[test]
fn an_export_is_of_one_moment_whatever_another_host_does() {
    let (_scratch, a, b) = two_hosts();
    let disk = an_only_child(&a);
    let mut seen = vec![0; 8192];
    b.vdi(disk)
        .unwrap()
        .read(Reading::Whole, &mut |bytes| {
            bytes.read_at(&mut seen[4096..], 4096)?;
            let _ = a.collect(&Collecting::default(), &ctx());
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
    let (_scratch, a, b) = two_hosts();
    let disk = VdiUuid::random();
    a.create_vdi(&vhd(disk)).unwrap();
    let _server = open_on(&a, disk);
    // The checks that the dispatch of VdiExport makes:
    let there = b.vdi(disk).unwrap();
    let refused = if !there.info().unwrap().read_only { vdi::refuse_if_attached(&*there) } else { Ok(()) };
    let refused = refused.and_then(|()| there.read(Reading::Whole, &mut |_| Ok(())));
    assert!(refused.is_err(), "the export of a disk in use elsewhere is not refused");
}

/// A clones a raw disk (no reflink); meanwhile B locks it, as who attaches does, and writes.
#[test]
fn a_copy_is_not_made_of_a_disk_that_another_host_locked_meanwhile() {
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = scratch.path().join("sr");
    let (a, b) = two_hosts_in(&path);
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
    let (_scratch, a, b) = two_hosts();
    let disk = VdiUuid::random();
    a.create_vdi(&vhd(disk)).unwrap();
    let _server = open_on(&a, disk);
    assert!(b.vdi(disk).unwrap().delete(&ctx()).is_err(), "vdi_delete is refused");
    assert!(b.delete().is_err(), "sr_delete is not refused");
}

/// A forks; B is asked for vdi_delete, then vdi_create, of the copy's name: under locks of B only.
#[test]
fn the_copy_of_a_living_fork_is_left_alone() {
    let (_scratch, fork, here) = forking();
    let (namespace, lock) = fork.lock_elsewhere();
    let [disk, _, dest] = fork.places();
    let mut own = fork.before_the_rename();
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
    let (_scratch, fork, b) = forking();
    let [disk, base, dest] = fork.places();
    fork.dir.link(&disk.name(), &base.name()).unwrap();
    fork.publish_dest();
    fork.dir.rename(&disk.name(), ".nfs000000000000000f00000002").unwrap();
    fork.dir.remove(".nfs000000000000000f00000002").unwrap();
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
    let (_scratch, a, b) = two_hosts();
    let disk = an_only_child(&a);
    // Its client renames the open leaf away; power cut.
    let (dir, _) = begin_collapse(&a, disk);
    dir.rename(&image_name(disk, Format::Vhd), ".nfs000000000000000f00000002").unwrap();
    b.attach().unwrap();
    assert_eq!(read(&b, disk, 0, 512).unwrap(), [7; 512]);
}

/// While A's fork has renamed the open U away, B unlocks or deletes it.
#[test]
fn a_disk_without_a_name_for_a_moment_keeps_its_lock() {
    let (_scratch, fork, b) = forking();
    let [disk, base, _] = fork.places();
    b.vdi(disk.vdi).unwrap().lock("vm", false).unwrap();
    fork.dir.link(&disk.name(), &base.name()).unwrap();
    fork.publish_dest();
    fork.dir.rename(&disk.name(), ".nfs000000000000000f00000002").unwrap();
    // A call that needs the disk waits for the lock of the trees, and here finds a fork that was killed.
    assert!(b.vdi(disk.vdi).is_ok());
    assert_eq!(b.scan().unwrap().vdi_uuids, [disk.vdi]);
    assert!(b.vdi(disk.vdi).unwrap().info().unwrap().locked, "the persistent lock is gone");
}

/// A host that lost its lock while it made a copy, and another one that removed the base with its last child meanwhile.
#[test]
fn a_copy_below_which_the_base_is_gone_is_not_there() {
    let (_scratch, a, _) = two_hosts();
    let (disk, copy) = (an_only_child(&a), VdiUuid::random());
    let base = a.vdi(disk).unwrap().info().unwrap().parent.unwrap();
    let forest = a.forest(a.dir().unwrap());
    a.vdi(disk).unwrap().delete(&ctx()).unwrap();
    assert!(matches!(forest.spawn(base, copy, &Params::default()), Err(Error::NoVdi { .. })));
    assert!(matches!(a.vdi(copy), Err(Error::NoVdi { .. })));
}
