//! `sm backup remove`: the exports of a set out of stores. The disks need not be there any more.

use super::name::{RunId, SetName, StoreName};
use super::shelf::Shelf;
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

/// Removes a set from one store or from all. `run`: that one alone. A store that fails does not stop the others.
///
/// # Errors
/// [`Error::Invalid`] for a store that there is not; [`Error::Locked`]; [`Error::Unsupported`] for a run that another is an
/// increment on; of a store that was named, why it failed.
pub fn remove(call: &Call, set: &SetName, only: Option<&StoreName>, run: Option<&RunId>) -> Result<Removed> {
    let stores = match only {
        Some(name) => vec![store::find(name)?],
        None => store::all()?,
    };
    let _set = record::lock(set, call.deadline())?;
    let mut removed = Removed { stores: Vec::new(), warnings: record::recover(call, Some(set))? };
    let this = RunId::new(seconds_now().unwrap_or(0));
    for store in stores {
        // Who names the store means what is in it.
        let foreign = if only.is_none() { other_host(&store, set) } else { None };
        if let Some(host) = foreign {
            removed.warnings.push(stays(&store, set, &host));
            continue;
        }
        match from(call, &store, set, run, &this) {
            Ok(true) => removed.stores.push(store.name),
            Ok(false) => {}
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

/// The other host that made what a store has of a set.
fn other_host(store: &Store, set: &SetName) -> Option<String> {
    let open = store.open().ok()?;
    Shelf::new(&open, set.clone()).other_host(&store::Identity::here()).ok()?
}

fn stays(store: &Store, set: &SetName, host: &str) -> String {
    let name = &store.name;
    format!("store {name} keeps what host {host} exported of {set}; sm backup remove {set} --store {name} removes it")
}

fn from(call: &Call, store: &Store, set: &SetName, run: Option<&RunId>, this: &RunId) -> Result<bool> {
    let open = store.open()?;
    let _taken = open.lock(set, this, call.deadline())?;
    let shelf = Shelf::new(&open, set.clone());
    let Some(run) = run else { return shelf.remove() };
    shelf.repair()?;
    let runs = shelf.runs()?;
    match runs.as_slice() {
        [only] if only == run => shelf.remove(),
        runs if runs.contains(run) => {
            refuse_if_parent(&shelf, runs, run)?;
            shelf.remove_runs(std::slice::from_ref(run))?;
            shelf.repair()?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Refuses to remove a run that another is an increment on.
fn refuse_if_parent(shelf: &Shelf, runs: &[RunId], run: &RunId) -> Result<()> {
    for child in runs.iter().filter(|child| *child > run) {
        let parent = list::manifest_of(&shelf.find(Some(child))?.1)?.parent;
        if parent.is_some_and(|parent| parent.run == *run) {
            let why = format!(
                "run {child} is an increment on it; `sm backup consolidate {} --store {}` makes the newest whole",
                shelf.set, shelf.store.name
            );
            return Err(Error::Unsupported { op: "removing this run", why });
        }
    }
    Ok(())
}

/// The stores besides this one that have a directory of their own.
///
/// # Errors
/// Those of [`store::all`].
pub fn others(this: &Open) -> Result<Vec<StoreName>> {
    let is_other =
        |store: &Store| store.name != this.name && !store.open().is_ok_and(|open| open.is(this).unwrap_or(true));
    Ok(store::all()?.into_iter().filter(is_other).map(|store| store.name).collect())
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
            if let Some(host) = Shelf::new(&open, set.clone()).other_host(&store::Identity::here())? {
                return Ok(Some(stays(&store, set, &host)));
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
            Ok(from(call, &store, set, None, run)?.then(gone))
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
