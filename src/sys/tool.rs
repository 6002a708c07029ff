//! Runs external programs; nothing else in the package does.
//!
//! No shell, stdin empty, `LC_ALL=C`, a process group of its own, no inherited descriptors, a deadline.
//! Output goes to two memfds, not pipes: there is nothing to read while the tool runs, and a daemon that
//! it leaves behind can neither hang us nor swallow the output. A program that somebody else wrote may write without end:
//! of the output of a [`Tool::of_a_person`], a thread keeps the last part, and one that writes more than [`Tool::at_most`] is killed.
//!
//! A tool outlives this process if this process is killed. `lvm`, `mkfs` and `mount` must end what they have begun: half of it
//! would be left, and the next call finds what they did.

#![allow(clippy::disallowed_types, reason = "this is the one place")]

mod capture;
mod dialogue;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Once, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

pub use dialogue::{Dialogue, MOST};

use crate::error::{Error, Result};
use crate::sys::process;
use crate::types::Size;

/// How long a tool may take unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(120);

/// A program about to be run.
pub struct Tool {
    command: Command,
    /// The command line as errors and logs show it.
    shown: String,
    deadline: Duration,
    /// A status besides 0 that is no failure.
    good: Option<i32>,
    /// An error shows the standard output as well.
    shows_stdout: bool,
    /// What is kept of the standard output, and of the standard error.
    kept: [Kept; 2],
}

/// How much of an output is kept.
#[derive(Clone, Copy)]
enum Kept {
    All,
    /// So many bytes, the last ones.
    Last(usize),
    /// All. A program that writes more bytes than this is killed.
    AtMost(usize),
}

/// Something that ends the wait for a program.
enum Event {
    Ended(io::Result<ExitStatus>),
    /// It has written more than these bytes, which are what it may.
    TooMuch(usize),
}

/// The output that a tool wrote before it ended with status 0.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
}

/// Whether this host has a program, on PATH or where programs of root usually are.
pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(program).is_file())
}

impl Tool {
    /// A program found on PATH.
    pub fn new(program: &str) -> Tool {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
        if std::env::var_os("PATH").is_none() {
            command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        }
        Tool {
            command,
            shown: program.to_owned(),
            deadline: DEADLINE,
            good: None,
            shows_stdout: false,
            kept: [Kept::All; 2],
        }
    }

    pub fn arg(mut self, arg: impl AsRef<str>) -> Tool {
        self.command.arg(arg.as_ref());
        self.shown.push(' ');
        self.shown.push_str(arg.as_ref());
        self
    }

    pub fn args<S: AsRef<str>>(self, args: impl IntoIterator<Item = S>) -> Tool {
        args.into_iter().fold(self, Tool::arg)
    }

    /// Arguments that every such call has: left out of what errors show.
    pub fn usual_args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Tool {
        self.command.args(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Takes all variables away, those of this process and LC_ALL.
    pub fn without_environment(mut self) -> Tool {
        self.command.env_clear();
        self
    }

    /// The way for passwords: no error shows it, and only root can read it of a process.
    pub fn env(mut self, key: &str, value: &str) -> Tool {
        self.command.env(key, value);
        self
    }

    /// Gives the program these bytes on its standard input.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no memory for them.
    pub fn input(mut self, bytes: &[u8]) -> Result<Tool> {
        let fail = |e: io::Error| Error::io("give its input to", &self.shown)(e);
        let mut file = memfd_create("input", MFdFlags::MFD_CLOEXEC).map(File::from).map_err(|e| fail(e.into()))?;
        file.write_all(bytes).and_then(|()| file.rewind()).map_err(fail)?;
        self.command.stdin(Stdio::from(file));
        Ok(self)
    }

    pub fn deadline(mut self, deadline: Duration) -> Tool {
        self.deadline = deadline;
        self
    }

    /// A status that is as good as 0.
    pub fn or_status(mut self, status: i32) -> Tool {
        self.good = Some(status);
        self
    }

    /// A program that a person wrote. An error shows what it wrote on its standard output as well: a script may say why there. Of
    /// each output, the last `most` bytes are kept, however much it writes.
    pub fn of_a_person(mut self, most: usize) -> Tool {
        self.shows_stdout = true;
        self.kept = [Kept::Last(most); 2];
        self
    }

    /// A program that may write no more than so many bytes to its standard output, all of which are wanted. Of its standard error, the
    /// last 1,024 bytes are kept.
    pub fn at_most(mut self, bytes: usize) -> Tool {
        self.kept = [Kept::AtMost(bytes), Kept::Last(1 << 10)];
        self
    }

    /// The program is killed when this process is. What it started itself goes on: [`end_group_of`] ends that.
    pub fn dies_with_us(mut self) -> Tool {
        let us = nix::unistd::getpid();
        let ask = move || {
            // The signal comes when the thread ends that started the program; `run` waits in that thread.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            match nix::unistd::getppid() == us {
                true => Ok(()),
                // It ended before it could be asked for.
                false => Err(io::Error::from(io::ErrorKind::Interrupted)),
            }
        };
        // SAFETY: the closure makes two system calls and allocates nothing.
        unsafe { self.command.pre_exec(ask) };
        self
    }

    /// The program, and what it starts, sees `/dev/null` in the place of these devices: in a mount namespace of its own, in which
    /// all else is as it is here.
    pub fn hides(mut self, devices: &[PathBuf]) -> Tool {
        if devices.is_empty() {
            return self;
        }
        let devices = devices.to_vec();
        let hide = move || {
            const NOTHING: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS)?;
            // What is mounted here stays here.
            mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
            for device in &devices {
                match mount(Some("/dev/null"), device.as_path(), NOTHING, MsFlags::MS_BIND, NOTHING) {
                    // It is gone since.
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls and allocates nothing: paths this short are copied to the stack.
        unsafe { self.command.pre_exec(hide) };
        self
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// [`Error::Tool`] with the command line and its stderr when it can't be started, ends with another
    /// status than 0 or by a signal, takes longer than its deadline, or writes more than it may (then its process group is killed).
    pub fn run(mut self) -> Result<Output> {
        keep_descriptors_to_ourselves();
        let failed = |how: String, stderr: String| Error::Tool { argv: self.shown.clone(), how, stderr };
        let unstarted = |e: io::Error| failed(format!("was not started: {e}"), String::new());
        let (tell, told) = mpsc::channel();
        let made = || Ok((Sink::new(self.kept[0], &tell)?, Sink::new(self.kept[1], &tell)?));
        let ((out, stdout), (err, stderr)) = made().map_err(unstarted)?;
        let mut child = self.command.stdout(stdout).stderr(stderr).spawn().map_err(unstarted)?;
        // A pipe ends when nobody has it open for writing.
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        let group = Pid::from_raw(child.id() as i32);
        std::thread::spawn(move || {
            let _ = tell.send(Event::Ended(child.wait()));
        });
        let event = told.recv_timeout(self.deadline);
        if !matches!(event, Ok(Event::Ended(_))) {
            let _ = killpg(group, Signal::SIGKILL);
            // A process that waits for dead storage can't be killed: it is left to the kernel.
            let _ = told.recv_timeout(Duration::from_secs(1));
        }
        let status = match event {
            Ok(Event::Ended(status)) => status.map_err(|e| failed(format!("was lost: {e}"), String::new()))?,
            Ok(Event::TooMuch(most)) => return Err(failed(too_much(most), err.end().text)),
            Err(_) => return Err(failed(format!("did not end within {} s", self.deadline.as_secs()), err.end().text)),
        };
        let (out, err) = (out.end(), err.end());
        // It ended before it could be killed.
        if let Some(most) = out.exceeds {
            return Err(failed(too_much(most), err.text));
        }
        let (stdout, stderr) = (out.text, err.text);
        match describe(status).filter(|_| self.good.is_none() || status.code() != self.good) {
            None => Ok(Output { stdout, stderr }),
            Some(how) if self.shows_stdout => Err(failed(how, stdout + &stderr)),
            Some(how) => Err(failed(how, stderr)),
        }
    }
}

fn too_much(most: usize) -> String {
    format!("wrote more than {} to its standard output", Size(most as u64))
}

/// Where one output of a program goes.
enum Sink {
    All(File),
    Part(capture::Reader),
}

impl Sink {
    /// A sink, and the end of it that the program gets. `tell`: is told if the program writes more than it may.
    fn new(kept: Kept, tell: &mpsc::Sender<Event>) -> io::Result<(Sink, Stdio)> {
        let part = |(reader, theirs)| (Sink::Part(reader), Stdio::from(theirs));
        match kept {
            Kept::All => {
                let file = memfd_create("output", MFdFlags::MFD_CLOEXEC).map(File::from)?;
                let theirs = file.try_clone()?;
                Ok((Sink::All(file), Stdio::from(theirs)))
            }
            Kept::Last(most) => capture::Reader::last(most).map(part),
            Kept::AtMost(most) => {
                let tell = tell.clone();
                capture::Reader::at_most(most, move || drop(tell.send(Event::TooMuch(most)))).map(part)
            }
        }
    }

    /// What the program wrote, which has ended.
    fn end(self) -> capture::Captured {
        match self {
            Sink::All(mut file) => capture::Captured { text: text(&mut file), exceeds: None },
            Sink::Part(reader) => reader.end(),
        }
    }
}

/// Kills what is left of programs that were started with this variable by a process that was killed since, and what they
/// started. A daemon, which has a session of its own, is none of them. One that waits for dead storage does nothing more when it
/// comes back, so its end is not waited for long.
pub fn end_group_of(variable: &str, value: &str) {
    const PATIENCE: Duration = Duration::from_secs(5);
    const BEAT: Duration = Duration::from_millis(10);
    let wanted = format!("{variable}={value}");
    let is_of_it = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        // The group is field 5 and the session field 6.
        *pid != std::process::id()
            && environment.split(|byte| *byte == 0).any(|it| it == wanted.as_bytes())
            && process::stat(*pid, 5) != process::stat(*pid, 6)
    };
    let left = || process::all().into_iter().filter(is_of_it);
    let begun = Instant::now();
    loop {
        let found: Vec<u32> = left().collect();
        for pid in &found {
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
        if found.is_empty() || begun.elapsed() > PATIENCE {
            return;
        }
        std::thread::sleep(BEAT);
    }
}

/// Starts this executable again, as `name` in the process list, and answers our end of a conversation whose other end is
/// its stdout. It is meant to fork at once, so that it is nobody's child, and to live on. Its stdin is `with`, else empty.
///
/// # Errors
/// [`Error::Tool`], which calls it `shown`, when it can't be started.
pub fn start_again(name: &str, args: &[OsString], shown: &str, with: Option<File>) -> Result<UnixStream> {
    keep_descriptors_to_ourselves();
    let failed = |e: io::Error| Error::Tool {
        argv: shown.to_owned(),
        how: format!("was not started: {e}"),
        stderr: String::new(),
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(args)
        .stdin(with.map_or_else(Stdio::null, Stdio::from))
        .stdout(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    child.wait().map_err(failed)?;
    Ok(ours)
}

/// Becomes another program, with our descriptors and environment. Returns only if it can't be had.
pub fn become_another(program: &Path, args: &[OsString]) -> Error {
    let error = Command::new(program).args(args).exec();
    Error::Tool { argv: program.display().to_string(), how: format!("was not started: {error}"), stderr: String::new() }
}

fn describe(status: ExitStatus) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("failed with status {code}")),
        (_, Some(signal)) => Some(format!("was killed by signal {signal}")),
        _ => Some("ended abnormally".to_owned()),
    }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Our own files are close-on-exec; what our caller left open is not.
fn keep_descriptors_to_ourselves() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
        let open: Vec<i32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        for fd in open.into_iter().filter(|fd| *fd > 2) {
            // SAFETY: the descriptor is only marked, and one that was closed meanwhile is an error we ignore.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_quotes_the_command_and_its_words_and_no_secret() {
        let error = Tool::new("ls").arg("/does/not/exist").env("PASSWD", "hunter2").run().unwrap_err();
        let line = crate::error::one_line(&error);
        assert!(line.starts_with("ls /does/not/exist failed with status 2: ls: cannot access"), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }

    #[test]
    fn a_status_that_is_no_failure_is_none() {
        assert!(Tool::new("sh").args(["-c", "exit 1"]).or_status(1).run().is_ok());
        assert!(Tool::new("sh").args(["-c", "exit 2"]).or_status(1).run().is_err());
        assert!(Tool::new("sh").args(["-c", "kill -KILL $$"]).or_status(1).run().is_err());
    }

    #[test]
    fn a_tool_that_hangs_is_killed_with_its_children() {
        let start = Instant::now();
        let error = Tool::new("sh").args(["-c", "sleep 60; :"]).deadline(Duration::from_millis(100)).run().unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn of_a_program_that_writes_without_end_the_last_is_kept() {
        let script = "head -c 30000000 /dev/zero | tr '\\0' x; echo; echo last; echo worse >&2; exit 3";
        let tool = || Tool::new("sh").args(["-c", script]).of_a_person(4096);
        let Err(Error::Tool { stderr, how, .. }) = tool().run() else { panic!("status 3 is a failure") };
        assert_eq!(how, "failed with status 3");
        assert!(
            stderr.len() < 4200 && stderr.starts_with("[...] xxx") && stderr.ends_with("x\nlast\nworse\n"),
            "{stderr}"
        );
        let short = tool().or_status(3).run().unwrap();
        assert_eq!((short.stdout.len(), short.stderr.as_str()), (4096 + 6, "worse\n"));
    }

    #[test]
    fn what_a_tool_leaves_running_does_not_hang_us() {
        let start = Instant::now();
        assert_eq!(Tool::new("sh").args(["-c", "sleep 5 & echo ready"]).run().unwrap().stdout, "ready\n");
        let person = Tool::new("sh").args(["-c", "(sleep 5; echo late) & echo ready"]).of_a_person(4096);
        assert_eq!(person.run().unwrap().stdout, "ready\n");
        assert!(start.elapsed() < Duration::from_secs(4));
    }
}
