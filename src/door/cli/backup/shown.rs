//! The answers of `sm backup` as tables, and as documents. `docs/json.md` has the keys of JSON.

use serde::Serialize;

use crate::backup::import::Imported;
use crate::backup::list::Line;
use crate::backup::manifest::{DiskOf, Manifest};
use crate::backup::retain::Keep;
use crate::backup::set::{Member, Set};
use crate::backup::verify::{Depth, Verified};
use crate::backup::{RunId, SetName, StoreName};
use crate::door::size::human;
use crate::door::table;
use crate::types::{SrUuid, VdiUuid, printable};

/// The answer of a command, and what did not go as it should and made nothing fail.
pub struct Reply {
    pub what: What,
    pub warnings: Vec<String>,
}

pub enum What {
    /// Nothing.
    Done,
    /// The run that was made.
    Run(RunId),
    /// As `Run`, and the older runs that went.
    Exported {
        run: RunId,
        removed: Vec<RunId>,
    },
    /// The runs that came.
    Received(Vec<RunId>),
    /// What a receiver has, in a word for the sender.
    Have(String),
    /// What would be done.
    Plan(Vec<String>),
    /// `is_one`: one disk was asked for, and its UUID is the answer as of `vdi_create`.
    Imported {
        made: Vec<Imported>,
        is_one: bool,
    },
    List(Vec<Line>),
    Export(Box<Manifest>, StoreName),
    /// A set without exports.
    Set(SetName, Set),
    /// The export that is what its manifest says, as far as it was looked at.
    Whole(Box<Verified>, Depth),
    /// The stores that had exports.
    Removed(Vec<StoreName>),
    /// The runs that were removed.
    Pruned(Vec<(StoreName, RunId)>),
}

impl Reply {
    pub fn done() -> Reply {
        Reply { what: What::Done, warnings: Vec::new() }
    }
}

#[derive(Serialize)]
pub struct Export<'a> {
    name: &'a str,
    store: &'a str,
    run: &'a str,
    timestamp: Option<&'a str>,
    disks: usize,
    virtual_size: u64,
    stored: u64,
    compression: Option<String>,
    encryption: Option<&'a str>,
    /// The run that the export is an increment on.
    parent: Option<&'a str>,
    current: bool,
    fault: &'a str,
}

impl<'a> From<&'a Line> for Export<'a> {
    fn from(line: &'a Line) -> Export<'a> {
        let manifest = line.manifest.as_ref();
        let disks = manifest.map_or(&[][..], |manifest| &manifest.disks);
        Export {
            name: line.set.as_str(),
            store: line.store.as_str(),
            run: line.run.as_str(),
            timestamp: manifest.map(|manifest| manifest.timestamp.as_str()),
            disks: disks.len(),
            // A hostile manifest may have any numbers.
            virtual_size: disks.iter().fold(0, |sum: u64, disk| sum.saturating_add(disk.virtual_size)),
            stored: line.stored,
            compression: manifest.map(|manifest| manifest.compression.to_string()),
            encryption: encryption(manifest),
            parent: manifest.and_then(|manifest| manifest.parent.as_ref()).map(|parent| parent.run.as_str()),
            current: line.current,
            fault: &line.fault,
        }
    }
}

/// What an export is encrypted by.
fn encryption(manifest: Option<&Manifest>) -> Option<&str> {
    manifest?.encryption.as_ref().map(|encryption| encryption.algorithm.as_str())
}

#[derive(Serialize)]
pub struct Made {
    index: usize,
    from: VdiUuid,
    sr: SrUuid,
    uuid: VdiUuid,
}

#[derive(Serialize)]
pub struct Gone<'a> {
    store: &'a str,
    run: &'a str,
}

impl Reply {
    /// Whether the answer is one word for another command.
    pub fn is_word(&self) -> bool {
        matches!(self.what, What::Have(_))
    }
}

/// A document; the same for JSON and s-expressions.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Body<'a> {
    Run { run: &'a str },
    Exported { run: &'a str, removed: &'a [RunId] },
    Received { runs: &'a [RunId] },
    Have { have: &'a str },
    Plan { plan: &'a [String] },
    Imported { disks: Vec<Made> },
    List { exports: Vec<Export<'a>> },
    Export { store: &'a str, export: &'a Manifest },
    Set { name: &'a str, disks: &'a [Member], metadata: Option<&'a std::path::Path> },
    Whole { name: &'a str, run: &'a str, deep: bool },
    Removed { stores: &'a [StoreName] },
    Pruned { removed: Vec<Gone<'a>> },
}

impl<'a> Body<'a> {
    /// The document of an answer; `None` if there is nothing to say.
    pub fn of(reply: &'a Reply) -> Option<Body<'a>> {
        Some(match &reply.what {
            What::Done => return None,
            What::Run(run) => Body::Run { run: run.as_str() },
            What::Exported { run, removed } => Body::Exported { run: run.as_str(), removed },
            What::Received(runs) => Body::Received { runs },
            What::Have(have) => Body::Have { have },
            What::Plan(plan) => Body::Plan { plan },
            What::Imported { made, .. } => Body::Imported {
                disks: made.iter().map(|it| Made { index: it.index, from: it.from, sr: it.sr, uuid: it.vdi }).collect(),
            },
            What::List(lines) => Body::List { exports: lines.iter().map(Export::from).collect() },
            What::Export(manifest, store) => Body::Export { store: store.as_str(), export: manifest },
            What::Set(name, set) => {
                Body::Set { name: name.as_str(), disks: &set.disks, metadata: set.metadata.as_deref() }
            }
            What::Whole(verified, depth) => {
                let Manifest { name, run, .. } = &verified.manifest;
                Body::Whole { name: name.as_str(), run: run.as_str(), deep: *depth == Depth::Blocks }
            }
            What::Removed(stores) => Body::Removed { stores },
            What::Pruned(gone) => Body::Pruned {
                removed: gone.iter().map(|(store, run)| Gone { store: store.as_str(), run: run.as_str() }).collect(),
            },
        })
    }
}

/// The answer for a person.
pub fn table_of(reply: &Reply) -> String {
    let line = |text: &str| format!("{}\n", printable(text));
    match &reply.what {
        What::Done => String::new(),
        What::Run(run) | What::Exported { run, .. } => line(run.as_str()),
        What::Received(runs) => runs.iter().map(|run| line(run.as_str())).collect(),
        What::Have(have) => line(have),
        What::Plan(plan) => plan.iter().map(|text| line(text)).collect(),
        What::Imported { made, is_one: true } => made.iter().map(|it| line(&it.vdi.to_string())).collect(),
        What::Imported { made: disks, .. } => {
            let mut rows = vec![["disk", "from", "SR", "VDI"].map(str::to_owned).to_vec()];
            rows.extend(
                disks
                    .iter()
                    .map(|it| vec![it.index.to_string(), it.from.to_string(), it.sr.to_string(), it.vdi.to_string()]),
            );
            table::aligned(&rows, &[0])
        }
        What::List(lines) if lines.is_empty() => "no exports\n".to_owned(),
        What::List(lines) => list(lines),
        What::Export(manifest, store) => export(manifest, store),
        What::Set(name, set) => {
            let mut text = line(&format!("set {name}, which has no export"));
            text.extend(set.disks.iter().map(|disk| line(&format!("  VDI {} on SR {}", disk.vdi, disk.sr))));
            text
        }
        What::Whole(verified, depth) => {
            let Verified { manifest, is_read } = &**verified;
            let found = match (depth, is_read) {
                (Depth::Blocks, _) => "is whole: every block was read",
                (Depth::Files, true) => {
                    "is whole: manifest, maps and sizes were looked at, and the packed images were read"
                }
                (Depth::Files, false) => {
                    "is complete: manifest, maps and sizes were looked at, and no raw image was read; --deep reads every block"
                }
            };
            line(&format!("{} of run {} {found}", manifest.name, manifest.run))
        }
        What::Pruned(gone) if gone.is_empty() => line("nothing to remove"),
        What::Pruned(gone) => {
            gone.iter().map(|(store, run)| line(&format!("removed run {run} from store {store}"))).collect()
        }
        What::Removed(stores) => stores.iter().map(|store| line(&format!("removed from store {store}"))).collect(),
    }
}

fn list(lines: &[Line]) -> String {
    let mut rows = vec![
        ["set", "store", "run", "disks", "virtual", "stored", "packed", "kind", "state"].map(str::to_owned).to_vec(),
    ];
    rows.extend(lines.iter().map(Export::from).map(|it| {
        let state = match (it.fault, it.current) {
            ("", true) => "current",
            ("", false) => "-",
            _ => "broken",
        };
        vec![
            it.name.to_owned(),
            it.store.to_owned(),
            it.run.to_owned(),
            it.disks.to_string(),
            human(it.virtual_size),
            human(it.stored),
            match (it.compression.clone(), it.encryption) {
                (Some(packed), Some(by)) => format!("{packed}, {by}"),
                (packed, _) => packed.unwrap_or_else(|| "-".to_owned()),
            },
            match (&it.compression, it.parent) {
                (None, _) => "-",
                (Some(_), Some(_)) => "increment",
                (Some(_), None) => "full",
            }
            .to_owned(),
            state.to_owned(),
        ]
    }));
    let mut text = table::aligned(&rows, &[3, 4, 5]);
    for it in lines.iter().filter(|it| !it.fault.is_empty()) {
        text.push_str(&format!("{}\n", printable(&format!("{} of run {}: {}", it.set, it.run, it.fault))));
    }
    text
}

/// How many runs stay, in words.
fn kept(keep: &Keep) -> String {
    let runs = if keep.newest == 1 { "the newest run".to_owned() } else { format!("the newest {} runs", keep.newest) };
    let of = |count: usize, period: &str| match count {
        0 => String::new(),
        count => format!(", the newest of each of {count} {period}"),
    };
    runs + &of(keep.daily, "days") + &of(keep.weekly, "weeks")
}

fn export(manifest: &Manifest, store: &StoreName) -> String {
    let pairs = [
        ("set", manifest.name.to_string()),
        ("store", store.to_string()),
        ("run", manifest.run.to_string()),
        ("begun", manifest.timestamp.clone()),
        ("host", manifest.source_host.clone()),
        ("packed", manifest.compression.to_string()),
        (
            "kind",
            manifest.parent.as_ref().map_or_else(|| "full".to_owned(), |of| format!("increment on run {}", of.run)),
        ),
        ("kept", kept(&manifest.keep)),
    ];
    let mut text: String = pairs.iter().map(|(name, value)| format!("{name:<8}{}\n", printable(value))).collect();
    let mut rows = vec![["disk", "VDI", "type", "virtual", "used", "label"].map(str::to_owned).to_vec()];
    rows.extend(manifest.disks.iter().map(|disk: &DiskOf| {
        vec![
            disk.index.to_string(),
            disk.uuid.to_string(),
            disk.vdi_type.to_string(),
            human(disk.virtual_size),
            human(disk.allocated),
            disk.label.clone(),
        ]
    }));
    text.push('\n');
    text.push_str(&table::aligned(&rows, &[0, 3, 4]));
    text
}
