//! Backends: where candidates come from.
//!
//! | name | is |
//! |---|---|
//! | `scan` | the block devices of this host, from sysfs; the default |
//! | `file` | the inventory of the settings' `storage_file` |
//! | `none` | no inventory |
//! | `exec:NAME` | the program NAME in `/usr/lib/sm/backends`, for an external database |
//!
//! A program gets one JSON object on its standard input, `{"version":1,"request":"candidates","host":"…"}`, and answers one on its
//! standard output within 30 s: `{"candidates":[{"class":"lvm","host":"node1","dev":"/dev/…","size":1,"rest":{"tag":"a"}}]}`. A
//! program that takes longer, or writes more than 16 MiB, is killed with its process group.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::candidate::{self, Candidate};
use super::refuse_untrusted;
use super::settings::Settings;
use crate::error::{Error, Result};
use crate::sys::tool::Tool;
use crate::sys::{run_dir, small};

/// Bytes of the longest inventory.
const LONGEST_INVENTORY: u64 = 16 << 20;
/// How long a program may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// A source of candidates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    Scan,
    File(PathBuf),
    None,
    Exec { name: String, program: PathBuf },
}

/// A backend as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub name: String,
    pub description: String,
    pub selected: bool,
}

impl Backend {
    /// The backend that the settings select.
    ///
    /// # Errors
    /// [`Error::NoBackend`] with those that there are.
    pub fn selected(settings: &Settings) -> Result<Backend> {
        match settings.backend.as_str() {
            "scan" => Ok(Backend::Scan),
            "file" => Ok(Backend::File(settings.storage_file.clone())),
            "none" => Ok(Backend::None),
            name => {
                let known = programs();
                let program = name.strip_prefix("exec:").filter(|it| known.iter().any(|known| known == it));
                program
                    .map(|it| Backend::Exec { name: it.to_owned(), program: run_dir::backends().join(it) })
                    .ok_or_else(|| Error::NoBackend {
                        name: name.to_owned(),
                        known: all(settings).into_iter().map(|known| known.name).collect(),
                    })
            }
        }
    }

    /// The name in the settings.
    pub fn name(&self) -> String {
        match self {
            Backend::Scan => "scan".to_owned(),
            Backend::File(_) => "file".to_owned(),
            Backend::None => "none".to_owned(),
            Backend::Exec { name, .. } => format!("exec:{name}"),
        }
    }

    /// The media of the inventory; none for `scan` and `none`, which have no inventory. `size`: reads a size in bytes.
    ///
    /// # Errors
    /// [`Error::BadLine`] with the line of the inventory; [`Error::Io`] if it cannot be read; [`Error::Tool`] and
    /// [`Error::Damaged`] of a program.
    pub fn inventory(&self, host: &str, size: fn(&str) -> Result<u64>) -> Result<Vec<Candidate>> {
        match self {
            Backend::Scan | Backend::None => Ok(Vec::new()),
            Backend::File(path) => {
                let text = small::read_text(path, LONGEST_INVENTORY).map_err(Error::io("read the inventory", path))?;
                candidate::parse(&text, size).map_err(|misfit| Error::BadLine {
                    path: path.clone(),
                    line: misfit.line,
                    what: misfit.what,
                })
            }
            Backend::Exec { program, .. } => ask(program, host, DEADLINE),
        }
    }
}

/// Every backend of this host.
pub fn all(settings: &Settings) -> Vec<Known> {
    let built_in = [
        ("scan", "the block devices of this host"),
        ("file", "the inventory in storage_file"),
        ("none", "no inventory: models name each device"),
    ];
    let built_in = built_in.into_iter().map(|(name, description)| (name.to_owned(), description.to_owned()));
    let program = |name: String| (format!("exec:{name}"), format!("a program in {}", run_dir::backends().display()));
    let programs = programs().into_iter().map(program);
    let known = built_in.chain(programs);
    known.map(|(name, description)| Known { selected: name == settings.backend, name, description }).collect()
}

/// The programs that are there, by name.
fn programs() -> Vec<String> {
    let entries = fs::read_dir(run_dir::backends()).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let plain = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let mut names: Vec<String> = names.filter(|name| !name.starts_with(['.', '-'])).filter(plain).collect();
    names.sort();
    names
}

#[derive(Deserialize)]
struct Answer {
    candidates: Vec<Candidate>,
}

fn ask(program: &PathBuf, host: &str, patience: Duration) -> Result<Vec<Candidate>> {
    let meta = fs::metadata(program).map_err(Error::io("examine", program))?;
    refuse_untrusted(program, meta.uid(), meta.mode())?;
    let request = json!({"version": 1, "request": "candidates", "host": host}).to_string();
    let tool = Tool::new(&program.display().to_string()).input(request.as_bytes())?;
    let output = tool.at_most(LONGEST_INVENTORY as usize).deadline(patience).run()?;
    let answer: Answer = serde_json::from_str(&output.stdout).map_err(|e| Error::Damaged {
        path: program.clone(),
        what: format!("its answer is no list of devices: {e}"),
    })?;
    Ok(answer.candidates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Instant;

    /// A program that writes its own process and one that it starts into the file beside it, and then does `body`.
    fn program(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("db");
        let text = format!("#!/bin/sh\ncat > /dev/null\nsleep 300 &\necho $$ $! > {}/pids\n{body}\n", dir.display());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Whether a process is there and is no zombie, which waits for the init of the host.
    fn runs(pid: u32) -> bool {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && !line.contains("zombie"))
    }

    #[test]
    fn a_program_that_writes_without_end_or_takes_too_long_is_killed_with_what_it_started() {
        let too_much = "wrote more than 16MiB to its standard output: first";
        for (body, patience, why) in [
            ("yes", 300, too_much),
            ("kill $!; head -c 16777217 /dev/zero", 300, too_much),
            ("sleep 300", 1, "did not end within 1 s: first"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = program(dir.path(), &format!("echo first >&2; {body}"));
            let refused = ask(&path, "node1", Duration::from_secs(patience)).unwrap_err();
            let said = crate::error::one_line(&refused);
            assert!(matches!(refused, Error::Tool { .. }), "{refused:?}");
            assert_eq!(said, format!("{} {why}", path.display()));
            let pids = fs::read_to_string(dir.path().join("pids")).unwrap();
            let begun = Instant::now();
            for pid in pids.split_whitespace().map(|pid| pid.parse().unwrap()) {
                while runs(pid) {
                    assert!(begun.elapsed() < Duration::from_secs(60), "{body}: {pid} runs still");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    #[test]
    fn an_answer_is_read_whole_and_what_is_left_running_does_not_hang_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "");
        let of = |n: usize| format!(r#"{{"class":"file","host":"node1","dev":"/srv/{n}","size":null,"rest":{{}}}}"#);
        let answer = format!(r#"{{"candidates":[{}]}}"#, (0..20_000).map(of).collect::<Vec<_>>().join(","));
        fs::write(dir.path().join("answer"), answer).unwrap();
        program(dir.path(), &format!("cat {}/answer; kill $!", dir.path().display()));
        let found = ask(&path, "node1", DEADLINE).unwrap();
        assert_eq!((found.len(), found[19_999].dev.as_str()), (20_000, "/srv/19999"));
    }
}
