//! SR Driver API v1.0: `FileSR COMMAND -d DCONF SR-UUID [ARG …]`, and for people `sm COMMAND -t TYPE …`. Results are
//! s-expressions, failures an exit status and one line on stderr.
//!
//! | file | what |
//! |---|---|
//! | [`grammar`] | the command lines |
//! | [`request`] | what the words of a command line mean |
//! | [`verbs`] | each command: which operations of the session it is |
//! | [`mod@answer`] | what is answered, and how it is written |
//! | [`wire`] | the form of data in answers |
//! | [`status`] | the exit status of each failure |
//! | [`progress`] | how far a copy has come, for a person |

pub mod answer;
pub mod grammar;
pub mod progress;
pub mod request;
pub mod status;
pub mod verbs;
pub mod wire;

use std::ffi::OsString;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use clap::FromArgMatches;

use self::answer::{Reply, answer, not_parsed};
use self::grammar::{Common, DriverCommand, OutputFormat, SmCommand, Verb};
use self::progress::ProgressBar;
use self::verbs::Caller;
use super::{Answer, sexp};
use crate::call::policy;
use crate::context::{Context, LONGEST_WAIT};
use crate::error::{Error, Result};
use crate::sr::{self, Driver};

pub use self::answer::of_panic;
pub use self::grammar::{driver_command, sm_command};

/// Serves one call of an agent.
pub fn driver(driver: &'static Driver, args: Vec<OsString>) -> Answer {
    let parsed =
        driver_command(driver).try_get_matches_from(args).and_then(|matches| DriverCommand::from_arg_matches(&matches));
    match parsed {
        Ok(command) => {
            let format = command.common.format.unwrap_or(command.verb.usual_format());
            answer(serve(driver, &command.common, command.verb, false), format)
        }
        Err(e) => not_parsed(e),
    }
}

/// Serves one call of a person.
pub fn sm(args: Vec<OsString>) -> Answer {
    let parsed =
        sm_command().try_get_matches_from(with_help_as_option(args)).and_then(|m| SmCommand::from_arg_matches(&m));
    let command = match parsed {
        Ok(command) => command,
        Err(e) => return not_parsed(e),
    };
    let usual = || if stdout().is_terminal() { OutputFormat::Table } else { command.verb.usual_format() };
    let format = command.common.format.unwrap_or_else(usual);
    let chosen = command.sr_type.as_deref().ok_or_else(|| {
        let known: Vec<&str> = sr::DRIVERS.iter().map(|d| d.sr_type).collect();
        Error::Usage(format!("-t TYPE is missing: one of {}", known.join(", ")))
    });
    let result = chosen.and_then(sr::driver).and_then(|driver| serve(driver, &command.common, command.verb, true));
    answer(result, format)
}

/// `sm help [COMMAND]` as `sm [COMMAND] --help`.
fn with_help_as_option(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.get(1).is_some_and(|word| word == "help") {
        args.remove(1);
        args.push("--help".into());
    }
    args
}

fn serve(driver: &'static Driver, common: &Common, verb: Verb, person: bool) -> Result<Reply> {
    let dconf =
        common.dconf.as_deref().ok_or_else(|| Error::Usage(format!("-d DCONF is missing: {}", driver.dconf_form)))?;
    let config = sexp::device_config(driver, dconf)?;
    if person {
        policy::refuse_unknown_keys(driver, &config)?;
    }
    let deadline = Instant::now() + Duration::from_secs(common.wait).min(LONGEST_WAIT);
    let bar = ProgressBar::hidden();
    let context = Context { deadline, progress: &|done, total| bar.show(done, total), others: None };
    Caller { driver, config, context, person }.carry_out(verb)
}
