//! WHAT a disk is: one file per format, each written once for every SR.
//!
//! An SR hands a disk its [`Place`], a file or a logical volume; the format does the rest. Adding a format:
//! one file here, its line in [`kind`], its `Format` variant.

pub mod cow;
pub mod qcow2;
pub mod raw;
pub mod transfer;
pub mod vhd;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;

use crate::context::Context;
use crate::datapath;
use crate::error::{Error, Result, needs_root};
use crate::image::SECTOR;
use crate::image::disk::Disk;
use crate::sys::blockdev;
use crate::sys::copy::Progress;
use crate::sys::lock::Lock;
use crate::sys::loopdev;
use crate::sys::uses::Uses;
use crate::types::{Done, Format, Mode, Params, Size, SrUuid, State, VdiInfo, VdiUuid};

/// Where one disk lives, as its SR sees it. Formats work on this and know no SR.
pub trait Place {
    fn sr(&self) -> SrUuid;
    fn vdi(&self) -> VdiUuid;
    fn format(&self) -> Format;

    /// The end of every wait of the call: for other calls, and for the server of an attached disk.
    fn deadline(&self) -> Instant;

    /// The path of the image; for messages, and for servers that open it themselves.
    fn path(&self) -> PathBuf;

    /// Opens the image.
    fn image(&self, mode: Mode) -> Result<File>;

    /// Lends the image to `reader`. Of a place without bytes of its own until it is attached, they are there meanwhile,
    /// and nobody takes that for an attachment.
    fn read(&self, reader: &mut dyn FnMut(File) -> Result<()>) -> Result<()> {
        reader(self.image(Mode::ReadOnly)?)
    }

    /// What the SR knows of the place now.
    fn stat(&self) -> Result<Extent>;

    fn params(&self) -> Result<Params>;

    /// Who holds the persistent lock.
    fn holders(&self) -> Result<Holders>;

    /// Replaces the holders that were `seen`, durably. `false`: somebody was faster, nothing changed.
    fn set_holders(&self, seen: &Holders, users: Vec<String>) -> Result<bool>;

    /// Replaces label and description, durably and by one atomic step; the rest of the params stays as it is.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an SR that stores no names.
    fn set_names(&self, _label: &str, _description: &str) -> Result<()> {
        Err(Error::Unsupported { op: "storing a name", why: "this SR keeps nothing beside its disks".to_owned() })
    }

    /// Makes the place's bytes and length durable, which an earlier call may have changed without being able to say so: it
    /// was killed before its last flush. A device over the place becomes as large as the place is. Called before a call
    /// answers that the size it asks for is there already. Idempotent.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage does not take it.
    fn settle(&self) -> Result<()> {
        let image = self.image(Mode::ReadOnly)?;
        image.sync_all().map_err(Error::io("flush", self.path()))
    }

    /// Makes the names and the holders durable, as [`Place::settle`] does for the bytes. Called before a call answers that
    /// the name or the lock it asks for is there already. Idempotent.
    ///
    /// # Errors
    /// [`Error::Io`] if the storage does not take it.
    fn settle_records(&self) -> Result<()> {
        self.settle()
    }

    /// Whether other hosts may have it attached, which this one's kernel can't see.
    fn is_shared(&self) -> bool {
        false
    }

    /// The block device over the place's bytes on this host, asked from the kernel.
    fn device(&self) -> Result<Option<PathBuf>>;

    /// Makes that block device. Idempotent: the same path again.
    fn attach(&self, mode: Mode) -> Result<PathBuf>;

    /// Removes it. Idempotent.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while something on the host holds it open, with who.
    fn detach(&self) -> Result<Done>;

    /// The length that the place gets when it is to hold `bytes`: more where the substrate allocates in extents.
    fn round_up(&self, bytes: u64) -> u64 {
        bytes
    }

    /// Makes the place exactly `bytes` long, or longer where the substrate allocates in extents; a device
    /// over it follows.
    fn resize(&self, bytes: u64) -> Result<()>;

    /// Makes the VDI `dest` with the same bytes and format.
    ///
    /// # Errors
    /// [`Error::VdiExists`], [`Error::NoSpace`]; [`Error::VdiInUse`] when the place is in use and the
    /// substrate has no instant copy; [`Error::Unsupported`].
    fn copy_to(&self, dest: VdiUuid, params: &Params, progress: Progress) -> Result<VdiInfo>;

    /// Removes the disk and all that is stored beside it. The caller has checked that it is unused.
    fn remove(&self) -> Result<()>;

    /// The images around this one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an SR that keeps no trees.
    fn tree(&self) -> Result<&dyn Tree> {
        Err(Error::Unsupported { op: "copy-on-write", why: "this SR keeps no trees of images".to_owned() })
    }
}

/// What an SR does for formats whose images have parents, seen from one of the images.
pub trait Tree {
    /// Waits for whoever changes a tree of this SR, then completes or undoes what a crash left of a change.
    fn lock(&self, deadline: Instant) -> Result<Lock>;

    /// Every image of the SR that may be another's child or base: all but raw disks.
    ///
    /// # Errors
    /// If one of them can't be read: it may be anybody's child.
    fn nodes(&self) -> Result<BTreeMap<VdiUuid, Node>>;

    /// Another image of the SR.
    fn sibling(&self, vdi: VdiUuid) -> Result<Box<dyn Place + '_>>;

    /// Keeps all hosts from opening these images as long as the answer lives. `None`: only this host has the SR.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while a server, on whatever host, has one of them open.
    fn alone(&self, vdis: &[VdiUuid]) -> Result<Option<Uses>>;

    /// Keeps the images of this disk as they are on all hosts while they are read, and unless `read_only` the disk from
    /// being opened. `None`: only this host has the SR.
    fn lend(&self, _read_only: bool) -> Result<Option<[Uses; 2]>> {
        Ok(None)
    }

    /// Makes this image the hidden base of empty children: one under its own name, and one as the VDI
    /// `dest` if that is given. All or nothing, whatever happens meanwhile. The caller holds the lock, and nobody has the
    /// image open.
    ///
    /// # Errors
    /// [`Error::VdiExists`]; [`Error::Unsupported`] on a filesystem without hard links.
    fn fork(&self, fork: &Fork) -> Result<()>;

    /// Gives the children of this image to its parent, which holds all that this one does, then removes it.
    /// What a crash leaves is completed. The caller holds the lock.
    fn relink(&self, parent: VdiUuid, kind: &'static Kind) -> Result<()>;

    /// Puts the parent, which holds all that this leaf does, in its place. What a crash leaves is undone or
    /// completed. The caller holds the lock, and nobody has the leaf open.
    fn collapse(&self, parent: VdiUuid, kind: &'static Kind) -> Result<()>;
}

/// What [`Tree::fork`] is to make.
pub struct Fork<'a> {
    /// The name that the present image gets.
    pub base: VdiUuid,
    pub dest: Option<(VdiUuid, &'a Params)>,
    pub kind: &'static Kind,
}

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// It is there for its children only.
    pub hidden: bool,
    pub parent: Option<VdiUuid>,
    /// What the image calls itself towards its children, where its format has such an identity: a VHD's unique id.
    pub id: Option<Uuid>,
    /// The [`Node::id`] of the parent that the image was made from.
    pub parent_id: Option<Uuid>,
    /// Whether the image can be used. A look at one image alone finds it healthy or fails.
    pub state: State,
    /// The format of an image that cannot even say which parent it has: any base of that format may be the parent.
    pub unread: Option<Format>,
}

impl Node {
    /// An image of `virtual_size` bytes that is in no tree.
    pub fn alone(virtual_size: u64) -> Node {
        Node {
            virtual_size,
            hidden: false,
            parent: None,
            id: None,
            parent_id: None,
            state: State::Healthy,
            unread: None,
        }
    }

    /// Whether `parent`, to which the parent's name in this image leads, is the image that this one was made from. One
    /// that has no identity, or cannot be read, is not told from another.
    pub fn is_child_of(&self, format: Format, parent: &Node, parent_format: Format) -> bool {
        match (parent.id, self.parent_id) {
            _ if parent_format != Format::Raw && parent_format != format => false,
            (Some(is), wanted) => wanted == Some(is),
            (None, wanted) => wanted.is_none() || parent_format != Format::Raw,
        }
    }
}

/// Bytes of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// From the first to the last addressable byte.
    pub length: u64,
    /// Allocated on the substrate.
    pub allocated: u64,
}

/// The users that hold a VDI's persistent lock, and which state of the record said so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    pub state: u64,
    pub users: Vec<String>,
}

/// A virtual disk. The caller holds the locks that [`crate::call::Session`] takes.
pub trait Vdi {
    fn place(&self) -> &dyn Place;

    fn info(&self) -> Result<VdiInfo>;

    /// The same without the children, which it may take a look at every image of the SR to find.
    fn brief(&self) -> Result<VdiInfo> {
        self.info()
    }

    /// The block device of an attached disk, asked from the kernel.
    fn device(&self) -> Result<Option<PathBuf>>;

    /// A block device that outlives the call; the same path when called again. Callers go through [`attach`], which
    /// says in which mode.
    ///
    /// `lock`: the lock of the disk that the caller holds. What goes on starting after a killed caller keeps it.
    fn attach(&self, mode: Mode, lock: Option<&Lock>) -> Result<PathBuf>;

    /// Whether it can be read and not written: a snapshot, a base, a CD.
    fn is_read_only(&self) -> Result<bool> {
        Ok(self.place().params()?.read_only)
    }

    /// # Errors
    /// [`Error::VdiInUse`] while something on the host holds the device open, with who.
    fn detach(&self) -> Result<Done>;

    /// # Errors
    /// [`Error::VdiInUse`] while attached or locked.
    fn delete(&self, context: &Context) -> Result<()>;

    /// A new writable VDI with this one's contents.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while this one is attached or locked; [`Error::VdiExists`]; [`Error::NoSpace`].
    fn clone_to(&self, _dest: VdiUuid, _context: &Context) -> Result<VdiInfo> {
        Err(Error::Unsupported { op: "vdi_clone", why: "this format has none".to_owned() })
    }

    /// A new read-only VDI with the contents that this one has now.
    ///
    /// # Errors
    /// [`Error::VdiExists`]; [`Error::NoSpace`]; [`Error::VdiInUse`] when it is attached and the substrate
    /// can't take all its bytes at one instant.
    fn snapshot(&self, _dest: VdiUuid, _context: &Context) -> Result<VdiInfo> {
        Err(Error::Unsupported { op: "vdi_snapshot", why: "this format has none".to_owned() })
    }

    /// Merges the disk's image with its parent, if it is the parent's only child and the parent is nobody's
    /// disk. Long work; the tree is locked for its last step only.
    ///
    /// A disk in use goes on. If it holds too much to wait for, that is set aside in a base of its own, to be merged
    /// first, and the answer is `Changed` as well.
    fn coalesce(&self, _context: &Context) -> Result<Done> {
        Ok(Done::Already)
    }

    /// Ends what a killed call left of a pause on other hosts, once nobody changes the tree. Idempotent.
    fn unpause(&self, context: &Context) -> Result<()> {
        match &context.others {
            Some(others) => others.resume(),
            None => Ok(()),
        }
    }

    /// Lends the disk's bytes to `reader`. The caller has seen that nobody writes them.
    fn read(&self, reader: &mut dyn FnMut(&dyn Disk) -> Result<()>) -> Result<()>;

    /// Makes the disk `size` bytes. Idempotent.
    ///
    /// # Errors
    /// Below the current size [`Error::Invalid`] unless `allow_shrink`, which wants the disk unused.
    fn resize(&self, size: u64, allow_shrink: bool, context: &Context) -> Result<Done>;

    /// Replaces label and description, and leaves the rest. Idempotent; durable, also where there was nothing to do.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an SR that stores no names.
    fn set_names(&self, label: &str, description: &str) -> Result<Done> {
        let place = self.place();
        let now = place.params()?;
        if now.label == label && now.description == description {
            place.settle_records()?;
            return Ok(Done::Already);
        }
        place.set_names(label, description)?;
        Ok(Done::Changed)
    }

    /// Takes the persistent lock for `user`, who may already share it with others only if the VDI is
    /// shareable; `force` breaks another's.
    ///
    /// # Errors
    /// [`Error::LockRefused`].
    fn lock(&self, user: &str, force: bool) -> Result<()> {
        let place = self.place();
        let seen = place.holders()?;
        let shareable = place.params()?.shareable;
        let mut users = seen.users.clone();
        if users.iter().any(|u| u == user) {
            place.settle_records()?;
            return Err(refused(place, format!("it is locked by {user:?} already")));
        }
        if !users.is_empty() && !shareable {
            if !force {
                return Err(refused(place, format!("it is locked by {}; FORCE TRUE breaks the lock", named(&users))));
            }
            users.clear();
        }
        users.push(user.to_owned());
        change(place, &seen, users)
    }

    /// Gives `user`'s lock back; `force` takes the lock from whoever has it.
    ///
    /// # Errors
    /// [`Error::LockRefused`].
    fn unlock(&self, user: &str, force: bool) -> Result<()> {
        let place = self.place();
        let seen = place.holders()?;
        let mut users = seen.users.clone();
        if users.is_empty() {
            place.settle_records()?;
            return Err(refused(place, "it is not locked".to_owned()));
        }
        if users.iter().any(|u| u == user) {
            users.retain(|u| u != user);
        } else if force {
            users.clear();
        } else {
            return Err(refused(place, format!("{user:?} does not hold its lock, {} does", named(&users))));
        }
        change(place, &seen, users)
    }
}

fn change(place: &dyn Place, seen: &Holders, users: Vec<String>) -> Result<()> {
    if place.set_holders(seen, users)? {
        return Ok(());
    }
    let now = place.holders()?;
    Err(refused(place, format!("another call was faster; it is now locked by {}", named(&now.users))))
}

fn refused(place: &dyn Place, why: String) -> Error {
    Error::LockRefused { vdi: place.vdi(), sr: place.sr(), why }
}

fn named(users: &[String]) -> String {
    match users {
        [] => "nobody".to_owned(),
        users => users.iter().map(|u| format!("{u:?}")).collect::<Vec<_>>().join(", "),
    }
}

/// Attaches a disk, or finds it attached. What can't be written is attached read-only whatever was asked; any other
/// stays in the mode it has until it is detached, or a reader would hold a device that writes. `lock`: see [`Vdi::attach`].
///
/// # Errors
/// [`Error::VdiInUse`] when it is attached in the other mode; [`Error::Io`], access denied, without root.
pub fn attach(disk: &dyn Vdi, mode: Mode, lock: Option<&Lock>) -> Result<PathBuf> {
    let read_only = disk.is_read_only()?;
    match disk.device()? {
        None => needs_root("make a block device of", disk.place().path())?,
        Some(device) if !read_only => {
            let (is, word) = match blockdev::is_read_only(&device) {
                true => (Mode::ReadOnly, "read-only"),
                false => (Mode::ReadWrite, "writable"),
            };
            if is != mode {
                let holder = format!("a {word} attachment, {}; detach it first", device.display());
                return Err(in_use(disk.place(), holder));
            }
        }
        Some(_) => {}
    }
    disk.attach(if read_only { Mode::ReadOnly } else { mode }, lock)
}

/// Refuses to change a disk that is to stay as it is: a snapshot.
///
/// # Errors
/// [`Error::Unsupported`].
pub fn refuse_if_read_only(disk: &dyn Vdi, op: &'static str) -> Result<()> {
    match disk.place().params()?.read_only {
        true => Err(Error::Unsupported { op, why: format!("VDI {} is read-only", disk.place().vdi()) }),
        false => Ok(()),
    }
}

/// Refuses what wants the disk to itself, on this host or any.
///
/// # Errors
/// [`Error::VdiInUse`] while attached here or locked anywhere.
pub fn refuse_if_used(disk: &dyn Vdi) -> Result<()> {
    refuse_if_attached(disk)?;
    refuse_if_locked(disk.place())
}

/// # Errors
/// [`Error::VdiInUse`] while attached on this host.
pub fn refuse_if_attached(disk: &dyn Vdi) -> Result<()> {
    match disk.device()? {
        None => Ok(()),
        Some(device) => Err(in_use(disk.place(), format!("this host, which has it attached as {}", device.display()))),
    }
}

/// Refuses what must not happen to a disk that another host writes, where that can't be seen and no agent says so: who
/// attaches a disk of a shared SR locks it first (SR API, vdi_lock), so a lock on a disk that is not attached here means
/// that it is attached elsewhere.
///
/// # Errors
/// [`Error::VdiInUse`].
pub fn refuse_if_elsewhere(disk: &dyn Vdi) -> Result<()> {
    if !disk.place().is_shared() || disk.device()?.is_some() {
        return Ok(());
    }
    refuse_if_locked(disk.place())
}

/// How a vdi_delete that several hosts must see calls itself as the holder of the persistent lock; the host's
/// name follows. A kill leaves it, so only vdi_lock minds it.
pub const DELETING: &str = "vdi_delete on ";

/// # Errors
/// [`Error::VdiInUse`] while anybody holds its persistent lock.
pub fn refuse_if_locked(place: &dyn Place) -> Result<()> {
    let mut users = place.holders()?.users;
    users.retain(|user| !user.starts_with(DELETING));
    match users {
        users if users.is_empty() => Ok(()),
        users => Err(in_use(place, format!("{}, who locked it (vdi_unlock gives it back)", named(&users)))),
    }
}

/// What is wrong with an image whose parent's name leads to an image that it was not made from.
pub fn another_image(parent: VdiUuid) -> String {
    format!("{parent} is another image than the one that this was made from")
}

/// What is done when a VDI has been made and what had to follow fails; see [`Error::after`].
pub fn made(vdi: VdiUuid) -> String {
    format!("VDI {vdi} was made, perhaps not durably")
}

/// The same when it has been deleted.
pub fn deleted(vdi: VdiUuid) -> String {
    format!("VDI {vdi} was deleted, perhaps not durably")
}

/// The same when it has got another size.
pub fn has_now(place: &dyn Place, bytes: u64) -> String {
    format!("VDI {} has {} now, perhaps not durably", place.vdi(), Size(bytes))
}

/// What [`Error::VdiInUse`] says of a place.
pub fn in_use(place: &dyn Place, holder: String) -> Error {
    Error::VdiInUse { vdi: place.vdi(), sr: place.sr(), holder }
}

/// What this host has attached, asked from the kernel once for many disks.
pub struct Attachments {
    loops: HashMap<PathBuf, Vec<String>>,
    served: Vec<datapath::Attached>,
}

impl Attachments {
    pub fn now() -> Result<Attachments> {
        let loops = loopdev::attached()?;
        let served = datapath::all_among(&loops);
        Ok(Attachments { loops, served })
    }

    /// The images that are attached, as the kernel names them.
    pub fn images(&self) -> impl Iterator<Item = &Path> {
        self.loops.keys().map(PathBuf::as_path).chain(self.served.iter().map(|attached| attached.image.as_path()))
    }

    /// Those below a directory, by their paths in it. The directory is not looked at: its server may be gone.
    pub fn below(&self, dir: &Path) -> Vec<&Path> {
        self.images().filter_map(|image| image.strip_prefix(dir).ok()).collect()
    }

    /// The block device over an image.
    pub fn find(&self, format: Format, image: &Path, id: loopdev::FileId) -> Option<PathBuf> {
        match format {
            Format::Raw => loopdev::find(&self.loops, image, id),
            _ => datapath::find_in(&self.served, image).map(|attached| attached.device.clone()),
        }
    }

    /// Whether an image is attached and its server is dead.
    pub fn server_died(&self, format: Format, image: &Path) -> bool {
        format != Format::Raw && datapath::find_in(&self.served, image).is_some_and(|attached| !attached.healthy)
    }
}

/// Says of a disk that could be used that its server `died`.
pub fn with_server(info: VdiInfo, died: bool) -> VdiInfo {
    if died && info.state.is_healthy() { VdiInfo { state: State::ServerDied, ..info } } else { info }
}

/// What is known of a disk, from what its SR and its image say.
pub fn describe(
    place: &dyn Place,
    node: &Node,
    allocated: u64,
    params: Params,
    users: Vec<String>,
    attached: bool,
    children: Vec<VdiUuid>,
) -> VdiInfo {
    VdiInfo {
        uuid: place.vdi(),
        label: params.label,
        description: params.description,
        sr: place.sr(),
        locked: !users.is_empty(),
        vbds: users,
        virtual_size: node.virtual_size,
        physical_utilisation: allocated,
        sector_size: SECTOR as u32,
        format: place.format(),
        parent: node.parent,
        shareable: params.shareable,
        attached,
        read_only: params.read_only || node.hidden || !children.is_empty(),
        children,
        hidden: node.hidden,
        state: node.state.clone(),
        location: None,
    }
}

/// What the package can do with a format.
pub struct Kind {
    pub format: Format,
    /// The largest virtual size, bytes.
    pub largest: u64,
    /// Virtual sizes are rounded up to a multiple of this, bytes.
    pub granule: u64,
    /// The length of the image is the virtual size and there is nothing else to know: no need to read it.
    pub by_length: bool,
    /// Writes an image of `virtual_size` zeroes into an empty file, or a device that is large enough, which will
    /// have the path; durably.
    pub create: fn(&File, path: &Path, virtual_size: u64) -> Result<()>,
    /// Writes an image without data of its own into an empty file, with another one as its parent; durably.
    pub create_child: fn(&File, path: &Path, parent: &File, parent_path: &Path) -> Result<()>,
    /// What an image says of itself: one open, one read.
    pub query: fn(File, path: &Path) -> Result<Node>,
    /// The parent that an image names, or that it names none, as far as that can be read of an image that [`Kind::query`]
    /// refuses. `None`: it cannot be read.
    pub named_parent: fn(File, path: &Path) -> Option<Option<VdiUuid>>,
    /// The disk of an image and its parents, which are looked for in the tree.
    pub disk: fn(File, &dyn Place) -> Result<Box<dyn Disk>>,
    /// Marks an image as there for its children only, or no longer so, durably.
    pub set_hidden: fn(&File, path: &Path, hidden: bool) -> Result<()>,
    /// Writes into the parent what the child holds; any number of times. Neither is changed otherwise.
    pub coalesce: fn(child: File, path: &Path, parent: File, parent_place: &dyn Place, Progress) -> Result<()>,
    /// Refuses a parent that is not the image that the child names, whatever its name: `Error::Damaged`. To be asked
    /// before a parent is changed for a child, or a child for its parent. `coalesce` asks it by itself.
    pub check_parent: fn(child: &File, path: &Path, parent: &File, parent_place: &dyn Place) -> Result<()>,
    /// Names another image as the parent, which holds all that the present one shows; durably.
    pub set_parent: fn(&File, path: &Path, parent: &File, parent_place: &dyn Place) -> Result<()>,
    /// Makes an image that nobody has open larger, durably.
    pub resize: fn(File, path: &Path, virtual_size: u64) -> Result<()>,
    /// A disk of this format in the place.
    pub open: for<'a> fn(Box<dyn Place + 'a>) -> Box<dyn Vdi + 'a>,
}

impl Kind {
    /// The size a disk gets when `bytes` are asked for.
    ///
    /// # Errors
    /// [`Error::DiskTooBig`].
    pub fn round(&self, bytes: u64) -> Result<u64> {
        match bytes.max(1).checked_next_multiple_of(self.granule) {
            Some(size) if size <= self.largest => Ok(size),
            _ => Err(Error::DiskTooBig { format: self.format, bytes, largest: self.largest }),
        }
    }
}

/// The module of a format.
pub fn kind(format: Format) -> &'static Kind {
    match format {
        Format::Raw => &raw::KIND,
        Format::Vhd => &vhd::KIND,
        Format::Qcow2 => &qcow2::KIND,
    }
}
