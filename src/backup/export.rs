//! `sm backup export`: the disks of a set into a store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::age::key::{self, Recipient};
use super::assemble::{self, Names, Sums};
use super::chain;
use super::codec::{Compression, Packing};
use super::hooks::{self, Point, Variables};
use super::manifest::{self, DiskOf, Manifest, ParentRun};
use super::map::{digest, hex};
use super::name::{RunId, SetName, StoreName};
use super::record::{self, Begun, Record};
use super::retain::{self, Coming, Keep};
use super::seal::{self, DigestKey, Seal};
use super::set::{self, Member, Set};
use super::shelf::{Foreign, Shelf};
use super::source::{self, Hold, Source};
use super::store::{self, Open, Store};
use super::verify::as_export;
use super::write::{self, From, Since, Written};
use super::{Call, bases, remove};
use crate::call::Held;
use crate::error::{Error, Result, ended, one_line};
use crate::sys::durable::Dir;
use crate::sys::{run_dir, small};
use crate::types::{Size, Utc, VdiInfo, VdiUuid, seconds_now};

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
/// [`Error::VdiInUse`], [`Error::NoVdi`], [`Error::UnknownSr`] for a disk; [`Error::Invalid`], [`Error::Unsupported`],
/// [`Error::NoDevice`], [`Error::StoreFull`] for the store; [`Error::BadLine`] for a file of keys; [`Error::NotVerified`], [`Error::NoExport`] for the run that the
/// increment is to be made on; [`Error::Locked`]; [`Error::NoSnapshots`]. Then nothing was changed.
/// [`Error::NotExported`] with each disk that failed.
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
    let how = match (source::is_used(&sources, wanted.live || wanted.pause.is_some())?, &wanted.since) {
        (true, _) if wanted.pause.is_some() => Hold::PausedSnapshots,
        (true, _) => Hold::Snapshots,
        (false, Some(_)) => Hold::LocksOrSnapshots,
        (false, None) => Hold::Locks,
    };
    let place = place_of(&wanted.store)?;
    let (compression, recipients) = packing(wanted, &set, &place)?;
    let store = place.open()?;
    if !compression.is_packed() && wanted.since.is_none() {
        store.refuse_if_full(sources.iter().map(|it| it.info.physical_utilisation.min(it.info.virtual_size)).sum())?;
    }
    let now = seconds_now().unwrap_or(0);
    if wanted.dry_run {
        let plan = plan(wanted, &sources, &store, now)?;
        return Ok(Exported {
            run: RunId::new(now),
            disks: Vec::new(),
            removed: Vec::new(),
            warnings: Vec::new(),
            plan: Some(plan),
        });
    }
    if wanted.pause.is_some() && hooks::is_empty(Point::Pause)? {
        let where_to = run_dir::hooks().join(Point::Pause.directory());
        warnings.push(format!("no program is in {}: nothing was paused", where_to.display()));
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
        match chain::refuse_mixed(&of.run, &chain[0], packing.seal.as_ref()) {
            // From here on the set is encrypted: its first export of this kind is whole, as every first one.
            Err(_) if wanted.since == Some(SinceRun::Last) && chain[0].manifest.encryption.is_none() => {
                warnings.push(format!("the export is whole, as run {} before it is not encrypted", of.run));
                parent = None;
            }
            other => other?,
        }
    }
    let (parent, since) = match parent {
        Some((parent, chain)) => (Some(parent), Some(source::since(call, &mut sources, chain)?)),
        None => (None, None),
    };
    let made = match how.makes_snapshots() {
        true => set.disks.iter().map(|disk| Member { sr: disk.sr, vdi: VdiUuid::random() }).collect(),
        false => Vec::new(),
    };
    let variables = variables(wanted, &sources, &run);
    let denied = |cause| Error::HookDenied { op: "the export", set: wanted.set.to_string(), cause: Box::new(cause) };
    hooks::run(Point::BeforeExport, &variables, hooks::PATIENCE).map_err(denied)?;
    let mut begun = Begun::begin(Record {
        run: run.clone(),
        set: wanted.set.clone(),
        store: Some(store.name.clone()),
        locks: set.disks.clone(),
        paused: None,
        made,
        labels: Vec::new(),
        complete: false,
    })?;
    let held = held(call, wanted, &mut sources, how, &mut begun, &variables);
    let user = begun.record().user();
    let run_held = Running { call, wanted, sources: &sources, shelf: &shelf, run: &run, since, packing };
    // What keeps the disks goes before their persistent locks are given back.
    let done = held.and_then(|held| run_held.write(how, &held, parent, opaque.as_deref()));
    let undone = run_held.end(&begun, &user, done.is_ok());
    warnings.extend(undone.iter().map(|error| format!("undone by the next call: {}", one_line(error))));
    if undone.is_empty() && begun.record().paused.is_none() {
        begun.end()?;
    }
    warnings.extend(after(&variables, &done).err().map(|error| format!("a hook failed: {}", one_line(&error))));
    let disks = match done {
        Ok(disks) => disks,
        Err(error) => return Err(undone.into_iter().fold(error, |error, undo| error.undone(Err(undo)))),
    };
    warnings.extend(bases::sweep(call, &wanted.set));
    let pruned = retain::keep(&shelf, wanted.keep).and_then(|keep| retain::prune(&shelf, &keep));
    let removed = pruned.unwrap_or_else(|error| {
        warnings.push(format!("older runs stay: {}", one_line(&error)));
        Vec::new()
    });
    if !wanted.keep_others {
        warnings.extend(remove::elsewhere(call, &wanted.set, &store, &run));
    }
    Ok(Exported { run, disks, removed, warnings, plan: None })
}

/// Locks or snapshots the disks, within a pause if one is wanted. What was paused goes on afterwards in any case.
fn held(
    call: &Call,
    wanted: &Wanted,
    sources: &mut [Source],
    how: Hold,
    begun: &mut Begun,
    variables: &Variables,
) -> Result<Vec<Held>> {
    let pause = wanted.pause.filter(|_| how == Hold::PausedSnapshots);
    let paused = match pause {
        None => Ok(()),
        Some(patience) => {
            begun.note_paused(Some(variables.clone()))?;
            hooks::run(Point::Pause, variables, patience).map_err(|cause| Error::HookDenied {
                op: "the pause",
                set: wanted.set.to_string(),
                cause: Box::new(cause),
            })
        }
    };
    let record = begun.record();
    let (user, label, made) = (record.user(), format!("backup:{}:{}", wanted.set, record.run), record.made.clone());
    let held = paused.and_then(|()| source::hold(call, &wanted.set, sources, how, &user, &made, &label));
    if pause.is_none() {
        return held;
    }
    // If it fails, the record stays, and the next call tries again.
    let resumed = hooks::run(Point::Resume, variables, hooks::PATIENCE).and_then(|()| begun.note_paused(None));
    ended(held, resumed)
}

/// The variables of the hooks of an export.
fn variables(wanted: &Wanted, sources: &[Source], run: &RunId) -> Variables {
    let mut variables = hooks::common("BACKUP_EXPORT", &wanted.set, run);
    let pause = wanted.pause.map_or(0, |pause| pause.as_secs());
    for (name, value) in [
        ("SM_EXPORT_MODE", "local".to_owned()),
        ("SM_EXPORT_STORE", wanted.store.to_string()),
        ("SM_EXPORT_DO_PAUSE", hooks::boolean(wanted.pause.is_some())),
        ("SM_PAUSE_TIMEOUT", pause.to_string()),
        ("SM_REMOVE_SOURCE", hooks::boolean(false)),
    ] {
        variables.insert(name.to_owned(), value);
    }
    hooks::add_disks(&mut variables, sources.iter().map(|source| (&source.member, &source.info)));
    variables
}

/// Runs the hooks after an export, which are told how it ended.
fn after(before: &Variables, done: &Result<Vec<DiskOf>>) -> Result<()> {
    let mut variables = before.clone();
    let is_done = hooks::boolean(done.is_ok());
    for (name, value) in before {
        match name.strip_prefix("SM_SET_") {
            Some(rest) => variables.insert(format!("SM_POST_SET_{rest}"), value.clone()),
            None => continue,
        };
        if let Some(n) = name.strip_prefix("SM_SET_DISK").and_then(|rest| rest.strip_suffix("_UUID")) {
            let failed = matches!(done, Err(Error::NotExported { failures, .. })
                if failures.iter().any(|(part, _)| part.starts_with(&format!("disk {n},"))));
            let ok = hooks::boolean(done.is_ok() || matches!(done, Err(Error::NotExported { .. })) && !failed);
            variables.insert(format!("SM_POST_DISK{n}_OK"), ok);
        }
    }
    variables.insert("SM_POST_RESULT".to_owned(), is_done);
    hooks::run(Point::AfterExport, &variables, hooks::PATIENCE)
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
    let text = dir.read(manifest::FILE).map_err(as_export)?.unwrap_or_default();
    let chain = chain::open(dir).map_err(|error| match error {
        Error::NotVerified { path, what } => {
            Error::NotVerified { path, what: format!("{what}; --since none makes a whole export") }
        }
        other => other,
    })?;
    let most = wanted.most_increments.filter(|_| wanted.since == Some(SinceRun::Last));
    if most.is_some_and(|most| chain.len() > most) {
        return Ok(None);
    }
    Ok(Some((ParentRun { run, manifest_sha256: hex(&digest(&text)) }, chain)))
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
            let (used, size) = (Size(it.info.physical_utilisation), Size(it.info.virtual_size));
            format!("export VDI {} ({}): {used} of {size}", it.member.vdi, it.info.label)
        })
        .collect();
    lines.push(format!("into {}", store.dir.join(wanted.set.as_str()).display()));
    let parent = parent(&shelf, wanted)?.map(|(parent, _)| parent.run);
    lines.extend(parent.iter().map(|run| format!("leave out what run {run} has")));
    let coming = Coming { run: shelf.next_run(now)?, began: now, parent };
    match retain::keep(&shelf, wanted.keep).and_then(|keep| retain::old(&shelf, &keep, Some(&coming))) {
        Ok(old) => lines.extend(old.iter().map(|run| format!("remove run {run}"))),
        Err(error) => lines.push(format!("older runs stay: {}", one_line(&error))),
    }
    if !wanted.keep_others {
        let losing = remove::losing(&wanted.set, store)?;
        lines.extend(losing.into_iter().map(|it| format!("remove {} from store {it}", wanted.set)));
    }
    Ok(lines)
}

/// A run whose disks are held.
struct Running<'a> {
    call: &'a Call<'a>,
    wanted: &'a Wanted,
    sources: &'a [Source],
    shelf: &'a Shelf<'a>,
    run: &'a RunId,
    /// What the parent run has of each disk.
    since: Option<Vec<Since>>,
    packing: Arc<Packing>,
}

impl Running<'_> {
    fn write(&self, how: Hold, held: &[Held], parent: Option<ParentRun>, opaque: Option<&[u8]>) -> Result<Vec<DiskOf>> {
        let keep = retain::keep(self.shelf, self.wanted.keep)?;
        let dir = self.shelf.begin(self.run)?;
        let begun = Utc(seconds_now().unwrap_or(0)).to_string();
        let (set, compression) = (self.wanted.set.clone(), self.packing.compression);
        let mut manifest = Manifest::new(set, self.run.clone(), begun, compression, store::Identity::here());
        (manifest.consistency, manifest.parent, manifest.keep) = (how.consistency(), parent, keep);
        let (mut sums, mut failures) = (Sums::new(), Vec::new());
        for (index, source) in self.sources.iter().enumerate() {
            match self.one(index, source, held, &dir, &mut sums) {
                Ok(disk) => manifest.disks.push(disk),
                Err(error) => failures.push((format!("disk {index}, VDI {}", source.member.vdi), error)),
            }
        }
        if failures.is_empty() {
            match assemble::finish(self.shelf, self.run, &dir, manifest, &self.packing, sums, opaque) {
                Ok(disks) => return Ok(disks),
                Err(error) => failures.push(("the completion".to_owned(), error)),
            }
        }
        Err(Error::NotExported { set: self.wanted.set.to_string(), failures })
    }

    /// Writes the image and the map of a disk.
    fn one(&self, index: usize, source: &Source, held: &[Held], dir: &Dir, sums: &mut Sums) -> Result<DiskOf> {
        let packing = self.packing.clone();
        let since = self.since.as_ref().map(|since| since[index].clone());
        let vdi = source.snapshot.unwrap_or(source.member.vdi);
        let (rate, uuid) = (self.wanted.rate, source.info.uuid);
        let total = source.info.physical_utilisation.min(source.info.virtual_size);
        let ((), written, names) = assemble::put_disk(dir, index, &self.packing, sums, |to, path| {
            let path = path.to_owned();
            let read =
                source.session.vdi_read(vdi, source.base, held, &self.call.context(), move |_, disk, changed, told| {
                    let from = From { disk, uuid, since: since.as_ref(), changed, total, rate };
                    write::write(&from, &packing, &to, &path, told)
                });
            read.map(|written| ((), written))
        })?;
        if let Some(snapshot) = source.snapshot.filter(|_| !self.is_kept(source)) {
            // It was needed for this run alone. If it stays, the record tells the next call.
            let _ = record::delete(self.call, &Member { sr: source.member.sr, vdi: snapshot });
        }
        Ok(described(index, names, source, &written))
    }

    /// Whether the snapshot of a disk stays for the next increment.
    fn is_kept(&self, source: &Source) -> bool {
        self.wanted.since.is_some() && source.has_maps
    }

    /// Undoes what was done for this run alone. Answers what could not be undone.
    fn end(&self, begun: &Begun, user: &str, is_done: bool) -> Vec<Error> {
        let (mut undone, mut made) = (Vec::new(), begun.record().made.iter().collect::<Vec<_>>());
        for source in self.sources {
            undone.extend(record::unlock(self.call, &source.member, user).err());
        }
        if is_done && self.wanted.since.is_some() {
            let kept = self.sources.iter().filter(|source| self.is_kept(source));
            let kept: Vec<Member> =
                kept.filter_map(|it| it.snapshot.map(|vdi| Member { sr: it.member.sr, vdi })).collect();
            match bases::keep(&self.wanted.set, kept.clone()) {
                Ok(()) => made.retain(|it| !kept.contains(*it)),
                Err(error) => undone.push(error),
            }
        }
        for snapshot in made {
            undone.extend(record::delete(self.call, snapshot).err());
        }
        if !is_done {
            undone.extend(self.shelf.abandon(self.run).err());
        }
        undone
    }
}

fn described(index: usize, names: Names, source: &Source, written: &Written) -> DiskOf {
    let info: &VdiInfo = &source.info;
    DiskOf {
        index,
        file: names.file,
        map: names.map,
        map_sha256: names.map_sha256,
        uuid: info.uuid,
        sr_uuid: info.sr,
        sr_type: source.session.sr_type().to_owned(),
        label: info.label.clone(),
        description: info.description.clone(),
        vdi_type: info.format,
        read_only: info.read_only,
        shareable: info.shareable,
        virtual_size: written.size,
        allocated: info.physical_utilisation,
        sector_size: info.sector_size,
        parent: info.parent,
        snapshot: source.snapshot,
    }
}
