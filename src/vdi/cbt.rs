//! Changed block tracking: which blocks of a disk were written between its snapshots; CBT, "Operations".
//!
//! Each tracked disk, and each snapshot of it, has a log. The log of a disk says what was written since its newest
//! snapshot, that of a snapshot what was written between the snapshot before and itself. Each names the log before (parent)
//! and after it (child); a name that leads to no log, or to one that does not name this one back, is the end of the chain.
//! So what changed from one snapshot to a later one is the sum of the logs after the first up to the second. A log whose
//! disk's data was destroyed stays in the chain.
//!
//! All changes of logs are made under the lock of the SR's trees, and while no server has the log open. Order of steps, and
//! what is there after a kill (P, S, X: the log before, that of the new snapshot, that of the disk):
//!
//! - **vdi_snapshot** of X, after the images: 1. if there is no P, X names S as its parent; 2. S is written, with the blocks of
//!   X; if there is a P, S has no child yet; 3. P names S as its child; 4. S names X; 5. X is replaced by an empty log. After
//!   1 to 4, X still has the blocks that S has: it says more than was written since S, never less. After 2, P and X name
//!   each other and S is outside of the chain. After 3, the chain ends at S; the next vdi_snapshot of X finds S by P. After 4, X
//!   names P and P names S: [`follows`] knows that state.
//! - **vdi_delete** of S, after the image: 1. X is replaced by a log with the blocks of both, and P as its parent; 2. P names X;
//!   3. S is removed. After 1, the state is that after 4 of vdi_snapshot; after 2, S is outside of the chain. The same call
//!   again goes on.
//! - **vdi_revert** of X to S: 1. to X are added the blocks of all logs between S and X; 2. the image is exchanged; 3. the
//!   blocks that X had of its own are taken away again.
//! - Tracking that **ends**: 1. P names no child; 2. X is removed.

use std::time::Instant;

use crate::context::{Context, PausedElsewhere};
use crate::datapath;
use crate::error::{Error, Result, one_line};
use crate::image::cbtlog::{self, CHILD_AT, Header, Log, PARENT_AT};
use crate::sys::lock::Lock;
use crate::sys::syslog;
use crate::types::{SrUuid, VdiUuid};
use crate::vdi::deleted;
use crate::vdi::disk::Vdi;
use crate::vdi::place::Place;
use crate::vdi::served;

/// The logs of an SR. What is written is durable when the call returns.
pub trait ChangeLogs {
    fn sr(&self) -> SrUuid;

    /// The VDIs that have a log.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn all(&self) -> Result<Vec<VdiUuid>>;

    /// The head of a log. `None`: the VDI has none.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what is no log; [`Error::Io`].
    fn header(&self, vdi: VdiUuid) -> Result<Option<Header>>;

    /// A whole log. `None`: the VDI has none.
    ///
    /// # Errors
    /// Those of [`ChangeLogs::header`].
    fn read(&self, vdi: VdiUuid) -> Result<Option<Log>>;

    /// Makes or replaces a log by one atomic step.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn write(&self, vdi: VdiUuid, log: &Log) -> Result<()>;

    /// Makes a log name another VDI, at [`PARENT_AT`] or [`CHILD_AT`].
    ///
    /// # Errors
    /// [`Error::Io`], also if there is no log.
    fn point(&self, vdi: VdiUuid, at: u64, to: Option<VdiUuid>) -> Result<()>;

    /// Removes a log. `false`: there was none.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn remove(&self, vdi: VdiUuid) -> Result<bool>;

    /// Waits for other calls that change trees or logs of the SR.
    ///
    /// # Errors
    /// [`Error::Busy`] at the deadline.
    fn locked(&self, deadline: Instant) -> Result<Lock>;
}

/// Who may be writing to a disk while its log is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// No server has it attached for writing.
    None,
    /// A server that is paused, and that logged all that it wrote.
    Logs,
    /// A server that is paused, and that may have written what is not in the log.
    Silent,
}

impl Writer {
    /// The writer of a disk that is paused. `here`: its server on this host.
    pub fn of(here: Option<&datapath::Paused>, context: &Context) -> Writer {
        match here {
            Some(paused) if paused.is_read_only() => Writer::None,
            Some(paused) if paused.is_tracked => Writer::Logs,
            Some(_) => Writer::Silent,
            None => match context.others.as_ref().is_some_and(|others| others.tracks()) {
                true => Writer::Logs,
                false => Writer::None,
            },
        }
    }

    /// Whether a log that says this of itself has all that was written.
    fn vouches_for(self, header: &Header) -> bool {
        match self {
            Writer::None => header.consistent,
            Writer::Logs => true,
            Writer::Silent => false,
        }
    }
}

/// A log that is named and is there; a damaged one is as good as none.
fn there(logs: &dyn ChangeLogs, vdi: Option<VdiUuid>) -> Result<Option<(VdiUuid, Header)>> {
    let Some(vdi) = vdi else { return Ok(None) };
    match logs.header(vdi) {
        Ok(header) => Ok(header.map(|header| (vdi, header))),
        Err(Error::Damaged { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Whether the log `newer` continues `older`, which names it as its child: it names `older` as its parent; or it still names
/// the parent of `older`, as a killed vdi_snapshot and vdi_delete leave it, and that names `older`.
fn follows(logs: &dyn ChangeLogs, older: (VdiUuid, &Header), newer: &Header) -> Result<bool> {
    if newer.parent == Some(older.0) {
        return Ok(true);
    }
    match there(logs, older.1.parent)? {
        Some((first, header)) => Ok(newer.parent == Some(first) && header.child == Some(older.0)),
        None => Ok(false),
    }
}

/// The log after that of a VDI.
///
/// # Errors
/// [`Error::Damaged`] if the VDI's own log is; [`Error::Io`].
pub fn after(logs: &dyn ChangeLogs, vdi: VdiUuid) -> Result<Option<VdiUuid>> {
    let Some(header) = logs.header(vdi)? else { return Ok(None) };
    match there(logs, header.child)? {
        Some((child, newer)) if follows(logs, (vdi, &header), &newer)? => Ok(Some(child)),
        _ => Ok(None),
    }
}

/// The log before that of a VDI, which has this head. Only a log that continues its parent names one, however far the parent
/// was told of what came between.
fn before(logs: &dyn ChangeLogs, vdi: VdiUuid, header: &Header) -> Result<Option<VdiUuid>> {
    let Some((parent, first)) = there(logs, header.parent)? else { return Ok(None) };
    if first.child == Some(vdi) {
        return Ok(Some(parent));
    }
    match there(logs, first.child)? {
        Some((between, it)) if it.parent == Some(parent) && it.child.is_none_or(|child| child == vdi) => {
            Ok(Some(between))
        }
        _ => Ok(None),
    }
}

/// Ends the tracking of a VDI. Idempotent. The caller holds the lock.
///
/// # Errors
/// [`Error::Io`].
pub fn forget(logs: &dyn ChangeLogs, vdi: VdiUuid) -> Result<()> {
    if let Some((_, header)) = there(logs, Some(vdi))?
        && let Some((parent, first)) = there(logs, header.parent)?
        && first.child == Some(vdi)
    {
        logs.point(parent, CHILD_AT, None)?;
    }
    logs.remove(vdi).map(drop)
}

/// Ends the tracking of a VDI whose log cannot be kept, and never fails: `why` goes to the log of the host. A log that cannot be
/// removed either says that it is not consistent, or says more than was written.
fn give_up(logs: &dyn ChangeLogs, vdi: VdiUuid, why: &str) {
    syslog::write(&format!("changed blocks of VDI {vdi} on SR {} are tracked no longer: {why}", logs.sr()));
    if let Err(error) = forget(logs, vdi) {
        syslog::write(&format!("the log of changed blocks of VDI {vdi} is left: {}", one_line(&error)));
    }
}

/// Begins the tracking of a disk of `size` bytes. The caller holds the lock, and has the disk paused if it is attached for
/// writing. `false`: it is tracked already.
///
/// # Errors
/// [`Error::Io`].
pub fn begin(logs: &dyn ChangeLogs, vdi: VdiUuid, size: u64, is_attached: bool) -> Result<bool> {
    if there(logs, Some(vdi))?.is_some() {
        return Ok(false);
    }
    // A log that was lost may still be named by the one before it, and the new one does not continue that.
    for other in logs.all()? {
        if let Some((_, header)) = there(logs, Some(other))?
            && header.child == Some(vdi)
        {
            logs.point(other, CHILD_AT, None)?;
        }
    }
    logs.write(vdi, &Log::of_nothing(size, !is_attached)).map(|()| true)
}

/// Gives the snapshot of a disk the blocks that were written since the one before, and the disk an empty log. The caller holds
/// the lock and has the disk paused. Never fails: the snapshot is made, and a log that cannot be kept is given up.
pub fn split(logs: &dyn ChangeLogs, disk: VdiUuid, snapshot: VdiUuid, writer: Writer) {
    let done = || -> Result<()> {
        let Some(old) = logs.read(disk)? else { return Ok(()) };
        if !writer.vouches_for(&old.header) {
            give_up(logs, disk, "a server that wrote to it was killed, or logged nothing");
            return Ok(());
        }
        let parent = before(logs, disk, &old.header)?;
        match parent {
            None => logs.point(disk, PARENT_AT, Some(snapshot))?,
            // Left by a call that was killed. No two such calls may leave something in one place.
            Some(parent) if old.header.parent != Some(parent) => {
                logs.point(parent, CHILD_AT, Some(disk))?;
                logs.point(disk, PARENT_AT, Some(parent))?;
            }
            Some(_) => {}
        }
        let child = if parent.is_none() { Some(disk) } else { None };
        let header = Header { parent, child, consistent: true, ..old.header };
        logs.write(snapshot, &Log { header, bitmap: old.bitmap })?;
        if let Some(parent) = parent {
            logs.point(parent, CHILD_AT, Some(snapshot))?;
            logs.point(snapshot, CHILD_AT, Some(disk))?;
        }
        let mut new = Log::of_nothing(old.header.size, writer == Writer::None);
        (new.header.parent, new.header.child) = (Some(snapshot), old.header.child);
        logs.write(disk, &new)
    };
    if let Err(error) = done() {
        give_up(logs, disk, &one_line(&error));
    }
}

/// Takes the log of a VDI that is deleted out of its chain: its blocks go to the log after it. Idempotent. The caller holds the
/// locks of the VDI and of `child`, which [`after`] told before, and holds the disk of that if there is one. `context`: its
/// other hosts are those that have the disk of `child`.
///
/// # Errors
/// [`Error::Busy`] if another log comes after it by now; [`Error::NotPaused`], [`Error::VdiInUse`] when a server of `child` does
/// not let go of it; [`Error::Io`]. The log is then kept, and the same call again completes it.
pub fn merge(
    logs: &dyn ChangeLogs,
    vdi: VdiUuid,
    child: Option<(VdiUuid, Option<&dyn Vdi>)>,
    context: &Context,
) -> Result<()> {
    let _lock = logs.locked(context.deadline)?;
    let Some(old) = (match logs.read(vdi) {
        Err(Error::Damaged { .. }) => return logs.remove(vdi).map(drop),
        read => read?,
    }) else {
        return Ok(());
    };
    let parent = before(logs, vdi, &old.header)?;
    match (after(logs, vdi)?, child) {
        (None, _) => {
            if let Some(parent) = parent {
                logs.point(parent, CHILD_AT, None)?;
            }
        }
        (Some(now), Some((known, disk))) if now == known => {
            let _elsewhere = PausedElsewhere::begin(context)?;
            let _here = disk.map(|disk| let_go(disk.place())).transpose()?.flatten();
            let Some(mut newer) = logs.read(now)? else { return Ok(()) };
            // What a killed vdi_snapshot left: with this log the only way to the newest one would go.
            if let Some((newest, header)) = there(logs, newer.header.child)?
                && header.parent == Some(vdi)
            {
                logs.point(newest, PARENT_AT, Some(now))?;
            }
            newer.add(&old);
            newer.header.parent = parent;
            logs.write(now, &newer)?;
            if let Some(parent) = parent {
                logs.point(parent, CHILD_AT, Some(now))?;
            }
        }
        (Some(_), _) => {
            let what = format!("the log of changed blocks of VDI {vdi}");
            return Err(Error::Busy { sr: logs.sr(), holder: "another call".to_owned(), what });
        }
    }
    logs.remove(vdi).map(drop)
}

/// Makes the server of a disk close its log, if the disk has a server that lives.
///
/// # Errors
/// Those of [`served::pause_here`].
pub fn let_go(place: &dyn Place) -> Result<Option<datapath::Paused>> {
    match datapath::find(&place.path())? {
        Some(dead) if dead.is_dead() => Ok(None),
        _ => served::pause_here(place),
    }
}

/// Takes a log out of its chain after the VDI was deleted, see [`merge`].
///
/// # Errors
/// Those of [`merge`], which say that the VDI was deleted.
pub fn merge_deleted(
    logs: &dyn ChangeLogs,
    vdi: VdiUuid,
    child: Option<(VdiUuid, Option<&dyn Vdi>)>,
    context: &Context,
) -> Result<()> {
    merge(logs, vdi, child, context).map_err(|cause| cause.after(deleted(vdi)))
}

/// Makes the log of a disk that is to grow as large as the disk will be. The caller holds the lock and has the disk paused.
/// Never fails, see [`split`].
pub fn grow(logs: &dyn ChangeLogs, vdi: VdiUuid, size: u64) {
    let done = || -> Result<()> {
        let Some(mut log) = logs.read(vdi)?.filter(|log| log.header.size < size) else { return Ok(()) };
        log.grow(size);
        logs.write(vdi, &log)
    };
    if let Err(error) = done() {
        give_up(logs, vdi, &one_line(&error));
    }
}

/// Ends the tracking of a disk that a killed server, or host, was writing to: its log may lack blocks. For a caller that is
/// about to attach the disk for writing, and has its lock. Never fails: a server does not take such a log up.
pub fn refuse_torn(logs: &dyn ChangeLogs, place: &dyn Place, deadline: Instant) {
    // A damaged log is one that cannot be trusted either.
    let may_be_torn = || logs.header(place.vdi()).map_or(true, |found| found.is_some_and(|header| !header.consistent));
    let is_torn = || -> Result<bool> {
        // A server that is ending may be about to say that the log is consistent.
        let lives = || datapath::find_settled(&place.path(), deadline);
        Ok(may_be_torn() && !lives()?.is_some_and(|found| found.healthy) && may_be_torn())
    };
    let done = is_torn().and_then(|is_torn| match is_torn {
        true => logs.locked(deadline).map(Some),
        false => Ok(None),
    });
    match done {
        Ok(None) => {}
        Ok(Some(_lock)) => give_up(logs, place.vdi(), "a server that wrote to it was killed"),
        Err(error) => syslog::write(&format!("the log of VDI {} is left: {}", place.vdi(), one_line(&error))),
    }
}

/// The tracking of a disk that is taken back to a snapshot.
pub struct Reverting {
    /// The blocks that were written between the snapshot and the log before that of the disk; `None`: the disk is not tracked.
    between: Option<Log>,
    disk: VdiUuid,
}

impl Reverting {
    /// Makes the log of a disk say more than what will have changed, before its image is exchanged for that of `snapshot`. If
    /// the snapshot is not in the disk's chain of logs, tracking ends. The caller holds the lock; the disk is not attached.
    ///
    /// # Errors
    /// [`Error::Io`] if the log can neither be kept nor removed; nothing was changed that counts.
    pub fn begin(logs: &dyn ChangeLogs, disk: VdiUuid, snapshot: VdiUuid) -> Result<Reverting> {
        let begun = || -> Result<Option<Log>> {
            let Some(mut own) = logs.read(disk)? else { return Ok(None) };
            let between = match sum(logs, snapshot, disk, &|_| false) {
                Ok((_, between)) if own.header.consistent => between,
                _ => {
                    forget(logs, disk)?;
                    return Ok(None);
                }
            };
            let between = between.unwrap_or_else(|| Log::of_nothing(0, true));
            own.add(&between);
            logs.write(disk, &own)?;
            Ok(Some(between))
        };
        let between = begun().or_else(|error| -> Result<_> {
            forget(logs, disk)?;
            syslog::write(&format!("changed blocks of VDI {disk} are tracked no longer: {}", one_line(&error)));
            Ok(None)
        })?;
        Ok(Reverting { between, disk })
    }

    /// Makes the log say what has changed, now that the disk has the image of the snapshot and `size` bytes. Never fails: the
    /// log says more otherwise.
    pub fn end(self, logs: &dyn ChangeLogs, size: u64) {
        let Some(between) = self.between else { return };
        let done = || -> Result<()> {
            let Some(own) = logs.read(self.disk)? else { return Ok(()) };
            let mut new = Log::of_nothing(size, true);
            new.header = Header { size, ..own.header };
            new.add(&between);
            logs.write(self.disk, &new)
        };
        if let Err(error) = done() {
            let why = one_line(&error);
            syslog::write(&format!("the log of VDI {} says more than was changed: {why}", self.disk));
        }
    }
}

/// The blocks that differ between a VDI and a later one of its chain, one bit each, the first block in the most significant bit
/// of the first byte. `is_live`: whether a server of this host logs what is written to the VDI now.
///
/// # Errors
/// [`Error::ChangesUnknown`] if either has no log, or the one does not lead to the other; [`Error::ChangesInconsistent`] if a
/// log between them may lack blocks, or is that of a disk that became smaller.
pub fn changed(
    logs: &dyn ChangeLogs,
    from: VdiUuid,
    to: VdiUuid,
    is_live: &dyn Fn(VdiUuid) -> bool,
) -> Result<Vec<u8>> {
    let (last, earlier) = sum(logs, from, to, is_live)?;
    let mut all = last;
    if let Some(earlier) = earlier {
        all.add(&earlier);
    }
    Ok(cbtlog::for_agents(&all.bitmap))
}

/// The log of `to`, and the sum of those between it and `from`, neither included; `None` if there are none between.
fn sum(
    logs: &dyn ChangeLogs,
    from: VdiUuid,
    to: VdiUuid,
    is_live: &dyn Fn(VdiUuid) -> bool,
) -> Result<(Log, Option<Log>)> {
    let unknown = |why: &str| Err(Error::ChangesUnknown { from, to, sr: logs.sr(), why: why.to_owned() });
    let unsure = |vdi, why: &str| Err(Error::ChangesInconsistent { vdi, sr: logs.sr(), why: why.to_owned() });
    if from == to {
        return unknown("they are one VDI");
    }
    for vdi in [from, to] {
        if logs.header(vdi)?.is_none() {
            return unknown(&format!("VDI {vdi} is not tracked"));
        }
    }
    let (mut now, mut seen, mut sum) = (from, 0, None::<Log>);
    let most = logs.all()?.len();
    loop {
        now = match after(logs, now)? {
            Some(next) if seen < most => next,
            _ => return unknown("the one does not come after the other"),
        };
        seen += 1;
        let Some(mut log) = logs.read(now)? else { return unknown("the one does not come after the other") };
        if !log.header.consistent && !is_live(now) {
            return unsure(now, "its log may lack blocks that were written");
        }
        if sum.as_ref().is_some_and(|sum| log.header.size < sum.header.size) {
            return unsure(now, "it is smaller than a VDI before it");
        }
        if now == to {
            return Ok((log, sum));
        }
        if let Some(sum) = &sum {
            log.add(sum);
        }
        sum = Some(log);
    }
}

#[cfg(test)]
mod tests;
