//! The work of the commands `sm layout` and `sm plan`.

use std::path::Path;

use super::grammar::{LayoutCommand, PlanArgs};
use super::layouts_shown::{About, Status};
use super::shown::Reply;
use super::{agent, apply};
use crate::door::size;
use crate::door::v1::listing::{self, Told};
use crate::error::{Error, Result};
use crate::layout::config::{device_config, driver};
use crate::layout::model::Model;
use crate::layout::planning::{self, Planned};
use crate::layout::{Layout, LayoutName, Mode, installed};
use crate::registry::settings::Settings;
use crate::sys::durable::Dir;
use crate::sys::lock::Kind;

/// Makes a plan, and writes it to a file if one is named.
///
/// # Errors
/// Those of [`planning::plan`]; [`Error::Io`] for the file.
pub fn plan(args: &PlanArgs) -> Result<Reply> {
    let settings = Settings::read(size::parse)?;
    let model = Model::read(&args.model, size::parse)?;
    let _lock = planning::lock(&model.name, Kind::Shared)?;
    let planned = planning::plan(&model, &settings, agent::of_host()?.as_ref(), size::parse)?;
    if let Some(output) = &args.output {
        write(output, &planned)?;
    }
    Ok(Reply::Plan { planned: Box::new(planned), detailed: args.detailed_exitcode })
}

/// The file is there whole or not at all.
fn write(output: &str, planned: &Planned) -> Result<()> {
    let path = Path::new(output);
    let bad =
        |expected: &str| Error::Invalid { what: "--output", value: output.to_owned(), expected: expected.to_owned() };
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| bad("expected the name of a file"))?;
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let dir = Dir::open(above.unwrap_or(Path::new(".")))?;
    if dir.lookup(name)?.is_some_and(|stat| !stat.is_regular()) {
        return Err(bad("it is there and is no regular file"));
    }
    dir.new_record(planned.plan.text().as_bytes())?.publish_over(name)
}

/// Carries out one command about installed layouts.
///
/// # Errors
/// [`Error::Invalid`] for a name that none has; [`Error::Damaged`] for a layout that cannot be read.
pub fn layout(command: &LayoutCommand) -> Result<Reply> {
    match command {
        LayoutCommand::Remove(args) => apply::remove(args),
        LayoutCommand::List => Ok(Reply::Layouts(installed::names()?.iter().map(ToString::to_string).collect())),
        LayoutCommand::Show { layout } => {
            let name: LayoutName = layout.parse()?;
            installed::read(&name)?.map(Reply::Text).ok_or_else(|| no_layout(&name))
        }
        LayoutCommand::Info { layout } => {
            let name: LayoutName = layout.parse()?;
            let layout = installed::load(&name)?.ok_or_else(|| no_layout(&name))?;
            let states = states(&layout);
            Ok(Reply::Layout(Box::new(About { file: installed::path(&name), layout, states })))
        }
    }
}

/// The refusal of a name that no installed layout has.
pub fn no_layout(name: &LayoutName) -> Error {
    let known = installed::names().unwrap_or_default();
    let known: Vec<&str> = known.iter().map(LayoutName::as_str).collect();
    let there_are = if known.is_empty() { "none is".to_owned() } else { format!("there are {}", known.join(", ")) };
    Error::Invalid {
        what: "LAYOUT",
        value: name.to_string(),
        expected: format!("no such layout is installed; {there_are}"),
    }
}

/// The state of each slot's SR, in the order of the slots; that of an external one is not asked for.
fn states(layout: &Layout) -> Vec<Status> {
    let managed = layout.slots.iter().filter(|slot| slot.mode == Mode::Managed);
    let told = managed.map(|slot| Told {
        name: layout.sr_name(slot.id),
        sr: slot.uuid,
        sr_type: driver(slot.id.class).sr_type.to_owned(),
        config: device_config(layout, slot),
    });
    let listed = listing::of(told.collect(), listing::PATIENCE);
    let of_slot = |slot: &crate::layout::Slot| {
        let line = listed.iter().find(|line| line.uuid == Some(slot.uuid) && slot.mode == Mode::Managed);
        line.map_or_else(Status::default, |line| Status { state: line.state, reason: line.reason.clone() })
    };
    layout.slots.iter().map(of_slot).collect()
}
