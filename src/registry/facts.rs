//! A device as the kernel and its signatures describe it, and what follows: its state, by tests in a fixed order.

use std::collections::BTreeSet;
use std::fmt;

use super::claims::Claim;
use crate::types::{Size, SlotMark};

/// The outcome of the look for a signature on a device, in blkid's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// The device was not read, as another test failed already.
    NotRead,
    None,
    /// Its type in blkid's words, such as `LVM2_member`, the volume group that it belongs to, and the slot of a layout that the
    /// SR in the group was made for.
    Found {
        kind: String,
        group: Option<String>,
        slot: Option<SlotMark>,
    },
    /// It could not be read, and why.
    Unreadable(String),
}

/// A device that uses another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The kernel's name, as `dm-0`.
    pub name: String,
    /// The name that people use: a device-mapper name, or the kernel's.
    pub shown: String,
    pub is_multipath: bool,
}

/// A whole device of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's name, as `sda`.
    pub name: String,
    /// The device number, as [`makedev`](nix::sys::stat::makedev) gives it.
    pub number: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block.
    pub block: u32,
    pub read_only: bool,
    pub rotational: bool,
    /// The stable name of the medium; `None` if it has none.
    pub identity: Option<String>,
    pub wwid: String,
    pub serial: String,
    pub model: String,
    pub partitions: Vec<String>,
    /// Of the device and its partitions.
    pub holders: Vec<Holder>,
    /// The use of the device or a partition of it: a mount, in words, or `swap`.
    pub used_as: Option<String>,
    /// Whether the running system stands on it.
    pub is_system: bool,
    /// The VDI that it shows to a guest.
    pub serves: Option<String>,
    /// Why it cannot be opened exclusively.
    pub not_opened: Option<String>,
    pub signature: Signature,
}

/// The facts around a device that its tests need.
pub struct Around<'a> {
    /// Bytes of the smallest device that is of use.
    pub min_size: u64,
    /// Identities that several devices have which no map joins.
    pub duplicates: &'a BTreeSet<String>,
    pub claim: Option<&'a Claim>,
}

/// The state of a device: free to be used, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Free,
    /// It holds an SR that was made for a slot of a layout, and nothing claims it.
    Adoptable,
    Claimed,
    /// The running system stands on it.
    System,
    /// A path of a multipath map, which is offered instead.
    MultipathPath,
    Md,
    Drbd,
    /// Something has it open, mounted or in use as swap.
    Busy,
    Duplicate,
    Partitioned,
    ReadOnly,
    Small,
    Zfs,
    CephOsd,
    Signature(String),
    /// Its signatures cannot be read.
    Unreadable,
    /// It has no stable name, so nothing can claim it.
    Nameless,
    /// A claim names it, and no device of this host has it.
    Missing,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Free => "free",
            State::Adoptable => "adoptable",
            State::Claimed => "claimed",
            State::System => "system",
            State::MultipathPath => "multipath-path",
            State::Md => "md",
            State::Drbd => "drbd",
            State::Busy => "busy",
            State::Duplicate => "duplicate",
            State::Partitioned => "partitioned",
            State::ReadOnly => "readonly",
            State::Small => "small",
            State::Zfs => "zfs",
            State::CephOsd => "ceph-osd",
            State::Signature(kind) => return write!(f, "signature:{kind}"),
            State::Unreadable => "unreadable",
            State::Nameless => "nameless",
            State::Missing => "missing",
        })
    }
}

/// A test that a device has to pass to be free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    pub name: &'static str,
    /// The finding, in words.
    pub found: String,
    /// The state of a device that fails the test; `None`: it passed, or the test was not made.
    pub fails: Option<State>,
    /// `false`: the test was not made, because another failed.
    pub is_made: bool,
}

/// Every test of a device, in the order in which the first failure decides on the state.
pub fn tests(facts: &Facts, around: &Around) -> Vec<Test> {
    let test = |name, is_well: bool, fails: State, found: String| Test {
        name,
        found,
        fails: (!is_well).then_some(fails),
        is_made: true,
    };
    let yes = |text: &Option<String>, none: &str| text.clone().unwrap_or_else(|| none.to_owned());
    let holders = facts.holders.iter().map(|it| it.shown.as_str()).collect::<Vec<_>>().join(", ");
    let path_of = facts.holders.iter().find(|it| it.is_multipath);
    let of_kind = |prefix: &str| facts.holders.iter().any(|it| it.name.starts_with(prefix));
    let kind = match &facts.signature {
        Signature::Found { kind, .. } => kind.as_str(),
        _ => "",
    };
    let is_duplicate = facts.identity.as_ref().is_some_and(|identity| around.duplicates.contains(identity));
    let claim = around.claim;
    let not_used = "nothing".to_owned();
    vec![
        test(
            "not the system's",
            !facts.is_system,
            State::System,
            if facts.is_system { yes(&facts.used_as, "the system stands on it") } else { "it is not".to_owned() },
        ),
        test(
            "no path of a multipath map",
            path_of.is_none(),
            State::MultipathPath,
            path_of.map_or_else(|| "it is none".to_owned(), |map| format!("it is a path of {}", map.shown)),
        ),
        test("not claimed", claim.is_none(), State::Claimed, claim.map_or_else(|| "no claim".to_owned(), Claim::owner)),
        test("no part of an md array", !of_kind("md") && kind != "linux_raid_member", State::Md, holders.clone()),
        test("no part of a DRBD device", !of_kind("drbd") && kind != "drbd", State::Drbd, holders.clone()),
        test("not mounted and no swap", facts.used_as.is_none(), State::Busy, yes(&facts.used_as, "it is neither")),
        test("no disk of a guest", facts.serves.is_none(), State::Busy, yes(&facts.serves, "it is none")),
        test(
            "no device on top",
            facts.holders.is_empty(),
            State::Busy,
            if holders.is_empty() { not_used.clone() } else { holders.clone() },
        ),
        opens(facts),
        test(
            "has an identity",
            facts.identity.is_some(),
            State::Nameless,
            yes(&facts.identity, "neither wwid, serial, GPT nor file"),
        ),
        test(
            "identity is unique",
            !is_duplicate,
            State::Duplicate,
            if is_duplicate {
                "another device has it, and no multipath map joins them"
            } else {
                "no other device has it"
            }
            .to_owned(),
        ),
        test(
            "no partitions",
            facts.partitions.is_empty() && !["gpt", "dos"].contains(&kind),
            State::Partitioned,
            if facts.partitions.is_empty() { kind.to_owned() } else { facts.partitions.join(", ") },
        ),
        test(
            "writable",
            !facts.read_only,
            State::ReadOnly,
            if facts.read_only { "it refuses writes" } else { "it takes writes" }.to_owned(),
        ),
        test(
            "large enough",
            facts.size >= around.min_size,
            State::Small,
            format!("{}, and {} are the least", Size(facts.size), Size(around.min_size)),
        ),
        of_signature(&facts.signature),
    ]
}

fn of_signature(signature: &Signature) -> Test {
    let (fails, found) = match signature {
        Signature::None => (None, "none".to_owned()),
        Signature::NotRead => (None, "the device was not read, because another test failed".to_owned()),
        Signature::Unreadable(why) => (Some(State::Unreadable), why.clone()),
        Signature::Found { kind, group, slot } => {
            let state = match kind.as_str() {
                _ if slot.is_some() => State::Adoptable,
                "zfs_member" => State::Zfs,
                "ceph_bluestore" => State::CephOsd,
                _ => State::Signature(kind.clone()),
            };
            let of_group = group.as_ref().map(|group| format!(" of volume group {group}")).unwrap_or_default();
            let of_slot =
                slot.map(|slot| format!(", made for {} of layout {}", slot.place(), slot.layout)).unwrap_or_default();
            (Some(state), format!("{kind}{of_group}{of_slot}"))
        }
    };
    Test { name: "no signature", found, fails, is_made: *signature != Signature::NotRead }
}

/// What is known to be in use is not opened: that could disturb its user, and tells nothing new.
fn opens(facts: &Facts) -> Test {
    let is_used = facts.is_system || facts.used_as.is_some() || facts.serves.is_some() || !facts.holders.is_empty();
    let (fails, found, is_made) = match &facts.not_opened {
        Some(why) => (Some(State::Busy), why.clone(), true),
        None if is_used => (None, "it was not tried".to_owned(), false),
        None => (None, "it does".to_owned(), true),
    };
    Test { name: "opens exclusively", found, fails, is_made }
}

/// The state that the tests give.
pub fn state(tests: &[Test]) -> State {
    tests.iter().find_map(|test| test.fails.clone()).unwrap_or(State::Free)
}

/// The identities that several devices have. Paths that a multipath map joins count as the map alone.
pub fn duplicates(all: &[Facts]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let offered = all.iter().filter(|facts| !facts.holders.iter().any(|it| it.is_multipath));
    offered.filter_map(|facts| facts.identity.clone()).filter(|identity| !seen.insert(identity.clone())).collect()
}

#[cfg(test)]
pub mod tests_of {
    use super::*;
    use crate::registry::claims::{self, BY_HAND};

    /// A blank disk of 1 TiB.
    pub fn disk(name: &str) -> Facts {
        Facts {
            name: name.to_owned(),
            number: 0,
            size: 1 << 40,
            block: 512,
            read_only: false,
            rotational: false,
            identity: Some(format!("wwid:naa.{name}")),
            wwid: format!("naa.{name}"),
            serial: String::new(),
            model: String::new(),
            partitions: Vec::new(),
            holders: Vec::new(),
            used_as: None,
            is_system: false,
            serves: None,
            not_opened: None,
            signature: Signature::None,
        }
    }

    fn judged(facts: &Facts) -> State {
        state(&tests(facts, &Around { min_size: 1 << 30, duplicates: &BTreeSet::new(), claim: None }))
    }

    fn holder(name: &str, is_multipath: bool) -> Vec<Holder> {
        vec![Holder { name: name.to_owned(), shown: name.to_owned(), is_multipath }]
    }

    fn found(kind: &str) -> Signature {
        Signature::Found { kind: kind.to_owned(), group: None, slot: None }
    }

    /// Of an SR that was made for a slot.
    fn marked() -> Signature {
        let slot = "6ba7b810-9dad-11d1-80b4-00c04fd430c8/lvm/3".parse().ok();
        Signature::Found { kind: "LVM2_member".to_owned(), group: Some("VG_XenStorage-x".to_owned()), slot }
    }

    #[test]
    fn each_fault_of_a_device_gives_its_state() {
        type Spoil = fn(&mut Facts);
        let cases: &[(&str, Spoil)] = &[
            ("free", |_| {}),
            ("free", |it| it.block = 4096),
            ("system", |it| (it.is_system, it.used_as) = (true, Some("the mount on /".to_owned()))),
            ("multipath-path", |it| it.holders = holder("dm-0", true)),
            ("md", |it| it.holders = holder("md0", false)),
            ("md", |it| it.signature = found("linux_raid_member")),
            ("drbd", |it| it.holders = holder("drbd1", false)),
            ("busy", |it| it.used_as = Some("swap".to_owned())),
            ("busy", |it| it.serves = Some("VDI".to_owned())),
            ("busy", |it| it.holders = holder("dm-0", false)),
            ("busy", |it| it.not_opened = Some("in use".to_owned())),
            ("nameless", |it| it.identity = None),
            ("partitioned", |it| it.partitions = vec!["sda1".to_owned()]),
            ("partitioned", |it| it.signature = found("gpt")),
            ("readonly", |it| it.read_only = true),
            ("small", |it| it.size = 1),
            ("zfs", |it| it.signature = found("zfs_member")),
            ("ceph-osd", |it| it.signature = found("ceph_bluestore")),
            ("signature:LVM2_member", |it| it.signature = found("LVM2_member")),
            ("adoptable", |it| it.signature = marked()),
            ("busy", |it| (it.signature, it.holders) = (marked(), holder("dm-0", false))),
            ("unreadable", |it| it.signature = Signature::Unreadable("EIO".to_owned())),
            // The owner counts more than that its volumes are active.
            ("system", |it| (it.is_system, it.read_only) = (true, true)),
        ];
        for (state, spoil) in cases {
            let mut facts = disk("sda");
            spoil(&mut facts);
            assert_eq!(judged(&facts).to_string(), *state);
        }
    }

    #[test]
    fn a_claimed_device_is_claimed_also_while_it_is_in_use_and_its_owner_is_told() {
        let claim = claims::tests::claim("wwid:naa.sda", BY_HAND);
        let around = Around { min_size: 0, duplicates: &BTreeSet::new(), claim: Some(&claim) };
        let facts = Facts { holders: holder("dm-0", false), ..disk("sda") };
        let tests = tests(&facts, &around);
        assert_eq!(state(&tests), State::Claimed);
        assert!(tests.iter().any(|test| test.found.contains("SR 87b8646b")), "{tests:?}");
    }

    #[test]
    fn equal_identities_are_duplicates_unless_a_map_joins_them() {
        let twin = |name: &str| Facts { identity: Some("wwid:x".to_owned()), ..disk(name) };
        assert_eq!(duplicates(&[twin("sda"), twin("sdb"), disk("sdc")]), BTreeSet::from(["wwid:x".to_owned()]));
        let path = |name: &str| Facts { holders: holder("dm-0", true), ..twin(name) };
        assert!(duplicates(&[path("sda"), path("sdb"), twin("dm-0")]).is_empty());
        let all = duplicates(&[twin("sda"), twin("sdb")]);
        let judged = state(&tests(&twin("sda"), &Around { min_size: 0, duplicates: &all, claim: None }));
        assert_eq!(judged, State::Duplicate);
    }
}
