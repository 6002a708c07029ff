//! The verbs of an SR.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::Session;
use super::locks::{Locks, forget_sr, forget_vdis};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::registry::reserve;
use crate::sr::{Trim, loss, trim_failed};
use crate::sys::lock::{self, Kind};
use crate::types::{Class, Done, Finding, Names, NewSr, Overwrite, Space, SpaceUse, SrInfo, VdiName, VdiUuid};
use crate::vdi::tree::collect::CollectPlan;
use crate::vdi::tree::run::Collecting;
use crate::vdi::tree::stop;

/// Which disks sr_delete deletes as well; others are a reason to refuse it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disks {
    All,
    /// Those that somebody was asked about.
    Only(BTreeSet<VdiUuid>),
}

impl Disks {
    /// Only an SR without disks is deleted.
    pub const NONE: Disks = Disks::Only(BTreeSet::new());
}

impl Session {
    /// Makes the SR. `over`: what may be destroyed for it.
    ///
    /// # Errors
    /// [`SrExists`](crate::Error::SrExists), [`DeviceInUse`](crate::Error::DeviceInUse), and
    /// [`HoldsSr`](crate::Error::HoldsSr) with the disks that would be lost.
    pub fn sr_create(&self, new: &NewSr, over: &Overwrite, context: &Context) -> Result<()> {
        let (sr, new, over, devices) = (self.sr, *new, over.clone(), self.devices());
        let class = Class::word_of(self.driver.sr_type);
        self.carry_out(Locks::of_sr(), context, move |storage, context| {
            if !devices.is_empty() {
                reserve::refuse(sr, &devices)?;
            }
            loss::create(storage, sr, &new, &over, context)?;
            if !devices.is_empty() {
                reserve::claim(sr, class, &devices, &over.srs, context.deadline);
            }
            Ok(())
        })
    }

    /// The contents that [`Session::sr_create`] would destroy, in words. Changes nothing.
    ///
    /// # Errors
    /// Those of [`Session::sr_create`], as far as they can be told before.
    pub fn plan_create(&self, size: Option<u64>, over: &Overwrite, context: &Context) -> Result<Vec<String>> {
        let (sr, over, devices) = (self.sr, over.clone(), self.devices());
        self.carry_out(Locks::none(), context, move |storage, context| {
            if !devices.is_empty() {
                reserve::refuse(sr, &devices)?;
            }
            loss::plan(storage, size, &over, context)
        })
    }

    /// The steps that [`Session::sr_collect`] would take now. Changes nothing.
    ///
    /// # Errors
    /// As [`Session::sr_get_params`].
    pub fn plan_collect(&self, context: &Context) -> Result<CollectPlan> {
        self.carry_out(Locks::none(), context, |storage, context| storage.plan_collect(context))
    }

    /// Deletes the SR and its disks. Idempotent. [`Session::refuse_disks`] says before whether there are disks, also in an SR
    /// that has to be attached to tell.
    ///
    /// # Errors
    /// [`VdiInUse`](crate::Error::VdiInUse) while a VDI is attached or locked, [`HasVdis`](crate::Error::HasVdis) with the number of
    /// disks that are not among `disks`; then nothing was changed.
    pub fn sr_delete(&self, disks: Disks, context: &Context) -> Result<Done> {
        let (sr, has_devices) = (self.sr, !self.devices().is_empty());
        let keeps_disks = self.driver.keeps_disks;
        self.carry_out(Locks::of_sr(), context, move |storage, context| {
            // No other call holds the lock of a VDI meanwhile: each of them shares the SR's. What was made until now is seen.
            let doomed = storage.stat().map(|info| info.vdi_uuids).unwrap_or_default();
            if let (Disks::Only(known), false) = (&disks, keeps_disks) {
                let others = doomed.iter().filter(|vdi| !known.contains(vdi)).count();
                if others > 0 {
                    return Err(Error::HasVdis { sr, disks: others });
                }
            }
            let done = storage.delete()?;
            forget_vdis(&doomed);
            forget_sr(sr);
            if has_devices {
                reserve::release(sr, context.deadline);
            }
            Ok(done)
        })
    }

    /// Makes the SR available on this host and repairs what a crash left. Idempotent.
    ///
    /// # Errors
    /// [`NoSr`](crate::Error::NoSr); what the device, the directory or the server says.
    pub fn sr_attach(&self, context: &Context) -> Result<Done> {
        self.carry_out(Locks::of_sr(), context, |storage, _| storage.attach())
    }

    /// Takes over an SR that other storage managers made and that has no disks, on the word of a caller that knows that
    /// it has none: an empty directory may as well be a missing mount. Idempotent.
    ///
    /// # Errors
    /// [`Unsupported`](crate::Error::Unsupported) by drivers that find such SRs without.
    pub fn sr_adopt(&self, context: &Context) -> Result<Done> {
        self.carry_out(Locks::of_sr(), context, |storage, _| storage.adopt())
    }

    /// Lets the SR use what its devices have become larger by. Idempotent.
    ///
    /// # Errors
    /// [`Unsupported`](crate::Error::Unsupported) by drivers without devices; [`NoSr`](crate::Error::NoSr).
    pub fn sr_grow(&self, context: &Context) -> Result<Done> {
        self.carry_out(Locks::of_sr(), context, |storage, _| storage.grow())
    }

    /// Tells the devices of the SR what is free in it, in parts of some seconds. An SR of volumes is locked for one part at a time, and a
    /// collector of this host is ended: the free space of the part belongs to the call.
    ///
    /// # Errors
    /// Those of [`Sr::trim`](crate::sr::Sr::trim); [`Busy`](crate::Error::Busy); that of the first device that failed, after all others
    /// were told.
    pub fn sr_trim(&self, context: &Context) -> Result<Trim> {
        /// Calls that wait for the SR get it meanwhile: the kernel wakes them, and they have to be run.
        const PAUSE: Duration = Duration::from_millis(200);
        let wait = context.deadline.saturating_duration_since(Instant::now());
        let mut trim = Trim::default();
        loop {
            let told = trim.told;
            let part = Context { deadline: Instant::now() + wait, progress: context.progress, others: None };
            let locks = if self.local_path().is_some() { Locks::of_vdis(&[]) } else { Locks::of_sr() };
            let done = self.carry_out(locks, &part, move |storage, context| storage.trim(trim, context.progress));
            trim = done.map_err(|cause| trim_failed(cause, told))?;
            if trim.is_done() {
                return trim.end();
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Ends the availability on this host. Idempotent.
    ///
    /// # Errors
    /// [`VdiInUse`](crate::Error::VdiInUse) while a VDI is attached on this host.
    pub fn sr_detach(&self, context: &Context) -> Result<Done> {
        self.carry_out(Locks::of_sr(), context, |storage, _| storage.detach())
    }

    /// The SR as it is on the substrate now, without the details of the VDIs.
    ///
    /// # Errors
    /// [`NoSr`](crate::Error::NoSr) or [`SrUnavailable`](crate::Error::SrUnavailable); never an empty answer for an SR that
    /// cannot be seen.
    pub fn sr_get_params(&self, context: &Context) -> Result<SrInfo> {
        self.carry_out(Locks::none(), context, |storage, _| storage.stat())
    }

    /// How much the SR has and how much of it is free, without a look at any disk where the driver can do that.
    ///
    /// # Errors
    /// As [`Session::sr_get_params`].
    pub fn sr_get_space(&self, context: &Context) -> Result<Space> {
        self.carry_out(Locks::none(), context, |storage, _| storage.space())
    }

    /// The SR as it is on the substrate now, with the details of every VDI, in one pass.
    ///
    /// # Errors
    /// As [`Session::sr_get_params`].
    pub fn sr_scan(&self, context: &Context) -> Result<SrInfo> {
        self.carry_out(Locks::none(), context, |storage, _| storage.scan())
    }

    /// The SR with the details of every VDI, and for each image the space that it holds and that its deletion would free, in
    /// one pass. No data is read.
    ///
    /// # Errors
    /// As [`Session::sr_get_params`].
    pub fn sr_space(&self, context: &Context) -> Result<SpaceUse> {
        self.carry_out(Locks::none(), context, |storage, _| storage.space_use(true))
    }

    /// The SR with the details of every VDI, and what [`Session::sr_collect`] would free, in one pass. No data is read.
    ///
    /// # Errors
    /// As [`Session::sr_get_params`].
    pub fn sr_figures(&self, context: &Context) -> Result<SpaceUse> {
        self.carry_out(Locks::none(), context, |storage, _| storage.space_use(false))
    }

    /// Says what is wrong with the SR and its VDIs. `thorough`: every table of every image that no process has open is read.
    /// `repair`: faults that can be mended without a loss are mended. The answer may say less of a VDI in use.
    ///
    /// # Errors
    /// As [`Session::sr_get_params`]. A fault of one VDI is a finding in the answer, not an error.
    pub fn sr_check(&self, thorough: bool, repair: bool, context: &Context) -> Result<Vec<Finding>> {
        self.carry_out(Locks::of_vdis(&[]), context, move |storage, context| {
            let mut found = storage.check(thorough, repair, context)?;
            if found.iter().any(|finding| finding.vdi.is_some()) {
                let names = storage.names("").unwrap_or_default();
                let labels: HashMap<VdiUuid, String> = names.into_iter().map(|name| (name.uuid, name.label)).collect();
                for finding in &mut found {
                    finding.label = finding.vdi.and_then(|vdi| labels.get(&vdi).cloned()).unwrap_or_default();
                }
            }
            Ok(found)
        })
    }

    /// The names that an agent's user gave the SR itself.
    ///
    /// # Errors
    /// Those of [`Session::sr_get_params`]; [`Damaged`](crate::Error::Damaged) if what is stored cannot be read.
    pub fn sr_get_names(&self, context: &Context) -> Result<Names> {
        self.carry_out(Locks::none(), context, |storage, _| storage.names_of_sr())
    }

    /// Changes the names of the SR itself. Idempotent, and durable also where there is nothing to do.
    ///
    /// # Errors
    /// [`Unsupported`](crate::Error::Unsupported) by drivers that store none; [`Busy`](crate::Error::Busy).
    pub fn sr_set_names(&self, change: impl FnOnce(Names) -> Names + Send + 'static, context: &Context) -> Result<()> {
        /// Two calls of this host that change a name each must not undo each other's change.
        const NAMES: &str = "names";
        let sr = self.sr;
        self.carry_out(Locks::of_vdis(&[]), context, move |storage, context| {
            let busy = |who: &str| Error::Busy { sr, holder: who.to_owned(), what: "its names".to_owned() };
            let alone = lock::take(&sr.to_string(), NAMES, Kind::Exclusive, context.deadline);
            let _alone = alone.map_err(|refused| refused.or_timed_out(busy))?;
            storage.name_sr(&change(storage.names_of_sr()?))
        })
    }

    /// The names of the images of the SR, bases among them: of those that may be meant by `word`, or of all if `word`
    /// is empty.
    ///
    /// # Errors
    /// As [`Session::sr_get_params`].
    pub fn names(&self, word: &str, context: &Context) -> Result<Vec<VdiName>> {
        let word = word.to_owned();
        self.carry_out(Locks::none(), context, move |storage, _| storage.names(&word))
    }

    /// The collector of this host that is at work on the SR, in words. Waits for nobody.
    pub fn collector(&self) -> Option<String> {
        stop::collector(self.sr)
    }

    /// Ends a collector of this host that is at work on the SR. `Already`: there was none.
    ///
    /// # Errors
    /// [`Error::Busy`] if the collector has not ended at the deadline.
    pub fn sr_collect_stop(&self, context: &Context) -> Result<Done> {
        let done = self.collector().map_or(Done::Already, |_| Done::Changed);
        stop::end_collector(self.sr, context.deadline).map(|_| done)
    }

    /// Gives back the space of deleted snapshots and clones. Long work, which locks its disks one after the other.
    ///
    /// # Errors
    /// [`NotMerged`](crate::Error::NotMerged) at the end, with all failures.
    pub fn sr_collect(&self, collecting: &Collecting, context: &Context) -> Result<Done> {
        let collecting = collecting.clone();
        self.carry_out(Locks::of_vdis(&[]), context, move |storage, context| storage.collect(&collecting, context))
    }
}
