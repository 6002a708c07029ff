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
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use scene::backups::{backup, disk, path, sm, with_stores};
use scene::kill::{Act, End, Points, run};
use scene::{A, B, MIB, Scene, pattern};
use sha2::Digest as _;

/// A scene with the file SRs `fast` and `slow`, and the store `nas`.
fn scene() -> Scene {
    with_stores(&["nas"])
}

/// The set `web` of two disks, and an export of it.
fn exported(scene: &Scene) {
    disk(scene, A, "web", "vhd", 8 * MIB, &[(5 * MIB, pattern(4096))]);
    disk(scene, B, "data", "raw", 8 * MIB, &[(MIB, pattern(4096))]);
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

/// Makes a hook of a script, in which `$log` is the file `log` of the scene.
fn hook(scene: &Scene, point: &str, script: &str) {
    let hooks = scene.root.path().join("run/hooks").join(point);
    fs::create_dir_all(&hooks).unwrap();
    fs::write(hooks.join("vm"), format!("#!/bin/sh\nlog={}\n{script}\n", path(scene, "log"))).unwrap();
    fs::set_permissions(hooks.join("vm"), PermissionsExt::from_mode(0o755)).unwrap();
}

fn log(scene: &Scene) -> String {
    fs::read_to_string(path(scene, "log")).unwrap_or_default()
}

#[test]
fn every_command_ends_the_pause_of_a_killed_export() {
    let scene = scene();
    exported(&scene);
    hook(&scene, "backup-resume.d", "echo resumed >> $log");
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
        assert_eq!(log(&scene), "resumed\n", "{words:?}");
        assert!(records(&scene).is_empty(), "{words:?}");
    }
}

/// The processes of hooks of this scene.
fn hooks_of(scene: &Scene) -> Vec<String> {
    let ours = format!("SM_DATA_DIR={}/run/backup", scene.root.path().display());
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| {
        fs::read(path.join("environ")).unwrap_or_default().split(|byte| *byte == 0).any(|it| it == ours.as_bytes())
    };
    processes.filter(is_ours).map(|path| fs::read_to_string(path.join("comm")).unwrap_or_default()).collect()
}

/// Starts a command, and kills it once the hook says that it has begun.
fn killed_in_a_hook(scene: &Scene, words: &[&str]) {
    let call = started(scene, words);
    until("the hook has begun", || log(scene).contains("begun"));
    drop(call);
}

#[test]
fn a_pause_does_not_go_on_when_its_caller_was_killed() {
    let scene = scene();
    exported(&scene);
    sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
    // The shell waits for a program of its own, which goes on when the shell is killed.
    hook(&scene, "backup-pause.d", "(echo begun >> $log; sleep 60; echo paused >> $log) & wait; true");
    hook(&scene, "backup-resume.d", "echo resumed >> $log");
    killed_in_a_hook(&scene, &["export", "web", "--to", "nas", "--pause"]);
    backup(&scene, &["list"]).done();
    assert_eq!(hooks_of(&scene), [""; 0]);
    assert_eq!(log(&scene), "begun\nresumed\n");
}

#[test]
fn a_hook_dies_with_its_caller_but_a_resume_ends_what_it_does() {
    let scene = scene();
    exported(&scene);
    hook(&scene, "backup-export-pre.d", "echo begun >> $log; exec sleep 60");
    killed_in_a_hook(&scene, &["export", "web", "--to", "nas"]);
    until("the hook dies", || hooks_of(&scene).is_empty());
    fs::remove_dir_all(scene.root.path().join("run/hooks")).unwrap();
    sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
    fs::write(path(&scene, "log"), "").unwrap();
    hook(&scene, "backup-resume.d", "echo begun >> $log; sleep 1; echo resumed >> $log");
    killed_in_a_hook(&scene, &["export", "web", "--to", "nas", "--pause"]);
    until("the resume is done", || log(&scene).contains("resumed"));
}

#[test]
fn a_hook_that_writes_without_end_takes_no_memory_and_says_its_last_words() {
    let scene = scene();
    exported(&scene);
    hook(&scene, "backup-export-pre.d", "head -c 300000000 /dev/zero | tr '\\0' x; echo sorry; exit 3");
    let words = ["backup", "export", "web", "--to", "nas"].map(str::to_owned);
    // 300 MB of output do not fit into the memory that the call may take.
    let denied = scene.under("prlimit --as=250000000", words);
    assert!(denied.stderr().ends_with("xxxsorry\n"), "{denied}");
    denied.fails("EHOOKDENY");
}

/// A command that runs until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started(scene: &Scene, words: &[&str]) -> Running {
    let mut command = Command::new(scene.executable());
    command.arg("backup").args(words).env("XCP_SM_RUN_DIR", scene.root.path().join("run"));
    Running(command.stdout(Stdio::null()).spawn().unwrap())
}

/// Waits until something is so.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(120), "it did not come to that: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn no_disk_of_a_set_is_attached_or_changed_while_another_is_read() {
    let scene = scene();
    // The first disk takes minutes at this rate, and the other has its turn after it.
    disk(&scene, A, "web", "vhd", 64 * MIB, &[(0, pattern(64 * MIB))]);
    disk(&scene, B, "data", "raw", 8 * MIB, &[(MIB, pattern(4096))]);
    backup(&scene, &["define", "web", "--disk", "fast/web", "--disk", "fast/data"]).done();
    let export = started(&scene, &["export", "web", "--to", "nas", "--rate", "100K"]);
    until("the export reads the first disk", || {
        let runs = fs::read_dir(path(&scene, "nas/web"));
        runs.is_ok_and(|mut runs| runs.any(|run| run.unwrap().file_name().to_str().unwrap().ends_with(".new")))
    });
    for words in [&["vdi_resize", "fast/data", "16M"][..], &["vdi_attach", "fast/data"], &["vdi_attach", "fast/web"]] {
        let refused = sm(&scene, &[words, &["--wait", "0"]].concat());
        // Without the change, this is what is left attached.
        let _ = sm(&scene, &["vdi_detach", "fast/data", "--wait", "0"]);
        assert!(!refused.succeeded(), "{refused}");
        refused.fails("ESRBUSY|EBUSY|EVDIBUSY");
    }
    drop(export);
    backup(&scene, &["list"]).done();
    sm(&scene, &["vdi_resize", "fast/data", "16M"]).done();
}

/// The directory of the current export of `web` in a store.
fn current(scene: &Scene, store: &str) -> PathBuf {
    scene.root.path().join(store).join("web/current").canonicalize().unwrap()
}

#[test]
fn two_hosts_with_a_set_of_one_name_do_not_remove_the_exports_of_each_other() {
    let scene = with_stores(&["nas", "old"]);
    exported(&scene);
    let of_another = |store: &str| {
        let file = current(&scene, store).join("manifest.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        manifest["source_host"] = "alpha".into();
        manifest["source_machine"] = "0".repeat(32).into();
        fs::write(file, manifest.to_string()).unwrap();
    };
    of_another("nas");
    let before = current(&scene, "nas");
    for line in [&["export", "web", "--to", "nas"][..], &["export", "web", "--to", "nas", "-n"]] {
        let refused = backup(&scene, line).fails("EPERM");
        assert!(refused.contains("host alpha made the exports of set web in store nas"), "{refused}");
    }
    // Nor does an export into another store, or a removal that names no store.
    let kept = "store nas keeps what host alpha exported of web; sm backup remove web --store nas removes it";
    let told = backup(&scene, &["export", "web", "--to", "old"]);
    assert!(told.succeeded() && told.stderr().contains(kept), "{told}");
    let told = backup(&scene, &["remove", "web"]);
    assert!(told.succeeded() && told.stderr().contains(kept), "{told}");
    assert_eq!(current(&scene, "nas"), before);
    assert!(!scene.root.path().join("old/web").exists());
    // Nor do exports come from elsewhere in between.
    let sent = |more: &[&str]| {
        let file = scene.root.path().join("sent");
        backup(&scene, &["export", "web", "--to", "old", "--keep-others"]).done();
        let words =
            |words: &[&str]| [&["backup"], words].concat().iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let run = |words: Vec<String>, from: Stdio, to: Stdio| {
            let mut command = Command::new(scene.executable());
            command
                .args(words)
                .env("XCP_SM_RUN_DIR", scene.root.path().join("run"))
                .stdin(from)
                .stdout(to)
                .output()
                .unwrap()
        };
        let to = File::create(&file).unwrap();
        assert!(run(words(&["send", "web", "--store", "old"]), Stdio::null(), to.into()).status.success());
        let from = File::open(&file).unwrap();
        run(words(&[&["receive", "--to", "nas"], more].concat()), from.into(), Stdio::null())
    };
    let refused = sent(&["--keep", "1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("host alpha made the exports of set web"), "{said}");
    assert_eq!(current(&scene, "nas"), before);
    let runs = || fs::read_dir(path(&scene, "nas/web")).unwrap().count();
    let had = runs();
    assert!(sent(&["--take-over"]).status.success());
    assert_eq!(runs(), had + 1);
    of_another("nas");
    let before = current(&scene, "nas");
    // A person who says so takes them over.
    backup(&scene, &["export", "web", "--to", "nas", "--take-over", "--keep-others"]).done();
    assert_ne!(current(&scene, "nas"), before);
    backup(&scene, &["export", "web", "--to", "nas", "--keep-others"]).done();
    of_another("nas");
    backup(&scene, &["remove", "web", "--store", "nas"]).done();
    assert!(!scene.root.path().join("nas/web").exists());
}

#[test]
fn a_run_whose_manifest_cannot_be_read_is_not_removed_as_if_it_were_of_this_host() {
    let scene = with_stores(&["nas", "old"]);
    exported(&scene);
    let other = current(&scene, "nas").join("manifest.json");
    backup(&scene, &["export", "web", "--to", "nas", "--keep", "5"]).done();
    let newest = current(&scene, "nas").join("manifest.json");
    let runs = || fs::read_dir(path(&scene, "nas/web")).unwrap().count();
    // The run before the newest is of a later version, or the newest has a flipped bit.
    for file in [&other, &newest] {
        let good = fs::read(file).unwrap();
        let text = String::from_utf8(good.clone()).unwrap();
        let bad =
            if file == &other { text.replace("\"version\": 1", "\"version\": 2") } else { text.replacen('{', "[", 1) };
        assert_ne!(text, bad);
        fs::write(file, bad).unwrap();
        let run = file.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        for line in [&["export", "web", "--to", "nas"][..], &["export", "web", "--to", "nas", "-n"]] {
            let refused = backup(&scene, line).fails("EPERM");
            assert!(
                refused.contains(&format!("may have made run {run}")) && refused.contains("--take-over"),
                "{refused}"
            );
        }
        for line in [&["export", "web", "--to", "old"][..], &["remove", "web"]] {
            let told = backup(&scene, line);
            let kept = format!("store nas keeps what it has of web, as another host may have made run {run}");
            assert!(told.succeeded() && told.stderr().contains(&kept), "{told}");
        }
        assert_eq!(runs(), 3);
        fs::write(file, good).unwrap();
    }
    fs::write(&other, "{}").unwrap();
    // A person may say that it is of no use: of all runs, or of this one.
    let run = other.parent().unwrap().file_name().unwrap().to_str().unwrap();
    backup(&scene, &["remove", "web", "--store", "nas", "--run", run]).done();
    fs::write(&newest, "{}").unwrap();
    backup(&scene, &["export", "web", "--to", "nas", "--take-over", "--keep", "1"]).done();
    assert_eq!(runs(), 2);
    backup(&scene, &["remove", "web"]).done();
    assert!(!scene.root.path().join("nas/web").exists());
}

#[test]
fn damage_where_a_raw_image_has_zeroes_is_found_and_verify_says_what_it_read() {
    let scene = scene();
    exported(&scene);
    let said = backup(&scene, &["verify", "web", "--format", "table"]).done();
    assert!(said.contains("is complete") && said.contains("no raw image was read"), "{said}");
    let said = backup(&scene, &["verify", "web", "--deep", "--format", "table"]).done();
    assert!(said.contains("is whole: every block was read"), "{said}");
    // The last byte of the block before the only one that has data.
    let image = File::options().write(true).open(current(&scene, "nas").join("disk0.raw")).unwrap();
    image.write_all_at(b"x", 4 * MIB - 1).unwrap();
    let damaged = backup(&scene, &["verify", "web", "--deep"]).fails("EVERIFY");
    assert!(damaged.contains("disk0.raw") && damaged.contains("block 0 has data"), "{damaged}");
    backup(&scene, &["export", "web", "--to", "nas", "--compress", "zstd"]).done();
    let said = backup(&scene, &["verify", "web", "--format", "table"]).done();
    assert!(said.contains("is whole") && said.contains("packed images were read"), "{said}");
}

/// Puts a pipe without a writer in the place of a file.
fn pipe(path: &Path) {
    let _ = fs::remove_file(path);
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap();
}

#[test]
fn a_pipe_or_a_device_in_the_place_of_a_file_is_refused_and_not_waited_for() {
    let scene = scene();
    exported(&scene);
    let soon = |words: &[&str]| scene.under("timeout 60", [&["backup"], words].concat());
    for file in ["manifest.json", "SHA256SUMS", "disk0.map", "disk0.raw"] {
        let (path, aside) = (current(&scene, "nas").join(file), scene.root.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        pipe(&path);
        let refused = soon(&["verify", "web"]).fails("EVERIFY");
        assert!(refused.contains(file) && refused.contains("is not a regular file"), "{refused}");
        soon(&["import", "web", "--from", "nas", "--sr", "slow"]).fails("EVERIFY");
        fs::rename(&aside, &path).unwrap();
    }
    let odd = scene.root.path().join("odd");
    pipe(&odd);
    for path in [odd.to_str().unwrap(), "/dev/zero"] {
        backup(&scene, &["define", "odd", "--disk", "fast/web", "--metadata", path]).done();
        let refused = soon(&["export", "odd", "--to", "nas"]).fails("EIO");
        assert!(refused.contains("it is no regular file"), "{refused}");
        let secrets = scene.under("timeout 60", ["apply", path, "--yes"]).fails("EIO");
        assert!(secrets.contains("it is no regular file"), "{secrets}");
    }
    pipe(&scene.root.path().join("run/stores.conf"));
    soon(&["list"]).fails("EIO");
}

#[test]
fn what_somebody_put_into_a_store_concerns_itself_alone() {
    let scene = scene();
    exported(&scene);
    let shelf = scene.root.path().join("nas/web");
    let run = current(&scene, "nas");
    // A link that has the name of a later run.
    std::os::unix::fs::symlink(&run, shelf.join("20991231T000000Z-00000000")).unwrap();
    let list = backup(&scene, &["list", "--format", "table"]).done();
    assert!(!list.contains("20991231"), "{list}");
    let none = backup(&scene, &["verify", "web", "--run", "20991231T000000Z-00000000"]).fails("EVERIFY");
    assert!(none.contains("is no directory"), "{none}");
    fs::remove_file(shelf.join("20991231T000000Z-00000000")).unwrap();
    // A directory in the place of the link to the newest run.
    fs::remove_file(shelf.join("current")).unwrap();
    fs::create_dir(shelf.join("current")).unwrap();
    let list = backup(&scene, &["list", "--format", "table"]).done();
    assert!(list.contains(run.file_name().unwrap().to_str().unwrap()), "{list}");
    backup(&scene, &["verify", "web", "--deep"]).done();
    let refused = backup(&scene, &["export", "web", "--to", "nas"]).fails("EVERIFY");
    assert!(refused.contains("nas/web/current"), "{refused}");
    assert!(run.exists() && records(&scene).is_empty());
    // A set that is a link.
    std::os::unix::fs::symlink(&run, scene.root.path().join("nas/other")).unwrap();
    backup(&scene, &["verify", "other"]).fails("EVERIFY");
}

/// Gives the current run of `web` in `nas` another name, as a host with a wrong clock would have named it.
fn renamed(scene: &Scene, run: &str, timestamp: &str) {
    let (old, shelf) = (current(scene, "nas"), scene.root.path().join("nas/web"));
    let (text, sums) = (old.join("manifest.json"), old.join("SHA256SUMS"));
    let before = fs::read(&text).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&before).unwrap();
    (manifest["run"], manifest["timestamp"]) = (run.into(), timestamp.into());
    let after = manifest.to_string();
    let sum = |bytes: &[u8]| sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    fs::write(&text, &after).unwrap();
    let told = fs::read_to_string(&sums).unwrap();
    fs::write(&sums, told.replace(&sum(&before), &sum(after.as_bytes()))).unwrap();
    fs::rename(&old, shelf.join(run)).unwrap();
    fs::remove_file(shelf.join("current")).unwrap();
    std::os::unix::fs::symlink(run, shelf.join("current")).unwrap();
}

#[test]
fn a_run_from_the_future_stops_no_export_and_no_retention_and_no_host_receives_it() {
    let scene = with_stores(&["nas", "old"]);
    exported(&scene);
    let shelf = scene.root.path().join("nas/web");
    // What no calendar shows is no run.
    fs::create_dir(shelf.join("99999999T999999Z-ffffffff")).unwrap();
    let list = backup(&scene, &["list", "--format", "table"]).done();
    assert!(!list.contains("99999999T"), "{list}");
    backup(&scene, &["export", "web", "--to", "nas", "--since", "last"]).done();
    fs::remove_dir(shelf.join("99999999T999999Z-ffffffff")).unwrap();
    backup(&scene, &["export", "web", "--to", "nas", "--since", "none", "--keep", "1"]).done();
    // A clock was ahead for one run, whose name is the last one of its second.
    renamed(&scene, "20991231T235959Z-ffffffff", "2099-12-31T23:59:59Z");
    let export = |more: &[&str]| {
        let line = ["export", "web", "--to", "nas", "--keep-others", "--format", "table"];
        let said = backup(&scene, &[&line[..], more].concat());
        assert!(said.succeeded() && said.stderr().contains("ahead of this host's clock"), "{said}");
        assert!(!said.stderr().contains("  "), "{said}");
        said.stdout().trim().to_owned()
    };
    let second = export(&["--since", "last", "--keep", "9"]);
    assert_eq!(second, "21000101T000000Z-00000000");
    // It is read by all that an increment is on, and a run stays as long as another needs it.
    backup(&scene, &["verify", "web", "--deep"]).done();
    let third = export(&["--since", "last", "--keep", "1"]);
    assert_eq!(fs::read_dir(&shelf).unwrap().count(), 4, "three runs and the link");
    backup(&scene, &["verify", "web", "--run", &third, "--deep"]).done();
    // The second and the third run began on one day: the second goes, whatever the day in their names is.
    let whole = export(&["--since", "none", "--keep", "1", "--keep-daily", "2"]);
    let left = |run: &str| shelf.join(run).exists();
    assert!(left(&whole) && left("20991231T235959Z-ffffffff") && !left(&second) && !left(&third));
    export(&["--since", "none", "--keep", "1", "--keep-daily", "1"]);
    assert_eq!(fs::read_dir(&shelf).unwrap().count(), 2, "one run and the link");
    // Another host takes none of them.
    let file = scene.root.path().join("sent");
    let run = |words: &[&str], from: Stdio, to: Stdio| {
        let mut command = Command::new(scene.executable());
        command.arg("backup").args(words).env("XCP_SM_RUN_DIR", scene.root.path().join("run")).stdin(from).stdout(to);
        command.output().unwrap()
    };
    let to = File::create(&file).unwrap();
    assert!(run(&["send", "web", "--store", "nas"], Stdio::null(), to.into()).status.success());
    let refused = run(&["receive", "--to", "old"], File::open(&file).unwrap().into(), Stdio::null());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("more than a day ahead of the clock"), "{said}");
    assert!(!said.contains("  "), "{said}");
    assert!(!scene.root.path().join("old/web").exists());
    // No name sorts after the last one that there is: a person is told what to do.
    renamed(&scene, "99991231T235959Z-ffffffff", "2026-11-27T01:07:35Z");
    let refused = backup(&scene, &["export", "web", "--to", "nas"]).fails("EINVAL");
    assert!(refused.contains("99991231T235959Z-ffffffff") && refused.contains("sm backup remove web"), "{refused}");
    assert!(records(&scene).is_empty());
    backup(&scene, &["remove", "web", "--store", "nas"]).done();
    backup(&scene, &["export", "web", "--to", "nas"]).done();
}

#[test]
fn a_map_without_lines_takes_no_memory_and_is_named() {
    let scene = scene();
    exported(&scene);
    let map = current(&scene, "nas").join("disk0.map");
    let file = File::options().write(true).open(&map).unwrap();
    // As long as the map of a disk of its size may be.
    for (length, says) in
        [(170, "cannot be read: it is too long"), (1 << 40, "is longer than a map of this disk can be")]
    {
        file.set_len(0).unwrap();
        file.set_len(length).unwrap();
        let said = backup(&scene, &["verify", "web"]).fails("EVERIFY");
        assert!(said.contains("disk0.map") && said.contains(says), "{said}");
    }
}

#[test]
fn a_host_takes_no_lock_of_a_copy_of_itself() {
    let scene = scene();
    exported(&scene);
    let lock = scene.root.path().join("nas/.web.lock");
    // The digits of this machine, as its exports tell them.
    let text = fs::read(current(&scene, "nas").join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let (host, machine) = (manifest["source_host"].clone(), manifest["source_machine"].clone());
    let (other, zeroes) = (serde_json::json!("copy"), serde_json::json!("0".repeat(32)));
    let holder = |host: &serde_json::Value, machine: &serde_json::Value, taken: u64| {
        serde_json::json!({"host": host, "machine": machine, "boot": "x", "pid": 1, "started": 1, "taken": taken,
            "run": "20261127T010735Z-1f2e3d4c"})
    };
    let mut holders = vec![holder(&host, &zeroes, 1), holder(&host, &machine, u64::MAX)];
    if machine.is_string() {
        holders.push(holder(&other, &machine, 1));
    }
    for alive in holders {
        fs::write(&lock, alive.to_string()).unwrap();
        let line = ["export", "web", "--to", "nas", "--lock-timeout", "0"];
        let refused = backup(&scene, &line);
        // Without a machine-id(5), the name alone tells a host.
        if machine.is_string() || alive["taken"] == u64::MAX {
            assert!(refused.fails("ENOLCK").contains("remove "), "{alive}");
            assert!(lock.exists(), "{alive}");
        }
    }
    // This host before its present start.
    fs::write(&lock, holder(&host, &machine, 1).to_string()).unwrap();
    backup(&scene, &["export", "web", "--to", "nas", "--lock-timeout", "0"]).done();
    assert!(!lock.exists());
}

#[test]
fn a_hook_that_others_can_exchange_is_not_run_and_a_rate_of_nothing_is_refused() {
    let scene = scene();
    exported(&scene);
    let open = scene.root.path().join("open");
    fs::create_dir_all(open.join("in")).unwrap();
    hook(&scene, "backup-export-pre.d", "echo ran >> $log");
    let (hook, real) = (scene.root.path().join("run/hooks/backup-export-pre.d/vm"), open.join("in/vm"));
    fs::rename(&hook, &real).unwrap();
    std::os::unix::fs::symlink(&real, &hook).unwrap();
    backup(&scene, &["export", "web", "--to", "nas"]).done();
    assert_eq!(log(&scene), "ran\n");
    fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    let refused = backup(&scene, &["export", "web", "--to", "nas"]).fails("EHOOKDENY");
    assert!(refused.contains("others can write to it") && log(&scene) == "ran\n", "{refused}");
    fs::set_permissions(&open, PermissionsExt::from_mode(0o755)).unwrap();
    for (rate, said) in [("0", "--rate"), ("x", "--rate")] {
        let refused = backup(&scene, &["export", "web", "--to", "nas", "--rate", rate]).fails("EINVAL");
        assert!(refused.contains(said), "{refused}");
    }
}
