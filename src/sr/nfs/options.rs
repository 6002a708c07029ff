//! The options and versions of NFS that device_config asks for. Which are taken and why: `docs/nfs.md`.

use crate::error::{Error, Result};
use crate::sr::served::Holds;
use crate::sys::sunrpc;

/// What becomes of I/O while the server is gone.
pub(super) fn waits(holds: Holds) -> &'static str {
    match holds {
        Holds::Disks => "hard",
        Holds::Images => "soft,timeo=100,retrans=2",
    }
}

/// Versions in the order they are tried, by what `nfsversion` asks for; the major one is what a server can be
/// asked about without mounting.
const VERSIONS: [(u32, &str); 4] = [(4, "4.2"), (4, "4.1"), (4, "4.0"), (3, "3")];

/// Options that say what every mount of ours does anyway, or that only mount(8) and systemd read.
const USUAL: [&str; 21] = [
    "tcp",
    "proto=tcp",
    "proto=tcp6",
    "fg",
    "lock",
    "cto",
    "retry=0",
    "acdirmin=0",
    "acdirmax=0",
    "lookupcache=none",
    "nosuid",
    "nodev",
    "noexec",
    "rw",
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "nouser",
    "_netdev",
    "intr",
];

/// Options that are ours to choose, because the caller's would lose data, locks or time. The names of those that take a
/// value stand without it.
const REPLACED: [&str; 20] = [
    "soft",
    "softerr",
    "softreval",
    "hard",
    "bg",
    "nolock",
    "local_lock",
    "udp",
    "rdma",
    "proto",
    "retry",
    "nocto",
    "acdirmin",
    "acdirmax",
    "lookupcache",
    "suid",
    "dev",
    "exec",
    "user",
    "users",
];

/// Options that choose the version, as `nfsversion` does.
const VERSION: [&str; 7] = ["vers", "nfsvers", "v3", "v4", "v4.0", "v4.1", "v4.2"];

/// The versions that fit `wanted`, which the key `what` asks for, newest first.
pub(super) fn versions(what: &'static str, wanted: Option<&str>) -> Result<Vec<(u32, &'static str)>> {
    let fits = |version: &str| match wanted {
        None => true,
        Some("4") => version.starts_with('4'),
        Some(wanted) => version == wanted,
    };
    let found: Vec<_> = VERSIONS.into_iter().filter(|(_, version)| fits(version)).collect();
    if found.is_empty() {
        return Err(Error::Invalid {
            what,
            value: wanted.unwrap_or_default().to_owned(),
            expected: "expected 3, 4, 4.0, 4.1 or 4.2".to_owned(),
        });
    }
    Ok(found)
}

/// The caller's mount options, sorted, and the versions that follow from them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Those that are passed on, each with a comma behind it.
    pub kept: String,
    /// The version that they ask for.
    pub version: Option<String>,
    /// Those that ours take the place of.
    pub replaced: Vec<String>,
    /// The versions to be tried, in this order.
    pub versions: Vec<(u32, &'static str)>,
}

/// The port that mount options name, or NFS's own.
pub(super) fn port(options: &str) -> u16 {
    let mut named = options.split(',').filter_map(|option| option.trim().strip_prefix("port=")?.parse().ok());
    named.next_back().unwrap_or(sunrpc::NFS_PORT)
}

/// Sorts the caller's mount options; their values are in no error, for one may be a password that does not belong there.
pub(super) fn options(value: &str, holds: Holds) -> Result<Chosen> {
    let bad = |name: &str, expected: &str| Error::Invalid {
        what: "options",
        value: name.to_owned(),
        expected: expected.to_owned(),
    };
    let mut chosen = Chosen::default();
    for option in value.split(',').map(str::trim).filter(|option| !option.is_empty()) {
        let (name, argument) = option.split_once('=').unwrap_or((option, ""));
        let plain = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
        if name.is_empty() || name.starts_with('-') || !plain(name, "_.-") {
            return Err(bad("***", "expected mount options of nfs(5), separated by commas"));
        }
        if USUAL.contains(&option)
            || name.starts_with("x-")
            || name == "comment"
            || waits(holds).split(',').any(|ours| ours == option)
        {
            continue;
        }
        match name {
            _ if VERSION.contains(&name) => {
                let version = if name.starts_with('v') && name != "vers" { &name[1..] } else { argument };
                chosen.version = Some(version.to_owned());
            }
            "minorversion" => chosen.version = Some(format!("4.{argument}")),
            _ if REPLACED.contains(&name) => chosen.replaced.push(option.to_owned()),
            "port" if argument.parse::<u16>().is_err() => return Err(bad(name, "its value is no port")),
            "remount" | "bind" | "rbind" | "move" => return Err(bad(name, "it is no option of a new mount")),
            _ if !plain(argument, "_.:/@-") => return Err(bad(name, "its value has a character that none has")),
            _ => {
                chosen.kept.push_str(option);
                chosen.kept.push(',');
            }
        }
    }
    Ok(chosen)
}
