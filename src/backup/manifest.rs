//! What an export says of itself: `manifest.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::BLOCK;
use super::codec::Compression;
use super::name::{RunId, SetName};
use super::retain::Keep;
use super::sign::Signature;
use super::store::Identity;
use crate::error::{Error, Result};
use crate::types::{Format, SrUuid, VdiUuid};

/// The name of the file.
pub const FILE: &str = "manifest.json";
/// The name of the file with the digests of the others.
pub const SUMS: &str = "SHA256SUMS";
/// The name of the opaque file of an agent.
pub const METADATA: &str = "metadata";
/// The name of that file where it is encrypted.
pub const SEALED_METADATA: &str = "metadata.age";
/// The name of the encrypted file with the key of the digests.
pub const DIGEST_KEY: &str = "digests.key.age";
/// What exports are encrypted by.
pub const AGE: &str = "age";

const FORMAT: &str = "sm-export";
const VERSION: u32 = 1;
/// Disks of a set, at most.
pub const MOST_DISKS: usize = 1024;

/// An export. Fields that are not known are ignored; another version is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub(super) format: String,
    pub(super) version: u32,
    pub name: SetName,
    pub run: RunId,
    /// When the run began, RFC 3339.
    pub timestamp: String,
    pub source_host: String,
    /// [`Identity::machine`] of that host.
    #[serde(default)]
    pub source_machine: Option<String>,
    pub product_version: String,
    pub compression: Compression,
    pub(super) block_size: u64,
    pub consistency: Consistency,
    pub(super) mode: String,
    pub(super) zeroed: bool,
    pub warnings: Vec<String>,
    pub disks: Vec<DiskOf>,
    pub metadata: Option<Metadata>,
    /// Of an increment: the run that has what it leaves out.
    #[serde(default)]
    pub parent: Option<ParentRun>,
    /// Of an encrypted export.
    #[serde(default)]
    pub encryption: Option<Encryption>,
    /// How many runs stay; the next export that does not say otherwise keeps as many.
    #[serde(default)]
    pub keep: Keep,
    /// The last member, see [`sign`](super::sign). `None` where the host that made the export had no secret.
    pub(super) hmac: Option<Signature>,
}

/// How the disks of an export belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// No process used them.
    Offline,
    /// Each is what it was at one instant, within one pause of all that uses them.
    Paused,
    /// Each is what it was at one instant of its own.
    LivePerDisk,
}

/// The export that an increment is made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentRun {
    pub run: RunId,
    pub manifest_sha256: String,
}

/// How an export is encrypted. No key can be told by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// [`AGE`].
    pub algorithm: String,
    /// The names of the keys that can read it, each the start of a SHA-256 of a public key.
    pub keys: Vec<String>,
    /// The name of the key of the digests in its maps.
    pub digest_key: String,
}

/// A disk of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskOf {
    pub index: usize,
    /// The names of its files, which follow from the index: a reader makes them of it.
    pub file: String,
    pub map: String,
    pub map_sha256: String,
    pub uuid: VdiUuid,
    pub sr_uuid: SrUuid,
    pub sr_type: String,
    pub label: String,
    pub description: String,
    pub vdi_type: Format,
    pub read_only: bool,
    pub shareable: bool,
    /// Bytes.
    pub virtual_size: u64,
    /// Bytes that it had allocated.
    pub allocated: u64,
    pub sector_size: u32,
    pub parent: Option<VdiUuid>,
    /// The snapshot that was read in place of the disk.
    pub snapshot: Option<VdiUuid>,
}

/// The opaque file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    pub file: String,
    pub sha256: String,
}

/// The name of the image of a disk.
pub fn image_name(index: usize, compression: Compression, is_sealed: bool) -> String {
    format!("disk{index}.raw{}{}", compression.suffix(), if is_sealed { ".age" } else { "" })
}

/// The name of the map of a disk.
pub fn map_name(index: usize) -> String {
    format!("disk{index}.map")
}

impl Manifest {
    /// The manifest of an export that is made now.
    pub fn new(name: SetName, run: RunId, timestamp: String, compression: Compression, host: Identity) -> Manifest {
        Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            name,
            run,
            timestamp,
            source_host: host.name,
            source_machine: host.machine,
            product_version: env!("CARGO_PKG_VERSION").to_owned(),
            compression,
            block_size: BLOCK,
            consistency: Consistency::Offline,
            mode: "local".to_owned(),
            zeroed: false,
            warnings: Vec::new(),
            disks: Vec::new(),
            metadata: None,
            parent: None,
            encryption: None,
            keep: Keep::default(),
            hmac: None,
        }
    }

    /// The host that made the export.
    pub fn source(&self) -> Identity {
        Identity { name: self.source_host.clone(), machine: self.source_machine.clone() }
    }

    /// Reads a manifest, which may come from anywhere.
    ///
    /// # Errors
    /// [`Error::NotVerified`] with what is wrong.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Manifest> {
        let wrong = |what: String| Error::NotVerified { path: path.to_owned(), what };
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| wrong(format!("it is no manifest of an export: {e}")))?;
        if manifest.format != FORMAT || manifest.version != VERSION || manifest.block_size != BLOCK {
            return Err(wrong(format!(
                "it is of format {:?}, version {}, with blocks of {} bytes, and only {FORMAT:?}, version {VERSION}, with \
                 blocks of {BLOCK} bytes can be read",
                manifest.format, manifest.version, manifest.block_size
            )));
        }
        if manifest.disks.is_empty() || manifest.disks.len() > MOST_DISKS {
            return Err(wrong(format!("it tells of {} disks", manifest.disks.len())));
        }
        if let Some(encryption) = &manifest.encryption {
            let is_name = |key: &String| key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
            if encryption.algorithm != AGE || !encryption.keys.iter().all(is_name) {
                return Err(wrong(format!("it is not encrypted by {AGE}, as an export that can be read is")));
            }
            if !manifest.compression.is_packed() {
                return Err(wrong("it is encrypted and not packed, which no export is".to_owned()));
            }
        }
        for (at, disk) in manifest.disks.iter().enumerate() {
            if disk.index != at {
                return Err(wrong(format!("its disk {at} has the index {}", disk.index)));
            }
            if disk.virtual_size == 0 || disk.virtual_size > i64::MAX as u64 || !disk.virtual_size.is_multiple_of(512) {
                return Err(wrong(format!("its disk {at} has {} bytes", disk.virtual_size)));
            }
        }
        Ok(manifest)
    }

    /// The name of the opaque file of an agent.
    pub fn metadata_name(&self) -> &'static str {
        if self.encryption.is_some() { SEALED_METADATA } else { METADATA }
    }

    /// The file.
    pub fn text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("a manifest is plain data");
        text.push(b'\n');
        text
    }
}
