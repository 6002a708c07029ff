//! An SR that is open, for all that one command does with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::locks::Locks;
use crate::context::{Context, Deadline};
use crate::error::{Error, Result, one_line};
use crate::sr::{Driver, Sr, VolumeChange, VolumeOf};
use crate::sys::copy::Progress;
use crate::sys::lock::Lock;
use crate::sys::watch::Pulse;
use crate::sys::{run_dir, watch};
use crate::types::{DeviceConfig, Done, Format, SmConfig, SrUuid, VdiInfo, VdiUuid};

/// One SR, opened by its driver once for all that a command does with it.
///
/// Its methods are the verbs of the API. Each takes the locks that it needs on this host, waits no longer than its
/// context says, and ends with [`Error::SrUnavailable`] when the storage has been silent for as long.
pub struct Session {
    pub(super) driver: &'static Driver,
    pub(super) sr: SrUuid,
    pub(super) config: DeviceConfig,
    storage: Arc<dyn Sr>,
    deadline: Deadline,
}

impl Session {
    /// Opens an SR. Touches nothing.
    ///
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::Invalid`] with the key of device_config; those of [`run_dir::trusted`].
    pub fn open(driver: &'static Driver, sr: SrUuid, config: DeviceConfig) -> Result<Session> {
        run_dir::trusted()?;
        let deadline = Deadline::from(Instant::now());
        let storage = (driver.open)(sr, &config, deadline.clone())?.into();
        Ok(Session { driver, sr, config, storage, deadline })
    }

    /// The UUID of the SR.
    pub fn sr(&self) -> SrUuid {
        self.sr
    }

    /// The type of the SR: `file`, `lvm`, …
    pub fn sr_type(&self) -> &'static str {
        self.driver.sr_type
    }

    /// The formats that disks can have here; the first is the usual one.
    pub fn formats(&self) -> &'static [Format] {
        self.driver.formats
    }

    /// The block devices that device_config names; none for a driver of another substrate.
    pub(super) fn devices(&self) -> Vec<PathBuf> {
        let named = self.driver.keys().any(|key| key == "device").then(|| self.config.get("device")).flatten();
        named.unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty()).map(PathBuf::from).collect()
    }

    /// The directory in which the disks are files, if they are. Programs of a host expect the SR at a path of its own.
    pub fn local_path(&self) -> Option<PathBuf> {
        self.storage.local_path()
    }

    /// Whether other hosts may serve the images of this SR while this host gives them other names.
    pub fn is_shared(&self) -> bool {
        self.storage.is_shared()
    }

    /// The keys of the agent's record of this host's attachment. `Some` is a value as it is now.
    pub fn attachment_keys(&self) -> Vec<(String, Option<String>)> {
        self.storage.attachment_keys()
    }

    /// The keys of the SR's own `sm_config`.
    pub fn sr_sm_config(&self) -> SmConfig {
        self.storage.sr_sm_config()
    }

    /// The kind of content: `raw` for disks of any format, `iso` for CDs.
    pub fn content_type(&self) -> &'static str {
        self.storage.content_type()
    }

    /// The VDI that an agent calls by this location.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a location that no VDI of the driver has.
    pub fn vdi_at(&self, location: &str) -> Result<VdiUuid> {
        (self.driver.about.vdi_at)(self.sr, location)
    }

    /// The volumes that the images of a VDI are in, its own first; `None` where an SR has no volumes that each host activates for itself.
    ///
    /// # Errors
    /// Those of [`Sr::volumes`].
    pub fn vdi_volumes(&self, vdi: VdiUuid, deadline: Instant) -> Result<Option<Vec<VolumeOf>>> {
        self.deadline.set(deadline);
        self.storage.volumes(vdi)
    }

    /// Makes this host's view of a volume what the SR's master says it is, see [`Sr::follow`].
    ///
    /// # Errors
    /// Those of [`Sr::follow`].
    pub fn follow(&self, change: VolumeChange, volume: &str, vdi: Option<VdiUuid>, deadline: Instant) -> Result<()> {
        self.deadline.set(deadline);
        self.storage.follow(change, volume, vdi)
    }

    /// Gives the volume of a VDI that another host attaches room, or takes it back, see [`Sr::fit`]. `is_wanted`: whether that is still to
    /// be done, asked under the VDI's lock.
    ///
    /// # Errors
    /// Those of [`Sr::fit`].
    pub fn vdi_fit(
        &self,
        vdi: VdiUuid,
        attached: bool,
        is_wanted: impl FnOnce() -> bool + Send + 'static,
        context: &Context,
    ) -> Result<Done> {
        self.carry_out(Locks::of_vdis(&[vdi]), context, move |storage, _| match is_wanted() {
            true => storage.fit(vdi, attached),
            false => Ok(Done::Already),
        })
    }

    /// The keys of a VDI's `sm_config` that its SR decides.
    pub fn vdi_sm_config(&self, info: &VdiInfo) -> SmConfig {
        (self.driver.about.sm_config)(info)
    }

    /// How it is seen that the storage of this SR, and that of another, still answer.
    pub(super) fn pulse_with(&self, other: &Session) -> Option<Pulse> {
        match (self.storage.pulse(), other.storage.pulse()) {
            (Some(one), Some(other)) => Some(Box::new(move || one().and_then(|()| other()))),
            (one, other) => one.or(other),
        }
    }

    /// Carries an operation out within one of another SR, which watches the storage of both and has the locks of the VDIs.
    pub(super) fn carry_out_within<T>(&self, context: &Context, work: impl FnOnce(&dyn Sr) -> Result<T>) -> Result<T> {
        self.deadline.set(context.deadline);
        under(&Locks::of_vdis(&[]), self.sr, &*self.storage, context, |storage, _, _| work(storage))
    }

    /// Carries one operation out under its locks.
    ///
    /// Where the storage can go away under a call, a thread does the work and this one watches whether the storage still
    /// answers. A thread that is given up keeps its part of the session; the end of the process ends it.
    pub(super) fn carry_out<T: Send + 'static>(
        &self,
        locks: Locks,
        context: &Context,
        work: impl FnOnce(&dyn Sr, &Context) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.carry_out_locked(locks, context, |storage, context, _| work(storage, context))
    }

    /// As [`Session::carry_out`]. `work` is given the last of the locks as well, that of the VDI for a verb of one VDI.
    pub(super) fn carry_out_locked<T: Send + 'static>(
        &self,
        locks: Locks,
        context: &Context,
        work: impl FnOnce(&dyn Sr, &Context, Option<&Lock>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.carry_out_watched(self.storage.pulse(), locks, context, work)
    }

    /// As [`Session::carry_out_locked`]. `pulse`: how all storage is watched that may keep the work waiting.
    pub(super) fn carry_out_watched<T: Send + 'static>(
        &self,
        pulse: Option<Pulse>,
        locks: Locks,
        context: &Context,
        work: impl FnOnce(&dyn Sr, &Context, Option<&Lock>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.deadline.set(context.deadline);
        let sr = self.sr;
        let Some(pulse) = pulse else {
            return under(&locks, sr, &*self.storage, context, work);
        };
        let (storage, deadline, others) = (self.storage.clone(), context.deadline, context.others.clone());
        let wait = deadline.saturating_duration_since(Instant::now());
        let work =
            move |progress: Progress| under(&locks, sr, &*storage, &Context { deadline, progress, others }, work);
        watch::over(&pulse, wait, context.progress, work).unwrap_or_else(|silent| {
            let (seconds, abandoned) = (silent.seconds, "the call was abandoned, repeat it when the server");
            let why = match silent.last {
                Some(last) => {
                    format!("no answer from its server for {seconds} s; {abandoned} answers: {}", one_line(&last))
                }
                None => format!(
                    "its server takes connections, but nothing has come of the call for {seconds} s; {abandoned} works"
                ),
            };
            Err(Error::SrUnavailable { sr, why })
        })
    }
}

fn under<T>(
    locks: &Locks,
    sr: SrUuid,
    storage: &dyn Sr,
    context: &Context,
    work: impl FnOnce(&dyn Sr, &Context, Option<&Lock>) -> Result<T>,
) -> Result<T> {
    let held = locks.take(sr, context.deadline)?;
    let outcome = work(storage, context, held.last());
    locks.forget_after(sr, &outcome);
    drop(held);
    outcome
}
