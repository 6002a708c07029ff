//! Changed block tracking of disks that a server writes to, which may be killed at any moment. The server is one of another
//! host: what happens here asks it to let go, and knows no more of it.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::context::OtherHosts;
use crate::datapath::{Disk as Server, Source};
use crate::image::cbtlog::BLOCK;
use crate::vdi::SnapshotSaid;
use crate::vdi::cbt::{self, ChangeLogs};

const BLOCKS: u64 = 64;

/// The host that has the disk attached, if one has.
struct Host(Mutex<Option<Arc<Server>>>);

impl Host {
    fn server(&self) -> Option<Arc<Server>> {
        self.0.lock().unwrap().clone()
    }
}

impl OtherHosts for Host {
    fn pause(&self) -> crate::error::Result<()> {
        self.server().map_or(Ok(()), |server| server.pause())
    }

    fn resume(&self) -> crate::error::Result<()> {
        self.server().map_or(Ok(()), |server| server.resume().map(drop))
    }

    fn has_writer(&self) -> bool {
        self.server().is_some()
    }

    fn tracks(&self) -> bool {
        self.server().is_some_and(|server| server.is_tracked())
    }
}

struct World {
    sr: FileSr,
    format: Format,
    disk: VdiUuid,
    host: Arc<Host>,
    /// What each block of the disk holds; as many as the disk has.
    contents: Vec<u32>,
    snapshots: Vec<(VdiUuid, Vec<u32>)>,
    next: u32,
    /// A server was killed since the disk is tracked, or the disk was taken back.
    is_exact: bool,
}

impl World {
    fn new(scratch: &TempDir, format: Format) -> World {
        let sr = new_sr_in(scratch).shared();
        sr.create(&NewSr::default()).unwrap();
        let disk = VdiUuid::random();
        sr.create_vdi(&NewVdi { virtual_size: BLOCKS * BLOCK, format: Some(format), ..vhd(disk) }).unwrap();
        let host = Arc::new(Host(Mutex::default()));
        let contents = vec![0; BLOCKS as usize];
        let world = World { sr, format, disk, host, contents, snapshots: Vec::new(), next: 0, is_exact: true };
        world.begin();
        world
    }

    fn begin(&self) {
        let size = self.contents.len() as u64 * BLOCK;
        let paused = self.host.server();
        paused.iter().for_each(|server| server.pause().unwrap());
        cbt::begin(&self.logs(), self.disk, size, paused.is_some()).unwrap();
        paused.iter().for_each(|server| assert!(server.resume().unwrap() > 0));
    }

    fn logs(&self) -> super::super::forest::FileForest<'_> {
        self.sr.forest(self.sr.dir().unwrap())
    }

    fn context(&self) -> Context<'static> {
        Context { others: Some(self.host.clone()), ..ctx() }
    }

    fn is_tracked(&self) -> bool {
        self.sr.vdi(self.disk).unwrap().brief().unwrap().cbt_enabled
    }

    fn attach(&mut self) {
        if self.host.server().is_some() {
            return;
        }
        let path = self.sr.dir().unwrap().join(&image_name(self.disk, self.format));
        let disk = self.sr.vdi(self.disk).unwrap();
        cbt::refuse_torn(&self.logs(), disk.place(), Instant::now());
        let source = Source { format: self.format, path, read_only: false, shared: true };
        *self.host.0.lock().unwrap() = Some(Arc::new(Server::open(&source).unwrap()));
    }

    fn detach(&mut self) {
        if let Some(server) = self.host.0.lock().unwrap().take() {
            server.close().unwrap();
        }
    }

    /// As SIGKILL does: nothing more is written.
    fn kill(&mut self) {
        if self.host.0.lock().unwrap().take().is_some() {
            self.is_exact = false;
        }
    }

    fn write(&mut self, at: usize, blocks: usize, zero: bool) {
        self.attach();
        let server = self.host.server().unwrap();
        for block in at..(at + blocks).min(self.contents.len()) {
            self.next += 1;
            let offset = block as u64 * BLOCK;
            // From the last sector of the block to its end, or from its first.
            let begin = if block % 2 == 0 { offset } else { offset + BLOCK - 512 };
            if zero {
                server.zero(offset, BLOCK).unwrap();
            } else {
                server.write(&self.next.to_le_bytes().repeat(128), begin).unwrap();
            }
            self.contents[block] = self.next;
        }
    }

    fn snapshot(&mut self) {
        let snapshot = VdiUuid::random();
        let disk = self.sr.vdi(self.disk).unwrap();
        if disk.snapshot(snapshot, &ParamsChange::default(), &self.context()).is_ok() {
            self.snapshots.push((snapshot, self.contents.clone()));
        }
    }

    fn resize(&mut self) {
        self.detach();
        let size = (self.contents.len() as u64 + 32) * BLOCK;
        self.sr.vdi(self.disk).unwrap().resize(size, false, &ctx()).unwrap();
        self.contents.resize(self.contents.len() + 32, 0);
    }

    fn delete(&mut self, i: usize, only_data: bool) {
        let vdi = if only_data { self.snapshots[i].0 } else { self.snapshots.remove(i).0 };
        if let Ok(disk) = self.sr.vdi(vdi) {
            disk.delete(&ctx()).unwrap();
        }
        if !only_data {
            let logs = self.logs();
            let child = cbt::after(&logs, vdi).unwrap();
            let context = if child == Some(self.disk) { self.context() } else { ctx() };
            cbt::merge(&logs, vdi, child.map(|child| (child, None)), &context).unwrap();
        }
    }

    fn revert(&mut self, i: usize) {
        self.detach();
        let (snapshot, contents) = self.snapshots[i].clone();
        if self.sr.vdi(snapshot).is_err() {
            return;
        }
        self.sr.vdi(self.disk).unwrap().revert_to(snapshot, SnapshotSaid::BySr, &ctx()).unwrap();
        self.contents = contents;
        self.is_exact = false;
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut all = self.snapshots.clone();
        all.push((self.disk, self.contents.clone()));
        let lives = |vdi| vdi == self.disk && self.host.tracks();
        for (i, (from, old)) in all.iter().enumerate() {
            for (to, new) in &all[i + 1..] {
                let told = cbt::changed(&self.logs(), *from, *to, &lives);
                prop_assert!(!self.is_exact || told.is_ok(), "{told:?}");
                let Ok(told) = told else { continue };
                for block in 0..new.len() {
                    let is_told = told[block / 8] & (0x80 >> (block % 8)) != 0;
                    let was = old.get(block).copied().unwrap_or_default();
                    prop_assert!(is_told || was == new[block], "block {block} is not told");
                    prop_assert!(!self.is_exact || is_told == (was != new[block]), "block {block} was not written");
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize, bool),
    Snapshot,
    Attach,
    Detach,
    Kill,
    Resize,
    Delete(usize, bool),
    Revert(usize),
    Begin,
}

fn op(all: bool) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..BLOCKS as usize, 1..6usize, any::<bool>()).prop_map(|(at, blocks, zero)| Op::Write(at, blocks, zero)),
        4 => Just(Op::Snapshot),
        1 => Just(Op::Attach),
        1 => Just(Op::Detach),
        1 => Just(Op::Resize),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(i, only_data)| Op::Delete(i, only_data)),
        u32::from(all) => Just(Op::Kill),
        u32::from(all) => any::<usize>().prop_map(Op::Revert),
        u32::from(all) => Just(Op::Begin),
    ]
}

fn run(world: &mut World, op: &Op) {
    let count = world.snapshots.len();
    match op {
        Op::Write(at, blocks, zero) => world.write(*at, *blocks, *zero),
        Op::Snapshot => world.snapshot(),
        Op::Attach => world.attach(),
        Op::Detach => world.detach(),
        Op::Kill => world.kill(),
        Op::Resize => world.resize(),
        Op::Delete(i, only_data) if count > 0 => world.delete(i % count, *only_data),
        Op::Revert(i) if count > 0 => world.revert(i % count),
        Op::Begin => world.begin(),
        Op::Delete(..) | Op::Revert(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn without_a_kill_exactly_what_was_written_is_told(qcow2: bool, ops in prop::collection::vec(op(false), 1..25)) {
        let scratch = tempfile::tempdir().unwrap();
        let mut world = World::new(&scratch, if qcow2 { Format::Qcow2 } else { Format::Vhd });
        for op in ops {
            run(&mut world, &op);
            world.check()?;
            prop_assert!(world.is_tracked());
        }
        world.detach();
    }

    #[test]
    fn whatever_is_killed_no_block_that_differs_is_left_out(qcow2: bool, ops in prop::collection::vec(op(true), 1..25)) {
        let scratch = tempfile::tempdir().unwrap();
        let mut world = World::new(&scratch, if qcow2 { Format::Qcow2 } else { Format::Vhd });
        for op in ops {
            run(&mut world, &op);
            world.check()?;
        }
        world.detach();
    }
}

#[test]
fn only_the_server_that_took_the_mark_away_gives_it_back() {
    let scratch = tempfile::tempdir().unwrap();
    let mut world = World::new(&scratch, Format::Vhd);
    let is_consistent = |world: &World| world.logs().header(world.disk).unwrap().unwrap().consistent;
    world.write(3, 1, false);
    assert!(!is_consistent(&world));
    world.kill();
    // A reader comes and goes: it was not the one that wrote.
    let path = world.sr.dir().unwrap().join(&image_name(world.disk, Format::Vhd));
    let source = Source { format: Format::Vhd, path, read_only: true, shared: true };
    Server::open(&source).unwrap().close().unwrap();
    assert!(!is_consistent(&world));
    // Nor is a server that finds the log torn.
    let server = Server::open(&Source { read_only: false, ..source.clone() }).unwrap();
    server.write(&[1; 512], 0).unwrap();
    server.pause().unwrap();
    server.resume().unwrap();
    assert!(!server.is_tracked());
    server.close().unwrap();
    assert!(!is_consistent(&world));
    // The next attachment ends the tracking, and a new log knows nothing of the old one.
    world.attach();
    assert!(!world.is_tracked());
    world.begin();
    assert!(world.host.tracks());
    world.detach();
    assert!(is_consistent(&world));
}

#[test]
fn a_disk_is_not_made_where_a_log_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    let mut world = World::new(&scratch, Format::Vhd);
    world.snapshot();
    world.delete(0, true);
    let left = world.snapshots[0].0;
    assert!(matches!(world.sr.create_vdi(&vhd(left)), Err(Error::VdiExists { .. })));
    let disk = world.sr.vdi(world.disk).unwrap();
    assert!(matches!(disk.snapshot(left, &ParamsChange::default(), &ctx()), Err(Error::VdiExists { .. })));
    let raw = NewVdi { format: Some(Format::Raw), ..vhd(left) };
    assert!(matches!(world.sr.create_vdi(&raw), Err(Error::VdiExists { .. })));
    let found = world.sr.scan().unwrap();
    assert_eq!(found.logs.unwrap().iter().map(|log| log.vdi).collect::<Vec<_>>(), [left]);
    assert!(!found.vdi_uuids.contains(&left));
}

#[test]
fn sr_check_tells_of_logs_that_cannot_be_used_and_removes_them() {
    let scratch = tempfile::tempdir().unwrap();
    let mut world = World::new(&scratch, Format::Vhd);
    world.write(1, 1, false);
    world.detach();
    let name = format!("{}.cbtlog", world.disk);
    let path = world.sr.dir().unwrap().join(&name);
    let good = fs::read(&path).unwrap();
    let found = |repair| -> Vec<(String, &'static str)> {
        let found = world.sr.check(false, repair, &ctx()).unwrap();
        found.into_iter().map(|finding| (finding.what, finding.outcome.word())).collect()
    };
    assert_eq!(found(false), []);
    let mut torn = good.clone();
    torn[32] = 0;
    fs::write(&path, torn).unwrap();
    let note = "may lack blocks that were written: the tracking ends when the disk is attached";
    assert_eq!(found(true), [(note.to_owned(), "note")]);
    let mut small = good.clone();
    small[40..48].copy_from_slice(&BLOCK.to_le_bytes());
    for (bytes, what) in [(&good[..50], "is no log of changed blocks"), (&small, "is the log of a smaller disk")] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(found(false), [(what.to_owned(), "mendable")]);
        assert_eq!(found(true), [(what.to_owned(), "mended")]);
        assert!(!path.exists());
    }
    assert_eq!(found(false), []);
}
