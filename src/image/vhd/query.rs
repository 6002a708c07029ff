//! The facts that an image tells of itself, from its first 1,536 bytes.
//!
//! The backup footer at offset 0 has the word, not the one at the end: an image in use has lost or outgrown the
//! latter. An image without a valid footer at offset 0 is taken for a fixed one if it ends in such a footer. Bytes that
//! look like a footer at offset 0 of a fixed image were written by its guest: [`super::Chain::open`] therefore refuses
//! an image whose two footers disagree about the type, and no SR should keep fixed images.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::batmap::BatmapHeader;
use super::footer::{COOKIE, Footer, Kind};
use super::header::{HEADER, Header};
use super::image::{Image, headers_end, read_batmap_header};
use super::{BLOCK, MAX_BLOCKS, MAX_READ_SIZE, SECTOR, Storage, intent};
use crate::error::{Error, Result};
use crate::image::Reading;
use crate::image::name::NamedParent;
use crate::types::Mode;

/// The facts in the headers of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    pub kind: Kind,
    /// Identifies the image to its children; unrelated to the VDI's UUID.
    pub uuid: Uuid,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes at creation.
    pub original_size: u64,
    pub hidden: bool,
    /// `vhd-util resize` was interrupted; until it is reverted the image can only be looked at.
    pub poisoned: bool,
    /// Four characters; `tap\0` is ours and libvhd's.
    pub creator: [u8; 4],
    /// Major << 16 | minor.
    pub creator_version: u32,
    /// Seconds since 2000.
    pub timestamp: u32,
    /// Bytes; 0 for a fixed image.
    pub block_size: u32,
    /// Blocks that the BAT has entries for: up to `max_blocks` × `block_size` the image grows without moving anything.
    pub max_blocks: u32,
    /// Of a differencing image only.
    pub parent: Option<ParentInfo>,
}

/// The facts that a differencing image tells of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentInfo {
    /// The UUID in the parent's footer; `None` if the parent is a raw image.
    pub uuid: Option<Uuid>,
    /// Base name of its file, as somebody wrote it: use [`ParentInfo::file_name`] to look for it.
    pub name: String,
    /// Its modification time when the child was made, seconds since 2000.
    pub timestamp: u32,
}

impl ParentInfo {
    /// The name if it is a plain file name: not empty, not `.` or `..`, without `/` and control characters.
    pub fn file_name(&self) -> Option<&str> {
        let plain = !self.name.is_empty()
            && self.name != "."
            && self.name != ".."
            && !self.name.contains(|c: char| c == '/' || c.is_control() || c == char::REPLACEMENT_CHARACTER);
        plain.then_some(self.name.as_str())
    }
}

/// Footer and, for all but fixed images, header.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub footer: Footer,
    pub kind: Kind,
    pub header: Option<Header>,
    /// The header on disk is torn and `header` is what the intent record says.
    pub torn: bool,
}

impl Meta {
    pub fn read(place: &dyn Storage) -> Result<Meta> {
        Meta::read_as(place, Reading::Whole)
    }

    /// [`Meta::read`]; to rescue an image, also without its header: all that libvhd and we write have their table in one place,
    /// and blocks of one size. The parent is lost with the header.
    pub fn read_as(place: &dyn Storage, reading: Reading) -> Result<Meta> {
        let mut start = [0; (SECTOR + HEADER) as usize];
        place.get(&mut start, 0)?;
        let backup = Footer::parse(&start).filter(|f| matches!(f.kind(), Some(Kind::Dynamic | Kind::Differencing)));
        let footer = match backup {
            Some(footer) => footer,
            None => match last_footer(place)? {
                Some(footer) => footer,
                None if start.starts_with(COOKIE) => {
                    return Err(place.damaged("the VHD footer at its start is damaged"));
                }
                None => return Err(place.damaged("there is no valid VHD footer")),
            },
        };
        let kind = footer
            .kind()
            .ok_or_else(|| place.damaged(format!("VHD type {} is not supported", footer.type_number())))?;
        if kind == Kind::Fixed {
            return Ok(Meta { footer, kind, header: None, torn: false });
        }
        let at = footer.data_offset();
        if at != SECTOR {
            if !at.is_multiple_of(SECTOR) || at >= 1 << 42 {
                return Err(place.damaged(format!("the header cannot lie at {at}")));
            }
            place.get_exact(&mut start[SECTOR as usize..], at, "the header")?;
        }
        let raw = &start[SECTOR as usize..];
        let (header, torn) = match Header::parse(raw) {
            Ok(header) => (header, false),
            Err(why) => match intent::recover(place, &footer, raw)? {
                Some(header) => (header, true),
                None => {
                    let usual =
                        Some(&footer).filter(|_| reading == Reading::Rescue && at == SECTOR).and_then(usual_header);
                    (usual.ok_or_else(|| place.damaged(why))?, false)
                }
            },
        };
        Ok(Meta { footer, kind, header: Some(header), torn })
    }

    /// Refuses what no read or write could serve, as far as the headers tell: whoever looks at nothing else (a listing,
    /// a snapshot) says the same as who opens the image.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what was made for others than us; [`Error::Damaged`] for tables that contradict each
    /// other.
    pub fn check(&self, path: &Path) -> Result<()> {
        let unsupported =
            |why: &str| Err(Error::Unsupported { op: "opening a VHD", why: format!("{}: {why}", path.display()) });
        let damaged = |what: String| Err(Error::Damaged { path: path.to_owned(), what });
        let footer = &self.footer;
        if footer.is_poisoned() {
            return unsupported("a resize by another tool was interrupted; vhd-util revert undoes it");
        }
        if footer.format_version() >> 16 != 1 {
            return unsupported("its format is of a newer version");
        }
        let Some(header) = &self.header else { return Ok(()) };
        if u64::from(header.block_size()) > BLOCK {
            return unsupported("its blocks are of more than 2 MiB");
        }
        if footer.creator() == *super::footer::CREATOR
            && !(0x0001_0001..=0x0001_0003).contains(&footer.creator_version())
        {
            return unsupported("it is of a version of `tap` that is not 1.1 to 1.3");
        }
        let fits = |count: u32| count <= header.max_bat_size() && footer.size().is_multiple_of(SECTOR);
        if !blocks(footer.size(), u64::from(header.block_size())).is_some_and(fits) {
            return damaged(format!("a size of {} bytes does not fit its BAT", footer.size()));
        }
        if header.table_offset() < footer.data_offset() + HEADER && header.bat_end() > footer.data_offset() {
            return damaged("its BAT and its header overlap".to_owned());
        }
        Ok(())
    }

    /// The header of an image that must have one.
    pub fn header(&self, place: &dyn Storage) -> Result<&Header> {
        self.header.as_ref().ok_or_else(|| place.damaged("a fixed VHD has no header"))
    }

    pub fn info(&self) -> Info {
        let f = &self.footer;
        let parent = self.header.as_ref().filter(|_| self.kind == Kind::Differencing).map(|h| ParentInfo {
            uuid: Some(h.parent_uuid()).filter(|u| !u.is_nil()),
            name: h.parent_name(),
            timestamp: h.parent_time(),
        });
        Info {
            kind: self.kind,
            uuid: f.uuid(),
            virtual_size: f.size(),
            original_size: f.original_size(),
            hidden: f.hidden_byte() != 0,
            poisoned: f.is_poisoned(),
            creator: f.creator(),
            creator_version: f.creator_version(),
            timestamp: f.timestamp(),
            block_size: self.header.as_ref().map_or(0, Header::block_size),
            max_blocks: self.header.as_ref().map_or(0, Header::max_bat_size),
            parent,
        }
    }
}

/// The header that an image of libvhd or ours has, but for its parent and for room to grow.
fn usual_header(footer: &Footer) -> Option<Header> {
    let count = blocks(footer.size(), BLOCK)?;
    (footer.creator() == *super::footer::CREATOR).then(|| Header::new(count))
}

/// Refuses a file that was cut off, as one that came over a network may be: its last footer is missing. A crash may
/// leave such an image too, so those that are ours are opened without it.
///
/// # Errors
/// [`Error::Damaged`]; [`Error::Io`].
pub fn refuse_cut_off(place: &dyn Storage) -> Result<()> {
    let size = place.len()?;
    let mut end = [0; SECTOR as usize];
    let len = place.read_at(&mut end, size.saturating_sub(SECTOR)).map_err(place.fail("read"))?;
    footer_at_end(&end[..len]).map(drop).map_err(|what| place.damaged(what))
}

/// The footer in the last bytes of an image, up to 512 of them, or what is wrong with it.
pub(super) fn footer_at_end(end: &[u8]) -> Result<Footer, &'static str> {
    let mut short = [0; SECTOR as usize];
    if let Some(last) = end.len().checked_sub(short.len() - 1) {
        short[..SHORT].copy_from_slice(&end[last..]);
    }
    match Footer::parse(end).or_else(|| Footer::parse(&short)) {
        Some(footer) => Ok(footer),
        None if [end, &short].iter().any(|bytes| bytes.starts_with(COOKIE)) => {
            Err("the footer at its end is damaged: its checksum is wrong")
        }
        None => Err("there is no VHD footer at its end: it may be cut off"),
    }
}

/// Bytes of the footer that early writers left: its last one is missing, and 0.
const SHORT: usize = SECTOR as usize - 1;

/// Where the primary footer is and how many bytes of it there are.
pub(crate) fn last_footer_range(size: u64) -> Option<Range<u64>> {
    let len = if size % SECTOR == SHORT as u64 { SHORT as u64 } else { SECTOR };
    Some(size.checked_sub(len)?..size)
}

/// The primary footer: the last 512 bytes, or the 511 that early writers left.
pub(crate) fn last_footer(place: &dyn Storage) -> Result<Option<Footer>> {
    let Some(range) = last_footer_range(place.len()?) else { return Ok(None) };
    let mut bytes = [0; SECTOR as usize];
    place.get(&mut bytes[..(range.end - range.start) as usize], range.start)?;
    Ok(Footer::parse(&bytes))
}

/// Reads what the image says of itself: one read of 1,536 bytes for every image that is not fixed or damaged.
///
/// # Errors
/// [`Error::Io`]; [`Error::Damaged`] if no footer or no header is valid.
pub fn query(place: &dyn Storage) -> Result<Info> {
    read_whole(place).map(|meta| meta.info())
}

/// The headers of an image that was not cut off before the end of its BAT.
fn read_whole(place: &dyn Storage) -> Result<Meta> {
    let meta = Meta::read(place)?;
    if let Some(end) = meta.header.as_ref().map(Header::bat_end)
        && !place.had(end).map_err(place.fail("find the size of"))?
    {
        return Err(place.damaged(format!("it is cut off within the BAT, which ends at {end}")));
    }
    Ok(meta)
}

/// The base name of the parent that an image names, of a damaged image too: only the header itself has to be there, in its
/// usual place. Its checksum says whether it can be believed.
pub fn named_parent(place: &dyn Storage) -> NamedParent {
    let mut start = [0; (SECTOR + HEADER) as usize];
    let Ok(read) = place.read_at(&mut start, 0) else { return NamedParent::UNKNOWN };
    let bytes = &start[SECTOR as usize..read.max(SECTOR as usize)];
    let name = Header::unchecked(bytes).map(|header| header.parent_name());
    NamedParent { name: name.filter(|name| !name.is_empty()), is_certain: Header::parse(bytes).is_ok() }
}

/// [`query()`] of an image that is to be used: refuses what no read or write could serve, as far as these bytes tell.
///
/// # Errors
/// Those of [`query()`]; [`Error::Unsupported`] for what was made for others than us.
pub fn query_usable(place: &dyn Storage) -> Result<Info> {
    let meta = read_whole(place)?;
    meta.check(place.path())?;
    Ok(meta.info())
}

/// [`query_usable`] of an image that is to have a child: one more read finds out if it is encrypted, and its child
/// would not be.
///
/// # Errors
/// Those of [`query_usable`].
pub fn query_for_child(place: &dyn Storage) -> Result<Info> {
    let meta = read_whole(place)?;
    meta.check(place.path())?;
    if let Some(header) = &meta.header {
        let batmap = read_batmap_header(place, &meta.footer, header)?;
        refuse_encrypted(batmap.as_ref(), place.path())?;
    }
    Ok(meta.info())
}

/// Whether an image has no block. A file that ends behind its headers has room for none, so most images are told by two reads
/// that do not take in the BAT.
///
/// # Errors
/// Those of [`Image::open`].
pub fn is_blank(place: &Arc<dyn Storage>) -> Result<bool> {
    let meta = Meta::read(&**place)?;
    let Some(header) = &meta.header else { return Ok(false) };
    meta.check(place.path())?;
    if !place.is_device() {
        let batmap = read_batmap_header(&**place, &meta.footer, header)?;
        refuse_encrypted(batmap.as_ref(), place.path())?;
        let end = headers_end(place.path(), &meta.footer, header, batmap.as_ref())?;
        return Ok(place.len()? <= end + SECTOR);
    }
    Ok(Image::with(place.clone(), Mode::ReadOnly, Reading::Whole, meta)?.allocated().next().is_none())
}

pub(super) fn refuse_encrypted(batmap: Option<&BatmapHeader>, path: &Path) -> Result<()> {
    match batmap {
        Some(batmap) if batmap.is_encrypted() => {
            Err(Error::Unsupported { op: "opening a VHD", why: format!("{}: it is encrypted", path.display()) })
        }
        _ => Ok(()),
    }
}

/// Blocks of `block` bytes in a disk of `size` bytes, `None` if there are more than any VHD has that is opened.
pub(crate) fn blocks(size: u64, block: u64) -> Option<u32> {
    let count = size.div_ceil(block);
    (size <= MAX_READ_SIZE && count <= MAX_BLOCKS).then_some(count as u32)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{FileStorage, Image, NewImage, create, create_fixed};
    use super::*;
    use crate::types::Mode;

    fn place() -> Arc<dyn Storage> {
        Arc::new(FileStorage::new(tempfile::tempfile().unwrap(), "test.vhd").unwrap())
    }

    #[test]
    fn either_footer_will_do() {
        let place = place();
        let info = create(&*place, &NewImage::new(100 << 20)).unwrap();
        assert_eq!((info.virtual_size, info.max_blocks, info.block_size), (100 << 20, 50, 2 << 20));
        let size = place.len().unwrap();
        let mut footer = [0; 512];
        place.get(&mut footer, 0).unwrap();
        place.put(&[0; 512], 0).unwrap();
        assert_eq!(query(&*place).unwrap(), info);
        place.put(&footer, 0).unwrap();
        place.put(&[0; 512], size - 512).unwrap();
        assert_eq!(query(&*place).unwrap(), info);
        place.put(&[0; 512], 0).unwrap();
        assert!(query(&*place).unwrap_err().to_string().contains("no valid VHD footer"));
    }

    #[test]
    fn the_footer_of_511_bytes_is_read() {
        let place = place();
        let info = create_fixed(&*place, &NewImage::new(2 << 20)).unwrap();
        assert_eq!((info.kind, info.max_blocks), (Kind::Fixed, 0));
        place.resize_to((2 << 20) + 511).unwrap();
        assert_eq!(query(&*place).unwrap(), info);
    }

    #[test]
    fn a_poisoned_image_can_only_be_looked_at() {
        let place = place();
        create(&*place, &NewImage::new(2 << 20)).unwrap();
        let mut footer = [0; 512];
        place.get(&mut footer, 0).unwrap();
        footer[..8].copy_from_slice(super::super::footer::POISON);
        let sum = super::super::byte_sum(&footer) - super::super::byte_sum(&footer[0x40..0x44]);
        super::super::put32(&mut footer, 0x40, !sum);
        place.put(&footer, 0).unwrap();
        assert!(query(&*place).unwrap().poisoned);
        assert!(Image::open(place, Mode::ReadOnly).unwrap_err().to_string().contains("revert"));
    }
}
