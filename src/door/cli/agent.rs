//! The agent of this host: xapi, where there is one.

use crate::door::v1::listing;
use crate::error::{Error, Result};
use crate::registry::agent::Agent;
use crate::sys::run_dir;

/// What the agent's database says; `None` on a host without agent.
///
/// # Errors
/// [`Error::NoDevice`] if there is one, and it does not answer or refuses.
pub fn of_host() -> Result<Option<Agent>> {
    if !run_dir::xapi().exists() {
        return Ok(None);
    }
    listing::agent().map(Some).map_err(|e| Error::NoDevice { device: "xapi".to_owned(), why: e.to_string() })
}
