//! sm backup against kills, other users of the same disks and stores, and stores that somebody changed: what is not the export's
//! own stays, and what is wrong is told.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_types,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use scene::kill::{Act, End, Points, run};
use scene::{A, B, Door, FILE, MIB, Outcome, SR, Scene, pattern};

/// A scene with the file SRs `fast` and `slow`, and the store `nas`.
fn scene() -> Scene {
    let scene = Scene::empty(&FILE, Door::Sm);
    sm(&scene, &["sr_create", "--name", "fast", "-t", "file", "-d", &scene.dconf(), SR]).done();
    sm(&scene, &["sr_create", "--name", "slow", "-t", "file", "-d", &path(&scene, "slow")]).done();
    fs::write(scene.root.path().join("run/stores.conf"), format!("store: name=nas path={}\n", path(&scene, "nas")))
        .unwrap();
    fs::create_dir(scene.root.path().join("nas")).unwrap();
    backup(&scene, &["store-init", "nas"]).done();
    scene
}

fn sm(scene: &Scene, words: &[&str]) -> Outcome {
    scene.bare(words)
}

fn backup(scene: &Scene, words: &[&str]) -> Outcome {
    scene.bare([&["backup"], words].concat())
}

fn path(scene: &Scene, name: &str) -> String {
    scene.root.path().canonicalize().unwrap().join(name).display().to_string()
}

/// Makes a disk in `fast` with these bytes at this place.
fn disk(scene: &Scene, vdi: &str, label: &str, format: &str, size: u64, at: u64, bytes: &[u8]) {
    let source = path(scene, "source.raw");
    let file = File::create(&source).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(bytes, at).unwrap();
    sm(scene, &["vdi_import", "fast", vdi, &source, "--type", format, "--label", label]).done();
}

/// The set `web` of two disks, and an export of it.
fn exported(scene: &Scene) {
    disk(scene, A, "web", "vhd", 8 * MIB, 5 * MIB, &pattern(4096));
    disk(scene, B, "data", "raw", 8 * MIB, MIB, &pattern(4096));
    backup(scene, &["define", "web", "--disk", "fast/web", "--disk", "fast/data"]).done();
    backup(scene, &["export", "web", "--to", "nas"]).done();
}

/// The records of runs that have begun and not ended.
fn records(scene: &Scene) -> Vec<String> {
    let dir = fs::read_dir(scene.root.path().join("run/backup")).unwrap();
    let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".json")).collect()
}

#[test]
fn a_disk_of_a_person_outlives_a_killed_import_that_wanted_its_uuid() {
    let scene = scene();
    exported(&scene);
    let args = ["backup", "import", "web", "--from", "nas", "--sr", "slow", "--keep-uuids"].map(str::to_owned);
    let (mut completed, mut undone) = (0, 0);
    for n in 1.. {
        let killed = run(n, Points::Changing, Act::Kill, &scene.executable(), &args, &scene.root.path().join("run"));
        if killed.end != End::Killed {
            assert_eq!(killed.end, End::Status(0), "{}", String::from_utf8_lossy(&killed.stderr));
            assert!(n > 20, "only {n} points");
            break;
        }
        let had = records(&scene).len();
        let own: Vec<&str> = [A, B]
            .into_iter()
            .filter(|vdi| sm(&scene, &["vdi_create", "slow", vdi, "4M", "--label", "mine"]).succeeded())
            .collect();
        let told = backup(&scene, &["list"]);
        assert!(told.succeeded() && told.stderr().is_empty(), "killed at {n}: {told}");
        assert!(records(&scene).is_empty(), "killed at {n}");
        let labels: Vec<Option<String>> = [A, B]
            .into_iter()
            .map(|vdi| {
                let info = sm(&scene, &["vdi_get_params", "slow", vdi, "--format", "json"]);
                let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
                info.succeeded().then(|| json(&info.stdout())["label"].as_str().unwrap().to_owned())
            })
            .collect();
        for (vdi, label) in [A, B].into_iter().zip(&labels) {
            let is_own = label.as_deref() == Some("mine");
            assert_eq!(is_own, own.contains(&vdi), "killed at {n}: {vdi} is {label:?}");
        }
        let imported: Vec<&str> =
            labels.iter().flatten().map(String::as_str).filter(|label| *label != "mine").collect();
        assert!(imported.is_empty() || imported == ["web", "data"], "killed at {n}: {labels:?}");
        completed += usize::from(had > 0 && imported.len() == 2);
        undone += usize::from(had > 0 && imported.is_empty());
        for vdi in [A, B] {
            sm(&scene, &["vdi_delete", "slow", vdi]).done();
        }
    }
    println!("{completed} completed, {undone} undone");
    assert!(completed > 0 && undone > 0, "{completed} completed, {undone} undone");
}

#[test]
fn every_command_ends_the_pause_of_a_killed_export() {
    let scene = scene();
    exported(&scene);
    let hooks = scene.root.path().join("run/hooks/backup-resume.d");
    fs::create_dir_all(&hooks).unwrap();
    let program = format!("#!/bin/sh\necho resumed >> {}\n", path(&scene, "log"));
    fs::write(hooks.join("vm"), program).unwrap();
    fs::set_permissions(hooks.join("vm"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let run = "20261127T010735Z-1f2e3d4c";
    let record =
        format!(r#"{{"run":"{run}","set":"web","store":null,"locks":[],"paused":{{"SM_SET_NAME":"web"}},"made":[]}}"#);
    for words in [
        &["define", "other", "--disk", "fast/web"][..],
        &["define", "other", "--disk", "fast/none"],
        &["undefine", "other"],
        &["import", "web", "--from", "away", "--sr", "slow"],
        &["consolidate", "web", "--store", "away"],
        &["remove", "web", "--store", "away"],
        &["store-init", "nas"],
        &["export", "web", "--to", "away"],
        &["list"],
        &["show", "web"],
        &["verify", "web"],
    ] {
        fs::write(scene.root.path().join("run/backup").join(format!("{run}.json")), &record).unwrap();
        fs::write(path(&scene, "log"), "").unwrap();
        let _ = backup(&scene, words);
        assert_eq!(fs::read_to_string(path(&scene, "log")).unwrap(), "resumed\n", "{words:?}");
        assert!(records(&scene).is_empty(), "{words:?}");
    }
}
