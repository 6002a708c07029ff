//! What is wrong with the storage setup of this host, and, on a host with xapi, of its pool. Changes nothing.
//!
//! | file | what is looked at |
//! |---|---|
//! | [`srs`] | the SRs: whether they answer |
//! | [`tools`] | the programs and devices of the kernel that the types of these SRs need |
//! | [`rights`] | who can write to what this host believes |
//! | [`claims`] | what processes, hosts and SRs left that are gone |
//! | [`tapdisks`] | tapdisks that the drivers do not know of |
//! | [`drivers`] | the drivers that xapi finds on this host, and what each announces |
//! | [`pool`] | the database of xapi, and the drivers of other hosts |
//!
//! What a call may have begun and not ended is looked at twice, and told only if it is there both times.

pub mod claims;
pub mod drivers;
pub mod pool;
pub mod rights;
pub mod srs;
pub mod tapdisks;
pub mod tools;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::door::v1::listing;
use crate::error::{Error, one_line};

/// How long what may be the middle of a call gets to come to its end.
const MEANWHILE: Duration = Duration::from_secs(2);

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Something does not work, or will not, or data is at risk.
    Wrong,
    /// It could not be looked at.
    Unseen,
    /// Everything works. A person may want to know it.
    Note,
}

impl Weight {
    /// Its name in answers.
    pub fn word(self) -> &'static str {
        match self {
            Weight::Wrong => "wrong",
            Weight::Unseen => "not seen",
            Weight::Note => "note",
        }
    }
}

/// The parts of a storage setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    Srs,
    Claims,
    Tapdisks,
    Drivers,
    Features,
    Permissions,
    Tools,
}

impl Area {
    /// Its name in answers.
    pub fn word(self) -> &'static str {
        match self {
            Area::Srs => "srs",
            Area::Claims => "claims",
            Area::Tapdisks => "tapdisks",
            Area::Drivers => "drivers",
            Area::Features => "features",
            Area::Permissions => "permissions",
            Area::Tools => "tools",
        }
    }
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    pub weight: Weight,
    pub area: Area,
    /// The thing that it is about.
    pub object: String,
    /// A clause about the thing.
    pub what: String,
    /// What a person can do; empty if nothing has to be done.
    pub remedy: String,
}

impl Trouble {
    fn wrong(area: Area, object: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Trouble {
        Trouble { weight: Weight::Wrong, area, object: object.into(), what: what.into(), remedy: remedy.into() }
    }

    fn note(self) -> Trouble {
        Trouble { weight: Weight::Note, ..self }
    }

    /// `what`: what was not looked at, and why.
    fn unseen(area: Area, object: impl Into<String>, what: impl Into<String>) -> Trouble {
        Trouble { weight: Weight::Unseen, ..Trouble::wrong(area, object, what, "") }
    }

    fn failed(area: Area, object: impl Into<String>, why: &Error) -> Trouble {
        Trouble::unseen(area, object, format!("not looked at: {}", one_line(why)))
    }
}

/// The paths in a directory; none if it cannot be read.
fn below(directory: PathBuf) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Looks at everything. The findings that matter most come first. `patience`: how long each SR and each driver of another gets to
/// answer; without it the usual times.
pub fn examine(patience: Option<Duration>) -> Vec<Trouble> {
    let mut found = Vec::new();
    let installed = drivers::installed(patience.unwrap_or(drivers::PATIENCE), &mut found);
    let mut pool = pool::ask(&installed, &mut found);
    let srs = srs::look(pool.as_ref(), patience.unwrap_or(listing::PATIENCE), &mut found);
    found.extend(tools::look(&srs));
    found.extend(rights::look(&srs, &installed));
    drivers::compare(&installed, pool.as_ref(), &mut found);
    found.extend(lasting(|| {
        let mut found = claims::look(&srs);
        found.extend(tapdisks::look(&srs));
        found.extend(pool.as_mut().map(pool::Pool::claims).unwrap_or_default());
        found
    }));
    if let Some(pool) = &mut pool {
        pool.log_out();
    }
    found.sort();
    found.dedup();
    found
}

/// The findings that are there twice, with some time in between.
fn lasting(mut look: impl FnMut() -> Vec<Trouble>) -> Vec<Trouble> {
    let first = look();
    if first.iter().all(|found| found.weight == Weight::Unseen) {
        return first;
    }
    thread::sleep(MEANWHILE);
    let second = look();
    first.into_iter().filter(|found| second.contains(found)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_call_ends_meanwhile_is_no_finding() {
        let one = |object: &str| Trouble::wrong(Area::Claims, object, "x", "");
        let mut looks = vec![vec![one("a"), one("c")], vec![one("a"), one("b")]];
        assert_eq!(lasting(|| looks.pop().unwrap()), [one("a")]);
        assert_eq!(lasting(Vec::new), []);
    }
}
