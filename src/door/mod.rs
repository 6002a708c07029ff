//! The doors: one per protocol. Here argv decides which; only this module writes to stdout.

pub mod plugin;
pub mod sexp;
pub mod size;
pub mod smapiv1;
pub mod stream;
pub mod table;
pub mod v1;
pub mod xmlrpc;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use crate::datapath;
use crate::sr::{DRIVERS, Driver};
use crate::sys::syslog;

/// What a door has to say when it is done.
pub struct Answer {
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub status: u8,
}

/// `main` of a driver's executable.
pub fn driver_main(driver: &'static Driver) -> ExitCode {
    if let Some(status) = datapath::main() {
        return status;
    }
    let args: Vec<OsString> = std::env::args_os().collect();
    speak(if smapiv1::is_meant(&args) { smapiv1::serve(driver, &args) } else { v1::driver(driver, args) })
}

/// `main` of `sm`. Called by a driver's name (a link), it is that driver.
pub fn sm_main() -> ExitCode {
    if let Some(status) = datapath::main() {
        return status;
    }
    let args: Vec<OsString> = std::env::args_os().collect();
    if plugin::is_meant(&args) {
        return speak(plugin::serve(&args));
    }
    let called = args.first().map(std::path::Path::new).and_then(|path| path.file_name());
    match DRIVERS.iter().find(|d| called == Some(d.executable.as_ref())) {
        Some(driver) => driver_main(driver),
        None => speak(v1::sm(args)),
    }
}

/// An answer to xapi: a document and exit status 0 even after a panic, for of any other status it discards the reason.
/// `name`: how the log calls us.
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
    let mut out = std::io::stdout().lock();
    if let Err(e) = out.write_all(&answer.stdout).and_then(|()| out.flush()) {
        // The caller that closed the pipe does not want to know; anyone else must not take half for all.
        if e.kind() != std::io::ErrorKind::BrokenPipe {
            let _ = writeln!(std::io::stderr(), "EIO: cannot write the answer: {e}");
        }
        status = status.max(5);
    }
    let _ = std::io::stderr().write_all(answer.stderr.as_bytes());
    ExitCode::from(status)
}
