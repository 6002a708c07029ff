//! A raw image that is read on a thread of its own, so that reading and writing take turns no more.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, scope};

use super::disk::{Disk, PIECE, RawImage, Sink, pieces, without_zeroes};
use crate::error::Result;

/// As [`pieces`], of a raw image: the next pieces are read while `sink` has one.
///
/// # Errors
/// Those of [`pieces`].
pub fn pieces_ahead(disk: &RawImage, sink: Sink) -> Result<()> {
    /// Pieces on their way, so that neither side waits for the other at every piece.
    const AHEAD: usize = 4;
    let (give, taken) = sync_channel::<Piece>(AHEAD);
    let (give_back, spare) = sync_channel::<Vec<u8>>(AHEAD + 2);
    let read = move || read_ahead(disk, &give, &spare);
    scope(|scope| {
        let Ok(reading) = Builder::new().spawn_scoped(scope, read) else { return pieces(disk, sink) };
        let write = || {
            for Piece { offset, bytes, data } in taken {
                data.iter().try_for_each(|data| sink(offset + data.start as u64, &bytes[data.clone()]))?;
                let _ = give_back.try_send(bytes);
            }
            Ok(())
        };
        // What is left of the channel goes with it: the other side ends then.
        let written = write();
        let read = reading.join().unwrap_or_else(|panic| resume_unwind(panic));
        written.and(read)
    })
}

/// A piece of a disk, and which bytes of it are something else than zeroes.
struct Piece {
    offset: u64,
    bytes: Vec<u8>,
    data: Vec<Range<usize>>,
}

fn read_ahead(disk: &RawImage, give: &SyncSender<Piece>, spare: &Receiver<Vec<u8>>) -> Result<()> {
    let mut at = 0;
    while let Some((start, end)) = disk.next_data(at)? {
        at = start - start % 512;
        while at < end {
            let len = PIECE.min((end.next_multiple_of(512).min(disk.size()) - at) as usize);
            let mut bytes = spare.try_recv().unwrap_or_default();
            bytes.resize(len, 0);
            disk.read_at(&mut bytes, at)?;
            let mut data = Vec::new();
            without_zeroes(&bytes, 0, &mut |offset, part| {
                data.push(offset as usize..offset as usize + part.len());
                Ok(())
            })?;
            if give.send(Piece { offset: at, bytes, data }).is_err() {
                // The other side failed, and tells why.
                return Ok(());
            }
            at += len as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::error::Error;
    use crate::image::storage::{FileStorage, Storage as _};

    fn file_of(bytes: &[u8]) -> Arc<FileStorage> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Arc::new(FileStorage::new(file, "x").unwrap())
    }

    #[test]
    fn what_is_read_ahead_is_what_is_read_one_by_one() {
        let mut bytes = vec![0; (9 << 20) + 512];
        for at in [0, 100 << 10, (3 << 20) - 1, 3 << 20, (7 << 20) + 5, (9 << 20) + 511] {
            bytes[at] = 1;
        }
        let disk = RawImage::new(file_of(&bytes)).unwrap();
        let handed = |ahead: bool| {
            let mut found = Vec::new();
            let mut sink = |offset: u64, part: &[u8]| {
                found.push((offset, part.to_vec()));
                Ok(())
            };
            if ahead {
                pieces_ahead(&disk, &mut sink).unwrap()
            } else {
                pieces(&disk, &mut sink).unwrap()
            }
            found
        };
        let (one, other) = (handed(false), handed(true));
        assert!(one == other && one.len() > 4);
        // A side that fails ends the other.
        let mut left = 2;
        let failed = pieces_ahead(&disk, &mut |_, _| {
            left -= 1;
            if left > 0 { Ok(()) } else { Err(Error::Usage("full".to_owned())) }
        });
        assert!(matches!(failed, Err(Error::Usage(why)) if why == "full"));
        let storage = file_of(&bytes);
        let short = RawImage::with_data(storage.clone(), Some(vec![(0, u64::MAX)])).unwrap();
        storage.set_size(1 << 20).unwrap();
        let mut last = 0;
        pieces_ahead(&short, &mut |offset, part| {
            last = offset + part.len() as u64;
            Ok(())
        })
        .unwrap();
        assert_eq!(last, 128 << 10);
    }
}
