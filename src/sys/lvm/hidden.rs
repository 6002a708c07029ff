//! Devices that LVM commands do not see: those of disks that this package serves, and LUNs that do not answer.
//!
//! LVM reads the beginning of every device. While a snapshot is made of an attached disk, I/O on the disk waits until the snapshot is
//! there, and a command that reads the disk would wait for itself. A guest may also have made a group on its disk. I/O on a LUN whose
//! target is gone waits for minutes, and with it would each command on any group of this host.

use std::cell::RefCell;
use std::path::PathBuf;

use crate::sys::scsidisk;
use crate::sys::tool::Tool;

thread_local! {
    static HIDDEN: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// Does `work`; the LVM commands that it runs in this thread do not see these devices.
pub fn hiding<T>(devices: Vec<PathBuf>, work: impl FnOnce() -> T) -> T {
    let before = HIDDEN.replace(devices);
    let done = work();
    HIDDEN.set(before);
    done
}

/// A program of LVM.
pub(super) fn tool(program: &str) -> Tool {
    let stalled = scsidisk::stalled();
    HIDDEN.with_borrow(|hidden| Tool::new(program).hides(&[hidden.as_slice(), &stalled].concat()))
}
