//! An index of the labels of an SR, so that a name is found without reading a record for each of a thousand disks.
//!
//! The index lies in the host's own state, which a reboot clears, never in the SR. It names the directory that it was made
//! of by identity and times. Each disk that is made, deleted or renamed changes these times, because the record of a label
//! is replaced under its name. So an index is either of the present directory or is not used.
//!
//! Two changes may have one time, because the kernel's clock for files has steps. An index is therefore only made of a
//! directory that was left alone for longer than a step. An SR that other hosts have too gets none: its times are those of
//! a server, and may be told late.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::FileStat;
use serde::{Deserialize, Serialize};

use crate::types::{SrUuid, VdiName, VdiUuid};

/// Records from which on an index costs less than reading them all.
pub(super) const WORTH_AN_INDEX: usize = 32;

/// Longer than a step of the clock for files: 10 ms at the lowest rate of Linux.
const STEP: Duration = Duration::from_millis(100);
/// As [`STEP`], where the filesystem stores whole seconds, or two.
const COARSE_STEP: Duration = Duration::from_secs(3);

/// Identity and times of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Directory {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Directory {
    pub(super) fn of(stat: &FileStat) -> Directory {
        Directory {
            device: stat.st_dev,
            inode: stat.st_ino,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Whether a change after `now` gets other times than these.
    fn is_settled(&self, now: SystemTime) -> bool {
        let coarse = self.modified.1 == 0 && self.changed.1 == 0;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        [self.modified, self.changed].iter().all(|(seconds, nanoseconds)| {
            let time = Duration::new((*seconds).try_into().unwrap_or(u64::MAX), (*nanoseconds).try_into().unwrap_or(0));
            now.checked_sub(time).is_some_and(|age| age > if coarse { COARSE_STEP } else { STEP })
        })
    }
}

/// The contents of the index file.
#[derive(Serialize, Deserialize)]
struct Index {
    directory: Directory,
    disks: Vec<(VdiUuid, String)>,
}

/// The index of one SR.
pub(super) struct Labels {
    path: PathBuf,
}

impl Labels {
    /// `state`: the directory of the host's state.
    pub(super) fn of(state: &Path, sr: SrUuid) -> Labels {
        Labels { path: state.join("labels").join(sr.to_string()) }
    }

    /// The disks of the directory as they were when it had these times, with their labels. `None`: no index is of them.
    pub(super) fn read(&self, directory: Directory) -> Option<Vec<VdiName>> {
        let index: Index = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        let named = |(uuid, label)| VdiName { uuid, label, location: None };
        (index.directory == directory).then(|| index.disks.into_iter().map(named).collect())
    }

    /// Whether an index of a directory with these times may be written.
    pub(super) fn may_be_of(directory: Directory) -> bool {
        directory.is_settled(SystemTime::now())
    }

    /// Stores the index, if that is possible: without it the records are read. `directory`: its times before `disks` were
    /// read.
    pub(super) fn write(&self, directory: Directory, disks: &[VdiName]) {
        let disks = disks.iter().map(|disk| (disk.uuid, disk.label.clone())).collect();
        let (Some(parent), Ok(bytes)) = (self.path.parent(), serde_json::to_vec(&Index { directory, disks })) else {
            return;
        };
        let _ = fs::create_dir_all(parent);
        let new = self.path.with_extension(std::process::id().to_string());
        if fs::write(&new, bytes).and_then(|()| fs::rename(&new, &self.path)).is_err() {
            let _ = fs::remove_file(&new);
        }
    }

    /// Removes what is stored.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(modified: (i64, i64)) -> Directory {
        Directory { device: 1, inode: 2, modified, changed: modified }
    }

    #[test]
    fn an_index_is_of_the_directory_as_it_was_or_not_used() {
        let (state, sr) = (tempfile::tempdir().unwrap(), SrUuid::random());
        let labels = Labels::of(state.path(), sr);
        let disks = [VdiName { uuid: VdiUuid::random(), label: "a \"b\"\n".to_owned(), location: None }];
        assert!(labels.read(directory((5, 5))).is_none());
        labels.write(directory((5, 5)), &disks);
        let read = labels.read(directory((5, 5))).unwrap();
        assert_eq!((read[0].uuid, read[0].label.as_str(), read.len()), (disks[0].uuid, "a \"b\"\n", 1));
        assert!(labels.read(directory((5, 6))).is_none());
        assert!(labels.read(Directory { inode: 3, ..directory((5, 5)) }).is_none());
        assert!(labels.read(Directory { changed: (5, 6), ..directory((5, 5)) }).is_none());
        fs::write(&labels.path, "torn").unwrap();
        assert!(labels.read(directory((5, 5))).is_none());
        labels.remove();
        assert!(!labels.path.exists());
    }

    #[test]
    fn a_directory_that_was_just_changed_gets_no_index() {
        let at = |seconds, nanoseconds| UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let fine = directory((100, 500_000_000));
        assert!(!fine.is_settled(at(100, 500_000_000)));
        assert!(!fine.is_settled(at(100, 600_000_000)));
        assert!(fine.is_settled(at(100, 600_000_001)));
        // A clock that was set back.
        assert!(!fine.is_settled(at(99, 0)));
        // Whole seconds.
        assert!(!directory((100, 0)).is_settled(at(102, 0)));
        assert!(directory((100, 0)).is_settled(at(104, 0)));
        let one_later = Directory { changed: (200, 0), ..fine };
        assert!(!one_later.is_settled(at(150, 0)));
    }
}
