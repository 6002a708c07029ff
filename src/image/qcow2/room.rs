//! How much of its place an image takes, for a place that does not grow with it.

use std::sync::Arc;

use super::header::Header;
use super::image::{Image, What};
use super::refcounts::Refcounts;
use super::{CLUSTER, Storage};
use crate::error::Result;
use crate::types::Mode;

/// Bits of a reference count of the images that are measured.
const COUNT: u64 = 16;

/// Bytes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The first byte behind all that is counted as used.
    pub end: u64,
    /// Bytes of an image in which each cluster of the disk has data: so long it gets at most, with what a crash left in it.
    pub full: u64,
}

/// Measures an image.
///
/// # Errors
/// [`crate::Error::Damaged`], [`crate::Error::Unsupported`] for one that could not be written to; [`crate::Error::Io`].
pub fn room(place: &Arc<dyn Storage>) -> Result<Room> {
    let header = Header::read(&**place)?;
    header.refuse_unwritable(&**place)?;
    let (cluster, counts) = (header.cluster(), Refcounts::open(&**place, &header)?);
    let image = Image::open(place.clone(), Mode::ReadOnly)?;
    let (mut held, mut at) = (0, 0);
    while at < image.virtual_size() {
        let (what, run) = image.look(at, image.virtual_size() - at)?;
        if !matches!(what, What::Absent(None) | What::Zero(None)) {
            held += (at + run).div_ceil(cluster) - at / cluster;
        }
        at += run;
    }
    let tables = (u64::from(header.l1_size) * 8).div_ceil(cluster) + image.l2_tables().count() as u64;
    let used = 1 + tables + counts.clusters().count() as u64 + held;
    let lost = counts.counted().saturating_sub(used) * cluster;
    let entry = if header.is_extended() { 16 } else { 8 };
    let full = header.virtual_size + tables_of(header.virtual_size, cluster, entry) + cluster;
    Ok(Room { end: counts.counted() * cluster, full: full + lost })
}

/// Bytes of all that is not data in an image of which every cluster has data, in clusters of [`CLUSTER`]: what `qemu-img measure` says.
pub fn overhead(virtual_size: u64) -> u64 {
    tables_of(virtual_size, CLUSTER, 8)
}

/// `entry`: bytes of an L2 entry.
fn tables_of(virtual_size: u64, cluster: u64, entry: u64) -> u64 {
    let data = virtual_size.next_multiple_of(cluster);
    let l2 = (data / cluster * entry).next_multiple_of(cluster);
    let l1 = (l2 / cluster * 8).next_multiple_of(cluster);
    let header = cluster;
    let clusters = (header + l2 + l1 + data) / cluster;
    let (mut blocks, mut table) = (0, 0);
    loop {
        let wanted = (clusters + blocks + table).div_ceil(cluster * 8 / COUNT);
        let longer = wanted.div_ceil(cluster / 8);
        if (wanted, longer) == (blocks, table) {
            break;
        }
        (blocks, table) = (wanted, longer);
    }
    header + l2 + l1 + (blocks + table) * cluster
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: u64 = 4 << 20;

    #[test]
    fn the_overhead_is_that_which_qemu_measures() {
        for (virtual_size, wanted) in [
            (65_536, 327_680),
            (64 << 20, 327_680),
            (300 << 20, 327_680),
            (1 << 30, 393_216),
            (10 << 30, 1_900_544),
            (100 << 30, 16_646_144),
            (1 << 40, 168_034_304),
            (2040 << 30, 334_495_744),
            (17_589_500_641_280, 2_684_420_096),
        ] {
            assert_eq!(overhead(virtual_size), wanted, "{virtual_size}");
        }
        assert_eq!((17_589_500_641_280 + overhead(17_589_500_641_280)).next_multiple_of(EXTENT), 17_592_186_044_416);
    }
}
