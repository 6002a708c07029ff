//! Where host-local state lives: locks and what can be rebuilt after a reboot.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix::libc;
use nix::unistd::Uid;

use crate::error::{Error, Result};
use crate::types::shell;

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

/// The users of each iSCSI session of this host, as the Python storage managers count them too: `/run/sr-ref`.
pub fn session_users() -> PathBuf {
    on_host("/run/sr-ref")
}

/// Where agents look for the block device of a VDI: `/dev/sm`.
pub fn devices() -> PathBuf {
    on_host("/dev/sm")
}

/// Where the tapdisks of disks are found: `/run/blktap-control`.
pub fn tapdisks() -> PathBuf {
    on_host("/run/blktap-control")
}

/// The SRs that have a name on this host: `/etc/sm/sr.d`.
pub fn names() -> PathBuf {
    on_host("/etc/sm/sr.d")
}

/// SRs that a timer collects, as earlier releases were told of them: `/etc/sm-collect`.
pub fn collected() -> PathBuf {
    on_host("/etc/sm-collect")
}

/// The claims of media: `/var/lib/sm/registry`.
pub fn registry() -> PathBuf {
    on_host("/var/lib/sm/registry")
}

/// The disks that this host publishes: `/var/lib/sm/targets`.
pub fn targets() -> PathBuf {
    on_host("/var/lib/sm/targets")
}

/// The settings of the device registry: `/etc/sm/sm.conf`.
pub fn settings() -> PathBuf {
    on_host("/etc/sm/sm.conf")
}

/// The settings of the drivers under xapi: `/etc/sm/xapi.conf`.
pub fn agent() -> PathBuf {
    on_host("/etc/sm/xapi.conf")
}

/// Settings of the kernel on this host: `/etc/sm/tuning.conf`.
pub fn tuning() -> PathBuf {
    on_host("/etc/sm/tuning.conf")
}

/// The inventory of the backend `file`, unless the settings name another: `/etc/sm/storage.conf`.
pub fn inventory() -> PathBuf {
    on_host("/etc/sm/storage.conf")
}

/// Installed layouts and the journals of their changes: `/var/lib/sm/layouts`.
pub fn layouts() -> PathBuf {
    on_host("/var/lib/sm/layouts")
}

/// Models of layouts that are called by their names: `/etc/sm/layouts`. [`VARIABLE`] moves them to where the installed layouts
/// are; the extensions of their files differ.
pub fn models() -> PathBuf {
    on_host("/etc/sm/layouts")
}

/// The stores of `sm backup`: `/etc/sm/stores.conf`.
pub fn stores() -> PathBuf {
    on_host("/etc/sm/stores.conf")
}

/// What the hosts that share stores of `sm backup` sign exports with: `/etc/sm/domain.secret`.
pub fn domain_secret() -> PathBuf {
    on_host("/etc/sm/domain.secret")
}

/// The directories of hooks: `/etc/sm/hooks`.
pub fn hooks() -> PathBuf {
    on_host("/etc/sm/hooks")
}

/// The sets and the running calls of `sm backup`: `/var/lib/sm/backup`.
pub fn backup() -> PathBuf {
    on_host("/var/lib/sm/backup")
}

/// The programs of the backends `exec:NAME`: `/usr/lib/sm/backends`.
pub fn backends() -> PathBuf {
    on_host("/usr/lib/sm/backends")
}

/// The file in which XenServer and XCP-ng keep the UUID of the host: `/etc/xensource-inventory`.
pub fn host_inventory() -> PathBuf {
    on_host("/etc/xensource-inventory")
}

/// The directory that is there on a host that systemd has started.
pub fn systemd() -> PathBuf {
    on_host("/run/systemd/system")
}

/// The plug-ins of SMAPIv3, where xapi's daemon looks on an XCP host: `/usr/libexec/xapi-storage-script`.
pub fn smapiv3_plugins() -> PathBuf {
    on_host("/usr/libexec/xapi-storage-script")
}

/// The socket of xapi.
pub fn xapi() -> PathBuf {
    on_host("/var/lib/xcp/xapi")
}

/// The directory in which xapi looks for drivers, unless its configuration names another: `/opt/xensource/sm`.
pub fn drivers() -> PathBuf {
    match chosen() {
        // Its last name is that of another directory of ours.
        Some(dir) => dir.join("drivers"),
        None => PathBuf::from("/opt/xensource/sm"),
    }
}

/// The directory of xapi's host plug-ins: `/etc/xapi.d/plugins`.
pub fn plugins() -> PathBuf {
    on_host("/etc/xapi.d/plugins")
}

/// The configuration of xapi, a file and a directory of more: `/etc/xapi.conf`, `/etc/xapi.conf.d`.
pub fn xapi_conf() -> (PathBuf, PathBuf) {
    (on_host("/etc/xapi.conf"), on_host("/etc/xapi.conf.d"))
}

/// The socket of the system log.
pub fn log() -> PathBuf {
    on_host("/dev/log")
}

/// One of the paths that another program of the host made: for a user without privilege as well, unless
/// overridden by name.
fn on_host(path: &str) -> PathBuf {
    let path = PathBuf::from(path);
    match chosen() {
        Some(dir) => dir.join(path.file_name().expect("it has one")),
        None => path,
    }
}

/// The directory that [`VARIABLE`] names.
fn chosen() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The line for a shell that calls `sm` with these words, so that it finds what this call finds.
pub fn sm(words: &[&str]) -> String {
    let setting = chosen().map(|dir| format!("{VARIABLE}={}", dir.display()));
    let first = setting.as_deref().map_or_else(|| vec!["sm"], |setting| vec!["env", setting, "sm"]);
    shell(&[&first, words].concat())
}

fn overridden() -> Option<PathBuf> {
    chosen().or_else(|| own(user()))
}

/// The effective user of this process, which no part of it changes: asked of the kernel once.
pub fn user() -> Uid {
    static USER: LazyLock<Uid> = LazyLock::new(nix::unistd::geteuid);
    *USER
}

/// Whether what a user made may be believed: root, or this user.
pub fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == user().as_raw()
}

/// The directory of a user without privilege. A relative XDG_RUNTIME_DIR is ignored, as its specification (XDG Base
/// Directory, "Environment variables") asks.
fn own(uid: Uid) -> Option<PathBuf> {
    if uid.is_root() {
        return None;
    }
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    Some(match base {
        Some(dir) => dir.join("xcp-sm"),
        None => PathBuf::from(format!("/tmp/xcp-sm-{uid}")),
    })
}

/// Refuses a directory of the host's state in which another user could exchange the locks. A directory that is not there
/// yet is trusted: locks are taken only after this was asked again of the one that was made.
///
/// # Errors
/// [`Error::Invalid`] if [`VARIABLE`] is a relative path: each caller would have locks of its own. [`Error::Io`], access
/// denied, if the directory belongs to another user than this one and root, or if others can write to it. The directory of
/// a user without privilege has to be that user's alone, and no link.
pub fn trusted() -> Result<()> {
    let uid = user();
    match (chosen(), own(uid)) {
        (Some(dir), _) if !dir.is_absolute() => Err(Error::Invalid {
            what: VARIABLE,
            value: dir.display().to_string(),
            expected: "expected an absolute path".to_owned(),
        }),
        (Some(dir), _) => judged(&dir, fs::metadata(&dir), |it| {
            let by_others = it.mode() & 0o002 != 0 && it.mode() & libc::S_ISVTX == 0;
            let not_ours = it.uid() != uid.as_raw() && it.uid() != 0;
            not_ours.then(|| of_uid(it)).or_else(|| by_others.then(|| "every user can write to it".to_owned()))
        }),
        (None, Some(dir)) => judged(&dir, fs::symlink_metadata(&dir), |it| {
            if !it.is_dir() {
                Some("it is no directory".to_owned())
            } else if it.uid() != uid.as_raw() {
                Some(of_uid(it))
            } else {
                (it.mode() & 0o077 != 0)
                    .then(|| format!("its mode is {:o}, and others have access", it.mode() & 0o7777))
            }
        }),
        (None, None) => Ok(()),
    }
}

fn of_uid(it: &Metadata) -> String {
    format!("it belongs to uid {}", it.uid())
}

fn judged(dir: &Path, found: io::Result<Metadata>, fault: impl FnOnce(&Metadata) -> Option<String>) -> Result<()> {
    let why = match found {
        Ok(it) => fault(&it),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io("examine", dir)(e)),
    };
    let Some(why) = why else { return Ok(()) };
    let remedy = format!("{why}; remove it, or set {VARIABLE} to a directory that only you can write to");
    Err(Error::io("trust the directory of locks", dir)(io::Error::new(io::ErrorKind::PermissionDenied, remedy)))
}
