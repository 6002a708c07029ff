//! qcow2 images that contradict themselves, and those that only look as if they did: what each road in and each open says
//! of them, and that nothing is written where a table is. Random changes are `tests/qcow2.rs`'s.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "tests start other programs directly")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;
use xcp_sm::image::disk::Served;
use xcp_sm::image::qcow2::{self, CLUSTER, Chain};
use xcp_sm::image::storage::FileStorage;
use xcp_sm::types::Mode;

const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
const VDI: &str = "98de866e-b035-4b1a-a571-000000000001";
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// A sound image, to be made unsound: the first four clusters of its disk hold 1, 2, 3 and 4.
struct Image {
    dir: TempDir,
    bytes: Vec<u8>,
}

impl Image {
    fn new() -> Image {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.qcow2");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        qcow2::create(&FileStorage::new(file, &path).unwrap(), 10 << 20).unwrap();
        let disk = open(&path, Mode::ReadWrite).unwrap();
        for n in 0..4 {
            Served::write_at(&disk, &[n as u8 + 1; CLUSTER as usize], n * CLUSTER).unwrap();
        }
        Box::new(disk).close().unwrap();
        Image { bytes: fs::read(path).unwrap(), dir }
    }

    fn word(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.bytes[at as usize..][..8].try_into().unwrap())
    }

    fn set(&mut self, at: u64, word: u64) {
        self.bytes[at as usize..][..8].copy_from_slice(&word.to_be_bytes());
    }

    fn l1(&self) -> u64 {
        self.word(40)
    }

    fn l2(&self) -> u64 {
        self.word(self.l1()) & !COPIED
    }

    /// Where cluster `n` of the disk is.
    fn host(&self, n: u64) -> u64 {
        self.word(self.l2() + 8 * n) & !COPIED
    }

    fn refcounts(&self) -> u64 {
        self.word(48)
    }

    fn write_out(&self) -> PathBuf {
        let path = self.dir.path().join("a.qcow2");
        fs::write(&path, &self.bytes).unwrap();
        path
    }
}

fn open(path: &Path, mode: Mode) -> xcp_sm::Result<Chain> {
    Chain::open_single(Arc::new(FileStorage::open(path, Mode::ReadWrite).unwrap()), mode)
}

/// What vdi_import says, by a file and by a pipe, which must agree; and that a refused one leaves nothing.
fn import(path: &Path) -> Result<(), String> {
    let scratch = TempDir::new().unwrap();
    let sr = scratch.path().join("sr");
    let sm = |args: &[&str], input: Option<File>| {
        let mut sm = Command::new(assert_cmd::cargo::cargo_bin("sm"));
        sm.env("XCP_SM_RUN_DIR", scratch.path().join("run")).args(["-t", "file", "-d"]).arg(&sr).args(args);
        sm.stdin(Stdio::null());
        if let Some(input) = input {
            // A pipe: what cat writes.
            let mut cat = Command::new("cat").stdin(input).stdout(Stdio::piped()).spawn().unwrap();
            sm.stdin(cat.stdout.take().unwrap());
            let out = sm.output().unwrap();
            cat.wait().unwrap();
            return out;
        }
        sm.output().unwrap()
    };
    assert!(sm(&["sr_create", SR], None).status.success());
    let names = || fs::read_dir(&sr).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let before = names();
    let answers = [Some(path.to_str().unwrap()), None].map(|file| {
        let args = ["vdi_import", SR, VDI, file.unwrap_or("-"), "--file-type", "qcow2"];
        let out = sm(&args, file.is_none().then(|| File::open(path).unwrap()));
        if out.status.success() {
            assert!(sm(&["vdi_delete", SR, VDI, "--yes"], None).status.success());
            return Ok(());
        }
        let words = String::from_utf8(out.stderr).unwrap();
        // EIO: the image is at fault.
        assert_eq!(out.status.code(), Some(5), "{words}");
        assert_eq!(names(), before, "something is left: {words}");
        Err(words)
    });
    let [by_file, by_pipe] = answers;
    assert_eq!(by_file.is_ok(), by_pipe.is_ok(), "a file: {by_file:?}, a pipe: {by_pipe:?}");
    by_file
}

/// Every write is refused, or none of it reaches a table.
fn writes_spare_the_tables(image: &Image, path: &Path) {
    let (l1, l2, refcounts) = (image.l1(), image.l2(), image.refcounts());
    if let Ok(disk) = open(path, Mode::ReadWrite) {
        for n in 0..160 {
            let _ = Served::write_at(&disk, &[0xEE; 512], n * CLUSTER + 512);
        }
        let _ = disk.flush();
    }
    let after = fs::read(path).unwrap();
    for table in [0, l1, l2, refcounts, image.word(refcounts)] {
        if table < image.bytes.len() as u64 {
            let table = &after[table as usize..][..CLUSTER as usize];
            assert!(!table.windows(512).any(|bytes| bytes == [0xEE; 512]), "a guest's bytes are in a table");
        }
    }
}

type Change = fn(&mut Image);

#[test]
fn an_image_that_contradicts_itself_is_not_imported_and_its_tables_are_not_written_over() {
    let cases: [(&str, Change); 11] = [
        ("two entries for one cluster", |i| i.set(i.l2() + 8, i.host(0) | COPIED)),
        ("two entries, one of which says that it is alone", |i| i.set(i.l2() + 8, i.host(0))),
        ("data in the L1 table", |i| i.set(i.l2() + 8, i.l1() | COPIED)),
        ("data in its L2 table", |i| i.set(i.l2() + 8, i.l2() | COPIED)),
        ("data in the table of counts", |i| i.set(i.l2() + 8, i.refcounts() | COPIED)),
        ("data in the counts", |i| i.set(i.l2() + 8, i.word(i.refcounts()) | COPIED)),
        ("the L2 table in the L1 table", |i| i.set(i.l1(), i.l1() | COPIED)),
        ("the L2 table in the counts", |i| i.set(i.l1(), i.word(i.refcounts()) | COPIED)),
        ("the table of counts in data", |i| i.set(48, i.host(2))),
        ("the counts in data", |i| i.set(i.refcounts(), i.host(2))),
        ("compressed data in other data", |i| i.set(i.l2() + 8, COMPRESSED | (i.host(0) + 1024))),
    ];
    for (name, change) in cases {
        let mut image = Image::new();
        change(&mut image);
        let path = image.write_out();
        let words = import(&path).expect_err(name);
        assert!(!words.contains("panicked"), "{name}: {words}");
        writes_spare_the_tables(&image, &path);
    }
}

/// Behind its end a file gets new clusters: an entry that leads there would show another's data one day.
#[test]
fn an_entry_beyond_the_end_of_the_file_leads_nowhere() {
    let mut image = Image::new();
    image.set(image.l2() + 8, (image.bytes.len() as u64) | COPIED);
    let path = image.write_out();
    assert!(import(&path).unwrap_err().contains("cut off"));
    let disk = open(&path, Mode::ReadWrite).unwrap();
    let error = Served::write_at(&disk, &[9; 512], 9 << 20).unwrap_err();
    assert!(error.to_string().contains("ends before"), "{error}");
}

/// Entries that share a cluster and say so are sound: each shows it, and gets its own when it is written over.
#[test]
fn a_cluster_may_be_shared_by_entries_that_say_so() {
    let mut image = Image::new();
    let (shared, lost) = (image.host(0), image.host(1));
    for n in 0..2 {
        image.set(image.l2() + 8 * n, shared);
    }
    let counts = image.word(image.refcounts()) as usize;
    image.bytes[counts + 2 * (shared / CLUSTER) as usize + 1] = 2;
    image.bytes[counts + 2 * (lost / CLUSTER) as usize + 1] = 0;
    let path = image.write_out();
    let check = || match Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output() {
        Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout)),
        Err(_) => eprintln!("SKIP: qemu-img is not on PATH"),
    };
    check();
    import(&path).unwrap();
    let read = |disk: &Chain, n: u64| {
        let mut sector = [0; 512];
        Served::read_at(disk, &mut sector, n * CLUSTER + 1024).unwrap();
        sector[0]
    };
    let disk = open(&path, Mode::ReadWrite).unwrap();
    assert_eq!([0, 1].map(|n| read(&disk, n)), [1, 1]);
    Served::write_at(&disk, &[8; 512], CLUSTER).unwrap();
    assert_eq!([0, 1].map(|n| read(&disk, n)), [1, 1]);
    // The first entry is alone now and does not know it, which qemu-img check calls an error.
    Box::new(disk).close().unwrap();
    let disk = open(&path, Mode::ReadWrite).unwrap();
    disk.write_zeroes(0, CLUSTER).unwrap();
    Box::new(disk).close().unwrap();
    check();
    let disk = open(&path, Mode::ReadOnly).unwrap();
    assert_eq!([0, 1].map(|n| read(&disk, n)), [0, 1]);
    let mut sector = [0; 512];
    Served::read_at(&disk, &mut sector, CLUSTER).unwrap();
    assert_eq!(sector, [8; 512]);
}

/// An entry of 16 bytes whose halves contradict each other, and a flag that version 2 does not have.
#[test]
fn an_entry_that_contradicts_itself_is_an_error_of_its_place() {
    let subclusters: Change = |i| i.set(72, 1 << 4);
    let cases: [(&str, Vec<Change>, &str); 3] = [
        ("data and zero at once", vec![subclusters, |i| i.set(i.l2() + 8, 1 | 1 << 32)], "contradicts itself"),
        (
            "data without a place",
            vec![subclusters, |i| {
                i.set(i.l2(), 0);
                i.set(i.l2() + 8, 1);
            }],
            "contradicts itself",
        ),
        ("zeroes in version 2", vec![|i| i.bytes[7] = 2, |i| i.set(i.l2(), i.host(0) | COPIED | 1)], "version 2"),
    ];
    for (name, changes, words) in cases {
        let mut image = Image::new();
        for change in changes {
            change(&mut image);
        }
        let path = image.write_out();
        let disk = open(&path, Mode::ReadOnly).unwrap();
        let error = Served::read_at(&disk, &mut [0; 512], 0).unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
}
