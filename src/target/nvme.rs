//! Disks for other hosts by NVMe over TCP.
//!
//! A disk is a subsystem with one namespace. It is made in this order: subsystem, its serial, namespace with its UUID and device,
//! `enable`, hosts, links of the hosts; then ports, and at last the links of the subsystem there. A kill between any two leaves
//! objects that nobody can reach. A host tells disks by the UUID of the namespace, which is that of the VDI.
//!
//! A port of the kernel is an address at which it listens, for any number of subsystems. Publications share one; the ports of this
//! product have numbers from [`OUR_PORTS`], and are changed under one lock.

use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;

use super::fabric::{Facts, Kind, Network, Parts, Shown};
use super::name::{Name, Portal, iqn_of};
use super::record::{self, Fabric, Initiator, Record};
use super::settings::{Place, Sort};
use crate::error::{Error, Result};
use crate::sys::configfs::{entries, get, link, make, remove, remove_if_empty, set, unlink_all};
use crate::sys::lock::{self, Kind as LockKind};
use crate::sys::nvmet::{self, ROOT};
use crate::sys::{blockdev, sockets};
use crate::types::{Misread, VdiUuid};

pub struct NvmeTcp;

static FACTS: Facts = Facts {
    help: "Other hosts, as an NVMe disk by TCP",
    network: Some(Network { consumer: "host", port: 4420, has_secrets: false, tells_sessions: false }),
    writable_only: Some("the kernel's NVMe target opens every disk for writing; the fabric iscsi has readers"),
};

/// The numbers of ports that this product makes.
const OUR_PORTS: Range<u32> = 30_000..40_000;
/// The lock under which ports are made and removed.
const PORTS: &str = "ports-of-nvme";
const NAMESPACE: &str = "namespaces/1";

impl Kind for NvmeTcp {
    fn facts(&self) -> &'static Facts {
        &FACTS
    }

    fn consumer_name(&self, text: &str) -> Result<Name, Misread> {
        Name::nvme(text)
    }

    /// As the name of iSCSI, with the first letters of NVMe: the NVM Express Base Specification 2.0, 4.5, has the same format.
    fn target_name(&self, prefix: &str, vdi: VdiUuid) -> Result<String> {
        let name = iqn_of(prefix, vdi)?.to_string();
        Ok(name.strip_prefix("iqn.").map_or_else(|| name.clone(), |rest| format!("nqn.{rest}")))
    }

    fn prepare(&self) -> Result<()> {
        nvmet::prepare()
    }

    fn number(&self, _record: &Record) -> Result<u32> {
        // A subsystem has a name alone.
        Ok(0)
    }

    fn has_foreign(&self, consumer: &Name) -> Result<bool> {
        let is_ours = |record: &Record| {
            let mut hosts = record.initiators.iter().chain(&record.leaving);
            record.fabric == Fabric::NvmeTcp && hosts.any(|it| it.name == *consumer && !it.foreign)
        };
        let by_us = record::all()?.into_iter().filter_map(|(_, read)| read.ok()).any(|record| is_ours(&record));
        Ok(!by_us && nvmet::host(consumer.as_str()).is_dir())
    }

    fn publish(&self, record: &mut Record, parts: &Parts) -> Result<Option<PathBuf>> {
        let subsystem = make_subsystem(record, parts.device)?;
        with_ports(record, parts.deadline, || {
            allow(record, &subsystem)?;
            record.portals.iter().try_for_each(|portal| enter(&port_at(*portal)?, &subsystem, &record.target))
        })?;
        Ok(None)
    }

    fn settings(&self, record: &Record, sort: Sort) -> Result<Option<Place>> {
        let place = || Place {
            dir: nvmet::subsystem(&record.target),
            prefix: "attr_",
            ours: &["allow_any_host", "serial", "version"],
        };
        Ok((sort == Sort::Attribute).then(place))
    }

    fn look(&self, record: &Record) -> Shown {
        let subsystem = nvmet::subsystem(&record.target);
        let namespace = subsystem.join(NAMESPACE);
        let shows =
            get(&namespace.join("enable")) == "1" && get(&namespace.join("device_uuid")) == record.vdi.to_string();
        let is_open = |portal: &Portal| {
            existing_port(*portal).ok().flatten().is_some_and(|port| has_subsystem(&port, &record.target))
        };
        let is_published = shows
            && record.initiators.iter().all(|it| allowed(&subsystem, &it.name).is_symlink())
            && record.portals.iter().all(is_open);
        Shown { is_published, device: None, sessions: Vec::new() }
    }

    /// The kernel does not tell which hosts use a subsystem. A subsystem that no host ever used has no consumer, nor has one
    /// at whose ports nobody is connected.
    fn consumer(&self, record: &Record, _only: Option<&Name>) -> Option<String> {
        let mut peers: Vec<IpAddr> =
            record.portals.iter().flat_map(|portal| sockets::peers(portal.address())).collect();
        peers.sort_unstable();
        peers.dedup();
        if peers.is_empty() || !nvmet::may_have_been_used(&nvmet::subsystem(&record.target)) {
            return None;
        }
        let texts = |list: &[String]| list.join(", ");
        let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
        let portals: Vec<String> = record.portals.iter().map(ToString::to_string).collect();
        let mut ports = record.portals.iter().filter_map(|portal| existing_port(*portal).ok()?);
        let doubt = match ports.any(|port| subsystems_of(&port).len() > 1) {
            true => " (the kernel does not tell to which of the disks there)",
            false => "",
        };
        Some(format!("a host at {} that is connected to {}{doubt}", texts(&peers), texts(&portals)))
    }

    fn tell_size(&self, record: &Record) -> Result<()> {
        match set(&nvmet::subsystem(&record.target).join(NAMESPACE).join("revalidate_size"), "1") {
            // Kernels before 5.8 have no such file, and look at the size when a host asks.
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => Ok(()),
            other => other,
        }
    }

    fn remove(&self, record: &Record, deadline: Instant) -> Result<()> {
        let subsystem = nvmet::subsystem(&record.target);
        if !subsystem.is_dir() {
            return with_ports(record, deadline, || {
                forget_hosts(record.initiators.iter().chain(&record.leaving))?;
                remove_unused_ports()
            });
        }
        if !is_ours(&subsystem, record.vdi) {
            return Ok(());
        }
        // No reader gets another disk: the namespace goes first, then the connections.
        let namespace = subsystem.join(NAMESPACE);
        if get(&namespace.join("enable")) == "1" {
            set(&namespace.join("enable"), "0")?;
        }
        with_ports(record, deadline, || {
            leave_ports(&record.target)?;
            remove_unused_ports()?;
            unlink_all(&subsystem.join("allowed_hosts"))?;
            forget_hosts(record.initiators.iter().chain(&record.leaving))
        })?;
        remove(&namespace)?;
        remove(&subsystem)
    }
}

/// Every subsystem that shows a VDI and was made by this product.
///
/// # Errors
/// [`Error::Io`].
pub fn objects_of_ours() -> Result<Vec<(VdiUuid, String)>> {
    let one = |subsystem: &PathBuf| {
        let name = subsystem.file_name()?.to_str()?;
        let vdi: VdiUuid = name.rsplit_once(':')?.1.parse().ok()?;
        (get(&subsystem.join("attr_serial")) == serial_of(vdi)).then(|| (vdi, format!("subsystems/{name}")))
    };
    Ok(nvmet::subsystems()?.iter().filter_map(one).collect())
}

/// The subsystem of a VDI that this product made, and the number of the block device that it shows.
///
/// # Errors
/// [`crate::error::Error::Io`].
pub fn own_subsystem(vdi: VdiUuid) -> Result<Option<(PathBuf, Option<u64>)>> {
    let shown = objects_of_ours()?.into_iter().find(|(of, _)| *of == vdi);
    let subsystem = shown.and_then(|(_, shown)| Some(nvmet::subsystem(shown.strip_prefix("subsystems/")?)));
    Ok(subsystem.map(|subsystem| (subsystem.clone(), nvmet::device_of(&subsystem.join(NAMESPACE)))))
}

/// The serial of a subsystem: 16 hexadecimal digits, as the kernels before 5.14 take nothing else. A random one, such as the
/// kernel gives to the subsystems of others, is different.
fn serial_of(vdi: VdiUuid) -> String {
    vdi.to_string().chars().filter(char::is_ascii_hexdigit).take(16).collect()
}

/// Whether this product made a subsystem of a name of ours. A killed call may have made its directory alone.
fn is_ours(subsystem: &Path, vdi: VdiUuid) -> bool {
    let is_bare = || {
        [subsystem.join("namespaces"), subsystem.join("allowed_hosts")]
            .iter()
            .all(|dir| entries(dir).is_ok_and(|found| found.is_empty()))
    };
    get(&subsystem.join("attr_serial")) == serial_of(vdi) || is_bare()
}

fn make_subsystem(record: &Record, device: &Path) -> Result<PathBuf> {
    let subsystem = nvmet::subsystem(&record.target);
    let foreign =
        |why: &str| Err(Error::ForeignTarget { object: format!("subsystems/{}", record.target), why: why.to_owned() });
    if !make(&subsystem)? && !is_ours(&subsystem, record.vdi) {
        return foreign("another program made it");
    }
    if get(&subsystem.join("attr_serial")) != serial_of(record.vdi) {
        set(&subsystem.join("attr_serial"), &serial_of(record.vdi))?;
    }
    set(&subsystem.join("attr_allow_any_host"), "0")?;
    let namespace = subsystem.join(NAMESPACE);
    make(&namespace)?;
    if get(&namespace.join("enable")) == "1" {
        if nvmet::device_of(&namespace) != blockdev::number(device) {
            return foreign("it shows another device than the VDI's; sm target unpublish --force removes it");
        }
        return Ok(subsystem);
    }
    let (path, uuid) = (device.display().to_string(), record.vdi.to_string());
    for (name, value) in [("device_path", &path), ("device_uuid", &uuid), ("device_nguid", &uuid)] {
        set(&namespace.join(name), value)?;
    }
    set(&namespace.join("enable"), "1")?;
    Ok(subsystem)
}

fn allowed(subsystem: &Path, host: &Name) -> PathBuf {
    subsystem.join("allowed_hosts").join(host.as_str())
}

/// Allows the hosts of the record, and no others. A host that loses the disk loses its connection; as the kernel ends those of a
/// subsystem together, the others connect again.
fn allow(record: &Record, subsystem: &Path) -> Result<()> {
    let before = entries(&subsystem.join("allowed_hosts"))?;
    let gone = before.iter().filter(|path| record.initiators.iter().all(|it| !path.ends_with(it.name.as_str())));
    let gone: Vec<&PathBuf> = gone.collect();
    for link in &gone {
        std::fs::remove_file(link).map_err(Error::io("remove", link))?;
    }
    if !gone.is_empty() {
        leave_ports(&record.target)?;
    }
    for host in &record.initiators {
        let object = nvmet::host(host.name.as_str());
        make(&object)?;
        link(&object, &allowed(subsystem, &host.name))?;
    }
    forget_hosts(record.leaving.iter())
}

/// Removes the hosts that are allowed nowhere any more, and were made by this product.
///
/// # Errors
/// [`Error::Io`].
fn forget_hosts<'a>(hosts: impl Iterator<Item = &'a Initiator>) -> Result<()> {
    hosts.filter(|it| !it.foreign).try_for_each(|it| remove_if_empty(&nvmet::host(it.name.as_str())))
}

/// Changes ports and hosts, which publications share.
fn with_ports(record: &Record, deadline: Instant, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let lock = lock::take("targets", PORTS, LockKind::Exclusive, deadline).map_err(|refused| {
        refused.or_timed_out(|holder| {
            record.in_use(format!("{holder}, which works on another publication by NVMe; repeat the call"))
        })
    })?;
    let changed = change();
    lock::forget("targets", PORTS);
    drop(lock);
    changed
}

fn number_of(port: &Path) -> Option<u32> {
    port.file_name()?.to_str()?.parse().ok()
}

fn is_our_port(port: &Path) -> bool {
    number_of(port).is_some_and(|number| OUR_PORTS.contains(&number))
}

/// The port that listens at an address, whoever made it.
fn existing_port(portal: Portal) -> Result<Option<PathBuf>> {
    let address = portal.address();
    let is_there = |port: &PathBuf| {
        get(&port.join("addr_trtype")) == "tcp"
            && get(&port.join("addr_trsvcid")) == address.port().to_string()
            && get(&port.join("addr_traddr")).parse() == Ok(address.ip())
    };
    Ok(nvmet::ports()?.into_iter().find(is_there))
}

/// Finds the port of an address, or makes it. The caller has the lock.
fn port_at(portal: Portal) -> Result<PathBuf> {
    if let Some(port) = existing_port(portal)? {
        if is_our_port(&port) {
            return Ok(port);
        }
        let object = format!("ports/{}", number_of(&port).unwrap_or_default());
        let why = format!("it listens at {portal}; --portal with another port goes beside it");
        return Err(Error::ForeignTarget { object, why });
    }
    remove_unused_ports()?;
    let address = portal.address();
    for number in OUR_PORTS {
        let port = Path::new(ROOT).join("ports").join(number.to_string());
        if !make(&port)? {
            continue;
        }
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        let (ip, service) = (address.ip().to_string(), address.port().to_string());
        for (name, value) in [("trtype", "tcp"), ("adrfam", family), ("traddr", &ip), ("trsvcid", &service)] {
            set(&port.join(format!("addr_{name}")), value)?;
        }
        return Ok(port);
    }
    Err(Error::NoTarget { why: format!("all {} numbers of ports are taken", OUR_PORTS.len()) })
}

fn has_subsystem(port: &Path, name: &str) -> bool {
    port.join("subsystems").join(name).is_symlink()
}

fn subsystems_of(port: &Path) -> Vec<PathBuf> {
    entries(&port.join("subsystems")).unwrap_or_default()
}

/// Opens a port to a subsystem.
fn enter(port: &Path, subsystem: &Path, name: &str) -> Result<()> {
    link(subsystem, &port.join("subsystems").join(name)).map(drop).map_err(|error| match error.errno() {
        Some(errno) if errno == Errno::EADDRINUSE as i32 => Error::Invalid {
            what: "portal",
            value: format!("{}:{}", get(&port.join("addr_traddr")), get(&port.join("addr_trsvcid"))),
            expected: "another program listens there".to_owned(),
        },
        _ => error,
    })
}

/// Takes a subsystem from all ports: its connections end.
fn leave_ports(name: &str) -> Result<()> {
    for port in nvmet::ports()?.iter().filter(|port| has_subsystem(port, name)) {
        let link = port.join("subsystems").join(name);
        std::fs::remove_file(&link).map_err(Error::io("remove", &link))?;
    }
    Ok(())
}

/// Removes the ports of this product that no subsystem uses.
fn remove_unused_ports() -> Result<()> {
    let ports = nvmet::ports()?;
    ports.iter().filter(|port| is_our_port(port) && subsystems_of(port).is_empty()).try_for_each(|port| remove(port))
}
