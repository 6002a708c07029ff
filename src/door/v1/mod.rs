//! SR Driver API v1.0: `FileSR COMMAND -d DCONF SR-UUID [ARG …]`, and for people `sm COMMAND -t TYPE …`. Results are
//! s-expressions, failures an exit status and one line on stderr.
//!
//! | file | what |
//! |---|---|
//! | [`grammar`] | the words of a command line: options, verbs and their arguments |
//! | [`single`] | the command of a line, built without the others |
//! | [`lines`] | the command lines of `sm` and of the drivers, made of these |
//! | [`request`] | what the words of a command line mean |
//! | [`verbs`] | each command: which operations of the session it is |
//! | [`collecting`] | the options of sr_collect, and its steps as JSON |
//! | [`mod@answer`] | what is answered, and how it is written |
//! | [`wire`] | the form of data in answers |
//! | [`person`] | one line of `sm`: names are looked up, what was made is told |
//! | [`naming`] | commands that change the names of SRs |
//! | [`natural`] | what a person means by a word of other tools |
//! | [`question`] | a person is asked before data is lost |
//! | [`words`] | what a person may leave out of a line |
//! | [`address`] | what names, labels and starts of UUIDs stand for |
//! | [`listing`] | `sm sr_list`: the SRs of this host |
//! | [`metrics`] | `sm sr_metrics`: the SRs of this host as OpenMetrics text |
//! | [`plan`] | what a command that destroys would do |
//! | [`json`] | the form of JSON that `sm` answers |
//! | [`log`] | the line in the system log for each change |
//! | [`complete`] | what may stand where a person's cursor is, for shells |
//! | [`overview`] | the commands of `sm` in groups |
//! | [`manual`] | examples, files and variables, for `--help` and the man pages |
//! | [`status`] | the exit status of each failure |
//! | [`progress`] | how far a copy has come, for a person |

pub mod address;
pub mod answer;
pub mod collecting;
pub mod complete;
pub mod grammar;
pub mod json;
pub mod lines;
pub mod listing;
pub mod log;
pub mod manual;
pub mod metrics;
pub mod naming;
pub mod natural;
pub mod overview;
pub mod person;
pub mod plan;
pub mod printer;
pub mod progress;
pub mod question;
pub mod request;
pub mod single;
pub mod status;
pub mod verbs;
pub mod wire;
pub mod words;

use std::cell::RefCell;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;

use self::answer::{Reply, answer, not_parsed};
use self::grammar::{Common, DriverCommand, OutputFormat, Verb};
use self::progress::ProgressBar;
use self::verbs::Caller;
use self::words::Known;
use super::{Answer, cli, sexp};
use crate::context::{Context, LONGEST_WAIT};
use crate::error::{Error, Result};
use crate::sr::Driver;

pub use self::answer::of_panic;
pub use self::lines::{driver_command, sm_command};

/// Serves one call of an agent.
pub fn driver(driver: &'static Driver, args: Vec<OsString>) -> Answer {
    let parse = |command: clap::Command, args| {
        command.try_get_matches_from(args).and_then(|matches| DriverCommand::from_arg_matches(&matches))
    };
    let options = lines::driver_options(driver);
    let word = lines::command_word(&options, &args).unwrap_or_default().to_owned();
    let brief = parse(Verb::add_to(options, Some(&word)), args.clone());
    let parsed = brief.or_else(|refused| match refused.kind() {
        ErrorKind::DisplayVersion => Err(refused),
        // Help and the words of an error come from the whole definition.
        _ => parse(driver_command(driver), args),
    });
    match parsed {
        Ok(command) => {
            let format = command.common.format.unwrap_or(command.verb.usual_format());
            answer(serve(driver, &command.common, command.verb), format)
        }
        Err(e) => not_parsed(e, OutputFormat::Sexp, None),
    }
}

/// Serves one call of a person.
pub fn sm(args: Vec<OsString>) -> Answer {
    if complete::is_meant(&args) {
        return complete::serve(&args);
    }
    let args = with_help_as_option(args);
    let options = lines::sm_options();
    let word = lines::command_word(&options, &args).unwrap_or_default().to_owned();
    if cli::is_meant(&word) {
        return cli::serve(args);
    }
    let command = lines::brief_command(options, Some(&word));
    let known = Known { is_sr: &address::is_sr, default_sr: address::default_sr(), redirected: &request::redirected };
    let lines = words::lines(&command, args, &known);
    person::serve(command, &word, lines)
}

/// `sm help [COMMAND]` as `sm [COMMAND] --help`.
fn with_help_as_option(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.get(1).is_some_and(|word| word == "help") {
        args.remove(1);
        args.push("--help".into());
    }
    args
}

fn serve(driver: &'static Driver, common: &Common, verb: Verb) -> Result<Reply> {
    let dconf =
        common.dconf.as_deref().ok_or_else(|| Error::Usage(format!("-d DCONF is missing: {}", driver.dconf_form)))?;
    let config = sexp::device_config(driver, dconf)?;
    let bar = ProgressBar::hidden();
    let context = Context { deadline: deadline(common), progress: &|done, total| bar.show(done, total), others: None };
    Caller { driver, config, context: &context, copy_to: None, person: false, agreed: None, told: RefCell::default() }
        .carry_out(verb)
}

/// The end of every wait of a call.
fn deadline(common: &Common) -> Instant {
    Instant::now() + Duration::from_secs(common.wait).min(LONGEST_WAIT)
}
