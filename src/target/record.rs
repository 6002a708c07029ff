//! What is meant to be published: one record a VDI in `/var/lib/sm/targets`, of root alone.
//!
//! The kernel says what is published now, and forgets it in a reboot. A record is written before the first change of the kernel
//! and removed after the last, so a killed call leaves a record whose `stage` says in which direction to go on.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::name::{Name, Portal};
use super::physical::Physical;
use super::source::Source;
use crate::error::{Error, Result};
use crate::sys::chap::Chap;
use crate::sys::durable::{self, Dir};
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::run_dir;
use crate::types::{SrUuid, VdiUuid};

const VERSION: u32 = 1;
/// The version of a record of a device. A release that knows version 1 alone refuses it: it would take the device for a VDI.
const WITH_DEVICE: u32 = 2;

/// The way by which a consumer reaches a disk: [`super::fabric`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fabric {
    Iscsi,
    Loopback,
    NvmeTcp,
}

impl Fabric {
    pub const ALL: [Fabric; 3] = [Fabric::Iscsi, Fabric::Loopback, Fabric::NvmeTcp];

    pub fn word(self) -> &'static str {
        match self {
            Fabric::Iscsi => "iscsi",
            Fabric::Loopback => "loopback",
            Fabric::NvmeTcp => "nvme-tcp",
        }
    }
}

/// How far a publication is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Begun, and to be completed.
    Creating,
    Published,
    /// Its removal has begun, and is to be completed.
    Removing,
}

/// An initiator that may use a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Initiator {
    pub name: Name,
    pub read_only: bool,
    /// The kernel has an object for the initiator that another program made. The object stays when the publication ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign: bool,
}

/// A publication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The SR of the VDI; none for a device that is passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sr: Option<SrUuid>,
    /// The VDI, or the UUID that is made of the identity of the device.
    pub vdi: VdiUuid,
    /// The device that is passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical: Option<Physical>,
    pub fabric: Fabric,
    pub stage: Stage,
    /// The disk is attached read-only.
    pub read_only: bool,
    /// Several initiators may write.
    pub shared: bool,
    /// Initiators prove by CHAP who they are.
    pub authenticated: bool,
    /// The IQN or NQN of the target, or the NAA of the loopback fabric: it stays, whatever the host is called later.
    pub target: String,
    /// Number of the backstore in the kernel, chosen before it is made: so it is found again after a kill.
    pub backstore: u32,
    pub portals: Vec<Portal>,
    /// None for the loopback fabric.
    pub initiators: Vec<Initiator>,
    /// Initiators that lose the disk; the kernel may still have their objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<Initiator>,
    /// Attributes of the disk that were changed: [`super::settings`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// Parameters of the target that were changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// Seconds since 1970.
    pub created: u64,
}

impl Record {
    /// A publication that is begun, without initiators.
    pub fn new(source: &Source, fabric: Fabric, target: String, created: u64) -> Record {
        let physical = match source {
            Source::Vdi(..) => None,
            Source::Device(device) => Some((*device).clone()),
        };
        Record {
            version: if physical.is_some() { WITH_DEVICE } else { VERSION },
            sr: source.sr(),
            vdi: source.id(),
            physical,
            fabric,
            stage: Stage::Creating,
            read_only: false,
            shared: false,
            authenticated: false,
            target,
            backstore: 0,
            portals: Vec::new(),
            initiators: Vec::new(),
            leaving: Vec::new(),
            attributes: BTreeMap::new(),
            parameters: BTreeMap::new(),
            created,
        }
    }
}

impl Record {
    /// That what it shows is in use.
    pub fn in_use(&self, holder: String) -> Error {
        match (self.sr, &self.physical) {
            (Some(sr), _) => Error::VdiInUse { vdi: self.vdi, sr, holder },
            (None, device) => {
                let device = device.as_ref().map(|it| it.address.to_string()).unwrap_or_default();
                Error::DeviceInUse { device, holder }
            }
        }
    }
}

/// The secrets of one publication, by initiator.
pub type Secrets = BTreeMap<Name, Chap>;

fn file_of(vdi: VdiUuid) -> String {
    format!("{vdi}.json")
}

fn secrets_of(vdi: VdiUuid) -> String {
    format!("{vdi}.secrets")
}

/// The lock of a publication. Calls on other publications go on meanwhile.
///
/// # Errors
/// The error that `in_use` makes of the holder, if another call has it until the deadline.
pub fn lock(id: VdiUuid, deadline: Instant, in_use: impl FnOnce(String) -> Error) -> Result<Lock> {
    lock::take("targets", &id.to_string(), Kind::Exclusive, deadline).map_err(|refused| {
        refused.or_timed_out(|holder| in_use(format!("{holder}, which works on its publication; repeat the call")))
    })
}

/// Removes the lock of a publication that is gone. The caller has the lock.
pub fn forget_lock(vdi: VdiUuid) {
    lock::forget("targets", &vdi.to_string());
}

fn open() -> Result<Option<Dir>> {
    match Dir::open(&run_dir::targets()) {
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => Ok(None),
        other => other.map(Some),
    }
}

fn made() -> Result<Dir> {
    if let Some(dir) = open()? {
        return Ok(dir);
    }
    let path = run_dir::targets();
    durable::make_dirs(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(Error::io("set the mode of", &path))?;
    open()?.ok_or_else(|| Error::sys("open the directory", &path)(Errno::ENOENT))
}

/// The record of a VDI.
///
/// # Errors
/// [`Error::Damaged`] for a record that is not whole; [`Error::Io`].
pub fn of(vdi: VdiUuid) -> Result<Option<Record>> {
    match open()? {
        Some(dir) => read(&dir, vdi),
        None => Ok(None),
    }
}

/// Every record, by VDI. One that cannot be read is told of and keeps no other from being read.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be listed.
pub fn all() -> Result<Vec<(VdiUuid, Result<Record>)>> {
    let Some(dir) = open()? else { return Ok(Vec::new()) };
    let mut names = dir.names()?;
    names.sort_unstable();
    let vdis = names.iter().filter_map(|name| name.strip_suffix(".json")?.parse::<VdiUuid>().ok());
    Ok(vdis.filter_map(|vdi| Some((vdi, read(&dir, vdi).transpose()?))).collect())
}

fn read(dir: &Dir, vdi: VdiUuid) -> Result<Option<Record>> {
    let name = file_of(vdi);
    let Some(bytes) = dir.read(&name)? else { return Ok(None) };
    let damaged = |what: String| Error::Damaged { path: dir.join(&name), what };
    let record: Record = serde_json::from_slice(&bytes).map_err(|e| damaged(format!("it is no record: {e}")))?;
    // It becomes a directory of the kernel.
    if record.target.is_empty() || record.target.contains('/') {
        return Err(damaged("it names no target".to_owned()));
    }
    match record.version {
        // Under its own name, the VDI may have another record, or none.
        VERSION | WITH_DEVICE if record.vdi != vdi => Err(damaged(format!("it is the record of VDI {}", record.vdi))),
        VERSION if record.sr.is_some() => Ok(Some(record)),
        WITH_DEVICE if record.physical.is_some() => Ok(Some(record)),
        VERSION | WITH_DEVICE => Err(damaged("it names neither an SR nor a device".to_owned())),
        other => Err(damaged(format!("it is of version {other}, and this sm knows {VERSION} and {WITH_DEVICE}"))),
    }
}

/// Writes a record, durably, over the one that the VDI has.
///
/// # Errors
/// [`Error::Io`].
pub fn put(record: &Record) -> Result<()> {
    let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
    replace(&file_of(record.vdi), &text)
}

/// Writes the secrets of a publication, durably; none removes them.
///
/// # Errors
/// [`Error::Io`].
pub fn put_secrets(vdi: VdiUuid, secrets: &Secrets) -> Result<()> {
    if secrets.is_empty() {
        return remove(&secrets_of(vdi));
    }
    let text = serde_json::to_vec(secrets).expect("secrets are plain data");
    replace(&secrets_of(vdi), &text)
}

/// The secrets of a publication; none if there is no file.
///
/// # Errors
/// [`Error::Damaged`], without a secret; [`Error::Io`].
pub fn secrets(vdi: VdiUuid) -> Result<Secrets> {
    let Some(dir) = open()? else { return Ok(Secrets::new()) };
    let name = secrets_of(vdi);
    let Some(bytes) = dir.read(&name)? else { return Ok(Secrets::new()) };
    let damaged = |_| Error::Damaged {
        path: dir.join(&name),
        what: "it is no file of secrets; unpublish the VDI and publish it again".to_owned(),
    };
    serde_json::from_slice(&bytes).map_err(damaged)
}

/// Removes the record of a VDI and its secrets, durably. Idempotent.
///
/// # Errors
/// [`Error::Io`].
pub fn forget(vdi: VdiUuid) -> Result<()> {
    remove(&secrets_of(vdi))?;
    remove(&file_of(vdi))
}

fn replace(name: &str, text: &[u8]) -> Result<()> {
    let dir = made()?;
    let mut new = dir.new_record(text)?;
    let mode = Permissions::from_mode(0o600);
    new.file().set_permissions(mode).map_err(Error::io("set the mode of a file in", dir.path()))?;
    new.sync()?;
    new.publish_over(name)
}

fn remove(name: &str) -> Result<()> {
    let Some(dir) = open()? else { return Ok(()) };
    dir.remove(name)?;
    // Also if it was gone: a killed call may have removed it without the sync.
    dir.sync()
}
