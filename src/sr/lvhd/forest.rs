//! The trees of an LVHD SR: its images are found and read, and no tree is changed.

use std::rc::Rc;
use std::time::Instant;

use super::group::possible_parent;
use super::place::LvhdPlace;
use super::{Group, refused};
use crate::error::Result;
use crate::image::volume::VolumeName;
use crate::sys::lock::Lock;
use crate::types::{Format, Mode, Params, SrUuid, VdiUuid};
use crate::vdi::Place;
use crate::vdi::format::ParentImage;
use crate::vdi::place::Opened;
use crate::vdi::tree::forest::{Forest, Fork, Kept};
use crate::vdi::tree::nodes::Nodes;

/// The trees of an [`Lvhd`](super::Lvhd).
pub struct LvhdForest<'a> {
    pub group: Rc<Group<'a>>,
}

impl LvhdForest<'_> {
    fn refused<T>(&self, op: &'static str) -> Result<T> {
        Err(refused(op, self.sr()))
    }
}

impl Forest for LvhdForest<'_> {
    fn sr(&self) -> SrUuid {
        self.group.own().sr
    }

    fn deadline(&self) -> Instant {
        self.group.own().deadline.end()
    }

    fn lock(&self, _deadline: Instant) -> Result<Lock> {
        self.refused("changing a tree")
    }

    fn collecting(&self, _deadline: Instant) -> Result<Kept> {
        self.refused("sr_collect")
    }

    fn nodes(&self) -> Result<Nodes> {
        Ok(self.group.trees())
    }

    fn place(&self, vdi: VdiUuid) -> Result<Box<dyn Place + '_>> {
        self.group.refuse_double(vdi)?;
        Ok(Box::new(LvhdPlace::of(self.group.clone(), vdi)?))
    }

    fn parent_image(&self, vdi: VdiUuid, mode: Mode) -> Result<ParentImage<'_>> {
        if mode == Mode::ReadWrite {
            return self.refused("writing to a base");
        }
        self.group.refuse_double(vdi)?;
        let volume = self.group.volume(vdi)?;
        let image = Opened::of(self.group.image(volume)?);
        Ok(ParentImage { name: volume.lv.name.clone(), format: volume.format, image })
    }

    fn named(&self, name: &str, child: Format) -> Option<VdiUuid> {
        possible_parent(name, child)
    }

    /// A VHD names the device of its parent, a qcow2 the volume; and the name of the volume may have changed since.
    fn is_called(&self, parent: &ParentImage, name: &str) -> bool {
        VolumeName::of_path(name).is_some_and(|said| said.format == parent.format)
    }

    fn alone(&self, _vdis: &[VdiUuid], _vdi: VdiUuid) -> Result<Kept> {
        self.refused("changing a tree")
    }

    fn hold(&self, _vdis: &[VdiUuid]) -> Result<Kept> {
        Ok(Kept::by_nature())
    }

    /// Other hosts may have the SR. They know nothing of locks of ours, so the group is looked at again after a read; see
    /// [`super::disk`].
    fn is_shared(&self) -> bool {
        false
    }

    fn fork(&self, _fork: &Fork) -> Result<()> {
        self.refused("changing a tree")
    }

    fn spawn(&self, _base: VdiUuid, _dest: VdiUuid, _params: &Params) -> Result<()> {
        self.refused("vdi_clone")
    }

    fn replace(&self, _vdi: VdiUuid, _base: VdiUuid) -> Result<()> {
        self.refused("vdi_revert")
    }

    fn relink(&self, _nodes: &Nodes, _vdi: VdiUuid, _base: VdiUuid) -> Result<()> {
        self.refused("sr_collect")
    }

    fn collapse(&self, _vdi: VdiUuid, _base: VdiUuid) -> Result<()> {
        self.refused("sr_collect")
    }
}
