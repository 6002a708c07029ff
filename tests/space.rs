//! sr_space: what it says that a deletion or sr_collect would free is what they free.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "the rule is for what we ship")]

mod scene;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use scene::filesystem::Filesystem;
use scene::{A, B, C, Door, FILE, SR, Scene, pattern};
use serde_json::Value;

const D: &str = "98de866e-b035-4b1a-a571-00000000000d";

/// An SR with the disk A, which holds the pattern, in this format.
fn sr(format: &str) -> Scene {
    let scene = Scene::empty(&FILE, Door::Sm);
    scene.call(["sr_create", SR]).done();
    import(&scene, A, format);
    scene
}

fn import(scene: &Scene, vdi: &str, format: &str) {
    let data = scene.root.path().join("data");
    fs::write(&data, pattern(8 << 20)).unwrap();
    scene.call(["vdi_import", SR, vdi, data.to_str().unwrap(), "--file-type", "raw", "--type", format]).done();
}

fn space(scene: &Scene) -> Value {
    serde_json::from_str(&scene.call(["sr_space", SR, "--format", "json"]).done()).unwrap()
}

fn image(space: &Value, vdi: &str) -> Value {
    let images = space["images"].as_array().unwrap();
    images.iter().find(|image| image["uuid"] == vdi).unwrap_or_else(|| panic!("{vdi} is not in {space}")).clone()
}

fn bases(space: &Value) -> Vec<Value> {
    space["images"].as_array().unwrap().iter().filter(|image| image["hidden"] == true).cloned().collect()
}

/// Bytes that all images have on the disk.
fn allocated(scene: &Scene) -> u64 {
    let images = fs::read_dir(&scene.place).unwrap().map(|entry| entry.unwrap());
    let images =
        images.filter(|entry| ["vhd", "qcow2", "raw"].iter().any(|end| entry.path().extension() == Some(end.as_ref())));
    images.map(|entry| entry.metadata().unwrap().blocks() * 512).sum()
}

/// Deletes the VDI; the bytes that this freed.
fn freed_by_deleting(scene: &Scene, vdi: &str) -> u64 {
    let before = allocated(scene);
    scene.call(["vdi_delete", SR, vdi, "--yes"]).done();
    before - allocated(scene)
}

#[test]
fn a_deletion_frees_the_image_and_the_bases_of_which_it_is_the_last_child() {
    for format in ["vhd", "qcow2"] {
        let scene = sr(format);
        scene.call(["vdi_snapshot", SR, A, B]).done();
        let two = space(&scene);
        let base = &bases(&two)[0];
        assert_eq!((bases(&two).len(), &base["disks"], &base["frees"]), (1, &2.into(), &Value::Null), "{two}");
        assert!(base["holds"].as_u64().unwrap() >= 8 << 20, "{two}");
        for vdi in [A, B] {
            let of = image(&two, vdi);
            assert_eq!((&of["frees"], &of["exact"]), (&of["holds"], &true.into()), "{two}");
            assert!(of["holds"].as_u64().unwrap() < 1 << 20, "{two}");
        }
        assert_eq!((&two["to_merge"], &two["collectable"], &two["longest_chain"]), (&0.into(), &0.into(), &2.into()));
        assert_eq!(image(&two, B)["frees"].as_u64().unwrap(), freed_by_deleting(&scene, B));
        // The base is there for A alone: it goes with A.
        let one = space(&scene);
        assert_eq!((&one["to_merge"], &bases(&one)[0]["disks"]), (&1.into(), &1.into()), "{one}");
        let frees = image(&one, A)["frees"].as_u64().unwrap();
        assert!(frees > 8 << 20, "{one}");
        assert_eq!(frees, freed_by_deleting(&scene, A));
        assert_eq!((allocated(&scene), space(&scene)["images"].as_array().unwrap().len()), (0, 0));
    }
}

/// Makes the qcow2 A hold in clusters of its own all the stretches that its base holds.
fn write_over(scene: &Scene) {
    let data = scene.root.path().join("data");
    fs::write(&data, vec![7; 8 << 20]).unwrap();
    let convert = ["convert", "-n", "-f", "raw", "-O", "qcow2"];
    let to = scene.place.join(format!("{A}.qcow2"));
    let done = std::process::Command::new("qemu-img").args(convert).args([data, to]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn what_a_merge_frees_is_what_both_images_hold() {
    if !scene::has("qemu-img") {
        return;
    }
    let scene = sr("qcow2");
    scene.call(["vdi_snapshot", SR, A, B]).done();
    write_over(&scene);
    let before = space(&scene);
    let then = image(&before, B)["merge_frees"].as_u64().unwrap();
    // A holds 8 MiB, the base holds the same 8 MiB.
    assert!((8 << 20..9 << 20).contains(&then), "{before}");
    // The base goes into A's place if B goes; if A goes, B holds nothing that would be merged but its tables.
    assert!(image(&before, A)["merge_frees"].as_u64().unwrap() < 1 << 20, "{before}");
    freed_by_deleting(&scene, B);
    let after = space(&scene);
    assert_eq!((&after["to_merge"], &after["collectable"]), (&1.into(), &then.into()), "{after}");
    let plan = scene.call(["sr_collect", "-n", SR]).done();
    assert!(plan.lines().last().unwrap().starts_with("in all: 0 removed, 1 merged, about 8."), "{plan}");
    let was = allocated(&scene);
    scene.call(["sr_collect", SR]).done();
    let freed = was - allocated(&scene);
    assert!(freed.abs_diff(then) < 1 << 20, "{freed} were freed, and {then} were told");
    assert_eq!(space(&scene)["collectable"], 0);
}

#[test]
fn a_base_that_nothing_needs_is_told_and_removed() {
    let scene = sr("vhd");
    scene.call(["vdi_snapshot", SR, A, B]).done();
    // As a kill between the two leaves it.
    for vdi in [A, B] {
        fs::remove_file(scene.place.join(format!("{vdi}.vhd"))).unwrap();
    }
    let left = space(&scene);
    let base = &bases(&left)[0];
    assert_eq!((&left["to_remove"], &left["collectable"], &base["disks"]), (&1.into(), &base["holds"], &0.into()));
    let table = scene.call(["sr_space", SR, "--format", "table"]).done();
    assert!(table.contains("base of nothing") && table.contains(": 1 removed, 0 merged"), "{table}");
    let plan = scene.call(["sr_collect", "-n", SR]).done();
    assert!(plan.contains("in all: 1 removed, 0 merged, about 8."), "{plan}");
    let was = allocated(&scene);
    scene.call(["sr_collect", SR]).done();
    assert_eq!(was - allocated(&scene), base["holds"].as_u64().unwrap());
}

#[test]
fn an_image_that_cannot_be_read_is_in_the_answer() {
    let scene = sr("vhd");
    scene.call(["vdi_create", SR, C, "4", "--type", "vhd"]).done();
    fs::write(scene.place.join(format!("{C}.vhd")), vec![1; 65536]).unwrap();
    let found = space(&scene);
    assert_eq!(image(&found, C)["frees"], 65536, "{found}");
    assert!(scene.call(["sr_space", SR, "--format", "table"]).done().contains("broken"), "{found}");
}

#[test]
fn extents_that_a_copy_shares_are_freed_with_the_last_of_them() {
    if !scene::is_root() || !scene::has("mkfs.xfs") {
        return;
    }
    let xfs = Filesystem::new("xfs", 320);
    let scene = Scene::at(&FILE, Door::Sm, tempfile::tempdir().unwrap(), xfs.path().join("sr"));
    scene.call(["sr_create", SR]).done();
    import(&scene, A, "raw");
    scene.call(["vdi_clone", SR, A, D]).done();
    scene.call(["vdi_create", SR, C, "4", "--type", "raw"]).done();
    let shared = space(&scene);
    for vdi in [A, D] {
        let of = image(&shared, vdi);
        assert_eq!((&of["holds"], &of["frees"], &of["exact"]), (&0.into(), &0.into(), &true.into()), "{shared}");
        assert!(of["physical_utilisation"].as_u64().unwrap() >= 8 << 20, "{shared}");
    }
    scene.call(["vdi_delete", SR, A, "--yes"]).done();
    // XFS gives back the extents of a removed file a little later.
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        let alone = space(&scene);
        if image(&alone, D)["frees"].as_u64().unwrap() >= 8 << 20 {
            break;
        }
        assert!(Instant::now() < give_up, "{alone}");
        thread::sleep(Duration::from_millis(100));
    }
}
