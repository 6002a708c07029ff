//! `LVMoISCSISR`: the driver for disks as logical volumes on a LUN of an iSCSI target.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::lvmoiscsi::DRIVER)
}
