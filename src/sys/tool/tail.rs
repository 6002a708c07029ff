//! The output of a program that may write without end, of which the last is kept.
//!
//! A thread takes what comes, so the program never waits for its reader for long and is not ended by what it writes. The memory is
//! bounded. What the program leaves behind after its end has no reader any more.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes of a pipe at most, as far as the kernel makes one without being asked: pipe(7).
const PIPE: usize = 1 << 20;

/// The reader of the outputs of one program.
pub struct Reader {
    thread: JoinHandle<Vec<u8>>,
    /// Closed to tell the thread that the program has ended.
    end: PipeWriter,
}

impl Reader {
    /// Begins to read what is written into the answered pipe. `most`: bytes that are kept.
    ///
    /// # Errors
    /// The system's error if there is no descriptor or no thread left.
    pub fn begin(most: usize) -> io::Result<(Reader, PipeWriter)> {
        let ((from, to), (ended, end)) = (io::pipe()?, io::pipe()?);
        let thread = std::thread::Builder::new().spawn(move || read(from, &ended, most))?;
        Ok((Reader { thread, end }, to))
    }

    /// The last that the program wrote. The program has ended.
    pub fn end(self) -> String {
        drop(self.end);
        let bytes = self.thread.join().unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }
}

fn read(mut from: PipeReader, ended: &PipeReader, most: usize) -> Vec<u8> {
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
        if kept.len() > 2 * most {
            kept.drain(..kept.len() - most);
            is_cut = true;
        }
    }
    if kept.len() > most {
        kept.drain(..kept.len() - most);
        is_cut = true;
    }
    if is_cut {
        kept.splice(..0, *b"[...] ");
    }
    kept
}
