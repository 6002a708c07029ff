//! vdi_copy: a copy in another SR has the bytes of the disk, whatever the formats are, and is there whole or not at all.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use scene::kill::{Act, End, Points, run};
use scene::{A, B, C, Door, FILE, Outcome, SR, Scene, is_root, pattern, skip};

const MIB: u64 = 1 << 20;
const FORMATS: [&str; 3] = ["raw", "vhd", "qcow2"];

/// A scene with the file SRs `fast` and `slow`.
fn two() -> Scene {
    let scene = Scene::empty(&FILE, Door::Sm);
    sm(&scene, &["sr_create", "--name", "fast", "-t", "file", "-d", &scene.dconf(), SR]).done();
    let slow = slow(&scene).display().to_string();
    sm(&scene, &["sr_create", "--name", "slow", "-t", "file", "-d", &slow]).done();
    scene
}

fn slow(scene: &Scene) -> PathBuf {
    scene.root.path().join("slow")
}

fn sm(scene: &Scene, words: &[&str]) -> Outcome {
    scene.bare(words)
}

fn path(scene: &Scene, name: &str) -> String {
    scene.root.path().join(name).display().to_string()
}

/// Makes `fast/web`, A, of 64 MiB with data in two places, `most` bytes in the first. Answers its bytes.
fn with_web(scene: &Scene, format: &str, most: u64) -> Vec<u8> {
    let source = path(scene, "source.raw");
    let file = File::create(&source).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.write_all_at(&pattern(most), 5 * MIB).unwrap();
    file.write_all_at(&pattern(700), 40 * MIB + 512).unwrap();
    let words = ["vdi_import", "fast", A, &source, "--type", format, "--label", "web", "--description", "a disk"];
    sm(scene, &words).done();
    fs::read(source).unwrap()
}

fn exported(scene: &Scene, vdi: &str) -> Vec<u8> {
    let file = path(scene, "out.raw");
    sm(scene, &["vdi_export", "--", vdi, &file]).done();
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(file).unwrap();
    bytes
}

fn shown(scene: &Scene, vdi: &str) -> String {
    sm(scene, &["vdi_get_params", vdi]).done()
}

fn images(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with(".sm-")).collect()
}

#[test]
fn a_copy_has_the_bytes_and_the_names_of_the_disk_and_none_of_its_holes() {
    for from in FORMATS {
        let scene = two();
        let bytes = with_web(&scene, from, 3 * MIB);
        for to in FORMATS {
            let copy = sm(&scene, &["vdi_copy", "fast/web", "slow", "--type", to, "--label", to]).done();
            let copy = copy.trim();
            assert_eq!(exported(&scene, &format!("slow/{copy}")), bytes, "{from} to {to}");
            let info = shown(&scene, &format!("slow/{to}"));
            assert!(
                info.contains("(description . \"a disk\")") && info.contains(&format!("(type . \"{to}\")")),
                "{info}"
            );
            let image = fs::metadata(slow(&scene).join(format!("{copy}.{to}"))).unwrap();
            assert!(image.blocks() * 512 < 8 * MIB, "{from} to {to}: {} bytes", image.blocks() * 512);
        }
        // Without --type and --label: those of the source.
        sm(&scene, &["vdi_copy", "fast", "web", "slow", B]).done();
        let info = shown(&scene, "slow/web");
        assert!(info.contains(&format!("(type . \"{from}\")")) && info.contains(B), "{info}");
        // As a disk that moves: its UUID stays.
        sm(&scene, &["vdi_copy", "fast", "web", "slow", A, "--label", "moved"]).done();
        assert_eq!(exported(&scene, &format!("slow/{A}")), bytes);
        // In the same SR; the source is what it was.
        sm(&scene, &["vdi_copy", "fast", "web", "fast", C, "--label", "twin"]).done();
        assert_eq!(exported(&scene, "fast/twin"), bytes);
        assert_eq!(exported(&scene, "fast/web"), bytes);
    }
}

#[test]
fn a_snapshot_is_copied_with_what_it_shares() {
    let scene = two();
    let bytes = with_web(&scene, "vhd", 3 * MIB);
    sm(&scene, &["vdi_snapshot", "fast/web", "--label", "before"]).done();
    sm(&scene, &["vdi_copy", "fast/before", "slow"]).done();
    assert_eq!(exported(&scene, "slow/before"), bytes);
    let info = shown(&scene, "slow/before");
    assert!(info.contains("(read_only . 0)"), "a copy can be written to: {info}");
    sm(&scene, &["vdi_delete", "fast", "before", "web"]).done();
    assert_eq!(exported(&scene, "slow/before"), bytes);
}

#[test]
fn what_cannot_be_copied_is_refused_and_nothing_is_left() {
    let scene = two();
    with_web(&scene, "raw", MIB);
    for (words, status) in [
        (&["vdi_copy", "fast/web", "nowhere"][..], "ENOSR"),
        (&["vdi_copy", "fast/other", "slow"], "ENOVDI"),
        (&["vdi_copy", "fast/web", "slow", "--type", "vmdk"], "EINVAL"),
        (&["vdi_copy", "fast", "web", "slow", "98de866e-b035"], "EINVAL"),
        (&["vdi_copy", "fast", "web", "fast", A], "EEXIST"),
    ] {
        sm(&scene, words).fails(status);
    }
    // A driver has no table.
    let driver = Scene::empty(&FILE, Door::Driver);
    driver.call(["sr_create", SR]).done();
    driver.call(["vdi_create", SR, A, "1"]).done();
    driver.call(["vdi_copy", SR, A, B, C]).fails("EPERM");
    driver.call(["vdi_copy", SR, A, SR, C]).done();
    assert!(images(&slow(&scene)).is_empty(), "{:?}", images(&slow(&scene)));
    sm(&scene, &["vdi_copy", "fast", "web", "slow", C]).done();
    sm(&scene, &["vdi_copy", "fast", "web", "slow", C]).fails("EEXIST");
    if !is_root() {
        return skip("a disk that is attached");
    }
    sm(&scene, &["vdi_attach", "fast", "web"]).done();
    sm(&scene, &["vdi_copy", "fast", "web", "slow", B]).fails("EVDIBUSY");
    sm(&scene, &["vdi_detach", "fast", "web"]).done();
    assert_eq!(images(&slow(&scene)).iter().filter(|name| name.contains(B)).count(), 0);
}

#[test]
fn a_killed_copy_is_there_whole_or_not_at_all() {
    for n in 1.. {
        let scene = two();
        let bytes = with_web(&scene, "vhd", 4096);
        let args = ["vdi_copy", "fast", "web", "slow", C].map(str::to_owned);
        let run_dir = scene.root.path().join("run");
        let killed = run(n, Points::Changing, Act::Kill, &scene.executable(), &args, &run_dir);
        if killed.end != End::Killed {
            assert_eq!(killed.end, End::Status(0));
            assert!(n > 5, "only {n} points");
            break;
        }
        let is_there = sm(&scene, &["vdi_get_params", "slow", C]).succeeded();
        let again = sm(&scene, &["vdi_copy", "fast", "web", "slow", C]);
        match is_there {
            true => drop(again.fails("EEXIST")),
            false => drop(again.done()),
        }
        assert_eq!(exported(&scene, &format!("slow/{C}")), bytes, "killed at {n}");
        assert_eq!(exported(&scene, "fast/web"), bytes, "killed at {n}");
        sm(&scene, &["vdi_delete", "slow", C]).done();
        sm(&scene, &["sr_collect", "slow"]).done();
        assert!(images(&slow(&scene)).is_empty(), "killed at {n}: {:?}", images(&slow(&scene)));
    }
}
