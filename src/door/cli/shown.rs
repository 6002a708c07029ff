//! Answers as tables, s-expressions and JSON. `docs/json.md` has the keys of JSON.

use std::io;

use serde::Serialize;

use super::backup;
use super::layouts_shown::{About, LayoutOf, PlanOf, table_of_layout, table_of_plan};
use super::target;
use crate::apply::tune::{End, Tuned};
use crate::door::doctor::{Trouble, Weight};
use crate::door::size::human;
use crate::door::table;
use crate::door::v1::grammar::OutputFormat;
use crate::door::v1::{answer, json};
use crate::error::{Error, one_line};
use crate::layout::planning::Planned;
use crate::registry::backend::Known;
use crate::registry::facts::Test;
use crate::registry::view::Row;
use crate::sys::run_dir;
use crate::types::printable;

impl Reply {
    /// The format for a program that asks for none.
    pub fn usual_format(&self) -> OutputFormat {
        match self {
            // One word, which a line of the shell takes as it is.
            Reply::Backup(reply) if reply.is_word() => OutputFormat::Table,
            _ => OutputFormat::Sexp,
        }
    }
}

/// The answer of a command.
pub enum Reply {
    /// Nothing.
    Done,
    /// The devices that a backend offers, and the columns of a table of them.
    Devices {
        backend: String,
        rows: Vec<Row>,
        columns: Vec<&'static str>,
        warnings: Vec<String>,
    },
    /// A device, and every test of it.
    Why {
        row: Box<Row>,
        tests: Vec<Test>,
        warnings: Vec<String>,
    },
    Backends(Vec<Known>),
    Backup(backup::shown::Reply),
    Target(target::shown::Reply),
    /// The changes that were made, or that would be made without `dry_run`.
    Changes {
        lines: Vec<String>,
        dry_run: bool,
    },
    /// The steps of a run, and the commands that do what is left.
    Applied {
        lines: Vec<String>,
        next: Vec<String>,
        dry_run: bool,
        warnings: Vec<String>,
    },
    /// A plan; `detailed`: the exit status says whether there is something to do.
    Plan {
        planned: Box<Planned>,
        detailed: bool,
    },
    /// The names of the installed layouts.
    Layouts(Vec<String>),
    /// The text of a file.
    Text(String),
    Layout(Box<About>),
    /// The files of `sm tune`, and what became of each.
    Tuned {
        tuned: Vec<Tuned>,
        dry_run: bool,
    },
    /// What is wrong with this host.
    Doctor(Vec<Trouble>),
}

impl Reply {
    /// The exit status of a command that succeeded.
    pub fn status(&self) -> u8 {
        match self {
            Reply::Plan { planned, detailed: true } if !planned.plan.is_empty() => 2,
            // As sr_check answers.
            Reply::Doctor(found) if found.iter().any(|it| it.weight != Weight::Note) => 5,
            _ => 0,
        }
    }
}

impl Reply {
    /// What did not go as it should, and made nothing fail.
    pub fn warnings(&self) -> &[String] {
        match self {
            Reply::Backup(reply) => &reply.warnings,
            Reply::Devices { warnings, .. } | Reply::Why { warnings, .. } | Reply::Applied { warnings, .. } => warnings,
            _ => &[],
        }
    }

    /// The failure that an answer tells of, if it is one.
    pub fn failure(&self) -> Option<Error> {
        match self {
            Reply::Target(reply) => reply.failure(),
            Reply::Tuned { tuned, .. } => tuned.iter().find_map(|it| match &it.end {
                // The others stand in the answer.
                End::Failed(Error::Io { op, path, source }) => {
                    let source = io::Error::new(source.kind(), source.to_string());
                    Some(Error::Io { op, path: path.clone(), source })
                }
                _ => None,
            }),
            _ => None,
        }
    }
}

/// The columns of a table of devices, in the order of the documentation.
pub const COLUMNS: [&str; 13] = [
    "class",
    "host",
    "dev",
    "size",
    "state",
    "owner",
    "identity",
    "wwid",
    "serial",
    "model",
    "tag",
    "block",
    "rotational",
];

/// The columns of a table if nobody says which.
pub const USUAL: [&str; 5] = ["dev", "size", "state", "owner", "identity"];

/// The columns of an inventory, which may have several hosts and classes.
pub const OF_INVENTORY: [&str; 8] = ["class", "host", "dev", "size", "state", "owner", "tag", "identity"];

#[derive(Serialize)]
struct Device<'a> {
    class: &'a str,
    host: &'a str,
    dev: &'a str,
    size: Option<u64>,
    state: Option<String>,
    owner: &'a str,
    identity: &'a str,
    wwid: &'a str,
    serial: &'a str,
    model: &'a str,
    tag: &'a str,
    block: Option<u32>,
    rotational: Option<bool>,
}

impl<'a> From<&'a Row> for Device<'a> {
    fn from(row: &'a Row) -> Device<'a> {
        Device {
            class: row.class.word(),
            host: &row.host,
            dev: &row.dev,
            size: row.size,
            state: row.state.as_ref().map(ToString::to_string),
            owner: &row.owner,
            identity: &row.identity,
            wwid: &row.wwid,
            serial: &row.serial,
            model: &row.model,
            tag: &row.tag,
            block: row.block,
            rotational: row.rotational,
        }
    }
}

#[derive(Serialize)]
struct TestOf<'a> {
    test: &'a str,
    passed: Option<bool>,
    found: &'a str,
    state: Option<String>,
}

#[derive(Serialize)]
struct BackendOf<'a> {
    name: &'a str,
    description: &'a str,
    selected: bool,
}

#[derive(Serialize)]
struct TunedOf<'a> {
    file: String,
    value: &'a str,
    before: Option<&'a str>,
    state: &'static str,
    error: Option<String>,
}

impl<'a> From<&'a Tuned> for TunedOf<'a> {
    fn from(tuned: &'a Tuned) -> TunedOf<'a> {
        let error = match &tuned.end {
            End::Failed(error) => Some(one_line(error)),
            _ => None,
        };
        let (file, before) = (tuned.file.display().to_string(), tuned.before.as_deref());
        TunedOf { file, value: &tuned.value, before, state: tuned.end.word(), error }
    }
}

#[derive(Serialize)]
struct TroubleOf<'a> {
    weight: &'a str,
    area: &'a str,
    object: &'a str,
    what: &'a str,
    remedy: Option<&'a str>,
}

impl<'a> From<&'a Trouble> for TroubleOf<'a> {
    fn from(it: &'a Trouble) -> TroubleOf<'a> {
        let remedy = Some(it.remedy.as_str()).filter(|text| !text.is_empty());
        TroubleOf { weight: it.weight.word(), area: it.area.word(), object: &it.object, what: &it.what, remedy }
    }
}

/// A document; the same for JSON and s-expressions.
#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Devices { backend: &'a str, devices: Vec<Device<'a>>, total: usize },
    Why { device: Device<'a>, tests: Vec<TestOf<'a>> },
    Backends { backends: Vec<BackendOf<'a>> },
    Applied { steps: &'a [String], next: &'a [String], dry_run: bool },
    Changes { changes: &'a [String], dry_run: bool },
    Backup(backup::shown::Body<'a>),
    Plan(PlanOf<'a>),
    Layouts { layouts: &'a [String] },
    Text { text: &'a str },
    Layout(LayoutOf<'a>),
    Target(target::shown::Body<'a>),
    Tuned { tuned: Vec<TunedOf<'a>>, dry_run: bool },
    Doctor { findings: Vec<TroubleOf<'a>>, wrong: usize },
}

impl<'a> Body<'a> {
    fn of(reply: &'a Reply) -> Option<Body<'a>> {
        Some(match reply {
            Reply::Done => return None,
            Reply::Backup(reply) => Body::Backup(backup::shown::Body::of(reply)?),
            Reply::Target(reply) => Body::Target(target::shown::Body::of(reply)?),
            Reply::Devices { backend, rows, .. } => {
                Body::Devices { backend, devices: rows.iter().map(Device::from).collect(), total: rows.len() }
            }
            Reply::Why { row, tests, .. } => {
                let one = |test: &'a Test| TestOf {
                    test: test.name,
                    passed: test.is_made.then_some(test.fails.is_none()),
                    found: &test.found,
                    state: test.fails.as_ref().map(ToString::to_string),
                };
                Body::Why { device: row.as_ref().into(), tests: tests.iter().map(one).collect() }
            }
            Reply::Backends(known) => Body::Backends {
                backends: known
                    .iter()
                    .map(|it| BackendOf { name: &it.name, description: &it.description, selected: it.selected })
                    .collect(),
            },
            Reply::Changes { lines, dry_run } => Body::Changes { changes: lines, dry_run: *dry_run },
            Reply::Applied { lines, next, dry_run, .. } => Body::Applied { steps: lines, next, dry_run: *dry_run },
            Reply::Plan { planned, .. } => Body::Plan(planned.as_ref().into()),
            Reply::Layouts(names) => Body::Layouts { layouts: names },
            Reply::Text(text) => Body::Text { text },
            Reply::Layout(about) => Body::Layout(about.as_ref().into()),
            Reply::Doctor(found) => Body::Doctor {
                findings: found.iter().map(TroubleOf::from).collect(),
                wrong: found.iter().filter(|it| it.weight == Weight::Wrong).count(),
            },
            Reply::Tuned { tuned, dry_run } => {
                Body::Tuned { tuned: tuned.iter().map(TunedOf::from).collect(), dry_run: *dry_run }
            }
        })
    }
}

/// An answer as bytes.
pub fn write(reply: &Reply, format: OutputFormat) -> Vec<u8> {
    let Some(body) = Body::of(reply) else { return Vec::new() };
    let mut bytes = match format {
        OutputFormat::Table => table_of(reply).into_bytes(),
        OutputFormat::Json => return json::document(&body),
        // As vdi_attach and vdi_create answer: one word.
        _ if matches!(
            reply,
            Reply::Target(target::shown::Reply::Published(_))
                | Reply::Backup(backup::shown::Reply { what: backup::shown::What::Imported { is_one: true, .. }, .. })
        ) =>
        {
            table_of(reply).into_bytes()
        }
        OutputFormat::Sexp => answer::sexp(&body),
        OutputFormat::Lisp => answer::lisp(&body),
    };
    if !bytes.is_empty() && !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    bytes
}

fn table_of(reply: &Reply) -> String {
    match reply {
        Reply::Done => String::new(),
        Reply::Backup(reply) => backup::shown::table_of(reply),
        Reply::Target(reply) => target::shown::table_of(reply),
        Reply::Devices { backend, .. } if backend == "none" => {
            format!("the inventory is off: the backend of {} is none\n", run_dir::settings().display())
        }
        Reply::Devices { rows, columns, .. } => {
            let mut lines = vec![columns.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()];
            lines.extend(rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect()));
            let numbers: Vec<usize> =
                (0..columns.len()).filter(|at| matches!(columns[*at], "size" | "block")).collect();
            let total =
                if rows.len() == 1 { "Total: 1 device".to_owned() } else { format!("Total: {} devices", rows.len()) };
            table::aligned(&lines, &numbers) + &total + "\n"
        }
        Reply::Why { row, tests, .. } => {
            let state = cell(row, "state");
            let mut text = format!("{}\n", printable(&format!("{} is {state}", row.dev)));
            let lines: Vec<Vec<String>> = tests
                .iter()
                .map(|test| {
                    let outcome = match &test.fails {
                        Some(state) => format!("FAILED ({state})"),
                        None if test.is_made => "passed".to_owned(),
                        None => "not made".to_owned(),
                    };
                    vec![test.name.to_owned(), outcome, test.found.clone()]
                })
                .collect();
            text.push_str(&table::aligned(&lines, &[]));
            text
        }
        Reply::Backends(known) => {
            let mut lines = vec![["name", "selected", "description"].map(str::to_owned).to_vec()];
            lines.extend(known.iter().map(|it| {
                vec![it.name.clone(), if it.selected { "yes" } else { "-" }.to_owned(), it.description.clone()]
            }));
            table::aligned(&lines, &[])
        }
        Reply::Applied { lines, next, .. } if lines.is_empty() && next.is_empty() => "nothing to do\n".to_owned(),
        Reply::Applied { lines, next, .. } => {
            let mut text: String = lines.iter().map(|line| format!("{}\n", printable(line))).collect();
            if !next.is_empty() {
                text.push_str("next steps:\n");
                next.iter().for_each(|line| text.push_str(&format!("  {}\n", printable(line))));
            }
            text
        }
        Reply::Plan { planned, .. } => table_of_plan(planned),
        Reply::Layouts(names) => names.iter().map(|name| format!("{name}\n")).collect(),
        Reply::Text(text) => text.lines().map(|line| format!("{}\n", printable(line))).collect(),
        Reply::Layout(about) => table_of_layout(about),
        Reply::Tuned { tuned, .. } if tuned.is_empty() => "nothing to tune\n".to_owned(),
        Reply::Tuned { tuned, .. } => {
            let mut lines = vec![["file", "value", "before", "state"].map(str::to_owned).to_vec()];
            lines.extend(tuned.iter().map(|it| {
                let before = it.before.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
                vec![it.file.display().to_string(), it.value.clone(), before, it.end.word().to_owned()]
            }));
            table::aligned(&lines, &[])
        }
        Reply::Doctor(found) if found.is_empty() => "nothing is wrong\n".to_owned(),
        // A sentence each: a table of such texts is wider than any terminal.
        Reply::Doctor(found) => found.iter().map(told).collect(),
        Reply::Changes { lines, .. } if lines.is_empty() => "nothing to change\n".to_owned(),
        Reply::Changes { lines, .. } => lines.iter().map(|line| format!("{}\n", printable(line))).collect(),
    }
}

fn told(it: &Trouble) -> String {
    let text = format!("{} ({}): {}: {}", it.weight.word(), it.area.word(), it.object, it.what);
    let remedy = Some(&it.remedy).filter(|remedy| !remedy.is_empty());
    let remedy = remedy.map(|remedy| format!("    -> {}\n", printable(remedy))).unwrap_or_default();
    format!("{}\n{remedy}", printable(&text))
}

fn cell(row: &Row, column: &str) -> String {
    let text = match column {
        "class" => row.class.word().to_owned(),
        "host" => row.host.clone(),
        "dev" => row.dev.clone(),
        "size" => row.size.map(human).unwrap_or_default(),
        "state" => row.state.as_ref().map(ToString::to_string).unwrap_or_default(),
        "owner" => row.owner.clone(),
        "identity" => row.identity.clone(),
        "wwid" => row.wwid.clone(),
        "serial" => row.serial.clone(),
        "model" => row.model.clone(),
        "tag" => row.tag.clone(),
        "block" => row.block.map(|block| block.to_string()).unwrap_or_default(),
        _ => row.rotational.map(|yes| if yes { "yes" } else { "no" }.to_owned()).unwrap_or_default(),
    };
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::candidate::Class;
    use crate::registry::facts::State;

    fn row(planted: &str) -> Row {
        let [host, dev, owner, identity, wwid, serial, model, tag] = [planted; 8].map(str::to_owned);
        Row {
            class: Class::Lvm,
            host,
            dev,
            size: Some(1 << 30),
            state: Some(State::Signature(planted.to_owned())),
            owner,
            identity,
            wwid,
            serial,
            model,
            tag,
            block: Some(512),
            rotational: Some(false),
            slot: None,
        }
    }

    #[test]
    fn what_a_disk_says_of_itself_neither_forges_rows_nor_acts_on_the_terminal() {
        let planted = "\u{1b}[31m\nrow\u{202e}";
        let test = |text: &str| Test { name: "t", found: text.to_owned(), fails: None, is_made: true };
        let list = |text: &str| Reply::Devices {
            backend: "scan".to_owned(),
            rows: vec![row(text)],
            columns: COLUMNS.to_vec(),
            warnings: Vec::new(),
        };
        let why = |text: &str| Reply::Why { row: Box::new(row(text)), tests: vec![test(text)], warnings: Vec::new() };
        for (evil, plain) in [(list(planted), list("x")), (why(planted), why("x"))] {
            let text = table_of(&evil);
            assert!(!text.contains(|c: char| c != '\n' && crate::types::acts_on_terminal(c)), "{text:?}");
            assert_eq!(text.lines().count(), table_of(&plain).lines().count(), "{text}");
        }
    }

    #[test]
    fn json_has_every_key_and_the_total() {
        let reply = Reply::Devices {
            backend: "scan".to_owned(),
            rows: vec![row("x")],
            columns: USUAL.to_vec(),
            warnings: Vec::new(),
        };
        let json: serde_json::Value = serde_json::from_slice(&write(&reply, OutputFormat::Json)).unwrap();
        assert_eq!((json["schema"].as_u64(), json["total"].as_u64()), (Some(1), Some(1)));
        assert!(COLUMNS.iter().all(|column| json["devices"][0].get(column).is_some()), "{json}");
        let sexp = String::from_utf8(write(&reply, OutputFormat::Sexp)).unwrap();
        assert!(sexp.starts_with("((backend . \"scan\")") && sexp.contains("(total . 1)"), "{sexp}");
        assert!(table_of(&reply).ends_with("Total: 1 device\n"));
    }
}
