//! The host plug-in `on-slave`, by which the master of an SR makes another host follow what it has changed of the SR's volumes; LVHD,
//! "Master and slaves". The Python drivers (`on_slave.py`) and this package call it alike.
//!
//! The function `multi` has the arguments `vgName` and, for each n from 1 on, `action<n>` and `lvName<n>`, some with `ns<n>` and `uuid<n>`:
//!
//! | action | what |
//! |---|---|
//! | `activate`, `deactivate` | the volume has one user more or less |
//! | `deactivateNoRefcount` | it is deactivated, whoever is counted |
//! | `refresh` | it is active, as the group has it now |
//! | `cleanupLockAndRefcount` | nobody is counted as its user |
//!
//! The function `commit_tapdisk` is refused for a disk that this package serves: there is no tapdisk that could merge its images. All else, and
//! what concerns SRs of other drivers, is for the Python plug-in.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::{Called, Failure, failed, hand_over, not_understood, open_attached};
use crate::door::xmlrpc::Value;
use crate::error::one_line;
use crate::image::volume::GROUP;
use crate::sr::{VolumeChange, VolumeOf};
use crate::sys::syslog;
use crate::types::{SrUuid, VdiUuid};

pub const NAME: &str = "on-slave";

/// The function that takes several actions.
pub const MULTI: &str = "multi";

/// How long a change waits for other calls of this host.
const PATIENCE: Duration = Duration::from_secs(60);

const ACTIONS: [(&str, VolumeChange); 5] = [
    ("activate", VolumeChange::Use),
    ("deactivate", VolumeChange::Leave),
    ("deactivateNoRefcount", VolumeChange::Deactivate),
    ("refresh", VolumeChange::Refresh),
    ("cleanupLockAndRefcount", VolumeChange::Forget),
];

/// The arguments of [`MULTI`] for changes that are taken one after the other.
pub fn arguments(sr: SrUuid, changes: &[(VolumeChange, &VolumeOf)]) -> Value {
    let mut members = vec![("vgName".to_owned(), Value::text(format!("{GROUP}{sr}")))];
    for (n, (change, volume)) in changes.iter().enumerate() {
        let action = ACTIONS.iter().find(|(_, known)| known == change).map_or("", |(action, _)| action);
        for (key, value) in [
            ("action", action.to_owned()),
            ("lvName", volume.name.clone()),
            ("ns", format!("lvm-{sr}")),
            ("uuid", volume.vdi.to_string()),
        ] {
            members.push((format!("{key}{}", n + 1), Value::text(value)));
        }
    }
    Value::Struct(members.into_iter().collect())
}

/// The SR and the changes that arguments of [`MULTI`] say.
type Changes = (SrUuid, Vec<(VolumeChange, String, Option<VdiUuid>)>);

fn read(called: &Called) -> Result<Changes, String> {
    let group = called.text("vgName").ok_or("vgName is missing")?;
    let sr = group.strip_prefix(GROUP).and_then(|sr| sr.parse().ok()).ok_or("vgName is no group of an SR")?;
    let mut changes = Vec::new();
    while let Some(action) = called.text(&format!("action{}", changes.len() + 1)) {
        let of = |key: &str| called.text(&format!("{key}{}", changes.len() + 1));
        let known =
            ACTIONS.iter().find(|(known, _)| *known == action).ok_or(format!("there is no action {action:?}"))?;
        let vdi = of("uuid").and_then(|uuid| uuid.parse::<VdiUuid>().ok());
        let name = of("lvName").unwrap_or_default();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if !name.chars().all(is_plain) || name.starts_with('-') || (name.is_empty() && known.1 != VolumeChange::Forget)
        {
            return Err(format!("{name:?} is no volume of an SR"));
        }
        changes.push((known.1, name.to_owned(), vdi));
    }
    Ok((sr, changes))
}

/// Carries one call out; returns not at all if it is for the Python plug-in.
pub(super) fn answer(args: &[OsString]) -> Result<String, Failure> {
    let called = Called::read(NAME, args)?;
    let function = called.function.clone();
    if function != MULTI {
        return other(&called, args);
    }
    let (sr, changes) = read(&called).map_err(|why: String| not_understood(NAME, &why))?;
    let Some(session) = open_attached(&called, sr).map_err(|why| failed(&function, why))? else {
        return Err(hand_over(NAME, args, &function));
    };
    let shown = format!("{NAME} of SR {sr}: {changes:?}");
    syslog::write(&shown);
    for (change, volume, vdi) in changes {
        session.follow(change, &volume, vdi, Instant::now() + PATIENCE).map_err(|error| {
            let why = one_line(&error);
            syslog::write(&format!("{shown} failed: {why}"));
            failed(&function, why)
        })?;
    }
    Ok("True".to_owned())
}

/// What asks for a tapdisk says by which path.
fn other(called: &Called, args: &[OsString]) -> Result<String, Failure> {
    let of_path = |path: &str| path.split('/').find_map(|part| part.strip_prefix(GROUP)?.parse::<SrUuid>().ok());
    let sr = called.text("path").and_then(of_path).filter(|_| called.function == "commit_tapdisk");
    match sr.map(|sr| open_attached(called, sr)) {
        Some(Ok(Some(_))) => {
            Err(failed(&called.function, "this host serves the disk without tapdisk; the SR's master merges it"))
        }
        _ => Err(hand_over(NAME, args, &called.function)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
    const VDI: &str = "98de866e-b035-4b1a-a571-613bff542b89";

    fn called(members: &[(&str, &str)]) -> Called {
        let members = members.iter().map(|(key, value)| ((*key).to_owned(), Value::text(*value))).collect();
        Called { function: MULTI.to_owned(), session: String::new(), members }
    }

    #[test]
    fn what_is_asked_of_a_host_is_read_there() {
        let volume = VolumeOf { vdi: VDI.parse().unwrap(), name: format!("VHD-{VDI}") };
        let changes: Vec<_> = ACTIONS.iter().map(|(_, change)| (*change, &volume)).collect();
        let Value::Struct(members) = arguments(SR.parse().unwrap(), &changes) else { panic!() };
        let (sr, read) = read(&Called { function: MULTI.to_owned(), session: String::new(), members }).unwrap();
        assert_eq!(sr.to_string(), SR);
        let wanted: Vec<_> = changes.iter().map(|(change, of)| (*change, of.name.clone(), Some(of.vdi))).collect();
        assert_eq!(read, wanted);
    }

    #[test]
    fn what_the_python_drivers_ask_is_read_and_nothing_else() {
        let group = format!("{GROUP}{SR}");
        let volume = format!("VHD-{VDI}");
        let clone = called(&[("vgName", &group), ("action1", "refresh"), ("lvName1", &volume)]);
        assert_eq!(read(&clone).unwrap().1, [(VolumeChange::Refresh, volume.clone(), None)]);
        let cleanup =
            called(&[("vgName", &group), ("action1", "cleanupLockAndRefcount"), ("uuid1", VDI), ("ns1", "lvm-x")]);
        assert_eq!(read(&cleanup).unwrap().1, [(VolumeChange::Forget, String::new(), Some(VDI.parse().unwrap()))]);
        for (vg, action, name) in [
            ("vg0", "refresh", volume.as_str()),
            (&group, "remove", &volume),
            (&group, "refresh", "../x"),
            (&group, "refresh", "-f"),
            (&group, "refresh", ""),
        ] {
            assert!(
                read(&called(&[("vgName", vg), ("action1", action), ("lvName1", name)])).is_err(),
                "{vg} {action} {name}"
            );
        }
    }
}
