//! `SMBSR`: the driver for disks on an SMB share.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::smb::DRIVER)
}
