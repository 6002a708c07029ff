//! Whether everything in an image has a place of its own. An image is taken in only if that is so: of one that
//! contradicts itself nobody knows which of its tables is right.

use std::collections::HashMap;

use super::compressed::Compressed;
use super::image::{COMPRESSED, COPIED, Image, OFFSET, Table};
use super::refcounts::Refcounts;
use crate::error::Result;

/// The uses that a cluster of the file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// A table, or data that says that nothing else leads to it.
    Alone = 1,
    /// Data that several entries may lead to.
    Shared = 2,
    /// Compressed data, of which several lie in one cluster.
    Packed = 3,
}

/// Clusters in a page of [`Map`].
const PAGE: u64 = 2048;

/// The use of each cluster, in two bits.
#[derive(Default)]
struct Map(HashMap<u64, Box<[u8; PAGE as usize / 4]>>);

impl Map {
    /// Whether a cluster can be used for this besides what it is used for already.
    fn claim(&mut self, cluster: u64, what: Use) -> bool {
        let page = self.0.entry(cluster / PAGE).or_insert_with(|| Box::new([0; PAGE as usize / 4]));
        let (n, shift) = ((cluster % PAGE / 4) as usize, cluster % 4 * 2);
        let was = page[n] >> shift & 3;
        page[n] |= (what as u8) << shift;
        was == 0 || (was == what as u8 && what != Use::Alone)
    }
}

impl Image {
    /// Reads all tables, one time. Memory: two bits for each cluster of the file that is in use.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged) if two tables, or a table and data, lie in one place, or if two entries
    /// lead to one cluster and one of them says that it is the only one.
    pub fn refuse_overlaps(&self) -> Result<()> {
        let (place, header) = (&**self.place(), self.header());
        let (bits, cluster) = (header.cluster_bits, header.cluster());
        let mut map = Map::default();
        let mut claim = |cluster: u64, what: Use| match map.claim(cluster, what) {
            true => Ok(()),
            false => Err(place.damaged(format!(
                "its tables contradict each other: more than one of them leads to {}",
                cluster << bits
            ))),
        };
        let l1 = header.l1_offset / cluster;
        let tables = std::iter::once(0).chain(l1..l1 + (u64::from(header.l1_size) * 8).div_ceil(cluster));
        for table in tables.chain(Refcounts::open(place, header)?.clusters()) {
            claim(table, Use::Alone)?;
        }
        for offset in self.l2_tables() {
            claim(offset >> bits, Use::Alone)?;
            let table = Table::read(place, offset, self.entries(), header.is_extended())?;
            for entry in table.entries {
                if entry & COMPRESSED != 0 {
                    for cluster in Compressed::of(entry, bits).clusters(bits) {
                        claim(cluster, Use::Packed)?;
                    }
                } else if entry & OFFSET != 0 {
                    let what = if entry & COPIED != 0 { Use::Alone } else { Use::Shared };
                    claim((entry & OFFSET) >> bits, what)?;
                }
            }
        }
        Ok(())
    }
}
