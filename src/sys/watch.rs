//! Work on storage that can go away: a thread does it, we watch whether the other end is still there.
//!
//! A system call on a hard NFS mount waits for its server as long as it takes. That is right for the disks
//! of running guests, not for the caller of one operation. So the work is given up when the server has been
//! silent for long, and never because it takes long. The thread then waits on; the end of the process ends
//! it, which to the storage is a kill like any other.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sys::copy::Progress;

/// Asks, within some seconds, whether the other end answers.
pub type Pulse = Box<dyn Fn() -> Result<()>>;

/// The other end was silent for so long; what it last failed with.
pub struct Silent {
    pub seconds: u64,
    pub last: Error,
}

/// How long the work may be quiet before the other end is asked, and then again.
const BEAT: Duration = Duration::from_secs(2);

/// Does the work, which may report its progress, unless the other end is silent for longer than `wait`.
///
/// # Errors
/// [`Silent`] if the other end did not answer for `wait`. The work is left to end by itself.
pub fn over<T: Send + 'static>(
    pulse: &Pulse,
    wait: Duration,
    progress: Progress,
    work: impl FnOnce(Progress) -> T + Send + 'static,
) -> Result<T, Silent> {
    let (tell, told) = mpsc::channel();
    let worker = std::thread::spawn(move || work(&|done, total| _ = tell.send((done, total))));
    let mut heard = Instant::now();
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
                Ok(()) => heard = Instant::now(),
                // The work may have ended while the other end was asked: sr_detach of a server that is gone does.
                Err(last) if heard.elapsed() >= wait && !worker.is_finished() => {
                    return Err(Silent { seconds: heard.elapsed().as_secs(), last });
                }
                Err(_) => {}
            },
        }
    }
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
        assert_eq!(silence.last.to_string(), "nobody there");
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
