//! The stretches of a disk that an image holds, and how much two images hold of the same.

use std::ops::Range;

/// Stretches in bytes of a disk, in their order, none touching the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(Vec<Range<u64>>);

impl Extents {
    /// Adds a stretch that begins behind all others, or where the last one ends.
    pub fn push(&mut self, stretch: Range<u64>) {
        match self.0.last_mut() {
            _ if stretch.is_empty() => {}
            Some(last) if last.end >= stretch.start => last.end = last.end.max(stretch.end),
            _ => self.0.push(stretch),
        }
    }

    /// The stretches.
    pub fn stretches(&self) -> &[Range<u64>] {
        &self.0
    }

    /// Bytes in all stretches.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|stretch| stretch.end - stretch.start).sum()
    }

    /// The stretches of both.
    pub fn union(&self, other: &Extents) -> Extents {
        let (mut one, mut two) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut all = Extents::default();
        loop {
            let from_one = match (one.peek(), two.peek()) {
                (Some(a), Some(b)) => a.start <= b.start,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return all,
            };
            let next = if from_one { one.next() } else { two.next() };
            next.into_iter().for_each(|stretch| all.push(stretch.clone()));
        }
    }

    /// Bytes that both hold.
    pub fn overlap(&self, other: &Extents) -> u64 {
        self.total() + other.total() - self.union(other).total()
    }
}

impl FromIterator<Range<u64>> for Extents {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(stretches: I) -> Extents {
        let mut all = Extents::default();
        stretches.into_iter().for_each(|stretch| all.push(stretch));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn extents(units: &BTreeSet<u64>) -> Extents {
        units.iter().map(|unit| *unit..unit + 1).collect()
    }

    proptest! {
        #[test]
        fn they_are_sets_of_bytes(
            one in proptest::collection::btree_set(0..40u64, 0..30),
            two in proptest::collection::btree_set(0..40u64, 0..30),
        ) {
            let (a, b) = (extents(&one), extents(&two));
            prop_assert_eq!(a.total(), one.len() as u64);
            prop_assert_eq!(a.overlap(&b), one.intersection(&two).count() as u64);
            prop_assert_eq!(a.union(&b), extents(&one.union(&two).copied().collect()));
            prop_assert!(a.0.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
