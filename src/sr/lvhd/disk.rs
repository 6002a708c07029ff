//! One disk of an LVHD SR: what is told of it and read of it. Whatever would change more than its names is refused.
//!
//! The SR's master may merge or remove the images of a chain while they are read, on this host or another, and give their extents to
//! other volumes. So the group is looked at again when a pass over the data ends, before its reader publishes anything: if a
//! volume of the chain is not where it was, the read fails.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;

use super::forest::LvhdForest;
use super::journal::{Change, Journal};
use super::place::LvhdPlace;
use super::{Group, Lvhd, refused};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::Reading;
use crate::image::disk::Disk;
use crate::sys::lock::Lock;
use crate::types::{Done, Format, Mode, ParamsChange, VdiInfo, VdiUuid};
use crate::vdi::tree::chain::chain;
use crate::vdi::tree::forest::Forest;
use crate::vdi::{self, Place, SinceReader, SnapshotSaid, Vdi, in_use};

impl<'a> Lvhd<'a> {
    /// Finds a disk.
    ///
    /// # Errors
    /// [`Error::NoVdi`]; [`Error::Damaged`] if two volumes are named as the VDI.
    pub fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + 'a>> {
        let group = self.group.clone();
        group.refuse_double(vdi)?;
        let place = LvhdPlace::of(group.clone(), vdi)?;
        let inner = vdi::open(place, Box::new(LvhdForest { group: group.clone() }));
        Ok(Box::new(LvhdDisk { group, vdi, inner }))
    }
}

struct LvhdDisk<'a> {
    group: Rc<Group<'a>>,
    vdi: VdiUuid,
    inner: Box<dyn Vdi + 'a>,
}

impl LvhdDisk<'_> {
    fn refused<T>(&self, op: &'static str) -> Result<T> {
        Err(refused(op, self.group.own().sr))
    }

    /// With what the image itself does not tell.
    fn shown(&self, info: VdiInfo) -> VdiInfo {
        match self.group.is_base(self.vdi) && !info.hidden {
            true => VdiInfo { hidden: true, read_only: true, ..info },
            false => info,
        }
    }

    /// The images that a read needs.
    fn chain(&self, reading: Reading) -> Result<Vec<VdiUuid>> {
        if self.inner.place().format() == Format::Raw {
            return Ok(vec![self.vdi]);
        }
        let forest = LvhdForest { group: self.group.clone() };
        match chain(&forest, self.inner.place()) {
            Err(_) if reading == Reading::Rescue => Ok(vec![self.vdi]),
            other => other,
        }
    }

    /// Refuses a disk of which a change was begun: its volume may get another name while it is attached.
    fn refuse_begun(&self, chain: &[VdiUuid]) -> Result<()> {
        let concerns = |journal: &Journal| match journal.change {
            Change::Zero(_) => chain.contains(&journal.vdi),
            _ => journal.vdi == self.vdi,
        };
        let is_elsewhere = self.group.volume(self.vdi)?.is_elsewhere;
        match self.group.journals().iter().find(|(_, journal)| concerns(journal)) {
            None if !is_elsewhere => Ok(()),
            found => {
                let what =
                    found.map_or_else(|| "its volume is to get another name".to_owned(), |(_, journal)| journal.what());
                let why = format!(
                    "of VDI {} a change was begun: {what}; sr_scan on the SR's master ends that. vdi_export is served meanwhile",
                    self.vdi
                );
                Err(Error::SrUnavailable { sr: self.group.own().sr, why })
            }
        }
    }

    fn refuse_if_open(&self) -> Result<()> {
        let volume = self.group.volume(self.vdi)?;
        if !volume.lv.open || self.is_read_only()? {
            return Ok(());
        }
        let holder = format!(
            "this host, which has its volume {} open; detach it, or take a snapshot of it and use that",
            self.inner.place().path().display()
        );
        Err(in_use(self.inner.place(), holder))
    }

    /// Refuses a group of which LVM chose one of two copies: the bytes of the disk may be those of either.
    fn refuse_duplicates(&self) -> Result<()> {
        self.group.own().refuse_duplicates(self.group.vg())
    }

    /// Refuses what was read if the volumes of `chain` are not where they were, or if a copy of a device has appeared.
    fn refuse_changed(&self, chain: &[VdiUuid]) -> Result<()> {
        let (own, now) = (self.group.own(), self.group.own().look()?);
        own.refuse_duplicates(&now)?;
        if self.group.keeps(chain, &now) {
            return Ok(());
        }
        let why = format!(
            "another call or host changed volumes of VDI {} while it was read, and what was read may be of others: repeat the call",
            self.vdi
        );
        Err(Error::SrUnavailable { sr: own.sr, why })
    }
}

/// A disk whose images are looked at again when a pass over its data ends.
struct Watched<'d> {
    disk: &'d dyn Disk,
    still: &'d dyn Fn() -> Result<()>,
    /// Something was read since the last look.
    is_read: &'d Cell<bool>,
}

impl Disk for Watched<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        let next = self.disk.next_data(from)?;
        if next.is_none() && self.is_read.take() {
            (self.still)()?;
        }
        Ok(next)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.is_read.set(true);
        self.disk.read_at(buf, offset)
    }

    fn lost_at(&self, offset: u64, len: u64) -> u64 {
        self.disk.lost_at(offset, len)
    }
}

impl Vdi for LvhdDisk<'_> {
    fn place(&self) -> &dyn Place {
        self.inner.place()
    }

    fn info(&self) -> Result<VdiInfo> {
        let info = self.shown(self.inner.info()?);
        match info.hidden {
            true => {
                let children = LvhdForest { group: self.group.clone() }.nodes()?.children(self.vdi).collect();
                Ok(info.with_children(children))
            }
            false => Ok(info),
        }
    }

    fn brief(&self) -> Result<VdiInfo> {
        Ok(self.shown(self.inner.brief()?))
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        self.inner.device()
    }

    /// The volumes of the chain are active as long as the disk is attached.
    fn attach(&self, mode: Mode, lock: Option<&Lock>) -> Result<PathBuf> {
        if mode == Mode::ReadWrite {
            return self.refused("vdi_attach of a disk that could be written to");
        }
        self.refuse_duplicates()?;
        let chain = self.chain(Reading::Whole)?;
        self.refuse_begun(&chain)?;
        if self.inner.device()?.is_some() {
            return self.inner.attach(mode, lock);
        }
        self.group.activate(&chain)?;
        self.inner.attach(mode, lock).map_err(|cause| cause.undone(self.group.deactivate(&chain).map(drop)))
    }

    fn is_read_only(&self) -> Result<bool> {
        Ok(self.group.is_base(self.vdi) || self.inner.is_read_only()?)
    }

    fn detach(&self) -> Result<Done> {
        let detached = self.inner.detach()?;
        // Also what a killed call left.
        let released = self.group.deactivate(&self.chain(Reading::Rescue)?)?;
        Ok(if released { Done::Changed } else { detached })
    }

    fn delete(&self, _context: &Context) -> Result<()> {
        self.refused("vdi_delete")
    }

    fn clone_to(&self, _dest: VdiUuid, _changes: &ParamsChange, _context: &Context) -> Result<VdiInfo> {
        self.refused("vdi_clone")
    }

    fn snapshot(&self, _dest: VdiUuid, _changes: &ParamsChange, _context: &Context) -> Result<VdiInfo> {
        self.refused("vdi_snapshot")
    }

    fn revert_to(&self, _snapshot: VdiUuid, _said: SnapshotSaid, _context: &Context) -> Result<()> {
        self.refused("vdi_revert")
    }

    fn read(&self, reading: Reading, reader: &mut dyn FnMut(&dyn Disk) -> Result<()>) -> Result<()> {
        self.refuse_duplicates()?;
        self.refuse_if_open()?;
        let chain = self.chain(reading)?;
        let (still, is_read) = (|| self.refuse_changed(&chain), &Cell::new(false));
        self.inner.read(reading, &mut |disk| reader(&Watched { disk, still: &still, is_read }))?;
        // Not every reader asks where the data ends after it has read it.
        if is_read.get() { still() } else { Ok(()) }
    }

    fn read_since(&self, base: VdiUuid, reader: SinceReader) -> Result<()> {
        self.refuse_duplicates()?;
        self.refuse_if_open()?;
        let chain = self.chain(Reading::Whole)?;
        let (still, is_read) = (|| self.refuse_changed(&chain), &Cell::new(false));
        self.inner.read_since(base, &mut |disk, changed| reader(&Watched { disk, still: &still, is_read }, changed))?;
        if is_read.get() { still() } else { Ok(()) }
    }

    fn resize(&self, _size: u64, _allow_shrink: bool, _context: &Context) -> Result<Done> {
        self.refused("vdi_resize")
    }

    /// The names alone, also those of a base.
    fn set(&self, change: &ParamsChange) -> Result<Done> {
        match (change.read_only, change.shareable) {
            (None, None) => self.inner.set(change),
            _ => self.refused("vdi_set of more than names"),
        }
    }

    fn lock(&self, _user: &str, _force: bool) -> Result<()> {
        self.refused("vdi_lock")
    }

    fn unlock(&self, _user: &str, _force: bool) -> Result<()> {
        self.refused("vdi_unlock")
    }
}
