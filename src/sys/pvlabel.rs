//! The marks that LVM wrote on a device: its label, and the name and the tags of the volume group in its metadata area.
//!
//! LVM's own reports leave out a device that lvm.conf filters, that is a copy of another, or whose metadata is damaged.
//! Before something is overwritten, the device itself is asked. The layout is that of LVM2,
//! `lib/label/label.h` and `lib/format_text/layout.h`; numbers are little-endian.
//!
//! | where | what |
//! |---|---|
//! | one of the first 4 sectors | `LABELONE`; at 8 the sector; at 16 a checksum of what follows it; at 20 the offset of the contents; at 24 `LVM2 001` |
//! | contents | UUID (32 bytes), size, data areas, zeroes (16 bytes), metadata areas, zeroes; an area is offset and size |
//! | then | version (4 bytes), flags (4 bytes): 1 for a device that belongs to a group |
//! | metadata area | checksum, magic (16 bytes), version, start, size; from 40 the text's offset in the area, its size, its checksum and flags; from 64 the same of a text that does not count yet |
//! | text | `NAME {`, from the offset on; it goes on at 512 where the area ends |
//! | its lines | those of the group come first, `seqno = 7` and `tags = ["a", "b"]` among them, then `physical_volumes {` |

mod committed;

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub use committed::Label;

use crate::error::{Error, Result};
use crate::sys::blockdev;

const SECTOR: usize = 512;
const LABEL_SECTORS: usize = 4;
const MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// Of a metadata area, for its header; the text follows.
const HEADER: u64 = 512;
/// LVM's longest name, `NAME_LEN` in `lib/metadata/metadata-exported.h`.
const LONGEST_NAME: usize = 128;
/// Bytes of a text that are read for the lines of the group.
const BEGINNING: usize = 4096;
/// Of a damaged metadata area, as much as is searched: ours have 10 MiB.
const SEARCHED: u64 = 16 << 20;

/// The metadata of the physical volume that a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// It belongs to no group.
    None,
    /// It belongs to this group, which has these tags.
    Of { group: String, tags: Vec<String> },
    /// It is damaged; it once named these groups, the newest text unknown.
    Damaged(Vec<String>),
}

/// The metadata on a device. `None`: the device has no LVM label.
///
/// `prefixes` are the beginnings of group names that are looked for in damaged metadata; a UUID follows each.
///
/// # Errors
/// [`Error::Io`] if the device can't be read.
pub fn read(device: &Path, prefixes: &[&str]) -> Result<Option<Metadata>> {
    let file = blockdev::open(device, false)?;
    let mut first = [0; SECTOR * LABEL_SECTORS];
    let size = blockdev::size(device)?;
    if size < first.len() as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut first, 0).map_err(Error::io("read", device))?;
    let Some((areas, used)) = areas(&first) else { return Ok(None) };
    let mut damaged = used.then(Vec::new);
    for (offset, length) in areas {
        let length = length.min(size.saturating_sub(offset));
        if length < HEADER {
            damaged.get_or_insert_default();
            continue;
        }
        let read = |bytes: &mut [u8], from| file.read_exact_at(bytes, from);
        match group_of(&read, offset, length).map_err(Error::io("read", device))? {
            Text::None => {}
            Text::Names { group, tags, .. } => return Ok(Some(Metadata::Of { group, tags })),
            Text::Damaged => {
                let mut bytes = vec![0; length.min(SEARCHED) as usize];
                file.read_exact_at(&mut bytes, offset).map_err(Error::io("read", device))?;
                damaged.get_or_insert_default().extend(names_in(&bytes, prefixes));
            }
        }
    }
    Ok(Some(damaged.map_or(Metadata::None, |mut names| {
        names.sort_unstable();
        names.dedup();
        Metadata::Damaged(names)
    })))
}

enum Text {
    None,
    Names { group: String, tags: Vec<String>, version: Option<u64> },
    Damaged,
}

/// Fills bytes from an offset of a device.
pub type Read<'r> = &'r dyn Fn(&mut [u8], u64) -> io::Result<()>;

/// The version of a group's metadata on a physical volume, to which LVM adds 1 or more with each change. `None`: no version can be told, or
/// not one alone.
///
/// # Errors
/// Those of `read`.
pub fn version(group: &str, read: Read) -> io::Result<Option<u64>> {
    let mut first = [0; SECTOR * LABEL_SECTORS];
    read(&mut first, 0)?;
    let Some((areas, _)) = areas(&first) else { return Ok(None) };
    let mut versions = Vec::new();
    for (offset, length) in areas {
        versions.push(match group_of(read, offset, length)? {
            Text::Names { group: found, version, .. } if found == group => version,
            _ => None,
        });
    }
    versions.dedup();
    Ok(if versions.len() == 1 { versions[0] } else { None })
}

fn group_of(read: Read, offset: u64, length: u64) -> io::Result<Text> {
    let mut header = [0; HEADER as usize];
    read(&mut header, offset)?;
    if &header[4..20] != MAGIC {
        return Ok(Text::Damaged);
    }
    let (at, size) = (number(&header, 40), number(&header, 48));
    if at == 0 && size == 0 {
        return Ok(Text::None);
    }
    if at < HEADER || at >= length || size == 0 {
        return Ok(Text::Damaged);
    }
    let mut text = vec![0; BEGINNING.min(size as usize).min((length - at) as usize)];
    read(&mut text, offset + at)?;
    let wanted = BEGINNING.min(size as usize) - text.len();
    if wanted > 0 && length - HEADER >= wanted as u64 {
        let mut rest = vec![0; wanted];
        read(&mut rest, offset + HEADER)?;
        text.extend(rest);
    }
    let named = |group| Text::Names { group, tags: tags_of(&text), version: version_of(&text) };
    Ok(name_of(&text).map_or(Text::Damaged, named))
}

/// The sector with the label.
fn label(first: &[u8]) -> Option<usize> {
    first.chunks_exact(SECTOR).position(|sector| sector.starts_with(b"LABELONE") && &sector[24..32] == b"LVM2 001")
}

/// The metadata areas that a label names, and whether it says that the device belongs to a group. `None`: there is no label.
fn areas(first: &[u8]) -> Option<(Vec<(u64, u64)>, bool)> {
    let start = label(first)? * SECTOR;
    let contents = u32::from_le_bytes(first[start + 20..start + 24].try_into().expect("four bytes")) as usize;
    let contents = first.get(start.checked_add(contents)?..)?;
    let mut pairs =
        contents.get(40..).unwrap_or_default().chunks_exact(16).map(|pair| (number(pair, 0), number(pair, 8)));
    pairs.by_ref().take_while(|(offset, _)| *offset != 0).for_each(drop);
    let areas = pairs.by_ref().take_while(|(offset, _)| *offset != 0).collect();
    // Version 0 has no flags: PV_HEADER_EXTENSION_VSN, PV_EXT_USED.
    let used = pairs.next().is_some_and(|(extension, _)| extension as u32 > 0 && extension >> 32 & 1 == 1);
    Some((areas, used))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The first line of a group that begins so, without that, in the text that begins so.
fn line_of(text: &[u8], beginning: &str) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("physical_volumes"));
    lines.find_map(|line| line.strip_prefix(beginning)).map(str::to_owned)
}

fn version_of(text: &[u8]) -> Option<u64> {
    line_of(text, "seqno = ")?.parse().ok()
}

/// The tags of the group whose text begins so.
fn tags_of(text: &[u8]) -> Vec<String> {
    let list = line_of(text, "tags = [").and_then(|line| line.strip_suffix(']').map(str::to_owned)).unwrap_or_default();
    list.split(',').map(|tag| tag.trim().trim_matches('"').to_owned()).filter(|tag| !tag.is_empty()).collect()
}

/// The name in front of ` {`.
fn name_of(text: &[u8]) -> Option<String> {
    let end = text.windows(2).position(|two| two == b" {")?;
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"_+.-".contains(b);
    (end > 0 && end <= LONGEST_NAME && text[..end].iter().all(is_plain))
        .then(|| String::from_utf8_lossy(&text[..end]).into_owned())
}

/// Every name of a prefix and a UUID in these bytes.
fn names_in(bytes: &[u8], prefixes: &[&str]) -> Vec<String> {
    const UUID: usize = 36;
    let mut names = Vec::new();
    for prefix in prefixes {
        for (at, window) in bytes.windows(prefix.len() + UUID).enumerate() {
            if !window.starts_with(prefix.as_bytes()) {
                continue;
            }
            let uuid = &bytes[at + prefix.len()..at + prefix.len() + UUID];
            if uuid.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-') {
                let name = format!("{prefix}{}", String::from_utf8_lossy(uuid));
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use proptest::prelude::*;

    const GROUP: &str = "VG_XenStorage-87b8646b-b800-9500-cb7b-af3b74e02f5c";

    /// A label in sector 1 with one data area and one metadata area of 8 KiB at 4096.
    fn device(text_at: u64, text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 4096 + 8192];
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        put(512, b"LABELONE");
        put(512 + 20, &32u32.to_le_bytes());
        put(512 + 24, b"LVM2 001");
        let pairs = 512 + 32 + 40;
        let extension = 1 << 32 | 2;
        for (n, pair) in [(1u64 << 20, 0u64), (0, 0), (4096, 8192), (0, 0), (extension, 0)].iter().enumerate() {
            put(pairs + n * 16, &pair.0.to_le_bytes());
            put(pairs + n * 16 + 8, &pair.1.to_le_bytes());
        }
        put(4096 + 4, MAGIC);
        put(4096 + 40, &text_at.to_le_bytes());
        put(4096 + 48, &(text.len() as u64).to_le_bytes());
        for (n, byte) in text.iter().enumerate() {
            let at = text_at as usize + n;
            put(4096 + if at < 8192 { at } else { at - 8192 + 512 }, &[*byte]);
        }
        bytes
    }

    fn group(bytes: &[u8]) -> Text {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let areas = areas(&bytes[..2048]).unwrap();
        assert_eq!(areas, (vec![(4096, 8192)], true));
        let file = File::open(file.path()).unwrap();
        group_of(&|bytes: &mut [u8], from| file.read_exact_at(bytes, from), 4096, 8192).unwrap()
    }

    #[test]
    fn the_version_of_a_group_is_that_of_its_text() {
        let of = |bytes: &[u8]| {
            let read = |buf: &mut [u8], from: u64| {
                let from = from as usize;
                buf.copy_from_slice(bytes.get(from..from + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            };
            version(GROUP, &read).unwrap()
        };
        let text = |lines: &str| device(8192 - 7, format!("{GROUP} {{\nid = \"x\"\n{lines}").as_bytes());
        assert_eq!(of(&text("seqno = 12\nformat = \"lvm2\"\n")), Some(12));
        assert_eq!(of(&text("seqno = x\n")), None);
        assert_eq!(of(&text("physical_volumes {\nseqno = 12\n")), None);
        assert_eq!(of(&device(512, b"other {\nseqno = 12\n")), None);
        assert_eq!(of(&device(0, b"")), None);
        assert_eq!(of(&[0; 4096]), None);
    }

    #[test]
    fn the_groups_name_is_read_also_where_the_text_goes_round() {
        let text = format!("{GROUP} {{\nid = \"x\"\n");
        for at in [512, 4096, 8192 - 7] {
            assert!(
                matches!(group(&device(at, text.as_bytes())), Text::Names { group, .. } if group == GROUP),
                "at {at}"
            );
        }
        assert!(matches!(group(&device(0, b"")), Text::None));
    }

    #[test]
    fn the_tags_of_the_group_are_read_and_not_those_of_its_volumes() {
        let text = format!(
            "{GROUP} {{\nid = \"x\"\nflags = []\ntags = [\"xcp.allocation=thick\", \"b\"]\nphysical_volumes {{\npv0 {{\n}}\n}}\ntags = [\"c\"]\n"
        );
        for at in [512, 4096, 8192 - 60] {
            let found = group(&device(at, text.as_bytes()));
            assert!(matches!(found, Text::Names { tags, .. } if tags == ["xcp.allocation=thick", "b"]), "at {at}");
        }
        let none = text.replace("tags = [\"xcp.allocation=thick\", \"b\"]\n", "");
        assert!(matches!(group(&device(512, none.as_bytes())), Text::Names { tags, .. } if tags.is_empty()));
    }

    #[test]
    fn damage_is_no_emptiness_and_what_was_there_is_found() {
        let text = format!("{GROUP} {{\n");
        let mut bytes = device(1024, text.as_bytes());
        bytes[4096 + 1024] = 0;
        assert!(matches!(group(&bytes), Text::Damaged));
        let mut bytes = device(1024, text.as_bytes());
        bytes[4096..4096 + 512].fill(0);
        assert!(matches!(group(&bytes), Text::Damaged));
        assert_eq!(names_in(&bytes, &["XSLocalEXT-", "VG_XenStorage-"]), [GROUP]);
        assert!(areas(&[0; 2048]).is_none());
    }

    proptest! {
        #[test]
        fn any_label_is_read_to_its_end(mut bytes in prop::collection::vec(any::<u8>(), 2048), contents in 0u32..4096) {
            bytes[..8].copy_from_slice(b"LABELONE");
            bytes[20..24].copy_from_slice(&contents.to_le_bytes());
            bytes[24..32].copy_from_slice(b"LVM2 001");
            let _ = areas(&bytes);
            let _ = name_of(&bytes);
            let _ = names_in(&bytes, &["VG_XenStorage-"]);
        }
    }
}
