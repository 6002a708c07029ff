//! The commands of `sm` in groups, those of every day first: for `sm --help` and the man page.

use clap::Command;

/// The groups, and their commands in order.
pub const GROUPS: &[(&str, &[&str])] = &[
    ("SRs", &["sr_list", "sr_create", "sr_scan", "sr_attach", "sr_detach", "sr_delete", "sr_name"]),
    (
        "Disks",
        &[
            "vdi_create",
            "vdi_attach",
            "vdi_detach",
            "vdi_delete",
            "vdi_snapshot",
            "vdi_revert",
            "vdi_clone",
            "vdi_copy",
            "vdi_resize",
            "vdi_set",
            "vdi_export",
            "vdi_import",
        ],
    ),
    ("Space and health", &["sr_space", "sr_check", "sr_collect", "sr_trim", "vdi_tree", "sr_metrics"]),
    ("The host", &["devices", "backends", "backup", "target", "layout", "plan", "apply", "tune", "doctor"]),
    (
        "Mostly for programs",
        &["sr_get_params", "vdi_get_params", "sr_probe", "sr_content_type", "vdi_lock", "vdi_unlock"],
    ),
];

/// Characters of a line of the help.
const WIDTH: usize = 100;
/// Characters before the text of a command.
const INDENT: usize = 19;

/// The commands as `sm --help` lists them: the first sentence of each.
pub fn listed(command: &Command) -> String {
    let mut text = String::new();
    for (title, names) in GROUPS {
        text.push_str(&format!("{title}:\n"));
        for verb in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            let sentence = about.split_once(". ").map_or(about.as_str(), |(first, _)| first);
            text.push_str(&wrapped(verb.get_name(), sentence));
        }
        text.push('\n');
    }
    text
}

/// A name, and beside it a text in lines of [`WIDTH`].
fn wrapped(name: &str, text: &str) -> String {
    let mut lines = format!("  {name:width$}", width = INDENT - 2);
    let mut at = INDENT;
    for word in text.split(' ') {
        let length = word.chars().count();
        if at > INDENT && at + 1 + length > WIDTH {
            lines.push_str(&format!("\n{:INDENT$}", ""));
            at = INDENT;
        }
        if at > INDENT {
            lines.push(' ');
            at += 1;
        }
        lines.push_str(word);
        at += length;
    }
    lines + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::v1::sm_command;

    #[test]
    fn every_command_is_in_one_group() {
        let command = sm_command();
        let mut names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        names.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, names);
    }

    #[test]
    fn a_text_is_broken_between_words() {
        let text = wrapped("sr_x", &"word ".repeat(30));
        assert!(text.lines().count() == 2 && text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.lines().nth(1).unwrap().starts_with(&format!("{:INDENT$}word", "")), "{text}");
    }
}
