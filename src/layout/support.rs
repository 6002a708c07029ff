//! What a layout may say and this release does not do. It is refused before anything is planned.

use super::keys::{Effect, SUBDIR};
use super::matching::Matched;
use super::model::Model;
use super::{Active, Mode, Slot, config};
use crate::error::Result;
use crate::registry::candidate::Class;
use crate::registry::line;

/// Refuses what this release does not do. `here`: the name of this host.
///
/// # Errors
/// [`Error::BadLine`](crate::Error::BadLine) with the line.
pub fn check(model: &Model, matched: &Matched, here: &str) -> Result<()> {
    let not_yet = |line: usize, what: &str| Err(model.bad(line, format!("{what} is not supported by this release")));
    for (key, _) in model.options.given() {
        let line = model.option_lines.get(key.name).copied().unwrap_or_default();
        let class = Class::ALL
            .into_iter()
            .find(|class| key.name.strip_prefix(class.word()).is_some_and(|it| it.starts_with('_')));
        let is_of_mounts = matches!(key.effect, Effect::Restart(_)) && class != Some(Class::Nfs);
        if matches!(key.effect, Effect::Retune(_)) || is_of_mounts || key.name.ends_with("_args") || key.name == SUBDIR
        {
            return not_yet(line, key.name);
        }
        if let (Effect::Reformat(class), Some(value)) = (key.effect, model.options.get(key.name)) {
            format(class, value).map_err(|what| model.bad(line, what))?;
        }
    }
    if let Some((line, _)) = model.gateways.first() {
        return not_yet(*line, "a gateway");
    }
    for (line, attach) in &model.attaches {
        if attach.class != Class::Nfs {
            return not_yet(*line, &format!("an attach line for class {}", attach.class));
        }
        if attach.host != here {
            return not_yet(*line, &format!("a host besides this one, {here}: {}", attach.host));
        }
    }
    if let Some((line, _)) = model.attaches.get(1) {
        return not_yet(*line, "a second attach line of a host and class");
    }
    for slot in matched.layout.slots.iter().filter(|slot| slot.mode == Mode::Managed) {
        let line = matched.lines[&slot.id];
        if let Some(what) = unsupported(slot) {
            return not_yet(line, what);
        }
        if slot.id.class != Class::Nfs && slot.host != here {
            return not_yet(line, &format!("a host besides this one, {here}: {}", slot.host));
        }
        if slot.id.class == Class::Nfs && model.attaches.is_empty() {
            return Err(model.bad(line, "no host attaches the class nfs; add the line `attach: class=nfs`"));
        }
    }
    Ok(())
}

fn format(class: Class, value: &str) -> Result<(), String> {
    let known = config::format_keys(class);
    let fields = line::fields(value)?;
    match fields.iter().find(|field| !known.contains(&field.key.as_str())) {
        None => Ok(()),
        Some(field) => {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(" ") };
            Err(format!("there is no key {:?} of {class}_format; there are {known}", field.key))
        }
    }
}

fn unsupported(slot: &Slot) -> Option<&'static str> {
    let keys = [
        (slot.active == Active::NoCreate, "active=nocreate"),
        (slot.publish, "publish=yes"),
        (!slot.ha_hosts.is_empty(), "ha_host"),
        (!slot.network.is_empty(), "network"),
        (!slot.jdev.is_empty(), "jdev"),
        (!slot.prep.is_empty(), "prep"),
        (!slot.fs.is_empty(), "fs"),
    ];
    keys.into_iter().find(|(is_so, _)| *is_so).map(|(_, key)| key)
}
