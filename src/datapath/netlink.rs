//! The kernel's nbd over generic netlink: a device made, resized and removed by one message each.
//!
//! ABI: Linux `include/uapi/linux/{netlink,genetlink,nbd-netlink}.h`. Numbers are in the host's byte order,
//! everything is padded to 4 bytes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// Bytes of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// What a new device is like.
pub struct Device<'a> {
    pub size: u64,
    /// `NBD_FLAG_*` of the nbd protocol.
    pub flags: u64,
    pub sockets: &'a [OwnedFd],
    /// What sysfs shows as the device's `backend`.
    pub backend: &'a [u8],
}

/// A conversation with the kernel's nbd.
pub struct Nbd {
    socket: OwnedFd,
    family: u16,
}

impl Nbd {
    /// # Errors
    /// ENOENT on a kernel without nbd, or when the module is not loaded.
    pub fn open() -> io::Result<Nbd> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkGeneric)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let nbd = Nbd { socket, family: 0 };
        let mut attributes = Vec::new();
        put(&mut attributes, CTRL_ATTR_FAMILY_NAME, b"nbd\0");
        let answer = nbd.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &attributes)?;
        let id = find(&answer, CTRL_ATTR_FAMILY_ID).and_then(|b| b.get(..2)?.try_into().ok());
        let family = id.map(u16::from_ne_bytes).ok_or(Errno::EPROTO)?;
        Ok(Nbd { family, ..nbd })
    }

    /// Makes a device and answers its number.
    pub fn connect(&self, device: &Device) -> io::Result<u32> {
        let mut attributes = Vec::new();
        put(&mut attributes, SIZE_BYTES, &device.size.to_ne_bytes());
        put(&mut attributes, BLOCK_SIZE_BYTES, &512u64.to_ne_bytes());
        // No deadline: slow storage is not dead storage. A server that dies closes its sockets.
        put(&mut attributes, TIMEOUT, &0u64.to_ne_bytes());
        put(&mut attributes, SERVER_FLAGS, &device.flags.to_ne_bytes());
        put(&mut attributes, BACKEND_IDENTIFIER, &[device.backend, b"\0"].concat());
        let mut sockets = Vec::new();
        for socket in device.sockets {
            let mut item = Vec::new();
            put(&mut item, SOCK_FD, &(socket.as_raw_fd() as u32).to_ne_bytes());
            put(&mut sockets, SOCK_ITEM | NLA_F_NESTED, &item);
        }
        put(&mut attributes, SOCKETS | NLA_F_NESTED, &sockets);
        let answer = self.ask(self.family, CONNECT, &attributes)?;
        let index = find(&answer, INDEX).and_then(|b| b.try_into().ok()).ok_or(Errno::EPROTO)?;
        Ok(u32::from_ne_bytes(index))
    }

    /// `backend` is the one that it was connected with: the kernel wants to hear it again.
    pub fn resize(&self, index: u32, size: u64, backend: &[u8]) -> io::Result<()> {
        let mut attributes = Vec::new();
        put(&mut attributes, INDEX, &index.to_ne_bytes());
        put(&mut attributes, SIZE_BYTES, &size.to_ne_bytes());
        put(&mut attributes, BACKEND_IDENTIFIER, &[backend, b"\0"].concat());
        self.ask(self.family, RECONFIGURE, &attributes).map(drop)
    }

    pub fn disconnect(&self, index: u32) -> io::Result<()> {
        let mut attributes = Vec::new();
        put(&mut attributes, INDEX, &index.to_ne_bytes());
        self.ask(self.family, DISCONNECT, &attributes).map(drop)
    }

    /// Sends one message and collects the attributes of the answer, up to the acknowledgement.
    fn ask(&self, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
        let mut message = Vec::new();
        message.extend(((HEADER + GENERIC + attributes.len()) as u32).to_ne_bytes());
        message.extend(family.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend([0; 8]); // sequence number, port
        message.extend([command, 1, 0, 0]);
        message.extend(attributes);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = Vec::new();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let got = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..got];
            while let Some(length) = rest.get(..4).map(|b| u32::from_ne_bytes(b.try_into().expect("4 bytes")) as usize)
            {
                let Some(message) = rest.get(..length).filter(|m| m.len() >= HEADER + GENERIC) else {
                    return Err(Errno::EPROTO.into());
                };
                if u16::from_ne_bytes([message[4], message[5]]) == NLMSG_ERROR {
                    let errno = i32::from_ne_bytes(message[HEADER..HEADER + 4].try_into().expect("4 bytes"));
                    return if errno == 0 { Ok(answer) } else { Err(io::Error::from_raw_os_error(-errno)) };
                }
                answer.extend(&message[HEADER + GENERIC..]);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            }
        }
    }
}

/// Appends an attribute.
fn put(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend((value.len() as u16 + 4).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind & !NLA_F_NESTED == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut attributes = Vec::new();
        put(&mut attributes, 7, b"abcde");
        put(&mut attributes, INDEX, &42u32.to_ne_bytes());
        assert_eq!(attributes.len(), 12 + 8);
        assert_eq!(find(&attributes, 7), Some(&b"abcde"[..]));
        assert_eq!(find(&attributes, INDEX), Some(&42u32.to_ne_bytes()[..]));
        assert_eq!(find(&attributes, 3), None);
        assert_eq!(find(&attributes[..15], INDEX), None);
    }
}
