//! The bytes of a volume, read from its physical volumes by the group's map, and written there: nothing is activated, and no
//! LVM command is run.
//!
//! The devices are read and written past the page cache: what the cache holds of a physical volume does not follow what is
//! written through the devices of volumes. The cache of a volume's own device ends with its last user, so it does not show what
//! stood there before such a write either. [`rights`](super::rights) says who may write.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

use crate::error::{Error, Result};
use crate::image::storage::Storage;
use crate::sys::aio::PAGE;
use crate::sys::lvm::{self, Lv, Vg};
use crate::sys::{blockdev, pvlabel, uncached};
use crate::types::Mode;

/// The physical volumes of a group, open.
pub struct Devices {
    open: Vec<(PathBuf, Result<Arc<File>, String>)>,
    mode: Mode,
}

impl Devices {
    /// Opens what is there for reading.
    pub fn of(vg: &Vg) -> Devices {
        Devices::open(vg, Mode::ReadOnly)
    }

    /// Opens what is there for reading and writing.
    pub fn for_writing(vg: &Vg) -> Devices {
        Devices::open(vg, Mode::ReadWrite)
    }

    fn open(vg: &Vg, mode: Mode) -> Devices {
        let open = |path: &PathBuf| {
            let file = uncached::open(path, mode == Mode::ReadWrite);
            (path.clone(), file.map(Arc::new).map_err(|error| format!("cannot open {}: {error}", path.display())))
        };
        Devices { open: vg.pvs.iter().filter(|pv| !pv.missing).map(|pv| open(&pv.name)).collect(), mode }
    }

    /// Whether all physical volumes have the metadata that a report of the group is of, none of which is missing.
    pub fn are_as(&self, vg: &Vg) -> bool {
        let is_as = |file: &Arc<File>| {
            let read = |bytes: &mut [u8], from| uncached::read(file, bytes, from);
            pvlabel::version(&vg.name, &read).is_ok_and(|found| found.is_some() && found == vg.version)
        };
        self.open.len() == vg.pvs.len() && self.open.iter().all(|(_, file)| file.as_ref().is_ok_and(is_as))
    }

    /// The bytes of a volume.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a volume that is anything else than stretches of physical volumes; [`Error::NoDevice`] if one of
    /// these is missing or cannot be opened.
    pub fn volume(&self, vg: &Vg, lv: &Lv) -> Result<Mapped> {
        let path = lvm::node(&vg.name, &lv.name);
        let (mut pieces, mut next) = (Vec::with_capacity(lv.segments.len()), 0);
        for segment in &lv.segments {
            let Some((device, first)) = &segment.on else {
                if segment.kind == "linear" {
                    let why = "a physical volume of it is missing".to_owned();
                    return Err(Error::NoDevice { device: path.display().to_string(), why });
                }
                let why = format!("{} is {}, and only linear volumes are served", path.display(), segment.kind);
                return Err(Error::Unsupported { op: "reading a volume", why });
            };
            if segment.start != next {
                break;
            }
            next += segment.count;
            let missing = || format!("{} is missing", device.display());
            let open = self.open.iter().find(|(name, _)| name == device);
            let file = match open.map(|(_, file)| file) {
                Some(Ok(file)) => file.clone(),
                other => {
                    let why = other.map_or_else(missing, |file| file.as_ref().err().cloned().unwrap_or_default());
                    return Err(Error::NoDevice { device: path.display().to_string(), why });
                }
            };
            let begins = vg.pvs.iter().find(|pv| pv.name == *device).map_or(0, |pv| pv.first_extent);
            pieces.push(Piece { at: segment.start * vg.extent_size, from: begins + first * vg.extent_size, file });
        }
        let size = next * vg.extent_size;
        if size != lv.size || size == 0 {
            let what = format!("LVM says that it has {} bytes, and where {size} of them are", lv.size);
            return Err(Error::Damaged { path, what });
        }
        Ok(Mapped { path, size, pieces, mode: self.mode, head: None })
    }
}

/// A stretch of a volume, up to the next one.
#[derive(Clone, Debug)]
struct Piece {
    /// The first byte in the volume.
    at: u64,
    /// That byte on the device.
    from: u64,
    file: Arc<File>,
}

/// The bytes of a volume.
#[derive(Clone, Debug)]
pub struct Mapped {
    path: PathBuf,
    size: u64,
    /// In the order of the volume, the first at 0.
    pieces: Vec<Piece>,
    mode: Mode,
    /// Its first bytes, if they were read before.
    head: Option<Arc<[u8]>>,
}

impl Mapped {
    /// The first bytes only; behind them there are zeroes, which no reader asks for.
    pub fn cut_to(self, size: u64) -> Mapped {
        Mapped { size: self.size.min(size), ..self }
    }

    /// Makes whole extents read as zeroes, not yet durably: from a byte to before another.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn zero_extents(&self, from: u64, to: u64) -> Result<()> {
        self.refuse_read_only().map_err(Error::io("write", &self.path))?;
        let mut at = from;
        while at < to.min(self.size) {
            let (file, first, len) = self.piece(at, usize::try_from(to - at).unwrap_or(usize::MAX));
            blockdev::zero_range(file, &self.path, first, first + len as u64)?;
            at += len as u64;
        }
        Ok(())
    }

    /// The same, of which these first bytes are known: they are not read again.
    pub fn with_head(self, head: Arc<[u8]>) -> Mapped {
        Mapped { head: Some(head), ..self }
    }

    /// Where its first page is, which has as many bytes as headers usually have: see [`crate::sys::aio::pages`]. `None`: not in one place.
    pub fn first_page(&self) -> Option<(&File, u64)> {
        let (file, from, len) = self.piece(0, PAGE);
        (len == PAGE && from.is_multiple_of(PAGE as u64)).then_some((file, from))
    }

    fn refuse_read_only(&self) -> io::Result<()> {
        match self.mode {
            Mode::ReadWrite => Ok(()),
            Mode::ReadOnly => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    /// The device that has the byte `at`, where on it, and how many of `most` bytes from there on lie together.
    fn piece(&self, at: u64, most: usize) -> (&File, u64, usize) {
        let n = self.pieces.partition_point(|piece| piece.at <= at) - 1;
        let ends = self.pieces.get(n + 1).map_or(self.size, |next| next.at).min(self.size);
        let piece = &self.pieces[n];
        (&piece.file, piece.from + (at - piece.at), usize::try_from(ends - at).unwrap_or(usize::MAX).min(most))
    }
}

impl Storage for Mapped {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn is_device(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let wanted = (buf.len() as u64).min(self.size.saturating_sub(offset)) as usize;
        let known = usize::try_from(offset).ok().and_then(|at| self.head.as_ref()?.get(at..at.checked_add(wanted)?));
        if let Some(known) = known {
            buf[..wanted].copy_from_slice(known);
            return Ok(wanted);
        }
        let mut done = 0;
        while done < wanted {
            let (file, from, len) = self.piece(offset + done as u64, wanted - done);
            uncached::read(file, &mut buf[done..done + len], from)?;
            done += len;
        }
        Ok(wanted)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.refuse_read_only()?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let mut done = 0;
        while done < bytes.len() {
            let (file, from, len) = self.piece(offset + done as u64, (bytes.len() - done).min(uncached::STEP));
            uncached::write(file, &bytes[done..done + len], from)?;
            done += len;
        }
        Ok(())
    }

    /// A volume gets another size by LVM.
    fn set_size(&self, _size: u64) -> io::Result<()> {
        self.refuse_read_only()
    }

    fn sync(&self) -> io::Result<()> {
        if self.mode == Mode::ReadOnly {
            return Ok(());
        }
        let mut synced: Vec<&Arc<File>> = Vec::new();
        for piece in &self.pieces {
            if !synced.iter().any(|file| Arc::ptr_eq(file, &piece.file)) {
                piece.file.sync_all()?;
                synced.push(&piece.file);
            }
        }
        Ok(())
    }

    fn punch(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        self.refuse_read_only().map(|()| false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lvm::{Pv, Segment};

    const EXTENT: u64 = 4096;

    /// Two devices, files here, of which each byte says its extent, and a group on them.
    fn group(dir: &Path) -> Vg {
        let pv = |name: &str, first_extent: u64, mark: u8| {
            let path = dir.join(name);
            let mut bytes = vec![0xff; first_extent as usize];
            (0..8).for_each(|extent| bytes.extend([mark + extent; EXTENT as usize]));
            std::fs::write(&path, bytes).unwrap();
            Pv { name: path, first_extent, ..Pv::default() }
        };
        let pvs = vec![pv("a", 512, 0), pv("b", 8192, 100)];
        Vg { name: "vg".to_owned(), extent_size: EXTENT, pvs, ..Vg::default() }
    }

    fn volume(vg: &Vg, segments: &[(u64, u64, usize, u64)]) -> Lv {
        let segments: Vec<Segment> = segments
            .iter()
            .map(|(start, count, pv, first)| Segment {
                kind: "linear".to_owned(),
                start: *start,
                count: *count,
                on: Some((vg.pvs[*pv].name.clone(), *first)),
            })
            .collect();
        let size = segments.iter().map(|segment| segment.count * EXTENT).sum();
        Lv { name: "lv".to_owned(), size, segments, ..Lv::default() }
    }

    /// A scratch directory on a filesystem that can be read past the page cache.
    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
    }

    #[test]
    fn a_volume_is_read_from_where_its_map_says() {
        let dir = scratch();
        let vg = group(dir.path());
        let lv = volume(&vg, &[(0, 2, 0, 3), (2, 1, 1, 7), (3, 1, 0, 0)]);
        let mapped = Devices::of(&vg).volume(&vg, &lv).unwrap();
        let mut bytes = vec![0; 5 * EXTENT as usize];
        assert_eq!(mapped.read_at(&mut bytes, 0).unwrap() as u64, 4 * EXTENT);
        let extents: Vec<u8> = bytes.chunks(EXTENT as usize).map(|extent| extent[7]).collect();
        assert_eq!(extents, [3, 4, 107, 0, 0]);
        for (offset, len) in [(EXTENT - 1, 2), (2 * EXTENT - 3, EXTENT + 6), (1, 1), (4 * EXTENT - 1, 1), (511, 514)] {
            let mut part = vec![0; len as usize];
            assert_eq!(mapped.read_at(&mut part, offset).unwrap() as u64, len);
            assert_eq!(part, bytes[offset as usize..(offset + len) as usize], "{offset} {len}");
        }
        assert_eq!(mapped.read_at(&mut [0; 8], 4 * EXTENT).unwrap(), 0);
        assert_eq!(mapped.read_at(&mut [0; 8], u64::MAX).unwrap(), 0);
        let known = mapped.clone().with_head(Arc::from([9; 8]));
        let mut part = [0; 9];
        known.read_at(&mut part[..8], 0).unwrap();
        assert_eq!(part, [9, 9, 9, 9, 9, 9, 9, 9, 0], "bytes that are known");
        known.read_at(&mut part, 0).unwrap();
        assert_eq!(part, [3; 9], "more than is known");
        // The first extent of a is in the middle of a page.
        assert_eq!(mapped.first_page().map(|(_, from)| from), None);
        let on_b = Devices::of(&vg).volume(&vg, &volume(&vg, &[(0, 1, 1, 7)])).unwrap();
        assert_eq!(on_b.first_page().map(|(_, from)| from), Some(8192 + 7 * EXTENT));
        assert_eq!(on_b.cut_to(4095).first_page().map(|(_, from)| from), None);
        let cut = mapped.clone().cut_to(EXTENT + 1);
        assert_eq!((cut.size().unwrap(), cut.read_at(&mut bytes, EXTENT).unwrap()), (EXTENT + 1, 1));
        assert!(mapped.write_at(&[0], 0).is_err() && mapped.set_size(1).is_err() && mapped.punch(0, 1).is_err());
    }

    #[test]
    fn a_volume_is_written_to_where_its_map_says() {
        let dir = scratch();
        let vg = group(dir.path());
        let lv = volume(&vg, &[(0, 2, 0, 3), (2, 1, 1, 7), (3, 1, 0, 0)]);
        let mapped = Devices::for_writing(&vg).volume(&vg, &lv).unwrap();
        let mut wanted = vec![0; 4 * EXTENT as usize];
        mapped.read_at(&mut wanted, 0).unwrap();
        for (offset, len) in [(0, 512), (511, 514), (2 * EXTENT - 3, EXTENT + 6), (4 * EXTENT - 1, 1), (EXTENT, 1024)] {
            let bytes = vec![(offset % 251) as u8 ^ 0x80; len as usize];
            mapped.write_at(&bytes, offset).unwrap();
            wanted[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
        }
        mapped.sync().unwrap();
        let mut now = vec![0; 4 * EXTENT as usize];
        Devices::of(&vg).volume(&vg, &lv).unwrap().read_at(&mut now, 0).unwrap();
        assert_eq!(now, wanted);
        let others: Vec<u8> = [(1, 0), (1, 6), (0, 1), (0, 2), (0, 5)]
            .map(|(pv, extent)| {
                let bytes = std::fs::read(&vg.pvs[pv].name).unwrap();
                bytes[(vg.pvs[pv].first_extent + extent * EXTENT) as usize + 9]
            })
            .to_vec();
        assert_eq!(others, [100, 106, 1, 2, 5], "extents of others");
        assert!(mapped.write_at(&[0; 2], 4 * EXTENT - 1).is_err(), "a write behind the end");
        let read_only = Devices::of(&vg).volume(&vg, &lv).unwrap();
        assert!(read_only.write_at(&[0], 0).is_err());
    }

    #[test]
    fn a_map_that_is_not_whole_is_refused() {
        let dir = scratch();
        let vg = group(dir.path());
        let devices = Devices::of(&vg);
        let refused = |lv: &Lv| devices.volume(&vg, lv).unwrap_err().to_string();
        let whole = volume(&vg, &[(0, 2, 0, 3), (2, 1, 1, 7)]);
        devices.volume(&vg, &whole).unwrap();
        let hole = Lv { segments: whole.segments[1..].to_vec(), ..whole.clone() };
        assert!(refused(&hole).contains("and where 0 of them are"), "{}", refused(&hole));
        let short = Lv { segments: whole.segments[..1].to_vec(), ..whole.clone() };
        assert!(refused(&short).contains("LVM says"), "{}", refused(&short));
        assert!(refused(&Lv { segments: Vec::new(), size: 0, ..whole.clone() }).contains("LVM says"));
        for (kind, wanted) in [("raid1", "only linear volumes"), ("linear", "is missing")] {
            let mut other = whole.clone();
            other.segments[0] = Segment { kind: kind.to_owned(), on: None, ..other.segments[0].clone() };
            assert!(refused(&other).contains(wanted), "{}", refused(&other));
        }
        let mut gone = whole.clone();
        gone.segments[0].on = Some((dir.path().join("c"), 0));
        assert!(refused(&gone).contains("c is missing"), "{}", refused(&gone));
    }
}
