//! Claims around sr_create and sr_delete: what a new SR must not take, and what it owns afterwards.
//!
//! sr_create looks first: a medium that a layout or an administrator reserved for somebody else is refused before anything is
//! touched, and so is one that a second device shows as well. After the SR is made, its media are claimed. A kill between the
//! two leaves an SR without a claim; its medium says whose it is, and `sm devices rebuild` adds the claim.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::claims::{BY_HAND, Claim};
use super::{identity, ledger, sysfs, view};
use crate::error::{Error, Result, one_line};
use crate::sys::syslog;
use crate::types::{SrUuid, seconds_now};

/// Refuses devices that a claim reserves for another than `sr`, and devices whose medium another device shows as well.
///
/// # Errors
/// [`Error::DeviceInUse`] with the owner or the other device; [`Error::Damaged`] for claims that cannot be read.
pub fn refuse(sr: SrUuid, devices: &[PathBuf]) -> Result<()> {
    let kept = ledger::is_kept()?;
    let claims = if kept { ledger::read()? } else { super::claims::Claims::default() };
    for device in devices {
        let Some(identity) = identity::of_path(device) else { continue };
        let in_use = |holder: String| Error::DeviceInUse { device: device.display().to_string(), holder };
        let is_of_others = |claim: &&Claim| claim.sr_uuid != Some(sr) && claim.is_reservation();
        let claim = claims.overlapping(&identity).find(is_of_others);
        if let Some(claim) = claim {
            let owner = claim.owner();
            return Err(in_use(format!(
                "it is claimed: {owner}; if that is over, release it: sm devices release {}",
                claim.identity
            )));
        }
        if let Some(other) = twin(&identity, device) {
            return Err(in_use(format!(
                "{other} shows the same medium ({identity}), and no multipath map joins them; remove one of them, or let \
                 multipathd join them"
            )));
        }
    }
    Ok(())
}

/// Another device with this wwid that no map joins with `device`.
fn twin(identity: &str, device: &Path) -> Option<String> {
    if !identity.starts_with("wwid:") {
        return None;
    }
    let own = fs::canonicalize(device).ok()?;
    twin_in(Path::new("/sys/block"), identity, own.file_name()?.to_str()?)
}

/// Another device in a directory of sysfs that has the wwid of this identity and a medium, where neither is a path of a map.
fn twin_in(block: &Path, identity: &str, own: &str) -> Option<String> {
    let is_joined = |name: &str| sysfs::holders(&block.join(name)).iter().any(|holder| holder.is_multipath);
    // A map and its paths have one identity, and a path is refused because the map has it.
    if own.starts_with("dm-") || is_joined(own) {
        return None;
    }
    let entries = fs::read_dir(block).ok()?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_twin = |name: &String| {
        let dir = block.join(name);
        name != own && identity::of_wwid(&sysfs::wwid(&dir)) == identity && sysfs::has_medium(&dir)
    };
    names.filter(is_twin).min().map(|name| format!("/dev/{name}"))
}

/// Claims the devices of an SR that was made by hand. The claims of the SRs that were destroyed for it are released. A
/// failure is written to the log: the SR is there, and its medium says so.
pub fn claim(sr: SrUuid, class: &str, devices: &[PathBuf], destroyed: &[SrUuid], deadline: Instant) {
    let media: Vec<Claim> = devices
        .iter()
        .filter_map(|device| {
            Some(Claim {
                identity: identity::of_path(device)?,
                host: view::host_name(),
                dev: device.display().to_string(),
                layout: BY_HAND.to_owned(),
                class: class.to_owned(),
                index: None,
                sr_uuid: Some(sr),
                since: seconds_now().unwrap_or_default(),
            })
        })
        .collect();
    if media.is_empty() {
        return;
    }
    let done = ledger::change(deadline, |claims| {
        let gone = claims.release(|claim| {
            claim.layout == BY_HAND && claim.sr_uuid.is_some_and(|held| held != sr && destroyed.contains(&held))
        });
        let mut is_changed = !gone.is_empty();
        for claim in media {
            // A reservation that a layout has for this very SR stays what it is.
            let is_known = claims.of(&claim.identity).is_some_and(|known| known.sr_uuid == Some(sr));
            is_changed |= !is_known && claims.put(claim);
        }
        Ok((is_changed, ()))
    });
    if let Err(e) = done {
        syslog::write(&format!("SR {sr} was made, its devices are not claimed: {}", one_line(&e)));
    }
}

/// Releases what an SR that was made by hand has. On a host without claims this looks for their directory and no more. A
/// failure is written to the log.
pub fn release(sr: SrUuid, deadline: Instant) {
    if matches!(ledger::is_kept(), Ok(false)) {
        return;
    }
    let goes = |claim: &Claim| claim.layout == BY_HAND && claim.sr_uuid == Some(sr);
    let done = ledger::change(deadline, |claims| Ok((!claims.release(goes).is_empty(), ())));
    if let Err(e) = done {
        syslog::write(&format!("SR {sr} was deleted, its devices are still claimed: {}", one_line(&e)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::sysfs::tests::tree;

    #[test]
    fn a_second_device_with_the_same_medium_is_found_and_paths_of_a_map_are_none() {
        let sys = tempfile::tempdir().unwrap();
        let block = sys.path();
        for (name, wwid, size) in [
            ("sda", "naa.1", "8"),
            ("sdb", "naa.2", "8"),
            ("sdc", "naa.1", "8"),
            ("sdd", "naa.2", "0"),
            ("nvme0c0n1", "naa.2", "8"),
        ] {
            tree(&block.join(name), &[("device/wwid", wwid), ("size", size)]);
        }
        tree(&block.join("nvme0c0n1"), &[("hidden", "1\n")]);
        assert_eq!(twin_in(block, "wwid:naa.1", "sda").as_deref(), Some("/dev/sdc"));
        // Neither a device without a medium nor a hidden path of NVMe is one.
        assert_eq!(twin_in(block, "wwid:naa.2", "sdb"), None);
        tree(block, &[("sda/holders/dm-0/dm/uuid", "mpath-1"), ("sda/holders/dm-0/dm/name", "mpatha")]);
        assert_eq!((twin_in(block, "wwid:naa.1", "sda"), twin_in(block, "wwid:naa.1", "dm-0")), (None, None));
    }
}
