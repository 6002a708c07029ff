//! The contents of a file of age(1): 16 random bytes, then chunks of 64 KiB, each sealed on its own with its number. The last
//! chunk says that it is the last, and is empty only if all is.

use std::io;

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::KeyInit as _;
use chacha20poly1305::aead::AeadInOut as _;

use super::header::{FileKey, Header, derived};
use super::random;

/// Bytes of a chunk before it is sealed.
const CHUNK: usize = 64 << 10;
/// Bytes by which a chunk grows.
const TAG: usize = 16;
/// Bytes in front of the chunks.
pub const NONCE: usize = 16;
const SEALED: u64 = (CHUNK + TAG) as u64;

fn cipher(key: &FileKey, nonce: &[u8]) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(&derived(&key.0, nonce, b"payload").into())
}

/// The number of a chunk, in 11 bytes, and whether it is the last.
fn number_of(chunk: u64, is_last: bool) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&chunk.to_be_bytes());
    nonce[11] = u8::from(is_last);
    nonce
}

/// Seals what comes, in its order.
pub struct Sealer {
    cipher: ChaCha20Poly1305,
    chunk: u64,
    /// What is not yet sealed: the last chunk is known at the end alone.
    held: Vec<u8>,
}

impl Sealer {
    /// Begins the contents of a file, after its header, in `out`.
    ///
    /// # Errors
    /// The system's error if it has no random numbers.
    pub fn begin(key: &FileKey, out: &mut Vec<u8>) -> io::Result<Sealer> {
        let nonce: [u8; NONCE] = random()?;
        out.extend_from_slice(&nonce);
        Ok(Sealer { cipher: cipher(key, &nonce), chunk: 0, held: Vec::with_capacity(CHUNK) })
    }

    /// Takes bytes, and adds to `out` what can be sealed by now.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.held.len() == CHUNK {
                self.seal(false, out);
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.held.len()));
            self.held.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Adds the last chunk to `out`.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        self.seal(true, out);
    }

    fn seal(&mut self, is_last: bool, out: &mut Vec<u8>) {
        let nonce = number_of(self.chunk, is_last);
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce.into(), b"", self.held.as_mut_slice().into())
            .expect("a chunk is shorter than the limit");
        out.extend_from_slice(&self.held);
        out.extend_from_slice(&tag);
        self.held.clear();
        self.chunk += 1;
    }
}

/// Opens the contents of a file chunk by chunk, in their order, as they come.
pub struct Unsealer {
    cipher: ChaCha20Poly1305,
    chunk: u64,
}

impl Unsealer {
    /// Bytes of a chunk as it comes; the last one may have fewer.
    pub const PIECE: usize = CHUNK + TAG;

    /// `after`: the [`NONCE`] bytes that follow the header.
    pub fn begin(key: &FileKey, after: &[u8; NONCE]) -> Unsealer {
        Unsealer { cipher: cipher(key, after), chunk: 0 }
    }

    /// Opens the next chunk in its place. `is_last`: nothing follows it.
    ///
    /// # Errors
    /// A clause for a chunk that is not what was sealed.
    pub fn open(&mut self, piece: &mut Vec<u8>, is_last: bool) -> Result<(), String> {
        let wrong = || format!("chunk {} is not what was encrypted", self.chunk);
        let body = piece.len().checked_sub(TAG).filter(|body| {
            // The last one is empty only if all is.
            if is_last { *body > 0 || self.chunk == 0 } else { *body == CHUNK }
        });
        let body = body.ok_or_else(wrong)?;
        let tag: [u8; TAG] = piece[body..].try_into().expect("what is left of a chunk");
        let nonce = number_of(self.chunk, is_last);
        self.cipher
            .decrypt_inout_detached(&nonce.into(), b"", (&mut piece[..body]).into(), &tag.into())
            .map_err(|_| wrong())?;
        piece.truncate(body);
        self.chunk += 1;
        Ok(())
    }
}

/// Bytes that `sealed` bytes of chunks hold; `None` if no file has as many.
pub fn opened_length(sealed: u64) -> Option<u64> {
    let chunks = sealed.div_ceil(SEALED);
    let length = sealed.checked_sub(chunks * TAG as u64)?;
    let last = sealed - chunks.checked_sub(1)? * SEALED;
    (last >= TAG as u64 && (last > TAG as u64 || chunks == 1)).then_some(length)
}

/// Opens the contents of a file, from any byte on. Any number of threads use it.
pub struct Opener {
    cipher: ChaCha20Poly1305,
    start: u64,
    length: u64,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opener({} bytes from {})", self.length, self.start)
    }
}

impl Opener {
    /// `after`: what follows the header, [`NONCE`] bytes of it at least. `file`: bytes of the whole file.
    ///
    /// # Errors
    /// A clause if the file has a length that no file has.
    pub fn new(key: &FileKey, header: &Header, after: &[u8], file: u64) -> Result<Opener, String> {
        let start = (header.length + NONCE) as u64;
        let length = file.checked_sub(start).and_then(opened_length);
        match (length, after.get(..NONCE)) {
            (Some(length), Some(nonce)) => Ok(Opener { cipher: cipher(key, nonce), start, length }),
            _ => Err("it was cut off".to_owned()),
        }
    }

    /// Where the chunks begin in the file.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes of the contents.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buf` with the contents from byte `offset` on, all of which there are. `read`: fills a buffer with what the file has,
    /// from a byte after [`Opener::start`] on. An empty `buf` reads the last chunk.
    ///
    /// # Errors
    /// Those of `read`; a clause for a chunk that is not what was sealed.
    pub fn read_at<E: From<String>>(
        &self,
        buf: &mut [u8],
        offset: u64,
        read: impl Fn(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = offset + buf.len() as u64;
        let last = self.length.saturating_sub(1) / CHUNK as u64;
        let (first, to) = match buf.is_empty() {
            true => (last, last),
            false => (offset / CHUNK as u64, (end - 1) / CHUNK as u64),
        };
        let mut chunk = vec![0; CHUNK + TAG];
        for number in first..=to {
            let begin = number * CHUNK as u64;
            let length = (self.length - begin).min(CHUNK as u64);
            let sealed = &mut chunk[..length as usize + TAG];
            read(sealed, number * SEALED)?;
            let (body, tag) = sealed.split_at_mut(length as usize);
            let tag: [u8; TAG] = (&*tag).try_into().expect("what is left of a chunk");
            let nonce = number_of(number, number == last);
            self.cipher
                .decrypt_inout_detached(&nonce.into(), b"", (&mut *body).into(), &tag.into())
                .map_err(|_| format!("chunk {number} is not what was encrypted"))?;
            if !buf.is_empty() {
                let (low, high) = (begin.max(offset), (begin + length).min(end));
                buf[(low - offset) as usize..(high - offset) as usize]
                    .copy_from_slice(&body[(low - begin) as usize..(high - begin) as usize]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::seal;
    use super::super::key::Identity;
    use super::*;

    #[test]
    fn any_part_of_a_file_is_opened_and_no_chunk_takes_the_place_of_another() {
        let identity = Identity::new().unwrap();
        let (mut file, key) = seal(&[identity.recipient()]).unwrap();
        let header = Header::parse(&file).unwrap();
        let mut sealer = Sealer::begin(&key, &mut file).unwrap();
        let bytes: Vec<u8> = (0..3 * CHUNK as u32 / 4 + 9).flat_map(u32::to_le_bytes).collect();
        for part in bytes.chunks(1000) {
            sealer.push(part, &mut file);
        }
        sealer.finish(&mut file);
        let opener = Opener::new(&key, &header, &file[header.length..], file.len() as u64).unwrap();
        assert_eq!(opener.length(), bytes.len() as u64);
        let read = |file: &[u8], at: usize, length: usize| {
            let mut buf = vec![0; length];
            let body = &file[opener.start() as usize..];
            opener
                .read_at(&mut buf, at as u64, |buf, at| {
                    buf.copy_from_slice(&body[at as usize..][..buf.len()]);
                    Ok::<(), String>(())
                })
                .map(|()| buf)
        };
        for at in [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 7, bytes.len() - 1] {
            for length in [0, 1, 100, CHUNK, CHUNK + 1, bytes.len()] {
                let length = length.min(bytes.len() - at);
                assert!(read(&file, at, length).unwrap() == bytes[at..at + length], "{at} {length}");
            }
        }
        let mut swapped = file.clone();
        let (one, two) = (opener.start() as usize, opener.start() as usize + SEALED as usize);
        let first = swapped[one..two].to_vec();
        swapped.copy_within(two..two + SEALED as usize, one);
        swapped[two..two + SEALED as usize].copy_from_slice(&first);
        assert!(
            read(&swapped, 0, 1).is_err() && read(&swapped, CHUNK, 1).is_err() && read(&swapped, 2 * CHUNK, 1).is_ok()
        );
    }

    #[test]
    fn what_comes_chunk_by_chunk_is_opened_in_its_order_to_its_end() {
        let identity = Identity::new().unwrap();
        for length in [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let (begin, key) = seal(&[identity.recipient()]).unwrap();
            let mut file = begin.clone();
            let mut sealer = Sealer::begin(&key, &mut file).unwrap();
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            sealer.push(&bytes, &mut file);
            sealer.finish(&mut file);
            let (nonce, body) = file[begin.len()..].split_at(NONCE);
            let opened = |body: &[u8], ends: bool| -> Result<Vec<u8>, String> {
                let mut unsealer = Unsealer::begin(&key, nonce.try_into().unwrap());
                let (mut found, mut left) = (Vec::new(), body);
                loop {
                    let (piece, rest) = left.split_at(left.len().min(Unsealer::PIECE));
                    let mut piece = piece.to_vec();
                    unsealer.open(&mut piece, rest.is_empty() && ends)?;
                    found.extend(piece);
                    left = rest;
                    if rest.is_empty() {
                        return Ok(found);
                    }
                }
            };
            assert!(opened(body, true).unwrap() == bytes, "{length}");
            assert!(opened(body, false).is_err(), "{length}: the end says that it is the end");
            assert!(opened(&body[..body.len() - 1], true).is_err(), "{length}");
            assert!(
                opened(&body[..body.len() / Unsealer::PIECE * Unsealer::PIECE], true).is_err() || length % CHUNK == 0
            );
            assert!(opened(&[body, &[0; 20]].concat(), true).is_err(), "{length}");
        }
    }

    #[test]
    fn lengths_that_no_file_has_are_refused() {
        assert_eq!([0, 15, 16, 17].map(opened_length), [None, None, Some(0), Some(1)]);
        assert_eq!(
            [SEALED, SEALED + 1, SEALED + 16, SEALED + 17].map(opened_length),
            [Some(CHUNK as u64), None, None, Some(CHUNK as u64 + 1)]
        );
    }
}
