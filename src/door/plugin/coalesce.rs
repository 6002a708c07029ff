//! The host plug-in `coalesce-leaf`, by which a user has the images of a VM's disks merged now. It runs on the master of the pool.
//!
//! The function `leaf-coalesce` has the argument `vm_uuid` and answers `Success`. The SRs of the VM's disks are collected one after
//! the other, as by their units, and the answer waits for the end. The VM runs on meanwhile: the Python plug-in has to suspend it.
//! A collector that is at work is waited for, because it may have passed the VM's disks by. The Python plug-in gets the call as well
//! if a disk is on an SR of another driver.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::thread;
use std::time::{Duration, Instant};

use super::{Called, Failure, failed, hand_over, not_understood};
use crate::context::Context;
use crate::door::host::{self, ours};
use crate::door::smapiv1::collector;
use crate::door::smapiv1::sync::NULL_REF;
use crate::door::xapi::{ApiError, Xapi, text};
use crate::door::xmlrpc::Value;
use crate::error::{Error, one_line};
use crate::sys::syslog;
use crate::types::{Misread, SrUuid, VdiUuid};
use crate::vdi::tree::run::Collecting;
use crate::vdi::tree::stop;

/// The name of the plug-in.
pub const NAME: &str = "coalesce-leaf";

const FUNCTION: &str = "leaf-coalesce";

/// The answer that clients look for.
const DONE: &str = "Success";

/// How long a collector that is at work is waited for, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
const AGAIN: Duration = Duration::from_secs(1);

/// How long each wait of the collector may take.
const WAIT: Duration = Duration::from_secs(600);

/// Carries one call out; returns not at all if it ends in the Python plug-in.
pub(super) fn answer(args: &[OsString]) -> Result<String, Failure> {
    let called = Called::read(NAME, args)?;
    if called.function != FUNCTION {
        return Err(hand_over(NAME, args, &called.function));
    }
    let vm = called.text("vm_uuid").ok_or_else(|| not_understood(NAME, "vm_uuid is missing"))?;
    // A reference of another kind of object would be as good a text.
    let vm: VdiUuid = vm.parse().map_err(|e: Misread| not_understood(NAME, &one_line(&e.into())))?;
    let vm = vm.to_string();
    let mut xapi = Xapi::new(&called.session, None);
    let unknown = |e: ApiError| failed(FUNCTION, format!("cannot learn the disks of VM {vm} from xapi: {e}"));
    let (srs, others) = srs_of(&mut xapi, &vm).map_err(unknown)?;
    for sr in &srs {
        let shown = format!("{NAME} {FUNCTION} of VM {vm} on SR {sr}");
        syslog::write(&shown);
        collect(*sr).map_err(|error| {
            let why = one_line(&error);
            syslog::write(&format!("{shown} failed: {why}"));
            failed(FUNCTION, why)
        })?;
    }
    if others { Err(hand_over(NAME, args, FUNCTION)) } else { Ok(DONE.to_owned()) }
}

/// The SRs of a VM's disks that are ours, and whether there are others.
fn srs_of(xapi: &mut Xapi, vm: &str) -> Result<(Vec<SrUuid>, bool), ApiError> {
    let reference = xapi.call("VM.get_by_uuid", &[Value::text(vm)])?;
    let Value::Array(vbds) = xapi.call("VM.get_VBDs", &[reference])? else {
        return Err(ApiError::Malformed("VM.get_VBDs answered no list".to_owned()));
    };
    let mut srs = BTreeSet::new();
    for vbd in vbds.iter().filter_map(Value::as_str) {
        let vbd = xapi.record("VBD.get_record", vbd)?;
        if text(&vbd, "type") == "Disk" && text(&vbd, "VDI") != NULL_REF {
            let vdi = xapi.record("VDI.get_record", text(&vbd, "VDI"))?;
            srs.insert(text(&vdi, "SR").to_owned());
        }
    }
    let (mut of_ours, mut others) = (Vec::new(), false);
    for sr in srs {
        let record = xapi.record("SR.get_record", &sr)?;
        match (ours::driver_of(xapi, &record)?, text(&record, "uuid").parse()) {
            (Some(_), Ok(sr)) => of_ours.push(sr),
            _ => others = true,
        }
    }
    Ok((of_ours, others))
}

fn collect(sr: SrUuid) -> Result<(), Error> {
    let until = Instant::now() + host::patience(PATIENCE);
    loop {
        while stop::collector(sr).is_some() && Instant::now() < until {
            thread::sleep(AGAIN);
        }
        let context = Context { deadline: Instant::now() + WAIT, progress: &|_, _| {}, others: None };
        match collector::collect(sr, &Collecting::default(), &context) {
            // The unit was started at this moment.
            Err(Error::SrUnavailable { .. }) if stop::collector(sr).is_some() && Instant::now() < until => {}
            other => return other.map(drop),
        }
    }
}
