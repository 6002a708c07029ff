//! Killed at any moment, an operation has happened or it has not, and the next call works.
//!
//! Here before every system call that changes something; `torture.rs` kills before every one there is, and cuts
//! the power too.

mod scene;

use nix::errno::Errno;
use scene::filesystem::Filesystem;
use scene::kill::{Act, Points};
use scene::operations::{self, OPERATIONS, Operation};
use scene::{is_root, skip};

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
fn killed_anywhere_an_operation_on_a_tree_has_happened_or_not() {
    kill_all(of_trees, None);
}

fn of_trees(operation: &Operation) -> bool {
    operations::trees().any(|o| o.name == operation.name)
}

#[test]
fn killed_anywhere_a_copy_of_shared_extents_has_happened_or_not() {
    if is_root() {
        let xfs = Filesystem::new("xfs", 320);
        kill_all(|o| ["vdi_clone", "vdi_snapshot"].contains(&o.name), Some(&xfs));
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
fn a_change_that_fails_is_told_and_leaves_nothing_half_done() {
    for operation in OPERATIONS.iter().filter(|o| !o.needs_root) {
        let points = operation.at_every_point(Points::Changing, Act::Fail(Errno::EIO), None);
        assert!(points > 1, "{}: nothing failed", operation.name);
    }
}
