//! An export with those that it is made on. An increment stores the blocks that changed since its parent; the first of a chain
//! has every block.

use std::collections::VecDeque;
use std::path::Path;

use super::BLOCK;
use super::manifest::{self, Manifest, ParentRun};
use super::map::{Digest, Entry, digest, hex, length_of};
use super::name::{RunId, SetName};
use super::read::Image;
use super::seal::{self, Keys, Seal};
use super::sign;
use super::verify::{self, as_export};
use crate::error::{Error, Result};
use crate::sys::durable::Dir;

/// Runs of a chain, at most.
const LONGEST: usize = 1000;

/// One export of a chain, looked at.
#[derive(Debug)]
pub struct Link {
    pub dir: Dir,
    pub manifest: Manifest,
    /// Of the bytes that `manifest` was read from.
    pub sha256: Digest,
    pub images: Vec<Image>,
}

impl Link {
    /// Refuses an export that stands where another one of its set belongs.
    ///
    /// # Errors
    /// [`Error::NotVerified`].
    pub fn refuse_misplaced(&self, set: &SetName, run: &RunId) -> Result<()> {
        let Manifest { name, run: its_run, .. } = &self.manifest;
        match name == set && its_run == run {
            true => Ok(()),
            false => Err(Error::NotVerified {
                path: self.dir.join(manifest::FILE),
                what: format!("is of set {name}, run {its_run}, and not of set {set}, run {run}"),
            }),
        }
    }

    /// See [`sign::refuse_unsigned`].
    ///
    /// # Errors
    /// Those of [`sign::refuse_unsigned`].
    pub fn refuse_unsigned(&self, remedy: &str) -> Result<()> {
        sign::refuse_unsigned(&self.manifest, &self.dir.join(manifest::FILE), remedy)
    }
}

/// The export in a directory, and those that it is made on, which are beside it; the newest first.
///
/// # Errors
/// [`Error::NotVerified`] with the export of the chain that is missing, or is not what its manifest or its child says.
pub fn open(dir: Dir) -> Result<Vec<Link>> {
    let text = verify::text(&dir)?;
    let (manifest, images) = verify::look(&dir, &text)?;
    let mut chain = vec![Link { dir, manifest, sha256: digest(&text), images }];
    while let Some(child) = chain.last()
        && let Some(parent) = &child.manifest.parent
    {
        let link = parent_of(child, parent)?;
        if chain.len() >= LONGEST {
            return Err(wrong(&link.dir, "is one of a chain of exports that is too long"));
        }
        chain.push(link);
    }
    Ok(chain)
}

/// Opens the images of a chain that are encrypted, with the keys of a file that is read if it is needed.
///
/// # Errors
/// [`Error::Encrypted`] if none of the keys is for an export of it, or no file is named; [`Error::NotVerified`]; those of the file.
pub fn unlock(chain: &mut [Link], identity: Option<&Path>) -> Result<()> {
    let Some(sealed) = chain.iter().find(|link| link.manifest.encryption.is_some()) else { return Ok(()) };
    let of = sealed.manifest.encryption.as_ref().expect("it was just looked at");
    let keys = Keys::read(identity.ok_or_else(|| seal::no_key(sealed.dir.path(), of))?)?;
    for link in chain {
        let Some(of) = &link.manifest.encryption else { continue };
        let path = link.dir.join(manifest::DIGEST_KEY);
        let digests =
            keys.digest_key(&link.dir.read(manifest::DIGEST_KEY).map_err(as_export)?.unwrap_or_default(), &path, of)?;
        link.images.iter_mut().try_for_each(|image| image.unlock(&keys, &digests, of))?;
    }
    Ok(())
}

/// Refuses an increment whose digests cannot be compared with those of its parent.
///
/// # Errors
/// [`Error::NotVerified`] with the way out.
pub fn refuse_mixed(run: &RunId, parent: &Link, seal: Option<&Seal>) -> Result<()> {
    let what = match (&parent.manifest.encryption, seal) {
        (None, None) => return Ok(()),
        (Some(of), Some(seal)) if of.digest_key == seal.digests.id() => return Ok(()),
        (Some(_), Some(_)) => "is encrypted with digests of another key than this host has for the set",
        (Some(_), None) => "is encrypted, and this export would not be",
        (None, Some(_)) => "is not encrypted, and this export would be",
    };
    let what = format!("run {run} {what}; --since none makes a whole export");
    Err(Error::NotVerified { path: parent.dir.join(manifest::FILE), what })
}

fn wrong(dir: &Dir, what: &str) -> Error {
    Error::NotVerified { path: dir.join(manifest::FILE), what: what.to_owned() }
}

fn parent_of(child: &Link, parent: &ParentRun) -> Result<Link> {
    // Earlier, so a chain never meets itself.
    if parent.run >= child.manifest.run {
        return Err(wrong(&child.dir, "is an increment on a run that is not before it"));
    }
    let path = child.dir.path().with_file_name(parent.run.as_str());
    let dir = Dir::open(&path).map_err(|error| match error.errno() {
        Some(nix::libc::ENOENT | nix::libc::ENOTDIR | nix::libc::ELOOP) => Error::NotVerified {
            path: path.clone(),
            what: format!("is missing, and run {} is an increment on it", child.manifest.run),
        },
        _ => error,
    })?;
    let text = dir.read(manifest::FILE).map_err(as_export)?.unwrap_or_default();
    let sha256 = digest(&text);
    if hex(&sha256) != parent.manifest_sha256 {
        return Err(wrong(&dir, &format!("is not the one that run {} was made on", child.manifest.run)));
    }
    let (manifest, images) = verify::look(&dir, &text)?;
    let disks = |of: &Manifest| of.disks.iter().map(|disk| disk.uuid).collect::<Vec<_>>();
    if manifest.name != child.manifest.name || manifest.run != parent.run || disks(&manifest) != disks(&child.manifest)
    {
        return Err(wrong(&dir, &format!("is not of the disks of run {}", child.manifest.run)));
    }
    // Whoever writes to a store could put an increment of their own on an encrypted run.
    let key = |of: &Manifest| of.encryption.as_ref().map(|of| of.digest_key.clone());
    if key(&manifest) != key(&child.manifest) {
        return Err(wrong(&child.dir, &format!("is an increment on run {}, and not encrypted as that is", parent.run)));
    }
    Ok(Link { dir, manifest, sha256, images })
}

/// The images of each disk, the newest first.
pub fn images(chain: Vec<Link>) -> Vec<Vec<Image>> {
    let mut disks: Vec<Vec<Image>> = Vec::new();
    for link in chain {
        for (at, image) in link.images.into_iter().enumerate() {
            match disks.get_mut(at) {
                Some(images) => images.push(image),
                None => disks.push(vec![image]),
            }
        }
    }
    disks
}

/// A line of a map, and which of the images of a disk it is of.
pub type Placed = (usize, Entry);

/// What each block of a disk is, by its images, the newest first; every block once and in order.
///
/// # Errors
/// [`Error::NotVerified`] for a block that no image has.
pub fn blocks(images: &[Image]) -> Result<Vec<Placed>> {
    let Some(newest) = images.first() else { return Ok(Vec::new()) };
    let mut found: Vec<Placed> = Vec::new();
    for (at, image) in images.iter().enumerate().rev() {
        let above = image.map.entries().iter().map(|entry| (at, entry.clone()));
        found = overlaid(found, above);
    }
    let (count, mut next) = (newest.size.div_ceil(BLOCK), 0);
    found.retain(|(_, entry)| entry.first() < count);
    for (at, entry) in &mut found {
        if let Entry::Zero(_, last) = entry {
            *last = (*last).min(count - 1);
        }
        // A shorter last block of a disk that has grown since.
        let index = entry.last();
        let fits = *at == 0 || matches!(entry, Entry::Zero(..)) || {
            length_of(index, images[*at].size) == length_of(index, newest.size)
        };
        if entry.first() != next || !fits {
            break;
        }
        next = entry.last() + 1;
    }
    match next == count {
        true => Ok(found),
        false => Err(Error::NotVerified {
            path: newest.path.clone(),
            what: format!("no export of its chain has block {next}"),
        }),
    }
}

/// The lines of a map with others in the place of those that are about the same blocks.
fn overlaid(below: Vec<Placed>, above: impl Iterator<Item = Placed>) -> Vec<Placed> {
    let mut below = VecDeque::from(below);
    let mut found = Vec::with_capacity(below.len());
    for (at, entry) in above {
        let (first, last) = (entry.first(), entry.last());
        while let Some((under, lower)) = below.pop_front() {
            if lower.first() > last {
                below.push_front((under, lower));
                break;
            }
            // Only runs of zeroes are about more than one block.
            if lower.first() < first {
                found.push(match lower.last() < first {
                    true => (under, lower.clone()),
                    false => (under, Entry::Zero(lower.first(), first - 1)),
                });
            }
            if lower.last() > last {
                below.push_front((under, Entry::Zero(last + 1, lower.last())));
                break;
            }
        }
        found.push((at, entry));
    }
    found.extend(below);
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup::map::Stored;

    const BLOCKS: u64 = 12;

    /// The map of some blocks: `true` is stored, `false` is zero.
    fn entries(of: &[Option<bool>]) -> Vec<Entry> {
        let mut map = crate::backup::map::Map::default();
        for (index, block) in (0..).zip(of) {
            match block {
                Some(true) => map.push(Entry::Stored(Stored { index, offset: 0, length: 1, digest: [0; 32] })),
                Some(false) => map.push(Entry::Zero(index, index)),
                None => {}
            }
        }
        map.entries().to_vec()
    }

    proptest! {
        #[test]
        fn each_block_is_what_the_newest_map_says(
            layers in proptest::collection::vec(
                proptest::collection::vec(proptest::option::of(any::<bool>()), BLOCKS as usize), 1..5)
        ) {
            let mut found = Vec::new();
            for (at, layer) in layers.iter().enumerate() {
                found = overlaid(found, entries(layer).into_iter().map(|entry| (at, entry)));
            }
            let mut flat = vec![None; BLOCKS as usize];
            let mut next = 0;
            for (at, entry) in found {
                prop_assert!(entry.first() >= next, "in order and none twice");
                for index in entry.first()..=entry.last() {
                    flat[index as usize] = Some((at, matches!(entry, Entry::Stored(_))));
                }
                next = entry.last() + 1;
            }
            for (index, found) in flat.into_iter().enumerate() {
                let expected = (0..layers.len()).rev().find_map(|at| Some((at, layers[at][index]?)));
                prop_assert_eq!(found, expected, "block {}", index);
            }
        }
    }
}
