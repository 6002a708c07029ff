//! The circumstances of one call, which every layer below the dispatch may need: how long it may wait, who is told of
//! its progress, and which other hosts share its disk.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::sys::copy::Progress;
use crate::types::VdiUuid;

/// The circumstances that a call brings along besides its arguments.
pub struct Context<'a> {
    /// The end of every wait: for other calls, and for a server that does not answer.
    pub deadline: Instant,
    /// Told of the bytes copied so far and in all, by the calls that copy.
    pub progress: Progress<'a>,
    /// The other hosts that may have the VDI of this call attached. `None`: nobody knows them.
    pub others: Option<Arc<dyn OtherHosts>>,
}

/// The other hosts that share an SR, as far as an agent knows them and can ask them, for the VDI of one call.
///
/// A host that serves an image must not have it open while the image gets another name, or it would go on writing into
/// what is a base by then. On this host that is seen in the kernel; of others the agent keeps the account.
pub trait OtherHosts: Send + Sync {
    /// Makes every host that has the VDI attached close its images and let I/O wait, and keeps all others from
    /// attaching it, until [`OtherHosts::resume`]; whatever happens to this process. The caller holds the tree's lock:
    /// a pause that is there already was left by somebody who was killed.
    ///
    /// # Errors
    /// [`crate::error::Error::NotPaused`], with the host that did not; then all go on as before.
    fn pause(&self) -> Result<()>;

    /// Lets all go on with the images that have the names now. Idempotent.
    ///
    /// # Errors
    /// [`crate::error::Error::NotPaused`], with the hosts that did not go on: to be tried again.
    fn resume(&self) -> Result<()>;

    /// Whether one of these hosts has the VDI attached for writing, or may have it.
    fn has_writer(&self) -> bool;

    /// Whether a server of one of these hosts has the VDI attached, and logged all that it wrote to the VDI since its log was
    /// begun; a host that cannot be asked did not. For a caller that has them paused.
    fn tracks(&self) -> bool;
}

/// The hosts that share an SR, for work on several of its VDIs.
pub trait Pool: Send + Sync {
    /// The other hosts that may have a VDI attached. `None`: the agent knows no such VDI.
    ///
    /// # Errors
    /// [`crate::error::Error::NotPaused`] if the agent does not say.
    fn hosts_of(&self, vdi: VdiUuid) -> Result<Option<Arc<dyn OtherHosts>>>;
}

/// A VDI that no host has open; dropped, all go on.
pub struct PausedElsewhere(Option<Arc<dyn OtherHosts>>);

impl PausedElsewhere {
    /// Does nothing where nobody knows of other hosts.
    ///
    /// # Errors
    /// That of [`OtherHosts::pause`]. Then all hosts go on as before.
    pub fn begin(context: &Context) -> Result<PausedElsewhere> {
        match &context.others {
            Some(others) => others.pause().map(|()| PausedElsewhere(Some(others.clone()))),
            None => Ok(PausedElsewhere(None)),
        }
    }

    /// As [`PausedElsewhere::begin`], for the VDI of a pool.
    ///
    /// # Errors
    /// Those of [`Pool::hosts_of`] and [`OtherHosts::pause`].
    pub fn begin_of(pool: Option<&dyn Pool>, vdi: VdiUuid) -> Result<PausedElsewhere> {
        let others = pool.map_or(Ok(None), |pool| pool.hosts_of(vdi))?;
        let paused = others.map(|others| others.pause().map(|()| others)).transpose()?;
        Ok(PausedElsewhere(paused))
    }

    /// For a VDI that no other host has to let go of.
    pub fn none() -> PausedElsewhere {
        PausedElsewhere(None)
    }
}

impl Drop for PausedElsewhere {
    /// A host that does not go on is no failure of what was done meanwhile: the agent keeps the account and tries again.
    fn drop(&mut self) {
        if let Some(others) = self.0.take() {
            let _ = others.resume();
        }
    }
}

/// The end of every wait of what is done with an SR that is open.
///
/// An SR is opened once and used by several operations, each of which has a deadline of its own; the session that opened
/// the SR sets it at the start of each. Clones share the instant.
#[derive(Clone, Debug)]
pub struct Deadline(Arc<Mutex<Instant>>);

impl Deadline {
    /// The instant at which waits end.
    pub fn end(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the instant at which waits end, for this and all clones.
    pub fn set(&self, end: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }
}

impl From<Instant> for Deadline {
    fn from(end: Instant) -> Deadline {
        Deadline(Arc::new(Mutex::new(end)))
    }
}

/// The length to which a longer wait is cut, because an instant further away can't be named.
pub const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long a call waits for others unless told otherwise.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(60);
