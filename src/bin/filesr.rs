//! `FileSR`: the driver for disks in a local directory.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::file::DRIVER)
}
