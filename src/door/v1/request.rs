//! The meaning of the words of a command line. Every word is verified before anything is touched.

use std::fs::{self, File};
use std::io::stdout;
use std::os::fd::AsFd;

use super::grammar::{CopyArgs, LockArgs, NameArgs, NewArgs, VdiArg};
use crate::error::{Error, Result};
use crate::types::{Format, NewVdi, Params, ParamsChange, Size, SrUuid, VdiUuid};

/// The SR and the VDI that a command names.
///
/// # Errors
/// [`Error::Invalid`] for a word that is no UUID.
pub fn vdi(arg: &VdiArg) -> Result<(SrUuid, VdiUuid)> {
    Ok((arg.sr.sr.parse()?, arg.vdi.parse()?))
}

/// The SR, the VDI to copy and the new VDI.
///
/// # Errors
/// [`Error::Invalid`] for a word that is no UUID.
pub fn copy(args: &CopyArgs) -> Result<(SrUuid, VdiUuid, VdiUuid)> {
    Ok((args.sr.sr.parse()?, args.source.parse()?, args.dest.parse()?))
}

/// The words of vdi_lock and vdi_unlock.
pub struct LockWords {
    pub sr: SrUuid,
    pub vdi: VdiUuid,
    pub force: bool,
    pub user: String,
}

/// Reads the words of vdi_lock and vdi_unlock.
///
/// # Errors
/// [`Error::Invalid`] with the word.
pub fn lock(args: &LockArgs) -> Result<LockWords> {
    let (sr, vdi) = vdi(&args.vdi)?;
    Ok(LockWords { sr, vdi, force: boolean("FORCE", &args.force)?, user: text("USER", &args.user, 1..=1024)? })
}

/// The names that a VDI is to get, verified; what is not given stays.
///
/// # Errors
/// [`Error::Invalid`] for one that is too long, or that has control characters.
pub fn names(args: &NameArgs) -> Result<ParamsChange> {
    let label = args.label.as_deref().map(label).transpose()?;
    let words = args.description.as_deref();
    let description = words.map(|words| text("description", words, 0..=Params::LONGEST_DESCRIPTION)).transpose()?;
    Ok(ParamsChange { label, description, ..ParamsChange::default() })
}

/// A label, verified.
///
/// # Errors
/// [`Error::Invalid`] for one that is too long, or that has control characters.
pub fn label(word: &str) -> Result<String> {
    text("label", word, 0..=Params::LONGEST_LABEL)
}

/// The VDI to be made, from the options of vdi_create and vdi_import. `virtual_size`: bytes.
///
/// # Errors
/// [`Error::Invalid`] with the option.
pub fn new_vdi(vdi: VdiUuid, virtual_size: u64, args: &NewArgs) -> Result<NewVdi> {
    let flags = Params { shareable: args.shareable, read_only: args.read_only, ..Params::default() };
    let params = names(&args.names)?.of(flags);
    Ok(NewVdi { vdi, virtual_size, format: args.image.as_deref().map(str::parse).transpose()?, params })
}

/// The format of a file to be written, as [`file_format`] finds it. An extension that other formats have is refused: what
/// reads the file would take its bytes for that format.
///
/// # Errors
/// [`Error::Invalid`] for a word that is no format, and for such a file.
pub fn export_format(file: &str, said: Option<&str>) -> Result<(Format, bool)> {
    const OTHERS: &[&str] = &["vmdk", "vhdx", "vdi", "qed", "qcow", "ova", "xva", "gz", "xz", "zst", "bz2", "zip"];
    let extension = extension(file);
    match said {
        None if OTHERS.contains(&extension.as_str()) => Err(Error::Invalid {
            what: "FILE",
            value: file.to_owned(),
            expected: format!(
                "no {extension} file can be written; --type raw, vhd or qcow2 says what to write under this name"
            ),
        }),
        _ => file_format(file, said),
    }
}

/// The format that the name of the file asks for to which standard output was redirected, if nothing is in the file yet. `None`:
/// standard output is no such file, or no file of this format can be written.
pub fn redirected() -> Option<Format> {
    let file = File::from(stdout().as_fd().try_clone_to_owned().ok()?);
    file.metadata().ok().filter(|meta| meta.is_file() && meta.len() == 0)?;
    let name = fs::read_link("/proc/self/fd/1").ok()?;
    export_format(name.to_str()?, None).ok().map(|(format, _)| format)
}

/// In lower case: other systems write `DISK.VHD`.
fn extension(file: &str) -> String {
    let extension = std::path::Path::new(file).extension().and_then(|extension| extension.to_str());
    extension.unwrap_or_default().to_ascii_lowercase()
}

/// The format of a file: the one that the caller `said`, else the one that the file's extension names, else raw; and whether
/// the caller said it. The file's bytes do not count: a guest wrote them.
///
/// # Errors
/// [`Error::Invalid`] for a word that is no format.
pub fn file_format(file: &str, said: Option<&str>) -> Result<(Format, bool)> {
    match said {
        Some(said) => Ok((said.parse()?, true)),
        None => Ok((extension(file).parse().unwrap_or(Format::Raw), false)),
    }
}

fn boolean(what: &'static str, value: &str) -> Result<bool> {
    match value {
        _ if value.eq_ignore_ascii_case("true") => Ok(true),
        _ if value.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err(Error::Invalid { what, value: value.to_owned(), expected: "expected TRUE or FALSE".to_owned() }),
    }
}

/// Text that any reader of the answer can show: no control characters, and of a length in `bytes`.
fn text(what: &'static str, value: &str, bytes: std::ops::RangeInclusive<usize>) -> Result<String> {
    let bad = |expected: String| Err(Error::Invalid { what, value: value.to_owned(), expected });
    if !bytes.contains(&value.len()) {
        return bad(format!("expected {} to {} bytes, it has {}", bytes.start(), bytes.end(), value.len()));
    }
    if value.chars().any(char::is_control) {
        return bad("control characters are not allowed in it".to_owned());
    }
    Ok(value.to_owned())
}

/// An error of a disk that is too big, which says so if `size`, the SIZE of the call, has no unit: a number of bytes may have
/// been taken for MiB.
pub fn of_size(error: Error, size: &str) -> Error {
    match error {
        Error::DiskTooBig { format, bytes, largest } if size.bytes().all(|b| b.is_ascii_digit()) => Error::Oversized {
            what: format!("SIZE {size}, in MiB,"),
            limit: format!(
                "it is {}, and {format} holds {} at most; for bytes write {size}B",
                Size(bytes),
                Size(largest)
            ),
        },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_decides_on_a_format_and_the_extension_only_if_he_does_not() {
        for (file, said, expected) in [
            ("a.vhd", None, (Format::Vhd, false)),
            ("a.qcow2", Some("raw"), (Format::Raw, true)),
            ("a.img", None, (Format::Raw, false)),
            ("-", None, (Format::Raw, false)),
            ("DISK.VHD", None, (Format::Vhd, false)),
            ("a.Qcow2", None, (Format::Qcow2, false)),
        ] {
            assert_eq!(file_format(file, said).unwrap(), expected, "{file} {said:?}");
        }
        assert!(file_format("a.vhd", Some("vmdk")).is_err());
    }

    #[test]
    fn nothing_is_written_under_the_extension_of_another_format_unless_a_format_is_said() {
        for file in ["x.vmdk", "x.VMDK", "x.vhdx", "x.vdi", "x.qed", "x.qcow", "x.raw.gz", "x.ova"] {
            assert!(matches!(export_format(file, None), Err(Error::Invalid { what: "FILE", .. })), "{file}");
            assert_eq!(export_format(file, Some("vhd")).unwrap(), (Format::Vhd, true));
        }
        for (file, format) in
            [("x.VHD", Format::Vhd), ("x.img", Format::Raw), ("-", Format::Raw), ("vmdk", Format::Raw)]
        {
            assert_eq!(export_format(file, None).unwrap(), (format, false));
        }
    }

    #[test]
    fn text_of_a_caller_has_a_length_and_no_control_characters() {
        assert_eq!(text("USER", "host1/vm7 ü", 1..=1024).unwrap(), "host1/vm7 ü");
        for bad in ["", "a\nb", "\u{7}", &"x".repeat(1025)] {
            assert!(text("USER", bad, 1..=1024).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_a_size_without_a_unit_may_have_been_meant_in_bytes() {
        let big = || Error::DiskTooBig { format: Format::Vhd, bytes: 3 << 40, largest: 2040 << 30 };
        assert!(matches!(of_size(big(), "3145728"), Error::Oversized { .. }));
        assert!(matches!(of_size(big(), "3TiB"), Error::DiskTooBig { .. }));
    }
}
