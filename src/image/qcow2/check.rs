//! Checking an image, and giving back what a crash left counted in vain.
//!
//! The uses of every cluster of the file are counted anew from the tables and compared with the reference counts on
//! disk: qcow2 specification, "Refcounts". A count that is too high keeps a cluster that nothing leads to; a crash of
//! any writer may leave such. A count that is too low is the beginning of damage: the cluster may be given to something
//! else.

use std::sync::Arc;

use super::Storage;
use super::compressed::Compressed;
use super::header::{DIRTY, Header};
use super::image::{COMPRESSED, Image, OFFSET, Table};
use super::refcounts::Refcounts;
use crate::error::{Error, Result};
use crate::image::fault::{Fault, Look};
use crate::types::{Mode, Size};

/// Autoclear features: "the bitmaps extension data is consistent".
const BITMAPS: u64 = 1;

/// Says what is wrong with an image; an empty list means nothing is. A look that is not deep reads the header and the L1
/// table.
///
/// # Errors
/// [`Error::Io`] alone: what is wrong with the image is in the list.
pub fn check(place: &Arc<dyn Storage>, look: Look) -> Result<Vec<Fault>> {
    let mut found = Vec::new();
    match examine(place, look, &mut found) {
        Ok(()) => {}
        Err(Error::Damaged { what, .. }) => found.push(Fault::lasting(what)),
        Err(Error::Unsupported { why, .. }) => found.push(Fault::lasting(why)),
        Err(error) => return Err(error),
    }
    Ok(found)
}

fn examine(place: &Arc<dyn Storage>, look: Look, found: &mut Vec<Fault>) -> Result<()> {
    let header = Header::read(&**place)?;
    if header.incompatible & DIRTY != 0 && !look.in_use {
        found.push(Fault::lasting("its writer did not finish; qemu-img check -r all completes its counts"));
    }
    let image = Image::open(place.clone(), Mode::ReadOnly)?;
    // A writer changes tables and counts one after the other.
    if !look.deep || look.in_use {
        return Ok(());
    }
    image.refuse_overlaps()?;
    if let Some(why) = uncounted(&header) {
        found.push(Fault::note(format!("its reference counts are not checked: {why}")));
        return Ok(());
    }
    let uses = Uses::of(&image)?;
    let (mut leaked, mut low) = (0u64, None);
    uses.compare(&image, &mut |difference| {
        match difference.used > difference.counted {
            true => low = low.or(Some(difference.cluster)),
            false => leaked += 1,
        }
        Ok(None)
    })?;
    let cluster = header.cluster();
    if let Some(at) = low {
        let what = "a cluster is used more often than its reference count says";
        found.push(Fault::lasting(format!("{what}, at byte {}; qemu-img check -r all mends it", at * cluster)));
    }
    if leaked > 0 {
        found.push(Fault::mendable(format!("{} are kept for nothing", Size(leaked * cluster))));
    }
    Ok(())
}

/// Gives back the clusters that nothing leads to, of an image that nobody has open. An image that contradicts itself stays
/// as it is. A crash in between leaves some of them as they were.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Unsupported`] for an image that is not to be written to; [`Error::Io`].
pub fn repair(place: &Arc<dyn Storage>) -> Result<()> {
    let header = Header::read(&**place)?;
    header.refuse_unwritable(&**place)?;
    if uncounted(&header).is_some() {
        return Ok(());
    }
    let image = Image::open(place.clone(), Mode::ReadOnly)?;
    image.refuse_overlaps()?;
    let uses = Uses::of(&image)?;
    let mut is_sound = true;
    uses.compare(&image, &mut |difference| {
        is_sound &= difference.used <= difference.counted;
        Ok(None)
    })?;
    if !is_sound {
        return Ok(());
    }
    let mut unused = Vec::new();
    uses.compare(&image, &mut |difference| {
        if difference.used == 0 {
            unused.push(difference.cluster);
        }
        Ok(Some(difference.used))
    })?;
    place.flush()?;
    let (size, cluster) = (place.len()?, header.cluster());
    for run in unused.chunk_by(|a, b| a + 1 == *b) {
        let (at, end) = (run[0] * cluster, ((run[0] + run.len() as u64) * cluster).min(size));
        if at < end && !place.punch(at, end - at).map_err(place.fail("discard in"))? {
            break;
        }
    }
    place.flush()
}

/// Why the clusters of an image cannot be counted: it has more than the tables that are known here.
fn uncounted(header: &Header) -> Option<&'static str> {
    if header.snapshots.0 > 0 {
        Some("it has internal snapshots")
    } else if header.autoclear & BITMAPS != 0 || !header.extensions.is_empty() {
        Some("it has extensions, such as bitmaps, that may have clusters of their own")
    } else {
        None
    }
}

/// A cluster whose count on disk is another than its uses.
struct Difference {
    cluster: u64,
    counted: u64,
    used: u64,
}

/// How often each cluster of the file is used: one byte for each.
struct Uses(Vec<u8>);

impl Uses {
    /// Reads all tables.
    fn of(image: &Image) -> Result<Uses> {
        let (place, header) = (&**image.place(), image.header());
        let (bits, cluster) = (header.cluster_bits, header.cluster());
        let mut uses = Uses(vec![0; place.len()?.div_ceil(cluster) as usize]);
        let l1 = header.l1_offset / cluster;
        let tables = std::iter::once(0).chain(l1..l1 + (u64::from(header.l1_size) * 8).div_ceil(cluster));
        tables.chain(Refcounts::open(place, header)?.clusters()).try_for_each(|at| uses.add(place, at))?;
        for offset in image.l2_tables() {
            uses.add(place, offset >> bits)?;
            for entry in Table::read(place, offset, image.entries(), header.is_extended())?.entries {
                if entry & COMPRESSED != 0 {
                    Compressed::of(entry, bits).clusters(bits).try_for_each(|at| uses.add(place, at))?;
                } else if entry & OFFSET != 0 {
                    uses.add(place, (entry & OFFSET) >> bits)?;
                }
            }
        }
        Ok(uses)
    }

    fn add(&mut self, place: &dyn Storage, cluster: u64) -> Result<()> {
        match self.0.get_mut(cluster as usize) {
            Some(count) => *count = count.saturating_add(1),
            None => return Err(place.damaged(format!("cluster {cluster} of it lies behind its end"))),
        }
        Ok(())
    }

    /// Shows `each` the clusters whose count differs; what it answers becomes the count on disk.
    fn compare(&self, image: &Image, each: &mut dyn FnMut(Difference) -> Result<Option<u64>>) -> Result<()> {
        Refcounts::open(&**image.place(), image.header())?.revise(
            &**image.place(),
            self.0.len() as u64,
            &mut |cluster, counted| {
                let used = self.0.get(cluster as usize).copied().unwrap_or(0);
                // So many uses are not told apart.
                let is_right = u64::from(used) == counted || (used == u8::MAX && counted > used.into());
                if is_right { Ok(None) } else { each(Difference { cluster, counted, used: used.into() }) }
            },
        )
    }
}
