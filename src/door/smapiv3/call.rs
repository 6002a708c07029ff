//! One call on an SR or a volume: the SR opened by its handle, and what all methods of the two interfaces need.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::fault::Fault;
use super::request::Request;
use super::state;
use super::uri::Handle;
use crate::call::{Session, policy};
use crate::context::Context;
use crate::door::host::{self, local_path};
use crate::door::smapiv1::secret;
use crate::door::xapi::Xapi;
use crate::error::Error;
use crate::sr::Driver;
use crate::types::{DeviceConfig, VdiUuid};

/// The end of the waits of what begins now. Callers have no time limit; a process that holds a lock this long has died in the kernel.
pub fn deadline() -> Instant {
    Instant::now() + host::patience(Duration::from_secs(600))
}

/// The circumstances of an operation that begins now. Which hosts have a volume is on the storage, so no host is asked.
pub fn now() -> Context<'static> {
    Context { deadline: deadline(), progress: &|_, _| {}, others: None }
}

/// The SR that a request names, if it is one of this driver.
///
/// # Errors
/// [`Error::Invalid`].
pub fn handle(driver: &'static Driver, request: &Request) -> Result<Handle, Fault> {
    let handle = Handle::parse(request.text("sr"))?;
    if handle.driver.sr_type != driver.sr_type {
        let expected = format!("expected an SR of type {}", driver.sr_type);
        return Err(Error::Invalid { what: "sr", value: handle.to_string(), expected }.into());
    }
    Ok(handle)
}

/// Opens an SR that was attached by this door. `complete`: with the secrets that its device_config names by reference.
///
/// # Errors
/// [`Error::SrUnavailable`] if it is not attached on this host.
pub fn open(handle: Handle, complete: bool) -> Result<Session, Fault> {
    let why = || "SR.attach was not called on this host".to_owned();
    let config = state::recall(handle)?.ok_or_else(|| Error::SrUnavailable { sr: handle.sr, why: why() })?;
    let config = if complete { with_secrets(handle.driver, &config)? } else { config };
    Ok(Session::open(handle.driver, handle.sr, config)?)
}

/// Opens an SR as [`open`] does, and sees that it is where it has to be.
///
/// # Errors
/// [`Error::SrUnavailable`].
pub fn attached(handle: Handle) -> Result<Session, Fault> {
    let session = open(handle, false)?;
    local_path::assert_entered(&session)?;
    Ok(session)
}

/// The volume of a key. A key is the UUID of a VDI.
///
/// # Errors
/// [`Error::Invalid`] with the code of a volume that is not there.
pub fn volume(key: &str) -> Result<VdiUuid, Fault> {
    Ok(key.parse()?)
}

/// device_config with the secrets that it names by reference. xapi is asked only if there are any.
///
/// # Errors
/// Those of [`secret`].
pub fn with_secrets(driver: &Driver, config: &DeviceConfig) -> Result<DeviceConfig, Fault> {
    let mut xapi: Option<Xapi> = None;
    let complete = policy::with_secrets(driver, config, |key, uuid| {
        let xapi = match &mut xapi {
            Some(xapi) => xapi,
            none => none.insert(Xapi::log_in()?),
        };
        secret(xapi, key, uuid)
    });
    if let Some(mut xapi) = xapi {
        xapi.log_out();
    }
    let complete = complete?;
    let fetched = complete.0.iter().filter(|(key, _)| !config.0.contains_key(*key)).map(|(_, value)| value.clone());
    FETCHED.lock().unwrap_or_else(PoisonError::into_inner).extend(fetched.filter(|secret| !secret.is_empty()));
    Ok(complete)
}

/// The secrets that this process, which serves one call, has fetched.
static FETCHED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The secrets that xapi gave to this call. No message and no log may show them.
pub fn fetched_secrets() -> Vec<String> {
    FETCHED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
