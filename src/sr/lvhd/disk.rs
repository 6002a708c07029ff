//! One disk of an LVHD SR.
//!
//! The SR's master may merge or remove the images of a chain while they are read, on this host or another, and give their extents to
//! other volumes. So the group is looked at again when a pass over the data ends, before its reader publishes anything: if a
//! volume of the chain is not where it was, the read fails.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use super::forest::LvhdForest;
use super::journal::{Change, Journal};
use super::live::Live;
use super::place::LvhdPlace;
use super::step::Step;
use super::{Lvhd, Rights, refused};
use crate::context::Context;
use crate::error::{Error, Result, one_line};
use crate::image::Reading;
use crate::image::disk::Disk;
use crate::sys::lock::Lock;
use crate::sys::{blockdev, syslog};
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
        let live = self.live.clone();
        live.now().refuse_double(vdi)?;
        let place = LvhdPlace::of(live.clone(), vdi)?;
        let inner = vdi::open(place, Box::new(LvhdForest { live: live.clone() }));
        Ok(Box::new(LvhdDisk { live, vdi, inner }))
    }
}

struct LvhdDisk<'a> {
    live: Rc<Live<'a>>,
    vdi: VdiUuid,
    inner: Box<dyn Vdi + 'a>,
}

impl LvhdDisk<'_> {
    fn refused<T>(&self, op: &'static str) -> Result<T> {
        Err(refused(op, self.live.own().sr))
    }

    /// With what the image itself does not tell.
    fn shown(&self, info: VdiInfo) -> VdiInfo {
        let group = self.live.now();
        let info = VdiInfo { cbt_enabled: group.log_of(self.vdi).is_some(), ..info };
        match group.is_base(self.vdi) && !info.hidden {
            true => VdiInfo { hidden: true, read_only: true, ..info },
            false => info,
        }
    }

    /// The images that a read needs.
    fn chain(&self, reading: Reading) -> Result<Vec<VdiUuid>> {
        if self.inner.place().format() == Format::Raw {
            return Ok(vec![self.vdi]);
        }
        let forest = LvhdForest { live: self.live.clone() };
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
        let group = self.live.now();
        let is_elsewhere = group.volume(self.vdi)?.is_elsewhere;
        match group.journals().iter().find(|(_, journal)| concerns(journal)) {
            None if !is_elsewhere => Ok(()),
            found => {
                let what =
                    found.map_or_else(|| "its volume is to get another name".to_owned(), |(_, journal)| journal.what());
                let why = format!(
                    "of VDI {} a change was begun: {what}; sr_scan on the SR's master ends that. vdi_export is served meanwhile",
                    self.vdi
                );
                Err(Error::SrUnavailable { sr: self.live.own().sr, why })
            }
        }
    }

    /// Refuses a disk above a base whose children are to be given to another: the end of that writes their headers.
    fn refuse_relinked(&self, chain: &[VdiUuid]) -> Result<()> {
        let group = self.live.now();
        let is_relinked = |vdi: &&VdiUuid| {
            group.journals().iter().any(|(_, journal)| journal.vdi == **vdi && matches!(journal.change, Change::Relink))
        };
        chain.iter().find(is_relinked).map_or(Ok(()), |base| self.live.refuse_begun(*base))
    }

    /// As [`LvhdDisk::refuse_begun`]. A change that `last` ends is none.
    fn refuse_begun_but(&self, chain: &[VdiUuid], last: &[Step]) -> Result<()> {
        if last.is_empty() { self.refuse_begun(chain) } else { Ok(()) }
    }

    fn deadline(&self) -> Instant {
        self.inner.place().deadline()
    }

    /// Refuses a change on another host than the master, and of a disk whose changed blocks a Python driver keeps a log of.
    fn refuse_change(&self, op: &'static str) -> Result<()> {
        self.live.now().rights().refuse(op, self.live.own().sr)?;
        self.refuse_tracked()
    }

    /// Refuses to write to a disk of whose changed blocks there is a log: it would say what is not so, and a backup would lack
    /// blocks.
    fn refuse_tracked(&self) -> Result<()> {
        match self.live.now().log_of(self.vdi) {
            None => Ok(()),
            Some(log) => Err(in_use(
                self.inner.place(),
                format!(
                    "the tracking of its changed blocks in the volume {}: disable that where it was enabled, or attach the disk \
                     read-only",
                    log.name
                ),
            )),
        }
    }

    /// What is done with a raw disk takes no lock of the trees by itself: it is in none.
    fn lock_if_raw(&self, op: &'static str, context: &Context) -> Result<Option<Lock>> {
        match self.inner.place().format() {
            Format::Raw => self.live.lock_recovered(op, context.deadline).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether the volume has to be made larger before the disk can be written to.
    fn is_short(&self) -> Result<bool> {
        let size = self.live.now().volume(self.vdi)?.lv.size;
        Ok(self.live.wanted(self.vdi)? > size)
    }

    /// Makes the volume larger, but for the step in the answer. The caller holds the lock of the trees.
    fn inflate(&self) -> Result<Vec<Step>> {
        self.live.inflate(self.vdi, self.live.wanted(self.vdi)?)
    }

    /// Makes the volume of a disk that is not attached any more as small as it should be.
    fn deflate(&self) -> Result<()> {
        let group = self.live.now();
        let is_small = group.is_thin() || group.params(self.vdi).snapshot_of.is_some();
        if !is_small || group.rights() != Rights::Master {
            return Ok(());
        }
        let volume = group.volume(self.vdi)?;
        if self.live.deflated(volume.format, &volume.lv)? >= volume.lv.size {
            return Ok(());
        }
        let _trees = self.live.lock_recovered("vdi_detach", self.deadline())?;
        if self.live.now().is_counted(self.vdi)? {
            return Ok(());
        }
        let forest = LvhdForest { live: self.live.clone() };
        let _alone = forest.alone(&[self.vdi], self.vdi)?;
        let steps = self.live.deflate(self.vdi)?;
        self.live.take_last(&steps)
    }

    fn refuse_if_open(&self) -> Result<()> {
        let group = self.live.now();
        let volume = group.volume(self.vdi)?;
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
        self.live.own().refuse_duplicates(self.live.now().vg())
    }

    /// Refuses what was read if the volumes of `chain` are not where they were, or if a copy of a device has appeared.
    fn refuse_changed(&self, chain: &[VdiUuid]) -> Result<()> {
        let (own, now) = (self.live.own(), self.live.own().look()?);
        own.refuse_duplicates(&now)?;
        if self.live.now().keeps(chain, &now) {
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
                let children = LvhdForest { live: self.live.clone() }.nodes()?.children(self.vdi).collect();
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

    /// The volumes of the chain are active as long as the disk is attached. That of a disk that can be written to has room for all
    /// of it.
    fn attach(&self, mode: Mode, lock: Option<&Lock>) -> Result<PathBuf> {
        if mode == Mode::ReadWrite {
            self.refuse_tracked()?;
        }
        self.refuse_duplicates()?;
        let mut chain = self.chain(Reading::Whole)?;
        if self.inner.device()?.is_some() {
            self.refuse_begun(&chain)?;
            return self.inner.attach(mode, lock);
        }
        let mut first = Vec::new();
        let trees = match mode {
            Mode::ReadWrite if self.refuse_begun(&chain).is_err() || self.is_short()? => {
                let trees = self
                    .live
                    .lock_recovered("vdi_attach of a disk whose volume has to be made larger", self.deadline())?;
                chain = self.chain(Reading::Whole)?;
                first = self.inflate()?;
                Some(trees)
            }
            _ => None,
        };
        self.refuse_begun_but(&chain, &first)?;
        self.live.now().activate(&chain, &first, self.live.shell())?;
        drop(trees);
        self.inner.attach(mode, lock).map_err(|cause| cause.undone(self.live.now().deactivate(&chain).map(drop)))
    }

    fn is_read_only(&self) -> Result<bool> {
        Ok(self.live.now().is_base(self.vdi) || self.inner.is_read_only()?)
    }

    /// The volume of a disk that could be written to is made as small as the disk is where the SR is thin, and that of a snapshot
    /// always is.
    fn detach(&self) -> Result<Done> {
        let is_written = self.inner.device()?.is_some_and(|device| !blockdev::is_read_only(&device));
        let detached = self.inner.detach()?;
        // Also what a killed call left.
        let chain = self.chain(Reading::Rescue)?;
        let released = self.live.now().deactivate(&chain)?;
        if released
            && is_written
            && let Err(error) = self.deflate()
        {
            syslog::write(&format!(
                "the volume of VDI {} stays larger than it need be: {}",
                self.vdi,
                one_line(&error)
            ));
        }
        Ok(if released { Done::Changed } else { detached })
    }

    fn delete(&self, context: &Context) -> Result<()> {
        self.refuse_change("vdi_delete")?;
        let _trees = self.lock_if_raw("vdi_delete", context)?;
        self.inner.delete(context)
    }

    fn clone_to(&self, dest: VdiUuid, changes: &ParamsChange, context: &Context) -> Result<VdiInfo> {
        self.refuse_change("vdi_clone")?;
        self.inner.clone_to(dest, changes, context)
    }

    fn snapshot(&self, dest: VdiUuid, changes: &ParamsChange, context: &Context) -> Result<VdiInfo> {
        self.refuse_change("vdi_snapshot")?;
        self.inner.snapshot(dest, changes, context)
    }

    fn revert_to(&self, snapshot: VdiUuid, said: SnapshotSaid, context: &Context) -> Result<()> {
        self.refuse_change("vdi_revert")?;
        self.inner.revert_to(snapshot, said, context)
    }

    /// A host that goes on opens the images. What is left of a change of them is ended first; where that cannot be, the host stays paused.
    fn unpause(&self, context: &Context) -> Result<()> {
        let _trees = self.live.lock_recovered("ending a pause", context.deadline)?;
        self.live.refuse_begun(self.vdi)?;
        self.refuse_relinked(&self.chain(Reading::Whole)?)?;
        context.others.as_ref().map_or(Ok(()), |others| others.resume())
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

    fn resize(&self, size: u64, allow_shrink: bool, context: &Context) -> Result<Done> {
        self.refuse_change("vdi_resize")?;
        let trees = self.lock_if_raw("vdi_resize", context)?;
        if trees.is_some() {
            self.live.refuse_begun(self.vdi)?;
        }
        self.inner.resize(size, allow_shrink, context)
    }

    /// The names alone, also those of a base.
    fn set(&self, change: &ParamsChange) -> Result<Done> {
        match (change.read_only, change.shareable) {
            (None, None) => self.inner.set(change),
            _ => self.refused("vdi_set of more than names"),
        }
    }
}
