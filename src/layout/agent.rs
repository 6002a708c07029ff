//! Layouts on a host with xapi, whose database owns the SRs. Nothing is installed there: the SRs of a layout are those that have
//! the names of its slots for labels, and a plan consists of calls of `xe`.
//!
//! As the database is all that there is, a run that was killed needs no journal: the next plan finds what is done.

use std::collections::BTreeSet;
use std::path::Path;

use super::compare::Changes;
use super::plan::{Action, Allow, Step, digest};
use super::{Active, Layout, LayoutName, Medium, Mode, Slot, SlotId, config, keys, matching};
use crate::error::{Error, Result};
use crate::registry::agent::{Agent, Connection, Kept};
use crate::registry::candidate::Class;
use crate::registry::{identity, view};
use crate::sr::{lvm, lvmraw};
use crate::types::{LayoutUuid, SrUuid, shell};

/// A call of `xe`. Its last word may be what another call answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub words: Vec<String>,
    /// The beginning of the last word, as `uuid=`, and the call whose answer follows it.
    pub fed: Option<(&'static str, Box<Call>)>,
}

impl Call {
    fn of(words: &[&str]) -> Call {
        Call { words: words.iter().map(|word| (*word).to_owned()).collect(), fed: None }
    }

    fn fed(words: &[&str], key: &'static str, by: Call) -> Call {
        Call { fed: Some((key, Box::new(by))), ..Call::of(words) }
    }

    /// The line for a shell.
    pub fn line(&self) -> String {
        let words: Vec<&str> = ["xe"].into_iter().chain(self.words.iter().map(String::as_str)).collect();
        let by = self.fed.as_ref().map(|(key, call)| format!(" {key}\"$({})\"", call.line())).unwrap_or_default();
        shell(&words) + &by
    }
}

/// The SRs of a layout, by slot: those that the agent has under the names of its slots.
///
/// # Errors
/// [`Error::Frozen`] for two SRs that have one name.
pub fn slots<'a>(agent: &'a Agent, name: &LayoutName) -> Result<Vec<(SlotId, &'a Kept)>> {
    let slot = |kept: &'a Kept| {
        let rest = kept.name.strip_prefix(&name.sr_name(""))?;
        let id: SlotId = rest.replacen('-', "/", 1).parse().ok()?;
        (name.sr_name(&id.label()) == kept.name && id.class.word() == Class::word_of(&kept.sr_type))
            .then_some((id, kept))
    };
    let mut found: Vec<(SlotId, &Kept)> = agent.srs.iter().filter_map(slot).collect();
    found.sort_by_key(|(id, _)| *id);
    match found.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        None => Ok(found),
        Some(pair) => Err(Error::Frozen {
            layout: name.to_string(),
            what: format!(
                "xapi has two SRs that are called {}, {} and {}; give one of them another name-label",
                pair[0].1.name, pair[0].1.sr, pair[1].1.sr
            ),
        }),
    }
}

/// [`digest`] of what the agent has of a layout; never that of an installed layout.
///
/// # Errors
/// Those of [`slots`].
pub fn base(agent: &Agent, name: &LayoutName) -> Result<String> {
    let text: Vec<String> = slots(agent, name)?.iter().map(|(id, kept)| format!("{id} {kept:?}\n")).collect();
    Ok(digest(&format!("xapi {}\n{}", agent.host, text.concat())))
}

/// The media of an SR.
fn media(class: Class, kept: &Kept) -> Vec<Medium> {
    let one = |dev: &str, identity: String| Medium { dev: dev.to_owned(), identity, size: None };
    match class {
        Class::Lvm => {
            let of_dev = |dev: &String| identity::of_path(Path::new(dev)).unwrap_or_else(|| format!("path:{dev}"));
            let mut found: Vec<Medium> = kept.devices().iter().map(|dev| one(dev, of_dev(dev))).collect();
            found.sort_by(|a, b| a.identity.cmp(&b.identity));
            found
        }
        Class::File => {
            let path = keys::path(kept.get("location")).unwrap_or_default();
            vec![one(&path, matching::of_directory(&path))]
        }
        Class::Nfs => {
            let path = keys::path(kept.get("serverpath")).unwrap_or_default();
            vec![one(&path, matching::of_export(kept.get("server"), &path))]
        }
    }
}

/// The layout that is there, as far as the agent's database tells. An SR without a PBD has no place and is none of it.
///
/// # Errors
/// Those of [`slots`].
pub fn known(agent: &Agent, name: &LayoutName, uuid: LayoutUuid) -> Result<Layout> {
    let slot = |(id, kept): (SlotId, &Kept)| {
        let Connection::Pbd { is_plugged, .. } = kept.connection else { return None };
        Some(Slot {
            id,
            mode: Mode::Managed,
            host: if id.class == Class::Nfs { kept.get("server").to_owned() } else { view::host_name() },
            ha_hosts: Vec::new(),
            media: media(id.class, kept),
            uuid: kept.sr,
            active: if is_plugged { Active::Yes } else { Active::No },
            publish: false,
            tag: String::new(),
            group: String::new(),
            network: String::new(),
            jdev: String::new(),
            prep: String::new(),
            fs: String::new(),
        })
    };
    Ok(Layout {
        name: name.clone(),
        uuid,
        options: keys::Options::default(),
        addresses: Vec::new(),
        slots: slots(agent, name)?.into_iter().filter_map(slot).collect(),
        attaches: Vec::new(),
        gateways: Vec::new(),
    })
}

/// The owner of a directory, if the agent has an SR in it.
pub fn owner_of_directory<'a>(agent: &'a Agent, path: &str) -> Option<&'a Kept> {
    let has = |kept: &&Kept| {
        kept.sr_type == Class::File.word() && keys::path(kept.get("location")).is_ok_and(|location| location == path)
    };
    agent.srs.iter().find(has)
}

/// Makes the two comparable: what the database cannot tell is taken to be as the model says, and an SR keeps its UUID and the
/// device_config of its PBD.
pub fn reconciled(known: Layout, new: &mut Layout) -> Layout {
    let mut slots = Vec::new();
    for mut before in known.slots {
        if let Ok(at) = new.slots.binary_search_by_key(&before.id, |slot| slot.id)
            && new.slots[at].mode == Mode::Managed
        {
            let slot = &mut new.slots[at];
            let of = |slot: &Slot| slot.media.iter().map(|it| it.identity.clone()).collect::<BTreeSet<_>>();
            if of(slot) == of(&before) {
                for medium in &mut before.media {
                    medium.size = slot.media.iter().find(|it| it.identity == medium.identity).and_then(|it| it.size);
                }
                slot.media = before.media.clone();
            }
            if slot.uuid == slot.id.sr(new.uuid) {
                slot.uuid = before.uuid;
            }
            let active = match (slot.active, before.active) {
                (Active::Manual, _) => Active::Manual,
                (wanted, now) if wanted.is_up() == now.is_up() => wanted,
                (_, now) => now,
            };
            slots.push(Slot { uuid: before.uuid, media: before.media, active, ..slot.clone() });
        } else {
            slots.push(before);
        }
    }
    Layout { slots, ..new.clone() }
}

/// Adds what only the device_config of a PBD shows: that an SR is found elsewhere.
///
/// # Errors
/// Those of [`slots`].
pub fn add_rewires(changes: &mut Changes, agent: &Agent, new: &Layout) -> Result<()> {
    for (id, kept) in slots(agent, &new.name)? {
        let Some(slot) = new.slot(id).filter(|slot| slot.mode == Mode::Managed && id.class == Class::Nfs) else {
            continue;
        };
        let wanted = config::device_config(new, slot);
        let differs = |key: &&str| kept.get(key) != wanted.get(key).unwrap_or_default();
        if kept.connection != Connection::None && config::given_by_slot(id.class).iter().any(differs) {
            changes.rewire(slot);
        }
    }
    Ok(())
}

/// A plan for the agent.
pub struct Order<'a> {
    pub agent: &'a Agent,
    pub name: &'a LayoutName,
    /// The layout that the plan leads to; none if the plan removes it.
    pub new: Option<&'a Layout>,
    pub steps: &'a [Step],
    pub allow: &'a BTreeSet<Allow>,
}

impl Order<'_> {
    /// The steps that are calls of the agent, numbered anew and in words that are true of them.
    ///
    /// # Errors
    /// Those of [`slots`].
    pub fn fitting(&self) -> Result<Vec<Step>> {
        let mut found = Vec::new();
        for step in self.steps {
            if self.calls(step)?.is_empty() {
                continue;
            }
            let (n, mut what) = (found.len() as u32 + 1, step.what.clone());
            let kept = self.kept(step)?;
            match (step.action, self.slot(step), kept) {
                (Action::Create, Some((_, slot)), None) => {
                    what = what.replacen(&format!("make SR {} ", slot.uuid), "make an SR ", 1);
                }
                (Action::Create, Some((_, slot)), Some(kept)) => {
                    let made = format!("connect SR {} again ", kept.sr);
                    what = what.replacen(&format!("make SR {} ", slot.uuid), &made, 1);
                }
                (Action::Drop, _, Some(kept)) => {
                    what = format!("forget SR {} ({}), which keeps its data", kept.sr, kept.name)
                }
                _ => {}
            }
            found.push(Step { n, what, ..step.clone() });
        }
        Ok(found)
    }

    /// The steps of these that need a call: one that deletes an SR leaves nothing to forget.
    ///
    /// # Errors
    /// Those of [`slots`].
    pub fn needed<'s>(&self, steps: Vec<&'s Step>) -> Result<Vec<&'s Step>> {
        let mut needed = Vec::new();
        for step in steps {
            if !self.calls(step)?.is_empty() {
                needed.push(step);
            }
        }
        Ok(needed)
    }

    fn slot(&self, step: &Step) -> Option<(&Layout, &Slot)> {
        let layout = self.new?;
        Some((layout, layout.slot(step.object.parse().ok()?)?))
    }

    /// The SR that the agent has for the slot of a step.
    fn kept(&self, step: &Step) -> Result<Option<&Kept>> {
        let id: Option<SlotId> = step.object.parse().ok();
        Ok(slots(self.agent, self.name)?.into_iter().find(|(it, _)| Some(*it) == id).map(|(_, kept)| kept))
    }

    /// The calls of a step, in their order; none for a step that the agent needs none for.
    ///
    /// # Errors
    /// Those of [`slots`].
    pub fn calls(&self, step: &Step) -> Result<Vec<Call>> {
        let has = |some: &[Action]| self.steps.iter().any(|it| it.object == step.object && some.contains(&it.action));
        let kept = self.kept(step)?;
        if let (Action::Create | Action::Adopt, Some((layout, slot))) = (step.action, self.slot(step)) {
            return Ok(self.new_sr(step.action, layout, slot, kept));
        }
        let Some(Kept { sr, connection: Connection::Pbd { uuid, is_plugged, .. }, .. }) = kept else {
            return Ok(Vec::new());
        };
        let pbd = format!("uuid={uuid}");
        let plug = |verb: &str| vec![Call::of(&[verb, &pbd])];
        let unplugged = |is_down: bool| if *is_plugged && !is_down { plug("pbd-unplug") } else { Vec::new() };
        let down_before = has(&[Action::Stop, Action::Detach]);
        let of_sr = |verb: &str| [unplugged(down_before), vec![Call::of(&[verb, &format!("uuid={sr}")])]].concat();
        Ok(match (step.action, self.slot(step)) {
            (Action::Stop | Action::Detach, _) => unplugged(false),
            (Action::Wipe, _) => of_sr("sr-destroy"),
            (Action::Drop, _) if has(&[Action::Wipe]) && self.allow.contains(&Allow::Wipe) => Vec::new(),
            (Action::Drop, _) => of_sr("sr-forget"),
            (Action::Tune, Some((_, slot))) if slot.active.is_up() && !is_plugged => plug("pbd-plug"),
            (Action::Tune, Some((_, slot))) if slot.active == Active::No => unplugged(false),
            (Action::Rewire, Some((layout, slot))) => {
                let again = self.connected(*sr, layout, slot);
                [unplugged(false), plug("pbd-destroy"), vec![again]].concat()
            }
            _ => Vec::new(),
        })
    }

    /// Connects an SR to this host, and brings it up unless it shall be down.
    fn connected(&self, sr: SrUuid, layout: &Layout, slot: &Slot) -> Call {
        let (of_sr, of_host) = (format!("sr-uuid={sr}"), format!("host-uuid={}", self.agent.host));
        let config = device_config(layout, slot);
        let words: Vec<&str> =
            ["pbd-create", &of_sr, &of_host].into_iter().chain(config.iter().map(String::as_str)).collect();
        match slot.active.is_up() {
            true => Call::fed(&["pbd-plug"], "uuid=", Call::of(&words)),
            false => Call::of(&words),
        }
    }

    fn new_sr(&self, action: Action, layout: &Layout, slot: &Slot, kept: Option<&Kept>) -> Vec<Call> {
        // It was introduced, or was to be connected anew, by a run that was killed.
        if let Some(kept) = kept {
            return vec![self.connected(kept.sr, layout, slot)];
        }
        let (of_host, label) =
            (format!("host-uuid={}", self.agent.host), format!("name-label={}", layout.sr_name(slot.id)));
        let (sr_type, shared, content) =
            (format!("type={}", sr_type(layout, slot)), "shared=false", "content-type=user");
        if action == Action::Adopt {
            let uuid = format!("uuid={}", slot.uuid);
            let introduce = Call::of(&["sr-introduce", &uuid, &label, &sr_type, shared, content]);
            return vec![introduce, self.connected(slot.uuid, layout, slot)];
        }
        let config = device_config(layout, slot);
        let words = ["sr-create", &of_host, &label, &sr_type, shared, content];
        let words: Vec<&str> = words.into_iter().chain(config.iter().map(String::as_str)).collect();
        let create = Call::of(&words);
        match slot.active {
            // xapi brings up what it makes.
            Active::No => {
                let list = Call::fed(&["pbd-list", "--minimal", &of_host], "sr-uuid=", create);
                vec![Call::fed(&["pbd-unplug"], "uuid=", list)]
            }
            Active::Yes | Active::NoCreate | Active::Manual => vec![create],
        }
    }
}

/// The type that the agent has for the SR of a slot: for groups of raw volumes, one of their own.
fn sr_type(layout: &Layout, slot: &Slot) -> &'static str {
    match config::device_config(layout, slot).get(lvm::LVHD.0) {
        Some("false") => lvmraw::DRIVER.sr_type,
        _ => config::driver(slot.id.class).sr_type,
    }
}

fn device_config(layout: &Layout, slot: &Slot) -> Vec<String> {
    let mut config = config::device_config(layout, slot);
    // The type says it.
    config.0.retain(|key, value| (key.as_str(), value.as_str()) != (lvm::LVHD.0, "false"));
    config.0.iter().map(|(key, value)| format!("device-config:{key}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::compare::compare;
    use crate::layout::installed::tests::sample;
    use crate::layout::steps::steps;
    use crate::types::DeviceConfig;

    /// The lines of a plan from what the agent has to `new`, those that have to be allowed among them.
    fn lines(agent: &Agent, mut new: Layout) -> Vec<String> {
        let old = reconciled(known(agent, &new.name, new.uuid).unwrap(), &mut new);
        let mut changes = compare(Some(&old), &new, &BTreeSet::new()).unwrap();
        add_rewires(&mut changes, agent, &new).unwrap();
        let steps = steps(&changes, Some(&old), &new, "node1");
        let order = Order { agent, name: &new.name, new: Some(&new), steps: &steps, allow: &BTreeSet::new() };
        let mut lines = Vec::new();
        for step in order.fitting().unwrap() {
            let allow = step.allow.map(|allow| format!("{}: ", allow.word())).unwrap_or_default();
            lines.extend(order.calls(&step).unwrap().iter().map(|call| format!("{allow}{}", call.line())));
        }
        lines
    }

    fn kept(name: &str, sr_type: &str, config: &[(&str, &str)]) -> Kept {
        let config = DeviceConfig(config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        let connection = Connection::Pbd { uuid: "p1".to_owned(), is_plugged: true, config };
        let sr = "87b8646b-b800-9500-cb7b-af3b74e02f5d".parse().unwrap();
        Kept { sr, name: name.to_owned(), sr_type: sr_type.to_owned(), connection }
    }

    #[test]
    fn an_export_that_is_mounted_otherwise_gets_a_pbd_of_its_own_if_that_is_allowed() {
        let mut new = sample();
        new.slots.retain(|slot| slot.id.to_string() == "nfs/4");
        new.gateways.clear();
        let config = |options| [("server", "10.0.0.11"), ("serverpath", "/export/sr0"), ("options", options)];
        let agent = |options| Agent {
            host: "h1".to_owned(),
            srs: vec![
                kept("rack1-nfs-4", "nfs", &config(options)),
                kept("rack1-nfs-5", "ext", &[("device", "/dev/x")]),
            ],
        };
        assert_eq!(lines(&agent("timeo=300"), new.clone()), [] as [&str; 0]);
        assert_eq!(
            lines(&agent("timeo=1"), new),
            [
                "rewire: xe pbd-unplug uuid=p1",
                "rewire: xe pbd-destroy uuid=p1",
                "rewire: xe pbd-plug uuid=\"$(xe pbd-create sr-uuid=87b8646b-b800-9500-cb7b-af3b74e02f5d host-uuid=h1 \
                 device-config:options=timeo=300 device-config:server=10.0.0.11 device-config:serverpath=/export/sr0)\""
            ]
        );
    }

    #[test]
    fn a_slot_of_raw_volumes_gets_an_sr_of_their_type_and_is_found_by_either() {
        let mut new = sample();
        new.slots.retain(|slot| slot.id.to_string() == "lvm/0");
        new.gateways.clear();
        let none = Agent { host: "h1".to_owned(), srs: vec![] };
        let made = |new: &Layout| lines(&none, new.clone()).concat();
        assert!(made(&new).contains(" type=lvm ") && made(&new).contains(" device-config:allocation=thin "));
        new.options.put(keys::find("lvm_format").unwrap(), "lvhd=false".to_owned());
        let raw = made(&new);
        assert!(raw.contains(" type=lvmraw ") && !raw.contains("lvhd"), "{raw}");
        for sr_type in ["lvm", "lvmraw"] {
            let devices = new.slots[0].devs();
            let agent = Agent { srs: vec![kept("rack1-lvm-0", sr_type, &[("device", &devices)])], ..none.clone() };
            assert_eq!(slots(&agent, &new.name).unwrap().len(), 1, "{sr_type}");
        }
    }

    #[test]
    fn a_label_is_that_of_one_slot() {
        let name: LayoutName = "1a".parse().unwrap();
        let agent = |label: &str| Agent { host: String::new(), srs: vec![kept(label, "file", &[])] };
        for (label, found) in [
            ("layout-1a-file-65534", Some("file/65534")),
            ("layout-1a-file-65535", None),
            ("layout-1a-file-01", None),
            ("layout-1a-nfs-1", None),
            ("layout-1a-file-1-2", None),
            ("1a-file-1", None),
        ] {
            let agent = agent(label);
            let slots = slots(&agent, &name).unwrap();
            assert_eq!(slots.first().map(|(id, _)| id.to_string()).as_deref(), found, "{label}");
        }
    }
}
