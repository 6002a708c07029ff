//! Programs of the administrator that run before and after a command, and that pause and resume what uses the disks:
//! `/etc/sm/hooks/OPERATION.d/`.
//!
//! Executable files whose names have letters, digits, `_` and `-` alone are run, in the order of the bytes of their names, without
//! arguments, with an empty standard input, and with no variables but those of [`Variables`] and PATH. No directory means no hook.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use super::name::RunId;
use super::set::Member;
use super::{SetName, store};
use crate::error::{Error, Result};
use crate::sys::durable::Dir;
use crate::sys::run_dir;
use crate::sys::tool::{self, Tool};
use crate::types::{Format, VdiInfo};

/// How long a hook may take that is not told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of each output of a hook that are kept: both fit into the line of an error.
const MOST_OUTPUT: usize = 1 << 10;
const PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

/// The variable that tells hooks of different runs apart.
const RUN: &str = "SM_RUN_ID";

/// The variables of hooks.
pub type Variables = BTreeMap<String, String>;

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
    let pairs = [
        ("SM_HOOKS_VERSION", "1".to_owned()),
        ("SM_HOOKS_PATH", run_dir::hooks().display().to_string()),
        ("SM_OP_CODE", code.to_owned()),
        ("SM_OBJECT_TYPE", "DISKSET".to_owned()),
        ("SM_HOST", store::host_name()),
        ("SM_DATA_DIR", run_dir::backup().display().to_string()),
        (RUN, run.to_string()),
        ("SM_SET_NAME", set.to_string()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
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

/// A boolean as hooks read it.
pub fn boolean(value: bool) -> String {
    if value { "True" } else { "False" }.to_owned()
}

/// Runs the hooks of a point, until one fails.
///
/// # Errors
/// [`Error::Tool`] with the hook and its words; [`Error::Io`] if the directory cannot be read, or if others than root and this user
/// can change what is in it.
pub fn run(point: Point, variables: &Variables, patience: Duration) -> Result<()> {
    let path = run_dir::hooks().join(point.directory());
    for hook in hooks(&path)? {
        let tool = Tool::new(&hook.display().to_string()).without_environment().env("PATH", PATH);
        let tool = tool.env("SM_HOOKS_PHASE", point.phase());
        let tool = variables.iter().fold(tool, |tool, (name, value)| tool.env(name, value));
        let tool = tool.deadline(patience).of_a_person(MOST_OUTPUT);
        // A pause that went on after its caller was killed would come after the resume that ends it. A resume goes on: whoever
        // waits for it is paused.
        let tool = if point == Point::Resume { tool } else { tool.dies_with_us() };
        tool.run()?;
    }
    Ok(())
}

/// Kills what is left of the hooks of a run that was killed.
pub fn end_those_of(run: &RunId) {
    tool::end_group_of(RUN, run.as_str());
}

/// Whether a point has no hooks.
///
/// # Errors
/// Those of [`run`] but for what a hook says.
pub fn is_empty(point: Point) -> Result<bool> {
    Ok(hooks(&run_dir::hooks().join(point.directory()))?.is_empty())
}

fn hooks(path: &Path) -> Result<Vec<PathBuf>> {
    let dir = match Dir::open(path) {
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => return Ok(Vec::new()),
        other => other?,
    };
    let stat = dir.stat()?;
    refuse_of_others(path, stat.st_uid, stat.st_mode)?;
    let mut names = dir.names()?;
    names.sort();
    let mut found = Vec::new();
    for name in names {
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
            continue;
        }
        let hook = dir.join(&name);
        let meta = std::fs::metadata(&hook).map_err(Error::io("examine", &hook))?;
        if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
            refuse_of_others(&hook, meta.uid(), meta.mode())?;
            trusted_way(&hook)?;
            found.push(hook);
        }
    }
    Ok(found)
}

/// Refuses a program that a link leads to, if another user can exchange it or a directory on the way. In a directory with the sticky
/// bit, others exchange only what is theirs.
fn trusted_way(hook: &Path) -> Result<()> {
    let real = std::fs::canonicalize(hook).map_err(Error::io("find", hook))?;
    for dir in real.ancestors().skip(1) {
        let meta = std::fs::metadata(dir).map_err(Error::io("examine", dir))?;
        let mode = if meta.mode() & libc::S_ISVTX == 0 { meta.mode() } else { 0 };
        refuse_of_others(dir, meta.uid(), mode)?;
    }
    Ok(())
}

/// Refuses what a user may have written who is neither root nor this one: it would be run as this one.
fn refuse_of_others(path: &Path, uid: u32, mode: u32) -> Result<()> {
    let is_ours = uid == 0 || uid == run_dir::user().as_raw();
    if is_ours && mode & 0o022 == 0 {
        return Ok(());
    }
    let why = "others can write to it; chown root and chmod go-w mend that";
    Err(Error::io("trust the hook", path)(std::io::Error::new(std::io::ErrorKind::PermissionDenied, why)))
}
