//! The difference between two layouts, as actions: what each change means.
//!
//! | change | action | needs to be allowed |
//! |---|---|---|
//! | `layout`, `uuid` | refused | |
//! | `CLASS_format`, `CLASS_format_args` | `reformat` | yes |
//! | `lvm_alloc`, `lvm_tags`, `file_reserve`, `limit`, `limit_warn` | `retune` | yes |
//! | the addresses of a host that carries a slot | `rewire` | yes |
//! | other addresses, `description`, `tag`, `group`, `prep` of a slot | `copyconf` | |
//! | `attach_path`, `attach_options`, `subdir` | `detach`, `attach` of all | |
//! | `CLASS_attach_path`, `CLASS_attach_options` | `restart` | yes |
//! | an attach line | `detach`, `attach` | |
//! | a gateway line | `unpublish`, `publish`; refused if it changed | |
//! | a slot that goes | `stop`, `remove`, `rewire` | |
//! | a slot that comes | `create` or `adopt`, `start` | |
//! | `host`, `ha_host`, `network`, `dev` of a slot | `stop`, `start`, and `rewire` unless only `dev` changed | |
//! | `active` of a slot | `tune` | |
//! | `jdev`, `fs`, `uuid`, `mode` of a slot; a smaller medium | refused | |
//! | a larger medium | `grow` | |
//!
//! Any difference is `copyconf` as well. Where this says `stop` and `start`, an SR of class `nfs` is detached and attached by the
//! hosts that have it: its own host is a server that we do nothing on.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::{Effect, KEYS};
use super::plan::{Action, Allow};
use super::{Attach, Gateway, Layout, Medium, Mode, Slot, SlotId};
use crate::error::{Error, Result};
use crate::registry::candidate::Class;
use crate::types::Size;

/// What an action is done to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Whole,
    Slot(SlotId),
    /// A slot, and the host that attaches it, at the path that its line says.
    Attached {
        slot: SlotId,
        host: String,
        path: String,
    },
    /// A host that publishes.
    Gateway(String),
}

/// The actions, each with the objects it is done to and what has to be allowed for that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(BTreeMap<(Action, Object), Option<Allow>>);

impl Changes {
    /// The actions alone.
    pub fn actions(&self) -> BTreeSet<Action> {
        self.0.keys().map(|(action, _)| *action).collect()
    }

    /// Each action with its object and what has to be allowed, in the order of [`Action`] and of the objects.
    pub fn iter(&self) -> impl Iterator<Item = (Action, &Object, Option<Allow>)> {
        self.0.iter().map(|((action, object), allow)| (*action, object, *allow))
    }

    pub fn has(&self, action: Action, slot: SlotId) -> bool {
        self.0.contains_key(&(action, Object::Slot(slot)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an action. What need not be allowed for one reason is done, whatever else it would be done for.
    fn add(&mut self, action: Action, object: Object, allow: Option<Allow>) {
        let known = self.0.entry((action, object)).or_insert(allow);
        if allow.is_none() {
            *known = None;
        }
    }

    fn slot(&mut self, action: Action, slot: &Slot, allow: Option<Allow>) {
        self.add(action, Object::Slot(slot.id), allow);
    }

    /// The slot is found elsewhere.
    pub(super) fn rewire(&mut self, slot: &Slot) {
        self.slot(Action::Rewire, slot, Some(Allow::Rewire));
    }

    /// The end of the use of a slot.
    fn down(&mut self, layout: &Layout, slot: &Slot) {
        match slot.id.class {
            Class::Nfs => layout.attaches.iter().for_each(|attach| self.attached(Action::Detach, attach, slot)),
            Class::Lvm | Class::File => self.slot(Action::Stop, slot, None),
        }
    }

    /// The begin of the use of a slot, unless it shall be down.
    fn up(&mut self, layout: &Layout, slot: &Slot) {
        match slot.id.class {
            _ if !slot.active.is_up() => {}
            Class::Nfs => layout.attaches.iter().for_each(|attach| self.attached(Action::Attach, attach, slot)),
            Class::Lvm | Class::File => self.slot(Action::Start, slot, None),
        }
    }

    fn attached(&mut self, action: Action, attach: &Attach, slot: &Slot) {
        if attach.class == slot.id.class
            && slot.mode == Mode::Managed
            && (slot.active.is_up() || action == Action::Detach)
        {
            let object = Object::Attached { slot: slot.id, host: attach.host.clone(), path: attach.path.clone() };
            self.add(action, object, None);
        }
    }
}

/// The changes that make `new` of `old`. `old`: none if nothing is installed. `adoptable`: the slots whose media have their marks.
///
/// # Errors
/// [`Error::Frozen`] for what cannot be changed; [`Error::NoDevice`] for a slot that shall stand on another medium.
pub fn compare(old: Option<&Layout>, new: &Layout, adoptable: &BTreeSet<SlotId>) -> Result<Changes> {
    let mut changes = Changes::default();
    let nothing = Layout { slots: Vec::new(), attaches: Vec::new(), gateways: Vec::new(), ..new.clone() };
    if let Some(old) = old {
        frozen_if(old.name != new.name, new, || {
            "its name stays; apply a model with another name, then remove this".to_owned()
        })?;
        frozen_if(old.uuid != new.uuid, new, || format!("its UUID is {} and stays", old.uuid))?;
        of_options(&mut changes, old, new);
        of_addresses(&mut changes, old, new);
    }
    let old = old.unwrap_or(&nothing);
    of_attaches(&mut changes, old, new);
    of_gateways(&mut changes, old, new)?;
    for slot in old.slots.iter().filter(|slot| new.slot(slot.id).is_none()) {
        gone(&mut changes, old, slot);
    }
    for slot in &new.slots {
        match old.slot(slot.id) {
            Some(before) => of_slot(&mut changes, (old, before), (new, slot), adoptable)?,
            None => come(&mut changes, new, slot, adoptable),
        }
    }
    // An empty layout differs from none as well.
    if !changes.is_empty() || *old != *new || std::ptr::eq(old, &nothing) {
        changes.add(Action::CopyConf, Object::Whole, None);
    }
    Ok(changes)
}

fn frozen_if(is_so: bool, layout: &Layout, what: impl FnOnce() -> String) -> Result<()> {
    match is_so {
        true => Err(Error::Frozen { layout: layout.name.to_string(), what: what() }),
        false => Ok(()),
    }
}

/// The managed slots that both layouts have, as they will be.
fn kept<'l>(old: &'l Layout, new: &'l Layout) -> impl Iterator<Item = &'l Slot> {
    new.slots.iter().filter(|slot| slot.mode == Mode::Managed && old.slot(slot.id).is_some())
}

fn of_options(changes: &mut Changes, old: &Layout, new: &Layout) {
    for key in KEYS.iter().filter(|key| old.options.get(key.name) != new.options.get(key.name)) {
        let (action, class, allow) = match key.effect {
            Effect::Copy => continue,
            Effect::Reattach => {
                for (action, layout) in [(Action::Detach, old), (Action::Attach, new)] {
                    for attach in &layout.attaches {
                        layout.slots.iter().for_each(|slot| changes.attached(action, attach, slot));
                    }
                }
                continue;
            }
            Effect::Restart(class) => (Action::Restart, Some(class), Allow::Restart),
            Effect::Reformat(class) => (Action::Reformat, Some(class), Allow::Reformat),
            Effect::Retune(class) => (Action::Retune, class, Allow::Retune),
        };
        for slot in kept(old, new).filter(|slot| class.is_none_or(|class| class == slot.id.class)) {
            changes.slot(action, slot, Some(allow));
        }
    }
}

fn of_addresses(changes: &mut Changes, old: &Layout, new: &Layout) {
    let of_host = |layout: &Layout, host: &str| {
        let of_host = layout.addresses.iter().filter(|it| it.host == host);
        of_host.map(|it| it.address.clone()).collect::<Vec<_>>()
    };
    for slot in kept(old, new) {
        if of_host(old, &slot.host) != of_host(new, &slot.host) {
            changes.slot(Action::Rewire, slot, Some(Allow::Rewire));
        }
    }
}

fn of_attaches(changes: &mut Changes, old: &Layout, new: &Layout) {
    let gone = old.attaches.iter().filter(|it| !new.attaches.contains(it));
    for attach in gone {
        old.slots.iter().for_each(|slot| changes.attached(Action::Detach, attach, slot));
    }
    let come = new.attaches.iter().filter(|it| !old.attaches.contains(it));
    for attach in come {
        new.slots.iter().for_each(|slot| changes.attached(Action::Attach, attach, slot));
    }
}

fn of_gateways(changes: &mut Changes, old: &Layout, new: &Layout) -> Result<()> {
    let has = |layout: &Layout, it: &Gateway| layout.gateways.iter().any(|other| other.host == it.host);
    for gateway in old.gateways.iter().filter(|it| !new.gateways.contains(it)) {
        let what =
            || format!("the gateway {} cannot be changed; remove its line, apply, and add it again", gateway.host);
        frozen_if(has(new, gateway), new, what)?;
        changes.add(Action::Unpublish, Object::Gateway(gateway.host.clone()), None);
    }
    for gateway in new.gateways.iter().filter(|it| !old.gateways.contains(it)) {
        changes.add(Action::Publish, Object::Gateway(gateway.host.clone()), None);
    }
    Ok(())
}

fn gone(changes: &mut Changes, old: &Layout, slot: &Slot) {
    if slot.mode == Mode::External {
        return;
    }
    changes.down(old, slot);
    changes.slot(Action::Remove, slot, None);
    changes.slot(Action::Rewire, slot, None);
}

fn come(changes: &mut Changes, new: &Layout, slot: &Slot, adoptable: &BTreeSet<SlotId>) {
    if slot.mode == Mode::External {
        return;
    }
    let action = if adoptable.contains(&slot.id) { Action::Adopt } else { Action::Create };
    changes.slot(action, slot, None);
    changes.up(new, slot);
}

fn of_slot(
    changes: &mut Changes,
    (old_layout, old): (&Layout, &Slot),
    (new_layout, new): (&Layout, &Slot),
    adoptable: &BTreeSet<SlotId>,
) -> Result<()> {
    let id = new.id;
    let frozen = |is_so: bool, key: &str, remedy: &str| {
        frozen_if(is_so, new_layout, || format!("{key} of {id} cannot be changed; {remedy}"))
    };
    let again = "remove the slot, apply, and add it again";
    frozen(old.mode != new.mode, "mode", again)?;
    if new.mode == Mode::External {
        return Ok(());
    }
    frozen(old.uuid != new.uuid, "uuid", again)?;
    frozen(old.jdev != new.jdev, "jdev", again)?;
    frozen(old.fs != new.fs, "fs", again)?;
    let by_server = (&old.host, &old.ha_hosts, &old.network) != (&new.host, &new.ha_hosts, &new.network);
    let is_elsewhere = |old: &[Medium], new: &[Medium]| {
        let identities = |media: &[Medium]| media.iter().map(|medium| medium.identity.clone()).collect::<BTreeSet<_>>();
        identities(old) != identities(new)
    };
    if is_elsewhere(&old.media, &new.media) && !adoptable.contains(&id) {
        let why = format!(
            "it is another medium than that of {id}, {} ({}); a slot keeps its medium, and {} has no mark of that SR",
            old.devs(),
            old.media.iter().map(|medium| medium.identity.as_str()).collect::<Vec<_>>().join(" "),
            new.devs()
        );
        return Err(Error::NoDevice { device: new.devs(), why });
    }
    if by_server || old.devs() != new.devs() {
        changes.down(old_layout, old);
        changes.up(new_layout, new);
        if by_server {
            changes.slot(Action::Rewire, new, None);
        }
    }
    if old.active != new.active {
        changes.slot(Action::Tune, new, None);
    }
    of_sizes(changes, new_layout, old, new)
}

fn of_sizes(changes: &mut Changes, layout: &Layout, old: &Slot, new: &Slot) -> Result<()> {
    for medium in &new.media {
        let before = old.media.iter().find(|it| it.identity == medium.identity).and_then(|it| it.size);
        let (Some(before), Some(now)) = (before, medium.size) else { continue };
        frozen_if(now < before, layout, || {
            format!(
                "{} of {} had {} and has {} now; an SR does not become smaller",
                medium.dev,
                new.id,
                Size(before),
                Size(now)
            )
        })?;
        if now > before {
            changes.slot(Action::Grow, new, None);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
