//! Every operation that changes something, with a scene it works on, and what may be seen when it was stopped in
//! the middle.

#[path = "../chains/mod.rs"]
pub mod chains;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::libc;
use xcp_sm::types::Mode;

use super::filesystem::Filesystem;
use super::kill::{self, Act, End, Points, Traced};
use super::*;

pub struct Operation {
    pub name: &'static str,
    /// Puts the scene in the state before.
    pub prepare: fn(&Scene),
    pub call: &'static [&'static str],
    /// How the same call ends when it has happened already.
    pub again: Again,
    pub needs_root: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Succeeds,
    Fails(&'static str),
}

const EXISTS: Again = Again::Fails("EEXIST");

pub const OPERATIONS: &[Operation] = &[
    Operation { name: "sr_create", prepare: |_| {}, call: &["sr_create", SR], again: EXISTS, needs_root: false },
    Operation {
        name: "sr_create in an empty directory",
        prepare: |scene| fs::create_dir(&scene.place).unwrap(),
        call: &["sr_create", SR],
        again: EXISTS,
        needs_root: false,
    },
    Operation {
        name: "sr_delete",
        prepare: with_all,
        call: &["sr_delete", SR],
        again: Again::Succeeds,
        needs_root: false,
    },
    Operation {
        name: "sr_attach that adopts",
        prepare: |scene| {
            with_a(scene);
            fs::remove_file(scene.place.join(".sm-sr")).unwrap();
            durable(&scene.place);
        },
        call: &["sr_attach", SR],
        again: Again::Succeeds,
        needs_root: false,
    },
    Operation {
        name: "vdi_create",
        prepare: with_a,
        call: &["vdi_create", SR, B, "4"],
        again: EXISTS,
        needs_root: false,
    },
    Operation {
        name: "vdi_create with params",
        prepare: with_a,
        call: &["vdi_create", SR, B, "4", "--label", "a label", "--shareable"],
        again: EXISTS,
        needs_root: false,
    },
    Operation {
        name: "vdi_set",
        prepare: with_all,
        call: &["vdi_set", SR, B, "--label", "another", "--description", "words", "--read-only"],
        again: Again::Succeeds,
        needs_root: false,
    },
    Operation {
        name: "vdi_delete",
        prepare: with_all,
        call: &["vdi_delete", SR, B],
        again: Again::Succeeds,
        needs_root: false,
    },
    Operation { name: "vdi_clone", prepare: with_a, call: &["vdi_clone", SR, A, C], again: EXISTS, needs_root: false },
    Operation {
        name: "vdi_copy",
        prepare: with_a,
        call: &["vdi_copy", SR, A, SR, C],
        again: EXISTS,
        needs_root: false,
    },
    Operation {
        name: "vdi_snapshot",
        prepare: with_all,
        call: &["vdi_snapshot", SR, A, C],
        again: EXISTS,
        needs_root: false,
    },
    Operation {
        name: "vdi_revert",
        prepare: |scene| {
            with_a(scene);
            scene.call(["vdi_set", SR, A, "--label", "a"]).done();
            scene.call(["vdi_snapshot", SR, A, C]).done();
            let mut image = fs::File::options().write(true).open(scene.image(A)).unwrap();
            image.write_all(&[7; 512]).unwrap();
            image.set_len(3 * MIB).unwrap();
            image.sync_all().unwrap();
        },
        call: &["vdi_revert", SR, A, C],
        again: Again::Succeeds,
        needs_root: false,
    },
    Operation {
        name: "vdi_resize",
        prepare: with_a,
        call: &["vdi_resize", SR, A, "8"],
        again: Again::Succeeds,
        needs_root: false,
    },
    Operation {
        name: "the first vdi_lock",
        prepare: with_a,
        call: &["vdi_lock", SR, A, "FALSE", "user"],
        again: Again::Fails("ENOLCK"),
        needs_root: false,
    },
    Operation {
        name: "vdi_lock that breaks a lock",
        prepare: |scene| {
            with_a(scene);
            scene.call(["vdi_lock", SR, A, "FALSE", "another"]).done();
        },
        call: &["vdi_lock", SR, A, "TRUE", "user"],
        again: Again::Fails("ENOLCK"),
        needs_root: false,
    },
    Operation {
        name: "vdi_unlock",
        prepare: |scene| {
            with_a(scene);
            scene.call(["vdi_lock", SR, A, "FALSE", "user"]).done();
        },
        call: &["vdi_unlock", SR, A, "FALSE", "user"],
        again: Again::Fails("ENOLCK"),
        needs_root: false,
    },
    Operation {
        name: "vdi_attach",
        prepare: with_a,
        call: &["vdi_attach", SR, A],
        again: Again::Succeeds,
        needs_root: true,
    },
    Operation {
        name: "vdi_detach",
        prepare: |scene| {
            with_a(scene);
            scene.call(["vdi_attach", SR, A]).done();
        },
        call: &["vdi_detach", SR, A],
        again: Again::Succeeds,
        needs_root: true,
    },
];

/// The same for disks in trees of one format.
macro_rules! trees {
    ($name:ident, $format:literal) => {
        pub const $name: &[Operation] = &[
            Operation {
                name: concat!("vdi_create of a ", $format),
                prepare: with_a,
                call: &["vdi_create", SR, B, "2", "--type", $format, "--label", "b"],
                again: EXISTS,
                needs_root: false,
            },
            Operation {
                name: concat!("vdi_snapshot of a ", $format),
                prepare: |scene| with_tree(scene, $format),
                call: &["vdi_snapshot", SR, A, C],
                again: EXISTS,
                needs_root: false,
            },
            Operation {
                name: concat!("vdi_clone of a ", $format),
                prepare: |scene| with_tree(scene, $format),
                call: &["vdi_clone", SR, A, C],
                again: EXISTS,
                needs_root: false,
            },
            Operation {
                name: concat!("vdi_clone of a ", $format, " that holds nothing"),
                prepare: |scene| with_tree(scene, $format),
                call: &["vdi_clone", SR, B, C],
                again: EXISTS,
                needs_root: false,
            },
            Operation {
                name: concat!("vdi_revert of a ", $format),
                prepare: |scene| with_tree(scene, $format),
                call: &["vdi_revert", SR, A, B],
                again: Again::Succeeds,
                needs_root: false,
            },
            Operation {
                name: concat!("vdi_revert of a ", $format, " to a snapshot with data"),
                prepare: |scene| {
                    with_tree(scene, $format);
                    scene.call(["vdi_snapshot", SR, A, C]).done();
                    scene.call(["vdi_delete", SR, A]).done();
                    scene.call(["vdi_clone", SR, B, A]).done();
                    scene.call(["sr_collect", SR]).done();
                },
                call: &["vdi_revert", SR, A, C],
                again: Again::Succeeds,
                needs_root: false,
            },
            Operation {
                name: concat!("vdi_resize of a ", $format),
                prepare: |scene| with_tree(scene, $format),
                call: &["vdi_resize", SR, A, "6"],
                again: Again::Succeeds,
                needs_root: false,
            },
            Operation {
                name: concat!("vdi_delete in a tree of ", $format),
                prepare: |scene| with_tree(scene, $format),
                call: &["vdi_delete", SR, B],
                again: Again::Succeeds,
                needs_root: false,
            },
            Operation {
                name: concat!("sr_collect of ", $format),
                prepare: |scene| {
                    with_tree(scene, $format);
                    scene.call(["vdi_delete", SR, B]).done();
                },
                call: &["sr_collect", SR],
                again: Again::Succeeds,
                needs_root: false,
            },
            Operation {
                name: concat!("sr_collect of a chain of ", $format),
                prepare: |scene| {
                    once(scene, concat!("sr_collect of a chain of ", $format), |scene| {
                        with_tree(scene, $format);
                        scene.call(["vdi_delete", SR, B]).done();
                        // Each base and the disk have a part of their own, and hide a part of what is below.
                        for n in 1..4 {
                            scene.call(["vdi_snapshot", SR, A, C]).done();
                            write_to(scene, A, &[n; 4096], u64::from(n) * 3072);
                            scene.call(["vdi_delete", SR, C]).done();
                        }
                    });
                },
                call: &["sr_collect", SR],
                again: Again::Succeeds,
                needs_root: false,
            },
            Operation {
                name: concat!("sr_collect of a chain below two of ", $format),
                prepare: |scene| {
                    once(scene, concat!("sr_collect of a chain below two of ", $format), |scene| {
                        with_tree(scene, $format);
                        scene.call(["vdi_delete", SR, B]).done();
                        for n in 1..4 {
                            let snapshot = if n < 3 { C } else { B };
                            scene.call(["vdi_snapshot", SR, A, snapshot]).done();
                            write_to(scene, A, &[n; 4096], u64::from(n) * 3072);
                            if n < 3 {
                                scene.call(["vdi_delete", SR, C]).done();
                            }
                        }
                    });
                },
                call: &["sr_collect", SR],
                again: Again::Succeeds,
                needs_root: false,
            },
            Operation {
                name: concat!("sr_collect of three trees of ", $format),
                prepare: |scene| {
                    once(scene, concat!("sr_collect of three trees of ", $format), |scene| {
                        with_tree(scene, $format);
                        scene.call(["vdi_delete", SR, B]).done();
                        for vdi in [B, C] {
                            let other = if vdi == B { C } else { UNLISTED };
                            scene.call(["vdi_create", SR, vdi, "2", "--type", $format]).done();
                            for n in 1..3 {
                                write_to(scene, vdi, &[n; 4096], u64::from(n) * 3072);
                                scene.call(["vdi_snapshot", SR, vdi, other]).done();
                                scene.call(["vdi_delete", SR, other]).done();
                            }
                            write_to(scene, vdi, &[9; 4096], 0);
                        }
                    });
                },
                call: &["sr_collect", SR],
                again: Again::Succeeds,
                needs_root: false,
            },
            Operation {
                name: concat!("sr_delete of a tree of ", $format),
                prepare: |scene| with_tree(scene, $format),
                call: &["sr_delete", SR],
                again: Again::Succeeds,
                needs_root: false,
            },
        ];
    };
}

trees!(VHD_TREES, "vhd");
trees!(QCOW2_TREES, "qcow2");

/// Everything.
pub fn all() -> impl Iterator<Item = &'static Operation> {
    OPERATIONS.iter().chain(trees())
}

pub fn trees() -> impl Iterator<Item = &'static Operation> {
    VHD_TREES.iter().chain(QCOW2_TREES)
}

/// A VDI that is gone when the operation begins.
const UNLISTED: &str = "98de866e-b035-4b1a-a571-613bff542bff";

/// Makes a scene by calls once, and afterwards, durably, by copies of its files: there is one for each point.
fn once(scene: &Scene, name: &'static str, make: fn(&Scene)) {
    static MADE: Mutex<BTreeMap<&str, BTreeMap<OsString, Vec<u8>>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(files) = made.get(name) {
        fs::DirBuilder::new().mode(0o700).create(&scene.place).unwrap();
        for (name, bytes) in files {
            let mut file =
                fs::OpenOptions::new().mode(0o600).write(true).create_new(true).open(scene.place.join(name)).unwrap();
            file.write_all(bytes).unwrap();
            file.sync_all().unwrap();
        }
        durable(&scene.place);
        return durable(scene.place.parent().unwrap());
    }
    make(scene);
    let files = fs::read_dir(&scene.place).unwrap().map(|entry| entry.unwrap());
    made.insert(name, files.map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap())).collect());
}

fn write_to(scene: &Scene, vdi: &str, bytes: &[u8], at: u64) {
    let disk = chains::open(&scene.place, vdi, Mode::ReadWrite).unwrap();
    disk.write_at(bytes, at).unwrap();
    disk.close().unwrap();
}

/// An SR with the disk A, which has data, and its snapshot B.
pub fn with_tree(scene: &Scene, format: &str) {
    scene.call(["sr_create", SR]).done();
    scene.call(["vdi_create", SR, A, "2", "--type", format, "--label", "a"]).done();
    write_to(scene, A, &pattern(64 * 1024), 0);
    scene.call(["vdi_snapshot", SR, A, B]).done();
    write_to(scene, A, &[7; 512], MIB);
}

/// A hash of what a guest would read.
fn bytes_of(scene: &Scene, vdi: &str) -> Option<u64> {
    let mut hash = DefaultHasher::new();
    if let Ok(bytes) = fs::read(scene.image(vdi)) {
        bytes.hash(&mut hash);
    } else {
        let mut bytes = vec![0; 2 * MIB as usize];
        chains::open(&scene.place, vdi, Mode::ReadOnly)?.read_at(&mut bytes, 0).unwrap();
        bytes.hash(&mut hash);
    }
    Some(hash.finish())
}

/// Replaces the UUIDs that sm chose.
fn without_chosen_uuids(mut text: String) -> String {
    let mut at = 0;
    while at + 36 <= text.len() {
        if !text.is_char_boundary(at) || !text.is_char_boundary(at + 36) {
            at += 1;
            continue;
        }
        let word = &text[at..at + 36];
        if word.parse::<xcp_sm::types::VdiUuid>().is_ok() && ![SR, A, B, C].contains(&word) {
            text.replace_range(at..at + 36, "BASE");
        }
        at += 1;
    }
    text
}

/// An SR with A, which has data.
pub fn with_a(scene: &Scene) {
    scene.call(["sr_create", SR]).done();
    scene.call(["vdi_create", SR, A, "1"]).done();
    let mut image = fs::File::options().write(true).open(scene.image(A)).unwrap();
    image.write_all(&pattern(64 * 1024)).unwrap();
    image.sync_all().unwrap();
}

/// The same and B, which has everything beside it that a VDI can have.
pub fn with_all(scene: &Scene) {
    with_a(scene);
    scene.call(["vdi_create", SR, B, "64KiB", "--label", "b"]).done();
    scene.call(["vdi_lock", SR, B, "FALSE", "user"]).done();
    scene.call(["vdi_unlock", SR, B, "FALSE", "user"]).done();
}

fn durable(path: &Path) {
    fs::File::open(path).unwrap().sync_all().unwrap();
}

/// What the SR's users can see: sr_scan's answer or failure, and the bytes of each disk.
pub fn state(scene: &Scene) -> String {
    let scan = scene.call(["sr_scan", SR]);
    let mut seen = if scan.succeeded() { scan.stdout() } else { scan.fails_somehow() };
    // Of a file that is being written back, the filesystem changes it as it likes.
    while let Some(start) = seen.find(" (physical_utilisation . ") {
        let end = start + seen[start..].find(')').unwrap() + 1;
        seen.replace_range(start..end, "");
    }
    if seen.starts_with("(sr ") {
        let listed = |vdi: &&str| seen.contains(&format!("(vdi (uuid . \"{vdi}\")"));
        for vdi in [A, B, C].into_iter().filter(listed).collect::<Vec<_>>() {
            seen += &format!("{vdi} holds {:x?}\n", bytes_of(scene, vdi));
        }
    } else {
        // Why there is no SR is told in several ways.
        seen = "no SR".to_owned();
    }
    without_chosen_uuids(seen.replace(&scene.place.display().to_string(), "PLACE"))
}

/// The files of the SR; the states of a lock have numbers that tell how often it was changed.
pub fn files(scene: &Scene) -> Vec<String> {
    let plain = |name: String| match name.split_once(".lock/") {
        Some((vdi, _)) => format!("{vdi}.lock/N"),
        None => without_chosen_uuids(name),
    };
    // Without the directory itself: sr_delete, killed before its last step, leaves an empty one.
    let mut files: Vec<String> = scene.names().into_iter().filter(|name| !name.is_empty()).map(plain).collect();
    files.sort();
    files.dedup();
    files
}

/// What is seen before and after an operation, and the files after it.
pub struct Reference {
    pub before: String,
    pub after: String,
    pub files_before: Vec<String>,
    pub files: Vec<String>,
}

impl Operation {
    pub fn reference(&self, scene: &Scene) -> Reference {
        (self.prepare)(scene);
        let (before, files_before) = (state(scene), files(scene));
        scene.call(self.call).done();
        Reference { before, after: state(scene), files_before, files: files(scene) }
    }

    /// Does `act` to the operation at each of its points, and checks what that leaves. How many points there were.
    pub fn at_every_point(&self, points: Points, act: Act, filesystem: Option<&Filesystem>) -> u64 {
        let scene = || {
            let mut scene = Scene::empty(&FILE, Door::Driver);
            if let Some(fs) = filesystem {
                scene.place = fs.path().join("sr");
                let _ = fs::remove_dir_all(&scene.place);
            }
            scene
        };
        let reference = self.reference(&scene());
        for n in 1.. {
            let scene = scene();
            (self.prepare)(&scene);
            let traced = self.run(&scene, n, points, act);
            let how = format!(
                "{act:?} at point {n}, system call {:?}: {:?} {}",
                traced.call,
                traced.end,
                String::from_utf8_lossy(&traced.stderr)
            );
            self.check_end(&scene, &reference, &traced, &how);
            self.check(&scene, &reference, traced.end == End::Status(0), &how);
            if traced.call.is_none() {
                assert_eq!(traced.end, End::Status(0), "{}", self.name);
                return n - 1;
            }
        }
        unreachable!("every operation ends")
    }

    /// If it ended by itself: by the table, and with nothing half done.
    fn check_end(&self, scene: &Scene, reference: &Reference, traced: &Traced, how: &str) {
        let name = self.name;
        let stderr = String::from_utf8_lossy(&traced.stderr);
        match traced.end {
            End::Killed => return,
            End::Died(signal) => panic!("{name}, {how}: {signal}"),
            End::Status(0) => assert_eq!(stderr, "", "{name}, {how}: it succeeded with words on stderr"),
            End::Status(status) => {
                assert!(traced.stdout.is_empty(), "{name}, {how}: a failure prints nothing");
                assert!(stderr.ends_with('\n') && stderr.matches('\n').count() == 1, "{name}, {how}: one line");
                let by_table = NUMBERS.iter().any(|(n, s)| *s == status && stderr.starts_with(&format!("{n}: ")));
                assert!(by_table, "{name}, {how}: status {status}");
            }
        }
        let mut files = files(scene);
        if traced.end == End::Status(0) {
            // The record of a change that is complete.
            files.retain(|file| file != ".sm-tree");
        }
        let (before, after) = (&reference.files_before, &reference.files);
        let whole = if self.call[0].ends_with("_delete") {
            // What is not removed yet belongs to nothing any more, and the next call goes on.
            files.iter().all(|file| before.contains(file) || file == ".sm-sr-deleting")
        } else {
            files == *before || files == *after
        };
        assert!(whole, "{name}, {how}: half an object is left: {files:?}, not {before:?} or {after:?}");
        // What sr_collect could not merge it says of each image, whatever it has merged.
        if traced.end != End::Status(0) && self.call[0] != "sr_collect" && state(scene) != reference.before {
            let told = stderr.contains("the same call again completes it");
            assert!(told, "{name}, {how}: it has happened, and the error does not say so");
        }
    }

    /// Cuts the power when the operation is before its point `n`, or has ended, and checks what is there when the
    /// power is back. Whether it had ended.
    pub fn cut_the_power(&self, filesystem: &Filesystem, n: u64) -> bool {
        let mut scene = Scene::empty(&FILE, Door::Driver);
        scene.place = filesystem.path().join("sr");
        let _ = fs::remove_dir_all(&scene.place);
        let reference = self.reference(&scene);
        fs::remove_dir_all(&scene.place).or_else(|_| fs::metadata(filesystem.path()).map(drop)).unwrap();
        (self.prepare)(&scene);
        let end = self.run(&scene, n, Points::Changing, Act::Kill).end;
        filesystem.power_cut();
        let done = matches!(end, End::Status(_));
        self.check(&scene, &reference, done, &format!("power cut at point {n}, {end:?}"));
        let _ = fs::remove_dir_all(&scene.place);
        done
    }

    /// Kills the operation before each of its syncs, calls it again, cuts the power, and checks that what the second call
    /// answered, "done" or "it exists", is there when the power is back. How many syncs there were.
    pub fn cut_the_power_after_the_next_call(&self, filesystem: &Filesystem) -> u64 {
        let syncs = Points::Matching(|number, _| [libc::SYS_fsync, libc::SYS_fdatasync].contains(&number));
        let mut scene = Scene::empty(&FILE, Door::Driver);
        scene.place = filesystem.path().join("sr");
        let _ = fs::remove_dir_all(&scene.place);
        let reference = self.reference(&scene);
        for n in 1.. {
            let _ = fs::remove_dir_all(&scene.place);
            durable(&filesystem.path());
            (self.prepare)(&scene);
            let end = self.run(&scene, n, syncs, Act::Kill).end;
            let again = scene.call(self.call);
            filesystem.power_cut();
            let now = state(&scene);
            let name = self.name;
            assert!(now == reference.after, "{name}, killed before sync {n}, {end:?}: {again} and it is lost:\n{now}");
            if end != End::Killed {
                let _ = fs::remove_dir_all(&scene.place);
                return n - 1;
            }
        }
        unreachable!("every operation ends")
    }

    /// Whether it changes several trees at the same time, each by itself.
    fn is_of_several(&self) -> bool {
        self.name.contains("three trees")
    }

    fn run(&self, scene: &Scene, n: u64, points: Points, act: Act) -> Traced {
        let run_dir = scene.root.path().join("run");
        kill::run(n, points, act, &scene.executable(), &scene.line(self.call), &run_dir)
    }

    /// After the operation was stopped somewhere: the state is the old or the new one (the new one, if it said that
    /// it was done), the next call works, and nothing is left behind.
    pub fn check(&self, scene: &Scene, reference: &Reference, done: bool, how: &str) {
        let name = self.name;
        let now = state(scene);
        // Of several trees, some are merged.
        let without_parents = |seen: &str| seen.replace(" (parent . \"BASE\")", "");
        let is_one =
            |seen: &str| now == *seen || self.is_of_several() && without_parents(&now) == without_parents(seen);
        assert!(is_one(&reference.before) || is_one(&reference.after), "{name}, {how}: neither old nor new:\n{now}");
        assert!(!done || now == reference.after, "{name}, {how}: it was acknowledged and is lost:\n{now}");
        let again = scene.call(self.call);
        match self.again {
            Again::Fails(why) if now == reference.after => drop(again.fails(why)),
            _ => drop(again.done()),
        }
        assert_eq!(state(scene), reference.after, "{name}, {how}: after the next call");
        if reference.after != "no SR" {
            scene.call(["sr_attach", SR]).done();
        }
        assert_eq!(files(scene), reference.files, "{name}, {how}: files");
    }
}
