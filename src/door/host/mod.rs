//! The parts that the doors of a host's agents and its plug-ins share: the names of devices, the place
//! where an SR appears, which SRs are ours, and the pause of a disk.

pub mod device;
pub mod local_path;
pub mod ours;
pub mod pause;

pub use crate::sys::watch::{PATIENCE, patience};
