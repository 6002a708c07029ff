//! `sm backup consolidate`: the newest export of a set whole, made of the store alone.

use std::path::PathBuf;

use super::age::key;
use super::assemble::{self, Names, Sums};
use super::chain::{self, Link};
use super::codec::Packing;
use super::export::{metadata, place_of};
use super::list::manifest_of;
use super::manifest::{self, DiskOf, Manifest};
use super::map::{digest, hex};
use super::name::{RunId, SetName, StoreName};
use super::read::Restored;
use super::seal::{self, Keys, Seal};
use super::set;
use super::shelf::Shelf;
use super::store::Store;
use super::verify::as_export;
use super::write::{self, From};
use super::{Call, record};
use crate::error::{Error, Result};
use crate::types::seconds_now;

/// What is to be made whole.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub set: SetName,
    pub store: StoreName,
    /// The file of those that an encrypted export is encrypted for, in place of that of the set or the store.
    pub recipient: Option<PathBuf>,
    /// The file of the keys that it is read with, in place of that of the set or the store.
    pub identity: Option<PathBuf>,
}

/// Makes the newest export of a set whole: a run that has every block, without reading the disks. It is packed and encrypted as the
/// newest is. Answers the run, or `None` if the newest is whole already.
///
/// # Errors
/// [`Error::NoExport`]; [`Error::NotVerified`] for a block that is not what it should be; [`Error::Encrypted`];
/// [`Error::Unsupported`] for an export that is not encrypted, and should be;
/// [`Error::Locked`]; [`Error::Io`].
pub fn consolidate(call: &Call, wanted: &Wanted) -> Result<(Option<RunId>, Vec<String>)> {
    let place = place_of(&wanted.store)?;
    let store = place.open()?;
    let _set = record::lock(&wanted.set, call.deadline())?;
    let warnings = record::recover(call, Some(&wanted.set))?;
    let now = seconds_now().unwrap_or(0);
    let _taken = store.lock(&wanted.set, &RunId::new(now), call.deadline())?;
    let shelf = Shelf::new(&store, wanted.set.clone());
    shelf.repair()?;
    let (_, dir) = shelf.find(None)?;
    if manifest_of(&dir)?.parent.is_none() {
        return Ok((None, warnings));
    }
    let mut chain = chain::open(dir)?;
    chain[0].refuse_unsigned("an export with --since none makes a whole run that is signed")?;
    let (packing, opaque) = packing(wanted, &place, &mut chain)?;
    let before = chain[0].manifest.clone();
    let run = shelf.next_run(now)?;
    let new = shelf.begin(&run)?;
    let mut manifest = Manifest { run: run.clone(), parent: None, disks: Vec::new(), ..before.clone() };
    let mut sums = Sums::new();
    let done = || {
        for (index, (disk, images)) in before.disks.iter().zip(chain::images(chain)).enumerate() {
            let restored = Restored::new(images)?;
            let total = restored.data();
            let from = From { disk: &restored, uuid: disk.uuid, since: None, changed: None, total, rate: None };
            let ((), _, names) = assemble::put_disk(&new, index, &packing, &mut sums, |to, path| {
                write::write(&from, &packing, &to, path, call.progress).map(|written| ((), written))
            })?;
            let Names { file, map, map_sha256 } = names;
            manifest.disks.push(DiskOf { file, map, map_sha256, ..disk.clone() });
        }
        assemble::finish(&shelf, &run, &new, manifest, &packing, sums, opaque.as_deref())
    };
    match done() {
        Ok(_) => Ok((Some(run), warnings)),
        Err(error) => Err(error.undone(shelf.abandon(&run))),
    }
}

/// How the new export is written, and the file of an agent. Opens the chain if it is encrypted.
fn packing(wanted: &Wanted, place: &Store, chain: &mut [Link]) -> Result<(Packing, Option<Vec<u8>>)> {
    let set = set::find(&wanted.set)?;
    let identity = seal::identity(wanted.identity.as_ref(), set.as_ref(), Some(place));
    chain::unlock(chain, identity.as_deref())?;
    let (dir, manifest) = (&chain[0].dir, &chain[0].manifest);
    let path = dir.join(manifest.metadata_name());
    let opaque = manifest.metadata.is_some().then(|| metadata(&path)).transpose()?;
    // It was compared when the chain was opened, and is read again.
    let sum = opaque.as_ref().map(|opaque| hex(&digest(opaque)));
    if manifest.metadata.as_ref().map(|it| &it.sha256) != sum.as_ref() {
        return Err(Error::NotVerified { path, what: "is not the one that the manifest tells of".to_owned() });
    }
    let recipient = seal::recipient(wanted.recipient.as_ref(), set.as_ref(), place);
    let (Some(of), Some(identity)) = (&manifest.encryption, identity) else {
        // A run that somebody put there must not have the set written in clear.
        return match recipient {
            None => Ok((Packing { compression: manifest.compression, seal: None }, opaque)),
            Some(path) => Err(Error::Unsupported {
                op: "making this export whole",
                why: format!(
                    "run {} of set {} is not encrypted, and what is written is to be encrypted for {}; an export with --since none \
                     makes a whole run that is",
                    manifest.run,
                    wanted.set,
                    path.display()
                ),
            }),
        };
    };
    let recipient = recipient.ok_or_else(|| Error::Invalid {
        what: "--recipient",
        value: String::new(),
        expected: format!("{} is encrypted, and so would be the whole export: name those that it is for", wanted.set),
    })?;
    let keys = Keys::read(&identity)?;
    let sealed = dir.read(manifest::DIGEST_KEY).map_err(as_export)?.unwrap_or_default();
    let digests = keys.digest_key(&sealed, &dir.join(manifest::DIGEST_KEY), of)?;
    let opaque = opaque.map(|sealed| keys.opened(&sealed, &path, of)).transpose()?;
    let seal = Seal { recipients: key::recipients(&recipient)?, digests };
    Ok((Packing { compression: manifest.compression, seal: Some(seal) }, opaque))
}
