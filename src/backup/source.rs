//! The disks of a run: looked at before anything is changed, then locked or snapshotted.

use std::path::Path;

use super::Call;
use super::chain::{self, Link};
use super::manifest::Consistency;
use super::name::SetName;
use super::record;
use super::set::{Member, Set};
use super::write::Since;
use crate::call::{Held, Session};
use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::types::{Format, ParamsChange, VdiInfo, VdiUuid};

/// A disk of a run.
pub struct Source {
    pub member: Member,
    pub session: Session,
    pub info: VdiInfo,
    /// Bytes that it has allocated, those of its bases included; not more than its size.
    pub allocated: u64,
    /// Whether the SR tells what differs between two snapshots. Where it does not, a snapshot is of no use for the next increment,
    /// and may be a copy of the whole disk.
    pub has_maps: bool,
    /// The user of the disk, in words.
    used: Option<String>,
    /// The snapshot that is read in place of the disk.
    pub snapshot: Option<VdiUuid>,
    /// The snapshot that the parent run read, if it still holds what that run has.
    pub base: Option<VdiUuid>,
}

/// Looks at each disk of a set. Changes nothing.
///
/// # Errors
/// [`Error::UnknownSr`], [`Error::NoVdi`]; those of the SRs.
pub fn sources(call: &Call, set: &Set) -> Result<Vec<Source>> {
    let look = |member: &Member| {
        let session = call.host.open(member.sr)?;
        let info = session.vdi_get_params(member.vdi, &call.context())?;
        let has_maps = session.vdi_tells_changes(member.vdi, &call.context())?;
        let (used, allocated) = (user_of(&info), allocated(call, &session, &info));
        Ok(Source { member: *member, session, info, allocated, has_maps, used, snapshot: None, base: None })
    };
    set.disks.iter().map(look).collect()
}

/// Bytes that a disk has allocated. A base that cannot be read counts nothing: the export will say what is wrong with it.
fn allocated(call: &Call, session: &Session, info: &VdiInfo) -> u64 {
    /// More images than any chain has.
    const MOST: usize = 256;
    let (mut sum, mut next) = (info.physical_utilisation, info.parent);
    for _ in 0..MOST {
        let Some(Ok(base)) = next.map(|base| session.vdi_get_brief(base, &call.context())) else { break };
        sum += base.physical_utilisation;
        next = base.parent;
    }
    sum.min(info.virtual_size)
}

/// The user of a disk, in words.
fn user_of(info: &VdiInfo) -> Option<String> {
    match (&info.device, info.vbds.as_slice()) {
        (Some(device), _) => Some(attached_here(device)),
        (None, []) => None,
        (None, users) => Some(format!("{}, who locked it", users.join(", "))),
    }
}

/// Looks at each disk again, after what uses them was to be stopped.
///
/// # Errors
/// [`Error::VdiInUse`] for a disk that is still in use; those of the SRs.
pub fn refuse_unless_stopped(call: &Call, sources: &mut [Source]) -> Result<()> {
    for source in sources {
        let Member { sr, vdi } = source.member;
        source.info = source.session.vdi_get_params(vdi, &call.context())?;
        source.used = user_of(&source.info);
        if let Some(holder) = &source.used {
            let why = "; a program in backup-pause.d has to stop what uses it, and to detach and unlock it";
            return Err(Error::VdiInUse { vdi, sr, holder: format!("{holder}{why}") });
        }
    }
    Ok(())
}

/// Whether a process or a user has one of the disks. Without `allowed` that is refused.
///
/// # Errors
/// [`Error::VdiInUse`].
pub fn is_used(sources: &[Source], allowed: bool) -> Result<bool> {
    let used = sources.iter().find_map(|source| Some((source.member, source.used.as_ref()?)));
    match used {
        Some((Member { sr, vdi }, holder)) if !allowed => {
            let device = sources.iter().find(|it| it.member.vdi == vdi).and_then(|it| it.info.device.as_deref());
            let users = device.map(blockdev::open_by).unwrap_or_default();
            let holder =
                format!("{holder}{users}; detach and unlock it, or use --live or --pause, which read snapshots");
            Err(Error::VdiInUse { vdi, sr, holder })
        }
        used => Ok(used.is_some()),
    }
}

/// How the disks of a run are kept as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// No process uses them, and each is locked while it is read.
    Locks,
    /// No process uses them. Each is snapshotted where that helps the next increment, and else locked while it is read.
    LocksOrSnapshots,
    /// Some are used. All are snapshotted, or none.
    Snapshots,
    /// As [`Hold::Snapshots`], while what uses the disks is paused.
    PausedSnapshots,
    /// As [`Hold::PausedSnapshots`]. A disk of which no snapshot can be made is read itself, and what uses the disks stays paused
    /// until then.
    LongPause,
    /// What used the disks was stopped, and they are read themselves.
    Stopped,
}

impl Hold {
    pub fn consistency(self) -> Consistency {
        match self {
            Hold::Locks | Hold::LocksOrSnapshots | Hold::Stopped => Consistency::Offline,
            Hold::Snapshots => Consistency::LivePerDisk,
            Hold::PausedSnapshots | Hold::LongPause => Consistency::Paused,
        }
    }

    pub fn makes_snapshots(self) -> bool {
        !matches!(self, Hold::Locks | Hold::Stopped)
    }

    /// Whether what uses the disks is paused.
    pub fn pauses(self) -> bool {
        matches!(self, Hold::PausedSnapshots | Hold::LongPause | Hold::Stopped)
    }
}

/// Locks the disks that nobody uses. `user`: of the persistent locks.
///
/// # Errors
/// [`Error::LockRefused`]. What was locked is unlocked by the caller.
pub fn lock(call: &Call, sources: &[Source], user: &str) -> Result<()> {
    for source in sources.iter().filter(|source| source.used.is_none()) {
        match source.session.vdi_lock(source.member.vdi, user, false, &call.context()) {
            // An SR without locks has none that others could take either.
            Ok(()) | Err(Error::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Refuses to zero a disk that somebody uses elsewhere: a device of it here would be a second writer. `info`: of the disk now.
///
/// # Errors
/// [`Error::VdiInUse`].
pub fn refuse_elsewhere(source: &Source, info: &VdiInfo) -> Result<()> {
    if source.used.is_none() || info.device.is_some() || info.read_only {
        return Ok(());
    }
    let holder = match info.vbds.is_empty() {
        true => "what had it attached here before the pause".to_owned(),
        false => format!("{}, who locked it and has it elsewhere", info.vbds.join(", ")),
    };
    let Member { sr, vdi } = source.member;
    Err(Error::VdiInUse { vdi, sr, holder: format!("{holder}; --zero-free needs its device here") })
}

/// Holds the disks that nobody uses, and looks at all of them again: programs are about to write to them. Answers what holds them,
/// in the order of their UUIDs.
///
/// # Errors
/// [`Error::VdiInUse`] for a disk that was attached meanwhile, and those of [`refuse_elsewhere`]; [`Error::Busy`]; those of the SRs.
pub fn hold_unused(call: &Call, sources: &mut [Source]) -> Result<Vec<Held>> {
    let mut unused: Vec<&Source> = sources.iter().filter(|source| source.used.is_none()).collect();
    unused.sort_by_key(|source| source.member.vdi);
    let hold = |source: &&Source| source.session.vdi_hold(source.member.vdi, &call.context());
    let held = unused.iter().map(hold).collect::<Result<Vec<Held>>>()?;
    for source in sources {
        let Member { sr, vdi } = source.member;
        let now = source.session.vdi_get_params(vdi, &call.context())?;
        if let Some(device) = &now.device
            && source.used.is_none()
            && !now.read_only
        {
            return Err(Error::VdiInUse { vdi, sr, holder: attached_here(device) });
        }
        refuse_elsewhere(source, &now)?;
        source.info = now;
    }
    Ok(held)
}

fn attached_here(device: &Path) -> String {
    format!("this host, which has it attached as {}", device.display())
}

/// How disks are held.
pub struct Holding<'a> {
    pub how: Hold,
    /// Of the persistent locks, which were taken.
    pub user: &'a str,
    /// The persistent locks stay although a disk was snapshotted.
    pub keeps_locks: bool,
    /// The UUIDs of the snapshots that may be made, which the record of the run has.
    pub snapshots: &'a [Member],
    /// The label of the snapshots.
    pub label: &'a str,
}

/// Snapshots the disks, or keeps them as they are. Answers what keeps the disks that are read themselves. `held`: what keeps some
/// of them already.
///
/// # Errors
/// [`Error::VdiInUse`], [`Error::Busy`] for a disk that was attached meanwhile, or that another call has;
/// [`Error::NoSnapshots`] if a disk in use has no snapshot. What was made is undone by the caller.
pub fn hold(
    call: &Call,
    set: &SetName,
    sources: &mut [Source],
    holding: &Holding,
    held: Vec<Held>,
) -> Result<Vec<Held>> {
    let how = holding.how;
    if !how.makes_snapshots() {
        return kept(call, sources, how, held);
    }
    // A snapshot is made under the lock of the disk.
    drop(held);
    let mut failures = Vec::new();
    for (at, (source, snapshot)) in sources.iter_mut().zip(holding.snapshots).enumerate() {
        if how == Hold::LocksOrSnapshots && !source.has_maps {
            continue;
        }
        let change = ParamsChange { label: Some(holding.label.to_owned()), ..ParamsChange::default() };
        let made = source.session.vdi_snapshot(source.member.vdi, snapshot.vdi, change, &call.context());
        let may_be_read = how == Hold::LocksOrSnapshots || how == Hold::LongPause && source.info.format == Format::Raw;
        match made {
            Ok(_) => source.snapshot = Some(snapshot.vdi),
            // What is there of it must not be taken for a snapshot.
            Err(_) if may_be_read => record::delete(call, snapshot)?,
            Err(error) => failures.push((format!("disk {at}, VDI {}", source.member.vdi), error)),
        }
    }
    if !failures.is_empty() {
        return Err(Error::NoSnapshots { set: set.to_string(), failures });
    }
    // A disk that was snapshotted may be used again.
    for source in sources.iter().filter(|source| source.snapshot.is_some() && !holding.keeps_locks) {
        record::unlock(call, &source.member, holding.user)?;
    }
    kept(call, sources, how, Vec::new())
}

/// Keeps the disks that are read themselves from being attached for as long as the run takes, not only while each is read: the
/// disks of a set belong together. The persistent lock does not do that, since whoever has it may attach the disk.
fn kept(call: &Call, sources: &mut [Source], how: Hold, mut before: Vec<Held>) -> Result<Vec<Held>> {
    let mut read: Vec<&mut Source> = sources.iter_mut().filter(|source| source.snapshot.is_none()).collect();
    read.sort_by_key(|source| source.member.vdi);
    let hold = |source: &mut &mut Source| {
        let (session, vdi) = (&source.session, source.member.vdi);
        let held = match before.iter().position(|held| held.vdi() == vdi) {
            Some(at) => before.swap_remove(at),
            None if how == Hold::LongPause => session.vdi_hold_paused(vdi, &call.context())?,
            None => session.vdi_hold(vdi, &call.context())?,
        };
        // It may have been attached or grown since it was looked at.
        let now = session.vdi_get_params(vdi, &call.context())?;
        if let Some(device) = &now.device
            && !now.read_only
            && how != Hold::LongPause
        {
            return Err(Error::VdiInUse { vdi, sr: source.member.sr, holder: attached_here(device) });
        }
        source.info = now;
        Ok(held)
    };
    read.iter_mut().map(hold).collect()
}

/// Deletes the disks of a run that is exported. `user`: of their persistent locks. Answers what was not deleted.
pub fn delete(call: &Call, sources: &[Source], user: &str, held: &[Held]) -> Vec<(String, Error)> {
    let delete = |(at, source): (usize, &Source)| {
        let Member { sr, vdi } = source.member;
        let done =
            source.session.vdi_delete_locked(vdi, user, held, &call.context()).and_then(|is_gone| match is_gone {
                true => Ok(()),
                false => Err(Error::LockRefused { vdi, sr, why: format!("somebody broke the lock of {user}") }),
            });
        done.err().map(|error| (format!("disk {at}, VDI {}", source.member.vdi), error))
    };
    sources.iter().enumerate().filter_map(delete).collect()
}

/// What the chain of a parent run has of each disk. Notes the snapshots that the parent was read from, as far as they still hold
/// what it has.
///
/// # Errors
/// [`Error::NotVerified`] if the chain has not every block, or is not of these disks.
pub fn since(call: &Call, sources: &mut [Source], parent: Vec<Link>) -> Result<Vec<Since>> {
    let newest = &parent[0].manifest;
    let (had, has): (Vec<_>, Vec<_>) =
        (newest.disks.iter().map(|disk| disk.uuid).collect(), sources.iter().map(|it| it.member.vdi).collect());
    if had != has {
        return Err(Error::NotVerified {
            path: parent[0].dir.join(super::manifest::FILE),
            what: "is not of the disks of this set; --since none makes a whole export".to_owned(),
        });
    }
    for (source, disk) in sources.iter_mut().zip(&newest.disks) {
        source.base = disk.snapshot.filter(|snapshot| {
            // A snapshot that was made writable in between is one no more.
            let is_same = |info: VdiInfo| info.read_only && info.snapshot_of == Some(source.member.vdi);
            disk.sr_uuid == source.member.sr
                && source.session.vdi_get_brief(*snapshot, &call.context()).is_ok_and(is_same)
        });
    }
    let disks = chain::images(parent);
    disks
        .iter()
        .map(|images| Ok(Since { blocks: chain::blocks(images)?, size: images.first().map_or(0, |image| image.size) }))
        .collect()
}
