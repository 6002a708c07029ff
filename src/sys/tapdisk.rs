//! tapdisk, through which an XCP host gives disks to its guests: tap-ctl, of blktap.
//!
//! xapi asks for the back end `vbd3`. The daemon that is it, tapback, talks to a tapdisk and to nothing else
//! (blktap, `tapback/backend.c`: any other device is ignored), so on a host that has tap-ctl a tapdisk is put
//! over the block device of a disk. tapdisk is the only record of itself: the link that its users find it by
//! names its process and its minor number.

mod start;
mod stats;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::sys::tool::Tool;
use crate::sys::{process, run_dir};
pub use start::{Starting, sweep};
pub use stats::Stats;

/// Where a tapdisk listens: `nbd<pid>.<minor>`.
const SOCKETS: &str = "/run/blktap-control";
/// There if the kernel has blktap: then a tapdisk has a block device.
const KERNEL: &str = "/dev/xen/blktap-2/control";
/// The block device of a tapdisk, where it has one, with its minor number behind this.
const OWN: &str = "/dev/xen/blktap-2/tapdev";
/// How long tapdisk may take to write what it holds, or to open an image.
const DEADLINE: Duration = Duration::from_secs(150);
/// How long tap-ctl may take for what waits for no storage.
const SOON: Duration = Duration::from_secs(30);

/// The word for no second place.
pub const NO_MIRROR: &str = "null";
/// A second place that there is none: tapdisk goes on without, and says that sending failed ([`Stats`]).
pub const NOWHERE: &str = "nbd:lost";

/// Whether a word of xapi says where tapdisk is to send what is written to a disk: `nbd:` and the name of a socket that xapi
/// passed to tapdisk, or [`NO_MIRROR`]. tapdisk would open any file as well.
pub fn is_secondary(word: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.len() < 256 && name.bytes().all(|byte| byte.is_ascii_graphic());
    word == NO_MIRROR || word.strip_prefix("nbd:").is_some_and(is_name)
}

/// The kinds of blktap that a host may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blktap {
    /// Nothing: block devices are used as they are.
    Absent,
    /// Since version 4: a socket and no block device.
    Socket,
    /// Up to version 3, as XCP-ng 8.3 has it: a block device and a socket.
    Device,
}

pub fn present() -> Blktap {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("tap-ctl").is_file()) {
        return Blktap::Absent;
    }
    if Path::new(KERNEL).exists() { Blktap::Device } else { Blktap::Socket }
}

/// A tapdisk and the number of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tapdisk {
    pid: u32,
    minor: u32,
}

impl fmt::Display for Tapdisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.pid, self.minor)
    }
}

/// A tapdisk as `tap-ctl list` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub tapdisk: Tapdisk,
    /// Bits; 0x10: a pause was asked for, 0x20: it is paused.
    state: u32,
    /// `aio`, `vhd`, `qcow2`; empty for one that has nothing open.
    pub driver: String,
    /// What it has open.
    pub path: PathBuf,
}

impl Running {
    pub fn is_paused(&self) -> bool {
        self.state & 0x20 != 0
    }

    /// A pause was asked for and is not over: 0x4 and 0x8 let requests wait, 0x10 and 0x20 are a pause that begins and one that lasts.
    pub fn is_pausing(&self) -> bool {
        self.state & 0x3c != 0
    }
}

/// The links by which users find the tapdisks of this host: one for each VDI, in a directory of its SR.
pub fn links() -> impl Iterator<Item = PathBuf> {
    let below = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    below(run_dir::tapdisks().join("nbd")).flat_map(below).filter(|path| path.is_symlink())
}

/// The tapdisks of this host.
///
/// # Errors
/// [`Error::Tool`] if `tap-ctl` fails, or answers what is not understood.
pub fn list() -> Result<Vec<Running>> {
    let answer = tap_ctl_within(SOON, &["list"])?;
    parse_list(&answer).ok_or_else(|| misunderstood("list", &answer))
}

/// `pid=12 minor=0 state=0 args=vhd:/path/of an image`; XCP-ng 8.3, "Look-up algorithm". Of a number without a process, or a process
/// without a disk, only that much is told.
pub fn parse_list(text: &str) -> Option<Vec<Running>> {
    let line = |line: &str| {
        let (words, args) = line.trim().split_once(" args=").unwrap_or((line.trim(), ""));
        let words: Vec<&str> = words.split(' ').collect();
        let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key));
        let (driver, path) = args.split_once(':').unwrap_or(("", ""));
        let number = |key: &str| value(key).and_then(|text| text.parse().ok()).unwrap_or_default();
        value("pid=").or(value("minor="))?;
        Some(Running {
            tapdisk: Tapdisk { pid: number("pid="), minor: number("minor=") },
            state: u32::from_str_radix(value("state=").unwrap_or("0").trim_start_matches("0x"), 16).unwrap_or_default(),
            driver: driver.to_owned(),
            path: PathBuf::from(path),
        })
    };
    text.lines().filter(|text| !text.trim().is_empty()).map(line).collect()
}

impl Tapdisk {
    pub fn new(pid: u32, minor: u32) -> Tapdisk {
        Tapdisk { pid, minor }
    }

    pub fn pid(self) -> u32 {
        self.pid
    }

    pub fn minor(self) -> u32 {
        self.minor
    }

    /// The one that a link names, if it lives.
    pub fn at(link: &Path) -> Option<Tapdisk> {
        let target = fs::read_link(link).ok()?;
        let found = parse_socket(target.file_name()?.to_str()?)?;
        // The number of one that was killed may have passed to another process.
        (is_bound(&target) && found.lives()).then_some(found)
    }

    /// The one that listens at a socket, by the name of the socket.
    pub fn of_socket(path: &Path) -> Option<Tapdisk> {
        path.parent().filter(|dir| *dir == Path::new(SOCKETS))?;
        parse_socket(path.file_name()?.to_str()?)
    }

    /// Where it listens.
    pub fn socket(self) -> PathBuf {
        Path::new(SOCKETS).join(format!("nbd{}.{}", self.pid, self.minor))
    }

    /// Its own block device, where it has one.
    pub fn device(self) -> Option<PathBuf> {
        let own = PathBuf::from(format!("{OWN}{}", self.minor));
        fs::metadata(&own).is_ok_and(|meta| meta.file_type().is_block_device()).then_some(own)
    }

    /// The link by which users find it.
    pub fn published(self) -> Option<PathBuf> {
        let socket = self.socket();
        links().find(|link| fs::read_link(link).is_ok_and(|to| to == socket))
    }

    /// Starts one over a block device that users find by `link`. Answers its own block device, where it has one.
    ///
    /// # Errors
    /// Those of [`Tapdisk::spawn`], [`Tapdisk::open`] and [`Tapdisk::publish`]; the tapdisk is ended then.
    pub fn start(device: &Path, read_only: bool, link: &Path) -> Result<Option<PathBuf>> {
        let (tapdisk, starting) = Tapdisk::spawn()?;
        tapdisk.open("aio", device, read_only, None)?;
        tapdisk.publish(link).inspect_err(|_| drop(tapdisk.stop()))?;
        starting.is_found();
        Ok(tapdisk.device())
    }

    /// Starts one without a disk, to which nothing leads yet; see [`start`].
    ///
    /// # Errors
    /// [`Error::Tool`] if `tap-ctl` is missing or refuses a step, and with its answer if that has no minor number or
    /// process ID; [`Error::Io`] if it cannot be noted.
    pub fn spawn() -> Result<(Tapdisk, Starting)> {
        let mut starting = Starting::begin()?;
        let allocated = tap_ctl_within(SOON, &["allocate"])?;
        let minor = trailing_number(&allocated).ok_or_else(|| misunderstood("allocate", &allocated))?;
        starting.has_number(minor)?;
        let tool = Tool::new("tap-ctl").arg("spawn").deadline(SOON);
        let spawned = tool.env(start::VARIABLE, &starting.note().to_string_lossy()).run()?.stdout.trim().to_owned();
        let pid = spawned.parse().map_err(|_| misunderstood("spawn", &spawned))?;
        let tapdisk = Tapdisk { pid, minor };
        tapdisk.tell("attach", &[])?;
        Ok((tapdisk, starting))
    }

    /// Makes it serve what is at `path`, by one of its drivers. `log`: where it logs the blocks that are written.
    ///
    /// # Errors
    /// [`Error::Tool`] with the refusal of `tap-ctl`.
    pub fn open(self, driver: &str, path: &Path, read_only: bool, log: Option<&Path>) -> Result<()> {
        let (image, log) = (format!("{driver}:{}", path.display()), log.map(|log| log.display().to_string()));
        let mut how = vec!["-a", image.as_str()];
        if read_only {
            how.push("-R");
        }
        how.extend(log.iter().flat_map(|log| ["-C", log.as_str()]));
        self.tell("open", &how)
    }

    /// Ends one that has nothing open.
    pub fn abandon(self) {
        let _ = self.tell("detach", &[]);
        self.free();
    }

    /// Gives the minor number of one that has ended back.
    pub fn free(self) {
        let _ = tap_ctl_within(SOON, &["free", "-m", &self.minor.to_string()]);
    }

    /// Kills its process, if it is still the one that began then ([`Tapdisk::began`]) and one that this package started: what a record
    /// says may be wrong, and a number may have passed to another process.
    pub fn kill(self, began: u64) {
        if self.began() == Some(began) && start::is_ours(self.pid) {
            let _ = signal::kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        }
    }

    /// Whether its process does.
    pub fn lives(self) -> bool {
        // One that nobody waited for has no executable any more.
        fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok()
    }

    /// When its process began, in clock ticks after the boot: no other process of this number began then.
    pub fn began(self) -> Option<u64> {
        process::stat(self.pid, 22)
    }

    /// What `tap-ctl list` shows of it. `None`: it has no disk, or does not answer.
    ///
    /// # Errors
    /// Those of [`list`].
    pub fn shown(self) -> Result<Option<Running>> {
        let answer = tap_ctl_within(SOON, &["list", "-p", &self.pid.to_string()])?;
        let all = parse_list(&answer).ok_or_else(|| misunderstood("list", &answer))?;
        Ok(all.into_iter().find(|running| running.tapdisk == self))
    }

    /// What it says of its images, and of what it sends.
    ///
    /// # Errors
    /// [`Error::Tool`] if `tap-ctl` fails, or answers what is not understood.
    pub fn stats(self) -> Result<Stats> {
        let answer = tap_ctl_within(SOON, &["stats", "-p", &self.pid.to_string(), "-m", &self.minor.to_string()])?;
        Stats::parse(&answer).ok_or_else(|| misunderstood("stats", &answer))
    }

    /// Lets requests end and closes the image and all its parents; requests wait from then on.
    ///
    /// # Errors
    /// [`Error::Tool`] if `tap-ctl` refuses it.
    pub fn pause(self) -> Result<()> {
        self.tell("pause", &[])
    }

    /// Opens what has the image's name now and lets requests go on. `log`: as of [`Tapdisk::open`]; without, none is written.
    /// `secondary`: see [`is_secondary`]; without, it stays what it was.
    ///
    /// # Errors
    /// [`Error::Tool`] if `tap-ctl` refuses it; it stays paused then.
    pub fn unpause(self, log: Option<&Path>, secondary: Option<&str>) -> Result<()> {
        let log = log.map(|log| log.display().to_string());
        let log = log.iter().flat_map(|log| ["-c", log.as_str()]);
        let how: Vec<&str> = log.chain(secondary.into_iter().flat_map(|it| ["-2", it])).collect();
        self.tell("unpause", &how)
    }

    /// Lets it write what it holds and ends it.
    ///
    /// # Errors
    /// [`Error::Tool`] with the first step that `tap-ctl` refused. The later steps are tried all the same.
    pub fn stop(self) -> Result<()> {
        let closed = self.tell("close", &["-t", "120"]);
        let detached = self.tell("detach", &[]);
        let freed = tap_ctl_within(SOON, &["free", "-m", &self.minor.to_string()]).map(drop);
        closed.and(detached).and(freed)
    }

    /// Sends what is written to the disk to a second place as well: all that is written from an instant on at which nothing was
    /// under way. `secondary`: see [`is_secondary`]. If tapdisk refuses it, the disk goes on without.
    ///
    /// # Errors
    /// [`Error::Tool`] with the step that `tap-ctl` refused.
    pub fn mirror(self, secondary: &str) -> Result<()> {
        self.pause()?;
        self.unpause(None, Some(secondary)).map_err(|refused| refused.undone(self.unpause(None, Some(NO_MIRROR))))
    }

    /// Ends a pause that nobody else ends. Idempotent.
    ///
    /// # Errors
    /// [`Error::Tool`] if `tap-ctl` refuses it.
    pub fn resume(self) -> Result<()> {
        match list()?.iter().any(|running| running.tapdisk == self && running.is_paused()) {
            true => self.unpause(None, None),
            false => Ok(()),
        }
    }

    /// Makes it found by `link`.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory or the link cannot be made, or something else than a file or link has its name.
    pub fn publish(self, link: &Path) -> Result<()> {
        let dir = link.parent().expect("a link has a directory");
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        match fs::remove_file(link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("replace", link)(e)),
            _ => {}
        }
        symlink(self.socket(), link).map_err(Error::io("link", link))
    }

    fn tell(self, what: &str, more: &[&str]) -> Result<()> {
        let soon = matches!(what, "attach" | "detach");
        self.tell_within(if soon { SOON } else { DEADLINE }, what, more)
    }

    fn tell_within(self, deadline: Duration, what: &str, more: &[&str]) -> Result<()> {
        let (pid, minor) = (self.pid.to_string(), self.minor.to_string());
        let mut words = vec![what, "-p", &pid, "-m", &minor];
        words.extend(more);
        tap_ctl_within(deadline, &words).map(drop)
    }
}

fn tap_ctl_within(deadline: Duration, words: &[&str]) -> Result<String> {
    Ok(Tool::new("tap-ctl").args(words).deadline(deadline).run()?.stdout.trim().to_owned())
}

fn misunderstood(what: &str, answer: &str) -> Error {
    Error::Tool { argv: format!("tap-ctl {what}"), how: format!("answered {answer:?}"), stderr: String::new() }
}

/// Whether a process has the socket of this name. A tapdisk that was killed leaves the name.
fn is_bound(path: &Path) -> bool {
    let asked = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    // Of another type than ours: nothing has reached the process. Without one, the answer is ECONNREFUSED.
    asked.is_err_and(|e| e.raw_os_error() == Some(libc::EPROTOTYPE))
}

/// `nbd<pid>.<minor>`
fn parse_socket(name: &str) -> Option<Tapdisk> {
    let (pid, minor) = name.strip_prefix("nbd")?.split_once('.')?;
    Some(Tapdisk { pid: pid.parse().ok()?, minor: minor.parse().ok()? })
}

fn trailing_number(path: &str) -> Option<u32> {
    let start = path.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    path[start..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_tap_ctl_is_read_with_its_blanks() {
        let text =
            "pid=7 minor=3 state=0x2a args=vhd:/a b/c=d:e.vhd\npid=8 minor=- state=0 args=\n       -      -    \n";
        assert_eq!(parse_list(text), None);
        let found = parse_list(text.rsplit_once("\n  ").unwrap().0).unwrap();
        assert_eq!(found[0].tapdisk, Tapdisk { pid: 7, minor: 3 });
        assert!(found[0].is_paused() && !found[1].is_paused());
        assert_eq!((found[0].driver.as_str(), found[0].path.as_path()), ("vhd", Path::new("/a b/c=d:e.vhd")));
        assert_eq!((found[1].driver.as_str(), found[1].tapdisk.to_string().as_str()), ("", "8.0"));
        assert_eq!(parse_list(""), Some(Vec::new()));
        // A number that is given away, and a process that has none yet, as blktap 4 tells of them.
        let found = parse_list("minor=0\npid=7 minor=1 state=0 args=aio:/dev/loop0\npid=9\n").unwrap();
        let numbers: Vec<_> = found.iter().map(|running| running.tapdisk.to_string()).collect();
        assert_eq!(numbers, ["0.0", "7.1", "9.0"]);
    }

    #[test]
    fn a_second_place_is_a_socket_that_was_passed_or_none() {
        for (word, is) in [
            ("nbd:mirror_vbd/3/xvda", true),
            (NO_MIRROR, true),
            ("nbd:", false),
            ("", false),
            ("aio:/etc/shadow", false),
            ("nbd:a b", false),
            ("-2", false),
        ] {
            assert_eq!(is_secondary(word), is, "{word:?}");
        }
    }

    #[test]
    fn names_are_read_as_tap_ctl_and_tapdisk_write_them() {
        assert_eq!(trailing_number("/dev/xen/blktap-2/tapdev12"), Some(12));
        assert_eq!(trailing_number("/run/blktap-control/tapdisk/tapdisk-0"), Some(0));
        assert_eq!(trailing_number("none"), None);
        assert_eq!(parse_socket("nbd123.4"), Some(Tapdisk { pid: 123, minor: 4 }));
        for bad in ["nbd", "nbd1", "nbd.1", "nbdx.1", "ndb1.1", "nbd1.1.1"] {
            assert_eq!(parse_socket(bad), None, "{bad}");
        }
    }
}
