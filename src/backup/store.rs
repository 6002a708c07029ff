//! Stores: directories for exports, which `/etc/sm/stores.conf` names. A store has a marker, `.sm-store`, so that the directory of
//! a filesystem that is not mounted is never taken for it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::map::{digest, hex};
use super::name::{RunId, SetName, StoreName};
use crate::error::{Error, Result};
use crate::registry::line::{self, Relation};
use crate::sys::durable::Dir;
use crate::sys::{process, run_dir, small};
use crate::types::{Done, seconds_now};

const MARKER: &str = ".sm-store";
const MARKED: &[u8] = b"sm-store 1\n";
/// Bytes of the longest file that is read.
const LONGEST: u64 = 1 << 20;
/// How often a lock of another process is looked at again.
const BEAT: Duration = Duration::from_millis(100);

/// A store as the file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    pub name: StoreName,
    pub path: PathBuf,
    /// Nothing is exported into it any more.
    pub drained: bool,
    /// The file of those that the exports in it are encrypted for.
    pub recipient: Option<PathBuf>,
    /// The file of the keys that encrypted exports are read with.
    pub identity: Option<PathBuf>,
}

/// The stores of this host; none where there is no file.
///
/// # Errors
/// [`Error::BadLine`] with the line; [`Error::Io`] if the file cannot be read.
pub fn all() -> Result<Vec<Store>> {
    let path = run_dir::stores();
    let text = match small::read_text(&path, LONGEST) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", &path)(e)),
    };
    parse(&text, &path)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Store>> {
    let bad = |line: usize, what: String| Error::BadLine { path: path.to_owned(), line, what };
    let mut stores: Vec<Store> = Vec::new();
    for line in line::lines(text).map_err(|misfit| bad(misfit.line, misfit.what))? {
        let bad = |what: String| bad(line.number, what);
        if line.key != "store" {
            return Err(bad(format!("expected store: name=NAME path=DIRECTORY, not {:?}", line.key)));
        }
        let (mut name, mut directory, mut drained) = (None, None, false);
        let (mut recipient, mut identity) = (None, None);
        for field in line::fields(&line.value).map_err(bad)? {
            match (field.key.as_str(), field.relation, field.value.as_str()) {
                ("name", Relation::Is, value) => name = Some(value.parse().map_err(|e| bad(format!("{e}")))?),
                ("path", Relation::Is, value) if value.starts_with('/') => directory = Some(PathBuf::from(value)),
                ("recipient", Relation::Is, value) if value.starts_with('/') => recipient = Some(PathBuf::from(value)),
                ("identity", Relation::Is, value) if value.starts_with('/') => identity = Some(PathBuf::from(value)),
                (key @ ("path" | "recipient" | "identity"), ..) => {
                    return Err(bad(format!("{key} is an absolute path")));
                }
                ("drained", Relation::Is, "yes") => drained = true,
                ("drained", Relation::Is, "no") => drained = false,
                (key, ..) => {
                    return Err(bad(format!("{key} is not name=, path=, drained=yes, recipient= or identity=")));
                }
            }
        }
        let (Some(name), Some(path)) = (name, directory) else {
            return Err(bad("a store has a name= and a path=".to_owned()));
        };
        if stores.iter().any(|store| store.name == name) {
            return Err(bad(format!("{name} is there twice")));
        }
        stores.push(Store { name, path, drained, recipient, identity });
    }
    Ok(stores)
}

/// The store of a name.
///
/// # Errors
/// [`Error::Invalid`] with those that there are; those of [`all`].
pub fn find(name: &StoreName) -> Result<Store> {
    let stores = all()?;
    let names: Vec<String> = stores.iter().map(|store| store.name.to_string()).collect();
    stores.into_iter().find(|store| store.name == *name).ok_or_else(|| Error::Invalid {
        what: "STORE",
        value: name.to_string(),
        expected: match names.as_slice() {
            [] => format!(
                "{0} names no store; the line `store: name={name} path=/DIRECTORY` in it, and `sm backup store-init {name}`, make one",
                run_dir::stores().display()
            ),
            names => format!("{} names {}", run_dir::stores().display(), names.join(", ")),
        },
    })
}

impl Store {
    /// Opens the store.
    ///
    /// # Errors
    /// [`Error::NoDevice`] for a directory that is missing or has no marker; [`Error::Invalid`] for one that is reached by a
    /// link.
    pub fn open(&self) -> Result<Open> {
        let dir = self.directory()?;
        match dir.read(MARKER) {
            Ok(Some(marker)) if marker == MARKED => Ok(Open { name: self.name.clone(), dir }),
            Ok(None) => Err(self.missing(&format!(
                "it has no {MARKER}: mount what belongs there, or make it a store with `sm backup store-init {}`",
                self.name
            ))),
            Ok(Some(_)) => Err(Error::Damaged {
                path: dir.join(MARKER),
                what: "is the marker of no store that this release knows".to_owned(),
            }),
            Err(error) => Err(error),
        }
    }

    fn directory(&self) -> Result<Dir> {
        let real = match fs::canonicalize(&self.path) {
            Ok(real) => real,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(self.missing(&e.to_string()));
            }
            Err(e) => return Err(Error::io("examine", &self.path)(e)),
        };
        if real != self.path {
            return Err(Error::Invalid {
                what: "path of a store",
                value: self.path.display().to_string(),
                expected: format!("it leads to {}: name that directory", real.display()),
            });
        }
        Dir::open(&self.path).map_err(|error| match error.errno() {
            Some(nix::libc::ENOTDIR) => self.missing("it is no directory"),
            _ => error,
        })
    }

    fn missing(&self, why: &str) -> Error {
        Error::NoDevice { device: format!("store {} at {}", self.name, self.path.display()), why: why.to_owned() }
    }

    /// Makes the directory a store. `over`: even if something is in it. Idempotent.
    ///
    /// # Errors
    /// [`Error::NotAStore`] for a directory that is not empty; [`Error::NoDevice`] if there is none.
    pub fn init(&self, over: bool) -> Result<Done> {
        let dir = self.directory()?;
        if dir.read(MARKER)?.is_some_and(|marker| marker == MARKED) {
            dir.sync()?;
            return Ok(Done::Already);
        }
        let others = dir.names()?.into_iter().filter(|name| name != "lost+found").count();
        if others > 0 && !over {
            return Err(Error::NotAStore { path: self.path.clone() });
        }
        dir.replace(MARKER, MARKED)?;
        Ok(Done::Changed)
    }
}

/// A store that is there.
#[derive(Debug)]
pub struct Open {
    pub name: StoreName,
    pub dir: Dir,
}

impl Open {
    /// Whether both are one directory, by whatever names.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is(&self, other: &Open) -> Result<bool> {
        let id = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
        Ok(id(self.dir.stat()?) == id(other.dir.stat()?))
    }

    /// Refuses to begin what needs more bytes than there are.
    ///
    /// # Errors
    /// [`Error::StoreFull`]; [`Error::Io`].
    pub fn refuse_if_full(&self, wanted: u64) -> Result<()> {
        let space = self.dir.statvfs()?;
        let free = space.blocks_available().saturating_mul(space.fragment_size());
        match wanted > free {
            true => Err(Error::StoreFull { path: self.dir.path().to_owned(), free, wanted }),
            false => Ok(()),
        }
    }

    /// Takes the lock of a set in this store, which holds among hosts. The caller has the set on this host, so a lock of this
    /// host whose process is gone was left by a kill.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it until the deadline; [`Error::Io`].
    pub fn lock(&self, set: &SetName, run: &RunId, deadline: Instant) -> Result<Taken<'_>> {
        let name = lock_name(set);
        let ours = Holder::this(run);
        let text = serde_json::to_vec(&ours).expect("a holder is plain data");
        loop {
            if self.dir.create(&name, &text)? {
                return Ok(Taken { store: self, name, ours });
            }
            // It may be gone by now.
            let Some(found) = self.dir.read(&name)? else { continue };
            let holder: Option<Holder> = serde_json::from_slice(&found).ok();
            if holder.as_ref().is_some_and(Holder::is_dead) {
                self.dir.remove(&name)?;
                continue;
            }
            if Instant::now() >= deadline {
                let path = self.dir.join(&name);
                let holder = holder.map_or_else(|| "another call".to_owned(), |it| it.to_string());
                return Err(Error::Locked {
                    what: format!("set {set} in store {}", self.name),
                    holder,
                    remedy: format!("; if that host is gone for good, remove {}", path.display()),
                });
            }
            std::thread::sleep(BEAT);
        }
    }
}

fn lock_name(set: &SetName) -> String {
    format!(".{set}.lock")
}

/// The lock of a set in a store; dropping it gives it back.
#[derive(Debug)]
pub struct Taken<'a> {
    store: &'a Open,
    name: String,
    ours: Holder,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let is_ours = |text: Vec<u8>| serde_json::from_slice(&text).is_ok_and(|holder: Holder| holder == self.ours);
        if self.store.dir.read(&self.name).is_ok_and(|found| found.is_some_and(is_ours)) {
            let _ = self.store.dir.remove(&self.name);
        }
    }
}

/// A host, as others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    /// Digits made of its machine-id(5), which is not told itself. `None` where there is none.
    pub machine: Option<String>,
}

impl Identity {
    /// This host.
    pub fn here() -> Identity {
        Identity { name: host_name(), machine: machine() }
    }

    /// Whether both are one host. Two hosts can have one name, and a copy of a machine has its machine-id: both have to be equal.
    pub fn is(&self, other: &Identity) -> bool {
        let is_same = match (&self.machine, &other.machine) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        is_same && self.name == other.name
    }
}

fn machine() -> Option<String> {
    let id = fs::read_to_string("/etc/machine-id").ok()?;
    let id = Some(id.trim()).filter(|id| id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()))?;
    Some(hex(&digest(format!("sm backup {id}").as_bytes()))[..32].to_owned())
}

/// A process of some host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    host: String,
    #[serde(default)]
    machine: Option<String>,
    /// Of the host's present start.
    boot: String,
    pid: u32,
    /// When the process was started, in the kernel's ticks: a process id may be used again.
    started: u64,
    /// When it took the lock, in seconds since 1970-01-01 UTC by the clock of its host. Locks of earlier releases do not tell it.
    #[serde(default)]
    taken: Option<u64>,
    run: RunId,
}

impl Holder {
    /// This process.
    pub fn this(run: &RunId) -> Holder {
        let pid = std::process::id();
        let Identity { name: host, machine } = Identity::here();
        let started = started(pid).unwrap_or(0);
        Holder { host, machine, boot: boot(), pid, started, taken: seconds_now(), run: run.clone() }
    }

    /// Whether it is a process of this host that has ended.
    pub fn is_dead(&self) -> bool {
        let of = Identity { name: self.host.clone(), machine: self.machine.clone() };
        of.is(&Identity::here())
            && match self.boot == boot() {
                true => started(self.pid) != Some(self.started),
                // An earlier start of this host ended before the present one. A copy of this machine may run beside it.
                false => self.taken.is_none_or(|taken| booted().is_some_and(|booted| taken < booted)),
            }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of host {} (run {})", self.pid, self.host, self.run)
    }
}

/// The name of this host.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".to_owned())
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When this host was started, in seconds since 1970-01-01 UTC. proc(5), `/proc/stat`, `btime`.
fn booted() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// When a process was started; `None` if there is none. proc(5), `/proc/PID/stat`, field 22.
fn started(pid: u32) -> Option<u64> {
    process::stat(pid, 22)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(path: &Path) -> Store {
        Store { name: "nas".parse().unwrap(), path: path.to_owned(), drained: false, recipient: None, identity: None }
    }

    #[test]
    fn stores_are_lines_and_each_fault_has_its_line() {
        let path = Path::new("/etc/sm/stores.conf");
        let stores = parse("# none\nstore: name=nas1 path=/mnt/nas1 drained=yes\nstore: name=b path=\"/a b\"\n", path);
        let stores = stores.unwrap();
        assert_eq!((stores.len(), stores[0].drained, stores[1].drained), (2, true, false));
        assert_eq!(stores[1].path, Path::new("/a b"));
        for bad in [
            "stores: name=a path=/a",
            "store: name=a",
            "store: path=/a",
            "store: name=a path=a",
            "store: name=../a path=/a",
            "store: name=a path=/a colour=red",
            "store: name=a path=/a drained=maybe",
            "store: name=a path=/a recipient=keys",
            "store: name=a path=/a identity=keys",
            "store: name=a path=/a\nstore: name=a path=/b",
        ] {
            assert!(matches!(parse(bad, path), Err(Error::BadLine { line: 1.., .. })), "{bad}");
        }
    }

    #[test]
    fn a_directory_without_the_marker_or_behind_a_link_is_no_store() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        let (there, link) = (root.join("there"), root.join("link"));
        fs::create_dir(&there).unwrap();
        std::os::unix::fs::symlink(&there, &link).unwrap();
        for (path, why) in [(&there, "no .sm-store"), (&root.join("gone"), "No such file")] {
            let refused = store(path).open().unwrap_err();
            assert!(matches!(&refused, Error::NoDevice { why: said, .. } if said.contains(why)), "{refused}");
        }
        fs::write(root.join("file"), "x").unwrap();
        assert!(matches!(store(&root.join("file")).open(), Err(Error::NoDevice { .. })));
        assert_eq!(store(&there).init(false).unwrap(), Done::Changed);
        assert_eq!(store(&there).init(false).unwrap(), Done::Already);
        store(&there).open().unwrap();
        assert!(matches!(store(&link).open(), Err(Error::Invalid { .. })));
        fs::create_dir(root.join("full")).unwrap();
        fs::write(root.join("full/x"), "x").unwrap();
        assert!(matches!(store(&root.join("full")).init(false), Err(Error::NotAStore { .. })));
        assert_eq!(store(&root.join("full")).init(true).unwrap(), Done::Changed);
    }

    #[test]
    fn the_lock_of_a_process_that_ended_is_taken_over_and_no_other() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().canonicalize().unwrap();
        store(&path).init(false).unwrap();
        let open = store(&path).open().unwrap();
        let (set, run): (SetName, RunId) = ("web".parse().unwrap(), RunId::new(0));
        let held = open.lock(&set, &run, Instant::now()).unwrap();
        assert!(matches!(open.lock(&set, &run, Instant::now()), Err(Error::Locked { .. })));
        drop(held);
        let left = |holder: &Holder| fs::write(path.join(".web.lock"), serde_json::to_vec(holder).unwrap()).unwrap();
        let this = Holder::this(&run);
        let before = Some(booted().unwrap() - 1);
        for dead in [
            Holder { boot: "another".to_owned(), taken: before, ..this.clone() },
            Holder { boot: "another".to_owned(), taken: None, ..this.clone() },
            Holder { pid: u32::MAX, ..this.clone() },
            Holder { started: this.started + 1, ..this.clone() },
        ] {
            left(&dead);
            drop(open.lock(&set, &run, Instant::now()).unwrap());
        }
        let other = Holder { boot: "another".to_owned(), taken: before, ..this.clone() };
        for alive in [
            this.clone(),
            Holder { host: "other".to_owned(), machine: None, ..other.clone() },
            // Another host that has the name of this one; copies of this machine, with another name and without.
            Holder { machine: Some("0".repeat(32)), ..other.clone() },
            Holder { host: "other".to_owned(), ..other.clone() },
            Holder { taken: seconds_now(), ..other },
        ] {
            left(&alive);
            assert!(open.lock(&set, &run, Instant::now()).is_err());
        }
    }
}
