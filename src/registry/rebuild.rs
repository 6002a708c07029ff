//! The claims made anew from what the devices hold.

use std::collections::BTreeMap;

use super::claims::{BY_HAND, Claim, Claims, LayoutRecord};
use crate::types::{LayoutUuid, SlotMark, SrUuid};

/// An SR that is found on a medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub identity: String,
    pub dev: String,
    pub class: String,
    pub sr: SrUuid,
    /// The slot of a layout that it was made for, as the medium says.
    pub slot: Option<SlotMark>,
}

/// The claims that follow from the media, and what was changed, a line for each.
///
/// `reserved`: the claims of the slots of installed layouts, as long as no medium says otherwise. `installed`: the names of these. An SR that was made for a slot of one of them is claimed for that slot. If its
/// layout is not installed, it is left as it is: a layout that is removed keeps its SRs, and takes them again when it is applied.
///
/// `before`: the claims that there were; `None` if they cannot be read. A claim of a medium that is absent, and a reservation
/// of one that holds no SR, stay: no medium says otherwise. The SR that a medium holds counts more than a claim.
pub fn rebuilt(
    before: Option<&Claims>,
    found: &[Found],
    present: &[String],
    reserved: &[Claim],
    installed: &BTreeMap<LayoutUuid, String>,
    host: &str,
    now: u64,
) -> (Claims, Vec<String>) {
    let by_identity: BTreeMap<&str, &Found> = found.iter().map(|found| (found.identity.as_str(), found)).collect();
    let mut claims = before.cloned().unwrap_or_default();
    let mut said = Vec::new();
    let is_stale = |claim: &Claim| {
        let is_here = present.contains(&claim.identity);
        is_here && !claim.is_reservation() && !by_identity.contains_key(claim.identity.as_str())
    };
    for gone in claims.release(is_stale) {
        said.push(format!("release {}: {} is not on it any more", gone.identity, gone.owner()));
    }
    for (uuid, name) in installed {
        let uuid = uuid.to_string();
        if claims.layouts.get(name).is_none_or(|known| known.uuid != uuid || known.removed) {
            said.push(format!("add layout {name}, which is installed"));
            claims.layouts.insert(name.clone(), LayoutRecord { uuid, since: now, removed: false });
        }
    }
    for found in by_identity.values() {
        let slot = found.slot.and_then(|slot| Some((installed.get(&slot.layout)?, slot)));
        let claim = Claim {
            identity: found.identity.clone(),
            host: host.to_owned(),
            dev: found.dev.clone(),
            layout: slot.map_or(BY_HAND, |(name, _)| name.as_str()).to_owned(),
            class: found.class.clone(),
            index: slot.map(|(_, slot)| slot.index),
            sr_uuid: Some(found.sr),
            since: now,
        };
        match claims.of(&found.identity) {
            Some(known) if known.has_owner_of(&claim) => {}
            // The medium does not say which slot of which layout it is of, so the claim adds that.
            Some(known) if slot.is_none() && known.sr_uuid == Some(found.sr) => {}
            Some(known) => {
                let holds = slot.map(|(name, slot)| format!(" of {name} {}", slot.place())).unwrap_or_default();
                said.push(format!(
                    "conflict: {} is claimed by {}, and holds SR {}{holds}",
                    found.identity,
                    known.owner(),
                    found.sr
                ));
                claims.put(claim);
            }
            None if found.slot.is_some() && slot.is_none() => {}
            None => {
                said.push(format!("claim {} for {} ({})", found.identity, claim.owner(), found.dev));
                claims.put(claim);
            }
        }
    }
    for claim in reserved {
        if claims.overlapping(&claim.identity).next().is_none() {
            said.push(format!("claim {} for {} ({})", claim.identity, claim.owner(), claim.dev));
            claims.put(claim.clone());
        }
    }
    (claims, said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::claims::tests::claim;

    fn found(identity: &str, sr: &str) -> Found {
        let [identity, dev, class] = [identity, "/dev/sda", "lvm"].map(str::to_owned);
        Found { identity, dev, class, sr: sr.parse().unwrap(), slot: None }
    }

    fn rebuilt(before: Option<&Claims>, found: &[Found], present: &[String]) -> (Claims, Vec<String>) {
        super::rebuilt(before, found, present, &[], &BTreeMap::new(), "node1", 1)
    }

    const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
    const OTHER: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5d";

    #[test]
    fn the_media_count_more_than_the_claims_and_absent_media_stay_claimed() {
        let mut before = Claims::default();
        for (identity, layout) in
            [("absent", "-"), ("held", "-"), ("other", "-"), ("reserved", "rack1"), ("wiped", "-")]
        {
            before.put(claim(identity, layout));
        }
        let present = ["held", "new", "other", "reserved", "wiped"].map(str::to_owned);
        let media = [found("held", SR), found("new", SR), found("other", OTHER)];
        let (after, said) = rebuilt(Some(&before), &media, &present);
        let identities: Vec<&str> = after.claims.iter().map(|claim| claim.identity.as_str()).collect();
        assert_eq!(identities, ["absent", "held", "new", "other", "reserved"]);
        assert_eq!(after.of("other").unwrap().sr_uuid, OTHER.parse().ok());
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].starts_with("release wiped:"), "{said:?}");
        assert!(said.iter().any(|line| line.starts_with("conflict: other")), "{said:?}");
        // The second time nothing is left to do.
        let (again, said) = rebuilt(Some(&after), &media, &present);
        assert_eq!((again, said), (after, vec![]));
    }

    #[test]
    fn without_claims_the_media_alone_decide() {
        let (after, said) = rebuilt(None, &[found("held", SR)], &["held".to_owned()]);
        assert_eq!((after.claims.len(), said.len()), (1, 1));
    }

    #[test]
    fn an_sr_of_an_installed_layout_gets_the_claim_of_its_slot_again() {
        let slot: SlotMark = "6ba7b810-9dad-11d1-80b4-00c04fd430c8/lvm/7".parse().unwrap();
        let installed = BTreeMap::from([(slot.layout, "rack1".to_owned())]);
        let media = [Found { slot: Some(slot), ..found("held", SR) }];
        let present = ["held".to_owned()];
        let (after, said) = super::rebuilt(None, &media, &present, &[], &installed, "node1", 1);
        let claim = after.of("held").unwrap();
        assert_eq!((claim.layout.as_str(), claim.index, claim.sr_uuid), ("rack1", Some(7), SR.parse().ok()));
        assert_eq!(after.layouts["rack1"].uuid, slot.layout.to_string());
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(
            super::rebuilt(Some(&after), &media, &present, &[], &installed, "node1", 2),
            (after.clone(), vec![])
        );
        // The medium says which slot it is of, so a claim of another slot is wrong.
        let mut wrong = after.clone();
        wrong.put(Claim { index: Some(1), ..claim.clone() });
        let (again, said) = super::rebuilt(Some(&wrong), &media, &present, &[], &installed, "node1", 2);
        assert_eq!(again.of("held").unwrap().index, Some(7));
        assert!(said[0].starts_with("conflict: held is claimed by rack1 lvm/1"), "{said:?}");
    }

    #[test]
    fn a_slot_of_an_installed_layout_is_reserved_again_unless_its_medium_says_otherwise() {
        let reserved = [claim("free", "rack1"), claim("held", "rack1")];
        let present = ["free", "held"].map(str::to_owned);
        let media = [found("held", OTHER)];
        let (after, said) = super::rebuilt(None, &media, &present, &reserved, &BTreeMap::new(), "node1", 1);
        assert_eq!(after.of("free"), Some(&reserved[0]));
        assert_eq!(after.of("held").unwrap().layout, BY_HAND);
        assert_eq!(said.len(), 2, "{said:?}");
    }

    #[test]
    fn an_sr_of_a_layout_that_is_not_installed_stays_adoptable() {
        let slot = "6ba7b810-9dad-11d1-80b4-00c04fd430c8/lvm/7".parse().ok();
        let media = [Found { slot, ..found("held", SR) }];
        assert_eq!(rebuilt(None, &media, &["held".to_owned()]), (Claims::default(), vec![]));
    }
}
