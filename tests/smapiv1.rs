//! The XML-RPC door against a test double of xapi: the battery is in `tests/smapiv1`, in Python, whose XML-RPC
//! library is a peer that shares no code with ours.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "it runs the battery")]

use std::path::Path;
use std::process::Command;

fn battery(module: &str) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/smapiv1");
    let bin = Path::new(env!("CARGO_BIN_EXE_FileSR")).parent().unwrap();
    let status = Command::new("python3")
        .args(["-B", "-m", "unittest", "-q", module])
        .current_dir(here)
        .env("BIN", bin)
        .status()
        .expect("python3 runs");
    assert!(status.success(), "{module} failed");
}

#[test]
fn xapi_with_a_file_sr() {
    battery("test_file");
}

#[test]
fn python_libraries_and_a_traced_xapi() {
    battery("test_peers");
}

#[test]
fn xapi_with_an_iso_sr() {
    battery("test_iso");
}

#[test]
fn xapi_with_an_nfs_sr_and_no_server() {
    battery("test_nfs");
}

#[test]
fn a_disk_that_another_host_asks_to_pause() {
    battery("test_plugin");
}

#[test]
fn plans_on_a_host_with_xapi() {
    battery("test_plans");
}

#[test]
fn changed_blocks_of_a_file_sr() {
    battery("test_cbt");
}

#[test]
fn xapi_with_a_collector() {
    battery("test_collector");
}

#[test]
fn the_doctor_on_a_host_with_xapi() {
    battery("test_doctor");
}

#[test]
fn disks_that_go_back_at_each_start() {
    battery("test_reset");
}

#[test]
fn images_that_tapdisk_opens_itself() {
    battery("test_tapdisk");
}

#[test]
fn disks_that_move_to_another_pool() {
    battery("test_migrate");
}
