//! Finding a server: its addresses, and whether one of them answers.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::{Error, Protocol, Result, ServerFault};
use crate::sys::tool::Tool;

/// How long an address gets to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses of a server. A name is looked up by `getent`: our own executable is static and can't load
/// what the host's nsswitch.conf asks for, and a name server that does not answer must not hold us up.
///
/// # Errors
/// [`ServerFault::UnknownName`].
pub fn resolve(protocol: Protocol, server: &str) -> Result<Vec<IpAddr>> {
    if let Ok(address) = server.parse() {
        return Ok(vec![address]);
    }
    let unknown = |why: &str| fault(protocol, server, ServerFault::UnknownName, why.to_owned());
    let answer = Tool::new("getent").args(["ahosts", server]).deadline(Duration::from_secs(10)).run();
    let answer = answer.map_err(|e| match e {
        Error::Tool { how, .. } if how.ends_with("status 2") => unknown("getent finds no such host"),
        other => other,
    })?;
    let mut found: Vec<IpAddr> = Vec::new();
    for address in answer.stdout.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() { Err(unknown("it has no address")) } else { Ok(found) }
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
    for address in resolve(protocol, server)? {
        match question(SocketAddr::new(address, port)) {
            Ok(answer) => return Ok(answer),
            Err(e) => said.push(format!("{address} port {port}: {e}")),
        }
    }
    Err(fault(protocol, server, ServerFault::NoAnswer, said.join("; ")))
}

/// Whether somebody listens at the port.
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
        let error = resolve(Protocol::Nfs, "no-such-host.invalid").unwrap_err();
        assert!(matches!(error, Error::Server { fault: ServerFault::UnknownName, .. }), "{error}");
    }
}
