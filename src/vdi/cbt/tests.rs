//! The logs of a disk in memory, whose changes may stop at any step, beside a model that knows what each VDI holds.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::image::cbtlog::BLOCK;
use crate::sys::lock::{self, Kind};

const BLOCKS: usize = 24;
const SIZE: u64 = BLOCKS as u64 * BLOCK;

/// Logs in memory. After `left` more changes the process is dead: all changes fail.
struct Memory {
    sr: SrUuid,
    logs: RefCell<BTreeMap<VdiUuid, Log>>,
    left: Cell<usize>,
}

impl Memory {
    fn change(&self) -> Result<()> {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        if left == 0 { Err(Error::Usage("dead".to_owned())) } else { Ok(()) }
    }
}

impl ChangeLogs for Memory {
    fn sr(&self) -> SrUuid {
        self.sr
    }

    fn all(&self) -> Result<Vec<VdiUuid>> {
        Ok(self.logs.borrow().keys().copied().collect())
    }

    fn header(&self, vdi: VdiUuid) -> Result<Option<Header>> {
        Ok(self.logs.borrow().get(&vdi).map(|log| log.header))
    }

    fn read(&self, vdi: VdiUuid) -> Result<Option<Log>> {
        Ok(self.logs.borrow().get(&vdi).cloned())
    }

    fn write(&self, vdi: VdiUuid, log: &Log) -> Result<()> {
        self.change()?;
        // Through bytes, as a file.
        self.logs.borrow_mut().insert(vdi, Log::parse(&log.to_bytes()).unwrap());
        Ok(())
    }

    fn point(&self, vdi: VdiUuid, at: u64, to: Option<VdiUuid>) -> Result<()> {
        self.change()?;
        let mut logs = self.logs.borrow_mut();
        let header = &mut logs.get_mut(&vdi).unwrap().header;
        *(if at == PARENT_AT { &mut header.parent } else { &mut header.child }) = to;
        Ok(())
    }

    fn remove(&self, vdi: VdiUuid) -> Result<bool> {
        self.change()?;
        Ok(self.logs.borrow_mut().remove(&vdi).is_some())
    }

    fn locked(&self, deadline: Instant) -> Result<Lock> {
        Ok(lock::take(&self.sr.to_string(), "tree", Kind::Exclusive, deadline).unwrap())
    }
}

/// What each block of a VDI holds.
type Contents = [u32; BLOCKS];

struct World {
    logs: Memory,
    disk: VdiUuid,
    contents: Contents,
    /// Every snapshot, in order.
    snapshots: Vec<(VdiUuid, Contents)>,
    /// Something that was never written before.
    next: u32,
    /// Snapshots whose deletion was begun.
    dying: Vec<VdiUuid>,
    /// Each snapshot must be reachable from each before it: nothing ended the tracking.
    is_whole: bool,
}

impl World {
    fn new() -> World {
        let (sr, disk) = (SrUuid::random(), VdiUuid::random());
        let logs = Memory { sr, logs: RefCell::default(), left: Cell::new(usize::MAX) };
        begin(&logs, disk, SIZE, false).unwrap();
        World { logs, disk, contents: [0; BLOCKS], snapshots: Vec::new(), next: 0, dying: Vec::new(), is_whole: true }
    }

    fn write(&mut self, at: usize, blocks: usize) {
        for block in at..(at + blocks).min(BLOCKS) {
            self.next += 1;
            self.contents[block] = self.next;
            if let Some(log) = self.logs.logs.borrow_mut().get_mut(&self.disk) {
                log.mark(block as u64 * BLOCK + 7, 1);
            }
        }
    }

    fn snapshot(&mut self) {
        let snapshot = VdiUuid::random();
        self.snapshots.push((snapshot, self.contents));
        split(&self.logs, self.disk, snapshot, Writer::None);
    }

    fn delete(&mut self, i: usize) {
        let vdi = self.snapshots[i].0;
        let child = after(&self.logs, vdi).unwrap().map(|child| (child, None));
        let deadline = Instant::now() + Duration::from_secs(60);
        let context = Context { deadline, progress: &|_, _| {}, others: None };
        match merge(&self.logs, vdi, child, &context) {
            Ok(()) => drop(self.snapshots.remove(i)),
            Err(_) => self.dying.push(vdi),
        }
    }

    fn revert(&mut self, i: usize) {
        let (snapshot, contents) = self.snapshots[i];
        let Ok(reverting) = Reverting::begin(&self.logs, self.disk, snapshot) else { return };
        // The image is exchanged by one step, which may be the one that is not made any more.
        if self.logs.change().is_ok() {
            self.contents = contents;
            reverting.end(&self.logs, SIZE);
        }
    }

    fn is_dead(&self) -> bool {
        self.logs.left.get() == 0
    }

    /// The blocks as the Python storage managers sum them up: by the pointers of older logs alone.
    fn by_children(&self, from: VdiUuid, to: VdiUuid) -> Option<Vec<u8>> {
        let logs = self.logs.logs.borrow();
        let (mut now, mut sum) = (from, None::<Log>);
        for _ in 0..=logs.len() {
            now = logs.get(&now)?.header.child?;
            let mut log = logs.get(&now)?.clone();
            if let Some(sum) = &sum {
                log.add(sum);
            }
            if now == to {
                return Some(cbtlog::for_agents(&log.bitmap));
            }
            sum = Some(log);
        }
        None
    }

    /// No pair of VDIs differs in a block that is not told. `exactly`: nor is one told that was not written.
    fn check(&self, exactly: bool) -> Result<(), TestCaseError> {
        let mut all = self.snapshots.clone();
        all.push((self.disk, self.contents));
        for (i, (from, old)) in all.iter().enumerate() {
            for (j, (to, new)) in all.iter().enumerate() {
                let ours = changed(&self.logs, *from, *to, &|_| false);
                prop_assert!(!self.is_whole || (i < j) == ours.is_ok(), "{i} to {j}: {ours:?}");
                let theirs = self.by_children(*from, *to).filter(|_| !self.dying.contains(from));
                for told in [ours.ok(), theirs].into_iter().flatten() {
                    for block in 0..BLOCKS {
                        let is_told = told[block / 8] & (0x80 >> (block % 8)) != 0;
                        let differs = old[block] != new[block];
                        prop_assert!(is_told || !differs, "from {i} to {j}: block {block} is not told");
                        prop_assert!(!exactly || is_told == differs, "from {i} to {j}: block {block} was not written");
                    }
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize),
    Snapshot,
    Delete(usize),
    Revert(usize),
    Forget,
    Begin,
}

fn op(all: bool) -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..BLOCKS, 1..4usize).prop_map(|(at, blocks)| Op::Write(at, blocks)),
        3 => Just(Op::Snapshot),
        2 => any::<usize>().prop_map(Op::Delete),
        u32::from(all) => any::<usize>().prop_map(Op::Revert),
        u32::from(all) => Just(Op::Forget),
        u32::from(all) => Just(Op::Begin),
    ]
}

fn run(world: &mut World, op: &Op) {
    let count = world.snapshots.len();
    match op {
        Op::Write(at, blocks) => world.write(*at, *blocks),
        Op::Snapshot => world.snapshot(),
        Op::Delete(i) if count > 0 => world.delete(i % count),
        Op::Revert(i) if count > 0 => world.revert(i % count),
        Op::Forget => drop(forget(&world.logs, world.disk)),
        Op::Begin => drop(begin(&world.logs, world.disk, SIZE, false)),
        Op::Delete(_) | Op::Revert(_) => {}
    }
}

proptest! {
    #[test]
    fn without_a_kill_exactly_what_was_written_is_told(ops in prop::collection::vec(op(false), 1..40)) {
        let mut world = World::new();
        for op in ops {
            run(&mut world, &op);
            world.check(true)?;
        }
    }

    #[test]
    fn whatever_is_killed_no_block_that_differs_is_left_out(
        ops in prop::collection::vec((op(true), prop::option::weighted(0.4, 0..8usize)), 1..40)
    ) {
        let mut world = World::new();
        for (op, kill) in ops {
            world.logs.left.set(kill.unwrap_or(usize::MAX));
            run(&mut world, &op);
            world.is_whole &= !world.is_dead() && !matches!(op, Op::Forget | Op::Begin);
            world.logs.left.set(usize::MAX);
            world.check(false)?;
        }
    }
}

#[test]
fn the_same_call_again_completes_a_deletion_that_was_killed() {
    for kill in 0..5 {
        let mut world = World::new();
        for n in 0..4 {
            world.write(n, 2);
            world.snapshot();
        }
        world.logs.left.set(kill);
        world.delete(2);
        world.logs.left.set(usize::MAX);
        if world.snapshots.len() == 4 {
            world.delete(2);
        }
        assert_eq!(world.snapshots.len(), 3);
        assert_eq!(world.logs.all().unwrap().len(), 4, "kill {kill}");
        world.check(true).unwrap();
    }
}

#[test]
fn a_log_that_may_lack_blocks_is_not_summed_up() {
    let mut world = World::new();
    world.snapshot();
    let first = world.snapshots[0].0;
    world.write(3, 1);
    world.logs.logs.borrow_mut().get_mut(&world.disk).unwrap().header.consistent = false;
    let asked = changed(&world.logs, first, world.disk, &|_| false);
    assert!(matches!(asked, Err(Error::ChangesInconsistent { vdi, .. }) if vdi == world.disk), "{asked:?}");
    assert_eq!(changed(&world.logs, first, world.disk, &|_| true).unwrap()[0], 0x10);
    for (from, to) in [(first, first), (world.disk, first), (first, VdiUuid::random())] {
        assert!(matches!(changed(&world.logs, from, to, &|_| false), Err(Error::ChangesUnknown { .. })));
    }
    // Nor does the next snapshot take it over.
    world.snapshot();
    assert_eq!(world.logs.all().unwrap(), [first]);
    assert_eq!(world.logs.header(first).unwrap().unwrap().child, None);
}

#[test]
fn a_disk_that_grew_within_a_byte_of_its_bitmap_is_summed_up() {
    let mut world = World::new();
    world.snapshot();
    world.write(1, 1);
    world.snapshot();
    grow(&world.logs, world.disk, SIZE + BLOCK);
    grow(&world.logs, world.disk, SIZE);
    assert_eq!(world.logs.read(world.disk).unwrap().unwrap(), {
        let mut grown = Log::of_nothing(SIZE + BLOCK, true);
        grown.header.parent = Some(world.snapshots[1].0);
        grown
    });
    let all = changed(&world.logs, world.snapshots[0].0, world.disk, &|_| false).unwrap();
    assert_eq!(all, [0x40, 0, 0, 0]);
}
