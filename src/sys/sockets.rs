//! Who is connected to this host by TCP, in the kernel's tables: `/proc/net/tcp` and `/proc/net/tcp6`, of proc(5).

use std::fs;
use std::net::{IpAddr, SocketAddr};

/// The state of a connection that is open, in these tables.
const ESTABLISHED: &str = "01";

/// The addresses that are connected to one of this host, in order.
pub fn peers(of: SocketAddr) -> Vec<IpAddr> {
    let table = if of.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    peers_in(&fs::read_to_string(table).unwrap_or_default(), of)
}

fn peers_in(table: &str, of: SocketAddr) -> Vec<IpAddr> {
    let local = shown(of);
    let mut found: Vec<IpAddr> = table
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (at, peer, state) = (words.next()?, words.next()?, words.next()?);
            (at == local && state == ESTABLISHED).then(|| address(peer.split(':').next()?))?
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// An address as the tables show it: each 32 bits as a number of this machine's byte order, then the port.
fn shown(of: SocketAddr) -> String {
    let words = match of.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let word = |bytes: &[u8]| bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default();
    let digits: String = words.chunks(4).map(|bytes| format!("{:08X}", word(bytes))).collect();
    format!("{digits}:{:04X}", of.port())
}

fn address(digits: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for at in (0..digits.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_peers_of_a_connection_are_found_and_a_listener_has_none() {
        for ip in ["127.0.0.1", "::1"] {
            let Ok(listener) = TcpListener::bind((ip, 0)) else { continue };
            let at = listener.local_addr().unwrap();
            assert!(peers(at).is_empty());
            let _stream = TcpStream::connect(at).unwrap();
            assert_eq!(peers(at), [ip.parse::<IpAddr>().unwrap()]);
        }
    }
}
