//! The runs of one set in one store: `STORE/NAME/RUN/…`, and the link `STORE/NAME/current` to the newest.
//!
//! A directory whose name is that of a run is a complete export: it got this name when all that is in it was durable.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use nix::libc;

use super::list::manifest_of;
use super::name::{RunId, SetName};
use super::store::{Identity, Open};
use super::verify::as_export;
use crate::error::{Error, Result, one_line};
use crate::sys::durable::Dir;
use crate::types::Utc;

const CURRENT: &str = "current";
/// Before the name of a set whose exports are being removed.
const REMOVED: &str = ".removed-";

/// Why the exports of a shelf are not those of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// The name of the host that made them.
    Host(String),
    /// The manifest of a run cannot be read.
    Unreadable { run: RunId, why: String },
}

/// The runs of a set in a store. The caller has the lock of both, or only looks.
#[derive(Debug)]
pub struct Shelf<'a> {
    pub store: &'a Open,
    pub set: SetName,
}

impl<'a> Shelf<'a> {
    pub fn new(store: &'a Open, set: SetName) -> Shelf<'a> {
        Shelf { store, set }
    }

    fn dir(&self) -> Result<Option<Dir>> {
        sub_dir(&self.store.dir, self.set.as_str())
    }

    /// The directory of the runs, made if need be.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn made(&self) -> Result<Dir> {
        if self.store.dir.make_dir(self.set.as_str())? {
            self.store.dir.sync()?;
        }
        self.dir()?.ok_or_else(|| Error::sys("open", self.store.dir.join(self.set.as_str()))(nix::errno::Errno::ENOENT))
    }

    /// The complete exports, the oldest first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn runs(&self) -> Result<Vec<RunId>> {
        let Some(dir) = self.dir()? else { return Ok(Vec::new()) };
        let mut runs = Vec::new();
        for name in dir.names()? {
            // A link or a file of such a name is no export.
            if let Ok(run) = name.parse::<RunId>()
                && dir.lookup(&name)?.is_some_and(|stat| stat.is_directory())
            {
                runs.push(run);
            }
        }
        runs.sort();
        Ok(runs)
    }

    /// The name of a run that begins now: it sorts after all that are here. `seconds`: since 1970-01-01 UTC.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no name sorts after that of the last run; [`Error::Io`].
    pub fn next_run(&self, seconds: u64) -> Result<RunId> {
        let last = self.runs()?.pop();
        RunId::after(seconds, last.as_ref()).ok_or_else(|| Error::Invalid {
            what: "RUN",
            value: last.map(|run| run.to_string()).unwrap_or_default(),
            expected: format!(
                "no run can be named after it; `sm backup remove {} --store {} --run RUN` removes it",
                self.set, self.store.name
            ),
        })
    }

    /// A warning for a new run whose name is ahead of the clock, as it has to sort after that of a run that is.
    pub fn ahead(&self, run: &RunId, now: u64) -> Option<String> {
        let (set, store, now) = (&self.set, &self.store.name, Utc(now));
        run.is_ahead(now.0).then(|| {
            format!(
                "run {run} is named after a run of store {store} that is ahead of this host's clock ({now}), and no other host receives \
                 it; if the clock is right, keep what you need elsewhere, and begin anew after `sm backup remove {set} --store {store}`"
            )
        })
    }

    /// The run that `current` leads to; the newest if the link is missing, as a kill leaves it, or is no link.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn current(&self) -> Result<Option<RunId>> {
        let runs = self.runs()?;
        let linked = match self.dir()?.map(|dir| dir.read_link(CURRENT)).transpose() {
            Err(Error::Damaged { .. }) => None,
            linked => linked?.flatten(),
        };
        let linked = linked.and_then(|run| run.parse::<RunId>().ok()).filter(|run| runs.contains(run));
        Ok(linked.or_else(|| runs.last().cloned()))
    }

    /// A run, complete; the current one if none is named.
    ///
    /// # Errors
    /// [`Error::NoExport`] if there is no such run; [`Error::Io`].
    pub fn find(&self, run: Option<&RunId>) -> Result<(RunId, Dir)> {
        let run = match run {
            Some(run) => Some(run.clone()),
            None => self.current()?,
        };
        let found = match (&run, self.dir()?) {
            (Some(run), Some(dir)) => sub_dir(&dir, run.as_str())?,
            _ => None,
        };
        match (run, found) {
            (Some(run), Some(dir)) => Ok((run, dir)),
            (run, _) => Err(Error::NoExport {
                name: run.map_or_else(|| self.set.to_string(), |run| format!("{} of run {run}", self.set)),
                looked: format!("store {}", self.store.name),
            }),
        }
    }

    /// Why the exports are not those of `host`; `None` if they are, or if there is none. The newest export tells the host: an older
    /// one of another was taken over. An export whose manifest cannot be read may be of any host.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn foreign(&self, host: &Identity) -> Result<Option<Foreign>> {
        let mut owner = None;
        for run in self.runs()?.into_iter().rev() {
            match self.find(Some(&run)).and_then(|(_, dir)| manifest_of(&dir)) {
                Ok(manifest) => owner = owner.or_else(|| Some(manifest.source())),
                // It was removed just now.
                Err(Error::NoExport { .. }) => {}
                Err(error) => return Ok(Some(Foreign::Unreadable { run, why: one_line(&error) })),
            }
        }
        Ok(owner.filter(|owner| !owner.is(host)).map(|owner| Foreign::Host(owner.name)))
    }

    /// Removes what killed calls left, and completes what they published. The caller has the lock.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn repair(&self) -> Result<()> {
        self.sweep_removed()?;
        let Some(dir) = self.dir()? else { return Ok(()) };
        dir.sweep_link(CURRENT)?;
        for name in dir.names()? {
            if RunId::of_unfinished(&name).is_some() {
                dir.discard(&name)?;
            } else {
                dir.sweep_temporary(&name)?;
            }
        }
        let linked = dir.read_link(CURRENT).map_err(as_export)?;
        if let Some(newest) = self.runs()?.last()
            && linked.as_deref() != Some(newest.as_str())
        {
            dir.replace_link(CURRENT, newest.as_str())?;
        }
        Ok(())
    }

    /// Begins a run: its directory, empty.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin(&self, run: &RunId) -> Result<Dir> {
        let (shelf, name) = (self.made()?, run.unfinished());
        shelf.make_dir(&name)?;
        sub_dir(&shelf, &name)?.ok_or_else(|| Error::sys("open", shelf.join(&name))(nix::errno::Errno::ENOENT))
    }

    /// The directory of a run that was begun.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begun(&self, run: &RunId) -> Result<Option<Dir>> {
        self.dir()?.map_or(Ok(None), |dir| sub_dir(&dir, &run.unfinished()))
    }

    /// The runs that were begun and are no exports yet, the oldest first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn all_begun(&self) -> Result<Vec<RunId>> {
        let Some(dir) = self.dir()? else { return Ok(Vec::new()) };
        let mut begun: Vec<RunId> = dir.names()?.iter().filter_map(|name| RunId::of_unfinished(name)).collect();
        begun.sort();
        Ok(begun)
    }

    /// Removes what was begun of a run. Idempotent.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn abandon(&self, run: &RunId) -> Result<()> {
        let Some(dir) = self.dir()? else { return Ok(()) };
        dir.discard(&run.unfinished())?;
        dir.sync()?;
        // Of a set that has no other run.
        let is_empty = dir.names()?.is_empty();
        drop(dir);
        if is_empty {
            self.store.dir.remove_dir(self.set.as_str())?;
        }
        Ok(())
    }

    /// Has what there is of a run that failed stay, durably, in the place of that of earlier runs: an export that fails every night must
    /// not fill the store. Answers its directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep_partial(&self, run: &RunId, written: &Dir) -> Result<PathBuf> {
        written.sync()?;
        self.remove_partial()?;
        let (dir, name) = (self.made()?, run.partial());
        dir.rename(&run.unfinished(), &name)?;
        dir.sync()?;
        Ok(dir.join(&name))
    }

    /// Removes what stayed of runs that failed. Idempotent.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_partial(&self) -> Result<()> {
        let Some(dir) = self.dir()? else { return Ok(()) };
        for name in dir.names()?.iter().filter(|name| RunId::of_partial(name).is_some()) {
            dir.discard(name)?;
        }
        dir.sync()
    }

    /// Makes a run, in which every file is durable, the current export.
    ///
    /// # Errors
    /// [`Error::Io`]. If the last step failed, the run is there and the next call makes it the current one.
    pub fn publish(&self, run: &RunId, written: &Dir) -> Result<()> {
        written.sync()?;
        let dir = self.made()?;
        dir.rename(&run.unfinished(), run.as_str())?;
        dir.sync()?;
        dir.replace_link(CURRENT, run.as_str())
    }

    /// Removes runs, durably.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_runs(&self, runs: &[RunId]) -> Result<()> {
        let Some(dir) = self.dir()? else { return Ok(()) };
        for run in runs {
            // Half removed, it must not be found as an export.
            dir.rename(run.as_str(), &run.unfinished())?;
            dir.sync()?;
            dir.discard(&run.unfinished())?;
        }
        dir.sync()
    }

    /// Removes the set from the store with all runs, durably. `false`: there was none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self) -> Result<bool> {
        let (store, aside) = (&self.store.dir, format!("{REMOVED}{}", self.set));
        self.sweep_removed()?;
        if store.lookup(self.set.as_str())?.is_none() {
            store.sync()?;
            return Ok(false);
        }
        self.refuse_foreign()?;
        store.rename(self.set.as_str(), &aside)?;
        store.sync()?;
        self.sweep_removed()?;
        Ok(true)
    }

    /// Refuses a directory with something in it that no export has: somebody put it there.
    ///
    /// # Errors
    /// [`Error::Unsupported`]; [`Error::Io`].
    pub(super) fn refuse_foreign(&self) -> Result<()> {
        let Some(dir) = self.dir()? else { return Ok(()) };
        let is_ours = |name: &String| {
            let is_part = RunId::of_unfinished(name).is_some() || RunId::of_partial(name).is_some();
            let is_run = name.parse::<RunId>().is_ok() || is_part;
            name == CURRENT || name.starts_with('.') || is_run
        };
        match dir.names()?.into_iter().find(|name| !is_ours(name)) {
            None => Ok(()),
            Some(name) => Err(Error::Unsupported {
                op: "removing the exports",
                why: format!("{} is no part of an export; move it away", dir.join(&name).display()),
            }),
        }
    }

    fn sweep_removed(&self) -> Result<()> {
        let (store, aside) = (&self.store.dir, format!("{REMOVED}{}", self.set));
        let Some(dir) = sub_dir(store, &aside)? else { return Ok(()) };
        for name in dir.names()? {
            match dir.lookup(&name)? {
                Some(stat) if stat.is_directory() => dir.discard(&name)?,
                _ => dir.remove(&name)?,
            };
        }
        drop(dir);
        store.remove_dir(&aside)?;
        store.sync()
    }
}

/// A directory of a store. A link would lead out of it.
fn sub_dir(dir: &Dir, name: &str) -> Result<Option<Dir>> {
    dir.sub_dir(name).map_err(|error| match error.errno() {
        Some(libc::ENOTDIR | libc::ELOOP) => {
            Error::NotVerified { path: dir.join(name), what: "is no directory; move it away".to_owned() }
        }
        _ => error,
    })
}

/// The sets that a store has exports of.
///
/// # Errors
/// [`Error::Io`].
pub fn sets(store: &Open) -> Result<Vec<SetName>> {
    let mut found = Vec::new();
    for name in store.dir.names()? {
        if let Ok(set) = name.parse::<SetName>()
            && store.dir.lookup(&name)?.is_some_and(|stat| stat.is_directory())
        {
            found.push(set);
        }
    }
    found.sort();
    Ok(found)
}

/// Writes a file of an export, durable but for its name.
///
/// # Errors
/// [`Error::Io`].
pub fn put(dir: &Dir, name: &str, bytes: &[u8]) -> Result<()> {
    let new = dir.new_file()?;
    let mut file: &File = new.file();
    file.write_all(bytes).map_err(Error::io("write", dir.join(name)))?;
    if !new.publish_soon(name)? {
        return Err(taken(dir.join(name)));
    }
    Ok(())
}

/// Says that a file is there that nobody should have made.
pub(super) fn taken(path: PathBuf) -> Error {
    Error::Damaged { path, what: "is there already, and no call should have made it".to_owned() }
}
