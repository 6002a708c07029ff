//! What a run of the collector costs: beside vhd-util, which writes the same bytes and leaves the trees as they are; and that of
//! eight trees beside that of one. The two are run in turn; medians, and those of the ratios of each pair: `time` of the times that
//! passed, `cpu` of the times of the processor.
//!
//! `BIN` is the directory of the release executables; `BENCH_DIR` a directory on the file system to measure. Without vhd-util on
//! PATH its row is left out.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot go on ends here")]
#![allow(clippy::disallowed_types, reason = "a benchmark runs commands")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use xcp_sm::image::vhd::{self, Chain, FileStorage, Parent};
use xcp_sm::types::Mode;

const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
const MIB: usize = 1 << 20;

fn main() {
    let bin = PathBuf::from(std::env::var_os("BIN").expect("BIN is the directory of the release executables"));
    let base = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let scratch = base.canonicalize().unwrap().join(format!("collect-bench.{}", std::process::id()));
    fs::create_dir(&scratch).unwrap();
    let bench = Bench { filesr: bin.join("FileSR"), now: scratch.join("now"), scratch: scratch.clone() };
    println!("{:<52} {:>10} {:>10} {:>7} {:>7}", "collector", "ours", "other", "time", "cpu");
    let ten = bench.deleted("ten", 1, 10, MIB);
    let name = "10 deleted snapshots of 1 MiB; vhd-util coalesce";
    match Command::new("vhd-util").output() {
        Ok(_) => row(name, &|| bench.collect(&ten), &|| bench.coalesce(&ten)),
        Err(_) => println!("{name:<52} there is no vhd-util"),
    }
    for mib in [1, 32] {
        let one = bench.deleted(&format!("one{mib}"), 1, 2, mib * MIB);
        let eight = bench.deleted(&format!("eight{mib}"), 8, 2, mib * MIB);
        row(&format!("8 trees of 2 x {mib} MiB; one of them"), &|| bench.collect(&eight), &|| bench.collect(&one));
    }
    fs::remove_dir_all(&scratch).unwrap();
}

/// Milliseconds: those that passed, and those of the processor.
struct Cost(f64, f64);

fn row(name: &str, ours: &dyn Fn() -> Cost, other: &dyn Fn() -> Cost) {
    let pairs: Vec<(Cost, Cost)> = (0..7).map(|_| (ours(), other())).collect();
    let median = |of: &dyn Fn(&(Cost, Cost)) -> f64| {
        let mut all: Vec<f64> = pairs.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!(
        "{name:<52} {:>7.1} ms {:>7.1} ms {:>6.2}x {:>6.2}x",
        median(&|(ours, _)| ours.0),
        median(&|(_, other)| other.0),
        median(&|(ours, other)| other.0 / ours.0),
        median(&|(ours, other)| other.1 / ours.1),
    );
}

struct Bench {
    filesr: PathBuf,
    scratch: PathBuf,
    /// The SR that is measured, a copy that is fresh each time.
    now: PathBuf,
}

impl Bench {
    /// An SR of disks, each with so many deleted snapshots. Each snapshot was made after so many bytes had been written.
    fn deleted(&self, name: &str, disks: u32, snapshots: u32, bytes: usize) -> PathBuf {
        let sr = self.scratch.join(name);
        self.call(&sr, "sr_create", &[]);
        for disk in 1..=disks {
            let (disk, copy) = (vdi(disk), vdi(1000));
            self.call(&sr, "vdi_create", &[&disk, "1024", "--type", "vhd"]);
            for n in 0..=snapshots {
                let leaf = open(&sr.join(format!("{disk}.vhd")), &sr);
                leaf.write_at(&vec![n as u8 + 1; bytes], u64::from(n) * bytes as u64).unwrap();
                leaf.close().unwrap();
                if n < snapshots {
                    self.call(&sr, "vdi_snapshot", &[&disk, &copy]);
                    self.call(&sr, "vdi_delete", &[&copy]);
                }
            }
        }
        sr
    }

    fn call(&self, sr: &Path, verb: &str, args: &[&str]) {
        let mut command = Command::new(&self.filesr);
        run(command.args([verb, "-d"]).arg(sr).arg(SR).args(args));
    }

    /// Merges all that is in a fresh copy of the SR.
    fn collect(&self, sr: &Path) -> Cost {
        self.refresh(sr);
        let cost = timed(|| self.call(&self.now, "sr_collect", &[]));
        assert!(children(&self.now).is_empty(), "an image was left");
        cost
    }

    /// Writes the data of each child into its parent, in a fresh copy of the SR.
    fn coalesce(&self, sr: &Path) -> Cost {
        self.refresh(sr);
        let children = children(&self.now);
        timed(|| children.iter().for_each(|path| run(Command::new("vhd-util").args(["coalesce", "-n"]).arg(path))))
    }

    fn refresh(&self, sr: &Path) {
        let _ = fs::remove_dir_all(&self.now);
        run(Command::new("cp").args(["-a", "--sparse=always"]).arg(sr).arg(&self.now));
        run(Command::new("sync").arg("-f").arg(&self.now));
    }
}

fn timed(work: impl FnOnce()) -> Cost {
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e3
    };
    let (start, before) = (Instant::now(), cpu());
    work();
    Cost(start.elapsed().as_secs_f64() * 1e3, cpu() - before)
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?} failed: {status}");
}

fn vdi(n: u32) -> String {
    format!("98de866e-b035-4b1a-a571-{n:012x}")
}

fn place(path: &Path, mode: Mode) -> Arc<FileStorage> {
    Arc::new(FileStorage::open(path, mode).unwrap())
}

fn open(path: &Path, sr: &Path) -> Chain {
    let parent = |name: &str| Ok(Parent::Vhd(place(&sr.join(name), Mode::ReadOnly)));
    Chain::open(place(path, Mode::ReadWrite), Mode::ReadWrite, |link| parent(link.file_name().unwrap())).unwrap()
}

/// The images of an SR that have a parent.
fn children(sr: &Path) -> Vec<PathBuf> {
    let images = fs::read_dir(sr).unwrap().map(|entry| entry.unwrap().path());
    let images = images.filter(|path| path.extension().is_some_and(|it| it == "vhd"));
    images.filter(|path| vhd::query(&*place(path, Mode::ReadOnly)).unwrap().parent.is_some()).collect()
}
