//! The devices that a backend offers, with state and owner.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::agent::Agent;
use super::backend::Backend;
use super::candidate::{Candidate, Class};
use super::claims::{Claim, Claims};
use super::facts::{self, Around, Facts, Signature, State, Test};
use super::settings::Settings;
use super::sysfs::{self, Uses};
use super::{identity, ledger, signature};
use crate::error::Result;
use crate::sys::blockdev;
use crate::types::SlotMark;

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub class: Class,
    pub host: String,
    pub dev: String,
    /// Bytes; `None` if nobody knows.
    pub size: Option<u64>,
    /// `None` for a medium of another host, or one that is no block device: this host cannot tell.
    pub state: Option<State>,
    /// The owner, in words; empty if there is none.
    pub owner: String,
    pub identity: String,
    pub wwid: String,
    pub serial: String,
    pub model: String,
    pub tag: String,
    /// Bytes of a logical block.
    pub block: Option<u32>,
    pub rotational: Option<bool>,
    /// The slot of a layout that the SR on it was made for, where that was read.
    pub slot: Option<SlotMark>,
}

/// The block devices of this host, judged.
pub struct Host {
    pub name: String,
    facts: Vec<Facts>,
    duplicates: BTreeSet<String>,
    claims: Claims,
    min_size: u64,
}

/// The name of this host.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// The device node of a whole device.
fn node(facts: &Facts) -> PathBuf {
    let mapped = blockdev::dm_name(facts.number).map(|name| Path::new("/dev/mapper").join(name));
    mapped.unwrap_or_else(|| Path::new("/dev").join(facts.name.replace('!', "/")))
}

impl Host {
    /// Looks at every device. Those that pass every other test are read for signatures.
    ///
    /// # Errors
    /// [`Damaged`](crate::Error::Damaged) for claims that cannot be read; [`Io`](crate::Error::Io) for what the kernel does not tell.
    pub fn look(settings: &Settings) -> Result<Host> {
        let claims = ledger::read()?;
        let facts = sysfs::devices(Path::new("/sys"), Path::new("/dev"), &Uses::now()?)?;
        let duplicates = facts::duplicates(&facts);
        let mut host = Host { name: host_name(), facts, duplicates, claims, min_size: settings.min_size };
        let may_be_free: Vec<usize> =
            (0..host.facts.len()).filter(|at| facts::state(&host.tests(&host.facts[*at])) == State::Free).collect();
        let nodes: Vec<PathBuf> = may_be_free.iter().map(|at| node(&host.facts[*at])).collect();
        for (at, found) in may_be_free.into_iter().zip(signature::of_all(&nodes)) {
            host.facts[at].signature = found;
        }
        Ok(host)
    }

    /// The owners that the agent of this host has are seen as claims from now on.
    #[must_use]
    pub fn with(mut self, agent: Option<&Agent>) -> Host {
        agent.into_iter().for_each(|agent| agent.claim(&mut self.claims));
        self
    }

    /// The identities of the devices that are here, those of partitions among them. Claims are not read.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) for what the kernel does not tell.
    pub fn identities() -> Result<Vec<String>> {
        let all = sysfs::devices(Path::new("/sys"), Path::new("/dev"), &Uses::now()?)?;
        let of_one = |facts: Facts| {
            let parts = facts
                .partitions
                .iter()
                .map(|part| identity::of_path(&Path::new("/dev").join(part)))
                .collect::<Vec<_>>();
            std::iter::once(facts.identity).chain(parts)
        };
        Ok(all.into_iter().flat_map(of_one).flatten().collect())
    }

    /// The claim of a disk, or else of a partition of it.
    fn claim(&self, facts: &Facts) -> Option<&Claim> {
        self.claims.overlapping(facts.identity.as_deref()?).next()
    }

    fn tests(&self, facts: &Facts) -> Vec<Test> {
        let around = Around { min_size: self.min_size, duplicates: &self.duplicates, claim: self.claim(facts) };
        facts::tests(facts, &around)
    }

    /// The device that a word names: any path that leads to it or to a partition of it, the kernel's name, or an identity;
    /// with every test of it.
    pub fn find(&self, word: &str) -> Option<(Row, Vec<Test>)> {
        let by_path = if word.contains('/') { PathBuf::from(word) } else { Path::new("/dev").join(word) };
        let number = blockdev::number(&by_path);
        let disk = number.and_then(sysfs::disk_of).and_then(|(dir, _)| blockdev::number_in(&dir));
        let is_it = |facts: &&Facts| Some(facts.number) == disk || facts.identity.as_deref() == Some(word);
        let facts = self.facts.iter().find(is_it)?;
        Some((self.row(facts), self.tests(facts)))
    }

    /// A line for each device, and one for each claimed medium that is not here; in the order of identities.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.facts.iter().map(|facts| self.row(facts)).collect();
        let here: BTreeSet<&str> = self.facts.iter().filter_map(|facts| facts.identity.as_deref()).collect();
        let whole =
            |identity: &str| identity.rsplit_once("-part").map_or(identity.to_owned(), |(disk, _)| disk.to_owned());
        for claim in &self.claims.claims {
            let is_block =
                claim.class.parse::<Class>().is_ok_and(|class| class == Class::Lvm) || claim.class.is_empty();
            if is_block && !here.contains(claim.identity.as_str()) && !here.contains(whole(&claim.identity).as_str()) {
                rows.push(missing(claim));
            }
        }
        sort(&mut rows);
        rows
    }

    fn row(&self, facts: &Facts) -> Row {
        let state = facts::state(&self.tests(facts));
        let (group, slot) = match &facts.signature {
            Signature::Found { group, slot, .. } => (group.clone(), *slot),
            _ => (None, None),
        };
        let of_slot = slot.map(|slot| format!("{} {}", self.claims.layout_name(slot.layout), slot.place()));
        let holders = facts.holders.iter().map(|it| it.shown.as_str()).collect::<Vec<_>>().join(", ");
        let owner = self.claim(facts).map(Claim::owner);
        let owner = owner.or_else(|| facts.used_as.clone()).or_else(|| facts.serves.clone());
        let owner = owner.or_else(|| (!holders.is_empty()).then_some(holders)).or_else(|| facts.not_opened.clone());
        Row {
            class: Class::Lvm,
            host: self.name.clone(),
            dev: node(facts).display().to_string(),
            size: Some(facts.size),
            state: Some(state),
            owner: owner.or(of_slot).or(group).unwrap_or_default(),
            identity: facts.identity.clone().unwrap_or_default(),
            wwid: facts.wwid.clone(),
            serial: facts.serial.clone(),
            model: facts.model.clone(),
            tag: String::new(),
            block: Some(facts.block),
            rotational: Some(facts.rotational),
            slot,
        }
    }

    /// A candidate of an inventory; one of this host with what the host knows of it.
    pub fn of_inventory(&self, candidate: &Candidate) -> Row {
        let text = |key: &str| candidate.get(key).unwrap_or_default().to_owned();
        let is_here = candidate.class == Class::Lvm && candidate.host == self.name;
        let number = if is_here { blockdev::number(Path::new(&candidate.dev)) } else { None };
        let known = number.and_then(|number| self.facts.iter().find(|facts| facts.number == number));
        match known.map(|facts| self.row(facts)) {
            Some(row) => Row { dev: candidate.dev.clone(), tag: text("tag"), ..row },
            None => Row {
                class: candidate.class,
                host: candidate.host.clone(),
                dev: candidate.dev.clone(),
                size: candidate.size,
                state: is_here.then_some(State::Missing),
                owner: self.claims.of(&text("identity")).map(Claim::owner).unwrap_or_default(),
                identity: text("identity"),
                wwid: text("wwid"),
                serial: text("serial"),
                model: text("model"),
                tag: text("tag"),
                block: None,
                rotational: None,
                slot: None,
            },
        }
    }

    /// The claims of the host.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// The devices that a backend offers, a row for each. `agent`: whose SRs are owners, too. `size`: reads a size in bytes.
///
/// # Errors
/// Those of [`Host::look`] and [`Backend::inventory`].
pub fn rows(
    backend: &Backend,
    settings: &Settings,
    agent: Option<&Agent>,
    size: fn(&str) -> Result<u64>,
) -> Result<Vec<Row>> {
    match backend {
        Backend::None => Ok(Vec::new()),
        Backend::Scan => Ok(Host::look(settings)?.with(agent).rows()),
        Backend::File(_) | Backend::Exec { .. } => {
            let candidates = backend.inventory(&host_name(), size)?;
            let host = Host::look(settings)?.with(agent);
            let mut rows: Vec<Row> = candidates.iter().map(|candidate| host.of_inventory(candidate)).collect();
            sort(&mut rows);
            Ok(rows)
        }
    }
}

fn missing(claim: &Claim) -> Row {
    Row {
        class: Class::Lvm,
        host: claim.host.clone(),
        dev: claim.dev.clone(),
        size: None,
        state: Some(State::Missing),
        owner: claim.owner(),
        identity: claim.identity.clone(),
        wwid: String::new(),
        serial: String::new(),
        model: String::new(),
        tag: String::new(),
        block: None,
        rotational: None,
        slot: None,
    }
}

/// By class, host and identity; what has no identity comes last, by name.
fn sort(rows: &mut [Row]) {
    let key = |row: &Row| (row.class, row.host.clone(), row.identity.is_empty(), row.identity.clone(), row.dev.clone());
    rows.sort_by_cached_key(key);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::claims::{self, BY_HAND};
    use crate::registry::facts::tests_of::disk;

    fn host(facts: Vec<Facts>, claimed: &[&str]) -> Host {
        let mut claims = Claims::default();
        for identity in claimed {
            claims.put(claims::tests::claim(identity, BY_HAND));
        }
        let duplicates = facts::duplicates(&facts);
        Host { name: "node1".to_owned(), facts, duplicates, claims, min_size: 0 }
    }

    fn shown(rows: &[Row]) -> Vec<(String, String)> {
        let state = |row: &Row| row.state.as_ref().map(ToString::to_string).unwrap_or_default();
        rows.iter().map(|row| (row.identity.clone(), state(row))).collect()
    }

    #[test]
    fn the_order_is_that_of_identities_whatever_the_kernel_calls_them() {
        let named = |name: &str, identity: &str| Facts { identity: Some(identity.to_owned()), ..disk(name) };
        let one = host(vec![named("sda", "wwid:b"), named("sdb", "wwid:a")], &[]);
        let other = host(vec![named("sda", "wwid:a"), named("sdb", "wwid:b")], &[]);
        assert_eq!(shown(&one.rows()), shown(&other.rows()));
    }

    #[test]
    fn a_claim_makes_a_disk_claimed_and_a_medium_that_is_not_here_missing() {
        let parted = Facts { partitions: vec!["sdb1".to_owned(), "sdb2".to_owned()], ..disk("sdb") };
        let host = host(vec![disk("sda"), parted, disk("sdc")], &["wwid:naa.sda", "wwid:naa.sdb-part2", "wwid:gone"]);
        let rows = host.rows();
        let states: Vec<String> =
            shown(&rows).into_iter().map(|(identity, state)| format!("{identity} {state}")).collect();
        assert_eq!(states, ["wwid:gone missing", "wwid:naa.sda claimed", "wwid:naa.sdb claimed", "wwid:naa.sdc free"]);
        assert!(rows[1].owner.starts_with("SR 87b8646b"), "{rows:?}");
    }

    #[test]
    fn an_inventory_tells_nothing_of_the_media_of_other_hosts() {
        let inventory = "lvm: host=node2 dev=/dev/sdx tag=a\nlvm: host=node1 dev=/nowhere\nnfs: host=filer dev=/e\n";
        let candidates = super::super::candidate::parse(inventory, |_| Ok(0)).unwrap();
        let host = host(vec![disk("sda")], &[]);
        let rows: Vec<Row> = candidates.iter().map(|candidate| host.of_inventory(candidate)).collect();
        let states: Vec<_> = rows.iter().map(|row| (row.dev.as_str(), row.state.clone())).collect();
        assert_eq!(states, [("/dev/sdx", None), ("/nowhere", Some(State::Missing)), ("/e", None)]);
    }
}
