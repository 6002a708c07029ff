//! `sm backup list` and `show`: the exports that there are.

use super::manifest::{self, Manifest};
use super::name::{RunId, SetName, StoreName};
use super::shelf::{self, Shelf};
use super::store::{self, Store};
use super::verify::as_export;
use crate::error::{Error, Result, one_line};
use crate::sys::durable::Dir;

/// An export as a list shows it.
#[derive(Clone, Debug)]
pub struct Line {
    pub set: SetName,
    pub store: StoreName,
    pub run: RunId,
    /// Of a manifest that can be read.
    pub manifest: Option<Manifest>,
    /// Bytes that its files take.
    pub stored: u64,
    pub current: bool,
    /// Why it cannot be used; empty if nothing is known against it.
    pub fault: String,
}

/// The exports in some stores, or in all. Answers warnings for stores that cannot be seen.
///
/// # Errors
/// [`Error::Invalid`] for a store that there is not; those of [`store::all`].
pub fn list(only: &[StoreName]) -> Result<(Vec<Line>, Vec<String>)> {
    let stores = match only {
        [] => store::all()?,
        names => names.iter().map(store::find).collect::<Result<_>>()?,
    };
    let (mut lines, mut warnings) = (Vec::new(), Vec::new());
    for store in stores {
        match of_store(&store) {
            Ok(found) => lines.extend(found),
            Err(error) => warnings.push(format!("store {}: {}", store.name, one_line(&error))),
        }
    }
    lines.sort_by(|a, b| (&a.set, &a.store, &a.run).cmp(&(&b.set, &b.store, &b.run)));
    Ok((lines, warnings))
}

fn of_store(store: &Store) -> Result<Vec<Line>> {
    let open = store.open()?;
    let mut lines = Vec::new();
    for set in shelf::sets(&open)? {
        let shelf = Shelf::new(&open, set.clone());
        let current = shelf.current()?;
        for run in shelf.runs()? {
            let is_current = current.as_ref() == Some(&run);
            // It may have been removed just now.
            let Ok((_, dir)) = shelf.find(Some(&run)) else { continue };
            let (manifest, fault) = match manifest_of(&dir) {
                Ok(manifest) => (Some(manifest), String::new()),
                Err(error) => (None, one_line(&error)),
            };
            let (set, store) = (set.clone(), open.name.clone());
            lines.push(Line { set, store, run, manifest, stored: stored(&dir)?, current: is_current, fault });
        }
    }
    Ok(lines)
}

/// The manifest of an export.
///
/// # Errors
/// [`Error::NotVerified`]; [`Error::Io`].
pub(super) fn manifest_of(dir: &Dir) -> Result<Manifest> {
    let path = dir.join(manifest::FILE);
    let text = dir.read(manifest::FILE).map_err(as_export)?;
    let text = text.ok_or_else(|| Error::NotVerified { path: path.clone(), what: "is missing".to_owned() })?;
    Manifest::parse(&text, &path)
}

fn stored(dir: &Dir) -> Result<u64> {
    let mut bytes = 0;
    for name in dir.names()? {
        bytes += dir.lookup(&name)?.map_or(0, |stat| stat.allocated);
    }
    Ok(bytes)
}

/// The place of an export in words, and its directory.
pub struct Found {
    pub store: StoreName,
    pub run: RunId,
    pub dir: Dir,
}

/// Finds an export of a set: a run, or the newest there is. `only`: in that store alone.
///
/// # Errors
/// [`Error::NoExport`]; of a store that was named, why it cannot be opened.
pub fn find(set: &SetName, only: Option<&StoreName>, run: Option<&RunId>) -> Result<Found> {
    let stores = match only {
        Some(name) => vec![store::find(name)?],
        None => store::all()?,
    };
    let (mut best, mut looked): (Option<Found>, Vec<String>) = (None, Vec::new());
    for store in stores {
        let found = store.open().and_then(|open| Shelf::new(&open, set.clone()).find(run));
        match found {
            Ok((run, dir)) if best.as_ref().is_none_or(|best| best.run < run) => {
                best = Some(Found { store: store.name, run, dir });
            }
            Ok(_) => {}
            Err(Error::NoExport { .. }) => looked.push(format!("store {}", store.name)),
            Err(error) if only.is_some() => return Err(error),
            Err(error) => looked.push(format!("not in store {}: {}", store.name, one_line(&error))),
        }
    }
    let looked = if looked.is_empty() { "no store".to_owned() } else { looked.join(", ") };
    best.ok_or_else(|| Error::NoExport { name: set.to_string(), looked })
}

/// What the manifest of an export says.
///
/// # Errors
/// [`Error::NotVerified`]; [`Error::Io`].
pub fn show(found: &Found) -> Result<Manifest> {
    manifest_of(&found.dir)
}
