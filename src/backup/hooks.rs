//! Programs of the administrator that run before and after a command about a set of disks, and that pause and resume what uses the
//! disks. [`sys::hooks`](crate::sys::hooks) has the rules.

use std::time::Duration;

use super::export::Wanted;
use super::name::RunId;
use super::running::Done;
use super::set::Member;
use super::source::Source;
use super::{SetName, store};
use crate::error::{Error, Result};
pub use crate::sys::hooks::{PATIENCE, Variables, boolean};
use crate::sys::{hooks, run_dir};
use crate::types::{Format, VdiInfo};

/// The points at which hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    BeforeExport,
    AfterExport,
    BeforeImport,
    AfterImport,
    Pause,
    /// What the disks do not use becomes zeroes.
    Zero,
    Resume,
}

impl Point {
    pub fn directory(self) -> &'static str {
        match self {
            Point::BeforeExport => "backup-export-pre.d",
            Point::AfterExport => "backup-export-post.d",
            Point::BeforeImport => "backup-import-pre.d",
            Point::AfterImport => "backup-import-post.d",
            Point::Pause => "backup-pause.d",
            Point::Zero => "backup-zero.d",
            Point::Resume => "backup-resume.d",
        }
    }

    fn phase(self) -> &'static str {
        match self {
            Point::BeforeExport | Point::BeforeImport | Point::Pause | Point::Zero => "pre",
            Point::AfterExport | Point::AfterImport | Point::Resume => "post",
        }
    }
}

const REMOVE_SOURCE: &str = "SM_REMOVE_SOURCE";

/// Whether hooks with these variables stop what uses the disks, so that it takes them again when it goes on.
pub fn stops(variables: &Variables) -> bool {
    variables.get(REMOVE_SOURCE) == Some(&boolean(true))
}

/// The variables that every hook of a run has. `code`: the operation, `BACKUP_EXPORT`.
pub fn common(code: &str, set: &SetName, run: &RunId) -> Variables {
    let mut found = hooks::common(code, "DISKSET", &store::host_name(), &run_dir::backup(), run.as_str());
    found.insert("SM_SET_NAME".to_owned(), set.to_string());
    found
}

/// Adds the variables about the disks of a set.
pub fn add_disks<'a>(variables: &mut Variables, disks: impl ExactSizeIterator<Item = (&'a Member, &'a VdiInfo)>) {
    variables.insert("SM_SET_DISK_COUNT".to_owned(), disks.len().to_string());
    for (n, (member, info)) in disks.enumerate() {
        let mut put = |name: &str, value: String| variables.insert(format!("SM_SET_DISK{n}_{name}"), value);
        put("UUID", member.vdi.to_string());
        put("SR", member.sr.to_string());
        // A variable holds no NUL.
        put("NAME", info.label.replace('\0', ""));
        put("SIZE", info.virtual_size.to_string());
        put("MODE", if info.read_only { "ro" } else { "rw" }.to_owned());
        put("TYPE", Format::to_string(&info.format));
        if let Some(device) = &info.device {
            variables.insert(format!("SM_DISK{n}_PATH"), device.display().to_string());
        }
    }
}

/// The variables of the hooks of an export.
pub(super) fn of_export(wanted: &Wanted, sources: &[Source], run: &RunId) -> Variables {
    let mut variables = common("BACKUP_EXPORT", &wanted.set, run);
    let pause = wanted.pause.map_or(0, |pause| pause.as_secs());
    for (name, value) in [
        ("SM_EXPORT_MODE", "local".to_owned()),
        ("SM_EXPORT_STORE", wanted.store.to_string()),
        ("SM_EXPORT_DO_PAUSE", boolean(wanted.pause.is_some())),
        ("SM_PAUSE_TIMEOUT", pause.to_string()),
        (REMOVE_SOURCE, boolean(wanted.remove_source)),
    ] {
        variables.insert(name.to_owned(), value);
    }
    add_disks(&mut variables, sources.iter().map(|source| (&source.member, &source.info)));
    variables
}

/// Runs the hooks after an export, which are told how it ended.
///
/// # Errors
/// Those of [`hooks::run`].
pub(super) fn after_export(before: &Variables, done: &Result<Done>) -> Result<()> {
    let mut variables = before.clone();
    let is_done = boolean(done.is_ok());
    for (name, value) in before {
        match name.strip_prefix("SM_SET_") {
            Some(rest) => variables.insert(format!("SM_POST_SET_{rest}"), value.clone()),
            None => continue,
        };
        if let Some(n) = name.strip_prefix("SM_SET_DISK").and_then(|rest| rest.strip_suffix("_UUID")) {
            let failed = matches!(done, Err(Error::NotExported { failures, .. })
                if failures.iter().any(|(part, _)| part.starts_with(&format!("disk {n},"))));
            let ok = boolean(done.is_ok() || matches!(done, Err(Error::NotExported { .. })) && !failed);
            variables.insert(format!("SM_POST_DISK{n}_OK"), ok);
        }
    }
    variables.insert("SM_POST_RESULT".to_owned(), is_done);
    run(Point::AfterExport, &variables, PATIENCE)
}

/// Runs the hooks of a point, until one fails.
///
/// # Errors
/// Those of [`hooks::run`].
pub fn run(point: Point, variables: &Variables, patience: Duration) -> Result<()> {
    // A pause that went on after its caller was killed would come after the resume that ends it. A resume goes on: whoever waits for
    // it is paused.
    hooks::run(point.directory(), point.phase(), variables, patience, point == Point::Resume)
}

/// Kills what is left of the hooks of a run that was killed.
pub fn end_those_of(run: &RunId) {
    hooks::end_those_of(run.as_str());
}

/// Whether a point has no hooks.
///
/// # Errors
/// Those of [`hooks::is_empty`].
pub fn is_empty(point: Point) -> Result<bool> {
    hooks::is_empty(point.directory())
}
