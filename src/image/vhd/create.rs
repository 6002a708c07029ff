//! New images, byte for byte as libvhd lays them out.

use uuid::Uuid;

use super::batmap::{BatmapHeader, map_sectors};
use super::footer::{Footer, Kind, now};
use super::header::Header;
use super::locator::Encoded;
use super::{BLOCK, Info, MAX_SIZE, SECTOR, Storage, query};
use crate::error::{Error, Result};
use crate::sys::writeback;
use crate::types::Size;

/// A new image. [`NewImage::new`] fills in what most callers want.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Bytes the guest sees, a multiple of 512. The caller rounds to its own unit (SRs: 2 MiB).
    pub virtual_size: u64,
    /// Bytes up to which the image can grow without moving anything; below `virtual_size` it counts as that.
    /// LVHD sets 2 TiB, file SRs nothing.
    pub reserve: u64,
    /// A random one identifies the image to its children.
    pub uuid: Uuid,
    /// Seconds since 2000.
    pub timestamp: u32,
    pub hidden: bool,
}

impl NewImage {
    pub fn new(virtual_size: u64) -> Self {
        NewImage { virtual_size, reserve: 0, uuid: Uuid::new_v4(), timestamp: now(), hidden: false }
    }
}

/// The parent of an image to be made or changed.
#[derive(Clone, Debug)]
pub struct ParentLink {
    /// From the child's directory, starting with `./` or `../`, as libvhd writes it.
    pub path: String,
    /// The UUID in the parent's footer; `None`: the parent is a raw image.
    pub uuid: Option<Uuid>,
    /// The parent's modification time, seconds since 2000 ([`super::timestamp`]); nobody checks it.
    pub timestamp: u32,
}

impl ParentLink {
    /// The parent of this file name in the directory of the child.
    pub fn beside(name: &str, uuid: Option<Uuid>, timestamp: u32) -> ParentLink {
        ParentLink { path: format!("./{name}"), uuid, timestamp }
    }
}

/// Makes a dynamic image. The earlier contents of the place are overwritten; a file is emptied first.
///
/// 1. On a device, the sectors of both footers are zeroed and synced: what an earlier image left there must not
///    describe this one's tables.
/// 2. Header, BAT, batmap and locators are written and, on a device, synced.
/// 3. Both footers are written; sync.
///
/// A crash before 3 leaves no image (a file shorter than its tables, or none at all under its final name if the
/// caller makes it under another one).
///
/// # Errors
/// [`Error::Invalid`] for a size that is 0 or not a multiple of 512, [`Error::TooBig`] above 2,040 GiB,
/// [`Error::Io`].
pub fn create(place: &dyn Storage, new: &NewImage) -> Result<Info> {
    sparse(place, new, None)
}

/// Makes a differencing image: what is not written to it is read from the parent. The order of steps is that of
/// [`create()`].
///
/// # Errors
/// Those of [`create()`]; [`Error::Invalid`] for a path that cannot be stored, and for a parent whose UUID is nil.
pub fn create_child(place: &dyn Storage, new: &NewImage, parent: &ParentLink) -> Result<Info> {
    if parent.uuid.is_some_and(|uuid| uuid.is_nil()) {
        return Err(Error::Invalid {
            what: "UUID of the parent image",
            value: "nil".to_owned(),
            expected: "it would make the parent a raw image; repair it first".to_owned(),
        });
    }
    sparse(place, new, Some(parent))
}

/// A size that an image can have.
pub(crate) fn check_size(what: &'static str, size: u64) -> Result<()> {
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(Error::Invalid {
            what,
            value: size.to_string(),
            expected: "expected a positive multiple of 512 bytes".to_owned(),
        });
    }
    if size > MAX_SIZE {
        return Err(Error::TooBig { what, bytes: size, limit: "a VHD holds at most 2,040 GiB".to_owned() });
    }
    Ok(())
}

fn sparse(place: &dyn Storage, new: &NewImage, parent: Option<&ParentLink>) -> Result<Info> {
    check_size("virtual size", new.virtual_size)?;
    let kind = if parent.is_some() { Kind::Differencing } else { Kind::Dynamic };
    let encoded = parent.map(|p| Encoded::new(&p.path)).transpose()?;
    let mut footer = Footer::new(kind, new.virtual_size, new.uuid, new.timestamp);
    if new.hidden {
        footer.set_hidden(true);
    }
    // LVHD reserves 2 TiB, 8 GiB more than a disk may have.
    let entries = new.virtual_size.max(new.reserve.min(1 << 41)).div_ceil(BLOCK) as u32;
    let mut header = Header::new(entries);
    let batmap = BatmapHeader::new(&header);
    let mut locators = Vec::new();
    if let (Some(parent), Some(encoded)) = (parent, &encoded) {
        header.set_parent(parent.uuid.unwrap_or_default(), parent.timestamp, encoded.name());
        locators = header.place_locators(encoded, batmap.end());
    }

    let batmap_at = header.bat_end();
    let mut behind = batmap.0.to_vec();
    behind.resize(behind.len() + map_sectors(entries) as usize * SECTOR as usize, 0);
    behind.extend_from_slice(&locators);
    let end = batmap_at + behind.len() as u64;

    let size = place.len()?;
    if place.is_device() {
        if size < end + SECTOR {
            return Err(Error::TooBig {
                what: "the metadata of a VHD",
                bytes: end + SECTOR,
                limit: format!("{} has {}", place.path().display(), Size(size)),
            });
        }
        place.put(&[0; 512], 0)?;
        place.put(&[0; 512], size - SECTOR)?;
        place.flush()?;
    } else if size != 0 {
        place.resize_to(0)?;
    }
    place.put(&header.0, SECTOR)?;
    put_empty_bat(place, SECTOR + header.0.len() as u64, entries, batmap_at)?;
    place.put(&behind, batmap_at)?;
    let last = if place.is_device() {
        place.flush()?;
        size - SECTOR
    } else {
        end
    };
    place.put(&footer.0, 0)?;
    place.put(&footer.0, last)?;
    place.flush()?;
    query(place)
}

/// Writes a table of `entries` without blocks up to `end`, out of one piece that the processor keeps and nobody has to fill. The
/// storage of a large one begins with its first part while the rest is written.
fn put_empty_bat(place: &dyn Storage, at: u64, entries: u32, end: u64) -> Result<()> {
    static PIECE: [u8; 64 << 10] = [0xff; 64 << 10];
    const PART: u64 = 1 << 20;
    let unused = at + u64::from(entries) * 4;
    let (mut from, mut begun) = (at, at);
    while from < unused {
        let len = (PIECE.len() as u64).min(unused - from);
        place.put(&PIECE[..len as usize], from)?;
        from += len;
        if from - begun >= PART
            && let Some(file) = place.file()
        {
            writeback::begin(file, begun, from - begun).map_err(place.fail("write"))?;
            begun = from;
        }
    }
    place.put(&vec![0; (end - unused) as usize], unused)
}

/// Makes a fixed image: zeros and a footer. A file stays sparse, a device is zeroed.
///
/// # Errors
/// As [`create()`].
pub fn create_fixed(place: &dyn Storage, new: &NewImage) -> Result<Info> {
    check_size("virtual size", new.virtual_size)?;
    let mut footer = Footer::new(Kind::Fixed, new.virtual_size, new.uuid, new.timestamp);
    if new.hidden {
        footer.set_hidden(true);
    }
    let mut at = new.virtual_size;
    if place.is_device() {
        let size = place.len()?;
        if size < at + SECTOR {
            return Err(Error::TooBig {
                what: "a fixed VHD",
                bytes: at + SECTOR,
                limit: format!("{} has {}", place.path().display(), Size(size)),
            });
        }
        place.zero(0, size - SECTOR)?;
        at = size - SECTOR;
    } else {
        place.resize_to(0)?;
    }
    place.put(&footer.0, at)?;
    place.flush()?;
    query(place)
}
