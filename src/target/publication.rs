//! Publishing a VDI, and what follows from its record: going on after a kill, a reboot, an end.

use std::path::PathBuf;

use super::chap::Chap;
use super::kernel::{self, Shown};
use super::name::{IscsiName, Portal, loopback_name, wwn_part};
use super::record::{self, Fabric, Initiator, Record, Secrets, Stage};
use crate::call::Session;
use crate::context::Context;
use crate::error::{Error, Result, needs_root, one_line};
use crate::sys::lio::{self, ROOT};
use crate::types::{Mode, SrUuid, VdiInfo, VdiUuid, seconds_now};

/// What a caller asks for when a VDI is published.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub fabric: Fabric,
    /// The initiator that gets the disk; none for the loopback fabric.
    pub initiator: Option<IscsiName>,
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
}

/// A publication as it is now.
#[derive(Clone, Debug)]
pub struct Publication {
    pub record: Record,
    pub shown: Shown,
}

/// Opens the SR of a publication.
pub type Opener<'a> = &'a dyn Fn(SrUuid) -> Result<Session>;

/// The user name under which a publication holds the persistent lock of its VDI. Other hosts see it.
fn lock_user(vdi: VdiUuid) -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("target:{}:{vdi}", host.to_string_lossy())
}

/// Publishes a VDI, or gives one that is published to one more initiator. Idempotent.
///
/// Order: the record; the persistent lock of the VDI; its block device; the kernel's objects; the record once more. Before the
/// first nothing has happened. After it, the same call, [`restore`] or [`unpublish`] goes on.
///
/// # Errors
/// [`Error::NoTarget`] if the kernel has no such target; [`Error::VdiInUse`] for a VDI that is attached, locked or published to
/// others; [`Error::Published`] for what a publication cannot change; [`Error::WwnClash`]; [`Error::Invalid`] for the words.
pub fn publish(session: &Session, vdi: VdiUuid, wanted: &Wanted, context: &Context) -> Result<Publication> {
    needs_root("publish by", ROOT)?;
    let sr = session.sr();
    for portal in &wanted.portals {
        if !portal.is_of_this_host() {
            let expected = "it is no address of this host".to_owned();
            return Err(Error::Invalid { what: "portal", value: portal.to_string(), expected });
        }
    }
    kernel::prepare(wanted.fabric)?;
    let lock = record::lock(sr, vdi, context.deadline)?;
    let published = publish_locked(session, vdi, wanted, context);
    // A VDI that has no record has no lock file either.
    if published.is_err() && record::of(vdi).is_ok_and(|record| record.is_none()) {
        record::forget_lock(vdi);
    }
    drop(lock);
    published
}

fn publish_locked(session: &Session, vdi: VdiUuid, wanted: &Wanted, context: &Context) -> Result<Publication> {
    let sr = session.sr();
    let before = match record::of(vdi)? {
        Some(record) if record.sr != sr => return Err(Error::WwnClash { vdi, sr: record.sr, other: vdi }),
        Some(record) if record.stage == Stage::Removing => {
            remove(session, &record, context)?;
            None
        }
        before => before,
    };
    let info = session.vdi_get_params(vdi, context)?;
    if before.is_none() {
        refuse_in_use(&info)?;
        refuse_clash(sr, vdi)?;
    }
    let mut secrets = record::secrets(vdi)?;
    let mut record = changed(before.as_ref(), sr, vdi, &info, wanted, &secrets)?;
    if let (Some(initiator), Some(chap)) = (&wanted.initiator, &wanted.chap) {
        secrets.insert(initiator.clone(), chap.clone());
    }
    // The secrets first: a record that wants some has them.
    record::put_secrets(vdi, &secrets)?;
    if before.as_ref() != Some(&record) {
        record::put(&record)?;
    }
    if let Err(error) = lock_vdi(session, vdi, context) {
        // The VDI is not attached yet: whoever has it now is left alone.
        let undo = if before.is_none() { record::forget(vdi) } else { Ok(()) };
        return Err(error.undone(undo));
    }
    let device = match bring_up(session, &mut record, before.is_some(), &secrets, context) {
        Ok(device) => device,
        Err(error) if before.is_none() => return Err(error.undone(remove(session, &record, context))),
        Err(error) => return Err(error),
    };
    if record.stage != Stage::Published {
        record.stage = Stage::Published;
        record::put(&record)?;
    }
    let shown = Shown { device, ..kernel::look(&record) };
    Ok(Publication { record, shown })
}

/// Refuses a VDI that somebody uses. What this host's publication of it left after a kill is no use.
fn refuse_in_use(info: &VdiInfo) -> Result<()> {
    let in_use = |holder: String| Err(Error::VdiInUse { vdi: info.uuid, sr: info.sr, holder });
    if info.hidden {
        return Err(Error::IsBase { op: "target publish", vdi: info.uuid });
    }
    match &info.device {
        Some(device) => in_use(format!("this host, which has it attached as {}; detach it first", device.display())),
        None if info.attached => in_use("this host, which has it attached; detach it first".to_owned()),
        None => Ok(()),
    }
}

/// Refuses a VDI that an initiator would take for another that this host publishes.
fn refuse_clash(sr: SrUuid, vdi: VdiUuid) -> Result<()> {
    let part = wwn_part(vdi);
    for (other, _) in record::all()? {
        if other != vdi && wwn_part(other) == part {
            return Err(Error::WwnClash { vdi, sr, other });
        }
    }
    Ok(())
}

/// The record after a call: the one from before with one more initiator.
fn changed(
    before: Option<&Record>,
    sr: SrUuid,
    vdi: VdiUuid,
    info: &VdiInfo,
    wanted: &Wanted,
    secrets: &Secrets,
) -> Result<Record> {
    let mut record = match before {
        Some(record) => record.clone(),
        None => {
            let target = match wanted.fabric {
                Fabric::Iscsi => IscsiName::of_target(&wanted.prefix, vdi)?.to_string(),
                Fabric::Loopback => loopback_name(vdi, "target"),
            };
            let mut record = Record::new(sr, vdi, wanted.fabric, target, seconds_now().unwrap_or_default());
            // The device is opened for writing if any initiator may ever write.
            record.read_only = info.read_only || wanted.read_only;
            record.shared = wanted.shared;
            record.authenticated = !wanted.no_auth;
            record.portals = wanted.portals.clone();
            record.backstore = kernel::free_backstore()?;
            record
        }
    };
    let refused = |what: String| Err(Error::Published { vdi, what });
    if record.fabric != wanted.fabric {
        return refused(format!("by {}", record.fabric.word()));
    }
    if !wanted.portals.is_empty() && wanted.portals != record.portals {
        let portals: Vec<String> = record.portals.iter().map(ToString::to_string).collect();
        return refused(format!("at {}", portals.join(", ")));
    }
    if record.read_only && !wanted.read_only && !info.read_only {
        return refused("read-only".to_owned());
    }
    let Some(initiator) = &wanted.initiator else {
        return match record.read_only == (info.read_only || wanted.read_only) {
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
    let read_only = wanted.read_only || info.read_only;
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
                let holder = format!("initiator {}; --shared allows several writers from the start", other.name);
                return Err(Error::VdiInUse { vdi, sr, holder });
            }
            record.initiators.push(Initiator { name: initiator.clone(), read_only });
        }
    }
    Ok(record)
}

/// Brings a publication up from its record. The VDI is locked. Idempotent.
/// `inherited`: an earlier call has begun it.
fn bring_up(
    session: &Session,
    record: &mut Record,
    inherited: bool,
    secrets: &Secrets,
    context: &Context,
) -> Result<Option<PathBuf>> {
    let mode = if record.read_only { Mode::ReadOnly } else { Mode::ReadWrite };
    let device = session.vdi_attach(record.vdi, mode, context)?;
    kernel::make_backstore(record, inherited, record::put)?;
    kernel::publish(record, secrets, &device)
}

/// Takes the persistent lock of the VDI, which is how other hosts see the publication. An SR without such locks has none.
fn lock_vdi(session: &Session, vdi: VdiUuid, context: &Context) -> Result<()> {
    let user = lock_user(vdi);
    match session.vdi_lock(vdi, &user, false, context) {
        Err(Error::Unsupported { .. }) => Ok(()),
        Err(Error::LockRefused { .. }) if session.vdi_get_params(vdi, context)?.vbds.contains(&user) => Ok(()),
        other => other,
    }
}

fn unlock_vdi(session: &Session, vdi: VdiUuid, context: &Context) -> Result<()> {
    match session.vdi_unlock(vdi, &lock_user(vdi), false, context) {
        // Not locked, or by others: then there is nothing of ours to give back.
        Ok(()) | Err(Error::Unsupported { .. } | Error::LockRefused { .. } | Error::NoVdi { .. }) => Ok(()),
        other => other,
    }
}

/// Ends a publication, or that to one initiator. Idempotent. `force`: consumers lose the disk.
///
/// # Errors
/// [`Error::VdiInUse`] while a consumer uses the disk, unless `force`; what the kernel and the SR say.
pub fn unpublish(
    session: &Session,
    vdi: VdiUuid,
    initiator: Option<&IscsiName>,
    force: bool,
    context: &Context,
) -> Result<()> {
    needs_root("unpublish by", ROOT)?;
    let sr = session.sr();
    let _lock = record::lock(sr, vdi, context.deadline)?;
    let mut record = match record::of(vdi)? {
        Some(record) if record.sr == sr => record,
        // The VDI of another SR that has this UUID is published, and this one is not.
        Some(_) => return session.vdi_get_brief(vdi, context).map(drop),
        None => {
            // Also the end of a call that was killed is durable.
            record::forget(vdi)?;
            record::forget_lock(vdi);
            return session.vdi_get_brief(vdi, context).map(drop);
        }
    };
    let in_use = |holder: String| Err(Error::VdiInUse { vdi, sr, holder });
    if let Some(initiator) = initiator {
        if record.initiators.iter().all(|it| it.name != *initiator) {
            return Ok(());
        }
        if !force && kernel::is_logged_in(&record, initiator.as_str()) {
            return in_use(format!("initiator {initiator}, who is logged in; --force cuts it off"));
        }
        record.initiators.retain(|it| it.name != *initiator);
        if !record.initiators.is_empty() {
            let mut secrets = record::secrets(vdi)?;
            secrets.remove(initiator);
            record::put(&record)?;
            record::put_secrets(vdi, &secrets)?;
            return bring_up(session, &mut record, true, &secrets, context).map(drop);
        }
    }
    if !force && let Some(user) = kernel::consumer(&record) {
        return in_use(format!("{user}; --force cuts it off"));
    }
    remove(session, &record, context)
}

/// Removes a publication: the record says so first, and goes last.
fn remove(session: &Session, record: &Record, context: &Context) -> Result<()> {
    let vdi = record.vdi;
    if record.stage != Stage::Removing {
        let mut leaving = record.clone();
        leaving.stage = Stage::Removing;
        record::put(&leaving)?;
    }
    kernel::remove(record)?;
    match session.vdi_detach(vdi, context) {
        Ok(_) | Err(Error::NoVdi { .. }) => {}
        Err(error) => return Err(error),
    }
    unlock_vdi(session, vdi, context)?;
    record::forget(vdi)?;
    record::forget_lock(vdi);
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
    needs_root("publish by", ROOT)?;
    let mut problems = Vec::new();
    for (vdi, read) in record::all()? {
        let restored = read.and_then(|record| restore_one(open, record.sr, vdi, &context()));
        if let Err(error) = restored {
            problems.push(Problem { vdi, what: one_line(&error) });
        }
    }
    Ok(problems)
}

fn restore_one(open: Opener, sr: SrUuid, vdi: VdiUuid, context: &Context) -> Result<()> {
    let session = open(sr)?;
    let _lock = record::lock(sr, vdi, context.deadline)?;
    // Another call may have ended it meanwhile.
    let Some(mut record) = record::of(vdi)? else { return Ok(()) };
    session.sr_attach(context)?;
    if record.stage == Stage::Removing {
        return remove(&session, &record, context);
    }
    kernel::prepare(record.fabric)?;
    lock_vdi(&session, vdi, context)?;
    bring_up(&session, &mut record, true, &record::secrets(vdi)?, context)?;
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
            Ok(record) => found.push(Publication { shown: kernel::look(&record), record }),
            Err(error) => problems.push(Problem { vdi, what: one_line(&error) }),
        }
    }
    Ok((found, problems))
}

/// The publication of one VDI.
///
/// # Errors
/// Those of [`record::of`].
pub fn of(sr: SrUuid, vdi: VdiUuid) -> Result<Option<Publication>> {
    let record = record::of(vdi)?.filter(|record| record.sr == sr);
    Ok(record.map(|record| Publication { shown: kernel::look(&record), record }))
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
    for object in lio::objects()? {
        let Some(vdi) = kernel::published_by_us(&object) else { continue };
        if found.iter().all(|it| it.record.vdi != vdi) && problems.iter().all(|it| it.vdi != vdi) {
            let what = format!("the kernel has its object {}, and no record tells of it", object.shown());
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
