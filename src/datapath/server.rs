//! The server's process: this executable, started again with [`WORD`].
//!
//! It leaves its caller's session, directory and descriptors, ignores the signals that end a session (only
//! SIGKILL ends it, or the end of its device), and asks the kernel to spare it when memory is short: the pages
//! that are to be freed may be those of its own disk.
//!
//! Its stdin is the lock of its disk, which it shares with its caller until the device is told, or is gone: of a
//! caller that was killed meanwhile nobody would know that a server starts, and the next call would start another.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, dup2_stdin, dup2_stdout, fork, setsid};

use super::control::{self, Control};
use super::disk::Disk;
use super::{Source, fuse};
use crate::error::{Error, Result, ended, one_line};
use crate::sys::loopdev::Detached;
use crate::sys::{lock, loopdev, tool};
use crate::types::Format;

/// First argument of a server.
pub const WORD: &str = "serve-image";
/// What `ps` shows; the `@` keeps systemd from killing it before the filesystems above are unmounted.
pub const NAME: &str = "@sm";

/// A server's arguments, which are also its description in /proc/PID/cmdline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    pub source: Source,
    /// Directory of the control socket.
    pub dir: PathBuf,
}

impl Arguments {
    fn to_words(&self) -> Vec<OsString> {
        let mode = match (self.source.read_only, self.source.shared) {
            (true, false) => "ro",
            (false, false) => "rw",
            (true, true) => "shared-ro",
            (false, true) => "shared-rw",
        };
        vec![
            WORD.into(),
            mode.into(),
            self.source.format.to_string().into(),
            self.dir.clone().into(),
            self.source.path.clone().into(),
        ]
    }

    /// `None`: these are not the arguments of a server. The first word is the executable's name.
    pub fn parse(words: &[impl AsRef<OsStr>]) -> Option<Arguments> {
        let words: Vec<&OsStr> = words.iter().map(AsRef::as_ref).collect();
        let [_, word, mode, format, dir, path] = words[..] else { return None };
        let (read_only, shared) = match mode.to_str()? {
            "ro" => (true, false),
            "rw" => (false, false),
            "shared-ro" => (true, true),
            "shared-rw" => (false, true),
            _ => return None,
        };
        let format: Format = format.to_str()?.parse().ok()?;
        let source = Source { format, path: path.into(), read_only, shared };
        (word == WORD).then_some(Arguments { source, dir: dir.into() })
    }

    /// What the process `pid` serves, if it is a living server.
    pub fn of(pid: u32) -> Option<Arguments> {
        use std::os::unix::{ffi::OsStrExt, fs::MetadataExt};
        // Anybody can call a process what he likes.
        let owner = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
            return None;
        }
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&OsStr> = line.strip_suffix(b"\0")?.split(|b| *b == 0).map(OsStr::from_bytes).collect();
        Arguments::parse(&words)
    }
}

/// Starts a server and returns its device when it serves.
pub fn start(arguments: &Arguments) -> Result<PathBuf> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let name = format!("the server of {}", arguments.source.path.display());
    let said = tool::start_again(NAME, &arguments.to_words(), &name, lock::share_last(), PATIENCE)?;
    match said.trim_end().split_once(' ') {
        Some(("ok", device)) => Ok(device.into()),
        Some(("error", why)) => {
            Err(Error::Tool { argv: name, how: "did not start".to_owned(), stderr: why.to_owned() })
        }
        _ => Err(Error::Tool { argv: name, how: "ended before it was ready".to_owned(), stderr: said }),
    }
}

/// If this process was started as a server, is one until its device is gone. Every `main` begins with this.
pub fn main() -> Option<ExitCode> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let arguments = Arguments::parse(&words)?;
    // SAFETY: this is the only thread, so the child may do anything.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => return Some(ExitCode::SUCCESS),
        Ok(ForkResult::Child) => {}
        Err(errno) => {
            println!("error cannot fork: {errno}");
            return Some(ExitCode::FAILURE);
        }
    }
    settle();
    match serve(&arguments) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            say(&format!("error {}", one_line(&error)));
            Some(ExitCode::FAILURE)
        }
    }
}

/// To whom it may concern, while the caller still listens.
fn say(line: &str) -> bool {
    let mut out = std::io::stdout().lock();
    let said = writeln!(out, "{line}").and_then(|()| out.flush()).is_ok();
    drop(out);
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = dup2_stdout(null.as_fd());
    }
    said
}

fn settle() {
    let _ = setsid();
    let _ = std::env::set_current_dir("/");
    let _ = nix::sys::prctl::set_name(c"sm-datapath");
    // Of those that end a process, all but its own faults.
    use Signal::*;
    for ignored in [
        SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGALRM, SIGUSR1, SIGUSR2, SIGIO, SIGVTALRM, SIGPROF, SIGXCPU,
        SIGXFSZ,
    ] {
        // SAFETY: no handler is installed.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    // Limits are for the caller's session.
    for limit in [Resource::RLIMIT_FSIZE, Resource::RLIMIT_CPU, Resource::RLIMIT_AS, Resource::RLIMIT_NOFILE] {
        let most = if limit == Resource::RLIMIT_NOFILE { 4096 } else { RLIM_INFINITY };
        if getrlimit(limit).is_ok_and(|(now, _)| now < most) {
            let _ = setrlimit(limit, most, most);
        }
    }
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    // Linux 5.6: allocations in this process do not wait for I/O that it would have to serve.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: takes numbers only; a kernel that does not know it says so.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
}

/// Order: 1. open the image; 2. bind the socket; 3. make the device; 4. tell the caller. A kill between any two
/// leaves what [`super::sweep`] removes, after 3 also a device that `find` calls not healthy. The end: 1. the
/// device is gone; 2. close the image; 3. remove the socket and tell who waits.
fn serve(arguments: &Arguments) -> Result<()> {
    let disk = Arc::new(Disk::open(&arguments.source)?);
    let (control, listener) = Control::bind(&arguments.dir)?;
    let result = export(arguments, &disk, &control, listener);
    let closed = disk.close();
    let result = ended(result, closed);
    control.end(&result);
    result
}

fn export(
    arguments: &Arguments,
    disk: &Arc<Disk>,
    control: &Arc<Control>,
    listener: std::os::unix::net::UnixListener,
) -> Result<()> {
    let scratch = control::scratch(&arguments.dir, std::process::id());
    fuse::sweep_mount(&scratch);
    fs::create_dir(&scratch).map_err(Error::io("create the directory", &scratch))?;
    let export = fuse::Export::start(disk, &scratch);
    let _ = fs::remove_dir(&scratch);
    let (export, thread) = export?;
    let device = export.device.clone();
    control.serve(listener, disk.clone(), Box::new(move |size| export.resized(size)));
    announce(&device);
    thread.wait()
}

fn announce(device: &Path) {
    // A caller that gave up waiting: nobody knows of the device.
    let gone = !say(&format!("ok {}", device.display())) && matches!(loopdev::detach(device), Ok(Detached::Done(_)));
    if !gone && let Ok(null) = File::open("/dev/null") {
        let _ = dup2_stdin(null.as_fd());
    }
}
