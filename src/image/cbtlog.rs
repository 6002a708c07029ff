//! The log of the blocks of a disk that were written, as `cbt-util` and tapdisk read and write it; CBT, "Log format".
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 16 | parent: the VDI of the log before this one, zero if there is none |
//! | 16 | 16 | child: the VDI of the log after this one, zero if there is none |
//! | 32 | 4 | consistent: 1 if the bitmap can be trusted |
//! | 36 | 4 | padding, of no meaning |
//! | 40 | 8 | size: bytes of the disk |
//! | 48 | | bitmap: one bit for 64 KiB, the least significant bit of a byte first |
//!
//! Numbers are little-endian. The log of a VDI says what was written to it since its newest snapshot; the log of a snapshot
//! says what was written between the snapshot before and itself.

use std::ops::Range;

use crate::types::VdiUuid;

/// Bytes of a disk that a bit stands for.
pub const BLOCK: u64 = 64 << 10;
/// Where the UUID of the parent is.
pub const PARENT_AT: u64 = 0;
/// Where the UUID of the child is.
pub const CHILD_AT: u64 = 16;
/// Where the flag is that says whether the bitmap can be trusted.
pub const CONSISTENT_AT: u64 = 32;
const SIZE_AT: usize = 40;
/// Where the bitmap begins.
pub const BITMAP_AT: u64 = 48;
/// The extension of a log's file, after the UUID of its VDI.
pub const EXTENSION: &str = "cbtlog";

/// The head of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub parent: Option<VdiUuid>,
    pub child: Option<VdiUuid>,
    /// The bitmap can be trusted: whoever wrote to the disk last has ended cleanly.
    pub consistent: bool,
    /// Bytes of the disk.
    pub size: u64,
}

/// A whole log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub header: Header,
    pub bitmap: Vec<u8>,
}

/// The bytes of the bitmap of a disk of so many bytes.
pub fn bitmap_length(size: u64) -> u64 {
    size.div_ceil(BLOCK).div_ceil(8)
}

/// The blocks that a stretch of a disk touches.
pub fn blocks(offset: u64, len: u64) -> Range<u64> {
    match len {
        0 => 0..0,
        _ => offset / BLOCK..offset.saturating_add(len).div_ceil(BLOCK),
    }
}

/// The 16 bytes of a pointer.
pub fn pointer(to: Option<VdiUuid>) -> [u8; 16] {
    to.map_or([0; 16], |vdi| *vdi.as_bytes())
}

/// The 4 bytes of the flag.
pub fn flag(consistent: bool) -> [u8; 4] {
    i32::from(consistent).to_le_bytes()
}

impl Header {
    /// The head of the log that begins with `bytes`. `None`: it is cut off.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let head = bytes.get(..BITMAP_AT as usize)?;
        let uuid = |at: u64| VdiUuid::unless_nil(head[at as usize..][..16].try_into().expect("16 bytes"));
        Some(Header {
            parent: uuid(PARENT_AT),
            child: uuid(CHILD_AT),
            consistent: head[CONSISTENT_AT as usize..][..4] == flag(true),
            size: u64::from_le_bytes(head[SIZE_AT..].try_into().expect("8 bytes")),
        })
    }
}

impl Log {
    /// The log of a disk of which nothing was written yet.
    pub fn of_nothing(size: u64, consistent: bool) -> Log {
        let header = Header { parent: None, child: None, consistent, size };
        Log { header, bitmap: vec![0; bitmap_length(size) as usize] }
    }

    /// Reads a log. `None`: it is cut off. What follows the bitmap is of no meaning.
    pub fn parse(bytes: &[u8]) -> Option<Log> {
        let header = Header::parse(bytes)?;
        let length = usize::try_from(bitmap_length(header.size)).ok()?;
        let bitmap = bytes[BITMAP_AT as usize..].get(..length)?.to_vec();
        Some(Log { header, bitmap })
    }

    /// The bytes of the log, as [`Log::parse`] reads them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Header { parent, child, consistent, size } = self.header;
        let mut bytes = Vec::with_capacity(BITMAP_AT as usize + self.bitmap.len());
        bytes.extend_from_slice(&pointer(parent));
        bytes.extend_from_slice(&pointer(child));
        bytes.extend_from_slice(&flag(consistent));
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&self.bitmap);
        bytes
    }

    /// Gives the log the size of a disk that has grown: its new blocks are unwritten. A smaller size is not taken over.
    pub fn grow(&mut self, size: u64) {
        self.header.size = self.header.size.max(size);
        self.bitmap.resize(bitmap_length(self.header.size) as usize, 0);
    }

    /// Adds the blocks of an older log of the same disk, whose size may have been smaller. Blocks beyond the end of this log are
    /// left out: they are not of the disk any more.
    pub fn add(&mut self, older: &Log) {
        self.bitmap.iter_mut().zip(&older.bitmap).for_each(|(byte, more)| *byte |= more);
    }

    /// Adds the blocks that a stretch touches.
    pub fn mark(&mut self, offset: u64, len: u64) {
        for block in blocks(offset, len) {
            self.bitmap[block as usize / 8] |= 1 << (block % 8);
        }
    }
}

/// A bitmap as agents are told it: the first block is the most significant bit of the first byte; CBT,
/// "list_changed_blocks".
pub fn for_agents(bitmap: &[u8]) -> Vec<u8> {
    bitmap.iter().map(|byte| byte.reverse_bits()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes that cbt-util 3 made by `create -s 10485761`, `set -p aaaaaaaa-… -c bbbbbbbb-…`, `set -f 1`.
    const OF_CBT_UTIL: &str = "aaaaaaaa000000000000000000000001bbbbbbbb000000000000000000000002\
                               01000000000000000100a00000000000000000000000000000000000000000000000000000";

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..][..2], 16).unwrap()).collect()
    }

    #[test]
    fn a_log_has_the_bytes_that_cbt_util_writes() {
        let bytes = unhex(OF_CBT_UTIL);
        let log = Log::parse(&bytes).unwrap();
        assert_eq!(log.header.parent.unwrap().to_string(), "aaaaaaaa-0000-0000-0000-000000000001");
        assert_eq!(log.header.child.unwrap().to_string(), "bbbbbbbb-0000-0000-0000-000000000002");
        assert_eq!((log.header.consistent, log.header.size, log.bitmap.len()), (true, (10 << 20) + 1, 21));
        assert_eq!(log.to_bytes(), bytes);
        for (size, length) in [(2 << 20, 4), (10 << 20, 20), (20 << 20, 40), (2040 << 30, 4_177_920), (0, 0), (1, 1)] {
            assert_eq!(bitmap_length(size), length);
        }
    }

    #[test]
    fn what_is_cut_off_is_no_log_and_what_follows_the_bitmap_is_nothing() {
        let mut bytes = Log::of_nothing(2 << 20, false).to_bytes();
        bytes.extend_from_slice(&[0xff; 100]);
        assert_eq!(Log::parse(&bytes), Some(Log::of_nothing(2 << 20, false)));
        for length in [0, 47, 51] {
            assert_eq!(Log::parse(&bytes[..length]), None);
        }
        bytes[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Log::parse(&bytes), None);
    }

    #[test]
    fn a_write_marks_each_block_that_it_touches() {
        let mut log = Log::of_nothing(20 << 20, true);
        log.mark(65535, 2);
        log.mark(3, 0);
        assert_eq!((log.bitmap[0], for_agents(&log.bitmap)[0]), (0x03, 0xc0));
        log.mark((20 << 20) - 1, 1);
        assert_eq!(log.bitmap[39], 0x80);
        assert_eq!(for_agents(&[0x01, 0x80]), [0x80, 0x01]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_log_or_none_and_a_log_keeps_its_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut small = bytes.clone();
            if let Some(size) = small.get_mut(42..48) {
                size.fill(0);
            }
            for bytes in [bytes, small] {
                if let Some(log) = Log::parse(&bytes) {
                    prop_assert_eq!(Log::parse(&log.to_bytes()), Some(log));
                }
            }
        }

        #[test]
        fn the_sum_of_two_logs_has_the_blocks_of_both(old in 1..200u64, new in 0..200u64, at in any::<[u16; 4]>()) {
            let (small, large) = (old * BLOCK, (old + new) * BLOCK);
            let (mut one, mut other) = (Log::of_nothing(small, true), Log::of_nothing(large, true));
            for block in at {
                one.mark(u64::from(block) % old * BLOCK, 1);
                other.mark(u64::from(block) / 2 % (old + new) * BLOCK, 1);
            }
            let mut sum = other.clone();
            sum.add(&one);
            one.grow(large);
            prop_assert_eq!(one.bitmap.len(), sum.bitmap.len());
            for (i, byte) in sum.bitmap.iter().enumerate() {
                prop_assert_eq!(*byte, one.bitmap[i] | other.bitmap[i]);
            }
        }
    }
}
