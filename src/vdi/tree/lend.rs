//! A disk is read while no host changes its images.

use crate::error::Result;
use crate::vdi::place::Place;
use crate::vdi::tree::chain::chain;
use crate::vdi::tree::forest::{Forest, Kept};

/// Keeps the images of a disk as they are on all hosts while they are read, and unless `read_only` the disk from being
/// opened.
///
/// # Errors
/// [`crate::Error::VdiInUse`] while another host has the disk open; [`crate::Error::Damaged`] if its chain meets itself.
pub fn lend(forest: &dyn Forest, place: &dyn Place, read_only: bool) -> Result<[Kept; 2]> {
    if !forest.is_shared() {
        return Ok([Kept::by_nature(), Kept::by_nature()]);
    }
    loop {
        let before = chain(forest, place)?;
        let (leaf, below) = before.split_at(1);
        let leaf = if read_only { forest.hold(leaf)? } else { forest.alone(leaf, place.vdi())? };
        let held = [leaf, forest.hold(below)?];
        // The tree may have been changed before it was seen that its images are held.
        if chain(forest, place)? == before {
            return Ok(held);
        }
    }
}
