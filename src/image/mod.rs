//! On-disk layouts only: bytes in, bytes out, no policy.

pub mod disk;
pub mod fault;
pub mod name;
pub mod qcow2;
pub mod storage;
pub mod vhd;

/// Bytes of a sector. A disk is a whole number of them.
pub const SECTOR: u64 = 512;

/// Images in a chain at most; XCP makes 30.
pub const MAX_DEPTH: usize = 256;

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
