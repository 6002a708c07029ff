//! The pause of a disk on this host, and the words by which the hosts of a pool ask each other for it; SMAPIv1, "Host
//! plug-ins".
//!
//! The server of the disk keeps the pause ([`datapath::hold`]): no process of ours has to.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::device::device_link;
use crate::datapath;
use crate::error::{Error, Result};
use crate::sr::Driver;
use crate::sys::run_dir;
use crate::types::{Done, SrUuid, VdiUuid};

/// The name of the plug-in that pauses disks.
pub const NAME: &str = "tapdisk-pause";

/// Function of the plug-in: the VDI's images are closed, I/O waits.
pub const PAUSE: &str = "pause";
/// Function of the plug-in: ends [`PAUSE`].
pub const UNPAUSE: &str = "unpause";
/// Function of the plug-in: [`PAUSE`], then [`UNPAUSE`].
pub const REFRESH: &str = "refresh";
/// Function of the plug-in: whether all that is written to the VDI on this host is logged, see [`crate::vdi::cbt`].
pub const TRACKS: &str = "tracks";
/// Function of the plug-in: whether this package serves the SR on this host.
pub const SERVES: &str = "serves";

/// Function of the plug-in: the types that this package serves on this host, with what its drivers announce.
pub const ANNOUNCES: &str = "announces";

/// Argument of [`REFRESH`]: where the tapdisk of the VDI is to send what is written as well, see [`super::device::mirror`]. The
/// images stay open.
pub const SECONDARY: &str = "secondary";

/// How long the server of a disk may take to let go of its images, or to open them again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the server of a disk close its images and let I/O wait. `vdi_uuid`: xapi's name of the VDI. Idempotent. Does
/// nothing for a VDI that this host has not attached.
///
/// # Errors
/// [`Error::DeviceInUse`] for a raw disk that is in use: it has no server that could let go of it.
pub fn hold(driver: &Driver, sr: SrUuid, vdi: VdiUuid, vdi_uuid: VdiUuid) -> Result<()> {
    for image in images(driver, sr, vdi) {
        if datapath::hold(&image, Instant::now() + PATIENCE)? == Done::Changed {
            return Ok(());
        }
    }
    let link = device_link(sr, &vdi_uuid.to_string());
    match fs::symlink_metadata(&link) {
        Ok(_) => Err(Error::DeviceInUse {
            device: link.display().to_string(),
            holder: "a raw disk cannot be paused".to_owned(),
        }),
        Err(_) => Ok(()),
    }
}

/// Ends a pause of a disk of this host. Idempotent.
///
/// # Errors
/// When the image can't be opened again: I/O fails then, until another release.
pub fn release(driver: &Driver, sr: SrUuid, vdi: VdiUuid) -> Result<Done> {
    for image in images(driver, sr, vdi) {
        if datapath::release(&image, Instant::now() + PATIENCE)? == Done::Changed {
            return Ok(Done::Changed);
        }
    }
    Ok(Done::Already)
}

/// Whether a server of this host logs all that is written to a disk.
pub fn tracks(driver: &Driver, sr: SrUuid, vdi: VdiUuid) -> bool {
    images(driver, sr, vdi).iter().any(|image| datapath::tracks(image))
}

fn images(driver: &Driver, sr: SrUuid, vdi: VdiUuid) -> Vec<PathBuf> {
    (driver.about.images)(&run_dir::mounts().join(sr.to_string()), vdi)
}
