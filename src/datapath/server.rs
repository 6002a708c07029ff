//! The server's process: this executable, started again with [`WORD`].
//!
//! It leaves its caller's session, directory and descriptors, ignores the signals that end a session (only
//! SIGKILL ends it, or the end of its device), and asks the kernel to spare it when memory is short: the pages
//! that are to be freed may be those of its own disk.
//!
//! Its stdin is the lock of its disk, which it shares with its caller until there is a device, or will be none: of a
//! caller that was killed meanwhile nobody would know that a server starts, and the next call would start another.
//!
//! # The start
//!
//! A process that answers FUSE must not wait for FUSE. If it did, a SIGKILL would leave it for ever: one of its threads
//! waits for an answer, the other that would give it is dead, and the kernel ends the connection only when both are. So
//! the server neither opens its own file nor touches its loop device, and its caller does that. Their conversation is the
//! socket that is the server's stdout at the beginning:
//!
//! | server | caller |
//! |---|---|
//! | `pid N` | |
//! | opens the image, binds the control socket, mounts FUSE: `mounted` | |
//! | | opens the file, unmounts, makes the loop device: `attached` |
//!
//! Or `error` and a [`Failure`]. The end of the conversation before `attached` means that the caller failed or was killed. Then the
//! server unmounts. If there is a device all the same, the disk is attached; else nothing holds the filesystem, and the
//! server ends. When a server is killed, the kernel fails what its caller waits for. When it does not answer until the
//! deadline, its caller kills it.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{ForkResult, Pid, dup2_stdin, dup2_stdout, fork, setsid};

use super::control::{self, Control, Failure};
use super::disk::Disk;
use super::{Source, fuse, tapped};
use crate::error::{Error, Result, ended};
use crate::sys::lock::Lock;
use crate::sys::tapdisk::Tapdisk;
use crate::sys::tool::{self, Tool};
use crate::types::Format;

/// First argument of a server.
pub const WORD: &str = "serve-image";
/// First argument of a process that a server starts to have the size of its device set.
const FIT: &str = "fit-device";
const FIT_DEADLINE: Duration = Duration::from_secs(10);
/// The name that `ps` shows. The `@` keeps systemd from killing the process before the filesystems above are unmounted.
pub const NAME: &str = "@sm";

/// The name that the kernel has for the process, for its threads, and for what is left of the process when it was
/// killed.
const NAME_OF_THREADS: &CStr = c"sm-datapath";
/// The name of the process as /proc/PID/comm shows it.
pub const COMM: &[u8] = b"sm-datapath\n";

/// A server's arguments, which are also its description in /proc/PID/cmdline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    pub source: Source,
    /// Directory of the control socket.
    pub dir: PathBuf,
    /// The server keeps a tapdisk, see [`super::tapped`].
    pub by_tapdisk: bool,
}

impl Arguments {
    fn to_words(&self) -> Vec<OsString> {
        let mode = match (self.source.read_only, self.source.shared, self.by_tapdisk) {
            (true, _, true) => "tapdisk-ro",
            (false, _, true) => "tapdisk-rw",
            (true, false, _) => "ro",
            (false, false, _) => "rw",
            (true, true, _) => "shared-ro",
            (false, true, _) => "shared-rw",
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
        let (read_only, shared, by_tapdisk) = match mode.to_str()? {
            "ro" => (true, false, false),
            "rw" => (false, false, false),
            "shared-ro" => (true, true, false),
            "shared-rw" => (false, true, false),
            "tapdisk-ro" => (true, false, true),
            "tapdisk-rw" => (false, false, true),
            _ => return None,
        };
        let format: Format = format.to_str()?.parse().ok()?;
        let source = Source { format, path: path.into(), read_only, shared };
        (word == WORD).then_some(Arguments { source, dir: dir.into(), by_tapdisk })
    }

    /// The arguments of the process `pid`, if it is a living server.
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

/// Starts a server, makes its device and returns that. The server shares `lock` meanwhile.
///
/// # Errors
/// [`Error::ImageServer`] with the words of a server that did not start. [`Error::Tool`] for one that ended without words, or
/// was not ready at `until` and was killed. The device of one that keeps a tapdisk is the socket of the tapdisk.
pub fn start(arguments: &Arguments, lock: Option<&Lock>, until: Instant) -> Result<PathBuf> {
    let shown = format!("the server of {}", arguments.source.path.display());
    let lock = lock.map(Lock::share).transpose()?;
    let stream = tool::start_again(NAME, &arguments.to_words(), &shown, lock)?;
    let mut server = Starting { words: BufReader::new(stream), shown, until, begun: Instant::now(), pid: None };
    let pid: u32 = server.hear("pid")?.trim().parse().map_err(|_| server.failed("said no number as its process"))?;
    server.pid = Some((pid, arguments.clone()));
    if arguments.by_tapdisk {
        let numbers = server.hear("tapdisk")?;
        let numbers: Option<(u32, u32)> =
            numbers.split_once(' ').and_then(|(pid, minor)| Some((pid.parse().ok()?, minor.parse().ok()?)));
        let (pid, minor) = numbers.ok_or_else(|| server.failed("said no numbers as its tapdisk"))?;
        let _ = writeln!(server.words.get_ref(), "attached");
        return Ok(Tapdisk::new(pid, minor).socket());
    }
    server.hear("mounted")?;
    let scratch = control::scratch(&arguments.dir, pid);
    let guard = server.guard();
    let device = fuse::connect(&scratch, pid, &arguments.source);
    drop(guard);
    match device {
        Ok(device) => {
            // A server that died since is found dead by the next call.
            let _ = writeln!(server.words.get_ref(), "attached");
            Ok(device)
        }
        Err(why) => Err(server.given_up(why)),
    }
}

/// A server that has no device yet, as its caller sees it.
struct Starting {
    words: BufReader<UnixStream>,
    shown: String,
    begun: Instant,
    until: Instant,
    pid: Option<(u32, Arguments)>,
}

impl Starting {
    fn failed(&self, how: &str) -> Error {
        Error::Tool { argv: self.shown.clone(), how: how.to_owned(), stderr: String::new() }
    }

    /// The rest of the line that begins with `word`.
    fn hear(&mut self, word: &str) -> Result<String> {
        let mut line = String::new();
        let left = self.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let heard = self.words.get_ref().set_read_timeout(Some(left)).and_then(|()| self.words.read_line(&mut line));
        match heard {
            Ok(0) => Err(self.failed("ended before it was ready")),
            Ok(_) => match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
                (said, rest) if said == word => Ok(rest.to_owned()),
                ("error", failure) => {
                    self.await_end();
                    Err(Failure::parse(failure).of(format!("{} did not start", self.shown)))
                }
                (other, _) => Err(self.failed(&format!("said {other:?} instead of {word}"))),
            },
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(self.too_late()),
            Err(e) => Err(self.failed(&format!("cannot be heard: {e}"))),
        }
    }

    /// Nothing is served yet, so nothing is lost.
    fn too_late(&mut self) -> Error {
        let seconds = self.begun.elapsed().as_secs();
        let Some((pid, arguments)) = &self.pid else { return self.failed(&format!("was not ready after {seconds} s")) };
        let why = control::why_silent(*pid).map(|why| format!(" ({why})")).unwrap_or_default();
        kill_server(*pid, arguments);
        self.await_end();
        self.failed(&format!("was not ready after {seconds} s{why} and was killed"))
    }

    /// As long as the answer lives, a server that does not let us go on at the deadline is killed: then the kernel does.
    fn guard(&self) -> Option<mpsc::Sender<()>> {
        let (pid, arguments) = self.pid.clone()?;
        let (ended, end) = mpsc::channel();
        let left = self.until.saturating_duration_since(Instant::now());
        std::thread::spawn(move || {
            if end.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                kill_server(pid, &arguments);
            }
        });
        Some(ended)
    }

    /// Lets the server end, for there is no device.
    fn given_up(mut self, why: Error) -> Error {
        let lives =
            || self.pid.as_ref().is_some_and(|(pid, arguments)| Arguments::of(*pid).as_ref() == Some(arguments));
        let error = match why.errno().map(Errno::from_raw) {
            Some(Errno::ENOTCONN | Errno::ECONNABORTED) if !lives() => self.failed("died before it was ready"),
            _ => why,
        };
        let _ = self.words.get_ref().shutdown(Shutdown::Write);
        self.await_end();
        error
    }

    /// Waits for the process, which ends: as long as it lives it counts as a server.
    fn await_end(&mut self) {
        let left = self.until.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let _ = self.words.get_ref().set_read_timeout(Some(left));
        let _ = io::copy(&mut self.words, &mut io::sink());
    }
}

fn kill_server(pid: u32, arguments: &Arguments) {
    if Arguments::of(pid).as_ref() == Some(arguments) {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
}

/// If this process was started as a server, is one until its device is gone; if as the helper of one, helps. Every `main`
/// begins with this.
pub fn main() -> Option<ExitCode> {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let [_, word, server] = &words[..]
        && word == FIT
    {
        let fitted = server.to_str().and_then(|pid| pid.parse().ok()).is_some_and(|pid| fuse::fit(pid).is_ok());
        return Some(if fitted { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let arguments = Arguments::parse(&words)?;
    // SAFETY: this is the only thread, so the child may do anything.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => return Some(ExitCode::SUCCESS),
        Ok(ForkResult::Child) => {}
        Err(errno) => {
            #[expect(clippy::print_stdout, reason = "the pipe to the process that starts the server")]
            {
                println!("error cannot fork: {errno}");
            }
            return Some(ExitCode::FAILURE);
        }
    }
    settle();
    let Ok(caller) = Caller::of_this_process() else { return Some(ExitCode::FAILURE) };
    caller.say(&format!("pid {}", std::process::id()));
    match serve(&arguments, &caller) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            caller.say(&format!("error {}", Failure::from(&error)));
            Some(ExitCode::FAILURE)
        }
    }
}

/// The caller, as a server that starts sees it.
pub(super) struct Caller(UnixStream);

impl Caller {
    /// Takes stdout, which becomes empty.
    fn of_this_process() -> io::Result<Caller> {
        let stream = io::stdout().as_fd().try_clone_to_owned()?;
        dup2_stdout(File::options().write(true).open("/dev/null")?.as_fd())?;
        Ok(Caller(UnixStream::from(stream)))
    }

    /// It may not listen any more.
    pub(super) fn say(&self, line: &str) {
        let _ = writeln!(&self.0, "{line}");
    }

    /// Whether it has made the device, when it has said so or hung up.
    pub(super) fn has_attached(&self) -> bool {
        let mut line = String::new();
        BufReader::new(&self.0).read_line(&mut line).is_ok() && line == "attached\n"
    }
}

fn settle() {
    let _ = setsid();
    let _ = std::env::set_current_dir("/");
    let _ = nix::sys::prctl::set_name(NAME_OF_THREADS);
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

/// Order: 1. open the image; 2. bind the socket; 3. mount; 4. let the caller make the device. A kill between any two
/// leaves what [`super::sweep`] removes, after 4 also a device that `find` calls not healthy. The end: 1. the
/// device is gone; 2. close the image; 3. remove the socket and tell who waits.
fn serve(arguments: &Arguments, caller: &Caller) -> Result<()> {
    if arguments.by_tapdisk {
        return tapped::serve(arguments, caller);
    }
    let disk = Arc::new(Disk::open(&arguments.source)?);
    disk.stay_in_use();
    let (control, listener) = Control::bind(&arguments.dir)?;
    let result = export(arguments, caller, &disk, &control, listener);
    let closed = disk.close();
    let result = ended(result, closed);
    control.end(&result);
    result
}

fn export(
    arguments: &Arguments,
    caller: &Caller,
    disk: &Arc<Disk>,
    control: &Arc<Control>,
    listener: UnixListener,
) -> Result<()> {
    let scratch = control::scratch(&arguments.dir, std::process::id());
    fuse::sweep_mount(&scratch);
    fs::create_dir(&scratch).map_err(Error::io("create the directory", &scratch))?;
    let (export, thread) = fuse::Export::start(disk, &scratch).inspect_err(|_| drop(fs::remove_dir(&scratch)))?;
    control.serve(listener, disk.clone(), Box::new(move |size| export.resized(size)));
    caller.say("mounted");
    if !caller.has_attached() {
        fuse::unmount(&scratch);
    }
    give_lock_up();
    thread.wait()
}

/// The lock of the disk is its caller's alone from now on.
pub(super) fn give_lock_up() {
    if let Ok(null) = File::open("/dev/null") {
        let _ = dup2_stdin(null.as_fd());
    }
}

/// Makes the device of this server as large as the file that it shows, through a process that is not the server.
pub fn fit_by_another() {
    let pid = std::process::id().to_string();
    let _ = Tool::new("/proc/self/exe").args([FIT, &pid]).deadline(FIT_DEADLINE).run();
}
