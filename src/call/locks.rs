//! Which locks a verb takes on this host: the SR's before the VDIs', the VDIs' in the order of their UUIDs.
//!
//! Readers take none: whatever is changed is changed by one atomic step. A verb that makes, ends or moves an SR takes
//! the SR's lock exclusively. Every other change shares the SR's lock and takes those of its VDIs exclusively, so a
//! long copy blocks no other call. The collector shares the SR's lock for hours: a verb that wants the lock exclusively ends
//! the collector of this host.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::sys::lock::{self, Kind, Lock};
use crate::types::{SrUuid, VdiUuid};
use crate::vdi::tree::stop;

/// The locks of one verb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locks {
    sr: Option<Kind>,
    /// In the order in which they are taken, none twice.
    vdis: Vec<VdiUuid>,
}

impl Locks {
    /// Of a reader.
    pub fn none() -> Locks {
        Locks { sr: None, vdis: Vec::new() }
    }

    /// The SR's, exclusively.
    pub fn of_sr() -> Locks {
        Locks { sr: Some(Kind::Exclusive), vdis: Vec::new() }
    }

    /// The SR's, shared, and those of these VDIs.
    pub fn of_vdis(vdis: &[VdiUuid]) -> Locks {
        let mut vdis = vdis.to_vec();
        vdis.sort_unstable();
        vdis.dedup();
        Locks { sr: Some(Kind::Shared), vdis }
    }

    /// Takes the locks, in the order that keeps two calls from waiting for each other. If the SR's lock is wanted exclusively
    /// and is not free, a collector of this host is ended, and none begins as long as the locks are held.
    ///
    /// # Errors
    /// [`Error::Busy`] when another call held one of them past the deadline; [`Error::Io`].
    pub fn take(&self, sr: SrUuid, deadline: Instant) -> Result<Vec<Lock>> {
        let mut held = Vec::new();
        let of_sr = self.sr.map(|kind| (sr.to_string(), "sr", kind)).into_iter();
        let of_vdis = self.vdis.iter().map(|vdi| (vdi.to_string(), "vdi", Kind::Exclusive));
        for (namespace, name, kind) in of_sr.chain(of_vdis) {
            let mut taken = lock::take(&namespace, name, kind, Instant::now());
            if let Err(lock::Refused::TimedOut { .. }) = taken {
                if name == "sr" && kind == Kind::Exclusive {
                    held.push(stop::end_collector(sr, deadline)?);
                }
                taken = lock::take(&namespace, name, kind, deadline);
            }
            held.push(taken.map_err(|refused| {
                refused.or_timed_out(|holder| {
                    let what = if name == "sr" { "it".to_owned() } else { format!("its VDI {namespace}") };
                    Error::Busy { sr, holder: holder.to_owned(), what }
                })
            })?);
        }
        Ok(held)
    }

    /// Removes the lock files of what does not exist, as the outcome of the verb tells. The caller holds the locks.
    pub fn forget_after<T>(&self, sr: SrUuid, outcome: &Result<T>) {
        match outcome {
            Err(Error::NoVdi { .. }) => forget_vdis(&self.vdis),
            Err(Error::NoSr { .. }) => {
                forget_vdis(&self.vdis);
                // A lock that others share is not removed: the next call would not meet them.
                if self.sr == Some(Kind::Exclusive) {
                    forget_sr(sr);
                }
            }
            _ => {}
        }
    }
}

/// Removes the lock files of VDIs that are gone.
pub fn forget_vdis(vdis: &[VdiUuid]) {
    vdis.iter().for_each(|vdi| lock::forget(&vdi.to_string(), "vdi"));
}

/// Removes the lock files of an SR that is gone. The caller has it exclusively.
pub fn forget_sr(sr: SrUuid) {
    [stop::ACTIVE, stop::RUNNING, "names", "sr"].iter().for_each(|name| lock::forget(&sr.to_string(), name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locks_of_vdis_are_taken_in_one_order_and_none_twice() {
        let (a, b): (VdiUuid, VdiUuid) = (
            "11111111-b035-4b1a-a571-000000000001".parse().unwrap(),
            "22222222-b035-4b1a-a571-000000000001".parse().unwrap(),
        );
        let expected = Locks { sr: Some(Kind::Shared), vdis: vec![a, b] };
        assert_eq!(Locks::of_vdis(&[b, a]), expected);
        assert_eq!(Locks::of_vdis(&[a, b, a]), expected);
    }

    #[test]
    fn a_verb_that_needs_the_sr_for_itself_ends_the_collector_and_no_other_call() {
        let (sr, wait) = (SrUuid::random(), std::time::Duration::from_secs(60));
        let copies = Locks::of_vdis(&[]).take(sr, Instant::now()).unwrap();
        let collects = Locks::of_vdis(&[]).take(sr, Instant::now()).unwrap();
        let active = lock::take(&sr.to_string(), stop::ACTIVE, Kind::Exclusive, Instant::now()).unwrap();
        let stop = stop::Stop::begin(sr);
        std::thread::scope(|scope| {
            let call = scope.spawn(|| Locks::of_sr().take(sr, Instant::now() + wait));
            while !stop.is_asked() {
                std::thread::yield_now();
            }
            drop((active, collects));
            // It has the collector's lock, so no other begins while it waits for the copy.
            while lock::take(&sr.to_string(), stop::ACTIVE, Kind::Exclusive, Instant::now()).is_ok() {
                std::thread::yield_now();
            }
            assert!(!call.is_finished());
            drop(copies);
            drop(call.join().unwrap().unwrap());
        });
        forget_sr(sr);
    }

    #[test]
    fn the_holder_of_a_lock_is_waited_for_until_the_deadline() {
        let (sr, vdi) = (SrUuid::random(), VdiUuid::random());
        let held = Locks::of_vdis(&[vdi]).take(sr, Instant::now()).unwrap();
        // Another VDI of the SR is free, the same VDI and the SR as a whole are not.
        drop(Locks::of_vdis(&[VdiUuid::random()]).take(sr, Instant::now()).unwrap());
        drop(Locks::none().take(sr, Instant::now()).unwrap());
        for (locks, what) in [(Locks::of_vdis(&[vdi]), format!("its VDI {vdi}")), (Locks::of_sr(), "it".to_owned())] {
            let refused = locks.take(sr, Instant::now());
            assert!(matches!(&refused, Err(Error::Busy { what: found, .. }) if *found == what), "{refused:?}");
        }
        drop(held);
        drop(Locks::of_sr().take(sr, Instant::now()).unwrap());
        forget_sr(sr);
        forget_vdis(&[vdi]);
    }
}
