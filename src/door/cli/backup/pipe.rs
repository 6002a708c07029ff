//! Standard input and output as the pipes through which runs go.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};
use crate::sys::stdio;

const INPUT: &str = "standard input";
const OUTPUT: &str = "standard output";

/// Hands standard output to `work`, with its name in errors.
///
/// # Errors
/// [`Error::Invalid`] if it is a terminal; [`Error::Io`] if it is closed; those of `work`.
pub fn output<T>(work: impl FnOnce(&File, &str) -> Result<T>) -> Result<T> {
    stdio::assert_output().map_err(Error::io("write", OUTPUT))?;
    refuse_terminal(OUTPUT, io::stdout().is_terminal())?;
    let file = io::stdout().as_fd().try_clone_to_owned().map_err(Error::io("write", OUTPUT))?;
    work(&file.into(), OUTPUT)
}

/// Hands standard input to `work`, with its name in errors. `patience`: how long nothing may come.
///
/// # Errors
/// [`Error::Invalid`] if it is a terminal; [`Error::Io`] if it is closed; those of `work`.
pub fn input<T>(patience: Duration, work: impl FnOnce(Box<dyn Read + Send>, &str) -> Result<T>) -> Result<T> {
    refuse_terminal(INPUT, io::stdin().is_terminal())?;
    let fd = io::stdin().as_fd().try_clone_to_owned().map_err(Error::io("read", INPUT))?;
    work(Box::new(BufReader::with_capacity(1 << 20, Patient { fd, patience })), INPUT)
}

fn refuse_terminal(what: &'static str, is_terminal: bool) -> Result<()> {
    match is_terminal {
        true => Err(Error::Invalid {
            what,
            value: "a terminal".to_owned(),
            expected: "expected a pipe: sm backup send NAME | ssh HOST sm backup receive --to STORE".to_owned(),
        }),
        false => Ok(()),
    }
}

/// A pipe that is not waited for without end.
struct Patient {
    fd: OwnedFd,
    patience: Duration,
}

impl Read for Patient {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        // More than poll(2) can wait is as good as no end.
        match poll(&mut fds, PollTimeout::try_from(self.patience).unwrap_or(PollTimeout::MAX))? {
            0 => {
                let why = format!("nothing came for {} seconds", self.patience.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
            _ => Ok(nix::unistd::read(&self.fd, buf)?),
        }
    }
}
