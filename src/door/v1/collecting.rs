//! `sr_collect`: its options, and the steps of a run as JSON, one object on a line of standard error for each.

use std::io::{Write, stderr};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::json;
use crate::context::Context;
use crate::door::size;
use crate::error::Result;
use crate::sys::copy::Progress;
use crate::types::{Size, VdiUuid};
use crate::vdi::tree::run::{Collecting, Taken, Watcher};

/// The options of `sr_collect`.
#[derive(Args)]
pub struct CollectArgs {
    /// Copy no more than SIZE in a second, in MiB or with a unit (20MiB). What is copied while a guest waits for it is not slowed
    /// down.
    #[arg(long, value_name = "SIZE", conflicts_with = "stop")]
    pub rate: Option<String>,
    /// Write what is done to standard error, one JSON object on a line for each step, and once a second how far it is.
    #[arg(long, conflicts_with = "stop")]
    pub progress: bool,
    /// Collect nothing: end a collector of this host that is at work on the SR, and wait until it has ended. Nothing is lost; the
    /// next run goes on.
    #[arg(long)]
    pub stop: bool,
}

impl CollectArgs {
    /// The most bytes that are copied in a second.
    ///
    /// # Errors
    /// Those of [`size::parse`].
    pub fn rate(&self) -> Result<Option<NonZeroU64>> {
        Ok(self.rate.as_deref().map(size::parse).transpose()?.and_then(NonZeroU64::new))
    }

    /// Runs `collect` with these options.
    ///
    /// # Errors
    /// Those of the options, and of `collect`.
    pub fn run<T>(&self, context: &Context, collect: impl FnOnce(&Collecting, &Context) -> Result<T>) -> Result<T> {
        self.counted(context, collect).0
    }

    /// As [`CollectArgs::run`], and what was done, also by a run that failed.
    pub fn counted<T>(
        &self,
        context: &Context,
        collect: impl FnOnce(&Collecting, &Context) -> Result<T>,
    ) -> (Result<T>, Counted) {
        let rate = match self.rate() {
            Ok(rate) => rate,
            Err(error) => return (Err(error), Counted::default()),
        };
        let lines = Arc::new(Lines::new(self.progress));
        let progress = |done, total| lines.progress(done, total);
        let (deadline, others) = (context.deadline, context.others.clone());
        let collecting = Collecting { rate, watcher: Some(lines.clone()), pool: None };
        let progress: Progress = if self.progress { &progress } else { context.progress };
        let collected = collect(&collecting, &Context { deadline, progress, others });
        (collected, lines.counted())
    }
}

/// What a run has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub merged: usize,
    pub removed: usize,
}

impl Counted {
    /// In words. `freed`: bytes that disks took before, and do not any more.
    pub fn words(self, freed: u64) -> String {
        match (self.merged, self.removed) {
            (0, 0) => "nothing was to be merged".to_owned(),
            (merged, removed) => {
                let (merged, removed) = (format!("{merged} merged"), format!("{removed} removed"));
                format!("{merged}, {removed}; {} freed", Size(freed))
            }
        }
    }
}

/// How often a line says how far the run is.
const EVERY: Duration = Duration::from_secs(1);

/// The writer of the lines.
struct Lines {
    begun: Instant,
    said: Mutex<Option<Instant>>,
    /// Whether the steps are written.
    is_asked: bool,
    merged: AtomicUsize,
    removed: AtomicUsize,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Begun {
        images: usize,
        bytes: u64,
    },
    Merging {
        image: VdiUuid,
        into: VdiUuid,
        bytes: u64,
    },
    Progress {
        done: u64,
        total: u64,
        seconds: u64,
        /// Seconds that the rest will take if it goes on as before.
        left: Option<u64>,
    },
    Merged {
        image: VdiUuid,
        into: VdiUuid,
    },
    SetAside {
        disk: VdiUuid,
    },
    Removed,
}

impl From<&Taken> for Event {
    fn from(step: &Taken) -> Event {
        match *step {
            Taken::Begun { images, bytes } => Event::Begun { images, bytes },
            Taken::Merging { image, into, bytes } => Event::Merging { image, into, bytes },
            Taken::Merged { image, into } => Event::Merged { image, into },
            Taken::SetAside { disk } => Event::SetAside { disk },
            Taken::Removed => Event::Removed,
        }
    }
}

impl Lines {
    fn new(is_asked: bool) -> Lines {
        let (merged, removed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Lines { begun: Instant::now(), said: Mutex::new(None), is_asked, merged, removed }
    }

    fn counted(&self) -> Counted {
        Counted { merged: self.merged.load(Relaxed), removed: self.removed.load(Relaxed) }
    }

    fn progress(&self, done: u64, total: u64) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= EVERY) {
            *said = Some(Instant::now());
            say(&progress(done, total, self.begun.elapsed()));
        }
    }
}

fn progress(done: u64, total: u64, elapsed: Duration) -> Event {
    let left = elapsed.as_secs_f64() * total.saturating_sub(done) as f64 / done as f64;
    Event::Progress { done, total, seconds: elapsed.as_secs(), left: (done > 0).then_some(left.ceil() as u64) }
}

impl Watcher for Lines {
    fn taken(&self, step: &Taken) {
        match step {
            Taken::Merged { .. } => drop(self.merged.fetch_add(1, Relaxed)),
            Taken::Removed => drop(self.removed.fetch_add(1, Relaxed)),
            _ => {}
        }
        if self.is_asked {
            say(&Event::from(step));
        }
    }
}

/// Whoever follows a run may go away; the run goes on.
fn say(event: &Event) {
    let _ = stderr().write_all(&json::document(event));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line_with_its_name() {
        let image: VdiUuid = "98de866e-b035-4b1a-a571-000000000001".parse().unwrap();
        let line = |event: &Event| String::from_utf8(json::document(event)).unwrap();
        assert_eq!(
            line(&Event::from(&Taken::SetAside { disk: image })),
            format!("{{\"schema\":1,\"event\":\"set_aside\",\"disk\":\"{image}\"}}\n")
        );
        assert_eq!(line(&Event::from(&Taken::Removed)), "{\"schema\":1,\"event\":\"removed\"}\n");
        let at = |done| line(&progress(done, 300, Duration::from_millis(2500)));
        assert_eq!(
            at(100),
            "{\"schema\":1,\"event\":\"progress\",\"done\":100,\"total\":300,\"seconds\":2,\"left\":5}\n"
        );
        assert!(at(0).ends_with("\"left\":null}\n"));
    }
}
