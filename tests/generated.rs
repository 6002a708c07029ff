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

use xcp_sm::door::v1;
use xcp_sm::sr::DRIVERS;

/// Name in the tree and contents of everything that is generated.
fn generated() -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let sm = v1::sm_command();
    let drivers = DRIVERS.iter().map(|driver| (driver.executable, v1::driver_command(driver)));
    for (name, command) in std::iter::once(("sm", sm.clone())).chain(drivers) {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).section("8").render(&mut page).unwrap();
        // The commands are the same for all drivers, and described once.
        let page = String::from_utf8(page).unwrap().replace(&format!("\n{name}\\-"), "\nsm\\-");
        files.push((Path::new("man").join(format!("{name}.8")), page.into_bytes()));
    }
    let mut built = sm;
    built.build();
    for verb in built.get_subcommands() {
        let mut page = Vec::new();
        let command = verb.clone().display_name(format!("sm-{}", verb.get_name()));
        clap_mangen::Man::new(command).section("8").render(&mut page).unwrap();
        files.push((Path::new("man").join(format!("sm-{}.8", verb.get_name())), page));
    }
    files
}

#[test]
fn a_page_refers_to_pages_that_there_are() {
    let files = generated();
    let pages: Vec<String> =
        files.iter().filter_map(|(path, _)| path.file_name()?.to_str().map(str::to_owned)).collect();
    let mut references = 0;
    for (path, contents) in files.iter().filter(|(path, _)| path.starts_with("man")) {
        let text = String::from_utf8(contents.clone()).unwrap().replace('\\', "");
        for page in text.lines().filter_map(|line| line.strip_suffix("(8)")) {
            assert!(pages.contains(&format!("{page}.8")), "{} refers to {page}(8)", path.display());
            references += 1;
        }
    }
    assert!(references > 50, "only {references} were found");
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
