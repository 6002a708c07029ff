//! SCSI devices of this host that are passed through as they are: disks, tapes, changers.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::record;
use crate::error::{Error, Result};
use crate::registry::claims::{Claim, Claims};
use crate::registry::{identity, ledger, signature, view};
use crate::sys::blockdev;
use crate::sys::scsidev::{self, Address, Device};
use crate::types::{VdiUuid, seconds_now};

/// The layout in a claim of a device that is passed through. No layout has such a name.
const CLAIMED_BY: &str = "sm target";

/// How the kernel's target takes a device from the SCSI host that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hba {
    /// The backstore has any number, and names host and device.
    Virtual,
    /// The backstore is the SCSI host: its number is that of the host. The older mode.
    Physical,
}

impl Hba {
    pub const ALL: [Hba; 2] = [Hba::Virtual, Hba::Physical];

    pub fn word(self) -> &'static str {
        match self {
            Hba::Virtual => "virtual",
            Hba::Physical => "physical",
        }
    }
}

/// A device that is passed through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Physical {
    /// Where it was when it was published. By its wwid it is found elsewhere after a start.
    pub address: Address,
    /// Empty if the device gives none.
    pub wwid: String,
    pub hba: Hba,
    /// The number of the backstore that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// The UUID by which the kernel knows its publication, if no record tells of that: the device may be gone, or another one.
    #[serde(skip)]
    pub known_as: Option<VdiUuid>,
}

impl Physical {
    /// A device as it is published.
    ///
    /// # Errors
    /// [`Error::NoDevice`] for an index that is no SCSI host in the mode [`Hba::Physical`]; [`Error::Invalid`] for that of another.
    pub fn new(device: &Device, hba: Hba, index: Option<u32>) -> Result<Physical> {
        if let (Hba::Physical, Some(index)) = (hba, index) {
            on_host(device.address, index)?;
        }
        Ok(Physical { address: device.address, wwid: device.wwid.clone(), hba, index, known_as: None })
    }

    /// The UUID by which its publication is known: it stays as long as the wwid does.
    pub fn id(&self) -> VdiUuid {
        self.known_as.unwrap_or_else(|| self.own_id())
    }

    fn own_id(&self) -> VdiUuid {
        match self.wwid.as_str() {
            "" => VdiUuid::of_device(&self.address.to_string()),
            wwid => VdiUuid::of_device(wwid),
        }
    }

    /// The device, where it is now.
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub fn find(&self) -> Result<Device> {
        scsidev::find(&self.wwid, self.address)
    }

    /// Claims it, so that no SR is made on it. A tape has no identity that could be claimed. Idempotent.
    ///
    /// # Errors
    /// Those of [`ledger::change`]; [`Error::DeviceInUse`] if somebody else claimed it.
    pub fn claim(&self, deadline: Instant) -> Result<()> {
        let device = self.find()?;
        let Some(identity) = device.is_disk.then(|| identity::of_path(&device.node)).flatten() else { return Ok(()) };
        let claim = Claim {
            identity: identity.clone(),
            host: view::host_name(),
            dev: device.node.display().to_string(),
            layout: CLAIMED_BY.to_owned(),
            class: "passthrough".to_owned(),
            index: None,
            sr_uuid: None,
            since: seconds_now().unwrap_or_default(),
        };
        ledger::change(deadline, |claims| match claim_of_others(claims, &identity) {
            Some(holder) => Err(Error::DeviceInUse { device: device.node.display().to_string(), holder }),
            None => Ok((claims.put(claim), ())),
        })
    }

    /// Gives the claim back. Idempotent; of a device that is gone, the claim is found by the wwid.
    ///
    /// # Errors
    /// Those of [`ledger::change`].
    pub fn release(&self, deadline: Instant) -> Result<()> {
        // Another device may be at the address since, and what is claimed of it is not ours to end.
        if !ledger::is_kept()? || self.id() != self.own_id() {
            return Ok(());
        }
        let identity = match self.find() {
            Ok(device) => identity::of_path(&device.node),
            Err(_) => (!self.wwid.is_empty()).then(|| identity::of_wwid(&self.wwid)),
        };
        let goes = |claim: &Claim| claim.layout == CLAIMED_BY && Some(&claim.identity) == identity.as_ref();
        ledger::change(deadline, |claims| Ok((!claims.release(goes).is_empty(), ())))
    }
}

/// Refuses a device that somebody uses or has claimed, and a disk that holds something: a filesystem, or an SR whose volumes are
/// not active, has no user that the kernel knows of. `force`: whatever it holds.
///
/// # Errors
/// [`Error::DeviceInUse`]; [`Error::Io`].
pub fn refuse_in_use(device: &Device, force: bool) -> Result<()> {
    let in_use = |holder: String| Err(Error::DeviceInUse { device: device.node.display().to_string(), holder });
    if record::all()?.into_iter().filter_map(|(_, read)| read.ok()?.physical).any(|it| it.address == device.address) {
        return in_use("it is passed through already".to_owned());
    }
    if !device.is_disk {
        return Ok(());
    }
    if let Some(holder) = blockdev::exclusive_holder(&device.node)?.or_else(|| blockdev::openers(&device.node)) {
        return in_use(holder);
    }
    if let Some(identity) = identity::of_path(&device.node)
        && ledger::is_kept()?
        && let Some(holder) = claim_of_others(&ledger::read()?, &identity)
    {
        return in_use(holder);
    }
    match signature::holds(&device.node) {
        Some(what) if !force => in_use(format!("{what}; --force passes it through with all that it holds")),
        _ => Ok(()),
    }
}

/// The claim of a medium, or of a part of it, that is no claim of a device that is passed through: as a clause.
fn claim_of_others(claims: &Claims, identity: &str) -> Option<String> {
    let other = claims.overlapping(identity).find(|claim| claim.layout != CLAIMED_BY)?;
    Some(format!("it is claimed: {}", other.owner()))
}

/// Refuses a device that is not on the SCSI host with the number of its backstore.
///
/// # Errors
/// [`Error::NoDevice`] if there is no such host; [`Error::Invalid`] if the device is on another.
pub fn on_host(address: Address, host: u32) -> Result<()> {
    if !scsidev::has_host(host) {
        return Err(no_host(host));
    }
    if address.host != host {
        let expected = format!("it is not on the SCSI host {host}");
        return Err(Error::Invalid { what: "device", value: address.to_string(), expected });
    }
    Ok(())
}

/// That there is no SCSI host of this number.
pub fn no_host(host: u32) -> Error {
    Error::NoDevice { device: format!("host{host}"), why: "this machine has no such SCSI host".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_of_others_is_found_behind_one_of_ours() {
        let claim = |identity: &str, layout: &str| Claim {
            identity: identity.to_owned(),
            host: String::new(),
            dev: String::new(),
            layout: layout.to_owned(),
            class: String::new(),
            index: None,
            sr_uuid: None,
            since: 0,
        };
        let mut claims = Claims::default();
        claims.put(claim("scsi-1", CLAIMED_BY));
        assert_eq!(claim_of_others(&claims, "scsi-1"), None);
        claims.put(claim("scsi-1-part2", "fast"));
        assert_eq!(claim_of_others(&claims, "scsi-1").unwrap(), "it is claimed: fast");
    }

    #[test]
    fn a_device_is_known_by_its_wwid_wherever_it_is() {
        let at = |address: &str, wwid: &str| Physical {
            address: address.parse().unwrap(),
            wwid: wwid.to_owned(),
            hba: Hba::Virtual,
            index: None,
            known_as: None,
        };
        assert_eq!(at("2:0:0:0", "naa.5").id(), at("3:0:0:0", "naa.5").id());
        assert_ne!(at("2:0:0:0", "").id(), at("3:0:0:0", "").id());
        assert!(matches!(on_host("2:0:0:0".parse().unwrap(), 4_000_000_000), Err(Error::NoDevice { .. })));
    }
}
