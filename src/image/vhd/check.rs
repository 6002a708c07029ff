//! Checking an image, and repairing what can be.

use std::sync::Arc;

use uuid::Uuid;

use super::batmap::map_bytes;
use super::bitmap::Bitmap;
use super::footer::{CREATOR, CREATOR_VERSION, Footer, Kind, NO_OFFSET, now};
use super::image::{Image, data_offset};
use super::query::{Info, Meta, last_footer};
use super::{BLOCK, SECTOR, SECTORS, Storage};
use crate::error::Result;
use crate::image::fault::Fault;
use crate::types::Mode;

/// The options of [`check()`]: what it looks at beyond the headers and tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions<'a> {
    /// The image may be in use, and so without a footer at its end.
    pub in_use: bool,
    /// Read the bitmap of every block that the batmap calls full.
    pub bitmaps: bool,
    /// The facts that the parent tells of itself, to compare with what the child says of the parent.
    pub parent: Option<&'a Info>,
}

/// Problems of a kind that are listed.
const MOST: usize = 100;

/// A clock may be so many seconds behind that of the image's maker.
const CLOCK_SKEW: u32 = 1800;

/// Says what is wrong with an image; an empty list means nothing is.
///
/// The rules are those of `vhd-util check`, except that a geometry that is too big, which `qemu-img` writes, is
/// none: no reader of these images uses it.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) alone: what is wrong with the image is in the list.
pub fn check(place: &Arc<dyn Storage>, options: CheckOptions) -> Result<Vec<Fault>> {
    let mut found = Vec::new();
    match look(place, options, &mut found) {
        Ok(()) => Ok(found),
        Err(crate::Error::Damaged { what, .. }) => {
            found.push(Fault::lasting(what));
            Ok(found)
        }
        Err(crate::Error::Unsupported { why, .. }) => {
            found.push(Fault::lasting(why));
            Ok(found)
        }
        Err(error) => Err(error),
    }
}

fn look(place: &Arc<dyn Storage>, options: CheckOptions, found: &mut Vec<Fault>) -> Result<()> {
    let p = &**place;
    let meta = Meta::read(p)?;
    let mut say =
        |wrong: bool, fault: fn(&'static str) -> Fault, what: &'static str| found.extend(wrong.then(|| fault(what)));
    let (note, mendable, lasting) = (Fault::note, Fault::mendable, Fault::lasting);
    let f = &meta.footer;
    let sparse = meta.kind != Kind::Fixed;
    if !options.in_use {
        match last_footer(p)? {
            None => say(true, mendable, "the footer at the end is missing or damaged"),
            Some(last) => say(sparse && last != *f, mendable, "the two footers differ"),
        }
    }
    if sparse {
        let mut first = [0; 512];
        p.get(&mut first, 0)?;
        say(Footer::parse(&first).is_none(), mendable, "the footer at the start is missing or damaged");
    }
    say(f.features() & 2 == 0 || f.features() & !3 != 0, note, "unknown features are set");
    say(f.format_version() != 0x0001_0000, note, "the footer is of an unknown version");
    say(!sparse && f.data_offset() != NO_OFFSET, note, "a fixed image has a data offset");
    say(f.timestamp() > now().saturating_add(CLOCK_SKEW), note, "it was made in the future");
    say(f.creator() == *CREATOR && f.creator_version() > CREATOR_VERSION, note, "it is of a version newer than 1.3");
    say(f.saved() > 1 || f.hidden_byte() > 1, note, "a flag is neither 0 nor 1");
    say(f.0[0x56..].iter().any(|b| *b != 0), note, "reserved bytes of the footer are set");
    say(f.uuid().is_nil(), mendable, "the UUID is nil");
    let Some(h) = meta.header.as_ref() else { return Ok(()) };
    say(meta.torn, mendable, "the header is torn, and can be completed");
    say(h.has_reserved(), note, "reserved bytes of the header are set");
    say(meta.kind == Kind::Dynamic && !h.is_orphan(), note, "it names a parent and is no differencing image");
    say(h.table_offset() < f.data_offset() + 1024 && h.bat_end() > f.data_offset(), lasting, "BAT and header overlap");
    let mut seen = Vec::new();
    for (_, locator) in h.locators() {
        say(!locator.is_known(), note, "a parent locator is of an unknown kind");
        say(seen.contains(&locator.code), note, "there are two parent locators of a kind");
        seen.push(locator.code);
        if locator.platform().is_some() {
            let path = locator.read(p)?;
            let base = path.rsplit('/').next().unwrap_or_default();
            say(base != h.parent_name(), note, "a parent locator and the parent's name differ");
        }
    }
    if meta.kind == Kind::Differencing {
        say(seen.is_empty(), note, "there is no parent locator");
        if let Some(parent) = options.parent {
            say(!h.parent_uuid().is_nil() && parent.uuid != h.parent_uuid(), lasting, "the parent is another image");
        }
    }
    let image = Image::open(place.clone(), Mode::ReadOnly)?;
    tables(&image, options, found)
}

fn tables(image: &Image, options: CheckOptions, found: &mut Vec<Fault>) -> Result<()> {
    let place = &**image.place();
    let footer = image.footer();
    let size = place.len()?;
    let entries = image.allocated().map(|(block, entry)| (entry, block));
    if let Some((entry, block)) = entries.max() {
        // Of an image in use, or one that was, the last block may be cut off, or reach to the end.
        let footer = u64::from(last_footer(place)?.is_some()) * SECTOR;
        let limit = if options.in_use { size.saturating_add(image.block_size()) } else { size - footer };
        if data_offset(entry) + image.block_size() > limit {
            found.push(Fault::lasting(format!("block {block} reaches past the end")));
        }
    }
    if !footer.may_have_batmap() || image.block_size() != BLOCK {
        return Ok(());
    }
    let Some(batmap) = image.batmap() else {
        found.push(Fault::note("the batmap header is damaged"));
        return Ok(());
    };
    if u64::from(batmap.sectors()) * SECTOR * 8 < u64::from(image.header().max_bat_size()) {
        found.push(Fault::note("the batmap is too short"));
    }
    let Some(map) = batmap.read_map(place, footer.size())? else {
        found.push(Fault::mendable("the checksum of the batmap is wrong"));
        return Ok(());
    };
    for block in 0..(map_bytes(footer.size()) * 8) as u32 {
        if found.len() > 2 * MOST {
            break;
        }
        if map[block as usize / 8] & (0x80 >> (block % 8)) == 0 {
            continue;
        }
        let Some(entry) = image.entry(block) else {
            found.push(Fault::lasting(format!("the batmap calls block {block} full and it is not there")));
            continue;
        };
        if options.bitmaps {
            let mut bytes = [0; 512];
            place.get(&mut bytes, u64::from(entry) * SECTOR)?;
            if !Bitmap::from_bytes(&bytes).is_full(SECTORS) {
                found.push(Fault::lasting(format!("the batmap calls block {block} full and it is not")));
            }
        }
    }
    Ok(())
}

/// Mends what a crash or another tool left of an image that nobody has open:
///
/// 1. A torn header is completed from its intent record.
/// 2. The footer that is valid (the backup one if both are) is written to both places, a nil UUID being replaced
///    by a random one; a file then ends behind it. Sync.
/// 3. A batmap of wrong checksum is made anew from the bitmaps; [`Image::close`] tells how.
///
/// Each step leaves a valid image; call it again after a crash.
///
/// # Errors
/// [`Error::Damaged`](crate::Error::Damaged) if there is no valid footer or header, or the BAT is wrong;
/// [`Error::Io`](crate::Error::Io).
pub fn repair(place: &Arc<dyn Storage>) -> Result<()> {
    let p = &**place;
    let meta = Meta::read(p)?;
    let mut footer = meta.footer.clone();
    if footer.uuid().is_nil() {
        footer.set_uuid(Uuid::new_v4());
    }
    if meta.kind == Kind::Fixed {
        let size = p.len()?;
        let end = if p.is_device() { size - SECTOR } else { size.next_multiple_of(SECTOR) - SECTOR };
        p.put(&footer.0, end)?;
        return p.flush();
    }
    let image = Image::open(place.clone(), Mode::ReadWrite)?;
    p.put(&footer.0, 0)?;
    if p.is_device() {
        p.put(&footer.0, p.len()? - SECTOR)?;
    } else {
        let end = image.physical_size() - SECTOR;
        p.put(&footer.0, end)?;
        p.resize_to(end + SECTOR)?;
    }
    p.flush()?;
    if image.batmap_is_stale() {
        for block in 0..image.blocks() {
            image.lookup(block)?;
        }
        image.close()?;
    }
    Ok(())
}
