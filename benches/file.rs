//! What a call of the file driver costs, beside what one would do by hand in the same run.
//!
//! Each row runs the two commands in turn, A B A B, and prints the medians and the median of the ratios
//! pair by pair: figures of one machine at one time compare, absolute ones do not. `BIN` is the directory
//! of the release executables; `BENCH_DIR` a directory on the filesystem to measure.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot go on ends here")]
#![allow(clippy::disallowed_types, reason = "a benchmark runs commands")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";

fn main() {
    let bin = PathBuf::from(std::env::var_os("BIN").expect("BIN is the directory of the release executables"));
    let base = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let scratch = base.join(format!("sm-bench.{}", std::process::id()));
    fs::create_dir_all(&scratch).unwrap();
    let bench = Bench { filesr: bin.join("FileSR"), scratch: scratch.clone() };
    println!("file driver: each call beside the same by hand; medians of pairs");
    println!(
        "{:<34} {:>9} {:>9} {:>6}  {:>5} {:>6} {:>8}",
        "call", "call", "by hand", "ratio", "procs", "calls", "RSS"
    );
    bench.calls();
    bench.sizes();
    let _ = fs::remove_dir_all(&scratch);
}

struct Bench {
    filesr: PathBuf,
    scratch: PathBuf,
}

impl Bench {
    fn sr(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn call(&self, sr: &Path, verb: &str, args: &[&str]) -> Vec<String> {
        let mut words =
            vec![self.filesr.display().to_string(), verb.into(), "-d".into(), sr.display().to_string(), SR.into()];
        words.extend(args.iter().map(|a| a.to_string()));
        words
    }

    fn calls(&self) {
        let sr = self.sr("sr");
        must(&self.call(&sr, "sr_create", &[]));
        let hand = self.scratch.join("hand");
        fs::create_dir(&hand).unwrap();
        let file = |n: u32| hand.join(format!("{n}.img")).display().to_string();
        let source = vdi(0);
        must(&self.call(&sr, "vdi_create", &[&source, "64", "--type", "raw"]));
        fill(&sr.join(format!("{source}.raw")), 1 << 20);
        must(&words(&["cp", "--sparse=always", &sr.join(format!("{source}.raw")).display().to_string(), &file(0)]));

        let pair = |name: &str, ours: &dyn Fn(u32) -> Vec<String>, by_hand: &dyn Fn(u32) -> Vec<String>| {
            row(name, 60, ours, by_hand);
        };
        let none = || words(&["true"]);
        pair("sr_get_params / true", &|_| self.call(&sr, "sr_get_params", &[]), &|_| none());
        pair("vdi_get_params / stat", &|_| self.call(&sr, "vdi_get_params", &[&source]), &|_| {
            words(&["stat", "-c", "%s %b", &file(0)])
        });
        // The hand's file is made durable as well, or the two would not be the same thing.
        pair(
            "vdi_create / truncate; sync",
            &|n| self.call(&sr, "vdi_create", &[&vdi(1000 + n), "64", "--type", "raw"]),
            &|n| words(&["sh", "-c", &format!("truncate -s 64M {0} && sync {0} {1}", file(1000 + n), hand.display())]),
        );
        pair(
            "vdi_create / qemu-img create",
            &|n| self.call(&sr, "vdi_create", &[&vdi(2000 + n), "64", "--type", "raw"]),
            &|n| words(&["qemu-img", "create", "-q", "-f", "raw", &file(2000 + n), "64M"]),
        );
        pair(
            "vdi_clone / cp --reflink=auto; sync",
            &|n| self.call(&sr, "vdi_clone", &[&source, &vdi(3000 + n)]),
            &|n| {
                words(&[
                    "sh",
                    "-c",
                    &format!("cp --reflink=auto {} {1} && sync {1} {2}", file(0), file(3000 + n), hand.display()),
                ])
            },
        );
        pair("vdi_resize / truncate; sync", &|n| self.call(&sr, "vdi_resize", &[&vdi(1000 + n), "65"]), &|n| {
            words(&["sh", "-c", &format!("truncate -s 65M {0} && sync {0}", file(1000 + n))])
        });
        pair("vdi_lock / mkdir; sync", &|n| self.call(&sr, "vdi_lock", &[&vdi(1000 + n), "FALSE", "me"]), &|n| {
            words(&["sh", "-c", &format!("mkdir {0}/{n} && sync {0}", hand.display())])
        });
        pair("vdi_delete / rm; sync", &|n| self.call(&sr, "vdi_delete", &[&vdi(2000 + n)]), &|n| {
            words(&["sh", "-c", &format!("rm {} && sync {}", file(2000 + n), hand.display())])
        });
        if nix::unistd::geteuid().is_root() && Path::new("/dev/loop-control").exists() {
            let mut device = String::new();
            for _ in 0..20 {
                let ours = self.call(&sr, "vdi_attach", &[&source]);
                let off = self.call(&sr, "vdi_detach", &[&source]);
                let by_hand = words(&["losetup", "-f", "--show", "--direct-io=on", &file(0)]);
                let a = (run(&ours).0, run(&off).0);
                let (b_on, output) = run(&by_hand);
                output.trim().clone_into(&mut device);
                let b_off = run(&words(&["losetup", "-d", &device])).0;
                ATTACH.with_borrow_mut(|times| times.push((a.0, b_on, a.1, b_off)));
            }
            ATTACH.with_borrow(|times| {
                let on: Vec<_> = times.iter().map(|t| (t.0, t.1)).collect();
                let off: Vec<_> = times.iter().map(|t| (t.2, t.3)).collect();
                let calls = (
                    counts(&self.call(&sr, "vdi_attach", &[&source])),
                    counts(&self.call(&sr, "vdi_detach", &[&source])),
                );
                print_row("vdi_attach / losetup -f", &on, calls.0);
                print_row("vdi_detach / losetup -d", &off, calls.1);
            });
        }
    }

    fn sizes(&self) {
        println!();
        for count in [0, 100, 1_000, 10_000] {
            let sr = self.sr(&format!("sr{count}"));
            must(&self.call(&sr, "sr_create", &[]));
            for n in 0..count {
                let image = fs::File::create(sr.join(format!("{}.raw", vdi(n)))).unwrap();
                image.set_len(1 << 30).unwrap();
            }
            let runs = if count > 1_000 { 11 } else { 31 };
            let list = words(&["stat", "-c", "%n %s %b", &sr.display().to_string()]);
            let by_hand = |_| if count == 0 { list.clone() } else { words(&["ls", "-ls", &sr.display().to_string()]) };
            row(
                &format!("sr_get_params, {count} VDIs / ls -ls"),
                runs,
                &|_| self.call(&sr, "sr_get_params", &[]),
                &by_hand,
            );
            row(&format!("sr_scan, {count} VDIs / ls -ls"), runs, &|_| self.call(&sr, "sr_scan", &[]), &by_hand);
        }
    }
}

thread_local! {
    static ATTACH: std::cell::RefCell<Vec<(Duration, Duration, Duration, Duration)>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn row(name: &str, runs: u32, ours: &dyn Fn(u32) -> Vec<String>, by_hand: &dyn Fn(u32) -> Vec<String>) {
    let times: Vec<_> = (0..runs).map(|n| (run(&ours(n)).0, run(&by_hand(n)).0)).collect();
    print_row(name, &times, counts(&ours(runs)));
}

fn print_row(name: &str, times: &[(Duration, Duration)], counts: Counts) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    println!(
        "{name:<34} {:>6.2} ms {:>6.2} ms {:>6.2}  {:>5} {:>6} {:>4.1} MiB",
        median(times.iter().map(|t| ms(t.0)).collect()),
        median(times.iter().map(|t| ms(t.1)).collect()),
        median(times.iter().map(|t| ms(t.0) / ms(t.1)).collect()),
        counts.processes,
        counts.calls,
        counts.rss_kib as f64 / 1024.0,
    );
}

struct Counts {
    /// Started by the call, besides itself.
    processes: usize,
    /// System calls.
    calls: usize,
    /// The largest resident set, KiB.
    rss_kib: u64,
}

/// Runs a call once more under strace. A changing call may fail this time; it costs the same.
fn counts(words: &[String]) -> Counts {
    let output =
        Command::new("strace").args(["-f", "-qq", "-e", "signal=none"]).args(words).stdin(Stdio::null()).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stderr).into_owned()).unwrap_or_default();
    let is_call = |line: &&str| line.contains('(') && !line.contains("resumed>");
    let timed = Command::new("/usr/bin/time").args(["-f", "%M"]).args(words).stdin(Stdio::null()).output();
    let stderr = timed.map(|o| String::from_utf8_lossy(&o.stderr).into_owned()).unwrap_or_default();
    let rss_kib = stderr.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    Counts {
        processes: text.lines().filter(|l| l.contains("execve(")).count().saturating_sub(1),
        calls: text.lines().filter(is_call).count(),
        rss_kib,
    }
}

fn run(words: &[String]) -> (Duration, String) {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let output = command.output().unwrap_or_else(|e| panic!("{}: {e}", words[0]));
    let took = start.elapsed();
    assert!(output.status.success(), "{words:?} failed: {output:?}");
    (took, String::from_utf8_lossy(&output.stdout).into_owned())
}

fn must(words: &[String]) {
    run(words);
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| w.to_string()).collect()
}

fn vdi(n: u32) -> String {
    format!("98de866e-b035-4b1a-a571-{n:012x}")
}

fn fill(path: &Path, bytes: usize) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![0x5a; bytes], 0).unwrap();
    file.sync_all().unwrap();
}
