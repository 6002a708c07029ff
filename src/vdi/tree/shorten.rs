//! A chain that is as long as a chain may be is made shorter for a snapshot or a clone, if images of it could be merged.

use std::thread;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::types::{Done, VdiUuid};
use crate::vdi::tree::chain::{depth, look};
use crate::vdi::tree::collect::{merge_locked, read_locked};
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::next::unmergeable;
use crate::vdi::tree::run::{Collecting, Run};

/// How often it is looked whether the collector that is at work has ended, or has made the chain shorter.
const AGAIN: Duration = Duration::from_millis(200);

/// Merges one base of the chain of a disk into its parent: the one that holds least. While another process collects the SR, it is
/// waited for until the chain is shorter. `Already`: no base of the chain can be merged now. The caller holds the lock of no VDI.
///
/// Long work, if the bases hold much.
///
/// # Errors
/// [`Error::SrUnavailable`] if another process collected the SR until the deadline and the chain is as long as before, or if a call
/// ended this merge; those of [`merge`](mod@crate::vdi::tree::merge).
pub fn shorten(forest: &dyn Forest, vdi: VdiUuid, context: &Context) -> Result<Done> {
    let length = || {
        let place = forest.place(vdi)?;
        depth(forest, &*place, &look(forest, &*place)?)
    };
    let before = length()?;
    let _alone = loop {
        match forest.collecting(context.deadline) {
            Ok(alone) => break alone,
            Err(busy @ Error::SrUnavailable { .. }) if Instant::now() >= context.deadline => return Err(busy),
            Err(Error::SrUnavailable { .. }) => thread::sleep(AGAIN),
            Err(other) => return Err(other),
        }
        if length()? < before {
            return Ok(Done::Changed);
        }
    };
    let wait = context.deadline.saturating_duration_since(Instant::now());
    let run = Run::begin(forest.sr(), &Collecting::default(), wait);
    let mut nodes = read_locked(forest, context)?;
    let held = |base: VdiUuid| forest.place(base).and_then(|place| place.held()).unwrap_or(u64::MAX);
    let chain = nodes.chain(vdi).into_iter().skip(1);
    let mut bases: Vec<(u64, VdiUuid)> = chain
        .filter(|base| nodes.base_of_only_child(*base).is_some() && unmergeable(&nodes, *base).is_none())
        .map(|base| (held(base), base))
        .collect();
    bases.sort_unstable();
    for (_, base) in bases {
        if merge_locked(forest, &mut nodes, &[base], (context, &run))? == Done::Changed {
            return Ok(Done::Changed);
        }
    }
    // A merge that went on when this began may have ended meanwhile.
    Ok(if length()? < before { Done::Changed } else { Done::Already })
}
