//! The VHD image format, as XenServer and XCP-ng use it: create, query, read, write, and change.
//!
//! Offsets and sizes are bytes. Nothing here knows an SR: the caller opens files or devices as a [`Storage`], decides
//! which file a parent is, holds the locks, and makes new files under a name that nobody looks at until they are
//! whole. Numbers in the format are big endian; a sector has 512 bytes.
//!
//! | to | use |
//! |---|---|
//! | make an image | [`create()`], [`create_child`], [`create_fixed`] |
//! | ask what it is, by one read | [`query()`] |
//! | read and write the disk | [`Chain::open`], then [`Chain::read_at`], [`Chain::write_at`], [`Chain::flush`] … |
//! | list what is allocated | [`Chain::extents`] |
//! | know whether a file is the parent of an image | [`check_parent`] |
//! | hide, change the parent | [`set_hidden`], [`set_parent`] |
//! | grow | [`resize()`] |
//! | copy a child into its parent | [`coalesce()`] |
//! | look for damage, and mend it | [`check()`], [`repair`] |
//!
//! # Layout
//!
//! | at | what |
//! |---|---|
//! | 0 | footer, the copy that has the word ([`query()`]) |
//! | 512 | header: where the BAT is, who the parent is |
//! | 1,536 | BAT: for each block, of 2 MiB as a rule, the sector where it is, or all ones |
//! | behind the BAT | batmap header, batmap |
//! | | parent locators |
//! | end of headers | blocks in the order of their allocation: a sector of bitmap, 4,096 sectors of data that start at a multiple of 4 KiB |
//! | end of data, or last sector of a device | footer |
//!
//! # Rules that hold at every instant
//!
//! 1. Backup footer and header are valid.
//! 2. A BAT entry on disk leads to a bitmap that is on disk.
//! 3. A bit in a bitmap on disk stands for data that is on disk.
//! 4. A bit in a batmap with a valid checksum stands for a bitmap that is all ones on disk.
//! 5. The footer at the end is optional: new blocks overwrite it.
//!
//! Hence a crash at any time leaves each sector as it was at the last flush or as it was written since. The steps and
//! what a crash leaves between them are told where they are taken: [`create()`], [`Image::flush`], [`Image::close`],
//! [`set_hidden`], [`set_parent`], [`resize()`], [`coalesce()`], [`repair`].

mod bat;
mod batmap;
mod bitmap;
mod chain;
mod change;
mod check;
mod coalesce;
mod create;
mod flush;
mod footer;
mod header;
mod image;
mod intent;
mod locator;
mod opening;
mod query;
mod resize;
mod stream;

pub use super::storage::{FileStorage, Storage};
use super::{be32, be64};
pub use chain::{Chain, Extent, Parent};
pub use change::{set_hidden, set_parent};
pub use check::{CheckOptions, check, repair};
pub use coalesce::{Target, coalesce, coalesce_all};
pub use create::{NewImage, ParentLink, create, create_child, create_fixed};
pub use footer::{Kind, timestamp};
pub use image::Image;
pub use opening::check_parent;
pub use query::{Info, ParentInfo, is_blank, named_parent, query, query_for_child, query_usable, refuse_cut_off};
pub use resize::resize;
pub use stream::{Incoming, write_stream};

/// Bytes.
pub const SECTOR: u64 = 512;
/// Bytes of a block of the images we make. Others have smaller ones, of a power of two, which are served; libvhd counts
/// in this size whatever the header says, and bigger ones would have bitmaps of more than a sector.
pub const BLOCK: u64 = 2 << 20;
/// Bits of a bitmap, which are the sectors of a block of 2 MiB.
const SECTORS: u32 = (BLOCK / SECTOR) as u32;
/// The most blocks of an image that is opened, 2 TiB of 512 KiB; bounds what the BAT takes in memory.
const MAX_BLOCKS: u64 = 1 << 22;
/// The biggest disk an image can be made for, bytes: 2,040 GiB, so that it fits below 2 TiB when it is full.
pub const MAX_SIZE: u64 = 2040 << 30;
/// The biggest disk of an image that is opened, bytes: 2 TiB; bounds what the tables take in memory.
const MAX_READ_SIZE: u64 = 1 << 41;

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Every checksum of the format is the complement of this.
fn byte_sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(u32::from(*b)))
}

fn ceil_sector(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR)
}
