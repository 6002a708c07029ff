//! Programs of the administrator that run before and after a command about a set of disks, and that pause and resume what uses the
//! disks. [`sys::hooks`](crate::sys::hooks) has the rules.

use std::time::Duration;

use super::name::RunId;
use super::set::Member;
use super::{SetName, store};
use crate::error::Result;
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
            Point::Resume => "backup-resume.d",
        }
    }

    fn phase(self) -> &'static str {
        match self {
            Point::BeforeExport | Point::BeforeImport | Point::Pause => "pre",
            Point::AfterExport | Point::AfterImport | Point::Resume => "post",
        }
    }
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
