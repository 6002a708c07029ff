//! New images, of version 3, with everything that `qemu-img check` wants and nothing more.
//!
//! | cluster | what |
//! |---|---|
//! | 0 | header, one sector |
//! | 1, 2 | table of reference counts: room for 32 TiB of file in clusters of 64 KiB |
//! | 3 | reference counts of the first 32,768 clusters |
//! | from 4 | L1 table, empty |
//!
//! Only what is not zero is written into a file. It has no name yet: a crash leaves nothing.

use super::header::{EXTENDED_L2, Header, MIN_EXTENDED_BITS};
use super::{CLUSTER_BITS, REFCOUNT_ORDER, SECTOR, Storage};
use crate::error::{Error, Result};

const TABLE_CLUSTERS: u64 = 2;

impl Header {
    /// Of an image without data of `virtual_size` bytes.
    pub(crate) fn new(cluster_bits: u32, virtual_size: u64) -> Header {
        let mut header = Header {
            version: 3,
            cluster_bits,
            virtual_size,
            l1_size: 0,
            l1_offset: (2 + TABLE_CLUSTERS) << cluster_bits,
            refcounts_offset: 1 << cluster_bits,
            refcounts_clusters: TABLE_CLUSTERS as u32,
            refcount_order: REFCOUNT_ORDER,
            snapshots: (0, 0),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            // Compression type 0 and padding, as qemu writes it.
            further: vec![0; 8],
            hidden: false,
            backing: None,
            backing_format: None,
            extensions: Vec::new(),
        };
        header.l1_size = header.l1_entries(virtual_size) as u32;
        header
    }
}

/// Writes an image of zeroes into an empty file, or a device.
///
/// # Errors
/// [`Error::Invalid`] for a size that is not a whole number of sectors; [`Error::Io`].
pub fn create(place: &dyn Storage, virtual_size: u64) -> Result<()> {
    write(place, &Header::new(CLUSTER_BITS, checked(virtual_size)?))
}

/// Makes an image with a parent: the file `backing` in the same directory, of the format `format`. `like` is the
/// parent's header if it is a qcow2; the child gets its size of clusters, so that coalescing copies whole ones. Durable
/// when it returns.
///
/// # Errors
/// [`Error::Invalid`] for a size that is not a whole number of sectors, and for a name that does not fit the header;
/// [`Error::Io`].
pub fn create_child(
    place: &dyn Storage,
    virtual_size: u64,
    like: Option<&Header>,
    backing: &str,
    format: &str,
) -> Result<()> {
    // Smaller ones cost more to find than they save.
    let bits = like.map_or(CLUSTER_BITS, |parent| parent.cluster_bits.max(CLUSTER_BITS));
    write_child(place, Header::new(bits, checked(virtual_size)?), backing, format)
}

/// Makes an image with a parent, as [`create_child`], in which each sector is there or not: clusters of 16 KiB, the least that
/// can have subclusters, of one sector each. The Python storage manager makes such for the disks of a storage migration.
///
/// # Errors
/// Those of [`create_child`].
pub fn create_fine_child(place: &dyn Storage, virtual_size: u64, backing: &str, format: &str) -> Result<()> {
    let mut header = Header::new(MIN_EXTENDED_BITS, checked(virtual_size)?);
    header.incompatible |= EXTENDED_L2;
    header.l1_size = header.l1_entries(virtual_size) as u32;
    write_child(place, header, backing, format)
}

fn write_child(place: &dyn Storage, mut header: Header, backing: &str, format: &str) -> Result<()> {
    header.backing = Some(backing.to_owned());
    header.backing_format = Some(format.to_owned());
    write(place, &header)
}

fn checked(size: u64) -> Result<u64> {
    if size.is_multiple_of(SECTOR) && size <= super::MAX_SIZE {
        return Ok(size);
    }
    Err(Error::Invalid {
        what: "virtual size",
        value: size.to_string(),
        expected: format!("expected a multiple of {SECTOR}, {} at most", super::MAX_SIZE),
    })
}

fn write(place: &dyn Storage, header: &Header) -> Result<()> {
    let cluster = header.cluster();
    let l1_clusters = (u64::from(header.l1_size) * 8).div_ceil(cluster);
    let used = 2 + TABLE_CLUSTERS + l1_clusters;
    let counts = (1 + TABLE_CLUSTERS) * cluster;
    let sector = header.to_sector(place.path())?;
    if place.is_device() {
        place.zero(0, used * cluster)?;
    } else {
        place.resize_to(used * cluster)?;
    }
    place.put(&counts.to_be_bytes(), header.refcounts_offset)?;
    let ones: Vec<u8> = std::iter::repeat_n([0, 1], used as usize).flatten().collect();
    place.put(&ones, counts)?;
    place.put(&sector, 0)?;
    place.flush()
}
