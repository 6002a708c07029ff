//! The work of the commands `sm devices` and `sm backends`.

use std::collections::BTreeMap;
use std::time::Instant;

use super::agent;
use super::grammar::{DevicesCommand, ListArgs, OwnerArgs};
use super::shown::{COLUMNS, OF_INVENTORY, Reply, USUAL};
use crate::call::Session;
use crate::context::{Context, DEFAULT_WAIT};
use crate::door::size;
use crate::error::{Error, Result, one_line};
use crate::layout;
use crate::registry::agent::Agent;
use crate::registry::backend::{self, Backend};
use crate::registry::candidate::Class;
use crate::registry::claims::{BY_AGENT, BY_HAND, Claim, Claims};
use crate::registry::facts::State;
use crate::registry::rebuild::{self, Found};
use crate::registry::settings::Settings;
use crate::registry::view::{self, Host};
use crate::registry::{identity, ledger};
use crate::sr::{DRIVERS, Driver};
use crate::sys::run_dir;
use crate::types::{DeviceConfig, LayoutUuid, SrUuid, seconds_now};

/// The backends that there are.
///
/// # Errors
/// [`Error::NoBackend`], [`Error::BadLine`] for settings.
pub fn backends() -> Result<Reply> {
    let settings = Settings::read(size::parse)?;
    Backend::selected(&settings)?;
    Ok(Reply::Backends(backend::all(&settings)))
}

/// Carries one command of `sm devices` out. `args`: of the list, without a command.
///
/// # Errors
/// [`Error::NoBackend`], [`Error::BadLine`] for settings and inventories; [`Error::Damaged`] for claims that cannot be read; those
/// of the command.
pub fn carry_out(args: &ListArgs, command: Option<&DevicesCommand>) -> Result<Reply> {
    let settings = Settings::read(size::parse)?;
    match command {
        None => list(&settings, args),
        Some(DevicesCommand::List(args)) => list(&settings, args),
        Some(DevicesCommand::Why { device }) => why(&settings, device),
        Some(DevicesCommand::Claim { identity, owner }) => claim(&settings, identity, owner),
        Some(DevicesCommand::Release { identity }) => release(&settings, identity),
        Some(DevicesCommand::Rebuild { dry_run }) => rebuild(*dry_run),
    }
}

fn list(settings: &Settings, args: &ListArgs) -> Result<Reply> {
    let backend = Backend::selected(settings)?;
    let class = args.class.as_deref().map(class).transpose()?;
    let columns = match (args.columns.is_empty(), &backend) {
        (true, Backend::Scan | Backend::None) => USUAL.to_vec(),
        (true, _) => OF_INVENTORY.to_vec(),
        (false, _) => args.columns.iter().map(|name| column(name)).collect::<Result<_>>()?,
    };
    let (agent, warning) = agent_or_warning();
    let mut rows = view::rows(&backend, settings, agent.as_ref(), size::parse)?;
    rows.retain(|row| {
        class.is_none_or(|class| row.class == class)
            && args.host.as_ref().is_none_or(|host| row.host == *host)
            && (!args.free || row.state == Some(State::Free))
            && (args.all || row.state != Some(State::MultipathPath))
    });
    Ok(Reply::Devices { backend: backend.name(), rows, columns, warnings: warning.into_iter().collect() })
}

/// The agent of this host, or the warning that it does not answer: what the devices hold can be told without it.
fn agent_or_warning() -> (Option<Agent>, Option<String>) {
    match agent::of_host() {
        Ok(agent) => (agent, None),
        Err(e) => (None, Some(format!("SRs that xapi alone knows of are not shown as owners: {}", one_line(&e)))),
    }
}

fn class(text: &str) -> Result<Class> {
    text.parse().map_err(|expected| Error::Invalid { what: "--class", value: text.to_owned(), expected })
}

fn column(name: &str) -> Result<&'static str> {
    let found = COLUMNS.into_iter().find(|column| *column == name.trim());
    found.ok_or_else(|| Error::Invalid {
        what: "column",
        value: name.to_owned(),
        expected: format!("there are {}", COLUMNS.join(", ")),
    })
}

fn why(settings: &Settings, device: &str) -> Result<Reply> {
    let (agent, warning) = agent_or_warning();
    let host = Host::look(settings)?.with(agent.as_ref());
    let (row, tests) = host.find(device).ok_or_else(|| no_device(device))?;
    Ok(Reply::Why { row: Box::new(row), tests, warnings: warning.into_iter().collect() })
}

fn no_device(device: &str) -> Error {
    let why = "neither a block device of this host that an SR may be made on, nor the identity of one".to_owned();
    Error::NoDevice { device: device.to_owned(), why }
}

/// The identity that a word for a device means: `of_disk`, unless the word is a path that leads to a partition.
fn meant(word: &str, of_disk: String) -> String {
    let of_path = if word.contains('/') { identity::of_path(word.as_ref()) } else { None };
    of_path.unwrap_or(of_disk)
}

fn deadline() -> Instant {
    Instant::now() + DEFAULT_WAIT
}

fn claim(settings: &Settings, word: &str, owner: &OwnerArgs) -> Result<Reply> {
    let host = Host::look(settings)?.with(agent::of_host()?.as_ref());
    let (row, tests) = host.find(word).ok_or_else(|| no_device(word))?;
    let identity = meant(word, row.identity);
    if identity.is_empty() {
        return Err(no_device(word));
    }
    if let Some(known) = host.claims().overlapping(&identity).find(|known| known.layout == BY_AGENT) {
        let holder = format!("it is that of {}; xe sr-forget or sr-destroy ends that", known.owner());
        return Err(Error::DeviceInUse { device: row.dev, holder });
    }
    let used =
        tests.iter().find(|test| matches!(test.fails, Some(State::System | State::MultipathPath | State::Duplicate)));
    if let Some(test) = used {
        return Err(Error::DeviceInUse { device: row.dev, holder: test.found.clone() });
    }
    let class = owner.class.as_deref().map(class).transpose()?;
    let slot = class.zip(owner.index).map(|(class, index)| format!("{class}/{index}"));
    let mut claim = Claim {
        identity: identity.clone(),
        host: row.host,
        dev: row.dev.clone(),
        layout: owner.layout.clone().unwrap_or_else(|| BY_HAND.to_owned()),
        class: class.map(|class| class.word().to_owned()).unwrap_or_default(),
        index: owner.index,
        sr_uuid: None,
        since: seconds_now().unwrap_or_default(),
    };
    ledger::change(deadline(), |claims| {
        // Only of a layout that was applied here it is known which SR the slot has.
        let record = claims.layouts.get(&claim.layout).and_then(|record| record.uuid.parse::<LayoutUuid>().ok());
        if let (Some(layout), Some(slot)) = (record, &slot) {
            claim.sr_uuid = Some(SrUuid::of_slot(layout, slot));
        }
        if let Some(made) = row.slot.filter(|made| Some(made.layout) != record || Some(made.place()) != slot) {
            let of = claims.layout_name(made.layout);
            let holder = format!("it holds an SR that was made for {of} {}; sr_delete deletes the SR", made.place());
            return Err(Error::DeviceInUse { device: row.dev, holder });
        }
        if let Some(known) = claims.overlapping(&identity).find(|known| !known.has_owner_of(&claim)) {
            let holder = format!(
                "it is claimed: {}; {} ends that",
                known.owner(),
                run_dir::sm(&["devices", "release", &known.identity])
            );
            return Err(Error::DeviceInUse { device: row.dev, holder });
        }
        Ok((claims.put(claim), ()))
    })?;
    Ok(Reply::Done)
}

fn release(settings: &Settings, word: &str) -> Result<Reply> {
    let claims = ledger::read()?;
    let identity = match claims.of(word) {
        Some(claim) => claim.identity.clone(),
        None => {
            let (row, _) = Host::look(settings)?.find(word).ok_or_else(|| no_device(word))?;
            meant(word, row.identity)
        }
    };
    if let Some((sr, claim)) = claims.of(&identity).and_then(|claim| Some((claim.sr_uuid?, claim)))
        && exists(sr, claim)?
    {
        let holder = format!("SR {sr} is on it; sr_delete deletes the SR and releases its devices");
        return Err(Error::DeviceInUse { device: claim.dev.clone(), holder });
    }
    ledger::change(deadline(), |claims| Ok((!claims.release(|claim| claim.identity == identity).is_empty(), ())))?;
    Ok(Reply::Done)
}

/// The drivers of SRs on block devices.
fn on_devices() -> impl Iterator<Item = &'static Driver> {
    DRIVERS.iter().copied().filter(|driver| driver.keys().any(|key| key == "device"))
}

/// Whether the SR of a claim is there. An SR that cannot be seen while its device is here counts as there.
///
/// # Errors
/// Those of [`Session::open`].
pub fn exists(sr: SrUuid, claim: &Claim) -> Result<bool> {
    let config = DeviceConfig::from([("device", claim.dev.as_str())]);
    for driver in on_devices() {
        if !claim.class.is_empty() && claim.class != driver.sr_type {
            continue;
        }
        let context = Context { deadline: deadline(), progress: &|_, _| {}, others: None };
        match Session::open(driver, sr, config.clone())?.sr_get_space(&context) {
            Err(Error::NoSr { .. } | Error::NoDevice { .. }) => {}
            _ => return Ok(true),
        }
    }
    Ok(false)
}

fn rebuild(dry_run: bool) -> Result<Reply> {
    let mut found = Vec::new();
    for driver in on_devices() {
        for sr in (driver.discover)()? {
            let devices = sr.config.get("device").unwrap_or_default().to_owned();
            for dev in devices.split(',').filter(|dev| !dev.is_empty()) {
                if let Some(identity) = identity::of_path(dev.as_ref()) {
                    let (dev, class) = (dev.to_owned(), Class::word_of(driver.sr_type).to_owned());
                    found.push(Found { identity, dev, class, sr: sr.sr, slot: sr.slot });
                }
            }
        }
    }
    let present = Host::identities()?;
    let now = seconds_now().unwrap_or_default();
    let (mut reserved, mut installed) = (Vec::new(), BTreeMap::new());
    for name in layout::installed::names()? {
        let Some(layout) = layout::installed::load(&name)? else { continue };
        installed.insert(layout.uuid, name.to_string());
        reserved.extend(layout.claims(now));
    }
    let make = |before: Option<&Claims>| {
        rebuild::rebuilt(before, &found, &present, &reserved, &installed, &view::host_name(), now)
    };
    let lines = match dry_run {
        true => make(ledger::read().ok().as_ref()).1,
        false => ledger::rebuild(deadline(), |before| Ok(make(before.ok().as_ref())))?,
    };
    Ok(Reply::Changes { lines, dry_run })
}
