//! The contract of a disk, and what is refused to a disk in use.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::context::Context;
use crate::datapath;
use crate::error::{Error, Result, needs_root};
use crate::image::disk::Disk;
use crate::image::{Reading, SECTOR};
use crate::sys::lock::Lock;
use crate::types::{Done, Format, Mode, Params, ParamsChange, Size, State, VdiInfo, VdiUuid, seconds_now};
use crate::vdi::holders::{self, refuse_if_locked};
use crate::vdi::place::{Place, in_use, refuse_device};
use crate::vdi::tree::forest::Kept;
use crate::vdi::tree::nodes::Node;

/// A virtual disk. The caller holds the locks that [`crate::call::Session`] takes.
pub trait Vdi {
    fn place(&self) -> &dyn Place;

    /// All that is known of the disk.
    ///
    /// # Errors
    /// [`Error::NoVdi`], [`Error::Damaged`], [`Error::Io`].
    fn info(&self) -> Result<VdiInfo>;

    /// The facts that the disk itself tells. Its children, its locks and its attachment are not asked for, and are told
    /// as if there were none: children may take a look at every image of the SR, an attachment a look at every loop
    /// device of the host.
    ///
    /// # Errors
    /// Those of [`Vdi::info`].
    fn brief(&self) -> Result<VdiInfo> {
        self.info()
    }

    /// The block device of an attached disk, asked from the kernel.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while it is being detached for longer than the call may wait; [`Error::Io`].
    fn device(&self) -> Result<Option<PathBuf>>;

    /// Makes a block device that outlives the call. Idempotent: the same path again. Callers go through [`attach`], which
    /// says in which mode. `lock`: the lock of the disk that the caller holds. An image server that goes on starting after
    /// its caller was killed keeps it.
    ///
    /// # Errors
    /// [`Error::Io`], and what the image says.
    fn attach(&self, mode: Mode, lock: Option<&Lock>) -> Result<PathBuf>;

    /// As [`Vdi::attach`], for a guest of a host with tapdisk. `opens`: the formats that tapdisk is to open by itself; the answer is its
    /// socket then, see [`crate::datapath::attach_for_guest`].
    ///
    /// # Errors
    /// Those of [`Vdi::attach`].
    fn attach_for_guest(&self, mode: Mode, lock: Option<&Lock>, _opens: &[Format]) -> Result<PathBuf> {
        self.attach(mode, lock)
    }

    /// Whether the disk can be read and not written: a snapshot, a base, a CD.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    fn is_read_only(&self) -> Result<bool> {
        Ok(self.place().params()?.read_only)
    }

    /// Removes the block device. Idempotent.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while something on the host holds the device open, with who.
    fn detach(&self) -> Result<Done>;

    /// Deletes the disk.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while attached or locked, or while an image has it as its parent.
    fn delete(&self, context: &Context) -> Result<()>;

    /// A new writable VDI with this one's contents. `changes`: what its params have else than this one's.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while this one is attached or locked; [`Error::VdiExists`]; [`Error::NoSpace`].
    fn clone_to(&self, _dest: VdiUuid, _changes: &ParamsChange, _context: &Context) -> Result<VdiInfo> {
        Err(Error::Unsupported { op: "vdi_clone", why: "this format has none".to_owned() })
    }

    /// A new read-only VDI with the contents that this one has now. `changes`: what its params have else than this one's.
    ///
    /// # Errors
    /// [`Error::VdiExists`]; [`Error::NoSpace`]; [`Error::VdiInUse`] when it is attached and the substrate
    /// can't take all its bytes at one instant.
    fn snapshot(&self, _dest: VdiUuid, _changes: &ParamsChange, _context: &Context) -> Result<VdiInfo> {
        Err(Error::Unsupported { op: "vdi_snapshot", why: "this format has none".to_owned() })
    }

    /// A snapshot after which the disk can take the writes of a guest whose other data is copied elsewhere meanwhile, until
    /// [`Vdi::compose`] brings the two together: what was not written shows the later parent, to the sector.
    ///
    /// # Errors
    /// Those of [`Vdi::snapshot`]; [`Error::Unsupported`] for a format without parents.
    fn snapshot_to_receive(&self, _dest: VdiUuid, _context: &Context) -> Result<VdiInfo> {
        Err(Error::Unsupported { op: "a snapshot to receive a disk", why: "a raw disk has no parent".to_owned() })
    }

    /// Gives the disk the contents and the size of a snapshot of it; UUID, names and snapshots stay. Idempotent.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while the disk is attached or locked; [`Error::Unsupported`] for what is no snapshot of it, and on an
    /// SR without snapshots.
    fn revert_to(&self, _snapshot: VdiUuid, _said: SnapshotSaid, _context: &Context) -> Result<()> {
        Err(Error::Unsupported { op: "vdi_revert", why: "this SR makes no snapshots".to_owned() })
    }

    /// Makes `base`, another disk of the SR, the parent of this disk, see [`mod@crate::vdi::tree::compose`]. Idempotent.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a format without parents, and for disks that do not go together; [`Error::VdiInUse`].
    fn compose(&self, _base: VdiUuid, _context: &Context) -> Result<Done> {
        Err(Error::Unsupported { op: "vdi_compose", why: "a raw disk has no parent".to_owned() })
    }

    /// Says whether the disk goes back at each start of its VM to what it holds now, see [`mod@crate::vdi::tree::reset`]. A disk that is
    /// marked keeps the point that it goes back to. Idempotent.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a format or an SR that has no such point; [`Error::IsBase`], [`Error::ChainTooLong`];
    /// [`Error::VdiInUse`] while another host has the disk open.
    fn set_resets(&self, resets: bool, _context: &Context) -> Result<Done> {
        match resets {
            true => Err(Error::Unsupported { op: "reset on boot", why: "this format has none".to_owned() }),
            // Nothing can have been marked.
            false => Ok(Done::Already),
        }
    }

    /// Takes the disk back to the point that [`Vdi::set_resets`] made, or makes it where there is none. Idempotent.
    ///
    /// # Errors
    /// Those of [`Vdi::set_resets`]; [`Error::VdiInUse`] while the disk is attached; [`Error::Damaged`] if the point is gone.
    fn reset(&self, context: &Context) -> Result<Done> {
        self.set_resets(true, context)
    }

    /// Ends what a killed call left of a pause on other hosts, once no call changes the tree. Idempotent.
    ///
    /// # Errors
    /// [`Error::NotPaused`] with the hosts that did not go on.
    fn unpause(&self, context: &Context) -> Result<()> {
        match &context.others {
            Some(others) => others.resume(),
            None => Ok(()),
        }
    }

    /// Calls `reader` with the bytes of the disk. The caller has seen that nothing writes them. `reading`: whether a damaged chain
    /// is refused, or read as far as it can be.
    ///
    /// # Errors
    /// Those of `reader`; [`Error::VdiInUse`] while another host may write them.
    fn read(&self, reading: Reading, reader: &mut dyn FnMut(&dyn Disk) -> Result<()>) -> Result<()>;

    /// Whether [`Vdi::read_since`] tells what changed since a snapshot, and a snapshot is cheap.
    fn tells_changes(&self) -> bool {
        self.place().format() != Format::Raw
    }

    /// As [`Vdi::read`]. `reader` is told as well which stretches of the disk, from a byte to before another and in order, may
    /// differ from what the VDI `base` holds; `None` if the images do not tell. The caller has the locks of both.
    ///
    /// # Errors
    /// Those of [`Vdi::read`].
    fn read_since(&self, _base: VdiUuid, reader: SinceReader) -> Result<()> {
        self.read(Reading::Whole, &mut |disk| reader(disk, None))
    }

    /// Makes the disk `size` bytes long, rounded up as its format wants it. Idempotent.
    ///
    /// # Errors
    /// Below the current size [`Error::Invalid`] unless `allow_shrink`, which wants the disk unused.
    fn resize(&self, size: u64, allow_shrink: bool, context: &Context) -> Result<Done>;

    /// Changes what is stored beside the disk. Idempotent; durable, also where there was nothing to do.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] if `read_only` is to change while the disk is attached or locked, or `shareable` is to go while
    /// several users hold the lock; [`Error::IsBase`] if either is to change of a base; [`Error::Unsupported`] on an SR that
    /// stores nothing beside its disks.
    fn set(&self, change: &ParamsChange) -> Result<Done> {
        let place = self.place();
        let now = place.params()?;
        let wanted = change.of(now.clone());
        if wanted == now {
            place.settle_records()?;
            return Ok(Done::Already);
        }
        let _alone = self.may_change(&now, &wanted)?;
        place.set_params(&wanted).map_err(|cause| match place.params() {
            Ok(now) if now == wanted => cause.after(format!("VDI {} is changed, perhaps not durably", place.vdi())),
            _ => cause,
        })?;
        Ok(Done::Changed)
    }

    /// Refuses a change of params that a user of the disk must not see. The answer keeps other hosts from attaching the disk
    /// until it is dropped.
    ///
    /// # Errors
    /// Those of [`Vdi::set`].
    fn may_change(&self, now: &Params, wanted: &Params) -> Result<Kept> {
        refuse_change_in_use(self.place(), || self.device(), now, wanted)?;
        Ok(Kept::by_nature())
    }

    /// Takes the persistent lock for `user`, see [`holders::lock`].
    ///
    /// # Errors
    /// [`Error::LockRefused`].
    fn lock(&self, user: &str, force: bool) -> Result<()> {
        holders::lock(self.place(), user, force)
    }

    /// Gives `user`'s lock back, see [`holders::unlock`].
    ///
    /// # Errors
    /// [`Error::LockRefused`].
    fn unlock(&self, user: &str, force: bool) -> Result<()> {
        holders::unlock(self.place(), user, force)
    }
}

/// Takes the bytes of a disk, and the stretches that may differ from those of another.
pub type SinceReader<'r> = &'r mut dyn FnMut(&dyn Disk, Option<&[(u64, u64)]>) -> Result<()>;

/// Attaches a disk, or finds it attached. A disk that can't be written is attached read-only whatever was asked. Any
/// other disk stays in the mode it has until it is detached, or a reader would hold a device that writes. `lock`: see
/// [`Vdi::attach`].
///
/// # Errors
/// [`Error::VdiInUse`] when it is attached in the other mode; [`Error::Io`], access denied, without root.
pub fn attach(disk: &dyn Vdi, mode: Mode, lock: Option<&Lock>) -> Result<PathBuf> {
    let mode = mode_of(disk, mode)?;
    disk.attach(mode, lock)
}

/// As [`attach`], by [`Vdi::attach_for_guest`].
///
/// # Errors
/// Those of [`attach`].
pub fn attach_for_guest(disk: &dyn Vdi, mode: Mode, lock: Option<&Lock>, opens: &[Format]) -> Result<PathBuf> {
    let mode = mode_of(disk, mode)?;
    disk.attach_for_guest(mode, lock, opens)
}

/// The mode in which a disk is to be attached.
fn mode_of(disk: &dyn Vdi, mode: Mode) -> Result<Mode> {
    let read_only = disk.is_read_only()?;
    match disk.device()? {
        None => needs_root("make a block device of", disk.place().path())?,
        Some(device) if !read_only => {
            let (is, word) = match datapath::is_read_only(&device) {
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
    Ok(if read_only { Mode::ReadOnly } else { mode })
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

/// Refuses a change of params that a user of the disk must not see: whether it can be written to, while it is attached here or
/// locked by anybody; that only one user may lock it, while several have. `device`: the block device of the disk, if it is
/// attached.
///
/// # Errors
/// [`Error::VdiInUse`].
pub fn refuse_change_in_use(
    place: &dyn Place,
    device: impl FnOnce() -> Result<Option<PathBuf>>,
    now: &Params,
    wanted: &Params,
) -> Result<()> {
    if wanted.read_only != now.read_only {
        refuse_device(place, device()?)?;
        refuse_if_locked(place)?;
    }
    if now.shareable && !wanted.shareable {
        let users = place.holders()?.users;
        if users.len() > 1 {
            return Err(in_use(place, format!("{}, who locked it", users.join(", "))));
        }
    }
    Ok(())
}

/// The params of a writable copy of a disk that has `params`. An agent's keys are about the disk itself, so no copy has them.
pub fn of_clone(params: Params, changes: &ParamsChange) -> Params {
    changes.of(Params { read_only: false, snapshot_of: None, ..of_copy(params) })
}

/// The params of a read-only copy of the disk `vdi`, which has `params`. A snapshot of a snapshot is one of the disk that the
/// first was made of: it holds what that disk held.
pub fn of_snapshot(vdi: VdiUuid, params: Params, changes: &ParamsChange) -> Params {
    let snapshot_of = Some(params.snapshot_of.unwrap_or(vdi));
    changes.of(Params { read_only: true, snapshot_of, ..of_copy(params) })
}

/// What a copy has of its origin, made now.
fn of_copy(params: Params) -> Params {
    Params { shareable: false, resets: false, created: seconds_now(), keys: BTreeMap::new(), ..params }
}

/// The source of the knowledge that a VDI is a snapshot of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotSaid {
    /// The SR: its records or, if it stores nothing, its images.
    BySr,
    /// An agent, which keeps records of its own.
    ByAgent,
}

/// Refuses to take a disk back to what is no snapshot of it. `params`: those of the VDI `snapshot`. `false`: nothing stored
/// tells of which disk it is a snapshot.
///
/// # Errors
/// [`Error::Unsupported`] for a VDI that can be written to, and for a snapshot of another disk.
pub fn refuse_snapshot_of_another(
    vdi: VdiUuid,
    snapshot: VdiUuid,
    params: &Params,
    said: SnapshotSaid,
) -> Result<bool> {
    let refused = |why: String| Err(Error::Unsupported { op: "vdi_revert", why });
    if snapshot == vdi || !params.read_only {
        return refused(format!("VDI {snapshot} is no snapshot: it can be written to. vdi_snapshot makes one"));
    }
    match params.snapshot_of {
        _ if said == SnapshotSaid::ByAgent => Ok(true),
        Some(disk) if disk != vdi => refused(format!(
            "VDI {snapshot} is a snapshot of VDI {disk}, not of VDI {vdi}. vdi_clone of the snapshot makes a disk of it"
        )),
        known => Ok(known.is_some()),
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

/// Refuses what a user of the disk on this host must not see.
///
/// # Errors
/// [`Error::VdiInUse`] while attached on this host.
pub fn refuse_if_attached(disk: &dyn Vdi) -> Result<()> {
    refuse_device(disk.place(), disk.device()?)
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

/// Says for [`Error::after`] that a VDI has been made, when what had to follow fails.
pub fn made(vdi: VdiUuid) -> String {
    format!("VDI {vdi} was made, perhaps not durably")
}

/// Says for [`Error::after`] that a VDI has been deleted, when what had to follow fails.
pub fn deleted(vdi: VdiUuid) -> String {
    format!("VDI {vdi} was deleted, perhaps not durably")
}

/// Says for [`Error::after`] that a disk holds what its snapshot does, when what had to follow fails.
pub fn reverted(vdi: VdiUuid) -> String {
    format!("VDI {vdi} was taken back, perhaps not durably")
}

/// Says for [`Error::after`] that a disk has got another size, when what had to follow fails.
pub fn has_now(place: &dyn Place, bytes: u64) -> String {
    format!("VDI {} has {} now, perhaps not durably", place.vdi(), Size(bytes))
}

/// Says of a disk that could be used that its server `died`.
pub fn with_server(info: VdiInfo, died: bool) -> VdiInfo {
    if died && info.state.is_healthy() { VdiInfo { state: State::ServerDied, ..info } } else { info }
}

/// The facts that a disk itself tells, see [`Vdi::brief`]: as if nobody had it locked or attached, and as if it had no
/// children.
pub fn describe(place: &dyn Place, node: &Node, allocated: u64, params: Params) -> VdiInfo {
    VdiInfo {
        uuid: place.vdi(),
        label: params.label,
        description: params.description,
        sr: place.sr(),
        locked: false,
        vbds: Vec::new(),
        virtual_size: node.virtual_size,
        physical_utilisation: allocated,
        sector_size: SECTOR as u32,
        format: place.format(),
        parent: node.parent,
        shareable: params.shareable,
        attached: false,
        device: None,
        opened_by: None,
        read_only: params.read_only || node.hidden,
        children: Vec::new(),
        hidden: node.hidden,
        state: node.state.clone(),
        location: None,
        snapshot_of: params.snapshot_of,
        created: params.created,
        cbt_enabled: false,
        keys: params.keys,
        resets: params.resets,
        kind: params.kind,
    }
}
