//! One line of `sm`: the names in it are looked up, the command is carried out, and a person is told what a program does not
//! ask for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use clap::error::ErrorKind;

use super::address::{self, Target};
use super::answer::{Reply, answer_person, not_parsed, without_optional};
use super::collecting::CollectArgs;
use super::deadline;
use super::grammar::{Common, OutputFormat, SmCommand, Verb};
use super::lines::{self, Parsed, Personal, brief_command, sm_command, sm_options};
use super::listing;
use super::log;
use super::metrics::{self, Asked};
use super::naming;
use super::plan;
use super::progress::ProgressBar;
use super::question;
use super::verbs::Caller;
use super::words::Line;
use crate::call::policy;
use crate::context::{Context, LONGEST_WAIT};
use crate::door::smapiv1::collector;
use crate::door::{Answer, size};
use crate::error::Result;
use crate::registry::{self, Entry, SrName};
use crate::sr::Driver;
use crate::sys::blockdev;
use crate::types::{DeviceConfig, Size, SrUuid, VdiInfo, VdiUuid, printable, shown};

/// Carries the lines out that one line of a person stands for. `command`: the command line of `sm`, in brief,
/// with the command `word`.
///
/// A person at a terminal is asked once about all of them, so all words are looked up before. A program is not asked, and the
/// words of each line are looked up when the lines before it are done.
pub fn serve(command: clap::Command, word: &str, lines: Vec<Line>) -> Answer {
    let mut command = Some(command);
    let mut prepared = |line| prepare(command.take().unwrap_or_else(|| brief_command(sm_options(), Some(word))), line);
    let done = |call: Call, confirmed| {
        let format = call.format;
        answer_person(call.carry_out(confirmed), format)
    };
    let mut lines = lines.into_iter();
    let Some(line) = lines.next() else { return Answer::default() };
    let is_guessed = line.is_guessed;
    let first = match prepared(line) {
        // It may be a mistyped SR: what is called alike in another SR is not touched.
        Err(answer) if is_guessed => return answer,
        first => first,
    };
    if !question::is_possible() {
        let finish = |call: Result<Call, Answer>| call.map_or_else(|answer| answer, |call| done(call, false));
        let answer = finish(first);
        return lines.map(|line| finish(prepared(line))).fold(answer, Answer::and);
    }
    let mut calls: Vec<Result<Call, Answer>> = [first].into_iter().chain(lines.map(prepared)).collect();
    let asked = question::ask(&mut calls.iter_mut().filter_map(|call| call.as_mut().ok()).collect::<Vec<_>>());
    let mut refused = None;
    let each = calls.into_iter().filter_map(|call| match (call, &asked) {
        (Err(answer), _) => Some(answer),
        (Ok(call), Ok(confirmed)) => Some(done(call, *confirmed)),
        (Ok(call), Err(_)) => {
            refused.get_or_insert(call.format);
            None
        }
    });
    let answers: Vec<Answer> = each.collect();
    let refusal = refused.zip(asked.err()).map(|(format, error)| answer_person(Err(error), format));
    answers.into_iter().chain(refusal).reduce(Answer::and).unwrap_or_default()
}

/// Looks the words of a line up; `Err` with the answer of a line that ends there.
fn prepare(command: clap::Command, line: Line) -> Result<Call, Answer> {
    let asked = asked_format(&line.args);
    // Help and the words of an error come from the whole definition.
    let parsed = lines::parse(command, line.args.clone()).or_else(|refused| match refused.kind() {
        ErrorKind::DisplayVersion => Err(refused),
        _ => lines::parse(sm_command(), line.args),
    });
    match parsed {
        Err(e) if e.kind() == ErrorKind::DisplayVersion => Err(not_parsed(e, asked, None)),
        Err(e) => Err(not_parsed(without_optional(e), asked, Some(&sm_command()))),
        Ok(Parsed::List { common, wait, from_xapi, verbose }) => {
            Err(answer_person(sr_list(wait, from_xapi, verbose), chosen_format(common.format, OutputFormat::Sexp)))
        }
        Ok(Parsed::Name { common, sr, new }) => {
            Err(answer_person(sr_name(&sr, new.as_deref()), chosen_format(common.format, OutputFormat::Sexp)))
        }
        Ok(Parsed::Metrics { common, sr_type, wait, srs, output, verbose }) => {
            let (sr_type, dconf) = (sr_type.as_deref(), common.dconf.as_deref());
            let patience = wait.map_or(metrics::PATIENCE, Duration::from_secs).min(LONGEST_WAIT);
            let asked = Asked { srs: &srs, sr_type, dconf, patience };
            let format = chosen_format(common.format, OutputFormat::Sexp);
            Err(answer_person(sr_metrics(&asked, output.as_deref(), verbose), format))
        }
        Ok(Parsed::Verb(parsed, personal)) => {
            let format = chosen_format(parsed.common.format, parsed.verb.usual_format());
            if let (Verb::SrCollect { sr, how }, true) = (&parsed.verb, personal.from_xapi) {
                let collected = collect_from_xapi(&sr.sr, how, deadline(&parsed.common));
                return Err(answer_person(collected, format));
            }
            let call = Call::prepare(*parsed, personal, line.made, line.is_of_place, format);
            call.map_err(|error| answer_person(Err(error), format))
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

/// Collects an SR of xapi.
fn collect_from_xapi(sr: &str, how: &CollectArgs, deadline: Instant) -> Result<Reply> {
    let sr: SrUuid = sr.parse()?;
    let bar = ProgressBar::hidden();
    let context = Context { deadline, progress: &|done, total| bar.show(done, total), others: None };
    let collected = how.run(&context, |how, context| collector::collect(sr, how, context));
    log::write(&format!("sm: sr_collect of SR {sr} of xapi"), collected.as_ref().map(|_| ()));
    collected.map(|_| Reply::Nothing)
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

/// Changes the name of an SR, or takes it away.
fn sr_name(sr: &str, new: Option<&str>) -> Result<Reply> {
    let new = new.map(str::parse::<SrName>).transpose()?;
    let what = new.as_ref().map_or_else(|| "--forget".to_owned(), SrName::to_string);
    let renamed = naming::rename(sr, new.as_ref());
    log::write(&log::of_name(sr, &what), renamed.as_ref().map(|_| ()));
    renamed
}

/// A line whose words are looked up.
pub struct Call {
    pub verb: Verb,
    pub target: Target,
    pub personal: Personal,
    /// A line of SR API v1.0 is one of a script that may run at a terminal, and does what it always did.
    pub is_of_api: bool,
    pub deadline: Instant,
    /// The disks that a person was shown, and that may go with their SR.
    pub agreed: Option<BTreeSet<VdiUuid>>,
    common: Common,
    format: OutputFormat,
    sr: Option<SrUuid>,
    /// The SR that gets a copy, if it is another.
    copy_to: Option<(&'static Driver, DeviceConfig)>,
    /// The UUID that was chosen for what the line makes, which is the answer.
    made: Option<String>,
    /// The name that the SR gets, and its entry if it has that name already.
    name: Option<(SrName, Option<Entry>)>,
}

impl Call {
    /// `is_of_place`: the SR is the one that `-d` leads to.
    fn prepare(
        command: SmCommand,
        personal: Personal,
        made: Option<String>,
        is_of_place: bool,
        format: OutputFormat,
    ) -> Result<Call> {
        let SmCommand { mut sr_type, common, mut verb } = command;
        let deadline = deadline(&common);
        if is_of_place {
            let place = common.dconf.as_deref().unwrap_or_default();
            let (driver, sr) = address::only_sr_at(sr_type.as_deref(), place, deadline)?;
            sr_type = Some(driver.sr_type.to_owned());
            verb.sr_word().into_iter().for_each(|word| *word = sr.to_string());
        }
        let context = Context { deadline, progress: &|_, _| {}, others: None };
        let name = personal.name.as_deref().map(str::parse::<SrName>).transpose()?;
        let own = name.as_ref().map(registry::find).transpose()?.flatten();
        if let (Some(name), None) = (&name, &own) {
            name.refuse_reserved()?;
        }
        let target = address::target(&mut verb, sr_type.as_deref(), common.dconf.as_deref(), deadline)?;
        let is_doomed_by_name = address::resolve_doomed(&mut verb)?;
        policy::refuse_unknown_keys(target.driver, &target.config)?;
        let meant = address::resolve_vdis(&mut verb, &target, &context)?;
        let sr = verb.sr_word().map(|word| word.parse::<SrUuid>()).transpose()?;
        let copy_to = address::copy_target(&mut verb)?;
        if personal.verbose {
            explain(sr, &target, &meant);
        }
        let is_whole = sr_type.is_some() && common.dconf.is_some() && target.entry.is_none() && meant.is_empty();
        let is_of_api = is_whole && made.is_none() && name.is_none() && !is_of_place && !is_doomed_by_name;
        let name = name.map(|name| (name, own));
        Ok(Call { verb, target, personal, is_of_api, deadline, agreed: None, common, format, sr, copy_to, made, name })
    }

    /// `confirmed`: a person was asked, and agreed. The time for the answer is not that of the call.
    fn carry_out(self, confirmed: bool) -> Result<Reply> {
        let Call {
            mut verb,
            target,
            personal,
            is_of_api,
            agreed,
            common,
            format,
            sr,
            copy_to,
            made,
            name,
            deadline: till,
        } = self;
        let bar = ProgressBar::hidden();
        let deadline = if confirmed { deadline(&common) } else { till };
        let context = Context { deadline, progress: &|done, total| bar.show(done, total), others: None };
        if personal.dry_run {
            if let (Verb::SrCreate { .. }, Some(sr), Some((_, Some(own)))) = (&verb, sr, &name) {
                naming::refuse_taken(own, &target, common.dconf.as_deref(), sr, made.is_some())?;
            }
            let plan = plan::of(&verb, &target, &personal, made.is_some(), &context)?;
            return Ok(Reply::Plan(plan.map(|plan| plan.lines).unwrap_or_default()));
        }
        if let Verb::SrDelete { yes, .. } = &mut verb {
            *yes |= confirmed;
        }
        let bare = bare_size(&verb).map(str::to_owned);
        // Attached by another place than the name has.
        let elsewhere = match (&verb, &target.entry) {
            (Verb::SrAttach(_), Some(entry)) if name.is_none() => target.is_not_of(entry).then(|| entry.clone()),
            _ => None,
        };
        let nameless = if is_of_api || made.is_none() { None } else { nameless(&verb, sr, name.is_some()) };
        let change = log::change(&personal.verb, &mut verb, target.driver);
        let began = Instant::now();
        let config = target.config.clone();
        let new = verb.new_word().and_then(|word| word.parse::<VdiUuid>().ok());
        let new = new.and_then(|vdi| Some(address::NewVdi::of(&verb, vdi, sr?, &target, copy_to.as_ref())));
        let told = RefCell::default();
        let caller = Caller { driver: target.driver, config, context: &context, copy_to, person: true, agreed, told };
        let naming = name.as_ref().map(|(name, own)| (name, own.clone()));
        let result = naming::change_names(&caller, verb, sr, made, naming, common.dconf, &target);
        if let Some(change) = change {
            log::write(&change, result.as_ref().map(|_| ()));
        }
        // Lines beside a bar would be taken for parts of it.
        let told = caller.told.into_inner();
        drop(bar);
        told.iter().for_each(|text| say(text));
        if personal.verbose {
            say(&format!("{} took {} ms", personal.verb, began.elapsed().as_millis()));
        }
        let mut reply = result?;
        if let Reply::Vdi(VdiInfo { device: Some(device), opened_by, .. }) = &mut reply
            && matches!(format, OutputFormat::Table | OutputFormat::Json)
        {
            *opened_by = blockdev::user(device);
        }
        if let Some(entry) = &elsewhere {
            say(&format!(
                "the name {0} still leads to {1}; `--name {0}` in place of the name changes it",
                entry.name,
                entry.shown_place()
            ));
        }
        if let Some(bare) = bare {
            say_unit(&bare);
        }
        if stderr().is_terminal() {
            let namesakes = new.filter(|_| !is_of_api).and_then(|new| new.namesakes());
            nameless.into_iter().chain(namesakes).for_each(|hint| say(&hint));
        }
        Ok(reply)
    }
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

/// The SIZE of a command, if it has no unit.
fn bare_size(verb: &Verb) -> Option<&str> {
    let size = match verb {
        Verb::VdiCreate { size, .. } | Verb::VdiResize { size, .. } => Some(size),
        Verb::VdiImport { size, .. } | Verb::SrCreate { size, .. } => size.as_ref(),
        _ => None,
    };
    size.map(String::as_str).filter(|size| size::is_bare(size))
}

/// The way to a name for what a command makes, if it gets none.
fn nameless(verb: &Verb, sr: Option<SrUuid>, has_name: bool) -> Option<String> {
    match verb {
        Verb::VdiCreate { vdi, new, .. } if new.names.label.is_none() => {
            Some(format!("it has no label; sm vdi_set {}/{} --label TEXT gives it one", sr?, vdi.vdi))
        }
        Verb::SrCreate { .. } if !has_name => {
            Some(format!("it has no name on this host; sm sr_attach --name NAME, -t, -d and {} give it one", sr?))
        }
        _ => None,
    }
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
