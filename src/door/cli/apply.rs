//! The work of the commands `sm apply`, `sm layout remove` and `sm tune`.

use std::collections::BTreeSet;
use std::path::Path;

use super::agent;
use super::grammar::{ApplyArgs, RemoveArgs, TuneArgs};
use super::layouts::no_layout;
use super::shown::Reply;
use crate::apply::{self, Run, journal, removal, words};
use crate::door::size;
use crate::door::v1::{log, question};
use crate::error::{Error, Result};
use crate::layout::agent::{Order, known};
use crate::layout::model::Model;
use crate::layout::offers::Watched;
use crate::layout::plan::{Allow, Plan, Step};
use crate::layout::planning::{self, Base};
use crate::layout::{Layout, LayoutName, installed};
use crate::registry::agent::Agent;
use crate::registry::settings::Settings;
use crate::registry::view::Host;
use crate::sys::lock::{Kind, Lock};
use crate::sys::{run_dir, small};
use crate::types::LayoutUuid;

/// Bytes of the longest plan that is read.
const LONGEST_PLAN: u64 = 64 << 20;

/// How a run is meant.
struct Meant {
    allow: BTreeSet<Allow>,
    yes: bool,
    dry_run: bool,
    run_xe: bool,
    /// The line that goes on where calls of `xe` failed.
    again: String,
}

impl Meant {
    fn kind(&self) -> Kind {
        if self.dry_run { Kind::Shared } else { Kind::Exclusive }
    }
}

/// Carries a plan out, or goes on with one.
///
/// # Errors
/// Those of making a plan, of [`apply::prepare`], of [`apply::Prepared::begin`] and of [`Run::go`]; [`Error::Usage`] if nobody confirmed it.
pub fn apply(args: &ApplyArgs) -> Result<Reply> {
    let settings = Settings::read(size::parse)?;
    let again = match &args.model {
        Some(model) => run_dir::sm(&["apply", "-m", model, "--run-xe"]),
        None => "a plan that is made anew".to_owned(),
    };
    let meant =
        Meant { allow: allowed(&args.allow)?, yes: args.yes, dry_run: args.dry_run, run_xe: args.run_xe, again };
    let agent = of_host(&meant)?;
    if args.resume {
        if agent.is_some() {
            return Err(Error::Usage(
                "on a host with xapi, nothing is left to resume: the next plan finds what is done".to_owned(),
            ));
        }
        let Some(name) = resumed(args)? else { return Ok(nothing(args.dry_run)) };
        let lock = planning::lock(&name, meant.kind())?;
        return match apply::resume(&name, meant.allow, lock)? {
            None => Ok(nothing(args.dry_run)),
            Some(run) => confirmed(run, args.yes, args.dry_run),
        };
    }
    let (plan, base, lock) = made(&settings, args, meant.kind(), agent.as_ref())?;
    begun(plan, &base, lock, meant, agent.as_ref())
}

fn of_host(meant: &Meant) -> Result<Option<Agent>> {
    match agent::of_host()? {
        None if meant.run_xe => {
            Err(Error::Usage("--run-xe is for a host with xapi, and this host has none".to_owned()))
        }
        found => Ok(found),
    }
}

/// Removes an installed layout.
///
/// # Errors
/// [`Error::Invalid`] for a name that none has; those of [`apply::prepare`], of [`apply::Prepared::begin`] and of [`Run::go`].
pub fn remove(args: &RemoveArgs) -> Result<Reply> {
    let settings = Settings::read(size::parse)?;
    let allow = allowed(&args.allow)?;
    if let Some(other) = allow.iter().find(|allow| **allow != Allow::Wipe) {
        return Err(Error::Invalid {
            what: "--allow",
            value: other.word().to_owned(),
            expected: "expected wipe, which is all that removing a layout may need".to_owned(),
        });
    }
    let name: LayoutName = args.layout.parse()?;
    let again = run_dir::sm(&["layout", "remove", name.as_str(), "--run-xe"]);
    let meant = Meant { allow, yes: args.yes, dry_run: args.dry_run, run_xe: args.run_xe, again };
    let agent = of_host(&meant)?;
    let lock = planning::lock(&name, meant.kind())?;
    let layout = match &agent {
        None => installed::load(&name)?,
        Some(agent) => Some(known(agent, &name, LayoutUuid::random())?).filter(|it| !it.slots.is_empty()),
    };
    let layout = layout.ok_or_else(|| no_layout(&name))?;
    let host = Host::look(&settings)?.with(agent.as_ref());
    let base = Base::now(&name, &host, &Watched::of(Vec::new(), [&layout]), agent.as_ref())?;
    let mut plan = removal::plan(&layout, base.clone(), &host.name)?;
    if let Some(agent) = &agent {
        let order = Order { agent, name: &name, new: None, steps: &plan.steps, allow: &BTreeSet::new() };
        plan.steps = order.fitting()?;
    }
    begun(plan, &base, lock, meant, agent.as_ref())
}

/// Writes the settings of the kernel.
///
/// # Errors
/// Those of [`apply::tune::host`]; a file that fails is an error of the answer.
pub fn tune(args: &TuneArgs) -> Result<Reply> {
    let tuned = apply::tune::host(agent::of_host()?.as_ref(), args.dry_run)?;
    Ok(Reply::Tuned { tuned, dry_run: args.dry_run })
}

fn nothing(dry_run: bool) -> Reply {
    Reply::Applied { lines: Vec::new(), next: Vec::new(), dry_run, warnings: Vec::new() }
}

fn allowed(words: &[String]) -> Result<BTreeSet<Allow>> {
    let one = |word: &String| {
        let found = Allow::ALL.into_iter().find(|allow| allow.word() == word);
        let known = Allow::ALL.map(Allow::word).join(", ");
        found.ok_or_else(|| Error::Invalid {
            what: "--allow",
            value: word.clone(),
            expected: format!("expected some of {known}"),
        })
    };
    words.iter().map(one).collect()
}

/// The layout whose run is to go on; `None` if no run is unfinished.
fn resumed(args: &ApplyArgs) -> Result<Option<LayoutName>> {
    if let Some(word) = &args.plan {
        return match word.parse() {
            Ok(name) => Ok(Some(name)),
            Err(_) => read_plan(word)?.layout.parse().map(Some).map_err(Error::from),
        };
    }
    if let Some(model) = &args.model {
        return Ok(Some(Model::read(model, size::parse)?.name));
    }
    let mut names = journal::names()?;
    if names.len() > 1 {
        let names: Vec<&str> = names.iter().map(LayoutName::as_str).collect();
        return Err(Error::Usage(format!(
            "several layouts are applied in part; name one of them: {}",
            names.join(", ")
        )));
    }
    Ok(names.pop())
}

fn read_plan(file: &str) -> Result<Plan> {
    let path = Path::new(file);
    let text = small::read(path, LONGEST_PLAN).map_err(Error::io("read the plan", path))?;
    Plan::parse(&text).map_err(|what| Error::Damaged { path: path.to_owned(), what })
}

/// The plan of a line, and the state of the host that it has to fit.
fn made(settings: &Settings, args: &ApplyArgs, kind: Kind, agent: Option<&Agent>) -> Result<(Plan, Base, Lock)> {
    match (&args.plan, &args.model) {
        (Some(file), None) => {
            let plan = read_plan(file)?;
            let name: LayoutName = plan.layout.parse()?;
            let lock = planning::lock(&name, kind)?;
            let base = Base::now(&name, &Host::look(settings)?.with(agent), &watched(&name, &plan, agent)?, agent)?;
            Ok((plan, base, lock))
        }
        (None, Some(model)) => {
            let model = Model::read(model, size::parse)?;
            let lock = planning::lock(&model.name, kind)?;
            let plan = planning::plan(&model, settings, agent, size::parse)?.plan;
            let base = Base {
                digest: plan.base_digest.clone(),
                generation: plan.registry_generation,
                inventory: plan.inventory_digest.clone(),
            };
            Ok((plan, base, lock))
        }
        _ => Err(Error::Usage("expected the file of a plan, or -m MODEL".to_owned())),
    }
}

/// The media that may change a plan: those of the layouts that it leads from and to, and those that its model may match.
fn watched(name: &LayoutName, plan: &Plan, agent: Option<&Agent>) -> Result<Watched> {
    let target = target(name, plan)?;
    let old = match agent {
        None => installed::load(name)?,
        Some(agent) => Some(known(agent, name, LayoutUuid::random())?),
    };
    Ok(Watched::of(plan.watched.clone(), old.iter().chain(&target)))
}

/// The layout that a plan leads to; none if it removes the layout.
fn target(name: &LayoutName, plan: &Plan) -> Result<Option<Layout>> {
    let text = Some(plan.target.as_str()).filter(|text| !text.is_empty());
    text.map(|text| installed::parse(text, &installed::path(name))).transpose()
}

fn begun(plan: Plan, base: &Base, lock: Lock, meant: Meant, agent: Option<&Agent>) -> Result<Reply> {
    if let Some(agent) = agent {
        base.fits(&plan)?;
        return by_agent(&plan, agent, &meant);
    }
    let Meant { allow, yes, dry_run, .. } = meant;
    let prepared = apply::prepare(plan, base, allow)?;
    let (steps, left) = prepared.pending();
    if steps.is_empty() && left.is_empty() {
        return Ok(nothing(dry_run));
    }
    let lines = lines(&steps, &left);
    if dry_run {
        return Ok(Reply::Applied { lines, next: Vec::new(), dry_run, warnings: Vec::new() });
    }
    if !steps.is_empty() {
        agreed(&lines, yes)?;
    }
    done(prepared.begin(lock, &told)?)
}

fn confirmed(run: Run, yes: bool, dry_run: bool) -> Result<Reply> {
    let (steps, left) = run.pending();
    let lines = lines(&steps, &left);
    if dry_run {
        return Ok(Reply::Applied { lines, next: Vec::new(), dry_run, warnings: Vec::new() });
    }
    if !steps.is_empty() {
        agreed(&lines, yes)?;
    }
    done(run)
}

/// The steps in words: those that are done, and those that are not.
fn lines(steps: &[&Step], left: &[&Step]) -> Vec<String> {
    let needs = |step: &&Step| {
        let allow = step.allow.map(Allow::word).unwrap_or_default();
        format!("not done without --allow {allow}: {}", step.what)
    };
    let done = steps.iter().map(|step| words::of_step_among(step, steps.iter().copied()));
    done.chain(left.iter().map(needs)).collect()
}

/// Asks a person at a terminal; a program has to say that it means it.
fn agreed(lines: &[String], yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    match question::is_possible() {
        true => question::go_on(lines),
        false => Err(Error::Usage("nobody can be asked without a terminal; --yes carries the plan out".to_owned())),
    }
}

fn told(step: &Step) {
    log::note(&format!("layout step {} begins: {}", step.n, step.what));
}

fn warn(text: &str) {
    log::note(&format!("warning: {text}"));
}

fn done(run: Run) -> Result<Reply> {
    let outcome = run.go(&told, &warn)?;
    let next = words::next_steps(&outcome);
    let lines = outcome.done.iter().filter(|step| step.done);
    let lines = lines.map(|step| words::of_step_among(step, &outcome.done)).collect();
    Ok(Reply::Applied { lines, next, dry_run: false, warnings: outcome.warnings })
}

/// On a host with xapi, the agent's database owns the SRs: an SR that was made behind it would be none that it knows.
fn by_agent(plan: &Plan, agent: &Agent, meant: &Meant) -> Result<Reply> {
    let name: LayoutName = plan.layout.parse()?;
    let new = target(&name, plan)?;
    let order = Order { agent, name: &name, new: new.as_ref(), steps: &plan.steps, allow: &meant.allow };
    let (steps, left) = apply::agent::pending(&order);
    let steps: Vec<&Step> = order.needed(steps)?;
    if meant.dry_run || !meant.run_xe {
        return Ok(Reply::Applied {
            lines: Vec::new(),
            next: apply::agent::lines(&order)?,
            dry_run: true,
            warnings: Vec::new(),
        });
    }
    if steps.is_empty() {
        return Ok(nothing(false));
    }
    agreed(&lines(&steps, &left), meant.yes)?;
    let (done, warning) = apply::agent::run(&order, &meant.again, &told, &warn)?;
    let lines = done.iter().map(|step| step.what.clone()).collect();
    Ok(Reply::Applied { lines, next: Vec::new(), dry_run: false, warnings: warning.into_iter().collect() })
}
