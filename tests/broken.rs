//! An image that cannot be used concerns itself alone: the SR lists, deletes and merges everything else.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use assert_cmd::Command;
use scene::{A, B, C, Door, FILE, SR, Scene, has};

/// The VDI that is damaged.
const X: &str = "98de866e-b035-4b1a-a571-0000000000ff";

/// Ways to spoil the image of X, with what its state begins with. Each gets the directory and a good VHD image.
type Spoil = fn(&Path, &[u8]);
const KINDS: &[(&str, &str, Spoil)] = &[
    ("empty", "broken: ", |dir, _| write(dir, "vhd", b"")),
    ("cut within the header", "broken: ", |dir, good| write(dir, "vhd", &good[..700])),
    ("random", "broken: ", |dir, _| write(dir, "vhd", &scene::pattern(64 << 10))),
    ("a VHDX", "broken: ", |dir, _| write(dir, "vhd", &[b"vhdxfile".as_slice(), &[0; 70_000]].concat())),
    ("a directory", "broken: ", |dir, _| fs::create_dir(dir.join(format!("{X}.vhd"))).unwrap()),
    ("a dangling link", "broken: ", |dir, _| symlink("/nonexistent", dir.join(format!("{X}.vhd"))).unwrap()),
    ("a link to a good image", "broken: ", |dir, _| symlink(format!("{A}.vhd"), dir.join(format!("{X}.vhd"))).unwrap()),
    ("two images", "broken: ", |dir, good| {
        write(dir, "vhd", good);
        write(dir, "raw", &[0; 4096]);
    }),
    ("no qcow2", "broken: ", |dir, _| write(dir, "qcow2", &[1; 4096])),
    ("a raw one that is a directory", "broken: ", |dir, _| fs::create_dir(dir.join(format!("{X}.raw"))).unwrap()),
    ("a qcow2 with a data file", "unsupported: ", |dir, _| {
        qemu(dir, &["-o", &format!("data_file={}", dir.join("data").display())]);
    }),
    ("a qcow2 with LUKS", "unsupported: ", |dir, _| {
        let secret = ["--object", "secret,id=s,data=abc", "-o", "encrypt.format=luks,encrypt.key-secret=s"];
        qemu(dir, &[secret.as_slice(), &["-o", "encrypt.iter-time=10"]].concat());
    }),
    ("damaged params", "broken: ", |dir, good| {
        write(dir, "vhd", good);
        write(dir, "params", b"(nonsense");
    }),
];

/// Kinds of VHDs whose header can be read all the same.
const READ: &[&str] = &["two images", "damaged params"];

fn write(dir: &Path, extension: &str, bytes: &[u8]) {
    fs::write(dir.join(format!("{X}.{extension}")), bytes).unwrap();
}

fn qemu(dir: &Path, options: &[&str]) {
    let image = dir.join(format!("{X}.qcow2"));
    // On a busy machine qemu-img may find its measure of the CPU's speed, for LUKS, not accurate enough.
    for last in [false, false, false, false, true] {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]).args(options).arg(&image).arg("8M");
        let made = command.output().unwrap();
        if made.status.success() {
            return;
        }
        assert!(!last, "{}", String::from_utf8_lossy(&made.stderr));
    }
}

/// The SR with the disk A, its snapshot C, and B. All are VHDs.
fn healthy(door: Door) -> Scene {
    let scene = Scene::empty(&FILE, door);
    scene.call(["sr_create", SR]).done();
    scene.call(["vdi_create", SR, A, "8", "--type", "vhd"]).done();
    scene.call(["vdi_create", SR, B, "8", "--type", "vhd"]).done();
    scene.call(["vdi_snapshot", SR, A, C]).done();
    scene
}

fn state_of(answer: &str, vdi: &str) -> String {
    let from = answer.find(&format!("(vdi (uuid . \"{vdi}\")")).unwrap_or_else(|| panic!("{vdi} is not in {answer}"));
    let one = &answer[from..];
    let one = &one[..one[1..].find("(vdi (uuid").map_or(one.len(), |end| end + 1)];
    one.split_once("(state . \"").map_or(String::new(), |(_, rest)| rest.split('"').next().unwrap().to_owned())
}

#[test]
fn a_broken_image_is_listed_as_such_and_every_other_disk_lives_on() {
    if !has("qemu-img") {
        return;
    }
    for (kind, state, spoil) in KINDS {
        let scene = healthy(Door::Sm);
        let good = fs::read(scene.place.join(format!("{B}.vhd"))).unwrap();
        spoil(&scene.place, &good);

        let listed = scene.call(["sr_scan", SR]).done();
        assert!(state_of(&listed, X).starts_with(state), "{kind}: {listed}");
        for vdi in [A, B, C] {
            assert_eq!(state_of(&listed, vdi), "", "{kind}");
        }
        let params = scene.call(["sr_get_params", SR]).done();
        assert!(params.contains(X) && params.contains(A), "{kind}: {params}");
        assert!(scene.bare(["-tfile", &format!("-d{}", scene.dconf()), "sr_probe"]).done().contains(SR), "{kind}");
        let tree = scene.call(["--format=table", "vdi_tree", SR]).done();
        let line = tree.lines().find(|line| line.contains(X)).unwrap_or_else(|| panic!("{kind}: {tree}"));
        assert!(line.contains(state.trim_end_matches(": ")), "{kind}: {tree}");
        let table = scene.call(["--format=table", "sr_scan", SR]).done();
        assert!(table.contains(&format!("{X}: {state}")), "{kind}: {table}");

        // The other disks: made, copied, deleted, merged.
        scene.call(["vdi_clone", SR, B, "98de866e-b035-4b1a-a571-0000000000bb"]).done();
        scene.call(["vdi_delete", SR, B]).done();
        scene.call(["vdi_delete", SR, C]).done();
        // A VHD that cannot even say which parent it has may be a child of A's base.
        let unread = fs::symlink_metadata(scene.place.join(format!("{X}.vhd"))).is_ok() && !READ.contains(kind);
        if unread {
            let message = scene.call(["sr_collect", SR]).fails("EIO");
            assert!(message.contains(X), "{kind}: {message}");
        } else {
            scene.call(["sr_collect", SR]).done();
        }
        assert!(!state_of(&scene.call(["sr_scan", SR]).done(), X).is_empty(), "{kind}: it is still there");

        // It cannot be taken for a disk, and goes by its name when that is said.
        scene.call(["vdi_snapshot", SR, X, C]).fails_somehow();
        scene.call(["vdi_resize", SR, X, "16"]).fails_somehow();
        let message = scene.call(["vdi_delete", SR, X]).fails("EIO|EPERM");
        assert!(message.contains("--yes"), "{kind}: {message}");
        scene.call(["vdi_delete", "--yes", SR, X]).done();
        assert!(!scene.names().iter().any(|name| name.contains(X)), "{kind}: {:?}", scene.names());
        assert!(scene.call(["sr_scan", SR]).done().contains(A), "{kind}");
        scene.call(["sr_collect", SR]).done();
        assert_eq!(
            scene.names().iter().filter(|name| name.ends_with(".vhd")).count(),
            2,
            "{kind}: {:?}",
            scene.names()
        );
        scene.call(["vdi_create", SR, X, "8", "--type", "vhd"]).done();
    }
}

#[test]
fn a_directory_with_files_in_it_is_no_image_to_delete() {
    let scene = healthy(Door::Sm);
    fs::create_dir(scene.place.join(format!("{X}.vhd"))).unwrap();
    fs::write(scene.place.join(format!("{X}.vhd/letter")), "dear").unwrap();
    for words in [&["vdi_delete", SR, X][..], &["vdi_delete", "--yes", SR, X]] {
        let message = scene.call(words).fails("EIO");
        assert!(message.contains("move it away") && !message.contains("--yes"), "{message}");
    }
    assert_eq!(fs::read(scene.place.join(format!("{X}.vhd/letter"))).unwrap(), b"dear");
}

/// A person who reads that `--yes` deletes a disk all the same must find it so.
#[test]
fn yes_is_a_remedy_only_where_it_deletes() {
    type Spoil = fn(&Scene);
    let kinds: [(&str, bool, Spoil); 6] = [
        ("params that are junk", true, |scene| fs::write(scene.place.join(format!("{B}.params")), "junk").unwrap()),
        ("a directory in the lock", true, |scene| {
            fs::create_dir_all(scene.place.join(format!("{B}.lock/1"))).unwrap();
        }),
        ("a pipe in the place of the params of no disk", true, |scene| {
            nix::unistd::mkfifo(&scene.place.join(format!("{X}.params")), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("a directory of files in the place of the params", false, |scene| {
            fs::create_dir(scene.place.join(format!("{B}.params"))).unwrap();
            fs::write(scene.place.join(format!("{B}.params/letter")), "dear").unwrap();
        }),
        ("a damaged record of a change", false, |scene| fs::write(scene.place.join(".sm-tree"), "junk").unwrap()),
        ("a lock that someone holds, beside damaged params", false, |scene| {
            scene.call(["vdi_lock", SR, B, "FALSE", "vm7"]).done();
            fs::write(scene.place.join(format!("{B}.params")), "junk").unwrap();
        }),
    ];
    for (kind, deletes, spoil) in kinds {
        let scene = healthy(Door::Sm);
        spoil(&scene);
        let vdi = if kind.contains("no disk") { X } else { B };
        let before = scene.digest();
        let message = scene.call(["vdi_delete", SR, vdi]).fails("EIO|EVDIBUSY");
        assert_eq!(message.contains("--yes"), deletes, "{kind}: {message}");
        assert_eq!(scene.digest(), before, "{kind}");
        if deletes {
            scene.call(["vdi_delete", "--yes", SR, vdi]).done();
            assert!(!scene.names().iter().any(|name| name.contains(vdi)), "{kind}: {:?}", scene.names());
            scene.call(["vdi_create", SR, vdi, "8", "--type", "vhd"]).done();
        } else {
            scene.call(["vdi_delete", "--yes", SR, vdi]).fails("EIO|EVDIBUSY");
            assert_eq!(scene.digest(), before, "{kind}");
        }
    }
}

/// What no program of this package put there keeps neither a disk nor an SR from being deleted, and is not destroyed.
#[test]
fn a_directory_inside_a_lock_does_not_stop_a_deletion_half_way() {
    for files in [false, true] {
        let scene = healthy(Door::Sm);
        for vdi in [A, B] {
            scene.call(["vdi_lock", SR, vdi, "FALSE", "u"]).done();
            scene.call(["vdi_unlock", SR, vdi, "FALSE", "u"]).done();
            fs::create_dir(scene.place.join(format!("{vdi}.lock/sub"))).unwrap();
            if files {
                fs::write(scene.place.join(format!("{vdi}.lock/sub/letter")), "dear").unwrap();
            }
            for name in ["01", "+7"] {
                fs::write(scene.place.join(format!("{vdi}.lock/{name}")), "junk").unwrap();
            }
        }
        scene.call(["vdi_get_params", SR, A]).done();
        scene.call(["vdi_delete", SR, B]).done();
        scene.call(["vdi_get_params", SR, B]).fails("ENOVDI");
        scene.call(["vdi_create", SR, B, "8", "--type", "vhd"]).done();
        scene.call(["sr_delete", SR, "--yes"]).done();
        scene.call(["sr_get_params", SR]).fails("ENOSR");
        let letters = scene.digest().keys().filter(|path| path.ends_with("letter")).count();
        assert_eq!(letters, if files { 2 } else { 0 });
        assert_eq!(scene.place.exists(), files);
    }
}

/// The UUID of A's base.
fn base(scene: &Scene) -> String {
    let names = scene.names();
    let known = [A, B, C, X];
    let name = names.iter().find(|name| {
        (name.ends_with(".vhd") || name.ends_with(".qcow2")) && !known.iter().any(|vdi| name.starts_with(vdi))
    });
    name.and_then(|name| name.split_once('.')).unwrap_or_else(|| panic!("no base in {names:?}")).0.to_owned()
}

#[test]
fn a_disk_whose_parent_is_missing_says_so_and_is_no_root() {
    let scene = healthy(Door::Sm);
    let base = base(&scene);
    let away = scene.root.path().join("away");
    fs::rename(scene.place.join(format!("{base}.vhd")), &away).unwrap();
    let listed = scene.call(["sr_scan", SR]).done();
    for vdi in [A, C] {
        assert_eq!(state_of(&listed, vdi), format!("parent missing: {base}"));
        let one = scene.call(["vdi_get_params", SR, vdi]).done();
        assert_eq!(state_of(&one, vdi), format!("parent missing: {base}"));
    }
    let tree = scene.call(["--format=table", "vdi_tree", SR]).done();
    assert!(tree.lines().filter(|line| line.contains("parent missing")).count() == 2, "{tree}");
    let digest = scene.digest();
    let message = scene.call(["vdi_snapshot", SR, A, X]).fails("EIO");
    assert!(message.contains(&base), "{message}");
    scene.call(["sr_collect", SR]).done();
    assert_eq!(scene.digest(), digest);

    // Another image under the parent's name is not the parent.
    fs::copy(scene.place.join(format!("{B}.vhd")), scene.place.join(format!("{base}.vhd"))).unwrap();
    let listed = scene.call(["sr_scan", SR]).done();
    assert!(state_of(&listed, A).starts_with(&format!("parent missing: {base} is another image")), "{listed}");
    let digest = scene.digest();
    scene.call(["vdi_snapshot", SR, A, X]).fails("EIO");
    assert_eq!(scene.digest(), digest);

    fs::rename(away, scene.place.join(format!("{base}.vhd"))).unwrap();
    assert_eq!(state_of(&scene.call(["sr_scan", SR]).done(), A), "");
}

#[test]
fn a_damaged_child_keeps_its_parent_from_being_merged_and_removed() {
    let scene = healthy(Door::Sm);
    let base = base(&scene);
    // The checksum of the header of C is wrong; its parent's name can be read.
    let image = fs::OpenOptions::new().write(true).open(scene.place.join(format!("{C}.vhd"))).unwrap();
    image.write_all_at(&[0xff; 4], 512 + 0x24).unwrap();
    assert!(state_of(&scene.call(["sr_scan", SR]).done(), C).starts_with("broken: "));
    let before = fs::read(scene.place.join(format!("{base}.vhd"))).unwrap();
    scene.call(["sr_collect", SR]).done();
    assert!(fs::read(scene.place.join(format!("{base}.vhd"))).unwrap() == before, "the base was merged into");
    scene.call(["vdi_delete", SR, A]).done();
    assert!(fs::read(scene.place.join(format!("{base}.vhd"))).unwrap() == before, "the base of a damaged image went");
    scene.call(["sr_attach", SR]).done();
    assert!(scene.place.join(format!("{base}.vhd")).exists());
    // Now it is the only child of its base, and would be merged; before, there was nothing to merge.
    let message = scene.call(["sr_collect", SR]).fails("EIO");
    assert!(message.contains(C) && message.contains("it is not merged"), "{message}");
    // Deleted by name, it needs the base no longer, and sr_collect removes that.
    scene.call(["vdi_delete", "--yes", SR, C]).done();
    scene.call(["sr_collect", SR]).done();
    assert!(!scene.place.join(format!("{base}.vhd")).exists());
}

/// All the data of a disk may be in its base, and a copy of its small leaf may bring it back.
#[test]
fn a_child_that_cannot_be_read_keeps_every_base_of_its_format() {
    for format in ["vhd", "qcow2"] {
        let scene = Scene::empty(&FILE, Door::Sm);
        scene.call(["sr_create", SR]).done();
        scene.call(["vdi_create", SR, A, "8", "--type", format]).done();
        scene.call(["vdi_snapshot", SR, A, C]).done();
        scene.call(["vdi_create", SR, B, "8", "--type", format]).done();
        scene.call(["vdi_snapshot", SR, B, X]).done();
        let image = |vdi: &str| scene.place.join(format!("{vdi}.{format}"));
        let good = fs::read(image(A)).unwrap();
        let with_disks = [A, B, C, X].map(|vdi| format!("{vdi}.{format}"));
        let bases = || -> Vec<(String, Vec<u8>)> {
            let names = scene.names().into_iter().filter(|name| name.ends_with(format) && !with_disks.contains(name));
            names.map(|name| (name.clone(), fs::read(scene.place.join(name)).unwrap())).collect()
        };
        let before = bases();
        assert_eq!(before.len(), 2);
        let spoils: [&dyn Fn(); 3] = [
            &|| fs::write(image(A), b"").unwrap(),
            &|| fs::write(image(A), [vec![0; 2048], good[2048..].to_vec()].concat()).unwrap(),
            &|| {
                fs::remove_file(image(A)).unwrap();
                symlink("/nonexistent", image(A)).unwrap();
            },
        ];
        // One child of A's base is left: with A unread, it is not taken for the only one.
        for spoil in spoils {
            spoil();
            scene.call(["sr_collect", SR]).fails("EIO");
            assert!(bases() == before, "{format}");
        }
        scene.call(["vdi_delete", SR, C]).done();
        scene.call(["vdi_delete", SR, X]).done();
        assert!(bases() == before, "{format}");
        let message = scene.call(["sr_collect", SR]).fails("EIO");
        assert!(message.contains(&format!("{A} cannot be read")), "{format}: {message}");
        scene.call(["sr_attach", SR]).done();
        assert!(bases() == before, "{format}");
        fs::remove_file(image(A)).unwrap();
        fs::write(image(A), good).unwrap();
        assert_eq!(state_of(&scene.call(["sr_scan", SR]).done(), A), "");
        scene.call(["sr_collect", SR]).done();
        assert_eq!(bases().len(), 0, "{format}: both are merged");
    }
}

/// Some bytes of a header went. Either the disk shows what it held all the same, or all that it needs is still there when a
/// copy of its small image is put back.
#[test]
fn a_child_whose_header_lost_some_bytes_loses_nothing_else() {
    let (vhd, qcow2) =
        ([0, 512, 536, 552, 576, 578, 1024, 1088], [0, 4, 8, 12, 16, 20, 24, 32, 36, 40, 48, 56, 96, 100, 104, 112]);
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    fs::write(&data, vec![7; 8 << 20]).unwrap();
    for (format, offset) in vhd.map(|at| ("vhd", at)).into_iter().chain(qcow2.map(|at| ("qcow2", at))) {
        for count in [4, 16, 512] {
            let scene = Scene::empty(&FILE, Door::Sm);
            scene.call(["sr_create", SR]).done();
            scene.call(["vdi_import", SR, A, data.to_str().unwrap(), "--type", format]).done();
            scene.call(["vdi_snapshot", SR, A, C]).done();
            let image = scene.place.join(format!("{A}.{format}"));
            let good = fs::read(&image).unwrap();
            fs::OpenOptions::new().write(true).open(&image).unwrap().write_all_at(&vec![0; count], offset).unwrap();
            for call in [vec!["vdi_delete", SR, C], vec!["sr_collect", SR], vec!["sr_attach", SR]] {
                let _ = scene.call(call).status();
            }
            let copy = scratch.path().join("copy");
            let shows_all = || {
                let _ = fs::remove_file(&copy);
                let export = scene.call(["vdi_export", SR, A, copy.to_str().unwrap(), "--type", "raw"]);
                export.succeeded() && fs::read(&copy).unwrap() == fs::read(&data).unwrap()
            };
            if !shows_all() {
                fs::write(&image, &good).unwrap();
                assert!(shows_all(), "{format}: {count} bytes at {offset}");
            }
        }
    }
}

/// Files that got each other's names by hand get them back once that is seen. Until then nothing goes that a disk needs.
#[test]
fn images_that_changed_their_names_lose_nothing() {
    for format in ["vhd", "qcow2"] {
        for (calls, of_own_tree) in [["sr_attach", "sr_collect"], ["sr_collect", "sr_attach"]]
            .into_iter()
            .flat_map(|calls| [(calls, true), (calls, false)])
        {
            let scene = Scene::empty(&FILE, Door::Sm);
            scene.call(["sr_create", SR]).done();
            scene.call(["vdi_create", SR, A, "8", "--type", format]).done();
            scene.call(["vdi_snapshot", SR, A, C]).done();
            let base = base(&scene);
            scene.call(["vdi_create", SR, B, "8", "--type", format]).done();
            scene.call(["vdi_snapshot", SR, B, X]).done();
            let leaf = if of_own_tree { A } else { B };
            let [leaf_image, base_image, aside] =
                [leaf, &base, "aside"].map(|name| scene.place.join(format!("{name}.{format}")));
            let swap = || {
                fs::rename(&leaf_image, &aside).unwrap();
                fs::rename(&base_image, &leaf_image).unwrap();
                fs::rename(&aside, &base_image).unwrap();
            };
            let images = || {
                let names = scene.names().into_iter().filter(|name| name.ends_with(format));
                names.map(|name| (name.clone(), fs::read(scene.place.join(name)).unwrap())).collect::<Vec<_>>()
            };
            let before = images();
            swap();
            for call in calls {
                let _ = scene.call([call, SR]).status();
            }
            let message = scene.call(["sr_collect", SR]).fails("EIO");
            assert!(message.contains("give the images their names back"), "{message}");
            let message = scene.call(["vdi_delete", SR, leaf]).fails("EVDIBUSY");
            assert!(message.contains("give them their names back"), "{message}");
            swap();
            assert!(images() == before, "{format} {calls:?} {of_own_tree}");
            scene.call(["vdi_delete", SR, A]).done();
            scene.call(["vdi_delete", SR, C]).done();
            assert!(!base_image.exists(), "{format}: with their names back, nothing is kept any more");
        }
    }
}

/// Which of two images is the disk is not known, so each may have its own parent.
#[test]
fn every_image_of_a_vdi_that_has_several_keeps_the_bases_of_its_format() {
    for second in ["raw", "qcow2"] {
        let scene = healthy(Door::Sm);
        let base = scene.place.join(format!("{}.vhd", base(&scene)));
        let before = fs::read(&base).unwrap();
        fs::write(scene.place.join(format!("{A}.vhd")), b"").unwrap();
        fs::write(scene.place.join(format!("{A}.{second}")), vec![0; 4096]).unwrap();
        scene.call(["vdi_delete", SR, C]).done();
        let message = scene.call(["sr_collect", SR]).fails("EIO");
        assert!(message.contains(&format!("{A} cannot be read")), "{second}: {message}");
        scene.call(["sr_attach", SR]).done();
        assert!(fs::read(&base).is_ok_and(|now| now == before), "{second}");
    }
}

/// Neither of the images is removed: which of them is the base is not known.
#[test]
fn a_base_that_has_two_images_is_told_and_stays() {
    for with_unread in [true, false] {
        let scene = healthy(Door::Sm);
        let base = base(&scene);
        scene.call(["vdi_delete", SR, C]).done();
        if with_unread {
            fs::write(scene.place.join(format!("{A}.vhd")), b"").unwrap();
        } else {
            fs::remove_file(scene.place.join(format!("{A}.vhd"))).unwrap();
        }
        let images = ["vhd", "raw"].map(|format| scene.place.join(format!("{base}.{format}")));
        fs::write(&images[1], vec![0; 4096]).unwrap();
        let message = scene.call(["sr_collect", SR]).fails("EIO");
        assert!(message.contains("the VDI has two images"), "{message}");
        assert!(images.iter().all(|image| image.exists()));
    }
}

/// The Python storage managers collect with journals: `coalesce_…`, `relink_…`, `leaf_…`. During the last, the image that becomes
/// the disk is hidden and has no child.
#[test]
fn what_another_collector_has_begun_is_left_to_it() {
    for prefix in ["coalesce", "relink", "leaf"] {
        let scene = healthy(Door::Sm);
        scene.call(["vdi_delete", SR, C]).done();
        let base = base(&scene);
        let journal = scene.place.join(format!("{prefix}_{A}"));
        fs::write(&journal, "1").unwrap();
        // As the leaf is called while the base takes its name.
        let away = scene.place.join(format!("OLD_{A}.vhd"));
        fs::rename(scene.place.join(format!("{A}.vhd")), &away).unwrap();
        let digest = scene.digest();
        for call in [&["sr_collect", SR][..], &["sr_collect", "--dry-run", SR]] {
            let message = scene.call(call.iter().copied()).fails("ESRBUSY");
            assert!(message.contains("left a journal"), "{message}");
        }
        assert!(scene.call(["sr_check", SR]).done().contains("left a journal"));
        assert_eq!(scene.digest(), digest, "{prefix}: {base} stays");
        // It was finished, or undone.
        fs::rename(&away, scene.place.join(format!("{A}.vhd"))).unwrap();
        fs::remove_file(&journal).unwrap();
        scene.call(["sr_collect", SR]).done();
        assert!(!scene.names().contains(&format!("{base}.vhd")), "{prefix}: {base} was not merged");
    }
}

#[test]
fn the_collector_goes_on_after_a_failure_and_tells_each_once() {
    let scene = healthy(Door::Sm);
    scene.call(["vdi_create", SR, X, "8", "--type", "qcow2"]).done();
    let snapshot = "98de866e-b035-4b1a-a571-0000000000aa";
    scene.call(["vdi_snapshot", SR, B, snapshot]).done();
    // A's snapshot goes, and A's own image is damaged: it cannot be merged with its base. B's can.
    scene.call(["vdi_delete", SR, C]).done();
    scene.call(["vdi_delete", SR, snapshot]).done();
    let bad = scene.place.join(format!("{A}.vhd"));
    let good = fs::read(&bad).unwrap();
    let image = fs::OpenOptions::new().write(true).open(&bad).unwrap();
    image.write_all_at(&[0xff; 4], 512 + 0x24).unwrap();
    let message = scene.call(["sr_collect", SR]).fails("EIO");
    assert_eq!(message.matches(&format!("{A}: ")).count(), 1, "{message}");
    assert!(!message.contains(B), "{message}");
    let tree = scene.call(["--format=table", "vdi_tree", SR]).done();
    let of_b = tree.lines().find(|line| line.contains(B)).unwrap();
    assert!(!of_b.starts_with(' '), "B was merged with its base: {tree}");
    // And again, and it is merged once it is whole.
    scene.call(["sr_collect", SR]).fails("EIO");
    fs::write(&bad, good).unwrap();
    scene.call(["sr_collect", SR]).done();
    assert_eq!(scene.names().iter().filter(|name| name.ends_with(".vhd")).count(), 2, "{:?}", scene.names());
}
