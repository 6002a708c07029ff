//! Plans carried out on this host.
//!
//! | file | what |
//! |---|---|
//! | here | a run: which steps are done, in which order, and what is left |
//! | [`journal`] | the file of a run, by which a run that was killed goes on |
//! | [`step`](mod@step) | one step: the call of the SR that it makes, or the table that it writes |
//! | [`media`] | whether a slot stands on the medium that the plan was made for |
//! | [`tune`] | settings of the kernel, written after SRs came up, and by `sm tune` |
//! | [`hooks`] | programs of the administrator around a run |
//! | [`removal`] | the plan that removes a layout |
//! | [`words`] | lines for a shell: what follows a run |
//! | [`agent`] | the calls of `xe` that a plan is on a host with xapi, printed or run |
//!
//! Order of a run, and what the next call finds after a kill:
//!
//! 1. Take the lock of the layout; refuse a plan that does not fit, and a run that is not finished.
//! 2. Look at all that will be touched (the steps `check`), and run the hooks `layout-apply-pre.d`. A failure here changes nothing.
//! 3. Write the journal. 4. Each step in the order of the plan: a record before it, the step, a record after it. 5. Remove the
//!    journal, unless steps are left that were not allowed. 6. Run the hooks `layout-apply-post.d`, also after a failure.
//!
//! Before 3, nothing has happened. After it, the journal has the plan, the layout that was installed before, and how far the run came.
//! [`resume`] repeats the step that is open and goes on. Every step is idempotent, so it does not matter whether a kill came before,
//! in or after a step. The first failure ends a run: no later step is begun.
//!
//! SRs are made, brought up, brought down and deleted by the calls of [`Session`](crate::call::Session) that every agent makes.

pub mod agent;
mod hooks;
pub mod journal;
mod media;
pub mod removal;
mod step;
pub mod tune;
pub mod words;

use std::collections::BTreeSet;

use self::hooks::Hooks;
use self::journal::{Journal, Mark};
use crate::error::{Error, Result};
use crate::layout::plan::{Action, Allow, Plan, Step};
use crate::layout::planning::Base;
use crate::layout::{Layout, LayoutName, SlotId, installed};
use crate::sys::durable::Dir;
use crate::sys::lock::Lock;
use crate::sys::run_dir;

/// The end of a run in which no step failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub layout: LayoutName,
    /// The steps that are done, those of earlier runs of the plan among them.
    pub done: Vec<Step>,
    /// The steps that were left out, because the caller did not allow them.
    pub left: Vec<Step>,
    /// The layouts before and after the plan; none where there is no such layout.
    pub old: Option<Layout>,
    pub new: Option<Layout>,
    /// Settings of the kernel that were not written, and what the hooks after the run say.
    pub warnings: Vec<String>,
}

/// A plan with the layouts that its steps speak of.
pub struct Job {
    pub plan: Plan,
    pub name: LayoutName,
    pub old: Option<Layout>,
    /// None if the plan removes the layout.
    pub new: Option<Layout>,
}

impl Job {
    /// `before`: the text of the layout that was installed when the plan was made; empty if there was none.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a text that is no layout; [`Error::StalePlan`] for a plan whose parts do not go together;
    /// [`Error::Invalid`] for its name.
    pub fn new(plan: Plan, before: &str) -> Result<Job> {
        let name: LayoutName = plan.layout.parse()?;
        let read = |text: &str| {
            let there = Some(text).filter(|text| !text.is_empty());
            there.map(|text| installed::parse(text, &installed::path(&name))).transpose()
        };
        let (old, new) = (read(before)?, read(&plan.target)?);
        let stale = |why: String| Error::StalePlan { layout: name.to_string(), why };
        if let Some(other) = [&old, &new].into_iter().flatten().find(|layout| layout.name != name) {
            return Err(stale(format!("it speaks of layout {}", other.name)));
        }
        let job = Job { name: name.clone(), old, new, plan };
        for step in &job.plan.steps {
            if job.concerns_slot(step) && job.slot_of(step).is_none() {
                return Err(stale(format!("step {} is about {}, which neither layout has", step.n, step.object)));
            }
        }
        Ok(job)
    }

    fn concerns_slot(&self, step: &Step) -> bool {
        step.object != crate::layout::plan::WHOLE
    }

    /// The layout and the slot of a step: as they will be, or as they were if the slot goes.
    fn slot_of(&self, step: &Step) -> Option<(&Layout, &crate::layout::Slot)> {
        let id: SlotId = step.object.parse().ok()?;
        let within = |layout: &'_ Layout| layout.slot(id).is_some();
        let layout = self.new.as_ref().filter(|it| within(it)).or(self.old.as_ref().filter(|it| within(it)))?;
        Some((layout, layout.slot(id)?))
    }

    /// Whether a step is carried out by a run that may do this. Only a caller that means it destroys data.
    fn is_allowed(step: &Step, allow: &BTreeSet<Allow>) -> bool {
        // A plan is a file: what an action destroys does not depend on what the file says of it.
        let needed = [step.allow, step.action.destroys()];
        needed.into_iter().flatten().all(|needed| allow.contains(&needed))
    }
}

/// A run of a plan. It holds the lock of the layout.
pub struct Run {
    job: Job,
    journal: Journal,
    /// Of a run that goes on: what it may do besides what it was allowed before.
    more: Option<BTreeSet<Allow>>,
    /// Of a run that begins, whose hooks have not denied it.
    hooks: Option<Hooks>,
    _lock: Lock,
}

/// A plan that fits, before anything is done.
pub struct Prepared {
    job: Job,
    before: String,
    allow: BTreeSet<Allow>,
}

/// Refuses a plan that does not fit. The caller holds the lock of the layout. `base`: the state now.
///
/// # Errors
/// [`Error::StalePlan`]; [`Error::PartlyApplied`] after a run that did not end; [`Error::Frozen`] for a step that this release does
/// not do.
pub fn prepare(plan: Plan, base: &Base, allow: BTreeSet<Allow>) -> Result<Prepared> {
    base.fits(&plan)?;
    let name: LayoutName = plan.layout.parse()?;
    let plan = match Journal::open(&name)? {
        None => plan,
        Some(journal) => with_left(plan, &journal)?,
    };
    let before = installed::read(&name)?.unwrap_or_default();
    let job = Job::new(plan, &before)?;
    refuse_unsupported(&job)?;
    Ok(Prepared { job, before, allow })
}

impl Prepared {
    /// The steps that will be done, and those that will be left out.
    pub fn pending(&self) -> (Vec<&Step>, Vec<&Step>) {
        self.job.plan.steps.iter().partition(|step| Job::is_allowed(step, &self.allow))
    }

    /// Looks at all that will be touched, runs the hooks before it, and writes the journal. `told`: called with each step before it
    /// is done.
    ///
    /// # Errors
    /// What the check of a slot says, and [`Error::HookDenied`]; then nothing was changed.
    pub fn begin(self, lock: Lock, told: &dyn Fn(&Step)) -> Result<Run> {
        let steps: Vec<Step> = self.pending().0.into_iter().cloned().collect();
        let Prepared { job, before, allow } = self;
        for step in job.plan.steps.iter().filter(|step| step.action == Action::Check) {
            told(step);
            step::check(&job, step, &allow)?;
        }
        let hooks = Hooks::begin(&job.name, job.new.is_none(), &steps.iter().collect::<Vec<_>>(), &allow)?;
        let journal = Journal::begin(&job.name, &job.plan, &before, allow)?;
        Ok(Run { job, journal, more: None, hooks: Some(hooks), _lock: lock })
    }
}

/// Goes on with a run that was killed or failed. `more`: what is allowed besides what the run was allowed.
///
/// # Errors
/// [`Error::Damaged`] for a journal that cannot be read. `None`: there is no run to go on with.
pub fn resume(name: &LayoutName, more: BTreeSet<Allow>, lock: Lock) -> Result<Option<Run>> {
    let Some(journal) = Journal::open(name)? else { return Ok(None) };
    let job = Job::new(journal.plan().clone(), journal.before())?;
    refuse_unsupported(&job)?;
    Ok(Some(Run { job, journal, more: Some(more), hooks: None, _lock: lock }))
}

/// The line that goes on with a run.
fn go_on(layout: &str) -> String {
    run_dir::sm(&["apply", "--resume", layout])
}

/// Refuses to begin a plan while an earlier one is not finished. Steps that were left out for want of leave are carried over.
fn with_left(mut plan: Plan, journal: &Journal) -> Result<Plan> {
    let open = journal.plan().steps.iter().find(|step| !matches!(journal.mark(step), Mark::Done | Mark::Left));
    if let Some(step) = open
        && !plan.target.is_empty()
    {
        let (of, layout) = (journal.plan().steps.len(), plan.layout);
        let give_up = run_dir::sm(&["layout", "remove", &layout]);
        let why = format!("its run did not end; {give_up} gives it up");
        let again = go_on(&layout);
        let (done, step) = (step.n as usize - 1, step.what.clone());
        return Err(Error::PartlyApplied { layout, done, of, step, cause: Box::new(Error::Usage(why)), again });
    }
    if plan.target.is_empty() {
        return Ok(plan);
    }
    let is_there = |step: &Step| plan.steps.iter().any(|it| (it.action, &it.object) == (step.action, &step.object));
    let left: Vec<Step> = journal
        .plan()
        .steps
        .iter()
        .filter(|step| journal.mark(step) == Mark::Left && step.action != Action::Wipe && !is_there(step))
        .cloned()
        .collect();
    plan.actions.extend(left.iter().map(|step| step.action));
    plan.steps.extend(left);
    plan.steps.sort_by_key(|step| step.action);
    for (step, n) in plan.steps.iter_mut().zip(1..) {
        step.n = n;
    }
    Ok(plan)
}

/// Refuses steps that this release does not do.
fn refuse_unsupported(job: &Job) -> Result<()> {
    let here = crate::registry::view::host_name();
    for step in &job.plan.steps {
        let refused = |why: String| {
            let layout = job.plan.layout.clone();
            Err(Error::Frozen { layout, what: format!("step {} ({}): {why}", step.n, step.what) })
        };
        if step.host != here {
            return refused(format!(
                "it is for host {}, and plans are carried out on one host, this is {here}",
                step.host
            ));
        }
        if !step::is_supported(step.action) {
            return refused(format!("{} is not supported by this release", step.action));
        }
    }
    Ok(())
}

/// Removes the unfinished files that killed runs left in the directories which runs write to.
fn sweep() {
    for path in [run_dir::layouts(), run_dir::names(), run_dir::registry()] {
        let Ok(dir) = Dir::open(&path) else { continue };
        let names = dir.names().unwrap_or_default();
        names.iter().filter(|name| name.starts_with(".tmp-")).for_each(|name| drop(dir.sweep_temporary(name)));
    }
}

impl Run {
    /// The steps that are still to be done, and those that are left out.
    pub fn pending(&self) -> (Vec<&Step>, Vec<&Step>) {
        let open = self.job.plan.steps.iter().filter(|step| self.journal.mark(step) != Mark::Done);
        let allow = self.journal.allow() | &self.more.clone().unwrap_or_default();
        open.partition(|step| Job::is_allowed(step, &allow))
    }

    /// Carries the steps out, and runs the hooks around it. `told`: called with each step before it is done; `warn`: with what the
    /// hooks after a run that failed say.
    ///
    /// # Errors
    /// [`Error::PartlyApplied`] with the step that failed; [`resume`] goes on. [`Error::HookDenied`] of a run that goes on.
    pub fn go(mut self, told: &dyn Fn(&Step), warn: &dyn Fn(&str)) -> Result<Outcome> {
        let hooks = match self.hooks.take() {
            Some(hooks) => hooks,
            None => {
                let allow = self.journal.allow() | &self.more.clone().unwrap_or_default();
                Hooks::begin(&self.job.name, self.job.new.is_none(), &self.pending().0, &allow)?
            }
        };
        let mut done = self.carried_out(told);
        let warning = hooks.end(done.is_ok());
        match &mut done {
            Ok(outcome) => outcome.warnings.extend(warning),
            Err(_) => warning.iter().for_each(|text| warn(text)),
        }
        done
    }

    fn carried_out(mut self, told: &dyn Fn(&Step)) -> Result<Outcome> {
        sweep();
        if let Some(more) = self.more.take() {
            self.journal.go_on(&more)?;
        }
        let (mut done, mut left) = (Vec::new(), Vec::new());
        for step in &self.job.plan.steps {
            if self.journal.mark(step) == Mark::Done {
                done.push(step.clone());
                continue;
            }
            if !Job::is_allowed(step, self.journal.allow()) {
                self.journal.write(step, Mark::Left)?;
                left.push(step.clone());
                continue;
            }
            told(step);
            let may_begin = match self.journal.mark(step) {
                Mark::Waiting | Mark::Left => step::may_begin(&self.job, step),
                Mark::Open | Mark::Erased | Mark::Done => Ok(()),
            };
            let outcome = may_begin.and_then(|()| self.journal.write(step, Mark::Open)).and_then(|()| {
                step::carry_out(&self.job, step, &mut self.journal)?;
                self.journal.write(step, Mark::Done)
            });
            if let Err(cause) = outcome {
                let (layout, of) = (self.job.plan.layout.clone(), self.job.plan.steps.len());
                let (done, step) = (done.len(), step.what.clone());
                let again = go_on(&layout);
                return Err(Error::PartlyApplied { layout, done, of, step, cause: Box::new(cause), again });
            }
            done.push(Step { done: true, ..step.clone() });
        }
        // The data of a slot that goes stay where they are, which is no work that is left.
        if left.iter().all(|step| step.action == Action::Wipe) {
            self.journal.remove()?;
        }
        let comes_up = |step: &Step| {
            matches!(
                step.action,
                Action::Start | Action::Attach | Action::Restart | Action::Rewire | Action::Reformat | Action::Tune
            )
        };
        let warnings =
            if done.iter().any(|step| step.done && comes_up(step)) { tune::after_start() } else { Vec::new() };
        let Job { name, old, new, .. } = self.job;
        Ok(Outcome { layout: name, done, left, old, new, warnings })
    }
}
