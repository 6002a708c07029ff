//! The place where the host's other programs expect an SR: `/run/sr-mount/<sr>`.
//!
//! No record of ours says that an SR is attached on this host: an SR whose disks are files is, if it appears there.

use std::path::PathBuf;

use crate::call::Session;
use crate::error::{Error, Result};
use crate::sys::{bind, run_dir};

/// Where the SR lives and where it has to appear, if these are two places.
fn places(session: &Session) -> Option<(PathBuf, PathBuf)> {
    let place = run_dir::mounts().join(session.sr().to_string());
    session.local_path().filter(|path| *path != place).map(|path| (path, place))
}

/// Makes the SR appear. Idempotent.
///
/// # Errors
/// [`Error::Io`] if nothing can be mounted or linked there.
pub fn enter(session: &Session) -> Result<()> {
    match places(session) {
        Some((path, place)) => bind::bind(&path, &place).map(drop),
        None => Ok(()),
    }
}

/// Ends what [`enter`] made. Idempotent.
///
/// # Errors
/// [`Error::DeviceInUse`] while a process works there.
pub fn leave(session: &Session) -> Result<()> {
    match places(session) {
        Some((_, place)) => bind::unbind(&place).map(drop),
        None => Ok(()),
    }
}

/// Refuses an SR that does not appear where it has to.
///
/// # Errors
/// [`Error::SrUnavailable`].
pub fn assert_entered(session: &Session) -> Result<()> {
    match places(session) {
        Some((path, place)) if !bind::is_bound(&path, &place) => Err(Error::SrUnavailable {
            sr: session.sr(),
            why: format!("{} does not show {}: sr_attach was not called", place.display(), path.display()),
        }),
        _ => Ok(()),
    }
}
