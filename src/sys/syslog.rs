//! The system log, where the Python storage managers write as well: facility local2, tag `SM`, which
//! dom0's rsyslog sends to /var/log/SMlog; SMAPIv1, "Logging".

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::sys::run_dir;

/// local2, informational.
const PRIORITY: u8 = 18 << 3 | 6;
/// Longer lines are wrapped: syslog daemons cut them.
const LONGEST: usize = 900;

/// Writes `text`, a line or several. A log that can't be written stops nothing.
pub fn write(text: &str) {
    if Path::new("/etc/xensource/no_sm_log").exists() {
        return;
    }
    let Ok(socket) = UnixDatagram::unbound() else { return };
    // A log daemon that hangs must not hang storage.
    let _ = socket.set_nonblocking(true);
    if socket.connect(run_dir::log()).is_err() {
        return;
    }
    let pid = std::process::id();
    for line in text.lines() {
        let clean: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut rest = clean.as_str();
        while !rest.is_empty() {
            let end = (0..=LONGEST.min(rest.len())).rev().find(|i| rest.is_char_boundary(*i)).unwrap_or(rest.len());
            let _ = socket.send(format!("<{PRIORITY}>SM: [{pid}] {}", &rest[..end]).as_bytes());
            rest = &rest[end..];
        }
    }
}
