//! `XFSSR`: the driver for disks in an xfs filesystem on block devices.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::xfs::DRIVER)
}
