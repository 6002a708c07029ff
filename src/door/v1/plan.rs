//! The plans of commands that destroy or that take long. A plan says what its command would do: for `--dry-run`, and
//! before a person at a terminal is asked.

use std::collections::BTreeSet;

use super::address::Target;
use super::grammar::Verb;
use super::lines::Personal;
use super::verbs::with_users;
use crate::call::Session;
use crate::context::Context;
use crate::door::size;
use crate::error::{Error, Result, one_line};
use crate::registry;
use crate::sys::blockdev;
use crate::types::{Gain, Misread, Overwrite, Params, Size, SrUuid, VdiInfo, VdiUuid, shown};
use crate::vdi::tree::collect::{CollectPlan, Planned};
use crate::vdi::{SnapshotSaid, refuse_snapshot_of_another};

/// The things that a command would do.
#[derive(Default)]
pub struct Plan {
    /// A line for each thing.
    pub lines: Vec<String>,
    /// Whether data would be lost.
    pub destroys: bool,
    /// The disks that would go with their SR, if they can be listed.
    pub doomed: Option<BTreeSet<VdiUuid>>,
}

/// Makes the plan of a command; `None` for a command that has no plan. Changes nothing. `is_chosen`: the command would choose
/// another UUID for what it makes.
///
/// # Errors
/// Those that would make the command fail, as far as they can be told before.
pub fn of(
    verb: &Verb,
    target: &Target,
    personal: &Personal,
    is_chosen: bool,
    context: &Context,
) -> Result<Option<Plan>> {
    let open = |sr: &str| Session::open(target.driver, sr.parse()?, target.config.clone());
    match verb {
        Verb::SrCreate { sr, size, force, destroy_sr } => {
            let session = open(&sr.sr)?;
            let size = size.as_deref().map(size::parse_or_zero).transpose()?.flatten();
            let srs = destroy_sr.iter().map(|sr| sr.parse()).collect::<Result<_, Misread>>()?;
            let lost = session.plan_create(size, &Overwrite { contents: *force, srs }, context)?;
            let what = if is_chosen { "an SR".to_owned() } else { format!("SR {}", session.sr()) };
            let mut plan = made(&what, target, personal, &lost);
            let names = destroy_sr.iter().filter_map(|sr| sr.parse().ok()).flat_map(names_of);
            plan.lines.extend(names.map(|name| format!("remove the name {name}")));
            Ok(Some(plan))
        }
        Verb::SrDelete { sr, .. } => deleted_sr(&open(&sr.sr)?, target, context).map(Some),
        Verb::SrCollect { sr, how } => {
            let session = open(&sr.sr)?;
            let collector = session.collector();
            if how.stop {
                let line = collector
                    .map_or_else(|| "nothing to end: no collector is at work".to_owned(), |who| format!("end {who}"));
                return Ok(Some(Plan { lines: vec![line], destroys: false, ..Plan::default() }));
            }
            let at_work = collector.map(|who| format!("{who} collects it now"));
            let lines = at_work.into_iter().chain(collected(&session.plan_collect(context)?)).collect();
            Ok(Some(Plan { lines, destroys: false, ..Plan::default() }))
        }
        Verb::VdiDelete { vdi, yes } => deleted_vdi(&open(&vdi.sr.sr)?, vdi.vdi.parse()?, *yes, context).map(Some),
        Verb::VdiDetach(vdi) => {
            let info = open(&vdi.sr.sr)?.vdi_get_params(vdi.vdi.parse()?, context)?;
            let line = match &info.device {
                None => format!("nothing to detach: VDI {} is not attached", info.uuid),
                Some(device) => {
                    if let Some(who) = blockdev::user(device) {
                        let holder = format!("{who}, through {}", device.display());
                        return Err(Error::VdiInUse { vdi: info.uuid, sr: info.sr, holder });
                    }
                    format!("detach VDI {} from {}", info.uuid, device.display())
                }
            };
            Ok(Some(Plan { lines: vec![line], destroys: false, ..Plan::default() }))
        }
        Verb::VdiRevert { vdi, snapshot } => {
            let session = open(&vdi.sr.sr)?;
            let disk = session.vdi_get_params(vdi.vdi.parse()?, context)?;
            let snapshot = session.vdi_get_params(snapshot.parse()?, context)?;
            refuse_used(&[&disk])?;
            let VdiInfo { read_only, snapshot_of, .. } = snapshot;
            let params = Params { read_only, snapshot_of, ..Params::default() };
            refuse_snapshot_of_another(disk.uuid, snapshot.uuid, &params, SnapshotSaid::BySr)?;
            let line = format!(
                "give {} the contents of {}; what it holds now is lost",
                described(&disk),
                described(&snapshot)
            );
            Ok(Some(Plan { lines: vec![line], destroys: true, ..Plan::default() }))
        }
        _ => Ok(None),
    }
}

fn made(what: &str, target: &Target, personal: &Personal, lost: &[String]) -> Plan {
    let named = personal.name.as_ref().map(|name| format!(" with the name {name}")).unwrap_or_default();
    let mut lines = vec![format!("make {what}{named} of type {} at {}", target.driver.sr_type, place(target))];
    lines.extend(lost.iter().map(|what| format!("overwrite {what}")));
    if !lost.is_empty() {
        lines.push("overwrite all else that these devices hold".to_owned());
    }
    Plan { lines, destroys: !lost.is_empty(), ..Plan::default() }
}

fn place(target: &Target) -> String {
    let keys = target.config.0.iter().map(|(key, value)| format!("{key}={}", shown(key, value)));
    keys.collect::<Vec<_>>().join(" ")
}

fn deleted_sr(session: &Session, target: &Target, context: &Context) -> Result<Plan> {
    let sr = session.sr();
    let mut lines = Vec::new();
    let (mut destroys, mut doomed) = (false, None);
    match session.sr_scan(context) {
        Ok(info) => {
            let disks: Vec<&VdiInfo> = info.vdis.iter().filter(|vdi| !vdi.hidden).collect();
            refuse_used(&disks)?;
            lines.push(format!("delete SR {sr} of type {} at {}", info.sr_type, info.location));
            if !target.driver.keeps_disks {
                lines.extend(disks.iter().map(|vdi| format!("delete {}", described(vdi))));
                destroys = !disks.is_empty();
                doomed = Some(info.vdis.iter().map(|vdi| vdi.uuid).collect());
            }
        }
        Err(Error::NoSr { .. }) => lines.push(format!("nothing to delete: there is no SR {sr}")),
        // It would have to be attached to be seen, which is a change.
        Err(error @ Error::SrUnavailable { .. }) => {
            lines.push(format!(
                "delete SR {sr} at {} and its disks, which cannot be listed: {}",
                place(target),
                one_line(&error)
            ));
            destroys = true;
        }
        Err(error) => return Err(error),
    }
    lines.extend(names_of(sr).into_iter().map(|name| format!("remove the name {name}")));
    Ok(Plan { lines, destroys, doomed })
}

fn names_of(sr: SrUuid) -> Vec<String> {
    let all = registry::all().unwrap_or_default();
    all.into_iter().filter_map(|(name, entry)| entry.ok().filter(|entry| entry.sr == sr).map(|_| name)).collect()
}

fn refuse_used(disks: &[&VdiInfo]) -> Result<()> {
    let in_use = |vdi: &&&VdiInfo| vdi.attached || !vdi.vbds.is_empty();
    let Some(vdi) = disks.iter().find(in_use) else { return Ok(()) };
    let holder = match vdi.vbds.as_slice() {
        [] => {
            let attached = "this host, which has it attached".to_owned();
            vdi.device.as_deref().map_or_else(|| attached.clone(), |device| with_users(attached.clone(), device))
        }
        users => format!("{}, who locked it", users.join(", ")),
    };
    Err(Error::VdiInUse { vdi: vdi.uuid, sr: vdi.sr, holder })
}

fn deleted_vdi(session: &Session, vdi: VdiUuid, yes: bool, context: &Context) -> Result<Plan> {
    match session.vdi_get_params(vdi, context) {
        Ok(info) => {
            refuse_used(&[&info])?;
            Ok(Plan { lines: vec![format!("delete {}", described(&info))], destroys: true, ..Plan::default() })
        }
        Err(error @ Error::NoVdi { .. }) => Ok(Plan {
            lines: vec![format!("nothing to delete: {}", one_line(&error))],
            destroys: false,
            ..Plan::default()
        }),
        Err(error) if yes && error.is_of_the_image() => {
            let lines = vec![format!("delete VDI {vdi}, which cannot be read: {}", one_line(&error))];
            Ok(Plan { lines, destroys: true, ..Plan::default() })
        }
        Err(error) => Err(error),
    }
}

/// A disk in one line.
fn described(vdi: &VdiInfo) -> String {
    let label = if vdi.label.is_empty() { String::new() } else { format!(" ({})", vdi.label) };
    let state = if vdi.state.is_healthy() { String::new() } else { format!(", {}", vdi.state) };
    let used = Size(vdi.physical_utilisation);
    format!("VDI {}{label}: {} of {}, {used} used{state}", vdi.uuid, vdi.format, Size(vdi.virtual_size))
}

fn collected(plan: &CollectPlan) -> Vec<String> {
    if plan.steps.is_empty() {
        return vec!["nothing to collect".to_owned()];
    }
    let used = |vdi: &VdiUuid| plan.sizes.get(vdi).map_or_else(String::new, |size| format!(", {} used", Size(*size)));
    let line = |step: &Planned| match step {
        Planned::Remove(base) => format!("remove base {base}{}", used(base)),
        Planned::Merge { image, into } => format!("merge {image}{} into its parent {into}{}", used(image), used(into)),
        Planned::Leave(image, why) => format!("leave {image}: {why}"),
    };
    let Gain { bytes, removed, merged } = plan.gain;
    let total = format!("in all: {removed} removed, {merged} merged, about {} freed", size::human(bytes));
    plan.steps.iter().map(line).chain((removed + merged > 0).then_some(total)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::v1::wire::tests::vdi;

    #[test]
    fn what_is_attached_or_locked_is_refused_before_anything_is_asked() {
        let free = VdiInfo { vbds: Vec::new(), attached: false, ..vdi() };
        refuse_used(&[&free]).unwrap();
        for used in [VdiInfo { attached: true, ..free.clone() }, vdi()] {
            assert!(matches!(refuse_used(&[&free, &used]), Err(Error::VdiInUse { .. })));
        }
    }

    #[test]
    fn a_plan_of_the_collector_has_a_line_for_each_image() {
        let (image, into) = (vdi().uuid, VdiUuid::random());
        let leave = Planned::Leave(into, "it is odd".to_owned());
        let steps = vec![Planned::Remove(image), Planned::Merge { image, into }, leave.clone()];
        let gain = Gain { bytes: 5000, removed: 1, merged: 1 };
        let lines = collected(&CollectPlan { steps, sizes: [(image, 4096)].into(), gain });
        assert_eq!(
            lines,
            [
                format!("remove base {image}, 4KiB used"),
                format!("merge {image}, 4KiB used into its parent {into}"),
                format!("leave {into}: it is odd"),
                "in all: 1 removed, 1 merged, about 4.9 KiB freed".to_owned(),
            ]
        );
        assert_eq!(collected(&CollectPlan { steps: vec![leave], ..CollectPlan::default() }).len(), 1);
        assert_eq!(collected(&CollectPlan::default()), ["nothing to collect"]);
    }
}
