//! `CephFSSR`: the driver for disks in a Ceph filesystem.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::driver_main(&xcp_sm::sr::network::CEPHFS)
}
