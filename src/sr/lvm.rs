//! `LVMSR`: disks as logical volumes of a volume group that the SR has to itself.
//!
//! | name | what |
//! |---|---|
//! | `VG_XenStorage-<sr>` | the volume group; its tag `xcp.allocation=thin` or `=thick` |
//! | `LV-<vdi>` | a raw disk; its [`tags`] say all that is known of it besides its size |
//! | `POOL` | of a thin SR: the pool that all its disks live in |
//! | `NEW-<vdi>` | what `LV-<vdi>` is to become: extents to grow by that are being zeroed, or a disk on its way in |
//!
//! LVM's metadata is replaced whole, by one atomic step, so one LVM command is the step that publishes.
//! `docs/lvm.md` gives the reasons. Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**: 1. `vgcreate` with the tags; 2. of a thin SR, the pool. After 1, a group tagged thin
//!   without a pool: there is no such SR; sr_create and sr_delete remove it first.
//! - **sr_delete**: 1. tag the group `xcp.deleting`: from here on there is no such SR; 2. `vgremove`;
//!   3. `pvremove`. After 1: sr_delete and sr_create finish. After 2: devices with an empty LVM label, which
//!   sr_create takes.
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
//! - **vdi_export** of a disk that is not attached: 1. tag it `xcp.lent`; 2. activate; 3. read; 4. deactivate; 5. remove the
//!   tag. After any: the next call that needs the VDI does 4 and 5.
//!
//! [`volume_group`] has what is done to the group as a whole; it flushes what LVM leaves in the disks' caches.

mod fill;
mod place;
pub mod tags;

use std::cell::RefCell;

use crate::context::{Context, Deadline};
use crate::error::{Error, Result, one_line};
use crate::image::disk::DiskWriter;
use crate::sr::driver::{About, Driver, Sr, Substrate, no_images, no_server, vdi_by_uuid};
use crate::sr::volume_group::{self, DELETING, Naming, VolumeGroup};
use crate::sys::copy::Progress;
use crate::sys::lvm::{self, Lv, Vg};
use crate::sys::{blockdev, syslog};
use crate::types::{
    DeviceConfig, Done, Format, NewVdi, Overwrite, PoolUse, Size, SrInfo, SrUuid, State, VdiInfo, VdiUuid,
};
use crate::vdi::transfer::Incoming;
use crate::vdi::{self, Layout, Vdi, raw};

use fill::Fill;
use place::{Group, LvmPlace};

pub const DRIVER: Driver = Driver {
    sr_type: "lvm",
    executable: "LVMSR",
    description: "disks as logical volumes",
    dconf_form: "/dev/sdb,/dev/sdc",
    formats: &[Format::Raw],
    parse_dconf: |dconf| Ok(DeviceConfig::from([("device", dconf)])),
    open: |sr, config, deadline| Ok(Box::new(LvmSr::new(sr, config, deadline)?)),
    probe,
    keeps_disks: false,
    about: About {
        name: "LVM volumes",
        capabilities: &[
            "SR_PROBE",
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
        ],
        configuration: &[
            ("device", "block devices, separated by commas (required)"),
            ("allocation", "thick (default) or thin: a pool that disks take space from as they are written to"),
            ("shared", "true at sr_create if several hosts see the devices; default false"),
        ],
        vdi_at: vdi_by_uuid,
        keeps_names: true,
        // The keys that the Python LVM driver keeps of a raw volume; XCP-ng 8.3, "Records and sm_config".
        sm_config: |vdi| vec![("image-format", Some(vdi.format.to_string())), ("vdi_type", Some("aio".to_owned()))],
        substrate: Substrate::BlockDevices,
        images: no_images,
        looks_at_every_disk: false,
        protocol_versions: no_server,
    },
};

const NAMING: Naming = Naming { prefix: "VG_XenStorage-", is_half_made };
const RAW: &str = "LV-";
const VHD: &str = "VHD-";
const UNFINISHED: &str = "NEW-";
const POOL: &str = "POOL";
const THIN: &str = "xcp.allocation=thin";
const THICK: &str = "xcp.allocation=thick";
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
    group: VolumeGroup,
    /// What device_config asks for; what the SR is, its group says.
    allocation: Option<Allocation>,
    /// What device_config says at sr_create; afterwards the group says it.
    is_shared: bool,
    /// Another host is the one that may change the group.
    is_slave: bool,
}

impl LvmSr {
    fn new(sr: SrUuid, config: &DeviceConfig, deadline: Deadline) -> Result<Self> {
        let bad = |key, value: &str, expected: &str| Error::Invalid {
            what: key,
            value: value.to_owned(),
            expected: expected.to_owned(),
        };
        let group = VolumeGroup::new(sr, config, &NAMING, deadline)?;
        let allocation = match config.get("allocation").unwrap_or("") {
            "" => None,
            "thick" => Some(Allocation::Thick),
            "thin" => Some(Allocation::Thin),
            other => return Err(bad("allocation", other, "expected thick or thin")),
        };
        let is_shared = match config.get("shared").unwrap_or("") {
            "" | "false" => false,
            "true" => true,
            other => return Err(bad("shared", other, "expected true or false")),
        };
        // xapi's word, which it gives with every call.
        let is_slave = config.get("SRmaster") == Some("false");
        Ok(LvmSr { group, allocation, is_shared, is_slave })
    }

    /// Says that no volume of the group is the VDI.
    fn no_vdi(&self, vdi: VdiUuid, vg: &Vg) -> Error {
        Error::NoVdi { vdi, sr: self.group.sr, looked: vg.name.clone() }
    }

    /// The VDIs of the group: which, and in which volume.
    fn volumes<'a>(&self, vg: &'a Vg) -> impl Iterator<Item = (VdiUuid, Format, &'a Lv)> {
        vg.lvs.iter().filter_map(|lv| vdi_of(&lv.name).map(|(vdi, format)| (vdi, format, lv)))
    }

    fn summary(&self, vg: &Vg) -> SrInfo {
        let mut vdis: Vec<VdiUuid> = self.volumes(vg).map(|(vdi, ..)| vdi).collect();
        vdis.sort_unstable();
        let virtual_allocation = self.volumes(vg).map(|(.., lv)| lv.size).sum();
        let pool = vg.lv(POOL).filter(|pool| pool.is_thin_pool());
        let pool_use = pool.and_then(pool_use);
        SrInfo {
            uuid: self.group.sr,
            vdi_uuids: vdis,
            physical_utilisation: match (pool, pool_use) {
                (None, _) => virtual_allocation,
                (Some(_), Some(used)) => used.data_used,
                (Some(pool), None) => pool.size.min(virtual_allocation),
            },
            virtual_allocation,
            size: pool.map_or(vg.size, |pool| pool.size),
            sr_type: DRIVER.sr_type.to_owned(),
            location: self.group.location(vg),
            free: match (pool, pool_use) {
                (None, _) => vg.free,
                (Some(_), Some(used)) => used.data_size - used.data_used,
                (Some(_), None) => 0,
            },
            pool: pool_use,
            vdis: Vec::new(),
        }
    }

    /// Refuses work that would fill a thin pool's last reserve; else says how many bytes there are before it. Activates the
    /// pool to know. `None`: there is no pool.
    fn room_in_pool(&self, vg: &Vg) -> Result<Option<u64>> {
        let Some(pool) = vg.lv(POOL).filter(|pool| pool.is_thin_pool()) else { return Ok(None) };
        let (data, metadata) = match (pool.data_used, pool.metadata_used) {
            (Some(data), Some(metadata)) => (data, metadata),
            _ => {
                lvm::activate(&vg.name, POOL)?;
                let vg = self.group.whole()?;
                let pool = vg.lv(POOL).ok_or_else(|| self.group.no_sr("its pool is gone".to_owned()))?;
                match (pool.data_used, pool.metadata_used) {
                    (Some(data), Some(metadata)) => (data, metadata),
                    _ => {
                        return Err(Error::SrUnavailable {
                            sr: self.group.sr,
                            why: format!("the use of its thin pool is unknown (health {:?})", pool.health),
                        });
                    }
                }
            }
        };
        if data >= POOL_DATA_FULL || metadata >= POOL_METADATA_FULL {
            let percent = |n: u64| format!("{}.{:02} %", n / 100, n % 100);
            return Err(Error::PoolFull {
                sr: self.group.sr,
                used: format!("{} of its data and {} of its metadata are in use", percent(data), percent(metadata)),
            });
        }
        Ok(Some((u128::from(pool.size) * u128::from(POOL_DATA_FULL - data) / 10_000) as u64))
    }

    fn make(&self, size: Option<u64>, over: &Overwrite) -> Result<()> {
        let thin = self.allocation == Some(Allocation::Thin);
        let mut tags = vec![if thin { THIN } else { THICK }];
        tags.extend(self.is_shared.then_some(SHARED));
        self.group.make(size, over, &tags, |devices| devices.iter().sum())?;
        if thin {
            let options =
                ["-y", "--type", "thin-pool", "-n", POOL, "-l", "100%FREE", "--poolmetadataspare", "y", "-Zy"];
            lvm::change("lvcreate", &options, &[&self.group.name()]).map_err(|cause| self.group.unmake(cause))?;
        }
        self.group.flush_devices()
    }

    /// The group that the new VDI may be made in, without what a killed call has left of it, and its format.
    fn refuse_new(&self, new: &NewVdi) -> Result<(Vg, &'static dyn Layout)> {
        let format = new.format.unwrap_or(DRIVER.formats[0]);
        if !DRIVER.formats.contains(&format) {
            let why = format!("{format} was asked for, and an SR on logical volumes has raw disks only");
            return Err(Error::Unsupported { op: "a disk of this format", why });
        }
        let mut vg = self.group.whole()?;
        self.refuse_foreign_sr(&vg)?;
        self.resume(&vg, vg.lv(POOL))?;
        if self.volumes(&vg).any(|(vdi, ..)| vdi == new.vdi) {
            self.group.flush(&vg)?;
            return Err(Error::VdiExists { vdi: new.vdi, sr: self.group.sr });
        }
        let left = format!("{UNFINISHED}{}", new.vdi);
        if vg.lv(&left).is_some() {
            self.remove_unfinished(&vg, &left)?;
            vg = self.group.whole()?;
        }
        Ok((vg, vdi::layout(format)))
    }

    /// A volume for a new VDI, inactive.
    fn make_volume(&self, vg: &Vg, new: &NewVdi, prefix: &str, size: u64, state: Option<&str>) -> Result<Lv> {
        let thin = vg.lv(POOL).is_some();
        let name = format!("{prefix}{}", new.vdi);
        let mut options: Vec<String> = ["-y", "-an", "-ky", "-n", &name].map(str::to_owned).to_vec();
        if thin {
            self.room_in_pool(vg)?;
            options.extend(["-V", &format!("{size}b"), "--thinpool", POOL].map(str::to_owned));
        } else {
            if size > vg.free {
                return Err(Error::NoSpace { sr: self.group.sr, free: vg.free, wanted: size });
            }
            options.extend(["-Zn", "-Wn", "-l", &(size / vg.extent_size).to_string()].map(str::to_owned));
        }
        let mut tags = tags::of_params(&new.params);
        tags.extend(state.map(str::to_owned));
        options.extend(tags.iter().flat_map(|tag| ["--addtag".to_owned(), tag.clone()]));
        self.group.change(vg, "lvcreate", &options, &[&vg.name]).map_err(|e| self.explain(e, Some(new.vdi), size))?;
        let layout = vec![if thin { "thin" } else { "linear" }.to_owned()];
        Ok(Lv { name, size, tags, layout, ..Lv::default() })
    }

    fn remove_unfinished(&self, vg: &Vg, name: &str) -> Result<()> {
        self.group.deactivate(vg, name)?;
        // vdi_resize gives a disk the extents that it zeroed in here; discarded, they might show something else again.
        self.group.changed(vg, || lvm::remove_kept(&vg.name, name))
    }

    /// Lets volumes go on that a killed LVM command left suspended, before anything opens or changes them. LVM's lock keeps
    /// the commands that are at work out of what a report shows.
    fn resume<'l>(&self, vg: &Vg, volumes: impl IntoIterator<Item = &'l Lv>) -> Result<()> {
        let stuck = volumes.into_iter().filter(|lv| lv.stuck);
        stuck.into_iter().try_for_each(|lv| lvm::refresh(&vg.name, &lv.name))
    }

    /// Refuses a disk that is larger than its group can hold, or than its pool may promise. The size in whole extents.
    fn checked_size(&self, vg: &Vg, bytes: u64, largest: u64) -> Result<u64> {
        let size = checked_size(bytes, vg.extent_size, largest)?;
        match vg.lv(POOL).filter(|pool| pool.is_thin_pool()) {
            Some(pool) if size > pool.size.saturating_mul(MOST_PROMISED) => Err(Error::TooBig {
                what: "a disk",
                bytes: size,
                limit: format!(
                    "the thin pool of SR {} has {}, and a disk may promise {MOST_PROMISED} times as much at most",
                    self.group.sr,
                    Size(pool.size)
                ),
            }),
            _ => Ok(size),
        }
    }

    /// The group, to be looked at: a device may be missing. Nothing may be changed then.
    fn listed(&self) -> Result<Vg> {
        let vg = self.group.look()?;
        self.group.refuse_duplicates(&vg)?;
        Ok(vg)
    }

    /// Refuses an SR that another storage manager made. A volume of another one in an SR of ours concerns nothing else.
    fn refuse_foreign_sr(&self, vg: &Vg) -> Result<()> {
        if vg.tags.iter().any(|tag| tag == THIN || tag == THICK) {
            return Ok(());
        }
        self.volumes(vg).try_for_each(|(vdi, format, _)| refuse_foreign(vdi, format))
    }

    /// The disk `vdi`, if a damaged tag keeps it from being served, and nothing uses it.
    fn damaged(&self, vg: &Vg, vdi: VdiUuid) -> Result<Option<LvmPlace<'_>>> {
        let found = self.volumes(vg).find(|(found, format, _)| *found == vdi && *format == Format::Raw);
        let place = found.map(|(.., lv)| LvmPlace::new(self, vg, vdi, lv)).filter(LvmPlace::is_damaged);
        if place.is_some() {
            vdi::refuse_if_used(&*self.vdi(vdi)?)?;
        }
        Ok(place)
    }

    fn refuse_attached(&self, vg: &Vg) -> Result<()> {
        match self.volumes(vg).find(|(.., lv)| lv.active && !tags::read(&lv.tags).is_private()) {
            None => Ok(()),
            Some((vdi, _, lv)) => Err(Error::VdiInUse {
                vdi,
                sr: self.group.sr,
                holder: format!("this host, which has it attached as {}", lvm::node(&vg.name, &lv.name).display()),
            }),
        }
    }

    /// Removes what killed calls left on this host, where the caller has the SR to itself. What another host left it may
    /// be filling: whoever gives its extents to somebody else destroys his data.
    fn sweep(&self, vg: &Vg) -> Result<()> {
        let of_vdi = |lv: &&Lv| lv.name.strip_prefix(UNFINISHED).is_some_and(|u| u.parse::<VdiUuid>().is_ok());
        let left = vg.lvs.iter().filter(of_vdi).filter(|lv| !tags::is_elsewhere(&lv.tags));
        left.into_iter().try_for_each(|lv| self.remove_unfinished(vg, &lv.name))
    }

    /// A failed command's reason in the API's words, from what is there now: the VDI that it was to make, or the
    /// `wanted` bytes that are not there.
    fn explain(&self, failed: Error, vdi: Option<VdiUuid>, wanted: u64) -> Error {
        // What came after the command, as a flush, says what it is itself.
        let (Error::Tool { .. }, Ok(vg)) = (&failed, self.group.whole()) else { return failed };
        let pooled = vg.lv(POOL).is_some();
        match vdi {
            Some(vdi) if self.volumes(&vg).any(|(found, ..)| found == vdi) => {
                Error::VdiExists { vdi, sr: self.group.sr }
            }
            _ if !pooled && wanted > vg.free => Error::NoSpace { sr: self.group.sr, free: vg.free, wanted },
            _ => failed,
        }
    }

    /// Whether a new disk is zeroed at once. It is where that takes long, so that no vdi_attach waits, and where other hosts
    /// have the group: the end of zeroing changes the group, which a host that attaches a disk may not do.
    fn zeroes_early(&self, vg: &Vg) -> bool {
        vg.tags.iter().any(|tag| tag == SHARED) || !vg.pvs.iter().all(|pv| blockdev::zeroes_by_itself(&pv.name))
    }
}

impl Sr for LvmSr {
    fn create(&self, size: Option<u64>) -> Result<()> {
        self.make(size, &Overwrite::default())
    }

    fn create_over(&self, size: Option<u64>, over: &Overwrite) -> Result<()> {
        self.make(size, over)
    }

    /// Also of a group that misses a device, and of the images of other storage managers.
    fn disks_at_rest(&self) -> Result<Vec<VdiInfo>> {
        let vg = self.group.look()?;
        let group = Group::of(&vg);
        let mut disks: Vec<VdiInfo> =
            self.volumes(&vg).map(|(vdi, _, lv)| LvmPlace::listed(self, &group, vdi, lv).info()).collect();
        disks.sort_unstable_by_key(|disk| disk.uuid);
        Ok(disks)
    }

    fn delete(&self) -> Result<Done> {
        let Some(vg) = self.group.look_for_any()? else {
            return self.group.flush_devices().map(|()| Done::Already);
        };
        self.group.refuse_incomplete(&vg)?;
        if !vg.tags.iter().any(|t| t == DELETING) {
            self.refuse_attached(&vg)?;
            let group = Group::of(&vg);
            for (vdi, _, lv) in self.volumes(&vg) {
                vdi::refuse_if_locked(&LvmPlace::listed(self, &group, vdi, lv))?;
            }
            self.group.change(&vg, "vgchange", &["--addtag", DELETING], &[&vg.name])?;
        }
        self.group.remove(&vg)?;
        Ok(Done::Changed)
    }

    /// With a device missing, the disks that are whole are served, if there is one. Nothing is changed then.
    fn attach(&self) -> Result<Done> {
        let vg = self.listed()?;
        let incomplete = self.group.refuse_incomplete(&vg).err();
        self.refuse_foreign_sr(&vg)?;
        let pool = vg.lv(POOL).filter(|pool| pool.is_thin_pool());
        if pool.is_none() && vg.tags.iter().any(|t| t == THIN) {
            let why = format!("it was created thin, and its group {} has no pool {POOL}", vg.name);
            return Err(Error::SrUnavailable { sr: self.group.sr, why });
        }
        match (self.allocation, pool) {
            (Some(Allocation::Thin), None) | (Some(Allocation::Thick), Some(_)) => {
                let is = if pool.is_some() { "thin" } else { "thick" };
                return Err(Error::Invalid {
                    what: "allocation",
                    value: if pool.is_some() { "thick" } else { "thin" }.to_owned(),
                    expected: format!("SR {} was created {is}", self.group.sr),
                });
            }
            _ => {}
        }
        self.group.note_strangers(&vg);
        match incomplete {
            None => {
                self.resume(&vg, &vg.lvs)?;
                self.sweep(&vg)?;
            }
            Some(missing) if pool.into_iter().chain(self.volumes(&vg).map(|(.., lv)| lv)).all(is_gone) => {
                return Err(missing);
            }
            Some(missing) => {
                syslog::write(&format!("SR {}: only some of its VDIs: {}", self.group.sr, one_line(&missing)))
            }
        }
        match pool {
            Some(pool) if !pool.active => lvm::activate(&vg.name, POOL).map(|()| Done::Changed),
            _ => Ok(Done::Already),
        }
    }

    fn detach(&self) -> Result<Done> {
        let vg = match self.group.look() {
            Ok(vg) => vg,
            Err(unseen) => return self.detach_unseen(unseen),
        };
        self.resume(&vg, &vg.lvs)?;
        self.refuse_attached(&vg)?;
        let mut done = Done::Already;
        for lv in vg.lvs.iter().filter(|lv| lv.active) {
            self.group.deactivate(&vg, &lv.name)?;
            done = Done::Changed;
        }
        Ok(done)
    }

    fn stat(&self) -> Result<SrInfo> {
        self.listed().map(|vg| self.summary(&vg))
    }

    fn scan(&self) -> Result<SrInfo> {
        let vg = self.listed()?;
        self.refuse_foreign_sr(&vg)?;
        let mut infos = Vec::with_capacity(vg.lvs.len());
        let group = Group::of(&vg);
        for (vdi, format, lv) in self.volumes(&vg) {
            let info = LvmPlace::listed(self, &group, vdi, lv).info();
            infos.push(match refuse_foreign(vdi, format) {
                Ok(()) => info,
                Err(foreign) => VdiInfo { format, state: State::of(&foreign), ..info },
            });
        }
        infos.sort_unstable_by_key(|info| info.uuid);
        Ok(SrInfo { vdis: infos, ..self.summary(&vg) })
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        let found = self.group.look().and_then(|vg| {
            let found = self.volumes(&vg).find(|(found, ..)| *found == vdi);
            let (_, format, lv) = found.ok_or_else(|| self.no_vdi(vdi, &vg))?;
            refuse_foreign(vdi, format)?;
            Ok(LvmPlace::new(self, &vg, vdi, lv))
        });
        match found {
            Ok(place) => Ok(raw::open(place, None)),
            // Its group went away while it was attached: it can still be detached.
            Err(unseen) => match lvm::kernel_device(&self.group.name(), &format!("{RAW}{vdi}")) {
                Some(_) => Ok(raw::open(place::Lost { sr: self, vdi, why: unseen.to_string() }, None)),
                None => Err(unseen),
            },
        }
    }

    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        let (vg, layout) = self.refuse_new(new)?;
        let size = self.checked_size(&vg, new.virtual_size, layout.largest())?;
        let thin = vg.lv(POOL).is_some();
        let lv = self.make_volume(&vg, new, RAW, size, (!thin).then_some(tags::ZERO))?;
        let place = LvmPlace::new(self, &vg, new.vdi, &lv);
        if !thin && self.zeroes_early(&vg) {
            place.zero_now().map_err(|cause| cause.undone(self.remove_unfinished(&vg, &lv.name)))?;
        }
        Ok(place.info())
    }

    fn import_vdi(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        let (vg, layout) = self.refuse_new(new)?;
        let made = RefCell::new(None);
        let mut make = |size: u64| -> Result<Box<dyn DiskWriter + '_>> {
            let size = self.checked_size(&vg, size.max(new.virtual_size), layout.largest())?;
            let lv = self.make_volume(&vg, new, UNFINISHED, size, Some(&tags::of_maker()))?;
            Ok(Box::new(Fill::begin(self, &vg, &made.borrow_mut().insert(lv).name, size)?))
        };
        let no_files = || {
            Err(Error::Unsupported {
                op: "vdi_import of qcow2, or a fixed VHD, from a pipe",
                why: "it has to be put down before it can be read, and this SR keeps no files: give the file's name"
                    .to_owned(),
            })
        };
        let filled = incoming.fill(&mut make, &no_files, progress);
        let Some(unfinished) = made.take() else {
            return Err(filled.expect_err("a disk that came has been put somewhere"));
        };
        let name = format!("{RAW}{}", new.vdi);
        let published = filled
            .and_then(|()| self.group.deactivate(&vg, &unfinished.name))
            .and_then(|()| {
                let unfinished = format!("{}/{}", vg.name, unfinished.name);
                self.group.change(&vg, "lvchange", &["--deltag", &tags::of_maker()], &[&unfinished])
            })
            .and_then(|()| self.group.change::<&str>(&vg, "lvrename", &[], &[&vg.name, &unfinished.name, &name]));
        match published {
            Ok(()) => Ok(LvmPlace::new(self, &vg, new.vdi, &Lv { name, ..unfinished }).info()),
            Err(cause) => Err(cause.undone(self.remove_unfinished(&vg, &unfinished.name))),
        }
    }

    fn can_delete_broken(&self, vdi: VdiUuid, _context: &Context) -> Result<bool> {
        self.damaged(&self.group.whole()?, vdi).map(|place| place.is_some())
    }

    fn delete_broken(&self, vdi: VdiUuid, _context: &Context) -> Result<bool> {
        match self.damaged(&self.group.whole()?, vdi)? {
            Some(place) => place.remove_damaged().map(|()| true),
            None => Ok(false),
        }
    }

    /// An SR on logical volumes keeps no trees of images, so there is nothing to merge.
    fn collect(&self, _context: &Context) -> Result<Done> {
        self.listed().map(|_| Done::Already)
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        let vg = self.group.look()?;
        match vg.lv(&format!("{UNFINISHED}{vdi}")) {
            Some(lv) => self.remove_unfinished(&vg, &lv.name).map(|()| Done::Changed),
            None => self.group.flush(&vg).map(|()| Done::Already),
        }
    }

    /// `false` also for a group with the tag `xcp.shared`: what asks this wants to snapshot a disk that another host may have
    /// attached. A thick SR, the only one that hosts can share, has no snapshots.
    fn is_shared(&self) -> bool {
        false
    }

    fn content_type(&self) -> &'static str {
        "raw"
    }
}

impl LvmSr {
    /// Ends what is left of an SR whose devices went away while it was attached.
    fn detach_unseen(&self, unseen: Error) -> Result<Done> {
        let group = self.group.name();
        let names = lvm::kernel_names(&group);
        if names.is_empty() {
            // Nothing of it is here, whatever the reason.
            return Ok(Done::Already);
        }
        let pool: Vec<String> = ["", "-tpool", "_tdata", "_tmeta"]
            .iter()
            .map(|end| format!("{}{end}", lvm::dm_name(&group, POOL)))
            .collect();
        if names.iter().any(|name| !pool.contains(name)) {
            return Err(Error::SrUnavailable {
                sr: self.group.sr,
                why: format!("{unseen}; {} of its volumes are active: vdi_detach them first", names.len()),
            });
        }
        for name in pool.iter().filter(|name| names.contains(name)) {
            lvm::remove_device(name)?;
        }
        Ok(Done::Changed)
    }
}

/// A group that was to be thin and has no pool, and no disk that could have lost it.
fn is_half_made(vg: &Vg) -> bool {
    vg.tags.iter().any(|t| t == THIN) && vg.lv(POOL).is_none() && !vg.lvs.iter().any(|lv| vdi_of(&lv.name).is_some())
}

/// Which VDI a volume is, by its name.
fn vdi_of(name: &str) -> Option<(VdiUuid, Format)> {
    let (uuid, format) =
        name.strip_prefix(RAW).map(|u| (u, Format::Raw)).or_else(|| Some((name.strip_prefix(VHD)?, Format::Vhd)))?;
    Some((uuid.parse().ok()?, format))
}

/// Whether some of its extents are on a device that is missing.
fn is_gone(lv: &Lv) -> bool {
    lv.health == "partial"
}

/// Other storage managers keep VHD images in volumes; a driver that took them for raw disks would destroy them.
fn refuse_foreign(vdi: VdiUuid, format: Format) -> Result<()> {
    match format {
        Format::Raw => Ok(()),
        _ => Err(Error::Foreign {
            why: format!("VDI {vdi} is a {format} image in a volume (LVHD); this driver serves raw volumes"),
        }),
    }
}

fn pool_use(pool: &Lv) -> Option<PoolUse> {
    let part = |size: u64, hundredths: u64| (u128::from(size) * u128::from(hundredths) / 10_000) as u64;
    Some(PoolUse {
        data_size: pool.size,
        data_used: part(pool.size, pool.data_used?),
        metadata_size: pool.metadata_size,
        metadata_used: part(pool.metadata_size, pool.metadata_used?),
    })
}

/// `bytes` rounded up to extents, if a volume can have so many.
fn checked_size(bytes: u64, extent: u64, largest: u64) -> Result<u64> {
    let most = largest.min(extent.saturating_mul(lvm::MOST_EXTENTS));
    match bytes.checked_next_multiple_of(extent) {
        Some(size) if size <= most => Ok(size),
        _ => Err(Error::TooBig {
            what: "a disk",
            bytes,
            limit: format!("a volume of this group has {} at most", Size(most)),
        }),
    }
}

/// Which SRs lie on the devices.
fn probe(config: &DeviceConfig, deadline: Deadline) -> Result<Vec<SrInfo>> {
    volume_group::probe(config, &NAMING, deadline, |group, vg| {
        Ok(LvmSr { group, allocation: None, is_shared: false, is_slave: false }.summary(vg))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::volume_group::EXTENT;

    #[test]
    fn an_allocation_is_thick_or_thin() {
        let open = |words| {
            LvmSr::new(
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
    fn sizes_are_whole_extents() {
        let largest = i64::MAX as u64;
        assert_eq!(checked_size(1, EXTENT, largest).unwrap(), EXTENT);
        assert_eq!(checked_size(EXTENT, EXTENT, largest).unwrap(), EXTENT);
        assert_eq!(checked_size(EXTENT + 1, EXTENT, largest).unwrap(), 2 * EXTENT);
        assert!(matches!(checked_size(largest, EXTENT, largest), Err(Error::TooBig { .. })));
        assert!(matches!(checked_size(u64::MAX, EXTENT, largest), Err(Error::TooBig { .. })));
    }

    #[test]
    fn a_volumes_name_says_which_vdi_it_is() {
        let vdi = "98de866e-b035-4b1a-a571-613bff542b89";
        assert_eq!(vdi_of(&format!("LV-{vdi}")), Some((vdi.parse().unwrap(), Format::Raw)));
        assert_eq!(vdi_of(&format!("VHD-{vdi}")), Some((vdi.parse().unwrap(), Format::Vhd)));
        for other in ["POOL", "MGT", "LV-", "LV-x", &format!("NEW-{vdi}"), &format!("OLD_LV-{vdi}")] {
            assert_eq!(vdi_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_pools_use_is_given_in_bytes() {
        let pool =
            Lv { size: 1000, data_used: Some(428), metadata_used: Some(10_000), metadata_size: 8, ..Lv::default() };
        let used = pool_use(&pool).unwrap();
        assert_eq!((used.data_used, used.metadata_used), (42, 8));
        assert_eq!(pool_use(&Lv { data_used: None, ..pool }), None);
    }
}
