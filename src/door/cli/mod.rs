//! The commands of `sm` that are not about one SR: `devices`, `backends`, `backup`, `layout`, `plan`, `tune`, `doctor`.
//!
//! | file | what |
//! |---|---|
//! | [`grammar`] | the command lines |
//! | [`devices`], [`layouts`] | what each command does |
//! | [`agent`] | the database of xapi, where there is one |
//! | [`shown`], [`layouts_shown`] | the answers as tables, s-expressions and JSON |
//! | [`backup`] | the commands of `sm backup`, with their command lines and answers |
//!
//! A line of another command never comes here: the command line of these is built only for their lines.

pub mod agent;
pub mod apply;
pub mod backup;
pub mod devices;
pub mod grammar;
pub mod layouts;
pub mod layouts_shown;
pub mod shown;
pub mod target;

use std::ffi::OsString;
use std::time::Duration;

use self::grammar::{Group, SmLine};
use super::v1::answer::{failed, not_parsed};
use super::v1::grammar::OutputFormat;
use super::v1::log;
use super::v1::person::{asked_format, chosen_format};
use super::{Answer, doctor};
use crate::context::LONGEST_WAIT;
use crate::error::Result;
use crate::sys::run_dir;
use crate::types::printable;

/// The commands of this module.
pub const GROUPS: [&str; 9] = ["devices", "backends", "backup", "target", "layout", "plan", "apply", "tune", "doctor"];

/// Whether the command of a line is one of these.
pub fn is_meant(command: &str) -> bool {
    GROUPS.contains(&command)
}

/// Serves one line.
pub fn serve(args: Vec<OsString>) -> Answer {
    use clap::FromArgMatches;
    let asked = asked_format(&args);
    let parsed = grammar::command().try_get_matches_from(args).and_then(|matches| SmLine::from_arg_matches(&matches));
    match parsed {
        Err(e) => not_parsed(e, asked, Some(&grammar::command())),
        Ok(line) => {
            let (said, format) = (line.format, chosen_format(line.format, OutputFormat::Sexp));
            match carry_out(&line.group) {
                Ok(reply) => {
                    let format = chosen_format(said, reply.usual_format());
                    let stdout = shown::write(&reply, format);
                    let warned: String =
                        reply.warnings().iter().map(|text| format!("warning: {}\n", printable(text))).collect();
                    let answer = match reply.failure() {
                        Some(failure) => failed(&failure, stdout, format),
                        None => Answer { stdout, stderr: String::new(), status: reply.status() },
                    };
                    Answer { stderr: warned + &answer.stderr, ..answer }
                }
                Err(e) => failed(&e, Vec::new(), format),
            }
        }
    }
}

fn carry_out(group: &Group) -> Result<shown::Reply> {
    let change = group.change();
    let result = match group {
        Group::Backup { command } => backup::carry_out(command).map(shown::Reply::Backup),
        Group::Target { command } => target::carry_out(command).map(shown::Reply::Target),
        Group::Devices { list, command } => devices::carry_out(list, command.as_ref()),
        Group::Backends => devices::backends(),
        Group::Layout { command } => layouts::layout(command),
        Group::Plan(args) => layouts::plan(args),
        Group::Apply(args) => apply::apply(args),
        Group::Tune(args) => apply::tune(args),
        Group::Doctor { wait } => {
            let patience = wait.map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT));
            Ok(shown::Reply::Doctor(doctor::examine(patience)))
        }
    };
    if let Some(change) = change {
        log::write(&format!("sm: uid {}: {change}", run_dir::user()), result.as_ref().map(|_| ()));
    }
    result
}
