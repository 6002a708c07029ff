//! The SMAPIv3 door: the battery is in `tests/smapiv3`, in Python, which checks each answer against the tables of the interface
//! and shares no code with ours.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]
#![allow(clippy::disallowed_types, reason = "it runs the battery")]

use std::path::Path;
use std::process::Command;

fn battery(module: &str) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/smapiv3");
    let status = Command::new("python3")
        .args(["-B", "-m", "unittest", "-q", module])
        .current_dir(here)
        .env("SM", env!("CARGO_BIN_EXE_sm"))
        .status()
        .expect("python3 runs");
    assert!(status.success(), "{module} failed");
}

#[test]
fn volumes_of_a_file_sr() {
    battery("test_volumes");
}

#[test]
fn devices_of_a_file_sr() {
    battery("test_datapath");
}

#[test]
fn the_plug_ins_and_xapi() {
    battery("test_xapi");
}
