//! qcow2 images of ours in qemu-img, and its own in ours; and against a model.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "tests start other programs directly")]

mod power;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use power::Dice;
use proptest::prelude::*;
use tempfile::TempDir;
use xcp_sm::image::disk::{Disk, Served};
use xcp_sm::image::qcow2::{self, CLUSTER, Chain, Header, Image, Parent};
use xcp_sm::image::storage::{FileStorage, Storage};
use xcp_sm::types::Mode;

const MIB: u64 = 1 << 20;

/// Runs a tool of qemu's and expects success; `None`, told, if it is not there.
fn qemu(tool: &str, args: &[&str]) -> Option<String> {
    let out = match Command::new(tool).args(args).output() {
        Ok(out) => out,
        Err(_) => {
            eprintln!("SKIP: {tool} is not on PATH");
            assert!(std::env::var_os("SM_TESTS_SKIP_NOTHING").is_none(), "skipped where nothing should be");
            return None;
        }
    };
    let words = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{tool} {args:?}: {:?}\n{words}", out.status);
    Some(words)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn place(path: &Path) -> Arc<FileStorage> {
    Arc::new(FileStorage::open(path, Mode::ReadWrite).unwrap())
}

fn fresh(path: &Path) -> Arc<FileStorage> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    Arc::new(FileStorage::new(file, path).unwrap())
}

fn open(path: &Path, mode: Mode) -> Chain {
    let dir = path.parent().unwrap();
    Chain::open(Parent::Qcow2(place(path)), mode, |name| {
        let found = place(&dir.join(name));
        Ok(if name.ends_with(".raw") { Parent::Raw(found) } else { Parent::Qcow2(found) })
    })
    .unwrap()
}

fn snapshot(child: &Path, parent: &Path) {
    let like = Header::read(&*place(parent)).unwrap();
    let name = parent.file_name().unwrap().to_str().unwrap();
    qcow2::create_child(&*fresh(child), like.virtual_size, Some(&like), name, "qcow2").unwrap();
}

fn read_all(chain: &Chain) -> Vec<u8> {
    let mut all = vec![0; chain.virtual_size() as usize];
    Served::read_at(chain, &mut all, 0).unwrap();
    all
}

fn check(path: &Path) {
    qemu("qemu-img", &["check", "-U", "-f", "qcow2", text(path)]);
}

/// What qemu reads there.
fn by_qemu(path: &Path) -> Option<Vec<u8>> {
    let raw = path.with_extension("as-raw");
    qemu("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(path), text(&raw)])?;
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    Some(bytes)
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 512) as u8 ^ seed.wrapping_add((n % 251) as u8)).collect()
}

#[test]
fn new_images_of_any_size_are_what_qemu_wants() {
    let dir = TempDir::new().unwrap();
    for size in [CLUSTER, 512 * MIB, 513 * MIB, 2041 << 30, qcow2::MAX_SIZE] {
        let (base, child) = (dir.path().join("base.qcow2"), dir.path().join("child.qcow2"));
        qcow2::create(&*fresh(&base), size).unwrap();
        snapshot(&child, &base);
        check(&base);
        check(&child);
        assert!(fs::metadata(&base).unwrap().len() < MIB);
        let Some(info) = qemu("qemu-img", &["info", "-U", "--output=json", text(&child)]) else { return };
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], size);
        assert_eq!(info["backing-filename"], "base.qcow2");
        assert_eq!(info["backing-filename-format"], "qcow2");
    }
    assert!(qcow2::create(&*fresh(&dir.path().join("x")), qcow2::MAX_SIZE + CLUSTER).is_err());
}

#[test]
fn the_last_byte_of_the_biggest_disk_is_as_good_as_the_first() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("big.qcow2");
    qcow2::create(&*fresh(&path), qcow2::MAX_SIZE).unwrap();
    let disk = open(&path, Mode::ReadWrite);
    for at in [0, 2 << 40, qcow2::MAX_SIZE - 512] {
        Served::write_at(&disk, &[7; 512], at).unwrap();
    }
    disk.flush().unwrap();
    check(&path);
    let disk = open(&path, Mode::ReadOnly);
    assert_eq!(disk.next_data(0).unwrap(), Some((0, CLUSTER)));
    assert_eq!(disk.next_data(CLUSTER).unwrap(), Some((2 << 40, (2 << 40) + CLUSTER)));
    assert_eq!(disk.next_data(3 << 40).unwrap(), Some((qcow2::MAX_SIZE - CLUSTER, qcow2::MAX_SIZE)));
    assert!(fs::metadata(&path).unwrap().len() < 2 * MIB);
}

#[test]
fn hiding_is_one_sector_and_qemu_does_not_mind() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.qcow2");
    qcow2::create(&*fresh(&path), 10 * MIB).unwrap();
    let before = fs::read(&path).unwrap();
    for hidden in [true, false] {
        qcow2::set_hidden(&*place(&path), hidden).unwrap();
        assert_eq!(Header::read(&*place(&path)).unwrap().hidden, hidden);
        check(&path);
    }
    assert!(fs::read(&path).unwrap() == before);
    // One of qemu's, which has no such mark and a header of more than a sector.
    let theirs = dir.path().join("b.qcow2");
    if qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&path), "-F", "qcow2", text(&theirs)]).is_none() {
        return;
    }
    qcow2::set_parent(&*place(&theirs), "a.qcow2", "qcow2").unwrap();
    qcow2::set_hidden(&*place(&theirs), true).unwrap();
    let header = Header::read(&*place(&theirs)).unwrap();
    assert!(header.hidden && header.backing.as_deref() == Some("a.qcow2"));
    check(&theirs);
}

/// Everything that `qemu-img create -o` makes and we serve.
const KINDS: [&str; 20] = [
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=64k",
    "cluster_size=2M",
    "compat=0.10",
    "compat=0.10,cluster_size=1k",
    "refcount_bits=1",
    "refcount_bits=2",
    "refcount_bits=4,cluster_size=512",
    "refcount_bits=8",
    "refcount_bits=32",
    "refcount_bits=64,cluster_size=512",
    "lazy_refcounts=on",
    "compression_type=zstd",
    "compression_type=zstd,cluster_size=512",
    "compression_type=zstd,cluster_size=2M",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,refcount_bits=1",
    "extended_l2=on,cluster_size=2M",
    "extended_l2=on,compression_type=zstd",
];

/// Chains that qemu made, of every kind, compressed and not: read by us, written on by us, merged by us. Afterwards qemu
/// reads what we read, and finds no cluster lost.
#[test]
fn images_of_qemu_are_read_and_written_as_qemu_does() {
    for options in KINDS {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (raw, base, leaf) = (at("r.raw"), at("base.qcow2"), at("leaf.qcow2"));
        let mut model = vec![0; (6 * MIB + 512) as usize];
        let data = pattern(3, 2 * MIB as usize + 4096);
        model[MIB as usize..][..data.len()].copy_from_slice(&data);
        fs::write(&raw, &model).unwrap();
        let made =
            qemu("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, text(&raw), text(&base)]);
        if made.is_none() {
            return;
        }
        let create = ["create", "-q", "-f", "qcow2", "-o", options, "-b", "base.qcow2", "-F", "qcow2", text(&leaf)];
        qemu("qemu-img", &create);
        let io =
            ["-f", "qcow2", "-c", "write -P 9 1M 100k", "-c", "write 3M 200k", "-c", "discard 3M 128k", text(&leaf)];
        qemu("qemu-io", &io);
        if !options.contains("0.10") {
            qemu("qemu-io", &["-f", "qcow2", "-c", "write -z 2M 130k", "-c", "write -z 4100k 3k", text(&leaf)]);
        }
        let wanted = by_qemu(&leaf).unwrap();
        assert!(read_all(&open(&leaf, Mode::ReadOnly)) == wanted, "{options}");
        let mut model = wanted;
        let mut dice = Dice(7);
        for round in 0..3 {
            let disk = open(&leaf, Mode::ReadWrite);
            for n in 0..12 {
                let sectors = 1 + dice.roll([8, 300][n % 2]);
                let at = dice.roll(model.len() as u64 / 512 - sectors) * 512;
                let part = &mut model[at as usize..(at + sectors * 512) as usize];
                match dice.roll(5) {
                    0 => {
                        disk.write_zeroes(at, sectors * 512).unwrap();
                        part.fill(0);
                    }
                    _ => {
                        let bytes = pattern((round * 16 + n) as u8, part.len());
                        Served::write_at(&disk, &bytes, at).unwrap();
                        part.copy_from_slice(&bytes);
                    }
                }
                if dice.roll(4) == 0 {
                    disk.flush().unwrap();
                }
            }
            assert!(read_all(&disk) == model, "{options}: what we read while it is open");
            Box::new(disk).close().unwrap();
            check(&leaf);
        }
        assert!(by_qemu(&leaf).unwrap() == model, "{options}: written on");
        // qemu writes on what we wrote.
        qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 5 2M 70k", "-c", "write -P 6 5M 3k", text(&leaf)]);
        model[2 << 20..][..70 << 10].fill(5);
        model[5 << 20..][..3 << 10].fill(6);
        check(&leaf);
        assert!(read_all(&open(&leaf, Mode::ReadOnly)) == model, "{options}: written on by qemu");
        // The parent, whose clusters are compressed, takes all of it.
        qcow2::coalesce(&Image::open(place(&leaf), Mode::ReadOnly).unwrap(), &open(&base, Mode::ReadWrite), &|_, _| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        check(&base);
        assert!(by_qemu(&base).unwrap() == model, "{options}: coalesced");
        // It grows, beyond its L1 table.
        let grown: Arc<dyn Storage> = place(&base);
        if options.contains("512") {
            qcow2::resize(&grown, 7 * MIB).unwrap();
        } else {
            qcow2::resize(&grown, 3 << 40).unwrap_or_else(|e| {
                assert!(options.contains("k"), "{options}: {e}");
                qcow2::resize(&grown, 700 * MIB).unwrap()
            });
        }
        check(&base);
        let mut now = vec![0; model.len()];
        Served::read_at(&open(&base, Mode::ReadOnly), &mut now, 0).unwrap();
        assert!(now == model, "{options}: grown");
    }
}

/// What a compressed image gives back when it is written over: its size on disk is that of its data.
#[test]
fn what_is_written_over_is_given_back() {
    let dir = TempDir::new().unwrap();
    let (raw, path) = (dir.path().join("r.raw"), dir.path().join("a.qcow2"));
    fs::write(&raw, noise(8 << 20)).unwrap();
    if qemu("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&path)]).is_none() {
        return;
    }
    let allocated = || {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&path).unwrap().blocks() * 512
    };
    let (before, bytes) = (allocated(), pattern(1, 8 << 20));
    let disk = open(&path, Mode::ReadWrite);
    Served::write_at(&disk, &bytes, 0).unwrap();
    Box::new(disk).close().unwrap();
    check(&path);
    assert!(by_qemu(&path).unwrap() == bytes);
    assert!(allocated() < before + 3 * MIB, "{} bytes before, {} after", before, allocated());
}

/// Small clusters and wide counts: the table of reference counts that an image has is full soon, and grows.
#[test]
fn an_image_outgrows_its_table_of_reference_counts() {
    for (options, size) in [
        ("cluster_size=512", 20 * MIB),
        ("cluster_size=512,refcount_bits=64", 5 * MIB),
        ("cluster_size=512,compat=0.10", 9 * MIB),
        ("cluster_size=512,refcount_bits=4", 36 * MIB),
    ] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.qcow2");
        if qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, text(&path), &size.to_string()]).is_none() {
            return;
        }
        let tables = || Header::read(&*place(&path)).unwrap();
        let (before, bytes) = (tables(), pattern(5, MIB as usize).repeat((size / MIB) as usize));
        let disk = open(&path, Mode::ReadWrite);
        for (n, part) in bytes.chunks(1 << 20).enumerate() {
            Served::write_at(&disk, part, n as u64 * MIB).unwrap();
            if n % 4 == 1 {
                disk.flush().unwrap();
            }
        }
        Box::new(disk).close().unwrap();
        assert_ne!(tables(), before, "{options}: it was large enough, and the test is for nothing");
        check(&path);
        assert!(by_qemu(&path).unwrap() == bytes, "{options}");
    }
}

/// A write that no reference count could be had for is refused, and what was written before stays.
#[test]
fn a_write_beyond_what_can_be_counted_is_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.qcow2");
    let options = "cluster_size=512,refcount_bits=64";
    if qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, text(&path), "64M"]).is_none() {
        return;
    }
    // 2^20 blocks of 64 counts of clusters of 512 bytes: 32 GiB, of which the file now has all but some.
    let most = 32u64 << 30;
    File::options().write(true).open(&path).unwrap().set_len(most - 4096).unwrap();
    let disk = open(&path, Mode::ReadWrite);
    Served::write_at(&disk, &[7; 512], 0).unwrap();
    let error = Served::write_at(&disk, &[7; 8192], MIB).unwrap_err();
    assert!(matches!(error, xcp_sm::Error::TooBig { .. }), "{error}");
}

/// A name, what is changed of a sound image, and what the error must say.
type Case<'a> = (&'a str, &'a [(usize, &'a [u8])], &'a str);

/// Each image that no read, or no write, can serve: the reason is said, and it is told apart from damage.
#[test]
fn what_cannot_be_served_is_refused_by_a_look_at_the_header() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let good = at("good.qcow2");
    qcow2::create(&*fresh(&good), 10 * MIB).unwrap();
    let bytes = fs::read(&good).unwrap();
    let with = |name: &str, patches: &[(usize, &[u8])]| {
        let mut bytes = bytes.clone();
        for (at, patch) in patches {
            bytes[*at..at + patch.len()].copy_from_slice(patch);
        }
        fs::write(at(name), bytes).unwrap();
        at(name)
    };
    let unsupported: [Case; 8] = [
        ("aes", &[(35, &[1])], "encrypted by AES"),
        ("luks", &[(35, &[2])], "encrypted by LUKS"),
        ("data", &[(79, &[4])], "its data is in another file"),
        ("later", &[(79, &[0x20])], "incompatible bit 5"),
        ("latest", &[(72, &[0x80, 0, 0, 0, 0, 0, 0, 1])], "incompatible bit 63"),
        ("version", &[(7, &[4])], "version 4"),
        ("packed", &[(104, &[2]), (79, &[8])], "compression is of type 2"),
        ("vmdk", &[], "neither raw nor qcow2"),
    ];
    for (name, patches, words) in unsupported {
        let path = with(name, patches);
        if name == "vmdk" {
            qcow2::set_parent(&*place(&path), "a.vmdk", "vmdk").unwrap();
        }
        let error = refused(&path);
        assert!(matches!(error, xcp_sm::Error::Unsupported { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
    let damaged: [Case; 5] = [
        ("corrupt", &[(79, &[2])], "corrupt"),
        ("contradiction", &[(104, &[1])], "contradict"),
        ("counts", &[(99, &[7])], "2^7 bits"),
        ("table", &[(56, &[0, 1, 0, 0])], "too big"),
        ("small", &[(79, &[0x10]), (23, &[12])], "subclusters"),
    ];
    for (name, patches, words) in damaged {
        let error = refused(&with(name, patches));
        assert!(matches!(error, xcp_sm::Error::Damaged { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
    // Read, and not written.
    for (name, patch, words) in [("dirty", (79, 1), "did not finish"), ("snapshots", (63, 1), "internal snapshots")] {
        let path = with(name, &[(patch.0, &[patch.1])]);
        let header = Header::read(&*place(&path)).unwrap();
        let error = header.refuse_unwritable(&*place(&path)).unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert!(Image::open(place(&path), Mode::ReadWrite).is_err());
        assert!(read_all(&open(&path, Mode::ReadOnly)).iter().all(|byte| *byte == 0));
    }
    // The flag alone: two entries of the L1 table may share an L2 table, and none of that is an internal snapshot.
    let path = at("flags.qcow2");
    qcow2::create(&*fresh(&path), 10 * MIB).unwrap();
    let disk = open(&path, Mode::ReadWrite);
    Served::write_at(&disk, &pattern(2, 3 << 16), 0).unwrap();
    Box::new(disk).close().unwrap();
    let l1 = u64::from_be_bytes(fs::read(&path).unwrap()[40..48].try_into().unwrap());
    let entry = place(&path);
    let mut byte = [0];
    entry.read_at(&mut byte, l1).unwrap();
    entry.write_at(&[byte[0] & 0x7f], l1).unwrap();
    let disk = open(&path, Mode::ReadWrite);
    Served::write_at(&disk, &[9; 512], 5 * MIB).unwrap();
    Box::new(disk).close().unwrap();
    check(&path);
    assert!(read_all(&open(&path, Mode::ReadOnly))[..3 << 16] == pattern(2, 3 << 16)[..]);
}

/// What a chain says of an image that it must not open.
fn refused(path: &Path) -> xcp_sm::Error {
    let before = fs::read(path).unwrap();
    let hidden = qcow2::set_hidden(&*place(path), true).map(|()| "hidden");
    let error = Header::read(&*place(path)).and_then(|header| header.parent(&*place(path)).map(|_| ()));
    let opened = Chain::open_single(place(path), Mode::ReadOnly);
    assert!(error.is_err() && opened.is_err(), "{}", path.display());
    if path.ends_with("vmdk") {
        return error.unwrap_err();
    }
    assert!(hidden.is_err());
    assert!(fs::read(path).unwrap() == before, "a refused call changed {}", path.display());
    error.unwrap_err()
}

#[test]
fn a_chain_is_what_its_headers_say_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let attempt = |leaf: &Path| {
        let dir = dir.path();
        Chain::open(Parent::Qcow2(place(leaf)), Mode::ReadOnly, |name| {
            assert!(!name.contains('/'));
            let found = place(&dir.join(name));
            Ok(if name.ends_with(".raw") { Parent::Raw(found) } else { Parent::Qcow2(found) })
        })
    };
    let (base, leaf) = (at("base.qcow2"), at("leaf.qcow2"));
    qcow2::create(&*fresh(&base), MIB).unwrap();
    snapshot(&leaf, &base);
    fs::write(at("disk.raw"), [1; 4096]).unwrap();
    let name = |named: &str, format: &str| qcow2::set_parent(&*place(&leaf), named, format).unwrap();
    // The other storage managers write paths of their own host.
    for (named, format) in [("base.qcow2", "qcow2"), ("/run/sr-mount/x/base.qcow2", "qcow2"), ("./disk.raw", "raw")] {
        name(named, format);
        attempt(&leaf).unwrap();
    }
    for (named, format, words) in [
        ("base.qcow2", "raw", "and that is qcow2"),
        ("disk.raw", "qcow2", "and that is raw"),
        ("leaf.qcow2", "qcow2", "itself"),
        ("/elsewhere/leaf.qcow2", "qcow2", "itself"),
        ("nbd://host/base.qcow2", "raw", "no file"),
        ("json:{\"file\":\"base.qcow2\"}", "qcow2", "no file"),
        ("..", "qcow2", "no file"),
        ("a/", "qcow2", "no file"),
        ("base.qcow2", "vmdk", "neither raw nor qcow2"),
    ] {
        name(named, format);
        let error = attempt(&leaf).unwrap_err();
        assert!(error.to_string().contains(words), "{named}: {error}");
    }
    // By way of another, and by another name of one file.
    name("base.qcow2", "qcow2");
    qcow2::set_parent(&*place(&base), "leaf.qcow2", "qcow2").unwrap();
    assert!(attempt(&leaf).unwrap_err().to_string().contains("meets itself"));
    fs::hard_link(&leaf, at("link.raw")).unwrap();
    name("link.raw", "raw");
    assert!(attempt(&leaf).unwrap_err().to_string().contains("meets itself"));
}

#[test]
fn a_stream_is_an_image() {
    let dir = TempDir::new().unwrap();
    let (path, out) = (dir.path().join("a.qcow2"), dir.path().join("out.qcow2"));
    qcow2::create(&*fresh(&path), 1100 * MIB + 64 * 1024).unwrap();
    let disk = open(&path, Mode::ReadWrite);
    for at in [0, 3 * MIB, 700 * MIB, 1100 * MIB] {
        Served::write_at(&disk, &pattern(at as u8, 64 * 1024), at).unwrap();
    }
    disk.flush().unwrap();
    qcow2::write_stream(&disk, &mut File::create(&out).unwrap(), &out, &|_, _| {}).unwrap();
    check(&out);
    qemu("qemu-img", &["compare", "-U", text(&path), text(&out)]);
    let copy = open(&out, Mode::ReadWrite);
    let mut sector = [0; 512];
    Served::read_at(&copy, &mut sector, 700 * MIB).unwrap();
    assert!(sector[..] == pattern(0xbc, 512)[..] || sector[..] == pattern((700 * MIB) as u8, 512)[..]);
    Served::write_at(&copy, &sector, 900 * MIB).unwrap();
    copy.flush().unwrap();
    check(&out);
}

/// Bytes that no program makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut dice = Dice(1);
    (0..len / 8).flat_map(|_| dice.roll(u64::MAX).to_le_bytes()).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        sectors: u64,
        seed: u8,
    },
    Zero {
        at: u64,
        sectors: u64,
    },
    /// Another program gives the space of whole clusters back: they have a place in the image and read as zeroes.
    Punch {
        at: u64,
        sectors: u64,
    },
    Flush,
    Reopen,
    Snapshot,
    Grow {
        clusters: u64,
    },
    Coalesce,
}

fn steps() -> impl Strategy<Value = Step> {
    let at = 0u64..1 << 14;
    let sectors = prop_oneof![4 => 1u64..64, 1 => Just(128u64), 1 => 100u64..3000];
    prop_oneof![
        8 => (at.clone(), sectors.clone(), any::<u8>()).prop_map(|(at, sectors, seed)| Step::Write { at, sectors, seed }),
        2 => (at.clone(), sectors.clone()).prop_map(|(at, sectors)| Step::Zero { at, sectors }),
        1 => (at, sectors).prop_map(|(at, sectors)| Step::Punch { at, sectors }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        2 => Just(Step::Snapshot),
        1 => (1u64..40).prop_map(|clusters| Step::Grow { clusters }),
        2 => Just(Step::Coalesce),
    ]
}

/// Where an image has the data of its own of a cluster of the disk; qemu's docs/interop/qcow2.txt, "Cluster mapping".
fn data_of(image: &dyn Storage, at: u64) -> Option<u64> {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    const ZERO: u64 = 1;
    let entry = |at: u64| {
        let mut bytes = [0; 8];
        image.read_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let cluster = at / CLUSTER;
    let table = entry(entry(40) + cluster / (CLUSTER / 8) * 8) & OFFSET;
    let found = if table == 0 { 0 } else { entry(table + cluster % (CLUSTER / 8) * 8) };
    (found & OFFSET != 0 && found & ZERO == 0).then_some(found & OFFSET)
}

/// A chain, base first, each image with what its disk should hold.
struct World {
    dir: TempDir,
    layers: Vec<(PathBuf, Vec<u8>)>,
    chain: Option<Chain>,
    names: usize,
}

impl World {
    fn new() -> World {
        let dir = TempDir::new().unwrap();
        let base = dir.path().join("0.qcow2");
        qcow2::create(&*fresh(&base), 3 * MIB).unwrap();
        let chain = Some(open(&base, Mode::ReadWrite));
        World { dir, layers: vec![(base, vec![0; 3 * MIB as usize])], chain, names: 0 }
    }

    fn close(&mut self) {
        if let Some(chain) = self.chain.take() {
            Box::new(chain).close().unwrap();
        }
    }

    fn open(&mut self) {
        self.chain = Some(open(&self.layers.last().unwrap().0, Mode::ReadWrite));
    }

    fn apply(&mut self, step: &Step) {
        let (leaf, model) = self.layers.last_mut().unwrap();
        let chain = self.chain.as_ref().unwrap();
        let range = |at: u64, sectors: u64| {
            let start = at * 512 % model.len() as u64;
            start..(start + sectors * 512).min(model.len() as u64)
        };
        match *step {
            Step::Write { at, sectors, seed } => {
                let range = range(at, sectors);
                let bytes = pattern(seed, (range.end - range.start) as usize);
                Served::write_at(chain, &bytes, range.start).unwrap();
                model[range.start as usize..range.end as usize].copy_from_slice(&bytes);
            }
            Step::Zero { at, sectors } => {
                let range = range(at, sectors);
                chain.write_zeroes(range.start, range.end - range.start).unwrap();
                model[range.start as usize..range.end as usize].fill(0);
            }
            Step::Punch { at, sectors } => {
                let range = range(at, sectors);
                chain.flush().unwrap();
                let storage = place(leaf);
                let clusters = range.start.next_multiple_of(CLUSTER)..range.end / CLUSTER * CLUSTER;
                for at in clusters.step_by(CLUSTER as usize) {
                    if let Some(data) = data_of(&*storage, at) {
                        assert!(storage.punch(data, CLUSTER).unwrap());
                        model[at as usize..(at + CLUSTER) as usize].fill(0);
                    }
                }
            }
            Step::Flush => chain.flush().unwrap(),
            Step::Reopen => {
                self.close();
                self.open();
            }
            Step::Snapshot => {
                let (leaf, model) = (leaf.clone(), model.clone());
                self.close();
                self.names += 1;
                let child = self.dir.path().join(format!("{}.qcow2", self.names));
                snapshot(&child, &leaf);
                self.layers.push((child, model));
                self.open();
            }
            Step::Grow { clusters } => {
                let size = model.len() as u64 + clusters * CLUSTER;
                model.resize(size as usize, 0);
                let leaf: Arc<dyn Storage> = place(leaf);
                self.close();
                qcow2::resize(&leaf, size).unwrap();
                self.open();
            }
            Step::Coalesce => {
                if self.layers.len() < 2 {
                    return;
                }
                self.close();
                let (child, model) = self.layers.pop().unwrap();
                let (parent, _) = self.layers.pop().unwrap();
                let size = Header::read(&*place(&child)).unwrap().virtual_size;
                let grown: Arc<dyn Storage> = place(&parent);
                qcow2::resize(&grown, size).unwrap();
                let image = Image::open(place(&child), Mode::ReadOnly).unwrap();
                qcow2::coalesce(&image, &open(&parent, Mode::ReadWrite), &|_, _| std::ops::ControlFlow::Continue(()))
                    .unwrap();
                self.layers.push((parent, model));
                self.open();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn every_image_holds_what_was_written_to_it(steps in prop::collection::vec(steps(), 1..40)) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
            let (_, model) = world.layers.last().unwrap();
            assert!(read_all(world.chain.as_ref().unwrap()) == *model, "after {step:?}");
        }
        world.close();
        for (path, model) in &world.layers {
            assert!(read_all(&open(path, Mode::ReadOnly)) == *model);
            check(path);
            if let Some(bytes) = by_qemu(path) {
                assert!(bytes == *model, "qemu reads something else");
            }
        }
    }

    /// Foreign bytes in the tables: an error or a result, in bounded time and memory.
    #[test]
    fn hostile_images_neither_panic_nor_take_much(
        changes in prop::collection::vec((0usize..5 * 65536, prop_oneof![Just(0u64), Just(u64::MAX), Just(1 << 62), any::<u64>(), 0u64..1 << 20]), 1..6),
        in_header: bool,
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.qcow2");
        qcow2::create(&*fresh(&path), 20 * MIB).unwrap();
        let disk = open(&path, Mode::ReadWrite);
        Served::write_at(&disk, &pattern(1, 100_352), 3 * MIB).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in changes {
            let at = if in_header { at % 504 } else { at.min(bytes.len() - 8) };
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        fs::write(&path, &bytes).unwrap();
        for mode in [Mode::ReadOnly, Mode::ReadWrite] {
            let resolve = |name: &str| Err(xcp_sm::Error::Damaged { path: name.into(), what: "no such".to_owned() });
            let Ok(disk) = Chain::open(Parent::Qcow2(place(&path)), mode, resolve) else { continue };
            let size = disk.virtual_size();
            for at in [0, 3 * MIB, 19 * MIB] {
                if at + 65536 <= size {
                    let _ = Served::read_at(&disk, &mut vec![0; 65536], at);
                    let _ = Served::write_at(&disk, &[1; 4096], at + 512);
                    let _ = disk.write_zeroes(at, 65536);
                }
            }
            if size < 1 << 40 {
                let _ = disk.next_data(0);
            }
            let _ = disk.flush();
        }
    }
}
