//! The persistent lock of a disk: users that hold it across calls, kills and hosts, whatever has the disk attached.

use crate::error::{Error, Result};
use crate::vdi::place::{Holders, Place, in_use};

/// Takes the persistent lock of a disk for `user`. Several users hold it only if the VDI is shareable; `force` breaks the
/// lock of others.
///
/// # Errors
/// [`Error::LockRefused`].
pub fn lock(place: &dyn Place, user: &str, force: bool) -> Result<()> {
    let seen = place.holders()?;
    let shareable = place.params()?.shareable;
    let mut users = seen.users.clone();
    if users.iter().any(|u| u == user) {
        place.settle_records()?;
        return Err(refused(place, format!("it is locked by {user:?} already")));
    }
    if !users.is_empty() && !shareable {
        if !force {
            return Err(refused(place, format!("it is locked by {}; FORCE TRUE breaks the lock", named(&users))));
        }
        users.clear();
    }
    users.push(user.to_owned());
    change(place, &seen, users)
}

/// Gives back the persistent lock that `user` holds; `force` ends the lock of every user.
///
/// # Errors
/// [`Error::LockRefused`].
pub fn unlock(place: &dyn Place, user: &str, force: bool) -> Result<()> {
    let seen = place.holders()?;
    let mut users = seen.users.clone();
    if users.is_empty() {
        place.settle_records()?;
        return Err(refused(place, "it is not locked".to_owned()));
    }
    if users.iter().any(|u| u == user) {
        users.retain(|u| u != user);
    } else if force {
        users.clear();
    } else {
        return Err(refused(place, format!("{user:?} does not hold its lock, {} does", named(&users))));
    }
    change(place, &seen, users)
}

/// Prefix of the user name under which vdi_delete holds the persistent lock where several hosts must see it; the host's
/// name follows. A killed vdi_delete leaves it, so only vdi_lock treats it as held.
pub const DELETING: &str = "vdi_delete on ";

/// Turns the lock that `user` alone has into that of a deletion, which keeps others from locking the disk and does not keep it from
/// being deleted. Idempotent. `false`: the disk is not locked at all.
///
/// # Errors
/// [`Error::VdiInUse`] while another user holds the lock.
pub fn lock_to_delete(place: &dyn Place, user: &str) -> Result<bool> {
    let seen = place.holders()?;
    match seen.users.as_slice() {
        [] => Ok(false),
        users if users.iter().all(|it| it.starts_with(DELETING)) => Ok(true),
        [one] if one == user => change(place, &seen, vec![format!("{DELETING}{user}")]).map(|()| true),
        users => Err(in_use(place, format!("{}, who locked it", named(users)))),
    }
}

/// Ends the lock of a deletion that failed. Idempotent.
///
/// # Errors
/// [`Error::LockRefused`] if another call changed the lock meanwhile.
pub fn unlock_undeleted(place: &dyn Place) -> Result<()> {
    let seen = place.holders()?;
    match !seen.users.is_empty() && seen.users.iter().all(|it| it.starts_with(DELETING)) {
        true => change(place, &seen, Vec::new()),
        false => Ok(()),
    }
}

/// Refuses what no user of a disk may see: a change while its persistent lock is held.
///
/// # Errors
/// [`Error::VdiInUse`] while a user holds the persistent lock.
pub fn refuse_if_locked(place: &dyn Place) -> Result<()> {
    let mut users = place.holders()?.users;
    users.retain(|user| !user.starts_with(DELETING));
    match users {
        users if users.is_empty() => Ok(()),
        users => Err(in_use(place, format!("{}, who locked it (vdi_unlock gives it back)", named(&users)))),
    }
}

fn change(place: &dyn Place, seen: &Holders, users: Vec<String>) -> Result<()> {
    if place.set_holders(seen, users)? {
        return Ok(());
    }
    let now = place.holders()?;
    Err(refused(place, format!("another call was faster; it is now locked by {}", named(&now.users))))
}

fn refused(place: &dyn Place, why: String) -> Error {
    Error::LockRefused { vdi: place.vdi(), sr: place.sr(), why }
}

fn named(users: &[String]) -> String {
    match users {
        [] => "nobody".to_owned(),
        users => users.iter().map(|u| format!("{u:?}")).collect::<Vec<_>>().join(", "),
    }
}
