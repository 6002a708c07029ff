//! One question to an NFS server, without mounting anything: are you there, and which versions do you speak?
//!
//! Every RPC program answers procedure 0 of a version it has, with nothing, and of another one with
//! PROG_MISMATCH (RFC 5531, sections 9 and 12). It needs no port below 1024 and no rpcbind.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::error::{Exported, Protocol, Result};
use crate::sys::server::{self, PATIENCE};
use crate::sys::tool::Tool;

/// The port that RFC 7530 gives NFS.
pub const NFS_PORT: u16 = 2049;
const NFS_PROGRAM: u32 = 100_003;
const ACCEPTED: u32 = 0;
const SUCCESS: u32 = 0;
/// Set in a record's length when it is the message's last.
const LAST: u32 = 0x8000_0000;

/// The major versions of NFS that `server` speaks, of 4 and 3.
///
/// # Errors
/// As [`server::ask`].
pub fn nfs_versions(server: &str, port: u16) -> Result<Vec<u32>> {
    nfs(server, port).map(|(_, versions)| versions)
}

/// The address at which `server` answers, and the major versions of NFS that it speaks there, of 4 and 3.
///
/// # Errors
/// As [`server::ask`].
pub fn nfs(server: &str, port: u16) -> Result<(SocketAddr, Vec<u32>)> {
    server::ask(Protocol::Nfs, server, port, |address| ask(address).map(|versions| (address, versions)))
}

fn ask(address: SocketAddr) -> io::Result<Vec<u32>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut versions = Vec::new();
    for version in [4, 3] {
        stream.write_all(&null_call(version))?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "connected, but there is no answer"),
            _ => e,
        })?;
        let length = u32::from_be_bytes(length) & !LAST;
        let mut reply = vec![0; length.min(1024) as usize];
        stream.read_exact(&mut reply)?;
        if succeeded(&reply, version) {
            versions.push(version);
        }
    }
    if versions.is_empty() { Err(io::Error::other("it speaks neither NFS 4 nor 3")) } else { Ok(versions) }
}

/// Procedure 0 without credentials; the transaction id is the version.
fn null_call(version: u32) -> Vec<u8> {
    const CALL: u32 = 0;
    const RPC_VERSION: u32 = 2;
    let words = [version, CALL, RPC_VERSION, NFS_PROGRAM, version, 0, 0, 0, 0, 0];
    let length = LAST | (words.len() * 4) as u32;
    [length].iter().chain(&words).flat_map(|word| word.to_be_bytes()).collect()
}

fn succeeded(reply: &[u8], xid: u32) -> bool {
    const REPLY: u32 = 1;
    let word = |at: usize| Some(u32::from_be_bytes(reply.get(at..at + 4)?.try_into().ok()?));
    // xid, REPLY, ACCEPTED, verifier (flavour, length, body), SUCCESS
    let status = word(16).and_then(|length| word(20 + (length as usize).next_multiple_of(4)));
    word(0) == Some(xid) && word(4) == Some(REPLY) && word(8) == Some(ACCEPTED) && status == Some(SUCCESS)
}

/// The directories that a server exports and to whom, as its mount daemon says. A server that speaks NFS 4 alone has no
/// mount daemon.
///
/// # Errors
/// [`crate::Error::Tool`] if `showmount` is not installed, or the server has no mount daemon or does not answer in time.
pub fn exports(server: &str) -> Result<Vec<Exported>> {
    // A silent rpcbind is waited for longer than anybody likes.
    let list = Tool::new("showmount").args(["--no-headers", "--exports", "--", server]).deadline(4 * PATIENCE);
    Ok(parse_exports(&list.run()?.stdout))
}

/// Lines of `/srv/a 10.0.0.0/8,host.example`. A path may have blanks, a list of clients has none.
fn parse_exports(lines: &str) -> Vec<Exported> {
    let one = |line: &str| {
        let line = line.trim();
        let (path, access) = line.rsplit_once(char::is_whitespace).unwrap_or((line, "*"));
        let access = if access == "(everyone)" { "*" } else { access };
        Exported { path: path.trim_end().to_owned(), access: access.to_owned() }
    };
    lines.lines().filter(|line| line.trim_start().starts_with('/')).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that gives each call the next of these answers, as accept_stat.
    fn server(answers: &'static [u32]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for status in answers {
                let mut call = [0; 44];
                stream.read_exact(&mut call).unwrap();
                let xid = u32::from_be_bytes(call[4..8].try_into().unwrap());
                let words = [LAST | 24, xid, 1, ACCEPTED, 0, 0, *status];
                stream.write_all(&words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>()).unwrap();
            }
        });
        port
    }

    #[test]
    fn the_versions_are_those_that_answer_success() {
        assert_eq!(nfs_versions("127.0.0.1", server(&[SUCCESS, SUCCESS])).unwrap(), [4, 3]);
        assert_eq!(nfs_versions("127.0.0.1", server(&[2, SUCCESS])).unwrap(), [3]);
        assert!(nfs_versions("127.0.0.1", server(&[2, 2])).unwrap_err().to_string().contains("neither"));
    }

    #[test]
    fn a_server_that_hangs_up_or_is_not_there_is_named() {
        for port in [server(&[]), 1] {
            let error = nfs_versions("127.0.0.1", port).unwrap_err();
            assert!(
                error.to_string().starts_with("NFS server 127.0.0.1: it does not answer: 127.0.0.1 port "),
                "{error}"
            );
        }
    }

    #[test]
    fn exports_are_paths_and_whom_they_are_for() {
        let lines = "/srv/a     10.0.0.0/8,host.example\n/srv/b c   *\n/srv/d (everyone)\n/e\n\nclnt_create: no\n";
        let found: Vec<_> = parse_exports(lines).into_iter().map(|it| (it.path, it.access)).collect();
        let expected = [("/srv/a", "10.0.0.0/8,host.example"), ("/srv/b c", "*"), ("/srv/d", "*"), ("/e", "*")];
        assert_eq!(found, expected.map(|(path, access)| (path.to_owned(), access.to_owned())));
    }

    #[test]
    fn nonsense_is_no_success() {
        assert!(!succeeded(&[], 4));
        assert!(!succeeded(&[0xff; 64], 4));
        assert!(!succeeded(&[0; 24], 4));
    }
}
