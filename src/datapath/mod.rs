//! Placeholder interface.
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::loopdev::Detached;
use crate::types::{Done, Format};

pub struct Source {
    pub format: Format,
    pub path: PathBuf,
    pub read_only: bool,
}

#[derive(Clone, Debug)]
pub struct Attached {
    pub image: PathBuf,
    pub device: PathBuf,
    pub read_only: bool,
}

pub fn all() -> Result<Vec<Attached>> {
    Ok(Vec::new())
}

pub fn find(_image: &Path) -> Result<Option<Attached>> {
    Ok(None)
}

pub fn attach(_source: &Source) -> Result<PathBuf> {
    Err(Error::Unsupported { op: "vdi_attach", why: "no data path".to_owned() })
}

pub fn detach(_image: &Path) -> Result<Detached> {
    Ok(Detached::Done(Done::Already))
}

/// Drains, flushes and closes the image and its parents; I/O waits.
pub fn pause(_image: &Path) -> Result<()> {
    Ok(())
}

/// Opens the image by its path again; I/O goes on.
pub fn resume(_image: &Path) -> Result<()> {
    Ok(())
}
