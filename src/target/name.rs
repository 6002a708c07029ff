//! Names of the iSCSI protocol, and the addresses that a target listens at.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::types::{Misread, VdiUuid};

/// A name of an initiator or a target: `iqn.2003-01.org.example:host1`; RFC 3720, 3.2.6.3. The kernel would take any string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IscsiName(String);

impl IscsiName {
    /// RFC 3720, 3.2.6.1.
    const LONGEST: usize = 223;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the target of a VDI, below a prefix of the host.
    ///
    /// # Errors
    /// [`Misread`] if the prefix makes no valid name.
    pub fn of_target(prefix: &str, vdi: VdiUuid) -> Result<IscsiName, Misread> {
        format!("{prefix}:{vdi}").parse()
    }
}

impl FromStr for IscsiName {
    type Err = Misread;

    fn from_str(text: &str) -> Result<IscsiName, Misread> {
        let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | ':');
        let is_good = text.len() <= IscsiName::LONGEST && text.chars().all(is_of_name) && has_authority(text);
        if is_good { Ok(IscsiName(text.to_owned())) } else { Err(misread(text)) }
    }
}

/// `iqn.YYYY-MM.domain[:rest]`; an EUI-64 of 16 digits; an NAA of 16 or 32.
fn has_authority(text: &str) -> bool {
    let is_hex = |digits: &str, lengths: &[usize]| {
        lengths.contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_hexdigit())
    };
    match text.split_once('.') {
        Some(("eui", digits)) => is_hex(digits, &[16]),
        Some(("naa", digits)) => is_hex(digits, &[16, 32]),
        Some(("iqn", rest)) => {
            let (authority, named) = rest.split_once(':').unwrap_or((rest, "x"));
            let mut parts = authority.split('.');
            let is_month = |date: &str| {
                let (year, month) = date.split_once('-').unwrap_or_default();
                let digits = |text: &str, n| text.len() == n && text.chars().all(|c| c.is_ascii_digit());
                digits(year, 4) && digits(month, 2) && (1..=12).contains(&month.parse().unwrap_or(0))
            };
            parts.next().is_some_and(is_month)
                && parts.clone().next().is_some()
                && parts.all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
                && !named.is_empty()
        }
        _ => false,
    }
}

fn misread(text: &str) -> Misread {
    Misread {
        what: "iSCSI name",
        value: text.to_owned(),
        expected: "expected lower case such as iqn.2003-01.org.example:host1 (/etc/iscsi/initiatorname.iscsi of the \
                   initiator has its name)"
            .to_owned(),
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for IscsiName {
    type Error = Misread;

    fn try_from(text: String) -> Result<IscsiName, Misread> {
        text.parse()
    }
}

impl From<IscsiName> for String {
    fn from(name: IscsiName) -> String {
        name.0
    }
}

/// An address of this host that a target listens at: `10.0.0.1:3260`, `[fd00::1]:3260`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Portal(SocketAddr);

impl Portal {
    /// The port of iSCSI; RFC 3720, 13.
    const USUAL: u16 = 3260;

    /// Whether the address is one of this host. The kernel would take any.
    pub fn is_of_this_host(self) -> bool {
        UdpSocket::bind(SocketAddr::new(self.0.ip(), 0)).is_ok()
    }
}

impl FromStr for Portal {
    type Err = Misread;

    fn from_str(text: &str) -> Result<Portal, Misread> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let parsed = match bare.parse::<IpAddr>() {
            Ok(address) => Ok(SocketAddr::new(address, Portal::USUAL)),
            Err(_) => text.parse::<SocketAddr>(),
        };
        let expected = |why: &str| Misread { what: "portal", value: text.to_owned(), expected: why.to_owned() };
        match parsed {
            Err(_) => {
                Err(expected("expected an IP address of this host, as 10.0.0.1, 10.0.0.1:3260 or [fd00::1]:3260"))
            }
            Ok(address) if address.port() == 0 => Err(expected("expected a port from 1 to 65535")),
            Ok(address) if address.ip().is_unspecified() || address.ip().is_multicast() => {
                Err(expected("expected one address of this host: a target is not opened to every network unasked"))
            }
            Ok(address) => Ok(Portal(address)),
        }
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Portal {
    type Error = Misread;

    fn try_from(text: String) -> Result<Portal, Misread> {
        text.parse()
    }
}

impl From<Portal> for String {
    fn from(portal: Portal) -> String {
        portal.to_string()
    }
}

/// The world-wide name of an end of the loopback fabric: the same for the same VDI. `end`: which of its two ends.
pub fn loopback_name(vdi: VdiUuid, end: &str) -> String {
    let digits: String = vdi.derived(end).chars().filter(char::is_ascii_hexdigit).take(9).collect();
    format!("naa.5001405{digits}")
}

/// The part of a serial number that the kernel makes the world-wide name of a LUN of: 25 hexadecimal digits. VDIs that have
/// it in common would be one disk to an initiator.
pub fn wwn_part(vdi: VdiUuid) -> String {
    vdi.to_string().chars().filter(char::is_ascii_hexdigit).take(25).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_protocol() {
        for good in [
            "iqn.2003-01.org.example:host1",
            "iqn.2003-01.org.example",
            "iqn.1993-08.org.debian:01:1f2e3d",
            "eui.02004567a425678d",
            "naa.52004567ba64678d",
        ] {
            assert_eq!(good.parse::<IscsiName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "host1",
            "iqn.2003-13.org.example:a",
            "iqn.2003-1.org.example:a",
            "iqn.2003-01:a",
            "iqn.2003-01.org..example",
            "iqn.2003-01.org.example:",
            "iqn.2003-01.org.Example:a",
            "iqn.2003-01.org.example:a_b",
            "iqn.2003-01.org.example:a b",
            "iqn.2003-01.org.example:a/../b",
            "eui.02004567a425678",
            "naa.x2004567ba64678d",
        ] {
            assert!(bad.parse::<IscsiName>().is_err(), "{bad}");
        }
        let longest = format!("iqn.2003-01.org.example:{}", "a".repeat(199));
        assert!(longest.parse::<IscsiName>().is_ok());
        assert!(format!("{longest}a").parse::<IscsiName>().is_err());
    }

    #[test]
    fn a_portal_is_one_address_of_the_host() {
        for (text, is) in [
            ("10.0.0.1", "10.0.0.1:3260"),
            ("10.0.0.1:3261", "10.0.0.1:3261"),
            ("fd00::1", "[fd00::1]:3260"),
            ("[fd00::1]", "[fd00::1]:3260"),
            ("[fd00::1]:99", "[fd00::1]:99"),
        ] {
            assert_eq!(text.parse::<Portal>().unwrap().to_string(), is);
        }
        for bad in ["", "host", "host:3260", "0.0.0.0", "[::]:3260", "10.0.0.1:0", "10.0.0.1:x", "224.0.0.1"] {
            assert!(bad.parse::<Portal>().is_err(), "{bad}");
        }
        assert!("127.0.0.1".parse::<Portal>().unwrap().is_of_this_host());
        assert!(!"192.0.2.1".parse::<Portal>().unwrap().is_of_this_host());
    }

    #[test]
    fn names_of_the_loopback_fabric_stay_and_differ() {
        let vdi: VdiUuid = "98de866e-b035-4b1a-a571-613bff542b89".parse().unwrap();
        let (target, initiator) = (loopback_name(vdi, "target"), loopback_name(vdi, "initiator"));
        assert_eq!(target, loopback_name(vdi, "target"));
        assert_ne!(target, initiator);
        assert_eq!(target.len(), "naa.5001405".len() + 9);
        assert_eq!(wwn_part(vdi), "98de866eb0354b1aa571613bf");
    }
}
