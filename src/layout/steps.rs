//! The steps that make changes, in the order in which they are done: the state of all that is touched is looked at first; what
//! goes is ended before what comes is begun; and the layout is saved before anything is made for it.

use std::collections::BTreeSet;

use super::compare::{Changes, Object};
use super::plan::{Action, Allow, Step, WHOLE};
use super::{Layout, Slot, SlotId};
use crate::registry::candidate::Class;
use crate::types::Size;

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

/// A step in words.
fn words(action: Action, slot: Option<&Slot>, old: Option<&Layout>, new: &Layout) -> String {
    let Some(slot) = slot else {
        return match action {
            Action::Save => format!("save layout {}", new.name),
            Action::CopyConf => format!("write the names of the SRs of layout {} to /etc/sm/sr.d", new.name),
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
        Action::Release => format!("release {at}, which keeps its data"),
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
