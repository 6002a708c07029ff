//! The command lines of `sm` and of the drivers: the grammar, with what each driver says of itself, and what people may
//! leave out.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, FromArgMatches};

use super::grammar::{self, Common, SmCommand, Verb};
use super::manual;
use super::overview;
use super::words::{SEVERAL, option};
use crate::door::cli;
use crate::sr::{self, Driver};

/// The commands whose help has the forms of `-d` for all types: those that are about an SR without a name.
const SHOWS_FORMS: [&str; 3] = ["sr_create", "sr_attach", "sr_probe"];

/// The command line of `sm`, with what each driver says of itself and what people may leave out.
pub fn sm_command() -> clap::Command {
    let forms: String =
        sr::DRIVERS.iter().map(|d| format!("\n  {:<6} {}: {}", d.sr_type, d.dconf_form, d.description)).collect();
    let with_place = brief_command(sm_options(), None).mut_arg("dconf", |arg| {
        arg.long_help(format!(
            "Where the SR lives. By type:{forms}\n  any    ((key . \"value\") …) with device_config keys"
        ))
    });
    // The forms of all types are 25 lines: they stand where a person needs them.
    let place = with_place.get_arguments().find(|arg| arg.get_id() == "dconf").cloned();
    let place = place.expect("sm has -d").long_help("Where the SR lives; `sm --help` has the forms of all types");
    let of_srs = with_place.mut_subcommands(|verb| {
        let name = verb.get_name().to_owned();
        let verb = verb.mut_args(|arg| as_people_say(arg, &name));
        let verb = if SHOWS_FORMS.contains(&name.as_str()) { verb } else { verb.arg(place.clone()) };
        let (usage, examples) = (usage(&verb), manual::examples(verb.get_name()).unwrap_or_default());
        verb.override_usage(usage).after_help(examples)
    });
    let all = of_srs.subcommands(cli::grammar::groups());
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}Options:\n{{options}}{{after-help}}",
        overview::listed(&all)
    );
    all.help_template(template)
}

/// What stands before the command in a line of `sm`.
pub fn sm_options() -> clap::Command {
    let verbose = Arg::new("verbose").short('v').long("verbose").action(ArgAction::SetTrue).global(true);
    let verbose = verbose.help("Say on stderr what names stand for, and how long the command took.");
    grammar::sm_options().arg(verbose)
}

/// `options` with the command of `sm` called `word`, or with all of them, and without the texts that only help and errors show.
pub fn brief_command(options: clap::Command, word: Option<&str>) -> clap::Command {
    let is_meant = |name: &str| word.is_none_or(|word| word == name);
    let own = [(LIST, list as fn() -> clap::Command), (METRICS, metrics), (NAME, rename)];
    let own = own.into_iter().filter(|(name, _)| is_meant(name)).map(|(_, command)| command());
    Verb::add_to(options, word).subcommands(own).mut_subcommands(with_personal)
}

/// The word of a line that says its command, if it has one. `options`: what may stand before the command.
pub fn command_word<'a>(options: &clap::Command, args: &'a [OsString]) -> Option<&'a str> {
    let mut words = args.iter().skip(1);
    while let Some(arg) = words.next() {
        let word = arg.to_str()?;
        if !word.starts_with('-') {
            return Some(word);
        }
        let (_, has_value) = option(options, options, word)?;
        if !has_value {
            words.next();
        }
    }
    None
}

fn list() -> clap::Command {
    let from_xapi = Arg::new("from_xapi").long("from-xapi").action(ArgAction::SetTrue);
    let from_xapi =
        from_xapi.help("List the SRs that this host's xapi knows as well, with the names that xapi has for them.");
    clap::Command::new(LIST)
        .about("List the SRs of this host: those with a name, those that are mounted, and those that are volume groups")
        .long_about(
            "List the SRs of this host: those with a name, those that are mounted, and those that are volume groups. An SR \
             that does not answer within 5 s, or what --wait says, is listed as such",
        )
        .arg(from_xapi)
}

fn metrics() -> clap::Command {
    clap::Command::new(METRICS)
        .about("Print size, use, chains and states of SRs as OpenMetrics text, for Prometheus")
        .long_about(
            "Print size, use, chains and states of SRs as OpenMetrics text, for the textfile collector of node_exporter. An \
             SR that cannot be read, or that does not answer within 30 s or what --wait says, has sm_sr_up 0",
        )
        .arg(
            Arg::new("sr")
                .value_name("SR")
                .num_args(0..)
                .help("Names or UUIDs of SRs. Without any, all that have a name on this host."),
        )
        .arg(
            Arg::new("output")
                .long("output")
                .value_name("FILE")
                .help("Put the text into this file, which is replaced as a whole, and print nothing."),
        )
}

fn rename() -> clap::Command {
    let sr = Arg::new("sr").value_name("SR-UUID").required(true).help("The SR.");
    let new = Arg::new("new").value_name("NAME").required_unless_present("forget").help("The name that the SR gets.");
    let forget = Arg::new("forget").long("forget").action(ArgAction::SetTrue).conflicts_with("new");
    let forget = forget.help("Take the name away. The SR stays as it is.");
    clap::Command::new(NAME)
        .about("Give an SR another name on this host, or take its name away")
        .long_about(
            "Give an SR another name on this host, or take its name away. The SR itself stays as it is, attached or not. A timer \
             sm-collect@OLD that is enabled has to be enabled by the new name. sr_attach --name gives a name to an SR that has \
             none",
        )
        .args([sr, new, forget])
}

/// A command with the options that `sm` has and the drivers do not.
fn with_personal(mut verb: clap::Command) -> clap::Command {
    let command = verb.get_name().to_owned();
    if matches!(command.as_str(), "sr_create" | "sr_attach") {
        let name = Arg::new("name").long("name").value_name("NAME");
        verb = verb.arg(name.help("Name of the SR on this host: sm takes it instead of the UUID, -t and -d."));
    }
    let without_question = match command.as_str() {
        "sr_create" => Some("Overwrite what --force or --destroy-sr allows without a question at a terminal."),
        "vdi_revert" => Some("Lose the disk's own contents without a question at a terminal."),
        _ => None,
    };
    if let Some(help) = without_question {
        verb = verb.arg(Arg::new("yes_of_person").long("yes").action(ArgAction::SetTrue).help(help));
    }
    if command == "sr_collect" {
        let from_xapi = Arg::new("from_xapi").long("from-xapi").action(ArgAction::SetTrue);
        let from_xapi = from_xapi.conflicts_with_all(["sr_type", "dconf", "stop", "dry_run"]);
        verb = verb.arg(from_xapi.help(
            "The SR is one of this host's xapi, which says where the SR is, and is told of what is merged. SR is a UUID.",
        ));
    }
    if HAS_PLAN.contains(&command.as_str()) {
        let dry_run = Arg::new("dry_run").short('n').long("dry-run").action(ArgAction::SetTrue);
        verb = verb.arg(dry_run.help("Change nothing, and print what would be done."));
    }
    verb
}

/// The word for a VDI that a command makes.
pub(super) const NEW_VDI: &str = "LABEL|UUID";

/// The word of a lock that people may leave out.
pub(super) const FORCE: &str = "FORCE";

/// The words of SR API v1.0, as people may say them.
fn as_people_say(arg: Arg, verb: &str) -> Arg {
    let makes = matches!(verb, "vdi_create" | "vdi_import");
    let as_new = |arg: Arg| {
        arg.value_name(NEW_VDI)
            .help("Label of the new VDI, or its UUID. A UUID that is not given is chosen and printed.")
    };
    match arg.get_value_names().and_then(|names| names.first()).map(|name| name.as_str()) {
        Some("SR-UUID") if verb == "sr_create" && arg.is_positional() => arg
            .value_name("NAME|UUID")
            .help("Name of the new SR on this host, as --name gives it, or its UUID. A UUID that is not given is chosen and printed."),
        Some("SR-UUID") if !arg.is_positional() => arg.value_name("SR"),
        Some("SR-UUID") => {
            arg.value_name("SR").help("Name or UUID of the SR. Without it, the SR of the variable XCP_SM_SR.")
        }
        Some("VDI-UUID") if makes => as_new(arg),
        Some("VDI-UUID") if verb == "vdi_tree" => {
            arg.value_name("VDI").help("A VDI: only the tree that has it is drawn. SR/VDI says both.")
        }
        Some("VDI-UUID") => {
            arg.value_name("VDI").help("UUID of the VDI, the start of it, or the label. SR/VDI says both.")
        }
        Some("SRC-UUID") => arg
            .value_name("SOURCE")
            .help("The VDI to copy: its UUID, the start of it, or its label. SR/SOURCE says both."),
        Some("DST-UUID") => as_new(arg),
        Some("DST-SR-UUID") => {
            arg.value_name("DST-SR").help("Name or UUID of the SR that gets the copy. DST-SR/LABEL says the label too.")
        }
        Some("SNAPSHOT-UUID") => {
            arg.value_name("SNAPSHOT").help("The snapshot: its UUID, the start of it, or its label.")
        }
        Some(FORCE) if arg.is_positional() => arg.help("TRUE takes the lock from its holder. Without this word, or with FALSE, a lock that is held is refused."),
        Some("USER") => arg.help("The user that has the VDI: any text, such as host1/vm7."),
        _ => arg,
    }
}

/// The usage of a command for people, who may leave words out.
fn usage(verb: &clap::Command) -> String {
    let several = SEVERAL.contains(&verb.get_name()) || verb.get_name() == METRICS;
    let last = verb.get_positionals().count();
    let words = verb.get_positionals().enumerate().map(|(at, arg)| {
        let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
        let more = if several && at + 1 == last { "…" } else { "" };
        match name {
            "SR" | "SR-UUID" | "NAME|UUID" | FORCE | NEW_VDI => format!(" [{name}]{more}"),
            _ if arg.is_required_set() => format!(" <{name}>{more}"),
            _ => format!(" [{name}]"),
        }
    });
    format!("sm {} [OPTIONS]{}", verb.get_name(), words.collect::<String>())
}

/// Options of single commands that `sm` has and the drivers do not.
#[derive(Default)]
pub struct Personal {
    /// The command.
    pub verb: String,
    /// `sm` says what words stand for, and how long the command takes.
    pub verbose: bool,
    /// The name that a new SR gets on this host.
    pub name: Option<String>,
    /// Nothing is changed, and what would be is told.
    pub dry_run: bool,
    /// A person at a terminal is not asked.
    pub yes: bool,
    /// xapi says where the SR is, and is told of what is merged.
    pub from_xapi: bool,
}

impl Personal {
    fn of(matches: &ArgMatches) -> Personal {
        let Some((verb, of_verb)) = matches.subcommand() else { return Personal::default() };
        let flag = |id| of_verb.try_get_one::<bool>(id).ok().flatten().copied().unwrap_or_default();
        Personal {
            verb: verb.to_owned(),
            verbose: flag("verbose"),
            name: of_verb.try_get_one::<String>("name").ok().flatten().cloned(),
            dry_run: flag("dry_run"),
            yes: flag("yes") || flag("yes_of_person"),
            from_xapi: flag("from_xapi"),
        }
    }
}

/// A line of `sm`, parsed.
pub enum Parsed {
    /// A command of SR API v1.0.
    Verb(Box<SmCommand>, Personal),
    /// `sr_list`. `wait`: the time that the caller gave, seconds.
    List { common: Common, wait: Option<u64>, from_xapi: bool, verbose: bool },
    /// `sr_metrics`. `wait`: the time that the caller gave, seconds.
    Metrics {
        common: Common,
        sr_type: Option<String>,
        wait: Option<u64>,
        srs: Vec<String>,
        output: Option<String>,
        verbose: bool,
    },
    /// `sr_name`. `new`: the name that the SR gets; none if its name is taken away.
    Name { common: Common, sr: String, new: Option<String> },
}

/// Parses a line of `sm`.
///
/// # Errors
/// Those of the parser.
pub fn parse(command: clap::Command, args: Vec<OsString>) -> Result<Parsed, clap::Error> {
    let matches = command.try_get_matches_from(args)?;
    if let Some((LIST, of_list)) = matches.subcommand() {
        let given = of_list.value_source("wait") == Some(ValueSource::CommandLine);
        let common = Common::from_arg_matches(of_list)?;
        return Ok(Parsed::List {
            wait: given.then_some(common.wait),
            common,
            from_xapi: of_list.get_flag("from_xapi"),
            verbose: of_list.get_flag("verbose"),
        });
    }
    if let Some((METRICS, of_metrics)) = matches.subcommand() {
        let given = of_metrics.value_source("wait") == Some(ValueSource::CommandLine);
        let common = Common::from_arg_matches(of_metrics)?;
        return Ok(Parsed::Metrics {
            wait: given.then_some(common.wait),
            common,
            sr_type: of_metrics.get_one("sr_type").cloned(),
            srs: of_metrics.get_many("sr").into_iter().flatten().cloned().collect(),
            output: of_metrics.get_one("output").cloned(),
            verbose: of_metrics.get_flag("verbose"),
        });
    }
    if let Some((NAME, of_name)) = matches.subcommand() {
        let word = |id| of_name.get_one::<String>(id).cloned();
        let common = Common::from_arg_matches(of_name)?;
        return Ok(Parsed::Name { common, sr: word("sr").unwrap_or_default(), new: word("new") });
    }
    let personal = Personal::of(&matches);
    Ok(Parsed::Verb(Box::new(SmCommand::from_arg_matches(&matches)?), personal))
}

/// Commands that destroy or take long: `--dry-run` says what they would do.
const HAS_PLAN: [&str; 6] = ["sr_create", "sr_delete", "sr_collect", "vdi_delete", "vdi_detach", "vdi_revert"];

/// The commands of `sm` alone.
const LIST: &str = "sr_list";
pub(super) const METRICS: &str = "sr_metrics";
const NAME: &str = "sr_name";

/// The command line of a driver's executable.
pub fn driver_command(driver: &'static Driver) -> clap::Command {
    Verb::add_to(driver_options(driver), None)
}

/// What stands before the command in a line of a driver's executable.
pub fn driver_options(driver: &'static Driver) -> clap::Command {
    grammar::driver_options()
        .name(driver.executable)
        .about(format!("SR driver {}: {}", driver.sr_type, driver.description))
        .mut_arg("dconf", |arg| {
            arg.help(format!("{}, or ((key . \"value\") …) with device_config keys", driver.dconf_form))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_lines_are_consistent() {
        sm_command().debug_assert();
        for driver in sr::DRIVERS {
            driver_command(driver).debug_assert();
        }
    }

    #[test]
    fn the_command_is_told_from_the_values_of_options() {
        let options = sm_options();
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (line, word) in [
            ("sm devices", Some("devices")),
            ("sm devices why /dev/sda", Some("devices")),
            ("sm --format json devices", Some("devices")),
            ("sm -v backends", Some("backends")),
            ("sm -vt iso sr_scan x", Some("sr_scan")),
            ("sm -d devices -tfile sr_scan x", Some("sr_scan")),
            ("sm --wait=3 --dconf plan sr_scan", Some("sr_scan")),
            ("sm -d", None),
            ("sm --colour red sr_scan", None),
            ("sm", None),
            ("sm --version", None),
        ] {
            assert_eq!(command_word(&options, &words(line)), word, "{line}");
        }
    }

    #[test]
    fn the_command_of_a_line_is_built_alone() {
        let all = brief_command(sm_options(), None);
        assert!(all.get_subcommands().count() > 25);
        for verb in all.get_subcommands() {
            let name = verb.get_name();
            let one = brief_command(sm_options(), Some(name));
            let ids =
                |command: &clap::Command| command.get_arguments().map(|arg| arg.get_id().clone()).collect::<Vec<_>>();
            let names: Vec<&str> = one.get_subcommands().map(clap::Command::get_name).collect();
            assert_eq!(names, [name]);
            assert_eq!(ids(one.find_subcommand(name).unwrap()), ids(verb));
            one.debug_assert();
        }
        assert_eq!(brief_command(sm_options(), Some("vdi_fly")).get_subcommands().count(), 0);
    }
}
