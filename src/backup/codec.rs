//! How a block is packed: on its own, so that blocks are packed and unpacked in parallel, and found without reading others.
//! What is packed may then be encrypted ([`super::seal`]).

use std::fmt;
use std::io::{self, Read, Write};

use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::map::{Digest, digest};
use super::seal::Seal;
use crate::types::VdiUuid;

/// How the blocks of an export are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all. The image is a raw file that keeps its holes.
    #[default]
    None,
    /// A gzip member a block, one after the other in the order of the disk, those of zeroes too: `gzip -dc` gives the disk.
    Gzip,
    /// A zstd frame a block, one after the other in the order of the disk, those of zeroes too: `zstd -dc` gives the disk.
    Zstd,
}

impl Compression {
    /// Whether blocks are packed at all: if not, the image has each at its place in the disk.
    pub fn is_packed(self) -> bool {
        self != Compression::None
    }

    /// The end of the name of an image.
    pub fn suffix(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })
    }
}

/// How the blocks of an export are written.
#[derive(Debug, Default)]
pub struct Packing {
    pub compression: Compression,
    /// Of an encrypted export.
    pub seal: Option<Seal>,
}

impl Packing {
    /// The digest of a block of the disk, as the map has it.
    pub fn digest(&self, disk: VdiUuid, index: u64, block: &[u8]) -> Digest {
        match &self.seal {
            None => digest(block),
            Some(seal) => seal.digests.digest(disk, index, block),
        }
    }
}

/// Level 3 packs as fast as disks are read, and has most of what higher levels have.
const LEVEL: i32 = 3;

/// What higher levels of deflate pack besides is little, for several times the work.
const GZIP_LEVEL: u32 = 3;

/// Packs the blocks of one thread.
pub enum Packer {
    None,
    Gzip,
    Zstd(Box<zstd::bulk::Compressor<'static>>),
}

impl Packer {
    /// # Errors
    /// The system's error if there is no memory.
    pub fn new(compression: Compression) -> io::Result<Packer> {
        Ok(match compression {
            Compression::None => Packer::None,
            Compression::Gzip => Packer::Gzip,
            Compression::Zstd => {
                let mut packer = zstd::bulk::Compressor::new(LEVEL)?;
                // The public tool finds a flipped bit by it.
                packer.include_checksum(true)?;
                Packer::Zstd(Box::new(packer))
            }
        })
    }

    /// A block as it stands in the image.
    ///
    /// # Errors
    /// The system's error if there is no memory.
    pub fn pack(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Packer::None => Ok(block.to_vec()),
            Packer::Gzip => {
                let mut packer =
                    GzEncoder::new(Vec::with_capacity(block.len() / 2), flate2::Compression::new(GZIP_LEVEL));
                packer.write_all(block)?;
                packer.finish()
            }
            Packer::Zstd(packer) => packer.compress(block),
        }
    }
}

/// The block of `length` bytes that `packed` holds. Never more than `length` bytes are unpacked.
///
/// # Errors
/// An error in words if it is no packed block, or one of another length.
pub fn unpack(compression: Compression, packed: Vec<u8>, length: usize) -> Result<Vec<u8>, String> {
    let read = |from: &mut dyn Read| {
        let mut block = Vec::with_capacity(length + 1);
        let read = from.take(length as u64 + 1).read_to_end(&mut block);
        read.map(|_| block).map_err(|e| format!("a block cannot be unpacked: {e}"))
    };
    let block = match compression {
        Compression::None => packed,
        Compression::Gzip => read(&mut GzDecoder::new(packed.as_slice()))?,
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(packed.as_slice());
            read(&mut decoder.map_err(|e| e.to_string())?)?
        }
    };
    match block.len() == length {
        true => Ok(block),
        false => Err(format!("a block has not the {length} bytes that it should have")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_back_and_no_more_than_was_asked_for() {
        let block: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let packed = Packer::new(compression).unwrap().pack(&block).unwrap();
            assert!(unpack(compression, packed.clone(), block.len()).unwrap() == block, "{compression}");
            for wrong in [0, 1, block.len() - 1, block.len() + 1] {
                assert!(unpack(compression, packed.clone(), wrong).is_err(), "{compression} {wrong}");
            }
        }
        for compression in [Compression::Gzip, Compression::Zstd] {
            assert!(unpack(compression, b"no frame".to_vec(), 8).is_err());
        }
    }
}
