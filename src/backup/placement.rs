//! `sm backup import --placement PROGRAM`: a program of the administrator chooses the SR of each disk.
//!
//! The program gets one argument, the name of a file with a [`Question`], and writes an [`Answer`] to its standard output. Both are
//! JSON. The file is in memory alone and is gone with this process, so a kill leaves none.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::{Call, SetName};
use crate::error::{Error, Result, one_line};
use crate::sys::hooks;
use crate::types::SrUuid;

const VERSION: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the longest answer.
const LONGEST: usize = 256 << 10;
/// Characters of an answer that an error shows.
const MOST_SHOWN: usize = 500;

/// What the program is asked.
#[derive(Serialize)]
struct Question<'a> {
    version: u32,
    /// The SRs for disks that can be written to now.
    srs: Vec<Choice>,
    request: Request<'a>,
}

/// An SR that a disk may go to.
#[derive(Serialize)]
struct Choice {
    uuid: SrUuid,
    r#type: &'static str,
    /// Bytes.
    size: u64,
    /// Bytes that are not free.
    used: u64,
    /// None yet.
    tags: [&'static str; 0],
}

#[derive(Serialize)]
struct Request<'a> {
    /// The name of the set.
    name: &'a SetName,
    disks: &'a [Wish],
    /// Bytes of all disks.
    space_total: u64,
}

/// A disk that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wish {
    /// In the export.
    pub index: usize,
    /// Bytes of the disk.
    pub size: u64,
}

/// What the program says. Fields that are not known are ignored.
#[derive(Deserialize)]
struct Answer {
    success: bool,
    /// Why not.
    #[serde(default)]
    info: String,
    /// The UUID of an SR for each disk, in the order of the question.
    #[serde(default)]
    result: Vec<String>,
}

/// Asks a program for the SR of each disk.
///
/// # Errors
/// [`Error::Invalid`] with its words, if it fails, takes longer than 60 seconds, or answers anything else than an SR of the question
/// for each disk; also if others than root and this user can change it.
pub fn ask(call: &Call, program: &Path, set: &SetName, disks: &[Wish]) -> Result<Vec<SrUuid>> {
    let refused =
        |why: String| Error::Invalid { what: "--placement", value: program.display().to_string(), expected: why };
    let program = std::fs::canonicalize(program).map_err(|e| refused(e.to_string()))?;
    let (srs, unfit) = choices(call)?;
    if srs.is_empty() {
        return Err(refused(format!("no SR of this host can take a disk{unfit}")));
    }
    let known: Vec<SrUuid> = srs.iter().map(|choice| choice.uuid).collect();
    let space_total = disks.iter().fold(0, |sum: u64, disk| sum.saturating_add(disk.size));
    let question = Question { version: VERSION, srs, request: Request { name: set, disks, space_total } };
    let text = serde_json::to_vec(&question).expect("a question is plain data");
    let file = in_memory(&text).map_err(|e| refused(format!("there is no memory for its question: {e}")))?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let output = hooks::answer_of(&program, &path, PATIENCE, LONGEST).map_err(|error| refused(one_line(&error)))?;
    let said = || output.chars().take(MOST_SHOWN).collect::<String>();
    parse(&output, disks.len(), &known).map_err(|why| refused(format!("{why}; it answered {:?}", said())))
}

fn in_memory(bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(memfd_create("placement", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

/// The SRs that can take disks now, and clauses about the others.
fn choices(call: &Call) -> Result<(Vec<Choice>, String)> {
    let (mut fit, mut unfit) = (Vec::new(), String::new());
    for sr in call.host.known()? {
        let look = || {
            let session = call.host.open(sr)?;
            let space = session.sr_get_space(&call.context())?;
            Ok((session.content_type() == "raw").then(|| Choice {
                uuid: sr,
                r#type: session.sr_type(),
                size: space.size,
                used: space.used(),
                tags: [],
            }))
        };
        match look() {
            Ok(choice) => fit.extend(choice),
            Err(error) => unfit += &format!("; SR {sr}: {}", one_line(&error)),
        }
    }
    Ok((fit, unfit))
}

/// The SRs of an answer, which may be anything.
fn parse(text: &str, disks: usize, known: &[SrUuid]) -> Result<Vec<SrUuid>, String> {
    let answer: Answer = serde_json::from_str(text).map_err(|e| format!("its answer cannot be read: {e}"))?;
    if !answer.success {
        return Err(format!("it found no place: {:?}", answer.info));
    }
    if answer.result.len() != disks {
        return Err(format!("its result has {} SRs for {disks} disks", answer.result.len()));
    }
    let sr = |word: &String| {
        let sr = word.parse::<SrUuid>().ok().filter(|sr| known.contains(sr));
        sr.ok_or_else(|| format!("its result has {word:?}, which is the UUID of no SR that it was offered"))
    };
    answer.result.iter().map(sr).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_sr_for_each_disk_is_an_answer() {
        let (one, two) = (SrUuid::random(), SrUuid::random());
        let good = format!(r#"{{"success":true,"info":"ok","more":1,"result":["{two}","{one}"]}}"#);
        assert_eq!(parse(&good, 2, &[one, two]).unwrap(), [two, one]);
        for (bad, why) in [
            ("", "cannot be read"),
            ("{}", "cannot be read"),
            ("[]", "cannot be read"),
            (r#"{"success":"true"}"#, "cannot be read"),
            (r#"{"success":false,"info":"all full"}"#, "all full"),
            (r#"{"success":true}"#, "0 SRs for 2 disks"),
            (r#"{"success":true,"result":["x","y"]}"#, "\"x\""),
            (&good, "no SR that it was offered"),
            (&format!("{good} trailing"), "cannot be read"),
        ] {
            let said = parse(bad, 2, &[one]).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }
}
