//! The names under which a guest's host finds the block device of a VDI.
//!
//! 1. On a host that has tap-ctl, a tapdisk is put over the block device, unless one has the image open itself ([`datapath::attach_for_guest`]), and `/run/blktap-control/nbd/<sr>/<vdi>` is
//!    pointed at the tapdisk: a guest's disk is a tapdisk there, whatever is below.
//! 2. `/dev/sm/backend/<sr>/<vdi>` is pointed at the block device, tapdisk's if it has one.
//!
//! After a kill between the two, the next attach or detach does what is left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::datapath;
use crate::error::{Error, Result, one_line};
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::tapdisk::{self, Blktap, Tapdisk};
use crate::sys::{blockdev, run_dir, syslog};
use crate::types::{Format, Mode, SrUuid, VdiUuid};

/// The lock that vdi_activate holds from before its claim on the VDI until the device is there, and that a pause of the VDI
/// on this host holds too. A host that has claimed a VDI and not opened it yet has nothing to pause, and would open it
/// while its tree is changed.
///
/// # Errors
/// [`Error::DeviceInUse`] with who held it until the deadline.
pub fn activation(vdi: VdiUuid, deadline: Instant) -> Result<Lock> {
    lock::take(&vdi.to_string(), ACTIVATION, Kind::Exclusive, deadline).map_err(|refused| {
        let device = format!("VDI {vdi}");
        refused.or_timed_out(|who| Error::DeviceInUse { device, holder: format!("{who} activates or pauses it") })
    })
}

/// Removes the lock file of a VDI that is gone.
pub fn forget_activation(vdi: VdiUuid) {
    lock::forget(&vdi.to_string(), ACTIVATION);
}

/// The capability of a driver whose disks can be migrated to other storage in use.
pub const MIRROR: &str = "VDI_MIRROR";

/// How long the keeper of a tapdisk may take.
const PATIENCE: Duration = Duration::from_secs(60);

const ACTIVATION: &str = "activation";

/// The name of a VDI's block device, the same from attach to detach.
pub fn device_link(sr: SrUuid, vdi: &str) -> PathBuf {
    run_dir::devices().join("backend").join(sr.to_string()).join(vdi)
}

/// The name of a VDI's tapdisk, which stays from attach to detach.
pub fn tapdisk_link(sr: SrUuid, vdi: &str) -> PathBuf {
    run_dir::tapdisks().join("nbd").join(sr.to_string()).join(vdi)
}

/// Steps 1 and 2. Idempotent.
///
/// # Errors
/// [`Error::Tool`] when no tapdisk starts; [`Error::Io`] when a name can't be made.
pub fn connect(sr: SrUuid, vdi: &str, device: &Path, mode: Mode) -> Result<()> {
    end_pause(sr, vdi)?;
    let link = tapdisk_link(sr, vdi);
    if let Some(tapdisk) = Tapdisk::of_socket(device) {
        if Tapdisk::at(&link) != Some(tapdisk) {
            tapdisk.publish(&link)?;
        }
        return tapdisk.device().map_or(Ok(()), |own| publish(&device_link(sr, vdi), &own));
    }
    let own = match Tapdisk::at(&link) {
        Some(_) => return Ok(()),
        None if tapdisk::present() == Blktap::Absent => None,
        None => {
            datapath::sweep_starts();
            Tapdisk::start(device, mode == Mode::ReadOnly || blockdev::is_read_only(device), &link)?
        }
    };
    publish(&device_link(sr, vdi), own.as_deref().unwrap_or(device))
}

/// Undoes steps 2 and 1. Idempotent.
///
/// # Errors
/// [`Error::Tool`] when the tapdisk does not end; [`Error::Io`] when a name can't be removed.
pub fn disconnect(sr: SrUuid, vdi: &str) -> Result<()> {
    withdraw(&device_link(sr, vdi))?;
    end_pause(sr, vdi)?;
    // One that was about to be started over the device has it open.
    datapath::sweep_starts();
    let link = tapdisk_link(sr, vdi);
    if let Some(running) = Tapdisk::at(&link)
        // It ends with the attachment.
        && datapath::image_of(running).is_none()
        && let Err(error) = running.stop()
        && running.lives()
    {
        return Err(error);
    }
    withdraw(&link)
}

/// Sends what a VDI's user writes to a second place as well, from an instant on at which nothing was under way; see
/// [`Tapdisk::mirror`]. `false`: it has no tapdisk here. The caller has the lock of [`activation`].
///
/// A note stands for the pause in between: after a kill, [`go_on`] and all that attaches or detaches the VDI end it.
///
/// # Errors
/// [`Error::Tool`] if tapdisk refuses; [`Error::Io`] if the note cannot be made.
pub fn mirror(sr: SrUuid, vdi: &str, secondary: &str) -> Result<bool> {
    let Some(running) = Tapdisk::at(&tapdisk_link(sr, vdi)) else { return Ok(false) };
    if let Some(image) = datapath::image_of(running) {
        return datapath::mirror(&image, secondary, Instant::now() + PATIENCE).map(|()| true);
    }
    end_pause(sr, vdi)?;
    let note = note(sr, vdi);
    let dir = note.parent().expect("a note has a directory");
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    fs::write(&note, []).map_err(Error::io("write", &note))?;
    running.mirror(secondary)?;
    withdraw(&note)?;
    Ok(true)
}

/// Ends the pauses of tapdisks that killed calls left in an SR. A VDI that a call works on is left to it. Tapdisks of this host whose
/// keeper was killed get another one, and those whose start was killed end.
pub fn go_on(sr: SrUuid) {
    datapath::sweep_starts();
    datapath::revive_all(Instant::now() + PATIENCE);
    let Ok(notes) = fs::read_dir(notes(sr)) else { return };
    for name in notes.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Ok(vdi) = name.parse::<VdiUuid>() else { continue };
        let Ok(_lock) = activation(vdi, Instant::now()) else { continue };
        if let Err(error) = end_pause(sr, &name) {
            syslog::write(&format!("VDI {name} stays paused: {}", one_line(&error)));
        }
    }
}

fn end_pause(sr: SrUuid, vdi: &str) -> Result<()> {
    let note = note(sr, vdi);
    if fs::symlink_metadata(&note).is_err() {
        return Ok(());
    }
    Tapdisk::at(&tapdisk_link(sr, vdi)).map_or(Ok(()), Tapdisk::resume)?;
    withdraw(&note)
}

fn notes(sr: SrUuid) -> PathBuf {
    run_dir::state().join("paused").join(sr.to_string())
}

fn note(sr: SrUuid, vdi: &str) -> PathBuf {
    notes(sr).join(vdi)
}

/// Whether a VDI that is in use can grow: tapdisk does not open a disk again whose size has changed
/// (EMEDIUMTYPE), and stays paused then.
pub fn can_grow(sr: SrUuid, vdi: &str) -> bool {
    Tapdisk::at(&tapdisk_link(sr, vdi)).is_none()
}

/// The formats of disks that tapdisk is to open by itself on this host: `TAPDISK_OPENS` in `/etc/sm/xapi.conf`. None without a tapdisk.
/// A word that is no format counts for nothing.
pub fn opened_by_tapdisk() -> Vec<Format> {
    let text = match tapdisk::present() {
        Blktap::Absent => String::new(),
        _ => fs::read_to_string(run_dir::agent()).unwrap_or_default(),
    };
    let value = text.lines().rev().find_map(|line| line.trim().strip_prefix("TAPDISK_OPENS=")).unwrap_or_default();
    let words = value.trim_matches(['"', '\'']).split_whitespace();
    words.filter_map(|word| word.parse().ok()).filter(|format| *format != Format::Raw).collect()
}

/// The capabilities that this host's data path can't keep.
pub fn missing(capability: &str) -> bool {
    match capability {
        "VDI_RESIZE_ONLINE" => tapdisk::present() != Blktap::Absent,
        // tapdisk sends what is written, and takes what comes.
        MIRROR => tapdisk::present() == Blktap::Absent,
        _ => false,
    }
}

/// Points the VDI's name at its block device, in one step.
fn publish(link: &Path, device: &Path) -> Result<()> {
    let dir = link.parent().expect("a link has a directory");
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let temporary = link.with_extension("new");
    let _ = fs::remove_file(&temporary);
    symlink(device, &temporary).map_err(Error::io("link", &temporary))?;
    fs::rename(&temporary, link).map_err(Error::io("link", link))
}

fn withdraw(link: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Ok(()) => {
            // The SR's directory, once it is empty.
            let _ = link.parent().map(fs::remove_dir);
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", link)(e)),
    }
}
