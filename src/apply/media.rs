//! Whether a slot stands on the medium that the plan was made for. Names of devices change while a plan waits.

use std::path::Path;
use std::time::Instant;

use crate::context::DEFAULT_WAIT;
use crate::error::{Error, Result};
use crate::layout::{Layout, Slot, config};
use crate::registry::candidate::Class;
use crate::registry::identity;
use crate::sys::blockdev;
use crate::types::{SlotMark, SrInfo};

/// The mark that the SR of a slot has.
pub fn mark(layout: &Layout, slot: &Slot) -> SlotMark {
    SlotMark { layout: layout.uuid, class: slot.id.class, index: slot.id.index }
}

/// Refuses a device that is not the medium of the slot any more. A directory and an export are their paths.
///
/// # Errors
/// [`Error::NoDevice`] with what the device is now.
pub fn identify(slot: &Slot) -> Result<()> {
    if slot.id.class != Class::Lvm {
        return Ok(());
    }
    for medium in &slot.media {
        let why = match identity::of_path(Path::new(&medium.dev)) {
            Some(found) if found == medium.identity => continue,
            Some(found) => format!("it is {found} now, and {} stands on {}", slot.id, medium.identity),
            None => format!("it is not here, or has no identity; {} stands on {}", slot.id, medium.identity),
        };
        return Err(Error::NoDevice { device: medium.dev.clone(), why });
    }
    Ok(())
}

/// Refuses media of which something has one open, after they were identified.
///
/// # Errors
/// [`Error::NoDevice`], [`Error::DeviceInUse`] with the user.
pub fn have_alone(slot: &Slot) -> Result<()> {
    identify(slot)?;
    if slot.id.class != Class::Lvm {
        return Ok(());
    }
    for medium in &slot.media {
        if let Some(who) = blockdev::exclusive_holder(Path::new(&medium.dev))? {
            return Err(Error::DeviceInUse { device: medium.dev.clone(), holder: format!("{who} has it") });
        }
    }
    Ok(())
}

/// The SR of the slot as its medium has it; `None` if the medium holds no such SR.
///
/// # Errors
/// What the driver says of the medium.
pub fn held(layout: &Layout, slot: &Slot) -> Result<Option<SrInfo>> {
    let config = config::device_config(layout, slot);
    match (config::driver(slot.id.class).probe)(&config, (Instant::now() + DEFAULT_WAIT).into()) {
        Err(Error::NoDevice { .. }) if slot.id.class == Class::File => Ok(None),
        other => Ok(other?.into_iter().find(|info| info.uuid == slot.uuid)),
    }
}

/// Refuses a medium that does not hold the SR of the slot, with the mark of the slot.
///
/// # Errors
/// [`Error::NoDevice`]; what the driver says of the medium.
pub fn must_hold(layout: &Layout, slot: &Slot) -> Result<()> {
    let missing = |why: String| Error::NoDevice { device: slot.devs(), why };
    let expected = mark(layout, slot);
    match held(layout, slot)? {
        Some(SrInfo { slot: Some(found), .. }) if found == expected => Ok(()),
        Some(SrInfo { slot: Some(found), .. }) => {
            Err(missing(format!("SR {} on it was made for {found}, and not for {expected}", slot.uuid)))
        }
        // The model gave the SR its UUID, which is all that it has.
        Some(_) if slot.uuid != slot.id.sr(layout.uuid) => Ok(()),
        Some(_) => Err(missing(format!("SR {} on it has no mark of {}", slot.uuid, slot.id))),
        None => Err(missing(format!("it does not hold SR {}, which is that of {}", slot.uuid, slot.id))),
    }
}
