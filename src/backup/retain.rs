//! Which runs of a set stay.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::list::manifest_of;
use super::name::RunId;
use super::shelf::Shelf;
use crate::error::Result;
use crate::types::Utc;

/// How many runs stay. A run that another is an increment on stays as long as that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The newest runs; 1 at least stays.
    pub newest: usize,
    /// The newest run of each of so many days that have one.
    pub daily: usize,
    /// The newest run of each of so many weeks, from Monday on, that have one.
    pub weekly: usize,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep { newest: 1, daily: 0, weekly: 0 }
    }
}

/// How many runs of a shelf stay: as many as `said`; if nothing is said, as many as the newest run that can be read was to leave.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn keep(shelf: &Shelf, said: Option<Keep>) -> Result<Keep> {
    if let Some(said) = said {
        return Ok(said);
    }
    let readable = |run: &RunId| shelf.find(Some(run)).and_then(|(_, dir)| manifest_of(&dir)).ok();
    Ok(shelf.runs()?.iter().rev().find_map(readable).map(|manifest| manifest.keep).unwrap_or_default())
}

/// Removes the runs that do not stay, durably.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::NotVerified`] for a manifest that does not tell its parent: then nothing is removed.
pub fn prune(shelf: &Shelf, keep: &Keep) -> Result<Vec<RunId>> {
    let old = old(shelf, keep, None)?;
    shelf.remove_runs(&old)?;
    Ok(old)
}

/// A run that is not made yet.
#[derive(Clone, Debug)]
pub struct Coming {
    pub run: RunId,
    /// In seconds since 1970-01-01 UTC.
    pub began: u64,
    /// The run that it is an increment on.
    pub parent: Option<RunId>,
}

/// The runs that do not stay, the newest first: an increment goes before the run that it is made on. With `coming`, those that do
/// not stay once that run is made.
///
/// # Errors
/// Those of [`prune`].
pub fn old(shelf: &Shelf, keep: &Keep, coming: Option<&Coming>) -> Result<Vec<RunId>> {
    let mut runs = shelf.runs()?;
    runs.extend(coming.map(|coming| coming.run.clone()));
    let of = |run: &RunId| coming.filter(|coming| coming.run == *run);
    let mut stay = chosen(&runs, keep, &|run| of(run).map_or_else(|| began(shelf, run), |coming| coming.began));
    for run in runs.iter().rev() {
        if stay.contains(run) {
            stay.extend(match of(run) {
                Some(coming) => coming.parent.clone(),
                None => manifest_of(&shelf.find(Some(run))?.1)?.parent.map(|parent| parent.run),
            });
        }
    }
    Ok(runs.into_iter().rev().filter(|run| !stay.contains(run)).collect())
}

/// When a run began, in seconds since 1970-01-01 UTC. Its manifest tells that; the name of a run is later if the run before it was
/// named by a clock that was ahead. Of a manifest that cannot be read, the name.
fn began(shelf: &Shelf, run: &RunId) -> u64 {
    let manifest = shelf.find(Some(run)).and_then(|(_, dir)| manifest_of(&dir));
    let told = manifest.ok().and_then(|manifest| Utc::parse(&manifest.timestamp));
    told.map_or_else(|| run.seconds(), |utc| utc.0)
}

/// The day of a time, counted from 1970-01-01.
fn day(seconds: u64) -> u64 {
    seconds / 86_400
}

/// The week of a time, counted from Monday, 1969-12-29.
fn week(seconds: u64) -> u64 {
    // 1970-01-01 was a Thursday.
    (day(seconds) + 3) / 7
}

fn chosen(runs: &[RunId], keep: &Keep, began: &dyn Fn(&RunId) -> u64) -> BTreeSet<RunId> {
    let newest_first = || runs.iter().rev();
    let mut stay: BTreeSet<RunId> = newest_first().take(keep.newest.max(1)).cloned().collect();
    for (count, period) in [(keep.daily, day as fn(u64) -> u64), (keep.weekly, week)] {
        let mut seen = BTreeSet::new();
        for run in newest_first() {
            if seen.len() >= count {
                break;
            }
            if seen.insert(period(began(run))) {
                stay.insert(run.clone());
            }
        }
    }
    stay
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: u64) -> RunId {
        RunId::new(seconds)
    }

    #[test]
    fn the_newest_of_each_day_and_week_stay() {
        const DAY: u64 = 86_400;
        // 2026-11-23 is a Monday. Two runs a day for 21 days.
        let monday = 1_795_392_000;
        let runs: Vec<RunId> = (0..42).map(|half| run(monday + half * DAY / 2)).collect();
        let stay = |newest, daily, weekly| {
            let stay = chosen(&runs, &Keep { newest, daily, weekly }, &RunId::seconds);
            runs.iter().enumerate().filter(|(_, run)| stay.contains(*run)).map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(stay(0, 0, 0), [41]);
        assert_eq!(stay(3, 0, 0), [39, 40, 41]);
        assert_eq!(stay(1, 3, 0), [37, 39, 41]);
        assert_eq!(stay(1, 0, 2), [27, 41]);
        assert_eq!(stay(1, 2, 9), [13, 27, 39, 41]);
    }

    #[test]
    fn a_run_counts_for_the_day_on_which_it_began_whatever_its_name_is() {
        const DAY: u64 = 86_400;
        // The first run was named by a clock that was ahead by 70 years. Those after it, one a day, are named after it.
        let mut runs = vec![RunId::new(4_000_000_000)];
        for at in 0..5 {
            let next = RunId::after(1_795_392_000 + at * DAY, runs.last()).unwrap();
            runs.push(next);
        }
        let began = |run: &RunId| match runs.iter().position(|it| it == run) {
            Some(0) => 4_000_000_000,
            at => 1_795_392_000 + at.unwrap() as u64 * DAY,
        };
        let stay = chosen(&runs, &Keep { newest: 1, daily: 3, weekly: 0 }, &began);
        assert_eq!(stay.into_iter().collect::<Vec<_>>(), runs[3..]);
    }
}
