//! The map of an image: what each block of the disk is. A text, a line for each stored block and for each run of zeroes:
//!
//! ```text
//! 0 0 4194304 5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9
//! 1-255 zero
//! ```
//!
//! The numbers of a stored block are its index, and the offset and the length of its bytes in the image. The digest is the
//! SHA-256 of the block before it was packed.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read as _};

use sha2::{Digest as _, Sha256};

use super::BLOCK;

/// A SHA-256.
pub type Digest = [u8; 32];

/// The digest of bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// A digest as text.
pub fn hex(digest: &Digest) -> String {
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The digest of a text of 64 digits.
pub fn unhex(text: &str) -> Option<Digest> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok().filter(|text| text.chars().all(|c| c.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(digest)
}

/// A line of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Stored(Stored),
    /// The blocks from the first to the last are zeroes.
    Zero(u64, u64),
}

/// A block whose bytes are in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub index: u64,
    /// Where its bytes begin in the image.
    pub offset: u64,
    /// How many bytes they are there.
    pub length: u64,
    /// Of the block before it was packed.
    pub digest: Digest,
}

impl Entry {
    pub fn first(&self) -> u64 {
        match self {
            Entry::Stored(stored) => stored.index,
            Entry::Zero(first, _) => *first,
        }
    }

    pub fn last(&self) -> u64 {
        match self {
            Entry::Stored(stored) => stored.index,
            Entry::Zero(_, last) => *last,
        }
    }
}

/// Bytes of the longest line: three numbers of 20 digits at most, and a digest.
const LONGEST_LINE: u64 = 3 * 21 + 64;

/// The lines of a map, in the order of the disk. No block is there twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map(Vec<Entry>);

impl Map {
    /// Adds what follows in the order of the disk. Runs of zeroes that meet become one.
    pub fn push(&mut self, entry: Entry) {
        if let (Some(Entry::Zero(_, last)), Entry::Zero(first, to)) = (self.0.last_mut(), &entry)
            && *last + 1 == *first
        {
            *last = *to;
            return;
        }
        self.0.push(entry);
    }

    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The blocks whose bytes are in the image.
    pub fn stored(&self) -> impl Iterator<Item = &Stored> {
        self.0.iter().filter_map(|entry| match entry {
            Entry::Stored(stored) => Some(stored),
            Entry::Zero(..) => None,
        })
    }

    /// The map as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for entry in &self.0 {
            let _ = match entry {
                Entry::Stored(it) => {
                    writeln!(text, "{} {} {} {}", it.index, it.offset, it.length, hex(&it.digest))
                }
                Entry::Zero(first, last) => writeln!(text, "{first}-{last} zero"),
            };
        }
        text
    }

    /// Reads the map of a disk of `size` bytes, which may come from anywhere. `is_whole`: every block has to be there.
    ///
    /// # Errors
    /// A clause with the line that is wrong.
    pub fn parse(mut text: impl BufRead, size: u64, is_whole: bool) -> Result<Map, String> {
        let (blocks, mut next, mut map) = (size.div_ceil(BLOCK), 0, Map::default());
        for number in 1.. {
            let wrong = |what: &str| format!("line {number} of the map {what}");
            let line = line(&mut text).map_err(|e| wrong(&format!("cannot be read: {e}")))?;
            let Some(line) = line else { break };
            let entry = entry(&line).ok_or_else(|| wrong("is no line of a map"))?;
            let (first, last) = (entry.first(), entry.last());
            if first > last || last >= blocks {
                return Err(wrong(&format!("names a block that a disk of {size} bytes has not")));
            }
            if first < next || is_whole && first > next {
                return Err(wrong(&format!("should be about block {next}")));
            }
            if let Entry::Stored(it) = &entry
                && (it.length == 0 || it.length > 2 * BLOCK || it.offset.checked_add(it.length).is_none())
            {
                return Err(wrong("has a length that no block has"));
            }
            next = last + 1;
            map.push(entry);
        }
        match is_whole && next < blocks {
            true => Err(format!("the map ends before block {next} of {blocks}")),
            false => Ok(map),
        }
    }
}

/// The next line, without its end. `None`: there is no more. Of a line that is too long, no more is taken than tells that.
fn line(text: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    text.take(LONGEST_LINE + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.len() as u64 > LONGEST_LINE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
    }
    String::from_utf8(line).map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text"))
}

fn entry(line: &str) -> Option<Entry> {
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    if let Some(run) = line.strip_suffix(" zero") {
        let (first, last) = run.split_once('-')?;
        return Some(Entry::Zero(number(first)?, number(last)?));
    }
    let words: Vec<&str> = line.split(' ').collect();
    let &[index, offset, length, digest] = words.as_slice() else { return None };
    let (index, offset, length) = (number(index)?, number(offset)?, number(length)?);
    Some(Entry::Stored(Stored { index, offset, length, digest: unhex(digest)? }))
}

/// Bytes of a block of a disk of `size` bytes: the last one may be shorter.
pub fn length_of(index: u64, size: u64) -> usize {
    (size - index * BLOCK).min(BLOCK) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Map {
        let mut map = Map::default();
        map.push(Entry::Zero(0, 0));
        map.push(Entry::Zero(1, 2));
        map.push(Entry::Stored(Stored { index: 3, offset: 0, length: 9, digest: digest(b"x") }));
        map.push(Entry::Zero(4, 9));
        map
    }

    #[test]
    fn a_map_is_what_was_written() {
        let (map, size) = (sample(), 10 * BLOCK - 512);
        assert_eq!(map.entries().len(), 3, "runs of zeroes are folded");
        assert_eq!(Map::parse(map.text().as_bytes(), size, true).unwrap(), map);
        assert_eq!((length_of(9, size), length_of(8, size)), (BLOCK as usize - 512, BLOCK as usize));
    }

    #[test]
    fn a_map_of_another_disk_or_of_nobody_is_refused() {
        let good = sample().text();
        for size in [9 * BLOCK, 10 * BLOCK + 1] {
            assert!(Map::parse(good.as_bytes(), size, true).is_err(), "{size}");
        }
        let digest = hex(&digest(b"x"));
        for bad in [
            "x".to_owned(),
            "\n".to_owned(),
            "1-0 zero".to_owned(),
            "0-10 zero".to_owned(),
            "+0-9 zero".to_owned(),
            "0-18446744073709551615 zero".to_owned(),
            "0-4 zero\n4-9 zero".to_owned(),
            "0-4 zero\n6-9 zero".to_owned(),
            "0-4 zero\n3-9 zero".to_owned(),
            format!("0 0 0 {digest}\n1-9 zero"),
            format!("0 0 99999999 {digest}\n1-9 zero"),
            format!("0 18446744073709551615 5 {digest}\n1-9 zero"),
            format!("0 0 5 {}\n1-9 zero", &digest[1..]),
            format!("0 0 5 é{}\n1-9 zero", &digest[2..]),
            format!("0 0 5 {digest} 7\n1-9 zero"),
        ] {
            assert!(Map::parse(bad.as_bytes(), 10 * BLOCK, true).is_err(), "{bad}");
        }
        // The longest line that there can be.
        let longest = format!("{} {} {} {digest}", u64::MAX, u64::MAX, u64::MAX);
        assert_eq!(longest.len() as u64, LONGEST_LINE);
        // Of an increment, blocks may be left out.
        Map::parse("0-4 zero\n6-9 zero".as_bytes(), 10 * BLOCK, false).unwrap();
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        // It is read no further than its length is wrong; a reader that is read on does not end.
        struct Endless;
        impl io::Read for Endless {
            fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
                to.fill(b'1');
                Ok(to.len())
            }
        }
        let said = Map::parse(io::BufReader::new(Endless), BLOCK, true).unwrap_err();
        assert_eq!(said, "line 1 of the map cannot be read: it is too long");
        let said = Map::parse(&b"0-0 zero\n\xff"[..], 2 * BLOCK, true).unwrap_err();
        assert_eq!(said, "line 2 of the map cannot be read: it is no text");
        let many: String = (0..10).map(|at| format!("{at}-{at} zero\n")).collect();
        assert_eq!(Map::parse(many.as_bytes(), 10 * BLOCK, true).unwrap().entries(), [Entry::Zero(0, 9)]);
    }
}
