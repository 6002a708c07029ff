//! Plans on a host with xapi: calls of `xe`, printed or run. Arguments are words of a program, never a line for a shell.

use std::time::Duration;

use super::hooks::Hooks;
use super::media;
use crate::error::{Error, Result};
use crate::layout::agent::{Call, Order};
use crate::layout::plan::{Action, Step};
use crate::sys::tool::Tool;

/// How long a call may take. sr-create formats, and pbd-plug waits for servers.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Bytes of the longest answer: the UUID of what was made.
const LONGEST: usize = 4 << 10;

/// The steps of a plan that may be done, and those that are left out.
pub fn pending<'s>(order: &Order<'s>) -> (Vec<&'s Step>, Vec<&'s Step>) {
    order.steps.iter().partition(|step| super::Job::is_allowed(step, order.allow))
}

/// The lines for a shell that carry out the steps that may be done.
///
/// # Errors
/// Those of [`Order::calls`].
pub fn lines(order: &Order) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for step in pending(order).0 {
        lines.extend(order.calls(step)?.iter().map(Call::line));
    }
    Ok(lines)
}

/// Runs the calls of the steps that may be done, and the hooks around them; the steps, and what the hooks after them say. `told`:
/// called with each step before it is done; `warn`: with what the hooks after a failure say. `again`: the call of `sm` that goes on
/// after a failure.
///
/// # Errors
/// [`Error::HookDenied`]; [`Error::PartlyApplied`] with the step that failed. Every call that succeeded is in the agent's database, so
/// the next plan has the rest.
pub fn run(
    order: &Order,
    again: &str,
    told: &dyn Fn(&Step),
    warn: &dyn Fn(&str),
) -> Result<(Vec<Step>, Option<String>)> {
    let steps = order.needed(pending(order).0)?;
    let hooks = Hooks::begin(order.name, order.new.is_none(), &steps, order.allow)?;
    let done = carried_out(order, &steps, again, told);
    let warning = hooks.end(done.is_ok());
    if done.is_err() {
        warning.iter().for_each(|text| warn(text));
    }
    Ok((done?, warning))
}

fn carried_out(order: &Order, steps: &[&Step], again: &str, told: &dyn Fn(&Step)) -> Result<Vec<Step>> {
    let mut done = Vec::new();
    for step in steps {
        told(step);
        if let Err(cause) = carry_out(order, step) {
            return Err(Error::PartlyApplied {
                layout: order.name.to_string(),
                done: done.len(),
                of: steps.len(),
                step: step.what.clone(),
                cause: Box::new(cause),
                again: again.to_owned(),
            });
        }
        done.push(Step { done: true, ..(*step).clone() });
    }
    Ok(done)
}

fn carry_out(order: &Order, step: &Step) -> Result<()> {
    let slot = order.new.and_then(|layout| Some((layout, layout.slot(step.object.parse().ok()?)?)));
    if let (Action::Create | Action::Adopt, Some((layout, slot))) = (step.action, slot) {
        media::identify(slot)?;
        if step.action == Action::Adopt {
            media::must_hold(layout, slot)?;
        }
    }
    order.calls(step)?.iter().try_for_each(|call| answer(call).map(drop))
}

/// What a call answers.
fn answer(call: &Call) -> Result<String> {
    let fed = match &call.fed {
        Some((key, by)) => Some(format!("{key}{}", answer(by)?)),
        None => None,
    };
    let words = call.words.iter().chain(&fed);
    let output = Tool::new("xe").args(words).deadline(PATIENCE).at_most(LONGEST).run()?;
    Ok(output.stdout.trim().to_owned())
}
