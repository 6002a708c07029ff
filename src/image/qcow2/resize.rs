//! Growing an image. It must not be open anywhere else.
//!
//! 1. If the L1 table is too short, write a longer one behind everything else, and count its clusters; sync. *Nothing
//!    leads there.*
//! 2. Write the header with the new size and the new table: one sector; sync. *Old or new.*
//! 3. Give the clusters of the old table back; sync. *Before it, they are counted in vain.*

use std::sync::Arc;

use super::header::{Header, field};
use super::{Image, Storage};
use crate::error::{Error, Result};
use crate::types::{Done, Mode, Size};

/// Grows an image to `size` bytes.
///
/// # Errors
/// [`Error::Invalid`] for a size that is smaller than the present one or not a multiple of 512;
/// [`Error::TooBig`]; those of [`Image::open`].
pub fn resize(place: &Arc<dyn Storage>, size: u64) -> Result<Done> {
    let image = Image::open(place.clone(), Mode::ReadWrite)?;
    let now = image.virtual_size();
    if size < now || !size.is_multiple_of(super::SECTOR) {
        return Err(Error::Invalid {
            what: "virtual size",
            value: size.to_string(),
            expected: format!("{} has {now} bytes and cannot shrink", place.path().display()),
        });
    }
    if size == now {
        return Ok(Done::Already);
    }
    let mut header = image.header().clone();
    let cluster = header.cluster();
    let entries = header.l1_entries(size);
    if entries * 8 > super::MAX_TABLE {
        return Err(Error::TooBig {
            what: "a disk",
            bytes: size,
            limit: format!("the clusters of {} are of {}", place.path().display(), Size(cluster)),
        });
    }
    let mut old = 0..0;
    if entries > u64::from(header.l1_size) {
        let first = header.l1_offset / cluster;
        old = first..first + (u64::from(header.l1_size) * 8).div_ceil(cluster);
        let clusters = (entries * 8).div_ceil(cluster);
        header.l1_offset = image.allocate(clusters)? * cluster;
        header.l1_size = entries as u32;
        let mut table = image.l1_bytes();
        table.resize((clusters * cluster) as usize, 0);
        place.put(&table, header.l1_offset)?;
        image.flush()?;
    }
    place.flush()?;
    let fields: [(usize, &[u8]); 3] = [
        (field::VIRTUAL_SIZE, &size.to_be_bytes()),
        (field::L1_SIZE, &header.l1_size.to_be_bytes()),
        (field::L1_OFFSET, &header.l1_offset.to_be_bytes()),
    ];
    Header::patch(&**place, &fields)?;
    place.flush()?;
    if !old.is_empty() {
        image.free(old)?;
        image.reclaim()?;
    }
    Ok(Done::Changed)
}
