//! The fabrics: ways by which a consumer reaches a disk. A fabric is a file beside this one that implements [`Kind`], its
//! variant and word in [`super::record::Fabric`], and its line in [`Fabric::kind`] and, if it makes objects of a new sort, in
//! [`objects_of_ours`].

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::iscsi::Iscsi;
use super::loopback::Loopback;
use super::name::Name;
use super::nvme::NvmeTcp;
use super::record::{Fabric, Record, Secrets};
use super::settings::{Place, Sort};
use super::{nvme, scsi};
use crate::error::Result;
use crate::types::{Misread, VdiUuid};

/// What a fabric is to its users.
#[derive(Debug)]
pub struct Facts {
    /// One line of help.
    pub help: &'static str,
    /// None: the disk is for this host alone.
    pub network: Option<Network>,
    /// Why the fabric cannot show a disk that is not to be written; none: it can.
    pub writable_only: Option<&'static str>,
}

/// A fabric by which other hosts reach a disk.
#[derive(Debug)]
pub struct Network {
    /// What the protocol calls a consumer.
    pub consumer: &'static str,
    /// The port of the protocol.
    pub port: u16,
    /// Whether consumers can prove by secrets who they are.
    pub has_secrets: bool,
    /// Whether the kernel tells which consumers are logged in.
    pub tells_sessions: bool,
}

/// What a publication is made of, beside its record.
#[derive(Debug)]
pub struct Parts<'a> {
    pub secrets: &'a Secrets,
    /// The block device of the disk.
    pub device: &'a Path,
    /// An earlier call has begun the publication.
    pub inherited: bool,
    pub deadline: Instant,
}

/// What the kernel shows of a publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The disk can be reached.
    pub is_published: bool,
    /// The SCSI disk of the loopback fabric.
    pub device: Option<PathBuf>,
    /// The consumers that are logged in, if the fabric tells.
    pub sessions: Vec<String>,
}

/// A publication of one fabric in the kernel. Making and removing are idempotent: each step may have been done already by a call
/// that was killed.
pub trait Kind: Sync {
    fn facts(&self) -> &'static Facts;

    /// The name of a consumer.
    ///
    /// # Errors
    /// [`Misread`] for a name that is not of this fabric.
    fn consumer_name(&self, text: &str) -> Result<Name, Misread>;

    /// The name of the target of a VDI. `prefix`: the start of this host's names.
    ///
    /// # Errors
    /// [`crate::error::Error::Invalid`] if the prefix makes no name.
    fn target_name(&self, prefix: &str, vdi: VdiUuid) -> Result<String>;

    /// Loads what the fabric needs.
    ///
    /// # Errors
    /// [`crate::error::Error::NoTarget`] if the kernel lacks it.
    fn prepare(&self) -> Result<()>;

    /// The number that a new publication has in the kernel, for its record: so that a killed call's objects are found.
    ///
    /// # Errors
    /// [`crate::error::Error::NoTarget`] if all are taken.
    fn number(&self, record: &Record) -> Result<u32>;

    /// Whether the kernel has an object for a consumer that no publication of this host made, and that stays therefore.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    fn has_foreign(&self, consumer: &Name) -> Result<bool>;

    /// Publishes as the record says. If the record's number is taken, the record is stored with another first. Answers the disk on
    /// this host, if the fabric makes one.
    ///
    /// # Errors
    /// [`crate::error::Error::ForeignTarget`] if an object with a name of ours is somebody else's;
    /// [`crate::error::Error::Io`] with what the kernel refused.
    fn publish(&self, record: &mut Record, parts: &Parts) -> Result<Option<PathBuf>>;

    /// Where the kernel has settings of a publication; none: the fabric has none of this sort.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    fn settings(&self, record: &Record, sort: Sort) -> Result<Option<Place>>;

    /// Looks at a publication. A part that is missing is no error.
    fn look(&self, record: &Record) -> Shown;

    /// The consumer that would lose the disk, if it were taken from `only`, or from all, now.
    fn consumer(&self, record: &Record, only: Option<&Name>) -> Option<String>;

    /// Tells consumers that the disk has grown, as far as this host can.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    fn tell_size(&self, record: &Record) -> Result<()>;

    /// Removes a publication from the kernel. Objects that are not of this VDI stay.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] with what the kernel refused.
    fn remove(&self, record: &Record, deadline: Instant) -> Result<()>;
}

impl Fabric {
    pub fn kind(self) -> &'static dyn Kind {
        match self {
            Fabric::Iscsi => &Iscsi,
            Fabric::Loopback => &Loopback,
            Fabric::NvmeTcp => &NvmeTcp,
        }
    }
}

/// Every object of the kernel that shows a VDI and was made by this product, by the name that the kernel's users give it.
///
/// # Errors
/// [`crate::error::Error::Io`].
pub fn objects_of_ours() -> Result<Vec<(VdiUuid, String)>> {
    let mut found = scsi::objects_of_ours()?;
    found.extend(nvme::objects_of_ours()?);
    Ok(found)
}
