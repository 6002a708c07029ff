//! The long siblings of `crash.rs`: `make torture`, or `cargo test --test torture -- --ignored`. Need root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use nix::errno::Errno;
use scene::filesystem::Filesystem;
use scene::is_root;
use scene::kill::{Act, Points};
use scene::operations::{self, Operation};

/// All operations, or those with $SM_TORTURE in their names.
fn operations() -> impl Iterator<Item = &'static Operation> {
    let only = std::env::var("SM_TORTURE").unwrap_or_default();
    operations::all().filter(move |o| o.name.contains(&only))
}

fn kill_before_every_call(kind: &'static str, mib: u64) {
    if !is_root() {
        return;
    }
    let filesystem = Filesystem::new(kind, mib);
    for operation in operations() {
        let points = operation.at_every_point(Points::Every, Act::Kill, Some(&filesystem));
        println!("{kind}, {}: killed at {points} points", operation.name);
    }
}

fn cut_the_power_at_every_change(kind: &'static str, mib: u64) {
    if !is_root() {
        return;
    }
    let filesystem = Filesystem::new(kind, mib);
    // What is attached does not outlive the host.
    for operation in operations().filter(|o| !o.needs_root) {
        let cuts = (1..).find(|n| operation.cut_the_power(&filesystem, *n)).unwrap();
        println!("{kind}, {}: {cuts} power cuts", operation.name);
    }
}

#[test]
#[ignore = "minutes"]
fn killed_before_any_system_call_on_ext4() {
    kill_before_every_call("ext4", 64);
}

#[test]
#[ignore = "minutes"]
fn killed_before_any_system_call_on_xfs() {
    kill_before_every_call("xfs", 320);
}

#[test]
#[ignore = "a minute"]
fn the_power_fails_at_any_change_on_ext4() {
    cut_the_power_at_every_change("ext4", 64);
}

#[test]
#[ignore = "a minute"]
fn the_power_fails_at_any_change_on_xfs() {
    cut_the_power_at_every_change("xfs", 320);
}

#[test]
#[ignore = "a minute"]
fn whatever_fails_is_told_and_leaves_nothing_half_done() {
    for errno in [Errno::EIO, Errno::ENOSPC, Errno::EACCES] {
        for operation in operations().filter(|o| !o.needs_root || is_root()) {
            // It does what it can, and the rest another time.
            if operation.name == "sr_collect" {
                continue;
            }

            let points = operation.at_every_point(Points::CanFail, Act::Fail(errno), None);
            println!("{errno:?}, {}: {points} failures", operation.name);
        }
    }
}
