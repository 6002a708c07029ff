//! The words that may stand at a person's cursor, for the completions of shells: `sm __complete WORD… CURRENT`.
//!
//! Commands and options come from the command line's definition, names of SRs from the table, VDIs and labels from the SR. A
//! line of the answer is a word, a tab, and what the word is. No line: the shell completes names of files.
//!
//! Nothing is changed, and no SR keeps a shell waiting: one that does not answer within [`PATIENCE`] has no VDIs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Arg, Command};

use super::address::{default_sr, is_sr, place_of};
use super::lines::{METRICS, sm_command};
use super::words::SEVERAL;
use crate::backup::{set, store};
use crate::call::Session;
use crate::context::Context;
use crate::door::{Answer, cli, said, size};
use crate::layout::installed;
use crate::registry::settings::Settings;
use crate::registry::{self, SrName, view};
use crate::sr::DRIVERS;
use crate::sys::run_dir;
use crate::types::{Class, Format, SrUuid, VdiName, printable};

const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a line asks for completions.
pub fn is_meant(args: &[OsString]) -> bool {
    args.get(1).is_some_and(|word| word == "__complete")
}

/// Serves one call. `args`: the program, the command, the words of the line without its program, the last one the one to be
/// completed.
pub fn serve(args: &[OsString]) -> Answer {
    // A shell hands words over with their quotes, and bash hands the `=` of an option over as a word.
    let mut words: Vec<String> = args[2..].iter().map(|word| unquoted(&word.to_string_lossy())).collect();
    if let [.., option, equals, current] = words.as_slice()
        && equals == "="
        && let Some(found) = equals_values(&sm_command(), &words, option)
    {
        return told(found, current);
    }
    words.retain(|word| word != "=");
    let Some((current, before)) = words.split_last() else { return said(String::new()) };
    let found = match current
        .split_once('=')
        .and_then(|(option, _)| Some((option, equals_values(&sm_command(), before, option)?)))
    {
        Some((option, found)) => found.into_iter().map(|(value, help)| (format!("{option}={value}"), help)).collect(),
        None => candidates(&sm_command(), before, current),
    };
    told(found, current)
}

/// The values of an option that takes them behind `=` alone; `None` for any other word.
fn equals_values(command: &Command, words: &[String], word: &str) -> Option<Candidates> {
    let verb = words.iter().find_map(|word| command.find_subcommand(word));
    let option = word.starts_with("--").then(|| option(verb, command, word)).flatten();
    option.filter(|arg| arg.is_require_equals_set()).map(|arg| values(arg, ""))
}

/// Those of the candidates that begin as the word at the cursor does.
fn told(found: Candidates, current: &str) -> Answer {
    let lines = found.into_iter().filter(|(word, _)| word.starts_with(current) && !word.contains(char::is_control));
    said(lines.map(|(word, help)| format!("{word}\t{}\n", printable(&help))).collect())
}

fn unquoted(word: &str) -> String {
    let inner = word.strip_prefix(['"', '\'']).unwrap_or(word);
    let inner = inner.strip_suffix(['"', '\'']).filter(|rest| !rest.ends_with('\\')).unwrap_or(inner);
    let mut text = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

type Candidates = Vec<(String, String)>;

fn candidates(command: &Command, before: &[String], current: &str) -> Candidates {
    // `sm help COMMAND` takes the name of a command.
    let before = match before {
        [help, rest @ ..] if help == "help" => rest,
        all => all,
    };
    let mut verb: Option<&Command> = None;
    let mut words: Vec<&str> = Vec::new();
    let mut is_of_host = false;
    let mut rest = before.iter();
    while let Some(word) = rest.next() {
        if word.starts_with('-') && word.len() > 1 {
            let Some(option) = option(verb, command, word)
                .filter(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set())
            else {
                continue;
            };
            let has_value = word.contains('=') || !word.starts_with("--") && word.len() > 2;
            if !has_value && rest.next().is_none() {
                return values(option, current);
            }
        } else if verb.is_none() {
            let Some(found) = command.find_subcommand(word) else { return Vec::new() };
            verb = Some(found);
            is_of_host = cli::is_meant(found.get_name());
        } else if let Some(inner) = verb.and_then(|verb| verb.find_subcommand(word)) {
            verb = Some(inner);
        } else {
            words.push(word);
        }
    }
    if current.starts_with('-') {
        // What the other commands have in common says where an SR is, and how long one is waited for.
        let common = |arg: &&Arg| !is_of_host || arg.get_id() == "format";
        return options(
            verb.into_iter().flat_map(Command::get_arguments).chain(command.get_arguments().filter(common)),
        );
    }
    let Some(verb) = verb else {
        return command.get_subcommands().map(|verb| (verb.get_name().to_owned(), about(verb.get_about()))).collect();
    };
    if words.is_empty() && verb.has_subcommands() {
        return verb.get_subcommands().map(|inner| (inner.get_name().to_owned(), about(inner.get_about()))).collect();
    }
    of_word(verb, &words, current)
}

fn option<'c>(verb: Option<&'c Command>, command: &'c Command, word: &str) -> Option<&'c Arg> {
    let mut all = verb.into_iter().chain([command]).flat_map(Command::get_arguments);
    match word.strip_prefix("--") {
        Some(long) => all.find(|arg| arg.get_long() == long.split('=').next()),
        None => all.find(|arg| arg.get_short().is_some() && arg.get_short() == word.chars().nth(1)),
    }
}

fn options<'c>(all: impl Iterator<Item = &'c Arg>) -> Candidates {
    // A command may have an option of all commands in words of its own.
    let mut seen = BTreeSet::new();
    let named = all.filter_map(|arg| Some((format!("--{}", arg.get_long()?), about(arg.get_help()))));
    named.filter(|(name, _)| seen.insert(name.clone())).collect()
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// The values to which an option can be completed, each with its help.
fn values(option: &Arg, current: &str) -> Candidates {
    let of_formats = || Format::ALL.iter().map(|format| (format.to_string(), "format of disks".to_owned())).collect();
    match option.get_id().as_str() {
        "sr_type" => DRIVERS.iter().map(|driver| (driver.sr_type.to_owned(), driver.description.to_owned())).collect(),
        "image" | "file_type" => of_formats(),
        "disks" if option.get_value_names().is_some_and(|names| names == ["SR/VDI"]) => addresses(current),
        "to" | "from" | "store" | "stores" if option.get_value_names().is_some_and(|names| names == ["STORE"]) => {
            stores()
        }
        "model" => models(),
        "destroy_sr" => srs(),
        "sr" if option.get_long() == Some("sr") => {
            srs().into_iter().chain([("auto".to_owned(), "the SR that has most room".to_owned())]).collect()
        }
        "class" => Class::ALL.iter().map(|class| (class.to_string(), "class of media".to_owned())).collect(),
        _ => {
            let possible = option.get_possible_values();
            possible.iter().map(|value| (value.get_name().to_owned(), about(value.get_help()))).collect()
        }
    }
}

/// The SRs and VDIs that may be the next word of a command.
fn of_word(verb: &Command, words: &[&str], current: &str) -> Candidates {
    let slots: Vec<&str> = verb.get_positionals().map(|arg| arg.get_id().as_str()).collect();
    let is_vdi = |slot: Option<&&str>| matches!(slot, Some(&"vdi" | &"source" | &"snapshot"));
    let makes = matches!(verb.get_name(), "vdi_create" | "vdi_import");
    match slots.first() {
        Some(&"layout") if words.is_empty() => return layouts(),
        Some(&"device" | &"identity") if words.is_empty() => return devices(),
        // Of `sm target`: SR/VDI.
        Some(&"vdi") if words.is_empty() => return addresses(current),
        Some(&"name") if words.is_empty() && is_of_backup(verb) => return sets(),
        // Of `sm backup verify`: a set, or a directory.
        Some(&"what") if words.is_empty() => return sets(),
        Some(&"store") if words.is_empty() => return stores(),
        _ => {}
    }
    let default = default_sr();
    if slots.first() != Some(&"sr") || verb.get_name() == "sr_create" {
        return Vec::new();
    }
    let takes_vdi = is_vdi(slots.get(1)) && !makes;
    match (words, current.split_once('/')) {
        ([], Some((sr, _))) if takes_vdi => {
            vdis(sr).into_iter().map(|(vdi, help)| (format!("{sr}/{vdi}"), help)).collect()
        }
        ([], _) => {
            let of_default = default.filter(|_| takes_vdi).map(|sr| vdis(&sr)).unwrap_or_default();
            srs().into_iter().chain(of_default).collect()
        }
        ([sr], _) if takes_vdi && is_sr(sr) => vdis(sr),
        ([sr, _], _) if slots.get(2) == Some(&"snapshot") && is_sr(sr) => vdis(sr),
        ([vdi], _) if slots.get(2) == Some(&"snapshot") => match (vdi.split_once('/'), default) {
            (Some((sr, _)), _) if is_sr(sr) => vdis(sr),
            (_, Some(sr)) => vdis(&sr),
            _ => Vec::new(),
        },
        // The SR of a copy, after `SR VDI`, `SR/VDI`, or a VDI of the default SR.
        ([_] | [_, _], _) if slots.get(2) == Some(&"to") => srs(),
        _ if verb.get_name() == METRICS => srs(),
        ([first, ..], _) if SEVERAL.contains(&verb.get_name()) => match is_sr(first) {
            true if takes_vdi => vdis(first),
            true => srs(),
            false => match first.split_once('/') {
                // Each word says its SR.
                Some((sr, _)) if takes_vdi && is_sr(sr) => {
                    vdis(sr).into_iter().map(|(vdi, help)| (format!("{sr}/{vdi}"), help)).collect()
                }
                _ => default.map(|sr| vdis(&sr)).unwrap_or_default(),
            },
        },
        _ => Vec::new(),
    }
}

/// Words such as `fast/web`: VDIs where one SR alone is meant, else SRs.
fn addresses(current: &str) -> Candidates {
    let within = |sr: &str| vdis(sr).into_iter().map(|(vdi, help)| (format!("{sr}/{vdi}"), help)).collect();
    if let Some((sr, _)) = current.split_once('/') {
        return within(sr);
    }
    let srs: Candidates = srs().into_iter().filter(|(name, _)| name.starts_with(current)).collect();
    match srs.as_slice() {
        [(sr, _)] => within(sr),
        several => several.iter().map(|(name, help)| (format!("{name}/"), help.clone())).collect(),
    }
}

/// Whether a command takes the name of a set, and no other name.
fn is_of_backup(verb: &Command) -> bool {
    verb.get_positionals()
        .next()
        .and_then(|arg| arg.get_help())
        .is_some_and(|help| help.to_string().starts_with("Name of the set"))
}

fn layouts() -> Candidates {
    let names = installed::names().unwrap_or_default();
    names.into_iter().map(|name| (name.to_string(), "installed layout".to_owned())).collect()
}

/// The models that are called by a name, and the layouts that are installed.
fn models() -> Candidates {
    let files = fs::read_dir(run_dir::models()).into_iter().flatten().flatten();
    let names = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".model")?.to_owned()));
    let mut all: BTreeMap<String, String> = layouts().into_iter().collect();
    names.for_each(|name| drop(all.insert(name, "model".to_owned())));
    all.into_iter().collect()
}

fn stores() -> Candidates {
    let stores = store::all().unwrap_or_default();
    stores.into_iter().map(|it| (it.name.to_string(), format!("store at {}", it.path.display()))).collect()
}

fn sets() -> Candidates {
    set::names().unwrap_or_default().into_iter().map(|name| (name.to_string(), "set of disks".to_owned())).collect()
}

/// The devices that an SR may be made on, as `sm devices` lists them.
fn devices() -> Candidates {
    let (tell, told) = mpsc::channel();
    let ask = move || {
        let rows = Settings::read(size::parse).and_then(|settings| view::Host::look(&settings)).map(|host| host.rows());
        let _ = tell.send(rows);
    };
    let rows = thread::Builder::new().spawn(ask).ok().and_then(|_| told.recv_timeout(PATIENCE).ok());
    let rows = rows.and_then(Result::ok).unwrap_or_default();
    let about = |row: &view::Row| row.state.as_ref().map(ToString::to_string).unwrap_or_default();
    rows.into_iter().map(|row| (row.dev.clone(), about(&row))).collect()
}

fn srs() -> Candidates {
    let all = registry::all().unwrap_or_default().into_iter();
    all.filter_map(|(name, entry)| entry.ok().map(|entry| (name, format!("SR of type {}", entry.sr_type)))).collect()
}

/// The VDIs of an SR: by label where it is the label of one, and by UUID.
fn vdis(sr: &str) -> Candidates {
    let names = names_of(sr).unwrap_or_default();
    let is_unique = |label: &str| names.iter().filter(|other| other.label == label).count() == 1;
    let by_label = names.iter().filter(|vdi| !vdi.label.is_empty() && is_unique(&vdi.label));
    let by_label = by_label.map(|vdi| (vdi.label.clone(), format!("VDI {}", vdi.uuid)));
    let by_uuid = names.iter().map(|vdi| (vdi.uuid.to_string(), format!("VDI {}", vdi.label)));
    by_label.chain(by_uuid).collect()
}

fn names_of(sr: &str) -> Option<Vec<VdiName>> {
    let entry = match sr.parse::<SrUuid>() {
        Ok(sr) => registry::of_sr(sr).ok()??,
        Err(_) => registry::find(&sr.parse::<SrName>().ok()?).ok()??,
    };
    let (driver, config) = place_of(&entry).ok()?;
    let (tell, told) = mpsc::channel();
    let ask = move || {
        let context = Context { deadline: Instant::now() + PATIENCE, progress: &|_, _| {}, others: None };
        let session = Session::open(driver, entry.sr, config)?;
        let mut names = session.names("", &context)?;
        names.retain(|vdi| session.vdi_get_brief(vdi.uuid, &context).map_or(true, |info| !info.hidden));
        let _ = tell.send(names);
        Ok::<_, crate::Error>(())
    };
    thread::Builder::new().spawn(ask).ok()?;
    told.recv_timeout(PATIENCE).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<String> {
        let (current, before) = line.split_last().unwrap();
        let before: Vec<String> = before.iter().map(|word| (*word).to_owned()).collect();
        let found = candidates(&sm_command(), &before, current);
        found.into_iter().map(|(word, _)| word).filter(|word| word.starts_with(current)).collect()
    }

    #[test]
    fn commands_options_and_their_values_are_offered() {
        assert_eq!(words(&["vdi_sn"]), ["vdi_snapshot"]);
        assert_eq!(words(&["sr_l"]), ["sr_list"]);
        assert_eq!(words(&["vdi_create", "--lab"]), ["--label"]);
        assert_eq!(words(&["vdi_create", "fast", "--dc"]), ["--dconf"]);
        assert_eq!(words(&["sr_scan", "--format", "js"]), ["json"]);
        assert_eq!(words(&["sr_create", "-t", "n"]), ["nfs"]);
        assert_eq!(words(&["vdi_create", "--type", "q"]), ["qcow2"]);
        assert_eq!(words(&["vdi_create", "--label", "x", "--type", ""]), ["raw", "vhd", "qcow2"]);
        assert!(words(&["sr_create", "-t", "file", "-d", ""]).is_empty());
        assert!(words(&["nothing", ""]).is_empty());
        assert!(words(&["vdi_export", "fast", "web", ""]).is_empty());
        assert!(words(&[""]).len() > 15);
    }

    #[test]
    fn words_lose_the_quotes_of_a_shell() {
        for (word, text) in
            [("\"root d", "root d"), ("'a b'", "a b"), ("a\\ b", "a b"), ("a\\", "a"), ("", ""), ("\"", "")]
        {
            assert_eq!(unquoted(word), text, "{word}");
        }
    }
}
