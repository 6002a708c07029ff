//! The contracts of a driver: [`Driver`], what it says of itself, and [`Sr`], what it does with one SR.

use std::path::{Path, PathBuf};

use super::Trim;
use crate::context::{Context, Deadline};
use crate::error::{Error, Result};
pub use crate::sr::answers::{finding_of_state, finds_out_only_then, overwrites_nothing, refuse_slot};
use crate::sys::copy::Progress;
use crate::sys::watch::Pulse;
use crate::types::{
    DeviceConfig, Done, Finding, Format, Names, NewSr, NewVdi, Overwrite, SlotMark, SmConfig, Space, SpaceUse, SrInfo,
    SrUuid, VdiInfo, VdiName, VdiUuid,
};
use crate::vdi::Vdi;
use crate::vdi::cbt::ChangeLogs;
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::collect::CollectPlan;
use crate::vdi::tree::run::Collecting;

/// A driver's facts and functions that can be used before any SR exists.
pub struct Driver {
    /// The SR type: `ext`, `file`, `iso`, `lvm`, `nfs`, `smb`.
    pub sr_type: &'static str,
    /// The name xapi looks for: `FileSR`.
    pub executable: &'static str,
    /// One line for people.
    pub description: &'static str,
    /// An example of the short form of dconf: `/path/to/directory`.
    pub dconf_form: &'static str,
    /// The formats it can create; the first is its default.
    pub formats: &'static [Format],
    /// The formats that disks can have in an SR of this type of some kind: those that xapi is told of.
    pub image_formats: &'static [Format],
    /// Turns the short form of dconf into device_config keys. Touches nothing.
    pub parse_dconf: fn(&str) -> Result<DeviceConfig>,
    /// Parses device_config completely and touches nothing. The deadline is the end of every wait of what is done with the
    /// SR; it may be set anew between two operations.
    ///
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::Invalid`] with the key of device_config.
    pub open: fn(SrUuid, &DeviceConfig, Deadline) -> Result<Box<dyn Sr>>,
    /// Which SRs of those that it serves a device_config holds, each with the type that is its own. Waits for other calls until the
    /// deadline.
    ///
    /// # Errors
    /// Says what is wrong with the device, directory or server when it can't be examined.
    pub probe: fn(&DeviceConfig, Deadline) -> Result<Vec<SrInfo>>,
    /// The SRs that this host has without being told where: of what is mounted, and of the volume groups that LVM sees. Asks no
    /// server, and no filesystem that may not answer.
    ///
    /// # Errors
    /// Says what could not be asked.
    pub discover: fn() -> Result<Vec<Found>>,
    /// Whether [`Sr::delete`] leaves the disks where they are, so that there is nothing to lose.
    pub keeps_disks: bool,
    pub about: About,
}

impl Driver {
    /// The SRs of [`Driver::probe`] that are of this type. No other driver has these.
    ///
    /// # Errors
    /// Those of [`Driver::probe`].
    pub fn probe_own(&self, config: &DeviceConfig, deadline: Deadline) -> Result<Vec<SrInfo>> {
        Ok((self.probe)(config, deadline)?.into_iter().filter(|found| found.sr_type == self.sr_type).collect())
    }

    /// The keys of device_config that the driver declares in [`About::configuration`]. It reads no others.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.about.configuration.iter().map(|(key, _)| *key)
    }
}

/// An SR that a driver discovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub sr: SrUuid,
    /// Where it is.
    pub config: DeviceConfig,
    /// The slot of a layout that it was made for, as its medium says.
    pub slot: Option<SlotMark>,
}

/// The description of a driver that agents get; SMAPIv1, "sr_get_driver_info".
pub struct About {
    /// For people, in lists of SR types.
    pub name: &'static str,
    /// The operations that agents may ask of the driver. An operation that is announced works.
    pub capabilities: &'static [&'static str],
    /// The keys of device_config, each with what it means.
    pub configuration: &'static [(&'static str, &'static str)],
    /// The VDI that an agent calls by this location.
    pub vdi_at: fn(SrUuid, &str) -> Result<VdiUuid>,
    /// Whether the SR stores the label and the description of a VDI with it.
    pub keeps_names: bool,
    /// Whether the SR stores keys of an agent with a VDI, see [`Params::keys`](crate::types::Params::keys).
    pub keeps_keys: bool,
    /// Makes the `sm_config` of a VDI.
    pub sm_config: fn(&VdiInfo) -> SmConfig,
    /// The kind of storage that the SRs live on. Agents have error codes of their own for some substrates.
    pub substrate: Substrate,
    /// The paths at which the image of a VDI may be that a server shows as a block device, if the SR's files are in this
    /// directory. Touches nothing.
    pub images: fn(&Path, VdiUuid) -> Vec<PathBuf>,
    /// Whether [`Sr::stat`] looks at every disk, so that it costs the more the more disks there are.
    pub looks_at_every_disk: bool,
    /// The major versions of its protocol that the server of a device_config speaks; none where there is no server.
    ///
    /// # Errors
    /// Says what is wrong with device_config or with the server.
    pub protocol_versions: fn(&DeviceConfig) -> Result<Vec<u32>>,
}

/// The kinds of storage that the SRs of a driver live on, as far as agents tell failures apart by the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Substrate {
    /// A directory of this host.
    Directory,
    /// An export of an NFS server.
    NfsExport,
    /// A share of a server that is no NFS server.
    Share,
    /// A directory, export or share with CD images.
    CdLibrary,
    /// Block devices of this host.
    BlockDevices,
    /// A LUN that this host connects first.
    Lun,
}

impl Substrate {
    /// Whether each host activates volumes for itself, so that no host sees what another one has open.
    pub fn is_of_volumes(self) -> bool {
        matches!(self, Substrate::BlockDevices | Substrate::Lun)
    }
}

/// What is wrong with a device in an [`Error::Invalid`] because of the size of its sectors.
pub const SECTORS: &str = "device for its sectors";

/// [`About::protocol_versions`] of a driver whose SRs have no server that could be asked.
///
/// # Errors
/// None.
pub fn no_server(_config: &DeviceConfig) -> Result<Vec<u32>> {
    Ok(Vec::new())
}

/// [`About::images`] of a driver whose disks need no server.
pub fn no_images(_directory: &Path, _vdi: VdiUuid) -> Vec<PathBuf> {
    Vec::new()
}

/// [`About::vdi_at`] where a VDI's location is its UUID.
///
/// # Errors
/// [`Error::Invalid`] for a location that is no UUID.
pub fn vdi_by_uuid(_sr: SrUuid, location: &str) -> Result<VdiUuid> {
    Ok(location.parse()?)
}

/// A volume with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeOf {
    pub vdi: VdiUuid,
    /// Its name in the group.
    pub name: String,
}

/// A change of a volume that a host has to follow, see [`Sr::follow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeChange {
    /// It has one user more, and is active.
    Use,
    /// It has one user less, and is active only if there are others.
    Leave,
    /// It is not active, whoever is counted. Another program that has it open keeps it active.
    Deactivate,
    /// It is active, as the group has it now.
    Refresh,
    /// Nobody is counted as its user.
    Forget,
}

/// A storage repository. The caller holds the locks that [`crate::call::Session`] takes.
///
/// A method that a driver leaves to its default answers "not supported" or "nothing is known of it", never "done", and
/// never that no other host is concerned. A method whose absence could lose data has no default.
pub trait Sr: Send + Sync {
    /// Makes the SR and leaves its UUID on the substrate, and beside it the slot of a layout if there is one.
    ///
    /// # Errors
    /// [`Error::SrExists`] for the same UUID, [`Error::DeviceInUse`] for anything else that is there; [`Error::NoSpace`] for
    /// a size that the substrate does not have; [`Error::Unsupported`] for a slot if the driver keeps no mark of one. Then
    /// nothing was changed.
    fn create(&self, new: &NewSr) -> Result<()>;

    /// Makes the SR and overwrites what is there, as far as `over` allows it and nothing has it in use.
    ///
    /// # Errors
    /// Those of [`Sr::create`], and [`Error::HoldsSr`] for an SR that is there and that `over` does not name.
    fn create_over(&self, _new: &NewSr, over: &Overwrite) -> Result<()> {
        overwrites_nothing(over)
    }

    /// The disks of an SR that need not be attached or whole, to say what would be lost with it. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NoSr`] if it is no SR of this type, and what reading it says.
    fn disks_at_rest(&self) -> Result<Vec<VdiInfo>> {
        Ok(self.scan()?.vdis)
    }

    /// Deletes the SR and its contents. Idempotent.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while any VDI is attached or locked; then nothing was changed.
    fn delete(&self) -> Result<Done>;

    /// Makes the SR available on this host and repairs what a crash left. Idempotent.
    ///
    /// # Errors
    /// [`Error::NoSr`] if the place holds no such SR; [`Error::SrUnavailable`], [`Error::NoDevice`] or
    /// [`Error::Server`] if its storage cannot be reached.
    fn attach(&self) -> Result<Done>;

    /// Makes an SR without disks, that other storage managers made, one of ours. Idempotent.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the driver needs no such step; [`Error::Foreign`] if the disks there are of a kind
    /// that it does not serve.
    fn adopt(&self) -> Result<Done> {
        Err(Error::Unsupported { op: "taking an SR over", why: "this driver finds its SRs without".to_owned() })
    }

    /// Lets the SR use what its devices have become larger by. Idempotent.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the driver has no devices of its own that could grow.
    fn grow(&self) -> Result<Done> {
        Err(Error::Unsupported { op: "growing an SR", why: "an SR of this type has the size of its place".to_owned() })
    }

    /// Tells the devices which bytes nobody needs, for seconds. Of an SR of volumes, the caller has the SR to itself.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the SR has no devices of its own; [`Error::NotMaster`]; [`Error::NoSpace`] if hardly anything is free.
    fn trim(&self, _so_far: Trim, _progress: Progress) -> Result<Trim> {
        Err(Error::Unsupported { op: "sr_trim", why: "it has no devices; fstrim trims its filesystem".to_owned() })
    }

    /// The directory in which its disks are files, if they are, for the programs of a host that expect an SR
    /// at a path of its own.
    fn local_path(&self) -> Option<PathBuf> {
        None
    }

    /// Ends the availability on this host. Idempotent.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while any VDI is attached on this host.
    fn detach(&self) -> Result<Done>;

    /// The SR as the substrate shows it now, without the VDIs' details.
    ///
    /// # Errors
    /// [`Error::NoSr`] or [`Error::SrUnavailable`]; never an empty answer for an SR that can't be seen.
    fn stat(&self) -> Result<SrInfo>;

    /// How much there is and how much of it is free, without a look at any disk; where [`Sr::stat`] takes none either,
    /// what that says.
    ///
    /// # Errors
    /// Those of [`Sr::stat`].
    fn space(&self) -> Result<Space> {
        self.stat().map(|sr| sr.space())
    }

    /// [`Sr::stat`] with every VDI's details, in one pass.
    ///
    /// # Errors
    /// Those of [`Sr::stat`]. A disk that cannot be read is no error: its [`VdiInfo::state`] says why.
    fn scan(&self) -> Result<SrInfo>;

    /// [`Sr::scan`], with the gain of [`Sr::collect`] and, if `each` is set, the space that each image holds and that its
    /// deletion would free; in one pass over the images. No data is read.
    ///
    /// By default it is not known whether disks share extents, and there are no bases.
    ///
    /// # Errors
    /// Those of [`Sr::scan`].
    fn space_use(&self, each: bool) -> Result<SpaceUse> {
        Ok(SpaceUse::of_disks(self.scan()?, each, false))
    }

    /// The names that images may be called by, bases among them, without a look at any image where the driver can do
    /// that. An image that is certainly not called `word`, and whose UUID does not begin with `word`, may be left out.
    /// If `word` is empty, no image is left out.
    ///
    /// # Errors
    /// Those of [`Sr::scan`].
    fn names(&self, _word: &str) -> Result<Vec<VdiName>> {
        Ok(self.scan()?.vdis.iter().map(VdiName::from).collect())
    }

    /// Finds a VDI.
    ///
    /// # Errors
    /// [`Error::NoVdi`].
    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>>;

    /// Makes a VDI of zeroes.
    ///
    /// # Errors
    /// [`Error::VdiExists`], [`Error::NoSpace`], [`Error::TooBig`], [`Error::Unsupported`] format.
    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo>;

    /// Makes a VDI of what comes, which is there whole or not at all. `new.virtual_size` is the least size.
    ///
    /// # Errors
    /// As [`Sr::create_vdi`], and what reading says.
    fn import_vdi(&self, _new: &NewVdi, _incoming: Incoming, _progress: Progress) -> Result<VdiInfo> {
        Err(Error::Unsupported { op: "vdi_import", why: "this driver has none".to_owned() })
    }

    /// Gives space back: removes bases without children and merges those with one child, also below a disk in use,
    /// but not where another host or another call uses the images. Long work; other calls go on meanwhile.
    ///
    /// `Already` on an SR that keeps no trees.
    ///
    /// # Errors
    /// [`Error::NotMerged`] at the end, with all failures; [`Error::SrUnavailable`] while another process collects. Those of
    /// [`Sr::stat`] for an SR that is not there, also of an SR that keeps no trees.
    fn collect(&self, collecting: &Collecting, context: &Context) -> Result<Done>;

    /// Makes the chain of a disk one image shorter, if an image of it can be merged. `Already`: none can. An SR that keeps no trees
    /// has no chains.
    ///
    /// # Errors
    /// Those of [`shorten`](crate::vdi::tree::shorten::shorten).
    fn shorten(&self, _vdi: VdiUuid, _context: &Context) -> Result<Done> {
        Ok(Done::Already)
    }

    /// The decisions that [`Sr::collect`] would make now. An SR that keeps no trees has none. Changes nothing.
    ///
    /// # Errors
    /// Those of [`Sr::stat`]; [`Error::Busy`] while another call changes a tree.
    fn plan_collect(&self, context: &Context) -> Result<CollectPlan>;

    /// The volumes that the images of a disk are in, the disk's own first, where an SR has volumes that each host activates for itself;
    /// `None` elsewhere.
    ///
    /// # Errors
    /// Those of [`Sr::vdi`].
    fn volumes(&self, _vdi: VdiUuid) -> Result<Option<Vec<VolumeOf>>> {
        Ok(None)
    }

    /// Makes this host's view of a volume what the SR's master says it is. Idempotent, but for the count of users.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an SR without such volumes; what activating says.
    fn follow(&self, _change: VolumeChange, _volume: &str, _vdi: Option<VdiUuid>) -> Result<()> {
        Err(Error::Unsupported { op: "following a change of volumes", why: "this SR has none".to_owned() })
    }

    /// Gives the volume of a disk room for all of the disk, which another host attaches, or takes that room back when it does not any more.
    /// On the SR's master. Idempotent.
    ///
    /// # Errors
    /// [`Error::NotMaster`], [`Error::NoSpace`]; [`Error::Unsupported`] on an SR without such volumes.
    fn fit(&self, _vdi: VdiUuid, _attached: bool) -> Result<Done> {
        Err(Error::Unsupported { op: "room for a disk", why: "this SR needs none".to_owned() })
    }

    /// Refuses what [`Sr::create_over`] would refuse, as far as it can be seen without changing anything.
    ///
    /// # Errors
    /// Those of [`Sr::create_over`]; [`Error::Unsupported`] by drivers that cannot tell.
    fn check_create(&self, _size: Option<u64>, _over: &Overwrite) -> Result<()> {
        finds_out_only_then()
    }

    /// Says what is wrong with the SR and its disks. `thorough`: every table of every image that no process has open is read.
    /// `repair`: what can be mended without a loss is.
    ///
    /// A driver without a look of its own says of its disks what a scan says.
    ///
    /// # Errors
    /// Those of [`Sr::scan`]. A fault of one disk is in the answer.
    fn check(&self, _thorough: bool, _repair: bool, _context: &Context) -> Result<Vec<Finding>> {
        let disks = self.scan()?.vdis;
        let unwell = disks.into_iter().filter(|disk| !disk.state.is_healthy());
        Ok(unwell.map(|disk| finding_of_state(disk.uuid, disk.location(), &disk.state)).collect())
    }

    /// Whether [`Sr::delete_broken`] would delete the VDI now. Changes nothing.
    ///
    /// # Errors
    /// Those of [`Sr::delete_broken`].
    fn can_delete_broken(&self, _vdi: VdiUuid, _context: &Context) -> Result<bool> {
        Ok(false)
    }

    /// Deletes a VDI whose image, or what is stored beside it, cannot be read, by its name alone. `false`: it can be
    /// read, or the driver has no such VDIs; nothing was changed.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while it is attached or locked, or an image names it as its parent. [`Error::Damaged`] for what
    /// cannot be removed.
    fn delete_broken(&self, _vdi: VdiUuid, _context: &Context) -> Result<bool> {
        Ok(false)
    }

    /// Removes what a killed operation on a VDI that does not exist may have left, and makes its absence durable: a
    /// killed vdi_delete may have got no further than the removal.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage does not take it.
    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done>;

    /// Whether what the SR lives on still answers, for an SR that may lose it under a call; the call is then
    /// given up instead of waiting for ever.
    fn pulse(&self) -> Option<Pulse> {
        None
    }

    /// What the agent's record of this host's attachment (`PBD.other_config`) says: the keys that go with the attachment, and the values of
    /// those that the driver gives.
    fn attachment_keys(&self) -> Vec<(String, Option<String>)> {
        Vec::new()
    }

    /// The `sm_config` of the SR itself.
    fn sr_sm_config(&self) -> SmConfig {
        SmConfig::new()
    }

    /// The names that an agent's user gave the SR itself. A driver that stores none has none.
    ///
    /// # Errors
    /// Those of [`Sr::stat`]; [`Error::Damaged`] if what is stored cannot be read.
    fn names_of_sr(&self) -> Result<Names> {
        Ok(Names::default())
    }

    /// Stores the names of the SR itself, durably. Idempotent.
    ///
    /// # Errors
    /// [`Error::Unsupported`] by a driver that stores none; those of [`Sr::stat`].
    fn name_sr(&self, _names: &Names) -> Result<()> {
        Err(Error::Unsupported { op: "naming an SR", why: "an SR of this type stores no names of its own".to_owned() })
    }

    /// The logs of changed blocks of its disks. `None`: the driver keeps none, and tracks nothing.
    ///
    /// # Errors
    /// Those of [`Sr::stat`].
    fn change_logs(&self) -> Result<Option<Box<dyn ChangeLogs + '_>>> {
        Ok(None)
    }

    /// Whether other hosts have the SR as well, where this one's kernel can't see what they have attached.
    fn is_shared(&self) -> bool;

    /// The kind of content: `raw` for disks of any format, `iso` for CDs (later SMAPI documents).
    fn content_type(&self) -> &'static str;
}
