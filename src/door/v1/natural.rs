//! The command or option that a person means by a word of other tools: `ls`, `vdi_list`, `--name` of a disk. `sm` has one word for
//! each thing, so another word is refused, and the refusal says the word that there is.

use clap::Command;

use crate::backup::store;
use crate::error;
use crate::sys::run_dir;
use crate::types::{Format, nearest};

/// Words of other tools, and the commands of `sm` that do what they say.
const ACTIONS: &[(&[&str], &[&str])] = &[
    (&["list", "ls", "ll", "dir", "enumerate", "all"], &["sr_scan", "sr_list", "list"]),
    (
        &["show", "info", "get", "status", "stat", "state", "describe", "inspect", "display", "params", "explain"],
        &["vdi_get_params", "sr_get_params", "show", "info", "why", "check"],
    ),
    (&["df", "free", "size", "capacity"], &["sr_list", "sr_space", "list"]),
    (&["du", "usage", "used"], &["sr_space"]),
    (
        &["create", "new", "make", "mk", "mkfs", "add", "init", "format", "allocate"],
        &["vdi_create", "sr_create", "define", "publish", "claim"],
    ),
    (
        &["delete", "remove", "rm", "del", "destroy", "erase", "purge", "drop", "undefine"],
        &["vdi_delete", "sr_delete", "remove", "unpublish", "release"],
    ),
    (
        &["attach", "mount", "plug", "connect", "map", "activate", "open", "start", "introduce"],
        &["vdi_attach", "sr_attach", "publish"],
    ),
    (
        &["detach", "umount", "unmount", "unplug", "disconnect", "unmap", "deactivate", "close", "stop", "eject"],
        &["vdi_detach", "sr_detach", "unpublish"],
    ),
    (&["snapshot", "snap", "checkpoint"], &["vdi_snapshot"]),
    (&["clone", "fork", "branch"], &["vdi_clone"]),
    (&["copy", "cp", "duplicate", "move", "mv", "migrate", "convert"], &["vdi_copy"]),
    (&["resize", "grow", "extend", "expand", "enlarge", "shrink", "reduce", "truncate"], &["vdi_resize"]),
    (&["rename", "name", "label", "edit", "modify", "update", "change", "set"], &["vdi_set --label", "sr_name"]),
    (&["forget"], &["sr_name --forget", "undefine"]),
    (&["revert", "rollback", "restore", "undo", "reset"], &["vdi_revert", "import"]),
    (&["check", "fsck", "verify", "repair", "scrub", "validate", "test", "fix"], &["sr_check", "verify"]),
    (&["collect", "gc", "coalesce", "prune", "clean", "cleanup", "compact", "merge"], &["sr_collect", "consolidate"]),
    (&["trim", "fstrim", "discard", "blkdiscard"], &["sr_trim"]),
    (&["diagnose", "health", "troubleshoot", "status"], &["doctor"]),
    (&["export", "dump", "download", "save", "run"], &["vdi_export", "export"]),
    (&["import", "upload", "load"], &["vdi_import", "import"]),
    (&["tree", "chain", "chains", "parents", "snapshots"], &["vdi_tree"]),
    (&["probe", "discover", "find", "search", "detect"], &["sr_probe", "sr_list"]),
    (&["metrics", "stats", "monitor"], &["sr_metrics"]),
    (&["acquire"], &["vdi_lock"]),
    (&["lsblk", "device", "blockdevs"], &["devices"]),
    (&["iscsi", "share"], &["target", "publish"]),
    (&["full"], &["consolidate"]),
    (&["rescan", "refresh"], &["list", "sr_list"]),
];

/// What other tools call an SR or a VDI, alone or in front of the word for what is done.
const SR: &[&str] = &["sr", "srs", "pool", "pools", "repo", "storage", "pbd"];
const VDI: &[&str] = &["vdi", "vdis", "disk", "disks", "vol", "volume", "volumes", "image", "images", "lv", "vbd"];

/// The commands that a word may stand for, the likeliest first. `command`: the command line that has no command of that word.
pub fn commands(command: &Command, word: &str) -> Vec<String> {
    let word: String = word.chars().take(64).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect();
    let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let is_known = |meant: &&&str| meant.split(' ').next().is_some_and(|name| names.contains(&name));
    // `sm devices /dev/sda`
    if word.contains('/') && names.contains(&"why") {
        return vec![format!("why {word}")];
    }
    let (object, action) = match word.split_once('_') {
        Some((object, action)) if SR.contains(&object) || VDI.contains(&object) => (Some(object), action),
        None if SR.contains(&word.as_str()) || VDI.contains(&word.as_str()) => (Some(word.as_str()), "list"),
        _ => (None, word.as_str()),
    };
    if names.contains(&word.as_str()) {
        return vec![word];
    }
    let row = ACTIONS.iter().find(|(words, _)| words.contains(&action));
    let meant: Vec<&str> = row.into_iter().flat_map(|(_, meant)| meant.iter().filter(is_known).copied()).collect();
    let is_of_object = |name: &&str| match object {
        Some(object) if VDI.contains(&object) => !name.starts_with("sr_"),
        Some(_) => name.starts_with("sr_") && !(*name == LISTS_DISKS && meant.contains(&"sr_list")),
        None => true,
    };
    let of_object: Vec<&str> = meant.iter().copied().filter(is_of_object).collect();
    match (of_object.is_empty(), meant.is_empty()) {
        (false, _) => of_object.into_iter().take(MOST).map(str::to_owned).collect(),
        // What lists SRs lists no disks.
        (true, false) => meant.into_iter().filter(|name| *name != "sr_list").take(1).map(str::to_owned).collect(),
        (true, true) => nearest(&word, names).map(str::to_owned).into_iter().collect(),
    }
}

/// The command that lists the disks of an SR.
const LISTS_DISKS: &str = "sr_scan";
/// How many commands one word is answered with.
const MOST: usize = 2;

/// Options of other tools, and what `sm` has in their place. A hint that begins with an option is for commands that have it.
const OPTIONS: &[(&[&str], &str)] = &[
    (&["--name", "--title", "--name-label"], "--label gives a VDI its name"),
    (&["--label", "--title", "--name-label"], "--name gives an SR its name on this host"),
    (&["--type", "--driver", "--kind"], "--sr-type (-t) is the type of an SR"),
    (
        &["--device", "--dev", "--path", "--dir", "--location", "--server", "--target"],
        "--dconf (-d) says where an SR lives",
    ),
    (&["--json"], "--format json writes JSON"),
    (&["--incremental", "--increment", "--inc", "--changed"], "--since last stores only the blocks that changed"),
    (&["--table"], "--format table writes a table"),
    (&["--comment", "--note", "--desc"], "--description gives a VDI its purpose"),
    (&["--raw", "--vhd", "--qcow2"], "--type is the format of a disk"),
    (&["--force", "-f"], "--yes does it without a question"),
    (&["--ro", "-r", "--readonly"], "--read-only makes it read-only"),
];

/// Options that are words in `sm`: the name of the word in a usage.
const WORDS: &[(&[&str], &str)] = &[
    (&["--size", "-s", "--capacity"], "SIZE"),
    (&["--name", "--label"], "NAME"),
    (&["--uuid", "-u", "--id"], "UUID"),
    (&["--sr"], "SR"),
    (&["--vdi", "--disk"], "VDI"),
    (&["--snapshot"], "SNAPSHOT"),
    (&["--output", "-o", "--file", "-f", "--input", "-i"], "FILE"),
    (&["--to", "--dest"], "DST-SR"),
    (&["--user"], "USER"),
];

/// What a person may have meant by an option that a command does not have. `usage`: how the command is called.
pub fn option(root: &Command, usage: &str, given: &str) -> Option<String> {
    let command = of_usage(root, usage);
    let all = || command.get_arguments().chain(root.get_arguments());
    let has = |long: &str| all().any(|arg| arg.get_long() == long.strip_prefix("--"));
    let hint = OPTIONS.iter().find(|(words, hint)| {
        let option = hint.split(' ').next().unwrap_or_default();
        words.contains(&given) && option != given && has(option)
    });
    if let Some((_, hint)) = hint {
        return Some((*hint).to_owned());
    }
    if ["--force", "-f"].contains(&given) && usage.contains("[FORCE]") {
        return Some(format!("FORCE is the word TRUE before USER: {usage}"));
    }
    let (_, word) = WORDS.iter().find(|(words, word)| words.contains(&given) && usage.contains(word))?;
    Some(format!("{word} is a word, without an option before it: {usage}"))
}

/// The command line of the command that a usage such as `sm backup list [OPTIONS]` tells of.
pub fn of_usage<'c>(command: &'c Command, usage: &str) -> &'c Command {
    let words = usage.split_whitespace().skip(1);
    let mut found = command;
    for word in words {
        match found.find_subcommand(word) {
            Some(inner) => found = inner,
            None => break,
        }
    }
    found
}

/// What a person may have meant by a value that an option does not take.
pub fn value(option: &str, value: &str) -> Option<&'static str> {
    (option.starts_with("--format") && value.parse::<Format>().is_ok()).then_some("--type is the format of a disk")
}

/// What a person may have meant by a word that a command does not take. `usage`: how the command is called.
pub fn one_too_many(usage: &str, word: &str) -> Option<String> {
    let is_of = |command: &str| usage.contains(&format!(" {command} "));
    match word {
        _ if is_of("backup define") && word.contains('/') => {
            Some(format!("; a disk is said by an option: --disk {word}"))
        }
        "true" | "false" if is_of("sm vdi_set") => Some(format!("; a value stands behind =, as in --read-only={word}")),
        _ if is_of("sm vdi_set") => Some("; --label and --description say what a VDI is called".to_owned()),
        _ if is_of("sm sr_create") => Some("; -t says the type of the SR, and -d where it is".to_owned()),
        _ => None,
    }
}

/// Where a person finds the words that a line lacks. `known`: the names that SRs have.
pub fn missing(words: &str, known: &[String]) -> String {
    let has = |name: &str| words.split(' ').any(|word| word == name);
    if has("<VDI>") || has("<SOURCE>") {
        "a disk is said with its SR, as in fast/web; ".to_owned()
    } else if has("<SR>") || has("<DST-SR>") {
        format!("{}; ", error::known_srs(known))
    } else if has("<USER>") {
        "USER is any text that says who has the disk, as host1/vm7 after fast/web; ".to_owned()
    } else if has("<STORE>") {
        stores()
    } else if has("<FILE>") {
        "- is standard output or input; ".to_owned()
    } else {
        String::new()
    }
}

/// The stores of this host, in a clause.
fn stores() -> String {
    let names: Vec<String> = store::all().unwrap_or_default().iter().map(|store| store.name.to_string()).collect();
    match names.as_slice() {
        [] => format!("{} says which stores there are, and names none; ", run_dir::stores().display()),
        names => format!("stores of this host are {}; ", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::v1::sm_command;

    #[test]
    fn a_word_of_another_tool_is_answered_with_a_command_of_sm() {
        let root = sm_command();
        for (word, meant) in [
            ("list", "sr_scan sr_list"),
            ("vdi_list", "sr_scan"),
            ("vdi-ls", "sr_scan"),
            ("disks", "sr_scan"),
            ("sr_ls", "sr_list"),
            ("srs", "sr_list"),
            ("create", "vdi_create sr_create"),
            ("sr_new", "sr_create"),
            ("rm", "vdi_delete sr_delete"),
            ("pool-delete", "sr_delete"),
            ("df", "sr_list sr_space"),
            ("mount", "vdi_attach sr_attach"),
            ("sr_umount", "sr_detach"),
            ("snapshot", "vdi_snapshot"),
            ("info", "vdi_get_params sr_get_params"),
            ("vdi_info", "vdi_get_params"),
            ("vdi_rename", "vdi_set --label"),
            ("sr_rename", "sr_name"),
            ("sr_forget", "sr_name --forget"),
            ("fsck", "sr_check"),
            ("restore", "vdi_revert"),
            ("vdi_atach", "vdi_attach"),
            ("vdi_fly", ""),
            ("", ""),
        ] {
            assert_eq!(commands(&root, word).join(" "), meant, "{word}");
        }
        for (usage, word, meant) in [
            ("sm backup <COMMAND>", "delete", "remove"),
            ("sm backup <COMMAND>", "restore", "import"),
            ("sm backup <COMMAND>", "ls", "list"),
            ("sm backup <COMMAND>", "create", "define"),
            ("sm target <COMMAND>", "rm", "unpublish"),
            ("sm devices [OPTIONS] [COMMAND]", "info", "why"),
            ("sm devices [OPTIONS] [COMMAND]", "lits", "list"),
        ] {
            assert_eq!(commands(of_usage(&root, usage), word).join(" "), meant, "{usage} {word}");
        }
        // Every command that is told of is one.
        let of_groups = root.get_subcommands().flat_map(|group| group.get_subcommands());
        let names: Vec<&str> = root.get_subcommands().chain(of_groups).map(Command::get_name).collect();
        for meant in ACTIONS.iter().flat_map(|(_, meant)| meant.iter()) {
            assert!(names.contains(&meant.split(' ').next().unwrap()), "{meant}");
        }
    }

    #[test]
    fn an_option_of_another_tool_is_answered_with_what_sm_has() {
        let root = sm_command();
        let said = |usage: &str, given: &str| option(&root, usage, given).unwrap_or_default();
        let create = "sm vdi_create [OPTIONS] [SR] [LABEL|UUID] <SIZE>";
        assert!(said(create, "--name").starts_with("--label"));
        assert!(said(create, "--size").starts_with("SIZE is a word"));
        assert!(said("sm sr_create [OPTIONS] [SR] [SIZE]", "--label").starts_with("--name"));
        assert!(said("sm sr_create [OPTIONS] [SR] [SIZE]", "--type").starts_with("--sr-type (-t)"));
        assert!(said("sm sr_create [OPTIONS] [SR] [SIZE]", "--device").starts_with("--dconf (-d)"));
        assert!(said("sm sr_name [OPTIONS] <SR> [NAME]", "--label").starts_with("NAME is a word"));
        assert!(said("sm vdi_export [OPTIONS] [SR] <VDI> <FILE>", "--output").starts_with("FILE is a word"));
        assert!(said("sm sr_scan [OPTIONS] [SR]", "--json").starts_with("--format json"));
        assert!(said(create, "--qcow2").starts_with("--type"));
        assert!(said("sm vdi_delete [OPTIONS] [SR] <VDI>…", "--force").starts_with("--yes"));
        assert!(said("sm vdi_lock [OPTIONS] [SR] <VDI> [FORCE] <USER>", "--force").starts_with("FORCE is the word"));
        assert_eq!(said("sm sr_scan [OPTIONS] [SR]", "--explode"), "");
        assert!(value("--format <FORMAT>", "qcow2").is_some() && value("--format <FORMAT>", "xml").is_none());
    }
}
