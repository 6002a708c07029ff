//! One line of the system log for each change that `sm` makes, as the calls of agents have.

use super::grammar::Verb;
use crate::error::{Result, one_line};
use crate::sr::Driver;
use crate::sys::{run_dir, syslog};

/// Commands that change nothing. Any other is logged.
const LOOKING: &[&str] = &[
    "sr_get_params",
    "sr_scan",
    "sr_space",
    "sr_content_type",
    "sr_probe",
    "vdi_tree",
    "vdi_get_params",
    "vdi_export",
];

/// A command that changes something, in words; `None` for one that looks.
pub fn change(name: &str, verb: &mut Verb, driver: &Driver) -> Option<String> {
    if LOOKING.contains(&name) || matches!(verb, Verb::SrCheck { repair: false, .. }) {
        return None;
    }
    let sr = verb.sr_word().map(|sr| format!(" of SR {sr}")).unwrap_or_default();
    let vdis: String = verb.vdi_words().iter().map(|vdi| format!(" {vdi}")).collect();
    let made = verb.new_word().map(|vdi| format!(" makes {vdi}")).unwrap_or_default();
    Some(format!("sm: uid {}: {name}{vdis}{made}{sr}, type {}", run_dir::user(), driver.sr_type))
}

/// A change of the name of an SR, in words.
pub fn of_name(sr: &str, what: &str) -> String {
    format!("sm: uid {}: sr_name {what} of SR {sr}", run_dir::user())
}

/// Writes what is being done.
pub fn note(text: &str) {
    syslog::write(&format!("sm: uid {}: {text}", run_dir::user()));
}

/// Writes how a change ended.
pub fn write(change: &str, result: Result<(), &crate::error::Error>) {
    match result {
        Ok(()) => syslog::write(&format!("{change}: done")),
        Err(error) => syslog::write(&format!("{change}: failed: {}", one_line(error))),
    }
}
