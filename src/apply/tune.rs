//! The settings of the kernel that the file of [`tuning`](crate::layout::tuning) names, written on this host.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::error::{Error, Result, one_line};
use crate::layout::tuning::{ROOTS, Setting, Tuning};
use crate::layout::{Active, Mode, Slot, installed};
use crate::registry::agent::{Agent, Connection};
use crate::registry::view;
use crate::sys::{run_dir, small};
use crate::types::Class;

/// Bytes of the longest contents of such a file that are compared.
const LONGEST: u64 = 1 << 16;

/// What became of one file.
#[derive(Debug)]
pub struct Tuned {
    /// The file, or the pattern if no file is there.
    pub file: PathBuf,
    /// What it shall say.
    pub value: String,
    /// What it said; none if it cannot be read.
    pub before: Option<String>,
    pub end: End,
}

#[derive(Debug)]
pub enum End {
    /// It says so already.
    Kept,
    Written,
    /// A dry run: it would be written.
    Due,
    /// A pattern that fits no file of this host.
    Nothing,
    Failed(Error),
}

impl End {
    pub fn word(&self) -> &'static str {
        match self {
            End::Kept => "kept",
            End::Written => "written",
            End::Due => "due",
            End::Nothing => "no file",
            End::Failed(_) => "failed",
        }
    }
}

/// Writes what the file says for this host and the classes of the SRs that it brings up: those of the installed layouts, or on a
/// host with xapi those that have a PBD here. Repeatable: what is as it shall be stays untouched. A file that fails does not keep
/// others from being written; [`End::Failed`] says why.
///
/// # Errors
/// Those of [`Tuning::read`]; [`Error::Damaged`] for a layout that cannot be read.
pub fn host(agent: Option<&Agent>, dry_run: bool) -> Result<Vec<Tuned>> {
    let tuning = Tuning::read()?;
    if tuning.is_empty() {
        return Ok(Vec::new());
    }
    let classes = match agent {
        Some(agent) => agent.srs.iter().filter(|it| it.connection != Connection::None).filter_map(class_of).collect(),
        None => of_layouts()?,
    };
    let settings = tuning.of(&view::host_name(), &classes);
    Ok(settings.into_iter().flat_map(|setting| all(setting, &ROOTS.map(Path::new), dry_run)).collect())
}

/// As [`host`], after the SRs of layouts came up; what failed, in words.
pub fn after_start() -> Vec<String> {
    let failed = |tuned: Tuned| match tuned.end {
        End::Failed(error) => Some(one_line(&error)),
        _ => None,
    };
    match host(None, false) {
        Ok(tuned) => tuned.into_iter().filter_map(failed).collect(),
        Err(error) => vec![one_line(&error)],
    }
}

fn class_of(kept: &crate::registry::agent::Kept) -> Option<Class> {
    match kept.sr_type.as_str() {
        "ext" | "xfs" | "largeblock" => Some(Class::File),
        word if word.starts_with("lvm") => Some(Class::Lvm),
        word => word.parse().ok(),
    }
}

/// The classes of the SRs that installed layouts bring up on this host.
fn of_layouts() -> Result<BTreeSet<Class>> {
    let here = view::host_name();
    let is_up = |slot: &&Slot| {
        slot.mode == Mode::Managed && slot.active != Active::No && (slot.host == here || slot.id.class == Class::Nfs)
    };
    let mut classes = BTreeSet::new();
    for name in installed::names()? {
        let layout = installed::load(&name)?;
        classes.extend(layout.iter().flat_map(|it| &it.slots).filter(is_up).map(|slot| slot.id.class));
    }
    Ok(classes)
}

/// Every file that a setting is for.
fn all(setting: &Setting, roots: &[&Path], dry_run: bool) -> Vec<Tuned> {
    let of = |file: PathBuf, before, end| Tuned { file, value: setting.value.clone(), before, end };
    // Names that begin with a dot need one in the pattern, as in a shell.
    let as_in_a_shell = glob::MatchOptions {
        require_literal_leading_dot: true,
        require_literal_separator: true,
        ..glob::MatchOptions::new()
    };
    let found: Vec<PathBuf> =
        glob::glob_with(&setting.glob, as_in_a_shell).into_iter().flatten().filter_map(|path| path.ok()).collect();
    if found.is_empty() {
        let file = PathBuf::from(&setting.glob);
        let end = match setting.glob.contains(['*', '?', '[']) {
            true => End::Nothing,
            false => End::Failed(Error::io("write", &file)(io::Error::from_raw_os_error(libc::ENOENT))),
        };
        return vec![of(file, None, end)];
    }
    let one = |file: PathBuf| {
        let before = small::read_text(&file, LONGEST).ok().map(|text| text.trim_end().to_owned());
        let end = match &before {
            Some(said) if says(said, &setting.value) => End::Kept,
            _ if dry_run => End::Due,
            _ => write(&file, &setting.value, roots).map_or_else(End::Failed, |()| End::Written),
        };
        of(file, before, end)
    };
    found.into_iter().map(one).collect()
}

/// Whether a file of the kernel says a value: alone, or in brackets among those that it may say, as the scheduler of a disk.
fn says(said: &str, value: &str) -> bool {
    let among = |word: &str| word.strip_prefix('[').and_then(|word| word.strip_suffix(']')) == Some(value);
    said.split_whitespace().eq(value.split_whitespace()) || said.split_whitespace().any(among)
}

fn write(file: &Path, value: &str, roots: &[&Path]) -> Result<()> {
    // Below /sys, names are links from one place of it to another, and no other link is followed.
    let path = fs::canonicalize(file).map_err(Error::io("find", file))?;
    if !roots.iter().any(|root| path.starts_with(root)) {
        let why = io::Error::other(format!("it leads to {}, which is no setting of the kernel", path.display()));
        return Err(Error::io("write", file)(why));
    }
    let open =
        OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY).open(&path);
    let mut open = open.map_err(Error::io("write", file))?;
    // In one call: the kernel takes each as a whole value.
    let whole = format!("{value}\n");
    let refused = |e: io::Error| {
        Error::io("write", file)(io::Error::new(
            e.kind(),
            format!("the kernel refuses {value:?}, which {} says: {e}", run_dir::tuning().display()),
        ))
    };
    match open.write(whole.as_bytes()) {
        Ok(written) if written == whole.len() => Ok(()),
        Ok(_) => Err(refused(io::Error::other("it took a part alone"))),
        Err(e) => Err(refused(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(glob: String, value: &str) -> Setting {
        let tuning = crate::layout::tuning::tests::read(&format!("alias a=/sys/x\n\"{value}\" a lvm\n")).unwrap();
        let mut found = tuning.of("h", &[Class::Lvm].into())[0].clone();
        found.glob = glob;
        found
    }

    #[test]
    fn files_that_fit_are_written_once_and_links_out_of_the_kernel_never() {
        let root = tempfile::tempdir().unwrap();
        let kernel = root.path().join("sys");
        let queue = |disk: &str| kernel.join(disk).join("ra");
        for (disk, said) in [("sda", "128\n"), ("sdb", "4096\n"), ("vda", "128\n"), (".sdx", "1\n")] {
            fs::create_dir_all(kernel.join(disk)).unwrap();
            fs::write(queue(disk), said).unwrap();
        }
        fs::write(root.path().join("outside"), "1\n").unwrap();
        fs::create_dir(kernel.join("sdc")).unwrap();
        std::os::unix::fs::symlink(root.path().join("outside"), queue("sdc")).unwrap();
        let kernel = fs::canonicalize(&kernel).unwrap();
        let wanted = setting(format!("{}/sd?/ra", kernel.display()), "4096");
        let run = |dry_run| all(&wanted, &[&kernel], dry_run).iter().map(|it| it.end.word()).collect::<Vec<_>>();
        assert_eq!(run(true), ["due", "kept", "due"]);
        assert_eq!(fs::read_to_string(queue("sda")).unwrap(), "128\n");
        assert_eq!(run(false), ["written", "kept", "failed"]);
        assert_eq!(run(false), ["kept", "kept", "failed"]);
        let said = |disk: &str| fs::read_to_string(queue(disk)).unwrap();
        assert_eq!((said("sda").as_str(), said("vda").as_str(), said(".sdx").as_str()), ("4096\n", "128\n", "1\n"));
        assert_eq!(fs::read_to_string(root.path().join("outside")).unwrap(), "1\n");
    }

    #[test]
    fn a_pattern_without_a_file_is_nothing_and_a_path_without_one_a_failure() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| setting(root.path().join(name).display().to_string(), "1");
        assert!(matches!(all(&at("x*"), &[root.path()], false)[0].end, End::Nothing));
        let plain = all(&at("x"), &[root.path()], false);
        assert!(matches!(&plain[0].end, End::Failed(Error::Io { .. })), "{plain:?}");
    }

    #[test]
    fn what_the_kernel_says_is_compared_by_words() {
        for (said, value, is_so) in [
            ("none [mq-deadline] kyber", "mq-deadline", true),
            ("none [mq-deadline] kyber", "none", false),
            ("4096\t16384\t4194304", "4096 16384 4194304", true),
            ("128", "1280", false),
        ] {
            assert_eq!(says(said, value), is_so, "{said}: {value}");
        }
    }
}
