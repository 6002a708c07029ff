//! The metadata that LVM reads on a physical volume, for who trusts it as LVM does: every checksum is right, and nothing stands there that
//! is not known. See [`pvlabel`](super) for the layout.
//!
//! A change of a group writes the new text behind the old one, and then the sector of the area's header, which names it. So a header
//! and the text that it names belong together at any instant, unless the text is overwritten by a later change while it is read: its
//! checksum tells that.

use std::io;

use super::{HEADER, LABEL_SECTORS, LONGEST_NAME, MAGIC, Read, SECTOR, areas, label, name_of, number};

/// Of a label and of a metadata area: what they begin with, for [`checksum`].
const INITIAL: u32 = 0xf597_a6cf;
/// Bytes of a text that are read at most: LVM's own areas have 1 MiB, those of SRs 10 MiB.
const LONGEST: u64 = 64 << 20;

/// The label of a physical volume with one metadata area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// As LVM shows it: with hyphens.
    pub uuid: String,
    /// The offset on the device, and the length.
    area: (u64, u64),
}

/// Which text of a metadata area is the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    at: u64,
    pub size: u64,
    pub checksum: u32,
}

/// The checksum of LVM (`lib/misc/crc.c`).
fn checksum(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let (mut value, mut bit) = (n as u32, 0);
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };
    bytes.iter().fold(INITIAL, |crc, byte| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

fn small(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl Label {
    /// How much of the beginning of a device has its label.
    pub const BYTES: usize = SECTOR * LABEL_SECTORS;

    /// The label in the first [`Label::BYTES`] of a device. `None`: there is none, or one that is not understood.
    pub fn of(first: &[u8]) -> Option<Label> {
        let at = label(first)?;
        let sector = &first[at * SECTOR..(at + 1) * SECTOR];
        let contents = small(sector, 20) as usize;
        let is_right = number(sector, 8) == at as u64 && small(sector, 16) == checksum(&sector[20..]);
        // UUID, size, at least one data area and one metadata area, each list with its end.
        if !is_right || !(32..=SECTOR - 40 - 4 * 16).contains(&contents) {
            return None;
        }
        let (areas, used) = areas(first)?;
        let [area] = areas.as_slice() else { return None };
        // The whole list has to be in the sector that the checksum is of.
        let is_sane = area.1 > HEADER && area.0.checked_add(area.1).is_some();
        if !used || !ends_within(&sector[contents + 40..]) || !is_sane {
            return None;
        }
        let raw = std::str::from_utf8(&sector[contents..contents + 32]).ok()?;
        if !raw.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let cuts = [0, 6, 10, 14, 18, 22, 26, 32];
        let groups: Vec<&str> = cuts.windows(2).map(|cut| &raw[cut[0]..cut[1]]).collect();
        Some(Label { uuid: groups.join("-"), area: *area })
    }

    /// The text that counts. `None`: there is none, or LVM has to say which; also while a change is being made.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn named(&self, read: Read) -> io::Result<Option<Named>> {
        let mut header = [0; HEADER as usize];
        read(&mut header, self.area.0)?;
        Ok(self.named_in(&header))
    }

    fn named_in(&self, header: &[u8]) -> Option<Named> {
        const VERSION: u32 = 1;
        let is_right = small(header, 0) == checksum(&header[4..])
            && &header[4..20] == MAGIC
            && small(header, 20) == VERSION
            && (number(header, 24), number(header, 32)) == self.area;
        // Offset, size, checksum and flags of a text; the second one is written and does not count yet.
        let named = Named { at: number(header, 40), size: number(header, 48), checksum: small(header, 56) };
        let is_alone = small(header, 60) == 0 && header[64..88].iter().all(|byte| *byte == 0);
        let fits = (HEADER..self.area.1).contains(&named.at)
            && named.size > 0
            && named.size <= (self.area.1 - HEADER).min(LONGEST);
        (is_right && is_alone && fits).then_some(named)
    }

    /// The name of the group that a text is of, without a look at the rest of the text. `None`: none can be told.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn group(&self, named: Named, read: Read) -> io::Result<Option<String>> {
        // The name, and ` {`.
        let mut text = vec![0; (LONGEST_NAME as u64 + 2).min(named.size) as usize];
        self.fill(&mut text, named, read)?;
        Ok(name_of(&text))
    }

    /// The beginning of a text: it goes on behind the header where the area ends.
    fn fill(&self, text: &mut [u8], named: Named, read: Read) -> io::Result<()> {
        let before_the_end = (text.len() as u64).min(self.area.1 - named.at) as usize;
        let (first, rest) = text.split_at_mut(before_the_end);
        read(first, self.area.0 + named.at)?;
        if rest.is_empty() { Ok(()) } else { read(rest, self.area.0 + HEADER) }
    }

    /// A text. `None`: it is not what its header says.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn text(&self, named: Named, read: Read) -> io::Result<Option<String>> {
        let mut text = vec![0; named.size as usize];
        self.fill(&mut text, named, read)?;
        let is_right = checksum(&text) == named.checksum;
        Ok(String::from_utf8(text).ok().filter(|_| is_right))
    }
}

/// Whether the list of data areas, that of metadata areas and what follows end in these bytes.
fn ends_within(lists: &[u8]) -> bool {
    let mut offsets = lists.chunks_exact(16).map(|pair| number(pair, 0));
    offsets.any(|offset| offset == 0) && offsets.any(|offset| offset == 0) && offsets.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// LVM 2.03.16: the beginning of a physical volume, as far as the header of its metadata area, which names the text in
    /// `linear.text`.
    const BEGINNING: &[u8] = include_bytes!("../../../tests/data/lvm/beginning");
    const TEXT: &[u8] = include_bytes!("../../../tests/data/lvm/linear.text");

    /// The device, with the text at the place that the header has for it.
    fn device() -> Vec<u8> {
        let mut bytes = BEGINNING.to_vec();
        let label = Label::of(&bytes[..Label::BYTES]).unwrap();
        let named = label.named_in(&bytes[4096..4608]).unwrap();
        bytes.resize((label.area.0 + named.at) as usize, 0);
        bytes.extend(TEXT);
        bytes
    }

    fn read_of(bytes: &[u8]) -> impl Fn(&mut [u8], u64) -> io::Result<()> {
        |buf: &mut [u8], from: u64| {
            let from = from as usize;
            buf.copy_from_slice(bytes.get(from..from + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    fn text_of(bytes: &[u8]) -> Option<String> {
        let label = Label::of(&bytes[..Label::BYTES])?;
        let read = read_of(bytes);
        label.text(label.named(&read).ok()??, &read).ok()?
    }

    #[test]
    fn the_text_of_lvm_is_read() {
        let bytes = device();
        assert_eq!(Label::of(&bytes[..Label::BYTES]).unwrap().uuid, "HwwvZn-0owV-Sl8S-D8i6-0Cev-dDxN-cNdgwl");
        assert_eq!(text_of(&bytes).unwrap().as_bytes(), TEXT);
    }

    #[test]
    fn a_text_that_goes_round_the_end_of_its_area_is_read() {
        let mut bytes = device();
        // An area that ends within the text.
        let area = Label::of(&bytes[..Label::BYTES]).unwrap().area;
        let named = Label { uuid: String::new(), area }.named_in(&bytes[4096..4608]).unwrap();
        let cut = Label { uuid: String::new(), area: (area.0, named.at + 100) };
        bytes.resize((area.0 + named.at + 100) as usize, 0);
        bytes[(area.0 + HEADER) as usize..][..TEXT.len() - 100].copy_from_slice(&TEXT[100..]);
        assert_eq!(cut.text(named, &read_of(&bytes)).unwrap().unwrap().as_bytes(), TEXT);
        let name = std::str::from_utf8(TEXT).unwrap().split_once(" {").unwrap().0;
        for ends in [named.at + 5, named.at + 100] {
            let cut = Label { uuid: String::new(), area: (area.0, ends) };
            let at = (ends - named.at) as usize;
            bytes[(area.0 + HEADER) as usize..][..TEXT.len() - at].copy_from_slice(&TEXT[at..]);
            assert_eq!(cut.group(named, &read_of(&bytes)).unwrap().as_deref(), Some(name));
        }
    }

    #[test]
    fn any_damaged_byte_is_seen() {
        let bytes = device();
        let text = bytes.len() - TEXT.len();
        // Of the label, of the header, and of the text.
        for at in (512..1024).chain(4096..4608).chain(text..bytes.len()) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert_eq!(text_of(&damaged), None, "byte {at}");
        }
    }

    #[test]
    fn a_change_that_is_being_made_is_seen() {
        for at in [60, 64, 72, 80, 84] {
            let mut bytes = device();
            bytes[4096 + at] = 1;
            let sum = checksum(&bytes[4100..4608]);
            bytes[4096..4100].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(text_of(&bytes), None, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn any_label_with_a_right_checksum_is_read_to_its_end(
            mut first in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], Label::BYTES),
            contents in 0u32..600,
            at in 0usize..LABEL_SECTORS,
        ) {
            let sector = &mut first[at * SECTOR..(at + 1) * SECTOR];
            sector[..8].copy_from_slice(b"LABELONE");
            sector[8..16].copy_from_slice(&(at as u64).to_le_bytes());
            sector[20..24].copy_from_slice(&contents.to_le_bytes());
            sector[24..32].copy_from_slice(b"LVM2 001");
            let sum = checksum(&sector[20..]);
            sector[16..20].copy_from_slice(&sum.to_le_bytes());
            let _ = Label::of(&first);
        }
    }
}
