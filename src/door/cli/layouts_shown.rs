//! Plans and installed layouts as tables, and as documents for JSON and s-expressions. `docs/json.md` has the keys of JSON.

use std::path::PathBuf;

use serde::Serialize;

use crate::door::size::human;
use crate::door::table;
use crate::layout::plan::{Allow, Step};
use crate::layout::planning::Planned;
use crate::layout::{Layout, Mode, Slot};
use crate::types::printable;

/// The state of a slot's SR, in the words of `sr_list`; empty for one that is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub state: &'static str,
    pub reason: String,
}

/// An installed layout, with the states of its slots in their order.
pub struct About {
    pub file: PathBuf,
    pub layout: Layout,
    pub states: Vec<Status>,
}

/// A plan as a document.
#[derive(Serialize)]
pub struct PlanOf<'a> {
    layout: &'a str,
    installed: bool,
    changes: bool,
    actions: Vec<&'static str>,
    steps: Vec<StepOf<'a>>,
}

#[derive(Serialize)]
struct StepOf<'a> {
    n: u32,
    action: &'static str,
    object: &'a str,
    host: &'a str,
    destructive: bool,
    allow: Option<&'static str>,
    done: bool,
    what: &'a str,
}

impl<'a> From<&'a Step> for StepOf<'a> {
    fn from(step: &'a Step) -> StepOf<'a> {
        StepOf {
            n: step.n,
            action: step.action.word(),
            object: &step.object,
            host: &step.host,
            destructive: step.destructive,
            allow: step.allow.map(Allow::word),
            done: step.done,
            what: &step.what,
        }
    }
}

impl<'a> From<&'a Planned> for PlanOf<'a> {
    fn from(planned: &'a Planned) -> PlanOf<'a> {
        PlanOf {
            layout: &planned.plan.layout,
            installed: planned.old.is_some(),
            changes: !planned.plan.is_empty(),
            actions: planned.plan.actions.iter().map(|action| action.word()).collect(),
            steps: planned.plan.steps.iter().map(StepOf::from).collect(),
        }
    }
}

/// An installed layout as a document.
#[derive(Serialize)]
pub struct LayoutOf<'a> {
    layout: &'a str,
    uuid: String,
    file: String,
    options: Vec<OptionOf<'a>>,
    addresses: Vec<AddressOf<'a>>,
    attaches: Vec<AttachOf<'a>>,
    slots: Vec<SlotOf<'a>>,
}

#[derive(Serialize)]
struct OptionOf<'a> {
    key: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
struct AddressOf<'a> {
    host: &'a str,
    address: &'a str,
}

#[derive(Serialize)]
struct AttachOf<'a> {
    host: &'a str,
    class: &'a str,
    path: &'a str,
    options: &'a str,
}

#[derive(Serialize)]
struct SlotOf<'a> {
    slot: String,
    class: &'a str,
    index: u16,
    uuid: String,
    name: String,
    host: &'a str,
    dev: String,
    identities: Vec<&'a str>,
    size: Option<u64>,
    external: bool,
    active: &'static str,
    tag: &'a str,
    group: &'a str,
    state: Option<&'static str>,
    reason: &'a str,
}

impl<'a> From<&'a About> for LayoutOf<'a> {
    fn from(about: &'a About) -> LayoutOf<'a> {
        let layout = &about.layout;
        let slot = |(slot, status): (&'a Slot, &'a Status)| SlotOf {
            slot: slot.id.to_string(),
            class: slot.id.class.word(),
            index: slot.id.index,
            uuid: slot.uuid.to_string(),
            name: layout.sr_name(slot.id),
            host: &slot.host,
            dev: slot.devs(),
            identities: slot.media.iter().map(|medium| medium.identity.as_str()).collect(),
            size: slot.size(),
            external: slot.mode == Mode::External,
            active: slot.active.word(),
            tag: &slot.tag,
            group: &slot.group,
            state: Some(status.state).filter(|state| !state.is_empty()),
            reason: &status.reason,
        };
        LayoutOf {
            layout: layout.name.as_str(),
            uuid: layout.uuid.to_string(),
            file: about.file.display().to_string(),
            options: layout.options.given().map(|(key, value)| OptionOf { key: key.name, value }).collect(),
            addresses: layout.addresses.iter().map(|it| AddressOf { host: &it.host, address: &it.address }).collect(),
            attaches: layout
                .attaches
                .iter()
                .map(|it| AttachOf { host: &it.host, class: it.class.word(), path: &it.path, options: &it.options })
                .collect(),
            slots: layout.slots.iter().zip(&about.states).map(slot).collect(),
        }
    }
}

/// A plan for people: the steps that are done, then those that have to be allowed by name.
pub fn table_of_plan(planned: &Planned) -> String {
    let plan = &planned.plan;
    if plan.is_empty() {
        return format!("layout {}: nothing to change\n", plan.layout);
    }
    let (gated, free): (Vec<&Step>, Vec<&Step>) = plan.steps.iter().partition(|step| step.allow.is_some());
    let line = |step: &&Step| {
        let mut cells = vec![step.n.to_string(), step.action.to_string(), step.object.clone(), step.what.clone()];
        if let Some(allow) = step.allow {
            let loss = if step.destructive { ", data are lost" } else { "" };
            cells.push(format!("--allow {}{loss}", allow.word()));
        }
        cells
    };
    let head = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut lines = vec![head(&["n", "action", "object", "what is done"])];
    lines.extend(free.iter().map(line));
    let mut text = table::aligned(&lines, &[0]);
    if !gated.is_empty() {
        let mut lines = vec![head(&["n", "action", "object", "what is done if it is allowed", "by"])];
        lines.extend(gated.iter().map(line));
        text = format!("{text}\n{}", table::aligned(&lines, &[0]));
    }
    let count = |steps: &[&Step]| if steps.len() == 1 { "1 step".to_owned() } else { format!("{} steps", steps.len()) };
    let more = if gated.is_empty() { String::new() } else { format!(", and {} to be allowed", count(&gated)) };
    format!("{text}Layout {}: {}{more}\n", plan.layout, count(&free))
}

/// An installed layout for people.
pub fn table_of_layout(about: &About) -> String {
    let layout = &about.layout;
    let pair = |key: &str, value: String| vec![key.to_owned(), value];
    let mut lines = vec![
        pair("layout", layout.name.to_string()),
        pair("uuid", layout.uuid.to_string()),
        pair("file", about.file.display().to_string()),
    ];
    lines.extend(layout.options.given().map(|(key, value)| pair(key.name, value.to_owned())));
    lines.extend(layout.addresses.iter().map(|it| pair("addr", format!("{} {}", it.host, it.address))));
    lines.extend(layout.attaches.iter().map(|it| pair("attach", format!("{} {}", it.host, it.class))));
    let mut text = table::aligned(&lines, &[]);
    let head = ["slot", "host", "dev", "size", "active", "state", "SR", "name"].map(str::to_owned).to_vec();
    let mut lines = vec![head];
    lines.extend(layout.slots.iter().zip(&about.states).map(|(slot, status)| {
        let size = slot.size().map(human).unwrap_or_default();
        let state = if slot.mode == Mode::External { "external" } else { status.state };
        let cells = [
            slot.id.to_string(),
            slot.host.clone(),
            slot.devs(),
            size,
            slot.active.word().to_owned(),
            state.to_owned(),
            slot.uuid.to_string(),
            layout.sr_name(slot.id),
        ];
        cells.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }).collect()
    }));
    text.push('\n');
    text.push_str(&table::aligned(&lines, &[3]));
    for (slot, status) in layout.slots.iter().zip(&about.states).filter(|(_, status)| !status.reason.is_empty()) {
        text.push_str(&format!("{}\n", printable(&format!("{}: {}", slot.id, status.reason))));
    }
    text
}
