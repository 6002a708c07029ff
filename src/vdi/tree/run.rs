//! One run of the collector: who may end it, how fast it copies, and who is told of its steps.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::context::Pool;
use crate::sys::copy::Progress;
use crate::types::{SrUuid, VdiUuid};
use crate::vdi::tree::stop::Stop;
use crate::vdi::tree::together::Together;

/// The wishes of a caller for a run of the collector.
#[derive(Clone, Default)]
pub struct Collecting {
    /// The most bytes that are copied in a second. What is copied while a guest waits is not slowed down.
    pub rate: Option<NonZeroU64>,
    /// Told of each step, on the thread that takes it.
    pub watcher: Option<Arc<dyn Watcher>>,
    /// The other hosts that share the SR, where an agent knows them: they let go of the disks above an image for the last step of its merge.
    pub pool: Option<Arc<dyn Pool>>,
}

/// Somebody who follows a run of the collector.
pub trait Watcher: Send + Sync {
    /// Told after a step was taken. No lock of a VDI or of the trees is held meanwhile, and the collector waits.
    fn taken(&self, step: &Taken);
}

/// A step of the collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The run begins with so many images to merge, which hold so many bytes.
    Begun { images: usize, bytes: u64 },
    /// The image begins to be merged into its parent. Nothing is changed yet that a reader sees.
    Merging { image: VdiUuid, into: VdiUuid, bytes: u64 },
    /// The image is one with its parent: its children are those of the parent, or the parent has the name of the disk now.
    Merged { image: VdiUuid, into: VdiUuid },
    /// The disk is in use and holds too much to be merged while its guest waits: what it held is a base now, and is merged next.
    SetAside { disk: VdiUuid },
    /// Bases that no image needed are gone.
    Removed,
}

/// A run that has begun.
pub struct Run {
    pub stop: Stop,
    collecting: Collecting,
    /// The instant at which the bytes that were copied so far may have been copied.
    due: Mutex<Instant>,
    bytes: Mutex<Bytes>,
    /// How long each wait for another call may take.
    pub wait: Duration,
    /// The last steps of merges, which are taken together.
    pub(super) together: Together,
}

/// The bytes of the images that a run merges.
#[derive(Default)]
struct Bytes {
    /// Of the merges that have ended.
    done: u64,
    /// Of each merge that goes on: all, and those that are copied.
    now: BTreeMap<VdiUuid, (u64, u64)>,
    /// Of those that were to be merged when the run began and have not begun yet.
    left: u64,
}

impl Run {
    /// Begins. The caller holds [`ACTIVE`](crate::vdi::tree::stop::ACTIVE).
    ///
    /// `wait`: how long each wait for another call may take.
    pub fn begin(sr: SrUuid, collecting: &Collecting, wait: Duration) -> Run {
        Run {
            wait,
            stop: Stop::begin(sr),
            collecting: collecting.clone(),
            due: Mutex::new(Instant::now()),
            bytes: Mutex::default(),
            together: Together::default(),
        }
    }

    /// The run is to merge so many images, of so many bytes.
    pub fn begun(&self, images: usize, bytes: u64) {
        self.bytes().left = bytes;
        self.taken(&Taken::Begun { images, bytes });
    }

    /// The merge of images of so many bytes begins.
    pub fn merging(&self, images: &[(VdiUuid, u64)], into: VdiUuid) {
        let mut all = self.bytes();
        for (image, bytes) in images {
            all.left = all.left.saturating_sub(*bytes);
            all.now.insert(*image, (*bytes, 0));
        }
        drop(all);
        images.iter().for_each(|(image, bytes)| self.taken(&Taken::Merging { image: *image, into, bytes: *bytes }));
    }

    /// The merge of images has ended. `is_over`: they are not merged again in this run.
    pub fn merged(&self, images: &[(VdiUuid, u64)], is_over: bool) {
        let mut all = self.bytes();
        for (image, _) in images {
            let bytes = all.now.remove(image).map_or(0, |(bytes, _)| bytes);
            *if is_over { &mut all.done } else { &mut all.left } += bytes;
        }
    }

    /// So many bytes of these images were copied, of one after the other.
    pub fn is_copied(&self, images: impl Iterator<Item = VdiUuid>, mut bytes: u64) {
        let mut now = self.bytes();
        for image in images {
            if let Some((all, copied)) = now.now.get_mut(&image) {
                // The image may hold more than its tables lead to, or be written to meanwhile.
                *copied = bytes.min(*all);
                bytes -= *copied;
            }
        }
    }

    /// Tells the caller how much of the run is done.
    pub fn tell(&self, progress: Progress) {
        let all = self.bytes();
        let (now, copied) = all.now.values().fold((0, 0), |sum, (all, copied)| (sum.0 + all, sum.1 + copied));
        let (done, total) = (all.done + copied, all.done + now + all.left);
        drop(all);
        progress(done, total);
    }

    fn bytes(&self) -> MutexGuard<'_, Bytes> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Collecting::pool`].
    pub fn pool(&self) -> Option<&dyn Pool> {
        self.collecting.pool.as_deref()
    }

    /// Tells the watcher of a step.
    pub fn taken(&self, step: &Taken) {
        if let Some(watcher) = &self.collecting.watcher {
            watcher.taken(step);
        }
    }

    /// Waits as long as the rate wants it after `bytes` were copied. [`ControlFlow::Break`] if a call waits for the end of the
    /// collector. Called from several threads.
    pub fn copied(&self, bytes: u64) -> ControlFlow<()> {
        self.stop.goes_on()?;
        let Some(rate) = self.collecting.rate.filter(|_| bytes > 0) else { return ControlFlow::Continue(()) };
        let due = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            // Time in which nothing was copied is not made up for.
            let takes = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
            *due = (*due).max(Instant::now()).checked_add(takes).unwrap_or(*due);
            *due
        };
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return ControlFlow::Continue(());
            }
            thread::sleep(left.min(NAP));
            self.stop.goes_on()?;
        }
    }
}

/// How long a run sleeps before it looks whether a call waits for its end.
const NAP: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_time_that_the_rate_gives_them() {
        let limited = |rate| Collecting { rate: NonZeroU64::new(rate), ..Collecting::default() };
        let begin = |rate| Run::begin(SrUuid::random(), &limited(rate), Duration::ZERO);
        let run = begin(1 << 20);
        let begun = Instant::now();
        assert!(run.copied(64 << 10).is_continue() && run.copied(64 << 10).is_continue());
        // An eighth of a second.
        assert!(begun.elapsed() >= Duration::from_millis(124), "{:?}", begun.elapsed());
        // Without a limit, and without bytes, nothing is waited for, however many bytes there were.
        let (free, slow) = (begin(0), begin(1));
        assert!(free.copied(u64::MAX).is_continue() && slow.copied(0).is_continue());
    }
}
