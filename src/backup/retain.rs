//! Which runs of a set stay.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::list::manifest_of;
use super::name::RunId;
use super::shelf::Shelf;
use crate::error::Result;

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
    let old = old(shelf, keep)?;
    shelf.remove_runs(&old)?;
    Ok(old)
}

/// The runs that do not stay, the newest first: an increment goes before the run that it is made on.
///
/// # Errors
/// Those of [`prune`].
pub fn old(shelf: &Shelf, keep: &Keep) -> Result<Vec<RunId>> {
    let runs = shelf.runs()?;
    let mut stay = chosen(&runs, keep);
    for run in runs.iter().rev() {
        if stay.contains(run)
            && let Some(parent) = manifest_of(&shelf.find(Some(run))?.1)?.parent
        {
            stay.insert(parent.run);
        }
    }
    Ok(runs.into_iter().rev().filter(|run| !stay.contains(run)).collect())
}

fn chosen(runs: &[RunId], keep: &Keep) -> BTreeSet<RunId> {
    let newest_first = || runs.iter().rev();
    let mut stay: BTreeSet<RunId> = newest_first().take(keep.newest.max(1)).cloned().collect();
    for (count, period) in [(keep.daily, RunId::day as fn(&RunId) -> u64), (keep.weekly, RunId::week)] {
        let mut seen = BTreeSet::new();
        for run in newest_first() {
            if seen.len() >= count {
                break;
            }
            if seen.insert(period(run)) {
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
            let stay = chosen(&runs, &Keep { newest, daily, weekly });
            runs.iter().enumerate().filter(|(_, run)| stay.contains(*run)).map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(stay(0, 0, 0), [41]);
        assert_eq!(stay(3, 0, 0), [39, 40, 41]);
        assert_eq!(stay(1, 3, 0), [37, 39, 41]);
        assert_eq!(stay(1, 0, 2), [27, 41]);
        assert_eq!(stay(1, 2, 9), [13, 27, 39, 41]);
    }
}
