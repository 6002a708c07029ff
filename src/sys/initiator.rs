//! The iSCSI initiator of this host: its name, its daemon, its sessions as sysfs shows them.
//!
//! A session is what the kernel has; nothing is remembered. `iscsid` keeps sessions alive and is never restarted here.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, LunFault, Result};
use crate::sys::run_dir;
use crate::sys::sysfs::text;
use crate::sys::tool::Tool;

/// The file from which iscsid reads the name of the initiator when it starts.
const NAME_FILE: &str = "/etc/iscsi/initiatorname.iscsi";
const SESSIONS: &str = "/sys/class/iscsi_session";
const CONNECTIONS: &str = "/sys/class/iscsi_connection";

/// The socket of iscsid, in the abstract namespace; `usr/mgmt_ipc.h` of open-iscsi.
const SOCKET: &str = "@ISCSIADM_ABSTRACT_NAMESPACE";

/// An address at which a target listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Portal {
    pub address: IpAddr,
    pub port: u16,
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.port),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

impl Portal {
    /// Reads what [`Portal`] shows.
    pub fn read(text: &str) -> Option<Portal> {
        let (address, port) = text.rsplit_once(':')?;
        let address = address.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(address);
        Some(Portal { address: address.parse().ok()?, port: port.parse().ok()? })
    }
}

/// A session that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub id: u32,
    pub iqn: String,
    /// The portal by which it was logged in, which counts, whatever the target redirected it to.
    pub portal: Option<Portal>,
    /// The SCSI host of its disks.
    pub host: Option<u32>,
    /// The kernel's word: `LOGGED_IN`, `FAILED`, `FREE`.
    pub state: String,
}

impl Session {
    pub fn is_logged_in(&self) -> bool {
        self.state == "LOGGED_IN"
    }
}

/// The sessions of this host, by their numbers.
pub fn sessions() -> Vec<Session> {
    let entries = fs::read_dir(SESSIONS).into_iter().flatten().flatten();
    let mut found: Vec<Session> = entries
        .filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.strip_prefix("session")?.parse().ok()?;
            let dir = entry.path();
            let real = fs::canonicalize(&dir).ok()?;
            let host = real.components().find_map(|part| part.as_os_str().to_str()?.strip_prefix("host")?.parse().ok());
            let connection = Path::new(CONNECTIONS).join(format!("connection{id}:0"));
            let address = text(&connection, "persistent_address").parse().ok();
            let port = text(&connection, "persistent_port").parse().ok();
            let portal = address.zip(port).map(|(address, port)| Portal { address, port });
            Some(Session { id, iqn: text(&dir, "targetname"), portal, host, state: text(&dir, "state") })
        })
        .collect();
    found.sort_by_key(|session| session.id);
    found
}

/// The name that iscsid reads when it starts.
pub fn name() -> Option<String> {
    name_in(&fs::read_to_string(NAME_FILE).ok()?)
}

fn name_in(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix("InitiatorName")?.trim_start().strip_prefix('='));
    value.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Whether iscsid takes requests, or systemd starts it with the first one.
fn is_running() -> bool {
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets.lines().any(|line| line.ends_with(SOCKET))
}

/// Sees to it that iscsid runs under a name: that of the host, if none is `wanted`.
///
/// # Errors
/// [`LunFault::NoInitiator`], [`LunFault::OtherInitiator`], [`LunFault::NoDaemon`].
pub fn prepare(wanted: Option<&str>) -> Result<()> {
    let fail = |fault, why: String| Err(Error::Lun { lun: "iSCSI".to_owned(), fault, why });
    let is = name();
    match (wanted, is.as_deref()) {
        (None, None) => {
            return fail(LunFault::NoInitiator, format!("{NAME_FILE} has none, and device_config has no localIQN"));
        }
        (Some(wanted), Some(is)) if wanted == is => {}
        (None, Some(_)) => {}
        (Some(wanted), is) => {
            // iscsid has read the file, and a name counts for all sessions.
            if is_running() {
                let is = is.unwrap_or("none");
                let why = format!("{NAME_FILE} says {is}, and {wanted} is wanted; end iscsid before it is changed");
                return fail(LunFault::OtherInitiator, why);
            }
            let text = format!("InitiatorName={wanted}\n");
            fs::write(NAME_FILE, text).map_err(Error::io("write", NAME_FILE))?;
        }
    }
    start()
}

fn start() -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    if is_running() {
        return Ok(());
    }
    let fail = |why: String| Err(Error::Lun { lun: "iSCSI".to_owned(), fault: LunFault::NoDaemon, why });
    if !run_dir::systemd().is_dir() {
        return fail("start it, and call again".to_owned());
    }
    if let Err(e) = Tool::new("systemctl").args(["start", "iscsid"]).run() {
        return fail(e.to_string());
    }
    let until = Instant::now() + PATIENCE;
    while !is_running() {
        if Instant::now() > until {
            return fail("systemctl started it, and it takes no requests".to_owned());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_is_read_as_it_is_shown() {
        for text in ["10.1.0.1:3260", "[fe80::1]:860", "[2001:db8::5]:3260"] {
            assert_eq!(Portal::read(text).unwrap().to_string(), text);
        }
        for bad in ["", "10.1.0.1", "10.1.0.1:", "filer:3260", "10.1.0.1:65536", "[fe80::1]"] {
            assert_eq!(Portal::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_name_of_the_initiator_is_the_first_that_counts() {
        let text = "## comment\n#InitiatorName=iqn.a\nInitiatorName = iqn.2003-01.org.example:b \nInitiatorAlias=x\n";
        assert_eq!(name_in(text).as_deref(), Some("iqn.2003-01.org.example:b"));
        assert_eq!(name_in("InitiatorName=\n"), None);
        assert_eq!(name_in("GenerateName=yes\n"), None);
    }
}
