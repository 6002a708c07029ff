//! Input and surroundings that mean harm or are broken: a clear error, nothing changed, never a panic or a hang.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use assert_cmd::Command;
use scene::filesystem::Filesystem;
use scene::{A, B, C, Door, FILE, MIB, NONE, SR, Scene, has, is_root};

#[test]
fn words_that_are_no_uuid_never_become_a_path_or_an_option() {
    let scene = Scene::file_with_a();
    let before = scene.digest();
    let long = "a".repeat(100_000);
    let words: [&[u8]; 16] = [
        b"",
        b".",
        b"..",
        b"../",
        b"../../../../etc/passwd",
        b"/etc/passwd",
        b"-",
        b"--",
        b"-rf",
        b"--yes",
        b"\n",
        b"98de866e-b035-4b1a-a571-00000000000a\n",
        b"\xff\xfe",
        b"\x1b[2J",
        b"$(reboot)",
        long.as_bytes(),
    ];
    for word in words.map(OsStr::from_bytes) {
        for (position, command) in [
            (1, vec!["sr_create", ""]),
            (1, vec!["sr_delete", ""]),
            (1, vec!["vdi_create", "", A, "1"]),
            (2, vec!["vdi_create", SR, "", "1"]),
            (3, vec!["vdi_create", SR, B, ""]),
            (2, vec!["vdi_delete", SR, ""]),
            (2, vec!["vdi_attach", SR, ""]),
            (3, vec!["vdi_clone", SR, A, ""]),
            (3, vec!["vdi_lock", SR, A, "", "user"]),
        ] {
            let mut line: Vec<&OsStr> = command.iter().map(OsStr::new).collect();
            line[position] = word;
            let dconf = format!("-d{}", scene.dconf());
            line.insert(0, OsStr::new(&dconf));
            scene.bare(&line).fails("EINVAL");
        }
    }
    scene.bare([OsStr::new(&long)]).fails("ENOMSG");
    scene.bare([OsStr::from_bytes(b"\xff")]).fails("ENOMSG|EINVAL");
    assert_eq!(scene.digest(), before);
}

#[test]
fn a_dconf_that_is_no_directory_of_its_own_is_refused() {
    let scene = Scene::empty(&FILE, Door::Driver);
    let long = format!("/{}", "a/".repeat(50_000));
    let longer_name = format!("{}/{}", scene.root.path().display(), "a".repeat(256));
    let deep = "(".repeat(100_000);
    let invalid: [&[u8]; 16] = [
        b"",
        b"x",
        b"relative/path",
        b"/",
        b"//",
        b"/.",
        b"/a/../b",
        b"/a\nb",
        b"~/sr",
        b"-o",
        b"((location . \"relative\"))",
        b"((location . \"\"))",
        b"((place . \"/srv\"))",
        b"((location",
        b"(a b)",
        deep.as_bytes(),
    ];
    for dconf in invalid.map(OsStr::from_bytes) {
        for verb in ["sr_create", "sr_delete", "sr_get_params"] {
            scene.bare([OsStr::new(verb), OsStr::new("-d"), dconf, OsStr::new(SR)]).fails("EINVAL");
        }
    }
    scene
        .bare([OsStr::new("sr_create"), OsStr::new("-d"), OsStr::from_bytes(b"/tmp/\xff"), OsStr::new(SR)])
        .fails("EINVAL");
    for dconf in [&long, &longer_name] {
        for verb in ["sr_create", "sr_get_params", "sr_attach"] {
            scene.bare([verb, "-d", dconf, SR]).fails("ENODEV");
        }
    }
}

#[test]
fn a_wait_of_any_length_is_taken() {
    let scene = Scene::file();
    for wait in ["0", "1", "18446744073709551615"] {
        scene.call(["sr_attach", SR, "--wait", wait]).done();
    }
    for wait in ["-1", "1.5", "18446744073709551616", "x"] {
        scene.call(["sr_attach", SR, "--wait", wait]).fails("EINVAL");
    }
}

#[test]
fn a_place_that_is_no_directory_is_enodev() {
    let scene = Scene::file_with_a();
    let (file, link) = (scene.root.path().join("file"), scene.root.path().join("link"));
    fs::write(&file, "mine").unwrap();
    symlink("nowhere", &link).unwrap();
    for place in [file.clone(), link, file.join("below"), scene.root.path().join("absent/below"), "/dev/null".into()] {
        let place = place.display().to_string();
        scene.bare(["sr_create", "-d", &place, SR]).fails("ENODEV");
        scene.bare(["sr_get_params", "-d", &place, SR]).fails("ENODEV|ENOSR");
        scene.bare(["vdi_create", "-d", &place, SR, B, "1"]).fails("ENODEV|ENOSR");
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

/// What may stand where a file of ours should be.
fn put(kind: &str, path: &Path) {
    let _ = fs::remove_file(path);
    match kind {
        "nothing" => {}
        "empty" => fs::write(path, "").unwrap(),
        "text" => fs::write(path, "hello\n").unwrap(),
        "binary" => fs::write(path, [0xff; 100]).unwrap(),
        "nested" => fs::write(path, "(".repeat(500_000)).unwrap(),
        "another record" => fs::write(path, "(lock (users \"x\"))\n").unwrap(),
        "huge" => fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
        "fifo" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "directory" => fs::create_dir(path).unwrap(),
        "link to a file" => symlink("/etc/passwd", path).unwrap(),
        "link to itself" => symlink(path, path).unwrap(),
        other => panic!("{other}"),
    }
}

const STRANGE: [&str; 6] = ["fifo", "socket", "directory", "link to a file", "link to itself", "nothing"];
const DAMAGED: [&str; 6] = ["empty", "text", "binary", "nested", "another record", "huge"];

#[test]
fn a_damaged_marker_is_an_error_and_never_repaired_by_guessing() {
    for kind in DAMAGED.iter().chain(&STRANGE).filter(|kind| **kind != "nothing") {
        let scene = Scene::file_with_a();
        put(kind, &scene.place.join(".sm-sr"));
        let before = scene.digest();
        for call in [
            &["sr_get_params", SR][..],
            &["sr_scan", SR],
            &["sr_attach", SR],
            &["sr_detach", SR],
            &["sr_create", SR],
            &["sr_delete", SR],
            &["vdi_create", SR, B, "1"],
            &["vdi_delete", SR, A],
            &["vdi_get_params", SR, A],
            &["sr_probe"],
        ] {
            let message = scene.call(call).fails("EIO");
            assert!(message.contains(".sm-sr"), "{kind}: {message}");
        }
        assert_eq!(scene.digest(), before, "{kind}");
    }
}

#[test]
fn damaged_params_are_an_error_of_that_vdi_which_can_be_deleted() {
    for kind in DAMAGED.iter().chain(&STRANGE).filter(|kind| **kind != "nothing") {
        let scene = Scene::file_with_a();
        scene.call(["vdi_create", SR, B, "1", "--label", "b"]).done();
        let params = scene.place.join(format!("{B}.params"));
        put(kind, &params);
        let before = scene.digest();
        for call in [
            &["vdi_get_params", SR, B][..],
            &["vdi_lock", SR, B, "FALSE", "u"],
            &["vdi_clone", SR, B, C],
            &["vdi_snapshot", SR, B, C],
        ] {
            let message = scene.call(call).fails("EIO");
            assert!(message.contains(&format!("{B}.params")), "{kind}: {message}");
        }
        scene.call(["vdi_get_params", SR, A]).done();
        let listed = scene.call(["sr_scan", SR]).done();
        assert!(listed.contains("(state . \"broken: ") && listed.contains(&format!("{B}.params")), "{kind}: {listed}");
        assert_eq!(scene.digest(), before, "{kind}");
        if DAMAGED.contains(kind) {
            scene.call(["vdi_delete", SR, B]).done();
            assert!(!params.exists());
            scene.call(["sr_scan", SR]).done();
        } else {
            for call in [&["vdi_delete", SR, B][..], &["sr_delete", SR]] {
                scene.call(call).fails("EIO");
                assert_eq!(scene.digest(), before, "{kind}: {call:?}");
            }
        }
    }
}

#[test]
fn a_damaged_lock_is_never_taken_for_an_open_one() {
    for kind in DAMAGED.iter().chain(&STRANGE) {
        let scene = Scene::file_with_a();
        scene.call(["vdi_lock", SR, A, "FALSE", "user"]).done();
        let lock = scene.place.join(format!("{A}.lock"));
        if ["nothing", "another record"].contains(kind) {
            continue;
        }
        put(kind, &lock.join("1"));
        let before = scene.digest();
        for call in [
            &["vdi_get_params", SR, A][..],
            &["vdi_delete", SR, A],
            &["vdi_lock", SR, A, "TRUE", "u"],
            &["sr_delete", SR],
        ] {
            scene.call(call).fails("EIO");
            assert_eq!(scene.digest(), before, "{kind}: {call:?}");
        }
        fs::remove_dir_all(&lock).unwrap();
        put(kind, &lock);
        if *kind != "directory" {
            scene.call(["vdi_delete", SR, A]).fails("EIO");
            scene.call(["sr_delete", SR]).fails("EIO");
            assert!(scene.image(A).exists());
        }
    }
}

#[test]
fn what_is_no_file_but_named_like_a_disk_is_neither_used_nor_left_out() {
    for kind in STRANGE.iter().filter(|kind| **kind != "nothing") {
        let scene = Scene::file_with_a();
        put(kind, &scene.image(B));
        let before = scene.digest();
        for call in [
            &["vdi_get_params", SR, B][..],
            &["vdi_attach", SR, B],
            &["vdi_detach", SR, B],
            &["vdi_delete", SR, B],
            &["vdi_resize", SR, B, "8"],
            &["vdi_clone", SR, B, C],
            &["vdi_snapshot", SR, B, C],
            &["vdi_lock", SR, B, "FALSE", "u"],
            &["sr_delete", SR],
        ] {
            let message = scene.call(call).fails("EIO");
            assert!(message.contains(&format!("{B}.raw: is not a regular file")), "{kind}: {message}");
        }
        assert!(scene.call(["sr_get_params", SR]).done().contains(B), "{kind}");
        let listed = scene.call(["sr_scan", SR]).done();
        assert!(listed.contains(&format!("broken: {}: is not a reg", scene.image(B).display())), "{kind}: {listed}");
        scene.call(["vdi_create", SR, B, "1"]).fails("EEXIST");
        scene.call(["vdi_clone", SR, A, B]).fails("EEXIST");
        assert_eq!(scene.digest(), before, "{kind}");
        scene.call(["vdi_get_params", SR, A]).done();
    }
}

#[test]
fn trees_are_changed_without_a_look_at_raw_disks() {
    let scene = Scene::file();
    scene.call(["vdi_create", SR, A, "4", "--type", "vhd"]).done();
    for snapshot in [B, C] {
        scene.call(["vdi_snapshot", SR, A, snapshot]).done();
    }
    fs::create_dir(scene.place.join(format!("{NONE}.raw"))).unwrap();
    scene.call(["vdi_delete", SR, B]).done();
    scene.call(["sr_collect", SR]).done();
    let images = scene.names().iter().filter(|name| name.ends_with(".vhd")).count();
    assert_eq!(images, 3, "A, C and their base");
    scene.call(["vdi_delete", SR, C]).done();
    scene.call(["vdi_delete", SR, A]).done();
    scene.call(["sr_attach", SR]).done();
    assert!(!scene.names().iter().any(|name| name.ends_with(".vhd")));
}

#[test]
fn foreign_files_are_neither_listed_nor_touched() {
    let scene = Scene::file_with_a();
    for i in 0..10_000 {
        fs::write(scene.place.join(format!("foreign-{i}")), "").unwrap();
    }
    for name in
        ["x.raw", "98de866e-b035-4b1a-a571-00000000000b", "98de866e-b035-4b1a-a571-00000000000b.raw.bak", ".hidden"]
    {
        fs::write(scene.place.join(name), "foreign").unwrap();
    }
    fs::write(scene.place.join(OsStr::from_bytes(b"\xff\xfe.raw")), "foreign").unwrap();
    let before = scene.digest();
    let start = std::time::Instant::now();
    let answer = scene.call(["sr_scan", SR]).done();
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    assert!(answer.contains(&format!("(VDIs \"{A}\")")), "{answer}");
    scene.call(["sr_attach", SR]).done();
    assert_eq!(scene.digest(), before);
    scene.call(["sr_delete", SR]).done();
    assert_eq!(scene.digest().len(), before.len() - 2, "all but the marker and the disk are there");
}

#[test]
fn what_another_user_may_not_see_is_eacces() {
    if !is_root() || !has("setpriv") {
        return;
    }
    // /dev/shm, where scenes are, and the executable must be within reach of nobody.
    let scene = Scene::file_with_a();
    let nobody = |args: &[&str]| {
        let run = scene.root.path().join("nobody");
        let copy = scene.root.path().join("sm-copy");
        if !copy.exists() {
            copy_executable(&copy);
            fs::create_dir(&run).unwrap();
            std::os::unix::fs::chown(&run, Some(65534), Some(65534)).unwrap();
            fs::set_permissions(scene.root.path(), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(copy).args(["-t", "file", "-d"]);
        command.arg(scene.dconf()).args(args).env("XCP_SM_RUN_DIR", run);
        scene::Outcome { line: format!("as nobody: {args:?}"), output: command.output().unwrap() }
    };
    let before = scene.digest();
    for call in [
        &["sr_get_params", SR][..],
        &["sr_scan", SR],
        &["vdi_create", SR, B, "1"],
        &["vdi_delete", SR, A],
        &["sr_delete", SR, "--yes"],
    ] {
        nobody(call).fails("EACCES");
    }
    assert_eq!(scene.digest(), before);
    // Readable, but not writable.
    fs::set_permissions(&scene.place, PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(scene.place.join(".sm-sr"), PermissionsExt::from_mode(0o644)).unwrap();
    let before = scene.digest();
    assert!(nobody(&["sr_scan", SR]).done().contains(A));
    for call in [
        &["vdi_create", SR, B, "1"][..],
        &["vdi_attach", SR, A],
        &["vdi_resize", SR, A, "8"],
        &["vdi_lock", SR, A, "FALSE", "u"],
    ] {
        nobody(call).fails("EACCES");
    }
    nobody(&["sr_delete", SR, "--yes"]).fails("EACCES");
    assert_eq!(scene.digest(), before);
    // Even of what is one's own only root makes a block device.
    for path in std::iter::once(scene.place.clone()).chain(before.into_keys()) {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    for (vdi, format) in [(B, "raw"), (C, "vhd"), (NONE, "qcow2")] {
        nobody(&["vdi_create", SR, vdi, "4", "--type", format]).done();
        for mode in [&[][..], &["--read-only"]] {
            let message = nobody(&[&["vdi_attach", SR, vdi], mode].concat()).fails("EACCES");
            assert!(message.contains("needs root") && message.contains(vdi), "{message}");
        }
    }
}

#[test]
fn a_filesystem_that_became_read_only_is_eacces_and_can_be_read() {
    if !is_root() {
        return;
    }
    let filesystem = Filesystem::new("tmpfs", 16);
    let mut scene = Scene::empty(&FILE, Door::Driver);
    scene.place = filesystem.path().join("sr");
    scene.call(["sr_create", SR]).done();
    scene.call(["vdi_create", SR, A, "4"]).done();
    scene.call(["vdi_create", SR, C, "4", "--type", "vhd"]).done();
    scene.call(["vdi_create", SR, NONE, "4", "--type", "qcow2"]).done();
    filesystem.remount("ro");
    let before = scene.digest();
    for call in [
        &["vdi_create", SR, B, "1"][..],
        &["vdi_create", SR, B, "1", "--label", "b"],
        &["vdi_delete", SR, A],
        &["vdi_resize", SR, A, "8"],
        &["vdi_clone", SR, A, B],
        &["vdi_snapshot", SR, A, B],
        &["vdi_lock", SR, A, "FALSE", "u"],
        &["vdi_attach", SR, A],
        &["vdi_attach", SR, C],
        &["vdi_attach", SR, NONE],
        &["sr_delete", SR],
    ] {
        scene.call(call).fails("EACCES");
    }
    for call in [["sr_get_params", SR], ["sr_scan", SR], ["sr_attach", SR], ["sr_detach", SR]] {
        scene.call(call).done();
    }
    let device = scene.call(["vdi_attach", SR, A, "--read-only"]).done();
    assert!(fs::read(device.trim_end()).is_ok_and(|bytes| bytes.len() as u64 == 4 * MIB));
    scene.call(["vdi_detach", SR, A]).done();
    assert_eq!(scene.digest(), before);
}

#[test]
fn a_full_filesystem_is_enospc_and_nothing_is_left_behind() {
    if !is_root() {
        return;
    }
    for kind in ["tmpfs", "ext4"] {
        let filesystem = Filesystem::new(kind, 16);
        let mut scene = Scene::empty(&FILE, Door::Driver);
        scene.place = filesystem.path().join("sr");
        scene.call(["sr_create", SR]).done();
        scene.call(["vdi_create", SR, A, "2"]).done();
        fs::write(scene.image(A), scene::pattern(2 * MIB)).unwrap();
        filesystem.fill();
        let before = scene.digest();
        for call in [
            &["vdi_create", SR, B, "1", "--label", "b"][..],
            &["vdi_clone", SR, A, B],
            &["vdi_snapshot", SR, A, B],
            &["vdi_lock", SR, A, "FALSE", "u"],
        ] {
            scene.call(call).fails("ENOSPC");
            assert_eq!(scene.digest(), before, "{kind}: {call:?}");
        }
        let other = filesystem.path().join("other").display().to_string();
        scene.bare(["sr_create", "-d", &other, SR]).fails("ENOSPC");
        assert!(!Path::new(&other).exists(), "{kind}");
        // Deleting is what helps.
        scene.call(["vdi_delete", SR, A]).done();
        filesystem.fill();
        scene.call(["sr_delete", SR]).done();
        assert!(!scene.place.exists(), "{kind}");
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_nothing_is_left_behind() {
    let scene = Scene::file_with_a();
    scene.call(["vdi_create", SR, B, "4", "--type", "vhd"]).done();
    fs::write(scene.root.path().join("disk"), scene::pattern(MIB)).unwrap();
    let before = scene.digest();
    for call in [
        "vdi_create SR NEW 8 --type vhd",
        "vdi_create SR NEW 8",
        "vdi_resize SR A 8",
        "vdi_snapshot SR B NEW",
        "vdi_import SR NEW disk",
        "vdi_export SR A out",
    ] {
        let call = call
            .replace("SR", SR)
            .replace("NEW", C)
            .replace(" B ", &format!(" {B} "))
            .replace(" A ", &format!(" {A} "));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -f 1; exec \"$0\" {call} -d \"$1\"")]);
        command.arg(scene.executable()).arg(scene.dconf()).current_dir(scene.root.path());
        let output = command.env("XCP_SM_RUN_DIR", scene.root.path().join("run")).output().unwrap();
        let message = scene::Outcome { line: call, output }.fails("EIO");
        assert!(message.contains("File too large") && message.contains("(ulimit -f)"), "{message}");
        assert_eq!(scene.digest(), before);
    }
    assert!(
        !scene.root.path().join("out").exists()
            && scene
                .root
                .path()
                .read_dir()
                .unwrap()
                .flatten()
                .all(|e| !e.file_name().to_string_lossy().starts_with("out"))
    );
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let scene = Scene::file_with_a();
    let sh = |redirection: &str| {
        let line = format!("\"$0\" sr_scan -d \"$1\" {SR} {redirection}");
        let mut command = Command::new("sh");
        command.args(["-c", &line]).arg(scene.executable()).arg(scene.dconf());
        command.env("XCP_SM_RUN_DIR", scene.root.path().join("run")).output().unwrap()
    };
    let full = sh(">/dev/full");
    assert_eq!(full.status.code(), Some(28), "as vdi_export says it");
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    let words = "EIO: cannot write the answer to standard output: ";
    assert!(said.starts_with(&words.replace("EIO", "ENOSPC")) && said.matches('\n').count() == 1, "{said}");
    let closed = sh(">&-");
    assert_eq!(closed.status.code(), Some(5));
    assert_eq!(String::from_utf8_lossy(&closed.stderr), format!("{words}it is closed\n"));
    let read_only = sh("1</dev/null");
    assert_eq!(read_only.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&read_only.stderr).starts_with(words), "{read_only:?}");
    for (redirection, status) in [
        (">/dev/null", 0),
        ("<&- 2>&-", 0),
        ("2>/dev/full", 0),
        (">&- 2>&-", 5),
        ("<&- >&- 2>&-", 5),
        (">&- 2>/dev/full", 5),
    ] {
        assert_eq!(sh(redirection).status.code(), Some(status), "{redirection}");
    }
    let before = scene.digest();
    assert_eq!(sh("; exit $?").status.code(), Some(0));
    assert_eq!(scene.digest(), before);
}

/// A record or a file that another host planted, for people and for programs; and an error that names one.
#[test]
fn names_that_others_chose_do_not_act_on_a_terminal() {
    let scene = Scene::file_with_a();
    let planted = "\u{1b}]0;x\u{7}\nrow two\u{202e}";
    let shown = r"\u{1b}]0;x\u{7}\nrow two\u{202e}";
    let record = r#"(vdi (label . "\x1b;]0;x\x7;\nrow two\x202e;"))"#;
    fs::write(scene.place.join(format!("{A}.params")), record).unwrap();
    let library = scene.root.path().join("library");
    fs::create_dir(&library).unwrap();
    fs::write(library.join(format!("{planted}.iso")), [0; 2048]).unwrap();
    let iso = |args: &[&str]| {
        let place = ["-tiso", "-d", library.to_str().unwrap()];
        let mut command = Command::new(env!("CARGO_BIN_EXE_sm"));
        command.args(place).args(args).env("XCP_SM_RUN_DIR", scene.root.path().join("run")).output().unwrap()
    };
    let answers = [
        scene.call(["sr_scan", SR, "--format", "table"]).done(),
        scene.call(["vdi_get_params", SR, A, "--format", "table"]).done(),
        scene.call(["vdi_tree", SR]).done(),
        String::from_utf8(iso(&["sr_scan", scene::OTHER_SR, "--format", "table"]).stdout).unwrap(),
        String::from_utf8(iso(&["vdi_tree", scene::OTHER_SR]).stdout).unwrap(),
        scene.call(["vdi_get_params", SR, planted]).fails("EINVAL"),
        scene.call(["vdi_import", SR, B, planted]).fails("EINVAL"),
    ];
    for answer in answers {
        assert!(answer.contains(shown), "{answer}");
        assert!(!answer.contains(['\u{1b}', '\u{7}', '\u{202e}']) && !answer.contains("\nrow"), "{answer:?}");
    }
    // The form for programs is as it was: JSON gives the label back.
    let json = scene.call(["vdi_get_params", SR, A, "--format", "json"]).done();
    let read: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(read["vdi"]["label"], planted);
}

#[test]
fn a_closed_descriptor_is_never_mistaken_for_the_disk() {
    let scene = Scene::file_with_a();
    let before = fs::read(scene.image(A)).unwrap();
    let line = format!(
        "\"$0\" vdi_create -d \"$1\" {SR} {A} 1 <&- >&- 2>&-; \"$0\" vdi_clone -d \"$1\" {SR} {A} {B} <&- >&- 2>&-"
    );
    let output = Command::new("sh")
        .args(["-c", &line])
        .arg(scene.executable())
        .arg(scene.dconf())
        .env("XCP_SM_RUN_DIR", scene.root.path().join("run"))
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(fs::read(scene.image(A)).unwrap() == before, "the disk was written to");
    assert!(fs::read(scene.image(B)).unwrap() == before, "the copy differs");
}

#[test]
fn an_sr_that_vanishes_under_a_call_is_an_error() {
    let scene = Scene::file_with_a();
    // Every call that looks into the directory again and again while it is moved away and back.
    let away = scene.root.path().join("away");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = fs::rename(&scene.place, &away);
                std::thread::yield_now();
                let _ = fs::rename(&away, &scene.place);
            }
        });
        for _ in 0..40 {
            for call in [&["sr_scan", SR][..], &["vdi_get_params", SR, A], &["vdi_resize", SR, A, "4"]] {
                let outcome = scene.call(call);
                if !outcome.succeeded() {
                    outcome.fails("ENOSR|EIO|ENOVDI");
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(scene.call(["sr_scan", SR]).done().contains(A));
}

#[test]
fn a_lock_directory_that_others_could_exchange_is_never_used() {
    if !is_root() {
        return;
    }
    let user = Some(nix::unistd::Uid::from_raw(12345));
    let scene = Scene::file_with_a();
    let locks = scene.root.path().join("run/lock");
    let refused = |dir: &Path, words: &str| {
        let before = scene.digest();
        for call in [&["vdi_create", SR, B, "1"][..], &["vdi_lock", SR, A, "FALSE", "u"], &["vdi_delete", SR, A]] {
            let message = scene.call(call).fails("EACCES");
            assert!(message.contains(&dir.display().to_string()) && message.contains(words), "{message}");
        }
        assert_eq!(scene.digest(), before);
    };
    for dir in [locks.clone(), locks.join(SR)] {
        let good = fs::metadata(&dir).unwrap().permissions();
        nix::unistd::chown(&dir, user, None).unwrap();
        refused(&dir, "belongs to uid 12345");
        nix::unistd::chown(&dir, Some(nix::unistd::Uid::from_raw(0)), None).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        refused(&dir, "every user can write to it");
        fs::set_permissions(&dir, good).unwrap();
    }
    // A link leads to where its maker wants.
    let elsewhere = scene.root.path().join("elsewhere");
    fs::rename(locks.join(SR), &elsewhere).unwrap();
    symlink(&elsewhere, locks.join(SR)).unwrap();
    scene.call(["vdi_create", SR, B, "1"]).fails_somehow();
    fs::remove_file(locks.join(SR)).unwrap();
    scene.call(["vdi_create", SR, B, "1"]).done();
}

#[test]
fn a_location_that_is_a_link_is_the_sr_that_it_leads_to() {
    let scene = Scene::file_with_a();
    let link = scene.root.path().join("link");
    symlink(&scene.place, &link).unwrap();
    let by_link = |words: &[&str]| scene.bare([&["-d", link.to_str().unwrap()], words].concat());
    let location = format!("(location . \"{}\")", link.display());
    assert!(by_link(&["sr_get_params", SR]).done().contains(&location), "it is said as it was given");
    by_link(&["vdi_create", SR, B, "4", "--type", "vhd"]).done();
    let listed = |answer: String| answer.split_once("(vdis").unwrap().1.to_owned();
    assert_eq!(listed(by_link(&["sr_scan", SR]).done()), listed(scene.call(["sr_scan", SR]).done()));
    if is_root() {
        // By either name it is the same attachment.
        let device = by_link(&["vdi_attach", SR, A]).done();
        assert_eq!(scene.call(["vdi_attach", SR, A]).done(), device);
        scene.call(["vdi_delete", SR, A]).fails("EVDIBUSY");
        scene.call(["vdi_detach", SR, A]).done();
        by_link(&["vdi_delete", SR, A]).done();
    }
    // One that is made by a link to the directory above.
    let above = scene.root.path().join("above");
    symlink(scene.root.path(), &above).unwrap();
    let other = above.join("other");
    scene.bare(["-d", other.to_str().unwrap(), "sr_create", scene::OTHER_SR]).done();
    let real = scene.root.path().join("other");
    assert!(
        scene.bare(["-d", real.to_str().unwrap(), "sr_get_params", scene::OTHER_SR]).done().contains(scene::OTHER_SR)
    );
}

#[test]
fn the_directory_of_an_sr_with_disks_is_no_empty_library_of_cds() {
    let scene = Scene::empty(&FILE, Door::Sm);
    scene.call(["sr_create", SR]).done();
    scene.call(["vdi_create", SR, A, "1"]).done();
    for verb in ["sr_create", "sr_attach", "sr_scan", "sr_get_params"] {
        let message = scene.bare(["-tiso", "-d", scene.place.to_str().unwrap(), verb, scene::OTHER_SR]).fails("ENOSR");
        assert!(message.contains(".sm-sr"), "{verb}: {message}");
    }
}

/// Copies the executable by another process: a child that a test beside this one forks meanwhile would inherit the file open
/// for writing, and it could not be executed (ETXTBSY).
fn copy_executable(to: &Path) {
    Command::new("cp").arg(env!("CARGO_BIN_EXE_sm")).arg(to).assert().success();
}

#[test]
fn a_directory_of_locks_that_another_user_could_make_first_is_refused() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let scene = Scene::file();
    let copy = scene.root.path().join("sm-copy");
    copy_executable(&copy);
    // A user of this test alone: the directory in /tmp is named after the user.
    let uid = 100_000_000 + std::process::id();
    for path in [scene.root.path().to_owned(), scene.place.clone(), scene.place.join(".sm-sr")] {
        std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
    }
    let user = |run_dir: Option<&str>| {
        let mut command = Command::new("setpriv");
        let user = uid.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(&copy).args(["-t", "file", "-d"]);
        command.arg(scene.dconf()).args(["vdi_create", SR, A, "1", "--type", "raw"]);
        command.env_remove("XCP_SM_RUN_DIR").env_remove("XDG_RUNTIME_DIR").current_dir(scene.root.path());
        run_dir.map(|dir| command.env("XCP_SM_RUN_DIR", dir));
        scene::Outcome { line: format!("as uid {uid}, run directory {run_dir:?}"), output: command.output().unwrap() }
    };
    let before = scene.digest();
    let refused = |run_dir: Option<&str>, name: &str, words: &str| {
        let message = user(run_dir).fails(name);
        assert!(message.contains(words), "{message}");
        assert_eq!(scene.digest(), before);
    };
    let own = std::path::PathBuf::from(format!("/tmp/xcp-sm-{uid}"));
    let elsewhere = scene.root.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::chown(&elsewhere, Some(uid), Some(uid)).unwrap();

    fs::create_dir(&own).unwrap();
    fs::set_permissions(&own, PermissionsExt::from_mode(0o777)).unwrap();
    refused(None, "EACCES", "it belongs to uid 0");
    std::os::unix::fs::chown(&own, Some(uid), Some(uid)).unwrap();
    refused(None, "EACCES", "its mode is 777");
    fs::remove_dir(&own).unwrap();
    symlink(&elsewhere, &own).unwrap();
    std::os::unix::fs::lchown(&own, Some(uid), Some(uid)).unwrap();
    refused(None, "EACCES", "it is no directory");
    fs::remove_file(&own).unwrap();

    refused(Some("elsewhere"), "EINVAL", "absolute path");
    fs::set_permissions(&elsewhere, PermissionsExt::from_mode(0o777)).unwrap();
    refused(elsewhere.to_str(), "EACCES", "every user can write to it");
    std::os::unix::fs::chown(&elsewhere, Some(12345), None).unwrap();
    refused(elsewhere.to_str(), "EACCES", "it belongs to uid 12345");

    user(None).done();
    let made = fs::metadata(&own).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o7777), (uid, 0o700));
    fs::remove_dir_all(&own).unwrap();
}

#[test]
fn without_proc_files_are_made_as_always() {
    if !is_root() || !has("unshare") {
        return;
    }
    let scene = Scene::file_with_a();
    let empty = scene.root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    // What is mounted in a namespace of its own ends with the call.
    let without_proc = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$1\" /proc && shift && exec \"$@\"", "sh"]).arg(&empty);
        command.arg(scene.executable()).args(scene.line(words));
        command.env("XCP_SM_RUN_DIR", scene.root.path().join("run"));
        scene::Outcome { line: format!("without /proc: {words:?}"), output: command.output().unwrap() }
    };
    without_proc(&["vdi_create", SR, B, "4", "--type", "vhd"]).done();
    without_proc(&["vdi_snapshot", SR, B, C]).done();
    assert!(scene.call(["sr_scan", SR]).done().contains(C));
}

#[test]
fn a_dangling_link_above_the_locks_is_named() {
    let scene = Scene::file();
    let (run, gone) = (scene.root.path().join("run"), scene.root.path().join("gone"));
    fs::remove_dir_all(&run).unwrap();
    symlink(&gone, &run).unwrap();
    let message = scene.call(["vdi_create", SR, B, "1"]).fails("EIO");
    let link = format!("{} is a link to {}, which does not exist", run.display(), gone.display());
    assert!(message.contains(&link) && !message.contains("File exists"), "{message}");
}
