//! Snapshot and clone: the volume of a disk becomes a base, and the disk and its copy are new volumes.
//!
//! The image of `U` becomes the base `B`, with the children `U` and `D`:
//!
//! 1. make `NEW_<B>_1`, which is to be the journal, `NEW-<U>` and `NEW-<D>`; 2. write the record and both images, and the records of
//!    `D` and `B` in `MGT`; 3. rename `NEW_<B>_1` to `clone_<U>_1`, then `VHD-<U>` to `VHD-<B>`, and the new volumes to `VHD-<U>` and
//!    `VHD-<D>`; 4. hide `B`, which has children now; 5. make its volume read-only and as small as what it holds, and remove the
//!    journal.
//!
//! Where the group has room for all of the disk only with what `B` gives back, `NEW-<U>` is made as small as it can be, with the tag
//! [`SHORT`]. Then the journal stays in 5 until the volume of `U` is larger; 6. remove the tag and the journal. Until then a recovery
//! goes on with 5, so a disk that is attached does not stay in a volume that is too small.
//!
//! 1, 3 and 5 are one LVM process each. Until the journal has its name, all that a kill leaves are volumes that mean nothing. Then a
//! recovery, of either side, undoes it until both children are there, and completes it afterwards ([`recover`](super::recover)). The
//! Python drivers make the children under their names; an image that is complete when it gets its name is none that
//! cannot be read.
//!
//! A disk that is attached goes on in its new volume, which is active from the start. The base then has a user. The new volume has room for
//! all of the disk, also if the old one had: another host may have it attached.
//!
//! A raw disk becomes a raw base, which the tag `hidden` hides. The disk is a VHD then, and its record in `MGT` is told so in 4: a raw disk
//! that is attached is refused.
//!
//! A persistent lock goes with the disk: its tags are those of `NEW-<U>` from the start, and `B` loses them in 5.
//!
//! A copy of a disk without data of its own is one more child of its base: 1. make `NEW-<D>`; 2. write the image and the record;
//! 3. rename.

use std::sync::Arc;

use super::forest::{LvhdForest, called};
use super::journal::{Change, Cloned, Journal, unwritten};
use super::live::Live;
use super::mgt::write::New;
use super::place::lock_tags;
use super::step::Step;
use crate::error::{Error, Result};
use crate::image::storage::Storage;
use crate::image::volume::image;
use crate::types::{Format, Mode, Params, VdiUuid};
use crate::vdi::format::{ParentImage, WriteImage};
use crate::vdi::place::Opened;
use crate::vdi::tree::forest::{Forest, Fork};
use crate::vdi::{self, layout};

const OP: &str = "vdi_clone or vdi_snapshot";

/// The label that the Python drivers give a base in `MGT`.
const BASE_LABEL: &str = "base copy";

/// The format of the images above one.
pub fn child_format(of_base: Format) -> Format {
    if of_base == Format::Raw { Format::Vhd } else { of_base }
}

/// The tag of the volume of a disk that is to become larger before the change is ended. The Python drivers do not know it.
const SHORT: &str = "xcp.short";

/// The name of the volume that is to be a VDI.
pub fn unborn(vdi: VdiUuid) -> String {
    format!("NEW-{vdi}")
}

impl LvhdForest<'_> {
    pub(super) fn make_base(&self, fork: &Fork) -> Result<()> {
        let live = &self.live;
        let group = live.now();
        let volume = group.volume(fork.vdi)?.clone();
        let (of_base, format) = (volume.format, child_format(volume.format));
        live.refuse_begun(fork.vdi)?;
        let left = [Some(fork.vdi), fork.dest.map(|(dest, _)| dest)];
        live.make_way(left.into_iter().flatten())?;
        if let Some((dest, _)) = fork.dest {
            live.refuse_existing(dest)?;
        }
        let storage: Arc<dyn Storage> = Arc::new(group.image(&volume)?);
        let virtual_size = layout(of_base).query(&*storage)?.virtual_size;
        let is_attached = group.is_counted(fork.vdi)?;
        let is_disk = !group.params(fork.vdi).read_only;
        // Another host may write to it: what it counts is not seen here, but it got room for that.
        let is_inflated = of_base != Format::Raw && volume.lv.size >= group.round(live.wanted(fork.vdi)?);
        let own_is_full = is_attached || (is_disk && (is_inflated || !group.is_thin()));
        let copy_is_full = fork.dest.is_some_and(|(_, params)| !group.is_thin() && !params.read_only);
        let copy_size = live.size_of_new(format, virtual_size, copy_is_full);
        let copies = fork.dest.iter().map(|_| copy_size).collect::<Vec<u64>>();
        let full = live.size_of_new(format, virtual_size, own_is_full);
        let all = |own: u64| [copies.as_slice(), &[own, 1, 1]].concat();
        // What the base gives back is enough for the disk, or not: then nothing is begun.
        let own_size = match live.refuse_full(&all(full)) {
            Ok(()) => full,
            Err(_) => live.size_of_new(format, virtual_size, false),
        };
        live.refuse_full(&all(own_size))?;
        if own_size < full {
            let gives = volume.lv.size.saturating_sub(live.deflated(of_base, &volume.lv)?);
            live.refuse_full(&all(full.saturating_sub(gives)))?;
        }

        let (own, record) = (unborn(fork.vdi), unwritten(fork.base));
        let copy = fork.dest.map(|(dest, _)| unborn(dest));
        let mut tags = lock_tags(&volume.lv);
        tags.extend((own_size < full).then(|| SHORT.to_owned()));
        let mut make =
            vec![Step::journal(&record), Step::Create { name: own.clone(), size: own_size, tags, active: is_attached }];
        make.extend(copy.iter().map(|copy| Step::create(copy, copy_size)));
        let unmake = || {
            live.remove_unborn([Some(&record), Some(&own), copy.as_ref()].into_iter().flatten())?;
            live.remove_strays()
        };
        let child = self.child(&image(fork.base, of_base), of_base, storage)?;
        let cloned = Cloned { base: fork.base, copy: fork.dest.map(|(dest, _)| dest) };
        let journal = Journal { vdi: fork.vdi, change: Change::Clone(Some(cloned)) };
        live.take(&make)
            .and_then(|()| live.write_journal(&record, &journal))
            .and_then(|()| live.write_image(&own, &child))
            .and_then(|()| copy.as_ref().map_or(Ok(()), |copy| live.write_image(copy, &child)))
            .and_then(|()| self.put_records(fork, of_base))
            .map_err(|cause| cause.undone(unmake()))?;

        let mut publish = vec![
            Step::rename(&record, journal.name()),
            Step::rename(&volume.lv.name, image(fork.base, of_base)),
            Step::rename(own, image(fork.vdi, format)),
        ];
        publish.extend(copy.zip(fork.dest).map(|(copy, (dest, _))| Step::rename(copy, image(dest, format))));
        let done = live
            .take(&publish)
            .and_then(|()| if is_attached { live.now().recount(fork.base, 1) } else { Ok(()) })
            .and_then(|()| live.end_fork(fork.base, &journal));
        if let Err(cause) = done {
            let recovered = live.recover();
            return match fork.dest {
                Some((dest, _)) if live.now().volumes().contains_key(&dest) => Err(cause.after(vdi::made(dest))),
                _ => Err(cause.undone(recovered)),
            };
        }
        Ok(())
    }

    pub(super) fn make_child(&self, base: VdiUuid, dest: VdiUuid, params: &Params) -> Result<()> {
        let live = &self.live;
        live.make_way([dest])?;
        live.refuse_existing(dest)?;
        let group = live.now();
        let parent = self.parent_image(base, Mode::ReadOnly)?;
        let format = child_format(parent.format);
        let virtual_size = layout(parent.format).query(&**parent.image)?.virtual_size;
        let child = layout(format).child_of(&parent)?;
        let size = live.size_of_new(format, virtual_size, !group.is_thin() && !params.read_only);
        live.refuse_full(&[size])?;
        let name = unborn(dest);
        let record = New { vdi: dest, format, params, is_base: false };
        live.take(&[Step::create(&name, size)])
            .and_then(|()| live.write_image(&name, &child))
            .and_then(|()| live.put_records(OP, &[record]))
            .map_err(|cause| cause.undone(live.remove_unborn([&name])))?;
        live.publish(&name, dest, format)
    }

    /// Writes images whose parent is to be the volume of this name, whose image is in `storage` now.
    fn child(&self, base: &str, of_base: Format, storage: Arc<dyn Storage>) -> Result<WriteImage> {
        let format = child_format(of_base);
        let name = called(&self.live.now().vg().name, base, format);
        layout(format).child_of(&ParentImage { name, format: of_base, image: Opened::of_shared(storage) })
    }

    fn put_records(&self, fork: &Fork, of_base: Format) -> Result<()> {
        self.live.record_clone(fork.base, of_base, fork.dest, &|_| true)
    }
}

impl Live<'_> {
    /// Gives a base, whose format is `of_base`, and the copy of its disk the records that they are to have; those of them that are `meant`.
    fn record_clone(
        &self,
        base: VdiUuid,
        of_base: Format,
        copy: Option<(VdiUuid, &Params)>,
        meant: &dyn Fn(VdiUuid) -> bool,
    ) -> Result<()> {
        let names = Params { label: BASE_LABEL.to_owned(), read_only: true, ..Params::default() };
        let base = New { vdi: base, format: of_base, params: &names, is_base: true };
        let format = child_format(of_base);
        let copy = copy.map(|(vdi, params)| New { vdi, format, params, is_base: false });
        let all: Vec<New> = copy.into_iter().chain([base]).filter(|new| meant(new.vdi)).collect();
        self.put_records(OP, &all)
    }

    /// As [`Live::record_clone`], of what has no record: a Python driver writes the records last, so one that was killed has not. The copy
    /// has no names then; it is of the kind of its disk.
    ///
    /// # Errors
    /// Those of [`Live::put_records`].
    pub fn record_unrecorded(&self, vdi: VdiUuid, base: VdiUuid, of_base: Format, copy: Option<VdiUuid>) -> Result<()> {
        let group = self.now();
        // Without MGT, disks have no names.
        let Ok(records) = group.records() else { return Ok(()) };
        let params = Params { kind: group.params(vdi).kind, ..Params::default() };
        self.record_clone(base, of_base, copy.map(|copy| (copy, &params)), &|vdi| !records.vdis.contains_key(&vdi))
    }

    /// Takes the last steps of a change that made `base` a base: its children are there.
    ///
    /// # Errors
    /// [`Error::Tool`], [`Error::Io`]; [`Error::NoSpace`] if the disk does not get its room: then the journal is there.
    pub fn end_fork(&self, base: VdiUuid, journal: &Journal) -> Result<()> {
        let group = self.now();
        let volume = group.volume(base)?.clone();
        let mut steps = self.set_hidden(&(volume.format, volume.lv.clone()), true)?;
        steps.extend(self.deflate(base)?);
        // Of a raw disk, which has become a VHD.
        self.retype(OP, journal.vdi, child_format(volume.format))?;
        if !volume.lv.read_only {
            steps.push(Step::SetWritable { name: volume.lv.name.clone(), writable: false });
        }
        let locks = lock_tags(&volume.lv);
        if !locks.is_empty() {
            steps.push(Step::untag(volume.lv.name, locks));
        }
        let leaf = &group.volume(journal.vdi)?.lv;
        if leaf.tags.iter().any(|tag| tag == SHORT) {
            self.take(&steps)?;
            steps = self.inflate(journal.vdi, self.wanted(journal.vdi)?)?;
            steps.push(Step::untag(&leaf.name, vec![SHORT.to_owned()]));
        }
        steps.push(Step::remove(journal.name()));
        self.take_last(&steps)
    }

    /// Refuses a new VDI of a UUID that there is.
    ///
    /// # Errors
    /// [`Error::VdiExists`].
    pub fn refuse_existing(&self, vdi: VdiUuid) -> Result<()> {
        match self.now().volumes().contains_key(&vdi) {
            true => Err(Error::VdiExists { vdi, sr: self.own().sr }),
            false => Ok(()),
        }
    }

    /// Refuses a change of a VDI of which another one was begun, and could not be ended.
    ///
    /// # Errors
    /// [`Error::SrUnavailable`].
    pub fn refuse_begun(&self, vdi: VdiUuid) -> Result<()> {
        match self.now().begun(vdi) {
            None => Ok(()),
            Some(what) => Err(Error::SrUnavailable {
                sr: self.own().sr,
                why: format!("of VDI {vdi} a change was begun, and could not be ended: {what}; sr_check says why"),
            }),
        }
    }

    /// Writes an image into a volume that is no VDI yet, durably.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_image(&self, name: &str, write: &WriteImage) -> Result<()> {
        write(&self.unborn_storage(name)?)
    }

    /// The bytes of a volume that is no VDI yet.
    ///
    /// # Errors
    /// Those of [`Devices::volume`](super::map::Devices::volume).
    pub fn unborn_storage(&self, name: &str) -> Result<super::map::Mapped> {
        let group = self.now();
        let lost = || Error::Damaged {
            path: crate::sys::lvm::node(&group.vg().name, name),
            what: "LVM said that it made the volume, and there is none".to_owned(),
        };
        group.storage_for_writing(group.vg().lv(name).ok_or_else(lost)?)
    }

    /// Writes the record of a journal into its volume, durably.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_journal(&self, name: &str, journal: &Journal) -> Result<()> {
        let storage: &dyn Storage = &self.unborn_storage(name)?;
        if let Some(record) = journal.record() {
            storage.put(&record, 0)?;
        }
        storage.flush()
    }

    /// Removes what killed calls left of VDIs whose locks the caller holds: the recovery leaves it to such a call.
    ///
    /// # Errors
    /// [`Error::Tool`].
    pub fn make_way(&self, vdis: impl IntoIterator<Item = VdiUuid>) -> Result<()> {
        let names: Vec<String> = vdis.into_iter().map(unborn).collect();
        if names.iter().all(|name| self.now().vg().lv(name).is_none()) {
            return Ok(());
        }
        self.remove_unborn(&names)?;
        self.remove_strays()
    }

    /// Removes volumes that were to become something, those that are there.
    ///
    /// # Errors
    /// [`Error::Tool`].
    pub fn remove_unborn<'n>(&self, names: impl IntoIterator<Item = &'n String>) -> Result<()> {
        let group = self.now();
        let there = names.into_iter().filter(|name| group.vg().lv(name).is_some());
        let steps: Vec<Step> = there.map(Step::remove).collect();
        self.take(&steps)
    }
}
