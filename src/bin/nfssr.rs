//! `NFSSR`: the driver for disks on an NFS export.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::nfs::DRIVER)
}
