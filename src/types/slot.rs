//! Slots of layouts: the places that a layout has for SRs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::LayoutUuid;

/// The purpose of a medium, named after the driver. The order of the variants is that of lists and of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    Lvm,
    File,
    Nfs,
}

impl Class {
    pub const ALL: [Class; 3] = [Class::Lvm, Class::File, Class::Nfs];

    pub fn word(self) -> &'static str {
        match self {
            Class::Lvm => "lvm",
            Class::File => "file",
            Class::Nfs => "nfs",
        }
    }

    /// The class of the SRs of a type, in the words of claims. Groups of raw volumes are of the class `lvm`, whichever of the types
    /// `lvm` and `lvmraw` has them.
    pub fn word_of(sr_type: &str) -> &str {
        if sr_type == "lvmraw" { Class::Lvm.word() } else { sr_type }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Class, String> {
        let found = Class::ALL.into_iter().find(|class| class.word() == text);
        found.ok_or_else(|| format!("there is no class {text:?}; there are lvm, file and nfs"))
    }
}

/// The slot that an SR was made for. It stands on the medium of the SR, so the medium says whose it is without any file of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotMark {
    pub layout: LayoutUuid,
    pub class: Class,
    /// From 0 to [`SlotMark::LAST`].
    pub index: u16,
}

/// The key of the tag of a volume group.
const TAG: &str = "xcp.slot=";

impl SlotMark {
    /// The largest index.
    pub const LAST: u16 = 65_534;

    /// The slot within its layout, in words: `lvm/3`.
    pub fn place(&self) -> String {
        format!("{}/{}", self.class, self.index)
    }

    /// The tag of a volume group that says it.
    pub fn tag(&self) -> String {
        format!("{TAG}{self}")
    }

    /// The mark that the tags of a volume group say. A tag that cannot be read is none: it was written by another release or by hand.
    pub fn of_tags(tags: &[String]) -> Option<SlotMark> {
        tags.iter().find_map(|tag| tag.strip_prefix(TAG)?.parse().ok())
    }
}

/// `UUID/CLASS/INDEX`: of characters that LVM accepts in a tag.
impl fmt::Display for SlotMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.layout, self.class, self.index)
    }
}

impl FromStr for SlotMark {
    type Err = String;

    fn from_str(text: &str) -> Result<SlotMark, String> {
        let bad = || format!("{text:?} is no slot: expected UUID/CLASS/INDEX");
        let mut parts = text.split('/');
        let (Some(layout), Some(class), Some(index), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let index: u16 = index.parse().map_err(|_| bad())?;
        if index > SlotMark::LAST {
            return Err(bad());
        }
        Ok(SlotMark { layout: layout.parse().map_err(|_| bad())?, class: class.parse()?, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

    #[test]
    fn a_slot_is_read_as_it_is_written_and_nothing_else_is_one() {
        let mark = SlotMark { layout: LAYOUT.parse().unwrap(), class: Class::Lvm, index: 3 };
        assert_eq!(mark.tag(), format!("xcp.slot={LAYOUT}/lvm/3"));
        let tags = ["xcp.allocation=thick".to_owned(), "xcp.slot=x".to_owned(), mark.tag()];
        assert_eq!(SlotMark::of_tags(&tags), Some(mark));
        for bad in ["", "lvm/3", "/lvm/3", "x/lvm/3"] {
            assert!(bad.parse::<SlotMark>().is_err(), "{bad}");
        }
        for bad in ["lvm", "lvm/", "lvm/65535", "tape/3", "lvm/3/", "lvm/-1"] {
            assert!(format!("{LAYOUT}/{bad}").parse::<SlotMark>().is_err(), "{bad}");
        }
    }
}
