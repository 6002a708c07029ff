//! Layouts: which SRs the storage of a host shall have, what differs from what it has, and what changes that.
//!
//! An operator writes a *model*: lines with patterns. Matched against the media of the host, a model gives a [`Layout`]: each SR
//! that shall be there is a [`Slot`] of it, with its media. The layout that was applied last is *installed*, a file of the host.
//! The difference between the two is a list of [actions](plan::Action), and these give the steps of a [`plan::Plan`].
//!
//! | file | what |
//! |---|---|
//! | here | the values: a layout, its slots and what stands beside them |
//! | [`document`], [`fold`], [`text`] | the form of models and installed layouts, read and written; ranges folded |
//! | [`keys`] | the keys that concern a layout as a whole: their types, and what a change of each means |
//! | [`model`], [`matching`], [`coherency`], [`support`] | what an operator writes, and the layout that it gives with the media that there are |
//! | [`compare`], [`steps`] | what differs between two layouts, and the steps that change it |
//! | [`offers`], [`planning`] | the media of this host, and a plan made of all of this |
//! | [`config`] | a slot as a driver sees it |
//! | [`agent`] | layouts on a host with xapi, and the calls of `xe` that a plan is there |
//! | [`plan`] | actions, and the steps of a plan |
//! | [`installed`] | the files of installed layouts |
//! | [`tuning`] | settings of the kernel that go with SRs of a class |

pub mod agent;
pub mod coherency;
pub mod compare;
pub mod config;
pub mod document;
pub mod fold;
pub mod installed;
pub mod keys;
pub mod matching;
pub mod model;
pub mod offers;
pub mod plan;
pub mod planning;
pub mod steps;
pub mod support;
pub mod text;
pub mod tuning;

use std::fmt;
use std::str::FromStr;

use crate::registry::candidate::Class;
use crate::registry::claims::Claim;
use crate::types::{LayoutUuid, Misread, SrUuid};

/// The name of a layout. It is the name of a file, the namespace of a lock and part of the names of SRs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayoutName(String);

impl LayoutName {
    /// Characters of the longest name.
    pub const LONGEST: usize = 32;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the SR of a slot: `slot` is its [label](SlotId::label).
    pub fn sr_name(&self, slot: &str) -> String {
        // A name begins with a letter.
        let head = if self.0.starts_with(|c: char| c.is_ascii_digit()) { "layout-" } else { "" };
        format!("{head}{self}-{slot}")
    }
}

impl fmt::Display for LayoutName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LayoutName {
    type Err = Misread;

    /// Accepts lower-case letters, digits and `-`, the first of them no `-`.
    fn from_str(text: &str) -> Result<Self, Misread> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        match !text.is_empty() && text.len() <= Self::LONGEST && !text.starts_with('-') && text.chars().all(plain) {
            true => Ok(LayoutName(text.to_owned())),
            false => Err(Misread {
                what: "LAYOUT",
                value: text.to_owned(),
                expected: format!(
                    "expected lower-case letters, digits and '-', {} at most, the first no '-'",
                    Self::LONGEST
                ),
            }),
        }
    }
}

/// A slot within its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotId {
    pub class: Class,
    pub index: u16,
}

impl SlotId {
    /// The largest index.
    pub const LAST: u16 = crate::types::SlotMark::LAST;

    /// The slot as a part of a name, `lvm-0`.
    pub fn label(self) -> String {
        format!("{}-{}", self.class, self.index)
    }

    /// The UUID of the SR of the slot, unless the model says another.
    pub fn sr(self, layout: LayoutUuid) -> SrUuid {
        SrUuid::of_slot(layout, &self.to_string())
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.class, self.index)
    }
}

impl FromStr for SlotId {
    type Err = Misread;

    fn from_str(text: &str) -> Result<Self, Misread> {
        let parts = text.split_once('/').and_then(|(class, index)| Some((class.parse().ok()?, index.parse().ok()?)));
        let known = parts.map(|(class, index)| SlotId { class, index }).filter(|id| id.index <= SlotId::LAST);
        known.ok_or_else(|| Misread {
            what: "slot",
            value: text.to_owned(),
            expected: format!("expected CLASS/INDEX such as lvm/0, the index {} at most", SlotId::LAST),
        })
    }
}

/// Who looks after the SR of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The layout.
    #[default]
    Managed,
    /// Somebody else. The slot keeps its index, and nothing is ever done with it.
    External,
}

/// Whether the SR of a slot is brought up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Active {
    #[default]
    Yes,
    No,
    /// Up, and takes no new VDIs.
    NoCreate,
    /// Only on explicit request.
    Manual,
}

impl Active {
    pub const ALL: [Active; 4] = [Active::Yes, Active::No, Active::NoCreate, Active::Manual];

    pub fn word(self) -> &'static str {
        match self {
            Active::Yes => "yes",
            Active::No => "no",
            Active::NoCreate => "nocreate",
            Active::Manual => "manual",
        }
    }

    /// Whether the layout brings the SR up.
    pub fn is_up(self) -> bool {
        matches!(self, Active::Yes | Active::NoCreate)
    }
}

/// A medium that a slot stands on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Medium {
    /// The path of the device or directory on the host, or of the export on the server.
    pub dev: String,
    /// The stable name, by which it is claimed.
    pub identity: String,
    /// Bytes, where that is known.
    pub size: Option<u64>,
}

/// An SR of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub id: SlotId,
    pub mode: Mode,
    /// The host whose medium it is; for the class `nfs`, the server.
    pub host: String,
    /// Other hosts that see the medium, in the order in which they take over.
    pub ha_hosts: Vec<String>,
    /// One medium, or more of a volume group that spans several; in the order of identities.
    pub media: Vec<Medium>,
    pub uuid: SrUuid,
    pub active: Active,
    pub publish: bool,
    /// Empty if the model says none; so are the next five.
    pub tag: String,
    pub group: String,
    pub network: String,
    pub jdev: String,
    pub prep: String,
    pub fs: String,
}

impl Slot {
    /// The paths of the media, with commas between them.
    pub fn devs(&self) -> String {
        self.media.iter().map(|medium| medium.dev.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The bytes of the media together; `None` if those of one are not known.
    pub fn size(&self) -> Option<u64> {
        self.media.iter().map(|medium| medium.size).sum()
    }
}

/// An address of a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub host: String,
    pub address: String,
}

/// A host that uses the SRs of a class which are not its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attach {
    pub host: String,
    pub class: Class,
    /// Empty: as the layout says.
    pub path: String,
    /// Empty: as the layout says.
    pub options: String,
}

/// A host that publishes SRs to others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    pub host: String,
    pub fabric: String,
}

/// A set of SRs and of the hosts that use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub name: LayoutName,
    pub uuid: LayoutUuid,
    /// The values of the keys that concern all of it.
    pub options: keys::Options,
    /// In order, so that the first address of a host is the one that counts; no two are equal.
    pub addresses: Vec<Address>,
    /// In the order of their identifiers, each once.
    pub slots: Vec<Slot>,
    /// In order.
    pub attaches: Vec<Attach>,
    /// In order.
    pub gateways: Vec<Gateway>,
}

impl Layout {
    pub fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.slots.binary_search_by_key(&id, |slot| slot.id).ok().map(|at| &self.slots[at])
    }

    /// The name by which the host knows the SR of a slot.
    pub fn sr_name(&self, id: SlotId) -> String {
        self.name.sr_name(&id.label())
    }

    /// The claims of the media of its slots. `now`: seconds since 1970.
    pub fn claims(&self, now: u64) -> impl Iterator<Item = Claim> {
        let managed = self.slots.iter().filter(|slot| slot.mode == Mode::Managed);
        managed.flat_map(move |slot| slot.media.iter().map(move |medium| self.claim(slot, medium, now)))
    }

    /// The claim of a medium of a slot. `now`: seconds since 1970.
    pub fn claim(&self, slot: &Slot, medium: &Medium, now: u64) -> Claim {
        Claim {
            identity: medium.identity.clone(),
            host: slot.host.clone(),
            dev: medium.dev.clone(),
            layout: self.name.to_string(),
            class: slot.id.class.word().to_owned(),
            index: Some(slot.id.index),
            sr_uuid: Some(slot.uuid),
            since: now,
        }
    }

    /// The address of a host: the first that the layout says.
    pub fn address(&self, host: &str) -> Option<&str> {
        self.addresses.iter().find(|it| it.host == host).map(|it| it.address.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::SrName;

    #[test]
    fn a_name_is_a_plain_word() {
        for good in ["rack1", "1", "a-b", &"a".repeat(32)] {
            assert_eq!(good.parse::<LayoutName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "Rack", "a_b", "a/b", "..", "a b", "ü", &"a".repeat(33)] {
            assert!(bad.parse::<LayoutName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_slot_is_read_as_it_is_written_and_has_an_sr_of_its_own() {
        let layout: LayoutUuid = "87b8646b-b800-9500-cb7b-af3b74e02f5c".parse().unwrap();
        let id = SlotId { class: Class::Nfs, index: 65534 };
        assert_eq!((id.to_string().as_str(), "nfs/65534".parse()), ("nfs/65534", Ok(id)));
        for bad in ["", "nfs", "nfs/", "nfs/65535", "tape/0", "nfs/-1", "nfs/0/1"] {
            assert!(bad.parse::<SlotId>().is_err(), "{bad}");
        }
        // RFC 9562, version 5, with the UUID of the layout as name space: for ever the same.
        assert_eq!(id.sr(layout).to_string(), "af36a1d8-ca32-5029-889c-4286004a22ee");
        assert_ne!(id.sr(layout), SlotId { index: 0, ..id }.sr(layout));
    }

    #[test]
    fn the_name_of_an_sr_is_one() {
        for name in ["rack1", "1a", "abcdefghijklmnopqrstuvwxyz-01234"] {
            let layout = Layout {
                name: name.parse().unwrap(),
                uuid: LayoutUuid::random(),
                options: keys::Options::default(),
                addresses: Vec::new(),
                slots: Vec::new(),
                attaches: Vec::new(),
                gateways: Vec::new(),
            };
            let sr = layout.sr_name(SlotId { class: Class::File, index: 65534 });
            assert!(sr.parse::<SrName>().is_ok(), "{sr}");
        }
    }
}
