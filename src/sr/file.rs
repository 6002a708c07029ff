//! `FileSR`: disks as files in a local directory. NFS and ext are mounts around this.
//!
//! In the SR's directory:
//!
//! | name | what |
//! |---|---|
//! | `.sm-sr` | the marker: which SR this is. No marker, no SR: a missing mount is never an empty SR |
//! | `.sm-sr-deleting` | the marker of an SR whose deletion was begun: there is no such SR any more |
//! | `<vdi>.raw`, `<vdi>.vhd` | a disk |
//! | `<vdi>.params` | label, description, shareable, read-only; only when one is set |
//! | `<vdi>.lock/` | the persistent lock, a [`register`]; only once it was locked |
//! | `.tmp-<uuid>` | a file in the making, see [`durable`](crate::sys::durable) |
//! | `.sm-tree` | which tree is being changed; only while it is |
//! | `.sm-tree-lock` | empty; locked by the host that changes a tree. Only where several hosts have the SR |
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
//!   unnamed; 2. publish `.sm-tree`, which names U, B and D; 3. link U's image as B; 4. publish D; 5. rename
//!   the other child over U's name: here it has happened, and D is there; 6. mark B hidden; 7. remove `.sm-tree`. Before 5, U and B are one file, and
//!   whoever takes the tree's lock next removes D and B; after it, they differ, and B is hidden. Readers take
//!   the B of a `.sm-tree` for hidden.
//! - **sr_collect**, after the data of an only child C was written into its base B. For a C that is a base itself:
//!   (1) publish `.sm-tree`; (2) make B the parent of each child of C; (3) remove C. Whoever takes the tree's lock
//!   after a kill goes on. For a C that is a disk: (1) publish `.sm-tree`; (2) mark B visible; (3) rename B over the
//!   name of C. After (2), B is hidden again.
//! - **vdi_delete**: 1. unlink the image, durably; 2. remove what was beside it. After 1: as above.
//!   Where several hosts have the SR, it first takes the persistent lock, so that of a vdi_delete and a
//!   vdi_lock on two hosts one is refused. A kill then leaves a disk that is locked by "vdi_delete on
//!   <host>", which vdi_delete does not mind.
//! - **vdi_resize**: one `ftruncate`. **vdi_lock, vdi_unlock**: one `link`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag};
use serde::{Deserialize, Serialize};

use crate::call::Context;
use crate::error::{Error, Result};
use crate::sr::{About, Driver, Sr, vdi_by_uuid};
use crate::sys::copy::{self, Progress};
use crate::sys::durable::{self, Dir, NewFile};
use crate::sys::lock::{self, Lock};
use crate::sys::{blockdev, loopdev, register};
use crate::types::{
    DeviceConfig, Done, Format, Mode, NewVdi, Params, SmConfig, SrInfo, SrUuid, Tagged, VdiInfo, VdiUuid,
};
use crate::vdi::transfer::{self, Incoming};
use crate::vdi::{self, Attachments, Extent, Fork, Holders, Kind, Node, Place, Tree, Vdi};

pub const DRIVER: Driver = Driver {
    sr_type: "file",
    executable: "FileSR",
    description: "disks as files in a local directory",
    dconf_form: "/path/to/directory",
    formats: &[Format::Vhd, Format::Raw],
    parse_dconf: |dconf| Ok(DeviceConfig::from([("location", dconf)])),
    open: |sr, config| Ok(Box::new(FileSr::new(sr, "file", location(config)?))),
    probe: |config| probe(&location(config)?, "file"),
    about: About {
        name: "Local directory",
        capabilities: CAPABILITIES,
        configuration: &[("location", "absolute path of a local directory (required)")],
        vdi_at: vdi_by_uuid,
        sm_config,
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

/// The keys that the Python file drivers keep, so that a VDI looks the same to either; SMAPIv1, "sm_config".
pub fn sm_config(vdi: &VdiInfo) -> SmConfig {
    match vdi.format {
        Format::Raw | Format::Qcow2 => vec![("type", Some(vdi.format.to_string()))],
        Format::Vhd => vec![("vhd-parent", vdi.parent.map(|parent| parent.to_string()))],
    }
}

const MARKER: &str = ".sm-sr";
const DELETING: &str = ".sm-sr-deleting";
const PARAMS: &str = "params";
const LOCK: &str = "lock";
const CHANGE: &str = ".sm-tree";
/// Locked by the host that changes a tree.
const TREE_LOCK: &str = ".sm-tree-lock";
/// Names that the collector of the Python storage managers begins its journals with.
const JOURNALS: [&str; 3] = ["coalesce_", "relink_", "leaf_"];
/// Extensions of images by format, in the order they are looked for.
const IMAGES: [(&str, Format); 3] = [("raw", Format::Raw), ("vhd", Format::Vhd), ("qcow2", Format::Qcow2)];

fn location(config: &DeviceConfig) -> Result<PathBuf> {
    super::absolute_path("location", config.require("location")?)
}

/// The marker's contents: `(sr (uuid . "…") …)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename = "sr")]
struct Marker {
    uuid: SrUuid,
    #[serde(rename = "type")]
    sr_type: String,
    /// sr_create made the directory, so sr_delete removes it.
    #[serde(default)]
    made_directory: bool,
    /// It was found under [`DELETING`].
    #[serde(skip)]
    deleting: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Record {
    Sr(Marker),
    Vdi(Params),
    Lock {
        users: Vec<String>,
    },
    /// Which tree is being changed.
    Fork {
        vdi: VdiUuid,
        base: VdiUuid,
        dest: VdiUuid,
        format: Format,
    },
    /// The children of `vdi` become those of its parent.
    Relink {
        vdi: VdiUuid,
        base: VdiUuid,
        format: Format,
    },
    /// `base` takes the place of `vdi`, its only child.
    Collapse {
        vdi: VdiUuid,
        base: VdiUuid,
        format: Format,
    },
}

/// An SR in a directory that is there already.
pub struct FileSr {
    sr: SrUuid,
    sr_type: &'static str,
    path: PathBuf,
    /// Other hosts use it too, where the locks of this one mean nothing.
    shared: bool,
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
    pub fn new(sr: SrUuid, sr_type: &'static str, path: PathBuf) -> Self {
        FileSr { sr, sr_type, path, shared: false }
    }

    /// The same for a directory that several hosts have.
    pub fn shared(self) -> Self {
        FileSr { shared: true, ..self }
    }

    pub fn path(&self) -> &Path {
        &self.path
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
                    "it is a symbolic link; name its target"
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

    fn no_sr(&self, looked: String) -> Error {
        Error::NoSr { sr: self.sr, looked }
    }

    fn write_marker(&self, dir: &Dir, made_directory: bool) -> Result<bool> {
        let marker = Marker { uuid: self.sr, sr_type: self.sr_type.to_owned(), made_directory, deleting: false };
        dir.create(MARKER, &encode(&Record::Sr(marker)))
    }

    /// A disk of the SR, of a format that is known.
    fn disk(&self, dir: Rc<Dir>, vdi: VdiUuid, format: Format) -> Result<Box<dyn Vdi + '_>> {
        Ok((vdi::kind(format).map_err(|e| not_served(e, vdi))?.open)(Box::new(self.place(dir, vdi, format))))
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
                    if let Some(other) = listing.images.insert(vdi, format) {
                        return Err(Error::Damaged {
                            path: dir.path().to_owned(),
                            what: format!("VDI {vdi} has two images, {other} and {format}; move one of them away"),
                        });
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

    fn summary(&self, dir: &Dir, mut vdis: Vec<VdiUuid>, used: u64, allocation: u64) -> Result<SrInfo> {
        vdis.sort_unstable();
        let fs = dir.statvfs()?;
        Ok(SrInfo {
            uuid: self.sr,
            label: String::new(),
            description: String::new(),
            vdi_uuids: vdis,
            physical_utilisation: used,
            virtual_allocation: allocation,
            size: fs.blocks() * fs.fragment_size(),
            free: fs.blocks_free() * fs.fragment_size(),
            sr_type: self.sr_type.to_owned(),
            location: self.path.display().to_string(),
            vdis: Vec::new(),
            pool: None,
        })
    }

    fn remove_contents(&self, dir: &Dir, made_directory: bool) -> Result<()> {
        let listing = self.list(dir)?;
        for (vdi, format) in &listing.images {
            dir.remove(&image_name(*vdi, *format))?;
        }
        for vdi in listing.images.keys().chain(&listing.params).chain(&listing.locks) {
            dir.remove(&beside(*vdi, PARAMS))?;
            register::remove(dir, &beside(*vdi, LOCK))?;
        }
        for name in &listing.temporaries {
            dir.remove(name)?;
        }
        for name in dir.names()?.iter().filter(|name| is_orphan(name)) {
            // Refused while somebody here has it open; then the directory stays, and sr_create takes it.
            let _ = dir.remove(name);
        }
        dir.remove(CHANGE)?;
        dir.remove(TREE_LOCK)?;
        dir.sync()?;
        dir.remove(DELETING)?;
        dir.sync()?;
        if made_directory {
            match fs::remove_dir(&self.path) {
                Ok(()) => durable::sync_parent(&self.path)?,
                // Somebody's own files, or a mount: not ours to remove.
                Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOTEMPTY | Errno::EBUSY)) => {}
                Err(e) => return Err(Error::io("remove", &self.path)(e)),
            }
        }
        Ok(())
    }

    fn refuse_if_attached(&self, dir: &Rc<Dir>, listing: &Listing) -> Result<()> {
        for image in Attachments::now()?.images() {
            if let Some((vdi, Role::Image(format))) = classify(durable::name_of(image))
                && listing.images.get(&vdi) == Some(&format)
            {
                vdi::refuse_if_attached(&*self.disk(dir.clone(), vdi, format)?)?;
            }
        }
        Ok(())
    }

    /// What every image says of itself. One stat for a raw one; one open, one read for the others.
    ///
    /// A base that sr_scan has not to show yet, because `.sm-tree` names it, is told as hidden.
    fn images(&self, dir: &Dir, listing: &Listing) -> Result<Vec<Image>> {
        let mut wanted: Vec<(VdiUuid, Format)> = listing.images.iter().map(|(v, f)| (*v, *f)).collect();
        wanted.sort_unstable();
        let threads =
            if wanted.len() < 64 { 1 } else { std::thread::available_parallelism().map_or(1, usize::from).min(8) };
        let part = wanted.len().div_ceil(threads).max(1);
        let parts: Vec<Result<Vec<Image>>> = std::thread::scope(|scope| {
            let work = |part: &[(VdiUuid, Format)]| {
                part.iter().filter_map(|(v, f)| Image::read(dir, *v, *f).transpose()).collect()
            };
            let others: Vec<_> = wanted.chunks(part).skip(1).map(|part| scope.spawn(move || work(part))).collect();
            let first = wanted.chunks(part).next().map_or(Ok(Vec::new()), work);
            std::iter::once(first)
                .chain(others.into_iter().map(|t| t.join().expect("reading an image does not panic")))
                .collect()
        });
        let mut images = Vec::with_capacity(wanted.len());
        for part in parts {
            images.append(&mut part?);
        }
        if images.iter().any(|image| image.format != Format::Raw)
            && let Some(record) = read_change(dir)?
        {
            if let Record::Fork { base, .. } | Record::Collapse { base, .. } = record
                && let Some(image) = images.iter_mut().find(|image| image.vdi == base)
            {
                image.node.hidden = true;
            }
            if let Some(unborn) = unborn(dir, &record)? {
                images.retain(|image| image.vdi != unborn);
            }
        }
        Ok(images)
    }

    /// Makes an image nobody sees by `write`, then publishes it.
    fn make_vdi(&self, new: &NewVdi, write: &mut dyn FnMut(&Kind, &fs::File, &Path) -> Result<()>) -> Result<VdiInfo> {
        let format = new.format.unwrap_or(DRIVER.formats[0]);
        let kind = vdi::kind(format)?;
        let dir = self.dir()?;
        remove_unborn(&dir, new.vdi)?;
        if has_image(&dir, new.vdi)? {
            return Err(Error::VdiExists { vdi: new.vdi, sr: self.sr });
        }
        let image = dir.new_file()?;
        write(kind, image.file(), &dir.join(&image_name(new.vdi, format)))?;
        let place = self.place(dir.clone(), new.vdi, format);
        place.publish(image, &new.params)?;
        (kind.open)(Box::new(place)).info()
    }

    /// Completes or undoes what a crash left of a fork. The caller holds the tree's lock.
    fn recover_change(&self, dir: &Dir) -> Result<()> {
        let Some(record) = read_change(dir)? else { return Ok(()) };
        match record {
            Record::Fork { vdi, base, dest, format } => self.recover_fork(dir, vdi, base, dest, format)?,
            Record::Relink { vdi, base, format } => self.finish_relink(dir, vdi, base, format)?,
            Record::Collapse { base, format, .. } => {
                // Until the base has the leaf's name, the leaf is all there and the base is what it was.
                let name = image_name(base, format);
                if dir.lookup(&name)?.is_some() {
                    (vdi::kind(format)?.set_hidden)(&dir.open_file(&name, true)?, &dir.join(&name), true)?;
                }
            }
            _ => return Err(damaged_record(dir, CHANGE)),
        }
        dir.sync()?;
        dir.remove(CHANGE)?;
        dir.sync()
    }

    fn recover_fork(&self, dir: &Dir, vdi: VdiUuid, base: VdiUuid, dest: VdiUuid, format: Format) -> Result<()> {
        let name = image_name(base, format);
        match (dir.lookup(&image_name(vdi, format))?, dir.lookup(&name)?) {
            (_, None) => {}
            // Still one file: the disk was not changed yet.
            (Some(disk), Some(found)) if file_id(&disk) == file_id(&found) => {
                let child = image_name(dest, format);
                if let Some(file) = dir.try_open_record(&child)?
                    && (vdi::kind(format)?.query)(&file, &dir.join(&child))?.parent == Some(base)
                {
                    dir.remove(&child)?;
                    dir.sync()?;
                    remove_leftovers(dir, dest)?;
                }
                dir.remove(&name)?;
            }
            (Some(_), Some(_)) => {
                (vdi::kind(format)?.set_hidden)(&dir.open_file(&name, true)?, &dir.join(&name), true)?
            }
            (None, Some(_)) => {
                return Err(Error::Damaged {
                    path: dir.join(&image_name(vdi, format)),
                    what: format!("is missing, and {CHANGE} says that it was being cloned; its data is in {name}"),
                });
            }
        }
        Ok(())
    }

    /// Gives every child of `vdi` to `base`, then removes `vdi`. Can be done again from any point of it.
    fn finish_relink(&self, dir: &Dir, vdi: VdiUuid, base: VdiUuid, format: Format) -> Result<()> {
        let kind = vdi::kind(format)?;
        let Some(base_format) = format_of(dir, base)? else {
            return Err(Error::Damaged {
                path: dir.join(CHANGE),
                what: format!("names {base} as the parent to be, and there is no such image"),
            });
        };
        let shared = Rc::new(Dir::open(dir.path())?);
        let parent = self.place(shared, base, base_format);
        let parent_image = parent.image(Mode::ReadOnly)?;
        for image in self.images(dir, &self.list(dir)?)?.iter().filter(|image| image.node.parent == Some(vdi)) {
            let name = image_name(image.vdi, image.format);
            (kind.set_parent)(&dir.open_file(&name, true)?, &dir.join(&name), &parent_image, &parent)?;
        }
        dir.remove(&image_name(vdi, format))?;
        dir.sync()?;
        remove_leftovers(dir, vdi).map(drop)
    }

    /// Removes bases that have no children left. The caller has the SR, or its tree's lock.
    fn remove_garbage(&self, dir: &Rc<Dir>, listing: &Listing) -> Result<()> {
        let mut nodes: BTreeMap<VdiUuid, Node> =
            self.images(dir, listing)?.into_iter().map(|i| (i.vdi, i.node)).collect();
        while let Some(base) = nodes.keys().copied().find(|v| vdi::cow::is_garbage(&nodes, *v)) {
            let format = listing.images[&base];
            let place = self.place(dir.clone(), base, format);
            vdi::refuse_if_attached(&*self.disk(dir.clone(), base, format)?)?;
            place.remove()?;
            nodes.remove(&base);
        }
        Ok(())
    }
}

/// An image of the SR and what it says of itself.
struct Image {
    vdi: VdiUuid,
    format: Format,
    id: loopdev::FileId,
    extent: Extent,
    node: Node,
}

impl Image {
    /// `None`: deleted since the directory was read, so it was not there.
    fn read(dir: &Dir, vdi: VdiUuid, format: Format) -> Result<Option<Image>> {
        let kind = vdi::kind(format).map_err(|e| not_served(e, vdi))?;
        let name = image_name(vdi, format);
        let (stat, node) = if kind.by_length {
            let Some(stat) = must_be(dir, &name, SFlag::S_IFREG)? else { return Ok(None) };
            (stat, Node { virtual_size: stat.st_size as u64, hidden: false, parent: None })
        } else {
            let Some(file) = dir.try_open_record(&name)? else { return Ok(None) };
            let stat = nix::sys::stat::fstat(&file).map_err(Error::sys("examine", dir.join(&name)))?;
            (stat, (kind.query)(&file, &dir.join(&name))?)
        };
        Ok(Some(Image { vdi, format, id: file_id(&stat), extent: extent(&stat), node }))
    }
}

#[derive(Default)]
struct Listing {
    images: HashMap<VdiUuid, Format>,
    params: HashSet<VdiUuid>,
    locks: HashSet<VdiUuid>,
    temporaries: Vec<String>,
    /// Another storage manager's collector left a journal: what looks like garbage may not be.
    journals: bool,
}

impl Sr for FileSr {
    fn create(&self, size: Option<u64>) -> Result<()> {
        let mut made_directory = false;
        match self.look()? {
            Found::Sr(dir, marker) if marker.deleting => {
                self.remove_contents(&dir, false)?;
                made_directory = marker.made_directory;
            }
            Found::Sr(_, marker) if marker.uuid == self.sr => {
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
                durable::sync_parent(&self.path).inspect_err(|_| drop(fs::remove_dir(&self.path)))?;
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
                    for (vdi, format) in &listing.images {
                        must_be(&dir, &image_name(*vdi, *format), SFlag::S_IFREG)?;
                    }
                    for vdi in &listing.params {
                        must_be(&dir, &beside(*vdi, PARAMS), SFlag::S_IFREG)?;
                    }
                    for vdi in &listing.locks {
                        must_be(&dir, &beside(*vdi, LOCK), SFlag::S_IFDIR)?;
                    }
                    for (vdi, format) in listing.images.iter().filter(|(v, _)| listing.locks.contains(v)) {
                        vdi::refuse_if_locked(&self.place(checked.clone(), *vdi, *format))?;
                    }
                    dir.rename(MARKER, DELETING)?;
                    dir.sync()?;
                }
                self.remove_contents(&dir, marker.made_directory)?;
                Ok(Done::Changed)
            }
            Found::Strange(dir) if !self.list(&dir)?.images.is_empty() => Err(Error::SrUnavailable {
                sr: self.sr,
                why: format!("{} has disks but no {MARKER}; sr_attach takes it over", self.path.display()),
            }),
            _ => Ok(Done::Already),
        }
    }

    fn attach(&self) -> Result<Done> {
        let mut done = Done::Already;
        if let Found::Strange(dir) = self.look()?
            && !self.list(&dir)?.images.is_empty()
        {
            self.write_marker(&dir, false)?;
            done = Done::Changed;
        }
        let dir = self.dir()?;
        self.recover_change(&dir)?;
        let listing = self.list(&dir)?;
        self.sweep_all(&dir, &listing);
        if !listing.journals {
            // What can't be collected now, on a read-only mount or while it is in use, is collected later.
            let _ = self.remove_garbage(&dir, &listing);
        }
        Ok(done)
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
        let dir = self.dir()?;
        let listing = self.list(&dir)?;
        let images = self.images(&dir, &listing)?;
        let visible = || images.iter().filter(|image| !image.node.hidden);
        let used = images.iter().map(|image| image.extent.allocated).sum();
        let allocation = visible().map(|image| image.node.virtual_size).sum();
        self.summary(&dir, visible().map(|image| image.vdi).collect(), used, allocation)
    }

    fn scan(&self) -> Result<SrInfo> {
        let dir = self.dir()?;
        let listing = self.list(&dir)?;
        let images = self.images(&dir, &listing)?;
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
            let params = if listing.params.contains(&image.vdi) { place.params()? } else { Params::default() };
            let users = if listing.locks.contains(&image.vdi) { place.holders()?.users } else { Vec::new() };
            let attached = attachments.find(image.format, &place.path(), image.id).is_some();
            let info = vdi::describe(&place, &image.node, image.extent.allocated, params, users, attached, children);
            infos.push(Tagged::Vdi(info));
        }
        self.sweep(&dir, &listing);
        Ok(SrInfo { vdis: infos, ..self.summary(&dir, visible, used, allocation)? })
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        let dir = self.dir()?;
        for (extension, format) in IMAGES {
            match must_be(&dir, &beside(vdi, extension), SFlag::S_IFREG)? {
                None => continue,
                Some(_) if format != Format::Raw && is_unborn(&dir, vdi)? => break,
                Some(_) => return self.disk(dir, vdi, format),
            }
        }
        Err(Error::NoVdi { vdi, sr: self.sr, looked: self.path.display().to_string() })
    }

    fn create_vdi(&self, new: &NewVdi) -> Result<VdiInfo> {
        self.make_vdi(new, &mut |kind, file, path| (kind.create)(file, path, kind.round(new.virtual_size)?))
    }

    fn import_vdi(&self, new: &NewVdi, incoming: Incoming, progress: Progress) -> Result<VdiInfo> {
        let mut incoming = Some(incoming);
        self.make_vdi(new, &mut |kind, file, path| {
            let mut make = |size: u64| {
                (kind.create)(file, path, kind.round(size.max(new.virtual_size))?)?;
                transfer::writer(kind.format, file.try_clone().map_err(Error::io("duplicate", path))?, path)
            };
            incoming.take().expect("an image is made once").fill(&mut make, progress)
        })
    }

    fn collect(&self, context: &Context) -> Result<Done> {
        let dir = self.dir()?;
        // The Python collector holds these while it works; whoever has them is the only one.
        let busy = |refused: lock::Refused| {
            refused.or_timed_out(|who| Error::SrUnavailable { sr: self.sr, why: format!("{who} collects it already") })
        };
        let _alone =
            lock::take(&self.sr.to_string(), "gc_active", lock::Kind::Exclusive, Instant::now()).map_err(busy)?;
        let _running =
            lock::take(&self.sr.to_string(), "running", lock::Kind::Exclusive, Instant::now()).map_err(busy)?;
        let (mut done, mut left) = (Done::Already, HashSet::new());
        loop {
            let listing = self.list(&dir)?;
            if listing.journals {
                return Err(Error::SrUnavailable {
                    sr: self.sr,
                    why: "the collector of another storage manager left a journal in it and has to finish first"
                        .to_owned(),
                });
            }
            let nodes: BTreeMap<VdiUuid, Node> =
                self.images(&dir, &listing)?.into_iter().map(|i| (i.vdi, i.node)).collect();
            if let Some(first) = nodes.keys().find(|v| vdi::cow::is_garbage(&nodes, **v)) {
                let place = self.place(dir.clone(), *first, listing.images[first]);
                let _lock = Tree::lock(&place, context.deadline)?;
                self.remove_garbage(&dir, &self.list(&dir)?)?;
                done = Done::Changed;
                continue;
            }
            let only_child = |v: &VdiUuid| {
                let parent = nodes[v].parent;
                !left.contains(v)
                    && parent.is_some_and(|p| {
                        nodes.get(&p).is_some_and(|n| n.hidden) && vdi::cow::children_of(&nodes, p).len() == 1
                    })
            };
            let Some(next) = nodes.keys().copied().find(only_child) else { return Ok(done) };
            // A disk in use is left for the next time.
            let merged = match lock::take(&next.to_string(), "vdi", lock::Kind::Exclusive, Instant::now()) {
                Ok(_lock) => self.disk(dir.clone(), next, listing.images[&next])?.coalesce(context)?,
                Err(lock::Refused::TimedOut { .. }) => Done::Already,
                Err(lock::Refused::Failed(error)) => return Err(error),
            };
            match merged {
                Done::Changed => done = Done::Changed,
                Done::Already => drop(left.insert(next)),
            }
        }
    }

    fn forget_vdi(&self, vdi: VdiUuid) -> Result<Done> {
        let dir = self.dir()?;
        let unborn = remove_unborn(&dir, vdi)?;
        Ok(if remove_leftovers(&dir, vdi)? || unborn { Done::Changed } else { Done::Already })
    }

    fn content_type(&self) -> &'static str {
        "raw"
    }
}

/// One disk of a [`FileSr`].
struct FilePlace<'a> {
    sr: &'a FileSr,
    dir: Rc<Dir>,
    vdi: VdiUuid,
    format: Format,
}

impl FilePlace<'_> {
    fn name(&self) -> String {
        image_name(self.vdi, self.format)
    }

    fn exists_already(&self) -> Error {
        Error::VdiExists { vdi: self.vdi, sr: self.sr.sr }
    }

    /// Gives a finished image its name, its params first. See the module's order of steps.
    fn publish(&self, image: NewFile, params: &Params) -> Result<()> {
        for (extension, _) in IMAGES {
            if self.dir.lookup(&beside(self.vdi, extension))?.is_some() {
                return Err(self.exists_already());
            }
        }
        remove_leftovers(&self.dir, self.vdi)?;
        let name = beside(self.vdi, PARAMS);
        // Held until the image is published: an unlocked one without an image is a leftover.
        let in_the_making = if *params == Params::default() {
            None
        } else {
            let file = self.dir.create_held(&name, &encode(&Record::Vdi(params.clone())))?;
            Some(file.ok_or_else(|| self.exists_already())?)
        };
        let published = image.publish(&self.name());
        if !matches!(published, Ok(true)) && in_the_making.is_some() {
            let _ = self.dir.remove(&name);
        }
        if published? { Ok(()) } else { Err(self.exists_already()) }
    }

    fn file_stat(&self) -> Result<FileStat> {
        self.dir.lookup(&self.name())?.ok_or_else(|| self.gone())
    }

    /// Takes the persistent lock in the name of vdi_delete: whoever locks the VDI at the same moment on
    /// another host is refused, or was first and is found here.
    fn lock_for_deletion(&self) -> Result<()> {
        let seen = self.holders()?;
        if seen.users.iter().all(|user| user.starts_with(vdi::DELETING)) {
            let host = nix::unistd::gethostname().unwrap_or_default();
            if self.set_holders(&seen, vec![format!("{}{}", vdi::DELETING, host.display())])? {
                return Ok(());
            }
        }
        Err(Error::VdiInUse { vdi: self.vdi, sr: self.sr.sr, holder: "another call, which locked it first".to_owned() })
    }

    fn gone(&self) -> Error {
        Error::NoVdi { vdi: self.vdi, sr: self.sr.sr, looked: self.dir.path().display().to_string() }
    }
}

impl Place for FilePlace<'_> {
    fn sr(&self) -> SrUuid {
        self.sr.sr
    }

    fn vdi(&self) -> VdiUuid {
        self.vdi
    }

    fn format(&self) -> Format {
        self.format
    }

    fn path(&self) -> PathBuf {
        self.dir.join(&self.name())
    }

    fn image(&self, mode: Mode) -> Result<fs::File> {
        self.dir.try_open_file(&self.name(), mode == Mode::ReadWrite)?.ok_or_else(|| self.gone())
    }

    fn stat(&self) -> Result<Extent> {
        Ok(extent(&self.file_stat()?))
    }

    fn params(&self) -> Result<Params> {
        let name = beside(self.vdi, PARAMS);
        match self.dir.read(&name)? {
            None => Ok(Params::default()),
            Some(bytes) => match decode(&bytes) {
                Some(Record::Vdi(params)) => Ok(params),
                _ => Err(damaged_record(&self.dir, &name)),
            },
        }
    }

    fn holders(&self) -> Result<Holders> {
        let name = beside(self.vdi, LOCK);
        let state = register::read(&self.dir, &name)?;
        if state.number == 0 {
            return Ok(Holders::default());
        }
        match decode(&state.bytes) {
            Some(Record::Lock { users }) => Ok(Holders { state: state.number, users }),
            _ => Err(damaged_record(&self.dir, &name)),
        }
    }

    fn set_holders(&self, seen: &Holders, users: Vec<String>) -> Result<bool> {
        let state = register::State { number: seen.state, bytes: Vec::new() };
        let name = beside(self.vdi, LOCK);
        let done = register::advance(&self.dir, &name, &state, &encode(&Record::Lock { users }));
        // Deleted on another host since it was looked up: the lock is of nothing.
        if self.sr.shared && self.dir.lookup(&self.name())?.is_none() {
            register::remove(&self.dir, &name)?;
            return Err(self.gone());
        }
        done
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        Ok(loopdev::find(&loopdev::attached()?, &self.path(), file_id(&self.file_stat()?)))
    }

    fn attach(&self, mode: Mode) -> Result<PathBuf> {
        let read_only = mode == Mode::ReadOnly;
        if let Some(device) = self.device()? {
            if !read_only && blockdev::is_read_only(&device) {
                return Err(Error::VdiInUse {
                    vdi: self.vdi,
                    sr: self.sr.sr,
                    holder: format!("a read-only attachment, {}; detach it first", device.display()),
                });
            }
            return Ok(device);
        }
        let file = self.dir.open_file(&self.name(), !read_only)?;
        loopdev::attach(&file, &self.path(), read_only)
    }

    fn detach(&self) -> Result<Done> {
        let Some(device) = self.device()? else { return Ok(Done::Already) };
        match loopdev::detach(&device)? {
            loopdev::Detached::Done(done) => Ok(done),
            loopdev::Detached::Busy(who) => Err(Error::VdiInUse {
                vdi: self.vdi,
                sr: self.sr.sr,
                holder: format!("{who}, through {}", device.display()),
            }),
        }
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        let path = self.path();
        (vdi::raw::KIND.resize)(self.dir.open_file(&self.name(), true)?, &path, bytes)?;
        match self.device()? {
            Some(device) => loopdev::update_size(&device),
            None => Ok(()),
        }
    }

    fn copy_to(&self, dest: VdiUuid, params: &Params, progress: Progress) -> Result<VdiInfo> {
        let path = self.path();
        let device = self.device()?;
        if let Some(device) = &device {
            blockdev::flush(device)?;
        }
        let target = self.sr.place(self.dir.clone(), dest, self.format);
        remove_unborn(&self.dir, dest)?;
        if dest == self.vdi || self.dir.lookup(&target.name())?.is_some() {
            return Err(target.exists_already());
        }
        let from = self.dir.open_file(&self.name(), false)?;
        let image = self.dir.new_file()?;
        if !copy::reflink(&from, image.file(), &path)? {
            if let Some(device) = device.filter(|d| !blockdev::is_read_only(d)) {
                return Err(Error::VdiInUse {
                    vdi: self.vdi,
                    sr: self.sr.sr,
                    holder: format!(
                        "this host, which has it attached as {}, and the filesystem of {} can't copy a file at one \
                         instant (xfs and btrfs can): detach it first",
                        device.display(),
                        self.dir.path().display()
                    ),
                });
            }
            let fs = self.dir.statvfs()?;
            let (free, wanted) = (fs.blocks_available() * fs.fragment_size(), self.stat()?.allocated);
            if wanted > free {
                return Err(Error::NoSpace { sr: self.sr.sr, free, wanted });
            }
            copy::sparse(&from, image.file(), &path, progress)?;
        }
        target.publish(image, params)?;
        (vdi::kind(self.format)?.open)(Box::new(target)).info()
    }

    fn remove(&self) -> Result<()> {
        must_be(&self.dir, &beside(self.vdi, PARAMS), SFlag::S_IFREG)?;
        if self.sr.shared {
            match self.lock_for_deletion() {
                Ok(()) | Err(Error::NoVdi { .. }) => {}
                // On a full disk nobody can lock it now, and to delete it is how there will be room.
                Err(e) if matches!(e.errno().map(Errno::from_raw), Some(Errno::ENOSPC | Errno::EDQUOT)) => {
                    vdi::refuse_if_locked(self)?;
                }
                Err(other) => return Err(other),
            }
        }
        // Gone already: another host was faster, or our first request was carried out and its answer lost.
        self.dir.remove(&self.name())?;
        self.dir.sync()?;
        remove_leftovers(&self.dir, self.vdi).map(drop)
    }

    fn tree(&self) -> Result<&dyn Tree> {
        Ok(self)
    }
}

impl Tree for FilePlace<'_> {
    fn lock(&self, deadline: Instant) -> Result<Lock> {
        let mut lock = lock::take(&self.sr.sr.to_string(), "tree", lock::Kind::Exclusive, deadline);
        if self.sr.shared {
            let file = self.dir.lock_file(TREE_LOCK)?;
            lock = lock.and_then(|lock| lock.among_hosts(file, &self.dir.join(TREE_LOCK), deadline));
        }
        let lock = lock.map_err(|refused| {
            refused.or_timed_out(|holder| Error::SrUnavailable {
                sr: self.sr.sr,
                why: format!("{holder} changes a tree of it; --wait gives it longer"),
            })
        })?;
        self.sr.recover_change(&self.dir)?;
        Ok(lock)
    }

    fn nodes(&self) -> Result<BTreeMap<VdiUuid, Node>> {
        let images = self.sr.images(&self.dir, &self.sr.list(&self.dir)?)?;
        Ok(images.into_iter().map(|image| (image.vdi, image.node)).collect())
    }

    fn sibling(&self, vdi: VdiUuid) -> Result<Box<dyn Place + '_>> {
        for (extension, format) in IMAGES {
            if self.dir.lookup(&beside(vdi, extension))?.is_some() {
                return Ok(Box::new(self.sr.place(self.dir.clone(), vdi, format)));
            }
        }
        Err(Error::NoVdi { vdi, sr: self.sr.sr, looked: self.dir.path().display().to_string() })
    }

    fn fork(&self, fork: &Fork) -> Result<()> {
        let base = self.sr.place(self.dir.clone(), fork.base, self.format);
        let dest = self.sr.place(self.dir.clone(), fork.dest, self.format);
        if fork.dest == self.vdi || has_image(&self.dir, fork.dest)? {
            return Err(dest.exists_already());
        }
        let image = self.image(Mode::ReadOnly)?;
        let child = |of: &FilePlace| -> Result<NewFile<'_>> {
            let new = self.dir.new_file()?;
            (fork.kind.create_child)(new.file(), &of.path(), &image, &base.path())?;
            Ok(new)
        };
        let (new_dest, new_self) = (child(&dest)?, child(self)?);
        let record = Record::Fork { vdi: self.vdi, base: fork.base, dest: fork.dest, format: self.format };
        if !self.dir.create(CHANGE, &encode(&record))? {
            return Err(damaged_record(&self.dir, CHANGE));
        }
        let done = self
            .dir
            .link(&self.name(), &base.name())
            .and_then(|()| dest.publish(new_dest, fork.params))
            .and_then(|()| new_self.publish_over(&self.name()))
            .and_then(|()| (fork.kind.set_hidden)(&self.dir.open_file(&base.name(), true)?, &base.path(), true));
        match done {
            // A record of what is complete is completed again, so it matters neither that this is durable nor
            // that it works.
            Ok(()) => {
                let _ = self.dir.remove(CHANGE);
                Ok(())
            }
            Err(cause) => match self.sr.recover_change(&self.dir) {
                Ok(()) => Err(cause),
                Err(undo) => Err(Error::Undo { cause: Box::new(cause), undo: Box::new(undo) }),
            },
        }
    }

    fn relink(&self, parent: VdiUuid, _kind: &'static Kind) -> Result<()> {
        let record = Record::Relink { vdi: self.vdi, base: parent, format: self.format };
        if !self.dir.create(CHANGE, &encode(&record))? {
            return Err(damaged_record(&self.dir, CHANGE));
        }
        self.sr.recover_change(&self.dir)
    }

    fn collapse(&self, parent: VdiUuid, kind: &'static Kind) -> Result<()> {
        let base = self.sr.place(self.dir.clone(), parent, self.format);
        let record = Record::Collapse { vdi: self.vdi, base: parent, format: self.format };
        if !self.dir.create(CHANGE, &encode(&record))? {
            return Err(damaged_record(&self.dir, CHANGE));
        }
        let done = (kind.set_hidden)(&base.image(Mode::ReadWrite)?, &base.path(), false)
            .and_then(|()| self.dir.rename(&base.name(), &self.name()))
            .and_then(|()| self.dir.sync());
        match (done, self.sr.recover_change(&self.dir)) {
            (Ok(()), after) => after,
            (Err(cause), Ok(())) => Err(cause),
            (Err(cause), Err(undo)) => Err(Error::Undo { cause: Box::new(cause), undo: Box::new(undo) }),
        }
    }
}

/// The format of the image that a VDI has, if it has one.
fn format_of(dir: &Dir, vdi: VdiUuid) -> Result<Option<Format>> {
    for (extension, format) in IMAGES {
        if dir.lookup(&beside(vdi, extension))?.is_some() {
            return Ok(Some(format));
        }
    }
    Ok(None)
}

/// The VDI of a fork that has not happened yet: its image has a name, but until the disk that is forked has its
/// new image nobody may see it, because whoever repairs the tree removes it.
fn unborn(dir: &Dir, change: &Record) -> Result<Option<VdiUuid>> {
    let Record::Fork { vdi, base, dest, format } = change else { return Ok(None) };
    let (disk, found) = (dir.lookup(&image_name(*vdi, *format))?, dir.lookup(&image_name(*base, *format))?);
    Ok(match (disk, found) {
        (Some(disk), Some(found)) if file_id(&disk) == file_id(&found) => Some(*dest),
        _ => None,
    })
}

fn is_unborn(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    match read_change(dir)? {
        Some(change) => Ok(unborn(dir, &change)? == Some(vdi)),
        None => Ok(false),
    }
}

/// Removes the image of a fork that was killed. The caller holds the VDI, so the fork is not under way.
fn remove_unborn(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    let mut removed = false;
    if is_unborn(dir, vdi)? {
        for (extension, _) in IMAGES {
            removed |= dir.remove(&beside(vdi, extension))?;
        }
        dir.sync()?;
    }
    Ok(removed)
}

fn read_change(dir: &Dir) -> Result<Option<Record>> {
    match dir.read(CHANGE)? {
        None => Ok(None),
        Some(bytes) => match decode(&bytes) {
            Some(record @ (Record::Fork { .. } | Record::Relink { .. } | Record::Collapse { .. })) => Ok(Some(record)),
            _ => Err(damaged_record(dir, CHANGE)),
        },
    }
}

/// Which SRs a directory holds: itself, or those one level below it.
pub fn probe(path: &Path, sr_type: &'static str) -> Result<Vec<SrInfo>> {
    let dir = Dir::open(path).map_err(|e| match e.errno().map(Errno::from_raw) {
        Some(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {
            Error::NoDevice { device: path.display().to_string(), why: errno.desc().to_owned() }
        }
        _ => e,
    })?;
    let mut found = Vec::new();
    if let Some(marker) = read_marker(&dir)?.filter(|m| !m.deleting) {
        found.push(FileSr::new(marker.uuid, sr_type, path.to_owned()).stat()?);
    }
    for name in dir.names()? {
        let Ok(Some(below)) = dir.sub_dir(&name) else { continue };
        if let Ok(Some(marker)) = read_marker(&below)
            && !marker.deleting
        {
            found.push(FileSr::new(marker.uuid, sr_type, path.join(name)).stat()?);
        }
    }
    Ok(found)
}

fn not_served(error: Error, vdi: VdiUuid) -> Error {
    match error {
        Error::NotServed { format, .. } => Error::NotServed { format, vdi: Some(vdi) },
        other => other,
    }
}

/// What a name in the directory is.
enum Role {
    Image(Format),
    Params,
    Lock,
}

fn classify(name: &str) -> Option<(VdiUuid, Role)> {
    let (stem, extension) = name.split_once('.')?;
    let file = match extension {
        PARAMS => Role::Params,
        LOCK => Role::Lock,
        _ => Role::Image(IMAGES.iter().find(|(e, _)| *e == extension)?.1),
    };
    Some((stem.parse().ok()?, file))
}

/// What NFS makes of a file that is removed while it is open on the same host. The host removes it when it
/// is closed; one that crashed leaves it.
fn is_orphan(name: &str) -> bool {
    name.starts_with(".nfs")
}

fn image_name(vdi: VdiUuid, format: Format) -> String {
    format!("{vdi}.{format}")
}

fn beside(vdi: VdiUuid, extension: &str) -> String {
    format!("{vdi}.{extension}")
}

/// Removes what is beside an image that does not exist, unless its maker is alive.
fn remove_leftovers(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    let name = beside(vdi, PARAMS);
    let mut removed = false;
    if let Some(file) = dir.try_open_record(&name)?
        && durable::is_abandoned(&file)
        && !has_image(dir, vdi)?
    {
        removed |= dir.remove(&name)?;
    }
    if !has_image(dir, vdi)? {
        removed |= register::remove(dir, &beside(vdi, LOCK))?;
    }
    Ok(removed)
}

fn has_image(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    for (extension, _) in IMAGES {
        if dir.lookup(&beside(vdi, extension))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_marker(dir: &Dir) -> Result<Option<Marker>> {
    for (name, deleting) in [(MARKER, false), (DELETING, true)] {
        if let Some(bytes) = dir.read(name)? {
            return match decode(&bytes) {
                Some(Record::Sr(marker)) => Ok(Some(Marker { deleting, ..marker })),
                _ => Err(damaged_record(dir, name)),
            };
        }
    }
    Ok(None)
}

fn damaged_record(dir: &Dir, name: &str) -> Error {
    Error::Damaged {
        path: dir.join(name),
        what: "is not a record of this program; restore it or move it away".to_owned(),
    }
}

fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = serde_lexpr::to_vec(record).expect("a record is plain data");
    bytes.push(b'\n');
    bytes
}

fn decode(bytes: &[u8]) -> Option<Record> {
    serde_lexpr::from_slice(bytes).ok()
}

fn extent(stat: &FileStat) -> Extent {
    Extent { length: stat.st_size as u64, allocated: stat.st_blocks as u64 * 512 }
}

fn file_id(stat: &FileStat) -> loopdev::FileId {
    (stat.st_dev, stat.st_ino)
}

/// What is at `name`, if anything is, which must then be of this kind: a link or a pipe named like a disk is
/// neither taken for one nor left out of a list.
fn must_be(dir: &Dir, name: &str, kind: SFlag) -> Result<Option<FileStat>> {
    let found = dir.lookup(name)?;
    if found.is_some_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() != kind.bits()) {
        let what = if kind == SFlag::S_IFDIR { "is not a directory" } else { "is not a regular file" };
        return Err(Error::Damaged { path: dir.join(name), what: format!("{what}; move it away") });
    }
    Ok(found)
}
