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
//! standard output within 30 s: `{"candidates":[{"class":"lvm","host":"node1","dev":"/dev/…","size":1,"rest":{"tag":"a"}}]}`.

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

/// How long a program may take.
/// Bytes of the longest inventory.
const LONGEST_INVENTORY: u64 = 16 << 20;
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
    pub description: &'static str,
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
            Backend::Exec { program, .. } => ask(program, host),
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
    let built_in = built_in.into_iter().map(|(name, description)| (name.to_owned(), description));
    let programs = programs().into_iter().map(|name| (format!("exec:{name}"), "a program in /usr/lib/sm/backends"));
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

fn ask(program: &PathBuf, host: &str) -> Result<Vec<Candidate>> {
    let meta = fs::metadata(program).map_err(Error::io("examine", program))?;
    refuse_untrusted(program, meta.uid(), meta.mode())?;
    let request = json!({"version": 1, "request": "candidates", "host": host}).to_string();
    let output = Tool::new(&program.display().to_string()).input(request.as_bytes())?.deadline(DEADLINE).run()?;
    let answer: Answer = serde_json::from_str(&output.stdout).map_err(|e| Error::Damaged {
        path: program.clone(),
        what: format!("its answer is no list of devices: {e}"),
    })?;
    Ok(answer.candidates)
}
