//! What comes from another host or from a store: files of age(1), and the streams of `sm backup send`.

use std::path::Path;
use std::time::Duration;
use std::{env, fs};

use xcp_sm::backup::age::{self, header::Header, key::Identity};
use xcp_sm::backup::codec::{Compression, Packer};
use xcp_sm::backup::manifest::{DiskOf, Manifest, ParentRun, image_name, map_name};
use xcp_sm::backup::map::{digest, hex};
use xcp_sm::backup::store::Identity as HostOf;
use xcp_sm::backup::stream::disks;
use xcp_sm::backup::stream::receive::{Wanted, receive};
use xcp_sm::backup::verify::{Depth, Of, verify};
use xcp_sm::backup::{Call, Host};
use xcp_sm::call::Session;
use xcp_sm::sys::durable::Dir;
use xcp_sm::sys::run_dir;
use xcp_sm::types::{Format, SrUuid};

// ==== age

const IDENTITY: &str = "AGE-SECRET-KEY-1LVFNXX5X4JRA4PCMDVVZ24UWZEUC2HS90PKPQCX68NRYM90VCSEQ8S8ZDT";

/// A header is read from the start of a file, and says where it ends. Then the file is opened, or not.
pub fn age(bytes: &[u8]) {
    let Ok(header) = Header::parse(bytes) else { return };
    let alone = Header::parse(&bytes[..header.length]).expect("the header alone is a header");
    assert_eq!(alone.length, header.length);
    let _ = age::opened(bytes, &[Identity::parse(IDENTITY).expect("it is an identity")]);
}

/// A file for two keys with a stanza of another type, and one for a single key, both made by age(1).
pub fn age_seeds() -> Vec<Vec<u8>> {
    [include_bytes!("../data/age/two-keys.age").to_vec(), include_bytes!("../data/age/one-key.age").to_vec()].into()
}

/// Panics unless the seeds are opened.
pub fn sound_age() {
    for seed in age_seeds() {
        let opened = age::opened(&seed, &[Identity::parse(IDENTITY).unwrap()]).unwrap();
        assert_eq!(opened.as_deref(), Some(&b"some bytes\n"[..]));
    }
}

// ==== Streams

struct NoSr;

impl Host for NoSr {
    fn open(&self, sr: SrUuid) -> xcp_sm::Result<Session> {
        Err(xcp_sm::Error::UnknownSr { name: sr.to_string(), known: Vec::new() })
    }

    fn known(&self) -> xcp_sm::Result<Vec<SrUuid>> {
        Ok(Vec::new())
    }
}

/// A stream into an empty store, in the directory that XCP_SM_RUN_DIR names, which is emptied. What became a run verifies. The first
/// byte decides whether the digests are made right, so that what lies behind them is reached.
pub fn stream(bytes: &[u8]) {
    let Some((shape, bytes)) = bytes.split_first() else { return };
    let bytes = if shape & 1 == 1 { sealed(bytes) } else { bytes.to_vec() };
    receive_all(&bytes);
}

/// The names of the runs that came.
fn receive_all(bytes: &[u8]) -> Vec<String> {
    let root = env::var_os(run_dir::VARIABLE).expect("XCP_SM_RUN_DIR names a directory that may be emptied");
    let root = Path::new(&root);
    for entry in fs::read_dir(root).expect("the directory") {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    let store = root.join("store");
    fs::create_dir(&store).unwrap();
    fs::write(root.join("stores.conf"), format!("store: name=nas path={}\n", store.display())).unwrap();
    let name = "nas".parse().unwrap();
    xcp_sm::backup::store::find(&name).and_then(|store| store.init(false)).unwrap();

    let call = Call { host: &NoSr, wait: Duration::from_secs(5), progress: &|_, _| {} };
    let wanted = Wanted { store: name, keep: None, take_over: false };
    let came = || Box::new(std::io::Cursor::new(bytes.to_vec()));
    let _ = disks::receive(&call, &disks::Wanted::default(), came(), "stream");
    let _ = receive(&call, &wanted, came(), "stream");
    let ours = ["store", "stores.conf", "lock", "sm", "backup"];
    let mut names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.all(|name| ours.contains(&&*name)), "something was written outside of the store");
    let mut runs = Vec::new();
    for set in fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        for run in fs::read_dir(set).unwrap().map(|entry| entry.unwrap()) {
            let name = run.file_name().into_string().unwrap();
            if run.file_type().unwrap().is_dir() && !name.ends_with(".new") {
                let of = Of { set: None, identity: None, unsigned: true };
                verify(Dir::open(&run.path()).unwrap(), &of, Depth::Files, &|_, _| {})
                    .expect("a run that was received");
                runs.push(name);
            }
        }
    }
    runs
}

/// Makes the digests of a stream right. What has the digest of a block has it as a text, in the stream itself or in other blocks, so
/// it is replaced wherever it stands, until nothing is wrong any more.
fn sealed(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    for _ in 0..10 {
        let wrong: Vec<_> = blocks(&stream).into_iter().filter(|(said, is)| said != is).take(16).collect();
        if wrong.is_empty() {
            break;
        }
        for (said, is) in wrong {
            let mut at = 0;
            while let Some(found) = stream[at..].windows(said.len()).position(|part| part == said) {
                stream[at + found..][..is.len()].copy_from_slice(&is);
                at += found + is.len();
            }
        }
    }
    stream
}

/// The digest that each block of a stream is said to have, and the one that it has.
fn blocks(stream: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut at, mut blocks) = (0, Vec::new());
    while let Some(end) = stream[at..].iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&stream[at..at + end]).into_owned();
        at += end + 1;
        if let ["block", length, said] = line.split(' ').collect::<Vec<_>>()[..]
            && let Ok(length) = length.parse::<usize>()
            && let Some(block) = stream.get(at..at.saturating_add(length))
        {
            if said.len() == 64 && said.is_ascii() {
                blocks.push((said.as_bytes().to_vec(), hex(&digest(block)).into_bytes()));
            }
            at += length;
        }
    }
    blocks
}

const RUNS: [&str; 2] = ["20261127T010735Z-1f2e3d4c", "20261127T010736Z-00000001"];

/// The parts of a run of one disk of so many bytes, in the order of a stream.
fn parts(
    run: &str,
    compression: Compression,
    parent: Option<ParentRun>,
    image: &[u8],
    map: &str,
    size: u64,
) -> Vec<Vec<u8>> {
    let host = HostOf { name: "host".to_owned(), machine: None };
    let timestamp = "2026-11-27T01:07:35Z".to_owned();
    let mut manifest = Manifest::new("web".parse().unwrap(), run.parse().unwrap(), timestamp, compression, host);
    manifest.parent = parent;
    let (file, map_file) = (image_name(0, compression, false), map_name(0));
    manifest.disks.push(DiskOf {
        index: 0,
        file: file.clone(),
        map: map_file.clone(),
        map_sha256: hex(&digest(map.as_bytes())),
        uuid: "98de866e-b035-4b1a-a571-00000000000a".parse().unwrap(),
        sr_uuid: "87b8646b-b800-9500-cb7b-af3b74e02f5c".parse().unwrap(),
        sr_type: "file".to_owned(),
        label: "web".to_owned(),
        description: String::new(),
        vdi_type: Format::Raw,
        read_only: false,
        shareable: false,
        virtual_size: size,
        allocated: size,
        sector_size: 512,
        parent: None,
        snapshot: None,
    });
    let manifest = manifest.text();
    let mut sums =
        vec![(map_file, hex(&digest(map.as_bytes()))), ("manifest.json".to_owned(), hex(&digest(&manifest)))];
    if compression.is_packed() {
        sums.push((file, hex(&digest(image))));
    }
    sums.sort();
    let sums: String = sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    vec![manifest, sums.into_bytes(), map.as_bytes().to_vec(), image.to_vec()]
}

fn run_of(run: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    let bytes: usize = parts.iter().map(Vec::len).sum();
    let mut stream = format!("run {run} {} 0 {bytes}\n", hex(&digest(&parts[0]))).into_bytes();
    for part in parts {
        stream.extend(format!("block {} {}\n", part.len(), hex(&digest(part))).into_bytes());
        stream.extend(part);
    }
    stream.extend(b"end\n");
    stream
}

/// A run that is not packed with an increment on it, one that is packed, and one of a disk of nothing.
pub fn stream_seeds() -> Vec<Vec<u8>> {
    let (block, other) = ([7; 1024], [9; 1024]);
    let sum = |bytes: &[u8]| hex(&digest(bytes));
    let raw = parts(RUNS[0], Compression::None, None, &block, &format!("0 0 1024 {}\n", sum(&block)), 1024);
    let parent = ParentRun { run: RUNS[0].parse().unwrap(), manifest_sha256: sum(&raw[0]) };
    let more = parts(RUNS[1], Compression::None, Some(parent), &other, &format!("0 0 1024 {}\n", sum(&other)), 1024);
    let packed = Packer::new(Compression::Zstd).unwrap().pack(&block).unwrap();
    let map = format!("0 0 {} {}\n", packed.len(), sum(&block));
    let zstd = parts(RUNS[0], Compression::Zstd, None, &packed, &map, 1024);
    let mut nothing = parts(RUNS[0], Compression::None, None, &[], "0-2047 zero\n", 8 << 30);
    nothing.pop();
    let whole = |runs: &[Vec<u8>]| [b"\x01sm-backup-stream 1\nset web\n", &*runs.concat(), b"done\n"].concat();
    vec![
        whole(&[run_of(RUNS[0], &raw), run_of(RUNS[1], &more)]),
        whole(&[run_of(RUNS[0], &zstd)]),
        whole(&[run_of(RUNS[0], &nothing)]),
    ]
}

/// Panics unless all runs of the seeds are received, and a changed one whose digests were made right.
pub fn sound_streams() {
    let seeds = stream_seeds();
    assert_eq!(seeds.iter().map(|seed| receive_all(&seed[1..]).len()).collect::<Vec<_>>(), [2, 1, 1]);
    let mut changed = seeds[0][1..].to_vec();
    let at = changed.windows(4).position(|part| part == [7; 4]).unwrap();
    changed[at] = 8;
    assert_eq!((receive_all(&changed).len(), receive_all(&sealed(&changed)).len()), (0, 2));
}
