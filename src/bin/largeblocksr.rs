//! `LargeBlockSR`: the driver for disks in a filesystem on a block device with large sectors.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::largeblock::DRIVER)
}
