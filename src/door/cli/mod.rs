//! The commands of `sm` that are about media and not about SRs: `devices`, `backends`.
//!
//! | file | what |
//! |---|---|
//! | [`grammar`] | the command lines |
//! | [`devices`] | what each command does |
//! | [`shown`] | the answers as tables, s-expressions and JSON |
//!
//! A line of another command never comes here: the command line of these is built only for their lines.

pub mod devices;
pub mod grammar;
pub mod shown;

use std::ffi::OsString;
use std::io::{IsTerminal, stdout};

use self::grammar::{Group, SmLine};
use super::Answer;
use super::v1::answer::not_parsed;
use super::v1::grammar::OutputFormat;
use super::v1::{json, status};
use crate::error::{Result, one_line};
use crate::sys::syslog;

/// The commands of this module.
pub const GROUPS: [&str; 2] = ["devices", "backends"];

/// Whether a line is one of these commands. Options of `sm` may stand before the command.
pub fn is_meant(args: &[OsString]) -> bool {
    let mut words = args.iter().skip(1).map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        match word.as_ref() {
            "--format" => drop(words.next()),
            word if word.starts_with('-') => {}
            word => return GROUPS.contains(&word),
        }
    }
    false
}

/// Serves one line.
pub fn serve(args: Vec<OsString>) -> Answer {
    use clap::FromArgMatches;
    let asked_json = args.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json");
    let asked_json = asked_json || args.iter().any(|arg| arg == "--format=json");
    let parsed = grammar::command().try_get_matches_from(args).and_then(|matches| SmLine::from_arg_matches(&matches));
    match parsed {
        Err(e) => not_parsed(e, if asked_json { OutputFormat::Json } else { OutputFormat::Sexp }),
        Ok(line) => {
            let usual = if stdout().is_terminal() { OutputFormat::Table } else { OutputFormat::Sexp };
            let format = line.format.unwrap_or(usual);
            answer(carry_out(&line.group), format)
        }
    }
}

fn carry_out(group: &Group) -> Result<shown::Reply> {
    let change = group.change();
    let result = devices::carry_out(group);
    if let Some(change) = change {
        let end = result.as_ref().map_or_else(|e| format!("failed: {}", one_line(e)), |_| "done".to_owned());
        syslog::write(&format!("sm: uid {}: {change}: {end}", crate::sys::run_dir::user()));
    }
    result
}

fn answer(result: Result<shown::Reply>, format: OutputFormat) -> Answer {
    match result {
        Ok(reply) => Answer { stdout: shown::write(&reply, format), stderr: String::new(), status: 0 },
        Err(e) => {
            let (number, name) = status::exit_status(&e);
            let message = format!("{}{}", one_line(&e), status::remedy(&e));
            let stderr = match format {
                OutputFormat::Json => String::from_utf8_lossy(&json::failure(name, number, &message)).into_owned(),
                _ => format!("{name}: {message}\n"),
            };
            Answer { stdout: Vec::new(), stderr, status: number }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_these_commands_are_told_from_those_of_srs() {
        let meant = |line: &str| is_meant(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["sm devices", "sm devices why /dev/sda", "sm --format json devices", "sm -v backends"] {
            assert!(meant(line), "{line}");
        }
        for line in ["sm", "sm sr_list", "sm sr_scan devices", "sm --help", "sm --format devices sr_list"] {
            assert!(!meant(line), "{line}");
        }
    }
}
