//! The drivers that xapi finds on this host, and what is lost or gained where a type has drivers of both kinds.
//!
//! xapi keeps one list of features of an SR type for the whole pool. A feature that one host does not report is missing for all
//! (`ocaml/xapi/xapi_sm.ml`). So the drivers here are compared with the drivers that they replaced, with the list of the pool,
//! and with what other hosts say that theirs announce.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::pool::{Pool, Theirs};
use super::{Area, Trouble, Weight, below, rights};
use crate::door::host::ours::is_this;
use crate::door::smapiv1;
use crate::door::xmlrpc::{self, Response, Value};
use crate::error::{Error, one_line};
use crate::sr::{DRIVERS, Driver};
use crate::sys::tool::Tool;
use crate::sys::{run_dir, small, threads};

/// How long a driver may take to describe itself, if nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of the longest description that is read.
const LONGEST: usize = 1 << 20;

/// The features by which something works, and the words for it. xapi or its clients gate an operation on each of them, or a driver
/// of the pool does. The other names that drivers announce are private to a driver, or tell what is always there.
const EFFECTS: &[(&str, &str)] = &[
    ("SR_CACHING", "disks in a local cache"),
    ("SR_METADATA", "the database of the pool in the SR"),
    ("SR_PROBE", "probing for SRs"),
    ("SR_SUPPORTS_LOCAL_CACHING", "being the local cache of a host"),
    ("SR_TRIM", "trim"),
    ("SR_UPDATE", "SR.update"),
    ("THIN_PROVISIONING", "shown as thin"),
    ("VDI_ACTIVATE", "activation"),
    ("VDI_ATTACH", "attachment"),
    ("VDI_CLONE", "clones"),
    ("VDI_COMPOSE", "VDI.compose"),
    ("VDI_CONFIG_CBT", "changed block tracking"),
    ("VDI_CREATE", "new disks"),
    ("VDI_DEACTIVATE", "deactivation"),
    ("VDI_DELETE", "deletion of disks"),
    ("VDI_DETACH", "detachment"),
    ("VDI_GENERATE_CONFIG", "disks attached without xapi, as for HA"),
    ("VDI_INTRODUCE", "VDI.introduce"),
    ("VDI_MIRROR", "storage migration"),
    ("VDI_MIRROR_IN", "storage migration to the SR"),
    ("VDI_READ_CACHING", "shown as read from the page cache"),
    ("VDI_RESET_ON_BOOT", "reset on boot"),
    ("VDI_RESIZE", "growing disks"),
    ("VDI_RESIZE_ONLINE", "growing disks in use"),
    ("VDI_REVERT", "VDI.revert"),
    ("VDI_SNAPSHOT", "snapshots"),
    ("VDI_UPDATE", "VDI.update"),
];

/// The names of features, and the version of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(pub BTreeMap<String, u64>);

impl Features {
    /// Of the words of a driver: `NAME` or `NAME/VERSION`; SMAPIv1, "Capability strings".
    pub fn of<'w>(words: impl IntoIterator<Item = &'w str>) -> Features {
        let one = |word: &'w str| {
            let (name, version) = word.split_once('/').unwrap_or((word, "1"));
            (name.to_owned(), version.parse().ok().filter(|version| *version > 0).unwrap_or(1))
        };
        Features(words.into_iter().map(one).collect())
    }

    /// Those that have an effect and that the other list has not, in this version at least; with their effect.
    pub fn beyond(&self, other: &Features) -> Vec<String> {
        let lacks = |name: &str, version: &u64| other.0.get(name).is_none_or(|theirs| theirs < version);
        let named = self.0.iter().filter(|(name, version)| lacks(name, version));
        let told = named.filter_map(|(name, version)| {
            let (_, effect) = EFFECTS.iter().find(|(known, _)| known == name)?;
            let version = if *version > 1 { format!("/{version}") } else { String::new() };
            Some(format!("{name}{version} ({effect})"))
        });
        told.collect()
    }
}

/// A driver's description of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    pub vendor: String,
    pub version: String,
    pub features: Features,
}

/// A driver that is in the directory of xapi, of a type that this package serves.
pub struct Installed {
    pub driver: &'static Driver,
    pub path: PathBuf,
    /// This executable.
    pub is_ours: bool,
    /// `None`: it does not describe itself.
    pub described: Option<Described>,
    /// The driver that ours took the place of.
    pub stock: Option<Described>,
}

/// The drivers in xapi's directory. None on a host without that directory. Those that are not ours are asked at the same time, and
/// each has to describe itself within `patience`.
pub fn installed(patience: Duration, found: &mut Vec<Trouble>) -> Vec<Installed> {
    let directory = directory();
    let mut asked = asked(&directory, patience);
    let mut installed = Vec::new();
    for driver in DRIVERS {
        let path = directory.join(driver.executable);
        if !path.exists() {
            // A link to an executable that was removed.
            if path.is_symlink() {
                let what = "it leads to a program that is gone: xapi has no driver for the type";
                let remedy = "install the package again, or give the driver of the host back (docs/xapi.md, Roll back)";
                found.push(Trouble::wrong(Area::Drivers, path.display().to_string(), what, remedy));
            }
            continue;
        }
        let mut described = |path: &Path| match asked.remove(path)? {
            Ok(described) => Some(described),
            // xapi asks it the same, but for one that ours took the place of.
            Err(error @ Error::Tool { .. }) if path.extension().is_none() => {
                let what = format!("it does not describe itself, so xapi leaves its type out: {}", one_line(&error));
                let remedy = "install the package that brought it again";
                found.push(Trouble::wrong(Area::Drivers, path.display().to_string(), what, remedy));
                None
            }
            Err(error) => {
                found.push(Trouble::failed(Area::Drivers, path.display().to_string(), &error));
                None
            }
        };
        let is_ours = is_this(&path);
        let stock = directory.join(format!("{}.stock", driver.executable));
        let stock = if is_ours && stock.exists() { described(&stock) } else { None };
        let described = if is_ours { Some(ours(driver)) } else { described(&path) };
        installed.push(Installed { driver, path, is_ours, described, stock });
    }
    if installed.iter().any(|driver| driver.is_ours) {
        found.extend(plugins());
        found.extend(unlisted(&installed));
    }
    installed
}

/// What the drivers that are not ours say of themselves, and those that ours took the place of.
fn asked(directory: &Path, patience: Duration) -> BTreeMap<PathBuf, Result<Described, Error>> {
    let others = DRIVERS.iter().filter_map(|driver| {
        let path = directory.join(driver.executable);
        let stock = directory.join(format!("{}.stock", driver.executable));
        let asked = if is_this(&path) { stock } else { path };
        asked.exists().then_some(asked)
    });
    let others: Vec<PathBuf> = others.collect();
    let said = threads::while_waiting(&others, others.len(), |path| describe(path, patience));
    others.into_iter().zip(said).collect()
}

/// What a driver of this executable announces on this host.
pub fn ours(driver: &Driver) -> Described {
    let features = Features::of(smapiv1::announced(driver));
    Described { vendor: smapiv1::VENDOR.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), features }
}

/// The SR types that this executable serves on this host under xapi.
pub fn served_here() -> impl Iterator<Item = &'static Driver> {
    let directory = directory();
    DRIVERS.iter().copied().filter(move |driver| is_this(&directory.join(driver.executable)))
}

/// Asks a driver for its description, as xapi does each time that it starts. No driver touches anything for it.
///
/// # Errors
/// [`Error::Tool`] if it does not answer, or answers what no driver answers; [`Error::Io`] if others could have written it.
fn describe(path: &Path, patience: Duration) -> Result<Described, Error> {
    let argv = path.display().to_string();
    if !rights::is_trusted(path)? {
        let source =
            std::io::Error::new(std::io::ErrorKind::PermissionDenied, "others can write to it; it was not run");
        return Err(Error::io("ask the driver", path)(source));
    }
    let nothing = Value::Struct(BTreeMap::from([("device_config".to_owned(), Value::Struct(BTreeMap::new()))]));
    let call = xmlrpc::write_call("sr_get_driver_info", &[nothing]);
    let told = Tool::new(&argv).usual_args([call]).deadline(patience).at_most(LONGEST).run()?;
    let bad = |how: String| Error::Tool { argv: format!("{argv} sr_get_driver_info"), how, stderr: String::new() };
    match xmlrpc::read_response(&told.stdout) {
        Ok(Response::Value(Value::Struct(members))) => Ok(read(&members)),
        Ok(_) => Err(bad("answered no description".to_owned())),
        Err(e) => Err(bad(format!("answered what is not understood: {e}"))),
    }
}

fn read(members: &BTreeMap<String, Value>) -> Described {
    let text = |key: &str| members.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let words = match members.get("capabilities") {
        Some(Value::Array(words)) => words.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    Described { vendor: text("vendor"), version: text("driver_version"), features: Features::of(words) }
}

/// The directory in which xapi looks for drivers: `sm-dir` of its configuration, or its default.
fn directory() -> PathBuf {
    configured("sm-dir").filter(|path| path.starts_with('/')).map_or_else(run_dir::drivers, PathBuf::from)
}

/// Bytes of the longest file of xapi's configuration that is read.
const LONGEST_CONF: u64 = 1 << 20;

/// The value of a key of xapi's configuration; the last one that is given. What is no text file has none.
fn configured(key: &str) -> Option<String> {
    let (file, more) = run_dir::xapi_conf();
    let mut files: Vec<PathBuf> = below(more).collect();
    files.retain(|path| path.extension().is_some_and(|it| it == "conf"));
    files.sort();
    let text = |path: PathBuf| small::read(&path, LONGEST_CONF).ok();
    let texts = [file].into_iter().chain(files).filter_map(text).map(|it| String::from_utf8_lossy(&it).into_owned());
    texts.filter_map(|text| value_of(&text, key)).next_back()
}

fn value_of(text: &str, key: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split('#').next()?.split_once('='));
    lines.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().trim_matches('"').to_owned()).next_back()
}

/// The drivers that xapi leaves out because their types are not on its list. A host without a list takes the types of its own.
fn unlisted(installed: &[Installed]) -> Vec<Trouble> {
    let Some(list) = configured("sm-plugins") else { return Vec::new() };
    let is_listed =
        |driver: &Driver| list.split_whitespace().any(|word| word == "*" || word.eq_ignore_ascii_case(driver.sr_type));
    let left_out = installed.iter().filter(|it| it.is_ours && !is_listed(it.driver));
    let told = |it: &Installed| {
        let what = format!("xapi leaves it out: {} is not in sm-plugins of its configuration", it.driver.sr_type);
        let remedy = "add it there (/etc/xapi.conf.d), and restart the toolstack";
        Trouble::wrong(Area::Drivers, it.path.display().to_string(), what, remedy)
    };
    left_out.map(told).collect()
}

/// The host plug-ins that have to go with the drivers.
fn plugins() -> Vec<Trouble> {
    let lost = [
        ("tapdisk-pause", "snapshots of disks that this host has in use are refused for the other hosts (82)"),
        ("coalesce-leaf", "clients that ask for the images of a VM to be merged are refused"),
    ];
    let missing = lost.into_iter().filter(|(name, _)| !is_this(&run_dir::plugins().join(name)));
    let told = |(name, effect): (&str, &str)| {
        let path = run_dir::plugins().join(name);
        let what = format!("the plug-in is not that of this package: {effect}");
        let remedy = "install it again, with PLUGINDIR if by make (docs/xapi.md, Enable)";
        Trouble::wrong(Area::Drivers, path.display().to_string(), what, remedy)
    };
    missing.map(told).collect()
}

/// Compares the features of every driver of this host.
pub fn compare(installed: &[Installed], pool: Option<&Pool>, found: &mut Vec<Trouble>) {
    for it in installed {
        let Some(described) = &it.described else { continue };
        let of_pool = pool.and_then(|pool| pool.features(it.driver.sr_type));
        let theirs = pool.map(|pool| pool.theirs(it.driver.sr_type)).unwrap_or_default();
        found.extend(judged(it, described, of_pool, &theirs));
    }
}

const ALL_OR_NONE: &str = "serve a type by one kind of driver on all hosts, in one release, and restart all toolstacks";

/// The findings of one type. `of_pool`: what xapi has for the type now. `theirs`: the drivers of other hosts.
fn judged(it: &Installed, here: &Described, of_pool: Option<&Features>, theirs: &[Theirs]) -> Vec<Trouble> {
    let mut found = Vec::new();
    let object = format!("type {}", it.driver.sr_type);
    let wrong =
        |what: String| Trouble::wrong(Area::Features, object.clone(), what, format!("{ALL_OR_NONE} (docs/xapi.md)"));
    let mut told = BTreeSet::new();
    if let Some(features) = of_pool {
        let lost = features.beyond(&here.features);
        if !lost.is_empty() {
            told.extend(lost.iter().cloned());
            let what = "of the pool, and not of this host's driver: lost for all hosts once xapi asks this driver:";
            found.push(wrong(format!("{what} {}", lost.join(", "))));
        }
    }
    for other in theirs {
        match &other.described {
            None if it.is_ours => found.push(Trouble {
                area: Area::Drivers,
                ..wrong(format!("served by this package here, and by another driver on host {}", other.host))
            }),
            Some(_) if !it.is_ours => found.push(Trouble {
                area: Area::Drivers,
                ..wrong(format!("served by this package on host {}, and by another driver here", other.host))
            }),
            Some(described) => {
                let by = |more: Vec<String>| Some(more.join(", ")).filter(|more| !more.is_empty());
                let (mine, host) = (&here.features, &other.host);
                if let Some(lost) = by(described.features.beyond(mine)) {
                    found.push(wrong(format!("announced on host {host} and not here: {lost}")));
                }
                if let Some(lost) = by(mine.beyond(&described.features)) {
                    found.push(wrong(format!(
                        "announced here and not on host {host} (release {}): {lost}",
                        described.version
                    )));
                }
            }
            None => {}
        }
    }
    // What the pool has is told above, and lost or not, all hosts agree on the rest.
    let python = if it.is_ours { it.stock.as_ref() } else { Some(here) };
    let package = if it.is_ours { here.clone() } else { ours(it.driver) };
    if let Some(python) = python.filter(|python| python.vendor != smapiv1::VENDOR) {
        let list = |more: Vec<String>| if more.is_empty() { "nothing".to_owned() } else { more.join(", ") };
        let lost = python.features.beyond(&package.features).into_iter().filter(|it| !told.contains(it)).collect();
        let gained = package.features.beyond(&python.features);
        let what = match it.is_ours {
            true => format!(
                "beside the driver that it replaced ({} {}), this one lacks {}, and adds {}",
                python.vendor,
                python.version,
                list(lost),
                list(gained)
            ),
            false => format!(
                "served by another driver ({} {}); with this package on all hosts, lost is {}, gained {}",
                python.vendor,
                python.version,
                list(lost),
                list(gained)
            ),
        };
        found.push(Trouble { weight: Weight::Note, remedy: String::new(), ..wrong(what) });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::file;

    fn described(words: &[&str], vendor: &str) -> Described {
        Described { vendor: vendor.to_owned(), version: "1".to_owned(), features: Features::of(words.iter().copied()) }
    }

    fn installed(is_ours: bool, stock: Option<Described>) -> Installed {
        Installed { driver: &file::DRIVER, path: PathBuf::new(), is_ours, described: None, stock }
    }

    #[test]
    fn features_are_compared_by_name_and_version() {
        let python = Features::of(["VDI_RESET_ON_BOOT/2", "VDI_MIRROR", "ATOMIC_PAUSE", "VDI_CLONE/x"]);
        assert_eq!(
            python.beyond(&Features::of(["VDI_RESET_ON_BOOT", "VDI_CLONE"])),
            ["VDI_MIRROR (storage migration)", "VDI_RESET_ON_BOOT/2 (reset on boot)"]
        );
        assert!(Features::of(["VDI_CLONE"]).beyond(&python).is_empty());
    }

    #[test]
    fn every_feature_that_a_driver_of_ours_announces_has_an_effect_or_is_known_to_have_none() {
        for word in DRIVERS.iter().flat_map(|driver| driver.about.capabilities) {
            let name = word.split('/').next().unwrap();
            let has_none = ["SR_ATTACH", "SR_DETACH", "SR_SCAN"].contains(&name);
            assert!(has_none || EFFECTS.iter().any(|(known, _)| *known == name), "{word}");
        }
    }

    #[test]
    fn a_feature_that_the_pool_would_lose_is_told_and_once() {
        let (here, stock) =
            (described(&["VDI_CLONE", "VDI_REVERT"], smapiv1::VENDOR), described(&["VDI_CLONE", "VDI_MIRROR"], "X"));
        let it = installed(true, Some(stock.clone()));
        let found = judged(&it, &here, Some(&stock.features), &[]);
        assert_eq!(found.iter().map(|it| it.weight).collect::<Vec<_>>(), [Weight::Wrong, Weight::Note]);
        assert!(found[0].what.ends_with("asks this driver: VDI_MIRROR (storage migration)"), "{found:?}");
        assert!(found[1].what.contains("lacks nothing, and adds VDI_REVERT"), "{found:?}");
        let found = judged(&it, &here, None, &[]);
        assert!(found.len() == 1 && found[0].what.contains("lacks VDI_MIRROR"), "{found:?}");
        assert_eq!(judged(&installed(true, None), &here, Some(&here.features), &[]), []);
    }

    #[test]
    fn drivers_of_other_kinds_and_releases_on_other_hosts_are_told() {
        let here = described(&["VDI_CLONE"], smapiv1::VENDOR);
        let other = |described| vec![Theirs { host: "b".to_owned(), described }];
        let newer = Some(described(&["VDI_CLONE", "VDI_MIRROR"], smapiv1::VENDOR));
        for (is_ours, theirs, words) in [
            (true, other(None), "another driver on host b"),
            (true, other(newer.clone()), "on host b and not here: VDI_MIRROR"),
            (true, other(Some(described(&[], smapiv1::VENDOR))), "here and not on host b (release 1): VDI_CLONE"),
            (true, other(Some(here.clone())), ""),
            (false, other(newer), "by another driver here"),
            (false, other(None), ""),
        ] {
            let mut found = judged(&installed(is_ours, None), &here, None, &theirs);
            found.retain(|it| it.weight == Weight::Wrong);
            let what = found.first().map(|it| it.what.clone()).unwrap_or_default();
            assert!(
                what.contains(words) && what.is_empty() == words.is_empty() && found.len() < 2,
                "{words}: {found:?}"
            );
        }
    }

    #[test]
    fn the_configuration_of_xapi_is_read_as_xapi_reads_it() {
        let text = "# sm-dir = /no\nsm-dir = /opt/x # why\n sm-plugins=file nfs\nsm-dir-x = /y\nsm-plugins = \"*\"\n";
        assert_eq!(value_of(text, "sm-dir").as_deref(), Some("/opt/x"));
        assert_eq!(value_of(text, "sm-plugins").as_deref(), Some("*"));
        assert_eq!(value_of(text, "sm"), None);
    }
}
