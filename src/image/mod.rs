//! On-disk layouts only: bytes in, bytes out, no policy.

pub mod disk;
pub mod place;
pub mod qcow2;
pub mod vhd;
