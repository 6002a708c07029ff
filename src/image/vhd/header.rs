//! The dynamic header: 1,024 bytes that say where the block allocation table (BAT) is, how long it is, and
//! who the parent is. VHD specification, "Dynamic Disk Header Format".

use uuid::Uuid;

use super::footer::NO_OFFSET;
use super::locator::{self, Locator, Platform};
use super::{BLOCK, SECTOR, be32, be64, byte_sum, ceil_sector, put32, put64};

pub const COOKIE: &[u8; 8] = b"cxsparse";
/// Bytes.
pub const HEADER: u64 = 1024;
/// Locator entries start here and are 24 bytes each.
const LOCATORS: usize = 0x240;
/// Parent name: 256 UTF-16 units, big endian, zero padded.
const NAME: std::ops::Range<usize> = 0x40..0x240;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header(pub [u8; HEADER as usize]);

impl Header {
    /// A header without parent for a table of `entries` blocks right behind it.
    pub fn new(entries: u32) -> Self {
        let mut h = Header([0; 1024]);
        h.0[..8].copy_from_slice(COOKIE);
        put64(&mut h.0, 0x08, NO_OFFSET);
        put64(&mut h.0, 0x10, SECTOR + HEADER);
        put32(&mut h.0, 0x18, 0x0001_0000);
        put32(&mut h.0, 0x1c, entries);
        put32(&mut h.0, 0x20, BLOCK as u32);
        h.seal();
        h
    }

    /// Takes a header whose cookie, checksum, version and offsets are sound; otherwise says what is not.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let raw = bytes.get(..1024).and_then(|b| b.try_into().ok()).ok_or("the header is cut off")?;
        let h = Header(raw);
        if &h.0[..8] != COOKIE {
            return Err("the header has no cookie");
        }
        if be32(&h.0, 0x24) != h.checksum() {
            return Err("the checksum of the header is wrong");
        }
        if be64(&h.0, 0x08) != NO_OFFSET || be32(&h.0, 0x18) != 0x0001_0000 {
            return Err("the header is of an unknown version");
        }
        if !h.block_size().is_power_of_two() || h.block_size() < 512 {
            return Err("the block size is no power of two from 512 on");
        }
        // A file ends below 2^41; anything above could only overflow sums.
        if !h.table_offset().is_multiple_of(SECTOR) || h.table_offset() < SECTOR || h.table_offset() >= 1 << 42 {
            return Err("the BAT lies at an impossible offset");
        }
        Ok(h)
    }

    /// Takes whatever has the cookie of a header, to read what is left of a damaged one.
    pub fn unchecked(bytes: &[u8]) -> Option<Self> {
        let raw = bytes.get(..1024).and_then(|b| b.try_into().ok())?;
        Some(Header(raw)).filter(|header| &header.0[..8] == COOKIE)
    }

    fn checksum(&self) -> u32 {
        !byte_sum(&self.0).wrapping_sub(byte_sum(&self.0[0x24..0x28]))
    }

    fn seal(&mut self) {
        let sum = self.checksum();
        put32(&mut self.0, 0x24, sum);
    }

    /// Bytes from the start of the image to the BAT.
    pub fn table_offset(&self) -> u64 {
        be64(&self.0, 0x10)
    }
    /// Entries the BAT has room for; those past the current size are in reserve.
    pub fn max_bat_size(&self) -> u32 {
        be32(&self.0, 0x1c)
    }
    pub fn block_size(&self) -> u32 {
        be32(&self.0, 0x20)
    }
    /// Bytes the BAT takes.
    pub fn bat_bytes(&self) -> u64 {
        ceil_sector(u64::from(self.max_bat_size()) * 4)
    }
    /// Bytes from the start of the image to the end of the BAT, where the batmap header is if there is one:
    /// nothing points to it.
    pub fn bat_end(&self) -> u64 {
        self.table_offset() + self.bat_bytes()
    }
    /// UUID in the parent's footer; nil for a raw parent, and in images that have none.
    pub fn parent_uuid(&self) -> Uuid {
        Uuid::from_slice(&self.0[0x28..0x38]).expect("16 bytes")
    }
    /// The parent's modification time, seconds since 2000. The time is never checked.
    pub fn parent_time(&self) -> u32 {
        be32(&self.0, 0x38)
    }
    /// Base name of the parent's file; what is not UTF-16 shows as U+FFFD. Foreign words: check before use.
    pub fn parent_name(&self) -> String {
        let units = self.0[NAME].chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        char::decode_utf16(units.take_while(|u| *u != 0)).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }

    /// The locators in use, each with its slot.
    pub fn locators(&self) -> impl Iterator<Item = (usize, Locator)> + '_ {
        (0..8).filter_map(|slot| {
            let e = &self.0[LOCATORS + slot * 24..][..24];
            let code = be32(e, 0);
            (code != 0).then(|| (slot, Locator { code, space_field: be32(e, 4), len: be32(e, 8), offset: be64(e, 16) }))
        })
    }

    pub fn set_locator(&mut self, slot: usize, locator: &Locator) {
        let e = &mut self.0[LOCATORS + slot * 24..][..24];
        put32(e, 0, locator.code);
        put32(e, 4, locator.space_field);
        put32(e, 8, locator.len);
        put32(e, 12, 0);
        put64(e, 16, locator.offset);
        self.seal();
    }

    /// Names the parent. `name` is ASCII and fits ([`locator::Encoded::new`] saw to it).
    pub fn set_parent(&mut self, uuid: Uuid, time: u32, name: &str) {
        self.0[0x28..0x38].copy_from_slice(uuid.as_bytes());
        put32(&mut self.0, 0x38, time);
        self.0[NAME].fill(0);
        for (slot, unit) in self.0[NAME].chunks_exact_mut(2).zip(name.encode_utf16()) {
            slot.copy_from_slice(&unit.to_be_bytes());
        }
        self.seal();
    }

    pub fn set_table_offset(&mut self, offset: u64) {
        put64(&mut self.0, 0x10, offset);
        self.seal();
    }

    pub fn set_max_bat_size(&mut self, entries: u32) {
        put32(&mut self.0, 0x1c, entries);
        self.seal();
    }

    /// True if a reserved byte is set.
    pub fn has_reserved(&self) -> bool {
        be32(&self.0, 0x3c) != 0 || self.0[0x300..].iter().any(|b| *b != 0)
    }

    /// True if nothing of a parent is set: what a dynamic image must show.
    pub fn is_orphan(&self) -> bool {
        self.0[0x28..0x3c].iter().chain(&self.0[0x40..0x300]).all(|b| *b == 0)
    }

    /// Writes three locators, one after the other from `offset`, into the slots 0 to 2 as libvhd does;
    /// returns their bytes.
    pub fn place_locators(&mut self, encoded: &locator::Encoded, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (slot, platform) in [Platform::MacX, Platform::W2ku, Platform::W2ru].into_iter().enumerate() {
            let text = encoded.get(platform);
            let space = ceil_sector(text.len() as u64);
            let at = offset + bytes.len() as u64;
            let entry =
                Locator { code: platform as u32, space_field: space as u32, len: text.len() as u32, offset: at };
            self.set_locator(slot, &entry);
            bytes.extend_from_slice(text);
            bytes.resize((at + space - offset) as usize, 0);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `vhd-util snapshot -e -n b.vhd -p a.vhd`, a.vhd of 100 MiB in the same directory.
    #[test]
    fn the_header_of_libvhd_is_rebuilt_byte_for_byte() {
        let mut h = Header::new(50);
        h.set_parent(Uuid::from_u128(0x0093_34dc_cddb_4608_a5b9_5738_bbeb_9331), 0x3294_06db, "a.vhd");
        let bytes = h.place_locators(&locator::Encoded::new("./a.vhd").unwrap(), 0xc00);
        assert_eq!(be32(&h.0, 0x24), 0xffff_e441);
        assert_eq!(bytes.len(), 1536);
        assert_eq!(&bytes[..16], b"file://./a.vhd\0\0");
        assert_eq!(&bytes[0x200..0x210], b".\0\\\0a\0.\0v\0h\0d\0\0\0");
        assert_eq!(bytes[0x200..0x400], bytes[0x400..]);
        assert_eq!(h.parent_name(), "a.vhd");
        assert_eq!(Header::parse(&h.0).map(|h| h.0), Ok(h.0));
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let h = Header::new(50);
        for i in 0..1024 {
            let mut bad = h.clone();
            bad.0[i] ^= 1;
            assert!(Header::parse(&bad.0).is_err(), "byte {i}");
        }
    }
}
