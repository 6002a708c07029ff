//! The XCP storage managers: storage repositories (SR) and the virtual disks (VDI) in them.

pub mod error;
pub mod image;
pub mod types;

pub use error::{Error, Result};
