//! Which SRs a directory holds.

use std::path::Path;

use nix::errno::Errno;

use super::directory::FileSr;
use super::records::read_marker;
use crate::context::Deadline;
use crate::error::{Error, Result};
use crate::sys::durable::Dir;
use crate::types::SrInfo;

/// Which SRs a directory holds: itself, or those one level below it. Waits for changes of their trees until `deadline`.
pub fn probe(path: &Path, sr_type: &'static str, deadline: Deadline) -> Result<Vec<SrInfo>> {
    let dir = Dir::open(path).map_err(|e| match e.errno().map(Errno::from_raw) {
        Some(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {
            Error::NoDevice { device: path.display().to_string(), why: errno.desc().to_owned() }
        }
        _ => e,
    })?;
    let mut found = Vec::new();
    if let Some(marker) = read_marker(&dir)?.filter(|m| !m.deleting) {
        found.push(FileSr::new(marker.uuid, sr_type, path.to_owned(), deadline.clone()).stat_now()?);
    }
    for name in dir.names()? {
        let Ok(Some(below)) = dir.sub_dir(&name) else { continue };
        if let Ok(Some(marker)) = read_marker(&below)
            && !marker.deleting
        {
            found.push(FileSr::new(marker.uuid, sr_type, path.join(name), deadline.clone()).stat_now()?);
        }
    }
    Ok(found)
}
