//! Independent trees are merged at the same time. Each thread has the SR open for itself, as another process would, and merges one
//! tree after the other; the locks keep threads apart as they keep processes apart. What is left then (bases to remove, images that
//! were refused, what other calls have left meanwhile) is done by one thread.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, scope};
use std::time::Duration;

use crate::context::Context;
use crate::error::Result;
use crate::types::{Done, VdiUuid};
use crate::vdi::tree::collect::Collector;
use crate::vdi::tree::next::Seen;

/// The most trees that are merged at the same time, however many cores there are: a merge waits for storage most of the time, and
/// storage does no more at once.
const MOST: usize = 8;

/// How often the caller is told how far the run is.
const EVERY: Duration = Duration::from_millis(200);

/// Merges the trees of these images, which hold so many bytes, at the same time; the largest first. What was seen and done is that
/// of the collector then. `false`: there is one tree, and nothing was done.
///
/// # Errors
/// The first of those that end the run of a thread, see [`Collector::go_on`]; the other threads end first.
pub fn merge_trees(collector: &mut Collector, merges: &[(VdiUuid, u64)]) -> Result<bool> {
    let Some(again) = collector.forest.again() else { return Ok(false) };
    let mut trees: BTreeMap<VdiUuid, u64> = BTreeMap::new();
    for (image, bytes) in merges {
        let root = collector.nodes.chain(*image).last().copied().unwrap_or(*image);
        *trees.entry(root).or_default() += bytes;
    }
    let threads = trees.len().min(MOST);
    if threads < 2 {
        return Ok(false);
    }
    let mut trees: Vec<(u64, VdiUuid)> = trees.into_iter().map(|(root, bytes)| (bytes, root)).collect();
    trees.sort_unstable();
    let (trees, run, others) = (Mutex::new(trees), collector.run, &collector.of_call.others);
    // Each merge looks at its images again.
    let nodes = &collector.nodes;
    let work = || {
        let mut seen = (Done::Already, Seen::default());
        let outcome = again(&mut |forest| {
            let context = Context { deadline: std::time::Instant::now(), progress: &|_, _| {}, others: others.clone() };
            loop {
                let Some((_, root)) = trees.lock().unwrap_or_else(PoisonError::into_inner).pop() else { return Ok(()) };
                let mut tree = Collector::new(forest, run, &context, nodes.clone());
                let merged = tree.go_on(Some(root));
                if tree.done == Done::Changed {
                    seen.0 = Done::Changed;
                }
                seen.1.left.extend(tree.seen.left);
                seen.1.failures.extend(tree.seen.failures);
                merged?;
            }
        });
        (outcome, seen)
    };
    let results = scope(|scope| {
        let (done, told) = mpsc::channel();
        let started = (0..threads).map_while(|_| {
            let done = done.clone();
            Builder::new().spawn_scoped(scope, move || drop(done.send(work()))).ok()
        });
        let started = started.count();
        drop(done);
        let mut results = Vec::new();
        while results.len() < started {
            match told.recv_timeout(EVERY) {
                Ok(result) => results.push(result),
                Err(RecvTimeoutError::Timeout) => run.tell(collector.of_call.progress),
                // One panicked, and the end of the scope tells.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        results
    });
    let mut first = Ok(());
    let is_done = !results.is_empty();
    for (outcome, (done, seen)) in results {
        first = first.and(outcome);
        if done == Done::Changed {
            collector.done = Done::Changed;
        }
        collector.seen.left.extend(seen.left);
        collector.seen.failures.extend(seen.failures);
    }
    first.map(|()| is_done)
}
