//! The man pages in the tree are what the command-line definitions say.
//!
//! `UPDATE_GENERATED=1 cargo test --test generated` (or `make generated`) writes them anew.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

use std::fs;
use std::path::{Path, PathBuf};

use xcp_sm::door::cli;
use xcp_sm::door::v1::{self, manual, overview};
use xcp_sm::sr::DRIVERS;

/// Name in the tree and contents of everything that is generated.
fn generated() -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let sm = v1::sm_command();
    for driver in DRIVERS {
        let name = driver.executable;
        let mut page = Vec::new();
        clap_mangen::Man::new(v1::driver_command(driver)).section("8").render(&mut page).unwrap();
        // The commands are the same for all drivers, and described once.
        let page = String::from_utf8(page).unwrap().replace(&format!("\n{name}\\-"), "\nsm\\-");
        let page = page + &see_also(&["sm"]);
        files.push((Path::new("man").join(format!("{name}.8")), page.into_bytes()));
    }
    let drivers: Vec<&str> = DRIVERS.iter().map(|driver| driver.executable).collect();
    files.push((Path::new("man/sm.8").to_owned(), page_of_sm(&sm, &drivers)));
    let mut built = sm.clone();
    built.build();
    for verb in built.get_subcommands().filter(|verb| !cli::GROUPS.contains(&verb.get_name())) {
        files.push((Path::new("man").join(format!("sm-{}.8", verb.get_name())), page_of(verb)));
    }
    let mut groups = cli::grammar::command();
    groups.build();
    for group in groups.get_subcommands() {
        pages_of_group(group, "", &mut files);
    }
    files
}

/// The page of a command that is not about SRs, and those of its commands.
fn pages_of_group(command: &clap::Command, above: &str, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    let name = format!("{above}{}", command.get_name());
    let page = name.replace(' ', "-");
    files.push((Path::new("man").join(format!("sm-{page}.8")), page_named(command, &page, &name)));
    for inner in command.get_subcommands() {
        pages_of_group(inner, &format!("{name} "), files);
    }
}

/// Text that roff takes as it is.
fn plain(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn section(title: &str, text: &str) -> String {
    format!(".SH {title}\n{text}")
}

fn examples(verb: &str) -> String {
    let (_, examples) = manual::EXAMPLES.iter().find(|(name, _)| *name == verb).unwrap();
    let one = |(what, line): &(&str, &str)| match *what {
        "" => format!(".nf\n.RS 4\n{}\n.RE\n.fi\n", plain(line)),
        what => format!(".PP\n{}\n.nf\n.RS 4\n{}\n.RE\n.fi\n", plain(what), plain(line)),
    };
    section("EXAMPLES", &examples.iter().map(one).collect::<String>())
}

fn listed(title: &str, rows: impl IntoIterator<Item = (String, &'static str)>) -> String {
    let row = |(term, text): (String, &str)| format!(".TP\n\\fB{}\\fR\n{}\n", plain(&term), plain(text));
    section(title, &rows.into_iter().map(row).collect::<String>())
}

fn see_also(pages: &[&str]) -> String {
    let pages: Vec<String> = pages.iter().map(|page| format!("{}(8)", plain(page))).collect();
    section("SEE ALSO", &format!("{}\n", pages.join(",\n")))
}

/// The commands in their groups, with the pages that explain them.
fn commands(sm: &clap::Command) -> String {
    let mut text = String::new();
    for (title, names) in overview::GROUPS {
        text.push_str(&format!(".SS \"{title}\"\n"));
        for verb in names.iter().map(|name| sm.find_subcommand(name).unwrap()) {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!(".TP\nsm\\-{}(8)\n{}\n", plain(verb.get_name()), plain(&about)));
        }
    }
    text
}

fn page_of_sm(sm: &clap::Command, drivers: &[&str]) -> Vec<u8> {
    let man = clap_mangen::Man::new(sm.clone()).section("8");
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    page.extend(section("COMMANDS", &commands(sm)).into_bytes());
    let statuses =
        manual::STATUSES.iter().map(|(number, name, text)| (format!("{number} {name}").trim().to_owned(), *text));
    let named = |rows: &'static [(&str, &'static str)]| rows.iter().map(|(term, text)| ((*term).to_owned(), *text));
    page.extend(examples("").into_bytes());
    page.extend(listed("EXIT STATUS", statuses).into_bytes());
    page.extend(listed("FILES", named(manual::FILES)).into_bytes());
    page.extend(listed("ENVIRONMENT", named(manual::ENVIRONMENT)).into_bytes());
    page.extend(see_also(drivers).into_bytes());
    page
}

/// The page of one command. What holds for all commands stands in sm(8) alone.
fn page_of(verb: &clap::Command) -> Vec<u8> {
    let name = verb.get_name().to_owned();
    let command = verb.clone();
    let command = command.mut_arg("dconf", |arg| arg.long_help("Where the SR lives; sm(8) has the forms of all types"));
    page_named(&command, &name, &name)
}

/// `page`: the name of the page without `sm-`; `name`: the words of the command.
fn page_named(command: &clap::Command, page: &str, name: &str) -> Vec<u8> {
    let usage = command.clone().render_usage().to_string();
    let synopsis = usage.trim_start_matches("Usage: ").replace("\n       ", "\n.br\n");
    let command = command.clone().display_name(format!("sm-{page}"));
    let man = clap_mangen::Man::new(command).section("8");
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    page.extend(section("SYNOPSIS", &format!("{}\n", plain(&synopsis))).into_bytes());
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    page.extend(examples(name).into_bytes());
    let elsewhere = "Exit statuses, files and variables of the environment are in sm(8).\n";
    page.extend(section("EXIT STATUS", elsewhere).into_bytes());
    page.extend(see_also(&["sm"]).into_bytes());
    page
}

#[test]
fn a_page_refers_to_pages_that_there_are() {
    let files = generated();
    let pages: Vec<String> =
        files.iter().filter_map(|(path, _)| path.file_name()?.to_str().map(str::to_owned)).collect();
    let mut references = 0;
    for (path, contents) in files.iter().filter(|(path, _)| path.starts_with("man")) {
        let text = String::from_utf8(contents.clone()).unwrap().replace('\\', "");
        for page in text.lines().filter_map(|line| line.trim_end_matches(',').strip_suffix("(8)")) {
            assert!(pages.contains(&format!("{page}.8")), "{} refers to {page}(8)", path.display());
            references += 1;
        }
    }
    assert!(references > 50, "only {references} were found");
}

#[test]
fn a_page_has_the_sections_that_people_look_for_and_the_forms_of_dconf_stand_in_one() {
    for (path, contents) in generated() {
        let (text, name) = (String::from_utf8(contents).unwrap(), path.file_name().unwrap().to_str().unwrap());
        let sections: &[&str] = match name {
            "sm.8" => &["EXAMPLES", "EXIT STATUS", "FILES", "ENVIRONMENT", "SEE ALSO"],
            _ if name.starts_with("sm-") => &["SYNOPSIS", "EXAMPLES", "EXIT STATUS", "SEE ALSO"],
            _ => &["SEE ALSO"],
        };
        for section in sections {
            assert_eq!(
                text.matches(&format!(".SH \"{section}\"\n")).count()
                    + text.matches(&format!(".SH {section}\n")).count(),
                1,
                "{name}: {section}"
            );
        }
        let has_forms = DRIVERS.iter().all(|driver| text.replace("\\-", "-").contains(driver.dconf_form));
        assert_eq!(has_forms, name == "sm.8", "{name}");
    }
}

#[test]
fn every_exit_status_of_the_manual_is_one_of_the_door() {
    let help = v1::sm_command().render_help().to_string();
    for (number, name, _) in manual::STATUSES.iter().filter(|(number, ..)| *number > 0) {
        assert!(help.contains(&format!("{number} {name}")), "{number} {name}");
    }
}

#[test]
fn man_pages_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let update = std::env::var_os("UPDATE_GENERATED").is_some();
    for (name, contents) in generated() {
        let path = root.join(&name);
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &contents).unwrap();
        }
        let is = fs::read(&path).unwrap_or_default();
        assert!(is == contents, "{} is not current: run `make generated`", name.display());
    }
}
