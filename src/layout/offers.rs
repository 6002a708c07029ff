//! The media that this host has for the slots of a layout.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use regex_lite::Regex;

use super::matching::{self, Offer, Reading, Standing};
use super::model::Model;
use super::{Layout, LayoutName, Slot, SlotId, agent, config, plan};
use crate::context::DEFAULT_WAIT;
use crate::error::{Error, Result};
use crate::registry::agent::Agent;
use crate::registry::backend::Backend;
use crate::registry::candidate::{Candidate, Class};
use crate::registry::claims::{BY_AGENT, Claim};
use crate::registry::facts::State;
use crate::registry::view::{Host, Row};
use crate::sys::blockdev;
use crate::types::{DeviceConfig, LayoutUuid, SlotMark};

/// Directories of names that stay the same from one start to the next, the best first.
const STABLE: [&str; 3] = ["/dev/disk/by-id", "/dev/mapper", "/dev/disk/by-path"];

/// A look at the media of this host, for a layout.
pub struct Media<'a> {
    pub host: &'a Host,
    pub backend: &'a Backend,
    pub name: &'a LayoutName,
    pub uuid: LayoutUuid,
    pub installed: Option<&'a Layout>,
    /// The database that owns the SRs of this host, if there is one; then `installed` is what it has of the layout.
    pub agent: Option<&'a Agent>,
}

/// How the lines of a class are read with a backend: `scan` sees block devices alone, `none` has no inventory.
pub fn reading(backend: &Backend, class: Class) -> Reading {
    match (backend, class) {
        (Backend::File(_) | Backend::Exec { .. }, _) | (Backend::Scan, Class::Lvm) => Reading::Patterns,
        (Backend::None, Class::Lvm) => Reading::Literal,
        (Backend::Scan | Backend::None, Class::File | Class::Nfs) => Reading::Unseen,
    }
}

/// The media that may change a plan.
pub struct Watched {
    patterns: Vec<Regex>,
    /// The identities of those that layouts have.
    identities: BTreeSet<String>,
}

impl Watched {
    /// `patterns`: of paths of devices. A text that is no pattern watches nothing.
    pub fn of<'l>(patterns: Vec<String>, layouts: impl IntoIterator<Item = &'l Layout>) -> Watched {
        let media = layouts.into_iter().flat_map(|layout| &layout.slots).flat_map(|slot| &slot.media);
        Watched {
            patterns: patterns.iter().filter_map(|text| matching::pattern(text).ok()).collect(),
            identities: media.map(|medium| medium.identity.clone()).collect(),
        }
    }

    fn has(&self, row: &Row, links: &Links) -> bool {
        let number = blockdev::number(Path::new(&row.dev));
        let names = number.and_then(|number| links.get(&number)).into_iter().flatten();
        let mut names = names.chain([&row.dev]);
        self.identities.contains(&row.identity)
            || names.any(|name| self.patterns.iter().any(|pattern| pattern.is_match(name)))
    }
}

/// [`plan::digest`] of the media that may change a plan, and of their states. Names that the kernel gives do not count, nor does any
/// other device of the host that comes or goes.
pub fn digest(host: &Host, watched: &Watched) -> String {
    let links = links();
    let one = |row: Row| {
        let name = if row.identity.is_empty() { row.dev } else { row.identity };
        let state = row.state.map(|state| state.to_string()).unwrap_or_default();
        format!("{name} {} {state}\n", row.size.unwrap_or_default())
    };
    let rows = host.rows().into_iter().filter(|row| watched.has(row, &links));
    plan::digest(&rows.map(one).collect::<String>())
}

impl Media<'_> {
    /// The media that the backend offers. `size`: reads a size in bytes.
    ///
    /// # Errors
    /// Those of [`Backend::inventory`].
    pub fn offers(&self, model: &Model, size: fn(&str) -> Result<u64>) -> Result<Vec<Offer>> {
        let links = links();
        match self.backend {
            Backend::Scan | Backend::None => {
                let rows = self.host.rows().into_iter().filter(|row| !row.identity.is_empty());
                Ok(rows.map(|row| self.scanned(row, &links)).collect())
            }
            Backend::File(_) | Backend::Exec { .. } => {
                let candidates = self.backend.inventory(&self.host.name, size)?;
                candidates.into_iter().map(|candidate| self.listed(candidate, model, &links)).collect()
            }
        }
    }

    fn scanned(&self, row: Row, links: &Links) -> Offer {
        let pairs = [("wwid", &row.wwid), ("serial", &row.serial), ("model", &row.model)];
        let rest = pairs.iter().filter(|(_, value)| !value.is_empty());
        let rest = rest.map(|(key, value)| ((*key).to_owned(), (*value).clone())).collect();
        let candidate =
            Candidate { class: row.class, host: row.host.clone(), dev: row.dev.clone(), size: row.size, rest };
        self.offer(candidate, &row, links)
    }

    /// A medium of an inventory.
    fn listed(&self, candidate: Candidate, model: &Model, links: &Links) -> Result<Offer> {
        let mut row = self.host.of_inventory(&candidate);
        match candidate.class {
            Class::Lvm if row.identity.is_empty() => {
                row.identity = format!("path:{}:{}", candidate.host, candidate.dev)
            }
            Class::Lvm => {}
            Class::File => row.identity = matching::of_directory(&candidate.dev),
            Class::Nfs => {
                let address = model.addresses.iter().find(|(_, it)| it.host == candidate.host);
                let address = address.map_or(&candidate.host, |(_, it)| &it.address);
                row.identity = matching::of_export(address, &candidate.dev);
            }
        }
        let candidate = Candidate { size: row.size, ..candidate };
        let mut offer = self.offer(candidate, &row, links);
        if offer.candidate.class != Class::Lvm {
            offer.standing = self.unseen(&offer)?;
        }
        Ok(offer)
    }

    fn offer(&self, mut candidate: Candidate, row: &Row, links: &Links) -> Offer {
        let mut names = vec![candidate.dev.clone()];
        if let Some(number) = blockdev::number(Path::new(&candidate.dev)) {
            names.extend(links.get(&number).into_iter().flatten().filter(|name| **name != candidate.dev).cloned());
        }
        // What is not here is known by the name and the size that it had.
        let installed = self.installed.into_iter().flat_map(|it| &it.slots).flat_map(|slot| &slot.media);
        if let (Some(State::Missing), Some(medium)) =
            (&row.state, installed.into_iter().find(|it| it.identity == row.identity))
        {
            names.insert(0, medium.dev.clone());
            candidate.size = candidate.size.or(medium.size);
        }
        Offer { names, identity: row.identity.clone(), standing: self.standing(row), candidate }
    }

    fn standing(&self, row: &Row) -> Standing {
        if let Some(claim) = self.host.claims().of(&row.identity) {
            return self.claimed(claim);
        }
        match (&row.state, row.slot) {
            (Some(State::Free), _) => Standing::Free,
            (Some(State::Adoptable), Some(mark)) => self.marked(mark),
            (Some(state), _) if row.owner.is_empty() => Standing::Taken(state.to_string()),
            (Some(state), _) => Standing::Taken(format!("{state} ({})", row.owner)),
            // Of another host: only that host knows.
            (None, _) => Standing::Free,
        }
    }

    fn claimed(&self, claim: &Claim) -> Standing {
        let slot = claim.class.parse().ok().zip(claim.index).map(|(class, index)| SlotId { class, index });
        match slot {
            Some(id) if claim.layout == self.name.as_str() => Standing::Ours(id),
            _ if claim.layout == BY_AGENT && self.of_agent(&claim.identity).is_some() => {
                self.of_agent(&claim.identity).map_or(Standing::Free, Standing::Ours)
            }
            _ => Standing::Taken(format!("claimed ({})", claim.owner())),
        }
    }

    /// The slot of this layout that the agent has on a medium.
    fn of_agent(&self, identity: &str) -> Option<SlotId> {
        self.agent?;
        let has = |slot: &&Slot| slot.media.iter().any(|medium| medium.identity == identity);
        self.installed?.slots.iter().find(has).map(|slot| slot.id)
    }

    fn marked(&self, mark: SlotMark) -> Standing {
        match mark.layout == self.uuid {
            true => Standing::Adoptable(SlotId { class: mark.class, index: mark.index }),
            false => Standing::Taken(format!(
                "made for {} of another layout (a model with the line `uuid: {}` takes it over)",
                mark.place(),
                mark.layout
            )),
        }
    }

    /// The standing of a directory or an export, which no scan sees: what is claimed is not looked at, anything else is asked for
    /// the SRs that it holds.
    ///
    /// # Errors
    /// What the driver says of it.
    pub fn unseen(&self, offer: &Offer) -> Result<Standing> {
        if let Some(id) = self.of_agent(&offer.identity) {
            return Ok(Standing::Ours(id));
        }
        let is_directory = offer.candidate.class == Class::File && offer.candidate.host == self.host.name;
        let owner = self.agent.filter(|_| is_directory);
        if let Some(kept) = owner.and_then(|agent| agent::owner_of_directory(agent, &offer.candidate.dev)) {
            return Ok(Standing::Taken(format!("in use: xapi has SR {} there, {:?}", kept.sr, kept.name)));
        }
        if let Some(claim) = self.host.claims().of(&offer.identity) {
            return Ok(self.claimed(claim));
        }
        let Candidate { class, host, dev, .. } = &offer.candidate;
        if *class != Class::Nfs && *host != self.host.name {
            return Ok(Standing::Free);
        }
        let address = offer.identity.strip_prefix("nfs:").and_then(|it| it.strip_suffix(&format!(":{dev}")));
        let config = match class {
            Class::Nfs => DeviceConfig::from([("server", address.unwrap_or(host)), ("serverpath", dev.as_str())]),
            Class::File | Class::Lvm => DeviceConfig::from([("location", dev.as_str())]),
        };
        let found = match (config::driver(*class).probe)(&config, (Instant::now() + DEFAULT_WAIT).into()) {
            // It will be made.
            Err(Error::NoDevice { .. }) if *class == Class::File => return Ok(Standing::Free),
            other => other?,
        };
        let marks = found.iter().filter(|sr| *class == Class::Nfs || sr.location == *dev).filter_map(|sr| sr.slot);
        if let Some(mark) = marks.filter(|mark| mark.class == *class).find(|mark| mark.layout == self.uuid) {
            return Ok(self.marked(mark));
        }
        // An export has room for any number of SRs, a directory for one.
        let held = found.iter().find(|sr| *class == Class::File && sr.location == *dev);
        Ok(held.map_or(Standing::Free, |sr| Standing::Taken(format!("in use: it holds SR {}", sr.uuid))))
    }
}

/// The stable names of devices, by their numbers.
type Links = BTreeMap<u64, Vec<String>>;

fn links() -> Links {
    let mut found = Links::new();
    for dir in STABLE {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut paths: Vec<String> =
            entries.filter_map(|entry| entry.path().into_os_string().into_string().ok()).collect();
        paths.sort();
        for path in paths {
            if let Some(number) = blockdev::number(Path::new(&path)) {
                found.entry(number).or_default().push(path);
            }
        }
    }
    found
}
