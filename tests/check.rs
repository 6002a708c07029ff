//! sr_check: what it says of an SR with faults of every kind, and what it mends.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "the rule is for what we ship")]

mod scene;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use scene::{A, B, C, SR, Scene, pattern};

const VHD: &str = "98de866e-b035-4b1a-a571-0000000000e1";
const QCOW2: &str = "98de866e-b035-4b1a-a571-0000000000e2";
const CLUSTER: u64 = 65536;

/// What sr_check says with these options: its status, and a line for each finding.
fn check(scene: &Scene, options: &[&str]) -> (i32, Vec<String>) {
    let output = Command::new(scene.executable())
        .env("XCP_SM_RUN_DIR", scene.root.path().join("run"))
        .args(["-d", &scene.dconf(), "--format", "table", "sr_check", SR])
        .args(options)
        .output()
        .unwrap();
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), lines)
}

fn nothing() -> (i32, Vec<String>) {
    (0, vec!["nothing is wrong".to_owned()])
}

/// An SR with a VHD and a qcow2 that hold the pattern, each with a snapshot, and a raw disk.
fn sr() -> Scene {
    let scene = Scene::file();
    let data = scene.root.path().join("data");
    fs::write(&data, pattern(5 << 20)).unwrap();
    let data = data.to_str().unwrap();
    for (vdi, format, snapshot) in [(VHD, "vhd", A), (QCOW2, "qcow2", B)] {
        scene.call(["vdi_import", SR, vdi, data, "--file-type", "raw", "--type", format]).done();
        scene.call(["vdi_snapshot", SR, vdi, snapshot]).done();
    }
    scene.call(["vdi_create", SR, C, "3"]).done();
    scene
}

fn image(scene: &Scene, vdi: &str, extension: &str) -> PathBuf {
    scene.place.join(format!("{vdi}.{extension}"))
}

fn base_of(scene: &Scene, vdi: &str) -> String {
    let known = scene.call(["vdi_get_params", SR, vdi]).done();
    known.split_once("(parent . \"").unwrap().1[..36].to_owned()
}

fn holds_the_pattern(scene: &Scene, vdi: &str) {
    let out = scene.root.path().join("out.raw");
    let _ = fs::remove_file(&out);
    scene.call(["vdi_export", SR, vdi, out.to_str().unwrap(), "--type", "raw"]).done();
    assert!(fs::read(&out).unwrap().starts_with(&pattern(5 << 20)), "{vdi} holds something else");
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn word(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// Where the reference count of a cluster is, in an image whose counts have 16 bits.
fn count_at(file: &File, cluster: u64) -> u64 {
    let table = word(file, 48);
    assert!(cluster < CLUSTER / 2);
    word(file, table) + cluster * 2
}

#[test]
fn of_a_whole_sr_nothing_is_said() {
    let scene = sr();
    for options in [[].as_slice(), &["--deep"], &["--repair"], &["--deep", "--repair"]] {
        assert_eq!(check(&scene, options), nothing(), "{options:?}");
    }
    assert_eq!(scene.call(["sr_check", SR]).done(), "(findings)\n");
}

#[test]
fn the_footer_of_a_vhd_is_mended_from_the_other() {
    for at_start in [false, true] {
        let scene = sr();
        // A base: the disks above it are not attached.
        let path = image(&scene, &base_of(&scene, VHD), "vhd");
        let file = open(&path);
        let at = if at_start { 0 } else { file.metadata().unwrap().len() - 512 };
        file.write_all_at(&[0x55; 512], at).unwrap();
        let before = fs::read(&path).unwrap();
        let (status, found) = check(&scene, &[]);
        assert_eq!(status, 5, "{found:?}");
        assert!(found.len() == 1 && found[0].contains(path.file_name().unwrap().to_str().unwrap()), "{found:?}");
        assert!(found[0].ends_with("(sr_check --repair mends it)"), "{found:?}");
        assert_eq!(fs::read(&path).unwrap(), before, "a look changed the image");
        let (status, mended) = check(&scene, &["--repair"]);
        assert!(status == 0 && mended.len() == 1 && mended[0].ends_with("(mended)"), "{mended:?}");
        assert_eq!(check(&scene, &["--deep"]), nothing());
        holds_the_pattern(&scene, VHD);
        holds_the_pattern(&scene, A);
    }
}

#[test]
fn clusters_of_a_qcow2_that_nothing_leads_to_are_given_back() {
    let scene = sr();
    let path = image(&scene, &base_of(&scene, QCOW2), "qcow2");
    let file = open(&path);
    let end = file.metadata().unwrap().len().div_ceil(CLUSTER);
    file.set_len((end + 2) * CLUSTER).unwrap();
    file.write_all_at(&pattern(2 * CLUSTER), end * CLUSTER).unwrap();
    for cluster in [end, end + 1] {
        file.write_all_at(&1u16.to_be_bytes(), count_at(&file, cluster)).unwrap();
    }
    assert_eq!(check(&scene, &[]), nothing(), "the tables are read by --deep only");
    let (status, found) = check(&scene, &["--deep"]);
    assert!(status == 5 && found.len() == 1 && found[0].contains("128KiB are kept for nothing"), "{found:?}");
    let (status, mended) = check(&scene, &["--deep", "--repair"]);
    assert!(status == 0 && mended.len() == 1 && mended[0].ends_with("(mended)"), "{mended:?}");
    assert_eq!(check(&scene, &["--deep"]), nothing());
    let qemu = Command::new("qemu-img").arg("check").arg(&path).output().unwrap();
    assert!(qemu.status.success(), "{}", String::from_utf8_lossy(&qemu.stderr));
    holds_the_pattern(&scene, QCOW2);
}

#[test]
fn a_qcow2_whose_counts_are_too_low_is_left_as_it_is() {
    let scene = sr();
    let path = image(&scene, &base_of(&scene, QCOW2), "qcow2");
    let file = open(&path);
    let last = file.metadata().unwrap().len().div_ceil(CLUSTER) - 1;
    file.write_all_at(&0u16.to_be_bytes(), count_at(&file, last)).unwrap();
    let before = fs::read(&path).unwrap();
    for options in [["--deep"].as_slice(), &["--deep", "--repair"]] {
        let (status, found) = check(&scene, options);
        assert!(found.iter().all(|line| line.ends_with("(cannot be mended)")), "{found:?}");
        assert_eq!((status, found.len()), (5, 3), "the image, and the two disks above it: {found:?}");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn the_disks_above_a_damaged_base_are_told_with_it() {
    let scene = sr();
    scene.call(["vdi_set", SR, VHD, "--label", "web"]).done();
    scene.call(["vdi_set", SR, A, "--label", ""]).done();
    let base = base_of(&scene, VHD);
    let file = open(&image(&scene, &base, "vhd"));
    // The BAT begins behind the header, and its first block would lie behind the end of the file.
    file.write_all_at(&0x7fff_0000u32.to_be_bytes(), 1536).unwrap();
    assert!(!scene.call(["sr_scan", SR]).done().contains("(state "), "the headers do not tell it");
    let (status, found) = check(&scene, &[]);
    assert_eq!((status, found.len()), (5, 3), "{found:?}");
    for (vdi, label) in [(VHD, " (web)"), (A, "")] {
        let line = format!(
            "{vdi}.vhd{label}: it reads through {base}, which is damaged, and may have lost data (cannot be mended)"
        );
        assert!(found.contains(&line), "{found:?}");
    }
    let said = scene.call(["sr_check", SR]).stderr();
    assert!(said.ends_with("cannot; vdi_export --rescue exports what can be read of a damaged disk\n"), "{said}");
    // A base whose header is damaged makes its disks unusable, and they say so by their state.
    file.set_len(100).unwrap();
    let scan = scene.call(["sr_scan", SR]).done();
    assert_eq!(scan.matches(&format!("(state . \"broken: the parent {base} cannot be used: ")).count(), 2, "{scan}");
    assert_eq!(check(&scene, &[]).1.len(), 3);
}

#[test]
fn what_killed_calls_left_is_told_and_removed() {
    let scene = sr();
    let gone = "98de866e-b035-4b1a-a571-0000000000dd";
    fs::write(image(&scene, gone, "params"), "(vdi (label . \"x\"))\n").unwrap();
    fs::write(scene.place.join(".tmp-98de866e-b035-4b1a-a571-0000000000de"), "half").unwrap();
    // A snapshot that was killed before its first step.
    let never = "98de866e-b035-4b1a-a571-0000000000df";
    let fork = format!("(fork (vdi . \"{VHD}\") (base . \"{never}\") (dest \"{never}\") (format . \"vhd\"))\n");
    fs::write(scene.place.join(".sm-tree"), fork).unwrap();
    let (status, found) = check(&scene, &[]);
    assert_eq!((status, found.len()), (5, 3), "{found:?}");
    assert!(found.iter().all(|line| line.ends_with("(sr_check --repair mends it)")), "{found:?}");
    let (status, mended) = check(&scene, &["--repair"]);
    assert_eq!((status, mended.len()), (0, 3), "{mended:?}");
    assert_eq!(check(&scene, &[]), nothing());
    for name in [".sm-tree", &format!("{gone}.params"), ".tmp-98de866e-b035-4b1a-a571-0000000000de"] {
        assert!(!scene.place.join(name).exists(), "{name} is left");
    }
}

#[test]
fn faults_of_one_disk_are_told_beside_those_of_others() {
    let scene = sr();
    fs::write(image(&scene, C, "params"), "(nonsense").unwrap();
    // The parent that the qcow2 names is away; that of the VHD is another image.
    let away = scene.root.path().join("away");
    fs::rename(image(&scene, &base_of(&scene, QCOW2), "qcow2"), away).unwrap();
    let base = image(&scene, &base_of(&scene, VHD), "vhd");
    scene.call(["vdi_create", SR, "98de866e-b035-4b1a-a571-0000000000dc", "5", "--type", "vhd"]).done();
    fs::rename(image(&scene, "98de866e-b035-4b1a-a571-0000000000dc", "vhd"), &base).unwrap();
    for options in [[].as_slice(), &["--deep", "--repair"]] {
        let (status, found) = check(&scene, options);
        assert_eq!(status, 5);
        for name in [
            format!("{C}.params"),
            format!("{QCOW2}.qcow2"),
            format!("{B}.qcow2"),
            format!("{VHD}.vhd"),
            format!("{A}.vhd"),
        ] {
            assert!(found.iter().any(|line| line.starts_with(&name)), "{name} is not told: {found:?}");
        }
    }
    let refused = scene.call(["sr_check", "98de866e-b035-4b1a-a571-0000000000ee"]);
    refused.fails("ENOSR");
}
