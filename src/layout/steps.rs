//! The steps that make changes, in the order in which they are done: the state of all that is touched is looked at first; what
//! goes is ended before what comes is begun; and the layout is saved before anything is made for it.

use std::collections::BTreeSet;

use super::compare::{Changes, Object};
use super::plan::{Action, Allow, Step, WHOLE};
use super::{Layout, Slot, SlotId};
use crate::registry::candidate::Class;
use crate::sys::run_dir;
use crate::types::Size;

/// The end of the words of a release.
pub const KEEPS: &str = ", which keeps its data";

/// The steps of changes. `old`: none if nothing is installed. `here`: the host that acts on what has no host of its own.
pub fn steps(changes: &Changes, old: Option<&Layout>, new: &Layout, here: &str) -> Vec<Step> {
    if changes.is_empty() {
        return Vec::new();
    }
    let slot = |id: SlotId| new.slot(id).or_else(|| old.and_then(|old| old.slot(id)));
    let mut found: Vec<(Action, Object, Option<Allow>)> = vec![(Action::Save, Object::Whole, None)];
    let mut touched = BTreeSet::new();
    for (action, object, allow) in changes.iter() {
        if let Object::Slot(id) | Object::Attached { slot: id, .. } = object {
            touched.insert(*id);
        }
        let mut add = |action, allow| found.push((action, object.clone(), allow));
        match (action, object) {
            (Action::Remove, _) => {
                add(Action::Wipe, Some(Allow::Wipe));
                add(Action::Drop, None);
                add(Action::Release, None);
            }
            // The name of what is removed is dropped.
            (Action::Rewire, Object::Slot(id)) if new.slot(*id).is_none() => {}
            (Action::Create | Action::Adopt, _) => {
                add(Action::Claim, None);
                add(action, allow);
            }
            _ => add(action, allow),
        }
    }
    for id in &touched {
        // The mark says that the SR is on these media now.
        if let (Some(before), Some(after)) = (old.and_then(|old| old.slot(*id)), new.slot(*id))
            && identities(before) != identities(after)
        {
            found.push((Action::Release, Object::Slot(*id), None));
            found.push((Action::Claim, Object::Slot(*id), None));
        }
    }
    found.extend(touched.into_iter().map(|id| (Action::Check, Object::Slot(id), None)));
    found.sort();
    let step = |(at, (action, object, allow)): (usize, (Action, Object, Option<Allow>))| {
        let known = match &object {
            Object::Slot(id) | Object::Attached { slot: id, .. } => slot(*id),
            Object::Whole | Object::Gateway(_) => None,
        };
        let host = match (&object, known) {
            (Object::Attached { host, .. } | Object::Gateway(host), _) => host.clone(),
            (_, Some(slot)) if slot.id.class != Class::Nfs => slot.host.clone(),
            _ => here.to_owned(),
        };
        Step {
            n: at as u32 + 1,
            action,
            object: known.map_or_else(|| WHOLE.to_owned(), |slot| slot.id.to_string()),
            host,
            destructive: matches!(action, Action::Wipe | Action::Reformat),
            allow,
            done: false,
            what: words(action, known, old, new),
        }
    };
    found.into_iter().enumerate().map(step).collect()
}

fn identities(slot: &Slot) -> BTreeSet<&str> {
    slot.media.iter().map(|medium| medium.identity.as_str()).collect()
}

/// A step in words.
fn words(action: Action, slot: Option<&Slot>, old: Option<&Layout>, new: &Layout) -> String {
    let Some(slot) = slot else {
        return match action {
            Action::Save => format!("save layout {}", new.name),
            Action::CopyConf => {
                format!("write the names of the SRs of layout {} to {}", new.name, run_dir::names().display())
            }
            _ => format!("{action} layout {}", new.name),
        };
    };
    let (id, sr) = (slot.id, slot.uuid);
    let size = slot.size().map(|size| format!(" ({})", Size(size))).unwrap_or_default();
    let at = match id.class {
        Class::Nfs => format!("{}:{}", slot.host, slot.devs()),
        Class::Lvm | Class::File => format!("{}{size}", slot.devs()),
    };
    let before = old.and_then(|old| old.slot(id));
    match action {
        Action::Check => format!("look at {id} on {at}"),
        Action::Detach => format!("detach SR {sr}, {id}"),
        Action::Stop => format!("bring SR {sr} down, {id}"),
        Action::Wipe => format!("delete SR {sr} with its VDIs, {id} on {at}"),
        Action::Drop => format!("remove the name {}", new.sr_name(id)),
        Action::Release => {
            let slot = before.unwrap_or(slot);
            format!("release {}{KEEPS}", slot.devs())
        }
        Action::Claim => format!("claim {at} for {id}"),
        Action::Create => format!("make SR {sr} on {at} as {id}"),
        Action::Adopt => format!("take SR {sr} over, which is on {at}, as {id}"),
        Action::Grow => {
            let from = before.and_then(Slot::size).map(|size| format!(" from {}", Size(size))).unwrap_or_default();
            format!("let SR {sr} grow{from} to{size} on {}, {id}", slot.devs())
        }
        Action::Retune => format!("change the stored properties of SR {sr}, {id}"),
        Action::Rewire => format!("change where SR {sr} is found, {id}"),
        Action::Reformat => format!("delete SR {sr} with its VDIs and make it anew, {id} on {at}"),
        Action::Restart => format!("bring SR {sr} down and up, {id}"),
        Action::Start => format!("bring SR {sr} up, {id}"),
        Action::Attach => format!("attach SR {sr}, {id}"),
        Action::Tune if slot.active.is_up() => format!("bring SR {sr} up from now on, {id}"),
        Action::Tune => format!("keep SR {sr} down from now on, {id}"),
        Action::Save | Action::CopyConf | Action::Remove | Action::Publish | Action::Unpublish => {
            format!("{action} {id}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Attach;
    use crate::layout::compare::compare;
    use crate::layout::installed::tests::sample;

    fn planned(old: Option<&Layout>, new: &Layout, adoptable: &[SlotId]) -> Vec<String> {
        let changes = compare(old, new, &adoptable.iter().copied().collect()).unwrap();
        let steps = steps(&changes, old, new, "node1");
        assert!(steps.iter().zip(1..).all(|(step, n)| step.n == n && !step.done && step.host == "node1"), "{steps:?}");
        assert!(steps.iter().all(|step| step.destructive == matches!(step.allow, Some(Allow::Wipe | Allow::Reformat))));
        steps.iter().map(|step| format!("{} {}", step.action, step.object)).collect()
    }

    fn base() -> Layout {
        let mut layout = sample();
        layout.slots.truncate(3);
        layout.gateways.clear();
        layout
    }

    #[test]
    fn what_goes_is_ended_before_the_layout_is_saved_and_what_comes_is_begun_after_it() {
        let old = base();
        let mut new = base();
        new.slots.remove(1);
        let mut slot = new.slots[0].clone();
        slot.id.index = 1;
        new.slots.insert(1, slot);
        new.attaches = vec![Attach { options: "ro".to_owned(), ..old.attaches[0].clone() }];
        assert_eq!(
            planned(Some(&old), &new, &[]),
            [
                "check lvm/1",
                "check file/0",
                "check nfs/4",
                "detach nfs/4",
                "stop file/0",
                "wipe file/0",
                "drop file/0",
                "release file/0",
                "save layout",
                "claim lvm/1",
                "copyconf layout",
                "create lvm/1",
                "start lvm/1",
                "attach nfs/4",
            ]
        );
        assert_eq!(planned(Some(&old), &old, &[]), [] as [&str; 0]);
    }

    #[test]
    fn a_slot_whose_sr_is_found_on_another_medium_claims_that_instead() {
        let old = base();
        let mut new = base();
        new.slots[0].media[0].identity = "wwid:other".to_owned();
        new.slots[0].media[0].dev = "/dev/other".to_owned();
        let steps = planned(Some(&old), &new, &[new.slots[0].id]);
        assert_eq!(
            steps,
            [
                "check lvm/0",
                "stop lvm/0",
                "release lvm/0",
                "save layout",
                "claim lvm/0",
                "copyconf layout",
                "start lvm/0"
            ]
        );
    }
}
