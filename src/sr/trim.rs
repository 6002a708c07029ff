//! How far an sr_trim has come: it is done in parts, so that other calls on the SR get their turn.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::lvm::Free;
use crate::types::Size;

/// What devices were told of what is free in an SR, and what is left to be told.
#[derive(Debug, Default)]
pub struct Trim {
    /// Bytes that devices were told of.
    pub told: u64,
    /// The devices that take no discards, each with the bytes that are free there.
    pub deaf: BTreeMap<PathBuf, u64>,
    /// The first device that failed. The others are told all the same.
    failed: Option<Error>,
    /// What is to be looked at, in the order of physical volumes and extents. `None`: nothing was looked at yet.
    left: Option<Vec<Free>>,
}

impl Trim {
    /// One that needs no parts.
    pub fn whole(told: u64) -> Trim {
        Trim { told, left: Some(Vec::new()), ..Trim::default() }
    }

    pub fn has_begun(&self) -> bool {
        self.left.is_some()
    }

    pub fn is_done(&self) -> bool {
        self.left.as_ref().is_some_and(Vec::is_empty)
    }

    pub fn begin(&mut self, free: Vec<Free>) {
        self.left = Some(free);
    }

    /// How many extents are left.
    pub fn extents_left(&self) -> u64 {
        self.left.iter().flatten().map(|free| free.count).sum()
    }

    /// Takes the next part of what is left: extents of one physical volume, `most` stretches of them, that are free now. Empty:
    /// nothing is left.
    pub fn next(&mut self, free: &[Free], most: usize) -> Vec<Free> {
        let left = self.left.take().unwrap_or_default();
        let (mut part, mut rest) = (Vec::<Free>::new(), Vec::new());
        for stretch in left {
            let is_other = part.first().is_some_and(|first| first.pv != stretch.pv);
            if is_other || part.len() >= most {
                rest.push(stretch);
                continue;
            }
            let from = free.partition_point(|free| (&free.pv, free.end()) <= (&stretch.pv, stretch.first));
            for now in free[from..].iter().take_while(|now| now.pv == stretch.pv && now.first < stretch.end()) {
                let first = now.first.max(stretch.first);
                if part.len() == most {
                    rest.push(Free { first, count: stretch.end() - first, ..now.clone() });
                    break;
                }
                part.push(Free { first, count: now.end().min(stretch.end()) - first, ..now.clone() });
            }
        }
        self.left = Some(rest);
        part
    }

    /// Puts back what a part did not come to.
    pub fn put_back(&mut self, mut part: Vec<Free>) {
        part.sort_by_key(|free| free.first);
        let left = self.left.get_or_insert_default();
        left.splice(0..0, part);
    }

    /// A physical volume takes no discards: what is left of it is let be. `extents` of it were tried.
    pub fn is_deaf(&mut self, pv: &str, device: &Path, extents: u64, extent_size: u64) {
        let let_be = self.leave(pv) + extents;
        *self.deaf.entry(device.to_owned()).or_default() += let_be * extent_size;
    }

    /// A physical volume failed at a discard: what is left of it is let be.
    pub fn has_failed(&mut self, pv: &str, error: Error) {
        self.leave(pv);
        self.failed.get_or_insert(error);
    }

    fn leave(&mut self, pv: &str) -> u64 {
        let left = self.left.get_or_insert_default();
        let let_be = left.iter().filter(|free| free.pv == pv).map(|free| free.count).sum();
        left.retain(|free| free.pv != pv);
        let_be
    }

    /// What was done, if all devices were told, or take no discards.
    ///
    /// # Errors
    /// That of the first device that failed.
    pub fn end(mut self) -> Result<Trim> {
        match self.failed.take() {
            None => Ok(self),
            Some(error) => Err(after(error, self.told)),
        }
    }

    /// What was done, in words for a person.
    pub fn words(&self) -> String {
        let told = format!("the devices were told that {} are free", Size(self.told));
        let deaf: Vec<String> = self
            .deaf
            .iter()
            .map(|(device, bytes)| format!("{} takes no discards: {} stay as they are", device.display(), Size(*bytes)))
            .collect();
        match (self.told, deaf.is_empty()) {
            (0, _) => "the devices take no discards: nothing was done".to_owned(),
            (_, true) => told,
            _ => format!("{told}; {}", deaf.join("; ")),
        }
    }
}

/// An error, with what was done before it.
pub fn after(error: Error, told: u64) -> Error {
    match told {
        0 => error,
        _ => error.after(format!("the devices were told that {} are free", Size(told))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn free(pv: &str, first: u64, count: u64) -> Free {
        Free { pv: pv.to_owned(), device: PathBuf::from(format!("/dev/{pv}")), first, count }
    }

    fn begun(left: &[Free]) -> Trim {
        let mut trim = Trim::default();
        assert!(!trim.has_begun() && !trim.is_done());
        trim.begin(left.to_vec());
        trim
    }

    #[test]
    fn a_part_is_of_one_device_and_free_now() {
        let mut trim = begun(&[free("a", 0, 10), free("a", 20, 5), free("b", 0, 7)]);
        let now = [free("a", 2, 3), free("a", 7, 15), free("b", 0, 7)];
        assert_eq!(trim.next(&now, 9), [free("a", 2, 3), free("a", 7, 3), free("a", 20, 2)]);
        assert_eq!(trim.next(&now, 9), [free("b", 0, 7)]);
        assert!(trim.is_done() && trim.next(&now, 9).is_empty());
        let mut trim = begun(&[free("a", 0, 10), free("a", 20, 5)]);
        assert_eq!(trim.next(&now, 1), [free("a", 2, 3)]);
        trim.put_back(vec![free("a", 4, 1)]);
        assert_eq!(trim.next(&now, 2), [free("a", 4, 1), free("a", 7, 3)]);
        assert_eq!(trim.extents_left(), 5);
        assert!(trim.next(&[free("b", 0, 7)], 2).is_empty() && trim.is_done(), "what is taken now is left out");
    }

    #[test]
    fn a_device_that_takes_none_is_told_of_and_the_others_are_trimmed() {
        let mut trim = begun(&[free("a", 0, 10), free("a", 20, 5), free("b", 0, 7)]);
        let part = trim.next(&[free("a", 0, 10), free("a", 20, 5), free("b", 0, 7)], 1);
        trim.is_deaf("a", &part[0].device, part[0].count, 1 << 20);
        assert_eq!((trim.deaf[Path::new("/dev/a")], trim.extents_left()), (15 << 20, 7));
        assert!(trim.words().contains("nothing was done"), "{}", trim.words());
        trim.told = 7 << 20;
        assert_eq!(
            trim.words(),
            "the devices were told that 7MiB are free; /dev/a takes no discards: 15MiB stay as they are"
        );
        trim.has_failed("b", Error::Usage("EIO".to_owned()));
        assert!(trim.is_done() && trim.end().unwrap_err().to_string().contains("7MiB"));
    }

    proptest! {
        #[test]
        fn parts_take_each_free_extent_once(
            counts in prop::collection::vec((0u64..5, 1u64..9), 0..12),
            taken in prop::collection::vec(any::<bool>(), 120),
            most in 1usize..4,
        ) {
            let mut at = 0;
            let left: Vec<Free> = counts
                .iter()
                .enumerate()
                .map(|(n, (gap, count))| {
                    let first = at + gap;
                    at = first + count;
                    free(if n < 6 { "a" } else { "b" }, first, *count)
                })
                .collect();
            let single = |free: &Free| (free.first..free.end()).map(|n| (free.pv.clone(), n)).collect::<Vec<_>>();
            let is_free = |(_, n): &(String, u64)| !taken[*n as usize];
            let now: Vec<Free> =
                left.iter().flat_map(single).filter(is_free).map(|(pv, n)| free(&pv, n, 1)).collect();
            let mut trim = begun(&left);
            let mut found = Vec::new();
            while !trim.is_done() {
                let part = trim.next(&now, most);
                prop_assert!(part.len() <= most && part.iter().all(|free| free.pv == part[0].pv));
                found.extend(part.iter().flat_map(single));
            }
            let wanted: Vec<_> = left.iter().flat_map(single).filter(is_free).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
