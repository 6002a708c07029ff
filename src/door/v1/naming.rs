//! The commands of `sm` that change the table of names: they make, attach or delete an SR, or change nothing but its name.

use std::time::Instant;

use super::address::{self, Target};
use super::answer::Reply;
use super::grammar::Verb;
use super::verbs::Caller;
use crate::apply::words;
use crate::call::Session;
use crate::error::{Error, Result};
use crate::registry::{self, Entry, Place, SrName};
use crate::types::SrUuid;

/// Carries the command out, and keeps the table of names in step with it.
///
/// # Errors
/// Those of the command; [`Error::NameTaken`] and those of [`registry::add`] and [`registry::remove`].
pub fn change_names(
    caller: &Caller,
    verb: Verb,
    sr: Option<SrUuid>,
    made: Option<String>,
    naming: Option<(&SrName, Option<Entry>)>,
    dconf: Option<String>,
    target: &Target,
) -> Result<Reply> {
    let doomed = match &verb {
        Verb::SrCreate { destroy_sr, .. } => destroy_sr.iter().filter_map(|sr| sr.parse().ok()).collect(),
        _ => Vec::new(),
    };
    let reply = match (verb, sr, naming) {
        (verb @ Verb::SrCreate { .. }, Some(sr), Some((name, own))) => {
            let dconf = dconf.ok_or_else(|| Error::Usage("-d DCONF is missing".to_owned()))?;
            let reply = create_named(caller, verb, sr, made, name, own, dconf)?;
            forget_destroyed(&doomed, caller.context.deadline);
            return Ok(reply);
        }
        (verb @ Verb::SrAttach(_), Some(sr), Some((name, own))) => {
            let dconf =
                dconf.ok_or_else(|| Error::Usage("-d DCONF is missing, which the name is to stand for".to_owned()))?;
            return attach_named(caller, verb, sr, name, own, Place::Dconf(dconf));
        }
        (verb @ Verb::SrDelete { .. }, Some(sr), _) => {
            let reply = caller.carry_out(verb)?;
            forget(sr, target, caller.context.deadline)?;
            reply
        }
        (verb, ..) => caller.carry_out(verb)?,
    };
    forget_destroyed(&doomed, caller.context.deadline);
    Ok(made.map_or(reply, Reply::Made))
}

/// Removes the names of SRs that sr_create destroyed, as sr_delete does. A name stays that leads to a place where the SR still
/// is, or that cannot be looked at. The new SR is there, so a table that cannot be changed is no failure: `sm doctor` tells of
/// names whose SR is gone.
fn forget_destroyed(srs: &[SrUuid], deadline: Instant) {
    for sr in srs {
        let Ok(Some(entry)) = registry::of_sr(*sr) else { continue };
        let found = address::place_of(&entry).and_then(|(driver, config)| (driver.probe)(&config, deadline.into()));
        if found.is_ok_and(|found| found.iter().all(|info| info.uuid != *sr)) {
            let _ = registry::remove(*sr);
        }
    }
}

/// Makes an SR that has a name. The name is there first: if the call is killed, the same call goes on with the UUID that the
/// name has.
fn create_named(
    caller: &Caller,
    mut verb: Verb,
    sr: SrUuid,
    made: Option<String>,
    name: &SrName,
    own: Option<Entry>,
    dconf: String,
) -> Result<Reply> {
    let place = Place::Dconf(dconf);
    let sr_type = caller.driver.sr_type;
    let sr = match own {
        Some(entry) => {
            if !is_begun(&entry, sr_type, &place, sr, made.is_some()) {
                return Err(entry.taken());
            }
            if let Some(word) = verb.sr_word() {
                *word = entry.sr.to_string();
            }
            caller.carry_out(verb)?;
            entry.sr
        }
        None => {
            // If the words of -d are wrong, the call fails before anything is written.
            Session::open(caller.driver, sr, caller.config.clone())?;
            if !registry::add(name, sr, sr_type, &place)? {
                return Err(registry::find(name)?
                    .as_ref()
                    .map_or_else(|| Error::Usage(format!("try again: {name}")), Entry::taken));
            }
            if let Err(error) = caller.carry_out(verb) {
                // An SR that is there at least in part keeps its name: the same call completes it.
                return Err(match error {
                    error @ (Error::Incomplete { .. } | Error::Undo { .. }) => error,
                    error => error.undone(registry::remove(sr).map(drop)),
                });
            }
            sr
        }
    };
    Ok(made.map_or(Reply::Nothing, |_| Reply::Made(sr.to_string())))
}

/// Whether an entry is that of an SR whose creation was begun by the same call. `is_chosen`: the UUID of the call was chosen.
fn is_begun(entry: &Entry, sr_type: &str, place: &Place, sr: SrUuid, is_chosen: bool) -> bool {
    entry.sr_type == sr_type && entry.place == *place && (is_chosen || entry.sr == sr)
}

/// Refuses a new SR whose name is that of another, as the call that makes it does. `own`: the entry that has the name.
///
/// # Errors
/// [`Error::NameTaken`].
pub fn refuse_taken(own: &Entry, target: &Target, dconf: Option<&str>, sr: SrUuid, is_chosen: bool) -> Result<()> {
    let place = Place::Dconf(dconf.unwrap_or_default().to_owned());
    match is_begun(own, target.driver.sr_type, &place, sr, is_chosen) {
        true => Ok(()),
        false => Err(own.taken()),
    }
}

/// Makes an SR available that is there already, and gives it a name. The name comes last: it stands for an SR that was seen. The
/// entry of an SR that is in another place now is replaced.
fn attach_named(
    caller: &Caller,
    verb: Verb,
    sr: SrUuid,
    name: &SrName,
    own: Option<Entry>,
    place: Place,
) -> Result<Reply> {
    let is_own = |entry: &Entry| entry.sr == sr && entry.sr_type == caller.driver.sr_type;
    let is_same = |entry: &Entry| is_own(entry) && entry.place == place;
    if let Some(entry) = own.as_ref().filter(|entry| !is_own(entry)) {
        return Err(entry.taken());
    }
    let moved = own.is_some_and(|entry| entry.place != place);
    let reply = caller.carry_out(verb)?;
    if moved {
        registry::put(name, sr, caller.driver.sr_type, &place)?;
        return Ok(reply);
    }
    if !registry::add(name, sr, caller.driver.sr_type, &place)? {
        // Another call was faster, or this one is repeated.
        match registry::find(name)? {
            Some(entry) if is_same(&entry) => {}
            Some(entry) => return Err(entry.taken()),
            None => return Err(Error::Usage(format!("try again: {name}"))),
        }
    }
    Ok(reply)
}

/// Removes the names of an SR that was deleted, unless the name leads to another place where the SR still is. A table that cannot
/// be changed is no failure of a call that did not use it.
fn forget(sr: SrUuid, target: &Target, deadline: Instant) -> Result<()> {
    let entry = target.entry.clone().or_else(|| registry::of_sr(sr).ok().flatten());
    if let Some(entry) = entry.filter(|entry| target.is_not_of(entry)) {
        let found = address::place_of(&entry).and_then(|(driver, config)| (driver.probe)(&config, deadline.into()));
        if found.is_ok_and(|found| found.iter().any(|info| info.uuid == sr)) {
            return Ok(());
        }
    }
    match registry::remove(sr) {
        Err(error) if target.entry.is_some() => Err(error.after(format!("SR {sr} is deleted"))),
        _ => Ok(()),
    }
}

/// Gives an SR another name, or takes its name away if `new` is none. `word`: the name, or the UUID of an SR that has one.
/// What `sm-collect` of earlier releases knows is not changed. The answer to a name that was taken away says how the SR is found
/// again.
///
/// # Errors
/// [`Error::UnknownSr`] for an SR without a name; [`Error::Usage`] for one with several, if the word does not say which;
/// [`Error::NameTaken`]; those of [`registry::find`].
pub fn rename(word: &str, new: Option<&SrName>) -> Result<Reply> {
    let unknown = || Error::UnknownSr { name: word.to_owned(), known: registry::names().unwrap_or_default() };
    let old: SrName = match word.parse::<SrUuid>() {
        Ok(sr) => {
            let of_sr =
                |(name, entry): (String, Result<Entry>)| entry.is_ok_and(|entry| entry.sr == sr).then_some(name);
            let names: Vec<SrName> =
                registry::all()?.into_iter().filter_map(of_sr).filter_map(|name| name.parse().ok()).collect();
            match names.as_slice() {
                [] => return Err(unknown()),
                [name] => name.clone(),
                several => {
                    let names: Vec<&str> = several.iter().map(SrName::as_str).collect();
                    return Err(Error::Usage(format!("SR {sr} has the names {}: say one of them", names.join(", "))));
                }
            }
        }
        Err(_) => word.parse()?,
    };
    let (found, reply) = match new {
        Some(new) => {
            new.refuse_reserved()?;
            (registry::rename(&old, new)?, Reply::Nothing)
        }
        None => {
            let reply = registry::find(&old).ok().flatten().map_or(Reply::Nothing, |entry| found_again(&entry));
            (registry::forget(&old)?, reply)
        }
    };
    if found { Ok(reply) } else { Err(unknown()) }
}

/// How an SR without a name is found again.
fn found_again(entry: &Entry) -> Reply {
    let dconf = match &entry.place {
        place if place.may_hold_password() => "DCONF".to_owned(),
        Place::Dconf(dconf) => dconf.clone(),
        Place::Keys(config) => words::dconf(config),
    };
    let sr = entry.sr.to_string();
    let of_place = ["-t", &entry.sr_type, "-d", &dconf];
    let line = |words: &[&str]| words::shell(&[words, &of_place].concat());
    let (attach, probe) = (line(&["sm", "sr_attach", "--name", "NAME", &sr]), line(&["sm", "sr_probe"]));
    Reply::Text(format!("SR {sr} stays as it is. `{attach}` gives it a name, `{probe}` finds it."))
}
