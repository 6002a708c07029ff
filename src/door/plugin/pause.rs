//! The host plug-in `tapdisk-pause`, by which other hosts of a pool make this one let go of an image for a moment;
//! SMAPIv1, "Host plug-ins".
//!
//! | function | what |
//! |---|---|
//! | `pause` | the VDI's image and its parents are closed, I/O waits. Nothing to do where it is not attached |
//! | `unpause` | what has the image's name now is opened, I/O goes on |
//! | `refresh` | both. With `secondary`: the VDI's tapdisk sends what is written to that as well, and no image is closed |
//! | `tracks` | nothing: whether this host has the VDI attached and logs all that is written to it |
//! | `serves` | nothing: whether the SR is served by this package here. The Python plug-in knows no such function, so a host that has not this one is never taken for one that has |
//! | `announces` | nothing: for each SR type that this package serves here, a line with its release and what it announces. No arguments |
//!
//! arguments: `sr_uuid`, `vdi_uuid`, `vdi_location` (where it is not the UUID), `failfast` (`True`: waits for nobody).
//!
//! A pause is kept by the server of the disk ([`hold`]), so it needs no process of ours. After it was made, the
//! VDI's sm_config must have the key `paused`: a request that comes so late that nobody waits for its answer is undone.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::{Called, Failure, failed, hand_over, not_understood};
use crate::door::doctor;
use crate::door::host::device::{self, activation};
use crate::door::host::ours;
pub use crate::door::host::pause::NAME;
use crate::door::host::pause::{ANNOUNCES, PAUSE, REFRESH, SECONDARY, SERVES, TRACKS, UNPAUSE, hold, release, tracks};
use crate::door::xapi::{PAUSED, Xapi};
use crate::error::one_line;
use crate::sr::Driver;
use crate::sys::{syslog, tapdisk};
use crate::types::{Misread, SrUuid, VdiUuid};

/// How long to wait for a vdi_activate of the VDI that is under way. xapi's patience is longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A call of the plug-in: the function, the SR, the VDI and the options.
struct Request {
    function: String,
    sr: SrUuid,
    /// The VDI in xapi, and on the substrate.
    vdi_uuid: VdiUuid,
    vdi: VdiUuid,
    /// Waits for nobody.
    failfast: bool,
    /// Where a tapdisk is to send what is written as well.
    secondary: Option<String>,
    /// A key that asks for what is not done here.
    strange: Option<&'static str>,
    xapi: Xapi,
}

/// Carries one call out; returns not at all if it is for the Python plug-in.
pub(super) fn answer(args: &[OsString]) -> Result<String, Failure> {
    let called = Called::read(NAME, args)?;
    if called.function == ANNOUNCES {
        return Ok(doctor::pool::announced());
    }
    let mut request = read(called)?;
    let Some(driver) = our_driver(&mut request)? else {
        return Err(hand_over(NAME, args, &request.function));
    };
    let shown = format!("{NAME} {} of VDI {} on SR {}", request.function, request.vdi, request.sr);
    syslog::write(&shown);
    let done = run(driver, &mut request).map(str::to_owned);
    done.inspect_err(|words| syslog::write(&format!("{shown} failed: {}", words.join(", "))))
}

fn read(called: Called) -> Result<Request, Failure> {
    let bad = |why: &str| not_understood(NAME, why);
    let uuid = |name: &str| called.text(name).ok_or_else(|| bad(&format!("{name} is missing")));
    let parse = |text: &str| text.parse::<VdiUuid>().map_err(|e| bad(&one_line(&e.into())));
    let vdi_uuid = match called.function.as_str() {
        // Of an SR as a whole.
        SERVES => called.text("vdi_uuid").map_or_else(|| Ok(VdiUuid::random()), parse)?,
        _ => parse(uuid("vdi_uuid")?)?,
    };
    Ok(Request {
        sr: uuid("sr_uuid")?.parse().map_err(|e: Misread| bad(&one_line(&e.into())))?,
        vdi: called.text("vdi_location").map_or(Ok(vdi_uuid), parse)?,
        vdi_uuid,
        failfast: called.text("failfast") == Some("True"),
        strange: ["activate_parents"].into_iter().find(|key| called.members.contains_key(*key)),
        secondary: called.text(SECONDARY).map(str::to_owned),
        xapi: Xapi::new(&called.session, None),
        function: called.function,
    })
}

/// The driver of the SR's type, if the one that xapi has for that type is this executable.
fn our_driver(request: &mut Request) -> Result<Option<&'static Driver>, Failure> {
    let (function, sr) = (request.function.clone(), request.sr);
    let unknown = |why: String| failed(&function, format!("cannot learn the type of SR {sr} from xapi: {why}"));
    let record = ours::first_where(&mut request.xapi, "SR", "uuid", &sr.to_string());
    let record =
        record.map_err(|e| unknown(e.to_string()))?.ok_or_else(|| unknown("xapi has no such SR".to_owned()))?;
    ours::driver_of(&mut request.xapi, &record).map_err(|e| unknown(e.to_string()))
}

fn run(driver: &Driver, request: &mut Request) -> Result<&'static str, Failure> {
    const DONE: &str = "True";
    let function = request.function.clone();
    if let Some(key) = request.strange {
        return Err(failed(&function, format!("{key} is not supported for SR {}", request.sr)));
    }
    let words = |why: String| failed(&function, why);
    if function == SERVES {
        return Ok(DONE);
    }
    if function == TRACKS {
        return Ok(if tracks(driver, request.sr, request.vdi) { DONE } else { "False" });
    }
    let patience = if request.failfast { Duration::ZERO } else { PATIENCE };
    // From the claim of a vdi_activate to its device nothing may come between.
    let _lock = activation(request.vdi, Instant::now() + patience).map_err(|e| words(one_line(&e)))?;
    let (sr, vdi, vdi_uuid) = (request.sr, request.vdi, request.vdi_uuid);
    if let Some(secondary) = &request.secondary {
        if function != REFRESH || !tapdisk::is_secondary(secondary) {
            return Err(words(format!("{SECONDARY} {secondary:?} is not supported for SR {sr}")));
        }
        let mirrored = device::mirror(sr, &vdi_uuid.to_string(), secondary).map_err(|e| words(one_line(&e)))?;
        return Ok(if mirrored { DONE } else { "False" });
    }
    let pause = || hold(driver, sr, vdi, vdi_uuid).map_err(|e| words(one_line(&e)));
    match function.as_str() {
        PAUSE => {
            pause()?;
            if let Err(why) = is_wanted(request) {
                let undone = release(driver, request.sr, request.vdi);
                let undo = undone.err().map(|e| format!("; undoing it failed as well: {}", one_line(&e)));
                return Err(words(why + undo.as_deref().unwrap_or("")));
            }
        }
        UNPAUSE => drop(release(driver, request.sr, request.vdi).map_err(|e| words(one_line(&e)))?),
        REFRESH => {
            pause()?;
            release(driver, request.sr, request.vdi).map_err(|e| words(one_line(&e)))?;
        }
        _ => return Err(vec!["UNKNOWN_XENAPI_PLUGIN_FUNCTION".to_owned(), function]),
    }
    Ok(DONE)
}

/// Whether whoever wanted the pause is still there.
fn is_wanted(request: &mut Request) -> Result<(), String> {
    let xapi = &mut request.xapi;
    let reference = xapi.by_uuid("VDI", &request.vdi_uuid.to_string()).map_err(|e| e.to_string())?;
    let reference = reference.ok_or("xapi has no such VDI any more")?;
    match xapi.record("VDI.get_sm_config", &reference) {
        Ok(sm_config) if sm_config.contains_key(PAUSED) => Ok(()),
        Ok(_) => Err("the call that wanted the pause has ended: the VDI's sm_config has no key 'paused'".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}
