//! On-disk layouts only: bytes in, bytes out, no policy.

pub mod ahead;
pub mod cbtlog;
pub mod disk;
pub mod fault;
pub mod name;
pub mod qcow2;
pub mod rescue;
pub mod storage;
pub mod vhd;
pub mod volume;

/// Bytes of a sector. A disk is a whole number of them.
pub const SECTOR: u64 = 512;

/// Images in a chain at most; XCP makes 30.
pub const MAX_DEPTH: usize = 256;

/// What is made of an image whose tables contradict themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The image is refused when it is opened, as far as its tables tell then.
    Whole,
    /// Only what the wrong entries lead to is refused, when that is read. A parent that cannot be opened is lost, and with it all
    /// that the images above it do not hold. For images that are open for reading.
    Rescue,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
