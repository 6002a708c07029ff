//! Chains of images against a model in memory: whatever is written, zeroed, snapshotted, grown and coalesced in
//! whatever order, every image reads as the model says.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod vhd_support;

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use proptest::prelude::*;
use vhd_support::*;
use xcp_sm::image::vhd::{self, BLOCK, Chain, CheckOptions, SECTOR, Target};
use xcp_sm::types::Mode;

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, sectors: u64, seed: u8 },
    Zero { at: u64, sectors: u64 },
    Flush,
    Reopen,
    Drop,
    Snapshot,
    Grow { blocks: u64 },
    Coalesce { layer: usize },
}

fn steps() -> impl Strategy<Value = Step> {
    let at = 0u64..1 << 16;
    // Most writes are small; some are a block or more.
    let sectors = prop_oneof![4 => 1u64..64, 1 => Just(4096u64), 1 => 3000u64..9000];
    prop_oneof![
        8 => (at.clone(), sectors.clone(), any::<u8>()).prop_map(|(at, sectors, seed)| Step::Write { at, sectors, seed }),
        2 => (at.clone(), sectors.clone()).prop_map(|(at, sectors)| Step::Zero { at, sectors }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Drop),
        2 => Just(Step::Snapshot),
        1 => (1u64..4).prop_map(|blocks| Step::Grow { blocks }),
        2 => (0usize..8).prop_map(|layer| Step::Coalesce { layer }),
    ]
}

/// A chain, base first, each image with what its disk should hold.
struct World {
    dir: Dir,
    layers: Vec<(PathBuf, Vec<u8>)>,
    chain: Option<Chain>,
    names: usize,
}

impl World {
    /// The base has blocks of 2 MiB shifted right by `smaller`.
    fn new(blocks: u64, smaller: u32) -> Self {
        let dir = Dir::new();
        let base = dir.at("0.vhd");
        match smaller {
            0 => create(&base, blocks * BLOCK),
            _ => fs::write(&base, with_blocks(blocks * BLOCK, BLOCK >> smaller)).unwrap(),
        }
        let mut world = World { dir, layers: vec![(base, vec![0; (blocks * BLOCK) as usize])], chain: None, names: 0 };
        world.open();
        world
    }

    fn leaf(&mut self) -> &mut (PathBuf, Vec<u8>) {
        self.layers.last_mut().unwrap()
    }

    fn open(&mut self) {
        let path = self.leaf().0.clone();
        self.chain = Some(open(&path, Mode::ReadWrite));
    }

    fn close(&mut self) {
        self.chain.take().unwrap().close().unwrap();
    }

    fn range(&mut self, at: u64, sectors: u64) -> (u64, u64) {
        let all = self.leaf().1.len() as u64 / SECTOR;
        let at = at % all;
        (at * SECTOR, sectors.min(all - at) * SECTOR)
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write { at, sectors, seed } => {
                let (at, len) = self.range(at, sectors);
                let bytes = pattern(seed, len as usize);
                self.chain.as_ref().unwrap().write_at(&bytes, at).unwrap();
                self.leaf().1[at as usize..][..len as usize].copy_from_slice(&bytes);
            }
            Step::Zero { at, sectors } => {
                let (at, len) = self.range(at, sectors);
                self.chain.as_ref().unwrap().write_zeroes(at, len).unwrap();
                self.leaf().1[at as usize..][..len as usize].fill(0);
            }
            Step::Flush => self.chain.as_ref().unwrap().flush().unwrap(),
            Step::Reopen => {
                self.close();
                self.open();
            }
            // As a server that was killed after a flush: no footer, no batmap.
            Step::Drop => {
                self.chain.as_ref().unwrap().flush().unwrap();
                self.open();
            }
            Step::Snapshot => {
                self.close();
                self.names += 1;
                let child = self.dir.at(&format!("{}.vhd", self.names));
                let (parent, model) = self.leaf().clone();
                snapshot(&child, &parent);
                vhd::set_hidden(&*place(&parent), true).unwrap();
                self.layers.push((child, model));
                self.open();
            }
            Step::Grow { blocks } => {
                self.close();
                let (path, model) = self.leaf();
                model.resize(model.len() + (blocks * BLOCK) as usize, 0);
                let place: std::sync::Arc<dyn vhd::Storage> = place(path);
                vhd::resize(&place, model.len() as u64).unwrap();
                self.open();
            }
            Step::Coalesce { layer } => {
                if self.layers.len() < 2 {
                    return;
                }
                self.close();
                let i = 1 + layer % (self.layers.len() - 1);
                let (path, model) = self.layers.remove(i);
                let parent = &mut self.layers[i - 1];
                parent.1 = model;
                let size = parent.1.len() as u64;
                let target: std::sync::Arc<dyn vhd::Storage> = place(&parent.0);
                vhd::resize(&target, size).unwrap();
                let image = vhd::Image::open(target, Mode::ReadWrite).unwrap();
                let child = open(&path, Mode::ReadOnly);
                vhd::coalesce(child.leaf().unwrap(), Target::Vhd(&image), &|_, _| ControlFlow::Continue(())).unwrap();
                image.close().unwrap();
                fs::remove_file(&path).unwrap();
                if let Some((child, _)) = self.layers.get(i) {
                    let link = link_to(child, &self.layers[i - 1].0);
                    vhd::set_parent(&*place(child), &link).unwrap();
                }
                self.open();
            }
        }
    }

    fn verify(&mut self) {
        self.close();
        for (path, model) in &self.layers {
            let chain = open(path, Mode::ReadOnly);
            let got = read_all(&chain);
            assert_eq!(got.len(), model.len());
            if let Some(at) = (0..got.len() / 512).find(|s| got[s * 512..][..512] != model[s * 512..][..512]) {
                panic!("{} differs from the model at sector {at}", path.display());
            }
            for extent in chain.extents(0, chain.virtual_size(), chain.depth()) {
                let extent = extent.unwrap();
                let (from, to) = (extent.offset as usize, (extent.offset + extent.len) as usize);
                assert!(extent.len > 0 && (extent.data || model[from..to].iter().all(|b| *b == 0)));
            }
            let place: std::sync::Arc<dyn vhd::Storage> = place(path);
            let problems = vhd::check(&place, CheckOptions { bitmaps: true, ..Default::default() }).unwrap();
            assert!(problems.is_empty(), "{}: {problems:?}", path.display());
        }
        self.open();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]
    #[test]
    fn every_image_reads_as_the_model(
        blocks in 1u64..5,
        smaller in prop_oneof![3 => Just(0u32), 2 => Just(2u32), 1 => 1u32..=12],
        steps in proptest::collection::vec(steps(), 1..40),
    ) {
        let mut world = World::new(blocks, smaller);
        for step in &steps {
            world.step(step);
        }
        world.verify();
    }
}

/// More with `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}

/// Sizes at which BAT, batmap and locators take more sectors, in small steps (the new tables overlap the old ones)
/// and in big ones (blocks must move).
#[test]
fn growing_moves_what_is_in_the_way() {
    for sizes in [
        &[100, 256, 258, 512, 514, 1024][..],
        &[2, 40 << 10],
        &[100, 8190, 8192, 8194, 8208, 16 << 10],
        &[64, 2_088_960],
        &[512, 1024, 2048, 4096, 1 << 20],
    ] {
        for differencing in [false, true] {
            let dir = Dir::new();
            let (base, child) = (dir.at("base.vhd"), dir.at("child.vhd"));
            create(&base, sizes[0] * MIB);
            let path = if differencing {
                snapshot(&child, &base);
                &child
            } else {
                &base
            };
            // What was written last, by where.
            let mut written = std::collections::BTreeMap::new();
            for (i, size) in sizes.iter().enumerate() {
                let place: std::sync::Arc<dyn vhd::Storage> = place(path);
                vhd::resize(&place, size * MIB).unwrap();
                let problems = vhd::check(&place, CheckOptions { bitmaps: true, ..Default::default() }).unwrap();
                assert!(problems.is_empty(), "{size} MiB: {problems:?}");
                let info = vhd::query(&*place).unwrap();
                assert_eq!(u64::from(info.max_blocks), size.div_ceil(2), "{size} MiB");
                let chain = open(path, Mode::ReadWrite);
                assert_eq!(chain.virtual_size(), size * MIB);
                // One full block, so that the batmap has something to keep.
                let shapes =
                    [(0, 2048), (size * MIB / 2, 2048), (size * MIB - 4096, 2048), (size / 8 * 2 * MIB, 2 << 20)];
                for (at, len) in shapes {
                    let bytes = pattern(i as u8, len);
                    chain.write_at(&bytes, at).unwrap();
                    for (sector, bytes) in bytes.chunks(512).enumerate() {
                        written.insert(at + sector as u64 * SECTOR, bytes.to_vec());
                    }
                }
                chain.close().unwrap();
                let chain = open(path, Mode::ReadOnly);
                let mut got = [0; 512];
                for (at, bytes) in &written {
                    chain.read_at(&mut got, *at).unwrap();
                    assert!(got == bytes[..], "{size} MiB: {at}");
                }
            }
        }
    }
}

/// qemu reads past bitmaps, so what a crash left must not lie where a new block goes.
#[test]
fn what_was_never_flushed_leaves_no_trace_in_a_new_block() {
    let dir = Dir::new();
    let path = dir.at("a.vhd");
    create(&path, 8 * MIB);
    let chain = open(&path, Mode::ReadWrite);
    chain.write_at(&vec![0x77; 4 << 20], 0).unwrap();
    drop(chain);
    let chain = open(&path, Mode::ReadWrite);
    assert!(read_all(&chain).iter().all(|b| *b == 0));
    chain.write_at(&[1; 512], 6 * MIB).unwrap();
    chain.close().unwrap();
    // One such byte may be in a UUID.
    assert!(!fs::read(&path).unwrap().windows(16).any(|bytes| bytes == [0x77; 16]));
}

/// tapdisk that was killed leaves no footer at the end; libvhd then reads zeros for the last sector.
#[test]
fn closing_restores_a_lost_footer() {
    let dir = Dir::new();
    let path = dir.at("a.vhd");
    create(&path, 8 * MIB);
    let chain = open(&path, Mode::ReadWrite);
    chain.write_at(&vec![0x77; 2 << 20], 0).unwrap();
    chain.close().unwrap();
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 512]).unwrap();
    let image: std::sync::Arc<dyn vhd::Storage> = place(&path);
    assert_eq!(vhd::check(&image, CheckOptions { in_use: true, ..Default::default() }).unwrap(), []);
    assert_eq!(vhd::check(&image, CheckOptions::default()).unwrap().len(), 1);
    let chain = open(&path, Mode::ReadWrite);
    assert!(read_all(&chain)[..2 << 20].iter().all(|b| *b == 0x77));
    chain.close().unwrap();
    assert!(fs::read(&path).unwrap() == whole);
}

#[test]
fn several_threads_write_one_image() {
    let dir = Dir::new();
    let path = dir.at("a.vhd");
    create(&path, 32 * MIB);
    let chain = open(&path, Mode::ReadWrite);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let chain = &chain;
            scope.spawn(move || {
                for i in 0..512u64 {
                    let at = (i * 4 + thread) * 7 % 4096 * 8192;
                    chain.write_at(&[thread as u8 + 1; 4096], at).unwrap();
                    if i % 64 == 0 {
                        chain.flush().unwrap();
                    }
                    let mut got = [0; 4096];
                    chain.read_at(&mut got, at).unwrap();
                    assert!(got == [thread as u8 + 1; 4096]);
                }
            });
        }
    });
    let before = read_all(&chain);
    chain.close().unwrap();
    assert!(contents(&path) == before);
    assert_eq!(before.chunks(4096).filter(|c| c[0] != 0).count(), 2048);
}
