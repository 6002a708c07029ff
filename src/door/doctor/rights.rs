//! The rights on what this host believes: locks, names, settings, programs, drivers, and the directories of SRs.
//!
//! Most of it is judged by the code that reads it. That code refuses what others can write to, one thing at a time and when it is
//! needed; here all is asked at once.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::drivers::Installed;
use super::srs::shown;
use super::{Area, Trouble, below};
use crate::backup::store;
use crate::door::size;
use crate::door::v1::listing::Listed;
use crate::error::{Error, Result, one_line};
use crate::layout::installed as layouts;
use crate::registry::ledger;
use crate::registry::settings::Settings;
use crate::sys::{hooks, lock, run_dir};

/// The types whose SRs lie in a directory of this host, where no server judges who may write.
const LOCAL: &[&str] = &["file", "ext", "xfs", "largeblock", "zfs"];

/// Looks at everything that has rights.
pub fn look(srs: &[Listed], drivers: &[Installed]) -> Vec<Trouble> {
    let mut found = Vec::new();
    let mut judge = |path: PathBuf, judged: Result<()>| {
        if let Err(error) = judged {
            found.push(Trouble::wrong(Area::Permissions, path.display().to_string(), one_line(&error), ""));
        }
    };
    judge(run_dir::locks(), run_dir::trusted());
    lock::untrusted().into_iter().for_each(|error| judge(run_dir::locks(), Err(error)));
    judge(run_dir::settings(), Settings::read(size::parse).map(drop));
    judge(run_dir::stores(), store::all().map(drop));
    judge(ledger::path(), ledger::read().map(drop));
    judge(run_dir::layouts(), layouts::names().map(drop));
    for directory in names_in(&run_dir::hooks()) {
        judge(run_dir::hooks(), hooks::is_empty(&directory).map(drop));
    }
    let told: Vec<String> = found.iter().map(|it| it.object.clone()).collect();
    let exchangeable = believed().into_iter().filter_map(|path| exchangeable(&path));
    found.extend(exchangeable.filter(|it| !told.contains(&it.object)));
    found.extend(secrets(&run_dir::targets()));
    found.extend(open_secret(&run_dir::domain_secret()));
    found.extend(drivers.iter().filter_map(|driver| programs(&driver.path)));
    found.extend(srs.iter().filter(|sr| LOCAL.contains(&sr.sr_type.as_str())).filter_map(directory));
    found
}

/// What calls of root believe: files and directories of settings and records, what is in the directories, and what they are in.
fn believed() -> Vec<PathBuf> {
    let mut paths = vec![
        run_dir::settings(),
        run_dir::tuning(),
        run_dir::inventory(),
        run_dir::stores(),
        run_dir::domain_secret(),
        ledger::path(),
    ];
    for directory in [
        run_dir::names(),
        run_dir::collected(),
        run_dir::models(),
        run_dir::hooks(),
        run_dir::layouts(),
        run_dir::backup(),
        run_dir::targets(),
    ] {
        paths.extend(below(directory.clone()));
        paths.push(directory);
    }
    // Whoever can write to a directory can put another one in the place of what is in it.
    paths.extend(paths.clone().iter().filter_map(|path| path.parent()).map(Path::to_owned));
    paths.sort();
    paths.dedup();
    paths
}

/// A path that others can write to, or exchange.
fn exchangeable(path: &Path) -> Option<Trouble> {
    let meta = fs::symlink_metadata(path).ok()?;
    let is_sticky = meta.is_dir() && meta.mode() & libc::S_ISVTX != 0;
    let what = if !run_dir::is_trusted(meta.uid()) {
        format!("root believes it, and it belongs to uid {}", meta.uid())
    } else if !meta.is_symlink() && !is_sticky && meta.mode() & 0o022 != 0 {
        "root believes it, and others can write to it".to_owned()
    } else {
        return None;
    };
    Some(Trouble::wrong(Area::Permissions, path.display().to_string(), what, "chown it to root, chmod go-w"))
}

/// A file with a secret that others than its owner can read.
fn open_secret(path: &Path) -> Option<Trouble> {
    let meta = fs::metadata(path).ok().filter(|meta| meta.mode() & 0o077 != 0)?;
    let what = format!("it holds a secret, and others can read it (mode {:o})", meta.mode() & 0o777);
    Some(Trouble::wrong(Area::Permissions, path.display().to_string(), what, "chmod 600"))
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Files with passwords that others than their owner can read.
fn secrets(directory: &Path) -> Vec<Trouble> {
    let paths = names_in(directory).into_iter().map(|name| directory.join(name)).chain([directory.to_owned()]);
    let told = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).ok()?;
        // Who cannot enter the directory cannot read what is in it.
        let open = if path == directory { 0 } else { meta.mode() & 0o077 };
        let is_shut = fs::metadata(directory).is_ok_and(|meta| meta.mode() & 0o077 == 0);
        let what = match run_dir::is_trusted(meta.uid()) {
            false => format!("it holds secrets and belongs to uid {}", meta.uid()),
            true if open != 0 && !is_shut => "it holds secrets, and others can read it".to_owned(),
            true => return None,
        };
        let remedy = "chown it to root, and take the rights of others away: chmod go=";
        Some(Trouble::wrong(Area::Permissions, path.display().to_string(), what, remedy))
    };
    paths.filter_map(told).collect()
}

/// The refusal to believe a program that others can exchange.
fn programs(path: &Path) -> Option<Trouble> {
    let meta = fs::metadata(path).ok()?;
    let what = if !run_dir::is_trusted(meta.uid()) {
        format!("xapi runs it as root, and it belongs to uid {}", meta.uid())
    } else if meta.mode() & 0o022 != 0 {
        "xapi runs it as root, and others can write to it".to_owned()
    } else if meta.permissions().mode() & 0o111 == 0 {
        "nobody may run it, so xapi leaves it out".to_owned()
    } else {
        return None;
    };
    Some(Trouble::wrong(Area::Permissions, path.display().to_string(), what, "chown root:root, chmod 755"))
}

/// A directory of an SR in which every user of the host can exchange disks.
fn directory(sr: &Listed) -> Option<Trouble> {
    let path = match (sr.sr_type.as_str(), sr.uuid) {
        ("file", _) => PathBuf::from(&sr.location),
        (_, Some(uuid)) => run_dir::mounts().join(uuid.to_string()),
        _ => return None,
    };
    let meta = fs::metadata(&path).ok().filter(|meta| meta.is_dir())?;
    let mode = meta.mode();
    let what = if !run_dir::is_trusted(meta.uid()) {
        format!("its directory {} belongs to uid {}, who can exchange its disks", path.display(), meta.uid())
    } else if mode & 0o002 != 0 && mode & libc::S_ISVTX == 0 {
        format!("every user can exchange its disks in {}", path.display())
    } else {
        return None;
    };
    Some(Trouble::wrong(Area::Permissions, shown(sr), what, "chown the directory to root, chmod 700"))
}

/// Whether a program may be run as root: nobody but root and this user can have written it.
///
/// # Errors
/// [`Error::Io`] for what is not there.
pub fn is_trusted(path: &Path) -> Result<bool> {
    let meta = fs::metadata(path).map_err(Error::io("examine", path))?;
    Ok(run_dir::is_trusted(meta.uid()) && meta.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SrUuid;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn secrets_that_others_can_read_are_told_unless_their_directory_is_shut() {
        let scratch = tempfile::tempdir().unwrap();
        let record = scratch.path().join("record");
        fs::write(&record, "secret").unwrap();
        for (of_directory, of_record, is_told) in
            [(0o755, 0o644, true), (0o700, 0o644, false), (0o755, 0o600, false), (0o755, 0o640, true)]
        {
            chmod(scratch.path(), of_directory);
            chmod(&record, of_record);
            let told = secrets(scratch.path());
            assert_eq!(told.iter().any(|it| it.object == record.display().to_string()), is_told, "{told:?}");
            assert!(told.len() < 2, "{told:?}");
        }
    }

    #[test]
    fn what_root_believes_is_told_if_others_can_write_to_it() {
        let scratch = tempfile::tempdir().unwrap();
        let (file, directory) = (scratch.path().join("sm.conf"), scratch.path().join("hooks"));
        fs::write(&file, "").unwrap();
        fs::create_dir(&directory).unwrap();
        for (path, mode, is_told) in [
            (&file, 0o644, false),
            (&file, 0o664, true),
            (&file, 0o646, true),
            (&directory, 0o755, false),
            (&directory, 0o777, true),
            (&directory, 0o1777, false),
        ] {
            chmod(path, mode);
            assert_eq!(exchangeable(path).is_some(), is_told, "{} {mode:o}", path.display());
        }
        for (mode, is_told) in [(0o600, false), (0o640, true), (0o644, true)] {
            chmod(&file, mode);
            assert_eq!(open_secret(&file).is_some(), is_told, "{mode:o}");
        }
    }

    #[test]
    fn a_program_or_a_directory_that_others_can_write_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let program = scratch.path().join("FileSR");
        fs::write(&program, "").unwrap();
        for (mode, words) in [(0o755, ""), (0o775, "others can write"), (0o644, "nobody may run it"), (0o757, "others")]
        {
            chmod(&program, mode);
            let told = programs(&program).map(|it| it.what).unwrap_or_default();
            assert!(told.contains(words) && words.is_empty() == told.is_empty(), "{mode:o}: {told}");
        }
        let sr = Listed {
            sr_type: "file".to_owned(),
            uuid: Some(SrUuid::random()),
            location: scratch.path().display().to_string(),
            ..Listed::default()
        };
        for (mode, is_told) in [(0o755, false), (0o777, true), (0o1777, false)] {
            chmod(scratch.path(), mode);
            assert_eq!(directory(&sr).is_some(), is_told, "{mode:o}");
        }
    }
}
