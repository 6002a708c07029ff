//! Claims: which medium belongs to whom. The values and their rules; [`ledger`](super::ledger) keeps them on disk.
//!
//! A claim is keyed by the identity of a medium ([`identity`](super::identity)), never by the name of a device. The medium is
//! the authority on what it holds: a claim adds what a medium cannot say, as a reservation before anything is on it, or the
//! owner of a medium that is absent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{LayoutUuid, SrUuid};

/// The layout of what was made by hand and not by a layout.
pub const BY_HAND: &str = "-";

/// The layout of what the database of xapi has. No layout can have that name, and the file has no such claim.
pub const BY_AGENT: &str = "xapi:";

/// The form of the file that this release reads and writes.
pub const VERSION: u32 = 1;

/// The fact that a medium belongs to an SR or a slot of a layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The medium.
    pub identity: String,
    /// The host that made the claim.
    pub host: String,
    /// The name by which the device was called then. Only people read it.
    pub dev: String,
    /// The layout, or [`BY_HAND`].
    pub layout: String,
    /// The class of the slot, as `lvm`; empty if it is not known.
    pub class: String,
    /// The index of the slot; none for a claim by hand.
    pub index: Option<u16>,
    /// The SR that is or will be on the medium; none for a reservation by hand.
    pub sr_uuid: Option<SrUuid>,
    /// When the claim was made: seconds since 1970.
    pub since: u64,
}

impl Claim {
    /// Whether two claims are of one owner.
    pub fn has_owner_of(&self, other: &Claim) -> bool {
        (&self.layout, &self.class, self.index, self.sr_uuid)
            == (&other.layout, &other.class, other.index, other.sr_uuid)
    }

    /// Whether the claim holds whatever is on the medium. One that sr_create made by hand says no more than the medium does.
    pub fn is_reservation(&self) -> bool {
        self.layout != BY_HAND || self.sr_uuid.is_none()
    }

    /// The owner, in words.
    pub fn owner(&self) -> String {
        let sr = self.sr_uuid.map(|sr| format!("SR {sr}"));
        match (self.layout.as_str(), self.index, sr) {
            (BY_HAND, _, Some(sr)) => sr,
            (BY_AGENT, _, Some(sr)) => format!("{sr}, which xapi has"),
            (BY_HAND, _, None) => "reserved by hand".to_owned(),
            (layout, Some(index), Some(sr)) => format!("{layout} {}/{index}, {sr}", self.class),
            (layout, Some(index), None) => format!("{layout} {}/{index}", self.class),
            (layout, None, sr) => sr.map_or_else(|| layout.to_owned(), |sr| format!("{layout}, {sr}")),
        }
    }
}

/// A layout that has or had claims. Its UUID outlives its removal, so that its SRs get their UUIDs again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutRecord {
    pub uuid: String,
    /// Seconds since 1970.
    pub since: u64,
    pub removed: bool,
}

/// All claims of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    pub version: u32,
    /// Grows by one with every change.
    pub generation: u64,
    pub layouts: BTreeMap<String, LayoutRecord>,
    /// In the order of identities, no identity twice.
    pub claims: Vec<Claim>,
}

impl Default for Claims {
    fn default() -> Claims {
        Claims { version: VERSION, generation: 0, layouts: BTreeMap::new(), claims: Vec::new() }
    }
}

impl Claims {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// A clause that says what is wrong.
    pub fn parse(text: &[u8]) -> Result<Claims, String> {
        let claims: Claims = serde_json::from_slice(text).map_err(|e| format!("it is no list of claims: {e}"))?;
        if claims.version != VERSION {
            return Err(format!("it has version {}, and this release reads version {VERSION}", claims.version));
        }
        if let Some(pair) = claims.claims.windows(2).find(|pair| pair[0].identity >= pair[1].identity) {
            return Err(format!("the claim of {} is there twice or out of order", pair[1].identity));
        }
        Ok(claims)
    }

    /// The text of the file: one claim a line, so that two states can be compared by eye.
    pub fn text(&self) -> String {
        let claims: Vec<String> = self.claims.iter().map(|claim| format!("\n{}", json(claim))).collect();
        format!(
            "{{\"version\":{},\"generation\":{},\"layouts\":{},\"claims\":[{}\n]}}\n",
            self.version,
            self.generation,
            json(&self.layouts),
            claims.join(",")
        )
    }

    /// The claim of a medium.
    pub fn of(&self, identity: &str) -> Option<&Claim> {
        let at = self.claims.binary_search_by(|claim| claim.identity.as_str().cmp(identity)).ok()?;
        Some(&self.claims[at])
    }

    /// The name of a layout, also of one that was removed; its UUID if this host does not know the name.
    pub fn layout_name(&self, layout: LayoutUuid) -> String {
        let uuid = layout.to_string();
        let known = self.layouts.iter().find(|(_, record)| record.uuid == uuid);
        known.map_or(uuid.clone(), |(name, _)| name.clone())
    }

    /// The claims of a medium, of its partitions, and of the disk that it is a partition of.
    pub fn overlapping<'a>(&'a self, identity: &str) -> impl Iterator<Item = &'a Claim> + use<'a> {
        let identity = identity.to_owned();
        let is_within = |part: &str, disk: &str| part.strip_prefix(disk).is_some_and(|rest| rest.starts_with("-part"));
        self.claims.iter().filter(move |claim| {
            let claimed = claim.identity.as_str();
            claimed == identity || is_within(claimed, &identity) || is_within(&identity, claimed)
        })
    }

    /// Adds a claim, or replaces the one of the medium. Whether anything changed.
    pub fn put(&mut self, claim: Claim) -> bool {
        match self.claims.binary_search_by(|it| it.identity.cmp(&claim.identity)) {
            Ok(at) if self.claims[at].has_owner_of(&claim) => false,
            Ok(at) => {
                self.claims[at] = claim;
                true
            }
            Err(at) => {
                self.claims.insert(at, claim);
                true
            }
        }
    }

    /// Removes the claims that `goes` accepts, and gives them back.
    pub fn release(&mut self, goes: impl Fn(&Claim) -> bool) -> Vec<Claim> {
        let (gone, kept) = std::mem::take(&mut self.claims).into_iter().partition(|claim| goes(claim));
        self.claims = kept;
        gone
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("a claim is plain data")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A claim of a layout, or by hand of an SR if `layout` is [`BY_HAND`].
    pub fn claim(identity: &str, layout: &str) -> Claim {
        Claim {
            identity: identity.to_owned(),
            host: "node1".to_owned(),
            dev: "/dev/sda".to_owned(),
            layout: layout.to_owned(),
            class: "lvm".to_owned(),
            index: (layout != BY_HAND).then_some(3),
            sr_uuid: "87b8646b-b800-9500-cb7b-af3b74e02f5c".parse().ok(),
            since: 1_700_000_000,
        }
    }

    proptest! {
        #[test]
        fn claims_are_read_back_as_they_were_written(names in prop::collection::vec(".{0,12}", 0..8)) {
            let mut claims = Claims { generation: 7, ..Claims::default() };
            for name in &names {
                claims.put(claim(name, "rack1"));
                prop_assert!(claims.of(name).is_some());
            }
            claims.layouts.insert("rack1".to_owned(), LayoutRecord { uuid: "u".to_owned(), since: 1, removed: false });
            prop_assert_eq!(Claims::parse(claims.text().as_bytes()).unwrap(), claims);
        }
    }

    #[test]
    fn a_file_that_is_not_whole_is_refused() {
        let mut claims = Claims::default();
        claims.put(claim("a", "rack1"));
        claims.put(claim("b", "rack1"));
        let text = claims.text();
        for bad in [
            "",
            "{}",
            &text[..text.len() - 3],
            &text.replace("\"version\":1", "\"version\":2"),
            &text.replace("\"identity\":\"b\"", "\"identity\":\"a\""),
            &text.replace("\"host\"", "\"hoist\""),
        ] {
            assert!(Claims::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_claim_that_its_owner_has_already_changes_nothing() {
        let mut claims = Claims::default();
        assert!(claims.put(claim("a", "rack1")));
        assert!(!claims.put(Claim { since: 9, dev: "/dev/sdb".to_owned(), ..claim("a", "rack1") }));
        assert!(claims.put(claim("a", BY_HAND)));
        assert_eq!(claims.claims.len(), 1);
        assert_eq!(claims.release(|it| it.identity == "x"), []);
        assert_eq!(claims.release(|it| it.identity == "a").len(), 1);
    }

    #[test]
    fn a_disk_and_its_partitions_overlap_and_two_partitions_do_not() {
        let mut claims = Claims::default();
        for identity in ["wwid:a", "wwid:b-part2", "wwid:ab"] {
            claims.put(claim(identity, "rack1"));
        }
        let of = |identity: &str| claims.overlapping(identity).map(|it| it.identity.clone()).collect::<Vec<_>>();
        assert_eq!(of("wwid:a"), ["wwid:a"]);
        assert_eq!(of("wwid:a-part1"), ["wwid:a"]);
        assert_eq!(of("wwid:b"), ["wwid:b-part2"]);
        assert_eq!(of("wwid:b-part2"), ["wwid:b-part2"]);
        assert!(of("wwid:b-part1").is_empty() && of("wwid:b-part20").is_empty());
    }

    #[test]
    fn an_owner_is_told_in_words() {
        let by_hand = claim("a", BY_HAND);
        assert_eq!(by_hand.owner(), "SR 87b8646b-b800-9500-cb7b-af3b74e02f5c");
        assert!(!by_hand.is_reservation());
        let reserved = Claim { sr_uuid: None, ..by_hand };
        assert_eq!(reserved.owner(), "reserved by hand");
        assert!(reserved.is_reservation());
        assert!(claim("a", "rack1").owner().starts_with("rack1 lvm/3, SR 87b8646b"));
    }
}
