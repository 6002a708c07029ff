//! `ZFSSR`: the driver for disks in a ZFS dataset.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::zfs::DRIVER)
}
