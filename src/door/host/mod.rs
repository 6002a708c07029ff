//! The parts that the doors of a host's agents and its plug-ins share: the names of devices, the place
//! where an SR appears, which SRs are ours, and the pause of a disk.

pub mod device;
pub mod local_path;
pub mod ours;
pub mod pause;

use std::time::Duration;

/// The environment variable that shortens every wait of these doors to so many seconds, for callers that can't wait as
/// long as xapi.
pub const PATIENCE: &str = "XCP_SM_PATIENCE";

/// How long to wait where `usual` is what fits xapi.
pub fn patience(usual: Duration) -> Duration {
    let seconds = std::env::var(PATIENCE).ok().and_then(|text| text.parse().ok());
    seconds.map_or(usual, |seconds| usual.min(Duration::from_secs(seconds)))
}
