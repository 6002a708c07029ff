//! `sm backup verify`: whether an export is what its manifest says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::chain::{self, Link};
use super::manifest::{self, DiskOf, Manifest, image_name, map_name};
use super::map::{Digest, Map, digest, hex, unhex};
use super::name::{RunId, SetName};
use super::read::{Image, beginning};
use super::seal::Sealed;
use super::sign;
use crate::error::{Error, Result};
use crate::sys::copy::Progress;
use crate::sys::durable::Dir;

/// Bytes of the longest file of sums.
const LONGEST: u64 = 1 << 20;

/// What was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Sizes, maps, manifest and metadata, and the digests of the images that are packed.
    Files,
    /// And every block.
    Blocks,
}

/// The bytes of the manifest of an export.
///
/// # Errors
/// [`Error::NotVerified`] if there is none; [`Error::Io`].
pub fn text(dir: &Dir) -> Result<Vec<u8>> {
    dir.read(manifest::FILE).map_err(as_export)?.ok_or_else(|| missing(&dir.join(manifest::FILE)))
}

/// Compares a manifest with its signature, and reads the maps of the export, and compares them with their digests and the images
/// with their lengths. `text`: the bytes of the manifest, read once: whoever may write to the store could exchange it meanwhile.
///
/// # Errors
/// [`Error::NotVerified`] with the file that is wrong; [`Error::Io`].
pub fn look(dir: &Dir, text: &[u8]) -> Result<(Manifest, Vec<Image>)> {
    let path = dir.join(manifest::FILE);
    let manifest = Manifest::parse(text, &path)?;
    sign::compare(text, &manifest, &path)?;
    let sums = Sums::read(dir)?;
    sums.compare(dir, manifest::FILE, &digest(text))?;
    if let Some(metadata) = &manifest.metadata {
        let name = manifest.metadata_name();
        let path = dir.join(name);
        let sum = sum_of(open(dir, name)?, &path)?;
        sums.compare(dir, name, &sum)?;
        if unhex(&metadata.sha256) != Some(sum) {
            return Err(not_verified(&path, "is not the one that the manifest tells of"));
        }
    }
    if manifest.encryption.is_some() {
        let sum = sum_of(open(dir, manifest::DIGEST_KEY)?.take(LONGEST), &dir.join(manifest::DIGEST_KEY))?;
        sums.compare(dir, manifest::DIGEST_KEY, &sum)?;
    }
    let images = manifest.disks.iter().map(|disk| image(dir, &manifest, disk, &sums)).collect::<Result<_>>()?;
    Ok((manifest, images))
}

/// An error about a file of an export: one that is no regular file, or that is too long, is not what the manifest says.
pub(super) fn as_export(error: Error) -> Error {
    match error {
        Error::Damaged { path, what } => Error::NotVerified { path, what },
        other => other,
    }
}

/// What was compared of an export that is as it should be.
#[derive(Clone, Debug)]
pub struct Verified {
    pub manifest: Manifest,
    /// The images were read to their ends. Of raw ones, only [`Depth::Blocks`] does that.
    pub is_read: bool,
}

/// What an export has to be.
pub struct Of<'a> {
    /// The set that it stands under, if it stands in a store.
    pub set: Option<&'a SetName>,
    /// The file of the keys, which are needed for the blocks of encrypted exports.
    pub identity: Option<&'a Path>,
    /// It may be unsigned on a host with a secret.
    pub unsigned: bool,
}

/// Compares an export, and those that it is made on, with their manifests. One in a directory with the name of another run is refused.
///
/// # Errors
/// Those of [`look`], [`chain::open`] and [`chain::unlock`]; [`Error::NotVerified`] for an image or a block that is wrong.
pub fn verify(dir: Dir, of: &Of, depth: Depth, progress: Progress) -> Result<Verified> {
    let run = dir.path().file_name().and_then(|name| name.to_str()?.parse::<RunId>().ok());
    let mut chain = chain::open(dir)?;
    let manifest = &chain[0].manifest;
    let (set, run) = (of.set.unwrap_or(&manifest.name), run.as_ref().unwrap_or(&manifest.run));
    chain[0].refuse_misplaced(set, run)?;
    if !of.unsigned {
        chain[0].refuse_unsigned(sign::UNSIGNED)?;
    }
    if depth == Depth::Blocks {
        chain::unlock(&mut chain, of.identity)?;
    }
    for link in &chain {
        verify_one(link, depth, progress)?;
    }
    let manifest = chain[0].manifest.clone();
    let is_packed = |link: &Link| link.manifest.compression.is_packed();
    let is_read = depth == Depth::Blocks || chain.iter().all(is_packed);
    for images in chain::images(chain) {
        chain::blocks(&images)?;
    }
    Ok(Verified { manifest, is_read })
}

fn verify_one(link: &Link, depth: Depth, progress: Progress) -> Result<()> {
    for image in link.images.iter().filter(|_| depth == Depth::Blocks) {
        let total = image.map.stored().count() as u64 * super::BLOCK;
        let done = std::cell::Cell::new(0);
        image.verify(&|bytes| {
            done.set(done.get() + bytes);
            progress(done.get().min(total), total);
        })?;
    }
    files(link)
}

/// Compares the images of an export that are packed with the sums. What [`look`] compares was compared.
///
/// # Errors
/// [`Error::NotVerified`]; [`Error::Io`].
pub fn files(link: &Link) -> Result<()> {
    let sums = Sums::read(&link.dir)?;
    for image in link.images.iter().filter(|image| image.compression.is_packed()) {
        let name = crate::sys::durable::name_of(&image.path);
        sums.compare(&link.dir, name, &sum_of(&image.file, &image.path)?)?;
    }
    Ok(())
}

/// Bytes of the longest map that a disk of `size` bytes has: a line is longer than 70 bytes, and no block has two.
pub fn longest_map(size: u64) -> u64 {
    (size.div_ceil(super::BLOCK) + 1).saturating_mul(160)
}

/// The map of a disk, compared with what the manifest says of it.
///
/// # Errors
/// [`Error::NotVerified`]; [`Error::Io`].
pub fn map(dir: &Dir, manifest: &Manifest, disk: &DiskOf) -> Result<Map> {
    let name = map_name(disk.index);
    let (file, path) = (open(dir, &name)?, dir.join(&name));
    if file.metadata().map_err(Error::io("examine", &path))?.len() > longest_map(disk.virtual_size) {
        return Err(not_verified(&path, "is longer than a map of this disk can be"));
    }
    // The first line that is none ends it: a file with holes may be as long as the disk allows, and takes no room.
    let mut summed = Summed { file, hash: Sha256::new() };
    let read = Map::parse(BufReader::new(&mut summed), disk.virtual_size, manifest.parent.is_none());
    let map = read.map_err(|what| not_verified(&path, &what))?;
    if unhex(&disk.map_sha256) != Some(summed.hash.finalize().into()) {
        return Err(not_verified(&path, "is not the one that the manifest tells of"));
    }
    Ok(map)
}

/// A file whose digest is made while it is read.
struct Summed {
    file: File,
    hash: Sha256,
}

impl Read for Summed {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(to)?;
        self.hash.update(&to[..n]);
        Ok(n)
    }
}

/// Opens an image with its map. The names of both follow from the index; what the manifest says of them is not used.
fn image(dir: &Dir, manifest: &Manifest, disk: &DiskOf, sums: &Sums) -> Result<Image> {
    let map = map(dir, manifest, disk)?;
    let name = map_name(disk.index);
    // The manifest tells its digest, and so do the sums.
    sums.compare(dir, &name, &unhex(&disk.map_sha256).unwrap_or_default())?;
    let name = image_name(disk.index, manifest.compression, manifest.encryption.is_some());
    let (file, path) = (open(dir, &name)?, dir.join(&name));
    let length = file.metadata().map_err(Error::io("examine", &path))?.len();
    let sealed = match manifest.encryption {
        None => None,
        Some(_) => {
            let begin = beginning(&file).map_err(Error::io("read", &path))?;
            Some(Sealed::look(&begin, length).map_err(|what| not_verified(&path, &what))?)
        }
    };
    let length = sealed.as_ref().map_or(length, |sealed| sealed.length);
    let (is_right, expected) = match manifest.compression.is_packed() {
        false => (length == disk.virtual_size, disk.virtual_size),
        true => {
            let needed = map.stored().map(|stored| stored.offset + stored.length).max().unwrap_or(0);
            (length >= needed, needed)
        }
    };
    if !is_right {
        return Err(not_verified(&path, &format!("has {length} bytes and should have {expected}")));
    }
    Ok(Image { file, path, compression: manifest.compression, sealed, map, size: disk.virtual_size, uuid: disk.uuid })
}

fn open(dir: &Dir, name: &str) -> Result<File> {
    dir.try_open_record(name).map_err(as_export)?.ok_or_else(|| missing(&dir.join(name)))
}

fn missing(path: &Path) -> Error {
    not_verified(path, "is missing")
}

fn not_verified(path: &Path, what: &str) -> Error {
    Error::NotVerified { path: path.to_owned(), what: what.to_owned() }
}

fn sum_of(mut file: impl Read, path: &Path) -> Result<Digest> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path)(e)),
        }
    }
}

/// The file `SHA256SUMS`, as sha256sum(1) writes and checks it.
struct Sums(BTreeMap<String, Digest>);

impl Sums {
    fn read(dir: &Dir) -> Result<Sums> {
        let path = dir.join(manifest::SUMS);
        let mut text = String::new();
        let read = open(dir, manifest::SUMS)?.take(LONGEST + 1).read_to_string(&mut text);
        match read {
            Ok(length) if length as u64 <= LONGEST => {}
            Ok(_) => return Err(not_verified(&path, "is larger than 1 MiB")),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(not_verified(&path, "is no list of sums")),
            Err(e) => return Err(Error::io("read", &path)(e)),
        }
        let line = |line: &str| {
            let (sum, name) = line.split_once("  ")?;
            Some((name.to_owned(), unhex(sum)?))
        };
        let sums = text.lines().map(line).collect::<Option<_>>();
        sums.map(Sums).ok_or_else(|| not_verified(&path, "is no list of sums"))
    }

    fn compare(&self, dir: &Dir, name: &str, sum: &Digest) -> Result<()> {
        match self.0.get(name) {
            Some(expected) if expected == sum => Ok(()),
            Some(expected) => Err(not_verified(
                &dir.join(name),
                &format!("has the SHA-256 {} and should have {}", hex(sum), hex(expected)),
            )),
            None => Err(not_verified(&dir.join(name), &format!("is not in {}", manifest::SUMS))),
        }
    }
}
