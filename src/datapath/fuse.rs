//! A disk as one file of a FUSE filesystem, and a loop device over the file.
//!
//! The filesystem is mounted for the moment in which the loop device takes the file, then detached from the
//! tree: only the loop device holds it, and the kernel removes it with the last user of the device, whoever
//! detaches it and whatever became of the server. The server mounts; the process that started it opens the file and makes
//! the device, see [`server`](super::server). In the kernel's words the backing file of the loop device is
//! `/sm-datapath/<pid of the server>/<path of the image>`, which says all that [`find`](super::find) asks.
//!
//! One thread takes the requests and does at once what does not wait: reads of what is in the page cache, writes
//! into it. The rest goes to a [`pool`](super::pool). Several threads that take requests turn about, and each has
//! to be woken: for one request at a time that was five times slower on a busy machine (docs/datapath.md).
//!
//! Loop devices use direct I/O: a request goes to the server as it is, and the page cache in use is that of the
//! image.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, Session, SessionACL, WriteFlags,
};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Source;
use super::disk::Disk;
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::sys::loopdev::{self, Backing, SERVED};
use crate::sys::tool::Tool;

const DEVICE: &str = "/dev/fuse";
/// The kernel asks again each time: the size can change.
const TTL: Duration = Duration::ZERO;
const MAX_REQUEST: u32 = 1 << 20;

/// The path that the loop device over a served image has for its backing file.
pub fn backing_file(pid: u32, image: &Path) -> PathBuf {
    Path::new("/").join(SERVED).join(pid.to_string()).join(image.strip_prefix("/").unwrap_or(image))
}

/// Server and image, from a backing file as the kernel shows it.
pub fn parse_backing_file(path: &Path) -> Option<(u32, PathBuf)> {
    let below = path.strip_prefix(Path::new("/").join(SERVED)).ok()?;
    let mut components = below.components();
    let pid = components.next()?.as_os_str().to_str()?.parse().ok()?;
    Some((pid, Path::new("/").join(components.as_path())))
}

/// A disk that is being served.
pub struct Export {
    notifier: Notifier,
    file: INodeNo,
    size: Arc<AtomicU64>,
}

/// The thread that serves it.
pub struct Thread(JoinHandle<io::Result<()>>);

impl Thread {
    /// Returns when nobody uses the device any more.
    pub fn wait(self) -> Result<()> {
        match self.0.join() {
            // How the threads that come late learn that the filesystem is gone.
            Ok(Err(e)) if e.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            Ok(result) => result.map_err(Error::io("serve through", DEVICE)),
            Err(_) => Err(Error::io("serve through", DEVICE)(io::Error::other("a thread panicked"))),
        }
    }
}

impl Export {
    /// Mounts the filesystem on the empty directory `scratch` and serves it.
    pub fn start(disk: &Arc<Disk>, scratch: &Path) -> Result<(Export, Thread)> {
        let names: Vec<OsString> = backing_file(std::process::id(), &disk.source().path)
            .components()
            .filter_map(|c| if let Component::Normal(name) = c { Some(name.to_owned()) } else { None })
            .collect();
        let file = INodeNo(names.len() as u64 + 1);
        let size = Arc::new(AtomicU64::new(disk.size().unwrap_or(0)));
        let tree = Tree {
            names,
            disk: disk.clone(),
            size: size.clone(),
            pool: Pool::start(),
            written: AtomicBool::new(false),
        };

        if !Path::new(DEVICE).exists() {
            // On most hosts udev makes the node, and the module comes with its first user.
            let _ = Tool::new("modprobe").args(["-q", "fuse"]).deadline(Duration::from_secs(10)).run();
        }
        let channel = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(Error::io("open", DEVICE))?;
        mount_on(scratch, &channel)?;
        let mut config = Config::default();
        config.n_threads = Some(1);
        config.acl = SessionACL::All;
        let session = Session::from_fd(tree, OwnedFd::from(channel), SessionACL::All, config).map_err(|e| {
            unmount(scratch);
            Error::io("talk FUSE through", DEVICE)(e)
        })?;
        let notifier = session.notifier();
        let thread = std::thread::spawn(move || session.run());
        Ok((Export { notifier, file, size }, Thread(thread)))
    }

    /// Makes the file as large as the disk is now. `false`: it is already. The device is for another process, see [`fit`].
    pub fn resized(&self, size: u64) -> Result<bool> {
        let before = self.size.swap(size, Relaxed);
        if before == size {
            return Ok(false);
        }
        if size > before {
            // A byte put into the kernel's cache of the file moves its end, as the kernel knows it; the byte itself
            // is dropped, nobody reads the cache. A loop device of Linux 6.15 asks for the size by itself.
            let told = self.notifier.store(self.file, size - 1, &[0]);
            let told = told.and_then(|()| self.notifier.inval_inode(self.file, 0, 0));
            told.map_err(Error::io("tell the kernel a size through", DEVICE))?;
        }
        Ok(true)
    }
}

fn mount_on(scratch: &Path, channel: &File) -> Result<()> {
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", channel.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(SERVED), scratch, Some("fuse"), flags, Some(options.as_str()))
        .map_err(Error::sys("mount FUSE on", scratch))
}

/// Takes the filesystem out of the tree, and the directory away. It lives on as long as its file is open.
pub fn unmount(scratch: &Path) {
    let _ = umount2(scratch, MntFlags::MNT_DETACH);
    let _ = fs::remove_dir(scratch);
}

/// Removes what a killed server left on its scratch directory, and ends its connection: whoever waits for it is let go.
pub fn sweep_mount(scratch: &Path) {
    let _ = umount2(scratch, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    let _ = fs::remove_dir(scratch);
}

/// Makes the loop device over the file that the process `server` has mounted on `scratch`, and unmounts that. Not for the
/// server itself: it would wait for its own answers.
pub fn connect(scratch: &Path, server: u32, source: &Source) -> Result<PathBuf> {
    let backing = backing_file(server, &source.path);
    let path = scratch.join(backing.strip_prefix("/").unwrap_or(&backing));
    let served = OpenOptions::new().read(true).write(!source.read_only).open(&path);
    unmount(scratch);
    loopdev::attach(&served.map_err(Error::io("open the served", &path))?, &source.path, source.read_only)
}

/// Makes the device of a server as large as the file that it shows. Not for the server itself, see [`connect`].
pub fn fit(server: u32) -> Result<()> {
    for (backing, names) in loopdev::attached()? {
        if parse_backing_file(&backing).is_some_and(|(pid, _)| pid == server) {
            for name in names {
                loopdev::update_size(&Path::new("/dev").join(name), Backing::Path(&backing))?;
            }
        }
    }
    Ok(())
}

/// Directories one in another, at the end the file. Node `n` is called `names[n - 2]`; node 1 is the root.
struct Tree {
    names: Vec<OsString>,
    disk: Arc<Disk>,
    size: Arc<AtomicU64>,
    /// Does what may wait.
    pool: Pool,
    /// Something was written since the start.
    written: AtomicBool,
}

impl Tree {
    fn note_write(&self) {
        if !self.written.load(Relaxed) {
            self.written.store(true, Relaxed);
        }
    }

    fn attributes(&self, node: INodeNo) -> FileAttr {
        let is_file = node.0 == self.names.len() as u64 + 1;
        let size = if is_file { self.size.load(Relaxed) } else { 0 };
        FileAttr {
            ino: node,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

fn done(reply: ReplyEmpty, result: Result<(), nix::errno::Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(Errno::from_i32(errno as i32)),
    }
}

impl Filesystem for Tree {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wish in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_BIG_WRITES, InitFlags::FUSE_MAX_PAGES] {
            // A kernel that lacks one works without.
            let _ = config.add_capabilities(wish);
        }
        let _ = config.set_max_write(MAX_REQUEST);
        // Direct I/O of a loop device counts as background work; this is its queue depth.
        let _ = config.set_max_background(256);
        let _ = config.set_congestion_threshold(256);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.names.get(parent.0 as usize - 1) {
            Some(there) if there.as_bytes() == name.as_bytes() => {
                reply.entry(&TTL, &self.attributes(INodeNo(parent.0 + 1)), Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(node));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES | FopenFlags::FOPEN_NOFLUSH,
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let end = self.size.load(Relaxed).max(offset);
        let len = (end - offset).min(u64::from(size)) as usize;
        let answer = move |result: Result<&[u8], nix::errno::Errno>| match result {
            Ok(bytes) => reply.data(bytes),
            Err(errno) => reply.error(Errno::from_i32(errno as i32)),
        };
        if let Err(answer) = self.disk.try_read(offset, len, answer) {
            let disk = self.disk.clone();
            self.pool.run(move || disk.read(offset, len, answer));
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.note_write();
        let len = data.len() as u32;
        let answer = move |result| match result {
            Ok(()) => reply.written(len),
            Err(errno) => reply.error(Errno::from_i32(errno as i32)),
        };
        match self.disk.try_write(data, offset) {
            Some(result) => answer(result),
            None => {
                let (disk, data) = (self.disk.clone(), data.to_vec());
                self.pool.run(move || answer(disk.write(&data, offset)));
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A close(2), which promises nothing.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // A loop device is flushed while it is made, with locks of the kernel that all loop devices want: that must not
        // wait for storage.
        if self.disk.source().read_only || !self.written.load(Relaxed) {
            return reply.ok();
        }
        let disk = self.disk.clone();
        self.pool.run(move || done(reply, disk.flush()));
    }

    /// A loop device asks for a hole both when its user discards and when its user wants zeros.
    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.note_write();
        let disk = self.disk.clone();
        self.pool.run(move || done(reply, disk.zero(offset, length)));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }
}
