//! Growing an image. It must not be open anywhere else.
//!
//! Within what the BAT has room for ([`super::Info::max_blocks`]), steps 7 and 8 are all. Beyond, BAT, batmap and
//! locators need space that blocks may occupy and that they occupy themselves; nothing is overwritten that is in
//! force:
//!
//! 1. Copy the blocks that are in the way behind the end of data, with a footer behind them; sync. *The copies are
//!    unused.*
//! 2. Write their BAT entries; sync. *Each block is at its old or its new place.*
//! 3. Write all tables of the new length behind where they are to end up: BAT, batmap, locators; sync. *Nothing leads
//!    there.*
//! 4. Replace the header (`intent.rs`). *The old or the new tables are in force; a torn header is completed from the
//!    intent record.*
//! 5. Write the tables once more to where they belong, behind the header, where nothing is in force now; sync. *As
//!    before.*
//! 6. Replace the header. *As in 4.*
//! 7. Write "unused" into BAT entries, and zero into parts of the batmap, that the new size brings into force and
//!    that are not so; sync. *As before.*
//! 8. Write the primary footer with the new size, then the backup footer; sync. *The backup footer decides: old
//!    size or new.*
//!
//! If nothing lies behind the BAT (no batmap, no locators), 5 and 6 do the work of 3 and 4. If the sectors that the BAT
//! has hold the new entries as well, as they do up to the next multiple of 128 blocks, the entries are written there
//! first, and one sector of the header says so.
//!
//! After a crash anywhere the image is valid, with its old size, or its new one, and every entry of its BAT is true,
//! those past the size included: other tools read them all. Growing it again goes on.

use std::sync::Arc;

use super::batmap::{BatmapHeader, map_bytes, map_sectors};
use super::create::check_size;
use super::header::{HEADER, Header};
use super::image::{Image, headers_end};
use super::intent::replace_header;
use super::query::blocks;
use super::{BLOCK, SECTOR, Storage};
use crate::error::{Error, Result};
use crate::types::{Done, Mode, Size};

/// Bytes; what is copied of a locator. libvhd writes up to 2 KiB.
const LONGEST_LOCATOR: u64 = 64 << 10;

/// Grows a dynamic or differencing image to `size` bytes.
///
/// # Errors
/// [`Error::Invalid`] for a size that is smaller than the present one or not a multiple of 512;
/// [`Error::TooBig`] above 2,040 GiB; those of [`Image::open`].
pub fn resize(place: &Arc<dyn Storage>, size: u64) -> Result<Done> {
    check_size("virtual size", size)?;
    let image = Image::open(place.clone(), Mode::ReadWrite)?;
    let now = image.virtual_size();
    if size < now {
        return Err(Error::Invalid {
            what: "virtual size",
            value: size.to_string(),
            expected: format!("{} has {now} bytes and cannot shrink", place.path().display()),
        });
    }
    if size == now {
        return Ok(Done::Already);
    }
    let wanted = blocks(size, image.block_size()).ok_or_else(|| Error::TooBig {
        what: "virtual size",
        bytes: size,
        limit: format!("{} has blocks of {}", place.path().display(), Size(image.block_size())),
    })?;
    let image = if wanted > image.header().max_bat_size() {
        grow_tables(&image, wanted)?;
        Image::open(place.clone(), Mode::ReadWrite)?
    } else {
        image
    };
    prepare(&image, wanted, size)?;
    let mut footer = image.footer().clone();
    footer.set_size(size);
    let end = image.physical_size() - SECTOR;
    if place.is_device() {
        place.put(&footer.0, place.len()? - SECTOR)?;
    } else {
        place.put(&footer.0, end)?;
        place.resize_to(end + SECTOR)?;
    }
    place.flush()?;
    place.put(&footer.0, 0)?;
    place.flush()?;
    Ok(Done::Changed)
}

/// Step 7.
fn prepare(image: &Image, wanted: u32, size: u64) -> Result<()> {
    let place = &**image.place();
    let mut changed = false;
    let mut entries = vec![0; (wanted - image.blocks()) as usize * 4];
    let at = image.header().table_offset() + u64::from(image.blocks()) * 4;
    place.get(&mut entries, at)?;
    if entries.iter().any(|b| *b != 0xff) {
        entries.fill(0xff);
        place.put(&entries, at)?;
        changed = true;
    }
    if let Some(batmap) = image.batmap() {
        let old = map_bytes(image.virtual_size());
        let new = map_bytes(size).min(batmap.sectors() as usize * SECTOR as usize).max(old);
        let mut rest = vec![0; new - old];
        place.get(&mut rest, batmap.map_offset() + old as u64)?;
        if rest.iter().any(|b| *b != 0) {
            rest.fill(0);
            place.put(&rest, batmap.map_offset() + old as u64)?;
            changed = true;
        }
    }
    if changed { place.flush() } else { Ok(()) }
}

/// Where the tables go: BAT, batmap, locators, in this order.
struct Layout {
    header: Header,
    batmap: Option<BatmapHeader>,
    /// Slot and space in bytes of each locator; its offset is in `header`.
    locators: Vec<(usize, u64)>,
    end: u64,
}

impl Layout {
    /// The layout that is in force.
    fn now(image: &Image) -> Layout {
        let (header, batmap) = (image.header().clone(), image.batmap().cloned());
        Layout { header, batmap, locators: Vec::new(), end: image.headers_end() }
    }

    /// Tables of so many entries, one behind the other from byte `at`.
    fn new(image: &Image, at: u64, entries: u32) -> Result<Layout> {
        let mut header = image.header().clone();
        header.set_table_offset(at);
        header.set_max_bat_size(entries);
        let mut end = header.bat_end();
        let batmap = image.batmap().map(|old| {
            let new = old.moved(header.bat_end() + SECTOR, map_sectors(entries));
            end = new.end();
            new
        });
        let mut locators = Vec::new();
        for (slot, mut locator) in image.header().locators() {
            let space = locator.space().filter(|space| *space <= LONGEST_LOCATOR);
            let space = space.ok_or_else(|| image.place().damaged("a parent locator of impossible size"))?;
            locators.push((slot, space));
            locator.offset = end;
            end += space;
            header.set_locator(slot, &locator);
        }
        let end = end.max(headers_end(image.place().path(), image.footer(), &header, batmap.as_ref())?);
        Ok(Layout { header, batmap, locators, end })
    }

    /// Writes the tables, batmap and locators as `from` has them, then puts this layout in force.
    fn establish(&self, image: &Image, from: &Layout, data_end: u64) -> Result<()> {
        let place = &**image.place();
        put_bat(
            image,
            &self.header,
            if from.header.table_offset() == self.header.table_offset() { image.blocks() } else { 0 },
        )?;
        if let (Some(old), Some(new)) = (&from.batmap, &self.batmap) {
            let mut map = vec![0; map_bytes(image.virtual_size())];
            place.get(&mut map, old.map_offset())?;
            map.resize(new.sectors() as usize * SECTOR as usize, 0);
            place.put(&new.0, self.header.bat_end())?;
            place.put(&map, new.map_offset())?;
        }
        for (slot, space) in &self.locators {
            let offset = |l: &Layout| l.header.locators().find(|(s, _)| s == slot).map_or(0, |(_, l)| l.offset);
            let mut text = vec![0; *space as usize];
            place.get(&mut text, offset(from))?;
            place.put(&text, offset(self))?;
        }
        place.flush()?;
        replace_header(place, image.footer(), data_end, &from.header, &self.header)
    }
}

/// Writes the BAT of `header` from entry `first` on: "unused" past those that the image has, and zeros up to the end of
/// the last sector.
fn put_bat(image: &Image, header: &Header, first: u32) -> Result<()> {
    let mut bytes = vec![0xff; (header.max_bat_size() - first) as usize * 4];
    for (block, entry) in image.allocated().filter(|(block, _)| *block >= first) {
        let at = (block - first) as usize * 4;
        bytes[at..at + 4].copy_from_slice(&entry.to_be_bytes());
    }
    let start = u64::from(first) * 4;
    bytes.resize((header.bat_bytes() - start) as usize, 0);
    image.place().put(&bytes, header.table_offset() + start)
}

/// Steps 1 to 6: makes room for a BAT of `wanted` entries.
fn grow_tables(image: &Image, wanted: u32) -> Result<()> {
    let place = &**image.place();
    let old = Layout::now(image);
    let mut longer = old.header.clone();
    longer.set_max_bat_size(wanted);
    let map_is_long_enough = old.batmap.as_ref().is_none_or(|batmap| batmap.sectors() >= map_sectors(wanted));
    if longer.bat_bytes() == old.header.bat_bytes() && map_is_long_enough {
        put_bat(image, &longer, image.blocks())?;
        place.flush()?;
        return replace_header(place, image.footer(), image.physical_size() - SECTOR, &old.header, &longer);
    }
    let home = image.footer().data_offset() + HEADER;
    let unsupported =
        |why: &str| Err(Error::Unsupported { op: "growing it", why: format!("{}: {why}", place.path().display()) });
    if old.header.table_offset() < home {
        return unsupported("its header lies behind its BAT");
    }
    if image.block_size() != BLOCK && image.footer().may_have_batmap() {
        return unsupported("it has a batmap, and blocks that are not of 2 MiB");
    }
    let last = Layout::new(image, home, wanted)?;
    let nothing_behind = old.header.table_offset() == home && old.end == old.header.bat_end();
    let aside = match nothing_behind {
        true => None,
        false => Some(Layout::new(image, last.end.max(old.end), wanted)?),
    };
    let data_end = move_blocks(image, aside.as_ref().unwrap_or(&last).end)?;
    match aside {
        Some(aside) => {
            aside.establish(image, &old, data_end)?;
            last.establish(image, &aside, data_end)?;
        }
        None => last.establish(image, &old, data_end)?,
    }
    // Give back what the moved blocks left behind the tables.
    let first = image.allocated().map(|(_, entry)| entry).min().map_or(0, |entry| u64::from(entry) * SECTOR);
    if !place.is_device() && first > last.end && data_end > last.end {
        let len = first.min(data_end) - last.end;
        place.punch(last.end, len).map_err(place.fail("discard in"))?;
    }
    Ok(())
}

/// Steps 1 and 2: moves the blocks that start before `room`; returns the end of data.
fn move_blocks(image: &Image, room: u64) -> Result<u64> {
    let place = &**image.place();
    let in_the_way = image.allocated().filter(|(_, entry)| u64::from(*entry) * SECTOR < room);
    let in_the_way: Vec<u32> = in_the_way.map(|(block, _)| block).collect();
    for block in &in_the_way {
        image.relocate(*block, room)?;
    }
    let end = (image.physical_size() - SECTOR).max(room);
    if !place.is_device() {
        place.put(&image.footer().0, end)?;
        place.resize_to(end + SECTOR)?;
    } else if end + SECTOR > place.len()? {
        return Err(place.fail("find room for longer tables in")(std::io::Error::from_raw_os_error(nix::libc::ENOSPC)));
    }
    place.flush()?;
    image.publish_bat(&in_the_way)?;
    Ok(end)
}
