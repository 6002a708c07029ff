//! Changes of the records of VDIs in `MGT`. The caller holds the lock of the SR's trees.
//!
//! `MGT` is read past the page cache and written in the order that [`write`](super::mgt::write) gives, with a flush after each
//! write. A record is replaced by one write of two sectors. A kill before it leaves the old record, after it the new one. If a power
//! cut tears it, the record of this VDI alone is lost.
//!
//! The record of a new VDI is written before its volume gets its name, and that of a deleted one is removed after the volume: so no
//! VDI ever lacks its names. A kill in between leaves a record of a VDI that is not there, which says nothing.

use super::live::Live;
use super::mgt::write::{New, Refused, Table, Write};
use super::{MGT, mgt};
use crate::error::{Error, Result};
use crate::image::storage::Storage;
use crate::sr::lvhd::map::Devices;
use crate::types::{Format, Names, Params, VdiUuid};

impl Live<'_> {
    /// Replaces the names that `MGT` has of a VDI. Names that are longer than a record has room for are cut. Takes the lock.
    ///
    /// # Errors
    /// Those of [`Live::lock`]; [`Error::Unsupported`] without a volume `MGT`, or if it is
    /// full; [`Error::Damaged`] if it cannot be read; [`Error::Io`].
    pub fn set_params(&self, vdi: VdiUuid, format: Format, params: &Params) -> Result<()> {
        let _lock = self.lock("vdi_set", self.own().deadline.end())?;
        self.change_records("vdi_set", |table| table.set(vdi, format, params))
    }

    /// Gives the SR itself names. Names that are longer than their sectors are cut. Takes the lock. Idempotent.
    ///
    /// # Errors
    /// Those of [`Live::set_params`].
    pub fn name_sr(&self, names: &Names) -> Result<()> {
        let _lock = self.lock("sr_update", self.own().deadline.end())?;
        self.change_records("sr_update", |table| Ok(table.name(names)))
    }

    /// Adds the records of VDIs, or replaces those of the same VDIs.
    ///
    /// # Errors
    /// Those of [`Live::set_params`].
    pub fn put_records(&self, op: &'static str, new: &[New]) -> Result<()> {
        new.iter().try_for_each(|new| self.change_records(op, |table| table.put(new)))
    }

    /// Makes the record of a VDI say which format its volume has. A VDI without a record gets none. Idempotent.
    ///
    /// # Errors
    /// Those of [`Live::set_params`].
    pub fn retype(&self, op: &'static str, vdi: VdiUuid, format: Format) -> Result<()> {
        let said = self.now().records().ok().and_then(|records| Some(records.vdis.get(&vdi)?.vdi_type.clone()));
        match said {
            Some(said) if said != mgt::vdi_type(format) => self.change_records(op, |table| table.retype(vdi, format)),
            _ => Ok(()),
        }
    }

    /// Removes the record of a VDI. Idempotent.
    ///
    /// # Errors
    /// Those of [`Live::set_params`].
    pub fn remove_record(&self, op: &'static str, vdi: VdiUuid) -> Result<()> {
        if self.now().vg().lv(MGT).is_none() {
            return Ok(());
        }
        self.change_records(op, |table| table.remove(vdi))
    }

    /// Removes the records of VDIs that are not there, as the Python drivers do it at sr_attach. Calls that were killed, or undone,
    /// left them.
    ///
    /// # Errors
    /// Those of [`Live::remove_record`].
    pub fn remove_strays(&self) -> Result<()> {
        let group = self.now();
        let Ok(records) = group.records() else { return Ok(()) };
        // Of a disk whose data was destroyed, the log of its changes is there.
        let is_there = |vdi: &VdiUuid| group.volumes().contains_key(vdi) || group.log_of(*vdi).is_some();
        let strays = records.vdis.keys().filter(|vdi| !is_there(vdi));
        strays.copied().try_for_each(|vdi| self.remove_record("ending a change", vdi))
    }

    /// Marks records that cannot be read as deleted. If the first sector does not say how many there are, they are counted.
    ///
    /// # Errors
    /// Those of [`Live::set_params`].
    pub fn mend_records(&self, op: &'static str) -> Result<()> {
        let group = self.now();
        let Some(lv) = group.vg().lv(MGT) else { return Ok(()) };
        let volume: &dyn Storage = &Devices::for_writing(group.vg()).volume(group.vg(), lv)?;
        let mut first = [0; mgt::SECTOR];
        volume.get_exact(&mut first, 0, "its first sector")?;
        if mgt::in_use(&first).is_none_or(|length| length > lv.size.min(mgt::LONGEST)) {
            let mut bytes = vec![0; lv.size.min(mgt::LONGEST) as usize];
            volume.get_exact(&mut bytes, 0, "its records")?;
            let Some(header) = mgt::write::counted(&bytes) else { return Ok(()) };
            volume.put(&header, 0)?;
            volume.flush()?;
            self.reread();
        }
        match self.now().records().is_ok_and(|records| records.unreadable > 0) {
            true => self.change_records(op, |table| table.remove_unreadable()),
            false => Ok(()),
        }
    }

    fn change_records(
        &self,
        op: &'static str,
        change: impl FnOnce(&Table) -> Result<Vec<Write>, Refused>,
    ) -> Result<()> {
        let (own, group) = (self.own(), self.now());
        let refused = |why: String| Error::Unsupported { op, why: format!("the volume {MGT} of SR {}: {why}", own.sr) };
        let vg = group.vg();
        let lv = vg.lv(MGT).ok_or_else(|| refused("there is none, so names have no place".to_owned()))?;
        let volume = Devices::for_writing(vg).volume(vg, lv)?;
        let volume: &dyn Storage = &volume;
        let mut first = [0; mgt::SECTOR];
        volume.get_exact(&mut first, 0, "its first sector")?;
        let length = mgt::in_use(&first).filter(|length| *length <= lv.size.min(mgt::LONGEST));
        let length = length.ok_or_else(|| volume.damaged("its first sector makes no sense, so nothing is written"))?;
        let mut bytes = vec![0; length as usize];
        volume.get_exact(&mut bytes, 0, "its records")?;
        for (at, sectors) in change(&Table::new(&bytes, lv.size)).map_err(refused)? {
            volume.put(&sectors, at)?;
            volume.flush()?;
        }
        self.reread();
        Ok(())
    }
}
