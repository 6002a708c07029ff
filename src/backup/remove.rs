//! `sm backup remove` and `sm backup prune`: exports of a set out of stores. The disks need not be there any more.

use super::name::{RunId, SetName, StoreName};
use super::retain::{self, Keep};
use super::shelf::{Foreign, Shelf};
use super::store::{self, Open, Store};
use super::{Call, list, record};
use crate::error::{Error, Result, one_line};
use crate::types::seconds_now;

/// What became of a removal.
#[derive(Debug)]
pub struct Removed {
    /// The stores that had exports of the set.
    pub stores: Vec<StoreName>,
    pub warnings: Vec<String>,
}

/// Removes a set from one store or from all. `runs`: those alone; all if none is named. A store that fails does not stop the others.
///
/// # Errors
/// [`Error::Invalid`] for a store that there is not; [`Error::Locked`]; [`Error::Unsupported`] for a run that another is an
/// increment on; of a store that was named, why it failed.
pub fn remove(call: &Call, set: &SetName, only: Option<&StoreName>, runs: &[RunId]) -> Result<Removed> {
    let stores = stores(only)?;
    let _set = record::lock(set, call.deadline())?;
    let mut removed = Removed { stores: Vec::new(), warnings: record::recover(call, Some(set))? };
    let this = RunId::new(seconds_now().unwrap_or(0));
    for store in stores {
        // Who names the store means what is in it.
        match from(call, &store, set, runs, &this, only.is_some()) {
            Ok(Became::Removed) => removed.stores.push(store.name),
            Ok(Became::Stays(why)) => removed.warnings.push(why),
            Ok(Became::Nothing) => {}
            // A store that was named, or a run that another needs.
            Err(error) if only.is_some() || matches!(error, Error::Unsupported { .. }) => return Err(error),
            Err(error) => removed.warnings.push(format!("store {}: {}", store.name, one_line(&error))),
        }
    }
    if removed.stores.is_empty() && removed.warnings.is_empty() {
        removed.warnings.push(format!("no export of {set} is there; `sm backup list` shows the exact names"));
    }
    Ok(removed)
}

/// The store of this name; without one, all.
fn stores(only: Option<&StoreName>) -> Result<Vec<Store>> {
    only.map_or_else(store::all, |name| Ok(vec![store::find(name)?]))
}

/// The runs that were removed, or would be, and what did not go as it should.
#[derive(Debug)]
pub struct Pruned {
    pub gone: Vec<(StoreName, RunId)>,
    pub warnings: Vec<String>,
}

/// What became of a set in a store.
enum Became {
    Removed,
    /// There was nothing of it.
    Nothing,
    /// A warning.
    Stays(String),
}

/// Says that exports stay which may be those of another host.
fn stays(shelf: &Shelf) -> Result<Option<String>> {
    let (set, name) = (&shelf.set, &shelf.store.name);
    let by_hand = format!("sm backup remove {set} --store {name} removes it");
    Ok(shelf.foreign(&store::Identity::here())?.map(|foreign| match foreign {
        Foreign::Host(host) => format!("store {name} keeps what host {host} exported of {set}; {by_hand}"),
        Foreign::Unreadable { run, why } => format!(
            "store {name} keeps what it has of {set}, as another host may have made run {run}, whose manifest cannot be read \
             ({why}); {by_hand}"
        ),
    }))
}

/// Changes a set in a store under the lock that it has there. `any_host`: also what another host made; else that stays, and the
/// answer is a warning.
fn changed<T>(
    call: &Call,
    open: &Open,
    set: &SetName,
    this: &RunId,
    any_host: bool,
    change: impl FnOnce(&Shelf) -> Result<T>,
) -> Result<Result<T, String>> {
    let shelf = Shelf::new(open, set.clone());
    let stays = || if any_host { Ok(None) } else { stays(&shelf) };
    // Before the lock, which the other host may have; and again, as it may have had it.
    if let Some(why) = stays()? {
        return Ok(Err(why));
    }
    let _taken = open.lock(set, this, call.deadline())?;
    match stays()? {
        Some(why) => Ok(Err(why)),
        None => change(&shelf).map(Ok),
    }
}

/// Removes a set, or runs of it, from a store. `any_host`: also what another host made.
fn from(call: &Call, store: &Store, set: &SetName, chosen: &[RunId], this: &RunId, any_host: bool) -> Result<Became> {
    let became = |is_removed| if is_removed { Became::Removed } else { Became::Nothing };
    let removed = changed(call, &store.open()?, set, this, any_host, |shelf| {
        if chosen.is_empty() {
            return shelf.remove().map(became);
        }
        shelf.repair()?;
        let runs = shelf.runs()?;
        // An increment goes before the run that it is made on.
        let gone: Vec<RunId> = runs.iter().rev().filter(|run| chosen.contains(run)).cloned().collect();
        match gone.len() {
            0 => Ok(Became::Nothing),
            count if count == runs.len() => shelf.remove().map(became),
            _ => {
                refuse_if_parent(shelf, &runs, &gone)?;
                shelf.remove_runs(&gone)?;
                shelf.repair()?;
                Ok(Became::Removed)
            }
        }
    })?;
    Ok(removed.unwrap_or_else(Became::Stays))
}

/// Refuses to remove a run that one which stays is an increment on.
fn refuse_if_parent(shelf: &Shelf, runs: &[RunId], gone: &[RunId]) -> Result<()> {
    for child in runs.iter().filter(|child| !gone.contains(child)) {
        if !gone.iter().any(|run| run < child) {
            continue;
        }
        let parent = list::manifest_of(&shelf.find(Some(child))?.1)?.parent;
        if parent.is_some_and(|parent| gone.contains(&parent.run)) {
            let why = format!(
                "run {child} is an increment on it; `sm backup consolidate {} --store {}` makes the newest whole",
                shelf.set, shelf.store.name
            );
            return Err(Error::Unsupported { op: "removing this run", why });
        }
    }
    Ok(())
}

/// The runs that [`remove`] would remove, by store, as far as their stores can be read.
///
/// # Errors
/// Those of [`list::list`].
pub fn affected(set: &SetName, only: Option<&StoreName>, runs: &[RunId]) -> Result<Vec<(StoreName, RunId)>> {
    let (lines, _) = list::list(only.map(std::slice::from_ref).unwrap_or_default())?;
    let is_meant = |line: &list::Line| line.set == *set && (runs.is_empty() || runs.contains(&line.run));
    Ok(lines.into_iter().filter(is_meant).map(|line| (line.store, line.run)).collect())
}

/// Removes the runs of a set that `keep` does not keep, from one store or from all: what the next export with the same
/// retention would remove. A store that fails does not stop the others.
///
/// # Errors
/// [`Error::Invalid`] for a store that there is not; [`Error::Locked`]; of a store that was named, why it failed.
pub fn prune(call: &Call, set: &SetName, only: Option<&StoreName>, keep: &Keep, dry_run: bool) -> Result<Pruned> {
    let stores = stores(only)?;
    let _set = record::lock(set, call.deadline())?;
    let mut warnings = if dry_run { Vec::new() } else { record::recover(call, Some(set))? };
    let mut gone = Vec::new();
    for store in stores {
        match pruned(call, &store, set, keep, dry_run, only.is_some()) {
            Ok((runs, why)) => {
                gone.extend(runs.into_iter().map(|run| (store.name.clone(), run)));
                warnings.extend(why);
            }
            Err(error) if only.is_some() => return Err(error),
            Err(error) => warnings.push(format!("store {}: {}", store.name, one_line(&error))),
        }
    }
    Ok(Pruned { gone, warnings })
}

fn pruned(
    call: &Call,
    store: &Store,
    set: &SetName,
    keep: &Keep,
    dry_run: bool,
    any_host: bool,
) -> Result<(Vec<RunId>, Option<String>)> {
    let open = store.open()?;
    if open.dir.lookup(set.as_str())?.is_none() {
        return Ok((Vec::new(), None));
    }
    let gone = match dry_run {
        true => {
            let shelf = Shelf::new(&open, set.clone());
            match if any_host { None } else { stays(&shelf)? } {
                Some(why) => Err(why),
                None => Ok(retain::old(&shelf, keep, None)?),
            }
        }
        false => changed(call, &open, set, &RunId::new(seconds_now().unwrap_or(0)), any_host, |shelf| {
            shelf.repair()?;
            let gone = retain::prune(shelf, keep)?;
            shelf.repair()?;
            Ok(gone)
        })?,
    };
    Ok(gone.map_or_else(|why| (Vec::new(), Some(why)), |gone| (gone, None)))
}

/// The stores from which [`elsewhere`] would remove a set. What cannot be looked at stays.
///
/// # Errors
/// Those of [`store::all`].
pub fn losing(set: &SetName, this: &Open) -> Result<Vec<StoreName>> {
    let loses = |store: &Store| -> Result<bool> {
        let open = store.open()?;
        if store.drained || open.is(this)? || open.dir.lookup(set.as_str())?.is_none() {
            return Ok(false);
        }
        let shelf = Shelf::new(&open, set.clone());
        Ok(stays(&shelf)?.is_none() && shelf.refuse_foreign().is_ok())
    };
    let others = store::all()?.into_iter().filter(|store| store.name != this.name);
    Ok(others.filter(|store| loses(store).unwrap_or(false)).map(|store| store.name).collect())
}

/// Removes a set from all stores but `this`, which was just written. The caller has the lock of the set. Answers warnings.
pub(super) fn elsewhere(call: &Call, set: &SetName, this: &Open, run: &RunId) -> Vec<String> {
    let stores = match store::all() {
        Ok(stores) => stores,
        Err(error) => return vec![format!("other stores keep what they have: {}", one_line(&error))],
    };
    let mut warnings = Vec::new();
    for store in stores.into_iter().filter(|store| store.name != this.name) {
        let cleaned = || {
            let open = store.open()?;
            if open.is(this)? {
                return Ok(None);
            }
            if open.dir.lookup(set.as_str())?.is_none() {
                return Ok(None);
            }
            if let Some(why) = stays(&Shelf::new(&open, set.clone()))? {
                return Ok(Some(why));
            }
            if store.drained {
                let why = format!("store {} is drained", store.name);
                return Err(Error::Unsupported { op: "removing an export from this store", why });
            }
            let gone = || {
                let (old, new) = (&store.name, &this.name);
                format!(
                    "the exports of {set} in store {old} were removed, since the new one is in store {new}; --keep-others keeps them"
                )
            };
            Ok(match from(call, &store, set, &[], run, false)? {
                Became::Removed => Some(gone()),
                Became::Stays(why) => Some(why),
                Became::Nothing => None,
            })
        };
        match cleaned() {
            Ok(said) => warnings.extend(said),
            Err(error) => {
                warnings.push(format!("store {} keeps what it has of {set}: {}", store.name, one_line(&error)))
            }
        }
    }
    warnings
}
