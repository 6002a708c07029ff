//! The journal of a run: `/var/lib/sm/layouts/NAME.journal`, of root alone.
//!
//! Its first line has the plan, the layout that was installed before, and what the run may do. Each line after it says how a step
//! stands, and is durable before the step is begun or the next one is. All lines are JSON. A line that has no end was torn by a kill,
//! and counts for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::LayoutName;
use crate::layout::plan::{Allow, Plan, Step};
use crate::registry::view;
use crate::sys::durable::{self, Dir};
use crate::sys::run_dir;
use crate::types::seconds_now;

/// The form of journals that this release reads and writes.
const VERSION: u32 = 1;
/// Bytes of the longest journal that is read.
const LONGEST: u64 = 64 << 20;

/// How a step stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// It was not begun.
    #[default]
    Waiting,
    /// It was begun.
    Open,
    /// It was begun, and the SR that it deletes is gone: what is there now is new.
    Erased,
    Done,
    /// It was not allowed.
    Left,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: u32,
    /// The process that began.
    host: String,
    pid: u32,
    /// Seconds since 1970.
    since: u64,
    allow: BTreeSet<Allow>,
    /// The text of the layout that was installed before; empty if there was none.
    before: String,
    plan: Plan,
}

/// A line after the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Record {
    Step {
        n: u32,
        mark: Mark,
    },
    /// A process goes on, which may do this as well.
    Resume {
        host: String,
        pid: u32,
        since: u64,
        allow: BTreeSet<Allow>,
    },
}

/// An open journal.
pub struct Journal {
    path: PathBuf,
    file: File,
    head: Head,
    marks: BTreeMap<u32, Mark>,
}

fn file_name(name: &LayoutName) -> String {
    format!("{name}.journal")
}

/// The layouts whose last run is not finished, in order.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be read.
pub fn names() -> Result<Vec<LayoutName>> {
    let Some(dir) = open_dir()? else { return Ok(Vec::new()) };
    let mut names: Vec<LayoutName> =
        dir.names()?.iter().filter_map(|file| file.strip_suffix(".journal")?.parse().ok()).collect();
    names.sort();
    Ok(names)
}

fn open_dir() -> Result<Option<Dir>> {
    match Dir::open(&run_dir::layouts()) {
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => Ok(None),
        other => other.map(Some),
    }
}

impl Journal {
    /// Begins a journal, in the place of an older one. Durable.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::TooBig`] for a plan of more than 1 MiB.
    pub fn begin(name: &LayoutName, plan: &Plan, before: &str, allow: BTreeSet<Allow>) -> Result<Journal> {
        let head = Head {
            version: VERSION,
            host: view::host_name(),
            pid: std::process::id(),
            since: seconds_now().unwrap_or_default(),
            allow,
            before: before.to_owned(),
            plan: plan.clone(),
        };
        if open_dir()?.is_none() {
            durable::make_dirs(&run_dir::layouts())?;
        }
        let path = run_dir::layouts().join(file_name(name));
        let dir = open_dir()?.ok_or_else(|| Error::sys("open the directory of", &path)(Errno::ENOENT))?;
        dir.replace(&file_name(name), format!("{}\n", json(&head)).as_bytes())?;
        let file = open_file(&path)?.ok_or_else(|| Error::sys("open", &path)(Errno::ENOENT))?;
        let mut journal = Journal { path, file, head, marks: BTreeMap::new() };
        journal.file.seek(SeekFrom::End(0)).map_err(Error::io("read", &journal.path))?;
        // What was looked at need not be looked at again: a run that goes on finds things half changed.
        for step in plan.steps.iter().filter(|step| step.action == crate::layout::plan::Action::Check) {
            journal.marks.insert(step.n, Mark::Done);
        }
        Ok(journal)
    }

    /// The journal of a layout; `None` if its last run is finished.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it cannot be read.
    pub fn open(name: &LayoutName) -> Result<Option<Journal>> {
        let path = run_dir::layouts().join(file_name(name));
        let Some(mut file) = open_file(&path)? else { return Ok(None) };
        let damaged = |what: String| Error::Damaged {
            path: path.clone(),
            what: format!("{what}; move it away, make a plan and look at what it would do"),
        };
        let mut text = String::new();
        (&file).take(LONGEST).read_to_string(&mut text).map_err(Error::io("read", &path))?;
        let (head, marks, length) = parse(&text).map_err(damaged)?;
        let length = length as u64;
        // A torn line goes, so that the next one begins a line.
        file.set_len(length).map_err(Error::io("cut", &path))?;
        file.seek(SeekFrom::Start(length)).map_err(Error::io("read", &path))?;
        if head.plan.layout != name.as_str() {
            return Err(Error::Damaged { path, what: format!("it is the journal of layout {}", head.plan.layout) });
        }
        Ok(Some(Journal { path, file, head, marks }))
    }

    pub fn plan(&self) -> &Plan {
        &self.head.plan
    }

    /// The text of the layout that was installed before; empty if there was none.
    pub fn before(&self) -> &str {
        &self.head.before
    }

    pub fn allow(&self) -> &BTreeSet<Allow> {
        &self.head.allow
    }

    pub fn mark(&self, step: &Step) -> Mark {
        self.marks.get(&step.n).copied().unwrap_or_default()
    }

    /// Records that this process goes on, and may do `more`. Durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn go_on(&mut self, more: &BTreeSet<Allow>) -> Result<()> {
        let (host, pid, since) = (view::host_name(), std::process::id(), seconds_now().unwrap_or_default());
        self.append(&Record::Resume { host, pid, since, allow: more.clone() })?;
        self.head.allow.extend(more);
        Ok(())
    }

    /// Records how a step stands. Durable. A step that goes on after its SR was deleted stays so.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, step: &Step, mark: Mark) -> Result<()> {
        if self.mark(step) == mark || (self.mark(step), mark) == (Mark::Erased, Mark::Open) {
            return Ok(());
        }
        self.append(&Record::Step { n: step.n, mark })?;
        self.marks.insert(step.n, mark);
        Ok(())
    }

    fn append(&mut self, record: &Record) -> Result<()> {
        let line = format!("{}\n", json(record));
        self.file.write_all(line.as_bytes()).map_err(Error::io("write to", &self.path))?;
        self.file.sync_data().map_err(Error::io("make durable", &self.path))
    }

    /// Removes the journal of a run that is finished. Durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self) -> Result<()> {
        let Some(dir) = open_dir()? else { return Ok(()) };
        dir.remove(durable::name_of(&self.path))?;
        dir.sync()
    }
}

fn open_file(path: &PathBuf) -> Result<Option<File>> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", path)(e)),
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("a journal is plain data")
}

/// The first line, how the steps stand, and the bytes of all lines that are whole.
fn parse(text: &str) -> Result<(Head, BTreeMap<u32, Mark>, usize), String> {
    let whole = text.rfind('\n').map(|at| &text[..=at]).ok_or("its first line is not whole")?;
    let mut lines = whole.lines();
    let first = lines.next().unwrap_or_default();
    let mut head: Head = serde_json::from_str(first).map_err(|e| format!("line 1 begins no journal: {e}"))?;
    if head.version != VERSION {
        return Err(format!("it has version {}, and this release reads version {VERSION}", head.version));
    }
    head.plan.is_numbered()?;
    let mut marks = BTreeMap::new();
    for step in head.plan.steps.iter().filter(|step| step.action == crate::layout::plan::Action::Check) {
        marks.insert(step.n, Mark::Done);
    }
    for (line, at) in lines.zip(2..) {
        match serde_json::from_str(line).map_err(|e| format!("line {at} is no record: {e}"))? {
            Record::Step { n, mark } => drop(marks.insert(n, mark)),
            Record::Resume { allow, .. } => head.allow.extend(allow),
        }
    }
    Ok((head, marks, whole.len()))
}
