//! On-disk layouts only: bytes in, bytes out, no policy.

pub mod disk;
pub mod vhd;
