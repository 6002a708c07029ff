//! Publishing a VDI, and what follows from its record: going on after a kill, a reboot, an end.

use std::path::PathBuf;

use super::fabric::{self, Parts, Shown};
use super::name::{Name, Portal};
use super::record::{self, Fabric, Initiator, Record, Secrets, Stage};
use super::settings;
use super::source::Source;
use super::unrecorded;
use crate::call::Session;
use crate::context::Context;
use crate::error::{Error, Result, needs_root, one_line};
use crate::sys::chap::Chap;
use crate::sys::configfs;
use crate::sys::lock::Lock;
use crate::types::{SrUuid, VdiUuid, seconds_now};

/// What a caller asks for when a VDI is published.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub fabric: Fabric,
    /// The initiator that gets the disk; none for the loopback fabric.
    pub initiator: Option<Name>,
    pub read_only: bool,
    /// Several initiators may write.
    pub shared: bool,
    /// The secrets of the initiator.
    pub chap: Option<Chap>,
    /// The name of the initiator is the only check of who it is.
    pub no_auth: bool,
    /// Empty: as before, or those of the settings.
    pub portals: Vec<Portal>,
    /// The start of the names of targets.
    pub prefix: String,
    /// A SCSI disk is passed through whatever it holds.
    pub force: bool,
}

/// A publication as it is now.
#[derive(Clone, Debug)]
pub struct Publication {
    pub record: Record,
    pub shown: Shown,
}

/// Opens the SR of a publication.
pub type Opener<'a> = &'a dyn Fn(SrUuid) -> Result<Session>;

/// Publishes a VDI, or gives one that is published to one more initiator. Idempotent.
///
/// Order: the record; the persistent lock of the VDI; its block device; the kernel's objects; the record once more. Before the
/// first nothing has happened. After it, the same call, [`restore`] or [`unpublish`] goes on.
///
/// # Errors
/// [`Error::NoTarget`] if the kernel has no such target; [`Error::VdiInUse`] for a VDI that is attached, locked or published to
/// others; [`Error::Published`] for what a publication cannot change; [`Error::WwnClash`]; [`Error::Invalid`] for the words.
pub fn publish(source: &Source, wanted: &Wanted, context: &Context) -> Result<Publication> {
    needs_root("publish by", configfs::ROOT)?;
    for portal in &wanted.portals {
        if !portal.is_of_this_host() {
            let expected = "it is no address of this host".to_owned();
            return Err(Error::Invalid { what: "portal", value: portal.to_string(), expected });
        }
    }
    wanted.fabric.kind().prepare()?;
    let lock = locked(source, context)?;
    let published = publish_locked(source, wanted, context);
    // What has no record has no lock file either.
    if published.is_err() && record::of(source.id()).is_ok_and(|record| record.is_none()) {
        record::forget_lock(source.id());
    }
    drop(lock);
    published
}

fn locked(source: &Source, context: &Context) -> Result<Lock> {
    record::lock(source.id(), context.deadline, |holder| source.in_use(holder))
}

fn publish_locked(source: &Source, wanted: &Wanted, context: &Context) -> Result<Publication> {
    let id = source.id();
    let before = match record::of(id)? {
        Some(record) if !source.is_of(&record) => {
            let sr = source.sr().or(record.sr).unwrap_or_else(SrUuid::random);
            return Err(Error::WwnClash { vdi: id, sr, other: id });
        }
        Some(record) if record.stage == Stage::Removing => {
            remove(source, &record, context)?;
            None
        }
        before => before,
    };
    let is_read_only = source.examine(before.is_none(), wanted.force, context)?;
    if let (Some(why), true) = (wanted.fabric.kind().facts().writable_only, wanted.read_only || is_read_only) {
        return Err(Error::Unsupported {
            op: "target publish of a disk that is not to be written",
            why: why.to_owned(),
        });
    }
    let mut secrets = record::secrets(id)?;
    let mut record = changed(before.as_ref(), source, is_read_only, wanted, &secrets)?;
    if let (Some(initiator), Some(chap)) = (&wanted.initiator, &wanted.chap) {
        secrets.insert(initiator.clone(), chap.clone());
    }
    // The secrets first: a record that wants some has them.
    record::put_secrets(id, &secrets)?;
    if before.as_ref() != Some(&record) {
        record::put(&record)?;
    }
    if let Err(error) = source.take(context) {
        // The VDI is not attached yet: whoever has it now is left alone.
        let undo = if before.is_none() { record::forget(id) } else { Ok(()) };
        return Err(error.undone(undo));
    }
    let device = match bring_up(source, &mut record, before.is_some(), &secrets, context) {
        Ok(device) => device,
        Err(error) if before.is_none() => return Err(error.undone(remove(source, &record, context))),
        Err(error) => return Err(error),
    };
    if record.stage != Stage::Published {
        record.stage = Stage::Published;
        record::put(&record)?;
    }
    let shown = Shown { device, ..record.fabric.kind().look(&record) };
    Ok(Publication { record, shown })
}

/// The record after a call: the one from before with one more initiator.
fn changed(
    before: Option<&Record>,
    source: &Source,
    is_read_only: bool,
    wanted: &Wanted,
    secrets: &Secrets,
) -> Result<Record> {
    let mut record = match before {
        Some(record) => record.clone(),
        None => {
            let target = wanted.fabric.kind().target_name(&wanted.prefix, source.id())?;
            let mut record = Record::new(source, wanted.fabric, target, seconds_now().unwrap_or_default());
            // The device is opened for writing if any initiator may ever write.
            record.read_only = is_read_only || wanted.read_only;
            record.shared = wanted.shared;
            record.authenticated = !wanted.no_auth;
            record.portals = wanted.portals.clone();
            record.backstore = wanted.fabric.kind().number(&record)?;
            record
        }
    };
    let refused = |what: String| Err(Error::Published { vdi: source.id(), what });
    if record.physical.as_ref().map(|it| it.hba) != source.hba() {
        return refused("in another mode of the HBA".to_owned());
    }
    if record.fabric != wanted.fabric {
        return refused(format!("by {}", record.fabric.word()));
    }
    if !wanted.portals.is_empty() && wanted.portals != record.portals {
        let portals: Vec<String> = record.portals.iter().map(ToString::to_string).collect();
        return refused(format!("at {}", portals.join(", ")));
    }
    if record.read_only && !wanted.read_only && !is_read_only {
        return refused("read-only".to_owned());
    }
    let Some(initiator) = &wanted.initiator else {
        return match record.read_only == (is_read_only || wanted.read_only) {
            true => Ok(record),
            false => refused("writable".to_owned()),
        };
    };
    if record.authenticated == wanted.no_auth {
        let how = if wanted.no_auth { "with --auth" } else { "with --no-auth" };
        return refused(how.to_owned());
    }
    if record.authenticated && wanted.chap.is_none() && !secrets.contains_key(initiator) {
        return Err(Error::Usage(format!(
            "the secrets of {initiator} are missing: --auth FILE names them, and --no-auth goes without"
        )));
    }
    let read_only = wanted.read_only || is_read_only;
    match record.initiators.iter().find(|it| it.name == *initiator) {
        Some(it) if it.read_only == read_only => {}
        Some(it) => {
            let how = if it.read_only { "read-only" } else { "writable" };
            return refused(format!("to {initiator}, {how}"));
        }
        None => {
            let others: Vec<&Initiator> = record.initiators.iter().collect();
            let may_share = record.shared || (read_only && others.iter().all(|it| it.read_only));
            if let (Some(other), false) = (others.first(), may_share) {
                let consumer = record.fabric.kind().facts().network.as_ref().map_or("consumer", |it| it.consumer);
                let holder = format!("{consumer} {}; --shared allows several writers from the start", other.name);
                return Err(source.in_use(holder));
            }
            let foreign = record.fabric.kind().has_foreign(initiator)?;
            record.initiators.push(Initiator { name: initiator.clone(), read_only, foreign });
        }
    }
    Ok(record)
}

/// Brings a publication up from its record. Its source is taken. Idempotent.
/// `inherited`: an earlier call has begun it.
fn bring_up(
    source: &Source,
    record: &mut Record,
    inherited: bool,
    secrets: &Secrets,
    context: &Context,
) -> Result<Option<PathBuf>> {
    let device = source.open(record, context)?;
    let parts = Parts { secrets, device: &device, inherited, deadline: context.deadline };
    let disk = record.fabric.kind().publish(record, &parts)?;
    if !record.leaving.is_empty() {
        let stays = |name: &Name| record.initiators.iter().any(|it| it.name == *name);
        let mut secrets = secrets.clone();
        secrets.retain(|name, _| stays(name));
        record::put_secrets(record.vdi, &secrets)?;
        record.leaving.clear();
        record::put(record)?;
    }
    settings::apply(record)?;
    Ok(disk)
}

/// Gives an initiator of a publication other secrets, from its next login on. Idempotent.
///
/// Order: the file of secrets, the kernel. A kill between leaves the old secrets in the kernel until the same call or [`restore`].
///
/// # Errors
/// [`Error::Published`] for a publication without secrets; [`Error::Usage`] for a VDI that is not published, or not to this
/// initiator.
pub fn set_secrets(source: &Source, initiator: &Name, chap: Chap, context: &Context) -> Result<()> {
    needs_root("publish by", configfs::ROOT)?;
    let id = source.id();
    let _lock = locked(source, context)?;
    let record = record::of(id)?.filter(|record| source.is_of(record) && record.stage != Stage::Removing);
    let mut record = record.ok_or_else(|| source.not_published())?;
    if !record.authenticated || record.fabric.kind().facts().network.as_ref().is_none_or(|it| !it.has_secrets) {
        return Err(Error::Published { vdi: id, what: "without secrets".to_owned() });
    }
    if record.initiators.iter().all(|it| it.name != *initiator) {
        return Err(Error::Usage(format!("{id} is not published to {initiator}")));
    }
    let mut secrets = record::secrets(id)?;
    secrets.insert(initiator.clone(), chap);
    record::put_secrets(id, &secrets)?;
    record.fabric.kind().prepare()?;
    source.take(context)?;
    bring_up(source, &mut record, true, &secrets, context).map(drop)
}

/// Ends a publication, or that to one initiator. Idempotent. `force`: consumers lose the disk.
///
/// # Errors
/// [`Error::VdiInUse`] while a consumer uses the disk, unless `force`; what the kernel and the SR say.
pub fn unpublish(source: &Source, initiator: Option<&Name>, force: bool, context: &Context) -> Result<()> {
    needs_root("unpublish by", configfs::ROOT)?;
    let id = source.id();
    let _lock = locked(source, context)?;
    let in_use = |holder: String| Err(source.in_use(holder));
    let mut record = match record::of(id) {
        Ok(Some(record)) if source.is_of(&record) => record,
        // The VDI of another SR that has this UUID is published, and this one is not.
        Ok(Some(_)) => return source.exists(context),
        Err(Error::Damaged { path, what }) if !force => {
            let what = format!("{what}; unpublish --force ends what the kernel has of it");
            return Err(Error::Damaged { path, what });
        }
        Ok(None) | Err(Error::Damaged { .. }) => {
            return unpublish_unrecorded(source, initiator, force, context);
        }
        Err(error) => return Err(error),
    };
    if let Some(initiator) = initiator {
        // One that is leaving: a killed call has not taken the disk from it.
        if record.initiators.iter().chain(&record.leaving).all(|it| it.name != *initiator) {
            return Ok(());
        }
        if !force && let Some(user) = record.fabric.kind().consumer(&record, Some(initiator)) {
            return in_use(format!("{user}; --force cuts it off"));
        }
        let (leaving, staying): (Vec<_>, _) = record.initiators.drain(..).partition(|it| it.name == *initiator);
        record.initiators = staying;
        record.leaving.extend(leaving);
        if !record.initiators.is_empty() {
            let secrets = record::secrets(id)?;
            record::put(&record)?;
            return bring_up(source, &mut record, true, &secrets, context).map(drop);
        }
    }
    if !force && let Some(user) = record.fabric.kind().consumer(&record, None) {
        return in_use(format!("{user}; --force cuts it off"));
    }
    remove(source, &record, context)
}

/// Ends a publication that no record tells of, if the kernel has one. What is damaged of a record goes.
fn unpublish_unrecorded(source: &Source, initiator: Option<&Name>, force: bool, context: &Context) -> Result<()> {
    let there = source.exists(context);
    let found = if there.is_ok() { unrecorded::of(source, context)? } else { None };
    let Some(record) = found else {
        // It outlives a reboot, and the kernel's objects do not.
        source.give_lock_back(context)?;
        // Also the end of a call that was killed is durable.
        record::forget(source.id())?;
        record::forget_lock(source.id());
        return there;
    };
    if let Some(initiator) = initiator {
        return Err(Error::Usage(format!(
            "no record tells how {} is published; unpublish without --to {initiator} ends all of it",
            source.id()
        )));
    }
    let tells = record.fabric.kind().facts().network.as_ref().is_none_or(|it| it.tells_sessions);
    let user = match tells {
        true => record.fabric.kind().consumer(&record, None),
        false => Some("hosts that the kernel does not tell".to_owned()),
    };
    match user {
        Some(user) if !force => Err(source.in_use(format!("{user}; --force cuts it off"))),
        _ => remove(source, &record, context),
    }
}

/// Whether nothing is published under a UUID, durably. A lock that a killed call left is removed. `force`: a record that is damaged
/// goes too.
///
/// # Errors
/// [`Error::Locked`] while another call works on it; [`Error::Damaged`] for a record that is not whole; [`Error::Io`].
pub fn is_ended(id: VdiUuid, force: bool, context: &Context) -> Result<bool> {
    let _lock = record::lock(id, context.deadline, |holder| Error::Locked {
        what: format!("the publication {id}"),
        holder,
        remedy: String::new(),
    })?;
    if fabric::objects_of_ours()?.iter().any(|(of, _)| *of == id) {
        return Ok(false);
    }
    match record::of(id) {
        Ok(Some(_)) => return Ok(false),
        Ok(None) => {}
        Err(Error::Damaged { .. }) if force => {}
        Err(error) => return Err(error),
    }
    record::forget(id)?;
    record::forget_lock(id);
    Ok(true)
}

/// Removes a publication: the record says so first, and goes last.
fn remove(source: &Source, record: &Record, context: &Context) -> Result<()> {
    if record.stage != Stage::Removing {
        let mut leaving = record.clone();
        leaving.stage = Stage::Removing;
        record::put(&leaving)?;
    }
    record.fabric.kind().remove(record, context.deadline)?;
    source.give_back(context)?;
    record::forget(record.vdi)?;
    record::forget_lock(record.vdi);
    Ok(())
}

/// A publication that [`restore`] could not bring up, or that differs from the kernel.
#[derive(Debug)]
pub struct Problem {
    pub vdi: VdiUuid,
    pub what: String,
}

/// Brings every publication up, as after a reboot, and completes what killed calls began. Idempotent. A publication that fails
/// keeps no other from coming back.
///
/// # Errors
/// [`Error::Io`] if the records cannot be listed.
pub fn restore(open: Opener, context: &dyn Fn() -> Context<'static>) -> Result<Vec<Problem>> {
    needs_root("publish by", configfs::ROOT)?;
    let mut problems = Vec::new();
    for (vdi, read) in record::all()? {
        let restored = read.and_then(|record| restore_one(open, &record, &context()));
        if let Err(error) = restored {
            problems.push(Problem { vdi, what: one_line(&error) });
        }
    }
    Ok(problems)
}

fn restore_one(open: Opener, record: &Record, context: &Context) -> Result<()> {
    let session = record.sr.map(open).transpose()?;
    let source = match (&session, &record.physical) {
        (Some(session), _) => Source::Vdi(session, record.vdi),
        (None, Some(device)) => Source::Device(device),
        (None, None) => return Err(Error::Usage(format!("the record of {} names no disk", record.vdi))),
    };
    let _lock = locked(&source, context)?;
    // Another call may have ended it meanwhile.
    let Some(mut record) = record::of(record.vdi)? else { return Ok(()) };
    if let Some(session) = &session {
        session.sr_attach(context)?;
    }
    if record.stage == Stage::Removing {
        return remove(&source, &record, context);
    }
    record.fabric.kind().prepare()?;
    source.take(context)?;
    let secrets = record::secrets(record.vdi)?;
    bring_up(&source, &mut record, true, &secrets, context)?;
    if record.stage != Stage::Published {
        record.stage = Stage::Published;
        record::put(&record)?;
    }
    Ok(())
}

/// Every publication of this host, with what the kernel shows of it, and the records that cannot be read.
///
/// # Errors
/// [`Error::Io`] if the records cannot be listed.
pub fn list() -> Result<(Vec<Publication>, Vec<Problem>)> {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for (vdi, read) in record::all()? {
        match read {
            Ok(record) => found.push(Publication { shown: record.fabric.kind().look(&record), record }),
            Err(error) => problems.push(Problem { vdi, what: one_line(&error) }),
        }
    }
    Ok((found, problems))
}

/// The publication of one VDI, or of the device with the UUID `vdi`, which has no SR.
///
/// # Errors
/// Those of [`record::of`].
pub fn of(sr: Option<SrUuid>, vdi: VdiUuid) -> Result<Option<Publication>> {
    let record = record::of(vdi)?.filter(|record| record.sr == sr);
    Ok(record.map(|record| Publication { shown: record.fabric.kind().look(&record), record }))
}

/// Tells the consumers of a VDI that it has another size; nothing if it is not published. Idempotent.
///
/// # Errors
/// [`Error::Io`] if the kernel refuses that.
pub fn tell_size(sr: SrUuid, vdi: VdiUuid) -> Result<()> {
    match record::of(vdi) {
        Ok(Some(record)) if record.sr == Some(sr) => record.fabric.kind().tell_size(&record),
        // A record that cannot be read keeps no disk from growing.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Compares the records with the kernel. Changes nothing.
///
/// # Errors
/// [`Error::Io`] if the records or the kernel's objects cannot be listed.
pub fn check() -> Result<Vec<Problem>> {
    let (found, mut problems) = list()?;
    for it in &found {
        let what = match it.record.stage {
            Stage::Creating => "its publication was begun and is not complete: sm target restore completes it",
            Stage::Removing => "its publication is being removed: sm target restore completes that",
            Stage::Published if it.shown.is_published => continue,
            Stage::Published => "the kernel does not publish it: sm target restore brings it back",
        };
        problems.push(Problem { vdi: it.record.vdi, what: what.to_owned() });
    }
    for (vdi, object) in fabric::objects_of_ours()? {
        if found.iter().all(|it| it.record.vdi != vdi) && problems.iter().all(|it| it.vdi != vdi) {
            let what =
                format!("the kernel has its object {object}, and no record tells of it: sm target unpublish ends it");
            problems.push(Problem { vdi, what });
        }
    }
    Ok(problems)
}

/// The default of the start of targets' names: as the tools of LIO make them.
pub fn usual_prefix() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let short: String =
        host.split('.').next().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).collect();
    let short = if short.is_empty() { "host".to_owned() } else { short };
    format!("iqn.2003-01.org.linux-iscsi.{short}")
}
