//! The last steps of merges of different trees, taken together.
//!
//! These steps are taken under the lock of the trees and wait for the storage several times, however small the trees are. While one
//! thread takes them, others come to theirs and wait. The first of these then takes the steps for all that wait, with one record and
//! the syncs of one.

use std::sync::mpsc::{Sender, TryRecvError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::types::Done;
use crate::vdi::tree::merge::Subject;
use crate::vdi::tree::nodes::Nodes;

/// The outcome of a merge's last steps, and the trees as they are then.
type Ended = (Result<Done>, Nodes);

/// The merges of a run that have come to their last steps.
#[derive(Default)]
pub(super) struct Together {
    waiting: Mutex<Vec<(Subject, Sender<Ended>)>>,
    /// Held by the thread that takes the steps.
    leader: Mutex<()>,
}

impl Together {
    /// Takes the last steps of `own`, or waits until another thread has taken them. `begin` makes ready for them; `end` takes those of
    /// all these merges and answers for each in turn.
    ///
    /// # Errors
    /// Those of `begin`; each other merge that waits then begins by itself.
    pub fn end<B>(
        &self,
        own: &Subject,
        begin: impl FnOnce() -> Result<B>,
        end: impl FnOnce(B, &[Subject]) -> (Vec<Result<Done>>, Nodes),
    ) -> Result<Ended> {
        let (tell, told) = channel();
        lock(&self.waiting).push((own.clone(), tell));
        let _leader = lock(&self.leader);
        match told.try_recv() {
            Ok(ended) => return Ok(ended),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => unreachable!("a thread that tells nothing has panicked"),
        }
        let begun = begin().inspect_err(|_| lock(&self.waiting).retain(|(waiting, _)| waiting.vdi() != own.vdi()))?;
        let (subjects, tellers): (Vec<_>, Vec<_>) = std::mem::take(&mut *lock(&self.waiting)).into_iter().unzip();
        let (results, nodes) = end(begun, &subjects);
        for (result, tell) in results.into_iter().zip(tellers) {
            // One that panicked meanwhile has nothing to be told.
            let _ = tell.send((result, nodes.clone()));
        }
        Ok(told.recv().expect("its own steps were among those taken"))
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
