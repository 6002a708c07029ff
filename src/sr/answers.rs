//! Answers that several drivers give.

use crate::error::{Error, Result};
use crate::types::{Finding, NewSr, Outcome, Overwrite, State, VdiUuid};

/// Refuses to overwrite anything, for a driver that does not.
///
/// # Errors
/// [`Error::Unsupported`] if `over` allows anything.
pub fn overwrites_nothing(over: &Overwrite) -> Result<()> {
    if over.is_nothing() {
        return Ok(());
    }
    let op = if over.contents { "sr_create --force" } else { "sr_create --destroy-sr" };
    Err(Error::Unsupported { op, why: "this driver overwrites nothing".to_owned() })
}

/// [`check_create`](crate::sr::Sr::check_create) of a driver that cannot tell.
///
/// # Errors
/// [`Error::Unsupported`].
pub fn finds_out_only_then() -> Result<()> {
    Err(Error::Unsupported {
        op: "sr_create --dry-run",
        why: "this driver finds out only while it makes an SR".to_owned(),
    })
}

/// Refuses a slot of a layout, for a driver that keeps no mark of one.
///
/// # Errors
/// [`Error::Unsupported`].
pub fn refuse_slot(new: &NewSr) -> Result<()> {
    match new.slot {
        None => Ok(()),
        Some(slot) => Err(Error::Unsupported {
            op: "an SR for a slot of a layout",
            why: format!("no SR of this type is made for {slot}"),
        }),
    }
}

/// The finding of sr_check for a disk whose state is known.
pub fn finding_of_state(vdi: VdiUuid, object: String, state: &State) -> Finding {
    let outcome = if *state == State::ServerDied { Outcome::Note } else { Outcome::Lasting };
    Finding { vdi: Some(vdi), object, label: String::new(), what: state.to_string(), outcome }
}
