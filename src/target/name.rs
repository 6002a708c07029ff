//! Names of the iSCSI protocol, and the addresses that a target listens at.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::types::{Misread, VdiUuid};

/// A name of an initiator or a target: `iqn.2003-01.org.example:host1` of iSCSI (RFC 3720, 3.2.6.3), or
/// `nqn.2014-08.org.nvmexpress:uuid:…` of NVMe (NVM Express Base Specification 2.0, 4.5). The kernel would take any string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// RFC 3720, 3.2.6.1, and the specification of NVMe, 4.5.
    const LONGEST: usize = 223;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a name of iSCSI.
    ///
    /// # Errors
    /// [`Misread`].
    pub fn iscsi(text: &str) -> Result<Name, Misread> {
        let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | ':');
        let is_good = text.len() <= Name::LONGEST && text.chars().all(is_of_name) && has_authority(text);
        if is_good { Ok(Name(text.to_owned())) } else { Err(misread(text)) }
    }

    /// Reads a name of NVMe.
    ///
    /// # Errors
    /// [`Misread`].
    pub fn nvme(text: &str) -> Result<Name, Misread> {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_');
        let rest = text.strip_prefix("nqn.").filter(|_| text.chars().all(is_of_name));
        let is_good = text.len() <= Name::LONGEST && rest.is_some_and(|rest| rest.contains(':') && is_dated(rest));
        let expected =
            "expected a name such as nqn.2014-08.org.nvmexpress:uuid:UUID (/etc/nvme/hostnqn of the host has it)";
        let misread = || Misread { what: "NVMe name", value: text.to_owned(), expected: expected.to_owned() };
        if is_good { Ok(Name(text.to_owned())) } else { Err(misread()) }
    }
}

/// The name of the target of a VDI, below a prefix of the host.
///
/// # Errors
/// [`Misread`] if the prefix makes no valid name.
pub fn iqn_of(prefix: &str, vdi: VdiUuid) -> Result<Name, Misread> {
    Name::iscsi(&format!("{prefix}:{vdi}"))
}

impl FromStr for Name {
    type Err = Misread;

    fn from_str(text: &str) -> Result<Name, Misread> {
        if text.starts_with("nqn.") { Name::nvme(text) } else { Name::iscsi(text) }
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
        Some(("iqn", rest)) => is_dated(rest),
        _ => false,
    }
}

/// `YYYY-MM.domain[:rest]`.
fn is_dated(text: &str) -> bool {
    let (authority, named) = text.split_once(':').unwrap_or((text, "x"));
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

fn misread(text: &str) -> Misread {
    Misread {
        what: "iSCSI name",
        value: text.to_owned(),
        expected: "expected lower case such as iqn.2003-01.org.example:host1 (/etc/iscsi/initiatorname.iscsi of the \
                   initiator has its name)"
            .to_owned(),
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = Misread;

    fn try_from(text: String) -> Result<Name, Misread> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

/// An address of this host that a target listens at: `10.0.0.1:3260`, `[fd00::1]:3260`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Portal(SocketAddr);

impl Portal {
    /// The address and port.
    pub fn address(self) -> SocketAddr {
        self.0
    }

    /// The address, with another port.
    pub fn with_port(self, port: u16) -> Portal {
        Portal(SocketAddr::new(self.0.ip(), port))
    }

    /// Whether the address is one of this host. The kernel would take any.
    pub fn is_of_this_host(self) -> bool {
        UdpSocket::bind(SocketAddr::new(self.0.ip(), 0)).is_ok()
    }
}

impl Portal {
    /// Reads an address; one without a port gets the port `usual`.
    ///
    /// # Errors
    /// [`Misread`].
    pub fn read(text: &str, usual: u16) -> Result<Portal, Misread> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let parsed = match bare.parse::<IpAddr>() {
            Ok(address) => Ok(SocketAddr::new(address, usual)),
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

impl FromStr for Portal {
    type Err = Misread;

    /// As it is shown: with its port.
    fn from_str(text: &str) -> Result<Portal, Misread> {
        Portal::read(text, 0)
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
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
            assert!(Name::nvme(good).is_err(), "{good}");
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
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        let longest = format!("iqn.2003-01.org.example:{}", "a".repeat(199));
        assert!(longest.parse::<Name>().is_ok());
        assert!(format!("{longest}a").parse::<Name>().is_err());
    }

    #[test]
    fn names_of_nvme_are_dated_and_become_no_path() {
        for good in
            ["nqn.2014-08.org.nvmexpress:uuid:98de866e-b035-4b1a-a571-613bff542b89", "nqn.2003-01.org.example:Host_1"]
        {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
            assert!(Name::iscsi(good).is_err(), "{good}");
        }
        for bad in [
            "nqn.2014-08.org.nvmexpress",
            "nqn.2014-08.org.nvmexpress:",
            "nqn.2014-00.org.nvmexpress:a",
            "nqn.2014-08.org.example:a/../b",
            "nqn.2014-08.org.example:a,nqn=b",
            "nqn.2014-08.org.example:a\n",
            "iqn.2003-01.org.example:host1",
        ] {
            assert!(Name::nvme(bad).is_err(), "{bad}");
        }
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
            assert_eq!(Portal::read(text, 3260).unwrap().to_string(), is);
            assert_eq!(is.parse::<Portal>().unwrap().to_string(), is);
        }
        for bad in ["", "host", "host:3260", "0.0.0.0", "[::]:3260", "10.0.0.1:0", "10.0.0.1:x", "224.0.0.1"] {
            assert!(Portal::read(bad, 3260).is_err(), "{bad}");
        }
        assert!(Portal::read("127.0.0.1", 3260).unwrap().is_of_this_host());
        assert!(!Portal::read("192.0.2.1", 3260).unwrap().is_of_this_host());
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
