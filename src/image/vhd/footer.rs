//! The footer: 512 bytes at the end of every VHD, and a copy of it at offset 0 of those that grow.
//!
//! Kept as the bytes they are and read through accessors, so that what other writers put into reserved
//! places survives a rewrite. VHD specification, "Hard Disk Footer Format".

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::{SECTOR, be32, be64, byte_sum, put32, put64};

/// The cookie of a usable image.
pub const COOKIE: &[u8; 8] = b"conectix";
/// The cookie that `vhd-util resize -j` leaves while it works: the image is only to be looked at.
pub const POISON: &[u8; 8] = b"v_poison";
/// "No offset": data_offset of a fixed image, and of every dynamic header.
pub const NO_OFFSET: u64 = u64::MAX;
/// The year 2000 in seconds since 1970: every time in a VHD counts from there.
pub const EPOCH: u64 = 946_684_800;
/// Creator of our images: the name under which readers take `current_size`, and not the geometry, for the size.
pub const CREATOR: &[u8; 4] = b"tap\0";
/// Version 1.3: batmap with header version 1.2.
pub const CREATOR_VERSION: u32 = 0x0001_0003;

/// Footer field `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The raw bytes, then a footer.
    Fixed,
    /// Blocks allocated as they are written; absent ones are zero.
    Dynamic,
    /// Blocks as in a dynamic image; sectors that are absent are the parent's.
    Differencing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer(pub [u8; SECTOR as usize]);

impl Footer {
    /// A sealed footer for an image of `size` bytes.
    pub fn new(kind: Kind, size: u64, uuid: Uuid, time: u32) -> Self {
        let mut f = Footer([0; 512]);
        f.0[..8].copy_from_slice(COOKIE);
        put32(&mut f.0, 0x08, 2);
        put32(&mut f.0, 0x0c, 0x0001_0000);
        put64(&mut f.0, 0x10, if kind == Kind::Fixed { NO_OFFSET } else { SECTOR });
        put32(&mut f.0, 0x18, time);
        f.0[0x1c..0x20].copy_from_slice(CREATOR);
        put32(&mut f.0, 0x20, CREATOR_VERSION);
        put64(&mut f.0, 0x28, size);
        let number = match kind {
            Kind::Fixed => 2,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        put32(&mut f.0, 0x3c, number);
        f.0[0x44..0x54].copy_from_slice(uuid.as_bytes());
        f.set_size(size);
        f
    }

    /// Takes a footer if cookie and checksum are good; the rest is the caller's to judge.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let f = Footer(bytes.get(..512)?.try_into().ok()?);
        if &f.0[..8] != COOKIE && &f.0[..8] != POISON {
            return None;
        }
        let good =
            f.stored_checksum() == f.checksum() || (f.is_old_tap() && f.stored_checksum() == f.visible_checksum());
        good.then_some(f)
    }

    fn stored_checksum(&self) -> u32 {
        be32(&self.0, 0x40)
    }

    /// One's complement of the byte sum, the checksum field taken as zero.
    fn checksum(&self) -> u32 {
        !byte_sum(&self.0).wrapping_sub(byte_sum(&self.0[0x40..0x44]))
    }

    /// The checksum of the same footer with hidden = 0: what writers up to tap 1.1 left in the footer.
    fn visible_checksum(&self) -> u32 {
        self.checksum().wrapping_add(u32::from(self.0[0x55]))
    }

    fn is_old_tap(&self) -> bool {
        self.creator() == *CREATOR && self.creator_version() <= 0x0001_0001
    }

    fn seal(&mut self) {
        let sum = self.checksum();
        put32(&mut self.0, 0x40, sum);
    }

    /// `None` for the types 0, 1, 5 and 6, which nothing uses.
    pub fn kind(&self) -> Option<Kind> {
        match self.type_number() {
            2 => Some(Kind::Fixed),
            3 => Some(Kind::Dynamic),
            4 => Some(Kind::Differencing),
            _ => None,
        }
    }

    pub fn type_number(&self) -> u32 {
        be32(&self.0, 0x3c)
    }
    pub fn is_poisoned(&self) -> bool {
        &self.0[..8] == POISON
    }
    pub fn features(&self) -> u32 {
        be32(&self.0, 0x08)
    }
    pub fn format_version(&self) -> u32 {
        be32(&self.0, 0x0c)
    }
    /// Bytes from the start of the image to the dynamic header.
    pub fn data_offset(&self) -> u64 {
        be64(&self.0, 0x10)
    }
    /// Seconds since 2000.
    pub fn timestamp(&self) -> u32 {
        be32(&self.0, 0x18)
    }
    pub fn creator(&self) -> [u8; 4] {
        [self.0[0x1c], self.0[0x1d], self.0[0x1e], self.0[0x1f]]
    }
    pub fn creator_version(&self) -> u32 {
        be32(&self.0, 0x20)
    }
    /// Only tap 1.2 and later keep a batmap.
    pub fn may_have_batmap(&self) -> bool {
        self.creator() == *CREATOR && self.creator_version() >= 0x0001_0002
    }
    /// Bytes when the image was created.
    pub fn original_size(&self) -> u64 {
        be64(&self.0, 0x28)
    }
    /// Bytes the guest sees.
    pub fn size(&self) -> u64 {
        be64(&self.0, 0x30)
    }
    pub fn uuid(&self) -> Uuid {
        Uuid::from_slice(&self.0[0x44..0x54]).expect("16 bytes")
    }
    pub fn saved(&self) -> u8 {
        self.0[0x54]
    }
    /// The byte as it is; 0 or 1 in a sound image.
    pub fn hidden_byte(&self) -> u8 {
        self.0[0x55]
    }

    pub fn set_hidden(&mut self, hidden: bool) {
        self.0[0x55] = u8::from(hidden);
        self.seal();
    }

    /// Sets current size and geometry; `original_size` stays.
    pub fn set_size(&mut self, size: u64) {
        put64(&mut self.0, 0x30, size);
        put32(&mut self.0, 0x38, chs(size));
        self.seal();
    }

    pub fn set_uuid(&mut self, uuid: Uuid) {
        self.0[0x44..0x54].copy_from_slice(uuid.as_bytes());
        self.seal();
    }
}

/// Seconds since 2000, now.
pub fn now() -> u32 {
    timestamp(SystemTime::now())
}

/// A time as VHD stores it; before 2000 it is 0.
pub fn timestamp(time: SystemTime) -> u32 {
    let unix = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    u32::try_from(unix.saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

/// Cylinders (16 bits), heads (8) and sectors per track (8) for a size in bytes. VHD specification,
/// "CHS Calculation".
pub fn chs(size: u64) -> u32 {
    let total = (size / SECTOR).clamp(1, 65535 * 16 * 255);
    let (mut heads, mut track, mut cth);
    if total >= 65535 * 16 * 63 {
        (heads, track, cth) = (16, 255, total / 255);
    } else {
        (track, cth) = (17, total / 17);
        heads = cth.div_ceil(1024).max(4);
        if cth >= heads * 1024 || heads > 16 {
            (heads, track, cth) = (16, 31, total / 31);
        }
        if cth >= heads * 1024 {
            (heads, track, cth) = (16, 63, total / 63);
        }
    }
    ((cth / heads) << 16 | heads << 8 | track) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_is_that_of_the_specification() {
        for (mib, word) in [
            (2, 0x003C_0411),
            (4, 0x0078_0411),
            (32, 0x03C3_0411),
            (100, 0x03EB_0C11),
            (504, 0x0400_103F),
            (1024, 0x0820_103F),
            (8192, 0x4104_103F),
            (32768, 0x4040_10FF),
            (65536, 0x8080_10FF),
            (131_072, 0xFFFF_10FF),
            (2_088_960, 0xFFFF_10FF),
        ] {
            assert_eq!(chs(mib << 20), word, "{mib} MiB");
        }
    }

    #[test]
    fn a_footer_reads_back_and_guards_every_byte() {
        let f = Footer::new(Kind::Dynamic, 100 << 20, Uuid::from_u128(7), 848_561_883);
        assert_eq!(Footer::parse(&f.0).unwrap().0, f.0);
        assert_eq!(be32(&f.0, 0x38), 0x03EB_0C11);
        for i in 0..512 {
            let mut bad = f.clone();
            bad.0[i] ^= 0x10;
            assert!(Footer::parse(&bad.0).is_none(), "byte {i}");
        }
        assert!(Footer::parse(&f.0[..511]).is_none());
    }

    /// The footer of an image made by `vhd-util create -s 100` followed by `snapshot -e`.
    #[test]
    fn the_footer_of_libvhd_is_rebuilt_byte_for_byte() {
        let uuid = Uuid::from_u128(0xaa43_11fb_8328_467a_ba89_0c22_99cf_8340);
        let f = Footer::new(Kind::Differencing, 100 << 20, uuid, 0x3294_06db);
        assert_eq!(be32(&f.0, 0x40), 0xffff_f112);
    }

    #[test]
    fn an_image_of_tap_1_1_may_be_hidden_without_a_new_checksum() {
        let mut f = Footer::new(Kind::Dynamic, 2 << 20, Uuid::from_u128(7), 0);
        put32(&mut f.0, 0x20, 0x0001_0001);
        f.seal();
        f.0[0x55] = 1;
        assert!(Footer::parse(&f.0).is_some());
        put32(&mut f.0, 0x20, CREATOR_VERSION);
        assert!(Footer::parse(&f.0).is_none());
    }
}
