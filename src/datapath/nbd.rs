//! A disk behind the kernel's nbd: the transmission phase of the nbd protocol over socket pairs.
//!
//! Protocol: `doc/proto.md` of the NetworkBlockDevice project, "Transmission phase", simple replies. There is no
//! handshake: the kernel is told size and flags by netlink. Wants Linux 5.15, which keeps with each device who is
//! behind it (`/sys/block/nbdN/backend`) after that one died; older kernels get [`fuse`](super::fuse).
//!
//! Every connection has its threads. One of them at a time reads a request, gives the socket to the next and
//! works; answers are sent in the order in which they are ready.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt, socketpair, sockopt};

use super::THREADS;
use super::disk::Disk;
use super::fuse::backing_file;
use super::netlink::{self, Nbd};
use crate::error::{Error, Result};
use crate::sys::blockdev;
use crate::sys::loopdev::Detached;
use crate::sys::tool::Tool;
use crate::types::Done;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Bytes of a request's and a reply's header.
const REQUEST: usize = 28;
const REPLY: usize = 16;
/// The kernel sends no larger request.
const LONGEST: usize = 64 << 20;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;

const HAS_FLAGS: u64 = 1;
const READ_ONLY: u64 = 1 << 1;
const SEND_FLUSH: u64 = 1 << 2;
const SEND_FUA: u64 = 1 << 3;
const SEND_TRIM: u64 = 1 << 5;
const SEND_WRITE_ZEROES: u64 = 1 << 6;
const CAN_MULTI_CONN: u64 = 1 << 8;

/// Whether this kernel has an nbd that will do. Loads the module.
pub fn available() -> bool {
    kernel_at_least(5, 15) && (Nbd::open().is_ok() || load_module())
}

fn load_module() -> bool {
    let _ = Tool::new("modprobe").args(["-q", "nbd"]).deadline(Duration::from_secs(10)).run();
    Nbd::open().is_ok()
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// The nbd devices that have a backend: their names, what they say of it, and the process that connected them.
pub fn connected() -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().to_str().filter(|n| n.starts_with("nbd")).map(str::to_owned) else {
            continue;
        };
        if let Ok(backend) = fs::read_to_string(entry.path().join("backend")) {
            found.push((name, PathBuf::from(backend.trim_end_matches('\n'))));
        }
    }
    found
}

fn index(device: &Path) -> Option<u32> {
    device.file_name()?.to_str()?.strip_prefix("nbd")?.parse().ok()
}

/// Removes a device.
///
/// Netlink would take it from under its users, so it is opened exclusively first, which keeps mounts and other
/// devices away until it is gone, and whoever else has it open is looked for.
pub fn detach(device: &Path) -> Result<Detached> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let until = Instant::now() + PATIENCE;
    let number = index(device).ok_or_else(|| Error::io("detach", device)(io::ErrorKind::InvalidInput.into()))?;
    if blockdev::number(device).is_none() {
        return Ok(Detached::Done(Done::Already));
    }
    let exclusive = loop {
        let holder = blockdev::claimed(device).or_else(|| blockdev::openers(device));
        let exclusive = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
        match (holder, exclusive) {
            (None, Ok(file)) => {
                // The last that was written through the page cache. A dead server can't take it any more.
                let _ = file.sync_all();
                break file;
            }
            (Some(who), _) if !(who.contains("udev") || who.contains("blkid")) => return Ok(Detached::Busy(who)),
            (who, _) if Instant::now() >= until => {
                return Ok(Detached::Busy(who.unwrap_or_else(|| "something in the kernel".to_owned())));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let gone = Nbd::open().and_then(|nbd| nbd.disconnect(number));
    drop(exclusive);
    match gone {
        Ok(()) => Ok(Detached::Done(Done::Changed)),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(Detached::Done(Done::Already)),
        Err(e) => Err(Error::io("disconnect", device)(e)),
    }
}

/// A disk that is being served.
pub struct Export {
    pub device: PathBuf,
    index: u32,
    /// What the kernel was told of it.
    backend: PathBuf,
    size: AtomicU64,
}

/// The threads that serve it.
pub struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Returns when the kernel has hung up.
    pub fn wait(self) -> Result<()> {
        for thread in self.0 {
            thread.join().map_err(|_| Error::io("serve", "nbd")(io::Error::other("a thread panicked")))?;
        }
        Ok(())
    }
}

impl Export {
    pub fn start(disk: &Arc<Disk>) -> Result<(Export, Threads)> {
        let fail = |op| Error::io(op, "nbd");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let connections = cores.min(4);
        let mut threads = Vec::new();
        let mut sockets = Vec::new();
        for _ in 0..connections {
            let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
                .map_err(Error::sys("connect", "nbd"))?;
            for end in [&ours, &theirs] {
                // Room for a large request: fewer switches between the kernel and us. Without privilege, less.
                let _ = setsockopt(end, sockopt::SndBufForce, &(4 << 20));
            }
            let connection = Arc::new(Connection {
                reading: Mutex::new(Reader { buffer: vec![0; 64 << 10], start: 0, end: 0 }),
                writing: Mutex::new(()),
                socket: ours,
                disk: disk.clone(),
            });
            for _ in 0..(THREADS / connections).max(2) {
                let connection = connection.clone();
                threads.push(std::thread::spawn(move || connection.serve()));
            }
            sockets.push(theirs);
        }
        let read_only = if disk.source().read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES };
        let size = disk.size().unwrap_or(0);
        let backend = backing_file(std::process::id(), &disk.source().path);
        let device = netlink::Device {
            size,
            flags: HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | read_only,
            sockets: &sockets,
            backend: backend.as_os_str().as_encoded_bytes(),
        };
        let index = Nbd::open().and_then(|nbd| nbd.connect(&device)).map_err(fail("make a device with"))?;
        let device = format!("/dev/nbd{index}").into();
        Ok((Export { device, index, backend, size: AtomicU64::new(size) }, Threads(threads)))
    }

    /// Makes the device as large as the disk is now.
    pub fn resized(&self, size: u64) -> Result<()> {
        if self.size.load(Relaxed) == size {
            return Ok(());
        }
        let backend = self.backend.as_os_str().as_encoded_bytes();
        let done = Nbd::open().and_then(|nbd| nbd.resize(self.index, size, backend));
        done.map_err(Error::io("resize", &self.device))?;
        self.size.store(size, Relaxed);
        Ok(())
    }
}

struct Connection {
    reading: Mutex<Reader>,
    writing: Mutex<()>,
    socket: OwnedFd,
    disk: Arc<Disk>,
}

struct Request {
    flags: u16,
    kind: u16,
    cookie: [u8; 8],
    offset: u64,
    len: usize,
}

impl Connection {
    fn serve(&self) {
        let mut payload = Vec::new();
        // Without a request the kernel has hung up or lost its way: there is nobody to answer.
        while let Ok(Some(request)) = self.next(&mut payload) {
            if self.answer(&request, &payload).is_err() {
                break;
            }
        }
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }

    fn next(&self, payload: &mut Vec<u8>) -> io::Result<Option<Request>> {
        let mut reader = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut header = [0; REQUEST];
        if !reader.fill(&self.socket, &mut header)? {
            return Ok(None);
        }
        let be16 = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let be32 = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let request = Request {
            flags: be16(4),
            kind: be16(6),
            cookie: header[8..16].try_into().expect("8 bytes"),
            offset: u64::from_be_bytes(header[16..24].try_into().expect("8 bytes")),
            len: be32(24) as usize,
        };
        if be32(0) != REQUEST_MAGIC || request.kind == DISCONNECT {
            return Ok(None);
        }
        if request.kind == WRITE {
            if request.len > LONGEST {
                return Err(Errno::EPROTO.into());
            }
            if payload.len() < request.len {
                payload.resize(request.len, 0);
            }
            if !reader.fill(&self.socket, &mut payload[..request.len])? {
                return Ok(None);
            }
        }
        Ok(Some(request))
    }

    fn answer(&self, request: &Request, payload: &[u8]) -> io::Result<()> {
        let (offset, len) = (request.offset, request.len as u64);
        let result = match request.kind {
            READ if request.len <= LONGEST => {
                return self.disk.read(offset, request.len, |bytes| match bytes {
                    Ok(bytes) => self.reply(request, 0, bytes),
                    Err(errno) => self.reply(request, errno as u32, &[]),
                });
            }
            _ if self.disk.source().read_only && request.kind != FLUSH => Err(Errno::EPERM),
            WRITE => self.disk.write(&payload[..request.len], offset),
            FLUSH if self.disk.source().read_only => Ok(()),
            FLUSH => self.disk.flush(),
            TRIM => self.disk.discard(offset, len),
            WRITE_ZEROES => self.disk.zero(offset, len),
            _ => Err(Errno::EINVAL),
        };
        let result = match result {
            Ok(()) if request.flags & FUA != 0 => self.disk.flush(),
            other => other,
        };
        self.reply(request, result.err().map_or(0, on_the_wire), &[])
    }

    fn reply(&self, request: &Request, errno: u32, data: &[u8]) -> io::Result<()> {
        let mut header = [0; REPLY];
        header[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        header[4..8].copy_from_slice(&errno.to_be_bytes());
        header[8..].copy_from_slice(&request.cookie);
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < REPLY + data.len() {
            let parts =
                [io::IoSlice::new(&header[done.min(REPLY)..]), io::IoSlice::new(&data[done.saturating_sub(REPLY)..])];
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => done += sent,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// The error numbers that the protocol has; the kernel makes EIO of most.
fn on_the_wire(errno: Errno) -> u32 {
    match errno {
        Errno::EPERM | Errno::EINVAL | Errno::ENOSPC | Errno::ENOMEM => errno as u32,
        Errno::EROFS | Errno::EACCES => Errno::EPERM as u32,
        Errno::EFBIG | Errno::EDQUOT => Errno::ENOSPC as u32,
        _ => Errno::EIO as u32,
    }
}

/// What came from the socket and was not asked for yet: requests come several at a time.
struct Reader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Reader {
    /// Fills `to`. `false`: the other end hung up.
    fn fill(&mut self, socket: &impl AsFd, mut to: &mut [u8]) -> io::Result<bool> {
        let fd = socket.as_fd().as_raw_fd();
        while !to.is_empty() {
            if self.start < self.end {
                let n = to.len().min(self.end - self.start);
                to[..n].copy_from_slice(&self.buffer[self.start..self.start + n]);
                self.start += n;
                to = &mut to[n..];
                continue;
            }
            // What is large goes where it belongs.
            let direct = to.len() >= self.buffer.len() / 4;
            let got = match recv(fd, if direct { &mut *to } else { &mut self.buffer }, MsgFlags::empty()) {
                Ok(0) => return Ok(false),
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            if direct {
                to = &mut to[got..];
            } else {
                (self.start, self.end) = (0, got);
            }
        }
        Ok(true)
    }
}
