//! UUIDs of SRs and VDIs. The words of a caller are parsed once, into 16 bytes that cannot hold a path or an option.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::Misread;

macro_rules! uuid_type {
    ($name:ident, $what:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// A new random (version 4) UUID.
            pub fn random() -> Self {
                $name(Uuid::new_v4())
            }

            /// Its bytes, in the order of its text.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl FromStr for $name {
            type Err = Misread;

            /// Accepts the hyphenated form of 36 characters only; upper case is folded.
            fn from_str(text: &str) -> Result<Self, Misread> {
                let parsed = if text.len() == 36 { Uuid::try_parse(text).ok() } else { None };
                parsed.map($name).ok_or_else(|| Misread {
                    what: $what,
                    value: text.to_owned(),
                    expected: "expected a UUID such as 87b8646b-b800-9500-cb7b-af3b74e02f5c".to_owned(),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.0.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

uuid_type!(SrUuid, "SR-UUID", "The UUID of a storage repository.");
uuid_type!(LayoutUuid, "layout UUID", "The UUID of a layout, from which the UUIDs of its SRs follow.");
uuid_type!(VdiUuid, "VDI-UUID", "The UUID of a virtual disk; unique within its SR.");

impl SrUuid {
    /// The UUID of the SR of a slot of a layout: always the same (version 5) for the same layout and slot.
    pub fn of_slot(layout: LayoutUuid, slot: &str) -> Self {
        SrUuid(Uuid::new_v5(&layout.0, slot.as_bytes()))
    }
}

impl VdiUuid {
    /// The UUID of these bytes, in the order of its text. `None` for the nil UUID, which formats write where there is none.
    pub fn unless_nil(bytes: [u8; 16]) -> Option<Self> {
        Some(Uuid::from_bytes(bytes)).filter(|uuid| !uuid.is_nil()).map(VdiUuid)
    }

    /// The UUID of a disk that has a name and no UUID: always the same (version 5) for the same SR and name.
    pub fn of_name(sr: SrUuid, name: &str) -> Self {
        VdiUuid(Uuid::new_v5(&sr.0, name.as_bytes()))
    }

    /// The UUID (version 5) by which a device of this host is known that is no disk of an SR: always the same for the same
    /// identity of the device.
    pub fn of_device(identity: &str) -> Self {
        const DEVICES: Uuid = Uuid::from_u128(0x6f1d_2b0c_53a7_4e0a_9d0e_7c1b_5e42_90d4);
        VdiUuid(Uuid::new_v5(&DEVICES, identity.as_bytes()))
    }

    /// A UUID (version 5), as text, that is always the same for the same disk and word.
    pub fn derived(self, word: &str) -> String {
        Uuid::new_v5(&self.0, word.as_bytes()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_36_characters_of_hex_or_nothing() {
        let good = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
        assert_eq!(good.parse::<SrUuid>().unwrap().to_string(), good);
        assert_eq!(good.to_uppercase().parse::<SrUuid>().unwrap().to_string(), good);
        for bad in [
            "",
            "x",
            "../../../../etc/passwd",
            "-7b8646b-b800-9500-cb7b-af3b74e02f5c",
            "87b8646bb8009500cb7baf3b74e02f5c",
            "{87b8646b-b800-9500-cb7b-af3b74e02f5c}",
            "urn:uuid:87b8646b-b800-9500-cb7b-af3b74e02f5c",
            "87b8646b-b800-9500-cb7b-af3b74e02f5c\n",
            " 87b8646b-b800-9500-cb7b-af3b74e02f5c",
            "87b8646b-b800-9500-cb7b-af3b74e02f5g",
        ] {
            assert!(bad.parse::<VdiUuid>().is_err(), "{bad:?} was taken for a UUID");
        }
    }
}
