//! The bounded run of the fuzz targets: their seeds, every input that ever failed (`tests/fuzz/found`), and a fixed number
//! of mutations, the same in each run. `make fuzz` searches on, guided by coverage.
//!
//! An input may take seconds of processor time, however busy the machine is, and all of them together so much memory.
//! What fails is left in `/dev/shm/sm-fuzz-TARGET`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_types,
    reason = "a test that cannot go on ends here"
)]

#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Pid, gettid};

use targets::{TARGETS, Target};

/// Bytes of address space, of the whole process.
const MEMORY: u64 = 3 << 30;
/// Seconds of processor time that one input may take, in a build without optimisation.
const PATIENCE: u64 = 20;
const TICKS: u64 = 100;

/// The next of a sequence of numbers that is the same in each run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 32) as usize % limit.max(1)
    }

    /// A value that tends to break sums, as 8 bytes.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => self.below(10_000) as u64,
            _ => self.next(),
        }
    }

    /// Changes `input` in a few places; parts may come from `other`.
    fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8], words: &[&str]) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let len = self.below((input.len() - at).min(64) + 1);
            match self.below(9) {
                0 | 1 => {
                    let width = 1 << self.below(4);
                    let number = self.number();
                    let bytes = if self.below(2) == 0 { number.to_le_bytes() } else { number.to_be_bytes() };
                    let bytes = if self.below(2) == 0 { &bytes[..width] } else { &bytes[8 - width..] };
                    let end = (at + width).min(input.len());
                    input[at..end].copy_from_slice(&bytes[..end - at]);
                }
                2 => {
                    let bit = 1 << self.below(8);
                    if let Some(byte) = input.get_mut(at) {
                        *byte ^= bit;
                    }
                }
                3 => drop(input.drain(at..at + len)),
                4 => {
                    let again = input[at..at + len].repeat(1 + self.below(8));
                    input.splice(at..at, again);
                }
                5 => {
                    let from = self.below(other.len() + 1);
                    let part = &other[from..(from + len).min(other.len())];
                    input.splice(at..at, part.iter().copied());
                }
                6 => input.truncate(at),
                _ => {
                    let word = words[self.below(words.len())];
                    let times = if self.below(16) == 0 { 2000 } else { 1 };
                    input.splice(at..at, word.repeat(times).into_bytes());
                }
            }
        }
    }
}

/// Seconds of processor time that a thread of this process has taken.
fn seconds_of(thread: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
    // The name, in brackets, may hold spaces: proc(5).
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() / TICKS
}

/// Ends the process if one input takes too long. The number says which it is.
fn watch(runner: Pid, input: &AtomicU32, saved: &Path, done: &mpsc::Receiver<()>) {
    let (mut seen, mut since) = (u32::MAX, 0);
    while done.recv_timeout(Duration::from_millis(500)) == Err(RecvTimeoutError::Timeout) {
        let (now, seconds) = (input.load(Relaxed), seconds_of(runner));
        if now != seen {
            (seen, since) = (now, seconds);
        } else if seconds > since + PATIENCE {
            eprintln!("an input took more than {PATIENCE} s: {}", saved.display());
            std::process::abort();
        }
    }
}

fn found(target: &Target) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/found").join(target.name);
    let mut files: Vec<_> = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn bounded(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).unwrap();
    let saved = targets::memory().join(format!("sm-fuzz-{name}"));
    let number = AtomicU32::new(0);
    let (end, done) = mpsc::channel();
    let runner = gettid();
    thread::scope(|scope| {
        let (number, saved) = (&number, &saved);
        scope.spawn(move || watch(runner, number, saved, &done));
        // Dropped, also by a panic, it ends the watch.
        let end = end;
        let run = |input: &[u8]| {
            // Before, because not every fault is a panic.
            fs::write(saved, input).unwrap();
            number.fetch_add(1, Relaxed);
            if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
                eprintln!(
                    "the input is in {}; with its fault mended it belongs in tests/fuzz/found/{name}",
                    saved.display()
                );
                panic::resume_unwind(panic);
            }
        };
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty());
        seeds.iter().chain(&found(target)).for_each(|input| run(input));
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for _ in 0..target.bounded {
            let mut input = seeds[dice.below(seeds.len())].clone();
            let other = dice.below(seeds.len());
            dice.mutate(&mut input, &seeds[other], target.words);
            run(&input);
        }
        drop(end);
    });
    let _ = fs::remove_file(&saved);
}

#[test]
fn vhd() {
    bounded("vhd");
}

#[test]
fn qcow2() {
    bounded("qcow2");
}

#[test]
fn xmlrpc() {
    bounded("xmlrpc");
}

#[test]
fn dconf() {
    bounded("dconf");
}

#[test]
fn records() {
    bounded("records");
}

#[test]
fn lvm() {
    bounded("lvm");
}

#[test]
fn model() {
    bounded("model");
}

#[test]
fn age() {
    bounded("age");
}

/// Where the state of the host is, a variable tells: it is set for a process of its own.
#[test]
fn stream() {
    let dir = tempfile::Builder::new().prefix("sm-fuzz-").tempdir_in(targets::memory()).unwrap();
    let this = std::env::current_exe().unwrap();
    let status = std::process::Command::new(this)
        .args(["--ignored", "--exact", "stream_alone"])
        .env(xcp_sm::sys::run_dir::VARIABLE, dir.path())
        .status();
    assert!(status.unwrap().success());
}

#[test]
#[ignore = "the test `stream` runs it"]
fn stream_alone() {
    if std::env::var_os(xcp_sm::sys::run_dir::VARIABLE).is_some() {
        targets::backups::sound_streams();
        bounded("stream");
    }
}

/// Seeds that are refused at once teach nothing.
#[test]
fn seeds_are_sound() {
    use xcp_sm::door::{sexp, size, xmlrpc};
    use xcp_sm::layout::{installed, model::Model};
    use xcp_sm::sys::lvm;
    let seeds = |name: &str| (TARGETS.iter().find(|target| target.name == name).unwrap().seeds)();
    let text = |seed: &[u8]| String::from_utf8(seed.to_vec()).unwrap();
    assert!(
        seeds("xmlrpc").iter().all(|s| xmlrpc::read_call(&text(s)).is_ok() || xmlrpc::read_response(&text(s)).is_ok())
    );
    // Among them are a text of metadata and the beginning of a device.
    let is_report =
        |seed: &[u8]| str::from_utf8(seed).is_ok_and(|text| lvm::parse_report(text).is_ok_and(|vgs| !vgs.is_empty()));
    assert!(seeds("lvm").iter().filter(|seed| is_report(seed)).count() >= 2);
    for driver in xcp_sm::sr::DRIVERS {
        assert!(
            seeds("dconf").iter().any(|s| sexp::device_config(driver, &text(&s[1..])).is_ok()),
            "{}",
            driver.sr_type
        );
    }
    let is_layout = |s: &[u8]| installed::parse(&text(s), Path::new("x")).is_ok();
    let is_model = |s: &[u8]| Model::parse(&text(s), Path::new("x"), "node1", size::parse).is_ok();
    assert_eq!(
        seeds("model").iter().map(|s| (is_model(s), is_layout(s))).collect::<Vec<_>>(),
        [(true, false), (false, true)]
    );
    targets::sound_images();
    targets::backups::sound_age();
}
