//! What has to go together in a layout, looked at when everything is matched.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::matching::{Matched, Offer};
use super::model::Model;
use super::{Mode, Slot};
use crate::error::Result;
use crate::registry::candidate::Class;
use crate::registry::view;

/// Refuses a layout whose parts do not go together.
///
/// # Errors
/// [`Error::BadLine`](crate::Error::BadLine) with the line.
pub fn check(model: &Model, matched: &Matched, offers: &[Offer]) -> Result<()> {
    let slots = &matched.layout.slots;
    for (line, attach) in &model.attaches {
        if !slots.iter().any(|slot| slot.id.class == attach.class) {
            return Err(model.bad(*line, format!("there is no SR of class {} to attach", attach.class)));
        }
    }
    let published = slots.iter().find(|slot| slot.publish);
    match (model.gateways.first(), published) {
        (Some((line, _)), None) => {
            return Err(model.bad(*line, "a gateway serves SRs with publish=yes, and there is none"));
        }
        (None, Some(slot)) => {
            return Err(model.bad(matched.lines[&slot.id], "publish=yes needs a gateway line, and there is none"));
        }
        _ => {}
    }
    let (mut srs, mut directories) = (BTreeMap::new(), BTreeMap::new());
    for slot in slots {
        let line = matched.lines[&slot.id];
        if let Some(other) = srs.insert(slot.uuid, slot.id) {
            return Err(
                model.bad(line, format!("SR {} is that of {other} already, and {} cannot have it", slot.uuid, slot.id))
            );
        }
        for medium in slot.media.iter().filter(|_| slot.id.class == Class::File && slot.mode != Mode::External) {
            if let Some(other) = directories.insert((&slot.host, directory(slot, &medium.dev)), slot.id) {
                return Err(
                    model.bad(line, format!("{} is the directory of {other} already, by another name", medium.dev))
                );
            }
        }
        if slot.id.class == Class::Nfs && matched.layout.address(&slot.host).is_none() {
            return Err(model.bad(line, format!("no address for {}, check addr lines", slot.host)));
        }
        if let Some((host, dev)) = unseen(slot, offers) {
            return Err(model.bad(line, format!("host {host} of ha_host does not see {dev}")));
        }
    }
    Ok(())
}

/// The directory that a path leads to, as far as this host can tell.
fn directory(slot: &Slot, path: &str) -> PathBuf {
    match slot.host == view::host_name() {
        true => fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path)),
        false => PathBuf::from(path),
    }
}

/// A host that shall take over and does not see a medium, and the medium.
fn unseen<'s>(slot: &'s Slot, offers: &[Offer]) -> Option<(&'s str, &'s str)> {
    if slot.mode == Mode::External {
        return None;
    }
    let sees =
        |host: &str, identity: &str| offers.iter().any(|it| it.candidate.host == host && it.identity == identity);
    let pairs = slot.ha_hosts.iter().flat_map(|host| slot.media.iter().map(move |medium| (host, medium)));
    let unseen = pairs.filter(|(host, medium)| !sees(host, &medium.identity));
    unseen.map(|(host, medium)| (host.as_str(), medium.dev.as_str())).next()
}
