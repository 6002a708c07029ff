//! The files and pipes that disks are exported to and imported from.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, stdin, stdout};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs2::FileExt;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::libc;
use nix::unistd::linkat;

use crate::error::{Error, Result};
use crate::sys::{durable, stdio};
use crate::types::Format;
use crate::vdi::transfer::Stream;

const PIPE: &str = "-";
const STDOUT: &str = "standard output";
/// Between the hidden name of an export in the making and the number of the process that writes it, where the filesystem has
/// no files without a name. No other program makes such names, so a killed export's file can be told from all else.
const PARTIAL: &str = ".sm-export-";

/// Opens what is imported: a file, a block device, or standard input. `stated`: the caller said the format.
///
/// # Errors
/// [`Error::Invalid`] if there is no such file.
pub fn from(name: &str, (format, stated): (Format, bool)) -> Result<Stream> {
    let word = name.to_owned();
    let stream = |file: File, name: &str| Ok(Stream { file: Arc::new(file), name: name.into(), word, format, stated });
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
/// [`Error::Invalid`] if the name exists, because nothing is overwritten; also if there is no place for the file.
pub fn to(name: &str, (format, stated): (Format, bool)) -> Result<Stream> {
    if name == PIPE {
        stdio::assert_output().map_err(Error::io("write", STDOUT))?;
        let file = stdout().as_fd().try_clone_to_owned().map_err(Error::io("write", STDOUT))?;
        return Ok(Stream { file: Arc::new(file.into()), name: STDOUT.into(), word: name.to_owned(), format, stated });
    }
    if fs::symlink_metadata(name).is_ok() {
        return Err(exists(name));
    }
    if name.is_empty() {
        return Err(unusable("create", name)(io::ErrorKind::NotFound.into()));
    }
    let path = Path::new(name);
    sweep(path);
    let file = match unnamed(path) {
        Ok(file) => file,
        Err(e) if has_no_unnamed(&e) => named(path)?,
        Err(e) => return Err(unusable("create", name)(e)),
    };
    Ok(Stream { file: Arc::new(file), name: path.to_owned(), word: name.to_owned(), format, stated })
}

/// A file that has no name until it is complete, on the filesystem of `path`: a kill leaves nothing. The name comes by way of
/// /proc, which another file tries first: an export that could not be named at its end would be lost.
fn unnamed(path: &Path) -> io::Result<File> {
    let open = || -> io::Result<File> {
        OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(directory(path))
    };
    let trial = partial(path);
    link(&open()?, &trial).map_err(|_| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
    // Another export to the same file may have swept it: it is empty and not locked.
    let _ = fs::remove_file(&trial);
    open()
}

/// Gives an open file a name that nothing has yet.
fn link(file: &File, path: &Path) -> nix::Result<()> {
    let by_fd = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(AT_FDCWD, by_fd.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)
}

/// NFS and FAT have no unnamed files. `O_TMPFILE` contains `O_DIRECTORY`, so an old filesystem says EISDIR.
fn has_no_unnamed(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EISDIR))
}

/// Makes a file with a hidden name in the directory of `path`. A killed export leaves it, and the next export to `path`
/// removes it.
fn named(path: &Path) -> Result<File> {
    let partial = partial(path);
    let mut options = OpenOptions::new();
    // A file that is there already is somebody's: not emptied, not written, not published as the disk.
    options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&partial).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Error::DeviceInUse {
            device: partial.display().to_string(),
            holder: "it is there already, and is not what a vdi_export left".to_owned(),
        },
        _ => unusable("create", &path.display().to_string())(e),
    })?;
    // Keeps a sweep of another vdi_export away; where locks do not work, none sweeps.
    let _ = FileExt::try_lock_exclusive(&file);
    Ok(file)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Gives a completed export its name, durably. On failure there is neither the name nor what was written.
///
/// # Errors
/// [`Error::Invalid`] if the name was taken meanwhile; [`Error::Io`].
pub fn publish(to: &Stream) -> Result<()> {
    if to.name == Path::new(STDOUT) {
        return Ok(());
    }
    let partial = partial(&to.name);
    let named = give_name(to, &partial);
    discard(to);
    named?;
    durable::sync_parent(&to.name).inspect_err(|_| {
        let _ = fs::remove_file(&to.name);
    })
}

fn give_name(to: &Stream, partial: &Path) -> Result<()> {
    let refused = |errno: Errno| match errno {
        Errno::EEXIST => exists(&to.name.display().to_string()),
        errno => Error::sys("create", &to.name)(errno),
    };
    // The file that was written, whatever has its temporary name by now.
    match link(&to.file, &to.name) {
        Ok(()) => return Ok(()),
        Err(Errno::EEXIST) => return Err(refused(Errno::EEXIST)),
        // FAT has no links, NFS no rename that overwrites nothing; /proc may be missing.
        Err(_) => {}
    }
    match renameat2(AT_FDCWD, partial, AT_FDCWD, &to.name, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EINVAL | Errno::ENOSYS) => fs::hard_link(partial, &to.name).map_err(Error::io("create", &to.name)),
        other => other.map_err(refused),
    }
}

/// Removes the hidden name of an export, if it has one.
pub fn discard(to: &Stream) {
    let is_partial =
        |meta: fs::Metadata| to.file.metadata().is_ok_and(|file| (file.dev(), file.ino()) == (meta.dev(), meta.ino()));
    let partial = partial(&to.name);
    if to.name != Path::new(STDOUT) && fs::symlink_metadata(&partial).is_ok_and(is_partial) {
        let _ = fs::remove_file(partial);
    }
}

/// The hidden name of this process's export to `path`.
fn partial(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!("{PARTIAL}{}", std::process::id()));
    path.with_file_name(name)
}

/// Removes what killed exports to the same file left: files of this user that no living process has locked.
fn sweep(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    for entry in fs::read_dir(directory(path)).into_iter().flatten().flatten() {
        let found = entry.file_name();
        let pid = found.to_str().and_then(|found| found.strip_prefix('.')?.strip_prefix(name)?.strip_prefix(PARTIAL));
        if !pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let Ok(file) = options.open(entry.path()) else { continue };
        let ours = file.metadata().is_ok_and(|meta| meta.is_file() && meta.uid() == nix::unistd::geteuid().as_raw());
        if ours && durable::is_abandoned(&file) {
            let _ = fs::remove_file(entry.path());
        }
    }
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
