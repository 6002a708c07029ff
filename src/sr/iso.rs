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

mod library;
mod share;

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;

use crate::context::{Context, Deadline};
use crate::error::{Error, Result};
use crate::image::storage::FileStorage;
use crate::sr::driver::{About, Driver, Sr, Substrate, no_images, no_server};
use crate::sys::copy::Progress;
use crate::sys::durable::{self, Dir};
use crate::sys::lock::Lock;
use crate::sys::loopdev::{self, Backing};
use crate::sys::watch::Pulse;
use crate::types::{Done, Format, Mode, NewVdi, Params, SmConfig, SrInfo, SrUuid, State, VdiInfo, VdiUuid};
use crate::vdi::tree::nodes::Node;
use crate::vdi::{self, Attachments, Holders, Opened, Place, Usage, Vdi};

use library::Library;

pub const DRIVER: Driver = Driver {
    sr_type: "iso",
    executable: "ISOSR",
    description: "CD images in a local directory, on an NFS export or on an SMB share",
    dconf_form: "/path/to/directory, nfs@<server>:/path@/mountpoint or smb@//<server>/<share>@/mountpoint",
    formats: &[Format::Raw],
    parse_dconf: library::parse_dconf,
    open: |sr, config, deadline| Ok(Box::new(IsoSr { sr, library: Library::new(sr, config)?, deadline })),
    // Nothing in a directory says which ISO SR it is.
    probe: |config, _| Library::new(SrUuid::random(), config).map(|_| Vec::new()),
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

/// A CD image.
struct Iso {
    name: String,
    /// Where the file is. For a link: where that leads.
    path: PathBuf,
    usage: Usage,
    id: loopdev::FileId,
    /// Whether it can be read, as far as its attributes tell.
    state: State,
}

/// The disk that vdi_create made under this name, if it has such a name.
fn made(name: &str) -> Option<VdiUuid> {
    name.strip_suffix(".img")?.parse().ok().filter(|vdi| name_of(*vdi) == name)
}

fn name_of(vdi: VdiUuid) -> String {
    format!("{vdi}.img")
}

fn uuid_of(sr: SrUuid, name: &str) -> VdiUuid {
    made(name).unwrap_or_else(|| VdiUuid::of_name(sr, name))
}

impl IsoSr {
    fn list(&self, dir: &Dir) -> Result<Vec<Iso>> {
        let mut found = Vec::new();
        for name in dir.names()?.into_iter().filter(|name| is_image(name)) {
            let named = dir.join(&name);
            let unusable = |name: String, state| {
                let nothing = Usage { length: 0, allocated: 0 };
                Iso { name, path: named.clone(), usage: nothing, id: (0, 0), state }
            };
            match followed(&named) {
                Ok((path, meta)) if meta.is_file() && !path.starts_with(dir.path()) => {
                    let state = State::of(&leads_out(&named, dir.path()));
                    found.push(unusable(name, state));
                }
                Ok((path, meta)) if meta.is_file() => found.push(Iso {
                    name,
                    path,
                    usage: Usage { length: meta.len(), allocated: meta.blocks() * 512 },
                    id: (meta.dev(), meta.ino()),
                    state: State::Healthy,
                }),
                Ok(_) => {}
                // Where a link leads may be missing or be no file: then it is no image.
                Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                    // It is there, so nobody may take it for one that is gone. The others are listed if the directory
                    // still answers: then it is this name's own trouble.
                    _ => {
                        dir.lookup(".")?;
                        found.push(unusable(name, State::Broken(e.to_string())));
                    }
                },
            }
        }
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

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
        Err(Error::Unsupported { op, why: "CD images are made, attached and deleted, and that is all".to_owned() })
    }
}

/// Where a name leads, without links, and what is there.
fn followed(named: &Path) -> std::io::Result<(PathBuf, Metadata)> {
    let meta = fs::symlink_metadata(named)?;
    if !meta.is_symlink() {
        return Ok((named.to_owned(), meta));
    }
    let path = fs::canonicalize(named)?;
    let meta = fs::symlink_metadata(&path)?;
    Ok((path, meta))
}

fn leads_out(named: &Path, library: &Path) -> Error {
    let (name, library) = (durable::name_of(named), library.display());
    let why = format!("{name} is a link that leads out of {library}; put there the file itself, or a hard link to it");
    Error::Unsupported { op: "a file outside of the directory of an ISO SR", why }
}

fn is_image(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or("");
    extension.eq_ignore_ascii_case("iso") || extension.eq_ignore_ascii_case("img")
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
    fn create(&self, _size: Option<u64>) -> Result<()> {
        self.library.check()
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
            for iso in self.list(&dir)? {
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
        for iso in self.list(&dir)? {
            let attached = self.device(&devices, &iso.path, iso.id).is_some();
            vdis.push(self.place(&dir, iso).info(attached));
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
            pool: None,
            vdis,
        })
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        let dir = self.library.dir()?;
        match self.list(&dir)?.into_iter().find(|iso| uuid_of(self.sr, &iso.name) == vdi) {
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
        if new.params != Params::default() {
            return refuse("an ISO SR keeps no label and no mark beside its images");
        }
        let (dir, name, layout) = (self.library.dir()?, name_of(new.vdi), vdi::layout(Format::Raw));
        for left in dir.names()?.iter().filter(|name| is_ours_in_the_making(name)) {
            let _ = dir.sweep_temporary(left);
        }
        if dir.lookup(&name)?.is_some() {
            // Whoever made it may have been killed before it was durable.
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

    /// CD images have no parents, so there is nothing to merge.
    fn collect(&self, _context: &Context) -> Result<Done> {
        let dir = self.library.dir()?;
        self.library.refuse_another_sr(&dir)?;
        Ok(Done::Already)
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

/// `.tmp-<uuid>`: the directory is somebody's own, so nothing else is touched.
fn is_ours_in_the_making(name: &str) -> bool {
    name.strip_prefix(".tmp-").is_some_and(|rest| rest.parse::<VdiUuid>().is_ok())
}

/// A CD: a raw disk that says its file's name, and can only be read unless vdi_create made it.
struct IsoVdi<'a>(IsoPlace<'a>);

impl Vdi for IsoVdi<'_> {
    fn place(&self) -> &dyn Place {
        &self.0
    }

    fn info(&self) -> Result<VdiInfo> {
        Ok(self.0.info(self.device()?.is_some()))
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        self.0.device()
    }

    fn attach(&self, mode: Mode, _lock: Option<&Lock>) -> Result<PathBuf> {
        self.0.attach(mode)
    }

    fn detach(&self) -> Result<Done> {
        self.0.detach()
    }

    fn delete(&self, _context: &Context) -> Result<()> {
        vdi::refuse_if_attached(self)?;
        self.0.remove()
    }

    fn read(&self, _reader: &mut dyn FnMut(&dyn crate::image::disk::Disk) -> Result<()>) -> Result<()> {
        self.0.sr.refuse("vdi_export")
    }

    fn resize(&self, _size: u64, _allow_shrink: bool, _context: &Context) -> Result<Done> {
        self.0.sr.refuse("vdi_resize")
    }
}

struct IsoPlace<'a> {
    sr: &'a IsoSr,
    path: PathBuf,
    /// The directory of the SR, by a path without links.
    library: PathBuf,
    iso: Iso,
}

impl IsoPlace<'_> {
    fn info(&self, attached: bool) -> VdiInfo {
        let node = Node { state: self.iso.state.clone(), ..Node::alone(Format::Raw, self.iso.usage.length) };
        let params = self.params_now();
        let info = vdi::describe(self, &node, self.iso.usage.allocated, params, Vec::new(), attached, Vec::new());
        VdiInfo { location: Some(self.iso.name.clone()), ..info }
    }

    fn file(&self, mode: Mode) -> Result<File> {
        let write = mode == Mode::ReadWrite;
        // Never waits, as the open of a pipe in the place of the file would.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).write(write).custom_flags(flags).open(&self.path);
        let file = opened.map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => leads_out(&self.path, &self.library),
            _ => Error::io("open", &self.path)(e),
        })?;
        // Between the listing and now a directory above, or the file, may have become something else.
        let (meta, opened) = file
            .metadata()
            .and_then(|meta| Ok((meta, fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?)))
            .map_err(Error::io("examine", &self.path))?;
        if !meta.is_file() {
            return Err(Error::Damaged { path: self.path.clone(), what: "it is no regular file".to_owned() });
        }
        if opened.starts_with(&self.library) { Ok(file) } else { Err(leads_out(&self.path, &self.library)) }
    }

    fn params_now(&self) -> Params {
        let read_only = made(&self.iso.name).is_none();
        Params { label: self.iso.name.clone(), read_only, ..Params::default() }
    }
}

impl Place for IsoPlace<'_> {
    fn sr(&self) -> SrUuid {
        self.sr.sr
    }

    fn vdi(&self) -> VdiUuid {
        uuid_of(self.sr.sr, &self.iso.name)
    }

    fn format(&self) -> Format {
        Format::Raw
    }

    fn deadline(&self) -> Instant {
        self.sr.deadline.end()
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn open(&self, mode: Mode) -> Result<Opened<'_>> {
        Ok(Opened::of(FileStorage::new(self.file(mode)?, &self.path)?))
    }

    fn usage(&self) -> Result<Usage> {
        Ok(self.iso.usage)
    }

    fn settle(&self) -> Result<()> {
        self.file(Mode::ReadOnly)?.sync_all().map_err(Error::io("flush", &self.path))
    }

    /// Nothing is stored beside an image: its name is its label, and no user locks it.
    fn settle_records(&self) -> Result<()> {
        Ok(())
    }

    /// The kernel of another host that has an image attached is not asked: images are read, and a `<vdi>.img` is xapi's to
    /// attach to one host at a time.
    fn is_shared(&self) -> bool {
        false
    }

    fn params(&self) -> Result<Params> {
        Ok(self.params_now())
    }

    fn holders(&self) -> Result<Holders> {
        Ok(Holders::default())
    }

    fn set_holders(&self, _seen: &Holders, _users: Vec<String>) -> Result<bool> {
        self.sr.refuse("vdi_lock")
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        Ok(self.sr.device(&loopdev::attached()?, &self.path, self.iso.id))
    }

    fn attach(&self, mode: Mode) -> Result<PathBuf> {
        match self.device()? {
            Some(device) => Ok(device),
            None => loopdev::attach(&self.file(mode)?, &self.path, mode == Mode::ReadOnly),
        }
    }

    fn detach(&self) -> Result<Done> {
        let loops = loopdev::attached()?;
        let Some(device) = self.sr.device(&loops, &self.path, self.iso.id) else { return Ok(Done::Already) };
        // As it was found.
        let backing = match self.sr.library.is_remote() && loops.contains_key(&self.path) {
            true => Backing::Path(&self.path),
            false => Backing::File(self.iso.id),
        };
        match loopdev::detach(&device, backing)? {
            loopdev::Detached::Done(done) => Ok(done),
            loopdev::Detached::Busy(who) => Err(vdi::in_use(self, format!("{who}, through {}", device.display()))),
        }
    }

    fn resize(&self, _bytes: u64) -> Result<()> {
        self.sr.refuse("vdi_resize")
    }

    fn copy_to(&self, _dest: VdiUuid, _params: &Params, _progress: Progress) -> Result<VdiInfo> {
        self.sr.refuse("vdi_clone")
    }

    fn remove(&self) -> Result<()> {
        let dir = self.sr.library.dir()?;
        dir.remove(&self.iso.name)?;
        sync(&dir).map_err(|cause| cause.after(vdi::deleted(self.vdi())))
    }
}
