//! The trees of an LVHD SR: see [`Forest`].

use std::rc::Rc;
use std::time::Instant;

use super::fork::child_format;
use super::group::possible_parent;
use super::live::Live;
use super::place::LvhdPlace;
use super::sizes;
use crate::error::{Error, Result};
use crate::image::volume::VolumeName;
use crate::sys::blockdev;
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::lvm;
use crate::types::{Format, Mode, Params, SrUuid, VdiUuid};
use crate::vdi::format::ParentImage;
use crate::vdi::place::Opened;
use crate::vdi::tree::forest::{Ending, Forest, Fork, Kept};
use crate::vdi::tree::nodes::Nodes;
use crate::vdi::tree::stop;
use crate::vdi::{Place, layout};

/// The trees of an [`Lvhd`](super::Lvhd).
pub struct LvhdForest<'a> {
    pub live: Rc<Live<'a>>,
}

/// The name by which children of a format call an image: a VHD names the device of its parent, a qcow2 the path of the volume.
pub fn called(vg: &str, volume: &str, child: Format) -> String {
    match child {
        Format::Qcow2 => lvm::node(vg, volume).display().to_string(),
        _ => lvm::dm_name(vg, volume),
    }
}

impl<'a> LvhdForest<'a> {
    fn found(&self, vdi: VdiUuid) -> Result<LvhdPlace<'a>> {
        self.live.now().refuse_double(vdi)?;
        LvhdPlace::of(self.live.clone(), vdi)
    }
}

impl Forest for LvhdForest<'_> {
    fn sr(&self) -> SrUuid {
        self.live.own().sr
    }

    fn deadline(&self) -> Instant {
        self.live.own().deadline.end()
    }

    fn lock(&self, deadline: Instant) -> Result<Lock> {
        self.live.lock_recovered("changing a tree", deadline)
    }

    fn collecting(&self, deadline: Instant) -> Result<Kept> {
        let sr = self.sr();
        self.live.now().rights().refuse("sr_collect", sr)?;
        // The Python collector holds these while it works, so only one process collects.
        let take = |name| {
            lock::take(&sr.to_string(), name, Kind::Exclusive, Instant::now()).map_err(|refused| {
                refused.or_timed_out(|who| Error::SrUnavailable { sr, why: format!("{who} collects it already") })
            })
        };
        // What a killed collector left is ended while none is at work.
        drop(self.lock(deadline)?);
        let alone = take(stop::ACTIVE)?;
        let running = take(stop::RUNNING)?;
        Ok(Kept::by([running, alone]))
    }

    fn nodes(&self) -> Result<Nodes> {
        self.live.reread();
        let group = self.live.now();
        // The recovery has ended all changes that it could.
        Ok(group.trees().with_foreign_work(self.live.is_begun()))
    }

    fn place(&self, vdi: VdiUuid) -> Result<Box<dyn Place + '_>> {
        Ok(Box::new(self.found(vdi)?))
    }

    fn parent_image(&self, vdi: VdiUuid, mode: Mode) -> Result<ParentImage<'_>> {
        let place = self.found(vdi)?;
        let group = self.live.now();
        let volume = group.volume(vdi)?;
        let trees = group.trees();
        let mut children = trees.children(vdi).filter_map(|child| trees.get(child));
        let child = match volume.format {
            Format::Raw => children.next().map_or(child_format(Format::Raw), |child| child.format),
            format => format,
        };
        let name = called(&group.vg().name, &volume.lv.name, child);
        let image = match mode {
            Mode::ReadOnly => Opened::of(group.image(volume)?),
            Mode::ReadWrite => {
                group.rights().refuse("writing to a base", self.sr())?;
                let device = lvm::kernel_device(&group.vg().name, &volume.lv.name);
                let storage = group.storage_for_writing(&volume.lv)?;
                Opened::until(storage, move || device.map_or(Ok(()), |device| blockdev::forget_cached(&device)))
            }
        };
        Ok(ParentImage { name, format: place.format(), image })
    }

    fn named(&self, name: &str, child: Format) -> Option<VdiUuid> {
        possible_parent(name, child)
    }

    /// The name of the volume may have changed since.
    fn is_called(&self, parent: &ParentImage, name: &str) -> bool {
        VolumeName::of_path(name).is_some_and(|said| said.format == parent.format)
    }

    /// On this host. Other hosts are its agent's to know.
    fn alone(&self, vdis: &[VdiUuid], _vdi: VdiUuid) -> Result<Kept> {
        for vdi in vdis {
            self.live.refuse_begun(*vdi)?;
            self.found(*vdi)?.refuse_if_open()?;
        }
        Ok(Kept::by_nature())
    }

    fn hold(&self, _vdis: &[VdiUuid]) -> Result<Kept> {
        Ok(Kept::by_nature())
    }

    /// Other hosts may have the SR. They know nothing of locks of ours, so the group is looked at again after a read; see
    /// [`super::disk`].
    fn is_shared(&self) -> bool {
        false
    }

    fn fork(&self, fork: &Fork) -> Result<()> {
        self.make_base(fork)
    }

    fn spawn(&self, base: VdiUuid, dest: VdiUuid, params: &Params) -> Result<()> {
        self.make_child(base, dest, params)
    }

    fn replace(&self, vdi: VdiUuid, base: VdiUuid, _least: u64) -> Result<()> {
        self.go_back(vdi, base)
    }

    fn make_room_for(&self, vdi: VdiUuid, virtual_size: u64) -> Result<()> {
        let group = self.live.now();
        // A disk that is attached may be written to everywhere.
        if group.is_thin() && !group.is_counted(vdi)? {
            return Ok(());
        }
        let format = group.volume(vdi)?.format;
        let more = virtual_size.saturating_sub(layout(format).query(&group.image(group.volume(vdi)?)?)?.virtual_size);
        let wanted = self.live.wanted(vdi)?.saturating_add(more);
        let ending = self.live.inflate(vdi, wanted.max(sizes::full(format, virtual_size)))?;
        self.live.take(&ending)
    }

    fn has_fixed_places(&self) -> bool {
        true
    }

    fn make_room_to_merge(&self, vdi: VdiUuid, base: VdiUuid) -> Result<()> {
        self.make_room(vdi, base)
    }

    fn end(&self, nodes: &Nodes, endings: &[Ending]) -> Vec<Result<()>> {
        let end = |ending: &Ending| match ending.is_disk {
            true => self.take_place(ending.vdi, ending.base),
            false => self.give_children(nodes, ending.vdi, ending.base),
        };
        endings.iter().map(end).collect()
    }
}
