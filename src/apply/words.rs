//! Lines for a shell: the commands that follow a run, and the calls that a host with xapi needs instead of one.

use std::collections::BTreeMap;

use super::{Job, Outcome};
use crate::layout::plan::{Action, Allow, Step};
use crate::layout::{Layout, Slot, SlotId, config, steps};
use crate::types::DeviceConfig;

/// A command line for a shell: words that it would not take as they are, in quotes.
pub fn shell(words: &[&str]) -> String {
    let quoted = |word: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%,".contains(c);
        match !word.is_empty() && word.chars().all(plain) {
            true => (*word).to_owned(),
            false => format!("'{}'", word.replace('\'', "'\\''")),
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// A step in words. A release keeps no data where the same run deletes them: `with` are the steps that it does.
pub fn of_step_among<'s>(step: &Step, with: impl IntoIterator<Item = &'s Step>) -> String {
    let wipes = |it: &Step| it.action == Action::Wipe && it.object == step.object;
    match step.what.strip_suffix(steps::KEEPS) {
        Some(what) if step.action == Action::Release && with.into_iter().any(wipes) => what.to_owned(),
        _ => step.what.clone(),
    }
}

/// The commands that do what a run left out.
pub fn next_steps(outcome: &Outcome) -> Vec<String> {
    let mut lines = Vec::new();
    let mut again: BTreeMap<Allow, Vec<&Step>> = BTreeMap::new();
    for step in &outcome.left {
        match (step.action, step.allow) {
            (Action::Wipe, _) => lines.extend(deletion(outcome.old.as_ref(), step)),
            (_, Some(allow)) => again.entry(allow).or_default().push(step),
            (_, None) => {}
        }
    }
    let name = outcome.layout.as_str();
    let resume = |allow: &Allow| shell(&["sm", "apply", "--resume", "--allow", allow.word(), name]);
    lines.extend(again.keys().map(resume));
    lines
}

/// The command that deletes what a slot leaves on its medium.
fn deletion(old: Option<&Layout>, step: &Step) -> Option<String> {
    let (layout, id) = (old?, step.object.parse::<SlotId>().ok()?);
    let slot = layout.slot(id)?;
    let dconf = dconf(&config::device_config(layout, slot));
    Some(shell(&["sm", "sr_delete", "--yes", "-t", id.class.word(), "-d", &dconf, &slot.uuid.to_string()]))
}

/// A device_config as `-d` takes it.
pub fn dconf(config: &DeviceConfig) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
    let pairs: Vec<String> = config.0.iter().map(|(key, value)| format!("({key} . \"{}\")", escaped(value))).collect();
    format!("({})", pairs.join(" "))
}

/// The calls of `xe` that carry a plan out on a host with xapi, which owns its SRs. `host`: the UUID of the host in xapi.
pub fn xe(job: &Job, host: &str) -> Vec<String> {
    job.plan.steps.iter().filter(|step| step.allow.is_none()).flat_map(|step| of_step(job, step, host)).collect()
}

fn of_step(job: &Job, step: &Step, host: &str) -> Vec<String> {
    let Some((layout, slot)) = job.slot_of(step) else { return Vec::new() };
    let is_new = |slot: &Slot| {
        let object = slot.id.to_string();
        let makes = [Action::Create, Action::Adopt];
        job.plan.steps.iter().any(|it| it.object == object && makes.contains(&it.action))
    };
    let (of_sr, of_host) = (format!("sr-uuid={}", slot.uuid), format!("host-uuid={host}"));
    let (uuid, label) = (format!("uuid={}", slot.uuid), format!("name-label={}", layout.sr_name(slot.id)));
    let (sr_type, shared) = (format!("type={}", slot.id.class), "shared=false");
    let config = config::device_config(layout, slot);
    let config: Vec<String> = config.0.iter().map(|(key, value)| format!("device-config:{key}={value}")).collect();
    let with_config = |words: &[&str]| {
        let words: Vec<&str> = words.iter().copied().chain(config.iter().map(String::as_str)).collect();
        shell(&words)
    };
    let of_pbd = |verb: &str| {
        let list = shell(&["xe", "pbd-list", &of_sr, &of_host, "--minimal"]);
        format!("xe {verb} uuid=\"$({list})\"")
    };
    match step.action {
        Action::Create => {
            vec![with_config(&["xe", "sr-create", &of_host, &label, &sr_type, shared, "content-type=user"])]
        }
        Action::Adopt => {
            let create = with_config(&["xe", "pbd-create", &of_sr, &of_host]);
            vec![
                shell(&["xe", "sr-introduce", &uuid, &label, &sr_type, shared, "content-type=user"]),
                format!("xe pbd-plug uuid=\"$({create})\""),
            ]
        }
        Action::Detach | Action::Stop => vec![of_pbd("pbd-unplug")],
        Action::Start | Action::Attach if !is_new(slot) => vec![of_pbd("pbd-plug")],
        Action::Drop => vec![shell(&["xe", "sr-forget", &uuid])],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_reaches_the_program_as_it_is() {
        assert_eq!(shell(&["sm", "a b", "it's", "", "$(x)", "a=/b,c"]), "sm 'a b' 'it'\\''s' '' '$(x)' a=/b,c");
    }

    #[test]
    fn a_device_config_is_told_in_the_words_of_d() {
        let config = DeviceConfig::from([("device", "/dev/a,/dev/b"), ("x", "a\"b\\")]);
        assert_eq!(dconf(&config), "((device . \"/dev/a,/dev/b\") (x . \"a\\\"b\\\\\"))");
    }
}
