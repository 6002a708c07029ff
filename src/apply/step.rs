//! One step. Each is idempotent: it finds out what is there, and a second call finds it done.

use std::collections::BTreeSet;
use std::time::Instant;

use super::journal::{Journal, Mark};
use super::{Job, media};
use crate::call::{Disks, Session};
use crate::context::{Context, DEFAULT_WAIT};
use crate::error::{Error, Result};
use crate::layout::plan::{Action, Allow, Step};
use crate::layout::{Active, Layout, Mode, Slot, config, installed};
use crate::registry::claims::{Claim, LayoutRecord};
use crate::registry::{self, Entry, Place, SrName, ledger};
use crate::sys::run_dir;
use crate::types::{DeviceConfig, Misread, NewSr, Overwrite, seconds_now};

/// Whether this release carries such a step out.
pub fn is_supported(action: Action) -> bool {
    match action {
        Action::Check
        | Action::Detach
        | Action::Stop
        | Action::Wipe
        | Action::Drop
        | Action::Release
        | Action::Save
        | Action::Claim
        | Action::CopyConf
        | Action::Create
        | Action::Adopt
        | Action::Grow
        | Action::Rewire
        | Action::Reformat
        | Action::Restart
        | Action::Start
        | Action::Attach
        | Action::Tune => true,
        Action::Retune | Action::Remove | Action::Publish | Action::Unpublish => false,
    }
}

fn deadline() -> Instant {
    Instant::now() + DEFAULT_WAIT
}

fn context() -> Context<'static> {
    Context { deadline: deadline(), progress: &|_, _| {}, others: None }
}

/// The name of the SR of a slot in the table of this host.
fn name(layout: &Layout, slot: &Slot) -> Result<SrName> {
    let name: Result<SrName, Misread> = layout.sr_name(slot.id).parse();
    Ok(name?)
}

fn session(layout: &Layout, slot: &Slot) -> Result<Session> {
    Session::open(config::driver(slot.id.class), slot.uuid, config::device_config(layout, slot))
}

/// The SR where this host has it now: its entry in the table says more than a layout, of which steps may be left.
fn session_now(job: &Job, step: &Step) -> Result<Session> {
    let (layout, slot) = before(job, step)?;
    let driver = config::driver(slot.id.class);
    let known = registry::find(&name(layout, slot)?)?.filter(|it| it.sr == slot.uuid && it.sr_type == driver.sr_type);
    let config = match known {
        Some(Entry { place: Place::Keys(config), .. }) => config,
        Some(Entry { place: Place::Dconf(dconf), .. }) => (driver.parse_dconf)(&dconf)?,
        None => config::device_config(layout, slot),
    };
    Session::open(driver, slot.uuid, config)
}

/// The slot of a step as it was, or as it will be if it is new.
fn before<'j>(job: &'j Job, step: &Step) -> Result<(&'j Layout, &'j Slot)> {
    let of_old = || {
        let (id, layout) = (step.object.parse().ok()?, job.old.as_ref()?);
        Some((layout, layout.slot(id)?))
    };
    of_old().map_or_else(|| after(job, step), Ok)
}

/// The slot of a step as it will be, or as it was if it goes.
fn after<'j>(job: &'j Job, step: &Step) -> Result<(&'j Layout, &'j Slot)> {
    job.slot_of(step).ok_or_else(|| Error::StalePlan {
        layout: job.plan.layout.clone(),
        why: format!("step {} is about {}, which no layout has", step.n, step.object),
    })
}

/// Looks whether a slot is as the plan takes it to be, before anything is changed.
///
/// # Errors
/// What would make a later step of the slot fail, as far as it can be seen.
pub fn check(job: &Job, step: &Step, allow: &BTreeSet<Allow>) -> Result<()> {
    let of_slot = job.plan.steps.iter().filter(|it| it.object == step.object && Job::is_allowed(it, allow));
    let actions: BTreeSet<Action> = of_slot.map(|it| it.action).collect();
    let has = |some: &[Action]| some.iter().any(|action| actions.contains(action));
    if has(&[Action::Detach, Action::Stop, Action::Wipe, Action::Rewire, Action::Reformat, Action::Restart]) {
        refuse_attached(job, step)?;
    }
    if has(&[Action::Wipe, Action::Reformat]) {
        loses(job, step)?;
    }
    let (layout, slot) = after(job, step)?;
    let moved = before(job, step)?.1.devs() != slot.devs();
    if has(&[Action::Claim, Action::Create, Action::Adopt]) || moved {
        media::identify(slot)?;
        refuse_claimed(job, slot)?;
        taken_name(layout, slot)?;
    }
    if has(&[Action::Adopt]) || moved {
        media::must_hold(layout, slot)?;
    }
    if has(&[Action::Create]) {
        match session(layout, slot)?.plan_create(None, &Overwrite::default(), &context()) {
            // A driver that cannot tell finds out when it makes the SR.
            Err(Error::Unsupported { .. }) => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// Refuses to begin a step that would destroy another SR than that of its slot, or none, and would call that done. A step that was
/// begun finds what it left.
///
/// # Errors
/// [`Error::NoDevice`] with what the medium holds; what the driver says of it.
pub fn may_begin(job: &Job, step: &Step) -> Result<()> {
    match step.action.destroys() {
        Some(_) => loses(job, step),
        None => Ok(()),
    }
}

/// Refuses media that do not hold the SR of the slot, which would be deleted.
fn loses(job: &Job, step: &Step) -> Result<()> {
    let (layout, slot) = before(job, step)?;
    media::identify(slot)?;
    media::must_hold(layout, slot)
}

/// Refuses to bring an SR down while disks of it are attached on this host.
fn refuse_attached(job: &Job, step: &Step) -> Result<()> {
    // An SR that cannot be seen is brought down as far as it is there.
    let Ok(info) = session_now(job, step)?.sr_scan(&context()) else { return Ok(()) };
    let in_use = |vdi: &crate::types::VdiInfo| {
        let device = vdi.device.as_ref().map(|device| format!(" as {}", device.display())).unwrap_or_default();
        Error::VdiInUse { vdi: vdi.uuid, sr: info.uuid, holder: format!("this host, which has it attached{device}") }
    };
    info.vdis.iter().find(|vdi| vdi.attached).map_or(Ok(()), |vdi| Err(in_use(vdi)))
}

fn refuse_claimed(job: &Job, slot: &Slot) -> Result<()> {
    let claims = ledger::read()?;
    slot.media.iter().try_for_each(|medium| refuse_claim_of_others(&claims, job, slot, &medium.identity))
}

fn refuse_claim_of_others(claims: &registry::claims::Claims, job: &Job, slot: &Slot, identity: &str) -> Result<()> {
    let is_ours = |claim: &Claim| {
        let of_slot = claim.layout == job.name.as_str()
            && claim.class == slot.id.class.word()
            && claim.index == Some(slot.id.index);
        of_slot || claim.sr_uuid == Some(slot.uuid)
    };
    match claims.overlapping(identity).find(|claim| !is_ours(claim)) {
        None => Ok(()),
        Some(claim) => Err(Error::DeviceInUse {
            device: slot.devs(),
            holder: format!(
                "it is claimed: {}; {} ends that",
                claim.owner(),
                run_dir::sm(&["devices", "release", &claim.identity])
            ),
        }),
    }
}

/// Refuses a name that another SR has on this host.
fn taken_name(layout: &Layout, slot: &Slot) -> Result<()> {
    let name = name(layout, slot)?;
    match registry::find(&name)?.filter(|entry| entry.sr != slot.uuid) {
        None => Ok(()),
        Some(entry) => {
            Err(Error::NameTaken { name: name.to_string(), sr: entry.sr, place: format!("of type {}", entry.sr_type) })
        }
    }
}

/// Carries a step out.
///
/// # Errors
/// What the SR or the table of the host says.
pub fn carry_out(job: &Job, step: &Step, journal: &mut Journal) -> Result<()> {
    match step.action {
        Action::Check => Ok(()),
        Action::Save => save(job),
        Action::CopyConf => copy_names(job),
        Action::Detach | Action::Stop => session_now(job, step)?.sr_detach(&context()).map(drop),
        Action::Wipe => wipe(job, step),
        Action::Drop => {
            let (layout, slot) = before(job, step)?;
            registry::remove_name(&name(layout, slot)?, slot.uuid)
        }
        Action::Release => release(job, before(job, step)?.1),
        Action::Claim => claim(job, after(job, step)?),
        Action::Create => create(after(job, step)?),
        Action::Adopt => {
            let (layout, slot) = after(job, step)?;
            media::identify(slot)?;
            media::must_hold(layout, slot)
        }
        Action::Rewire | Action::Restart => {
            all_down(job, step, journal)?;
            put_name(after(job, step)?)?;
            start_if_up(after(job, step)?)
        }
        Action::Grow => {
            let (layout, slot) = after(job, step)?;
            media::identify(slot)?;
            session(layout, slot)?.sr_grow(&context()).map(drop)
        }
        Action::Reformat => reformat(job, step, journal),
        Action::Start | Action::Attach => start(after(job, step)?),
        Action::Tune => match after(job, step)? {
            (_, slot) if slot.active == Active::No => session_now(job, step)?.sr_detach(&context()).map(drop),
            of_slot => start_if_up(of_slot),
        },
        Action::Retune | Action::Remove | Action::Publish | Action::Unpublish => {
            Err(Error::Unsupported { op: step.action.word(), why: "this release has no such step".to_owned() })
        }
    }
}

/// Brings down the SR of a step, and those of all steps of its kind that are still to be done. Linux takes two addresses of an NFS
/// server for one as long as an export is mounted by the first, so none may be mounted any more when one is by the second.
fn all_down(job: &Job, step: &Step, journal: &Journal) -> Result<()> {
    let of_kind = job.plan.steps.iter().filter(|it| it.action == step.action);
    for it in of_kind.filter(|it| it.n == step.n || !matches!(journal.mark(it), Mark::Done)) {
        session_now(job, it)?.sr_detach(&context())?;
    }
    Ok(())
}

/// Deletes the SR of a slot with its disks. The medium has to be the slot's still, and nobody may have it.
fn wipe(job: &Job, step: &Step) -> Result<()> {
    let (layout, slot) = before(job, step)?;
    session_now(job, step)?.sr_detach(&context())?;
    media::have_alone(slot)?;
    if media::held(layout, slot)?.is_some() {
        media::must_hold(layout, slot)?;
    }
    session_now(job, step)?.sr_delete(Disks::All, &context()).map(drop)
}

fn reformat(job: &Job, step: &Step, journal: &mut Journal) -> Result<()> {
    // After the SR was deleted, what is found is the new one, which must not go.
    if journal.mark(step) != Mark::Erased {
        wipe(job, step)?;
        journal.write(step, Mark::Erased)?;
    }
    create(after(job, step)?)?;
    put_name(after(job, step)?)?;
    start_if_up(after(job, step)?)
}

fn create((layout, slot): (&Layout, &Slot)) -> Result<()> {
    media::identify(slot)?;
    let new = NewSr { size: None, slot: Some(media::mark(layout, slot)) };
    match session(layout, slot)?.sr_create(&new, &Overwrite::default(), &context()) {
        // An earlier run was killed after it had made the SR.
        Err(Error::SrExists { .. }) => media::must_hold(layout, slot),
        other => other,
    }
}

fn start((layout, slot): (&Layout, &Slot)) -> Result<()> {
    // sr_attach takes over a directory of disks that another storage manager made, which is not the SR of the slot.
    if slot.id.class == crate::registry::candidate::Class::File {
        media::must_hold(layout, slot)?;
    }
    session(layout, slot)?.sr_attach(&context()).map(drop)
}

fn start_if_up((layout, slot): (&Layout, &Slot)) -> Result<()> {
    if slot.active.is_up() { start((layout, slot)) } else { Ok(()) }
}

fn release(job: &Job, slot: &Slot) -> Result<()> {
    let goes = |claim: &Claim| {
        claim.layout == job.name.as_str() && claim.class == slot.id.class.word() && claim.index == Some(slot.id.index)
    };
    ledger::change(deadline(), |claims| Ok((!claims.release(goes).is_empty(), ())))
}

fn claim(job: &Job, (layout, slot): (&Layout, &Slot)) -> Result<()> {
    media::identify(slot)?;
    ledger::change(deadline(), |claims| {
        let mut is_changed = false;
        for medium in &slot.media {
            refuse_claim_of_others(claims, job, slot, &medium.identity)?;
            is_changed |= claims.put(layout.claim(slot, medium, seconds_now().unwrap_or_default()));
        }
        Ok((is_changed, ()))
    })
}

/// Installs the layout and reads it again; or, if the plan removes it, removes it. Its UUID stays known, so that its SRs get their
/// UUIDs again.
fn save(job: &Job) -> Result<()> {
    let Some(layout) = job.new.as_ref().or(job.old.as_ref()) else { return Ok(()) };
    let removed = job.new.is_none();
    let record = |since| LayoutRecord { uuid: layout.uuid.to_string(), since, removed };
    let write = || {
        ledger::change(deadline(), |claims| {
            let known = claims.layouts.get(job.name.as_str());
            if known.is_some_and(|known| *known == record(known.since)) {
                return Ok((false, ()));
            }
            claims.layouts.insert(job.name.to_string(), record(seconds_now().unwrap_or_default()));
            Ok((true, ()))
        })
    };
    if removed {
        write()?;
        return installed::remove(&job.name).map(drop);
    }
    write()?;
    installed::save(layout)?;
    match installed::load(&job.name)?.is_some_and(|saved| saved == *layout) {
        true => Ok(()),
        false => Err(Error::Damaged {
            path: installed::path(&job.name),
            what: "it is not as it was written a moment ago".to_owned(),
        }),
    }
}

/// Writes the names of the SRs of the layout. A slot whose SR moves gets its entry when it does.
fn copy_names(job: &Job) -> Result<()> {
    let Some(layout) = &job.new else { return Ok(()) };
    let moves = |slot: &Slot| {
        let id = slot.id.to_string();
        let moving = [Action::Rewire, Action::Restart, Action::Reformat];
        job.plan.steps.iter().any(|step| step.object == id && moving.contains(&step.action))
    };
    let here = registry::view::host_name();
    let is_ours = |slot: &&Slot| {
        slot.mode == Mode::Managed && (slot.host == here || slot.id.class == crate::registry::candidate::Class::Nfs)
    };
    layout.slots.iter().filter(is_ours).filter(|slot| !moves(slot)).try_for_each(|slot| put_name((layout, slot)))
}

fn put_name((layout, slot): (&Layout, &Slot)) -> Result<()> {
    taken_name(layout, slot)?;
    let config: DeviceConfig = config::device_config(layout, slot);
    registry::put(&name(layout, slot)?, slot.uuid, slot.id.class.word(), &Place::Keys(config))
}
