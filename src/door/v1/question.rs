//! The question at a terminal before data is lost: one, whatever the number of disks.

use std::io::{IsTerminal, Write, stderr, stdin};

use super::grammar::Verb;
use super::person::Call;
use super::plan::{self, Plan};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::types::printable;

/// Whether there is a person to be asked. A program is not asked.
pub fn is_possible() -> bool {
    stdin().is_terminal() && stderr().is_terminal()
}

/// Asks a person before data is lost, with what all calls together would do, and has each call remember which disks were shown.
/// `true`: the person was asked, and agreed.
///
/// # Errors
/// [`Error::Usage`] if the person did not agree.
pub fn ask(calls: &mut [&mut Call]) -> Result<bool> {
    let mut lines: Vec<String> = Vec::new();
    for call in calls {
        let Some(plan) = at_stake(call) else { continue };
        call.agreed = plan.doomed;
        for line in plan.lines {
            // A disk may be named twice.
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    if lines.is_empty() {
        return Ok(false);
    }
    go_on(&lines).map(|()| true)
}

/// Asks a person whether to go on with what the lines say.
///
/// # Errors
/// [`Error::Usage`] if the person did not agree.
pub fn go_on(lines: &[String]) -> Result<()> {
    let shown: String = lines.iter().map(|line| format!("{}\n", printable(line))).collect();
    let _ = write!(stderr(), "{shown}Go on? [y/N] ");
    let mut answer = String::new();
    let _ = stdin().read_line(&mut answer);
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Error::Usage("it was not confirmed, and nothing was changed".to_owned())),
    }
}

/// The plan of a call that destroys something and that nobody agreed to; none of any other.
fn at_stake(call: &Call) -> Option<Plan> {
    let overwrites = !matches!(&call.verb, Verb::SrCreate { force: false, destroy_sr, .. } if destroy_sr.is_empty());
    if call.is_of_api || call.personal.yes || call.personal.dry_run || !overwrites {
        return None;
    }
    let context = Context { deadline: call.deadline, progress: &|_, _| {}, others: None };
    // An error of the plan is not told here: the command itself refuses, in its own words.
    let plan = plan::of(&call.verb, &call.target, &call.personal, false, &context);
    plan.ok().flatten().filter(|plan| plan.destroys)
}
