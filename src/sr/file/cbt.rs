//! The logs of changed blocks in a file SR: `<vdi>.cbtlog`, the file that the Python storage managers keep.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::forest::FileForest;
use super::layout::{Role, beside, classify};
use crate::error::{Error, Result};
use crate::image::cbtlog::{BITMAP_AT, EXTENSION, Header, Log, pointer};
use crate::sys::durable::Dir;
use crate::sys::lock::Lock;
use crate::types::{SrUuid, VdiUuid};
use crate::vdi::cbt::ChangeLogs;

/// The first bytes of a log, so many at most. `None`: there is none.
fn bytes_of(dir: &Dir, vdi: VdiUuid, most: u64) -> Result<Option<Vec<u8>>> {
    let name = beside(vdi, EXTENSION);
    let Some(file) = dir.try_open_file(&name, false)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(Error::io("read", dir.join(&name)))?;
    Ok(Some(bytes))
}

impl FileForest<'_> {
    fn no_log(&self, vdi: VdiUuid) -> Error {
        Error::Damaged { path: self.dir.join(&beside(vdi, EXTENSION)), what: "is no log of changed blocks".to_owned() }
    }
}

impl ChangeLogs for FileForest<'_> {
    fn sr(&self) -> SrUuid {
        self.sr.sr
    }

    fn all(&self) -> Result<Vec<VdiUuid>> {
        let of_log = |name: String| match classify(&name) {
            Some((vdi, Role::Log)) => Some(vdi),
            _ => None,
        };
        Ok(self.dir.names()?.into_iter().filter_map(of_log).collect())
    }

    fn header(&self, vdi: VdiUuid) -> Result<Option<Header>> {
        let head = bytes_of(&self.dir, vdi, BITMAP_AT)?;
        head.map(|bytes| Header::parse(&bytes).ok_or_else(|| self.no_log(vdi))).transpose()
    }

    fn read(&self, vdi: VdiUuid) -> Result<Option<Log>> {
        // Of the largest disk that a format of ours holds, 17.6 TB, the log has 33.6 MB.
        const MOST: u64 = 64 << 20;
        let all = bytes_of(&self.dir, vdi, MOST)?;
        all.map(|bytes| Log::parse(&bytes).ok_or_else(|| self.no_log(vdi))).transpose()
    }

    fn write(&self, vdi: VdiUuid, log: &Log) -> Result<()> {
        self.dir.replace(&beside(vdi, EXTENSION), &log.to_bytes())
    }

    fn point(&self, vdi: VdiUuid, at: u64, to: Option<VdiUuid>) -> Result<()> {
        let name = beside(vdi, EXTENSION);
        let file = self.dir.open_file(&name, true)?;
        let written = file.write_all_at(&pointer(to), at).and_then(|()| file.sync_data());
        written.map_err(Error::io("write", self.dir.join(&name)))
    }

    fn remove(&self, vdi: VdiUuid) -> Result<bool> {
        let removed = self.dir.remove(&beside(vdi, EXTENSION))?;
        self.dir.sync()?;
        Ok(removed)
    }

    fn locked(&self, deadline: Instant) -> Result<Lock> {
        self.sr.lock_trees(&self.dir, deadline)
    }
}
