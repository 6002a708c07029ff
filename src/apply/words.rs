//! Lines for a shell: the commands that follow a run.

use std::collections::BTreeMap;

use super::Outcome;
use crate::layout::plan::{Action, Allow, Step};
use crate::layout::{Layout, SlotId, config, steps};
use crate::sys::run_dir;
use crate::types::DeviceConfig;
pub use crate::types::shell;

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
    let resume = |allow: &Allow| run_dir::sm(&["apply", "--resume", "--allow", allow.word(), name]);
    lines.extend(again.keys().map(resume));
    lines
}

/// The command that deletes what a slot leaves on its medium.
fn deletion(old: Option<&Layout>, step: &Step) -> Option<String> {
    let (layout, id) = (old?, step.object.parse::<SlotId>().ok()?);
    let slot = layout.slot(id)?;
    let dconf = dconf(&config::device_config(layout, slot));
    Some(run_dir::sm(&["sr_delete", "--yes", "-t", id.class.word(), "-d", &dconf, &slot.uuid.to_string()]))
}

/// A device_config as `-d` takes it.
pub fn dconf(config: &DeviceConfig) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
    let pairs: Vec<String> = config.0.iter().map(|(key, value)| format!("({key} . \"{}\")", escaped(value))).collect();
    format!("({})", pairs.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_config_is_told_in_the_words_of_d() {
        let config = DeviceConfig::from([("device", "/dev/a,/dev/b"), ("x", "a\"b\\")]);
        assert_eq!(dconf(&config), "((device . \"/dev/a,/dev/b\") (x . \"a\\\"b\\\\\"))");
    }
}
