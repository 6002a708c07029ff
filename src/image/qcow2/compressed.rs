//! Compressed clusters: where one lies, and what is in it.
//!
//! Packed clusters lie one behind the other and share clusters of the file; each counts as a reference to all that it
//! touches.

use std::io::Read;
use std::ops::Range;

use super::Storage;
use super::header::Compression;
use super::image::{COMPRESSED, COPIED};
use crate::error::Result;

/// Bytes that a zstd frame may look back, at most. qemu's frames look back a cluster; the format asks readers for 8 MiB.
const ZSTD_WINDOW: u64 = 8 << 20;

/// Where a packed cluster is.
pub(crate) struct Compressed {
    /// Byte of the file.
    offset: u64,
    /// Bytes at most: the end is given in sectors of 512 bytes.
    len: u64,
}

impl Compressed {
    /// Reads an L2 entry of an image with clusters of 1 << `bits` bytes: "bits 0 to x-1: host cluster offset; x to 61:
    /// number of additional 512-byte sectors", x = 62 - (bits - 8).
    pub fn of(entry: u64, bits: u32) -> Compressed {
        let x = 62 - (bits - 8);
        let offset = entry & ((1 << x) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> x;
        Compressed { offset, len: (sectors + 1) * 512 - offset % 512 }
    }

    /// The clusters of the file that it touches.
    pub fn clusters(&self, bits: u32) -> Range<u64> {
        self.offset >> bits..((self.offset + self.len - 1) >> bits) + 1
    }

    /// All of the cluster, `cluster` bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged) if it is not so many; [`Error::Io`](crate::Error::Io).
    pub fn unpack(&self, place: &dyn Storage, cluster: u64, compression: Compression) -> Result<Vec<u8>> {
        let mut packed = vec![0; self.len as usize];
        place.get(&mut packed, self.offset)?;
        let mut bytes = vec![0; cluster as usize];
        let is_whole = match compression {
            Compression::Deflate => inflate(&packed, &mut bytes),
            Compression::Zstd => unzstd(&packed, &mut bytes),
        };
        match is_whole {
            true => Ok(bytes),
            false => Err(place.damaged(format!("the compressed cluster at {} does not unpack", self.offset))),
        }
    }
}

fn inflate(packed: &[u8], bytes: &mut [u8]) -> bool {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, got) = decompress(&mut Box::<DecompressorOxide>::default(), packed, bytes, 0, flags);
    matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput) && got == bytes.len()
}

/// One frame may end before the cluster does; another follows then.
fn unzstd(packed: &[u8], bytes: &mut [u8]) -> bool {
    let unpack = |bytes: &mut [u8]| {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
        decoder.window_log_max(ZSTD_WINDOW.ilog2())?;
        decoder.read_exact(bytes)
    };
    unpack(bytes).is_ok()
}
