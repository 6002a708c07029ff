//! One line of `sm`: the names in it are looked up, the command is carried out, and a person is told what a program does not
//! ask for.

use std::ffi::OsString;
use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::time::{Duration, Instant};

use super::address::{self, Target};
use super::answer::{Reply, answer_person, not_parsed};
use super::deadline;
use super::grammar::{OutputFormat, SmCommand, Verb};
use super::lines::{self, Parsed, Personal, sm_command};
use super::listing;
use super::log;
use super::metrics::{self, Asked};
use super::plan::{self, Plan};
use super::progress::ProgressBar;
use super::verbs::Caller;
use super::words::Line;
use crate::call::{Session, policy};
use crate::context::{Context, LONGEST_WAIT};
use crate::door::{Answer, size};
use crate::error::{Error, Result};
use crate::registry::{self, Entry, Place, SrName};
use crate::types::{Size, SrUuid, VdiUuid, printable, shown};

/// Carries one line out.
pub fn serve(command: clap::Command, line: Line) -> Answer {
    let asked = asked_format(&line.args);
    // Help and the words of an error come from the whole definition.
    let parsed = lines::parse(command, line.args.clone()).or_else(|_| lines::parse(sm_command(), line.args));
    match parsed {
        Err(e) => not_parsed(e, asked),
        Ok(Parsed::List { common, wait, from_xapi, verbose }) => {
            answer_person(sr_list(wait, from_xapi, verbose), chosen_format(common.format, OutputFormat::Sexp))
        }
        Ok(Parsed::Metrics { common, sr_type, wait, srs, output, verbose }) => {
            let (sr_type, dconf) = (sr_type.as_deref(), common.dconf.as_deref());
            let patience = wait.map_or(metrics::PATIENCE, Duration::from_secs).min(LONGEST_WAIT);
            let asked = Asked { srs: &srs, sr_type, dconf, patience };
            answer_person(
                sr_metrics(&asked, output.as_deref(), verbose),
                chosen_format(common.format, OutputFormat::Sexp),
            )
        }
        Ok(Parsed::Verb(parsed, personal)) => {
            let format = chosen_format(parsed.common.format, parsed.verb.usual_format());
            answer_person(carry_out(*parsed, &personal, line.made), format)
        }
    }
}

/// The form that a line asks for which the parser may refuse.
pub fn asked_format(args: &[OsString]) -> OutputFormat {
    let is_json = args.iter().any(|arg| arg == "--format=json")
        || args.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json");
    if is_json { OutputFormat::Json } else { OutputFormat::Sexp }
}

/// The form of an answer. `usual`: the form for a program that does not say which it wants.
pub fn chosen_format(said: Option<OutputFormat>, usual: OutputFormat) -> OutputFormat {
    said.unwrap_or_else(|| if stdout().is_terminal() { OutputFormat::Table } else { usual })
}

fn sr_list(wait: Option<u64>, from_xapi: bool, verbose: bool) -> Result<Reply> {
    let patience = wait.map_or(listing::PATIENCE, Duration::from_secs).min(LONGEST_WAIT);
    let told = if from_xapi { listing::of_xapi()? } else { Vec::new() };
    let warn = |text: &str| {
        if verbose {
            say(text)
        }
    };
    listing::list(patience, told, &warn).map(Reply::List)
}

fn sr_metrics(asked: &Asked, output: Option<&str>, verbose: bool) -> Result<Reply> {
    let warn = |text: &str| {
        if verbose {
            say(text)
        }
    };
    let text = metrics::metrics(asked, &warn)?;
    match output {
        Some(file) => metrics::put(file, &text).map(|()| Reply::Nothing),
        None => Ok(Reply::Text(text)),
    }
}

/// `made`: the UUID that was chosen for what the line makes, which is the answer.
fn carry_out(command: SmCommand, personal: &Personal, made: Option<String>) -> Result<Reply> {
    let SmCommand { sr_type, common, mut verb } = command;
    let bar = ProgressBar::hidden();
    let deadline = deadline(&common);
    let context = Context { deadline, progress: &|done, total| bar.show(done, total), others: None };
    let name = personal.name.as_deref().map(str::parse::<SrName>).transpose()?;
    let own = name.as_ref().map(registry::find).transpose()?.flatten();
    let target = address::target(&mut verb, sr_type.as_deref(), common.dconf.as_deref(), deadline)?;
    policy::refuse_unknown_keys(target.driver, &target.config)?;
    let meant = address::resolve_vdis(&mut verb, &target, &context)?;
    let sr = verb.sr_word().map(|word| word.parse::<SrUuid>()).transpose()?;
    let copy_to = address::copy_target(&mut verb)?;
    if personal.verbose {
        explain(sr, &target, &meant);
    }
    if personal.dry_run {
        let plan = plan::of(&verb, &target, personal, &context)?;
        return Ok(Reply::Plan(plan.map(|plan| plan.lines).unwrap_or_default()));
    }
    // A line of SR API v1.0 is one of a script that may run at a terminal, and does what it always did.
    let is_whole = sr_type.is_some() && common.dconf.is_some() && target.entry.is_none() && meant.is_empty();
    let is_of_api = is_whole && made.is_none() && name.is_none();
    let confirmed = !is_of_api && confirm(&verb, &target, personal, &context)?;
    if let Verb::SrDelete { yes, .. } = &mut verb {
        *yes |= confirmed;
    }
    let bare = bare_size(&verb).map(str::to_owned);
    let change = log::change(&personal.verb, &mut verb, target.driver);
    let began = Instant::now();
    let config = target.config.clone();
    let caller = Caller { driver: target.driver, config, context: &context, copy_to, person: true };
    let naming = name.as_ref().map(|name| (name, own));
    let result = change_names(&caller, verb, sr, made, naming, common.dconf, &target);
    if let Some(change) = change {
        log::write(&change, result.as_ref().map(|_| ()));
    }
    if personal.verbose {
        say(&format!("{} took {} ms", personal.verb, began.elapsed().as_millis()));
    }
    let reply = result?;
    if let Some(bare) = bare {
        say_unit(&bare);
    }
    Ok(reply)
}

/// Carries the command out, and keeps the table of names in step with it.
fn change_names(
    caller: &Caller,
    verb: Verb,
    sr: Option<SrUuid>,
    made: Option<String>,
    naming: Option<(&SrName, Option<Entry>)>,
    dconf: Option<String>,
    target: &Target,
) -> Result<Reply> {
    let reply = match (verb, sr, naming) {
        (verb @ Verb::SrCreate { .. }, Some(sr), Some((name, own))) => {
            let dconf = dconf.ok_or_else(|| Error::Usage("-d DCONF is missing".to_owned()))?;
            return create_named(caller, verb, sr, made, name, own, dconf);
        }
        (verb @ Verb::SrAttach(_), Some(sr), Some((name, own))) => {
            let dconf =
                dconf.ok_or_else(|| Error::Usage("-d DCONF is missing, which the name is to stand for".to_owned()))?;
            return attach_named(caller, verb, sr, name, own, Place::Dconf(dconf));
        }
        (verb @ Verb::SrDelete { .. }, Some(sr), _) => {
            let reply = caller.carry_out(verb)?;
            forget(sr, target)?;
            reply
        }
        (verb, ..) => caller.carry_out(verb)?,
    };
    Ok(made.map_or(reply, Reply::Made))
}

/// Says what the words of a line were taken for.
fn explain(sr: Option<SrUuid>, target: &Target, meant: &[(String, VdiUuid)]) {
    let config: Vec<String> =
        target.config.0.iter().map(|(key, value)| format!("{key}={}", shown(key, value))).collect();
    let place = format!("of type {} at {}", target.driver.sr_type, config.join(" "));
    match (sr, &target.entry) {
        (Some(sr), Some(entry)) => say(&format!("SR {} is {sr} {place}", entry.name)),
        (Some(sr), None) => say(&format!("SR {sr} {place}")),
        (None, _) => say(&format!("SRs {place}")),
    }
    for (word, vdi) in meant {
        say(&format!("VDI {word} is {vdi}"));
    }
}

fn say(text: &str) {
    let _ = writeln!(stderr(), "{}", printable(text));
}

/// The lines of a plan, without what acts on a terminal.
fn printed(plan: &Plan) -> String {
    plan.lines.iter().map(|line| format!("{}\n", printable(line))).collect()
}

/// Asks a person at a terminal before data is lost; whether the person agreed. A program is not asked.
fn confirm(verb: &Verb, target: &Target, personal: &Personal, context: &Context) -> Result<bool> {
    let overwrites = !matches!(verb, Verb::SrCreate { force: false, destroy_sr, .. } if destroy_sr.is_empty());
    if personal.yes || !overwrites || !stdin().is_terminal() || !stderr().is_terminal() {
        return Ok(false);
    }
    // An error of the plan is not told here: the command itself refuses, in its own words.
    let Ok(Some(plan)) = plan::of(verb, target, personal, context) else { return Ok(false) };
    if !plan.destroys {
        return Ok(false);
    }
    let _ = write!(stderr(), "{}Go on? [y/N] ", printed(&plan));
    let mut answer = String::new();
    let _ = stdin().read_line(&mut answer);
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(true),
        _ => Err(Error::Usage("it was not confirmed, and nothing was changed".to_owned())),
    }
}

/// Makes an SR that has a name. The name is there first: if the call is killed, the same call goes on with the UUID that the
/// name has.
fn create_named(
    caller: &Caller,
    mut verb: Verb,
    sr: SrUuid,
    made: Option<String>,
    name: &SrName,
    own: Option<Entry>,
    dconf: String,
) -> Result<Reply> {
    let place = Place::Dconf(dconf);
    let sr_type = caller.driver.sr_type;
    let taken = |entry: &Entry| taken(name, entry);
    let is_same = |entry: &Entry| entry.sr_type == sr_type && entry.place == place;
    let sr = match own {
        Some(entry) if is_same(&entry) && (made.is_some() || entry.sr == sr) => {
            if let Some(word) = verb.sr_word() {
                *word = entry.sr.to_string();
            }
            caller.carry_out(verb)?;
            entry.sr
        }
        Some(entry) => return Err(taken(&entry)),
        None => {
            // If the words of -d are wrong, the call fails before anything is written.
            Session::open(caller.driver, sr, caller.config.clone())?;
            if !registry::add(name, sr, sr_type, &place)? {
                return Err(registry::find(name)?
                    .as_ref()
                    .map_or_else(|| Error::Usage(format!("try again: {name}")), taken));
            }
            if let Err(error) = caller.carry_out(verb) {
                // An SR that is there at least in part keeps its name: the same call completes it.
                return Err(match error {
                    error @ (Error::Incomplete { .. } | Error::Undo { .. }) => error,
                    error => error.undone(registry::remove(sr).map(drop)),
                });
            }
            sr
        }
    };
    Ok(made.map_or(Reply::Nothing, |_| Reply::Made(sr.to_string())))
}

/// Says that another SR has a name.
fn taken(name: &SrName, entry: &Entry) -> Error {
    let place = match &entry.place {
        Place::Dconf(_) if entry.place.may_hold_password() => "…".to_owned(),
        Place::Dconf(dconf) => dconf.clone(),
        Place::Keys(config) => config.0.keys().cloned().collect::<Vec<_>>().join(" "),
    };
    let place = format!("of type {} at {place}", entry.sr_type);
    Error::NameTaken { name: name.to_string(), sr: entry.sr, place }
}

/// Makes an SR available that is there already, and gives it a name. The name comes last: it stands for an SR that was seen.
fn attach_named(
    caller: &Caller,
    verb: Verb,
    sr: SrUuid,
    name: &SrName,
    own: Option<Entry>,
    place: Place,
) -> Result<Reply> {
    let is_same = |entry: &Entry| entry.sr == sr && entry.sr_type == caller.driver.sr_type && entry.place == place;
    if let Some(entry) = own.filter(|entry| !is_same(entry)) {
        return Err(taken(name, &entry));
    }
    let reply = caller.carry_out(verb)?;
    if !registry::add(name, sr, caller.driver.sr_type, &place)? {
        // Another call was faster, or this one is repeated.
        match registry::find(name)? {
            Some(entry) if is_same(&entry) => {}
            Some(entry) => return Err(taken(name, &entry)),
            None => return Err(Error::Usage(format!("try again: {name}"))),
        }
    }
    Ok(reply)
}

/// Removes the names of an SR that was deleted. A table that cannot be changed is no failure of a call that did not use it.
fn forget(sr: SrUuid, target: &Target) -> Result<()> {
    match registry::remove(sr) {
        Err(error) if target.entry.is_some() => Err(error.after(format!("SR {sr} is deleted"))),
        _ => Ok(()),
    }
}

/// The SIZE of a command, if it has no unit.
fn bare_size(verb: &Verb) -> Option<&str> {
    let size = match verb {
        Verb::VdiCreate { size, .. } | Verb::VdiResize { size, .. } => Some(size),
        Verb::VdiImport { size, .. } | Verb::SrCreate { size, .. } => size.as_ref(),
        _ => None,
    };
    size.map(String::as_str).filter(|size| size::is_bare(size))
}

/// Says at a terminal what a number without a unit was taken for.
fn say_unit(size: &str) {
    if !stderr().is_terminal() {
        return;
    }
    let plus = if size.starts_with('+') { "+" } else { "" };
    if let Ok(bytes) = size::parse(size.trim_start_matches('+')) {
        let _ = writeln!(stderr(), "{size} was taken for {plus}{}", Size(bytes));
    }
}
