//! sr_collect merges the images of a disk while its guest writes to it; the guest notices nothing, and the end of
//! the collector at any moment, by a kill or by sr_detach, loses nothing.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "the rule is for what we ship")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use tempfile::TempDir;

const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
const DISK: &str = "98de866e-b035-4b1a-a571-000000000001";
const MIB: u64 = 1 << 20;
const SIZE: u64 = 192 * MIB;
const PAGE: u64 = 4096;

struct Scene {
    scratch: TempDir,
}

impl Scene {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sm"));
        command.env("XCP_SM_RUN_DIR", self.scratch.path().join("run"));
        command.args(["-t", "file", "-d"]).arg(self.scratch.path().join("sr")).args(args);
        command
    }

    fn sm(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn images(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(self.scratch.path().join("sr")).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.extension().is_some_and(|e| e == "vhd" || e == "qcow2")).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.command(&["vdi_detach", SR, DISK]).output();
    }
}

/// Page `page` as a guest wrote it in its round `round`.
fn page(page: u64, round: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    for (n, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(page << 40 | round << 16 | n as u64).to_le_bytes());
    }
    bytes
}

/// A guest that writes, and knows what it wrote.
struct Guest {
    device: File,
    /// The same, where a write is durable when it is done.
    durable: File,
    rounds: Vec<AtomicU64>,
}

impl Guest {
    fn new(device: &Path) -> Guest {
        let open = |flags| File::options().read(true).write(true).custom_flags(flags).open(device).unwrap();
        Guest {
            device: open(0),
            durable: open(libc::O_SYNC),
            rounds: (0..SIZE / PAGE).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn write(&self, to: &File, at: u64) {
        let round = self.rounds[at as usize].load(Relaxed) + 1;
        to.write_all_at(&page(at, round), at * PAGE).unwrap();
        self.rounds[at as usize].store(round, Relaxed);
    }

    fn fill(&self, pages: std::ops::Range<u64>) {
        pages.for_each(|at| self.write(&self.device, at));
        self.device.sync_all().unwrap();
    }

    /// Closes the device; what it wrote is remembered.
    fn gone(self) -> Guest {
        let nothing = || File::open("/dev/null").unwrap();
        Guest { device: nothing(), durable: nothing(), ..self }
    }

    fn check(&self, path: &Path) {
        // Not what the page cache of the device remembers.
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let bytes = fs::read(path).unwrap();
        for (at, got) in bytes.chunks(PAGE as usize).enumerate() {
            let round = self.rounds[at].load(Relaxed);
            let wanted = if round == 0 { [0; PAGE as usize] } else { page(at as u64, round) };
            assert!(got == wanted, "page {at} is not what was written in round {round}");
        }
    }
}

fn merged_while_it_is_written_to(format: &str) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scene = Scene { scratch: tempfile::tempdir().unwrap() };
    scene.sm(&["sr_create", SR]);
    scene.sm(&["vdi_create", SR, DISK, &(SIZE / MIB).to_string(), "--type", format]);
    let device = PathBuf::from(scene.sm(&["vdi_attach", SR, DISK]));
    let guest = Guest::new(&device);
    let snapshot = |n: u64| format!("98de866e-b035-4b1a-a571-{:012}", 100 + n);
    // The last layer holds more than is merged at once.
    for (n, pages) in [0..4000u64, 2000..9000, 8000..20_000].into_iter().enumerate() {
        guest.fill(pages);
        if n < 2 {
            scene.sm(&["vdi_snapshot", SR, DISK, &snapshot(n as u64)]);
        }
    }
    for n in 0..2 {
        scene.sm(&["vdi_delete", SR, &snapshot(n)]);
    }
    assert_eq!(scene.images().len(), 3);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 88_172_645_463_325_252_u64;
            while !stop.load(Relaxed) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                guest.write(&guest.durable, state % (SIZE / PAGE));
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        // So slow that it is in the middle of the first merge.
        let slow = ["sr_collect", SR, "--rate", "1MiB", "--progress"];
        let mut collector = scene.command(&slow).stderr(Stdio::piped()).spawn().unwrap();
        let mut steps = BufReader::new(collector.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(steps.any(|step| step.contains("\"event\":\"merging\"")));
        assert!(scene.sm(&["sr_collect", SR, "-n"]).contains("collects it now"));
        scene.sm(&["sr_collect", SR, "--stop"]);
        let last = steps.last().unwrap();
        assert!(last.contains("ended the collector"), "{last}");
        assert_eq!(collector.wait().unwrap().code(), Some(102));
        assert!(scene.sm(&["sr_collect", SR, "-n", "--stop"]).contains("no collector is at work"));
        for n in 0..24u64 {
            let mut collector = scene.command(&["sr_collect", SR]).stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(3 + 9 * n));
            if n % 2 == 0 {
                let _ = collector.kill();
                let _ = collector.wait();
                continue;
            }
            // The disk is in use, so the SR stays; the collector ends all the same, at once.
            let refused = scene.command(&["sr_detach", SR]).output().unwrap();
            let (refused, said) = (String::from_utf8_lossy(&refused.stderr).into_owned(), collector.wait_with_output());
            assert!(refused.starts_with("EVDIBUSY"), "{refused}");
            let said = said.unwrap();
            let why = String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success() || why.contains("ended the collector"), "{why}");
        }
        let finished = scene.command(&["sr_collect", SR]).output().unwrap();
        stop.store(true, Relaxed);
        assert!(finished.status.success(), "{}", String::from_utf8_lossy(&finished.stderr));
    });
    guest.check(&device);
    // Nobody writes any more: whatever was set aside is merged now.
    scene.sm(&["sr_collect", SR]);
    assert_eq!(scene.images(), [scene.scratch.path().join("sr").join(format!("{DISK}.{format}"))]);
    guest.fill(100..200);
    guest.check(&device);
    let guest = guest.gone();
    scene.sm(&["vdi_detach", SR, DISK]);
    let out = scene.scratch.path().join("out.raw");
    scene.sm(&["vdi_export", SR, DISK, out.to_str().unwrap(), "--type", "raw"]);
    guest.check(&out);
    let left: Vec<String> = fs::read_dir(scene.scratch.path().join("sr"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".sm-sr" && *name != format!("{DISK}.{format}"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_vhd_is_merged_while_it_is_written_to() {
    merged_while_it_is_written_to("vhd");
}

#[test]
fn a_qcow2_is_merged_while_it_is_written_to() {
    merged_while_it_is_written_to("qcow2");
}

/// Its reader would find other data, or nothing any more.
#[test]
fn a_base_that_is_attached_stays_as_it_is() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for format in ["vhd", "qcow2"] {
        let scene = Scene { scratch: tempfile::tempdir().unwrap() };
        scene.sm(&["sr_create", SR]);
        scene.sm(&["vdi_create", SR, DISK, &(SIZE / MIB).to_string(), "--type", format]);
        let guest = Guest::new(Path::new(&scene.sm(&["vdi_attach", SR, DISK])));
        let (first, second) = ("98de866e-b035-4b1a-a571-000000000101", "98de866e-b035-4b1a-a571-000000000102");
        let parent_of = |vdi: &str| {
            let known = scene.sm(&["vdi_get_params", SR, vdi]);
            known.split_once("(parent . \"").unwrap().1[..36].to_owned()
        };
        guest.fill(0..100);
        scene.sm(&["vdi_snapshot", SR, DISK, first]);
        let then = Guest::new(Path::new("/dev/null"));
        (0..100).for_each(|at| then.rounds[at].store(1, Relaxed));
        guest.fill(50..200);
        scene.sm(&["vdi_snapshot", SR, DISK, second]);
        scene.sm(&["vdi_delete", SR, first]);
        let (upper, images) = (parent_of(DISK), scene.images().len());
        let lower = parent_of(&upper);
        for base in [&lower, &upper] {
            let device = PathBuf::from(scene.sm(&["vdi_attach", SR, base]));
            scene.sm(&["sr_collect", SR]);
            assert_eq!(scene.images().len(), images);
            if *base == lower { &then } else { &guest }.check(&device);
            scene.sm(&["vdi_detach", SR, base]);
        }
        scene.sm(&["sr_collect", SR]);
        assert_eq!(scene.images().len(), images - 1);
        guest.gone();
    }
}

/// What a server has not written yet is no fault, and nothing below it is mended.
#[test]
fn of_disks_in_use_sr_check_says_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for format in ["vhd", "qcow2"] {
        let scene = Scene { scratch: tempfile::tempdir().unwrap() };
        scene.sm(&["sr_create", SR]);
        scene.sm(&["vdi_create", SR, DISK, &(SIZE / MIB).to_string(), "--type", format]);
        let device = PathBuf::from(scene.sm(&["vdi_attach", SR, DISK]));
        let guest = Guest::new(&device);
        guest.fill(0..500);
        scene.sm(&["vdi_snapshot", SR, DISK, "98de866e-b035-4b1a-a571-000000000101"]);
        for at in 400..900 {
            guest.write(&guest.device, at);
            if at % 50 == 0 {
                guest.device.sync_all().unwrap();
                for options in [[].as_slice(), &["--deep"], &["--deep", "--repair"]] {
                    assert_eq!(scene.sm(&[&["sr_check", SR], options].concat()), "(findings)", "{format} at {at}");
                }
            }
        }
        guest.check(&device);
        guest.gone();
        scene.sm(&["vdi_detach", SR, DISK]);
        assert_eq!(scene.sm(&["sr_check", SR, "--deep"]), "(findings)");
    }
}
