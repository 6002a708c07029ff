//! `FileSR`: disks as files in a local directory. NFS and ext are mounts around this.
//!
//! In the SR's directory:
//!
//! | name | what |
//! |---|---|
//! | `.sm-sr` | the marker: which SR this is. No marker, no SR: a missing mount is never an empty SR |
//! | `.sm-sr-deleting` | the marker of an SR whose deletion was begun: there is no such SR any more |
//! | `<vdi>.raw`, `<vdi>.vhd`, `<vdi>.qcow2` | a disk |
//! | `<vdi>.params` | label, description, shareable, read-only; only when one is set |
//! | `<vdi>.lock/` | the persistent lock, a [`register`]; only once it was locked |
//! | `.tmp-<uuid>` | a file in the making, see [`durable`] |
//! | `.sm-tree` | which tree is being changed; only while it is |
//! | `.sm-tree-lock` | empty; locked by the host that changes a tree. Only where several hosts have the SR |
//! | `.sm-in-use` | empty; a byte for each image is locked by the servers that have it open. Likewise |
//! | `.sm-collect-lock` | empty; locked by the host that collects. Likewise |
//!
//! Order of steps, and what the next call finds after a kill:
//!
//! - **sr_create**: 1. make the directory; 2. publish the marker. After 1: an empty directory, which
//!   sr_create takes.
//! - **sr_delete**: 1. rename the marker (on a full disk there is no room for another): from here on there
//!   is no such SR; 2. remove disks and what is beside them; 3. remove the marker, then the directory if sr_create made
//!   it. After 1 or 2: sr_delete and sr_create finish the removal first.
//! - **vdi_create, vdi_clone, vdi_snapshot by copying**: 1. write the image, unnamed; 2. publish the params, if any is
//!   set, `flock`ed; 3. publish the image. After 2: params without an image and without a lock, which the
//!   next call for this VDI and sr_attach remove; not sr_scan, which holds no lock.
//! - **vdi_clone, vdi_snapshot in a tree** of the disk U with the new VDI D and the base B: 1. write both children,
//!   unnamed, and at the same time publish `.sm-tree`, which names U, B and D; 2. link U's image as B; 3. publish D;
//!   4. sync the directory once for both; 5. rename the other child over U's name: here it has happened, and D is
//!   there; 6. mark B hidden; 7. remove `.sm-tree`. Before 5, there is no B or it is one file with U, and whoever takes
//!   the tree's lock next removes D and B; after it, they differ, and B is hidden. Readers take the B of a `.sm-tree`
//!   for hidden.
//! - **sr_collect**, after the data of an only child C was written into its base B. For a C that is a base itself:
//!   (1) publish `.sm-tree`; (2) make B the parent of each child of C; (3) remove C. Whoever takes the tree's lock
//!   after a kill goes on. For a C that is a disk: (1) publish `.sm-tree`; (2) mark B visible; (3) rename B over the
//!   name of C. After (2), B is hidden again. What a disk in use holds is set aside as a clone does it, without a D.
//! - **vdi_delete**: 1. unlink the image, durably; 2. remove what was beside it. After 1: as above.
//!   Where several hosts have the SR, it first takes the persistent lock, so that of a vdi_delete and a
//!   vdi_lock on two hosts one is refused. A kill then leaves a disk that is locked by `vdi_delete on <host>`, which
//!   vdi_delete does not mind.
//! - **vdi_resize**: one `ftruncate`. **vdi_lock, vdi_unlock**: one `link`.

mod images;
mod layout;
mod place;
mod tree;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use serde::{Deserialize, Serialize};

use crate::context::{Context, Deadline};
use crate::datapath::USES;
use crate::error::{Error, Result};
use crate::image::SECTOR;
use crate::sr::config::{self, PREFERRED_FORMATS};
use crate::sr::driver::{About, Driver, Sr, Substrate, no_server, vdi_by_uuid};
use crate::sys::copy::{self, Progress};
use crate::sys::durable::{self, Dir, NewFile, Stat};
use crate::sys::lock::{self, Lock};
use crate::sys::loopdev::Backing;
use crate::sys::uses::{self, Uses};
use crate::sys::{blockdev, loopdev, register, threads};
use crate::types::{
    DeviceConfig, Done, Format, Mode, NewVdi, Params, SmConfig, Space, SrInfo, SrUuid, State, VdiInfo, VdiUuid,
};
use crate::vdi::transfer::{self, Incoming};
use crate::vdi::{self, Attachments, Extent, Fork, Holders, Kind, Node, Place, Tree, Vdi};

use images::{Image, two_images};
pub use layout::MARKER;
use layout::*;
use place::FilePlace;
use tree::{Failures, changed_disk, is_being_changed, is_unborn, remove_unborn, unborn};

pub const DRIVER: Driver = Driver {
    sr_type: "file",
    executable: "FileSR",
    description: "disks as files in a local directory",
    dconf_form: "/path/to/directory",
    formats: &[Format::Vhd, Format::Raw, Format::Qcow2],
    parse_dconf: |dconf| Ok(DeviceConfig::from([("location", dconf)])),
    open: |sr, config, deadline| Ok(Box::new(FileSr::at(sr, location(config)?, deadline))),
    probe: |config, deadline| probe(&without_links(&location(config)?), "file", deadline),
    keeps_disks: false,
    about: About {
        name: "Local directory",
        capabilities: CAPABILITIES,
        configuration: &[("location", "absolute path of a local directory (required)"), PREFERRED_FORMATS],
        vdi_at: vdi_by_uuid,
        keeps_names: true,
        sm_config,
        substrate: Substrate::Directory,
        images,
        looks_at_every_disk: true,
        protocol_versions: no_server,
    },
};

/// What every driver with disks as files can do.
pub const CAPABILITIES: &[&str] = &[
    "SR_PROBE",
    "SR_UPDATE",
    "THIN_PROVISIONING",
    "VDI_CREATE",
    "VDI_DELETE",
    "VDI_ATTACH",
    "VDI_DETACH",
    "VDI_ACTIVATE",
    "VDI_DEACTIVATE",
    "VDI_CLONE",
    "VDI_SNAPSHOT",
    "VDI_RESIZE",
    "VDI_RESIZE_ONLINE",
    "VDI_INTRODUCE",
    "VDI_UPDATE",
    "VDI_GENERATE_CONFIG",
];

/// The keys that the Python file drivers keep, so that a VDI looks the same to either; XCP-ng 8.3, "Records and
/// sm_config".
///
/// `vhd-parent` is the parent of a qcow2 image too: clients walk the chains of an SR by it. `type` is there for raw disks
/// only, for readers that know no `image-format`.
pub fn sm_config(vdi: &VdiInfo) -> SmConfig {
    let mut keys = vec![
        ("image-format", Some(vdi.format.to_string())),
        ("vhd-parent", vdi.parent.map(|parent| parent.to_string())),
    ];
    match vdi.format {
        Format::Raw => keys.push(("type", Some(vdi.format.to_string()))),
        // Earlier releases wrote it, and nothing reads it.
        Format::Qcow2 => keys.push(("type", None)),
        Format::Vhd => {}
    }
    keys
}

/// [`About::images`] of every driver with disks as files.
pub fn images(directory: &Path, vdi: VdiUuid) -> Vec<PathBuf> {
    let served = [Format::Vhd, Format::Qcow2];
    served.map(|format| directory.join(image_name(vdi, format))).to_vec()
}

fn location(config: &DeviceConfig) -> Result<PathBuf> {
    config::absolute_path("location", config.require("location")?)
}

/// The path without symbolic links, as the kernel names what is attached: of one SR that is reached by two names, both
/// must find the same disks attached. A directory that does not exist yet is looked for in the one above it. A path that
/// leads nowhere stays as it is; what uses it says what is wrong.
fn without_links(path: &Path) -> PathBuf {
    let above = || Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    match fs::canonicalize(path) {
        Ok(real) => real,
        Err(_) if path.is_symlink() => path.to_owned(),
        Err(_) => above().unwrap_or_else(|| path.to_owned()),
    }
}

/// An SR in a directory that is there already.
pub struct FileSr {
    sr: SrUuid,
    sr_type: &'static str,
    path: PathBuf,
    /// The path as the caller gave it, where that is another.
    named: Option<PathBuf>,
    /// Other hosts use it too, where the locks of this one mean nothing.
    shared: bool,
    /// What device-mapper calls the volume that has to be mounted there. It says by itself which SR it is: a
    /// marker is not needed.
    volume: Option<String>,
    /// The end of every wait for other calls.
    deadline: Deadline,
}

/// What a directory turned out to be.
enum Found {
    /// Nothing, or an empty directory.
    Nothing,
    Sr(Dir, Marker),
    /// Files, but no marker.
    Strange(Dir),
}

impl FileSr {
    /// `deadline`: the end of every wait for other calls.
    pub fn new(sr: SrUuid, sr_type: &'static str, path: PathBuf, deadline: Deadline) -> Self {
        FileSr { sr, sr_type, path, named: None, shared: false, volume: None, deadline }
    }

    /// An SR of a local directory, to which `location` may lead by symbolic links.
    fn at(sr: SrUuid, location: PathBuf, deadline: Deadline) -> Self {
        let path = without_links(&location);
        let named = Some(location).filter(|named| *named != path);
        FileSr { named, ..FileSr::new(sr, "file", path, deadline) }
    }

    /// The same for a directory that several hosts have.
    pub fn shared(self) -> Self {
        FileSr { shared: true, ..self }
    }

    /// The same for the filesystem of a volume that is the SR's own, by device-mapper's name of it.
    pub fn on_volume(self, name: String) -> Self {
        FileSr { volume: Some(name), ..self }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The end of every wait for other calls.
    pub fn deadline(&self) -> Deadline {
        self.deadline.clone()
    }

    fn look(&self) -> Result<Found> {
        let dir = match Dir::open(&self.path) {
            Ok(dir) => dir,
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => return Ok(Found::Nothing),
            Err(e) if e.errno() == Some(Errno::ENAMETOOLONG as i32) => {
                return Err(Error::NoDevice {
                    device: self.path.display().to_string(),
                    why: Errno::ENAMETOOLONG.desc().to_owned(),
                });
            }
            Err(e) if matches!(e.errno(), Some(n) if n == Errno::ENOTDIR as i32 || n == Errno::ELOOP as i32) => {
                let kind = if self.path.is_symlink() {
                    "it is a symbolic link that leads nowhere"
                } else {
                    "it is not a directory"
                };
                return Err(Error::NoDevice { device: self.path.display().to_string(), why: kind.to_owned() });
            }
            Err(e) => return Err(e),
        };
        if let Some(marker) = read_marker(&dir)? {
            return Ok(Found::Sr(dir, marker));
        }
        let used =
            dir.names()?.iter().any(|name| name != "lost+found" && !name.starts_with(".tmp-") && !is_orphan(name));
        Ok(if used { Found::Strange(dir) } else { Found::Nothing })
    }

    /// The SR's directory, after checking that it is the SR's. Every call but sr_create and sr_delete
    /// begins here, so a directory that lost its mount is an error and never an empty SR.
    fn dir(&self) -> Result<Rc<Dir>> {
        if let Some(volume) = &self.volume {
            return self.root_of(volume);
        }
        match self.look()? {
            Found::Sr(dir, marker) if marker.uuid == self.sr && !marker.deleting => Ok(Rc::new(dir)),
            Found::Sr(_, marker) if marker.uuid == self.sr => {
                Err(self.no_sr("its deletion was begun; sr_delete finishes it".to_owned()))
            }
            Found::Sr(_, marker) => Err(self.no_sr(format!("{} holds SR {}", self.path.display(), marker.uuid))),
            Found::Strange(_) => Err(self.no_sr(format!(
                "{} has files but no {MARKER}; if other storage managers made it, sr_attach takes it over",
                self.path.display()
            ))),
            Found::Nothing => Err(self.no_sr(format!("looked in {}", self.path.display()))),
        }
    }

    /// The directory that was opened is asked what it lies on, not its name: another call may unmount it meanwhile.
    fn root_of(&self, volume: &str) -> Result<Rc<Dir>> {
        let dir = match Dir::open(&self.path) {
            Ok(dir) => Some(dir),
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => None,
            Err(e) => return Err(e),
        };
        if let Some(dir) = dir {
            let stat = nix::sys::stat::fstat(&dir).map_err(Error::sys("examine", &self.path))?;
            if blockdev::dm_name(stat.st_dev).as_deref() == Some(volume) {
                return Ok(Rc::new(dir));
            }
        }
        Err(Error::SrUnavailable {
            sr: self.sr,
            why: format!("/dev/mapper/{volume} is not mounted at {}; sr_attach does it", self.path.display()),
        })
    }

    fn no_sr(&self, looked: String) -> Error {
        Error::NoSr { sr: self.sr, looked }
    }

    fn write_marker(&self, dir: &Dir, made_directory: bool) -> Result<bool> {
        let marker = Marker { uuid: self.sr, sr_type: self.sr_type.to_owned(), made_directory, deleting: false };
        let made = dir.create(MARKER, &encode(&Record::Sr(marker)))?;
        if !made {
            // Another call was faster, and may have been killed before its marker was durable.
            dir.sync()?;
        }
        Ok(made)
    }

    /// A disk of the SR, of a format that is known.
    fn disk(&self, dir: Rc<Dir>, vdi: VdiUuid, format: Format) -> Result<Box<dyn Vdi + '_>> {
        Ok((vdi::kind(format).open)(Box::new(self.place(dir, vdi, format))))
    }

    fn place(&self, dir: Rc<Dir>, vdi: VdiUuid, format: Format) -> FilePlace<'_> {
        FilePlace { sr: self, dir, vdi, format }
    }

    /// One pass over the directory.
    fn list(&self, dir: &Dir) -> Result<Listing> {
        let mut listing = Listing::default();
        for name in dir.names()? {
            match classify(&name) {
                Some((vdi, Role::Image(format))) => {
                    match listing.images.get(&vdi) {
                        // The one that may be another's child is looked at.
                        Some(other) if vdi::kind(format).by_length => listing.further.push((vdi, *other, format)),
                        Some(other) => {
                            listing.further.push((vdi, format, *other));
                            listing.images.insert(vdi, format);
                        }
                        None => drop(listing.images.insert(vdi, format)),
                    }
                }
                Some((vdi, Role::Params)) => drop(listing.params.insert(vdi)),
                Some((vdi, Role::Lock)) => drop(listing.locks.insert(vdi)),
                None if name.starts_with(".tmp-") => listing.temporaries.push(name),
                None if JOURNALS.iter().any(|prefix| name.starts_with(prefix)) => listing.journals = true,
                None => {}
            }
        }
        Ok(listing)
    }

    /// Removes the files in the making of killed calls. What can't be removed now (a read-only mount) stays
    /// for later.
    fn sweep(&self, dir: &Dir, listing: &Listing) {
        for name in &listing.temporaries {
            let _ = dir.sweep_temporary(name);
        }
    }

    /// The same for what is beside images that are not there. Only for a caller that has the SR alone.
    fn sweep_all(&self, dir: &Dir, listing: &Listing) {
        self.sweep(dir, listing);
        for vdi in listing.params.union(&listing.locks).filter(|v| !listing.images.contains_key(v)) {
            let _ = remove_leftovers(dir, *vdi);
        }
    }

    /// The SR in a directory without a marker, which sr_attach would take over; `None` if it has one.
    pub fn unmarked(&self) -> Result<Option<SrInfo>> {
        match self.look()? {
            Found::Nothing if self.path.is_dir() => Ok(Some(self.stat_of(&Dir::open(&self.path)?)?)),
            Found::Strange(dir) => Ok(Some(self.stat_of(&dir)?)),
            Found::Nothing | Found::Sr(..) => Ok(None),
        }
    }

    fn stat_of(&self, dir: &Dir) -> Result<SrInfo> {
        let (_, images) = self.settled(dir)?;
        let visible = || images.iter().filter(|image| !image.node.hidden);
        let used = images.iter().map(|image| image.extent.allocated).sum();
        let allocation = visible().map(|image| image.node.virtual_size).sum();
        self.summary(dir, visible().map(|image| image.vdi).collect(), used, allocation)
    }

    fn summary(&self, dir: &Dir, mut vdis: Vec<VdiUuid>, used: u64, allocation: u64) -> Result<SrInfo> {
        vdis.sort_unstable();
        let space = space_of(dir)?;
        Ok(SrInfo {
            uuid: self.sr,
            vdi_uuids: vdis,
            physical_utilisation: used,
            virtual_allocation: allocation,
            size: space.size,
            free: space.free,
            sr_type: self.sr_type.to_owned(),
            location: self.named.as_ref().unwrap_or(&self.path).display().to_string(),
            vdis: Vec::new(),
            pool: None,
        })
    }

    fn remove_contents(&self, dir: &Dir, made_directory: bool) -> Result<()> {
        let listing = self.list(dir)?;
        let mut removed = false;
        for (vdi, format) in listing.all_images() {
            removed |= dir.remove(&image_name(vdi, format))?;
        }
        for vdi in listing.images.keys().chain(&listing.params).chain(&listing.locks) {
            removed |= dir.remove(&beside(*vdi, PARAMS))?;
            register::remove(dir, &beside(*vdi, LOCK))?;
        }
        for name in &listing.temporaries {
            removed |= dir.remove_temporary(name)?;
        }
        for name in dir.names()?.iter().filter(|name| is_orphan(name)) {
            // Refused while somebody here has it open; then the directory stays, and sr_create takes it.
            let _ = dir.remove(name);
        }
        removed |= dir.remove(CHANGE)?;
        removed |= dir.remove(TREE_LOCK)? | dir.remove(USES)? | dir.remove(COLLECT_LOCK)?;
        // The marker must not be gone before what it stands for. Of an empty SR there is nothing to wait for.
        if removed || !listing.locks.is_empty() {
            dir.sync()?;
        }
        dir.remove(DELETING)?;
        if made_directory {
            match fs::remove_dir(&self.path) {
                // With the directory goes what was in it.
                Ok(()) => return durable::sync_parent(&self.path),
                // Somebody's own files, or a mount: not ours to remove.
                Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOTEMPTY | Errno::EBUSY)) => {}
                Err(e) => return Err(Error::io("remove", &self.path)(e)),
            }
        }
        dir.sync()
    }

    /// Refuses a filesystem that takes no changes any more. Since Linux 6.12 its mount options do not tell.
    ///
    /// # Errors
    /// [`Error::Io`] with `EROFS`.
    pub fn refuse_read_only(&self) -> Result<()> {
        match self.dir()?.new_file() {
            Err(e) if e.errno() == Some(Errno::EROFS as i32) => Err(e),
            _ => Ok(()),
        }
    }

    /// Completes or undoes what killed calls left. The caller has the SR of this host to itself.
    pub fn repair(&self) -> Result<()> {
        let dir = self.dir()?;
        // What another host changes now is not what a killed call left.
        let _lock = match self.shared.then(|| self.lock_trees(&dir, Instant::now())) {
            Some(Err(Error::Busy { .. })) => return Ok(()),
            // Nor is anything repaired by who can't lock it.
            Some(Err(e)) if matches!(e.errno().map(Errno::from_raw), Some(Errno::EROFS | Errno::ENOLCK)) => {
                return Ok(());
            }
            Some(lock) => Some(lock?),
            None => self.recover_change(&dir).map(|_| None)?,
        };
        let listing = self.list(&dir)?;
        self.sweep_all(&dir, &listing);
        if !listing.journals {
            // What can't be collected now, on a read-only mount or while it is in use, is collected later.
            let _ = self.remove_garbage(&dir, &listing, &mut Failures::new());
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::VdiInUse`] while any VDI is attached or locked: sr_delete would pull it from under its user.
    pub fn refuse_if_used(&self) -> Result<()> {
        let dir = self.dir()?;
        let listing = self.list(&dir)?;
        self.refuse_if_attached(&dir, &listing)?;
        self.refuse_if_locked(&dir, &listing)
    }

    /// Keeps all hosts from opening any disk that has a server; see [`Tree::alone`].
    fn refuse_if_served(&self, dir: &Dir, listing: &Listing) -> Result<Option<Uses>> {
        const WHOM: &str = "another host, which has it attached";
        let served = listing.images.iter().filter(|(_, format)| !vdi::kind(**format).by_length);
        let served: Vec<VdiUuid> = served.map(|(vdi, _)| *vdi).collect();
        let Some(first) = served.first() else { return Ok(None) };
        // One by one, to say which it is.
        served.iter().try_for_each(|vdi| self.alone(dir, &[*vdi], *vdi, WHOM).map(drop))?;
        self.alone(dir, &served, *first, WHOM)
    }

    fn refuse_if_locked(&self, dir: &Rc<Dir>, listing: &Listing) -> Result<()> {
        let locked = listing.images.iter().filter(|(vdi, _)| listing.locks.contains(vdi));
        locked.into_iter().try_for_each(|(vdi, format)| vdi::refuse_if_locked(&self.place(dir.clone(), *vdi, *format)))
    }

    fn refuse_if_attached(&self, dir: &Rc<Dir>, listing: &Listing) -> Result<()> {
        for image in Attachments::now()?.images() {
            if let Some((vdi, Role::Image(format))) = classify(durable::name_of(image))
                && listing.all_images().any(|found| found == (vdi, format))
            {
                vdi::refuse_if_attached(&*self.disk(dir.clone(), vdi, format)?)?;
            }
        }
        Ok(())
    }

    /// All that is there. NFS may take away the name of a disk for a moment while its image is replaced: then the change is
    /// waited for, for a disk that a scan leaves out is forgotten.
    fn settled(&self, dir: &Dir) -> Result<(Listing, Vec<Image>)> {
        loop {
            let before = if self.shared { read_change(dir)? } else { None };
            let listing = self.list(dir)?;
            let images = self.images(dir, &listing)?;
            let after = if self.shared { read_change(dir)? } else { None };
            let is_missing =
                |change: &Record| changed_disk(change).is_some_and(|vdi| !images.iter().any(|image| image.vdi == vdi));
            if ![before, after].iter().flatten().any(is_missing) {
                return Ok((listing, images));
            }
            drop(self.lock_trees(dir, self.deadline.end())?);
        }
    }

    /// Makes an image nobody sees by `write`, which makes it durable, then publishes it.
    fn make_vdi(&self, new: &NewVdi, write: &mut dyn FnMut(&Kind, &fs::File, &Path) -> Result<()>) -> Result<VdiInfo> {
        let format = new.format.unwrap_or(DRIVER.formats[0]);
        let kind = vdi::kind(format);
        let dir = self.dir()?;
        remove_unborn(self, &dir, new.vdi)?;
        let place = self.place(dir.clone(), new.vdi, format);
        if has_image(&dir, new.vdi)? {
            return Err(place.exists_already());
        }
        let mut unnamed = place.unnamed(&new.params)?;
        write(kind, unnamed.image.file(), &place.path())?;
        unnamed.sync_beside_image()?;
        place.publish(unnamed)?;
        (kind.open)(Box::new(place)).info().map_err(|cause| cause.after(vdi::made(new.vdi)))
    }
}

#[derive(Default)]
struct Listing {
    images: HashMap<VdiUuid, Format>,
    /// Second images of VDIs: the VDI, the format in `images`, the format of this one.
    further: Vec<(VdiUuid, Format, Format)>,
    params: HashSet<VdiUuid>,
    locks: HashSet<VdiUuid>,
    temporaries: Vec<String>,
    /// Another storage manager's collector left a journal: what looks like garbage may not be.
    journals: bool,
}

impl Listing {
    /// The formats of a VDI that has two images.
    fn doubled(&self, vdi: VdiUuid) -> Option<(Format, Format)> {
        self.further.iter().find(|(of, ..)| *of == vdi).map(|(_, first, second)| (*first, *second))
    }

    /// Every image, second ones of a VDI too.
    fn all_images(&self) -> impl Iterator<Item = (VdiUuid, Format)> + '_ {
        self.images.iter().map(|(v, f)| (*v, *f)).chain(self.further.iter().map(|(v, _, f)| (*v, *f)))
    }
}

impl Sr for FileSr {
    fn create(&self, size: Option<u64>) -> Result<()> {
        let mut made_directory = false;
        match self.look()? {
            Found::Sr(dir, marker) if marker.deleting => {
                self.remove_contents(&dir, false)?;
                made_directory = marker.made_directory;
            }
            Found::Sr(dir, marker) if marker.uuid == self.sr => {
                // Whoever made it may have been killed before it was durable.
                dir.sync()?;
                durable::sync_parent(&self.path)?;
                return Err(Error::SrExists { sr: self.sr, found: format!("in {}", self.path.display()) });
            }
            Found::Sr(_, marker) => {
                return Err(Error::DeviceInUse {
                    device: self.path.display().to_string(),
                    holder: format!("it holds SR {}", marker.uuid),
                });
            }
            Found::Strange(_) => {
                return Err(Error::NotEmpty { path: self.path.clone() });
            }
            Found::Nothing => {}
        }
        let dir = match Dir::open(&self.path) {
            Ok(dir) => dir,
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => {
                match fs::DirBuilder::new().mode(0o700).create(&self.path) {
                    Ok(()) => made_directory = true,
                    Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                        // Another sr_create was faster; the marker decides between the two.
                        Some(Errno::EEXIST) => {}
                        Some(Errno::ENOENT) => {
                            return Err(Error::NoDevice {
                                device: self.path.display().to_string(),
                                why: "the directory above it does not exist".to_owned(),
                            });
                        }
                        _ => return Err(Error::io("create the directory", &self.path)(e)),
                    },
                }
                Dir::open(&self.path)?
            }
            Err(e) => return Err(e),
        };
        let undo = |cause: Error| {
            if made_directory {
                let _ = fs::remove_dir(&self.path);
            }
            Err(cause)
        };
        let fs = dir.statvfs()?;
        let has = fs.blocks() * fs.fragment_size();
        if let Some(wanted) = size.filter(|wanted| *wanted > has) {
            return undo(Error::NoSpace { sr: self.sr, free: has, wanted });
        }
        match self.write_marker(&dir, made_directory) {
            // After the marker: a journal that holds the one holds the other as well, and this costs nothing more.
            Ok(true) if made_directory => durable::sync_parent(&self.path).or_else(|cause| {
                let _ = dir.remove(MARKER);
                undo(cause)
            }),
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::DeviceInUse {
                device: self.path.display().to_string(),
                holder: "another sr_create was faster".to_owned(),
            }),
            Err(cause) => undo(cause),
        }
    }

    fn delete(&self) -> Result<Done> {
        match self.look()? {
            Found::Sr(dir, marker) if marker.uuid == self.sr => {
                if !marker.deleting {
                    let listing = self.list(&dir)?;
                    let checked = self.dir()?;
                    self.refuse_if_attached(&checked, &listing)?;
                    for (vdi, format) in listing.all_images() {
                        must_be(&dir, &image_name(vdi, format), SFlag::S_IFREG)?;
                    }
                    for vdi in &listing.params {
                        must_be(&dir, &beside(*vdi, PARAMS), SFlag::S_IFREG)?;
                    }
                    for vdi in &listing.locks {
                        must_be(&dir, &beside(*vdi, LOCK), SFlag::S_IFDIR)?;
                    }
                    self.refuse_if_locked(&checked, &listing)?;
                    let _alone = self.refuse_if_served(&dir, &listing)?;
                    dir.rename(MARKER, DELETING)?;
                }
                // Also of a rename that was killed before it was durable.
                match dir.sync() {
                    Err(cause) if !marker.deleting => return Err(cause.undone(dir.rename(DELETING, MARKER))),
                    other => other?,
                }
                let removed = self.remove_contents(&dir, marker.made_directory);
                removed.map_err(|cause| cause.after(format!("the deletion of SR {} was begun", self.sr)))?;
                Ok(Done::Changed)
            }
            Found::Strange(dir) if !self.list(&dir)?.images.is_empty() => Err(Error::SrUnavailable {
                sr: self.sr,
                why: format!("{} has disks but no {MARKER}; sr_attach takes it over", self.path.display()),
            }),
            // What a killed sr_delete removed last may not be durable.
            Found::Nothing => {
                match Dir::open(&self.path) {
                    Ok(dir) => dir.sync()?,
                    Err(e) if e.errno() == Some(Errno::ENOENT as i32) => match durable::sync_parent(&self.path) {
                        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => {}
                        other => other?,
                    },
                    Err(e) => return Err(e),
                }
                Ok(Done::Already)
            }
            _ => Ok(Done::Already),
        }
    }

    fn attach(&self) -> Result<Done> {
        let mut done = Done::Already;
        let found = self.look()?;
        // The marker of an SR that a killed call took over may not be durable.
        if let Found::Sr(dir, _) = &found {
            dir.sync()?;
        }
        if let Found::Strange(dir) = found {
            if self.list(&dir)?.images.is_empty() {
                let path = self.path.display();
                return Err(self.no_sr(format!(
                    "{path} has files, but neither {MARKER} nor disks that are named by UUIDs: <uuid>.vhd, .raw or .qcow2"
                )));
            }
            self.write_marker(&dir, false)?;
            done = Done::Changed;
        }
        match self.repair() {
            Err(cause) if done == Done::Changed => Err(cause.after(format!("SR {} was taken over", self.sr))),
            other => other.map(|()| done),
        }
    }

    fn adopt(&self) -> Result<Done> {
        let dir = match self.look()? {
            Found::Strange(dir) if self.list(&dir)?.images.is_empty() => dir,
            Found::Nothing => match Dir::open(&self.path) {
                Ok(dir) => dir,
                Err(_) => return Err(self.no_sr(format!("there is no directory {}", self.path.display()))),
            },
            _ => return self.attach(),
        };
        Ok(if self.write_marker(&dir, false)? { Done::Changed } else { Done::Already })
    }

    fn local_path(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    fn detach(&self) -> Result<Done> {
        if let Found::Sr(dir, marker) = self.look()?
            && marker.uuid == self.sr
            && !marker.deleting
        {
            let listing = self.list(&dir)?;
            self.refuse_if_attached(&Rc::new(dir), &listing)?;
        }
        // A local directory is there or not: nothing holds it attached.
        Ok(Done::Already)
    }

    fn stat(&self) -> Result<SrInfo> {
        self.stat_of(&*self.dir()?)
    }

    fn space(&self) -> Result<Space> {
        space_of(&*self.dir()?)
    }

    fn scan(&self) -> Result<SrInfo> {
        let dir = self.dir()?;
        let (listing, images) = self.settled(&dir)?;
        let attachments = Attachments::now()?;
        let mut children: HashMap<VdiUuid, Vec<VdiUuid>> = HashMap::new();
        for image in &images {
            if let Some(parent) = image.node.parent {
                children.entry(parent).or_default().push(image.vdi);
            }
        }
        let mut infos = Vec::with_capacity(images.len());
        let (mut used, mut allocation, mut visible) = (0, 0, Vec::with_capacity(images.len()));
        for image in &images {
            used += image.extent.allocated;
            let children = children.remove(&image.vdi).unwrap_or_default();
            if image.node.hidden && children.is_empty() {
                // Garbage: nobody's base any more.
                continue;
            }
            if !image.node.hidden {
                allocation += image.node.virtual_size;
                visible.push(image.vdi);
            }
            let place = self.place(dir.clone(), image.vdi, image.format);
            let mut node = image.node.clone();
            let mut unless_damaged = |damage: Error| {
                if node.state.is_healthy() {
                    node.state = State::of(&damage);
                }
            };
            let with_params = listing.params.contains(&image.vdi);
            let params = with_params.then(|| place.params()).transpose().unwrap_or_else(|damage| {
                unless_damaged(damage);
                None
            });
            let locked = listing.locks.contains(&image.vdi);
            let holders = locked.then(|| place.holders()).transpose().unwrap_or_else(|damage| {
                unless_damaged(damage);
                None
            });
            let attached = attachments.find(image.format, &place.path(), image.id).is_some();
            let (params, users) = (params.unwrap_or_default(), holders.unwrap_or_default().users);
            let died = attachments.server_died(image.format, &place.path());
            let info = vdi::describe(&place, &node, image.extent.allocated, params, users, attached, children);
            let info = vdi::with_server(info, died);
            infos.push(info);
        }
        self.sweep(&dir, &listing);
        Ok(SrInfo { vdis: infos, ..self.summary(&dir, visible, used, allocation)? })
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        let dir = self.dir()?;
        match format_of(&dir, vdi)? {
            Some(format) if format == Format::Raw || !is_unborn(&dir, vdi)? => {
                must_be(&dir, &image_name(vdi, format), SFlag::S_IFREG)?;
                return self.disk(dir, vdi, format);
            }
            _ => {}
        }
        if self.shared && is_being_changed(&dir, vdi)? {
            drop(self.lock_trees(&dir, self.deadline.end())?);
            if let Some(format) = format_of(&dir, vdi)? {
                return self.disk(dir, vdi, format);
            }
        }
        Err(Error::NoVdi { vdi, sr: self.sr, looked: self.path.display().to_string() })
    }

    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        self.make_vdi(new, &mut |kind, file, path| (kind.create)(file, path, kind.round(new.virtual_size)?))
    }

    fn import_vdi(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        let (dir, mut incoming) = (self.dir()?, Some(incoming));
        self.make_vdi(new, &mut |kind, file, path| {
            let mut make = |size: u64| {
                (kind.create)(file, path, kind.round(size.max(new.virtual_size))?)?;
                transfer::writer(kind.format, file.try_clone().map_err(Error::io("duplicate", path))?, path)
            };
            incoming.take().expect("an image is made once").fill(&mut make, &|| dir.new_file(), progress)?;
            file.sync_all().map_err(Error::io("make durable", path))
        })
    }

    fn collect(&self, context: &Context) -> Result<Done> {
        self.merge_bases(context)
    }

    fn delete_broken(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        let dir = self.dir()?;
        let _lock = self.lock_trees(&dir, context.deadline)?;
        let listing = self.list(&dir)?;
        let images = self.images(&dir, &listing)?;
        let Some(image) = images.iter().find(|image| image.vdi == vdi) else {
            return Err(Error::NoVdi { vdi, sr: self.sr, looked: self.path.display().to_string() });
        };
        let place = self.place(dir.clone(), vdi, image.format);
        let readable = matches!(image.node.state, State::Healthy | State::ParentMissing(_));
        if readable && place.params().is_ok() && place.holders().is_ok() {
            return Ok(false);
        }
        let attachments = Attachments::now()?;
        let formats = || listing.all_images().filter(|(of, _)| *of == vdi).map(|(_, format)| format);
        for format in formats() {
            let name = image_name(vdi, format);
            let Some(stat) = dir.lookup(&name)? else { continue };
            if let Some(device) = attachments.find(format, &dir.join(&name), stat.id) {
                let holder = format!("this host, which has it attached as {}", device.display());
                return Err(vdi::in_use(&place, holder));
            }
        }
        // A lock that cannot be read is deleted with what it was of.
        if place.holders().is_ok() {
            vdi::refuse_if_locked(&place)?;
        }
        let nodes = images.iter().map(|image| (image.vdi, image.node.clone())).collect();
        vdi::cow::refuse_if_parent(&place, &nodes)?;
        let _alone = self.alone(&dir, &[vdi], vdi, "another host, which has it attached")?;
        for format in formats() {
            remove_whatever(&dir, &image_name(vdi, format))?;
        }
        dir.sync().map_err(|cause| cause.after(vdi::deleted(vdi)))?;
        remove_whatever(&dir, &beside(vdi, PARAMS))?;
        match dir.lookup(&beside(vdi, LOCK))? {
            Some(stat) if stat.mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() => {
                register::remove(&dir, &beside(vdi, LOCK))?;
            }
            Some(_) => drop(dir.remove(&beside(vdi, LOCK))?),
            None => {}
        }
        Ok(true)
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        let dir = self.dir()?;
        let unborn = remove_unborn(self, &dir, vdi)?;
        let removed = remove_leftovers(&dir, vdi)?;
        // A vdi_delete that was killed may have removed the image not durably, and this answers that it is gone.
        dir.sync()?;
        Ok(if removed || unborn { Done::Changed } else { Done::Already })
    }

    fn is_shared(&self) -> bool {
        self.shared
    }

    fn content_type(&self) -> &'static str {
        "raw"
    }
}

/// Removes what has a name, be it a directory, which must be empty.
fn remove_whatever(dir: &Dir, name: &str) -> Result<bool> {
    match dir.lookup(name)? {
        Some(stat) if stat.mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() => dir.remove_dir(name),
        _ => dir.remove(name),
    }
}

/// What the filesystem of a directory has.
fn space_of(dir: &Dir) -> Result<Space> {
    let fs = dir.statvfs()?;
    Ok(Space { size: fs.blocks() * fs.fragment_size(), free: fs.blocks_free() * fs.fragment_size() })
}

/// Which SRs a directory holds: itself, or those one level below it. Waits for changes of their trees until `deadline`.
pub fn probe(path: &Path, sr_type: &'static str, deadline: Deadline) -> Result<Vec<SrInfo>> {
    let dir = Dir::open(path).map_err(|e| match e.errno().map(Errno::from_raw) {
        Some(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {
            Error::NoDevice { device: path.display().to_string(), why: errno.desc().to_owned() }
        }
        _ => e,
    })?;
    let mut found = Vec::new();
    if let Some(marker) = read_marker(&dir)?.filter(|m| !m.deleting) {
        found.push(FileSr::new(marker.uuid, sr_type, path.to_owned(), deadline.clone()).stat()?);
    }
    for name in dir.names()? {
        let Ok(Some(below)) = dir.sub_dir(&name) else { continue };
        if let Ok(Some(marker)) = read_marker(&below)
            && !marker.deleting
        {
            found.push(FileSr::new(marker.uuid, sr_type, path.join(name), deadline.clone()).stat()?);
        }
    }
    Ok(found)
}
