//! A program that does what it reads on its standard input line by line, and is told more when it has done that.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::{ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{Tool, describe, keep_descriptors_to_ourselves};
use crate::error::{Error, Result};

/// Bytes that may be said at once: a pipe takes them all, so nothing waits for the program to read them.
pub const MOST: usize = 32 << 10;

/// A running program. Dropping this ends its input, and waits for its end.
pub struct Dialogue {
    input: Option<ChildStdin>,
    output: ChildStdout,
    errors: File,
    /// How many bytes of `errors` are of what was done before.
    told: u64,
    ended: Receiver<io::Result<ExitStatus>>,
    group: Pid,
    shown: String,
    deadline: Duration,
}

impl Tool {
    /// Starts the program. Its deadline is that of each part of the dialogue.
    ///
    /// # Errors
    /// [`Error::Tool`] when it can't be started.
    pub fn begin(mut self) -> Result<Dialogue> {
        keep_descriptors_to_ourselves();
        let unstarted = |e: io::Error| Error::Tool {
            argv: self.shown.clone(),
            how: format!("was not started: {e}"),
            stderr: String::new(),
        };
        let made = memfd_create("errors", MFdFlags::MFD_CLOEXEC).map(File::from).map_err(io::Error::from);
        let (errors, theirs) = made.and_then(|file| Ok((file.try_clone()?, file))).map_err(unstarted)?;
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(theirs);
        let mut child = self.command.spawn().map_err(unstarted)?;
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("it is a pipe"));
        let group = Pid::from_raw(child.id() as i32);
        let (tell, ended) = mpsc::channel();
        std::thread::spawn(move || drop(tell.send(child.wait())));
        Ok(Dialogue { input, output, errors, told: 0, ended, group, shown: self.shown, deadline: self.deadline })
    }
}

impl Dialogue {
    /// Tells the program something, no more than [`MOST`] bytes, and waits until it has written a line with `until`.
    ///
    /// # Errors
    /// [`Error::Tool`] if it ends instead, or writes no such line until the deadline: then it is killed.
    pub fn say(&mut self, lines: &str, until: &str) -> Result<()> {
        let end = Instant::now() + self.deadline;
        self.told = self.errors.metadata().map_or(0, |it| it.len());
        // One that has ended reads nothing; how it ended shows below.
        let _ = self.input.as_mut().map_or(Ok(()), |input| input.write_all(lines.as_bytes()));
        let mut text = Vec::new();
        loop {
            match self.more(&mut text, end) {
                Ok(0) => {
                    self.input = None;
                    return Err(self.ended(end).err().unwrap_or_else(|| self.failed("ended early".to_owned())));
                }
                Ok(_) if text.windows(until.len()).any(|part| part == until.as_bytes()) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(self.given_up(&error)),
            }
        }
    }

    /// Tells the program the last things, and waits for its end.
    ///
    /// # Errors
    /// [`Error::Tool`] as of [`Tool::run`].
    pub fn end(mut self, lines: &str) -> Result<()> {
        let end = Instant::now() + self.deadline;
        self.told = self.errors.metadata().map_or(0, |it| it.len());
        let _ = self.input.as_mut().map_or(Ok(()), |input| input.write_all(lines.as_bytes()));
        self.input = None;
        let mut text = Vec::new();
        loop {
            match self.more(&mut text, end) {
                Ok(0) => return self.ended(end),
                Ok(_) => text.clear(),
                Err(error) => return Err(self.given_up(&error)),
            }
        }
    }

    /// Adds what the program writes to `text`. 0: it has closed its output.
    fn more(&mut self, text: &mut Vec<u8>, end: Instant) -> io::Result<usize> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut buffer = [0; 4096];
        let n = self.output.read(&mut buffer)?;
        text.extend_from_slice(&buffer[..n]);
        Ok(n)
    }

    /// How the program ended, which has closed its output.
    fn ended(&mut self, end: Instant) -> Result<()> {
        match self.ended.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Ok(status)) => describe(status).map_or(Ok(()), |how| Err(self.failed(how))),
            Ok(Err(error)) => Err(self.failed(format!("was lost: {error}"))),
            Err(RecvTimeoutError::Timeout) => Err(self.given_up(&io::ErrorKind::TimedOut.into())),
            // It was told before.
            Err(RecvTimeoutError::Disconnected) => Err(self.failed("has ended".to_owned())),
        }
    }

    fn given_up(&self, error: &io::Error) -> Error {
        let _ = killpg(self.group, Signal::SIGKILL);
        self.failed(match error.kind() {
            io::ErrorKind::TimedOut => format!("did not end within {} s", self.deadline.as_secs()),
            _ => format!("cannot be heard: {error}"),
        })
    }

    /// With what the program has said of its last part.
    fn failed(&self, how: String) -> Error {
        let mut bytes = vec![0; self.errors.metadata().map_or(0, |it| it.len().saturating_sub(self.told)) as usize];
        let read = self.errors.read_exact_at(&mut bytes, self.told);
        let stderr = read.map_or_else(|_| String::new(), |()| String::from_utf8_lossy(&bytes).into_owned());
        Error::Tool { argv: self.shown.clone(), how, stderr }
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        let Some(input) = self.input.take() else { return };
        drop(input);
        if matches!(self.ended.recv_timeout(self.deadline), Err(RecvTimeoutError::Timeout)) {
            let _ = killpg(self.group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does what it reads, and ends at the first command that fails.
    fn shell() -> Dialogue {
        Tool::new("sh").args(["-e", "-c", "while read -r line; do eval \"$line\"; done"]).begin().unwrap()
    }

    #[test]
    fn a_program_is_told_more_when_it_has_done_what_it_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut shell = shell();
        shell.say(&format!("echo done before; : > {}\necho done\n", a.display()), "done\n").unwrap();
        assert!(a.exists() && !b.exists());
        shell.say(&format!("mv {} {}\necho done\n", a.display(), b.display()), "done\n").unwrap();
        assert!(!a.exists() && b.exists());
        shell.end(&format!("rm {}\n", b.display())).unwrap();
        assert!(!b.exists());
    }

    #[test]
    fn a_program_that_ends_says_what_it_said_of_its_last_part() {
        let mut one = shell();
        one.say("echo first >&2; echo done\n", "done").unwrap();
        let Err(Error::Tool { how, stderr, .. }) = one.say("echo second >&2; exit 3\necho done\n", "done") else {
            panic!("it ends")
        };
        assert_eq!((how.as_str(), stderr.as_str()), ("failed with status 3", "second\n"));
        let Err(Error::Tool { how, .. }) = one.say("echo done\n", "done") else { panic!("it has ended") };
        assert!(!how.is_empty());
        assert!(shell().end("exit 4\n").is_err());
        let Err(Error::Tool { how, .. }) = shell().say("exit 0\n", "done") else { panic!("it says nothing") };
        assert_eq!(how, "ended early");
    }

    #[test]
    fn a_program_that_says_nothing_is_killed_at_the_deadline() {
        let start = Instant::now();
        let mut quiet = Tool::new("sleep").arg("60").deadline(Duration::from_millis(100)).begin().unwrap();
        let Err(Error::Tool { how, .. }) = quiet.say("x\n", "done") else { panic!("it says nothing") };
        assert!(how.starts_with("did not end within"), "{how}");
        drop(quiet);
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
