//! The output of a program that may write without end: the last of it is kept, or all of it up to a bound.
//!
//! A thread takes what comes, so the program never waits for its reader for long. The memory is bounded. What the program leaves
//! behind after its end has no reader any more.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes of a pipe at most, as far as the kernel makes one without being asked: pipe(7).
const PIPE: usize = 1 << 20;

/// The reader of an output of a program.
pub struct Reader {
    thread: JoinHandle<Captured>,
    /// Closed to tell the thread that the program has ended.
    end: PipeWriter,
}

/// What was kept of an output.
#[derive(Default)]
pub struct Captured {
    pub text: String,
    /// The bytes that were allowed, if the program wrote more.
    pub exceeds: Option<usize>,
}

impl Reader {
    /// Begins to read what is written into the answered pipe. `most`: bytes that are kept, the last ones.
    ///
    /// # Errors
    /// The system's error if there is no descriptor or no thread left.
    pub fn last(most: usize) -> io::Result<(Reader, PipeWriter)> {
        Reader::begin(most, None)
    }

    /// Begins to read what is written into the answered pipe. After `most` bytes, calls `is_full` and reads no more.
    ///
    /// # Errors
    /// As [`Reader::last`].
    pub fn at_most(most: usize, is_full: impl FnOnce() + Send + 'static) -> io::Result<(Reader, PipeWriter)> {
        Reader::begin(most, Some(Box::new(is_full)))
    }

    fn begin(most: usize, is_full: Option<Box<dyn FnOnce() + Send>>) -> io::Result<(Reader, PipeWriter)> {
        let ((mut from, to), (ended, end)) = (io::pipe()?, io::pipe()?);
        let is_bounded = is_full.is_some();
        let work = move || {
            let (bytes, is_cut) = read(&mut from, &ended, most, is_bounded);
            // `from` is open until that is told: without a reader the program would end, and leave running what it started.
            let exceeds = is_full.filter(|_| is_cut).map(|tell| {
                tell();
                most
            });
            let text = String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
            let text = if is_cut && !is_bounded { format!("[...] {text}") } else { text };
            Captured { text, exceeds }
        };
        Ok((Reader { thread: std::thread::Builder::new().spawn(work)?, end }, to))
    }

    /// What was kept. The program has ended.
    pub fn end(self) -> Captured {
        drop(self.end);
        self.thread.join().unwrap_or_default()
    }
}

/// The last `most` bytes, and whether there were more. If that is bounded, reading ends there.
fn read(from: &mut PipeReader, ended: &PipeReader, most: usize, is_bounded: bool) -> (Vec<u8>, bool) {
    let (mut kept, mut is_cut, mut buffer, mut left) = (Vec::new(), false, vec![0; 64 << 10], None);
    loop {
        // After the end of the program, what is in the pipe by then.
        let wait = if left.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE };
        let mut polled = [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        if let Err(errno) = poll(&mut polled, wait)
            && errno != nix::errno::Errno::EINTR
        {
            break;
        }
        let [is_there, has_ended] = polled.map(|it| it.any().unwrap_or(false));
        if has_ended {
            left.get_or_insert(PIPE);
        }
        match (is_there, left) {
            (true, Some(0)) | (false, Some(_)) => break,
            (false, None) => continue,
            (true, _) => {}
        }
        let most_now = left.unwrap_or(buffer.len()).min(buffer.len());
        match from.read(&mut buffer[..most_now]) {
            Ok(0) => break,
            Ok(length) => {
                kept.extend_from_slice(&buffer[..length]);
                left = left.map(|left| left - length);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        if is_bounded && kept.len() > most {
            return (kept, true);
        }
        if kept.len() > 2 * most {
            kept.drain(..kept.len() - most);
            is_cut = true;
        }
    }
    if kept.len() > most {
        kept.drain(..kept.len() - most);
        is_cut = true;
    }
    (kept, is_cut)
}
