//! Where host-local state lives: locks and what can be rebuilt after a reboot.

use std::path::PathBuf;

/// Overrides every path of host-local state: `$XCP_SM_RUN_DIR/lock` and `$XCP_SM_RUN_DIR/sm`.
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
