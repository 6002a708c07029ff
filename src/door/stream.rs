//! The files and pipes that disks are exported to and imported from.

use std::fs::{self, File, OpenOptions};
use std::io::{stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

use crate::error::{Error, Result};
use crate::sys::durable;
use crate::types::Format;
use crate::vdi::transfer::Stream;

const PIPE: &str = "-";
const STDOUT: &str = "standard output";

/// Opens what is imported: a file, a block device, or standard input.
pub fn from(name: &str, format: Format) -> Result<Stream> {
    if name == PIPE {
        let file = stdin().as_fd().try_clone_to_owned().map_err(Error::io("read", "standard input"))?;
        return Ok(stream(file.into(), "standard input", format));
    }
    let file = File::open(name).map_err(Error::io("open", name))?;
    Ok(stream(file, name, format))
}

/// Opens where to export: standard output, or a file that appears under its name once it is complete
/// ([`publish`]).
///
/// # Errors
/// [`Error::Invalid`] if the name exists: nothing is overwritten.
pub fn to(name: &str, format: Format) -> Result<Stream> {
    if name == PIPE {
        let file = stdout().as_fd().try_clone_to_owned().map_err(Error::io("write", STDOUT))?;
        return Ok(stream(file.into(), STDOUT, format));
    }
    if fs::symlink_metadata(name).is_ok() {
        return Err(exists(name));
    }
    let path = Path::new(name);
    let partial = partial(path);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&partial).map_err(Error::io("create", &partial))?;
    if !durable::is_abandoned(&file) {
        return Err(Error::DeviceInUse {
            device: partial.display().to_string(),
            holder: "another vdi_export writes it".to_owned(),
        });
    }
    file.set_len(0).map_err(Error::io("empty", &partial))?;
    Ok(Stream { file: Arc::new(file), name: path.to_owned(), format })
}

/// Gives a completed export its name.
pub fn publish(to: &Stream) -> Result<()> {
    if to.name == Path::new(STDOUT) {
        return Ok(());
    }
    let partial = partial(&to.name);
    // Fails if the name was taken meanwhile.
    fs::hard_link(&partial, &to.name).map_err(Error::io("create", &to.name))?;
    fs::remove_file(&partial).map_err(Error::io("remove", &partial))?;
    durable::sync_parent(&to.name)
}

/// Removes what a failed export wrote.
pub fn discard(to: &Stream) {
    if to.name != Path::new(STDOUT) {
        let _ = fs::remove_file(partial(&to.name));
    }
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn exists(name: &str) -> Error {
    Error::Invalid {
        what: "FILE",
        value: name.to_owned(),
        expected: "it exists already and is not overwritten".to_owned(),
    }
}

fn stream(file: File, name: &str, format: Format) -> Stream {
    Stream { file: Arc::new(file), name: name.into(), format }
}
