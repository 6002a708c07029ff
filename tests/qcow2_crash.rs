//! Crashes of qcow2 images at every write, and reordered ones.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "tests start other programs directly")]

mod power;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;

use power::*;
use xcp_sm::image::disk::Served;
use xcp_sm::image::qcow2::{self, Chain, Header, Image, Parent};
use xcp_sm::image::storage::Storage;
use xcp_sm::types::{Done, Mode};

const MIB: u64 = 1 << 20;
/// A disk of three L2 tables; the tests write where two of them begin.
const SIZE: u64 = 1200 * MIB;
const PART: u64 = 2048;

/// A sector of the disk for a number below 2 × [`PART`].
fn place_of(n: u64) -> u64 {
    if n < PART { n } else { 600 * MIB / SECTOR + n - PART }
}

/// A raw base whose sectors 0, 8, 16, … of the parts hold 1,000,000 + their number.
fn base() -> Arc<Recorder> {
    let base = Recorder::new(Disk::file());
    base.set_size(SIZE).unwrap();
    for n in (0..2 * PART).step_by(8) {
        base.write_at(&tag(1_000_000 + n), place_of(n) * SECTOR).unwrap();
    }
    base
}

fn base_tag(n: u64) -> u64 {
    if n.is_multiple_of(8) { 1_000_000 + n } else { 0 }
}

fn child(start: Disk) -> Disk {
    let leaf = Recorder::new(start);
    qcow2::create_child(&*leaf, SIZE, None, "base.raw", "raw").unwrap();
    leaf.disk()
}

fn chain(leaf: Arc<dyn Storage>, base: Arc<dyn Storage>, mode: Mode) -> Chain {
    Chain::open(Parent::Qcow2(leaf), mode, |_| Ok(Parent::Raw(base.clone()))).unwrap()
}

fn read_sector(chain: &Chain, n: u64) -> u64 {
    let mut sector = [0; 512];
    Served::read_at(chain, &mut sector, place_of(n) * SECTOR).unwrap();
    tag_of(&sector)
}

/// All sectors of the parts.
fn read_parts(chain: &Chain) -> Vec<u64> {
    let mut bytes = vec![0; (PART * SECTOR) as usize];
    let mut tags = Vec::new();
    for part in 0..2 {
        Served::read_at(chain, &mut bytes, place_of(part * PART) * SECTOR).unwrap();
        tags.extend(bytes.chunks(512).map(tag_of));
    }
    tags
}

/// What qemu-img says: at worst that clusters are counted in vain.
fn assert_sound(disk: &Disk) {
    let dir = tempfile::tempdir().unwrap();
    for base in ["base.raw", "b.raw"] {
        File::create(dir.path().join(base)).unwrap();
    }
    let path = dir.path().join("leaf.qcow2");
    write_out(disk, &File::create(&path).unwrap());
    match Command::new("qemu-img").args(["check", "-U", "-f", "qcow2"]).arg(path).output() {
        Ok(out) => {
            let words = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(matches!(out.status.code(), Some(0 | 3)), "{words}");
        }
        Err(_) => {
            eprintln!("SKIP: qemu-img is not on PATH");
            assert!(std::env::var_os("SM_TESTS_SKIP_NOTHING").is_none(), "skipped where nothing should be");
        }
    }
}

fn write_out(disk: &Disk, file: &File) {
    file.set_len(disk.size).unwrap();
    for (n, sector) in &disk.sectors {
        file.write_all_at(sector, n * SECTOR).unwrap();
    }
}

/// An image that qemu made with these options, and wrote to: sector `n` of the parts holds 2,000,000 + `n` if it is
/// compressed, else what the base has. `None`, told: there is no qemu.
fn of_qemu(options: &str, compressed: bool) -> Option<Disk> {
    let dir = tempfile::tempdir().unwrap();
    let (raw, path) = (dir.path().join("base.raw"), dir.path().join("leaf.qcow2"));
    let file = File::create(&raw).unwrap();
    file.set_len(SIZE).unwrap();
    for n in (0..2 * PART).filter(|_| compressed) {
        file.write_all_at(&tag(2_000_000 + n), place_of(n) * SECTOR).unwrap();
    }
    let run = |tool: &str, args: &[&str]| {
        let out = Command::new(tool).current_dir(dir.path()).args(args).output().ok()?;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Some(())
    };
    let done = if compressed {
        run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "base.raw", "leaf.qcow2"])
    } else {
        let create = ["create", "-q", "-f", "qcow2", "-o", options, "-b", "base.raw", "-F", "raw", "leaf.qcow2"];
        run("qemu-img", &create).and_then(|()| run("qemu-io", &["-f", "qcow2", "-c", "write 100M 1680k", "leaf.qcow2"]))
    };
    if done.is_none() {
        eprintln!("SKIP: qemu-img and qemu-io are not on PATH");
        return None;
    }
    let mut bytes = std::fs::read(path).unwrap();
    bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
    let mut disk = Disk::file();
    for (n, sector) in bytes.as_chunks::<512>().0.iter().enumerate() {
        if sector.iter().any(|byte| *byte != 0) {
            disk.put(n as u64, *sector);
        }
    }
    disk.size = bytes.len() as u64;
    Some(disk)
}

/// What is done for images of ours holds for those of qemu, in the ways of the format that ours do not use: what is
/// replaced is counted down, tables of reference counts are replaced by longer ones.
#[test]
fn a_crash_leaves_what_was_flushed_in_images_of_qemu() {
    let kinds = [
        ("cluster_size=512,refcount_bits=64", false),
        ("extended_l2=on", false),
        ("compat=0.10", false),
        ("cluster_size=4k,refcount_bits=2", true),
        ("compression_type=zstd", true),
        ("extended_l2=on", true),
    ];
    for (seed, (options, compressed)) in kinds.into_iter().enumerate() {
        let Some(start) = of_qemu(options, compressed) else { return };
        let initial = if compressed { |n| 2_000_000 + n } else { base_tag };
        let end = writes_survive_in(start.clone(), initial, 10 + seed as u64, 24);
        if seed == 0 {
            let tables = |disk: Disk| Header::read(&*Recorder::new(disk)).unwrap();
            assert_ne!(tables(start), tables(end), "its table of reference counts was large enough");
        }
    }
}

fn writes_survive(start: Disk, seed: u64) {
    writes_survive_in(child(start), base_tag, seed, 40);
}

/// Random writes and flushes; at every crash each sector is as it was at the last flush, or as it was written since,
/// and the image can be written on. `initial` is what each sector holds at first. Answers the image without a crash.
fn writes_survive_in(start: Disk, initial: fn(u64) -> u64, seed: u64, steps: u64) -> Disk {
    let base = base();
    let leaf = Recorder::new(start.clone());
    let disk = chain(leaf.clone(), base.clone(), Mode::ReadWrite);
    let mut dice = Dice(seed);
    // Per sector: log position before the write, its tag. And the flushes: log position after, writes before.
    let mut history: BTreeMap<u64, Vec<(usize, u64)>> = BTreeMap::new();
    let mut flushes = vec![(0, 0)];
    for id in 1..steps {
        let count = if dice.roll(12) == 0 { 300 } else { 1 + dice.roll(12) };
        let first = dice.roll(2) * PART + dice.roll(PART - count);
        let begun = leaf.position();
        let zero = dice.roll(5) == 0;
        let (at, len) = (place_of(first) * SECTOR, count * SECTOR);
        if zero {
            disk.write_zeroes(at, len).unwrap();
        } else {
            Served::write_at(&disk, &tag(id).repeat(count as usize), at).unwrap();
        }
        for n in first..first + count {
            history.entry(n).or_default().push((begun, if zero { 0 } else { id }));
        }
        if dice.roll(6) == 0 {
            let before = leaf.position();
            disk.flush().unwrap();
            flushes.push((leaf.position(), before));
        }
    }
    let (mut judged, every) = (0, if steps < 40 { 19 } else { 3 });
    crashes(&start, &leaf.ops(), |k, crashed| {
        judged += 1;
        if judged % every != 0 {
            return;
        }
        if judged % 20 == 0 {
            assert_sound(&crashed);
        }
        let (_, flushed) = flushes.iter().rfind(|(after, _)| *after <= k).unwrap();
        let again = Recorder::new(crashed);
        let disk = chain(again.clone(), base.clone(), Mode::ReadWrite);
        let seen = read_parts(&disk);
        for (n, seen) in (0..).zip(&seen) {
            let writes = history.get(&n).map_or(&[][..], Vec::as_slice);
            let durable = writes.iter().rfind(|(begun, _)| begun < flushed).map_or(initial(n), |(_, id)| *id);
            let later = writes.iter().filter(|(begun, _)| begun >= flushed && *begun <= k).map(|(_, id)| *id);
            let allowed: Vec<u64> = std::iter::once(durable).chain(later).collect();
            assert!(allowed.contains(seen), "crash at {k}: sector {n} is {seen}, not one of {allowed:?}");
        }
        // What is written on goes nowhere else.
        let mut dice = Dice(k as u64);
        let written: Vec<u64> = (0..20).map(|_| dice.roll(2 * PART)).collect();
        for n in &written {
            Served::write_at(&disk, &tag(5_000_000 + n), place_of(*n) * SECTOR).unwrap();
        }
        disk.flush().unwrap();
        drop(disk);
        let disk = chain(again.clone(), base.clone(), Mode::ReadOnly);
        for (n, now) in (0..).zip(read_parts(&disk)) {
            let wanted = if written.contains(&n) { 5_000_000 + n } else { seen[n as usize] };
            assert_eq!(now, wanted, "crash at {k}, written on: sector {n}");
        }
        if judged % 20 == 0 {
            assert_sound(&again.disk());
        }
    });
    assert!(judged > 100, "{judged}");
    leaf.disk()
}

#[test]
fn a_crash_leaves_what_was_flushed_in_a_file() {
    writes_survive(Disk::file(), 1);
    writes_survive(Disk::file(), 2);
}

#[test]
fn a_crash_leaves_what_was_flushed_on_a_device() {
    writes_survive(Disk::device(64 * MIB), 3);
}

/// Every way in which a change of the header may be cut off leaves the old or the new one, and the data.
#[test]
fn a_crash_leaves_the_old_header_or_the_new_one() {
    let base = base();
    let leaf = Recorder::new(child(Disk::file()));
    let disk = chain(leaf.clone(), base.clone(), Mode::ReadWrite);
    Served::write_at(&disk, &tag(7), 0).unwrap();
    disk.flush().unwrap();
    let start = leaf.disk();
    type Change = fn(&Arc<dyn Storage>);
    // Within the L1 table, and beyond it: a cluster of L1 entries is for 4 TiB.
    let changes: [Change; 4] = [
        |place| qcow2::set_hidden(&**place, true).unwrap(),
        |place| qcow2::set_parent(&**place, "b.raw", "raw").unwrap(),
        |place| assert_eq!(qcow2::resize(place, 2 * SIZE).unwrap(), Done::Changed),
        |place| assert_eq!(qcow2::resize(place, 9 << 40).unwrap(), Done::Changed),
    ];
    for change in changes {
        let recorder = Recorder::new(start.clone());
        let place: Arc<dyn Storage> = recorder.clone();
        change(&place);
        let facts = |place: &dyn Storage| {
            let header = Header::read(place).unwrap();
            (header.virtual_size, header.hidden, header.backing)
        };
        let (before, after) = (facts(&*Recorder::new(start.clone())), facts(&*place));
        assert_ne!(before, after);
        crashes(&start, &recorder.ops(), |k, crashed| {
            let place = Recorder::new(crashed.clone());
            let now = facts(&*place);
            assert!(now == before || now == after, "crash at {k}: {now:?}");
            assert_eq!(read_sector(&chain(place, base.clone(), Mode::ReadWrite), 0), 7);
            assert_sound(&crashed);
        });
    }
}

#[test]
fn coalescing_cut_off_leaves_every_disk_as_it_was_and_can_be_done_again() {
    let base = base();
    let parent = Recorder::new(child(Disk::file()));
    let disk = chain(parent.clone(), base.clone(), Mode::ReadWrite);
    for n in (0..PART).step_by(100) {
        Served::write_at(&disk, &tag(n + 1), place_of(n) * SECTOR).unwrap();
    }
    disk.flush().unwrap();
    let (start, leaf) = (parent.disk(), Recorder::new(child(Disk::file())));
    let two = |leaf: Arc<Recorder>, parent: Arc<Recorder>, base: Arc<Recorder>, mode| {
        let mut below = vec![Parent::Raw(base), Parent::Qcow2(parent)];
        let mut names = 0;
        // The names differ, as those in an SR do.
        let leaf_header = Header::read(&*leaf).unwrap();
        assert!(leaf_header.backing.is_some());
        Chain::open(Parent::Qcow2(leaf), mode, |_| {
            names += 1;
            Ok(below.pop().unwrap())
        })
    };
    qcow2::set_parent(&*leaf, "p.qcow2", "qcow2").unwrap();
    let disk = two(leaf.clone(), parent.clone(), base.clone(), Mode::ReadWrite).unwrap();
    for n in (0..2 * PART).step_by(150) {
        Served::write_at(&disk, &tag(n + 100_000), place_of(n) * SECTOR).unwrap();
    }
    disk.write_zeroes(place_of(256) * SECTOR, 128 * SECTOR).unwrap();
    disk.flush().unwrap();
    let wanted: Vec<u64> = (0..2 * PART).map(|n| read_sector(&disk, n)).collect();
    drop(disk);
    let merge = |parent: Arc<Recorder>| {
        let target = chain(parent, base.clone(), Mode::ReadWrite);
        let child = Image::open(leaf.clone(), Mode::ReadOnly).unwrap();
        qcow2::coalesce(&child, &target, &|_, _| std::ops::ControlFlow::Continue(())).unwrap();
    };
    let merged = Recorder::new(start.clone());
    merge(merged.clone());
    let mut judged = 0;
    crashes(&start, &merged.ops(), |k, crashed| {
        judged += 1;
        if judged % 5 != 0 {
            return;
        }
        let parent = Recorder::new(crashed);
        let disk = two(leaf.clone(), parent.clone(), base.clone(), Mode::ReadOnly).unwrap();
        assert!((0..2 * PART).all(|n| read_sector(&disk, n) == wanted[n as usize]), "crash at {k}");
        merge(parent.clone());
        let alone = chain(parent, base.clone(), Mode::ReadOnly);
        assert!((0..2 * PART).all(|n| read_sector(&alone, n) == wanted[n as usize]), "crash at {k}, done again");
    });
    assert!(judged > 20);
}
