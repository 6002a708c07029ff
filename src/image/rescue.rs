//! A damaged disk, read as far as that can be done.

use std::cell::RefCell;

use super::SECTOR;
use super::disk::Disk;
use crate::error::{Error, Result, one_line};
use crate::types::LostRange;

/// Bytes below which a stretch that the storage cannot read is not divided: a device that fails takes its time for each try.
const LEAST_OF_STORAGE: usize = 4096;

/// A disk that reads as zeroes where it cannot be read, and remembers where that was. Its images are opened with
/// [`Reading::Rescue`](super::Reading).
pub struct Rescued<'d> {
    disk: &'d dyn Disk,
    lost: RefCell<Vec<LostRange>>,
}

impl<'d> Rescued<'d> {
    pub fn new(disk: &'d dyn Disk) -> Rescued<'d> {
        Rescued { disk, lost: RefCell::default() }
    }

    /// The stretches that were read and are lost, in the order of the disk.
    pub fn lost(self) -> Vec<LostRange> {
        let mut found = self.lost.into_inner();
        found.sort_by_key(|lost| lost.start);
        let mut joined: Vec<LostRange> = Vec::new();
        for lost in found {
            match joined.last_mut() {
                Some(last) if lost.start <= last.end => last.end = last.end.max(lost.end),
                _ => joined.push(lost),
            }
        }
        joined
    }

    /// Notes a stretch. Reading goes on where it ended, so most stretches continue the last one.
    fn note(&self, start: u64, end: u64, why: &Error) {
        let mut lost = self.lost.borrow_mut();
        match lost.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => lost.push(LostRange { start, end, why: one_line(why) }),
        }
    }
}

impl Disk for Rescued<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    /// What cannot be told counts as data: reading it says whether it is lost.
    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        self.disk.next_data(from)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Err(error) = self.disk.read_at(buf, offset) else { return Ok(()) };
        let least = match error {
            Error::Io { .. } => LEAST_OF_STORAGE,
            _ => SECTOR as usize,
        };
        let lost = match self.disk.lost_at(offset, buf.len() as u64) as usize {
            0 if buf.len() <= least => buf.len(),
            lost => lost,
        };
        let (first, second) = match lost {
            0 => buf.split_at_mut((buf.len() / 2).next_multiple_of(least).min(buf.len() - SECTOR as usize)),
            lost => buf.split_at_mut(lost),
        };
        if lost == 0 {
            self.read_at(first, offset)?;
        } else {
            // The error may be that of bytes further on.
            let why = self.disk.read_at(&mut first[..SECTOR as usize], offset).err().unwrap_or(error);
            first.fill(0);
            self.note(offset, offset + lost as u64, &why);
        }
        if second.is_empty() { Ok(()) } else { self.read_at(second, offset + first.len() as u64) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A disk of ones, of which some stretches cannot be read.
    struct Holed(Vec<(u64, u64)>, bool);

    impl Disk for Holed {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
            Ok((from < self.size()).then_some((from, self.size())))
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            let end = offset + buf.len() as u64;
            if self.0.iter().any(|(from, to)| *from < end && offset < *to) {
                return Err(match self.1 {
                    true => Error::sys("read", Path::new("x"))(nix::errno::Errno::EIO),
                    false => Error::Damaged { path: "x".into(), what: "torn".to_owned() },
                });
            }
            buf.fill(1);
            Ok(())
        }

        /// The first hole is one that the tables tell of.
        fn lost_at(&self, offset: u64, len: u64) -> u64 {
            let (from, to) = self.0[0];
            if (from..to).contains(&offset) { (to - offset).min(len) } else { 0 }
        }
    }

    fn rescued(disk: &Holed) -> (Vec<u8>, Vec<(u64, u64)>) {
        let rescued = Rescued::new(disk);
        let mut bytes = vec![7; disk.size() as usize];
        for (n, piece) in bytes.chunks_mut(300 << 10).enumerate() {
            rescued.read_at(piece, n as u64 * (300 << 10)).unwrap();
        }
        (bytes, rescued.lost().into_iter().map(|lost| (lost.start, lost.end)).collect())
    }

    #[test]
    fn all_but_the_lost_sectors_is_read() {
        let holes = vec![(0, 512), (5 * 512, 8 * 512), (299 << 10, 301 << 10), ((1 << 20) - 512, 1 << 20)];
        let (bytes, lost) = rescued(&Holed(holes.clone(), false));
        assert_eq!(lost, holes);
        for (n, byte) in bytes.iter().enumerate() {
            let is_lost = holes.iter().any(|(from, to)| (*from..*to).contains(&(n as u64)));
            assert_eq!(*byte, u8::from(!is_lost), "byte {n}");
        }
    }

    #[test]
    fn what_a_device_cannot_read_is_not_divided_to_the_sector() {
        let (bytes, lost) = rescued(&Holed(vec![(9 * 512, 10 * 512)], true));
        assert_eq!(lost, [(4096, 8192)]);
        assert_eq!(bytes.iter().filter(|byte| **byte == 0).count(), 4096);
    }
}
