//! What the VHD tests share: images in a temporary directory, found by their names.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use xcp_sm::image::vhd::{self, Chain, FileStorage, NewImage, Parent, ParentLink};
use xcp_sm::types::Mode;

pub const MIB: u64 = 1 << 20;

/// A directory that vanishes, with its path in canonical form.
pub struct Dir(TempDir);

impl Dir {
    pub fn new() -> Self {
        Dir(TempDir::new().unwrap())
    }

    pub fn at(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.0.path()).unwrap().join(name)
    }
}

pub fn place(path: &Path) -> Arc<FileStorage> {
    Arc::new(FileStorage::open(path, Mode::ReadWrite).unwrap())
}

pub fn fresh(path: &Path) -> Arc<FileStorage> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    Arc::new(FileStorage::new(file, path).unwrap())
}

pub fn open(path: &Path, mode: Mode) -> Chain {
    let dir = path.parent().unwrap().to_owned();
    Chain::open(place(path), mode, |link| {
        let found = Arc::new(FileStorage::open(dir.join(link.file_name().unwrap()), Mode::ReadOnly)?);
        Ok(if link.uuid.is_some() { Parent::Vhd(found) } else { Parent::Raw(found) })
    })
    .unwrap()
}

pub fn create(path: &Path, size: u64) {
    vhd::create(&*fresh(path), &NewImage::new(size)).unwrap();
}

/// The link to a parent in the directory of the child.
pub fn link_to(child: &Path, parent: &Path) -> ParentLink {
    assert_eq!(child.parent(), parent.parent(), "images of one tree lie beside each other");
    let timestamp = vhd::timestamp(fs::metadata(parent).unwrap().modified().unwrap());
    let uuid = vhd::query(&*place(parent)).unwrap().uuid;
    ParentLink::beside(parent.file_name().unwrap().to_str().unwrap(), Some(uuid), timestamp)
}

pub fn snapshot(child: &Path, parent: &Path) {
    let size = vhd::query(&*place(parent)).unwrap().virtual_size;
    vhd::create_child(&*fresh(child), &NewImage::new(size), &link_to(child, parent)).unwrap();
}

pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ seed.wrapping_add((i % 251) as u8)).collect()
}

pub fn read_all(chain: &Chain) -> Vec<u8> {
    let mut all = vec![0; chain.virtual_size() as usize];
    chain.read_at(&mut all, 0).unwrap();
    all
}

pub fn contents(path: &Path) -> Vec<u8> {
    read_all(&open(path, Mode::ReadOnly))
}

/// Makes the checksum right that is at `at` of `part`.
pub fn seal(part: &mut [u8], at: usize) {
    part[at..at + 4].fill(0);
    let sum = part.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
    part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// An empty dynamic image with blocks of so many bytes, as programs make it that know no batmap.
pub fn with_blocks(size: u64, block: u64) -> Vec<u8> {
    let dir = Dir::new();
    let like = dir.at("like.vhd");
    create(&like, size);
    let mut image = fs::read(&like).unwrap()[..1536].to_vec();
    let entries = size.div_ceil(block) as u32;
    image[0x1c..0x20].copy_from_slice(b"win ");
    image[0x20..0x24].copy_from_slice(&0x0006_0001u32.to_be_bytes());
    image[512 + 0x1c..512 + 0x20].copy_from_slice(&entries.to_be_bytes());
    image[512 + 0x20..512 + 0x24].copy_from_slice(&(block as u32).to_be_bytes());
    seal(&mut image[..512], 0x40);
    seal(&mut image[512..1536], 0x24);
    image.resize(1536 + (entries as usize * 4).next_multiple_of(512), 0xff);
    let footer = image[..512].to_vec();
    image.extend(footer);
    image
}
