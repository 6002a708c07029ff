//! Finding a server: its addresses, and whether one of them answers.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::time::Duration;

use crate::error::{Error, Protocol, Result, ServerFault};
use crate::sys::tool::Tool;

/// How long an address gets to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The interfaces with an IPv6 address in the network namespace of this process: address, index, prefix length, scope,
/// flags, name; proc(5).
const IPV6_INTERFACES: &str = "/proc/net/if_inet6";

/// Whether `text` is an IPv6 address, with or without the interface that a link-local one needs: `fe80::1%eth0`.
pub fn is_ipv6(text: &str) -> bool {
    let (address, interface) = text.split_once('%').unwrap_or((text, "x"));
    address.parse::<Ipv6Addr>().is_ok()
        && !interface.is_empty()
        && interface.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

/// The address that `text` stands for, if it is an address: `10.0.0.5`, `2001:db8::5`, `fe80::1%eth0`, `fe80::1%2`.
fn address(text: &str, port: u16, interfaces: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, port));
    }
    let (address, interface) = text.split_once('%')?;
    let index = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let index = u32::from_str_radix(words.next()?, 16).ok()?;
        (words.nth(3)? == interface).then_some(index)
    };
    let scope = interface.parse().ok().or_else(|| interfaces.lines().find_map(index))?;
    Some(SocketAddrV6::new(address.parse().ok()?, port, 0, scope).into())
}

/// The addresses of a server, with `port`. A name is looked up by `getent`: our own executable is static and can't load
/// what the host's nsswitch.conf asks for, and a name server that does not answer must not hold us up.
///
/// # Errors
/// [`ServerFault::UnknownName`].
pub fn resolve(protocol: Protocol, server: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let unknown = |why: String| fault(protocol, server, ServerFault::UnknownName, why);
    let interfaces = || fs::read_to_string(IPV6_INTERFACES).unwrap_or_default();
    if let Some((_, interface)) = server.split_once('%') {
        let found = address(server, port, &interfaces());
        return found
            .map(|it| vec![it])
            .ok_or_else(|| unknown(format!("this host has no interface {interface} with an IPv6 address")));
    }
    if let Some(found) = address(server, port, "") {
        return Ok(vec![found]);
    }
    let answer = Tool::new("getent").args(["ahosts", server]).deadline(Duration::from_secs(10)).run();
    let answer = answer.map_err(|e| match e {
        Error::Tool { how, .. } if how.ends_with("status 2") => unknown("getent finds no such host".to_owned()),
        other => other,
    })?;
    let mut found: Vec<SocketAddr> = Vec::new();
    for text in answer.stdout.lines().filter_map(|line| line.split_whitespace().next()) {
        let interfaces = if text.contains('%') { interfaces() } else { String::new() };
        found.extend(address(text, port, &interfaces).filter(|it| !found.contains(it)));
    }
    if found.is_empty() { Err(unknown("it has no address".to_owned())) } else { Ok(found) }
}

/// Asks the addresses of a server, one after the other, until one gives an answer.
///
/// # Errors
/// [`ServerFault::UnknownName`]; [`ServerFault::NoAnswer`] with what every address did.
pub fn ask<T>(
    protocol: Protocol,
    server: &str,
    port: u16,
    question: impl Fn(SocketAddr) -> std::io::Result<T>,
) -> Result<T> {
    let mut said = Vec::new();
    for address in resolve(protocol, server, port)? {
        match question(address) {
            Ok(answer) => return Ok(answer),
            Err(e) => said.push(format!("{} port {port}: {e}", address.ip())),
        }
    }
    Err(fault(protocol, server, ServerFault::NoAnswer, said.join("; ")))
}

/// Asks whether a program listens at a TCP port of the server.
///
/// # Errors
/// [`ServerFault::UnknownName`]; [`ServerFault::NoAnswer`] with the answer of every address, if none takes a
/// connection.
pub fn listens(protocol: Protocol, server: &str, port: u16) -> Result<()> {
    ask(protocol, server, port, |address| TcpStream::connect_timeout(&address, PATIENCE).map(drop))
}

pub fn fault(protocol: Protocol, server: &str, fault: ServerFault, why: String) -> Error {
    Error::Server { protocol, server: server.to_owned(), fault, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_where_nobody_listens_is_no_answer() {
        let error = listens(Protocol::Smb, "127.0.0.1", 1).unwrap_err();
        assert!(matches!(error, Error::Server { fault: ServerFault::NoAnswer, .. }), "{error}");
        assert!(
            error.to_string().starts_with("SMB server 127.0.0.1: it does not answer: 127.0.0.1 port 1: "),
            "{error}"
        );
    }

    #[test]
    fn a_name_of_nobody_is_unknown() {
        let error = resolve(Protocol::Nfs, "no-such-host.invalid", 1).unwrap_err();
        assert!(matches!(error, Error::Server { fault: ServerFault::UnknownName, .. }), "{error}");
    }

    #[test]
    fn a_link_local_address_names_its_interface() {
        let interfaces = "fe800000000000005054fffe123456 02 40 20 80     eth0\n00000000000000000000000000000001 01 80 10 80       lo\n";
        let scope = |text| match address(text, 2049, interfaces) {
            Some(SocketAddr::V6(it)) => Some((it.ip().to_string(), it.scope_id())),
            _ => None,
        };
        assert_eq!(scope("fe80::1%eth0"), Some(("fe80::1".to_owned(), 2)));
        assert_eq!(scope("fe80::1%7"), Some(("fe80::1".to_owned(), 7)));
        assert_eq!(scope("::1"), Some(("::1".to_owned(), 0)));
        assert_eq!(scope("fe80::1%eth9"), None);
        for good in ["::1", "fe80::1%eth0", "fe80::1%br-a.7"] {
            assert!(is_ipv6(good), "{good}");
        }
        for bad in ["", "10.0.0.5", "filer", "fe80::1%", "fe80::1%a/b", "fe80::1%a,b", "%eth0"] {
            assert!(!is_ipv6(bad), "{bad}");
        }
        let error = resolve(Protocol::Nfs, "fe80::1%no-such0", 2049).unwrap_err().to_string();
        assert!(error.contains("no interface no-such0"), "{error}");
    }
}
