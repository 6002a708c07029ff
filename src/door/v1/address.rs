//! The look-up of a person's words: an SR by its name on this host, a VDI by its label or the start of its UUID.
//!
//! A word that is a UUID stands for itself: nothing is looked up then.

use std::path::Path;
use std::time::{Duration, Instant};

use super::grammar::Verb;
use crate::call::Session;
use crate::context::Context;
use crate::door::sexp;
use crate::error::{Error, Result, one_line};
use crate::registry::{self, Entry, Place, SrName};
use crate::sr::{self, DRIVERS, Driver};
use crate::types::{DeviceConfig, SrUuid, VdiName, VdiUuid};

/// Digits of the shortest start of a UUID that stands for a VDI.
const SHORTEST_PREFIX: usize = 4;
/// How many candidates an ambiguous word is answered with.
const MOST_SHOWN: usize = 10;

/// The SR of the variable `XCP_SM_SR`, which a line without an SR is about.
pub fn default_sr() -> Option<String> {
    std::env::var("XCP_SM_SR").ok().filter(|sr| !sr.is_empty())
}

/// Whether a word is an SR of this host's table. A table that cannot be read is told of when the word is looked up.
pub fn is_sr(word: &str) -> bool {
    match word.parse::<SrUuid>() {
        Ok(sr) => registry::of_sr(sr).is_ok_and(|entry| entry.is_some()),
        Err(_) => word.parse::<SrName>().is_ok_and(|name| registry::find(&name).map_or(true, |entry| entry.is_some())),
    }
}

/// The driver and the device_config of one line.
pub struct Target {
    pub driver: &'static Driver,
    pub config: DeviceConfig,
    /// The table's entry, if the line is carried out by it.
    pub entry: Option<Entry>,
}

impl Target {
    /// Whether an entry leads to another place than the line is about.
    pub fn is_not_of(&self, entry: &Entry) -> bool {
        place_of(entry).map_or(true, |(driver, config)| driver.sr_type != self.driver.sr_type || config != self.config)
    }
}

/// Where the SR of a command is, by `-t`, `-d` and the table; its name becomes its UUID.
///
/// # Errors
/// [`Error::UnknownSr`] for a name that no SR has; [`Error::Usage`] if nothing tells the type or the place; those of
/// [`registry::find`] and of the words of `-d`.
pub fn target(verb: &mut Verb, sr_type: Option<&str>, dconf: Option<&str>, deadline: Instant) -> Result<Target> {
    let (attaches, makes) = (matches!(verb, Verb::SrAttach(_)), matches!(verb, Verb::SrCreate { .. }));
    let probes = matches!(verb, Verb::SrProbe);
    let word = verb.sr_word();
    let sr = word.as_ref().and_then(|word| word.parse::<SrUuid>().ok());
    let entry = match (&word, sr, sr_type, dconf) {
        (Some(_), Some(_), Some(_), Some(_)) | (None, ..) => None,
        (Some(_), Some(sr), ..) => registry::of_sr(sr)?,
        (Some(word), None, ..) => {
            let found = by_name(word, sr_type.is_some() && dconf.is_some());
            Some(found.map_err(|error| if attaches { with_name(error, dconf) } else { error })?)
        }
    };
    if let (Some(word), Some(entry)) = (word, &entry) {
        *word = entry.sr.to_string();
    }
    let sr = sr.or(entry.as_ref().map(|entry| entry.sr));
    match (sr_type, dconf, entry) {
        (Some(sr_type), Some(dconf), entry) => {
            let driver = sr::driver(sr_type)?;
            Ok(Target { driver, config: sexp::device_config(driver, dconf)?, entry })
        }
        (None, None, Some(entry)) => {
            let (driver, config) = place_of(&entry)?;
            Ok(Target { driver, config, entry: Some(entry) })
        }
        (None, _, None) if makes => {
            let forms = DRIVERS.iter().map(|driver| format!("{} {}", driver.sr_type, driver.dconf_form));
            let forms = forms.collect::<Vec<_>>().join("; ");
            Err(Error::Usage(format!(
                "-t TYPE is missing, which says of what type the new SR is to be, by what -d says: {forms}"
            )))
        }
        (None, Some(dconf), entry) => {
            let of_entry = entry.as_ref().and_then(|entry| sr::driver(&entry.sr_type).ok());
            let driver = of_entry.map_or_else(|| driver_of(dconf, sr, probes, deadline), Ok)?;
            Ok(Target { driver, config: sexp::device_config(driver, dconf)?, entry })
        }
        (Some(sr_type), None, Some(entry)) if entry.sr_type == sr_type => {
            let (driver, config) = place_of(&entry)?;
            Ok(Target { driver, config, entry: Some(entry) })
        }
        (Some(sr_type), None, _) => {
            Err(Error::Usage(format!("-d DCONF is missing: {}", sr::driver(sr_type)?.dconf_form)))
        }
        (None, None, None) => match sr {
            Some(sr) => Err(unknown(&sr)),
            None => Err(Error::Usage(format!("-t TYPE is missing: one of {}", types()))),
        },
    }
}

/// The error of a name that no SR has, for a person who attaches what is at a place: the name may have been meant for that.
fn with_name(error: Error, dconf: Option<&str>) -> Error {
    match (error, dconf) {
        (Error::UnknownSr { name, .. }, Some(_)) if name.parse::<SrName>().is_ok() => Error::Usage(format!(
            "no SR has the name {name} on this host; `--name {name}` in its place gives the name to the SR that is there"
        )),
        (error, _) => error,
    }
}

/// The types of SRs that there are, in words.
fn types() -> String {
    let types: Vec<&str> = DRIVERS.iter().map(|driver| driver.sr_type).collect();
    types.join(", ")
}

/// Where the SR is that gets the copy of vdi_copy, by the table; its name becomes its UUID. `None` for another command, and
/// for a copy into the SR of the VDI.
///
/// # Errors
/// [`Error::UnknownSr`] for an SR without a name; those of [`registry::find`] and [`place_of`].
pub fn copy_target(verb: &mut Verb) -> Result<Option<(&'static Driver, DeviceConfig)>> {
    let Verb::VdiCopy { sr, to, .. } = verb else { return Ok(None) };
    let from: SrUuid = sr.sr.parse()?;
    let entry = match to.parse::<SrUuid>() {
        Ok(uuid) if uuid == from => return Ok(None),
        Ok(uuid) => registry::of_sr(uuid)?.ok_or_else(|| unknown(&uuid))?,
        Err(_) => by_name(to, false).map_err(|error| match error {
            Error::Invalid { what, value, expected } if value.contains('/') => {
                Error::Invalid { what, value, expected: format!("{expected}, and vdi_export writes a file") }
            }
            error => error,
        })?,
    };
    *to = entry.sr.to_string();
    if entry.sr == from { Ok(None) } else { place_of(&entry).map(Some) }
}

/// `is_placed`: `-t` and `-d` say where the SR is, so that a word which no SR has as its name is a mistyped UUID.
fn by_name(word: &str, is_placed: bool) -> Result<Entry> {
    let no_uuid = || word.parse::<SrUuid>().err().map(Error::from);
    let name: SrName = match word.parse() {
        Ok(name) => name,
        Err(mut misread) => {
            if word.starts_with('/') {
                misread.expected += "; the place of an SR is said by -d";
            }
            return Err(no_uuid().filter(|_| is_placed).unwrap_or_else(|| misread.into()));
        }
    };
    match registry::find(&name) {
        Ok(Some(entry)) => Ok(entry),
        found if is_placed => Err(no_uuid().or(found.err()).unwrap_or_else(|| unknown(&name))),
        found => Err(found.err().unwrap_or_else(|| unknown(&name))),
    }
}

/// The VDI of a word such as `fast/web`, and its SR.
///
/// # Errors
/// [`Error::Invalid`] for a word without a `/`; [`Error::UnknownSr`], [`Error::UnknownVdi`]; those of [`resolve_vdis`].
pub fn vdi(word: &str, context: &Context) -> Result<(SrUuid, VdiUuid)> {
    let (of, vdi) = word.split_once('/').ok_or_else(|| Error::Invalid {
        what: "VDI",
        value: word.to_owned(),
        expected: "expected SR/VDI: the name or UUID of an SR, and the label or UUID of a disk of it".to_owned(),
    })?;
    let sr = sr(of)?;
    if let Ok(vdi) = vdi.parse() {
        return Ok((sr, vdi));
    }
    let session = session(sr)?;
    let is_disk = |vdi| session.vdi_get_brief(vdi, context).map_or(true, |info| !info.hidden);
    Ok((sr, vdi_of(vdi, sr, &session.names(vdi, context)?, is_disk)?))
}

/// Replaces the names of the SRs that `sr_create --destroy-sr` names by their UUIDs. `true`: there was such a name.
///
/// # Errors
/// Those of [`sr()`].
pub fn resolve_doomed(verb: &mut Verb) -> Result<bool> {
    let Verb::SrCreate { destroy_sr, .. } = verb else { return Ok(false) };
    let is_name = destroy_sr.iter().any(|word| word.parse::<SrUuid>().is_err());
    for word in destroy_sr {
        *word = sr(word)?.to_string();
    }
    Ok(is_name)
}

/// The SR of a name or a UUID.
///
/// # Errors
/// [`Error::UnknownSr`] for a name that no SR has; those of [`registry::find`].
pub fn sr(word: &str) -> Result<SrUuid> {
    word.parse::<SrUuid>().or_else(|_| Ok(by_name(word, false)?.sr))
}

/// An SR that has a name on this host, open.
///
/// # Errors
/// [`Error::UnknownSr`] for one without a name; those of [`place_of`] and [`Session::open`].
pub fn session(sr: SrUuid) -> Result<Session> {
    let entry = registry::of_sr(sr)?.ok_or_else(|| unknown(&sr))?;
    let (driver, config) = place_of(&entry)?;
    Session::open(driver, sr, config)
}

fn unknown(name: &impl ToString) -> Error {
    Error::UnknownSr { name: name.to_string(), known: registry::names().unwrap_or_default() }
}

/// The driver and the device_config of an entry.
///
/// # Errors
/// [`Error::Invalid`] for a type that no driver has, and for words of `-d` that its driver does not take.
pub fn place_of(entry: &Entry) -> Result<(&'static Driver, DeviceConfig)> {
    let driver = sr::driver(&entry.sr_type)?;
    let config = match &entry.place {
        Place::Dconf(dconf) => sexp::device_config(driver, dconf)?,
        Place::Keys(config) => config.clone(),
    };
    Ok((driver, config))
}

/// The driver whose marker or signature is at a place. `probes`: where all drivers that could look see nothing, any of them will do.
fn driver_of(dconf: &str, sr: Option<SrUuid>, probes: bool, deadline: Instant) -> Result<&'static Driver> {
    let Seen { srs, looked, why } = seen_at(None, dconf, sr, deadline);
    if let Some(driver) = looked.filter(|_| probes && srs.is_empty() && why.is_empty()) {
        return Ok(driver);
    }
    let what = sr.map_or_else(|| "no SR".to_owned(), |sr| format!("no SR {sr}"));
    let unseen = || Error::Usage(format!("-t TYPE is missing: one of {}; {what} is seen there{why}", types()));
    srs.first().map(|(driver, _)| *driver).ok_or_else(unseen)
}

/// The SR at a place that has one alone, and its driver.
///
/// # Errors
/// [`Error::Usage`] if there is none, or if there are several; [`Error::Invalid`] for a type that no driver has.
pub fn only_sr_at(sr_type: Option<&str>, dconf: &str, deadline: Instant) -> Result<(&'static Driver, SrUuid)> {
    let driver = sr_type.map(sr::driver).transpose()?;
    if let Some(driver) = driver {
        sexp::device_config(driver, dconf)?;
    }
    let Seen { mut srs, why, .. } = seen_at(driver, dconf, None, deadline);
    srs.retain(|(driver, sr)| !is_elsewhere(driver, *sr, dconf, deadline));
    match srs.as_slice() {
        [one] => Ok(*one),
        [] => {
            Err(Error::Usage(format!("the SR is missing, and none is seen there; `sm sr_create NAME` makes one{why}")))
        }
        several => {
            let several: Vec<String> = several.iter().map(|(_, sr)| sr.to_string()).collect();
            Err(Error::Usage(format!("the SR is missing, and several are there: {}", several.join(", "))))
        }
    }
}

/// Whether an SR that is seen at a place is not the SR of that place: a probe of a directory finds those in the directories in it.
fn is_elsewhere(driver: &'static Driver, sr: SrUuid, dconf: &str, deadline: Instant) -> bool {
    let context = Context { deadline, progress: &|_, _| {}, others: None };
    let space = sexp::device_config(driver, dconf)
        .and_then(|config| Session::open(driver, sr, config))
        .and_then(|session| session.sr_get_space(&context));
    matches!(space, Err(Error::NoSr { .. }))
}

/// The SRs that drivers see at a place.
struct Seen {
    srs: Vec<(&'static Driver, SrUuid)>,
    /// A driver that looked and saw none.
    looked: Option<&'static Driver>,
    /// The failures of those that could not look, in words.
    why: String,
}

/// Lets one driver or all of them look for SRs at a place, until one sees some. With `sr`, for this one alone.
fn seen_at(driver: Option<&'static Driver>, dconf: &str, sr: Option<SrUuid>, deadline: Instant) -> Seen {
    let (mut said, mut looked, is_said) = (Vec::new(), None, driver.is_some());
    let asked = |it: &Driver| driver.is_none_or(|driver| driver.sr_type == it.sr_type);
    for driver in DRIVERS.iter().filter(|it| asked(it)) {
        let Ok(config) = sexp::device_config(driver, dconf) else { continue };
        // A place that a driver refuses is none of its own; nor is a device for a driver of directories, or the other way round.
        let is_other = |key, is_dir| config.get(key).and_then(is_directory) == Some(is_dir);
        if is_other("location", false) || is_other("device", true) {
            continue;
        }
        if (driver.open)(sr.unwrap_or_else(SrUuid::random), &config, deadline.into()).is_err() {
            continue;
        }
        // Of two types that serve an SR, its own is meant, unless a person says the other.
        let look =
            if is_said { (driver.probe)(&config, deadline.into()) } else { driver.probe_own(&config, deadline.into()) };
        match look {
            Ok(found) => {
                let wanted = found.iter().map(|info| info.uuid).filter(|it| sr.is_none_or(|sr| *it == sr));
                let srs: Vec<_> = wanted.map(|sr| (*driver, sr)).collect();
                if !srs.is_empty() {
                    return Seen { srs, looked, why: String::new() };
                }
                looked.get_or_insert(*driver);
            }
            Err(Error::NoSr { .. }) => drop(looked.get_or_insert(*driver)),
            Err(e) => said.push((driver.sr_type, one_line(&e))),
        }
    }
    let mut reasons: Vec<(String, String)> = Vec::new();
    for (sr_type, why) in said {
        match reasons.iter_mut().find(|(_, known)| *known == why) {
            Some((types, _)) => types.push_str(&format!(", {sr_type}")),
            None => reasons.push((sr_type.to_owned(), why)),
        }
    }
    let reasons: Vec<String> = reasons.into_iter().map(|(types, why)| format!("{types}: {why}")).collect();
    let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
    Seen { srs: Vec::new(), looked, why }
}

/// Whether a place is a directory; `None` if there is nothing.
fn is_directory(place: &str) -> Option<bool> {
    Path::new(place).metadata().ok().map(|found| found.is_dir())
}

/// Replaces labels and starts of UUIDs in a command by the UUIDs of the VDIs.
///
/// # Errors
/// [`Error::UnknownVdi`] for a word that no VDI of the SR has; [`Error::Invalid`] with the candidates if several have it; those
/// of [`Session::names`].
pub fn resolve_vdis(verb: &mut Verb, target: &Target, context: &Context) -> Result<Vec<(String, VdiUuid)>> {
    let sr = verb.sr_word().map(|word| word.clone());
    let words = verb.vdi_words();
    if words.iter().all(|word| word.parse::<VdiUuid>().is_ok()) {
        return Ok(Vec::new());
    }
    let sr: SrUuid = sr.unwrap_or_default().parse()?;
    let session = Session::open(target.driver, sr, target.config.clone())?;
    let mut meant = Vec::new();
    for word in words {
        if word.parse::<VdiUuid>().is_err() {
            // A base is there for its children only. One that cannot be read may be a disk.
            let is_disk = |vdi| session.vdi_get_brief(vdi, context).map_or(true, |info| !info.hidden);
            let named = |word: &str| vdi_of(word, sr, &session.names(word, context)?, is_disk);
            let vdi = match named(word) {
                Err(unknown @ Error::UnknownVdi { .. }) => match within(word, sr) {
                    // A UUID is that of a VDI, and no label.
                    Some(word) => word.parse().or_else(|_| named(word))?,
                    None => return Err(unknown),
                },
                found => found?,
            };
            meant.push((std::mem::replace(word, vdi.to_string()), vdi));
        }
    }
    Ok(meant)
}

/// A VDI that a command makes, and where.
pub struct NewVdi {
    vdi: VdiUuid,
    sr: SrUuid,
    driver: &'static Driver,
    config: DeviceConfig,
    /// How the SR is called in a line of `sm`.
    word: String,
}

impl NewVdi {
    /// `copy_to`: where the SR of a copy is, if it is another than `sr`.
    pub fn of(
        verb: &Verb,
        vdi: VdiUuid,
        sr: SrUuid,
        target: &Target,
        copy_to: Option<&(&'static Driver, DeviceConfig)>,
    ) -> NewVdi {
        let to = |to: &String| to.parse().ok();
        match (verb, copy_to) {
            (Verb::VdiCopy { to: word, .. }, Some((driver, config))) => {
                NewVdi { vdi, sr: to(word).unwrap_or(sr), driver, config: config.clone(), word: word.clone() }
            }
            _ => {
                let word = target.entry.as_ref().map_or_else(|| sr.to_string(), |entry| entry.name.clone());
                NewVdi { vdi, sr, driver: target.driver, config: target.config.clone(), word }
            }
        }
    }

    /// What a person has to know if other VDIs of the SR have the label of the new one: from then on the label stands for none of
    /// them. An SR that does not answer soon says nothing.
    pub fn namesakes(&self) -> Option<String> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let context = Context { deadline: Instant::now() + PATIENCE, progress: &|_, _| {}, others: None };
        let session = Session::open(self.driver, self.sr, self.config.clone()).ok()?;
        let names = session.names("", &context).ok()?;
        let label = names.iter().find(|it| it.uuid == self.vdi).map(|it| it.label.as_str())?;
        let is_disk = |vdi| session.vdi_get_brief(vdi, &context).is_ok_and(|info| !info.hidden);
        let all = names.iter().filter(|it| !label.is_empty() && it.label == label && is_disk(it.uuid)).count();
        (all > 1).then(|| {
            let (word, vdi) = (&self.word, self.vdi);
            format!("{all} VDIs have the label {label:?} now; sm vdi_set {word}/{vdi} --label TEXT gives the new one another")
        })
    }
}

/// The VDI of a word such as `fast/before`, if the SR of the word is `sr`: the first VDI of the line says which SR it is about.
fn within(word: &str, sr: SrUuid) -> Option<&str> {
    let (of, vdi) = word.split_once('/')?;
    let named = || registry::find(&of.parse().ok()?).ok()?.map(|entry| entry.sr);
    (of.parse().ok().or_else(named) == Some(sr)).then_some(vdi)
}

/// The one VDI that has a word as its label, or whose UUID begins with it. `is_disk`: whether an image is no base.
fn vdi_of(word: &str, sr: SrUuid, names: &[VdiName], is_disk: impl Fn(VdiUuid) -> bool) -> Result<VdiUuid> {
    if word.is_empty() {
        let expected = "expected a UUID, the start of one, or a label".to_owned();
        return Err(Error::Invalid { what: "VDI", value: String::new(), expected });
    }
    let prefix = word.to_ascii_lowercase();
    let is_prefix = prefix.len() >= SHORTEST_PREFIX && prefix.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let has = |vdi: &&VdiName| {
        vdi.label == word
            || vdi.location.as_deref() == Some(word)
            || is_prefix && vdi.uuid.to_string().starts_with(&prefix)
    };
    let mut found: Vec<&VdiName> = names.iter().filter(has).filter(|vdi| is_disk(vdi.uuid)).collect();
    found.sort_by_key(|vdi| vdi.uuid);
    match found.as_slice() {
        [] => Err(Error::UnknownVdi { word: word.to_owned(), sr }),
        [vdi] => Ok(vdi.uuid),
        several => {
            let shown: Vec<String> = several
                .iter()
                .take(MOST_SHOWN)
                .map(|vdi| match vdi.label.as_str() {
                    "" => vdi.uuid.to_string(),
                    label => format!("{} ({label})", vdi.uuid),
                })
                .collect();
            let more = several.len() - shown.len();
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            Err(Error::Invalid {
                what: "VDI",
                value: word.to_owned(),
                expected: format!(
                    "{} VDIs have it: {}{more}; use a UUID or the start of one",
                    several.len(),
                    shown.join(", ")
                ),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(uuid: &str, label: &str) -> VdiName {
        VdiName { uuid: uuid.parse().unwrap(), label: label.to_owned(), location: None }
    }

    #[test]
    fn a_vdi_is_its_label_or_the_start_of_its_uuid_and_never_one_of_two() {
        let sr = SrUuid::random();
        let (a, b) = ("98de866e-b035-4b1a-a571-00000000000a", "98de866e-c035-4b1a-a571-00000000000b");
        let c = "cafe866e-c035-4b1a-a571-00000000000c";
        let d = "11111111-c035-4b1a-a571-00000000000d";
        let mut names = vec![name(a, "web"), name(b, "db"), name(c, "db"), name(d, "cafe")];
        names[3].location = Some("debian.iso".to_owned());
        let meant = |word: &str| vdi_of(word, sr, &names, |_| true);
        for (word, vdi) in
            [("web", a), ("98de866e-b", a), ("98DE866E-B0", a), ("98de866e-c", b), ("cafe8", c), ("debian.iso", d)]
        {
            assert_eq!(meant(word).unwrap().to_string(), vdi, "{word}");
        }
        for word in ["db", "98de", "cafe"] {
            let refused = meant(word).unwrap_err().to_string();
            assert!(refused.contains("2 VDIs have it: "), "{refused}");
        }
        assert!(matches!(meant(""), Err(Error::Invalid { .. })));
        for word in ["98d", "caf", "Web", "we", "00000000000a", "-"] {
            assert!(matches!(meant(word), Err(Error::UnknownVdi { .. })), "{word}");
        }
        // A base is never meant.
        assert_eq!(vdi_of("98de", sr, &names, |vdi| vdi.to_string() != a).unwrap().to_string(), b);
    }
}
