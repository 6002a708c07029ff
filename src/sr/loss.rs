//! sr_create on devices that hold another SR: what would be lost with it, and whether the caller agreed to that.

use std::time::Instant;

use crate::context::Context;
use crate::error::{Error, Lost, Result, one_line};
use crate::sr::config::device_list;
use crate::sr::{DRIVERS, Sr};
use crate::sys::lock::{self, Kind, Lock};
use crate::types::{DeviceConfig, NewSr, Overwrite, Size, SrUuid, VdiInfo};

/// Disks that a refusal names one by one.
const NAMED: usize = 8;

/// Makes the SR `sr`, and destroys what `over` allows. The caller has the lock of `sr`.
///
/// An SR on the devices goes only if `over` names it, or if it has no disks and `over` allows to overwrite contents.
/// Meanwhile this call has the lock of that SR, so no disk is made in it after the look.
///
/// # Errors
/// Those of [`Sr::create`]. [`Error::HoldsSr`] with the disks that would be lost.
pub fn create(storage: &dyn Sr, sr: SrUuid, new: &NewSr, over: &Overwrite, context: &Context) -> Result<()> {
    let mut agreed = Overwrite { contents: over.contents, srs: Vec::new() };
    let mut locks: Vec<Lock> = Vec::new();
    loop {
        let made = if agreed.is_nothing() { storage.create(new) } else { storage.create_over(new, &agreed) };
        let (device, mut found) = match made {
            Err(Error::HoldsSr { device, held }) if !agreed.srs.contains(&held.sr) => (device, held),
            Ok(()) => {
                drop(locks);
                agreed.srs.iter().filter(|held| **held != sr).for_each(|held| lock::forget(&held.to_string(), "sr"));
                return Ok(());
            }
            other => return other,
        };
        let held = found.sr;
        if held != sr {
            let busy = |who: &str| Error::SrUnavailable { sr: held, why: format!("{who} works on it") };
            let lock = lock::take(&held.to_string(), "sr", Kind::Exclusive, context.deadline);
            locks.push(lock.map_err(|refused| refused.or_timed_out(busy))?);
        }
        if !over.srs.contains(&held) {
            if found.lost == Lost::NotListed {
                let listed = device_list(found.on.iter().map(|device| device.as_path()));
                found.lost = look(held, &DeviceConfig::from([("device", listed.as_str())]), context.deadline);
            }
            if found.lost != Lost::Nothing || !over.contents {
                return Err(Error::HoldsSr { device, held: found });
            }
        }
        agreed.srs.push(held);
    }
}

/// The losses that sr_create would cause, in words. A place that is free has none. Changes nothing.
///
/// # Errors
/// Those of [`create`] for what `over` does not allow.
pub fn plan(storage: &dyn Sr, size: Option<u64>, over: &Overwrite, context: &Context) -> Result<Vec<String>> {
    let mut agreed = Overwrite::default();
    let mut lost = Vec::new();
    loop {
        match storage.check_create(size, &agreed) {
            Ok(()) => return Ok(lost),
            Err(Error::HoldsSr { device, mut held }) if !agreed.srs.contains(&held.sr) => {
                if held.lost == Lost::NotListed {
                    let listed = device_list(held.on.iter().map(|device| device.as_path()));
                    held.lost = look(held.sr, &DeviceConfig::from([("device", listed.as_str())]), context.deadline);
                }
                if !over.srs.contains(&held.sr) && (held.lost != Lost::Nothing || !over.contents) {
                    return Err(Error::HoldsSr { device, held });
                }
                lost.push(format!("{device}: it holds {held}"));
                agreed.srs.push(held.sr);
            }
            Err(Error::Occupied { device, holds }) if over.contents && !agreed.contents => {
                lost.push(format!("{device}: {holds}"));
                agreed.contents = true;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Asks the drivers of SRs on block devices.
fn look(held: SrUuid, config: &DeviceConfig, deadline: Instant) -> Lost {
    let mut why = "LVM does not show its group, or no driver here serves its kind".to_owned();
    let on_devices = |driver: &&crate::sr::Driver| driver.keys().any(|key| key == "device");
    for driver in DRIVERS.iter().copied().filter(on_devices) {
        match (driver.open)(held, config, deadline.into()).and_then(|sr| sr.disks_at_rest()) {
            Ok(disks) => return in_words(disks),
            Err(Error::NoSr { .. } | Error::Foreign { .. }) => {}
            Err(e) => why = one_line(&e),
        }
    }
    Lost::Unknown(why)
}

/// The loss of these disks, in words. A base goes with the disks that need it, and is not counted.
pub fn in_words(mut disks: Vec<VdiInfo>) -> Lost {
    disks.retain(|disk| !disk.hidden);
    if disks.is_empty() {
        return Lost::Nothing;
    }
    let count = if disks.len() == 1 { "1 disk".to_owned() } else { format!("{} disks", disks.len()) };
    let one = |disk: &VdiInfo| {
        let label = if disk.label.is_empty() { String::new() } else { format!(" {:?}", disk.label) };
        let locked = if disk.vbds.is_empty() { String::new() } else { format!(" locked by {}", disk.vbds.join(", ")) };
        format!("{}{label} {}{locked}", disk.uuid, Size(disk.virtual_size))
    };
    let named: Vec<String> = disks.iter().take(NAMED).map(one).collect();
    let rest = disks.len().saturating_sub(NAMED);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    Lost::Disks(format!("{count} ({}{more})", named.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Format, VdiUuid};

    fn disk(label: &str, hidden: bool, vbds: Vec<String>) -> VdiInfo {
        VdiInfo {
            label: label.to_owned(),
            vbds,
            virtual_size: 1 << 30,
            format: Format::Raw,
            hidden,
            ..VdiInfo::sample(VdiUuid::random())
        }
    }

    #[test]
    fn a_loss_is_told_with_number_labels_sizes_and_locks() {
        assert_eq!(in_words(vec![]), Lost::Nothing);
        assert_eq!(in_words(vec![disk("", true, vec![])]), Lost::Nothing, "a base is nobody's disk");
        let one = disk("root", false, vec!["vm7".to_owned()]);
        let text = format!("1 disk ({} \"root\" 1GiB locked by vm7)", one.uuid);
        assert_eq!(in_words(vec![one]), Lost::Disks(text));
        let many = in_words((0..NAMED + 3).map(|_| disk("", false, vec![])).collect());
        let Lost::Disks(words) = many else { panic!("{many:?}") };
        assert!(words.starts_with("11 disks (") && words.ends_with(" 1GiB and 3 more)"), "{words}");
    }
}
