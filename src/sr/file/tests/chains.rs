//! Merges of several images at once, and of several trees at the same time.

use super::*;
use crate::vdi::format::Work;
use crate::vdi::tree::forest::{Ending, Forest};
use crate::vdi::tree::run::{Taken, Watcher};

/// A disk with so many deleted snapshots, each with a part of its own that hides a part of what is below.
fn a_chain(sr: &FileSr, snapshots: u8) -> VdiUuid {
    let disk = VdiUuid::random();
    sr.create_vdi(&vhd(disk)).unwrap();
    for n in 0..=snapshots {
        write(sr, disk, u64::from(n) * 2048, &[n + 1; 4096]);
        if n < snapshots {
            let snap = VdiUuid::random();
            sr.vdi(disk).unwrap().snapshot(snap, &ParamsChange::default(), &ctx()).unwrap();
            sr.vdi(snap).unwrap().delete(&ctx()).unwrap();
        }
    }
    disk
}

fn assert_whole(sr: &FileSr, disk: VdiUuid, snapshots: u8) {
    for n in 0..=snapshots {
        let own = if n == snapshots { 4096 } else { 2048 };
        assert_eq!(read(sr, disk, u64::from(n) * 2048, own).unwrap(), vec![n + 1; own], "of {n}");
    }
}

#[derive(Default)]
struct Steps(sync::Mutex<Vec<Taken>>);

impl Watcher for Steps {
    fn taken(&self, step: &Taken) {
        self.0.lock().unwrap().push(step.clone());
    }
}

#[test]
fn a_chain_of_only_children_is_merged_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let disk = a_chain(&sr, 4);
    let root = *sr.forest(sr.dir().unwrap()).nodes().unwrap().chain(disk).last().unwrap();
    let watcher = sync::Arc::new(Steps::default());
    let collecting = Collecting { watcher: Some(watcher.clone()), ..Collecting::default() };
    assert_eq!(sr.collect(&collecting, &ctx()).unwrap(), Done::Changed);
    let into = |step: &Taken| match step {
        Taken::Merging { into, .. } => Some((0, *into)),
        Taken::Merged { into, .. } => Some((1, *into)),
        _ => None,
    };
    let steps: Vec<_> = watcher.0.lock().unwrap().iter().filter_map(into).collect();
    assert_eq!(steps, [vec![(0, root); 4], vec![(1, root); 4]].concat());
    let left: Vec<VdiUuid> = sr.forest(sr.dir().unwrap()).nodes().unwrap().iter().map(|(vdi, _)| vdi).collect();
    assert_eq!(left, [disk]);
    assert_whole(&sr, disk, 4);
}

/// What another call works on is left, and all else is merged.
#[test]
fn a_chain_with_an_image_that_is_worked_on_is_merged_around_it() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let disk = a_chain(&sr, 4);
    let chain = sr.forest(sr.dir().unwrap()).nodes().unwrap().chain(disk);
    let held = lock::take(&chain[4].to_string(), "vdi", lock::Kind::Exclusive, Instant::now()).unwrap();
    assert_eq!(sr.collect(&Collecting::default(), &ctx()).unwrap(), Done::Changed);
    assert_eq!(sr.forest(sr.dir().unwrap()).nodes().unwrap().chain(disk), [disk, chain[4]]);
    assert_whole(&sr, disk, 4);
    drop(held);
    assert_eq!(sr.collect(&Collecting::default(), &ctx()).unwrap(), Done::Changed);
    assert_eq!(sr.forest(sr.dir().unwrap()).nodes().unwrap().chain(disk), [disk]);
    assert_whole(&sr, disk, 4);
}

/// The ends of merges that were recorded together, one of each kind: none has begun; one has its children, the other its name.
#[test]
fn ends_of_merges_that_were_recorded_together_are_undone_or_completed_one_by_one() {
    for begun in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let sr = sr_in(&scratch);
        let (collapsed, relinked) = (an_only_child(&sr), a_chain(&sr, 2));
        let forest = sr.forest(sr.dir().unwrap());
        let nodes = forest.nodes().unwrap();
        let (base, chain) = (nodes.base_of_only_child(collapsed).unwrap(), nodes.chain(relinked));
        // The data of what is between goes into the base.
        let open = |vdi, mode| forest.place(vdi).unwrap().open(mode).map(|image| (*image).clone()).unwrap();
        let parent = forest.parent_image(chain[2], Mode::ReadWrite).unwrap();
        let work = Work { progress: &|_| {}, copied: &|_| std::ops::ControlFlow::Continue(()) };
        layout(Format::Vhd).coalesce(&[open(chain[1], Mode::ReadOnly)], &parent, &|_| unreachable!(), work).unwrap();
        drop(parent);
        let relink = Change::Relink { vdi: chain[1], base: chain[2], format: Format::Vhd, between: Vec::new() };
        let collapse = Change::Collapse { vdi: collapsed, base, format: Format::Vhd, between: Vec::new() };
        let dir = sr.dir().unwrap();
        dir.create(CHANGE, &encode(&Change::Merges { of: vec![relink, collapse] })).unwrap();
        if begun {
            let image = open(base, Mode::ReadWrite);
            layout(Format::Vhd).set_hidden(&*image, false).unwrap();
            let file = image.file().unwrap();
            dir.passing_link(&image_name(base, Format::Vhd), file)
                .unwrap()
                .publish_over(&image_name(collapsed, Format::Vhd))
                .unwrap();
        }
        // Whoever reads meanwhile sees two disks and no base.
        let mut disks = [collapsed, relinked];
        disks.sort_unstable();
        assert_eq!(sr.scan().unwrap().vdi_uuids, disks);
        sr.attach().unwrap();
        assert!(read_change(&dir).unwrap().is_none());
        let now = forest.nodes().unwrap();
        assert_eq!(now.chain(relinked), [chain[0], chain[2]]);
        assert_eq!(now.chain(collapsed).len(), if begun { 1 } else { 2 });
        assert_eq!(now.iter().count(), if begun { 3 } else { 4 });
        assert_eq!(read(&sr, collapsed, 0, 4096).unwrap(), [7; 4096]);
        assert_whole(&sr, relinked, 2);
        assert_eq!(sr.collect(&Collecting::default(), &ctx()).unwrap(), Done::Changed);
        assert_eq!(forest.nodes().unwrap().iter().count(), 2);
        assert_eq!(read(&sr, collapsed, 0, 4096).unwrap(), [7; 4096]);
        assert_whole(&sr, relinked, 2);
    }
}

/// One of them fails, and the others end all the same.
#[test]
fn ends_of_merges_fail_one_by_one() {
    let scratch = tempfile::tempdir().unwrap();
    let sr = sr_in(&scratch);
    let (one, other) = (an_only_child(&sr), an_only_child(&sr));
    let forest = sr.forest(sr.dir().unwrap());
    let nodes = forest.nodes().unwrap();
    let end_of = |vdi| {
        let base = nodes.base_of_only_child(vdi).unwrap();
        let parent = forest.parent_image(base, Mode::ReadWrite).unwrap();
        let image = forest.place(vdi).unwrap().open(Mode::ReadOnly).map(|image| (*image).clone()).unwrap();
        let work = Work { progress: &|_| {}, copied: &|_| std::ops::ControlFlow::Continue(()) };
        layout(Format::Vhd).coalesce(&[image], &parent, &|_| unreachable!(), work).unwrap();
        Ending { vdi, is_disk: true, format: Format::Vhd, between: Vec::new(), base }
    };
    let endings = [end_of(one), end_of(other)];
    let name = sr.dir().unwrap().join(&image_name(endings[0].base, Format::Vhd));
    let aside = scratch.path().join("aside");
    fs::rename(&name, &aside).unwrap();
    let results = forest.end(&nodes, &endings);
    assert!(results[0].is_err() && results[1].is_ok(), "{results:?}");
    fs::rename(&aside, &name).unwrap();
    assert!(read_change(&sr.dir().unwrap()).unwrap().is_none());
    let now = forest.nodes().unwrap();
    assert_eq!((now.chain(one).len(), now.chain(other).len()), (2, 1));
    for disk in [one, other] {
        assert_eq!(read(&sr, disk, 0, 4096).unwrap(), [7; 4096]);
    }
}
