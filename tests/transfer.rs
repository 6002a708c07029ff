//! Disks in and out: what is exported is what was imported, whatever formats and pipes lie between, and qemu-img
//! agrees.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use assert_cmd::Command;
use tempfile::TempDir;

const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
const MIB: u64 = 1 << 20;

struct Scene {
    scratch: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let scene = Scene { scratch: tempfile::tempdir().unwrap() };
        scene.sm(&["sr_create", SR]).assert().success();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn sm(&self, args: &[&str]) -> Command {
        let mut command = Command::cargo_bin("sm").unwrap();
        command.env("XCP_SM_RUN_DIR", self.path("run")).current_dir(self.scratch.path());
        command.args(["-t", "file", "-d", self.path("sr").to_str().unwrap()]).args(args);
        command
    }

    /// A disk of 20 MiB and a bit with some data, some holes and some zeroes that were written.
    fn disk(&self) -> Vec<u8> {
        let file = File::create(self.path("disk.raw")).unwrap();
        file.set_len(20 * MIB + 4096).unwrap();
        for (at, len, seed) in
            [(0, 5000, 1u64), (3 * MIB - 700, 2 * MIB, 2), (7 * MIB, 300, 3), (20 * MIB + 512, 3584, 4)]
        {
            file.write_all_at(&noise(len as usize, seed), at).unwrap();
        }
        file.write_all_at(&vec![0; MIB as usize], 12 * MIB).unwrap();
        fs::read(self.path("disk.raw")).unwrap()
    }

    fn export(&self, vdi: &str, format: &str) -> Vec<u8> {
        let output = self.sm(&["vdi_export", SR, vdi, "-", "--type", format]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

fn vdi(n: u32) -> String {
    format!("98de866e-b035-4b1a-a571-{n:012}")
}

/// The bytes of a disk that may have been rounded up with zeroes.
fn same_disk(got: &[u8], wanted: &[u8]) {
    assert!(got.len() >= wanted.len(), "{} bytes of {}", got.len(), wanted.len());
    assert!(got[..wanted.len()] == *wanted, "contents differ");
    assert!(got[wanted.len()..].iter().all(|b| *b == 0), "what was added is not zero");
}

#[test]
fn what_goes_in_comes_out_through_files_and_pipes() {
    let scene = Scene::new();
    let disk = scene.disk();
    for (n, format) in [(1, "raw"), (2, "vhd"), (3, "qcow2")] {
        scene.sm(&["vdi_import", SR, &vdi(n), "disk.raw", "--type", format]).assert().success().stdout("");
        same_disk(&scene.export(&vdi(n), "raw"), &disk);
        let stream = scene.export(&vdi(n), "vhd");
        for (m, format) in [(10 + n, "raw"), (20 + n, "vhd"), (40 + n, "qcow2")] {
            scene
                .sm(&["vdi_import", SR, &vdi(m), "-", "--file-type", "vhd", "--type", format])
                .write_stdin(stream.clone())
                .assert()
                .success();
            same_disk(&scene.export(&vdi(m), "raw"), &disk);
        }
        let size = format!("{}B", disk.len());
        scene
            .sm(&["vdi_import", SR, &vdi(30 + n), "-", "--size", &size, "--type", format])
            .write_stdin(disk.clone())
            .assert()
            .success()
            .stdout("");
        same_disk(&scene.export(&vdi(30 + n), "raw"), &disk);
    }
}

#[test]
fn what_a_caller_has_in_the_file_that_he_redirects_to_stays() {
    let scene = Scene::new();
    let disk = scene.disk();
    scene.sm(&["vdi_import", SR, &vdi(1), "disk.raw"]).assert().success();
    let whole = scene.export(&vdi(1), "raw");
    same_disk(&whole, &disk);
    let program = assert_cmd::cargo::cargo_bin("sm");
    let (program, sr) = (program.display(), scene.path("sr"));
    let export = format!("'{program}' -t file -d {} vdi_export {SR} {} - --type raw", sr.display(), vdi(1));
    for script in [
        format!("printf head > out; {export} >> out"),
        format!("{{ printf head; {export}; }} > out"),
        format!("printf head > out; {{ printf head; {export}; }} 1<> out"),
    ] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).current_dir(scene.scratch.path()).env("XCP_SM_RUN_DIR", scene.path("run"));
        shell.assert().success();
        let got = fs::read(scene.path("out")).unwrap();
        assert!(got.starts_with(b"head") && got[4..] == whole, "{script}: {} bytes", got.len());
    }
}

#[test]
fn an_export_that_nobody_can_get_is_a_failure() {
    let scene = Scene::new();
    scene.disk();
    scene.sm(&["vdi_import", SR, &vdi(1), "disk.raw", "--type", "qcow2"]).assert().success();
    let program = assert_cmd::cargo::cargo_bin("sm");
    for format in ["raw", "vhd", "qcow2"] {
        for (redirection, status, words) in [
            (">&-", 5, "EIO: cannot write standard output: it is closed\n"),
            ("1</dev/null", 5, "EIO: cannot write standard output: "),
            (">/dev/full", 28, "ENOSPC: cannot write standard output: "),
            (">/dev/null", 0, ""),
        ] {
            let export = format!("\"$0\" -t file -d \"$1\" vdi_export {SR} {} - --type {format} {redirection}", vdi(1));
            let mut shell = Command::new("sh");
            shell.args(["-c", &export]).arg(&program).arg(scene.path("sr")).current_dir(scene.scratch.path());
            let output = shell.env("XCP_SM_RUN_DIR", scene.path("run")).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(status), "{format} {redirection}: {said}");
            assert!(said.starts_with(words), "{format} {redirection}: {said}");
        }
    }
}

#[test]
fn holes_stay_holes() {
    let scene = Scene::new();
    scene.disk();
    scene.sm(&["vdi_import", SR, &vdi(1), "disk.raw", "--type", "raw"]).assert().success();
    scene.sm(&["vdi_export", SR, &vdi(1), "out.raw"]).assert().success();
    let allocated = |path: PathBuf| fs::metadata(path).unwrap().blocks() * 512;
    assert!(allocated(scene.path(&format!("sr/{}.raw", vdi(1)))) < 4 * MIB);
    assert!(allocated(scene.path("out.raw")) < 4 * MIB);
}

#[test]
fn qemu_reads_what_is_exported_and_what_it_writes_is_imported() {
    let scene = Scene::new();
    let disk = scene.disk();
    let qemu_img = |args: &[&str]| {
        Command::new("qemu-img").args(args).current_dir(scene.scratch.path()).assert().success();
    };
    scene.sm(&["vdi_import", SR, &vdi(1), "disk.raw", "--type", "vhd"]).assert().success();
    scene.sm(&["vdi_export", SR, &vdi(1), "out.vhd"]).assert().success();
    qemu_img(&["compare", "-f", "vpc", "-F", "raw", "out.vhd", "disk.raw"]);
    qemu_img(&["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", "disk.raw", "qemu.vhd"]);
    scene.sm(&["vdi_import", SR, &vdi(2), "qemu.vhd", "--type", "raw"]).assert().success();
    same_disk(&scene.export(&vdi(2), "raw"), &disk);

    scene.sm(&["vdi_export", SR, &vdi(1), "out.qcow2"]).assert().success();
    fs::write(scene.path("pipe.qcow2"), scene.export(&vdi(1), "qcow2")).unwrap();
    for out in ["out.qcow2", "pipe.qcow2"] {
        qemu_img(&["check", "-f", "qcow2", out]);
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", out, "disk.raw"]);
    }
    for (n, options) in
        [(3, &["-O", "qcow2"][..]), (4, &["-c", "-O", "qcow2"]), (5, &["-O", "qcow2", "-o", "compat=0.10"])]
    {
        qemu_img(&[&["convert", "-f", "raw"], options, &["disk.raw", "qemu.qcow2"]].concat());
        scene.sm(&["vdi_import", SR, &vdi(n), "qemu.qcow2", "--type", "qcow2"]).assert().success();
        same_disk(&scene.export(&vdi(n), "raw"), &disk);
        let piped = ["vdi_import", SR, &vdi(n + 10), "-", "--file-type", "qcow2", "--type", "vhd"];
        scene.sm(&piped).write_stdin(fs::read(scene.path("qemu.qcow2")).unwrap()).assert().success();
        same_disk(&scene.export(&vdi(n + 10), "raw"), &disk);
    }
}

#[test]
fn a_snapshot_and_its_origin_export_what_each_holds() {
    for format in ["vhd", "qcow2"] {
        export_a_tree(format);
    }
}

/// Such a pair is not made here; it is served where somebody put it.
#[test]
fn a_qcow2_above_a_raw_disk_goes_out_as_qemu_reads_it() {
    let scene = Scene::new();
    let tool = |tool: &str, args: &[&str]| Command::new(tool).args(args).current_dir(scene.path("sr")).assert();
    let (parent, child) = (format!("{}.raw", vdi(1)), format!("{}.qcow2", vdi(2)));
    let raw = File::create(scene.path("sr").join(&parent)).unwrap();
    raw.set_len(8 * MIB).unwrap();
    // Data that begins and ends within clusters of the child, next to holes.
    for (sector, seed) in [(0, 1), (3, 2), (1000, 3), (2047, 4), (16383, 5)] {
        raw.write_all_at(&noise(512, seed), sector * 512).unwrap();
    }
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &parent, "-F", "raw", &child]).success();
    tool("qemu-io", &["-c", "write -P 7 65536 4096", "-c", "write -z 1M 64k", "-c", "write -P 9 1023k 1k", &child])
        .success();
    tool("qemu-img", &["convert", "-O", "raw", &child, "../wanted"]).success();
    let wanted = fs::read(scene.path("wanted")).unwrap();
    assert_ne!(wanted, fs::read(scene.path("sr").join(&parent)).unwrap());
    same_disk(&scene.export(&vdi(2), "raw"), &wanted);
    for format in ["vhd", "qcow2"] {
        let out = scene.path(format);
        fs::write(&out, scene.export(&vdi(2), format)).unwrap();
        let as_qemu_calls_it = if format == "vhd" { "vpc" } else { format };
        let out = out.to_str().unwrap();
        tool("qemu-img", &["convert", "-f", as_qemu_calls_it, "-O", "raw", out, "../got"]).success();
        same_disk(&fs::read(scene.path("got")).unwrap(), &wanted);
    }
    // The parent belongs to the child: it is neither deleted nor taken for a disk of its own that may be written to.
    scene.sm(&["vdi_delete", SR, &vdi(1), "--yes"]).assert().failure();
    same_disk(&scene.export(&vdi(2), "raw"), &wanted);
}

fn export_a_tree(format: &str) {
    let scene = Scene::new();
    let disk = scene.disk();
    scene.sm(&["vdi_import", SR, &vdi(1), "disk.raw", "--type", format]).assert().success();
    scene.sm(&["vdi_snapshot", SR, &vdi(1), &vdi(2)]).assert().success();
    scene.sm(&["vdi_clone", SR, &vdi(2), &vdi(3)]).assert().success();
    for n in 1..=3 {
        same_disk(&scene.export(&vdi(n), "raw"), &disk);
    }
    // The chain is exported as one image without a parent.
    scene
        .sm(&["vdi_import", SR, &vdi(4), "-", "--file-type", "vhd"])
        .write_stdin(scene.export(&vdi(3), "vhd"))
        .assert()
        .success();
    same_disk(&scene.export(&vdi(4), "raw"), &disk);
}

#[test]
fn what_is_refused_leaves_nothing() {
    let scene = Scene::new();
    let disk = scene.disk();
    scene.sm(&["vdi_import", SR, &vdi(1), "disk.raw", "--type", "vhd"]).assert().success();
    let vhd = scene.export(&vdi(1), "vhd");
    let listing = || {
        let mut names: Vec<_> = fs::read_dir(scene.path("sr")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = listing();
    let refused = |args: &[&str], input: &[u8], name: &str| {
        let mut words = vec!["vdi_import", SR];
        let new = vdi(2);
        words.push(&new);
        words.extend(args);
        let output = scene.sm(&words).write_stdin(input).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with(name) && stderr.lines().count() == 1, "{args:?}: {stderr:?}");
        assert!(output.stdout.is_empty());
        assert_eq!(listing(), before, "{args:?}");
        stderr
    };
    refused(&["-"], b"", "EINVAL: ");
    refused(&["-", "--size", "1"], &disk, "E2BIG: ");
    for short in [0, 1000, disk.len() - 1] {
        let message = refused(&["-", "--size", &format!("{}B", disk.len())], &disk[..short], "EIO: ");
        assert_eq!(message, format!("EIO: standard input: it ended after {short} of {} bytes\n", disk.len()));
    }
    refused(&["-", "--file-type", "vhd"], &vhd[..vhd.len() / 2], "EIO: ");
    for format in ["vhd", "qcow2"] {
        for args in [&["-", "--file-type", format], &["disk.raw", "--file-type", format]] {
            let message = refused(args, &disk, "EINVAL: ");
            assert!(message.contains(&format!("it is no {format} image")), "{message}");
        }
    }
    refused(&["-", "--file-type", "qcow2"], b"QFI", "EINVAL: ");
    let qcow2 = scene.export(&vdi(1), "qcow2");
    refused(&["-", "--file-type", "qcow2"], &qcow2[..qcow2.len() / 2], "EIO: ");
    for (format, bytes) in [("vhd", &vhd), ("qcow2", &qcow2)] {
        fs::write(scene.path("half"), &bytes[..bytes.len() - 70_000]).unwrap();
        refused(&["half", "--file-type", format], b"", "EIO: ");
    }
    // What a copy that failed leaves, and its like in other formats.
    fs::write(scene.path("empty"), b"").unwrap();
    let mut no_bytes = qcow2.clone();
    no_bytes[24..32].fill(0);
    fs::write(scene.path("empty.qcow2"), &no_bytes).unwrap();
    for args in [&["empty"][..], &["empty.qcow2"], &["-", "--file-type", "qcow2"]] {
        let message = refused(args, &no_bytes, "EINVAL: ");
        assert!(message.contains("a disk has at least one byte"), "{message}");
    }
    fs::create_dir(scene.path("directory")).unwrap();
    for (file, words) in [
        ("missing.raw", "No such file"),
        ("disk.raw/below", "Not a directory"),
        ("directory", "is a directory"),
        (&"long".repeat(100), "name too long"),
    ] {
        let message = refused(&[file], b"", "EINVAL: ");
        let name = &file[..file.len().min(200)];
        assert!(message.starts_with(&format!("EINVAL: FILE {name:?}")) && message.contains(words), "{message}");
    }
    // A place that is not there is a mistake of the caller's, and the name is the one that was typed.
    let output = scene.sm(&["vdi_export", SR, &vdi(1), "missing/out.raw"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(22), "{stderr}");
    assert!(stderr.contains("FILE \"missing/out.raw\"") && !stderr.contains(".part"), "{stderr}");
    // Without a name there is none for the part that is written first either.
    scene.sm(&["vdi_export", SR, &vdi(1), ""]).assert().code(22);
    assert!(!scene.path(".part").exists());
    // An exported file is never overwritten, and a failed export leaves none.
    scene.sm(&["vdi_export", SR, &vdi(1), "disk.raw"]).assert().code(22);
    scene.sm(&["vdi_export", SR, &vdi(9), "none.raw"]).assert().code(101);
    let left: Vec<_> = fs::read_dir(scene.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("none.raw")), "{left:?}");
    assert!(fs::read(scene.path("disk.raw")).unwrap() == disk);
}

#[test]
fn an_image_is_no_raw_disk_unless_that_is_said() {
    let scene = Scene::new();
    let image = |mark: &[u8], at: usize| {
        let mut bytes = noise(MIB as usize, 5);
        bytes[at..at + mark.len()].copy_from_slice(mark);
        bytes
    };
    let images = [
        (image(b"QFI\xfb", 0), "a qcow2 image: --file-type qcow2"),
        (image(b"conectix", 0), "a vhd image: --file-type vhd"),
        (image(b"conectix", MIB as usize - 512), "a vhd image: --file-type vhd"),
        (image(b"vhdxfile", 0), "a VHDX image: qemu-img"),
        (image(b"KDMV", 0), "a VMDK image: qemu-img"),
        (image(&[0x7f, 0x10, 0xda, 0xbe], 64), "a VDI image: qemu-img"),
        (image(b"QED\0", 0), "a QED image: qemu-img"),
        (image(&[0x1f, 0x8b, 8], 0), "a file packed by gzip: unpack it first"),
        (image(b"\xfd7zXZ\0", 0), "a file packed by xz: unpack it first"),
        (image(&[0x28, 0xb5, 0x2f, 0xfd], 0), "a file packed by zstd: unpack it first"),
        (image(b"ustar", 257), "a file packed by tar: unpack it first"),
    ];
    for (n, (bytes, words)) in images.iter().enumerate() {
        let vdi = vdi(n as u32);
        for file in ["image", "image.raw"] {
            fs::write(scene.path(file), bytes).unwrap();
            let output = scene.sm(&["vdi_import", SR, &vdi, file]).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(22), "{words}: {stderr}");
            assert!(stderr.contains(words) && stderr.contains("--file-type raw"), "{stderr}");
        }
        // What a pipe ends with is known too late, but it brings 1 MiB and no more.
        if n != 2 {
            scene.sm(&["vdi_import", SR, &vdi, "-", "--size", "1"]).write_stdin(bytes.clone()).assert().code(22);
        }
        assert_eq!(fs::read_dir(scene.path("sr")).unwrap().count(), 1 + n, "the marker and what was imported");
        scene.sm(&["vdi_import", SR, &vdi, "image", "--file-type", "raw", "--type", "raw"]).assert().success();
        assert!(scene.export(&vdi, "raw") == *bytes);
    }
}

#[test]
fn a_block_device_is_imported_whole() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let scene = Scene::new();
    let disk = scene.disk();
    let set_up = Command::new("losetup").args(["-f", "--show"]).arg(scene.path("disk.raw")).output().unwrap();
    let device = String::from_utf8(set_up.stdout).unwrap();
    let imported = scene.sm(&["vdi_import", SR, &vdi(1), device.trim()]).output().unwrap();
    Command::new("losetup").args(["-d", device.trim()]).assert().success();
    assert!(imported.status.success(), "{imported:?}");
    same_disk(&scene.export(&vdi(1), "raw"), &disk);
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Makes the checksum right that is at `at` of `part`.
fn seal(part: &mut [u8], at: usize) {
    part[at..at + 4].fill(0);
    let sum = part.iter().map(|b| u32::from(*b)).sum::<u32>();
    part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// Changes both footers of an image.
fn footers(mut image: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let end = image.len() - 512;
    for at in [0, end] {
        change(&mut image[at..at + 512]);
        seal(&mut image[at..at + 512], 0x40);
    }
    image
}

fn header(mut image: Vec<u8>, at: usize, value: u32) -> Vec<u8> {
    image[512 + at..512 + at + 4].copy_from_slice(&value.to_be_bytes());
    seal(&mut image[512..1536], 0x24);
    image
}

/// Whether it comes as a file, through a pipe, or was put into the SR: what one road refuses, all do, in its words.
#[test]
fn a_vhd_that_would_be_read_wrongly_is_refused_on_every_road() {
    let scene = Scene::new();
    scene.disk();
    scene.sm(&["vdi_import", SR, &vdi(1), "disk.raw", "--type", "vhd"]).assert().success();
    let good = scene.export(&vdi(1), "vhd");
    let entry = |image: &[u8], block: usize| be32(image, 1536 + block * 4);
    let with_entry = |block: usize, value: u32| {
        let mut image = good.clone();
        image[1536 + block * 4..][..4].copy_from_slice(&value.to_be_bytes());
        image
    };
    let batmap = 1536 + (be32(&good, 512 + 0x1c) as usize * 4).next_multiple_of(512);
    assert!(good[batmap..].starts_with(b"tdbatmap"));
    let mut encrypted = good.clone();
    encrypted[batmap + 29] = 1;
    let mut bad_footer = good.clone();
    let end = good.len() - 512;
    bad_footer[end + 0x30] ^= 1;
    let cases = [
        ("overlap", with_entry(2, entry(&good, 1) + 8), "blocks 1 and 2 overlap", true),
        ("twice", with_entry(2, entry(&good, 1)), "blocks 1 and 2 overlap", true),
        ("in-the-headers", with_entry(2, 1), "block", true),
        ("encrypted", encrypted, "it is encrypted", true),
        ("poisoned", footers(good.clone(), |f| f[..8].copy_from_slice(b"v_poison")), "revert", true),
        ("tap-1.9", footers(good.clone(), |f| f[0x23] = 9), "a version of `tap`", true),
        ("too-large", footers(good.clone(), |f| f[0x33] = 0xff), "does not fit its BAT", true),
        ("large-blocks", header(good.clone(), 0x20, 4 << 20), "more than 2 MiB", true),
        ("small-blocks", header(good.clone(), 0x20, 512 << 10), "does not fit its BAT", true),
        ("odd-blocks", header(good.clone(), 0x20, 3 << 20), "no power of two", true),
        ("short-bat", header(good.clone(), 0x1c, 1), "does not fit its BAT", true),
        // What a crash leaves of one of ours.
        ("bad-footer", bad_footer, "its checksum is wrong", false),
        ("no-footer", good[..end].to_vec(), "it may be cut off", false),
    ];
    for (name, image, words, in_sr) in cases {
        let file = format!("{name}.vhd");
        fs::write(scene.path(&file), &image).unwrap();
        let roads = [(file.as_str(), Vec::new()), ("-", image.clone())];
        for (from, input) in roads {
            let line = ["vdi_import", SR, &vdi(2), from, "--file-type", "vhd"];
            let output = scene.sm(&line).write_stdin(input).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success() && stderr.contains(words), "{name} from {from}: {stderr:?}");
            assert!(!scene.path(&format!("sr/{}.vhd", vdi(2))).exists(), "{name} from {from}");
        }
        if in_sr {
            let placed = scene.path(&format!("sr/{}.vhd", vdi(3)));
            fs::write(&placed, &image).unwrap();
            let snap = vdi(4);
            let three = vdi(3);
            let mut calls = vec![vec!["vdi_export", SR, &three, "out.raw"]];
            // These two are seen by who reads the BAT, which a snapshot does not.
            if !["overlap", "twice", "in-the-headers"].contains(&name) {
                calls.push(vec!["vdi_snapshot", SR, &three, &snap]);
            }
            for call in calls {
                let output = scene.sm(&call).output().unwrap();
                let stderr = String::from_utf8(output.stderr).unwrap();
                assert!(!output.status.success() && stderr.contains(words), "{name}: {call:?}: {stderr:?}");
            }
            assert!(fs::read(&placed).unwrap() == image, "{name}");
            fs::remove_file(&placed).unwrap();
        }
    }
}

#[test]
fn a_vhd_whose_headers_are_not_in_front_comes_through_a_pipe_as_well() {
    let scene = Scene::new();
    let disk = scene.disk();
    scene.sm(&["vdi_import", SR, &vdi(1), "disk.raw", "--type", "vhd"]).assert().success();
    let good = scene.export(&vdi(1), "vhd");
    let size = u64::from_be_bytes(good[0x30..0x38].try_into().unwrap()) as usize;
    let mut fixed = disk.clone();
    fixed.resize(size, 0);
    let mut footer = good[..512].to_vec();
    footer[0x10..0x18].fill(0xff);
    footer[0x3f] = 2;
    seal(&mut footer, 0x40);
    fixed.extend(&footer);
    let mut no_first = good.clone();
    no_first[..512].fill(0);
    let short = fixed[..fixed.len() - 1].to_vec();
    for (n, image) in [(10, &fixed), (11, &short), (12, &no_first)] {
        let line = ["vdi_import", SR, &vdi(n), "-", "--file-type", "vhd", "--type", "vhd"];
        scene.sm(&line).write_stdin(image.clone()).assert().success();
        same_disk(&scene.export(&vdi(n), "raw"), &disk);
        fs::write(scene.path("file.vhd"), image).unwrap();
        scene.sm(&["vdi_import", SR, &vdi(n + 10), "file.vhd"]).assert().success();
        same_disk(&scene.export(&vdi(n + 10), "raw"), &disk);
    }
    // Nor is it taken for the bytes of a disk unless that is said.
    let bytes = format!("{}B", fixed.len());
    let line = ["vdi_import", SR, &vdi(30), "-", "--size", &bytes];
    let output = scene.sm(&line).write_stdin(fixed.clone()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("it looks like a vhd image"), "{stderr}");
    let names = fs::read_dir(scene.path("sr")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.ends_with(".vhd")).count(), 7, "one that was put in and six that came");
    scene.sm(&[&line[..], &["--file-type", "raw"]].concat()).write_stdin(fixed).assert().success();
}

#[test]
fn an_export_removes_what_a_killed_one_left_and_nothing_else() {
    let scene = Scene::new();
    scene.sm(&["vdi_create", SR, &vdi(1), "1"]).assert().success();
    fs::write(scene.path("letter"), "dear").unwrap();
    // The pieces of a backup, as split(1) names them, and everything that only resembles what a killed call leaves.
    let kept =
        ["out.raw.part-00", "out.raw.part-4000000", ".out.raw.sm-export-", ".out.raw.sm-export-x1", ".o.sm-export-1"];
    for name in kept {
        fs::write(scene.path(name), name).unwrap();
    }
    fs::write(scene.path(".out.raw.sm-export-4000000"), "half a disk").unwrap();
    std::os::unix::fs::symlink(scene.path("letter"), scene.path(".out.raw.sm-export-4000001")).unwrap();
    let of_others = scene.path(".out.raw.sm-export-4000002");
    let root = nix::unistd::geteuid().is_root();
    if root {
        fs::write(&of_others, "not ours").unwrap();
        nix::unistd::chown(&of_others, Some(nix::unistd::Uid::from_raw(12345)), None).unwrap();
    }
    let in_use = fs::File::create(scene.path(".out.raw.sm-export-4000003")).unwrap();
    fs2::FileExt::lock_exclusive(&in_use).unwrap();
    let count = || fs::read_dir(scene.path("")).unwrap().count();
    let before = count();
    scene.sm(&["vdi_export", SR, &vdi(1), "out.raw"]).assert().success();
    assert_eq!(fs::metadata(scene.path("out.raw")).unwrap().len(), 2 * MIB);
    for name in kept {
        assert_eq!(fs::read(scene.path(name)).unwrap(), name.as_bytes());
    }
    assert_eq!(fs::read(scene.path("letter")).unwrap(), b"dear");
    assert!(!scene.path(".out.raw.sm-export-4000000").exists());
    assert_eq!(count(), before, "one swept, one exported");
}

#[test]
fn what_does_not_say_how_long_it_is_is_called_what_it_is() {
    let scene = Scene::new();
    for (from, what) in [("/dev/null", "a character device does not say"), ("-", "a pipe does not say")] {
        let output =
            scene.sm(&["vdi_import", SR, &vdi(1), from, "--file-type", "raw"]).write_stdin("x").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(22), "{said}");
        assert!(said.contains(what), "{said}");
    }
}
