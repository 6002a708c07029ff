//! Changes to the headers of an image: hidden, parent.

use std::io;

use super::create::ParentLink;
use super::locator::Encoded;
use super::query::{Meta, last_footer, last_footer_range};
use super::{Kind, SECTOR, Storage};
use crate::error::{Error, Result};
use crate::types::Done;

/// Hides an image, or shows it again.
///
/// 1. Write the primary footer, if there is one (an image in use has none or an outgrown one).
/// 2. Write the backup footer, which is what everybody asks; sync.
///
/// A crash between them leaves the old word in force; call it again. If there is no space left for 1 (thin
/// substrates), hiding goes on with 2 alone, so that a full SR can still delete.
///
/// No other process may write to the image: a block allocated at this moment would lie where 1 writes.
///
/// # Errors
/// [`Error::Io`], [`Error::Damaged`].
pub fn set_hidden(place: &dyn Storage, hidden: bool) -> Result<Done> {
    let meta = Meta::read(place)?;
    let size = place.len()?;
    let last = last_footer(place)?.filter(|f| f.uuid() == meta.footer.uuid() && Some(meta.kind) == f.kind());
    let wanted = u8::from(hidden);
    if meta.footer.hidden_byte() == wanted && last.as_ref().is_none_or(|f| f.hidden_byte() == wanted) {
        // The call that wrote this word may have been killed before the word was durable.
        place.flush()?;
        return Ok(Done::Already);
    }
    if let (Some(mut footer), Some(range)) = (last, last_footer_range(size)) {
        footer.set_hidden(hidden);
        match place.write_at(&footer.0[..(range.end - range.start) as usize], range.start) {
            Err(e) if hidden && e.kind() == io::ErrorKind::StorageFull && meta.kind != Kind::Fixed => {}
            other => other.map_err(place.fail("write"))?,
        }
    }
    if meta.kind != Kind::Fixed {
        let mut footer = meta.footer;
        footer.set_hidden(hidden);
        place.put(&footer.0, 0)?;
    }
    place.flush()?;
    Ok(Done::Changed)
}

/// Makes another image the parent of a differencing image. The new parent must hold everything that the chain
/// below the child held: nothing is copied.
///
/// 1. Write each path that the image has a locator for into the locator's space; sync.
/// 2. Write the header: those of its two sectors that change, in one write; sync.
///
/// A crash before 2 leaves the old parent, with locators that lead elsewhere: nothing here follows them, and
/// tapdisk compares UUIDs and refuses; call it again. 2 is one sector, and so atomic, if the paths of both
/// parents have the same length, as they have in an SR; otherwise a disk that tears 1,024 bytes can leave a
/// header of wrong checksum.
///
/// # Errors
/// [`Error::Invalid`] if the path cannot be stored, or does not fit the space that the image has for it;
/// [`Error::Unsupported`] if it is not a differencing image; [`Error::Damaged`], also if it would be its own parent;
/// [`Error::Io`].
pub fn set_parent(place: &dyn Storage, parent: &ParentLink) -> Result<Done> {
    let meta = Meta::read(place)?;
    if meta.kind != Kind::Differencing {
        return Err(Error::Unsupported {
            op: "changing the parent of a VHD",
            why: format!("{} has no parent", place.path().display()),
        });
    }
    if parent.uuid == Some(meta.footer.uuid()) {
        return Err(place.damaged("it would become its own parent"));
    }
    let old = meta.header(place)?;
    let encoded = Encoded::new(&parent.path)?;
    let mut new = old.clone();
    new.set_parent(parent.uuid.unwrap_or_default(), parent.timestamp, encoded.name());
    let mut texts = Vec::new();
    for (slot, mut locator) in old.locators() {
        let Some(platform) = locator.platform() else { continue };
        let text = encoded.get(platform);
        let space = locator.space().ok_or_else(|| place.damaged("a parent locator of impossible size"))?;
        if text.len() as u64 > space || locator.offset < SECTOR || locator.offset >= 1 << 42 {
            return Err(Error::Invalid {
                what: "path of a parent image",
                value: parent.path.clone(),
                expected: format!("the image has {space} bytes for it"),
            });
        }
        let mut bytes = text.to_vec();
        bytes.resize((text.len() as u64).next_multiple_of(SECTOR) as usize, 0);
        texts.push((locator.offset, bytes));
        locator.len = text.len() as u32;
        new.set_locator(slot, &locator);
    }
    if new == *old {
        // As above; the caller removes the former parent next.
        place.flush()?;
        return Ok(Done::Already);
    }
    for (offset, bytes) in &texts {
        place.put(bytes, *offset)?;
    }
    place.flush()?;
    let changed = |s: &usize| old.0[s * 512..][..512] != new.0[s * 512..][..512];
    let first = (0..2).find(changed).unwrap_or(0);
    let last = (0..2).rfind(changed).unwrap_or(1);
    place.put(&new.0[first * 512..(last + 1) * 512], meta.footer.data_offset() + first as u64 * SECTOR)?;
    place.flush()?;
    Ok(Done::Changed)
}
