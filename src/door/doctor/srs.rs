//! The SRs of this host that this package serves: those with a name, those that xapi has here, and those that drivers discover.

use std::cell::RefCell;
use std::time::Duration;

use super::pool::Pool;
use super::{Area, Trouble};
use crate::door::v1::listing::{self, Listed};
use crate::sys::run_dir;

/// Looks whether each SR answers within `patience`. The SRs are answered for the other looks.
pub fn look(pool: Option<&Pool>, patience: Duration, found: &mut Vec<Trouble>) -> Vec<Listed> {
    let warnings = RefCell::new(Vec::new());
    let warn = |text: &str| warnings.borrow_mut().push(text.to_owned());
    let told = pool.map(Pool::told).unwrap_or_default();
    let listed = listing::list(patience, told, &warn);
    let unseen = |what: String| Trouble::unseen(Area::Srs, "SRs without a name", what);
    found.extend(warnings.into_inner().into_iter().map(unseen));
    let mut listed = match listed {
        Ok(listed) => listed,
        Err(error) => {
            let names = run_dir::names().display().to_string();
            found.push(Trouble::failed(Area::Srs, names, &error));
            return Vec::new();
        }
    };
    listed.retain(|sr| sr.uuid.is_none_or(|uuid| pool.is_none_or(|pool| !pool.is_of_others(uuid))));
    found.extend(listed.iter().filter_map(|sr| judged(sr, pool)));
    listed
}

fn judged(sr: &Listed, pool: Option<&Pool>) -> Option<Trouble> {
    let object = shown(sr);
    let wrong = |remedy: String| Some(Trouble::wrong(Area::Srs, object.clone(), sr.reason.clone(), remedy));
    let is_plugged = sr.uuid.is_some_and(|uuid| pool.is_some_and(|pool| pool.is_plugged(uuid)));
    match sr.state {
        "available" => None,
        // An SR that nobody attached is as it shall be.
        "unavailable" if !is_plugged => None,
        "unavailable" => wrong("xapi has it plugged: unplug its PBD and plug it again".to_owned()),
        "missing" if sr.name.is_empty() => None,
        "missing" => {
            let forget = run_dir::sm(&["sr_name", &sr.name, "--forget"]);
            wrong(format!("bring its storage back; {forget} removes the name alone"))
        }
        _ => wrong(String::new()),
    }
}

/// An SR in words.
pub fn shown(sr: &Listed) -> String {
    let uuid = sr.uuid.map(|uuid| uuid.to_string()).unwrap_or_default();
    match (sr.name.is_empty(), uuid.is_empty()) {
        (true, _) => format!("SR {uuid}"),
        (false, true) => format!("SR {}", sr.name),
        (false, false) => format!("SR {} ({uuid})", sr.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sr_that_is_not_attached_is_no_fault_and_one_that_is_missing_is() {
        let sr =
            |state, name: &str| Listed { name: name.to_owned(), state, reason: "why".to_owned(), ..Listed::default() };
        for (state, name, is_wrong) in [
            ("available", "a", false),
            ("unavailable", "a", false),
            ("missing", "a", true),
            ("missing", "", false),
            ("no answer", "a", true),
            ("failed", "", true),
        ] {
            assert_eq!(judged(&sr(state, name), None).is_some(), is_wrong, "{state} {name}");
        }
    }
}
