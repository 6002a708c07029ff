//! sm backup: what was exported comes back, byte for byte, and an export is there whole or the one before is.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_types,
    reason = "a test that cannot go on ends here"
)]

#[path = "backup/into_sr.rs"]
mod into_sr;
#[path = "backup/options.rs"]
mod options;
#[path = "backup/placement.rs"]
mod placement;
mod scene;
#[path = "backup/sealed.rs"]
mod sealed;
#[path = "backup/signed.rs"]
mod signed;
#[path = "backup/streams.rs"]
mod streams;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use scene::backups::{backup, disk, path, sm, with_stores};
use scene::kill::{Act, End, Points, run};
use scene::{A, B, C, SR, Scene, has, is_root, pattern, skip};

const MIB: u64 = 1 << 20;
const FORMATS: [&str; 3] = ["raw", "vhd", "qcow2"];

/// A scene with the file SRs `fast` and `slow`, and the stores `nas` and `old`.
fn scene() -> Scene {
    with_stores(&["nas", "old"])
}

/// A, of 50 MiB and a sector with data in three places, the last of them at its end.
fn web(scene: &Scene, format: &str) -> Vec<u8> {
    let size = 50 * MIB;
    let data = [(5 * MIB, pattern(6 * MIB)), (30 * MIB + 512, pattern(700)), (size - 512, pattern(512))];
    disk(scene, A, "web", format, size, &data)
}

fn exported(scene: &Scene, vdi: &str) -> Vec<u8> {
    let file = path(scene, "out.raw");
    sm(scene, &["vdi_export", "--", vdi, &file]).done();
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(file).unwrap();
    bytes
}

#[test]
fn an_export_in_the_place_of_another_is_refused() {
    let scene = scene();
    web(&scene, "raw");
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--keep", "9"];
    backup(&scene, &line).done();
    let old = current(&scene, "nas", "web");
    let shelf = old.parent().unwrap().to_owned();
    backup(&scene, &line).done();
    let newest = "20991231T235959Z-00000000";
    assert!(Command::new("cp").args(["-a", "--"]).arg(&old).arg(shelf.join(newest)).status().unwrap().success());
    fs::remove_file(shelf.join("current")).unwrap();
    std::os::unix::fs::symlink(newest, shelf.join("current")).unwrap();
    for words in [
        &["verify", "web"][..],
        &["verify", shelf.join(newest).to_str().unwrap()],
        &["import", "web", "--from", "nas", "--sr", "slow"],
        &[&line[..], &["--since", "last"]].concat(),
    ] {
        let said = backup(&scene, words).fails("EVERIFY");
        assert!(said.contains(&format!("and not of set web, run {newest}")), "{said}");
    }
    // Neither is one of another set.
    let other = shelf.with_file_name("other");
    fs::create_dir(&other).unwrap();
    let run = old.file_name().unwrap();
    assert!(Command::new("cp").args(["-a", "--"]).arg(&old).arg(other.join(run)).status().unwrap().success());
    std::os::unix::fs::symlink(run, other.join("current")).unwrap();
    backup(&scene, &["verify", "other"]).fails("EVERIFY");
}

/// The directory of the current export of a set.
fn current(scene: &Scene, store: &str, set: &str) -> PathBuf {
    scene.root.path().join(store).join(set).join("current").canonicalize().unwrap()
}

/// The names in a directory, sorted.
fn names(dir: impl AsRef<std::path::Path>) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Imports the current export of `web`, and answers the UUIDs of the new disks.
fn imported(scene: &Scene, store: &str, set: &str, sr: &str) -> Vec<String> {
    let answer = backup(scene, &["import", set, "--from", store, "--sr", sr, "--format", "json"]).done();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    answer["disks"].as_array().unwrap().iter().map(|disk| disk["uuid"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    if found != expected {
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the first byte that differs");
    }
}

#[test]
fn a_set_of_disks_of_every_format_comes_back_sparse_and_with_its_names() {
    let scene = scene();
    let bytes = [
        web(&scene, "vhd"),
        disk(&scene, B, "data", "raw", 9 * MIB, &[(8 * MIB, pattern(MIB))]),
        disk(&scene, C, "empty", "qcow2", 4 * MIB, &[]),
    ];
    backup(&scene, &["define", "web", "--disk", "fast/web", "--disk", "fast/data", "--disk", &format!("fast/{C}")])
        .done();
    for compress in ["none", "zstd"] {
        let run = backup(&scene, &["export", "web", "--to", "nas", "--compress", compress, "--format", "table"]).done();
        let dir = current(&scene, "nas", "web");
        assert_eq!(dir.file_name().unwrap().to_str().unwrap(), run.trim());
        let image = |n: usize| dir.join(format!("disk{n}.raw{}", if compress == "zstd" { ".zst" } else { "" }));
        let size = fs::metadata(image(0)).unwrap();
        assert!(size.blocks() * 512 < 9 * MIB, "{compress}: {} bytes", size.blocks() * 512);
        assert!(fs::metadata(image(2)).unwrap().blocks() * 512 <= 64 << 10, "an empty disk takes no room");
        backup(&scene, &["verify", "web"]).done();
        backup(&scene, &["verify", "web", "--deep"]).done();
        backup(&scene, &["verify", &dir.display().to_string()]).done();
        let new = imported(&scene, "nas", "web", "slow");
        for ((vdi, bytes), (label, format)) in
            new.iter().zip(&bytes).zip([("web", "vhd"), ("data", "raw"), ("empty", "qcow2")])
        {
            same(&exported(&scene, &format!("slow/{vdi}")), bytes);
            let info = sm(&scene, &["vdi_get_params", "slow", vdi]).done();
            assert!(info.contains(&format!("(label . \"{label}\")")), "{info}");
            assert!(info.contains(&format!("(type . \"{format}\")")), "{info}");
            let image = fs::metadata(scene.root.path().join(format!("slow/{vdi}.{format}"))).unwrap();
            assert!(image.blocks() * 512 < 10 * MIB, "{} bytes", image.blocks() * 512);
        }
        sm(&scene, &["vdi_delete", "slow", &new[0], &new[1], &new[2]]).done();
    }
    // Nobody has a lock of the disks any more, and one run is there.
    let info = sm(&scene, &["vdi_get_params", "fast/web"]).done();
    assert!(info.contains("(lock . 0)"), "{info}");
    assert_eq!(names(scene.root.path().join("nas/web")).len(), 2);
    assert_eq!(names(scene.root.path().join("nas")), [".sm-store", "web"]);
}

#[test]
fn a_block_has_nothing_of_the_blocks_before_it() {
    let scene = scene();
    // Full blocks, then more blocks than are on their way at once, each with a sector somewhere.
    let mut data = vec![(0, pattern(20 * MIB))];
    data.extend((5..40).map(|block| (block * 4 * MIB + block * 40_960, pattern(512))));
    for (vdi, format, compress) in [(A, "raw", "none"), (B, "qcow2", "zstd")] {
        let bytes = disk(&scene, vdi, format, format, 160 * MIB, &data);
        let disk = format!("fast/{format}");
        backup(&scene, &["export", format, "--disk", &disk, "--to", "nas", "--compress", compress]).done();
        let new = imported(&scene, "nas", format, "slow");
        same(&exported(&scene, &format!("slow/{}", new[0])), &bytes);
    }
}

#[test]
fn an_export_is_read_without_the_product() {
    if !has("zstd") {
        return;
    }
    let scene = scene();
    for format in FORMATS {
        let bytes = web(&scene, format);
        for (compress, read) in
            [("zstd", "zstd -dcq disk0.raw.zst"), ("gzip", "gzip -dc disk0.raw.gz"), ("none", "cat disk0.raw")]
        {
            let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--compress", compress];
            backup(&scene, &line).done();
            let dir = current(&scene, "nas", "web");
            let script = format!(
                "sha256sum --quiet -c SHA256SUMS && {read} | dd of=../../../back bs=4M conv=sparse status=none"
            );
            let done = Command::new("sh").args(["-euc", &script]).current_dir(&dir).status().unwrap();
            assert!(done.success());
            let mut back = fs::read(scene.root.path().join("back")).unwrap();
            // dd leaves zeroes at the end to whoever sets the length.
            back.resize(bytes.len(), 0);
            same(&back, &bytes);
            fs::remove_file(scene.root.path().join("back")).unwrap();
        }
        sm(&scene, &["vdi_delete", "fast/web"]).done();
    }
}

#[test]
fn what_an_export_takes_follows_what_is_allocated() {
    let scene = scene();
    for format in ["vhd", "qcow2", "raw"] {
        let size = if format == "vhd" { "2000G" } else { "8T" };
        sm(&scene, &["vdi_create", "fast", A, size, "--type", format, "--label", "huge"]).done();
        let line = ["export", "huge", "--disk", "fast/huge", "--to", "nas"];
        backup(&scene, &line).done();
        let image = fs::metadata(current(&scene, "nas", "huge").join("disk0.raw")).unwrap();
        assert!(image.len() >= 2000 << 30 && image.blocks() * 512 < MIB, "{format}: {} bytes", image.blocks() * 512);
        let new = imported(&scene, "nas", "huge", "slow");
        sm(&scene, &["vdi_delete", "slow", &new[0]]).done();
        sm(&scene, &["vdi_delete", "fast/huge"]).done();
    }
}

#[test]
fn a_run_replaces_the_one_before_and_those_that_are_kept_stay() {
    let scene = scene();
    web(&scene, "raw");
    let export = |more: &[&str]| {
        backup(&scene, &[&["export", "web", "--disk", "fast/web", "--to", "nas", "--format", "table"], more].concat())
            .done()
            .trim()
            .to_owned()
    };
    let mut runs = vec![export(&[])];
    for _ in 0..3 {
        runs.push(export(&["--keep", "3"]));
        let kept = runs[runs.len().saturating_sub(3)..].to_vec();
        assert_eq!(names(scene.root.path().join("nas/web")), [&kept[..], &["current".to_owned()]].concat());
    }
    // As many stay as the last export was to leave, unless one says otherwise.
    let plan =
        backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "nas", "-n", "--format", "table"]).done();
    assert_eq!(plan.lines().filter(|line| line.starts_with("remove run")).count(), 1, "{plan}");
    let last = backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "nas", "--format", "json"]).done();
    let last: serde_json::Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["removed"], serde_json::json!([runs[1]]));
    runs.push(last["run"].as_str().unwrap().to_owned());
    assert_eq!(names(scene.root.path().join("nas/web")), [&runs[2..], &["current".to_owned()]].concat());
    let shown = backup(&scene, &["show", "web", "--format", "table"]).done();
    assert!(shown.contains("kind    full\n") && shown.contains("kept    the newest 3 runs\n"), "{shown}");
    runs.remove(0);
    let list = backup(&scene, &["list", "--format", "json"]).done();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["exports"].as_array().unwrap().len(), 3);
    let of_web: serde_json::Value =
        serde_json::from_str(&backup(&scene, &["list", "web", "--format", "json"]).done()).unwrap();
    assert_eq!(of_web, list);
    assert_eq!(backup(&scene, &["list", "we", "--format", "json"]).done(), "{\"schema\":1,\"exports\":[]}\n");
    assert_eq!(list["exports"][2]["run"].as_str(), Some(runs[3].as_str()));
    assert_eq!(list["exports"][2]["current"].as_bool(), Some(true));
    backup(&scene, &["remove", "web", "--run", &runs[3]]).done();
    assert!(current(&scene, "nas", "web").ends_with(&runs[2]));
    backup(&scene, &["verify", "web", "--run", &runs[1]]).done();
    let none = backup(&scene, &["verify", "web", "--run", &runs[3]]).fails("EVERIFY");
    assert!(none.contains("sm backup list"), "{none}");
    let last = export(&["--keep", "1"]);
    assert_eq!(names(scene.root.path().join("nas/web")), [last, "current".to_owned()]);
    backup(&scene, &["remove", "web"]).done();
    assert_eq!(names(scene.root.path().join("nas")), [".sm-store"]);
    let nothing = backup(&scene, &["remove", "web"]);
    assert!(nothing.succeeded() && nothing.stderr().contains("exact names"), "{nothing}");
}

#[test]
fn runs_are_removed_by_name_and_by_how_many_stay() {
    let scene = scene();
    web(&scene, "vhd");
    let export = |more: &[&str]| {
        let line = [&["export", "web", "--disk", "fast/web", "--to", "nas", "--keep", "9", "--format", "table"], more]
            .concat();
        backup(&scene, &line).done().trim().to_owned()
    };
    let there = || names(scene.root.path().join("nas/web"));
    let mut runs = [export(&[]), export(&[]), export(&["--since", "last"]), export(&["--since", "last"]), export(&[])];
    runs.sort();
    let all = there();
    // Nothing goes in a dry run, nor what a run that stays is made on.
    let plan = backup(&scene, &["remove", "web", "--run", &runs[0], "-n", "--format", "table"]).done();
    assert_eq!(plan, format!("remove run {} of web from store nas\n", runs[0]));
    let plan = backup(&scene, &["prune", "web", "--keep", "2", "-n", "--format", "table"]).done();
    assert_eq!(plan, format!("remove run {} of web from store nas\n", runs[0]));
    assert!(
        backup(&scene, &["remove", "web", "--run", &runs[1], "--run", &runs[2]]).fails("EPERM").contains("consolidate")
    );
    assert_eq!(there(), all);
    let told = backup(&scene, &["prune", "web", "--keep", "2", "--format", "json"]).done();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["removed"], serde_json::json!([{ "store": "nas", "run": runs[0] }]));
    assert_eq!(backup(&scene, &["prune", "web", "--keep", "2", "--format", "table"]).done(), "nothing to remove\n");
    // An increment and what it is made on go together, whatever the order of the words is.
    backup(&scene, &["remove", "web", "--run", &runs[1], "--run", &runs[3], "--run", &runs[2]]).done();
    assert_eq!(there(), [&runs[4..], &["current".to_owned()]].concat());
    backup(&scene, &["verify", "web", "--deep"]).done();
    assert!(backup(&scene, &["prune", "web"]).fails("EINVAL").contains("--keep"));
}

#[test]
fn one_disk_of_an_export_gets_a_label_and_its_uuid_is_the_answer() {
    let scene = scene();
    let bytes = web(&scene, "vhd");
    disk(&scene, B, "data", "raw", MIB, &[]);
    backup(&scene, &["export", "web", "--disk", "fast/web", "--disk", "fast/data", "--to", "nas"]).done();
    let import = ["import", "web", "--from", "nas", "--sr", "slow", "--label", "web-restored"];
    let refused = backup(&scene, &import).fails("EINVAL");
    assert!(refused.contains("it is for one disk, and 2 would be made"), "{refused}");
    let uuid = backup(&scene, &[&import[..], &["--disk", "web"]].concat()).done();
    let info = sm(&scene, &["vdi_get_params", "slow/web-restored", "--format", "json"]).done();
    assert!(uuid.trim().len() == 36 && info.contains(uuid.trim()), "{uuid}: {info}");
    same(&exported(&scene, "slow/web-restored"), &bytes);
    backup(&scene, &[&import[..6], &["--disk", "web", "--label", "a\nb"]].concat()).fails("EINVAL");
}

#[test]
fn other_stores_lose_their_copies_once_the_new_one_is_whole() {
    let scene = scene();
    web(&scene, "raw");
    let export = |store: &str, more: &[&str]| {
        backup(&scene, &[&["export", "web", "--disk", "fast/web", "--to", store], more].concat())
    };
    export("old", &[]).done();
    export("nas", &["--keep-others"]).done();
    assert!(scene.root.path().join("old/web/current").exists());
    // An export that fails removes nothing.
    fs::write(scene.root.path().join("nas/web/x"), "x").unwrap();
    export("nas", &["--disk", "fast/none"]).fails("ENOVDI");
    assert!(scene.root.path().join("old/web/current").exists());
    let told = export("nas", &[]);
    assert!(told.succeeded() && told.stderr().contains("in store old were removed"), "{told}");
    assert_eq!(names(scene.root.path().join("old")), [".sm-store"]);
    // A store that is there twice, and one that is away.
    let conf = scene.root.path().join("run/stores.conf");
    let twice = format!(
        "store: name=nas path={}\nstore: name=again path={}\nstore: name=away path=/does/not/exist\n",
        path(&scene, "nas"),
        path(&scene, "nas")
    );
    fs::write(conf, twice).unwrap();
    let warned = export("nas", &[]);
    assert!(warned.succeeded() && warned.stderr().starts_with("warning: store away"), "{warned}");
    assert_eq!(warned.stderr().lines().count(), 1, "{warned}");
    backup(&scene, &["verify", "web", "--store", "nas"]).done();
}

#[test]
fn what_cannot_be_exported_is_refused_before_anything_is_changed() {
    let scene = scene();
    web(&scene, "raw");
    fs::create_dir(scene.root.path().join("bare")).unwrap();
    let conf = scene.root.path().join("run/stores.conf");
    let mut text = fs::read_to_string(&conf).unwrap();
    text += &format!("store: name=bare path={}\n", path(&scene, "bare"));
    text += &format!("store: name=dry path={} drained=yes\n", path(&scene, "nas"));
    fs::write(&conf, text).unwrap();
    let before = scene.digest();
    for (words, name) in [
        (&["export", "web", "--to", "nas"][..], "EINVAL"),
        (&["export", "../web", "--to", "nas", "--disk", "fast/web"], "EINVAL"),
        (&["export", "web", "--to", "else", "--disk", "fast/web"], "EINVAL"),
        (&["export", "web", "--to", "nas", "--disk", "web"], "EINVAL"),
        (&["export", "web", "--to", "nas", "--disk", "fast/web", "--disk", "fast/web"], "EINVAL"),
        (&["export", "web", "--to", "nas", "--disk", "none/web"], "ENOSR"),
        (&["export", "web", "--to", "nas", "--disk", &format!("fast/{B}")], "ENOVDI"),
        (&["export", "web", "--to", "dry", "--disk", "fast/web"], "EPERM"),
        // What belongs there is not mounted.
        (&["export", "web", "--to", "bare", "--disk", "fast/web"], "ENODEV"),
        (&["import", "web", "--from", "nas", "--sr", "fast"], "EVERIFY"),
        (&["define", "web", "--disk", "fast/web", "--disk", &format!("fast/{A}")], "EINVAL"),
    ] {
        backup(&scene, words).fails(name);
    }
    sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
    let used = backup(&scene, &["export", "web", "--to", "nas", "--disk", "fast/web"]).fails("EVDIBUSY");
    assert!(used.contains("vm7"), "{used}");
    sm(&scene, &["vdi_unlock", "fast/web", "FALSE", "vm7"]).done();
    assert_eq!(names(scene.root.path().join("nas")), [".sm-store"]);
    assert_eq!(names(scene.root.path().join("bare")), [""; 0]);
    drop(before);
    let plan =
        backup(&scene, &["export", "-n", "web", "--to", "nas", "--disk", "fast/web", "--format", "table"]).done();
    assert!(plan.contains(&format!("export VDI {A} (web)")), "{plan}");
    assert_eq!(names(scene.root.path().join("nas")), [".sm-store"]);
    if !is_root() {
        return skip("a disk that is attached");
    }
    sm(&scene, &["vdi_attach", "fast/web"]).done();
    backup(&scene, &["export", "web", "--to", "nas", "--disk", "fast/web"]).fails("EVDIBUSY");
    sm(&scene, &["vdi_detach", "fast/web"]).done();
}

#[test]
fn a_full_store_keeps_the_export_before_and_nothing_of_the_new_one() {
    if !is_root() {
        return;
    }
    let scene = scene();
    let small = scene.root.path().join("small");
    fs::create_dir(&small).unwrap();
    let mount = |words: &[&str]| assert!(Command::new("mount").args(words).status().unwrap().success());
    mount(&["-t", "tmpfs", "-o", "size=24m", "none", small.to_str().unwrap()]);
    let unmount = Unmount(small.clone());
    let conf = scene.root.path().join("run/stores.conf");
    fs::write(&conf, format!("store: name=small path={}\n", path(&scene, "small"))).unwrap();
    backup(&scene, &["store-init", "small"]).done();
    web(&scene, "raw");
    let line = ["export", "web", "--disk", "fast/web", "--to", "small"];
    backup(&scene, &line).done();
    let before = current(&scene, "small", "web");
    // Incompressible, so that what is packed does not fit either.
    let noise: Vec<u8> =
        pattern(26 * MIB).iter().zip(pattern(27 * MIB)[7..].iter()).map(|(a, b)| a ^ b.rotate_left(3)).collect();
    disk(&scene, B, "big", "raw", 40 * MIB, &[(0, noise)]);
    let line = ["export", "web", "--disk", "fast/web", "--disk", "fast/big", "--to", "small"];
    backup(&scene, &line).fails("ENOSPC");
    let failed = backup(&scene, &[&line[..], &["--compress", "zstd"]].concat()).fails("EEXPORT");
    assert!(failed.contains(&format!("disk 1, VDI {B}")) && failed.contains("No space left"), "{failed}");
    assert_eq!(current(&scene, "small", "web"), before);
    backup(&scene, &["verify", "web", "--deep"]).done();
    assert_eq!(names(small.join("web")).len(), 2, "{:?}", names(small.join("web")));
    let info = sm(&scene, &["vdi_get_params", "fast/big"]).done();
    assert!(info.contains("(lock . 0)"), "{info}");
    drop(unmount);
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn an_export_that_was_changed_is_found_and_leaves_no_disk() {
    let scene = scene();
    web(&scene, "vhd");
    for compress in ["none", "zstd", "gzip"] {
        let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--compress", compress];
        backup(&scene, &line).done();
        let dir = current(&scene, "nas", "web");
        let image = match compress {
            "zstd" => "disk0.raw.zst",
            "gzip" => "disk0.raw.gz",
            _ => "disk0.raw",
        };
        let good: Vec<(String, Vec<u8>)> =
            names(&dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(&name)).unwrap())).collect();
        let of = |name: &str| good.iter().find(|(it, _)| it == name).unwrap().1.clone();
        let (manifest, map) = (of("manifest.json"), of("disk0.map"));
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let replaced = |bytes: &[u8], from: &str, to: &str| {
            let changed = text(bytes).replace(from, to);
            assert_ne!(changed, text(bytes), "{from}");
            changed.into_bytes()
        };
        let mut flipped = of(image);
        // In a block that has data, wherever that is in the image.
        let at = if compress != "none" { flipped.len() / 2 } else { 6 * MIB as usize };
        flipped[at] ^= 1;
        let cut = of(image)[..of(image).len() - 4096].to_vec();
        // Whoever changes the manifest can change the sums as well.
        let resealed = |name: &'static str, bytes: Vec<u8>| {
            let sums = text(&of("SHA256SUMS")).replace(&sums_of(&of(name)), &sums_of(&bytes));
            vec![(name, bytes), ("SHA256SUMS", sums.into_bytes())]
        };
        type Case = (&'static str, Vec<(&'static str, Vec<u8>)>);
        let cases: Vec<Case> = vec![
            ("a flipped bit", vec![(image, flipped)]),
            ("a truncated image", vec![(image, cut)]),
            ("an edited manifest", vec![("manifest.json", replaced(&manifest, "\"web\"", "\"wob\""))]),
            ("no manifest", vec![("manifest.json", b"x".to_vec())]),
            ("a path", resealed("manifest.json", replaced(&manifest, "\"name\": \"web\"", "\"name\": \"../web\""))),
            ("another set", resealed("manifest.json", replaced(&manifest, "\"name\": \"web\"", "\"name\": \"wob\""))),
            ("another size", resealed("manifest.json", replaced(&manifest, "52428800", "62428672"))),
            ("a huge size", resealed("manifest.json", replaced(&manifest, "52428800", "9223372036854775296"))),
            ("another version", resealed("manifest.json", replaced(&manifest, "\"version\": 1", "\"version\": 2"))),
            ("an edited map", vec![("disk0.map", replaced(&map, "zero", "Zero"))]),
            ("another map", resealed("disk0.map", b"0-12 zero\n".to_vec())),
            ("no sums", vec![("SHA256SUMS", Vec::new())]),
        ];
        for (case, files) in cases {
            for (name, bytes) in &files {
                fs::write(dir.join(name), bytes).unwrap();
            }
            if case != "another set" {
                backup(&scene, &["verify", "web", "--deep"]).fails("EVERIFY");
            }
            let images = names(scene.root.path().join("slow"));
            let refused = backup(&scene, &["import", "web", "--from", "nas", "--sr", "slow"]);
            refused.fails("EVERIFY");
            assert_eq!(names(scene.root.path().join("slow")), images, "{compress}: {case}");
            assert!(records(&scene).is_empty(), "{compress}: {case}");
            for (name, bytes) in &good {
                fs::write(dir.join(name), bytes).unwrap();
            }
        }
        // A link that leads out of the store.
        fs::remove_file(dir.join(image)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join(image)).unwrap();
        backup(&scene, &["import", "web", "--from", "nas", "--sr", "slow"]).fails("EVERIFY|EIO");
    }
}

/// The SHA-256 of bytes, by another program.
fn sums_of(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), bytes).unwrap();
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout)[..64].to_owned()
}

/// The records of runs that have begun and not ended.
fn records(scene: &Scene) -> Vec<String> {
    let dir = scene.root.path().join("run/backup");
    if !dir.exists() {
        return Vec::new();
    }
    let mut names = names(dir);
    names.retain(|name| name.ends_with(".json"));
    names
}

#[test]
fn disks_go_where_they_are_wanted_and_no_larger_than_there_is_room() {
    let scene = scene();
    let web = web(&scene, "vhd");
    let data = disk(&scene, B, "data", "raw", 9 * MIB, &[(8 * MIB, pattern(MIB))]);
    sm(&scene, &["vdi_set", "fast/data", "--read-only"]).done();
    let line = ["export", "web", "--disk", "fast/web", "--disk", "fast/data", "--to", "nas"];
    backup(&scene, &line).done();
    let import =
        |more: &[&str]| backup(&scene, &[&["import", "web", "--from", "nas", "--format", "json"], more].concat());
    let refused = import(&["--sr", "fast", "--keep-uuids"]);
    // Written as an object: the words are looked for in it.
    assert!(refused.stderr().contains("EEXIST"), "{refused}");
    let done = import(&["--sr", "slow", "--keep-uuids", "--size", "0=80M", "--map", "1=slow"]).done();
    assert!(done.contains(A) && done.contains(B), "{done}");
    let grown = exported(&scene, &format!("slow/{A}"));
    assert_eq!(grown.len() as u64, 80 * MIB);
    same(&grown[..web.len()], &web);
    assert!(grown[web.len()..].iter().all(|byte| *byte == 0));
    same(&exported(&scene, &format!("slow/{B}")), &data);
    let info = sm(&scene, &["vdi_get_params", "slow", B]).done();
    assert!(info.contains("(read_only . 1)"), "{info}");
    for (words, name) in [
        (&["--sr", "slow", "--size", "0=1M"][..], "EINVAL"),
        (&["--sr", "slow", "--size", "2=1G"], "EINVAL"),
        (&["--sr", "slow", "--map", "0"], "EINVAL"),
        (&["--sr", "none"], "ENOSR"),
        (&["--sr", "slow", "--run", "20200101T000000Z-00000000"], "EVERIFY"),
    ] {
        let refused = import(words);
        assert!(refused.stderr().contains(name), "{refused}");
    }
    let made = |words: &[&str]| {
        let disks: serde_json::Value = serde_json::from_str(&import(words).done()).unwrap();
        let of =
            |disk: &serde_json::Value| (disk["index"].as_u64().unwrap(), disk["uuid"].as_str().unwrap().to_owned());
        disks["disks"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(made(&["--sr", "auto"]).len(), 2);
    // Some of the disks.
    for word in ["1", "data", B] {
        let disks = made(&["--sr", "slow", "--disk", word]);
        assert!(disks.len() == 1 && disks[0].0 == 1, "{word}: {disks:?}");
        same(&exported(&scene, &format!("slow/{}", disks[0].1)), &data);
    }
    assert_eq!(made(&["--sr", "slow", "--disk", "data", "--disk", "0"]).len(), 2);
    for (words, what) in [
        (&["--disk", "db"][..], "expected the index, the label or the UUID of a disk: 0 (web), 1 (data)"),
        (&["--disk", "2"], "expected the index"),
        (&["--disk", ""], "expected the index"),
        (&["--disk", "web", "--map", "1=fast"], "--disk leaves this disk out"),
    ] {
        let refused = import(&[&["--sr", "slow"], words].concat());
        assert!(refused.stderr().contains("EINVAL") && refused.stderr().contains(what), "{words:?}: {refused}");
    }
    // A store is no word of a receiver.
    for word in ["old", "old:1", "20260101T000000Z-00000000:x"] {
        let refused = backup(&scene, &["send", "web", "--from", word]).fails("EINVAL");
        assert!(refused.contains("`sm backup receive --to STORE --resume NAME` prints"), "{refused}");
        assert!(refused.contains("--store says"), "{refused}");
    }
}

/// A dry run names the runs and the stores that the run then removes from, and no others.
#[test]
fn a_dry_run_names_the_removals_that_happen() {
    let scene = scene();
    web(&scene, "vhd");
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--format", "table"];
    let shelf = scene.root.path().join("nas/web");
    let kept = || if shelf.exists() { names(&shelf) } else { Vec::new() };
    // A store with nothing of the set, and one that is drained: both keep what they have.
    let conf = scene.root.path().join("run/stores.conf");
    let stores = fs::read_to_string(&conf).unwrap();
    backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "old"]).done();
    fs::write(
        &conf,
        stores.replace(&format!("path={}", path(&scene, "old")), &format!("path={} drained=yes", path(&scene, "old"))),
    )
    .unwrap();
    for (more, removed) in [
        (&["--since", "last", "--keep", "2"][..], 0),
        (&["--since", "last", "--keep", "2"], 0),
        // Increments need the runs before them.
        (&["--since", "last"], 0),
        (&["--since", "none", "--keep", "2", "--keep-daily", "1"], 0),
        (&["--keep", "2"], 3),
        (&["--since", "last", "--keep", "1"], 1),
        (&["--keep", "1"], 2),
    ] {
        let before = kept();
        let plan = backup(&scene, &[&line, more, &["-n"]].concat()).done();
        let mut planned: Vec<String> =
            plan.lines().filter_map(|line| line.strip_prefix("remove run ")).map(str::to_owned).collect();
        planned.sort();
        assert!(!plan.contains("from store"), "{plan}");
        assert_eq!(kept(), before);
        assert!(backup(&scene, &[&line, more].concat()).succeeded());
        let after = kept();
        let gone: Vec<String> = before.into_iter().filter(|run| !after.contains(run)).collect();
        assert_eq!((&planned, planned.len()), (&gone, removed), "{more:?}: {plan}");
    }
    fs::write(&conf, stores).unwrap();
    let plan = backup(&scene, &[&line[..], &["-n"]].concat()).done();
    assert!(plan.contains("remove web from store old\n"), "{plan}");
}

#[test]
fn an_export_waits_for_another_of_the_set() {
    let scene = scene();
    web(&scene, "raw");
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas"];
    // The first export has the disk locked while its hook waits for the second to have begun.
    hook(&scene, "backup-export-post.d", "wait", "sleep 0.5");
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..3).map(|_| scope.spawn(|| backup(&scene, &line))).collect();
        for call in calls {
            let done = call.join().unwrap();
            assert!(done.succeeded(), "{done}");
        }
    });
}

#[test]
fn a_directory_that_is_no_export_is_not_removed() {
    let scene = scene();
    web(&scene, "raw");
    for (store, set) in [("nas", "Photos"), ("old", "web")] {
        let dir = scene.root.path().join(store).join(set);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("precious"), "x").unwrap();
    }
    let refused = backup(&scene, &["remove", "Photos"]).fails("EPERM");
    assert!(refused.contains("nas/Photos/precious is no part of an export"), "{refused}");
    let warned = backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "nas"]);
    assert!(warned.succeeded() && warned.stderr().contains("store old keeps what it has"), "{warned}");
    for kept in ["nas/Photos/precious", "old/web/precious"] {
        assert!(scene.root.path().join(kept).exists(), "{kept}");
    }
}

#[test]
fn a_set_is_for_one_call_at_a_time_and_a_dead_holder_holds_nothing() {
    let scene = scene();
    web(&scene, "raw");
    backup(&scene, &["define", "web", "--disk", "fast/web"]).done();
    backup(&scene, &["export", "web", "--to", "nas"]).done();
    let line = ["export", "web", "--to", "nas", "--lock-timeout", "0"];
    let lock = scene.root.path().join("nas/.web.lock");
    let holder =
        |host: &str| format!(r#"{{"host":"{host}","boot":"x","pid":1,"started":1,"run":"20261127T010735Z-1f2e3d4c"}}"#);
    fs::write(&lock, holder("another")).unwrap();
    let refused = backup(&scene, &line).fails("ENOLCK");
    assert!(refused.contains("process 1 of host another") && refused.contains(".web.lock"), "{refused}");
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    fs::write(&lock, holder(&host)).unwrap();
    backup(&scene, &line).done();
    assert!(!lock.exists());
}

#[test]
fn a_killed_export_leaves_the_old_or_the_new_one_and_the_next_call_nothing_else() {
    killed(&["export", "web", "--to", "nas"], |scene, at| {
        // Whatever the next command is, even one that only looks.
        backup(scene, &["list"]).done();
        assert!(records(scene).is_empty(), "killed at {at}");
        let info = sm(scene, &["vdi_get_params", "fast/web"]).done();
        assert!(info.contains("(lock . 0)"), "killed at {at}: {info}");
        backup(scene, &["verify", "web", "--deep"]).done();
        let new = imported(scene, "nas", "web", "slow");
        let bytes = exported(scene, &format!("slow/{}", new[0]));
        assert!(bytes[5 * MIB as usize..][..4096] == pattern(4096), "killed at {at}");
        backup(scene, &["export", "web", "--to", "nas"]).done();
        assert_eq!(names(scene.root.path().join("nas/web")).len(), 2, "killed at {at}");
        assert_eq!(names(scene.root.path().join("nas")), [".sm-store", "web"], "killed at {at}");
    });
}

#[test]
fn a_killed_removal_is_completed() {
    killed(&["remove", "web"], |scene, at| {
        backup(scene, &["list"]).done();
        backup(scene, &["remove", "web"]).succeeded();
        assert_eq!(names(scene.root.path().join("nas")), [".sm-store"], "killed at {at}");
        assert!(records(scene).is_empty(), "killed at {at}");
    });
}

#[test]
fn a_killed_import_leaves_all_disks_or_the_next_call_none() {
    killed(&["import", "web", "--from", "nas", "--sr", "slow"], |scene, at| {
        let images = || names(scene.root.path().join("slow")).into_iter().filter(|name| !name.starts_with('.')).count();
        let records_left = records(scene).len();
        backup(scene, &["list"]).done();
        assert!(records(scene).is_empty(), "killed at {at}");
        let left = images();
        assert!(left == 0 || records_left == 0, "killed at {at}: {left} images");
        backup(scene, &["import", "web", "--from", "nas", "--sr", "slow"]).done();
        assert!(images() > left, "killed at {at}");
    });
}

/// Kills a command before each system call that changes something, each time in a scene with one export of `web`.
fn killed(words: &[&str], check: impl Fn(&Scene, u64)) {
    let args: Vec<String> = ["backup"].iter().chain(words).map(|word| (*word).to_owned()).collect();
    for n in scene::sampled() {
        let scene = scene();
        disk(&scene, A, "web", "vhd", 8 * MIB, &[(5 * MIB, pattern(4096))]);
        backup(&scene, &["define", "web", "--disk", "fast/web"]).done();
        backup(&scene, &["export", "web", "--to", "nas"]).done();
        let run_dir = scene.root.path().join("run");
        let killed = run(n, Points::Changing, Act::Kill, &scene.executable(), &args, &run_dir);
        if killed.end != End::Killed {
            assert_eq!(killed.end, End::Status(0), "{}", String::from_utf8_lossy(&killed.stderr));
            assert!(n > 5, "only {n} points");
            println!("{words:?}: {n} points");
            break;
        }
        check(&scene, n);
    }
}

#[test]
fn a_failure_at_any_step_is_told_and_the_export_before_stays() {
    use nix::errno::Errno;
    use nix::libc::{SYS_fsync, SYS_linkat, SYS_mkdirat, SYS_pwrite64, SYS_renameat, SYS_symlinkat, SYS_write};
    let steps = Points::Matching(|number, args| {
        [SYS_fsync, SYS_linkat, SYS_mkdirat, SYS_pwrite64, SYS_renameat, SYS_symlinkat].contains(&number)
            || number == SYS_write && args[0] > 2
    });
    let args: Vec<String> = ["backup", "export", "web", "--to", "nas"].map(str::to_owned).into();
    for n in scene::sampled() {
        let scene = scene();
        disk(&scene, A, "web", "vhd", 8 * MIB, &[(5 * MIB, pattern(4096))]);
        backup(&scene, &["define", "web", "--disk", "fast/web"]).done();
        backup(&scene, &["export", "web", "--to", "nas"]).done();
        let traced = run(n, steps, Act::Fail(Errno::EIO), &scene.executable(), &args, &scene.root.path().join("run"));
        if traced.call.is_none() {
            assert!(n > 10, "only {n} points");
            break;
        }
        let said = String::from_utf8_lossy(&traced.stderr).into_owned();
        let told = traced.end != End::Status(0) || said.contains("warning: ");
        // A step of the lock in the store, or of the log, may fail without a consequence.
        assert!(told || said.is_empty(), "failed at {n}: {said}");
        backup(&scene, &["list"]).done();
        assert!(records(&scene).is_empty(), "failed at {n}: {said}");
        backup(&scene, &["verify", "web", "--deep"]).done();
        let info = sm(&scene, &["vdi_get_params", "fast/web"]).done();
        assert!(info.contains("(lock . 0)"), "failed at {n}: {said}");
        backup(&scene, &["export", "web", "--to", "nas"]).done();
        assert_eq!(names(scene.root.path().join("nas/web")).len(), 2, "failed at {n}: {said}");
    }
}

/// What happens to a disk between exports.
#[derive(Clone, Debug)]
enum Step {
    /// Writes bytes made of a number, or zeroes for 0: at a sector, so many sectors.
    Write(u64, u64, u8),
    Snapshot,
    /// More MiB.
    Grow(u64),
    /// To one of the snapshots, by its number modulo how many there are.
    Revert(usize),
    Export,
}

/// How the runs are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packed {
    Never,
    Sometimes,
    Encrypted,
}

fn packed() -> impl Strategy<Value = Packed> {
    prop_oneof![Just(Packed::Never), Just(Packed::Sometimes), Just(Packed::Encrypted)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..30_000u64, 1..3000u64, 0..4u8).prop_map(|(at, sectors, byte)| Step::Write(at, sectors, byte)),
        1 => Just(Step::Snapshot),
        1 => (1..7u64).prop_map(Step::Grow),
        1 => any::<usize>().prop_map(Step::Revert),
        3 => Just(Step::Export),
    ]
}

/// Writes to a disk that no process has open.
fn write(scene: &Scene, format: &str, at: u64, bytes: &[u8]) {
    match scene::operations::chains::open(&scene.place, A, xcp_sm::types::Mode::ReadWrite) {
        Some(disk) => {
            disk.write_at(bytes, at).unwrap();
            disk.close().unwrap();
        }
        None => {
            let path = scene.place.join(format!("{A}.{format}"));
            File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
        }
    }
}

/// Exports what the steps leave, and compares what comes back of each run with what the disk was.
fn increments(format: &str, steps: &[Step], packed: Packed) {
    let scene = scene();
    if packed == Packed::Encrypted {
        let (public, secret) = sealed::keys(&scene);
        sealed::stores_with(&scene, &format!(" recipient={public} identity={secret}"));
    }
    let mut bytes = disk(&scene, A, "web", format, 10 * MIB, &[(MIB, pattern(MIB))]);
    let (mut snapshots, mut runs) = (Vec::new(), Vec::new());
    for step in steps.iter().chain([&Step::Export, &Step::Export]) {
        match step {
            Step::Write(at, sectors, byte) => {
                let at = at * 512 % bytes.len() as u64;
                let length = (sectors * 512).min(bytes.len() as u64 - at);
                let new: Vec<u8> = (0..length).map(|n| if *byte == 0 { 0 } else { (n / 512) as u8 ^ byte }).collect();
                write(&scene, format, at, &new);
                bytes[at as usize..][..new.len()].copy_from_slice(&new);
            }
            Step::Snapshot => {
                let snapshot = sm(&scene, &["vdi_snapshot", "fast", A]).done().trim().to_owned();
                snapshots.push((snapshot, bytes.clone()));
            }
            Step::Grow(mib) => {
                sm(&scene, &["vdi_resize", "fast", A, &format!("+{mib}M")]).done();
                let info = sm(&scene, &["vdi_get_params", "fast", A, "--format", "json"]).done();
                let info: serde_json::Value = serde_json::from_str(&info).unwrap();
                bytes.resize(info["virtual_size"].as_u64().unwrap() as usize, 0);
            }
            Step::Revert(_) if snapshots.is_empty() => {}
            Step::Revert(to) => {
                let (snapshot, held) = &snapshots[to % snapshots.len()];
                sm(&scene, &["vdi_revert", "fast", A, snapshot]).done();
                bytes = held.clone();
            }
            Step::Export => {
                let is_packed = packed == Packed::Encrypted || packed == Packed::Sometimes && runs.len() % 2 == 0;
                let packing = ["none", "zstd", "gzip"][if is_packed { 1 + runs.len() / 2 % 2 } else { 0 }];
                let line = ["export", "web", "--disk", &format!("fast/{A}"), "--to", "nas", "--since", "last"];
                let more = ["--compress", packing, "--keep", "100", "--format", "table"];
                let run = backup(&scene, &[&line[..], &more].concat()).done().trim().to_owned();
                runs.push((run, bytes.clone()));
            }
        }
    }
    // Nothing changed between the last two.
    let map = fs::read_to_string(current(&scene, "nas", "web").join("disk0.map")).unwrap();
    assert_eq!(map, "", "the increment of an unchanged disk has blocks");
    let whole = backup(&scene, &["consolidate", "web", "--format", "table"]).done().trim().to_owned();
    runs.push((whole.clone(), bytes));
    // Chains that end in the middle are cut by nothing: the runs that are left stand on what they need.
    for keep in [100, 2] {
        for (run, expected) in runs.iter().rev().take(keep) {
            backup(&scene, &["verify", "web", "--run", run, "--deep"]).done();
            let line = ["import", "web", "--from", "nas", "--sr", "slow", "--run", run, "--format", "json"];
            let made: serde_json::Value = serde_json::from_str(&backup(&scene, &line).done()).unwrap();
            let vdi = made["disks"][0]["uuid"].as_str().unwrap().to_owned();
            same(&exported(&scene, &format!("slow/{vdi}")), expected);
            sm(&scene, &["vdi_delete", "slow", &vdi]).done();
        }
        // The whole one stands alone; the next increment on it leaves it and itself.
        let line = ["export", "web", "--disk", &format!("fast/{A}"), "--to", "nas", "--since", "last", "--keep", "2"];
        backup(&scene, &line).done();
        let left = names(scene.root.path().join("nas/web"));
        assert!(left.contains(&whole), "{left:?}");
        runs.retain(|(run, _)| left.contains(run));
    }
    // One snapshot of ours is left, and none after the set is gone.
    let ours = || sm(&scene, &["sr_scan", "fast"]).done().matches("backup:web:").count();
    assert_eq!(ours(), usize::from(format != "raw"));
    backup(&scene, &["undefine", "web"]).done();
    assert_eq!(ours(), 0);
}

#[test]
fn an_increment_tells_of_what_a_revert_took_back_and_of_what_was_grown() {
    let write = |mib: u64| Step::Write(mib * 2048, 2048, 3);
    for format in ["vhd", "qcow2"] {
        let reverted = [Step::Snapshot, write(6), Step::Export, Step::Revert(0), Step::Export];
        let grown = [Step::Export, Step::Grow(5), Step::Export, write(13), Step::Export, Step::Write(2048, 2048, 0)];
        let both =
            [Step::Snapshot, Step::Grow(6), write(12), Step::Export, Step::Revert(0), Step::Export, Step::Grow(6)];
        for steps in [&reverted[..], &grown, &both] {
            increments(format, steps, Packed::Sometimes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn each_increment_of_a_vhd_comes_back_as_the_disk_was(steps in proptest::collection::vec(step(), 4..11), packed in packed()) {
        increments("vhd", &steps, packed);
    }

    #[test]
    fn each_increment_of_a_qcow2_comes_back_as_the_disk_was(steps in proptest::collection::vec(step(), 4..11), packed in packed()) {
        increments("qcow2", &steps, packed);
    }

    #[test]
    fn each_increment_of_a_raw_disk_comes_back_as_the_disk_was(steps in proptest::collection::vec(step(), 4..11), packed in packed()) {
        increments("raw", &steps, packed);
    }
}

#[test]
fn an_increment_reads_what_changed_and_a_broken_chain_is_named() {
    let scene = scene();
    for format in ["vhd", "qcow2"] {
        let size = 200 * MIB;
        disk(&scene, A, "web", format, size, &[(0, pattern(64 * MIB)), (100 * MIB, pattern(64 * MIB))]);
        let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--since", "last", "--keep", "9"];
        backup(&scene, &line).done();
        write(&scene, format, 102 * MIB, &[7; 4096]);
        let words: Vec<String> = [&["backup"][..], &line].concat().iter().map(|word| (*word).to_owned()).collect();
        let trace = path(&scene, "trace");
        if has("strace") {
            let under = format!("strace -f -qq -o {trace} -e trace=pread64,read");
            scene.under(&under, &words).done();
            let read: u64 = fs::read_to_string(&trace)
                .unwrap()
                .lines()
                .filter_map(|line| line.rsplit_once(" = ")?.1.trim().parse::<u64>().ok())
                .sum();
            // One block of 128 MiB, and the tables.
            assert!(read < 8 * MIB, "{format}: {read} bytes were read");
        } else {
            scene.bare(&words).done();
        }
        let dir = current(&scene, "nas", "web");
        let map = fs::read_to_string(dir.join("disk0.map")).unwrap();
        assert_eq!(map.lines().count(), 1, "{map}");
        let first = names(scene.root.path().join("nas/web")).remove(0);
        let refused = backup(&scene, &["remove", "web", "--run", &first]).fails("EPERM");
        assert!(refused.contains("consolidate"), "{refused}");
        fs::rename(scene.root.path().join("nas/web").join(&first), scene.root.path().join("aside")).unwrap();
        for words in [
            &["verify", "web"][..],
            &["import", "web", "--from", "nas", "--sr", "slow"],
            &line,
            &["consolidate", "web", "--store", "nas"],
        ] {
            let missing = backup(&scene, words).fails("EVERIFY");
            assert!(missing.contains(&first) && missing.contains("is missing"), "{missing}");
        }
        backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "nas", "--since", "none"]).done();
        backup(&scene, &["verify", "web", "--deep"]).done();
        fs::remove_dir_all(scene.root.path().join("aside")).unwrap();
        backup(&scene, &["remove", "web"]).done();
        backup(&scene, &["undefine", "web"]).done();
        sm(&scene, &["vdi_delete", "fast/web"]).done();
    }
}

#[test]
fn a_whole_run_comes_after_so_many_increments_and_the_runs_before_go() {
    let scene = scene();
    let mut bytes = web(&scene, "qcow2");
    let export =
        ["export", "web", "--disk", "fast/web", "--to", "nas", "--since", "last", "--whole-after", "2", "--keep", "1"];
    let mut there = Vec::new();
    for round in 0..6u8 {
        write(&scene, "qcow2", u64::from(round) * MIB, &[round + 1; 512]);
        bytes[usize::from(round) * MIB as usize..][..512].fill(round + 1);
        let plan = backup(&scene, &[&export[..], &["--dry-run"]].concat()).done();
        assert_eq!(plan.contains("leave out what run"), round % 3 != 0, "round {round}: {plan}");
        backup(&scene, &export).done();
        there.push(names(scene.root.path().join("nas/web")).len() - 1);
    }
    assert_eq!(there, [1, 2, 3, 1, 2, 3]);
    let new = imported(&scene, "nas", "web", "slow");
    same(&exported(&scene, &format!("slow/{}", new[0])), &bytes);
    backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "nas", "--whole-after", "2"]).fails("EINVAL");
}

#[test]
fn a_chain_has_more_images_than_a_process_may_usually_have_open() {
    let scene = scene();
    web(&scene, "raw");
    disk(&scene, B, "data", "raw", MIB, &[(0, pattern(512))]);
    backup(&scene, &["define", "web", "--disk", "fast/web", "--disk", "fast/data"]).done();
    let export = ["export", "web", "--to", "nas", "--since", "last", "--keep", "99"];
    for _ in 0..20 {
        backup(&scene, &export).done();
    }
    // As the 1024 that systemd and a shell give, for a smaller chain.
    let few = |words: &[&str]| scene.under("prlimit --nofile=40:4096", [&["backup"], words].concat()).done();
    few(&export);
    few(&["verify", "web", "--deep"]);
    few(&["import", "web", "--from", "nas", "--sr", "slow"]);
    few(&["send", "web"]);
    few(&["consolidate", "web"]);
}

#[test]
fn a_killed_increment_leaves_no_snapshot_but_that_of_the_next() {
    killed(&["export", "web", "--to", "nas", "--since", "last", "--keep", "5"], |scene, at| {
        backup(scene, &["list"]).done();
        assert!(records(scene).is_empty(), "killed at {at}");
        backup(scene, &["verify", "web", "--deep"]).done();
        write(scene, "vhd", 3 * MIB, &[9; 512]);
        backup(scene, &["export", "web", "--to", "nas", "--since", "last", "--keep", "5"]).done();
        let ours = sm(scene, &["sr_scan", "fast"]).done().matches("backup:web:").count();
        assert_eq!(ours, 1, "killed at {at}");
        let new = imported(scene, "nas", "web", "slow");
        let bytes = exported(scene, &format!("slow/{}", new[0]));
        assert!(bytes[5 * MIB as usize..][..4096] == pattern(4096) && bytes[3 * MIB as usize] == 9, "killed at {at}");
    });
}

#[test]
fn a_disk_in_use_is_exported_live_or_not_at_all() {
    if !is_root() {
        return;
    }
    let scene = scene();
    let bytes = web(&scene, "vhd");
    disk(&scene, B, "data", "raw", 9 * MIB, &[(8 * MIB, pattern(MIB))]);
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--live"];
    sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
    backup(&scene, &line[..6]).fails("EVDIBUSY");
    backup(&scene, &line).done();
    let manifest = fs::read_to_string(current(&scene, "nas", "web").join("manifest.json")).unwrap();
    assert!(manifest.contains("\"consistency\": \"live-per-disk\""), "{manifest}");
    let new = imported(&scene, "nas", "web", "slow");
    same(&exported(&scene, &format!("slow/{}", new[0])), &bytes);
    let scan = || sm(&scene, &["sr_scan", "fast"]).done();
    assert!(!scan().contains("backup:web:"), "{}", scan());
    // The user has its lock as before.
    let info = sm(&scene, &["vdi_get_params", "fast/web"]).done();
    assert!(info.contains("vm7"), "{info}");
    // No snapshot of a raw disk that is attached can be made on this filesystem: none of the other stays.
    sm(&scene, &["vdi_attach", "fast/data"]).done();
    let before = current(&scene, "nas", "web");
    let refused = backup(&scene, &[&line[..], &["--disk", "fast/data"]].concat()).fails("ENOSNAP");
    assert!(refused.contains(&format!("disk 1, VDI {B}")), "{refused}");
    sm(&scene, &["vdi_detach", "fast/data"]).done();
    assert!(!scan().contains("backup:web:"), "{}", scan());
    assert_eq!(current(&scene, "nas", "web"), before);
    assert!(records(&scene).is_empty());
}

/// Makes a hook of this name that runs a script, in which `log` is a file.
fn hook(scene: &Scene, directory: &str, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = scene.root.path().join("run/hooks").join(directory);
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join(name);
    fs::write(&file, format!("#!/bin/sh\nlog={}\n{script}\n", path(scene, "log"))).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn log(scene: &Scene) -> String {
    fs::read_to_string(scene.root.path().join("log")).unwrap_or_default()
}

#[test]
fn hooks_have_their_variables_and_may_deny() {
    let scene = scene();
    web(&scene, "vhd");
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas"];
    hook(&scene, "backup-export-pre.d", "b", "echo b >> $log");
    hook(&scene, "backup-export-pre.d", "a", "env > $log.env; echo a $# $(cat | wc -c) >> $log");
    hook(&scene, "backup-export-pre.d", "x.sh", "echo ignored >> $log");
    hook(&scene, "backup-export-post.d", "fails", "env > $log.post; echo sorry >&2; exit 3");
    let warned = backup(&scene, &line);
    assert!(
        warned.succeeded() && warned.stderr().contains("a hook failed: ") && warned.stderr().contains("sorry"),
        "{warned}"
    );
    assert_eq!(log(&scene), "a 0 0\nb\n");
    let variables = |file: &str| -> Vec<String> {
        let text = fs::read_to_string(scene.root.path().join(file)).unwrap();
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| !["PWD=", "_=", "SHLVL="].iter().any(|it| line.starts_with(it)))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    let (env, run) = (variables("log.env"), current(&scene, "nas", "web"));
    let run = run.file_name().unwrap().to_str().unwrap();
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let mut expected = vec![
        "PATH=/sbin:/bin:/usr/sbin:/usr/bin".to_owned(),
        "SM_HOOKS_VERSION=1".to_owned(),
        "SM_HOOKS_PHASE=pre".to_owned(),
        format!("SM_HOOKS_PATH={}/run/hooks", scene.root.path().display()),
        "SM_OP_CODE=BACKUP_EXPORT".to_owned(),
        "SM_OBJECT_TYPE=DISKSET".to_owned(),
        format!("SM_HOST={host}"),
        format!("SM_DATA_DIR={}/run/backup", scene.root.path().display()),
        format!("SM_RUN_ID={run}"),
        "SM_EXPORT_MODE=local".to_owned(),
        "SM_EXPORT_STORE=nas".to_owned(),
        "SM_EXPORT_DO_PAUSE=False".to_owned(),
        "SM_PAUSE_TIMEOUT=0".to_owned(),
        "SM_REMOVE_SOURCE=False".to_owned(),
        "SM_SET_NAME=web".to_owned(),
        "SM_SET_DISK_COUNT=1".to_owned(),
        format!("SM_SET_DISK0_UUID={A}"),
        format!("SM_SET_DISK0_SR={SR}"),
        "SM_SET_DISK0_NAME=web".to_owned(),
        format!("SM_SET_DISK0_SIZE={}", 50 * MIB),
        "SM_SET_DISK0_MODE=rw".to_owned(),
        "SM_SET_DISK0_TYPE=vhd".to_owned(),
    ];
    expected.sort();
    assert_eq!(env, expected);
    let post = variables("log.post");
    for line in ["SM_HOOKS_PHASE=post", "SM_POST_RESULT=True", "SM_POST_DISK0_OK=True", "SM_POST_SET_DISK0_MODE=rw"] {
        assert!(post.iter().any(|it| it == line), "{line}: {post:?}");
    }
    hook(&scene, "backup-export-pre.d", "c", "echo not; echo today >&2; exit 1");
    let before = current(&scene, "nas", "web");
    let denied = backup(&scene, &line).fails("EHOOKDENY");
    assert!(denied.contains("not; today"), "{denied}");
    assert_eq!(current(&scene, "nas", "web"), before);
    assert_eq!(names(scene.root.path().join("nas")), [".sm-store", "web"]);
    assert!(records(&scene).is_empty());
    hook(&scene, "backup-import-pre.d", "no", "env | grep -q SM_IMPORT_STORE=nas && exit 1");
    backup(&scene, &["import", "web", "--from", "nas", "--sr", "slow"]).fails("EHOOKDENY");
    assert_eq!(names(scene.root.path().join("slow")).iter().filter(|name| !name.starts_with('.')).count(), 0);
}

#[test]
fn what_uses_the_disks_is_paused_until_the_snapshots_are_there_and_resumed_once() {
    let scene = scene();
    web(&scene, "vhd");
    sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--pause"];
    // The snapshot is there when the user goes on, and nothing was copied yet.
    let count = format!("snapshots=$(ls {} | grep -c 'vhd$')", scene.dconf());
    hook(&scene, "backup-pause.d", "vm", &format!("{count}; echo pause $snapshots >> $log"));
    hook(
        &scene,
        "backup-resume.d",
        "vm",
        &format!("{count}; echo resume $snapshots $(ls {}/web/*.new | wc -l) >> $log", path(&scene, "nas")),
    );
    backup(&scene, &line).done();
    assert_eq!(log(&scene), "pause 1\nresume 3 0\n");
    let manifest = fs::read_to_string(current(&scene, "nas", "web").join("manifest.json")).unwrap();
    assert!(manifest.contains("\"consistency\": \"paused\""), "{manifest}");
    // Also if the pause fails.
    fs::write(scene.root.path().join("log"), "").unwrap();
    hook(&scene, "backup-pause.d", "vm", "echo pause >> $log; exit 1");
    backup(&scene, &line).fails("EHOOKDENY");
    assert_eq!(log(&scene).lines().map(|line| &line[..5]).collect::<Vec<_>>(), ["pause", "resum"]);
    // A resume that fails is tried again by the next call.
    hook(&scene, "backup-pause.d", "vm", "echo pause >> $log");
    hook(&scene, "backup-resume.d", "vm", "exit 1");
    backup(&scene, &line).fails("EIO");
    assert_eq!(records(&scene).len(), 1);
    hook(&scene, "backup-resume.d", "vm", "echo again >> $log");
    backup(&scene, &["list"]).done();
    assert!(log(&scene).ends_with("again\n"), "{}", log(&scene));
    assert!(records(&scene).is_empty());
    backup(&scene, &["verify", "web", "--deep"]).done();
    assert!(!sm(&scene, &["sr_scan", "fast"]).done().contains("backup:web:"));
    // Without such programs nothing is paused, and the call says so.
    fs::remove_dir_all(scene.root.path().join("run/hooks")).unwrap();
    let warned = backup(&scene, &line);
    assert!(warned.succeeded() && warned.stderr().contains("backup-pause.d: nothing was paused"), "{warned}");
}

#[test]
fn a_killed_pause_is_ended_by_the_next_call() {
    let args: Vec<String> =
        ["backup", "export", "web", "--disk", "fast/web", "--to", "nas", "--pause"].map(str::to_owned).into();
    for n in scene::sampled() {
        let scene = scene();
        disk(&scene, A, "web", "vhd", 8 * MIB, &[(5 * MIB, pattern(4096))]);
        sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
        hook(&scene, "backup-pause.d", "vm", "echo pause >> $log");
        hook(&scene, "backup-resume.d", "vm", "echo resume >> $log");
        let killed = run(n, Points::Changing, Act::Kill, &scene.executable(), &args, &scene.root.path().join("run"));
        if killed.end != End::Killed {
            assert_eq!(killed.end, End::Status(0), "{}", String::from_utf8_lossy(&killed.stderr));
            assert!(n > 20, "only {n} points");
            break;
        }
        // The hook that ran when its caller was killed ends by itself.
        std::thread::sleep(std::time::Duration::from_millis(100));
        backup(&scene, &["list"]).done();
        let log = log(&scene);
        assert!(log.is_empty() || log.ends_with("resume\n"), "killed at {n}: {log}");
        assert!(log.matches("pause").count() <= 1, "killed at {n}: {log}");
        assert!(records(&scene).is_empty(), "killed at {n}");
        let info = sm(&scene, &["vdi_get_params", "fast/web"]).done();
        assert!(info.contains("vm7"), "killed at {n}: {info}");
        assert!(!sm(&scene, &["sr_scan", "fast"]).done().contains("backup:web:"), "killed at {n}");
    }
}
