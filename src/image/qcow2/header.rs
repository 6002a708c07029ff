//! The header: what an image says of itself, in its first sector.
//!
//! The header that [`Header::put`] writes fits one sector, so it is on disk or it is not. Images of other programs have
//! longer headers; those lose their table of feature names, which is for messages only.
//!
//! # Images that can be served
//!
//! [`Header::read`] refuses every image that no read can serve, with the reason. All that is done with an image begins
//! there, so no call accepts what a later one must refuse. [`Header::refuse_unwritable`] refuses what can be read and
//! not written: such a disk can be listed and copied out, and nothing is put above it that could never be merged.

mod read;

use std::path::Path;

use super::{SECTOR, Storage};
use crate::error::{Error, Result};
pub use read::named_parent;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes up to the fields of version 3.
const V2: usize = 72;
/// Bytes of a header of version 3, at least.
const V3: usize = 104;
const END: u32 = 0;
/// "Backing file format name string".
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// "Feature name table".
const FEATURE_NAMES: u32 = 0x6803_f857;
/// The other storage managers' own: 8 bytes, the first of which says whether the image is hidden (copy-on-write
/// trees, section 16).
const HIDDEN: u32 = 0x7661_7465;

/// Incompatible features: "refcounts may be inconsistent".
pub(crate) const DIRTY: u64 = 1;
/// "Any data structure may be corrupt and the image must not be written to".
pub(crate) const CORRUPT: u64 = 1 << 1;
/// "An external data file is used".
const DATA_FILE: u64 = 1 << 2;
/// "A non-default compression is used for compressed clusters".
const COMPRESSION: u64 = 1 << 3;
/// "L2 table entries are 128 bits wide and contain a bitmap of subclusters".
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
/// Extended L2 entries want clusters of 16 KiB at least, so that a subcluster is a sector.
pub(crate) const MIN_EXTENDED_BITS: u32 = 14;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Without a header or a checksum.
    Deflate,
    /// One frame for each cluster.
    Zstd,
}

/// The header of an image, checked: what it says of sizes and places is possible and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub(crate) version: u32,
    /// A cluster has 1 << this bytes.
    pub(crate) cluster_bits: u32,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Entries of the L1 table.
    pub(crate) l1_size: u32,
    pub(crate) l1_offset: u64,
    pub(crate) refcounts_offset: u64,
    pub(crate) refcounts_clusters: u32,
    /// A reference count has 1 << this bits.
    pub(crate) refcount_order: u32,
    /// Internal snapshots: how many, and where their table is.
    pub(crate) snapshots: (u32, u64),
    pub(crate) incompatible: u64,
    pub(crate) compatible: u64,
    pub(crate) autoclear: u64,
    /// The bytes that the header has behind the fields above.
    pub(crate) further: Vec<u8>,
    /// The image is there for its children only.
    pub hidden: bool,
    /// The parent's name as somebody wrote it.
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    /// Other extensions, as they are.
    pub(crate) extensions: Vec<(u32, Vec<u8>)>,
}

impl Header {
    /// Refuses an image that can be read and must not be written: nothing may be attached for writing, merged into it,
    /// or put above it, because that could never be merged.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its last writer did not finish; [`Error::Unsupported`] for internal snapshots.
    pub fn refuse_unwritable(&self, place: &dyn Storage) -> Result<()> {
        if self.incompatible & DIRTY != 0 {
            return Err(place.damaged(
                "its last writer did not finish, so its reference counts may be wrong; qemu-img check -r all mends it",
            ));
        }
        match self.snapshots.0 {
            0 => Ok(()),
            count => Err(Error::Unsupported {
                op: "writing to a qcow2 with internal snapshots",
                why: format!(
                    "{} has {count}; qemu-img snapshot -d removes one, qemu-img convert makes an image without them",
                    place.path().display()
                ),
            }),
        }
    }

    /// The name of the parent's file: the last part of what the header names, wherever that is. Images of one tree lie in one
    /// directory, and the other storage managers write bare names and paths of their own host.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what is no path of a file: a URL, a description in JSON; [`Error::Unsupported`] for a parent
    /// that is neither raw nor qcow2.
    pub fn parent(&self, place: &dyn Storage) -> Result<Option<&str>> {
        let Some(said) = &self.backing else { return Ok(None) };
        match self.backing_format.as_deref() {
            None | Some("qcow2" | "raw") => {}
            Some(other) => {
                return Err(Error::Unsupported {
                    op: "a parent that is neither raw nor qcow2",
                    why: format!("{} names {said:?}, of format {other:?}", place.path().display()),
                });
            }
        }
        // As qemu has it: with a colon before any slash it is a protocol.
        let is_url = said.split('/').next().is_some_and(|first| first.contains(':'));
        let name = said.rsplit('/').next().unwrap_or_default();
        if is_url || matches!(name, "" | "." | "..") || name.contains(|c: char| c.is_control() || c == '\u{fffd}') {
            return Err(place.damaged(format!("it names {said:?} as its parent, which is no file")));
        }
        if place.path().file_name().is_some_and(|own| own == name) {
            return Err(place.damaged("it names itself as its parent"));
        }
        Ok(Some(name))
    }

    /// Refuses a parent `name` that is of another format than this header says: a raw image that is taken for a qcow2
    /// shows what its guest chose. A header that does not say takes what the name in the SR says.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn refuse_parent(&self, place: &dyn Storage, name: &str, format: &str) -> Result<()> {
        match self.backing_format.as_deref() {
            Some(said) if said != format => {
                Err(place.damaged(format!("it says that its parent {name:?} is {said}, and that is {format}")))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn is_extended(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    pub(crate) fn compression(&self) -> Compression {
        if self.incompatible & COMPRESSION != 0 { Compression::Zstd } else { Compression::Deflate }
    }

    /// Entries of the L1 table of a disk of `size` bytes.
    pub(crate) fn l1_entries(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.region_bits())
    }

    /// One L2 table is for 1 << this bytes of the disk.
    pub(crate) fn region_bits(&self) -> u32 {
        2 * self.cluster_bits - if self.is_extended() { 4 } else { 3 }
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The header as it is written: one sector.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it does not fit.
    pub(crate) fn to_sector(&self, path: &Path) -> Result<[u8; SECTOR as usize]> {
        let mut bytes = vec![0; if self.version == 2 { V2 } else { V3 }];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC.to_be_bytes());
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.virtual_size.to_be_bytes());
        put(36, &self.l1_size.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcounts_offset.to_be_bytes());
        put(56, &self.refcounts_clusters.to_be_bytes());
        put(60, &self.snapshots.0.to_be_bytes());
        put(64, &self.snapshots.1.to_be_bytes());
        if self.version == 3 {
            put(72, &self.incompatible.to_be_bytes());
            put(80, &self.compatible.to_be_bytes());
            put(88, &self.autoclear.to_be_bytes());
            put(96, &self.refcount_order.to_be_bytes());
            put(100, &((V3 + self.further.len()) as u32).to_be_bytes());
            bytes.extend_from_slice(&self.further);
        }
        let mut extend = |kind: u32, data: &[u8]| {
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        if let Some(format) = self.backing_format.as_ref().filter(|_| self.backing.is_some()) {
            extend(BACKING_FORMAT, format.as_bytes());
        }
        extend(HIDDEN, &[u8::from(self.hidden), 0, 0, 0, 0, 0, 0, 0]);
        for (kind, data) in &self.extensions {
            extend(*kind, data);
        }
        extend(END, &[]);
        if let Some(name) = &self.backing {
            let at = bytes.len() as u64;
            bytes[8..16].copy_from_slice(&at.to_be_bytes());
            bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        if bytes.len() > SECTOR as usize {
            return Err(Error::Unsupported {
                op: "changing this qcow2",
                why: format!("the header of {} would not fit a sector", path.display()),
            });
        }
        bytes.resize(SECTOR as usize, 0);
        Ok(bytes.try_into().expect("a sector"))
    }

    /// Replaces the header on disk, in one step and durably. Earlier writes are durable first.
    pub(crate) fn put(&self, place: &dyn Storage) -> Result<()> {
        let sector = self.to_sector(place.path())?;
        place.flush()?;
        place.put(&sector, 0)?;
        place.flush()
    }

    /// Replaces fields of the header on disk by others of the same length, in one step. All else stays, also of a header
    /// of another program that would not fit a sector. Does not sync.
    pub(crate) fn patch(place: &dyn Storage, fields: &[(usize, &[u8])]) -> Result<()> {
        let mut sector = [0; SECTOR as usize];
        place.get_exact(&mut sector, 0, "the header")?;
        for (at, field) in fields {
            sector[*at..at + field.len()].copy_from_slice(field);
        }
        place.put(&sector, 0)
    }
}

/// Where [`Header::patch`] finds the fields.
pub(crate) mod field {
    pub const VIRTUAL_SIZE: usize = 24;
    pub const L1_SIZE: usize = 36;
    pub const L1_OFFSET: usize = 40;
    pub const REFCOUNTS_OFFSET: usize = 48;
    pub const REFCOUNTS_CLUSTERS: usize = 56;
    pub const AUTOCLEAR: usize = 88;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::storage::FileStorage;
    use std::os::unix::fs::FileExt;

    fn place(bytes: &[u8]) -> FileStorage {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        FileStorage::new(file, "x").unwrap()
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let mut header = Header::new(16, 5 << 30);
        header.hidden = true;
        header.backing = Some("98de866e-b035-4b1a-a571-000000000001.qcow2".to_owned());
        header.backing_format = Some("qcow2".to_owned());
        header.extensions.push((0x1234_5678, vec![1, 2, 3]));
        let place = place(&[0; 65536]);
        header.put(&place).unwrap();
        assert_eq!(Header::read(&place).unwrap(), header);
    }

    #[test]
    fn no_bytes_make_it_panic_or_take_much_memory() {
        let good = {
            let mut header = Header::new(16, 5 << 30);
            header.backing = Some("a".to_owned());
            header.to_sector(Path::new("x")).unwrap()
        };
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good;
                bytes[at] = value;
                let _ = Header::read(&place(&bytes));
            }
        }
        assert!(Header::read(&place(&[])).is_err());
    }
}
