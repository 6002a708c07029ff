//! An SR whose disks are files in a filesystem that has to be mounted: what all such SRs have in common.
//!
//! [`FileSr`] does all that is done to disks. A type of SR implements [`Mounted`], which says where the files are, how they
//! get there, and what a failure of their filesystem means; that makes it an [`Sr`].

use std::path::PathBuf;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::sr::Trim;
use crate::sr::driver::{Sr, finds_out_only_then};
use crate::sr::file::FileSr;
use crate::sr::mountpoint::Mountpoint;
use crate::sys::copy::Progress;
use crate::sys::watch::Pulse;
use crate::types::{
    Done, Finding, Names, NewSr, NewVdi, Overwrite, Space, SpaceUse, SrInfo, VdiInfo, VdiName, VdiUuid,
};
use crate::vdi::Vdi;
use crate::vdi::cbt::ChangeLogs;
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::collect::CollectPlan;
use crate::vdi::tree::run::Collecting;

/// The SRs of a type whose files are in a filesystem that sr_attach mounts.
pub trait Mounted: Send + Sync {
    /// The files, after a check that the SR's filesystem is what is mounted, and not the directory below it. Every call but
    /// the few that begin or end the SR goes through here.
    ///
    /// # Errors
    /// [`Error::SrUnavailable`] if nothing is mounted; [`Error::DeviceInUse`] if something else is.
    fn files(&self) -> Result<&FileSr>;

    /// Whether other hosts have the SR as well.
    fn shared(&self) -> bool;

    fn point(&self) -> &Mountpoint;

    /// Says what a failure of the filesystem means, and what to do.
    fn explain(&self, e: Error) -> Error;

    /// Says where the SR lives instead of where it is mounted.
    fn located(&self, info: SrInfo) -> SrInfo;

    /// [`Sr::create`], and [`Sr::create_over`] if `over` allows anything.
    ///
    /// # Errors
    /// Those of the two.
    fn make(&self, new: &NewSr, over: &Overwrite) -> Result<()>;

    /// [`Sr::check_create`].
    ///
    /// # Errors
    /// Its own.
    fn check_make(&self, _size: Option<u64>, _over: &Overwrite) -> Result<()> {
        finds_out_only_then()
    }

    /// [`Sr::delete`].
    ///
    /// # Errors
    /// Its own.
    fn unmake(&self) -> Result<Done>;

    /// Mounts the SR if need be, and begins with its files: by [`FileSr::attach`] or [`FileSr::adopt`].
    ///
    /// # Errors
    /// Those of [`Sr::attach`].
    fn enter(&self, begin: fn(&FileSr) -> Result<Done>) -> Result<Done>;

    /// [`Sr::detach`].
    ///
    /// # Errors
    /// Its own.
    fn leave(&self) -> Result<Done>;

    /// [`Sr::trim`], of all that is free. The answer is the number of bytes that the devices were told of: 0 if one takes no discards.
    ///
    /// # Errors
    /// Its own.
    fn discard_free(&self) -> Result<u64> {
        let why = "the SR is on a server, or in storage that others use as well".to_owned();
        Err(Error::Unsupported { op: "sr_trim", why })
    }

    /// [`Sr::disks_at_rest`].
    ///
    /// # Errors
    /// Its own.
    fn at_rest(&self) -> Result<Vec<VdiInfo>> {
        Ok(self.files()?.scan().map_err(|e| self.explain(e))?.vdis)
    }

    /// [`Sr::pulse`].
    fn pulse_of_server(&self) -> Option<Pulse> {
        None
    }
}

impl<T: Mounted> Sr for T {
    fn create(&self, new: &NewSr) -> Result<()> {
        self.make(new, &Overwrite::default())
    }

    fn create_over(&self, new: &NewSr, over: &Overwrite) -> Result<()> {
        self.make(new, over)
    }

    fn check_create(&self, size: Option<u64>, over: &Overwrite) -> Result<()> {
        self.check_make(size, over)
    }

    fn disks_at_rest(&self) -> Result<Vec<VdiInfo>> {
        self.at_rest()
    }

    fn delete(&self) -> Result<Done> {
        self.unmake()
    }

    fn attach(&self) -> Result<Done> {
        self.enter(FileSr::attach)
    }

    fn adopt(&self) -> Result<Done> {
        self.enter(FileSr::adopt)
    }

    fn local_path(&self) -> Option<PathBuf> {
        Some(self.point().path().to_owned())
    }

    fn trim(&self, _so_far: Trim, _progress: Progress) -> Result<Trim> {
        self.discard_free().map(Trim::whole)
    }

    fn detach(&self) -> Result<Done> {
        self.leave()
    }

    fn stat(&self) -> Result<SrInfo> {
        self.files()?.stat().map(|info| self.located(info)).map_err(|e| self.explain(e))
    }

    fn space(&self) -> Result<Space> {
        self.files()?.space().map_err(|e| self.explain(e))
    }

    fn scan(&self) -> Result<SrInfo> {
        self.files()?.scan().map(|info| self.located(info)).map_err(|e| self.explain(e))
    }

    fn space_use(&self, each: bool) -> Result<SpaceUse> {
        let found = self.files()?.space_use(each).map_err(|e| self.explain(e))?;
        Ok(SpaceUse { sr: self.located(found.sr), ..found })
    }

    fn names(&self, word: &str) -> Result<Vec<VdiName>> {
        self.files()?.names(word).map_err(|e| self.explain(e))
    }

    fn change_logs(&self) -> Result<Option<Box<dyn ChangeLogs + '_>>> {
        self.files()?.change_logs().map_err(|e| self.explain(e))
    }

    fn names_of_sr(&self) -> Result<Names> {
        self.files()?.names_of_sr().map_err(|e| self.explain(e))
    }

    fn name_sr(&self, names: &Names) -> Result<()> {
        self.files()?.name_sr(names).map_err(|e| self.explain(e))
    }

    fn shorten(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        self.files()?.shorten(vdi, context).map_err(|e| self.explain(e))
    }

    fn plan_collect(&self, context: &Context) -> Result<CollectPlan> {
        self.files()?.plan_collect(context).map_err(|e| self.explain(e))
    }

    fn check(&self, thorough: bool, repair: bool, context: &Context) -> Result<Vec<Finding>> {
        self.files()?.check(thorough, repair, context).map_err(|e| self.explain(e))
    }

    fn collect(&self, collecting: &Collecting, context: &Context) -> Result<Done> {
        self.files()?.collect(collecting, context).map_err(|e| self.explain(e))
    }

    /// Also on devices that went away: a disk can still be detached.
    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        self.files()?.vdi(vdi).map_err(|e| self.explain(e))
    }

    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        self.files()?.create_vdi(new).map_err(|e| self.explain(e))
    }

    fn import_vdi(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        self.files()?.import_vdi(new, incoming, progress).map_err(|e| self.explain(e))
    }

    fn can_delete_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.files()?.can_delete_broken(vdi, context).map_err(|e| self.explain(e))
    }

    fn delete_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.files()?.delete_broken(vdi, context).map_err(|e| self.explain(e))
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        self.files()?.forget_vdi(vdi).map_err(|e| self.explain(e))
    }

    fn is_shared(&self) -> bool {
        self.shared()
    }

    fn content_type(&self) -> &'static str {
        "raw"
    }

    fn pulse(&self) -> Option<Pulse> {
        self.pulse_of_server()
    }
}
