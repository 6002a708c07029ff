//! Disks are made and taken in.
//!
//! In this order: 1. make `NEW-<vdi>`; 2. write the image, and the record in `MGT`; 3. rename it to `VHD-<vdi>`, or to `LV-<vdi>`. The
//! first and the last are one LVM command each. A kill in between leaves a `NEW-<vdi>`, which the next call that changes the SR
//! removes. `QCOW2-<vdi>` for a qcow2. No other name would do: a volume with the name of an image and without one keeps the Python drivers from listing the SR.
//!
//! A disk that comes in is filled without the lock of the trees, under that of the VDI.

use std::sync::Arc;

use super::forest::LvhdForest;
use super::fork::unborn;
use super::live::Live;
use super::map::Mapped;
use super::mgt::write::New;
use super::place::LvhdPlace;
use super::step::Step;
use super::{Lvhd, Rights};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::disk::DiskWriter;
use crate::image::storage::Storage;
use crate::image::volume::image;
use crate::sys::copy::Progress;
use crate::types::{Done, Format, NewVdi, VdiInfo, VdiUuid};
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::collect::CollectPlan;
use crate::vdi::tree::nodes::Node;
use crate::vdi::tree::run::Collecting;
use crate::vdi::{self, layout, tree};

/// The formats of a disk when none is asked for: the first that can hold it.
const DEFAULTS: [Format; 2] = [Format::Vhd, Format::Qcow2];

impl<'a> Lvhd<'a> {
    /// Makes a disk of zeroes.
    ///
    /// # Errors
    /// Those of [`crate::sr::Sr::create_vdi`]; [`Error::NotMaster`].
    pub fn make_disk(&self, new: &NewVdi) -> Result<VdiInfo> {
        let live = &self.live;
        let _lock = live.lock_recovered("vdi_create", live.own().deadline.end())?;
        let format = live.refuse_new("vdi_create", new)?;
        let virtual_size = live.rounded(format, new.virtual_size)?;
        let name = live.make_unborn(new.vdi, format, virtual_size, !live.now().is_thin())?;
        let write = || {
            let storage = live.unborn_storage(&name)?;
            write_empty(&storage, format, virtual_size)
        };
        write()
            .and_then(|()| live.put_record("vdi_create", new, format))
            .map_err(|cause| cause.undone(live.remove_unborn([&name])))?;
        live.publish(&name, new.vdi, format)?;
        self.made(new.vdi, format, virtual_size)
    }

    /// Makes a disk of what comes.
    ///
    /// # Errors
    /// Those of [`crate::sr::Sr::import_vdi`]; [`Error::NotMaster`].
    pub fn take_in(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        const OP: &str = "vdi_import";
        let live = &self.live;
        let (name, mut made) = (unborn(new.vdi), None);
        let mut make = |size: u64| -> Result<Box<dyn DiskWriter>> {
            let _lock = live.lock_recovered(OP, live.own().deadline.end())?;
            let format = live.refuse_new(OP, new)?;
            let virtual_size = live.rounded(format, size.max(new.virtual_size))?;
            live.make_unborn(new.vdi, format, virtual_size, true)?;
            made = Some((format, virtual_size));
            let storage = live.unborn_storage(&name)?;
            write_empty(&storage, format, virtual_size)?;
            layout(format).writer(Arc::new(storage))
        };
        let no_files = || {
            Err(Error::Unsupported {
                op: "vdi_import of qcow2, or a fixed VHD, from a pipe",
                why: "it has to be put down before it can be read, and this SR keeps no files: give the file's name"
                    .to_owned(),
            })
        };
        let filled = incoming.fill(&mut make, &no_files, progress);
        let Some((format, virtual_size)) = made else {
            return Err(filled.expect_err("a disk that came has been put somewhere"));
        };
        let _lock = live.lock(OP, live.own().deadline.end())?;
        filled
            .and_then(|()| match format {
                Format::Vhd | Format::Qcow2 if live.now().is_thin() => live.deflate_unborn(&name, format),
                _ => Ok(()),
            })
            .and_then(|()| live.put_record(OP, new, format))
            .map_err(|cause| cause.undone(live.remove_unborn([&name])))?;
        live.publish(&name, new.vdi, format)?;
        self.made(new.vdi, format, virtual_size)
    }

    /// Removes what a killed call left of a disk that is not there.
    ///
    /// # Errors
    /// Those of [`Live::lock`], on the SR's master; what LVM says.
    pub fn forget(&self, vdi: VdiUuid) -> Result<Done> {
        let (live, name) = (&self.live, unborn(vdi));
        let group = live.now();
        if group.vg().lv(&name).is_none() || group.rights() != Rights::Master {
            // A killed vdi_delete may have removed it not durably, and this answers that it is gone.
            return live.own().flush(group.vg()).map(|()| Done::Already);
        }
        let _lock = live.lock_recovered("vdi_delete", live.own().deadline.end())?;
        live.make_way([vdi]).map(|()| Done::Changed)
    }

    /// See [`crate::sr::Sr::collect`].
    ///
    /// # Errors
    /// Those of [`tree::collect::collect`].
    pub fn collect(&self, collecting: &Collecting, context: &Context) -> Result<Done> {
        tree::collect::collect(&self.forest(), collecting, context)
    }

    /// See [`crate::sr::Sr::plan_collect`].
    ///
    /// # Errors
    /// Those of [`tree::collect::plan`].
    pub fn plan_collect(&self, context: &Context) -> Result<CollectPlan> {
        tree::collect::plan(&self.forest(), context)
    }

    /// See [`crate::sr::Sr::shorten`].
    ///
    /// # Errors
    /// Those of [`tree::shorten::shorten`].
    pub fn shorten(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        tree::shorten::shorten(&self.forest(), vdi, context)
    }

    pub(super) fn forest(&self) -> LvhdForest<'a> {
        LvhdForest { live: self.live.clone() }
    }

    fn made(&self, vdi: VdiUuid, format: Format, virtual_size: u64) -> Result<VdiInfo> {
        let place = LvhdPlace::of(self.live.clone(), vdi)?;
        let (size, params) = (place.size(), self.live.now().params(vdi));
        Ok(vdi::describe(&place, &Node::alone(format, virtual_size), size, params))
    }
}

/// Writes an image of zeroes, durably.
fn write_empty(storage: &Mapped, format: Format, virtual_size: u64) -> Result<()> {
    match format {
        Format::Raw => {
            storage.zero_extents(0, virtual_size)?;
            (storage as &dyn Storage).flush()
        }
        _ => layout(format).create(storage, virtual_size),
    }
}

impl Live<'_> {
    /// Refuses a disk that cannot be made, and removes what a killed call left of it. The caller holds the lock.
    fn refuse_new(&self, op: &'static str, new: &NewVdi) -> Result<Format> {
        let refused = |why: &str| Err(Error::Unsupported { op, why: format!("SR {} is LVHD: {why}", self.own().sr) });
        let fits = |format: &Format| new.virtual_size <= layout(*format).largest();
        let format = new.format.or_else(|| DEFAULTS.into_iter().find(fits)).unwrap_or(DEFAULTS[0]);
        if new.params.shareable {
            return refused("it keeps no mark of disks that several users may have");
        }
        if self.now().volumes().contains_key(&new.vdi) {
            self.own().flush(self.now().vg())?;
            return Err(Error::VdiExists { vdi: new.vdi, sr: self.own().sr });
        }
        self.make_way([new.vdi])?;
        Ok(format)
    }

    /// The size that a disk gets when so many bytes are asked for. A raw one is what its volume is.
    fn rounded(&self, format: Format, bytes: u64) -> Result<u64> {
        let size = layout(format).round(bytes)?;
        Ok(if format == Format::Raw { self.now().round(size) } else { size })
    }

    fn make_unborn(&self, vdi: VdiUuid, format: Format, virtual_size: u64, is_full: bool) -> Result<String> {
        let name = unborn(vdi);
        let size = match format {
            Format::Raw => virtual_size,
            _ => self.size_of_new(format, virtual_size, is_full),
        };
        self.refuse_full(&[size])?;
        self.take(&[Step::create(&name, size)])?;
        Ok(name)
    }

    fn put_record(&self, op: &'static str, new: &NewVdi, format: Format) -> Result<()> {
        self.put_records(op, &[New { vdi: new.vdi, format, params: &new.params, is_base: false }])
    }

    /// Gives a volume with a complete image the name of its VDI.
    ///
    /// # Errors
    /// [`Error::Tool`]; then there is no VDI.
    pub fn publish(&self, name: &str, vdi: VdiUuid, format: Format) -> Result<()> {
        self.take_last(&[Step::rename(name, image(vdi, format))]).map_err(|cause| {
            match self.now().volumes().contains_key(&vdi) {
                true => cause.after(vdi::made(vdi)),
                false => cause.undone(self.remove_unborn([&name.to_owned()])),
            }
        })
    }
}
