//! The answers of commands, and how each is written.

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde::Serialize;

use super::grammar::OutputFormat;
use super::json;
use super::lines::{FORCE, NEW_VDI};
use super::listing::Listed;
use super::natural;
use super::printer::{Dialect, print};
use super::status::{exit_status, remedy};
use super::wire::Datum;
use crate::door::{Answer, size, table};
use crate::error::{self, Error, Result};
use crate::registry;
use crate::types::{Finding, LostRange, Outcome, SpaceUse, SrInfo, SrUuid, VdiInfo, VdiUuid, nearest, printable};

/// Where the words of a command are explained.
const HELP: &str = "`--help` after the command shows what it takes";

/// The answer of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Nothing,
    Device(PathBuf),
    Text(String),
    /// The UUID that was chosen for what was made.
    Made(String),
    /// The things that would be done, a line for each.
    Plan(Vec<String>),
    Sr(SrInfo),
    Srs(Vec<SrInfo>),
    /// The SRs of this host.
    List(Vec<Listed>),
    /// An SR to be drawn as the trees of its images.
    Tree(SrInfo),
    Vdi(VdiInfo),
    /// The space of an SR, image by image.
    Space(SpaceUse),
    /// The findings of sr_check on an SR.
    Findings(SrUuid, Vec<Finding>),
}

impl Reply {
    /// The failure that the answer tells of all the same, if it does.
    fn failure(&self) -> Option<Error> {
        let Reply::Findings(sr, found) = self else { return None };
        let count = |outcome| found.iter().filter(|finding| finding.outcome == outcome).count();
        let (mendable, lasting) = (count(Outcome::Mendable), count(Outcome::Lasting));
        (mendable + lasting > 0).then_some(Error::NotWhole { sr: *sr, mendable, lasting })
    }
}

/// The result of a command as bytes for its caller.
pub fn answer(result: Result<Reply>, format: OutputFormat) -> Answer {
    let (stdout, failure) = match result.and_then(|reply| Ok((written(&reply, format)?, reply.failure()))) {
        Ok((stdout, None)) => return Answer { stdout, stderr: String::new(), status: 0 },
        Ok((stdout, Some(failure))) => (stdout, failure),
        Err(e) => (Vec::new(), e),
    };
    // An agent reads a line, also if it asked for JSON.
    failed(&failure, stdout, OutputFormat::Sexp)
}

/// The answer of a command that failed after it had this to say. `format`: JSON for a person who asked for it, see
/// [`answer_person`]; any other form says the same.
pub fn failed(failure: &Error, stdout: Vec<u8>, format: OutputFormat) -> Answer {
    let (status, name) = exit_status(failure);
    let message = format!("{}{}", error::one_line(failure), remedy(failure));
    let mut stderr = match format {
        OutputFormat::Json => String::from_utf8_lossy(&json::failure(name, status, &message)).into_owned(),
        _ => format!("{name}: {message}\n"),
    };
    if let Error::ExportedInPart { vdi, lost } = failure {
        stderr.push_str(&listed(*vdi, lost, format));
    }
    Answer { stdout, stderr, status }
}

/// The bytes that an export left out: a line for each stretch, below that of the failure.
fn listed(vdi: VdiUuid, lost: &[LostRange], format: OutputFormat) -> String {
    match format {
        OutputFormat::Json => String::from_utf8_lossy(&json::lost(vdi, lost)).into_owned(),
        _ => lost.iter().map(|lost| format!("bytes {} to {}: {}\n", lost.start, lost.end - 1, lost.why)).collect(),
    }
}

/// Plain data as an s-expression of one line.
pub fn sexp(data: &impl Serialize) -> Vec<u8> {
    print(data, Dialect::Scheme).expect("a reply is plain data")
}

/// As [`sexp`], with the booleans of Emacs and Common Lisp.
pub fn lisp(data: &impl Serialize) -> Vec<u8> {
    print(data, Dialect::Lisp).expect("a reply is plain data")
}

/// The result of a command of `sm`: as [`answer()`], but JSON has a form of its own, for failures too.
pub fn answer_person(result: Result<Reply>, format: OutputFormat) -> Answer {
    if format != OutputFormat::Json {
        return answer(result, format);
    }
    let (stdout, failure) = match result {
        Ok(reply) => (json::write(&reply), reply.failure()),
        Err(e) => (Vec::new(), Some(e)),
    };
    match failure {
        Some(failure) => failed(&failure, stdout, format),
        None => Answer { stdout, stderr: String::new(), status: 0 },
    }
}

/// The answer after a panic with these words.
pub fn of_panic(text: &str) -> Answer {
    Answer { stdout: Vec::new(), stderr: format!("EIO: {text}\n"), status: 5 }
}

fn written(reply: &Reply, format: OutputFormat) -> Result<Vec<u8>> {
    let mut bytes = match (reply, format) {
        (Reply::Nothing, _) => return Ok(Vec::new()),
        (_, OutputFormat::Json) => serde_json::to_vec(&Datum::from(reply)).expect("a reply is plain data"),
        (Reply::Device(path), _) => path.as_os_str().as_encoded_bytes().to_vec(),
        (Reply::Text(text) | Reply::Made(text), _) => text.clone().into_bytes(),
        (Reply::Plan(lines), _) => {
            lines.iter().map(|line| format!("{}\n", printable(line))).collect::<String>().into_bytes()
        }
        (_, OutputFormat::Sexp) => sexp(&Datum::from(reply)),
        (_, OutputFormat::Lisp) => lisp(&Datum::from(reply)),
        (_, OutputFormat::Table) => table::write(reply).into_bytes(),
    };
    if !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// The refusal of a line of a person: a UUID that is to be made is never missed, because `sm` chooses one, nor is the FORCE of a
/// lock.
pub fn without_optional(mut refused: clap::Error) -> clap::Error {
    if let Some(ContextValue::Strings(names)) = refused.get(ContextKind::InvalidArg) {
        let is_optional = |name: &String| [NEW_VDI, FORCE].contains(&name.trim_matches(['<', '>']));
        let wanted: Vec<String> = names.iter().filter(|name| !is_optional(name)).cloned().collect();
        if !wanted.is_empty() {
            refused.insert(ContextKind::InvalidArg, ContextValue::Strings(wanted));
        }
    }
    refused
}

/// The answer to a command line that the parser refused: by the table of exit statuses. Help and version are answers too.
///
/// `format`: JSON for a person who asked for it; any other form says the same. `people`: the command line of a person, who is told
/// what may have been meant by a word of other tools.
pub fn not_parsed(refused: clap::Error, format: OutputFormat, people: Option<&clap::Command>) -> Answer {
    let context = |kind| match refused.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let e = match refused.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Answer { stdout: refused.to_string().into_bytes(), stderr: String::new(), status: 0 };
        }
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand);
            let similar = match people {
                Some(root) => natural::commands(natural::of_usage(root, &usage_of(&refused)), &name),
                None => suggested(&refused, ContextKind::SuggestedSubcommand, &name).pop().into_iter().collect(),
            };
            Error::NoSuchCommand { name, similar }
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Error::Usage("no command was given; `--help` lists them".to_owned())
        }
        ErrorKind::UnknownArgument if !context(ContextKind::InvalidArg).starts_with('-') => {
            let usage = match usage_of(&refused) {
                usage if usage.is_empty() => usage,
                usage => format!("; usage: {usage}"),
            };
            let word = context(ContextKind::InvalidArg);
            let hint = people.and_then(|_| natural::one_too_many(&usage, &word)).unwrap_or_default();
            Error::TooManyArguments(format!("argument '{word}' is one too many{hint}{usage}"))
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = match refused.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(names)) => names.join(" "),
                _ => context(ContextKind::InvalidArg),
            };
            let known = || registry::names().unwrap_or_default();
            let hint = people.map(|_| natural::missing(&missing, &known())).unwrap_or_default();
            Error::Usage(format!("{missing} is missing; {hint}{HELP}"))
        }
        ErrorKind::UnknownArgument if is_negative_size(&refused, &context(ContextKind::InvalidArg)) => {
            let given = context(ContextKind::InvalidArg);
            Error::Usage(format!("SIZE {given}… is not valid: {}; {HELP}", size::NOT_NEGATIVE))
        }
        ErrorKind::UnknownArgument => {
            let given = context(ContextKind::InvalidArg);
            let meant = suggested(&refused, ContextKind::SuggestedArg, &given);
            let natural = || natural::option(people?, &usage_of(&refused), &given).map(|hint| format!("{hint}; "));
            let meant = meant.last().map(|name| format!("did you mean {name}? ")).or_else(natural).unwrap_or_default();
            Error::Usage(format!("there is no option '{given}'; {meant}{HELP}"))
        }
        ErrorKind::InvalidValue if people.is_some() => {
            let hint = natural::value(&context(ContextKind::InvalidArg), &context(ContextKind::InvalidValue));
            let hint = hint.map(|hint| format!("{hint}; ")).unwrap_or_default();
            Error::Usage(format!("{}; {hint}{HELP}", first_line(&refused)))
        }
        _ => Error::Usage(format!("{}; {HELP}", first_line(&refused))),
    };
    answer_person(Err(e), format)
}

/// Whether the parser took the start of a size for an option: of a command that takes a size, a minus and a digit. No option
/// is a digit.
fn is_negative_size(refused: &clap::Error, given: &str) -> bool {
    let takes_size = refused.get(ContextKind::Usage).is_some_and(|usage| usage.to_string().contains("SIZE"));
    takes_size && given.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The names that the parser suggests for a word, as far as the word can have been meant for them.
fn suggested(refused: &clap::Error, kind: ContextKind, word: &str) -> Vec<String> {
    let names = match refused.get(kind) {
        Some(ContextValue::Strings(names)) => names.clone(),
        Some(ContextValue::String(name)) => vec![name.clone()],
        _ => Vec::new(),
    };
    names.into_iter().filter(|name| nearest(word, [name.as_str()]).is_some()).collect()
}

/// How the command is called, on one line.
fn usage_of(refused: &clap::Error) -> String {
    let usage = refused.get(ContextKind::Usage).map(ContextValue::to_string).unwrap_or_default();
    let words: Vec<&str> = usage.trim_start_matches("Usage:").split_whitespace().collect();
    words.join(" ")
}

fn first_line(refused: &clap::Error) -> String {
    let text = refused.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let end = text.find("\n\n").unwrap_or(text.len());
    // The possible values stand on a line of their own.
    text[..end].lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
