//! The verbs of changed block tracking, see [`crate::vdi::cbt`].

use std::time::Instant;

use super::Session;
use super::held::Held;
use super::locks::{Locks, forget_vdis};
use super::vdi::{Unreadable, delete};
use crate::context::{Context, PausedElsewhere};
use crate::datapath;
use crate::error::{Error, Result};
use crate::sr::Sr;
use crate::types::{Done, Format, LogAlone, VdiUuid};
use crate::vdi::cbt::{self, ChangeLogs};
use crate::vdi::served::{pause, prepare};
use crate::vdi::{self, Vdi};

/// The logs of an SR.
///
/// # Errors
/// [`Error::Unsupported`] by drivers that keep none.
fn logs_of<'a>(storage: &'a dyn Sr, op: &'static str) -> Result<Box<dyn ChangeLogs + 'a>> {
    let why = || "changed blocks are tracked on SRs with disks as files".to_owned();
    storage.change_logs()?.ok_or_else(|| Error::Unsupported { op, why: why() })
}

/// The disk of a VDI, if it has one.
fn disk_of<'a>(storage: &'a dyn Sr, vdi: VdiUuid) -> Result<Option<Box<dyn Vdi + 'a>>> {
    match storage.vdi(vdi) {
        Ok(disk) => Ok(Some(disk)),
        Err(Error::NoVdi { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

impl Session {
    /// Begins to log which blocks of a disk are written. Idempotent. Of a disk that is attached, here or elsewhere, the server
    /// has to be able to log.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a raw or read-only disk, and by drivers that track nothing; [`Error::NotTracked`];
    /// [`Error::NotPaused`] when another host does not let go of the disk.
    pub fn vdi_enable_cbt(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        self.carry_out(Locks::of_vdis(&[vdi]), context, move |storage, context| {
            let (logs, disk) = (logs_of(storage, "vdi_enable_cbt")?, storage.vdi(vdi)?);
            let place = disk.place();
            if place.format() == Format::Raw {
                return Err(Error::Unsupported { op: "vdi_enable_cbt", why: format!("VDI {vdi} is raw") });
            }
            vdi::refuse_if_read_only(&*disk, "vdi_enable_cbt")?;
            prepare(place, context.deadline)?;
            let elsewhere = context.others.as_ref().is_some_and(|others| others.has_writer());
            let lock = logs.locked(context.deadline)?;
            let paused_elsewhere = if elsewhere { PausedElsewhere::begin(context)? } else { PausedElsewhere::none() };
            let here = pause(place)?;
            let written_here = here.as_ref().is_some_and(|paused| !paused.is_read_only());
            let begun = cbt::begin(&*logs, vdi, disk.brief()?.virtual_size, written_here || elsewhere)?;
            drop((here, paused_elsewhere));
            if !begun {
                return Ok(Done::Already);
            }
            let logs_now = match (written_here, elsewhere) {
                (true, _) => datapath::tracks(&place.path()),
                (false, true) => context.others.as_ref().is_some_and(|others| others.tracks()),
                (false, false) => true,
            };
            if !logs_now {
                cbt::forget(&*logs, vdi)?;
                let why = "its image server is of an earlier version; detach the disk and attach it again".to_owned();
                return Err(Error::NotTracked { vdi, sr: logs.sr(), why });
            }
            drop(lock);
            Ok(Done::Changed)
        })
    }

    /// Ends the logging of a disk. The logs of its snapshots stay. Idempotent.
    ///
    /// # Errors
    /// [`Error::Unsupported`] by drivers that track nothing; [`Error::NotPaused`] when another host does not let go of the
    /// disk; [`Error::Io`].
    pub fn vdi_disable_cbt(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        self.carry_out(Locks::of_vdis(&[vdi]), context, move |storage, context| {
            let (logs, disk) = (logs_of(storage, "vdi_disable_cbt")?, storage.vdi(vdi)?);
            if matches!(logs.header(vdi), Ok(None)) {
                return Ok(Done::Already);
            }
            let _lock = logs.locked(context.deadline)?;
            let _elsewhere = match context.others.as_ref().is_some_and(|others| others.has_writer()) {
                true => PausedElsewhere::begin(context)?,
                false => PausedElsewhere::none(),
            };
            // A server that is dead keeps no log.
            let _here = cbt::let_go(disk.place())?;
            cbt::forget(&*logs, vdi).map(|()| Done::Changed)
        })
    }

    /// Whether a VDI has a log of changed blocks.
    ///
    /// # Errors
    /// Those of [`Session::sr_get_params`].
    pub fn vdi_has_log(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.carry_out(Locks::none(), context, move |storage, _| match storage.change_logs()? {
            Some(logs) => Ok(!matches!(logs.header(vdi), Ok(None))),
            None => Ok(false),
        })
    }

    /// The log of a VDI whose data was destroyed.
    ///
    /// # Errors
    /// [`Error::NoVdi`] if there is none, or if the disk is there.
    pub fn vdi_log_alone(&self, vdi: VdiUuid, context: &Context) -> Result<LogAlone> {
        let sr = self.sr;
        self.carry_out(Locks::none(), context, move |storage, _| {
            let alone = storage.scan()?.logs.unwrap_or_default();
            let none = || Error::NoVdi { vdi, sr, looked: "its log of changed blocks".to_owned() };
            alone.into_iter().find(|log| log.vdi == vdi).ok_or_else(none)
        })
    }

    /// The VDI whose log comes after that of this one, and that has to let go of the log when this VDI is deleted.
    ///
    /// # Errors
    /// Those of [`Session::sr_get_params`].
    pub fn vdi_log_after(&self, vdi: VdiUuid, context: &Context) -> Result<Option<VdiUuid>> {
        self.carry_out(Locks::none(), context, move |storage, _| match storage.change_logs()? {
            Some(logs) => match cbt::after(&*logs, vdi) {
                // It will be removed, and gives no blocks away.
                Err(Error::Damaged { .. }) => Ok(None),
                other => other,
            },
            None => Ok(None),
        })
    }

    /// Deletes the data of a snapshot, whose log stays: what changed up to it can still be asked for. Idempotent.
    ///
    /// # Errors
    /// [`Error::NotTracked`] if it has no log; those of [`Session::vdi_delete`].
    pub fn vdi_data_destroy(&self, vdi: VdiUuid, context: &Context) -> Result<()> {
        self.carry_out(Locks::of_vdis(&[vdi]), context, move |storage, context| {
            let logs = logs_of(storage, "vdi_data_destroy")?;
            if logs.header(vdi)?.is_none() {
                let why = "it has no log of changed blocks, so nothing of it would be left".to_owned();
                return Err(Error::NotTracked { vdi, sr: logs.sr(), why });
            }
            drop(logs);
            delete(storage, vdi, Unreadable::Deleted, context)
        })
    }

    /// The blocks of 64 KiB that differ between a VDI and a later one of its chain: one bit each, the first block in the most
    /// significant bit of the first byte.
    ///
    /// # Errors
    /// [`Error::ChangesUnknown`], [`Error::ChangesInconsistent`]; [`Error::VdiInUse`] while another host writes to `to`.
    pub fn vdi_list_changed_blocks(&self, from: VdiUuid, to: VdiUuid, context: &Context) -> Result<Vec<u8>> {
        self.carry_out(Locks::of_vdis(&[]), context, move |storage, context| {
            let logs = logs_of(storage, "vdi_list_changed_blocks")?;
            if context.others.as_ref().is_some_and(|others| others.has_writer()) {
                // What another host has logged may still be in its cache.
                let holder = "another host, which writes to it; take a snapshot of it, and ask for that".to_owned();
                return Err(Error::VdiInUse { vdi: to, sr: logs.sr(), holder });
            }
            let _lock = logs.locked(context.deadline)?;
            cbt::changed(&*logs, from, to, &|vdi| {
                storage.vdi(vdi).is_ok_and(|disk| datapath::tracks(&disk.place().path()))
            })
        })
    }

    /// Deletes a VDI by `work`, and takes its log out of the chain. The log after it, if there is one, gets its blocks. `held`: what
    /// the caller holds. `false`: `work` left the VDI.
    pub(super) fn delete_with_log(
        &self,
        vdi: VdiUuid,
        held: &[Held],
        context: &Context,
        work: impl Fn(&dyn Sr, &Context) -> Result<bool> + Clone + Send + 'static,
    ) -> Result<bool> {
        loop {
            let child = self.vdi_log_after(vdi, context).unwrap_or_default();
            let locks = Held::not_in(held, [Some(vdi), child].into_iter().flatten());
            let work = work.clone();
            let done = self.carry_out(Locks::of_vdis(&locks), context, move |storage, context| {
                if !work(storage, context)? {
                    return Ok(Some(false));
                }
                if let Some(logs) = storage.change_logs()? {
                    // Another call may have put a log in between before the locks were taken.
                    let now = cbt::after(&*logs, vdi).unwrap_or_default();
                    if now.is_some() && now != child {
                        return Ok(None);
                    }
                    let disk = child.map(|child| disk_of(storage, child)).transpose()?.flatten();
                    let child = child.map(|child| (child, disk.as_deref()));
                    let is_tracked = !matches!(logs.header(vdi), Ok(None));
                    cbt::merge_deleted(&*logs, vdi, child, context)?;
                    if is_tracked {
                        // Its params stayed as long as the log did.
                        storage.forget_vdi(vdi)?;
                    }
                }
                forget_vdis(&[vdi]);
                Ok(Some(true))
            })?;
            if let Some(is_deleted) = done {
                return Ok(is_deleted);
            }
            if Instant::now() >= context.deadline {
                let (sr, what) = (self.sr, format!("the log of changed blocks of VDI {vdi}"));
                return Err(Error::Busy { sr, holder: "another call".to_owned(), what });
            }
        }
    }
}
