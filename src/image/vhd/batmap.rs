//! The batmap, an extension of libvhd: one bit per block, 1 if every sector of the block is in this image, so
//! that its bitmap need not be read. A 0 is always safe, a wrong 1 corrupts. It lies right behind the BAT and only
//! images of the creator `tap` 1.2 and later have it.

use super::header::Header;
use super::{BLOCK, SECTOR, Storage, be32, be64, byte_sum, put32, put64};
use crate::error::Result;

pub const COOKIE: &[u8; 8] = b"tdbatmap";
pub const VERSION: u32 = 0x0001_0002;

/// The batmap header, 512 bytes, of which the last 418 are reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatmapHeader(pub [u8; SECTOR as usize]);

impl BatmapHeader {
    /// The header of an empty map right behind the BAT of `header`.
    pub fn new(header: &Header) -> Self {
        let mut b = BatmapHeader([0; 512]);
        b.0[..8].copy_from_slice(COOKIE);
        put64(&mut b.0, 8, header.bat_end() + SECTOR);
        put32(&mut b.0, 16, map_sectors(header.max_bat_size()));
        put32(&mut b.0, 20, VERSION);
        put32(&mut b.0, 24, u32::MAX);
        b
    }

    pub fn parse(bytes: [u8; 512]) -> Option<Self> {
        let b = BatmapHeader(bytes);
        let sound = &b.0[..8] == COOKIE
            && b.version() <= VERSION
            && b.map_offset().is_multiple_of(SECTOR)
            && b.map_offset() < 1 << 42
            && b.sectors() <= 1 << 16;
        sound.then_some(b)
    }

    /// Bytes from the start of the image to the map.
    pub fn map_offset(&self) -> u64 {
        be64(&self.0, 8)
    }
    /// Sectors set aside for the map.
    pub fn sectors(&self) -> u32 {
        be32(&self.0, 16)
    }
    pub fn version(&self) -> u32 {
        be32(&self.0, 20)
    }
    pub fn checksum(&self) -> u32 {
        be32(&self.0, 24)
    }
    /// The data is AES-XTS encrypted under a key of this hash.
    pub fn is_encrypted(&self) -> bool {
        self.0[29] == 1
    }
    /// This header for a map that begins at another byte of the file and has so many sectors.
    pub fn moved(&self, map_offset: u64, sectors: u32) -> Self {
        let mut b = self.clone();
        put64(&mut b.0, 8, map_offset);
        put32(&mut b.0, 16, sectors);
        b
    }
    /// Bytes from the start of the image to the end of the map.
    pub fn end(&self) -> u64 {
        self.map_offset() + u64::from(self.sectors()) * SECTOR
    }

    /// One's complement of the byte sum; version 1.1 summed the bytes as signed ones.
    pub fn sum(&self, map: &[u8]) -> u32 {
        if self.version() == 0x0001_0001 {
            !map.iter().fold(0u32, |sum, b| sum.wrapping_add_signed(i32::from(*b as i8)))
        } else {
            !byte_sum(map)
        }
    }

    pub fn seal(&mut self, map: &[u8]) {
        let sum = self.sum(map);
        put32(&mut self.0, 24, sum);
    }

    /// Reads the map, `None` if its checksum is wrong (a crash between map and header, or `vhd-util set -f
    /// marker`, which zeroes a part): no block is then known to be full.
    pub(crate) fn read_map(&self, place: &dyn Storage, size: u64) -> Result<Option<Vec<u8>>> {
        let len = map_bytes(size);
        if len as u64 > u64::from(self.sectors()) * SECTOR {
            return Ok(None);
        }
        let mut map = vec![0; len];
        place.get(&mut map, self.map_offset())?;
        Ok((self.sum(&map) == self.checksum()).then_some(map))
    }
}

/// Sectors of a map for so many blocks, at least one.
pub fn map_sectors(blocks: u32) -> u32 {
    blocks.div_ceil(8).div_ceil(512).max(1)
}

/// Bytes of the map that are read, written and summed for a disk of `size` bytes. The division rounds down as
/// libvhd's does, and may so leave up to 7 blocks out of the map: they count as not full.
pub fn map_bytes(size: u64) -> usize {
    ((size / (BLOCK * 8)).div_ceil(SECTOR).max(1) * SECTOR) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_as_long_as_libvhd_makes_it() {
        assert_eq!(map_bytes(100 << 20), 512);
        assert_eq!(map_bytes(8192 << 20), 512);
        assert_eq!(map_bytes(8194 << 20), 512);
        assert_eq!(map_bytes(8208 << 20), 1024);
        assert_eq!(map_sectors(4096), 1);
        assert_eq!(map_sectors(4097), 2);
        assert_eq!(map_sectors(1 << 20), 256);
    }

    #[test]
    fn an_empty_map_sums_to_all_ones_and_signs_count_in_1_1() {
        let mut b = BatmapHeader::new(&Header::new(50));
        assert_eq!((b.map_offset(), b.sectors(), b.checksum()), (0xa00, 1, u32::MAX));
        assert_eq!(b.sum(&[0; 512]), u32::MAX);
        assert_eq!(b.sum(&[0xff, 1]), !0x100);
        put32(&mut b.0, 20, 0x0001_0001);
        assert_eq!(b.sum(&[0xff, 1]), u32::MAX);
    }
}
