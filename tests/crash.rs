//! Killed at any moment, an operation has happened or it has not, and the next call works.
//!
//! Here before every system call that changes something; `torture.rs` kills before every one there is, and cuts
//! the power too.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use scene::filesystem::Filesystem;
use scene::kill::{self, Act, End, Points};
use scene::operations::{self, OPERATIONS, Operation};
use scene::{A, MIB, SR, Scene, is_root, skip};

fn kill_all(which: fn(&Operation) -> bool, filesystem: Option<&Filesystem>) {
    for operation in operations::all().filter(|o| which(o)) {
        if operation.needs_root && !nix::unistd::geteuid().is_root() {
            skip("vdi_attach needs root");
            continue;
        }
        let start = std::time::Instant::now();
        let points = operation.at_every_point(Points::Changing, Act::Kill, filesystem);
        println!("{}: {points} points, {} ms", operation.name, start.elapsed().as_millis());
        assert!(points > 1, "{}: it was not killed at all", operation.name);
    }
}

#[test]
fn killed_anywhere_an_operation_on_an_sr_has_happened_or_not() {
    kill_all(|o| o.name.starts_with("sr_") && !of_trees(o), None);
}

#[test]
fn killed_anywhere_an_operation_on_a_vdi_has_happened_or_not() {
    kill_all(|o| o.name.contains("vdi_") && !of_trees(o), None);
}

#[test]
fn killed_anywhere_an_operation_on_a_tree_of_vhds_has_happened_or_not() {
    kill_all(|o| of_trees(o) && !of_qcow2(o), None);
}

#[test]
fn killed_anywhere_an_operation_on_a_tree_of_qcow2_has_happened_or_not() {
    kill_all(|o| of_trees(o) && of_qcow2(o), None);
}

fn of_qcow2(operation: &Operation) -> bool {
    operation.name.ends_with("qcow2")
}

fn of_trees(operation: &Operation) -> bool {
    operations::trees().any(|o| o.name == operation.name)
}

#[test]
fn killed_anywhere_a_copy_of_shared_extents_has_happened_or_not() {
    if is_root() {
        let xfs = Filesystem::new("xfs", 320);
        kill_all(|o| ["vdi_clone", "vdi_snapshot", "vdi_revert"].contains(&o.name), Some(&xfs));
    }
}

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    if is_root() {
        let ext4 = Filesystem::new("ext4", 64);
        for operation in operations::all().filter(|o| !o.needs_root) {
            operation.cut_the_power(&ext4, u64::MAX);
        }
    }
}

#[test]
fn what_is_there_already_after_a_kill_survives_a_power_cut() {
    if is_root() {
        let ext4 = Filesystem::new("ext4", 64);
        let mut syncs = 0;
        // sr_collect acknowledges nothing that was there before.
        for operation in operations::all().filter(|o| !o.needs_root && o.call[0] != "sr_collect") {
            syncs += operation.cut_the_power_after_the_next_call(&ext4);
        }
        assert!(syncs > 40, "only {syncs} syncs");
    }
}

#[test]
fn a_killed_resize_of_an_attached_disk_is_completed_by_the_next() {
    if !is_root() {
        return;
    }
    let size_of = |device: &Path| {
        let sectors = fs::read_to_string(Path::new("/sys/block").join(device.file_name().unwrap()).join("size"));
        sectors.unwrap().trim().parse::<u64>().unwrap() * 512
    };
    let scene = Scene::file_with_a();
    let device = scene.loop_device(&scene.call(["vdi_attach", SR, A]).done());
    let run_dir = scene.root.path().join("run");
    let steps = Points::Matching(|number, _| {
        [nix::libc::SYS_ftruncate, nix::libc::SYS_fsync, nix::libc::SYS_ioctl].contains(&number)
    });
    let mut killed = 0;
    for n in 1.. {
        let mib = (4 + 2 * n).to_string();
        let line = scene.line(["vdi_resize", SR, A, &mib]);
        let end = kill::run(n, steps, Act::Kill, &scene.executable(), &line, &run_dir).end;
        scene.bare(&line).done();
        assert_eq!(size_of(&device), (4 + 2 * n) * MIB, "killed at step {n}: {end:?}");
        if end != End::Killed {
            break;
        }
        killed += 1;
    }
    assert!(killed >= 3, "it was killed {killed} times");
    scene.call(["vdi_detach", SR, A]).done();
}

#[test]
fn a_change_that_fails_is_told_and_leaves_nothing_half_done() {
    for operation in OPERATIONS.iter().filter(|o| !o.needs_root) {
        let points = operation.at_every_point(Points::Changing, Act::Fail(Errno::EIO), None);
        assert!(points > 1, "{}: nothing failed", operation.name);
    }
}

#[test]
fn a_sync_or_name_that_fails_in_a_tree_is_told_and_leaves_nothing_half_done() {
    use nix::libc::{SYS_fdatasync, SYS_fsync, SYS_linkat, SYS_renameat, SYS_renameat2, SYS_unlinkat};
    let steps = Points::Matching(|number, _| {
        [SYS_fsync, SYS_fdatasync, SYS_linkat, SYS_renameat, SYS_renameat2, SYS_unlinkat].contains(&number)
    });
    for operation in operations::VHD_TREES.iter().filter(|o| o.call[0] != "sr_collect") {
        let points = operation.at_every_point(steps, Act::Fail(Errno::EIO), None);
        assert!(points > 1, "{}: nothing failed", operation.name);
    }
}
