//! `LVMRawSR`: the driver for raw disks as logical volumes.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::lvmraw::DRIVER)
}
