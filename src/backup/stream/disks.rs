//! `sm backup receive --sr`: the disks of a stream into an SR, without a store between.
//!
//! The stream has one run with every block, as `sm backup send --whole` makes it of any run. The blocks come in the order in which
//! the disks are made, and each is compared with its map before it is written. All disks are made or none, as by an import: a
//! stream that is cut leaves none, and is sent again from its beginning.

use std::cell::RefCell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::import::{self, From, Imported, Places, Ready};
use super::super::manifest::Manifest;
use super::super::map::{Stored, digest};
use super::super::name::RunId;
use super::super::seal::{self, Keys};
use super::super::{BLOCK, Call, record, set, sign};
use super::LONGEST_PART;
use super::images::{Blocks, Images, Mapped, Opening};
use super::incoming::Stream;
use crate::error::{Error, Result};
use crate::image::disk::Disk;
use crate::types::seconds_now;

/// What is to be made of a stream.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub places: Places,
    /// The file of the keys of encrypted runs, in place of that of the set.
    pub identity: Option<PathBuf>,
    /// Also if the run is not signed.
    pub unsigned: bool,
}

/// Makes VDIs of the disks of a stream, all or none. `name`: of `from`, in errors. Answers the disks, and warnings.
///
/// # Errors
/// [`Error::NotVerified`] for a stream that is none, or whose bytes are not what it says; [`Error::Unsupported`] for an increment;
/// [`Error::Encrypted`] if no key is for the run; [`Error::Io`] if the stream ends too early; those of [`import::import`]. No VDI is left then.
pub fn receive(
    call: &Call,
    wanted: &Wanted,
    from: Box<dyn Read + Send>,
    name: &str,
) -> Result<(Vec<Imported>, Vec<String>)> {
    let mut stream = Stream::new(from, name);
    let set = stream.set()?;
    let _set = record::lock(&set, call.deadline())?;
    let mut warnings = record::recover(call, Some(&set))?;
    let Some(head) = stream.run()? else { return Err(stream.wrong("has no run")) };
    let mut blocks = Blocks { stream, left: head.bytes };
    if head.from != 0 {
        return Err(blocks.stream.wrong("does not begin with the first block of a run, as disks of an SR need it"));
    }
    let text = blocks.part(LONGEST_PART)?;
    let manifest = Manifest::parse(&text, Path::new(name))?;
    if digest(&text) != head.sha256 || manifest.name != set || manifest.run != head.run {
        return Err(blocks.stream.wrong("has a manifest that is not of the run that it names"));
    }
    sign::compare(&text, &manifest, Path::new(name))?;
    if !wanted.unsigned {
        sign::refuse_unsigned(&manifest, Path::new(name), sign::UNSIGNED)?;
    }
    refuse_part(&manifest)?;
    let (maps, sealed) = blocks.maps(&manifest)?;
    let opening = match &manifest.encryption {
        None => None,
        Some(of) => {
            let identity = seal::identity(wanted.identity.as_ref(), set::find(&set)?.as_ref(), None);
            let keys = Keys::read(&identity.ok_or_else(|| seal::no_key(Path::new(name), of))?)?;
            let digests = keys.digest_key(&sealed, Path::new(name), of)?;
            Some(Opening { keys, digests, of: of.clone() })
        }
    };
    let images = Images::of(blocks, manifest.compression, opening, maps.clone());
    let images = Arc::new(Mutex::new(images));
    let ready = |(index, Mapped { size, stored, .. }): (usize, Mapped)| {
        let data = stored.len() as u64 * BLOCK;
        let disk = Coming { index, size, stored, images: Arc::clone(&images), block: RefCell::new(None) };
        Ready { disk: Box::new(disk), data }
    };
    let disks = maps.into_iter().enumerate().map(ready).collect();
    let from = From { set: &set, store: None, run: &head.run, this: RunId::new(seconds_now().unwrap_or(0)) };
    let (made, said) = import::carry_out(call, &from, &wanted.places, &manifest, disks, &mut || lock(&images).end())?;
    warnings.extend(said);
    Ok((made, warnings))
}

/// Refuses a run that is not a disk by itself, before anything is made.
fn refuse_part(manifest: &Manifest) -> Result<()> {
    let Some(parent) = &manifest.parent else { return Ok(()) };
    let run = &manifest.run;
    let why = match manifest.encryption {
        None => format!("run {run} is an increment on run {}; send it with --whole", parent.run),
        Some(_) => format!(
            "run {run} is an encrypted increment on run {}; `sm backup consolidate {}` makes a whole run of it, or receive it into a \
             store, and import it from there",
            parent.run, manifest.name
        ),
    };
    Err(Error::Unsupported { op: "receiving this run into an SR", why })
}

fn lock(images: &Mutex<Images>) -> MutexGuard<'_, Images> {
    images.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk of the stream, which is read from its begin to its end.
struct Coming {
    index: usize,
    size: u64,
    stored: Arc<[Stored]>,
    images: Arc<Mutex<Images>>,
    /// The block that came last, and its place in the map.
    block: RefCell<Option<(usize, Vec<u8>)>>,
}

impl Coming {
    /// The place in the map of the first block that is `index` or later.
    fn place(&self, index: u64) -> usize {
        self.stored.partition_point(|stored| stored.index < index)
    }
}

impl Disk for Coming {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        let later = &self.stored[self.place(from / BLOCK)..];
        let Some(first) = later.first() else { return Ok(None) };
        let run = later.iter().zip(first.index..).take_while(|(stored, index)| stored.index == *index).count() as u64;
        let end = ((first.index + run) * BLOCK).min(self.size);
        Ok(Some(((first.index * BLOCK).max(from), end)).filter(|(start, end)| start < end))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (index, within) = (at / BLOCK, (at % BLOCK) as usize);
            let length = (buf.len() - done).min(BLOCK as usize - within);
            let part = &mut buf[done..done + length];
            done += length;
            let place = self.place(index);
            if self.stored.get(place).is_none_or(|stored| stored.index != index) {
                part.fill(0);
                continue;
            }
            let mut block = self.block.borrow_mut();
            if block.as_ref().is_none_or(|(has, _)| *has != place) {
                *block = Some((place, lock(&self.images).block(self.index, place)?));
            }
            let (_, bytes) = block.as_ref().expect("it was just taken");
            part.copy_from_slice(&bytes[within..within + length]);
        }
        Ok(())
    }
}
