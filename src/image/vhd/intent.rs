//! The intent record: both versions of the header, while it changes in both of its sectors.
//!
//! A header has 1,024 bytes and a disk promises to write 512 at once. Where a change touches one sector only,
//! as the change of a parent to a name of the same length does, it is atomic by itself. A resize that moves the
//! locators touches both; the record then stands in the last sectors of the place, before its footer, from
//! before the header is written until after, so that whoever finds the header torn knows what it was meant to be.
//!
//! | bytes | content |
//! |---|---|
//! | 0 | cookie `vhintent` |
//! | 8 | UUID of the image |
//! | 24 | checksum: one's complement of the byte sum of the record, this field as 0 |
//! | 512 | the old header |
//! | 1,536 | the new header |

use super::footer::Footer;
use super::header::{HEADER, Header};
use super::{SECTOR, Storage, be32, byte_sum, put32};
use crate::error::Result;

const COOKIE: &[u8; 8] = b"vhintent";
/// Bytes.
pub const RECORD: u64 = SECTOR + 2 * HEADER;

fn seal(record: &[u8]) -> u32 {
    !byte_sum(record).wrapping_sub(byte_sum(&record[24..28]))
}

/// Replaces the header at `footer.data_offset()` so that a crash leaves the old or the new one. `end` is the
/// end of data, bytes. The image must not be open anywhere else.
///
/// 1. Write the record behind everything else and, in a file, a footer behind it; sync.
/// 2. Write the header; sync. Torn: [`recover`] finds the record and says "new".
/// 3. Take the record away. Left behind, it does no harm: it speaks only of a header that is torn.
pub(crate) fn replace_header(place: &dyn Storage, footer: &Footer, end: u64, old: &Header, new: &Header) -> Result<()> {
    let at = footer.data_offset();
    let changed: Vec<usize> = (0..2).filter(|s| old.0[s * 512..][..512] != new.0[s * 512..][..512]).collect();
    if let [one] = changed[..] {
        place.put(&new.0[one * 512..][..512], at + one as u64 * SECTOR)?;
        return place.flush();
    }
    let mut record = vec![0; RECORD as usize];
    record[..8].copy_from_slice(COOKIE);
    record[8..24].copy_from_slice(footer.uuid().as_bytes());
    record[512..1536].copy_from_slice(&old.0);
    record[1536..].copy_from_slice(&new.0);
    let sum = seal(&record);
    put32(&mut record, 24, sum);

    let size = place.len()?;
    if place.is_device() {
        let room = (size.saturating_sub(SECTOR + RECORD)).max(end);
        if room + RECORD + SECTOR > size {
            return Err(place.fail("find room for an intent record in")(std::io::Error::from_raw_os_error(
                nix::libc::ENOSPC,
            )));
        }
        place.put(&record, size - SECTOR - RECORD)?;
    } else {
        record.extend_from_slice(&footer.0);
        place.put(&record, size)?;
    }
    place.flush()?;
    place.put(&new.0, at)?;
    place.flush()?;
    if place.is_device() { place.put(&[0; 512], size - SECTOR - RECORD) } else { place.resize_to(size) }
}

/// The header that a torn one was to become; `None` if there is no record, or if the record is about something else.
pub(crate) fn recover(place: &dyn Storage, footer: &Footer, torn: &[u8]) -> Result<Option<Header>> {
    let size = place.len()?;
    if size < SECTOR + RECORD || torn.len() != HEADER as usize {
        return Ok(None);
    }
    let mut record = vec![0; RECORD as usize];
    place.get(&mut record, size - SECTOR - RECORD)?;
    if &record[..8] != COOKIE || record[8..24] != *footer.uuid().as_bytes() || be32(&record, 24) != seal(&record) {
        return Ok(None);
    }
    let (old, new) = record[512..].split_at(HEADER as usize);
    let mixed = torn.chunks(512).zip(old.chunks(512).zip(new.chunks(512))).all(|(t, (o, n))| t == o || t == n);
    Ok(if mixed { Header::parse(new).ok() } else { None })
}
