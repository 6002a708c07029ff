//! The words that a person may leave out of a command line, and the commands that a person may put into one line. A
//! line of `sm` becomes lines of SR API v1.0.
//!
//! - The SR is left out where `XCP_SM_SR` names one, or where it stands in the word of the VDI: `fast/web`.
//! - The UUID of what is made is left out; a new one is chosen, and the answer tells it. A word in its place that is no UUID is the
//!   label of a new VDI, or the name of a new SR: the word by which it is called from then on.
//! - The SR is left out where `-d` leads to one ([`FOUND_BY_PLACE`]).
//! - FORCE of a lock is left out where it is FALSE, and the file of an export where standard output was redirected to one.
//! - Commands of one SR or VDI take several: each is a line of its own.
//!
//! Words are only put in their places here. The SR or VDI that a word stands for is looked up later
//! ([`address`](super::address)), after the parser has accepted the line. A line that has every word that SR API v1.0
//! wants is not touched, if the UUID of what it makes is one.

use std::ffi::OsString;

use clap::{Arg, Command};
use uuid::Uuid;

use crate::registry::SrName;
use crate::types::{Format, SrUuid, VdiUuid};

/// Commands that are carried out for each of several SRs or VDIs.
pub const SEVERAL: &[&str] =
    &["sr_attach", "sr_detach", "sr_collect", "sr_trim", "vdi_attach", "vdi_detach", "vdi_delete"];

/// Commands whose SR may be left out where `-d` leads to one. sr_delete is none of them: what is lost has to be named.
const FOUND_BY_PLACE: &[&str] = &[
    "sr_attach",
    "sr_detach",
    "sr_get_params",
    "sr_scan",
    "sr_collect",
    "sr_trim",
    "sr_space",
    "sr_check",
    "sr_content_type",
    "vdi_tree",
];

/// The facts about words that are known before any SR is opened.
pub struct Known<'a> {
    /// Whether a word is an SR of this host's table.
    pub is_sr: &'a dyn Fn(&str) -> bool,
    /// The SR of a line that names none.
    pub default_sr: Option<String>,
    /// The format of the file that standard output was redirected to, if nothing is in it yet.
    pub redirected: &'a dyn Fn() -> Option<Format>,
}

/// A line of SR API v1.0, in which names may stand for UUIDs.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    pub args: Vec<OsString>,
    /// The UUID that was chosen for what the line makes.
    pub made: Option<String>,
    /// One of several lines of the default SR, the first of which was to name a VDI and may be a mistyped SR.
    pub is_guessed: bool,
    /// The SR is the one that `-d` leads to. In its place stands a UUID of no SR.
    pub is_of_place: bool,
}

/// The lines that the words of a person stand for. A line that the parser will refuse is given back as it is.
///
/// `command`: the command line of `sm`.
pub fn lines(command: &Command, args: Vec<OsString>, known: &Known) -> Vec<Line> {
    let arranged = split(command, &args).map(|split| (split.arranged(known), split.rest));
    match arranged {
        Some((Some(lines), rest)) => lines
            .into_iter()
            .map(|Words { words, made, option, is_guessed, is_of_place }| {
                let words = option.into_iter().chain(["--".to_owned()]).chain(words).map(OsString::from);
                Line { args: rest.iter().cloned().chain(words).collect(), made, is_guessed, is_of_place }
            })
            .collect(),
        _ => vec![Line { args, made: None, is_guessed: false, is_of_place: false }],
    }
}

/// A command line, taken apart.
struct Split<'c> {
    verb: &'c Command,
    /// Program, options and command.
    rest: Vec<OsString>,
    words: Vec<String>,
    /// `-d` was given.
    has_place: bool,
    /// `-t` was given.
    has_type: bool,
    /// `--label` or `--name` was given.
    is_named: bool,
    /// `--type` was given.
    is_typed: bool,
}

/// The kind of object that a word stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    Sr,
    NewSr,
    Vdi,
    NewVdi,
    /// The SR that gets a copy.
    ToSr,
    Other,
}

/// Takes a line apart as the parser will. `None` for a line that it will refuse, or answer with help.
fn split<'c>(command: &'c Command, args: &[OsString]) -> Option<Split<'c>> {
    let mut split = Split {
        verb: command,
        rest: vec![args.first()?.clone()],
        words: Vec::new(),
        has_place: false,
        has_type: false,
        is_named: false,
        is_typed: false,
    };
    let mut verb = None;
    let mut words = args[1..].iter();
    while let Some(arg) = words.next() {
        let word = arg.to_str()?;
        if word == "--" {
            for word in words.by_ref() {
                split.words.push(word.to_str()?.to_owned());
            }
        } else if word.starts_with('-') && word.len() > 1 {
            let (option, has_value) = option(verb.unwrap_or(command), command, word)?;
            split.has_place |= option.get_id() == "dconf";
            split.has_type |= option.get_id() == "sr_type";
            split.is_named |= matches!(option.get_id().as_str(), "label" | "name");
            split.is_typed |= option.get_id() == "image";
            split.rest.push(arg.clone());
            if !has_value {
                split.rest.push(words.next()?.clone());
            }
        } else if verb.is_none() {
            verb = Some(command.find_subcommand(word)?);
            split.rest.push(arg.clone());
        } else {
            split.words.push(word.to_owned());
        }
    }
    split.verb = verb?;
    Some(split)
}

/// The last option in a word, and whether the word has all of it. `None`: the command has no such option.
pub(super) fn option<'c>(verb: &'c Command, command: &'c Command, word: &str) -> Option<(&'c Arg, bool)> {
    let all = || verb.get_arguments().chain(command.get_arguments());
    // A value that wants `=` is never the next word.
    let takes_value = |arg: &Arg| arg.get_action().takes_values() && !arg.is_require_equals_set();
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
        let arg = all().find(|arg| arg.get_long() == Some(name))?;
        return Some((arg, value.is_some() || !takes_value(arg)));
    }
    let mut found = None;
    for (at, short) in word.char_indices().skip(1) {
        let arg = all().find(|arg| arg.get_short() == Some(short))?;
        if takes_value(arg) {
            return Some((arg, at + short.len_utf8() < word.len()));
        }
        found = Some((arg, true));
    }
    found
}

/// The words of one line.
struct Words {
    words: Vec<String>,
    /// The UUID that was chosen for what the line makes.
    made: Option<String>,
    /// The option that gives a name to what the line makes, or a format to what it exports.
    option: Option<String>,
    /// [`Line::is_guessed`].
    is_guessed: bool,
    /// [`Line::is_of_place`].
    is_of_place: bool,
}

impl From<Vec<String>> for Words {
    fn from(words: Vec<String>) -> Words {
        Words { words, made: None, option: None, is_guessed: false, is_of_place: false }
    }
}

/// Whether a word was to be a UUID and lacks something, or has something that does not belong there.
fn is_like_uuid(word: &str) -> bool {
    let digits = word.chars().filter(char::is_ascii_hexdigit).count();
    word.len() >= 8 && word.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
        || (32..=40).contains(&word.len()) && digits >= 28
}

impl Split<'_> {
    /// The kind of object that each word of the command stands for, and how many words may be left out at the end.
    fn slots(&self) -> (Vec<Slot>, usize) {
        let makes = matches!(self.verb.get_name(), "vdi_create" | "vdi_import");
        let slot = |arg: &Arg| match arg.get_id().as_str() {
            "sr" if self.verb.get_name() == "sr_create" => Slot::NewSr,
            "sr" => Slot::Sr,
            "vdi" if makes => Slot::NewVdi,
            "dest" => Slot::NewVdi,
            "to" => Slot::ToSr,
            "vdi" | "source" | "snapshot" => Slot::Vdi,
            _ => Slot::Other,
        };
        let optional = self.verb.get_positionals().filter(|arg| !arg.is_required_set()).count();
        (self.verb.get_positionals().map(slot).collect(), optional)
    }

    /// The lines; `None` for a line that stays as it is.
    fn arranged(&self, known: &Known) -> Option<Vec<Words>> {
        let (slots, optional) = self.slots();
        let required = slots.len() - optional;
        // A name is to be given to the SR that is there, and not to the default SR. With -t, a line without the SR is one of
        // SR API v1.0 that lacks a word.
        let is_of_place = self.has_place && (known.default_sr.is_none() && !self.has_type || self.is_named);
        if is_of_place && self.words.is_empty() && FOUND_BY_PLACE.contains(&self.verb.get_name()) {
            let words = vec![Uuid::nil().to_string()].into();
            return Some(vec![Words { is_of_place, ..words }]);
        }
        match (slots.as_slice(), SEVERAL.contains(&self.verb.get_name())) {
            ([Slot::NewSr, ..], _) => self.with_new_sr(known).map(|line| vec![line]),
            ([Slot::Sr], true) => self.of_several_srs(known),
            ([Slot::Sr, Slot::Vdi], true) => self.of_several_vdis(known),
            ([Slot::Sr, ..], _) => self.with_new_vdi(&slots, required, known).map(|line| vec![line]),
            _ => None,
        }
    }

    fn with_new_sr(&self, known: &Known) -> Option<Words> {
        let is_uuid = |word: &str| word.parse::<SrUuid>().is_ok();
        let is_size = |word: &str| word.starts_with(|c: char| c.is_ascii_digit()) && !is_uuid(word) && word.len() < 36;
        // Without -d, a name that an SR has stands for the place in the table.
        let is_free = |word: &str| self.has_place || !(known.is_sr)(word);
        let is_name = |word: &str| word.parse::<SrName>().is_ok() && !is_like_uuid(word) && is_free(word);
        let sr = SrUuid::random().to_string();
        let (name, size) = match self.words.as_slice() {
            [] => (None, None),
            [size] if is_size(size) => (None, Some(size)),
            [name] if is_name(name) && !self.is_named => (Some(name), None),
            [name, size] if is_name(name) && !self.is_named => (Some(name), Some(size)),
            _ => return None,
        };
        Some(Words {
            words: [sr.clone()].into_iter().chain(size.cloned()).collect(),
            made: Some(sr),
            option: name.map(|name| format!("--name={name}")),
            ..Vec::new().into()
        })
    }

    fn of_several_srs(&self, known: &Known) -> Option<Vec<Words>> {
        match self.words.as_slice() {
            [] => known.default_sr.clone().map(|sr| vec![vec![sr].into()]),
            [_] => None,
            words => Some(words.iter().map(|sr| vec![sr.clone()].into()).collect()),
        }
    }

    fn of_several_vdis(&self, known: &Known) -> Option<Vec<Words>> {
        let Some((first, others)) = self.words.split_first() else {
            // The parser says that the VDI is missing, and not the SR.
            return known.default_sr.clone().map(|sr| vec![vec![sr].into()]);
        };
        let begins_with_sr = self.is_sr(first, known) || known.default_sr.is_none() && !self.is_address(first, known);
        let (sr, vdis) = match begins_with_sr {
            true => (Some(first.clone()), others),
            false => (known.default_sr.clone(), &self.words[..]),
        };
        let is_guessed = !begins_with_sr && !self.is_address(first, known) && vdis.len() > 1;
        let line = |vdi: &String| {
            // The SR that the line begins with is meant, also for a label with a `/`.
            let (of_sr, vdi) = match self.address(vdi, known).filter(|_| !begins_with_sr) {
                Some((sr, vdi)) => (Some(sr.to_owned()), vdi),
                None => (sr.clone(), vdi.as_str()),
            };
            Some(Words { is_guessed, ..vec![of_sr?, vdi.to_owned()].into() })
        };
        match vdis {
            [] => None,
            // As SR API v1.0 has it.
            [_] if begins_with_sr => None,
            vdis => vdis.iter().map(line).collect(),
        }
    }

    /// The words with those that were left out, and with a UUID in the place of a label of what is made.
    fn with_new_vdi(&self, slots: &[Slot], required: usize, known: &Known) -> Option<Words> {
        let completed = self.completed(slots, required, known);
        let Some(at) = slots.iter().position(|slot| *slot == Slot::NewVdi).filter(|_| !self.has_place) else {
            return completed;
        };
        let mut line = match completed {
            Some(line) => line,
            None => self.words.clone().into(),
        };
        let is_whole = line.words.len() >= required && line.made.is_none();
        let label = line.words.get(at).map(|word| self.within(word, &line.words, known)).filter(|_| is_whole);
        // A word with a `/` that is left names another SR than the line does.
        let is_label = |word: &str| {
            word.parse::<VdiUuid>().is_err() && !is_like_uuid(word) && !word.is_empty() && !word.contains('/')
        };
        match label.filter(|label| is_label(label) && !self.is_named) {
            Some(label) => {
                let uuid = VdiUuid::random().to_string();
                line.option = Some(format!("--label={label}"));
                line.words[at] = uuid.clone();
                line.made = Some(uuid);
                Some(line)
            }
            None => (line.words != self.words).then_some(line),
        }
    }

    /// A word for a new VDI, without the SR of the line before it.
    fn within(&self, word: &str, words: &[String], known: &Known) -> String {
        match self.address(word, known).filter(|(sr, _)| words.first().is_some_and(|first| first == sr)) {
            Some((_, vdi)) => vdi.to_owned(),
            None => word.to_owned(),
        }
    }

    /// The words with those that were left out.
    fn completed(&self, slots: &[Slot], required: usize, known: &Known) -> Option<Words> {
        let mut words = self.words.clone();
        let mut has_sr = false;
        if slots.get(1).is_some_and(|slot| matches!(slot, Slot::Vdi | Slot::NewVdi))
            && let Some((sr, vdi)) = words.first().and_then(|word| self.address(word, known))
        {
            let pair = [sr.to_owned(), vdi.to_owned()];
            words.splice(0..1, pair);
            has_sr = true;
        }
        // `slow/copy` names the copy as well.
        let mut has_copy = false;
        if slots.contains(&Slot::ToSr)
            && words.len() > 1
            && let Some((sr, vdi)) = words.last().and_then(|word| self.address(word, known))
        {
            let pair = [sr.to_owned(), vdi.to_owned()];
            words.splice(words.len() - 1.., pair);
            has_copy = true;
        }
        let begins_with_sr = has_sr || words.first().is_some_and(|word| self.is_sr(word, known));
        let wants_default = known.default_sr.is_some() && !begins_with_sr;
        let count = words.len() + usize::from(wants_default);
        let (mut option, mut is_longer) = (None, has_sr || has_copy);
        if self.lacks_force(&words, count) {
            words.insert(words.len() - 1, "FALSE".to_owned());
            is_longer = true;
        }
        if self.verb.get_name() == "vdi_export"
            && count == 2
            && (begins_with_sr || wants_default)
            && let Some(format) = (known.redirected)()
        {
            words.push("-".to_owned());
            option = (!self.is_typed).then(|| format!("--type={format}"));
            is_longer = true;
        }
        // `vdi_tree web`: the VDI may be left out, and is there.
        if required == 1 && slots.get(1) == Some(&Slot::Vdi) && words.len() == 1 && wants_default {
            words.extend(known.default_sr.clone());
            words.rotate_right(1);
            return Some(words.into());
        }
        // `fast/web` names the new VDI as well.
        let is_unnamed = |at: &usize| !(has_sr && *at == 1 || has_copy);
        let new = slots.iter().position(|slot| *slot == Slot::NewVdi).filter(is_unnamed);
        let missing = Some(required.saturating_sub(words.len())).filter(|missing| *missing > 0 || is_longer)?;
        // The default SR is the first to be left out where the first word is no SR.
        let (default, new) = match (missing, &known.default_sr, new) {
            (0, _, _) => (None, None),
            (1, Some(default), _) if !begins_with_sr => (Some(default), None),
            (1, _, Some(at)) => (None, Some(at)),
            (2, Some(default), Some(at)) if !begins_with_sr => (Some(default), Some(at)),
            // The parser says which words are missing: not those that are known.
            (_, Some(default), _) if !begins_with_sr => (Some(default), None),
            _ if is_longer => (None, None),
            _ => return None,
        };
        if let Some(default) = default {
            words.insert(0, default.clone());
        }
        let made = new.map(|at| {
            let vdi = VdiUuid::random().to_string();
            words.insert(at, vdi.clone());
            vdi
        });
        Some(Words { made, option, ..words.into() })
    }

    /// Whether a line of vdi_lock or vdi_unlock has every word but FORCE. `count`: of its words, with the default SR.
    fn lacks_force(&self, words: &[String], count: usize) -> bool {
        let is_force = |word: &String| word.eq_ignore_ascii_case("TRUE") || word.eq_ignore_ascii_case("FALSE");
        matches!(self.verb.get_name(), "vdi_lock" | "vdi_unlock")
            && count == 3
            && words.iter().rev().take(2).all(|word| !is_force(word))
    }

    fn is_sr(&self, word: &str, known: &Known) -> bool {
        self.has_place && word.parse::<SrUuid>().is_ok() || (known.is_sr)(word)
    }

    fn is_address(&self, word: &str, known: &Known) -> bool {
        self.address(word, known).is_some()
    }

    /// The SR and the VDI of a word such as `fast/web`. A path of a file is not taken for one where an SR may be left out.
    fn address<'w>(&self, word: &'w str, known: &Known) -> Option<(&'w str, &'w str)> {
        let (sr, vdi) = word.split_once('/').filter(|(sr, vdi)| !sr.is_empty() && !vdi.is_empty())?;
        (known.default_sr.is_none() || self.is_sr(sr, known)).then_some((sr, vdi))
    }
}

#[cfg(test)]
mod tests;
