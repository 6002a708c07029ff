//! The work of the commands of `sm backup`.
//!
//! | file | what |
//! |---|---|
//! | [`grammar`] | the command lines |
//! | [`pipe`] | standard input and output as the pipes of runs |
//! | [`shown`] | the answers as tables, s-expressions and JSON |

pub mod grammar;
pub mod pipe;
pub mod shown;

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, Write, stderr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::grammar::BackupCommand;
use self::shown::{Reply, What};
use crate::backup::age::key;
use crate::backup::codec::Compression;
use crate::backup::export::SinceRun;
use crate::backup::import::Places;
use crate::backup::pause::Zeroing;
use crate::backup::retain::Keep;
use crate::backup::seal::{self, DigestKey};
use crate::backup::set::{Member, Set};
use crate::backup::stream::send::Start;
use crate::backup::stream::{disks, receive, send};
use crate::backup::verify::Depth;
use crate::backup::{Call, Host, RunId, SetName, StoreName};
use crate::backup::{bases, consolidate, export, import, list, record, remove, set, store, verify};
use crate::call::Session;
use crate::context::{Context, DEFAULT_WAIT, LONGEST_WAIT};
use crate::door::size;
use crate::door::v1::address;
use crate::door::v1::progress::ProgressBar;
use crate::door::v1::{question, request};
use crate::error::{Error, Result};
use crate::registry;
use crate::sys::durable::Dir;
use crate::sys::limits;
use crate::types::{Misread, SrUuid};

/// The SRs of this host, by the table of names.
struct Named;

impl Host for Named {
    fn open(&self, sr: SrUuid) -> Result<Session> {
        address::session(sr)
    }

    fn known(&self) -> Result<Vec<SrUuid>> {
        Ok(registry::all()?.into_iter().filter_map(|(_, entry)| entry.ok().map(|entry| entry.sr)).collect())
    }
}

/// Carries one command out. First, what killed calls left is undone, whatever the command is and also if it fails: what uses the
/// disks may still be paused.
///
/// # Errors
/// Those of the command.
pub fn carry_out(command: &BackupCommand) -> Result<Reply> {
    // A chain of 30 increments of 40 disks is 1200 images, all open at once.
    limits::raise_open_files();
    let bar = ProgressBar::hidden();
    let wait = match command {
        BackupCommand::Export { lock_timeout, .. }
        | BackupCommand::Import { lock_timeout, .. }
        | BackupCommand::Consolidate { lock_timeout, .. }
        | BackupCommand::Receive { lock_timeout, .. }
        | BackupCommand::Remove { lock_timeout, .. }
        | BackupCommand::Prune { lock_timeout, .. } => Duration::from_secs(*lock_timeout).min(LONGEST_WAIT),
        _ => DEFAULT_WAIT,
    };
    let call = Call { host: &Named, wait, progress: &|done, total| bar.show(done, total) };
    let is_dry = matches!(
        command,
        BackupCommand::Export { dry_run: true, .. }
            | BackupCommand::Remove { dry_run: true, .. }
            | BackupCommand::Prune { dry_run: true, .. }
    );
    let mut warnings = if is_dry { Vec::new() } else { record::recover(&call, None)? };
    let reply = perform(&call, command)?;
    // A command that has the lock of its set looks again.
    warnings.extend(reply.warnings);
    warnings.sort();
    warnings.dedup();
    Ok(Reply { what: reply.what, warnings })
}

fn perform(call: &Call, command: &BackupCommand) -> Result<Reply> {
    match command {
        BackupCommand::Define { name, disks, metadata, recipient, identity } => {
            let file = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
            let mut set = Set::new(members(disks)?, file(metadata)?)?;
            (set.recipient, set.identity) = (file(recipient)?, file(identity)?);
            if let Some(path) = &set.recipient {
                key::recipients(path)?;
            }
            set::define(&name.parse()?, &set)?;
            Ok(Reply::done())
        }
        BackupCommand::Undefine { name } => {
            let name = name.parse()?;
            let _lock = record::lock(&name, Instant::now() + call.wait)?;
            set::undefine(&name)?;
            DigestKey::forget(&name)?;
            bases::keep(&name, Vec::new())?;
            Ok(Reply { what: What::Done, warnings: bases::sweep(call, &name) })
        }
        BackupCommand::Consolidate { name, store, recipient, identity, .. } => {
            let set: SetName = name.parse()?;
            let store = match store {
                Some(store) => store.parse()?,
                None => list::find(&set, None, None)?.store,
            };
            let wanted = consolidate::Wanted { set, store, recipient: recipient.clone(), identity: identity.clone() };
            let (run, warnings) = consolidate::consolidate(call, &wanted)?;
            Ok(Reply { what: run.map_or(What::Done, What::Run), warnings })
        }
        BackupCommand::Export {
            name,
            disks,
            to,
            compress,
            recipient,
            live,
            pause,
            pause_timeout,
            long_pause,
            remove_source,
            ignore_remove_failures,
            zero_free,
            zero_timeout_fixed,
            zero_timeout_per_mib,
            rate,
            since,
            whole_after,
            keep,
            keep_daily,
            keep_weekly,
            take_over,
            keep_others,
            keep_partial,
            dry_run,
            ..
        } => {
            let compression = compress.map(Compression::from);
            export::refuse_unpacked(*zero_free, compression)?;
            let usual = Zeroing::default();
            let zeroing = Zeroing {
                fixed: zero_timeout_fixed.unwrap_or(usual.fixed),
                per_mib: zero_timeout_per_mib.unwrap_or(usual.per_mib),
            };
            let wanted = export::Wanted {
                set: name.parse()?,
                disks: members(disks)?,
                store: to.parse()?,
                compression,
                recipient: recipient.clone(),
                live: *live,
                pause: pause.then(|| Duration::from_secs(*pause_timeout)),
                long_pause: *long_pause,
                remove_source: *remove_source,
                ignore_remove_failures: *ignore_remove_failures,
                zero_free: zero_free.then_some(zeroing),
                rate: rate.as_deref().map(rate_of).transpose()?,
                since: since.as_deref().map(since_run).transpose()?,
                most_increments: whole_after.map(usize::from),
                keep: keep_of(*keep, *keep_daily, *keep_weekly),
                take_over: *take_over,
                keep_others: *keep_others,
                keep_partial: *keep_partial,
                dry_run: *dry_run,
            };
            let done = export::export(call, &wanted)?;
            let what = match done.plan {
                Some(plan) => What::Plan(plan),
                None => What::Exported { run: done.run, removed: done.removed },
            };
            if let What::Exported { removed, .. } = &what
                && wanted.keep.is_none()
            {
                note_removed(removed);
            }
            Ok(Reply { what, warnings: done.warnings })
        }
        BackupCommand::Import {
            name,
            from,
            run,
            disks,
            label,
            sr,
            placement,
            map,
            size,
            keep_uuids,
            identity,
            unsigned,
            ..
        } => {
            let wanted = import::Wanted {
                set: name.parse()?,
                store: from.parse()?,
                run: run.as_deref().map(str::parse).transpose()?,
                places: Places {
                    disks: disks.clone(),
                    label: label.as_deref().map(request::label).transpose()?,
                    sr: sr.as_deref().map_or(Ok(None), sr_or_auto)?,
                    placement: placement.clone(),
                    map: by_index("--map", map, address::sr)?,
                    sizes: by_index("--size", size, size::parse)?,
                    keep_uuids: *keep_uuids,
                },
                identity: identity.clone(),
                unsigned: *unsigned,
            };
            let (made, warnings) = import::import(call, &wanted)?;
            Ok(Reply { what: What::Imported { made, is_one: disks.len() == 1 }, warnings })
        }
        BackupCommand::Send { name, store, run, since, from, whole } => {
            let start = match (since, from) {
                (Some(run), _) => Start::After(run.parse()?),
                (None, Some(have)) => Start::Without(have.parse()?),
                (None, None) => Start::First,
            };
            let store = store.as_deref().map(str::parse).transpose()?;
            let run = run.as_deref().map(str::parse).transpose()?;
            let wanted = send::Wanted { set: name.parse()?, store, run, start, is_whole: *whole };
            pipe::output(|to, name| send::send(&wanted, to, name, call.progress))?;
            Ok(Reply::done())
        }
        BackupCommand::Receive { to: Some(to), resume: Some(set), .. } => {
            let have = receive::have(call, &to.parse()?, &set.parse()?)?;
            Ok(Reply { what: What::Have(have.to_string()), warnings: Vec::new() })
        }
        BackupCommand::Receive { to: None, sr, keep_uuids, identity, unsigned, timeout, .. } => {
            let sr = sr.as_deref().map_or(Ok(None), sr_or_auto)?;
            let places = Places { sr, keep_uuids: *keep_uuids, ..Places::default() };
            let wanted = disks::Wanted { places, identity: identity.clone(), unsigned: *unsigned };
            let patience = Duration::from_secs(*timeout);
            let (disks, warnings) = pipe::input(patience, |from, name| disks::receive(call, &wanted, from, name))?;
            Ok(Reply { what: What::Imported { made: disks, is_one: false }, warnings })
        }
        BackupCommand::Receive { to: Some(to), resume: None, keep, take_over, timeout, .. } => {
            let keep = keep.map(|keep| Keep { newest: usize::from(keep), daily: 0, weekly: 0 });
            let wanted = receive::Wanted { store: to.parse()?, keep, take_over: *take_over };
            let patience = Duration::from_secs(*timeout);
            let done = pipe::input(patience, |from, name| receive::receive(call, &wanted, from, name))?;
            Ok(Reply { what: What::Received(done.runs), warnings: done.warnings })
        }
        BackupCommand::List { name, stores } => {
            let stores = stores.iter().map(|store| store.parse()).collect::<Result<Vec<StoreName>, Misread>>()?;
            let set = name.as_deref().map(str::parse::<SetName>).transpose()?;
            let (mut lines, warnings) = list::list(&stores)?;
            lines.retain(|line| set.as_ref().is_none_or(|set| line.set == *set));
            Ok(Reply { what: What::List(lines), warnings })
        }
        BackupCommand::Show { name, store, run } => {
            let name: SetName = name.parse()?;
            let found = find(&name, store.as_deref(), run.as_deref());
            let what = match (found, set::find(&name)?) {
                (Ok(found), _) => What::Export(Box::new(list::show(&found)?), found.store),
                (Err(Error::NoExport { .. }), Some(set)) if store.is_none() && run.is_none() => What::Set(name, set),
                (Err(error), _) => return Err(error),
            };
            Ok(Reply { what, warnings: Vec::new() })
        }
        BackupCommand::Verify { what, store, run, deep, identity, unsigned } => {
            let (dir, name, identity) = match what.contains('/') {
                true => (Dir::open(&fs::canonicalize(what).map_err(Error::io("find", what))?)?, None, identity.clone()),
                false => {
                    let name = what.parse()?;
                    let found = find(&name, store.as_deref(), run.as_deref())?;
                    let (set, store) = (set::find(&name)?, store::find(&found.store)?);
                    let identity = seal::identity(identity.as_ref(), set.as_ref(), Some(&store));
                    (found.dir, Some(name), identity)
                }
            };
            let of = verify::Of { set: name.as_ref(), identity: identity.as_deref(), unsigned: *unsigned };
            let depth = if *deep { Depth::Blocks } else { Depth::Files };
            let verified = verify::verify(dir, &of, depth, call.progress)?;
            Ok(Reply { what: What::Whole(Box::new(verified), depth), warnings: Vec::new() })
        }
        BackupCommand::Remove { name, store, runs, yes, dry_run, .. } => {
            let (set, store) = (name.parse()?, store.as_deref().map(str::parse).transpose()?);
            let runs = runs.iter().map(|run| run.parse()).collect::<Result<Vec<RunId>, Misread>>()?;
            if *dry_run || asks(*yes) {
                let gone = remove::affected(&set, store.as_ref(), &runs)?;
                if *dry_run {
                    return Ok(Reply { what: What::Plan(lines(&set, &gone)), warnings: Vec::new() });
                }
                agreed(&set, &gone)?;
            }
            let removed = remove::remove(call, &set, store.as_ref(), &runs)?;
            Ok(Reply { what: What::Removed(removed.stores), warnings: removed.warnings })
        }
        BackupCommand::Prune { name, store, keep, keep_daily, keep_weekly, yes, dry_run, .. } => {
            let (set, store) = (name.parse()?, store.as_deref().map(str::parse).transpose()?);
            let keep = keep_of(*keep, *keep_daily, *keep_weekly).unwrap_or_default();
            if *dry_run || asks(*yes) {
                let remove::Pruned { gone, warnings } = remove::prune(call, &set, store.as_ref(), &keep, true)?;
                if *dry_run {
                    return Ok(Reply { what: What::Plan(lines(&set, &gone)), warnings });
                }
                agreed(&set, &gone)?;
            }
            let remove::Pruned { gone, warnings } = remove::prune(call, &set, store.as_ref(), &keep, false)?;
            Ok(Reply { what: What::Pruned(gone), warnings })
        }
        BackupCommand::StoreInit { store, yes } => {
            store::find(&store.parse()?)?.init(*yes)?;
            Ok(Reply::done())
        }
    }
}

/// The SR of a word; `None` for `auto`.
fn sr_or_auto(word: &str) -> Result<Option<SrUuid>> {
    if word == "auto" { Ok(None) } else { address::sr(word).map(Some) }
}

/// Whether a person is asked before exports are removed.
fn asks(yes: bool) -> bool {
    !yes && question::is_possible()
}

fn agreed(set: &SetName, gone: &[(StoreName, RunId)]) -> Result<()> {
    if gone.is_empty() { Ok(()) } else { question::go_on(&lines(set, gone)) }
}

fn lines(set: &SetName, gone: &[(StoreName, RunId)]) -> Vec<String> {
    gone.iter().map(|(store, run)| format!("remove run {run} of {set} from store {store}")).collect()
}

/// Tells a person at a terminal which runs are gone though she has not said how many stay.
fn note_removed(removed: &[RunId]) {
    if removed.is_empty() || !stderr().is_terminal() {
        return;
    }
    let names: Vec<&str> = removed.iter().map(RunId::as_str).collect();
    let _ = writeln!(stderr(), "removed older runs: {}; --keep N keeps more", names.join(", "));
}

/// Bytes a second.
fn rate_of(word: &str) -> Result<u64> {
    match size::parse_or_zero(word) {
        Ok(Some(rate)) => Ok(rate),
        Ok(None) => Err(Error::Invalid {
            what: "--rate",
            value: word.to_owned(),
            expected: "nothing would be read; without --rate, as much is read as can be".to_owned(),
        }),
        Err(Error::Invalid { value, expected, .. }) => Err(Error::Invalid { what: "--rate", value, expected }),
        Err(other) => Err(other),
    }
}

/// The runs that shall stay; `None` if no option says it.
fn keep_of(newest: Option<u16>, daily: Option<u16>, weekly: Option<u16>) -> Option<Keep> {
    let count = |said: Option<u16>, unsaid| usize::from(said.unwrap_or(unsaid));
    let is_said = newest.is_some() || daily.is_some() || weekly.is_some();
    is_said.then(|| Keep { newest: count(newest, 1), daily: count(daily, 0), weekly: count(weekly, 0) })
}

fn since_run(word: &str) -> Result<SinceRun> {
    match word {
        "last" => Ok(SinceRun::Last),
        "none" => Ok(SinceRun::None),
        run => Ok(SinceRun::Run(run.parse()?)),
    }
}

fn find(name: &SetName, store: Option<&str>, run: Option<&str>) -> Result<list::Found> {
    let store = store.map(str::parse).transpose()?;
    let run = run.map(str::parse).transpose()?;
    list::find(name, store.as_ref(), run.as_ref())
}

/// A path that means the same for a later call, which may be in another directory.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}

/// The disks of words such as `fast/web`.
///
/// # Errors
/// Those of [`address::vdi`]; [`Error::Unsupported`] for a CD, which no export can have.
fn members(words: &[String]) -> Result<Vec<Member>> {
    let context = Context { deadline: Instant::now() + DEFAULT_WAIT, progress: &|_, _| {}, others: None };
    let member = |word: &String| {
        let (sr, vdi) = address::vdi(word, &context)?;
        if address::session(sr)?.content_type() == "iso" {
            let why = format!("{word} is a CD image, which is a file: copy the file");
            return Err(Error::Unsupported { op: "an export of a CD", why });
        }
        Ok(Member { sr, vdi })
    };
    words.iter().map(member).collect()
}

/// Words such as `0=fast`.
fn by_index<T>(
    option: &'static str,
    words: &[String],
    value: impl Fn(&str) -> Result<T>,
) -> Result<BTreeMap<usize, T>> {
    let mut found = BTreeMap::new();
    for word in words {
        let wrong =
            |expected: &str| Error::Invalid { what: option, value: word.clone(), expected: expected.to_owned() };
        let (index, text) =
            word.split_once('=').ok_or_else(|| wrong("expected the index of a disk, =, and its value"))?;
        let index = index.parse().map_err(|_| wrong("the index of a disk is a number from 0"))?;
        if found.insert(index, value(text)?).is_some() {
            return Err(wrong("the disk is named twice"));
        }
    }
    Ok(found)
}
