//! Work on storage that can go away: a thread does it, we watch whether the other end is still there.
//!
//! A system call on a hard NFS mount waits for its server as long as it takes. That is right for the disks
//! of running guests, not for the caller of one operation. So the work is given up when the server has been
//! silent for long, and never because it takes long. The thread then waits on; the end of the process ends
//! it, which to the storage is a kill like any other.
//!
//! A server may take connections and do nothing: it was stopped, or a part of it that we do not ask is gone, as the metadata
//! server of a Ceph whose monitors live. So the work is given up as well when nothing in this process has moved for much longer.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::error::{Error, Result};
use crate::sys::copy::Progress;

/// Asks, within some seconds, whether the other end answers.
pub type Pulse = Box<dyn Fn() -> Result<()>>;

/// The work was given up after so long.
pub struct Silent {
    pub seconds: u64,
    /// What the other end last failed with; nothing if it takes connections, but nothing came of the work.
    pub last: Option<Error>,
}

/// How long the work may be quiet before the other end is asked, and then again.
const BEAT: Duration = Duration::from_secs(2);

/// The environment variable that shortens waits for others to so many seconds, for callers that can't wait as long as xapi.
pub const PATIENCE: &str = "XCP_SM_PATIENCE";

/// How long to wait where `usual` is what fits xapi.
pub fn patience(usual: Duration) -> Duration {
    let seconds = std::env::var(PATIENCE).ok().and_then(|text| text.parse().ok());
    seconds.map_or(usual, |seconds| usual.min(Duration::from_secs(seconds)))
}

/// How many times longer than a silent server one is waited for that takes connections.
const STUCK_FACTOR: u32 = 5;

/// The least that it is waited for, however short the wait for locks: to write out all that a host has in memory is one request.
const STUCK_LEAST: Duration = Duration::from_secs(900);

/// Does the work, which may report its progress, unless the other end is silent for longer than `wait`, or answers while
/// nothing moves here for five times that, 15 minutes at least.
///
/// # Errors
/// [`Silent`] if the other end did not answer for `wait`, or nothing came of the work. The work is left to end by itself.
pub fn over<T: Send + 'static>(
    pulse: &Pulse,
    wait: Duration,
    progress: Progress,
    work: impl FnOnce(Progress) -> T + Send + 'static,
) -> Result<T, Silent> {
    let (tell, told) = mpsc::channel();
    let worker = std::thread::spawn(move || work(&|done, total| _ = tell.send((done, total))));
    let mut heard = Instant::now();
    let mut movement = Movement::now();
    let longest = patience((wait * STUCK_FACTOR).max(STUCK_LEAST));
    loop {
        match told.recv_timeout(BEAT) {
            Ok((done, total)) => {
                heard = Instant::now();
                progress(done, total);
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            Err(RecvTimeoutError::Timeout) => match pulse() {
                Ok(()) => {
                    heard = Instant::now();
                    let stuck = movement.none_for();
                    if stuck >= longest && !worker.is_finished() {
                        return Err(Silent { seconds: stuck.as_secs(), last: None });
                    }
                }
                // The work may have ended while the other end was asked: sr_detach of a server that is gone does.
                Err(last) if heard.elapsed() >= wait && !worker.is_finished() => {
                    return Err(Silent { seconds: heard.elapsed().as_secs(), last: Some(last) });
                }
                Err(_) => {}
            },
        }
    }
}

/// What the other threads of this process do: whether any of them has run since.
struct Movement {
    /// How often threads gave up their core, by themselves or not; proc(5), `/proc/<pid>/task/<tid>/status`.
    switches: u64,
    since: Instant,
}

impl Movement {
    fn now() -> Movement {
        Movement { switches: switches().unwrap_or(0), since: Instant::now() }
    }

    /// How long none has run. A program that one of them waits for has its own limit, and one is no standstill; nor is a
    /// kernel that does not tell.
    fn none_for(&mut self) -> Duration {
        match switches() {
            Some(switches) if switches == self.switches && !has_children() => {}
            switches => *self = Movement { switches: switches.unwrap_or(0), since: Instant::now() },
        }
        self.since.elapsed()
    }
}

/// The switches of all threads but this one.
fn switches() -> Option<u64> {
    let own = nix::unistd::gettid().to_string();
    let mut all = 0;
    for task in fs::read_dir("/proc/self/task").ok()?.flatten().filter(|task| *task.file_name() != *own) {
        // A thread that has ended meanwhile has moved: the sum becomes another.
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok());
        all += counts.sum::<u64>();
    }
    Some(all)
}

/// Whether this process has children, ended ones included; none is reaped.
fn has_children() -> bool {
    waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) != Err(Errno::ECHILD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Pulse {
        Box::new(|| Err(Error::Usage("nobody there".to_owned())))
    }

    #[test]
    fn work_that_ends_is_not_disturbed_and_its_progress_is_told() {
        let seen = std::cell::Cell::new(0);
        let progress = |done, _| seen.set(done);
        assert_eq!(
            over(&silent(), Duration::ZERO, &progress, |progress| {
                progress(7, 9);
                42
            })
            .ok(),
            Some(42)
        );
        assert_eq!(seen.get(), 7);
    }

    #[test]
    fn silence_ends_the_wait() {
        let forever = |_: Progress| std::thread::sleep(Duration::from_secs(60));
        let silence = over(&silent(), Duration::ZERO, &|_, _| (), forever).unwrap_err();
        assert_eq!(silence.last.unwrap().to_string(), "nobody there");
    }

    #[test]
    fn work_that_ends_while_the_other_end_is_asked_has_ended() {
        let (tell, told) = mpsc::channel::<()>();
        let pulse: Pulse = Box::new(move || {
            // Ends with the work, which drops the sender.
            let _ = told.recv();
            std::thread::sleep(Duration::from_millis(300));
            Err(Error::Usage("nobody there".to_owned()))
        });
        let work = move |_: Progress| {
            std::thread::sleep(BEAT + Duration::from_millis(300));
            drop(tell);
            7
        };
        assert_eq!(over(&pulse, Duration::ZERO, &|_, _| (), work).ok(), Some(7));
    }
}
