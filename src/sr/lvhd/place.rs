//! One disk of an LVHD SR: the volume with its image.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use super::forest::LvhdForest;
use super::journal::{Change, Journal};
use super::live::Live;
use super::refused;
use super::step::Step;
use crate::error::{Error, Result};
use crate::image::storage::Storage;
use crate::sr::lvm::tags;
use crate::sys::blockdev;
use crate::sys::copy::Progress;
use crate::sys::loopdev::{self, Backing, Detached};
use crate::sys::lvm::{self, Lv};
use crate::types::{Done, Format, Mode, Params, SrUuid, State, VdiInfo, VdiUuid};
use crate::vdi::tree::forest::{Forest as _, Fork};
use crate::vdi::tree::nodes::Node;
use crate::vdi::{Holders, Opened, Place, Usage, deleted, describe, in_use, layout};

/// The name of the device by which an image is served.
pub fn path(vg: &str, name: &str, format: Format) -> PathBuf {
    match format {
        Format::Vhd => Path::new("/dev/mapper").join(lvm::dm_name(vg, name)),
        _ => lvm::node(vg, name),
    }
}

/// The tags of a volume that say who has its persistent lock. They go where the image of the disk goes.
pub fn lock_tags(lv: &Lv) -> Vec<String> {
    lv.tags.iter().filter(|tag| tags::is_lock(tag)).cloned().collect()
}

/// The volume of a VDI.
pub struct LvhdPlace<'a> {
    live: Rc<Live<'a>>,
    vdi: VdiUuid,
    /// The name that the volume had when it was found.
    name: String,
    format: Format,
}

impl<'a> LvhdPlace<'a> {
    /// The place of a VDI.
    ///
    /// # Errors
    /// [`Error::NoVdi`].
    pub fn of(live: Rc<Live<'a>>, vdi: VdiUuid) -> Result<LvhdPlace<'a>> {
        let group = live.now();
        let volume = group.volume(vdi)?;
        let (name, format) = (volume.lv.name.clone(), volume.format);
        Ok(LvhdPlace { live, vdi, name, format })
    }

    /// Bytes of the volume; none of one that is gone.
    pub fn size(&self) -> u64 {
        self.live.now().volume(self.vdi).map_or(0, |volume| volume.lv.size)
    }

    fn refused<T>(&self, op: &'static str) -> Result<T> {
        Err(refused(op, self.sr()))
    }

    /// The name of the volume; the one that it had, if it is gone.
    fn name(&self) -> String {
        self.live.now().volume(self.vdi).map_or_else(|_| self.name.clone(), |volume| volume.lv.name.clone())
    }

    /// Refuses what no user of the volume on this host may see.
    ///
    /// # Errors
    /// [`Error::VdiInUse`].
    pub fn refuse_if_open(&self) -> Result<()> {
        let user = lvm::kernel_device(&self.live.now().vg().name, &self.name())
            .and_then(|device| blockdev::user(&device))
            .filter(|who| !blockdev::is_passing(Some(who)));
        user.map_or(Ok(()), |who| Err(in_use(self, format!("{who}, which has its volume {} open", self.name()))))
    }
}

impl Place for LvhdPlace<'_> {
    fn sr(&self) -> SrUuid {
        self.live.own().sr
    }

    fn vdi(&self) -> VdiUuid {
        self.vdi
    }

    fn format(&self) -> Format {
        self.format
    }

    fn deadline(&self) -> Instant {
        self.live.own().deadline.end()
    }

    /// A VHD names the device of its parent, so the server of a VHD opens it by that name as well.
    fn path(&self) -> PathBuf {
        path(&self.live.now().vg().name, &self.name(), self.format)
    }

    /// The bytes are read and written by the group's map, and nothing is activated. If the volume is active for somebody who reads
    /// it, the page cache of its device is dropped after a write.
    fn open(&self, mode: Mode) -> Result<Opened<'_>> {
        let group = self.live.now();
        let volume = group.volume(self.vdi)?;
        if mode == Mode::ReadOnly {
            return group.image(volume).map(Opened::of);
        }
        group.rights().refuse("writing to a disk", self.sr())?;
        let device = lvm::kernel_device(&group.vg().name, &volume.lv.name);
        let storage = group.storage_for_writing(&volume.lv)?;
        Ok(Opened::until(storage, move || device.map_or(Ok(()), |device| blockdev::forget_cached(&device))))
    }

    fn usage(&self) -> Result<Usage> {
        let size = self.size();
        Ok(Usage { length: size, allocated: size })
    }

    fn held(&self) -> Result<u64> {
        let group = self.live.now();
        let volume = group.volume(self.vdi)?;
        self.live.deflated(volume.format, &volume.lv)
    }

    fn state(&self) -> State {
        let group = self.live.now();
        match group.volume(self.vdi).and_then(|volume| group.image(volume)) {
            Ok(_) => State::Healthy,
            Err(error) => State::of(&error),
        }
    }

    fn params(&self) -> Result<Params> {
        Ok(self.live.now().params(self.vdi))
    }

    /// The tags of the volume have it. The Python drivers know no such lock, and leave the tags alone.
    fn holders(&self) -> Result<Holders> {
        let group = self.live.now();
        Ok(group.volume(self.vdi).map(|volume| tags::read(&volume.lv.tags).holders).unwrap_or_default())
    }

    fn set_holders(&self, seen: &Holders, users: Vec<String>) -> Result<bool> {
        let _lock = self.live.lock("vdi_lock", self.deadline())?;
        self.live.refuse_begun(self.vdi)?;
        if self.holders()? != *seen {
            return Ok(false);
        }
        let group = self.live.now();
        let lv = &group.volume(self.vdi)?.lv;
        let step =
            Step::Tag { name: lv.name.clone(), add: tags::of_holders(seen.state + 1, &users), remove: lock_tags(lv) };
        self.live.take_last(&[step]).map(|()| true)
    }

    fn set_params(&self, params: &Params) -> Result<()> {
        self.live.set_params(self.vdi, self.format, params)
    }

    fn settle(&self) -> Result<()> {
        self.live.own().flush(self.live.now().vg())
    }

    fn settle_records(&self) -> Result<()> {
        self.settle()
    }

    fn is_shared(&self) -> bool {
        false
    }

    /// Of a raw disk: a loop device over its volume, so that it is told from a volume that another program has activated.
    fn device(&self) -> Result<Option<PathBuf>> {
        let Ok(volume) = self.path().canonicalize() else { return Ok(None) };
        let loops = loopdev::attached()?;
        let mut names = loops.get(&volume).into_iter().flatten();
        Ok(names.next().map(|name| Path::new("/dev").join(name)))
    }

    fn attach(&self, mode: Mode) -> Result<PathBuf> {
        match self.device()? {
            Some(device) => Ok(device),
            None => {
                let path = self.path().canonicalize().map_err(Error::io("find", self.path()))?;
                let write = mode == Mode::ReadWrite;
                loopdev::attach(&blockdev::open(&path, write)?, &path, !write)
            }
        }
    }

    fn detach(&self) -> Result<Done> {
        let Some(device) = self.device()? else { return Ok(Done::Already) };
        let path = self.path().canonicalize().map_err(Error::io("find", self.path()))?;
        match loopdev::detach(&device, Backing::Path(&path))? {
            Detached::Done(done) => Ok(done),
            Detached::Busy(who) => Err(in_use(self, format!("{who}, through {}", device.display()))),
        }
    }

    fn round_up(&self, bytes: u64) -> u64 {
        self.live.now().round(bytes)
    }

    /// Of a raw disk. The caller holds the lock of the trees.
    ///
    /// 1. Make the journal `zero` with the size now, and extend; 2. zero what was added; 3. remove the journal. While the journal is
    ///    there, the disk ends where it did.
    fn resize(&self, bytes: u64) -> Result<()> {
        let group = self.live.now();
        let (lv, size) = (group.volume(self.vdi)?.lv.clone(), group.round(bytes));
        if size < lv.size {
            return self.refused("making a disk smaller");
        }
        let journal = Journal { vdi: self.vdi, change: Change::Zero(lv.size) }.name();
        self.live.refuse_full(&[size - lv.size, 1])?;
        self.live.take(&[Step::journal(&journal), Step::Extend { name: lv.name.clone(), size }])?;
        let group = self.live.now();
        let grown = &group.volume(self.vdi)?.lv;
        let volume = group.storage_for_writing(grown)?;
        volume.zero_extents(lv.size, grown.size)?;
        (&volume as &dyn Storage).flush()?;
        self.live.take_last(&[Step::remove(&journal)])?;
        match self.device()? {
            None => Ok(()),
            Some(device) => {
                let path = self.path().canonicalize().map_err(Error::io("find", self.path()))?;
                loopdev::update_size(&device, Backing::Path(&path))
            }
        }
    }

    /// Of a raw disk: its volume becomes a base, and the disk and its copy are VHDs. A loop device over the volume would go on writing to
    /// the base, so an attached disk is refused.
    fn copy_to(&self, dest: VdiUuid, params: &Params, _progress: Progress) -> Result<VdiInfo> {
        let forest = LvhdForest { live: self.live.clone() };
        let _trees = forest.lock(self.deadline())?;
        let _alone = forest.alone(&[self.vdi], self.vdi)?;
        if self.live.now().is_base(self.vdi) {
            return Err(Error::IsBase { op: "vdi_clone and vdi_snapshot", vdi: self.vdi });
        }
        if self.live.now().is_counted(self.vdi)? {
            return Err(in_use(self, "this host, which has it attached; a raw disk cannot be paused".to_owned()));
        }
        let base = VdiUuid::random();
        forest.fork(&Fork { vdi: self.vdi, base, dest: Some((dest, params)), is_fine: false })?;
        let copy = LvhdPlace::of(self.live.clone(), dest)?;
        let info = layout(copy.format).query(&**copy.open(Mode::ReadOnly)?)?;
        let node = Node { parent: Some(base), ..Node::alone(copy.format, info.virtual_size) };
        Ok(describe(&copy, &node, copy.size(), params.clone()))
    }

    /// The caller holds the lock of the trees. The record goes after the volume: a disk never lacks its names.
    fn remove(&self) -> Result<()> {
        const OP: &str = "vdi_delete";
        self.refuse_if_open()?;
        let name = self.name();
        self.live.take_last(&[Step::remove(name)])?;
        let ended = self.live.now().uncount(self.vdi).and_then(|()| self.live.remove_record(OP, self.vdi));
        ended.map_err(|cause| cause.after(deleted(self.vdi)))
    }
}
