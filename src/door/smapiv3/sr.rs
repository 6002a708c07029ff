//! The methods of an SR; SMAPIv3, "SR interface".

use serde::Serialize;
use serde_json::{Value, json};

use super::call::{self, deadline, now, with_secrets};
use super::fault::Fault;
use super::request::Request;
use super::uri::Handle;
use super::{claim, datapath, state, volume};
use crate::call::{Disks, Session};
use crate::door::host::local_path;
use crate::door::smapiv1::collector;
use crate::error::{Error, one_line};
use crate::sr::Driver;
use crate::sys::lock::Kind;
use crate::sys::syslog;
use crate::types::{DeviceConfig, Names, NewSr, Overwrite, Space, SrInfo, SrUuid};

/// The key of device_config that says which SR it is: PBDs have no other place for it.
pub const SR_UUID: &str = "sr_uuid";

/// The answer of SR.stat.
#[derive(Serialize)]
struct Stat {
    sr: String,
    name: String,
    uuid: String,
    description: String,
    free_space: u64,
    total_space: u64,
    datasources: [&'static str; 0],
    clustered: bool,
    health: (&'static str, &'static str),
}

impl Stat {
    fn of(handle: Handle, names: Names, space: Space) -> Stat {
        Stat {
            sr: handle.to_string(),
            name: names.label,
            uuid: handle.sr.to_string(),
            description: names.description,
            free_space: space.free,
            total_space: space.size,
            datasources: [],
            clustered: false,
            // A storage that cannot be read has no stat.
            health: ("Healthy", ""),
        }
    }
}

fn configuration(request: &Request) -> DeviceConfig {
    DeviceConfig(request.map("configuration"))
}

/// Which SRs a configuration holds, and which may be chosen where it leaves a choice. Changes nothing.
///
/// # Errors
/// Those of [`Driver::probe`].
pub fn probe(driver: &'static Driver, request: &Request) -> Result<Value, Fault> {
    let mut config = configuration(request);
    let wanted = config.0.remove(SR_UUID);
    let complete = with_secrets(driver, &config)?;
    let found = match (driver.probe)(&complete, deadline().into()) {
        Err(Error::ExportNotChosen { server, exports }) => {
            let one = |path: &str, access: &str| {
                let mut with = config.clone();
                with.0.insert("serverpath".to_owned(), path.to_owned());
                let extra = json!({ "server": server, "access": access });
                json!({ "configuration": with.0, "complete": false, "extra_info": extra })
            };
            return Ok(exports.iter().map(|export| one(&export.path, &export.access)).collect());
        }
        other => other?,
    };
    let one = |found: &SrInfo| {
        let (uuid, mut with) = (found.uuid, config.clone());
        // It may be in a directory of the one that was looked at.
        if let Some(location) = with.0.get_mut("location") {
            location.clone_from(&found.location);
        }
        with.0.insert(SR_UUID.to_owned(), uuid.to_string());
        let stat = Stat::of(Handle { driver, sr: uuid }, Names::default(), found.space());
        json!({ "configuration": with.0, "complete": true, "sr": stat, "extra_info": {} })
    };
    if found.is_empty() && wanted.is_none() {
        // What a new SR could be made of, where that can be seen.
        let new = Session::open(driver, SrUuid::random(), complete)?;
        let can_be_made = new.plan_create(None, &Overwrite::default(), &now()).is_ok();
        let candidate = json!({ "configuration": config.0, "complete": true, "extra_info": {} });
        return Ok(if can_be_made { json!([candidate]) } else { json!([]) });
    }
    let is_wanted = |uuid: SrUuid| wanted.as_ref().is_none_or(|wanted| *wanted == uuid.to_string());
    Ok(found.iter().filter(|sr| is_wanted(sr.uuid)).map(one).collect())
}

/// Makes an SR, and answers what its PBDs have to have. It is not attached after.
///
/// 1. the driver makes it; 2. it is attached, given its names, and detached. What fails after 1 undoes 1.
///
/// # Errors
/// Those of [`Session::sr_create`].
pub fn create(driver: &'static Driver, request: &Request) -> Result<Value, Fault> {
    let (sr, config): (SrUuid, _) = (request.text("uuid").parse()?, configuration(request));
    let names = Names { label: request.text("name").to_owned(), description: request.text("description").to_owned() };
    volume::refuse_long(&names.label, &names.description)?;
    let session = Session::open(driver, sr, with_secrets(driver, &config)?)?;
    // Before it is looked whether it has disks, which may attach it.
    let was_attached = state::recall(Handle { driver, sr })?.is_some() || session.sr_get_params(&now()).is_ok();
    let made = match session.sr_create(&NewSr::default(), &Overwrite::default(), &now()) {
        // The caller that made it was told of no failure, or was killed: then it is named once more.
        Err(Error::SrExists { .. }) if session.vdis_at_stake(&now())? == 0 => false,
        Err(error) => return Err(with_choice(driver, &config, error)),
        Ok(()) => true,
    };
    let named = if was_attached && !made {
        session.sr_set_names(move |_| names, &now())
    } else {
        session.sr_attach(&now()).and_then(|_| {
            let named = session.sr_set_names(move |_| names, &now());
            crate::error::ended(named, session.sr_detach(&now()).map(drop))
        })
    };
    if let Err(error) = named {
        // What was there before stays, and so does what another call made of it.
        let delete = || session.refuse_disks(&now()).and_then(|()| session.sr_delete(Disks::NONE, &now()).map(drop));
        let undone = if made { delete() } else { Ok(()) };
        return Err(error.undone(undone).into());
    }
    let mut config = config.0;
    config.insert(SR_UUID.to_owned(), sr.to_string());
    Ok(json!(config))
}

/// The failure of a key that is missing, with what a client may choose for the key.
fn with_choice(driver: &Driver, config: &DeviceConfig, error: Error) -> Fault {
    let choice = || (driver.probe)(&with_secrets(driver, config).ok()?, deadline().into()).err();
    match error {
        Error::MissingKey { .. } => match choice() {
            Some(more @ Error::ExportNotChosen { .. }) => more.into(),
            _ => error.into(),
        },
        other => other.into(),
    }
}

/// Makes an SR available on this host, and answers its handle. Idempotent.
///
/// 1. device_config is kept for later calls; 2. the driver attaches; 3. the SR appears below the mount base; 4. the claims that
///    this host had on volumes before a reboot are removed. After a kill, the same call does all of it again.
///
/// # Errors
/// [`Error::MissingKey`] for device_config that does not say which SR; those of [`Session::sr_attach`].
pub fn attach(driver: &'static Driver, request: &Request) -> Result<Value, Fault> {
    let config = configuration(request);
    let sr: SrUuid = config.require(SR_UUID).map_err(Error::from)?.parse()?;
    let handle = Handle { driver, sr };
    let before = state::recall(handle)?;
    let session = Session::open(driver, sr, with_secrets(driver, &config)?)?;
    state::remember(handle, &config)?;
    let attached = session.sr_attach(&now()).and_then(|_| local_path::enter(&session));
    if let Err(error) = attached {
        // An SR that was attached is still where it was.
        let undone = before.map_or_else(|| state::forget(sr), |before| state::remember(handle, &before));
        return Err(error.undone(undone).into());
    }
    if session.is_shared() {
        match session.sr_scan(&now()) {
            Ok(found) => claim::drop_stale(&session, &found.vdis),
            Err(error) => syslog::write(&format!("claims of SR {sr} were not looked at: {}", one_line(&error))),
        }
    }
    Ok(json!(handle.to_string()))
}

/// Ends the availability on this host. Idempotent.
///
/// # Errors
/// Those of [`Session::sr_detach`].
pub fn detach(handle: Handle) -> Result<Value, Fault> {
    // No volume is activated meanwhile.
    let _alone = state::lock(handle.sr, Kind::Exclusive, deadline())?;
    if state::recall(handle)?.is_none() {
        return Ok(Value::Null);
    }
    let session = call::open(handle, false)?;
    for vdi in state::volumes(handle.sr) {
        datapath::finish(&session, vdi)?;
    }
    match session.sr_detach(&now()) {
        // An SR that is not there is not attached.
        Ok(_) | Err(Error::NoSr { .. }) => {}
        Err(other) => return Err(other.into()),
    }
    local_path::leave(&session)?;
    state::forget(handle.sr)?;
    Ok(Value::Null)
}

/// Deletes an SR that has no volumes any more.
///
/// # Errors
/// Those of [`Session::sr_delete`].
pub fn destroy(handle: Handle) -> Result<Value, Fault> {
    let session = call::open(handle, true)?;
    session.refuse_disks(&now())?;
    local_path::leave(&session)?;
    // Volumes may have come meanwhile: then it stays where it was.
    session.sr_delete(Disks::NONE, &now()).map_err(|error| error.undone(local_path::enter(&session)))?;
    state::forget(handle.sr)?;
    Ok(Value::Null)
}

/// The facts about an SR, without a look at its volumes.
///
/// # Errors
/// Those of [`Session::sr_get_space`].
pub fn stat(handle: Handle) -> Result<Value, Fault> {
    let session = call::attached(handle)?;
    Ok(json!(Stat::of(handle, session.sr_get_names(&now())?, session.sr_get_space(&now())?)))
}

/// Changes a name of the SR.
///
/// # Errors
/// Those of [`Session::sr_set_names`].
pub fn rename(handle: Handle, change: impl Fn(Names) -> Names + Send + 'static) -> Result<Value, Fault> {
    let names = change(Names::default());
    volume::refuse_long(&names.label, &names.description)?;
    call::attached(handle)?.sr_set_names(change, &now())?;
    Ok(Value::Null)
}

/// All volumes of an SR. Bases, which are there for their children only, are none.
///
/// # Errors
/// Those of [`Session::sr_scan`].
pub fn ls(handle: Handle) -> Result<Value, Fault> {
    let session = call::attached(handle)?;
    let found = session.sr_scan(&now())?;
    claim::drop_stale(&session, &found.vdis);
    if collector::has_work(&found.vdis) {
        collector::start(handle.sr);
    }
    let volumes = found.vdis.iter().filter(|vdi| !vdi.hidden).map(|vdi| volume::Volume::of(handle, vdi));
    let logs = found.logs.iter().flatten().map(|log| volume::Volume::of_log(handle, log));
    Ok(json!(volumes.chain(logs).collect::<Vec<_>>()))
}
