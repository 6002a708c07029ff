//! `ISOSR`: the driver for the CD images of a directory.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::iso::DRIVER)
}
