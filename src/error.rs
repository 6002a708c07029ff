//! The one error type. Variants are named after what happened to the user's thing and carry it; each
//! door maps them to its own numbers, once.

mod held;
mod line;
mod lun;
mod server;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::limits;
use crate::types::{Format, LostRange, Misread, MissingKey, Size, SrUuid, State, VdiUuid, nearest, shown};

pub use self::held::{HeldSr, Lost};
pub use self::line::one_line;
pub use self::lun::{LunFault, NotChosen, Offered, OfferedAdapter, OfferedLun, OfferedTarget};
pub use self::server::{Exported, Protocol, ServerFault};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {} is not valid: {expected}", Quoted(&shown(what, value)))]
    Invalid { what: &'static str, value: String, expected: String },
    /// A key of device_config that is not there or has no value. `given`: the keys that are there.
    #[error("{}", missing(key, given))]
    MissingKey { key: &'static str, given: String },
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    TooManyArguments(String),
    /// `similar`: the commands that may have been meant, the likeliest first.
    #[error("no such command {}; {}`--help` lists them", Quoted(name), meant(similar))]
    NoSuchCommand { name: String, similar: Vec<String> },
    #[error("{op} is not supported: {why}")]
    Unsupported { op: &'static str, why: String },
    /// A change that only the host that may change the SR makes.
    #[error(
        "{op} on this host is refused: SRmaster in device_config is false, so another host is the SR's master; ask that"
    )]
    NotMaster { op: &'static str },
    /// A change of an SR of other storage managers that is not served in it. `served`: what may be asked of it.
    #[error("{op} is refused: SR {sr} is LVHD, and this is not served in it; served are {served}")]
    ReadOnlySr { op: &'static str, sr: SrUuid, served: &'static str },
    /// An SR, or a disk, that this driver does not serve, and leaves as it is.
    #[error("this driver does not serve it: {why}")]
    Foreign { why: String },
    #[error("{what} of {} is too big: {limit}", Size(*bytes))]
    TooBig { what: &'static str, bytes: u64, limit: String },
    /// More than a number of bytes tells.
    #[error("{what} is too big: {limit}")]
    Oversized { what: String, limit: String },
    #[error("a disk of {} is too big: {format} holds {} at most", Size(*bytes), Size(*largest))]
    DiskTooBig { format: Format, bytes: u64, largest: u64 },
    /// A resize that would destroy data, which the caller did not allow.
    #[error("VDI {vdi} has {}; making it {} would destroy the data beyond that", Size(*now), Size(*wanted))]
    WouldShrink { vdi: VdiUuid, now: u64, wanted: u64 },
    /// The disk is there for its children only.
    #[error("{op} is not supported: VDI {vdi} is the hidden base of others; use one of those")]
    IsBase { op: &'static str, vdi: VdiUuid },

    #[error("no SR {sr} ({looked})")]
    NoSr { sr: SrUuid, looked: String },
    /// A name that no SR has on this host, or the UUID of an SR without a name. `known`: the names that there are.
    #[error("{}", unknown_sr(name, known))]
    UnknownSr { name: String, known: Vec<String> },
    /// A name that another SR has on this host.
    #[error(
        "the name {name} is that of SR {sr}, {place}; choose another, or take it from that SR by `sm sr_name {name} --forget`"
    )]
    NameTaken { name: String, sr: SrUuid, place: String },
    #[error("SR {sr} exists already ({found})")]
    SrExists { sr: SrUuid, found: String },
    #[error("SR {sr} is not available: {why}")]
    SrUnavailable { sr: SrUuid, why: String },
    /// The wait for another call on the SR ended.
    #[error("SR {sr} is not available: {holder} works on {what}")]
    Busy { sr: SrUuid, holder: String, what: String },
    #[error("no VDI {vdi} on SR {sr} (looked in {looked})")]
    NoVdi { vdi: VdiUuid, sr: SrUuid, looked: String },
    /// A word that is neither the label nor the start of the UUID of a VDI.
    #[error("no VDI on SR {sr} has the label {}, or a UUID that begins so with 4 digits or more", Quoted(word))]
    UnknownVdi { word: String, sr: SrUuid },
    #[error("VDI {vdi} exists already on SR {sr}")]
    VdiExists { vdi: VdiUuid, sr: SrUuid },
    #[error("VDI {vdi} on SR {sr} is in use by {holder}")]
    VdiInUse { vdi: VdiUuid, sr: SrUuid, holder: String },
    #[error(
        "VDI {vdi} on SR {sr} is the last of a chain of {depth} images, and {longest} is the limit: delete snapshots of \
         it and run `sm sr_collect`, or copy it to a new VDI"
    )]
    ChainTooLong { vdi: VdiUuid, sr: SrUuid, depth: usize, longest: usize },
    #[error("VDI {vdi} on SR {sr} may be attached on other hosts: {why}")]
    NotPaused { vdi: VdiUuid, sr: SrUuid, why: String },
    #[error("VDI {vdi} on SR {sr}: {why}")]
    LockRefused { vdi: VdiUuid, sr: SrUuid, why: String },

    /// Changed block tracking of a disk cannot begin.
    #[error("changed blocks of VDI {vdi} on SR {sr} cannot be tracked: {why}")]
    NotTracked { vdi: VdiUuid, sr: SrUuid, why: String },
    #[error("the blocks that changed from VDI {from} to VDI {to} on SR {sr} are not known: {why}")]
    ChangesUnknown { from: VdiUuid, to: VdiUuid, sr: SrUuid, why: String },
    #[error("the changed blocks of VDI {vdi} on SR {sr} are not known for sure: {why}")]
    ChangesInconsistent { vdi: VdiUuid, sr: SrUuid, why: String },
    #[error("{device}: no such device or server: {why}")]
    NoDevice { device: String, why: String },
    #[error("{protocol} server {server}: {fault}: {why}")]
    Server { protocol: Protocol, server: String, fault: ServerFault, why: String },
    #[error("device_config lacks the key serverpath; NFS server {server} exports {}", listed(exports))]
    ExportNotChosen { server: String, exports: Vec<Exported> },
    /// A target or a LUN that device_config does not name, or that is not there.
    #[error("{0}")]
    NotChosen(Box<NotChosen>),
    /// This host's side of the way to a LUN. `lun`: the target, or the identifier of the LUN.
    #[error("{lun}: {fault}: {why}")]
    Lun { lun: String, fault: LunFault, why: String },
    #[error("{device} is in use: {holder}")]
    DeviceInUse { device: String, holder: String },
    /// The contents of the device are no SR with disks, and may be overwritten if their owner says so.
    #[error("{device} is in use: {holds}")]
    Occupied { device: String, holds: String },
    /// The device holds another SR, which the caller did not name.
    #[error("{device} is in use: it holds {held}")]
    HoldsSr { device: String, held: Box<HeldSr> },
    #[error("{} is not empty; an SR needs a directory of its own", path.display())]
    NotEmpty { path: PathBuf },
    /// An SR that was to be deleted without its disks.
    #[error("SR {sr} has {disks} VDIs, which would be lost; --yes deletes them")]
    HasVdis { sr: SrUuid, disks: usize },
    #[error("SR {sr} has {} free, and {} are needed", Size(*free), Size(*wanted))]
    NoSpace { sr: SrUuid, free: u64, wanted: u64 },
    /// The place of a new SR.
    #[error("SR {sr} would have {} at most, used or not, and {} are asked for", Size(*size), Size(*wanted))]
    PlaceTooSmall { sr: SrUuid, size: u64, wanted: u64 },
    #[error("the thin pool of SR {sr} is nearly full: {used}; add space or delete VDIs")]
    PoolFull { sr: SrUuid, used: String },
    #[error("{} could not be merged on SR {sr}: {}", counted(failures.len()), failures_of(failures))]
    NotMerged { sr: SrUuid, failures: Vec<(VdiUuid, Error)> },
    /// sr_check found so many faults that were not mended.
    #[error("SR {sr} is not whole: {mendable} of its faults can be mended, {lasting} cannot")]
    NotWhole { sr: SrUuid, mendable: usize, lasting: usize },
    /// vdi_export --rescue left these bytes out.
    #[error("VDI {vdi} is exported, with zeroes in the place of {} bytes that cannot be read", LostRange::total(lost))]
    ExportedInPart { vdi: VdiUuid, lost: Vec<LostRange> },
    #[error("{}: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    /// A line of a file that a person wrote.
    #[error("{}: {what}", at_line(path, *line))]
    BadLine { path: PathBuf, line: usize, what: String },
    /// A line of a model that no medium fits. `what` says why, with the medium that comes nearest.
    #[error("{}: no medium fits: {what}", at_line(path, *line))]
    NoMatch { path: PathBuf, line: usize, what: String },
    /// An index of a slot that is out of range, or that two lines have.
    #[error("{}: {what}", at_line(path, *line))]
    BadIndex { path: PathBuf, line: usize, what: String },
    /// A change of a layout that cannot be made in place.
    #[error("layout {layout} cannot be changed so: {what}")]
    Frozen { layout: String, what: String },
    /// A plan that was made of another state than there is now.
    #[error("the plan for layout {layout} does not fit any more: {why}; make a new one by sm plan")]
    StalePlan { layout: String, why: String },
    /// Some steps of a plan were done, and then one failed. `again`: the line that goes on.
    #[error(
        "{done} of {of} steps of layout {layout} are done; step {step} failed: {}; {again} goes on",
        one_line(cause)
    )]
    PartlyApplied { layout: String, done: usize, of: usize, step: String, cause: Box<Error>, again: String },
    /// A source of devices that there is not. `known`: those that there are.
    #[error("no backend is called {}; there are {}", Quoted(name), known.join(", "))]
    NoBackend { name: String, known: Vec<String> },

    /// Another call has the layout, the set of disks, or its place in a store. `remedy`: a clause, or nothing.
    #[error("{what} is locked by {holder}{remedy}")]
    Locked { what: String, holder: String, remedy: String },
    /// A set that has no such export in the stores where it was looked for.
    #[error("no export of {name} is there (looked in {looked}); `sm backup list` lists them by their exact names")]
    NoExport { name: String, looked: String },
    /// An export is not what its manifest says.
    #[error("{}: {what}", path.display())]
    NotVerified { path: PathBuf, what: String },
    /// An export that is encrypted, and none of the keys that it is for is there.
    #[error("{} is encrypted {why}", path.display())]
    Encrypted { path: PathBuf, why: String },
    /// Some disks of a set could not be exported, or the whole could not be published. The export before is as it was.
    /// `partial`: the directory that has the disks which were exported, if the caller wants to keep them.
    #[error("{set} was not exported: {}{}", parts_of(failures), kept_in(partial.as_deref()))]
    NotExported { set: String, failures: Vec<(String, Error)>, partial: Option<PathBuf> },
    /// A set was exported, and some of its disks, which were to be deleted then, were not.
    #[error("{set} is exported as run {run}, and not all of its disks are deleted: {}", parts_of(failures))]
    NotCleaned { set: String, run: String, failures: Vec<(String, Error)> },
    /// A hook did not let a command begin.
    #[error("a hook denied {op} of {set}: {}", one_line(cause))]
    HookDenied { op: &'static str, set: String, cause: Box<Error> },
    /// Not all disks of a set could be snapshotted, so none was.
    #[error("no snapshot of {set} was made: {}", parts_of(failures))]
    NoSnapshots { set: String, failures: Vec<(String, Error)> },
    #[error("{} has {} free, and {} are needed", path.display(), Size(*free), Size(*wanted))]
    StoreFull { path: PathBuf, free: u64, wanted: u64 },
    #[error("{} is not empty; --yes makes it a store all the same", path.display())]
    NotAStore { path: PathBuf },
    /// This host cannot publish disks in that way.
    #[error("this host cannot publish disks: {why}")]
    NoTarget { why: String },
    /// An object of the kernel's target that is not of this product, or not as it made it.
    #[error("the target's object {object} is not what sm made: {why}")]
    ForeignTarget { object: String, why: String },
    /// An object of the kernel's target that was to be made anew.
    #[error("the target's object {object} exists already")]
    TargetExists { object: String },
    /// Initiators would take two VDIs for one disk.
    #[error(
        "VDI {vdi} on SR {sr} would have the same world-wide name as VDI {other}, which this host publishes; publish a copy of it"
    )]
    WwnClash { vdi: VdiUuid, sr: SrUuid, other: VdiUuid },
    /// A VDI is published in another way than asked for.
    #[error("VDI {vdi} is published already, {what}; unpublish it first, to change that")]
    Published { vdi: VdiUuid, what: String },
    /// So many publications are not what their records say.
    #[error("{}", drifted(*count))]
    Drift { count: usize },

    #[error("cannot {op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
    /// The process that serves an image refused what it was asked for, or could not do it. `attempt`: what was tried, with
    /// which process. `errno`: of the system call that failed in it, if one did. `why`: its words.
    #[error("{attempt}: {why}")]
    ImageServer { attempt: String, errno: Option<i32>, why: String },
    #[error("{argv} {how}{}", stderr_part(stderr))]
    Tool { argv: String, how: String, stderr: String },
    /// The change has happened, at least in part, and what had to follow failed.
    #[error("{done}, and the same call again completes it: {}", one_line(cause))]
    Incomplete { done: String, cause: Box<Error> },
    #[error("{cause}; undoing it failed as well: {undo}")]
    Undo { cause: Box<Error>, undo: Box<Error> },
}

impl From<Misread> for Error {
    fn from(Misread { what, value, expected }: Misread) -> Error {
        Error::Invalid { what, value, expected }
    }
}

impl From<MissingKey> for Error {
    fn from(MissingKey { key, given }: MissingKey) -> Error {
        Error::MissingKey { key, given }
    }
}

impl State {
    /// The state of a VDI whose image, or what is stored beside it, could not be read.
    pub fn of(error: &Error) -> State {
        match error {
            Error::Unsupported { why, .. } | Error::Foreign { why } => State::Unsupported(why.clone()),
            other => State::Broken(one_line(other)),
        }
    }
}

impl Error {
    /// Closure for `map_err` that gives an I/O error the operation and the path it lacks.
    pub fn io(op: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { op, path, source: explained(source) }
    }

    /// Closure for `map_err` that gives the bare errno of a `nix` call the operation and the path it lacks.
    pub fn sys(op: &'static str, path: impl AsRef<Path>) -> impl FnOnce(nix::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |errno| Error::Io { op, path, source: explained(errno.into()) }
    }

    /// This error, and what `undo` of the steps before it failed with, if it did.
    pub fn undone(self, undo: Result<()>) -> Error {
        match undo {
            Ok(()) => self,
            Err(undo) => Error::Undo { cause: Box::new(self), undo: Box::new(undo) },
        }
    }

    /// This error of what had to follow a change that cannot be undone: the reader is told what was `done`, such as
    /// "VDI … was deleted, perhaps not durably". The call must be one that completes its work when it is repeated.
    pub fn after(self, done: String) -> Error {
        match self {
            // The innermost knows best how far it came.
            Error::Incomplete { .. } => self,
            cause => Error::Incomplete { done, cause: Box::new(cause) },
        }
    }

    /// Whether the error may come from an image that cannot be read or is not served, and not from who uses it.
    pub fn is_of_the_image(&self) -> bool {
        matches!(
            self,
            Error::Damaged { .. }
                | Error::Unsupported { .. }
                | Error::Foreign { .. }
                | Error::Io { .. }
                | Error::ImageServer { .. }
        )
    }

    /// The errno below an [`Error::Io`] or [`Error::ImageServer`], if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } => source.raw_os_error(),
            Error::ImageServer { errno, .. } => *errno,
            Error::Undo { cause, .. } | Error::Incomplete { cause, .. } => cause.errno(),
            _ => None,
        }
    }
}

/// The system says "File too large" of a limit of the caller as well, and Rust "failed to fill whole buffer" of a file that
/// ends too early.
fn explained(source: io::Error) -> io::Error {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        return io::Error::new(
            source.kind(),
            "it ends before all of it was read: it is cut off, or shorter than it says",
        );
    }
    let too_large = source.raw_os_error() == Some(nix::libc::EFBIG);
    match limits::file_size().filter(|_| too_large) {
        Some(most) => {
            let why = format!("this process may write files of {} at most (ulimit -f); raise the limit", Size(most));
            io::Error::new(source.kind(), format!("{source}: {why}"))
        }
        None => source,
    }
}

/// The value of `done`, if `end`, the step that has to follow in any case, worked as well. If both failed, both
/// failures are told.
///
/// # Errors
/// That of `done`, with that of `end` if both failed; else that of `end`.
pub fn ended<T>(done: Result<T>, end: Result<()>) -> Result<T> {
    match done {
        Ok(done) => end.map(|()| done),
        Err(cause) => Err(cause.undone(end)),
    }
}

/// Refuses at once what only root can do: half way through, a tool or a server would fail for a reason of its own.
///
/// # Errors
/// [`Error::Io`], access denied.
pub fn needs_root(op: &'static str, path: impl AsRef<Path>) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::io(op, path)(io::Error::new(io::ErrorKind::PermissionDenied, "it needs root")))
}

/// A line of a file; 0 stands for all of the file.
fn at_line(path: &Path, line: usize) -> String {
    match line {
        0 => path.display().to_string(),
        line => format!("{}: line {line}", path.display()),
    }
}

fn meant(similar: &[String]) -> String {
    if similar.is_empty() { String::new() } else { format!("did you mean {}? ", similar.join(" or ")) }
}

/// `known`: the names that SRs have.
fn unknown_sr(name: &str, known: &[String]) -> String {
    if name.parse::<SrUuid>().is_ok() {
        return format!(
            "no SR {name} is known on this host: -t and -d say where it is, and `sm sr_attach --name NAME -d DCONF {name}` gives it a \
             name; {}",
            known_srs(known)
        );
    }
    let meant = nearest(name, known.iter().map(String::as_str));
    let advice =
        meant.map_or_else(|| known_srs(known), |known| format!("did you mean {known}? `sm sr_list` lists them"));
    format!("no SR has the name {name} on this host; {advice}")
}

/// The names that SRs have on this host, for a person who lacks one.
pub fn known_srs(known: &[String]) -> String {
    /// How many names a line shows.
    const MOST: usize = 8;
    match known {
        [] => "no SR has one; `sm sr_create NAME` makes an SR, and `sm sr_attach --name NAME` gives a name to one that is there"
            .to_owned(),
        few if few.len() <= MOST => format!("SRs with a name are {}; `sm sr_list` lists all", few.join(", ")),
        _ => "`sm sr_list` lists SRs".to_owned(),
    }
}

/// `given`: the keys that there are, with spaces between.
fn missing(key: &str, given: &str) -> String {
    match given.split(' ').any(|is| is == key) {
        true => format!("the key {key} of device_config has an empty value"),
        false => format!("device_config lacks the key {key}; it has {}", if given.is_empty() { "none" } else { given }),
    }
}

fn drifted(count: usize) -> String {
    if count == 1 {
        "1 publication is not as its record says".to_owned()
    } else {
        format!("{count} publications are not as their records say")
    }
}

fn counted(images: usize) -> String {
    if images == 1 { "1 image".to_owned() } else { format!("{images} images") }
}

/// Each image that could not be merged, with its own reason.
fn failures_of(failures: &[(VdiUuid, Error)]) -> String {
    let each: Vec<String> = failures.iter().map(|(vdi, error)| format!("{vdi}: {}", one_line(error))).collect();
    each.join("; ")
}

/// Each part of a work that failed, with its own reason.
fn parts_of(failures: &[(String, Error)]) -> String {
    let each: Vec<String> = failures.iter().map(|(part, error)| format!("{part}: {}", one_line(error))).collect();
    each.join("; ")
}

fn kept_in(partial: Option<&Path>) -> String {
    partial.map(|dir| format!("; the other disks are in {}", dir.display())).unwrap_or_default()
}

/// A tool's own words, on one line.
fn stderr_part(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { String::new() } else { format!(": {}", lines.join("; ")) }
}

fn listed(exports: &[Exported]) -> String {
    let each: Vec<String> = exports.iter().map(|export| format!("{} ({})", export.path, export.access)).collect();
    if each.is_empty() { "nothing".to_owned() } else { each.join(", ") }
}

/// A caller's words in quotation marks, cut to a readable length.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 200;
        if self.0.chars().count() <= LONGEST {
            write!(f, "{:?}", self.0)
        } else {
            let start: String = self.0.chars().take(LONGEST).collect();
            write!(f, "{start:?}… ({} bytes)", self.0.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_value_is_not_a_missing_one() {
        let said = |given: &str| Error::MissingKey { key: "device", given: given.to_owned() }.to_string();
        assert_eq!(said(""), "device_config lacks the key device; it has none");
        assert_eq!(said("allocation device"), "the key device of device_config has an empty value");
        assert_eq!(said("devices"), "device_config lacks the key device; it has devices");
    }

    #[test]
    fn sizes_in_messages_can_be_read() {
        let said = |free, wanted| Error::NoSpace { sr: SrUuid::random(), free, wanted }.to_string();
        assert!(said(500, 20 << 30).ends_with("has 500 bytes free, and 20GiB are needed"), "{}", said(500, 20 << 30));
        let rough = said((1 << 30) + (1 << 29) + 1, 1 << 20);
        assert!(rough.ends_with("has 1.5GiB (1610612737 bytes) free, and 1MiB are needed"), "{rough}");
    }
}
