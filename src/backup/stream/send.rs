//! `sm backup send`: runs of a store as a stream.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::super::BLOCK;
use super::super::chain::{self, Link};
use super::super::list;
use super::super::manifest;
use super::super::map::{digest, hex};
use super::super::name::{RunId, SetName, StoreName};
use super::{Have, Part, VERSION, parts};
use crate::error::{Error, Result};
use crate::sys::copy::Progress;

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub set: SetName,
    /// Any store, if none is named.
    pub store: Option<StoreName>,
    /// The newest, if none is named.
    pub run: Option<RunId>,
    pub start: Start,
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
/// [`Error::Io`] if the reader has gone.
pub fn send(wanted: &Wanted, to: &File, name: &str, progress: Progress) -> Result<()> {
    let found = list::find(&wanted.set, wanted.store.as_ref(), wanted.run.as_ref())?;
    let mut chain = chain::open(found.dir)?;
    chain.reverse();
    let (skipped, from) = start(&wanted.start, &chain, &found.run)?;
    let mut to = Out { to: BufWriter::with_capacity(1 << 20, to), name };
    to.line(VERSION)?;
    to.line(&format!("set {}", wanted.set))?;
    for (at, link) in chain.iter().enumerate().skip(skipped) {
        one(link, if at == skipped { from } else { 0 }, &mut to, progress)?;
    }
    to.line("done")?;
    to.to.flush().map_err(Error::io("write", name))
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
        to.line(&format!("block {} {}", bytes.len(), hex(&digest(bytes))))?;
        to.bytes(bytes)?;
        done += piece.length;
        progress(done, total);
    }
    to.line("end")
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

impl Out<'_> {
    fn line(&mut self, text: &str) -> Result<()> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).map_err(Error::io("write", self.name))
    }
}
