//! Standard output, of which the Rust runtime hides two faults.
//!
//! 1. Before `main`, the Rust runtime opens /dev/null in place of each of the descriptors 0 to 2 that is closed. Output
//!    that is written there is lost, and the write succeeds. A caller that passes /dev/null itself wants just that, and
//!    later the two cannot be told apart. So the C library calls [`look`] before the runtime starts.
//! 2. [`std::io::Stdout`] takes a descriptor that cannot be written to (EBADF) for one that swallows everything. So bytes are
//!    written by the descriptor itself.

use std::io::{self, stdout};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::write;

static OUTPUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

// SAFETY: the C library calls the functions of this section one after the other before any thread is started. `look` needs
// nothing of the Rust runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_THE_RUNTIME: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: F_GETFD takes no pointer and changes nothing.
    let closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
    OUTPUT_WAS_CLOSED.store(closed, Ordering::Relaxed);
}

/// Refuses to write to a standard output that was closed when the process started.
///
/// # Errors
/// An error whose text says so.
pub fn assert_output() -> io::Result<()> {
    match OUTPUT_WAS_CLOSED.load(Ordering::Relaxed) {
        true => Err(io::Error::other("it is closed")),
        false => Ok(()),
    }
}

/// Writes to standard output. A caller that has nothing to say needs none.
///
/// # Errors
/// The system's error if a write fails. An output that is closed is an error, too.
pub fn write_output(mut bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    assert_output()?;
    while !bytes.is_empty() {
        match write(stdout().as_fd(), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
