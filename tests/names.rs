//! Names instead of UUIDs: the table of SRs, the labels of VDIs, and what a person may leave out.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_types,
    reason = "a test ends where it cannot go on, and starts other programs directly"
)]

mod scene;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use assert_cmd::Command;
use scene::kill::{Act, End, Points, run};
use scene::{A, B, C, Door, FILE, Outcome, SR, Scene};

fn empty() -> Scene {
    Scene::empty(&FILE, Door::Sm)
}

/// A scene with a file SR that has the name `fast`.
fn named() -> Scene {
    let scene = empty();
    sm(&scene, &["sr_create", "--name", "fast", "-t", "file", "-d", &scene.dconf(), SR]).done();
    scene
}

fn sm(scene: &Scene, words: &[&str]) -> Outcome {
    scene.bare(words)
}

/// The same with a default SR.
fn sm_of(scene: &Scene, sr: &str, words: &[&str]) -> Outcome {
    let mut command = Command::new(scene.executable());
    command.args(words).env("XCP_SM_RUN_DIR", run_dir(scene)).env("XCP_SM_SR", sr);
    Outcome { line: words.join(" "), output: command.output().unwrap() }
}

fn run_dir(scene: &Scene) -> PathBuf {
    scene.root.path().join("run")
}

fn entry(scene: &Scene, name: &str) -> PathBuf {
    run_dir(scene).join("sr.d").join(format!("{name}.conf"))
}

/// Writes an entry as an administrator would.
fn write_entry(scene: &Scene, name: &str, text: &str, mode: u32) {
    let path = entry(scene, name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn uuid(printed: String) -> String {
    let uuid = printed.strip_suffix('\n').unwrap().to_owned();
    assert!(uuid.len() == 36 && !uuid.contains('\n'), "{uuid}");
    uuid
}

#[test]
fn an_sr_with_a_name_is_called_by_it() {
    let scene = empty();
    let sr = uuid(sm(&scene, &["sr_create", "--name", "fast", "-t", "file", "-d", &scene.dconf()]).done());
    let text = fs::read_to_string(entry(&scene, "fast")).unwrap();
    assert_eq!(text, format!("UUID={sr}\nTYPE=file\nDCONF={}\n", scene.dconf()));
    assert_eq!(fs::metadata(entry(&scene, "fast")).unwrap().permissions().mode() & 0o777, 0o644);

    let vdi = uuid(sm(&scene, &["vdi_create", "fast", "20G", "--label", "web"]).done());
    let expected = scene.call(["vdi_get_params", &sr, &vdi]).done();
    assert!(expected.contains("(virtual_size . 21474836480)"), "{expected}");
    for words in [&["fast", "web"][..], &["fast/web"], &["fast", &vdi[..4]], &[&sr, &vdi], &[&sr, "web"]] {
        assert_eq!(sm(&scene, &[&["vdi_get_params"], words].concat()).done(), expected, "{words:?}");
    }
    for words in [&["web"][..], &["fast/web"], &["fast", "web"], &[&vdi]] {
        assert_eq!(sm_of(&scene, "fast", &[&["vdi_get_params"], words].concat()).done(), expected, "{words:?}");
    }
    assert_eq!(sm_of(&scene, &sr, &["vdi_get_params", "web"]).done(), expected);
    // -t and -d are there, and the VDI has its label all the same.
    assert_eq!(scene.call(["vdi_get_params", &sr, "web"]).done(), expected);

    let copy = uuid(sm(&scene, &["vdi_clone", "fast/web"]).done());
    let snapshot = uuid(sm_of(&scene, "fast", &["vdi_snapshot", &copy]).done());
    sm(&scene, &["vdi_resize", "fast", &copy, "+1.5G"]).done();
    let answer = sm(&scene, &["vdi_get_params", "fast", &copy]).done();
    assert!(answer.contains("(virtual_size . 23085449216)"), "{answer}");
    sm(&scene, &["vdi_delete", "fast", &copy, &snapshot]).done();
    assert_eq!(sm(&scene, &["vdi_get_params", "fast", &copy]).fails("ENOVDI").matches(&copy).count(), 1);

    sm(&scene, &["sr_delete", "fast", "--yes"]).done();
    assert!(!entry(&scene, "fast").exists());
    sm(&scene, &["sr_delete", "fast"]).fails("ENOSR");
}

#[test]
fn a_word_for_something_new_is_what_it_is_called() {
    let scene = empty();
    let place = ["-t", "file", "-d", &scene.dconf()].map(str::to_owned);
    let place: Vec<&str> = place.iter().map(String::as_str).collect();
    let sr = uuid(sm(&scene, &[&["sr_create", "fast"], &place[..]].concat()).done());
    assert!(fs::read_to_string(entry(&scene, "fast")).unwrap().contains(&sr));
    for (line, label) in [
        (&["vdi_create", "fast", "web", "1M"][..], "web"),
        (&["vdi_create", "fast/db", "1M"], "db"),
        (&["vdi_snapshot", "fast/web", "before"], "before"),
        (&["vdi_clone", "fast", "web", "copy"], "copy"),
        (&["vdi_copy", "fast/db", "fast/moved"], "moved"),
    ] {
        let vdi = uuid(sm(&scene, line).done());
        let info = sm(&scene, &["vdi_get_params", &format!("fast/{label}")]).done();
        assert!(info.contains(&vdi) && info.contains(&format!("(label . \"{label}\")")), "{line:?}: {info}");
    }
    // A UUID with a digit that is missing or wrong is no label, nor is nothing or an address in another SR; a place is no name.
    for word in [&A[..35], &format!("{}g", &A[..35]), &A.replace('-', "_"), &format!("{{{A}}}"), "", "slow/web"] {
        let refused = sm(&scene, &["vdi_create", "fast", word, "1M"]).fails("EINVAL");
        assert!(refused.contains("expected a UUID such as"), "{word}: {refused}");
    }
    let refused = sm(&scene, &["sr_create", "-t", "file", &scene.dconf()]).fails("EINVAL");
    assert!(refused.ends_with("the place of an SR is said by -d"), "{refused}");
}

/// A name that an SR has never stands for another place, whatever the line says of one.
#[test]
fn a_name_stays_with_the_place_that_it_leads_to() {
    let scene = named();
    sm(&scene, &["vdi_create", "fast", A, "1M", "--label", "web"]).done();
    let other = scene.root.path().join("other").display().to_string();
    let refused = sm(&scene, &["sr_create", "fast", "-t", "file", "-d", &other]).fails("EEXIST");
    assert!(refused.contains("sm sr_name fast --forget") && !Path::new(&other).exists(), "{refused}");
    // A copy of the SR, as a restored backup is one: what is done there leaves the name alone.
    fs::create_dir(&other).unwrap();
    for file in fs::read_dir(&scene.place).unwrap() {
        let file = file.unwrap().path();
        if file.is_file() {
            fs::copy(&file, Path::new(&other).join(file.file_name().unwrap())).unwrap();
        }
    }
    let attached = sm(&scene, &["sr_attach", "fast", "-d", &other]);
    let said = String::from_utf8(attached.output.stderr).unwrap();
    assert!(said.contains(&format!("the name fast still leads to {}", scene.dconf())), "{said}");
    sm(&scene, &["sr_delete", "fast", "-t", "file", "-d", &other, "--yes"]).done();
    sm(&scene, &["vdi_get_params", "fast/web"]).done();
    // By another spelling of its own place it is deleted, and its name with it.
    let spelling = format!("{}/.", scene.dconf());
    sm(&scene, &["sr_delete", "fast", "-t", "file", "-d", &spelling, "--yes"]).done();
    assert!(!entry(&scene, "fast").exists());
}

#[test]
fn a_disk_of_another_sr_than_the_line_names_is_never_deleted() {
    let scene = named();
    let slow = scene.root.path().join("slow").display().to_string();
    sm(&scene, &["sr_create", "--name", "slow", "-t", "file", "-d", &slow]).done();
    let in_both = || {
        for sr in ["fast", "slow"] {
            sm(&scene, &["vdi_get_params", sr, "web"]).done();
        }
    };
    for sr in ["fast", "slow"] {
        sm(&scene, &["vdi_create", sr, "1M", "--label", "web"]).done();
    }
    sm(&scene, &["vdi_delete", "fast", "slow/web"]).fails("ENOVDI");
    sm(&scene, &["vdi_delete", SR, "slow/web"]).fails("ENOVDI");
    sm(&scene, &["vdi_delete", "slwo", "fast/web"]).fails("ENOSR");
    in_both();
    // The first word may be a mistyped SR: nothing is done in the default one.
    let refused = sm_of(&scene, "fast", &["vdi_delete", "slwo", "web"]).fails("ENOVDI");
    assert!(refused.contains("slwo"), "{refused}");
    in_both();
    // A label with a slash is one of its own SR.
    sm(&scene, &["vdi_create", "fast", "1M", "--label", "slow/web"]).done();
    sm(&scene, &["vdi_delete", "fast", "slow/web"]).done();
    in_both();
    sm(&scene, &["vdi_delete", "fast/web", "slow/web"]).done();
}

#[test]
fn a_word_of_another_tool_is_answered_with_that_of_sm() {
    let scene = named();
    for (line, name, hint) in [
        (&["vdi_list", "fast"][..], "ENOMSG", "did you mean sr_scan?"),
        (&["ls"], "ENOMSG", "did you mean sr_scan or sr_list?"),
        (&["devices", "/dev/sda"], "ENOMSG", "did you mean why /dev/sda?"),
        (&["vdi_create", "fast", "1M", "--name", "web"], "EINVAL", "--label gives a VDI its name"),
        (&["vdi_create", "fast", "1M", "--format", "qcow2"], "EINVAL", "--type is the format of a disk"),
        (&["vdi_create", "fast", "1M", "-t", "qcow2"], "EINVAL", "the format of a disk is said by --type"),
        (&["vdi_create", "fast", "--size", "1M"], "EINVAL", "SIZE is a word"),
        (&["sr_create", "--label", "x"], "EINVAL", "--name gives an SR its name"),
        (&["vdi_attach", "web"], "EINVAL", "a disk is said with its SR, as in fast/web"),
    ] {
        let refused = sm(&scene, line).fails(name);
        assert!(refused.contains(hint), "{line:?}: {refused}");
    }
}

#[test]
fn calls_with_every_uuid_answer_as_they_always_did() {
    let scene = named();
    let place = scene.dconf();
    let placed = |words: &[&str]| scene.bare([words, &["-t", "file", "-d", &place]].concat());
    assert_eq!(placed(&["vdi_create", SR, A, "1", "--label", "a"]).done(), "");
    assert_eq!(placed(&["vdi_snapshot", SR, A, B]).done(), "");
    // A label that is another's UUID is never looked at.
    assert_eq!(placed(&["vdi_create", SR, scene::C, "1", "--label", B]).done(), "");
    assert!(placed(&["vdi_get_params", SR, B]).done().contains("(label . \"a\")"));
    // A table that cannot be used is no matter of theirs.
    fs::set_permissions(entry(&scene, "fast").parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(placed(&["vdi_delete", SR, scene::C]).done(), "");
    assert_eq!(placed(&["sr_delete", SR, "--yes"]).done(), "");
}

#[test]
fn a_word_that_may_be_one_of_two_vdis_is_refused_with_both() {
    let scene = named();
    for vdi in [A, B] {
        sm(&scene, &["vdi_create", "fast", vdi, "1M", "--label", "web"]).done();
    }
    let before = scene.digest();
    for word in ["web", "98de", &A[..35]] {
        let message = sm(&scene, &["vdi_delete", "fast", word]).fails("EINVAL");
        assert!(
            message.contains(&format!("2 VDIs have it: {A} (web), {B} (web); use a UUID or the start of one")),
            "{message}"
        );
    }
    for word in ["98d", "we", "WEB", ""] {
        sm(&scene, &["vdi_delete", "fast", word]).fails("ENOVDI|EINVAL");
    }
    assert_eq!(scene.digest(), before);
    // One is refused, the others are done, and the status is that of the first failure.
    let outcome = sm(&scene, &["vdi_delete", "fast", "none", A, "fast/nothing"]);
    assert_eq!((outcome.status(), outcome.stderr().lines().count()), (101, 2), "{outcome}");
    assert_eq!(sm(&scene, &["vdi_delete", "fast/web"]).done(), "");
    assert!(sm(&scene, &["sr_scan", "fast"]).done().contains("(VDIs)"));
}

#[test]
fn a_name_that_no_sr_has_is_told_with_the_nearest() {
    let scene = named();
    let message = sm(&scene, &["sr_scan", "fats"]).fails("ENOSR");
    assert_eq!(message, "no SR has the name fats on this host; did you mean fast? `sm sr_list` lists them");
    let message = sm(&scene, &["sr_scan", "slow"]).fails("ENOSR");
    assert_eq!(message, "no SR has the name slow on this host; SRs with a name are fast; `sm sr_list` lists all");
    // A UUID of no SR is told as such, and how an SR of that UUID gets a name.
    for line in [&["sr_scan", scene::OTHER_SR][..], &["vdi_copy", "fast/x", scene::OTHER_SR, A]] {
        let message = sm(&scene, line).fails("ENOSR|ENOVDI");
        if line.len() == 2 {
            assert!(message.starts_with(&format!("no SR {} is known on this host", scene::OTHER_SR)), "{message}");
            assert!(
                message.contains("sm sr_attach --name NAME -d DCONF 87b8") && message.contains("fast"),
                "{message}"
            );
        }
    }
    let message = sm(&scene, &["sr_scan"]).fails("EINVAL");
    assert!(message.starts_with("<SR> is missing; SRs with a name are fast; "), "{message}");
    for bad in ["../fast", "fast/", "-", "a b"] {
        let message = sm(&scene, &["sr_scan", "--", bad]).fails("EINVAL");
        assert!(message.contains("expected a UUID, or a name"), "{message}");
        sm(&scene, &["sr_create", "--name", bad, "-t", "file", "-d", &scene.dconf()]).fails("EINVAL");
    }
}

#[test]
fn a_name_belongs_to_one_sr() {
    let scene = named();
    let other = scene.root.path().join("other");
    let create = |name: &str| sm(&scene, &["sr_create", "--name", name, "-t", "file", "-d", other.to_str().unwrap()]);
    let before = fs::read(entry(&scene, "fast")).unwrap();
    let message = create("fast").fails("EEXIST");
    assert!(message.starts_with(&format!("the name fast is that of SR {SR}, of type file at ")), "{message}");
    assert!(!other.exists());
    assert_eq!(fs::read(entry(&scene, "fast")).unwrap(), before);
    // An SR that is there stays, and a name of a refused one does not.
    sm(&scene, &["sr_create", "--name", "fast", "-t", "file", "-d", &scene.dconf()]).fails("EEXIST");
    sm(&scene, &["sr_create", "--name", "slow", "-t", "file", "-d", &scene.dconf()]).fails("EBUSY");
    sm(&scene, &["sr_create", "--name", "slow", "-t", "file", "-d", "relative"]).fails("EINVAL");
    assert!(entry(&scene, "fast").exists() && !entry(&scene, "slow").exists());
    create("slow").done();
    assert!(entry(&scene, "slow").exists());
}

#[test]
fn the_type_is_told_by_the_marker() {
    let scene = named();
    fs::remove_file(entry(&scene, "fast")).unwrap();
    let expected = scene.call(["sr_scan", SR]).done();
    assert_eq!(scene.bare(["sr_scan", "-d", &scene.dconf(), SR]).done(), expected);
    // The marker tells the SR as well.
    assert_eq!(scene.bare(["sr_scan", "-d", &scene.dconf()]).done(), expected);
    scene.bare(["sr_scan", "-t", "file", "-d", &scene.dconf()]).fails("EINVAL");
    let nothing = scene.root.path().display().to_string();
    let message = scene.bare(["sr_scan", "-d", &nothing]).fails("EINVAL");
    assert!(message.starts_with("the SR is missing, and none is seen there"), "{message}");
    // What is lost is named.
    scene.bare(["sr_delete", "--yes", "-d", &scene.dconf()]).fails("EINVAL");
    // A place that could be looked at and has nothing is an answer of sr_probe.
    let empty = scene.root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let empty = empty.display().to_string();
    assert_eq!(
        scene.bare(["sr_probe", "-d", &empty]).done(),
        scene.bare(["sr_probe", "-t", "file", "-d", &empty]).done()
    );
    let message = scene.bare(["sr_probe", "-d", &format!("{empty}/gone")]).fails("EINVAL");
    assert!(message.contains("no SR is seen there (") && message.matches("there is nothing").count() <= 1, "{message}");
    let message = scene.bare(["sr_scan", "-d", &scene.dconf(), scene::OTHER_SR]).fails("EINVAL");
    assert!(message.contains("-t TYPE is missing") && message.contains("no SR 87b8"), "{message}");
}

#[test]
fn an_entry_that_others_may_have_written_or_read_is_not_trusted() {
    let scene = named();
    let text = fs::read_to_string(entry(&scene, "fast")).unwrap();
    let mode = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    sm(&scene, &["sr_scan", "fast"]).done();
    for bad in [0o666, 0o664, 0o646] {
        mode(entry(&scene, "fast"), bad);
        let message = sm(&scene, &["sr_scan", "fast"]).fails("EACCES");
        assert!(message.contains("others can write to it; chmod go-w mends that"), "{message}");
    }
    write_entry(&scene, "fast", &text, 0o600);
    sm(&scene, &["sr_scan", "fast"]).done();
    mode(run_dir(&scene).join("sr.d"), 0o775);
    sm(&scene, &["sr_scan", "fast"]).fails("EACCES");
    sm(&scene, &["sr_create", "--name", "slow", "-t", "file", "-d", "/nowhere"]).fails("EACCES");
    mode(run_dir(&scene).join("sr.d"), 0o755);
    // The variable that moves the table names no directory that others can write to.
    mode(run_dir(&scene), 0o777);
    sm(&scene, &["sr_scan", "fast"]).fails("EACCES");
    mode(run_dir(&scene), 0o755);
    // A link is no entry, wherever it leads.
    fs::rename(entry(&scene, "fast"), scene.root.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(scene.root.path().join("elsewhere"), entry(&scene, "fast")).unwrap();
    sm(&scene, &["sr_scan", "fast"]).fails("EIO");
}

#[test]
fn a_password_is_for_its_owner_alone() {
    let scene = empty();
    let text = format!("UUID={SR}\nTYPE=iso\nlocation=//server/share\nusername=u\ncifspassword=hunter2\n");
    write_entry(&scene, "isos", &text, 0o640);
    let message = sm(&scene, &["sr_get_params", "isos"]).fails("EACCES");
    assert!(
        message.contains("it may hold a password and others can read it; chmod 600") && !message.contains("hunter2")
    );
    write_entry(&scene, "isos", &text, 0o600);
    let message = sm(&scene, &["sr_get_params", "isos"]).fails_somehow();
    assert!(!message.contains("hunter2"), "{message}");
    let list = "((location . \"/nowhere\") (legacy_mode . \"true\") (cifspassword . \"x\"))";
    sm(&scene, &["sr_create", "--name", "cds", "-t", "iso", "-d", list]).fails_somehow();
    assert!(!entry(&scene, "cds").exists());
    let list = list.replace("/nowhere", scene.root.path().to_str().unwrap());
    uuid(sm(&scene, &["sr_create", "--name", "cds", "-t", "iso", "-d", &list]).done());
    assert_eq!(fs::metadata(entry(&scene, "cds")).unwrap().permissions().mode() & 0o777, 0o600);
    sm(&scene, &["sr_scan", "cds"]).done();
}

#[test]
fn the_files_of_the_timer_of_earlier_releases_are_entries() {
    let scene = named();
    fs::remove_file(entry(&scene, "fast")).unwrap();
    let old = run_dir(&scene).join("sm-collect");
    fs::create_dir(&old).unwrap();
    let text = format!("TYPE=file\nDCONF={}\n", scene.dconf());
    fs::write(old.join(format!("{SR}.conf")), &text).unwrap();
    assert_eq!(sm(&scene, &["sr_collect", SR]).done(), "");
    // A name counts more, and sr_delete leaves what the administrator wrote.
    write_entry(&scene, "fast", &format!("UUID={SR}\nTYPE=file\nlocation={}\n", scene.dconf()), 0o644);
    assert_eq!(sm(&scene, &["sr_collect", "fast"]).done(), "");
    sm(&scene, &["sr_delete", SR, "--yes"]).done();
    assert!(!entry(&scene, "fast").exists() && old.join(format!("{SR}.conf")).exists());
}

#[test]
fn a_killed_sr_create_goes_on_with_the_uuid_that_its_name_has() {
    let args =
        |scene: &Scene| ["sr_create", "--name", "fast", "-t", "file", "-d", &scene.dconf()].map(str::to_owned).to_vec();
    for n in 1.. {
        let scene = empty();
        let killed = run(n, Points::Changing, Act::Kill, &scene.executable(), &args(&scene), &run_dir(&scene));
        let begun = fs::read_to_string(entry(&scene, "fast")).ok();
        if killed.end != End::Killed {
            assert_eq!(killed.end, End::Status(0));
            assert!(n > 5, "only {n} points");
            break;
        }
        let marker = scene.place.join(".sm-sr").exists();
        let again = sm(&scene, &args(&scene).iter().map(String::as_str).collect::<Vec<_>>());
        let said = match marker {
            true => again.fails("EEXIST"),
            false => again.done(),
        };
        // An SR is never there without its name.
        let text = fs::read_to_string(entry(&scene, "fast")).unwrap();
        assert!(begun.is_none_or(|begun| begun == text), "at {n}");
        let sr = text.lines().next().unwrap().strip_prefix("UUID=").unwrap();
        assert!(said.contains(sr), "at {n}: {said}");
        sm(&scene, &["sr_scan", "fast"]).done();
        sm(&scene, &["sr_delete", "fast"]).done();
        assert!(!entry(&scene, "fast").exists());
    }
}

/// The line of `sr_list` that has this word, as a table shows it.
fn listed(scene: &Scene, word: &str) -> Option<String> {
    let list = sm(scene, &["sr_list", "--format", "table"]).done();
    list.lines().find(|line| line.split_whitespace().any(|it| it == word)).map(str::to_owned)
}

#[test]
fn sr_list_shows_every_sr_of_the_table_with_its_state() {
    let scene = named();
    assert_eq!(listed(&scene, "gone"), None);
    write_entry(&scene, "gone", &format!("UUID={}\nTYPE=file\nDCONF=/nowhere/at/all\n", scene::OTHER_SR), 0o644);
    write_entry(&scene, "odd", &format!("UUID={B}\nTYPE=tape\nDCONF=/a\n"), 0o644);
    write_entry(&scene, "torn", "UUID=", 0o644);
    write_entry(&scene, "open", &format!("UUID={A}\nTYPE=file\nDCONF=/a\n"), 0o666);
    write_entry(&scene, "other~", "no entry", 0o644);
    for (name, words) in [
        ("fast", vec![SR, "file", "available", "GiB", &scene.dconf()]),
        ("gone", vec![scene::OTHER_SR, "file", "missing", "-", "/nowhere/at/all"]),
        ("odd", vec![B, "tape", "failed", "-"]),
        ("torn", vec!["-", "failed"]),
        ("open", vec!["-", "failed"]),
    ] {
        let line = listed(&scene, name).unwrap();
        assert!(words.iter().all(|word| line.contains(word)), "{name}: {line}");
    }
    let list = sm(&scene, &["sr_list", "--format", "table"]).done();
    for reason in ["torn: ", "open: cannot trust ", "odd: type \"tape\" is not valid", "gone: no SR "] {
        assert!(list.lines().any(|line| line.starts_with(reason)), "no {reason} in {list}");
    }
    let list = sm(&scene, &["sr_list"]).done();
    let fast = format!("(sr (name . \"fast\") (uuid . \"{SR}\") (type . \"file\") (state . \"available\") (size . ");
    assert!(list.starts_with("(sr_list ") && list.contains(&fast), "{list}");
    sm(&scene, &["sr_list", "fast"]).fails("E2BIG");
    sm(&scene, &["sr_list", "--explode"]).fails("EINVAL");
}

#[test]
fn sr_list_finds_a_mounted_sr_without_a_name() {
    if !scene::is_root() {
        return;
    }
    // Mounts of other tests of this machine are listed as well.
    const MOUNTED: &str = "0a0bd5f9-6b54-4b8f-a2f5-54c4d4a1a8f1";
    let mounted = scene::filesystem::Filesystem::new("tmpfs", 16);
    let scene = Scene::empty(&FILE, Door::Sm);
    let dconf = mounted.path().display().to_string();
    sm(&scene, &["sr_create", "-t", "file", "-d", &dconf, MOUNTED]).done();
    let line = listed(&scene, MOUNTED).unwrap();
    assert!(line.starts_with("-") && line.contains("available") && line.ends_with(&dconf), "{line}");
    write_entry(&scene, "fast", &format!("UUID={MOUNTED}\nTYPE=file\nDCONF={dconf}\n"), 0o644);
    let line = listed(&scene, MOUNTED).unwrap();
    assert!(line.starts_with("fast "), "{line}");
}

#[test]
fn a_dry_run_says_what_would_be_done_and_changes_nothing() {
    let scene = named();
    sm(&scene, &["vdi_create", "fast", A, "20G", "--label", "web"]).done();
    sm(&scene, &["vdi_snapshot", "fast", A, B]).done();
    let before = scene.digest();
    let said = sm(&scene, &["vdi_delete", "-n", "fast", "web"]).fails("EINVAL");
    assert!(said.contains("2 VDIs have it"), "{said}");
    let said = sm(&scene, &["vdi_delete", "-n", "fast", A, B]).done();
    assert!(said.starts_with(&format!("delete VDI {A} (web): vhd of 20GiB, ")) && said.lines().count() == 2, "{said}");
    let said = sm(&scene, &["sr_delete", "--dry-run", "fast"]).done();
    for line in [format!("delete SR {SR} of type file at {}", scene.dconf()), "remove the name fast".to_owned()] {
        assert!(said.lines().any(|it| it == line), "no {line} in {said}");
    }
    assert_eq!(said.matches("delete VDI").count(), 2, "{said}");
    assert_eq!(sm(&scene, &["sr_collect", "-n", "fast"]).done(), "nothing to collect\n");
    let other = scene.root.path().join("other");
    let said = sm(&scene, &["sr_create", "-n", "--name", "slow", "-t", "file", "-d", other.to_str().unwrap()]).done();
    // The UUID is chosen when the SR is made.
    assert_eq!(said, format!("make an SR with the name slow of type file at location={}\n", other.display()));
    let said = sm(&scene, &["sr_create", "-n", "-t", "file", "-d", other.to_str().unwrap(), scene::OTHER_SR]).done();
    assert!(said.starts_with(&format!("make SR {} of type file", scene::OTHER_SR)), "{said}");
    let said = sm(&scene, &["sr_create", "-n", "fast", "-t", "file", "-d", other.to_str().unwrap()]).fails("EEXIST");
    assert!(said.contains("the name fast is that of SR"), "{said}");
    assert!(!other.exists() && !entry(&scene, "slow").exists());
    sm(&scene, &["sr_create", "-n", "-t", "file", "-d", &scene.dconf()]).fails("EBUSY");
    assert_eq!(scene.digest(), before);

    // What is in use is refused by the plan as by the command.
    sm(&scene, &["vdi_lock", "fast", A, "FALSE", "host1/vm7"]).done();
    for call in [&["vdi_delete", "-n", "fast", A][..], &["sr_delete", "-n", "fast"]] {
        assert!(sm(&scene, call).fails("EVDIBUSY").contains("host1/vm7, who locked it"));
    }
    sm(&scene, &["vdi_unlock", "fast", A, "FALSE", "host1/vm7"]).done();

    // The collector does what its plan says.
    sm(&scene, &["vdi_delete", "fast", B]).done();
    let before = scene.digest();
    let said = sm(&scene, &["sr_collect", "-n", "fast"]).done();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with(&format!("merge {A}, ")) && lines.len() == 2, "{said}");
    assert!(lines[1].starts_with("in all: 0 removed, 1 merged, about "), "{said}");
    assert_eq!(scene.digest(), before);
    sm(&scene, &["sr_collect", "fast"]).done();
    assert_eq!(sm(&scene, &["sr_collect", "-n", "fast"]).done(), "nothing to collect\n");
}

/// One line of `sm` at a terminal, with what is typed; all that the terminal shows, and the status.
fn at_terminal(scene: &Scene, words: &[&str], typed: &str) -> (String, i32) {
    let line = format!("'{}' {}", scene.executable().display(), words.join(" "));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("XCP_SM_RUN_DIR", run_dir(scene)).write_stdin(typed);
    let output = command.output().unwrap();
    (String::from_utf8_lossy(&output.stdout).replace('\r', ""), output.status.code().unwrap())
}

#[test]
fn a_disk_that_was_made_after_the_question_is_not_deleted() {
    if !scene::has("script") {
        return;
    }
    let scene = named();
    sm(&scene, &["vdi_create", "fast", A, "20", "--label", "web"]).done();
    let mut asked = std::process::Command::new("script")
        .args(["-qec", &format!("'{}' sr_delete fast", scene.executable().display()), "/dev/null"])
        .env("XCP_SM_RUN_DIR", run_dir(&scene))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut shown, mut byte) = (Vec::new(), [0]);
    let mut out = asked.stdout.take().unwrap();
    while !shown.ends_with(b"Go on?") {
        out.read_exact(&mut byte).unwrap();
        shown.push(byte[0]);
    }
    sm(&scene, &["vdi_create", "fast", B, "20", "--label", "new"]).done();
    asked.stdin.take().unwrap().write_all(b"y\n").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(asked.wait().unwrap().code(), Some(22), "{rest}");
    assert!(rest.contains("1 VDIs, which would be lost"), "{rest}");
    for vdi in [A, B] {
        assert!(scene.names().iter().any(|name| name.contains(vdi)), "{vdi}");
    }
}

#[test]
fn a_person_at_a_terminal_is_asked_before_data_is_lost() {
    if !scene::has("script") {
        return;
    }
    let scene = named();
    sm(&scene, &["vdi_create", "fast", A, "20", "--label", "web"]).done();
    let before = scene.digest();
    for typed in ["n\n", "\n", "\u{4}"] {
        for call in [&["vdi_delete", "fast/web"][..], &["sr_delete", "fast"]] {
            let (shown, status) = at_terminal(&scene, call, typed);
            assert!(shown.contains(&format!("delete VDI {A} (web)")) && shown.contains("Go on? [y/N]"), "{shown}");
            assert!(status == 22 && shown.contains("nothing was changed"), "{status}: {shown}");
        }
    }
    assert_eq!(scene.digest(), before);
    let (shown, status) = at_terminal(&scene, &["vdi_delete", "fast/web"], "y\n");
    assert!(status == 0 && !scene.names().iter().any(|name| name.contains(A)), "{status}: {shown}");
    // A number without a unit is explained, and what is made is told.
    let (shown, status) = at_terminal(&scene, &["vdi_create", "fast", "20"], "");
    assert!(status == 0 && shown.contains("20 was taken for 20MiB"), "{status}: {shown}");
    let (shown, status) = at_terminal(&scene, &["sr_delete", "fast"], "y\n");
    assert!(status == 0 && !scene.place.exists(), "{status}: {shown}");
    // A line of SR API v1.0 does what it always did.
    sm(&scene, &["sr_create", "-t", "file", "-d", &scene.dconf(), SR]).done();
    sm(&scene, &["vdi_create", "-t", "file", "-d", &scene.dconf(), SR, A, "1"]).done();
    let (shown, status) = at_terminal(&scene, &["sr_delete", "-t", "file", "-d", &scene.dconf(), SR], "");
    assert!(status == 22 && shown.contains("--yes deletes them"), "{status}: {shown}");
    let (shown, status) = at_terminal(&scene, &["vdi_delete", "-t", "file", "-d", &scene.dconf(), SR, A], "");
    assert!(status == 0 && shown.is_empty() && !scene.names().iter().any(|name| name.contains(A)), "{status}: {shown}");
    sm(&scene, &["sr_delete", "-t", "file", "-d", &scene.dconf(), SR]).done();
    // There is nothing to be asked about.
    let (shown, status) = at_terminal(&scene, &["sr_delete", "-t", "file", "-d", &scene.dconf(), SR], "");
    assert!(status == 0 && shown.contains("nothing to delete"), "{status}: {shown}");
}

#[test]
fn a_person_at_a_terminal_is_told_how_a_disk_gets_a_label() {
    if !scene::has("script") {
        return scene::skip("script");
    }
    let scene = named();
    let (said, status) = at_terminal(&scene, &["vdi_create", "fast", "1M"], "");
    assert!(said.contains("it has no label; sm vdi_set ") && status == 0, "{said}");
    let (said, _) = at_terminal(&scene, &["vdi_create", "fast/web", "1M"], "");
    assert!(!said.contains("no label"), "{said}");
    let (said, _) = at_terminal(&scene, &["vdi_create", "fast", B, "1M"], "");
    assert!(!said.contains("no label"), "{said}");
    // A label that stands for two VDIs from now on.
    let (said, status) = at_terminal(&scene, &["vdi_snapshot", "fast/web"], "");
    assert!(said.contains("2 VDIs have the label \"web\" now; sm vdi_set fast/") && status == 0, "{said}");
    let (said, _) = at_terminal(&scene, &["vdi_snapshot", "fast", B, "--label", "before"], "");
    assert!(!said.contains("have the label"), "{said}");
    let (said, _) = at_terminal(&scene, &["vdi_copy", "fast", B, "fast/before"], "");
    assert!(said.contains("2 VDIs have the label \"before\" now"), "{said}");
}

#[test]
fn what_xapi_mounted_ends_with_the_sr() {
    let scene = named();
    let mounts = run_dir(&scene).join("sr-mount");
    fs::create_dir_all(&mounts).unwrap();
    let place = mounts.join(SR);
    for line in [&["sr_detach", "fast"][..], &["sr_delete", "fast"]] {
        // As it is where nothing can be mounted.
        std::os::unix::fs::symlink(&scene.place, &place).unwrap();
        sm(&scene, line).done();
        assert!(!place.is_symlink(), "{line:?}");
    }
}

#[test]
fn a_word_with_another_meaning_is_no_name() {
    let scene = named();
    let place = scene.root.path().join("second").display().to_string();
    for line in [
        &["sr_create", "auto", "-t", "file", "-d", &place][..],
        &["sr_attach", "--name", "auto", "-d", &scene.dconf()],
        &["sr_name", "fast", "auto"],
    ] {
        let refused = sm(&scene, line).fails("EINVAL");
        assert!(refused.contains("expected another name"), "{line:?}: {refused}");
    }
    assert!(!fs::exists(place).unwrap() && entry(&scene, "fast").exists() && !entry(&scene, "auto").exists());
    let refused =
        sm(&scene, &["sr_create", "--destroy-sr", "slow", "-t", "ext", "-d", "/dev/null", "new"]).fails("ENOSR");
    assert!(refused.contains("no SR has the name slow"), "{refused}");
}

#[test]
fn a_cd_is_copied_as_a_file() {
    let scene = named();
    let isos = scene.root.path().join("isos");
    fs::create_dir(&isos).unwrap();
    fs::write(isos.join("debian.iso"), vec![0; 2048]).unwrap();
    let dir = isos.display().to_string();
    sm(&scene, &["sr_create", "cds", "-t", "iso", "-d", &dir]).done();
    for (line, what) in [
        (&["vdi_copy", "cds/debian.iso", "fast"][..], "vdi_copy"),
        (&["vdi_export", "cds/debian.iso", "/tmp/never.raw"], "vdi_export"),
        (&["vdi_import", "cds", &format!("{dir}/debian.iso")], "vdi_import"),
        (&["vdi_clone", "cds/debian.iso"], "vdi_clone"),
    ] {
        let refused = sm(&scene, line).fails("EPERM");
        assert!(
            refused.starts_with(&format!("{what} is not supported"))
                && refused.contains(&format!("copy it into {dir}")),
            "{refused}"
        );
    }
    let refused = sm(&scene, &["vdi_create", "cds/new", "1M"]).fails("EPERM");
    assert!(refused.contains(&format!("copy its file into {dir}")), "{refused}");
    // A set with a CD could never be exported.
    let refused = sm(&scene, &["backup", "define", "night", "--disk", "cds/debian.iso"]).fails("EPERM");
    assert!(refused.contains("cds/debian.iso is a CD image"), "{refused}");
}

#[test]
fn a_person_is_asked_once_about_several_disks() {
    if !scene::has("script") {
        return;
    }
    let scene = named();
    for (vdi, label) in [(A, "web"), (B, "db"), (C, "log")] {
        sm(&scene, &["vdi_create", "fast", vdi, "20", "--label", label]).done();
    }
    let before = scene.digest();
    let (shown, status) = at_terminal(&scene, &["vdi_delete", "fast", "web", "db", "web"], "n\n");
    assert!(
        shown.contains(&format!("delete VDI {A} (web)")) && shown.contains(&format!("delete VDI {B} (db)")),
        "{shown}"
    );
    assert_eq!((shown.matches("Go on?").count(), shown.matches("delete VDI").count(), status), (1, 2, 22), "{shown}");
    assert_eq!(shown.matches("nothing was changed").count(), 1, "{shown}");
    assert_eq!(scene.digest(), before);
    // One that is not there is told, and is no reason to leave out the others.
    let (shown, status) = at_terminal(&scene, &["vdi_delete", "fast", "web", "nothing", "db"], "y\n");
    assert_eq!((shown.matches("Go on?").count(), status), (1, 101), "{shown}");
    let left: Vec<String> = scene.names().into_iter().filter(|name| name.ends_with(".vhd")).collect();
    assert_eq!(left, [format!("{C}.vhd")]);
    let (shown, status) = at_terminal(&scene, &["vdi_delete", "--yes", "fast", "log", C], "");
    assert!(status == 0 && !shown.contains("Go on?"), "{status}: {shown}");
}

#[test]
fn a_line_with_too_few_words_is_told_which_are_missing_and_no_other() {
    let scene = named();
    sm(&scene, &["vdi_create", "fast", A, "1", "--label", "web"]).done();
    for (line, missing) in [
        (&["vdi_unlock", "fast/web"][..], "<USER> is missing; USER is any text that says who has the disk"),
        (&["vdi_lock", "fast/web", "FALSE"], "<USER> is missing"),
        (&["vdi_create", "fast"], "<SIZE> is missing"),
        (&["vdi_create", "fast/new"], "<SIZE> is missing"),
        (&["vdi_snapshot", "fast"], "<SOURCE> is missing"),
        (&["vdi_resize", "fast/web"], "<SIZE> is missing"),
    ] {
        let said = sm(&scene, line).fails("EINVAL");
        assert!(said.starts_with(missing), "{line:?}: {said}");
    }
    for (line, said) in [
        (&["sr_create", "slow"][..], "-t TYPE is missing, which says of what type the new SR is to be"),
        (&["sr_create", "slow", "-d", "/nowhere"], "-t TYPE is missing, which says of what type the new SR is to be"),
        (&["sr_create", "slow", "file", "/nowhere"], "argument '/nowhere' is one too many; -t says the type of the SR"),
        (&["vdi_set", "fast/web", "www"], "argument 'www' is one too many; --label and --description say"),
        (&["vdi_copy", "fast/web", "/nowhere/x.vhd"], "SR \"/nowhere/x.vhd\" is not valid: "),
        (
            &["backup", "define", "web", "fast/web"],
            "argument 'fast/web' is one too many; a disk is said by an option: --disk fast/web",
        ),
        (&["backup", "export", "web"], "--to <STORE> is missing; "),
        (&["backup", "export", "web", "--incremental"], "there is no option '--incremental'; --since last stores only"),
        (&["backup", "store-init", "nas"], "STORE \"nas\" is not valid: "),
    ] {
        let refused = sm(&scene, line).fails("EINVAL|E2BIG");
        assert!(refused.starts_with(said), "{line:?}: {refused}");
        assert!(!refused.contains("no SR "), "an invented UUID: {refused}");
    }
    let refused = sm(&scene, &["backup", "store-init", "nas"]).fails("EINVAL");
    assert!(refused.contains("the line `store: name=nas path=/DIRECTORY` in it"), "{refused}");
    let refused = sm(&scene, &["vdi_copy", "fast/web", "/nowhere/x.vhd"]).fails("EINVAL");
    assert!(refused.ends_with("vdi_export writes a file"), "{refused}");
    for (line, missing) in [
        (&["vdi_unlock", "web"][..], "<USER> is missing"),
        (&["vdi_delete"], "<VDI> is missing"),
        (&["vdi_export"], "<VDI> <FILE> is missing"),
        (&["vdi_export", "web"], "<FILE> is missing; - is standard output"),
    ] {
        let said = sm_of(&scene, "fast", line).fails("EINVAL");
        assert!(said.starts_with(missing), "{line:?}: {said}");
    }
}

#[test]
fn a_lock_is_taken_by_a_line_of_two_words_and_from_its_holder_by_force_alone() {
    let scene = named();
    sm(&scene, &["vdi_create", "fast", A, "1", "--label", "web"]).done();
    let holders = || sm(&scene, &["vdi_get_params", "fast/web"]).done();
    sm(&scene, &["vdi_lock", "fast/web", "host1/vm7"]).done();
    assert!(holders().contains("(VBDs \"host1/vm7\")"), "{}", holders());
    let refused = sm(&scene, &["vdi_lock", "fast", "web", "host2"]).fails("ENOLCK");
    assert!(refused.contains("host1/vm7") && refused.contains("FORCE TRUE"), "{refused}");
    let refused = sm(&scene, &["vdi_lock", "fast/web", "--force", "host2"]).fails("EINVAL");
    assert!(
        refused.contains("FORCE is the word TRUE before USER: sm vdi_lock [OPTIONS] [SR] <VDI> [FORCE] <USER>"),
        "{refused}"
    );
    let refused = sm(&scene, &["vdi_lock", "fast/web", "yes", "host2"]).fails("EINVAL");
    assert!(refused.contains("expected TRUE or FALSE"), "{refused}");
    sm(&scene, &["vdi_lock", "fast/web", "TRUE", "host2"]).done();
    sm_of(&scene, "fast", &["vdi_unlock", "web", "host2"]).done();
    assert!(holders().contains("(VBDs)"), "{}", holders());
}

#[test]
fn an_export_goes_into_the_file_that_standard_output_was_redirected_to() {
    let scene = named();
    sm(&scene, &["vdi_create", "fast", A, "1M", "--label", "web", "--type", "raw"]).done();
    fs::write(scene.image(A), scene::pattern(1 << 20)).unwrap();
    let export = |file: &Path, words: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "file=$1; shift; exec \"$@\" >> \"$file\"", "sh"]).arg(file);
        command.arg(scene.executable()).args(words).env("XCP_SM_RUN_DIR", run_dir(&scene));
        Outcome { line: words.join(" "), output: command.output().unwrap() }
    };
    let file = |name: &str| scene.root.path().join(name);
    export(&file("web.raw"), &["vdi_export", "fast/web"]).done();
    assert!(fs::read(file("web.raw")).unwrap() == scene::pattern(1 << 20));
    // The extension says the format, as in a line that has the name.
    export(&file("web.vhd"), &["vdi_export", "fast", "web"]).done();
    let read = |file: &Path| {
        sm(&scene, &["vdi_import", "fast", file.to_str().unwrap(), "--type", "raw", "--size", "1M"]).done()
    };
    let copy = uuid(read(&file("web.vhd")));
    assert!(fs::read(scene.image(&copy)).unwrap() == scene::pattern(1 << 20));
    // No format that cannot be written, nothing into what has contents, nothing into a pipe.
    export(&file("web.vmdk"), &["vdi_export", "fast/web"]).fails("EINVAL");
    export(&file("web.raw"), &["vdi_export", "fast/web"]).fails("EINVAL");
    let refused = sm(&scene, &["vdi_export", "fast/web"]).fails("EINVAL");
    assert!(refused.starts_with("<FILE> is missing; - is standard output"), "{refused}");
    assert_eq!(fs::metadata(file("web.raw")).unwrap().len(), 1 << 20);
    assert_eq!(fs::metadata(file("web.vmdk")).unwrap().len(), 0);
}

#[test]
fn the_tree_of_one_disk_is_drawn_alone() {
    let scene = named();
    for (vdi, label) in [(A, "web"), (B, "db")] {
        sm(&scene, &["vdi_create", "fast", vdi, "1M", "--label", label]).done();
    }
    let before = uuid(sm(&scene, &["vdi_snapshot", "fast/web", "before"]).done());
    let all = sm(&scene, &["vdi_tree", "fast"]).done();
    assert!(all.contains(A) && all.contains(B) && all.contains(&before), "{all}");
    for (sr, words) in [("", &["fast/web"][..]), ("", &["fast", "web"]), ("fast", &["web"]), ("", &["fast/before"])] {
        let line = [&["vdi_tree"], words].concat();
        let tree = if sr.is_empty() { sm(&scene, &line) } else { sm_of(&scene, sr, &line) }.done();
        assert!(tree.contains(A) && tree.contains(&before) && !tree.contains(B), "{words:?}: {tree}");
        assert_eq!(tree.lines().count(), 4, "{tree}");
    }
    assert_eq!(sm(&scene, &["vdi_tree", "fast/db"]).done().lines().count(), 2);
    sm(&scene, &["vdi_tree", "fast/none"]).fails("ENOVDI");
    sm(&scene, &["vdi_tree", "fast", scene::NONE]).fails("ENOVDI");
}

#[test]
fn an_sr_gets_another_name_or_none() {
    let scene = named();
    let text = fs::read_to_string(entry(&scene, "fast")).unwrap();
    sm(&scene, &["sr_name", "fast", "quick"]).done();
    assert!(!entry(&scene, "fast").exists());
    assert_eq!(fs::read_to_string(entry(&scene, "quick")).unwrap(), text);
    sm(&scene, &["vdi_create", "quick", A, "1"]).done();
    sm(&scene, &["sr_name", "fast", "quick"]).fails("ENOSR");
    // The call was killed between its two steps, and is repeated.
    fs::hard_link(entry(&scene, "quick"), entry(&scene, "fast")).unwrap();
    sm(&scene, &["sr_name", "quick", "fast"]).done();
    assert!(!entry(&scene, "quick").exists() && entry(&scene, "fast").exists());
    sm(&scene, &["sr_name", "fast", "fast"]).done();
    sm(&scene, &["sr_name", SR, "quick"]).done();
    // A name that another SR has; an SR with two names; words that are no names.
    write_entry(&scene, "other", &text.replace(SR, scene::OTHER_SR), 0o644);
    let refused = sm(&scene, &["sr_name", "quick", "other"]).fails("EEXIST");
    assert!(refused.contains(scene::OTHER_SR), "{refused}");
    write_entry(&scene, "second", &text, 0o644);
    let refused = sm(&scene, &["sr_name", SR, "third"]).fails("EINVAL");
    assert!(refused.contains("quick, second"), "{refused}");
    for bad in ["../x", "a b", scene::OTHER_SR] {
        sm(&scene, &["sr_name", "quick", bad]).fails("EINVAL");
    }
    assert!(sm(&scene, &["sr_name", "quick"]).fails("EINVAL").contains("<NAME> is missing"));
    sm(&scene, &["sr_name", "quick", "x", "--forget"]).fails("EINVAL");
    // The name goes, the SR stays. A file that cannot be read is removed by its name as well.
    let said = sm(&scene, &["sr_name", "quick", "--forget"]).done();
    let again = format!("`sm sr_attach --name NAME {SR} -t file -d {}` gives it a name", scene.dconf());
    assert!(said.starts_with(&format!("SR {SR} stays")) && said.contains(&again), "{said}");
    sm(&scene, &["sr_name", "quick", "--forget"]).fails("ENOSR");
    write_entry(&scene, "second", "nonsense", 0o644);
    sm(&scene, &["sr_name", "second", "--forget"]).done();
    scene.call(["vdi_get_params", SR, A]).done();
    assert_eq!(fs::read_dir(entry(&scene, "x").parent().unwrap()).unwrap().count(), 1);
}

/// What comes to the system log of the scene while `work` is done.
fn logged(scene: &Scene, work: impl FnOnce()) -> Vec<String> {
    let path = run_dir(scene).join("log");
    let _ = fs::remove_file(&path);
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    work();
    let mut lines = Vec::new();
    let mut bytes = [0; 2048];
    while let Ok(length) = socket.recv(&mut bytes) {
        let line = String::from_utf8_lossy(&bytes[..length]).into_owned();
        lines.push(line.split_once("] ").unwrap().1.to_owned());
    }
    fs::remove_file(path).unwrap();
    lines
}

#[test]
fn every_change_is_one_line_in_the_system_log_and_a_look_is_none() {
    let scene = named();
    let uid = nix::unistd::geteuid();
    let of = |what: &str| format!("sm: uid {uid}: {what} of SR {SR}, type file: ");
    let lines = logged(&scene, || {
        sm(&scene, &["vdi_create", "fast", A, "1M", "--label", "web"]).done();
        sm(&scene, &["vdi_snapshot", "fast", "web", B]).done();
        sm(&scene, &["vdi_get_params", "fast", A]).done();
        sm(&scene, &["sr_scan", "fast"]).done();
        sm(&scene, &["sr_list"]).done();
        sm(&scene, &["vdi_delete", "-n", "fast", A]).done();
        sm(&scene, &["vdi_resize", "fast", A, "3T"]).fails("E2BIG");
        sm(&scene, &["vdi_delete", "fast", A, B]).done();
        sm(&scene, &["sr_delete", "fast"]).done();
    });
    let starts = [
        of(&format!("vdi_create makes {A}")) + "done",
        of(&format!("vdi_snapshot {A} makes {B}")) + "done",
        of(&format!("vdi_resize {A}")) + "failed: ",
        of(&format!("vdi_delete {A}")) + "done",
        of(&format!("vdi_delete {B}")) + "done",
        of("sr_delete") + "done",
    ];
    assert_eq!(lines.len(), starts.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(&start), "{line} does not begin with {start}");
    }
}

#[test]
fn v_says_what_names_stand_for() {
    let scene = named();
    sm(&scene, &["vdi_create", "fast", A, "1M", "--label", "web"]).done();
    let outcome = sm(&scene, &["-v", "vdi_get_params", "fast/web"]);
    assert_eq!(outcome.status(), 0);
    let said = outcome.stderr();
    for words in [format!("SR fast is {SR} of type file at location="), format!("VDI web is {A}"), " took ".to_owned()]
    {
        assert!(said.contains(&words), "no {words} in {said}");
    }
    assert_eq!(sm(&scene, &["vdi_get_params", "fast/web", "--verbose"]).stdout(), outcome.stdout());
}

#[test]
fn a_label_of_any_text_is_found() {
    let scene = named();
    let labels = ["root disk", "a \"b\" \\ c", "ü λ 日本", "web", "we", "\\u{1b}", "(x . y)", "\u{a0}"];
    let made: Vec<String> =
        labels.iter().map(|label| uuid(sm(&scene, &["vdi_create", "fast", "1M", "--label", label]).done())).collect();
    for (label, vdi) in labels.iter().zip(&made) {
        let answer = sm(&scene, &["vdi_get_params", "fast", "--", label]).done();
        assert!(answer.contains(&format!("(uuid . \"{vdi}\")")), "{label}: {answer}");
    }
    // A record that cannot be read is in nobody's way, and the start of its UUID still is its VDI's.
    fs::write(scene.place.join(format!("{}.params", made[3])), "no record").unwrap();
    sm(&scene, &["vdi_get_params", "fast", "we"]).done();
    sm(&scene, &["vdi_get_params", "fast", "web"]).fails("ENOVDI");
    sm(&scene, &["vdi_delete", "--yes", "fast", &made[3][..13]]).done();
    assert!(!scene.names().iter().any(|name| name.contains(&made[3])));
}

#[test]
fn a_disk_goes_back_to_a_snapshot_that_has_a_label_of_its_own() {
    let scene = named();
    let web = uuid(sm(&scene, &["vdi_create", "fast", "1M", "--label", "web"]).done());
    let db = uuid(sm(&scene, &["vdi_create", "fast", "1M", "--label", "db"]).done());
    let before = uuid(sm(&scene, &["vdi_snapshot", "fast/web", "--label", "before"]).done());
    let plan = sm(&scene, &["vdi_revert", "-n", "fast", "web", "before"]).done();
    assert!(plan.contains(&format!("VDI {web} (web)")) && plan.contains(&format!("VDI {before} (before)")), "{plan}");
    sm(&scene, &["vdi_revert", "fast", "web", "before"]).done();
    // The snapshot with its SR as well, and never of another SR.
    sm(&scene, &["vdi_revert", "--yes", "fast/web", "fast/before"]).done();
    sm(&scene, &["vdi_revert", "fast/web", &format!("{SR}/before")]).done();
    sm(&scene, &["vdi_revert", "fast/web", "slow/before"]).fails("ENOVDI");
    for options in [&["-n"][..], &[]] {
        let refused = sm(&scene, &[&["vdi_revert", "fast", "db", "before"], options].concat()).fails("EPERM");
        assert!(refused.contains(&format!("snapshot of VDI {web}, not of VDI {db}")), "{refused}");
    }
    let shown = sm(&scene, &["vdi_get_params", "fast", "before", "--format", "table"]).done();
    assert!(shown.contains(&format!("snapshot of   {web}\n")) && shown.contains("\ncreated       20"), "{shown}");
    let table = sm(&scene, &["sr_scan", "fast", "--format", "table"]).done();
    assert!(table.contains("  used  created           state      snapshot of  label\n"), "{table}");
}

#[test]
fn an_index_of_labels_is_never_older_than_the_disks() {
    const MANY: usize = 40;
    let scene = named();
    let index = run_dir(&scene).join("sm/labels").join(SR);
    let meant = |word: &str| sm(&scene, &["vdi_get_params", "fast", word]);
    let is = |word: &str, vdi: &str| {
        let answer = meant(word).done();
        assert!(answer.contains(&format!("(uuid . \"{vdi}\")")), "{word}: {answer}");
    };
    let made: Vec<String> = (0..MANY)
        .map(|n| uuid(sm(&scene, &["vdi_create", "fast", "1MiB", "--label", &format!("disk {n}")]).done()))
        .collect();
    let settle = || std::thread::sleep(std::time::Duration::from_millis(150));
    // What is made of a directory that was just changed might miss the next change.
    is("disk 3", &made[3]);
    settle();
    is("disk 3", &made[3]);
    assert!(index.exists());
    let first = fs::read(&index).unwrap();
    is("disk 7", &made[7]);
    is(&made[9][..9], &made[9]);
    assert_eq!(fs::read(&index).unwrap(), first, "the index was used, not made again");
    let is_of_two = || assert!(meant("other").fails("EINVAL").contains("2 VDIs have it"));
    // Each kind of change, at once after an index was used.
    sm(&scene, &["vdi_set", "fast", &made[3], "--label", "other"]).done();
    is("other", &made[3]);
    meant("disk 3").fails("ENOVDI");
    settle();
    is("other", &made[3]);
    let second = uuid(sm(&scene, &["vdi_create", "fast", "1MiB", "--label", "other"]).done());
    is_of_two();
    settle();
    is_of_two();
    sm(&scene, &["vdi_delete", "fast", &second]).done();
    is("other", &made[3]);
    settle();
    is("other", &made[3]);
    // An editor that writes in place changes no time of the directory.
    let record = scene.place.join(format!("{}.params", made[3]));
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("other", "third")).unwrap();
    meant("other").fails("ENOVDI");
    is("third", &made[3]);
    // Another directory, with the UUID of this SR.
    fs::write(&index, String::from_utf8(first).unwrap().replace("disk 1\"", "disk 2\"")).unwrap();
    is("disk 1", &made[1]);
    sm(&scene, &["sr_delete", "--yes", "fast"]).done();
    assert!(!index.exists());
}

#[test]
fn an_sr_that_is_there_gets_a_name_when_it_is_attached() {
    let scene = named();
    sm(&scene, &["vdi_create", "fast", "1M", "--label", "web"]).done();
    fs::remove_file(entry(&scene, "fast")).unwrap();
    let moved = scene.root.path().join("moved");
    fs::rename(&scene.place, &moved).unwrap();
    let moved = moved.display().to_string();
    let refused = sm(&scene, &["sr_create", "--name", "quick", "-t", "file", "-d", &moved]).fails("EBUSY");
    assert!(refused.contains(&format!("it holds SR {SR}, which sr_attach makes available")), "{refused}");
    // An SR that is not there gets no name.
    let nowhere = scene.root.path().join("nowhere").display().to_string();
    sm(&scene, &["sr_attach", "--name", "quick", "-t", "file", "-d", &nowhere, SR]).fails("ENOSR");
    sm(&scene, &["sr_attach", "--name", "quick", SR]).fails("ENOSR");
    let refused = sm(&scene, &["sr_attach", "quick", "-d", &moved]).fails("EINVAL");
    assert!(refused.contains("`--name quick` in its place gives the name to the SR that is there"), "{refused}");
    assert!(!entry(&scene, "quick").exists());
    // The marker tells the UUID, also where another SR is the default.
    sm_of(&scene, scene::OTHER_SR, &["sr_attach", "--name", "found", "-d", &moved]).done();
    assert_eq!(sm(&scene, &["sr_scan", "found"]).done(), sm(&scene, &["sr_scan", "-d", &moved]).done());
    sm(&scene, &["sr_name", "found", "--forget"]).done();
    for _ in 0..2 {
        sm(&scene, &["sr_attach", "--name", "quick", "-d", &moved, SR]).done();
        assert_eq!(
            fs::read_to_string(entry(&scene, "quick")).unwrap(),
            format!("UUID={SR}\nTYPE=file\nDCONF={moved}\n")
        );
    }
    sm(&scene, &["vdi_get_params", "quick/web"]).done();
    // An SR that has a name already, and is in another place now, keeps the name.
    let again = scene.root.path().join("again").display().to_string();
    sm(&scene, &["sr_attach", "--name", "quick", "-t", "file", "-d", &again, SR]).fails("ENOSR");
    sm(&scene, &["vdi_get_params", "quick/web"]).done();
    fs::rename(&moved, &again).unwrap();
    sm(&scene, &["sr_attach", "--name", "quick", "-t", "file", "-d", &again, SR]).done();
    sm(&scene, &["vdi_get_params", "quick/web"]).done();
    // The name of another SR stays what it is.
    let other = scene.root.path().join("other").display().to_string();
    let sr = uuid(sm(&scene, &["sr_create", "-t", "file", "-d", &other]).done());
    sm(&scene, &["sr_attach", "--name", "quick", "-t", "file", "-d", &other, &sr]).fails("EEXIST");
    sm(&scene, &["vdi_get_params", "quick/web"]).done();
}

#[test]
fn a_uuid_after_the_name_of_an_sr_is_no_label() {
    let scene = named();
    sm(&scene, &["vdi_create", "fast", B, "4M", "--label", A]).done();
    for line in [&["vdi_delete", "fast", &format!("fast/{A}")][..], &["vdi_delete", "fast", A]] {
        // Nothing is there to delete.
        sm(&scene, line).done();
    }
    sm(&scene, &["vdi_get_params", "fast", B]).done();
}

#[test]
fn a_disk_that_came_while_its_sr_was_to_be_deleted_stays() {
    let scene = named();
    let mut command = std::process::Command::new(scene.executable());
    command.args(["vdi_import", "fast", "-", "--type", "raw", "--size", "4M", "--label", "late"]);
    command.env("XCP_SM_RUN_DIR", run_dir(&scene)).stdin(std::process::Stdio::piped());
    let mut import = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut input = import.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &[7; 1 << 20]).unwrap();
    // It has the SR, and its disk has no name yet.
    let (open, begun) = (format!("/proc/{}/fd", import.id()), std::time::Instant::now());
    let is_of_sr = |file: PathBuf| fs::read_link(file).is_ok_and(|to| to.parent() == Some(scene.dconf().as_ref()));
    while !fs::read_dir(&open).unwrap().any(|file| is_of_sr(file.unwrap().path())) {
        assert!(begun.elapsed().as_secs() < 60, "the import did not begin");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let mut command = std::process::Command::new(scene.executable());
    let deletion = command.args(["sr_delete", "fast"]).env("XCP_SM_RUN_DIR", run_dir(&scene));
    let mut deletion = deletion.stderr(std::process::Stdio::piped()).spawn().unwrap();
    // It counts the disks, and waits for the import. If it is slower, it finds the disk at once.
    std::thread::sleep(std::time::Duration::from_millis(500));
    std::io::Write::write_all(&mut input, &[7; 3 << 20]).unwrap();
    drop(input);
    assert!(import.wait().unwrap().success());
    let ended = deletion.wait().unwrap();
    assert_eq!(ended.code(), Some(22));
    sm(&scene, &["vdi_get_params", "fast/late"]).done();
}
