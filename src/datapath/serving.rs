//! What a server serves, for those who want to change its images: one contract, whoever has them open.

use nix::errno::Errno;

use super::disk::{Disk, State};
use crate::error::{Error, Result};

/// What a server serves, for those who want to change its images.
pub trait Serving: Send + Sync {
    fn state(&self) -> State;

    /// The words of the last I/O error.
    fn complaint(&self) -> Option<String>;

    /// Whether all that is written to the disk is logged, or was until it was paused.
    fn is_tracked(&self) -> bool;

    /// Makes the log of what was written durable.
    fn sync_log(&self);

    /// Makes earlier writes durable before it returns `Ok`.
    fn flush(&self) -> Result<(), Errno>;

    /// Lets the requests under way end, makes everything durable and closes the image and its parents. Requests wait from now
    /// on. If it fails the disk goes on being served.
    fn pause(&self) -> Result<()>;

    /// Opens what the path leads to now and lets the requests go on. Answers the disk's size.
    fn resume(&self) -> Result<u64>;

    /// Sends what is written to a second place as well.
    fn mirror(&self, _secondary: &str) -> Result<()> {
        Err(Error::Unsupported { op: "sending what is written", why: "no tapdisk has the image open".to_owned() })
    }

    /// Asks for the end of the server. `false`: it ends with its device.
    fn end(&self) -> bool {
        false
    }
}

impl Serving for Disk {
    fn state(&self) -> State {
        Disk::state(self)
    }

    fn complaint(&self) -> Option<String> {
        Disk::complaint(self)
    }

    fn is_tracked(&self) -> bool {
        Disk::is_tracked(self)
    }

    fn sync_log(&self) {
        Disk::sync_log(self);
    }

    fn flush(&self) -> Result<(), Errno> {
        Disk::flush(self)
    }

    fn pause(&self) -> Result<()> {
        Disk::pause(self)
    }

    fn resume(&self) -> Result<u64> {
        Disk::resume(self)
    }
}
