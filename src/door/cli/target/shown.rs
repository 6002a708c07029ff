//! The answers of `sm target` as tables, s-expressions and JSON. `docs/json.md` has the keys of JSON.

use serde::Serialize;

use crate::door::table;
use crate::error::Error;
use crate::target::backstore::{self, Backstore};
use crate::target::fabric::Network;
use crate::target::physical::Hba;
use crate::target::publication::{Problem, Publication};
use crate::target::record::{Initiator, Record, Stage};
use crate::target::settings::Setting;
use crate::types::printable;

/// The answer of a command.
pub enum Reply {
    /// Nothing.
    Done,
    /// A VDI was published.
    Published(Box<Publication>),
    One(Box<Publication>),
    List(Vec<Publication>, Vec<Problem>),
    Problems(Vec<Problem>),
    Setting(Setting),
    Settings(Vec<Setting>),
    Backstores(Vec<Backstore>),
}

impl Reply {
    /// The failure that an answer is, if it is one.
    pub fn failure(&self) -> Option<Error> {
        let count = match self {
            Reply::Problems(problems) | Reply::List(_, problems) => problems.len(),
            _ => 0,
        };
        (count > 0).then_some(Error::Drift { count })
    }
}

#[derive(Serialize)]
struct InitiatorOf<'a> {
    initiator: &'a str,
    read_only: bool,
    /// None: the fabric does not tell.
    logged_in: Option<bool>,
}

#[derive(Serialize)]
struct Of<'a> {
    sr: Option<String>,
    vdi: String,
    hctl: Option<String>,
    hba: Option<&'static str>,
    fabric: &'static str,
    target: &'a str,
    state: &'static str,
    device: Option<String>,
    portals: Vec<String>,
    read_only: bool,
    shared: bool,
    authenticated: bool,
    initiators: Vec<InitiatorOf<'a>>,
    created: u64,
}

impl<'a> From<&'a Publication> for Of<'a> {
    fn from(it: &'a Publication) -> Of<'a> {
        let record = &it.record;
        let one = |initiator: &'a Initiator| InitiatorOf {
            initiator: initiator.name.as_str(),
            read_only: initiator.read_only,
            logged_in: network(record)
                .is_some_and(|network| network.tells_sessions)
                .then(|| it.shown.sessions.iter().any(|name| name == initiator.name.as_str())),
        };
        Of {
            sr: record.sr.map(|sr| sr.to_string()),
            vdi: record.vdi.to_string(),
            hctl: record.physical.as_ref().map(|it| it.address.to_string()),
            hba: record.physical.as_ref().map(|it| it.hba.word()),
            fabric: record.fabric.word(),
            target: &record.target,
            state: state(it),
            device: it.shown.device.as_ref().map(|device| device.display().to_string()),
            portals: record.portals.iter().map(ToString::to_string).collect(),
            read_only: record.read_only,
            shared: record.shared,
            authenticated: record.authenticated,
            initiators: record.initiators.iter().map(one).collect(),
            created: record.created,
        }
    }
}

fn network(record: &Record) -> Option<&'static Network> {
    record.fabric.kind().facts().network.as_ref()
}

fn state(it: &Publication) -> &'static str {
    match it.record.stage {
        Stage::Creating => "incomplete",
        Stage::Removing => "removing",
        Stage::Published if it.shown.is_published => "published",
        Stage::Published => "down",
    }
}

#[derive(Serialize)]
struct ProblemOf<'a> {
    vdi: String,
    what: &'a str,
}

#[derive(Serialize)]
struct SettingOf<'a> {
    name: &'a str,
    value: &'a str,
    writable: bool,
}

impl<'a> From<&'a Setting> for SettingOf<'a> {
    fn from(it: &'a Setting) -> SettingOf<'a> {
        SettingOf { name: &it.name, value: &it.value, writable: it.writable }
    }
}

/// A document; the same for JSON and s-expressions.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Body<'a> {
    One(Box<OneOf<'a>>),
    List(ListOf<'a>),
    Problems(ProblemsOf<'a>),
    Settings(SettingsOf<'a>),
    Backstores(BackstoresOf<'a>),
}

#[derive(Serialize)]
pub struct BackstoresOf<'a> {
    backstores: Vec<BackstoreOf<'a>>,
}

#[derive(Serialize)]
struct BackstoreOf<'a> {
    path: String,
    plugin: &'a str,
    index: u32,
    hba: Option<&'static str>,
    version: &'a str,
    fresh: bool,
    objects: Vec<ObjectOf<'a>>,
}

#[derive(Serialize)]
struct ObjectOf<'a> {
    name: &'a str,
    alias: &'a str,
    enabled: bool,
    luns: usize,
    info: &'a str,
}

impl<'a> From<&'a Backstore> for BackstoreOf<'a> {
    fn from(it: &'a Backstore) -> BackstoreOf<'a> {
        let object = |it: &'a backstore::Shown| ObjectOf {
            name: &it.name,
            alias: &it.alias,
            enabled: it.is_enabled,
            luns: it.luns,
            info: &it.info,
        };
        BackstoreOf {
            path: it.path.display().to_string(),
            plugin: &it.plugin,
            index: it.index,
            hba: it.hba.map(Hba::word),
            version: &it.version,
            fresh: it.is_fresh,
            objects: it.objects.iter().map(object).collect(),
        }
    }
}

#[derive(Serialize)]
pub struct SettingsOf<'a> {
    settings: Vec<SettingOf<'a>>,
}

#[derive(Serialize)]
pub struct OneOf<'a> {
    publication: Of<'a>,
}

#[derive(Serialize)]
pub struct ListOf<'a> {
    publications: Vec<Of<'a>>,
    problems: Vec<ProblemOf<'a>>,
}

#[derive(Serialize)]
pub struct ProblemsOf<'a> {
    problems: Vec<ProblemOf<'a>>,
}

fn problems(found: &[Problem]) -> Vec<ProblemOf<'_>> {
    found.iter().map(|it| ProblemOf { vdi: it.vdi.to_string(), what: &it.what }).collect()
}

impl<'a> Body<'a> {
    pub fn of(reply: &'a Reply) -> Option<Body<'a>> {
        Some(match reply {
            Reply::Done => return None,
            Reply::Published(it) | Reply::One(it) => Body::One(Box::new(OneOf { publication: (&**it).into() })),
            Reply::List(found, bad) => {
                Body::List(ListOf { publications: found.iter().map(Of::from).collect(), problems: problems(bad) })
            }
            Reply::Problems(found) => Body::Problems(ProblemsOf { problems: problems(found) }),
            Reply::Backstores(all) => {
                Body::Backstores(BackstoresOf { backstores: all.iter().map(BackstoreOf::from).collect() })
            }
            Reply::Setting(it) => Body::Settings(SettingsOf { settings: vec![it.into()] }),
            Reply::Settings(all) => Body::Settings(SettingsOf { settings: all.iter().map(SettingOf::from).collect() }),
        })
    }
}

/// An answer for people.
pub fn table_of(reply: &Reply) -> String {
    match reply {
        Reply::Done => String::new(),
        Reply::Published(it) => match &it.shown.device {
            Some(device) => format!("{}\n", device.display()),
            None => format!("{}\n", it.record.target),
        },
        Reply::One(it) => one(it),
        Reply::List(found, bad) => {
            let head = ["VDI", "fabric", "state", "to", "target"].map(str::to_owned).to_vec();
            let rows = found.iter().map(|it| {
                vec![
                    it.record.vdi.to_string(),
                    it.record.fabric.word().to_owned(),
                    state(it).to_owned(),
                    consumers(it),
                    it.record.target.clone(),
                ]
            });
            let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
            table::aligned(&lines, &[]) + &lines_of(bad)
        }
        Reply::Problems(found) => lines_of(found),
        Reply::Backstores(all) => {
            let head = ["backstore", "HBA", "version", "object", "alias", "LUNs", "info"].map(str::to_owned).to_vec();
            let rows = all.iter().flat_map(|it| {
                let own = move || {
                    let hba = it.hba.map_or("-", Hba::word).to_owned();
                    vec![format!("{}_{}", it.plugin, it.index), hba, it.version.clone()]
                };
                let dashes = |count| vec!["-".to_owned(); count];
                let empty = it.objects.is_empty().then(|| [own(), dashes(4)].concat());
                let objects = it.objects.iter().map(move |object| {
                    let text = |text: &str| if text.is_empty() { "-".to_owned() } else { printable(text).to_string() };
                    let words = [&object.name, &object.alias].map(|word| text(word));
                    [own(), words.to_vec(), vec![object.luns.to_string(), text(&object.info)]].concat()
                });
                objects.chain(empty)
            });
            table::aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), &[])
        }
        Reply::Setting(it) => format!("{}\n", printable(&it.value)),
        Reply::Settings(all) => {
            let head = ["name", "value", "writable"].map(str::to_owned).to_vec();
            let yes = |it: &Setting| if it.writable { "yes" } else { "no" }.to_owned();
            let rows = all.iter().map(|it| vec![it.name.clone(), printable(&it.value).to_string(), yes(it)]);
            table::aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), &[])
        }
    }
}

fn consumers(it: &Publication) -> String {
    if let Some(device) = &it.shown.device {
        return device.display().to_string();
    }
    let each: Vec<String> = it.record.initiators.iter().map(|initiator| shown_initiator(it, initiator)).collect();
    if each.is_empty() { "-".to_owned() } else { each.join(", ") }
}

fn shown_initiator(it: &Publication, initiator: &Initiator) -> String {
    let name = initiator.name.as_str();
    let logged_in = if it.shown.sessions.iter().any(|session| session == name) { " (logged in)" } else { "" };
    let read_only = if initiator.read_only { " (read-only)" } else { "" };
    format!("{name}{read_only}{logged_in}")
}

fn one(it: &Publication) -> String {
    let record = &it.record;
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let portals: Vec<String> = record.portals.iter().map(ToString::to_string).collect();
    let mut lines = match (&record.sr, &record.physical) {
        (_, Some(device)) => vec![
            ("UUID", record.vdi.to_string()),
            ("device", device.address.to_string()),
            ("HBA", device.hba.word().to_owned()),
        ],
        (sr, None) => vec![("SR", sr.map(|sr| sr.to_string()).unwrap_or_default()), ("VDI", record.vdi.to_string())],
    };
    lines.extend([
        ("fabric", record.fabric.word().to_owned()),
        ("state", state(it).to_owned()),
        ("target", record.target.clone()),
    ]);
    match network(record) {
        None => lines.push(("device", consumers(it))),
        Some(_) => {
            lines.push(("portals", portals.join(", ")));
            lines.extend(record.initiators.iter().map(|initiator| ("to", shown_initiator(it, initiator))));
            lines.push(("secrets", yes(record.authenticated)));
            lines.push(("shared", yes(record.shared)));
        }
    }
    lines.push(("read-only", yes(record.read_only)));
    let lines: Vec<Vec<String>> = lines.into_iter().map(|(key, value)| vec![key.to_owned(), value]).collect();
    table::aligned(&lines, &[])
}

fn lines_of(found: &[Problem]) -> String {
    found.iter().map(|it| format!("VDI {}: {}\n", it.vdi, printable(&it.what))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::fabric::Shown;
    use crate::target::physical::Physical;
    use crate::target::record::Fabric;
    use crate::target::source::Source;
    use crate::types::VdiUuid;

    fn publication() -> Publication {
        let target = "iqn.2003-01.org.example:x".to_owned();
        let device = Physical {
            address: "2:0:0:0".parse().unwrap(),
            wwid: "naa.5".to_owned(),
            hba: Hba::Virtual,
            index: None,
            known_as: None,
        };
        let mut record = Record::new(&Source::Device(&device), Fabric::Iscsi, target, 7);
        let name = "iqn.2003-01.org.example:host1".parse().unwrap();
        record.initiators.push(Initiator { name, read_only: true, foreign: false });
        record.stage = Stage::Published;
        let sessions = vec!["iqn.2003-01.org.example:host1".to_owned()];
        Publication { record, shown: Shown { is_published: true, device: None, sessions } }
    }

    #[test]
    fn a_publication_has_the_keys_of_the_documentation() {
        let text = include_str!("../../../../docs/json.md");
        let (_, section) = text.split_once("## Publication\n").unwrap();
        let documented: Vec<&str> = section
            .lines()
            .take_while(|line| !line.starts_with('#'))
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect();
        let json = serde_json::to_value(Of::from(&publication())).unwrap();
        let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut sorted = documented.clone();
        sorted.sort_unstable();
        assert_eq!(keys, sorted);
        assert_eq!(json["initiators"][0]["logged_in"], true);
    }

    #[test]
    fn a_table_says_who_has_a_disk_and_what_is_wrong() {
        let problem = Problem { vdi: VdiUuid::random(), what: "down\u{1b}[31m".to_owned() };
        let reply = Reply::List(vec![publication()], vec![problem]);
        let text = table_of(&reply);
        assert!(text.contains("iqn.2003-01.org.example:host1 (read-only) (logged in)"), "{text}");
        assert!(!text.contains('\u{1b}') && text.lines().count() == 3, "{text}");
        assert!(matches!(reply.failure(), Some(Error::Drift { count: 1 })));
    }
}
