//! Tapdisks that have an image open themselves, as the callers of their keepers see them; see [`super::tapped`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::control::{self, Client};
use super::record::{self, Record};
use super::server::{self, Arguments};
use super::{Attached, Source, absolute, attach, conversation, directory, find, find_settled, patience, sweep};
use crate::error::{Error, Result, one_line};
use crate::sys::lock::Lock;
use crate::sys::loopdev::Detached;
use crate::sys::tapdisk::{self, Tapdisk};
use crate::sys::{blockdev, syslog};
use crate::types::Done;

/// The images that tapdisks have open.
pub(super) fn all() -> Vec<Attached> {
    let dir = directory();
    let attached = |record: Record| Attached {
        healthy: record.is_kept(&dir),
        device: record.tapdisk.socket(),
        image: record.image,
        read_only: record.read_only,
        server: record.keeper,
        tapdisk: Some(record.tapdisk),
    };
    record::all(&dir).into_iter().map(attached).collect()
}

/// The image that a tapdisk has open, which a keeper of this package gave it.
pub fn image_of(tapdisk: Tapdisk) -> Option<PathBuf> {
    record_of(tapdisk).map(|record| record.image)
}

fn record_of(tapdisk: Tapdisk) -> Option<Record> {
    record::all(&directory()).into_iter().find(|record| record.tapdisk == tapdisk)
}

/// Whether nothing can be written through what [`super::attach`] or [`attach_for_guest`] answered.
pub fn is_read_only(device: &Path) -> bool {
    match Tapdisk::of_socket(device) {
        Some(tapdisk) => record_of(tapdisk).is_some_and(|record| record.read_only),
        None => blockdev::is_read_only(device),
    }
}

/// As [`super::attach`], for a user that can do without a block device. `by_tapdisk`: a tapdisk is to open the image itself, and the
/// answer is its socket; if tapdisk cannot, which is logged, a server of ours does. An image that is attached stays as it is, and the
/// answer is whichever it has.
///
/// # Errors
/// Those of [`super::attach`].
pub fn attach_for_guest(source: &Source, lock: Option<&Lock>, deadline: Instant, by_tapdisk: bool) -> Result<PathBuf> {
    if let Some(found) = find_settled(&source.path, deadline)?.filter(|found| found.tapdisk.is_some()) {
        return match found.read_only && !source.read_only {
            true => Err(in_use(&found, "it is attached read-only; detach it first")),
            false => Ok(found.device),
        };
    }
    // Other hosts see by the locks of our servers which images are open.
    if by_tapdisk && !source.shared && find(&source.path)?.is_none() {
        let source = Source { path: absolute(&source.path)?, ..source.clone() };
        match start(&source, lock, deadline) {
            Ok(socket) => return Ok(socket),
            Err(why) => {
                let image = source.path.display();
                syslog::write(&format!(
                    "tapdisk does not open {image} itself, an image server does: {}",
                    one_line(&why)
                ));
            }
        }
    }
    attach(source, lock, deadline)
}

fn start(source: &Source, lock: Option<&Lock>, deadline: Instant) -> Result<PathBuf> {
    let dir = directory();
    let sweep = || {
        sweep(&dir);
        sweep_starts();
    };
    sweep();
    let arguments = Arguments { source: source.clone(), dir: dir.clone(), by_tapdisk: true };
    server::start(&arguments, lock, patience(deadline)).inspect_err(|_| sweep())
}

pub(super) fn in_use(found: &Attached, holder: &str) -> Error {
    Error::DeviceInUse { device: found.device.display().to_string(), holder: holder.to_owned() }
}

/// Ends the tapdisk, unless a user of it may be left: the name by which users find it.
///
/// # Errors
/// That tapdisk did not close the image; [`Error::DeviceInUse`] when its keeper does not answer.
pub(super) fn detach(found: &Attached, tapdisk: Tapdisk, deadline: Instant) -> Result<Detached> {
    if let Some(link) = tapdisk.published() {
        let how = format!("tapdisk {tapdisk}, which users find by {}; vdi_deactivate ends it", link.display());
        return Ok(Detached::Busy(how));
    }
    let mut client: Client = conversation(found, patience(deadline))?;
    client.ask("end")?;
    client.hear()?;
    client.wait_for_end()?;
    sweep(&directory());
    Ok(Detached::Done(Done::Changed))
}

/// Sends what is written to an image that a tapdisk has open to a second place as well, from an instant on at which nothing was under
/// way; see [`crate::sys::tapdisk::is_secondary`]. If tapdisk refuses it, the disk goes on without.
///
/// # Errors
/// The refusal of tapdisk; [`Error::DeviceInUse`] when the keeper does not answer until the deadline.
pub fn mirror(image: &Path, secondary: &str, deadline: Instant) -> Result<()> {
    match find_settled(image, deadline)?.filter(|found| found.tapdisk.is_some()) {
        Some(found) => conversation(&found, patience(deadline))?.ask(&format!("mirror {secondary}")).map(drop),
        None => Err(Error::NoDevice { device: image.display().to_string(), why: "no tapdisk has it open".to_owned() }),
    }
}

/// Whether this is no tapdisk, or its keeper answers words: one that takes a tapdisk over does not for a moment, and may fail.
pub(super) fn is_ready(found: &Attached) -> bool {
    found.tapdisk.is_none() || found.healthy && control::socket(&directory(), found.server).exists()
}

/// Starts another keeper for a tapdisk whose keeper was killed, or waits for one that another call has started. What is attached is to be
/// looked for again then.
///
/// # Errors
/// Those of [`revive`]; [`Error::DeviceInUse`] if the other keeper is not ready at the deadline.
pub(super) fn make_ready(found: &Attached, deadline: Instant) -> Result<()> {
    if !found.healthy {
        return revive(found, deadline);
    }
    let until = patience(deadline);
    while !is_ready(found) && keeper_lives(found) {
        if Instant::now() > until {
            return Err(in_use(found, &format!("process {}, which does not get ready to keep it", found.server)));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn keeper_lives(found: &Attached) -> bool {
    Arguments::of(found.server).is_some_and(|arguments| arguments.source.path == found.image)
}

/// Starts another keeper for a tapdisk whose keeper was killed; a pause that is left ends.
///
/// # Errors
/// Those of a keeper that does not start.
fn revive(orphan: &Attached, deadline: Instant) -> Result<()> {
    let Some(record) = orphan.tapdisk.and_then(record_of) else { return Ok(()) };
    let path = orphan.image.clone();
    let source = Source { format: record.format, path, read_only: record.read_only, shared: false };
    match start(&source, None, deadline) {
        Ok(_) => Ok(()),
        // Another call was faster.
        Err(_) if find(&orphan.image)?.is_none_or(|found| found.healthy) => Ok(()),
        Err(why) => {
            let pid = record.tapdisk.pid();
            Err(why.after(format!("the keeper of tapdisk {} was killed, which kill {pid} ends", record.tapdisk)))
        }
    }
}

/// Ends the tapdisks that killed calls and keepers of this host had begun to start.
pub fn sweep_starts() {
    let dir = directory();
    tapdisk::sweep(|starting| record::all(&dir).iter().any(|record| record.tapdisk == starting));
}

/// Starts another keeper for each tapdisk of this host whose keeper was killed. What fails is logged.
pub fn revive_all(deadline: Instant) {
    for orphan in all().iter().filter(|found| !found.healthy) {
        if let Err(error) = revive(orphan, deadline) {
            syslog::write(&one_line(&error));
        }
    }
}
