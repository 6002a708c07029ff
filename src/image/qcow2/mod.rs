//! The qcow2 image format: create, query, read, write, and change; for disks beyond what a VHD holds.
//!
//! Offsets and sizes are bytes. Nothing here knows an SR: the caller opens files or devices as a [`Storage`], decides
//! which file a parent is (no name in a header is ever opened here), holds the locks, and makes new files under a
//! name that nobody looks at until they are whole. Numbers in the format are big endian.
//!
//! | to | use |
//! |---|---|
//! | make an image | [`create()`], [`create_child`], [`create_fine_child`] |
//! | ask what it is, by one read | [`Header::read`] |
//! | read and write the disk | [`Chain::open`] |
//! | hide, change the parent | [`set_hidden`], [`set_parent`] |
//! | grow | [`resize()`] |
//! | ask how much room it takes and may take | [`room()`], [`overhead`] |
//! | say what is wrong, give back what leaked | [`check()`], [`repair()`] |
//! | copy a child into its parent | [`coalesce()`] |
//! | write a whole disk to a pipe | [`write_stream`] |
//!
//! # Why not a library
//!
//! The crate `imago` 0.2.6 was tried first. It reads and writes all of the format, but orders its writes only as the
//! page cache sees them: there is no sync between the data of a cluster, its reference count, and the L2 entry that
//! leads to it. When the power fails, the entry may be on disk and the data not. If a guest wrote 4 KiB of a cluster
//! whose other 60 KiB came from the parent, those 60 KiB are then lost, though they were durable before. With
//! `qemu-img` alone, a disk could not be served. So what an SR needs of the format is here, the order included.
//!
//! # Features that are read, and features that are written
//!
//! Read and written: versions 2 and 3, any size of clusters, any width of reference counts, subclusters
//! (`extended_l2`), zero clusters; what is compressed, by deflate or zstd, is read, and unpacked when it is written
//! over. Read only: images with internal snapshots, and those whose writer did not finish. Refused with words:
//! encryption, external data files, what is marked as corrupt, features that came later. [`Header::read`] and
//! [`Header::refuse_unwritable`] are where that is decided. New images are of version 3, with reference counts of 16 bits and
//! clusters of 64 KiB, which is what `qemu-img create` makes.
//!
//! # Rules that hold at every instant
//!
//! 1. The header is one sector and valid.
//! 2. An entry on disk leads to what is on disk: L1 to L2 tables, L2 to data, the table of reference counts to counts.
//! 3. A cluster that an entry on disk leads to has its reference count on disk.
//! 4. A cluster is allocated once while an image is open, behind all others.
//!
//! 5. A reference count goes down only after nothing on disk leads to the cluster from there any more.
//!
//! Hence a crash at any time leaves each sector as it was at the last flush or as it was written since; at worst,
//! clusters are counted that nobody leads to. The steps are told at [`Image::flush`], [`resize`](mod@resize),
//! [`coalesce`](mod@coalesce) and [`Header::put`].

mod chain;
mod check;
mod coalesce;
mod compressed;
mod create;
mod header;
mod image;
mod overlaps;
mod refcounts;
mod resize;
mod room;
mod stream;

pub use super::storage::{FileStorage, Storage};
use super::{be32, be64};
pub use chain::{Chain, Parent};
pub use check::{check, repair};
pub use coalesce::{coalesce, coalesce_all, own};
pub use create::{create, create_child, create_fine_child};
pub use header::{Header, named_parent};
pub use image::Image;
pub use resize::resize;
pub use room::{Room, overhead, room};
pub use stream::write_stream;

use crate::error::Result;

/// Bytes.
pub const SECTOR: u64 = 512;
/// Of images made here: clusters of 64 KiB.
const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster of images made here.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// "Must not be less than 9."
const MIN_CLUSTER_BITS: u32 = 9;
/// qemu's limit.
const MAX_CLUSTER_BITS: u32 = 21;
/// Reference counts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;
/// Bytes of an L1 table, at most; qemu's limit. Bounds what an image takes of memory.
const MAX_TABLE: u64 = 32 << 20;
/// Bytes of a table of reference counts, at most; qemu's limit. With clusters of 512 bytes it is for 128 GiB of file.
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// The biggest disk an image is made for, bytes: the limit of XCP-ng 8.3, 2.5 GiB below 16 TiB. A file of ext4, which ends
/// below 16 TiB, then holds it with all its tables.
pub const MAX_SIZE: u64 = 17_589_500_641_280;

/// Marks an image as there for its children only, or no longer so; durably, by one write of one sector.
///
/// # Errors
/// [`crate::Error::Damaged`] or [`crate::Error::Unsupported`] if the header cannot be read; [`crate::Error::Io`].
pub fn set_hidden(place: &dyn Storage, hidden: bool) -> Result<()> {
    let mut header = Header::read(place)?;
    header.hidden = hidden;
    header.put(place)
}

/// Names another file of the same directory as the parent; durably, by one write of one sector. It must hold what
/// the present parent shows.
///
/// # Errors
/// [`crate::Error::Damaged`] or [`crate::Error::Unsupported`] if the header cannot be read; [`crate::Error::Invalid`] for a
/// name that does not fit it; [`crate::Error::Io`].
pub fn set_parent(place: &dyn Storage, backing: &str, format: &str) -> Result<()> {
    let mut header = Header::read(place)?;
    header.backing = Some(backing.to_owned());
    header.backing_format = Some(format.to_owned());
    header.put(place)
}

/// A table of entries of 8 bytes, read. Memory is taken for what the place has, not for what a header says.
fn read_table(place: &dyn Storage, offset: u64, entries: usize, what: &str) -> Result<Vec<u64>> {
    const PIECE: usize = 1 << 20;
    let mut table = Vec::new();
    let mut bytes = vec![0; PIECE.min(entries * 8)];
    while table.len() < entries {
        let part = PIECE.min((entries - table.len()) * 8);
        place.get_exact(&mut bytes[..part], offset + table.len() as u64 * 8, what)?;
        table.extend(bytes[..part].as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)));
    }
    Ok(table)
}

fn table_bytes(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
