//! Copy-on-write disks: leaves of the trees of images in one SR, the same for every format that has parents.
//!
//! A VDI is a leaf. To clone or snapshot it, its image becomes a hidden base that is never written again, and
//! two empty children take its place: one under the VDI's own name, one under the new VDI's. So both cost the
//! same whatever the disk holds. A base that lost its last child is garbage and goes with it. A base with one child is
//! merged with it by sr_collect, see [`mod@crate::vdi::tree::merge`].
//!
//! The SR decides in which order a change is written, see [`Forest::fork`]. While the tree is changed, its lock is
//! held; the server of an attached disk has its image closed and lets I/O wait.

use std::path::PathBuf;

use crate::context::Context;
use crate::datapath;
use crate::error::{Error, Result, ended};
use crate::image::Reading;
use crate::image::disk::Disk;
use crate::sys::lock::Lock;
use crate::types::{Done, Format, Mode, Params, ParamsChange, Size, VdiInfo, VdiUuid};
use crate::vdi::cbt;
use crate::vdi::disk::{
    SinceReader, SnapshotSaid, Vdi, describe, has_now, of_clone, of_snapshot, refuse_change_in_use,
    refuse_if_read_only, refuse_if_used, with_server,
};
use crate::vdi::format::Layout;
use crate::vdi::formats::layout;
use crate::vdi::place::{Place, refuse_device};
use crate::vdi::served;
use crate::vdi::tree::chain::{Ancestors, look, parent_of};
use crate::vdi::tree::changed::changed_since;
use crate::vdi::tree::collect::remove_unneeded;
use crate::vdi::tree::compose::compose;
use crate::vdi::tree::forest::{Forest, Kept};
use crate::vdi::tree::fork::fork;
use crate::vdi::tree::lend::lend;
use crate::vdi::tree::nodes::Node;
use crate::vdi::tree::reset;
use crate::vdi::tree::revert::revert;

/// The disk in a place whose format has parents, in the forest of its SR.
pub fn open<'a>(place: impl Place + 'a, forest: Box<dyn Forest + 'a>) -> Box<dyn Vdi + 'a> {
    Box::new(Cow { layout: layout(place.format()), place, forest })
}

struct Cow<'a, P> {
    place: P,
    forest: Box<dyn Forest + 'a>,
    layout: &'static dyn Layout,
}

impl<P: Place> Cow<'_, P> {
    fn node(&self) -> Result<Node> {
        look(&*self.forest, &self.place)
    }

    /// Hands the bytes of the disk over, whose images stay as they are meanwhile.
    fn read_lent(&self, reading: Reading, reader: &mut dyn FnMut(&dyn Disk) -> Result<()>) -> Result<()> {
        let image = self.place.open(Mode::ReadOnly)?;
        let ancestors = Ancestors::of(&*self.forest, self.place.path(), self.place.format());
        let disk = self.layout.disk(&image, reading, &|name| ancestors.find(name));
        let done = disk.and_then(|disk| reader(&*disk));
        ended(done, image.close())
    }

    /// Ends the tracking of a disk that is about to be attached and whose log cannot be trusted.
    fn refuse_torn(&self, mode: Mode) {
        if let Some(logs) = self.forest.change_logs().filter(|_| mode == Mode::ReadWrite) {
            cbt::refuse_torn(logs, &self.place, self.place.deadline());
        }
    }

    fn describe(&self, node: &Node) -> Result<VdiInfo> {
        // A log that cannot be read is one that a person, or an agent, may want to end.
        let logs = self.forest.change_logs();
        let cbt_enabled = logs.is_some_and(|logs| !logs.header(self.place.vdi()).is_ok_and(|log| log.is_none()));
        Ok(VdiInfo { cbt_enabled, ..describe(&self.place, node, self.place.usage()?.allocated, self.place.params()?) })
    }
}

impl<P: Place> Vdi for Cow<'_, P> {
    fn place(&self) -> &dyn Place {
        &self.place
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        served::device(&self.place)
    }

    /// Children are looked for only if the image is a base: a visible one has none, and to make sure would
    /// mean to read every image of the SR. sr_scan does.
    fn info(&self) -> Result<VdiInfo> {
        let node = self.node()?;
        let (brief, users) = (self.describe(&node)?, self.place.holders()?.users);
        let found = datapath::find(&self.place.path())?;
        let died = found.as_ref().is_some_and(datapath::Attached::is_dead);
        let info = brief.with_users(users).with_device(found.map(|attached| attached.device));
        let info = match info.hidden {
            true => info.with_children(self.forest.nodes()?.children(self.place.vdi()).collect()),
            false => info,
        };
        match parent_of(&*self.forest, &node)? {
            Err(unusable) if info.state.is_healthy() && !died => Ok(VdiInfo { state: unusable, ..info }),
            _ => Ok(with_server(info, died)),
        }
    }

    fn brief(&self) -> Result<VdiInfo> {
        self.describe(&self.node()?)
    }

    fn attach(&self, mode: Mode, lock: Option<&Lock>) -> Result<PathBuf> {
        self.refuse_torn(mode);
        served::attach(&self.place, mode, lock)
    }

    fn attach_for_guest(&self, mode: Mode, lock: Option<&Lock>, opens: &[Format]) -> Result<PathBuf> {
        self.refuse_torn(mode);
        // A logical volume has to be activated for whoever opens it.
        let by_tapdisk = !self.forest.has_fixed_places() && opens.contains(&self.place.format());
        served::attach_for_guest(&self.place, mode, lock, by_tapdisk)
    }

    fn is_read_only(&self) -> Result<bool> {
        Ok(self.place.params()?.read_only || self.node()?.hidden)
    }

    fn detach(&self) -> Result<Done> {
        served::detach(&self.place)
    }

    fn delete(&self, context: &Context) -> Result<()> {
        let _lock = self.forest.lock(context.deadline)?;
        refuse_if_used(self)?;
        let mut nodes = self.forest.nodes()?;
        nodes.refuse_if_parent(&self.place)?;
        // An image that cannot be read says why when it is looked at alone.
        let parent = match nodes.get(self.place.vdi()) {
            Some(node) if node.state.is_healthy() => node.parent,
            _ => self.node()?.parent,
        };
        let _alone = self.forest.alone(&[self.place.vdi()], self.place.vdi())?;
        self.place.remove()?;
        nodes.remove(self.place.vdi());
        if let Some(parent) = parent {
            remove_unneeded(&*self.forest, &mut nodes, parent);
        }
        Ok(())
    }

    fn clone_to(&self, dest: VdiUuid, changes: &ParamsChange, context: &Context) -> Result<VdiInfo> {
        refuse_if_used(self)?;
        let params = of_clone(self.place.params()?, changes);
        fork(&*self.forest, &self.place, dest, &params, false, context)
    }

    fn snapshot(&self, dest: VdiUuid, changes: &ParamsChange, context: &Context) -> Result<VdiInfo> {
        let params = of_snapshot(self.place.vdi(), self.place.params()?, changes);
        fork(&*self.forest, &self.place, dest, &params, false, context)
    }

    fn snapshot_to_receive(&self, dest: VdiUuid, context: &Context) -> Result<VdiInfo> {
        let params = of_snapshot(self.place.vdi(), self.place.params()?, &ParamsChange::default());
        fork(&*self.forest, &self.place, dest, &params, true, context)
    }

    fn may_change(&self, now: &Params, wanted: &Params) -> Result<Kept> {
        let is_of_disks_alone = (now.read_only, now.shareable) != (wanted.read_only, wanted.shareable);
        if is_of_disks_alone && self.node()?.hidden {
            return Err(Error::IsBase { op: "vdi_set of more than names", vdi: self.place.vdi() });
        }
        refuse_change_in_use(&self.place, || self.device(), now, wanted)?;
        match now.read_only == wanted.read_only {
            true => Ok(Kept::by_nature()),
            false => self.forest.alone(&[self.place.vdi()], self.place.vdi()),
        }
    }

    fn revert_to(&self, snapshot: VdiUuid, said: SnapshotSaid, context: &Context) -> Result<()> {
        refuse_if_read_only(self, "vdi_revert")?;
        refuse_if_used(self)?;
        revert(&*self.forest, &self.place, snapshot, said, context)
    }

    fn compose(&self, base: VdiUuid, context: &Context) -> Result<Done> {
        compose(&*self.forest, &self.place, base, context)
    }

    fn set_resets(&self, resets: bool, context: &Context) -> Result<Done> {
        match resets {
            true => reset::mark(&*self.forest, &self.place, context),
            false => reset::unmark(&*self.forest, &self.place, context),
        }
    }

    fn reset(&self, context: &Context) -> Result<Done> {
        refuse_device(&self.place, self.device()?)?;
        reset::reset(&*self.forest, &self.place, context)
    }

    fn unpause(&self, context: &Context) -> Result<()> {
        let _lock = self.forest.lock(context.deadline)?;
        context.others.as_ref().map_or(Ok(()), |others| others.resume())
    }

    fn read(&self, reading: Reading, reader: &mut dyn FnMut(&dyn Disk) -> Result<()>) -> Result<()> {
        let read_only = match (self.is_read_only(), reading) {
            (Err(Error::Damaged { .. }), Reading::Rescue) => false,
            (told, _) => told?,
        };
        let _lent = lend(&*self.forest, &self.place, read_only)?;
        self.read_lent(reading, reader)
    }

    fn read_since(&self, base: VdiUuid, reader: SinceReader) -> Result<()> {
        let _lent = lend(&*self.forest, &self.place, self.is_read_only()?)?;
        let changed = changed_since(&*self.forest, &self.place, base)?;
        self.read_lent(Reading::Whole, &mut |disk| reader(disk, changed.as_deref()))
    }

    fn resize(&self, size: u64, _allow_shrink: bool, context: &Context) -> Result<Done> {
        served::prepare(&self.place, context.deadline)?;
        // It may write the whole header, with the parent in it, which another host's sr_collect may be changing.
        let _lock = self.forest.lock(context.deadline)?;
        let node = self.node()?;
        if node.hidden {
            return Err(Error::IsBase { op: "vdi_resize", vdi: self.place.vdi() });
        }
        let size = self.layout.round(size)?;
        if size < node.virtual_size {
            return Err(Error::Unsupported {
                op: "making it smaller",
                why: format!(
                    "a {} disk can only grow; VDI {} has {}; make a smaller one, and copy what is in it by the tools of its guest",
                    self.layout.format(),
                    self.place.vdi(),
                    Size(node.virtual_size)
                ),
            });
        }
        if size == node.virtual_size {
            // Of a call that was killed in between.
            self.place.settle()?;
            served::follow_size(&self.place, context.deadline)?;
            return Ok(Done::Already);
        }
        served::refuse_to_grow(&self.place)?;
        let _pause = served::pause_here(&self.place)?;
        let _alone = self.forest.alone(&[self.place.vdi()], self.place.vdi())?;
        self.forest.make_room_for(self.place.vdi(), size)?;
        if let Some(logs) = self.forest.change_logs() {
            cbt::grow(logs, self.place.vdi(), size);
        }
        let resized = self.place.open(Mode::ReadWrite).and_then(|image| self.layout.resize(&image, size));
        resized.map_err(|cause| match self.node() {
            Ok(now) if now.virtual_size == size => cause.after(has_now(&self.place, size)),
            _ => cause,
        })?;
        Ok(Done::Changed)
    }
}
