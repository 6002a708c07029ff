//! `LVMSR`: disks as logical volumes of a volume group that the SR has to itself. Groups of other storage managers (LVHD) are served by
//! [`lvhd`]; this module has those of raw volumes, which are SRs of type [`lvmraw`](mod@crate::sr::lvmraw) as well.
//!
//! | name | what |
//! |---|---|
//! | `VG_XenStorage-<sr>` | the volume group; its tags: `xcp.allocation=thin` or `=thick`; `xcp.slot=…` if it was made for a slot of a layout |
//! | `LV-<vdi>` | a raw disk; its [`tags`] say all that is known of it besides its size |
//! | `POOL` | of a thin SR: the pool that all its disks live in |
//! | `REV-<vdi>` | of a thin SR: the disk as its snapshot has it, which takes the place of `LV-<vdi>` |
//! | `NEW-<vdi>` | what `LV-<vdi>` is to become: extents to grow by that are being zeroed, or a disk on its way in |
//! | `<sr>_trim_lv` | a part of what is free, while it is discarded: see [`trim`](crate::sr::volume_group::trim) |
//!
//! LVM's metadata is replaced whole, by one atomic step, so one LVM command is the step that publishes.
//! `docs/lvm.md` gives the reasons. Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**: 1. `vgcreate` with the tags; 2. of a thin SR, the pool. After 1, a group tagged thin
//!   without a pool: there is no such SR; sr_create and sr_delete remove it first.
//! - **sr_delete**: 1. tag the group `xcp.deleting`: from here on there is no such SR; 2. `vgremove`;
//!   3. `pvremove`. After 1: sr_delete and sr_create finish. After 2: devices with an empty LVM label, which
//!   sr_create takes.
//! - **growing the SR**: 1. `pvresize` of each device that is larger than its physical volume; 2. of a thin SR, extend the pool by
//!   what is free. After 1 or in it: the same call again does the rest.
//! - **vdi_create, vdi_clone, vdi_snapshot**: one `lvcreate`. **vdi_delete**: one `lvremove`. **vdi_lock,
//!   vdi_unlock**: one `lvchange`.
//! - **vdi_attach** of a new disk on a thick SR: 1. activate; 2. zero; 3. remove the tag `xcp.zero`. After 1 or 2: the
//!   next vdi_attach zeroes it again. Its path was never given to anybody.
//! - **vdi_resize**, growing a zeroed disk of a thick SR: 1. make `NEW-<vdi>` of the extents to add; 2. zero it; 3. remove
//!   it; 4. extend the disk by exactly these extents, or begin anew if another call took them. After 1 or 2:
//!   a `NEW-<vdi>`, which the next call for this VDI and sr_attach remove.
//! - **vdi_resize**, cutting a thin disk: 1. tag it `xcp.cut=<bytes>`; 2. activate; 3. discard what is cut off; 4. deactivate;
//!   5. reduce; 6. remove the tag. After any: the next call that needs the VDI goes on from there.
//! - **vdi_import**: 1. make `NEW-<vdi>`; 2. fill it, with zeroes where nothing comes; 3. rename it. After 1 or 2: a
//!   `NEW-<vdi>`, as above.
//! - **vdi_revert** of a thin disk: 1. make `REV-<vdi>` of the snapshot; 2. remove `LV-<vdi>`; 3. rename. After 1: the next call
//!   for this VDI and sr_attach remove `REV-<vdi>`. After 2: `REV-<vdi>` is the VDI, and these calls rename it.
//! - **sr_trim**, for each part of what is free: 1. make `<sr>_trim_lv`; 2. discard it; 3. remove it. After 1 or 2: the volume, which
//!   the next call that makes or grows a VDI, sr_trim and sr_attach remove.
//! - **vdi_export** of a disk that is not attached: 1. tag it `xcp.lent`; 2. activate; 3. read; 4. deactivate; 5. remove the
//!   tag. After any: the next call that needs the VDI does 4 and 5.
//!
//! [`volume_group`](crate::sr::volume_group) has what is done to the group as a whole; it flushes what LVM leaves in the disks' caches.
//!
//! | file | content |
//! |---|---|
//! | [`life`] | how an SR is made, attached, detached and deleted |
//! | [`group`] | a report of the group: which volumes are VDIs, what a change refuses, what it cleans up first |
//! | [`seen`] | SRs that a person or an agent looks for; which groups are ours |
//! | [`space`] | how full a thin pool is, how large a disk may be |
//! | [`disks`], [`fill`] | disks found, made, taken in and removed; a volume that is filled |
//! | [`place`], [`contents`], [`lost`] | one disk: what formats do with it; zeroing, cutting and growing; without its group |
//! | [`revert`] | a thin disk goes back to a snapshot |
//! | [`delta`] | what differs between two thin disks |
//! | [`mod@check`] | what is wrong with the group and its volumes, and what of it is mended |
//! | [`tags`] | what is stored beside a disk |

mod check;
mod contents;
mod delta;
mod disks;
mod fill;
mod group;
mod life;
mod lost;
mod place;
mod revert;
mod seen;
mod space;
pub mod tags;

pub use seen::probe;
pub(super) use seen::{discover, is_own};

use crate::context::{Context, Deadline};
use crate::error::{Error, Result};
use crate::image::volume::GROUP;
use crate::sr::Trim;
use crate::sr::driver::{About, Driver, Sr, Substrate, VolumeChange, VolumeOf, no_server, vdi_by_uuid};
use crate::sr::lvhd::{self, Lvhd};
use crate::sr::volume_group::{Naming, VolumeGroup};
use crate::sys::copy::Progress;
use crate::sys::lvm::{Unmapped, Vg};
use crate::types::{
    DeviceConfig, Done, Finding, Format, Names, NewSr, NewVdi, Overwrite, SmConfig, SpaceUse, SrInfo, SrUuid, VdiInfo,
    VdiUuid,
};
use crate::vdi::Vdi;
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::collect::CollectPlan;
use crate::vdi::tree::run::Collecting;

pub const DRIVER: Driver = Driver {
    sr_type: "lvm",
    executable: "LVMSR",
    description: "disks as logical volumes",
    dconf_form: "/dev/sdb,/dev/sdc",
    formats: &[Format::Raw],
    image_formats: &[Format::Vhd, Format::Raw, Format::Qcow2],
    parse_dconf: |dconf| Ok(DeviceConfig::from([("device", dconf)])),
    open: |sr, config, deadline| Ok(Box::new(LvmSr::new(&DRIVER, &NAMING, sr, config, deadline)?)),
    probe: |config, deadline| probe(&DRIVER, &NAMING, config, deadline),
    discover: || discover(&NAMING, |vg| !is_own(vg)),
    keeps_disks: false,
    about: About {
        name: "LVM volumes",
        capabilities: &[
            "SR_PROBE",
            "SR_TRIM",
            "SR_UPDATE",
            "VDI_CREATE",
            "VDI_DELETE",
            "VDI_ATTACH",
            "VDI_DETACH",
            "VDI_ACTIVATE",
            "VDI_DEACTIVATE",
            "VDI_UPDATE",
            "VDI_RESIZE",
            "VDI_RESIZE_ONLINE",
            "VDI_CLONE",
            "VDI_SNAPSHOT",
        ],
        configuration: &[DEVICE, ALLOCATION, SHARED_KEY, LVHD],
        vdi_at: vdi_by_uuid,
        keeps_names: true,
        keeps_keys: false,
        sm_config,
        substrate: Substrate::BlockDevices,
        images: lvhd::images,
        looks_at_every_disk: false,
        protocol_versions: no_server,
    },
};

/// The keys of device_config of each type whose groups lie on devices of the host.
pub const DEVICE: (&str, &str) = ("device", "block devices, separated by commas (required)");
pub const ALLOCATION: (&str, &str) =
    ("allocation", "thick (default) or thin: a pool that disks take space from as they are written to");
pub const SHARED_KEY: (&str, &str) = ("shared", "true at sr_create if several hosts see the devices; default false");
/// The key of device_config by which sr_create makes an LVHD group.
pub const LVHD: (&str, &str) = (
    "lvhd",
    "true at sr_create to make VHDs and qcow2 images in volumes, as XCP-ng and XenServer have them; default false, under xapi true",
);
pub(super) const NAMING: Naming =
    Naming { prefix: GROUP, is_half_made: life::is_half_made, unmapped: Unmapped::Tagged(OWN), refuses: |_| None };
const RAW: &str = "LV-";
const VHD: &str = "VHD-";
const UNFINISHED: &str = "NEW-";
const REVERTED: &str = "REV-";
const POOL: &str = "POOL";
const THIN: &str = "xcp.allocation=thin";
const THICK: &str = "xcp.allocation=thick";
/// The tags of the groups of raw volumes that this package makes: each has one.
const OWN: &[&str] = &[THIN, THICK];
/// Other hosts have the group as well.
const SHARED: &str = "xcp.shared";
const DATA_GONE: &str = "a device of its group is missing or failed";

/// Hundredths of a percent of a thin pool in use, from which new work is refused. A pool whose data is full
/// fails writes; one whose metadata is full needs a repair.
const POOL_DATA_FULL: u64 = 95_00;
const POOL_METADATA_FULL: u64 = 80_00;
/// A disk of a thin SR has so many times the size of the pool at most. A filesystem on a larger one writes more metadata
/// than the pool has.
const MOST_PROMISED: u64 = 1024;

/// How the VDIs of an SR get their space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allocation {
    Thick,
    Thin,
}

/// An SR in a volume group.
pub struct LvmSr {
    driver: &'static Driver,
    group: VolumeGroup,
    /// The allocation that device_config asks for. The group says which allocation the SR has.
    allocation: Option<Allocation>,
    /// Whether device_config says that the SR is shared. Its word counts at sr_create only; afterwards the group says
    /// it.
    marks_shared: bool,
    /// Whether sr_create makes an LVHD group. Afterwards the group says it.
    is_lvhd: bool,
    /// Another host is the one that may change the group.
    is_slave: bool,
    /// xapi says which host may.
    is_of_pool: bool,
    /// The part of this host in an LVHD SR.
    rights: lvhd::Rights,
}

impl LvmSr {
    /// An SR of one of the types whose disks are logical volumes. A driver without the key [`LVHD`] makes groups of raw volumes alone.
    ///
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::Invalid`] for the keys `device`, `allocation`, `shared` and `lvhd`.
    pub fn new(
        driver: &'static Driver,
        naming: &'static Naming,
        sr: SrUuid,
        config: &DeviceConfig,
        deadline: Deadline,
    ) -> Result<Self> {
        let bad = |key, value: &str, expected: &str| Error::Invalid {
            what: key,
            value: value.to_owned(),
            expected: expected.to_owned(),
        };
        let group = VolumeGroup::new(sr, config, naming, deadline)?;
        let allocation = match config.get("allocation").unwrap_or("") {
            "" => None,
            "thick" => Some(Allocation::Thick),
            "thin" => Some(Allocation::Thin),
            other => return Err(bad("allocation", other, "expected thick or thin")),
        };
        let marks_shared = match config.get("shared").unwrap_or("") {
            "" | "false" => false,
            "true" => true,
            other => return Err(bad("shared", other, "expected true or false")),
        };
        // xapi's word, which it gives with every call.
        let said = config.get("SRmaster");
        let may_be_lvhd = driver.keys().any(|key| key == LVHD.0);
        let is_lvhd = match config.get("lvhd").unwrap_or("") {
            // What its agents call `lvm`.
            "" => may_be_lvhd && said.is_some(),
            "true" if may_be_lvhd => true,
            "true" => {
                let expected = format!(
                    "expected an SR of type {} (LVMSR) for VHDs and qcow2 images in volumes (LVHD); type {} has raw disks only",
                    DRIVER.sr_type, driver.sr_type
                );
                return Err(bad("lvhd", "true", &expected));
            }
            "false" => false,
            other => return Err(bad("lvhd", other, "expected true or false")),
        };
        let (is_slave, rights) = (said == Some("false"), lvhd::Rights::of(config));
        let is_of_pool = said.is_some();
        Ok(LvmSr { driver, group, allocation, marks_shared, is_lvhd, is_slave, is_of_pool, rights })
    }
}

impl Sr for LvmSr {
    fn create(&self, new: &NewSr) -> Result<()> {
        self.make(new, &Overwrite::default())
    }

    fn create_over(&self, new: &NewSr, over: &Overwrite) -> Result<()> {
        self.make(new, over)
    }

    fn check_create(&self, size: Option<u64>, over: &Overwrite) -> Result<()> {
        self.refuse_raw_of_xapi()?;
        self.group.check(size, over, life::room)
    }

    fn disks_at_rest(&self) -> Result<Vec<VdiInfo>> {
        self.list_at_rest()
    }

    fn delete(&self) -> Result<Done> {
        self.remove()
    }

    fn attach(&self) -> Result<Done> {
        self.make_available()
    }

    fn grow(&self) -> Result<Done> {
        self.use_all_of_devices()
    }

    fn trim(&self, so_far: Trim, progress: Progress) -> Result<Trim> {
        self.discard_free(so_far, progress)
    }

    fn detach(&self) -> Result<Done> {
        self.end_availability()
    }

    fn stat(&self) -> Result<SrInfo> {
        Ok(match self.kind(self.listed()?) {
            Kind::Own(vg) => self.summary(&vg),
            Kind::Lvhd(theirs) => self.settled(theirs)?.stat(self.driver.sr_type),
        })
    }

    fn scan(&self) -> Result<SrInfo> {
        self.list()
    }

    /// LVM does not tell which chunks of a pool are of one volume alone, so nothing exact is known of thin disks.
    fn space_use(&self, each: bool) -> Result<SpaceUse> {
        match self.kind(self.listed()?) {
            Kind::Own(vg) => {
                let thick = vg.lv(POOL).is_none();
                self.list_of(&vg).map(|sr| SpaceUse::of_disks(sr, each, thick))
            }
            Kind::Lvhd(theirs) => self.settled(theirs)?.space_use(self.driver.sr_type, each),
        }
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        self.find(vdi)
    }

    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        self.make_disk(new)
    }

    fn import_vdi(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        self.take_in(new, incoming, progress)
    }

    /// There are no tables to read in raw volumes: a thorough check of these is the same.
    fn check(&self, thorough: bool, repair: bool, _context: &Context) -> Result<Vec<Finding>> {
        self.check_volumes(thorough, repair)
    }

    fn can_delete_broken(&self, vdi: VdiUuid, _context: &Context) -> Result<bool> {
        let vg = self.group.whole()?;
        self.refuse_lvhd("vdi_delete", &vg)?;
        self.damaged(&vg, vdi).map(|place| place.is_some())
    }

    fn delete_broken(&self, vdi: VdiUuid, _context: &Context) -> Result<bool> {
        self.remove_broken(vdi)
    }

    /// Raw volumes are in no trees, so there is nothing to merge.
    fn collect(&self, collecting: &Collecting, context: &Context) -> Result<Done> {
        match self.kind(self.listed()?) {
            Kind::Own(_) => Ok(Done::Already),
            Kind::Lvhd(theirs) => theirs.collect(collecting, context),
        }
    }

    fn shorten(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        match self.kind(self.listed()?) {
            Kind::Own(_) => Ok(Done::Already),
            Kind::Lvhd(theirs) => theirs.shorten(vdi, context),
        }
    }

    fn plan_collect(&self, context: &Context) -> Result<CollectPlan> {
        match self.kind(self.listed()?) {
            Kind::Own(_) => Ok(CollectPlan::default()),
            Kind::Lvhd(theirs) => theirs.plan_collect(context),
        }
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        self.forget(vdi)
    }

    /// Where xapi gives the SR a master: then it also knows which hosts have a disk attached.
    fn is_shared(&self) -> bool {
        self.is_of_pool
    }

    fn volumes(&self, vdi: VdiUuid) -> Result<Option<Vec<VolumeOf>>> {
        match self.kind(self.group.look()?) {
            Kind::Own(_) => Ok(None),
            Kind::Lvhd(theirs) => theirs.volumes(vdi).map(Some),
        }
    }

    fn follow(&self, change: VolumeChange, volume: &str, vdi: Option<VdiUuid>) -> Result<()> {
        self.theirs("following a change of volumes")?.follow(change, volume, vdi)
    }

    fn fit(&self, vdi: VdiUuid, attached: bool) -> Result<Done> {
        self.theirs("room for a disk")?.fit(vdi, attached)
    }

    fn names_of_sr(&self) -> Result<Names> {
        Ok(self.stat()?.kept.map(|kept| kept.names).unwrap_or_default())
    }

    fn name_sr(&self, names: &Names) -> Result<()> {
        self.theirs("naming an SR")?.name(names)
    }

    fn content_type(&self) -> &'static str {
        "raw"
    }
}

/// The keys that the Python LVM driver keeps of a volume; XCP-ng 8.3, "Records and sm_config". `vhd-parent` is the parent of a
/// qcow2 too.
fn sm_config(vdi: &VdiInfo) -> SmConfig {
    let kind = if vdi.format == Format::Raw { "aio".to_owned() } else { vdi.format.to_string() };
    let parent = vdi.parent.map(|parent| parent.to_string());
    vec![("image-format", Some(vdi.format.to_string())), ("vdi_type", Some(kind)), ("vhd-parent", parent)]
}

/// The makers of a group.
enum Kind<'a> {
    /// This driver, or nobody who keeps more than raw volumes in it: they are served, and changed.
    Own(Vg),
    Lvhd(Lvhd<'a>),
}

impl LvmSr {
    /// Whose group a report shows: see [`lvhd::is_lvhd`].
    fn kind(&self, vg: Vg) -> Kind<'_> {
        match lvhd::is_lvhd(&vg, OWN) {
            true => Kind::Lvhd(Lvhd::of(lvhd::Group::read(&self.group, self.rights, vg))),
            false => Kind::Own(vg),
        }
    }

    fn settled<'a>(&'a self, theirs: Lvhd<'a>) -> Result<Lvhd<'a>> {
        theirs.settled(|| self.listed())
    }

    /// The LVHD SR that it is.
    fn theirs(&self, op: &'static str) -> Result<Lvhd<'_>> {
        match self.kind(self.group.look()?) {
            Kind::Lvhd(theirs) => Ok(theirs),
            Kind::Own(vg) => Err(Error::Unsupported { op, why: format!("{} is no LVHD group", vg.name) }),
        }
    }

    /// Refuses to change an LVHD SR.
    fn refuse_lvhd(&self, op: &'static str, vg: &Vg) -> Result<()> {
        if lvhd::is_lvhd(vg, OWN) { Err(lvhd::refused(op, self.group.sr)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::lvmraw;

    #[test]
    fn an_allocation_is_thick_or_thin() {
        let open = |words| {
            LvmSr::new(
                &DRIVER,
                &NAMING,
                SrUuid::random(),
                &DeviceConfig::from([("device", "/dev/sdb"), ("allocation", words)]),
                std::time::Instant::now().into(),
            )
        };
        assert_eq!(open("thin").unwrap().allocation, Some(Allocation::Thin));
        assert_eq!(open("").unwrap().allocation, None);
        assert!(open("fat").is_err());
    }

    #[test]
    fn a_disk_without_a_parent_has_no_key_of_one() {
        let of = |parent| sm_config(&VdiInfo { parent, ..VdiInfo::sample(VdiUuid::random()) });
        let base = VdiUuid::random();
        assert!(of(None).contains(&("vhd-parent", None)));
        assert!(of(Some(base)).contains(&("vhd-parent", Some(base.to_string()))));
    }

    #[test]
    fn xapi_gets_lvhd_unless_it_says_otherwise() {
        let makes = |driver, master: &str, lvhd: &str| {
            let mut keys = vec![("device", "/dev/sdb"), ("lvhd", lvhd)];
            keys.extend((!master.is_empty()).then_some(("SRmaster", master)));
            let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
            let config = DeviceConfig(keys.collect());
            LvmSr::new(driver, &NAMING, SrUuid::random(), &config, std::time::Instant::now().into())
                .map(|sr| sr.is_lvhd)
        };
        let makes_lvhd = |master: &str, lvhd: &str| makes(&DRIVER, master, lvhd);
        assert!(!makes_lvhd("", "").unwrap() && makes_lvhd("true", "").unwrap());
        assert!(makes_lvhd("", "true").unwrap() && !makes_lvhd("true", "false").unwrap());
        assert!(makes_lvhd("", "yes").is_err());
        let raw = |master: &str, lvhd: &str| makes(&lvmraw::DRIVER, master, lvhd);
        assert!(!raw("true", "").unwrap() && !raw("true", "false").unwrap() && !raw("", "").unwrap());
        assert!(raw("", "true").unwrap_err().to_string().contains("of type lvm "));
    }
}
