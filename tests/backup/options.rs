//! sm backup export: disks that are deleted afterwards, zeroed before, or read in a long pause, and what stays of a failure.

use super::*;

/// The words with which a hook calls `sm` as this scene does.
fn sm_words(scene: &Scene) -> String {
    format!("XCP_SM_RUN_DIR={} '{}'", path(scene, "run"), scene.executable().display())
}

fn is_there(scene: &Scene, vdi: &str) -> bool {
    sm(scene, &["vdi_get_params", "fast", vdi]).succeeded()
}

fn manifest(scene: &Scene, set: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(current(scene, "nas", set).join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn options_that_do_not_belong_together_are_refused_before_anything_is_changed() {
    let scene = scene();
    web(&scene, "vhd");
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas"];
    let refused = |more: &[&str]| backup(&scene, &[&line, more].concat()).fails("EINVAL");
    for more in [
        &["--long-pause"][..],
        &["--ignore-remove-failures"],
        &["--remove-source", "--live"],
        &["--zero-timeout-fixed", "3", "--compress", "zstd"],
        &["--zero-timeout-per-mib", "3", "--compress", "zstd"],
        &["--zero-free", "--live", "--compress", "zstd"],
        &["--zero-free", "--compress", "zstd", "--zero-timeout-per-mib", "-1"],
        &["--zero-free", "--compress", "zstd", "--zero-timeout-per-mib", "NaN"],
        &["--zero-free", "--compress", "none"],
        &["--zero-free"],
    ] {
        refused(more);
    }
    // Arguments come before the SR, the store before the programs.
    backup(&scene, &["export", "x", "--disk", "no/web", "--to", "nas", "--zero-free", "--compress", "none"])
        .fails("EINVAL");
    let line_to = |store| ["export", "web", "--disk", "fast/web", "--to", store, "--zero-free", "--compress", "zstd"];
    fs::remove_file(scene.root.path().join("old/.sm-store")).unwrap();
    backup(&scene, &line_to("old")).fails("ENODEV");
    let refused_for = backup(&scene, &line_to("nas")).fails("EINVAL");
    assert!(refused_for.contains("backup-zero.d"), "{refused_for}");
    sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
    let used = refused(&["--remove-source"]);
    assert!(used.contains("--pause"), "{used}");
    let used = refused(&["--zero-free", "--compress", "zstd"]);
    assert!(used.contains("--pause"), "{used}");
    assert_eq!(names(scene.root.path().join("nas")), [".sm-store"]);
    assert!(is_there(&scene, A) && records(&scene).is_empty());
}

#[test]
fn disks_are_deleted_once_their_export_is_there() {
    let scene = scene();
    let bytes = [web(&scene, "vhd"), disk(&scene, B, "data", "raw", 9 * MIB, &[(8 * MIB, pattern(MIB))])];
    backup(&scene, &["define", "web", "--disk", "fast/web", "--disk", "fast/data"]).done();
    backup(&scene, &["export", "web", "--to", "nas", "--since", "last"]).done();
    assert!(sm(&scene, &["sr_scan", "fast"]).done().contains("backup:web:"));
    hook(&scene, "backup-export-pre.d", "a", "echo $SM_REMOVE_SOURCE >> $log");
    hook(&scene, "backup-export-post.d", "a", "echo $SM_POST_RESULT >> $log");
    let line = ["export", "web", "--to", "nas", "--since", "last", "--remove-source"];
    let plan = backup(&scene, &[&line[..], &["-n", "--format", "table"]].concat()).done();
    assert!(plan.contains(&format!("delete VDI {A} (web)")), "{plan}");
    assert!(is_there(&scene, A) && log(&scene).is_empty());
    backup(&scene, &line).done();
    assert_eq!(log(&scene), "True\nTrue\n");
    // Neither a disk nor a snapshot nor a base is left.
    let images = names(scene.dconf());
    assert!(!images.iter().any(|name| name.ends_with(".vhd") || name.ends_with(".raw")), "{images:?}");
    assert!(records(&scene).is_empty());
    backup(&scene, &["verify", "web", "--deep"]).done();
    assert_eq!(manifest(&scene, "web")["consistency"], "offline");
    let new = imported(&scene, "nas", "web", "fast");
    for (vdi, bytes) in new.iter().zip(&bytes) {
        same(&exported(&scene, &format!("fast/{vdi}")), bytes);
    }
    backup(&scene, &line).fails("ENOVDI");
}

#[test]
fn a_disk_that_cannot_be_deleted_is_named_and_its_export_stays() {
    let chattr = |flag: &str, file: &std::path::Path| {
        Command::new("chattr").arg(flag).arg(file).stderr(Stdio::null()).status().is_ok_and(|done| done.success())
    };
    let scene = scene();
    web(&scene, "raw");
    disk(&scene, B, "data", "raw", 9 * MIB, &[(8 * MIB, pattern(MIB))]);
    let image = PathBuf::from(scene.dconf()).join(format!("{A}.raw"));
    if !is_root() || !chattr("+i", &image) {
        return skip("a file that cannot be removed");
    }
    let line = ["export", "web", "--disk", "fast/web", "--disk", "fast/data", "--to", "nas", "--remove-source"];
    let failed = backup(&scene, &line);
    assert!(chattr("-i", &image));
    let failed = failed.fails("ECLEANUP");
    assert!(failed.contains(&format!("disk 0, VDI {A}")) && !failed.contains(B), "{failed}");
    backup(&scene, &["verify", "web", "--deep"]).done();
    assert!(is_there(&scene, A) && !is_there(&scene, B) && records(&scene).is_empty());
    let info = sm(&scene, &["vdi_get_params", "fast/web"]).done();
    assert!(info.contains("(lock . 0)"), "{info}");
    assert!(chattr("+i", &image));
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--remove-source", "--ignore-remove-failures"];
    let warned = backup(&scene, &line);
    assert!(chattr("-i", &image));
    assert!(warned.succeeded() && warned.stderr().contains("exported and not deleted"), "{warned}");
}

#[test]
fn what_uses_disks_that_are_deleted_is_stopped_and_does_not_go_on() {
    let scene = scene();
    let bytes = web(&scene, "vhd");
    sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--remove-source", "--pause"];
    hook(&scene, "backup-resume.d", "vm", "echo resume >> $log");
    // A pause that does not stop it.
    hook(&scene, "backup-pause.d", "vm", "echo pause >> $log");
    let used = backup(&scene, &line).fails("EVDIBUSY");
    assert!(used.contains("vm7") && used.contains("backup-pause.d"), "{used}");
    assert_eq!(log(&scene), "pause\nresume\n");
    assert!(is_there(&scene, A) && records(&scene).is_empty());
    assert_eq!(names(scene.root.path().join("nas")), [".sm-store"]);
    let stop = format!("{} vdi_unlock fast/web FALSE vm7 || exit 1; echo stopped >> $log", sm_words(&scene));
    hook(&scene, "backup-pause.d", "vm", &stop);
    // It goes on if the export fails.
    let image = format!("{}/{A}.vhd", scene.dconf());
    hook(&scene, "backup-pause.d", "z", &format!("cp {image} {image}.kept; truncate -s 4096 {image}"));
    let resume =
        format!("mv {image}.kept {image}; {} vdi_lock fast/web FALSE vm7; echo resume >> $log", sm_words(&scene));
    hook(&scene, "backup-resume.d", "vm", &resume);
    backup(&scene, &line).fails("EEXPORT|EIO");
    assert!(log(&scene).ends_with("stopped\nresume\n"), "{}", log(&scene));
    assert!(records(&scene).is_empty());
    fs::remove_file(scene.root.path().join("run/hooks/backup-pause.d/z")).unwrap();
    fs::write(scene.root.path().join("log"), "").unwrap();
    backup(&scene, &line).done();
    assert_eq!(log(&scene), "stopped\n");
    assert!(!is_there(&scene, A) && records(&scene).is_empty());
    assert_eq!(manifest(&scene, "web")["consistency"], "offline");
    let new = imported(&scene, "nas", "web", "slow");
    same(&exported(&scene, &format!("slow/{}", new[0])), &bytes);
}

#[test]
fn a_killed_export_that_deletes_leaves_the_disk_or_the_export() {
    killed(&["export", "web", "--to", "nas", "--remove-source"], |scene, at| {
        backup(scene, &["list"]).done();
        assert!(records(scene).is_empty(), "killed at {at}");
        backup(scene, &["verify", "web", "--deep"]).done();
        let left = names(scene.root.path().join("nas/web"));
        assert!(left.len() <= 3, "killed at {at}: {left:?}");
        let bytes = match is_there(scene, A) {
            true => {
                let info = sm(scene, &["vdi_get_params", "fast/web"]).done();
                assert!(info.contains("(lock . 0)"), "killed at {at}: {info}");
                exported(scene, "fast/web")
            }
            false => {
                let new = imported(scene, "nas", "web", "slow");
                exported(scene, &format!("slow/{}", new[0]))
            }
        };
        assert!(bytes[5 * MIB as usize..][..4096] == pattern(4096), "killed at {at}");
        // Another disk of the UUID is not the one that was to be deleted.
        if !is_there(scene, A) {
            sm(scene, &["vdi_create", "fast", A, "8M"]).done();
            backup(scene, &["list"]).done();
            assert!(is_there(scene, A), "killed at {at}");
        }
    });
}

#[test]
fn a_disk_without_snapshots_is_read_in_a_long_pause_and_resumed_once_it_is_read() {
    if !is_root() {
        return skip("a disk that is attached");
    }
    let scene = scene();
    let bytes = [web(&scene, "vhd"), disk(&scene, B, "data", "raw", 9 * MIB, &[(8 * MIB, pattern(MIB))])];
    let device = sm(&scene, &["vdi_attach", "fast/data"]).done();
    let device = device.trim().trim_matches('"').to_owned();
    if sm(&scene, &["vdi_snapshot", "fast/data", C]).succeeded() {
        sm(&scene, &["vdi_detach", "fast/data"]).done();
        return skip("a filesystem that cannot snapshot a file");
    }
    sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
    let line = ["export", "web", "--disk", "fast/web", "--disk", "fast/data", "--to", "nas", "--pause"];
    let files = format!("ls {}/web/*.new | tr '\\n' ' '", path(&scene, "nas"));
    // What the user has written lately is in memory alone.
    let write = format!("printf late | dd of={device} bs=1 seek=4096 conv=notrunc status=none");
    hook(&scene, "backup-pause.d", "vm", &format!("{write}; echo pause >> $log"));
    hook(&scene, "backup-resume.d", "vm", &format!("echo resume $({files}) >> $log"));
    backup(&scene, &line).fails("ENOSNAP");
    assert_eq!(log(&scene), "pause\nresume\n");
    fs::write(scene.root.path().join("log"), "").unwrap();
    backup(&scene, &[&line[..], &["--long-pause"]].concat()).done();
    // The other disk is read from its snapshot, after the pause.
    assert_eq!(log(&scene), "pause\nresume disk1.map disk1.raw\n");
    assert_eq!(manifest(&scene, "web")["consistency"], "paused");
    sm(&scene, &["vdi_detach", "fast/data"]).done();
    let new = imported(&scene, "nas", "web", "slow");
    same(&exported(&scene, &format!("slow/{}", new[0])), &bytes[0]);
    let mut data = bytes[1].clone();
    data[4096..4100].copy_from_slice(b"late");
    same(&exported(&scene, &format!("slow/{}", new[1])), &data);
    assert!(!sm(&scene, &["sr_scan", "fast"]).done().contains("backup:web:") && records(&scene).is_empty());
}

#[test]
fn what_disks_do_not_use_is_zeroed_before_by_programs_that_have_their_devices() {
    if !is_root() {
        return skip("a disk that is attached");
    }
    let scene = scene();
    let bytes = web(&scene, "raw");
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--compress", "zstd", "--zero-free"];
    let zero = "echo $SM_HOOKS_PHASE $SM_DISK0_PATH >> $log; \
                dd if=/dev/zero of=$SM_DISK0_PATH bs=1M seek=5 count=6 conv=notrunc,fsync status=none";
    hook(&scene, "backup-zero.d", "vm", zero);
    backup(&scene, &line).done();
    assert!(log(&scene).starts_with("pre /dev/"), "{}", log(&scene));
    assert_eq!(manifest(&scene, "web")["zeroed"], true);
    let map = fs::read_to_string(current(&scene, "nas", "web").join("disk0.map")).unwrap();
    assert!(map.starts_with("0-6 zero\n"), "{map}");
    let mut left = bytes;
    left[5 * MIB as usize..11 * MIB as usize].fill(0);
    let new = imported(&scene, "nas", "web", "slow");
    same(&exported(&scene, &format!("slow/{}", new[0])), &left);
    let free = |scene: &Scene| {
        let info = sm(scene, &["vdi_get_params", "fast/web"]).done();
        assert!(info.contains("(attached . #f)") && info.contains("(lock . 0)"), "{info}");
        assert!(records(scene).is_empty());
    };
    free(&scene);
    // A program that fails or takes too long: nothing is exported, and the disk is detached.
    let before = current(&scene, "nas", "web");
    hook(&scene, "backup-zero.d", "vm", "echo too hard >&2; exit 1");
    let denied = backup(&scene, &line).fails("EHOOKDENY");
    assert!(denied.contains("too hard"), "{denied}");
    free(&scene);
    hook(&scene, "backup-zero.d", "vm", "exec sleep 60");
    let slow = ["--zero-timeout-fixed", "0", "--zero-timeout-per-mib", "0.01"];
    let denied = backup(&scene, &[&line[..], &slow].concat()).fails("EHOOKDENY");
    assert!(denied.contains("did not end"), "{denied}");
    free(&scene);
    assert_eq!(current(&scene, "nas", "web"), before);
}

const ZERO: [&str; 8] = ["export", "web", "--disk", "fast/web", "--to", "nas", "--compress", "zstd"];

#[test]
fn a_disk_that_is_zeroed_is_attached_by_nobody_else() {
    if !is_root() {
        return skip("a disk that is attached");
    }
    let scene = scene();
    web(&scene, "raw");
    let line = [&ZERO[..], &["--zero-free"]].concat();
    let attach = format!("{} vdi_attach fast/web --wait 0", sm_words(&scene));
    hook(&scene, "backup-zero.d", "vm", &format!("{attach} && word=attached || word=refused; echo $word >> $log"));
    backup(&scene, &line).done();
    assert_eq!(log(&scene), "refused\n");
    // Neither is one that got a device after it was looked at.
    hook(&scene, "backup-export-pre.d", "vm", &attach);
    let used = backup(&scene, &line).fails("EVDIBUSY");
    assert!(used.contains("this host, which has it attached as /dev/"), "{used}");
    assert_eq!(log(&scene), "refused\n");
    assert!(records(&scene).is_empty());
    let info = sm(&scene, &["vdi_get_params", "fast/web"]).done();
    sm(&scene, &["vdi_detach", "fast/web"]).done();
    assert!(!info.contains("(attached . #f)") && info.contains("(lock . 0)"), "{info}");
    fs::remove_dir_all(scene.root.path().join("run/hooks/backup-export-pre.d")).unwrap();
    // Nor one that another host has.
    sm(&scene, &["vdi_lock", "fast/web", "FALSE", "vm7"]).done();
    hook(&scene, "backup-pause.d", "vm", "echo pause >> $log");
    let used = backup(&scene, &[&line[..], &["--pause"]].concat()).fails("EVDIBUSY");
    assert!(used.contains("vm7, who locked it and has it elsewhere; --zero-free needs its device here"), "{used}");
    assert_eq!(log(&scene), "refused\n");
    assert!(records(&scene).is_empty());
}

#[test]
fn a_disk_that_could_not_be_detached_after_the_zeroing_is_detached_by_the_next_call() {
    if !is_root() {
        return skip("a disk that is attached");
    }
    let scene = scene();
    web(&scene, "raw");
    let line = [&ZERO[..], &["--zero-free"]].concat();
    // It leaves a program that has the device.
    let keeps = "exec 3< $SM_DISK0_PATH; sleep 300 > /dev/null 2>&1 & echo $! >> $log";
    hook(&scene, "backup-zero.d", "vm", keeps);
    let used = backup(&scene, &line);
    let left = log(&scene);
    Command::new("kill").arg(left.trim()).status().unwrap();
    let begun = std::time::Instant::now();
    let has_files = || fs::read_dir(format!("/proc/{}/fd", left.trim())).is_ok_and(|mut files| files.next().is_some());
    while has_files() && begun.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let attached = |scene: &Scene| !sm(scene, &["vdi_get_params", "fast/web"]).done().contains("(attached . #f)");
    let (was_attached, had) = (attached(&scene), records(&scene));
    let told = backup(&scene, &["list"]);
    let is_attached = attached(&scene);
    sm(&scene, &["vdi_detach", "fast/web"]).done();
    used.fails("EVDIBUSY");
    assert!(was_attached && had.len() == 1, "{had:?}");
    assert!(told.succeeded() && !is_attached && records(&scene).is_empty(), "{told}");
}

#[test]
fn a_disk_that_is_attached_when_what_was_paused_goes_on_stays_attached() {
    if !is_root() {
        return skip("a disk that is attached");
    }
    let scene = scene();
    web(&scene, "raw");
    let run = "20261127T010735Z-1f2e3d4c";
    let disk = format!(r#"{{"sr":"{SR}","vdi":"{A}"}}"#);
    let record = format!(
        r#"{{"run":"{run}","set":"web","store":null,"locks":[{disk}],"paused":{{"SM_REMOVE_SOURCE":"True"}},"attached":[{disk}],"made":[]}}"#
    );
    let dir = scene.root.path().join("run/backup");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(format!("{run}.json")), record).unwrap();
    sm(&scene, &["vdi_attach", "fast/web"]).done();
    // It goes on, and the call cannot end all the same.
    hook(&scene, "backup-resume.d", "vm", &format!("{} vdi_attach fast/web; exit 1", sm_words(&scene)));
    let told = [backup(&scene, &["list"]), backup(&scene, &["list"])];
    let had = records(&scene);
    hook(&scene, "backup-resume.d", "vm", "echo resumed >> $log");
    let last = backup(&scene, &["list"]);
    let detached = sm(&scene, &["vdi_get_params", "fast/web"]).done().contains("(attached . #f)");
    sm(&scene, &["vdi_detach", "fast/web"]).done();
    assert!(
        told.iter().all(|told| told.stderr().contains("is not undone")) && had.len() == 1,
        "{}{}",
        told[0],
        told[1]
    );
    assert!(last.succeeded() && log(&scene) == "resumed\n" && records(&scene).is_empty(), "{last}");
    assert!(!detached, "the recovery detached it");
}

#[test]
fn a_disk_that_was_told_to_stay_is_not_deleted_by_the_next_call() {
    let chattr = |flag: &str, dir: &str| {
        Command::new("chattr").args(["-R", flag, dir]).stderr(Stdio::null()).status().is_ok_and(|done| done.success())
    };
    let scene = scene();
    web(&scene, "raw");
    let sr = scene.dconf();
    if !is_root() || !chattr("+i", &sr) || !chattr("-i", &sr) {
        return skip("a directory that cannot be changed");
    }
    // Once the disk is locked, nothing in the SR can be removed, nor unlocked.
    hook(&scene, "backup-zero.d", "vm", &format!("chattr -R +i {sr}"));
    let failed = backup(&scene, &[&ZERO[..], &["--zero-free", "--remove-source"]].concat());
    assert!(chattr("-i", &sr));
    let failed = failed.fails("ECLEANUP");
    assert!(failed.contains(&format!("disk 0, VDI {A}")), "{failed}");
    assert_eq!(records(&scene).len(), 1);
    backup(&scene, &["list"]).done();
    assert!(is_there(&scene, A) && records(&scene).is_empty());
    let info = sm(&scene, &["vdi_get_params", "fast/web"]).done();
    assert!(info.contains("(lock . 0)"), "{info}");
}

#[test]
fn the_disks_that_did_not_fail_stay_if_that_is_wanted_until_an_export_succeeds() {
    let scene = scene();
    let bytes = web(&scene, "raw");
    // A disk that is damaged once it was looked at.
    disk(&scene, B, "bad", "vhd", 9 * MIB, &[(8 * MIB, pattern(MIB))]);
    let line = |more: &[&'static str]| {
        let line = ["export", "web", "--disk", "fast/web", "--disk", "fast/bad", "--to", "nas", "--compress", "zstd"];
        [&line[..], more].concat()
    };
    let image = format!("{}/{B}.vhd", scene.dconf());
    // The table says that the last block is where the header is.
    let table = format!("printf '\\000\\000\\000\\001' | dd of={image} bs=1 seek=1552 conv=notrunc status=none");
    let damage = format!("cp {image} {image}.kept; {table}");
    hook(&scene, "backup-export-pre.d", "a", &damage);
    hook(&scene, "backup-export-post.d", "a", &format!("mv {image}.kept {image}"));
    let failed = backup(&scene, &line(&["--keep-partial"]));
    let failed = failed.fails("EEXPORT");
    let left = names(scene.root.path().join("nas/web"));
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].ends_with(".partial") && failed.contains(&left[0]), "{left:?}: {failed}");
    let dir = scene.root.path().join("nas/web").join(&left[0]);
    assert_eq!(names(&dir), ["SHA256SUMS", "disk0.map", "disk0.raw.zst"]);
    let unpacked = Command::new("zstd").args(["-dcq", "disk0.raw.zst"]).current_dir(&dir).output();
    if let Ok(unpacked) = unpacked {
        same(&unpacked.stdout, &bytes);
    }
    // It is no export, and stays until there is one.
    backup(&scene, &["verify", "web"]).fails("EVERIFY");
    assert!(!backup(&scene, &["list"]).done().contains("partial"));
    backup(&scene, &line(&[])).fails("EEXPORT");
    assert_eq!(names(scene.root.path().join("nas/web")), left);
    // That of a later run takes its place.
    let failed = backup(&scene, &line(&["--keep-partial"])).fails("EEXPORT");
    let later = names(scene.root.path().join("nas/web"));
    assert!(later.len() == 1 && later != left && failed.contains(&later[0]), "{later:?}: {failed}");
    fs::remove_dir_all(scene.root.path().join("run/hooks")).unwrap();
    backup(&scene, &line(&[])).done();
    assert!(!names(scene.root.path().join("nas/web")).iter().any(|name| name.ends_with(".partial")));
    // And goes with the set.
    hook(&scene, "backup-export-pre.d", "a", &damage);
    hook(&scene, "backup-export-post.d", "a", &format!("mv {image}.kept {image}"));
    backup(&scene, &line(&["--keep-partial"])).fails("EEXPORT");
    backup(&scene, &["remove", "web", "--yes"]).done();
    assert_eq!(names(scene.root.path().join("nas")), [".sm-store"]);
}

#[test]
fn what_the_bases_of_a_disk_hold_counts_as_its_own() {
    let scene = scene();
    web(&scene, "vhd");
    let allocated = || {
        backup(&scene, &["export", "web", "--to", "nas"]).done();
        manifest(&scene, "web")["disks"][0]["allocated"].as_u64().unwrap()
    };
    backup(&scene, &["define", "web", "--disk", "fast/web"]).done();
    let alone = allocated();
    assert!((6 * MIB..50 * MIB).contains(&alone), "{alone}");
    sm(&scene, &["vdi_snapshot", "fast/web"]).done();
    let above_a_base = allocated();
    assert!((alone..50 * MIB).contains(&above_a_base), "{alone}, then {above_a_base}");
}
