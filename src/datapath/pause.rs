//! The pause of a disk by a call of this host, which ends with the call.

use std::path::Path;
use std::time::Instant;

use super::control::Client;
use super::{Attached, TRACKED, conversation, find, find_settled, fit, is_same, may_serve, patience, size_in, status};
use crate::error::{Error, Result};

/// A disk whose I/O waits and whose images are closed. When it is dropped, the disk is opened again by its name
/// and goes on; what fails then fails for its user, and [`status`] says why.
pub struct Paused {
    client: Client,
    attached: Attached,
    resumed: bool,
    /// The disk's log of changed blocks has all that was written to it.
    pub is_tracked: bool,
}

/// Lets the requests under way end and makes everything durable, before a [`pause`], so that the guest waits less while
/// it is paused, and no lock is held meanwhile. Does nothing if it is not attached, or paused already.
///
/// # Errors
/// [`Error::DeviceInUse`] when the server does not answer until the deadline, or is dead. That of a dead one whose socket
/// was removed is the pause's to tell.
pub fn prepare(path: &Path, deadline: Instant) -> Result<()> {
    // Without a socket there is none to talk to, and to list the devices of the host takes a call of the system for each.
    if !may_serve() {
        return Ok(());
    }
    let found = match find(path)? {
        // Its keeper may have been killed.
        Some(tapped) if tapped.tapdisk.is_some() => find_settled(path, deadline)?,
        other => other,
    };
    let Some(found) = found else { return Ok(()) };
    match conversation(&found, patience(deadline))?.ask("ready") {
        // A server of an earlier version does not know the word; a flush that fails is the pause's to tell.
        Err(Error::Io { .. } | Error::ImageServer { .. }) => Ok(()),
        other => other.map(drop),
    }
}

/// Lets the requests under way end, makes everything durable, and closes the image and its parents, so that
/// they may be renamed, replaced, resized and merged. I/O waits, and goes on when the caller dies.
///
/// `None`: it is not attached.
///
/// # Errors
/// [`Error::DeviceInUse`] when the server does not answer until the deadline.
pub fn pause(path: &Path, deadline: Instant) -> Result<Option<Paused>> {
    let Some(found) = find_settled(path, deadline)? else { return Ok(None) };
    if !is_same(&found.image, path) {
        return Err(Error::DeviceInUse {
            device: found.device.display().to_string(),
            holder: format!("its server opened {}, which was moved since; detach it first", found.image.display()),
        });
    }
    let mut client = conversation(&found, patience(deadline))?;
    let is_tracked = client.ask("pause")? == TRACKED;
    Ok(Some(Paused { client, attached: found, resumed: false, is_tracked }))
}

impl Paused {
    /// Whether the device is one that nothing is written through.
    pub fn is_read_only(&self) -> bool {
        self.attached.read_only
    }

    /// Opens what has the image's name now, and gives the device its size. Answers the size in bytes.
    ///
    /// # Errors
    /// When it can't be opened: then I/O fails, and may be mended by another pause and resume.
    pub fn resume(mut self) -> Result<u64> {
        self.resumed = true;
        self.go_on()
    }

    fn go_on(&mut self) -> Result<u64> {
        // However long the pause was.
        self.client.wait_until(patience(Instant::now()));
        let size = match self.client.ask("resume") {
            // Its keeper was killed meanwhile: the next one ends the pause.
            Err(why) if self.attached.tapdisk.is_some() => match find_settled(&self.attached.image, Instant::now())? {
                Some(now) if now.server != self.attached.server => size_in(&status(&now)?).to_owned(),
                _ => return Err(why),
            },
            other => other?,
        };
        fit(&self.attached, &size)?;
        size.parse().map_err(|_| Error::Invalid { what: "size", value: size, expected: "expected a number".to_owned() })
    }

    /// Ends the conversation without a word, as a process that dies does. For tests.
    #[doc(hidden)]
    pub fn abandon(mut self) {
        self.resumed = true;
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if !self.resumed {
            let _ = self.go_on();
        }
    }
}
