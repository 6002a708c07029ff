//! Programs of the administrator that run around a command: `/etc/sm/hooks/OPERATION-pre.d/` before it, which may deny it, and
//! `OPERATION-post.d/` after it.
//!
//! Executable files whose names have letters, digits, `_` and `-` alone are run, in the order of the bytes of their names, without
//! arguments, with an empty standard input, and with no variables but those of [`Variables`] and PATH. No directory means no hook.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use super::durable::Dir;
use super::run_dir;
use super::tool::{self, Tool};
use crate::error::{Error, Result};

/// How long a hook may take that is not told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of each output of a hook that are kept: both fit into the line of an error.
const MOST_OUTPUT: usize = 1 << 10;
const PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

/// The variable that tells hooks of different runs apart.
const RUN: &str = "SM_RUN_ID";

/// The variables of hooks.
pub type Variables = BTreeMap<String, String>;

/// The variables that every hook has. `code`: the operation, `BACKUP_EXPORT`. `object`: the type of what it is done to. `data`: where
/// what the operation remembers is kept. `run`: tells this run from others.
pub fn common(code: &str, object: &str, host: &str, data: &Path, run: &str) -> Variables {
    let pairs = [
        ("SM_HOOKS_VERSION", "1".to_owned()),
        ("SM_HOOKS_PATH", run_dir::hooks().display().to_string()),
        ("SM_OP_CODE", code.to_owned()),
        ("SM_OBJECT_TYPE", object.to_owned()),
        ("SM_HOST", host.to_owned()),
        ("SM_DATA_DIR", data.display().to_string()),
        (RUN, run.to_owned()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A boolean as hooks read it.
pub fn boolean(value: bool) -> String {
    if value { "True" } else { "False" }.to_owned()
}

/// Runs the hooks of a directory, until one fails. `phase`: `pre` or `post`. `goes_on`: a hook goes on if this process is killed.
///
/// # Errors
/// [`Error::Tool`] with the hook and its words; [`Error::Io`] if the directory cannot be read, or if others than root and this user
/// can change what is in it.
pub fn run(directory: &str, phase: &str, variables: &Variables, patience: Duration, goes_on: bool) -> Result<()> {
    for hook in hooks(&run_dir::hooks().join(directory))? {
        let tool = Tool::new(&hook.display().to_string()).without_environment().env("PATH", PATH);
        let tool = tool.env("SM_HOOKS_PHASE", phase);
        let tool = variables.iter().fold(tool, |tool, (name, value)| tool.env(name, value));
        let tool = tool.deadline(patience).of_a_person(MOST_OUTPUT);
        let tool = if goes_on { tool } else { tool.dies_with_us() };
        tool.run()?;
    }
    Ok(())
}

/// The standard output of a program that the administrator named, which gets one argument and no variables but PATH. `most`: bytes of
/// the longest output.
///
/// # Errors
/// Those of [`run`]; [`Error::Tool`] also for a longer output.
pub fn answer_of(program: &Path, arg: &str, patience: Duration, most: usize) -> Result<String> {
    let meta = std::fs::metadata(program).map_err(Error::io("examine", program))?;
    refuse_of_others(program, meta.uid(), meta.mode())?;
    trusted_way(program)?;
    let tool = Tool::new(&program.display().to_string()).without_environment().env("PATH", PATH);
    let tool = tool.arg(arg).deadline(patience).of_a_person(MOST_OUTPUT).at_most(most).dies_with_us();
    Ok(tool.run()?.stdout)
}

/// Kills what is left of the hooks of a run that was killed.
pub fn end_those_of(run: &str) {
    tool::end_group_of(RUN, run);
}

/// Whether a directory has no hooks.
///
/// # Errors
/// Those of [`run`] but for what a hook says.
pub fn is_empty(directory: &str) -> Result<bool> {
    Ok(hooks(&run_dir::hooks().join(directory))?.is_empty())
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
    if run_dir::is_trusted(uid) && mode & 0o022 == 0 {
        return Ok(());
    }
    let why = "others can write to it; chown root and chmod go-w mend that";
    Err(Error::io("trust the hook", path)(std::io::Error::new(std::io::ErrorKind::PermissionDenied, why)))
}
