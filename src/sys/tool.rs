//! Runs external programs; nothing else in the package does.
//!
//! No shell, stdin empty, `LC_ALL=C`, a process group of its own, no inherited descriptors, a deadline.
//! Output goes to two memfds, not pipes: there is nothing to read while the tool runs, and a daemon that
//! it leaves behind can neither hang us nor swallow the output.

#![allow(clippy::disallowed_types, reason = "this is the one place")]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Once, mpsc};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::{Error, Result};

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
}

/// The output that a tool wrote before it ended with status 0.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
}

impl Tool {
    /// A program found on PATH.
    pub fn new(program: &str) -> Tool {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
        if std::env::var_os("PATH").is_none() {
            command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        }
        Tool { command, shown: program.to_owned(), deadline: DEADLINE, good: None, shows_stdout: false }
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

    /// An error shows what the program wrote on its standard output as well: a person's script may say why there.
    pub fn with_all_output(mut self) -> Tool {
        self.shows_stdout = true;
        self
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// [`Error::Tool`] with the command line and its stderr when it can't be started, ends with another
    /// status than 0 or by a signal, or takes longer than its deadline (then its process group is killed).
    pub fn run(mut self) -> Result<Output> {
        keep_descriptors_to_ourselves();
        let failed = |how: String, stderr: String| Error::Tool { argv: self.shown.clone(), how, stderr };
        let open = || memfd_create("output", MFdFlags::MFD_CLOEXEC).map(File::from);
        let (mut out, mut err) = open()
            .and_then(|out| Ok((out, open()?)))
            .map_err(|e| failed(format!("was not started: {e}"), String::new()))?;
        let share = |file: &File| file.try_clone().map(Stdio::from);
        let child = share(&out)
            .and_then(|stdout| Ok((stdout, share(&err)?)))
            .and_then(|(stdout, stderr)| self.command.stdout(stdout).stderr(stderr).spawn());
        let mut child = child.map_err(|e| failed(format!("was not started: {e}"), String::new()))?;
        let group = Pid::from_raw(child.id() as i32);
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = tell.send(child.wait());
        });
        let status = match told.recv_timeout(self.deadline) {
            Ok(status) => status.map_err(|e| failed(format!("was lost: {e}"), String::new()))?,
            Err(_) => {
                let _ = killpg(group, Signal::SIGKILL);
                // A process that waits for dead storage can't be killed: it is left to the kernel.
                let _ = told.recv_timeout(Duration::from_secs(1));
                return Err(failed(format!("did not end within {} s", self.deadline.as_secs()), text(&mut err)));
            }
        };
        match describe(status).filter(|_| self.good.is_none() || status.code() != self.good) {
            None => Ok(Output { stdout: text(&mut out), stderr: text(&mut err) }),
            Some(how) if self.shows_stdout => Err(failed(how, text(&mut out) + &text(&mut err))),
            Some(how) => Err(failed(how, text(&mut err))),
        }
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
    use std::time::Instant;

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
    fn what_a_tool_leaves_running_does_not_hang_us() {
        let start = Instant::now();
        assert_eq!(Tool::new("sh").args(["-c", "sleep 5 & echo ready"]).run().unwrap().stdout, "ready\n");
        assert!(start.elapsed() < Duration::from_secs(4));
    }
}
