//! `sm backup receive`: a stream into a store.
//!
//! 1. The head of the stream, and of each run its manifest, are read. Until then nothing is written.
//! 2. The blocks of the run are written into `STORE/NAME/RUN.new`. Every [`BETWEEN`] bytes they are made durable, and then
//!    [`PROGRESS`] tells durably how many there are. So does a stream that ends too early.
//! 3. After the last block the run is looked at, with all that it is an increment on.
//! 4. `RUN.new` becomes `RUN`, and the newest run the current one.
//!
//! A kill leaves `RUN.new`. A stream that begins with a later block goes on with it, by [`PROGRESS`]; every other call that changes
//! what the store has of the set removes it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::chain;
use super::super::export::place_of;
use super::super::manifest::{self, Manifest, ParentRun};
use super::super::map::{Map, Stored, digest, hex, length_of};
use super::super::name::{RunId, SetName, StoreName};
use super::super::retain::{self, Keep};
use super::super::shelf::{Foreign, Shelf};
use super::super::store::{self, Open};
use super::super::verify;
use super::super::{BLOCK, Call, record};
use super::incoming::{Head, Stream};
use super::{Have, LONGEST_PART, Part, parts};
use crate::error::{Error, Result, one_line};
use crate::image::disk::without_zeroes;
use crate::sys::durable::Dir;
use crate::types::{Utc, seconds_now};

/// The file that tells how much of a run is there.
const PROGRESS: &str = "received.json";
/// Bytes after which what was received is made durable.
const BETWEEN: u64 = 256 << 20;

/// What is to be received.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub store: StoreName,
    /// The runs that stay. `None`: all.
    pub keep: Option<Keep>,
    /// Also if another host made the exports of the set that the store has.
    pub take_over: bool,
}

/// What was received.
#[derive(Debug)]
pub struct Received {
    /// Those that are new here.
    pub runs: Vec<RunId>,
    pub warnings: Vec<String>,
}

/// How much of a run is there, durably.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// The number of the block that comes next.
    block: u64,
    /// The part that it is of.
    part: usize,
    /// Bytes of that part; of an image that is not packed, blocks.
    done: u64,
}

/// Receives the runs of a stream. `name`: of `from`, in errors.
///
/// # Errors
/// [`Error::NotVerified`] for a stream that is none, or whose bytes are not what it says; [`Error::Io`] if it ends too early. The
/// runs that were complete by then stay. [`Error::StoreFull`], [`Error::NoDevice`], [`Error::Unsupported`] for the store;
/// [`Error::Locked`].
pub fn receive(call: &Call, wanted: &Wanted, from: Box<dyn Read + Send>, name: &str) -> Result<Received> {
    let store = place_of(&wanted.store)?.open()?;
    let mut stream = Stream::new(from, name);
    let set = stream.set()?;
    let _set = record::lock(&set, call.deadline())?;
    let mut received = Received { runs: Vec::new(), warnings: record::recover(call, Some(&set))? };
    let now = seconds_now().unwrap_or(0);
    let _taken = store.lock(&set, &RunId::new(now), call.deadline())?;
    let shelf = Shelf::new(&store, set);
    while let Some(head) = stream.run()? {
        if one(call, &store, &shelf, &head, wanted.take_over, &mut stream)? {
            received.runs.push(head.run);
        }
    }
    // Also when an earlier run than the newest came, or a kill came before the newest was made the current one.
    shelf.repair()?;
    if let Some(keep) = &wanted.keep {
        let pruned = retain::prune(&shelf, keep);
        received.warnings.extend(pruned.err().map(|error| format!("older runs stay: {}", one_line(&error))));
    }
    Ok(received)
}

/// What a store has of a set, for a sender.
///
/// # Errors
/// [`Error::Locked`] while another call writes; [`Error::NoDevice`], [`Error::Io`] of the store.
pub fn have(call: &Call, store: &StoreName, set: &SetName) -> Result<Have> {
    let store = store::find(store)?.open()?;
    let _set = record::lock(set, call.deadline())?;
    let _taken = store.lock(set, &RunId::new(seconds_now().unwrap_or(0)), call.deadline())?;
    let shelf = Shelf::new(&store, set.clone());
    let runs = shelf.runs()?;
    for run in shelf.all_begun()?.into_iter().rev() {
        let Some(dir) = shelf.begun(&run)? else { continue };
        if let Some((_, progress)) = progress_of(&dir)?.filter(|_| !runs.contains(&run)) {
            return Ok(Have::Blocks(run, progress.block));
        }
    }
    Ok(runs.last().cloned().map_or(Have::Nothing, Have::Run))
}

/// How much is in the directory of a run, with its manifest. `None`: nothing that could be gone on with.
fn progress_of(dir: &Dir) -> Result<Option<(Vec<u8>, Progress)>> {
    let (Some(text), Some(progress)) = (dir.read(manifest::FILE)?, dir.read(PROGRESS)?) else { return Ok(None) };
    let Ok(progress) = serde_json::from_slice::<Progress>(&progress) else { return Ok(None) };
    let Ok(manifest) = Manifest::parse(&text, dir.path()) else { return Ok(None) };
    Ok(progress.is_of(&manifest, dir)?.then_some((text, progress)))
}

impl Progress {
    /// Whether what is told can be true: what a store holds may have been damaged, or written by somebody else.
    fn is_of(&self, manifest: &Manifest, dir: &Dir) -> Result<bool> {
        let parts = parts(manifest);
        // All is there, and was not looked at yet.
        let Some(part) = parts.get(self.part).copied() else { return Ok(self.part == parts.len()) };
        match part {
            Part::Image(index) if part.is_mapped(manifest) => {
                let map = verify::map(dir, manifest, &manifest.disks[index]);
                Ok(map.is_ok_and(|map| self.done <= map.stored().count() as u64))
            }
            _ => Ok(self.done <= dir.lookup(&part.name(manifest))?.map_or(0, |stat| stat.length)),
        }
    }
}

/// Receives one run. `false`: it is here already, and was passed over.
fn one(call: &Call, store: &Open, shelf: &Shelf, head: &Head, take_over: bool, stream: &mut Stream) -> Result<bool> {
    if shelf.runs()?.contains(&head.run) {
        let (_, dir) = shelf.find(Some(&head.run))?;
        if digest(&dir.read(manifest::FILE)?.unwrap_or_default()) != head.sha256 {
            return Err(stream.wrong(&format!("has another run {} than store {} has", head.run, store.name)));
        }
        while stream.block(head.bytes)?.is_some() {}
        return Ok(false);
    }
    let mut landing = match head.from {
        0 => begun(store, shelf, head, take_over, stream)?,
        _ => resumed(store, shelf, head, stream)?,
    };
    let came = landing.blocks(call, head.bytes, stream);
    if let Err(error) = came {
        // What came is kept for a stream that goes on. If it cannot be kept, that stream begins earlier.
        let _ = landing.keep();
        return Err(error);
    }
    landing.keep()?;
    let done = landing.finish();
    match done {
        Ok(dir) => shelf.publish(&head.run, &dir)?,
        // It is whole and not what it should be: going on would change nothing.
        Err(error) => return Err(error.undone(shelf.abandon(&head.run))),
    }
    Ok(true)
}

/// Refuses a run from the future: every later run of the set would have to be named after it.
fn refuse_ahead(run: &RunId, now: u64) -> Result<()> {
    match run.is_ahead(now) {
        false => Ok(()),
        true => Err(Error::Unsupported {
            op: "receiving this run",
            why: format!(
                "run {run} is more than a day ahead of the clock of this host, which is at {}; set the clock that is wrong, and export \
                 the set anew if it is that of the sender",
                Utc(now)
            ),
        }),
    }
}

/// Begins a run: its manifest is read and looked at before a directory is made.
fn begun(store: &Open, shelf: &Shelf, head: &Head, take_over: bool, stream: &mut Stream) -> Result<Landing> {
    let text = match stream.block(head.bytes)? {
        Some(text) if (text.len() as u64) < BLOCK => text.to_vec(),
        _ => return Err(stream.wrong("does not begin with a manifest")),
    };
    let manifest = checked(&text, shelf, head, stream)?;
    if let Some(foreign) = shelf.foreign(&manifest.source())?.filter(|_| !take_over) {
        let (set, name, source) = (&shelf.set, &store.name, &manifest.source_host);
        let why = match foreign {
            Foreign::Host(host) => format!(
                "host {host} made the exports of set {set} in store {name}, and host {source} those that came; give --take-over if the \
                 set has moved there"
            ),
            Foreign::Unreadable { run, why } => format!(
                "another host than {source} may have made run {run} of set {set} in store {name}, whose manifest cannot be read \
                 ({why}); `sm backup remove {set} --store {name} --run {run}` removes it, or give --take-over"
            ),
        };
        return Err(Error::Unsupported { op: "receiving exports over those of another host", why });
    }
    store.refuse_if_full(head.bytes)?;
    shelf.abandon(&head.run)?;
    let dir = shelf.begin(&head.run)?;
    dir.replace(manifest::FILE, &text)?;
    let parts = parts(&manifest);
    let progress = Progress { block: 1, part: 1, done: 0 };
    Ok(Landing { dir, manifest, parts, progress, seen: text.len() as u64, since: 0, dirty: Vec::new(), open: None })
}

/// Goes on with a run that a stream before this one began.
fn resumed(store: &Open, shelf: &Shelf, head: &Head, stream: &mut Stream) -> Result<Landing> {
    let dir = shelf.begun(&head.run)?;
    let found = dir.as_ref().map(progress_of).transpose()?.flatten();
    let (dir, text, progress) = match (dir, found) {
        (Some(dir), Some((text, progress))) if progress.block == head.from => (dir, text, progress),
        (_, found) => {
            let has = found.map_or(0, |(_, progress)| progress.block);
            let (run, from) = (&head.run, head.from);
            return Err(stream.wrong(&format!(
                "begins with block {from} of run {run}, and {has} are here; `sm backup receive --resume {}` tells where to begin",
                shelf.set
            )));
        }
    };
    let manifest = checked(&text, shelf, head, stream)?;
    store.refuse_if_full(head.bytes)?;
    let parts = parts(&manifest);
    Ok(Landing { dir, manifest, parts, progress, seen: 0, since: 0, dirty: Vec::new(), open: None })
}

/// The manifest of a run, which is of this set, and whose parent is here.
fn checked(text: &[u8], shelf: &Shelf, head: &Head, stream: &Stream) -> Result<Manifest> {
    let manifest = Manifest::parse(text, Path::new(stream.name()))?;
    if digest(text) != head.sha256 || manifest.name != shelf.set || manifest.run != head.run {
        return Err(stream.wrong("has a manifest that is not of the run that it names"));
    }
    refuse_ahead(&head.run, seconds_now().unwrap_or(0))?;
    if let Some(ParentRun { run, manifest_sha256 }) = &manifest.parent {
        let parent = shelf.find(Some(run)).and_then(|(_, dir)| dir.read(manifest::FILE));
        let is_here = parent.is_ok_and(|text| text.is_some_and(|text| hex(&digest(&text)) == *manifest_sha256));
        if !is_here {
            return Err(stream.wrong(&format!(
                "has run {}, an increment on run {run}, which store {} has not; send it without --since",
                head.run, shelf.store.name
            )));
        }
    }
    Ok(manifest)
}

/// A run that comes in.
struct Landing {
    dir: Dir,
    manifest: Manifest,
    parts: Vec<Part>,
    progress: Progress,
    /// Bytes that came of what the line of the run promised.
    seen: u64,
    /// Bytes that are not yet durable.
    since: u64,
    /// Files that were completed and are not yet durable.
    dirty: Vec<File>,
    open: Option<OpenPart>,
}

/// The file of the part that comes in.
struct OpenPart {
    file: File,
    path: PathBuf,
    /// Of an image that is not packed: the blocks of its map.
    stored: Option<Vec<Stored>>,
    /// Bytes of the disk.
    size: u64,
    /// Bytes of the part at most.
    most: u64,
}

impl Landing {
    /// Takes the blocks of the stream until it says that there are no more.
    fn blocks(&mut self, call: &Call, bytes: u64, stream: &mut Stream) -> Result<()> {
        loop {
            let block = stream.block(bytes.saturating_sub(self.seen))?;
            let Some(block) = block.map(<[u8]>::len) else { break };
            self.seen += block as u64;
            self.skip_complete()?;
            if self.progress.part == self.parts.len() {
                return Err(stream.wrong("has more blocks than the run"));
            }
            self.take(stream.taken(block), stream)?;
            self.progress.block += 1;
            (call.progress)(self.seen, bytes);
            if self.since >= BETWEEN {
                self.keep()?;
            }
        }
        self.skip_complete()?;
        match self.progress.part == self.parts.len() {
            true => Ok(()),
            false => Err(stream.wrong("ends a run before its last block")),
        }
    }

    /// Goes to the part that the next block is of: an image that is not packed is complete after the last block of its map.
    fn skip_complete(&mut self) -> Result<()> {
        while self.progress.part < self.parts.len() {
            let done = self.progress.done;
            let blocks = self.part()?.stored.as_ref().map(Vec::len);
            if blocks != Some(done as usize) {
                break;
            }
            self.complete(None)?;
        }
        Ok(())
    }

    /// The file of the present part.
    fn part(&mut self) -> Result<&OpenPart> {
        if self.open.is_none() {
            self.open = Some(self.opened()?);
        }
        Ok(self.open.as_ref().expect("it was just opened"))
    }

    fn opened(&self) -> Result<OpenPart> {
        let part = self.parts[self.progress.part];
        let name = part.name(&self.manifest);
        let (file, path) = (self.dir.make_file(&name)?, self.dir.join(&name));
        let (mut stored, mut size, mut most) = (None, 0, LONGEST_PART);
        match part {
            Part::Map(index) => most = verify::longest_map(self.manifest.disks[index].virtual_size),
            // What is in the manifest's line of the stream bounds it, and the room was looked for.
            Part::Image(_) if !part.is_mapped(&self.manifest) => most = u64::MAX,
            Part::Image(index) => {
                size = self.manifest.disks[index].virtual_size;
                file.set_len(size).map_err(Error::io("write", &path))?;
                let map = verify::map(&self.dir, &self.manifest, &self.manifest.disks[index])?;
                stored = Some(Map::stored(&map).cloned().collect());
            }
            _ => {}
        }
        Ok(OpenPart { file, path, stored, size, most })
    }

    fn take(&mut self, block: &[u8], stream: &Stream) -> Result<()> {
        let done = self.progress.done;
        let part = self.part()?;
        if let Some(stored) = &part.stored {
            let stored = &stored[done as usize];
            let is_right = stored.offset == stored.index * BLOCK
                && block.len() == length_of(stored.index, part.size)
                && *stream.digest() == stored.digest;
            if !is_right {
                return Err(stream.wrong(&format!("has a block {} that is not the one of the map", stored.index)));
            }
            let failed = || Error::io("write", &part.path);
            without_zeroes(block, stored.offset, &mut |offset, bytes| {
                part.file.write_all_at(bytes, offset).map_err(failed())
            })?;
            self.progress.done += 1;
        } else {
            let end = done + block.len() as u64;
            if end > part.most {
                return Err(stream.wrong(&format!("has more bytes of {} than there can be", part.path.display())));
            }
            part.file.write_all_at(block, done).map_err(Error::io("write", &part.path))?;
            self.progress.done = end;
            if (block.len() as u64) < BLOCK {
                self.complete(Some(end))?;
            }
        }
        self.since += block.len() as u64;
        Ok(())
    }

    /// The present part is complete. `length`: its bytes; a stream that was cut may have written more.
    fn complete(&mut self, length: Option<u64>) -> Result<()> {
        if let Some(part) = self.open.take() {
            if let Some(length) = length {
                part.file.set_len(length).map_err(Error::io("write", &part.path))?;
            }
            self.dirty.push(part.file);
        }
        (self.progress.part, self.progress.done) = (self.progress.part + 1, 0);
        Ok(())
    }

    /// Makes durable what came, and then that it came.
    fn keep(&mut self) -> Result<()> {
        let failed = || Error::io("make durable", self.dir.path());
        for file in self.dirty.iter().chain(self.open.as_ref().map(|part| &part.file)) {
            file.sync_all().map_err(failed())?;
        }
        self.dirty.clear();
        self.dir.sync()?;
        self.dir.replace(PROGRESS, &serde_json::to_vec(&self.progress).expect("a progress is plain data"))?;
        self.since = 0;
        Ok(())
    }

    /// Looks at the run as `verify` does.
    fn finish(self) -> Result<Dir> {
        self.dir.remove(PROGRESS)?;
        let path = self.dir.path().to_owned();
        let chain = chain::open(self.dir)?;
        verify::files(&chain[0])?;
        for images in chain::images(chain) {
            chain::blocks(&images)?;
        }
        Dir::open(&path)
    }
}
