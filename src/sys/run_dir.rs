//! Where host-local state lives: locks and what can be rebuilt after a reboot.

use std::path::PathBuf;

/// Overrides every path of the host's state: the files and directories below are in it then, by their
/// last names.
pub const VARIABLE: &str = "XCP_SM_RUN_DIR";

/// Directory of the lock files: `/var/lock/sm`, which the Python storage managers of the same host use
/// too. A user without privilege has one of their own.
pub fn locks() -> PathBuf {
    match overridden() {
        Some(dir) => dir.join("lock"),
        None => PathBuf::from("/var/lock/sm"),
    }
}

/// Directory of state that a reboot clears: `/run/sm`.
pub fn state() -> PathBuf {
    match overridden() {
        Some(dir) => dir.join("sm"),
        None => PathBuf::from("/run/sm"),
    }
}

/// Where agents and the other storage managers expect each SR whose disks are files: `/run/sr-mount`.
pub fn mounts() -> PathBuf {
    on_host("/run/sr-mount")
}

/// Where agents look for the block device of a VDI: `/dev/sm`.
pub fn devices() -> PathBuf {
    on_host("/dev/sm")
}

/// Where the tapdisks of disks are found: `/run/blktap-control`.
pub fn tapdisks() -> PathBuf {
    on_host("/run/blktap-control")
}

/// The socket of xapi.
pub fn xapi() -> PathBuf {
    on_host("/var/lib/xcp/xapi")
}

/// The socket of the system log.
pub fn log() -> PathBuf {
    on_host("/dev/log")
}

/// One of the paths that another program of the host made: for a user without privilege as well, unless
/// overridden by name.
fn on_host(path: &str) -> PathBuf {
    let path = PathBuf::from(path);
    match std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join(path.file_name().expect("it has one")),
        None => path,
    }
}

fn overridden() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()) {
        return Some(dir.into());
    }
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return None;
    }
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    Some(match base {
        Some(dir) => PathBuf::from(dir).join("xcp-sm"),
        None => PathBuf::from(format!("/tmp/xcp-sm-{uid}")),
    })
}
