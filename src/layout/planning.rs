//! A plan made of a model, the layout that is installed, and what this host has.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::agent::{self, Order};
use super::compare::compare;
use super::matching::{self, Around};
use super::model::Model;
use super::offers::{self, Media, Watched};
use super::plan::{Plan, VERSION, digest};
use super::{Layout, LayoutName, installed, steps, support};
use crate::error::{Error, Result};
use crate::registry::agent::Agent;
use crate::registry::backend::Backend;
use crate::registry::settings::Settings;
use crate::registry::view::Host;
use crate::sys::lock::{self, Kind, Lock};
use crate::types::LayoutUuid;

/// How long a layout may be locked by others.
const WAIT: Duration = Duration::from_secs(30);

/// The state that a plan is made of, and that it fits as long as it is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// [`digest`] of the text of the installed layout; empty if none is installed. On a host with xapi, [`agent::base`].
    pub digest: String,
    /// The generation of the claims.
    pub generation: u64,
    /// [`digest`] of the media that may change the plan, and of their states.
    pub inventory: String,
}

impl Base {
    /// The state now.
    ///
    /// # Errors
    /// [`Error::Damaged`] for an installed layout or claims that cannot be read; [`Error::Io`]; those of [`agent::base`].
    pub fn now(name: &LayoutName, host: &Host, watched: &Watched, agent: Option<&Agent>) -> Result<Base> {
        let digest = match agent {
            Some(agent) => agent::base(agent, name)?,
            None => installed::read(name)?.as_deref().map(digest).unwrap_or_default(),
        };
        Ok(Base { digest, generation: host.claims().generation, inventory: offers::digest(host, watched) })
    }

    /// Refuses a plan that was made of another state.
    ///
    /// # Errors
    /// [`Error::StalePlan`] with what has changed.
    pub fn fits(&self, plan: &Plan) -> Result<()> {
        let why = if self.digest != plan.base_digest {
            "the installed layout is another"
        } else if self.generation != plan.registry_generation {
            "the claims have changed"
        } else if self.inventory != plan.inventory_digest {
            "the devices of this host have changed"
        } else {
            return Ok(());
        };
        Err(Error::StalePlan { layout: plan.layout.clone(), why: why.to_owned() })
    }
}

/// A plan, with the two layouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub plan: Plan,
    pub old: Option<Layout>,
    pub new: Layout,
}

/// Locks a layout against changes, or against all others, for at most 30 s.
///
/// # Errors
/// [`Error::Locked`] with the process that has it; [`Error::Io`].
pub fn lock(name: &LayoutName, kind: Kind) -> Result<Lock> {
    lock::take("layout", name.as_str(), kind, Instant::now() + WAIT).map_err(|refused| {
        refused.or_timed_out(|holder| Error::Locked {
            what: format!("layout {name}"),
            holder: holder.to_owned(),
            remedy: "; repeat the call".to_owned(),
        })
    })
}

/// Makes a plan. The caller holds the lock of the layout. `agent`: the database that owns the SRs of this host, if there is one.
/// `size`: reads a size in bytes.
///
/// # Errors
/// Those of the model, of matching and of the comparison; those of what the host cannot tell.
pub fn plan(
    model: &Model,
    settings: &Settings,
    agent: Option<&Agent>,
    size: fn(&str) -> Result<u64>,
) -> Result<Planned> {
    let backend = Backend::selected(settings)?;
    let host = Host::look(settings)?.with(agent);
    let mut old = if agent.is_some() { None } else { installed::load(&model.name)? };
    let uuid = uuid(model, old.as_ref(), &host);
    if let Some(agent) = agent {
        old = Some(agent::known(agent, &model.name, uuid)?);
    }
    let media = Media { host: &host, backend: &backend, name: &model.name, uuid, installed: old.as_ref(), agent };
    let around = Around {
        installed: old.as_ref(),
        uuid,
        reading: &|class| offers::reading(&backend, class),
        standing: &|offer| media.unseen(offer),
    };
    let mut matched = matching::matched(model, &media.offers(model, size)?, &around)?;
    support::check(model, &matched, &host.name)?;
    let patterns = matching::patterns(model, |class| offers::reading(&backend, class));
    let watched = Watched::of(patterns.clone(), old.iter().chain([&matched.layout]));
    let base = Base::now(&model.name, &host, &watched, agent)?;
    if agent.is_some()
        && let Some(known) = old.take()
    {
        old = Some(agent::reconciled(known, &mut matched.layout)).filter(|old| !old.slots.is_empty());
    }
    let mut changes = compare(old.as_ref(), &matched.layout, &matched.adoptable)?;
    if let Some(agent) = agent {
        agent::add_rewires(&mut changes, agent, &matched.layout)?;
    }
    let mut steps = steps::steps(&changes, old.as_ref(), &matched.layout, &host.name);
    let mut actions = changes.actions();
    if let Some(agent) = agent {
        let order =
            Order { agent, name: &model.name, new: Some(&matched.layout), steps: &steps, allow: &BTreeSet::new() };
        steps = order.fitting()?;
        actions = steps.iter().map(|step| step.action).collect();
    }
    let target = installed::text_of(&matched.layout)?;
    let plan = Plan {
        version: VERSION,
        layout: model.name.to_string(),
        base_digest: base.digest,
        registry_generation: base.generation,
        inventory_digest: base.inventory,
        watched: patterns,
        actions,
        steps,
        target,
    };
    Ok(Planned { plan, old, new: matched.layout })
}

/// The UUID of a layout: the one that the model says, that is installed, or that the layout had before it was removed.
fn uuid(model: &Model, old: Option<&Layout>, host: &Host) -> LayoutUuid {
    let record = host.claims().layouts.get(model.name.as_str()).and_then(|record| record.uuid.parse().ok());
    let known = model.uuid.or(old.map(|old| old.uuid)).or(record);
    known.unwrap_or_else(LayoutUuid::random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_fits_the_state_that_it_was_made_of_and_no_other() {
        let base = Base { digest: "a".to_owned(), generation: 3, inventory: "b".to_owned() };
        let plan = Plan {
            version: VERSION,
            layout: "rack1".to_owned(),
            base_digest: "a".to_owned(),
            registry_generation: 3,
            inventory_digest: "b".to_owned(),
            watched: Vec::new(),
            actions: BTreeSet::new(),
            steps: Vec::new(),
            target: String::new(),
        };
        base.fits(&plan).unwrap();
        for (other, why) in [
            (Base { digest: String::new(), ..base.clone() }, "the installed layout is another"),
            (Base { generation: 4, ..base.clone() }, "the claims have changed"),
            (Base { inventory: "c".to_owned(), ..base.clone() }, "the devices of this host have changed"),
        ] {
            match other.fits(&plan) {
                Err(error @ Error::StalePlan { .. }) => assert!(error.to_string().contains(why), "{error}"),
                fits => panic!("{why}: {fits:?}"),
            }
        }
    }
}
