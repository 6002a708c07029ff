//! The files of an export that tell of the others: written last, and looked at before it is published.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::Packing;
use super::manifest::{self, DiskOf, Manifest, Metadata, image_name, map_name};
use super::map::{digest, hex};
use super::name::RunId;
use super::seal::Seal;
use super::shelf::{Shelf, put, taken};
use super::sign;
use super::verify;
use super::write::Written;
use crate::error::{Error, Result};
use crate::sys::durable::Dir;

/// The files of an export and their digests.
pub type Sums = Vec<(String, String)>;

/// Writes the image and the map of a disk: `write` is given the open file and its path. Answers what `write` answered; the names
/// of the files and the digest of the map go into `disk`.
///
/// # Errors
/// Those of `write`; [`Error::Io`].
pub fn put_disk<T>(
    dir: &Dir,
    index: usize,
    packing: &Packing,
    sums: &mut Sums,
    write: impl FnOnce(Arc<std::fs::File>, &Path) -> Result<(T, Written)>,
) -> Result<(T, Written, Names)> {
    let (file, map) = (image_name(index, packing.compression, packing.seal.is_some()), map_name(index));
    let (new, path) = (dir.new_file()?, dir.join(&file));
    let to = Arc::new(new.file().try_clone().map_err(Error::io("duplicate", &path))?);
    let (answer, written) = write(to, &path)?;
    if !new.publish_soon(&file)? {
        return Err(taken(path));
    }
    let text = written.map.text();
    put(dir, &map, text.as_bytes())?;
    let map_sha256 = hex(&digest(text.as_bytes()));
    sums.push((map.clone(), map_sha256.clone()));
    sums.extend(written.image.as_ref().map(|image| (file.clone(), hex(image))));
    Ok((answer, written, Names { file, map, map_sha256 }))
}

/// The files of a disk.
pub struct Names {
    pub file: String,
    pub map: String,
    pub map_sha256: String,
}

/// Completes an export, looks at it, and makes it the current one. `opaque`: the file of an agent.
///
/// # Errors
/// [`Error::NotVerified`] if what was written is not read back; [`Error::Io`].
pub fn finish(
    shelf: &Shelf,
    run: &RunId,
    dir: &Dir,
    mut manifest: Manifest,
    packing: &Packing,
    mut sums: Sums,
    opaque: Option<&[u8]>,
) -> Result<Vec<DiskOf>> {
    manifest.compression = packing.compression;
    manifest.encryption = packing.seal.as_ref().map(Seal::told);
    let mut add = |name: &str, bytes: &[u8]| -> Result<String> {
        put(dir, name, bytes)?;
        let sha256 = hex(&digest(bytes));
        sums.push((name.to_owned(), sha256.clone()));
        Ok(sha256)
    };
    if let Some(seal) = &packing.seal {
        add(manifest::DIGEST_KEY, &seal.digest_key(&dir.join(manifest::DIGEST_KEY))?)?;
    }
    if let Some(bytes) = opaque {
        let name = manifest.metadata_name();
        let sha256 = match &packing.seal {
            None => add(name, bytes)?,
            Some(seal) => add(name, &seal.sealed(bytes, &dir.join(name))?)?,
        };
        manifest.metadata = Some(Metadata { file: name.to_owned(), sha256 });
    }
    let text = sign::signed(&mut manifest)?;
    put(dir, manifest::FILE, &text)?;
    sums.push((manifest::FILE.to_owned(), hex(&digest(&text))));
    put(dir, manifest::SUMS, sums_text(&mut sums).as_bytes())?;
    verify::look(dir, &verify::text(dir)?)?;
    shelf.publish(run, dir)?;
    Ok(manifest.disks)
}

/// Completes what there is of a run that failed, and gives it a name under which it stays until the next export of the set is
/// complete. Answers its directory.
///
/// # Errors
/// [`Error::Io`].
pub fn keep_partial(shelf: &Shelf, run: &RunId, dir: &Dir, mut sums: Sums) -> Result<Option<PathBuf>> {
    if dir.lookup(manifest::SUMS)?.is_none() {
        put(dir, manifest::SUMS, sums_text(&mut sums).as_bytes())?;
    }
    shelf.keep_partial(run, dir).map(Some)
}

/// The file of the sums, as sha256sum(1) writes it.
pub fn sums_text(sums: &mut Sums) -> String {
    sums.sort();
    sums.iter().map(|(file, sum)| format!("{sum}  {file}\n")).collect()
}
