//! Changes of the names of VDIs, in `MGT`.
//!
//! 1. Lock the SR's trees on this host. The Python drivers take the SR's lock, which each changing verb of this package shares.
//! 2. Read `MGT` past the page cache. 3. Write, in the order that [`write`](super::mgt::write) gives; flush after each.
//!
//! A name is replaced by one write of two sectors. A kill before it leaves the old name, after it the new one. If a power cut tears
//! it, the record of this VDI alone is lost.

use super::mgt::write::{Refused, Table, Write};
use super::{Group, MGT, mgt};
use crate::error::{Error, Result};
use crate::image::storage::Storage;
use crate::sr::lvhd::map::Devices;
use crate::sys::lock::{self, Kind};
use crate::types::{Format, Params, VdiUuid};

impl Group<'_> {
    /// Replaces the names that `MGT` has of a VDI. Names that are longer than a record has room for are cut.
    ///
    /// # Errors
    /// Those of [`Rights::refuse`](super::rights::Rights::refuse); [`Error::Unsupported`] without a volume `MGT`, or if it is
    /// full; [`Error::Damaged`] if it cannot be read; [`Error::Busy`], [`Error::Io`].
    pub fn set_params(&self, vdi: VdiUuid, format: Format, params: &Params) -> Result<()> {
        self.change_records("vdi_set", |table| table.set(vdi, format, params))
    }

    fn change_records(
        &self,
        op: &'static str,
        change: impl FnOnce(&Table) -> Result<Vec<Write>, Refused>,
    ) -> Result<()> {
        let own = self.own();
        self.rights().refuse(op, own.sr)?;
        let refused = |why: String| Error::Unsupported { op, why: format!("the volume {MGT} of SR {}: {why}", own.sr) };
        let _lock =
            lock::take(&own.sr.to_string(), "tree", Kind::Exclusive, own.deadline.end()).map_err(|refused| {
                refused.or_timed_out(|who| Error::Busy {
                    sr: own.sr,
                    holder: who.to_owned(),
                    what: "its volumes".to_owned(),
                })
            })?;
        let vg = own.whole()?;
        let lv = vg.lv(MGT).ok_or_else(|| refused("there is none, so names have no place".to_owned()))?;
        let volume = Devices::for_writing(&vg).volume(&vg, lv)?;
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
        Ok(())
    }
}
