//! The disks of an SR: listed, found, made, taken in, removed. `super` tells the order of steps.

use std::cell::RefCell;

use super::fill::Fill;
use super::group::refuse_foreign;
use super::lost::Lost;
use super::place::{Group, LvmPlace};
use super::{Kind, LvmSr, POOL, RAW, UNFINISHED, tags};
use crate::error::{Error, Result};
use crate::image::disk::DiskWriter;
use crate::sys::copy::Progress;
use crate::sys::lvm::{self, Lv, Vg};
use crate::types::{Done, Format, NewVdi, SrInfo, State, VdiInfo, VdiUuid};
use crate::vdi::transfer::Incoming;
use crate::vdi::{self, Layout, Vdi, raw};

impl LvmSr {
    pub(super) fn list(&self) -> Result<SrInfo> {
        match self.kind(self.listed()?) {
            Kind::Own(vg) => self.list_of(&vg),
            Kind::Lvhd(theirs) => self.settled(theirs)?.scan(self.driver.sr_type),
        }
    }

    pub(super) fn list_of(&self, vg: &Vg) -> Result<SrInfo> {
        let mut infos = Vec::with_capacity(vg.lvs.len());
        let group = Group::of(vg);
        for (vdi, format, lv) in self.volumes(vg) {
            let info = LvmPlace::listed(self, &group, vdi, lv).info();
            infos.push(match refuse_foreign(vdi, format) {
                Ok(()) => info,
                Err(foreign) => VdiInfo { format, state: State::of(&foreign), ..info },
            });
        }
        infos.sort_unstable_by_key(|info| info.uuid);
        Ok(SrInfo { vdis: infos, ..self.summary(vg) })
    }

    /// Also of a group that misses a device, and of the images of other storage managers.
    pub(super) fn list_at_rest(&self) -> Result<Vec<VdiInfo>> {
        let vg = match self.kind(self.group.look()?) {
            Kind::Own(vg) => vg,
            Kind::Lvhd(theirs) => {
                // Of an image that cannot be read, the size of its volume is all that is known.
                let size = |disk: &VdiInfo| {
                    disk.virtual_size.max(if disk.state.is_healthy() { 0 } else { disk.physical_utilisation })
                };
                return Ok(theirs
                    .disks()?
                    .into_iter()
                    .map(|disk| VdiInfo { virtual_size: size(&disk), ..disk })
                    .collect());
            }
        };
        let group = Group::of(&vg);
        let mut disks: Vec<VdiInfo> =
            self.volumes(&vg).map(|(vdi, _, lv)| LvmPlace::listed(self, &group, vdi, lv).info()).collect();
        disks.sort_unstable_by_key(|disk| disk.uuid);
        Ok(disks)
    }

    pub(super) fn find(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        let found = self.group.look().and_then(|vg| {
            let vg = match self.kind(vg) {
                Kind::Own(vg) => vg,
                Kind::Lvhd(theirs) => return theirs.vdi(vdi),
            };
            let found = self.volumes(&vg).find(|(found, ..)| *found == vdi);
            let (_, format, lv) = found.ok_or_else(|| self.no_vdi(vdi, &vg))?;
            refuse_foreign(vdi, format)?;
            Ok(raw::open(LvmPlace::new(self, &vg, vdi, lv), None))
        });
        match found {
            Ok(disk) => Ok(disk),
            Err(foreign @ Error::Foreign { .. }) => Err(foreign),
            // Its group went away while it was attached: it can still be detached.
            Err(unseen) => match lvm::kernel_device(&self.group.name(), &format!("{RAW}{vdi}")) {
                Some(_) => Ok(raw::open(Lost { sr: self, vdi, why: unseen.to_string() }, None)),
                None => Err(unseen),
            },
        }
    }

    pub(super) fn make_disk(&self, new: &NewVdi) -> Result<VdiInfo> {
        let vg = match self.kind(self.group.whole()?) {
            Kind::Own(vg) => self.without_trim(vg)?,
            Kind::Lvhd(theirs) => return theirs.make_disk(new),
        };
        let (vg, layout) = self.refuse_new(new, vg)?;
        let size = self.checked_size(&vg, new.virtual_size, layout.largest())?;
        let thin = vg.lv(POOL).is_some();
        let lv = self.make_volume(&vg, new, RAW, size, (!thin).then_some(tags::ZERO))?;
        let place = LvmPlace::new(self, &vg, new.vdi, &lv);
        if !thin && self.zeroes_early(&vg) {
            place.zero_now().map_err(|cause| cause.undone(self.remove_unfinished(&vg, &lv.name)))?;
        }
        Ok(place.info())
    }

    /// The group that the new VDI may be made in, without what a killed call has left of it, and its format.
    pub(super) fn refuse_new(&self, new: &NewVdi, mut vg: Vg) -> Result<(Vg, &'static dyn Layout)> {
        let format = new.format.unwrap_or(self.driver.formats[0]);
        if !self.driver.formats.contains(&format) {
            let why = format!("{format} was asked for, and an SR on logical volumes has raw disks only");
            return Err(Error::Unsupported { op: "a disk of this format", why });
        }
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
    pub(super) fn make_volume(
        &self,
        vg: &Vg,
        new: &NewVdi,
        prefix: &str,
        size: u64,
        state: Option<&str>,
    ) -> Result<Lv> {
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
        Ok(Lv { name, size, tags, layout, created: new.params.created, ..Lv::default() })
    }

    pub(super) fn take_in(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        let vg = match self.kind(self.group.whole()?) {
            Kind::Own(vg) => self.without_trim(vg)?,
            Kind::Lvhd(theirs) => return theirs.take_in(new, incoming, progress),
        };
        let (vg, layout) = self.refuse_new(new, vg)?;
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

    /// The disk `vdi`, if a damaged tag keeps it from being served, and nothing uses it.
    pub(super) fn damaged(&self, vg: &Vg, vdi: VdiUuid) -> Result<Option<LvmPlace<'_>>> {
        let found = self.volumes(vg).find(|(found, format, _)| *found == vdi && *format == Format::Raw);
        let place = found.map(|(.., lv)| LvmPlace::new(self, vg, vdi, lv)).filter(LvmPlace::is_damaged);
        if place.is_some() {
            vdi::refuse_if_used(&*self.find(vdi)?)?;
        }
        Ok(place)
    }

    pub(super) fn remove_broken(&self, vdi: VdiUuid) -> Result<bool> {
        let vg = self.group.whole()?;
        self.refuse_lvhd("vdi_delete", &vg)?;
        match self.damaged(&vg, vdi)? {
            Some(place) => place.remove_damaged().map(|()| true),
            None => Ok(false),
        }
    }

    pub(super) fn forget(&self, vdi: VdiUuid) -> Result<Done> {
        let vg = match self.kind(self.group.look()?) {
            Kind::Own(vg) => vg,
            Kind::Lvhd(theirs) => return theirs.forget(vdi),
        };
        match vg.lv(&format!("{UNFINISHED}{vdi}")) {
            Some(lv) => self.remove_unfinished(&vg, &lv.name).map(|()| Done::Changed),
            None => self.group.flush(&vg).map(|()| Done::Already),
        }
    }
}
