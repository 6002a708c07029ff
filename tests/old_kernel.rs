//! Kernels and filesystems that lack what we would rather use: each missing call has another way.
//!
//! The call is made to fail as the kernel that lacks it lets it fail. The executables themselves need nothing of
//! the system they run on but the kernel: they are static.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use nix::errno::Errno;
use nix::libc;
use scene::filesystem::Filesystem;
use scene::kill::{self, ALL, Act, End, Points};
use scene::{A, B, C, Door, FILE, MIB, Outcome, SR, Scene, is_root, pattern, skip};

/// A call that a kernel may lack.
struct Missing {
    is: fn(i64, [u64; 6]) -> bool,
    errno: Errno,
    /// The commands that would have made it.
    wanted_by: &'static [&'static str],
}

const COPIERS: &[&str] = &["vdi_clone", "vdi_snapshot"];
const MAKERS: &[&str] =
    &["sr_create", "vdi_create", "vdi_clone", "vdi_snapshot", "vdi_lock", "vdi_unlock", "vdi_export"];

/// How kernels and filesystems without unnamed files refuse one.
const WITHOUT_UNNAMED: &[Errno] = &[Errno::EOPNOTSUPP, Errno::EISDIR, Errno::EINVAL];

fn opens_unnamed(number: i64, args: [u64; 6]) -> bool {
    number == libc::SYS_openat && args[2] as i32 & libc::O_TMPFILE == libc::O_TMPFILE
}

/// Everything a VDI goes through, without what is missing.
fn a_life(scene: &Scene, missing: &Missing) {
    let call = |words: &[&str]| -> String {
        let (program, run_dir) = (scene.executable(), scene.root.path().join("run"));
        let act = Act::Fail(missing.errno);
        let traced = kill::run(ALL, Points::Matching(missing.is), act, &program, &scene.line(words), &run_dir);
        let said = String::from_utf8_lossy(&traced.stderr);
        assert_eq!((traced.end, &*said), (End::Status(0), ""), "{words:?} without it: {}", missing.errno);
        assert_eq!(traced.call.is_some(), missing.wanted_by.contains(&words[0]), "{words:?} wanted it");
        String::from_utf8(traced.stdout).unwrap()
    };
    let read = |path: &Path| fs::read(path).unwrap();
    call(&["sr_create", SR]);
    call(&["vdi_create", SR, A, "4", "--label", "a"]);
    let bytes = [pattern(3 * MIB), vec![0; MIB as usize]].concat();
    fs::write(scene.image(A), &bytes[..3 * MIB as usize]).unwrap();
    fs::File::options().write(true).open(scene.image(A)).unwrap().set_len(4 * MIB).unwrap();
    call(&["vdi_clone", SR, A, B]);
    call(&["vdi_snapshot", SR, A, C]);
    assert!(read(&scene.image(B)) == bytes && read(&scene.image(C)) == bytes, "a copy differs");
    call(&["vdi_lock", SR, A, "FALSE", "u"]);
    call(&["vdi_unlock", SR, A, "FALSE", "u"]);
    if nix::unistd::geteuid().is_root() {
        let device = scene.loop_device(&call(&["vdi_attach", SR, A]));
        assert_eq!(scene.loop_device(&scene.call(["vdi_attach", SR, A]).done()), device);
        assert!(scene.call(["vdi_get_params", SR, A]).done().contains("(attached . #t)"));
        assert!(read(&device) == bytes, "the device differs from the disk");
        fs::write(&device, "written").unwrap();
        call(&["vdi_resize", SR, A, "8"]);
        assert_eq!(read(&device).len() as u64, 8 * MIB);
        call(&["vdi_detach", SR, A]);
        assert!(read(&scene.image(A)).starts_with(b"written"));
        let device = scene.loop_device(&call(&["vdi_attach", SR, C]));
        assert!(fs::write(&device, "x").is_err(), "a snapshot was written to");
        call(&["vdi_detach", SR, C]);
        assert_eq!(scene.loop_devices(), [] as [PathBuf; 0]);
    }
    let out = scene.root.path().join("out.raw");
    call(&["vdi_export", SR, B, out.to_str().unwrap()]);
    assert!(read(&out) == bytes, "the exported file differs from the disk");
    scene.call(["vdi_export", SR, B, out.to_str().unwrap()]).fails("EINVAL");
    fs::remove_file(&out).unwrap();
    call(&["vdi_delete", SR, B]);
    let names = scene.names();
    assert!(!names.iter().any(|name| name.contains(".tmp-")), "{names:?}");
    call(&["sr_delete", SR]);
    assert!(!scene.place.exists());
}

fn lives_without(is: fn(i64, [u64; 6]) -> bool, errnos: &[Errno], wanted_by: &'static [&'static str]) {
    for errno in errnos {
        a_life(&Scene::empty(&FILE, Door::Driver), &Missing { is, errno: *errno, wanted_by });
    }
}

#[test]
fn without_a_link_of_an_open_file_an_export_gets_its_name_by_a_rename() {
    // Those of the SR's own files name the directory by its descriptor.
    let is = |call, args: [u64; 6]| call == libc::SYS_linkat && args[2] as i32 == libc::AT_FDCWD;
    lives_without(is, &[Errno::EPERM, Errno::ENOENT, Errno::EXDEV], &["vdi_export"]);
}

#[test]
fn without_copy_file_range_copies_are_read_and_written() {
    let is = |number, _: [u64; 6]| number == libc::SYS_copy_file_range;
    lives_without(is, &[Errno::ENOSYS, Errno::EXDEV, Errno::EINVAL, Errno::EOPNOTSUPP], COPIERS);
}

#[test]
fn without_shared_extents_disks_are_copied() {
    if !is_root() {
        return;
    }
    let xfs = Filesystem::new("xfs", 320);
    let is = |number, args: [u64; 6]| number == libc::SYS_ioctl && args[1] == 0x4004_9409;
    for errno in [Errno::ENOTTY, Errno::EOPNOTSUPP, Errno::EINVAL, Errno::EXDEV, Errno::ENOSYS] {
        let mut scene = Scene::empty(&FILE, Door::Driver);
        scene.place = xfs.path().join("sr");
        a_life(&scene, &Missing { is, errno, wanted_by: COPIERS });
    }
}

#[test]
fn without_loop_configure_devices_are_set_up_in_steps() {
    let is = |number, args: [u64; 6]| number == libc::SYS_ioctl && args[1] == 0x4c0a;
    lives_without(is, &[Errno::EINVAL, Errno::ENOTTY, Errno::ENOSYS], &["vdi_attach"]);
}

#[test]
fn without_unnamed_files_temporary_ones_are_used_and_none_is_left() {
    lives_without(opens_unnamed, WITHOUT_UNNAMED, MAKERS);
}

/// FAT has no unnamed files either: an export has a hidden name until it is complete.
#[test]
fn without_unnamed_files_an_export_leaves_nothing_but_itself() {
    for errno in WITHOUT_UNNAMED.iter().copied() {
        let scene = Scene::empty(&FILE, Door::Sm);
        scene.call(["sr_create", SR]).done();
        scene.call(["vdi_create", SR, A, "1"]).done();
        let out = scene.root.path().join("exports");
        fs::create_dir(&out).unwrap();
        let names = || -> Vec<_> { fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
        let file = out.join("disk.raw").display().to_string();
        let export = |points: Points| {
            let (line, run_dir) = (scene.line(["vdi_export", SR, A, &file]), scene.root.path().join("run"));
            kill::run(ALL, points, Act::Fail(errno), &scene.executable(), &line, &run_dir)
        };
        let traced = export(Points::Matching(opens_unnamed));
        assert_eq!((traced.end, traced.call.is_some()), (End::Status(0), true), "{errno}");
        assert_eq!(names(), ["disk.raw"]);
        assert_eq!(fs::metadata(&file).unwrap().len(), MIB);
    }
}

#[test]
fn without_statx_files_are_examined_by_stat() {
    const ALL_COMMANDS: &[&str] = &[
        "sr_create",
        "vdi_create",
        "vdi_clone",
        "vdi_snapshot",
        "vdi_lock",
        "vdi_unlock",
        "vdi_attach",
        "vdi_resize",
        "vdi_detach",
        "vdi_export",
        "vdi_delete",
        "sr_delete",
    ];
    let is = |number, _: [u64; 6]| number == libc::SYS_statx;
    lives_without(is, &[Errno::ENOSYS, Errno::EPERM], ALL_COMMANDS);
}

#[test]
fn without_more_threads_one_does_it_all() {
    let scene = Scene::empty(&FILE, Door::Driver);
    let (program, run_dir) = (scene.executable(), scene.root.path().join("run"));
    let is = |number, _: [u64; 6]| number == libc::SYS_clone || number == libc::SYS_clone3;
    let call = |words: &[&str]| {
        let act = Act::Fail(Errno::EAGAIN);
        let traced = kill::run(ALL, Points::Matching(is), act, &program, &scene.line(words), &run_dir);
        let said = String::from_utf8_lossy(&traced.stderr);
        assert_eq!((traced.end, &*said, traced.call.is_some()), (End::Status(0), "", true), "{words:?}");
        String::from_utf8(traced.stdout).unwrap()
    };
    scene.call(["sr_create", SR]).done();
    scene.call(["vdi_create", SR, A, "4", "--type", "vhd"]).done();
    call(&["vdi_snapshot", SR, A, B]);
    // A disk that has no parent yet: the copy of one that holds nothing writes one file.
    let other = "98de866e-b035-4b1a-a571-0000000000ee";
    scene.call(["vdi_create", SR, other, "4", "--type", "vhd"]).done();
    call(&["vdi_clone", SR, other, C]);
    let image = fs::read(scene.place.join(format!("{A}.vhd"))).unwrap();
    for n in 0..100 {
        fs::write(scene.place.join(format!("98de866e-b035-4b1a-a571-{n:012}.vhd")), &image).unwrap();
    }
    assert_eq!(call(&["sr_scan", SR]).matches("(vdi (uuid").count(), 104);
}

#[test]
fn static_executables_run_where_there_is_nothing_but_them() {
    if !is_root() {
        return;
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/x86_64-unknown-linux-gnu/release");
    let built = std::env::var_os("BIN").map(PathBuf::from).unwrap_or(target).join("sm");
    let is_static = fs::read(&built).is_ok_and(|bytes| !bytes.windows(8).any(|word| word == b"/ld-linu"));
    if !is_static {
        return skip(&format!("no static build at {}", built.display()));
    }
    // A root with the executable, a place for the SR and what the kernel shows; no libraries, no /etc, no shell.
    let root = tempfile::tempdir().unwrap();
    fs::copy(&built, root.path().join("sm")).unwrap();
    for dir in ["srv", "run", "dev", "sys", "proc"] {
        fs::create_dir(root.path().join(dir)).unwrap();
    }
    let mounts = format!(
        "mount --bind /dev {0}/dev && mount --bind /sys {0}/sys && mount --bind /proc {0}/proc && exec chroot {0} /sm \"$@\"",
        root.path().display()
    );
    let call = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &mounts, "sh", "-t", "file", "-d", "/srv/sr"]).args(words);
        let output =
            command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("XCP_SM_RUN_DIR", "/run").output();
        Outcome { line: words.join(" "), output: output.unwrap() }
    };
    call(&["sr_create", SR]).done();
    call(&["vdi_create", SR, A, "4", "--label", "a"]).done();
    call(&["vdi_clone", SR, A, B]).done();
    let device = call(&["vdi_attach", SR, A]).done();
    assert_eq!(fs::read(device.trim_end()).unwrap(), vec![0; 4 * MIB as usize]);
    assert!(call(&["sr_scan", SR]).done().contains("(attached . #t)"));
    call(&["vdi_detach", SR, A]).done();
    call(&["sr_delete", SR, "--yes"]).done();
    call(&["sr_scan", SR]).fails("ENOSR");
}
