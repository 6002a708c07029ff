//! The claims made anew from what the devices hold.

use std::collections::BTreeMap;

use super::claims::{BY_HAND, Claim, Claims};
use crate::types::SrUuid;

/// An SR that is found on a medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub identity: String,
    pub dev: String,
    pub class: String,
    pub sr: SrUuid,
}

/// The claims that follow from the media, and what was changed, a line for each.
///
/// `before`: the claims that there were; `None` if they cannot be read. A claim of a medium that is absent, and a reservation
/// of one that holds no SR, stay: no medium says otherwise. The SR that a medium holds counts more than a claim.
pub fn rebuilt(
    before: Option<&Claims>,
    found: &[Found],
    present: &[String],
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
    for found in by_identity.values() {
        let claim = Claim {
            identity: found.identity.clone(),
            host: host.to_owned(),
            dev: found.dev.clone(),
            layout: BY_HAND.to_owned(),
            class: found.class.clone(),
            index: None,
            sr_uuid: Some(found.sr),
            since: now,
        };
        match claims.of(&found.identity) {
            Some(known) if known.sr_uuid == Some(found.sr) => {}
            Some(known) => {
                said.push(format!(
                    "conflict: {} is claimed by {}, and holds SR {}",
                    found.identity,
                    known.owner(),
                    found.sr
                ));
                claims.put(claim);
            }
            None => {
                said.push(format!("claim {} for SR {} ({})", found.identity, found.sr, found.dev));
                claims.put(claim);
            }
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
        Found { identity, dev, class, sr: sr.parse().unwrap() }
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
        let (after, said) = rebuilt(Some(&before), &media, &present, "node1", 1);
        let identities: Vec<&str> = after.claims.iter().map(|claim| claim.identity.as_str()).collect();
        assert_eq!(identities, ["absent", "held", "new", "other", "reserved"]);
        assert_eq!(after.of("other").unwrap().sr_uuid, OTHER.parse().ok());
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].starts_with("release wiped:"), "{said:?}");
        assert!(said.iter().any(|line| line.starts_with("conflict: other")), "{said:?}");
        // The second time nothing is left to do.
        let (again, said) = rebuilt(Some(&after), &media, &present, "node1", 2);
        assert_eq!((again, said), (after, vec![]));
    }

    #[test]
    fn without_claims_the_media_alone_decide() {
        let (after, said) = rebuilt(None, &[found("held", SR)], &["held".to_owned()], "node1", 1);
        assert_eq!((after.claims.len(), said.len()), (1, 1));
    }
}
