//! Crashes of VHDs at every write, and reordered ones.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod power;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use power::*;
use uuid::Uuid;
use xcp_sm::image::vhd::{self, Chain, CheckOptions, Image, NewImage, Parent, ParentLink, Storage, Target};
use xcp_sm::types::{Done, Mode};

const MIB: u64 = 1 << 20;

fn link(parent: &dyn Storage) -> ParentLink {
    ParentLink { path: "./base.vhd".into(), uuid: Some(vhd::query(parent).unwrap().uuid), timestamp: 0 }
}

fn chain(leaf: Arc<dyn Storage>, base: Arc<dyn Storage>, mode: Mode) -> xcp_sm::Result<Chain> {
    Chain::open(leaf, mode, |_| Ok(Parent::Vhd(base.clone())))
}

fn read_sector(chain: &Chain, n: u64) -> u64 {
    let mut sector = [0; 512];
    chain.read_at(&mut sector, n * SECTOR).unwrap();
    tag_of(&sector)
}

/// A base of 8 MiB whose sectors 0, 40, 80, … of the first two blocks hold 1,000,000 + their number.
fn base() -> Arc<Recorder> {
    let base = Recorder::new(Disk::file());
    vhd::create(&*base, &NewImage::new(8 * MIB)).unwrap();
    let chain = Chain::open_single(base.clone(), Mode::ReadWrite).unwrap();
    for n in (0..8192).step_by(40) {
        chain.write_at(&tag(1_000_000 + n), n * SECTOR).unwrap();
    }
    chain.close().unwrap();
    Recorder::new(base.disk())
}

fn base_tag(n: u64) -> u64 {
    if n < 8192 && n.is_multiple_of(40) { 1_000_000 + n } else { 0 }
}

/// Problems that a crash may leave, and that do not make the image wrong.
fn assert_sound(disk: &Disk) {
    let place: Arc<dyn Storage> = Recorder::new(disk.clone());
    let options = CheckOptions { in_use: true, bitmaps: true, ..Default::default() };
    let problems = vhd::check(&place, options).unwrap();
    let batmap = "the checksum of the batmap is wrong";
    assert!(
        problems.iter().all(|p| p.what == batmap || p.what == "the header is torn, and can be completed"),
        "{problems:?}"
    );
    vhd::repair(&place).unwrap();
    let options = CheckOptions { bitmaps: true, ..Default::default() };
    assert_eq!(vhd::check(&place, options).unwrap(), []);
}

/// Random writes and flushes to a child; at every crash each sector is as it was at the last flush, or as it was
/// written since, and the image can be written on.
fn writes_survive(start: Disk, seed: u64) {
    let base = base();
    let leaf = Recorder::new(start);
    vhd::create_child(&*leaf, &NewImage::new(8 * MIB), &link(&*base)).unwrap();
    let start = leaf.disk();
    let leaf = Recorder::new(start.clone());
    let disk = chain(leaf.clone(), base.clone(), Mode::ReadWrite).unwrap();
    let mut dice = Dice(seed);
    // Per sector: log position before the write, its tag. And the flushes: log position after, writes before.
    let mut history: BTreeMap<u64, Vec<(usize, u64)>> = BTreeMap::new();
    let mut flushes = vec![(0, 0)];
    for id in 1..70u64 {
        let count = if dice.roll(12) == 0 { 700 } else { 1 + dice.roll(12) };
        let first = dice.roll(16384 - count);
        let begun = leaf.position();
        let zero = dice.roll(6) == 0;
        if zero {
            disk.write_zeroes(first * SECTOR, count * SECTOR).unwrap();
        } else {
            disk.write_at(&tag(id).repeat(count as usize), first * SECTOR).unwrap();
        }
        for n in first..first + count {
            history.entry(n).or_default().push((begun, if zero { 0 } else { id }));
        }
        if dice.roll(5) == 0 {
            disk.flush().unwrap();
            flushes.push((leaf.position(), leaf.position()));
        }
    }
    disk.close().unwrap();
    flushes.push((leaf.position(), leaf.position()));
    let probe: Vec<u64> = history.keys().copied().enumerate().filter(|(i, _)| i % 7 == 0).map(|(_, n)| n).collect();
    let probe: Vec<u64> = probe.into_iter().chain((0..16384).step_by(120)).collect();

    let mut count = 0u64;
    crashes(&start, &leaf.ops(), |k, crashed| {
        count += 1;
        let flushed = flushes.iter().rfind(|(end, _)| *end <= k).unwrap().0;
        let check = |disk: &Chain| -> Vec<u64> {
            probe
                .iter()
                .map(|n| {
                    let writes = history.get(n).map_or(&[][..], |w| w);
                    let old = writes.iter().rfind(|(begun, _)| *begun < flushed).map_or(base_tag(*n), |(_, id)| *id);
                    let got = read_sector(disk, *n);
                    let since = writes.iter().any(|(begun, id)| *begun >= flushed && *begun <= k && *id == got);
                    assert!(got == old || since, "sector {n} after {k} operations: {got}, expected {old}");
                    got
                })
                .collect()
        };
        let place = Recorder::new(crashed.clone());
        let disk = chain(place.clone(), base.clone(), Mode::ReadWrite).unwrap();
        let before = check(&disk);
        if count.is_multiple_of(7) {
            assert_sound(&crashed);
            // On with it: a new block, and what was there stays.
            disk.write_at(&tag(999), 4096 * 3 * SECTOR + 5 * SECTOR).unwrap();
            disk.close().unwrap();
            let disk = chain(place, base.clone(), Mode::ReadOnly).unwrap();
            assert_eq!(read_sector(&disk, 4096 * 3 + 5), 999);
            for (n, old) in probe.iter().zip(before).filter(|(n, _)| **n != 4096 * 3 + 5) {
                assert_eq!(read_sector(&disk, *n), old);
            }
        }
    });
    assert!(count > 200, "{count} crashes");
}

/// A flush of two new blocks meets one fault; the next one, of more sectors in these blocks, does not. Every choice of
/// what had reached the disk when the power goes is tried. `false`: the fault is past the end of the first flush.
fn survives_a_fault(start: Disk, fault: usize, errno: i32) -> bool {
    let base = base();
    let leaf = Recorder::new(start);
    vhd::create_child(&*leaf, &NewImage::new(8 * MIB), &link(&*base)).unwrap();
    let start = leaf.disk();
    let leaf = Recorder::new(start.clone());
    let faulty = Faulty::new(leaf.clone());
    let disk = chain(faulty.clone(), base.clone(), Mode::ReadWrite).unwrap();
    let blocks = [0, 2 * 4096];
    for n in blocks {
        disk.write_at(&tag(n + 7), (n + 7) * SECTOR).unwrap();
    }
    *faulty.fault.lock().unwrap() = Some((fault, errno));
    let first = disk.flush();
    let met = faulty.fault.lock().unwrap().take().is_none();
    // The footer at the end is a copy, which has no need of space.
    assert!(first.is_err() == met || errno == nix::libc::ENOSPC, "a flush of which something failed said {first:?}");
    // In a sector of which the base has another tag.
    let second = disk.write_at(&tag(LATER), 40 * SECTOR).and_then(|()| disk.flush());
    let flushed = leaf.position();
    crashes_of(9, &start, &leaf.ops(), |k, crashed| {
        let disk = chain(Recorder::new(crashed), base.clone(), Mode::ReadWrite).unwrap();
        let all = k == flushed && second.is_ok();
        for n in blocks {
            let got = read_sector(&disk, n + 7);
            assert!(got == n + 7 || (got == base_tag(n + 7) && !all), "sector {} after {k}: {got}", n + 7);
        }
        let got = read_sector(&disk, 40);
        assert!(got == LATER || (got == base_tag(40) && !all), "sector 40 after {k}: {got}");
    });
    met
}

const LATER: u64 = 500;

#[test]
fn a_flush_that_failed_half_way_keeps_the_order_for_the_next() {
    for device in [false, true] {
        for errno in [nix::libc::EIO, nix::libc::ENOSPC] {
            let start = || if device { Disk::device(32 * MIB) } else { Disk::file() };
            let faults = (0..).take_while(|fault| survives_a_fault(start(), *fault, errno)).count();
            assert!(faults >= 6, "two bitmaps, two syncs, two entries: {faults}");
        }
    }
}

#[test]
fn a_flush_syncs_what_was_written_and_nothing_twice() {
    let place = base();
    let chain = Chain::open_single(place.clone(), Mode::ReadWrite).unwrap();
    let of_a_flush = || {
        let from = place.position();
        chain.flush().unwrap();
        place.ops()[from..].to_vec()
    };
    // The process before this one may have written what it did not sync.
    assert!(matches!(of_a_flush()[..], [Op::Sync]));
    assert!(of_a_flush().is_empty());
    // Data in place of other data changes no table.
    chain.write_at(&tag(7), 0).unwrap();
    assert!(matches!(of_a_flush()[..], [Op::Sync]));
    chain.write_zeroes(40 * SECTOR, SECTOR).unwrap();
    assert!(matches!(of_a_flush()[..], [Op::Sync]));
    assert!(of_a_flush().is_empty());
    // A new sector, then a new block.
    for sector in [1, 8192] {
        chain.write_at(&tag(8), sector * SECTOR).unwrap();
        let ops = of_a_flush();
        assert!(matches!(ops[..], [.., Op::Sync]) && ops.iter().filter(|op| matches!(op, Op::Sync)).count() == 2);
        assert!(of_a_flush().is_empty());
    }
}

#[test]
fn a_full_filesystem_stops_only_what_has_no_space() {
    let leaf = Recorder::new(Disk::file());
    vhd::create(&*leaf, &NewImage::new(64 * MIB)).unwrap();
    let faulty = Faulty::new(leaf.clone());
    let disk = Chain::open_single(faulty.clone(), Mode::ReadWrite).unwrap();
    let full = |result: xcp_sm::Result<()>| {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, xcp_sm::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull),
            "{error}"
        );
    };
    disk.write_at(&tag(1), 0).unwrap();
    disk.flush().unwrap();
    // Room for the bitmap of one more block, or for not even that.
    for room in [leaf.disk().size + 5 * 4096, leaf.disk().size] {
        faulty.room.store(room, Relaxed);
        for n in 3..8 {
            full(disk.write_at(&tag(2).repeat(4096), n * 4096 * SECTOR));
        }
        disk.flush().unwrap();
        let more = leaf.disk();
        faulty.room.store(u64::MAX, Relaxed);
        // The blocks that are there take what they have space for.
        disk.write_at(&tag(3), 9 * SECTOR).unwrap();
        faulty.room.store(room, Relaxed);
        disk.write_at(&tag(4), 9 * SECTOR).unwrap();
        disk.flush().unwrap();
        assert!(leaf.disk().size >= more.size);
        let now = Chain::open_single(Recorder::new(leaf.disk()), Mode::ReadOnly).unwrap();
        assert_eq!([0, 9, 3 * 4096].map(|n| read_sector(&now, n)), [1, 4, 0]);
        assert_sound(&leaf.disk());
    }
    // With space again, what was refused goes where its room was; and without, an image is closed as well.
    faulty.room.store(u64::MAX, Relaxed);
    disk.write_at(&tag(5), 3 * 4096 * SECTOR).unwrap();
    disk.flush().unwrap();
    faulty.room.store(leaf.disk().size, Relaxed);
    full(disk.write_at(&tag(6), 20 * 4096 * SECTOR));
    disk.close().unwrap();
    assert_sound(&leaf.disk());
    let now = Chain::open_single(Recorder::new(leaf.disk()), Mode::ReadOnly).unwrap();
    assert_eq!([0, 9, 3 * 4096, 20 * 4096].map(|n| read_sector(&now, n)), [1, 4, 5, 0]);
}

#[test]
fn writes_to_a_file_survive_or_have_not_happened() {
    writes_survive(Disk::file(), 1);
    writes_survive(Disk::file(), 77);
}

#[test]
fn writes_to_a_device_survive_or_have_not_happened() {
    writes_survive(Disk::device(16 * MIB), 2);
}

/// A child of 100 MiB with something in five blocks, one of them full; and what its disk holds.
fn child(start: Disk, base: &Arc<Recorder>) -> (Disk, BTreeMap<u64, u64>) {
    let leaf = Recorder::new(start);
    vhd::create_child(&*leaf, &NewImage::new(100 * MIB), &link(&**base)).unwrap();
    let disk = chain(leaf.clone(), base.clone(), Mode::ReadWrite).unwrap();
    let mut model = BTreeMap::new();
    for (id, (first, count)) in [(4100, 3), (0, 4096), (8000, 500), (100_000, 8), (204_799, 1)].into_iter().enumerate()
    {
        let id = id as u64 + 1;
        disk.write_at(&tag(id).repeat(count as usize), first * SECTOR).unwrap();
        model.extend((first..first + count).map(|n| (n, id)));
    }
    disk.close().unwrap();
    let mut seen: BTreeMap<u64, u64> = (0..16384).step_by(40).map(|n| (n, base_tag(n))).collect();
    seen.extend(model.into_iter().filter(|(n, _)| *n > 4096 || n % 40 == 0));
    (leaf.disk(), seen)
}

fn assert_reads(disk: Disk, base: &Arc<Recorder>, model: &BTreeMap<u64, u64>) {
    let disk = chain(Recorder::new(disk), base.clone(), Mode::ReadOnly).unwrap();
    for (n, id) in model {
        assert_eq!(read_sector(&disk, *n), *id, "sector {n}");
    }
}

/// Other tools read the BAT to its end, and refuse an image with an entry past its size that leads anywhere.
fn assert_no_entry_past_the_size(leaf: &dyn Storage) {
    let get = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        assert_eq!(leaf.read_at(&mut bytes, at).unwrap(), len);
        bytes
    };
    let header = get(512, 1024);
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let sum =
        header.iter().enumerate().filter(|(n, _)| !(0x24..0x28).contains(n)).map(|(_, b)| u32::from(*b)).sum::<u32>();
    if word(0x24) != !sum {
        return; // Torn: the intent record completes it.
    }
    let table = u64::from_be_bytes(header[0x10..0x18].try_into().unwrap());
    let used = vhd::query(leaf).unwrap().virtual_size.div_ceil(vhd::BLOCK);
    let bat = get(table + used * 4, word(0x1c) as usize * 4 - used as usize * 4);
    assert!(bat.iter().all(|b| *b == 0xff), "an entry past the end leads somewhere");
}

#[test]
fn growing_is_never_half_done() {
    let base = base();
    for device in [false, true] {
        let start = if device { Disk::device(64 * MIB) } else { Disk::file() };
        let (start, model) = child(start, &base);
        for size in [200, 258, 2600, 40_000] {
            let place = Recorder::new(start.clone());
            let grown: Arc<dyn Storage> = place.clone();
            assert_eq!(vhd::resize(&grown, size * MIB).unwrap(), Done::Changed);
            let mut count = 0;
            crashes(&start, &place.ops(), |k, crashed| {
                let leaf = Recorder::new(crashed.clone());
                let now = vhd::query(&*leaf).unwrap().virtual_size;
                assert!(now == 100 * MIB || now == size * MIB, "{size} MiB, {k}: {now}");
                if now == size * MIB {
                    let all = Chain::open(leaf.clone(), Mode::ReadOnly, |_| Ok(Parent::Vhd(base.clone()))).unwrap();
                    let extents: Vec<_> = all.extents(100 * MIB, now, 1).collect();
                    assert!(extents.len() == 1 && !extents[0].as_ref().unwrap().data, "{size} MiB, {k}");
                }
                assert_reads(crashed.clone(), &base, &model);
                assert_no_entry_past_the_size(&*leaf);
                count += 1;
                if count % 4 != 0 {
                    return;
                }
                assert_sound(&crashed);
                let leaf: Arc<dyn Storage> = leaf;
                vhd::resize(&leaf, size * MIB).unwrap();
                let image = vhd::query(&*leaf).unwrap();
                assert_eq!(image.virtual_size, size * MIB);
            });
        }
    }
}

#[test]
fn headers_change_in_one_step() {
    let base = base();
    for device in [false, true] {
        let start = if device { Disk::device(64 * MIB) } else { Disk::file() };
        let (start, model) = child(start, &base);
        let place = Recorder::new(start.clone());
        vhd::set_hidden(&*place, true).unwrap();
        crashes(&start, &place.ops(), |_, crashed| {
            assert_reads(crashed.clone(), &base, &model);
            let place = Recorder::new(crashed);
            vhd::set_hidden(&*place, true).unwrap();
            assert!(vhd::query(&*place).unwrap().hidden);
            assert_eq!(vhd::set_hidden(&*place, true).unwrap(), Done::Already);
            assert_sound(&place.disk());
        });

        let place = Recorder::new(start.clone());
        let other = ParentLink { path: "./bulk.vhd".into(), uuid: Some(Uuid::from_u128(7)), timestamp: 5 };
        vhd::set_parent(&*place, &other).unwrap();
        let old = vhd::query(&*Recorder::new(start.clone())).unwrap().parent;
        crashes(&start, &place.ops(), |_, crashed| {
            let place = Recorder::new(crashed);
            let parent = vhd::query(&*place).unwrap().parent;
            let new = parent.as_ref().is_some_and(|p| p.uuid == other.uuid && p.name == "bulk.vhd");
            assert!(new || parent == old, "{parent:?}");
            vhd::set_parent(&*place, &other).unwrap();
            assert_eq!(vhd::query(&*place).unwrap().parent.unwrap().uuid, other.uuid);
        });
    }
}

#[test]
fn coalescing_changes_nothing_that_anybody_reads() {
    for device in [false, true] {
        let small = base();
        let start = if device { Disk::device(64 * MIB) } else { Disk::file() };
        let (leaf, model) = child(start, &small);
        let leaf = Recorder::new(leaf);
        let parent: Arc<dyn Storage> = small.clone();
        vhd::resize(&parent, 100 * MIB).unwrap();
        let before = small.disk();
        let parent = Recorder::new(before.clone());
        let coalesce = |parent: &Arc<Recorder>| {
            let child = Image::open(leaf.clone(), Mode::ReadOnly).unwrap();
            let image = Image::open(parent.clone(), Mode::ReadWrite).unwrap();
            vhd::coalesce(&child, Target::Vhd(&image), &|_, _| ControlFlow::Continue(())).unwrap();
            image.close().unwrap();
        };
        coalesce(&parent);
        let mut count = 0;
        crashes(&before, &parent.ops(), |_, crashed| {
            let parent = Recorder::new(crashed.clone());
            assert_reads(leaf.disk(), &parent, &model);
            // What the child does not hold, the parent shows as before.
            let alone = Chain::open_single(parent.clone(), Mode::ReadOnly).unwrap();
            for n in (5000..8000).step_by(40) {
                assert_eq!(read_sector(&alone, n), base_tag(n));
            }
            count += 1;
            if count % 5 == 0 {
                assert_sound(&crashed);
                coalesce(&parent);
                let alone = Chain::open_single(parent.clone(), Mode::ReadOnly).unwrap();
                model.iter().for_each(|(n, id)| assert_eq!(read_sector(&alone, *n), *id));
            }
        });
    }
}

#[test]
fn an_image_is_made_on_a_device_or_not_at_all() {
    let old = Recorder::new(Disk::device(64 * MIB));
    vhd::create(&*old, &NewImage::new(20 * MIB)).unwrap();
    let disk = Chain::open_single(old.clone(), Mode::ReadWrite).unwrap();
    disk.write_at(&tag(5).repeat(4096), 0).unwrap();
    disk.close().unwrap();
    let start = old.disk();
    let place = Recorder::new(start.clone());
    vhd::create(&*place, &NewImage::new(40 * MIB)).unwrap();
    crashes(&start, &place.ops(), |k, crashed| {
        let Ok(disk) = Chain::open_single(Recorder::new(crashed), Mode::ReadOnly) else { return };
        let expected = if disk.virtual_size() == 20 * MIB { 5 } else { 0 };
        assert_eq!(read_sector(&disk, 3), expected, "{k}");
    });
}
