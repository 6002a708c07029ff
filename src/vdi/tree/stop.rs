//! How a call ends the collector of an SR: by a flag that the collector looks at.
//!
//! The flag and the lock are those of the Python storage managers (SMAPIv1, "Locks"), so either side ends the other's collector.
//! A collector that ends early leaves what a killed one does: images that the next run merges.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::run_dir;
use crate::types::SrUuid;

/// The lock that a collector holds as long as it runs: `<sr>/gc_active`.
pub const ACTIVE: &str = "gc_active";

/// The lock that a collector holds while it works: `<sr>/running`.
pub const RUNNING: &str = "running";

/// How often a running collector looks at the flag.
const LOOK: Duration = Duration::from_millis(100);

/// How often a call looks whether the collector has ended.
const RETRY: Duration = Duration::from_millis(20);

/// The flag of an SR: `/run/sm/ipc/<sr>/abort`.
fn flag(sr: SrUuid) -> PathBuf {
    run_dir::state().join("ipc").join(sr.to_string()).join("abort")
}

/// The view of a running collector.
#[derive(Debug)]
pub struct Stop {
    sr: SrUuid,
    flag: PathBuf,
    begun: Instant,
    /// Milliseconds after the begin at which the flag is looked at again.
    next: AtomicU64,
    asked: AtomicBool,
}

impl Stop {
    /// Begins a run. Removes the flag of a call that was killed; a call that still waits sets the flag again. The caller
    /// holds [`ACTIVE`].
    pub fn begin(sr: SrUuid) -> Stop {
        let flag = flag(sr);
        let _ = fs::remove_file(&flag);
        Stop { sr, flag, begun: Instant::now(), next: AtomicU64::new(0), asked: AtomicBool::new(false) }
    }

    /// Whether a call waits for the end of the collector. Looks at the flag ten times a second at most.
    pub fn is_asked(&self) -> bool {
        let now = self.begun.elapsed().as_millis() as u64;
        if !self.asked.load(Relaxed) && now >= self.next.load(Relaxed) {
            self.next.store(now + LOOK.as_millis() as u64, Relaxed);
            if self.flag.exists() {
                self.asked.store(true, Relaxed);
            }
        }
        self.asked.load(Relaxed)
    }

    /// [`ControlFlow::Break`] if a call waits for the end of the collector.
    pub fn goes_on(&self) -> ControlFlow<()> {
        if self.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Goes on unless a call waits for the end of the collector.
    ///
    /// # Errors
    /// [`Error::SrUnavailable`].
    pub fn check(&self) -> Result<()> {
        match self.is_asked() {
            false => Ok(()),
            true => Err(Error::SrUnavailable {
                sr: self.sr,
                why: "a call ended the collector; the next sr_collect goes on".to_owned(),
            }),
        }
    }
}

/// The collector of this host that is at work on an SR, in words. Waits for nobody.
pub fn collector(sr: SrUuid) -> Option<String> {
    lock::held_by(&sr.to_string(), ACTIVE)
}

/// Ends a collector of this host and keeps others from beginning until the answer is dropped. Returns at once if none runs.
///
/// # Errors
/// [`Error::Busy`] if the collector has not ended at the deadline; [`Error::Io`] if the flag cannot be set.
pub fn end_collector(sr: SrUuid, deadline: Instant) -> Result<Lock> {
    let mut asked = None;
    loop {
        match lock::take(&sr.to_string(), ACTIVE, Kind::Exclusive, Instant::now()) {
            Ok(lock) => return Ok(lock),
            Err(lock::Refused::Failed(error)) => return Err(error),
            Err(refused) if Instant::now() >= deadline => {
                let busy = |who: &str| Error::Busy { sr, holder: who.to_owned(), what: "it".to_owned() };
                return Err(refused.or_timed_out(busy));
            }
            Err(_) => {}
        }
        // A collector that began meanwhile has removed it.
        asked.get_or_insert_with(|| Flag(flag(sr))).set()?;
        thread::sleep(RETRY.min(deadline.saturating_duration_since(Instant::now())));
    }
}

/// A flag that this process set; dropped, it is gone.
struct Flag(PathBuf);

impl Flag {
    fn set(&self) -> Result<()> {
        if let Some(dir) = self.0.parent() {
            fs::create_dir_all(dir).map_err(Error::io("make the directory", dir))?;
        }
        fs::write(&self.0, std::process::id().to_string()).map_err(Error::io("write", &self.0))
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = self.0.parent().map_or_else(|| Err(io::ErrorKind::NotFound.into()), fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forget(sr: SrUuid) {
        lock::forget(&sr.to_string(), ACTIVE);
    }

    #[test]
    fn a_collector_is_ended_and_the_flag_is_gone_with_the_call() {
        let sr = SrUuid::random();
        let held = lock::take(&sr.to_string(), ACTIVE, Kind::Exclusive, Instant::now()).unwrap();
        let stop = Stop::begin(sr);
        assert!(stop.check().is_ok());
        std::thread::scope(|scope| {
            let call = scope.spawn(|| end_collector(sr, Instant::now() + Duration::from_secs(60)));
            while !stop.is_asked() {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(matches!(stop.check(), Err(Error::SrUnavailable { .. })));
            drop(held);
            drop(call.join().unwrap().unwrap());
        });
        assert!(!flag(sr).exists());
        // What a killed call left ends no later collector.
        Flag(flag(sr)).set().unwrap();
        assert!(!Stop::begin(sr).is_asked());
        forget(sr);
    }

    #[test]
    fn a_collector_that_does_not_end_is_waited_for_until_the_deadline() {
        let sr = SrUuid::random();
        let _held = lock::take(&sr.to_string(), ACTIVE, Kind::Exclusive, Instant::now()).unwrap();
        let refused = end_collector(sr, Instant::now() + Duration::from_millis(150)).unwrap_err();
        assert!(matches!(refused, Error::Busy { .. }), "{refused}");
        assert!(!flag(sr).exists());
        forget(sr);
    }
}
