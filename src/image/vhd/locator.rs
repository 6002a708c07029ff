//! Parent locators: the parent's path, told in three ways. VHD specification, "Parent Locators".
//!
//! They are hints for other tools. This library never follows one: which file a parent is, the caller's
//! resolver decides ([`super::Chain::open`]).

use super::{SECTOR, Storage};
use crate::error::{Error, Result};

/// Longest path libvhd reads (`VHD_MAX_NAME_LEN`, 1,024 with the NUL), and a bound on what we read of foreign ones.
const LONGEST_PATH: usize = 1023;

/// The platform codes that tools still read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// `MacX`: a file URL, UTF-8; libvhd writes `file://` and a relative path, without percent-encoding.
    MacX = 0x4D61_6358,
    /// `W2ku`: by the specification an absolute Windows path, UTF-16LE; libvhd writes the relative one.
    W2ku = 0x5732_6B75,
    /// `W2ru`: a relative Windows path, UTF-16LE.
    W2ru = 0x5732_7275,
}

/// An entry of the header's table of locators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locator {
    pub code: u32,
    /// As stored: sectors by the specification, bytes as libvhd (and Microsoft) write it.
    pub space_field: u32,
    /// Bytes of text, without terminator.
    pub len: u32,
    /// Bytes from the start of the image.
    pub offset: u64,
}

impl Locator {
    /// Bytes set aside: fields below 512 count sectors, multiples of 512 are bytes, anything else is damage.
    pub fn space(&self) -> Option<u64> {
        let field = u64::from(self.space_field);
        match field {
            0..SECTOR => Some(field * SECTOR),
            _ if field.is_multiple_of(SECTOR) => Some(field),
            _ => None,
        }
    }

    pub fn platform(&self) -> Option<Platform> {
        [Platform::MacX, Platform::W2ku, Platform::W2ru].into_iter().find(|p| *p as u32 == self.code)
    }

    /// True for the codes of the specification, those that nothing reads any more included.
    pub fn is_known(&self) -> bool {
        // Wi2r, Wi2k, Mac.
        self.platform().is_some() || [0x5769_3272, 0x5769_326B, 0x4D61_6320].contains(&self.code)
    }

    /// The path as a Unix one: `file://` and a drive letter stripped, `\` turned into `/`.
    pub(crate) fn read(&self, place: &dyn Storage) -> Result<String> {
        let platform = self.platform().ok_or_else(|| place.damaged("a parent locator of a kind that holds no path"))?;
        let space = self.space().ok_or_else(|| place.damaged("a parent locator of impossible size"))?;
        if u64::from(self.len) > space || self.len as usize > 2 * (LONGEST_PATH + 7) || self.offset >= 1 << 42 {
            return Err(place.damaged("a parent locator is longer than its space"));
        }
        let mut bytes = vec![0; self.len as usize];
        place.get_exact(&mut bytes, self.offset, "a parent locator")?;
        let text = match platform {
            Platform::MacX => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                text.strip_prefix("file://").map(str::to_owned).unwrap_or(text)
            }
            _ => {
                let units = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
                let text: String = char::decode_utf16(units).map(|c| c.unwrap_or('\u{fffd}')).collect();
                let text = text.replace('\\', "/");
                ["C:", "c:"].iter().find_map(|d| text.strip_prefix(d)).map(str::to_owned).unwrap_or(text)
            }
        };
        Ok(text.trim_end_matches('\0').to_owned())
    }
}

/// A relative path in the encodings of the three platforms.
#[derive(Clone, Debug)]
pub struct Encoded {
    name: String,
    macx: Vec<u8>,
    w2: Vec<u8>,
}

impl Encoded {
    /// `path` is relative to the child's directory and starts with `./` or `../`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what other tools could not read back: an absolute path, no file name, characters
    /// outside ASCII or `\`, or more than 255 of them in the name or 1,023 in the path.
    pub fn new(path: &str) -> Result<Self> {
        let invalid = |expected: &str| Error::Invalid {
            what: "path of a parent image",
            value: path.to_owned(),
            expected: expected.to_owned(),
        };
        if !path.starts_with("./") && !path.starts_with("../") {
            return Err(invalid("expected a relative path that starts with ./ or ../"));
        }
        if !path.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'\\') {
            return Err(invalid("expected printable ASCII without \\"));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.is_empty() || name == "." || name == ".." {
            return Err(invalid("expected a file name at its end"));
        }
        if name.len() > 255 || path.len() + 7 > LONGEST_PATH {
            return Err(invalid("a name has at most 255 characters, a path 1,016"));
        }
        let windows = format!(".\\{}", path.strip_prefix("./").unwrap_or(path).replace('/', "\\"));
        Ok(Encoded {
            name: name.to_owned(),
            macx: format!("file://{path}").into_bytes(),
            w2: windows.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        })
    }

    /// The last component.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn get(&self, platform: Platform) -> &[u8] {
        match platform {
            Platform::MacX => &self.macx,
            Platform::W2ku | Platform::W2ru => &self.w2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_tools_cannot_read_back_is_refused() {
        for bad in
            ["/a.vhd", "a.vhd", "./", "./..", "./ä.vhd", "./a\\b.vhd", "./a\nb", &format!("./{}", "a".repeat(256))]
        {
            assert!(Encoded::new(bad).is_err(), "{bad:?}");
        }
        let up = Encoded::new("../a.vhd").unwrap();
        assert_eq!(up.get(Platform::MacX), b"file://../a.vhd");
        assert_eq!(&up.get(Platform::W2ru)[..8], b".\0\\\0.\0.\0");
    }

    #[test]
    fn space_is_told_in_sectors_or_in_bytes() {
        let at = |space_field| Locator { code: 0, space_field, len: 0, offset: 0 }.space();
        assert_eq!((at(1), at(512), at(1024), at(513)), (Some(512), Some(512), Some(1024), None));
    }
}
