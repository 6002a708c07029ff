//! The sector bitmap in front of each block: bit n (most significant first) is 1 if sector n of the block is in
//! this image, 0 if it is the parent's, or zero where there is no parent. VHD specification, "Data Blocks".

use std::ops::Range;

use super::SECTORS;

/// 4,096 bits: one sector for a block of 2 MiB, and for any smaller one.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitmap([u64; 64]);

impl Bitmap {
    pub const EMPTY: Bitmap = Bitmap([0; 64]);
    pub const FULL: Bitmap = Bitmap([u64::MAX; 64]);

    pub fn from_bytes(bytes: &[u8; 512]) -> Self {
        let mut map = Self::EMPTY;
        for (word, b) in map.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_be_bytes(b.try_into().expect("8 bytes"));
        }
        map
    }

    pub fn to_bytes(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        for (b, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            b.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// True if the first `sectors` bits are set: a block of less than 2 MiB has less, and what follows means nothing.
    pub fn is_full(&self, sectors: u32) -> bool {
        self.differs(0..sectors, true) == sectors
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|w| *w == 0)
    }

    pub fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    /// Sets the bits of `range`; true if one of them was clear.
    pub fn set(&mut self, range: Range<u32>) -> bool {
        let mut changed = false;
        let mut at = range.start;
        while at < range.end {
            let stop = ((at / 64 + 1) * 64).min(range.end);
            let ones = if stop - at == 64 { u64::MAX } else { ((1 << (stop - at)) - 1) << (63 - (stop - 1) % 64) };
            let word = &mut self.0[(at / 64) as usize];
            changed |= *word & ones != ones;
            *word |= ones;
            at = stop;
        }
        changed
    }

    /// Sets what `other` has set; true if one of them was clear.
    pub fn merge(&mut self, other: &Bitmap) -> bool {
        let mut changed = false;
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            changed |= *mine | theirs != *mine;
            *mine |= theirs;
        }
        changed
    }

    pub fn get(&self, bit: u32) -> bool {
        self.0[(bit / 64) as usize] >> (63 - bit % 64) & 1 == 1
    }

    /// The first bit of `range` that is not `value`; its end if all are.
    fn differs(&self, range: Range<u32>, value: bool) -> u32 {
        let mut at = range.start;
        while at < range.end {
            let word = self.0[(at / 64) as usize] ^ if value { u64::MAX } else { 0 };
            let rest = word & (u64::MAX >> (at % 64));
            if rest != 0 {
                return (at / 64 * 64 + rest.leading_zeros()).min(range.end);
            }
            at = (at / 64 + 1) * 64;
        }
        range.end
    }

    /// The runs of equal bits in `range`, in order.
    pub fn runs(&self, range: Range<u32>) -> impl Iterator<Item = (Range<u32>, bool)> + '_ {
        debug_assert!(range.end <= SECTORS);
        let mut at = range.start;
        std::iter::from_fn(move || {
            (at < range.end).then(|| {
                let value = self.get(at);
                let start = at;
                at = self.differs(start..range.end, value);
                (start..at, value)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sectors 10 to 17 of a fresh block, as libvhd writes them.
    #[test]
    fn the_first_sector_is_the_highest_bit() {
        let mut map = Bitmap::EMPTY;
        assert!(map.set(10..18));
        assert_eq!(map.to_bytes()[..4], [0x00, 0x3f, 0xc0, 0x00]);
        assert!(!map.set(11..12));
        assert_eq!(Bitmap::from_bytes(&map.to_bytes()).to_bytes(), map.to_bytes());
    }

    proptest::proptest! {
        #[test]
        fn runs_are_what_was_set(ranges in proptest::collection::vec((0u32..4096, 0u32..300), 0..20),
                                 from in 0u32..4096, len in 0u32..4096) {
            let mut map = Bitmap::EMPTY;
            let mut model = [false; 4096];
            for (start, len) in ranges {
                let range = start..(start + len).min(4096);
                map.set(range.clone());
                model[range.start as usize..range.end as usize].fill(true);
            }
            proptest::prop_assert_eq!(map.count() as usize, model.iter().filter(|b| **b).count());
            let range = from..(from + len).min(4096);
            let mut at = range.start;
            let mut last = None;
            for (run, value) in map.runs(range.clone()) {
                proptest::prop_assert_eq!(run.start, at);
                proptest::prop_assert!(run.end > run.start && last != Some(value));
                proptest::prop_assert!(model[run.start as usize..run.end as usize].iter().all(|b| *b == value));
                (at, last) = (run.end, Some(value));
            }
            proptest::prop_assert_eq!(at, range.end);
        }
    }
}
