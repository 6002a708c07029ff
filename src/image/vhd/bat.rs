//! The table of blocks of an open image (BAT): where each block is. Most of the table of a large disk is unused, and takes neither
//! time nor memory here: it is kept in pages, and a page without an entry is not there.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Release};

use super::be32;
use crate::error::Result;

/// The entry of a block without room in the image.
pub(super) const UNUSED: u32 = u32::MAX;

/// Entries of a page.
const ENTRIES: usize = 1024;

/// Bytes that are read at once: a piece that the processor keeps, and whose pages cost less than a longer one saves of calls.
const PIECE: usize = 64 << 10;

type Page = Box<[AtomicU32]>;

/// Sector of each block's bitmap.
#[derive(Debug)]
pub(super) struct Bat {
    count: u32,
    pages: Box<[OnceLock<Page>]>,
}

impl Bat {
    /// Reads a table of `count` entries by `get`, which is told where the piece begins in the table, bytes.
    pub fn read(count: u32, mut get: impl FnMut(&mut [u8], u64) -> Result<()>) -> Result<Bat> {
        let pages = (0..(count as usize).div_ceil(ENTRIES)).map(|_| OnceLock::new()).collect();
        let (bat, bytes) = (Bat { count, pages }, count as usize * 4);
        let mut piece = vec![0; PIECE.min(bytes)];
        for at in (0..bytes).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(bytes - at)];
            get(piece, at as u64)?;
            for (page, raw) in (at / (ENTRIES * 4)..).zip(piece.chunks(ENTRIES * 4)) {
                if !is_unused(raw) {
                    let entries = raw.chunks_exact(4).map(|entry| AtomicU32::new(be32(entry, 0)));
                    let _ = bat.pages[page].set(entries.collect());
                }
            }
        }
        Ok(bat)
    }

    /// Blocks of the disk.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// The entry of a block; [`UNUSED`] also for one that the disk has not.
    pub fn get(&self, block: u32) -> u32 {
        let page = self.pages.get(block as usize / ENTRIES).and_then(OnceLock::get);
        page.and_then(|page| page.get(block as usize % ENTRIES)).map_or(UNUSED, |entry| entry.load(Acquire))
    }

    /// Gives a block of the disk its entry.
    pub fn set(&self, block: u32, entry: u32) {
        let unused = || {
            let entries = ENTRIES.min(self.count as usize - block as usize / ENTRIES * ENTRIES);
            (0..entries).map(|_| AtomicU32::new(UNUSED)).collect()
        };
        self.pages[block as usize / ENTRIES].get_or_init(unused)[block as usize % ENTRIES].store(entry, Release);
    }

    /// The blocks that have an entry, in ascending order.
    pub fn used(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let pages = (0..).step_by(ENTRIES).zip(&self.pages).filter_map(|(first, page)| Some((first, page.get()?)));
        let entries = pages.flat_map(|(first, page)| (first..).zip(page.iter().map(|entry| entry.load(Acquire))));
        entries.filter(|(_, entry)| *entry != UNUSED)
    }
}

/// Whether all bytes are 0xff. Looks at all of them, because that is faster than to stop at the first.
fn is_unused(raw: &[u8]) -> bool {
    raw.iter().fold(0xff, |all, byte| all & byte) == 0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_what_was_read_and_what_was_set() {
        for count in [1u32, 1023, 1024, 1025, 70_000, 200_000] {
            let of = |block: u32| if block % 3000 < 2 || block == count - 1 { block + 7 } else { UNUSED };
            let all: Vec<u8> = (0..count).flat_map(|block| of(block).to_be_bytes()).collect();
            let mut read = 0;
            let bat = Bat::read(count, |piece, at| {
                read += piece.len();
                piece.copy_from_slice(&all[at as usize..at as usize + piece.len()]);
                Ok(())
            });
            let bat = bat.unwrap();
            assert_eq!((read, bat.len()), (all.len(), count));
            assert!((0..count).all(|block| bat.get(block) == of(block)) && bat.get(count) == UNUSED);
            let used: Vec<(u32, u32)> =
                (0..count).map(|block| (block, of(block))).filter(|(_, entry)| *entry != UNUSED).collect();
            assert!(bat.used().eq(used));
            // In a page that is there, and in one that is not.
            for block in [0, count / 2, count - 1] {
                bat.set(block, 5);
                assert_eq!(bat.get(block), 5);
            }
            let pages = bat.pages.iter().filter(|page| page.get().is_some()).count();
            assert!(pages <= 2 * (count as usize).div_ceil(3000) + 3, "{pages} pages");
        }
        let empty = Bat::read(0, |_, _| panic!("there is nothing to read")).unwrap();
        assert_eq!((empty.len(), empty.get(0), empty.used().count()), (0, UNUSED, 0));
    }
}
