//! The doors: one per protocol. Here argv decides which; only this module writes to stdout.

pub mod cli;
pub mod doctor;
pub mod host;
pub mod plugin;
pub mod sexp;
pub mod size;
pub mod smapiv1;
pub mod smapiv3;
pub mod stream;
pub mod table;
pub mod v1;
pub mod xapi;
pub mod xmlrpc;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal, signal};

use crate::datapath;
use crate::error::{Error, one_line};
use crate::sr::{DRIVERS, Driver};
use crate::sys::{stdio, syslog};

/// The output and the exit status with which a door ends.
#[derive(Default)]
pub struct Answer {
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub status: u8,
}

impl Answer {
    /// This answer and the next. The first failure decides on the status.
    fn and(mut self, next: Answer) -> Answer {
        self.stdout.extend(next.stdout);
        self.stderr.push_str(&next.stderr);
        let status = if self.status == 0 { next.status } else { self.status };
        Answer { status, ..self }
    }
}

/// `main` of a driver's executable.
pub fn driver_main(driver: &'static Driver) -> ExitCode {
    if let Some(status) = datapath::main() {
        return status;
    }
    outlive_limits();
    speak(serve(driver, std::env::args_os().collect()))
}

fn serve(driver: &'static Driver, args: Vec<OsString>) -> Answer {
    match smapiv1::is_meant(&args) {
        true => smapiv1::serve(driver, &args),
        false => guarded(driver.executable, || v1::driver(driver, args), v1::of_panic),
    }
}

/// `main` of `sm`. Called by a driver's name (a link), it is that driver.
pub fn sm_main() -> ExitCode {
    if let Some(status) = datapath::main() {
        return status;
    }
    outlive_limits();
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(answer) = smapiv3::serve(&args).or_else(|| plugin::serve(&args)) {
        return speak(answer);
    }
    let called = args.first().map(std::path::Path::new).and_then(|path| path.file_name());
    match DRIVERS.iter().find(|d| called == Some(d.executable.as_ref())) {
        Some(driver) => driver_main(driver),
        None => speak(guarded("sm", || v1::sm(args), v1::of_panic)),
    }
}

/// A write beyond the limit on the size of files (`ulimit -f`) is an error like any other, and not the end without a word.
fn outlive_limits() {
    // SAFETY: no handler is installed.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// An answer even after a panic: of a process that died of one, status 101, an agent would believe that there is no such
/// VDI, and xapi discards the reason. `name`: how the log calls us.
fn guarded(name: &str, make: impl FnOnce() -> Answer, of_panic: impl FnOnce(&str) -> Answer) -> Answer {
    thread_local!(static PANIC: RefCell<String> = const { RefCell::new(String::new()) });
    panic::set_hook(Box::new(|info| PANIC.with_borrow_mut(|text| *text = info.to_string().replace('\n', " "))));
    panic::catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| {
        let text = PANIC.take();
        syslog::write(&format!("{name}: {text}"));
        of_panic(&text)
    })
}

/// A document and nothing else.
fn said(document: String) -> Answer {
    Answer { stdout: document.into_bytes(), stderr: String::new(), status: 0 }
}

fn speak(answer: Answer) -> ExitCode {
    let mut status = answer.status;
    if let Err(e) = stdio::write_output(&answer.stdout) {
        // A caller that closed the pipe does not want to know. Any other caller must not take half for all.
        let closed = e.kind() == std::io::ErrorKind::BrokenPipe;
        let error = Error::io("write the answer to", "standard output")(e);
        let (number, name) = v1::status::exit_status(&error);
        if !closed {
            let _ = writeln!(std::io::stderr(), "{name}: {}", one_line(&error));
        }
        status = status.max(number);
    }
    let _ = std::io::stderr().write_all(answer.stderr.as_bytes());
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::file;

    static BROKEN: Driver = Driver { open: |_, _, _| panic!("boom\nand bang"), ..file::DRIVER };

    #[test]
    fn a_panic_is_one_line_and_not_the_status_of_another_failure() {
        let sr = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
        let answer = serve(&BROKEN, ["FileSR", "vdi_get_params", "-d", "/nowhere", sr, sr].map(OsString::from).into());
        assert_eq!((answer.status, answer.stdout.as_slice()), (5, &b""[..]));
        assert!(answer.stderr.starts_with("EIO: ") && answer.stderr.ends_with("boom and bang\n"), "{}", answer.stderr);
        assert_eq!(answer.stderr.lines().count(), 1);
        let _ = panic::take_hook();
    }
}
