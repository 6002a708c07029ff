//! Trees of images against a model: whatever is cloned, snapshot, grown, deleted and collected, every disk holds what
//! was written to it, and nothing is left of what nobody needs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod chains;

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use xcp_sm::call::{Session, Unreadable};
use xcp_sm::context::Context;
use xcp_sm::image::disk::Served;
use xcp_sm::image::storage::FileStorage;
use xcp_sm::image::vhd;
use xcp_sm::sr::file::DRIVER;
use xcp_sm::sys::lock;
use xcp_sm::types::{
    DeviceConfig, Format, Mode, NewSr, NewVdi, Overwrite, Params, ParamsChange, SrUuid, VdiInfo, VdiUuid,
};
use xcp_sm::vdi::SnapshotSaid::{ByAgent, BySr};
use xcp_sm::vdi::tree::run::Collecting;

const MIB: usize = 1 << 20;

struct Model {
    format: Format,
    scratch: tempfile::TempDir,
    sr: SrUuid,
    disks: BTreeMap<VdiUuid, Vec<u8>>,
    snapshots: BTreeMap<VdiUuid, VdiUuid>,
    next: u32,
    /// Which model of this process it is.
    number: u16,
}

#[derive(Clone, Debug)]
enum Op {
    Write { disk: usize, at: usize, len: usize, seed: u8 },
    Clone { disk: usize },
    Snapshot { disk: usize },
    Revert { disk: usize, to: usize },
    Grow { disk: usize },
    Delete { disk: usize },
    Collect,
    Attach,
}

fn op() -> impl Strategy<Value = Op> {
    let disk = 0..1000usize;
    prop_oneof![
        6 => (disk.clone(), 0..6 * MIB, 1..300_000usize, 1u8..).prop_map(|(disk, at, len, seed)| Op::Write { disk, at, len, seed }),
        3 => disk.clone().prop_map(|disk| Op::Clone { disk }),
        3 => disk.clone().prop_map(|disk| Op::Snapshot { disk }),
        2 => (disk.clone(), disk.clone()).prop_map(|(disk, to)| Op::Revert { disk, to }),
        1 => disk.clone().prop_map(|disk| Op::Grow { disk }),
        3 => disk.prop_map(|disk| Op::Delete { disk }),
        2 => Just(Op::Collect),
        1 => Just(Op::Attach),
    ]
}

/// A change of both names.
fn names(label: &str, description: &str) -> ParamsChange {
    let (label, description) = (Some(label.to_owned()), Some(description.to_owned()));
    ParamsChange { label, description, ..ParamsChange::default() }
}

impl Model {
    fn new(format: Format) -> Model {
        // SAFETY: tests of this file are the only threads, and all set the same.
        unsafe {
            std::env::set_var("XCP_SM_RUN_DIR", std::env::temp_dir().join(format!("sm-trees.{}", std::process::id())))
        };
        let scratch = tempfile::tempdir().unwrap();
        static MODELS: AtomicU16 = AtomicU16::new(0);
        let number = MODELS.fetch_add(1, Relaxed);
        let (sr, disks, snapshots) = (SrUuid::random(), BTreeMap::new(), BTreeMap::new());
        let mut model = Model { format, scratch, sr, disks, snapshots, next: 0, number };
        model.run(|session, context| session.sr_create(&NewSr::default(), &Overwrite::default(), context));
        let vdi = model.new_uuid();
        let new = NewVdi { vdi, virtual_size: 4 * MIB as u64, format: Some(format), params: Params::default() };
        model.run(|session, context| session.vdi_create(new, context));
        model.disks.insert(vdi, vec![0; 4 * MIB]);
        model
    }

    fn new_uuid(&mut self) -> VdiUuid {
        self.next += 1;
        // Locks are named after them, and tests run at the same time.
        format!("98de866e-b035-{:04x}-a571-{:012}", self.number, self.next).parse().unwrap()
    }

    fn dir(&self) -> std::path::PathBuf {
        self.scratch.path().join("sr")
    }

    /// Does one operation in a session of its own, as each process does.
    fn attempt<T>(&self, work: impl FnOnce(&Session, &Context) -> xcp_sm::Result<T>) -> xcp_sm::Result<T> {
        let config = DeviceConfig::from([("location", self.dir().to_str().unwrap())]);
        let context =
            Context { deadline: Instant::now() + Duration::from_secs(10), progress: &|_, _| {}, others: None };
        work(&Session::open(&DRIVER, self.sr, config).unwrap(), &context)
    }

    fn run<T>(&self, work: impl FnOnce(&Session, &Context) -> xcp_sm::Result<T>) -> T {
        self.attempt(work).unwrap_or_else(|e| panic!("{}", xcp_sm::error::one_line(&e)))
    }

    fn collect(&self) {
        self.run(|session, context| session.sr_collect(&Collecting::default(), context));
    }

    fn delete(&self, vdi: VdiUuid) {
        self.run(|session, context| session.vdi_delete(vdi, Unreadable::ImageRefused, context));
    }

    fn snapshot(&self, source: VdiUuid, dest: VdiUuid) {
        self.run(|session, context| session.vdi_snapshot(source, dest, ParamsChange::default(), context));
    }

    fn pick(&self, n: usize) -> Option<VdiUuid> {
        self.disks.keys().nth(n % self.disks.len().max(1)).copied()
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Write { disk, at, len, seed } => {
                let Some(vdi) = self.pick(disk) else { return };
                let model = self.disks.get_mut(&vdi).unwrap();
                let start = (at % model.len()) / 512 * 512;
                let end = (start + len.next_multiple_of(512)).min(model.len());
                let bytes: Vec<u8> = (start..end).map(|n| (n / 512) as u8 ^ seed).collect();
                model[start..end].copy_from_slice(&bytes);
                let chain = self.open(vdi, Mode::ReadWrite);
                chain.write_at(&bytes, start as u64).unwrap();
                chain.close().unwrap();
            }
            Op::Clone { disk } | Op::Snapshot { disk } => {
                let Some(source) = self.pick(disk) else { return };
                let dest = self.new_uuid();
                let copied = self.attempt(|session, context| match op {
                    Op::Clone { .. } => session.vdi_clone(source, dest, ParamsChange::default(), context),
                    _ => session.vdi_snapshot(source, dest, ParamsChange::default(), context),
                });
                match copied {
                    Ok(_) => {
                        self.disks.insert(dest, self.disks[&source].clone());
                        if matches!(op, Op::Snapshot { .. }) {
                            let disk = self.snapshots.get(&source).copied().unwrap_or(source);
                            self.snapshots.insert(dest, disk);
                        }
                    }
                    Err(xcp_sm::Error::ChainTooLong { .. }) => {}
                    Err(e) => panic!("{}", xcp_sm::error::one_line(&e)),
                }
            }
            Op::Revert { disk, to } => {
                let (Some(disk), Some(to)) = (self.pick(disk), self.pick(to)) else { return };
                let revert = |said| self.attempt(|session, context| session.vdi_revert(disk, to, said, context));
                let is_of_disk = self.snapshots.get(&to) == Some(&disk);
                let is_wrong = disk == to || self.snapshots.contains_key(&disk) || !self.snapshots.contains_key(&to);
                if !is_of_disk || is_wrong {
                    let refused = revert(BySr);
                    assert!(matches!(refused, Err(xcp_sm::Error::Unsupported { .. })), "{refused:?}");
                }
                let reverted = revert(if is_of_disk { BySr } else { ByAgent });
                if is_wrong {
                    assert!(matches!(reverted, Err(xcp_sm::Error::Unsupported { .. })), "{reverted:?}");
                    return;
                }
                match reverted {
                    Ok(()) => drop(self.disks.insert(disk, self.disks[&to].clone())),
                    Err(xcp_sm::Error::ChainTooLong { .. }) => {}
                    // Of another tree, which deleted disks may have left.
                    Err(xcp_sm::Error::Unsupported { .. }) if !is_of_disk => {}
                    Err(e) => panic!("{}", xcp_sm::error::one_line(&e)),
                }
            }
            Op::Grow { disk } => {
                let Some(vdi) = self.pick(disk) else { return };
                let size = self.disks[&vdi].len() + 3 * MIB;
                let resized = self.attempt(|session, context| session.vdi_resize(vdi, size as u64, false, context));
                if self.snapshots.contains_key(&vdi) {
                    assert!(matches!(resized, Err(xcp_sm::Error::Unsupported { .. })), "a snapshot grew");
                    return;
                }
                resized.unwrap_or_else(|e| panic!("{}", xcp_sm::error::one_line(&e)));
                let rounded = xcp_sm::vdi::layout(self.format).round(size as u64).unwrap() as usize;
                self.disks.get_mut(&vdi).unwrap().resize(rounded, 0);
            }
            Op::Delete { disk } => {
                let Some(vdi) = self.pick(disk) else { return };
                self.delete(vdi);
                self.disks.remove(&vdi);
            }
            Op::Collect => {
                self.collect();
                self.no_base_has_one_child();
            }
            Op::Attach => drop(self.run(|session, context| session.sr_attach(context))),
        }
    }

    fn scan(&self) -> Vec<VdiInfo> {
        self.run(|session, context| session.sr_scan(context)).vdis
    }

    fn no_base_has_one_child(&self) {
        for base in self.scan().iter().filter(|vdi| vdi.hidden) {
            assert!(base.children.len() > 1, "{} was not merged with its only child", base.uuid);
        }
    }

    fn check(&self) {
        let visible: BTreeMap<VdiUuid, u64> =
            self.scan().iter().filter(|v| !v.hidden).map(|v| (v.uuid, v.virtual_size)).collect();
        let wanted: BTreeMap<VdiUuid, u64> = self.disks.iter().map(|(v, bytes)| (*v, bytes.len() as u64)).collect();
        assert_eq!(visible, wanted);
        for (vdi, wanted) in &self.disks {
            let mut got = vec![0; wanted.len()];
            self.open(*vdi, Mode::ReadOnly).read_at(&mut got, 0).unwrap();
            assert!(got == *wanted, "VDI {vdi} holds something else");
        }
        if self.disks.is_empty() {
            let images = fs::read_dir(self.dir()).unwrap().filter(|e| {
                e.as_ref()
                    .unwrap()
                    .path()
                    .extension()
                    .is_some_and(|extension| ["vhd", "qcow2"].iter().any(|format| extension == *format))
            });
            assert_eq!(images.count(), 0, "images are left of deleted disks");
        }
    }

    fn open(&self, vdi: VdiUuid, mode: Mode) -> Box<dyn Served> {
        chains::open(&self.dir(), &vdi.to_string(), mode).unwrap()
    }
}

fn every_disk_holds_what_was_written_to_it(format: Format, ops: &[Op]) {
    let mut model = Model::new(format);
    for op in ops {
        model.apply(op);
    }
    model.check();
    model.collect();
    model.no_base_has_one_child();
    model.check();
    while let Some(vdi) = model.pick(0) {
        model.delete(vdi);
        model.disks.remove(&vdi);
    }
    model.check();
}

/// A base, above it another one with a disk and its snapshot.
fn base_over_base(format: Format) -> (Model, VdiUuid) {
    let mut model = Model::new(format);
    let disk = model.pick(0).unwrap();
    for seed in 1..3 {
        model.apply(&Op::Write { disk: 0, at: 0, len: 512, seed });
        let dest = VdiUuid::random();
        model.snapshot(disk, dest);
        model.disks.insert(dest, model.disks[&disk].clone());
        if seed == 1 {
            model.delete(dest);
            model.disks.remove(&dest);
        }
    }
    assert_eq!(model.scan().len(), 4);
    (model, disk)
}

/// Whoever works on a disk has read which image is its parent, and may write it back.
#[test]
fn nothing_is_merged_below_a_disk_that_another_call_works_on() {
    for format in [Format::Vhd, Format::Qcow2] {
        let (model, disk) = base_over_base(format);
        let busy = lock::take(&disk.to_string(), "vdi", lock::Kind::Exclusive, Instant::now()).unwrap();
        model.collect();
        assert_eq!(model.scan().len(), 4);
        drop(busy);
        model.collect();
        assert_eq!(model.scan().len(), 3);
        model.check();
    }
}

/// A template has any number of copies, and none is further from its data than the first.
#[test]
fn copies_of_a_disk_that_holds_nothing_have_one_base() {
    for format in [Format::Vhd, Format::Qcow2] {
        let mut model = Model::new(format);
        let template = model.pick(0).unwrap();
        model.apply(&Op::Write { disk: 0, at: 0, len: 70_000, seed: 3 });
        let mut copies = Vec::new();
        for n in 0..100 {
            let dest = model.new_uuid();
            let copied = model.run(|session, context| match n % 2 {
                0 => session.vdi_clone(template, dest, ParamsChange::default(), context),
                _ => session.vdi_snapshot(*copies.last().unwrap_or(&template), dest, ParamsChange::default(), context),
            });
            model.disks.insert(dest, model.disks[&template].clone());
            copies.push(dest);
            assert_eq!(model.run(|session, context| session.vdi_get_params(template, context)).parent, copied.parent);
        }
        let bases: Vec<VdiInfo> = model.scan().into_iter().filter(|info| info.hidden).collect();
        assert_eq!((bases.len(), bases[0].children.len(), bases[0].parent), (1, 101, None));
        // What was written to a copy is its own.
        let written = model.disks.keys().position(|vdi| *vdi == copies[0]).unwrap();
        model.apply(&Op::Write { disk: written, at: 0, len: 512, seed: 9 });
        let dest = model.new_uuid();
        model.snapshot(copies[0], dest);
        model.disks.insert(dest, model.disks[&copies[0]].clone());
        assert_eq!(model.scan().iter().filter(|info| info.hidden).count(), 2);
        model.check();
    }
}

#[test]
fn a_disk_goes_back_to_its_snapshots_again_and_again() {
    for format in [Format::Vhd, Format::Qcow2] {
        let mut model = Model::new(format);
        let disk = model.pick(0).unwrap();
        let mut states = Vec::new();
        for seed in 1..4u8 {
            model.apply(&Op::Write {
                disk: model.disks.keys().position(|vdi| *vdi == disk).unwrap(),
                at: 4096,
                len: 9000,
                seed,
            });
            let dest = model.new_uuid();
            model.snapshot(disk, dest);
            model.snapshots.insert(dest, disk);
            model.disks.insert(dest, model.disks[&disk].clone());
            states.push(dest);
        }
        model.run(|session, context| session.vdi_set(disk, names("web", "the disk"), context));
        for (n, to) in [2, 0, 0, 1, 2, 1].into_iter().enumerate() {
            let at = model.disks.keys().position(|vdi| *vdi == disk).unwrap();
            model.apply(&Op::Write { disk: at, at: 0, len: 512, seed: 90 + n as u8 });
            model.run(|session, context| session.vdi_revert(disk, states[to], BySr, context));
            model.disks.insert(disk, model.disks[&states[to]].clone());
            model.check();
            if n == 3 {
                model.collect();
                model.check();
            }
        }
        let info = model.run(|session, context| session.vdi_get_params(disk, context));
        assert_eq!((info.label.as_str(), info.description.as_str(), info.read_only), ("web", "the disk", false));
        // The last snapshot has the data itself after this.
        for gone in [states[0], states[1]] {
            model.delete(gone);
            model.disks.remove(&gone);
        }
        model.run(|session, context| session.vdi_revert(disk, states[2], BySr, context));
        model.disks.insert(disk, model.disks[&states[2]].clone());
        model.collect();
        model.check();
        model.no_base_has_one_child();
        // Refused, and nothing is changed: another disk, a copy that can be written to, a snapshot as the disk.
        let stranger = model.new_uuid();
        let new = NewVdi {
            vdi: stranger,
            virtual_size: 4 << 20,
            format: Some(format),
            params: Params { read_only: true, ..Params::default() },
        };
        model.run(|session, context| session.vdi_create(new, context));
        model.disks.insert(stranger, vec![0; 4 * MIB]);
        let clone = model.new_uuid();
        model.run(|session, context| session.vdi_clone(disk, clone, ParamsChange::default(), context));
        model.disks.insert(clone, model.disks[&disk].clone());
        for (of, to) in [(disk, stranger), (disk, clone), (states[2], states[2]), (states[2], disk), (disk, disk)] {
            let refused = model.attempt(|session, context| session.vdi_revert(of, to, BySr, context)).unwrap_err();
            assert!(matches!(refused, xcp_sm::Error::Unsupported { .. }), "{refused}");
        }
        model.run(|session, context| session.vdi_lock(disk, "me", false, context));
        let refused = model.attempt(|session, context| session.vdi_revert(disk, states[2], BySr, context)).unwrap_err();
        assert!(matches!(refused, xcp_sm::Error::VdiInUse { .. }), "{refused}");
        model.check();
    }
}

/// A base can be attached and read like a disk, and an agent locks what it attaches.
#[test]
fn a_base_that_is_locked_is_neither_merged_nor_removed() {
    for format in [Format::Vhd, Format::Qcow2] {
        let (mut model, disk) = base_over_base(format);
        let base = |model: &Model, vdi: VdiUuid| model.scan().iter().find(|info| info.uuid == vdi).unwrap().parent;
        let upper = base(&model, disk).unwrap();
        let lower = base(&model, upper).unwrap();
        for locked in [upper, lower] {
            let busy = lock::take(&locked.to_string(), "vdi", lock::Kind::Exclusive, Instant::now()).unwrap();
            model.collect();
            drop(busy);
            model.run(|session, context| session.vdi_lock(locked, "reader", false, context));
            model.collect();
            assert_eq!(model.scan().len(), 4, "an image went into or out of {locked}");
            model.run(|session, context| session.vdi_unlock(locked, "reader", false, context));
        }
        model.collect();
        assert_eq!(model.scan().len(), 3);
        model.check();

        let last = base(&model, disk).unwrap();
        model.run(|session, context| session.vdi_lock(last, "reader", false, context));
        for vdi in std::mem::take(&mut model.disks).into_keys() {
            model.delete(vdi);
        }
        let path = model.dir().join(format!("{last}.{format}"));
        let told = model.attempt(|session, context| session.sr_collect(&Collecting::default(), context)).unwrap_err();
        assert!(matches!(told, xcp_sm::Error::NotMerged { .. }), "{told}");
        model.run(|session, context| session.sr_attach(context));
        assert!(path.exists(), "the locked base is gone");
        model.run(|session, context| session.vdi_unlock(last, "reader", false, context));
        model.collect();
        model.check();
    }
}

/// We make none such; vhd-util does.
#[test]
fn a_raw_disk_that_a_vhd_is_above_is_not_deleted() {
    let mut model = Model::new(Format::Raw);
    let (raw, child) = (model.pick(0).unwrap(), model.new_uuid());
    let path = model.dir().join(format!("{child}.vhd"));
    let file = fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let parent = vhd::ParentLink { path: format!("./{raw}.raw"), uuid: None, timestamp: 0 };
    vhd::create_child(&FileStorage::new(file, &path).unwrap(), &vhd::NewImage::new(4 * MIB as u64), &parent).unwrap();
    let refused =
        model.attempt(|session, context| session.vdi_delete(raw, Unreadable::ImageRefused, context)).unwrap_err();
    assert!(matches!(refused, xcp_sm::Error::VdiInUse { vdi, .. } if vdi == raw), "{refused}");
    model.delete(child);
    model.delete(raw);
}

/// What says nothing of the data: a clock that was ahead, bytes that another tool set, no hint for tools that look for
/// parents by path, a fixed image as the base.
#[test]
fn a_date_and_its_like_are_no_damage() {
    for fixed in [false, true] {
        let mut model = Model::new(Format::Vhd);
        let disk = model.pick(0).unwrap();
        if fixed {
            let path = model.dir().join(format!("{disk}.vhd"));
            fs::remove_file(&path).unwrap();
            let file = fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            vhd::create_fixed(&FileStorage::new(file, &path).unwrap(), &vhd::NewImage::new(4 * MIB as u64)).unwrap();
        }
        model.apply(&Op::Write { disk: 0, at: 0, len: 512, seed: 7 });
        let snapshot = VdiUuid::random();
        model.snapshot(disk, snapshot);
        model.delete(snapshot);
        model.apply(&Op::Write { disk: 0, at: 4096, len: 512, seed: 8 });
        let path = model.dir().join(format!("{disk}.vhd"));
        let mut image = fs::read(&path).unwrap();
        let end = image.len() - 512;
        for footer in [0, end] {
            let ahead = vhd::timestamp(std::time::SystemTime::now()) + 3600;
            image[footer + 0x18..footer + 0x1c].copy_from_slice(&ahead.to_be_bytes());
            image[footer + 0x80..footer + 0x84].fill(0x5a);
            seal(&mut image[footer..footer + 512], 0x40);
        }
        image[512 + 0x240..512 + 0x300].fill(0);
        seal(&mut image[512..1536], 0x24);
        fs::write(&path, image).unwrap();
        model.collect();
        assert_eq!(model.scan().len(), 1, "fixed base: {fixed}");
        model.check();
        // The base has the disk's name now, and goes on as any other.
        model.apply(&Op::Write { disk: 0, at: 8192, len: 512, seed: 9 });
        model.check();
    }
}

fn seal(part: &mut [u8], at: usize) {
    part[at..at + 4].fill(0);
    let sum = part.iter().map(|b| u32::from(*b)).sum::<u32>();
    part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// The files of an SR, by name.
fn files(dir: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())).collect()
}

/// A backup that was put back under the name of a base: of the size of the former base, hidden, and another image.
fn replace_with_another_image(path: &std::path::Path, fixed: bool) {
    fs::remove_file(path).unwrap();
    let file = fs::File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let place = std::sync::Arc::new(FileStorage::new(file, path).unwrap());
    let new = vhd::NewImage { hidden: true, ..vhd::NewImage::new(4 * MIB as u64) };
    match fixed {
        true => drop(vhd::create_fixed(&*place, &new).unwrap()),
        false => {
            vhd::create(&*place, &new).unwrap();
            let chain = vhd::Chain::open_single(place, Mode::ReadWrite).unwrap();
            chain.write_at(&[0x99; 8192], 0).unwrap();
            chain.close().unwrap();
        }
    }
}

#[test]
fn nothing_is_merged_into_an_image_that_only_has_the_name_of_the_parent() {
    for fixed in [false, true] {
        // A disk alone on its base: it would take the base's place.
        let mut model = Model::new(Format::Vhd);
        let disk = model.pick(0).unwrap();
        model.apply(&Op::Write { disk: 0, at: 0, len: 512, seed: 7 });
        let snapshot = VdiUuid::random();
        model.snapshot(disk, snapshot);
        model.apply(&Op::Write { disk: 0, at: 4096, len: 512, seed: 8 });
        model.delete(snapshot);
        let base = model.scan().iter().find(|vdi| vdi.hidden).unwrap().uuid;
        replace_with_another_image(&model.dir().join(format!("{base}.vhd")), fixed);
        let before = files(&model.dir());
        let _ = model.attempt(|session, context| session.sr_collect(&Collecting::default(), context));
        assert!(files(&model.dir()) == before, "an image was changed");

        // A base between two others: its children would be given to the wrong one.
        let (model, _) = base_over_base(Format::Vhd);
        let infos = model.scan();
        let root = infos.iter().find(|vdi| vdi.hidden && vdi.parent.is_none()).unwrap().uuid;
        replace_with_another_image(&model.dir().join(format!("{root}.vhd")), fixed);
        let before = files(&model.dir());
        let _ = model.attempt(|session, context| session.sr_collect(&Collecting::default(), context));
        assert!(files(&model.dir()) == before, "an image was changed");
    }
}

/// It reads as damaged before, and must not read as something else afterwards.
#[test]
fn a_disk_that_names_another_image_by_a_merged_ones_name_is_not_given_to_its_parent() {
    let (model, disk) = base_over_base(Format::Vhd);
    let middle = model.scan().iter().find(|vdi| vdi.hidden && vdi.parent.is_some()).unwrap().uuid;
    let path = model.dir().join(format!("{}.vhd", model.disks.keys().find(|vdi| **vdi != disk).unwrap()));
    let place = FileStorage::open(&path, Mode::ReadWrite).unwrap();
    let stranger = vhd::ParentLink { path: format!("./{middle}.vhd"), uuid: Some(uuid::Uuid::new_v4()), timestamp: 0 };
    vhd::set_parent(&place, &stranger).unwrap();
    let before = fs::read(&path).unwrap();
    let _ = model.attempt(|session, context| session.sr_collect(&Collecting::default(), context));
    assert!(fs::read(&path).unwrap() == before, "it has another parent now");
    let mut got = vec![0; 4 * MIB];
    model.open(disk, Mode::ReadOnly).read_at(&mut got, 0).unwrap();
    assert!(got == model.disks[&disk]);
}

#[test]
fn an_image_that_is_its_own_ancestor_ends_no_call_and_no_other_disk() {
    for (parent, uuid) in [("SELF.vhd", true), ("SELF.vhd", false), ("SELF.raw", false)] {
        let mut model = Model::new(Format::Vhd);
        model.apply(&Op::Write { disk: 0, at: 0, len: 512, seed: 7 });
        let vdi = model.new_uuid();
        let path = model.dir().join(format!("{vdi}.vhd"));
        let file = fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let new = vhd::NewImage { hidden: true, ..vhd::NewImage::new(4 * MIB as u64) };
        let path = format!("./{}", parent.replace("SELF", &vdi.to_string()));
        let link = vhd::ParentLink { path, uuid: uuid.then_some(new.uuid), timestamp: 0 };
        vhd::create_child(&FileStorage::new(file, "self").unwrap(), &new, &link).unwrap();
        let before = files(&model.dir());
        let _ = model.attempt(|session, context| session.sr_collect(&Collecting::default(), context));
        let _ = model.attempt(|session, context| session.sr_scan(context));
        assert!(files(&model.dir()) == before);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_vhd_holds_what_was_written_to_it(ops in prop::collection::vec(op(), 1..40)) {
        every_disk_holds_what_was_written_to_it(Format::Vhd, &ops);
    }

    #[test]
    fn every_qcow2_holds_what_was_written_to_it(ops in prop::collection::vec(op(), 1..40)) {
        every_disk_holds_what_was_written_to_it(Format::Qcow2, &ops);
    }
}

/// A chain that is full of bases that nothing needs apart gets room by itself; one that is full of snapshots does not.
#[test]
fn a_snapshot_fails_only_if_no_image_of_the_chain_can_be_merged() {
    for format in [Format::Vhd, Format::Qcow2] {
        let mut model = Model::new(format);
        let disk = model.pick(0).unwrap();
        for round in 0..33 {
            model.apply(&Op::Write { disk: 0, at: round * 4096, len: 700, seed: round as u8 });
            let snapshot = model.new_uuid();
            model.snapshot(disk, snapshot);
            model.delete(snapshot);
        }
        // The disk and its bases.
        assert_eq!(model.scan().len(), 30);
        model.check();
        // Another call merges already: there is room once it has.
        let busy = lock::take(&model.sr.to_string(), "gc_active", lock::Kind::Exclusive, Instant::now()).unwrap();
        let (dest, wait) = (model.new_uuid(), Duration::from_millis(300));
        let copied = model.attempt(|session, context| {
            let context = Context { deadline: Instant::now() + wait, progress: context.progress, others: None };
            session.vdi_clone(disk, dest, ParamsChange::default(), &context)
        });
        // An empty disk is copied as a sibling, which needs no room.
        copied.unwrap();
        model.delete(dest);
        model.apply(&Op::Write { disk: 0, at: 0, len: 700, seed: 99 });
        let full = model.attempt(|session, context| {
            let context = Context { deadline: Instant::now() + wait, progress: context.progress, others: None };
            session.vdi_clone(disk, dest, ParamsChange::default(), &context)
        });
        assert!(matches!(full, Err(xcp_sm::Error::ChainTooLong { .. })), "{full:?}");
        drop(busy);
        model.snapshot(disk, dest);
        model.delete(dest);
        model.check();

        // Each base has two children now.
        let mut model = Model::new(format);
        let disk = model.pick(0).unwrap();
        for round in 0..29 {
            model.apply(&Op::Write { disk: 0, at: round * 4096, len: 700, seed: round as u8 });
            let snapshot = model.new_uuid();
            model.snapshot(disk, snapshot);
        }
        model.apply(&Op::Write { disk: 0, at: 0, len: 700, seed: 99 });
        let full = model.attempt(|session, context| {
            session.vdi_snapshot(disk, VdiUuid::random(), ParamsChange::default(), context)
        });
        assert!(matches!(full, Err(xcp_sm::Error::ChainTooLong { .. })), "{full:?}");
    }
}
