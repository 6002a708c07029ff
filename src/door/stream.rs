//! The files and pipes that disks are exported to and imported from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::libc;

use crate::error::{Error, Result};
use crate::sys::durable;
use crate::types::Format;
use crate::vdi::transfer::Stream;

const PIPE: &str = "-";
const STDOUT: &str = "standard output";

/// Opens what is imported: a file, a block device, or standard input. `stated`: the caller said the format.
///
/// # Errors
/// [`Error::Invalid`] if there is no such file.
pub fn from(name: &str, (format, stated): (Format, bool)) -> Result<Stream> {
    let stream = |file: File, name: &str| Ok(Stream { file: Arc::new(file), name: name.into(), format, stated });
    if name == PIPE {
        let file = stdin().as_fd().try_clone_to_owned().map_err(Error::io("read", "standard input"))?;
        return stream(file.into(), "standard input");
    }
    let file = File::open(name).map_err(unusable("open", name))?;
    if file.metadata().map_err(Error::io("examine", name))?.is_dir() {
        return Err(unusable("read", name)(io::ErrorKind::IsADirectory.into()));
    }
    stream(file, name)
}

/// Opens where to export: standard output, or a file that appears under its name once it is complete
/// ([`publish`]).
///
/// # Errors
/// [`Error::Invalid`] if the name exists: nothing is overwritten. The same if there is no place for it.
pub fn to(name: &str, (format, stated): (Format, bool)) -> Result<Stream> {
    if name == PIPE {
        let file = stdout().as_fd().try_clone_to_owned().map_err(Error::io("write", STDOUT))?;
        return Ok(Stream { file: Arc::new(file.into()), name: STDOUT.into(), format, stated });
    }
    if fs::symlink_metadata(name).is_ok() {
        return Err(exists(name));
    }
    if name.is_empty() {
        return Err(unusable("create", name)(io::ErrorKind::NotFound.into()));
    }
    let path = Path::new(name);
    let partial = partial(path);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&partial).map_err(unusable("create", name))?;
    if !durable::is_abandoned(&file) {
        return Err(Error::DeviceInUse {
            device: partial.display().to_string(),
            holder: "another vdi_export writes it".to_owned(),
        });
    }
    file.set_len(0).map_err(Error::io("empty", &partial))?;
    Ok(Stream { file: Arc::new(file), name: path.to_owned(), format, stated })
}

/// Gives a completed export its name.
pub fn publish(to: &Stream) -> Result<()> {
    if to.name == Path::new(STDOUT) {
        return Ok(());
    }
    let partial = partial(&to.name);
    // Both ways fail if the name was taken meanwhile. FAT has no links, NFS no rename of that kind.
    match renameat2(AT_FDCWD, &partial, AT_FDCWD, &to.name, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => {}
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            fs::hard_link(&partial, &to.name).map_err(Error::io("create", &to.name))?;
            fs::remove_file(&partial).map_err(Error::io("remove", &partial))?;
        }
        Err(errno) => return Err(Error::sys("create", &to.name)(errno)),
    }
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

/// A name that leads to no file is an argument that was mistyped; everything else is what the system refuses.
fn unusable(op: &'static str, name: &str) -> impl FnOnce(io::Error) -> Error {
    let name = name.to_owned();
    move |e| match e.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::InvalidFilename => {
            Error::Invalid { what: "FILE", value: name, expected: format!("cannot {op} it: {e}") }
        }
        _ => Error::io(op, name)(e),
    }
}
