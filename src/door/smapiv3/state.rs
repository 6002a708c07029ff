//! The state that this door keeps on its host until a reboot, in `/run/sm/smapiv3/<sr>`: the device_config by which an SR was
//! attached, because later calls name the SR by its handle only, and who has each volume activated. Only root can read it:
//! device_config may have a password.
//!
//! | name | what |
//! |---|---|
//! | `sr` | the device_config; there from SR.attach to SR.detach |
//! | `<vdi>` | the domains that have the volume activated; there while there are any |
//!
//! Each file is replaced as a whole. Whether a volume has a device, no file says, but the kernel.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::uri::Handle;
use crate::error::{Error, Result};
use crate::sys::durable::Dir;
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::{run_dir, small};
use crate::types::{DeviceConfig, SrUuid, VdiUuid};

/// Bytes of the longest file.
const MOST: u64 = 16 << 20;
/// The file of the SR itself.
const SR: &str = "sr";

/// How a domain has a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    Rw,
    Ro,
    /// The domain has gone, and the device could not be removed at that time.
    Gone,
}

/// The domains that have a volume activated.
pub type Domains = BTreeMap<String, Held>;

/// The record of an attached SR.
#[derive(Serialize, Deserialize)]
struct Attached {
    #[serde(rename = "type")]
    sr_type: String,
    device_config: BTreeMap<String, String>,
}

fn directory(sr: SrUuid) -> PathBuf {
    run_dir::state().join("smapiv3").join(sr.to_string())
}

fn read<T: DeserializeOwned>(sr: SrUuid, name: &str) -> Result<Option<T>> {
    let path = directory(sr).join(name);
    let bytes = match small::read(&path, MOST) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("read", &path))?,
    };
    let damaged =
        |_| Error::Damaged { path: path.clone(), what: "is not a record of this program; remove it".to_owned() };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

fn write(sr: SrUuid, name: &str, record: &impl Serialize) -> Result<()> {
    run_dir::trusted()?;
    let (above, path) = (run_dir::state(), directory(sr));
    fs::create_dir_all(&above).map_err(Error::io("create", &above))?;
    DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(Error::io("create", &path))?;
    Dir::open(&path)?.replace(name, &serde_json::to_vec(record).expect("a record is plain data"))
}

fn remove(sr: SrUuid, name: &str) -> Result<()> {
    let dir = directory(sr);
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path)(e)),
        _ => {}
    }
    // Once it is empty.
    let _ = fs::remove_dir(dir);
    Ok(())
}

/// Keeps an SR from being detached (shared) while a volume of it is activated, or volumes from being activated (exclusive).
///
/// # Errors
/// [`Error::Busy`] with who held it until the deadline.
pub fn lock(sr: SrUuid, kind: Kind, deadline: Instant) -> Result<Lock> {
    lock::take(&sr.to_string(), LOCK, kind, deadline).map_err(|refused| {
        let what = "attaching and detaching".to_owned();
        refused.or_timed_out(|who| Error::Busy { sr, holder: who.to_owned(), what })
    })
}

/// The name of the lock of an SR.
const LOCK: &str = "smapiv3";

/// Keeps the device_config of an SR for later calls.
///
/// # Errors
/// [`Error::Io`]; those of [`run_dir::trusted`].
pub fn remember(handle: Handle, config: &DeviceConfig) -> Result<()> {
    let attached = Attached { sr_type: handle.driver.sr_type.to_owned(), device_config: config.0.clone() };
    write(handle.sr, SR, &attached)
}

/// The device_config by which an SR was attached. `None`: it is not attached.
///
/// # Errors
/// [`Error::Io`]; [`Error::Damaged`].
pub fn recall(handle: Handle) -> Result<Option<DeviceConfig>> {
    let found: Option<Attached> = read(handle.sr, SR)?;
    Ok(found.filter(|found| found.sr_type == handle.driver.sr_type).map(|found| DeviceConfig(found.device_config)))
}

/// Forgets an SR that is attached no more. Idempotent.
///
/// # Errors
/// [`Error::Io`].
pub fn forget(sr: SrUuid) -> Result<()> {
    remove(sr, SR)
}

/// The domains that have a volume activated.
///
/// # Errors
/// [`Error::Io`]; [`Error::Damaged`].
pub fn domains(sr: SrUuid, vdi: VdiUuid) -> Result<Domains> {
    Ok(read(sr, &vdi.to_string())?.unwrap_or_default())
}

/// Stores the domains that have a volume activated. The caller holds the volume's lock of activation.
///
/// # Errors
/// [`Error::Io`].
pub fn set_domains(sr: SrUuid, vdi: VdiUuid, domains: &Domains) -> Result<()> {
    match domains.is_empty() {
        true => remove(sr, &vdi.to_string()),
        false => write(sr, &vdi.to_string(), domains),
    }
}

/// The volumes of an SR that a domain has, or had.
pub fn volumes(sr: SrUuid) -> Vec<VdiUuid> {
    let entries = fs::read_dir(directory(sr)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
