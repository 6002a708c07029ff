//! A group as its devices and the kernel have it, without LVM: a process of LVM takes longer to start, and to look for devices, than a
//! small change takes.
//!
//! The group is told as a report would tell it, or not at all: then LVM has to be asked. It is not told
//!
//! - while an LVM command of this host changes the group: it holds its lock;
//! - if a physical volume is not there, cannot be read, or is smaller than it was; if another device has the label of one, as a copy
//!   that a disk array made, or a path of multipath that is not known as one;
//! - if a checksum is wrong, the devices differ, or a change of another host is on its way;
//! - if a device that is none of the group's has a group of the same name: its copy with other UUIDs, or what it was before it lost
//!   that device;
//! - if the metadata says what [`metadata`] does not understand;
//! - where LVM has a list of its devices (`system.devices`), or settings that are not understood ([`settings`]);
//! - if a device that is none of the group's, as far as device_config says, may let a read wait without end ([`waits`](super::waits)).
//!
//! Devices are read past the page cache, so what another host wrote is seen.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::dm::{self, State};
use super::metadata::{self, Text};
use super::settings::{self, LOCKS};
use super::waits::{Wait, wait_for};
use super::{Unmapped, Vg, hidden};
use crate::sys::pvlabel::Label;
use crate::sys::sysfs::text;
use crate::sys::{blockdev, uncached};

/// All block devices, partitions among them, each a link.
pub(super) const ALL: &str = "/sys/class/block";
/// Devices that have no physical volumes, by the beginnings of their names: those that wait for a medium, memory, and disks that
/// another program shows.
const OTHERS: &[&str] = &["fd", "sr", "ram", "zram", "td", "mtdblock"];
/// How often a group that changes is read.
const TRIES: usize = 3;

/// The group `name`, if one of `devices` is of it, with the segments of its volumes. `None`: LVM has to be asked; also of a group
/// whose segments need not be told.
pub fn group(name: &str, devices: &[PathBuf], unmapped: Unmapped) -> Option<Vg> {
    let Unmapped::Tagged(tags) = unmapped else { return None };
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let unseen = settings::unseen()?;
    let _lock = Quiet::of(name)?;
    let found = Devices::now(devices, unseen).ok()?;
    let vg = (0..TRIES).find_map(|_| found.group(name, devices))?;
    (!vg.tags.iter().any(|tag| tags.contains(&tag.as_str()))).then_some(vg)
}

/// Keeps LVM commands of this host from changing a group, as a report does.
struct Quiet(#[expect(dead_code, reason = "it is unlocked when it is dropped")] Option<Flock<File>>);

impl Quiet {
    /// `None`: one is changing it.
    fn of(name: &str) -> Option<Quiet> {
        // The file of a group is `V_` and its name.
        let path = Path::new(LOCKS).join(format!("V_{name}"));
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Quiet(None)),
            opened => opened.ok()?,
        };
        let lock = Flock::lock(file, FlockArg::LockSharedNonblock).ok()?;
        let ours = lock.metadata().ok()?;
        match fs::metadata(&path) {
            // Who had the lock has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Quiet(None)),
            found => {
                let found = found.ok()?;
                ((found.dev(), found.ino()) == (ours.dev(), ours.ino())).then_some(Quiet(Some(lock)))
            }
        }
    }
}

/// A device with a label.
struct Labelled {
    node: PathBuf,
    number: u64,
    /// Bytes.
    size: u64,
    file: File,
    label: Label,
}

/// What this host has of LVM.
struct Devices {
    labelled: Vec<Labelled>,
    /// The UUIDs of volumes that are active, as device-mapper has them.
    active: Vec<String>,
}

impl Devices {
    /// `own`: the devices of which it is no matter how long a read of them takes. `unseen`: numbers of those that LVM does not look at.
    fn now(own: &[PathBuf], unseen: Vec<u64>) -> io::Result<Devices> {
        let numbers =
            |devices: &[PathBuf]| -> Vec<u64> { devices.iter().filter_map(|it| blockdev::number(it)).collect() };
        let mut hidden = unseen;
        hidden.extend(numbers(&hidden::devices().map_err(io::Error::other)?));
        let own = numbers(own);
        let mut found = Devices { labelled: Vec::new(), active: Vec::new() };
        for entry in fs::read_dir(ALL)? {
            let (dir, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            let Some(name) = name.to_str().filter(|name| !OTHERS.iter().any(|other| name.starts_with(other))) else {
                continue;
            };
            let mut node = Path::new("/dev").join(name.replace('!', "/"));
            if name.starts_with("dm-") {
                let uuid = text(&dir, "dm/uuid");
                if uuid.starts_with(dm::LVM) {
                    found.active.push(uuid);
                    continue;
                }
                node = Path::new("/dev/mapper").join(text(&dir, "dm/name"));
            }
            let size = text(&dir, "size").parse::<u64>().unwrap_or(0).saturating_mul(512);
            if size < Label::BYTES as u64 || is_path(&dir) {
                continue;
            }
            let Some(number) = blockdev::number(&node).filter(|number| !hidden.contains(number)) else { continue };
            match wait_for(name) {
                Wait::Now => continue,
                Wait::Unbounded if !own.contains(&number) => return Err(io::ErrorKind::WouldBlock.into()),
                Wait::Unbounded | Wait::Bounded => {}
            }
            // Whoever cannot read a device finds no label there; so does LVM.
            found.labelled.extend(read(node, number, size));
        }
        Ok(found)
    }

    fn group(&self, name: &str, devices: &[PathBuf]) -> Option<Vg> {
        let is_given =
            |labelled: &&Labelled| devices.iter().any(|device| blockdev::number(device) == Some(labelled.number));
        let first = self.labelled.iter().find(is_given)?;
        let named = first.label.named(&first.read()).ok()??;
        let words = first.label.text(named, &first.read()).ok()??;
        let read = metadata::parse(&words, |uuid, size| {
            let mut same = self.labelled.iter().filter(|labelled| labelled.label.uuid == uuid);
            let pv = same.next().filter(|pv| same.next().is_none() && pv.size >= size)?;
            let theirs = pv.label.named(&pv.read()).ok()??;
            ((theirs.size, theirs.checksum) == (named.size, named.checksum)).then(|| pv.node.clone())
        })?;
        let is_of_it = |labelled: &Labelled| read.vg.pvs.iter().any(|pv| pv.uuid == labelled.label.uuid);
        let is_single = !self.labelled.iter().filter(|other| !is_of_it(other)).any(|other| other.is_of(name));
        (read.vg.name == name && is_of_it(first) && is_single).then(|| self.with_states(read)).flatten()
    }

    /// The volumes as the kernel has them.
    fn with_states(&self, read: Text) -> Option<Vg> {
        let Text { mut vg, id, ids } = read;
        let group = format!("{}{id}", dm::LVM);
        let places: HashMap<&str, usize> = ids.iter().enumerate().map(|(n, id)| (id.as_str(), n)).collect();
        for uuid in self.active.iter().filter(|uuid| uuid.starts_with(&group)) {
            let id = &uuid[group.len()..];
            let Some(lv) = places.get(id).map(|n| &mut vg.lvs[*n]) else {
                // A volume that is no more; or a part of one, which linear volumes do not have.
                if ids.iter().any(|known| id.starts_with(known.as_str())) {
                    return None;
                }
                continue;
            };
            match dm::state(uuid).ok()? {
                State::None => {}
                State::Stuck => return None,
                State::Active { open } => (lv.active, lv.open) = (true, open),
            }
        }
        Some(vg)
    }
}

impl Labelled {
    /// Whether a group of this name is on it, as far as that can be told.
    fn is_of(&self, name: &str) -> bool {
        let read: &dyn Fn(&mut [u8], u64) -> io::Result<()> = &self.read();
        let named = self.label.named(read).ok().flatten();
        named.and_then(|named| self.label.group(named, read).ok()?).is_some_and(|found| found == name)
    }

    fn read(&self) -> impl Fn(&mut [u8], u64) -> io::Result<()> + '_ {
        |bytes: &mut [u8], from| uncached::read(&self.file, bytes, from)
    }
}

/// A device with its label, unless it has none.
fn read(node: PathBuf, number: u64, size: u64) -> Option<Labelled> {
    let file = uncached::open(&node, false).ok()?;
    let mut first = [0; Label::BYTES];
    uncached::read(&file, &mut first, 0).ok()?;
    Some(Labelled { label: Label::of(&first)?, node, number, size, file })
}

/// Whether a device is a path of multipath.
fn is_path(dir: &Path) -> bool {
    let holders = fs::read_dir(dir.join("holders")).into_iter().flatten().flatten();
    holders.into_iter().any(|holder| text(&holder.path(), "dm/uuid").starts_with("mpath-"))
}
