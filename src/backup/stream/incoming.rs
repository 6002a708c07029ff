//! What comes through the pipe: the lines of a stream, and blocks that are compared with their digests.

use std::io::{self, Read};
use std::path::PathBuf;

use super::super::BLOCK;
use super::super::map::{Digest, digest, unhex};
use super::super::name::{RunId, SetName};
use super::{LONGEST_LINE, VERSION, number};
use crate::error::{Error, Result};

/// The line of a run.
pub(super) struct Head {
    pub run: RunId,
    pub sha256: Digest,
    /// The first block.
    pub from: u64,
    /// Of all blocks from there on.
    pub bytes: u64,
}

/// The pipe.
pub(super) struct Stream {
    from: Box<dyn Read + Send>,
    name: String,
    buffer: Vec<u8>,
    /// Of the last block.
    digest: Digest,
}

impl Stream {
    pub(super) fn new(from: Box<dyn Read + Send>, name: &str) -> Stream {
        Stream { from, name: name.to_owned(), buffer: vec![0; BLOCK as usize], digest: Digest::default() }
    }

    /// Its name in errors.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The set that it is about: its first two lines.
    pub(super) fn set(&mut self) -> Result<SetName> {
        if self.line()? != VERSION {
            return Err(self.wrong(&format!("is no stream of `sm backup send` that this release knows ({VERSION})")));
        }
        let line = self.line()?;
        let set = line.strip_prefix("set ").and_then(|set| set.parse::<SetName>().ok());
        set.ok_or_else(|| self.wrong("names no set"))
    }

    /// The run that comes next; `None` at the end.
    pub(super) fn run(&mut self) -> Result<Option<Head>> {
        let line = self.line()?;
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["done"] => Ok(None),
            ["run", run, sha256, from, bytes] => {
                match (run.parse::<RunId>(), unhex(sha256), number(from), number(bytes)) {
                    (Ok(run), Some(sha256), Some(from), Some(bytes)) => Ok(Some(Head { run, sha256, from, bytes })),
                    _ => Err(self.wrong("has a line about a run that cannot be read")),
                }
            }
            _ => Err(self.wrong("has neither a run nor an end where one should be")),
        }
    }

    /// The digest of the block that [`Stream::block`] answered last.
    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The block that [`Stream::block`] answered last, which had so many bytes.
    pub(super) fn taken(&self, length: usize) -> &[u8] {
        &self.buffer[..length]
    }

    /// An error about what came.
    pub(super) fn wrong(&self, what: &str) -> Error {
        Error::NotVerified { path: PathBuf::from(&self.name), what: what.to_owned() }
    }

    fn failed(&self, e: io::Error) -> Error {
        let e = match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                let why = "it ends before all was received; `sm backup receive --resume` tells how to go on";
                io::Error::new(e.kind(), why)
            }
            _ => e,
        };
        Error::io("read", &self.name)(e)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            self.from.read_exact(&mut byte).map_err(|e| self.failed(e))?;
            match byte[0] {
                b'\n' => break,
                byte if line.len() < LONGEST_LINE => line.push(byte),
                _ => return Err(self.wrong("has a line that is too long")),
            }
        }
        String::from_utf8(line).map_err(|_| self.wrong("has a line that is no text"))
    }

    /// The next block, of `most` bytes at most; `None`: the run has no more.
    pub(super) fn block(&mut self, most: u64) -> Result<Option<&[u8]>> {
        let line = self.line()?;
        if line == "end" {
            return Ok(None);
        }
        let words: Vec<&str> = line.split(' ').collect();
        let &["block", length, sha256] = words.as_slice() else {
            return Err(self.wrong("has neither a block nor the end of a run where one should be"));
        };
        let (Some(length), Some(sha256)) = (number(length), unhex(sha256)) else {
            return Err(self.wrong("has a line about a block that cannot be read"));
        };
        if length > BLOCK || length > most {
            return Err(self.wrong("has a longer block than there can be"));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.from.read_exact(&mut buffer[..length as usize]);
        self.buffer = buffer;
        read.map_err(|e| self.failed(e))?;
        self.digest = digest(&self.buffer[..length as usize]);
        match self.digest == sha256 {
            true => Ok(Some(&self.buffer[..length as usize])),
            false => Err(self.wrong("has a block that is not what its digest says")),
        }
    }
}
