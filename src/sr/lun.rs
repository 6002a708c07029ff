//! SRs in a volume group on a LUN that this host has to connect first, around [`LvmSr`]. `LvmSr` does all that is done to the group;
//! this module only sees to it that the LUN is there, by one device.
//!
//! A way to a LUN is a [`Transport`]. The LUN is known by its identifier (`SCSIid`), whatever device it is, and this module finds the
//! device in sysfs: a multipath map if there is one, else the only path. Two paths without a map are refused: LVM would
//! write by either.
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_attach**: 1. open the way; 2. let the kernel ask for the size of the LUN; 3. the map; 4. refuse a LUN that is smaller than its
//!   group, let a group use what its LUN has become larger by; 5. as in [`mod@lvm`]. After any of them sr_attach goes on, and sr_detach
//!   ends it.
//! - **sr_detach**: 1. as in `lvm`; 2. close the way. After 1: as before it.
//! - **sr_create**, **sr_delete**: the way is opened, and closed at the end if the SR was not attached. After a kill the
//!   way is open: sr_attach takes it, sr_detach closes it.

mod device;

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::context::{Context, Deadline};
use crate::error::{Error, Result, ended, one_line};
use crate::sr::Trim;
use crate::sr::driver::{Driver, Sr, VolumeChange, VolumeOf};
use crate::sr::lvm::{self, LvmSr};
use crate::sys::copy::Progress;
use crate::sys::multipath;
use crate::sys::scsidisk::Disk;
use crate::sys::watch::Pulse;
use crate::types::{
    DeviceConfig, Done, Finding, Names, NewSr, NewVdi, Overwrite, SmConfig, Space, SpaceUse, SrInfo, SrUuid, VdiInfo,
    VdiName, VdiUuid,
};
use crate::vdi::Vdi;
use crate::vdi::cbt::ChangeLogs;
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::collect::CollectPlan;
use crate::vdi::tree::run::Collecting;

pub use self::device::{Lun, flag, is_scsi_id};

/// The keys of device_config that a volume group on a LUN has, whatever the way to the LUN.
pub const SHARED: (&str, &str) = ("shared", "false at sr_create if no other host sees the LUN; default true");
pub const SCSI_ID: (&str, &str) =
    ("SCSIid", "the identifier of the LUN, as /lib/udev/scsi_id -g prints it (required but for sr_probe)");
pub const MULTIPATHING: (&str, &str) =
    ("multipathing", "true: by a multipath map in any case; otherwise by a map only if there is one");

/// A way to a LUN.
pub trait Transport: Send + Sync {
    /// Where the LUN is, for people.
    fn location(&self) -> String;

    /// Whether the way was opened for the SR, and not closed since.
    ///
    /// # Errors
    /// Says what could not be read.
    fn is_open(&self, sr: SrUuid) -> Result<bool>;

    /// Opens the way for the SR, until [`Transport::close`]: there is a disk with the LUN's identifier then. Idempotent.
    ///
    /// # Errors
    /// What keeps the LUN away; then nothing was opened.
    fn open(&self, sr: SrUuid) -> Result<Done>;

    /// Closes the way, unless another SR needs it: ends what was opened, and nothing else. Idempotent.
    ///
    /// # Errors
    /// What does not end.
    fn close(&self, sr: SrUuid) -> Result<Done>;

    /// Does `work` while the way is open, for a call that knows no SR.
    ///
    /// # Errors
    /// Those of [`Transport::open`] and of `work`.
    fn while_open(&self, work: &dyn Fn() -> Result<Vec<SrInfo>>) -> Result<Vec<SrInfo>>;

    /// Why the LUN does not answer, if that can be seen.
    fn trouble(&self) -> Option<String>;

    /// Whether the other end still answers.
    fn pulse(&self) -> Option<Pulse>;

    /// How many sessions with the target there are, where the way has sessions.
    fn sessions(&self) -> Option<usize> {
        None
    }

    /// This call deleted the SR on the LUN.
    fn abandon(&self) {}
}

/// An SR on a LUN.
pub struct LunSr<T> {
    driver: &'static Driver,
    sr: SrUuid,
    lun: Lun,
    transport: T,
    config: DeviceConfig,
    deadline: Deadline,
    /// On the device of the LUN.
    here: OnceLock<LvmSr>,
    /// While there is no such device.
    absent: LvmSr,
}

impl<T: Transport> LunSr<T> {
    /// # Errors
    /// Those of [`LvmSr::new`] for the keys of a volume group.
    pub fn new(
        driver: &'static Driver,
        sr: SrUuid,
        (lun, transport): (Lun, T),
        config: &DeviceConfig,
        deadline: Deadline,
    ) -> Result<LunSr<T>> {
        let absent = LvmSr::new(driver, &lvm::NAMING, sr, &on_device(config, &lun.name()), deadline.clone())?;
        Ok(LunSr { driver, sr, lun, transport, config: config.clone(), deadline, here: OnceLock::new(), absent })
    }

    /// The group, wherever its LUN is now.
    fn group(&self) -> Result<&LvmSr> {
        if let Some(here) = self.here.get() {
            return Ok(here);
        }
        match self.lun.device() {
            None => Ok(&self.absent),
            Some(device) => {
                let config = on_device(&self.config, &device);
                let new = LvmSr::new(self.driver, &lvm::NAMING, self.sr, &config, self.deadline.clone())?;
                Ok(self.here.get_or_init(|| new))
            }
        }
    }

    /// The group of an SR that is attached.
    fn attached(&self) -> Result<&LvmSr> {
        if self.transport.is_open(self.sr)? {
            self.wait();
            return self.group();
        }
        let why = format!("{} is not connected on this host; sr_attach does it", self.transport.location());
        Err(Error::SrUnavailable { sr: self.sr, why })
    }

    /// Lets a path that was lost a moment ago come back: LVM does not see it meanwhile.
    fn wait(&self) {
        const PATIENCE: Duration = Duration::from_secs(10);
        let until = self.deadline.end().min(Instant::now() + PATIENCE);
        let paths = self.lun.paths();
        let mut is_away = !paths.is_empty() && !paths.iter().any(Disk::is_running);
        while is_away && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
            is_away = !self.lun.paths().iter().any(Disk::is_running);
        }
    }

    /// The answer, or why the LUN is away if that is why there is none.
    fn said<A>(&self, answer: Result<A>) -> Result<A> {
        answer.map_err(|e| {
            let may_be_why = matches!(
                e,
                Error::NoDevice { .. }
                    | Error::NoSr { .. }
                    | Error::SrUnavailable { .. }
                    | Error::Tool { .. }
                    | Error::Io { .. }
                    | Error::Damaged { .. }
            );
            match self.transport.trouble().filter(|_| may_be_why) {
                Some(why) => Error::SrUnavailable { sr: self.sr, why: format!("{why}: {}", one_line(&e)) },
                None => e,
            }
        })
    }

    fn ask<A>(&self, question: impl FnOnce(&LvmSr) -> Result<A>) -> Result<A> {
        let group = self.attached()?;
        self.said(question(group))
    }

    fn located(&self, info: SrInfo) -> SrInfo {
        SrInfo { sr_type: self.driver.sr_type.to_owned(), location: self.transport.location(), ..info }
    }

    /// Does `work` with the LUN, of an SR that need not be attached, and leaves the way as it was.
    fn connected<A>(&self, work: impl FnOnce(&LvmSr) -> Result<A>) -> Result<A> {
        let opened = self.transport.open(self.sr)?;
        let done = self.lun.prepare().and_then(|()| self.said(work(self.group()?)));
        match opened {
            Done::Already => done,
            Done::Changed => ended(done, self.transport.close(self.sr).map(drop)),
        }
    }

    fn enter(&self) -> Result<Done> {
        self.lun.prepare()?;
        let group = self.group()?;
        group.fit_device()?;
        self.said(group.attach())
    }
}

/// device_config of the group that lies on a device. Other hosts see a LUN, unless it is said that they do not.
fn on_device(config: &DeviceConfig, device: &Path) -> DeviceConfig {
    let mut config = config.clone();
    config.0.insert("device".to_owned(), device.display().to_string());
    config.0.entry("shared".to_owned()).or_insert_with(|| "true".to_owned());
    config
}

/// Which SRs lie on the LUN.
///
/// # Errors
/// Those of the way; those of [`lvm::probe`].
pub fn probe(
    driver: &'static Driver,
    lun: &Lun,
    transport: &dyn Transport,
    config: &DeviceConfig,
    deadline: Deadline,
) -> Result<Vec<SrInfo>> {
    // As the Python storage managers, which would remove the map.
    if let Some(map) = multipath::map_of(&lun.scsi_id).filter(|_| lun.multipathing) {
        let holder = format!("LUN {} has a multipath map already", lun.scsi_id);
        return Err(Error::DeviceInUse { device: map.node().display().to_string(), holder });
    }
    transport.while_open(&|| {
        lun.prepare()?;
        let device = lun.device().unwrap_or_else(|| lun.name());
        let found = lvm::probe(driver, &lvm::NAMING, &on_device(config, &device), deadline.clone())?;
        let located = |info| SrInfo { sr_type: driver.sr_type.to_owned(), location: transport.location(), ..info };
        Ok(found.into_iter().map(located).collect())
    })
}

impl<T: Transport> Sr for LunSr<T> {
    fn create(&self, new: &NewSr) -> Result<()> {
        self.create_over(new, &Overwrite::default())
    }

    fn create_over(&self, new: &NewSr, over: &Overwrite) -> Result<()> {
        self.connected(|group| {
            group.create_over(new, over)?;
            // A thin pool is active then, and would keep its LUN.
            group.detach().map(drop).map_err(|e| e.after(format!("SR {} was made", self.sr)))
        })
    }

    fn check_create(&self, size: Option<u64>, over: &Overwrite) -> Result<()> {
        self.connected(|group| group.check_create(size, over))
    }

    fn disks_at_rest(&self) -> Result<Vec<VdiInfo>> {
        self.connected(Sr::disks_at_rest)
    }

    fn delete(&self) -> Result<Done> {
        let opened = self.transport.open(self.sr)?;
        let done = self.lun.prepare().and_then(|()| self.said(self.group()?.delete()));
        match (done, opened) {
            (Ok(done), _) => {
                self.transport.close(self.sr).map_err(|e| e.after(format!("SR {} was deleted", self.sr)))?;
                // Without an SR that this call deleted, what the LUN has is none of ours.
                if done == Done::Changed {
                    self.transport.abandon();
                }
                Ok(done)
            }
            (Err(cause), Done::Changed) => Err(cause.undone(self.transport.close(self.sr).map(drop))),
            (Err(cause), Done::Already) => Err(cause),
        }
    }

    fn attach(&self) -> Result<Done> {
        let opened = self.transport.open(self.sr)?;
        match (self.enter(), opened) {
            (Ok(_), Done::Changed) => Ok(Done::Changed),
            (Ok(done), Done::Already) => Ok(done),
            (Err(cause), Done::Changed) => Err(cause.undone(self.transport.close(self.sr).map(drop))),
            (Err(cause), Done::Already) => Err(cause),
        }
    }

    fn adopt(&self) -> Result<Done> {
        self.ask(LvmSr::adopt)
    }

    fn grow(&self) -> Result<Done> {
        self.attached()?;
        self.lun.prepare()?;
        self.ask(Sr::grow)
    }

    fn trim(&self, so_far: Trim, progress: Progress) -> Result<Trim> {
        self.ask(|group| group.trim(so_far, progress))
    }

    fn detach(&self) -> Result<Done> {
        let left = match self.transport.is_open(self.sr)? {
            true => self.group()?.detach()?,
            false => Done::Already,
        };
        match self.transport.close(self.sr)? {
            Done::Changed => Ok(Done::Changed),
            Done::Already => Ok(left),
        }
    }

    fn stat(&self) -> Result<SrInfo> {
        self.ask(Sr::stat).map(|info| self.located(info))
    }

    fn space(&self) -> Result<Space> {
        self.ask(Sr::space)
    }

    fn scan(&self) -> Result<SrInfo> {
        self.ask(Sr::scan).map(|info| self.located(info))
    }

    fn space_use(&self, each: bool) -> Result<SpaceUse> {
        self.ask(|group| group.space_use(each))
    }

    fn names(&self, word: &str) -> Result<Vec<VdiName>> {
        self.ask(|group| group.names(word))
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        let group = self.attached()?;
        self.said(group.vdi(vdi))
    }

    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        self.ask(|group| group.create_vdi(new))
    }

    fn import_vdi(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        self.ask(|group| group.import_vdi(new, incoming, progress))
    }

    fn collect(&self, collecting: &Collecting, context: &Context) -> Result<Done> {
        self.ask(|group| group.collect(collecting, context))
    }

    fn shorten(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        self.ask(|group| group.shorten(vdi, context))
    }

    fn plan_collect(&self, context: &Context) -> Result<CollectPlan> {
        self.ask(|group| group.plan_collect(context))
    }

    fn names_of_sr(&self) -> Result<Names> {
        self.ask(Sr::names_of_sr)
    }

    fn name_sr(&self, names: &Names) -> Result<()> {
        self.ask(|group| group.name_sr(names))
    }

    fn check(&self, thorough: bool, repair: bool, context: &Context) -> Result<Vec<Finding>> {
        self.ask(|group| group.check(thorough, repair, context))
    }

    fn can_delete_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.ask(|group| group.can_delete_broken(vdi, context))
    }

    fn delete_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.ask(|group| group.delete_broken(vdi, context))
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        self.ask(|group| group.forget_vdi(vdi))
    }

    fn pulse(&self) -> Option<Pulse> {
        self.transport.pulse()
    }

    /// Block transports, "Detach": `mpath-…` and `multipathed` are those of the host's counter of paths.
    fn attachment_keys(&self) -> Vec<(String, Option<String>)> {
        let sessions =
            self.transport.sessions().map(|sessions| ("iscsi_sessions".to_owned(), Some(sessions.to_string())));
        let of_counter = [format!("mpath-{}", self.lun.scsi_id), "multipathed".to_owned()].map(|key| (key, None));
        sessions.into_iter().chain(of_counter).collect()
    }

    fn sr_sm_config(&self) -> SmConfig {
        let mut keys = self.absent.sr_sm_config();
        keys.push(("multipathable", Some("true".to_owned())));
        keys
    }

    fn change_logs(&self) -> Result<Option<Box<dyn ChangeLogs + '_>>> {
        self.attached()?.change_logs()
    }

    fn is_shared(&self) -> bool {
        self.absent.is_shared()
    }

    fn volumes(&self, vdi: VdiUuid) -> Result<Option<Vec<VolumeOf>>> {
        self.ask(|group| group.volumes(vdi))
    }

    fn follow(&self, change: VolumeChange, volume: &str, vdi: Option<VdiUuid>) -> Result<()> {
        self.ask(|group| group.follow(change, volume, vdi))
    }

    fn fit(&self, vdi: VdiUuid, attached: bool) -> Result<Done> {
        self.ask(|group| Sr::fit(group, vdi, attached))
    }

    fn content_type(&self) -> &'static str {
        "raw"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_on_a_lun_is_that_of_several_hosts_unless_it_is_said_otherwise() {
        let shared = |config: &DeviceConfig| on_device(config, Path::new("/dev/sda")).get("shared").map(str::to_owned);
        assert_eq!(shared(&DeviceConfig::default()).as_deref(), Some("true"));
        assert_eq!(shared(&DeviceConfig::from([("shared", "false")])).as_deref(), Some("false"));
    }
}
