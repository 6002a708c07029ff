//! A layout made of a model and the media that there are. The same media in any order give the same layout.
//!
//! 1. The offers are sorted by host, identity and name. The names that the kernel gives are no order.
//! 2. The lines of each class take offers, in their order; what a line takes is gone for the next.
//! 3. Indexes: those that lines say come first, then those that media have already, because the slot is installed or the medium
//!    is marked. All others get the lowest that are left.

use std::collections::{BTreeMap, BTreeSet};

use regex_lite::Regex;

use super::model::{Model, SrLine, WANTED};
use super::{Layout, Medium, Mode, Slot, SlotId, document, keys};
use crate::error::{Error, Result};
use crate::registry::candidate::{Candidate, Class};
use crate::registry::line::Relation;
use crate::types::{LayoutUuid, Size};

/// What a medium is to the layout that is being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Free,
    /// It has the mark of this slot of the layout, and nothing claims it.
    Adoptable(SlotId),
    /// A slot of the layout has it.
    Ours(SlotId),
    /// It is of no use, and why.
    Taken(String),
}

/// A medium that a host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub candidate: Candidate,
    /// Every path that leads to it on its host, the one to be written down first.
    pub names: Vec<String>,
    pub identity: String,
    pub standing: Standing,
}

/// How the lines of a class are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Values are patterns.
    Patterns,
    /// Values are what they say. The medium has to be among the offers all the same.
    Literal,
    /// Values are what they say, and there are no offers: the line is the medium.
    Unseen,
}

/// The layout that a model gives, and the line of each slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    pub layout: Layout,
    pub lines: BTreeMap<SlotId, usize>,
    /// The slots whose media have their marks and are not claimed.
    pub adoptable: BTreeSet<SlotId>,
}

/// The circumstances of matching, besides model and offers.
pub struct Around<'a> {
    /// The layout that is installed.
    pub installed: Option<&'a Layout>,
    pub uuid: LayoutUuid,
    pub reading: &'a dyn Fn(Class) -> Reading,
    /// The standing of a medium that is not among the offers.
    pub standing: &'a dyn Fn(&Offer) -> Result<Standing>,
}

/// Media that make one slot, before it has an index.
struct Found<'m> {
    line: &'m SrLine,
    offers: Vec<Offer>,
    index: Option<u16>,
    adoptable: bool,
}

impl<'m> Found<'m> {
    fn of(line: &'m SrLine, offers: Vec<Offer>) -> Found<'m> {
        Found { line, offers, index: None, adoptable: false }
    }
}

/// Makes a layout.
///
/// # Errors
/// [`Error::NoMatch`] for a line that no medium fits; [`Error::BadIndex`]; [`Error::BadLine`] for a pattern, and for what does not
/// go together; each with its line.
pub fn matched(model: &Model, offers: &[Offer], around: &Around) -> Result<Matched> {
    let mut pool = offers.to_vec();
    let mut unseen = BTreeMap::new();
    pool.sort_by_cached_key(|it| (it.candidate.host.clone(), it.identity.clone(), it.candidate.dev.clone()));
    let mut slots = Vec::new();
    let mut lines = BTreeMap::new();
    let mut adoptable = BTreeSet::new();
    for class in Class::ALL {
        let of_class: Vec<&SrLine> = model.srs.iter().filter(|line| line.class == class).collect();
        let explicit = explicit(model, &of_class)?;
        let mut found = Vec::new();
        for line in of_class {
            found.extend(match (line.mode, (around.reading)(class)) {
                (Mode::External, _) => vec![Found::of(line, vec![said(model, line)?])],
                (_, Reading::Unseen) => vec![Found::of(line, vec![once(model, line, &mut unseen, around)?])],
                (_, reading) => taken(model, line, reading, &mut pool, around)?,
            });
        }
        give_indexes(model, class, &mut found, explicit, around.installed)?;
        for it in found {
            let id = SlotId { class, index: it.index.expect("every slot was given one") };
            lines.insert(id, it.line.line);
            if it.adoptable {
                adoptable.insert(id);
            }
            slots.push(slot(id, it, around));
        }
    }
    slots.sort_by_key(|slot| slot.id);
    let mut layout = Layout {
        name: model.name.clone(),
        uuid: around.uuid,
        options: model.options.clone(),
        addresses: model.addresses.iter().map(|(_, it)| it.clone()).collect(),
        slots,
        attaches: model.attaches.iter().map(|(_, it)| it.clone()).collect(),
        gateways: model.gateways.iter().map(|(_, it)| it.clone()).collect(),
    };
    layout.attaches.sort();
    layout.gateways.sort();
    let matched = Matched { layout, lines, adoptable };
    super::coherency::check(model, &matched, offers)?;
    Ok(matched)
}

/// The indexes that lines say, with the lines.
fn explicit(model: &Model, lines: &[&SrLine]) -> Result<BTreeMap<u16, usize>> {
    let mut found = BTreeMap::new();
    for line in lines {
        let Some(index) = line.index else { continue };
        let bad = |what: String| Error::BadIndex { path: model.path.clone(), line: line.line, what };
        let within = u16::try_from(index).ok().filter(|index| *index <= SlotId::LAST);
        let range =
            || bad(format!("index {index} of class {} is out of range: {} is the largest", line.class, SlotId::LAST));
        let index = within.ok_or_else(range)?;
        if let Some(other) = found.insert(index, line.line) {
            let class = line.class;
            return Err(bad(format!(
                "index {index} of class {class} is used twice: by lines {other} and {}",
                line.line
            )));
        }
    }
    Ok(found)
}

/// The patterns of a model for the paths of devices.
pub fn patterns(model: &Model, reading: impl Fn(Class) -> Reading) -> Vec<String> {
    let lines = model.srs.iter().filter(|line| line.class == Class::Lvm);
    let devs = lines.filter_map(|line| line.wanted.get("dev")).map(|dev| match reading(Class::Lvm) {
        Reading::Patterns => dev.clone(),
        Reading::Literal | Reading::Unseen => regex_lite::escape(dev),
    });
    devs.collect()
}

/// The medium that a line says itself, which no line before has and nobody else. `unseen`: those of the lines before, by identity.
fn once(model: &Model, line: &SrLine, unseen: &mut BTreeMap<String, usize>, around: &Around) -> Result<Offer> {
    let offer = said(model, line)?;
    if let Some(other) = unseen.insert(offer.identity.clone(), line.line) {
        return Err(no_match(model, line, format!("line {other} has {} already", offer.candidate.dev)));
    }
    match (around.standing)(&offer)? {
        Standing::Taken(why) => Err(no_match(model, line, format!("{} is {why}", offer.candidate.dev))),
        standing => Ok(Offer { standing, ..offer }),
    }
}

/// Takes the media of a line out of the pool.
fn taken<'m>(
    model: &Model,
    line: &'m SrLine,
    reading: Reading,
    pool: &mut Vec<Offer>,
    around: &Around,
) -> Result<Vec<Found<'m>>> {
    let wanted = Wanted::of(model, line, reading)?;
    let (mut fit, mut left) = (Vec::new(), Vec::new());
    for mut offer in std::mem::take(pool) {
        let fits = !matches!(offer.standing, Standing::Taken(_)) && wanted.misses(&offer).is_empty();
        if fits {
            offer.names = vec![wanted.name(&offer, around.installed)];
            fit.push(offer);
        } else {
            left.push(offer);
        }
    }
    *pool = left;
    if fit.is_empty() {
        return Err(no_match(model, line, nearest(&wanted, line.class, pool)));
    }
    if let Some(odd) =
        fit.iter().find(|it| it.names[0].contains([',', '"', '[', ']']) || it.names[0].chars().any(char::is_control))
    {
        return Err(no_match(
            model,
            line,
            format!("{:?} has characters in its name that no line can have", odd.names[0]),
        ));
    }
    Ok(match line.spans_all {
        true => vec![Found::of(line, fit)],
        false => fit.into_iter().map(|offer| Found::of(line, vec![offer])).collect(),
    })
}

fn no_match(model: &Model, line: &SrLine, what: String) -> Error {
    Error::NoMatch { path: model.path.clone(), line: line.line, what }
}

/// The medium that a line says itself.
fn said(model: &Model, line: &SrLine) -> Result<Offer> {
    let bad = |what: String| model.bad(line.line, what);
    let text = |key: &str| line.wanted.get(key).cloned().unwrap_or_default();
    let host = match line.of_this_host {
        true => text("host"),
        false => document::host(&text("host")).map_err(bad)?,
    };
    let dev = keys::path(&text("dev")).map_err(bad)?;
    if dev.contains('$') {
        return Err(bad(format!("{dev:?} is the path of a medium, in which nothing stands for anything else")));
    }
    if line.spans_all || !line.sizes.is_empty() {
        return Err(bad(format!("span= and size= are for media that are looked for; {dev} is taken as it is")));
    }
    let identity = match line.class {
        Class::Nfs => {
            let address = model.addresses.iter().find(|(_, it)| it.host == host).map(|(_, it)| it.address.clone());
            let missing = || bad(format!("no address for {host}, check addr lines"));
            of_export(&address.ok_or_else(missing)?, &dev)
        }
        Class::File => of_directory(&dev),
        // Only an external line comes here: nobody looks at its medium.
        Class::Lvm => format!("path:{dev}"),
    };
    let rest = WANTED.iter().filter(|key| !["host", "dev"].contains(*key));
    let rest = rest.filter_map(|key| Some(((*key).to_owned(), line.wanted.get(*key)?.clone()))).collect();
    let candidate = Candidate { class: line.class, host, dev: dev.clone(), size: None, rest };
    Ok(Offer { candidate, names: vec![dev], identity, standing: Standing::Free })
}

/// The identity of an export of a server.
pub fn of_export(address: &str, path: &str) -> String {
    format!("nfs:{address}:{path}")
}

/// The identity of a directory of this host.
pub fn of_directory(path: &str) -> String {
    format!("file:{path}")
}

/// A text that a value has to be.
enum Text {
    Pattern(Regex),
    Literal(String),
}

impl Text {
    fn fits(&self, value: &str) -> bool {
        match self {
            Text::Pattern(pattern) => pattern.is_match(value),
            Text::Literal(text) => text == value,
        }
    }
}

/// What a line wants of a medium.
struct Wanted<'m> {
    line: &'m SrLine,
    texts: Vec<(&'static str, Vec<Text>)>,
}

impl<'m> Wanted<'m> {
    fn of(model: &Model, line: &'m SrLine, reading: Reading) -> Result<Wanted<'m>> {
        let mut texts = Vec::new();
        for key in WANTED {
            let Some(value) = line.wanted.get(key) else { continue };
            let parts: Vec<&str> = if key == "ha_host" { value.split(',').collect() } else { vec![value] };
            let text = |part: &&str| match reading {
                Reading::Patterns if key != "host" || !line.of_this_host => pattern(part).map(Text::Pattern),
                _ => Ok(Text::Literal((*part).to_owned())),
            };
            let read = parts.iter().map(text).collect::<Result<Vec<_>, String>>();
            let bad = |e: String| model.bad(line.line, format!("the pattern of {key} is not valid: {e}"));
            texts.push((key, read.map_err(bad)?));
        }
        Ok(Wanted { line, texts })
    }

    /// What a medium lacks, in words; empty if it is what the line wants.
    fn misses(&self, offer: &Offer) -> Vec<String> {
        let mut misses = Vec::new();
        for (key, texts) in &self.texts {
            let fits = match *key {
                "dev" => offer.names.iter().any(|name| texts[0].fits(name)),
                "ha_host" => offer.candidate.get(key).is_some_and(|given| {
                    let given: Vec<&str> = given.split(',').collect();
                    texts.len() <= given.len() && texts.iter().zip(given).all(|(text, given)| text.fits(given))
                }),
                key => offer.candidate.get(key).is_some_and(|given| texts[0].fits(given)),
            };
            if !fits {
                let given = match *key {
                    "dev" => Some(offer.names.join(" ")),
                    key => offer.candidate.get(key).map(str::to_owned),
                };
                misses.push(given.map_or_else(|| format!("it has no {key}"), |given| format!("its {key} is {given}")));
            }
        }
        for (relation, size) in &self.line.sizes {
            let fits = offer.candidate.size.is_some_and(|given| match relation {
                Relation::Is => given == *size,
                Relation::AtLeast => given >= *size,
                Relation::AtMost => given <= *size,
            });
            if !fits {
                let given =
                    offer.candidate.size.map_or_else(|| "not known".to_owned(), |given| Size(given).to_string());
                misses.push(format!("its size is {given}"));
            }
        }
        misses
    }

    /// The name of a medium to be written down: the one that it is installed by, if the line's pattern fits it; else the first that
    /// the pattern fits of those that the kernel does not change from one start to the next; else the first of these.
    fn name(&self, offer: &Offer, installed: Option<&Layout>) -> String {
        let dev = self.texts.iter().find(|(key, _)| *key == "dev").map(|(_, texts)| texts);
        let fits = |name: &&String| dev.is_none_or(|texts| texts[0].fits(name));
        let stable =
            offer.names.iter().filter(|name| name.starts_with("/dev/disk/") || name.starts_with("/dev/mapper/"));
        let media = installed.into_iter().flat_map(|it| &it.slots).flat_map(|slot| &slot.media);
        let kept = media.filter(|medium| medium.identity == offer.identity).map(|medium| &medium.dev);
        let kept = kept.filter(|dev| offer.names.contains(dev)).find(fits);
        let name = kept
            .or_else(|| stable.clone().find(fits))
            .or_else(|| stable.clone().next())
            .or_else(|| offer.names.iter().find(fits));
        name.unwrap_or(&offer.candidate.dev).clone()
    }
}

/// A pattern that has to fit all of a text. It takes time in proportion to the text, whatever it says.
///
/// # Errors
/// A clause for a text that is no pattern.
pub fn pattern(text: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{text})$")).map_err(|e| e.to_string())
}

/// The medium that comes nearest to what a line wants, and why it does not fit.
fn nearest(wanted: &Wanted, class: Class, pool: &[Offer]) -> String {
    let of_class = pool.iter().filter(|offer| offer.candidate.class == class);
    let judged = of_class.map(|offer| (wanted.misses(offer), offer));
    let Some((misses, offer)) = judged.min_by_key(|(misses, _)| misses.len()) else {
        return format!("there is no medium of class {class}, or lines before have them all");
    };
    let dev = &offer.candidate.dev;
    match (misses.first(), &offer.standing) {
        (Some(miss), _) => format!("{dev} comes nearest, and {miss}"),
        (None, Standing::Taken(why)) => format!("{dev} fits, and is {why}"),
        (None, _) => format!("{dev} fits, and a line before has it"),
    }
}

/// Gives every slot its index.
fn give_indexes(
    model: &Model,
    class: Class,
    found: &mut [Found],
    explicit: BTreeMap<u16, usize>,
    installed: Option<&Layout>,
) -> Result<()> {
    let installed = installed.into_iter().flat_map(|it| &it.slots).filter(|it| it.id.class == class);
    let installed: Vec<&Slot> = installed.collect();
    let of_medium = installed.iter().flat_map(|slot| slot.media.iter().map(|it| (it.identity.as_str(), slot.id.index)));
    let of_medium: BTreeMap<&str, u16> = of_medium.collect();
    let had: Vec<Option<u16>> = found.iter().map(|it| index_had(it, &of_medium)).collect();
    let bad = |line: usize, what: String| Error::BadIndex { path: model.path.clone(), line, what };
    let mut used: BTreeMap<u16, usize> = explicit.clone();
    // An index that a line says goes to the medium that has it already, else to the first that has none.
    let mut of_line: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (at, it) in found.iter().enumerate() {
        it.line.index.into_iter().for_each(|index| of_line.entry(index).or_default().push(at));
    }
    for (index, line) in &explicit {
        let of_line = of_line.get(&u64::from(*index)).map_or(&[][..], Vec::as_slice);
        let has_it = of_line.iter().find(|at| had[**at] == Some(*index));
        match (has_it.or_else(|| of_line.iter().find(|at| had[**at].is_none())), of_line.first()) {
            (Some(at), _) => found[*at].index = Some(*index),
            (None, Some(at)) => {
                let dev = &found[*at].offers[0].names[0];
                let kept = had[*at].unwrap_or_default();
                let what =
                    format!("{dev} is {class}/{kept} already and keeps that index; it cannot be {class}/{index}");
                return Err(bad(*line, what));
            }
            (None, None) => {}
        }
    }
    for (it, had) in found.iter_mut().zip(&had) {
        let (None, Some(index)) = (it.index, had) else { continue };
        match used.insert(*index, it.line.line) {
            None => it.index = Some(*index),
            Some(other) => {
                let dev = &it.offers[0].names[0];
                return Err(bad(
                    it.line.line,
                    format!("{dev} is {class}/{index} already, and line {other} gives that index to another"),
                ));
            }
        }
    }
    // A slot that goes takes its index along: what comes in the same change is another SR.
    let taken: BTreeSet<u16> = used.keys().copied().chain(installed.iter().map(|slot| slot.id.index)).collect();
    let mut free = (0..=SlotId::LAST).filter(|index| !taken.contains(index));
    for it in found {
        if it.index.is_none() {
            let none_left = || bad(it.line.line, format!("class {class} has no index left"));
            it.index = Some(free.next().ok_or_else(none_left)?);
        }
        let id = SlotId { class, index: it.index.unwrap_or_default() };
        it.adoptable = it.offers.iter().any(|offer| offer.standing == Standing::Adoptable(id));
    }
    Ok(())
}

/// The index that the media of a slot have already. `installed`: the indexes of those of the installed layout.
fn index_had(found: &Found, installed: &BTreeMap<&str, u16>) -> Option<u16> {
    let recorded = |offer: &Offer| match offer.standing {
        Standing::Adoptable(id) | Standing::Ours(id) => Some(id.index),
        Standing::Free | Standing::Taken(_) => None,
    };
    let of_installed = found.offers.iter().find_map(|offer| installed.get(offer.identity.as_str()).copied());
    of_installed.or_else(|| found.offers.iter().find_map(recorded))
}

fn slot(id: SlotId, found: Found, around: &Around) -> Slot {
    let Found { line, offers, .. } = found;
    let text = |key: &str| offers[0].candidate.get(key).unwrap_or_default().to_owned();
    let medium = |offer: &Offer| {
        let dev = offer.names[0].clone();
        Medium { dev, identity: offer.identity.clone(), size: offer.candidate.size }
    };
    Slot {
        id,
        mode: line.mode,
        host: offers[0].candidate.host.clone(),
        ha_hosts: Some(text("ha_host"))
            .filter(|it| !it.is_empty())
            .map_or_else(Vec::new, |it| it.split(',').map(str::to_owned).collect()),
        media: offers.iter().map(medium).collect(),
        uuid: line.uuid.unwrap_or_else(|| id.sr(around.uuid)),
        active: line.active,
        publish: line.publish,
        tag: text("tag"),
        group: line.group.clone(),
        network: text("network"),
        jdev: text("jdev"),
        prep: line.prep.clone(),
        fs: text("fs"),
    }
}

#[cfg(test)]
mod tests;
