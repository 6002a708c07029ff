//! The plan that removes a layout: its SRs go down, their names and claims go, and their data stay unless wiping is allowed.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::layout::compare::compare;
use crate::layout::plan::{Action, Plan, VERSION};
use crate::layout::planning::Base;
use crate::layout::{Layout, steps};

/// The plan that removes `layout`, which is installed. `here`: the name of this host.
///
/// # Errors
/// [`Error::Frozen`](crate::Error::Frozen) for what cannot be removed.
pub fn plan(layout: &Layout, base: Base, here: &str) -> Result<Plan> {
    let nothing = Layout { slots: Vec::new(), attaches: Vec::new(), gateways: Vec::new(), ..layout.clone() };
    let changes = compare(Some(layout), &nothing, &BTreeSet::new())?;
    let mut steps = steps::steps(&changes, Some(layout), &nothing, here);
    if steps.iter().all(|step| step.action != Action::Save) {
        steps = vec![crate::layout::plan::Step {
            n: 1,
            action: Action::Save,
            object: crate::layout::plan::WHOLE.to_owned(),
            host: here.to_owned(),
            destructive: false,
            allow: None,
            done: false,
            what: String::new(),
        }];
    }
    steps.retain(|step| step.action != Action::CopyConf);
    for (step, n) in steps.iter_mut().zip(1..) {
        step.n = n;
        if step.action == Action::Save {
            step.what = format!("remove layout {}, which keeps its UUID", layout.name);
        }
    }
    Ok(Plan {
        version: VERSION,
        layout: layout.name.to_string(),
        base_digest: base.digest,
        registry_generation: base.generation,
        inventory_digest: base.inventory,
        watched: Vec::new(),
        actions: changes.actions(),
        steps,
        target: String::new(),
    })
}
