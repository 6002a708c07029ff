//! Small files whose paths people give, or whose places others can write to: such a path may lead to a pipe without a writer, to a
//! device without an end, or to a file of any size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

use crate::types::Size;

/// Opens a regular file for reading. Never waits.
///
/// # Errors
/// The system's error; [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    let refuse = |is_file: bool| match is_file {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    };
    // Opening a device may do something.
    refuse(fs::metadata(path)?.is_file())?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    refuse(file.metadata()?.is_file())?;
    Ok(file)
}

/// The contents of a regular file of `most` bytes at most.
///
/// # Errors
/// Those of [`open`]; [`io::ErrorKind::FileTooLarge`] for a longer file.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    bounded(open(path)?, most)
}

/// All that is left of a file or a pipe, of `most` bytes at most.
///
/// # Errors
/// The system's error; [`io::ErrorKind::FileTooLarge`] for more.
pub fn bounded(from: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is longer than {}, which is the most", Size(most)),
        )),
        false => Ok(bytes),
    }
}

/// The contents of a regular file of text, of `most` bytes at most.
///
/// # Errors
/// Those of [`read`]; [`io::ErrorKind::InvalidData`] for what is no UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    bounded_text(open(path)?, most)
}

/// The text that is left of a file or a pipe, of `most` bytes at most.
///
/// # Errors
/// Those of [`bounded`]; [`io::ErrorKind::InvalidData`] for what is no UTF-8.
pub fn bounded_text(from: impl Read, most: u64) -> io::Result<String> {
    let bytes = bounded(from, most)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_that_is_short_enough_is_read() {
        let scratch = tempfile::tempdir().unwrap();
        let (file, pipe) = (scratch.path().join("file"), scratch.path().join("pipe"));
        fs::write(&file, "12345").unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(read_text(&file, 5).unwrap(), "12345");
        assert_eq!(read(&file, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        for odd in [&pipe, Path::new("/dev/zero"), scratch.path()] {
            assert_eq!(read(odd, 5).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", odd.display());
        }
        assert_eq!(read(&scratch.path().join("none"), 5).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&file, [0xff]).unwrap();
        assert_eq!(read_text(&file, 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
