//! `sm backup send`: runs of a store as a stream.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::super::BLOCK;
use super::super::assemble::sums_text;
use super::super::chain::{self, Link};
use super::super::codec::Compression;
use super::super::list;
use super::super::manifest::{self, DiskOf, Manifest, image_name};
use super::super::map::{Digest, Entry, Map, Stored, digest, hex, length_of};
use super::super::name::{RunId, SetName, StoreName};
use super::super::sign;
use super::{Have, LONGEST_PART, Part, VERSION, parts};
use crate::error::{Error, Result};
use crate::sys::copy::Progress;
use crate::types::seconds_now;

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub set: SetName,
    /// Any store, if none is named.
    pub store: Option<StoreName>,
    /// The newest, if none is named.
    pub run: Option<RunId>,
    pub start: Start,
    /// One run with every block in the place of an increment and those that it is made on.
    pub is_whole: bool,
}

/// Where a stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first run of the chain.
    First,
    /// After a run of the chain, which the receiver has.
    After(RunId),
    /// With what the receiver has not.
    Without(Have),
}

/// A stretch of a part.
struct Piece {
    part: usize,
    offset: u64,
    length: u64,
}

/// Sends a run with all that it is an increment on, as far as the receiver has not got it. `name`: of `to`, in errors.
///
/// # Errors
/// [`Error::NoExport`]; [`Error::NotVerified`] for a run of the chain; [`Error::Invalid`] for a run that is not of the chain;
/// [`Error::Unsupported`] for an encrypted increment that is to be sent whole; [`Error::Io`] if the reader has gone.
pub fn send(wanted: &Wanted, to: &File, name: &str, progress: Progress) -> Result<()> {
    let found = list::find(&wanted.set, wanted.store.as_ref(), wanted.run.as_ref())?;
    let mut chain = chain::open(found.dir)?;
    if wanted.is_whole && chain.len() > 1 {
        // The run that is made of them is signed here, in the name of this host.
        chain[0].refuse_unsigned("only a run that is signed is sent whole; without --whole it goes as it is")?;
        let mut to = Out::begin(&wanted.set, to, name)?;
        whole(chain, &mut to, progress)?;
        return to.end();
    }
    chain.reverse();
    let (skipped, from) = start(&wanted.start, &chain, &found.run)?;
    let mut to = Out::begin(&wanted.set, to, name)?;
    for (at, link) in chain.iter().enumerate().skip(skipped) {
        one(link, if at == skipped { from } else { 0 }, &mut to, progress)?;
    }
    to.end()
}

/// How many runs of the chain are left out, and the first block of the next one.
fn start(start: &Start, chain: &[Link], last: &RunId) -> Result<(usize, u64)> {
    let at = |run: &RunId| chain.iter().position(|link| link.manifest.run == *run);
    Ok(match start {
        Start::First | Start::Without(Have::Nothing) => (0, 0),
        Start::After(run) => match at(run) {
            Some(at) => (at + 1, 0),
            None => {
                return Err(Error::Invalid {
                    what: "--since",
                    value: run.to_string(),
                    expected: format!("run {last} is no increment on it, not even by others"),
                });
            }
        },
        // The receiver may have runs that are not here any more.
        Start::Without(Have::Run(run)) => at(run).map_or((0, 0), |at| (at + 1, 0)),
        Start::Without(Have::Blocks(run, block)) => at(run).map_or((0, 0), |at| (at, *block)),
    })
}

fn one(link: &Link, from: u64, to: &mut Out, progress: Progress) -> Result<()> {
    let parts = parts(&link.manifest);
    let files = parts.iter().map(|part| open(link, *part)).collect::<Result<Vec<_>>>()?;
    let mut pieces = Vec::new();
    for (at, (part, (file, path))) in parts.iter().zip(&files).enumerate() {
        if let Part::Image(index) = part
            && part.is_mapped(&link.manifest)
        {
            let stored = link.images[*index].map.stored();
            pieces.extend(stored.map(|it| Piece { part: at, offset: it.offset, length: it.length }));
            continue;
        }
        let length = file.metadata().map_err(Error::io("examine", path))?.len();
        // The last block is shorter than others, or empty.
        let blocks = (0..=length / BLOCK).map(|block| block * BLOCK);
        pieces.extend(blocks.map(|offset| Piece { part: at, offset, length: (length - offset).min(BLOCK) }));
    }
    if from > pieces.len() as u64 {
        return Err(Error::Invalid {
            what: "--from",
            value: format!("{}:{from}", link.manifest.run),
            expected: format!("the run has {} blocks", pieces.len()),
        });
    }
    let pieces = &pieces[from as usize..];
    let total: u64 = pieces.iter().map(|piece| piece.length).sum();
    let manifest = link.dir.read(manifest::FILE)?.unwrap_or_default();
    to.line(&format!("run {} {} {from} {total}", link.manifest.run, hex(&digest(&manifest))))?;
    let (mut buffer, mut done) = (vec![0; BLOCK as usize], 0);
    for piece in pieces {
        let (file, path) = &files[piece.part];
        // A block that was not packed may be no longer than others.
        let length = usize::try_from(piece.length).ok().filter(|length| *length <= buffer.len());
        let bytes = &mut buffer[..length.ok_or_else(|| too_long(path))?];
        file.read_exact_at(bytes, piece.offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::NotVerified { path: path.clone(), what: "became shorter while it was sent".to_owned() }
            }
            _ => Error::io("read", path)(e),
        })?;
        to.block(bytes, &digest(bytes))?;
        done += piece.length;
        progress(done, total);
    }
    to.line("end")
}

/// Sends what a chain of runs is as one run, which is not packed, under a name of its own.
fn whole(chain: Vec<Link>, to: &mut Out, progress: Progress) -> Result<()> {
    let (dir, newest) = (chain[0].dir.path().to_owned(), chain[0].manifest.clone());
    if newest.encryption.is_some() {
        let why = format!(
            "run {} is an encrypted increment, and this host may have no key; `sm backup consolidate {}` makes a whole run of it",
            newest.run, newest.name
        );
        return Err(Error::Unsupported { op: "sending this run whole", why });
    }
    let opaque = newest.metadata.is_some().then(|| read(&chain[0], Part::Metadata)).transpose()?;
    let run = RunId::after(seconds_now().unwrap_or(0), Some(&newest.run));
    let run =
        run.ok_or_else(|| Error::NotVerified { path: dir, what: "has the last name that there is".to_owned() })?;
    let mut manifest =
        Manifest { run, parent: None, compression: Compression::None, disks: Vec::new(), ..newest.clone() };
    let (mut disks, mut maps) = (Vec::new(), Vec::new());
    for (disk, images) in newest.disks.into_iter().zip(chain::images(chain)) {
        let blocks = chain::blocks(&images)?;
        let mut map = Map::default();
        for (_, entry) in &blocks {
            map.push(match entry {
                Entry::Zero(first, last) => Entry::Zero(*first, *last),
                Entry::Stored(it) => Entry::Stored(Stored {
                    offset: it.index * BLOCK,
                    length: length_of(it.index, disk.virtual_size) as u64,
                    ..it.clone()
                }),
            });
        }
        let text = map.text();
        let file = image_name(disk.index, manifest.compression, false);
        manifest.disks.push(DiskOf { file, map_sha256: hex(&digest(text.as_bytes())), ..disk });
        maps.push(text.into_bytes());
        disks.push((images, blocks));
    }
    let text = sign::signed(&mut manifest)?;
    let sums = manifest.disks.iter().map(|disk| (disk.map.clone(), disk.map_sha256.clone()));
    let sums = sums.chain(opaque.iter().map(|bytes| (manifest::METADATA.to_owned(), hex(&digest(bytes)))));
    let mut sums: Vec<_> = sums.chain([(manifest::FILE.to_owned(), hex(&digest(&text)))]).collect();
    let small = [text.clone(), sums_text(&mut sums).into_bytes()].into_iter().chain(maps).chain(opaque);
    let small: Vec<Vec<u8>> = small.collect();
    let data = manifest.disks.iter().zip(&disks).flat_map(|(disk, (images, blocks))| {
        blocks.iter().filter_map(move |(at, entry)| match entry {
            Entry::Stored(stored) => Some((&images[*at], stored, length_of(stored.index, disk.virtual_size) as u64)),
            Entry::Zero(..) => None,
        })
    });
    let total =
        small.iter().map(|part| part.len() as u64).sum::<u64>() + data.clone().map(|(.., length)| length).sum::<u64>();
    to.line(&format!("run {} {} 0 {total}", manifest.run, hex(&digest(&text))))?;
    let mut done = 0;
    for part in &small {
        done += part.len() as u64;
        to.part(part)?;
    }
    for (image, stored, length) in data {
        to.block(&image.block(stored)?, &stored.digest)?;
        done += length;
        progress(done, total);
    }
    to.line("end")
}

/// A small part of a run.
fn read(link: &Link, part: Part) -> Result<Vec<u8>> {
    let (file, path) = open(link, part)?;
    let mut bytes = Vec::new();
    file.take(LONGEST_PART).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

fn too_long(path: &std::path::Path) -> Error {
    Error::NotVerified { path: path.to_owned(), what: "has a block that is too long by its map".to_owned() }
}

fn open(link: &Link, part: Part) -> Result<(File, PathBuf)> {
    if let Part::Image(index) = part {
        let image = &link.images[index];
        let file = image.file.try_clone().map_err(Error::io("duplicate", &image.path))?;
        return Ok((file, image.path.clone()));
    }
    let name = part.name(&link.manifest);
    let path = link.dir.join(&name);
    let missing = || Error::NotVerified { path: path.clone(), what: "is missing".to_owned() };
    let file = link.dir.try_open_record(&name)?.ok_or_else(missing)?;
    Ok((file, path))
}

/// The pipe.
struct Out<'a> {
    to: BufWriter<&'a File>,
    name: &'a str,
}

impl<'a> Out<'a> {
    fn begin(set: &SetName, to: &'a File, name: &'a str) -> Result<Out<'a>> {
        let mut to = Out { to: BufWriter::with_capacity(1 << 20, to), name };
        to.line(VERSION)?;
        to.line(&format!("set {set}"))?;
        Ok(to)
    }

    fn end(mut self) -> Result<()> {
        self.line("done")?;
        self.to.flush().map_err(Error::io("write", self.name))
    }

    fn block(&mut self, bytes: &[u8], digest: &Digest) -> Result<()> {
        self.line(&format!("block {} {}", bytes.len(), hex(digest)))?;
        self.bytes(bytes)
    }

    /// A part whose last block is shorter than others, or empty.
    fn part(&mut self, bytes: &[u8]) -> Result<()> {
        for start in (0..=bytes.len()).step_by(BLOCK as usize) {
            let block = &bytes[start..(start + BLOCK as usize).min(bytes.len())];
            self.block(block, &digest(block))?;
        }
        Ok(())
    }

    fn line(&mut self, text: &str) -> Result<()> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).map_err(Error::io("write", self.name))
    }
}
