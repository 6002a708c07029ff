//! The log of the blocks that are written to a disk, kept by the disk's server; CBT, "Datapath" and "Consistency
//! protocol".
//!
//! The log lies beside the image, under the disk's UUID. A server that begins to write to the disk marks the log as not
//! consistent, durably and before the first write. It sets the bits of a block in the log's file before it writes to the
//! block. It marks the log as consistent when it has ended cleanly: so only the server that took the mark away gives it
//! back. A log that a server finds without the mark when it starts was left by one that was killed: the server keeps its
//! hands off it, and the log stays inconsistent.
//!
//! While the disk is paused, its log may be exchanged for another one as its image may, and the server goes on with what has
//! the name then.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::libc;

use crate::error::{Error, Result, one_line};
use crate::image::cbtlog::{self, BITMAP_AT, CONSISTENT_AT, EXTENSION, Log};
use crate::image::disk::Served;
use crate::image::name::ImageName;
use crate::sys::durable::sync_parent;
use crate::sys::syslog;

/// The log of one disk, open.
pub(super) struct ChangeLog {
    file: File,
    path: PathBuf,
    /// The bitmap as it is in the file.
    bits: Box<[AtomicU8]>,
    /// Held by the thread that changes the bitmap.
    writing: Mutex<()>,
    /// The file has more than is durable.
    unsynced: AtomicBool,
    /// Something that was written may be missing in it.
    lost: AtomicBool,
}

impl ChangeLog {
    /// The log of the disk whose leaf this is, if it has one. `before`: what this server kept before a pause; `None` for a
    /// server that starts. A log that cannot be used is removed, and the disk is served without.
    ///
    /// # Errors
    /// What is wrong with a log that can neither be used nor be removed: it would look as if nothing was written.
    pub(super) fn open(
        leaf: &Path,
        virtual_size: u64,
        before: Option<Option<&ChangeLog>>,
    ) -> Result<Option<Arc<ChangeLog>>> {
        // What is no file of a VDI has no log.
        let Some(path) = ChangeLog::beside(leaf) else { return Ok(None) };
        match ChangeLog::try_open(&path, virtual_size, before) {
            Ok(log) => Ok(log.map(Arc::new)),
            Err(error) => {
                syslog::write(&format!("changed blocks of {} are not tracked: {}", leaf.display(), one_line(&error)));
                match fs::remove_file(&path).map_err(Error::io("remove", &path)).and_then(|()| sync_parent(&path)) {
                    Ok(()) => Ok(None),
                    Err(undo) => Err(error.undone(Err(undo))),
                }
            }
        }
    }

    /// Where the log of a disk lies, if its leaf is a file of a VDI.
    pub(super) fn beside(leaf: &Path) -> Option<PathBuf> {
        let name = ImageName::parse(leaf.file_name()?.to_str()?)?;
        Some(leaf.with_file_name(format!("{}.{EXTENSION}", name.vdi)))
    }

    fn try_open(path: &Path, virtual_size: u64, before: Option<Option<&ChangeLog>>) -> Result<Option<ChangeLog>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let mut file = match options.open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(Error::io("open", path))?,
        };
        let damaged = |what: &str| Error::Damaged { path: path.to_owned(), what: what.to_owned() };
        let mut bytes = Vec::new();
        let largest = BITMAP_AT + cbtlog::bitmap_length(virtual_size) + 1;
        // A log may be longer than it has to be, but not endlessly.
        (&mut file).take(largest.max(1 << 24)).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        let Log { header, bitmap } = Log::parse(&bytes).ok_or_else(|| damaged("is no log of changed blocks"))?;
        if header.size < virtual_size {
            return Err(damaged("is the log of a smaller disk"));
        }
        let log = ChangeLog {
            path: path.to_owned(),
            bits: bitmap.into_iter().map(AtomicU8::new).collect(),
            writing: Mutex::new(()),
            unsynced: AtomicBool::new(false),
            lost: AtomicBool::new(match before {
                None => !header.consistent,
                Some(before) => before.is_some_and(|before| before.is_lost() && before.is_file(&file)),
            }),
            file,
        };
        if !log.is_lost() && header.consistent {
            log.set_consistent(false)?;
        }
        Ok(Some(log))
    }

    /// Whether something that was written may be missing in the log.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn is_file(&self, other: &File) -> bool {
        let id = |file: &File| file.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        id(&self.file).is_some_and(|ours| id(other) == Some(ours))
    }

    fn set_consistent(&self, consistent: bool) -> Result<()> {
        let written = self.file.write_all_at(&cbtlog::flag(consistent), CONSISTENT_AT);
        written.and_then(|()| self.file.sync_data()).map_err(Error::io("write", &self.path))
    }

    /// Says in the log that the stretch of the disk is written to, before it is.
    fn mark(&self, offset: u64, len: u64) {
        if self.is_lost() {
            return;
        }
        let blocks = cbtlog::blocks(offset, len);
        let (Some(first), Some(last)) = (blocks.clone().next(), blocks.clone().next_back()) else { return };
        // The bits of these blocks in one byte of the bitmap.
        let mask = |byte: u64| {
            let from = first.max(byte * 8) - byte * 8;
            let to = last.min(byte * 8 + 7) - byte * 8;
            (0xff_u8 << from) & (0xff_u8 >> (7 - to))
        };
        let (begin, end) = (first / 8, last / 8 + 1);
        let Some(bytes) = self.bits.get(begin as usize..end as usize) else {
            return self.lose("a write beyond its end");
        };
        let is_set = || bytes.iter().zip(begin..).all(|(byte, at)| mask(at) & !byte.load(Ordering::Acquire) == 0);
        if is_set() {
            return;
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<u8> =
            bytes.iter().zip(begin..).map(|(byte, at)| byte.load(Ordering::Acquire) | mask(at)).collect();
        if let Err(error) = self.file.write_all_at(&new, BITMAP_AT + begin) {
            return self.lose(&error.to_string());
        }
        self.unsynced.store(true, Ordering::Release);
        // Not before: another thread that finds a bit set goes on and writes to the block.
        bytes.iter().zip(new).for_each(|(byte, new)| byte.store(new, Ordering::Release));
    }

    /// Gives the log up: it does not say any more what was written, and never will.
    pub(super) fn lose(&self, why: &str) {
        if self.lost.swap(true, Ordering::AcqRel) {
            return;
        }
        syslog::write(&format!("changed blocks are tracked no longer: {}: {why}", self.path.display()));
        if File::open(&self.path).is_ok_and(|there| self.is_file(&there)) {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Makes the bits durable, for those who read the log while the disk is paused.
    pub(super) fn sync(&self) {
        if self.unsynced.swap(false, Ordering::AcqRel)
            && let Err(error) = self.file.sync_data()
        {
            self.lose(&error.to_string());
        }
    }

    /// As [`ChangeLog::sync`], for a log that another process writes.
    pub(super) fn sync_all(&self) {
        self.unsynced.store(true, Ordering::Release);
        self.sync();
    }

    /// Says that nothing is written any more, and that the log has all that was. The image is closed.
    pub(super) fn finish(&self) {
        self.sync();
        if !self.is_lost()
            && let Err(error) = self.set_consistent(true)
        {
            self.lose(&one_line(&error));
        }
    }
}

/// A chain whose writes are logged.
pub(super) struct Tracked {
    pub(super) chain: Box<dyn Served>,
    pub(super) log: Arc<ChangeLog>,
}

impl Served for Tracked {
    fn virtual_size(&self) -> u64 {
        self.chain.virtual_size()
    }

    fn images(&self) -> Vec<PathBuf> {
        self.chain.images()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.chain.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.log.mark(offset, bytes.len() as u64);
        self.chain.write_at(bytes, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.log.mark(offset, len);
        self.chain.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.chain.flush()
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.chain.close()
    }
}
