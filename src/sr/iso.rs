//! `ISOSR`: CD images, each a disk that is called by its file's name. They are in a local directory, on an NFS export
//! or on an SMB share ([`library`]).
//!
//! There is no marker, no lock and no parameters: an ISO SR is whatever files with a name in `.iso` or `.img` its
//! directory has now, and putting a file there or taking it away is how one is made or deleted. A VDI's UUID
//! follows from the SR's and the file's name, and it is read-only.
//!
//! A symbolic link is the image that it leads to, if that is in the directory or below it. A link that leads out is shown as
//! unsupported and not served: whoever may put files into the directory, perhaps from another machine, could show any file
//! of this host to a guest.
//!
//! vdi_create makes an empty disk to be filled, `<vdi>.img`: that name says its UUID, and that it may be written.
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create** looks whether everything is there; the mount for it ends with the call. **sr_delete** leaves the images.
//! - **sr_attach**, of a server's directory: 1. make the mountpoint; 2. mount. After 1: an empty directory, which
//!   sr_attach takes and sr_detach removes.
//! - **vdi_create**: 1. make the file under a temporary name; 2. rename it. After 1: a `.tmp-<uuid>` without data,
//!   which the next vdi_create removes.
//! - **vdi_delete**: one unlink.
//!
//! | file | content |
//! |---|---|
//! | [`library`] | where the images are: a directory, an export or a share ([`crate::sr::smb::share`]); how it is found and mounted |
//! | [`images`] | the images: names, UUIDs, the files that they lead to |
//! | [`mod@place`] | one image: what formats and callers do with it |

mod images;
mod library;
mod place;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::context::{Context, Deadline};
use crate::error::{Error, Result};
use crate::image::storage::FileStorage;
use crate::sr::driver::{About, Driver, Sr, Substrate, no_images, no_server, refuse_slot};
use crate::sys::copy::Progress;
use crate::sys::durable::{self, Dir};
use crate::sys::loopdev;
use crate::sys::watch::Pulse;
use crate::types::{Done, Format, NewSr, NewVdi, SmConfig, SrInfo, SrUuid, VdiInfo, VdiUuid};
use crate::vdi::transfer::Incoming;
use crate::vdi::tree::collect::CollectPlan;
use crate::vdi::tree::run::Collecting;
use crate::vdi::{self, Attachments, Vdi};

use images::{Iso, is_ours_in_the_making, name_of, uuid_of};
use library::Library;
use place::{IsoPlace, IsoVdi};

pub const DRIVER: Driver = Driver {
    sr_type: "iso",
    executable: "ISOSR",
    description: "CD images in a local directory, on an NFS export or on an SMB share",
    dconf_form: "/path/to/directory, nfs@<server>:/path@/mountpoint or smb@//<server>/<share>@/mountpoint",
    formats: &[Format::Raw],
    image_formats: &[Format::Raw],
    parse_dconf: library::parse_dconf,
    open: |sr, config, deadline| Ok(Box::new(IsoSr { sr, library: Library::new(sr, config)?, deadline })),
    // Nothing in a directory says which ISO SR it is.
    probe: |config, _| Library::new(SrUuid::random(), config).map(|_| Vec::new()),
    discover: || Ok(Vec::new()),
    keeps_disks: true,
    about: About {
        name: "ISO",
        capabilities: &[
            "SR_ATTACH",
            "SR_DETACH",
            "SR_SCAN",
            "SR_UPDATE",
            "VDI_CREATE",
            "VDI_DELETE",
            "VDI_ATTACH",
            "VDI_DETACH",
            "VDI_ACTIVATE",
            "VDI_DEACTIVATE",
        ],
        configuration: &[
            ("location", "server:/path, //server/share, or with legacy_mode a local directory (required)"),
            ("type", "nfs_iso or cifs, where the location does not say it"),
            ("legacy_mode", "any value: location is a local directory"),
            ("iso_path", "a directory below the location"),
            ("options", "further mount options, separated by commas"),
            ("nfsversion", "3, 4, 4.0, 4.1 or 4.2; the newest that works if not given"),
            ("vers", "1.0, 2.0, 2.1, 3.0, 3.02 or 3.1.1; the newest of 2.1 and later that works if not given"),
            ("username", "name, or domain\\name, of an SMB user; guest if not given"),
            ("cifspassword", "that user's password"),
            ("cifspassword_secret", "the UUID of xapi's secret with that password"),
            ("credentials", "the path of a file with the user, the password and the domain; mount.cifs(8)"),
            ("mountpoint", "the directory below which SRs are mounted"),
        ],
        vdi_at: |sr, location| Ok(uuid_of(sr, location)),
        keeps_names: false,
        keeps_keys: false,
        sm_config: |_| SmConfig::new(),
        substrate: Substrate::CdLibrary,
        images: no_images,
        looks_at_every_disk: false,
        protocol_versions: no_server,
    },
};

struct IsoSr {
    sr: SrUuid,
    library: Library,
    /// The end of every wait for other calls.
    deadline: Deadline,
}

impl IsoSr {
    fn place(&self, dir: &Dir, iso: Iso) -> IsoPlace<'_> {
        IsoPlace { sr: self, path: iso.path.clone(), library: dir.path().to_owned(), iso }
    }

    /// The loop device over an image. A path below a mount of our own is the image's for sure, even where a server
    /// gives a file another number each time.
    fn device(&self, loops: &HashMap<PathBuf, Vec<String>>, path: &Path, id: loopdev::FileId) -> Option<PathBuf> {
        loopdev::find(loops, path, id).or_else(|| {
            let names = loops.get(path).filter(|_| self.library.is_remote())?;
            names.first().map(|name| Path::new("/dev").join(name))
        })
    }

    fn refuse<T>(&self, op: &'static str) -> Result<T> {
        let place = self.library.path.display();
        let why = format!(
            "a CD image is a file: copy it into {place} or out of it; sm makes, attaches and deletes CD images"
        );
        Err(Error::Unsupported { op, why })
    }
}

/// Makes a directory's names durable, where a directory can be synced: on an SMB share it can't, and what the server
/// answered is all there is to know.
fn sync(dir: &Dir) -> Result<()> {
    match dir.sync() {
        Err(Error::Io { source, .. }) if durable::is_unsupported(&source) => Ok(()),
        other => other,
    }
}

impl Sr for IsoSr {
    /// Finds the directory: there is nothing to make.
    fn create(&self, new: &NewSr) -> Result<()> {
        refuse_slot(new)?;
        self.library.check().map_err(|error| match error {
            Error::NoSr { sr, looked } if !self.library.is_remote() => {
                Error::NoSr { sr, looked: format!("{looked}; an ISO SR is made of a directory that is there") }
            }
            other => other,
        })
    }

    /// Leaves the images: they were there before.
    fn delete(&self) -> Result<Done> {
        self.detach()
    }

    fn attach(&self) -> Result<Done> {
        self.library.mount()
    }

    fn detach(&self) -> Result<Done> {
        if self.library.is_remote() {
            // By the kernel's names for them: the server may be gone.
            if let Some(name) = Attachments::now()?.below(&self.library.path).first() {
                let vdi = uuid_of(self.sr, durable::name_of(name));
                let holder = "this host, which has it attached (vdi_detach ends that)".to_owned();
                return Err(Error::VdiInUse { vdi, sr: self.sr, holder });
            }
        } else if let Ok(dir) = self.library.dir() {
            for iso in images::list(&dir)? {
                vdi::refuse_if_attached(&IsoVdi(self.place(&dir, iso)))?;
            }
        }
        self.library.unmount()
    }

    fn stat(&self) -> Result<SrInfo> {
        Ok(SrInfo { vdis: Vec::new(), ..self.scan()? })
    }

    fn scan(&self) -> Result<SrInfo> {
        let dir = self.library.dir()?;
        self.library.refuse_another_sr(&dir)?;
        let devices = loopdev::attached()?;
        let mut vdis = Vec::new();
        for iso in images::list(&dir)? {
            let device = self.device(&devices, &iso.path, iso.id);
            vdis.push(self.place(&dir, iso).info(device));
        }
        let fs = dir.statvfs()?;
        Ok(SrInfo {
            uuid: self.sr,
            vdi_uuids: vdis.iter().map(|vdi| vdi.uuid).collect(),
            physical_utilisation: vdis.iter().map(|vdi| vdi.physical_utilisation).sum(),
            virtual_allocation: vdis.iter().map(|vdi| vdi.virtual_size).sum(),
            size: fs.blocks() * fs.fragment_size(),
            free: fs.blocks_free() * fs.fragment_size(),
            sr_type: DRIVER.sr_type.to_owned(),
            location: self.library.location.clone(),
            slot: None,
            pool: None,
            vdis,
            logs: None,
            kept: None,
        })
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        let dir = self.library.dir()?;
        match images::list(&dir)?.into_iter().find(|iso| uuid_of(self.sr, &iso.name) == vdi) {
            Some(iso) => Ok(Box::new(IsoVdi(self.place(&dir, iso)))),
            None => Err(Error::NoVdi { vdi, sr: self.sr, looked: self.library.path.display().to_string() }),
        }
    }

    /// An empty disk `<vdi>.img`, to be filled.
    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        let refuse = |why: &str| Err(Error::Unsupported { op: "vdi_create", why: why.to_owned() });
        if new.format.is_some_and(|format| format != Format::Raw) {
            return refuse("CD images are raw");
        }
        if new.params.say_more_than_the_time() {
            let place = self.library.path.display();
            return refuse(&format!(
                "an ISO SR keeps no label and no mark beside its images; to add a CD, copy its file into {place}"
            ));
        }
        let (dir, name, layout) = (self.library.dir()?, name_of(new.vdi), vdi::layout(Format::Raw));
        for left in dir.names()?.iter().filter(|name| is_ours_in_the_making(name)) {
            let _ = dir.sweep_temporary(left);
        }
        if dir.lookup(&name)?.is_some() {
            // The call that made the image may have been killed before the image was durable.
            sync(&dir)?;
            return Err(Error::VdiExists { vdi: new.vdi, sr: self.sr });
        }
        let mut file = dir.new_file()?;
        let path = dir.join(&name);
        let image = file.file().try_clone().map_err(Error::io("duplicate", &path))?;
        layout.create(&FileStorage::of_regular(image, &path), layout.round(new.virtual_size)?)?;
        file.is_durable();
        match file.publish_over(&name) {
            // The name is there; see `sync`.
            Err(Error::Io { source, .. }) if durable::is_unsupported(&source) && dir.lookup(&name)?.is_some() => {}
            Err(cause) => return Err(cause.undone(dir.remove(&name).map(drop))),
            Ok(()) => {}
        }
        self.vdi(new.vdi).and_then(|vdi| vdi.info()).map_err(|cause| cause.after(vdi::made(new.vdi)))
    }

    fn import_vdi(&self, _new: &NewVdi, _incoming: Incoming, _progress: Progress) -> Result<VdiInfo> {
        self.refuse("vdi_import")
    }

    /// CD images have no parents, so there is nothing to merge.
    fn collect(&self, _collecting: &Collecting, _context: &Context) -> Result<Done> {
        let dir = self.library.dir()?;
        self.library.refuse_another_sr(&dir)?;
        Ok(Done::Already)
    }

    fn plan_collect(&self, context: &Context) -> Result<CollectPlan> {
        self.collect(&Collecting::default(), context).map(|_| CollectPlan::default())
    }

    fn forget_vdi(&self, _vdi: VdiUuid) -> Result<Done> {
        // A vdi_delete that was killed may have removed the file not durably, and this answers that it is gone.
        sync(&self.library.dir()?)?;
        Ok(Done::Already)
    }

    /// Hosts that have the directory as well only read its images, but for a `<vdi>.img` that xapi attaches to one host at a
    /// time.
    fn is_shared(&self) -> bool {
        false
    }

    fn pulse(&self) -> Option<Pulse> {
        self.library.pulse()
    }

    fn sr_sm_config(&self) -> SmConfig {
        self.library.iso_type().map(|kind| ("iso_type", Some(kind.to_owned()))).into_iter().collect()
    }

    fn content_type(&self) -> &'static str {
        "iso"
    }
}
