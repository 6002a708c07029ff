//! Devices that LVM commands do not see: those of disks that this package serves, and LUNs that do not answer.
//!
//! LVM reads the beginning of every device. While a snapshot is made of an attached disk, I/O on the disk waits until the snapshot is
//! there, and a command that reads the disk would wait for it: for ever, if the snapshot waits for the command. A guest may also have
//! made a group on its disk. I/O on a LUN whose target is gone waits for minutes, and with it would each command on any group of this host.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::sys::tool::Tool;
use crate::sys::{blockdev, loopdev, scsidisk};

/// Devices that LVM commands of this process see although this package serves them.
static SHOWN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// LVM commands of this process see these devices: an SR is on them, or may be.
pub fn show(devices: &[PathBuf]) {
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    for device in devices {
        if !shown.contains(device) {
            shown.push(device.clone());
        }
    }
}

/// The devices that LVM commands of this process do not see now.
///
/// # Errors
/// [`crate::Error::Io`] if it is not known which disks are served.
pub(super) fn devices() -> Result<Vec<PathBuf>> {
    let mut hidden = loopdev::served()?;
    if !hidden.is_empty() {
        let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let shown: Vec<u64> = shown.iter().filter_map(|device| blockdev::number(device)).collect();
        hidden.retain(|device| blockdev::number(device).is_none_or(|number| !shown.contains(&number)));
    }
    hidden.extend(scsidisk::stalled());
    Ok(hidden)
}

/// A program of LVM.
///
/// # Errors
/// [`crate::Error::Io`] if it is not known which disks are served.
pub(super) fn tool(program: &str) -> Result<Tool> {
    Ok(Tool::new(program).hides(&devices()?))
}
