//! A scratch directory with an SR in it and the executables, for tests of what crosses the process.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use assert_cmd::Command;
use tempfile::TempDir;

pub mod backups;
pub mod filesystem;
pub mod kill;
pub mod operations;
#[path = "../tracees/mod.rs"]
mod tracees;

pub const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
pub const OTHER_SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5d";
pub const A: &str = "98de866e-b035-4b1a-a571-00000000000a";
pub const B: &str = "98de866e-b035-4b1a-a571-00000000000b";
pub const C: &str = "98de866e-b035-4b1a-a571-00000000000c";
/// The UUID of no VDI.
pub const NONE: &str = "98de866e-b035-4b1a-a571-ffffffffffff";

pub const MIB: u64 = 1 << 20;

/// A call that takes longer hangs, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(600);

/// A driver, as the batteries see it.
pub struct Row {
    pub sr_type: &'static str,
    pub executable: &'static str,
    /// The dconf of an SR at this path.
    pub dconf: fn(&Path) -> String,
}

pub const FILE: Row = Row { sr_type: "file", executable: "FileSR", dconf: |path| path.display().to_string() };

/// Who is called: the driver's executable, as an agent does, or `sm`, as a person does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    Driver,
    Sm,
}

pub struct Scene {
    pub row: &'static Row,
    pub door: Door,
    /// Removed with everything in it.
    pub root: TempDir,
    /// Where the SR is.
    pub place: PathBuf,
}

impl Scene {
    /// A place without an SR.
    pub fn empty(row: &'static Row, door: Door) -> Scene {
        // In memory, where an fsync costs nothing; what a filesystem adds to that is tested on one of its own.
        let memory = Path::new("/dev/shm");
        let below = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let root = tempfile::Builder::new().prefix("sm-").tempdir_in(below).expect("a scratch directory");
        let place = root.path().join("sr");
        Scene::at(row, door, root, place)
    }

    pub fn at(row: &'static Row, door: Door, root: TempDir, place: PathBuf) -> Scene {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sm"), root.path().join(row.executable)).expect("a link");
        Scene { row, door, root, place }
    }

    /// A file SR with nothing in it, called through the driver.
    pub fn file() -> Scene {
        let scene = Scene::empty(&FILE, Door::Driver);
        scene.call(["sr_create", SR]).done();
        scene
    }

    /// The same, with the VDI A, of 4 MiB with a pattern in it.
    pub fn file_with_a() -> Scene {
        let scene = Scene::file();
        scene.call(["vdi_create", SR, A, "4"]).done();
        fs::write(scene.place.join(format!("{A}.raw")), pattern(4 * MIB)).expect("an image");
        scene
    }

    pub fn dconf(&self) -> String {
        (self.row.dconf)(&self.place)
    }

    pub fn executable(&self) -> PathBuf {
        match self.door {
            Door::Driver => self.root.path().join(self.row.executable),
            Door::Sm => PathBuf::from(env!("CARGO_BIN_EXE_sm")),
        }
    }

    /// The arguments of one call, without the executable. A VDI is raw unless it is said what: then its bytes are
    /// those of its file.
    pub fn line<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) -> Vec<String> {
        let mut line = match self.door {
            Door::Driver => vec![format!("-d{}", self.dconf())],
            Door::Sm => vec![format!("-t{}", self.row.sr_type), format!("-d{}", self.dconf())],
        };
        let mut words: Vec<String> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        if words.first().is_some_and(|verb| verb == "vdi_create") && !words.iter().any(|word| word == "--type") {
            words.insert(1, "--type=raw".to_owned());
        }
        line.append(&mut words);
        line
    }

    /// One call on the SR: a command and its arguments.
    pub fn call<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        self.bare(self.line(words))
    }

    /// One call with exactly these arguments.
    pub fn bare<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        self.under("", args)
    }

    /// The same, started by the program and arguments in `under`, `strace -f …`.
    pub fn under<S: AsRef<OsStr>>(&self, under: &str, args: impl IntoIterator<Item = S>) -> Outcome {
        let mut words: Vec<std::ffi::OsString> = under.split_whitespace().map(Into::into).collect();
        words.push(self.executable().into());
        words.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("XCP_SM_RUN_DIR", self.root.path().join("run")).timeout(PATIENCE);
        // cargo's; each start would look for the C library in five places more.
        command.env_remove("LD_LIBRARY_PATH");
        let output = command.output().expect("it starts");
        let shown: Vec<String> = words.iter().map(|word| word.to_string_lossy().chars().take(200).collect()).collect();
        Outcome { line: shown.join(" "), output }
    }

    /// Every file below the SR's place, with its kind, mode and a hash of its bytes.
    pub fn digest(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        digest(&self.place, &mut found);
        found
    }

    /// The names in the SR's directory, sorted.
    pub fn names(&self) -> Vec<String> {
        self.digest().into_keys().map(|path| path.strip_prefix(&self.place).unwrap().display().to_string()).collect()
    }

    pub fn image(&self, vdi: &str) -> PathBuf {
        self.place.join(format!("{vdi}.raw"))
    }

    /// The device that vdi_attach printed.
    pub fn loop_device(&self, printed: &str) -> PathBuf {
        let device = PathBuf::from(printed.strip_suffix('\n').expect("a line"));
        assert!(fs::metadata(&device).unwrap().file_type().is_block_device(), "{printed}");
        device
    }

    /// The loop devices whose backing file is below this scene.
    pub fn loop_devices(&self) -> Vec<PathBuf> {
        let mut devices = loop_devices(self.root.path());
        if !self.place.starts_with(self.root.path()) {
            devices.extend(loop_devices(&self.place));
        }
        devices
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for device in self.loop_devices() {
            let _ = Command::new("losetup").arg("-d").arg(device).output();
        }
    }
}

pub fn loop_devices(below: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| {
            fs::read_to_string(entry.path().join("loop/backing_file"))
                .is_ok_and(|file| Path::new(&file).starts_with(below))
        })
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .collect()
}

fn digest(path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            digest(&entry.path(), found);
        }
        "directory".to_owned()
    } else if kind.is_symlink() {
        format!("link to {}", fs::read_link(path).unwrap().display())
    } else if kind.is_fifo() || kind.is_socket() {
        "special".to_owned()
    } else if meta.len() > 64 * MIB {
        format!("{} bytes, {} blocks", meta.len(), meta.blocks())
    } else {
        let mut hash = DefaultHasher::new();
        fs::read(path).unwrap_or_default().hash(&mut hash);
        format!("{} bytes {:x}", meta.len(), hash.finish())
    };
    found.insert(path.to_owned(), format!("{:o} {what}", meta.permissions().mode()));
}

/// Bytes no two sectors of which are alike.
pub fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes / 8).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect()
}

/// How a call ended.
pub struct Outcome {
    pub line: String,
    pub output: Output,
}

impl Outcome {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub fn status(&self) -> i32 {
        self.output.status.code().unwrap_or_else(|| panic!("{self} died of signal {:?}", self.output.status.signal()))
    }

    fn did_not_panic(&self) {
        assert!(self.output.status.signal().is_none(), "died of a signal: {self}");
        assert!(!self.stderr().contains("panicked"), "panicked: {self}");
    }

    pub fn succeeded(&self) -> bool {
        self.did_not_panic();
        self.output.status.success()
    }

    /// It succeeded and said nothing on stderr; what it printed.
    #[track_caller]
    pub fn done(self) -> String {
        self.did_not_panic();
        assert_eq!(self.output.status.code(), Some(0), "{self}");
        assert_eq!(self.stderr(), "", "words on stderr: {self}");
        self.stdout()
    }

    /// It failed as one of `names`, `ENOVDI|ENOSR`: the status, nothing on stdout, one line on stderr. The message.
    #[track_caller]
    pub fn fails(self, names: &str) -> String {
        self.did_not_panic();
        let stderr = self.stderr();
        let (name, message) = stderr.split_once(": ").unwrap_or_else(|| panic!("no NAME: on stderr: {self}"));
        assert!(names.split('|').any(|n| n == name), "it should fail with {names}: {self}");
        assert_eq!(self.output.status.code(), Some(number(name)), "{self}");
        assert_eq!(self.stdout(), "", "a failure prints nothing: {self}");
        let message = message.strip_suffix('\n').unwrap_or_else(|| panic!("the line has no end: {self}"));
        assert!(!message.contains('\n') && message.len() < 5000, "one line, not too long: {self}");
        message.to_owned()
    }

    /// The same, whatever the name is.
    #[track_caller]
    pub fn fails_somehow(self) -> String {
        let all = NUMBERS.map(|(name, _)| name).join("|");
        self.fails(&all)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cut = |text: String| text.chars().take(1000).collect::<String>();
        write!(f, "{} -> {}\n{}{}", self.line, self.output.status, cut(self.stdout()), cut(self.stderr()))
    }
}

pub const NUMBERS: [(&str, i32); 27] = [
    ("EPERM", 1),
    ("EIO", 5),
    ("E2BIG", 7),
    ("EACCES", 13),
    ("EBUSY", 16),
    ("EEXIST", 17),
    ("ENODEV", 19),
    ("EINVAL", 22),
    ("ENOSPC", 28),
    ("ENOLCK", 37),
    ("ENOMSG", 42),
    ("ENOSR", 100),
    ("ENOVDI", 101),
    ("ESRBUSY", 102),
    ("EVDIBUSY", 103),
    ("ENOBACKEND", 104),
    ("EMODEL", 105),
    ("ENOMATCH", 106),
    ("EINDEX", 107),
    ("EFROZEN", 108),
    ("ESTALEPLAN", 109),
    ("EPARTIAL", 111),
    ("EHOOKDENY", 119),
    ("ENOSNAP", 120),
    ("EEXPORT", 121),
    ("EVERIFY", 122),
    ("ECLEANUP", 125),
];

fn number(name: &str) -> i32 {
    NUMBERS.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{name} is no name of the table")).1
}

/// The numbers of the points at which a call is killed or fails, without an end: every third, and other ones each day, so that
/// three days take them all. With LONG in the environment, all of them.
pub fn sampled() -> impl Iterator<Item = u64> {
    let day = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 86_400;
    match std::env::var_os("LONG") {
        Some(_) => (1..).step_by(1),
        None => (day % 3 + 1..).step_by(3),
    }
}

/// Says that a test is skipped, and why; fails where the environment is said to be complete.
pub fn skip(why: &str) {
    eprintln!("SKIP {}: {why}", std::thread::current().name().unwrap_or("?"));
    assert!(std::env::var_os("SM_TESTS_SKIP_NOTHING").is_none(), "skipped where nothing should be: {why}");
}

/// Whether the test may use loop devices and mounts; says so if not.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip("needs root");
    }
    root
}

/// Whether a program is there; says so if not.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !found {
        skip(&format!("needs {program}"));
    }
    found
}
