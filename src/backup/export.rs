//! `sm backup export`: the disks of a set into a store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::age::key::{self, Recipient};
use super::chain;
use super::codec::{Compression, Packing};
use super::hooks::{self, Point};
use super::manifest::{DiskOf, ParentRun};
use super::map::hex;
use super::name::{RunId, SetName, StoreName};
use super::pause::{self, Pause, Zeroing};
use super::record::{self, Begun, Record};
use super::retain::{self, Coming, Keep};
use super::running::{Done, Running};
use super::seal::{self, DigestKey, Seal};
use super::set::{self, Member, Set};
use super::shelf::{Foreign, Shelf};
use super::source::{self, Hold, Source};
use super::store::{self, Open, Store};
use super::{Call, bases, remove, sign};
use crate::error::{Error, Result, one_line};
use crate::sys::{run_dir, small};
use crate::types::{Size, VdiUuid, seconds_now};

/// Bytes of the longest opaque file.
const LONGEST_METADATA: u64 = 16 << 20;

/// The export that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub set: SetName,
    /// In place of those of the set, if any is named.
    pub disks: Vec<Member>,
    pub store: StoreName,
    /// `None`: not at all; of an encrypted export, zstd.
    pub compression: Option<Compression>,
    /// The file of those that the export is encrypted for, in place of that of the set or the store.
    pub recipient: Option<PathBuf>,
    /// Disks in use are snapshotted and the snapshots are read.
    pub live: bool,
    /// As `live`, and what uses the disks is paused by hooks until all snapshots are there. How long each may take.
    pub pause: Option<Duration>,
    /// What uses the disks stays paused while disks are read of which no snapshot can be made.
    pub long_pause: bool,
    /// The disks are deleted once they are exported. What uses them is stopped by the pause.
    pub remove_source: bool,
    /// Disks that cannot be deleted then are a warning.
    pub ignore_remove_failures: bool,
    /// What the disks do not use is filled with zeroes first, by hooks.
    pub zero_free: Option<Zeroing>,
    /// Bytes a second that are read at most.
    pub rate: Option<u64>,
    /// What the export leaves out, and that the next one may leave out what this one has.
    pub since: Option<SinceRun>,
    /// With [`SinceRun::Last`]: every block is stored once the last whole run has so many increments.
    pub most_increments: Option<usize>,
    /// Nothing is said: as many as the newest run was to leave.
    pub keep: Option<Keep>,
    /// Also if another host made the exports of the set that the store has.
    pub take_over: bool,
    /// Leaves what other stores have of the set.
    pub keep_others: bool,
    /// Of an export that failed, the disks that did not fail stay in the store.
    pub keep_partial: bool,
    /// Changes nothing.
    pub dry_run: bool,
}

/// The run that an increment is made on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinceRun {
    /// The current one; without one, every block is stored.
    Last,
    Run(RunId),
    /// Every block is stored.
    None,
}

/// What was exported.
#[derive(Debug)]
pub struct Exported {
    pub run: RunId,
    pub disks: Vec<DiskOf>,
    /// The older runs that did not stay.
    pub removed: Vec<RunId>,
    pub warnings: Vec<String>,
    /// What would be done, of a call that changes nothing.
    pub plan: Option<Vec<String>>,
}

/// Exports a set. The export before stays current until this one is complete and was looked at.
///
/// # Errors
/// [`Error::Invalid`] for options that do not belong together;
/// [`Error::VdiInUse`], [`Error::NoVdi`], [`Error::UnknownSr`] for a disk; [`Error::Invalid`], [`Error::Unsupported`],
/// [`Error::NoDevice`], [`Error::StoreFull`] for the store; [`Error::BadLine`] for a file of keys; [`Error::NotVerified`], [`Error::NoExport`] for the run that the
/// increment is to be made on; [`Error::Locked`]; [`Error::NoSnapshots`]. Then nothing was changed.
/// [`Error::NotExported`] with each disk that failed. [`Error::NotCleaned`] with each disk that is exported and not deleted.
pub fn export(call: &Call, wanted: &Wanted) -> Result<Exported> {
    // Another export of the set has the locks of the disks: it is waited for before they are looked at.
    let lock = if wanted.dry_run { None } else { Some(record::lock(&wanted.set, call.deadline())?) };
    let mut warnings = match &lock {
        Some(_) => record::recover(call, Some(&wanted.set))?,
        None => Vec::new(),
    };
    let set = members(wanted)?;
    let opaque = set.metadata.as_deref().map(metadata).transpose()?;
    let mut sources = source::sources(call, &set)?;
    let how = how(wanted, &sources)?;
    let place = place_of(&wanted.store)?;
    let (compression, recipients) = packing(wanted, &set, &place)?;
    refuse_unpacked(wanted.zero_free.is_some(), Some(compression))?;
    sign::refuse_bad_secret()?;
    let store = place.open()?;
    if !compression.is_packed() && wanted.since.is_none() {
        store.refuse_if_full(sources.iter().map(|it| it.allocated).sum())?;
    }
    let now = seconds_now().unwrap_or(0);
    if wanted.dry_run {
        refuse_without_zeroing(wanted)?;
        let plan = plan(wanted, &sources, &store, now)?;
        return Ok(Exported {
            run: RunId::new(now),
            disks: Vec::new(),
            removed: Vec::new(),
            warnings: Vec::new(),
            plan: Some(plan),
        });
    }
    let _taken = store.lock(&wanted.set, &RunId::new(now), call.deadline())?;
    let shelf = Shelf::new(&store, wanted.set.clone());
    shelf.repair()?;
    refuse_of_another_host(&shelf, wanted)?;
    let run = shelf.next_run(now)?;
    warnings.extend(shelf.ahead(&run, now));
    let digests = recipients.is_some().then(|| DigestKey::of(&wanted.set)).transpose()?;
    let seal = recipients.zip(digests).map(|(recipients, digests)| Seal { recipients, digests });
    let packing = Arc::new(Packing { compression, seal });
    let mut parent = parent(&shelf, wanted)?;
    if let Some((of, chain)) = &parent {
        let mixed = chain::refuse_mixed(&of.run, &chain[0], packing.seal.as_ref());
        let unsigned = chain[0].refuse_unsigned("--since none makes a whole export");
        // From here on the set is encrypted, or signed: its first export of this kind is whole, as every first one.
        let is_now = match (&mixed, &unsigned) {
            (Err(_), _) if chain[0].manifest.encryption.is_none() => Some("encrypted"),
            (Ok(()), Err(Error::NotVerified { .. })) => Some("signed"),
            _ => None,
        };
        match is_now.filter(|_| wanted.since == Some(SinceRun::Last)) {
            Some(how) => {
                warnings.push(format!("the export is whole, as run {} before it is not {how}", of.run));
                parent = None;
            }
            None => mixed.and(unsigned)?,
        }
    }
    let (parent, since) = match parent {
        Some((parent, chain)) => (Some(parent), Some(source::since(call, &mut sources, chain)?)),
        None => (None, None),
    };
    refuse_without_zeroing(wanted)?;
    if how.pauses() && hooks::is_empty(Point::Pause)? {
        let where_to = run_dir::hooks().join(Point::Pause.directory());
        warnings.push(format!("no program is in {}: nothing was paused", where_to.display()));
    }
    let made = match how.makes_snapshots() {
        true => set.disks.iter().map(|disk| Member { sr: disk.sr, vdi: VdiUuid::random() }).collect(),
        false => Vec::new(),
    };
    let variables = hooks::of_export(wanted, &sources, &run);
    let denied = |cause| Error::HookDenied { op: "the export", set: wanted.set.to_string(), cause: Box::new(cause) };
    hooks::run(Point::BeforeExport, &variables, hooks::PATIENCE).map_err(denied)?;
    let mut begun = Begun::begin(Record {
        run: run.clone(),
        set: wanted.set.clone(),
        store: Some(store.name.clone()),
        locks: set.disks.clone(),
        paused: None,
        attached: Vec::new(),
        deletes: false,
        made,
        labels: Vec::new(),
        complete: false,
    })?;
    let mut pause = Pause::new(&mut begun, &variables);
    let held = pause::hold(call, wanted, &mut sources, how, &mut pause);
    let run_held = Running { call, wanted, sources: &sources, shelf: &shelf, run: &run, since, packing };
    // What keeps the disks goes before their persistent locks are given back.
    let done = held.and_then(|held| {
        let disks = run_held.write(how, &held, parent, opaque.as_deref(), &mut pause)?;
        Ok(Done { disks, left: run_held.delete(&held, &mut pause)? })
    });
    let goes_on = |done: Result<Done>, pause: &mut Pause| done.map_err(|error| error.undone(pause.end()));
    // What was stopped takes its disks again, and can do so once their locks are given back. What is paused has them, and waits.
    let done = if how == Hold::Stopped { done } else { goes_on(done, &mut pause) };
    let (done, undone) = run_held.end(pause.begun, done);
    let done = goes_on(done, &mut pause);
    warnings.extend(undone.iter().map(|error| format!("undone by the next call: {}", one_line(error))));
    match undone.is_empty() && begun.is_undone() {
        true => begun.end()?,
        false => begun.note_not_deleted()?,
    }
    warnings.extend(hooks::after_export(&variables, &done).err().map(|e| format!("a hook failed: {}", one_line(&e))));
    let Done { disks, left } = match done {
        Ok(done) => done,
        Err(error) => return Err(undone.into_iter().fold(error, |error, undo| error.undone(Err(undo)))),
    };
    warnings.extend(bases::sweep(call, &wanted.set));
    let pruned = retain::keep(&shelf, wanted.keep).and_then(|keep| retain::prune(&shelf, &keep));
    let removed = pruned.unwrap_or_else(|error| {
        warnings.push(format!("older runs stay: {}", one_line(&error)));
        Vec::new()
    });
    warnings.extend(shelf.remove_partial().err().map(|e| format!("parts of runs that failed stay: {}", one_line(&e))));
    if !wanted.keep_others {
        warnings.extend(remove::elsewhere(call, &wanted.set, &store, &run));
    }
    match left {
        left if left.is_empty() => Ok(Exported { run, disks, removed, warnings, plan: None }),
        left if wanted.ignore_remove_failures => {
            let stays =
                left.iter().map(|(disk, error)| format!("{disk} is exported and not deleted: {}", one_line(error)));
            warnings.extend(stays);
            Ok(Exported { run, disks, removed, warnings, plan: None })
        }
        failures => Err(Error::NotCleaned { set: wanted.set.to_string(), run: run.to_string(), failures }),
    }
}

/// How the disks are kept as they are, by whether somebody uses them.
fn how(wanted: &Wanted, sources: &[Source]) -> Result<Hold> {
    let (pauses, refused) = (wanted.pause.is_some(), |what, expected: &str| {
        Err(Error::Invalid { what, value: wanted.set.to_string(), expected: expected.to_owned() })
    });
    let is_final = wanted.remove_source || wanted.zero_free.is_some();
    Ok(match source::is_used(sources, wanted.live || pauses || is_final)? {
        true if wanted.remove_source && !pauses => {
            return refused(
                "--remove-source of",
                "a disk of it is in use; with --pause, what uses it is stopped first",
            );
        }
        true if wanted.zero_free.is_some() && !pauses => {
            return refused("--zero-free of", "a disk of it is in use; with --pause, what uses it is paused meanwhile");
        }
        true if wanted.remove_source => Hold::Stopped,
        true if wanted.long_pause => Hold::LongPause,
        true if pauses => Hold::PausedSnapshots,
        true => Hold::Snapshots,
        false if wanted.since.is_some() && !wanted.remove_source => Hold::LocksOrSnapshots,
        false => Hold::Locks,
    })
}

/// Refuses to zero what the disks do not use for an export that does not become smaller by it. `None`: nothing is said.
///
/// # Errors
/// [`Error::Invalid`].
pub fn refuse_unpacked(zeroes: bool, compression: Option<Compression>) -> Result<()> {
    match compression {
        Some(Compression::None) if zeroes => Err(Error::Invalid {
            what: "--zero-free",
            value: "--compress none".to_owned(),
            expected: "what is not packed has no zeroes in any case; --compress zstd packs it".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Refuses a run that zeroes what the disks do not use if no program does that.
fn refuse_without_zeroing(wanted: &Wanted) -> Result<()> {
    if wanted.zero_free.is_none() || !hooks::is_empty(Point::Zero)? {
        return Ok(());
    }
    let directory = run_dir::hooks().join(Point::Zero.directory());
    Err(Error::Invalid {
        what: "--zero-free",
        value: directory.display().to_string(),
        expected: "no program is in it that fills with zeroes what the disks do not use".to_owned(),
    })
}

fn members(wanted: &Wanted) -> Result<Set> {
    let known = set::find(&wanted.set)?;
    match (wanted.disks.is_empty(), known) {
        (true, Some(set)) => Ok(set),
        (true, None) => Err(Error::Invalid {
            what: "NAME",
            value: wanted.set.to_string(),
            expected: "no set has this name; `sm backup define` makes one, or --disk names the disks".to_owned(),
        }),
        (false, known) => {
            let known = known.as_ref();
            let mut set = Set::new(wanted.disks.clone(), known.and_then(|set| set.metadata.clone()))?;
            set.recipient = known.and_then(|set| set.recipient.clone());
            Ok(set)
        }
    }
}

pub(super) fn metadata(path: &Path) -> Result<Vec<u8>> {
    small::read(path, LONGEST_METADATA).map_err(Error::io("read", path))
}

/// The store, which may be exported into.
pub(super) fn place_of(name: &StoreName) -> Result<Store> {
    let store = store::find(name)?;
    match store.drained {
        true => Err(Error::Unsupported { op: "an export into this store", why: format!("store {name} is drained") }),
        false => Ok(store),
    }
}

/// How the blocks are packed, and those that they are encrypted for.
fn packing(wanted: &Wanted, set: &Set, store: &Store) -> Result<(Compression, Option<Vec<Recipient>>)> {
    let Some(path) = seal::recipient(wanted.recipient.as_ref(), Some(set), store) else {
        return Ok((wanted.compression.unwrap_or_default(), None));
    };
    match wanted.compression.unwrap_or(Compression::Zstd) {
        Compression::None => Err(Error::Invalid {
            what: "--compress",
            value: "none".to_owned(),
            expected: format!("an export that is encrypted (for {}) is packed", path.display()),
        }),
        compression => Ok((compression, Some(key::recipients(&path)?))),
    }
}

/// The run that an increment is made on, looked at with its chain. `None`: every block is stored.
fn parent(shelf: &Shelf, wanted: &Wanted) -> Result<Option<(ParentRun, Vec<chain::Link>)>> {
    let run = match &wanted.since {
        None | Some(SinceRun::None) => return Ok(None),
        Some(SinceRun::Run(run)) => Some(run),
        Some(SinceRun::Last) if shelf.current()?.is_none() => return Ok(None),
        Some(SinceRun::Last) => None,
    };
    let (run, dir) = shelf.find(run)?;
    let chain = chain::open(dir).and_then(|chain| {
        chain[0].refuse_misplaced(&wanted.set, &run)?;
        Ok(chain)
    });
    let chain = chain.map_err(|error| match error {
        Error::NotVerified { path, what } => {
            Error::NotVerified { path, what: format!("{what}; --since none makes a whole export") }
        }
        other => other,
    })?;
    let most = wanted.most_increments.filter(|_| wanted.since == Some(SinceRun::Last));
    if most.is_some_and(|most| chain.len() > most) {
        return Ok(None);
    }
    Ok(Some((ParentRun { run, manifest_sha256: hex(&chain[0].sha256) }, chain)))
}

/// Refuses a shelf of another host: two hosts can have sets of one name, and each would remove the older runs of the other.
fn refuse_of_another_host(shelf: &Shelf, wanted: &Wanted) -> Result<()> {
    let (set, store) = (&wanted.set, &shelf.store.name);
    let why = match shelf.foreign(&store::Identity::here())?.filter(|_| !wanted.take_over) {
        None => return Ok(()),
        Some(Foreign::Host(host)) => format!(
            "host {host} made the exports of set {set} in store {store}; export a set of another name, or give --take-over if the \
             set has moved to this host"
        ),
        Some(Foreign::Unreadable { run, why }) => format!(
            "another host may have made run {run} of set {set} in store {store}, whose manifest cannot be read ({why}); \
             `sm backup remove {set} --store {store} --run {run}` removes it, or give --take-over"
        ),
    };
    Err(Error::Unsupported { op: "an export over those of another host", why })
}

fn plan(wanted: &Wanted, sources: &[Source], store: &Open, now: u64) -> Result<Vec<String>> {
    let shelf = Shelf::new(store, wanted.set.clone());
    refuse_of_another_host(&shelf, wanted)?;
    let mut lines: Vec<String> = sources
        .iter()
        .map(|it| {
            let (used, size) = (Size(it.allocated), Size(it.info.virtual_size));
            format!("export VDI {} ({}): {used} of {size}", it.member.vdi, it.info.label)
        })
        .collect();
    if wanted.zero_free.is_some() {
        lines.insert(0, format!("fill with zeroes what the disks of {} do not use", wanted.set));
    }
    lines.push(format!("into {}", store.dir.join(wanted.set.as_str()).display()));
    let parent = parent(&shelf, wanted)?.map(|(parent, _)| parent.run);
    lines.extend(parent.iter().map(|run| format!("leave out what run {run} has")));
    let coming = Coming { run: shelf.next_run(now)?, began: now, parent };
    match retain::keep(&shelf, wanted.keep).and_then(|keep| retain::old(&shelf, &keep, Some(&coming))) {
        Ok(old) => lines.extend(old.iter().map(|run| format!("remove run {run}"))),
        Err(error) => lines.push(format!("older runs stay: {}", one_line(&error))),
    }
    if wanted.remove_source {
        lines.extend(sources.iter().map(|it| format!("delete VDI {} ({})", it.member.vdi, it.info.label)));
    }
    if !wanted.keep_others {
        let losing = remove::losing(&wanted.set, store)?;
        lines.extend(losing.into_iter().map(|it| format!("remove {} from store {it}", wanted.set)));
    }
    Ok(lines)
}
