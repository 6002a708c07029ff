//! `LVMSR`: the driver for disks as logical volumes.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::lvm::DRIVER)
}
