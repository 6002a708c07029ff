//! `LVMoHBASR`: the driver for disks as logical volumes on a LUN of a host bus adapter.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::lvmohba::DRIVER)
}
