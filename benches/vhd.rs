//! The VHD library beside vhd-util, cp and plain reads, in turn in the same run; medians, and the ratio of each pair. `time` is the
//! ratio of the times that passed, `cpu` that of the times of the processor, in the program and in the kernel for it.
//! Without vhd-util on PATH its rows are left out. `BENCH_DIR` is a directory on the file system to measure. `cargo test`
//! runs each row once, with fewer blocks: that shows whether the benchmark works, and measures nothing.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot go on ends here")]
#![allow(clippy::disallowed_types, reason = "a benchmark runs commands")]

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use xcp_sm::image::vhd::{self, BLOCK, Chain, FileStorage, Image, NewImage, Parent, ParentLink, Storage, Target};
use xcp_sm::types::Mode;

const MIB: u64 = 1 << 20;
/// A row that has taken so long gets no further pair.
const LONG_ENOUGH: Duration = Duration::from_secs(20);

/// Whether this run measures: `cargo bench` says `--bench`, `cargo test` does not.
fn measures() -> bool {
    std::env::args().any(|arg| arg == "--bench")
}

fn main() {
    let base = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("vhd-bench.{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let dir = dir.canonicalize().unwrap();
    println!("{:<44} {:>10} {:>10} {:>7} {:>7}", "VHD library", "ours", "other", "time", "cpu");
    // `cargo bench --bench vhd export` runs one.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let run = |name: &str, bench: fn(&Path)| {
        if name.contains(&wanted) {
            bench(&dir);
        }
    };
    run("snapshot", snapshot);
    run("scan", scan);
    run("runs", coalesce_runs);
    run("full", coalesce_full);
    run("export", export);
    fs::remove_dir_all(&dir).unwrap();
}

/// Runs the two in turn after `before` each, and prints medians: milliseconds, and how many times as much the other takes.
fn row(name: &str, before: &dyn Fn(), ours: &dyn Fn(), other: Option<&dyn Fn()>) {
    let time = |f: &dyn Fn()| {
        before();
        let (start, cpu) = (Instant::now(), cpu_ms());
        f();
        (start.elapsed().as_secs_f64() * 1e3, cpu_ms() - cpu)
    };
    let (mut a, mut b, mut times, mut cpus) = (vec![], vec![], vec![], vec![]);
    let begun = Instant::now();
    while a.is_empty() || measures() && a.len() < 7 && begun.elapsed() < LONG_ENOUGH {
        let mine = time(ours);
        a.push(mine.0);
        if let Some(other) = other {
            let theirs = time(other);
            b.push(theirs.0);
            times.push(theirs.0 / mine.0);
            cpus.push(theirs.1 / mine.1);
        }
    }
    let median = |mut v: Vec<f64>, unit: &str| {
        v.sort_by(f64::total_cmp);
        v.get(v.len() / 2).map_or("-".to_owned(), |v| format!("{v:.2}{unit}"))
    };
    let (a, b, times, cpus) = (median(a, " ms"), median(b, " ms"), median(times, "x"), median(cpus, "x"));
    println!("{name:<44} {a:>10} {b:>10} {times:>7} {cpus:>7}");
}

/// The milliseconds of the processor that this process and its children that ended have taken.
fn cpu_ms() -> f64 {
    let of = |who| {
        let usage = getrusage(who).unwrap();
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
    };
    (of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)) as f64 / 1e3
}

fn vhd_util(args: &[&str]) -> bool {
    let run = Command::new("vhd-util").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

fn have_vhd_util(dir: &Path) -> bool {
    vhd_util(&["create", "-n", name(&dir.join("probe.vhd")), "-s", "2"])
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn place(path: &Path, mode: Mode) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, mode).unwrap())
}

fn fresh(path: &Path) -> FileStorage {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    FileStorage::new(file, path).unwrap()
}

fn child(path: &Path, parent: &Path) {
    let info = vhd::query(&*place(parent, Mode::ReadOnly)).unwrap();
    let link = ParentLink::beside(parent.file_name().unwrap().to_str().unwrap(), Some(info.uuid), info.timestamp);
    vhd::create_child(&fresh(path), &NewImage::new(info.virtual_size), &link).unwrap();
}

fn open(path: &Path, mode: Mode) -> Chain {
    let dir = path.parent().unwrap();
    Chain::open(place(path, mode), mode, |link| {
        Ok(Parent::Vhd(place(&dir.join(link.file_name().unwrap()), Mode::ReadOnly)))
    })
    .unwrap()
}

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

fn snapshot(dir: &Path) {
    let (parent, ours, theirs) = (dir.join("2t.vhd"), dir.join("ours.vhd"), dir.join("theirs.vhd"));
    vhd::create(&fresh(&parent), &NewImage::new(vhd::MAX_SIZE)).unwrap();
    let theirs = || assert!(vhd_util(&["snapshot", "-e", "-n", name(&theirs), "-p", name(&parent)]));
    let other: Option<&dyn Fn()> = if have_vhd_util(dir) { Some(&theirs) } else { None };
    row("snapshot of 2,040 GiB, with fsync", &|| (), &|| child(&ours, &parent), other);
    let no_sync = NoSync(fresh(&ours));
    let link = ParentLink { path: "./2t.vhd".into(), uuid: Some(uuid_of(&parent)), timestamp: 0 };
    row(
        "snapshot of 2,040 GiB, without",
        &|| (),
        &|| {
            vhd::create_child(&no_sync, &NewImage::new(vhd::MAX_SIZE), &link).unwrap();
        },
        None,
    );
}

fn uuid_of(path: &Path) -> uuid::Uuid {
    vhd::query(&*place(path, Mode::ReadOnly)).unwrap().uuid
}

/// A place whose syncs do nothing.
#[derive(Debug)]
struct NoSync(FileStorage);

impl Storage for NoSync {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn size(&self) -> std::io::Result<u64> {
        self.0.size()
    }
    fn is_device(&self) -> bool {
        false
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn set_size(&self, size: u64) -> std::io::Result<()> {
        self.0.set_size(size)
    }
    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn punch(&self, offset: u64, len: u64) -> std::io::Result<bool> {
        self.0.punch(offset, len)
    }
}

fn scan(dir: &Path) {
    let sr = dir.join("sr");
    fs::create_dir(&sr).unwrap();
    let base = sr.join("base.vhd");
    vhd::create(&fresh(&base), &NewImage::new(10 << 30)).unwrap();
    let bytes = fs::read(&base).unwrap();
    for i in 0..999 {
        fs::write(sr.join(format!("{i}.vhd")), &bytes).unwrap();
    }
    let ours = || {
        let mut total = 0;
        for entry in fs::read_dir(&sr).unwrap() {
            let info = vhd::query(&*place(&entry.unwrap().path(), Mode::ReadOnly)).unwrap();
            total += info.virtual_size;
        }
        assert_eq!(total, 1000 * (10 << 30));
    };
    let pattern = format!("{}/*.vhd", sr.display());
    let theirs = || assert!(vhd_util(&["scan", "-f", "-m", &pattern]));
    let other: Option<&dyn Fn()> = if have_vhd_util(dir) { Some(&theirs) } else { None };
    row("scan of 1,000 images, cached", &|| (), &ours, other);
    fs::remove_dir_all(&sr).unwrap();
}

fn coalesce(child: &Path, parent: &Path) {
    let child = Image::open(place(child, Mode::ReadOnly), Mode::ReadOnly).unwrap();
    let parent = Image::open(place(parent, Mode::ReadWrite), Mode::ReadWrite).unwrap();
    vhd::coalesce(&child, Target::Vhd(&parent), &|_, _| ControlFlow::Continue(())).unwrap();
    parent.close().unwrap();
}

/// 64 MiB in runs of 4 KiB, every second one; into a parent without and with the blocks. 2,000 runs in 250 blocks.
fn coalesce_runs(dir: &Path) {
    for (text, filled, size, step) in [
        ("64 MiB in 4 KiB runs, new blocks", false, 128 * MIB, 8192),
        ("64 MiB in 4 KiB runs, present blocks", true, 128 * MIB, 8192),
        ("2,000 runs of 4 KiB in 250 new blocks", false, 500 * MIB, 256 << 10),
    ] {
        let (parent, leaf, start) = (dir.join("p.vhd"), dir.join("c.vhd"), dir.join("start"));
        vhd::create(&fresh(&parent), &NewImage::new(1 << 30)).unwrap();
        if filled {
            let chain = open(&parent, Mode::ReadWrite);
            for at in (0..size).step_by(65536) {
                chain.write_at(&[1; 32768], at).unwrap();
            }
            chain.close().unwrap();
        }
        child(&leaf, &parent);
        let chain = open(&leaf, Mode::ReadWrite);
        for at in (0..size).step_by(step) {
            chain.write_at(&[2; 4096], at).unwrap();
        }
        chain.close().unwrap();
        fs::copy(&parent, &start).unwrap();
        let before = || {
            fs::copy(&start, &parent).unwrap();
            sync(&parent);
        };
        let theirs = || assert!(vhd_util(&["coalesce", "-n", name(&leaf)]));
        let other: Option<&dyn Fn()> = if have_vhd_util(dir) { Some(&theirs) } else { None };
        row(&format!("coalesce of {text}"), &before, &|| coalesce(&leaf, &parent), other);
    }
}

/// 1 GiB of full blocks beside `cp` of the child.
fn coalesce_full(dir: &Path) {
    let (parent, leaf, start, copy) = (dir.join("p.vhd"), dir.join("c.vhd"), dir.join("start"), dir.join("copy"));
    let size = if measures() { 1024 * MIB } else { 16 * MIB };
    vhd::create(&fresh(&parent), &NewImage::new(4 << 30)).unwrap();
    fs::copy(&parent, &start).unwrap();
    child(&leaf, &parent);
    let chain = open(&leaf, Mode::ReadWrite);
    let block: Vec<u8> = (0..BLOCK as usize).map(|i| (i / 7) as u8).collect();
    for at in (0..size).step_by(BLOCK as usize) {
        chain.write_at(&block, at).unwrap();
    }
    chain.close().unwrap();
    let before = || {
        // A copy, because the child knows its parent by its UUID.
        fs::copy(&start, &parent).unwrap();
        let _ = fs::remove_file(&copy);
    };
    let cp = || {
        assert!(Command::new("cp").arg(&leaf).arg(&copy).status().unwrap().success());
        sync(&copy);
    };
    row("coalesce of 1 GiB of full blocks; cp + fsync", &before, &|| coalesce(&leaf, &parent), Some(&cp));
    fs::remove_file(&copy).unwrap();
}

/// Reading a chain of three in order, beside reading as many allocated bytes of a file.
fn export(dir: &Path) {
    let layers: Vec<PathBuf> = (0..3).map(|i| dir.join(format!("e{i}.vhd"))).collect();
    let (mut allocated, size) = (0, if measures() { 8192 * MIB } else { 96 * MIB });
    for (i, path) in layers.iter().enumerate() {
        match i {
            0 => drop(vhd::create(&fresh(path), &NewImage::new(size)).unwrap()),
            _ => child(path, &layers[i - 1]),
        }
        let chain = open(path, Mode::ReadWrite);
        // Different blocks and, from the second layer on, pieces of 64 KiB in those below.
        for at in (0..size).step_by(24 << 20) {
            chain.write_at(&vec![i as u8 + 1; BLOCK as usize], at + i as u64 * BLOCK).unwrap();
            allocated += BLOCK;
            if i > 0 {
                chain.write_at(&vec![i as u8 + 9; 65536], at + i as u64 * 300_032 / 512 * 512).unwrap();
            }
        }
        chain.close().unwrap();
    }
    let raw = dir.join("raw");
    let block = vec![5; BLOCK as usize];
    let file = File::create(&raw).unwrap();
    (0..allocated / BLOCK).for_each(|n| file.write_all_at(&block, n * BLOCK).unwrap());
    layers.iter().chain([&raw]).for_each(|path| sync(path));
    let chain = open(&layers[2], Mode::ReadOnly);
    let ours = || {
        let mut buf = vec![0; BLOCK as usize];
        let mut total = 0;
        for extent in chain.extents(0, chain.virtual_size(), chain.depth()) {
            let extent = extent.unwrap();
            let mut at = extent.offset;
            while extent.data && at < extent.offset + extent.len {
                let len = (extent.offset + extent.len - at).min(BLOCK);
                chain.read_at(&mut buf[..len as usize], at).unwrap();
                total += len;
                at += len;
            }
        }
        assert_eq!(total, allocated);
    };
    let plain = || {
        let mut buf = vec![0; BLOCK as usize];
        let mut file = File::open(&raw).unwrap();
        while file.read(&mut buf).unwrap() != 0 {}
    };
    row("export of a sparse chain, cached; plain reads", &|| (), &ours, Some(&plain));
    let cold = || {
        for path in layers.iter().chain([&raw]) {
            let file = File::open(path).unwrap();
            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        }
    };
    row("export of a sparse chain, from disk", &cold, &ours, Some(&plain));
}
