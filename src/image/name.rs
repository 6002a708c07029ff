//! The file name of an image, `<vdi>.<format>`: so it is called in the directory of an SR, and so its children name it in
//! their headers.
//!
//! This is the only place that writes or reads such names.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::types::{Format, VdiUuid};

/// The name of the image of a VDI. `to_string` gives the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageName {
    pub vdi: VdiUuid,
    pub format: Format,
}

impl ImageName {
    pub fn new(vdi: VdiUuid, format: Format) -> ImageName {
        ImageName { vdi, format }
    }

    /// Reads a plain file name. `None`: it is no image of a VDI.
    pub fn parse(name: &str) -> Option<ImageName> {
        let (vdi, extension) = name.split_once('.')?;
        Some(ImageName { vdi: vdi.parse().ok()?, format: of_extension(extension)? })
    }

    /// The format that the end of a path or plain file name says, whatever stands before it. `None`: it says none.
    pub fn format_of(path: impl AsRef<Path>) -> Option<Format> {
        of_extension(path.as_ref().extension()?.to_str()?)
    }

    /// The name that a path ends in. `None`: it is no image of a VDI.
    pub fn of_path(path: &Path) -> Option<ImageName> {
        ImageName::parse(path.file_name()?.to_str()?)
    }

    /// The path of the image in the directory of its SR.
    pub fn in_directory(self, directory: &Path) -> PathBuf {
        directory.join(self.to_string())
    }

    /// Whether an image of `format` may have this one as its parent: one of its own format, or a raw one.
    pub fn may_be_parent_of(self, format: Format) -> bool {
        format != Format::Raw && (self.format == format || self.format == Format::Raw)
    }
}

/// The parent's name, as far as it can still be read of an image that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedParent {
    /// The last part of the parent's name. `None`: there is no name.
    pub name: Option<String>,
    /// Whether it is certain that this is the name, or that the image has no parent: the header's checksum confirms it
    /// or, in a format without one, all that the header says agrees with it.
    pub is_certain: bool,
}

impl NamedParent {
    /// Nothing can be read, so the image may be the child of any other.
    pub const UNKNOWN: NamedParent = NamedParent { name: None, is_certain: false };
}

fn of_extension(extension: &str) -> Option<Format> {
    Format::ALL.into_iter().find(|format| format.word() == extension)
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.vdi, self.format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let vdi: VdiUuid = "98de866e-b035-4b1a-a571-613bff542b89".parse().unwrap();
        for format in Format::ALL {
            let name = ImageName::new(vdi, format);
            assert_eq!(ImageName::parse(&name.to_string()), Some(name));
            assert_eq!(ImageName::of_path(&name.in_directory(Path::new("/sr"))), Some(name));
            assert_eq!(ImageName::format_of(name.in_directory(Path::new("/sr"))), Some(format));
        }
        for other in
            ["", "x.vhd", &format!("{vdi}"), &format!("{vdi}.params"), &format!("./{vdi}.vhd"), &format!("{vdi}.vhd.")]
        {
            assert_eq!(ImageName::parse(other), None, "{other:?}");
        }
        assert_eq!(ImageName::format_of("leaf.vhd"), Some(Format::Vhd));
        assert_eq!([".vhd", "vhd", "x.VHD", ""].map(ImageName::format_of), [None; 4]);
    }

    #[test]
    fn a_parent_is_of_the_childs_format_or_raw() {
        let name = |format| ImageName::new(VdiUuid::random(), format);
        assert!(name(Format::Vhd).may_be_parent_of(Format::Vhd));
        assert!(name(Format::Raw).may_be_parent_of(Format::Qcow2));
        assert!(!name(Format::Qcow2).may_be_parent_of(Format::Vhd));
        assert!(!name(Format::Raw).may_be_parent_of(Format::Raw));
    }
}
