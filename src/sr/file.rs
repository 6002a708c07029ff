//! `FileSR`: disks as files in a local directory. NFS and ext are mounts around this.
//!
//! In the SR's directory:
//!
//! | name | what |
//! |---|---|
//! | `.sm-sr` | the marker: which SR this is. No marker, no SR: a missing mount is never an empty SR |
//! | `.sm-sr-deleting` | the marker of an SR whose deletion was begun: there is no such SR any more |
//! | `<vdi>.raw`, `<vdi>.vhd`, `<vdi>.qcow2` | a disk |
//! | `<vdi>.cbtlog` | which blocks of a disk were written, see [`crate::vdi::cbt`]; only of a disk that is tracked. Stays when the data of a snapshot is destroyed |
//! | `<vdi>.params` | label, description, shareable, read-only; only when one is set |
//! | `<vdi>.lock/` | the persistent lock, a [`register`](crate::sys::register); only once it was locked |
//! | `.tmp-<uuid>` | a file in the making, see [`durable`](crate::sys::durable) |
//! | `.sm-names` | the names that an agent's user gave the SR; only once there are any |
//! | `.sm-tree` | which tree is being changed; only while it is |
//! | `.sm-tree-lock` | empty; locked by the host that changes a tree. Only where several hosts have the SR |
//! | `.sm-in-use` | empty; servers lock a byte for each image they have open. Only where several hosts have the SR |
//! | `.sm-collect-lock` | empty; locked by the host that collects. Only where several hosts have the SR |
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**: 1. make the directory; 2. publish the marker. After 1: an empty directory, which
//!   sr_create takes.
//! - **sr_delete**: 1. rename the marker (on a full disk there is no room for another): from here on there
//!   is no such SR; 2. remove disks and what is beside them; 3. remove the marker, then the directory if sr_create made
//!   it. After 1 or 2: sr_delete and sr_create finish the removal first.
//! - **vdi_create, vdi_clone, vdi_snapshot by copying**: 1. write the image, unnamed; 2. publish the params, if any is
//!   set, `flock`ed; 3. publish the image; 4. sync the directory once for both. After 2: params without an image and
//!   without a lock, which the next call for this VDI and sr_attach remove; not sr_scan, which holds no lock.
//! - **vdi_clone, vdi_snapshot in a tree** of the disk U with the new VDI D and the base B: 1. write both children,
//!   unnamed, and at the same time publish `.sm-tree`, which names U, B and D; 2. link U's image as B; 3. publish D;
//!   4. sync the directory once for both; 5. rename the other child over U's name: here it has happened, and D is
//!   there; 6. mark B hidden; 7. remove `.sm-tree`. Before 5, there is no B or it is one file with U, and whoever takes
//!   the tree's lock next removes D and B; after it, they differ, and B is hidden. Readers take the B of a `.sm-tree`
//!   for hidden.
//! - **sr_collect**, after the data of an only child C was written into its base B. For a C that is a base itself:
//!   (1) publish `.sm-tree`; (2) make B the parent of each child of C; (3) remove C. After a kill, the next call that
//!   takes the tree's lock goes on. For a C that is a disk: (1) publish `.sm-tree`; (2) mark B visible; (3) rename B
//!   over the name of C. After (2), B is hidden again; after (3), bases between the two are removed, then B's old name.
//!   Bases between C and B go with C, and the ends of merges in several trees have one record. The data of a disk in use is set
//!   aside as a clone does it, without a D.
//! - **vdi_delete**: 1. unlink the image, durably; 2. remove what was beside it. After 1: as above.
//!   Where several hosts have the SR, it first takes the persistent lock, so that of a vdi_delete and a
//!   vdi_lock on two hosts one is refused. A kill then leaves a disk that is locked by `vdi_delete on <host>`, which
//!   vdi_delete does not mind.
//! - **vdi_resize**: one `ftruncate`. **vdi_lock, vdi_unlock**: one `link`.
//!
//! | file | what |
//! |---|---|
//! | [`layout`], [`records`] | the names in the directory, and what stands in its small files |
//! | [`directory`] | which SR a directory is |
//! | [`life`], [`mod@probe`] | how an SR is made, found, repaired, deleted |
//! | [`listing`], [`mod@images`], [`scan`] | what is in it: the names; the images; both as an answer |
//! | [`mod@space`] | what each image takes, and what its deletion would free |
//! | [`check`] | what is wrong with it, and what of it is mended |
//! | [`disks`], [`files`], [`place`] | its disks: found and made; their files; what formats do with them |
//! | [`mod@cbt`] | the logs of changed blocks |
//! | [`forest`], [`ending`], [`unborn`], [`recover`] | its trees: how they change; how merges end; a change that is under way; one that was killed |

mod cbt;
mod check;
mod directory;
mod disks;
mod ending;
mod files;
mod forest;
mod images;
mod labels;
mod layout;
mod life;
mod listing;
mod place;
mod probe;
mod records;
mod recover;
mod scan;
mod space;
mod unborn;

use std::path::{Path, PathBuf};

pub use directory::FileSr;
use directory::without_links;
pub use layout::MARKER;
pub use probe::probe;
use scan::space_of;

use crate::context::Context;
use crate::error::Result;
use crate::image::name::ImageName;
use crate::sr::config::{self, PREFERRED_FORMATS};
use crate::sr::driver::{About, Driver, Sr, Substrate, no_server, vdi_by_uuid};
use crate::sys::copy::Progress;
use crate::types::{
    DeviceConfig, Done, Finding, Format, Names, NewSr, NewVdi, Overwrite, SmConfig, Space, SpaceUse, SrInfo, VdiInfo,
    VdiName, VdiUuid,
};
use crate::vdi::cbt::ChangeLogs;
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::collect::{CollectPlan, collect, plan};
use crate::vdi::tree::run::Collecting;
use crate::vdi::tree::shorten::shorten;
use crate::vdi::{Vdi, layout as layout_of};

pub const DRIVER: Driver = Driver {
    sr_type: "file",
    executable: "FileSR",
    description: "disks as files in a local directory",
    dconf_form: "/path/to/directory",
    formats: &[Format::Vhd, Format::Raw, Format::Qcow2],
    image_formats: &[Format::Vhd, Format::Raw, Format::Qcow2],
    parse_dconf: |dconf| Ok(DeviceConfig::from([("location", dconf)])),
    open: |sr, config, deadline| Ok(Box::new(FileSr::at(sr, location(config)?, deadline))),
    probe: |config, deadline| probe(&without_links(&location(config)?), "file", deadline),
    discover: || probe::discover("file"),
    keeps_disks: false,
    about: About {
        name: "Local directory",
        capabilities: CAPABILITIES,
        configuration: &[("location", "absolute path of a local directory (required)"), PREFERRED_FORMATS],
        vdi_at: vdi_by_uuid,
        keeps_names: true,
        keeps_keys: true,
        sm_config,
        substrate: Substrate::Directory,
        images,
        looks_at_every_disk: true,
        protocol_versions: no_server,
    },
};

/// The capabilities of every driver with disks as files.
const CAPABILITIES: &[&str] = ON_OWN_DEVICES.split_at(1).1;

/// Those of a driver with disks as files in a filesystem of the SR's own: the first is not one of other drivers.
pub const ON_OWN_DEVICES: &[&str] = &[
    "SR_TRIM",
    "SR_PROBE",
    "SR_UPDATE",
    "THIN_PROVISIONING",
    "VDI_CREATE",
    "VDI_DELETE",
    "VDI_ATTACH",
    "VDI_DETACH",
    "VDI_ACTIVATE",
    "VDI_DEACTIVATE",
    "VDI_CLONE",
    "VDI_SNAPSHOT",
    "VDI_REVERT",
    "VDI_RESIZE",
    "VDI_RESIZE_ONLINE",
    "VDI_INTRODUCE",
    "VDI_UPDATE",
    "VDI_GENERATE_CONFIG",
    "VDI_CONFIG_CBT",
    "VDI_RESET_ON_BOOT/2",
    "VDI_MIRROR",
];

/// The keys that the Python file drivers keep, so that a VDI looks the same to either; XCP-ng 8.3, "Records and
/// sm_config".
///
/// `vhd-parent` is the parent of a qcow2 image too: clients walk the chains of an SR by it.
pub fn sm_config(vdi: &VdiInfo) -> SmConfig {
    let mut keys = vec![
        ("image-format", Some(vdi.format.to_string())),
        ("vhd-parent", vdi.parent.map(|parent| parent.to_string())),
    ];
    keys.extend(layout_of(vdi.format).sm_config());
    keys
}

/// [`About::images`] of every driver with disks as files.
pub fn images(directory: &Path, vdi: VdiUuid) -> Vec<PathBuf> {
    let served = Format::ALL.into_iter().filter(|format| *format != Format::Raw);
    served.map(|format| ImageName::new(vdi, format).in_directory(directory)).collect()
}

fn location(config: &DeviceConfig) -> Result<PathBuf> {
    config::absolute_path("location", config.require("location")?)
}

impl Sr for FileSr {
    fn create(&self, new: &NewSr) -> Result<()> {
        self.make(new)
    }

    fn delete(&self) -> Result<Done> {
        self.destroy()
    }

    fn attach(&self) -> Result<Done> {
        self.begin()
    }

    fn adopt(&self) -> Result<Done> {
        self.take_over()
    }

    fn local_path(&self) -> Option<PathBuf> {
        Some(self.path().to_owned())
    }

    fn detach(&self) -> Result<Done> {
        self.end()
    }

    fn stat(&self) -> Result<SrInfo> {
        self.stat_now()
    }

    fn space(&self) -> Result<Space> {
        space_of(&*self.dir()?)
    }

    fn scan(&self) -> Result<SrInfo> {
        self.scan_all()
    }

    fn space_use(&self, each: bool) -> Result<SpaceUse> {
        self.space_by_image(each)
    }

    fn names(&self, word: &str) -> Result<Vec<VdiName>> {
        self.names_now(word)
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        self.find(vdi)
    }

    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        self.make_empty(new)
    }

    fn import_vdi(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        self.make_of(new, incoming, progress)
    }

    fn collect(&self, collecting: &Collecting, context: &Context) -> Result<Done> {
        collect(&self.forest(self.dir()?), collecting, context)
    }

    fn shorten(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        shorten(&self.forest(self.dir()?), vdi, context)
    }

    fn plan_collect(&self, context: &Context) -> Result<CollectPlan> {
        plan(&self.forest(self.dir()?), context)
    }

    fn check_create(&self, _size: Option<u64>, _over: &Overwrite) -> Result<()> {
        self.check_make()
    }

    fn check(&self, thorough: bool, repair: bool, context: &Context) -> Result<Vec<Finding>> {
        self.check_all(thorough, repair, context)
    }

    fn delete_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.remove_broken(vdi, context)
    }

    fn can_delete_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.can_remove_broken(vdi, context)
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        self.forget(vdi)
    }

    fn is_shared(&self) -> bool {
        self.shared
    }

    fn names_of_sr(&self) -> Result<Names> {
        self.own_names()
    }

    fn name_sr(&self, names: &Names) -> Result<()> {
        self.set_own_names(names)
    }

    fn change_logs(&self) -> Result<Option<Box<dyn ChangeLogs + '_>>> {
        Ok(Some(Box::new(self.forest(self.dir()?))))
    }

    fn content_type(&self) -> &'static str {
        "raw"
    }
}

#[cfg(test)]
mod tests;
